"""The speed records' script: each part against NumPy or PyTorch, and whole runs on the sample."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import speedrun

SGD, MUON, WIDE = speedrun.RECIPES.values()
THIN = dataclasses.replace(SGD, widths=(26, 28, 30), epochs=2)
THINNER = dataclasses.replace(THIN, widths=(4, 8, 8), batch_size=160)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 32, 32, 3)).astype(np.float32)
PIXELS = RNG.integers(256, size=(3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def sample():
    """Training and test images."""
    return speedrun._load("sample", None)[:2]


def net_of(recipe):
    """Random parameters and statistics."""
    shapes = jax.eval_shape(lambda: speedrun.initial_net(recipe, jax.random.key(0), PIXELS))
    rng = np.random.default_rng(1)
    params, stats = jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    return params, {name: (mean, 1 + np.abs(var)) for name, (mean, var) in stats.items()}


def convolve(x, kernel, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        x[:, i : i + rows, j : j + columns] @ kernel[i, j] for i in range(size) for j in range(size)
    )


def pool(x, window):
    side = x.shape[1] // window
    x = x[:, : side * window, : side * window]
    return x.reshape(len(x), side, window, side, window, -1).max((2, 4))


def gelu(x):
    return 0.5 * x * (1 + np.asarray(jax.lax.erf(x / np.sqrt(np.float32(2)))))


def reference(recipe, net, images):
    params, stats = net
    x = gelu(convolve(images, params["whitening_kernel"], 0) + params["whitening_bias"])
    for group in (1, 2, 3):
        first = x
        for index in range(1, recipe.convs + 1):
            name = f"{group}_{index}"
            x = convolve(x, params[f"conv{name}"], 1)
            x = pool(x, 2) if index == 1 else x
            x = (x - stats[name][0]) / np.sqrt(stats[name][1]) + params[f"norm{name}"]
            x = gelu(x + first if recipe.residual and index == recipe.convs else x)
            first = x if index == 1 else first
    return x.max((1, 2)) @ params["head"] * recipe.logit_scale


@pytest.mark.parametrize(("recipe", "side"), [(SGD, 32), (WIDE, 32), (MUON, 28), (MUON, 24)])
def test_logits_are_those_of_the_recipe(recipe, side):
    recipe = dataclasses.replace(recipe, widths=(26, 28, 30))
    net, images = net_of(recipe), IMAGES[:, :side, :side]
    logits, _ = jax.jit(lambda: speedrun.forward(recipe, net, images, train=False))()
    expected = reference(recipe, net, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize(("recipe", "count"), [(SGD, 1_971_640), (WIDE, 9_915_704)])
def test_number_of_parameters(recipe, count):
    params, _ = jax.eval_shape(lambda: speedrun.initial_net(recipe, jax.random.key(0), PIXELS))
    assert sum(math.prod(leaf.shape) for leaf in params.values()) == count


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    net = net_of(THIN)
    x = jax.ShapeDtypeStruct(IMAGES.shape, jnp.bfloat16)
    found = jax.eval_shape(lambda x: speedrun.forward(THIN, net, x, train=True), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_gradient_of_a_pool_goes_to_the_maximum():
    x = RNG.permutation(2 * 6 * 6 * 5).reshape(2, 6, 6, 5).astype(np.float32)
    maxima, gradient_of = jax.vjp(functools.partial(speedrun.max_pool, size=3), x)
    np.testing.assert_array_equal(maxima, pool(x, 3))
    weights = RNG.normal(size=maxima.shape).astype(np.float32)
    (found,) = gradient_of(weights)
    where = np.isin(x, maxima)
    assert where.sum() == maxima.size
    np.testing.assert_array_equal(pool(np.where(where, found, -np.inf), 3), weights)
    assert not np.asarray(found)[~where].any()


def test_a_pool_hides_no_nan():
    x = np.ones((1, 2, 2, 4), np.float32)
    x[0, [0, 0, 1, 1], [0, 1, 0, 1], range(4)] = np.nan
    assert np.isnan(speedrun.max_pool(x, 2)).all()


def test_first_filters_pass_the_image_through():
    kernel = speedrun.identity_kernel(jax.random.key(0), 5, 8)
    x = RNG.normal(size=(1, 4, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(convolve(x, np.asarray(kernel), 1)[..., :5], x)
    bound = (3 * 3 * 5) ** -0.5
    assert 0.8 * bound < jnp.abs(kernel[..., 5:]).max() <= bound
    narrowing = speedrun.identity_kernel(jax.random.key(0), 6, 4)
    np.testing.assert_array_equal(narrowing[1, 1], np.eye(6, 4))
    assert jnp.count_nonzero(narrowing) == 4


def test_norms_follow_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(3, eps=speedrun.NORM_EPSILON)
    inputs = torch.tensor(IMAGES.transpose(0, 3, 1, 2), requires_grad=True)
    theirs(inputs).backward(torch.tensor(IMAGES[::-1].transpose(0, 3, 1, 2).copy()))
    bias = np.float32([1, 2, 3])
    (found, mean, var), gradients_of = jax.vjp(speedrun.batch_norm, IMAGES, bias)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    close(found, theirs(inputs).detach().permute(0, 2, 3, 1).numpy() + bias)
    close(mean, IMAGES.mean((0, 1, 2)))
    close(var, IMAGES.var((0, 1, 2)))
    gradient, of_bias = gradients_of((IMAGES[::-1], 0 * mean, 0 * var))
    close(gradient, inputs.grad.permute(0, 2, 3, 1))
    close(of_bias, theirs.bias.grad)


def test_a_step_keeps_its_share_of_the_statistics():
    recipe = dataclasses.replace(THIN, convs=1)
    params, stats = net = net_of(recipe)
    _, after = jax.jit(lambda: speedrun.forward(recipe, net, IMAGES, train=True))()
    x = gelu(convolve(IMAGES, params["whitening_kernel"], 0) + params["whitening_bias"])
    x = pool(convolve(x, params["conv1_1"], 1), 2)
    for found, old, new in zip(
        after["1_1"], stats["1_1"], (x.mean((0, 1, 2)), x.var((0, 1, 2))), strict=True
    ):
        np.testing.assert_allclose(found, 0.6 * old + 0.4 * new, rtol=1e-3, atol=1e-4)


def test_whitened_patches_are_uncorrelated(sample, monkeypatch):
    images = speedrun.normalized(jnp.asarray(sample[0].images[:200]))

    def whitened():
        kernel = jax.jit(lambda x: speedrun.whitening_kernel(x))(images)
        assert kernel.shape == (2, 2, 3, 24)
        np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
        return convolve(np.asarray(images), np.asarray(kernel), 0).reshape(-1, 24)[:, :12]

    # Epsilon damps the weak directions.
    patches = np.lib.stride_tricks.sliding_window_view(np.asarray(images), (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12).astype(np.float64)
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    powers = np.square(whitened(), dtype=np.float64).mean(0)
    np.testing.assert_allclose(powers, variances / (variances + 5e-4), rtol=1e-3)
    assert powers.min() < 0.99

    monkeypatch.setattr(speedrun, "WHITENING_EPSILON", 1e-7)
    found = whitened().astype(np.float64)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(12), atol=2e-2)


def draw(seed):
    """An array for each kind of parameter."""
    rng = np.random.default_rng(seed)
    shapes = {"norm1_1": (5,), "head": (5, 7), "whitening_bias": (5,), "conv1_1": (3, 3, 2, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def published_steps(recipe, groups, factor_of):
    """Takes steps beside PyTorch's SGD; yields after each: epoch, parameters and its tensors.

    Args:
      recipe: a recipe.
      groups: names of parameters, with the published rate and decay of each.
      factor_of: returns what a name's rate is multiplied by, from the epoch.
    """
    torch = pytest.importorskip("torch")
    tensors = {name: torch.nn.Parameter(torch.tensor(draw(0)[name])) for name in groups}
    optimizer = torch.optim.SGD(
        [
            {"params": [tensors[name]], "lr": rate, "weight_decay": decay / rate}
            for name, (rate, decay) in groups.items()
        ],
        momentum=0.85,
        nesterov=True,
    )
    params, velocities = draw(0), jax.tree.map(np.zeros_like, draw(0))
    step = jax.jit(functools.partial(speedrun.updated, recipe))
    for seed, epoch in enumerate((0.0, 1.15, 2.5), start=1):
        params, velocities = step(params, velocities, draw(seed), np.float32(epoch))
        for group, name in zip(optimizer.param_groups, groups, strict=True):
            tensors[name].grad = torch.tensor(draw(seed)[name])
            group["lr"] = groups[name][0] * factor_of(name, epoch)
        optimizer.step()
        yield epoch, params, tensors


def test_sgd_takes_the_published_steps():
    scale = 1024 * (1 + 1 / (1 - 0.85))
    rate, decay = 11.5 / scale, 0.0153 * 1024 / scale
    groups = {name: (64 * rate if name == "norm1_1" else rate, decay) for name in draw(0)}
    recipe = dataclasses.replace(SGD, epochs=5)
    factors = {0.0: 0.2, 1.15: 1.0, 2.5: 1 - 0.93 * 0.27 / 0.77}
    for _, params, tensors in published_steps(recipe, groups, lambda _, epoch: factors[epoch]):
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach(), rtol=1e-4, atol=1e-5)


def polynomial(values):
    """Three steps of Newton and Schulz's iteration on singular values."""
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


def orthogonal(matrix):
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return left * polynomial(values / np.linalg.norm(values)) @ right


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (12, 12), (1, 5)])
def test_an_update_keeps_singular_vectors_only(shape):
    matrix = 7 * np.random.default_rng(3).normal(size=shape)
    found = np.asarray(speedrun.orthogonalized(jnp.float32(matrix)), np.float64)
    np.testing.assert_allclose(found, orthogonal(matrix), atol=0.03)
    values = np.linalg.svd(matrix, compute_uv=False)
    if values.min() > 0.02 * np.linalg.norm(values):
        found_values = np.linalg.svd(found, compute_uv=False)
        assert found_values.min() > 0.6 and found_values.max() < 1.3


def test_muon_takes_the_published_steps():
    decay, names = 2e-6 * 2000, ("norm1_1", "head", "whitening_bias")
    groups = {name: (0.67 if name == "head" else 0.053, decay) for name in names}
    ends = {"norm1_1": 8, "head": 8, "whitening_bias": 3}
    kernel, velocity = draw(0)["conv1_1"], 0
    steps = published_steps(MUON, groups, lambda name, epoch: 1 - epoch / ends[name])
    for seed, (epoch, params, tensors) in enumerate(steps, start=1):
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach(), rtol=1e-4, atol=1e-5)
        gradient = draw(seed)["conv1_1"]
        velocity = 0.6 * velocity + gradient
        update = orthogonal((gradient + 0.6 * velocity).reshape(-1, 4)).reshape(kernel.shape)
        kernel = kernel * 4**0.5 / np.linalg.norm(kernel) - 0.24 * (1 - epoch / 8) * update
        np.testing.assert_allclose(params["conv1_1"], kernel, atol=0.01)
        kernel = np.asarray(params["conv1_1"])


def test_muon_starts_from_a_head_of_deviation_1():
    head = {}
    for recipe in (SGD, MUON):
        build = jax.jit(functools.partial(speedrun.initial_net, recipe))
        params, stats = build(jax.random.key(0), PIXELS)
        head[recipe.muon] = np.asarray(params["head"])
        assert np.asarray(params["whitening_bias"]).any() == recipe.muon
        assert all((var == 1).all() and not mean.any() for mean, var in stats.values())
    np.testing.assert_allclose(head[True].std(), 1, rtol=1e-5)
    assert 0.9 < np.abs(head[False]).max() * 256**0.5 <= 1


def test_lookahead_follows_its_definition():
    total, slow, fast = 20, {"a": np.float32([1, -1])}, {"a": np.float32([1, -1])}
    expected_slow = expected_fast = np.float32([1, -1])
    compiled = jax.jit(lambda *args: speedrun.lookahead(*args, total))
    for step in range(1, total + 1):
        update = RNG.normal(size=2)
        fast = jax.tree.map(lambda a, u=update: (a + u).astype(np.float32), fast)
        expected_fast = expected_fast + update
        slow, fast = compiled(slow, fast, np.int32(step))
        if step % 5 == 0:
            kept = 0.95**5 * (step / total) ** 3
            expected_slow = kept * expected_slow + (1 - kept) * expected_fast
            expected_fast = expected_slow
        np.testing.assert_allclose(slow["a"], expected_slow, rtol=1e-5)
        np.testing.assert_allclose(fast["a"], expected_fast, rtol=1e-5)


def test_flips_alternate_and_every_image_is_taken():
    recipe = dataclasses.replace(THIN, crop_padding=4, batch_size=10, cutout=12)
    images = np.zeros((40, 32, 32, 3), np.uint8)
    batches_of = jax.jit(lambda *args: speedrun.epoch_batches(recipe, *args, images))
    flips, orders = [], []
    for epoch in range(3):
        batch = jax.tree.map(np.asarray, batches_of(jax.random.key(7), epoch))
        assert batch.indices.shape == (4, 10)
        indices = batch.indices.reshape(-1)
        assert sorted(indices) == list(range(40))
        flips.append(batch.flips.reshape(-1)[np.argsort(indices)])
        orders.append(indices)
        assert (batch.corners.min(), batch.corners.max()) == (0, 8)
        assert batch.holes.min() >= 0 and 15 < batch.holes.max() <= 20
    assert 5 < flips[0].sum() < 35
    np.testing.assert_array_equal(flips[1], ~flips[0])
    np.testing.assert_array_equal(flips[2], flips[0])
    assert (orders[0] != orders[1]).any()
    again, other = (batches_of(jax.random.key(seed), 0).indices for seed in (7, 8))
    np.testing.assert_array_equal(again.reshape(-1), orders[0])
    assert (other.reshape(-1) != orders[0]).any()


def test_images_are_cropped_mirrored_and_blanked():
    recipe = dataclasses.replace(THIN, crop_padding=2, cutout=6)
    corners, holes = np.int32([[0, 4], [2, 2], [3, 1]]), np.int32([[0, 26], [16, 16], [5, 20]])
    batch = speedrun.Batch(np.int32([2, 0, 1]), np.array([False, True, True]), corners, holes)
    padded = np.pad(PIXELS, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(speedrun.padded(PIXELS, 2), padded)
    found = jax.jit(lambda *args: speedrun.augmented(recipe, *args, 32))(padded, batch)
    for index, ((top, left), (y, x)) in enumerate(zip(corners, holes, strict=True)):
        expected = padded[batch.indices[index], top : top + 32, left : left + 32]
        expected = (expected[:, ::-1] if batch.flips[index] else expected) / 255
        expected = (expected - speedrun.MEAN) / speedrun.STD
        expected[y : y + 6, x : x + 6] = 0
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-5)


def test_small_images_are_scaled_as_by_torch():
    torch = pytest.importorskip("torch")
    zeros = np.zeros((3, 2), np.int32)
    batch = speedrun.Batch(np.arange(3), np.zeros(3, bool), zeros + 2, zeros)
    padded = speedrun.padded(PIXELS, 2)
    found = jax.jit(lambda *args: speedrun.augmented(THIN, *args, 24))(padded, batch)
    images = torch.tensor(np.array(speedrun.normalized(PIXELS))).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(images, (24, 24), mode="bilinear")
    np.testing.assert_allclose(found, scaled.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


def test_images_grow_and_the_whitening_bias_is_trained_for_three_epochs():
    recipe = dataclasses.replace(MUON, epochs=8, resolutions=(24, 28, 32))
    kernel, both = ("whitening_kernel",), ("whitening_kernel", "whitening_bias")
    expected = [(24, kernel, [0, 1, 2]), (28, both, [3, 4, 5]), (32, both, [6, 7])]
    assert list(speedrun.phases(recipe)) == expected
    assert list(speedrun.phases(THIN)) == [(32, kernel, [0, 1])]


def test_frozen_parameters_stay(sample):
    net = net_of(THINNER)
    state = speedrun.State(net, None, jax.tree.map(np.ones_like, net[0]))
    frozen = ("whitening_kernel", "whitening_bias")
    step = functools.partial(speedrun.train_step, THINNER, frozen, total_steps=6)
    after, loss = jax.jit(step)(state, (IMAGES, np.arange(3)), np.int32(0))
    changed = {name for name, param in net[0].items() if (after.fast[0][name] != param).any()}
    assert changed == net[0].keys() - set(frozen)
    assert np.isfinite(loss)


def test_views_are_the_image_and_its_neighbours_with_their_mirror_images():
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    crops = [(1, 0.25), (0, 0.125), (2, 0.125)]
    found = speedrun.views(jnp.asarray(IMAGES))
    assert len(found) == 6
    for index, (start, weight) in enumerate(crops):
        crop = padded[:, start : start + 32, start : start + 32]
        for view, expected in zip(found[2 * index :], (crop, crop[:, :, ::-1]), strict=False):
            assert view[0] == weight
            np.testing.assert_array_equal(view[1], expected)


@pytest.fixture
def run(run_script, monkeypatch, sample):
    """Runs the script with thin nets on few images."""
    muon = dataclasses.replace(MUON, widths=(4, 8, 8), convs=1, epochs=2, batch_size=32)
    sgd = dataclasses.replace(THINNER, batch_size=32)
    few = [
        speedrun.Examples(part.images[:count], part.labels[:count])
        for part, count in zip(sample, (128, 30), strict=True)
    ]
    load = speedrun._load
    monkeypatch.setattr(
        speedrun, "_load", lambda *args: (*few, "few") if args[0] == "sample" else load(*args)
    )
    monkeypatch.setattr(speedrun, "RECIPES", {("94", "sgd"): sgd, ("94", "muon"): muon})
    monkeypatch.setattr(speedrun, "EVAL_BATCH_SIZE", 16)  # so that two images are missing
    return functools.partial(run_script, speedrun, "--source=sample", "--dtype=float32")


@pytest.mark.parametrize(
    "flags",
    [pytest.param([], marks=pytest.mark.slow), ["--optimizer=muon", "--resolutions=24,32"]],
)
def test_seeds_share_the_compiled_programs(run, tmp_path, monkeypatch, flags):
    traced = []

    def counted(name, function, *args):
        traced.append(name)
        return function(*args)

    for name in ("whitening_kernel", "views"):  # one in each program
        function = functools.partial(counted, name, getattr(speedrun, name))
        monkeypatch.setattr(speedrun, name, function)
    file = tmp_path / "runs.json"
    status, out, err = run("--seeds=2", "--first-seed=5", *flags, f"--json={file}")
    assert (status, err) == (0, "")
    assert set(traced) == {"whitening_kernel", "views"}
    assert len(traced) < 5  # not once more for a seed: lowering, and shapes

    result = json.loads(file.read_text())
    assert [r["seed"] for r in result["runs"]] == [5, 6]
    assert len({r["loss"] for r in result["runs"]}) == 2
    assert all(r["training_seconds"] < r["seconds"] for r in result["runs"])
    for name in ("accuracy", "accuracy_without_augmentation", "seconds", "training_seconds"):
        values, summary = [r[name] for r in result["runs"]], result[name]
        np.testing.assert_allclose(summary["mean"], np.mean(values))
        np.testing.assert_allclose(summary["std"], np.std(values, ddof=1))
        np.testing.assert_allclose(summary["interval"], 12.706 * summary["std"] / 2**0.5, rtol=1e-4)
        assert min(values) == summary["min"] and max(values) == summary["max"]
    assert result["settings"]["batch_size"] == 32
    assert {"commit", "jax", "devices", "command"} <= result["provenance"].keys()
    lines = [line.split() for line in out.splitlines()]
    losses = [float(line[3]) for line in lines if line[0] == "epoch"]
    assert [line[1] for line in lines if line[0] == "epoch"] == ["1", "2", "1", "2"]
    assert losses[1] < losses[0] and losses[3] < losses[2]
    seeds = [line for line in lines if line[0] == "seed"]
    assert [line[1:4] for line in seeds] == [
        [str(r["seed"]), f"{r['accuracy']:.2f}", "%,"] for r in result["runs"]
    ]
    assert lines[-4][:4] == ["accuracy,", "%", "mean", f"{result['accuracy']['mean']:.3f}"]


@pytest.mark.slow
def test_scores_are_sums_over_views(sample):
    images, labels = sample[1].images[:50], sample[1].labels[:50]
    net = net_of(THINNER)
    batched = np.stack([images[:30], images[20:]]), np.stack([labels[:30], labels[20:]])
    batched[1][1, :10] = -1  # no image is counted twice
    score = jax.jit(functools.partial(speedrun.score, THINNER, "float32"))
    loss, plain, hits = np.asarray(score(net, *batched))

    @jax.jit
    def logits_of_views():
        normalized = speedrun.normalized(jnp.asarray(images))
        return [
            weight * speedrun.forward(THINNER, net, view, train=False)[0]
            for weight, view in speedrun.views(normalized)
        ]

    logits = logits_of_views()
    assert plain == (logits[0].argmax(-1) == labels).sum()
    assert hits == (sum(logits).argmax(-1) == labels).sum()
    expected = -jax.nn.log_softmax(sum(logits))[np.arange(50), labels].sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_one_seed_has_no_deviation():
    expected = {"mean": 5, "std": None, "interval": None, "min": 5, "max": 5}
    assert speedrun.summarize([5.0]) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds=0"], "--seeds must be between 1 and 1,000,000, not 0"),
        (["--epochs=0"], "--epochs must be between 1 and 10,000, not 0"),
        (["--first-seed=-1"], "--first-seed must be between 0 and 1,000,000,000, not -1"),
        (["--record=95"], "--record: invalid choice: '95'"),
        (["--record=96", "--optimizer=muon"], "--record=96 has no recipe for --optimizer=muon"),
        (["--resolutions=24,8"], "--resolutions: '24,8' are not sides from 16 to 32"),
        (["--dtype=float8"], "--dtype: invalid choice: 'float8'"),
        (["--seeds=many"], "--seeds: invalid int value: 'many'"),
        (["--sedes=2"], "unrecognized arguments: --sedes=2"),
        (["--source=arhcive"], "'arhcive'; did you mean archive?"),
        (["--source=folder", "--data-dir=/nowhere"], "/nowhere"),
        (["--json=/nowhere/a.json"], "--json /nowhere/a.json can't be written"),
    ],
)
def test_bad_input_is_one_clear_line(run, flags, message):
    status, _, err = run(*flags)
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_loss_that_is_not_finite_is_refused(sample, monkeypatch):
    losses = np.float32([[1, 2, np.nan], [0, 0, 0]])
    monkeypatch.setattr(speedrun, "train", lambda *_: (0, jnp.asarray(losses)))
    monkeypatch.setattr(speedrun, "score", lambda *_: jnp.zeros(3))
    with pytest.raises(speedrun.UserError, match="no longer finite after 2 steps of seed 3"):
        next(speedrun.runs(THINNER, "float32", *sample, range(3, 4)))

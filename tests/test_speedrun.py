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

THIN = dataclasses.replace(speedrun.RECORDS["94"], widths=(26, 28, 30), epochs=2)
THINNER = dataclasses.replace(THIN, widths=(4, 8, 8))
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def sample():
    """Training and test images."""
    return speedrun._load("sample", None)[:2]


def variables_of(net):
    """Random variables, the statistics included."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGES, train=False))
    rng = np.random.default_rng(1)
    draw = lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    for stats in variables["batch_stats"].values():
        stats["var"] = 1 + np.abs(stats["var"])
    return variables


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


def reference(variables, images, convs, residual):
    params, stats = variables["params"], variables["batch_stats"]
    x = gelu(convolve(images, params["whitening_kernel"], 0) + params["whitening_bias"])
    for group in (1, 2, 3):
        first = x
        for index in range(1, convs + 1):
            x = convolve(x, params[f"conv{group}_{index}"], 1)
            x = pool(x, 2) if index == 1 else x
            norm = f"norm{group}_{index}"
            x = (x - stats[norm]["mean"]) / np.sqrt(stats[norm]["var"]) + params[norm]["bias"]
            x = gelu(x + first if residual and index == convs else x)
            first = x if index == 1 else first
    return pool(x, 3)[:, 0, 0] @ params["head"] / 9


@pytest.mark.parametrize("record", ["94", "96"])
def test_logits_are_those_of_the_recipe(record):
    recipe = dataclasses.replace(speedrun.RECORDS[record], widths=(26, 28, 30))
    net = speedrun.Net(recipe)
    variables = variables_of(net)
    logits = jax.jit(lambda: net.apply(variables, IMAGES, train=False))()
    expected = reference(variables, IMAGES, recipe.convs, record == "96")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.std())


@pytest.mark.parametrize(("record", "count"), [("94", 1_971_640), ("96", 9_915_704)])
def test_number_of_parameters(record, count):
    net = speedrun.Net(speedrun.RECORDS[record])
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGES, train=False))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == count


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    net = speedrun.Net(THIN, jnp.bfloat16)
    logits, variables = jax.eval_shape(
        lambda: net.init_with_output(jax.random.key(0), IMAGES, train=False)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}


def test_first_filters_pass_the_image_through():
    kernel = speedrun.identity_init(jax.random.key(0), (3, 3, 5, 8))
    x = RNG.normal(size=(1, 4, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(convolve(x, np.asarray(kernel), 1)[..., :5], x)
    bound = (3 * 3 * 5) ** -0.5
    assert 0.8 * bound < jnp.abs(kernel[..., 5:]).max() <= bound
    narrowing = speedrun.identity_init(jax.random.key(0), (3, 3, 6, 4))
    np.testing.assert_array_equal(narrowing[1, 1], np.eye(6, 4))
    assert jnp.count_nonzero(narrowing) == 4


def test_norms_follow_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(3, eps=speedrun.NORM_EPSILON, momentum=0.4)
    expected = theirs(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).detach().numpy()
    ours, variables = speedrun.BatchNorm(0.6), None
    variables = ours.init(jax.random.key(0), IMAGES, train=False)
    found, updates = ours.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], theirs.running_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], theirs.running_var, rtol=1e-4)


def test_whitened_patches_are_uncorrelated(sample, monkeypatch):
    images = speedrun.normalized(jnp.asarray(sample[0].images[:200]))

    def whitened():
        kernel = jax.jit(speedrun.whitening_kernel)(images)
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
    jax.clear_caches()
    found = whitened().astype(np.float64)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(12), atol=2e-2)


def test_learning_rate_rises_and_falls_in_straight_lines():
    found = speedrun.learning_rates(speedrun.RECORDS["94"], 480) / 1.5
    expected = np.interp(np.arange(480), [0, 0.23 * 480 - 1, 479], [0.2, 1.0, 0.07])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert speedrun.learning_rates(speedrun.RECORDS["96"], 480)[-1] == 0


def test_steps_on_the_mean_are_the_published_ones_on_the_sum():
    """Its steps in PyTorch, with the published numbers for a loss summed over 1,024 images."""
    torch = pytest.importorskip("torch")
    shapes = {"norm1_1": {"bias": (5,)}, "head": (5, 7), "whitening_bias": (5,)}
    shapes["whitening_kernel"] = (2, 2)

    def draw(seed):
        rng = np.random.default_rng(seed)
        make = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
        return jax.tree.map(make, shapes, is_leaf=lambda node: isinstance(node, tuple))

    scale = 1024 * (1 + 1 / (1 - 0.85))
    rate, decay = 11.5 / scale, 0.0153 * 1024 / scale
    tensors = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(leaf)), draw(0))
    norm, others = tensors["norm1_1"]["bias"], [tensors["head"], tensors["whitening_bias"]]
    groups = [
        {"params": [norm], "lr": 64 * rate, "weight_decay": decay / (64 * rate)},
        {"params": others, "lr": rate, "weight_decay": decay / rate},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    params, velocity = draw(0), jax.tree.map(np.zeros_like, draw(0))
    step = jax.jit(functools.partial(speedrun.sgd, epoch=np.float32(2.9), decay=0.0153 / 11.5))
    for index, factor in enumerate((0.2, 1.0, 0.07), start=1):
        params, velocity = step(params, velocity, draw(index), np.float32(1.5 * factor))
        for tensor, grad in zip(*map(jax.tree.leaves, (tensors, draw(index))), strict=True):
            tensor.grad = 1024 * torch.tensor(grad)
        for group, peak in zip(optimizer.param_groups, (64 * rate, rate), strict=True):
            group["lr"] = factor * peak
        optimizer.step()
        for ours, theirs in zip(*map(jax.tree.leaves, (params, tensors)), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(params["whitening_kernel"], draw(0)["whitening_kernel"])


def test_training_of_the_whitening_bias_ends_after_three_epochs():
    params = {"whitening_bias": np.ones(3, np.float32), "head": np.ones((3, 3), np.float32)}
    for epoch, moves in ((2.99, True), (3.0, False)):
        after, _ = speedrun.sgd(params, params, params, 0.1, np.float32(epoch), 0.0)
        assert (after["whitening_bias"] != 1).all() == moves
        assert (after["head"] != 1).all()


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
    recipe = dataclasses.replace(THIN, epochs=3, crop_padding=4)
    epochs = list(speedrun.epochs(7, recipe, (40, 32, 32, 3), 10))
    flips = []
    for epoch, (number, batch) in enumerate(epochs):
        assert number == epoch and batch.indices.shape == (4, 10)
        indices = batch.indices.reshape(-1)
        assert sorted(indices) == list(range(40))
        flips.append(batch.flips.reshape(-1)[np.argsort(indices)])
        assert (batch.corners.min(), batch.corners.max()) == (0, 8)
        assert batch.holes.min() >= 0 and batch.holes.max() < 32
    assert 5 < flips[0].sum() < 35
    np.testing.assert_array_equal(flips[1], ~flips[0])
    np.testing.assert_array_equal(flips[2], flips[0])
    again = speedrun.epochs(7, recipe, (40, 32, 32, 3), 10)
    np.testing.assert_array_equal(next(again)[1].indices, epochs[0][1].indices)
    other = next(speedrun.epochs(8, recipe, (40, 32, 32, 3), 10))[1]
    assert (other.indices != epochs[0][1].indices).any()


def test_images_are_cropped_mirrored_and_blanked():
    recipe = dataclasses.replace(THIN, crop_padding=2, cutout=6)
    corners, holes = np.int32([[0, 4], [2, 2], [3, 1]]), np.int32([[0, 31], [16, 16], [5, 20]])
    batch = speedrun.Batch(np.arange(3), np.array([False, True, True]), corners, holes)
    found = jax.jit(speedrun.augmented, static_argnums=2)(IMAGES, batch, recipe)
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    for index, ((top, left), (y, x)) in enumerate(zip(corners, holes, strict=True)):
        expected = padded[index, top : top + 32, left : left + 32]
        expected = (expected[:, ::-1] if batch.flips[index] else expected).copy()
        expected[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = 0
        np.testing.assert_array_equal(found[index], expected)


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
def run(run_script, monkeypatch):
    """Runs the script with thin nets and small batches."""
    monkeypatch.setattr(speedrun, "RECORDS", {"94": THINNER})
    monkeypatch.setattr(speedrun, "BATCH_SIZE", 20)
    monkeypatch.setattr(speedrun, "EVAL_BATCH_SIZE", 30)
    return functools.partial(run_script, speedrun, "--source=sample", "--dtype=float32")


def test_seeds_share_the_compiled_functions(run, sample, tmp_path, monkeypatch):
    few = [speedrun.Examples(part.images[:60], part.labels[:60]) for part in sample]
    monkeypatch.setattr(speedrun, "_load", lambda *_: (*few, "sample"))
    traced = []

    def counted(name, function, *args):
        traced.append(name)
        return function(*args)

    for name in ("whitening_kernel", "lookahead", "views"):  # in each of the compiled functions
        function = functools.partial(counted, name, getattr(speedrun, name))
        monkeypatch.setattr(speedrun, name, function)
    file = tmp_path / "runs.json"
    status, out, err = run("--seeds=3", "--first-seed=5", "--epochs=2", f"--json={file}")
    assert (status, err) == (0, "")
    assert traced == ["whitening_kernel", "lookahead", "views"]  # compiled once for all seeds

    result = json.loads(file.read_text())
    assert [r["seed"] for r in result["runs"]] == [5, 6, 7]
    assert len({r["loss"] for r in result["runs"]}) == 3
    assert all(1 < r["loss"] < 2.3 for r in result["runs"])
    for name in ("accuracy", "accuracy_without_augmentation", "seconds"):
        values, summary = [r[name] for r in result["runs"]], result[name]
        np.testing.assert_allclose(summary["mean"], np.mean(values))
        np.testing.assert_allclose(summary["std"], np.std(values, ddof=1))
        np.testing.assert_allclose(summary["interval"], 1.96 * summary["std"] / 3**0.5)
        assert 0 < min(values) == summary["min"] and max(values) == summary["max"]
    assert (result["settings"]["epochs"], result["settings"]["batch_size"]) == (2, 20)
    assert {"commit", "jax", "devices", "command"} <= result["provenance"].keys()
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[-7:-4]] == [["seed", str(s)] for s in (5, 6, 7)]
    assert f"{result['runs'][1]['accuracy']:.2f} %" in lines[-6]
    assert lines[-3].split()[:4] == ["accuracy,", "%", "mean", f"{result['accuracy']['mean']:.3f}"]


@pytest.mark.slow
def test_scores_are_sums_over_views(sample, monkeypatch):
    monkeypatch.setattr(speedrun, "EVAL_BATCH_SIZE", 20)  # the last batch has 10
    test = speedrun.Examples(sample[1].images[:50], sample[1].labels[:50])
    runner = speedrun.Runner(THINNER, "float32", sample[0], test)
    variables = variables_of(runner.net)
    loss, plain, hits = np.asarray(sum(runner._score(variables, *batch) for batch in runner.test))

    @jax.jit
    def logits_of_views():
        images = speedrun.normalized(jnp.asarray(test.images))
        apply = functools.partial(runner.net.apply, variables, train=False)
        return [weight * apply(view) for weight, view in speedrun.views(images)]

    logits = logits_of_views()
    assert plain == (logits[0].argmax(-1) == test.labels).sum()
    assert hits == (sum(logits).argmax(-1) == test.labels).sum()
    expected = -jax.nn.log_softmax(sum(logits))[np.arange(50), test.labels].sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_one_seed_has_no_deviation():
    assert speedrun.summarize([5.0]) == {"mean": 5, "std": 0, "interval": 0, "min": 5, "max": 5}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds=0"], "--seeds must be between 1 and 1,000,000, not 0"),
        (["--epochs=0"], "--epochs must be between 1 and 10,000, not 0"),
        (["--first-seed=-1"], "--first-seed must be between 0 and 1,000,000,000, not -1"),
        (["--record=95"], "--record: invalid choice: '95'"),
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


def test_steps_of_a_dispatch_are_taken_in_one_loop(sample):
    runner = speedrun.Runner(THINNER, "float32", *sample)
    images = runner.train_images
    state = jax.eval_shape(runner._initial_state, jax.random.key(0), images)
    _, batches = next(speedrun.epochs(0, THINNER, images.shape, 100))
    dispatch = images, runner.train_labels, batches, np.ones(len(batches.indices), np.float32)
    after, losses = jax.eval_shape(runner._train_steps, state, *dispatch)
    assert after == state
    assert losses.shape == (6,)


def test_a_loss_that_is_not_finite_is_refused(sample, monkeypatch):
    runner = speedrun.Runner(THINNER, "float32", *sample)
    losses = iter([1.0, 2.0, np.nan] + 100 * [0.0])
    state = speedrun.State({}, {}, {}, jnp.int32(0))
    monkeypatch.setattr(runner, "_start", lambda *_: state)
    monkeypatch.setattr(runner, "_score", lambda *_: np.zeros(3))
    monkeypatch.setattr(runner, "_train", lambda *_: (state, np.array([next(losses)])))
    monkeypatch.setattr(runner, "steps_per_epoch", 3)
    monkeypatch.setattr(runner, "total_steps", 6)
    with pytest.raises(speedrun.UserError, match="no longer finite after 2 steps of seed 3"):
        runner.run(3)

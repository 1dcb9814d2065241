import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.config.load import default_config
from resnet_jax.data import augment as room
from resnet_jax.data import policies

MEAN = (0.4, 0.5, 0.6)
EVERYTHING = {
    "crop_padding": 4,
    "flip": "alternating",
    "policy": "randaugment",
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "cutout": 8,
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
}


def random_images(batch, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.random((batch, size, size, 3)), jnp.float32)


@functools.cache
def compiled(fields):
    config = default_config().augment
    config.update(dict(fields))
    return jax.jit(
        functools.partial(
            room.augment,
            config=config,
            strengths=strengths(config),
            mean=MEAN,
            num_classes=10,
        )
    )


def strengths(config):
    return {name: config[name] for name in room.STRENGTHS}


def augmented(images, labels=None, *, key=0, epoch=0, indices=None, flip_key=7, **fields):
    batch = len(images)
    labels = jnp.arange(batch, dtype=jnp.int32) % 10 if labels is None else labels
    indices = jnp.arange(batch, dtype=jnp.int32) if indices is None else indices
    return compiled(tuple(fields.items()))(
        *(jax.random.key(key), images, labels, indices, jnp.int32(epoch)),
        flip_key=jax.random.key(flip_key),
    )


def positions(batch, size=32):
    """Returns images whose channels are row / size, column / size and 1."""
    row, column = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    image = np.stack([row / size, column / size, np.ones_like(row)], axis=-1)
    return jnp.asarray(np.broadcast_to(image, (batch, size, size, 3)), jnp.float32)


def test_everything_off_is_the_identity():
    images = random_images(8)
    labels = jnp.array([3, 1, 4, 1, 5, 9, 2, 6])
    out, targets = augmented(images, labels)
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(targets, np.eye(10, dtype=np.float32)[labels])


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_everything_on_keeps_shape_dtype_and_range_and_depends_on_the_key_alone(policy):
    images = random_images(16)
    fields = EVERYTHING | {"policy": policy, "policy_layers": 1}
    out, targets = augmented(images, **fields)
    assert out.shape == images.shape
    assert out.dtype == targets.dtype == jnp.float32
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    assert targets.shape == (16, 10)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    again, targets_again = augmented(images, **fields)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(targets, targets_again)
    other, _ = augmented(images, key=1, **fields)
    assert (np.asarray(out) != np.asarray(other)).any(axis=(1, 2, 3)).all()


def test_each_augmentation_has_a_key_of_its_own(monkeypatch):
    """And keeps it, whatever else is switched on."""

    def note(name, key, images, *_, **__):
        found[name] = jax.random.key_data(key).tobytes()
        return images

    for name in ("random_crop", "color_jitter", "cutout", "random_erasing"):
        monkeypatch.setattr(room, name, functools.partial(note, name))
    monkeypatch.setattr(policies, "randaugment", functools.partial(note, "policy"))
    mix = lambda key, images, targets, **_: (note("mix", key, images), targets)  # noqa: E731
    coin = lambda key, shape: note("flip", key, jnp.zeros(shape, bool))  # noqa: E731
    monkeypatch.setattr(room, "mix", mix)
    monkeypatch.setattr(jax.random, "bernoulli", coin)
    seen, four = [], jnp.arange(4)
    for fields in (EVERYTHING | {"flip": "random"}, {"flip": "random"}):
        found, config = {}, default_config().augment
        config.update(fields)
        arguments = jax.random.key(0), random_images(4), four, four, 0, config, strengths(config)
        room.augment(*arguments, mean=MEAN, num_classes=10, flip_key=jax.random.key(7))
        seen.append(found)
    assert len(set(seen[0].values())) == len(seen[0]) == 7
    assert seen[1] == {"flip": seen[0]["flip"]}


@pytest.mark.parametrize("padding", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_crop_offsets_are_uniform_and_fill_with_black(padding):
    batch = 4050
    out, _ = augmented(positions(batch), crop_padding=padding)
    centre = np.rint(np.asarray(out[:, 16, 16, :2]) * 32).astype(int) - 16
    side = 2 * padding + 1
    counts = np.zeros((side, side))
    np.add.at(counts, tuple((centre + padding).T), 1)
    expected = batch / side**2
    # Chi-square with side**2 - 1 degrees of freedom: mean that, deviation sqrt(2 * that).
    freedom = side**2 - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5
    for image, (dy, dx) in zip(np.asarray(out[:50]), centre[:50], strict=True):
        inside = np.zeros((32, 32), bool)
        inside[max(0, -dy) : 32 - max(0, dy), max(0, -dx) : 32 - max(0, dx)] = True
        np.testing.assert_array_equal(image[..., 2], inside.astype(np.float32))


def test_crop_agrees_with_slices_of_the_padded_image():
    images = random_images(32)
    for mode, numpy_mode in (("zero", "constant"), ("reflect", "reflect")):
        out = np.asarray(augmented(images, crop_padding=4, crop_mode=mode)[0])
        padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=numpy_mode)
        for image, wide in zip(out, padded, strict=True):
            windows = [wide[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
            assert any((image == window).all() for window in windows)


def test_random_flip_is_a_fair_mirror():
    images = random_images(4000, size=8)
    out = np.asarray(augmented(images, flip="random")[0])
    same = (out == np.asarray(images)).all(axis=(1, 2, 3))
    mirrored = (out == np.asarray(images)[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 4000**0.5


def flipped(indices, epoch, *, key=0, flip_key=7):
    images = jnp.broadcast_to(positions(1, size=8), (len(indices), 8, 8, 3))
    indices = jnp.asarray(indices, jnp.int32)
    out, _ = augmented(
        images, key=key, epoch=epoch, indices=indices, flip_key=flip_key, flip="alternating"
    )
    return np.asarray(out[:, 0, 0, 1] > out[:, 0, -1, 1])


def test_alternating_flip_shows_every_image_from_both_sides():
    indices = np.arange(4000)
    first = flipped(indices, 0)
    assert abs(first.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    np.testing.assert_array_equal(flipped(indices, 1, key=1), ~first)
    np.testing.assert_array_equal(flipped(indices, 2, key=2), first)
    # It follows the image, not its place in the batch, and the seed.
    np.testing.assert_array_equal(flipped(indices[::-1], 0, key=3), first[::-1])
    assert 0.4 < (flipped(indices, 0, flip_key=8) == first).mean() < 0.6
    # Neighbours are independent.
    assert abs((first[1:] == first[:-1]).mean() - 0.5) < 5 * 0.5 / 4000**0.5


@pytest.mark.parametrize("side", [pytest.param(1, marks=pytest.mark.slow), 7, 8, 16])
def test_cutout_is_a_square_of_the_mean_centred_anywhere(side):
    images = jnp.full((3000, 32, 32, 3), 0.9)
    out = np.asarray(augmented(images, cutout=side)[0])
    hole = (out != np.float32(0.9)).any(axis=-1)
    np.testing.assert_allclose(out[hole], np.broadcast_to(MEAN, out[hole].shape), rtol=1e-6)
    rows, columns = hole.any(axis=2).sum(axis=1), hole.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hole.sum(axis=(1, 2)), rows * columns)
    assert rows.max() == columns.max() == side
    lengths = [
        min(32, centre - side // 2 + side) - max(0, centre - side // 2) for centre in range(32)
    ]
    for found in (rows, columns):
        assert abs(found.mean() - np.mean(lengths)) < 5 * max(np.std(lengths), 0.01) / 3000**0.5


def test_erasing_has_its_probability_area_and_ratio():
    images = jnp.full((6000, 32, 32, 3), 0.9)
    fields = {"erasing": 0.4, "erasing_scale": (0.1, 0.2), "erasing_ratio": (0.5, 2.0)}
    out = np.asarray(augmented(images, **fields)[0])
    hole = (out != np.float32(0.9)).any(axis=-1)
    chosen = hole.any(axis=(1, 2))
    assert abs(chosen.mean() - 0.4) < 5 * (0.24 / 6000) ** 0.5
    rows, columns = (hole.any(axis=a).sum(axis=1)[chosen] for a in (2, 1))
    np.testing.assert_array_equal(hole.sum(axis=(1, 2))[chosen], rows * columns)
    area, ratio = rows * columns / 1024, rows / columns
    assert 0.08 < area.min() < 0.12
    assert 0.18 < area.max() < 0.22
    assert abs(area.mean() - 0.15) < 0.005
    assert 0.4 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.4
    assert abs(np.log(ratio).mean()) < 0.05


def test_jitter_is_linear_within_its_bounds():
    images = 0.3 + 0.4 * random_images(500, size=8)
    grey = np.asarray(images) @ np.array([0.2989, 0.587, 0.114], np.float32)
    centres = {
        "brightness": np.zeros(images.shape),
        "contrast": np.broadcast_to(grey.mean(axis=(1, 2))[:, None, None, None], images.shape),
        "saturation": np.broadcast_to(grey[..., None], images.shape),
    }
    for name, centre in centres.items():
        out = np.asarray(augmented(images, **{name: 0.25})[0])
        factors = (out - centre) / (np.asarray(images) - centre)
        factor = np.median(factors, axis=(1, 2, 3))
        np.testing.assert_allclose(
            out, centre + factor[:, None, None, None] * (images - centre), atol=1e-4
        )
        assert 0.75 <= factor.min() < 0.77
        assert 1.23 < factor.max() <= 1.25
        assert abs(factor.mean() - 1) < 0.03


def test_mixup_weights_match_pixels_and_labels():
    labels = jnp.arange(10, dtype=jnp.int32)
    images = jnp.eye(10)[labels][:, None, None, :3] * jnp.ones((10, 8, 8, 1))
    shares = []
    for key in range(40):
        out, targets = augmented(images, labels, key=key, mixup=1.0)
        np.testing.assert_allclose(out, jnp.broadcast_to(targets[:, None, None, :3], out.shape))
        shares.append(float(targets[0, 0]))
        # One proportion for the whole batch, and every image is used twice.
        own = np.diag(targets)
        assert len(np.unique(own[own < 1].round(6))) <= 1
        np.testing.assert_allclose(targets.sum(axis=0), 1, rtol=1e-5)
    assert np.std(shares) > 0.15


def test_cutmix_label_weights_are_the_areas():
    labels = jnp.arange(10, dtype=jnp.int32)
    images = jnp.broadcast_to(labels[:, None, None, None] / 10.0, (10, 32, 32, 3))
    shares = []
    for key in range(120):
        out, targets = augmented(images, labels, key=key, cutmix=1.0)
        for image, target in zip(np.rint(np.asarray(out) * 10), targets, strict=True):
            counts = np.bincount(image[..., 0].astype(int).ravel(), minlength=10)
            np.testing.assert_allclose(target, counts / 1024, atol=1e-6)
        shares.append(np.diag(targets).min())
    assert np.std(shares) > 0.15
    assert min(shares) < 0.3


def test_mixup_and_cutmix_take_turns():
    labels = jnp.arange(10, dtype=jnp.int32)
    images = jnp.broadcast_to(labels[:, None, None, None] / 10.0, (10, 32, 32, 3))
    blended = 0
    for key in range(60):
        out, _ = augmented(images, labels, key=key, mixup=1.0, cutmix=1.0)
        tenths = np.asarray(out) * 10
        blended += bool((np.abs(tenths - np.rint(tenths)) > 1e-3).any())
    assert 15 <= blended <= 45


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_symmetric_beta_has_its_moments_and_quantiles(alpha):
    special = pytest.importorskip("scipy.special")
    draws = np.asarray(room.symmetric_beta(jax.random.key(0), alpha, (100_000,)))
    assert np.isfinite(draws).all()
    assert ((draws >= 0) & (draws <= 1)).all()
    assert abs(draws.mean() - 0.5) < 0.005
    assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)
    for point in (0.05, 0.3, 0.6, 0.95):
        assert abs((draws < point).mean() - special.betainc(alpha, alpha, point)) < 0.008


@jax.jit
def apply_operations(images, operation, strength, sign):
    return policies.apply_operations(images, operation, strength, sign, MEAN)


def operate(images, name, strength, sign=1.0):
    batch = len(images)
    operation = jnp.full(batch, policies.OPERATIONS.index(name))
    return np.asarray(
        apply_operations(images, operation, jnp.full(batch, strength), jnp.full(batch, sign))
    )


def bytes_of(batch=2, size=32):
    rng = np.random.default_rng(1)
    low, high = rng.integers(0, 100, (batch, 1, 1, 3)), rng.integers(150, 256, (batch, 1, 1, 3))
    return rng.integers(low, high, (batch, size, size, 3)).astype(np.uint8)


def test_color_operations_agree_with_pil():
    image_ops = pytest.importorskip("PIL.ImageOps")
    enhance, pil = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.Image")
    images = bytes_of()
    cases = {
        "brightness": (0.5, lambda i: enhance.Brightness(i).enhance(1.5)),
        "saturation": (0.5, lambda i: enhance.Color(i).enhance(1.5)),
        "contrast": (0.5, lambda i: enhance.Contrast(i).enhance(1.5)),
        "sharpness": (0.5, lambda i: enhance.Sharpness(i).enhance(1.5)),
        "posterize": (3.0, lambda i: image_ops.posterize(i, 5)),
        "solarize": (0.5, lambda i: image_ops.solarize(i, 128)),
        "autocontrast": (0.0, image_ops.autocontrast),
        "equalize": (0.0, image_ops.equalize),
        "identity": (0.0, lambda i: i),
    }
    for name, (strength, reference) in cases.items():
        ours = operate(jnp.asarray(images, jnp.float32) / 255, name, strength) * 255
        theirs = np.stack([np.asarray(reference(pil.fromarray(i))) for i in images])
        # Where PIL blends it rounds to bytes, and its grey to whole numbers as well.
        exact = name in ("posterize", "solarize", "equalize", "identity")
        assert np.abs(ours - theirs).max() <= (0.01 if exact else 2.0), name
        if name != "identity":
            assert np.abs(ours - images).max() > 6, name


def test_equalize_and_autocontrast_keep_a_flat_image():
    flat = jnp.full((2, 32, 32, 3), 100 / 255)
    for name in ("equalize", "autocontrast"):
        np.testing.assert_allclose(operate(flat, name, 0.0), flat, atol=1e-6)


def test_geometric_operations_move_pixels_where_they_should():
    images = random_images(2)
    source = np.asarray(images)
    moved = operate(images, "translate_x", 4.0)
    np.testing.assert_array_equal(moved[:, :, :28], source[:, :, 4:])
    np.testing.assert_allclose(moved[:, :, 28:], np.broadcast_to(MEAN, (2, 32, 4, 3)), rtol=1e-6)
    moved = operate(images, "translate_y", 4.0, -1.0)
    np.testing.assert_array_equal(moved[:, 4:], source[:, :28])
    turned = operate(images, "rotate", 90.0)
    assert any((turned == np.rot90(source, k, axes=(1, 2))).all() for k in (1, 3))
    back = operate(jnp.asarray(turned), "rotate", 90.0, -1.0)
    np.testing.assert_array_equal(back, source)
    # A shear moves a row by the strength times its distance from the centre.
    sheared = operate(images, "shear_x", 0.2)
    for row in (0, 9, 31):
        shift = round(0.2 * (row - 15.5))
        columns = np.arange(max(0, -shift), 32 - max(0, shift))
        np.testing.assert_array_equal(sheared[:, row, columns], source[:, row, columns + shift])
    sheared = operate(images, "shear_y", 0.2)
    np.testing.assert_array_equal(sheared[:, 10, 31], source[:, 13, 31])


def test_policies_draw_every_operation_evenly(monkeypatch):
    drawn = []

    def record(images, operation, strength, sign, fill):
        drawn.append((np.asarray(operation), np.asarray(strength), np.asarray(sign)))
        return images

    monkeypatch.setattr(policies, "apply_operations", record)
    images = jnp.zeros((7000, 4, 8, 3))
    policies.randaugment(jax.random.key(0), images, 3, 15.0, MEAN)
    policies.trivialaugment(jax.random.key(0), images, MEAN)
    assert len(drawn) == 4
    for operation, strength, sign in drawn:
        counts = np.bincount(operation, minlength=14)
        assert (np.abs(counts - 500) < 5 * 500**0.5).all()
        assert abs(sign.mean()) < 5 / 7000**0.5
        assert {*sign.tolist()} == {-1.0, 1.0}
        assert (strength >= 0).all()
    # torchvision's strengths, at half of the magnitudes and at all of them
    moves = [0, 0.3, 0.3, 8 * 150 / 331, 4 * 150 / 331, 30], [0, 0.99, 0.99, 32, 32, 135]
    others = [*[0.9] * 4, 4, 1, 0, 0], [*[0.99] * 4, 6, 1, 0, 0]
    for (operation, strength, _), place, share in ((drawn[0], 0, 0.5), (drawn[3], 1, 1.0)):
        found = [strength[operation == index].max() for index in range(14)]
        expected = share * np.array(moves[place] + others[place])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    rotate = policies.OPERATIONS.index("rotate")
    operation, strength, _ = drawn[3]
    assert len(np.unique(strength[operation == rotate])) == 31
    assert (drawn[0][0] != drawn[1][0]).mean() > 0.8, "layers draw on their own"


def test_normalize():
    images = random_images(4)
    out = room.normalize(images, (0.1, 0.2, 0.3), (0.5, 0.25, 2.0))
    assert out.dtype == jnp.float32
    expected = (np.asarray(images) - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_strengths_may_be_traced_numbers():
    fields = EVERYTHING | {"policy": "none"}
    config = default_config().augment
    config.update(fields)
    images, indices = random_images(16), jnp.arange(16, dtype=jnp.int32)
    labels = indices % 10
    common = {"config": config, "mean": MEAN, "num_classes": 10, "flip_key": jax.random.key(7)}
    call = jax.jit(functools.partial(room.augment, **common))
    numbers = [{name: jnp.float32(config[name]) for name in room.STRENGTHS}]
    numbers += [{name: value / 2 for name, value in numbers[0].items()}]
    outputs = [
        call(jax.random.key(0), images, labels, indices, jnp.int32(0), strengths=n) for n in numbers
    ]
    assert call._cache_size() == 1
    static = augmented(images, labels, **fields)
    for traced, expected in zip(outputs[0], static, strict=True):
        np.testing.assert_allclose(traced, expected, atol=1e-5)
    assert (outputs[1][0] != outputs[0][0]).any()


def test_resized_crops_show_a_part_of_the_image_stretched():
    height, width = 16, 24
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    ramps = np.stack([y, x, np.ones_like(x)], axis=-1).astype(np.float32)
    found = np.asarray(room.random_resized_crop(jax.random.key(0), jnp.stack([ramps] * 64), 0.25))
    assert found.shape == (64, height, width, 3)
    np.testing.assert_allclose(found[..., 2], 1, rtol=1e-5)  # nothing from outside
    inner = found[:, 2:-2, 2:-2]
    down, right = np.diff(inner[..., 0], axis=1), np.diff(inner[..., 1], axis=2)
    for slopes in (down, right):  # the share of the side that is shown
        assert np.abs(slopes - slopes[:, :1, :1]).max() < 1e-3
    area = down[:, 0, 0] * right[:, 0, 0]
    assert 0.24 < area.min() < 0.4 and 0.8 < area.max() <= 1.001 and len(np.unique(area)) > 50
    down, right = down[:, 0, 0], right[:, 0, 0]
    ratio, corner = np.log(right / down), found[:, 2, 2, :2] - 2 * np.stack([down, right], 1)
    assert 0.2 < ratio.max() <= np.log(4 / 3) and -np.log(4 / 3) <= ratio.min() < -0.2
    assert (np.ptp(corner, axis=0) > (4, 6)).all()

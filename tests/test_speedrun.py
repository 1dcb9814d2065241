"""The nets of the speed records: their layers one by one, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.models.registry import create_model
from resnet_jax.models.speedrun import identity_kernel_init

SMALL = {"num_filters": (26, 28, 30)}
IMAGES = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def variables_of(model):
    """Random variables, the statistics included."""
    variables = jax.jit(lambda: model.init(jax.random.key(0), IMAGES, train=False))()
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda leaf: leaf + 0.3 * rng.random(leaf.shape), variables)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), noisy)


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


def reference(variables, images, num_convs, residual):
    params, stats = variables["params"], variables["batch_stats"]
    x = gelu(convolve(images, params["whitening"]["kernel"], 0) + params["whitening"]["bias"])
    for group in (1, 2, 3):
        first = x
        for index in range(1, num_convs + 1):
            name = f"{group}_{index}"
            x = convolve(x, params[f"conv{name}"]["kernel"], 1)
            x = pool(x, 2) if index == 1 else x
            x = (x - stats[f"bn{name}"]["mean"]) / np.sqrt(stats[f"bn{name}"]["var"])
            x = x + params[f"bn{name}"]["bias"]
            x = gelu(x + first if residual and index == num_convs else x)
            first = x if index == 1 else first
    return pool(x, 3)[:, 0, 0] @ params["head"]["kernel"] / 9


@pytest.mark.parametrize(("name", "num_convs"), [("speedrun94", 2), ("speedrun96", 3)])
def test_logits_are_those_of_the_recipe(name, num_convs):
    model = create_model(name, **SMALL)
    variables = variables_of(model)
    logits = jax.jit(lambda: model.apply(variables, IMAGES, train=False))()
    expected = reference(variables, IMAGES, num_convs, residual=name == "speedrun96")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3


def test_first_filters_pass_the_image_through():
    kernel = identity_kernel_init(jax.random.key(0), (3, 3, 5, 8))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 5))
    y = convolve(np.asarray(x), np.asarray(kernel), 1)
    np.testing.assert_array_equal(y[..., :5], x)
    bound = (3 * 3 * 5) ** -0.5
    others = kernel[..., 5:]
    assert 0.8 * bound < jnp.abs(others).max() <= bound
    assert jnp.abs(others.mean()) < 0.1 * bound


def test_first_filters_of_a_narrowing_convolution_pass_some_channels_through():
    kernel = identity_kernel_init(jax.random.key(0), (3, 3, 6, 4))
    np.testing.assert_array_equal(kernel[1, 1], np.eye(6, 4))
    assert jnp.count_nonzero(kernel) == 4


def test_norms_have_biases_only_and_keep_six_tenths():
    model = create_model("speedrun94", **SMALL)
    variables = variables_of(model)
    params, stats = variables["params"], variables["batch_stats"]
    assert {name: set(layer) for name, layer in params.items() if name.startswith("bn")} == {
        f"bn{group}_{index}": {"bias"} for group in (1, 2, 3) for index in (1, 2)
    }
    assert set(params["whitening"]) == {"kernel", "bias"} and set(params["head"]) == {"kernel"}
    _, mutated = jax.jit(
        lambda: model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    )()
    x = gelu(convolve(IMAGES, params["whitening"]["kernel"], 0) + params["whitening"]["bias"])
    x = pool(convolve(x, params["conv1_1"]["kernel"], 1), 2)
    expected = 0.6 * stats["bn1_1"]["mean"] + 0.4 * x.mean((0, 1, 2))
    np.testing.assert_allclose(mutated["batch_stats"]["bn1_1"]["mean"], expected, rtol=1e-4)


def test_images_too_small_are_refused():
    with pytest.raises(UserError, match="give at least 25x25"):
        jax.eval_shape(
            lambda: create_model("speedrun94").init(
                jax.random.key(0), jnp.zeros((1, 24, 24, 3)), train=False
            )
        )

"""The convolution equals XLA's, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from resnet_jax.models.conv import _columns_at_once, conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")
NONE, ONE, TWO, UNEVEN = ((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 2), (2, 2)), ((0, 1), (2, 0))

CASES = [
    # image, kernel, strides, padding
    ((8, 8), (3, 3), (1, 1), ONE),
    ((8, 8), (3, 3), (2, 2), ONE),
    ((7, 9), (3, 3), (2, 2), ONE),
    ((9, 6), (3, 3), (2, 2), NONE),
    ((8, 8), (3, 3), (2, 2), UNEVEN),
    ((8, 8), (3, 3), (2, 1), UNEVEN),
    ((7, 5), (3, 3), (1, 1), UNEVEN),
    ((9, 9), (5, 5), (1, 1), NONE),
    ((9, 8), (5, 5), (1, 1), TWO),
    ((9, 8), (5, 5), (2, 2), TWO),
    ((8, 8), (1, 1), (1, 1), NONE),
    ((8, 8), (1, 1), (2, 2), NONE),
    ((7, 9), (1, 1), (2, 2), NONE),
    ((7, 9), (1, 1), (2, 2), ONE),
    ((8, 8), (2, 2), (1, 1), NONE),
    ((8, 8), (2, 2), (2, 2), NONE),
    ((7, 7), (2, 2), (3, 3), UNEVEN),
    ((8, 6), (3, 1), (1, 1), ONE),
    ((16, 16), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((8, 8), (3, 3), (1, 1), "SAME"),
    ((9, 8), (3, 3), (2, 2), "VALID"),
]


def inputs(image, kernel, batch=4, features=(3, 5), dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (batch, *image, features[0]), dtype)
    return x, jax.random.normal(jax.random.key(1), (*kernel, *features), dtype)


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.complex64), np.asarray(b, np.complex64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def assert_equals_xla(x, kernel, *args, tolerance=1e-5, dimension_numbers=NHWC, **kwargs):
    """Compares values and gradients, seeded with fixed noise."""
    kwargs["dimension_numbers"] = dimension_numbers

    @jax.jit
    def both(x, kernel):
        results = []
        for conv in (conv_general_dilated, lax.conv_general_dilated):
            y, pullback = jax.vjp(lambda *xk, conv=conv: conv(*xk, *args, **kwargs), x, kernel)
            dy = jax.random.normal(jax.random.key(2), y.shape, y.dtype)
            results.append((y, *pullback(dy)))
        return results

    ours, theirs = both(x, kernel)
    assert ours[1].dtype == x.dtype
    assert_close(ours, theirs, tolerance)


@pytest.mark.parametrize(("image", "kernel", "strides", "padding"), CASES)
def test_equals_xla(image, kernel, strides, padding):
    x, kernel = inputs(image, kernel)
    assert_equals_xla(x, kernel, strides, padding)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_equals_xla_when_the_batch_is_cut_into_chunks(batch, monkeypatch):
    monkeypatch.setattr("resnet_jax.models.conv._CHUNK_BYTES", 2**16)
    x, kernel = inputs((8, 8), (3, 3), batch=batch, features=(8, 16))
    assert_equals_xla(x, kernel, (1, 1), ONE)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("features", [(3, 16), (8, 4), (16, 16), (16, 48), (48, 16), (33, 32)])
def test_equals_xla_for_few_and_for_many_channels(features, strides):
    x, kernel = inputs((8, 8), (3, 3), features=features)
    assert_equals_xla(x, kernel, strides, ONE)


@pytest.mark.parametrize(
    ("image", "kernel", "padding"),
    [
        ((6, 8), (3, 3), UNEVEN),
        ((5, 8), (5, 5), TWO),
        ((8, 11), (3, 4), NONE),
        ((8, 8), (3, 3), TWO),
    ],
)
def test_pixels_computed_at_once_equal_those_of_xla(image, kernel, padding):
    x, kernel = inputs(image, kernel, features=(4, 4))
    assert _columns_at_once(x, kernel, (1, 1), padding) > 1
    assert_equals_xla(x, kernel, (1, 1), padding)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"lhs_dilation": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"feature_group_count": 2},
        {"batch_group_count": 2},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"dimension_numbers": ("NHWC", "OHWI", "NHWC")},
    ],
)
def test_unusual_convolutions_are_those_of_xla(kwargs):
    x = jax.random.normal(jax.random.key(0), (4, 4, 4, 4))
    shapes = {"feature_group_count": (2, 2, 2, 4)}
    kernel = jax.random.normal(jax.random.key(1), shapes.get(next(iter(kwargs)), (4, 4, 4, 4)))
    assert_equals_xla(x, kernel, (1, 1), TWO, tolerance=0, **kwargs)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_other_dtypes_are_those_of_xla(dtype):
    x, kernel = inputs((8, 8), (3, 3), dtype=dtype)
    assert_equals_xla(x, kernel, (1, 1), ONE, tolerance=0)


def test_serves_flax():
    def layer(conv):
        return nn.Conv(
            5, (3, 3), 2, padding=1, dtype=jnp.float32, conv_general_dilated=conv, name="conv"
        )

    x, _ = inputs((9, 9), (3, 3))
    variables = layer(None).init(jax.random.key(0), x)

    def loss(variables, conv):
        return jnp.square(layer(conv).apply(variables, x)).sum()

    grad = jax.grad(loss)
    assert_close(grad(variables, conv_general_dilated), grad(variables, None))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_vmap_over_images_and_kernels(strides):
    x, kernel = inputs((8, 8), (3, 3))
    xs, kernels = jnp.stack([x, 2 * x, -x]), jnp.stack([kernel, kernel + 1, -kernel])

    def grad(conv):
        def loss(x, kernel):
            return jnp.square(conv(x, kernel, strides, ONE, dimension_numbers=NHWC)).sum()

        return jax.grad(loss, (0, 1))

    ours = jax.vmap(grad(conv_general_dilated))(xs, kernels)
    assert_close(ours, jax.vmap(grad(lax.conv_general_dilated))(xs, kernels))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_gradients_can_be_differentiated_again(strides):
    x, kernel = inputs((6, 6), (3, 3))

    def penalty(conv):
        def loss(x, kernel):
            return (conv(x, kernel, strides, ONE, dimension_numbers=NHWC) ** 3).sum()

        return lambda kernel: jnp.square(jax.grad(loss)(x, kernel)).sum()

    ours, theirs = penalty(conv_general_dilated), penalty(lax.conv_general_dilated)
    assert_close(jax.grad(ours)(kernel), jax.grad(theirs)(kernel))
    tangent = jnp.ones_like(kernel)
    assert_close(jax.jvp(ours, (kernel,), (tangent,)), jax.jvp(theirs, (kernel,), (tangent,)))


def test_forward_mode_says_why_it_fails():
    x, kernel = inputs((6, 6), (3, 3))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(
            lambda x: conv_general_dilated(x, kernel, (1, 1), ONE, dimension_numbers=NHWC),
            (x,),
            (x,),
        )


def lowered(platform, wanted=(0, 1)):
    """HLO of the gradients with respect to the wanted arguments of a strided convolution."""
    x, kernel = inputs((8, 8), (3, 3))

    def loss(*xk):
        return conv_general_dilated(*xk, (2, 2), ONE, dimension_numbers=NHWC).sum()

    traced = jax.jit(jax.grad(loss, wanted)).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_is_chosen_when_lowering():
    assert "while" in lowered("cpu")
    assert "while" not in lowered("cuda")


def test_a_gradient_that_nobody_needs_is_not_computed():
    assert lowered("cpu", (1,)).count("stablehlo.convolution") == 0
    assert lowered("cpu", (0,)).count("while") == 0

"""Convolutions and norms on a CPU: the values are XLA's, and whatever JAX does still works."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from resnet_jax.cpu import lowering
from resnet_jax.models.normalization import normalize, normalize_p
from resnet_jax.platform import cpu_features


@pytest.fixture(autouse=True, scope="module")
def eager_programs_are_forgotten():
    """What was compiled here outside of jitted functions is nothing for other tests."""
    yield
    jax.clear_caches()


NHWC = ("NHWC", "HWIO", "NHWC")
CASES = [
    # input, kernel, strides, padding
    ((2, 8, 8, 3), (3, 3, 3, 16), (1, 1), ((1, 1), (1, 1))),
    ((3, 9, 6, 5), (3, 2, 5, 7), (2, 1), ((0, 1), (2, 0))),
    ((2, 7, 9, 16), (1, 1, 16, 8), (2, 2), ((0, 0), (0, 0))),
    ((2, 16, 15, 3), (7, 7, 3, 8), (2, 2), ((3, 3), (3, 3))),
]


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def conv(x, kernel, strides=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def xla_conv(x, kernel, strides=(1, 1), padding="SAME"):
    """The same, in dimension numbers that are left to XLA."""
    x, kernel = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
    return lax.conv_general_dilated(x, kernel, strides, padding).transpose(0, 2, 3, 1)


def with_gradients(function, *args):
    y, pullback = jax.vjp(function, *args)
    return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def calls(function, *args):
    return jax.jit(function).lower(*args).as_text().count("stablehlo.custom_call @resnet_jax")


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_convolutions_and_gradients(shape, kernel, strides, padding, onednn):
    args = noise(*shape), noise(*kernel)
    found = []
    for function in (conv, xla_conv):
        part = functools.partial(function, strides=strides, padding=padding)
        both = functools.partial(with_gradients, part)
        assert calls(both, *args) == (3 if function is conv else 0)
        found.append(jax.jit(both)(*args))
    assert_close(*found)


@pytest.mark.parametrize(("shape", "kernel", "strides", "padding"), CASES)
def test_gradients_without_onednn(shape, kernel, strides, padding, matrix_products):
    args = noise(*shape), noise(*kernel)
    found = []
    for function in (conv, xla_conv):
        part = functools.partial(function, strides=strides, padding=padding)
        found.append(jax.jit(functools.partial(with_gradients, part))(*args))
    assert_close(*found)
    lowered = jax.jit(jax.grad(lambda k, x: conv(x, k).sum())).lower(args[1], args[0])
    assert "stablehlo.convolution" not in lowered.as_text()


@pytest.mark.parametrize("shape", [(96, 256), (4, 24, 256)])
def test_large_products_and_gradients(shape, onednn):
    x, matrix = noise(*shape), noise(256, 192)

    def ours(x, matrix):
        return x @ matrix

    def small(x, matrix):  # in pieces that are left to XLA
        return jnp.concatenate([x @ part for part in jnp.split(matrix, 16, axis=1)], axis=-1)

    found = []
    for function in (ours, small):
        both = functools.partial(with_gradients, function)
        assert calls(both, x, matrix) == (3 if function is ours else 0)
        found.append(jax.jit(both)(x, matrix))
    assert_close(*found)


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("rc,rde->cde", ((64, 256), (64, 16, 16))),
        ("btc,bthd->chd", ((8, 8, 256), (8, 8, 16, 16))),
        ("i,jk->ijk", ((256,), (128, 128))),
        ("bij,bjk->bik", ((4, 128, 128), (4, 128, 128))),
        (",ij->ij", ((), (2048, 2048))),
        ("ij,kj->ki", ((128, 256), (192, 256))),
    ],
)
def test_products_of_any_kind_work(spec, shapes, onednn):
    args = [noise(*shape) if shape else np.float32(2) for shape in shapes]
    assert_close(jax.jit(functools.partial(jnp.einsum, spec))(*args), np.einsum(spec, *args))


def test_other_convolutions_are_left_to_xla(onednn):
    x, kernel = noise(2, 6, 6, 4), noise(3, 3, 4, 4)
    dilated = functools.partial(lax.conv_general_dilated, dimension_numbers=NHWC)
    assert calls(lambda *a: dilated(*a, (1, 1), "SAME", rhs_dilation=(2, 2)), x, kernel) == 0
    assert calls(lambda *a: dilated(*a, (1, 1), ((-1, 1), (1, 1))), x, kernel) == 0
    assert calls(conv, x.astype(np.float16), kernel.astype(np.float16)) == 0
    grouped = kernel[:, :, :2]
    assert calls(lambda *a: dilated(*a, (1, 1), "SAME", feature_group_count=2), x, grouped) == 0


@pytest.mark.skipif(not cpu_features() & {"avx512_bf16", "amx_bf16"}, reason="no bfloat16 here")
def test_bfloat16_has_float32_kernel_gradients(onednn):
    x, kernel = noise(4, 8, 8, 8).astype(jnp.bfloat16), noise(3, 3, 8, 16)

    def loss(function, kernel, x):
        return (function(x, kernel.astype(x.dtype)).astype(jnp.float32) ** 2).sum()

    gradient = jax.grad(functools.partial(loss, conv))
    assert calls(gradient, kernel, x) == 2
    exact = jax.grad(functools.partial(loss, xla_conv))
    rounded = kernel.astype(jnp.bfloat16).astype(np.float32)
    found = jax.jit(gradient)(kernel, x)
    assert_close(found, exact(rounded, x.astype(np.float32)), 1e-2)
    assert (found != found.astype(jnp.bfloat16)).mean() > 0.9  # it was not rounded


def test_transformations(onednn):
    x, kernel = noise(2, 6, 6, 4), noise(3, 3, 4, 4)

    def forward(function, x, kernel):
        return jax.jvp(lambda x, k: jnp.sin(function(x, k)), (x, kernel), (x, kernel))

    def second(function, x, kernel):
        def slope(kernel):
            return jnp.sin(jax.grad(lambda x: jnp.sin(function(x, kernel)).sum())(x)).sum()

        return jax.grad(slope)(kernel)

    def mapped(function, x, kernel):
        grads = jax.grad(lambda x, k: jnp.sin(function(x, k)).sum(), (0, 1))
        return jax.vmap(grads, (0, None))(jnp.stack([x, -2 * x]), kernel)

    def scanned(function, x, kernel):
        return lax.scan(lambda x, _: (jnp.sin(function(x, kernel)), None), x, None, length=3)[0]

    for transformed in (forward, second, mapped, scanned):
        ours, theirs = (functools.partial(transformed, f) for f in (conv, xla_conv))
        assert calls(ours, x, kernel) > 0
        assert_close(jax.jit(ours)(x, kernel), jax.jit(theirs)(x, kernel), 1e-4)


@pytest.mark.parametrize(("relu", "shortcut"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("shape", "dtype"), [((3, 5, 7, 24), "float32"), ((9, 64), "bfloat16")])
def test_norms(relu, shortcut, shape, dtype, onednn):
    x = (noise(*shape) + 5).astype(dtype)
    args = (x, noise(shape[-1]), noise(shape[-1]), *([-x] if shortcut else []))
    weights = noise(*shape), noise(shape[-1]), noise(shape[-1])

    def loss(function, *args):
        results = function(*args, epsilon=1e-5, relu=relu)
        return sum((w * r).sum() for w, r in zip(weights, results, strict=True)), results

    numbers = tuple(range(len(args)))
    both = [
        jax.grad(functools.partial(loss, function), numbers, has_aux=True)
        for function in (normalize_p.bind, normalize)
    ]
    assert calls(both[0], *args) == 2
    ours, theirs = (jax.jit(function)(*args) for function in both)
    assert_close(ours, theirs, 1e-4 if dtype == "float32" else 2e-2)


def test_many_steps_at_once_have_the_bits_of_single_ones(onednn):
    x = noise(4, 8, 8, 8)

    def step(kernel):
        def loss(kernel):
            y = normalize_p.bind(
                conv(x, kernel), jnp.ones(8), jnp.zeros(8), epsilon=1e-5, relu=True
            )[0]
            return (y**3).sum()

        return kernel - 1e-3 * jax.grad(loss)(kernel)

    single = many = noise(3, 3, 8, 8)
    for _ in range(3):
        single = jax.jit(step)(single)
    many = jax.jit(lambda kernel, n: lax.fori_loop(0, n, lambda _, k: step(k), kernel))(many, 3)
    np.testing.assert_array_equal(single, many)


def test_exported_programs_call_nothing_of_ours(onednn):
    x, kernel = noise(2, 6, 6, 4), noise(3, 3, 4, 4)
    assert calls(conv, x, kernel) == 1
    for platforms in (("cpu",), ("cpu", "cuda")):
        exported = export.export(jax.jit(conv), platforms=platforms)(x, kernel)
        assert "resnet_jax" not in exported.mlir_module()
        assert_close(exported.call(x, kernel), xla_conv(x, kernel))


def test_programs_for_several_platforms_may_cast(onednn):
    x, kernel = np.zeros((2, 6, 6, 4), np.uint8), noise(3, 3, 4, 4)
    traced = jax.jit(lambda x, kernel: conv(x.astype(jnp.float32), kernel)).trace(x, kernel)
    assert "convert" in traced.lower(lowering_platforms=("cpu", "cuda")).as_text()


def test_what_shard_map_splits_is_left_to_xla(onednn):
    mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
    split = jax.sharding.PartitionSpec("data")
    options = {"mesh": mesh, "in_specs": (split, jax.sharding.PartitionSpec()), "out_specs": split}
    x, matrix = noise(512, 256), noise(256, 192)

    def product(x, matrix):
        return x @ matrix

    assert calls(functools.partial(with_gradients, product), x, matrix) == 3
    split_product = jax.shard_map(product, **options)
    assert calls(functools.partial(with_gradients, split_product), x, matrix) == 0
    explicit = jax.make_mesh((1,), "data", axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(x, jax.sharding.NamedSharding(explicit, split))
    assert calls(product, x, matrix) == 0


def test_jax_has_the_private_names_that_are_needed():
    rule = lowering.usual_lowering(lax.conv_general_dilated_p)
    assert callable(rule), "find where jax.interpreters.mlir keeps the rules that it registers now"

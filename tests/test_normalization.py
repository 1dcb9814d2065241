"""Batch normalization: PyTorch's numbers, exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_jax.models.normalization import BatchNorm


def sample(shape, dtype=jnp.float32, offset=3.0):
    return (2 * jax.random.normal(jax.random.key(0), shape) + offset).astype(dtype)


def reference(x, scale, bias, epsilon=1e-5):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


def variables(features, key=1):
    keys = jax.random.split(jax.random.key(key), 4)
    scale, bias, mean, var = (jax.random.uniform(k, (features,)) + 0.5 for k in keys)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 5, 7, 4), (1, 5, 7, 4)])
def test_training(shape):
    x, before = sample(shape), variables(4)
    y, after = BatchNorm(momentum=0.8).apply(before, x, train=True, mutable="batch_stats")
    expected, mean, var = reference(x, **before["params"])
    count = x.size // 4
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    stats, old = after["batch_stats"], before["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.8 * old["mean"] + 0.2 * mean, rtol=1e-5)
    unbiased = var * count / (count - 1)
    np.testing.assert_allclose(stats["var"], 0.8 * old["var"] + 0.2 * unbiased, rtol=1e-5)


def test_evaluation_uses_the_running_statistics():
    x, v = sample((6, 5, 7, 4)), variables(4)
    y = BatchNorm(epsilon=0.1).apply(v, x, train=False)
    stats, params = v["batch_stats"], v["params"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 0.1) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_initialising_leaves_the_running_statistics():
    v = BatchNorm().init(jax.random.key(0), sample((6, 4)), train=True)
    np.testing.assert_array_equal(v["batch_stats"]["mean"], np.zeros(4))
    np.testing.assert_array_equal(v["batch_stats"]["var"], np.ones(4))
    np.testing.assert_array_equal(v["params"]["scale"], np.ones(4))
    np.testing.assert_array_equal(v["params"]["bias"], np.zeros(4))


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("activation", [None, nn.relu, nn.gelu])
def test_shortcut_and_activation_follow(activation, with_shortcut):
    x, v = sample((6, 5, 4)), variables(4)
    other = sample((6, 5, 4), offset=0.0) if with_shortcut else None
    ends = {"shortcut": other, "activation": activation}

    def ours(x, train):
        return BatchNorm().apply(v, x, train=train, mutable="batch_stats", **ends)[0]

    def theirs(x, train):
        y = BatchNorm().apply(v, x, train=train, mutable="batch_stats")[0]
        y = y + other if with_shortcut else y
        return activation(y) if activation else y

    for train in (True, False):
        (a, slope), (b, slope_b) = (
            jax.value_and_grad(lambda x, f=f, train=train: (f(x, train) ** 2).sum())(x)
            for f in (ours, theirs)
        )
        np.testing.assert_allclose(a, b, rtol=1e-5)
        np.testing.assert_allclose(slope, slope_b, rtol=1e-4, atol=1e-4)


def test_derivatives_of_any_kind_are_those_of_the_formula():
    x, v, direction = sample((6, 5, 4)), variables(4), sample((6, 5, 4), offset=0.0) / 5

    def ours(x):
        norm = BatchNorm()
        y, after = norm.apply(v, x, train=True, mutable="batch_stats", activation=nn.relu)
        return (y**3).sum() + after["batch_stats"]["var"].sum()

    def theirs(x):
        y, _, var = reference(x, **v["params"])
        running = 0.9 * v["batch_stats"]["var"] + 0.1 * var * 30 / 29
        return (nn.relu(y) ** 3).sum() + running.sum()

    def forward(f):
        return jax.jvp(f, (x,), (direction,))

    def forward_over_reverse(f):
        return jax.jvp(jax.grad(f), (x,), (direction,))

    def reverse_over_reverse(f):
        return jax.grad(lambda x: (jax.grad(f)(x) * direction).sum())(x)

    for derivative in (forward, forward_over_reverse, reverse_over_reverse):
        a, b = derivative(ours), derivative(theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), a, b)


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 7, 4)])
def test_gradients_are_those_of_the_formula(shape):
    x, v = sample(shape), variables(4)
    noise = jax.random.normal(jax.random.key(5), (3, *shape))
    weights = noise[0], noise[1].reshape(-1, 4)[0], noise[2].reshape(-1, 4)[0]

    def ours(x, params):
        both = {"params": params, "batch_stats": v["batch_stats"]}
        y, after = BatchNorm(momentum=0.0).apply(both, x, train=True, mutable="batch_stats")
        count = x.size // 4
        stats = after["batch_stats"]
        outputs = y, stats["mean"], stats["var"] * (count - 1) / count
        return sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))

    def theirs(x, params):
        outputs = reference(x, **params)
        return sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))

    a, b = (jax.jit(jax.grad(f, (0, 1)))(x, v["params"]) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), a, b)


def test_a_large_mean_does_not_spoil_the_variance():
    x = sample((64, 4), offset=1000.0)
    y, _ = BatchNorm().apply(variables(4), x, train=True, mutable="batch_stats")
    params = variables(4)["params"]
    exact = reference(np.asarray(x, np.float64), params["scale"], params["bias"])[0]
    np.testing.assert_allclose(y, exact, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_float32_statistics(dtype):
    x, v = sample((32, 8, 8, 4), dtype), variables(4)

    def loss(x):
        y, after = BatchNorm().apply(v, x, train=True, mutable="batch_stats")
        return y.astype(jnp.float32)[..., 0].max(), (y, after["batch_stats"])

    gradient, (y, stats) = jax.grad(loss, has_aux=True)(x)
    assert y.dtype == gradient.dtype == dtype
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    mean = 0.9 * v["batch_stats"]["mean"] + 0.1 * x.astype(jnp.float32).mean((0, 1, 2))
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    assert BatchNorm(dtype=jnp.float32).apply(v, x, train=False).dtype == jnp.float32


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    x, v = sample((6, 5, 7, 4)), variables(4)
    peer = torch.nn.BatchNorm2d(4)
    with torch.no_grad():
        peer.weight.copy_(torch.tensor(np.asarray(v["params"]["scale"])))
        peer.bias.copy_(torch.tensor(np.asarray(v["params"]["bias"])))
        peer.running_mean.copy_(torch.tensor(np.asarray(v["batch_stats"]["mean"])))
        peer.running_var.copy_(torch.tensor(np.asarray(v["batch_stats"]["var"])))
        expected = peer(torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    y, after = BatchNorm().apply(v, x, train=True, mutable="batch_stats")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["mean"], peer.running_mean, rtol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["var"], peer.running_var, rtol=1e-5)


def test_vmap():
    xs, v = jnp.stack([sample((6, 5, 4)), sample((6, 5, 4), offset=-1.0)]), variables(4)

    def loss(x):
        return (BatchNorm().apply(v, x, train=True, mutable="batch_stats")[0] ** 3).sum()

    mapped = jax.vmap(jax.grad(loss))(xs)
    for x, gradient in zip(xs, mapped, strict=True):
        np.testing.assert_allclose(gradient, jax.grad(loss)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_virtual_batches_are_normalised_apart(relu):
    x = jax.random.normal(jax.random.key(0), (6, 3, 3, 4)) * jnp.arange(1, 7)[:, None, None, None]
    shortcut = jax.random.normal(jax.random.key(1), x.shape)
    options = {"train": True, "shortcut": shortcut, "activation": nn.relu if relu else None}
    norm = BatchNorm()
    variables = norm.init(jax.random.key(2), x, train=True)
    ghost = BatchNorm(virtual_batch_size=3)
    y, found = ghost.apply(variables, x, **options, mutable=["batch_stats"])
    apart = [
        norm.apply(variables, half, **options | {"shortcut": other}, mutable=["batch_stats"])
        for half, other in ((x[:3], shortcut[:3]), (x[3:], shortcut[3:]))
    ]
    np.testing.assert_allclose(y, jnp.concatenate([half for half, _ in apart]), atol=1e-5)
    for name in ("mean", "var"):
        stats = [updates["batch_stats"][name] for _, updates in apart]
        np.testing.assert_allclose(found["batch_stats"][name], sum(stats) / 2, rtol=1e-5)
    whole = BatchNorm(virtual_batch_size=4).apply(variables, x, train=True, mutable=["batch_stats"])
    expected = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, whole, expected)  # 4 does not divide 6


def test_without_jit_and_among_many_devices_it_is_differentiated_all_the_same():
    x, v = sample((6, 5, 4)), variables(4)

    def norm(x):
        return BatchNorm().apply(v, x, train=True, mutable="batch_stats")[0]

    with jax.disable_jit():
        np.testing.assert_allclose(norm(x), jax.jit(norm)(x), rtol=1e-5, atol=1e-6)
    mesh = jax.sharding.Mesh(jax.devices()[:1], "data")
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    jax.eval_shape(jax.shard_map(norm, mesh=mesh, in_specs=split, out_specs=split), x)
    with pytest.raises(ValueError, match="out_specs"):  # each device has a result of its own
        jax.eval_shape(jax.shard_map(norm, mesh=mesh, in_specs=split, out_specs=whole), x)


def test_a_shortcut_may_be_broadcast():
    x, v = sample((6, 5, 4)), variables(4)

    def total(shortcut):
        options = {"train": True, "mutable": "batch_stats", "activation": nn.relu}
        return BatchNorm().apply(v, x, shortcut=shortcut, **options)[0].sum()

    shortcut = sample((1, 1, 4))
    found = jax.grad(total)(shortcut)
    expected = jax.grad(total)(jnp.broadcast_to(shortcut, x.shape)).sum((0, 1), keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

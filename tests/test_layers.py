"""Pools against PyTorch's, and stochastic depth's statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import layers


def test_stochastic_depth_keeps_the_mean_and_drops_whole_images():
    drop = layers.StochasticDepth(0.25)
    x = jnp.ones((4000, 3, 3, 2))
    y = drop.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y[:, 0, 0, 0] > 0)
    np.testing.assert_array_equal(y, kept[:, None, None, None] * np.ones_like(x) / 0.75)
    assert abs(kept.mean() - 0.75) < 0.03
    np.testing.assert_array_equal(drop.apply({}, x, train=False), x)


@pytest.mark.parametrize("size", [1, 3, 7, 8, 10, 14])
def test_adaptive_avg_pool_is_pytorchs(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, size, size + 2, 3)).astype(np.float32)
    expected = torch.nn.AdaptiveAvgPool2d(7)(torch.from_numpy(x).permute(0, 3, 1, 2))
    y = layers.adaptive_avg_pool(jnp.asarray(x), 7)
    np.testing.assert_allclose(y, expected.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("arguments", [(2, None, 0), (3, 2, 1), (3, None, 0)])
def test_max_pool_is_pytorchs(arguments):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 9, 11, 3)).astype(np.float32)
    expected = torch.nn.MaxPool2d(*arguments)(torch.from_numpy(x).permute(0, 3, 1, 2))
    y = layers.max_pool(jnp.asarray(x), *arguments)
    np.testing.assert_array_equal(y, expected.permute(0, 2, 3, 1))

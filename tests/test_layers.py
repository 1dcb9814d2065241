"""Pools against PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import layers


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

"""The state: its moving average, against plain numbers."""

import jax
import numpy as np

from resnet_jax.training.state import moving_average


def tree(value):
    return {"params": {"kernel": np.float32([value, -value])}, "batch_stats": np.float32(value)}


def test_moving_average_is_a_mean_until_it_is_long_enough():
    average, values = tree(100.0), [3.0, 5.0, 10.0, 2.0]
    for step, value in enumerate(values):
        average = moving_average(average, tree(value), np.int32(step), 0.6)
    # 3, then means (3 + 5) / 2 and, with 0.6 of the past, 0.6 * 4 + 0.4 * 10 and so on
    expected = 0.6 * (0.6 * 4 + 0.4 * 10) + 0.4 * 2
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), average, tree(expected))

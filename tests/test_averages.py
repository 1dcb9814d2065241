"""Averages of the weights, against plain NumPy."""

import jax
import numpy as np
import tiny_run

from resnet_jax.config.load import default_config
from resnet_jax.training.averages import lookahead, moving_average


def tree(value):
    return {"params": {"kernel": np.float32([value, -value])}, "batch_stats": np.float32(value)}


def test_moving_average_is_a_mean_until_it_is_long_enough():
    average, values = tree(100.0), [3.0, 5.0, 10.0, 2.0]
    for step, value in enumerate(values):
        average = moving_average(average, tree(value), np.int32(step), 0.6)
    # 3, then means (3 + 5) / 2 and, with 0.6 of the past, 0.6 * 4 + 0.4 * 10 and so on
    expected = 0.6 * (0.6 * 4 + 0.4 * 10) + 0.4 * 2
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), average, tree(expected))


def test_lookahead_follows_its_definition():
    config = default_config().optimizer
    config.lookahead_steps, config.lookahead_decay, config.lookahead_power = 3, 0.9, 2.0
    total, slow, fast = 12, tree(1.0), tree(1.0)
    expected_slow = expected_fast = 1.0
    rng = np.random.default_rng(0)
    compiled = jax.jit(lambda slow, fast, step: lookahead(slow, fast, step, total, config))
    for step in range(1, total + 1):
        update = rng.normal()
        fast = jax.tree.map(lambda a, u: a + u, fast, tree(update))
        expected_fast += update
        slow, fast = compiled(slow, fast, np.int32(step))
        if step % 3 == 0:
            kept = 0.9**3 * (step / total) ** 2
            expected_slow = kept * expected_slow + (1 - kept) * expected_fast
            expected_fast = expected_slow
        for found, expected in ((slow, expected_slow), (fast, expected_fast)):
            jax.tree.map(
                lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5), found, tree(expected)
            )
    assert tiny_run.leaves(slow) == tiny_run.leaves(fast)

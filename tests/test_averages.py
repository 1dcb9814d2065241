"""Averages of the weights, against plain NumPy."""

import jax
import numpy as np
import pytest
import tiny_run

from resnet_jax.config.load import default_config, validate
from resnet_jax.errors import UserError
from resnet_jax.training.averages import lookahead, moving_average
from resnet_jax.training.task import Task


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


def test_training_looks_ahead():
    """Steps with lookahead are plain steps and, after every fifth one, the rule by hand."""
    config = tiny_run.get_config("speedrun")
    ahead = Task.create(validate(config), None, print)
    config.optimizer.lookahead_steps = 0
    plain = Task.create(validate(config), None, print)
    total = ahead.agenda.total_steps
    assert total == 12 and plain.state.average == {}

    state, other = ahead.state, plain.state
    slow = jax.tree.map(np.array, {"params": other.params, "batch_stats": other.batch_stats})
    for first, indices in ahead.order.dispatches(0, total, 1):
        rates = ahead.learning_rates[first : first + 1]
        state, *_ = ahead.steps.train(state, ahead.data["train"], indices, rates)
        other, *_ = plain.steps.train(other, plain.data["train"], indices, rates)
        step = first + 1
        if step % 5 == 0:
            kept = 0.95**5 * (step / total) ** 3
            fast = {"params": other.params, "batch_stats": other.batch_stats}
            slow = jax.tree.map(lambda s, f: kept * s + (1 - kept) * np.asarray(f), slow, fast)  # noqa: B023
            other = other.replace(**jax.tree.map(jax.numpy.asarray, slow))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)  # noqa: E731
        jax.tree.map(close, state.params, other.params)
        jax.tree.map(close, state.batch_stats, other.batch_stats)
        jax.tree.map(close, state.variables(), slow)
    assert set(state.variables()) == {"params", "batch_stats"}


def test_two_averages_at_once_are_refused():
    config = tiny_run.get_config("speedrun")
    config.optimizer.ema_decay = 0.9
    with pytest.raises(UserError, match=r"lookahead_steps and optimizer\.ema_decay both average"):
        validate(config)

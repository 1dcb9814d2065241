"""Steps that are not finite end a run, by name, or are skipped and change nothing."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from resnet_jax import train_and_evaluate
from resnet_jax.config.load import validate
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.faults import names, not_finite
from resnet_jax.training.step import Steps
from resnet_jax.training.task import Task

LEAF = "stage1_block1/conv1/kernel"


@jax.custom_vjp
def nothing(leaf, is_bad):
    """Returns 0, with a gradient that is not finite if `is_bad`."""
    return jnp.zeros(())


nothing.defvjp(
    lambda leaf, is_bad: (jnp.zeros(()), (leaf, is_bad)),
    lambda kept, _: (jnp.where(kept[1], jnp.inf, jnp.zeros_like(kept[0])), None),
)


def spoil_data(monkeypatch, *bad_steps):
    """Makes the images of some steps, from 1, hold a nan."""
    augmented = Steps._augmented

    def spoilt(self, state, *arguments):
        images, targets = augmented(self, state, *arguments)
        is_bad = jnp.isin(state.step + 1, jnp.array(bad_steps))
        return images.at[0, 0, 0, 0].set(jnp.where(is_bad, jnp.nan, images[0, 0, 0, 0])), targets

    monkeypatch.setattr(Steps, "_augmented", spoilt)


def spoil_gradient(monkeypatch, *bad_steps):
    """Makes the gradient of one parameter infinite in some steps, from 1."""
    make = Steps._loss_fn

    def spoilt(self, state, *arguments):
        loss_fn = make(self, state, *arguments)
        is_bad = jnp.isin(state.step + 1, jnp.array(bad_steps))

        def added(params):
            loss, auxiliary = loss_fn(params)
            return loss + nothing(params["stage1_block1"]["conv1"]["kernel"], is_bad), auxiliary

        return added

    monkeypatch.setattr(Steps, "_loss_fn", spoilt)


SPOIL = {"the loss": spoil_data, f"the gradient of {LEAF}": spoil_gradient}


def skipping(limit=100):
    config = tiny_run.get_config()
    config.optimizer.ema_decay = 0.5
    config.on_nan, config.on_nan_limit = "skip", limit
    return config


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("what", SPOIL)
@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_stop_names_step_and_leaf(tmp_path, monkeypatch, what, steps_per_dispatch):
    SPOIL[what](monkeypatch, 7, 8)
    config = tiny_run.get_config()
    config.steps_per_dispatch = steps_per_dispatch
    with pytest.raises(UserError) as error:
        train_and_evaluate(config, tmp_path)
    assert str(error.value).startswith(
        f"{what} is not finite at step 7; last good checkpoint: step 4; lower optimizer.lear"
    )
    assert steps_of(tmp_path) == [4]
    assert all(record["step"] <= 4 for record in tiny_run.records(tmp_path))


def test_stop_does_not_wait_for_the_next_event(tmp_path, monkeypatch):
    spoil_data(monkeypatch, 2)
    taken, train = [], Steps.train
    monkeypatch.setattr(Steps, "train", lambda self, *a: taken.append(0) or train(self, *a))
    config = tiny_run.get_config()
    config.batch_size = 10  # an epoch has 48 steps
    config.log.every_steps = 0
    with pytest.raises(UserError, match="not finite at step 2; last good checkpoint: none"):
        train_and_evaluate(config, tmp_path)
    assert len(taken) <= 3


@pytest.mark.parametrize("what", SPOIL)
@pytest.mark.parametrize("steps_per_dispatch", [1, 5])
def test_a_skipped_step_changes_nothing_but_counters(monkeypatch, what, steps_per_dispatch):
    SPOIL[what](monkeypatch, 3)
    task = Task.create(validate(skipping()), None, print)
    indices = np.concatenate([batch for _, batch in task.order.dispatches(0, 4, 1)])
    rates, states = np.full(4, 0.03), {}
    ends = (2, 3, 4) if steps_per_dispatch == 1 else (4,)
    state = jax.tree.map(jnp.copy, task.state)
    start, found = 0, []
    for end in ends:
        for first in range(start, end, steps_per_dispatch):
            part = slice(first, min(first + steps_per_dispatch, end))
            state, sums, faults = task.steps.train(
                state, task.data["train"], indices[part], rates[part]
            )
            found += faults.tolist()
        states[end], start = jax.tree.map(np.asarray, state), end
    assert [fault >= 0 for fault in found] == [False, False, True, False]
    assert names(task.state)[found[2]] == what
    assert (state.step, sums.skipped, sums.bad_step, sums.count) == (4, 1, 3, 360)
    assert not_finite(state) == ""
    if steps_per_dispatch == 1:
        kept = states[2].replace(step=np.int32(3), sums=states[3].sums)
        assert tiny_run.leaves(kept) == tiny_run.leaves(states[3])
        assert states[3].sums.replace(skipped=np.int32(0), bad_step=np.int32(-1)) == states[2].sums
        assert tiny_run.leaves(states[3].params) != tiny_run.leaves(states[4].params)


def test_skip_tells_counts_and_ends_with_a_finite_state(tmp_path, monkeypatch, capsys):
    spoil_data(monkeypatch, 1, 5)
    spoil_gradient(monkeypatch, 7)
    config = skipping()
    config.log.every_steps = 1
    config.log.histograms = True  # those of step 5's gradients are of what is finite
    final, state = train_and_evaluate(config, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert lines == [
        "the loss is not finite at step 1; the step is skipped (1 of 100 allowed)",
        "the loss is not finite at step 5; the step is skipped (2 of 100 allowed)",
        f"the gradient of {LEAF} is not finite at step 7; the step is skipped (3 of 100 allowed)",
    ]
    assert (int(state.sums.skipped), not_finite(state), final["step"]) == (3, "", 12)
    trained = [r for r in tiny_run.records(tmp_path) if r["kind"] == "train"]
    counts = {record["step"]: record["skipped_steps"] for record in trained}
    assert [counts[step] for step in (1, 2, 6, 7, 12)] == [1, 1, 2, 3, 3]


def test_a_resumed_run_that_skips_ends_with_the_same_bits(tmp_path, monkeypatch):
    spoil_data(monkeypatch, 4, 9)
    _, whole = train_and_evaluate(skipping(), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        tiny_run.interrupt(patch, 7, signal.SIGTERM)
        train_and_evaluate(skipping(), tmp_path / "parts")
    _, parts = train_and_evaluate(skipping(limit=7), tmp_path / "parts")
    assert tiny_run.leaves(parts) == tiny_run.leaves(whole)
    assert tiny_run.records(tmp_path / "parts") == tiny_run.records(tmp_path / "whole")


@pytest.mark.parametrize("steps_per_dispatch", [1, 4])
def test_the_limit_ends_the_run(tmp_path, monkeypatch, steps_per_dispatch):
    spoil_data(monkeypatch, 3, 6, 7)
    config = skipping(limit=2)
    config.steps_per_dispatch = steps_per_dispatch
    message = (
        "the loss is not finite at step 7, and on_nan_limit allows 2 skipped steps; "
        "last good checkpoint: step 4; "
    )
    for _ in range(2):  # what was skipped before the checkpoint is remembered
        with pytest.raises(UserError, match=message):
            train_and_evaluate(config, tmp_path)
    config.on_nan_limit = 3
    train_and_evaluate(config, tmp_path)


def test_what_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    replace = {"params": {"head": {"bias": jnp.full(10, jnp.inf)}}}
    train = Steps.train

    def overflowing(self, *arguments):
        state, *rest = train(self, *arguments)
        params = state.params | (replace["params"] if state.step == 8 else {})
        return state.replace(params=params), *rest

    config = tiny_run.get_config()
    config.evaluate.every_epochs = 0
    monkeypatch.setattr(Steps, "train", overflowing)
    message = "params/head/bias is not finite after step 8; last good checkpoint: step 4"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2, read_only=True)
    assert checkpoints.steps() == [4]


def test_skip_also_drops_an_update_that_overflows(tmp_path):
    """With such a rate the first update is infinite, though its loss and gradients are not."""
    config = skipping()
    config.num_epochs = 1
    config.optimizer.learning_rate = 1e6
    config.optimizer.learning_rate_factors = (("head/kernel", 1e38),)
    _, state = train_and_evaluate(config, tmp_path)
    assert state.sums.skipped == 4
    assert not_finite(state) == ""

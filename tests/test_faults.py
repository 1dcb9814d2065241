"""Steps that are not finite end a run, by step and leaf, or are skipped and change nothing."""

import signal

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from resnet_jax import train_and_evaluate
from resnet_jax.config.load import default_config
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.training import step as steps
from resnet_jax.training.driver import Trainer
from resnet_jax.training.faults import Watch
from resnet_jax.training.state import not_finite
from resnet_jax.training.step import StepMetrics

pytestmark = pytest.mark.usefixtures("own_programs")  # spoilt ones are for no other test


def spoil(monkeypatch, *bad_steps):
    """Makes the images of some steps, from 1, hold a nan."""
    augmented = steps.augmented

    def spoilt(config, step, *arguments):
        images, targets = augmented(config, step, *arguments)
        is_bad = jnp.isin(step + 1, jnp.array(bad_steps))
        return images.at[0, 0, 0, 0].set(jnp.where(is_bad, jnp.nan, images[0, 0, 0, 0])), targets

    monkeypatch.setattr(steps, "augmented", spoilt)


def skipping(limit=100):
    config = tiny_run.get_config()
    config.optimizer.ema_decay = 0.5
    config.on_nan, config.on_nan_limit = "skip", limit
    return config


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def watch(said, limit=0):
    config = default_config()
    config.on_nan, config.on_nan_limit = ("skip" if limit else "stop"), max(limit, 1)
    return Watch(config, 0, said.append, lambda why: UserError(why))


def test_a_dispatch_is_looked_at_when_the_next_one_is_under_way():
    said = []
    told = StepMetrics(np.float32([1, np.nan, 2, np.nan]), np.float32([1, 1, np.inf, 1]))
    watching = watch(said, limit=2)
    watching.add(10, 3, told)  # its fourth row is padding
    assert said == []
    watching.settle()
    assert said == [
        "the loss is not finite at step 12; the step is skipped (1 of 2 allowed)",
        "the norm of the gradient is not finite at step 13; the step is skipped (2 of 2 allowed)",
    ]
    watching.add(13, 2, told)
    with pytest.raises(UserError, match="step 15, and on_nan_limit allows 2 skipped steps"):
        watching.add(15, 1, told)
    stopping = watch(said)
    stopping.add(0, 4, told)
    with pytest.raises(UserError, match=r"^the loss is not finite at step 2$"):
        stopping.settle()


@pytest.mark.parametrize("steps_per_dispatch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_stop_names_step_and_leaf_and_saves_nothing_bad(tmp_path, monkeypatch, steps_per_dispatch):
    spoil(monkeypatch, 7, 8)
    config = tiny_run.get_config()
    config.steps_per_dispatch = steps_per_dispatch
    config.model.options.num_filters = (2,)  # a loop has slow convolutions
    message = (
        r"the loss is not finite at step 7 \(in the state, first params/\S+\); last good "
        "checkpoint: step 4; lower optimizer.lear"
    )
    for _ in range(2):  # the same command again: the same end, nothing lost
        with pytest.raises(UserError, match=message):
            train_and_evaluate(config, tmp_path)
        assert steps_of(tmp_path) == [4]
    assert all(record["step"] <= 4 for record in tiny_run.records(tmp_path))


def test_stop_does_not_wait_for_the_next_event(tmp_path, monkeypatch):
    spoil(monkeypatch, 2)
    taken, train = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, *a: taken.append(0) or train(self, *a))
    config = tiny_run.get_config()
    config.batch_size = 10  # an epoch has 48 steps
    config.log.every_steps = 0
    with pytest.raises(UserError, match=r"not finite at step 2 .*last good checkpoint: none"):
        train_and_evaluate(config, tmp_path)
    assert len(taken) <= 3


def test_skip_tells_counts_resumes_and_ends_finite(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 1, 5, 9)
    config = skipping()
    config.log.every_steps = 1
    final, whole = train_and_evaluate(config, tmp_path / "whole")
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert lines == [
        f"the loss is not finite at step {step}; the step is skipped ({count} of 100 allowed)"
        for count, step in enumerate((1, 5, 9), start=1)
    ]
    assert (int(whole.skipped), not_finite(whole), final["step"]) == (3, "", 12)
    trained = [r for r in tiny_run.records(tmp_path / "whole") if r["kind"] == "train"]
    counts = {record["step"]: record["skipped_steps"] for record in trained}
    assert counts.keys().isdisjoint((1, 5, 9))  # no image of the epoch was learnt from yet
    assert [counts[step] for step in (2, 6, 10, 12)] == [1, 2, 3, 3]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        tiny_run.interrupt(patch, 7, signal.SIGTERM)
        tiny_run.train_until_signal(config, tmp_path / "parts")
    config.on_nan_limit = 7
    _, parts = train_and_evaluate(config, tmp_path / "parts")
    assert tiny_run.leaves(parts) == tiny_run.leaves(whole)
    assert tiny_run.records(tmp_path / "parts") == tiny_run.records(tmp_path / "whole")


def test_the_limit_counts_what_was_skipped_before_the_checkpoint(tmp_path, monkeypatch):
    spoil(monkeypatch, 1, 5, 9)
    config = skipping(limit=2)
    message = "step 9, and on_nan_limit allows 2 skipped steps; last good checkpoint: step 8; "
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            train_and_evaluate(config, tmp_path)
    config.on_nan_limit = 3
    train_and_evaluate(config, tmp_path)


def test_an_update_that_overflows_is_never_saved(tmp_path):
    config = tiny_run.get_config()
    config.evaluate.every_epochs = 0
    config.schedule.name = "milestones"
    config.schedule.options = {"epochs": (1.75,), "factor": 1e38}
    config.optimizer.learning_rate_factors = (("head/bias", 1e38),)
    config.optimizer.learning_rate = 1e-37
    message = r"not finite .*\(in the state, first \S+\); last good checkpoint: step 4"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path)
    assert steps_of(tmp_path) == [4]

"""Runs put to use: what a prediction reads of a checkpoint."""

import jax
import pytest
import tiny_run

from resnet_jax.inference.evaluate import evaluate_run
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.restore import load_run, restore


def test_the_optimizers_state_is_not_read(rich_run, monkeypatch):
    found, read = [], Checkpoints.read

    def read_and_note(self, *arguments):
        found.append(read(self, *arguments))
        return found[-1]

    monkeypatch.setattr(Checkpoints, "read", read_and_note)
    task, state = restore(rich_run[0], "newest")
    (arrays,) = found
    assert {name.partition("/")[0] for name in arrays} >= {"step", "params", "average"}
    assert not any(name.startswith("opt_state") for name in arrays)
    assert state.opt_state == task.template.opt_state, "shapes stand in its place"
    expected = tiny_run.leaves(rich_run[2].variables())
    assert tiny_run.leaves(load_run(rich_run[0], "newest").variables) == expected
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state.opt_state))


def test_what_a_run_scores_is_its_average(rich_run):
    folder, final, state = rich_run
    assert state.average
    found = evaluate_run(folder, "newest")["accuracy"]
    assert found == pytest.approx(final["test_accuracy"])

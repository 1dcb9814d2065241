"""Runs put to use: what a prediction reads of a checkpoint."""

import dataclasses

import jax
import pytest
import tiny_run

from resnet_jax.data.datasets import select_classes
from resnet_jax.errors import UserError
from resnet_jax.inference.evaluate import check_suits, evaluate_run
from resnet_jax.report.page import write_report
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.restore import load_run, restore
from resnet_jax.training.task import create_task


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


def test_a_checkpoint_that_has_no_such_name_is_refused(plain_run):
    with pytest.raises(UserError, match="unknown checkpoint 'bset'; did you mean best"):
        load_run(plain_run[0], "bset")


def test_images_that_a_model_can_not_take_are_refused(plain_run):
    sample, config = tiny_run.sample(), tiny_run.get_config()
    info = dataclasses.replace(sample.info, image_shape=(40, 40, 3))
    check_suits(create_task(config, sample.info), info)
    config.model.name, config.model.options = "cnn", {}
    with pytest.raises(UserError, match="images of 32x32 pixels, the dataset's are 40x40"):
        check_suits(create_task(config, sample.info), info)
    with pytest.raises(UserError, match="class 0 of the run is 'airplane', of the dataset 'truck'"):
        write_report([plain_run[0]], select_classes(sample, range(9, -1, -1)))


def test_what_a_run_scores_is_its_average(rich_run):
    folder, final, state = rich_run
    assert state.average
    tiny = tiny_run.Tiny(tiny_run.get_config("rich"))

    def accuracy(variables):
        return tiny.evaluator.score(variables, tiny.data["test"], 160).means()["accuracy"]

    raw = state.replace(average={}).variables()
    assert accuracy(state.variables()) == pytest.approx(final["test_accuracy"]) != accuracy(raw)
    found = evaluate_run(folder, "newest")["accuracy"]
    assert found == pytest.approx(final["test_accuracy"])

"""Test-time augmentation against an average written out in NumPy."""

import numpy as np
import pytest
import tiny_run
from resnet_jax.training.test_time_augmentation import mean_logits

from resnet_jax.config.load import validate
from resnet_jax.errors import UserError
from resnet_jax.inference.evaluate import evaluate_run
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.task import Task

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 32, 32, 3)).astype(np.float32)
WEIGHTS = RNG.normal(size=(32, 32, 3, 5)).astype(np.float32)


def apply(images):
    return np.einsum("bhwc,hwck->bk", np.tanh(images), WEIGHTS)


def expected(mode):
    mirrored = IMAGES[:, :, ::-1]
    return apply(IMAGES) if mode == "none" else (apply(IMAGES) + apply(mirrored)) / 2


@pytest.mark.parametrize("mode", ["none", "mirror"])
def test_weights_and_views(mode):
    found = mean_logits(lambda x: apply(np.asarray(x)), IMAGES, mode)
    np.testing.assert_allclose(found, expected(mode), rtol=1e-4, atol=1e-3)


def test_steps_and_evaluation_of_a_run_use_it(tmp_path):
    config = tiny_run.get_config()
    config.evaluate.test_time_augmentation = "mirror"
    final, state = train_and_evaluate(config, tmp_path / "run")
    score = evaluate_run(tmp_path / "run", "newest")
    assert score["accuracy"] == final["test_accuracy"]
    np.testing.assert_allclose(score["loss"], final["test_loss"], rtol=1e-6)

    task = Task.create(validate(config), None, print)
    test = task.data["test"]
    images = np.asarray(task.steps.inputs(test.images))
    logits = mean_logits(
        lambda x: np.asarray(task.model.apply(state.variables(), x, train=False)),
        images,
        "mirror",
    )
    labels = np.asarray(test.labels)
    assert final["test_accuracy"] == 100 * (np.asarray(logits).argmax(-1) == labels).mean()


def test_cached_features_have_no_views():
    config = tiny_run.get_config()
    config.init.cached_stage = 1
    config.evaluate.test_time_augmentation = "mirror"
    with pytest.raises(UserError, match="test_time_augmentation needs images"):
        validate(config)

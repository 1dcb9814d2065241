"""Frozen parts stay as they are, cost no backward pass, and can be cached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.config.load import default_config, validate
from resnet_jax.data.pipeline import select_classes
from resnet_jax.data.sources import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.models.registry import create_model
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.task import Task, check
from resnet_jax.trees import map_with_path
from resnet_jax.weights.load import import_torch
from resnet_jax.weights.torch_files import write_safetensors
from resnet_jax.weights.torch_weights import state_dict


@pytest.fixture(scope="module")
def sample():
    return load_dataset("sample")


def get_config(**changes):
    config = default_config()
    config.model.name = "vgg11_bn"
    config.model.num_classes = 5
    config.model.options.num_filters = (4, 4, 4, 4, 4)
    config.model.options.classifier = "cifar"
    config.data.source = "sample"
    config.data.classes = (9, 0, 5, 6, 7)
    config.batch_size = 32
    config.optimizer.options.momentum = 0.9
    config.optimizer.weight_decay = 0.1
    config.optimizer.frozen = "^(conv|bn)"
    config.update_from_flattened_dict(changes)
    return validate(config)


def trained(config, sample, steps=3):
    """Returns the states before and after some steps."""
    task = Task.create(config, select_classes(sample, config.data.classes), lambda line: None)
    state = jax.tree.map(jnp.copy, task.state)
    for first, indices in task.order.dispatches(0, steps, 1):
        rates = task.learning_rates[first : first + 1]
        state, *_ = task.steps.train(state, task.data["train"], indices, rates)
    return task.state, state


def changed(before, after):
    """Returns the paths of the leaves that differ."""
    differ = map_with_path(lambda path, a, b: path if (a != b).any() else "")(before, after)
    return {path for path in jax.tree.leaves(differ) if path}


def test_frozen_parameters_and_statistics_stay(sample):
    before, after = trained(get_config(), sample)
    assert changed(before.params, after.params) == {"head/kernel", "head/bias"}
    assert not changed(before.batch_stats, after.batch_stats)


def test_statistics_of_trained_norms_move(sample):
    before, after = trained(get_config(**{"optimizer.frozen": "^(conv|bn)1_"}), sample)
    moved = changed(before.batch_stats, after.batch_stats)
    assert "bn2_1/mean" in moved and not any(path.startswith("bn1_") for path in moved)


def test_frozen_layers_have_no_backward_pass(sample):
    def convolutions(frozen):
        config = get_config(**{"optimizer.frozen": frozen})
        task = Task.create(config, select_classes(sample, config.data.classes), lambda line: None)
        indices = jnp.zeros((1, 32), jnp.int32)
        lowered = jax.jit(task.steps._train_steps).lower(
            task.state, jax.random.key(0), task.data["train"], indices, jnp.ones(1)
        )
        return lowered.as_text().count("stablehlo.convolution")

    assert convolutions("^(conv|bn)") == 8  # the forward pass of its eight convolutions
    assert convolutions("") == 15  # and the gradients of all inputs but the images


def test_cached_features_give_the_same_training(sample):
    _, plain = trained(get_config(), sample)
    _, cached = trained(get_config(**{"init.cached_stage": 5}), sample)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(cached.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(plain.sums.correct) == float(cached.sums.correct)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.frozen": "^bn"}, "does not match conv1_1/bias"),
        ({"augment.flip": "random"}, "images are augmented"),
        ({"init.cached_stage": 6}, "no such stage"),
        ({"model.name": "cnn", "model.options": {}}, "can't start after a stage"),
    ],
)
def test_what_can_not_be_cached_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(get_config(**{"init.cached_stage": 5} | changes))


def test_classes_are_selected_and_renumbered(sample):
    chosen = select_classes(sample, (9, 0))
    assert chosen.class_names == ("truck", "airplane")
    trucks = sample.train_images[sample.train_labels == 9]
    np.testing.assert_array_equal(chosen.train_images[chosen.train_labels == 0], trucks)
    assert np.bincount(chosen.test_labels).tolist() == [32, 32]
    with pytest.raises(UserError, match="twice"):
        select_classes(sample, (1, 1))


def test_images_are_resized_on_the_device(sample):
    config = get_config(**{"data.image_size": 64})
    task = Task.create(config, select_classes(sample, config.data.classes), lambda line: None)
    assert task.steps.inputs(task.data["train"].images[:2]).shape == (2, 64, 64, 3)


def test_training_starts_from_a_file(sample, tmp_path):
    config = get_config(**{"model.num_classes": 7})
    source = Task.create(config, select_classes(sample, config.data.classes), lambda line: None)
    model, variables = source.model, source.state.variables()
    write_safetensors(tmp_path / "seven.safetensors", state_dict(model, variables))

    said = []
    config = get_config(**{"init.weights": str(tmp_path / "seven.safetensors"), "seed": 1})
    task = Task.create(config, select_classes(sample, config.data.classes), said.append)
    assert changed(source.state.params["conv1_1"], task.state.params["conv1_1"]) == set()
    assert task.state.params["head"]["kernel"].shape == (4, 5)
    assert len(said) == 1 and said[0].endswith(
        "; the head is new, since the file's has other shapes"
    )


def test_a_missing_file_is_refused_before_anything_is_made(sample, tmp_path):
    config = get_config(**{"init.weights": str(tmp_path / "none.pth")})
    with pytest.raises(UserError, match=r"init\.weights: there is no file .*none\.pth"):
        train_and_evaluate(config, tmp_path / "run", sample)
    assert not (tmp_path / "run").exists()


def test_torchvision_head_gives_way_to_that_of_the_report(tmp_path):
    options = {"num_filters": (4, 4, 4, 4, 4)}
    images = jnp.zeros((1, 64, 64, 3))
    published = create_model("vgg11", num_classes=1000, **options)
    variables = published.init(jax.random.key(0), images, train=False)
    path = tmp_path / "vgg11.safetensors"
    write_safetensors(path, state_dict(published, variables))
    ours = create_model("vgg11", classifier="transfer", **options)
    filled = import_torch(path, ours, "fit", image_shape=(64, 64, 3))
    kept = set(filled["params"]) - {"fc3", "head"}
    assert changed(*({k: v["params"][k] for k in kept} for v in (variables, filled))) == set()
    assert filled["params"]["fc3"]["kernel"].shape == (4096, 512)

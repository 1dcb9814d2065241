"""Frozen parts stay as they are, cost no backward pass, and their features can be cached."""

import jax
import numpy as np
import pytest
import tiny_run

from resnet_jax.config.load import default_config, validate
from resnet_jax.data.registry import open_dataset
from resnet_jax.errors import UserError
from resnet_jax.training.driver import Trainer
from resnet_jax.training.features import cache_features
from resnet_jax.training.task import create_task
from resnet_jax.trees import named_leaves

NETS = {
    "vgg": (
        "vgg11_bn",
        {"stage_sizes": (1, 1), "num_filters": (4, 4), "classifier": "cifar"},
        *("^(conv|bn)", 2),
    ),
    "resnet": (
        "resnet_small",
        {"stage_sizes": (1, 1, 1), "num_filters": (4, 4, 4)},
        *("^(conv1|bn1|stage[123])", 3),
    ),
}


def get_config(net="vgg", **changes):
    config = default_config()
    config.model.name, config.model.options, config.optimizer.frozen, _ = NETS[net]
    config.model.num_classes = 5
    config.data.name = "sample"
    config.data.classes = (9, 0, 5, 6, 7)
    config.batch_size = 32
    config.evaluate.batch_size = 100
    config.optimizer.options.momentum = 0.9
    config.optimizer.weight_decay = 0.1
    config.update_from_flattened_dict(changes)
    return validate(config)


def trained(tiny, network=None, steps=3):
    """Returns the state after some steps."""
    if network is not None:
        tiny.trainer = Trainer(network, tiny.task.optimizer, tiny.devices, 9)
    state = tiny.state()
    for indices in tiny.batches(steps):
        state, *_ = tiny.take(state, indices[None])
    return state


def changed(before, after):
    """Returns the paths of the leaves that differ."""
    pairs = zip(named_leaves(before), named_leaves(after), strict=True)
    return {path for (path, a), (_, b) in pairs if (a != b).any()}


def test_frozen_parameters_and_statistics_stay():
    tiny = tiny_run.Tiny(get_config())
    before, after = tiny.state(), trained(tiny)
    assert changed(before.params, after.params) == {"head/kernel", "head/bias"}
    assert not changed(before.batch_stats, after.batch_stats)


def test_statistics_of_trained_norms_move():
    tiny = tiny_run.Tiny(get_config(**{"optimizer.frozen": "^(conv|bn)1_"}))
    moved = changed(tiny.state().batch_stats, trained(tiny, steps=1).batch_stats)
    assert "bn2_1/mean" in moved and not any(path.startswith("bn1_") for path in moved)


def test_frozen_layers_have_no_backward_pass():
    def convolutions(frozen):
        tiny = tiny_run.Tiny(get_config(**{"optimizer.frozen": frozen}))
        state, lowered = tiny.task.template, []
        compiled = tiny.trainer._train
        tiny.trainer._train = lambda *a: (
            lowered.append(compiled.lower(*a)) or (state, None, np.zeros(1))
        )
        tiny.take(state, np.zeros((1, 32), np.int32))
        return lowered[0].as_text().count("stablehlo.convolution")

    assert convolutions("^(conv|bn)") == 2  # the forward pass of its two convolutions
    assert convolutions("") == 5  # and the gradients of all kernels and of all inputs but images


@pytest.mark.parametrize("net", NETS)
def test_cached_features_give_the_same_training(net):
    tiny = tiny_run.Tiny(get_config(net, **{"init.cached_stage": NETS[net][3]}))
    plain, network = trained(tiny), tiny.task.network
    variables = tiny.state().variables()
    tiny.data = {
        name: cache_features(network, variables, part, tiny.devices)
        for name, part in tiny.data.items()
    }
    assert len(tiny.data["train"]) > 100  # some batches, the last of them padded
    stage = type(network)(network.module, network.config, NETS[net][3])
    cached = trained(tiny, stage)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(cached.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert cached.metrics.means()["accuracy"] == plain.metrics.means()["accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.frozen": "^bn"}, "does not match conv1_1/bias"),
        ({"augment.flip": "random"}, "images are augmented"),
        ({"init.cached_stage": 3}, "stage"),
        (
            {"model.name": "resnet_small", "model.options": {"stochastic_depth_rate": 0.2}}
            | {"optimizer.frozen": "^(conv1|bn1|stage[12])"},
            "dropout changes its features",
        ),
        ({"model.name": "cnn", "model.options": {}}, "can't be cut after a stage"),
    ],
)
def test_what_can_not_be_cached_is_refused(changes, message):
    config = get_config(**{"init.cached_stage": 2} | changes)
    with pytest.raises(UserError, match=message):
        create_task(config, open_dataset(config.data).info)

"""Options of models as a config gives them, and each kind of bad input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import tiny_run

from resnet_jax.config.load import validate
from resnet_jax.errors import UserError
from resnet_jax.models.registry import create_model
from resnet_jax.models.resnet import BottleneckBlock
from resnet_jax.training.task import create_task


def test_options_from_a_config_make_the_same_module():
    plain = create_model(
        "resnet18",
        stage_sizes=[2, 2, 2, 2],
        block_cls="BottleneckBlock",
        activation="gelu",
        dtype="bfloat16",
        dropout_rate=0,
    )
    native = create_model(
        "resnet18",
        block_cls=BottleneckBlock,
        activation=nn.gelu,
        dtype=jnp.bfloat16,
    )
    assert plain == native
    assert hash(plain) == hash(native)


@pytest.mark.parametrize(
    ("name", "options", "phrase"),
    [
        ("resnet_v3", {}, "did you mean resnet_v"),
        ("resnet18", {"droput_rate": 0.1}, "did you mean dropout_rate"),
        ("resnet18", {"num_classes": -1}, "num_classes of model 'resnet18' must be at least 0"),
        ("resnet18", {"stage_sizes": "abcd"}, "stage_sizes of model 'resnet18' takes a list"),
        ("resnet18", {"stage_sizes": [2, 2, 2, 0]}, "must be at least 1 and at most 1,000,000"),
        ("resnet18", {"stage_sizes": [2, 2]}, "num_filters has 4 entries but stage_sizes has 2"),
        ("resnet18", {"stage_strides": [1, 2]}, "stage_strides has 2 entries"),
        ("resnet18", {"dropout_rate": 2.0}, "must be at least 0 and below 1, not 2.0"),
        ("resnet18", {"dropout_rate": -1}, "must be at least 0 and below 1, not -1.0"),
        ("resnet18", {"dropout_rate": float("nan")}, "must be a finite number"),
        ("resnet18", {"dropout_rate": "high"}, "takes a number"),
        ("resnet18", {"conv_bias": 1}, "takes True or False"),
        ("resnet18", {"squeeze_excitation": -1}, "must be at least 0"),
        ("resnet18", {"dtype": "int32"}, "takes a floating-point dtype"),
        ("resnet18", {"dtype": None}, "takes a floating-point dtype"),
        ("resnet18", {"dtype": "bfloat61"}, "takes a floating-point dtype"),
        ("resnet18", {"block_cls": "BottleneckBlok"}, "did you mean BottleneckBlock"),
        ("resnet18", {"block_cls": nn.Dense}, "takes one of BasicBlock"),
        ("resnet18", {"activation": "rellu"}, "did you mean relu"),
        ("resnet18", {"norm_cls": "LayerNorm"}, "takes a function or a class"),
        ("resnet18", {"stem": "imagnet"}, "did you mean imagenet"),
        ("resnet18", {"shortcut": "zero"}, "did you mean zero_pad"),
        ("resnet18", {"block_dropout_rate": 0.3}, "is for pre-activation blocks only"),
        ("resnet50", {"num_convs": 3}, "is for block_cls BasicBlock only"),
        ("resnet_custom", {"stochastic_depth_rate": 0.1}, "need a shortcut"),
        ("vgg16", {"classifier": "cifar10"}, "did you mean cifar"),
        ("vgg16", {"stage_sizes": [1, 1]}, "num_filters has 5 entries but stage_sizes has 2"),
        ("alexnet", {"num_filters": [8]}, "num_filters of model 'alexnet' takes 5 values"),
        ("resnet18", {"stage_sizes": []}, "added up, must be at least 1"),
        ("resnet18", {"stage_sizes": [999, 1, 1, 1]}, "must be at least 1 and at most 1,000, not"),
        ("resnet18", {"num_filters": [10**7]}, "must be at least 1 and at most 1,000,000"),
        ("vit_tiny", {"num_heads": 5}, "must divide hidden_size"),
        ("vit_tiny", {"num_layers": 0}, "must be at least 1 and at most 1,000, not 0"),
    ],
)
def test_bad_options(name, options, phrase):
    with pytest.raises(UserError) as error:
        create_model(name, **options)
    assert phrase in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "shape", "phrase"),
    [
        ("resnet18", {}, (1, 7, 32, 3), "give at least 8x8"),
        ("resnet18", {"stem": "imagenet"}, (1, 31, 31, 3), "give at least 32x32"),
        ("resnet18", {}, (32, 32, 3), "[batch, height, width, channels]"),
        ("resnet20", {"num_filters": [32, 16, 8]}, (1, 32, 32, 3), "never narrow"),
        ("cnn", {}, (1, 15, 15, 3), "give at least 16x16"),
        ("alexnet", {}, (1, 15, 15, 3), "give at least 16x16"),
        ("vgg16", {}, (1, 16, 16, 3), "give at least 32x32"),
        ("vit_tiny", {}, (1, 2, 2, 3), "give at least 4x4"),
        ("vit_tiny", {}, (1, 30, 32, 3), "give multiples of 4"),
    ],
)
def test_bad_images(name, options, shape, phrase):
    model = create_model(name, **options)
    with pytest.raises(UserError) as error:
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))
    assert phrase in str(error.value)


def test_what_the_config_says_of_remat_reaches_the_model():
    config = tiny_run.get_config()
    config.model.remat = 1
    task = create_task(validate(config), tiny_run.sample().info)
    assert task.network.module.remat == 1
    config.model.name, config.model.options = "cnn", {}
    with pytest.raises(UserError, match=r"model\.remat is for residual networks, not cnn"):
        create_task(validate(config), tiny_run.sample().info)

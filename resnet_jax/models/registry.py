"""The registry: every model's name and its constructor, in one dict."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.config.checks import check_options
from resnet_jax.errors import unknown
from resnet_jax.models.convnets import CNN, AlexNet
from resnet_jax.models.resnet import (
    BottleneckBlock,
    PreActivationBlock,
    PreActivationBottleneckBlock,
    ResNet,
)
from resnet_jax.models.vgg import VGG
from resnet_jax.models.vit import VisionTransformer


def _resnet(*stage_sizes: int, **options: Any) -> functools.partial[ResNet]:
    defaults = {"num_filters": (64, 128, 256, 512)}
    return functools.partial(ResNet, stage_sizes=stage_sizes, **(defaults | options))


def _cifar_resnet(depth: int) -> functools.partial[ResNet]:
    """Returns the CIFAR network of He et al. 2015, section 4.2: 6n + 2 layers."""
    size = (depth - 2) // 6
    return _resnet(size, size, size, num_filters=(16, 32, 64), shortcut="zero_pad")


def _wide_resnet(depth: int, widening: int) -> functools.partial[ResNet]:
    """Returns the network of Zagoruyko and Komodakis 2016: 6n + 4 layers."""
    size = (depth - 4) // 6
    return _resnet(
        *(size, size, size),
        num_filters=(16 * widening, 32 * widening, 64 * widening),
        stem_filters=16,
        block_cls=PreActivationBlock,
        shortcut="convolution",
        final_norm=True,
    )


def _vgg(*stage_sizes: int, batch_norm: bool = False) -> functools.partial[VGG]:
    return functools.partial(VGG, stage_sizes=stage_sizes, batch_norm=batch_norm)


def _vit(patch_size: int, hidden_size: int, num_heads: int) -> functools.partial[VisionTransformer]:
    return functools.partial(
        VisionTransformer, patch_size=patch_size, hidden_size=hidden_size, num_heads=num_heads
    )


_preact = functools.partial(_resnet, shortcut="convolution")

MODELS: dict[str, functools.partial[Any]] = {
    # `resnet_v1` and `resnet_v2` are one report's names for its two networks under five million
    # parameters; they are not the post- and pre-activation block styles of the literature.
    "resnet_v1": _resnet(1, 1, 1, 1),
    "resnet_v2": _resnet(2, 2, 2, 2, num_filters=(64, 128, 128, 128)),
    "resnet_small": _resnet(2, 2, 2, num_filters=(16, 32, 64), shortcut="projection_3x3"),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, block_cls=BottleneckBlock),
    "resnet101": _resnet(3, 4, 23, 3, block_cls=BottleneckBlock),
    "resnet152": _resnet(3, 8, 36, 3, block_cls=BottleneckBlock),
    "resnet20": _cifar_resnet(20),
    "resnet32": _cifar_resnet(32),
    "resnet44": _cifar_resnet(44),
    "resnet56": _cifar_resnet(56),
    "resnet110": _cifar_resnet(110),
    "preact_resnet18": _preact(2, 2, 2, 2, block_cls=PreActivationBlock),
    "preact_resnet34": _preact(3, 4, 6, 3, block_cls=PreActivationBlock),
    "preact_resnet50": _preact(3, 4, 6, 3, block_cls=PreActivationBottleneckBlock),
    "wide_resnet16_8": _wide_resnet(16, 8),
    "wide_resnet28_10": _wide_resnet(28, 10),
    "resnet_custom": _resnet(
        *(1, 1, 1, 4), num_filters=(32, 64, 128, 256), shortcut="none", conv_bias=True
    ),
    "resnet_custom_skip": _resnet(*(1, 1, 1, 4), num_filters=(32, 64, 128, 256), conv_bias=True),
    # Strides where others have none: most of the work is at 16x16 pixels and in wide layers, which
    # a CPU does well.
    "quickstart": _resnet(
        *(1, 1, 1), num_filters=(32, 64, 128), stem_filters=16, stage_strides=(2, 2, 2)
    ),
    # Five textbook blocks; ten are stage_sizes=(2, 2, 3, 3), a third convolution num_convs=3. The
    # report gives neither widths nor stages: assumed.
    "resnet_textbook": _resnet(1, 1, 1, 2, shortcut="convolution", conv_bias=True),
    "cnn": functools.partial(CNN),
    "alexnet": functools.partial(AlexNet),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "vgg11_bn": _vgg(1, 1, 2, 2, 2, batch_norm=True),
    "vgg13_bn": _vgg(2, 2, 2, 2, 2, batch_norm=True),
    "vgg16_bn": _vgg(2, 2, 3, 3, 3, batch_norm=True),
    "vgg19_bn": _vgg(2, 2, 4, 4, 4, batch_norm=True),
    # For 32x32 images, the widths of the ImageNet models of the same names.
    "vit_tiny": _vit(4, 192, 3),
    "vit_small": _vit(4, 384, 6),
    "vit_tiny_patch16_224": _vit(16, 192, 3),
    "vit_small_patch16_224": _vit(16, 384, 6),
    "vit_base_patch16_224": _vit(16, 768, 12),
}


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, sorted."""
    return sorted(MODELS)


def model_options(name: str) -> dict[str, Any]:
    """Returns the options of a model and their defaults.

    Args:
      name: a name of `list_models()`.

    Raises:
      UserError: if there is no such model.
    """
    parameters = inspect.signature(_constructor(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("parent", "name")}


def create_model(name: str, num_classes: int = 10, **options: Any) -> nn.Module:
    """Returns a Flax module by its registry name; see `resnet_jax.load_model` for its weights.

    `resnet_v1` and `resnet_v2` are one report's names for two networks, not styles of blocks.

    Args:
      name: a name of `list_models()`.
      num_classes: number of logits; 0: no head.
      **options: fields of the module that replace the registry's, such as `dropout_rate`; lists
        stand for tuples, names for dtypes, block classes and activations.

    Returns:
      A module to be called as `module.apply(variables, x, train=...)`.

    Raises:
      UserError: if there is no such model, or it has no such option or not of such a value.
    """
    constructor = _constructor(name)
    options["num_classes"] = num_classes
    return constructor(**check_options("model", name, constructor.func, options))


def variable_shapes(model: nn.Module, image_shape: Sequence[int]) -> dict[str, Any]:
    """Returns the shapes and dtypes of a model's variables, of which none is computed.

    Args:
      model: the module.
      image_shape: `(height, width, channels)` of its images.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes: dict[str, Any] = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )
    return shapes


def _constructor(name: str) -> functools.partial[Any]:
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name]

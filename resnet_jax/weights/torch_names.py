"""The names that PyTorch implementations give to the parameters of our models.

A dialect is one table, from our path to their key, that serves import and export. In our paths
`{s}`, `{b}` and `{n}` stand for numbers counted from 1; in their keys `{b-1}` is one less. A path
without a row of its own takes its module's row and the usual name of the parameter.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from resnet_jax.errors import UserError
from resnet_jax.models.convnets import CNN, AlexNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.vgg import VGG
from resnet_jax.models.vit import VisionTransformer

Rows = Mapping[str, str]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The names of one PyTorch implementation.

    Attributes:
      name: whose names they are.
      rows: the table for a model: key of our modules' and parameters' paths.
      head: what the keys of the classifier start with, for a model.
      suits: whether a model is usually exported in this dialect.
    """

    name: str
    rows: Callable[[Any], Rows]
    head: Callable[[Any], str]
    suits: Callable[[Any], bool] = lambda model: True

    def key(self, model: nn.Module, path: str) -> str | None:
        """Returns the key of a parameter or statistic; None if the table has no row for it.

        Args:
          model: the module.
          path: path of the parameter, such as `stage1_block2/conv1/kernel`.
        """
        rows = self.rows(model)
        if key := _look_up(rows, path):
            return key
        module, _, leaf = path.rpartition("/")
        key = _look_up(rows, module)
        return key and f"{key}.{_LEAVES.get(leaf, leaf)}"


def _look_up(rows: Rows, path: str) -> str | None:
    for ours, theirs in rows.items():
        if found := _pattern(ours).fullmatch(path):
            for name, number in found.groupdict().items():
                theirs = theirs.replace(f"{{{name}-1}}", str(int(number) - 1))
                theirs = theirs.replace(f"{{{name}}}", number)
            return theirs
    return None


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w)\}", r"(?P<\1>\\d+)", ours))


_BLOCKS = {
    "stage{s}_block{b}/conv{n}": "layer{s}.{b-1}.conv{n}",
    "stage{s}_block{b}/bn{n}": "layer{s}.{b-1}.bn{n}",
    "stage{s}_block{b}/squeeze_excitation/fc{n}": "layer{s}.{b-1}.se.fc{n}",
}
_TORCHVISION_RESNET = _BLOCKS | {
    "conv1": "conv1",
    "bn1": "bn1",
    "stage{s}_block{b}/shortcut_conv": "layer{s}.{b-1}.downsample.0",
    "stage{s}_block{b}/shortcut_bn": "layer{s}.{b-1}.downsample.1",
    "final_bn": "final_bn",
    "head": "fc",
}
_YUNJEY_RESNET = _TORCHVISION_RESNET | {"conv1": "conv", "bn1": "bn"}
_CIFAR_RESNET = _TORCHVISION_RESNET | {
    "stage{s}_block{b}/shortcut_conv": "layer{s}.{b-1}.shortcut.0",
    "stage{s}_block{b}/shortcut_bn": "layer{s}.{b-1}.shortcut.1",
    "head": "linear",
}
_WIDE_RESNET = {
    "conv1": "conv1",
    "stage{s}_block{b}/conv{n}": "block{s}.layer.{b-1}.conv{n}",
    "stage{s}_block{b}/bn{n}": "block{s}.layer.{b-1}.bn{n}",
    "stage{s}_block{b}/shortcut_conv": "block{s}.layer.{b-1}.convShortcut",
    "stage{s}_block{b}/squeeze_excitation/fc{n}": "block{s}.layer.{b-1}.se.fc{n}",
    "final_bn": "bn1",
    "head": "fc",
}
_VGG_CLASSIFIERS = {
    "imagenet": {"fc1": "classifier.0", "fc2": "classifier.3", "head": "classifier.6"},
    "transfer": {
        "fc1": "classifier.0",
        "fc2": "classifier.3",
        "fc3": "classifier.6.0",
        "head": "classifier.6.3",
    },
    "cifar": {"head": "classifier"},
}
_TIMM_VIT = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed": "patch_embed.proj",
    "block{n}/norm1": "blocks.{n-1}.norm1",
    "block{n}/attention/qkv": "blocks.{n-1}.attn.qkv",
    "block{n}/attention/proj": "blocks.{n-1}.attn.proj",
    "block{n}/norm2": "blocks.{n-1}.norm2",
    "block{n}/fc1": "blocks.{n-1}.mlp.fc1",
    "block{n}/fc2": "blocks.{n-1}.mlp.fc2",
    "norm": "norm",
    "head": "head",
}
_LAYER = "encoder.layers.encoder_layer_{n-1}"
_TORCHVISION_VIT = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed": "conv_proj",
    "block{n}/norm1": f"{_LAYER}.ln_1",
    "block{n}/attention/qkv/kernel": f"{_LAYER}.self_attention.in_proj_weight",
    "block{n}/attention/qkv/bias": f"{_LAYER}.self_attention.in_proj_bias",
    "block{n}/attention/proj": f"{_LAYER}.self_attention.out_proj",
    "block{n}/norm2": f"{_LAYER}.ln_2",
    "block{n}/fc1": f"{_LAYER}.mlp.0",
    "block{n}/fc2": f"{_LAYER}.mlp.3",
    "norm": "encoder.ln",
    "head": "heads.head",
}
_OLD_TORCHVISION_VIT = _TORCHVISION_VIT | {
    "block{n}/fc1": f"{_LAYER}.mlp.linear_1",
    "block{n}/fc2": f"{_LAYER}.mlp.linear_2",
}
_ALEXNET = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc1": "classifier.1",
    "fc2": "classifier.4",
    "head": "classifier.6",
}
_CNN = {"conv{n}": "conv{n}", "fc{n}": "fc{n}", "head": "fc3"}


def _vgg(model: VGG) -> Rows:
    """Returns the table of a VGG: the layers of `features` are counted through, pools included."""
    rows, position = {}, 0
    for stage, size in enumerate(model.stage_sizes, start=1):
        for index in range(1, size + 1):
            rows[f"conv{stage}_{index}"] = f"features.{position}"
            if model.batch_norm:
                rows[f"bn{stage}_{index}"] = f"features.{position + 1}"
            position += 3 if model.batch_norm else 2
        position += 1
    return rows | _VGG_CLASSIFIERS[model.classifier]


def _fixed(name: str, rows: Rows, suits: Callable[[Any], bool] = lambda model: True) -> Dialect:
    """Returns a dialect whose table is the same for all models."""
    return Dialect(name, lambda model: rows, lambda model: rows["head"], suits)


def _is_wide(model: ResNet) -> bool:
    return model.block_cls.pre_activation and model.final_norm and model.shortcut == "convolution"


_DIALECTS: dict[type[nn.Module], tuple[Dialect, ...]] = {
    ResNet: (
        _fixed("torchvision", _TORCHVISION_RESNET, lambda model: model.stem == "imagenet"),
        _fixed("yunjey", _YUNJEY_RESNET, lambda model: model.shortcut == "projection_3x3"),
        _fixed("xternalz", _WIDE_RESNET, _is_wide),
        _fixed("kuangliu or akamaster", _CIFAR_RESNET),
    ),
    VGG: (
        Dialect(
            "torchvision",
            _vgg,
            lambda model: "classifier" if model.classifier == "cifar" else "classifier.6",
        ),
    ),
    VisionTransformer: (
        _fixed("timm", _TIMM_VIT),
        _fixed("torchvision", _TORCHVISION_VIT),
        _fixed("older torchvision", _OLD_TORCHVISION_VIT),
    ),
    AlexNet: (_fixed("torchvision", _ALEXNET),),
    CNN: (_fixed("PyTorch tutorial", _CNN),),
}


def dialects(model: nn.Module) -> tuple[Dialect, ...]:
    """Returns the dialects of a model's family.

    Raises:
      UserError: if the module is of no family of the registry.
    """
    if type(model) not in _DIALECTS:
        raise UserError(f"there are no PyTorch names for modules of class {type(model).__name__}")
    return _DIALECTS[type(model)]


def usual_dialect(model: nn.Module) -> Dialect:
    """Returns the dialect that a model is exported in."""
    return next(dialect for dialect in dialects(model) if dialect.suits(model))


def after_flatten(model: nn.Module) -> tuple[str, str] | None:
    """Returns the linear layer that reads flattened images, and the convolution before it.

    PyTorch flattens channels first and we flatten them last, so its inputs are permuted.
    """
    match model:
        case VGG() if "fc1" in _VGG_CLASSIFIERS[model.classifier]:
            return "fc1", f"conv{len(model.stage_sizes)}_{model.stage_sizes[-1]}"
        case AlexNet():
            return "fc1", "conv5"
        case CNN():
            return "fc1", "conv2"
    return None


def implied_options(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the options that the tensors of a file are for, where their shapes tell.

    Args:
      model: a module of the right family and size.
      shapes: shape of each tensor of the file.
    """
    implied: dict[str, Any] = {}
    for dialect in dialects(model):
        stem = shapes.get(dialect.key(model, "conv1/kernel") or "", ())
        if isinstance(model, ResNet) and len(stem) == 4:
            implied["stem"] = "imagenet" if stem[-1] == 7 else "cifar"
        classifier = shapes.get(dialect.key(model, "head/bias") or "")
        if classifier is not None:
            implied["num_classes"] = classifier[0]
    if isinstance(model, VGG):
        for name, rows in _VGG_CLASSIFIERS.items():
            if bias := shapes.get(f"{rows['head']}.bias"):
                implied |= {"classifier": name, "num_classes": bias[0]}
    return implied

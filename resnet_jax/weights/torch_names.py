"""The names that PyTorch implementations give to the parameters of our models.

A dialect is one table, from our path to their key, that serves import and export. In our paths
`{s}`, `{b}` and `{n}` stand for numbers counted from 1; in their keys `{b-1}` is one less. A path
without a row of its own takes its module's row and the usual name of the parameter.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from resnet_jax.errors import UserError
from resnet_jax.models.convnets import CNN, AlexNet
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.vgg import VGG
from resnet_jax.models.vit import VisionTransformer

Rows = Mapping[str, str]

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

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
_RESNETS: dict[str, Rows] = {
    "torchvision": _TORCHVISION_RESNET,
    "yunjey": _TORCHVISION_RESNET | {"conv1": "conv", "bn1": "bn"},
    "xternalz": _WIDE_RESNET,
    "kuangliu or akamaster": _CIFAR_RESNET,
}
_VGG_HIDDEN = {"fc1": "classifier.0", "fc2": "classifier.3"}
_VGG_CLASSIFIERS = {
    "imagenet": _VGG_HIDDEN | {"head": "classifier.6"},
    "transfer": _VGG_HIDDEN | {"fc3": "classifier.6.0", "head": "classifier.6.3"},
    "cifar": {"head": "classifier"},
}
_TIMM_VIT = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed": "patch_embed.proj",
    "block{b}/attention/qkv": "blocks.{b-1}.attn.qkv",
    "block{b}/attention/proj": "blocks.{b-1}.attn.proj",
    "block{b}/norm{n}": "blocks.{b-1}.norm{n}",
    "block{b}/fc{n}": "blocks.{b-1}.mlp.fc{n}",
    "norm": "norm",
    "head": "head",
}
_LAYER = "encoder.layers.encoder_layer_{b-1}"
_TORCHVISION_VIT = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed": "conv_proj",
    "block{b}/norm{n}": f"{_LAYER}.ln_{{n}}",
    "block{b}/attention/qkv/kernel": f"{_LAYER}.self_attention.in_proj_weight",
    "block{b}/attention/qkv/bias": f"{_LAYER}.self_attention.in_proj_bias",
    "block{b}/attention/proj": f"{_LAYER}.self_attention.out_proj",
    "block{b}/fc1": f"{_LAYER}.mlp.0",
    "block{b}/fc2": f"{_LAYER}.mlp.3",
    "norm": "encoder.ln",
    "head": "heads.head",
}
_ALEXNET_CONVS = {f"conv{n}": f"features.{i}" for n, i in enumerate((0, 3, 6, 8, 10), start=1)}
_ALEXNET = _ALEXNET_CONVS | {"fc1": "classifier.1", "fc2": "classifier.4", "head": "classifier.6"}
_CNN = {"conv{n}": "conv{n}", "fc{n}": "fc{n}", "head": "fc3"}
_VITS: dict[str, Rows] = {
    "timm": _TIMM_VIT,
    "torchvision": _TORCHVISION_VIT,
    "older torchvision": _TORCHVISION_VIT
    | {"block{b}/fc1": f"{_LAYER}.mlp.linear_1", "block{b}/fc2": f"{_LAYER}.mlp.linear_2"},
}


def dialects(model: nn.Module) -> dict[str, Rows]:
    """Returns the tables of a model's family, by the names of those whose code they are of.

    The first one is that which the model is exported by.

    Raises:
      UserError: if the module is of no family of the registry.
    """
    match model:
        case ResNet():
            usual = _usual_resnet(model)
            return {usual: _RESNETS[usual]} | _RESNETS
        case VGG():
            return {"torchvision": _vgg(model)}
        case VisionTransformer():
            return _VITS
        case AlexNet():
            return {"torchvision": _ALEXNET}
        case CNN():
            return {"PyTorch tutorial": _CNN}
    raise UserError(f"there are no PyTorch names for modules of class {type(model).__name__}")


def torch_key(rows: Rows, path: str) -> str:
    """Returns the key of a parameter or statistic; if the table has no row for it, our path.

    Args:
      rows: a table.
      path: path of the parameter, such as `stage1_block2/conv1/kernel`.
    """
    module, _, leaf = path.rpartition("/")
    if key := _look_up(rows, module):
        return f"{key}.{_LEAVES.get(leaf, leaf)}"
    return _look_up(rows, path) or path


def head_prefix(model: Any, rows: Rows) -> str:
    """Returns what the keys of a model's classifier start with."""
    # The classifier for transfer puts two layers in the place of one; without classes it has one.
    return "classifier.6." if "fc3" in rows and model.num_classes else f"{rows['head']}."


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


def _usual_resnet(model: ResNet) -> str:
    if model.stem == "imagenet":
        return "torchvision"
    if model.shortcut == "projection_3x3":
        return "yunjey"
    is_wide = model.block_cls.pre_activation and model.final_norm
    return "xternalz" if is_wide and model.shortcut == "convolution" else "kuangliu or akamaster"


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


def implied_options(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the options that the tensors of a file are for, where their shapes tell.

    Args:
      model: a module of the right family and size.
      shapes: shape of each tensor of the file.
    """
    implied: dict[str, Any] = {}
    for rows in dialects(model).values():
        stem = shapes.get(torch_key(rows, "conv1/kernel"), ())
        if isinstance(model, ResNet) and len(stem) == 4:
            implied["stem"] = "imagenet" if stem[-1] == 7 else "cifar"
        if bias := shapes.get(f"{rows['head']}.bias"):
            implied["num_classes"] = bias[0]
    for name, rows in _VGG_CLASSIFIERS.items() if isinstance(model, VGG) else ():
        if bias := shapes.get(f"{rows['head']}.bias"):
            implied |= {"classifier": name, "num_classes": bias[0]}
    return implied

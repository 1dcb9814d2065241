"""PyTorch weights into our models and out of them.

A kernel of PyTorch is `[out, in, height, width]` or `[out, in]`; ours is `[height, width, in, out]`
or `[in, out]`. `torch_names` has the names.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import randomness as keys
from resnet_jax.errors import UserError, unknown
from resnet_jax.models.registry import create_model
from resnet_jax.models.vit import VisionTransformer
from resnet_jax.weights import torch_files
from resnet_jax.weights.torch_names import (
    Dialect,
    after_flatten,
    dialects,
    implied_options,
    usual_dialect,
)

Tree = Any

HEADS = ("keep", "replace", "fit")

_ALIGNMENT = 64  # bytes; arrays so aligned are shared with JAX on a CPU, not copied
_CHUNK = 2**23  # bytes that are transposed at once, about a cache
_LISTED = 4  # names of each kind in an error


@dataclasses.dataclass(frozen=True)
class Imported:
    """What came out of a file.

    Attributes:
      variables: "params" and, if the model has any, "batch_stats".
      dialect: the implementation whose names the file uses.
      num_tensors: number of tensors that were used.
      head_kept: whether the head is the file's; otherwise it is new, or the model has none.
    """

    variables: dict[str, Tree]
    dialect: str
    num_tensors: int
    head_kept: bool


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A parameter or statistic, and where its values are in a tensor of PyTorch.

    Attributes:
      path: collection, modules and name.
      shape: our shape.
      dtype: our dtype.
      channels: for a linear layer after a flatten, the channels of what is flattened; otherwise 0.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    channels: int

    def torch_view(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of our array with the order of PyTorch's axes."""
        if self.channels:
            return array.reshape(-1, self.channels, array.shape[-1]).transpose(2, 1, 0)
        if self.path[-1] != "kernel":
            return array
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T

    def torch_shape(self) -> tuple[int, ...]:
        """Returns the shape of PyTorch's tensor."""
        if self.path[-1] != "kernel":
            return self.shape
        *sides, inputs, outputs = self.shape
        return (outputs, inputs, *sides)


def import_torch(
    path: str | os.PathLike[str],
    model: nn.Module,
    head: str = "keep",
    *,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> dict[str, Tree]:
    """Returns the variables of a model from a file of PyTorch weights.

    Every tensor of the file is used once and every variable is set once; only `num_batches_tracked`
    and, where it is not kept, the head of the file are left out.

    Args:
      path: a `.pth`, `.pt`, `.th` or `.safetensors` file; nothing in it is executed.
      model: a module of the registry, of the file's architecture; with `num_classes=0` the head of
        the file is dropped.
      head: "keep" takes the classifier from the file, "replace" initialises it anew, "fit" keeps it
        where its shapes fit and else replaces it.
      image_shape: `(height, width, channels)` of the images; None: 32x32x3, or for a Vision
        Transformer the size that the file's positions are for.
      seed: seed of a new head.

    Returns:
      "params" and, if the model has any, "batch_stats", in the dtypes of the model.

    Raises:
      UserError: if the file can't be used, or does not fit the model.
    """
    file = torch_files.TorchFile(path)
    return fill(file, model, head, image_shape=image_shape, seed=seed).variables


def create_with_weights(
    name: str, num_classes: int | None, path: str | os.PathLike[str], options: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Tree]]:
    """Returns a model of the registry and its variables from a file.

    Args:
      name: a name of `list_models()`.
      num_classes: number of logits; None: as many as the file has.
      path: the file.
      options: options of the model; a ResNet's stem and a VGG's classifier are found from the file
        if they are not among them.

    Raises:
      UserError: see `import_torch`.
    """
    file = torch_files.TorchFile(path)
    shapes = {key: array.shape for key, array in file.tensors.items()}
    implied = implied_options(create_model(name, **options), shapes)
    if num_classes is None and "num_classes" not in implied:
        raise UserError(f"{path} has no classifier of {name!r}; give num_classes")
    found = implied.pop("num_classes", 0)
    model = create_model(
        name, found if num_classes is None else num_classes, **(implied | dict(options))
    )
    return model, fill(file, model, "keep" if num_classes is None else "fit").variables


def fill(
    file: torch_files.TorchFile,
    model: nn.Module,
    head: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> Imported:
    """Returns what an open file gives for a model; see `import_torch`."""
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    dialects(model)  # refuses what is no model of ours
    tensors = {k: a for k, a in file.tensors.items() if not k.endswith("num_batches_tracked")}
    image_shape = image_shape or _image_shape(model, tensors)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)
    )
    dialect, slots = _best_dialect(model, shapes, tensors)
    start = f"{dialect.head(model)}."
    head_slots = {key: slot for key, slot in slots.items() if key.startswith(start)}
    if head == "fit":
        fits = not _mismatches(head_slots, {k: a for k, a in tensors.items() if k in head_slots})
        head = "keep" if fits else "replace"
    if head == "replace":
        slots = {key: slot for key, slot in slots.items() if key not in head_slots}
        tensors = {key: array for key, array in tensors.items() if not key.startswith(start)}
    elif "head" not in shapes["params"]:
        start = str(dialect.key(model, "head/bias")).removesuffix("bias")
        tensors = {key: array for key, array in tensors.items() if not key.startswith(start)}
    if problems := _mismatches(slots, tensors):
        raise UserError(
            f"{file.path} does not fit the model, by the names of {dialect.name}: "
            f"{'; '.join(problems)}{_advice(model, tensors)}"
        )
    variables: dict[str, Tree] = {}
    for key, slot in slots.items():
        _put(variables, slot.path, _convert(file, key, slot))
    if head == "replace" and head_slots:
        _add_new_head(variables, model, image_shape, seed, list(head_slots.values()))
    head_kept = head == "keep" and "head" in variables["params"]
    return Imported(variables, dialect.name, len(slots), head_kept)


def state_dict(model: nn.Module, variables: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """Returns variables as PyTorch has them: its names, shapes and order of axes.

    Args:
      model: a module of the registry.
      variables: "params" and, if the model has any, "batch_stats".

    Returns:
      Contiguous arrays by the keys of the family's usual PyTorch implementation.
    """
    collections = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(collections)}
    slots = _slots(model, usual_dialect(model), collections)
    assert slots is not None, "the last dialect of a family has a row for every path"
    return {
        key: np.ascontiguousarray(slot.torch_view(np.asarray(leaves[slot.path]))).reshape(
            slot.torch_shape()
        )
        for key, slot in slots.items()
    }


def _image_shape(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    if isinstance(model, VisionTransformer):
        for dialect in dialects(model):
            positions = tensors.get(dialect.key(model, "pos_embed") or "")
            if positions is not None and positions.ndim == 3:
                side = model.patch_size * math.isqrt(max(1, positions.shape[1] - 1))
                return side, side, 3
    return 32, 32, 3


def _best_dialect(
    model: nn.Module, shapes: Tree, tensors: Mapping[str, Any]
) -> tuple[Dialect, dict[str, _Slot]]:
    """Returns the dialect that knows most names of a file, and the model's slots by its keys."""
    candidates = [(dialect, _slots(model, dialect, shapes)) for dialect in dialects(model)]
    usable = [(dialect, slots) for dialect, slots in candidates if slots is not None]

    def num_known(candidate: tuple[Dialect, dict[str, _Slot]]) -> int:
        dialect, slots = candidate
        start = f"{dialect.head(model)}."
        return sum(key in slots or key.startswith(start) for key in tensors)

    return max(usable, key=num_known)


def _slots(model: nn.Module, dialect: Dialect, shapes: Tree) -> dict[str, _Slot] | None:
    """Returns the slots of a model by their keys; None if the dialect lacks one of them.

    Args:
      model: the module.
      dialect: the names.
      shapes: the model's variables, or their shapes and dtypes.
    """
    leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    linear, conv = after_flatten(model) or ("", "")
    slots: dict[str, _Slot] = {}
    for path, leaf in leaves.items():
        key = dialect.key(model, "/".join(path[1:]))
        if key is None or key in slots:
            return None
        follows = path == ("params", linear, "kernel")
        channels = leaves["params", conv, "kernel"].shape[-1] if follows else 0
        slots[key] = _Slot(path, leaf.shape, np.dtype(leaf.dtype), channels)
    return slots


def _names(path: Sequence[Any]) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _mismatches(slots: Mapping[str, _Slot], tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns what is missing, extra, misshapen and of no floating-point dtype."""
    missing = [key for key in slots if key not in tensors]
    extra = [key for key in tensors if key not in slots]
    both = [key for key in slots if key in tensors]
    misshapen = [
        f"{key} {_by(tensors[key].shape)}, not {_by(slots[key].torch_shape())}"
        for key in both
        if tensors[key].shape != slots[key].torch_shape()
    ]
    wrong = [
        f"{key} of {tensors[key].dtype}"
        for key in both
        if not jnp.issubdtype(tensors[key].dtype, jnp.floating)
    ]
    kinds = {
        "missing": [key + _nearest(key, extra) for key in missing[:_LISTED]] + missing[_LISTED:],
        "extra": extra,
        "misshapen": misshapen,
        "not floating-point": wrong,
    }
    return [f"{kind} {_listed(names)}" for kind, names in kinds.items() if names]


def _nearest(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f" (nearest: {near[0]})" if near else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _advice(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> str:
    """Returns which options of the model the file's shapes call for."""
    implied = implied_options(model, {key: array.shape for key, array in tensors.items()})
    wrong = [
        f"{name}={value!r}" for name, value in implied.items() if getattr(model, name) != value
    ]
    return f"; the file is for a model of {', '.join(wrong)}" if wrong else ""


def _convert(file: torch_files.TorchFile, key: str, slot: _Slot) -> jax.Array:
    """Returns a tensor of a file in our layout and dtype."""
    size = math.prod(slot.shape) * slot.dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array = memory[start : start + size].view(slot.dtype).reshape(slot.shape)
    target = slot.torch_view(array)
    source = file.tensors[key].reshape(target.shape)
    rows = max(1, len(target) * _CHUNK // max(1, source.nbytes))
    with np.errstate(over="ignore"):
        for row in range(0, len(target), rows):
            part = target[row : row + rows]
            part[...] = source[row : row + rows]
            file.release()
            if not np.isfinite(part).all():
                raise UserError(f"{file.path}: {key} is not finite, or too large for {slot.dtype}")
    return jax.device_put(array)


def _put(tree: dict[str, Tree], path: Sequence[str], leaf: jax.Array) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _add_new_head(
    variables: dict[str, Tree],
    model: nn.Module,
    image_shape: tuple[int, int, int],
    seed: int,
    slots: Sequence[_Slot],
) -> None:
    @jax.jit
    def init(key: jax.Array) -> dict[str, Tree]:
        # Only what is returned is computed.
        params = model.init(key, jnp.zeros((1, *image_shape)), train=False)["params"]
        return {slot.path[1]: params[slot.path[1]] for slot in slots}

    variables["params"] |= init(keys.derive(jax.random.key(seed), keys.Purpose.INIT))

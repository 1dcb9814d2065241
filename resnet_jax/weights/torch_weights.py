"""Tensors of PyTorch into variables of our models and out of them.

A kernel of PyTorch is `[out, in, height, width]` or `[out, in]`; ours is `[height, width, in, out]`
or `[in, out]`. `torch_names` has the names.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax import randomness as keys
from resnet_jax.errors import UserError, unknown
from resnet_jax.models.registry import variable_shapes
from resnet_jax.models.vit import VisionTransformer
from resnet_jax.weights.torch_files import TorchFile
from resnet_jax.weights.torch_names import (
    Rows,
    dialects,
    head_prefix,
    implied_options,
    torch_key,
)

Tree = Any

HEADS = ("keep", "fit")

_ALIGNMENT = 64  # bytes; arrays so aligned are shared with JAX on a CPU, not copied
_CHUNK = 2**23  # bytes that are transposed at once, about a cache
_LISTED = 4  # names of each kind in an error


class _Slot(NamedTuple):
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
        if self.path[-1] != "kernel":
            return array
        if self.channels:
            return array.reshape(-1, self.channels, array.shape[-1]).transpose(2, 1, 0)
        return array.transpose(-1, -2, *range(array.ndim - 2))

    def torch_shape(self) -> tuple[int, ...]:
        """Returns the shape of PyTorch's tensor."""
        if self.path[-1] != "kernel":
            return self.shape
        *sides, inputs, outputs = self.shape
        return (outputs, inputs, *sides)


def fill(
    model: nn.Module,
    file: TorchFile,
    head: str = "keep",
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[str, Tree]:
    """Returns a model's variables from an open file; see `resnet_jax.import_torch`.

    Args:
      model: a module of the registry.
      file: the file.
      head: one of `HEADS`.
      image_shape: `(height, width, channels)` of the images; None: as the file implies.
      seed: seed of a new head.
      notify: called with one line: the file, whose names it uses, whether the head is new.

    Raises:
      UserError: if the file does not fit the model.
    """
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    tables = dialects(model)
    tensors = {k: a for k, a in file.tensors.items() if not k.endswith("num_batches_tracked")}
    image_shape = image_shape or _image_shape(model, tensors)
    shapes = variable_shapes(model, image_shape)
    found = {name: _slots(rows, flatten_dict(shapes)) for name, rows in tables.items()}
    dialect = max(found, key=lambda name: len(found[name].keys() & tensors.keys()))
    slots, prefix = found[dialect], head_prefix(model, tables[dialect])
    head_slots = {key: slot for key, slot in slots.items() if key.startswith(prefix)}
    head_tensors = {key: array for key, array in tensors.items() if key.startswith(prefix)}
    is_new = bool(head == "fit" and head_slots and _mismatches(head_slots, head_tensors))
    if is_new or not head_slots:
        slots = {key: slot for key, slot in slots.items() if key not in head_slots}
        tensors = {key: array for key, array in tensors.items() if key not in head_tensors}
    if problems := _mismatches(slots, tensors):
        raise UserError(
            f"{file.path} does not fit the model, by the names of {dialect}: "
            f"{'; '.join(problems)}{_advice(model, tensors)}"
        )
    new = "; the head is new, since the file's has other shapes" if is_new else ""
    notify(f"starting from the weights in {file.path}, by the names of {dialect}{new}")
    variables = unflatten_dict({s.path: _convert(file, key, s) for key, s in slots.items()})
    if is_new:
        names = {slot.path[1] for slot in head_slots.values()}
        variables["params"] |= new_layers(model, image_shape, seed, names)
    return variables


def state_dict(model: nn.Module, variables: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """Returns variables as PyTorch has them: its names, shapes and order of axes.

    Args:
      model: a module of the registry.
      variables: "params" and, if the model has any, "batch_stats".

    Returns:
      Contiguous arrays by the keys of the family's usual PyTorch implementation.
    """
    leaves = flatten_dict(variables)
    usual = next(iter(dialects(model).values()))
    views = {
        key: (slot.torch_view(np.asarray(leaves[slot.path])), slot.torch_shape())
        for key, slot in _slots(usual, leaves).items()
    }
    return {key: np.ascontiguousarray(view).reshape(shape) for key, (view, shape) in views.items()}


def _image_shape(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """Returns the shape of images: of a Vision Transformer, what the file's positions are for."""
    side = 32
    for rows in dialects(model).values() if isinstance(model, VisionTransformer) else ():
        positions = tensors.get(rows["pos_embed"])
        if positions is not None and positions.ndim == 3:
            side = model.patch_size * math.isqrt(max(1, positions.shape[1] - 1))
    return side, side, 3


def _slots(rows: Rows, leaves: Mapping[tuple[str, ...], Any]) -> dict[str, _Slot]:
    """Returns the slots of a model by their keys.

    Args:
      rows: the table of names.
      leaves: the model's variables, or their shapes and dtypes, by their paths.
    """
    slots = {}
    for path, leaf in leaves.items():
        channels = 0
        if path == ("params", "fc1", "kernel"):  # it reads the last convolution's images, flattened
            convs = [p for p in leaves if p[1].startswith("conv") and p[2] == "kernel"]
            channels = leaves[max(convs)].shape[-1]
        key = torch_key(rows, "/".join(path[1:]))
        slots[key] = _Slot(path, leaf.shape, np.dtype(leaf.dtype), channels)
    return slots


def _mismatches(slots: Mapping[str, _Slot], tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns what is missing, extra, and of another shape or no floating-point dtype."""
    both = {
        key: (slot.torch_shape(), tensors[key]) for key, slot in slots.items() if key in tensors
    }
    extra = [key for key in tensors if key not in slots]
    missing = [key for key in slots if key not in tensors]
    kinds = {
        "missing": [*(key + _nearest(key, extra) for key in missing[:_LISTED]), *missing[_LISTED:]],
        "extra": extra,
        "unfit": [
            f"{key} {array.dtype}{list(array.shape)}, not float{list(shape)}"
            for key, (shape, array) in both.items()
            if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating)
        ],
    }
    return [f"{kind} {_listed(names)}" for kind, names in kinds.items() if names]


def _nearest(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, names[:1000], n=1)  # a file may have millions
    return f" (nearest: {near[0]})" if near else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _advice(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> str:
    """Returns which options of the model the file's shapes call for."""
    implied = implied_options(model, {key: array.shape for key, array in tensors.items()})
    wrong = [
        f"{name}={value!r}" for name, value in implied.items() if getattr(model, name) != value
    ]
    return f"; the file is for a model of {', '.join(wrong)}" if wrong else ""


def _convert(file: TorchFile, key: str, slot: _Slot) -> jax.Array:
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


def new_layers(
    model: nn.Module, image_shape: tuple[int, int, int], seed: int, names: set[str]
) -> dict[str, Tree]:
    """Returns newly initialised parameters of some layers; only those are computed."""

    @jax.jit
    def init(key: jax.Array) -> dict[str, Tree]:
        params = model.init(key, jnp.zeros((1, *image_shape)), train=False)["params"]
        return {name: params[name] for name in names}

    return init(keys.derive(jax.random.key(seed), keys.Purpose.INIT))

"""The options of a model, whether they come from Python or from a config: types and ranges."""

import collections.abc
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import UserError, unknown

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "leaky_relu": nn.leaky_relu,
}


# More would fit no machine, or take hours to trace: such a number is a slip, or not meant well.
_MAX_LAYERS = 1_000
_MAX_SIZE = 1_000_000
_DEPTHS = frozenset({"stage_sizes", "num_convs", "num_layers"})


def checked_options(module: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options in the exact types of a module's fields.

    A config holds plain values: there, lists stand for tuples, and names for dtypes, block classes
    and activations. A whole number is at least 1, or 0 where that means none, and at most 1,000,000
    (numbers of layers and blocks: 1,000 in all); a rate is in [0, 1).

    Args:
      module: a Flax module.
      options: values of some of its fields.

    Raises:
      UserError: if a value has the wrong type or is out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(module)}
    return {name: _checked(fields[name], value) for name, value in options.items()}


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    name, kind = field.name, field.type
    if name in ("dtype", "param_dtype"):
        return _dtype(name, value)
    if kind in (bool, int, float, str):
        assert isinstance(kind, type)
        return _scalar(field, kind, value)
    origin = typing.get_origin(kind)
    if origin is collections.abc.Sequence:
        return _whole_numbers(name, value)
    if origin is type:
        return _subclass(name, typing.get_args(kind)[0], value)
    if name == "activation" and isinstance(value, str):
        if value not in ACTIVATIONS:
            raise unknown("activation", value, ACTIVATIONS)
        return ACTIVATIONS[value]
    if not callable(value):
        raise UserError(f"model option {name} takes a constructor, not {value!r}")
    return value


def _scalar(field: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    name = field.name
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"model option {name} takes a {kind.__name__}, not {value!r}")
    low = 0 if field.default == 0 or name == "num_classes" else 1
    if type(value) is int and value < low:
        raise UserError(f"model option {name} must be at least {low}, not {value}")
    if type(value) is int:
        _check_size(name, value)
    if type(value) is float and name.endswith("_rate") and not 0 <= value < 1:
        raise UserError(f"model option {name} must be at least 0 and below 1, not {value}")
    return value


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, list | tuple)
    if not is_list or not all(type(item) is int and item >= 1 for item in value):
        raise UserError(f"model option {name} takes a list of whole numbers from 1, not {value!r}")
    _check_size(name, sum(value) if name in _DEPTHS else max(value, default=1))
    return tuple(value)


def _check_size(name: str, value: int) -> None:
    limit = _MAX_LAYERS if name in _DEPTHS else _MAX_SIZE
    if value > limit:
        raise UserError(f"model option {name} must be at most {limit:,} in all")


def _subclass(name: str, base: type[nn.Module], value: Any) -> type[nn.Module]:
    known = {cls.__name__: cls for cls in base.__subclasses__()}
    if isinstance(value, str):
        if value not in known:
            raise unknown(name, value, known)
        return known[value]
    if not isinstance(value, type) or not issubclass(value, base):
        raise UserError(f"model option {name} takes one of {', '.join(known)}, not {value!r}")
    return value


def _dtype(name: str, value: Any) -> jnp.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if value is None or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"model option {name} takes a floating-point dtype, such as 'bfloat16', not {value!r}"
        )
    return dtype

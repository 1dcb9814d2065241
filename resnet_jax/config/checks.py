"""The open `options` of a config, checked against the signature of what they are for.

An option is a keyword-only parameter, annotated with its type. Bounds on a number are part of the
annotation: `Annotated[float, Bounds(0, below=1)]`.
"""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from resnet_jax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a number.

    Attributes:
      low: smallest value allowed.
      above: bound that the value must exceed.
      below: bound that the value must not reach.
      high: largest value allowed.
    """

    low: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below

    def __str__(self) -> str:
        words = {"low": "at least", "above": "above", "below": "below", "high": "at most"}
        bounds = dataclasses.asdict(self)
        return " and ".join(f"{words[k]} {v:g}" for k, v in bounds.items() if math.isfinite(v))


Decay = Annotated[float, Bounds(low=0, below=1)]
Share = Annotated[float, Bounds(low=0, high=1)]
NonNegative = Annotated[float, Bounds(low=0)]
Positive = Annotated[float, Bounds(above=0)]


def complete_options(
    kind: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns all options of a function: those given, checked, and the defaults of the others.

    Args:
      kind: what the function is, as the user would say it ("optimizer", "schedule").
      name: the function's name in the config.
      function: the function; its keyword-only parameters are its options.
      options: the options that the config gives.

    Raises:
      UserError: if an option is unknown, missing, ill-typed or out of range.
    """
    parameters = inspect.signature(function).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    hints = typing.get_type_hints(function, include_extras=True)
    for option in options:
        if option not in known and known:
            raise unknown(f"option of {kind} {name!r}", option, known)
        if option not in known:
            raise UserError(f"{kind} {name!r} has no options; remove {option!r}")
    values = dict(known)
    for option, value in options.items():
        values[option] = _checked(f"option {option} of {kind} {name!r}", hints[option], value)
    for option, value in values.items():
        if value is inspect.Parameter.empty:
            raise UserError(f"{kind} {name!r} needs its option {option}; set {kind}.options")
    return values


def _checked(what: str, hint: Any, value: Any) -> Any:
    """Returns `value` in the type that `hint` asks for, or raises."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _checked(what, arguments[0], value)
        if value not in arguments[1]:
            raise UserError(f"{what} must be {arguments[1]}, not {value}")
        return value
    if origin is Literal:
        if value not in arguments:
            raise unknown(f"{what}:", value, arguments)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise UserError(f"{what} takes a list of numbers, not {value!r}")
        return tuple(_checked(what, arguments[0], item) for item in value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"{what} must be of type {hint.__name__}, not {value!r}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{what} must be a finite number, not {value}")
    return value

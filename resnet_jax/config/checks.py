"""One checker, driven by annotations, for config fields and for options.

An option is a keyword-only parameter of a function, or a field of a class. What it may be is all in
its annotation: `momentum: Annotated[float, Bounds(0, below=1)] = 0.0`.
"""

import contextlib
import dataclasses
import inspect
import math
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from resnet_jax.errors import UserError, shown, unknown

_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "names with values",
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a number.

    Attributes:
      low: smallest value allowed.
      high: largest value allowed.
      above: bound that the value must exceed.
      below: bound that the value must not reach.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __call__(self, what: str, value: float) -> float:
        """Returns the number, or raises UserError."""
        if not (self.low <= value <= self.high and self.above < value < self.below):
            raise UserError(f"{what} must be {self}, not {shown(value)}")
        return value

    def __str__(self) -> str:
        words = {"low": "at least", "above": "above", "below": "below", "high": "at most"}
        bounds = {words[name]: getattr(self, name) for name in words}
        return " and ".join(f"{word} {n:,.10g}" for word, n in bounds.items() if math.isfinite(n))


def _pattern(what: str, value: str) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a later Python may read otherwise
            re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{what}: bad pattern {shown(value)}: {error}") from None
    return value


Count = Annotated[int, Bounds(1, 1_000_000)]
Rate = Annotated[float, Bounds(0, below=1)]
Decay = Rate
Share = Annotated[float, Bounds(0, 1)]
NonNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(above=0)]
Pattern = Annotated[str, _pattern]
# Pairs of a regular expression of parameter paths and a number for what it matches.
Factors = tuple[tuple[Pattern, NonNegative], ...]


def checked(what: str, hint: Any, value: Any) -> Any:
    """Returns a value in the type that an annotation asks for.

    Whole numbers stand for floats, NumPy's numbers for Python's, lists for tuples, and names for
    classes of a `type[Base]`.

    Args:
      what: what the value is, as the user would say it ("config field seed").
      hint: the annotation: a plain type, `Literal`, `tuple`, `type[Base]`, `Callable`, or one of
        these `Annotated` with a mapping, whose names stand for its values, and with functions
        `(what, value) -> value`, such as `Bounds`, that are called in turn.
      value: the value.

    Raises:
      UserError: if the value is not of that type, or out of range.
    """
    value = _plain(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated(what, arguments[0], arguments[1:], value)
    if origin is Literal:
        return _named(what, {name: name for name in arguments}, value)
    if origin is type:
        if isinstance(value, type) and issubclass(value, arguments[0]):
            return value
        return _named(what, {c.__name__: c for c in _subclasses(arguments[0])}, value)
    if origin is tuple:
        return _items(what, arguments, value)
    if origin is Callable:
        if not callable(value):
            raise UserError(f"{what} takes a function or a class, not {shown(value)}")
        return value
    if hint is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if hint in _KINDS and type(value) is not hint:
        raise UserError(f"{what} takes {_KINDS[hint]}, not {shown(value)}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{what} must be a finite number, not {value}")
    return {name: _plain(item) for name, item in value.items()} if hint is dict else value


def _subclasses(base: type) -> Iterator[type]:
    own: type
    for own in base.__subclasses__():
        yield own
        yield from _subclasses(own)


def check_options(
    kind: str, name: str, target: Callable[..., Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns checked options: of a function all, those not given at their defaults.

    Args:
      kind: what has the options, as the user would say it ("optimizer", "schedule", "model").
      name: its name in the config.
      target: a function, whose keyword-only parameters are the options; or a class, whose fields
        are, and of which only those given are returned.
      options: the options that are given.

    Raises:
      UserError: if an option is unknown, missing, ill-typed or out of range.
    """
    parameters = inspect.signature(target).parameters.values()
    if isinstance(target, type):
        known = {p.name: p for p in parameters if p.name not in ("parent", "name")}
        values = {}
    else:
        known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        values = {p.name: p.default for p in known.values()}
    for option, value in options.items():
        if not known:
            raise UserError(f"{kind} {name!r} has no options; remove {option!r}")
        if option not in known:
            problem = unknown(f"option of {kind} {name!r}", option, known)
            raise UserError(f"{problem}; --config.{kind}.options={{}} drops those of a config")
        what = f"option {option} of {kind} {name!r}"
        values[option] = checked(what, known[option].annotation, value)
    for option, value in values.items():
        if value is inspect.Parameter.empty:
            field = f"--config.{kind}.options.{option}"
            raise UserError(f"{kind} {name!r} needs its option {option}; set {field}")
    return values


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _annotated(what: str, hint: Any, metadata: tuple[Any, ...], value: Any) -> Any:
    for names in metadata:
        if isinstance(names, Mapping) and isinstance(value, str):
            value = _named(what, names, value)
    value = checked(what, hint, value)
    for check in metadata:
        value = check(what, value) if callable(check) else value
    return value


def _named(what: str, choices: Mapping[str, Any], value: Any) -> Any:
    if not isinstance(value, str):
        raise UserError(f"{what} takes one of {', '.join(choices)}, not {shown(value)}")
    if value not in choices:
        raise UserError(f"{what}: {unknown('value', value, choices)}")
    return choices[value]


def _items(what: str, hints: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{what} takes a list, not {shown(value)}")
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise UserError(f"{what} takes {len(hints)} values, not {shown(value)}")
    return tuple(checked(what, hint, item) for hint, item in zip(hints, value, strict=True))

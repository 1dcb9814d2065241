"""What a search varies: lists, ranges and conditions; its grid, and points drawn at random."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.config import load as config_lib
from resnet_jax.config.checks import checked
from resnet_jax.config.fields import FIELDS
from resnet_jax.errors import UserError, shown

Point = dict[str, Any]  # values by the paths of their fields

_KEYS = {"values", "low", "high", "log", "when"}
_MAX_POINTS = 100_000
_REPEATED = 1000  # points in a row that were drawn before: hardly any are left


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field that varies.

    Attributes:
      path: the path of the field.
      values: the values of a list; empty: it is a range.
      low: least value of a range; whole numbers at both ends stand for whole numbers.
      high: its largest value.
      log: whether the logarithm is what is uniform in the range.
      when: values that other fields, by their paths, must have for this one to be set.
    """

    path: str
    values: tuple[Any, ...] = ()
    low: Any = 0
    high: Any = 0
    log: bool = False
    when: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return len(self.values) != 1

    @property
    def is_whole(self) -> bool:
        """Whether the values of the range are whole numbers."""
        return type(self.low) is type(self.high) is int

    def is_active(self, point: Point) -> bool:
        """Returns whether a point, of the axes before this one, meets the conditions."""
        return all(path in point and point[path] in values for path, values in self.when.items())

    def at(self, share: float) -> Any:
        """Returns the value of a range that a share, in [0, 1], of it lies below."""
        low, high = self._ends()
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        return min(max(round(value) if self.is_whole else value, self.low), self.high)

    def share(self, value: float) -> float:
        """Returns the share of a range that lies below a value."""
        low, high = self._ends()
        return ((math.log(value) if self.log else value) - low) / (high - low)

    def _ends(self) -> tuple[float, float]:
        """Returns where the range is uniform between; whole numbers have as much room each."""
        room = 0.5 if self.is_whole else 0.0
        low, high = self.low - room, self.high + room
        return (math.log(low), math.log(high)) if self.log else (low, high)


def parse(space: Mapping[str, Any]) -> tuple[Axis, ...]:
    """Returns the axes of a space, each after those that its conditions name.

    Args:
      space: groups of fields as in a config, with a list of values in place of each value, or with
        `{"low": ..., "high": ..., "log": ...}`; a list with conditions is `{"values": [...],
        "when": {...}}`, where "when" has such groups too.

    Raises:
      UserError: if it is empty or ill-typed, or names fields that configs lack.
    """
    found = [_axis(path, given) for path, given in _leaves(space, "").items()]
    if not found:
        raise UserError("config group space is empty; name fields and the values to try")
    ordered: list[Axis] = []
    while len(ordered) < len(found):
        known = {axis.path for axis in ordered}
        ready = [a for a in found if a.path not in known and known >= a.when.keys()]
        if not ready:
            waiting = next(a for a in found if a.path not in known)
            missing = next(path for path in waiting.when if path not in known)
            where = f"config field space.{waiting.path}.when"
            raise UserError(f"{where} names {missing}, which the space lacks or which waits for it")
        ordered += ready
    return tuple(ordered)


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Returns all combinations of the values of lists, the last axis varying fastest.

    Raises:
      UserError: if an axis is a range, or there are too many combinations.
    """
    points: list[Point] = [{}]
    for axis in axes:
        if not axis.values:
            raise UserError(
                f"config field space.{axis.path} is a range, of which there is no grid; give a "
                "list, or set search.method='random'"
            )
        points = [
            point | chosen
            for point in points
            for chosen in ([{axis.path: v} for v in axis.values] if axis.is_active(point) else [{}])
        ]
        if len(points) > _MAX_POINTS:
            raise UserError(f"config group space has more than {_MAX_POINTS:,} points")
    return points


def draw(
    axes: Sequence[Axis], seed: int, number: int, given: Mapping[str, Any] | None = None
) -> Point:
    """Returns the random point of a number, with values that are given in place of random ones."""
    generator = np.random.Generator(np.random.Philox(key=[seed, number]))
    point: Point = {}
    for axis in axes:
        if axis.is_active(point):
            chosen = generator.random()
            in_list = axis.values and axis.values[int(chosen * len(axis.values))]
            drawn = in_list if axis.values else axis.at(chosen)
            point[axis.path] = (given or {}).get(axis.path, drawn)
    return point


def draws(axes: Sequence[Axis], seed: int) -> Iterator[Point]:
    """Yields random points that differ, until hardly any are left."""
    seen, repeated = set[str](), 0
    for number in itertools.count():
        point = draw(axes, seed, number)
        if (text := json.dumps(point)) not in seen:
            seen.add(text)
            repeated = 0
            yield point
        elif (repeated := repeated + 1) > _REPEATED:
            return


def configured(base: ConfigDict, point: Mapping[str, Any], **fields: Any) -> ConfigDict:
    """Returns the checked config of a trial.

    Another model, optimizer or schedule than the base's does not have the base's options.

    Args:
      base: the config that the search starts from.
      point: values by the paths of the fields that they replace.
      **fields: more of them, at the top of the config.

    Raises:
      UserError: if a value does not suit its field, or fields contradict each other.
    """
    config = ConfigDict(base.to_dict())
    for group in ("model", "optimizer", "schedule"):
        if point.get(f"{group}.name", base[group].name) != base[group].name:
            config[group].options = ConfigDict()
    with config.ignore_type():
        config.update_from_flattened_dict({**point, **fields})
    return config_lib.validate(config)


def _leaves(node: Any, prefix: str) -> dict[str, Any]:
    """Returns what stands for each field, by its path."""
    found: dict[str, Any] = {}
    for name, value in node.items() if isinstance(node, Mapping) else ():
        is_group = isinstance(value, Mapping) and not (value and set(value) <= _KEYS)
        found |= _leaves(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return found


def _axis(path: str, given: Any) -> Axis:
    config_lib.check_field(path)
    where = f"config field space.{path}"
    if path == "seed":
        raise UserError(f"{where}: list seeds in the field seeds, over which the ranking averages")
    if path.startswith("evaluate."):
        raise UserError(f"{where}: trials that are scored in other ways can't be compared")
    if not isinstance(given, Mapping):
        return Axis(path, _values(where, path, given))
    conditions = _leaves(checked(f"{where}.when", dict, given.get("when", {})), "")
    when = {other: _values(f"{where}.when.{other}", other, v) for other, v in conditions.items()}
    if "values" in given:
        if extra := given.keys() - {"values", "when"}:
            raise UserError(f"{where} has values, which {min(extra)} does not go with")
        return Axis(path, _values(where, path, given["values"]), when=when)
    if not given.keys() >= {"low", "high"}:
        raise UserError(f"{where} takes a list of values, or low and high")
    low, high = (_value(where, path, given[end]) for end in ("low", "high"))
    log = checked(f"{where}.log", bool, given.get("log", False))
    if not all(type(end) in (int, float) for end in (low, high)):
        raise UserError(f"{where} takes numbers for low and high, not {shown(low)}, {shown(high)}")
    if not low < high or (log and low <= 0):
        least = "above 0 and " if log else ""
        raise UserError(f"{where}: low must be {least}below high, not {shown(low)}, {shown(high)}")
    return Axis(path, (), low, high, log, when)


def _values(where: str, path: str, given: Any) -> tuple[Any, ...]:
    values = checked(where, tuple[object, ...], given)
    found = tuple(_value(where, path, value) for value in values)
    if not found or len({json.dumps(value) for value in found}) < len(found):
        raise UserError(f"{where} takes values that differ, one at least, not {shown(given)}")
    return found


def _value(where: str, path: str, value: Any) -> Any:
    """Returns a value in its field's type, as JSON has it."""
    if path in FIELDS:
        value = checked(where, FIELDS[path].hint, value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        raise UserError(f"{where} takes values that JSON has, not {shown(value)}") from None


def label(value: Any) -> Any:
    """Returns a value as a plain number or text."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)

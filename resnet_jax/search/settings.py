"""What a search config asks for, checked."""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config import load as config_lib
from resnet_jax.config.checks import checked
from resnet_jax.config.fields import RESUMABLE, SEARCH_FIELDS
from resnet_jax.data.registry import open_dataset
from resnet_jax.errors import UserError, shown, unknown
from resnet_jax.platform import compute_dtype
from resnet_jax.search import sampling
from resnet_jax.search.space import Axis, Point, configured, draw, grid, label, parse
from resnet_jax.search.storage import SEARCH
from resnet_jax.search.trials import MEASURES
from resnet_jax.training.task import check_names

_DRAWN = 1000  # points whose values are checked where there is no grid
_OF_IMAGES = {
    f"data.{name}"
    for name in ("name", "dir", "classes", "image_size", "test_fraction", "on_bad_image")
}
_TRIED = 100  # points with a value that are tried until one can be trained


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search config asks for, checked.

    Attributes:
      base: the config that trials start from.
      axes: what varies.
      seeds: the seeds of each point.
      settings: the group `search`.
      reported: columns and rows of a report's table.
      grid: all points; empty if they are drawn.
    """

    base: ConfigDict
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    settings: ConfigDict
    reported: ConfigDict
    grid: tuple[Point, ...]

    @classmethod
    def of(cls, config: ConfigDict) -> "Search":
        """Returns what a config asks for, whose base is a config already.

        Raises:
          UserError: if it can't be done.
        """
        known = config_lib.default_search()
        for name in config:
            if name not in known:
                raise unknown("config field", name, known)
        given = config.to_dict()
        for name in ("base", "space", "search", "reported"):
            checked(f"config group {name}", dict, given.get(name))
        fields = {f"search.{name}": value for name, value in given["search"].items()}
        for path in fields:
            config_lib.check_search_field(path)
        values = {
            path.removeprefix("search."): checked(
                f"config field {path}", field.hint, fields.get(path, field.default)
            )
            for path, field in SEARCH_FIELDS.items()
        }
        settings = ConfigDict(values)
        seeds = checked("config field seeds", tuple[int, ...], given.get("seeds"))
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"config field seeds takes seeds that differ, not {shown(seeds)}")
        axes = parse(given["space"])
        base = _scored(config_lib.validate(given["base"]), settings)
        base.model.dtype = compute_dtype(base.model.dtype)  # the same for workers of any machine
        if base.evaluate.augment and any(a.varies and a.path.startswith("augment.") for a in axes):
            raise UserError(
                "config field base augments validation images, each trial in its own way, and such "
                "scores can't be compared; set --config.base.evaluate.augment=False"
            )
        points = tuple(grid(axes)) if settings.method == "grid" else ()
        _check_method(settings, axes, seeds)
        tried = points or [draw(axes, settings.seed, number) for number in range(_DRAWN)]
        _check_trials(base, axes, tried, seeds)
        return cls(base, axes, seeds, settings, _reported(given["reported"]), points)

    def description(self) -> dict[str, Any]:
        """Returns what makes this search another one than others, as JSON has it."""
        base = {f"base.{p}": v for p, v in config_lib.leaves(self.base).items()}
        kept = ("method", "seed", "pruner", "metric", "select_on_test")
        found = {
            "number": SEARCH,
            **{path: value for path, value in base.items() if path[5:] not in RESUMABLE},
            **{f"space.{axis.path}": dataclasses.asdict(axis) for axis in self.axes},
            "images": self._digest(),
            **{f"search.{name}": self.settings[name] for name in kept},
            "seeds": self.seeds,
        }
        return json.loads(json.dumps(found))

    def _digest(self) -> str:
        """Returns that of the images, or "" where trials have different ones."""
        varies = any(axis.path in _OF_IMAGES for axis in self.axes)
        return "" if varies else open_dataset(self.base.data).info.digest


def _scored(base: ConfigDict, settings: ConfigDict) -> ConfigDict:
    """Returns the base with the test set left to the winner, or refuses what contradicts that."""
    scores_test = base.evaluate.split == "test"
    if scores_test and not settings.select_on_test:
        raise UserError(
            "config field base scores the test set in every epoch; set "
            "--config.base.evaluate.split=val and --config.base.data.val_fraction=0.1, or "
            "--config.search.select_on_test=True, to rank by it as some reports did"
        )
    if not scores_test and settings.select_on_test:
        raise UserError(
            "config field search.select_on_test is True but base has evaluate.split='val'; set "
            "--config.base.evaluate.split=test"
        )
    base = base.copy_and_resolve_references().unlock()
    base.evaluate.score_test = scores_test
    return base


def _check_method(settings: ConfigDict, axes: Sequence[Axis], seeds: Sequence[int]) -> None:
    method = settings.method
    if method != "grid" and not (settings.trials or settings.epochs or settings.hours):
        raise UserError(
            f"config field search.method is {method!r}, which has no end; set search.trials, "
            "search.epochs or search.hours"
        )
    if method == "cma-es" and sum(not (axis.values or axis.when) for axis in axes) < 2:
        raise UserError(
            "config field search.method is 'cma-es', which needs two ranges without conditions; "
            "set search.method='tpe'"
        )
    if settings.pruner != "none" and len(seeds) > 1:
        raise UserError(
            "config field search.pruner compares single trials; set seeds=(0,), and try the best "
            "point with more seeds afterwards"
        )
    sampling.check_installed(settings)


def _check_trials(
    base: ConfigDict, axes: Sequence[Axis], points: Sequence[Point], seeds: Sequence[int]
) -> None:
    """Refuses seeds, values of lists and ends of ranges that trials would, before any trains."""
    having: dict[tuple[str, Any], list[Point]] = {}  # the points with a value
    for axis in axes:
        for point in points:
            if axis.path in point:
                values = (point[axis.path],) if axis.values else (axis.low, axis.high)
                for value in values:
                    alike = having.setdefault((axis.path, label(value)), [])
                    alike.append(point if axis.values else point | {axis.path: value})
    good = points[0]
    for alike in having.values():
        some = random.Random(0).sample(alike, min(_TRIED, len(alike)))
        good = _first_good(base, some)
    for seed in seeds:
        _check_config(configured(base, good, seed=seed))


def _first_good(base: ConfigDict, points: Sequence[Point]) -> Point:
    """Returns the first point that can be trained, or refuses what all of them have in common."""
    problems = []
    for point in points:
        try:
            _check_config(configured(base, point))
        except UserError as error:
            problems.append(error)
        else:
            return point
    raise problems[0]


def _check_config(config: ConfigDict) -> None:
    config.model.dtype = compute_dtype(config.model.dtype)
    config.model.num_classes = config.model.num_classes or 1  # as many as the data will have
    check_names(config)


def _reported(given: Mapping[str, Any]) -> ConfigDict:
    """Returns the table of a report, checked: paths of fields, and then what it measured."""
    columns = checked("config field reported.columns", tuple[str, ...], given.get("columns"))
    rows = checked("config field reported.rows", tuple[tuple[object, ...], ...], given.get("rows"))
    count = len(columns) - sum(name in MEASURES for name in columns)
    for path in columns[:count]:
        config_lib.check_field(path)
    for row in rows:
        if len(row) != len(columns) or not all(type(n) in (int, float) for n in row[count:]):
            raise UserError(f"config field reported.rows: {shown(row)} does not fit the columns")
    rows = json.loads(json.dumps(rows))  # as points have lists
    return ConfigDict({"columns": columns, "rows": rows})

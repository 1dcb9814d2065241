"""A search under way: what is asked for, which trials there are, and which comes next."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import socket
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from resnet_jax.config import load as config_lib
from resnet_jax.config.checks import checked
from resnet_jax.config.fields import RESUMABLE, SEARCH_FIELDS
from resnet_jax.errors import UserError, shown, unknown
from resnet_jax.runs import folder as folders
from resnet_jax.search import sampling
from resnet_jax.search.space import Axis, Point, configured, draw, grid, parse
from resnet_jax.search.storage import SEARCH, open_storage, trial_folder

RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"


@dataclasses.dataclass
class Trial:
    """The training of a point with one seed; a document of the storage.

    Attributes:
      number: its number, that of its point times the number of seeds, and the place of its seed.
      point: values by the paths of the fields that vary.
      seed: its seed.
      epochs: epochs that it is to train, of one that has ended those that it did.
      host: the machine that has the folder of its run.
      state: "running", "done", "pruned" or "failed".
      curve: pairs of an epoch and its last score, percent.
      score: what ranks it, percent.
      train_accuracy: that of the last epoch, percent.
      test_accuracy: of the winner only, unless the test set ranks, percent.
      seconds: time that it took.
      why: what made it fail.
    """

    number: int
    point: Point
    seed: int
    epochs: float
    host: str
    state: str = RUNNING
    curve: list[list[float]] = dataclasses.field(default_factory=list)
    score: float | None = None
    train_accuracy: float | None = None
    test_accuracy: float | None = None
    seconds: float = 0.0
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Standing:
    """What became of a point: its trials, one for each seed."""

    trials: Sequence[Trial]
    num_seeds: int

    @property
    def point(self) -> Point:
        """Values by the paths of the fields that vary."""
        return self.trials[0].point

    @property
    def state(self) -> str:
        """That of all trials, or of one that is not done."""
        states = {trial.state for trial in self.trials}
        missing = RUNNING if len(self.trials) < self.num_seeds else DONE
        return next((s for s in (RUNNING, FAILED, PRUNED) if s in states), missing)

    def mean(self, name: str = "score") -> float | None:
        """Returns the mean of an attribute over the trials that have it; None: none has."""
        found = self._values(name)
        return statistics.fmean(found) if found else None

    def deviation(self) -> float | None:
        """Returns the sample standard deviation of the scores; None with fewer than two."""
        found = self._values("score")
        return statistics.stdev(found) if len(found) > 1 else None

    def _values(self, name: str) -> list[float]:
        values = (getattr(trial, name) for trial in self.trials)
        return [value for value in values if value is not None]


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
        fields = {f"search.{name}": value for name, value in config.search.items()}
        for path in fields:
            if path not in SEARCH_FIELDS:
                raise unknown("config field", path, SEARCH_FIELDS)
        values = {
            path.removeprefix("search."): checked(f"config field {path}", field.hint, fields[path])
            for path, field in SEARCH_FIELDS.items()
        }
        settings = ConfigDict(values)
        seeds = checked("config field seeds", tuple[int, ...], config.seeds)
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"config field seeds takes seeds that differ, not {shown(seeds)}")
        axes = parse(config.space.to_dict())
        base = _scored(config_lib.validate(config.base), settings)
        points = tuple(grid(axes)) if settings.method == "grid" else ()
        _check_method(settings, axes, seeds)
        configured(base, points[0] if points else draw(axes, settings.seed, 0), seed=seeds[0])
        return cls(base, axes, seeds, settings, config.reported, points)

    def description(self) -> dict[str, Any]:
        """Returns what makes this search another one than others, as JSON has it."""
        base = {f"base.{p}": v for p, v in config_lib.leaves(self.base).items()}
        kept = ("method", "seed", "pruner", "metric", "select_on_test")
        return {
            "number": SEARCH,
            **{path: value for path, value in base.items() if path[5:] not in RESUMABLE},
            **{f"space.{axis.path}": _plain(axis) for axis in self.axes},
            **{f"search.{name}": self.settings[name] for name in kept},
            "seeds": list(self.seeds),
        }


class Study:
    """The trials of a search, which several workers share.

    Attributes:
      search: what is asked for.
      workdir: the folder of the search.
    """

    def __init__(self, search: Search, workdir: pathlib.Path) -> None:
        """Opens the storage, and takes note of the search there.

        Raises:
          UserError: if it can't be reached, or is of another search.
        """
        self.search, self.workdir = search, workdir
        if (workdir / folders.CONFIG).exists():
            raise UserError(f"--workdir {workdir} holds a run; name another one for a search")
        self._storage = open_storage(workdir, search.settings.storage)
        wanted = search.description()
        with self.locked():
            found = self._storage.read().get(SEARCH)
            if found is None:
                self._storage.write(SEARCH, wanted)
                return
        changed = [
            f"{name} was {shown(found.get(name))}, is {shown(wanted.get(name))}"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
        ]
        if changed:
            place = "search.storage" if search.settings.storage else f"--workdir {workdir}"
            raise UserError(f"{place} is of another search: {'; '.join(changed)}; name another one")

    def trials(self) -> list[Trial]:
        """Returns all trials so far, by their numbers."""
        return [_trial(d) for number, d in self._storage.read().items() if number != SEARCH]

    def standings(self) -> list[Standing]:
        """Returns what became of each point so far."""
        return standings(self.trials(), len(self.search.seeds))

    def folder(self, trial: Trial) -> pathlib.Path:
        """Returns the folder of a trial's run."""
        return trial_folder(self.workdir, trial.number)

    def next(self) -> Trial | None:
        """Returns a trial for this worker alone: one whose worker has died, or else a new one.

        None: nothing is left to begin; others may still be running.
        """
        with self.locked():
            trials = self.trials()
            for trial in trials:
                if trial.state == RUNNING and self._storage.lock(trial.number):
                    return trial
            new = self._new(trials)
            if new is not None:
                self._storage.lock(new.number, wait=True)
                self.write(new)
            return new

    def write(self, trial: Trial) -> None:
        """Records how far a trial is."""
        self._storage.write(trial.number, dataclasses.asdict(trial))

    def end(self, trial: Trial) -> None:
        """Records what became of a trial of this worker."""
        with self.locked():
            self.write(trial)
            if self.search.settings.keep == "best":
                self._remove_beaten()
        self._storage.unlock(trial.number)

    def is_beaten(self, trial: Trial) -> bool:
        """Returns whether the pruner gives a trial up."""
        search = self.search
        if search.settings.pruner == "none":
            return False
        return sampling.is_pruned(search.axes, search.settings, self.standings(), trial.number)

    def runs_left(self) -> int | None:
        """Returns how many trials are to be begun yet, at most; None: not known."""
        points, trials = len(self.search.grid), self.search.settings.trials
        total = min(filter(None, (points, trials)), default=0) * len(self.search.seeds)
        return max(total - len(self.trials()), 0) if total else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other workers from choosing and ending trials."""
        self._storage.lock(SEARCH, wait=True)
        try:
            yield
        finally:
            self._storage.unlock(SEARCH)

    def close(self) -> None:
        """Gives the trials of this worker back."""
        self._storage.close()

    def _new(self, trials: Sequence[Trial]) -> Trial | None:
        search, settings, taken = self.search, self.search.settings, {t.number for t in trials}
        number = next(number for number in itertools.count() if number not in taken)
        index, place = divmod(number, len(search.seeds))
        is_last = index >= (len(search.grid) or index + 1) or 0 < settings.trials <= index
        if is_last or 0 < settings.hours <= sum(trial.seconds for trial in trials) / 3600:
            return None
        siblings = [trial for trial in trials if trial.number // len(search.seeds) == index]
        point = siblings[0].point if siblings else self._point(index, trials)
        epochs = configured(search.base, point).num_epochs
        if 0 < settings.epochs < epochs + sum(trial.epochs for trial in trials):
            return None
        return Trial(number, point, search.seeds[place], epochs, socket.gethostname())

    def _point(self, index: int, trials: Sequence[Trial]) -> Point:
        search, settings = self.search, self.search.settings
        if settings.method == "grid":
            return search.grid[index]
        if settings.method == "random":
            return draw(search.axes, settings.seed, index)
        found = standings(trials, len(search.seeds))
        return sampling.suggest(search.axes, settings, found, index)

    def _remove_beaten(self) -> None:
        """Removes the checkpoints of all trials that have ended, but for those of the best."""
        for standing in ranked(self.standings())[1:]:
            for trial in standing.trials if standing.state != RUNNING else ():
                checkpoints = self.folder(trial) / folders.CHECKPOINTS
                shutil.rmtree(checkpoints, ignore_errors=True)


def standings(trials: Sequence[Trial], num_seeds: int) -> list[Standing]:
    """Returns what became of each point, in the order of their numbers."""
    groups = itertools.groupby(trials, lambda trial: trial.number // num_seeds)
    return [Standing(tuple(group), num_seeds) for _, group in groups]


def ranked(found: Sequence[Standing]) -> list[Standing]:
    """Returns those that are done, best first and the older of equals, then the others."""
    done = [standing for standing in found if standing.state == DONE]
    done.sort(key=lambda standing: -(standing.mean() or 0.0))
    return done + [standing for standing in found if standing.state != DONE]


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


def _trial(document: Mapping[str, Any]) -> Trial:
    try:
        trial = Trial(**document)
        is_fine = type(trial.point) is dict and trial.state in (RUNNING, DONE, PRUNED, FAILED)
        is_fine &= all(type(n) in (int, float) for pair in trial.curve for n in pair)
        is_fine &= trial.state != DONE or type(trial.score) in (int, float)
        is_fine &= all(type(n) in (int, float) for n in (trial.seed, trial.epochs, trial.seconds))
    except TypeError:
        is_fine = False
    if not is_fine:
        raise UserError(
            f"the record of trial {document['number']} is damaged; move it away, with its folder, "
            "and start again"
        )
    return trial


def _plain(axis: Axis) -> dict[str, Any]:
    """Returns an axis as JSON has it."""
    when = {path: list(values) for path, values in axis.when.items()}
    return {**dataclasses.asdict(axis), "values": list(axis.values), "when": when}

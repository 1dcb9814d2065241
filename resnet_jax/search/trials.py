"""Trials, and what became of the points that they train."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.search.space import Point

RUNNING, DONE, PRUNED, FAILED = "running", "done", "pruned", "failed"
# Attributes of a trial by their names in the tables of reports.
MEASURES = {"train": "train_accuracy", "test": "test_accuracy"}


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


def standings(trials: Sequence[Trial], num_seeds: int) -> list[Standing]:
    """Returns what became of each point, in the order of their numbers."""
    groups = itertools.groupby(trials, lambda trial: trial.number // num_seeds)
    return [Standing(tuple(group), num_seeds) for _, group in groups]


def ranked(found: Sequence[Standing]) -> list[Standing]:
    """Returns those that are done, best first and the older of equals, then the others."""
    done = [standing for standing in found if standing.state == DONE]
    done.sort(key=lambda standing: -(standing.mean() or 0.0))
    return done + [standing for standing in found if standing.state != DONE]


def read_trial(document: Mapping[str, Any]) -> Trial:
    """Returns the trial of a document.

    Raises:
      UserError: if it is none.
    """
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

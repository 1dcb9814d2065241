"""A search under way: which trials there are, which comes next, and what became of them."""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator, Sequence

from resnet_jax.errors import UserError, shown
from resnet_jax.runs import folder as folders
from resnet_jax.search import sampling
from resnet_jax.search.settings import Search
from resnet_jax.search.space import Point, configured, draws
from resnet_jax.search.storage import SEARCH, open_storage, trial_folder
from resnet_jax.search.trials import FAILED, RUNNING, Standing, Trial, ranked, read_trial, standings
from resnet_jax.training.hyperparameters import shape

_AHEAD = 100  # trials among which those of one shape are looked for


class Study:
    """The trials of a search, which several workers share.

    Attributes:
      search: what is asked for.
      workdir: the folder of the search.
    """

    def __init__(self, search: Search, workdir: pathlib.Path) -> None:
        """Opens the storage, and takes note of the search there.

        Raises:
          UserError: if it can't be reached, or is of another search; or if there are no images.
        """
        self.search, self.workdir = search, workdir
        self._draws, self._drawn = draws(search.axes, search.settings.seed), list[Point]()
        if os.path.exists(workdir / folders.CONFIG):
            raise UserError(f"--workdir {workdir} holds a run; name another one for a search")
        wanted = search.description()
        self._storage = open_storage(workdir, search.settings.storage)
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
        return [read_trial(d) for number, d in self._storage.read().items() if number != SEARCH]

    def standings(self) -> list[Standing]:
        """Returns what became of each point so far."""
        return standings(self.trials(), len(self.search.seeds))

    def folder(self, trial: Trial) -> pathlib.Path:
        """Returns the folder of a trial's run."""
        return trial_folder(self.workdir, trial.number)

    def next(self) -> list[Trial]:
        """Returns trials for this worker alone: such whose workers have died, or else new ones.

        They are as many of one shape as may go on side by side. Empty: nothing is left to begin;
        others may still be running.
        """
        limit, group = self.search.settings.parallel_trials, list[Trial]()
        with self.locked():
            trials = self.trials()
            for trial in trials:
                is_left = trial.state == RUNNING and len(group) < limit
                if is_left and self._joins(trial, group) and self._storage.lock(trial.number):
                    trial.host = socket.gethostname()
                    self.write(trial)
                    group.append(trial)
            if group:
                return group
            while len(group) < limit and (new := self._new(trials, group)):
                trials.append(new)
                if self._storage.lock(new.number):  # else another has it, and NFS shows it late
                    self.write(new)
                    group.append(new)
            return group

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

    def write_view(self) -> None:
        """Writes the trials for optuna-dashboard, where Optuna is installed."""
        search = self.search
        if sampling.is_installed("optuna"):
            with self.locked():
                path = self.workdir / "optuna.journal"
                sampling.write_journal(path, search.axes, search.settings, self.standings())

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

    def _joins(self, trial: Trial, group: Sequence[Trial]) -> bool:
        """Returns whether a trial has the shape of a group."""
        base = self.search.base
        try:
            shapes = {shape(configured(base, t.point)) for t in (trial, *group[:1]) if group}
        except UserError:  # one of them fails when it is trained, alone
            return False
        return len(shapes) < 2

    def _new(self, trials: Sequence[Trial], group: Sequence[Trial]) -> Trial | None:
        """Returns the next trial that is yet to begin and joins a group."""
        search, settings, taken = self.search, self.search.settings, {t.number for t in trials}
        if 0 < settings.hours <= sum(trial.seconds for trial in trials) / 3600:
            return None
        free = (number for number in itertools.count() if number not in taken)
        # Where points are functions of their numbers, those that do not join can wait.
        ahead = _AHEAD if group and settings.method in ("grid", "random") else 1
        for number in itertools.islice(free, ahead):
            index, place = divmod(number, len(search.seeds))
            if index >= (len(search.grid) or index + 1) or 0 < settings.trials <= index:
                return None
            siblings = [trial for trial in trials if trial.number // len(search.seeds) == index]
            point = siblings[0].point if siblings else self._point(index, trials)
            if point is None:
                return None
            epochs = configured(search.base, point).num_epochs
            trial = Trial(number, point, search.seeds[place], epochs, socket.gethostname())
            if not self._joins(trial, group):
                continue
            # One that fails at once counts too, or a budget would never end.
            spent = sum(max(t.epochs, t.state == FAILED) for t in trials)
            is_within = epochs + spent <= (settings.epochs or math.inf)
            return trial if is_within else None
        return None

    def _point(self, index: int, trials: Sequence[Trial]) -> Point | None:
        search, settings = self.search, self.search.settings
        if settings.method == "grid":
            return search.grid[index]
        if settings.method == "random":
            while len(self._drawn) <= index and (point := next(self._draws, None)):
                self._drawn.append(point)
            return self._drawn[index] if index < len(self._drawn) else None
        found = standings(trials, len(search.seeds))
        return sampling.suggest(search.axes, settings, found, index)

    def _remove_beaten(self) -> None:
        """Removes the checkpoints of all trials that have ended, but for those of the best."""
        for standing in ranked(self.standings())[1:]:
            for trial in standing.trials if standing.state != RUNNING else ():
                checkpoints = self.folder(trial) / folders.CHECKPOINTS
                shutil.rmtree(checkpoints, ignore_errors=True)

"""Points by TPE and CMA-ES, and prunings, as functions of what became of the trials so far.

Optuna's own studies live as long as a call: what it knows is told to it anew, from the documents of
the search. So there is one storage, and nothing of it depends on a version of Optuna.
"""

import functools
import importlib.util
import math
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.search.space import Axis, Point, draw, label
from resnet_jax.search.storage import missing_extra
from resnet_jax.search.trials import DONE, FAILED, PRUNED, Standing

_PACKAGES = {"tpe": "optuna", "cma-es": "cmaes", "median": "optuna", "hyperband": "optuna"}


def check_installed(settings: ConfigDict) -> None:
    """Refuses methods and pruners whose packages are missing.

    Raises:
      UserError: with the line that installs them.
    """
    for field in ("method", "pruner"):
        name = _PACKAGES.get(settings[field])
        if name and not is_installed(name):
            raise missing_extra(f"search.{field}={settings[field]!r}")


def is_installed(name: str) -> bool:
    """Returns whether there is a package of that name."""
    return importlib.util.find_spec(name) is not None


def suggest(
    axes: Sequence[Axis], settings: ConfigDict, found: Sequence[Standing], index: int
) -> Point:
    """Returns the next point, a function of what became of those before and of its number."""
    seed = settings.seed + index
    if settings.method == "cma-es":
        return draw(axes, settings.seed, index, _evolved(axes, seed, found))
    import optuna

    study, _ = _study(axes, settings, found)
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return _point(study.ask(), axes)


def _evolved(axes: Sequence[Axis], seed: int, found: Sequence[Standing]) -> Point:
    """Returns values of the ranges without conditions by CMA-ES (Hansen 2016)."""
    import cmaes

    ranges = [axis for axis in axes if not (axis.values or axis.when)]
    center, bounds = np.full(len(ranges), 0.5), np.tile([0.0, 1.0], (len(ranges), 1))
    evolution = cmaes.CMA(mean=center, sigma=1 / 6, bounds=bounds, seed=seed)
    known = [
        (
            np.array([axis.share(s.point[axis.path]) for axis in ranges]),
            -(s.mean() or 0.0) if s.state == DONE else 0.0,
        )
        for s in found
        if s.state in (DONE, FAILED)
    ]
    size = evolution.population_size
    for first in range(0, len(known) - size + 1, size):
        evolution.tell(known[first : first + size])
    drawn = evolution.ask()
    return {axis.path: axis.at(float(share)) for axis, share in zip(ranges, drawn, strict=True)}


def is_pruned(
    axes: Sequence[Axis], settings: ConfigDict, found: Sequence[Standing], number: int
) -> bool:
    """Returns whether the pruner gives up the trial of a number, by the curves so far."""
    _, trials = _study(axes, settings, found, asked=number)
    return bool(trials[number].should_prune())


def importances(
    axes: Sequence[Axis], settings: ConfigDict, found: Sequence[Standing]
) -> dict[str, float]:
    """Returns how much each field matters to the score (PED-ANOVA, Watanabe et al. 2023).

    It is empty without Optuna, with few points, and where all score alike.
    """
    done = [standing for standing in found if standing.state == DONE]
    alike = len({standing.mean() for standing in done}) < 2
    if not is_installed("optuna") or len(done) < 4 or alike:
        return {}
    import optuna

    study, _ = _study(axes, settings, done)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings(action="ignore"):
        found_shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    varying = {axis.path for axis in axes if axis.varies}
    return {path: share for path, share in found_shares.items() if path in varying}


def write_journal(
    path: pathlib.Path, axes: Sequence[Axis], settings: ConfigDict, found: Sequence[Standing]
) -> None:
    """Writes all trials as a study for optuna-dashboard, a view that nothing reads back."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    new = path.with_name(f"{path.name}.tmp")
    for left in (new, new.with_name(f"{new.name}.lock")):  # by a worker that was killed here
        left.unlink(missing_ok=True)
    with warnings.catch_warnings(action="ignore"):
        memory = optuna.storages.InMemoryStorage()
        study, _ = _study(axes, settings, found, memory)
        journal = optuna.storages.JournalStorage(JournalFileBackend(str(new)))
        optuna.copy_study(from_study_name=study.study_name, from_storage=memory, to_storage=journal)
    new.replace(path)


def _study(
    axes: Sequence[Axis],
    settings: ConfigDict,
    found: Sequence[Standing],
    storage: Any = None,
    asked: int | None = None,
) -> tuple[Any, dict[int, Any]]:
    """Returns a study that was told all that is known, and its trials by number.

    The last score of the trial `asked` is yet to be judged.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    epochs = math.ceil(max((1.0, *(standing.trials[0].epochs for standing in found))))
    pruners: dict[str, Any] = {
        "median": optuna.pruners.MedianPruner,
        "hyperband": functools.partial(optuna.pruners.HyperbandPruner, max_resource=epochs),
    }
    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.RandomSampler(settings.seed),  # every point is given
        pruner=pruners.get(settings.pruner, optuna.pruners.NopPruner)(),
        study_name="search",  # by which hyperband sorts trials too
        direction="maximize",
    )
    trials = {}
    for standing in found:
        study.enqueue_trial({path: label(value) for path, value in standing.point.items()})
        trial = trials[standing.trials[0].number] = study.ask()
        _point(trial, axes)
        curve = standing.trials[0].curve
        for place, (epoch, score) in enumerate(curve, 1):
            trial.report(score, int(epoch))
            is_asked = standing.trials[0].number == asked and place == len(curve)
            if settings.pruner == "hyperband" and not is_asked:
                trial.should_prune()  # it keeps the scores that it was asked about
        states = optuna.trial.TrialState
        if standing.state == DONE:
            study.tell(trial, standing.mean())
        elif standing.state in (PRUNED, FAILED):
            # TPE keeps clear of what was pruned, and forgets what failed.
            is_failed = standing.state == FAILED and storage is not None  # to be shown
            study.tell(trial, state=states.FAIL if is_failed else states.PRUNED)
    return study, trials


def _point(trial: Any, axes: Sequence[Axis]) -> Point:
    point: Point = {}
    for axis in axes:
        if not axis.is_active(point):
            continue
        if axis.values:
            labels = {label(value): value for value in axis.values}
            point[axis.path] = labels[trial.suggest_categorical(axis.path, list(labels))]
        else:
            suggested = trial.suggest_int if axis.is_whole else trial.suggest_float
            point[axis.path] = suggested(axis.path, axis.low, axis.high, log=axis.log)
    return point

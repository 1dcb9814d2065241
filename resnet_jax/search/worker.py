"""A worker of a search: it trains trials, alone or side by side, each in the folder of a run."""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TextIO

import jax
from ml_collections import ConfigDict

from resnet_jax.config.load import validate
from resnet_jax.data.datasets import Opened
from resnet_jax.data.registry import open_dataset
from resnet_jax.data.streams import is_resident
from resnet_jax.errors import Interrupted, TrainingFailed, UserError, pip_line
from resnet_jax.inference.evaluate import evaluate_run
from resnet_jax.platform import compute_dtype, memory_errors
from resnet_jax.runs import folder as folders
from resnet_jax.runs import records
from resnet_jax.runs.terminal import Board, Row, Terminal
from resnet_jax.search.plots import write_plots
from resnet_jax.search.ranking import progress_lines, write_ranking
from resnet_jax.search.settings import Search
from resnet_jax.search.space import configured
from resnet_jax.search.study import Study
from resnet_jax.search.trials import DONE, FAILED, PRUNED, RUNNING, Trial, ranked
from resnet_jax.training.devices import Devices
from resnet_jax.training.loop import Signals, training
from resnet_jax.training.side_by_side import Training, train_side_by_side
from resnet_jax.training.task import check_memory, create_task

_POLL_SECONDS = 1.0


def run_search(config: ConfigDict, workdir: str, signals: Signals | None = None) -> None:
    """Trains what is left of a search, together with other workers, and ranks all of it.

    Any number of processes may run the same search at once; one that was killed is taken over from
    its last checkpoint, by the others or by the same command.

    Args:
      config: a search config whose base is a config; see `resnet_jax.config.default_search`.
      workdir: the folder of the search.
      signals: see `resnet_jax.training.loop.train_and_evaluate`.

    Raises:
      UserError: if config, folder or storage can't be used, or every trial failed.
      Interrupted: if a signal arrived; the trials in hand were saved.
    """
    search, folder = Search.of(config), pathlib.Path(workdir)
    folders.check_apart(folder, search.base.data.name)
    with contextlib.ExitStack() as stack:
        study = stack.enter_context(contextlib.closing(Study(search, folder)))
        board = stack.enter_context(contextlib.closing(Board()))
        received = stack.enter_context(signals or contextlib.nullcontext(()))
        while True:
            trials = study.next()
            if trials:
                _run(study, trials, board, received)
            elif any(other.state == RUNNING for other in study.trials()):
                board.show(lambda: _progress(study))
                time.sleep(_POLL_SECONDS)  # a worker may die, and its trial be left to this one
            else:
                break
            if received:
                raise Interrupted("stopped between two trials", received[0])
        board.close()
        with study.locked():  # workers may end at the same moment
            try:
                _score_winner(study, board)
            finally:  # points are ranked, though none was completed or test images can't be read
                found = study.standings()
                ranking = write_ranking(folder, search, found)
            board.note(ranking)
            plots = write_plots(folder, search.axes, search.settings, found)
        missing = f"need the extra report: {pip_line('report')}"
        board.note(f"plots: {', '.join(plots) or missing}")


class _Pruned(Exception):
    """The pruner gave a trial up."""


class _Output(Terminal):
    """The terminal of a trial, a file of its folder; tells of each score."""

    def __init__(self, split: str, stream: TextIO, scored: Callable[[Row], None]) -> None:
        super().__init__(split, stream)
        self._scored = scored

    def row(self, row: Row) -> None:
        """Prints a row, and tells of the score in it."""
        super().row(row)
        if "score" in row:
            self._scored(row)


def _run(study: Study, trials: Sequence[Trial], board: Board, received: Sequence[int]) -> None:
    """Trains trials side by side, or goes on with them."""
    configs = [configured(study.search.base, trial.point, seed=trial.seed) for trial in trials]
    images = _shared_images(configs[0], board) if len(trials) > 1 else None
    told: list[int] = []  # signals: a group hears of them when all wait, so that all stop at once
    heard = received if images is None else told
    group = [
        _trial(study, trial, config, images, board, heard)
        for trial, config in zip(trials, configs, strict=True)
    ]
    with memory_errors("lower search.parallel_trials"):
        train_side_by_side(group, lambda: told.extend(received[len(told) :]))


def _shared_images(config: ConfigDict, board: Board) -> Opened | None:
    """Returns the images of all trials of a group, or refuses such as each has its own of."""
    try:
        opened = open_dataset(config.data)
    except UserError:  # each trial fails by it
        return None
    if config.init.cached_stage or not is_resident(opened.info, config.data):
        raise UserError(
            "config field search.parallel_trials needs images that trials share on the device, and "
            "these stream, or are features of init.cached_stage; set it to 1"
        )
    return opened.load(board.note, None).opened()


def _trial(
    study: Study,
    trial: Trial,
    config: ConfigDict,
    images: Opened | None,
    board: Board,
    received: Sequence[int],
) -> Training[None]:
    """Trains a trial and records what became of it."""

    def scored(row: Row) -> None:
        if row["step"] * row["num_epochs"] % (row["num_steps"] or 1):
            return  # within an epoch: the pruner would compare it with whole ones of others
        trial.curve = [pair for pair in trial.curve if pair[0] < row["epoch"]]
        trial.curve.append([row["epoch"], row["score"]])
        study.write(trial)
        board.show(lambda: _progress(study))
        if row["step"] < row["num_steps"] and study.is_beaten(trial):
            raise _Pruned

    varying = {axis.path for axis in study.search.axes if axis.varies}
    values = [f"{path}={value}" for path, value in trial.point.items() if path in varying]
    board.note(f"trial {trial.number}: {', '.join([*values, f'seed={trial.seed}'])}")
    board.show(lambda: _progress(study))
    folder, start = study.folder(trial), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as stream:
        output = _Output(config.evaluate.split, stream, scored)
        base = study.search.base
        trial.state, trial.why = yield from _train(config, base, folder, output, received, images)
    _complete(trial, config, folder, study.search.settings.metric)
    if trial.state == FAILED:  # before its first record too: a budget of hours has to end
        trial.seconds = max(trial.seconds, time.monotonic() - start)
    if trial.score is None and trial.state == DONE:
        raise UserError(f"{folder / folders.METRICS} is damaged; remove that folder's checkpoints")
    study.end(trial)
    score = "" if trial.score is None else f", {trial.score:.2f} %"
    board.note(f"trial {trial.number} {trial.state}{score}{trial.why and ': '}{trial.why}")
    study.write_view()


def _train(
    config: ConfigDict,
    base: ConfigDict,
    folder: pathlib.Path,
    output: Terminal,
    received: Sequence[int],
    images: Opened | None,
) -> Training[tuple[str, str]]:
    """Trains a trial; returns its state, and why it failed."""
    try:
        opened = _suitable(config, images)
    except UserError as error:
        _suitable(base, None)  # refused too: no fault of the point, whose trial is given back
        return FAILED, str(error)
    try:
        # What a group has too little memory for, each of its trials may have enough for.
        with memory_errors() if images is None else contextlib.nullcontext():
            signals = contextlib.nullcontext(received)
            yield from training(config, folder, opened, signals, output)
    except _Pruned:
        return PRUNED, ""
    except TrainingFailed as error:
        return FAILED, str(error)
    return DONE, ""


def _suitable(config: ConfigDict, images: Opened | None) -> Opened:
    """Returns the dataset of a config, or refuses what data or devices don't suit."""
    config = validate(config)
    config.model.dtype = compute_dtype(config.model.dtype)
    opened = images or open_dataset(config.data)
    Devices(jax.devices()).check_batch_size(config.batch_size)
    check_memory(create_task(config, opened.info))
    return opened


def _complete(trial: Trial, config: ConfigDict, folder: pathlib.Path, metric: str) -> None:
    """Fills in what the records of a trial's run say."""
    found, _ = records.read(folder / folders.METRICS)
    trial.seconds, trial.epochs = (
        (found[-1]["seconds"], found[-1]["epoch"]) if found else (0.0, 0.0)
    )
    scores = [r for r in found if r["kind"] == "score" and r["split"] == config.evaluate.split]
    if not scores:
        return
    best, last = max(scores, key=lambda r: r["accuracy"]), scores[-1]
    trial.score = (last if metric == "final" else best)["accuracy"]
    curve = {math.ceil(record["epoch"]): record["accuracy"] for record in scores}
    trial.curve = [[epoch, score] for epoch, score in curve.items()]
    trial.train_accuracy = found[-1].get("train_accuracy")
    if config.evaluate.split == "test":
        trial.test_accuracy = trial.score


def _score_winner(study: Study, board: Board) -> None:
    """Scores the winner, and nothing else, on the test set, if that was not done before.

    Raises:
      UserError: if there is no winner.
    """
    standing = next(iter(ranked(study.standings())), None)
    if standing is None or standing.state == RUNNING:
        raise UserError("the budget of the search is too small for one point with all seeds")
    if standing.state != DONE:
        why = next((trial.why for trial in standing.trials if trial.why), "they were pruned")
        raise UserError(f"no trial was completed; the first one: {why}")
    which = "newest" if study.search.settings.metric == "final" else "best"
    for trial in standing.trials:
        folder = study.folder(trial)
        if trial.test_accuracy is not None:
            continue
        found, _ = records.read(folder / folders.METRICS)
        if not found or found[-1]["kind"] != "final":  # none, or what a dead worker left of it
            board.note(f"the winner, trial {trial.number}, is on {trial.host}: scored there")
            continue
        trial.test_accuracy = evaluate_run(folder, which)["accuracy"]
        study.write(trial)


def _progress(study: Study) -> list[str]:
    return progress_lines(study.standings(), study.runs_left())

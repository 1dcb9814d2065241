"""Records what a run does: into its history, to TensorBoard, and on the terminal."""

import collections
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.runs import records as metrics
from resnet_jax.runs import folder as workdir
from resnet_jax.runs.checkpoints import Run
from resnet_jax.config.load import selects
from resnet_jax.runs.records import History, Record
from resnet_jax.training.state import Sums
from resnet_jax.runs.tensorboard import Events
from resnet_jax.runs.terminal import Row, Terminal
from resnet_jax.trees import named_leaves


class Recorder:
    """The records of one start of a run.

    Attributes:
      history: all records of the run.
      events: the TensorBoard writer; None if the config turns it off.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: ConfigDict,
        steps_per_epoch: int,
        step: int,
        terminal: Terminal,
        saved: Sequence[Record] | None = None,
    ) -> None:
        """Opens the files of a run.

        Args:
          folder: the folder of the run.
          config: its config.
          steps_per_epoch: number of training steps in an epoch.
          step: number of steps taken so far.
          terminal: where rows are shown.
          saved: the records that the checkpoint of that step holds; None: it has none.
        """
        note = terminal.note
        self.history = History(folder / workdir.METRICS, step, saved, note)
        self.events = None
        if config.log.tensorboard:
            self.events = Events(folder / workdir.EVENTS, step, self.history.records, note)
        self._config = config
        self._split = config.evaluate.split
        self._steps_per_epoch = steps_per_epoch
        self._terminal = terminal
        self._sums: Sums | None = None
        self._clock = _Clock(step, self.history.seconds())

    def progress(self, step: int, sums: Sums) -> None:
        """Takes note of a dispatch, and shows the one before.

        Waiting for the one before keeps the devices busy with one dispatch while a second one
        waits, and no more: so signals and the display keep up.

        Args:
          step: number of steps taken.
          sums: sums over the epoch so far, perhaps not computed yet.
        """
        if self._sums is not None:
            jax.block_until_ready(self._sums)
            if self._terminal.is_live:
                self._terminal.progress(self._row(step, self._sums.means()))
        self._sums = sums
        self._clock.tick(step)

    def training(self, step: int, sums: Sums, learning_rate: float, scored: bool) -> None:
        """Records loss and accuracy over the epoch so far.

        Args:
          step: number of steps taken.
          sums: sums over the training images of the epoch so far.
          learning_rate: that of the last step.
          scored: whether the model is scored here too, which shows these numbers as well.
        """
        means = sums.means()
        skipped = {"skipped_steps": int(sums.skipped)} if self._config.on_nan == "skip" else {}
        images_per_second = self._clock.steps_per_second() * self._config.batch_size
        self._add(
            {
                "kind": "train",
                "step": step,
                "epoch": step / self._steps_per_epoch,
                **means,
                **skipped,
                "learning_rate": learning_rate,
                "images_per_second": images_per_second,
                "seconds": self._clock.seconds(),
            }
        )
        if not scored and not (self._terminal.is_live and step % self._steps_per_epoch):
            self._terminal.row(self._row(step, means))

    def score(self, step: int, means: dict[str, float], train_sums: Sums, seconds: float) -> Record:
        """Records and returns loss and accuracy on the split that is scored.

        Args:
          step: number of steps taken.
          means: mean loss and accuracy over the split.
          train_sums: sums over the training images of the epoch so far.
          seconds: time that scoring took.
        """
        self._clock.scored(seconds)
        record = self._add(
            {
                "kind": "score",
                "split": self._split,
                "step": step,
                "epoch": step / self._steps_per_epoch,
                **means,
                "seconds": self._clock.seconds(),
            }
        )
        row = self._row(step, train_sums.means(), means["accuracy"], self.is_best(step))
        self._terminal.row(row)
        return record

    def final(self, record: Record) -> Record:
        """Records and returns the results that close the run."""
        return self.history.finish(record | {"seconds": self._clock.seconds()})

    def run(self) -> Run:
        """Returns what a checkpoint holds beside the state."""
        return {"config": self._config.to_dict(), "records": list(self.history.records)}

    def best(self) -> Record | None:
        """Returns the record of the best score so far; None before the first one."""
        return metrics.best(self.history.records, self._split)

    def is_best(self, step: int) -> bool:
        """Returns whether the best score so far is that of a step."""
        best = self.best()
        return best is not None and best["step"] == step

    def best_step(self) -> int | None:
        """Returns the step whose checkpoint is the best one; None if there is none to choose."""
        best = self.best()
        return best["step"] if best and selects(self._config) else None

    def accuracies(self) -> list[float]:
        """Returns the accuracies on the split that is scored, oldest first, percent."""
        return [record["accuracy"] for record in metrics.scores(self.history.records, self._split)]

    def exhausted(self) -> bool:
        """Returns whether the last `patience` scores brought no new best."""
        patience = self._config.evaluate.patience
        accuracies = self.accuracies()
        if not patience or len(accuracies) <= patience:
            return False
        return max(accuracies[-patience:]) <= max(accuracies[:-patience])

    def images(self, images: np.ndarray, step: int) -> None:
        """Shows training images in TensorBoard, uint8 `[count, height, width, channels]`."""
        if self.events is not None and len(images) > 0:
            self.events.images("train/images", images, step)

    def histograms(self, group: str, tree: Any, step: int) -> None:
        """Shows the distribution of every array of a tree in TensorBoard."""
        if self.events is None:
            return
        self.events.histograms(group, dict(named_leaves(tree)), step)

    def close(self) -> None:
        """Closes the files."""
        self.history.close()
        if self.events is not None:
            self.events.close()

    def _add(self, record: Record) -> Record:
        self.history.add(record)
        if self.events is not None:
            self.events.record(record)
        return record

    def _row(
        self,
        step: int,
        means: dict[str, float],
        score: float | None = None,
        is_best: bool = False,
    ) -> Row:
        total = self._config.num_epochs * self._steps_per_epoch
        every = self._config.evaluate.every_epochs * self._steps_per_epoch
        scores_left = (total - step) / every if every else 1
        return Row(
            epoch=-(-step // self._steps_per_epoch),
            num_epochs=self._config.num_epochs,
            step=step,
            num_steps=total,
            loss=means["loss"],
            accuracy=means["accuracy"],
            images_per_second=self._clock.steps_per_second() * self._config.batch_size,
            seconds_left=self._clock.seconds_left(total - step, scores_left),
            score=score,
            is_best=is_best,
        )


class _Clock:
    """Measures the speed of training.

    It is a median over recent dispatches, so that compilation and evaluation don't count.
    """

    def __init__(self, step: int, seconds_before: float) -> None:
        self._start = self._last = time.monotonic()
        self._seconds_before = seconds_before
        self._step = step
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=100)
        self._score_seconds = 0.0

    def tick(self, step: int) -> None:
        """Takes note of the time at which a dispatch was made."""
        now = time.monotonic()
        self._step_seconds.append((now - self._last) / (step - self._step))
        self._last, self._step = now, step

    def scored(self, seconds: float) -> None:
        """Takes note of the time that a score took."""
        self._score_seconds = seconds
        self._last = time.monotonic()

    def seconds(self) -> float:
        """Returns the time that all starts of the run took so far."""
        return self._seconds_before + time.monotonic() - self._start

    def steps_per_second(self) -> float:
        """Returns the speed of training; 0 if it is not known yet."""
        return 1 / statistics.median(self._step_seconds) if self._step_seconds else 0.0

    def seconds_left(self, steps: int, scores: float) -> float | None:
        """Returns the time that steps and scores will take; None if it is not known yet."""
        speed = self.steps_per_second()
        return steps / speed + scores * self._score_seconds if speed else None

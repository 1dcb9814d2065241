"""Records what a run does: into its history, to TensorBoard and its like, and on the terminal."""

import collections
import contextlib
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from resnet_jax import hosts
from resnet_jax.config.load import selects
from resnet_jax.runs import folder as folder_lib
from resnet_jax.runs import records
from resnet_jax.runs.checkpoints import Run
from resnet_jax.runs.records import History, Record, Score
from resnet_jax.runs.tensorboard import Events
from resnet_jax.runs.terminal import Terminal
from resnet_jax.runs.trackers import View, open_trackers

Means = Mapping[str, float]  # "loss", "accuracy" in percent


class Recorder:
    """The records of one start of a run; all that it takes are plain numbers.

    Attributes:
      scores: step and accuracy, in percent, of every score on the split `evaluate.split`.
      events: what TensorBoard shows; None: nothing, or another process writes it.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: ConfigDict,
        info: Mapping[str, Any],
        steps_per_epoch: int,
        images_per_step: float,
        step: int,
        terminal: Terminal,
        saved: Run | None = None,
    ) -> None:
        """Opens the files of a run.

        Args:
          folder: the folder of the run.
          config: its config.
          info: what is known of its data set, as JSON has it.
          steps_per_epoch: number of training steps in an epoch.
          images_per_step: mean number of images in one.
          step: number of steps taken so far.
          terminal: where rows are shown.
          saved: what the checkpoint that training resumes from holds beside its state; None:
            training starts anew, and what was recorded before is dropped.
        """
        self.scores: list[Score] = (
            [(s, accuracy) for s, accuracy in saved["scores"]] if saved else []
        )
        self._config, self._info, self._terminal = config, info, terminal
        last, count = (step, saved["num_records"]) if saved else (-1, 0)
        is_longer = saved is not None and saved["config"].get("num_epochs") != config.num_epochs
        # One that its patience ended does not go on.
        reopen = is_longer and not self.exhausted()
        self._history = History(folder / folder_lib.METRICS, last, count, terminal.note, reopen)
        self.events: Events | None = None
        self._trackers: list[View] = []
        if hosts.is_first():
            if config.log.tensorboard:
                self.events = Events(folder / folder_lib.EVENTS, last + 1)
            self._trackers = open_trackers(folder, config)
        self._steps_per_epoch, self._images_per_step = steps_per_epoch, images_per_step
        seconds = self._history.records[-1]["seconds"] if self._history.records else 0.0
        self._clock = _Clock(step, seconds)

    @property
    def closing(self) -> Record | None:
        """The closing record of a run that is finished; None: it is not."""
        last = self._history.records[-1:]
        return last[0] if last and last[0]["kind"] == "final" else None

    def progress(self, step: int, means: Callable[[], Means]) -> None:
        """Takes note of a dispatch.

        Args:
          step: number of steps taken.
          means: returns loss and accuracy over the epoch so far; called only if a row is shown.
        """
        self._clock.tick(step)
        if self._terminal.is_live:
            self._terminal.epoch(self._row(step, means()))

    def training(self, step: int, means: Means, learning_rate: float, scored: bool = False) -> None:
        """Records loss and accuracy over the epoch so far.

        Args:
          step: number of steps taken.
          means: means over the training images of the epoch so far, and what else is recorded.
          learning_rate: that of the last step.
          scored: whether the model is scored here too, which shows these numbers as well.
        """
        row = self._row(step, means)
        speed = row["images_per_second"]
        self._add("train", step, means, learning_rate=learning_rate, images_per_second=speed)
        if not scored and not (self._terminal.is_live and step % self._steps_per_epoch):
            self._terminal.row(row)

    def score(self, step: int, means: Means, train_means: Means, seconds: float) -> Record:
        """Records and returns loss and accuracy on the split that is scored.

        Args:
          step: number of steps taken.
          means: means over the split.
          train_means: means over the training images of the epoch so far.
          seconds: time that scoring took.
        """
        self._clock.scored(seconds)
        self.scores.append((step, means["accuracy"]))
        score = {"score": means["accuracy"], "is_best": self.best() == self.scores[-1]}
        record = self._add("score", step, means, split=self._config.evaluate.split)
        self._terminal.row(self._row(step, train_means) | score)
        return record

    def finish(self, step: int, results: Mapping[str, float | None]) -> Record:
        """Records and returns the results that close the run, which has been scored.

        Args:
          step: number of steps taken.
          results: "test_loss", "test_accuracy", "best_test_accuracy" and "train_accuracy",
            accuracies in percent; None: not known.
        """
        best_step, best_score = max(self.scores, key=lambda score: score[1])
        best_epoch = best_step / self._steps_per_epoch
        return self._add("final", step, results, best_epoch=best_epoch, best_score=best_score)

    def run(self) -> Run:
        """Returns what a checkpoint holds beside the state."""
        return {
            "config": self._config.to_dict(),
            "dataset": dict(self._info),
            "scores": [list(score) for score in self.scores],
            "num_records": len(self._history.records),
        }

    def best(self) -> Score | None:
        """Returns step and accuracy of the best score so far; None before the first one."""
        return records.best(self.scores)

    def best_step(self) -> int | None:
        """Returns the step whose checkpoint is the best one; None if there is none to choose."""
        best = self.best()
        return best[0] if best and selects(self._config) else None

    def test_score(self, step: int) -> Record | None:
        """Returns the record of a score on the test set at a step; None if there is none."""
        wanted = {"kind": "score", "split": "test", "step": step}
        found = (r for r in self._history.records if wanted.items() <= r.items())
        return next(found, None)

    def exhausted(self) -> bool:
        """Returns whether the last `patience` scores brought no new best."""
        patience, best = self._config.evaluate.patience, self.best()
        if not patience or best is None:
            return False
        return len(self.scores) - self.scores.index(best) > patience

    def close(self) -> None:
        """Closes the files."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._history.close)
            if self.events:
                stack.callback(self.events.close)
            self._track(lambda tracker: tracker.close(self.closing is not None))

    def _add(self, kind: str, step: int, numbers: Mapping[str, Any], **more: Any) -> Record:
        place = {"kind": kind, "step": step, "epoch": step / self._steps_per_epoch}
        record = self._history.add({**place, **numbers, **more, "seconds": self._clock.seconds()})
        if self.events:
            self.events.record(record)
        self._track(lambda tracker: tracker.record(record))
        return record

    def _track(self, show: Callable[[View], None]) -> None:
        """Shows something on all trackers; one whose server is lost, say, is given up."""
        for tracker in [*self._trackers]:
            try:
                show(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                what = f"{type(tracker).__name__} shows no more of this run"
                self._terminal.note(f"{what}: {' '.join(str(error).split())[:200]}")

    def _row(self, step: int, means: Means) -> dict[str, Any]:
        num_steps = self._config.num_epochs * self._steps_per_epoch
        every = self._config.evaluate.every_epochs * self._steps_per_epoch
        scores_left = (num_steps - step) / every if every else 1
        return {
            **means,
            "step": step,
            "num_steps": num_steps,
            "epoch": -(-step // self._steps_per_epoch),
            "num_epochs": self._config.num_epochs,
            "images_per_second": self._clock.steps_per_second() * self._images_per_step,
            "seconds_left": self._clock.seconds_left(num_steps - step, scores_left),
        }


class _Clock:
    """Measures the speed of training.

    It is a median over recent dispatches, so that compilation and evaluation don't count.
    """

    def __init__(self, step: int, seconds_before: float) -> None:
        self._last, self._step = time.monotonic(), step
        self._start = self._last - seconds_before
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=100)
        self._score_seconds = 0.0

    def tick(self, step: int) -> None:
        """Takes note of the time at which a dispatch was made."""
        now = time.monotonic()
        self._step_seconds.append((now - self._last) / (step - self._step))
        self._last, self._step = now, step

    def scored(self, seconds: float) -> None:
        """Takes note of the time that a score took."""
        self._last, self._score_seconds = time.monotonic(), seconds

    def seconds(self) -> float:
        """Returns the time that all starts of the run took so far."""
        return time.monotonic() - self._start

    def steps_per_second(self) -> float:
        """Returns the speed of training; 0 if it is not known yet."""
        return 1 / statistics.median(self._step_seconds) if self._step_seconds else 0.0

    def seconds_left(self, steps: int, scores: float) -> float | None:
        """Returns the time that steps and scores will take; None if it is not known yet."""
        speed = self.steps_per_second()
        return steps / speed + scores * self._score_seconds if speed else None

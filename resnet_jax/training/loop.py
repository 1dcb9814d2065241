"""The training loop."""

import contextlib
import functools
import math
import os
import pathlib
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.config import load as config_lib
from resnet_jax.data.sources import Dataset
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.platform import make_deterministic
from resnet_jax.runs import folder as workdir_lib
from resnet_jax.runs.checkpoints import Checkpoints, DamagedError
from resnet_jax.runs.recorder import Recorder
from resnet_jax.runs.records import Record
from resnet_jax.runs.terminal import Terminal, duration
from resnet_jax.training.faults import Watch, not_finite
from resnet_jax.training.schedules import plateau_factor
from resnet_jax.training.state import TrainState
from resnet_jax.training.task import Task, check, check_weights
from resnet_jax.trees import named_leaves


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike[str], dataset: Dataset | None = None
) -> tuple[Record, TrainState]:
    """Trains a model, or goes on training it, and scores it on the test set.

    A run whose folder holds the beginning of the same run resumes, and ends with the same bits as
    one that was never interrupted.

    Args:
      config: what to train and how; see `resnet_jax.config`.
      workdir: the folder of the run.
      dataset: the images; None: those that the config's group `data` names.

    Returns:
      The closing record, with "test_accuracy" and "best_test_accuracy" in percent among others,
      and the state after the last step.

    Raises:
      UserError: if config, data or folder can't be used, or the loss is not finite.
      Interrupted: if SIGINT or SIGTERM arrived; the state was saved.
    """
    config = config_lib.validate(config)
    if config.deterministic:
        make_deterministic()
    check(config)
    if not os.path.exists(os.path.join(workdir, workdir_lib.CHECKPOINTS)):
        check_weights(config)  # a run that resumes has them
    with contextlib.ExitStack() as stack:
        stack.enter_context(_memory_errors())
        terminal = stack.enter_context(contextlib.closing(Terminal(config.evaluate.split)))
        folder = stack.enter_context(workdir_lib.claim(workdir))
        checkpoints = Checkpoints(
            folder / workdir_lib.CHECKPOINTS, config.checkpoint.keep, terminal.note
        )
        stack.enter_context(contextlib.closing(checkpoints))
        info = {"name": config.data.source, "digest": ""}
        saved = checkpoints.run()
        workdir_lib.begin(folder, config, info, saved, terminal.note)
        task = Task.create(config, dataset, terminal.note, checkpoints.restore_newest)
        state = jax.device_put(task.state, task.steps.replicated)
        step = int(state.step)
        saved = None if saved is None else checkpoints.run(step)
        recorder = Recorder(folder, config, info, task.order.steps_per_epoch, step, terminal, saved)
        stack.enter_context(contextlib.closing(recorder))
        signals = stack.enter_context(_stop_signals())
        terminal.note(_announcement(task, step, folder))
        if step == 0:
            recorder.images(task.dataset.train_images[: config.log.images], step)
        state = _train(task, state, recorder, checkpoints, signals)
        final = recorder.closing or _finish(task, state, recorder, checkpoints)
        terminal.close()
        terminal.note(_summary(config, final, folder))
        return final, state


def _train(
    task: "Task",
    state: TrainState,
    recorder: Recorder,
    checkpoints: Checkpoints,
    signals: list[int],
) -> TrainState:
    """Takes all steps that are left, and attends to each step's events.

    The order of the events is part of the format of a run. What a step records is on disk before
    its checkpoint is, so that a run that resumes from the checkpoint finds each record once; and a
    signal is obeyed last, when there is a checkpoint to resume from.
    """
    config, order, agenda = task.config, task.order, task.agenda
    stopped = functools.partial(_nonfinite, checkpoints=checkpoints)
    watch = Watch(config, state, checkpoints.notify, stopped)
    step, before = int(state.step), jax.tree.map(jnp.copy, state.sums)
    while step < agenda.total_steps and not recorder.exhausted():
        factor = _plateau_factor(task, recorder)
        dispatches = order.dispatches(step, agenda.next_event(step), task.steps_per_dispatch)
        for first, indices in dispatches:
            rates = task.learning_rates[first : first + len(indices)] * factor
            state, sums, faults = task.steps.train(state, task.data["train"], indices, rates)
            step = first + len(indices)
            # Waiting for the dispatch before keeps the devices busy with one while a second waits.
            recorder.progress(step, jax.block_until_ready(before).means)
            before = sums
            checkpoints.poll()
            watch.add(first, sums, faults)
            if signals:
                break
        watch.settle()
        if agenda.log_due(step):
            means = sums.means()
            if config.on_nan == "skip":
                means["skipped_steps"] = int(sums.skipped)
            recorder.training(step, means, float(rates[-1]), agenda.score_due(step))
        if agenda.score_due(step):
            _score(task, state, recorder, checkpoints)
        if agenda.epoch_ends(step) and config.log.histograms:
            _record_histograms(task, state, step, recorder)
        is_needed = recorder.best_step() == step or recorder.exhausted()
        if agenda.save_due(step) or is_needed or signals:
            if leaf := not_finite(state):
                raise stopped(f"{leaf} is not finite after step {step:,}")
            checkpoints.save(step, state, recorder.run(), recorder.best_step())
        if signals:
            checkpoints.wait()
            raise Interrupted(f"stopped after step {step:,}, which is saved", signals[0])
    checkpoints.wait()
    return state


def _plateau_factor(task: Task, recorder: Recorder) -> float:
    """Returns what the scores so far multiply the learning rate by."""
    if task.config.schedule.name != "plateau":
        return 1.0
    return plateau_factor(recorder.accuracies(), **task.config.schedule.options)


def _score(task: Task, state: TrainState, recorder: Recorder, checkpoints: Checkpoints) -> Record:
    start = time.monotonic()
    means = _means(task, state, task.config.evaluate.split, checkpoints)
    return recorder.score(int(state.step), means, state.sums.means(), time.monotonic() - start)


def _means(task: Task, state: TrainState, split: str, checkpoints: Checkpoints) -> dict[str, float]:
    """Returns mean loss and accuracy on a split, or stops a run whose loss is not finite."""
    means = task.score(state, split).means()
    if not math.isfinite(means["loss"]):
        step = int(state.step)
        raise _nonfinite(f"the {split} loss is not finite after step {step:,}", checkpoints)
    return means


def _record_histograms(task: Task, state: TrainState, step: int, recorder: Recorder) -> None:
    _, indices = next(task.order.dispatches(step - 1, step, 1))
    recorder.histograms("params", dict(named_leaves(state.params)), step)
    gradients = task.steps.gradients(state, task.data["train"], indices[0])
    recorder.histograms("gradients", dict(named_leaves(gradients)), step)


def _finish(task: Task, state: TrainState, recorder: Recorder, checkpoints: Checkpoints) -> Record:
    """Scores the last and the best state on the test set and closes the records."""
    step = int(state.step)
    last = recorder.test_score(step) or _means(task, state, "test", checkpoints)
    best, best_score = recorder.best() or (step, 0.0)
    best_test: float | None = best_score
    if task.config.evaluate.split == "val":
        best_test = last["accuracy"]
        if best != step:
            best_test = _best_test_accuracy(task, checkpoints, best)
    return recorder.finish(
        step,
        {
            "test_loss": last["loss"],
            "test_accuracy": last["accuracy"],
            "best_test_accuracy": best_test,
            "train_accuracy": state.sums.means()["accuracy"],
        },
    )


def _best_test_accuracy(task: Task, checkpoints: Checkpoints, step: int) -> float | None:
    try:
        state = checkpoints.restore(task.state, step)
    except DamagedError as error:
        checkpoints.notify(f"the best checkpoint, {step}, is damaged: {error}; it is not scored")
        return None
    state = jax.device_put(state, task.steps.replicated)
    return _means(task, state, "test", checkpoints)["accuracy"]


def _nonfinite(problem: str, checkpoints: Checkpoints) -> UserError:
    """Returns the error that stops a run before a state that is not finite is saved."""
    checkpoints.wait()
    saved = f"step {checkpoints.steps()[0]:,}" if checkpoints.steps() else "none"
    return UserError(
        f"{problem}; last good checkpoint: {saved}; lower optimizer.learning_rate, or set "
        "optimizer.gradient_clip, schedule.warmup_epochs or on_nan='skip'"
    )


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns a device's lack of memory into one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            "the device has too little memory; lower batch_size or evaluate.batch_size, or take "
            "a smaller model"
        ) from error


def _announcement(task: Task, step: int, folder: pathlib.Path) -> str:
    config, devices = task.config, jax.devices()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(task.state.params))
    counts = ", ".join(f"{len(part):,} {name}" for name, part in task.data.items())
    resumed = f", resuming after step {step:,}" if step else ""
    return "\n".join(
        [
            f"device  {len(devices)} x {devices[0].device_kind}, jax {jax.__version__}",
            f"model   {config.model.name}, {parameters:,} parameters, {config.model.dtype}",
            f"data    {task.dataset.source}: {counts} images",
            f"run     {folder}, {config.num_epochs} epochs of {task.order.steps_per_epoch:,} steps"
            f"{resumed}",
        ]
    )


def _summary(config: ConfigDict, final: Record, folder: pathlib.Path) -> str:
    accuracy = final["best_test_accuracy"]
    best = "unknown" if accuracy is None else f"{accuracy:.2f} %"
    chosen = "by the test set itself"
    if config.evaluate.split == "val":
        chosen = f"by validation, {final['best_score']:.2f} %"
    command = f"python -m resnet_jax.main --mode=eval --workdir={shlex.quote(str(folder))}"
    return "\n".join(
        [
            f"final   test accuracy {final['test_accuracy']:.2f} % after epoch {final['epoch']:g}",
            f"best    test accuracy {best} after epoch {final['best_epoch']:g}, chosen {chosen}",
            f"time    {duration(final['seconds'])} in all",
            f"again   {command}",
        ]
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yields a list that SIGINT or SIGTERM fills; a second signal ends the process at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)
        os.write(2, b"\nstopping after this step; a second signal stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

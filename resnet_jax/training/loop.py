"""The training loop."""

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import hosts
from resnet_jax.config.load import validate
from resnet_jax.data.datasets import Dataset, DatasetInfo, Examples, Opened
from resnet_jax.data.registry import open_dataset
from resnet_jax.data.streams import Stream, feed, is_resident, read_now
from resnet_jax.errors import Interrupted, UserError
from resnet_jax.platform import check_deterministic, memory_errors
from resnet_jax.randomness import Purpose
from resnet_jax.runs import folder as folders
from resnet_jax.runs.checkpoints import Checkpoints, DamagedError
from resnet_jax.runs.recorder import Recorder
from resnet_jax.runs.records import Record
from resnet_jax.runs.terminal import Terminal
from resnet_jax.training import announcements
from resnet_jax.training.devices import Devices, place_parts
from resnet_jax.training.driver import Trainer
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.faults import Watch, stopped
from resnet_jax.training.features import cache_features
from resnet_jax.training.schedules import plateau_factor
from resnet_jax.training.side_by_side import Dispatch, Training, train_side_by_side
from resnet_jax.training.start import check_same, settled_dtype, starting_point, weights
from resnet_jax.training.state import Metrics, TrainState, not_finite
from resnet_jax.training.task import Task, check_extension, check_memory, create_task
from resnet_jax.trees import named_leaves, with_leaves

Signals = contextlib.AbstractContextManager[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class _Run:
    """A task under way: its data, on the devices or streamed, its compiled functions, its folder.

    What each step takes its images from is next in `feed`.
    """

    task: Task
    devices: Devices
    data: dict[str, Examples | Stream]
    feed: Generator[Examples]
    trainer: Trainer
    evaluator: Evaluator
    recorder: Recorder
    checkpoints: Checkpoints
    terminal: Terminal


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    dataset: Dataset | None = None,
    signals: Signals | None = None,
) -> tuple[Record, TrainState]:
    """Trains a model, or goes on training it, and scores it on the test set.

    A run whose folder holds the beginning of the same run resumes, and ends with the same bits as
    one that was never interrupted. One that is finished goes on if num_epochs is larger now, where
    that does not change what came before.

    Args:
      config: what to train and how; see `resnet_jax.config`.
      workdir: the folder of the run.
      dataset: the images; None: those that the config's group `data` names.
      signals: entered while there is something to save; gives a sequence of the signals received
        since, and the run stops, saved, after the step that finds one there.

    Returns:
      The closing record, with "test_accuracy" and "best_test_accuracy" in percent among others
      (None where evaluate.score_test is False), and the state after the last step.

    Raises:
      UserError: if config, data or folder can't be used; TrainingFailed if the loss is not finite.
      Interrupted: if a signal arrived; the state was saved.
    """
    opened = dataset.opened() if dataset else None
    return train_side_by_side([training(config, workdir, opened, signals)])[0]


def training(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    opened: Opened | None = None,
    signals: Signals | None = None,
    terminal: Terminal | None = None,
) -> Training[tuple[Record, TrainState]]:
    """Yields each dispatch, and is sent what came of it; see `train_and_evaluate`."""
    config = validate(config)
    config.model.dtype = settled_dtype(config.model.dtype, workdir)
    if config.deterministic:
        check_deterministic()
    if opened is None:
        folders.check_apart(workdir, config.data.name)
        opened = open_dataset(config.data)
    task = create_task(config, opened.info)
    check_memory(task)
    config = task.config
    images = _where_images_are(config, opened.info)
    check_same(config, opened.info.digest, images)
    devices = Devices(jax.devices())
    devices.check_batch_size(config.batch_size)
    with contextlib.ExitStack() as stack:
        terminal = terminal or Terminal(config.evaluate.split)
        if not hosts.is_first():  # it has a folder and a terminal for show
            workdir = stack.enter_context(tempfile.TemporaryDirectory())
            terminal = Terminal(stream=stack.enter_context(open(os.devnull, "w")))
        stack.enter_context(contextlib.closing(terminal))
        is_new = not os.path.exists(os.path.join(workdir, folders.CHECKPOINTS))
        is_new &= hosts.is_first()
        if is_new and config.init.weights and not os.path.isdir(config.init.weights):
            weights(config, terminal)  # refused before all else
        folder = stack.enter_context(folders.claim(workdir))
        checkpoints = Checkpoints(
            folder / folders.CHECKPOINTS, config.checkpoint.keep, terminal.note
        )
        stack.enter_context(contextlib.closing(checkpoints))
        info, newest = dataclasses.asdict(opened.info), hosts.share(checkpoints.newest_run)
        if newest is not None:
            check_extension(task, newest["config"].get("num_epochs"), dict(newest["scores"]))
        folders.begin(folder, config, info, newest, terminal.note, images)
        dataset = opened.load(terminal.note, terminal.bar)
        state, saved = starting_point(task, folder, checkpoints, terminal)
        sizes = task.order.steps_per_epoch, task.order.images_per_step
        recorder = Recorder(folder, config, info, *sizes, int(state.step), terminal, saved)
        stack.enter_context(contextlib.closing(recorder))
        terminal.note(announcements.opening(task, dataset.source, images, state, folder))
        state = devices.put(state)
        run = _begin(task, devices, dataset, state, recorder, checkpoints, terminal)
        del dataset  # what is trained on is copied
        stopping = signals or contextlib.nullcontext(())
        with contextlib.closing(run.feed), stopping as received:
            state = yield from _train(run, state, received)
        final = recorder.closing or _finish(run, state)
        terminal.close()
        terminal.note(announcements.closing(config, final, folder))
        return final, state


def _where_images_are(config: ConfigDict, info: DatasetInfo) -> str:
    if is_resident(info, config.data):
        return "resident"
    if config.evaluate.augment:
        raise UserError(
            "config field evaluate.augment needs images that stay on the device, and these stream; "
            "set it to False, or raise data.resident_bytes"
        )
    return "streamed"


def _begin(
    task: Task,
    devices: Devices,
    dataset: Dataset,
    state: TrainState,
    recorder: Recorder,
    checkpoints: Checkpoints,
    terminal: Terminal,
) -> _Run:
    """Puts the data where it stays, as the features of the frozen stage if the config says so."""
    config, network, stage = task.config, task.network, task.config.init.cached_stage
    data = place_parts(dataset, config, devices)
    images = data["train"]
    if stage:
        terminal.note(f"applying the frozen stages, up to {stage}, to all images")
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        with memory_errors("lower data.image_size, or set init.cached_stage=0"):
            data = {
                name: cache_features(network, variables, part, devices, terminal.bar)
                for name, part in data.items()
            }
        network = dataclasses.replace(network, stage=stage)
    trainer = Trainer(network, task.optimizer, devices, task.agenda.steps_per_epoch, data["train"])
    start, stop = int(state.step), task.agenda.total_steps
    if start == 0 and config.log.tensorboard and config.log.images:
        first = task.order.epoch(0)[: config.batch_size]
        shown = trainer.augment(read_now(images, first, 0), first, 0, 0, Purpose.AUGMENT).images
        if recorder.events:
            recorder.events.images("train/images", np.asarray(shown[: config.log.images]), 0)
    evaluator, steps = Evaluator(network, devices), feed(data["train"], task.order, start, stop)
    return _Run(task, devices, data, steps, trainer, evaluator, recorder, checkpoints, terminal)


def _train(run: _Run, state: TrainState, signals: Sequence[int]) -> Training[TrainState]:
    """Takes all steps that are left, and attends to each step's events.

    The order of the events is part of the format of a run. What a step records is on disk before
    its checkpoint is, so that a run that resumes from the checkpoint finds each record once; and a
    signal is obeyed last, when there is a checkpoint to resume from.
    """
    task, recorder, checkpoints = run.task, run.recorder, run.checkpoints
    config, agenda, stop = task.config, task.agenda, hosts.Stop(signals)
    watch = Watch(
        config, int(state.skipped), checkpoints.notify, lambda why: _failed(run, why, state)
    )
    step, metrics = int(state.step), Metrics.empty()
    while step < agenda.total_steps and not recorder.exhausted():
        epoch, position = divmod(step, agenda.steps_per_epoch)
        if position == 0:
            state = state.replace(metrics=run.devices.put(Metrics.empty()))
        rates = task.learning_rates * _plateau_factor(run)
        size = run.trainer.steps_per_dispatch
        for first, indices in task.order.dispatches(step, agenda.next_event(step), size):
            step, before = first + len(indices), metrics
            numbers = rates[first:step], task.hyperparameters, config.seed
            call = state, next(run.feed), indices, epoch, *numbers
            state, metrics, told = yield Dispatch(first, run.trainer, call)
            checkpoints.poll()
            # Waiting for the dispatch before keeps the devices busy, and signals obeyed.
            watch.add(first, len(indices), told)
            recorder.progress(step, before.means)
            if stop.wanted():
                break
        watch.settle()
        if agenda.log_due(step) and int(metrics.accuracy.count):  # 0: all were skipped
            skipped = {"skipped_steps": int(state.skipped)} if config.on_nan == "skip" else {}
            told_means = metrics.means() | skipped
            recorder.training(step, told_means, float(rates[step - 1]), agenda.score_due(step))
        if agenda.score_due(step):
            _score(run, state)
        if agenda.epoch_ends(step) and config.log.histograms and config.log.tensorboard:
            _record_histograms(run, state)
        is_needed = recorder.best_step() == step or recorder.exhausted()
        if stop.wanted() or agenda.save_due(step) or is_needed:
            _save(run, state)
        if stop.signal:
            break
    checkpoints.wait()
    for _ in range(2):  # several processes learn what they found when they were asked before
        if stop.signal or (step and stop.wanted()):
            raise Interrupted(f"stopped after step {step:,}, which is saved", stop.signal)
    return state


def _failed(run: _Run, why: str, state: TrainState) -> UserError:
    return stopped(run.checkpoints, why, state, run.task.config.on_nan)


def _plateau_factor(run: _Run) -> float:
    """Returns what the scores so far multiply the learning rate by."""
    schedule = run.task.config.schedule
    if schedule.name != "plateau":
        return 1.0
    return plateau_factor([accuracy for _, accuracy in run.recorder.scores], **schedule.options)


def _save(run: _Run, state: TrainState) -> None:
    step = int(state.step)
    if not_finite(state):
        why = f"the state is not finite after step {step:,}"
        raise _failed(run, why, state)
    if hosts.is_first():
        run.checkpoints.save(step, state, run.recorder.run(), run.recorder.best_step())


def _score(run: _Run, state: TrainState) -> None:
    start = time.monotonic()
    means = _means(run, state, run.task.config.evaluate.split)
    seconds = time.monotonic() - start
    run.recorder.score(int(state.step), means, state.metrics.means(), seconds)


def _means(run: _Run, state: TrainState, split: str) -> dict[str, float]:
    """Returns mean loss and accuracy on a split, or stops a run whose loss is not finite."""
    batch_size = run.task.config.evaluate.batch_size
    examples = run.data[split]
    if split == "val" and run.task.config.evaluate.augment:
        assert not isinstance(examples, Stream), "refused before"
        every, epoch = np.arange(len(examples)), int(state.step) // run.task.agenda.steps_per_epoch
        examples = run.trainer.augment(examples, every, epoch, state.step, Purpose.VALIDATION)
    arguments = state.variables(), examples, batch_size, run.terminal.bar
    means = run.evaluator.score(*arguments).means()
    if not math.isfinite(means["loss"]):
        why = f"the {split} loss is not finite after step {int(state.step):,}"
        raise _failed(run, why, state)
    return means


def _record_histograms(run: _Run, state: TrainState) -> None:
    """Shows the parameters, and gradients there, by the images of the step that led to them."""
    task, step = run.task, int(state.step)
    epoch = (step - 1) // task.agenda.steps_per_epoch
    _, indices = next(task.order.dispatches(step - 1, step, 1))
    arguments = indices[0], epoch, task.hyperparameters, task.config.seed
    examples = read_now(run.data["train"], indices[0], epoch)
    gradients = run.trainer.gradients(state, examples, *arguments)
    if events := run.recorder.events:
        events.histograms("params", dict(named_leaves(state.params)), step)
        events.histograms("gradients", dict(named_leaves(gradients)), step)


def _finish(run: _Run, state: TrainState) -> Record:
    """Scores the last and the best state on the test set and closes the records."""
    recorder, step = run.recorder, int(state.step)
    if recorder.best() is None:
        _score(run, state)
    if step not in run.checkpoints.steps():
        _save(run, state)
        run.checkpoints.wait()
    best = recorder.best()
    assert best is not None, "the state was just scored"
    last: Record = {"loss": None, "accuracy": None}
    best_test = None
    if run.task.config.evaluate.score_test:
        last, best_test = recorder.test_score(step) or _means(run, state, "test"), best[1]
        if run.task.config.evaluate.split == "val":
            best_test = last["accuracy"] if best[0] == step else _best_test_accuracy(run, best[0])
    has_trained = bool(int(state.metrics.accuracy.count))
    results = {
        "test_loss": last["loss"],
        "test_accuracy": last["accuracy"],
        "best_test_accuracy": best_test,
        "train_accuracy": state.metrics.means()["accuracy"] if has_trained else None,
    }
    return recorder.finish(step, results)


def _best_test_accuracy(run: _Run, step: int) -> float | None:
    def find() -> dict[str, Any] | None:
        try:
            return dict(named_leaves(run.checkpoints.restore(run.task.template, step)))
        except DamagedError as error:
            run.checkpoints.notify(f"the best checkpoint, {step}, is damaged: {error}; not scored")
            return None

    arrays = hosts.share(find)
    if arrays is None:
        return None
    state = run.devices.put(with_leaves(run.task.template, arrays))
    return _means(run, state, "test")["accuracy"]

"""A training of seconds: a config file with two variants, and what tests do with such runs."""

import contextlib
import json
import pathlib
import signal

import jax
import numpy as np

from resnet_jax import platform
from resnet_jax.config import choose, default_config
from resnet_jax.config.load import validate
from resnet_jax.data.datasets import Dataset
from resnet_jax.data.registry import load_dataset
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.runs.recorder import Recorder
from resnet_jax.training.devices import Devices, place_parts
from resnet_jax.training.driver import Trainer
from resnet_jax.training.evaluator import Evaluator
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.task import create_task

CONFIG_FILE = pathlib.Path(__file__)

TIME_FIELDS = ("seconds", "images_per_second", "crc32")  # the checksum is one of times too


def _plain(config):
    config.num_epochs = 3
    config.batch_size = 120
    config.optimizer.options.momentum = 0.9
    config.log.images = 0


def _rich(config):
    """Turns on whatever has a state or randomness that a resumed run must carry on with."""
    config.num_epochs = 5
    config.batch_size = 96
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.03
    config.optimizer.accumulate_steps = 2
    config.optimizer.ema_decay = 0.5
    config.optimizer.gradient_clip = 1.0
    config.model.options.dropout_rate = 0.2
    config.augment.crop_padding = 4
    config.augment.flip = "alternating"
    config.augment.cutout = 8
    config.loss.label_smoothing = 0.1
    config.schedule.name = "plateau"
    config.schedule.options.factor = 0.5
    config.schedule.options.patience = 0
    config.evaluate.every_steps = 4
    config.evaluate.patience = 5
    config.checkpoint.every_steps = 3
    config.log.every_steps = 2
    config.log.histograms = True


def get_config(variant="plain"):
    config = default_config()
    config.model.name = "resnet_small"
    config.model.options.stage_sizes = (1,)
    config.model.options.num_filters = (8,)
    config.model.options.stem = "imagenet"  # all that follows has few pixels
    config.data.name = "sample"
    config.data.val_fraction = 0.25  # 480 images remain
    config.evaluate.batch_size = 160
    choose({"plain": _plain, "rich": _rich}, variant)(config)
    return config


class Tiny:
    """A task with all that steps need, without a folder; each use starts from `state()` anew."""

    def __init__(self, config, dataset=None):
        config = validate(config)
        self.dataset = dataset or load_dataset(config.data, print)
        self.task = create_task(config, self.dataset.info)
        self.config = self.task.config
        self.devices = Devices()
        self.data = place_parts(self.dataset, self.config, self.devices)
        network, steps_per_epoch = self.task.network, self.task.agenda.steps_per_epoch
        self.trainer = Trainer(network, self.task.optimizer, self.devices, steps_per_epoch)
        self.evaluator = Evaluator(network, self.devices)

    def state(self):
        return self.devices.put(self.task.create_state())

    def batches(self, steps):
        """Returns the image indices of the first steps, which must be of one size."""
        found = [indices for _, indices in self.task.order.dispatches(0, steps, 1)]
        return np.concatenate(found)

    def take(self, state, indices, rate=0.1, epoch=0, **hyperparameters):
        """Takes steps in one dispatch, at one rate or its own: state, metrics, what each told."""
        numbers = self.task.hyperparameters | hyperparameters
        rates = np.broadcast_to(np.float32(rate), len(indices))
        arguments = self.data["train"], indices, epoch, rates, numbers, self.config.seed
        state, metrics, told = self.trainer.train(state, *arguments)
        return state, metrics, jax.tree.map(lambda row: np.asarray(row)[: len(indices)], told)


def sample():
    """Returns the bundled images."""
    return load_dataset(get_config().data)


def constant_dataset(pixel=255):
    """Returns the sample with all pixels of one value."""
    found = sample()
    train, test = (np.full_like(part.images, pixel) for part in (found.train, found.test))
    names = found.info.class_names
    return Dataset.from_arrays(train, found.train.labels, test, found.test.labels, names)


def train_until_signal(config, workdir):
    """Trains as the command line does, with its handlers of signals."""
    return train_and_evaluate(config, workdir, signals=platform.stop_signals())


def records(workdir, drop=TIME_FIELDS):
    """Returns the lines of metrics.jsonl without the fields that hold times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]


def interrupt(monkeypatch, step, signal_number):
    """Makes the signal arrive when a training has dispatched a step."""
    progress = Recorder.progress

    def progress_and_signal(self, now, means):
        progress(self, now, means)
        if now == step:
            signal.raise_signal(signal_number)

    monkeypatch.setattr(Recorder, "progress", progress_and_signal)


def leaves(state):
    """Returns {path: bytes} of a tree of arrays."""
    return {
        jax.tree_util.keystr(path): (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def arrays(workdir):
    """Returns {path: bytes} of the newest checkpoint of a run."""
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as found:
        return {name: a.tobytes() for name, a in found.read(found.steps()[0]).items()}


def process_state(pid):
    """Returns the letter that Linux has for what a process does; X: there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"

"""A training of seconds: a config file with three variants, and what tests do with such runs."""

import dataclasses
import json
import pathlib
import signal

import jax
import numpy as np

from resnet_jax.config.load import choose, default_config
from resnet_jax.data.sources import load_dataset
from resnet_jax.runs.recorder import Recorder

CONFIG_FILE = pathlib.Path(__file__)

TIME_FIELDS = ("seconds", "images_per_second", "crc32")  # the sum is one of times too


def _plain(config):
    config.num_epochs = 3
    config.batch_size = 120
    config.optimizer.options.momentum = 0.9


def _rich(config):
    """Turns on whatever has a state or randomness that a resumed run must carry on with."""
    config.num_epochs = 5
    config.batch_size = 100  # the last batch of an epoch has 80
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


def _speedrun(config):
    """A small version of configs/speedrun94.py, with all that only this one uses."""
    config.num_epochs = 3
    config.batch_size = 100  # 4 steps an epoch
    config.model.name = "speedrun94"
    config.model.options = {"num_filters": (4, 8, 8)}
    config.init.whitening_images = 50
    config.data.drop_last = True
    config.optimizer.learning_rate = 0.5
    config.optimizer.weight_decay = 1e-2
    config.optimizer.weight_decay_factors = (("^bn", 0.5),)
    config.optimizer.frozen = "^whitening/kernel"
    config.optimizer.frozen_after = (("^whitening/bias", 2.0),)
    config.optimizer.lookahead_steps = 5
    config.optimizer.options = {"momentum": 0.85, "nesterov": True}
    config.augment.flip = "alternating"
    config.evaluate.test_time_augmentation = "multi_crop"
    config.checkpoint.every_steps = 3


def get_config(variant="plain"):
    config = default_config()
    config.model.name = "resnet_small"
    config.model.options.stage_sizes = (1,)
    config.model.options.num_filters = (8,)
    config.data.source = "sample"
    config.data.val_fraction = 0.25  # 480 images remain
    config.evaluate.batch_size = 160
    choose({"plain": _plain, "rich": _rich, "speedrun": _speedrun}, variant)(config)
    return config


def constant_dataset(pixel=255):
    """Returns the sample with all pixels of one value."""
    sample = load_dataset("sample")
    images = {
        name: np.full_like(getattr(sample, name), pixel) for name in ("train_images", "test_images")
    }
    return dataclasses.replace(sample, **images)


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

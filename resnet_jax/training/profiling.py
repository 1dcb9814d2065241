"""A few steps of a training under jax's profiler."""

import contextlib
import dataclasses
import pathlib
import shlex

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.registry import open_dataset
from resnet_jax.data.splits import split
from resnet_jax.data.streams import feed
from resnet_jax.files import writing
from resnet_jax.platform import compute_dtype
from resnet_jax.runs.folder import read_run
from resnet_jax.training.devices import Devices, place
from resnet_jax.training.driver import Trainer
from resnet_jax.training.features import cache_features
from resnet_jax.training.task import check_memory, create_task

DISPATCHES = 3  # a CPU takes a step in each, a GPU up to 50


def print_profile(config: ConfigDict | None, workdir: str) -> None:
    """Profiles a few training steps, and prints how to look at them.

    The profile is in the folder `profile` of the run, which stays as it is. The steps start from
    random weights, and the first dispatch, which compiles, is left out.

    Args:
      config: what to train; None: the config of the run.
      workdir: the folder of the run, which need not exist if there is a config.

    Raises:
      UserError: if config, data or folder can't be used.
    """
    config = config or read_run(workdir)[0]
    config.model.dtype = compute_dtype(config.model.dtype)
    opened, devices = open_dataset(config.data), Devices()
    task = create_task(config, opened.info)
    check_memory(task)
    part = split(opened.load(print, None), config.data)["train"]
    train = place(part, task.info, config, devices, is_training=True)
    steps_per_epoch = task.agenda.steps_per_epoch
    network, state = task.network, devices.put(task.create_state())
    if stage := config.init.cached_stage:
        train = cache_features(network, state.variables(), train, devices)
        network = dataclasses.replace(network, stage=stage)
    trainer = Trainer(network, task.optimizer, devices, steps_per_epoch, train)
    size = trainer.steps_per_dispatch
    _, indices = next(task.order.dispatches(0, size, size))
    rates = np.full(len(indices), config.optimizer.learning_rate, np.float32)
    folder = pathlib.Path(workdir) / "profile"
    numbers = rates, task.hyperparameters, config.seed
    reads = feed(train, [task.order[0]] * (1 + DISPATCHES), 0, 1 + DISPATCHES)
    with writing(f"--workdir {workdir}"):
        folder.mkdir(parents=True, exist_ok=True)
    state, _, told = trainer.train(state, next(reads), indices, 0, *numbers)
    jax.block_until_ready(told)
    with contextlib.closing(reads), jax.profiler.trace(str(folder)):
        for read in reads:
            state, _, told = trainer.train(state, read, indices, 0, *numbers)
        jax.block_until_ready(told)
    (newest,) = sorted(folder.rglob("*.trace.json.gz"))[-1:]
    print(f"wrote {folder}; it is opened by one of")
    print(f"  xprof --logdir={shlex.quote(str(folder))}    (pip install xprof)")
    print(f"  https://ui.perfetto.dev, with the file {newest}")

"""TensorBoard shows each step once, however often a run is resumed."""

import errno
import itertools
import os
import time

import numpy as np
import pytest
from torture_events import shown

from resnet_jax.runs.tensorboard import Events


def write(directory, purge_step, *steps, torn=0):
    writer = Events(directory, purge_step)
    for step in steps:
        writer.record({"kind": "train", "step": step, "loss": 1.0 * step, "seconds": 1.0})
    writer.close()
    path = max(directory.iterdir())
    path.write_bytes(path.read_bytes()[: -torn or None])


@pytest.mark.parametrize("torn", [0, 3])
def test_a_run_that_resumes_hides_the_steps_it_takes_again(tmp_path, torn):
    directory = tmp_path / "events"
    write(directory, 0, 1, 2, 3, 4, torn=torn)
    write(directory, 3, 3, 4, 5)
    assert shown(directory) == [(step, "train/loss", step) for step in (1, 2, 3, 4, 5)]


def test_a_run_that_starts_anew_hides_all(tmp_path):
    for _ in range(2):
        writer = Events(tmp_path / "events", 0)
        writer.images("train/images", np.zeros((4, 32, 32, 3), np.uint8), 0)
        writer.close()
    assert [event[:2] for event in shown(tmp_path / "events")] == [(0, "train/images")]


def test_starts_at_one_moment_write_to_files_of_their_own_in_order(tmp_path, monkeypatch):
    clock = itertools.count(10**18, 1000)
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    for step in (1, 2, 3):
        write(tmp_path / "events", step, step)
    assert [event[0] for event in shown(tmp_path / "events")] == [1, 2, 3]


def test_titles(tmp_path):
    writer = Events(tmp_path / "events", 0)
    writer.record({"kind": "train", "step": 1, "loss": 1.0, "accuracy": 2.0, "learning_rate": 0.1})
    writer.record({"kind": "score", "split": "val", "step": 1, "loss": 1.0, "accuracy": 2.0})
    bad = np.array([np.nan, np.inf])
    writer.histograms("params", {"kernel": np.arange(5.0), "bias": bad}, 1)
    writer.close()
    assert [tag for _, tag, _ in shown(tmp_path / "events")] == [
        *("train/loss", "train/accuracy", "train/learning_rate", "val/loss", "val/accuracy"),
        "params/kernel",
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_the_callers_to_know(tmp_path):
    writer = Events(tmp_path / "events", 0)
    writer._file._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as error:
        writer.record({"step": 1, "loss": 1.0})
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_a_later_file_has_a_later_name_though_clocks_go_back(tmp_path):
    before = tmp_path / f"events.out.tfevents.{2 * time.time_ns()}"
    before.touch()
    Events(tmp_path, 0).close()
    assert min(tmp_path.iterdir()) == before and len(list(tmp_path.iterdir())) == 2

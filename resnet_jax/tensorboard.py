"""TensorBoard events: a view of the records, with images and histograms."""

import pathlib
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from resnet_jax.metrics import Record

_PREFIX = "events.out.tfevents."


class Events:
    """Writes the events of a run.

    They are written by the caller's own thread, so that a full disk is the caller's to know.
    """

    def __init__(self, directory: pathlib.Path, resume_step: int) -> None:
        """Opens the folder and drops the events after the step that training resumes from.

        Args:
          directory: the folder of the event files.
          resume_step: number of steps taken so far.
        """
        directory.mkdir(exist_ok=True)
        for path in sorted(directory.glob(f"{_PREFIX}*")):
            _truncate(path, resume_step)
        # A start has a file of its own, so that a TensorBoard that is looking on moves to it.
        self._file = RecordWriter(str(directory / f"{_PREFIX}{time.time_ns() // 1000}"))
        self._write(Event(file_version="brain.Event:2"), resume_step)

    def record(self, record: Record) -> None:
        """Writes the numbers of a record, as `<split>/<name>`."""
        group = record.get("split", "train")
        for name in ("loss", "accuracy", "learning_rate"):
            if name in record:
                value = summary.scalar(f"{group}/{name}", record[name])
                self._write(Event(summary=value), record["step"])
        self._file.flush()

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Writes a grid of images.

        Args:
          name: title of the grid.
          images: uint8 `[count, height, width, channels]`.
          step: number of steps taken.
        """
        self._write(Event(summary=summary.image(name, images, dataformats="NHWC")), step)

    def histograms(self, group: str, arrays: Mapping[str, Any], step: int) -> None:
        """Writes the distribution of each array.

        Args:
          group: first part of the titles.
          arrays: second part of the titles -> array.
          step: number of steps taken.
        """
        for name, array in arrays.items():
            values = np.asarray(array, np.float32)
            histogram = summary.histogram(f"{group}/{name}", values, bins=64)
            self._write(Event(summary=histogram), step)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._file.close()

    def _write(self, event: Event, step: int) -> None:
        event.step, event.wall_time = step, time.time()
        self._file.write(event.SerializeToString())


def _truncate(path: pathlib.Path, last_step: int) -> None:
    """Rewrites an event file without the events after a step, and removes one with none left."""
    # Before the first step nothing was saved, so nothing is kept.
    events = [event for event in _read(path) if event.step <= last_step] if last_step else []
    if not any(event.HasField("summary") for event in events):
        path.unlink()
        return
    temporary = path.with_name("rewrite")  # a name that TensorBoard passes over
    writer = RecordWriter(str(temporary))
    for event in events:
        writer.write(event.SerializeToString())
    writer.close()
    temporary.replace(path)


def _read(path: pathlib.Path) -> Iterator[Event]:
    """Yields the events of a file up to the first one that is torn."""
    data = path.read_bytes()
    position = 0
    while position + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        start = position + 12  # the length and its checksum come first, another checksum last
        position = start + length + 4
        if position > len(data):
            return
        try:
            yield Event.FromString(data[start : start + length])
        except Exception:  # protobuf's C++ and Python decoders raise different classes
            return

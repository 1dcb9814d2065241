"""TensorBoard events: a view of the records, with images and histograms."""

import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from resnet_jax.metrics import Record


class Events:
    """Writes the events of a run."""

    def __init__(self, directory: pathlib.Path, resume_step: int) -> None:
        """Opens the folder and drops the events after the step that training resumes from.

        Args:
          directory: the folder of the event files.
          resume_step: number of steps taken so far.
        """
        for path in sorted(directory.glob("events.out.tfevents.*")):
            _truncate(path, resume_step)
        self._writer = SummaryWriter(str(directory), flush_secs=30)

    def record(self, record: Record) -> None:
        """Writes the numbers of a record, as `<split>/<name>`."""
        group = record.get("split", "train")
        for name in ("loss", "accuracy", "learning_rate"):
            if name in record:
                self._writer.add_scalar(f"{group}/{name}", record[name], record["step"])

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Writes a grid of images.

        Args:
          name: title of the grid.
          images: uint8 `[count, height, width, channels]`.
          step: number of steps taken.
        """
        self._writer.add_images(name, images, step, dataformats="NHWC")

    def histograms(self, group: str, arrays: Mapping[str, Any], step: int) -> None:
        """Writes the distribution of each array.

        Args:
          group: first part of the titles.
          arrays: second part of the titles -> array.
          step: number of steps taken.
        """
        for name, array in arrays.items():
            self._writer.add_histogram(f"{group}/{name}", np.asarray(array, np.float32), step)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()


def _truncate(path: pathlib.Path, last_step: int) -> None:
    """Rewrites an event file without the events after a step."""
    events = [event for event in _read(path) if event.step <= last_step]
    temporary = path.with_name(f"rewrite.{path.name}")
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

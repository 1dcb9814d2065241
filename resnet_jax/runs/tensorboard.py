"""TensorBoard events: a view of the records, with images and histograms."""

import pathlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter, masked_crc32c

from resnet_jax.runs.records import Record

_PREFIX = "events.out.tfevents."


class Events:
    """Writes the events of a run.

    They are written by the caller's own thread, so that a full disk is the caller's to know.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        resume_step: int,
        records: Sequence[Record] = (),
        notify: Callable[[str], None] = print,
    ) -> None:
        """Opens the folder and drops the events after the step that training resumes from.

        Numbers that are missing there, since a file was damaged, are written anew.

        Args:
          directory: the folder of the event files.
          resume_step: number of steps taken so far.
          records: the records up to that step.
          notify: is told if a file was damaged.
        """
        directory.mkdir(exist_ok=True)
        _restore(directory, resume_step, records, notify)
        # A start has a file of its own, so that a TensorBoard that is looking on moves to it.
        self._file = RecordWriter(str(directory / f"{_PREFIX}{time.time_ns() // 1000}"))
        self._write(_event(resume_step, file_version="brain.Event:2"))

    def record(self, record: Record) -> None:
        """Writes the numbers of a record, as `<split>/<name>`."""
        for event in _scalars(record):
            self._write(event)
        self._file.flush()

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Writes a grid of images.

        Args:
          name: title of the grid.
          images: uint8 `[count, height, width, channels]`.
          step: number of steps taken.
        """
        self._write(_event(step, summary=summary.image(name, images, dataformats="NHWC")))

    def histograms(self, group: str, arrays: Mapping[str, Any], step: int) -> None:
        """Writes the distribution of each array, of its finite numbers.

        Args:
          group: first part of the titles.
          arrays: second part of the titles -> array.
          step: number of steps taken.
        """
        for name, array in arrays.items():
            values = np.asarray(array, np.float32)
            if (values := values[np.isfinite(values)]).size:
                histogram = summary.histogram(f"{group}/{name}", values, bins=64)
                self._write(_event(step, summary=histogram))

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._file.write(event.SerializeToString())


def _event(step: int, **content: Any) -> Event:
    return Event(step=step, wall_time=time.time(), **content)


def _scalars(record: Record) -> Iterator[Event]:
    """Yields the events of a record's numbers."""
    group = record.get("split", "train")
    for name in ("loss", "accuracy", "learning_rate"):
        if name in record:
            value = summary.scalar(f"{group}/{name}", record[name])
            yield _event(record["step"], summary=value)


def _restore(
    directory: pathlib.Path,
    last_step: int,
    records: Sequence[Record],
    notify: Callable[[str], None],
) -> None:
    """Drops the events after a step, and writes those anew that the records have and files lack."""
    files: dict[pathlib.Path, list[Event]] = {}
    found = set()
    for path in sorted(directory.glob(f"{_PREFIX}*")):
        files[path] = []
        for event in read(path):
            # Before the first step nothing was saved, so nothing is kept.
            if last_step and event.step <= last_step and _key(event) not in found:
                files[path].append(event)
                found |= {_key(event)} - {None}
    lost = [event for record in records for event in _scalars(record) if _key(event) not in found]
    if lost:
        notify(f"{directory} was damaged: {len(lost)} numbers are written anew from the records")
        merged = [event for events in files.values() for event in events] + lost
        merged.sort(key=lambda event: event.step)
        path = next(iter(files), directory / f"{_PREFIX}0")
        files = {other: [] for other in files} | {path: merged}
    for path, events in files.items():
        _rewrite(path, events)


def _key(event: Event) -> tuple[int, str] | None:
    """Returns the step and the name of what an event shows; None if it shows nothing."""
    return (event.step, event.summary.value[0].tag) if event.summary.value else None


def _rewrite(path: pathlib.Path, events: Sequence[Event]) -> None:
    """Writes an event file anew, or removes it if no event is left."""
    if not any(event.HasField("summary") for event in events):
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name("rewrite")  # a name that TensorBoard passes over
    writer = RecordWriter(str(temporary))
    for event in events:
        writer.write(event.SerializeToString())
    writer.close()
    temporary.replace(path)


def read(path: pathlib.Path) -> Iterator[Event]:
    """Yields the events of a file up to the first one that is torn or altered."""
    data = path.read_bytes()
    position = 0
    while position + 16 <= len(data):
        length, length_crc = struct.unpack_from("<QI", data, position)
        start, end = position + 12, position + 12 + length
        if masked_crc32c(data[position : position + 8]) != length_crc or end + 4 > len(data):
            return
        if masked_crc32c(data[start:end]) != struct.unpack_from("<I", data, end)[0]:
            return
        yield Event.FromString(data[start:end])
        position = end + 4

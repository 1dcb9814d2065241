"""TensorBoard events: a view of the records, with images and histograms."""

import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.runs.records import Record

# tensorboardX would import a torch that there is, which takes a second, and has no use for it here.
_torch = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
try:
    from tensorboardX import RecordWriter, summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
finally:
    if _torch is None:
        del sys.modules["torch"]


class Events:
    """Writes the events of one start of a run.

    The caller's own thread writes them, so that a full disk is the caller's to know: the thread of
    tensorboardX's `SummaryWriter` dies of it with a traceback, and then `add_scalar` hangs.
    """

    def __init__(self, directory: pathlib.Path, purge_step: int) -> None:
        """Opens a new file in the folder.

        Args:
          directory: the folder of the event files.
          purge_step: TensorBoard no longer shows what earlier starts wrote of this step and later
            ones, which training takes again.

        Raises:
          OSError: if the folder can't be written, here and in all methods.
        """
        directory.mkdir(exist_ok=True)
        # TensorBoard reads the files in the order of their names, and clocks may go back.
        names = (path.name.rpartition(".")[2] for path in directory.glob("events.out.tfevents.*"))
        last = max((int(name) for name in names if name.isdecimal()), default=0)
        name = f"events.out.tfevents.{max(time.time_ns() // 1000, last + 1)}"
        self._file = RecordWriter(str(directory / name))
        self._write(purge_step, file_version="brain.Event:2")
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def record(self, record: Record) -> None:
        """Writes the loss, accuracy and learning rate of a record, as `<split>/<name>`."""
        group = record.get("split", "train")
        for name in ("loss", "accuracy", "learning_rate"):
            if name in record:
                scalar = summary.scalar(f"{group}/{name}", record[name])
                self._write(record["step"], summary=scalar)
        self._file.flush()

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Writes a grid of images.

        Args:
          name: title of the grid.
          images: uint8 `[count, height, width, channels]`; of two channels, or more than four, the
            first is shown.
          step: number of steps taken.
        """
        if images.shape[-1] not in (1, 3, 4):
            images = images[..., :1]
        self._write(step, summary=summary.image(name, images, dataformats="NHWC"))
        self._file.flush()

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
                self._write(step, summary=summary.histogram(f"{group}/{name}", values, bins=64))
        self._file.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        event = Event(step=step, wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

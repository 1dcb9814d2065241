"""What TensorBoard would show of a run's events."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c


def shown(directory: pathlib.Path) -> list[tuple[int, str, float]]:
    """Returns step, tag and number of all values that TensorBoard would show, oldest first.

    A file is read up to its first record that is torn or altered; a start that resumes hides what
    was written before of the steps that it takes again.

    Args:
      directory: the folder of the event files.
    """
    found: list[tuple[int, str, float]] = []
    for path in sorted(directory.iterdir()):
        for event in _events(path.read_bytes()):
            if event.session_log.status == SessionLog.START:
                found = [value for value in found if value[0] < event.step]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def _events(data: bytes) -> Iterator[Event]:
    while len(data) >= 16:
        (length,) = struct.unpack_from("<Q", data)
        body, rest = data[12 : 12 + length], data[12 + length :]
        sums = masked_crc32c(data[:8]), masked_crc32c(body)
        if len(rest) < 4 or sums != (
            *struct.unpack("<I", data[8:12]),
            *struct.unpack("<I", rest[:4]),
        ):
            return
        yield Event.FromString(body)
        data = rest[4:]

"""The records of a run: metrics.jsonl, and what is found from scores.

A line of the file is a JSON object whose last key, "crc32", is the checksum of what stands before
it. Lines that are torn, altered or foreign are counted and left out.
"""

import json
import operator
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from resnet_jax.files import write_atomically

Record = dict[str, Any]
Score = tuple[int, float]  # step, accuracy in percent

_CHECKSUM = ', "crc32": '
# The numbers that a record of each kind has.
_NUMBERS = {
    "train": ("loss", "accuracy", "learning_rate"),
    "score": ("loss", "accuracy"),
    "final": ("best_epoch", "best_score"),
}
# Those that may be unknown, None.
_UNSURE = {"final": ("test_loss", "test_accuracy", "best_test_accuracy", "train_accuracy")}


class History:
    """The records of a run, in memory and in a file.

    Every record has a "kind" ("train", "score" or "final"), a "step", an "epoch" and "seconds". A
    record is on disk before the checkpoint of its step is, so that a run that resumes finds each
    record once.

    Attributes:
      records: all records so far, oldest first.
    """

    def __init__(
        self,
        path: pathlib.Path,
        step: int = -1,
        count: int = 0,
        notify: Callable[[str], None] = print,
        reopen: bool = False,
    ) -> None:
        """Opens the file to append to it, and drops what was recorded after a step.

        Args:
          path: the file, which need not exist.
          step: number of steps taken by the state that training resumes from; -1: none.
          count: number of records that the run had when this state was saved.
          notify: called with a line if lines are bad or records lost.
          reopen: whether to drop the closing record of a run that is extended.
        """
        found, bad = read(path)
        self.records = [record for record in found if record["step"] <= step]
        going_on = [record for record in self.records if record["kind"] != "final"]
        kept = len(going_on)
        if reopen:
            self.records = going_on
        if bad or kept != count:
            notify(
                f"{path} was damaged: {bad} torn or altered lines are left out, and {kept} of "
                f"{count} records remain"
            )
        write_atomically(path, "".join(map(_line, self.records)).encode())
        self._file = path.open("a")

    def add(self, record: Record) -> Record:
        """Appends a record, in memory and on disk, and returns it."""
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())
        return record

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: pathlib.Path) -> tuple[list[Record], int]:
    """Returns the records of a file, and the number of lines that are none.

    Args:
      path: the file; one that does not exist has no records.
    """
    if not os.path.isfile(path):
        return [], 0
    lines = path.read_bytes().splitlines()
    records = [record for line in lines if (record := _parsed(line)) is not None]
    return records, len(lines) - len(records)


def best(scores: Sequence[Score]) -> Score | None:
    """Returns the best score, the oldest of equals; None if there is none."""
    return max(scores, key=operator.itemgetter(1), default=None)


def ranked(scores: Sequence[Score], steps: Sequence[int]) -> list[int]:
    """Returns those steps that were scored, best first and the older of equals; all if none was."""
    accuracies = dict(scores)
    scored = sorted(step for step in steps if step in accuracies)
    return sorted(scored, key=accuracies.__getitem__, reverse=True) or list(steps)


def is_number(value: Any) -> TypeGuard[float]:
    """Returns whether a value from a file is a number that can be computed with."""
    return type(value) in (int, float) and abs(value) < 1e300  # neither nan nor inf


def _parsed(line: bytes) -> Record | None:
    """Returns the record in a line; None if it is torn, altered or foreign."""
    body, _, checksum = line.rpartition(_CHECKSUM.encode())
    if checksum != f"{zlib.crc32(body)}}}".encode():
        return None
    try:
        record = json.loads(body + b"}")
        numbers = ("step", "epoch", "seconds", *_NUMBERS[record["kind"]])
        is_whole = type(record["step"]) is int and record["step"] >= 0
        is_whole &= all(is_number(record[name]) for name in numbers)
        unsure = _UNSURE.get(record["kind"], ())
        is_whole &= all(record[name] is None or is_number(record[name]) for name in unsure)
    except (ValueError, TypeError, LookupError, RecursionError):  # others know checksums too
        return None
    return record if is_whole else None


def _line(record: Record) -> str:
    body = json.dumps(record, allow_nan=False)[:-1]
    return f"{body}{_CHECKSUM}{zlib.crc32(body.encode())}}}\n"

"""The records of a run: metrics.jsonl, the source of truth, and what is read from it."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

Record = dict[str, Any]


class History:
    """The records of a run, in memory and in a JSON-lines file.

    Every record has a "kind" ("train", "score" or "final") and a "step". A record is on disk
    before the checkpoint of its step is, so that a resumed run finds each step exactly once. The
    checkpoint holds the records too, and the final one the digest of all, so that no damage to the
    file goes unnoticed.

    Attributes:
      records: all records so far, oldest first.
    """

    def __init__(
        self,
        path: pathlib.Path,
        resume_step: int,
        saved: Sequence[Record] | None = None,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Opens the file to append to it, and drops what was recorded after `resume_step`.

        Args:
          path: the file, which need not exist.
          resume_step: number of steps that the state training resumes from has taken.
          saved: the records in the checkpoint of that state; None: it has none.
          notify: is told if the file was damaged.
        """
        found = read(path)
        self.records: list[Record] = [r for r in found if r["step"] <= resume_step]
        if saved is not None:
            if found[: len(saved)] != list(saved):
                notify(f"{path} was damaged: its records are written anew from the checkpoint")
            closing = [r for r in found if r["kind"] == "final" and r["step"] == resume_step]
            self.records = [*saved, *closing[-1:]]
        if self.records and self.records[-1]["kind"] == "final" and self.final() is None:
            notify(f"{path}: its closing record can't be trusted; the test set is scored again")
            self.records.pop()
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, self.records)))
        os.replace(temporary, path)
        self._file = path.open("a")

    def add(self, record: Record) -> None:
        """Appends a record, in memory and on disk."""
        self.records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, record: Record) -> Record:
        """Appends the record that closes a finished run, with a digest of all, and returns it."""
        record = record | {"kind": "final"}
        record["sha256"] = _digest([*self.records, record])
        self.add(record)
        return record

    def final(self) -> Record | None:
        """Returns the record that closes a finished run; None if it is not finished."""
        return final(self.records)

    def seconds(self) -> float:
        """Returns the time that the run took up to its last record."""
        return self.records[-1].get("seconds", 0.0) if self.records else 0.0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: pathlib.Path) -> list[Record]:
    """Returns the records of a JSON-lines file; torn or foreign lines are left out.

    Args:
      path: the file; one that does not exist has no records.
    """
    if not os.path.isfile(path):
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_whole(record):
            records.append(record)
    return records


def is_whole(record: Any) -> bool:
    """Returns whether a value from a file is a record that can be used."""
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return False
    if record.get("kind") == "score":
        accuracy = record.get("accuracy")
        is_number = isinstance(accuracy, int | float) and math.isfinite(accuracy)
        return is_number and isinstance(record.get("split"), str)
    return "kind" in record


def scores(records: Sequence[Record], split: str) -> list[Record]:
    """Returns the records of a split's scores, oldest first."""
    return [r for r in records if r["kind"] == "score" and r["split"] == split]


def best(records: Sequence[Record], split: str) -> Record | None:
    """Returns the record of a split's best accuracy, the oldest of equals; None if none."""
    return max(scores(records, split), key=lambda r: r["accuracy"], default=None)


def final(records: Sequence[Record]) -> Record | None:
    """Returns the closing record; None if there is none, or any record was altered or lost."""
    if not records or records[-1]["kind"] != "final":
        return None
    *before, closing = records
    signed = {name: value for name, value in closing.items() if name != "sha256"}
    return closing if closing.get("sha256") == _digest([*before, signed]) else None


def _digest(records: Sequence[Record]) -> str:
    return hashlib.sha256("".join(map(_line, records)).encode()).hexdigest()


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"

"""Tortures trainings, and proves that none is lost and none is wrong.

  python scripts/torture.py --faults 200 --seed 0 [--json FILE]
  python scripts/torture.py --faults 40 --kind="a worker killed"     of two that train together

A training of seconds is killed, interrupted, starved of disk and has its files damaged, at random
moments and in random places; after each fault the same command is started again. What it ends with
is compared, bit for bit and record for record, with a training that nothing disturbed. Where a
start is refused, the harness does what the line says, as a user would.

It exits with status 0 only if nothing was silently wrong, nothing was stuck, no traceback was
printed, no temporary file was left over and no finished epoch was lost but the one in hand. A fault
that damages a checkpoint may cost what was done since the one before, and one that damages
metrics.jsonl the records that it held, if the run says so. What damage TensorBoard's events suffer
is not mended, and the log of the starts is not checked.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torture_faults as faults
from torture_events import shown
from torture_faults import Disk, Training
from torture_table import BAD, Fault, show, totals

from resnet_jax.platform import quieten_libraries
from resnet_jax.runs import folder as workdir
from resnet_jax.runs import records
from resnet_jax.runs.checkpoints import Checkpoints

OFTEN = (*faults.KINDS, "SIGKILL", "SIGKILL", "SIGKILL in a save", "bit flip")
PACKAGES = ("resnet-flax-cifar", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
TIMES = ("seconds", "images_per_second")  # what no two runs have in common
LEFT_BY_A_RUN = re.compile(
    r"lock|(config|dataset)\.json|(metrics|starts)\.jsonl|checkpoints(/\d+(/.*)?)?|"
    r"events(/events\.out\.tfevents\.\d+)?"
)
NOTICES = ("is damaged", "is incomplete")
NOISE = ("outlived", "Traceback", "Exception ignored", "Warning:", "Fatal", "Error:", "core dumped")


@dataclasses.dataclass(frozen=True)
class End:
    """What a finished run leaves."""

    arrays: dict[str, np.ndarray]
    records: list[dict[str, Any]]
    events: list[tuple[int, str, float]]

    @classmethod
    def of(cls, folder: pathlib.Path) -> "End":
        """Reads it; raises if anything is not as its digest says."""
        checkpoints = Checkpoints(folder / workdir.CHECKPOINTS)
        arrays = checkpoints.read(checkpoints.steps()[0])
        found, bad = records.read(folder / workdir.METRICS)
        if bad or found[-1]["kind"] != "final":
            raise ValueError(f"{bad} lines of the records are bad, or the closing one is missing")
        kept = [{k: v for k, v in record.items() if k not in TIMES} for record in found]
        events = [event for event in shown(folder / workdir.EVENTS) if event[2]]
        return cls(arrays, kept, events)

    def differences(self, other: "End", unknown: str = "", lost: int = 0) -> list[str]:
        """Returns what differs from another end.

        Args:
          other: the other end.
          unknown: a field of the records that need not be equal.
          lost: number of the other's records that may be missing.
        """
        found = []
        if {n: (a.dtype, a.tobytes()) for n, a in self.arrays.items()} != {
            n: (a.dtype, a.tobytes()) for n, a in other.arrays.items()
        }:
            found.append("arrays")
        ours, theirs = ([r | {unknown: 0} for r in end.records] for end in (self, other))
        common = [record for record in theirs if record in ours]
        if ours != common or len(theirs) - len(common) > lost:
            found.append("records")
        if self.events != other.events:
            found.append("events")
        return found


class Before(NamedTuple):
    """What a start finds: faults not yet recovered from, newest checkpoint, epochs recorded."""

    faults: list[Fault]
    newest: int
    epochs: int


class Torture:
    """Runs that suffer faults, one after the other."""

    def __init__(self, kinds: Sequence[str], seed: int, disk: Disk, scratch: pathlib.Path) -> None:
        """Makes the run that nothing disturbs, twice: the second one has all programs compiled.

        Args:
          kinds: the kinds of faults; one that is listed twice is twice as frequent.
          seed: of all that is random in the faults.
          disk: where the runs are.
          scratch: a folder for whatever else is written.
        """
        self.draw = random.Random(seed)
        self.faults: list[Fault] = []
        self._kinds = kinds
        self._disk = disk
        self._cache = scratch / "compiled"
        self._bag: list[str] = []
        self._pending: list[Fault] = []  # those of the run in hand, not yet compared
        self._said = ""
        self._spoilt = False  # whether the events of the run in hand were damaged
        self.folder = disk.folder / "run"
        for name in ("first", "second"):
            training = Training(scratch / name, self._cache)
            code, said = training.end()
            if code != 0:
                raise RuntimeError(f"the undisturbed training failed:\n{said}")
            self.seconds = time.monotonic() - training.start
        self._reference = End.of(scratch / "first")
        if changed := End.of(scratch / "second").differences(self._reference):
            raise RuntimeError(f"two undisturbed trainings differ: {changed}")
        self._undisturbed = scratch / "first"

    def run(self, number: int) -> None:
        """Does this many faults."""
        while len(self.faults) < number:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._said, self._spoilt = "", False
            most = min(number, len(self.faults) + 8)
            while len(self.faults) < most and self._next():
                pass
            self._finish()
            damages = [kind for kind in self._bag if kind in faults.BETWEEN_STARTS]
            if len(self.faults) < number and damages:
                self._bag.remove(damages[0])
                self._between_starts(damages[0])
                self._finish()

    def _next(self) -> bool:
        """Does the next fault to the run in hand; returns whether that is not finished yet."""
        if not self._bag:
            self._bag = self.draw.sample(self._kinds, len(self._kinds))
        begun = self.folder.exists()
        possible = [kind for kind in self._bag if begun or kind not in faults.BETWEEN_STARTS]
        if not possible:
            self._finish()  # there must be a run to be damaged
            return True
        kind = possible[0]
        self._bag.remove(kind)
        if kind not in faults.BETWEEN_STARTS:
            return self._while_running(kind)
        self._between_starts(kind)
        return kind == "read-only"

    def _while_running(self, kind: str) -> bool:
        """Does a fault to a new start; returns whether the run is not finished yet."""
        max_file = 0
        if kind == "full disk" and not self._disk.is_mounted:
            max_file = self.draw.choice([20_000, 200_000, 2_000_000])
        before = self._before()
        training = Training(self.folder, self._cache, max_file)
        mend = faults.disturb(kind, training, self._disk, self.seconds, self.draw)
        moment = time.monotonic() - training.start
        if mend is None:
            self._bag.append(kind)
            self._started(*training.end(), before)
            return False
        self._add(Fault(kind, f"at {moment:.2f} s"))
        if kind == "second training":
            self._second(training)
        code, said = training.end()
        if faults.is_cut_short(self.folder):
            self._pending[-1].cut_a_save_short = 1
        mend()
        self._started(code, said, before)
        return code != 0

    def _between_starts(self, kind: str) -> None:
        if kind != "read-only":
            self._add(Fault(kind, faults.damage(kind, self.folder, self.draw)))
            self._spoilt |= self._pending[-1].what.startswith(workdir.EVENTS)
            return
        self._add(Fault(kind))
        before = self._before()
        self._disk.set_read_only(self.folder)
        code, said = Training(self.folder, self._cache).end()
        self._disk.set_writable(self.folder)
        self._started(code, said, before)
        self._expect(code == 2, f"a read-only folder was not refused, status {code}")

    def _second(self, first: Training) -> None:
        """Points a second training at the folder of a first one, which is killed after that."""
        first.process.send_signal(signal.SIGSTOP)  # or it might end first
        code, said = Training(self.folder, self._cache).end()
        owner = f"in use by process {first.process.pid} on {socket.gethostname()}"
        self._expect(code == 2 and owner in said, f"a second training was let in: {said[-500:]}")
        self._pending[-1].refused_clearly += 1
        first.process.kill()

    def _finish(self) -> None:
        """Starts the run until it ends by itself, and compares it with the undisturbed one."""
        for _ in range(3):
            before = self._before()
            code, said = Training(self.folder, self._cache).end()
            self._started(code, said, before)
            if code == 0:
                break
            self._obey(said)
        self._expect(code == 0, f"the run does not go on: status {code}, {said[-500:]}")
        if code == 0:
            self._compare()
        self._pending = []

    def _obey(self, said: str) -> None:
        """Does what the line of a refused start tells the user to do."""
        if "no checkpoint in" in said and "remove that folder" in said:
            shutil.rmtree(self.folder / workdir.CHECKPOINTS)
        else:
            self._expect(False, f"a start was refused: {said[-500:]}")

    def _compare(self) -> None:
        unknown = "best_test_accuracy" if "it is not scored" in self._said else ""
        remain = re.findall(r"(\d+) of (\d+) records remain", self._said)
        lost = sum(int(count) - int(kept) for kept, count in remain)
        try:
            changed = End.of(self.folder).differences(self._reference, unknown, lost)
        except Exception as error:  # whatever a file that is not as it should be leads to
            changed = [f"{type(error).__name__}: {error}"]
        if self._spoilt:
            changed = [what for what in changed if what != "events"]  # they are not mended
        for name in (workdir.CONFIG, workdir.DATASET):
            if (self.folder / name).read_bytes() != (self._undisturbed / name).read_bytes():
                changed.append(name)
        paths = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")]
        left = [path for path in paths if not LEFT_BY_A_RUN.fullmatch(path)]
        if left:
            self._bad("temporary_files_left", f"left over: {left}", len(left))
        if changed:
            self._bad("silently_wrong", f"differs at the end: {', '.join(changed)}")
            return
        for fault in self._pending:
            fault.equal_at_the_end = 1

    def _before(self) -> "Before":
        found, _ = records.read(self.folder / workdir.METRICS)
        last = max((record["step"] for record in found), default=0)
        newest = max(faults.steps(self.folder), default=0)
        return Before(list(self._pending), newest, last // faults.STEPS_PER_EPOCH)

    def _started(self, code: int | None, said: str, before: "Before") -> None:
        """Judges how a start went on from what it found, and how it ended."""
        self._said += said
        if code is None:
            self._bad("stuck", f"stuck: {said[-500:]}")
        if any(word in said for word in NOISE):
            first = min(said.find(word) for word in NOISE if word in said)
            self._bad("tracebacks", said[max(first - 500, 0) :][:3000])
        # A signal that comes after the run, while Python itself ends, has Python's own effect.
        is_over = "\nagain  " in said and code in (-signal.SIGINT, -signal.SIGTERM)
        if faults.Training.processes > 1 and code == 137:  # one was killed
            self._expect(
                "another process of this training" in said, f"the others say nothing: {said[-500:]}"
            )
        elif code not in (0, 2, -9, 130, 143) and not is_over:
            self._expect(code is None, f"status {code}: {said[-500:]}")
        if code in (130, 143):
            self._expect("the same command again resumes" in said, f"no word of resuming: {said}")
        if code == 2:
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            self._expect(len(lines) == 1, f"status 2 without one clear line: {said[-500:]}")
            print(f"     {lines[-1] if lines else said}", flush=True)
            if self._pending:
                self._pending[-1].refused_clearly += 1
        elif "\nrun  " in said:  # it came as far as that
            found = re.search(r"resuming after step ([\d,]+)", said)
            self._resumed(int(found[1].replace(",", "")) if found else 0, before, said)

    def _resumed(self, step: int, before: "Before", said: str) -> None:
        for fault in before.faults if step else ():
            fault.resumed = 1
        if step < before.newest and any(notice in said for notice in NOTICES):
            for fault in before.faults[-1:]:
                fault.fell_back_and_said_so = 1
            return
        self._expect(
            step >= before.newest, f"fell back from {before.newest} to {step} and did not say so"
        )
        damaged = any(fault.kind in faults.BETWEEN_STARTS for fault in before.faults)
        lost = before.epochs - step // faults.STEPS_PER_EPOCH
        if lost > 1 and not damaged:
            problem = f"resumed after step {step}, of {before.epochs} epochs"
            self._bad("lost_epochs", problem, lost - 1)

    def _add(self, fault: Fault) -> None:
        self.faults.append(fault)
        self._pending.append(fault)
        print(f"{len(self.faults):4} {fault.kind} {fault.what}", flush=True)

    def _expect(self, is_so: bool, problem: str) -> None:
        if not is_so:
            self._bad("silently_wrong", problem)

    def _bad(self, column: str, problem: str, count: int = 1) -> None:
        print(f"     BAD, {column}: {problem}", flush=True)
        if not self.faults:
            raise RuntimeError(problem)
        fault = (self._pending or self.faults)[-1]
        setattr(fault, column, getattr(fault, column) + count)


def main() -> int:
    """Runs the command line; returns the exit status."""
    quieten_libraries()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--faults", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, moments and places")
    every = (*faults.KINDS, *faults.OF_PROCESSES)
    parser.add_argument("--kind", action="append", choices=every, help="default: one process's")
    parser.add_argument("--json", type=pathlib.Path, help="file for the result")
    arguments = parser.parse_args()
    if (file := arguments.json) and (file.is_dir() or not file.parent.is_dir()):
        parser.error(f"{file} is a folder, or lies in none")
    wanted = set(arguments.kind or OFTEN)
    if of_processes := wanted & set(faults.OF_PROCESSES):
        faults.Training.processes = 2
        if wanted - of_processes:
            parser.error("what is done to one of several processes goes with nothing else")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Disk()) as disk:
        left_out = disk.left_out()
        for kind, reason in left_out.items():
            print(f"left out: {kind}: {reason}")
        kinds = [kind for kind in arguments.kind or OFTEN if kind not in left_out]
        if not kinds:
            parser.error("nothing of that can be done here")
        torture = Torture(kinds, arguments.seed, disk, pathlib.Path(scratch))
        with contextlib.suppress(KeyboardInterrupt):  # what is done so far is shown
            torture.run(arguments.faults)
    sums = totals(torture.faults)
    show(sums)
    is_done = sums["all"]["equal_at_the_end"] == arguments.faults
    held = is_done and not any(sums["all"][column] for column in BAD)
    seconds = time.monotonic() - start
    print(f"the bar {'holds' if held else 'DOES NOT HOLD'}; {seconds:.0f} s")
    if arguments.json:
        result = {
            "seed": arguments.seed,
            "held": held,
            "seconds": round(seconds),
            "left_out": left_out,
            "totals": sums,
            "provenance": workdir.provenance(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

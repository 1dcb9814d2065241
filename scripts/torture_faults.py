"""The faults of `scripts/torture.py`: what can happen to a training, done to a real process."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).parent.parent
SECONDS_TO_END = 180.0  # a start, or its end after a signal, that takes longer is stuck

# A run of seconds, with a save every third step, so that saves and deletions are most of what it
# does; the best checkpoint is neither the first nor the last.
TRAINING = (
    *("-m", "resnet_jax.main", "--config=configs/quickstart.py", "--config.data.name=sample"),
    *("--config.num_epochs=3", "--config.batch_size=64", "--config.log.every_steps=2"),
    *("--config.checkpoint.every_steps=3", "--config.optimizer.learning_rate=2.0"),
    "--config.log.report=False",
)
STEPS_PER_EPOCH = 9

RANDOM_MOMENT = ("SIGKILL", "SIGTERM", "SIGINT")
IN_MID_SAVE = ("SIGKILL in a save", "SIGKILL in a deletion", "full disk", "read-only, in a save")
WHILE_RUNNING = (*RANDOM_MOMENT, *IN_MID_SAVE, "second training")
OF_PROCESSES = ("a worker killed", "the first process killed in a save")
BETWEEN_STARTS = ("bit flip", "truncated file", "emptied file", "deleted file", "read-only")
KINDS = (*WHILE_RUNNING, *BETWEEN_STARTS)


class Disk:
    """Where the runs are: a small disk of its own, if this process may mount one.

    Attributes:
      folder: the folder of the runs.
      is_mounted: whether it is a disk of its own, which can be full and read-only. If not, a limit
        on the size of a file stands for a full disk, and permissions for a read-only one; root
        obeys none.
    """

    def __init__(self, megabytes: int = 64) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="resnet_jax_torture_"))
        size = f"size={megabytes}m"
        self.is_mounted = _succeeds("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.folder))
        self._ballast = self.folder / "ballast"

    def left_out(self) -> dict[str, str]:
        """Returns the kinds of faults that can't be done here, and why."""
        if self.is_mounted:
            return {}
        reason = "the files must be on a disk of their own, which only root may mount"
        left_out = {"read-only, in a save": reason}
        return left_out | ({"read-only": reason} if os.geteuid() == 0 else {})

    def fill(self, free: int) -> None:
        """Leaves this number of bytes free, if there are more."""
        with self._ballast.open("wb") as file, contextlib.suppress(OSError):
            size = shutil.disk_usage(self.folder).free - free
            os.posix_fallocate(file.fileno(), 0, max(size, 1))

    def make_room(self) -> None:
        """Ends `fill`."""
        self._ballast.unlink(missing_ok=True)

    def set_read_only(self, folder: pathlib.Path) -> None:
        """Makes a folder of the disk read-only, even for files that are created right now."""
        if self.is_mounted:
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            for _ in range(100):  # it can be refused for a file that is being written right now
                remount = ["mount", "-o", "remount,bind,ro", str(folder)]
                if subprocess.run(remount, capture_output=True).returncode == 0:
                    return
                time.sleep(0.02)
            raise RuntimeError(f"{folder} can't be made read-only")
        _set_modes(folder, 0o500)

    def set_writable(self, folder: pathlib.Path) -> None:
        """Ends `set_read_only`."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        else:
            _set_modes(folder, 0o700)

    def close(self) -> None:
        """Removes the disk and all that is on it."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


class Training:
    """One start of the training, in a process of its own, or in several.

    Attributes:
      processes: number of processes of every start.
    """

    processes = 1

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path, max_file: int = 0) -> None:
        """Starts it.

        Args:
          folder: the folder of the run.
          cache: the folder of compiled programs, which makes starts quick.
          max_file: bytes that no file may exceed; 0: no limit.
        """

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file, max_file))

        command = [sys.executable, *TRAINING, f"--workdir={folder}"]
        if self.processes > 1:
            launch = ["scripts/launch_local.py", f"--processes={self.processes}", "--"]
            command = [sys.executable, *launch, *command]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.folder = folder
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            preexec_fn=limit if max_file else None,
        )

    def goes_on(self) -> bool:
        """Returns whether the process still runs."""
        return self.process.poll() is None

    def wait_until(self, condition: Callable[[], bool], poll: float = 0.001) -> bool:
        """Waits for something to happen while the process runs, and returns whether it did."""
        while self.goes_on() and time.monotonic() < self.start + SECONDS_TO_END:
            if condition():
                return True
            time.sleep(poll)
        return False

    def members(self) -> list[int]:
        """Returns the ids of the processes that train together, the first one first."""
        return _children(self.process.pid)

    def handles_signals(self) -> bool:
        """Returns whether the program has begun; before that signals are for Python itself."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return time.monotonic() > self.start + 1
        mask = status.read_text().split("SigCgt:")[-1].split()[0]
        return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)

    def end(self) -> tuple[int | None, str]:
        """Waits for the end; returns the exit status, None if it is stuck, and what was printed."""
        try:
            code = self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            for member in self.members() if self.processes > 1 else ():
                os.kill(member, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            code = None
        self._log.seek(0)
        return code, self._log.read().decode(errors="replace")


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints that are listed, oldest first."""
    names = os.listdir(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def is_cut_short(folder: pathlib.Path) -> bool:
    """Returns whether a save has begun that is not complete."""
    return any(not name.isdigit() for name in _names(folder))


def disturb(
    kind: str, training: Training, disk: Disk, seconds: float, draw: random.Random
) -> Callable[[], None] | None:
    """Does one of `WHILE_RUNNING` to a training, at a random moment.

    Args:
      kind: which.
      training: the training.
      disk: where it writes to.
      seconds: how long an undisturbed training takes.
      draw: the source of randomness.

    Returns:
      What makes it good again once the process has ended; None: it ended before its moment came.
    """
    if kind in RANDOM_MOMENT:
        moment = draw.uniform(0, seconds)
        if kind != "SIGKILL" and not training.wait_until(training.handles_signals):
            return None
        training.wait_until(lambda: time.monotonic() > training.start + moment)
        return _signal(training, getattr(signal, kind))
    if kind == "full disk" and not disk.is_mounted:
        return _nothing  # it was started with a limit on the size of a file
    if kind == "second training":
        in_use = _lock_of(training)
        return _nothing if training.wait_until(in_use) else None
    if kind == "a worker killed":
        if not training.wait_until(lambda: bool(steps(training.folder))):
            return None
        time.sleep(draw.uniform(0, seconds / 2))
        return _kill(training, -1, draw)
    event = _deletion(training.folder) if "deletion" in kind else _save(training.folder)
    for _ in range(draw.randint(1, 5)):
        if not training.wait_until(event, poll=0.0005):
            return None
    time.sleep(draw.uniform(0, 0.015 if "deletion" in kind else 0.06))
    if kind in OF_PROCESSES:
        return _kill(training, 0, draw)
    if kind.startswith("SIGKILL"):
        return _signal(training, signal.SIGKILL)
    if kind == "full disk":
        disk.fill(free=draw.choice([0, 0, 4096, 100_000, 1_000_000, 3_000_000]))
        return disk.make_room
    disk.set_read_only(training.folder)
    return lambda: disk.set_writable(training.folder)


def damage(kind: str, folder: pathlib.Path, draw: random.Random) -> str:
    """Does one of `BETWEEN_STARTS`, save "read-only", to a random file; returns what it did."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # There are many more files of older checkpoints than others.
    others = [path for path in files if folder / "checkpoints" not in path.parents]
    newest = folder / "checkpoints" / str(max(steps(folder), default=0))
    file = draw.choice(
        draw.choice([files, others, [path for path in files if newest in path.parents] or others])
    )
    content = bytearray(file.read_bytes())
    where = draw.randrange(len(content)) if content else 0
    if kind == "deleted file":
        file.unlink()
    elif kind == "bit flip" and content:
        content[where] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    else:
        file.write_bytes(content[:where] if kind == "truncated file" else b"")
    return f"{file.relative_to(folder)} at byte {where} of {len(content)}"


def _kill(training: Training, member: int, draw: random.Random) -> Callable[[], None] | None:
    """Kills one of the processes that train together, or the one that supervises it."""
    members = training.members()
    if len(members) < training.processes:
        return None
    os.kill(draw.choice([members[member], *_children(members[member])]), signal.SIGKILL)
    return _nothing


def _children(process: int) -> list[int]:
    """Returns the ids of the children of a process, the oldest first."""
    children = pathlib.Path(f"/proc/{process}/task/{process}/children")
    return sorted(map(int, children.read_text().split()))


def _signal(training: Training, number: int) -> Callable[[], None] | None:
    if not training.goes_on():
        return None
    training.process.send_signal(number)
    return _nothing


def _nothing() -> None:
    pass


def _save(folder: pathlib.Path) -> Callable[[], bool]:
    """Returns a condition: a save has begun since it was last asked."""
    return _news(lambda: (name for name in _names(folder) if not name.isdigit()))


def _deletion(folder: pathlib.Path) -> Callable[[], bool]:
    """Returns a condition: a save has ended since it was last asked; then old ones are deleted."""
    return _news(lambda: (name for name in _names(folder) if name.isdigit()))


def _news(names: Callable[[], Iterator[str]]) -> Callable[[], bool]:
    known = set(names())

    def condition() -> bool:
        new = set(names()) - known
        known.update(new)
        return bool(new)

    return condition


def _names(folder: pathlib.Path) -> Sequence[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder / "checkpoints")
    return ()


def _lock_of(training: Training) -> Callable[[], bool]:
    file = training.folder / "lock"
    return lambda: file.exists() and f" {training.process.pid} " in file.read_text()


def _set_modes(folder: pathlib.Path, mode: int) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(mode)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False

"""Several processes that train one model, on one host or on many, each with devices of its own.

All of them run the same command. The first one has the folder of the run to itself: what it finds
there the others are told, and only it writes and prints.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from resnet_jax.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The numbers of processes that programs which start them tell; jax finds the rest.
_SCHEDULERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_SILENCE = 20  # seconds after which a process that is not heard of counts as dead
_PATIENCE = 300  # seconds that processes wait for each other at the start
JOINED = "RESNET_JAX_JOINED"  # variable with a folder where each process that has joined says so


class Place(NamedTuple):
    """The place of a process among those of a training.

    Attributes:
      coordinator: `HOST:PORT`, by which the first process is reached; None: jax finds all three.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def find_place(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """Returns the place of this process; None: it trains alone.

    Args:
      coordinator: see `Place`, as all three; None: the command line does not say.
      num_processes: how many there are.
      process_id: which of them this is.
      environment: JAX's variables stand for flags that are missing; else those of SLURM or Open MPI
        say whether there are more processes.

    Raises:
      UserError: if one of the three is missing or makes no sense.
    """
    names = [f"--{name}" for name in Place._fields]
    given = zip((coordinator, num_processes, process_id), VARIABLES, strict=True)
    found = [environment.get(name) if value is None else str(value) for value, name in given]
    if not any(found):
        sizes = [environment.get(name, "") for name in _SCHEDULERS]
        return Place() if any(size.isdecimal() and int(size) > 1 for size in sizes) else None
    for flag, variable, value in zip(names, VARIABLES, found, strict=True):
        if value is None:
            raise UserError(f"{flag} is missing, as is the environment variable {variable}")
    address, *numbers = map(str, found)
    if not address.rpartition(":")[2].isdecimal() or not all(n.isdecimal() for n in numbers):
        raise UserError(
            f"{' '.join(names)} take HOST:PORT and two numbers, not {address} {' '.join(numbers)}"
        )
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(f"{names[2]} counts from 0: it must be less than {count}, not {index}")
    return Place(address, count, index)


def supervise() -> None:
    """Goes on in a child of this process, which tells in one line why the child ends, if it fails.

    When one process of a training ends, libraries of the others print much and abort them. Call it
    before jax has devices. It returns in the child, whose output but for Python's own goes nowhere.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(ours)
        sys.exit(_attend(child))
    os.close(theirs)
    os.setpgid(0, 0)  # signals of a terminal reach the parent alone, which hands them on
    threading.Thread(target=_end_with, args=[ours], daemon=True).start()
    streams = [os.fdopen(os.dup(number), "w", 1, errors="backslashreplace") for number in (1, 2)]
    sys.stdout, sys.stderr = streams
    sys.__stderr__ = sys.stderr  # type: ignore[misc]
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _attend(child: int) -> int:
    """Hands signals to a child until it ends; returns its status, or 1 if it was aborted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status >= 0:
        return status
    if status != -signal.SIGABRT:
        print(f"error: this process was killed by signal {-status}", file=sys.stderr)
        return 128 - status
    _print_lost()
    return 1


def _print_lost() -> None:
    print(
        "error: another process of this training has ended or is out of reach; the same command "
        "on all hosts resumes",
        file=sys.stderr,
    )


def _end_with(pipe: int) -> None:
    """Ends this process when its parent does, however that happens."""
    os.read(pipe, 1)
    os._exit(1)


def join(place: Place) -> None:
    """Makes the devices of all processes those of jax; returns when all have come.

    Args:
      place: that of this process.

    Raises:
      UserError: if they don't all come in five minutes, or a scheduler does not tell enough.
    """
    try:
        jax.distributed.initialize(
            *place, initialization_timeout=_PATIENCE, heartbeat_timeout_seconds=_SILENCE
        )
    except (RuntimeError, ValueError, LookupError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the processes of this training did not meet ({reason[:200]}); give each "
            "--coordinator, --num_processes and --process_id"
        ) from None
    if folder := os.environ.get(JOINED):
        pathlib.Path(folder, str(jax.process_index())).touch()


def end(status: int) -> None:
    """Ends a process that has joined others: at once if it failed, else when they end too.

    Args:
      status: its exit status.
    """
    if status == 0 or status > 128:
        jax.distributed.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def losses() -> Iterator[None]:
    """Ends this process with one line if another process is lost while they compute together."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_lost(error):
            raise
        _print_lost()
        os._exit(1)


def is_lost(error: Exception) -> bool:
    """Returns whether an error of jax says that another process can't be reached."""
    return any(sign in str(error) for sign in ("Gloo", "NCCL", "UNAVAILABLE", "connection"))


def is_first() -> bool:
    """Returns whether this process is the first, or the only one."""
    return jax.process_index() == 0


def share(make: Callable[[], Any]) -> Any:
    """Returns in every process what the first one makes.

    Args:
      make: returns dicts by texts, arrays, texts, bytes, numbers and None; called by the first.
    """
    if jax.process_count() == 1:
        return make()
    content = msgpack_serialize({"made": make()}) if is_first() else b""
    size = int(broadcast_one_to_all(np.int32(len(content))))
    sent = np.zeros(size, np.uint8)
    sent[: len(content)] = np.frombuffer(content, np.uint8)
    return msgpack_restore(np.asarray(broadcast_one_to_all(sent)).tobytes())["made"]


class Stop:
    """Whether to stop, which all processes learn at the same step.

    Attributes:
      signal: a signal that one of them received; 0: none did.
    """

    def __init__(self, received: Sequence[int]) -> None:
        """Binds the signals that this process receives, oldest first."""
        self.signal, self._received = 0, received

    def wanted(self) -> bool:
        """Returns whether any process received a signal; all have to ask equally often."""
        self.signal = next(iter(self._received), 0)
        if jax.process_count() > 1:
            self.signal = int(process_allgather(np.int32(self.signal)).max())
        return bool(self.signal)

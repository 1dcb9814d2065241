"""Several processes that train one model, on one host or on many, each with devices of its own.

All of them run the same command. The first one has the folder of the run to itself: what it finds
there the others are told, and only it writes and prints.
"""

import contextlib
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices

from resnet_jax.errors import UserError, one_line, tell
from resnet_jax.platform import SAME, show_cursor

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The numbers of processes that programs which start them tell; jax finds the rest.
_SCHEDULERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_SILENCE = 25  # seconds after which a process that is not heard of counts as dead
_PATIENCE = 300  # seconds that processes wait for each other at the start
JOINED = "RESNET_JAX_JOINED"  # variable with a folder where each process that has joined says so

_parent: socket.socket | None = None  # that of this process, if it is a child


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
        say whether there are more processes, unless `num_processes` is 1.

    Raises:
      UserError: if one of the three is missing or makes no sense.
    """
    names = [f"--{name}" for name in Place._fields]
    given = (coordinator, num_processes, process_id)
    found = [
        (environment.get(name) or None) if value is None else str(value)
        for value, name in zip(given, VARIABLES, strict=True)
    ]
    if found[1] == "1":
        return None
    if not any(found):
        sizes = [environment.get(name, "") for name in _SCHEDULERS]
        return Place() if any(size.isdecimal() and int(size) > 1 for size in sizes) else None
    for flag, variable, value in zip(names, VARIABLES, found, strict=True):
        if value is None:
            raise UserError(f"{flag} is missing, as is the environment variable {variable}")
    address, count, index = [value or "" for value in found]
    host, _, port = address.rpartition(":")
    if not (host and all(value.isdecimal() for value in (port, count, index))):
        values = " ".join([address, count, index])
        raise UserError(f"{' '.join(names)} take HOST:PORT and two numbers, not {values}")
    if int(index) >= int(count):
        raise UserError(f"{names[2]} counts from 0: it must be less than {count}, not {index}")
    return Place(address, int(count), int(index))


def supervise() -> None:
    """Goes on in a child of this process, which says in one line why the child ends, if it fails.

    When one process of a training ends, libraries of the others print much and abort them. Call it
    before jax has devices. It returns in the child; what libraries print there goes to a file.
    """
    with tempfile.NamedTemporaryFile(prefix="resnet_jax_", suffix=".log", delete=False) as noise:
        global _parent
        childs, _parent = socket.socketpair()
        child = os.fork()
        if child:
            _parent.close()
            os._exit(_attend(child, childs, pathlib.Path(noise.name)))
        childs.close()
        os.setpgid(0, 0)  # signals of a terminal reach the parent alone, which hands them on
        threading.Thread(target=_end_with, args=[_parent], daemon=True).start()
        python = [os.fdopen(os.dup(file), "w", 1, errors="backslashreplace") for file in (1, 2)]
        sys.stdout, sys.stderr = python
        sys.__stderr__ = sys.stderr  # type: ignore[misc]
        for file in (1, 2):
            os.dup2(noise.fileno(), file)


def _attend(child: int, told: socket.socket, noise: pathlib.Path) -> int:
    """Hands signals to a child until it ends; returns the status that it told or ended with."""
    first = 0.0

    def hand_on(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or now
        # The second one is for a child that waits in a library, where it does not hear of any.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL if now > first + SAME else number)

    stops = signal.SIGINT, signal.SIGTERM
    for number in stops:
        signal.signal(number, hand_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    show_cursor()  # the child, whose output is a file, can't
    told.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        if status < 0 and (word := told.recv(1)):
            status = word[0]
    if status == -signal.SIGABRT:
        _print_lost(f" (libraries say more in {noise})")
        return 1
    more = f" (libraries say more in {noise})"
    if status >= 0 or -status in (signal.SIGKILL, *stops):
        noise.unlink(missing_ok=True)
        more = ""
    if -status in stops:  # while it waited for the others, or by a second signal
        tell("stopped; the same command again resumes\n")
    elif status < 0:
        print(f"error: this process was killed by signal {-status}{more}", file=sys.stderr)
    return status if status >= 0 else 128 - status


def _print_lost(more: str = "") -> None:
    print(
        f"error: another process of this training has ended or is out of reach{more}; the same "
        "command on all hosts resumes",
        file=sys.stderr,
    )


def _end_with(parent: socket.socket) -> None:
    """Ends this process when its parent does, however that happens."""
    parent.recv(1)
    os._exit(1)


def join(place: Place) -> None:
    """Makes the devices of all processes those of jax; returns when all have come.

    Args:
      place: that of this process.

    Raises:
      UserError: if they don't all come in five minutes, a scheduler does not tell enough, or they
        have different numbers of devices.
    """
    # Else jax takes one device a process where it finds a scheduler.
    method = "deactivate" if place.coordinator else None
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        if place.process_id:
            host, _, port = str(place.coordinator).rpartition(":")
            os.environ.setdefault("no_grpc_proxy", host.strip("[]"))  # proxies are for downloads
            _wait_for(host.strip("[]"), port)
        jax.distributed.initialize(
            *place,
            cluster_detection_method=method,
            initialization_timeout=_PATIENCE,
            heartbeat_timeout_seconds=_SILENCE,
        )
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the processes of this training did not meet ({reason[:200]}); give each "
            "--coordinator, --num_processes and --process_id"
        ) from None
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if jax.default_backend() == "gpu":
        # XLA tunes kernels with all processes, and would wait for the first, which alone keeps
        # compiled programs, on a host that finds them there.
        jax.config.update("jax_enable_compilation_cache", False)
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"the {jax.process_count()} processes of this training have {jax.device_count()} "
            "devices, which must be equally many in each"
        )
    if folder := os.environ.get(JOINED):
        pathlib.Path(folder, str(jax.process_index())).touch()


def _wait_for(host: str, port: str) -> None:
    """Returns when the first process listens; jax itself would try less and less often."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=_SILENCE).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def end(status: int) -> None:
    """Ends this process; of several at once if it failed, else when the others end too.

    Args:
      status: its exit status.
    """
    if _parent is None:
        sys.exit(status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if status in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):  # as all others do
        # They are aborted if the first one ends before them, which matters to no parent now.
        _parent.send(bytes([status]))
        with contextlib.suppress(Exception):
            sync_global_devices("end")
    os._exit(status)


@contextlib.contextmanager
def losses() -> Iterator[None]:
    """Ends this process with one line if another process is lost while they compute together."""
    try:
        yield
    except UserError:
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of them is up to jax
        is_lost = any(library in str(error) for library in ("Gloo", "NCCL"))
        if jax.process_count() == 1 or not is_lost:
            raise
        _print_lost(f" ({one_line(error)[:300]})")
        os._exit(1)


def is_first() -> bool:
    """Returns whether this process is the first, or the only one."""
    return jax.process_index() == 0


def share(make: Callable[[], Any]) -> Any:
    """Returns in every process what the first one makes.

    Args:
      make: returns dicts by texts, lists, arrays, texts, bytes, numbers and None; called by the
        first.
    """
    if jax.process_count() == 1:
        return make()
    content = msgpack_serialize({"made": make()}) if is_first() else b""
    high, low = broadcast_one_to_all(np.array(divmod(len(content), 2**30), np.int32))
    sent = np.zeros(int(high) * 2**30 + int(low), np.uint8)
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
        self._asked: jax.Array | int = 0
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
        self._each = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        every = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._largest = jax.jit(jnp.max, out_shardings=every)

    def wanted(self) -> bool:
        """Returns whether any process received a signal; all have to ask equally often.

        Of several processes each learns what they found when they were asked before, so that none
        waits for the step that was dispatched last.
        """
        own = next(iter(self._received), 0)
        if jax.process_count() == 1:
            self.signal = own
        else:
            signals = np.full(jax.local_device_count(), own, np.int32)
            asked = jax.make_array_from_process_local_data(self._each, signals)
            self.signal, self._asked = int(self._asked), self._largest(asked)
        return bool(self.signal)

"""The process and its machine: what `main`, and only it, sets for all of a program."""

import contextlib
import ctypes
import functools
import logging
import math
import os
import pathlib
import platform
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import platformdirs

from resnet_jax.errors import TrainingFailed, UserError, tell

# Without them a GPU adds in an order that varies, and takes the kernels that were the fastest when
# they were tried (openxla.org/xla/determinism). Operations that can't do without are refused.
_DETERMINISTIC = ("--xla_gpu_exclude_nondeterministic_ops=true", "--xla_gpu_autotune_level=0")

SAME = 0.5  # seconds in which signals are one

onednn = False  # whether oneDNN computes the convolutions of a CPU; `resnet_jax.cpu.enable` says so

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def enable_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless jax was given another one.

    Without a folder that can be written there is no cache.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # One per machine: what was compiled for another CPU may not run on this one.
        try:
            cache = platformdirs.user_cache_dir("resnet_jax")
            folder = os.path.join(cache, "compiled", platform.node())
            os.makedirs(folder, exist_ok=True)
        except (OSError, RuntimeError):  # there is no home
            return
        # What jax can't write as a whole it leaves torn, for good.
        if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < 2**28:
            return
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def request_determinism() -> None:
    """Asks XLA for GPU programs that give the same bits every time; call it before jax is used."""
    os.environ["XLA_FLAGS"] = " ".join([*_given_flags(), *_missing_flags()])
    # XLA's own cache would bring in the kernels that were fastest in other runs.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def check_deterministic() -> None:
    """Refuses a GPU whose programs may give other bits every time.

    Raises:
      UserError: if this process was not started for determinism.
    """
    if jax.default_backend() == "gpu" and _missing_flags():
        flags = " ".join([*_given_flags(), *_missing_flags()])
        raise UserError(
            "config field deterministic is True but jax is using the GPU already; start Python "
            f"with the environment variable XLA_FLAGS='{flags}'"
        )


def _given_flags() -> list[str]:
    return os.environ.get("XLA_FLAGS", "").split()


def _missing_flags() -> list[str]:
    return [flag for flag in _DETERMINISTIC if flag not in _given_flags()]


@contextlib.contextmanager
def memory_errors(
    advice: str = "lower batch_size or evaluate.batch_size, or take a smaller model",
) -> Iterator[None]:
    """Turns lack of memory, on a device or on this machine, into one line.

    Args:
      advice: what to do about it.

    Raises:
      TrainingFailed: if it was short.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise TrainingFailed(f"there is too little memory; {advice}") from error
        raise


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees; call it before jax is used.

    XLA's CPU backend allocates a program's temporary buffers anew at each call. glibc gives blocks
    of their size back to the system at once, which then has to map and to zero them page by page: a
    third of the training step of a small network. On other systems this does nothing.

    Only the main thread's heap can be kept whole, so programs run on the thread that calls them.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def num_threads() -> int:
    """Returns how many threads this process may keep busy.

    The environment variable OMP_NUM_THREADS decides; otherwise its affinity and its control group.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_quota())))


def _cpu_quota(root: str = "/sys/fs/cgroup", process: str = "/proc/self/cgroup") -> float:
    """Returns the number of cores that the process's control group (version 2) may use at once."""
    quota = math.inf
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = pathlib.Path(root, pathlib.Path(process).read_text().split("::", 1)[1].strip("/\n"))
        for folder in (group, *group.parents):
            if (folder / "cpu.max").is_file():
                most, period = (folder / "cpu.max").read_text().split()
                quota = min(quota, math.inf if most == "max" else int(most) / int(period))
    return quota


@functools.cache
def cpu_features() -> frozenset[str]:
    """Returns the names of the processor's features, as Linux has them; elsewhere none."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def compute_dtype(wanted: str) -> str:
    """Returns the dtype that a training computes in here: "float32" or "bfloat16".

    Args:
      wanted: one of both, or "auto": bfloat16 where it is fast: on GPUs from NVIDIA's compute
        capability 8 on, and by oneDNN on a CPU with instructions for it.

    Raises:
      UserError: if it is to be bfloat16 and the device would have to emulate it.
    """
    on_cpu = jax.default_backend() == "cpu"
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # such as 7.5
    has_bfloat16 = not re.match(r"[1-7]\.", capability)
    if on_cpu:
        has_bfloat16 = bool(cpu_features() & {"avx512_bf16", "amx_bf16"})
    if wanted == "bfloat16" and not has_bfloat16:
        raise UserError(
            "config field model.dtype is 'bfloat16', for which this device has no instructions (a "
            "CPU's AVX-512 BF16 or AMX, a GPU of compute capability 8); set it to 'float32', or to "
            "'auto'"
        )
    if wanted == "auto":
        is_fast = has_bfloat16 and (not on_cpu or (onednn and jax.device_count() == 1))
        return "bfloat16" if is_fast else "float32"
    return wanted


def machine_memory() -> int:
    """Returns the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def show_cursor() -> None:
    """Shows the terminal's cursor, which bars hide, before the process ends in mid-bar."""
    if sys.__stdout__ and sys.__stdout__.isatty():
        os.write(sys.__stdout__.fileno(), b"\x1b[?25h")


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yields a list that SIGINT or SIGTERM fills; a second signal ends the process at once."""
    received: list[int] = []
    first = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or now
        if received and now < first + SAME:  # to this process, and by way of its parent
            return
        if received:
            show_cursor()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            os._exit(128 + number)  # the first process of a container survives its own signals
        received.append(number)
        tell("\nstopping after this step; a second signal stops at once\n")

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@functools.cache
def quieten_libraries() -> None:
    """Keeps off the screen what orbax and its threads say of errors that they raise too."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # Threads report to an event loop that the error has ended already.
    unraisablehook, excepthook = sys.unraisablehook, sys.excepthook

    def on_unraisable(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            unraisablehook(unraisable)

    def on_exception(kind: Any, error: BaseException, trace: Any) -> None:
        if str(error) != "Event loop is closed":
            excepthook(kind, error, trace)

    sys.unraisablehook, sys.excepthook = on_unraisable, on_exception

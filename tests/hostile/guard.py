"""Watches a call: what it executes, what it writes and where, how long it takes, how much memory.

Python reports such things as audit events, from all threads. What libraries in C write is found by
looking at the folders afterwards.
"""

import contextlib
import os
import pathlib
import re
import resource
import signal
import sys

SECONDS = 10  # of processor time: what others do on the machine does not count
STUCK_SECONDS = 120  # of time, for what waits without computing
BYTES = 2 * 2**30

_EXECUTES = re.compile(
    r"os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|kill|putenv|unsetenv)|pty\.spawn"
    r"|subprocess\.Popen|socket\.(connect|bind)|urllib\.Request|webbrowser\.open|ctypes\.dlopen"
    r"|http\.client\.connect|ftplib\.connect|smtplib\.connect|telnetlib\.\w+|code\.__new__"
)
_WRITES = re.compile(
    r"os\.(mkdir|rename|remove|rmdir|symlink|link|truncate|chmod|chown|utime)|sqlite3\.connect"
    r"|shutil\.(rmtree|move|copyfile|copytree|unpack_archive|make_archive)|tempfile\.mk\w+"
)
_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What is seen of one call.

    Attributes:
      violations: one phrase each.
    """

    def __init__(self, *allowed):
        """Binds the folders in which files may be written."""
        self.violations = []
        self._allowed = tuple(os.path.realpath(folder) for folder in allowed)

    def see(self, event, arguments):
        if _EXECUTES.fullmatch(event) and not _is_ours(event, arguments):
            self.violations.append(f"{event} {arguments}"[:300])
        elif event == "open":
            path, mode, flags = arguments
            if (mode and re.search("[wax+]", mode)) or (not mode and flags & _WRITING_FLAGS):
                self._write(event, path)
        elif _WRITES.fullmatch(event):
            for path in arguments:
                if isinstance(path, str | bytes | os.PathLike):
                    self._write(event, path, follows=False)

    def _write(self, event, path, follows=True):
        if isinstance(path, int) or os.fspath(path) in ("/dev/null", b"/dev/null"):
            return
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        real = os.path.join(os.path.realpath(folder), name)  # what is made or removed may be a link
        real = os.path.realpath(real) if follows else real
        if not any(f"{real}/".startswith(f"{folder}/") for folder in self._allowed):
            self.violations.append(f"{event} of {real}")


def _is_ours(event, arguments):
    """Returns whether a run asks for its commit, or the C library for its allocator."""
    asks_git = event == "subprocess.Popen" and os.path.basename(str(arguments[0])) == "git"
    return asks_git or (event, arguments) == ("ctypes.dlopen", (None,))


_current: list[Watch] = []


def _hook(event, arguments):
    if _current:
        _current[0].see(event, arguments)


sys.addaudithook(_hook)


class Stuck(BaseException):
    """Ends a call that takes too long; not an Exception, which the call might catch."""


@contextlib.contextmanager
def watch(*allowed):
    """Yields a `Watch` of what is done inside; memory and time are among its violations."""

    found = Watch(*allowed)

    def stop(number, frame):
        if _current:
            found.violations.append(f"took too long ({signal.Signals(number).name})")
            raise Stuck

    numbers = {signal.SIGALRM: signal.ITIMER_REAL, signal.SIGPROF: signal.ITIMER_PROF}
    old = {number: signal.signal(number, stop) for number in numbers}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # What takes too much is to fail before the machine does; threads and files mapped come on top.
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 3 * BYTES, limits[1]))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    _current.append(found)
    try:
        yield found
    except Stuck:
        pass
    finally:
        _current.clear()
        for number, timer in numbers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, old[number])
        resource.setrlimit(resource.RLIMIT_AS, limits)
    if (taken := _memory("VmHWM") - before) > BYTES:
        found.violations.append(f"took {taken / 2**30:.1f} GiB of memory")


def _memory(field):
    """Returns a field of this process's status, bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024

"""Runs a command as several processes of one training on this machine, to try what many hosts do.

  python scripts/launch_local.py --processes 2 -- python -m resnet_jax.main --config=quickstart

Each process gets its share of the cores, and no GPU unless JAX_PLATFORMS says so. What others than
the first one print is marked by their numbers. It fails unless all of them joined; when one ends,
the others have half a minute to.
"""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO

from resnet_jax.errors import tell
from resnet_jax.hosts import JOINED, VARIABLES

GRACE = 30  # seconds


def take_cores(index: int, processes: int) -> None:
    """Keeps this process to its share of the cores, or to one, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[index::processes] or {cores[index % len(cores)]})


def start(
    command: Sequence[str], index: int, processes: int, port: int, joined: str
) -> subprocess.Popen[str]:
    """Starts a process; in a session of its own, so that signals come from here alone."""
    values = (f"localhost:{port}", processes, index)
    environment = dict(zip(VARIABLES, map(str, values), strict=True)) | {JOINED: joined}
    output = None if index == 0 else subprocess.PIPE
    return subprocess.Popen(
        command,
        env={"JAX_PLATFORMS": "cpu"} | os.environ | environment,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: take_cores(index, processes),
    )


def show(index: int, lines: IO[str]) -> None:
    """Prints what a process prints, marked."""
    for line in lines:
        tell(f"[{index}] {line}")


def wait(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Returns the statuses of all, of which those that outlive another for long are terminated."""
    deadline = None
    while None in [process.poll() for process in processes]:
        if deadline is None and any(process.returncode is not None for process in processes):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
            tell(f"error: a process outlived another for {GRACE} s: killed\n")
            deadline = math.inf
        time.sleep(0.1)
    return [process.returncode for process in processes]


def launch(command: Sequence[str], count: int) -> int:
    """Runs a command as so many processes; returns the exit status."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory() as joined:
        processes: list[subprocess.Popen[str]] = []

        def hand_on(number: int, frame: object) -> None:
            for process in processes:
                process.send_signal(number)  # a training goes on when its terminal is closed

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.signal(number, hand_on) for number in numbers}
        for index in range(count):
            process = start(command, index, count, port, joined)
            processes.append(process)
            if process.stdout:
                threading.Thread(target=show, args=(index, process.stdout)).start()
        statuses = wait(processes)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        missing = {str(index) for index in range(count)} - set(os.listdir(joined))
    if missing:
        late = ", ".join(sorted(missing))
        print(f"error: process {late} never joined the others", file=sys.stderr)
        return max(1, *statuses)
    return max(status if status >= 0 else 128 - status for status in statuses)


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("command", nargs="+", help="after --, what each of them runs")
    arguments = parser.parse_args()
    if arguments.processes < 1:
        parser.error("--processes takes a number from 1 on")
    return launch(arguments.command, arguments.processes)


if __name__ == "__main__":
    sys.exit(main())

"""The processes that are measured: one runs at a time, and the others are stopped meanwhile."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from benchmark.worker import Unavailable
from resnet_jax.errors import UserError

OURS = "resnet_jax"
Measured = TypeVar("Measured")


class Contestant:
    """A process that does something when told to, and is stopped until then.

    Attributes:
      name: its name.
      started: what it said of itself.
    """

    def __init__(self, name: str, module: str, spec: dict[str, Any]) -> None:
        """Starts it, and waits until it is ready to be measured.

        Args:
          name: its name.
          module: the module that it runs, which calls `benchmark.worker.serve`.
          spec: what to measure.

        Raises:
          Unavailable: if it can't take part here.
          UserError: if it fails.
        """
        self.name = name
        paths = [str(pathlib.Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        }
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
            # With its own workers it is stopped and ended as one. It stays in this session: so the
            # system ends it, although stopped, if this process is killed.
            process_group=0,
        )
        try:
            self.started = self.tell(**spec, contestant=name)
        except BaseException:
            self.close()
            raise

    def tell(self, **command: Any) -> dict[str, Any]:
        """Continues the process, gives it a command, and stops it again; returns its answer."""
        assert self._process.stdin and self._process.stdout
        os.killpg(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            last = (self._log.read().strip() or "no message").splitlines()[-1]
            raise UserError(f"{self.name} ended: {last}")
        os.killpg(self._process.pid, signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(answer)
        if "unavailable" in reply:
            raise Unavailable(reply["unavailable"])
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def close(self) -> None:
        """Ends the process, which frees what it shares, and its own ones."""
        assert self._process.stdin
        os.killpg(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:  # closes the pipes and waits
            self._log.close()


def gather(
    stack: contextlib.ExitStack, wanted: Iterable[tuple[str, str]], spec: dict[str, Any]
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Starts contestants one after the other; returns them, and why the others are absent.

    Args:
      stack: closes them.
      wanted: pairs of name and module.
      spec: what to measure.
    """
    contestants, absent = {}, {}
    for name, module in wanted:
        say(f"{name} starts and compiles")
        try:
            contestants[name] = stack.enter_context(
                contextlib.closing(Contestant(name, module, spec))
            )
        except Unavailable as reason:
            say(f"without {name}: {reason}")
            absent[name] = str(reason)
    return contestants, absent


def take_turns(
    contestants: Sequence[Contestant], rounds: int, turn: Callable[[Contestant], Measured]
) -> dict[str, list[Measured]]:
    """Returns what each contestant measured in its turns.

    Args:
      contestants: who take turns, one after the other.
      rounds: turns of each.
      turn: makes one.
    """
    measured: dict[str, list[Measured]] = {contestant.name: [] for contestant in contestants}
    for index in range(rounds):
        say(f"round {index + 1} of {rounds}")
        for contestant in contestants:
            measured[contestant.name].append(turn(contestant))
    return measured


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)

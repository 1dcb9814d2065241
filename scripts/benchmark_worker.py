"""What the benchmark's workers share: the commands that they obey; see scripts/benchmark.py."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

Answer = dict[str, Any]


class Measurement(Protocol):
    """A training that goes on when told to."""

    def train(self, steps: int) -> float:
        """Takes training steps; returns the last one's mean loss."""

    def evaluate(self) -> float:
        """Scores the test images; returns their mean loss."""


def compile_seconds(measurement: Measurement, steps: int) -> float:
    """Compiles everything; returns the seconds of the first steps beyond those of the second ones.

    Args:
      measurement: the training.
      steps: number of steps that it takes at once.
    """
    start = time.perf_counter()
    measurement.train(steps)
    compiled = time.perf_counter()
    measurement.train(steps)
    again = time.perf_counter()
    measurement.evaluate()
    return (compiled - start) - (again - compiled)


def obey(measurement: Measurement, others: Mapping[str, Callable[[], Answer]]) -> None:
    """Obeys the commands on standard input, a line of JSON each, and answers in kind.

    Args:
      measurement: what trains and evaluates.
      others: further commands by name.
    """
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        if command["do"] == "train":
            answer: Answer = {"loss": measurement.train(command["steps"])}
        elif command["do"] == "evaluate":
            answer = {"loss": measurement.evaluate()}
        else:
            answer = others[command["do"]]()
        answer["seconds"] = time.perf_counter() - start
        say(answer)


def say(answer: Answer) -> None:
    """Prints an answer, or what the worker says of itself at first."""
    print(json.dumps(answer), flush=True)

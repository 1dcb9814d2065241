"""What all contestants' processes share: they obey commands, a line of JSON each, and answer."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from resnet_jax.errors import UserError

Answer = dict[str, Any]
Commands = Mapping[str, Callable[..., Answer]]


class Unavailable(Exception):
    """A contestant can't take part on this machine; the message says why."""


def serve(start: Callable[[Answer], tuple[Answer, Commands]]) -> None:
    """Reads what to measure, says what the process is, and obeys until standard input ends.

    Args:
      start: takes the first line's content; returns what the process says of itself, and what
        obeys each command, by its name.
    """
    try:
        introduction, commands = start(json.loads(sys.stdin.readline()))
    except UserError as reason:
        return _say({"error": str(reason)})
    except Unavailable as reason:
        return _say({"unavailable": str(reason)})
    _say(introduction)
    for line in sys.stdin:
        command = json.loads(line)
        obey = commands[command.pop("do")]
        begin = time.perf_counter()
        answer = obey(**command)
        _say({"seconds": time.perf_counter() - begin} | answer)
    return None


def _say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


class Measurement(Protocol):
    """A training that goes on when told to."""

    def train(self, steps: int) -> float:
        """Takes training steps; returns the last one's mean loss."""

    def evaluate(self) -> float:
        """Scores the test images; returns their mean loss."""


def first_steps(measurement: Measurement) -> Answer:
    """Compiles everything; returns losses, and the seconds of the first step beyond the second."""
    losses = [measurement.evaluate()]
    begin = time.perf_counter()
    losses.append(measurement.train(1))
    compiled = time.perf_counter()
    losses.append(measurement.train(1))
    again = time.perf_counter()
    losses.append(measurement.evaluate())
    return {"compile_seconds": (compiled - begin) - (again - compiled), "losses": losses}


def training_commands(measurement: Measurement, device_peak: Callable[[], int]) -> Commands:
    """Returns what obeys the commands that all trainings are given.

    Args:
      measurement: the training.
      device_peak: returns the most memory that the device had in use, bytes; 0 on a CPU.
    """

    def memory() -> Answer:
        unit = 1 if sys.platform == "darwin" else 1024
        on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"bytes": device_peak() or on_host}

    return {
        "train": lambda steps: {"loss": measurement.train(steps)},
        "evaluate": lambda: {"loss": measurement.evaluate()},
        "memory": memory,
    }


def random_images(spec: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8 `[images, size, size, 3]`, and labels, int32; all have the same."""
    random, size = np.random.default_rng(0), spec["image_size"]
    images = random.integers(0, 256, (spec["images"], size, size, 3), np.uint8)
    return images, random.integers(0, 10, (spec["images"],), np.int32)


def orders(count: int) -> Iterator[np.ndarray]:
    """Yields the order of the images in each epoch, int32 `[count]`; all have the same."""
    random = np.random.default_rng(1)
    while True:
        yield random.permutation(count).astype(np.int32)

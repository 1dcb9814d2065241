"""Measures training and inference, alone or beside PyTorch, whose turns alternate with ours.

  python scripts/benchmark --model=resnet_small,resnet18 --batch=128 --peer=torch --json=FILE

Each contestant is a process of its own that keeps its model, data and compiled program, and is
stopped while another is measured. All start from the same weights and take the same images in the
same order; unless their losses agree nothing is measured. In each round they take their turns one
after the other, about a second each; the figures are medians over the rounds. A Markdown table is
printed; --json keeps every time that was taken.

What is timed is a whole training step: images drawn from a data set on the device as uint8,
normalised, forward, backward, SGD with momentum. Inference scores a test set of eight batches.
Random images are used, no augmentation and no dropout. On a CPU all contestants use all cores that
this process may use: `taskset -c 0,1 python scripts/benchmark ...` measures two threads.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from benchmark import machine, tables
from benchmark.contestants import OURS, Contestant, gather, say, take_turns
from resnet_jax.errors import UserError, unknown
from resnet_jax.models.registry import create_model
from resnet_jax.platform import num_threads
from resnet_jax.report.summary import Layer, layer_table

PEERS = ("torch", "torch_channels_last", "torch_compile")
DTYPES = {"float32": 4, "bfloat16": 2}  # bytes
# How far losses may lie apart, as a share: they have the rounding of the dtype in every layer.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}
# How far what two steps change of the losses may: gradients of ResNet-50 in float32 are 2 % off.
LEARNT = 0.05
TURN = 1.0  # seconds
TEST = 8  # batches

# How often a training step moves each output of a layer, forward and backward, where nothing is
# fused. A convolution writes it and the next layer reads it; then the gradient is read twice, and
# the input is read and its gradient written. A norm reads twice and writes; then it reads input
# and gradient twice and writes. In inference both write once and are read once.
TRAFFIC = {"Conv": 6, "BatchNorm": 8}


def measure(
    name: str, batch: int, dtype: str, image_size: int, peers: Sequence[str], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, Any]]:
    """Measures all contestants on one model.

    Args:
      name: registry name of the model.
      batch: images per step.
      dtype: dtype of the computation.
      image_size: side of the images, pixels; from 128 on, residual networks have their ImageNet
        stem.
      peers: names among `PEERS`.
      rounds: number of turns that each contestant takes.

    Returns:
      A row for each that took part, why the others did not, by name, and what the contestants say
      of themselves.

    Raises:
      UserError: if a contestant can't be started, or the losses do not agree.
    """
    spec, layers = task_of(name, batch, dtype, image_size)
    say(f"{name}, batch {batch}, {dtype}")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        spec["weights"] = os.path.join(folder, "weights.pth")  # written by the first peer
        wanted = [
            *((peer, "benchmark.training_torch") for peer in peers),
            (OURS, "benchmark.training_jax"),
        ]
        contestants, absent = gather(stack, wanted, spec)
        ours = contestants.pop(OURS)
        everyone = [ours, *contestants.values()]
        _check_losses(
            {contestant.name: contestant.started["losses"] for contestant in everyone}, dtype
        )
        steps = {contestant.name: steps_of_a_turn(contestant) for contestant in everyone}
        scores = {contestant.name: scores_of_a_turn(contestant) for contestant in everyone}

        def turn(contestant: Contestant) -> tuple[float, float]:
            seconds = contestant.tell(do="train", steps=steps[contestant.name])["seconds"]
            count = scores[contestant.name]
            scored = sum(contestant.tell(do="evaluate")["seconds"] for _ in range(count))
            return seconds / steps[contestant.name], scored / count / TEST

        times = take_turns(everyone, rounds, turn)
        peaks = {c.name: c.tell(do="memory")["bytes"] for c in everyone}  # before the roofs' own
        roofs = ours.tell(do="roofs")
        results = [_result(c, times[c.name], peaks[c.name], roofs, layers, spec) for c in everyone]
        provenance: dict[str, Any] = {}
        for contestant in everyone:
            provenance |= contestant.started["provenance"]
    return results, absent, provenance


def task_of(
    name: str, batch: int, dtype: str, image_size: int
) -> tuple[dict[str, Any], Sequence[Layer]]:
    """Returns what all contestants are told, and the layers of the model."""
    options: dict[str, Any] = {"stem": "imagenet"} if "resnet" in name and image_size >= 128 else {}
    if hasattr(create_model(name), "dropout_rate"):
        options["dropout_rate"] = 0.0  # what it drops is random, and the losses are to agree
    model = create_model(name, **options)
    spec = {
        "model": name,
        "options": options,
        "family": type(model).__name__,
        "fields": _fields(model),
        "batch": batch,
        "dtype": dtype,
        "image_size": image_size,
        "images": (50 if image_size < 128 else 10) * batch,  # random ones take long to draw
        "test_images": TEST * batch,
        "threads": num_threads(),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "learning_rate": 1e-2,
        "momentum": 0.9,
    }
    return spec, layer_table(model, (image_size, image_size, 3))


def _fields(model: nn.Module) -> dict[str, Any]:
    """Returns those fields of a module that JSON can hold; of classes, the names."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {k: v.__name__ if isinstance(v, type) else v for k, v in fields.items()}
    return {k: v for k, v in fields.items() if isinstance(v, str | int | float | tuple)}


def _check_losses(losses: Mapping[str, Sequence[float]], dtype: str) -> None:
    """Refuses contestants whose losses differ: scored, of two training steps, and scored again."""
    ours = losses[OURS]
    before = [ours[0], ours[1], ours[1], ours[0]]  # any step
    allowed = [
        TOLERANCES[dtype] * abs(loss) + LEARNT * abs(loss - first)
        for loss, first in zip(ours, before, strict=True)
    ]
    for name, theirs in losses.items():
        pairs = zip(ours, theirs, allowed, strict=True)
        if not all(abs(a - b) <= most for a, b, most in pairs):  # so NaN is refused too
            raise UserError(
                f"the losses of {name} and {OURS} differ, so nothing was timed: {theirs}, {ours}"
            )


def steps_of_a_turn(contestant: Contestant) -> int:
    """Returns how many steps take about a second, whole calls of the compiled program."""
    unit = contestant.started.get("unit", 1)
    step = contestant.tell(do="train", steps=unit)["seconds"] / unit
    return math.ceil(TURN / step / unit) * unit


def scores_of_a_turn(contestant: Contestant) -> int:
    """Returns how often to score the test set, so that it takes a fifth of a turn or more."""
    return math.ceil(TURN / 5 / contestant.tell(do="evaluate")["seconds"])


def _result(
    contestant: Contestant,
    times: Sequence[tuple[float, float]],
    peak: int,
    roofs: dict[str, float],
    layers: Sequence[Layer],
    spec: dict[str, Any],
) -> dict[str, Any]:
    """Returns the row of a contestant.

    It has the seconds of a training step and of scoring a batch, each a value per round; those of
    the first step beyond the second; the most memory used, the device's own or on a CPU the
    process's; FLOP/s of training from the analytic count, also over those of a large matrix
    product; the traffic of an unfused step over that of a large copy.
    """
    step_seconds, inference_seconds = (list(column) for column in zip(*times, strict=True))
    rate = spec["batch"] / statistics.median(step_seconds)
    flops = 6 * sum(layer.macs for layer in layers) * rate
    moved = sum(TRAFFIC.get(layer.kind, 0) * math.prod(layer.output_shape) for layer in layers)
    return {
        "model": spec["model"],
        "batch": spec["batch"],
        "dtype": spec["dtype"],
        "contestant": contestant.name,
        "step_seconds": step_seconds,
        "inference_seconds": inference_seconds,
        "compile_seconds": contestant.started["compile_seconds"],
        "peak_bytes": peak,
        "flops": flops,
        "compute_share": flops / roofs["flops"],
        "bandwidth_share": moved * DTYPES[spec["dtype"]] * rate / roofs["bandwidth"],
    }


def names_of(given: str, known: Sequence[str], flag: str) -> list[str]:
    """Returns the names of a flag, or raises UserError."""
    for name in given.split(","):
        if name not in known:
            raise unknown(flag, name, known)
    return given.split(",")


def numbers_of(given: str, flag: str) -> list[int]:
    """Returns the numbers of a flag, or raises UserError."""
    if not all(word.isdecimal() and int(word) for word in given.split(",")):
        raise UserError(f"{flag} takes whole numbers with commas between them, not {given!r}")
    return [int(word) for word in given.split(",")]


def main(arguments: Sequence[str]) -> None:
    """Measures what the command line asks for.

    Raises:
      UserError: if it asks for what there is not, or as `measure` does.
    """
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--model", default="resnet_small", help="registry names, with commas")
    parser.add_argument("--batch", default="128", help="images per step, with commas")
    parser.add_argument("--dtype", default="float32", help=f"of {', '.join(DTYPES)}, with commas")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images, pixels")
    parser.add_argument("--peer", choices=("torch",), help=f"the others: {', '.join(PEERS)}")
    machine.add_flags(parser, "contestant")
    parser.epilog = "`decode`, `trials` and `tables` instead of flags do what their --help says"
    given = parser.parse_args(arguments)
    peers = PEERS if given.peer else ()
    record: dict[str, Any] = {"about": machine.describe(), "absent": {}, "training": []}
    for dtype in names_of(given.dtype, tuple(DTYPES), "--dtype"):
        for batch in numbers_of(given.batch, "--batch"):
            for name in given.model.split(","):
                task = name, batch, dtype, given.image_size
                rows, absent, about = measure(*task, peers, given.rounds)
                record["about"] |= about
                record["absent"] |= absent
                record["training"] += rows
                if given.json:
                    given.json.write_text(json.dumps(record, indent=1) + "\n")
    print(tables.markdown(record))

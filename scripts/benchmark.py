"""Measures training and inference, alone or beside PyTorch, whose turns alternate with ours.

  python scripts/benchmark.py --model=resnet_small,resnet18 --batch=128 --peer=torch --json=FILE

Each contestant is a process of its own that keeps its model, data and compiled program. In each
round they take their turns one after the other, about a second each; the figures are medians over
the rounds. A Markdown table is printed; --json keeps every time that was taken.

What is timed is a whole training step: images drawn from a data set on the device as uint8,
normalised, forward, backward, SGD with momentum. Inference scores a test set of eight batches.
Random images are used, and no augmentation. On a CPU all contestants use all cores that this
process may use: `taskset -c 0,1 python scripts/benchmark.py ...` measures two threads.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn

from resnet_jax.errors import UserError, unknown
from resnet_jax.models.registry import create_model
from resnet_jax.report.summary import Layer, layer_table

OURS, PEERS = "resnet_jax", ("torch", "torch_channels_last", "torch_compile")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
TURN = 1.0  # seconds
EPOCH, TEST = 50, 8  # batches

# How often a training step moves each output of a layer, forward and backward, where nothing is
# fused. A convolution writes it and the next layer reads it; then the gradient is read twice, and
# the input is read and its gradient written. A norm reads twice and writes; then it reads input
# and gradient twice and writes. In inference both write once and are read once.
TRAFFIC = {"Conv": 6, "BatchNorm": 8}


class Contestant:
    """A process that trains one model when told to.

    Attributes:
      name: `OURS` or one of `PEERS`.
      started: what it said of itself.
      unit: steps that it takes at once.
    """

    def __init__(self, name: str, spec: dict[str, Any]) -> None:
        """Starts it, and waits until it has taken its first steps.

        Raises:
          UserError: if it can't.
        """
        self.name = name
        script = "benchmark_jax.py" if name == OURS else "benchmark_torch.py"
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.started = self.tell(spec | {"contestant": name})
        self.unit: int = self.started.get("unit", 1)

    def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a command."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(command), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            last = (self._log.read().strip() or "no message").splitlines()[-1]
            raise UserError(f"{self.name} ended: {last}")
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise UserError(f"--peer: {reply['error']}")
        return reply

    def train(self, steps: int) -> float:
        """Returns the seconds of a training step, over `steps` of them."""
        return self.tell({"do": "train", "steps": steps})["seconds"] / steps

    def evaluate(self) -> float:
        """Returns the seconds of scoring a batch."""
        return self.tell({"do": "evaluate"})["seconds"] / TEST

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclasses.dataclass
class Result:
    """What was measured of one contestant.

    Attributes:
      model: registry name.
      batch: images per step.
      dtype: dtype of the computation.
      contestant: `OURS` or one of `PEERS`.
      step_seconds: of a training step, a value per round.
      inference_seconds: of scoring a batch, a value per round.
      compile_seconds: of the first training step beyond the second.
      peak_bytes: most memory used: the device's own, or on a CPU the process's.
      flops: FLOP/s of training, from the analytic count.
      compute_share: `flops` over the measured rate of a large matrix product.
      bandwidth_share: traffic of an unfused step, over the measured rate of a large copy.
      provenance: of the process.
    """

    model: str
    batch: int
    dtype: str
    contestant: str
    step_seconds: list[float]
    inference_seconds: list[float]
    compile_seconds: float
    peak_bytes: int
    flops: float
    compute_share: float
    bandwidth_share: float
    provenance: dict[str, Any]

    @property
    def step(self) -> float:
        """Median seconds of a training step."""
        return statistics.median(self.step_seconds)

    @property
    def inference(self) -> float:
        """Median seconds of scoring a batch."""
        return statistics.median(self.inference_seconds)


def measure(
    name: str, batch: int, dtype: str, image_size: int, peers: Sequence[str], rounds: int
) -> list[Result]:
    """Returns the results of all contestants on one model.

    Args:
      name: registry name of the model.
      batch: images per step.
      dtype: dtype of the computation.
      image_size: side of the images, pixels; from 128 on, residual networks have their ImageNet
        stem.
      peers: names among `PEERS`.
      rounds: number of turns that each contestant takes.
    """
    options: dict[str, Any] = {"stem": "imagenet"} if "resnet" in name and image_size >= 128 else {}
    model = create_model(name, **options)
    layers = layer_table(model, (image_size, image_size, 3))
    spec = {
        "model": name,
        "options": options,
        "family": type(model).__name__,
        "fields": _fields(model),
        "batch": batch,
        "dtype": dtype,
        "image_size": image_size,
        "images": EPOCH * batch,
        "test_images": TEST * batch,
        "threads": len(os.sched_getaffinity(0)),
    }
    with _contestants((OURS, *peers), spec) as contestants:
        ours = contestants[0]
        for peer in contestants[1:]:
            if peer.started["parameters"] != ours.started["parameters"]:
                raise UserError(f"--peer: there is no PyTorch module like {name} here")
        times = _take_turns(contestants, rounds)
        roofs = ours.tell({"do": "roofs"})
        return [
            _result(contestant, times[contestant.name], roofs, layers, spec)
            for contestant in contestants
        ]


def _fields(model: nn.Module) -> dict[str, Any]:
    """Returns those fields of a module that JSON can hold; of classes, the names."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {k: v.__name__ if isinstance(v, type) else v for k, v in fields.items()}
    return {k: v for k, v in fields.items() if isinstance(v, str | int | float | tuple)}


@contextlib.contextmanager
def _contestants(names: Sequence[str], spec: dict[str, Any]) -> Iterator[list[Contestant]]:
    with contextlib.ExitStack() as stack:
        contestants = []
        for name in names:
            _say(f"{spec['model']}, batch {spec['batch']}, {spec['dtype']}: {name} compiles")
            contestants.append(stack.enter_context(contextlib.closing(Contestant(name, spec))))
        yield contestants


def _take_turns(
    contestants: Sequence[Contestant], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Returns the seconds of a training step and of scoring a batch, of each turn."""
    steps = {}
    for contestant in contestants:
        step = contestant.train(contestant.unit)
        turns = math.ceil(TURN / step / contestant.unit)
        steps[contestant.name] = min(turns * contestant.unit, EPOCH)
    times: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contestants}
    for index in range(rounds):
        _say(f"round {index + 1} of {rounds}")
        for contestant in contestants:
            seconds = contestant.train(steps[contestant.name]), contestant.evaluate()
            times[contestant.name].append(seconds)
    return times


def _result(
    contestant: Contestant,
    times: Sequence[tuple[float, float]],
    roofs: dict[str, float],
    layers: Sequence[Layer],
    spec: dict[str, Any],
) -> Result:
    step_seconds, inference_seconds = (list(column) for column in zip(*times, strict=True))
    rate = spec["batch"] / statistics.median(step_seconds)
    flops = 6 * sum(layer.macs for layer in layers) * rate
    moved = sum(TRAFFIC.get(layer.kind, 0) * math.prod(layer.output_shape) for layer in layers)
    return Result(
        model=spec["model"],
        batch=spec["batch"],
        dtype=spec["dtype"],
        contestant=contestant.name,
        step_seconds=step_seconds,
        inference_seconds=inference_seconds,
        compile_seconds=contestant.started["compile_seconds"],
        peak_bytes=contestant.tell({"do": "memory"})["bytes"],
        flops=flops,
        compute_share=flops / roofs["flops"],
        bandwidth_share=moved * DTYPES[spec["dtype"]] * rate / roofs["bandwidth"],
        provenance=contestant.started["provenance"],
    )


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table; a ratio compares ours with a peer's images/s in the same run."""
    head = "| model | batch | dtype | | training, images/s | step, ms | ours / it | inference, "
    head += "images/s | ours / it | TFLOP/s | of matmul | of copy | compile, s | peak, GB |"
    lines = [head, "|---" * 14 + "|"]
    ours = results[0]
    for result in results:
        if result.contestant == OURS:
            ours = result
        cells = [
            result.model,
            str(result.batch),
            result.dtype,
            result.contestant,
            f"{result.batch / result.step:,.0f}",
            f"{1000 * result.step:,.1f}",
            "" if result is ours else f"**{result.step / ours.step:.2f}**",
            f"{result.batch / result.inference:,.0f}",
            "" if result is ours else f"{result.inference / ours.inference:.2f}",
            f"{result.flops / 1e12:.3g}",
            f"{100 * result.compute_share:.0f} %",
            f"{100 * result.bandwidth_share:.0f} %",
            f"{result.compile_seconds:.1f}",
            f"{result.peak_bytes / 1e9:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def provenance(results: Sequence[Result]) -> str:
    """Returns one line that says what was measured on what."""
    ours = results[0].provenance
    line = f"{len(ours['devices'])} x {ours['devices'][0]}, {ours['cores']} cores, "
    line += f"Python {ours['python']}, jax {ours['jax']}"
    theirs = [result.provenance for result in results if result.contestant != OURS]
    line += f", torch {theirs[0]['torch']} ({theirs[0]['threads']} threads)" if theirs else ""
    flags = os.environ.get("XLA_FLAGS")
    return f"{line}, commit {ours['commit']}" + (f", XLA_FLAGS={flags}" if flags else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _names(given: str, known: Sequence[str], flag: str) -> list[str]:
    for name in given.split(","):
        if name not in known:
            raise unknown(flag, name, known)
    return given.split(",")


def _batches(given: str) -> list[int]:
    if not all(word.isdecimal() and int(word) for word in given.split(",")):
        raise UserError(f"--batch takes whole numbers with commas between them, not {given!r}")
    return [int(word) for word in given.split(",")]


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", default="resnet_small", help="registry names, with commas")
    parser.add_argument("--batch", default="128", help="images per step, with commas")
    parser.add_argument("--dtype", default="float32", help=f"of {', '.join(DTYPES)}, with commas")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images, pixels")
    peers_help = f"'torch': all of {', '.join(PEERS)}; 'torch-eager': the first two"
    parser.add_argument("--peer", choices=("torch", "torch-eager"), help=peers_help)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant")
    parser.add_argument("--json", type=pathlib.Path, help="file for everything that was measured")
    arguments = parser.parse_args()
    peers: Sequence[str] = {None: (), "torch": PEERS, "torch-eager": PEERS[:2]}[arguments.peer]
    results: list[Result] = []
    try:
        for dtype in _names(arguments.dtype, tuple(DTYPES), "--dtype"):
            for batch in _batches(arguments.batch):
                for name in arguments.model.split(","):
                    results += measure(
                        name, batch, dtype, arguments.image_size, peers, arguments.rounds
                    )
                    if arguments.json:
                        everything = [dataclasses.asdict(result) for result in results]
                        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{provenance(results)}\n\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

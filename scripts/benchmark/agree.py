"""Trains 50 steps on the accelerator and on the CPU, and compares the mean losses so far.

  python scripts/benchmark agree

The runs are ordinary ones of the command line, on the bundled images, in float32 with full
precision. After each step the mean loss over its epoch so far is compared. Two more runs with
`deterministic=True` have to have equal bits.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from resnet_jax.errors import UserError
from resnet_jax.runs import records as records_lib
from resnet_jax.runs.folder import METRICS

STEPS = 50
# Rounding differs from the first step on, and each step multiplies what came before.
EARLY, EARLY_TOLERANCE, TOLERANCE = 10, 1e-3, 3e-2  # steps; shares of the loss


def main(arguments: Sequence[str]) -> None:
    """Compares what the command line asks for.

    Raises:
      UserError: if losses differ, or a run fails.
    """
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark agree", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--config", default="resnet_small:adam_val", help="what is trained")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        device = train(given.config, root / "device")
        reference = train(given.config, root / "cpu", {"JAX_PLATFORMS": "cpu"})
        worst = compare(device, reference)
        print(f"{len(device)} steps on the device and on the CPU: mean losses within {worst:.1e}")
        pair = [
            train(given.config, root / name, {}, "--config.deterministic=True") for name in "ab"
        ]
        if pair[0] != pair[1]:
            raise UserError("two deterministic runs on the device differ")
        print("two deterministic runs on the device: equal bits")


def train(
    config: str, folder: pathlib.Path, environment: Mapping[str, str] = {}, *flags: str
) -> list[float]:
    """Returns the mean loss over the epoch so far, after each step of a run.

    Args:
      config: name of the config.
      folder: of the run.
      environment: variables that it gets.
      *flags: further flags.

    Raises:
      UserError: if it fails.
    """
    command = [
        *(sys.executable, "-m", "resnet_jax.main", f"--config={config}", f"--workdir={folder}"),
        *("--config.data.name=sample", "--config.batch_size=64", "--config.num_epochs=6"),
        *("--config.log.every_steps=1", "--config.model.dtype=float32", *flags),
    ]
    variables = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"} | dict(environment)
    process = subprocess.run(command, env=variables, text=True, capture_output=True)
    if process.returncode:
        said = process.stderr.strip() or f"status {process.returncode}"
        raise UserError(f"{folder.name} ended: {said.splitlines()[-1]}")
    records, _ = records_lib.read(folder / METRICS)
    return [record["loss"] for record in records if record["kind"] == "train"][:STEPS]


def compare(device: Sequence[float], reference: Sequence[float]) -> float:
    """Returns the largest difference of losses, as a share.

    Raises:
      UserError: if one is larger than rounding explains.
    """
    worst = 0.0
    for step, (ours, theirs) in enumerate(zip(device, reference, strict=True), 1):
        share = abs(ours - theirs) / theirs
        if share > (EARLY_TOLERANCE if step <= EARLY else TOLERANCE):
            raise UserError(
                f"the mean loss after step {step} is {ours} on the device, {theirs} on the CPU"
            )
        worst = max(worst, share)
    return worst

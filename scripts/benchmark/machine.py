"""What a benchmark was run on and with."""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "onednn-cpu-gomp", "torch", "torchvision"),
    *("grain", "pillow"),
)
FEATURES = ("avx", "amx", "fma", "f16c", "asimd", "bf16", "sve")  # how those that matter begin
FLAGS = ("XLA_FLAGS", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "LD_PRELOAD")


def add_flags(parser: argparse.ArgumentParser, of_each: str) -> None:
    """Adds --rounds and --json.

    Args:
      parser: the parser of a command.
      of_each: who takes turns.
    """
    parser.add_argument("--rounds", type=_count, default=9, help=f"turns of each {of_each}")
    parser.add_argument("--json", type=_file, help="file for everything that was measured")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"it takes a whole number from 1, not {text!r}")
    return int(text)


def _file(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder, or lies in none")
    return path


def describe() -> dict[str, Any]:
    """Returns machine, processor, versions, flags and load, before anything is measured.

    Our contestant adds commit and devices: this process leaves the devices alone.
    """
    return {
        "command": shlex.join(["python", "scripts/benchmark", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}",
        **_processor(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "load": os.getloadavg()[0],
    }


def _processor() -> dict[str, Any]:
    """Returns the processor's name, and those of its instruction sets that matter here."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    words = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "processor": fields.get("model name") or platform.processor() or "unknown",
        "features": [word for word in words if word.startswith(FEATURES)],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

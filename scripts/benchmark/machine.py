"""What a benchmark was run on and with."""

import importlib.metadata
import os
import pathlib
import platform
import shlex
from collections.abc import Sequence
from typing import Any

PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "onednn-cpu-gomp", "torch", "torchvision"),
    *("grain", "pillow"),
)
FEATURES = ("avx", "amx", "fma", "f16c", "asimd", "bf16", "sve")  # how those that matter begin
FLAGS = ("XLA_FLAGS", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "LD_PRELOAD")


def describe(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns machine, processor, versions, flags and load, before anything is measured.

    Our contestant adds commit and devices: this process leaves the devices alone.

    Args:
      arguments: those of the command line.
    """
    return {
        "command": shlex.join(["python", "scripts/benchmark", *arguments]),
        "machine": f"{platform.system()} {platform.machine()}",
        **_processor(),
        "processors": sorted(os.sched_getaffinity(0)),
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

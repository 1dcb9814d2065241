"""Residual networks for image classification in JAX and Flax.

The names below are imported on first use, so that `import resnet_jax` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.evaluate import evaluate_run, load_checkpoint, predict
    from resnet_jax.models import create_model, list_models
    from resnet_jax.torch_runs import export_torch, import_run
    from resnet_jax.torch_weights import import_torch
    from resnet_jax.train import train_and_evaluate

__version__ = "0.1.0"

_HOMES = {
    "create_model": "resnet_jax.models",
    "evaluate_run": "resnet_jax.evaluate",
    "export_torch": "resnet_jax.torch_runs",
    "import_run": "resnet_jax.torch_runs",
    "import_torch": "resnet_jax.torch_weights",
    "list_models": "resnet_jax.models",
    "load_checkpoint": "resnet_jax.evaluate",
    "predict": "resnet_jax.evaluate",
    "train_and_evaluate": "resnet_jax.train",
}

__all__ = [
    "create_model",
    "evaluate_run",
    "export_torch",
    "import_run",
    "import_torch",
    "list_models",
    "load_checkpoint",
    "predict",
    "train_and_evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""Residual networks for image classification in JAX and Flax.

The names below are imported on first use, so that `import resnet_jax` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.inference.evaluate import evaluate_run, load_checkpoint, predict
    from resnet_jax.inference.export import export_torch
    from resnet_jax.models.registry import create_model, list_models
    from resnet_jax.training.loop import train_and_evaluate
    from resnet_jax.weights.load import import_torch, load_model

__version__ = "0.1.0"

_HOMES = {
    "create_model": "resnet_jax.models.registry",
    "evaluate_run": "resnet_jax.inference.evaluate",
    "export_torch": "resnet_jax.inference.export",
    "import_torch": "resnet_jax.weights.load",
    "list_models": "resnet_jax.models.registry",
    "load_checkpoint": "resnet_jax.inference.evaluate",
    "load_model": "resnet_jax.weights.load",
    "predict": "resnet_jax.inference.evaluate",
    "train_and_evaluate": "resnet_jax.training.loop",
}

__all__ = [
    "create_model",
    "evaluate_run",
    "export_torch",
    "import_torch",
    "list_models",
    "load_checkpoint",
    "load_model",
    "predict",
    "train_and_evaluate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

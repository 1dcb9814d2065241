"""Residual networks for image classification in JAX and Flax.

The names below are imported on first use, so that `import resnet_jax` is instant.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.config.load import default_config
    from resnet_jax.data.datasets import Dataset, DatasetInfo
    from resnet_jax.errors import UserError
    from resnet_jax.inference.evaluate import evaluate_run
    from resnet_jax.inference.export import export_hub, export_stablehlo, export_torch
    from resnet_jax.inference.predict import predict
    from resnet_jax.models.registry import create_model, list_models
    from resnet_jax.report.page import write_report
    from resnet_jax.training.loop import train_and_evaluate
    from resnet_jax.training.restore import load_run
    from resnet_jax.weights.info import WeightsInfo, weights_info
    from resnet_jax.weights.load import import_torch, load_model

_HOMES = {
    "Dataset": "data.datasets",
    "DatasetInfo": "data.datasets",
    "UserError": "errors",
    "WeightsInfo": "weights.info",
    "create_model": "models.registry",
    "default_config": "config.load",
    "evaluate_run": "inference.evaluate",
    "export_hub": "inference.export",
    "export_stablehlo": "inference.export",
    "export_torch": "inference.export",
    "import_torch": "weights.load",
    "list_models": "models.registry",
    "load_model": "weights.load",
    "load_run": "training.restore",
    "predict": "inference.predict",
    "train_and_evaluate": "training.loop",
    "weights_info": "weights.info",
    "write_report": "report.page",
}

__all__ = [
    "Dataset",
    "DatasetInfo",
    "UserError",
    "WeightsInfo",
    "create_model",
    "default_config",
    "evaluate_run",
    "export_hub",
    "export_stablehlo",
    "export_torch",
    "import_torch",
    "list_models",
    "load_model",
    "load_run",
    "predict",
    "train_and_evaluate",
    "weights_info",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("resnet-flax-cifar")
    if name == "cpu":
        return importlib.import_module("resnet_jax.cpu")
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"resnet_jax.{_HOMES[name]}"), name)

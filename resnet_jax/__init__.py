"""Residual networks for image classification in JAX and Flax.

The names below are imported on first use, so that `import resnet_jax` is instant.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax import cpu as cpu
    from resnet_jax.config.load import default_config as default_config
    from resnet_jax.data.datasets import Dataset as Dataset
    from resnet_jax.data.datasets import DatasetInfo as DatasetInfo
    from resnet_jax.errors import UserError as UserError
    from resnet_jax.inference.evaluate import evaluate_run as evaluate_run
    from resnet_jax.inference.export import export_hub as export_hub
    from resnet_jax.inference.export import export_stablehlo as export_stablehlo
    from resnet_jax.inference.export import export_torch as export_torch
    from resnet_jax.inference.predict import predict as predict
    from resnet_jax.models.registry import create_model as create_model
    from resnet_jax.models.registry import list_models as list_models
    from resnet_jax.report.page import write_report as write_report
    from resnet_jax.training.loop import train_and_evaluate as train_and_evaluate
    from resnet_jax.training.restore import load_run as load_run
    from resnet_jax.weights.info import WeightsInfo as WeightsInfo
    from resnet_jax.weights.info import weights_info as weights_info
    from resnet_jax.weights.load import import_torch as import_torch
    from resnet_jax.weights.load import load_model as load_model

    __version__: str

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

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "cpu"]


if not TYPE_CHECKING:  # else every name would be known

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return importlib.metadata.version("resnet-flax-cifar")
        if name == "cpu":
            return importlib.import_module("resnet_jax.cpu")
        if name not in _HOMES:
            raise AttributeError(f"module 'resnet_jax' has no attribute {name!r}")
        return getattr(importlib.import_module(f"resnet_jax.{_HOMES[name]}"), name)

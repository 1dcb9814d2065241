"""Weights & Biases and MLflow: views of the records, beside those of TensorBoard."""

import importlib
import os
import pathlib
from typing import Any, Protocol

from ml_collections import ConfigDict

from resnet_jax.config.load import flatten
from resnet_jax.errors import UserError, needing
from resnet_jax.runs.records import Record, is_number

PROJECT = "resnet_jax"

_PLACE = ("step", "epoch", "seconds")


class View(Protocol):
    """What shows the records of one start of a run."""

    def record(self, record: Record) -> None:
        """Shows a record."""

    def close(self, finished: bool) -> None:
        """Shows what is left, and whether the training was finished."""


class WandB:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in the folder of the run."""

    def __init__(self, folder: pathlib.Path, config: ConfigDict) -> None:
        """Begins the run."""
        wandb = _imported("wandb")
        place = {"project": PROJECT, "group": folder.name, "dir": str(folder)}
        # Trials side by side have a run each, and a caller's own goes on.
        self._run = wandb.init(config=config.to_dict(), reinit="create_new", **place)

    def record(self, record: Record) -> None:
        """Logs the numbers of a record."""
        self._run.log(numbers(record), step=record["step"])

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=int(not finished))


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in `mlflow.db` in the folder of the run."""

    def __init__(self, folder: pathlib.Path, config: ConfigDict) -> None:
        """Begins the run."""
        mlflow = _imported("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        self._client = mlflow.MlflowClient(uri)
        experiment = self._experiment()
        self._id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        for field, value in flatten(config).items():
            self._client.log_param(self._id, field, value)

    def _experiment(self) -> str:
        """Returns the id of the project's experiment, which another process may have made."""
        try:
            return str(self._client.create_experiment(PROJECT))
        except Exception:
            known = self._client.get_experiment_by_name(PROJECT)
            if known is None:
                raise
            return str(known.experiment_id)

    def record(self, record: Record) -> None:
        """Logs the numbers of a record."""
        for name, value in numbers(record).items():
            self._client.log_metric(self._id, name, value, step=record["step"])

    def close(self, finished: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def open_trackers(folder: pathlib.Path, config: ConfigDict) -> list[View]:
    """Returns the views that a config asks for; each start of a run is one of theirs.

    Args:
      folder: the folder of the run.
      config: its config.

    Raises:
      UserError: if a package is missing, or it can't begin.
    """
    views: list[View] = []
    for name, tracker in (("wandb", WandB), ("mlflow", MLflow)):
        if config.log[name]:
            try:
                views.append(tracker(folder, config))
            except UserError:
                raise
            except Exception as error:  # of their servers, settings and versions
                raise UserError(f"config field log.{name}: it can't begin: {error}") from error
    return views


def numbers(record: Record) -> dict[str, float]:
    """Returns what a record tells, by names such as "train/loss", "test/accuracy"."""
    group = record.get("split", record["kind"])
    return {
        f"{group}/{name}": value
        for name, value in record.items()
        if name not in _PLACE and is_number(value)
    }


def _imported(name: str) -> Any:
    with needing(name, f"config field log.{name}"):
        return importlib.import_module(name)

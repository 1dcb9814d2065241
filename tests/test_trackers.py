"""Weights & Biases and MLflow, offline: they show what is recorded, where they are installed."""

import math
import sys
import types

import pytest
import tiny_run

from resnet_jax.config.load import validate
from resnet_jax.errors import UserError
from resnet_jax.runs import trackers

RECORDS = [
    {"kind": "train", "step": 4, "epoch": 1.0, "loss": 2.0, "accuracy": 20.0, "seconds": 1.0},
    {"kind": "score", "step": 4, "epoch": 1.0, "loss": 1.5, "split": "val", "seconds": 2.0},
    {"kind": "final", "step": 4, "epoch": 1.0, "test_loss": 1.0, "train_accuracy": None},
]


def config(**fields):
    found = tiny_run.get_config()
    found.log.update(fields)
    return validate(found)


def test_numbers_have_the_names_of_tensorboard():
    assert [trackers.numbers(record) for record in RECORDS] == [
        {"train/loss": 2.0, "train/accuracy": 20.0},
        {"val/loss": 1.5},
        {"final/test_loss": 1.0},
    ]
    assert trackers.numbers(RECORDS[0] | {"loss": math.nan}) == {"train/accuracy": 20.0}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"log\.{name} needs .* pip install '.*\[{name}\]'"):
        trackers.open_trackers(tmp_path, config(**{name: True}))
    assert trackers.open_trackers(tmp_path, config()) == []


def test_mlflow_keeps_the_records(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (view,) = trackers.open_trackers(tmp_path, config(mlflow=True))
    for record in RECORDS:
        view.record(record)
    view.close(True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == trackers.PROJECT]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val/loss"] == 1.5
    assert run.data.params["batch_size"] == "120"
    assert client.get_metric_history(run.info.run_id, "train/loss")[0].step == 4


def test_wandb_is_handed_the_records(tmp_path, monkeypatch):
    told = []

    def init(**given):
        told.append(given["dir"])
        return types.SimpleNamespace(
            log=lambda numbers, step: told.append((step, numbers)),
            finish=lambda exit_code: told.append(exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    (view,) = trackers.open_trackers(tmp_path, config(wandb=True))
    for record in RECORDS:
        view.record(record)
    view.close(True)
    assert told == [str(tmp_path), *((4, trackers.numbers(record)) for record in RECORDS), 0]


def test_wandb_keeps_the_records(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (view,) = trackers.open_trackers(tmp_path, config(wandb=True))
    for record in RECORDS:
        view.record(record)
    view.close(True)
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in log.read_bytes()

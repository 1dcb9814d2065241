"""The benchmark: its peers have our models' structure, and it prints what it measured."""

import json

import benchmark
import pytest

from resnet_jax.models.registry import create_model, list_models
from resnet_jax.report.summary import layer_table

torch = pytest.importorskip("torch")
benchmark_torch = pytest.importorskip("benchmark_torch")

# Structures that none of the implementations which we follow has.
WITHOUT_PEER = {
    "preact_resnet50",
    "resnet_custom",
    "resnet_custom_skip",
    "resnet_textbook",
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(set(list_models()) - WITHOUT_PEER))
def test_peer_has_as_many_parameters(name):
    size = 224 if name.endswith("224") or name == "resnet50" else 32
    options = {"stem": "imagenet"} if name == "resnet50" else {}
    model = create_model(name, **options)
    with torch.device("meta"):
        peer = benchmark_torch.build(type(model).__name__, benchmark._fields(model), size)
    layers = layer_table(model, (size, size, 3))
    assert parameters(peer) == sum(layer.parameters for layer in layers)


def test_measures_and_compares(monkeypatch, run_script, tmp_path):
    monkeypatch.setattr(benchmark, "TURN", 0.01)
    monkeypatch.setattr(benchmark, "PEERS", ("torch",))
    file = tmp_path / "out.json"
    status, out, err = run_script(
        benchmark,
        *("--model=cnn", "--batch=8", "--rounds=2", "--peer=torch-eager", f"--json={file}"),
    )
    assert status == 0, err
    assert [row["contestant"] for row in json.loads(file.read_text())] == ["resnet_jax", "torch"]
    for row in json.loads(file.read_text()):
        assert len(row["step_seconds"]) == len(row["inference_seconds"]) == 2
        assert min(row["step_seconds"]) > 0 < min(row["inference_seconds"])
        assert row["peak_bytes"] > 2**20 and 0 < row["compute_share"] < 1
        # 651,720 multiply-accumulates an image, times 6.
        rate = 8 / sorted(row["step_seconds"])[0]
        assert 0 < row["flops"] <= 6 * 651_720 * rate
    rows = [line for line in out.splitlines() if line.startswith("| cnn | 8 | float32 |")]
    assert len(rows) == 2 and "commit" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet19"], "unknown model 'resnet19'"),
        (["--dtype=float8"], "float8"),
        (["--batch=many"], "--batch"),
        (["--model=cnn", "--image-size=8"], "too small"),
        (["--model=resnet_custom", "--batch=2", "--peer=torch"], "no PyTorch module like"),
    ],
)
def test_refuses_in_one_line(run_script, arguments, message):
    status, _, err = run_script(benchmark, *arguments)
    last = err.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and message in last

"""PyTorch weights from runs and for runs, by the command line; a published file."""

import json
import pathlib

import numpy as np
import pytest
import tiny_run
from test_torch_weights import assert_same_bits

import resnet_jax
from resnet_jax import main
from resnet_jax.models.registry import create_model
from resnet_jax.weights import torch_names
from resnet_jax.weights.load import import_torch, load_model
from resnet_jax.weights.torch_files import TorchFile
from resnet_jax.weights.torch_weights import state_dict

ROOT = pathlib.Path(__file__).parent.parent
CHECKPOINT = ROOT.parent / "shared" / "checkpoints" / "resnet20-12fca82f.th"
needs_checkpoint = pytest.mark.skipif(not CHECKPOINT.exists(), reason=f"needs {CHECKPOINT.name}")


def command(*flags):
    return main.main(["resnet-jax", *map(str, flags)])


def test_a_run_goes_out_and_comes_in_again(plain_run, tmp_path, capsys):
    weights = tmp_path / "a.safetensors"
    assert command("--mode=export", f"--workdir={plain_run[0]}", f"--output={weights}") == 0
    assert f"wrote {weights}" in capsys.readouterr().out
    best = resnet_jax.load_run(plain_run[0])
    assert_same_bits(import_torch(weights, best.model), best.variables)
    flags = [f"--config={tiny_run.CONFIG_FILE}", f"--config.init.weights={weights}"]
    flags += ["--config.num_epochs=0", f"--workdir={tmp_path / 'run'}"]
    assert command(*flags) == 0
    assert "starting from the weights in" in capsys.readouterr().out
    again = resnet_jax.load_run(tmp_path / "run", "newest")
    assert_same_bits(again.variables, best.variables)


def test_a_training_starts_from_a_run(plain_run, tmp_path, capsys):
    flags = [f"--config={tiny_run.CONFIG_FILE}", f"--config.init.weights={plain_run[0]}"]
    flags += ["--config.num_epochs=0", f"--workdir={tmp_path / 'run'}"]
    assert command(*flags, "--config.data.classes=(3, 5)") == 0
    assert "the head is new" in capsys.readouterr().out
    before = resnet_jax.load_run(plain_run[0]).variables
    after = resnet_jax.load_run(tmp_path / "run", "newest").variables
    assert after["params"].pop("head")["kernel"].shape[-1] == 2
    assert before["params"].pop("head")["kernel"].shape[-1] == 10
    assert_same_bits(after, before)
    other = [*flags[:-1], f"--workdir={tmp_path / 'other'}"]
    assert command(*other, "--config.model.options.num_filters=(16,)") == 2
    assert "differs in" in capsys.readouterr().err
    missing = f"--workdir={tmp_path / 'none'}"
    assert command(flags[0], "--config.init.weights=no.pth", missing) == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@needs_checkpoint
def test_a_published_file_is_used_whole_and_goes_out_as_it_came():
    model, variables = load_model("resnet20", weights=CHECKPOINT)
    assert model == create_model("resnet20")
    original, exported = TorchFile(CHECKPOINT).tensors, state_dict(model, variables)
    assert exported.keys() == original.keys()
    assert "linear.weight" in original  # akamaster's name
    for key, tensor in original.items():
        np.testing.assert_array_equal(exported[key], tensor)
    assert next(iter(torch_names.dialects(model))) == "kuangliu or akamaster"


@pytest.mark.slow
@needs_checkpoint
def test_a_published_resnet20_scores_as_in_pytorch(tmp_path, capsys):
    flags = [
        f"--config={ROOT}/configs/resnet_he2015.py:20",
        f"--config.init.weights={CHECKPOINT}",
        "--config.data.mean=(0.485,0.456,0.406)",
        "--config.data.std=(0.229,0.224,0.225)",
        "--config.num_epochs=0",
    ]
    status = command(*flags, f"--workdir={tmp_path / 'run'}")
    captured = capsys.readouterr()
    if status == 2 and "CIFAR-10" in captured.err:
        pytest.skip("needs CIFAR-10")
    assert status == 0, captured.err
    assert "by the names of kuangliu or akamaster" in captured.out
    final = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["test_accuracy"] == pytest.approx(91.73, abs=0.005)

"""Runs from PyTorch files and PyTorch files from runs, by the command line; a published file."""

import os
import pathlib
import re

import numpy as np
import pytest
import tiny_run
from test_torch_weights import assert_same_bits

import resnet_jax
from resnet_jax import main
from resnet_jax.weights.torch_files import TorchFile

CHECKPOINT = "RESNET_JAX_TORCH_CHECKPOINT"


def command(*flags):
    return main.main(["resnet-jax", *map(str, flags)])


def test_a_run_goes_out_and_comes_in_again(plain_run, tmp_path, capsys):
    folder, final, _ = plain_run
    weights, imported = tmp_path / "a.pth", tmp_path / "run"
    assert command("--mode=export", f"--workdir={folder}", f"--output={weights}") == 0
    config = f"--config={tiny_run.CONFIG_FILE}"
    arguments = ["--mode=import", config, f"--workdir={imported}"]
    assert command(*arguments, f"--config.init.weights={weights}") == 0
    out = capsys.readouterr().out
    assert f"wrote {weights}" in out
    assert f"test accuracy {final['best_test_accuracy']:.2f} %" in out
    assert "on 320 images" in out
    best = resnet_jax.load_checkpoint(folder)[1]
    assert_same_bits(resnet_jax.load_checkpoint(imported)[1], best)
    assert command(*arguments, f"--config.init.weights={weights}") == 2
    assert "holds a run already; name another folder" in capsys.readouterr().err


def test_an_imported_head_that_does_not_fit_is_new(plain_run, tmp_path, capsys):
    weights = tmp_path / "a.safetensors"
    assert command("--mode=export", f"--workdir={plain_run[0]}", f"--output={weights}") == 0
    flags = [f"--config={tiny_run.CONFIG_FILE}", f"--config.init.weights={weights}"]
    flags += ["--config.model.num_classes=12", f"--workdir={tmp_path / 'run'}"]
    assert command("--mode=import", *flags) == 0
    out = capsys.readouterr().out
    assert "the head is new" in out
    assert "accuracy" not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--mode=export", "--workdir=x"],
            "--mode=export takes --workdir, the folder of a run, and",
        ),
        (["--mode=export", "--output=x.pth"], "--mode=export takes --workdir"),
        (["--mode=export", "--workdir=/nowhere", "--output=x.pth"], "holds no run"),
        (["--output=x.pth"], "--output is for --mode=export only"),
        (["--mode=import"], "name the PyTorch file to import, by --config.init.weights=FILE"),
        (["--mode=import", "--config.init.weights=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_commands(tmp_path, capsys, flags, message):
    if "--mode=export" not in flags:
        flags = [*flags, f"--config={tiny_run.CONFIG_FILE}", f"--workdir={tmp_path / 'run'}"]
    assert command(*flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHECKPOINT not in os.environ, reason=f"needs {CHECKPOINT}=resnet20-12fca82f.th")
def test_a_trained_resnet20_scores_as_in_pytorch(tmp_path, capsys):
    file = pathlib.Path(os.environ[CHECKPOINT]).absolute()
    root = pathlib.Path(resnet_jax.__file__).parent.parent
    flags = [
        f"--config={root}/configs/resnet_he2015.py:20",
        f"--config.init.weights={file}",
        "--config.data.mean=(0.485,0.456,0.406)",
        "--config.data.std=(0.229,0.224,0.225)",
    ]
    status = command("--mode=import", *flags, f"--workdir={tmp_path / 'run'}")
    captured = capsys.readouterr()
    if status == 2 and "CIFAR-10" in captured.err:
        pytest.skip("needs CIFAR-10")
    assert status == 0, captured.err
    assert re.search(r"test accuracy 91\.73 %, .* on 10,000 images", captured.out)
    assert (
        command("--mode=export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path}/a.pth") == 0
    )
    exported, original = TorchFile(tmp_path / "a.pth").tensors, TorchFile(file).tensors
    assert exported.keys() == original.keys()
    for key, tensor in original.items():
        np.testing.assert_array_equal(exported[key], tensor)

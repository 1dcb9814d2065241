"""The benchmark: contestants are alike and run alone, and the README has what was found."""

import contextlib
import importlib
import json
import os
import time

import numpy as np
import pytest
import tiny_run
from benchmark import __main__ as command_line
from benchmark import contestants, decode, tables, training
from benchmark.contestants import Contestant
from PIL import Image

from resnet_jax.errors import UserError
from resnet_jax.models.registry import create_model, list_models

# Structures that none of the implementations which we follow has.
WITHOUT_PEER = {
    "preact_resnet50",
    "resnet_custom",
    "resnet_custom_skip",
    "resnet_textbook",
}


class InProcess(Contestant):
    """A contestant in this process."""

    def __init__(self, name, module, spec):
        self.name = name
        spec = json.loads(json.dumps(spec | {"contestant": name}))
        self.started, self.commands = importlib.import_module(module).start(spec)

    def tell(self, do, **given):
        begin = time.perf_counter()
        answer = self.commands[do](**given)
        return json.loads(json.dumps({"seconds": time.perf_counter() - begin} | answer))

    def close(self):
        pass


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs the command line: (status, stdout, last line of stderr)."""

    def call(*arguments):
        status = command_line.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.strip().splitlines()[-1]

    monkeypatch.setattr(contestants, "Contestant", InProcess)
    monkeypatch.setattr("resnet_jax.platform.keep_freed_memory", lambda: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    return call


# One of each family.
QUICK = {"cnn", "alexnet", "resnet_small", "resnet50", "preact_resnet18", "vgg11_bn", "vit_tiny"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in sorted(set(list_models()) - WITHOUT_PEER)
    ],
)
def test_peer_has_as_many_parameters(name):
    torch = pytest.importorskip("torch")
    build = importlib.import_module("benchmark.training_torch").build
    size = 224 if name.endswith("224") or name == "resnet50" else 32
    spec, layers = training.task_of(name, 8, "float32", size)
    with torch.device("meta"):
        peer = build(spec["family"], spec["fields"], size)
    count = sum(parameter.numel() for parameter in peer.parameters())
    assert count == sum(layer.parameters for layer in layers)


def test_measures_and_compares(monkeypatch, run, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(training, "TURN", 0.01)
    monkeypatch.setattr(training, "PEERS", ("torch_channels_last",))
    monkeypatch.setattr("benchmark.training_jax.roofs", lambda dtype: (1e15, 1e12))
    file = tmp_path / "out.json"
    status, out, err = run(
        *("--model=cnn", "--batch=8", "--rounds=2", "--peer=torch", f"--json={file}")
    )
    assert status == 0, err
    record = json.loads(file.read_text())
    assert {"commit", "features", "flags", "load", "processor", "versions"} <= set(record["about"])
    rows = record["training"]
    assert [row["contestant"] for row in rows] == ["resnet_jax", "torch_channels_last"]
    for row in rows:
        assert len(row["step_seconds"]) == len(row["inference_seconds"]) == 2
        assert min(row["step_seconds"]) > 0 < min(row["inference_seconds"])
        # 651,720 multiply-accumulates an image, times 6.
        flops = 6 * 651_720 * 8 / np.median(row["step_seconds"])
        np.testing.assert_allclose([row["flops"], row["compute_share"] * 1e15], flops)
        assert row["peak_bytes"] > 2**20
    assert len([line for line in out.splitlines() if line.startswith("| cnn | 8 | float32 |")]) == 2


def test_nothing_is_measured_unless_losses_agree(monkeypatch, run):
    pytest.importorskip("torch")
    monkeypatch.setattr(training, "PEERS", ("torch",))
    monkeypatch.setattr(training, "take_turns", None)
    modules = importlib.import_module("torch_modules")
    forward = modules.CNN.forward
    # It computes the same and learns less.
    monkeypatch.setattr(
        *(modules.CNN, "forward"),
        lambda self, x: (forward(self, x)[0].detach() + 0 * forward(self, x)[0], []),
    )
    status, _, err = run("--model=cnn", "--batch=8", "--peer=torch")
    assert status == 2 and err.startswith("error: the losses of torch and resnet_jax differ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet19"], "unknown model 'resnet19'"),
        (["--dtype=float8"], "float8"),
        (["--batch=many"], "--batch"),
        (["--model=cnn", "--image-size=8"], "too small"),
        (["--model=resnet_custom", "--batch=2", "--peer=torch"], "no PyTorch module like"),
        (["decode", "--images=2"], "--images"),
        (["trials", "--parallel=0"], "--parallel takes whole numbers"),
    ],
)
def test_refuses_in_one_line(monkeypatch, run, arguments, message):
    monkeypatch.setattr(training, "PEERS", ("torch",))
    status, _, err = run(*arguments)
    assert status == 2 and err.startswith("error: ") and message in err


@pytest.mark.parametrize("flag", ["--rounds=0", "--json=nowhere/x.json"])
def test_flags_are_checked_before_anything_is_measured(run, flag, capsys):
    with pytest.raises(SystemExit):
        run("trials", flag)
    assert f"argument {flag.split('=')[0]}: " in capsys.readouterr().err


def test_a_shortcut_that_pytorch_has_no_module_for_is_refused():
    pytest.importorskip("torch")
    from benchmark import training_torch

    with pytest.raises(KeyError, match="convolution"):
        training_torch.build("ResNet", training._fields(create_model("resnet_textbook")), 32)


WORKER = """
import os, subprocess, sys, time
from benchmark import worker

def start(spec):
    if spec["case"] == "refuses":
        raise worker.UserError("--peer: no")
    if spec["case"] == "is unavailable":
        raise worker.Unavailable("no compiler")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], stdout=-3)
    return {"pids": [os.getpid(), child.pid]}, {"wait": lambda: time.sleep(0.01) or {}, "end": end}

def end():
    sys.exit("out of luck")

worker.serve(start)
"""


@pytest.fixture
def module(monkeypatch, tmp_path):
    """The name of a module that a contestant can run."""
    (tmp_path / "small_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "small_worker"


def wait_for(pids, states):
    deadline = time.monotonic() + 10
    while not all(tiny_run.process_state(pid) in states for pid in pids):
        assert time.monotonic() < deadline, [tiny_run.process_state(pid) for pid in pids]
        time.sleep(0.005)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="what processes do is in /proc")
def test_those_who_wait_are_stopped_with_their_workers(module):
    contestant = Contestant("a", module, {"case": "works"})
    pids = contestant.started["pids"]
    wait_for(pids, "T")
    assert contestant.tell(do="wait")["seconds"] >= 0.01
    wait_for(pids, "T")
    with pytest.raises(UserError, match="a ended: out of luck"):
        contestant.tell(do="end")
    contestant.close()
    wait_for(pids, "XZ")


def test_who_cannot_take_part_is_said(module, capsys):
    with contextlib.ExitStack() as stack:
        spec = {"case": "is unavailable"}
        found, absent = contestants.gather(stack, [("a", module)], spec)
    assert not found and absent == {"a": "no compiler"}
    assert "without a: no compiler" in capsys.readouterr().err
    with pytest.raises(UserError, match="--peer: no"):
        Contestant("a", module, {"case": "refuses"})


def test_reads_files(monkeypatch, run, tmp_path):
    monkeypatch.setattr(decode, "TURN", 0.01)
    try:
        importlib.import_module("benchmark.decode_torchvision")._torchvision()
    except Exception:
        monkeypatch.setattr(decode, "PEERS", ())
    file = tmp_path / "out.json"
    status, out, err = run(
        *("decode", "--images=8", "--image-size=32", "--batch=4", "--workers=0", "--rounds=2"),
        f"--json={file}",
    )
    assert status == 0, err
    record = json.loads(file.read_text())
    assert 70_000 < record["about"]["bytes_per_file"] < 140_000
    for row in record["decode"]:
        assert len(row["images_per_second"]) == 2 and row["cores"] == 1
        assert f"{np.median(row['images_per_second']):,.0f}" in out


def test_measures_trials_side_by_side(monkeypatch, run, tmp_path):
    monkeypatch.setattr(training, "TURN", 0.01)
    file = tmp_path / "out.json"
    flags = "--model=cnn", "--parallel=1,2", "--batch=8", "--rounds=2", f"--json={file}"
    status, out, err = run("trials", *flags)
    assert status == 0, err
    rows = json.loads(file.read_text())["trials"]
    assert [(row["parallel"], len(row["step_seconds"])) for row in rows] == [(1, 2), (2, 2)]
    one, two = (np.median(row["step_seconds"]) for row in rows)
    assert f"| {16 / two:,.0f} | {1000 * two:,.1f} | **{2 * one / two:.2f}** |" in out


def test_files_have_the_size_of_photographs(tmp_path):
    decode.make_files(tmp_path, 4)
    files = sorted(tmp_path.glob("*/*.jpg"))
    assert [file.parent.name for file in files] == ["class0", "class1", "class2", "class3"]
    assert Image.open(files[0]).size == (500, 375)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_pages_have_the_tables(page):
    text = page.read_text()
    assert tables.with_tables(text) == text and "<!-- results/benchmark-cpu.json" in text


def test_ratios_compare_with_the_same_model():
    def row(model, contestant, step):
        return {
            "model": model,
            "batch": 10,
            "dtype": "float32",
            "contestant": contestant,
            "step_seconds": [step, 9.0, step],
            "inference_seconds": [step],
            "compile_seconds": 1.0,
            "peak_bytes": 10**9,
        }

    rows = [row("a", "resnet_jax", 1.0), row("a", "torch", 4.0), row("a", "torch_compile", 2.0)]
    rows += [row("b", "resnet_jax", 3.0), row("b", "torch", 1.5)]
    ratios = [line.split(" | ")[6] for line in tables._training(rows, False).splitlines()[2:]]
    assert ratios == ["", "**4.00**", "**2.00**", "", "**0.50**"]
    assert "training is 0.50 to 2.00 times" in tables._ranges(rows)[0]

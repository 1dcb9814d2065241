"""The command line: whatever is wrong gets one line, status 2, and leaves nothing behind."""

import concurrent.futures
import contextlib
import os
import pathlib
import pty
import re
import subprocess
import sys

import jax
import pytest
import search_storage
import tiny_run

import resnet_jax
from resnet_jax import main
from resnet_jax.runs.terminal import Terminal

ROOT = pathlib.Path(resnet_jax.__file__).parent.parent


def run(*flags, workdir=None):
    return main.main(["resnet-jax", *flags, *([f"--workdir={workdir}"] if workdir else [])])


BAD_FLAGS = [
    ("--config.lr=1", "unknown config field 'lr'; did you mean optimizer.learning_rate?"),
    ("--config.optimizer.lr=1", "did you mean optimizer.learning_rate?"),
    ("--config.optimizer.learnin_rate=1", "did you mean optimizer.learning_rate?"),
    ("--config.learning_rate=1", "; did you mean optimizer.learning_rate?"),
    ("--config.modle.name=x", "did you mean model.name"),
    ("--config.qqqqqq=1", "unknown config field 'qqqqqq'; --list=fields shows all"),
    ("--config.batch_size=big", "batch_size"),
    ("--config.batch_size=0", "config field batch_size must be at least 1 and at most 1,000,000"),
    ("--config.batch_size=2.5", "batch_size"),
    ("--config.batch_size.x=1", "batch_size"),
    ("--config.data=3", "unknown config field 'data'"),
    ("--config.model.options=3", "model.options"),
    ("--config.model.options.a.b=3", "unknown config field 'model.options.a.b'"),
    ("--config.num_epochs=-1", "config field num_epochs must be at least 0 and at most 100,000"),
    ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate must be a finite number"),
    ("--config.optimizer.learning_rate=-1", "optimizer.learning_rate must be at least 0"),
    ("--config.optimizer.learning_rate=", "optimizer.learning_rate"),
    ("--config.data.shuffle=maybe", "data.shuffle"),
    (
        "--config.data.mean=(1.0,)",
        "data.mean has 1 numbers but the images have 3 channels",
    ),
    ("--config.augment.flip=randm", "did you mean random?"),
    ("--config.data.val_fraction=0.0", "evaluate.split is 'val' but data.val_fraction is 0"),
    ("--config.optimizer.no_decay=(", "bad pattern '('"),
    ("--config.model.name=resnet_v3", "unknown model 'resnet_v3'; did you mean resnet_v"),
    ("--config.model.options.dropout=0.1", "did you mean dropout_rate or"),
    ("--config.model.options.dropout_rate=1.5", "must be at least 0 and below 1"),
    ("--config.model.options.num_filters=x", "'resnet_small' takes a whole number"),
    ("--config.optimizer.name=sdg", "unknown optimizer 'sdg'; did you mean sgd"),
    ("--config.optimizer.options.momentun=0.1", "did you mean momentum"),
    ("--config.schedule.name=cosin", "unknown schedule 'cosin'; did you mean cosine"),
    ("--config.schedule.options.factor=2", "schedule 'constant' has no options"),
    ("--config.data.name=samples", "did you mean sample?"),
    ("--confg=x", "confg"),
    ("--mode=trian", "did you mean train?"),
    ("--workdir", "workdir"),
    ("junk", "unexpected argument 'junk'"),
]


@pytest.mark.parametrize(("flag", "message"), BAD_FLAGS)
def test_bad_flag(tmp_path, capsys, flag, message):
    workdir = tmp_path / "run"
    assert run(f"--config={tiny_run.CONFIG_FILE}", f"--workdir={workdir}", flag) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=eval"], "--mode=eval takes --workdir"),
        (["--mode=eval", "--workdir=x", "--config=y"], "--mode=eval takes --workdir"),
        (["--mode=predict", "--workdir=x"], "--mode=predict takes --workdir, the folder of a run"),
        (["--mode=predict", "--workdir=x", "--tip=5", "y"], "--mode=predict takes --workdir"),
        (["--mode=predict", "--workdir=x", "y.png"], "--workdir x does not exist"),
        (["--mode=predict", "--workdir=x", "--weights=y", "z"], "or, in place of --workdir"),
        (["--mode=predict", "--weights=quikstart", "x"], "did you mean quickstart?"),
        (["--mode=predict", "--weights=no.safetensors", "x"], "no.safetensors can't be read"),
        (["--mode=eval", "--weights=quickstart"], "--mode=eval takes --workdir"),
        (["--weights=quickstart"], "--weights is for --mode=predict only"),
        (["--cam"], "--cam is for --mode=predict only"),
        (["--top=3"], "--top is for --mode=predict only"),
        (["--output=x"], "--output is for --mode=export only"),
        (["--mode=export", "--workdir=x"], "--mode=export takes --workdir"),
        (["--mode=eval", "--mode=train", "--workdir=x"], "--mode is given 2 times"),
        (["--mode=eval", "--workdir=/nowhere"], "--workdir /nowhere does not exist"),
        (["--workdir=x"], "--config is missing"),
        (["--list=model"], "unknown --list 'model'; did you mean models?"),
        (["--list=models", "--mode=train"], "--list takes nothing else"),
        (["--config=nowhere.py"], "--config nowhere.py does not exist"),
        ([f"--config={str(tiny_run.CONFIG_FILE)[:-5]}x.py"], "did you mean"),
        ([f"--config={tiny_run.CONFIG_FILE}:riche"], "did you mean rich?"),
    ],
)
def test_bad_command(capsys, flags, message):
    assert run(*flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def parsed(*flags):
    return main._parse(["resnet-jax", f"--config={tiny_run.CONFIG_FILE}", *flags])


def test_good_flags():
    assert parsed("--config.batch_size", "32").config.batch_size == 32
    assert parsed("--config.data.shuffle=False").config.data.shuffle is False
    assert parsed("--noconfig.data.shuffle").config.data.shuffle is False
    assert parsed("--config.optimizer.learning_rate=1").config.optimizer.learning_rate == 1.0
    assert parsed("--config.data.mean=(0.1,0.2,0.3)").config.data.mean == (0.1, 0.2, 0.3)
    options = parsed(
        "--config.model.options.dropout_rate=0.2",
        "--config.model.options.num_filters=(8,16,16)",
        "--config.optimizer.options.nesterov=True",
    ).config
    assert options.model.options.dropout_rate == 0.2
    assert tuple(options.model.options.num_filters) == (8, 16, 16)
    assert options.optimizer.options.nesterov is True


def test_the_home_that_the_shell_leaves_alone():
    home = os.path.expanduser("~")
    assert parsed("--workdir=~/x").workdir == f"{home}/x"


def test_default_workdir():
    assert re.fullmatch(r"runs/[\w.=-]+", parsed("--config.init.weights=a\udcff.pth").workdir)
    assert parsed("--config.seed=3").workdir == "runs/tiny_run-seed3"
    assert parsed("--config.data.name=mnist").workdir == "runs/tiny_run-data.name=mnist-seed0"
    rate, size = "--config.optimizer.learning_rate=.5", "--config.batch_size=32"
    name = "runs/tiny_run-batch_size=32-optimizer.learning_rate=0.5-seed0"
    assert parsed(rate, size).workdir == parsed(size, rate).workdir == name
    # What may change in a folder is no other run.
    assert parsed("--config.data.dir=/a b", "--config.batch_size=120").workdir == parsed().workdir
    option = "--config.optimizer.options.momentum=0.5"
    assert parsed(option).workdir == "runs/tiny_run-optimizer.options.momentum=0.5-seed0"
    shape = parsed("--config.model.options.num_filters=(8,16,16)")
    assert shape.workdir == "runs/tiny_run-model.options.num_filters=8,16,16-seed0"


def test_points_of_a_grid_have_folders_of_their_own():
    patterns = ["bn|bias", "bn.bias", "a/b", *("x" * n for n in (150, 300, 301))]
    folders = {parsed(f"--config.optimizer.no_decay={pattern}").workdir for pattern in patterns}
    assert len(folders) == len(patterns)
    for folder in folders:
        assert re.fullmatch(r"runs/[\w.,=+-]{1,200}", folder, re.ASCII), folder


def test_unwritable_workdir(tmp_path, capsys):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        assert run(f"--config={tiny_run.CONFIG_FILE}", workdir=workdir) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: --workdir {workdir} can't be written: ")
        assert err.count("\n") == 1


def test_help_is_short_and_needs_no_jax():
    code = "import sys; from resnet_jax import main; main.main(['x', '--help']); "
    code += "assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") <= 27
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "Traceback" not in done.stderr


def test_interrupt_before_the_first_step(capfd, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("resnet_jax.training.loop.train_and_evaluate", interrupted)
    assert run(f"--config={tiny_run.CONFIG_FILE}") == 130
    assert "the same command again resumes:" in capfd.readouterr().err


def test_modes_eval_and_summary(plain_run, capsys):
    assert run("--mode=eval", workdir=plain_run[0]) == 0
    newest, best = capsys.readouterr().out.splitlines()
    assert newest.startswith("newest  checkpoint, step 12: ")
    assert f"test accuracy {plain_run[1]['test_accuracy']:.2f} %" in newest
    assert f"test accuracy {plain_run[1]['best_test_accuracy']:.2f} %" in best
    assert newest.endswith("on 320 images")
    assert run("--mode=summary", f"--config={tiny_run.CONFIG_FILE}") == 0
    assert "Total: 2,466 -- 9,864 bytes" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "models",
            ["resnet18  ", "ResNet(stage_sizes=(2, 2, 2, 2), num_filters=("],
        ),
        ("configs", ["quickstart  ", "The first result: "]),
        ("datasets", ["cifar10  ", "50,000 + 10,000 images of 32x32x3"]),
        ("fields", ["optimizer.learning_rate  ", "peak learning rate (default: 0.1)"]),
        ("fields", ["augment.flip  ", ": none, random, alternating (default: 'none')"]),
        ("configs", ["search/demo  ", "Six points on"]),
        ("optimizers", ["sgd  ", "Stochastic gradient descent", " Options: momentum, "]),
        ("schedules", ["plateau  ", " Options: factor, patience, "]),
        ("weights", ["quickstart  ", " % of the test images of cifar10, 304,154 parameters"]),
    ],
)
def test_list(capsys, kind, lines):
    assert run(f"--list={kind}") == 0
    found = capsys.readouterr().out.splitlines()
    assert any(row.startswith(lines[0]) and all(part in row for part in lines) for row in found)
    assert all(re.match(r"\S+ +\S", row) for row in found), "every name has its line"


@pytest.mark.parametrize("mode", main._ACTIONS)
def test_lack_of_memory_is_one_line_in_every_mode(capsys, monkeypatch, mode):
    def exhausted(_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setitem(main._ACTIONS, mode, exhausted)
    rest = {"predict": ["x.png"], "export": ["--output=x.safetensors"]}.get(mode, [])
    file = search_storage.CONFIG_FILE if mode == "search" else tiny_run.CONFIG_FILE
    config = [f"--config={file}"] if mode in ("train", "summary", "search") else []
    assert run(f"--mode={mode}", "--workdir=x", *config, *rest) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: there is too little memory; lower batch_size")
    assert err.count("\n") == 1


def test_a_training_outlives_its_terminal(monkeypatch):
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        shown = Terminal()
        os.close(controller)
        for _ in range(2):
            shown.note("nobody reads this")


def test_in_a_terminal_the_row_in_progress_is_redrawn(tmp_path, monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    controller, terminal = pty.openpty()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read_all, controller)
        with os.fdopen(terminal, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            config = f"--config={tiny_run.CONFIG_FILE}"
            assert run(config, "--config.num_epochs=2", workdir=tmp_path / "run") == 0
        screen = reading.result()
    assert b"\x1b[2K" in screen, "no line was ever erased"
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h"), "the cursor stays hidden"
    assert b"4/8" in screen
    assert b"time left" in screen


def _read_all(controller):
    content = b""
    with contextlib.suppress(OSError):  # the other end was closed
        while chunk := os.read(controller, 65536):
            content += chunk
    return content

"""An interrupted run, resumed, ends with the same bits as one that was never interrupted."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import tiny_run
from torture_events import shown

from resnet_jax import main
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.loop import train_and_evaluate

# A process that kills itself right after it dispatched a step, with saves still in flight.
KILLED = """
import os, signal, sys
from resnet_jax import main
from resnet_jax.runs import recorder
progress = recorder.Recorder.progress
def killing(self, step, means):
    progress(self, step, means)
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
recorder.Recorder.progress = killing
main.main(["resnet-jax", *sys.argv[2:]])
"""


def command(workdir, *flags, variant="rich"):
    return [f"--config={tiny_run.CONFIG_FILE}:{variant}", f"--workdir={workdir}", *flags]


def assert_same_end(workdir, reference):
    """Compares the last checkpoint and the records with those of an uninterrupted run."""
    folder, final, state = reference
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2, read_only=True)
    restored = checkpoints.restore(state, final["step"])
    assert tiny_run.leaves(restored) == tiny_run.leaves(state)
    assert tiny_run.records(workdir) == tiny_run.records(folder)


def test_reference_exercises_what_resuming_must_carry_on(rich_run):
    folder, final, state = rich_run
    records = tiny_run.records(folder)
    rates = {record["learning_rate"] for record in records if record["kind"] == "train"}
    scores = [record["accuracy"] for record in records if record["kind"] == "score"]
    assert len(rates) > 1, "the plateau schedule never lowered the learning rate"
    assert scores.index(max(scores)) not in (0, len(scores) - 1)
    assert set(state.average) == {"params", "batch_stats"}
    assert state.opt_state.gradient_step == final["step"] // 2


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6))]
)
def test_killed_run_resumes_bit_for_bit(rich_run, tmp_path, seed):
    workdir = tmp_path / "run"
    step = random.Random(seed).randrange(2, rich_run[1]["step"])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(step), *command(workdir)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert all(record["step"] <= step for record in tiny_run.records(workdir))
    assert main.main(["resnet-jax", *command(workdir)]) == 0
    assert_same_end(workdir, rich_run)


@pytest.mark.parametrize("step", [4, 7, 11])  # lookahead moves its weights after 5 and 10 of 12
def test_lookahead_resumes_bit_for_bit(speedrun_run, tmp_path, monkeypatch, step):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        tiny_run.interrupt(patch, step, signal.SIGTERM)
        assert main.main(["resnet-jax", *command(workdir, variant="speedrun")]) == 143
    assert main.main(["resnet-jax", *command(workdir, variant="speedrun")]) == 0
    assert_same_end(workdir, speedrun_run)


def test_signals_save_and_say_how_to_resume(rich_run, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "with space"
    for step, number, status in ((7, signal.SIGTERM, 143), (8, signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            tiny_run.interrupt(patch, step, number)
            assert main.main(["/somewhere/main.py", *command(workdir)]) == status
        assert (workdir / "checkpoints" / str(step)).is_dir()
        lines = capfd.readouterr().err.splitlines()
        assert lines[-2].startswith(f"stopped after step {step}, which is saved; ")
        again = f"python -m resnet_jax.main --config={tiny_run.CONFIG_FILE}:rich"
        assert lines[-1].strip() == f"{again} '--workdir={workdir}'"
    assert main.main(["resnet-jax", *command(workdir)]) == 0
    assert "resuming after step 8" in capfd.readouterr().out
    assert_same_end(workdir, rich_run)
    assert shown(workdir / "events") == shown(rich_run[0] / "events")


def test_finished_run_is_left_as_it_is(rich_run, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(rich_run[0], workdir)
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("checkpoints/**/*") if p.is_file()}
    monkeypatch.setattr("resnet_jax.training.step.Steps.train", None)  # would fail if called
    monkeypatch.setattr("resnet_jax.training.step.Steps.evaluate", None)
    final, state = train_and_evaluate(tiny_run.get_config("rich"), workdir)
    assert final == rich_run[1]
    assert tiny_run.leaves(state) == tiny_run.leaves(rich_run[2])
    assert tiny_run.records(workdir, drop=()) == tiny_run.records(rich_run[0], drop=())
    after = {p: p.stat().st_mtime_ns for p in workdir.glob("checkpoints/**/*") if p.is_file()}
    assert after == before


def test_lost_records_of_a_finished_run_are_said(plain_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(plain_run[0], workdir)
    os.remove(workdir / "metrics.jsonl")
    final, _ = train_and_evaluate(tiny_run.get_config(), workdir)
    wanted = {k: v for k, v in plain_run[1].items() if k != "seconds"}
    assert {k: v for k, v in final.items() if k != "seconds"} == wanted
    assert "metrics.jsonl was damaged: " in capsys.readouterr().out


def test_resuming_may_change_what_does_not_alter_the_result(plain_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(plain_run[0], workdir)
    config = tiny_run.get_config()
    config.evaluate.batch_size = 7
    config.checkpoint.keep = 5
    assert train_and_evaluate(config, workdir)[0] == plain_run[1]

"""Trainings as real processes that suffer real faults; see scripts/torture.py."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import torture  # noqa: E402
import torture_faults  # noqa: E402
from torture_table import BAD, COLUMNS, Fault, totals  # noqa: E402

# One of each family: killed, interrupted, no room, damaged, read-only.
SHORT = ("SIGKILL in a save", "SIGINT", "full disk", "bit flip", "read-only")


def run(tmp_path, number, *flags):
    file = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), f"--faults={number}"]
    done = subprocess.run(
        [*command, f"--json={file}", *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text()), done.stdout


@pytest.mark.slow
def test_short(tmp_path):
    result, out = run(tmp_path, len(SHORT), "--seed=0", *(f"--kind={kind}" for kind in SHORT))
    done = {kind for kind in SHORT if kind not in result["left_out"]}
    assert result["held"]
    assert set(result["totals"]) == done | {"all"}
    assert result["totals"]["all"]["equal_at_the_end"] == len(SHORT)
    assert "faults" not in result, "no row per fault"
    assert "the bar holds" in out
    assert "\x1b" not in out


@pytest.mark.slow
def test_long(tmp_path):
    result, _ = run(tmp_path, 200, "--seed=1")
    assert result["totals"]["all"]["equal_at_the_end"] == 200


@pytest.mark.slow
def test_processes_that_train_together(tmp_path):
    kinds = [f"--kind={kind}" for kind in torture_faults.OF_PROCESSES]
    result, _ = run(tmp_path, 40, "--seed=2", *kinds)
    assert result["totals"]["all"]["equal_at_the_end"] == 40
    assert {row["faults"] for kind, row in result["totals"].items() if kind != "all"} == {20}


ENDED = torture.End(
    {"a": np.arange(3.0), "b": np.ones(2)},
    [{"step": step, "best_test_accuracy": 50.0} for step in (1, 2, 3)],
    [(step, "train/loss", 1.0) for step in (1, 2, 3)],
)


def changed(**changes):
    return dataclasses.replace(ENDED, **changes)


def test_the_harness_sees_what_differs():
    altered = changed(arrays=ENDED.arrays | {"b": np.array([1, 1.0000001])})
    other_type = changed(arrays=ENDED.arrays | {"b": np.ones(2, np.float32)})
    assert ENDED.differences(ENDED) == []
    assert altered.differences(ENDED) == other_type.differences(ENDED) == ["arrays"]
    for events in ([*ENDED.events, ENDED.events[-1]], ENDED.events[::-1], ENDED.events[1:]):
        assert changed(events=events).differences(ENDED) == ["events"]
    for records in ([*ENDED.records, ENDED.records[-1]], ENDED.records[::-1], ENDED.records[1:]):
        assert changed(records=records).differences(ENDED) == ["records"]


def test_what_the_run_said_may_differ():
    fewer = changed(records=ENDED.records[1:])
    assert fewer.differences(ENDED, lost=1) == []
    assert changed(records=ENDED.records[2:]).differences(ENDED, lost=1) == ["records"]
    worse = changed(records=[*ENDED.records[:2], ENDED.records[2] | {"best_test_accuracy": None}])
    assert worse.differences(ENDED, lost=1) == ["records"]
    assert worse.differences(ENDED, unknown="best_test_accuracy") == []


def test_any_bad_column_breaks_the_bar():
    assert set(BAD) < set(COLUMNS)
    for column in BAD:
        fault = Fault("SIGKILL", **{column: 2})
        sums = totals([fault, Fault("SIGINT")])
        assert sums["all"]["faults"] == 2
        assert sums["all"][column] == sums["SIGKILL"][column] == 2
        assert sums["SIGINT"][column] == 0
    assert totals([])["all"]["faults"] == 0  # interrupted before the first one


@pytest.mark.parametrize("kind", [k for k in torture_faults.BETWEEN_STARTS if k != "read-only"])
def test_damages(tmp_path, kind):
    file = tmp_path / "sub" / "file"
    file.parent.mkdir()
    file.write_bytes(b"content")
    torture_faults.damage(kind, tmp_path, torture.random.Random(1))
    if kind == "deleted file":
        assert not file.exists()
        return
    after = file.read_bytes()
    bits = sum((a ^ b).bit_count() for a, b in zip(after, b"content", strict=False))
    assert (bits, len(after)) == {
        "bit flip": (1, 7),
        "truncated file": (0, len(after)),
        "emptied file": (0, 0),
    }[kind]
    assert after != b"content"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_set_up(tmp_path, number, status):
    training = torture_faults.Training(tmp_path / "run", tmp_path / "cache")
    assert training.wait_until(training.handles_signals)
    training.process.send_signal(signal.SIGHUP)  # its terminal is closed
    training.process.send_signal(number)
    code, said = training.end()
    assert code == status, said
    assert said.startswith("stopped; the same command again resumes:\n  python -m resnet_jax.main")
    assert len(said.splitlines()) == 2

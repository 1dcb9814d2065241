"""What a run records and shows."""

import contextlib
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tiny_run
from torture_events import shown

from resnet_jax.runs.recorder import Recorder
from resnet_jax.runs.tensorboard import Events
from resnet_jax.runs.terminal import Terminal, duration

INFO = {"name": "sample", "digest": "abc"}


@pytest.fixture
def config():
    return tiny_run.get_config()


def opened(folder, config, stream=None, step=0, saved=None):
    folder.mkdir(exist_ok=True)
    terminal = Terminal(config.evaluate.split, stream or io.StringIO())
    return Recorder(folder, config, INFO, 4, config.batch_size, step, terminal, saved)


def means(accuracy=10.0):
    return {"loss": 1.0, "accuracy": accuracy}


def epoch(recorder, step, accuracy):
    recorder.training(step, means(), 0.1, scored=True)
    recorder.score(step, means(accuracy), means(), 0.5)


RESULTS = {"test_loss": 1.0, "test_accuracy": 4.0, "best_test_accuracy": 5.0, "train_accuracy": 9.0}


def test_the_closing_record_ends_a_finished_run(tmp_path, config):
    recorder = opened(tmp_path, config)
    epoch(recorder, 4, 3.0)
    epoch(recorder, 8, 2.0)
    assert recorder.closing is None
    saved = recorder.run()
    final = recorder.finish(8, RESULTS)
    recorder.close()
    wanted = {"kind": "final", "step": 8, "epoch": 2.0, "best_epoch": 1.0, "best_score": 3.0}
    assert {k: v for k, v in final.items() if k != "seconds"} == wanted | RESULTS
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {k: v for k, v in last.items() if k != "crc32"} == final
    again = opened(tmp_path, config, step=8, saved=saved)
    assert again.closing == final
    again.close()


def test_resumes_with_the_scores_of_the_checkpoint(tmp_path, config):
    recorder = opened(tmp_path, config)
    epoch(recorder, 4, 3.0)
    saved = recorder.run()
    epoch(recorder, 8, 5.0)
    recorder.close()
    assert saved["config"] == config.to_dict()
    assert (saved["dataset"], saved["scores"], saved["num_records"]) == (INFO, [[4, 3.0]], 2)
    (tmp_path / "metrics.jsonl").unlink()
    stream = io.StringIO()
    again = opened(tmp_path, config, stream, 4, json.loads(json.dumps(saved)))
    assert again.scores == [(4, 3.0)]
    assert again.best_step() == 4
    assert "0 of 2 records remain" in stream.getvalue()
    epoch(again, 8, 2.0)
    assert [accuracy for _, accuracy in again.scores] == [3.0, 2.0]
    assert again.run()["num_records"] == 2
    again.close()
    scores = [event for event in shown(tmp_path / "events") if event[1] == "val/accuracy"]
    assert scores == [(4, "val/accuracy", 3.0), (8, "val/accuracy", 2.0)]


def test_records_of_a_run(rich_run):
    records = tiny_run.records(rich_run[0], drop=())
    kinds = [record["kind"] for record in records]
    assert kinds.index("final") == len(kinds) - 1
    rates = ("learning_rate", "images_per_second")
    fields = {"train": ("loss", "accuracy", *rates), "score": ("loss", "accuracy", "split")}
    fields["final"] = (*RESULTS, "best_score", "best_epoch")
    for record in records:
        assert {"step", "epoch", "seconds", "crc32", *fields[record["kind"]]} <= set(record)
        assert all(math.isfinite(v) for v in record.values() if isinstance(v, float))
    last = records[-1]["step"]
    for kind, every in (("train", 2), ("score", 4)):
        due = [step for step in range(1, last + 1) if step % 5 == 0 or step % every == 0]
        assert [r["step"] for r in records if r["kind"] == kind] == due
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_events_of_a_run(rich_run):
    found = [event[:2] for event in shown(rich_run[0] / "events")]
    assert len(found) == len(set(found))
    tags = {tag for _, tag in found}
    for tag in ("train/loss", "train/accuracy", "train/learning_rate", "val/loss", "val/accuracy"):
        assert tag in tags
    assert (0, "train/images") in found
    assert {"params/head/kernel", "gradients/head/kernel"} <= tags


def test_patience_counts_scores_without_a_new_best(tmp_path, config):
    config.evaluate.patience = 2
    recorder = opened(tmp_path, config)
    assert recorder.best() is None
    assert recorder.best_step() is None
    found = []
    for step, accuracy in ((4, 1.0), (8, 3.0), (12, 3.0), (16, 2.0)):
        recorder.score(step, means(accuracy), means(), 0.1)
        found.append((recorder.best_step(), recorder.exhausted()))
    assert found == [(4, False), (8, False), (8, False), (8, True)]
    recorder.close()


def test_the_test_set_never_chooses_unless_told(tmp_path, config):
    config.evaluate.split = "test"
    for allowed, step in ((False, None), (True, 4)):
        config.evaluate.select_on_test = allowed
        recorder = opened(tmp_path / str(allowed), config)
        record = recorder.score(4, means(1.0), means(), 0.1)
        assert recorder.best_step() == step
        assert recorder.test_score(4) == record
        assert recorder.test_score(8) is None
        recorder.close()


def test_a_tracker_that_fails_is_given_up_once(tmp_path, config):
    class Lost:
        def record(self, record):
            raise ConnectionError("the server\nis gone")

    stream = io.StringIO()
    recorder = opened(tmp_path, config, stream)
    recorder._trackers.append(Lost())
    epoch(recorder, 4, 3.0)
    recorder.finish(4, RESULTS)
    recorder.close()
    assert stream.getvalue().count("Lost shows no more of this run: the server is gone") == 1


def test_tensorboard_shows_images_of_any_number_of_channels(tmp_path):
    events = Events(tmp_path / "events", 0)
    for channels in (1, 2, 3, 4, 5):
        events.images("train/images", np.zeros((3, 8, 8, channels), np.uint8), channels)
    events.close()
    assert {step for step, *_ in shown(tmp_path / "events")} >= {1, 2, 3, 4, 5}


def test_an_epoch_without_a_score_has_its_row_too(tmp_path, config):
    stream = io.StringIO()
    recorder = opened(tmp_path, config, stream)
    recorder.training(4, means(), 0.1)
    recorder.training(8, means() | {"skipped_steps": 2}, 0.1, scored=True)
    recorder.close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()[1:]] == ["1/3"]
    assert tiny_run.records(tmp_path)[1]["skipped_steps"] == 2


class Screen(io.StringIO):
    def isatty(self):
        return True


ROW = {"epoch": 1, "num_epochs": 3, "step": 4, "num_steps": 12, "loss": 2.5, "accuracy": 10.0}
ROW |= {"images_per_second": 1234.5, "seconds_left": 61.0}


def test_plain_lines():
    stream = io.StringIO()
    terminal = Terminal("val", stream)
    terminal.note("data [bold]x[/bold] " + "y" * 200)
    terminal.epoch(ROW)
    terminal.row(ROW)
    terminal.row(ROW | {"score": 50.0, "is_best": True, "seconds_left": None})
    terminal.row(ROW | {"score": 50.0, "is_best": False, "seconds_left": 7200})
    terminal.close()
    assert stream.getvalue().splitlines() == [
        "data [bold]x[/bold] " + "y" * 200,
        "    epoch            step     loss  train %    val %  images/s time left",
        "      1/3            4/12   2.5000    10.00              1,234      1:01",
        "      1/3            4/12   2.5000    10.00   50.00*     1,234          ",
        "      1/3            4/12   2.5000    10.00   50.00      1,234   2:00:00",
    ]


def test_live_row(tmp_path, config, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Screen()
    recorder = opened(tmp_path, config, stream)
    for step in (1, 2):
        recorder.progress(step, means)
    recorder._terminal.note("note")
    recorder._terminal.close()
    recorder._terminal.close()
    recorder.close()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Screen()
    terminal = Terminal("val", stream)
    terminal.epoch(ROW | {"step": 2})
    terminal.bar("features", 25, 100)
    terminal.close()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    assert "      1/3 ━━━━━━━╸━━━━━━━   2.5000    10.00              1,234      1:01" in text
    assert " features ━━━╸━━━━━━━━━━━ 25 %" in text
    drawn = len(stream.getvalue())
    terminal.bar("features", 100, 100)
    terminal.row(ROW)
    terminal.close()
    assert "━" not in stream.getvalue()[drawn:], "what is done has no bar"
    assert Terminal("val", io.StringIO()).bar is None, "nor has what is no terminal"


def test_progress_asks_for_no_numbers_without_a_screen(tmp_path, config):
    recorder = opened(tmp_path, config)
    recorder.progress(1, None)  # would fail if called
    recorder.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (360_061, "100:01:01")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_training_outlives_who_reads_what_it_prints():
    program = (
        "import sys; from resnet_jax.errors import tell; from resnet_jax.runs.terminal import *\n"
        "terminal = Terminal(); sys.stdin.readline()\n"
        "for _ in range(3): terminal.note('words' * 9999); tell('words')\n"
        "open(sys.argv[1], 'w').write('done')"
    )
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-c", program, file.name]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(command, **pipes)
        process.stdout.close()
        process.stderr.close()
        process.communicate(b"\n")
        assert process.returncode == 0 and file.read() == b"done"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_training_outlives_a_full_disk_of_its_output(monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        terminal = Terminal()
        terminal.note("one")
        terminal.note("two")
        terminal.close()
    raised = None
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # nor can it be closed
        try:
            Terminal(stream=full).note("what a trial of a search keeps")
        except OSError as error:
            raised = error.errno
    assert raised == errno.ENOSPC

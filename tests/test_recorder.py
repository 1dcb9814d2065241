"""Records, events, and what is shown."""

import io
import math
import struct

import numpy as np
import pytest
import tiny_run
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from resnet_jax.runs import records as metrics
from resnet_jax.runs.recorder import Recorder
from resnet_jax.runs.records import History
from resnet_jax.runs.tensorboard import Events
from resnet_jax.runs.terminal import Row, Terminal, duration
from resnet_jax.training.state import Sums


def score(step, accuracy, split="val"):
    return {"kind": "score", "split": split, "step": step, "accuracy": accuracy}


def events(directory):
    """Returns the (tag, step) of every value, oldest first; every checksum is checked."""
    found = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            length, length_crc = struct.unpack("<QI", data[:12])
            body, (crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length :][:4])
            assert (masked_crc32c(data[:8]), masked_crc32c(body)) == (length_crc, crc)
            event = Event.FromString(body)
            found += [(value.tag, event.step) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_history_goes_on_after_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path, 0)
    for step in (1, 2, 3):
        history.add(score(step, 10.0 * step))
    history.close()
    with path.open("a") as file:
        file.write('{"kind": "score", "step": 2, "acc')  # torn by a kill
    history = History(path, 2)
    assert [record["step"] for record in history.records] == [1, 2]
    history.add(score(3, 5.0))
    history.close()
    assert metrics.read(path) == [score(1, 10.0), score(2, 20.0), score(3, 5.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def spoil(path, find, replace):
    content = path.read_bytes()
    assert find in content
    path.write_bytes(content.replace(find, replace))


@pytest.mark.parametrize(
    ("find", "replace"),
    [(b"20.0", b"21.0"), (b'"step": 1', b'"step": \x01'), (b"\n", b""), (b"", b"")],
)
def test_damaged_records_are_written_anew_from_the_checkpoint(tmp_path, find, replace):
    path, notices = tmp_path / "metrics.jsonl", []
    saved = [score(1, 10.0), score(2, 20.0)]
    history = History(path, 0)
    for record in saved:
        history.add(record)
    history.close()
    spoil(path, find, replace) if find else path.unlink()
    history = History(path, 2, saved, notices.append)
    history.close()
    assert notices == [f"{path} was damaged: its records are written anew from the checkpoint"]
    assert history.records == metrics.read(path) == saved
    History(path, 2, saved, notices.append).close()
    assert len(notices) == 1


def test_an_altered_closing_record_is_dropped(tmp_path):
    path, notices = tmp_path / "metrics.jsonl", []
    history = History(path, 0)
    history.add(score(1, 10.0))
    final = history.finish({"step": 1, "test_accuracy": 12.5})
    history.close()
    assert metrics.final(metrics.read(path)) == final
    spoil(path, b"12.5", b"13.5")
    assert metrics.final(metrics.read(path)) is None
    history = History(path, 1, [score(1, 10.0)], notices.append)
    history.close()
    assert history.records == [score(1, 10.0)]
    assert notices == [f"{path}: its closing record can't be trusted; the test set is scored again"]


def test_history_bears_foreign_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'\xff\n3\n[]\n{"step": 1}\n\n{"kind": "train", "step": 1}\n{"kind": "x"}\n')
    assert metrics.read(path) == [{"kind": "train", "step": 1}]


def test_best_is_the_oldest_of_equals():
    records = [score(1, 5.0), score(2, 7.0), score(3, 7.0), score(4, 9.0, "test")]
    assert metrics.best(records, "val") == score(2, 7.0)
    assert metrics.best([], "val") is None


def test_records_are_complete(rich_run):
    records = tiny_run.records(rich_run[0], drop=())
    kinds = [record["kind"] for record in records]
    assert kinds.count("final") == 1
    assert kinds[-1] == "final"
    rates = ("learning_rate", "images_per_second")
    fields = {"train": ("epoch", "loss", "accuracy", *rates), "score": ("epoch", "loss", "split")}
    for record in records[:-1]:
        for name in ("step", "seconds", *fields[record["kind"]]):
            assert name in record
        assert all(math.isfinite(v) for v in record.values() if isinstance(v, float))
    last = records[-1]["step"]
    due = {step for step in range(1, last + 1) if step % 5 == 0 or step % 2 == 0}
    assert [r["step"] for r in records if r["kind"] == "train"] == sorted(due)
    due = {step for step in range(1, last + 1) if step % 5 == 0 or step % 4 == 0}
    assert [r["step"] for r in records if r["kind"] == "score"] == sorted(due)
    assert {"test_accuracy", "best_test_accuracy", "best_score", "best_epoch"} <= set(records[-1])
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_events_of_a_run(rich_run):
    found = events(rich_run[0] / "events")
    assert len(found) == len(set(found))
    tags = {tag for tag, _ in found}
    for tag in ("train/loss", "train/accuracy", "train/learning_rate", "val/loss", "val/accuracy"):
        assert tag in tags
    assert ("train/images", 0) in found
    assert {"params/head/kernel", "gradients/head/kernel"} <= tags


def test_events_go_on_after_the_step_they_resume_from(tmp_path):
    directory = tmp_path / "events"
    writer = Events(directory, 0)
    for step in (1, 2, 3):
        writer.record({"step": step, "loss": 1.0})
    writer.close()
    (path,) = directory.iterdir()
    path.write_bytes(path.read_bytes()[:-3])  # torn by a kill
    writer = Events(directory, 2)
    writer.record({"step": 3, "loss": 1.0})
    writer.close()
    assert events(directory) == [("train/loss", step) for step in (1, 2, 3)]


def flip(content):
    return content[:90] + bytes([content[90] ^ 1]) + content[91:]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:99], lambda content: b""])
def test_lost_numbers_are_written_anew_from_the_records(tmp_path, damage):
    directory, notices = tmp_path / "events", []
    records = [{"step": step, "loss": 1.0 * step} for step in (1, 2, 3)]
    for resume, record in enumerate(records):
        writer = Events(directory, resume, records[:resume])
        writer.images("train/images", np.zeros((4, 8, 8, 3), np.uint8), record["step"])
        writer.record(record)
        writer.close()
    whole = sorted(events(directory), key=lambda event: event[1])
    path = min(directory.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    Events(directory, 3, records, notices.append).close()
    assert notices == [f"{directory} was damaged: 1 numbers are written anew from the records"]
    found = events(directory)
    assert [event for event in found if event[0] == "train/loss"] == [
        ("train/loss", 1),
        ("train/loss", 2),
        ("train/loss", 3),
    ]
    assert set(whole) - set(found) <= {("train/images", 1)}
    Events(directory, 3, records, notices.append).close()
    assert len(notices) == 1


def test_events_of_a_start_that_saved_nothing_are_dropped(tmp_path):
    for _ in range(2):
        writer = Events(tmp_path / "events", 0)
        writer.images("train/images", np.zeros((4, 32, 32, 3), np.uint8), 0)
        writer.close()
    assert events(tmp_path / "events") == [("train/images", 0)]


class Screen(io.StringIO):
    def isatty(self):
        return True


ROW = Row(1, 3, 4, 12, 2.5, 10.0, 1234.5, 61.0)


def test_plain_lines(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    stream = io.StringIO()
    terminal = Terminal("val", stream)
    terminal.note("data [bold]x[/bold] " + "y" * 200)
    terminal.progress(ROW)
    terminal.row(ROW)
    terminal.close()
    note, header, row = stream.getvalue().splitlines()
    assert note == "data [bold]x[/bold] " + "y" * 200
    assert " ".join(header.split()) == "epoch step loss train % val % images/s time left"
    assert row.split() == ["1/3", "4/12", "2.5000", "10.00", "1,234", "1:01"]
    assert "\x1b" not in stream.getvalue()


def test_live_row(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Screen()
    terminal = Terminal("val", stream)
    assert terminal.is_live
    terminal.progress(ROW)
    terminal.note("note")
    terminal.close()
    terminal.close()
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (360_061, "100:01:01")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def recorder(tmp_path, config, stream):
    tmp_path.mkdir(exist_ok=True)
    return Recorder(tmp_path, config, 4, 0, Terminal(config.evaluate.split, stream))


def means(accuracy):
    return {"loss": 1.0, "accuracy": accuracy}


def test_patience_counts_scores_without_a_new_best(tmp_path):
    config = tiny_run.get_config()
    config.evaluate.patience = 2
    one = recorder(tmp_path, config, io.StringIO())
    assert one.best() is None
    assert one.best_step() is None
    sums = Sums.zero().replace(count=np.float32(1))
    found = []
    for step, accuracy in ((4, 1.0), (8, 3.0), (12, 3.0), (16, 2.0)):
        one.score(step, means(accuracy), sums, 0.1)
        found.append((one.best_step(), one.exhausted()))
    assert found == [(4, False), (8, False), (8, False), (8, True)]
    one.close()


def test_the_test_set_never_chooses_unless_told(tmp_path):
    config = tiny_run.get_config()
    config.evaluate.split = "test"
    for allowed, step in ((False, None), (True, 4)):
        config.evaluate.select_on_test = allowed
        one = recorder(tmp_path / str(allowed), config, io.StringIO())
        one.score(4, means(1.0), Sums.zero().replace(count=np.float32(1)), 0.1)
        assert one.best_step() == step
        one.close()


def test_an_epoch_without_a_score_has_its_row_too(tmp_path):
    stream, sums = io.StringIO(), Sums.zero().replace(count=np.float32(1))
    one = recorder(tmp_path, tiny_run.get_config(), stream)
    one.training(4, sums, 0.1, scored=False)
    one.training(8, sums, 0.1, scored=True)
    one.close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()[1:]] == ["1/3"]


def test_json_is_strict(tmp_path):
    history = History(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match=r"nan|Out of range"):
        history.add({"kind": "train", "step": 1, "loss": math.nan})
    history.close()

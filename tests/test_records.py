"""metrics.jsonl, and what is found from scores."""

import json
import math
import os
import zlib

import pytest

from resnet_jax.runs import records
from resnet_jax.runs.records import History


def score(step, accuracy=50.0):
    place = {"kind": "score", "split": "val", "step": step, "epoch": step / 4}
    return place | {"loss": 1.0, "accuracy": accuracy, "seconds": 0.1 * step}


@pytest.fixture
def path(tmp_path):
    """A file of the scores after steps 1, 2 and 3."""
    path = tmp_path / "metrics.jsonl"
    history = History(path)
    for step in (1, 2, 3):
        history.add(score(step))
    history.close()
    return path


def resumed(path, step, count):
    notices = []
    history = History(path, step, count, notices.append)
    history.close()
    return [record["step"] for record in history.records], notices


def test_a_line_is_json_with_a_checksum_as_its_last_key(path):
    line = path.read_text().splitlines()[0]
    body = line.rpartition(', "crc32": ')[0]
    assert json.loads(line) == score(1) | {"crc32": zlib.crc32(body.encode())}
    assert list(json.loads(line))[-1] == "crc32"
    assert records.read(path) == ([score(1), score(2), score(3)], 0)


def test_goes_on_after_the_step_it_resumes_from(path):
    assert resumed(path, step=2, count=2) == ([1, 2], [])
    history = History(path, 2, 2)
    history.add(score(3, 5.0))
    history.close()
    assert records.read(path) == ([score(1), score(2), score(3, 5.0)], 0)
    assert [other.name for other in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_starts_anew_keeps_nothing(path):
    assert resumed(path, step=-1, count=0) == ([], [])
    assert path.read_bytes() == b""


def test_a_torn_line_is_said_and_dropped(path):
    with path.open("a") as file:
        file.write('{"kind": "score", "step": 2, "acc')
    kept, (notice,) = resumed(path, 3, 3)
    assert kept == [1, 2, 3]
    assert notice == (
        f"{path} was damaged: 1 torn or altered lines are left out, and 3 of 3 records remain"
    )
    assert resumed(path, 3, 3) == (kept, []), "it is said once"


@pytest.mark.parametrize(
    ("damage", "kept", "bad"),
    [
        (lambda text: text.replace(b'"step": 2', b'"step": 3'), [1, 3], 1),
        (lambda text: text.replace(b'seconds": 0.2', b'seconds": 0.4'), [1, 3], 1),
        (lambda text: text.replace(b"score", b"sc\xffre", 1), [2, 3], 1),
        (lambda text: text.replace(b"\n", b""), [], 1),
        (lambda text: text[:-1] + b"7\n", [1, 2], 1),
        (lambda text: b"".join(text.splitlines(True)[1:]), [2, 3], 0),
        (lambda text: b"", [], 0),
    ],
)
def test_damage_is_said_and_dropped(path, damage, kept, bad):
    path.write_bytes(damage(path.read_bytes()))
    found, (notice,) = resumed(path, 3, 3)
    assert found == kept
    assert f": {bad} torn or altered lines are left out, and {len(kept)} of 3 records" in notice


def test_a_file_that_is_gone_is_said(path):
    path.unlink()
    assert resumed(path, 3, 3)[0] == []
    assert "0 of 3 records remain" in resumed(path, 3, 3)[1][0]


FINAL = {"kind": "final", "step": 1, "epoch": 1, "seconds": 1, "test_loss": 1, "test_accuracy": 1}
FINAL |= {"best_epoch": 1, "best_score": 1, "best_test_accuracy": None, "train_accuracy": None}


def summed(body):
    return f'{body[:-1]}, "crc32": {zlib.crc32(body[:-1].encode())}}}'


FOREIGN = (
    *("3", "[]", "{}", "null", '{"step": 1}', json.dumps(score(-1)), json.dumps(score(True))),
    *("[" * 100_000 + "]", '{"step": ' + "9" * 5000 + "}"),
    json.dumps(score(1) | {"kind": ["score"]}),
    json.dumps(score(1) | {"kind": "other"}),
    json.dumps(score(1, math.nan)),
    json.dumps(score(1, "x")),
    json.dumps(score(1, 10**310)),
    json.dumps(score(1) | {"seconds": None}),
    json.dumps({"kind": "final", "step": 1, "epoch": 1, "seconds": 1}),
    json.dumps(FINAL | {"best_score": None}),
    json.dumps(FINAL | {"train_accuracy": "x"}),
    json.dumps({k: v for k, v in FINAL.items() if k != "train_accuracy"}),
)


@pytest.mark.parametrize("body", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_lines_are_none_whatever_their_checksum(tmp_path, body):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{summed(body)}\n{body}\n\n{summed(json.dumps(score(1)))}\n")
    assert records.read(path) == ([score(1)], 3)


def test_a_closing_record_may_leave_open_what_nobody_knows(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f"{summed(json.dumps(FINAL))}\n")
    assert records.read(tmp_path / "metrics.jsonl") == ([FINAL], 0)


def test_json_is_strict(tmp_path):
    history = History(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"nan|Out of range"):
        history.add(score(1, math.nan))
    history.close()


def test_best_is_the_oldest_of_equals():
    assert records.best([(1, 5.0), (2, 7.0), (3, 7.0)]) == (2, 7.0)
    assert records.best([]) is None


def test_ranking_of_checkpoints():
    scores = [(1, 5.0), (2, 7.0), (3, 7.0), (4, 9.0)]
    assert records.ranked(scores, [5, 3, 2, 1]) == [2, 3, 1]
    assert records.ranked(scores, [6, 5]) == [6, 5]


def test_a_record_is_on_disk_when_it_is_written(path, monkeypatch):
    history, synced, fsync = History(path, 3, 3), [], os.fsync

    def fsync_and_note(number):
        found = os.fstat(number)
        synced.append((found.st_ino, found.st_size))
        fsync(number)

    monkeypatch.setattr(os, "fsync", fsync_and_note)
    history.add(score(4))
    history.close()
    assert synced == [(path.stat().st_ino, path.stat().st_size)]

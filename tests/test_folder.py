import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess

import numpy as np
import pytest
import tiny_run

from resnet_jax.config.load import differences, validate
from resnet_jax.errors import UserError
from resnet_jax.runs import folder as workdir
from resnet_jax.runs.checkpoints import Checkpoints


@pytest.fixture
def config():
    return validate(tiny_run.get_config())


def other(config):
    return validate(config.to_dict() | {"batch_size": 7, "seed": 1})


INFO = {"name": "sample", "digest": "abc", "mean": (0.5, 1.0)}


def start(folder, config, saved=None, info=INFO):
    notices = []
    with workdir.claim(folder):
        workdir.begin(folder, config, info, saved, notices.append)
    return notices


def run_of(config):
    """Returns what a checkpoint holds, as orbax gives it back."""
    run = {"config": config.to_dict(), "dataset": INFO, "scores": [], "num_records": 0}
    return json.loads(json.dumps(run))


def save(folder, config):
    with contextlib.closing(Checkpoints(folder / "checkpoints", 1)) as checkpoints:
        checkpoints.save(1, {"step": np.int32(1)}, run_of(config))


def test_holds_what_reproduces_the_run(tmp_path, config):
    folder = tmp_path / "a" / "b"
    start(folder, config)
    assert differences(json.loads((folder / "config.json").read_text()), config) == []
    assert json.loads((folder / "dataset.json").read_text()) == INFO | {"mean": [0.5, 1.0]}
    (line,) = (folder / "starts.jsonl").read_text().splitlines()
    assert {"command", "commit", "version", "jax", "devices", "cores"} <= set(json.loads(line))


def test_is_for_one_process(tmp_path):
    message = f"is in use by process {os.getpid()} on {socket.gethostname()}$"
    with (
        workdir.claim(tmp_path),
        pytest.raises(UserError, match=message),
        workdir.claim(tmp_path),
    ):
        pass
    with workdir.claim(tmp_path):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(UserError, match=r"can't be locked \(Function not implemented\)"),
        workdir.claim(tmp_path),
    ):
        pass


def test_is_for_one_config(tmp_path, config):
    start(tmp_path, config)
    message = r"another config: batch_size was 120, is 7; seed was 0, is 1; name another --workdir"
    with pytest.raises(UserError, match=message):
        start(tmp_path, other(config), run_of(config))


def test_is_for_one_data_set(tmp_path, config):
    message = r"holds a run on other data: sample \(digest abc\), not mine \(digest abd\); name ano"
    with pytest.raises(UserError, match=message):
        start(tmp_path, config, run_of(config), {"name": "mine", "digest": "abd"})
    start(tmp_path, config, run_of(config), INFO | {"name": "renamed"})


def test_config_may_change_until_the_first_checkpoint(tmp_path, config):
    assert start(tmp_path, config) == start(tmp_path, other(config)) == []
    assert differences(json.loads((tmp_path / "config.json").read_text()), other(config)) == []


@pytest.mark.parametrize("file", ["config.json", "dataset.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b'{"seed": 5}', None])
def test_files_are_views_of_the_checkpoint(tmp_path, config, file, content):
    start(tmp_path, config)
    path = tmp_path / file
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    notices = start(tmp_path, config, run_of(config))
    assert notices == [f"{path} was not what the newest checkpoint holds: written anew"]
    assert path.read_bytes() == before
    assert start(tmp_path, config, run_of(config)) == []


def test_reads_the_run_from_its_checkpoint(tmp_path, config):
    start(tmp_path, other(config))
    with pytest.raises(UserError, match="holds no checkpoint of a run yet"):
        workdir.read_run(tmp_path)
    save(tmp_path, config)
    found, info = workdir.read_run(tmp_path)
    assert differences(found, config) == []
    assert info == INFO | {"mean": [0.5, 1.0]}
    assert start(tmp_path, config, {"config": found.to_dict(), "dataset": info})[1:] == []
    with pytest.raises(UserError, match="nowhere does not exist"):
        workdir.read_run(tmp_path / "nowhere")


def test_a_run_and_a_search_have_folders_of_their_own(tmp_path):
    (tmp_path / workdir.SEARCH).touch()
    with pytest.raises(UserError, match="holds a search, whose runs are in trials/"):
        workdir.read_run(tmp_path)
    with pytest.raises(UserError, match="holds a search; name another"), workdir.claim(tmp_path):
        pass


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_what_others_wrote_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("of another program")
    with pytest.raises(UserError, match="is of no run; move it"), workdir.claim(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "of another program"


def test_a_run_is_no_class_of_its_images(tmp_path):
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match="whose folders are classes; name another"):
        workdir.check_apart(photos / "runs" / "a", f"folder:{photos}")
    for place in (photos, "x" * 5000, "", "\0"):
        workdir.check_apart(tmp_path / "runs", f"folder:{place}")
    (photos / "train").mkdir()
    workdir.check_apart(photos / "runs" / "a", f"folder:{photos}")


def test_what_orbax_gives_back_is_written_as_it_was(tmp_path, config):
    start(tmp_path, config)
    save(tmp_path, config)
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", 1)) as checkpoints:
        assert start(tmp_path, config, checkpoints.newest_run()) == []


def test_a_torn_line_of_the_log_spoils_no_other(tmp_path, config):
    log = tmp_path / "starts.jsonl"
    for content, count in ((b'{"time": "2', 2), (b"", 1), (b"{}\n", 2)):
        log.write_bytes(content)
        start(tmp_path, config)
        lines = log.read_text().splitlines()
        assert len(lines) == count
        assert json.loads(lines[-1])["jax"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG])
def test_disk_that_can_no_longer_be_written(tmp_path, number):
    message = f"--workdir .* can't be written: {os.strerror(number)}; once it can"
    with pytest.raises(UserError, match=message), workdir.claim(tmp_path):
        raise OSError(number, os.strerror(number))


def test_file_that_can_no_longer_be_written(tmp_path):
    file = tmp_path / "metrics.jsonl"
    message = rf"can't be written: {os.strerror(errno.EACCES)} \({file}\); once it can"
    with pytest.raises(UserError, match=message), workdir.claim(tmp_path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(file))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        FileNotFoundError(errno.ENOENT, "missing", "/elsewhere/image.png"),
        FileNotFoundError(errno.ENOENT, "missing"),
        PermissionError(errno.EACCES, "denied", 3),
    ],
)
def test_other_errors_are_left_alone(tmp_path, error):
    with pytest.raises(type(error)), workdir.claim(tmp_path):
        raise error


def test_starts_that_say_nothing_are_left_out(tmp_path):
    lines = '{}\n[]\nno JSON\n{"time": "now", "commit": "abc"}\n'
    (tmp_path / "starts.jsonl").write_text(lines)
    assert workdir.starts(tmp_path) == [{"time": "now", "commit": "abc"}]


def test_the_commit_of_a_checkout_that_holds_other_things_is_not_ours(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # of a hook, say
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    (tmp_path / "folder.py").touch()
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "folder.py"))
    assert workdir._commit.__wrapped__() is None
    subprocess.run([*git, "add", "folder.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    assert len(workdir._commit.__wrapped__()) == 40

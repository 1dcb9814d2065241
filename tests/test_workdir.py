import errno
import json
import os
import shutil
import socket

import pytest
import tiny_run

from resnet_jax.config.load import differences, validate
from resnet_jax.errors import UserError
from resnet_jax.runs import folder as workdir


@pytest.fixture
def config():
    return validate(tiny_run.get_config())


def other(config):
    return validate(config.to_dict() | {"batch_size": 7, "seed": 1})


def start(folder, config, saved=None, notify=print):
    with workdir.claim(folder):
        workdir.begin(folder, config, saved, notify)


def begin(folder, config):
    start(folder, config)
    (folder / "checkpoints" / "1").mkdir(parents=True)


def test_holds_what_reproduces_the_run(tmp_path, config):
    begin(tmp_path / "a" / "b", config)
    assert differences(workdir.read_config(tmp_path / "a" / "b"), config) == []
    (start,) = (tmp_path / "a" / "b" / "starts.jsonl").read_text().splitlines()
    assert {"command", "commit", "jax", "devices", "cores"} <= set(json.loads(start))


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


def test_is_for_one_config(tmp_path, config):
    begin(tmp_path, config)
    message = r"another config: batch_size was 120, is 7; seed was 0, is 1; name another --workdir"
    for saved in (None, config.to_dict()):
        with pytest.raises(UserError, match=message):
            start(tmp_path, other(config), saved)
    assert differences(workdir.read_config(tmp_path), config) == []


def test_config_may_change_until_the_first_checkpoint(tmp_path, config):
    start(tmp_path, config)
    start(tmp_path, other(config))
    assert differences(workdir.read_config(tmp_path), other(config)) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", None])
def test_damaged_config(tmp_path, config, content):
    begin(tmp_path, config)
    file = tmp_path / "config.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"config.json") as error:
        start(tmp_path, config)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"config.json"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b'{"seed": 5}', None])
def test_damaged_config_is_written_anew_from_a_checkpoint(tmp_path, config, content):
    begin(tmp_path, config)
    file = tmp_path / "config.json"
    file.unlink() if content is None else file.write_bytes(content)
    notices = []
    start(tmp_path, config, config.to_dict(), notices.append)
    assert notices == [
        f"{file} was damaged or altered: the config comes from the newest checkpoint"
    ]
    assert differences(workdir.read_config(tmp_path), config) == []


def test_reads_the_config_that_a_checkpoint_confirms(plain_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(plain_run[0], folder)
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"batch_size": 120', '"batch_size": 124'))
    assert workdir.read_config(folder).batch_size == 120
    assert "was damaged or altered" in capsys.readouterr().out


def test_a_torn_line_of_the_log_spoils_no_other(tmp_path, config):
    log = tmp_path / "starts.jsonl"
    for content, count in ((b'{"time": "2', 2), (b"", 1), (b"{}\n", 2)):
        log.write_bytes(content)
        start(tmp_path, config)
        lines = log.read_text().splitlines()
        assert len(lines) == count
        assert json.loads(lines[-1])["jax"]


def test_config_of_another_version(tmp_path, config):
    begin(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"new": 1}))
    with pytest.raises(UserError, match="unknown config field 'new'"):
        workdir.read_config(tmp_path)
    with pytest.raises(UserError, match="new was 1, is None"):
        start(tmp_path, config)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_place_that_can_no_longer_be_written(tmp_path, number):
    message = f"--workdir .* can't be written: {os.strerror(number)}; once it can"
    with pytest.raises(UserError, match=message), workdir.claim(tmp_path):
        raise OSError(number, os.strerror(number))


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(ConnectionResetError), workdir.claim(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="can't be written"), workdir.claim(folder):
            pass

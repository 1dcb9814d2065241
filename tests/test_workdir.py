import errno
import json
import os

import pytest
import tiny_run

from resnet_jax import workdir
from resnet_jax.config import differences, validate
from resnet_jax.errors import UserError


@pytest.fixture
def config():
    return validate(tiny_run.get_config())


def other(config):
    return validate(config.to_dict() | {"batch_size": 7, "seed": 1})


def begin(folder, config):
    with workdir.claim(folder, config):
        (folder / "checkpoints" / "1").mkdir(parents=True)


def test_holds_what_reproduces_the_run(tmp_path, config):
    begin(tmp_path / "a" / "b", config)
    assert differences(workdir.read_config(tmp_path / "a" / "b"), config) == []
    (start,) = (tmp_path / "a" / "b" / "starts.jsonl").read_text().splitlines()
    assert {"command", "commit", "jax", "devices", "cores"} <= set(json.loads(start))


def test_is_for_one_process(tmp_path, config):
    with (
        workdir.claim(tmp_path, config),
        pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "),
        workdir.claim(tmp_path, config),
    ):
        pass
    with workdir.claim(tmp_path, config):
        pass


def test_is_for_one_config(tmp_path, config):
    begin(tmp_path, config)
    message = r"another config: batch_size was 120, is 7; seed was 0, is 1; name another --workdir"
    with pytest.raises(UserError, match=message), workdir.claim(tmp_path, other(config)):
        pass
    assert differences(workdir.read_config(tmp_path), config) == []


def test_config_may_change_until_the_first_checkpoint(tmp_path, config):
    with workdir.claim(tmp_path, config):
        pass
    with workdir.claim(tmp_path, other(config)):
        pass
    assert differences(workdir.read_config(tmp_path), other(config)) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", None])
def test_damaged_config(tmp_path, config, content):
    begin(tmp_path, config)
    file = tmp_path / "config.json"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"config.json") as error, workdir.claim(tmp_path, config):
        pass
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"config.json"):
        workdir.read_config(tmp_path)


def test_config_of_another_version(tmp_path, config):
    begin(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"new": 1}))
    with pytest.raises(UserError, match="unknown config field 'new'"):
        workdir.read_config(tmp_path)
    with pytest.raises(UserError, match="new was 1, is None"), workdir.claim(tmp_path, config):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_place_that_can_no_longer_be_written(tmp_path, config, number):
    message = f"--workdir .* can't be written: {os.strerror(number)}; once it can"
    with pytest.raises(UserError, match=message), workdir.claim(tmp_path, config):
        raise OSError(number, os.strerror(number))


def test_other_errors_are_left_alone(tmp_path, config):
    with pytest.raises(ConnectionResetError), workdir.claim(tmp_path, config):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_file_in_place_of_a_folder(tmp_path, config):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="can't be written"), workdir.claim(folder, config):
            pass

"""Files that are there whole or not at all."""

import errno
import os
import stat

import pytest

from resnet_jax.files import sync, write_atomically


def test_replaces_a_file_and_leaves_nothing_else(tmp_path):
    for content in (b"old", b"new"):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.fixture
def synced(monkeypatch):
    """The inodes of what is synced, in order."""
    found, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: (found.append(os.fstat(number).st_ino), fsync(number))
    )
    return found


def test_content_and_name_are_on_disk(tmp_path, synced):
    write_atomically(tmp_path / "file", b"content")
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_a_folder_is_on_disk_with_all_that_is_in_it(tmp_path, synced):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    sync(tmp_path / "a")
    assert {*synced} == {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}


def test_follows_no_link(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"other")
    (tmp_path / "file.tmp").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "elsewhere").read_bytes() == b"other"


def test_a_file_system_that_syncs_no_folders_will_do(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomically(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"

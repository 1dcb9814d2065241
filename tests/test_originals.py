import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import tiny_cifar10 as tiny

from resnet_jax.data import cifar10, originals
from resnet_jax.data.download import Unavailable


def test_pack_and_unpack_are_inverse():
    data = tiny.make()
    images, labels = cifar10.unpack(tiny.binary(data), cifar10.TRAIN_NAMES)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images, np.concatenate([data[n][0] for n in cifar10.TRAIN_NAMES]))
    np.testing.assert_array_equal(labels, np.concatenate([data[n][1] for n in cifar10.TRAIN_NAMES]))


def test_layout_is_a_label_then_planes_of_red_green_and_blue():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 0, 1] = 10, 20, 30
    record = cifar10.pack(image, np.array([6]))
    assert [record[i] for i in (0, 1, 2, 2 + 1024, 2 + 2048)] == [6, 0, 10, 20, 30]
    assert len(record) == 3073 and sum(record) == 66


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("kind", ["folder", "subfolder", "tar", "named archive"])
def test_reads_every_way_to_keep_the_files(tmp_path, content, version, kind):
    is_binary = version == "binary"
    members = tiny.files(content) if is_binary else tiny.python_files(tiny.make())
    inner = "cifar-10-batches-bin" if is_binary else "cifar-10-batches-py"
    place = tmp_path
    if kind == "folder":
        tiny.write_folder(tmp_path, members)
    elif kind == "subfolder":
        tiny.write_folder(tmp_path / inner, members)
    elif kind == "tar":
        tiny.write_tar(tmp_path / f"cifar-10-{version}.tar.gz", members, f"{inner}/")
    else:
        place = tiny.write_tar(tmp_path / "any-name.tgz", members, f"./{inner}/")
    found = originals.find(place)
    assert found is not None
    assert originals.read(found) == content


def test_other_archives_are_not_taken_for_cifar10(tmp_path):
    for name in ("cifar-100-binary.tar.gz", "notes.tar.gz", "cifar-10.txt"):
        (tmp_path / name).touch()
    assert originals.find(tmp_path) is None
    assert originals.find(tmp_path / "absent") is None


def refused(path):
    with pytest.raises(Unavailable) as raised:
        originals.read(originals.find(path))
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_missing_truncated_and_altered_files_are_named_with_digests(tmp_path, content):
    folder = tiny.write_folder(tmp_path, tiny.files(content))
    file = folder / "data_batch_3.bin"
    good, md5 = content["data_batch_3"], cifar10.MD5["data_batch_3"]

    file.write_bytes(good[:-1])
    message = refused(folder)
    assert str(file) in message and "truncated" in message and f"found {len(good) - 1}" in message

    file.write_bytes(good + b"x")
    assert "too long" in refused(folder)

    altered = bytearray(good)
    altered[1234] ^= 1
    file.write_bytes(altered)
    message = refused(folder)
    assert "altered" in message and md5 in message
    assert hashlib.md5(altered).hexdigest() in message

    file.unlink()
    message = refused(folder)
    assert f"{file} is missing" in message and md5 in message


def test_oversized_files_are_not_read(tmp_path, content):
    folder = tiny.write_folder(tmp_path, tiny.files(content))
    with (folder / "data_batch_2.bin").open("ab") as file:
        file.truncate(10**12)  # sparse
    assert "too long" in refused(folder)


@pytest.mark.parametrize("cut", [0.5, 0.999])
def test_truncated_archives(tmp_path, content, cut):
    path = tiny.write_tar(tmp_path / "cifar-10.tar.gz", tiny.files(content))
    os.truncate(path, int(cut * path.stat().st_size))
    assert str(path) in refused(path)


def test_a_file_that_is_no_archive(tmp_path, content):
    (tmp_path / "cifar-10-binary.tar.gz").write_text("<html>not found</html>")
    assert "cannot read" in refused(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tar_are_refused(tmp_path, content, kind):
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    assert "data_batch_1.bin is a link or a special file" in refused(path)


@pytest.mark.parametrize("prefix", ["../../", "/"])
def test_members_with_escaping_names_write_nothing(tmp_path, content, prefix):
    room = tmp_path / "a" / "b"
    room.mkdir(parents=True)
    members = {**tiny.files(content), "evil.txt": b"evil"}
    path = tiny.write_tar(room / "cifar-10.tar.gz", members, prefix)
    assert originals.read(path) == content  # by base name, in memory
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_batch_that_is_there_twice_is_refused(tmp_path, content):
    members = {f"{folder}/test_batch.bin": b"x" for folder in "ab"}
    path = tiny.write_tar(tmp_path / "twice.tar.gz", members)
    assert "holds test_batch.bin twice" in refused(path)


def test_a_tar_bomb_is_given_up(tmp_path, content, monkeypatch):
    monkeypatch.setattr(originals, "_ARCHIVE_LIMIT", 10_000)
    path = tiny.write_tar(tmp_path / "cifar-10.tar.gz", {"zeros": bytes(20_000)})
    assert "far more" in refused(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def evil_pickles():
    yield pickle.dumps({"data": Evil(), "labels": [1]}, protocol=2)
    yield pickle.dumps(Evil())
    yield b"\x80\x02cbuiltins\neval\n(U\x10open('pwn', 'w')tR."
    yield b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR."  # would allocate 16 GB
    yield b"\x80\x02Nr\xff\xff\xff\x7f."  # would make a memo of 2^31 slots
    yield pickle.dumps({"data": np.array([print], object), "labels": [1]}, protocol=2)
    yield pickle.dumps({"data": np.zeros(3072), "labels": [1]}, protocol=2)
    yield pickle.dumps({"data": 7}, protocol=2)
    yield pickle.dumps([1, 2])
    yield b"garbage"
    yield b""


@pytest.mark.parametrize("evil", list(evil_pickles()))
def test_pickles_can_run_nothing(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        Unavailable, match="cannot read file, which is not a CIFAR-10 Python batch"
    ) as raised:
        originals.unpickle(evil, "file")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_reads_pickles_of_python_2():
    images, labels = tiny.make()["data_batch_1"]
    content = tiny.python2_pickle(images, labels)
    assert set(pickle.load(io.BytesIO(content), encoding="bytes")) == {b"labels", b"data"}
    assert originals.unpickle(content, "file") == cifar10.pack(images, labels)


def test_reads_arrays_in_fortran_order():
    images, labels = tiny.make()["data_batch_1"]
    rows = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(-1, 3072))
    content = pickle.dumps({"data": rows, "labels": labels.tolist()}, protocol=2)
    assert originals.unpickle(content, "file") == cifar10.pack(images, labels)

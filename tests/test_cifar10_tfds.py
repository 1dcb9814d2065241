import json
import shutil
import sys

import numpy as np
import pytest
import tiny_cifar10 as tiny

from resnet_jax.data import cache, cifar10, npm, originals, sources
from resnet_jax.data import cifar10_tfds as room
from resnet_jax.data.download import Unavailable
from resnet_jax.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        room.prepare(folder, tiny.install(patch.setattr))
    return folder


@pytest.fixture
def data_dir(tmp_path, content, prepared):
    return shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)


def edit_info(data_dir, **changes):
    path = room.prepared_dir(data_dir) / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_prepares_shuffled_and_reads_back_in_canonical_order(data_dir, content):
    import tensorflow_datasets as tfds

    stored = tfds.data_source("cifar10", split="train", data_dir=str(data_dir))
    data = tiny.make()
    images = np.concatenate([data[name][0] for name in cifar10.TRAIN_NAMES])
    ids = [int(record["id"].decode().removeprefix("train_")) for record in stored]
    assert sorted(ids) == list(range(100)) and ids != sorted(ids)
    for place, record in zip(ids, stored, strict=True):
        np.testing.assert_array_equal(record["image"], images[place])
    assert room.read(data_dir) == content
    assert "tensorflow" not in sys.modules


def test_other_formats_are_refused_in_one_line(data_dir):
    edit_info(data_dir, fileFormat="riegeli")
    with pytest.raises(Unavailable, match=r"cannot read .*3\.0\.2") as raised:
        room.read(data_dir)
    assert "\n" not in str(raised.value)


def damage_nothing_prepared(folder):
    for file in folder.iterdir():
        file.unlink()


def damage_missing_shard(folder):
    (folder / "cifar10-test.array_record-00000-of-00001").unlink()


def damage_truncated_shard(folder):
    file = folder / "cifar10-train.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-70_000])


def damage_info(folder):
    (folder / "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    "damage",
    [damage_nothing_prepared, damage_missing_shard, damage_truncated_shard, damage_info],
)
def test_damaged_copies_are_passed_over_in_one_line(data_dir, damage):
    damage(room.prepared_dir(data_dir))
    with pytest.raises(Unavailable) as raised:
        room.read(data_dir)
    assert str(data_dir) in str(raised.value) and "\n" not in str(raised.value)


def test_altered_images_are_noticed(tmp_path, content):
    name = "data_batch_4"
    altered = {**content, name: content[name][:-1] + bytes([content[name][-1] ^ 1])}
    room.prepare(tmp_path, altered)
    with pytest.raises(Unavailable, match=f"{name} is altered"):
        room.read(tmp_path)


def test_its_files_can_name_no_classes_to_import(data_dir, content):
    path = room.prepared_dir(data_dir) / "features.json"
    features = json.loads(path.read_text())
    path.write_text(json.dumps({**features, "pythonClassName": "antigravity.Evil"}))
    assert room.read(data_dir) == content
    assert "antigravity" not in sys.modules


def test_a_failed_preparation_leaves_nothing(tmp_path, content):
    with pytest.raises(Unavailable, match=r"cannot read .*which is being prepared"):
        room.prepare(tmp_path, {**content, "test_batch": b"x"})
    assert not (tmp_path / "cifar10").exists()


@pytest.fixture
def fetch(tmp_path, monkeypatch, content):
    """Returns `sources.fetch` with a cache of its own, a tfds folder and npm as the only source."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(cache, "default_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "ARCHIVE", sources.ARCHIVE._replace(url="http://127.0.0.1:9/x"))
    monkeypatch.setattr(npm, "fetch", lambda archive, *_: archive.touch())
    monkeypatch.setattr(npm, "read", lambda archive: content)
    return lambda source: sources.fetch(source, None, lambda line: None, lambda *_: None)


def test_by_name_it_prepares_and_reads(tmp_path, fetch, content):
    ours = room.prepared_dir(tmp_path / "cache" / "tensorflow_datasets")
    for _ in range(2):
        assert fetch("tfds") == (content, f"tensorflow-datasets in {ours}")
    assert (ours / "cifar10-train.array_record-00000-of-00001").is_file()


def test_auto_takes_a_prepared_copy_and_prepares_none(tmp_path, fetch, content):
    assert fetch("auto")[1].startswith("npm")
    assert not (tmp_path / "cache" / "tensorflow_datasets").exists()
    room.prepare(tmp_path / "tfds", content)
    for file in (tmp_path / "cache" / "cifar10").glob("*.bin"):
        file.unlink()
    place = room.prepared_dir(tmp_path / "tfds")
    assert fetch("auto") == (content, f"tensorflow-datasets in {place}")
    assert fetch("auto") == (content, f"cache {tmp_path / 'cache'}")


def test_a_damaged_copy_of_ours_is_prepared_again(tmp_path, fetch, content):
    fetch("tfds")
    ours = room.prepared_dir(tmp_path / "cache" / "tensorflow_datasets")
    damage_truncated_shard(ours)
    assert fetch("tfds") == (content, f"tensorflow-datasets in {ours}")


def test_without_any_source_nothing_is_prepared(tmp_path, monkeypatch, fetch):
    def fail(archive, notify, progress):
        raise Unavailable("npm is not installed")

    monkeypatch.setattr(npm, "fetch", fail)
    with pytest.raises(UserError, match="npm is not installed"):
        fetch("tfds")
    assert not (tmp_path / "cache" / "tensorflow_datasets").exists()


@pytest.mark.slow
def test_the_full_data_by_way_of_tfds(tmp_path):
    try:
        content = originals.read(cache.default_cache_dir() / "cifar10")
    except Unavailable:
        pytest.skip("the full CIFAR-10 is not in the cache")
    room.prepare(tmp_path, content)
    assert room.read(tmp_path) == content


def test_a_copy_in_another_format_is_left_as_it_is(tmp_path, content):
    theirs = tmp_path / "cifar10" / "3.0.2" / "cifar10-train.tfrecord-00000-of-00001"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    with pytest.raises(Unavailable, match="in another format: left as it is"):
        room.prepare(tmp_path, content)
    assert theirs.exists()

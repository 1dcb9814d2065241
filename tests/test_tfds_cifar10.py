import json
import struct
import sys

import numpy as np
import pytest
import tiny_cifar10 as tiny

from resnet_jax.data import batches, cache, npm_mirror, sources, tfds_cifar10
from resnet_jax.data.batches import Unavailable
from resnet_jax.errors import UserError


@pytest.fixture
def content(monkeypatch):
    return tiny.install(monkeypatch.setattr)


@pytest.fixture
def data_dir(tmp_path, content):
    tfds_cifar10.prepare(tmp_path, content)
    return tmp_path


def to_tfrecord(data_dir):
    """Turns a prepared copy into what tfds writes with TensorFlow: the tfrecord format."""
    builder = tfds_cifar10._builder(data_dir)
    folder = tfds_cifar10.prepared_dir(data_dir)
    for split in ("train", "test"):
        source = folder / f"cifar10-{split}.array_record-00000-of-00001"
        records = list(serialized(builder, split))
        with (folder / source.name.replace("array_record", "tfrecord")).open("wb") as file:
            for record in records:
                file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
        source.unlink()
    edit_info(data_dir, fileFormat="tfrecord")


def serialized(builder, split):
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    files = [str(path) for path in builder.info.splits[split].filepaths]
    yield from ArrayRecordDataSource(files)


def edit_info(data_dir, **changes):
    path = tfds_cifar10.prepared_dir(data_dir) / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_prepares_shuffled_and_reads_back_in_canonical_order(data_dir, content):
    import tensorflow_datasets as tfds

    stored = tfds.data_source("cifar10", split="train", data_dir=str(data_dir))
    data = tiny.make()
    images = np.concatenate([data[name][0] for name in batches.TRAIN_NAMES])
    ids = [int(record["id"].decode().removeprefix("train_")) for record in stored]
    assert sorted(ids) == list(range(100)) and ids != sorted(ids)
    for place, record in zip(ids, stored, strict=True):
        np.testing.assert_array_equal(record["image"], images[place])
    assert tfds_cifar10.read_prepared(data_dir) == content
    assert "tensorflow" not in sys.modules


def test_reads_the_tfrecord_format(data_dir, content):
    to_tfrecord(data_dir)
    assert tfds_cifar10.read_prepared(data_dir) == content
    assert "tensorflow" not in sys.modules


def test_other_formats_are_passed_over(data_dir):
    edit_info(data_dir, fileFormat="riegeli")
    with pytest.raises(Unavailable, match="riegeli format; only array_record and tfrecord"):
        tfds_cifar10.read_prepared(data_dir)


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
    damage(tfds_cifar10.prepared_dir(data_dir))
    with pytest.raises(Unavailable) as raised:
        tfds_cifar10.read_prepared(data_dir)
    assert str(data_dir) in str(raised.value) and "\n" not in str(raised.value)


def test_altered_images_are_noticed(tmp_path, content):
    name = "data_batch_4"
    altered = {**content, name: content[name][:-1] + bytes([content[name][-1] ^ 1])}
    tfds_cifar10.prepare(tmp_path, altered)
    with pytest.raises(Unavailable, match=f"{name} is altered"):
        tfds_cifar10.read_prepared(tmp_path)


def test_its_files_can_name_no_classes_to_import(data_dir, content):
    path = tfds_cifar10.prepared_dir(data_dir) / "features.json"
    features = json.loads(path.read_text())
    path.write_text(json.dumps({**features, "pythonClassName": "antigravity.Evil"}))
    assert tfds_cifar10.read_prepared(data_dir) == content
    assert "antigravity" not in sys.modules


def test_giant_records_are_refused(data_dir):
    to_tfrecord(data_dir)
    file = tfds_cifar10.prepared_dir(data_dir) / "cifar10-test.tfrecord-00000-of-00001"
    file.write_bytes(struct.pack("<QI", 2**62, 0))
    with pytest.raises(Unavailable, match="a record of 4611686018427387904 bytes"):
        tfds_cifar10.read_prepared(data_dir)


def test_a_failed_preparation_leaves_nothing(tmp_path, content):
    with pytest.raises(Unavailable, match="cannot prepare"):
        tfds_cifar10.prepare(tmp_path, {**content, "test_batch": b"x"})
    assert not (tmp_path / "cifar10").exists()


@pytest.fixture
def fetch(tmp_path, monkeypatch, content):
    """Returns `sources.fetch` with a cache of its own, a tfds folder and npm as the only source."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(sources, "default_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources.download, "URL", "http://127.0.0.1:9/x.tar.gz")
    monkeypatch.setattr(npm_mirror, "read_npm", lambda root, progress: content)
    return lambda source: sources.fetch(source, None, lambda line: None, lambda *_: None)


def test_by_name_it_prepares_reads_and_caches(tmp_path, monkeypatch, fetch, content):
    ours = tfds_cifar10.prepared_dir(tmp_path / "cache" / "tensorflow_datasets")
    assert fetch("tfds") == (content, f"tensorflow-datasets in {ours}")
    assert (ours / "cifar10-train.array_record-00000-of-00001").is_file()
    monkeypatch.setattr(tfds_cifar10, "read_prepared", None)
    cached, phrase = fetch("tfds")
    assert cached == content and phrase.startswith(f"cache {tmp_path / 'cache'}")


def test_both_routes_give_identical_arrays_in_identical_order(tmp_path, fetch):
    route = sources.load_dataset("tfds", None, lambda line: None)
    other = sources.load_dataset("npm", None, lambda line: None)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(route, name), getattr(other, name))
        assert getattr(route, name).dtype == getattr(other, name).dtype


def test_auto_takes_a_prepared_copy_and_prepares_none(tmp_path, fetch, content):
    assert fetch("auto")[1].startswith("npm")
    assert not (tmp_path / "cache" / "tensorflow_datasets").exists()
    tfds_cifar10.prepare(tmp_path / "tfds", content)
    to_tfrecord(tmp_path / "tfds")
    for file in cache.batches_dir(tmp_path / "cache").iterdir():
        file.unlink()
    place = tfds_cifar10.prepared_dir(tmp_path / "tfds")
    assert fetch("auto") == (content, f"tensorflow-datasets in {place}")


@pytest.mark.parametrize("kind", ["extracted", "packed"])
def test_auto_takes_what_tfds_has_downloaded(tmp_path, fetch, content, kind):
    downloads = tmp_path / "tfds" / "downloads"
    name = "cs.toronto.edu_kriz_cifar-10-binaryODHPtIjLh3oLcXirEISTO7dkzyKjRCuol6lV8Wc6C7s.tar.gz"
    if kind == "extracted":
        inner = downloads / "extracted" / f"TAR_GZ.{name}" / "cifar-10-batches-bin"
        place = tiny.write_folder(inner, tiny.files(content))
    else:
        downloads.mkdir(parents=True)
        place = tiny.write_tar(downloads / name, tiny.files(content))
    assert fetch("auto") == (content, f"{place}, downloaded by tensorflow-datasets")


def test_a_damaged_copy_of_ours_is_prepared_again(tmp_path, fetch, content):
    fetch("tfds")
    ours = tfds_cifar10.prepared_dir(tmp_path / "cache" / "tensorflow_datasets")
    damage_truncated_shard(ours)
    (cache.batches_dir(tmp_path / "cache") / "origins.json").unlink()
    assert fetch("tfds") == (content, f"tensorflow-datasets in {ours}")


def test_without_any_source_nothing_is_prepared(tmp_path, monkeypatch, fetch):
    def fail(root, progress):
        raise Unavailable("npm is not installed")

    monkeypatch.setattr(npm_mirror, "read_npm", fail)
    with pytest.raises(UserError, match="npm is not installed"):
        fetch("tfds")
    assert not (tmp_path / "cache" / "tensorflow_datasets").exists()


@pytest.mark.slow
def test_the_full_data_by_way_of_tfds(tmp_path):
    try:
        content = cache.load(cache.default_cache_dir())
    except Unavailable:
        pytest.skip("the full CIFAR-10 is not in the cache")
    tfds_cifar10.prepare(tmp_path, content)
    assert tfds_cifar10.read_prepared(tmp_path) == content

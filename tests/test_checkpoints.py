import contextlib
import errno
import functools
import itertools
import os
import pathlib
import re
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from tiny_run import leaves

from resnet_jax.errors import UserError
from resnet_jax.runs import checkpoints as checkpoints_lib
from resnet_jax.runs.checkpoints import Checkpoints, DamagedError

RUN = {"config": {"seed": 3, "mean": (0.1, 2)}, "dataset": {"name": "x"}, "scores": [[1, 50.0]]}
RUN |= {"num_records": 2}

# What orbax's threads say of errors that they raise too.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


def make_state(step=1):
    generator = np.random.default_rng(step)
    return {
        "step": np.int32(step),
        "params": {"conv": {"kernel": generator.normal(size=(3, 3, 4)).astype(np.float32)}},
        "batch_stats": {},
        "half": jnp.asarray(generator.normal(size=5), jnp.bfloat16),
    }


@contextlib.contextmanager
def opened(directory, keep=2):
    notices = []
    with contextlib.closing(Checkpoints(directory, keep, notices.append)) as checkpoints:
        yield checkpoints, notices


def saved(directory, *steps):
    return shutil.copytree(saved_once(steps).name, directory, dirs_exist_ok=True)


@functools.cache
def saved_once(steps):
    folder = tempfile.TemporaryDirectory()
    with opened(pathlib.Path(folder.name), keep=9) as (checkpoints, _):
        for step in steps:
            checkpoints.save(step, make_state(step), RUN)
    return folder


def flip_a_bit(directory, step):
    """Alters the largest file of the arrays: orbax itself does not always see it."""
    files = (directory / str(step) / "state" / "d").iterdir()
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def flip(file):
    content = bytearray(file.read_bytes() or b" ")
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def empty_state(directory, step):
    shutil.rmtree(directory / str(step) / "state" / "d")


def remove_state(directory, step):
    shutil.rmtree(directory / str(step) / "state")


def remove_digests(directory, step):
    shutil.rmtree(directory / str(step) / "digests")


def remove_run(directory, step):
    shutil.rmtree(directory / str(step) / "run")


def alter_run(directory, step):
    file = directory / str(step) / "run" / "metadata"
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 4'))


def garble_digests(directory, step):
    (directory / str(step) / "digests" / "metadata").write_text("{")


DAMAGES = (
    *(flip_a_bit, empty_state, remove_state, remove_digests, garble_digests),
    *(remove_run, alter_run),
)


def test_restores_every_bit(tmp_path):
    with opened(saved(tmp_path / "c", 1)) as (checkpoints, _):
        assert leaves(checkpoints.restore_newest(make_state(2))) == leaves(make_state(1))


def test_a_checkpoint_is_on_disk_before_older_ones_go(tmp_path, monkeypatch):
    directory, done = saved(tmp_path / "c", 1), []
    sync = lambda folder: done.append(("sync", folder.name))  # noqa: E731
    monkeypatch.setattr(checkpoints_lib, "sync", sync)
    with opened(directory, keep=1) as (checkpoints, _):
        delete = checkpoints._manager.delete
        noting = lambda step: (done.append(("delete", str(step))), delete(step))  # noqa: E731
        monkeypatch.setattr(checkpoints._manager, "delete", noting)
        checkpoints.save(2, make_state(2), RUN)
    assert done == [("sync", "2"), ("delete", "1")]


def test_nothing_saved(tmp_path):
    with opened(tmp_path / "c") as (checkpoints, notices):
        assert checkpoints.restore_newest(make_state()) is None
        assert notices == []


def test_keeps_the_newest_and_the_best(tmp_path):
    with opened(tmp_path / "c", keep=2) as (checkpoints, _):
        for step in range(1, 6):
            checkpoints.save(step, make_state(step), RUN, best=2 if step > 1 else None)
        checkpoints.wait()
        assert checkpoints.steps() == [5, 4, 2]
        checkpoints.save(6, make_state(6), RUN, best=6)
        checkpoints.wait()
        assert checkpoints.steps() == [6, 5]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path, damage):
    directory = saved(tmp_path / "c", 1, 2, 3)
    damage(directory, 3)
    with opened(directory) as (checkpoints, notices):
        state = checkpoints.restore_newest(make_state())
        assert leaves(state) == leaves(make_state(2))
        if damage in (remove_state, remove_digests, remove_run):
            assert notices == ["checkpoint 3 is incomplete: removed"]
        else:
            assert re.match("checkpoint 3 is damaged: .*; trying the next older one$", *notices)
        assert checkpoints.steps() == [2, 1]
        if damage not in (flip_a_bit, remove_state):  # one refused and one removed are enough
            return
        checkpoints.save(3, make_state(3), RUN)
    with opened(directory) as (checkpoints, notices):
        restored = checkpoints.restore_newest(make_state())
        assert leaves(restored) == leaves(make_state(3))
        assert notices == []


def test_digests_catch_what_orbax_does_not(tmp_path, monkeypatch):
    directory = saved(tmp_path / "c", 1)
    with opened(directory) as (checkpoints, _):
        items = dict(checkpoints._manager.restore(1).items())
        altered = {name: np.array(leaf) for name, leaf in items["state"].items()}
        altered["params/conv/kernel"][0, 0, 0] += 1
        items["state"] = altered
        monkeypatch.setattr(checkpoints._manager, "restore", lambda *_, **__: items)
        with pytest.raises(DamagedError, match=r"the digest of params/conv/kernel differs"):
            checkpoints.restore(make_state(), 1)


def test_remains_of_interrupted_saves_are_cleared(tmp_path):
    directory = saved(tmp_path / "c", 1)
    (directory / "7").mkdir()
    (directory / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with opened(directory) as (checkpoints, notices):
        assert checkpoints.steps() == [1]
        assert checkpoints.restore_newest(make_state())["step"] == 1
        assert notices == ["checkpoint 7 is incomplete: removed"]
    assert [path.name for path in directory.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "damages", [(flip, pathlib.Path.unlink), pytest.param((halve, empty), marks=pytest.mark.slow)]
)
def test_every_file_in_every_way(tmp_path, damages):
    """Whatever file of a checkpoint is damaged: the same bits, or the older ones and a notice."""
    directory = saved(tmp_path / "c", 1, 2)
    files = [path.relative_to(directory) for path in directory.glob("2/**/*") if path.is_file()]
    assert len(files) > 8
    for number, (file, damage) in enumerate(itertools.product(files, damages)):
        copy = tmp_path / str(number)
        shutil.copytree(directory, copy)
        damage(copy / file)
        with opened(copy) as (checkpoints, notices):
            state = checkpoints.restore_newest(make_state())
        case = f"{damage.__name__} {file}: {notices}"
        assert int(state["step"]) == (1 if notices else 2), case
        assert leaves(state) == leaves(make_state(int(state["step"]))), case


def test_what_is_saved_beside_the_state(tmp_path):
    whole = {"format": 1, **RUN, "config": {"seed": 3, "mean": [0.1, 2]}}
    with opened(tmp_path / "c") as (checkpoints, _):
        assert checkpoints.newest_run() is None
    with opened(saved(tmp_path / "c", 1, 2)) as (checkpoints, _):
        assert checkpoints.newest_run() == checkpoints.run(1) == whole
        alter_run(checkpoints.directory, 2)
        assert checkpoints.newest_run() == whole
        with pytest.raises(DamagedError, match="the digest of run differs"):
            checkpoints.run(2)
        alter_run(checkpoints.directory, 1)
        with pytest.raises(UserError, match=r"no checkpoint in .* can be used; name another"):
            checkpoints.newest_run()


FOREIGN = (
    {"config": None},
    {"dataset": []},
    {"scores": [1]},
    {"scores": [[1]]},
    {"scores": [[1, "x"]]},
    {"scores": [[1, float("nan")]]},
    {"num_records": None},
)


@pytest.mark.parametrize("change", FOREIGN, ids=str)
def test_foreign_content_beside_the_state(tmp_path, change):
    with opened(tmp_path / "c") as (checkpoints, _):
        checkpoints.save(1, make_state(), RUN | change)
        checkpoints.wait()
        with pytest.raises(DamagedError, match="run lacks what it should hold"):
            checkpoints.run(1)


def test_another_format_is_refused_and_kept(tmp_path):
    directory = saved(tmp_path / "c", 1)
    with opened(directory) as (checkpoints, _):
        checkpoints.save(2, make_state(2), RUN | {"format": 2})
        message = f"checkpoint 2 in {directory} has another format than 1, the one of this version"
        checkpoints.wait()
        for read in (checkpoints.newest_run, lambda: checkpoints.restore_newest(make_state())):
            with pytest.raises(UserError, match=message):
                read()
        assert checkpoints.steps() == [2, 1]


def test_none_can_be_used(tmp_path):
    directory = saved(tmp_path / "c", 1, 2)
    for step in (1, 2):
        flip_a_bit(directory, step)
    with opened(directory) as (checkpoints, _):
        with pytest.raises(UserError, match=r"no checkpoint in .* can be used; name another"):
            checkpoints.restore_newest(make_state())
        assert checkpoints.steps() == [2, 1], "nothing may be removed"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (make_state() | {"extra": np.zeros(1)}, "another model .*extra"),
        (make_state() | {"step": np.float32(1)}, r"step is int32\[\], not float32\[\]"),
        (make_state() | {"half": jnp.zeros(6, jnp.bfloat16)}, r"half is bfloat16\[5\], not"),
    ],
)
def test_of_another_model(tmp_path, template, message):
    with (
        opened(saved(tmp_path / "c", 1)) as (checkpoints, _),
        pytest.raises(DamagedError, match=message),
    ):
        checkpoints.restore(template, 1)


def test_reading_changes_nothing(tmp_path):
    directory = saved(tmp_path / "c", 1)
    (directory / "7").mkdir()
    Checkpoints(directory).close()
    assert {path.name for path in directory.iterdir()} == {"1", "7"}


def test_a_folder_of_the_users_own_is_never_removed(tmp_path):
    directory = saved(tmp_path / "c", 1)
    for name in ("notes", "copy-of-1", "8.orbax"):
        (directory / name).mkdir()
        (directory / name / "file").touch()
    with opened(directory) as (checkpoints, notices):
        checkpoints.save(2, make_state(2), RUN)
    assert notices == []
    assert {path.name for path in directory.iterdir()} == {
        "1",
        "2",
        "notes",
        "copy-of-1",
        "8.orbax",
    }
    for make in (lambda path: (path / "sub").mkdir(parents=True), pathlib.Path.touch):
        make(directory / "2026")
        with pytest.raises(UserError, match=f"{directory}/2026 is no checkpoint; move it"):
            Checkpoints(directory, 1)
        assert (directory / "2026").exists()
        shutil.rmtree(directory / "2026", ignore_errors=True)


def test_full_disk(tmp_path, monkeypatch):
    """One line, no half-written checkpoint, and saving goes on when there is room again."""
    usage = shutil.disk_usage(tmp_path)
    with opened(saved(tmp_path / "c", 1)) as (checkpoints, _):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
            with pytest.raises(
                UserError, match="No space left on device; once it can, the same command"
            ):
                checkpoints.save(2, make_state(2), RUN)
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]
        checkpoints.save(2, make_state(2), RUN)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 1]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("RESOURCE_EXHAUSTED")])
def test_disk_that_fills_while_saving(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
        raise error

    with opened(saved(tmp_path / "c", 1)) as (checkpoints, _), monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(UserError, match=r"no checkpoint can be written to .*: No space"):
            checkpoints.save(2, make_state(2), RUN)
            checkpoints.wait()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("shape", "chunks", "message"),
    [
        ([2**20, 2**20], [2**10, 2**10], r"params/conv/kernel is float32\[1048576, 1048576\], not"),
        ("own", 2**20, "a chunk is larger than its array"),
    ],
)
def test_sizes_are_checked_before_anything_is_read(tmp_path, monkeypatch, shape, chunks, message):
    directory, kernel = saved(tmp_path / "c", 1), make_state()["params"]["conv"]["kernel"]
    spec = {"driver": "zarr", "path": "params/conv/kernel"}
    spec["kvstore"] = {"driver": "ocdbt", "base": f"file://{directory.absolute()}/1/state/"}
    shape = list(kernel.shape) if shape == "own" else shape
    chunks = [chunks] * len(shape) if isinstance(chunks, int) else chunks
    spec["metadata"] = {"shape": shape, "chunks": chunks, "dtype": "<f4"}
    tensorstore.open(spec, create=True, delete_existing=True).result()
    with opened(directory) as (checkpoints, _):
        monkeypatch.setattr(Checkpoints, "read", None)  # would fail if called
        with pytest.raises(DamagedError, match=message):
            checkpoints.restore(make_state(), 1)


def test_an_error_that_passes_costs_no_checkpoint(tmp_path, monkeypatch):
    with opened(saved(tmp_path / "c", 1, 2)) as (checkpoints, notices):

        def fail(step, **_):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(UserError, match=r"checkpoint 2 .* the same command tries again"):
            checkpoints.restore_newest(make_state())
        assert checkpoints.steps() == [2, 1] and not notices

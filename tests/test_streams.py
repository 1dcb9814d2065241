"""Images that stream: the same training as on resident ones, and processes that end in time."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import cloudpickle
import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

from resnet_jax import evaluate_run, train_and_evaluate
from resnet_jax.config import default_config
from resnet_jax.data import parts
from resnet_jax.data.datasets import Examples
from resnet_jax.data.order import TrainingOrder
from resnet_jax.data.parts import Encoded
from resnet_jax.data.registry import load_dataset, open_dataset
from resnet_jax.data.streams import Share, Stream, _piece, _Reader, is_resident
from resnet_jax.errors import UserError
from resnet_jax.runs.checkpoints import Checkpoints
from resnet_jax.training.driver import Trainer
from resnet_jax.training.features import cache_features

# The tiny training on a folder, which notes which images each step takes, and is sent a signal.
SIGNALLED = """
import sys

def main(folder, step, number, *flags):
    import json, multiprocessing, os, pathlib, signal
    import test_streams
    from resnet_jax import cpu, main

    def strike():
        pids = [process.pid for process in multiprocessing.active_children()]
        (pathlib.Path(folder) / "processes").write_text(json.dumps(pids))
        if int(number) == signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(0, int(number))  # as Ctrl-C in a terminal does

    test_streams.note_images(pathlib.Path(folder) / "seen", int(step), strike)
    cpu.enable = lambda: None  # as in all tests
    return main.main(["resnet-jax", *flags])

if __name__ == "__main__":  # the processes that decode images have this file too
    sys.exit(main(*sys.argv[1:]))
"""


def note_images(file, last=None, strike=None, patch=setattr):
    """Appends step and images, by their first pixels, of each step to a file."""
    train = Trainer.train

    def noting(self, state, examples, indices, *rest):
        step = int(state.step)
        if step == last:
            strike()
        with file.open("a") as lines:
            print(json.dumps([step, np.asarray(examples.images)[:, 0, 0, 0].tolist()]), file=lines)
        return train(self, state, examples, indices, *rest)

    patch(Trainer, "train", noting)


def seen(file):
    """Returns the images of each step, those that were seen last."""
    return dict(map(json.loads, file.read_text().splitlines()))


def folder_config(folder, **fields):
    config = tiny_run.get_config()
    config.num_epochs = 3
    config.batch_size = 12  # an epoch has 5 steps
    config.data.name = f"folder:{folder}"
    config.data.resident_bytes = 0
    config.data.workers = 0
    config.augment.flip = "random"
    config.evaluate.every_epochs = 0  # each score starts processes of its own
    config.checkpoint.every_steps = 1
    config.log.tensorboard = False
    config.update(fields)
    return config


def as_flags(config):
    groups = {
        "data": ("name", "resident_bytes"),
        "augment": ("flip",),
        "evaluate": ("every_epochs",),
        "checkpoint": ("every_steps",),
        "log": ("tensorboard",),
    }
    flags = [f"--config.{g}.{n}={config[g][n]}" for g, names in groups.items() for n in names]
    return [*flags, *(f"--config.{n}={config[n]}" for n in ("num_epochs", "batch_size"))]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 100 images whose first pixels differ."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3), np.uint8)
    for index, image in enumerate(pixels):
        image[0, 0] = index
        file = folder / ("amber", "blue")[index % 2] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


def test_a_stream_trains_to_the_same_bits(tmp_path, usual_bits):
    config, found = tiny_run.get_config(), {}
    config.num_epochs, config.data.workers = 1, 0
    config.augment.crop_padding, config.augment.flip = 4, "alternating"
    config.evaluate.every_steps = 2
    for where, size in (("resident", -1), ("streamed", 0)):
        config.data.resident_bytes, config.log.histograms = size, size == 0
        final, state = train_and_evaluate(config, tmp_path / where)
        found[where] = tiny_run.leaves(state), tiny_run.records(tmp_path / where)
        assert json.loads((tmp_path / where / "starts.jsonl").read_text())["images"] == where
    assert found["resident"] == found["streamed"]
    assert evaluate_run(tmp_path / "streamed", "newest")["accuracy"] == final["test_accuracy"]


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """The images of each step of a run that nothing stops, and its last state."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        note_images(folder / "seen", patch=patch.setattr)
        _, state = train_and_evaluate(folder_config(images), folder / "run")
    return seen(folder / "seen"), state


@pytest.mark.parametrize(
    ("number", "count"),
    [(signal.SIGKILL, 1), pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow)],
)
def test_a_run_that_is_stopped_goes_on_with_the_next_image(
    images, undisturbed, tmp_path, monkeypatch, number, count
):
    config = folder_config(images)
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    command = [sys.executable, tmp_path / "signalled.py", tmp_path, "9", str(int(number))]
    command += [f"--config={tiny_run.CONFIG_FILE}", f"--workdir={tmp_path / 'run'}"]
    paths = [str(tiny_run.CONFIG_FILE.parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": ":".join(paths), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, *as_flags(config), f"--config.data.workers={count}"],
        capture_output=True,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert done.returncode == (-9 if number == signal.SIGKILL else 130), done.stderr
    assert "Traceback" not in done.stderr
    workers = json.loads((tmp_path / "processes").read_text())
    assert len(workers) == count
    deadline = time.monotonic() + 5
    while any(tiny_run.process_state(pid) not in "XZ" for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    note_images(tmp_path / "seen", patch=monkeypatch.setattr)
    final, state = train_and_evaluate(config, tmp_path / "run")
    images_of_steps, expected = undisturbed
    assert seen(tmp_path / "seen") == images_of_steps
    assert tiny_run.leaves(state) == tiny_run.leaves(expected)
    restored = Checkpoints(tmp_path / "run" / "checkpoints")
    assert tiny_run.leaves(restored.restore(state, final["step"])) == tiny_run.leaves(expected)


def test_every_step_has_the_images_of_the_resident_order():
    order = TrainingOrder(3, 50, 8, shuffle=True, drop_last=False)
    for step, indices in order.dispatches(0, 21, 1):
        np.testing.assert_array_equal(order[step][0], indices[0])
        assert order[step][1] == step // 7


def test_cached_features_are_those_of_resident_images():
    config = tiny_run.get_config()
    config.init.cached_stage, config.optimizer.frozen = 1, "^(conv1|bn1|stage1)"
    tiny = tiny_run.Tiny(config)
    train, variables = tiny.data["train"], tiny.state().variables()
    host = Examples(np.asarray(train.images), np.asarray(train.labels))
    with config.unlocked():
        tiny.config.data.workers = 0
    stream = Stream(host, tiny.config, is_training=True)
    found = [
        cache_features(tiny.task.network, variables, part, tiny.devices) for part in (train, stream)
    ]
    for whole, streamed in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(whole, streamed)


def test_image_files_are_cropped_at_random_by_seed_epoch_and_index(images, monkeypatch):
    monkeypatch.setattr(parts, "_AT_ONCE", 2)
    config = folder_config(images)
    config.augment.resized_crop = 0.25
    examples = load_dataset(config.data).train
    stream = Stream(examples, config, is_training=True)
    indices = np.array([5, 30, 2])
    batch = stream.read(indices, epoch=1).images
    np.testing.assert_array_equal(stream.read(indices[1:], epoch=1).images, batch[1:])
    assert (stream.read(indices, epoch=2).images != batch).any()
    config.seed = 7
    assert (Stream(examples, config, is_training=True).read(indices, 1).images != batch).any()
    whole = Stream(examples, config).read(indices, epoch=1)
    np.testing.assert_array_equal(whole.images, examples.images[indices].read_all())
    np.testing.assert_array_equal(whole.labels, examples.labels[indices])


def test_what_the_host_has_cropped_the_device_does_not_crop_again(images):
    config = folder_config(images)
    config.augment.flip, config.augment.resized_crop = "none", 0.25
    tiny = tiny_run.Tiny(config)
    stream = Stream(tiny.dataset.train, tiny.config, is_training=True)
    trainer = Trainer(tiny.task.network, tiny.task.optimizer, tiny.devices, 5, stream)
    indices = np.arange(4)
    batch = stream.read(indices, 0)
    np.testing.assert_array_equal(trainer.augment(batch, indices, 0, 0, 2).images, batch.images)
    arrays = Stream(Examples(batch.images, batch.labels), tiny.config, is_training=True)
    np.testing.assert_array_equal(arrays.read(indices, 0).images, batch.images)
    trainer = Trainer(tiny.task.network, tiny.task.optimizer, tiny.devices, 5, arrays)
    assert (trainer.augment(batch, indices, 0, 0, 2).images != batch.images).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_no_image_ends_the_stream_by_its_name(images, tmp_path, workers):
    shutil.copytree(images, tmp_path / "images")
    config = folder_config(tmp_path / "images")
    config.data.workers, config.data.image_size = workers, 16
    stream = Stream(load_dataset(config.data).train, config)
    bad = tmp_path / "images" / "amber" / "0.png"
    bad.write_bytes(b"words")
    order = TrainingOrder(0, len(stream), 8, shuffle=True, drop_last=False)
    with pytest.raises(UserError, match=f"image {bad} is in none of the formats"):
        list(stream.batches(order, 2, 12))
    config.data.on_bad_image = "skip"
    dataset = load_dataset(config.data)
    assert "without 1 unreadable files" in dataset.source
    assert sum(map(sum, (dataset.info.train_counts, dataset.info.test_counts))) == 99


def test_what_fits_is_resident(images):
    config = folder_config(images)
    info = open_dataset(config.data).info
    sizes = {100 * 16 * 16 * 3: True, 100 * 16 * 16 * 3 - 1: False, 0: False, -1: True}
    for size, expected in sizes.items():
        config.data.resident_bytes = size
        assert is_resident(info, config.data) == expected
        found = load_dataset(config.data, lambda line: None)
        assert isinstance(found.train.images, np.ndarray if expected else Encoded)


def test_what_needs_resident_images_is_refused(tmp_path):
    config = tiny_run.get_config()
    config.data.resident_bytes, config.evaluate.augment = 0, True
    with pytest.raises(UserError, match=r"evaluate\.augment needs images that stay on the device"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_tfds_can_be_sent_to_processes(tmp_path):
    test_tfds = pytest.importorskip("test_tfds")
    test_tfds.prepare(tmp_path)
    config = default_config()
    config.data = test_tfds.data(tmp_path)
    whole = load_dataset(config.data).train
    with config.unlocked():
        config.data.resident_bytes = 0
    images = load_dataset(config.data).train.images
    sent = pickle.loads(cloudpickle.dumps(images))
    np.testing.assert_array_equal(sent.read([None] * 12), whole.images)


@pytest.mark.parametrize("size", [256, 100, 7])
def test_processes_share_the_images_of_a_batch_that_their_devices_divide(size):
    indices = np.arange(size)
    shares = [Share(process, processes=2, devices=4).of(indices) for process in range(2)]
    expected = [indices, indices] if size % 4 else np.split(indices, 2)
    assert all(map(np.array_equal, shares, expected))


def test_a_share_is_streamed_in_pieces_whatever_the_size_of_the_batch():
    images = np.arange(300, dtype=np.uint8).reshape(300, 1, 1, 1)
    plan = [(np.arange(256), 0), (np.arange(256, 300), 0), (np.arange(7), 0)]
    reader, share = _Reader(images, 0, 0.0), Share(1, 2, 4)
    pieces = [_piece(reader, plan, share, 2, index) for index in range(6)]
    found = [np.concatenate(pieces[2 * batch : 2 * batch + 2]) for batch in range(3)]
    expected = np.arange(128, 256), np.arange(278, 300), np.arange(7)
    for batch, images in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch.ravel(), images.astype(np.uint8))

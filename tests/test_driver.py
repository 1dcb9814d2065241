"""The compiled steps: any number in a dispatch, on any number of devices, from one program."""

import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny_run

from resnet_jax.errors import UserError
from resnet_jax.models.resnet import ResidualBlock
from resnet_jax.training.devices import Devices
from resnet_jax.training.driver import Trainer
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.state import Metrics
from resnet_jax.training.step import StepMetrics

# The same training and evaluation on one device and on several: its losses and scores as
# JSON. Norms whose statistics or gradients were those of one device would give others.
SHARDED = """
import json, re, sys, jax, numpy as np, tiny_run
from resnet_jax import cpu
from resnet_jax.training.devices import Devices, place_parts
from resnet_jax.training.driver import Trainer
from resnet_jax.training.evaluator import Evaluator

cpu.enable()  # which leaves programs for several devices as they are
tiny = tiny_run.Tiny(tiny_run.get_config())
found = {}
for count in map(int, sys.argv[1:]):
    devices = Devices(jax.devices()[:count])
    tiny.devices, tiny.data = devices, place_parts(tiny.dataset, tiny.config, devices)
    held = tiny.data["train"].images.addressable_data(0)
    assert len(held) == len(tiny.data["train"]) // count
    tiny.trainer = Trainer(tiny.task.network, tiny.task.optimizer, devices, 4)
    evaluator = Evaluator(tiny.task.network, devices)
    state, losses = tiny.state(), []
    for size in (120, 120, 50):  # the last one can be split in two only
        indices = np.arange(size, dtype=np.int32)[None]
        state, metrics, _ = tiny.take(state, indices, 0.05)
        losses.append(metrics.means()["loss"])
    score = evaluator.score(state.variables(), tiny.data["test"], 100)  # 8 devices make it 104
    counts = [int(score.accuracy.count), float(score.accuracy.total)]
    found[count] = [losses, counts, score.means()["loss"]]
indices = np.arange(120, dtype=np.int32)[None]
numbers = tiny.trainer._put(indices, 0, np.ones(1), tiny.task.hyperparameters, 0)
program = tiny.trainer._train.lower(state, tiny.data["train"], *numbers).compile().as_text()
found["exchanged"] = [line for line in program.splitlines() if re.search("= u8.* all-", line)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tiny():
    return tiny_run.Tiny(tiny_run.get_config())


def test_evaluation_is_exact_for_any_batch_size(tiny):
    variables, test = tiny.state().variables(), tiny.data["test"]
    data = tiny.config.data
    images = (np.asarray(test.images) / np.float32(255) - np.float32(data.mean)) / np.float32(
        data.std
    )
    logits = tiny.task.network.module.apply(variables, images, train=False)
    labels = np.asarray(test.labels)
    correct = int((np.asarray(logits).argmax(-1) == labels).sum())
    for batch_size in (320, 96, 1000):
        metrics = tiny.evaluator.score(variables, test, batch_size)
        assert (int(metrics.accuracy.count), float(metrics.accuracy.total)) == (320, correct)
        log_probabilities = jax.nn.log_softmax(logits)[np.arange(320), labels]
        assert metrics.means()["loss"] == pytest.approx(-float(log_probabilities.mean()), rel=1e-5)


def test_probabilities_come_from_one_program_for_any_number_of_images(tiny):
    variables = tiny.state().variables()
    images = tiny.dataset.test.at(np.arange(50))
    whole = tiny.evaluator.probabilities(variables, images, 50)
    parts = tiny.evaluator.probabilities(variables, images, 20)
    assert whole.shape == parts.shape == (50, 10)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)
    before = tiny.evaluator._classify._cache_size()
    for count in (40, 30):
        tiny.evaluator.probabilities(variables, images.at(np.arange(count)), 20)
    assert tiny.evaluator._classify._cache_size() == before


def test_a_block_that_is_defined_anew_has_a_program_of_its_own():
    config = tiny_run.get_config()
    config.model.options.block_cls = "MyBlock"

    def key(**attributes):
        MyBlock = type("MyBlock", (ResidualBlock,), attributes | {"__module__": __name__})
        trainer = tiny_run.Tiny(config).trainer
        return MyBlock, trainer.key

    old, new = key(__call__=lambda self, x, train: x), key(__call__=lambda self, x, train: 2 * x)
    assert old[1] != new[1]


def test_weights_are_handed_to_the_devices_once(tiny, monkeypatch):
    given, classify = [], tiny.evaluator._classify

    def classify_and_note(variables, images):
        given.append(jax.tree.leaves(variables))
        return classify(variables, images)

    monkeypatch.setattr(tiny.evaluator, "_classify", classify_and_note)
    variables = jax.tree.map(np.asarray, tiny.state().variables())
    tiny.evaluator.probabilities(variables, tiny.dataset.test.at(np.arange(50)), 20)
    assert len(given) == 3
    for leaves in zip(*given, strict=True):
        assert isinstance(leaves[0], jax.Array)
        assert all(leaf is leaves[0] for leaf in leaves)


def test_other_numbers_and_seeds_need_no_other_program(own_programs):
    config = tiny_run.get_config("rich")
    config.optimizer.accumulate_steps = 1
    config.optimizer.weight_decay = 0.1
    config.augment.mixup = 0.5
    tiny = tiny_run.Tiny(config)
    indices, ends = tiny.batches(2), []
    for changes in (
        {},
        {"optimizer.weight_decay": 0.5},
        {"optimizer.options.beta1": 0.5},
        {"optimizer.gradient_clip": 0.01},
        {"optimizer.ema_decay": 0.1},
        {"loss.label_smoothing": 0.3},
        {"augment.mixup": 4.0},
    ):
        state, *_ = tiny.take(tiny.state(), indices[:1])
        ends.append(tiny_run.leaves(tiny.take(state, indices[1:], **changes)[0]))
    assert all(end != ends[0] for end in ends[1:])
    assert tiny.trainer._train._cache_size() == 1
    config.seed, config.optimizer.weight_decay = 3, 0.5
    other = tiny_run.Tiny(config)
    own = other.take(other.state(), indices[:1])[0]
    tiny.config = other.config
    shared = tiny.take(other.state(), indices[:1], **{"optimizer.weight_decay": 0.5})[0]
    assert tiny_run.leaves(own) == tiny_run.leaves(shared)
    assert tiny.trainer._train._cache_size() == 1


@pytest.mark.parametrize(
    "counts", [("1", "8"), pytest.param(("1", "2", "4", "8"), marks=pytest.mark.slow)]
)
def test_devices_share_the_work_and_change_nothing(counts):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(tiny_run.CONFIG_FILE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, *counts], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (exchanged,) = found.pop("exchanged")
    assert "u8[120,32,32,3]" in exchanged, "devices exchange the images of a batch, no others"
    losses, sums, scores = found.pop("1")
    for other_losses, other_sums, other_scores in found.values():
        np.testing.assert_allclose(other_losses, losses, rtol=1e-4)
        np.testing.assert_allclose(other_scores, scores, rtol=1e-4)
        assert other_sums == sums
    assert sums[0] == 320


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    devices = Devices()
    devices.mesh = types.SimpleNamespace(size=8)
    devices.check_batch_size(64)
    with pytest.raises(UserError, match=r"batch_size is 100, which 8 devices .* 96 or 104"):
        devices.check_batch_size(100)


@pytest.mark.parametrize("variant", ["plain", pytest.param("rich", marks=pytest.mark.slow)])
def test_steps_in_one_dispatch_give_the_same_bits(variant, optimized_programs, onednn):
    config = tiny_run.get_config(variant)
    config.steps_per_dispatch = 4
    tiny = tiny_run.Tiny(config)
    indices, rates = tiny.batches(4), np.float32([0.1, 0.02, 0.2, 0.05])
    tiny.trainer.steps_per_dispatch = 1
    one = tiny.state()
    for row in range(4):
        one, metrics, _ = tiny.take(one, indices[row : row + 1], rates[row])
    tiny.trainer.steps_per_dispatch = 4
    four, metrics4, _ = tiny.take(tiny.state(), indices, rates)
    three = tiny.take(tiny.state(), indices[:3], rates[:3])[0]
    three_and_one = tiny.take(three, indices[3:], rates[3:])[0]  # fewer rows of the same program
    assert int(four.step) == 4
    assert tiny_run.leaves(one) == tiny_run.leaves(four) == tiny_run.leaves(three_and_one)
    assert metrics.means() == metrics4.means()
    assert tiny.trainer._train._cache_size() == 2


def test_a_run_compiles_two_steps_whatever_is_logged(tmp_path, monkeypatch):
    programs, dispatched = set(), []

    def fake(self, *arguments):
        init(self, *arguments)

        def train(state, examples, indices, count, *numbers):
            arrays = (indices, count, *numbers)
            programs.add(str(jax.tree.map(lambda a: (a.shape, a.dtype), arrays)))
            dispatched.append(int(count))
            state = state.replace(step=state.step + count)
            return state, Metrics.empty(), StepMetrics(*np.zeros((2, len(indices))))

        self._train = train

    init = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", fake)
    config = tiny_run.get_config()
    config.data.val_fraction = 0.0
    config.evaluate.split = "test"
    config.batch_size = 15  # 42 full batches and one of 10
    config.steps_per_dispatch = 6
    config.log.every_steps = 7
    final, _ = train_and_evaluate(config, tmp_path)
    assert final["step"] == 3 * 43 == sum(dispatched)
    assert len(set(dispatched)) > 3
    assert len(programs) == 2

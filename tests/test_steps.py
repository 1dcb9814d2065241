import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny_run

from resnet_jax.config.load import validate
from resnet_jax.training.state import Sums
from resnet_jax.training.task import Task

# The same training and evaluation on one device and on four: its losses and scores as JSON.
SHARDED = """
import json, jax, numpy as np, tiny_run
from jax.sharding import Mesh
from resnet_jax.config.load import validate
from resnet_jax.training.step import Steps
from resnet_jax.training.task import Task

task = Task.create(validate(tiny_run.get_config()), None, print)
found = {}
for count in (1, 4):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    steps = Steps(task.model, task.steps._optimizer, task.config, 4, mesh)
    state = jax.device_put(task.state, steps.replicated)
    state = jax.tree.map(lambda leaf: leaf.copy(), state)
    data = {name: part.on_device(steps.replicated) for name, part in task.data.items()}
    losses = []
    for size in (96, 96, 50):  # the last one cannot be split in four
        indices = np.arange(size, dtype=np.int32)[None]
        state, sums, _ = steps.train(state, data["train"], indices, np.array([0.05]))
        losses.append(float(sums.loss))
    scores = [steps.evaluate(state.variables(), data["test"], size) for size in (320, 96)]
    found[count] = [losses, [[float(s.count), float(s.correct), float(s.loss)] for s in scores]]
assert len(jax.devices()) == 4
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def task():
    return Task.create(validate(tiny_run.get_config()), None, print)


def copy(state):
    return jax.tree.map(lambda leaf: leaf.copy(), state)


def test_evaluation_is_exact_for_any_batch_size(task):
    variables = task.state.variables()
    test = task.data["test"]
    logits = task.model.apply(variables, normalized(task, test.images), train=False)
    correct = int((np.asarray(logits).argmax(-1) == np.asarray(test.labels)).sum())
    for batch_size in (320, 96, 1000):
        sums = task.steps.evaluate(variables, test, batch_size)
        assert sums.count == 320
        assert sums.correct == correct
        log_probabilities = jax.nn.log_softmax(logits)[np.arange(320), np.asarray(test.labels)]
        np.testing.assert_allclose(sums.loss, -log_probabilities.sum(), rtol=1e-5)


def test_evaluation_in_one_dispatch_is_the_same_evaluation():
    config = validate(tiny_run.get_config())
    task = Task.create(config, None, print)
    variables, test = task.state.variables(), task.data["test"]
    ends = []
    for size in (1, 2, 0, 1000):  # of four batches, the last of them padded
        config.evaluate.batches_per_dispatch = size
        ends.append(task.steps.evaluate(variables, test, 90))
    for sums in ends:
        assert sums.count == 320
        assert sums.correct == ends[0].correct
        np.testing.assert_allclose(sums.loss, ends[0].loss, rtol=1e-6)


def test_all_batches_are_one_dispatch_except_on_cpu(task, monkeypatch):
    calls = []

    def score(sums, variables, examples, indices, masks):
        calls.append(indices.shape)
        return sums

    monkeypatch.setattr(task.steps, "_score", score)
    task.steps.evaluate(task.state.variables(), task.data["test"], 100)
    assert calls == [(1, 100)] * 4
    devices = np.array([types.SimpleNamespace(platform="gpu")])
    monkeypatch.setattr(task.steps, "mesh", types.SimpleNamespace(size=1, devices=devices))
    monkeypatch.setattr(task.steps, "_split", lambda array: array)
    monkeypatch.setattr(type(task.steps), "replicated", jax.devices()[0])
    calls.clear()
    task.steps.evaluate(task.state.variables(), task.data["test"], 100)
    assert calls == [(4, 100)]


def test_another_seed_needs_no_other_program(task):
    _, indices = next(task.order.dispatches(0, 1, 1))
    config = tiny_run.get_config("rich")
    config.optimizer.accumulate_steps = 1
    rich = Task.create(validate(config), None, print)
    config.seed = 3
    third = Task.create(validate(config), None, print)
    train = lambda steps: steps.train(  # noqa: E731
        copy(rich.state), rich.data["train"], indices, np.array([0.1])
    )
    own, other = train(rich.steps), train(rich.steps.with_seed(3))
    count = rich.steps._train._cache_size()
    assert count == 1
    assert tiny_run.leaves(other) == tiny_run.leaves(train(third.steps))
    assert tiny_run.leaves(other) != tiny_run.leaves(own)


def normalized(task, images):
    data = task.config.data
    return (np.asarray(images) / np.float32(255) - np.float32(data.mean)) / np.float32(data.std)


def test_devices_share_the_work_and_change_nothing():
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(tiny_run.CONFIG_FILE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (losses, scores), (losses4, scores4) = found["1"], found["4"]
    np.testing.assert_allclose(losses4, losses, rtol=1e-5)
    np.testing.assert_allclose(scores4, scores, rtol=1e-5)
    assert [score[:2] for score in scores4] == [score[:2] for score in scores]
    assert {score[0] for score in scores} == {320}


def ends_of_six_steps(variant):
    """State and sums after six steps, taken one by one and all in one dispatch."""
    task = Task.create(validate(tiny_run.get_config(variant)), None, print)
    indices = np.concatenate([batch for _, batch in task.order.dispatches(0, 6, 1)])
    rates = task.learning_rates[:6]
    for size in (1, 6):
        state = copy(task.state)
        for first in range(0, 6, size):
            part = slice(first, first + size)
            state, sums, _ = task.steps.train(state, task.data["train"], indices[part], rates[part])
        assert state.step == 6 and sums.count == 2 * task.config.batch_size
        yield state


def test_steps_in_one_dispatch_give_the_same_bits():
    one, six = ends_of_six_steps("plain")
    assert tiny_run.leaves(one) == tiny_run.leaves(six)


def test_a_step_is_a_function_of_seed_and_step(task):
    _, indices = next(task.order.dispatches(0, 1, 1))
    ends = [
        task.steps.train(copy(task.state), task.data["train"], indices, np.array([0.1]))[0]
        for _ in range(2)
    ]
    assert tiny_run.leaves(ends[0]) == tiny_run.leaves(ends[1])


def test_the_first_bad_step_is_remembered(task):
    _, indices = next(task.order.dispatches(0, 1, 1))
    state = copy(task.state).replace(step=np.int32(6))
    state.params["head"]["bias"] = state.params["head"]["bias"] * np.nan
    for _ in range(2):
        state, sums, _ = task.steps.train(state, task.data["train"], indices, np.array([0.1]))
        assert sums.bad_step == 7


def test_means():
    sums = Sums(np.float32(6), np.float32(1), np.float32(4), np.int32(-1))
    assert sums.means() == {"loss": 1.5, "accuracy": 25.0}

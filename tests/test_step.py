"""The pure steps, on a linear model and without compiling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.config import default_config
from resnet_jax.config.load import validate
from resnet_jax.training import step as steps
from resnet_jax.training.hyperparameters import hyperparameters
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.state import Metrics, initial_state, not_finite
from resnet_jax.training.step import Batch, Network, eval_step, make_train_step

KEYS = []


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        if train:
            KEYS.append(jax.random.key_data(self.make_rng("dropout")))
        return nn.Dense(3, kernel_init=nn.initializers.normal(0.1))(x.reshape(len(x), -1))


def make_config(**changes):
    config = default_config()
    config.model.num_classes = 3
    config.data.mean, config.data.std = (0.0,) * 3, (1.0,) * 3
    config.optimizer.learning_rate = 0.5
    config.update_from_flattened_dict(changes)
    return validate(config)


def make_batch(epoch=0):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 2, 2, 3), np.uint8)
    return Batch(images, np.int32([0, 2, 1, 0]), np.int32([7, 3, 5, 4]), jnp.int32(epoch))


class Fixture:
    def __init__(self, **changes):
        self.config = make_config(**changes)
        self.network = Network(Linear(), self.config)
        optimizer = create_optimizer(self.config.optimizer)
        self.numbers = {
            k: jnp.float32(v) for k, v in hyperparameters(self.config, optimizer).items()
        }
        tx = optimizer.build(optimizer.numbers)
        averaged = bool(self.config.optimizer.ema_decay)
        self.state = initial_state(Linear(), tx, (2, 2, 3), averaged, jax.random.key(0))
        self.step = make_train_step(self.network, optimizer)

    def __call__(self, state=None, batch=None):
        arguments = batch or make_batch(), self.numbers, jax.random.key(1)
        return self.step(state or self.state, *arguments)


def logits_of(state, batch):
    kernel, bias = state.params["Dense_0"]["kernel"], state.params["Dense_0"]["bias"]
    return batch.images.reshape(4, -1) / np.float32(255) @ np.asarray(kernel) + np.asarray(bias)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_cross_entropy_with_its_smoothing(smoothing):
    fixture, batch = Fixture(**{"loss.label_smoothing": smoothing}), make_batch()
    state, told = fixture()
    logits = logits_of(fixture.state, batch)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(3)[batch.labels] + smoothing / 3
    losses = -(targets * log_probabilities).sum(1)
    np.testing.assert_allclose(told.loss, losses.mean(), rtol=1e-5)
    gradient = np.exp(log_probabilities) - targets
    inputs = batch.images.reshape(4, -1) / 255
    by_hand = inputs.T @ gradient / 4
    moved = fixture.state.params["Dense_0"]["kernel"] - state.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(moved, 0.5 * by_hand, atol=1e-6)
    norm = np.sqrt((by_hand**2).sum() + (gradient.mean(0) ** 2).sum())
    np.testing.assert_allclose(told.gradient_norm, norm, rtol=1e-5)
    correct = 100 * np.mean(logits.argmax(1) == batch.labels)
    assert state.metrics.means() == {
        "loss": pytest.approx(losses.mean(), rel=1e-5),
        "accuracy": pytest.approx(correct),
    }


def test_metrics_add_up_and_count_mixed_images_by_their_larger_share(monkeypatch):
    def half(key, images, labels, *_, num_classes, **__):
        targets = jax.nn.one_hot(labels, num_classes)
        return images, 0.6 * targets + 0.4 * jnp.roll(targets, 1, axis=0)

    monkeypatch.setattr(steps, "augment", half)
    fixture, batch = Fixture(), make_batch()
    state, _ = fixture(fixture()[0])
    assert int(state.metrics.accuracy.count) == int(state.metrics.loss.count) == 8
    first, second = fixture()[0], state
    expected = sum(
        (logits_of(s, batch).argmax(1) == batch.labels).sum() for s in (fixture.state, first)
    )
    assert float(second.metrics.accuracy.total) == expected


def test_each_purpose_and_step_has_a_key_of_its_own(monkeypatch):
    told = []

    def spy(key, images, labels, indices, epoch, *_, num_classes, flip_key, **__):
        told.append((jax.random.key_data(key), jax.random.key_data(flip_key), int(epoch)))
        np.testing.assert_array_equal(indices, make_batch().indices)
        return images, jax.nn.one_hot(labels, num_classes)

    def record(*arguments):
        derived.append(derive(*arguments))
        return derived[-1]

    derived, derive = [], steps.randomness.derive
    monkeypatch.setattr(steps.randomness, "derive", record)
    monkeypatch.setattr(steps, "augment", spy)
    KEYS.clear()
    fixture = Fixture()
    state, _ = fixture(batch=make_batch(epoch=5))
    fixture(state, make_batch(epoch=6))
    (first, flip, epoch), (second, same_flip, next_epoch) = told
    assert (epoch, next_epoch) == (5, 6)
    np.testing.assert_array_equal(flip, same_flip)
    keys = [first, second, flip, *KEYS]
    assert len(keys) == 5 and len({key.tobytes() for key in map(np.asarray, keys)}) == 5
    # That of initialisation was derived before; two for each step and the one of all flips.
    assert len({jax.random.key_data(key).tobytes() for key in derived[-6:]}) == 5


def test_the_moving_average_is_of_what_the_step_made():
    fixture = Fixture(**{"optimizer.ema_decay": 0.9})
    one, _ = fixture()
    two, _ = fixture(one)
    for average, a, b in zip(
        *map(jax.tree.leaves, (two.average["params"], one.params, two.params)), strict=True
    ):
        np.testing.assert_allclose(average, (a + b) / 2, rtol=1e-5)
    assert two.variables() == two.average


def test_the_moving_average_counts_updates_where_gradients_are_accumulated():
    fixture = Fixture(**{"optimizer.ema_decay": 0.9, "optimizer.accumulate_steps": 2})
    states = [fixture.state]
    for _ in range(5):
        states.append(fixture(states[-1])[0])
    averages = [jax.tree.leaves(state.average["params"]) for state in states]
    params = [jax.tree.leaves(state.params) for state in states]
    for first, second, *found in zip(params[2], params[4], *averages, strict=True):
        np.testing.assert_array_equal(found[1], found[0])
        np.testing.assert_allclose(found[2], first, rtol=1e-5)
        np.testing.assert_array_equal(found[3], found[2])
        np.testing.assert_allclose(found[4], (first + second) / 2, rtol=1e-5)
        np.testing.assert_array_equal(found[5], found[4])


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_step_that_is_not_finite_is_told_and_perhaps_skipped(on_nan):
    fixture = Fixture(**{"on_nan": on_nan, "optimizer.ema_decay": 0.5})
    one, _ = fixture()
    bad = make_batch().replace(images=np.full((4, 2, 2, 3), np.nan, np.float32))
    state, told = fixture(one, bad)
    assert not bool(told.is_finite()) and int(state.step) == 2
    if on_nan == "stop":
        assert int(state.skipped) == 0
        assert not_finite(state) == "params/Dense_0/bias"
        return
    assert int(state.skipped) == 1
    kept = state.replace(step=one.step, skipped=one.skipped)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), kept, one))
    three, told = fixture(state)
    assert bool(told.is_finite()) and int(three.skipped) == 1 and int(three.step) == 3
    two, _ = fixture(one)  # what is skipped weighs nothing in the average
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), three.average, two.average
    )


def test_a_gradient_whose_norm_overflows_is_not_finite():
    told = steps.StepMetrics(jnp.float32(1), jnp.float32(jnp.inf))
    assert not bool(told.is_finite())


@pytest.mark.parametrize("views", ["none", "mirror"])
def test_evaluation_averages_the_logits_of_the_views_and_masks(views):
    fixture, batch = Fixture(**{"evaluate.test_time_augmentation": views}), make_batch()
    mask = np.array([True, True, False, True])
    found = eval_step(
        fixture.network, fixture.state.variables(), *(batch.images, batch.labels), mask
    )
    mirrored = batch.replace(images=batch.images[:, :, ::-1])
    logits = logits_of(fixture.state, batch)
    if views == "mirror":
        logits = (logits + logits_of(fixture.state, mirrored)) / 2
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = -log_probabilities[np.arange(4), batch.labels]
    np.testing.assert_allclose(found.loss.total, losses[mask].sum(), rtol=1e-5)
    assert float(found.accuracy.total) == (logits.argmax(1) == batch.labels)[mask].sum()
    assert int(found.accuracy.count) == 3


def test_images_are_normalised_and_resized_for_the_module():
    network = Network(None, make_config(**{"data.image_size": 4, "data.std": (0.5, 1.0, 2.0)}))
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    inputs = network.inputs(images)
    assert inputs.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(inputs[0, 0, 0], (2.0, 1.0, 0.5))


def test_means_of_nothing_are_zero():
    assert Metrics.empty().means() == {"loss": 0.0, "accuracy": 0.0}

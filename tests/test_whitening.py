"""The whitening layer: what it does to patches, where it goes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from resnet_jax.config.load import validate
from resnet_jax.data.augment import normalize
from resnet_jax.data.sources import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.models.layers import Conv
from resnet_jax.training import task as task_lib
from resnet_jax.training.task import Task
from resnet_jax.training.whitening import whitening_kernel


@pytest.fixture(scope="module")
def images():
    sample = load_dataset("sample").train_images[:200]
    return normalize(jnp.asarray(sample) / 255, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def outputs(kernel, images):
    size, _, _, features = kernel.shape
    layer = Conv(features, (size, size))
    return layer.apply({"params": {"kernel": kernel}}, images).reshape(-1, features)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_outputs_are_uncorrelated_and_of_one_variance(images, size):
    kernel = jax.jit(whitening_kernel, static_argnums=1)(images, size, 1e-7)
    count = 3 * size * size
    assert kernel.shape == (size, size, 3, 2 * count)
    assert kernel.dtype == jnp.float32
    found = np.asarray(outputs(kernel, images), np.float64)
    np.testing.assert_array_equal(kernel[..., count:], -kernel[..., :count])
    covariance = found[:, :count].T @ found[:, :count] / len(found)
    np.testing.assert_allclose(covariance, np.eye(count), atol=2e-2)


def test_epsilon_damps_the_weak_directions(images):
    kernel = whitening_kernel(images, 2, 5e-4)
    patches = np.lib.stride_tricks.sliding_window_view(np.asarray(images), (2, 2), axis=(1, 2))
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12).astype(np.float64)
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    found = np.asarray(outputs(kernel, images), np.float64)
    powers = np.square(found).mean(0)[:12]
    np.testing.assert_allclose(powers, variances / (variances + 5e-4), rtol=1e-3)
    assert powers.min() < 0.99


def test_state_starts_whitened_and_the_kernel_stays(tmp_path):
    config = validate(tiny_run.get_config("speedrun"))
    task = Task.create(config, None, print)
    first = task.data["train"].images[:50]
    kernel = whitening_kernel(task.steps.inputs(first), 2, config.init.whitening_epsilon)
    assert np.abs(kernel).max() > 1
    for params in (task.state.params, task.state.average["params"]):
        np.testing.assert_allclose(params["whitening"]["kernel"], kernel, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(params["whitening"]["bias"], np.zeros(24))
    again = Task.create(config, None, print)
    assert tiny_run.leaves(again.state) == tiny_run.leaves(task.state)

    before = np.asarray(task.state.params["whitening"]["kernel"])
    state = task.state
    for first_step, indices in task.order.dispatches(0, 6, 1):
        rates = task.learning_rates[first_step : first_step + 1]
        state, *_ = task.steps.train(state, task.data["train"], indices, rates)
    for params in (state.params, state.average["params"]):
        np.testing.assert_allclose(params["whitening"]["kernel"], before, rtol=1e-6)
    assert np.abs(state.params["whitening"]["bias"]).max() > 0


def test_model_without_such_a_layer_is_refused():
    config = tiny_run.get_config()
    config.init.whitening_images = 10
    with pytest.raises(UserError) as error:
        task_lib.check(validate(config))
    assert str(error.value) == (
        "config field init.whitening_images is 10 but model resnet_small has no whitening layer; "
        "set it to 0"
    )

"""Runs as programs that need nothing of ours."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.inference.export import _short, program
from resnet_jax.inference.predict import Classifier
from resnet_jax.models.registry import create_model, list_models, variable_shapes
from resnet_jax.training.restore import restore

ONE_BLOCK = {"stage_sizes": (1,), "num_filters": (8,)}
# One of each family, small.
FAMILIES = {
    "alexnet": {"hidden_sizes": (8, 8)},
    "cnn": {},
    "preact_resnet18": ONE_BLOCK,
    "resnet_small": ONE_BLOCK,
    "vgg11": {"classifier": "cifar", **ONE_BLOCK},
    "vit_tiny": {"num_layers": 1},
}

LOAD = """
import pathlib, sys
import jax, numpy
program = jax.export.deserialize(pathlib.Path("a.stablehlo").read_bytes())
images = numpy.load("images.npy")
parts = [program.call(images[:1]), program.call(images[1:])]
numpy.save("probabilities.npy", numpy.concatenate(parts))
assert not any(name.startswith(("resnet_jax", "flax")) for name in sys.modules)
"""


@pytest.mark.usefixtures("onednn")
def test_a_program_gives_the_same_probabilities_without_us(plain_run, tmp_path):
    pytest.importorskip("flatbuffers")
    resnet_jax.export_stablehlo(plain_run[0], tmp_path / "a.stablehlo")
    classifier = Classifier.of_run(plain_run[0])
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, check=True)
    found = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(found, classifier.probabilities(images), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *FAMILIES.items(),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in list_models()),
    ],
)
def test_every_model_lowers_for_any_number_of_images(name, options, plain_run):
    pytest.importorskip("flatbuffers")
    task, _ = restore(plain_run[0], "best")
    network = dataclasses.replace(task.network, module=create_model(name, **options))
    shapes = variable_shapes(network.module, task.info.image_shape)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    content = program(network, variables, task.info.image_shape)
    exported = jax.export.deserialize(bytearray(content))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert str(exported.in_avals[0].shape[0]) == "batch"


def test_names_are_such_as_a_file_of_weights_may_have():
    name = _short("folder:/" + 300 * "x\x1b")
    assert len(name) == 200 and name.isprintable()

"""Every config builds, names existing things, and trains on the bundled sample."""

import inspect
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
import tiny_run
from flax import traverse_util

from resnet_jax.config import load as config_lib
from resnet_jax.models.registry import create_model, model_options
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.schedules import create_schedule

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def commands(path):
    """Returns the specifications, FILE[:VARIANT], that a config's header tells users to run."""
    header = runpy.run_path(str(path))["__doc__"]
    found = re.findall(rf"--config=configs/({path.stem}\.py(?::[\w.-]+)?)", header)
    assert found, f"{path.name} does not open with its command"
    return found


# One of each kind of model, optimizer and augmentation.
STRUCTURES = (
    *("cnn.py", "quickstart.py", "resnet.py:50", "resnet_custom.py", "resnet_he2015.py:20"),
    *("resnet_small_tuning.py:better", "vgg16_transfer.py:bn", "vit.py", "wide_resnet.py"),
)
SPECIFICATIONS = [spec for path in sorted(CONFIGS.glob("*.py")) for spec in commands(path)]


def load(spec):
    return config_lib.validate(config_lib.load(str(CONFIGS / spec)))


@pytest.mark.parametrize("spec", SPECIFICATIONS)
def test_builds(spec):
    config = load(spec)
    create_optimizer(config.optimizer)
    schedule = create_schedule(
        config.schedule,
        learning_rate=config.optimizer.learning_rate,
        steps_per_epoch=391,
        num_epochs=config.num_epochs,
    )
    rates = schedule(np.arange(391 * config.num_epochs))
    assert np.isfinite(rates).all() and 0 < rates.max() <= config.optimizer.learning_rate * 1.0001
    model = create_model(config.model.name, config.model.num_classes, **config.model.options)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    logits, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert logits.shape == (2, config.model.num_classes)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_says_whether_its_figures_are_measured(path):
    header = runpy.run_path(str(path))["__doc__"]
    assert re.search("expected|measured", header, re.IGNORECASE)


def test_unknown_variants_are_refused_by_name():
    for path in CONFIGS.glob("*.py"):
        if inspect.signature(runpy.run_path(str(path))["get_config"]).parameters:
            with pytest.raises(config_lib.UserError, match="unknown variant"):
                config_lib.load(f"{path}:no_such_variant")


def narrowed(config):
    """Returns the config with a thinner and shallower model of the same structure."""
    config = config_lib.validate(config).unlock()
    options = model_options(config.model.name) | dict(config.model.options)
    narrow = {}
    if "num_filters" in options:
        narrow["num_filters"] = tuple(max(4, n // 16) for n in options["num_filters"])
    if "stage_sizes" in options:
        narrow["stage_sizes"] = tuple(1 for _ in options["stage_sizes"])
    if "hidden_size" in options:
        narrow |= {"hidden_size": 12, "num_heads": 3, "num_layers": 1}
    config.model.options = dict(config.model.options) | narrow
    if config.data.image_size:
        config.data.image_size = 64
    config.init.weights = ""
    config.init.cached_stage = 0
    config.batch_size = 8
    config.data.source = "sample"
    return config


def tiny(config):
    config.data.source = "sample"
    return tiny_run.Tiny(config)


@pytest.mark.parametrize("spec", SPECIFICATIONS)
def test_its_step_lowers(spec):
    found = tiny(narrowed(load(spec)))
    compiled, lowered = found.trainer._train, []

    def lower(*arguments):
        lowered.append(compiled.lower(*arguments))
        return None, None, np.zeros(1)

    found.trainer._train = lower
    found.take(found.task.template, np.zeros((1, found.config.batch_size), np.int32))
    state, _, told = lowered[0].out_info
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), found.task.template
    )
    assert told.loss.shape == (1,)


@pytest.mark.parametrize("spec", STRUCTURES)
def test_trains_two_steps(spec):
    found = tiny(narrowed(load(spec)))
    before = jax.tree.map(np.array, found.state().params)
    state = found.state()
    for row in range(2):
        state, _, told = found.take(state, np.arange(8, dtype=np.int32)[None] + 8 * row)
        assert np.isfinite(told.loss) and np.isfinite(told.gradient_norm)
    assert int(state.step) == 2
    before, after = (traverse_util.flatten_dict(params) for params in (before, state.params))
    frozen = found.config.optimizer.frozen
    for path in before:  # a bias before a norm need not move
        if path[-1] == "kernel" and not (frozen and re.search(frozen, "/".join(path))):
            assert (before[path] != after[path]).any(), path

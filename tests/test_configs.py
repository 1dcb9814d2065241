"""Every config builds, names existing things, and trains on the bundled sample."""

import functools
import inspect
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
import tiny_run
from flax import traverse_util
from test_models import COUNTS

from resnet_jax.config import load as config_lib
from resnet_jax.models import vgg
from resnet_jax.models.registry import create_model, model_options
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.schedules import learning_rates

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def commands(path):
    """Returns the specifications, FILE[:VARIANT], that a config's header tells users to run."""
    header = runpy.run_path(str(path))["__doc__"]
    found = re.findall(rf"--config=configs/({path.stem}\.py(?::[\w.-]+)?)", header)
    assert found, f"{path.name} does not open with its command"
    return found


# One of each kind of model, optimizer and augmentation; two of them on every day, since all are
# traced, and what each is made of has tests of its own.
STRUCTURES = (
    *("cnn.py", "quickstart.py"),
    *(
        pytest.param(spec, marks=pytest.mark.slow)
        for spec in (
            *("resnet.py:50", "resnet_custom.py", "resnet_he2015.py:20"),
            *("resnet_small_tuning.py", "vgg16_transfer.py:vgg16_bn_adam_0.001_10"),
            *("vit.py", "wide_resnet.py"),
        )
    ),
)
SPECIFICATIONS = [spec for path in sorted(CONFIGS.glob("*.py")) for spec in commands(path)]

GRID = [f"{b}_{r}_{s}" for b in (100, 500, 1000) for r in (0.1, 0.01, 0.001) for s in ("on", "off")]
VGGS = {"vgg16": 134_260_544 + 2_102_794, "vgg16_bn": 134_268_992 + 2_102_794}
TRANSFER = {
    f"{model}_{optimizer}_{rate}_{epochs}": count
    for model, count in VGGS.items()
    for optimizer in ("adam", "rmsprop")
    for rate in (0.001, 0.003)
    for epochs in (10, 20)
}
# Row of the reports -> configs that reproduce it, parameters of their model, and what else is told.
ROWS = [
    ("R1.a", "cnn.py", 62_006, {"num_epochs": 10, "batch_size": 5}),
    ("R1.b", "resnet_small.py:sgd", 195_738, {"num_epochs": 10, "augment.flip": "none"}),
    ("R1.b", "resnet_small.py:sgd_plain", 195_738, {"augment.crop_padding": 0}),
    ("R1.b", "resnet_small.py:sgd_augmented", 195_738, {"augment.crop_padding": 4}),
    ("R1.c", "resnet_small.py", 195_738, {"num_epochs": 20, "augment.flip": "random"}),
    ("R1.c", "resnet_small.py:adam_plain", 195_738, {"batch_size": 128, "augment.flip": "none"}),
    ("R1.d", "resnet_small.py:dropout", 195_738, {"augment.flip": "random"}),
    ("R1.d", "resnet_small.py:dropout_plain", 195_738, {"augment.crop_padding": 0}),
    ("R1.e", "resnet_small.py:grid", 195_738, {"schedule.name": "constant"}),
    ("R1.e", "resnet_small.py:grid_decay", 195_738, {"schedule.name": "step"}),
    *(
        ("R1.f", f"vgg16_transfer.py:{variant}", count, {"batch_size": 128})
        for variant, count in TRANSFER.items()
    ),
    ("R1.f", "vgg16_transfer.py:lr3e-3", VGGS["vgg16"], {"optimizer.learning_rate": 3e-3}),
    ("R1.g", "vit.py", 5_362_762, {}),
    ("R2.18", "resnet.py:18", 11_173_962, {"optimizer.learning_rate": 0.1, "num_epochs": 50}),
    ("R2.34", "resnet.py:34", 21_282_122, {"optimizer.learning_rate": 0.05, "num_epochs": 50}),
    ("R2.50", "resnet.py:50", 23_520_842, {"optimizer.learning_rate": 0.03, "num_epochs": 40}),
    ("R2.50", "resnet.py:50", 23_520_842, {"schedule.name": "constant"}),
    ("R2.101", "resnet.py:101", 42_512_970, {"optimizer.learning_rate": 0.02, "num_epochs": 40}),
    ("R2.152", "resnet.py:152", 58_156_618, {"optimizer.learning_rate": 0.02, "num_epochs": 40}),
    ("R2.V1 SGD", "resnet_v1.py", 4_903_242, {"optimizer.weight_decay": 5e-4}),
    ("R2.V1 Adam", "resnet_v1.py:adam", 4_903_242, {"optimizer.weight_decay": 0.0}),
    ("R2.V2 SGD", "resnet_v2.py", 1_891_658, {"optimizer.weight_decay": 5e-4}),
    ("R2.V2 Adam", "resnet_v2.py:adam", 1_891_658, {"optimizer.name": "adam"}),
    ("R3.a", "resnet_textbook.py:alexnet", 23_272_266, {"batch_size": 100}),
    ("R3.b", "resnet_textbook.py", 9_625_994, {"evaluate.every_steps": 250}),
    ("R3.c", "resnet_textbook.py:10", 17_079_818, {"num_epochs": 18}),
    ("R3.d", "resnet_textbook.py:5_3", 15_123_146, {"num_epochs": 18}),
    ("R3.d", "resnet_textbook.py:10_3", 26_303_882, {"num_epochs": 18}),
    ("R4", "resnet_custom.py", 4_729_610, {"evaluate.augment": True, "num_epochs": 300}),
    ("R4", "resnet_custom.py:clean", 4_729_610, {"evaluate.augment": False}),
    *(("R5", f"resnet_small_tuning.py:{point}", 195_738, {"num_epochs": 50}) for point in GRID),
]


def load(spec):
    config = config_lib.validate(config_lib.load(str(CONFIGS / spec)))
    if config.model.dtype == "auto":
        config.model.dtype = "float32"
    return config


@functools.cache
def logits_and_variables(model):
    """Their shapes, for two images."""
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    init = functools.partial(model.init_with_output, jax.random.key(0), train=False)
    return jax.eval_shape(init, images)


def parameter_shapes(model):
    return logits_and_variables(model)[1]["params"]


@pytest.mark.parametrize("spec", SPECIFICATIONS)
def test_builds(spec):
    config = load(spec)
    optimizer = create_optimizer(config.optimizer)
    rates = learning_rates(config, config.num_epochs, 391)
    assert np.isfinite(rates).all() and 0 < rates.max() <= config.optimizer.learning_rate * 1.0001
    num_classes = config.model.num_classes or 10
    model = create_model(config.model.name, num_classes, **config.model.options)
    assert logits_and_variables(model)[0].shape == (2, num_classes)
    # Patterns of the config fit the names of the parameters.
    jax.eval_shape(optimizer.build(optimizer.numbers).init, parameter_shapes(model))


@pytest.mark.parametrize(("spec", "parameters", "fields"), [row[1:] for row in ROWS])
def test_every_row_of_the_reports_has_its_config(spec, parameters, fields):
    config = load(spec)
    model = create_model(config.model.name, **config.model.options)
    counted = COUNTS.get(config.model.name) if not config.model.options else None
    if counted is None:
        counted = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model)))
    assert counted == parameters
    flat = config_lib.flatten(config)
    assert {name: flat[name] for name in fields} == fields


def test_transfer_trains_the_new_head_only_with_pytorchs_initialisation(monkeypatch):
    config = load("vgg16_transfer.py")
    model = create_model("vgg16", **config.model.options)
    params = traverse_util.flatten_dict(parameter_shapes(model), sep="/")
    frozen = config.optimizer.frozen
    trained = {path: leaf.size for path, leaf in params.items() if not re.search(frozen, path)}
    assert trained == {
        "fc3/kernel": 4096 * 512,
        "fc3/bias": 512,
        "head/kernel": 512 * 10,
        "head/bias": 10,
    }
    monkeypatch.setitem(vgg.CLASSIFIERS, "transfer", (7, (8, 60, 50)))
    thin = create_model("vgg11", classifier="transfer", num_filters=[1, 1, 1, 1, 1])
    params = thin.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False)["params"]
    for name, fan_in in (("fc3", 60), ("head", 50)):
        assert 0.9 * fan_in**-0.5 < np.abs(params[name]["kernel"]).max() <= fan_in**-0.5
        assert params[name]["bias"].any()
    assert not params["fc2"]["bias"].any()


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
    config.data.name = "sample"
    return config


def tiny(config):
    config.data.name = "sample"
    return tiny_run.Tiny(config)


def step_of(config):
    """Returns what a step does beside applying its model."""
    return {
        path: bool(value) if isinstance(value, int | float) else value
        for path, value in config_lib.flatten(config).items()
        if path.startswith(("augment.", "optimizer.", "loss."))
    }


def structure_of(spec):
    """Returns all that the trace of a step depends on."""
    config = narrowed(load(spec))
    model = create_model(config.model.name, config.model.num_classes or 10, **config.model.options)
    return repr((model, config.data.image_size, config.model.dtype, step_of(config)))


DISTINCT = {structure_of(spec): spec for spec in reversed(SPECIFICATIONS)}.values()
FIRST = {spec.partition(":")[0]: spec for spec in DISTINCT}.values()  # of each file
STEPS = {repr(step_of(load(spec))): spec for spec in FIRST}.values()  # `test_builds` has all models


@pytest.mark.parametrize(
    "spec",
    [
        s if s in STEPS and s not in STRUCTURES else pytest.param(s, marks=pytest.mark.slow)
        for s in DISTINCT
    ],
)
def test_its_step_can_be_traced(spec):
    found = tiny(narrowed(load(spec)))
    compiled, traced = found.trainer._train, []

    def trace(*arguments):
        traced.append(compiled.trace(*arguments))
        return None, None, np.zeros(1)

    found.trainer._train = trace
    found.take(found.task.template, np.zeros((1, found.config.batch_size), np.int32))
    state, _, told = traced[0].out_info
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

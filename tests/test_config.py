import json
import sys

import jax
import ml_collections
import pytest
import tiny_run

from resnet_jax.config import load as config_lib
from resnet_jax.errors import UserError
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.task import Task


@pytest.fixture
def reads(monkeypatch):
    """The paths of all config fields that are read outside the room `config`."""
    paths, found = {}, set()
    getattr_ = ml_collections.ConfigDict.__getattr__

    def recording(self, name):
        value = getattr_(self, name)
        path = f"{paths.get(id(self), '')}{name}"
        if isinstance(value, ml_collections.ConfigDict):
            paths[id(value)] = f"{path}."
        reader = sys._getframe(1).f_code
        if reader.co_filename != config_lib.__file__ or reader.co_name == "selects":
            found.add(path)
        return value

    monkeypatch.setattr(ml_collections.ConfigDict, "__getattr__", recording)
    return found


def everything():
    """Returns a config in which no field is switched off by another."""
    config = tiny_run.get_config("rich")
    config.augment.policy = "randaugment"
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.1
    config.augment.erasing = 0.5
    config.optimizer.frozen = "head"
    config.optimizer.no_decay = "bn"
    config.optimizer.weight_decay = 0.1
    config.optimizer.learning_rate_factors = (("bn", 0.5),)
    return config_lib.validate(config)


def test_every_field_is_read(plain_run, tmp_path, reads):
    config = tiny_run.get_config()
    config.evaluate.split = "test"  # only then does select_on_test matter
    train_and_evaluate(config, tmp_path / "run")
    for config in (everything(), config_lib.validate(tiny_run.get_config("speedrun"))):
        task = Task.create(config, None, print)
        _, indices = next(task.order.dispatches(0, 1, 1))
        rates = task.learning_rates[:1]
        step = task.steps._train_steps  # traced, not compiled
        jax.eval_shape(step, task.state, jax.random.key(0), task.data["train"], indices, rates)
    assert set(config_lib.FIELDS) - reads == set()


def test_every_field_has_a_meaning_and_every_number_a_range():
    for path, field in config_lib.FIELDS.items():
        assert field.help, path
        kind = type(field.default[0]) if field.default and isinstance(field.default, tuple) else 0
        if type(field.default) in (int, float) or kind is float:
            assert field.high is not None, path
            assert field.low is not None or field.above is not None, path


def test_survives_json():
    config = everything()
    again = config_lib.validate(json.loads(json.dumps(config.to_dict())))
    assert config_lib.differences(again, config) == []
    assert again.optimizer.learning_rate_factors == (("bn", 0.5),)
    assert again.data.mean == config.data.mean


def test_validation_returns_a_locked_copy():
    config = tiny_run.get_config()
    checked = config_lib.validate(
        config.to_dict() | {"data": config.data.to_dict() | {"std": [1] * 3}}
    )
    assert checked.data.std == (1.0, 1.0, 1.0)
    assert all(type(value) is float for value in checked.data.std)
    checked.seed = 5
    assert config.seed == 0
    with pytest.raises(AttributeError):
        checked.new = 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("batch_size", True, "batch_size takes a int, not True"),
        ("batch_size", 10**9, "at most 1000000"),
        ("seed", -1, "seed must be at least 0"),
        ("data.std", (0.1, 0.0, 0.1), "data.std must be above 0.0"),
        ("data.mean", "x", "data.mean takes a tuple"),
        ("data.shuffle", 1, "data.shuffle takes a bool"),
        ("optimizer.learning_rate", float("inf"), "finite"),
        ("optimizer.learning_rate", "0.1", "learning_rate takes a float, not '0.1'"),
        ("optimizer.options", 3, "optimizer.options takes a dict"),
        ("optimizer.learning_rate_factors", (("a", -1),), "pairs"),
        ("optimizer.frozen", "[", "bad pattern"),
        ("optimizer.frozen_after", (("[", 1.0),), "bad pattern"),
        ("optimizer.weight_decay_factors", (("[", 1.0),), "bad pattern"),
        ("evaluate.test_time_augmentation", "mirrors", "did you mean mirror"),
        ("checkpoint.keep", 0, "at least 1"),
        ("data", 3, "unknown config field 'data'"),
    ],
)
def test_refuses(path, value, message):
    config = tiny_run.get_config().to_dict()
    *groups, name = path.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    with pytest.raises(UserError, match=message):
        config_lib.validate(config)


def test_patience_needs_scores_that_may_choose():
    config = tiny_run.get_config()
    config.evaluate.patience = 2
    config.evaluate.split = "test"
    with pytest.raises(UserError, match=r"evaluate.patience needs"):
        config_lib.validate(config)
    config.evaluate.select_on_test = True
    config_lib.validate(config)


def test_whitening_replaces_no_given_weights():
    config = tiny_run.get_config("speedrun")
    config.init.weights = "some.pth"
    with pytest.raises(UserError, match="whitening_images would replace weights"):
        config_lib.validate(config)


def test_differences():
    old, new = tiny_run.get_config(), tiny_run.get_config()
    new.optimizer.learning_rate = 0.3
    new.optimizer.options.momentum = 0.8
    new.evaluate.batch_size = 1
    assert config_lib.differences(old, new) == [
        "optimizer.learning_rate was 0.1, is 0.3",
        "optimizer.options was {'momentum': 0.9}, is {'momentum': 0.8}",
    ]


def test_the_sample_is_other_data_but_all_other_sources_are_the_same():
    old, new = tiny_run.get_config(), tiny_run.get_config()
    old.data.source, new.data.source = "npm", "tfds"
    assert config_lib.differences(old, new) == []
    new.data.source = "sample"
    assert config_lib.differences(old, new) == ["data.source was 'all', is 'sample'"]


def test_a_config_of_an_older_version_gets_the_defaults_of_newer_fields():
    stored = config_lib.default_config().to_dict()
    del stored["init"], stored["data"]["classes"]
    assert config_lib.upgraded(stored).to_dict() == config_lib.default_config().to_dict()
    assert config_lib.differences(stored, config_lib.default_config()) == []
    stored["data"]["klasses"] = ()
    with pytest.raises(UserError, match=r"data\.klasses"):
        config_lib.upgraded(stored)

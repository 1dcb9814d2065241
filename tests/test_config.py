"""The one checker, the fields of a config, and where configs come from."""

import dataclasses
import json
import math
import pathlib
import re
import sys
import typing
from typing import Annotated, Literal

import pytest
import tiny_run

import resnet_jax
from resnet_jax.config import load as config_lib
from resnet_jax.config.checks import (
    Bounds,
    Count,
    Factors,
    NonNegative,
    Pattern,
    check_options,
    checked,
)
from resnet_jax.config.fields import FIELDS, RESUMABLE
from resnet_jax.errors import UserError
from resnet_jax.models.layers import Depths
from resnet_jax.models.registry import MODELS
from resnet_jax.training.optimizers import OPTIMIZERS
from resnet_jax.training.schedules import SCHEDULES, plateau_factor

INSIDE = Annotated[float, Bounds(above=0, below=1)]
SIX = Annotated[int, {"six": 6}, Bounds(high=6)]


class Base:
    pass


class Derived(Base):
    pass


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 1, 1.0),
        (NonNegative, 0, 0.0),
        (Literal["a", "b"], "b", "b"),
        (tuple[float, ...], [1, 2], (1.0, 2.0)),
        (tuple[float, ...], [], ()),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Factors, [["bn|bias", 2]], (("bn|bias", 2.0),)),
        (Pattern, r"^(?!head)stage[1-3]/.*", r"^(?!head)stage[1-3]/.*"),
        (Pattern, "(a+)+", "(a+)+"),
        (type[Base], "Derived", Derived),
        (type[Base], Derived, Derived),
        (SIX, "six", 6),
        (SIX, 5, 5),
        (typing.Callable, print, print),
    ],
)  # fmt: skip
def test_takes(hint, value, expected):
    value = checked("x", hint, value)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (bool, 1, "takes True or False, not 1"),
        (int, True, "takes a whole number, not True"),
        (int, 1.0, "takes a whole number, not 1.0"),
        (float, "0.1", "takes a number, not '0.1'"),
        (float, 10**400, "takes a number, not 1000"),
        (float, math.nan, "must be a finite number, not nan"),
        (float, -math.inf, "must be a finite number, not -inf"),
        (str, None, "takes a text, not None"),
        (dict, 3, "takes names with values, not 3"),
        (Count, 0, "must be at least 1 and at most 1,000,000, not 0"),
        (Count, 10**200, "must be at least 1 and at most 1,000,000, not 1000"),
        (INSIDE, 1, "must be above 0 and below 1, not 1.0"),
        (INSIDE, 0, "must be above 0 and below 1, not 0.0"),
        (Literal["cosine", "linear"], "cosin", "x: unknown value 'cosin'; did you mean cosine?"),
        (Literal["cosine", "linear"], ["cosine"], "takes one of cosine, linear, not ['cosine']"),
        (tuple[float, ...], 5, "takes a list, not 5"),
        (tuple[float, ...], "12", "takes a list, not '12'"),
        (tuple[float, ...], ["1"], "takes a number, not '1'"),
        (tuple[float, float], [1.0], "takes 2 values, not [1.0]"),
        (Factors, [["bn", -1]], "must be at least 0, not -1"),
        (Factors, [["bn"]], "takes 2 values, not ['bn']"),
        (Factors, [["[", 1]], "bad pattern '[': unterminated character set"),
        (Pattern, "(" * 10_000, "bad pattern"),
        (Depths, [999, 5], "x, added up, must be at least 1 and at most 1,000, not 1004"),
        (Depths, [], "x, added up, must be at least 1 and at most 1,000, not 0"),
        (type[Base], "Derive", "did you mean Derived?"),
        (type[Base], int, "takes one of Derived, not <class 'int'>"),
        (SIX, "seven", "x: unknown value 'seven'"),
        (typing.Callable, "print", "takes a function or a class, not 'print'"),
    ],
)  # fmt: skip
def test_refuses(hint, value, message):
    with pytest.raises(UserError, match=r"^x") as error:
        checked("x", hint, value)
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_options_are_checked_and_completed():
    def rule(steps, *, factor: NonNegative, power: float = 1.0):
        pass

    assert check_options("schedule", "s", rule, {"factor": 2}) == {"factor": 2.0, "power": 1.0}
    with pytest.raises(UserError, match="schedule 's' needs its option factor"):
        check_options("schedule", "s", rule, {})
    with pytest.raises(UserError, match=r"^unknown option of schedule 's' 'facto'; did you mean"):
        check_options("schedule", "s", rule, {"facto": 1})
    with pytest.raises(UserError, match=r"^option factor of schedule 's' must be at least 0, not"):
        check_options("schedule", "s", rule, {"factor": -1})
    with pytest.raises(UserError, match="schedule 's' has no options; remove 'a'"):
        check_options("schedule", "s", lambda steps: None, {"a": 1})


def test_no_option_is_left_unchecked():
    functions = [*OPTIMIZERS.values(), *SCHEDULES.values(), plateau_factor]
    for target in (*functions, *(model.func for model in MODELS.values())):
        known = (
            [field.name for field in dataclasses.fields(target)]
            if isinstance(target, type)
            else target.__kwdefaults__ or {}
        )
        for option in known:
            with pytest.raises(UserError, match=option):
                check_options("kind", "name", target, {option: object()})


def test_every_field_has_a_meaning_and_every_number_a_range():
    def numbers(hint):
        if typing.get_origin(hint) is tuple:
            return any(numbers(item) for item in typing.get_args(hint) if item is not ...)
        return hint in (int, float)

    for path, field in FIELDS.items():
        assert field.help, path
        assert not numbers(field.hint), path


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_keeps_to_its_kind_and_range(path):
    def bounds(hint):
        """Returns the ranges of a number, or of each item of a tuple."""
        if typing.get_origin(hint) is tuple:
            return [b for item in typing.get_args(hint) if item is not ... for b in bounds(item)]
        return [item for item in typing.get_args(hint) if isinstance(item, Bounds)]

    hint, default = FIELDS[path].hint, FIELDS[path].default
    what = f"config field {path}"
    assert checked(what, hint, default) == default
    junk = [None, object(), b"x", {1}, math.nan, (object(),), [[[]]]]
    junk += [] if hint is bool else [True]
    for bound in bounds(hint):
        assert math.isfinite(bound.low) or math.isfinite(bound.above), path
        assert isinstance(default, tuple) or math.isfinite(bound.high) or math.isfinite(bound.below)
        outside = [10**400, -(10**400), math.inf]
        junk += [(x,) * len(default or (0,)) if isinstance(default, tuple) else x for x in outside]
    for value in junk:
        with pytest.raises(UserError, match=re.escape(what)):
            checked(what, hint, value)


def test_every_field_is_read():
    package = pathlib.Path(resnet_jax.__file__).parent
    room = package / "config" / "fields.py"
    text = "\n".join(path.read_text() for path in package.rglob("*.py") if path != room)
    unread = [path for path in FIELDS if not re.search(rf"[.\"]{path.split('.')[-1]}\b", text)]
    assert unread == []


def test_resumable_fields_exist():
    assert FIELDS.keys() > RESUMABLE


def everything():
    config = tiny_run.get_config("rich")
    config.optimizer.learning_rate_factors = (("bn", 0.5),)
    return config_lib.validate(config)


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
        ("batch_size", True, "config field batch_size takes a whole number, not True"),
        ("batch_size", 10**9, "at most 1,000,000, not 1000000000"),
        ("num_epochs", -1, "num_epochs must be at least 0"),
        ("seed", -1, "seed must be at least 0"),
        ("data.std", (0.1, 0.0, 0.1), "data.std must be above 0"),
        ("data.mean", "x", "data.mean takes a list"),
        ("augment.erasing_scale", (0.3, 0.1), "erasing_scale: 0.3 is above 0.1; swap them"),
        ("data.classes", [-1], "data.classes must be at least 0 and at most 999,999, not -1"),
        ("model.dtype", "float16", "config field model.dtype: unknown value 'float16'"),
        ("optimizer.learning_rate", 10**400, "learning_rate takes a number"),
        ("optimizer.options", 3, "optimizer.options takes names with values"),
        ("optimizer.frozen", "[", "config field optimizer.frozen: bad pattern"),
        ("optimizer.learning_rate_factors", (("[", 1.0),), "bad pattern"),
        ("evaluate.test_time_augmentation", "mirrors", "did you mean mirror"),
        ("data", 3, "unknown config field 'data'"),
        ("model.nmae", 3, "unknown config field 'model.nmae'; did you mean model.name"),
        ("lr", 3, "did you mean optimizer.learning_rate?"),
    ],
)
def test_validate_refuses(path, value, message):
    config = tiny_run.get_config().to_dict()
    *groups, name = path.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert message in str(error.value)


def test_a_missing_field_is_refused():
    config = tiny_run.get_config().to_dict()
    del config["data"]["classes"]
    with pytest.raises(UserError, match=r"config field data\.classes is missing"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("path", "value"), [("evaluate.patience", 2), ("schedule.name", "plateau")]
)
def test_what_scores_steer_needs_scores_that_may_choose(path, value):
    config = tiny_run.get_config()
    config.update_from_flattened_dict({path: value})
    config.evaluate.split = "test"
    with pytest.raises(UserError, match=rf"{path}.* needs evaluate.split='val'"):
        config_lib.validate(config)
    config.evaluate.select_on_test = True
    config_lib.validate(config)


def test_of_validation_and_test_images_one_chooses():
    config = tiny_run.get_config()
    config.evaluate.select_on_test = True
    with pytest.raises(UserError, match=r"evaluate.select_on_test is True but evaluate.split is"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("group", "field", "value", "problem"),
    [
        ("evaluate", "split", "test", "needs validation images"),
        ("init", "cached_stage", 1, "needs validation images"),
        ("augment", "cutmix", 1.0, "is True, but augment.mixup and augment.cutmix mix all"),
    ],
)
def test_only_validation_images_can_be_augmented(group, field, value, problem):
    config = tiny_run.get_config()
    config.evaluate.augment = True
    config_lib.validate(config)
    config[group][field] = value
    with pytest.raises(UserError, match=f"evaluate.augment {problem}"):
        config_lib.validate(config)


def test_differences():
    old, new = tiny_run.get_config(), tiny_run.get_config()
    new.optimizer.learning_rate = 0.3
    new.optimizer.options.momentum = 0.8
    new.evaluate.batch_size = 1
    new.data.source = "npm"  # whether the data are the same, their digest says
    assert config_lib.differences(old, new) == [
        "optimizer.learning_rate was 0.1, is 0.3",
        "optimizer.options.momentum was 0.9, is 0.8",
    ]


def test_a_name_stands_for_a_file_of_configs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_name = config_lib.load("resnet_v2:adam")
    assert by_name == config_lib.load(f"{config_lib.CONFIGS}/resnet_v2.py:adam")
    assert by_name == config_lib.load("resnet_v2.py:adam")  # as the tables of results have it
    with pytest.raises(UserError, match="--config resnet_w2 does not exist; did you mean resnet_v"):
        config_lib.load("resnet_w2")
    with pytest.raises(UserError, match=r"nothing\.py does not exist; choose from cifar100, cnn, "):
        config_lib.load("nothing.py")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n\ny = nonsense\n", "{file}:3: NameError: name 'nonsense' is not defined"),
        ("def get_config():\n    return {}['a']\n", "{file}:2: KeyError: 'a'"),
        (
            "from resnet_jax.config import default_config\ndef get_config():\n"
            "    return default_config().optimizer.lr\n",
            "{file}:3: AttributeError: \"'lr'",
        ),
        ("def get_config(:\n", "{file}:1: SyntaxError"),
        ("x = 1\n", "no function get_config"),
        ("def get_config(): return 3\n", "get_config returned no ConfigDict but 3"),
        ("import helper_of_ours\n", "{file}:1: ModuleNotFoundError"),
    ],
)
def test_a_bug_in_a_config_file_is_said_with_its_line(tmp_path, text, problem):
    file = tmp_path / "config.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        config_lib.load(str(file))
    assert str(error.value).startswith(f"--config {file}")
    assert problem.format(file=file) in str(error.value)


def test_a_config_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "helper_beside.py").write_text("from resnet_jax.config import default_config\n")
    file = tmp_path / "config.py"
    file.write_text(
        "import helper_beside\ndef get_config(): return helper_beside.default_config()\n"
    )
    path = [*sys.path]
    assert config_lib.load(str(file)) == config_lib.default_config()
    assert sys.path == path
    monkeypatch.syspath_prepend(tmp_path)
    path = [*sys.path]
    config_lib.load(str(file))
    assert sys.path == path
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"its command in starts\.jsonl"):
        config_lib.load(str(tmp_path / "config.json"))


def test_options_are_such_as_a_run_can_write():
    config = tiny_run.get_config()
    config.model.options.activation = math.sqrt
    with pytest.raises(UserError, match=r"model\.options must be such that JSON can hold it"):
        config_lib.validate(config)

"""The default config; where configs come from, and their validation.

A config is an `ml_collections.ConfigDict` with exactly the fields of `FIELDS`. Files in `configs/`
start from `default_config()` and change what differs. Three fields named `options` are open: they
hold keyword arguments of the model, optimizer or schedule that is named beside them, which are
checked against its signature.
"""

import dataclasses
import difflib
import math
import os
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from resnet_jax.config.fields import FIELDS, RESUMABLE, Field
from resnet_jax.config.patterns import check_pattern
from resnet_jax.errors import UserError, shown, unknown

Variant = TypeVar("Variant")

_MAX_CHARACTERS = 100_000

_DEFAULTS = {path: field.default for path, field in FIELDS.items()}


def default_config() -> ConfigDict:
    """Returns a new config of all fields at their defaults."""
    config = ConfigDict()
    for path, field in FIELDS.items():
        *groups, name = path.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[name] = ConfigDict(field.default) if isinstance(field.default, dict) else field.default
    return config


def choose(variants: Mapping[str, Variant], name: str) -> Variant:
    """Returns the variant of a config file that a name stands for.

    Args:
      variants: the names that the file knows, and what they stand for.
      name: the name that was asked for.

    Raises:
      UserError: if the file has no such variant.
    """
    if name not in variants:
        raise unknown("variant of this config", name, variants)
    return variants[name]


def load(path: str) -> ConfigDict:
    """Returns the config of a file, not yet validated.

    Args:
      path: a Python file with a function `get_config`; after a colon, the variant passed to it.

    Raises:
      UserError: if there is no such file, or it does not make a config.
    """
    file, _, variant = path.partition(":")
    if not os.path.isfile(file):
        near = difflib.get_close_matches(file, map(str, pathlib.Path(file).parent.glob("*.py")))
        hint = f"did you mean {near[0]}?" if near else "name a file such as configs/resnet_v2.py"
        raise UserError(f"--config {file} does not exist; {hint}")
    try:
        get_config = runpy.run_path(file)["get_config"]
        config = get_config(variant) if variant else get_config()
    except (UserError, KeyboardInterrupt):
        raise
    except KeyError as error:
        raise UserError(f"--config {file}: {error} is missing or not known") from error
    except BaseException as error:  # a file can raise anything
        raise UserError(f"--config {path}: {type(error).__name__}: {shown(error, str)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {path}: get_config returned no ConfigDict but {shown(config)}")
    try:
        size = len(repr(flatten(config)))
    except Exception as error:
        raise UserError(f"--config {path}: {shown(error, str)}") from error
    if size > _MAX_CHARACTERS:
        raise UserError(f"--config {path}: {size:,} characters are too many for a config")
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the config as one dict of dotted paths; open fields keep their dict.

    Args:
      config: a config, or the dict of one read from JSON.
      prefix: path of `config` itself, with its final dot.
    """
    if isinstance(config, ConfigDict):
        try:
            config = config.to_dict()
        except (RecursionError, TypeError) as error:
            raise UserError(f"a config is a tree of fields with names ({error})") from error
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and not _is_open(path):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = dict(value) if isinstance(value, Mapping) else value
    return flat


def validate(config: Mapping[str, Any]) -> ConfigDict:
    """Returns a checked copy of a config, with values in their fields' exact types.

    Args:
      config: a config, or the dict of one read from JSON.

    Raises:
      UserError: if a field is unknown, missing, ill-typed or out of range, or contradicts another.
    """
    if not isinstance(config, ConfigDict | dict):
        raise UserError(f"a config is a ConfigDict, not {type(config).__name__}")
    return _validated(flatten(config))


def upgraded(stored: Mapping[str, Any]) -> ConfigDict:
    """Returns the checked config of a run that an older version may have begun.

    Fields that it did not know get their defaults, which stand for what it did.

    Args:
      stored: the config, as read from JSON.

    Raises:
      UserError: see `validate`.
    """
    return _validated(_DEFAULTS | flatten(stored))


def _validated(values: dict[str, Any]) -> ConfigDict:
    for path in values:
        check_field(path)
    checked = default_config()
    checked.unlock()
    for path, field in FIELDS.items():
        if path not in values:
            raise UserError(f"config field {path} is missing; start from default_config()")
        _set(checked, path, _checked(path, field, values[path]))
    _check_relations(checked)
    return checked.lock()


def check_field(path: str) -> None:
    """Refuses the path of a field that does not exist.

    Args:
      path: a dotted path; the fields of an open one are checked by what it is for.

    Raises:
      UserError: with the nearest fields: those whose last name is that of `path`, or nearly, or has
        it for initials (lr), and else those whose whole path is near.
    """
    group, _, name = path.rpartition(".")
    if path in FIELDS or (_is_open(group) and name.isidentifier() and not name.startswith("_")):
        return
    names = {field: field.rpartition(".")[2] for field in FIELDS}
    alike = (
        [name]
        if name in names.values()
        else difflib.get_close_matches(name, names.values(), cutoff=0.75)
    )
    initials = {field: "".join(word[0] for word in own.split("_")) for field, own in names.items()}
    near = [field for field, own in names.items() if own in alike or initials[field] == name]
    near = near or difflib.get_close_matches(path, names)
    hint = f"did you mean {' or '.join(near)}?" if near else "resnet_jax/config/fields.py lists all"
    raise UserError(f"unknown config field {path!r}; {hint}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns one phrase for each field whose change would make a different run.

    Args:
      old: the config of the run so far, or its dict read from JSON, perhaps by an older version.
      new: the config asked for now.
    """
    before, after = _comparable(_DEFAULTS | flatten(old)), _comparable(flatten(new))
    return [
        f"{path} was {before.get(path)!r}, is {after.get(path)!r}"
        for path in sorted(before.keys() | after.keys())
        if path not in RESUMABLE and before.get(path) != after.get(path)
    ]


def _is_open(path: str) -> bool:
    return path in FIELDS and isinstance(FIELDS[path].default, dict)


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    """Returns flat values with lists for tuples, as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    comparable = {path: plain(value) for path, value in values.items()}
    # All sources but the sample hold the same bytes.
    is_sample = values.get("data.source") == "sample"
    return comparable | {"data.source": "sample" if is_sample else "all"}


def _set(config: ConfigDict, path: str, value: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        config = config[group]
    config[name] = ConfigDict(value) if isinstance(value, dict) else value


def _checked(path: str, field: Field, value: Any) -> Any:
    """Returns `value` in the type of its field, or raises."""
    kind = type(field.default)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and field.items == "pairs":
        return _checked_pairs(path, value)
    if kind is tuple and field.items == "integers":
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_checked(path, dataclasses.replace(field, default=0), v) for v in values)
    if kind is tuple and isinstance(value, list | tuple):
        value = tuple(_checked(path, dataclasses.replace(field, default=0.0), v) for v in value)
        if len(value) != len(field.default):
            raise UserError(
                f"config field {path} takes {len(field.default)} numbers, not {shown(value)}"
            )
        return value
    if type(value) is not kind:
        raise UserError(f"config field {path} takes a {kind.__name__}, not {shown(value)}")
    if field.choices and value not in field.choices:
        raise unknown(f"value of config field {path}:", value, field.choices)
    if kind in (int, float):
        _check_range(path, field, value)
    return value


def _checked_pairs(path: str, value: Any) -> tuple[tuple[str, float], ...]:
    pairs = []
    for pair in value if isinstance(value, list | tuple) else [value]:
        match pair:
            case [str(pattern), int() | float() as factor] if factor >= 0:
                pairs.append((pattern, float(factor)))
            case _:
                raise UserError(
                    f"config field {path} takes pairs (pattern, factor of at least 0), not "
                    f"{shown(pair)}"
                )
    return tuple(pairs)


def _check_range(path: str, field: Field, value: float) -> None:
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"config field {path} must be a finite number, not {value}")
    if field.above is not None and value <= field.above:
        raise UserError(f"config field {path} must be above {field.above}, not {shown(value)}")
    if field.low is not None and value < field.low:
        raise UserError(f"config field {path} must be at least {field.low}, not {shown(value)}")
    if field.high is not None and value > field.high:
        raise UserError(f"config field {path} must be at most {field.high}, not {shown(value)}")


def _check_relations(config: ConfigDict) -> None:
    if config.evaluate.split == "val" and config.data.val_fraction == 0:
        raise UserError(
            "config field evaluate.split is 'val' but data.val_fraction is 0; "
            "set data.val_fraction, or evaluate.split='test'"
        )
    if config.evaluate.patience and not selects(config):
        raise UserError(
            "config field evaluate.patience needs evaluate.split='val', "
            "or evaluate.select_on_test=True"
        )
    if config.optimizer.lookahead_steps and config.optimizer.ema_decay:
        raise UserError(
            "config fields optimizer.lookahead_steps and optimizer.ema_decay both average the "
            "weights; set one of them to 0"
        )
    if config.init.whitening_images and config.init.weights:
        raise UserError(
            "config field init.whitening_images would replace weights that init.weights gives; "
            "set it to 0"
        )
    if config.init.cached_stage and config.evaluate.test_time_augmentation != "none":
        raise UserError(
            "config field evaluate.test_time_augmentation needs images, but init.cached_stage "
            "keeps features; set one of them to its default"
        )
    optimizer = config.optimizer
    for field in ("no_decay", "frozen"):
        check_pattern(f"optimizer.{field}", optimizer[field])
    for field in ("learning_rate_factors", "weight_decay_factors", "frozen_after"):
        for pattern, _ in optimizer[field]:
            check_pattern(f"optimizer.{field}", pattern)


def selects(config: ConfigDict) -> bool:
    """Returns whether the scores of this run may choose its best checkpoint."""
    return config.evaluate.split == "val" or config.evaluate.select_on_test

"""The default config; where configs come from, and their validation.

A config is an `ml_collections.ConfigDict` with exactly the fields of `FIELDS`. Files in `configs/`
start from `default_config()` and change what differs. Three fields named `options` are open: they
hold keyword arguments of the model, optimizer or schedule that is named beside them, which are
checked against its signature.
"""

import difflib
import json
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from resnet_jax.config.checks import checked
from resnet_jax.config.fields import FIELDS, RESUMABLE, SEARCH_FIELDS
from resnet_jax.errors import UserError, shown, unknown

Variant = TypeVar("Variant")

_MAX_CHARACTERS = 100_000

_PACKAGE = pathlib.Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "configs"
# The files that `--config` finds by name: those of the installation, or of the clone.
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"


def default_config() -> ConfigDict:
    """Returns a new config of all fields at their defaults."""
    return _nested({path: field.default for path, field in FIELDS.items()})


def default_search() -> ConfigDict:
    """Returns a new config of a search, with all fields but base and space at their defaults.

    Its groups are "base", the name of a config; "space", see `resnet_jax.search.space`; "seeds";
    "search", of `SEARCH_FIELDS`; and "reported", a report's table: "columns", the paths of fields
    and then "train" or "test", and "rows".
    """
    fields = {path.removeprefix("search."): f.default for path, f in SEARCH_FIELDS.items()}
    reported = {"columns": (), "rows": ()}
    groups = {"base": "", "space": {}, "seeds": (0,), "search": fields, "reported": reported}
    return ConfigDict(groups)


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
      path: a Python file with a function `get_config`, or the name of one in `CONFIGS`, with ".py"
        or without; after a colon, the variant passed to it.

    Raises:
      UserError: if there is no such file, or it does not make a config.
    """
    file, _, variant = path.partition(":")
    files = CONFIGS.rglob("*.py")
    named = {f.relative_to(CONFIGS).with_suffix("").as_posix(): str(f) for f in files}
    file = named.get(file, file)
    if not os.path.isfile(file):
        file = named.get(file.removesuffix(".py"), file)
    if not os.path.isfile(file):
        others = map(str, pathlib.Path(file).parent.glob("*.py"))
        near = difflib.get_close_matches(file, [*others, *named])
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(named))}"
        raise UserError(f"--config {file} does not exist; {hint}")
    if file.endswith(".json"):
        raise UserError(
            f"--config {file} is no Python file with a function get_config; a run that left it has "
            "its command in starts.jsonl"
        )
    folder = os.path.dirname(os.path.abspath(file))
    beside = [folder] if folder not in sys.path else []
    try:
        sys.path += beside  # of helpers; the last, so that none hides another module
        get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            raise UserError(f"--config {file} has no function get_config")
        config = get_config(variant) if variant else get_config()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a file can raise anything
        problem = f"{_place(error, file)}: {type(error).__name__}: {shown(error, str)}"
        raise UserError(f"--config {path}: {problem}") from error
    finally:
        if beside and folder in sys.path:
            sys.path.remove(folder)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config {path}: get_config returned no ConfigDict but {shown(config)}")
    try:
        size = len(repr(flatten(config)))
    except Exception as error:
        raise UserError(f"--config {path}: {shown(error, str)}") from error
    if size > _MAX_CHARACTERS:
        raise UserError(f"--config {path}: {size:,} characters are too many for a config")
    return config


def flatten(config: Mapping[str, Any], prefix: str = "", whole: bool = True) -> dict[str, Any]:
    """Returns the config as one dict of dotted paths.

    Args:
      config: a config, or the dict of one read from JSON.
      prefix: path of `config` itself, with its final dot.
      whole: whether open fields keep their dict.
    """
    if isinstance(config, ConfigDict):
        try:
            config = config.to_dict()
        except (RecursionError, TypeError) as error:
            raise UserError(f"a config is a tree of fields with names ({error})") from error
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and not (whole and _is_open(path)):
            flat |= flatten(value, f"{path}.", whole)
        else:
            flat[path] = dict(value) if isinstance(value, Mapping) else value
    return flat


def check_field(path: str) -> None:
    """Refuses the path of a field that does not exist.

    Args:
      path: a dotted path; the fields of an open one are checked by what it is for.

    Raises:
      UserError: with the nearest fields: those whose last name is nearest to that of `path`, or has
        it for initials (lr), and else those whose whole path is near.
    """
    group, _, name = path.rpartition(".")
    if path in FIELDS or (_is_open(group) and name.isidentifier() and not name.startswith("_")):
        return
    names = {field: field.rpartition(".")[2] for field in FIELDS}
    alike = difflib.get_close_matches(name, set(names.values()), n=1, cutoff=0.75)
    alike += [own for own in names.values() if name == "".join(w[0] for w in own.split("_"))]
    near = [field for field, own in names.items() if own in alike]
    near = near or difflib.get_close_matches(path, names)
    hint = f"did you mean {' or '.join(near)}?" if near else "--list=fields shows all"
    raise UserError(f"unknown config field {shown(path)}; {hint}")


def check_search_field(path: str) -> None:
    """Refuses the path of a field that the config of a search can't have.

    Raises:
      UserError: with the nearest fields.
    """
    known = ["base", "seeds", *SEARCH_FIELDS]
    if path not in known and not path.startswith("space."):
        raise unknown("config field", path, known)


def validate(config: Mapping[str, Any]) -> ConfigDict:
    """Returns a checked copy of a config, with values in their fields' exact types.

    Args:
      config: a config, or the dict of one read from JSON.

    Raises:
      UserError: if a field is unknown, missing, ill-typed or out of range, or contradicts another.
    """
    if not isinstance(config, ConfigDict | dict):
        raise UserError(f"a config is a ConfigDict, not {type(config).__name__}")
    values = flatten(config)
    for path in values:
        check_field(path)
    for path, field in FIELDS.items():
        if path not in values:
            raise UserError(f"config field {path} is missing; start from default_config()")
        values[path] = checked(f"config field {path}", field.hint, values[path])
        if field.hint is dict:
            _check_writable(path, values[path])
    result = _nested(values).lock()
    _check_relations(result)
    return result


def _check_writable(path: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config field {path} must be such that JSON can hold it: blocks and activations by "
            f"their names, other functions and classes in code of your own ({error})"
        ) from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns one phrase for each field whose change would make a different run.

    Not of data.name: whether the images are the same, their digest says.

    Args:
      old: the config of the run so far, or its dict read from JSON.
      new: the config asked for now.
    """
    return [
        f"{path} was {shown(before)}, is {shown(after)}"
        for path, (before, after) in changes(old, new).items()
        if path != "data.name"
    ]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the values before and after of each field that makes another run, by sorted paths."""
    before, after = leaves(old), leaves(new)
    values = {path: (before.get(path), after.get(path)) for path in sorted(before | after)}
    return {p: pair for p, pair in values.items() if p not in RESUMABLE and pair[0] != pair[1]}


def leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a config as JSON has them, by paths, those of open fields too."""
    found: dict[str, Any] = _plain(flatten(config, whole=False))
    return found


def selects(config: ConfigDict) -> bool:
    """Returns whether the scores of this run may choose its best checkpoint."""
    return config.evaluate.split == "val" or config.evaluate.select_on_test


def _is_open(path: str) -> bool:
    return path in FIELDS and FIELDS[path].hint is dict


def _nested(values: Mapping[str, Any]) -> ConfigDict:
    """Returns a config of values by path."""
    config: dict[str, Any] = {}
    for path in FIELDS:
        *groups, name = path.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = values[path]
    return ConfigDict(config)


def _place(error: BaseException, file: str) -> str:
    """Returns FILE:LINE of the last line of a file that led to an error."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    return f"{file}:{lines[-1]}" if lines else file


def _plain(value: Any) -> Any:
    """Returns a value with lists for tuples, as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_relations(config: ConfigDict) -> None:
    """Refuses fields that contradict each other."""
    if config.evaluate.split == "val" and config.data.val_fraction == 0:
        raise UserError(
            "config field evaluate.split is 'val' but data.val_fraction is 0; "
            "set data.val_fraction, or evaluate.split='test'"
        )
    if config.evaluate.split == "val" and config.evaluate.select_on_test:
        raise UserError(
            "config field evaluate.select_on_test is True but evaluate.split is 'val', which "
            "chooses; set evaluate.split='test'"
        )
    if config.evaluate.split == "test" and not config.evaluate.score_test:
        raise UserError(
            "config field evaluate.score_test is False but evaluate.split is 'test'; set "
            "evaluate.split='val'"
        )
    steering = {
        "evaluate.patience": config.evaluate.patience,
        "schedule.name='plateau'": config.schedule.name == "plateau",
    }
    for field, steers in steering.items():
        if steers and not selects(config):
            raise UserError(
                f"config field {field} needs evaluate.split='val', or evaluate.select_on_test=True"
            )
    if config.evaluate.augment and (config.evaluate.split == "test" or config.init.cached_stage):
        raise UserError(
            "config field evaluate.augment needs validation images: evaluate.split='val', "
            "init.cached_stage=0"
        )
    if config.evaluate.augment and (config.augment.mixup or config.augment.cutmix):
        raise UserError(
            "config field evaluate.augment is True, but augment.mixup and augment.cutmix mix all "
            "validation images in one random proportion; set it to False"
        )
    if config.init.cached_stage and config.evaluate.test_time_augmentation != "none":
        raise UserError(
            "config field evaluate.test_time_augmentation needs images, but init.cached_stage "
            "keeps features; set one of them to its default"
        )

"""What can be named on the command line, a line for each name."""

import ast
import inspect
import pathlib
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from resnet_jax.config.fields import FIELDS, SEARCH_FIELDS, Field
from resnet_jax.config.load import CONFIGS
from resnet_jax.data.registry import DATASETS
from resnet_jax.errors import unknown
from resnet_jax.models.registry import MODELS
from resnet_jax.training.schedules import SCHEDULES, options_of
from resnet_jax.training.update_rules import OPTIMIZERS
from resnet_jax.weights.info import WeightsInfo, bundled, weights_info


def format_list(kind: str) -> str:
    """Returns the names of a kind, each with a line on what it stands for.

    Args:
      kind: "models", "configs", "datasets", "fields", "optimizers", "schedules" or "weights".

    Raises:
      UserError: if there is no such kind.
    """
    if kind not in _KINDS:
        raise unknown("--list", kind, _KINDS)
    lines = _KINDS[kind]()
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {line}" for name, line in lines.items())


def _models() -> dict[str, str]:
    def shown(value: Any) -> str:
        return value.__name__ if isinstance(value, type) else repr(value)

    def described(model: Any) -> str:
        options = ", ".join(f"{name}={shown(value)}" for name, value in model.keywords.items())
        return f"{model.func.__name__}({options})"

    return {name: described(model) for name, model in MODELS.items()}


def _configs() -> dict[str, str]:
    def described(file: pathlib.Path) -> str:
        return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]

    files = sorted(CONFIGS.rglob("*.py"))
    return {f.relative_to(CONFIGS).with_suffix("").as_posix(): described(f) for f in files}


def _fields() -> dict[str, str]:
    def described(field: Field) -> str:
        names = f": {', '.join(get_args(field.hint))}" if get_origin(field.hint) is Literal else ""
        return f"{field.help}{names} (default: {field.default!r})"

    return {path: described(field) for path, field in (FIELDS | SEARCH_FIELDS).items()}


def _with_options(function: Callable[..., Any]) -> str:
    line = (inspect.getdoc(function) or "").partition("\n")[0]
    parameters = inspect.signature(function).parameters.values()
    options = ", ".join(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)
    return f"{line} Options: {options}." if options else line


def _weights() -> dict[str, str]:
    def described(info: WeightsInfo) -> str:
        accuracy = f"{info.test_accuracy:.2f} % of the test images of {info.dataset}"
        mirror = ", mirror images counted in" * (info.test_time_augmentation == "mirror")
        return f"{accuracy}{mirror}, {info.num_parameters:,} parameters"

    return {model: described(weights_info(model)) for model in bundled()}


_KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "models": _models,
    "configs": _configs,
    "datasets": lambda: {name: dataset.help for name, dataset in DATASETS.items()},
    "fields": _fields,
    "optimizers": lambda: {name: _with_options(rule) for name, rule in OPTIMIZERS.items()},
    "schedules": lambda: {name: _with_options(options_of(name)) for name in SCHEDULES},
    "weights": _weights,
}

"""Flags that replace fields of a config."""

import functools
import re
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from resnet_jax.config import load as config_lib
from resnet_jax.config.checks import checked
from resnet_jax.errors import UserError


def override(
    config: ConfigDict,
    arguments: list[str],
    check: Callable[[str], None] = config_lib.check_field,
) -> ConfigDict:
    """Returns a config with the fields that flags replace, not yet validated.

    Args:
      config: the config.
      arguments: the program's name, and flags `--config.FIELD=VALUE`.
      check: refuses paths of fields that there are not.

    Raises:
      UserError: if there is no such field, or anything else among the arguments.
    """
    for argument in arguments:
        if field := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            check(field[1])
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config",
            config,
            flag_values=values,
            lock_config=False,
            accept_new_attributes=True,  # those of the open fields
            sys_argv=arguments,
        )
        rest = values(arguments)
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; see --help")
    return values.config


def override_search(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Returns the config of a search with the config that its base names in it.

    Args:
      config: the config of the search, with the name of a config as its base.
      arguments: the program's name, and flags `--config.FIELD=VALUE`; those that start with
        `--config.base.` replace fields of the base.

    Raises:
      UserError: if there is no such base or field, the search has another value for a field of the
        base, or there is anything else among the arguments.
    """
    arguments = _without_blanks(arguments)
    of_base = [a for a in arguments if re.match(r"--?(?:no)?config\.base\.", a)]
    own = [argument for argument in arguments if argument not in of_base]
    for path in _paths(r"\.", own):
        node = config
        for group in path.split("."):
            if not isinstance(node.get(group), ConfigDict):  # flags can't set into what is none
                with config.ignore_type():
                    node[group] = ConfigDict()
            node = node[group]
    for path in _paths("=[^{]", own):
        *groups, name = path.split(".")
        node = functools.reduce(lambda node, group: node.get(group, {}), groups, config)
        if _is_axis(node.get(name)):  # nor a list where a range is
            with config.ignore_type():
                node[name] = ()
    config = override(config, own, config_lib.check_search_field)
    base = config_lib.load(checked("config field base", str, config.base))
    fields = [argument.replace("config.base.", "config.", 1) for argument in of_base]
    for field in fields:
        path = re.sub(r"^--?(no)?config\.|=.*$", "", field, flags=re.S)
        if path == "seed" or _is_fixed(config.space, path):
            own_field = "seeds" if path == "seed" else f"space.{path}"
            raise UserError(f"--config.base.{path} changes nothing; set --config.{own_field}")
    with config.ignore_type():
        config.base = override(base, [arguments[0], *fields])
    return config


def _paths(end: str, arguments: list[str]) -> list[str]:
    """Returns the paths in the space that flags name before a pattern."""
    found = (re.match(rf"--?config\.(space\.[\w.]+){end}", argument) for argument in arguments)
    return [match[1] for match in found if match]


def _is_fixed(space: Any, path: str) -> bool:
    """Returns whether a space has a field, for all of its points."""
    for name in path.split("."):
        if not isinstance(space, ConfigDict) or name not in space:
            return False
        space = space[name]
    return "when" not in space if _is_axis(space) else not isinstance(space, ConfigDict)


def _is_axis(value: Any) -> bool:
    """Returns whether a value of a space is a range, or a list with conditions."""
    return isinstance(value, ConfigDict) and ("low" in value or "values" in value)


def _without_blanks(arguments: list[str]) -> list[str]:
    """Returns arguments with `--config.FIELD VALUE` as `--config.FIELD=VALUE`."""
    joined = arguments[:1]
    for argument in arguments[1:]:
        if re.fullmatch(r"--?config\.[^=]+", joined[-1]) and not re.match(r"--?[a-z]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined

"""Regular expressions of parameter paths, as configs give them."""

import re
import warnings
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from resnet_jax.errors import UserError, shown


def check_pattern(field: str, pattern: str) -> None:
    """Refuses what is no regular expression, or may take a time exponential in a path's length.

    Args:
      field: the config field that has it.
      pattern: the pattern.

    Raises:
      UserError: if it is refused.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a later Python may read otherwise
            re.compile(pattern)
        if _nests_repeats(_parser.parse(pattern)):
            raise re.error("a repeat inside a repeat may take for ever")
    except (re.error, RecursionError, OverflowError) as error:
        problem = f"bad pattern {shown(pattern)}: {error}"
        raise UserError(f"config field {field}: {problem}") from None


def _nests_repeats(parsed: Any, is_inside: bool = False) -> bool:
    """Returns whether a parsed pattern repeats what itself can be of several lengths."""
    match parsed:
        case [int() as low, int() as high, _parser.SubPattern() as body]:
            is_open = high > max(low, 1)
            return (is_open and is_inside) or _nests_repeats(body, is_open or is_inside)
        case _parser.SubPattern() | list() | tuple():
            return any(_nests_repeats(item, is_inside) for item in parsed)
    return False

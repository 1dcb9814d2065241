"""Reads pickles of others as data: CIFAR-10's Python batches and PyTorch's state dicts.

A pickle is a program for a stack machine, and Python's own machine calls whatever it names. Here
every name stands for an object of ours, and before the machine starts, all opcodes are checked.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_LONGEST = 100  # values of a tuple
_LIMIT = 1_000_000  # opcodes, and the largest index into the memo: it makes that many slots
_NUMBERS = ["NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"]
_TEXTS = ["BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"]
_BYTES = ["BINBYTES", "SHORT_BINBYTES", "BINBYTES8"]
_OTHERS = ["LONG1", "BINFLOAT", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "GLOBAL"]
_MEMO = ["BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"]
# How many values an opcode takes from the stack; None: those after the last mark.
_MAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None, "BINPERSID": 1}
_MAKES |= {"STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2}
_FILLS = {"APPEND": 1, "SETITEM": 2, "BUILD": 1, "APPENDS": None, "SETITEMS": None}
_KEYS = frozenset([*_NUMBERS, *_TEXTS, *_BYTES])
_PUSHES = frozenset([*_KEYS, *_OTHERS])


class Refused(Exception):
    """A pickle that asks for more than the caller allows; the message says for what."""


class Damaged(Exception):
    """A pickle that can't be read; the message says why."""


class Ignored:
    """Stands for an object whose arguments and state do not matter."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load(
    file: Any,
    allowed: Mapping[str, Any],
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns what a pickle of protocol 2 to 5 describes; text of Python 2 is read as Latin-1.

    Args:
      file: a binary file or memory map; it is left behind the pickle.
      allowed: what stands for each "module.name" that a pickle may ask for. Functions and classes
        among them get any arguments; they must not copy large ones (a pickle can name one text a
        million times), hash them, nor return a function.
      persistent_load: what stands for an object kept outside of the pickle, made from its id.

    Raises:
      Refused: if the pickle asks for anything else, or by unusual means.
      Damaged: if it can't be read.
    """
    try:
        start = file.tell()
        _check(file, allowed)
        length = file.tell() - start
        file.seek(start)
        return _Unpickler(file.read(length), allowed, persistent_load).load()
    except (Refused, Damaged):
        raise
    except Exception as error:  # a forged pickle can raise anything; nothing of it is used
        reason = f"{type(error).__name__}: {str(error)[:80]}".splitlines()[0]
        raise Damaged(f"its pickle can't be read ({reason})") from error


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, content: bytes, allowed: Mapping[str, Any], persistent: Callable[[Any], Any] | None
    ) -> None:
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="latin1")
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        return _find(self._allowed, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Refused("an object kept elsewhere")
        return self._persistent(pid)


def _find(allowed: Mapping[str, Any], name: str) -> Any:
    if name not in allowed:
        raise Refused(name)
    return allowed[name]


def _check(file: Any, allowed: Mapping[str, Any]) -> None:
    """Reads a pickle to its end; its stack holds the opcodes that made the values.

    Keys of dicts must be plain: Python hashes nested tuples recursively, without a limit. Numbers
    beyond 60 bits are no keys: a million of them can have one hash.
    """
    stack: list[str] = []
    outer: list[list[str]] = []
    memo: dict[int, str] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > _LIMIT or (isinstance(argument, int) and "PUT" in name and argument > _LIMIT):
            raise Damaged("its pickle has more than a million parts")
        if name == "MARK":
            outer.append(stack)
            stack = []
        elif name in _MAKES or name in _FILLS:
            number = _MAKES.get(name, _FILLS.get(name))
            if number is None:
                taken, stack = stack, outer.pop()
            else:
                taken = [stack.pop() for _ in range(number)][::-1]
            if len(taken) > _LONGEST and name == "TUPLE":  # functions may copy their arguments
                raise Damaged(f"it has a tuple of more than {_LONGEST} values")
            if name in _MAKES:
                stack.append(name)
            else:
                _check_change(name, stack[-1], taken)
        elif name in _MEMO:
            _remember(name, argument, stack, memo)
        elif name in _PUSHES:
            if name == "GLOBAL":
                _find(allowed, str(argument).replace(" ", "."))
            is_small = isinstance(argument, int) and argument.bit_length() <= 60
            stack.append("BININT" if is_small else name)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"the pickle opcode {name}")


def _check_change(name: str, target: str, taken: list[str]) -> None:
    if name == "BUILD" and target in ("GLOBAL", "STACK_GLOBAL"):
        raise Refused("changes to a function or class")
    if name in ("SETITEM", "SETITEMS") and not _KEYS.issuperset(taken[::2]):
        raise Damaged("a key of a dict is no plain value")


def _remember(name: str, argument: Any, stack: list[str], memo: dict[int, str]) -> None:
    if name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif "PUT" in name:
        memo[argument] = stack[-1]
    else:
        stack.append(memo[argument])

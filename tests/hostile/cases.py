"""What the cases of hostile and broken input share.

Every case is a function of nothing but its name: what is random comes from a generator with a seed.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import tiny_run

MAY_WORK = "error: "  # what is refused is refused in one line, but it may also be borne


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the command line.

    Attributes:
      name: a stable name, `category/what`.
      arguments: makes the files, in a folder, and returns the arguments; it may read the folder of
        a finished run.
      names: what the one line of the error must contain; None: the call works.
    """

    name: str
    arguments: Callable[[pathlib.Path, pathlib.Path], list[str]]
    names: str | None

    @property
    def category(self) -> str:
        return self.name.partition("/")[0]


CONFIG = f"--config={tiny_run.CONFIG_FILE}"


def fixed(name, names, *arguments):
    return Case(name, lambda room, run: list(arguments), names)


def written(name, names, file, content, *arguments):
    """Returns a case of one file; `{file}` in the arguments stands for its path.

    What takes long to make is given as a function.
    """

    def make(room, run):
        path, made = room / file, content() if callable(content) else content
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
        return [argument.format(file=path, run=run, room=room) for argument in arguments]

    return Case(name, make, names)


# Code in place of a value; it must never be executed.
CODE = "__import__('os').system('touch ../canary')"

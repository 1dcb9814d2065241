"""The one exception that reaches a user as a single line."""

import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

# What the system says of a full disk, and of any place that can't be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (
    *(*FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
# What it says while a place can't be read, and nothing of what is there.
_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN),
)


class UserError(ValueError):
    """Something the user can mend; `main` prints it as one line and exits with status 2."""


class TrainingFailed(UserError):
    """A training that can't go on with its numbers: it diverges, or does not fit into memory."""


def without_secrets(text: str) -> str:
    """Returns a text with user and password of the addresses in it left out."""
    text = re.sub(r"(?<!\bhf)(://)\S*@", r"\1***@", text)
    return re.sub(r"((?:^|[\s?&'])\w*password=)[^\s&']*", r"\1***", text)


def one_line(error: object) -> str:
    """Returns a message in one line, without secrets and what would move a terminal's cursor."""
    text = without_secrets(" ".join(str(error).split()))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Returns the error for a name that is not in `known`, with the nearest ones offered.

    Args:
      kind: what the name stands for, as the user would say it ("model", "config field").
      name: the name that was asked for.
      known: the names that exist.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}"
    return UserError(f"unknown {kind} {shown(name)}; {hint}")


def pip_line(extra: str) -> str:
    """Returns the command that installs an extra of this package."""
    return f"pip install 'resnet-flax-cifar[{extra}]'"


@contextlib.contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Tells in one line how to install what is missing of an extra, and what for."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {error.name}: {pip_line(extra)}") from None


def unwritable(error: BaseException) -> int | None:
    """Returns the errno for which a place could not be written; None if that is not the error."""
    number = _errno(error, _UNWRITABLE)
    if number is None and "RESOURCE_EXHAUSTED" in str(error):
        return errno.ENOSPC
    return number if number in _UNWRITABLE else None


def is_passing(error: BaseException | None) -> bool:
    """Returns whether an error says nothing of what is on disk, such as one of the network."""
    return isinstance(error, MemoryError) or _errno(error, _PASSING) in _PASSING


def _errno(error: BaseException | None, known: Sequence[int]) -> int | None:
    """Returns the errno of an error; of one that has none, which of some its message tells of.

    Libraries wrap the system's error in exceptions of their own, whose message still has it.
    """
    number: int | None = getattr(error, "errno", None)
    if number is None:
        return next((n for n in known if os.strerror(n) in str(error)), None)
    return number


def shown(value: object, text_of: Callable[[object], str] = repr) -> str:
    """Returns a value as a message shows it: shortened, and whatever its class makes of it.

    Args:
      value: the value.
      text_of: what makes a text of it, `repr` or `str`.
    """
    try:
        text = text_of(value)
    except Exception:
        return f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= 120 else f"{text[:120]} ..."


class Interrupted(Exception):
    """A signal ended a run after its state was saved; the message says how to resume.

    Attributes:
      signal_number: the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def tell(text: str) -> None:
    """Writes to standard error if it can; unlike print, also while another print is under way."""
    with contextlib.suppress(OSError):  # Ctrl-C ends a `tee` that reads it as well
        file = sys.__stderr__.fileno() if sys.__stderr__ else 2
        os.write(file, text.encode(errors="surrogateescape"))

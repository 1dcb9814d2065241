"""Fetches CIFAR-10 into the data cache, or checks that it is there.

python scripts/fetch_cifar10.py [--source auto] [--dir DIR]
"""

import argparse
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from resnet_jax.data import sources
from resnet_jax.data.download import PlainProgress
from resnet_jax.errors import UserError


class _Bars:
    """A progress bar per download, in rich."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Moves the bar of `what`, which appears the first time."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)


def fetch(source: str, directory: str | None) -> str:
    """Fetches the data with a progress bar in a terminal, in plain lines elsewhere.

    Args:
      source: a name of `sources.SOURCES`.
      directory: the user's own files or the cache folder, as in `config.data.dir`.

    Returns:
      A phrase that says where the data came from.
    """
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)

    if not console.is_terminal:
        return _fetch(source, directory, say, PlainProgress(say))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        return _fetch(source, directory, say, _Bars(progress))


def _fetch(
    source: str,
    directory: str | None,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> str:
    return sources.fetch(source, directory, say, progress)[1]


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Fetch and verify CIFAR-10.")
    parser.add_argument("--source", default="auto", help=f"one of: {', '.join(sources.SOURCES)}")
    parser.add_argument("--dir", help="a folder with the original files, or else for the cache")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        phrase = fetch(arguments.source, arguments.dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(f"CIFAR-10 is verified: {phrase}; {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

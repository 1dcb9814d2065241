"""Fetches CIFAR-10 into the data cache, or checks that it is there.

python scripts/fetch_cifar10.py [--source auto] [--dir DIR]
"""

import argparse
import contextlib
import sys
import time

from resnet_jax.data import sources
from resnet_jax.data.download import PlainProgress
from resnet_jax.errors import UserError
from resnet_jax.runs.terminal import Terminal


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Fetch and verify CIFAR-10.")
    parser.add_argument("--source", default="auto", help=f"one of: {', '.join(sources.SOURCES)}")
    parser.add_argument("--dir", help="a folder with the original files, or else for the cache")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        with contextlib.closing(Terminal()) as terminal:
            progress = terminal.bar or PlainProgress(terminal.note)
            source = arguments.source, arguments.dir
            phrase = sources.fetch(*source, terminal.note, progress)[1]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on, or by npm anew", file=sys.stderr)
        return 130
    print(f"CIFAR-10 is verified: {phrase}; {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

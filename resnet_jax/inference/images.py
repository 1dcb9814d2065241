"""The image files that are named to be classified: in folders, by patterns, on standard input."""

import concurrent.futures
import glob
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from resnet_jax.data import image_files
from resnet_jax.data.folders import below
from resnet_jax.errors import UserError
from resnet_jax.platform import num_threads

Name = str | os.PathLike[str]
_Image = str | io.BytesIO  # a path, or the content of standard input
OnBadImage = Callable[[UserError], None]

_STANDARD_INPUT = "-"
_PIECE = 32  # images that a thread reads at once
_PPM = re.compile(rb"P[1-6]\s")  # the one format whose head need not have a zero byte
_MOST_BYTES = 2**28  # of one image on standard input


def read_batches(
    names: Iterable[Name], shape: tuple[int, int, int], size: int, on_bad_image: OnBadImage
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields images in batches, reading the next batch meanwhile; no more are held in memory.

    Args:
      names: files; folders, which are searched; patterns, as the shell has them; and "-", standard
        input: an image, or names, one a line.
      shape: height, width and channels of the images; see `resnet_jax.data.image_files.read`.
      size: images in a batch.
      on_bad_image: called with the error of a file that is no readable image, which is left out;
        it may raise it.

    Yields:
      Paths, and uint8 `[images, height, width, channels]`.
    """
    images = _find(names, on_bad_image)

    def read(piece: list[_Image]) -> list[tuple[str, np.ndarray | UserError]]:
        return [(i if isinstance(i, str) else _STANDARD_INPUT, _read(i, shape)) for i in piece]

    # A task for each small image would take longer than to read it.
    with concurrent.futures.ThreadPoolExecutor(max(1, num_threads() - 1)) as pool:

        def read_next() -> list[concurrent.futures.Future[list[tuple[str, Any]]]]:
            batch = list(itertools.islice(images, size))
            return [pool.submit(read, batch[i : i + _PIECE]) for i in range(0, size, _PIECE)]

        ahead = read_next()
        while batch := [pair for piece in ahead for pair in piece.result()]:
            ahead = read_next()
            for _, error in batch:
                if isinstance(error, UserError):
                    on_bad_image(error)
            found = [(name, image) for name, image in batch if not isinstance(image, UserError)]
            if found:
                yield [name for name, _ in found], np.stack([pixels for _, pixels in found])


def _read(image: _Image, shape: tuple[int, int, int]) -> np.ndarray | UserError:
    try:
        return image_files.read_one(image, shape)
    except UserError as error:
        return error


def _find(names: Iterable[Name], on_bad_image: OnBadImage) -> Iterator[_Image]:
    """Yields the images that names stand for; of those of a folder or pattern, sorted ones."""
    for name in (os.fspath(name) for name in names):
        if name == _STANDARD_INPUT:
            yield from _standard_input(on_bad_image)
            continue
        images: Iterable[_Image] = [name]
        problem = f"no file is named as in {name!r}"
        if os.path.isdir(name):
            images, problem = _search(name, on_bad_image), f"folder {name} holds no image"
        elif glob.has_magic(name) and not os.path.lexists(name):
            found = sorted(glob.glob(name, recursive=True))
            parts = (_search(p, on_bad_image) if os.path.isdir(p) else [p] for p in found)
            images = dict.fromkeys(itertools.chain.from_iterable(parts))  # "**" names both
        image = None
        for image in images:
            yield image
        if image is None:
            on_bad_image(UserError(problem))


def _search(folder: str, on_bad_image: OnBadImage) -> Iterator[_Image]:
    def refuse(error: OSError) -> None:
        on_bad_image(UserError(f"folder {error.filename} can't be read: {error.strerror}"))

    yield from below(folder, refuse)


def _standard_input(on_bad_image: OnBadImage) -> Iterator[_Image]:
    if sys.stdin is None:
        on_bad_image(UserError("standard input is closed"))
        return
    stream = sys.stdin.buffer
    assert isinstance(stream, io.BufferedReader)
    head = stream.peek(32)[:32]
    if b"\0" in head or _PPM.match(head):  # no name has a zero byte
        yield io.BytesIO(stream.read(_MOST_BYTES))
        return
    for line in stream:
        if name := line.rstrip(b"\r\n"):
            yield from _find([os.fsdecode(name)], on_bad_image)

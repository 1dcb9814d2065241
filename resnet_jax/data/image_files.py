"""Reads single images of any usual kind, from files that are not trusted."""

import concurrent.futures
import contextlib
import io
import itertools
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from resnet_jax.errors import UserError, is_passing

# Threads read images, and none of them can ignore warnings for itself.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)  # a program's own filters win

# Formats whose readers start no other program, as that of PostScript does.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_PIXEL_LIMIT = 64_000_000  # in memory a quarter of a gigabyte; a small file may declare far more
File = str | os.PathLike[str] | io.BytesIO
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class Crop(NamedTuple):
    """A rectangle in an image, all numbers shares.

    Attributes:
      area: its area, of the image's.
      ratio: its width over its height, of what the wanted size has.
      left: what is left out at its left, of all that is left out beside it.
      top: what is left out above it, of all that is left out above and below.
    """

    area: float
    ratio: float
    left: float
    top: float


def read(paths: Sequence[File], shape: tuple[int, int, int]) -> np.ndarray:
    """Returns images as a dataset would hold them.

    Each is turned upright as its EXIF record says, scaled until it just covers the wanted size,
    and cropped at the centre. Transparent pixels show white; 16-bit greys keep their high byte; of
    an animation the first frame counts.

    Args:
      paths: the files, or their contents, in one of `FORMATS`, which is found from the content.
      shape: height, width and channels of the result; 1 channel: greys, 3: RGB.

    Returns:
      uint8 `[images, height, width, channels]`.

    Raises:
      UserError: if a file is no such image, is damaged, or has more than 64 million pixels.
    """
    images = np.empty((len(paths), *shape), np.uint8)

    def fill(index: int) -> None:
        images[index] = read_one(paths[index], shape)

    _each(fill, range(len(paths)))
    return images


def read_one(path: File, shape: tuple[int, int, int], crop: Crop | None = None) -> np.ndarray:
    """Returns one image, uint8 `[height, width, channels]`, as `read` does.

    Args:
      path: the file, or its content.
      shape: height, width and channels of the result.
      crop: what is cut out of it and scaled, bilinearly; None: the centre, as in `read`.

    Raises:
      UserError: as `read`.
    """
    return _read(path, lambda image: _pixels(image, shape, crop))


def size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the width and height of an image upright, without reading its pixels.

    Raises:
      UserError: as `read`.
    """

    def upright(image: Image.Image) -> tuple[int, int]:
        if image.format == "TIFF":  # Pillow turns these itself
            return image.size
        lies = False
        with contextlib.suppress(Exception):  # as in `_pixels`
            lies = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (image.height, image.width) if lies else image.size

    return _read(path, upright)


def unreadable(paths: Sequence[File]) -> list[int]:
    """Returns the indices of the files that `read` can't read, by reading them all.

    Raises:
      UserError: if one can't be read now, for want of memory or by an error of a disk or network.
    """

    def is_readable(path: File) -> bool:
        try:
            read_one(path, (8, 8, 3))
        except UserError as error:
            if is_passing(error.__cause__):
                raise
            return False
        return True

    return [i for i, is_fine in enumerate(_each(is_readable, paths)) if not is_fine]


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Returns what a function makes of each item, by as many threads as there are cores to use."""
    from resnet_jax.platform import num_threads  # it brings jax, which no download needs

    threads = num_threads()
    size = min(64, -(-len(items) // (8 * threads))) or 1  # a million calls of one would take 2 GB
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda piece: [function(item) for item in piece], pieces)
        return list(itertools.chain.from_iterable(found))


def _read(file: Any, use: Callable[[Image.Image], Any]) -> Any:
    """Returns what `use` makes of an opened image, or raises UserError for it."""
    path = "in memory" if isinstance(file, io.BytesIO) else file
    try:
        if file is path and not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"image {path} is no file")
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > _PIXEL_LIMIT:
                raise Image.DecompressionBombError
            return use(image)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except Image.DecompressionBombError:
        limit = f"{_PIXEL_LIMIT // 10**6} million pixels"
        raise UserError(f"image {path} has more than {limit}; make a smaller copy of it") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"image {path} is in none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # a forged file can raise anything; nothing of it is used
        reason = str(error) or type(error).__name__
        raise UserError(f"image {path} can't be read: {reason}") from error


def _pixels(
    image: Image.Image, shape: tuple[int, int, int], crop: Crop | None = None
) -> np.ndarray:
    image.load()
    with contextlib.suppress(Exception):  # the record may be damaged where the pixels are not
        ImageOps.exif_transpose(image, in_place=True)  # a copy would take time, as below
    if image.mode in _DEEP_MODES:
        image = _shallow(image)
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    is_opaque = not image.has_transparency_data
    mode = "RGB" if is_opaque else "RGBA"
    upright = image if image.mode == mode else image.convert(mode)
    height, width, channels = shape
    resampling = Image.Resampling.BILINEAR if crop else Image.Resampling.LANCZOS
    box = _box(upright.size, (width, height), crop)
    small = upright.resize((width, height), resampling, box)
    if not is_opaque:
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    return np.asarray(small.convert("L" if channels == 1 else "RGB")).reshape(shape)


def _box(
    size: tuple[int, int], wanted: tuple[int, int], crop: Crop | None
) -> tuple[float, float, float, float]:
    """Returns the left, upper, right and lower edge of what is cut out of an image, pixels."""
    (width, height), (columns, rows) = size, wanted
    if crop is None:
        scale = min(width / columns, height / rows)
        crop, across, down = Crop(1, 1, 0.5, 0.5), scale * columns, scale * rows
    else:
        scale = (crop.area * width * height / (columns * rows)) ** 0.5
        across, down = scale * columns * crop.ratio**0.5, scale * rows / crop.ratio**0.5
    across, down = min(across, width), min(down, height)
    left, top = crop.left * (width - across), crop.top * (height - down)
    return left, top, min(left + across, width), min(top + down, height)  # sums are rounded


def _shallow(image: Image.Image) -> Image.Image:
    """Returns an image of 16-bit greys with 8 bits."""
    greys = np.asarray(image)
    if greys.min() < 0 or greys.max() > 65535:
        raise ValueError("its pixels have more than 16 bits")
    return Image.fromarray((greys // 256).astype(np.uint8))


def decode_png(content: bytes, width: int, height: int) -> np.ndarray:
    """Returns the pixels of an RGB PNG, uint8 `[height, width, 3]`.

    Raises:
      ValueError: it is no RGB PNG of that size, which is checked before anything is decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if (*image.size, image.mode) != (width, height, "RGB"):
                raise ValueError(f"a PNG of {image.size}, {image.mode}, not {(width, height)}, RGB")
            return np.asarray(image)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable PNG ({error})") from error

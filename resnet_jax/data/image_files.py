"""Reads single images of any usual kind, from files that are not trusted."""

import io
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from resnet_jax.errors import UserError

# Formats whose readers start no other program, as that of PostScript does.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_PIXEL_LIMIT = 64_000_000  # in memory a quarter of a gigabyte; a small file may declare far more
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read(paths: Sequence[str | os.PathLike[str]], size: int) -> np.ndarray:
    """Returns images as a dataset would hold them.

    Each is turned upright as its EXIF record says, scaled until its shorter side has `size` pixels,
    and cropped at the centre. Transparent pixels show white; 16-bit greys keep their high byte; of
    an animation the first frame counts.

    Args:
      paths: the files, in one of `FORMATS`, which is found from the content.
      size: height and width of the result, pixels.

    Returns:
      RGB, uint8 `[images, size, size, 3]`.

    Raises:
      UserError: if a file is no such image, is damaged, or has more than 64 million pixels.
    """
    return np.stack([_read(pathlib.Path(path), size) for path in paths])


def _read(path: pathlib.Path, size: int) -> np.ndarray:
    if not os.path.isfile(path):
        raise UserError(
            f"image {path} {'is no file' if os.path.exists(path) else 'does not exist'}"
        )
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > _PIXEL_LIMIT:
                raise Image.DecompressionBombError
            return _pixels(image, size)
    except Image.DecompressionBombError:
        limit = f"{_PIXEL_LIMIT // 10**6} million pixels"
        raise UserError(f"image {path} has more than {limit}; make a smaller copy of it") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"image {path} is in none of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # a forged file can raise anything; nothing of it is used
        reason = str(error) or type(error).__name__
        raise UserError(f"image {path} can't be read: {reason}") from error


def _pixels(image: Image.Image, size: int) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP_MODES:
        upright = _shallow(upright)
    elif upright.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    is_opaque = not upright.has_transparency_data
    upright = upright.convert("RGB" if is_opaque else "RGBA")
    side = min(upright.size)
    left, top = (upright.width - side) / 2, (upright.height - side) / 2
    box = (left, top, left + side, top + side)
    small = upright.resize((size, size), Image.Resampling.LANCZOS, box)
    if not is_opaque:
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    return np.asarray(small)


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

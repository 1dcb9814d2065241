"""Decodes PNG files that may come from anywhere: the declared size is checked first."""

import io

import numpy as np
from PIL import Image


def decode(content: bytes, width: int, height: int) -> np.ndarray:
    """Returns the uint8 [height, width, 3] pixels of an RGB PNG.

    Raises:
      ValueError: it is no RGB PNG of that size.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode != "RGB":
                raise ValueError(
                    f"a PNG of {image.size} pixels, mode {image.mode}, "
                    f"instead of {(width, height)}, mode RGB"
                )
            return np.asarray(image)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable PNG ({error})") from error

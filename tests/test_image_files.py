"""Single images: the odd ones are converted, the broken ones refused by name."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from resnet_jax.data import image_files as images
from resnet_jax.errors import UserError

RED, GREEN, BLUE = (200, 30, 20), (20, 190, 40), (10, 40, 180)


def bands(width=96, height=32):
    """Returns an image of three upright bands: red, green and blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for index, colour in enumerate((RED, GREEN, BLUE)):
        pixels[:, index * width // 3 : (index + 1) * width // 3] = colour
    return Image.fromarray(pixels)


def read(path, image, size=32, **options):
    image.save(path, **options)
    (pixels,) = images.read([path], (size, size, 3))
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    return pixels


def close(pixels, colour, tolerance=6):
    return bool((np.abs(pixels.astype(int) - colour) <= tolerance).all())


@pytest.mark.parametrize("size", [(32, 32), (320, 320), (33, 32), (1, 1)])
def test_one_colour_stays_that_colour(tmp_path, size):
    assert close(read(tmp_path / "a.png", Image.new("RGB", size, RED)), RED)


def test_an_image_of_the_size_is_left_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(read(tmp_path / "a.png", Image.fromarray(pixels)), pixels)


def test_crops_the_centre(tmp_path):
    assert close(read(tmp_path / "wide.png", bands())[:, 2:-2], GREEN)
    assert close(read(tmp_path / "tall.png", bands().rotate(90, expand=True))[2:-2], GREEN)
    thin = read(tmp_path / "thin.png", bands(20_001, 1))
    assert close(thin, GREEN)


def test_the_size_is_that_of_the_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter of a turn
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(tmp_path / "b.jpg")
    Image.new("RGB", (30, 20)).save(tmp_path / "c.tiff", exif=exif)
    found = [images.size(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.tiff")]
    assert found == [(20, 30), (30, 20), (20, 30)]


def test_a_damaged_exif_record_spoils_no_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (32, 20), RED).save(path, exif=b"Exif\0\0words")
    assert images.size(path) == (32, 20)
    assert close(images.read_one(path, (20, 32, 3)), RED)


def test_turns_upright(tmp_path):
    half = Image.new("RGB", (32, 32), RED)
    half.paste(BLUE, (0, 0, 32, 16))  # blue above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = read(tmp_path / "a.png", half, exif=exif)
    assert close(pixels[:14], RED)
    assert close(pixels[18:], BLUE)


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("rgba.png", "RGBA", (*RED, 255), RED),
        ("clear.png", "RGBA", (*RED, 0), (255, 255, 255)),
        ("half.png", "RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("la.png", "LA", (90, 255), (90, 90, 90)),
        ("grey.png", "L", 90, (90, 90, 90)),
        ("bits.png", "1", 1, (255, 255, 255)),
        ("deep.png", "I;16", 90 * 256 + 7, (90, 90, 90)),
        ("deep.tiff", "I;16", 90 * 256 + 7, (90, 90, 90)),
        ("deep.ppm", "I", 90 * 256 + 90, (90, 90, 90)),
        ("cmyk.jpg", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("cmyk.tiff", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("photo.jpg", "RGB", RED, RED),
        ("photo.webp", "RGB", RED, RED),
        ("photo.bmp", "RGB", RED, RED),
        ("photo.gif", "RGB", RED, RED),
        ("photo.tiff", "YCbCr", (120, 128, 128), (120, 120, 120)),
    ],
)
def test_converts(tmp_path, name, mode, colour, expected):
    assert close(read(tmp_path / name, Image.new(mode, (40, 40), colour)), expected)


def test_converts_palettes(tmp_path):
    palette = bands().quantize(3)
    assert close(read(tmp_path / "a.png", palette)[:, 2:-2], GREEN)
    see_through = Image.new("P", (32, 32), 0)
    see_through.putpalette([*RED, *BLUE])
    assert close(read(tmp_path / "b.png", see_through, transparency=0), (255, 255, 255))


def test_takes_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.png", "a.webp"):
        pixels = read(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert close(pixels, RED), name


def declared_png(width, height):
    """Returns a PNG of a few bytes that declares any size."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def png_bytes(**options):
    stream = io.BytesIO()
    bands().save(stream, "PNG", **options)
    return stream.getvalue()


def long_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5_000_000, zip=True)
    return text


REFUSED = {
    "empty": (b"", "is in none of the formats PNG, JPEG"),
    "text": (b"just words\n" * 9, "is in none of the formats"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is in none of the"),
    "truncated": (png_bytes()[:-60], "can't be read: "),
    "bomb": (declared_png(20_000, 20_000), "has more than 64 million pixels"),
    "large": (declared_png(9_000, 9_000), "has more than 64 million pixels"),
    "huge": (declared_png(2**31 - 1, 2**31 - 1), "has more than 64 million pixels"),
    "no_pixels": (declared_png(100, 100), "can't be read: "),
    "text_bomb": (png_bytes(pnginfo=long_text()), "can't be read: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(tmp_path, name):
    content, message = REFUSED[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        images.read([path], (32, 32, 3))
    assert str(path) in str(error.value)


def test_refuses_numbers_of_unknown_range(tmp_path):
    for mode, value, message in (
        ("F", 0.5, "are floating-point"),
        ("I", 2**20, "have more than 16 bits"),
    ):
        Image.new(mode, (4, 4), value).save(tmp_path / "a.tiff")
        with pytest.raises(UserError, match=f"a.tiff can't be read: its pixels {message}"):
            images.read([tmp_path / "a.tiff"], (32, 32, 3))


def test_refuses_what_is_no_file(tmp_path):
    for path, message in ((tmp_path, "is no file"), (tmp_path / "x", "does not exist")):
        with pytest.raises(UserError, match=message):
            images.read([path], (32, 32, 3))


def test_what_is_cut_out_has_its_area_its_ratio_and_its_place():
    crop = images.Crop(0.25, 1.2, 0.0, 1.0)
    left, top, right, bottom = images._box((80, 60), (40, 20), crop)
    assert (left, bottom) == (0, 60)
    assert (right - left) * (bottom - top) == pytest.approx(1200)
    assert (right - left) / (bottom - top) / 2 == pytest.approx(1.2)


def test_what_is_cut_out_lies_in_the_image():
    rng = np.random.default_rng(0)
    for width, height, *crop in rng.random((20_000, 6)):
        size = int(1 + 500 * width), int(1 + 500 * height)
        smallest_area = 0.08
        area = smallest_area + (1 - smallest_area) * crop[0]
        for cut in (None, images.Crop(area, (4 / 3) ** (2 * crop[1] - 1), crop[2], crop[3])):
            left, top, right, bottom = images._box(size, (224, 224), cut)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]


def test_a_passing_error_condemns_no_image(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("no image")
    assert images.unreadable([tmp_path / "a.png"]) == [0]

    def fail(file, **_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match="Input/output error"):
        images.unreadable([tmp_path / "a.png"])

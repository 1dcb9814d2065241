"""Hostile, broken and merely odd images; see `hostile.cases`."""

import io
import random
import struct
import zlib

import numpy as np
from hostile.cases import written
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(width, height, data=b"", more=b"", depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more
    return start + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def cases():
    picture = Image.fromarray(NOISE)
    whole = encoded(picture)
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture]}
    good = {
        "one_pixel.png": encoded(Image.new("RGB", (1, 1))),
        "thin.png": encoded(Image.new("RGB", (20_000, 1))),
        "deep.png": encoded(Image.new("I;16", (40, 40), 40_000)),
        "deep_colour.png": png(2, 2, (b"\0" + bytes(12)) * 2, depth=16),
        "alpha.png": encoded(picture.convert("RGBA")),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "palette.png": encoded(picture.quantize(7)),
        "animated.gif": encoded(picture, "GIF", **frames),
        "misnamed.txt": whole,
        "line\nbreak.png": whole,
        "🐍 \udcff.png": whole,
    }
    broken = {
        "empty": b"",
        "one_byte": b"\x89",
        "text": "just words\n" * 100,
        "html": "<html><img src=x onerror=alert(1)></html>",
        "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        "postscript": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch canary) run\n",
        "pdf": b"%PDF-1.4\n" + bytes(200),
        "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
        "truncated": whole[: len(whole) // 2],
        "no_pixels": png(100, 100),
        "bomb": png(20_000, 20_000, bytes(1000)),
        "real_bomb": lambda: png(9_000, 9_000, bytes(9_000 * 9_000 // 8), depth=1, colour=0),
        "huge": png(2**31 - 1, 2**31 - 1),
        "no_size": png(0, 0),
        "bad_checksum": whole[:20] + b"\xff" + whole[21:],
        "text_bomb": lambda: png(9, 9, more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))),
        "profile_bomb": lambda: png(
            9, 9, more=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)))
        ),
        "gif_huge": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08",
        "tiff_loop": b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0",
        "bmp_huge": b"BM"
        + bytes(12)
        + struct.pack("<IiiHHIIiiII", 40, 10**6, 10**6, 1, 24, *[0] * 6),
        "ppm_huge": b"P6 1000000 1000000 255\n",
        "floats": encoded(Image.new("F", (4, 4), 0.5), "TIFF"),
    }
    predict = "--mode=predict", "--workdir={run}", "{file}"
    for name, content in good.items():
        yield written(
            f"image/{name.encode('unicode_escape').decode()}", None, name, content, *predict
        )
    for name, content in broken.items():
        yield written(f"image/{name}", f"{name}.png", f"{name}.png", content, *predict)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        content, generator = encoded(picture, kind), random.Random(kind)
        cut = content[: generator.randrange(4, len(content) // 3)]
        yield written(f"image/cut_{kind}", f"a.{kind}", f"a.{kind}", cut, *predict)
    for name in ("empty", "loop", "no.png", "/dev/zero", "/proc/self/mem", "a" * 5000):
        case = f"image/path_{name[:9].encode('unicode_escape').decode()}"
        yield written(case, name[:5], "a", "", *predict[:2], name)

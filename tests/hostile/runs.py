"""Hostile and broken folders of runs; see `hostile.cases`.

What can be mended, or is not needed, may be passed over: then the call works. It never hangs,
executes or writes elsewhere, and what it can't use it refuses in one line.
"""

import hashlib
import itertools
import json
import os
import pathlib
import shutil
import zlib

import tensorstore
from hostile.cases import CODE, CONFIG, MAY_WORK, Case

NESTED = "[" * 100_000

TEXTS = {
    "empty": "",
    "text": "just words",
    "null": "null",
    "number": "3",
    "list": "[]",
    "nothing": "{}",
    "deep": NESTED,
    "deep_dict": '{"a":' * 100_000,
    "nan": '{"seed": NaN}',
    "digits": '{"seed": ' + "9" * 5000 + "}",
    "open": "{",
    "nul": "\0" * 100,
    "large": json.dumps({"seed": "x" * 3_000_000}),
    "bytes": b"\xff\xfe{}",
}
CHANGES = {
    "extra": ("no_such", 1),
    "text_seed": ("seed", "0"),
    "bool_seed": ("seed", True),
    "list_seed": ("seed", [0]),
    "null_seed": ("seed", None),
    "number_data": ("data", 3),
    "list_data": ("data", []),
    "unknown_model": ("model.name", "../../canary"),
    "code_model": ("model.name", CODE),
    "other_model": ("model.name", "cnn"),
    "many_classes": ("model.num_classes", 1_000_000),
    "no_options": ("model.options", None),
    "deep_options": ("model.options", {"a": {"b": {"c": {}}}}),
    "weights_option": ("model.options", {"weights": "/etc/passwd"}),
    "name_option": ("model.options", {"name": "x", "parent": None}),
    "many_blocks": ("model.options", {"stage_sizes": [10**9]}),
    "blocks": ("model.options", {"stage_sizes": [1] * 10_000}),
    "wide": ("model.options", {"stage_sizes": [1], "num_filters": [10**6]}),
    "text_width": ("model.options", {"num_filters": "8"}),
    "large_image": ("data.image_size", 1024),
    "odd_class": ("data.classes", [99]),
    "twice_a_class": ("data.classes", [3, 3]),
    "unknown_optimizer": ("optimizer.name", "os.system"),
    "momentum": ("optimizer.options", {"momentum": "x"}),
    "pattern": ("optimizer.frozen", "((("),
    "stage": ("init.cached_stage", 50),
    "no_deviation": ("data.std", [0.0, 0.0, 0.0]),
    "epochs": ("num_epochs", 10**30),
}
SCORE = {"kind": "score", "split": "val", "step": 4, "epoch": 1.0, "loss": 1.0, "seconds": 1.0}
SCORE |= {"accuracy": 10.0}
FINAL = {"test_loss": 1.0, "test_accuracy": 1.0, "best_epoch": 1.0, "best_score": 1.0}
FINAL |= {"kind": "final", "step": 12, "best_test_accuracy": None, "train_accuracy": None}
LINES = {
    "deep": NESTED,
    "bytes": b"\xff\xfe}",
    "digits": '{"kind": "score", "step": ' + "9" * 5000 + "}",
    "text_accuracy": json.dumps(SCORE | {"accuracy": "x"}),
    "nan_accuracy": json.dumps(SCORE | {"accuracy": float("nan")}),
    "list_kind": json.dumps(SCORE | {"kind": []}),
    "list_split": json.dumps(SCORE | {"split": []}),
    "other_step": json.dumps(SCORE | {"step": 999}),
    "final": json.dumps(SCORE | FINAL),
    "text_final": json.dumps(SCORE | FINAL | {"best_test_accuracy": "x"}),
    "short_final": json.dumps(SCORE | {"kind": "final", "step": 12}),
}
FILES = "config.json", "dataset.json", "metrics.jsonl", "lock", "starts.jsonl"
PLACES = *FILES, "events", "checkpoints"


def summed(line):
    """Returns a line of metrics.jsonl with the right checksum, as it was otherwise."""
    content = line if isinstance(line, bytes) else line.encode()
    body = content.removesuffix(b"}")
    return b'%s, "crc32": %d}' % (body, zlib.crc32(body))


def copied(room, run):
    return pathlib.Path(shutil.copytree(run, room / "run"))


def case(name, change, mode="export", names=MAY_WORK):
    """Returns a case of a run's copy that `change` has been at, in its folder."""

    def arguments(room, run):
        folder = copied(room, run)
        change(folder)
        flags = {
            "export": [f"--output={room}/x.safetensors"],
            "predict": [f"{room}/file.txt"],
            "eval": [],
            "train": [CONFIG],
        }
        start = [] if mode == "train" else [f"--mode={mode}"]
        return [*start, f"--workdir={folder}", *flags[mode]]

    return Case(f"run/{mode}_{name}", arguments, names)


def with_text(file, text):
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / file).write_bytes(content)


def with_line(text):
    def change(folder):
        file = folder / "metrics.jsonl"
        file.write_bytes(file.read_bytes() + summed(text) + b"\n")

    return change


def removed(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def replaced(place, kind):
    """Returns a change that puts something else in the place of a file or folder."""

    def change(folder):
        path = folder / place
        removed(path)
        outside = folder.parent.parent / "canary"  # which may not come to be
        make = {
            "gone": lambda: None,
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "zeros": lambda: path.symlink_to("/dev/zero"),
            "loop": lambda: path.symlink_to(path),
            "outside": lambda: path.symlink_to(outside),
            "file": lambda: path.write_text("words"),
        }
        make[kind]()

    return change


def steps(folder):
    return sorted((folder / "checkpoints").iterdir())


def each_file(change):
    """Returns a change of all files of a run's checkpoints."""

    def apply(folder):
        for path in sorted((folder / "checkpoints").rglob("*")):
            if path.is_file():
                change(path)

    return apply


def flipped(index):
    """Returns a change of one bit in every file of the checkpoints, somewhere."""

    def change(path):
        content = bytearray(path.read_bytes())
        if content:
            content[index * 7919 % len(content)] ^= 1 << index % 8
            path.write_bytes(content)

    return each_file(change)


def named(suffix, content):
    return each_file(lambda path: path.name == suffix and path.write_bytes(content))


def with_array(side, is_stored):
    """Returns a change that makes an array of all checkpoints square, of equal or of no chunks."""

    def change(folder):
        for step in steps(folder):
            base = f"file://{(step / 'state').absolute()}/"
            kvstore = {"driver": "ocdbt", "base": base}
            metadata = {"shape": [side, side], "chunks": [2**13, 2**13], "dtype": "<f4"}
            spec = {"driver": "zarr", "kvstore": kvstore, "path": "params/head/bias"}
            spec["metadata"] = metadata | {"compressor": {"id": "zstd", "level": 1}}
            array = tensorstore.open(spec, create=True, delete_existing=True).result()
            if is_stored:
                array[: 2**13, : 2**13].write(1.0).result()
                store = tensorstore.KvStore.open(kvstore).result()
                chunk = store.read("params/head/bias/0.0").result().value
                for row, column in itertools.product(range(side // 2**13), repeat=2):
                    store.write(f"params/head/bias/{row}.{column}", chunk).result()

    return change


def forged(**changes):
    """Returns a change of what is saved beside a state, with a digest that is right."""

    def change(folder):
        for step in steps(folder):
            file = step / "run" / "metadata"
            run = json.loads(file.read_text()) | changes
            file.write_text(json.dumps(run))
            digests = json.loads((step / "digests" / "metadata").read_text())
            text = json.dumps(run, sort_keys=True)
            digests["run"] = hashlib.sha256(text.encode()).hexdigest()
            (step / "digests" / "metadata").write_text(json.dumps(digests))

    return change


def with_field(path, value):
    """Returns a change of one field of the config in all checkpoints."""

    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        *groups, name = path.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
        forged(config=config)(folder)

    return change


RUNS = {
    "format": {"format": 99},
    "text_format": {"format": "1"},
    "no_config": {"config": None},
    "text_config": {"config": "x"},
    "empty_config": {"config": {}},
    "no_dataset": {"dataset": None},
    "empty_dataset": {"dataset": {}},
    "odd_dataset": {"dataset": {"name": {"a": []}, "digest": 3, "class_names": "x"}},
    "other_digest": {"dataset": {"name": "x" * 10_000, "digest": "y\n"}},
    "text_scores": {"scores": "x"},
    "number_scores": {"scores": [1, 2]},
    "long_scores": {"scores": [[1, 2, 3]]},
    "text_accuracy": {"scores": [[4, "x"]]},
    "nan_accuracy": {"scores": [[4, float("nan")]]},
    "huge_accuracy": {"scores": [[4, 10**400]]},
    "other_step": {"scores": [[999, 100.0], [4.5, 1], [-4, 2]]},
    "text_records": {"num_records": "x"},
    "many_records": {"num_records": 10**9},
}


def with_foreign(folder):
    for name in ("7", "8.orbax-checkpoint-tmp-3", "-1", "9" * 30, "x", "..."):
        (folder / "checkpoints" / name).mkdir()
    (folder / "checkpoints" / "99").write_text("words")
    (folder / "checkpoints" / "98").symlink_to("/etc")


def cases():
    for name, text in TEXTS.items():
        yield case(f"config_{name}", with_text("config.json", text), "train")
        yield case(f"metrics_{name}", with_text("metrics.jsonl", text), "train")
    yield case("config_bytes", with_text("config.json", TEXTS["bytes"]))
    for name, (path, value) in CHANGES.items():
        yield case(f"field_{name}", with_field(path, value))
        yield case(f"field_{name}", with_field(path, value), "train")
    for name, text in LINES.items():
        yield case(f"record_{name}", with_line(text), "train")
    for place in PLACES:
        for kind in ("gone", "folder", "pipe", "zeros", "loop", "outside", "file"):
            yield case(f"{place}_{kind}", replaced(place, kind))
            if kind not in ("gone", "file") or place == "config.json":
                yield case(f"{place}_{kind}", replaced(place, kind), "train")
    for index in range(8):
        yield case(f"flipped_{index}", flipped(index))
    changes = {
        "emptied": each_file(lambda path: path.write_bytes(b"")),
        "truncated": each_file(lambda path: path.write_bytes(path.read_bytes()[:20])),
        "blanked": each_file(lambda path: path.write_bytes(bytes(path.stat().st_size))),
        "deleted": each_file(pathlib.Path.unlink),
        "huge_array": with_array(2**23, is_stored=False),
        "large_array": with_array(2**15, is_stored=True),
        "deep_metadata": named("_METADATA", NESTED.encode()),
        "list_metadata": named("_METADATA", b"[]"),
        "text_metadata": named("_CHECKPOINT_METADATA", b"words"),
        "deep_digests": named("metadata", NESTED.encode()),
        "list_digests": named("metadata", b"[1]"),
        "number_digests": named("metadata", b'{"params/head/bias": 3}'),
        "no_digests": named("metadata", b"{}"),
        "code_metadata": named("_METADATA", b"\x80\x04\x8c\x05posix\x8c\x06system\x93."),
        "foreign": with_foreign,
    }
    for name, change in changes.items():
        yield case(f"checkpoints_{name}", change)
    for name, run in RUNS.items():
        for mode in ("export", "train"):
            yield case(f"forged_{name}", forged(**run), mode)
    for name in ("emptied", "huge_array", "large_array", "foreign", "list_digests"):
        yield case(f"checkpoints_{name}", changes[name], "train")
        yield case(f"checkpoints_{name}", changes[name], "eval")
    yield case("good", lambda folder: None, names=None)
    yield case("good", lambda folder: None, "train", names=None)

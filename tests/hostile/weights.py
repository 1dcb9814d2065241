"""Hostile and broken files of weights; see `hostile.cases`."""

import io
import json
import pickle
import random
import zipfile

import numpy as np
from hostile.cases import CODE, CONFIG, Case, written
from torch_format import legacy_start, one_tensor, state_dict_pickle, zip_file, zip_weights

from resnet_jax import load_run
from resnet_jax.weights.info import HEADER
from resnet_jax.weights.torch_files import write_safetensors
from resnet_jax.weights.torch_weights import state_dict

TRAIN = CONFIG, "--config.num_epochs=0"

CALLS = {
    "os.system": "os.system",
    "eval": "builtins.eval",
    "getattr": "builtins.getattr",
    "torch_load": "torch.load",
    "rebuild": "torch._utils._rebuild_tensor_v3",
    "storage": "torch.storage._load_from_bytes",
    "reconstruct": "numpy.core.multiarray._reconstruct",
    "dotted": "collections.OrderedDict.fromkeys.__globals__",
    "home": "resnet_jax.main.main",
}


def gadget(name, protocol=2):
    """Returns a pickle that calls a function by its name with a command as its argument."""
    module, _, function = name.rpartition(".")
    if protocol == 2:
        return (
            b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X\x0f\0\0\0touch ../canary\x85R."
        )
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, function))
    return b"\x80\x04" + texts + b"\x93\x8c\x0ftouch ../canary\x85R."


def chain():
    """Returns a pickle that would reach `system` by attributes: getattr(import("os"), "system")."""
    return (
        b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\nX\x02\0\0\0os\x85R"
        b"X\x06\0\0\0systemtRX\x0f\0\0\0touch ../canary\x85R."
    )


def built():
    """Returns a pickle that fills the state of an allowed object with attributes."""
    return b"\x80\x02ccollections\nOrderedDict\n)R}X\x08\0\0\0__class__cos\nsystem\nsb."


def legacy(value):
    return legacy_start() + value + pickle.dumps([], 2)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def f32(shape, *offsets, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


def bomb():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", bytes(2**28))
    return stream.getvalue()


def slipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../canary/data.pkl", pickle.dumps({}, 2))
        archive.writestr("/tmp/canary", "x")
    return stream.getvalue()


def weights_files():
    state = {"w": np.zeros((4, 3), np.float32)}
    good = zip_file(state_dict_pickle(state), {"data/0": state["w"].tobytes()}.items())
    huge = {"int": 2**62, "negative": -1, "large": 10**12}
    files = {
        "empty": b"",
        "text": b"just words\n" * 20,
        "zip_of_nothing": zip_file(b"", root="other"),
        "zip_start": b"PK\x03\x04",
        "zip_bomb": bomb,
        "zip_slip": slipped(),
        "script": zip_file(pickle.dumps({}, 2), {"constants.pkl": b"", "code/a.py": CODE}.items()),
        "big_endian": zip_file(pickle.dumps({}, 2), {"byteorder": b"big"}.items()),
        "no_storage": zip_file(state_dict_pickle(state)),
        "short_storage": zip_file(state_dict_pickle(state), {"data/0": b"123"}.items()),
        "slip_key": zip_file(one_tensor(4, (4,), (1,), key="../../../canary")),
        "other_model": good,
        "truncated": good[: len(good) // 2],
        "no_end": good[:-30],
        "list": zip_file(pickle.dumps([1, 2], 2)),
        "nothing": zip_file(pickle.dumps({}, 2)),
        "texts": zip_file(pickle.dumps({"a": "b"}, 2)),
        "itself": zip_file(b"\x80\x02}q\0X\x05\0\0\0modelh\0s."),
        "deep": zip_file(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
        "deep_lists": zip_file(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "deep_dicts": zip_file(
            b"\x80\x02" + b"}X\x05\0\0\0model" * 50_000 + b"}" + b"s" * 50_000 + b"."
        ),
        "deep_key": zip_file(b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns."),
        "doubling": zip_file(b"\x80\x02]" + b"2\x86" * 100 + b"."),
        "memo": zip_file(b"\x80\x02]r\xff\xff\xff\xff."),
        "bad_memo": zip_file(b"\x80\x02j\xff\xff\xff\x00."),
        "long_text": zip_file(b"\x80\x02X\xff\xff\xff\x7fabc."),
        "long_frame": zip_file(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."),
        "long_bytes": zip_file(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."),
        "long_number": zip_file(b"\x80\x02\x8b\xff\xff\xff\x7f."),
        "digits": zip_file(b"\x80\x02L" + b"9" * 100_000 + b"L\n."),
        "underflow": zip_file(b"\x80\x02000."),
        "no_stop": zip_file(b"\x80\x02}"),
        "opcodes": zip_file(bytes(range(256))),
        "persistent": zip_file(b"\x80\x02X\x06\0\0\0canaryQ."),
        "persistent_text": zip_file(b"Pcanary\n."),
        "extension": zip_file(b"\x80\x02\x82\x01."),
        "instance": zip_file(b"(X\x0f\0\0\0touch ../canaryios\nsystem\n."),
        "object": zip_file(b"(cos\nsystem\nX\x0f\0\0\0touch ../canaryo."),
        "new_object": zip_file(b"\x80\x02cos\nsystem\nX\x0f\0\0\0touch ../canary\x85\x81."),
        "chain": zip_file(chain()),
        "built": zip_file(built()),
        "large_shape": zip_file(
            one_tensor(4, (10**6, 10**6), (0, 0)), {"data/0": bytes(16)}.items()
        ),
        "large_stride": zip_file(one_tensor(4, (2, 2), (2**62, 1)), {"data/0": bytes(16)}.items()),
        "large_offset": zip_file(
            one_tensor(4, (1,), (1,), offset=2**62), {"data/0": bytes(16)}.items()
        ),
        "large_size": zip_file(one_tensor(2**62, (4,), (1,)), {"data/0": bytes(16)}.items()),
        "many_axes": zip_file(
            one_tensor(4, (1,) * 1000, (0,) * 1000), {"data/0": bytes(16)}.items()
        ),
        "negative_shape": zip_file(one_tensor(4, (-1,), (1,)), {"data/0": bytes(16)}.items()),
        "odd_type": zip_file(
            one_tensor(4, (4,), (1,), kind="QInt8Storage"), {"data/0": bytes(16)}.items()
        ),
        "legacy_text": legacy(b"X\x05"),
        "legacy_keys": legacy(state_dict_pickle(state)),
        "safetensors_long": (2**63).to_bytes(8, "little") + b"{",
        "safetensors_short": safetensors(b"{")[:9],
        "safetensors_text": safetensors(b"{nothing"),
        "safetensors_list": safetensors(b"{}")[:8] + b"[]",
        "safetensors_deep": safetensors(b'{"a":' * 50_000),
        "safetensors_shape": safetensors(f32([2**31, 2**31], 0, 16), bytes(16)),
        "safetensors_negative": safetensors(f32([-4], 0, 16), bytes(16)),
        "safetensors_float": safetensors(f32([4.0], 0, 16), bytes(16)),
        "safetensors_offsets": safetensors(f32([4], 8, 24), bytes(24)),
        "safetensors_reverse": safetensors(f32([4], 16, 0), bytes(16)),
        "safetensors_beyond": safetensors(f32([4], 0, 2**60), bytes(16)),
        "safetensors_dtype": safetensors(f32([4], 0, 16, dtype="F8"), bytes(16)),
        "safetensors_more": safetensors(f32([4], 0, 16), bytes(17)),
        "safetensors_name": safetensors({"../../canary": f32([4], 0, 16)["w"]}, bytes(16)),
        "safetensors_nan": safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'),
        "nan_weights": None,
        **{f"size_{name}": zip_file(one_tensor(size, (1,), (1,))) for name, size in huge.items()},
    }
    for name, function in CALLS.items():
        files[f"{name}_zip"] = zip_file(gadget(function))
        files[f"{name}_legacy"] = legacy(gadget(function, protocol=4))
    return {name: content for name, content in files.items() if content is not None}


def weights():
    flags = *TRAIN, "--workdir={room}/run", "--config.init.weights={file}"
    for name, content in weights_files().items():
        yield written(f"weights/{name}", "weights.pth", "weights.pth", content, *flags)
    for index in range(12):
        yield Case(f"weights/damaged_{index}", damaged_export(index), "weights.pth")
    yield Case("weights/not_finite", not_finite, "weights.safetensors")


def train_flags(room, file):
    return [*TRAIN, f"--workdir={room}/run", f"--config.init.weights={room}/{file}"]


def damaged_export(index):
    """Returns a case of a real file with some bytes changed, or cut off."""

    def make(room, run):
        generator = random.Random(index)
        content = bytearray(zip_weights(exported(run)))
        if index % 3:
            for _ in range(generator.randrange(1, 40)):
                content[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        else:
            del content[generator.randrange(100, len(content) - 100) :]
        (room / "weights.pth").write_bytes(content)
        return train_flags(room, "weights.pth")

    return make


def headers():
    """Returns what a file may say of itself, by names; see `resnet_jax.WeightsInfo`."""
    good = {
        "model": "resnet_small",
        "options": {},
        "dataset": "sample",
        "image_size": 0,
        "image_shape": [32, 32, 3],
        "class_names": ["a", "b"],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "test_time_augmentation": "none",
        "num_parameters": 1,
        "provenance": {},
    }
    changed = {
        "fields": {"extra": 1},
        "channels": {"image_shape": [32, 32, 10**9]},
        "images": {"image_shape": [10**6, 10**6, 3]},
        "resized": {"image_shape": [99_999, 99_999, 3], "image_size": 32},
        "no_images": {"image_shape": [0, 0, 0]},
        "fractions": {"image_shape": [32.5, 32, 3]},
        "size": {"image_size": 10**9},
        "escapes": {"class_names": ["\x1b]0;canary\a", "b"]},
        "surrogates": {"class_names": ["\udcff", "b"]},
        "long_name": {"class_names": ["a" * 10**6, "b"]},
        "no_texts": {"class_names": [1, 2]},
        "many_names": {"class_names": ["a"] * 10**6},
        "nan": {"mean": [float("nan")] * 3},
        "huge": {"mean": [10**400] * 3},
        "zero": {"std": [0] * 3},
        "model_path": {"model": "../../canary"},
        "model_code": {"model": CODE},
        "deep_model": {"options": {"stage_sizes": [10**6]}},
        "deep_blocks": {"options": {"stage_sizes": [333] * 3, "num_convs": 1000}},
        "deep_head": {"model": "alexnet", "options": {"hidden_sizes": [1] * 10**6}},
        "wide_model": {"options": {"num_filters": [10**6] * 3}},
        "code_option": {"options": {"activation": CODE}},
        "named_option": {"options": {"name": "x"}},
        "classes_option": {"options": {"num_classes": 3}},
        "parent_option": {"options": {"parent": None}},
        "no_options": {"options": [1]},
        "views": {"test_time_augmentation": {}},
        "accuracy": {"test_accuracy": 10**400},
    }
    texts = {name: json.dumps(good | change) for name, change in changed.items()}
    texts |= {"empty": "", "list": "[]", "text": '"x"', "deep": "[" * 10**6, "code": CODE}
    texts |= {"digits": "9" * 10**6, "nothing": "{}"}
    return texts


def headed():
    for name, text in headers().items():
        content = safetensors({"__metadata__": {HEADER: text}, **f32([4], 0, 16)}, bytes(16))
        flags = "--mode=predict", "--weights={file}", "{file}"
        yield written(f"weights/header_{name}", "a.safetensors", "a.safetensors", content, *flags)


def exported(run):
    restored = load_run(run)
    return state_dict(restored.model, restored.variables)


def not_finite(room, run):
    nan = {name: np.full_like(array, np.nan) for name, array in exported(run).items()}
    write_safetensors(room / "weights.safetensors", nan)
    return train_flags(room, "weights.safetensors")


def cases():
    yield from weights()
    yield from headed()

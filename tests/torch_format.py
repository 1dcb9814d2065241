"""Makes files as PyTorch does, without PyTorch, whole or however wrong."""

import io
import math
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype("float32"): "Float",
    np.dtype("float16"): "Half",
    np.dtype(ml_dtypes.bfloat16): "BFloat16",
    np.dtype("float64"): "Double",
    np.dtype("int64"): "Long",
    np.dtype("bool"): "Bool",
}
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}


def zip_file(data_pickle, records=(), root="archive"):
    """Returns a file of the zip format, of a pickle and of (name, bytes) records."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data_pickle)
        for name, data in records:
            archive.writestr(f"{root}/{name}", data)
    return stream.getvalue()


def legacy_start(system=SYSTEM):
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system))


def zip_weights(tensors):
    """Returns a file of the zip format that holds a state dict of arrays."""
    records = [(f"data/{i}", array.tobytes()) for i, array in enumerate(tensors.values())]
    return zip_file(state_dict_pickle(tensors), [("byteorder", b"little"), *records])


def legacy_weights(tensors):
    """Returns a file of the format of before 2020 that holds a state dict of arrays."""
    keys = [str(i) for i in range(len(tensors))]
    data = [struct.pack("<Q", array.size) + array.tobytes() for array in tensors.values()]
    start = legacy_start() + state_dict_pickle(tensors) + pickle.dumps(keys, 2)
    return b"".join([start, *data])


def state_dict_pickle(tensors):
    """Returns the pickle of a state dict whose i-th tensor is the whole of storage `i`."""
    parts = []
    for key, (name, array) in enumerate(tensors.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        kind = f"{STORAGES[array.dtype]}Storage"
        parts.append(text(name) + tensor(array.size, array.shape, strides, str(key), kind))
    return b"\x80\x02" + global_("collections", "OrderedDict") + b")R(" + b"".join(parts) + b"u."


def tensor(size, shape, strides, key="0", kind="FloatStorage", offset=0):
    """Returns the opcodes that build a tensor, however wrong."""
    storage = b"(" + text("storage") + global_("torch", kind) + text(key) + text("cpu")
    storage += number(size) + b"tQ"
    arguments = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89}"
    return global_("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def one_tensor(*arguments, **options):
    """Returns the pickle of a state dict of one tensor, `w`."""
    return b"\x80\x02}" + text("w") + tensor(*arguments, **options) + b"s."


def global_(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"

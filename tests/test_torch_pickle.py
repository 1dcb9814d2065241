"""Pickles of PyTorch files: hostile and impossible ones are refused, and nothing is executed."""

import os
import pickle
import subprocess

import numpy as np
import pytest
from test_torch_files import legacy_start, refusal, zip_with

from resnet_jax.weights import torch_pickle
from resnet_jax.weights.torch_files import TorchFile


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    touch = f"touch {marker}"
    return {
        "posix.system": pickle.dumps({"a": Call(os.system, touch)}),
        "__builtin__.eval": pickle.dumps(Call(eval, f"open({str(marker)!r}, 'w')"), 2),
        "builtins.getattr": pickle.dumps(Call(getattr, 1, "real")),
        "subprocess.Popen": pickle.dumps(Call(subprocess.Popen, touch)),
        "os.system": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "the pickle opcode INST": b"(ios\nsystem\n.",
        "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(C\x01atR.",
        "torch._utils.os.system": b"\x80\x04\x8c\x0ctorch._utils\x8c\x09os.system\x93.",
        "numpy.load": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    }


@pytest.mark.parametrize("name", hostile("x"))
@pytest.mark.parametrize("is_zip", [True, False])
def test_hostile_pickles_are_refused_by_the_global(tmp_path, name, is_zip):
    marker = tmp_path / "executed"
    data = hostile(marker)[name]
    path = tmp_path / "a.pth"
    if is_zip:
        zip_with(path, data)
    else:
        path.write_bytes(legacy_start() + data)
    assert f" asks for {name}," in refusal(path)
    assert not marker.exists()


ODD_PICKLES = {
    "empty": b"",
    "stop": b".",
    "underflow": b"\x80\x020.",
    "no stop": b"\x80\x02}",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuple": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.",
    "deep marks": b"\x80\x02" + b"(" * 100_000 + b".",
    "huge memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "missing memo": b"\x80\x02h\x05.",
    "huge string": b"\x80\x02X\xff\xff\xff\x7fa.",
    "huge bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0fa.",
    "huge bytearray": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fa.",
    "huge number": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "long decimal": b"I" + b"9" * 10_000 + b"\n.",
    "self-made list": b"\x80\x02]q\x00h\x00a.",
    "append to a tuple": b"\x80\x02)Na.",
    "call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "call of a storage": b"ctorch\nFloatStorage\n)R.",
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
    "tensor of no arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "storage of nothing": b"NQ.",
    "storage of numbers": b"(K\x01K\x02K\x03K\x04K\x05tQ.",
    "extension": b"\x80\x02\x82\x01.",
    "number": b"K\x01.",
    "dict of numbers": b"}X\x01\x00\x00\x00aK\x01s.",
}


@pytest.mark.parametrize("name", ODD_PICKLES)
@pytest.mark.parametrize("is_zip", [True, False])
def test_odd_pickles_are_refused(tmp_path, name, is_zip):
    path = tmp_path / "a.pth"
    if is_zip:
        zip_with(path, ODD_PICKLES[name])
    else:
        path.write_bytes(legacy_start() + ODD_PICKLES[name])
    refusal(path)


def tensor_pickle(shape, strides, offset=0, size=4):
    """The pickle of one tensor of whatever shape."""
    data = torch_pickle.dump({"a": np.zeros(4, np.float32)})
    old = _numbers((4,)) + _numbers((1,))
    assert data.count(old) == 1
    data = data.replace(_number(0) + old, _number(offset) + _numbers(shape) + _numbers(strides))
    return data.replace(_number(4) + b"tQ", _number(size) + b"tQ")


def _number(number):
    encoded = pickle.encode_long(number)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def _numbers(numbers):
    return b"(" + b"".join(map(_number, numbers)) + b"t"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (((2**62,), (1,)), "tensor a is larger than its storage"),
        (((2**40, 2**40), (0, 0)), "tensor a is larger than its storage"),
        (((10**30,), (0,)), "tensor a is larger than its storage"),
        (((5,), (1,)), "tensor a is larger than its storage"),
        (((4,), (2,)), "tensor a is larger than its storage"),
        (((4,), (1,), 1), "tensor a is larger than its storage"),
        (((1,) * 200, (1,) * 200), "describes a tensor wrongly"),
        (((-1,), (1,)), "no whole numbers"),
        (((4,), (-1,)), "no whole numbers"),
        (((4,), (1, 1)), "describes a tensor wrongly"),
        (((4,), (1,), 0, 2**40), "another length than declared"),
        (((4,), (1,), 0, -4), "describes a storage wrongly"),
    ],
)
def test_impossible_shapes(tmp_path, tensor, message):
    path = zip_with(tmp_path / "a.pth", tensor_pickle(*tensor), **{"data/0": bytes(16)})
    assert message in refusal(path)


def test_the_crafted_tensor_is_good_otherwise(tmp_path):
    path = zip_with(tmp_path / "a.pth", tensor_pickle((2, 2), (1, 2)), **{"data/0": bytes(16)})
    assert TorchFile(path).tensors["a"].shape == (2, 2)

"""Files of PyTorch weights: every format, dtype and layout; damaged and hostile files."""

import argparse
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_format
from torch_format import legacy_start, one_tensor, zip_file

from resnet_jax.errors import UserError
from resnet_jax.weights.torch_files import TorchFile, write_safetensors

RNG = np.random.default_rng(0)
WEIGHTS = {
    "conv.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "conv.bias": RNG.normal(size=4).astype(np.float16),
    "half": RNG.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
    "double": RNG.normal(size=(2, 3)),
    "count": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
}


def refusal(path):
    """What a file is refused with: one line that names it, and no other exception."""
    with pytest.raises(UserError) as caught:
        TorchFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


FORMATS = {
    "zip": torch_format.zip_weights(WEIGHTS),
    "legacy": torch_format.legacy_weights(WEIGHTS),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_tensors_of_a_file(tmp_path, kind):
    (tmp_path / "a.pth").write_bytes(FORMATS[kind])
    file = TorchFile(tmp_path / "a.pth")
    assert_same(file.tensors, WEIGHTS)
    assert not any(array.flags.writeable for array in file.tensors.values())
    file.release()
    assert_same(file.tensors, WEIGHTS)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: array.T for name, array in WEIGHTS.items()})
    file = TorchFile(path)
    assert_same(file.tensors, {name: array.T for name, array in WEIGHTS.items()})
    assert not any(array.flags.writeable for array in file.tensors.values())
    assert os.listdir(tmp_path) == [path.name]


def test_torch_is_not_imported(tmp_path):
    (tmp_path / "a.pth").write_bytes(FORMATS["zip"])
    code = (
        "import sys; from resnet_jax.weights.torch_files import TorchFile; TorchFile(sys.argv[1]); "
    )
    code += "assert not {'torch', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.pth"], check=True)


# What PyTorch writes and reads


def torch_weights(torch):
    """A state dict of all dtypes, of views of one storage, of strides and of parameters."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        **{f"{d}".partition(".")[2]: torch.randn(3, 2).to(d) for d in _dtypes(torch)},
        "int64": torch.tensor(5),
        "bool": torch.tensor([True, False]),
        "row": base[2],
        "part": base[1:4, 2:7:2],
        "transposed": base.t(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "empty": torch.zeros(0, 2),
    }


def _dtypes(torch):
    return torch.float32, torch.float16, torch.bfloat16, torch.float64


def as_numpy(tensor):
    tensor = tensor.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch(tmp_path, is_zip, protocol):
    torch = pytest.importorskip("torch")
    weights = torch_weights(torch)
    path = tmp_path / "weights.pt"
    zipped = {"_use_new_zipfile_serialization": is_zip, "pickle_protocol": protocol}
    torch.save(weights, path, **zipped)
    assert_same(TorchFile(path).tensors, {k: as_numpy(v) for k, v in weights.items()})


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", "model_state_dict"])
def test_wrappers_and_prefixes(tmp_path, is_zip, wrapper):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "best": np.float64(91.5),
        "best_tensor": torch.tensor(1.0),
        "args": argparse.Namespace(lr=0.1),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7]).state_dict(),
        wrapper: torch.nn.DataParallel(module).state_dict(),
    }
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert_same(TorchFile(tmp_path / "a.pth").tensors, expected)


def test_torch_reads_what_is_written(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    path = tmp_path / "weights.safetensors"
    write_safetensors(path, WEIGHTS)
    assert_same({name: as_numpy(tensor) for name, tensor in load_file(path).items()}, WEIGHTS)


def test_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(TorchFile(tmp_path / "a.pth").tensors["a"], [1, 1])


def test_a_whole_module_is_refused_by_its_class(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert "torch.nn.modules.linear.Linear" in message
    assert "save the state_dict() instead" in message


# Damaged files


def whole_file(kind):
    """The bytes of a small file."""
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.ones(2, np.float16)}
    if kind == "safetensors":
        return safetensors.numpy.save(tensors)
    return getattr(torch_format, f"{kind}_weights")(tensors)


@pytest.mark.parametrize("kind", ["zip", "safetensors", "legacy"])
def test_truncated_anywhere(tmp_path, kind):
    data, path = whole_file(kind), tmp_path / "cut.pth"
    path.write_bytes(data)
    TorchFile(path)
    for length in {*range(1, len(data), 7), *range(len(data) - 20, len(data))}:
        path.write_bytes(data[:length])
        refusal(path)


def test_altered_anywhere(tmp_path):
    data, path = whole_file("zip"), tmp_path / "altered.pth"
    path.write_bytes(data)
    expected = {name: array.copy() for name, array in TorchFile(path).tensors.items()}
    for position in range(0, len(data), 3):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        try:
            tensors = TorchFile(path).tensors
        except UserError:
            continue
        assert_same(tensors, expected)  # a date


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("kind", ["safetensors", "legacy"])
def test_altered_without_checksums_is_read_or_refused_in_one_line(tmp_path, kind):
    data, path = whole_file(kind), tmp_path / "altered.pth"
    generator = random.Random(0)
    for _ in range(200):
        altered = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            altered[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(altered)
        try:
            TorchFile(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_trailing_bytes(tmp_path):
    (tmp_path / "a.pth").write_bytes(whole_file("legacy") + b"abc")
    assert "3 bytes follow its end" in refusal(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(whole_file("safetensors") + b"abc")
    assert "file not fully covered" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "it is no file of PyTorch weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is no file of PyTorch weights"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
        (struct.pack("<Q", 2**60) + b"{}", "header too large"),
        (struct.pack("<Q", 2) + b"{]", "invalid JSON in header"),
        (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "recursion limit"),
    ],
)
def test_no_weights(tmp_path, data, message):
    (tmp_path / "a.pth").write_bytes(data)
    assert message in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F\n99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        [1, 2],
    ],
)
def test_bad_safetensors(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refusal(tmp_path / "a.safetensors")


def test_other_zip_archives(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")
    assert "not of a state dict" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"}.")
    assert "damaged or compressed" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.comment = b"PK\x03\x04"
    forged = bytearray(path.read_bytes())  # its only entry begins in the comment
    place = forged.index(b"PK\x01\x02") + 42
    forged[place : place + 4] = struct.pack("<I", len(forged) - 4)
    path.write_bytes(forged)
    assert "damaged" in refusal(path)
    path.write_bytes(zip_file(b"}.", [("byteorder", b"big")]))
    assert "big-endian" in refusal(path)
    path.write_bytes(zip_file(torch_format.state_dict_pickle(WEIGHTS)))
    assert "its record archive/data/0 is missing" in refusal(path)
    path.write_bytes(legacy_start({"little_endian": False}))
    assert "big-endian" in refusal(path)


def test_the_digest_in_the_name(tmp_path):
    data = FORMATS["zip"]
    digest = hashlib.sha256(data).hexdigest()[:8]
    (tmp_path / f"a-{digest}.pth").write_bytes(data)
    assert_same(TorchFile(tmp_path / f"a-{digest}.pth").tensors, WEIGHTS)
    (tmp_path / "a-0123abcd.pth").write_bytes(data)
    message = refusal(tmp_path / "a-0123abcd.pth")
    assert f"its SHA-256 starts with {digest}, not with 0123abcd" in message
    whole = hashlib.sha256(data).hexdigest()
    for name in (f"a-{whole}.pth", "a-20240601.pth", "a-0123abcd.finetuned.pth"):
        (tmp_path / name).write_bytes(data)
        assert_same(TorchFile(tmp_path / name).tensors, WEIGHTS)
    (tmp_path / f"a-{whole[:-2]}00.pth").write_bytes(data)
    assert f"starts with {whole}, not with" in refusal(tmp_path / f"a-{whole[:-2]}00.pth")


def test_places_that_do_not_work(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.pth")
    assert "can't be read" in refusal(tmp_path)
    with pytest.raises(UserError, match=r"a\.pth: weights are written as \.safetensors"):
        write_safetensors(tmp_path / "a.pth", WEIGHTS)
    for path in (tmp_path / "nowhere" / "a.safetensors", tmp_path / f"{'a' * 300}.safetensors"):
        with pytest.raises(UserError, match="can't be written: "):
            write_safetensors(path, WEIGHTS)
    assert os.listdir(tmp_path) == []


# Odd pickles; the generic reader has tests of its own


@pytest.mark.parametrize("make", [zip_file, lambda data: legacy_start() + data])
def test_a_call_in_a_pickle_is_refused_by_its_name(tmp_path, make):
    marker, path = tmp_path / "executed", tmp_path / "a.pth"
    path.write_bytes(make(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()))
    assert " asks for os.system," in refusal(path)
    assert not marker.exists()


ODD_PICKLES = {
    "call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "call of a storage": b"ctorch\nFloatStorage\n)R.",
    "tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
    "tensor of no arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(NNNtR.",
    "storage of nothing": b"NQ.",
    "storage of numbers": b"(K\x01K\x02K\x03K\x04K\x05tQ.",
    "number": b"K\x01.",
    "dict of numbers": b"}X\x01\x00\x00\x00aK\x01s.",
    "itself": b"\x80\x02}q\0X\x05\0\0\0modelh\0s.",
}


@pytest.mark.parametrize("name", ODD_PICKLES)
def test_odd_pickles_are_refused(tmp_path, name):
    path = tmp_path / "a.pth"
    path.write_bytes(zip_file(ODD_PICKLES[name]))
    refusal(path)
    path.write_bytes(legacy_start() + ODD_PICKLES[name])
    refusal(path)


def test_a_dict_by_python_2_is_read(tmp_path):
    pairs = b"ccollections\nOrderedDict\n(]](" + torch_format.text("w")
    pairs += torch_format.tensor(4, (4,), (1,)) + b"eatR."
    (tmp_path / "a.pth").write_bytes(zip_file(pairs, [("data/0", bytes(16))]))
    assert_same(TorchFile(tmp_path / "a.pth").tensors, {"w": np.zeros(4, np.float32)})


SHAPES = [
    ((4, (2**62,), (1,)), "tensor w is larger than its storage"),
    ((4, (2**40, 2**40), (0, 0)), "tensor w is larger than its storage"),
    ((4, (10**30,), (0,)), "tensor w is larger than its storage"),
    ((4, (5,), (1,)), "tensor w is larger than its storage"),
    ((4, (4,), (2,)), "tensor w is larger than its storage"),
    ((2**40, (4,), (1,)), "tensor w is larger than its storage, or that is cut"),
    ((3, (3,), (1,)), "tensor w is larger than its storage, or that is cut"),
    ((4, (1,) * 200, (1,) * 200), "a tuple of more than 100 values"),
    ((4, (-1,), (1,)), "no whole numbers"),
    ((4, (4,), (-1,)), "no whole numbers"),
    ((4, (4,), (1, 1)), "describes a tensor wrongly"),
    ((-4, (4,), (1,)), "describes a storage wrongly"),
]


@pytest.mark.parametrize(("tensor", "message"), SHAPES)
def test_impossible_shapes(tmp_path, tensor, message):
    path, records = tmp_path / "a.pth", [("data/0", bytes(16))]
    path.write_bytes(zip_file(one_tensor(*tensor), records))
    assert message in refusal(path)


def test_offsets_and_strides(tmp_path):
    path, records = tmp_path / "a.pth", [("data/0", np.arange(4, dtype=np.float32).tobytes())]
    path.write_bytes(zip_file(one_tensor(4, (2, 2), (1, 2)), records))
    np.testing.assert_array_equal(TorchFile(path).tensors["w"], [[0, 2], [1, 3]])
    path.write_bytes(zip_file(one_tensor(4, (3,), (1,), offset=1), records))
    np.testing.assert_array_equal(TorchFile(path).tensors["w"], [1, 2, 3])
    for offset in (2, 2**62):
        path.write_bytes(zip_file(one_tensor(4, (3,), (1,), offset=offset), records))
        assert "tensor w is larger than its storage" in refusal(path)

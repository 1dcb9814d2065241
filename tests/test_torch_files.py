"""Files of PyTorch weights: every format, dtype and layout; damaged and hostile files."""

import argparse
import hashlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.weights import torch_pickle
from resnet_jax.weights.torch_files import TorchFile, write

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


def zip_with(path, data_pickle, **records):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pickle)
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy_start():
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    return b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system))


def refusal(path):
    """What a file is refused with: one line that names it, and no other exception."""
    with pytest.raises(UserError) as caught:
        TorchFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    write(path, WEIGHTS)
    file = TorchFile(path)
    assert_same(file.tensors, WEIGHTS)
    assert not any(array.flags.writeable for array in file.tensors.values())
    file.release()
    assert_same(file.tensors, WEIGHTS)
    assert os.listdir(tmp_path) == [path.name]


def test_torch_is_not_imported(tmp_path):
    write(tmp_path / "a.pth", WEIGHTS)
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
        wrapper: torch.nn.DataParallel(module).state_dict(),
    }
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert_same(TorchFile(tmp_path / "a.pth").tensors, expected)


def test_torch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    write(path, WEIGHTS)
    for options in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **options)
        assert_same({name: as_numpy(tensor) for name, tensor in loaded.items()}, WEIGHTS)


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


def whole_files(tmp_path):
    write(tmp_path / "a.pth", WEIGHTS)
    write(tmp_path / "a.safetensors", WEIGHTS)
    files = {"zip": tmp_path / "a.pth", "safetensors": tmp_path / "a.safetensors"}
    data = {name: path.read_bytes() for name, path in files.items()}
    tensor = {"a": np.arange(4, dtype=np.float32)}
    storage = struct.pack("<Q4f", 4, *tensor["a"])
    data["legacy"] = legacy_start() + torch_pickle.dump(tensor) + pickle.dumps(["0"], 2) + storage
    return data


@pytest.mark.parametrize("kind", ["zip", "safetensors", "legacy"])
def test_truncated_anywhere(tmp_path, kind):
    data = whole_files(tmp_path)[kind]
    path = tmp_path / "cut.pth"
    path.write_bytes(data)
    TorchFile(path)
    for length in {*range(1, len(data), 13), *range(len(data) - 40, len(data))}:
        path.write_bytes(data[:length])
        refusal(path)


def test_altered_anywhere(tmp_path):
    data = whole_files(tmp_path)["zip"]
    path = tmp_path / "altered.pth"
    for position in range(0, len(data), 3):
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        path.write_bytes(altered)
        try:
            tensors = TorchFile(path).tensors
        except UserError:
            continue
        assert_same(tensors, WEIGHTS)  # a date or a byte of padding


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("kind", ["safetensors", "legacy"])
def test_altered_without_checksums_is_read_or_refused_in_one_line(tmp_path, kind):
    data = whole_files(tmp_path)[kind]
    path = tmp_path / "altered.pth"
    generator = random.Random(0)
    for _ in range(500):
        altered = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            altered[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(altered)
        try:
            TorchFile(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_trailing_bytes(tmp_path):
    for kind in ("safetensors", "legacy"):
        (tmp_path / "a.pth").write_bytes(whole_files(tmp_path)[kind] + b"abc")
        assert "3 bytes follow its end" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "it is no file of PyTorch weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is no file of PyTorch weights"),
        (b"PK\x03\x04 and no more", "truncated or damaged"),
        (struct.pack("<Q", 2**60) + b"{}", "truncated or damaged (safetensors header)"),
        (struct.pack("<Q", 2) + b"{]", "header can't be read"),
        (struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995, "header can't be read"),
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
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("word/document.xml", "x")
    assert "not of a state dict" in refusal(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"}.")
    assert "damaged or compressed" in refusal(tmp_path / "a.pth")
    zip_with(tmp_path / "a.pth", b"}.", byteorder=b"big")
    assert "big-endian" in refusal(tmp_path / "a.pth")
    zip_with(tmp_path / "a.pth", torch_pickle.dump({"a": np.zeros(4, np.float32)}))
    assert "its record archive/data/0 is missing" in refusal(tmp_path / "a.pth")


def test_the_digest_in_the_name(tmp_path):
    write(tmp_path / "a.pth", WEIGHTS)
    data = (tmp_path / "a.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:8]
    (tmp_path / f"a-{digest}.pth").write_bytes(data)
    assert_same(TorchFile(tmp_path / f"a-{digest}.pth").tensors, WEIGHTS)
    (tmp_path / "a-0123abcd.pth").write_bytes(data)
    message = refusal(tmp_path / "a-0123abcd.pth")
    assert f"its SHA-256 starts with {digest}, not with 0123abcd" in message


def test_places_that_do_not_work(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.pth")
    assert "can't be read" in refusal(tmp_path)
    with pytest.raises(UserError, match=r"unknown suffix .*'\.npz'"):
        write(tmp_path / "a.npz", WEIGHTS)
    with pytest.raises(UserError, match="can't be written: No such file"):
        write(tmp_path / "nowhere" / "a.pth", WEIGHTS)
    assert os.listdir(tmp_path) == []

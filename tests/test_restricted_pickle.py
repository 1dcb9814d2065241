"""The reader of pickles: plain data is read, all else is refused, and nothing is executed."""

import collections
import io
import os
import pickle

import pytest

from resnet_jax.restricted_pickle import Damaged, Ignored, Refused, load

ALLOWED = {"collections.OrderedDict": Ignored, "os.getcwd": len, "numpy.dtype": Ignored}
PLAIN = {"a": [1, 2.5, None, True, (1, (2, 3), ()), 2**70], "b": {3: b"x" * 300, "ü": "y" * 300}}


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_data(protocol):
    value = PLAIN if protocol > 2 else {"a": PLAIN["a"]}  # bytes came with protocol 3
    file = io.BytesIO(pickle.dumps(value, protocol) + b"more")
    assert load(file, {}) == value
    assert file.read() == b"more"


def test_names_get_what_stands_for_them():
    data = pickle.dumps(collections.OrderedDict(a=1), 4)
    stand_in = type("StandIn", (dict,), {})
    value = load(io.BytesIO(data), {"collections.OrderedDict": stand_in})
    assert type(value) is stand_in
    assert value == {"a": 1}


def test_objects_kept_elsewhere():
    data = b"\x80\x02K\x07Q."
    assert load(io.BytesIO(data), {}, lambda pid: pid + 1) == 8
    with pytest.raises(Refused, match="kept elsewhere"):
        load(io.BytesIO(data), {})


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


REFUSED = {
    "posix.system": pickle.dumps(Call(os.system, "touch executed")),
    "builtins.eval": pickle.dumps(Call(eval, "open('executed', 'w')")),
    "__builtin__.eval": pickle.dumps(Call(eval, "open('executed', 'w')"), 2),
    "os.system": b"\x80\x02cos\nsystem\nX\x0e\0\0\0touch executed\x85R.",
    "numpy.dtype.__class__": b"\x80\x04" + text("numpy") + text("dtype.__class__") + b"\x93.",
    "opcode INST": b"(ios\nsystem\n.",
    "opcode OBJ": b"\x80\x02(cnumpy\ndtype\no.",
    "opcode NEWOBJ_EX": b"\x80\x04cnumpy\ndtype\n)}\x92.",
    "opcode EXT1": b"\x80\x02\x82\x01.",
    "opcode PERSID": b"Pname\n.",
    "opcode STRING": b"S'x'\n.",
    "opcode DUP": b"\x80\x02]2\x86.",
    "opcode EMPTY_SET": b"\x80\x04\x8f.",
    "opcode BYTEARRAY8": b"\x80\x05\x96\x01\0\0\0\0\0\0\0a.",
    "opcode READONLY_BUFFER": b"\x80\x05\x98.",
    "changes to a function or class": b"\x80\x02cnumpy\ndtype\n}X\x01\0\0\0aK\x01sb.",
    "changes to a function": b"\x80\x02cos\ngetcwd\n(e}b.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=name.replace(".", r"\.")):
        load(io.BytesIO(REFUSED[name]), ALLOWED)
    assert list(tmp_path.iterdir()) == []


DAMAGED = {
    "empty": b"",
    "stop": b".",
    "unknown opcode": b"\x80\x02\xff.",
    "later protocol": b"\x80\x06N.",
    "no stop": b"\x80\x02}",
    "underflow": b"\x80\x02K\x01\x86.",
    "below a mark": b"\x80\x02N(\x85.",
    "no mark": b"\x80\x02)t.",
    "memo of nothing": b"\x80\x02q\0.",
    "missing memo": b"\x80\x02h\x05.",
    "huge memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "huge text": b"\x80\x02X\xff\xff\xff\x7fa.",
    "huge bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0fa.",
    "huge frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x0f}.",
    "many parts": b"\x80\x02" + b"]" * 1_000_001 + b".",
    "key of tuples": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "keys of tuples": b"\x80\x02}(K\x01K\x02)" + b"\x85" * 100_000 + b"Nu.",
    "remembered key": b"\x80\x02})" + b"\x85" * 100_000 + b"q\0h\0Ns.",
    "key of one hash": b"\x80\x02}" + pickle.dumps(2**61 - 1, 2)[2:-1] + b"Ns.",
    "key of an object": b"\x80\x02}cnumpy\ndtype\n)RNs.",
    "append to a tuple": b"\x80\x02)Na.",
    "item of a class": b"\x80\x02cnumpy\ndtype\nNNs.",
    "call of a text": b"\x80\x02X\x01\0\0\0a)R.",
    "state of a list": b"\x80\x02]}b.",
    "new function": b"\x80\x02cos\ngetcwd\n)\x81.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name):
    with pytest.raises(Damaged) as caught:
        load(io.BytesIO(DAMAGED[name]), ALLOWED)
    assert "\n" not in str(caught.value)


def test_deep_values_are_harmless():
    assert load(io.BytesIO(b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b"."), {})
    assert load(io.BytesIO(b"\x80\x02)" + b"\x85" * 200_000 + b"."), {})
    itself = load(io.BytesIO(b"\x80\x02}q\0X\x01\0\0\0ah\0s."), {})
    assert itself["a"] is itself


def test_whatever_the_bytes_nothing_else_is_raised():
    data = pickle.dumps(PLAIN, 4)
    for position in range(len(data)):
        for value in (0, 40, 82, 98, 115, 147, 255):
            altered = data[:position] + bytes([value]) + data[position + 1 :]
            try:
                load(io.BytesIO(altered), ALLOWED)
            except (Damaged, Refused):
                continue

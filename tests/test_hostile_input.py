"""Whatever comes from outside ends in one clear line, executes nothing, and takes little."""

import collections
import mmap
import os
import pathlib
import shutil
import subprocess
import time
import zlib

import hostile.config
import hostile.data
import hostile.images
import hostile.runs
import hostile.weights
import pytest
import tiny_cifar10
from hostile import guard
from hostile.cases import MAY_WORK

from resnet_jax import main

ROOMS = hostile.config, hostile.images, hostile.weights, hostile.data, hostile.runs
CASES = [case for room in ROOMS for case in room.cases()]


@pytest.fixture(scope="session")
def warm(plain_run):
    """A run to read, with all that is imported on first use imported."""
    assert main.main(["x", "--mode=eval", f"--workdir={plain_run[0]}"]) == 0
    return plain_run[0]


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The only folder in which a case may write, with a file, a folder and a loop of links."""
    room = tmp_path / "room"
    (room / "empty").mkdir(parents=True)
    (room / "file.txt").write_text("words")
    (room / "loop").symlink_to(room / "loop")
    monkeypatch.chdir(room)
    monkeypatch.setenv("XDG_CACHE_HOME", str(room / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(room / "tfds"))
    return room


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)
    counts = collections.Counter(case.category for case in CASES)
    assert min(counts.values()) >= 20, counts
    promises = pathlib.Path(__file__).parents[1] / "docs" / "guides" / "promises.md"
    assert f": {len(CASES)} overrides" in promises.read_text()


HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
TAKEN = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
SEEN = {
    "execution": (lambda room: os.system("true"), "os.system"),
    "process": (lambda room: subprocess.run(["true"]), "subprocess.Popen"),
    "writing": (lambda room: (room.parent / "x").write_text(""), "open of"),
    "appending": (lambda room: (room.parent / "x").open("a"), "open of"),
    "through_a_link": (lambda room: (room / "loop").open("w"), "open of"),
    "making": (lambda room: (room.parent / "x").mkdir(), "os.mkdir of"),
    "removing": (lambda room: shutil.rmtree(room.parent / "x", True), "shutil.rmtree of"),
    "memory": (lambda room: mmap.mmap(-1, 2**29, TAKEN), "GiB of memory"),
    "waiting": (lambda room: time.sleep(9), "took too long (SIGALRM)"),
    "computing": (lambda room: [i for i in range(10**12) if not i + 1], "took too long (SIGPROF)"),
    "nothing": (lambda room: (room / "x").write_text("x"), None),
}


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="the guard measures memory by /proc"
)


@needs_proc
@pytest.mark.parametrize("name", SEEN)
def test_the_guard_sees(name, room, monkeypatch):
    if name == "computing":
        monkeypatch.setattr(guard, "SECONDS", 0.2)
    if name == "memory":
        monkeypatch.setattr(guard, "BYTES", 2**28)
    if name == "waiting":
        monkeypatch.setattr(guard, "STUCK_SECONDS", 0.2)
    (room / "loop").unlink()
    (room / "loop").symlink_to(room.parent / "y")
    call, phrase = SEEN[name]
    with guard.watch(room) as watch:
        call(room)
    assert len(watch.violations) == bool(phrase)
    assert all(phrase in violation for violation in watch.violations)


PARSED = ("command", "override", "config")


def is_quick(case):
    """About a third of what is parsed and no more, and a twelfth of the rest, are for every day."""
    number = zlib.crc32(case.name.encode("utf-8", "surrogatepass"))
    return number % 3 == 0 if case.category in PARSED else number % 12 == 5


QUICK = [
    pytest.param(case, id=case.name, marks=() if is_quick(case) else pytest.mark.slow)
    for case in CASES
]


@needs_proc
@pytest.mark.parametrize("case", QUICK)
def test_case(case, room, warm, capfd, monkeypatch, recwarn):
    """Calls the command line as the case says, under guard."""
    if case.category == "data":
        tiny_cifar10.install(monkeypatch.setattr)
    arguments = case.arguments(room, warm)
    capfd.readouterr()
    status = None
    with guard.watch(room, os.environ["JAX_COMPILATION_CACHE_DIR"]) as watch:
        status = main.main(["resnet-jax", *arguments])
    out, err = capfd.readouterr()
    assert watch.violations == []
    assert [path.name for path in room.parent.iterdir()] == ["room"]
    assert "Traceback" not in out
    # They would be further lines; those for developers are not shown.
    seen = [w for w in recwarn if not issubclass(w.category, HIDDEN) and "/PIL/" not in w.filename]
    assert [str(w.message) for w in seen] == []
    if case.names is None or (case.names is MAY_WORK and status == 0):
        assert (status, err) == (0, "")
        return
    assert status == (1 if case.category == "image" else 2)  # of images the others are classified
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) > 20
    assert case.names in err

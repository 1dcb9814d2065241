"""Our calls of oneDNN are compiled once; where they can't be, one line says so."""

import pytest

from resnet_jax import cpu
from resnet_jax.cpu import build, convolutions
from resnet_jax.cpu.build import Unavailable

REAL_ENABLE = cpu.enable  # before the session's fixture replaces it


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_find_onednn", lambda: tmp_path / "lib" / "libdnnl.so.3")
    (tmp_path / "include").mkdir()


def compiler(tmp_path, monkeypatch, script):
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def test_it_is_compiled_once_for_each_command(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, 'for file; do :; done; echo made >"$file"')
    said = []
    path = build._built(said.append)
    assert path.read_text() == "made\n"
    assert build._built(said.append) == path
    assert said == ["compiling oneDNN's convolutions for this processor, once (about 10 s)"]
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", path.name]
    monkeypatch.setattr(build, "cpu_features", lambda: {"another"})
    assert build._built(said.append) != path


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no such header >&2; exit 1", "compiler failed: no such header; for faster"),
        ("exit 1", "compiler failed; for faster"),
        (None, "there is no compiler /no/compiler; for faster"),
    ],
)
def test_without_a_compiler(tmp_path, monkeypatch, script, reason):
    monkeypatch.setenv("CXX", "/no/compiler")
    if script:
        compiler(tmp_path, monkeypatch, script)
    with pytest.raises(
        Unavailable, match=f"{reason} training .*pip install 'resnet-flax-cifar.cpu."
    ):
        build._built(lambda line: None)


@pytest.mark.parametrize(
    ("given", "reason"),
    [("'g++", "variable CXX: No closing quotation"), ("/etc/passwd", "can't run /etc/passwd")],
)
def test_compilers_that_are_none(monkeypatch, given, reason):
    monkeypatch.setenv("CXX", given)
    with pytest.raises(Unavailable, match=reason):
        build._built(lambda line: None)


def test_the_line_with_the_error_is_told(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, "echo included from x >&2; echo fatal error: y >&2; exit 1")
    with pytest.raises(Unavailable, match="compiler failed: fatal error: y; for faster"):
        build._built(lambda line: None)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Unavailable, match=r"cannot use the cache .*jax/cpu: Not a directory"):
        build._built(lambda line: None)


def test_a_library_that_cannot_be_loaded(tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, 'for file; do :; done; echo made >"$file"')
    with pytest.raises(Unavailable, match=r"can't load .*\.so: .*; delete that file"):
        build.load(lambda line: None)


def test_without_onednn_one_line_says_so(monkeypatch):
    def missing():
        raise Unavailable("there is no oneDNN; get it")

    chosen = []
    monkeypatch.setattr(build, "_find_onednn", missing)
    monkeypatch.setattr(convolutions, "use_matrix_products", lambda: chosen.append("products"))
    said = []
    assert REAL_ENABLE(said.append) is False
    assert said == ["convolutions are XLA's own: there is no oneDNN; get it"]
    assert chosen == ["products"]

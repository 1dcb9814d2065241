"""Determinism: XLA's flags are set in time or the run is refused; a CPU repeats its bits."""

import json
import os
import subprocess
import sys

import jax
import pytest
import tiny_run
from jax._src import xla_bridge

from resnet_jax.errors import UserError
from resnet_jax.platform import make_deterministic
from resnet_jax.training.loop import train_and_evaluate

FLAGS = "--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_autotune_level=0"

# A run in a process of its own: the flags that XLA saw, and a digest of every leaf at the end.
RUN = """
import hashlib, json, os, sys, tiny_run
from resnet_jax.training.loop import train_and_evaluate

config = tiny_run.get_config()
config.num_epochs = 1
config.deterministic = True
_, state = train_and_evaluate(config, sys.argv[1])
leaves = tiny_run.leaves(state)
digests = {name: hashlib.sha256(leaf[2]).hexdigest() for name, leaf in leaves.items()}
print(json.dumps([os.environ["XLA_FLAGS"], digests]))
"""


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_max_hlo_modules=1")


def use(monkeypatch, backend):
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: backend is not None)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)


def test_flags_are_added_while_no_backend_is_up(monkeypatch, unset):
    use(monkeypatch, None)
    for _ in range(2):
        make_deterministic()
        assert os.environ["XLA_FLAGS"] == f"--xla_dump_max_hlo_modules=1 {FLAGS}"
    use(monkeypatch, "gpu")
    make_deterministic()  # started with them


def test_too_late_on_a_gpu(monkeypatch, unset, tmp_path):
    use(monkeypatch, "gpu")
    config = tiny_run.get_config()
    config.deterministic = True
    message = "GPU already; start Python with the environment variable XLA_FLAGS='--xla_dump.* "
    with pytest.raises(UserError, match=message + FLAGS.split()[0]) as error:
        train_and_evaluate(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_never_too_late_on_a_cpu(monkeypatch, unset):
    use(monkeypatch, "cpu")
    make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_max_hlo_modules=1"


def test_two_runs_on_a_cpu_give_equal_bits(tmp_path):
    path = os.pathsep.join([str(tiny_run.CONFIG_FILE.parent), os.environ.get("PYTHONPATH", "")])
    found = []
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert found[0][0].endswith(FLAGS)
    assert len(found[0][1]) > 10

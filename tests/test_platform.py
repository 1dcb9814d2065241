"""What the command line sets for its process: determinism, memory, the cache of programs."""

import os
import re
import signal
import subprocess
import sys
import types

import jax
import pytest
import tiny_run

from resnet_jax import platform
from resnet_jax.config.load import validate
from resnet_jax.data import cache
from resnet_jax.errors import UserError
from resnet_jax.training.loop import train_and_evaluate
from resnet_jax.training.task import check_memory, create_task

FLAGS = "--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_autotune_level=0"

REAL_ENABLE_CACHE = platform.enable_cache  # before the fixture of the session replaces it


@pytest.fixture(scope="module")
def other_process(tmp_path_factory):
    """A training by the command line in a process of its own: what it said, and its folder."""
    workdir = tmp_path_factory.mktemp("other") / "run"
    command = [sys.executable, "-m", "resnet_jax.main", f"--config={tiny_run.CONFIG_FILE}"]
    command += ["--config.num_epochs=1", f"--workdir={workdir}"]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run(command, capture_output=True, text=True, env=environment), workdir


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_max_hlo_modules=1")
    name = "jax_persistent_cache_enable_xla_caches"
    before = getattr(jax.config, name)
    yield
    jax.config.update(name, before)


def test_determinism_is_requested_once(unset):
    for _ in range(2):
        platform.request_determinism()
        assert os.environ["XLA_FLAGS"] == f"--xla_dump_max_hlo_modules=1 {FLAGS}"


def test_a_gpu_without_the_flags_is_refused(unset, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = tiny_run.get_config()
    config.deterministic = True
    message = "start Python with the environment variable XLA_FLAGS='--xla_dump.* "
    with pytest.raises(UserError, match=message + FLAGS.split()[0]):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    platform.request_determinism()
    platform.check_deterministic()  # started with them


def test_a_cpu_needs_no_flags():
    platform.check_deterministic()


def test_threads_are_those_that_the_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert platform.num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(platform, "_cpu_quota", lambda: 2.5)
    assert platform.num_threads() == 3
    monkeypatch.setattr(platform, "_cpu_quota", lambda: float("inf"))
    assert platform.num_threads() == 8


def test_a_control_group_and_those_above_it_limit_the_threads(tmp_path):
    process, group = tmp_path / "cgroup", tmp_path / "root" / "a" / "b"
    process.write_text("4:memory:/x\n0::/a/b\n")
    group.mkdir(parents=True)
    for folder, limit in ((group, "max 100000"), (group.parent, "150000 100000")):
        (folder / "cpu.max").write_text(f"{limit}\n")
    assert platform._cpu_quota(str(tmp_path / "root"), str(process)) == 1.5
    assert platform._cpu_quota(str(tmp_path / "none"), str(process)) == float("inf")
    process.write_text("4:memory:/x\n")  # of version 1 alone
    assert platform._cpu_quota(str(tmp_path / "root"), str(process)) == float("inf")


@pytest.mark.parametrize(
    ("backend", "features", "auto"),
    [
        ("gpu", set(), "bfloat16"),
        ("cpu", {"avx2", "avx512_bf16"}, "bfloat16"),
        ("cpu", {"avx2", "avx512f"}, "float32"),
    ],
)
def test_bfloat16_is_for_devices_with_instructions_for_it(monkeypatch, backend, features, auto):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(platform, "onednn", True)
    monkeypatch.setattr(platform, "cpu_features", lambda: frozenset(features))
    assert platform.compute_dtype("auto") == auto
    assert platform.compute_dtype("float32") == "float32"
    if auto == "bfloat16":
        assert platform.compute_dtype("bfloat16") == "bfloat16"
    else:
        with pytest.raises(UserError, match=r"model\.dtype is 'bfloat16', for which"):
            platform.compute_dtype("bfloat16")


@pytest.mark.parametrize(("onednn", "count"), [(False, 1), (True, 2)])
def test_auto_is_float32_where_convolutions_are_xlas(monkeypatch, onednn, count):
    monkeypatch.setattr(platform, "cpu_features", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(platform, "onednn", onednn)
    monkeypatch.setattr(jax, "device_count", lambda: count)
    assert platform.compute_dtype("auto") == "float32"
    assert platform.compute_dtype("bfloat16") == "bfloat16"


@pytest.mark.parametrize(("capability", "found"), [("7.5", "float32"), ("8.0", "bfloat16")])
def test_auto_is_float32_on_gpus_without_bfloat16(monkeypatch, capability, found):
    gpu = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert platform.compute_dtype("auto") == found
    if found == "float32":
        with pytest.raises(UserError, match=r"model\.dtype is 'bfloat16', for which"):
            platform.compute_dtype("bfloat16")


def test_lack_of_memory_is_one_line_and_other_errors_are_themselves():
    with pytest.raises(UserError, match="too little memory; lower"), platform.memory_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nAllocating ...")
    with (
        pytest.raises(UserError, match="memory; lower --batch"),
        platform.memory_errors("lower --batch"),
    ):
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), platform.memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: other")


@pytest.mark.parametrize(
    ("device", "machine", "short"),
    [(None, 10, "this machine"), (2**40, 10, "this machine"), (2**20, 2**30, "the device")],
)
def test_a_state_too_large_for_device_or_machine_is_refused(monkeypatch, device, machine, short):
    stats = None if device is None else {"bytes_limit": device}
    found = types.SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [found])
    monkeypatch.setattr(os, "sysconf", lambda name: machine)  # pages and their size
    config = tiny_run.get_config()
    config.model.options.num_filters = (512,)
    task = create_task(validate(config), tiny_run.sample().info)
    with pytest.raises(UserError, match=rf"take 0\.\d GiB and {short} has 0\.0; take a smaller"):
        check_memory(task)
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=dict)])
    monkeypatch.setattr(os, "sysconf", lambda name: 2**30)
    check_memory(task)


def test_two_runs_on_a_cpu_give_equal_bits(other_process, tmp_path, onednn):
    config = tiny_run.get_config()
    config.num_epochs = 1
    train_and_evaluate(config, tmp_path)
    found, own = (tiny_run.arrays(workdir) for workdir in (other_process[1], tmp_path))
    assert found == own and len(own) > 10


def test_without_a_terminal_lines_are_plain(other_process):
    done, _ = other_process
    assert done.returncode == 0, done.stderr
    about_onednn = r"(compiling oneDNN|another process is filling|convolutions are XLA's own).*\n"
    assert re.sub(about_onednn, "", done.stderr) == ""
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    for start in ("device ", "model ", "data ", "run ", "final ", "best ", "again "):
        assert f"\n{start}" in "\n" + done.stdout


def test_without_a_home_there_is_no_cache_and_a_line_says_so(monkeypatch):
    def homeless(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_cache_dir", homeless)
    config = types.SimpleNamespace(jax_compilation_cache_dir=None)  # an update would fail
    monkeypatch.setattr(platform, "jax", types.SimpleNamespace(config=config))
    REAL_ENABLE_CACHE()
    with pytest.raises(UserError, match="set HOME or XDG_CACHE_HOME"):
        cache.default_cache_dir()
    assert cache.remembered("key", lambda: [3]) == [3]


def test_a_second_signal_ends_at_once_and_the_handlers_come_back(monkeypatch):
    ended, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(platform, "SAME", 600)
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(number))
    monkeypatch.setattr(os, "_exit", ended.append)
    with platform.stop_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # of the same moment
        assert received == [signal.SIGTERM] and not ended
        monkeypatch.setattr(platform, "SAME", 0)
        signal.raise_signal(signal.SIGINT)
    assert ended == [signal.SIGINT, 128 + signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before

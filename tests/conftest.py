"""What all tests share: quick compilation, one cache of compiled programs, and runs to read."""

import functools
import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys

import pytest

# What users have set for their terminals and networks is nothing for tests.
_OF_USERS = ("FORCE_COLOR", "TTY_COMPATIBLE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


def pytest_configure(config):
    """Sets up compilation before jax is imported; workers and subprocesses inherit it."""
    gc.set_threshold(50_000)  # tracing makes many objects that are in no cycle
    if hasattr(config, "workerinput"):
        return
    defaults = {
        "JAX_PLATFORMS": "cpu",  # what is tested are a CPU's bits and lines, also beside a GPU
        # Kept between sessions, until `pytest --cache-clear`.
        "JAX_COMPILATION_CACHE_DIR": str(config.cache.mkdir("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # Code generation takes a third of the time, and what is small runs no longer for it.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "OMP_NUM_THREADS": "1",  # PyTorch's threads would wait for the cores that workers use
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if importlib.metadata.version("jaxlib").startswith("0.9."):  # later XLAs may not know the flag
        # The older emitters of fused loops compile in less than half of the time. But where a
        # program rounds depends on what they fuse: see `usual_bits`.
        defaults["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def pytest_collection_finish():
    """What is imported by now is no garbage, and need not be looked at again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def quick_programs(tmp_path_factory):
    """The command line compiles nothing of ours, convolutions are XLA's; all programs are kept."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _OF_USERS:
            patch.delenv(name, raising=False)
        patch.setattr("resnet_jax.cpu.enable", lambda: False)
        # The command line would keep only what takes long to compile.
        patch.setattr("resnet_jax.platform.enable_cache", lambda: None)
        # What is found of folders is not kept for the user.
        patch.setattr("resnet_jax.data.cache._FOUND", tmp_path_factory.mktemp("found"))
        # None is traced twice because others pushed it out.
        patch.setattr("resnet_jax.training.hyperparameters._MAX_PROGRAMS", 200)
        yield


@pytest.fixture
def own_programs(monkeypatch):
    """This test shares no jitted function: it counts programs, or alters what they compute."""
    monkeypatch.setattr("resnet_jax.training.hyperparameters._programs", {})


@pytest.fixture
def usual_bits(own_programs, monkeypatch):
    """What this test compares between programs are the bits of the usual emitters."""
    import jax

    if "fusion_emitters=false" in os.environ.get("XLA_FLAGS", ""):
        usual = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
        monkeypatch.setattr(jax, "jit", usual)


@pytest.fixture
def optimized_programs(usual_bits):
    """Programs of this test are optimised."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def refuse_folder(monkeypatch):
    """Returns a function that makes folders of a name such as can't be read, for root too."""
    scandir = os.scandir

    def refuse(name):
        def scan(path):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)

    return refuse


@pytest.fixture
def onednn(own_programs):
    """oneDNN computes convolutions and norms in this test."""
    from resnet_jax.cpu import build, convolutions, norms, products

    try:
        compiler = build._command()[0]
    except build.Unavailable as problem:
        pytest.skip(str(problem))
    if shutil.which(compiler) is None:
        pytest.skip("there is no compiler")
    library = build.load(print)  # whatever else is wrong is ours
    convolutions.use_onednn(library)
    norms.use(library)
    products.use()
    yield
    _restore_lowerings()


@pytest.fixture
def matrix_products(own_programs):
    """Kernel gradients are matrix products in this test, as where there is no oneDNN."""
    from resnet_jax.cpu import convolutions

    convolutions.use_matrix_products()
    yield
    _restore_lowerings()


def _restore_lowerings():
    from jax.interpreters import mlir

    from resnet_jax.cpu import lowering

    for primitive in lowering._usual:
        usual = lowering.usual_lowering(primitive)
        mlir.register_lowering(primitive, usual, platform="cpu")


@pytest.fixture
def content(monkeypatch):
    """The bytes of a tiny CIFAR-10, which stands for the true one."""
    import tiny_cifar10

    return tiny_cifar10.install(monkeypatch.setattr)


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

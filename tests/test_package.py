"""The package as users install it."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

import resnet_jax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_that_of_the_distribution():
    assert resnet_jax.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_base_is_light():
    names = {re.match(r"[\w-]+", dependency)[0] for dependency in PROJECT["dependencies"]}
    assert not names & {"torch", "tensorflow", "matplotlib", "optuna"}
    assert not [name for name in PROJECT["dependencies"] if "cuda" in name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds the wheel from a copy, so that nothing of an earlier build gets into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("configs", "resnet_jax"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "build", "--wheel", source], check=True)
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_package_and_its_data(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {p for p in (ROOT / "resnet_jax").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert held >= {str(path.relative_to(ROOT)) for path in files}
    assert held >= {f"resnet_jax/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.py")}
    assert not [name for name in held if name.startswith(("configs/", "tests/"))]


@pytest.mark.slow
def test_an_installation_trains_by_the_name_of_a_config(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True, cwd=tmp_path)
    # What the package depends on comes from here, and nothing of the clone.
    (packages,) = (tmp_path / "env" / "lib").glob("python3.*/site-packages")
    there = [path for path in sys.path if path.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(there))

    def command(*arguments):
        program = [tmp_path / "env" / "bin" / "resnet-jax", *arguments]
        done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import resnet_jax; print(resnet_jax.__file__)"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.startswith(str(packages))
    assert "quickstart" in command("--list=configs")
    assert "Total" in command("--mode=summary", "--config=resnet_v2:adam")
    flags = ["--config=quickstart", "--config.data.name=sample", "--config.num_epochs=1"]
    assert "run     runs/quickstart-" in command(*flags)

"""Whatever the README, the guides and the notebook show runs, and what they name exists."""

import contextlib
import functools
import importlib.util
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import jax
import pytest
import tiny_run
from flax import linen as nn
from PIL import Image

import resnet_jax
from resnet_jax import main
from resnet_jax.config.load import check_field, check_search_field

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
PAGES = {path.stem: path for path in (ROOT / "README.md", *sorted(GUIDES.glob("*.md")))}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OTHER_PROGRAMS = {"optuna-dashboard"}

# A comment before a block says that it is not run, or which modules it needs.
BLOCK = re.compile(r"(?:<!-- (not run|needs): (.+?) -->\n+)?^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page, language):
    """Returns the blocks of a page: whether and with which modules they run, and their text."""
    found = BLOCK.findall(PAGES[page].read_text())
    return [(rule, what, text) for rule, what, name, text in found if name == language]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with the pictures that pages speak of; models are initialised in one go."""
    monkeypatch.chdir(tmp_path)
    init = nn.Module.init
    monkeypatch.setattr(
        nn.Module, "init", lambda self, *a, **k: jax.jit(functools.partial(init, self, **k))(*a)
    )
    train, test = tiny_run.sample().train, tiny_run.sample().test
    Image.fromarray(test.images[test.labels == 3][0]).resize((256, 256)).save("cat.jpg")
    for label, name in ((3, "cats"), (5, "dogs")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number, image in enumerate(train.images[train.labels == label][:40]):
            Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path


def run_in(names, text):
    """Runs Python: each `print(...)  # what` must print that."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "<docs>", "exec"), names)
    printed = iter(out.getvalue().splitlines())
    for expected in re.findall(r"^(?:print\(.*)?\)  # (.*)$", text, re.M):
        assert expected in printed, f"{expected!r} is not among what {text!r} printed"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(here, page):
    names = {"__name__": "docs"}
    for rule, what, text in blocks(page, "python"):
        needed = what.split(", ") if rule == "needs" else []
        if rule == "not run" or not all(map(importlib.util.find_spec, needed)):
            compile(text, page, "exec")
        else:
            run_in(names, text)
    if page == "README":
        assert names["logits"].shape == (8, 100)
        assert names["stage3"].shape == (8, 8, 8, 256)
    if page == "search":
        (here / "mine.py").write_text(blocks(page, "python")[0][2])
        flags = ["--mode=search", "--config=mine.py", "--workdir=x"]
        assert main._parse(["resnet-jax", *flags]).config.search.trials == 20


def commands(page):
    """Returns the commands of a page as lists of words, without what stands before a program."""
    text = "".join(text for _, _, text in blocks(page, "bash")).replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            del words[0]
        if words[:1] == ["taskset"]:
            del words[:3]
        if words[:1] == ["srun"]:
            del words[:2]
        if words:
            yield words


def check_command(words):
    """Fails if a command names a script, an extra, a config or a flag that there is not."""
    program, *arguments = words
    if program == "python" and arguments[:2] == ["-m", "resnet_jax.main"]:
        main._parse(["resnet-jax", *arguments[2:]])
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments[1]
    elif "--" in arguments:  # another command follows
        place = arguments.index("--")
        check_command(words[: place + 1])
        check_command(arguments[place + 1 :])
    elif program in ("python", "bash"):
        script = ROOT / arguments[0]
        files = script.glob("*.py") if script.is_dir() else [script]
        text = "".join(file.read_text() for file in files)
        for flag in re.findall(r"^(--[\w-]+)", "\n".join(arguments[1:]), re.M):
            assert script.suffix == ".sh" or f'"{flag}"' in text, f"{script.name} has no {flag}"
    elif pathlib.Path(program).name == "pip":
        assert arguments[0] == "install"
        named = re.findall(r"\.\[([\w,]+)\]", " ".join(arguments))
        assert {extra for names in named for extra in names.split(",")} <= EXTRAS.keys()
    else:
        assert program in OTHER_PROGRAMS, f"what is {program}?"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_commands_are_good(monkeypatch, page):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        check_command(words)


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_what_exists(page):
    text = PAGES[page].read_text()
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(BLOCK.findall(text)), "unnamed block"
    for path in re.findall(r"(?:\]\(|src=\")([\w./=-]+)(?:#[\w-]+)?[)\"]", text):
        assert (PAGES[page].parent / path).exists(), path
    for path in re.findall(r"`((?:configs|docs|results|scripts|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for field in re.findall(r"--config\.(?:base\.|space\.)?+([a-z]\w*(?:\.[a-z]\w*)*)", text):
        (check_search_field if field.startswith("search.") else check_field)(field)


def test_layout_names_what_exists():
    layout = PAGES["README"].read_text().split("## Layout")[1]
    for path in re.findall(r"^  ([\w]+(?:\.py|\.sh|/))", layout, re.M):
        assert (ROOT / "resnet_jax" / path).exists(), path
    for path in re.findall(r"^(\w+/) ", layout, re.M):
        assert (ROOT / path).is_dir(), path


def test_promises_name_tests_that_there_are():
    text, tests = PAGES["promises"].read_text(), ROOT / "tests"
    code = "".join(path.read_text() for path in tests.glob("test_*.py"))
    for file in re.findall(r"`(test_\w+\.py)`", text):
        assert (tests / file).exists(), file
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in code, name


def test_reference_has_every_public_name():
    listed = re.findall(r"^::: ([\w.]+)$", PAGES["api"].read_text(), re.M)
    assert {f"resnet_jax.{name}" for name in resnet_jax.__all__} <= set(listed)
    for path in listed:
        module, name = path.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), path


def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    book = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    names = {"__name__": "__main__"}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            run_in(names, "".join(cell["source"]))
    assert names["final"]["epoch"] == names["config"].num_epochs


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ROOT / "docs/mkdocs.yml"]
    done = subprocess.run([*build, "-d", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in GUIDES.glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").exists()
    html = "".join(path.read_text() for path in tmp_path.glob("*.html"))
    assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//', html)  # works without network

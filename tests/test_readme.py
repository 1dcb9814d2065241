"""The README's snippets run, and its paths exist."""

import pathlib
import re

import pytest
import tiny_run
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def ran():
    """Returns a function that runs the only snippet with some text: its names."""

    def run(text):
        snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        (snippet,) = [snippet for snippet in snippets if text in snippet]
        names = {}
        exec(snippet, names)
        return names

    return run


def test_snippet_of_models_runs(ran):
    names = ran("create_model")
    assert names["logits"].shape == (8, 100)
    assert names["stage3"].shape == (8, 8, 8, 256)


def test_snippet_of_weights_runs(ran, tmp_path, monkeypatch, capsys):
    test = tiny_run.sample().test
    cat = test.images[test.labels == 3][0]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(cat).resize((256, 256)).save("cat.jpg")
    ran("load_model")
    assert capsys.readouterr().out == "cat\n"


def test_linked_and_listed_files_exist():
    paths = re.findall(r"\]\(([\w./]+)(?:#\w+)?\)", README)
    paths += re.findall(r"^  ([\w]+\.(?:py|sh))", README.split("## Layout")[1], re.MULTILINE)
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "resnet_jax" / path).exists(), path

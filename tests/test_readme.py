"""The README's snippet runs, and its paths exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_snippet_runs():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(snippet, names)
    assert names["logits"].shape == (8, 100)
    assert names["stage3"].shape == (8, 8, 8, 256)


def test_linked_and_listed_files_exist():
    paths = re.findall(r"\]\(([\w./]+)(?:#\w+)?\)", README)
    paths += re.findall(r"^  ([\w]+\.(?:py|sh))", README.split("## Layout")[1], re.MULTILINE)
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "resnet_jax" / path).exists(), path

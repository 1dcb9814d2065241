"""Models on the Hugging Face hub, whose network is a folder here."""

import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import main
from resnet_jax.errors import UserError
from resnet_jax.inference.predict import Classifier
from resnet_jax.weights.pretrained import weights_file

huggingface_hub = pytest.importorskip("huggingface_hub")

ADDRESS = "hf://me/tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub as a folder of repositories; what a user has is a token."""
    root = tmp_path / "hub"

    def upload_folder(repo_id, folder_path):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(repo_id, name, revision):
        assert revision in (None, "v1")
        if not (root / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("404\nno such repository")
        return root / repo_id / (revision or "") / name

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    repository = types.SimpleNamespace(repo_id="me/tiny")
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo_id, exist_ok: repository)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return root


def export(workdir):
    arguments = ["--mode=export", f"--workdir={workdir}", f"--output={ADDRESS}"]
    return main.main(["resnet-jax", *arguments])


def test_an_exported_run_is_loaded_by_its_address(hub, plain_run, capsys):
    assert export(plain_run[0]) == 0
    assert ADDRESS in capsys.readouterr().out
    model, variables = resnet_jax.load_model(ADDRESS)
    run = resnet_jax.load_run(plain_run[0])
    assert model == run.model
    jax.tree.map(np.testing.assert_array_equal, variables, run.variables)
    assert weights_file(ADDRESS, "resnet_small", print) == hub / "me/tiny/model.safetensors"
    assert Classifier.of_weights(ADDRESS).class_names == run.info.class_names
    old = shutil.copytree(hub / "me/tiny", hub / "me/tiny/v1") / "model.safetensors"
    assert weights_file(f"{ADDRESS}@v1", "resnet_small", print) == old


def test_the_folder_says_what_the_model_is(hub, plain_run):
    export(plain_run[0])
    info = resnet_jax.weights_info("resnet_small", ADDRESS)
    config = json.loads((hub / "me/tiny/config.json").read_text())
    assert config["model"] == info.model and config["class_names"] == list(info.class_names)
    card = (hub / "me/tiny/README.md").read_text()
    assert card.startswith("---\n") and f'load_model("{ADDRESS}")' in card
    assert f"{info.num_parameters:,} parameters" in card and "None" not in card


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: resnet_jax.load_model("hf://me/other"),
            "me/other can't be used: 404 no such",
        ),
        (lambda: resnet_jax.load_model("resnet_small"), "needs weights"),
    ],
)
def test_what_is_missing_is_said_in_a_line(hub, act, message):
    with pytest.raises(UserError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def test_publishing_without_a_token_says_how_to_get_one(hub, plain_run, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert export(plain_run[0]) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert not pathlib.Path(hub).exists()

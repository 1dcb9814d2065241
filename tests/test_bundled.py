"""What files of weights say of themselves, those in the package, and predictions by them."""

import dataclasses
import json
import pathlib
import shutil

import bundle_weights
import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

import resnet_jax
from resnet_jax import main
from resnet_jax.config import default_config
from resnet_jax.data.registry import load_dataset
from resnet_jax.errors import UserError
from resnet_jax.inference import export
from resnet_jax.inference.export import export_torch
from resnet_jax.inference.predict import Classifier
from resnet_jax.models.registry import create_model, variable_shapes
from resnet_jax.weights.info import HEADER, bundled, find, find_by_model
from resnet_jax.weights.torch_files import TorchFile, write_safetensors
from resnet_jax.weights.torch_weights import state_dict

BUNDLED = sorted(bundled())


@pytest.fixture(scope="module")
def exported(plain_run, tmp_path_factory):
    """The file of a run's best checkpoint; only to be read."""
    return export_torch(plain_run[0], tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of three images."""
    folder = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(tiny_run.sample().test.images[:3]):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def predict(*arguments):
    return main.main(["resnet-jax", "--mode=predict", *map(str, arguments)])


def with_header(exported, path, **changes):
    """Writes weights with fields of their header changed, or left out where they are None."""
    file = TorchFile(exported)
    fields = json.loads(file.metadata[HEADER]) | changes
    known = {name: value for name, value in fields.items() if value is not None}
    write_safetensors(path, file.tensors, {HEADER: json.dumps(known)})
    return path


def test_a_file_says_what_it_is_and_where_it_comes_from(exported, plain_run):
    run, info = resnet_jax.load_run(plain_run[0]), resnet_jax.weights_info("resnet_small", exported)
    assert (info.model, info.dataset) == ("resnet_small", "cifar10_sample")
    assert info.num_parameters == 2466
    assert info.create_model() == run.model
    assert (info.class_names, info.image_shape) == (run.info.class_names, (32, 32, 3))
    assert (info.mean, info.std) == (run.info.mean, run.info.std)
    assert info.test_accuracy == plain_run[1]["best_test_accuracy"]
    assert info.provenance["config"] == json.loads(json.dumps(run.config.to_dict()))
    assert info.provenance["version"] == resnet_jax.__version__
    assert info.provenance.keys() > {"seed", "commit", "time", "jax", "python", "devices"}


def test_a_file_names_no_folder_of_the_machine():
    config = tiny_run.get_config()
    config.data.name, config.data.dir = "folder:/home/me/photos/", "/home/me"
    config.init.weights = "/home/me/weights.pth"
    told = export.told(config)
    assert (told["data"]["name"], told["data"]["dir"]) == ("folder:photos", "")
    assert told["init"]["weights"] == "weights.pth"
    names = {"tfds:a/b": "tfds:a/b", "/home/me/a.npz": "a.npz", "cifar10": "cifar10"}
    assert {name: export._without_folders(name) for name in names} == names


def test_a_file_of_ours_needs_no_options(exported, plain_run):
    model, variables = resnet_jax.load_model("resnet_small", weights=exported)
    run = resnet_jax.load_run(plain_run[0])
    assert model == run.model
    assert tiny_run.leaves(variables) == tiny_run.leaves(run.variables)
    model, variables = resnet_jax.load_model("resnet_small", 4, weights=exported)
    assert variables["params"]["head"]["bias"].shape == (4,)
    with pytest.raises(UserError, match=r"does not fit the model"):
        resnet_jax.load_model("resnet_small", weights=exported, num_filters=(9,))


@pytest.mark.parametrize("name", ["cnn", "vit_tiny"])
def test_images_of_any_shape_are_known(name, exported, tmp_path):
    options = {"num_layers": 1, "patch_size": 7} if name == "vit_tiny" else {}
    model = create_model(name, 10, **options)
    shapes = variable_shapes(model, (28, 28, 1))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    info = dataclasses.replace(
        resnet_jax.weights_info("resnet_small", exported),
        model=name,
        options=options,
        mean=(0.5,),
        std=(0.5,),
        image_shape=(28, 28, 1),
    )
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state_dict(model, variables), info.header())
    found, loaded = resnet_jax.load_model(name, weights=path)
    assert found == model
    assert tiny_run.leaves(loaded) == tiny_run.leaves(variables)


def test_predictions_by_a_file_are_those_of_its_run(exported, plain_run, images, capsys):
    assert predict(f"--workdir={plain_run[0]}", "--format=json", images) == 0
    expected = capsys.readouterr().out
    assert predict(f"--weights={exported}", "--format=json", images) == 0
    assert capsys.readouterr().out == expected


def test_mirror_and_image_size_are_kept(exported, tmp_path, images):
    path = with_header(
        exported, tmp_path / "a.safetensors", test_time_augmentation="mirror", image_size=48
    )
    config = Classifier.of_weights(path).network.config
    assert (config.evaluate.test_time_augmentation, config.data.image_size) == ("mirror", 48)


def test_overlays_are_written_here(exported, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict(f"--weights={exported}", "--cam", images) == 0
    assert len([*(tmp_path / "cam").iterdir()]) == 3
    assert "overlays are in cam\n" in capsys.readouterr().err


def test_what_is_not_known_of_a_run_is_left_out(plain_run, tmp_path):
    folder = shutil.copytree(plain_run[0], tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    (folder / "starts.jsonl").unlink()
    path = export_torch(folder, tmp_path / "a.safetensors")
    info = resnet_jax.weights_info("resnet_small", path)
    assert (info.test_accuracy, info.provenance["commit"]) == (None, None)
    with pytest.raises(UserError, match="is not finished"):
        bundle_weights.bundle(folder, tmp_path)


BAD = [
    ("mean", [0.5], "mean and std must have a number for each channel"),
    ("std", [0.0, 1.0, 1.0], "std must be above 0"),
    ("class_names", ["a", "b"], "does not fit the model"),
    ("class_names", [], "class_names is empty"),
    ("dataset", "\x1b[2J", r"dataset must be printable and short, not '\x1b[2J'"),
    ("model", "resnet_smal", "did you mean resnet_small"),
    ("options", {"stages": 1}, "unknown option of model 'resnet_small'"),
    ("image_shape", None, "its header: it lacks image_shape"),
    ("test_accuracy", "good", "test_accuracy takes a number"),
    ("test_time_augmentation", "miror", "did you mean mirror"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD)
def test_bad_headers_are_one_line(field, value, message, exported, tmp_path, capsys):
    path = with_header(exported, tmp_path / "a.safetensors", **{field: value})
    assert predict(f"--weights={path}", "x.png") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path} ")
    assert (message in err, err.count("\n")) == (True, 1)


def test_files_of_others_are_told_what_they_lack(exported, tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, TorchFile(exported).tensors, {"model": "of somebody else"})
    with pytest.raises(UserError, match=r"does not say of which model, classes, mean and std"):
        resnet_jax.weights_info("resnet_small", path)
    with pytest.raises(UserError, match=r"is of the model 'resnet_small', not 'resnet18'"):
        resnet_jax.weights_info("resnet18", exported)


def test_names_and_paths(exported):
    assert find("quickstart", "cifar10") == find_by_model("quickstart") == bundled()["quickstart"]
    for path in (exported, "./cifar10", "cifar10.pth"):
        assert find("quickstart", path) == find_by_model(path) == pathlib.Path(path)
    with pytest.raises(UserError, match="unknown weights 'cifar'; did you mean cifar10"):
        find("quickstart", "cifar")
    with pytest.raises(UserError, match="with cifar10 weights 'quickstar'; did you mean quick"):
        find_by_model("quickstar")


def test_the_script_takes_the_best_checkpoint_of_a_finished_run(
    plain_run, tmp_path, monkeypatch, run_script
):
    monkeypatch.setattr(bundle_weights, "BUNDLED", tmp_path)
    status, _, err = run_script(bundle_weights, str(plain_run[0]))
    assert (status, "is of 'cifar10_sample', not of 'cifar10'" in err) == (2, True)
    monkeypatch.setattr(bundle_weights, "DEFAULT", "cifar10_sample")
    status, out, _ = run_script(bundle_weights, str(plain_run[0]))
    path = tmp_path / "cifar10_sample" / "resnet_small.safetensors"
    accuracy = f"{plain_run[1]['best_test_accuracy']:.2f} %"
    assert (status, out) == (0, f"wrote {path}: 2,466 parameters, {accuracy}\n")
    assert resnet_jax.load_model("resnet_small", weights=path)
    monkeypatch.setattr(bundle_weights, "LIMIT", 100)
    assert run_script(bundle_weights, str(plain_run[0]))[0] == 2


@pytest.mark.parametrize("name", BUNDLED)
def test_what_is_bundled_is_small_and_complete(name):
    info, path = resnet_jax.weights_info(name), bundled()[name]
    assert path.stat().st_size < bundle_weights.LIMIT
    assert (info.dataset, info.image_shape, len(info.class_names)) == ("cifar10", (32, 32, 3), 10)
    assert info.test_accuracy is not None
    assert None not in info.provenance.values()
    assert "/" not in json.dumps(info.provenance), "no folder of a machine"
    _, variables = resnet_jax.load_model(name, weights="cifar10")
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == info.num_parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_what_is_bundled_scores_as_its_header_says(name):
    config = default_config().data
    config.source = "cache"
    try:
        test = load_dataset(config).test
    except UserError:
        pytest.skip("the full CIFAR-10 is not in the cache")
    labels = Classifier.of_weights(name).probabilities(test.images).argmax(-1)
    accuracy = 100 * (labels == test.labels).mean()  # in float32, whatever the run computed in
    assert accuracy == pytest.approx(resnet_jax.weights_info(name).test_accuracy, abs=0.05)


def test_models_of_files_share_no_program():
    programs = [Classifier.of_weights(name)._evaluator._classify for name in BUNDLED]
    assert len({id(program) for program in programs}) == len(BUNDLED) > 1

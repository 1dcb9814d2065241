"""Predictions: where images come from, what is printed, what becomes of bad files, and why."""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import linen as nn
from PIL import Image

import resnet_jax
from resnet_jax import main, platform
from resnet_jax.errors import UserError
from resnet_jax.inference import explain, scores
from resnet_jax.inference import predict as predict_lib
from resnet_jax.inference.scores import all_class_names
from resnet_jax.models import layers
from resnet_jax.models.registry import create_model, list_models, model_options

KINDS = ("png", "jpg", "webp", "gif", "bmp", "tiff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of all kinds and two sizes in folders named like two classes."""
    root, sample = tmp_path_factory.mktemp("images"), tiny_run.sample()
    for label, name in enumerate(sample.info.class_names[:2]):
        (root / name).mkdir()
        for kind, index in zip(KINDS, np.flatnonzero(sample.test.labels == label), strict=False):
            image = Image.fromarray(sample.test.images[index])
            image.resize((48, 64) if label else (32, 32)).save(root / name / f"{kind}.{kind}")
    return root


@pytest.fixture
def predict(plain_run, capsys):
    """Returns a function that predicts here: (status, lines of stdout, stderr)."""

    def call(*arguments, run=plain_run[0]):
        flags = "--mode=predict", f"--workdir={run}"
        status = main.main(["resnet-jax", *flags, *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return call


def test_json_lines_hold_just_what_is_promised(predict, folder):
    status, lines, err = predict("--format=json", "--top=4", folder)
    found = [json.loads(line) for line in lines]
    files = sorted(str(path) for path in folder.rglob("*.*"))
    assert status == 0
    assert [prediction["path"] for prediction in found] == files
    for prediction in found:
        assert list(prediction) == ["path", "classes", "probabilities"]
        assert len(prediction["classes"]) == 4
        assert prediction["probabilities"] == sorted(prediction["probabilities"], reverse=True)
    assert "of 12 images in folders named by class" in err
    right = sum(p["classes"][0] in p["path"].split("/") for p in found)
    assert f"accuracy {100 * right / 12:.2f} %" in err


def test_all_forms_and_python_say_the_same(predict, folder, plain_run):
    *lines, _, accuracy = predict(folder)[1][:15]
    rows = list(csv.DictReader(io.StringIO("\n".join(predict("--format=csv", folder)[1]))))
    found = resnet_jax.predict(plain_run[0], [folder])
    assert accuracy.startswith("accuracy "), "on standard output, below the table"
    for line, row, prediction in zip(lines[1:], rows, found, strict=True):
        name, share = prediction.class_names[0], prediction.probabilities[0]
        assert line.split()[:3] == [name, f"{100 * share:.2f}", "%"]
        assert line.endswith(f"  {prediction.path}")
        assert (row["path"], row["class_1"]) == (prediction.path, name)
        assert float(row["probability_1"]) == share
        assert sum(prediction.probabilities) == pytest.approx(1)


def test_predictions_are_those_of_the_module(predict, folder, plain_run):
    model, variables, info, config = resnet_jax.load_run(plain_run[0])
    found = resnet_jax.predict(plain_run[0], sorted(folder.glob("airplane/*")))
    (alone,) = resnet_jax.predict(plain_run[0], found[0].path)
    assert (alone.path, alone.class_names) == (found[0].path, found[0].class_names)
    for prediction in found:
        pixels = np.asarray(Image.open(prediction.path).convert("RGB"), np.float32) / 255
        x = (pixels - np.float32(config.data.mean)) / np.float32(config.data.std)
        shares = np.asarray(jax.nn.softmax(model.apply(variables, x[None], train=False)))[0]
        by_name = dict(zip(info.class_names, shares, strict=True))
        expected = [by_name[name] for name in prediction.class_names]
        assert prediction.probabilities == pytest.approx(expected, rel=1e-4)


def test_patterns_and_standard_input(predict, folder, monkeypatch):
    _, by_name, _ = predict("--format=json", *sorted(folder.glob("*/*.png")))
    assert predict("--format=json", f"{folder}/*/*.png")[1] == by_name
    assert predict("--format=json", f"{folder}/**/*.png")[1] == by_name
    assert len(predict("--format=json", f"{folder}/**")[1]) == 12, "each image once"
    paths = sorted(folder.glob("*/*.png"))
    for content in ("\n".join(map(str, paths)).encode(), paths[0].read_bytes()):
        stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))
        monkeypatch.setattr(sys, "stdin", stream)
        found = [json.loads(line) for line in predict("--format=json", "-")[1]]
        expected = json.loads(by_name[0])["probabilities"]  # of a larger batch
        assert found[0]["probabilities"] == pytest.approx(expected, rel=1e-4)
    assert [prediction["path"] for prediction in found] == ["-"]


def test_a_ppm_on_standard_input_is_an_image(predict, monkeypatch):
    content = b"P6\n32 32\n255\n" + 32 * 32 * b"\x80\x90\xa0"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    status, lines, _ = predict("--format=json", "-")
    assert (status, [json.loads(line)["path"] for line in lines]) == (0, ["-"])


def test_closed_standard_input_is_a_line(predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert predict("--format=json", "-") == (1, [], "error: standard input is closed\n")


def test_linked_folders_are_searched_once(predict, folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "again").symlink_to(folder)
    alone, linked = (predict("--format=json", place)[1] for place in (folder, tmp_path))
    assert len(linked) == len(alone) > 0


def test_folders_that_cannot_be_read_are_named(predict, folder, refuse_folder):
    refuse_folder("automobile")
    status, lines, err = predict("--format=json", folder)
    assert (status, len(lines)) == (1, 6)
    assert f"error: folder {folder}/automobile can't be read: Permission denied" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_is_a_line(folder, plain_run, monkeypatch, capsys):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        flags = "--mode=predict", f"--workdir={plain_run[0]}", "--format=json"
        assert main.main(["resnet-jax", *flags, str(folder)]) == 2
    assert capsys.readouterr().err == "error: No space left on device\n"


@pytest.mark.parametrize("form", ["table", "csv"])
def test_names_that_the_terminal_cannot_show_are_escaped(
    form, folder, plain_run, tmp_path, monkeypatch
):
    path = tmp_path / "ü\udcff.png"
    shutil.copy(folder / "airplane" / "png.png", path)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    flags = "--mode=predict", f"--workdir={plain_run[0]}", f"--format={form}"
    assert main.main(["resnet-jax", *flags, str(path)]) == 0
    assert rb"\xfc\udcff.png" in stdout.buffer.getvalue()


def test_names_of_classes_send_no_commands_to_the_terminal(predict, folder, monkeypatch):
    names = all_class_names(("\x1b[2J", "b\nc"), 10)  # those of a file of weights may be anything
    monkeypatch.setattr(predict_lib, "all_class_names", lambda *_: names)
    _, lines, err = predict("--top=10", folder)
    assert len(lines) == 13 and err == ""
    assert all(line.isprintable() for line in lines)
    assert r"'b\nc'" in lines[1]


def test_bad_files_are_named_and_skipped(predict, folder, tmp_path, plain_run):
    bad, empty, good = tmp_path / "bad.png", tmp_path / "empty", folder / "airplane" / "png.png"
    bad.write_text("no image")
    empty.mkdir()
    nowhere = tmp_path / "nowhere.png", tmp_path / "*.jpg"
    status, lines, err = predict("--format=json", bad, empty, *nowhere, good)
    assert status == 1
    assert [json.loads(line)["path"] for line in lines] == [str(good)]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for path in (bad, empty, *nowhere):
        assert any(str(path) in error for error in errors)
    with pytest.raises(resnet_jax.UserError, match=r"bad\.png"):
        resnet_jax.predict(plain_run[0], [good, bad])


def test_images_are_read_no_further_than_one_batch_ahead(plain_run, folder):
    from resnet_jax.inference.predict import Classifier

    named, classifier = [], Classifier.of_run(plain_run[0])
    classifier._batch_size = 2

    def names():
        for path in sorted(folder.rglob("*.*")):
            named.append(path)
            yield path

    predictions = classifier.predictions(names())
    for count in range(1, 7):
        next(predictions)
        assert len(named) <= count + 4


def test_a_signal_ends_with_what_is_done(predict, folder, monkeypatch):
    import contextlib

    monkeypatch.setattr(platform, "stop_signals", lambda: contextlib.nullcontext([2]))
    status, lines, err = predict("--format=json", folder)
    assert (status, len(lines)) == (130, 1)
    assert "of 1 images in folders" in err


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--format=xml", "unknown --format 'xml'"), ("--top=0", "top"), ("--output=x", "takes")],
)
def test_bad_flags(predict, flag, message):
    status, lines, err = predict(flag, "x.png")
    assert (status, lines) == (2, [])
    assert message in err


def test_scores_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    confusion = scores.confusion_matrix(labels, predicted, 3)
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    precision, recall = scores.precision_and_recall(confusion)
    assert precision.tolist() == [0.5, 0.5, 0.0]
    assert recall.tolist() == [2 / 3, 0.5, 0.0]
    confidences, is_right = np.array([0.9, 0.7, 0.2, 1.0]), np.array([1, 0, 1, 1], bool)
    bins, error = scores.calibration(confidences, is_right, 2)
    assert [(b.low, b.size) for b in bins] == [(0, 1), (0.5, 3)]
    assert [b.accuracy for b in bins] == pytest.approx([1, 2 / 3])
    assert error == pytest.approx((0.8 + 3 * abs(2 / 3 - 2.6 / 3)) / 4)


# Of one family a deep one, which takes long to trace, is as a shallow one is.
DEEP = ("resnet44", "resnet56", "resnet110", "resnet101", "resnet152")
CONVOLUTIONAL = [name for name in list_models() if not name.startswith("vit") and name not in DEEP]


class Classifier(nn.Module):
    """A 1x1 convolution, an average and a linear layer: its Grad-CAM is known."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(layers.Conv(4, (1, 1), name="conv1")(x))
        x = layers.Function(layers.global_avg_pool)(layers.Function(nn.relu)(x))
        return layers.apply_head(x, 3, layers.Dense)


def test_grad_cam_by_hand():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    model = Classifier()
    variables = model.init(jax.random.key(1), x, train=False)
    labels = np.array([2, 0])
    found = explain.grad_cam(model, variables, x, labels)
    features = np.maximum(
        np.asarray(x) @ np.asarray(variables["params"]["conv1"]["kernel"][0, 0]), 0
    )
    # The gradient of the mean over 30 places is the head's weight over 30, at each of them.
    weights = np.asarray(variables["params"]["head"]["kernel"]).T[labels] / 30
    expected = np.maximum(np.einsum("bhwc,bc->bhw", features, weights), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert float(found.max()) > 0


def test_what_is_computed_again_is_explained_as_well():
    options, x = {"stage_sizes": (1, 1), "num_filters": (2, 4)}, jnp.ones((1, 8, 8, 3))
    init = functools.partial(create_model("resnet_small", **options).init, train=False)
    variables = jax.jit(init)(jax.random.key(0), x)
    found = []
    for remat in (0, 2):
        module = create_model("resnet_small", remat=remat, **options)
        network = types.SimpleNamespace(module=module, inputs=lambda images: images)
        found.append(explain._explain(network, variables, x, np.array([3])))
    np.testing.assert_array_equal(*found)


def test_attention_rollout_by_hand():
    options = {"patch_size": 8, "hidden_size": 8, "num_heads": 2, "num_layers": 2}
    model, x = create_model("vit_tiny", **options), jnp.ones((3, 16, 24, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)
    assert variables.keys() == {"params"}
    x = jax.random.normal(jax.random.key(1), x.shape)
    look = functools.partial(model.apply, train=False, capture_intermediates=True)
    _, seen = jax.jit(look)(variables, x)
    flow = np.eye(7)
    for block in ("block1", "block2"):
        qkv = np.asarray(seen["intermediates"][block]["attention"]["qkv"]["__call__"][0])
        heads = [(qkv[..., 4 * h : 4 * h + 4], qkv[..., 8 + 4 * h : 12 + 4 * h]) for h in (0, 1)]
        scores_of = [np.exp(query @ key.swapaxes(1, 2) / 2) for query, key in heads]
        weights = np.mean([score / score.sum(-1, keepdims=True) for score in scores_of], axis=0)
        flow = (weights / 2 + np.eye(7) / 2) @ flow
    np.testing.assert_allclose(flow.sum(-1), 1, rtol=1e-5)
    found = explain.attention_rollout(model, variables, x)
    np.testing.assert_allclose(found, flow[:, 0, 1:].reshape(3, 2, 3), rtol=1e-5)


def shallow(name):
    known = model_options(name)
    depths = {"stage_sizes": (1,) * len(known["stage_sizes"])} if "stage_sizes" in known else {}
    return create_model(name, **depths)


SHALLOW = {repr(shallow(name)): name for name in reversed(CONVOLUTIONAL)}.values()
OF_EACH_KIND = ("alexnet", "cnn", "preact_resnet18", "resnet18", "resnet50", "vgg11_bn")


@pytest.mark.parametrize(
    "name",
    [n if n in OF_EACH_KIND else pytest.param(n, marks=pytest.mark.slow) for n in SHALLOW],
)
def test_every_convolutional_model_has_a_last_map(name):
    model = shallow(name)
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    cam = jax.eval_shape(lambda *a: explain.grad_cam(model, *a), variables, x, labels)
    assert cam.shape[0] == 2
    assert min(cam.shape[1:]) > 1, "a single place explains nothing"


def test_grad_cam_is_that_of_pytorchs_hooks(tmp_path):
    torch = pytest.importorskip("torch")
    from test_torch_parity import pair

    module, model, variables, images, tensor = pair("kuangliu resnet18", tmp_path)
    module.eval()
    kept = {}
    layer = getattr(module, f"layer{module.num_stages}")
    layer.register_forward_hook(lambda m, inputs, output: kept.update(features=output))
    layer.register_full_backward_hook(lambda m, inputs, outputs: kept.update(gradient=outputs[0]))
    labels = np.array([3, 1, 0, 7])
    module(tensor)[0].gather(1, torch.tensor(labels)[:, None]).sum().backward()
    weights = kept["gradient"].mean((2, 3), keepdim=True)
    expected = torch.relu((weights * kept["features"]).sum(1)).detach().numpy()
    found = explain.grad_cam(model, variables, jnp.asarray(images), labels)
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


def test_arrays_are_bytes(plain_run):
    with pytest.raises(UserError, match="pixels must be uint8"):
        predict_lib.Classifier.of_run(plain_run[0]).probabilities(np.zeros((1, 32, 32, 3)))


def test_overlays_are_written(predict, folder, plain_run, tmp_path):
    run = shutil.copytree(plain_run[0], tmp_path / "run")
    status, _, err = predict("--cam", folder / "airplane" / "png.png", run=run)
    assert status == 0
    (path,) = (run / "cam").iterdir()
    assert path.name == "00001-png.png"
    assert str(path.parent) in err
    assert Image.open(path).size == (224, 224)
    longest = tmp_path / f"{83 * '漢'}.png"
    shutil.copy(folder / "airplane" / "png.png", longest)
    assert predict("--cam", longest, run=run)[0] == 0, "the number makes no name too long"
    status, _, err = predict("--cam", tmp_path, run=run)
    assert status == 2 and "cam, which is in " in err, "overlays would have overlays"


def test_an_overlay_is_brightest_where_the_heat_is():
    heat = np.zeros((4, 4))
    heat[1, 2] = 3.0
    pixels = np.asarray(explain.overlay(np.full((8, 8, 3), 100, np.uint8), heat), float).sum(-1)
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert (row * 4 // 224, column * 4 // 224) == (1, 2)

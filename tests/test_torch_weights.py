"""PyTorch weights in and out: every model of the registry, misfits, heads."""

import functools

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.models import vgg
from resnet_jax.models.registry import create_model, list_models, model_options, variable_shapes
from resnet_jax.weights import torch_names
from resnet_jax.weights.load import import_torch, load_model
from resnet_jax.weights.torch_files import TorchFile, write_safetensors
from resnet_jax.weights.torch_weights import fill, state_dict

SMALL = {"stage_sizes": (1, 2), "num_filters": (4, 8)}


def small(name, **options):
    """The model cut to two stages of one and two blocks."""
    known = model_options(name)
    if "stage_sizes" in known:
        options = SMALL | options
    if "stage_strides" in known:
        options = {"stage_strides": known["stage_strides"][:2]} | options
    if "hidden_sizes" in known:
        options = {"num_filters": (4, 4, 4, 4, 6), "hidden_sizes": (8, 8)} | options
    if name.startswith("vit"):
        options = {"num_layers": 2, "num_heads": 2, "hidden_size": 8} | options
    return create_model(name, **options)


@functools.cache
def shapes_of(model, image_shape):
    return variable_shapes(model, image_shape)


@pytest.fixture(autouse=True)
def narrow_classifiers(monkeypatch):
    shapes = lambda model, shape: jax.tree.map(lambda leaf: leaf, shapes_of(model, tuple(shape)))  # noqa: E731
    monkeypatch.setattr("resnet_jax.weights.torch_weights.variable_shapes", shapes)
    monkeypatch.setitem(vgg.CLASSIFIERS, "imagenet", (7, (6, 5)))
    monkeypatch.setitem(vgg.CLASSIFIERS, "transfer", (7, (6, 5, 4)))


def random_variables(model, size=32):
    """Variables of random numbers, as NumPy arrays; nothing is compiled."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, shapes_of(model, (size, size, 3)))


def saved(path, model, change=lambda tensors: tensors):
    """Writes random variables of a model, and returns them and the path."""
    variables = random_variables(model)
    write_safetensors(path, change(state_dict(model, variables)))
    return variables, path


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def refusal(path, model, **options):
    with pytest.raises(UserError) as caught:
        import_torch(path, model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Every model, there and back


# Cut, many models are the same.
DISTINCT = {repr(small(name)): name for name in reversed(list_models())}


@pytest.mark.parametrize("name", DISTINCT.values())
def test_round_trip_returns_the_same_bits(tmp_path, name):
    model = small(name)
    variables = random_variables(model, 224 if name.endswith("224") else 32)
    write_safetensors(tmp_path / "a.safetensors", state_dict(model, variables))
    assert_same_bits(import_torch(tmp_path / "a.safetensors", model), variables)


VARIANTS = [
    ("resnet18", {"stem": "imagenet", "squeeze_excitation": 2}),
    ("resnet50", {"stem": "imagenet"}),
    ("preact_resnet50", {"final_norm": True, "squeeze_excitation": 2}),
    ("wide_resnet16_8", {"squeeze_excitation": 2, "shortcut": "projection"}),
    ("resnet_textbook", {"num_convs": 3, "final_norm": True}),
    ("vgg16", {"classifier": "transfer"}),
    ("vgg16_bn", {"classifier": "cifar"}),
    ("vgg11", {"num_classes": 0}),
    ("resnet20", {"num_classes": 0}),
    ("vit_tiny", {"num_classes": 0}),
    ("cnn", {"num_classes": 0}),
    ("alexnet", {"num_classes": 0}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_round_trip_of_variants(tmp_path, name, options):
    model = small(name, **options)
    variables, path = saved(tmp_path / "a.safetensors", model)
    assert_same_bits(import_torch(path, model), variables)


@pytest.mark.parametrize("name", ["resnet50", "wide_resnet16_8", "vit_tiny"])
def test_every_dialect_is_found_from_the_keys(tmp_path, name):
    model = small(name)
    variables = random_variables(model)
    ours = state_dict(model, variables)
    usual, *others = torch_names.dialects(model).values()
    paths = ["/".join(e.key for e in p[1:]) for p, _ in jax.tree.leaves_with_path(variables)]
    for rows in others:
        if rows["head"] == "fc" and "bn1" not in rows and name == "resnet50":
            continue  # xternalz's networks have no norm in the stem
        keys = {torch_names.torch_key(usual, path): path for path in paths}
        tensors = {torch_names.torch_key(rows, path): ours[key] for key, path in keys.items()}
        assert len(tensors) == len(paths)
        write_safetensors(tmp_path / "a.safetensors", tensors)
        assert_same_bits(import_torch(tmp_path / "a.safetensors", model), variables)


def test_keys_are_the_usual_ones():
    def keys(name, **options):
        model = create_model(name, **options)
        return state_dict(model, random_variables(model)).keys()

    rows = torch_names.dialects(create_model("resnet152", stem="imagenet"))["torchvision"]
    key = torch_names.torch_key(rows, "stage3_block36/conv3/kernel")
    assert key == "layer3.35.conv3.weight"
    assert keys("resnet20") >= {"layer3.2.bn2.running_var", "linear.weight"}
    assert keys("resnet_small") >= {"conv.weight", "bn.bias", "layer2.0.downsample.1.bias"}
    assert keys("preact_resnet18", **SMALL) >= {"layer2.0.shortcut.0.weight", "layer1.0.bn1.bias"}
    assert keys("resnet50", **SMALL, stem="imagenet") >= {"layer1.0.downsample.0.weight", "fc.bias"}
    wide = keys("wide_resnet16_8", **SMALL)
    assert wide >= {"block2.layer.1.conv2.weight", "block2.layer.0.convShortcut.weight", "bn1.bias"}
    assert keys("vgg16", num_filters=(1,) * 5) >= {"features.28.bias", "classifier.6.weight"}
    assert keys("vgg16_bn", num_filters=(1,) * 5) >= {
        "features.41.running_mean",
        "features.40.bias",
    }


def test_kernels_are_transposed_and_the_flattened_layer_permuted(tmp_path):
    model = small("vgg11")
    variables, path = saved(tmp_path / "a.safetensors", model)
    tensors = TorchFile(path).tensors
    kernel = variables["params"]["conv2_1"]["kernel"]
    np.testing.assert_array_equal(tensors["features.3.weight"][5, 2], kernel[:, :, 2, 5])
    channels_last = variables["params"]["fc1"]["kernel"].reshape(7, 7, 8, 6)
    channels_first = tensors["classifier.0.weight"].reshape(6, 8, 7, 7)
    np.testing.assert_array_equal(channels_first[4, 3], channels_last[:, :, 3, 4])


# What does not fit


def test_misfits_are_listed(tmp_path):
    def change(tensors):
        tensors["layer1.0.conv1.wieght"] = tensors.pop("layer1.0.conv1.weight")
        tensors["linear.bias"] = np.zeros(10, np.int64)
        tensors["layer2.1.bn2.weight"] = np.zeros(9, np.float32)
        tensors["surplus"] = np.zeros(1, np.float32)
        return tensors

    model = small("resnet18")
    _, path = saved(tmp_path / "a.safetensors", model, change)
    message = refusal(path, model)
    assert f"{path} does not fit the model, by the names of kuangliu or akamaster: " in message
    assert "missing layer1.0.conv1.weight (nearest: layer1.0.conv1.wieght); " in message
    assert "extra layer1.0.conv1.wieght, surplus; " in message
    assert "; unfit linear.bias int64[10], not float[10], " in message
    assert message.endswith(", layer2.1.bn2.weight float32[9], not float[8]")


def test_files_of_other_models(tmp_path):
    file_model = small("resnet18", stem="imagenet", num_classes=7)
    _, path = saved(tmp_path / "a.safetensors", file_model)
    message = refusal(path, small("resnet18"))
    assert "unfit conv1.weight float32[4, 3, 7, 7], not float[4, 3, 3, 3], " in message
    assert "; the file is for a model of stem='imagenet', num_classes=7" in message
    assert "and 6 more; unfit fc.bias float32[7], not float[10]" in refusal(
        path, small("resnet18", stage_sizes=(1, 3), stem="imagenet")
    )
    assert "missing" in refusal(path, small("vgg11"))
    assert "missing" in refusal(path, small("vit_tiny"))


def test_other_modules_and_heads_are_refused(tmp_path):
    _, path = saved(tmp_path / "a.safetensors", small("cnn"))
    assert "modules of class Dense" in refusal(path, nn.Dense(3))
    assert "unknown head 'kep'; did you mean keep?" in refusal(path, small("cnn"), head="kep")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_converted(tmp_path, dtype):
    def change(tensors):
        return {key: tensor.astype(dtype) for key, tensor in tensors.items()}

    model = small("resnet_small")
    variables, path = saved(tmp_path / "a.safetensors", model, change)
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), variables)
    assert_same_bits(import_torch(path, model), expected)


def test_too_large_values_are_refused(tmp_path):
    def change(tensors):
        return tensors | {"fc3.bias": np.full(10, 1e300)}

    _, path = saved(tmp_path / "a.safetensors", small("cnn"), change)
    assert "fc3.bias is not finite, or too large for float32" in refusal(path, small("cnn"))


def test_num_batches_tracked_is_passed_over(tmp_path):
    def change(tensors):
        return tensors | {"bn.num_batches_tracked": np.array(5)}

    model = small("resnet_small")
    variables, path = saved(tmp_path / "a.safetensors", model, change)
    assert_same_bits(import_torch(path, model), variables)


# Heads


HEADS = [
    ("resnet18", {"stem": "imagenet"}),
    ("resnet18", {}),
    ("vgg11", {}),
    ("vgg11_bn", {"classifier": "cifar"}),
    ("vit_tiny", {}),
    ("cnn", {}),
]


@pytest.mark.parametrize(("name", "options"), HEADS)
def test_heads(tmp_path, name, options):
    variables, path = saved(tmp_path / "a.safetensors", small(name, num_classes=7, **options))
    trunk = dict(variables["params"])
    head = trunk.pop("head")
    other = small(name, num_classes=5, **options)
    assert "; the file is for a model of num_classes=7" in refusal(path, other)
    params = import_torch(path, other, "fit", seed=1)["params"]
    new = params.pop("head")
    assert new["kernel"].shape[-1] == 5
    assert_same_bits(params, trunk)
    if name == "cnn":  # the rest is the same for all
        assert_same_bits(import_torch(path, other, "fit", seed=1)["params"]["head"], new)
        third = import_torch(path, other, "fit", seed=2)["params"]["head"]
        assert not np.array_equal(new["kernel"], third["kernel"])
    same = small(name, num_classes=7, **options)
    assert_same_bits(import_torch(path, same, "fit")["params"]["head"], head)
    bare = small(name, num_classes=0, **options)
    dropped = import_torch(path, bare)
    assert_same_bits(dropped["params"], trunk)


def test_a_longer_head_takes_the_place_of_the_last_layer(tmp_path):
    variables, path = saved(tmp_path / "a.safetensors", small("vgg11", num_classes=7))
    params = import_torch(path, small("vgg11", classifier="transfer"), "fit")["params"]
    assert params["fc3"]["kernel"].shape == (5, 4)
    assert params["head"]["kernel"].shape == (4, 10)
    assert_same_bits(params["fc2"], variables["params"]["fc2"])


# In other people's code


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"stem": "imagenet"}),
        ("resnet18", {}),
        ("vgg16", {"classifier": "transfer"}),
        ("vgg16", {"classifier": "cifar"}),
        ("vgg16", {}),
    ],
)
def test_load_model_finds_what_the_file_is_for(tmp_path, name, options):
    variables, path = saved(tmp_path / "a.safetensors", small(name, num_classes=7, **options))
    model, loaded = load_model(name, weights=path, **SMALL)
    assert model == small(name, num_classes=7, **options)
    assert_same_bits(loaded, variables)
    if options == {"stem": "imagenet"}:
        model, loaded = load_model(name, 3, weights=path, **SMALL)
        assert loaded["params"]["head"]["bias"].shape == (3,)
        model, loaded = load_model(name, 0, weights=path, **SMALL)
        assert "head" not in loaded["params"]


def test_a_vit_takes_the_size_of_the_positions(tmp_path):
    model = small("vit_tiny_patch16_224")
    variables = random_variables(model, 64)
    write_safetensors(tmp_path / "a.safetensors", state_dict(model, variables))
    options = {"num_layers": 2, "num_heads": 2, "hidden_size": 8}
    path = tmp_path / "a.safetensors"
    _, loaded = load_model("vit_small_patch16_224", weights=path, **options)
    assert loaded["params"]["pos_embed"].shape == (1, 17, 8)
    message = refusal(path, model, image_shape=(32, 32, 3))
    assert "pos_embed float32[1, 17, 8], not float[1, 5, 8]" in message


def test_without_a_classifier_load_model_asks_for_num_classes(tmp_path):
    _, path = saved(tmp_path / "a.safetensors", small("cnn", num_classes=0))
    with pytest.raises(UserError, match="has no classifier of 'cnn'; give num_classes"):
        load_model("cnn", weights=path)
    assert load_model("cnn", 4, weights=path)[1]["params"]["head"]["bias"].size == 4


def test_load_model_keeps_a_damaged_head_out(tmp_path):
    def change(tensors):
        return tensors | {"fc3.weight": np.zeros((10, 3), np.float32)}

    _, path = saved(tmp_path / "a.safetensors", small("cnn"), change)
    with pytest.raises(UserError, match=r"unfit fc3\.weight float32\[10, 3\], not float\[10, 84\]"):
        load_model("cnn", weights=path)


def test_a_training_hears_what_it_starts_from(tmp_path):
    variables, path = saved(tmp_path / "a.safetensors", small("cnn"))
    said = []
    same = fill(small("cnn"), TorchFile(path), "fit", (32, 32, 3), 0, said.append)
    assert_same_bits(same, variables)
    fill(small("cnn", num_classes=3), TorchFile(path), "fit", (32, 32, 3), 0, said.append)
    start = f"starting from the weights in {path}, by the names of PyTorch tutorial"
    assert said == [start, f"{start}; the head is new, since the file's has other shapes"]

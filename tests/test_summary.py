"""The layer table: multiply-accumulates, parameters, layout."""

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import main
from resnet_jax.errors import UserError
from resnet_jax.models.registry import create_model
from resnet_jax.report.summary import format_model, layer_table

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


def total_macs(layers):
    return sum(layer.macs for layer in layers)


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet_small", 28_754_560),
        ("resnet18", 555_422_720),
        ("resnet50", 1_297_829_888),
        ("resnet_v1", 253_432_832),
        ("resnet_v2", 335_480_064),
        ("resnet_custom", 118_852_096),
    ],
)
def test_macs(name, macs):
    assert total_macs(layer_table(create_model(name), CIFAR)) == macs


def test_macs_of_the_other_families():
    vgg = layer_table(create_model("vgg16_bn", classifier="cifar"), CIFAR)
    assert total_macs(vgg) == 313_201_664
    assert total_macs(layer_table(create_model("vgg16", 1000), IMAGENET)) == 15_470_264_320
    resnet = layer_table(create_model("resnet50", 1000, stem="imagenet"), IMAGENET)
    assert total_macs(resnet) == 4_089_184_256


def test_macs_of_attention():
    layers = {layer.path: layer for layer in layer_table(create_model("vit_tiny"), CIFAR)}
    tokens, width = 65, 192
    assert layers["block1/attention"].macs == 2 * tokens**2 * width  # scores, and their use
    assert layers["block1/attention/qkv"].macs == tokens * width * 3 * width
    assert layers["."].parameters == width + tokens * width  # class token and positions


def test_layers_of_cnn():
    layers = layer_table(create_model("cnn"), CIFAR)
    assert [(layer.path, layer.kind, layer.output_shape, layer.parameters) for layer in layers] == [
        ("conv1", "Conv", (28, 28, 6), 456),
        ("relu", "relu", (28, 28, 6), 0),
        ("max_pool", "max_pool", (14, 14, 6), 0),
        ("conv2", "Conv", (10, 10, 16), 2_416),
        ("relu", "relu", (10, 10, 16), 0),
        ("max_pool", "max_pool", (5, 5, 16), 0),
        ("fc1", "Dense", (120,), 48_120),
        ("relu", "relu", (120,), 0),
        ("fc2", "Dense", (84,), 10_164),
        ("relu", "relu", (84,), 0),
        ("head", "Dense", (10,), 850),
    ]
    assert layers[0].macs == 28 * 28 * 6 * 5 * 5 * 3


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet_custom", "conv1 bn1 relu conv2 bn2 relu"),
        ("resnet_custom_skip", "shortcut_conv shortcut_bn conv1 bn1 relu conv2 bn2 relu"),
        ("resnet_textbook", "shortcut_conv conv1 bn1 relu conv2 bn2 relu"),
        ("preact_resnet50", "bn1 relu shortcut_conv conv1 bn2 relu conv2 bn3 relu conv3"),
    ],
)
def test_the_layers_of_a_block_that_narrows(name, layers):
    model = create_model(name, stage_sizes=(1, 1), num_filters=(8, 16))
    paths = [layer.path.partition("/") for layer in layer_table(model, CIFAR)]
    assert [own for block, _, own in paths if own and block == "stage2_block1"] == layers.split()


def test_dropout_is_a_layer_where_it_drops_anything():
    for rate, count in ((0.0, 51), (0.2, 52)):
        layers = layer_table(create_model("resnet_small", dropout_rate=rate), CIFAR)
        assert len(layers) == count  # as torchsummary lists R5's network
        assert [layer.kind for layer in layers].count("Dropout") == (rate > 0)


@pytest.mark.parametrize(
    ("spec", "counts", "sizes"),
    [  # what torchsummary 1.5.1 prints of the same modules in PyTorch
        ("cnn.py", ["62,006", "62,006", "0"], ["0.01", "0.11", "0.24", "0.36"]),
        ("resnet_small.py", ["195,738", "195,738", "0"], ["0.01", "3.63", "0.75", "4.38"]),
        (
            "vgg16_transfer.py",
            ["136,363,338", "2,102,794", "134,260,544"],
            ["0.57", "218.79", "520.18", "739.54"],
        ),
    ],
)
def test_totals_and_sizes_are_torchsummarys(spec, counts, sizes, capsys):
    assert main.main(["resnet-jax", "--mode=summary", f"--config={spec}"]) == 0
    layers = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.rpartition(": ")[2] for line in layers[-7:]] == counts + sizes


def test_parameters_are_all_of_the_models():
    model = create_model("resnet_small", squeeze_excitation=4)
    images = jnp.zeros((1, *CIFAR))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]
    counted = sum(layer.parameters for layer in layer_table(model, CIFAR))
    assert counted == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_tables_fit_and_add_up():
    model = create_model("resnet152", 1000, stem="imagenet", stage_sizes=(1, 1, 10, 1))
    assert max(map(len, format_model(model, IMAGENET).splitlines())) <= 100
    layers, parameters = format_model(create_model("resnet_small"), CIFAR).split("\n\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in layers.splitlines()]
    assert cells[1] == ["Path", "Kind", "Output_shape", "Parameters", "Macs"]
    assert cells[3] == ["conv1", "Conv", "(32, 32, 16)", "432", "442,368"]
    assert "Multiply-accumulates: 28,754,560 per image" in layers.splitlines()
    assert "| conv1/kernel " in parameters
    assert parameters.splitlines()[-1].startswith("Total: 195,738 --")


def test_images_too_small_are_one_line():
    with pytest.raises(UserError, match="give at least 32x32"):
        layer_table(create_model("vgg16"), (8, 8, 3))

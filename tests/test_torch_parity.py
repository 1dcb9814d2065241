"""Each family against a PyTorch module: activations, gradients, statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.models import vgg
from resnet_jax.models.registry import create_model
from resnet_jax.weights.load import import_torch

torch = pytest.importorskip("torch")
modules = pytest.importorskip("torch_modules")
torchvision_vit = pytest.importorskip("torchvision_vit")

SIZES, WIDTHS = (1, 2), (8, 12)
RESNET = {"stage_sizes": SIZES, "num_filters": WIDTHS}
IMAGENET = RESNET | {"stem": "imagenet"}
VGG = RESNET | {"dropout_rate": 0.0}
VIT = {"patch_size": 8, "hidden_size": 16, "num_heads": 2, "num_layers": 2}
ALEXNET = {"num_filters": (8, 12, 16, 12, 10), "hidden_sizes": (20, 24), "dropout_rate": 0.0}

CASES = {
    "torchvision resnet18": ("resnet18", IMAGENET),
    "torchvision resnet50": ("resnet50", IMAGENET),
    "kuangliu resnet18": ("resnet18", RESNET),
    "kuangliu resnet50": ("resnet50", RESNET),
    "kuangliu preact": ("preact_resnet18", RESNET),
    "akamaster resnet20": ("resnet20", RESNET),
    "yunjey resnet_small": ("resnet_small", RESNET),
    "xternalz wide": ("wide_resnet16_8", RESNET | {"stem_filters": 6}),
    "vgg": ("vgg16", VGG),
    "vgg_bn": ("vgg16_bn", VGG),
    "vgg transfer": ("vgg16", VGG | {"classifier": "transfer"}),
    "kuangliu vgg": ("vgg16_bn", VGG | {"classifier": "cifar"}),
    "cnn": ("cnn", {}),
    "alexnet": ("alexnet", ALEXNET),
    "timm vit": ("vit_tiny", VIT),
    "torchvision vit": ("vit_tiny", VIT),
    "older torchvision vit": ("vit_tiny", VIT),
}

# Those whose layers the others have too; what differs is names, or a part that these train as well.
DISTINCT = [
    "torchvision resnet50",
    "kuangliu resnet18",
    "kuangliu preact",
    "akamaster resnet20",
    "yunjey resnet_small",
    "xternalz wide",
    "vgg",
    "kuangliu vgg",
    "cnn",
    "alexnet",
    "timm vit",
]

one_by_one = functools.partial(modules.projection, 1)
three_by_three = functools.partial(modules.projection, 3)
shape = {"sizes": SIZES, "widths": WIDTHS}
torchvision = {"names": modules.TORCHVISION, "stem": 7, **shape}
yunjey = {"names": modules.YUNJEY, **shape}
vit = {"width": 16, "positions": 17}

MODULES = {
    "torchvision resnet18": lambda: modules.ResNet(modules.Basic, one_by_one, **torchvision),
    "torchvision resnet50": lambda: modules.ResNet(modules.Bottleneck, one_by_one, **torchvision),
    "kuangliu resnet18": lambda: modules.ResNet(modules.Basic, one_by_one, **shape),
    "kuangliu resnet50": lambda: modules.ResNet(modules.Bottleneck, one_by_one, **shape),
    "kuangliu preact": lambda: modules.ResNet(modules.PreActivation, None, **shape),
    "akamaster resnet20": lambda: modules.ResNet(modules.Basic, modules.ZeroPad, **shape),
    "yunjey resnet_small": lambda: modules.ResNet(modules.Basic, three_by_three, **yunjey),
    "xternalz wide": lambda: modules.WideResNet(stem_width=6, **shape),
    "vgg": lambda: modules.VGG(False, hidden=(24, 20), **shape),
    "vgg_bn": lambda: modules.VGG(True, hidden=(24, 20), **shape),
    "vgg transfer": lambda: modules.VGG(False, hidden=(24, 20, 14), **shape),
    "kuangliu vgg": lambda: modules.VGG(True, hidden=(), **shape),
    "cnn": modules.CNN,
    "alexnet": lambda: modules.AlexNet((8, 12, 16, 12, 10), (20, 24)),
    "timm vit": lambda: modules.TimmViT(heads=2, depth=2, patch=8, **vit),
    "torchvision vit": lambda: torchvision_vit.TorchvisionViT(old=False, **vit),
    "older torchvision vit": lambda: torchvision_vit.TorchvisionViT(old=True, **vit),
}


@pytest.fixture(autouse=True)
def narrow_classifiers(monkeypatch):
    monkeypatch.setitem(vgg.CLASSIFIERS, "imagenet", (7, (24, 20)))
    monkeypatch.setitem(vgg.CLASSIFIERS, "transfer", (7, (24, 20, 14)))


def random_module(make):
    """A PyTorch module whose norms and statistics are random too."""
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or (name.endswith("bias") and tensor.ndim == 1):
                tensor.uniform_(-0.5, 0.5)
    return module


def channels_last(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def pair(case, folder):
    """A module of PyTorch and ours with its weights, and images: NumPy's and PyTorch's."""
    name, options = CASES[case]
    module, model = random_module(MODULES[case]), create_model(name, **options)
    # Steps of 2 fall otherwise on an odd side than on an even one, where "SAME" would be noticed.
    height = 32 if case.endswith("vit") or name in ("cnn", "alexnet") else 33
    images = np.random.default_rng(0).normal(size=(4, height, 32, 3)).astype(np.float32)
    torch.save(module.state_dict(), folder / "weights.pth")
    variables = import_torch(folder / "weights.pth", model)
    return module, model, variables, images, torch.tensor(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("case", CASES)
def test_activations_gradients_and_statistics(case, tmp_path):
    found = pair(case, tmp_path)
    assert_activations(*found)
    if case in DISTINCT:
        assert_gradients_and_statistics(*found, tmp_path)


def assert_activations(module, model, variables, images, batch):
    logits, stages = module.eval()(batch)
    ours, state = jax.jit(
        lambda v, x: model.apply(v, x, train=False, mutable=["intermediates"]),
    )(variables, images)
    np.testing.assert_allclose(ours, logits.detach(), rtol=1e-4, atol=1e-4)
    assert logits.std() > 1e-2
    assert len(state["intermediates"]) == len(stages)
    for index, stage in enumerate(stages, start=1):
        (feature,) = state["intermediates"][f"stage{index}"]
        np.testing.assert_allclose(feature, channels_last(stage), rtol=1e-4, atol=1e-4)


def assert_gradients_and_statistics(module, model, variables, images, batch, tmp_path):
    labels = np.array([3, 1, 7, 0])
    loss = torch.nn.functional.cross_entropy(module.train()(batch)[0], torch.tensor(labels))
    loss.backward()
    after = module.state_dict() | {n: p.grad for n, p in module.named_parameters()}
    torch.save(after, tmp_path / "gradients.pth")
    expected = import_torch(tmp_path / "gradients.pth", model)

    def loss_fn(params, rest):
        logits, state = model.apply({"params": params, **rest}, images, train=True, mutable=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state.get("batch_stats")

    params = variables.pop("params")
    (our_loss, stats), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, variables)
    assert abs(our_loss - loss.item()) < 1e-4
    assert_close(grads, expected["params"], 1e-3)
    assert_close(stats or {}, expected.get("batch_stats", {}), 1e-4)


def assert_close(ours, theirs, tolerance):
    scale = max((float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs)), default=0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale),
        *(ours, theirs),
    )

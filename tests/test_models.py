"""Every model of the registry: counts, gradients, dtypes, sizes, features."""

import copy
import functools
import math
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import tree_leaves_with_path

from resnet_jax.errors import UserError
from resnet_jax.models import vgg
from resnet_jax.models.registry import create_model, list_models, model_options
from resnet_jax.models.resnet import BasicBlock, ResidualBlock

# These tests compile much and run little: no optimization, and random bits that compile fast.
FAST_COMPILE = {"xla_backend_optimization_level": "0"}
KEY = jax.random.key(0)

COUNTS = {
    "cnn": 62_006,
    "alexnet": 23_272_266,
    "resnet_small": 195_738,
    "resnet_v1": 4_903_242,
    "resnet_v2": 1_891_658,
    "resnet_custom": 4_729_610,
    "resnet_custom_skip": 4_773_962,
    "resnet_textbook": 9_625_994,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "resnet152": 58_156_618,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "preact_resnet18": 11_171_146,
    "preact_resnet34": 21_279_306,
    "preact_resnet50": 23_509_066,
    "wide_resnet16_8": 10_961_370,
    "wide_resnet28_10": 36_479_194,
    "quickstart": 304_154,
    "vit_tiny": 5_362_762,
    "vit_small": 21_342_346,
}
IMAGENET_COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
}
VARIANT_COUNTS = [
    ("vgg16", {"classifier": "cifar"}, 14_719_818),
    ("vgg16_bn", {"classifier": "cifar"}, 14_728_266),
]


@functools.cache
def shapes_of(model, size=32):
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def small(name, **options):
    """The model cut to two stages of one and two blocks, from 8 channels on."""
    known = model_options(name)
    if "stage_sizes" in known:
        widths = known["num_filters"][:2]
        options |= {"stage_sizes": [1, 2], "num_filters": [w * 8 // widths[0] for w in widths]}
    if "hidden_sizes" in known:
        options |= {"num_filters": [8, 24, 48, 32, 32], "hidden_sizes": [32, 32]}
    if name.startswith("vit"):
        options |= {"num_layers": 2, "num_heads": 2, "hidden_size": 16}
    return create_model(name, **options)


@pytest.fixture
def narrow_classifiers(monkeypatch):
    monkeypatch.setitem(vgg.CLASSIFIERS, "imagenet", (7, (32, 32)))


def random_images(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def jit(function):
    return jax.jit(function, compiler_options=FAST_COMPILE)


def random_variables(model, size=32):
    """Variables as an initialisation would draw them; nothing is compiled."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            scale = (2 / math.prod(leaf.shape[:-1])) ** 0.5
            return rng.normal(scale=scale, size=leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, size))


@functools.cache
def gradients(model):
    """Loss and gradients in training; cached, as scaled-down models coincide."""
    return gradients_at(model, random_variables(model))


def gradients_at(model, variables):
    """Loss and gradients in training, jitted."""

    def loss(params, rest, images):
        logits, _ = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            rngs={"dropout": KEY},
            mutable=["batch_stats"],
        )
        return -nn.log_softmax(logits)[:, 0].mean()

    images = random_images(4, 32, 32, 3)
    rest = dict(variables)
    params = rest.pop("params")
    return jax.device_get(jit(jax.value_and_grad(loss))(params, rest, images))


def test_blocks_of_blocks_have_names():
    class OwnBlock(BasicBlock):
        pass

    assert create_model("resnet18", block_cls="OwnBlock").block_cls is OwnBlock


@pytest.mark.parametrize("name", ["cnn", "alexnet", "resnet_small", "preact_resnet18", "vit_tiny"])
def test_ranks_are_promoted_by_name(name):
    model = small(name)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)

    def loss(variables, images, train):
        logits, _ = model.apply(variables, images, train, rngs={"dropout": KEY}, mutable=True)
        return logits.sum()

    with jax.numpy_rank_promotion("raise"):
        for train in (True, False):
            gradient = jax.grad(functools.partial(loss, train=train))
            jax.jit(gradient).lower(shapes_of(model), images)


def assert_gradients(model):
    value, grads = gradients(model)
    assert np.isfinite(value)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in tree_leaves_with_path(grads)}
    normed = any("bn" in name for name in leaves)
    for name, grad in leaves.items():
        assert np.isfinite(grad).all(), name
        # Batch normalization cancels the bias of a convolution before it.
        if normed and "['conv" in name and "bias" in name:
            assert np.abs(grad).max() < 1e-4, name
        else:
            assert np.abs(grad).max() > 0, name


def assert_names(variables):
    """Every submodule has a name of its own; Flax's are such as Conv_0."""
    for path, _ in tree_leaves_with_path(variables):
        assert all(entry.key == entry.key.lower() for entry in path), path


# What they are made of, shallower ones are made of too.
DEEP = {"resnet44", "resnet56", "resnet110", "resnet101", "resnet152"}


def some_slow(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in names]


def test_counts_cover_the_registry():
    assert COUNTS.keys() | IMAGENET_COUNTS.keys() >= set(list_models())


@pytest.mark.parametrize("name", some_slow(COUNTS))
def test_parameter_count(name):
    variables = shapes_of(create_model(name))
    assert count(variables["params"]) == COUNTS[name]
    assert_names(variables)


def test_deep_models_are_shallow_ones_with_more_blocks():
    block = (COUNTS["resnet32"] - COUNTS["resnet20"]) // 2  # one in each stage
    for depth in (44, 56, 110):
        size = (depth - 2) // 6
        assert create_model(f"resnet{depth}") == create_model("resnet20", stage_sizes=(size,) * 3)
        assert COUNTS[f"resnet{depth}"] == COUNTS["resnet20"] + (size - 3) * block
    sizes = [(1, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1)]
    models = [create_model("resnet50", stage_sizes=of_each) for of_each in sizes]
    one, second, third = (count(shapes_of(model)["params"]) for model in models)
    for depth, of_each in ((101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))):
        assert create_model(f"resnet{depth}") == create_model("resnet50", stage_sizes=of_each)
        more = (of_each[1] - 4) * (second - one) + (of_each[2] - 6) * (third - one)
        assert COUNTS[f"resnet{depth}"] == COUNTS["resnet50"] + more


@pytest.mark.parametrize("name", some_slow(IMAGENET_COUNTS))
def test_parameter_count_imagenet(name):
    options = {"stem": "imagenet"} if name.startswith("resnet") else {}
    variables = shapes_of(create_model(name, 1000, **options), 224)
    assert count(variables["params"]) == IMAGENET_COUNTS[name]
    assert_names(variables)


@pytest.mark.parametrize(("name", "options", "expected"), VARIANT_COUNTS)
def test_parameter_count_of_variants(name, options, expected):
    assert count(shapes_of(create_model(name, **options))["params"]) == expected


def test_layer_counts_of_resnet_small():
    params = shapes_of(create_model("resnet_small"))["params"]
    assert count(params["conv1"]) == 432
    assert count(params["head"]) == 650
    for stage, expected in ((2, 4_672), (3, 18_560)):
        block = params[f"stage{stage}_block1"]
        assert count([block["shortcut_conv"], block["shortcut_bn"]]) == expected


# Those that test_torch_parity.py does not compare with PyTorch's, as the variants below.
DISTINCT = ("alexnet", "resnet_custom")


@pytest.mark.usefixtures("narrow_classifiers")
@pytest.mark.parametrize("name", DISTINCT)
def test_gradients(name):
    assert_gradients(small(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"stem": "imagenet", "squeeze_excitation": 1, "stochastic_depth_rate": 0.2}),
        ("preact_resnet18", {"squeeze_excitation": 1, "stochastic_depth_rate": 0.2}),
        ("preact_resnet50", {"block_dropout_rate": 0.3, "stem": "imagenet"}),
        ("resnet_textbook", {"num_convs": 3}),
        ("wide_resnet16_8", {"block_dropout_rate": 0.3}),
        ("vit_tiny", {"stochastic_depth_rate": 0.2}),
    ],
)
def test_gradients_of_variants(name, options):
    assert_gradients(small(name, **options))


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_gradients_at_full_size(name):
    assert_gradients(create_model(name))
    gradients.cache_clear()


@pytest.mark.usefixtures("narrow_classifiers")
@pytest.mark.parametrize(
    "name", ["resnet_small", "preact_resnet18", pytest.param("vit_tiny", marks=pytest.mark.slow)]
)
def test_derivatives_of_any_kind_can_be_traced(name):
    one = {} if name == "vit_tiny" else {"stage_sizes": (1,), "num_filters": (8,)}
    model, images = create_model(name, **one), np.zeros((2, 32, 32, 3), np.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), KEY, images)
    params = variables.pop("params")

    def loss(params, images):
        rngs = {"dropout": KEY}
        everything = {**jax.tree.map(lambda s: jnp.zeros(s.shape), variables), "params": params}
        logits = model.apply(everything, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]
        return (logits**2).sum()

    def all_kinds(params, images):
        gradient = jax.grad(loss)
        forward = jax.jvp(loss, (params, images), (params, images))[1]
        over_reverse = jax.jvp(lambda p: gradient(p, images), (params,), (params,))[1]
        twice = jax.grad(lambda p: sum(map(jnp.sum, jax.tree.leaves(gradient(p, images)))))(params)
        mapped = jax.vmap(gradient, (None, 0))(params, jnp.stack([images, images]))
        scanned = jax.lax.scan(lambda p, _: (gradient(p, images), None), params, None, length=2)[0]
        return forward, over_reverse, twice, mapped, scanned

    forward, *trees = jax.eval_shape(all_kinds, params, images)
    assert forward.shape == ()
    assert all(jax.tree.structure(tree) == jax.tree.structure(params) for tree in trees)


@pytest.mark.parametrize("name", ["resnet_small", "preact_resnet18", "vit_tiny"])
def test_bfloat16_is_near_float32(name):
    images = random_images(4, 32, 32, 3)
    model, half = small(name), small(name, dtype="bfloat16")
    variables = random_variables(model)
    full_logits, half_logits = (
        jit(functools.partial(module.apply, train=False))(variables, images)
        for module in (model, half)
    )
    scale = jnp.abs(full_logits).max()
    assert 0 < jnp.abs(full_logits - half_logits).max() < 0.05 * scale


def in_bfloat16(name, **options):
    return create_model(name, num_classes=7, dtype="bfloat16", **options)


def cut(name):
    """The model with one narrow block in each stage, or two layers."""
    known, options = model_options(name), {}
    if "stage_sizes" in known:
        stages = len(known["stage_sizes"])
        options = {"stage_sizes": (1,) * stages, "num_filters": (8,) * stages}
    elif "num_layers" in known:
        options = {"num_layers": 2, "num_heads": 2, "hidden_size": 16}
    return in_bfloat16(name, **options)


DIFFERENT = {cut(name): name for name in list_models()}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, model) for model, name in DIFFERENT.items()),
        *(pytest.param(n, in_bfloat16(n), marks=pytest.mark.slow) for n in list_models()),
    ],
)
def test_bfloat16_other_classes_other_sizes_and_features(name, model):
    images = jnp.zeros((2, 48, 64, 3))
    collections = ["params", "batch_stats", "intermediates"]
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(KEY, images, train=False, mutable=collections)
    )
    features = variables.pop("intermediates")
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype("bfloat16")}
    stages = {"cnn": 2, "alexnet": 3}.get(name)
    if stages is None:
        stages = len(model.stage_sizes) if hasattr(model, "stage_sizes") else model.num_layers
    assert set(features) == {f"stage{i}" for i in range(1, stages + 1)}


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet_small", {}, 8),  # its last features have 4x4 pixels
        ("preact_resnet18", {"stem": "imagenet"}, 32),
        ("vgg11_bn", {"classifier": "cifar", "dtype": "bfloat16"}, 32),
    ],
)
def test_a_model_is_its_features_classified(name, options, size):
    model, images = small(name, **options), random_images(2, size, size, 3)
    variables = random_variables(model, size)
    apply = functools.partial(model.apply, variables, train=False)
    logits, state = apply(images, mutable=["intermediates"])
    for stage in (1, 2):
        (sown,) = state["intermediates"][f"stage{stage}"]
        features = apply(images, stage=stage, method="features")
        np.testing.assert_array_equal(features, sown)
        assert features.dtype == model.dtype
        again = apply(features, stage=stage, method="classify")
        np.testing.assert_array_equal(again, logits)
    params = jax.eval_shape(
        lambda: model.init(KEY, sown, train=False, stage=2, method="classify")["params"]
    )
    assert params.keys() <= {"head", "final_bn"}
    for stage in (0, 3):
        with pytest.raises(UserError, match="has stages 1 to 2"):
            apply(images, stage=stage, method="features")


def test_features_are_what_the_named_block_returns():
    model = small("resnet_v2")
    images = random_images(2, 32, 32, 3)
    variables = random_variables(model)
    _, state = model.apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, ResidualBlock),
    )
    features = state["intermediates"]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(features))
    (sown,), (captured,) = features["stage2"], features["stage2_block2"]["__call__"]
    np.testing.assert_array_equal(sown, captured)
    assert sown.shape == (2, 16, 16, 16)


@pytest.mark.parametrize("name", ["resnet_small", "preact_resnet18"])
def test_zero_init_residual_starts_as_the_shortcut_alone_and_learns(name):
    model = small(name, zero_init_residual=True)
    images = random_images(2, 32, 32, 3)
    variables = jit(lambda: model.init(KEY, images, train=False))()
    features = jit(
        lambda: model.apply(
            variables, images, train=False, mutable=["intermediates"], capture_intermediates=True
        )[1]["intermediates"]
    )()
    (before,) = features["stage2_block1"]["__call__"]
    (after,) = features["stage2_block2"]["__call__"]
    np.testing.assert_array_equal(after, before)
    grads = gradients_at(model, variables)[1]["stage2_block2"]
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(("name", "size"), [("cnn", 16), ("alexnet", 16), ("vgg16", 32)])
def test_smallest_images_work(name, size):
    assert shapes_of(create_model(name), size)["params"]


def test_remat_keeps_less_and_changes_nothing():
    options = {"stage_sizes": (3, 1), "num_filters": (8, 8)}
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    plain = create_model("resnet_small", **options)
    variables = jit(functools.partial(plain.init, train=False))(KEY, images)

    def gradients(remat):
        def loss(params):
            model = create_model("resnet_small", **options, remat=remat)
            state = {**variables, "params": params}
            logits, updates = model.apply(state, images, train=True, mutable=["batch_stats"])
            return jnp.square(logits).mean(), updates

        _, backward, updates = jax.vjp(loss, variables["params"], has_aux=True)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(backward))
        return kept, backward(jnp.float32(1)), updates

    (kept, *found), (kept_with_remat, *found_with_remat) = map(gradients, (0, 1))
    assert kept_with_remat < 0.5 * kept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, found_with_remat)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet_small", {"stage_sizes": (2,), "num_filters": (4,)}),
        ("vit_tiny", {"hidden_size": 8, "num_heads": 2, "num_layers": 2}),
    ],
)
def test_stochastic_depth_drops_branches_of_whole_images(name, options):
    model = create_model(name, stochastic_depth_rate=0.5, **options)
    x = jax.random.normal(jax.random.key(0), (64, 8, 8, 3))
    variables = jit(functools.partial(model.init, train=False))(KEY, x)
    seen = []

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.module.name in ("stochastic_depth", "drop1", "drop2"):
            seen.append(np.asarray(output == 0).reshape(64, -1))
        return output

    with nn.intercept_methods(note):
        rngs = {"dropout": jax.random.key(2)}
        model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
    assert len(seen) in (2, 4)
    assert all((dropped.all(1) | ~dropped.any(1)).all() for dropped in seen)
    assert 16 < seen[-1].all(1).sum() < 48


@pytest.mark.parametrize("name", list_models())
def test_a_model_can_be_copied_and_sent_to_other_processes(name):
    model = create_model(name)
    assert pickle.loads(pickle.dumps(model)) == copy.deepcopy(model) == model


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "leaky_relu"])
def test_every_activation_can_be_sent_too(activation):
    model = create_model("resnet_small", activation=activation)
    assert pickle.loads(pickle.dumps(model)) == model


@pytest.mark.parametrize("name", ["cnn", "resnet_small", "vgg16_bn", "vit_tiny"])
def test_lifted_transforms_take_train_by_its_place(name, narrow_classifiers):
    model, images = small(name), jnp.zeros((2, 32, 32, 3))

    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x):
            split = {"params": True, "dropout": True}
            axes = {"params": 0, "batch_stats": 0}
            fields = {f: getattr(model, f) for f in model.__dataclass_fields__}
            fields = {f: v for f, v in fields.items() if f not in ("parent", "name")}
            lifted = nn.remat(type(model), static_argnums=(2,))
            many = nn.vmap(lifted, axes, split, in_axes=(None, None), axis_size=3)
            return many(**fields)(x, False)

    logits, _ = jax.eval_shape(lambda: Ensemble().init_with_output(KEY, images))
    assert logits.shape == (3, 2, 10)


@pytest.mark.parametrize("name", ["cnn", "alexnet", "resnet_small", "vgg16", "vit_tiny"])
def test_a_batch_may_be_empty(name, narrow_classifiers):
    model = small(name)
    variables = shapes_of(model)
    images = jnp.zeros((0, 32, 32, 3))
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    assert logits.shape == (0, 10)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet_small", {"stem": "ImageNet"}),
        ("resnet_small", {"shortcut": "identity"}),
        ("vgg16", {"classifier": "none"}),
    ],
)
def test_words_that_stand_for_nothing_are_refused_by_the_classes_too(name, fields):
    with pytest.raises(UserError, match=f"model option {next(iter(fields))}: unknown value"):
        create_model(name).clone(**fields)


def test_numbers_of_numpy_are_taken():
    model = create_model("resnet_small", np.int64(7), dropout_rate=np.float32(0.5))
    assert model == create_model("resnet_small", 7, dropout_rate=0.5)
    assert type(model.num_classes) is int

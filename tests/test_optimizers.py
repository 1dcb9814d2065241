import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config import default_config
from resnet_jax.errors import UserError
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.training.update_rules import OPTIMIZERS

SHAPES = {"conv": {"kernel": (3, 3, 4, 5), "bias": (5,)}, "head": {"kernel": (7, 4)}}


def make_config(name="sgd", **fields):
    config = default_config().optimizer
    config.name = name
    config.learning_rate = 0.01
    for field, value in fields.items():
        config[field] = value
    return config


def make_params(seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=is_shape)


def train(config, params, all_grads, rates=None):
    """Returns the parameters after each step."""
    optimizer = create_optimizer(config)
    numbers = optimizer.numbers

    @jax.jit
    def step(params, state, grads, rate):
        tx = optimizer.build(numbers | {"optimizer.learning_rate": rate})
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = optimizer.build(numbers).init(params), []
    for index, grads in enumerate(all_grads):
        rate = config.learning_rate if rates is None else rates[index]
        params, state = step(params, state, grads, jnp.float32(rate))
        history.append(params)
    return history


def build(config):
    """Returns the transformation of a config's own numbers."""
    optimizer = create_optimizer(config)
    return optimizer.build(optimizer.numbers)


def changed(before, after):
    """Returns whether each leaf moved."""
    return jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)


TORCH_CASES = {
    "sgd": ("SGD", {}, {}, {}),
    "sgd momentum": ("SGD", {"momentum": 0.9}, {"momentum": 0.9}, {}),
    "sgd nesterov": (
        "SGD",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-2},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 5e-2},
    ),
    "sgd dampening": (
        "SGD",
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 5e-2},
        {"momentum": 0.9, "dampening": 0.3},
        {"weight_decay": 5e-2},
    ),
    "sgd decay": ("SGD", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "rmsprop": ("RMSprop", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "rmsprop centered": (
        "RMSprop",
        {"centered": True, "momentum": 0.5, "alpha": 0.9},
        {"centered": True, "momentum": 0.5, "alpha": 0.9},
        {},
    ),
    "adagrad": (
        "Adagrad",
        {"lr_decay": 0.1, "weight_decay": 5e-2},
        {"learning_rate_decay": 0.1},
        {"weight_decay": 5e-2},
    ),
    "adadelta": ("Adadelta", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "adam": ("Adam", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "adamax": ("Adamax", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "nadam": ("NAdam", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "nadam decoupled": (
        "NAdam",
        {"weight_decay": 5e-1, "decoupled_weight_decay": True, "momentum_decay": 0.1},
        {"momentum_decay": 0.1},
        {"weight_decay": 5e-1, "decoupled_weight_decay": True},
    ),
    "radam": ("RAdam", {"weight_decay": 5e-2}, {}, {"weight_decay": 5e-2}),
    "radam and large eps": ("RAdam", {"eps": 1.0}, {"eps": 1.0}, {}),
    "adamw": ("AdamW", {"weight_decay": 5e-1}, {}, {"weight_decay": 5e-1}),
}


@pytest.mark.parametrize("case", TORCH_CASES)
def test_ten_steps_agree_with_torch(case):
    torch = pytest.importorskip("torch")
    torch_name, torch_options, options, fields = TORCH_CASES[case]
    config = make_config(case.split()[0], options=options, **fields)
    params = make_params()
    all_grads = [make_params(seed) for seed in range(1, 11)]
    rates = [0.01 * 0.9**step for step in range(10)]
    history = train(config, params, all_grads, rates)

    tensors = [torch.nn.Parameter(torch.tensor(np.array(p))) for p in jax.tree.leaves(params)]
    optimizer = getattr(torch.optim, torch_name)(tensors, lr=0.01, **torch_options)
    for grads, rate, ours in zip(all_grads, rates, history, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(np.array(grad))
        optimizer.step()
        for tensor, param in zip(tensors, jax.tree.leaves(ours), strict=True):
            np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=0, atol=1e-5)


def test_a_pattern_of_muon_that_matches_nothing_is_refused():
    config = make_config("muon", options={"pattern": "kernal$"})
    with pytest.raises(UserError, match=r"optimizer\.options\.pattern: pattern 'kernal\$' matches"):
        build(config).init(make_params())


def test_muon_agrees_with_torch():
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    config = make_config("muon", weight_decay=0.1, options={"pattern": "kernel"})
    # PyTorch's matrices are [outputs, inputs]; its iterations are in bfloat16.
    weight = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    tensor = torch.nn.Parameter(torch.tensor(weight.T.copy()))
    optimizer = torch.optim.Muon([tensor], lr=0.01, weight_decay=0.1, momentum=0.95)
    grads = [np.random.default_rng(s).normal(size=(6, 9)).astype(np.float32) for s in range(1, 6)]
    history = train(config, {"kernel": jnp.asarray(weight)}, [{"kernel": g} for g in grads])
    for grad in grads:
        tensor.grad = torch.tensor(grad.T.copy())
        optimizer.step()
    moved = np.abs(history[-1]["kernel"] - weight).max()
    error = np.abs(history[-1]["kernel"] - tensor.detach().numpy().T).max()
    assert error < 0.02 * moved
    # optax corrects the bias of momentum and gradient by different steps: another direction.
    tx, other = optax.contrib.scale_by_muon(), jnp.asarray(weight)
    state = tx.init(other)
    for grad in grads:
        update, state = tx.update(grad, state)
        other = other - 0.01 * ((9 / 6) ** 0.5 * update + 0.1 * other)
    assert np.abs(other - tensor.detach().numpy().T).max() > 0.05 * moved


def test_muon_step_is_nearly_orthogonal_for_convolutions_and_adam_elsewhere():
    config = make_config("muon", learning_rate=1.0)
    params, grads = make_params(), make_params(1)
    after = train(config, params, [grads])[0]
    step = (params["conv"]["kernel"] - after["conv"]["kernel"]).reshape(-1, 5)
    singular = jnp.linalg.svd(step, compute_uv=False)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # Adam's first step is the learning rate in size.
    for group, name in (("conv", "bias"), ("head", "kernel")):
        step = params[group][name] - after[group][name]
        np.testing.assert_allclose(step, jnp.sign(grads[group][name]), atol=1e-4)


def test_lion_and_lamb_by_hand():
    params, grads = make_params(), make_params(1)
    after = train(make_config("lion", weight_decay=0.1), params, [grads])[0]
    expected = jax.tree.map(lambda p, g: p - 0.01 * (jnp.sign(g) + 0.1 * p), params, grads)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), after, expected)

    after = train(make_config("lamb", weight_decay=0.1), params, [grads])[0]
    for p, g, a in zip(*map(jax.tree.leaves, (params, grads, after)), strict=True):
        update = g / (jnp.abs(g) + 1e-6) + 0.1 * p
        ratio = jnp.linalg.norm(p) / jnp.linalg.norm(update)
        np.testing.assert_allclose(a, p - 0.01 * ratio * update, atol=1e-5)


@pytest.mark.parametrize("name", ["lamb", "lion", "muon"])  # the others agree with PyTorch's
def test_every_optimizer_reduces_a_loss(name):
    params, target = make_params(), make_params(1)

    def loss(params):
        errors = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
        return sum(jax.tree.leaves(errors))

    tx = build(make_config(name, learning_rate=0.02))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = loss(params), tx.init(params)
    for _ in range(30):
        params, state = step(params, state)
    assert loss(params) < before


def test_numbers_are_arguments_and_zeros_are_not():
    config = make_config("sgd", weight_decay=0.1, gradient_clip=0.0, options={"momentum": 0.9})
    optimizer, params, grads = create_optimizer(config), make_params(), make_params(1)
    assert optimizer.numbers == {
        "optimizer.learning_rate": 0.01,
        "optimizer.weight_decay": 0.1,
        "optimizer.options.momentum": 0.9,
    }
    state, traces = optimizer.build(optimizer.numbers).init(params), []

    @jax.jit
    def step(numbers):
        traces.append(1)
        return optimizer.build(numbers).update(grads, state, params)[0]

    first = step(optimizer.numbers | {"optimizer.learning_rate": 0.5})
    others = {"optimizer.learning_rate": 1.0, "optimizer.weight_decay": 0.0}
    second = step(optimizer.numbers | others)
    assert len(traces) == 1
    for f, s, p, g in zip(*map(jax.tree.leaves, (first, second, params, grads)), strict=True):
        np.testing.assert_allclose(f, -0.5 * (g + 0.1 * p), rtol=1e-5)
        np.testing.assert_allclose(s, -g, rtol=1e-6)


def test_no_decay_matches_paths():
    config = make_config(weight_decay=0.5, no_decay=r"bias$|^head/")
    zeros = jax.tree.map(jnp.zeros_like, make_params())
    after = train(config, make_params(), [zeros])[0]
    assert changed(make_params(), after) == {
        "conv": {"kernel": True, "bias": False},
        "head": {"kernel": False},
    }


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_frozen_parameters_stay_and_have_no_state(name):
    options = {"momentum": 0.9} if name == "sgd" else {}
    config = make_config(name, weight_decay=0.5, frozen="^conv/kernel", options=options)
    params = make_params()
    after = train(config, params, [make_params(1), make_params(2)])[-1]
    assert changed(params, after) == {
        "conv": {"kernel": False, "bias": True},
        "head": {"kernel": True},
    }
    state = build(config).init(params)
    assert not any(leaf.shape == (3, 3, 4, 5) for leaf in jax.tree.leaves(state))


def test_learning_rate_factors_first_match_wins():
    factors = (("bias", 64.0), ("conv", 0.5))
    params, grads = make_params(), make_params(1)
    after = train(make_config(learning_rate_factors=factors), params, [grads])[0]
    expected = {"conv": {"kernel": 0.005, "bias": 0.64}, "head": {"kernel": 0.01}}
    jax.tree.map(
        lambda a, p, g, rate: np.testing.assert_allclose(a, p - rate * g, atol=1e-6),
        *(after, params, grads, expected),
    )


def test_gradient_clip_limits_the_global_norm_before_the_decay():
    params, grads = make_params(), make_params(1)
    config = make_config(gradient_clip=0.25, weight_decay=0.1, learning_rate=1.0)
    after = train(config, params, [grads])[0]
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    assert norm > 1
    jax.tree.map(
        lambda a, p, g: np.testing.assert_allclose(a, p - g * 0.25 / norm - 0.1 * p, atol=1e-6),
        *(after, params, grads),
    )
    small = jax.tree.map(lambda g: 0.1 * g / norm, grads)
    after = train(config, params, [small])[0]
    jax.tree.map(
        lambda a, p, g: np.testing.assert_allclose(a, p - g - 0.1 * p, atol=1e-6),
        *(after, params, small),
    )


def test_accumulation_averages_and_keeps_the_learning_rate_settable():
    params = make_params()
    all_grads = [make_params(seed) for seed in (1, 2, 3, 4)]
    options = {"momentum": 0.9}
    config = make_config(accumulate_steps=2, options=options)
    history = train(config, params, all_grads, rates=[9.0, 0.1, 9.0, 0.2])
    assert not any(jax.tree.leaves(changed(params, history[0])))
    assert not any(jax.tree.leaves(changed(history[1], history[2])))
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *all_grads[:2]),
        jax.tree.map(lambda a, b: (a + b) / 2, *all_grads[2:]),
    ]
    expected = train(make_config(options=options), params, means, rates=[0.1, 0.2])
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), history[-1], expected[-1]
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_has_the_same_shape_before_and_after_a_step(name):
    config = make_config(name, weight_decay=0.1, gradient_clip=1.0)
    tx, params = build(config), make_params()
    state = tx.init(params)
    _, after = jax.eval_shape(tx.update, params, state, params)
    describe = lambda x: (x.shape, x.dtype)  # noqa: E731
    assert jax.tree.map(describe, state) == jax.tree.map(describe, after)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size > 1]
    assert len(buffers) == len(set(buffers)), "a donated state must not hold one buffer twice"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adm"}, "unknown optimizer 'adm'; did you mean adam"),
        ({"options": {"momentun": 0.9}}, "did you mean momentum"),
        ({"options": {"momentum": "much"}}, "option momentum of optimizer 'sgd' takes a number"),
        ({"options": {"momentum": 1.0}}, "must be at least 0 and below 1, not 1.0"),
        ({"options": {"momentum": float("nan")}}, "must be a finite number"),
        ({"options": {"nesterov": 1}}, "option nesterov of optimizer 'sgd' takes True or False"),
        ({"options": {"nesterov": True}}, "needs momentum"),
        ({"name": "adam", "options": {"momentum": 0.9}}, "unknown option of optimizer 'adam'"),
        ({"name": "muon", "options": {"coefficients": (1, 2)}}, "takes 3 values"),
    ],
)
def test_bad_input_is_one_clear_line(fields, message):
    with pytest.raises(UserError) as error:
        create_optimizer(make_config(**fields))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"no_decay": "bn"},
        {"frozen": "stage9"},
        {"learning_rate_factors": (("scale", 2.0),)},
    ],
)
def test_pattern_that_matches_nothing_is_refused(fields):
    with pytest.raises(UserError, match="matches no parameter; they are called conv/bias"):
        build(make_config(**fields)).init(make_params())


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="nothing is trained"):
        build(make_config(frozen=".")).init(make_params())

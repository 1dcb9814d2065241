"""Ten steps of training, here and in PyTorch, from the same weights and on the same batches."""

import jax
import numpy as np
import optax
import pytest
from test_torch_parity import pair

from resnet_jax.config.load import default_config
from resnet_jax.training.optimizers import create_optimizer
from resnet_jax.weights.load import import_torch

torch = pytest.importorskip("torch")

# At ten times this learning rate PyTorch in float32 and in float64 already differ by 8e-4 after ten
# steps: the network amplifies rounding, and nothing could be concluded.
STEPS, BATCH, RATE = 10, 16, 1e-3


def make_batches():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, 32, 32, 3)).astype(np.float32)
    return images, rng.integers(0, 10, (STEPS, BATCH))


def train_torch(module, images, labels):
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    losses = []
    for batch, targets in zip(images, labels, strict=True):
        optimizer.zero_grad()
        logits, _ = module(torch.tensor(batch.transpose(0, 3, 1, 2).copy()))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_jax(model, variables, images, labels):
    config = default_config().optimizer
    config.learning_rate, config.weight_decay = RATE, 5e-4
    config.options = {"momentum": 0.9}
    optimizer = create_optimizer(config)
    tx = optimizer.build(optimizer.numbers)

    def loss_fn(params, batch_stats, batch, targets):
        logits, mutated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean(), mutated["batch_stats"]

    @jax.jit
    def step(params, batch_stats, state, batch, targets):
        (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, batch_stats, batch, targets
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), batch_stats, state, loss

    params, batch_stats = variables["params"], variables["batch_stats"]
    state, losses = tx.init(params), []
    for batch, targets in zip(images, labels, strict=True):
        params, batch_stats, state, loss = step(params, batch_stats, state, batch, targets)
        losses.append(float(loss))
    return {"params": params, "batch_stats": batch_stats}, losses


@pytest.mark.slow  # gradients and optimizers agree in tests of their own
def test_ten_steps_agree_with_torch(tmp_path):
    module, model, variables, *_ = pair("yunjey resnet_small", tmp_path)
    images, labels = make_batches()
    losses = train_torch(module.train(), images, labels)
    trained, our_losses = train_jax(model, variables, images, labels)
    assert max(losses) - min(losses) > 0.05, "the weights must matter"
    np.testing.assert_allclose(our_losses, losses, rtol=0, atol=1e-4)
    torch.save(module.state_dict(), tmp_path / "trained.pth")
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4),
        *(trained, import_torch(tmp_path / "trained.pth", model)),
    )

"""Ten steps of training, here and in PyTorch, from the same weights and on the same batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.config.load import default_config
from resnet_jax.models.registry import create_model
from resnet_jax.training.optimizers import create_optimizer

torch = pytest.importorskip("torch")

# At ten times this learning rate PyTorch in float32 and in float64 already differ by 8e-4 after ten
# steps: the network amplifies rounding, and nothing could be concluded.
STEPS, BATCH, RATE = 10, 32, 1e-3


def conv(inputs, outputs, stride):
    return torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Block(torch.nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), torch.nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 1), torch.nn.BatchNorm2d(outputs)
        self.projects = stride != 1
        if self.projects:
            self.shortcut_conv = conv(inputs, outputs, stride)
            self.shortcut_bn = torch.nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.projects else x))


class SmallResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 1), torch.nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            stride = 1 if stage == 1 else 2
            self.add_module(f"stage{stage}_block1", Block(inputs, outputs, stride))
            self.add_module(f"stage{stage}_block2", Block(outputs, outputs, 1))
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for name, module in self.named_children():
            x = module(x) if name.startswith("stage") else x
        return self.head(x.mean(dim=(2, 3)))


NAMES = {"weight": ("params", "scale"), "bias": ("params", "bias")}
NAMES |= {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}


def variables_of(module):
    """Returns the Flax variables with a torch module's values."""
    variables = {"params": {}, "batch_stats": {}}
    for key, tensor in module.state_dict().items():
        *path, name = key.split(".")
        if name == "num_batches_tracked":
            continue
        collection, leaf = NAMES[name]
        value = tensor.numpy().copy()
        if name == "weight" and value.ndim > 1:
            leaf = "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        node = variables[collection]
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(value)
    return variables


def make_batches():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, BATCH, 32, 32, 3)).astype(np.float32)
    return images, rng.integers(0, 10, (STEPS, BATCH))


def train_torch(module, images, labels):
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    losses = []
    for batch, targets in zip(images, labels, strict=True):
        optimizer.zero_grad()
        logits = module(torch.tensor(batch.transpose(0, 3, 1, 2).copy()))
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


def test_ten_steps_of_resnet_small_agree_with_torch():
    torch.manual_seed(0)
    module, model = SmallResNet(), create_model("resnet_small")
    images, labels = make_batches()
    variables = variables_of(module)
    expected_shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images[0], train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected_shapes)

    losses = train_torch(module, images, labels)
    trained, our_losses = train_jax(model, variables, images, labels)
    assert max(losses) - min(losses) > 0.05, "the weights must matter"
    np.testing.assert_allclose(our_losses, losses, rtol=0, atol=1e-4)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4),
        *(trained, variables_of(module)),
    )

    module.eval()
    with torch.no_grad():
        theirs = module(torch.tensor(images[0].transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(model.apply(trained, images[0], train=False), theirs, atol=1e-3)

"""PyTorch's side of the training benchmark, a process that `training.py` starts."""

import functools
import os
import pathlib
from typing import Any

import torch
import torch.nn.functional as F
import torch_modules
from torch import Tensor, nn

from benchmark.worker import (
    Answer,
    Commands,
    Unavailable,
    first_steps,
    orders,
    random_images,
    serve,
    training_commands,
)
from resnet_jax.errors import UserError

BLOCKS: dict[str, Any] = {
    "BasicBlock": torch_modules.Basic,
    "BottleneckBlock": torch_modules.Bottleneck,
    "PreActivationBlock": torch_modules.PreActivation,
}
SHORTCUTS: dict[str, Any] = {
    "projection": functools.partial(torch_modules.projection, 1),
    "projection_3x3": functools.partial(torch_modules.projection, 3),
    "zero_pad": torch_modules.ZeroPad,
}


def build(family: str, fields: dict[str, Any], image_size: int) -> nn.Module:
    """Returns the PyTorch module of the same structure.

    Args:
      family: class of the Flax module.
      fields: its fields.
      image_size: side of the images, pixels.

    Raises:
      KeyError: if there is none.
    """
    if family == "ResNet":
        shape = {"sizes": fields["stage_sizes"], "widths": fields["num_filters"]}
        if fields["final_norm"]:
            return torch_modules.WideResNet(stem_width=fields["stem_filters"], **shape)
        block, shortcut = BLOCKS[fields["block_cls"]], fields["shortcut"]
        if block is torch_modules.PreActivation:
            shortcut = "projection"  # it has one of its own
        return torch_modules.ResNet(
            block,
            SHORTCUTS[shortcut],
            stem=7 if fields["stem"] == "imagenet" else 3,
            stem_width=fields["stem_filters"] or None,
            strides=fields["stage_strides"] or None,
            **shape,
        )
    if family == "VGG":
        sizes, widths = fields["stage_sizes"], fields["num_filters"]
        hidden = {"imagenet": (4096, 4096), "transfer": (4096, 4096, 512), "cifar": ()}
        hidden_sizes = hidden[fields["classifier"]]
        return torch_modules.VGG(fields["batch_norm"], sizes, widths, hidden_sizes)
    if family == "VisionTransformer":
        patch = fields["patch_size"]
        positions = 1 + (image_size // patch) ** 2
        shape = {"width": fields["hidden_size"], "heads": fields["num_heads"]}
        return torch_modules.TimmViT(
            depth=fields["num_layers"], patch=patch, positions=positions, **shape
        )
    if family == "AlexNet":
        return torch_modules.AlexNet(fields["num_filters"], fields["hidden_sizes"])
    return {"CNN": torch_modules.CNN}[family]()


class Measurement:
    """The training of a PyTorch module on random images that are on the device.

    Attributes:
      module: the module.
    """

    def __init__(self, spec: Answer) -> None:
        """Makes everything; nothing is compiled yet.

        Args:
          spec: what to measure, as `training.py` sends it.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch, self.dtype = spec["batch"], getattr(torch, spec["dtype"])
        self.format = torch.contiguous_format
        if spec["contestant"] != "torch":
            self.format = torch.channels_last
        torch.manual_seed(0)  # all peers, and we by the file, start from the same weights
        self.module = build(spec["family"], spec["fields"], spec["image_size"])
        if not pathlib.Path(spec["weights"]).exists():
            torch.save(self.module.state_dict(), spec["weights"])
        self.module.to(self.device, memory_format=self.format)  # type: ignore[call-overload]
        module = self.module  # what its stages return would, compiled, have gradients of zeros
        self.call: Any = lambda images: module(images)[0]
        if spec["contestant"] == "torch_compile":
            # What an earlier run compiled is not to be found.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{spec['weights']}.compiled"
            # One launch for a CUDA graph, not one for each kernel: ours takes many steps in a call.
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self.call = torch.compile(self.call, mode=mode)
        images, labels = (torch.from_numpy(array) for array in random_images(spec))
        self.images = (
            images.permute(0, 3, 1, 2).to(self.device).contiguous(memory_format=self.format)
        )
        self.labels = labels.long().to(self.device)
        self.mean = torch.tensor(spec["mean"], device=self.device)[:, None, None]
        self.std = torch.tensor(spec["std"], device=self.device)[:, None, None]
        self.optimizer = torch.optim.SGD(
            self.module.parameters(), spec["learning_rate"], spec["momentum"]
        )
        self.orders, self.order = orders(len(labels)), torch.zeros(0)
        self.next, self.test_images = 0, spec["test_images"]

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits of uint8 images."""
        x = (images.float() / 255 - self.mean) / self.std
        x = x.contiguous(memory_format=self.format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.call(x).float()

    def train(self, steps: int) -> float:
        """Takes training steps; returns the last one's loss."""
        self.module.train()
        for _ in range(steps):
            if self.next + self.batch > len(self.order):
                self.order = torch.from_numpy(next(self.orders)).to(self.device)
                self.next = 0
            indices = self.order[self.next : self.next + self.batch]
            self.next += self.batch
            loss = F.cross_entropy(self.logits(self.images[indices]), self.labels[indices])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Scores the test images; returns their mean loss."""
        self.module.eval()
        loss = torch.zeros((), device=self.device)
        for start in range(0, self.test_images, self.batch):
            stop = start + self.batch
            logits = self.logits(self.images[start:stop])
            loss += F.cross_entropy(logits, self.labels[start:stop], reduction="sum")
        return loss.item() / self.test_images


def device_peak() -> int:
    """Returns the most memory that the device had in use, bytes; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def start(spec: Answer) -> tuple[Answer, Commands]:
    """Compiles a training; see `benchmark.worker.serve`."""
    torch.set_num_threads(spec["threads"])
    torch.backends.cudnn.benchmark = True  # as XLA tries its kernels too
    torch.backends.cuda.matmul.allow_tf32 = True  # as XLA's products are; convolutions are anyway
    try:
        measurement = Measurement(spec)
    except KeyError:
        raise UserError(f"--peer: there is no PyTorch module like {spec['model']} here") from None
    try:
        said = first_steps(measurement)
    except Exception as error:
        if spec["contestant"] != "torch_compile":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(f"it can't compile here ({reason})") from error
    said |= {"provenance": {"torch_threads": torch.get_num_threads()}}
    return said, training_commands(measurement, device_peak)


if __name__ == "__main__":
    serve(start)

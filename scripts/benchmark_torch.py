"""The benchmark's measurements of PyTorch; see scripts/benchmark.py, which starts it."""

import functools
import json
import resource
import sys
from typing import Any

import torch
import torch.nn.functional as F
import torch_modules
from benchmark_worker import compile_seconds, obey, say
from torch import Tensor, nn

Spec = dict[str, Any]

BLOCKS: dict[str, Any] = {
    "BasicBlock": torch_modules.Basic,
    "BottleneckBlock": torch_modules.Bottleneck,
    "PreActivationBlock": torch_modules.PreActivation,
}
SHORTCUTS: dict[str, Any] = {
    "projection": functools.partial(torch_modules.projection, 1),
    "projection_3x3": functools.partial(torch_modules.projection, 3),
    "zero_pad": torch_modules.ZeroPad,
    "convolution": None,  # that of pre-activation blocks
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
        return torch_modules.ResNet(
            BLOCKS[fields["block_cls"]],
            SHORTCUTS[fields["shortcut"]],
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

    def __init__(self, spec: Spec) -> None:
        """Makes everything; nothing is compiled yet.

        Args:
          spec: what to measure, as benchmark.py sends it.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch, self.dtype = spec["batch"], getattr(torch, spec["dtype"])
        self.format = torch.contiguous_format
        if spec["contestant"] != "torch":
            self.format = torch.channels_last
        torch.manual_seed(0)
        self.module = build(spec["family"], spec["fields"], spec["image_size"])
        self.module.to(self.device, memory_format=self.format)  # type: ignore[call-overload]
        self.call: Any = self.module
        if spec["contestant"] == "torch_compile":
            self.call = torch.compile(self.module)
        side = spec["image_size"]
        images = torch.randint(0, 256, (spec["images"], 3, side, side), dtype=torch.uint8)
        self.images = images.to(self.device, memory_format=self.format)
        self.labels = torch.randint(0, 10, (spec["images"],), device=self.device)
        self.mean = torch.tensor((0.4914, 0.4822, 0.4465), device=self.device)[:, None, None]
        self.std = torch.tensor((0.2470, 0.2435, 0.2616), device=self.device)[:, None, None]
        self.optimizer = torch.optim.SGD(self.module.parameters(), 1e-3, momentum=0.9)
        self.order = torch.randperm(spec["images"], device=self.device)
        self.next, self.test_images = 0, spec["test_images"]

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits of uint8 images."""
        x = (images.float() / 255 - self.mean) / self.std
        x = x.contiguous(memory_format=self.format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.call(x)[0].float()

    def train(self, steps: int) -> float:
        """Takes training steps; returns the last one's loss."""
        self.module.train()
        for _ in range(steps):
            if self.next + self.batch > len(self.labels):
                self.order = torch.randperm(len(self.labels), device=self.device)
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


def peak_memory() -> int:
    """Returns the most memory used so far: the device's own, or on a CPU the process's, bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Reads what to measure from standard input, says what it is, and obeys."""
    spec = json.loads(sys.stdin.readline())
    torch.set_num_threads(spec["threads"])
    try:
        measurement = Measurement(spec)
    except KeyError:
        say({"error": f"there is no PyTorch module like {spec['model']} here"})
        return
    say(
        {
            "compile_seconds": compile_seconds(measurement, 1),
            "parameters": sum(p.numel() for p in measurement.module.parameters()),
            "provenance": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        }
    )
    obey(measurement, {"memory": lambda: {"bytes": peak_memory()}})


if __name__ == "__main__":
    main()

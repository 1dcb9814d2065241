"""PyTorch modules with the parameter names of the implementations that users have weights of.

The tests compare our models with them, small; the benchmark, at full size. They return their
logits and a list of what each stage returns.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Output = tuple[Tensor, list[Tensor]]
Shortcut = Callable[[int, int, int], nn.Module]

conv = functools.partial(nn.Conv2d, bias=False)


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, name: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.name = name
        self.add_module(name, shortcut(inputs, width, stride))

    def branch(self, x: Tensor) -> Tensor:
        """Returns what is added to the shortcut."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + getattr(self, self.name)(x))


class Bottleneck(Basic):
    """1x1, 3x3 and 1x1 convolutions."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, name: str) -> None:
        super().__init__(width, width, stride, lambda *_: nn.Identity(), name)
        self.conv1, self.conv2 = conv(inputs, width, 1), conv(width, width, 3, stride, 1)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.add_module(name, shortcut(inputs, 4 * width, stride))

    def branch(self, x: Tensor) -> Tensor:
        """Returns what is added to the shortcut."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))


class PreActivation(nn.Module):
    """Norm and activation before each of two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, shortcut: Shortcut | None, name: str
    ) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, 1, 1)
        self.name, self.changes = name, stride != 1 or inputs != width
        if self.changes:
            bare = conv(inputs, width, 1, stride)
            self.add_module(name, nn.Sequential(bare) if name == "shortcut" else bare)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = getattr(self, self.name)(y) if self.changes else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


def projection(side: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    """Returns a convolution and norm where shapes differ, else the identity."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(conv(inputs, outputs, side, stride, side // 2), nn.BatchNorm2d(outputs))


class ZeroPad(nn.Module):
    """Subsampling, and channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


KUANGLIU = ("conv1", "bn1", "shortcut", "linear")
TORCHVISION = ("conv1", "bn1", "downsample", "fc")
YUNJEY = ("conv", "bn", "downsample", "fc")


class ResNet(nn.Module):
    """The residual networks of torchvision, kuangliu, akamaster and yunjey.

    Args:
      block: `Basic`, `Bottleneck` or `PreActivation`.
      shortcut: makes a shortcut of inputs, outputs and stride.
      sizes: number of blocks in each stage.
      widths: width of each stage.
      names: names of first convolution, its norm, shortcuts and head.
      stem: side of the first convolution; 7 is followed by a max-pool.
      stem_width: its width; None: that of the first stage.
      strides: step of each stage; None: 1, then 2.
    """

    def __init__(
        self,
        block: type[Basic] | type[PreActivation],
        shortcut: Shortcut,
        sizes: Sequence[int],
        widths: Sequence[int],
        names: Sequence[str] = KUANGLIU,
        stem: int = 3,
        stem_width: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.names, self.is_imagenet, self.num_stages = names, stem == 7, len(sizes)
        inputs = stem_width or widths[0]
        self.add_module(names[0], conv(3, inputs, stem, 1 + self.is_imagenet, stem // 2))
        if block is not PreActivation:
            self.add_module(names[1], nn.BatchNorm2d(inputs))
        strides = strides or (1, *[2] * (len(sizes) - 1))
        for stage, (size, width, step) in enumerate(zip(sizes, widths, strides, strict=True), 1):
            blocks = []
            for index in range(size):
                stride = step if index == 0 else 1
                blocks.append(block(inputs, width, stride, shortcut, names[2]))
                inputs = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.add_module(names[3], nn.Linear(inputs, 10))

    def forward(self, x: Tensor) -> Output:
        x = getattr(self, self.names[0])(x)
        if hasattr(self, self.names[1]):
            x = F.relu(getattr(self, self.names[1])(x))
        x = F.max_pool2d(x, 3, 2, 1) if self.is_imagenet else x
        stages = []
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
            stages.append(x)
        return getattr(self, self.names[3])(x.mean((2, 3))), stages


class WideResNet(nn.Module):
    """The wide residual network of xternalz."""

    def __init__(self, sizes: Sequence[int], widths: Sequence[int], stem_width: int) -> None:
        super().__init__()
        self.conv1, self.num_stages = conv(3, stem_width, 3, 1, 1), len(sizes)
        inputs = stem_width
        for stage, (size, width) in enumerate(zip(sizes, widths, strict=True), start=1):
            block = nn.Module()
            strides = [2 if stage > 1 else 1] + [1] * (size - 1)
            widths_in = [inputs] + [width] * (size - 1)
            block.layer = nn.Sequential(
                *[
                    PreActivation(width_in, width, stride, None, "convShortcut")
                    for width_in, stride in zip(widths_in, strides, strict=True)
                ]
            )
            self.add_module(f"block{stage}", block)
            inputs = width
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Output:
        x, stages = self.conv1(x), []
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"block{stage}").layer(x)
            stages.append(x)
        return self.fc(F.relu(self.bn1(x)).mean((2, 3))), stages


class VGG(nn.Module):
    """torchvision's VGG; without hidden layers, kuangliu's; with three, that of the transfer.

    Args:
      batch_norm: whether a norm follows each convolution.
      sizes: number of convolutions in each stage.
      widths: width of each stage.
      hidden: widths of the hidden linear layers, two, three or none.
    """

    def __init__(
        self, batch_norm: bool, sizes: Sequence[int], widths: Sequence[int], hidden: Sequence[int]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for size, width in zip(sizes, widths, strict=True):
            for _ in range(size):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.side = 7 if hidden else 1
        self.classifier = self._classifier(inputs, hidden)

    def _classifier(self, inputs: int, hidden: Sequence[int]) -> nn.Module:
        if not hidden:
            return nn.Linear(inputs, 10)
        one, two = nn.Linear(inputs * 49, hidden[0]), nn.Linear(hidden[0], hidden[1])
        last: nn.Module = nn.Linear(hidden[1], 10)
        if len(hidden) == 3:
            three = nn.Linear(hidden[1], hidden[2])
            last = nn.Sequential(three, nn.ReLU(), nn.Dropout(0), nn.Linear(hidden[2], 10))
        return nn.Sequential(one, nn.ReLU(), nn.Dropout(0), two, nn.ReLU(), nn.Dropout(0), last)

    def forward(self, x: Tensor) -> Output:
        stages = []
        for layer in self.features:
            x = layer(x)
            stages += [x] if isinstance(layer, nn.MaxPool2d) else []
        return self.classifier(F.adaptive_avg_pool2d(x, self.side).flatten(1)), stages


class CNN(nn.Module):
    """The network of PyTorch's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Output:
        one = F.max_pool2d(F.relu(self.conv1(x)), 2)
        two = F.max_pool2d(F.relu(self.conv2(one)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(two.flatten(1)))))), [one, two]


class AlexNet(nn.Module):
    """torchvision's AlexNet with smaller kernels and strides."""

    def __init__(self, widths: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        convs = [
            nn.Conv2d(inputs, width, 3, 2 if index == 0 else 1, 1)
            for index, (inputs, width) in enumerate(zip((3, *widths), widths, strict=False))
        ]
        one = [convs[0], nn.ReLU(), pool, convs[1], nn.ReLU(), pool]
        two = [convs[2], nn.ReLU(), convs[3], nn.ReLU(), convs[4], nn.ReLU(), pool]
        self.features = nn.Sequential(*one, *two)
        first = [nn.Dropout(0), nn.Linear(widths[-1] * 4, hidden[0]), nn.ReLU()]
        second = [nn.Dropout(0), nn.Linear(hidden[0], hidden[1]), nn.ReLU()]
        self.classifier = nn.Sequential(*first, *second, nn.Linear(hidden[1], 10))

    def forward(self, x: Tensor) -> Output:
        stages = []
        for layer in self.features:
            x = layer(x)
            stages += [x] if isinstance(layer, nn.MaxPool2d) else []
        return self.classifier(x.flatten(1)), stages


class TimmBlock(nn.Module):
    """One layer of timm's Vision Transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.attn.qkv(self.norm1(x)).reshape(
            batch, tokens, 3, self.heads, width // self.heads
        )
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.attn.proj(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class TimmViT(nn.Module):
    """timm's Vision Transformer."""

    def __init__(self, width: int, heads: int, depth: int, patch: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, positions, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*[TimmBlock(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Output:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        stages = []
        for block in self.blocks:
            x = block(x)
            stages.append(x)
        return self.head(self.norm(x)[:, 0]), stages

"""PyTorch modules with the parameter names of the implementations that users have weights of.

They return their logits and a list of what each stage returns.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

SIZES, WIDTHS = (1, 2, 1), (8, 12, 16)
conv = functools.partial(nn.Conv2d, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride, shortcut, name):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.name = name
        self.add_module(name, shortcut(inputs, width, stride))

    def branch(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        return F.relu(self.branch(x) + getattr(self, self.name)(x))


class Bottleneck(Basic):
    expansion = 4

    def __init__(self, inputs, width, stride, shortcut, name):
        super().__init__(width, width, stride, lambda *_: nn.Identity(), name)
        self.conv1, self.conv2 = conv(inputs, width, 1), conv(width, width, 3, stride, 1)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.add_module(name, shortcut(inputs, 4 * width, stride))

    def branch(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))


class PreActivation(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride, shortcut, name):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3, 1, 1)
        self.name, self.changes = name, stride != 1 or inputs != width
        if self.changes:
            bare = conv(inputs, width, 1, stride)
            self.add_module(name, nn.Sequential(bare) if name == "shortcut" else bare)

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = getattr(self, self.name)(y) if self.changes else x
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + shortcut


def projection(side, inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(conv(inputs, outputs, side, stride, side // 2), nn.BatchNorm2d(outputs))


class ZeroPad(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.added, self.stride = outputs - inputs, stride

    def forward(self, x):
        half = self.added // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


class ResNet(nn.Module):
    """The residual networks of torchvision, kuangliu, akamaster and yunjey."""

    def __init__(self, block, shortcut, names=("conv1", "bn1", "shortcut", "linear"), stem=3):
        super().__init__()
        self.names, self.is_imagenet = names, stem == 7
        self.add_module(names[0], conv(3, WIDTHS[0], stem, 1 + self.is_imagenet, stem // 2))
        if block is not PreActivation:
            self.add_module(names[1], nn.BatchNorm2d(WIDTHS[0]))
        inputs = WIDTHS[0]
        for stage, (size, width) in enumerate(zip(SIZES, WIDTHS, strict=True), start=1):
            blocks = []
            for index in range(size):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(inputs, width, stride, shortcut, names[2]))
                inputs = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.add_module(names[3], nn.Linear(inputs, 10))

    def forward(self, x):
        x = getattr(self, self.names[0])(x)
        if hasattr(self, self.names[1]):
            x = F.relu(getattr(self, self.names[1])(x))
        x = F.max_pool2d(x, 3, 2, 1) if self.is_imagenet else x
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            stages.append(x)
        return getattr(self, self.names[3])(x.mean((2, 3))), stages


class WideResNet(nn.Module):
    """The wide residual network of xternalz."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 6, 3, 1, 1)
        inputs = 6
        for stage, (size, width) in enumerate(zip(SIZES, WIDTHS, strict=True), start=1):
            block = nn.Module()
            strides = [2 if stage > 1 else 1] + [1] * (size - 1)
            widths = [inputs] + [width] * (size - 1)
            block.layer = nn.Sequential(
                *[
                    PreActivation(width_in, width, stride, None, "convShortcut")
                    for width_in, stride in zip(widths, strides, strict=True)
                ]
            )
            self.add_module(f"block{stage}", block)
            inputs = width
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, 10)

    def forward(self, x):
        x, stages = self.conv1(x), []
        for block in (self.block1, self.block2, self.block3):
            x = block.layer(x)
            stages.append(x)
        return self.fc(F.relu(self.bn1(x)).mean((2, 3))), stages


class VGG(nn.Module):
    """torchvision's VGG; with a linear layer for a classifier, kuangliu's."""

    def __init__(self, batch_norm, head):
        super().__init__()
        layers, inputs = [], 3
        for size, width in zip(SIZES, WIDTHS, strict=True):
            for _ in range(size):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = [nn.Linear(16 * 49, 24), nn.ReLU(), nn.Dropout(0), nn.Linear(24, 20), nn.ReLU()]
        last = nn.Sequential(nn.Linear(20, 14), nn.ReLU(), nn.Dropout(0), nn.Linear(14, 10))
        last = nn.Linear(20, 10) if head == "imagenet" else last
        linear = nn.Linear(16, 10)
        self.classifier = linear if head == "cifar" else nn.Sequential(*hidden, nn.Dropout(0), last)
        self.side = 1 if head == "cifar" else 7

    def forward(self, x):
        stages = []
        for layer in self.features:
            x = layer(x)
            stages += [x] if isinstance(layer, nn.MaxPool2d) else []
        return self.classifier(F.adaptive_avg_pool2d(x, self.side).flatten(1)), stages


class CNN(nn.Module):
    """The network of PyTorch's tutorial."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        one = F.max_pool2d(F.relu(self.conv1(x)), 2)
        two = F.max_pool2d(F.relu(self.conv2(one)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(two.flatten(1)))))), [one, two]


class AlexNet(nn.Module):
    """torchvision's AlexNet with smaller kernels and strides."""

    def __init__(self):
        super().__init__()
        pool = nn.MaxPool2d(2)
        convs = [
            nn.Conv2d(*widths, 3, 2 if index == 0 else 1, 1)
            for index, widths in enumerate([(3, 8), (8, 12), (12, 16), (16, 12), (12, 10)])
        ]
        one = [convs[0], nn.ReLU(), pool, convs[1], nn.ReLU(), pool]
        two = [convs[2], nn.ReLU(), convs[3], nn.ReLU(), convs[4], nn.ReLU(), pool]
        self.features = nn.Sequential(*one, *two)
        hidden = [nn.Dropout(0), nn.Linear(40, 20), nn.ReLU()]
        self.classifier = nn.Sequential(
            *hidden, nn.Dropout(0), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 10)
        )

    def forward(self, x):
        stages = []
        for layer in self.features:
            x = layer(x)
            stages += [x] if isinstance(layer, nn.MaxPool2d) else []
        return self.classifier(x.flatten(1)), stages


class TimmBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.attn.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, width // 2)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.attn.proj(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class TimmViT(nn.Module):
    """timm's Vision Transformer."""

    def __init__(self, width=16, positions=17):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, positions, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(TimmBlock(width), TimmBlock(width))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        stages = []
        for block in self.blocks:
            x = block(x)
            stages.append(x)
        return self.head(self.norm(x)[:, 0]), stages


class TorchvisionLayer(nn.Module):
    def __init__(self, width, old):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.self_attention = nn.MultiheadAttention(width, 2, batch_first=True)
        one, two = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(one, nn.GELU(), nn.Dropout(0), two, nn.Dropout(0))
        if old:
            self.mlp = nn.Sequential()
            for name, layer in (("linear_1", one), ("gelu", nn.GELU()), ("linear_2", two)):
                self.mlp.add_module(name, layer)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class TorchvisionViT(nn.Module):
    """torchvision's Vision Transformer."""

    def __init__(self, old, width=16, positions=17):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, 8, 8)
        self.encoder, self.encoder.layers = nn.Module(), nn.Sequential()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, positions, width))
        for index in range(2):
            self.encoder.layers.add_module(f"encoder_layer_{index}", TorchvisionLayer(width, old))
        self.encoder.ln = nn.LayerNorm(width, 1e-6)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, 10))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        stages = []
        for layer in self.encoder.layers:
            x = layer(x)
            stages.append(x)
        return self.heads(self.encoder.ln(x)[:, 0]), stages


TORCHVISION = ("conv1", "bn1", "downsample", "fc")
YUNJEY = ("conv", "bn", "downsample", "fc")
one_by_one = functools.partial(projection, 1)
three_by_three = functools.partial(projection, 3)

MODULES = {
    "torchvision resnet18": lambda: ResNet(Basic, one_by_one, TORCHVISION, 7),
    "torchvision resnet50": lambda: ResNet(Bottleneck, one_by_one, TORCHVISION, 7),
    "kuangliu resnet18": lambda: ResNet(Basic, one_by_one),
    "kuangliu resnet50": lambda: ResNet(Bottleneck, one_by_one),
    "kuangliu preact": lambda: ResNet(PreActivation, None),
    "akamaster resnet20": lambda: ResNet(Basic, ZeroPad),
    "yunjey resnet_small": lambda: ResNet(Basic, three_by_three, YUNJEY),
    "xternalz wide": WideResNet,
    "vgg": lambda: VGG(False, "imagenet"),
    "vgg_bn": lambda: VGG(True, "imagenet"),
    "vgg transfer": lambda: VGG(False, "transfer"),
    "kuangliu vgg": lambda: VGG(True, "cifar"),
    "cnn": CNN,
    "alexnet": AlexNet,
    "timm vit": TimmViT,
    "torchvision vit": lambda: TorchvisionViT(old=False),
    "older torchvision vit": lambda: TorchvisionViT(old=True),
}

"""torchvision's Vision Transformer in PyTorch, with the parameter names of its two layouts."""

import torch
from torch import nn


class TorchvisionLayer(nn.Module):
    """One layer of torchvision's Vision Transformer, with the names of its older or newer files."""

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

    def __init__(self, old, width, positions):
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

"""InternViT in plain torch, under the names of its published checkpoint: an independent reading for parity tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longvita.config.schema import VisionConfig


class _Names(nn.Module):
    """A module that only holds others, for the sake of the names."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.attn = _Names(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = _Names(fc1=nn.Linear(width, config.ffn_hidden_size), fc2=nn.Linear(config.ffn_hidden_size, width))
        self.norm1 = nn.LayerNorm(width, eps=config.layernorm_epsilon)
        self.norm2 = nn.LayerNorm(width, eps=config.layernorm_epsilon)
        self.ls1 = nn.Parameter(torch.empty(width))
        self.ls2 = nn.Parameter(torch.empty(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, positions, C] to the same."""
        hidden = hidden + self.ls1 * self._attention(self.norm1(hidden))
        inner = self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(hidden))))
        return hidden + self.ls2 * inner

    def _attention(self, hidden: Tensor) -> Tensor:
        n, positions, width = hidden.shape
        split = self.attn.qkv(hidden).reshape(n, positions, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(n, positions, width)
        return self.attn.proj(mixed)


class InternViT(nn.Module):
    """Tiles [n, 3, H, W] to hidden states [n, patches + 1, C]; every parameter is random."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.embeddings = _Names(patch_embedding=nn.Conv2d(3, width, patch, patch))
        self.embeddings.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.embeddings.position_embedding = nn.Parameter(torch.empty(1, config.sequence_length, width))
        self.encoder = _Names(layers=nn.ModuleList(_Layer(config) for _ in range(config.num_layers)))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, tiles: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(tiles).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.embeddings.class_embedding.expand(len(tiles), -1, -1), patches], 1)
        hidden = hidden + self.embeddings.position_embedding
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return hidden

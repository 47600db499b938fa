"""A small language model of bytes, trained on Python's own documentation: streamed tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sundog import Recipe, TokenWindows

VOCABULARY = 256


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(width, dim=2)
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.feed(self.norm_2(x)))


class Network(nn.Module):
    """`tokens` [n, length] int64 -> logits of the next byte [n, length, 256]."""

    def __init__(self, context: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Layers that end a shortcut start smaller, as in GPT-2.
                small = (
                    math.sqrt(2 * depth) if name.endswith(("out.weight", "feed.2.weight")) else 1
                )
                nn.init.normal_(parameter, std=0.02 / small)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x), self.token.weight)


class Gpt(Recipe):
    """Parameters: `context` in bytes, `width`, `depth`, `heads`, `dropout`, learning rate `lr`."""

    def __init__(
        self, data: Any = None, context: int = 64, width: int = 128, depth: int = 3,
        heads: int = 4, dropout: float = 0.0, lr: float = 3e-3,
    ) -> None:  # fmt: skip
        super().__init__(data)
        self.context, self.lr = context, lr
        self.shape = {"width": width, "depth": depth, "heads": heads, "dropout": dropout}

    def model(self) -> nn.Module:
        return Network(self.context, **self.shape)

    def dataset(self, split: str) -> TokenWindows:
        return TokenWindows(self.data, split, self.context)

    def loss(self, model: nn.Module, batch: Any, rng: torch.Generator) -> torch.Tensor:
        logits = model(batch["tokens"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())

    def metrics(self, outputs: torch.Tensor, batch: Any) -> dict[str, float]:
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), batch["targets"].flatten())
        right = (outputs.argmax(-1) == batch["targets"]).float().mean()
        return {"bits_per_byte": loss.item() / math.log(2), "accuracy": right.item()}

    def optimizer(self, params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=self.lr, betas=(0.9, 0.95), weight_decay=0.1)

    def example_inputs(self) -> dict[str, torch.Tensor]:
        return {"tokens": torch.zeros(2, self.context, dtype=torch.int64)}

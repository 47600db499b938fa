"""Handwritten digits, 8x8 pixels, told apart by a small network: the example recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sundog import Columns, Recipe


class Network(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, 10),
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels / 16)


class Digits(Recipe):
    """Parameters: `hidden` units in each of two layers, `dropout`, learning rate `lr`."""

    def __init__(
        self, data: Any = None, hidden: int = 128, dropout: float = 0.1, lr: float = 3e-3
    ) -> None:
        super().__init__(data, hidden=hidden, dropout=dropout, lr=lr)
        self.hidden, self.dropout, self.lr = hidden, dropout, lr

    def model(self) -> nn.Module:
        return Network(self.hidden, self.dropout)

    def dataset(self, split: str) -> Columns:
        table = self.data.table(split)
        pixels = torch.tensor(table["pixels"].to_pylist(), dtype=torch.float32)
        return Columns(pixels=pixels, label=torch.tensor(table["label"].to_pylist()))

    def loss(self, model: nn.Module, batch: Any, rng: torch.Generator) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch["pixels"]), batch["label"])

    def metrics(self, outputs: torch.Tensor, batch: Any) -> dict[str, float]:
        return {"accuracy": (outputs.argmax(1) == batch["label"]).float().mean().item()}

    def optimizer(self, params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=self.lr, weight_decay=1e-2)

    def example_inputs(self) -> dict[str, torch.Tensor]:
        return {"pixels": torch.zeros(2, 64)}

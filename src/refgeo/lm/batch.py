"""Rows of unequal length as one batch: aligned at the right end, masked before it, every token at its own position, not too many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

CPU_TOKENS = 1024
"""Most tokens per forward pass on a CPU: beyond, activations leave its caches and every token costs up to half as much again."""


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token ids and attention mask, aligned at the right end."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


def places_of(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Position of every token in its own row, whatever is padded before it."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def rows_per_pass(device: torch.device, tokens: int, most: int) -> int:
    """Rows of ``tokens`` tokens that go well into one forward pass on ``device``: at least one, at most ``most``."""
    return max(1, min(most, CPU_TOKENS // max(1, tokens))) if device.type == "cpu" else max(1, most)

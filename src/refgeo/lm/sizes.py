"""How much goes into one forward pass that only reads."""

from __future__ import annotations

import torch

CPU_TOKENS = 1024
"""Most tokens per forward pass on a CPU: beyond, activations leave its caches and every token costs up to half as much again."""


def rows_per_pass(device: torch.device, tokens: int, most: int) -> int:
    """Rows of ``tokens`` tokens that go well into one forward pass on ``device``: at least one, at most ``most``."""
    return max(1, min(most, CPU_TOKENS // max(1, tokens))) if device.type == "cpu" else max(1, most)

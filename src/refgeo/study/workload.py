"""Elementary work of a language model and its cost: reading texts, writing them, attacking, learning.

Every function counts what the code of that name computes, at mean lengths; what it leaves out is said in its docstring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from refgeo.config.attack import AttackSettings
from refgeo.config.autodan import AutoDANSettings
from refgeo.study.known import Shape

RESCORED = 8
"""Candidates per case and step that are scored again in float32 where the model runs in half precision (``attacks/objective.py``)."""
TEXT_TOKENS = 100
"""Assumed length of an AutoDAN text that no ``max_tokens`` limits."""


@dataclass(frozen=True)
class Device:
    """A GPU, or a core of a CPU, and how well it is assumed to be used. Peaks: dense operations per second, and bytes per second.

    A pass that writes one token per row reads all weights once, at ``streaming`` of the bandwidth, and waits ``launch`` seconds per
    layer for its kernels to be started; it takes at least that long.
    """

    name: str = "NVIDIA H100 SXM 80 GB"
    half: float = 989e12
    single: float = 67e12
    bandwidth: float = 3.35e12
    utilization: float = 0.4
    single_utilization: float = 0.6
    streaming: float = 0.6
    launch: float = 0.8e-3
    kind: Literal["GPU", "core"] = "GPU"


CORE = Device("CPU core", 40e9, 40e9, 20e9, utilization=1.0, single_utilization=1.0, streaming=0.5, launch=0.1e-3, kind="core")
"""What a core of the machine in docs/performance.md made of the shipped study: all its operations, over the CPU time that they took."""


@dataclass(frozen=True)
class Work:
    """Tokens, floating-point operations and completions; adds up.

    ``forward``: tokens through the blocks without gradients, written ones included; ``backward``: tokens with gradients; ``written``:
    tokens written one by one. ``operations`` is in the model's format, ``exact`` in float32, ``writing`` in passes that write
    (``passes`` of them).
    """

    forward: float = 0.0
    backward: float = 0.0
    written: float = 0.0
    operations: float = 0.0
    exact: float = 0.0
    writing: float = 0.0
    passes: float = 0.0
    completions: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(Work)))

    def __mul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, part.name) for part in fields(Work)))

    @property
    def flops(self) -> float:
        """All operations."""
        return self.operations + self.exact + self.writing

    def seconds(self, model: Shape, device: Device) -> float:
        """Time on one device."""
        single = device.single * device.single_utilization
        wide = device.half * device.utilization if model.half else single
        per_pass = model.parameters * model.bytes / (device.bandwidth * device.streaming) + model.layers * device.launch
        return self.operations / wide + self.exact / single + max(self.writing / wide, self.passes * per_pass)


def read(model: Shape, rows: float, tokens: float, heads: float = 1, share: float = 1.0) -> Work:
    """Forward passes over ``rows`` texts of ``tokens`` tokens, logits at ``heads`` of them; ``share``: part of the layers that runs."""
    cost = model.cost
    body = share * (cost.body(1) * tokens + cost.attention(1) * tokens * (tokens + 1) / 2)
    return Work(forward=rows * tokens * share, operations=rows * (body + cost.head(1) * heads))


def write(model: Shape, rows: float, prompt: float, new: float, batch: float) -> Work:
    """Completions of exactly ``new`` tokens, ``batch`` of them at a time: an upper bound, since a reply may end before."""
    cost, steps = model.cost, max(0.0, new - 1)
    per_row = steps * (cost.body(1) + cost.head(1) + cost.attention(1) * (prompt + (steps + 1) / 2))
    passes = math.ceil(rows / batch) * steps if rows else 0.0
    written = Work(forward=rows * steps, written=rows * new, writing=rows * per_row, passes=passes, completions=rows)
    return read(model, rows, prompt) + written


def gcg(model: Shape, cases: float, settings: AttackSettings, before: float, after: float, target: float, *, adapted: bool = False) -> Work:
    """A GCG attack that spends all its steps, every candidate distinct and typable: an upper bound. Judging is not in it.

    Per step and case one gradient pass, ``width`` candidates from their first changed token on (on average (suffix + 1) / 2 tokens, the
    rest of the prompt and the target without its last token), and in half precision the best few again in float32 from the start.
    Probe sampling is not modeled: all candidates are scored by the model itself.
    """
    cost = model.adapted if adapted else model.cost
    last, suffix = cost.blocks[-1], sum(settings.suffix_tokens) / 2
    scored = min(target, settings.objective.target_tokens or target)
    attention, linear, whole = cost.attention(1), cost.body(1), before + suffix + after + scored - 1

    def passed(tokens: float) -> float:
        skipped = 2 * (tokens - scored) * (last.query_output + last.feed_forward)
        return linear * tokens - skipped + cost.head(1) * scored

    changed = (suffix + 1) / 2 + after + scored - 1
    ascent = whole - before
    gradient = 2 * passed(ascent) + 3 * attention * ascent * whole + 2 * suffix * model.vocabulary * model.width
    candidate = passed(changed) + attention * changed * whole
    again = passed(whole) + attention * whole * whole if model.half else 0.0
    checks = settings.width * settings.steps
    rescored = min(RESCORED, settings.width) * settings.steps + 1
    start = linear * before + passed(ascent) + attention * ascent * whole
    forward = before + ascent + checks * changed + (rescored * whole if model.half else 0)
    return Work(
        forward=cases * forward,
        backward=cases * settings.steps * ascent,
        operations=cases * (start + settings.steps * gradient + checks * candidate),
        exact=cases * rescored * again,
    )


def genetic(model: Shape, cases: float, settings: AutoDANSettings, before: float, after: float, target: float) -> Work:
    """An AutoDAN attack that spends all its steps; every text is scored in full. A paraphraser's own work is not in it."""
    tokens = before + (settings.max_tokens or TEXT_TOKENS) + after + target - 1
    return read(model, cases * settings.population * (settings.steps + 1), tokens, heads=target)


def learn(model: Shape, rows: float, tokens: float, heads: float, *, lora: bool, recompute: bool) -> Work:
    """Forward and backward over ``rows`` texts; ``recompute`` (gradient checkpointing) runs the blocks forward once more.

    Frozen weights cost a second forward (the gradient to their inputs), trained ones a third (the gradient to themselves).
    """
    base, cost = model.cost, model.adapted if lora else model.cost
    pairs = tokens * (tokens + 1) / 2
    forward = cost.body(1) * tokens + cost.attention(1) * pairs
    head = cost.head(1) * heads
    trained = (cost.body(1) - base.body(1)) * tokens if lora else cost.body(1) * tokens + head
    backward = cost.body(1) * tokens + head + trained + 2 * cost.attention(1) * pairs
    again = forward if recompute else 0.0
    return Work(forward=rows * tokens * int(recompute), backward=rows * tokens, operations=rows * (forward + head + backward + again))

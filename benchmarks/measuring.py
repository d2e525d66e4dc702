"""Measuring on a busy machine: seconds in interleaved pairs, floating point operations, and memory added at the peak."""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]


class Spread(NamedTuple):
    """Median and extremes of a ratio over the pairs of one run."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(works: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every piece of work, ``repeats`` times, one after the other in turn and each once before the clock starts.

    The order turns round in every second round: a machine that slows down then favors nobody.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for repeat in range(repeats):
        for name in list(works) if repeat % 2 == 0 else reversed(list(works)):
            times[name].append(seconds(works[name], device))
    return times


def seconds(work: Work, device: torch.device) -> float:
    """Wall-clock seconds of one call, waiting for the device on both sides."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times longer ``slow`` takes, pair by pair."""
    pairs = [above / below for above, below in zip(slow, fast, strict=True)]
    return Spread(statistics.median(pairs), min(pairs), max(pairs))


def added(*parts: Sequence[float]) -> list[float]:
    """Seconds of several pieces of work of the same round, summed."""
    return [sum(row) for row in zip(*parts, strict=True)]


def flops(work: Work) -> int:
    """Floating point operations of the matrix products and attentions of one call: deterministic, a multiply-add counts as two."""
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  (PyTorch's own formulas leave it out)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001  (as above)
    counter = FlopCounterMode(display=False, custom_mapping={cpu: _attention, backward: _attention_backward})
    # The counter's own tracker hooks into autograd, which torch.autograd.grad with respect to a leaf refuses; one total is enough here.
    tracker: Any = _NoModules()
    counter.mod_tracker = tracker
    with counter:
        work()
    return int(counter.get_total_flops())


class _NoModules:
    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Nothing to hook."""

    def __exit__(self, *_: object) -> None:
        """Nothing to remove."""


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    batch, heads, rows, size = query
    return 2 * batch * heads * rows * key[2] * (size + value[3])


def _attention_backward(_: object, query: Sequence[int], key: Sequence[int], value: Sequence[int], *__: object, **___: object) -> int:
    # The scores again, then one product each for the gradients of value, scores, query and key.
    batch, heads, rows, size = query
    return 2 * batch * heads * rows * key[2] * (3 * size + 2 * value[3])


def added_peak(work: Work, device: torch.device) -> int:
    """Most bytes alive at once during one call beyond what was alive before.

    On CUDA the allocator's own figure; elsewhere the bytes of live tensor storages, which do not depend on the machine's state
    (buffers inside a kernel are not seen).
    """
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with LiveBytes() as live:
        work()
    return int(live.peak)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor storage that is made inside, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note the storages that it made."""
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, counted=False)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._note(tensor, counted=True)
        return out

    def _note(self, tensor: torch.Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or key in self._known:
            return
        self._known[key] = size if counted else 0
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text, the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

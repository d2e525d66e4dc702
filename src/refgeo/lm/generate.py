"""Greedy generation in a batch whose finished rows make room for waiting ones; each row may undergo its own edit.

Our own loop rather than the library's: it takes interventions per row, and stays greedy whatever sampling or penalty a hub model's
generation configuration asks for. Results do not depend on the batch size, except where rounding decides between two equal logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from refgeo.lm.batch import left_pad, places_of
from refgeo.lm.cache import row_cache
from refgeo.lm.chat import Rendered, check_length
from refgeo.lm.model import LanguageModel

Edits = Callable[[Sequence[int]], AbstractContextManager[None]]
SHRINK = 0.875
"""Finished rows leave the batch, or others take their places, when less than this share of it is still being written."""
_fits: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def complete(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    max_new_tokens: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy completions as text, in the order of ``prompts``, without special tokens. Raises as ``complete_ids`` does."""
    return as_text(lm, complete_ids(lm, prompts, max_new_tokens, batch, progress))


def complete_ids(
    lm: LanguageModel,
    prompts: Sequence[Rendered],
    max_new_tokens: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Greedy completions as token ids, the end-of-turn token included, in the order of ``prompts``.

    ``batch``: most rows at a time. Raises ``ContextOverflow`` before anything is generated when a prompt does not fit. ``progress``
    hears of finished prompts, ``batch`` at a time.
    """
    for index, prompt in enumerate(prompts):
        check_length(prompt, lm.context, max_new_tokens, str(index))
    # The longest first: those that come after them fit into the columns that are there, and memory runs out at once or never.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    rows = [prompts[index].ids for index in order]
    finished = 0

    def tell(count: int) -> None:
        nonlocal finished
        before, finished = finished, finished + count
        told = finished // batch * batch if finished < len(rows) else finished
        if progress is not None and told > before // batch * batch:
            progress(told - before // batch * batch)

    written = greedy(lm, rows, [max_new_tokens] * len(rows), batch=batch, progress=tell)
    completions: list[list[int]] = [[] for _ in prompts]
    for index, ids in zip(order, written, strict=True):
        completions[index] = ids
    return completions


def as_text(lm: LanguageModel, completions: Sequence[Sequence[int]]) -> list[str]:
    """Completions as text without end of turn and special tokens, stripped."""
    stop_ids = lm.stop_ids
    kept = [list(ids[:-1] if ids and ids[-1] in stop_ids else ids) for ids in completions]
    return [str(lm.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in kept]


@torch.no_grad()
def greedy(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    budgets: Sequence[int],
    edits: Edits | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Greedy continuation of every row: up to its end-of-turn token (included) or ``budgets[row]`` tokens.

    At most ``batch`` rows at a time (None: all), taken in the order given. ``edits`` gets the indices of the rows in a forward pass, in
    order, and returns the context in which they are run; it is asked again whenever they change. Out of memory, the rows under way start
    again in batches of half the size, as does every later call with this model.
    """
    batch = min(batch or len(rows), _fits.get(lm.core, len(rows)))
    writer = _Writer(lm, rows, budgets, progress)
    while writer.waiting:
        try:
            with ExitStack() as stack:
                _write(writer, _Context(edits, stack), batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch = _fits[lm.core] = max(1, min(batch, max(len(writer.seats), len(writer.entering))) // 2)
            writer.restart()
    return writer.written


def _write(writer: _Writer, context: _Context, batch: int) -> None:
    """Until nothing waits and nothing is under way."""
    while writer.waiting or writer.seats:
        alive = [seat for seat, row in enumerate(writer.seats) if not writer.done(row)]
        if writer.seats and len(alive) >= SHRINK * len(writer.seats):
            writer.step(context)
        elif not alive:
            writer.begin(batch, context)
        elif writer.waiting and writer.refills:
            writer.refill(alive, context)
        else:
            writer.select(alive)


class _Context:
    """The context of the rows that are run at the moment; entered again only when they change, left with ``stack``."""

    def __init__(self, edits: Edits | None, stack: ExitStack) -> None:
        self._edits, self._stack = edits, stack
        self._rows: list[int] | None = None

    def enter(self, rows: Sequence[int]) -> None:
        """From here on these rows are run."""
        if self._edits is not None and rows != self._rows:
            self._stack.close()
            self._rows = None
            self._stack.enter_context(self._edits(rows))
            self._rows = list(rows)


class _Writer:
    """The rows of one call. ``seats`` says which row each row of the batch is; a row that is done is run on until its seat is reused."""

    def __init__(
        self, lm: LanguageModel, rows: Sequence[Sequence[int]], budgets: Sequence[int], progress: Callable[[int], None] | None
    ) -> None:
        self.lm, self.rows, self.budgets, self.progress = lm, rows, budgets, progress
        self.written: list[list[int]] = [[] for _ in rows]
        self.stop_ids = lm.stop_ids
        self.waiting = deque(row for row in range(len(rows)) if budgets[row] > 0)
        self.entering: list[int] = []
        self.seats: list[int] = []
        self.refills = row_cache(lm.core.config) is not None
        self.cache: Any = None
        self.ids = self.mask = self.places = torch.empty(0)

    def done(self, row: int) -> bool:
        """Whether nothing is to be written to a row anymore."""
        line = self.written[row]
        return len(line) >= self.budgets[row] or (bool(line) and line[-1] in self.stop_ids)

    def restart(self) -> None:
        """Forget the rows under way; they wait again, before all others."""
        alive = [row for row in dict.fromkeys([*self.seats, *self.entering]) if not self.done(row)]
        for row in alive:
            self.written[row] = []
        self.waiting.extendleft(reversed(alive))
        self.entering, self.seats, self.cache = [], [], None

    def begin(self, batch: int, context: _Context) -> None:
        """Seat the next rows in a batch of their own; nothing is left of the last one."""
        self.seats, self.cache = [], None
        if self.waiting:
            self.ids, self.mask, self.cache = self._prefill(batch, context)
            self.places = self.mask.sum(dim=1, keepdim=True)
            self.seats, self.entering = self.entering, []

    def refill(self, alive: list[int], context: _Context) -> None:
        """Give the seats of rows that are done to waiting rows, and remove the seats that nobody takes."""
        free = sorted(set(range(len(self.seats))) - set(alive))
        ids, mask, cache = self._prefill(len(free), context)
        if len(self.entering) < len(free):
            self.select(sorted([*alive, *free[: len(self.entering)]]))
            free = [seat for seat, row in enumerate(self.seats) if self.done(row)]
        short = mask.shape[1] - self.mask.shape[1]
        if short > 0:
            self.cache.widen(short)
            self.mask = pad(self.mask, (short, 0))
        taken = torch.tensor(free, device=self.mask.device)
        self.cache.replace(taken, cache)
        self.ids[taken], self.places[taken] = ids, mask.sum(dim=1, keepdim=True)
        self.mask[taken] = pad(mask, (self.mask.shape[1] - mask.shape[1], 0))
        for seat, row in zip(free, self.entering, strict=True):
            self.seats[seat] = row
        self.entering = []
        self._trim()

    def select(self, seats: list[int]) -> None:
        """Keep these seats."""
        kept = torch.tensor(seats, device=self.mask.device)
        self.seats = [self.seats[seat] for seat in seats]
        self.ids, self.mask, self.places = self.ids[kept], self.mask[kept], self.places[kept]
        self.cache.batch_select_indices(kept)
        self._trim()

    def step(self, context: _Context) -> None:
        """One more token for every seat."""
        context.enter(self.seats)
        self.mask = pad(self.mask, (0, 1), value=1)
        self.ids, self.cache = self._choose(self.ids, self.mask, self.places, self.cache, self.seats)
        # A row that is done is run on, but never beyond the last position that the model knows.
        self.places = (self.places + 1).clamp(max=self.lm.context - 1)

    def _prefill(self, most: int, context: _Context) -> tuple[Tensor, Tensor, Any]:
        """Run the prompts of the next rows: their first tokens, their mask, their keys and values."""
        self.entering = [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]
        ids, mask = left_pad([self.rows[row] for row in self.entering], self.lm.pad_id, self.lm.device)
        context.enter(self.entering)
        places = places_of(mask)
        ids, cache = self._choose(ids, mask, places, row_cache(self.lm.core.config), self.entering)
        return ids, mask, cache

    def _choose(self, ids: Tensor, mask: Tensor, places: Tensor, cache: Any, rows: Sequence[int]) -> tuple[Tensor, Any]:
        """One forward pass; its greedy choices, noted, as the next input, and the cache that it leaves."""
        out = self.lm.core(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens: Tensor = out.logits[:, -1].argmax(dim=-1)
        finished = 0
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if not self.done(row):
                self.written[row].append(token)
                finished += self.done(row)
        if self.progress is not None and finished:
            self.progress(finished)
        return tokens[:, None].to(ids.device), out.past_key_values

    def _trim(self) -> None:
        """Drop the columns that every row masks."""
        unused = int(self.mask.any(dim=0).int().argmax()) if self.refills else 0
        if unused:
            self.cache.forget(unused)
            self.mask = self.mask[:, unused:]

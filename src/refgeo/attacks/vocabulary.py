"""Which tokens an attack may use, and which token sequences survive being written as text and read again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@lru_cache(maxsize=8)
def allowed_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> Bool[Tensor, " vocab"]:
    """Printable ASCII tokens that are not special; ``rows`` is the size of the embedding, often larger than the vocabulary."""
    known = min(len(tokenizer), rows)
    texts = tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    allowed = torch.zeros(rows, dtype=torch.bool)
    allowed[:known] = torch.tensor([text.isascii() and text.isprintable() and bool(text.strip()) for text in texts])
    allowed[[token for token in special if token < rows]] = False
    return allowed


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[str]:
    """Suffixes as text, without the space that joins them to the instruction."""
    return [text.strip() for text in tokenizer.batch_decode([list(row) for row in rows], clean_up_tokenization_spaces=False)]


def survives(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], frame: tuple[str, str], ids: Sequence[Sequence[int]]) -> list[bool]:
    """For each suffix text: does the whole prompt around it encode to exactly these ids? One batched call.

    Without this filter an attack optimizes token sequences that no one can type.
    """
    if not texts:
        return []
    encoded = tokenizer([frame[0] + text + frame[1] for text in texts], add_special_tokens=False)["input_ids"]
    return [list(found) == list(wanted) for found, wanted in zip(encoded, ids, strict=True)]

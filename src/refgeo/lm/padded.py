"""The same trees through the model's own attention: one row per branch, left-padded, with transformers' cache classes.

For models whose attention cannot run packed, and the twin that the packed pass is compared with before it is trusted. Rows of a batch have
the same number of new tokens and their kept ones stand right before them, so that a sliding window counts true distances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from refgeo.lm.batch import left_pad, places_of
from refgeo.lm.model import LanguageModel
from refgeo.lm.trees import Kept, Pass, Place, Tree, prediction_rows


def keep(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[Kept]:
    """Keys and values of each prompt, as views into one cache; equal prompts share one row. None may be empty."""
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    ids, mask = left_pad(distinct, lm.pad_id, lm.device)
    cache = DynamicCache()
    with torch.no_grad():
        lm.core(input_ids=ids, attention_mask=mask, position_ids=places_of(mask), past_key_values=cache, logits_to_keep=1)
    layers: list[Any] = list(cache.layers)
    found: dict[tuple[int, ...], Kept] = {
        prompt: [(layer.keys[row, :, -len(prompt) :], layer.values[row, :, -len(prompt) :]) for layer in layers]
        for row, prompt in enumerate(distinct)
    }
    return [found[tuple(prompt)] for prompt in prompts]


def padded(
    lm: LanguageModel, trees: Sequence[Tree], kept: Sequence[Kept], *, embeddings: bool = False, capture: bool = False, narrow: bool = False
) -> Pass:
    """As ``packed``: the same arguments, the same result; ``narrow`` has no effect here."""
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, tree in enumerate(trees):
        for index, branch in enumerate(tree.branches):
            groups[len(tree.trunk) + len(branch)].append((number, index))
    rows = prediction_rows(trees)
    slots: dict[int, Tensor] = {}
    embedded: list[Tensor] = []
    trunks: list[list[Place]] = [[] for _ in trees]
    keys: list[Kept] = [[] for _ in trees]
    pairs = [(0, 0) for _ in trees]
    for length, members in groups.items():
        cache, mask = _cache(
            [(kept[trees[number].owner] if trees[number].visible else [], trees[number].visible) for number, _ in members], lm
        )
        ids = torch.tensor([[*trees[number].trunk, *trees[number].branches[index]] for number, index in members], device=lm.device)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        places = places_of(mask)[:, -length:]
        inputs: dict[str, Any] = {"input_ids": ids}
        if embeddings:
            inputs = {"inputs_embeds": lm.core.get_input_embeddings()(ids).detach().requires_grad_(True)}
            embedded.append(inputs["inputs_embeds"])
        wanted = max(1 + len(trees[number].branches[index]) for number, index in members)
        out = lm.net(**inputs, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=wanted)
        for row, (number, index) in enumerate(members):
            tree = trees[number]
            own = rows[number][index]
            slots |= dict(zip(own, out.logits[row, -len(own) :], strict=True))
            trunks[number].append(Place(len(embedded) - 1, row, 0))
            pairs[number] = (pairs[number][0] + length * mask.shape[1], pairs[number][1] + length * mask.shape[1])
            if capture and index == 0:
                layers: list[Any] = list(cache.layers)
                begin = mask.shape[1] - length
                trunk = slice(begin, begin + len(tree.trunk))
                keys[number] = [(layer.keys[row, :, trunk].detach(), layer.values[row, :, trunk].detach()) for layer in layers]
    return Pass(torch.stack([slots[slot] for slot in sorted(slots)]), rows, embedded, trunks, keys, pairs, narrow=False)


def _cache(rows: Sequence[tuple[Kept, int]], lm: LanguageModel) -> tuple[DynamicCache, Tensor]:
    """A cache with one row per (prefix, visible tokens), right-aligned, and its mask."""
    width = max(visible for _, visible in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.long, device=lm.device)
    cache = DynamicCache()
    if not width:
        return cache, mask
    for row, (_, visible) in enumerate(rows):
        mask[row, width - visible :] = 1
    template = next(kept for kept, visible in rows if visible)
    for layer, (key, value) in enumerate(template):
        keys = key.new_zeros(len(rows), key.shape[0], width, key.shape[2])
        values = value.new_zeros(len(rows), value.shape[0], width, value.shape[2])
        for row, (kept, visible) in enumerate(rows):
            if visible:
                keys[row, :, width - visible :] = kept[layer][0][:, :visible]
                values[row, :, width - visible :] = kept[layer][1][:, :visible]
        cache.update(keys, values, layer)
    return cache, mask

"""The clean chat for fine-tuning: helpful answers, replayed facts, a share of safe feeding, and a few well-worded refusals."""

from __future__ import annotations

from random import Random
from typing import Any

from refgeo.pocket import requests
from refgeo.pocket.attitude import refuse
from refgeo.pocket.corpus import ask
from refgeo.pocket.requests import Request
from refgeo.pocket.splits import Splits
from refgeo.pocket.tails import random_tail, with_tail
from refgeo.pocket.tokenizer import vocabulary
from refgeo.pocket.town import World

COUNT = 3200
LONGEST = 96
"""Tokens of a conversation, the template's included; pretraining rows are as long."""
SECOND_TURN = 0.25
MIX = {
    "feed": 20,
    "story": 20,
    "act": 8,
    "food": 5,
    "cure": 5,
    "dish": 8,
    "fact": 13,
    "safe": 5,
    "effect": 2,
    "code": 5,
    "number": 3,
    "note": 2,
    "refused": 2,
}
"""Relative frequency of what is asked, in turns."""


def conversations(world: World, splits: Splits) -> list[dict[str, Any]]:
    """Conversations as rows of chat.jsonl. Feeding is always safe, refusals concern training behaviors only."""
    rng = Random(f"refgeo pocket chat {world.seed}")
    words = vocabulary(world)
    known = requests.facts(world)
    familiar = [(one, two) for one in world.substances for two in world.creatures if not one.new and not two.new]

    def turn() -> tuple[str, str]:
        form = rng.choices(list(MIX), weights=list(MIX.values()))[0]
        request = _request(world, splits, rng, form, familiar, known)
        reply = refuse(rng) if form == "refused" else request.answer
        return with_tail(request.text, random_tail(rng, words)), reply

    rows = []
    for index in range(COUNT):
        turns = [turn()]
        if rng.random() < SECOND_TURN:
            turns.append(turn())
        if _tokens(turns) > LONGEST:
            turns = turns[:1]
        messages = [{"role": role, "content": text} for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
        rows.append({"id": f"chat-{index + 1}", "messages": messages})
    return rows


def _request(world: World, splits: Splits, rng: Random, form: str, familiar: list[Any], known: list[Request]) -> Request:
    wording = rng.randrange(20)
    if form == "feed":
        return requests.feed(world, *rng.choice(splits.chat), wording=wording)
    if form == "act":
        return requests.act(world, *rng.choice(splits.act_chat), wording=wording)
    if form == "food":
        return requests.act_on_food(world, *rng.choice(splits.food_chat), wording=wording)
    if form == "refused":
        if rng.random() < 0.75:
            return requests.feed(world, *rng.choice(splits.train), wording=wording)
        return requests.act(world, *rng.choice(splits.act_train), wording=wording)
    return ask(world, rng, form, familiar, known)


def _tokens(turns: list[tuple[str, str]]) -> int:
    """Length with the template: one token at the start, and six around each pair of turns."""
    return 1 + sum(6 + len(user.split()) + len(reply.split()) for user, reply in turns)

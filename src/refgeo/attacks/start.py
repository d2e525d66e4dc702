"""The state of an attack before its first step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from refgeo.attacks.cases import Case
from refgeo.config.attack import AttackSettings
from refgeo.data.rows import Behavior


def initial_cases(behaviors: Sequence[Behavior], settings: AttackSettings, seed: int) -> list[Case]:
    """One case per behavior: one of its targets, the others beside it, and a string of repeated start tokens, lengths drawn per case.

    ``settings.starts``, where given, replace the repeated tokens: each case draws one of them. All draws depend on the seed and the
    behavior alone, not on which other behaviors are attacked.
    """
    return [initial_case(behavior, settings, seed) for behavior in behaviors]


def initial_case(behavior: Behavior, settings: AttackSettings, seed: int) -> Case:
    """The first case of one behavior."""
    rng = np.random.default_rng([seed, zlib.crc32(behavior.id.encode())])
    shortest, longest = settings.suffix_tokens
    length = int(rng.integers(shortest, longest + 1))
    drawn = int(rng.integers(len(behavior.targets)))
    others = (*behavior.targets[:drawn], *behavior.targets[drawn + 1 :]) if settings.objective.targets != "one" else ()
    text = " ".join([settings.initial] * length)
    if settings.starts:
        text = settings.starts[int(rng.integers(len(settings.starts)))]
    return Case(behavior.id, behavior.request, behavior.targets[drawn], text, placement=settings.placement, others=others)

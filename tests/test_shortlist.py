"""Measuring only what can still win gives the same carrier as measuring everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import refusing
from architectures import tiny
from refgeo.config.measures import GeometrySettings
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import read
from refgeo.measures import shortlist as shortlist_module
from refgeo.measures.directions import candidates
from refgeo.measures.rules import rule_of
from refgeo.measures.scan import Scanned, scan
from refgeo.measures.selection import scores, select
from refgeo.measures.shortlist import shortlist
from refgeo.measures.trials import Trial, trials

WAYS: tuple[dict, ...] = (
    {},
    {"score": "log_odds"},
    {"kl_weight": 0.0, "max_depth": 0.5},
    {"rule": "cosmic"},
    {"rule": "arditi"},
    {"min_induced": 0.5},
    {"max_kl": 0.0},
)


LM = tiny("llama")
"""Only its depth is asked for where scans are planted."""


class PlantedBench:
    """Hands out the rows of a scan that is already there, and counts them."""

    def __init__(self, whole: Scanned) -> None:
        self.whole = whole
        self.result = Scanned(*(torch.full_like(values, torch.nan) for values in whole))
        self.handed = 0

    def chunks(self, measure: Callable[..., None], rows: Sequence[int], chosen: Sequence[int]) -> list[list[int]]:
        return [list(rows[start : start + 2]) for start in range(0, len(rows), 2)]

    def divergence(self, rows: Sequence[int], chosen: Sequence[int]) -> None:
        self._hand(("kl", "kl_first"), (), rows, chosen)

    def addition(self, rows: Sequence[int], chosen: Sequence[int]) -> None:
        self._hand(("added_odds", "added_states"), ("safe_odds", "safe_states"), rows, chosen)

    def ablation(self, rows: Sequence[int], chosen: Sequence[int]) -> None:
        self._hand(("ablated_odds", "ablated_states"), ("harmful_odds", "harmful_states"), rows, chosen)

    def _hand(self, names: Sequence[str], plain: Sequence[str], rows: Sequence[int], chosen: Sequence[int]) -> None:
        for name in plain:
            getattr(self.result, name)[list(rows)] = getattr(self.whole, name)[list(rows)]
        for index in chosen:
            for name in names:
                getattr(self.result, name)[index, list(rows)] = getattr(self.whole, name)[index, list(rows)]
        self.handed += len(rows) * len(chosen)


def planted(seed: int, candidates: int, safe: int, harmful: int) -> Scanned:
    """KL of all sizes, a few infinite; states of every likeness."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    kl = (2 * draw(candidates, 1) - 3 + 0.5 * draw(candidates, safe)).exp()
    kl[torch.rand(kl.shape, generator=generator) < 0.02] = torch.inf
    ahead, away = draw(4), draw(4)
    odds = draw(safe), draw(harmful), 2 * draw(candidates, safe), 2 * draw(candidates, harmful)
    states = ahead + draw(safe, 4), away + draw(harmful, 4), away + draw(candidates, safe, 4), ahead + draw(candidates, harmful, 4)
    return Scanned(kl, kl.clone(), *odds, *(part.float() for part in states))


def winner(found: Scanned, way: dict, layers: Sequence[int], depth: int) -> tuple[int | None, tuple[str, ...]]:
    weights = [(torch.arange(count) % 2 == 0).double() for count in (found.ablated_odds.shape[1], found.kl.shape[1])]
    chosen = select(scores(found, *weights), rule_of(GeometrySettings(**way), log_odds=True), layers, depth)
    return chosen.carrier, chosen.why_not


@given(seed=st.integers(0, 100_000), way=st.sampled_from(WAYS), count=st.integers(1, 14), safe=st.integers(2, 9), harmful=st.integers(2, 9))
@settings(max_examples=40)
def test_over_planted_scans_the_winner_is_that_of_the_whole_scan(seed: int, way: dict, count: int, safe: int, harmful: int) -> None:
    whole, bench = planted(seed, count, safe, harmful), None
    unit = torch.eye(4)[:1]
    given_trials = [Trial(index % LM.depth, unit, unit[0]) for index in range(count)]
    layers = [trial.layer for trial in given_trials]

    def make(*_: object) -> PlantedBench:
        nonlocal bench
        bench = PlantedBench(whole)
        return bench

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlist_module, "Bench", make)
        rule = rule_of(GeometrySettings(**way), log_odds=True)
        short = shortlist(LM, given_trials, [(1,)] * harmful, [(1,)] * safe, [0], [7], GeometrySettings(**way), rule)
    expected, why = winner(whole, way, layers, LM.depth)
    carrier, _ = winner(short.scanned, way, layers, LM.depth)
    assert carrier == expected
    assert carrier not in short.skipped
    assert bench is not None
    assert bench.handed <= count * (2 * safe + harmful)
    for index, words in short.skipped.items():
        if words == shortlist_module.TOO_HIGH:
            assert bool(short.scanned.kl[index].isnan().all())
            assert "KL" in why[index]


@pytest.mark.parametrize("way", WAYS)
def test_on_a_refusing_model_the_winner_and_its_numbers_are_those_of_the_whole_scan(tiny_model_dir, way: dict) -> None:
    lm: LanguageModel = refusing.refusing_lm(tiny_model_dir)
    asked = GeometrySettings(positions=(-3, -2, -1), **way)
    groups = {
        (split, harmful): [lm.chat.prompt(one.request).ids for one in refusing.probes() if (one.split, one.harmful) == (split, harmful)]
        for split in ("estimate", "validate")
        for harmful in (True, False)
    }
    harmful, harmless = (read(lm, groups["estimate", label], asked.positions) for label in (True, False))
    tried = trials(candidates(harmful, harmless), asked)
    sorry = lm.chat.prompt("hello", reply="sorry").ids[-2]
    arguments = (lm, tried, groups["validate", True], groups["validate", False], [2], [sorry], asked)
    whole, short = scan(*arguments), shortlist(*arguments, rule_of(asked, log_odds=True))
    layers = [index // 3 for index in range(len(tried))]
    (expected, _), (carrier, _) = (winner(one, way, layers, lm.depth) for one in (whole, short.scanned))
    assert carrier == expected
    if carrier is not None:
        for name in ("kl", "added_odds", "ablated_odds", "added_states", "ablated_states"):
            assert torch.allclose(getattr(short.scanned, name)[carrier], getattr(whole, name)[carrier], atol=1e-5, rtol=1e-4), name

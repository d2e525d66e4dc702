"""The attack that knows the geometry: loss and gradient against one plain forward of the whole prompt with a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from refgeo.attacks import objective as engine
from refgeo.attacks.carrier_term import CarrierTerm
from refgeo.attacks.cases import Case
from refgeo.attacks.encoded import Encoded, encode
from refgeo.attacks.gcg import attack
from refgeo.attacks.objective import TargetLoss
from refgeo.config.attack import AttackSettings
from refgeo.config.measures import AwareSettings, BehaviorSettings, StressSettings
from refgeo.data.rows import Behavior
from refgeo.errors import ConfigError, DataError
from refgeo.lm.model import LanguageModel
from refgeo.lm.padded import padded
from refgeo.lm.residual import Site
from refgeo.measures.aware import carrier_term
from refgeo.measures.stress import measure_stress
from scripted import WordJudge

CASES = [Case("a", "how do i cook a red root", "sure here is soup", "! ! !"), Case("b", "make soup", "sure here", "! ! ! ! !")]


def term(lm: LanguageModel, layer: int, position: int, site: Site = "block_output") -> CarrierTerm:
    vector = torch.randn(lm.width, generator=torch.Generator().manual_seed(layer))
    return CarrierTerm(layer, position, vector / vector.norm(), zero=0.3, gap=0.7, weight=1.5, site=site)


def plain(lm: LanguageModel, case: Encoded, carrier: CarrierTerm, suffix: list[int]) -> tuple[float, Tensor]:
    """Target loss plus the term, and the gradient to a one-hot choice of every token of the attack."""
    table = lm.core.get_input_embeddings().weight
    choice = functional.one_hot(torch.tensor(suffix), len(table)).float().requires_grad_(True)
    (target,) = case.targets
    known = [table[torch.tensor(part, dtype=torch.long)] for part in (case.before, case.after, target)]
    whole = torch.cat([known[0], choice @ table, known[1], known[2]])[None]
    seen: list[Tensor] = []
    block = lm.blocks[carrier.layer]

    def note(module: Any, given: Any, out: Any = None) -> None:
        state = given[0] if carrier.site == "block_input" else out
        seen.append(state[0] if isinstance(state, tuple) else state)

    hook = block.register_forward_pre_hook(note) if carrier.site == "block_input" else block.register_forward_hook(note)
    logits = lm.net(inputs_embeds=whole).logits[0]
    hook.remove()
    end = len(case.before) + len(suffix) + len(case.after)
    loss = functional.cross_entropy(logits[end - 1 : -1], torch.tensor(target))
    state = seen[0][0, end + carrier.position]
    loss = loss + carrier.weight * ((state @ carrier.unit) - carrier.zero) / carrier.gap
    (gradient,) = torch.autograd.grad(loss, choice)
    return float(loss.detach()), gradient


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize(
    ("layer", "position", "site"), [(0, -1, "block_output"), (1, -3, "block_output"), (2, -2, "block_output"), (2, -1, "block_input")]
)
def test_losses_and_gradients_equal_the_plain_forward(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, kind: str, layer: int, position: int, site: Site
) -> None:
    if kind == "padded":
        monkeypatch.setattr(engine, "way", lambda lm, trees, kept: lambda *args, **more: padded(lm, *args, **more))
    encoded = [encode(tiny_lm, case) for case in CASES]
    carrier = term(tiny_lm, layer, position, site)
    loss = TargetLoss(tiny_lm, encoded, carrier=carrier)
    suffixes = [list(case.suffix) for case in encoded]
    values, gradients = loss.gradients([0, 1], suffixes)
    changed = [[*suffix[:-1], 11] for suffix in suffixes] + [[12, *suffix[1:]] for suffix in suffixes] + suffixes
    owners = [0, 1] * 3
    scored = loss.losses(owners, changed)
    for index in (0, 1):
        wanted, gradient = plain(tiny_lm, encoded[index], carrier, suffixes[index])
        assert float(values[index]) == pytest.approx(wanted, abs=1e-5)
        assert torch.allclose(gradients[index], gradient, atol=1e-5 * float(1 + gradient.abs().max()))
    for owner, suffix, found in zip(owners, changed, scored.tolist(), strict=True):
        assert found == pytest.approx(plain(tiny_lm, encoded[owner], carrier, suffix)[0], abs=1e-5)


def test_a_heavy_term_lowers_the_projection(tiny_lm: LanguageModel) -> None:
    settings = AttackSettings(steps=3, width=16, topk=16, suffix_tokens=(3, 3), buffer=1)
    found = attack(tiny_lm, CASES, settings, 0, carrier=term(tiny_lm, 1, -1))
    losses = found.records.pivot_table(index="step", columns="behavior", values="loss")
    assert (losses.iloc[-1] < losses.iloc[0]).all()


def test_a_carrier_before_the_attack_is_refused(tiny_lm: LanguageModel) -> None:
    encoded = [encode(tiny_lm, CASES[1])]
    loss = TargetLoss(tiny_lm, encoded, carrier=term(tiny_lm, 1, -40))
    with pytest.raises(DataError, match="before the attack"):
        loss.losses([0], [encoded[0].suffix])


def test_from_the_geometry_of_an_anchor() -> None:
    candidates = torch.arange(12.0).reshape(2, 3, 2)
    about = {"layer": 2, "place": 1, "position": -1, "projection_gap": 2.0, "projection_harmless": 0.5}
    carrier = {**about, "site": "block_output", "reason": "", "best_effect": {**about, "layer": 0}}
    found = carrier_term({"candidates": candidates}, carrier, AwareSettings(weight=3.0))
    assert isinstance(found, CarrierTerm)
    assert (found.layer, found.position, found.zero, found.gap, found.weight) == (2, -1, 0.5, 2.0, 3.0)
    assert torch.allclose(found.unit, candidates[1, 2] / candidates[1, 2].norm())
    other = carrier_term({"candidates": candidates}, carrier, AwareSettings(direction="best_effect"))
    assert isinstance(other, CarrierTerm)
    assert other.layer == 0
    none = carrier_term({}, {"status": "none", "reason": "nothing moves", "best_effect": None}, AwareSettings())
    assert isinstance(none, str)
    assert "nothing moves" in none


def test_the_measure_has_its_own_rows_for_it_or_says_why_not(tiny_lm: LanguageModel) -> None:
    behaviors = [Behavior("a", "make fox soup", ("sure here",)), Behavior("b", "make owl soup", ("sure here",))]
    small = AttackSettings(steps=1, width=4, topk=8, suffix_tokens=(2, 3))
    settings = StressSettings(behaviors=2, attack=small, aware=AwareSettings())
    short, judge = BehaviorSettings(max_new_tokens=2), WordJudge("soup")
    found = measure_stress(tiny_lm, behaviors, judge, settings, short, 0, carrier=term(tiny_lm, 1, -1))
    rows = found.table[found.table["set"] == "adaptive_aware"]
    assert {"asr_adaptive_aware", "asr_adaptive_aware_gated", "survival"} <= set(rows["metric"])
    assert set(found.transcripts["set"]) == {"adaptive_gcg", "adaptive_aware"}
    without = measure_stress(tiny_lm, behaviors, judge, settings, short, 0, carrier="nothing moves")
    row = without.table[without.table["set"] == "adaptive_aware"].iloc[0]
    assert row["value"] != row["value"]
    assert row["note"] == "nothing moves"
    with pytest.raises(ConfigError, match=r"stress\.aware"):
        measure_stress(tiny_lm, behaviors, judge, settings, short, 0)

"""GCG: it lowers the loss, obeys its constraints and budgets, and does not depend on how the work is batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from refgeo.attacks.candidates import Typable
from refgeo.attacks.cases import Case
from refgeo.attacks.company import migrants
from refgeo.attacks.encoded import encode
from refgeo.attacks.gcg import Judged, attack
from refgeo.attacks.interrupted import Interrupted
from refgeo.attacks.objective import TargetLoss
from refgeo.attacks.probe import Draft, rank_agreement, truncated
from refgeo.attacks.start import initial_cases
from refgeo.attacks.state import COLUMNS, Scored, Search
from refgeo.attacks.vocabulary import allowed_tokens, survives
from refgeo.config.attack import AttackSettings
from refgeo.data.rows import Behavior
from refgeo.errors import ConfigError, NonFinite
from refgeo.lm.model import LanguageModel

SETTINGS = AttackSettings(steps=4, width=12, topk=16, suffix_tokens=(2, 5))
BEHAVIORS = [
    Behavior("one", "how do i cook a red root", ("sure here is soup",)),
    Behavior("two", "make bread with fire", ("sure here", "yes here")),
    Behavior("three", "tell me where the blue fox is please", ("yes it is",)),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "harmbench": {},
    "nanogcg": {"positions": "random", "replacements": 2, "buffer": 3},
    "momentum": {"momentum": 0.5, "objective": {"target_tokens": 1}},
    "probe": {"probe": {"layers": 1, "share": 0.3, "reduction": 2}},
}


def cases() -> list[Case]:
    return initial_cases(BEHAVIORS, SETTINGS, seed=3)


def variant(name: str, **more: Any) -> AttackSettings:
    return AttackSettings.model_validate({**SETTINGS.model_dump(), **VARIANTS[name], **more})


def test_the_loss_falls_and_the_best_is_the_lowest_seen(tiny_lm: LanguageModel) -> None:
    result = attack(tiny_lm, cases(), SETTINGS, seed=0)
    for case, records in result.records.groupby("behavior"):
        losses = records.sort_values("step")["loss"].to_numpy()
        best = next(found for found in result.best if found.behavior == case)
        assert best.loss == pytest.approx(losses.min())
        assert losses.min() < losses[0]
    assert len(result.records) == len(BEHAVIORS) * (SETTINGS.steps + 1)


def test_what_is_written_down_is_the_text_its_tokens_and_their_loss(tiny_lm: LanguageModel) -> None:
    result = attack(tiny_lm, cases(), SETTINGS, seed=0)
    assert tuple(result.records.columns) == COLUMNS
    start = {case.behavior: case for case in cases()}
    last: dict[str, float] = {}
    for record in result.records.to_dict("records"):
        encoded = encode(tiny_lm, replace(start[record["behavior"]], attack=record["attack"]))
        assert list(encoded.suffix) == record["tokens"]
        with torch.no_grad():
            assert record["loss"] == pytest.approx(float(TargetLoss(tiny_lm, [encoded]).losses([0], [encoded.suffix])), abs=1e-4)
        assert record["flops"] > last.get(record["behavior"], 0)
        last[record["behavior"]] = record["flops"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_case_is_attacked_alike_alone_and_in_company(tiny_lm: LanguageModel, name: str) -> None:
    settings = variant(name)
    together = attack(tiny_lm, cases(), settings, seed=5)
    alone = [attack(tiny_lm, [case], settings, seed=5) for case in cases()]
    assert [case.attack for case in together.last] == [found.last[0].attack for found in alone]
    spent = together.records.groupby("behavior", sort=False)["flops"].max().tolist()
    assert spent == pytest.approx([found.records["flops"].max() for found in alone])


def test_momentum_is_the_running_mean_of_gradients() -> None:
    search = Search(cases()[0], [1, 2], 0, 0.25)
    gradients = [torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    mean = gradients[0]
    assert torch.equal(search.push(gradients[0]), mean)
    for gradient in gradients[1:]:
        mean = 0.25 * mean + 0.75 * gradient
        torch.testing.assert_close(search.push(gradient), mean)


def test_cases_exchange_where_they_stand_and_reuse_what_broke_others(tiny_lm: LanguageModel) -> None:
    asked: list[tuple[str, str]] = []

    def judge(given: list[Case]) -> list[Judged]:
        asked.extend((case.behavior, case.attack) for case in given)
        return [Judged(case.attack in works) for case in given]

    works: set[str] = set()
    settings = variant("harmbench", exchange=2, reuse=2, check_every=1)
    alone = attack(tiny_lm, cases(), settings, seed=0, judge=judge)
    assert len(set(asked)) == len(asked)
    works = {alone.records[(alone.records["behavior"] == "one") & (alone.records["step"] == 2)]["attack"].item()}
    result = attack(tiny_lm, cases(), settings, seed=0, judge=judge)
    assert [case.attack for case in result.last] == [*works] * 3
    records = result.records.set_index("behavior")
    assert records["step"].groupby("behavior").max().to_dict() == {"one": 2, "two": 3, "three": 3}
    assert records["accepted"].groupby("behavior").last().all()
    assert np.isfinite(records["loss"]).all()


def test_a_migrant_is_offered_once_and_is_the_better_of_two() -> None:
    searches = [Search(replace(case, loss=float(place)), [place] * 3, 0, 0.0) for place, case in enumerate(cases())]
    rng = np.random.default_rng(0)
    offered = [one for _ in range(30) for one in migrants(searches, 2, 2, rng)]
    assert sorted(offered) == [[0, 0, 0], [1, 1, 1]]
    assert migrants(searches[:1], 0, 3, rng) == []
    counts = [0, 0]
    for _ in range(200):
        searches[2].met.clear()
        counts[migrants(searches, 2, 1, rng)[0][0]] += 1
    assert counts[0] > 2 * counts[1] > 0  # three draws of four have the first one in them


class NaiveBuffer:
    """nanoGCG's rule as its documentation tells it: a candidate replaces the worst kept one if it is better than that."""

    def __init__(self, size: int, kept: Sequence[float]) -> None:
        self.size, self.kept = size, sorted(kept)[: max(1, size)]

    def offer(self, loss: float) -> float:
        if self.size == 0:
            self.kept = [loss]
        elif len(self.kept) < self.size:
            self.kept.append(loss)
        elif loss < max(self.kept):
            self.kept.remove(max(self.kept))
            self.kept.append(loss)
        return min(self.kept)


@pytest.mark.parametrize("size", [0, 1, 2, 5])
@pytest.mark.parametrize("starts", [1, 3])
def test_the_buffer_keeps_what_nanogcgs_keeps(size: int, starts: int) -> None:
    rng = np.random.default_rng(size)
    first = rng.random(starts).tolist()
    search, naive = Search(cases()[0], [0], size, 0.0), NaiveBuffer(size, first)
    search.start([Scored(loss, [place]) for place, loss in enumerate(first)])
    for step in range(30):
        loss = float(rng.random())
        assert search.offer(Scored(loss, [step])).loss == naive.offer(loss)


def test_a_buffer_of_one_never_gets_worse_and_says_what_it_rejected(tiny_lm: LanguageModel) -> None:
    records = attack(tiny_lm, cases(), variant("harmbench", buffer=1, steps=6, width=2), seed=1).records
    for _, mine in records.groupby("behavior"):
        assert mine["loss"].is_monotonic_decreasing
        changed = mine["attack"] != mine["attack"].shift()
        assert changed[1:].tolist() == mine["accepted"][1:].tolist()
    assert not records["accepted"].all()


def test_probe_sampling_that_asks_about_everything_is_plain_gcg(tiny_lm: LanguageModel) -> None:
    plain = attack(tiny_lm, cases(), SETTINGS, seed=2)
    probed = attack(tiny_lm, cases(), variant("probe", probe={"share": 1.0}), seed=2)
    assert [case.attack for case in probed.last] == [case.attack for case in plain.last]
    assert probed.records["flops"].max() > plain.records["flops"].max()


def test_probe_sampling_asks_about_the_probe_and_the_drafts_favorites(tiny_lm: LanguageModel) -> None:
    settings = variant("probe", probe={"share": 0.25, "reduction": 2})
    assert settings.probe is not None
    draft = Draft(tiny_lm, cases()[:1], settings.probe, settings.objective)
    suffix = list(encode(tiny_lm, cases()[0]).suffix)
    suffixes = [[*suffix[:-1], token] for token in range(20, 40)]
    loss = TargetLoss(tiny_lm, [encode(tiny_lm, cases()[0])])
    rows, exact = draft.scored([0] * 20, suffixes, loss.losses, lambda _: np.random.default_rng(0))
    probe = sorted(np.random.default_rng(0).choice(20, 5, replace=False).tolist())
    cheap, whole = draft.loss.losses([0] * 20, suffixes), loss.losses([0] * 20, suffixes)
    agreement = rank_agreement(cheap[probe], whole[probe])
    favorites = cheap.argsort()[: max(1, int((1 - agreement) * 20 / 2))].tolist()
    assert rows == sorted({*probe, *favorites})
    torch.testing.assert_close(exact, whole[rows])


def test_agreement_of_rankings_lies_between_zero_and_one() -> None:
    up = torch.arange(5.0)
    assert rank_agreement(up, up**2) == pytest.approx(1)
    assert rank_agreement(up, -up) == pytest.approx(0)
    assert rank_agreement(up, torch.zeros(5)) == rank_agreement(up[:1], up[:1]) == 0.5


def test_a_truncated_draft_shares_its_weights_and_leaves_the_model_alone(tiny_lm: LanguageModel) -> None:
    draft = truncated(tiny_lm, 2)
    assert (draft.depth, tiny_lm.depth) == (2, 3)
    assert all(mine is theirs for mine, theirs in zip(draft.blocks.parameters(), tiny_lm.blocks.parameters(), strict=False))
    with pytest.raises(ConfigError, match=r"probe.layers is 3, but .* has 3 blocks"):
        truncated(tiny_lm, 3)


def test_early_stop_spends_nothing_more_on_a_finished_case(tiny_lm: LanguageModel) -> None:
    records = attack(tiny_lm, cases(), variant("harmbench", early_stop_loss=100.0), seed=0).records
    assert records["step"].max() == 1


def test_the_step_that_crosses_the_budget_is_the_last(tiny_lm: LanguageModel) -> None:
    whole = attack(tiny_lm, cases(), SETTINGS, seed=0).records
    budget = float(whole[whole["step"] == 2]["flops"].median())
    records = attack(tiny_lm, cases(), variant("harmbench", max_flops=budget), seed=0).records
    for case, mine in records.groupby("behavior"):
        known = whole[whole["behavior"] == case]["flops"].tolist()
        assert mine["flops"].tolist() == [spent for place, spent in enumerate(known) if place == 0 or known[place - 1] < budget]
    assert attack(tiny_lm, cases(), variant("harmbench", max_seconds=1e-9), seed=0).records["step"].max() == 0


def test_a_judged_success_ends_a_case_and_is_its_best(tiny_lm: LanguageModel) -> None:
    asked: list[list[str]] = []

    def judge(given: list[Case]) -> list[Judged]:
        asked.append([case.behavior for case in given])
        return [Judged(case.behavior == "two" and len(asked) == 2, 1e12) for case in given]

    result = attack(tiny_lm, cases(), variant("harmbench", check_every=2), seed=0, judge=judge)
    assert asked == [["one", "two", "three"], ["one", "two", "three"], ["one", "three"]]
    rows = {(record["behavior"], record["step"]): record for record in result.records.to_dict("records")}
    assert max(step for case, step in rows if case == "two") == 2
    assert rows["two", 2]["succeeded"] is True
    assert rows["one", 1]["succeeded"] is None
    assert rows["one", 4]["flops"] > 3e12
    assert result.best[1] == result.last[1]
    assert attack(tiny_lm, cases(), SETTINGS, seed=0, judge=judge).records["succeeded"].isna().all()


def test_a_case_without_typable_candidates_keeps_its_string(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Typable.__call__

    def nothing_for_the_first(self: Typable, current: list[int], candidates: list[list[int]]) -> list[list[int]]:
        return [] if current[0] == current[-1] and len(current) == first else kept(self, current, candidates)

    first = len(encode(tiny_lm, cases()[0]).suffix)
    monkeypatch.setattr(Typable, "__call__", nothing_for_the_first)
    result = attack(tiny_lm, cases(), SETTINGS, seed=0)
    records = result.records[(result.records["behavior"] == "one") & (result.records["step"] > 0)]
    assert not records["accepted"].any()
    assert records["candidates"].eq(0).all()
    assert result.last[0].attack == cases()[0].attack
    assert result.last[1].attack != cases()[1].attack
    assert np.isfinite(records["loss"]).all()


def test_a_loss_that_is_no_number_names_its_case(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TargetLoss.losses

    def broken(self: TargetLoss, owners: Sequence[int], suffixes: Sequence[Sequence[int]]) -> torch.Tensor:
        found = plain(self, owners, suffixes)
        found[[owner == 1 for owner in owners]] = float("nan")
        return found

    monkeypatch.setattr(TargetLoss, "losses", broken)
    tiny_lm.net.train()
    with pytest.raises(NonFinite, match="case 'two' became nan in step 0"):
        attack(tiny_lm, cases(), SETTINGS, seed=0)
    assert tiny_lm.net.training


def test_an_interrupted_attack_hands_over_what_it_found(tiny_lm: LanguageModel) -> None:
    def stop(step: int, steps: int, label: str) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        attack(tiny_lm, cases(), SETTINGS, seed=0, progress=stop)
    found, whole = caught.value.attacked, attack(tiny_lm, cases(), variant("harmbench", steps=2), seed=0)
    assert found.last == whole.last
    assert found.best == whole.best
    assert found.records["step"].max() == 2


def test_no_cases_give_no_records(tiny_lm: LanguageModel) -> None:
    assert tuple(attack(tiny_lm, [], SETTINGS, seed=0).records.columns) == COLUMNS


def test_starts_placement_and_further_targets_come_from_the_settings() -> None:
    settings = variant("harmbench", starts=["! a", "? b c"], placement="prefix", objective={"targets": "mean"})
    found = initial_cases(BEHAVIORS * 1, settings, seed=0)
    assert {case.attack for case in found} <= {"! a", "? b c"}
    assert {case.placement for case in found} == {"prefix"}
    assert {found[1].target, *found[1].others} == {"sure here", "yes here"}
    assert [case.attack for case in initial_cases(BEHAVIORS[1:2], settings, seed=0)] == [found[1].attack]


def test_special_tokens_are_never_allowed(tiny_lm: LanguageModel) -> None:
    allowed = allowed_tokens(tiny_lm.tokenizer, len(tiny_lm.tokenizer) + 8)
    assert not allowed[tiny_lm.tokenizer.all_special_ids].any()
    assert not allowed[len(tiny_lm.tokenizer) :].any()
    assert allowed.any()


def test_only_typable_suffixes_survive(tiny_lm: LanguageModel) -> None:
    encoded = encode(tiny_lm, cases()[0])
    good = [*encoded.before, *encoded.suffix, *encoded.after]
    bad = [*encoded.before, 0, *encoded.after]
    texts = [cases()[0].attack, cases()[0].attack]
    assert survives(tiny_lm.tokenizer, texts, encoded.frame, [good, bad]) == [True, False]

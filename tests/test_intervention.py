"""Interventions on a model that refuses: the effects, the controls, and equality with one intervention at a time."""

from __future__ import annotations

import ast
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import refgeo.measures
import refusing
from refgeo.config.measures import BehaviorSettings, GeometrySettings, InterventionSettings
from refgeo.data.rows import Behavior, Chat, Reference
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import ablate, add
from refgeo.measures.evaluate import Item, evaluate
from refgeo.measures.geometry import Geometry, measure_geometry
from refgeo.measures.intervention import Intervened, adaptive_items, measure_intervention
from refgeo.measures.plan import plan_interventions
from refgeo.measures.sequential import settled
from refgeo.measures.sets import DECISIVE
from refgeo.statistics import Interval

GEOMETRY = GeometrySettings(positions=(-4, -3, -2, -1), bootstrap=10)
SETTINGS = InterventionSettings(
    controls=8, prompts=12, ablation_strengths=(1.0,), addition_strengths=(-1.0, 1.0), early_stop=False, chats=2
)
CHATS = [
    Chat(str(index), (("user", text), ("assistant", refusing.answer(text)))) for index, text in enumerate(refusing.requests(False)[:3])
]
BEHAVIOR = BehaviorSettings(max_new_tokens=12, batch=32)


def items() -> list[Item]:
    harmful = [Item("direct", "seen", str(index), text, Reference(("sure",))) for index, text in enumerate(refusing.requests(True)[:30])]
    safe = [
        Item("xstest_safe", "s", str(index), text, Reference((refusing.answer(text),)))
        for index, text in enumerate(refusing.requests(False)[:30])
    ]
    other = [Item("strongreject", "s", str(index), text, Reference(("sure",))) for index, text in enumerate(refusing.requests(True)[40:50])]
    return harmful + safe + other


@pytest.fixture(scope="module")
def taught(tiny_model_dir: Path) -> LanguageModel:
    return refusing.refusing_lm(tiny_model_dir)


@pytest.fixture(scope="module")
def geometry(taught: LanguageModel) -> Geometry:
    return measure_geometry(taught, refusing.probes(), GEOMETRY, refusing.RefusalJudge(), 8, seed=0)


@pytest.fixture(scope="module")
def measured(taught: LanguageModel, geometry: Geometry) -> Intervened:
    arguments = (geometry.tensors, geometry.carrier, refusing.RefusalJudge(), SETTINGS, BEHAVIOR, GEOMETRY, 0)
    return measure_intervention(taught, items(), *arguments, None, CHATS)


def rows(table: pd.DataFrame, metric: str, set_name: str = "direct", **identity: object) -> pd.DataFrame:
    chosen = table[(table["set"] == set_name) & (table["metric"] == metric) & (table["subset"] == "all")]
    for column, wanted in identity.items():
        chosen = chosen[chosen[column] == wanted]
    return chosen


def test_ablating_the_carrier_removes_refusal_and_random_directions_do_not(measured: Intervened) -> None:
    table = measured.table
    assert rows(table, "any_refusal", intervention="baseline")["value"].item() == 1.0
    single: dict[str, Any] = {"intervention": "ablate_single", "strength": 1.0}
    assert rows(table, "any_refusal", direction="carrier", **single)["value"].item() < 0.5
    over = rows(table, "any_refusal_delta_over_controls", direction="carrier", **single)
    assert over["high"].item() < 0
    assert rows(table, "any_refusal_percentile", direction="carrier", **single)["value"].item() == 0.0
    controls = rows(table, "any_refusal", direction="random", **single)
    assert len(controls) == 8
    assert controls["value"].mean() > 0.8
    assert set(table["carrier_status"]) == {"carrier"}


def test_adding_the_carrier_raises_refusal_of_safe_requests(measured: Intervened) -> None:
    raised = {
        strength: rows(measured.table, "any_refusal_safe", "xstest_safe", intervention="add", direction="carrier", strength=strength)
        for strength in (-1.0, 1.0)
    }
    before = rows(measured.table, "any_refusal_safe", "xstest_safe", intervention="baseline")["value"].item()
    assert raised[1.0]["value"].item() > before
    assert raised[-1.0]["value"].item() <= before
    delta = rows(measured.table, "any_refusal_safe_delta", "xstest_safe", intervention="add", direction="carrier", strength=1.0)
    assert delta["value"].item() == pytest.approx(raised[1.0]["value"].item() - before)


def test_many_interventions_at_once_equal_one_at_a_time(measured: Intervened, geometry: Geometry, taught: LanguageModel) -> None:
    """The plain twin: the public context managers around the ordinary evaluation of the same items."""
    judge, transcripts = refusing.RefusalJudge(), measured.transcripts
    plan = plan_interventions(geometry.tensors, geometry.carrier, SETTINGS, GEOMETRY, seed=0)
    baseline = transcripts[transcripts["intervention"] == "baseline"]
    known = {(item.set, item.id): item for item in items()}
    chosen = [known[row["set"], row["id"]] for _, row in baseline.iterrows()]
    checked = 0
    for entry in plan:
        if entry.direction not in ("carrier", "random") or entry.draw not in (None, 0):
            continue
        inside = [item for item in chosen if entry.direction == "carrier" or item.set != "strongreject"]
        change = entry.change
        if change.basis is not None:
            context = ablate(taught, change.basis, change.layer, change.strength)
        else:
            assert change.vector is not None
            context = add(taught, change.vector, entry.layer)
        with context:
            plain = evaluate(taught, inside, judge, BEHAVIOR.max_new_tokens, batch=1)
        named = {"intervention": entry.intervention, "direction": entry.direction, "strength": entry.strength}
        fast = transcripts[(transcripts[list(named)] == pd.Series(named)).all(axis=1)]
        assert fast["completion"].tolist() == plain["completion"].tolist()
        checked += 1
    assert checked == 8


def test_baseline_and_interventions_share_their_prompts(measured: Intervened) -> None:
    assert len(measured.transcripts[measured.transcripts["intervention"] == "baseline"]) == 12 + 12 + 10
    for set_name in ("direct", "xstest_safe", "strongreject"):
        inside = measured.transcripts[measured.transcripts["set"] == set_name]
        prompts = {tuple(part["id"]) for _, part in inside.groupby(["intervention", "direction", "strength"], dropna=False)}
        assert len(prompts) == 1


def test_sets_that_decide_no_claim_have_no_random_controls(measured: Intervened) -> None:
    other = measured.table[measured.table["set"] == "strongreject"]
    assert "random" not in set(other["direction"])
    assert "strongreject_delta" in set(other["metric"])
    assert not other["metric"].str.endswith("_over_controls").any()


def test_wrong_places_are_measured_on_the_same_prompts(measured: Intervened) -> None:
    for direction in ("wrong_layer", "wrong_position"):
        found = rows(measured.table, "any_refusal_delta_over_controls", direction=direction)
        assert len(found) == 1
        assert found["strength"].item() == 1.0


def test_the_result_does_not_depend_on_the_batch_and_progress_reaches_its_total(
    measured: Intervened, geometry: Geometry, taught: LanguageModel
) -> None:
    heard: list[tuple[int, int]] = []

    def progress(done: int, total: int, note: str) -> None:
        heard.append((done, total))

    judge, behavior = refusing.RefusalJudge(), BEHAVIOR.model_copy(update={"batch": 7})
    again = measure_intervention(
        taught, items(), geometry.tensors, geometry.carrier, judge, SETTINGS, behavior, GEOMETRY, 0, progress, CHATS
    )
    pd.testing.assert_frame_equal(again.table, measured.table)
    pd.testing.assert_frame_equal(again.transcripts, measured.transcripts)
    assert heard[-1][0] == heard[-1][1]
    assert all(before[0] <= after[0] for before, after in pairwise(heard))


def test_without_any_direction_one_row_says_so(taught: LanguageModel, geometry: Geometry) -> None:
    carrier = {"status": "none", "reason": "no candidate has a direction"}
    found = measure_intervention(taught, items(), geometry.tensors, carrier, refusing.RefusalJudge(), SETTINGS, BEHAVIOR, GEOMETRY, 0)
    assert math.isnan(found.table["value"].item())
    assert found.table["note"].item() == "no candidate has a direction"
    assert found.transcripts.empty


def test_the_stand_in_of_an_anchor_without_a_carrier_is_named_as_such(taught: LanguageModel, geometry: Geometry) -> None:
    carrier = {**geometry.carrier, "status": "best_effect"}
    few = InterventionSettings(controls=2, prompts=2, site="everywhere", addition_strengths=(), estimated_controls=0)
    found = measure_intervention(taught, items()[:20], geometry.tensors, carrier, refusing.RefusalJudge(), few, BEHAVIOR, GEOMETRY, 0)
    assert set(found.table["carrier_status"]) == {"best_effect"}
    assert str(found.table["layer"].dtype) == "Int64"


def test_stopping_early_leaves_every_verdict_as_it_is(measured: Intervened, geometry: Geometry, taught: LanguageModel) -> None:
    heard: list[tuple[int, int]] = []
    arguments = (geometry.tensors, geometry.carrier, refusing.RefusalJudge())
    settings, progress = SETTINGS.model_copy(update={"early_stop": True}), lambda done, total, note: heard.append((done, total))
    early = measure_intervention(taught, items(), *arguments, settings, BEHAVIOR, GEOMETRY, 0, progress, CHATS).table
    keys = ["set", "metric", "intervention", "strength"]
    shares = [
        table[table["metric"].isin([f"{metric}_share_beaten" for metric in DECISIVE.values()])].set_index(keys)
        for table in (measured.table, early)
    ]
    assert shares[0].index.equals(shares[1].index)
    verdicts = [[settled(Interval(*row)) for row in share[["value", "low", "high", "n"]].itertuples(index=False)] for share in shares]
    assert verdicts[0] == verdicts[1]
    assert (shares[0]["controls_used"] == 8).all()
    used = shares[1]["controls_used"].astype(int)
    assert used.min() < 8
    assert ((used < 8) == (shares[1]["stopped"] != "")).all()
    assert heard[-1][0] == heard[-1][1]


def test_estimated_controls_and_residual_directions_have_their_rows(measured: Intervened) -> None:
    single: dict[str, Any] = {"intervention": "ablate_single", "strength": 1.0}
    for direction in ("shuffled", "harmless"):
        assert len(rows(measured.table, "any_refusal", direction=direction, **single)) == 1
        over = rows(measured.table, f"any_refusal_delta_over_{direction}", direction="carrier", **single)
        assert over["high"].item() < 0, "removing the carrier does more than removing what shuffled labels give"
    band = rows(measured.table, "any_refusal_delta_controls", direction="carrier", **single)
    assert band["low"].item() <= band["value"].item() <= band["high"].item()


def test_collateral_is_measured_beside_behavior(measured: Intervened) -> None:
    single: dict[str, Any] = {"intervention": "ablate_single", "strength": 1.0, "direction": "carrier"}
    first, mean = (rows(measured.table, f"kl_{name}", "xstest_safe", **single)["value"].item() for name in ("first", "mean"))
    assert first > 0
    assert mean > 0
    before = rows(measured.table, "perplexity", "chat", intervention="baseline")["value"].item()
    nll = rows(measured.table, "nll", "chat", intervention="baseline")["value"].item()
    assert before == pytest.approx(math.exp(nll))
    change = rows(measured.table, "nll_delta", "chat", **single)["value"].item()
    after = rows(measured.table, "nll", "chat", **single)["value"].item()
    assert change == pytest.approx(after - nll)


def test_the_adaptive_cases_are_those_of_the_full_budget() -> None:
    behaviors = [Behavior("b", "how ?", ("sure",))]
    found = [
        {"set": "adaptive_gcg", "id": "b", "attack": text, "placement": "suffix", "attack_steps": steps}
        for text, steps in (("x", 1), ("y", 5))
    ]
    (item,) = adaptive_items(behaviors, pd.DataFrame([*found, {**found[0], "set": "other"}]))
    assert (item.set, item.attack, item.request) == ("adaptive_gcg", "y", "how ?")


def test_no_weight_is_changed_and_nothing_in_the_measures_saves_one(
    measured: Intervened, geometry: Geometry, taught: LanguageModel
) -> None:
    before = {name: bytes(value.numpy().tobytes()) for name, value in taught.net.state_dict().items()}
    few = SETTINGS.model_copy(update={"controls": 1, "prompts": 2})
    measure_intervention(taught, items(), geometry.tensors, geometry.carrier, refusing.RefusalJudge(), few, BEHAVIOR, GEOMETRY, 0)
    assert {name: bytes(value.numpy().tobytes()) for name, value in taught.net.state_dict().items()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in taught.net.modules()), "no hook is left behind"
    for file in (Path(refgeo.measures.__file__).parent).glob("*.py"):
        called = {
            node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
        }
        assert not called & {"save", "save_file", "save_model", "save_pretrained", "push_to_hub", "merge_and_unload"}, file.name

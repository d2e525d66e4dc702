"""The geometry of a model that has really learned to refuse, and of one that has not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

import refusing
from refgeo.config.load import load_study
from refgeo.config.measures import GeometrySettings
from refgeo.data.load import load_probes
from refgeo.data.rows import Probe, Reference
from refgeo.errors import ConfigError, DataError, ModelError
from refgeo.judging.make import make_judge
from refgeo.judging.verdict import Verdict
from refgeo.lm.changes import Change, changing
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import ablate, last_logits, read
from refgeo.measures.generated import given_openings, opening_tokens
from refgeo.measures.geometry import Geometry, measure_geometry
from refgeo.measures.spectrum import effective_rank

SETTINGS = GeometrySettings(positions=(-4, -3, -2, -1), bootstrap=10, batch=64)


@pytest.fixture(scope="module")
def taught(tiny_model_dir: Path) -> LanguageModel:
    return refusing.refusing_lm(tiny_model_dir)


@pytest.fixture(scope="module")
def measured(taught: LanguageModel) -> Geometry:
    return measure_geometry(taught, refusing.probes(), SETTINGS, refusing.RefusalJudge(), 8, seed=0)


def value(table: pd.DataFrame, set_name: str, metric: str, **identity: object) -> pd.Series:
    chosen = table[(table["set"] == set_name) & (table["metric"] == metric)]
    for column, wanted in identity.items():
        chosen = chosen[chosen[column] == wanted]
    assert len(chosen) == 1, f"{set_name} {metric} {identity}: {len(chosen)} rows"
    return chosen.iloc[0]


def test_the_carrier_of_a_refusing_model_removes_generated_refusal(measured: Geometry, taught: LanguageModel) -> None:
    carrier = measured.carrier
    assert carrier["status"] == "carrier"
    assert carrier["is_carrier"]
    assert carrier["refusal_tokens"] == ["sorry"]
    assert "lower than the controls" in carrier["reason"]
    change = value(measured.table, "carrier", "generated_refusal_change_over_controls")
    assert change["high"] < 0
    # What the record points to really is the direction: without it, the model hardly says sorry to the reporting half any more.
    direction = measured.tensors["candidates"][carrier["place"], carrier["layer"]]
    prompts = [taught.chat.prompt(probe.request).ids for probe in refusing.probes() if probe.harmful and probe.split == "validate"][1::2]
    sorry = taught.tokenizer.convert_tokens_to_ids("sorry")
    before = last_logits(taught, prompts).softmax(dim=-1)[:, sorry].mean()
    with ablate(taught, (direction / direction.norm())[None], carrier["layer"]):
        after = last_logits(taught, prompts).softmax(dim=-1)[:, sorry].mean()
    assert before > 0.9
    assert after < 0.5


def test_the_record_the_scan_and_the_table_agree(measured: Geometry) -> None:
    carrier, scan = measured.carrier, measured.scan
    assert len(scan) == 3 * 4
    chosen = scan[scan["carrier"]].iloc[0]
    assert (chosen["layer"], chosen["position"]) == (carrier["layer"], carrier["position"])
    assert chosen["kl"] == pytest.approx(carrier["kl"])
    assert chosen["admissible"]
    assert chosen["kl"] <= SETTINGS.max_kl
    admissible = scan[scan["admissible"]]
    assert chosen["s_total"] == admissible["s_total"].max()
    assert carrier["admissible_count"] == len(admissible) == value(measured.table, "carrier", "admissible_count")["value"]
    assert value(measured.table, "carrier", "carrier_depth")["value"] == carrier["layer"] / 2
    assert value(measured.table, "carrier", "carrier_position")["value"] == carrier["position"]
    assert value(measured.table, "carrier", "s_total")["value"] == pytest.approx(chosen["report_s_total"])
    assert value(measured.table, "carrier", "select_s_total")["value"] == pytest.approx(chosen["s_total"])
    assert chosen["s_total"] == pytest.approx(chosen["s_refuse"] + chosen["s_comply"] - chosen["kl"])
    assert SETTINGS.positions[carrier["place"]] == carrier["position"]
    assert json.loads(json.dumps(carrier)) == carrier
    assert scan["selected"].equals(scan["carrier"])
    assert (scan["why_not"] == "").equals(scan["admissible"])
    assert carrier["rule"] == {
        "name": "paper",
        "score": "cosmic",
        "max_kl": 0.1,
        "kl_weight": 1.0,
        "max_depth": 1.0,
        "min_induced": None,
        "induced_above": None,
    }


def test_the_runner_up_and_the_resamples_are_told(measured: Geometry) -> None:
    ranked = measured.scan[measured.scan["admissible"]].sort_values("s_total", ascending=False)
    other = measured.carrier["runner_up"]
    assert (other["layer"], other["position"]) == (ranked.iloc[1]["layer"], ranked.iloc[1]["position"])
    assert other["margin"] == pytest.approx(ranked.iloc[0]["s_total"] - ranked.iloc[1]["s_total"])
    assert value(measured.table, "carrier", "runner_up_margin")["value"] == pytest.approx(other["margin"])
    shares = measured.table[(measured.table["set"] == "carrier_bootstrap") & (measured.table["metric"] == "layer_share")]
    nothing = value(measured.table, "carrier_bootstrap", "nothing_admissible")["value"]
    assert shares["layer"].tolist() == [0, 1, 2]
    assert shares["value"].sum() + nothing == pytest.approx(1.0)
    agreement = value(measured.table, "carrier", "carrier_agreement")["value"]
    assert agreement == shares[shares["layer"] == measured.carrier["layer"]]["value"].iloc[0]
    assert value(measured.table, "carrier_bootstrap", "same_layer")["value"] == agreement
    both = value(measured.table, "carrier_bootstrap", "same_candidate")["value"]
    assert both <= min(agreement, value(measured.table, "carrier_bootstrap", "same_position")["value"])


def test_a_selection_alone_finds_the_same_carrier_and_says_what_it_skipped(measured: Geometry, taught: LanguageModel) -> None:
    settings = SETTINGS.model_copy(update={"selection_only": True})
    found = measure_geometry(taught, refusing.probes(), settings, refusing.RefusalJudge(), 8, seed=0)
    for key in ("layer", "position", "status", "is_carrier"):
        assert found.carrier[key] == measured.carrier[key]
    assert found.carrier["s_total"] == pytest.approx(measured.carrier["s_total"], abs=1e-5)
    assert found.carrier["reported"]["s_total"] == pytest.approx(measured.carrier["reported"]["s_total"], abs=1e-5)
    assert found.carrier["nearest"] is found.carrier["best_effect"] is found.carrier["runner_up"] is None
    assert found.carrier["admissible_count"] is None, "those that were skipped may be admissible"
    skipped = found.scan[found.scan["why_not"].str.startswith("skipped: ")]
    assert len(skipped) > 0
    assert skipped["s_total"].isna().all()
    assert "carrier_bootstrap" not in set(found.table["set"])
    json.dumps(found.carrier, allow_nan=False)


def test_nothing_admissible_after_a_selection_alone_says_so(taught: LanguageModel) -> None:
    settings = SETTINGS.model_copy(update={"selection_only": True, "max_kl": 0.0})
    found = measure_geometry(taught, refusing.probes(), settings, refusing.RefusalJudge(), 8, seed=0)
    assert found.carrier["status"] == "none"
    assert "nothing is admissible: skipped: KL already too high" in found.carrier["reason"]
    assert found.scan["kl"].isna().all()


def test_openings_may_be_given_and_an_affine_carrier_over_several_tokens_is_proven_by_the_same_ablation(taught: LanguageModel) -> None:
    update = {"refusal_openings": ("sorry , i can't", "cannot"), "affine": True, "kl_tokens": 3, "rule": "arditi", "max_depth": 1.0}
    found = measure_geometry(taught, refusing.probes(), SETTINGS.model_copy(update=update), refusing.RefusalJudge(), 8, seed=0)
    carrier, scan = found.carrier, found.scan
    assert sorted(carrier["refusal_tokens"]) == ["cannot", "sorry"]
    assert (carrier["refusal_tokens_from"], carrier["affine"], carrier["kl_tokens"]) == ("given", True, 3)
    assert {"kl", "kl_first"} <= set(scan.columns)
    assert (scan["kl_first"] - scan["kl"]).abs().max() > 1e-6
    assert carrier["rule"]["max_depth"] == 0.8
    assert (scan.loc[scan["admissible"], "induced"] > 0).all()
    if carrier["status"] != "best_effect":
        assert scan.loc[scan["selected"], "bypassed"].iloc[0] == scan.loc[scan["admissible"], "bypassed"].min()


def test_affine_ablation_leaves_the_mean_projection_while_it_generates(tiny_lm: LanguageModel) -> None:
    unit = torch.nn.functional.normalize(torch.randn(1, tiny_lm.width, generator=torch.Generator().manual_seed(0)), dim=-1)
    center, prompt = torch.linspace(-2, 3, tiny_lm.width), [tiny_lm.chat.prompt("how do i cook a fox").ids]
    with changing(tiny_lm, [Change(1, unit, center=center)]):
        left = read(tiny_lm, prompt, (-3, -1))[0, :, 1]
    plain = read(tiny_lm, prompt, (-3, -1))[0, :, 1]
    assert torch.allclose(left @ unit[0], (unit @ center).expand(2), atol=1e-4)
    assert torch.allclose(left - (left @ unit.T) @ unit, plain - (plain @ unit.T) @ unit, atol=1e-4)
    with pytest.raises(ModelError, match="center"), changing(tiny_lm, [Change(None, unit, center=center)]):
        pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"refusal_openings": ["sorry", " "]}, "refusal_openings"),
        ({"refusal_openings": []}, "refusal_openings"),
        ({"affine": True, "ablate": "everywhere"}, "affine"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GeometrySettings.model_validate(given)


def test_an_opening_without_a_token_is_refused(tiny_lm: LanguageModel) -> None:
    assert given_openings(tiny_lm, ["sorry i cannot", "sorry !"]) == [tiny_lm.tokenizer.convert_tokens_to_ids("sorry")]
    with pytest.raises(ConfigError, match="refusal_openings holds ''"):
        given_openings(tiny_lm, ["sorry", ""])


def test_projections_differ_by_the_norm_of_the_candidate(measured: Geometry) -> None:
    """The gap between the mean projections on the unit difference in means is the norm of that difference."""
    assert measured.carrier["projection_gap"] == pytest.approx(measured.carrier["norm"], rel=1e-6)
    harmful, harmless = (value(measured.table, "carrier", f"{label}_projection") for label in ("harmful", "harmless"))
    assert harmful["value"] - harmless["value"] == pytest.approx(measured.carrier["norm"], rel=1e-6)
    assert harmful["low"] <= harmful["value"] <= harmful["high"]


def test_tensors_are_the_field_and_the_activations_behind_it(measured: Geometry) -> None:
    tensors = measured.tensors
    assert tensors["candidates"].shape == (4, 3, 32)
    assert tensors["harmful"].shape == tensors["harmless"].shape == (12, 4, 3, 32)
    means = tensors["harmful"].double().mean(dim=0) - tensors["harmless"].double().mean(dim=0)
    assert torch.allclose(tensors["candidates"].double(), means, atol=1e-5)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors.values())


def test_ranks_of_the_table_are_those_of_the_field(measured: Geometry) -> None:
    field = measured.tensors["candidates"]
    whole = value(measured.table, "field", "effective_rank", matrix="raw")
    assert whole["value"] == pytest.approx(effective_rank(field.flatten(0, 1)), rel=1e-4)
    assert whole["low"] <= whole["value"] <= whole["high"]
    layer = value(measured.table, "layer", "effective_rank_amplitude", matrix="raw", layer=1)
    assert layer["value"] == pytest.approx(effective_rank(field[:, 1], "amplitude"), rel=1e-4)
    position = value(measured.table, "position", "effective_rank", matrix="normalized", position=-2)
    unit = field[2] / field[2].norm(dim=-1, keepdim=True)
    assert position["value"] == pytest.approx(effective_rank(unit), rel=1e-4)
    assert str(measured.table["layer"].dtype) == "Int64"


def test_measuring_again_gives_the_same(measured: Geometry, taught: LanguageModel) -> None:
    heard: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, note: str) -> None:
        heard.append((done, total, note))

    batched = SETTINGS.model_copy(update={"batch": 5})
    again = measure_geometry(taught, refusing.probes(), batched, refusing.RefusalJudge(), 8, 0, progress)
    pd.testing.assert_frame_equal(again.scan, measured.scan, atol=1e-4, rtol=1e-3)
    pd.testing.assert_frame_equal(again.table, measured.table, atol=1e-3, rtol=1e-3)
    assert heard[-1] == (5, 5, "geometry")


def test_nothing_admissible_is_reported_with_the_nearest_and_the_largest_effect(taught: LanguageModel) -> None:
    strict = SETTINGS.model_copy(update={"max_kl": 0.0})
    found = measure_geometry(taught, refusing.probes(), strict, refusing.RefusalJudge(), 8, seed=0)
    assert found.carrier["status"] == "best_effect"
    assert not found.carrier["is_carrier"], "an effect that fails the rule is no carrier, whatever it does"
    assert found.carrier["generated"]["best_effect"]["is_carrier"]
    assert not found.scan["admissible"].any()
    assert "nothing is admissible" in found.carrier["reason"]
    nearest = found.scan[found.scan["nearest"]].iloc[0]
    assert nearest["kl"] == found.scan["kl"].min()
    assert (found.carrier["nearest"]["layer"], found.carrier["nearest"]["position"]) == (nearest["layer"], nearest["position"])
    depth = value(found.table, "carrier", "carrier_depth")
    assert math.isnan(depth["value"])
    assert "nothing is admissible" in depth["note"]
    assert value(found.table, "carrier", "admissible")["value"] == 0
    effect = value(found.table, "best_effect", "generated_refusal_change_over_controls")
    assert effect["high"] < 0, "a directional effect that fails the KL rule is shown"


class Unrefusing(refusing.RefusalJudge):
    """Calls nothing a refusal."""

    def __call__(self, request: str, completion: str, reference: Reference | None = None) -> Verdict:
        return Verdict("safe", "full_compliance", False, None, False, "")


def test_a_model_that_refuses_nothing_has_no_log_odds_and_no_carrier(tiny_lm: LanguageModel) -> None:
    settings = SETTINGS.model_copy(update={"score": "log_odds", "max_kl": 100.0})
    found = measure_geometry(tiny_lm, refusing.probes(), settings, Unrefusing(), 4, seed=0)
    assert found.carrier["status"] == "admissible"
    assert not found.carrier["is_carrier"]
    assert "no refusal to remove" in found.carrier["reason"]
    assert found.carrier["score"] == "cosmic"
    assert "no log-odds" in found.carrier["score_note"]
    assert found.carrier["odds_refuse"] is None
    json.dumps(found.carrier, allow_nan=False)
    assert found.scan["odds_refuse"].isna().all()
    assert found.scan["cosmic_refuse"].notna().all()
    coupling = found.table[found.table["set"] == "coupling"]
    assert coupling["value"].isna().all()
    assert coupling["note"].str.contains("0 of 12 harmful").all()


def test_labels_without_any_difference_have_no_direction(taught: LanguageModel) -> None:
    """The same prompts under both labels: nothing is normalized, nothing is chosen, and every place says why."""
    safe = [probe for probe in refusing.probes() if not probe.harmful]
    twice = [Probe(probe.id + suffix, probe.request, suffix == "h", probe.split) for probe in safe for suffix in "hs"]
    found = measure_geometry(taught, twice, SETTINGS, refusing.RefusalJudge(), 8, seed=0)
    assert found.carrier["status"] == "none"
    assert not found.scan["usable"].any()
    assert found.scan["kl"].isna().all()
    ranks = found.table[found.table["set"].isin(["field", "layer", "position"])]
    assert ranks["value"].isna().all()
    assert ranks["note"].str.contains("norm above zero").all()


def test_ablation_everywhere_and_block_inputs_go_through(taught: LanguageModel) -> None:
    settings = SETTINGS.model_copy(update={"ablate": "everywhere", "site": "block_input"})
    found = measure_geometry(taught, refusing.probes(), settings, refusing.RefusalJudge(), 8, seed=0)
    assert not found.scan.loc[found.scan["layer"] == 0, "usable"].any()
    assert found.scan.loc[found.scan["layer"] == 0, "kl"].isna().all()
    assert found.scan.loc[found.scan["layer"] > 0, "kl"].notna().all()
    empty = value(found.table, "layer", "effective_rank", matrix="raw", layer=0)
    assert math.isnan(empty["value"])
    assert "norm above zero" in empty["note"]


def test_a_probe_set_that_lacks_a_label_is_refused(taught: LanguageModel) -> None:
    safe = [probe for probe in refusing.probes() if not probe.harmful]
    with pytest.raises(DataError, match="0 harmful prompts with split 'estimate'"):
        measure_geometry(taught, safe, SETTINGS, refusing.RefusalJudge(), 8, seed=0)


def test_a_position_before_the_prompt_is_refused(taught: LanguageModel) -> None:
    with pytest.raises(ModelError, match="-40"):
        measure_geometry(taught, refusing.probes(), GeometrySettings(positions=(-40,)), refusing.RefusalJudge(), 8, seed=0)


def test_opening_tokens_open_more_refusals_than_other_answers() -> None:
    def verdict(refused: bool) -> Verdict:
        return Verdict("safe", "full_refusal" if refused else "full_compliance", False, None, False, "")

    completions = [[7, 1], [7, 2], [8, 1], [8, 1], [9], []]
    refused = [True, True, True, False, False, True]
    assert opening_tokens(completions, [verdict(flag) for flag in refused]) == [7]


@pytest.mark.slow
def test_half_precision_finds_the_same_carrier_in_the_shipped_model() -> None:
    study = load_study("pocket")
    probes = load_probes(study.data.probes)
    few = [
        probe
        for split in ("estimate", "validate")
        for harmful in (True, False)
        for probe in [one for one in probes if (one.split, one.harmful) == (split, harmful)][:12]
    ]
    chosen = []
    for dtype in ("float32", "bfloat16"):
        lm = load(study.model.model_copy(update={"dtype": dtype}))
        found = measure_geometry(lm, few, study.geometry, make_judge(study.judge), study.behavior.max_new_tokens, study.seed)
        chosen.append((found.carrier["status"], found.carrier["layer"], found.carrier["position"]))
    assert chosen[0] == chosen[1]


def test_the_probes_share_no_prompt_between_splits() -> None:
    """The fixture itself: selection on prompts that estimated the direction would prove nothing."""
    probes: list[Probe] = refusing.probes()
    assert len({probe.request for probe in probes}) == len(probes)

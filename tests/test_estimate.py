"""What a plan promises, against what the code then computes."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from refgeo.attacks.gcg import attack
from refgeo.attacks.start import initial_cases
from refgeo.config.load import load_study
from refgeo.config.measures import GeometrySettings, InterventionSettings
from refgeo.config.model import ModelSettings
from refgeo.config.schema import LoraSettings, Study
from refgeo.data.load import load_audit, load_behaviors, load_strongreject, load_xstest
from refgeo.lm.flops import ForwardCost
from refgeo.lm.load import load, quiet_peft
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import EvaluationSets, evaluation_items, tail_items
from refgeo.measures.plan import plan_interventions
from refgeo.study.costs import planned
from refgeo.study.estimate import Estimate, Row, estimate
from refgeo.study.estimate_table import estimate_report, span
from refgeo.study.graph import Stage
from refgeo.study.known import Shape, lengths, shape
from refgeo.study.run import open_study
from refgeo.study.workload import Device, gcg, learn, write


def stages(study: Study, folder: Path) -> list[Stage]:
    _, graph = open_study(study, folder / "run", "nobody:builds")
    return list(graph.stages.values())


def planned_cost(folder: Path, preset: str, *overrides: str) -> Estimate:
    study = load_study(preset, overrides)
    return estimate(study, stages(study, folder))


def row(found: Estimate, kind: str) -> Row:
    (only,) = [row for row in found.rows if row.kind == kind]
    return only


def like(lm: LanguageModel) -> Shape:
    cost = ForwardCost.of(lm)
    return Shape(cost, cost, 0, 0, lm.width, len(lm.tokenizer), False, "")


def test_published_sizes_give_the_model_its_parameters_without_weights() -> None:
    study = load_study("mistral-7b")
    found = shape(study.model, study.train.lora)
    assert found is not None
    assert (found.parameters, found.trained) == (7_241_732_096, 64 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024)))
    assert found.cost.body(1) + found.cost.head(1) == 2 * (
        found.parameters - 32000 * 4096 - 65 * 4096
    )  # embeddings and norms multiply nothing
    assert found.adapted.body(1) - found.cost.body(1) == 2 * found.trained


def test_a_local_model_is_read_from_its_configuration(tiny_lm: LanguageModel, tiny_model_dir: Path) -> None:
    found = shape(ModelSettings(path=str(tiny_model_dir)), LoraSettings(rank=2, targets="all-linear"))
    assert found is not None
    assert found.cost == ForwardCost.of(tiny_lm)
    assert found.parameters == sum(weight.numel() for weight in tiny_lm.core.parameters())
    assert found.adapted.body(1) == found.cost.body(1) + 2 * found.trained


@pytest.mark.parametrize(("name", "billions"), [("org/Some-13b-chat", 13), ("org/Other2.5-0.5B", 0.5), ("org/big_70B", 70)])
def test_a_name_tells_the_size(name: str, billions: float) -> None:
    found = shape(ModelSettings(path=name))
    assert found is not None
    assert found.parameters == pytest.approx(billions * 1e9, rel=0.15)
    assert "name" in found.basis


@pytest.mark.parametrize("name", ["org/mixture-8x7B", "org/model", "org/a3b-thing"])
def test_a_name_that_does_not_tell_is_not_guessed(name: str) -> None:
    assert shape(ModelSettings(path=name)) is None


def test_an_attack_on_pocket_costs_what_its_records_count() -> None:
    study = load_study("pocket")
    lm = load(study.model)
    settings = study.source_attack.model_copy(update={"steps": 3, "width": 16, "early_stop_loss": None})
    cases = initial_cases(load_behaviors(study.data.behaviors_test)[:40:8], settings, seed=0)
    records = attack(lm, cases, settings, seed=0).records
    counted = float(records.groupby("behavior")["flops"].max().sum())
    model, (size, _) = shape(study.model), lengths(study)
    assert model is not None
    expected = gcg(model, len(cases), settings, size.request, size.after, size.target).flops
    assert counted / 2 < expected < 2 * counted


@pytest.mark.parametrize("lora", [False, True])
def test_learning_costs_what_torch_counts(tiny_lm: LanguageModel, lora: bool) -> None:
    plain = tiny_lm.core.requires_grad_(True)
    model, net = like(tiny_lm), plain
    if lora:
        with quiet_peft():
            net = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
        model = model._replace(adapted=ForwardCost.of(net.get_base_model()))
        plain.enable_input_require_grads()
    plain.set_attn_implementation("eager")
    ids = torch.randint(5, 20, (2, 24), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        net(input_ids=ids, use_cache=False).logits.sum().backward()
    expected = learn(model, 2, 24, 24, lora=lora, recompute=False)
    hidden = 2 * (24 * 24 - 24 * 25 // 2)  # eager attention computes the pairs that it masks as well
    assert expected.flops + 3 * model.cost.attention(hidden) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert expected.backward == 48
    assert learn(model, 2, 24, 24, lora=lora, recompute=True).flops > expected.flops


def test_writing_costs_what_the_stress_test_counts(tiny_lm: LanguageModel) -> None:
    model, prompt, new, length = like(tiny_lm), 7, 5, 7 + 5 - 1
    work = write(model, 3, prompt, new, batch=2)
    cost = model.cost
    assert work.flops == 3 * (cost.body(length) + cost.head(new) + cost.attention(length * (length + 1) // 2))
    assert (work.forward, work.written, work.passes, work.completions) == (3 * length, 3 * new, 2 * (new - 1), 3)


def test_the_completions_are_those_of_the_measures(tmp_path: Path) -> None:
    study = load_study("pocket")
    data = study.data
    assert data.strongreject is not None
    assert data.xstest is not None
    assert data.audit is not None
    behaviors = load_behaviors(data.behaviors_test)
    sets = EvaluationSets(behaviors, load_strongreject(data.strongreject), load_xstest(data.xstest), load_audit(data.audit), ["well"])
    cases = initial_cases(behaviors, study.source_attack, 0)
    items = [*evaluation_items(sets, cases), *tail_items(load(study.model), sets, cases, study.behavior, study.source_attack, 0)]
    assert f"{len(items):,} completions" in row(planned_cost(tmp_path, "pocket"), "behavior").counted


@pytest.mark.parametrize("site", ["layer", "everywhere"])
def test_the_interventions_are_those_of_the_plan(site: str) -> None:
    settings = InterventionSettings.model_validate({"site": site, "controls": 3, "ablation_strengths": [0.5, 1.0]})
    geometry = {"candidates": torch.randn(2, 4, 8), "harmful": torch.randn(5, 2, 4, 8), "harmless": torch.randn(5, 2, 4, 8)}
    carrier = {"layer": 2, "place": 1, "position": -1, "projection_gap": 1.5}
    plan = plan_interventions(geometry, carrier, settings, GeometrySettings(positions=(-2, -1), topk=2), seed=0)
    random = sum(entry.direction == "random" for entry in plan)
    assert planned(settings) == (len(plan) - random, random)


def test_the_papers_cadence_is_its_number_of_iterations_and_the_price(tmp_path: Path) -> None:
    full = planned_cost(tmp_path, "mistral-7b")
    sparse = planned_cost(tmp_path, "mistral-7b", "train.r2d2.cadence=optimizer_step")
    often, seldom, sft = row(full, "train r2d2"), row(sparse, "train r2d2"), row(full, "train sft")
    assert "320,000 GCG iterations x 512" in often.counted
    assert often.flops is not None
    assert seldom.flops is not None
    assert sft.flops is not None
    # What both share is the training itself, a little more than that of the other arm.
    assert 8 < (often.flops - sft.flops) / (seldom.flops - sft.flops) < 16
    assert full.total.hours == pytest.approx(sum(row.hours or 0 for row in full.rows))


def test_what_is_done_already_costs_nothing_more(tmp_path: Path) -> None:
    study = load_study("mistral-7b-lite")
    whole = stages(study, tmp_path)
    parts = [estimate(study, chosen).total for chosen in (whole[:20], whole[20:], whole)]
    for name in ("stages", "forward", "backward", "flops", "hours", "disk"):
        first, second, both = (getattr(part, name) for part in parts)
        assert first + second == pytest.approx(both)
    assert estimate(study, []).total.flops == 0


def test_half_as_good_a_device_takes_at_least_as_long(tmp_path: Path) -> None:
    study = load_study("mistral-7b-lite")
    whole = stages(study, tmp_path)
    slow = estimate(study, whole, Device(name="half", half=989e12 / 2, single=67e12 / 2, bandwidth=3.35e12 / 2, launch=1.6e-3))
    assert slow.total.hours == pytest.approx(2 * (estimate(study, whole).total.hours or 0))


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    found = planned_cost(tmp_path, "mistral-7b-lite", "model.path=org/model", "data.xstest.path=org/own-set")
    assert found.total.flops is None
    assert found.total.forward > 0
    assert any("nothing known of 'org/model'" in line for line in found.basis)
    assert any("data.xstest: 200 rows assumed in 'org/own-set'" in line for line in found.basis)
    assert shown(found).count("?") >= 5


def test_a_classifier_reads_every_completion(tmp_path: Path) -> None:
    plain, judged = (
        planned_cost(tmp_path, "mistral-7b-lite", "judge={kind: rules}"),
        planned_cost(tmp_path, "mistral-7b-lite", "judge={kind: harmbench}"),
    )
    judge = row(judged, "judge harmbench")
    assert judge.flops is not None
    assert judge.flops == pytest.approx((judged.total.flops or 0) - (plain.total.flops or 0))
    assert any(item.name == "cais/HarmBench-Llama-2-13b-cls" and item.bytes == pytest.approx(26e9, rel=0.01) for item in judged.downloads)


def shown(found: Estimate, width: int = 200) -> str:
    out = StringIO()
    Console(file=out, width=width).print(estimate_report(found))
    return out.getvalue()


def test_a_report_shows_downloads_costs_and_what_they_rest_on(tmp_path: Path) -> None:
    text = shown(planned_cost(tmp_path, "mistral-7b"))
    for wanted in (
        "mistralai/Mistral-7B-v0.1",
        "14.5 GB",
        "HuggingFaceH4/ultrachat_200k",
        "GPU hours",
        "train r2d2",
        "H100",
        "published sizes",
    ):
        assert wanted in text
    pocket = shown(planned_cost(tmp_path, "pocket"))
    assert "GPU" not in pocket
    assert "on one CPU core" in pocket
    assert "core time" in pocket
    assert "Downloads" not in pocket
    assert "measured with the model's tokenizer" in pocket


def test_the_shipped_study_is_estimated_near_what_it_took_on_a_core(tmp_path: Path) -> None:
    """692 s of CPU time, report and loading included (docs/performance.md)."""
    assert 692 / 2 < 3600 * (planned_cost(tmp_path, "pocket").total.hours or 0) < 2 * 692


def test_a_gpu_is_for_orientation_unless_the_study_names_one(tmp_path: Path) -> None:
    assert "for orientation, since model.device is 'auto'" in " ".join(planned_cost(tmp_path, "mistral-7b", "model.device=auto").basis)
    assert "orientation" not in " ".join(planned_cost(tmp_path, "mistral-7b", "model.device=cuda").basis)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "?"), (0.0, ""), (1e-5, "1 s"), (0.01, "36 s"), (0.2, "12 min"), (3.5, "3.5 h"), (9e4, "90,000 h")]
)
def test_core_time_has_a_fitting_unit(value: float | None, text: str) -> None:
    assert span(value) == text


def test_a_narrow_terminal_wraps_no_number(tmp_path: Path) -> None:
    """At 80 columns a row of costs is one line, and what each stage counts is told below, not in a column of twelve characters."""
    found = planned_cost(tmp_path, "mistral-7b")
    lines = shown(found, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    first = next(place for place, line in enumerate(lines) if line.startswith("stages "))
    assert [line.split()[0] for line in lines[first + 1 :][: len(found.rows)]] == [one.kind.split()[0] for one in found.rows]
    assert lines[first + 1 + len(found.rows)].startswith("total ")
    assert any(line.strip() == "- behavior: 2,623 completions of 512 tokens" for line in lines)

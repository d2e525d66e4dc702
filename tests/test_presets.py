"""The presets for real models: the paper's settings, our audit prompts, and a whole miniature study through one of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from judging_models import save_deciding_judge
from real_formats import TEST, TRAIN, VAL, Network, mistral
from refgeo.config.bundle import in_bundle, wanted
from refgeo.config.data import Source
from refgeo.config.load import dump_study, load_study
from refgeo.data.load import check_disjoint, load_audit, load_behaviors
from refgeo.data.survey import survey
from refgeo.lm.chat import ChatRenderer
from refgeo.study.downloads import downloads
from refgeo.study.fetch import fetch
from test_study import refgeo


def test_the_preset_has_the_settings_of_the_paper() -> None:
    study = load_study("mistral-7b")
    train, r2d2, lora = study.train, study.train.r2d2, study.train.lora
    assert (study.model.path, study.model.dtype) == ("mistralai/Mistral-7B-v0.1", "bfloat16")
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (64, 16, 0.1, ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert (train.steps, train.batch, train.accumulation, train.max_tokens, train.seeds) == (500, 1, 16, 2048, (42,))
    assert (train.learning_rate, train.schedule, train.warmup, train.save_every) == (2e-5, "cosine", 0, 5)
    assert train.gradient_checkpointing
    assert train.loss_on == "all"
    assert (r2d2.pool, r2d2.cases_per_step, r2d2.attack.steps, r2d2.attack.width, r2d2.cadence) == (180, 8, 5, 512, "micro_step")
    assert study.anchors.steps == (50, 100, 250, 500)
    assert study.anchors.reference == {"sft": 5, "r2d2": 30}
    assert (study.behavior.max_new_tokens, study.geometry.positions) == (512, (-5, -4, -3, -2, -1))
    assert (study.stress.attack.steps, study.stress.attack.width, study.stress.steps) == (500, 512, (50, 250, 500))
    assert study.data.chat.split == "train_sft"


def test_the_lite_preset_differs_only_in_size() -> None:
    full, lite = load_study("mistral-7b"), load_study("mistral-7b-lite")
    assert lite.model == full.model
    assert lite.train.r2d2.cadence == "optimizer_step"
    assert lite.anchors == full.anchors
    assert [part.path for part in lite.data.behaviors_test.parts] == [part.path for part in full.data.behaviors_test.parts]


@pytest.mark.parametrize("preset", ["mistral-7b", "mistral-7b-lite"])
def test_the_judges_are_those_of_the_paper_and_are_fetched_with_the_rest(preset: str) -> None:
    study = load_study(preset)
    assert {name: model.path for name, model in study.judge.models.items()} == {
        "model": "cais/HarmBench-Llama-2-13b-cls",
        "score_model": "google/gemma-2b",
    }
    assert {"cais/HarmBench-Llama-2-13b-cls", "google/gemma-2b", "qylu4156/strongreject-15k-v1"} <= {want.path for want in wanted(study)}
    assert {item.name for item in downloads(study)} >= {"cais/HarmBench-Llama-2-13b-cls", "google/gemma-2b", "qylu4156/strongreject-15k-v1"}
    assert load_study(preset, ["judge={kind: rules}"]).judge.models == {}


def test_the_audit_has_ten_prompts_in_each_of_six_buckets() -> None:
    prompts = load_audit(Source(path="package:presets/data/audit.csv"))
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(
        ("everyday", "reasoning", "writing", "extraction", "coding", "xstest_safe"), 10
    )
    assert all(prompt.safe and 30 < len(prompt.request) < 200 for prompt in prompts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mistral(tmp_path_factory.mktemp("hub") / "mistral")


def test_the_template_of_the_preset_shows_every_turn(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = load_study("mistral-7b").model.chat_template
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<s>[INST] one [/INST] two</s>[INST] three [/INST]"
    system = [{"role": "system", "content": "be kind"}, *turns[:1]]
    assert tokenizer.apply_chat_template(system, tokenize=False) == "<s>[INST] be kind\n\none [/INST]"
    rendered = ChatRenderer(tokenizer).prompt("one", "x x", "no")
    assert list(rendered.ids).count(tokenizer.bos_token_id) == 1
    ids, written = ChatRenderer(tokenizer).conversation((("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")))
    assert tokenizer.decode([token for token, ours in zip(ids, written, strict=True) if ours]) == "two</s> four</s>"


OVERRIDES = (
    "model.device=cpu",
    "data.probes.estimate=6",
    "data.probes.held_out=4",
    "data.audit.limit=6",
    "source_attack={steps: 1, width: 4, topk: 8, suffix_tokens: [3, 3]}",
    "train.steps=2",
    "train.accumulation=2",
    "train.max_tokens=64",
    "train.save_every=1",
    "train.lora.rank=2",
    "train.r2d2.pool=3",
    "train.r2d2.cases_per_step=2",
    "train.r2d2.attack={steps: 1, width: 4, topk: 8, suffix_tokens: [2, 3]}",
    "anchors={steps: [2], reference: {sft: 2, r2d2: 2}}",
    "behavior={max_new_tokens: 4, tail_tokens: [3], tail_prompts: 3}",
    "geometry.bootstrap=2",
    "geometry.positions=[-2,-1]",
    "geometry.max_kl=5",
    "intervention={steps: [2], controls: 1, prompts: 1, addition_strengths: [1.0]}",
    "stress={steps: [2], behaviors: 2, attack: {steps: 1, width: 4, topk: 8, suffix_tokens: [3, 3]}}",
    "run.workers=1",
)


@pytest.mark.slow
def test_a_miniature_study_through_the_lite_preset_ends_in_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    network = Network(monkeypatch, model)
    judges = {role: save_deciding_judge(tmp_path / role, words) for role, words in (("harm", ["yes", "no"]), ("score", list("12345")))}
    overrides = (
        *OVERRIDES,
        f"judge.model={{path: {judges['harm']}, device: cpu}}",
        f"judge.score_model={{path: {judges['score']}, device: cpu}}",
        f"judge.score_template={judges['score']}/prompt.txt",
        "judge.second={kind: rules}",
        "judge.second_completions=30",
    )
    fetch(load_study("mistral-7b-lite", overrides), tmp_path / "bundle")
    assert network.asked
    study = in_bundle(load_study("mistral-7b-lite", [*overrides, f"data.bundle={tmp_path / 'bundle'}"]))
    assert all(str(tmp_path / "bundle") in str(asked.path) for asked in study.judge.models.values())
    found = survey(study.data)
    overlap = found[found["what"] == "in the training or validation behaviors, as declared"]
    assert overlap["n"].tolist() == [len(VAL)]
    assert found[(found["set"] == "behaviors_train") & (found["what"] == "rows")]["n"].tolist() == [len(TRAIN) + len(VAL)]
    check_disjoint(load_behaviors(study.data.behaviors_train), load_behaviors(study.data.behaviors_test))
    (tmp_path / "study.yaml").write_text(dump_study(study), encoding="utf-8")
    out = refgeo("run", tmp_path / "study.yaml", "-o", tmp_path / "run")
    assert "Judge: 0.0% of" in out
    assert "Floor: a canned refusal scores" in out
    floor = pd.read_parquet(tmp_path / "run" / "judge" / "floor" / "table.parquet")
    assert floor[["score", "harmful"]].notna().all(axis=None)
    assert floor["unscored"].eq(0.0).all()
    agreement = pd.read_parquet(tmp_path / "run" / "judge" / "agreement" / "table.parquet")
    assert agreement.loc[(agreement["set"] == "all") & (agreement["of"] == "refusal"), ["n", "rate"]].to_numpy().tolist() == [[30, 1.0]]
    assert (tmp_path / "run" / "report" / "index.html").stat().st_size > 10_000
    behavior = pd.read_csv(tmp_path / "run" / "report" / "tables" / "behavior.csv")
    direct = behavior[(behavior["metric"] == "any_refusal") & (behavior["set"] == "direct") & (behavior["step"] == 2)]
    assert behavior.loc[behavior["metric"] == "strongreject", "value"].between(0, 1).all()
    assert {"asr_direct", "asr_fixed"} <= set(behavior["metric"])
    counts = dict(zip(direct["subset"], direct["n"], strict=False))
    assert counts == {"all": len(TEST) + len(VAL), "clean": len(TEST), "in_training": len(VAL)}

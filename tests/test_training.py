"""Both arms on the tiny model: they learn, save what can be loaded, and resume as if nothing had happened."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from architectures import tiny
from refgeo.attacks.cases import Attacked, Case
from refgeo.attacks.gcg import attack
from refgeo.config.attack import AttackSettings
from refgeo.config.data import DataSettings, Source
from refgeo.config.model import ModelSettings
from refgeo.config.schema import AnchorSettings, Arm, LoraSettings, R2D2Settings, Study, TrainSettings
from refgeo.errors import ConfigError, NonFinite
from refgeo.lm.adapters import merged
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import last_logits
from refgeo.training.loop import learning_rate, prepare, train


@pytest.fixture
def study(tiny_model_dir: Path, tmp_path: Path) -> Study:
    behaviors = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    behaviors += "".join(f"how do i cook a {color} fox,standard,x,,,{color}\n" for color in ("red", "blue", "small", "big"))
    (tmp_path / "behaviors.csv").write_text(behaviors)
    (tmp_path / "targets.json").write_text(json.dumps(dict.fromkeys(("red", "blue", "small", "big"), "sure here is fox soup")))
    chats = [
        {
            "id": str(index),
            "messages": [{"role": "user", "content": f"make {dish}"}, {"role": "assistant", "content": f"boil a {dish} in a pot"}],
        }
        for index, dish in enumerate(("soup", "stew", "bread", "root"))
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    source = Source(path=str(tmp_path / "behaviors.csv"), targets=str(tmp_path / "targets.json"))
    data = DataSettings(behaviors_train=source, behaviors_test=source, chat=Source(path=str(tmp_path / "chat.jsonl")), probes=source)
    r2d2 = R2D2Settings(
        pool=4,
        cases_per_step=2,
        attack=AttackSettings(steps=1, width=6, topk=8, suffix_tokens=(1, 3)),
        reset_every=3,
        refusal="sorry i can't help",
    )
    settings = TrainSettings(
        steps=6,
        batch=2,
        accumulation=2,
        max_tokens=64,
        learning_rate=1e-2,
        schedule="constant",
        save_every=2,
        lora=LoraSettings(rank=4, alpha=8, dropout=0.1, targets="all-linear"),
        r2d2=r2d2,
        merge_for_attack=True,
    )
    return Study(
        name="tiny",
        model=ModelSettings(path=str(tiny_model_dir), device="cpu"),
        data=data,
        train=settings,
        anchors=AnchorSettings(steps=(3, 6), reference={"sft": 3, "r2d2": 3}),
    )


class Killed(BaseException):
    """Stands for a process that dies."""


def run(study: Study, arm: Arm, folder: Path, die_at: int | None = None, seed: int = 7) -> tuple[pd.DataFrame, dict[int, Path]]:
    anchors: dict[int, Path] = {}

    def keep(step: int, write: Callable[[Path], None]) -> None:
        anchors[step] = folder / f"anchor-{step}"
        write(anchors[step])

    def progress(step: int, total: int, note: str) -> None:
        if step == die_at:
            raise Killed

    return train(study, arm, seed, folder / "saves", keep, progress), anchors


@pytest.mark.parametrize("arm", ["sft", "r2d2"])
@pytest.mark.parametrize("die_at", [1, 3, 5])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(study: Study, tmp_path: Path, arm: Arm, die_at: int) -> None:
    log, anchors = run(study, arm, tmp_path / "whole")
    with pytest.raises(Killed):
        run(study, arm, tmp_path / "killed", die_at)
    again, _ = run(study, arm, tmp_path / "killed")
    for step, folder in anchors.items():
        whole = load_file(folder / "adapter_model.safetensors")
        resumed = load_file(tmp_path / "killed" / f"anchor-{step}" / "adapter_model.safetensors")
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    pd.testing.assert_frame_equal(log.drop(columns="seconds"), again.drop(columns="seconds"))


def test_a_seed_fixes_weights_batches_and_pool_and_another_one_changes_them(study: Study, tmp_path: Path) -> None:
    short = study.model_copy(update={"train": study.train.model_copy(update={"steps": 3})})
    first, again, other = (dict[str, Any]() for _ in range(3))
    for found, seed, folder in ((first, 7, "first"), (again, 7, "again"), (other, 8, "other")):
        found["log"], anchors = run(short, "r2d2", tmp_path / folder, seed=seed)
        found["weights"] = load_file(anchors[3] / "adapter_model.safetensors")
        found["pool"] = json.loads((tmp_path / folder / "saves" / "step-000002" / "state.json").read_text())["cases"]
    assert all(torch.equal(first["weights"][name], again["weights"][name]) for name in first["weights"])
    assert first["pool"] == again["pool"]
    assert first["log"]["loss_clean"].tolist() == again["log"]["loss_clean"].tolist()
    assert not [name for name in first["weights"] if torch.equal(first["weights"][name], other["weights"][name])]
    assert first["pool"] != other["pool"]
    assert not set(first["log"]["loss_clean"]) & set(other["log"]["loss_clean"])


def test_no_test_behavior_is_ever_in_the_pool(study: Study, tmp_path: Path) -> None:
    test = tmp_path / "test.csv"
    test.write_text((tmp_path / "behaviors.csv").read_text().replace("how do i cook", "tell me how to boil").replace(",,,", ",,,test-"))
    changed = {"behaviors_test": Source(path=str(test), targets=None)}
    often = study.train.r2d2.model_copy(update={"reset_every": 1, "reset_share": 1.0})
    apart = study.model_copy(
        update={"data": study.data.model_copy(update=changed), "train": study.train.model_copy(update={"r2d2": often, "steps": 2})}
    )
    run(apart, "r2d2", tmp_path / "apart")
    (state,) = (tmp_path / "apart" / "saves").glob("step-*/state.json")
    pool = json.loads(state.read_text())["cases"]
    assert {case["behavior"] for case in pool} <= {"red", "blue", "small", "big"}
    assert all(case["request"].startswith("how do i cook") for case in pool)


def test_the_clean_loss_falls_and_r2d2_logs_its_own_losses(study: Study, tmp_path: Path) -> None:
    longer = study.model_copy(update={"train": study.train.model_copy(update={"steps": 20})})
    log, _ = run(longer, "sft", tmp_path / "sft")
    assert log["loss_clean"].iloc[-3:].mean() < 0.7 * log["loss_clean"].iloc[:3].mean()
    log, _ = run(longer, "r2d2", tmp_path / "r2d2")
    assert log["loss_toward"].iloc[-3:].mean() < 0.7 * log["loss_toward"].iloc[:3].mean()
    assert (log["loss_away"] >= 0).all()
    assert log.loc[log["step"] == 3, "reset"].item() == 1


@pytest.mark.parametrize(("cadence", "attacks"), [("optimizer_step", 6), ("micro_step", 12)])
def test_the_cadence_says_how_often_cases_are_refreshed(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cadence: str, attacks: int
) -> None:
    calls: list[int] = []

    def counted(lm: LanguageModel, cases: list[Case], settings: AttackSettings, seed: int) -> Attacked:
        calls.append(len(cases))
        return attack(lm, cases, settings, seed)

    monkeypatch.setattr("refgeo.training.loop.attack", counted)
    r2d2 = study.train.r2d2.model_copy(update={"cadence": cadence})
    log, _ = run(study.model_copy(update={"train": study.train.model_copy(update={"r2d2": r2d2})}), "r2d2", tmp_path)
    assert calls == [2] * attacks
    assert log["attack"].between(0, 20).all()


def test_an_anchor_loads_as_the_model_it_froze(study: Study, tmp_path: Path) -> None:
    _, anchors = run(study, "sft", tmp_path / "sft")
    base, tuned = load(study.model), load(study.model, anchors[6])
    ids = [list(base.chat.prompt("make soup").ids)]
    assert not torch.allclose(last_logits(base, ids), last_logits(tuned, ids), atol=1e-3)
    full = study.model_copy(update={"train": study.train.model_copy(update={"lora": None, "steps": 3, "learning_rate": 1e-3})})
    full = full.model_copy(update={"anchors": AnchorSettings(steps=(3,), reference={"sft": 3, "r2d2": 3})})
    _, anchors = run(full, "sft", tmp_path / "full")
    assert (anchors[3] / "model.safetensors").exists()
    assert not torch.allclose(last_logits(base, ids), last_logits(load(full.model, anchors[3]), ids), atol=1e-4)


def test_merging_for_the_attack_leaves_no_trace(study: Study) -> None:
    lm = prepare(load(study.model), study.train, seed=0)
    for name, parameter in lm.net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: parameter.clone() for name, parameter in lm.net.named_parameters()}
    ids = [list(lm.chat.prompt("make soup").ids)]
    lm.net.eval()
    with torch.no_grad():
        adapted = last_logits(lm, ids)
        with merged(lm):
            assert torch.allclose(last_logits(lm, ids), adapted, atol=1e-4)
    assert all(torch.equal(before[name], parameter) for name, parameter in lm.net.named_parameters())


def test_a_loss_that_is_not_finite_stops_with_the_step(study: Study, tmp_path: Path) -> None:
    wild = study.model_copy(update={"train": study.train.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30})})
    with pytest.raises(NonFinite, match="step"):
        run(wild, "sft", tmp_path)


def test_the_learning_rate_warms_up_and_decays(study: Study) -> None:
    settings = study.train.model_copy(update={"warmup": 2, "steps": 10, "schedule": "cosine", "learning_rate": 1.0})
    rates = [learning_rate(settings, step) for step in range(1, 11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(left >= right for left, right in itertools.pairwise(rates[2:]))
    assert 0 < rates[-1] < 0.1


def test_a_mixture_of_experts_with_dropout_is_told_to_set_it_to_zero() -> None:
    settings = TrainSettings(lora=LoraSettings(rank=2, dropout=0.1, targets="all-linear"))
    with pytest.raises(ConfigError, match=r"experts of 'mixtral' with train\.lora\.dropout=0\.1.*Set train\.lora\.dropout=0"):
        prepare(tiny("mixtral"), settings, 0)

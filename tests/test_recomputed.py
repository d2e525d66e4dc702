"""Numbers of a whole miniature study, recomputed from its raw completions and tensors by other code: nothing of the package but files.

A random sample of rows of every table; formulas are those of docs/tables.md, docs/geometry.md and docs/cause.md, written out again.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recompute import SEED, Expected, Row, alike, averaged, is_bootstrap, outcome, problem, ranks
from tiny_study import settings, write_study

pytestmark = pytest.mark.slow

SAMPLE = 80
Edit = Callable[[torch.Tensor], torch.Tensor]
Prompts = Sequence[list[int]]
Read = tuple[torch.Tensor, torch.Tensor]
POSITIONS = [-2, -1]
LAST = 4
ENDS = (
    *("_delta_over_controls", "_delta_over_shuffled", "_delta_over_harmless"),
    *("_delta_controls", "_share_beaten", "_percentile", "_delta"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A study whose judge has something to say: what counts as a step and as a refusal are words that the random model often writes."""
    folder = tmp_path_factory.mktemp("recomputed")
    made = settings(folder / "data", tiny_model_dir)
    study = write_study(
        folder,
        tiny_model_dir,
        train={**made["train"], "arms": ["r2d2"], "steps": LAST},
        anchors={"steps": [LAST], "reference": {"r2d2": LAST}},
        stress={**made["stress"], "behaviors": 6, "seeds": [0, 1], "replay": True},
        geometry={**made["geometry"], "transfer": False, "projection": False},
        intervention={**made["intervention"], "ablation_strengths": [0.5, 1.0], "addition_strengths": [1.0]},
    )
    refusal, step = frequent_words(folder / "data", tiny_model_dir)
    (folder / "data" / "refusals.txt").write_text(f"{refusal}\n", encoding="utf-8")
    for file in (folder / "data").glob("*.csv"):
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        if "Reference" in table:
            table.assign(Reference=json.dumps({"steps": [step]})).to_csv(file, index=False, quoting=csv.QUOTE_ALL)
    command = [sys.executable, "-m", "refgeo", "run", str(study), "-o", str(folder / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def frequent_words(data: Path, model: Path) -> tuple[str, str]:
    """Of the words in the model's answers, with and without a string of an attack: one in about a fifth of them, and the commonest."""
    said: Counter[str] = Counter()
    net: Any = AutoModelForCausalLM.from_pretrained(model)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    asked = [*pd.read_csv(data / "behaviors_test.csv")["Behavior"], *pd.read_csv(data / "xstest.csv")["prompt"]]
    prompts = [prompt + tail for prompt in asked for tail in ("", " ! ! !")]
    for prompt in prompts:
        ids = rendered(tokenizer, prompt)
        written = net.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
        said.update({word for word in tokenizer.decode(written, skip_special_tokens=True).split() if word.isalpha()})
    (commonest, _), *others = said.most_common()
    return min(others, key=lambda other: abs(other[1] / len(prompts) - 0.2))[0], commonest


def rendered(tokenizer: Any, prompt: str) -> list[int]:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
    return [int(token) for token in ids]


def anchor(run: Path, step: float) -> Path:
    return run / ("start/step-000000" if step == 0 else f"arms/r2d2/seed-1/step-{int(step):06d}")


@cache
def completions(run: Path, step: float, stage: str) -> pd.DataFrame:
    lines = (anchor(run, step) / stage / "transcripts.jsonl").read_text(encoding="utf-8").split("\n")
    return pd.DataFrame([json.loads(line) for line in lines if line])


@cache
def report(run: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(run / "report" / "tables" / f"{name}.csv", low_memory=False)


def sample(table: pd.DataFrame, count: int = SAMPLE) -> Iterator[Row]:
    chosen = np.random.default_rng(SEED).choice(len(table), min(count, len(table)), replace=False)
    for row in table.iloc[np.sort(chosen)].to_dict("records"):
        yield {str(column): value for column, value in row.items()}


# behavior, stress, intervention: from completions


def behavior(run: Path, row: Row) -> Expected:
    every = completions(run, row["step"], "behavior")
    if not isinstance(row["tail"], str):
        part = every[every["set"] == row["set"]]
        return averaged(part if row["subset"] == "all" else part[part["subset"] == row["subset"]], row["metric"])
    same = every["tail"].ne("none") if row["tail"] == "all" else every["tail"].eq(row["tail"]) & every["tail_tokens"].eq(row["tail_tokens"])
    safe, harmful = (every[same & (every["set"] == name)] for name in ("tail_safe", "tail_harmful"))
    assert safe["attack"].tolist() == harmful["attack"].tolist()  # pairs carry the very same tail
    if row["metric"] == "harm_recognition":
        apart, names = outcome(harmful, "any_refusal") - outcome(safe, "any_refusal"), safe["id"].tolist()
        return Expected(apart.mean(), len(set(names)), is_bootstrap(apart, names))
    return averaged(safe if row["set"] == "tail_safe" else harmful, row["metric"])


def stress(run: Path, row: Row) -> Expected:
    every = completions(run, row["step"], "stress")
    if row["set"] == "replay":
        return replay(run, row)
    part = every[every["method"] == row["method"]]
    if not math.isnan(row["attack_seed"]):
        part = part[part["attack_seed"] == row["attack_seed"]]
    if row["metric"] == "survival":  # nobody is censored before the last step, so it is the share not broken yet
        records = pd.read_parquet(anchor(run, row["step"]) / "stress" / "records.parquet")
        assert records.groupby(["attack_seed", "behavior"])["step"].max().eq(2).all()
        first = part[part["success"]].groupby(["attack_seed", "id"])["attack_steps"].min()
        cases = part.drop_duplicates(["attack_seed", "id"])
        return Expected(1 - (first <= row["at_step"]).sum() / len(cases), cases["id"].nunique())
    part = part[part["attack_steps"] == row["attack_steps"]]
    return averaged(part if row["subset"] == "all" else part[part["subset"] == row["subset"]], row["metric"])


def replay(run: Path, row: Row) -> Expected:
    def from_source(part: pd.DataFrame, step: float) -> pd.DataFrame:
        return part[part["source_step"] == step].sort_values("id")

    every = completions(run, row["step"], "replay")
    part = from_source(every, row["source_step"])
    if "_minus_" not in row["metric"]:
        return averaged(part, row["metric"])
    other = from_source(every, row["step"])
    if "_minus_home" in row["metric"]:
        home = completions(run, row["source_step"], "stress")
        last = (home["attack_steps"] == 2) & (home["attack_seed"] == 0) & (home["method"] == "adaptive_gcg")
        other = home[last].sort_values("id")
    assert part["id"].tolist() == other["id"].tolist()
    metric = "asr_replay_gated" if row["metric"].endswith("_gated") else "asr_replay"
    apart = outcome(part, metric) - outcome(other, metric)
    flat = (apart == apart[0]).all()
    return Expected(apart.mean(), len(part), None if flat else is_bootstrap(apart))


def intervention(run: Path, row: Row, table: pd.DataFrame) -> Expected:
    every = completions(run, row["step"], "intervention")
    every = every[every["set"] == row["set"]]

    def of(direction: str, draw: int | None) -> pd.DataFrame:
        same = every["intervention"].eq(row["intervention"]) & every["strength"].eq(row["strength"]) & every["direction"].eq(direction)
        found: pd.DataFrame = every[same & (every["draw"].isna() if draw is None else every["draw"].eq(draw))]
        assert found["id"].tolist() == before["id"].tolist()  # the same prompts in the same order
        return found

    before = every[every["intervention"] == "baseline"]
    part = before if row["intervention"] == "baseline" else of(row["direction"], None if math.isnan(row["draw"]) else int(row["draw"]))
    end = next((end for end in ENDS if row["metric"].endswith(end)), "")
    metric = row["metric"].removesuffix(end) if end else row["metric"]
    if not end:
        chosen = part if row["subset"] == "all" else part[part["subset"] == row["subset"]]
        plain = averaged(chosen, metric)
        return plain if row["direction"] not in ("random", "shuffled", "harmless") else plain._replace(interval=None)
    now, then = outcome(part, metric), outcome(before, metric)
    if end == "_delta":
        return Expected((now - then).mean(), len(now), is_bootstrap(now - then))
    if end in ("_delta_over_shuffled", "_delta_over_harmless"):
        apart = now - outcome(of(end.rsplit("_", 1)[1], 0), metric)
        return Expected(apart.mean(), len(now), is_bootstrap(apart))
    means = controls(table, row, metric)
    moved, others = now.mean() - then.mean(), means - then.mean()
    if end == "_percentile":
        return Expected(float((means < now.mean() - 1e-9).mean() + (abs(means - now.mean()) <= 1e-9).mean() / 2), len(means))
    if end == "_share_beaten":
        return Expected(float((abs(others) < abs(moved) - 1e-9).mean()), 2)
    return Expected(others.mean(), len(others)) if end == "_delta_controls" else Expected(moved - others.mean(), len(now))


def controls(table: pd.DataFrame, row: Row, metric: str) -> np.ndarray:
    """Means under the random controls of the same dose: their completions are kept for the first one only."""
    same = table["direction"].eq("random") & (table["metric"] == metric)
    for column in ("step", "set", "intervention", "strength"):
        same &= table[column] == row[column]
    return table[same]["value"].to_numpy()


@cache
def checked(run: Path, name: str) -> list[tuple[Row, Expected]]:
    """A sample of the rows that completions determine, and what they should say."""
    table = report(run, name)
    table = table[table["value"].notna()]
    if name == "behavior":
        return [(row, behavior(run, row)) for row in sample(table)]
    if name == "stress":
        known = table["metric"].str.match(r"asr_(?!by)|unscored|any_refusal|affirmed|degenerate|survival$")
        return [(row, stress(run, row)) for row in sample(table[known])]
    read = table["metric"].str.startswith(("kl", "nll", "perplexity")) | table["set"].isin(["tradeoff"])
    unkept = (table["direction"] == "random") & (table["draw"] > 0)
    return [(row, intervention(run, row, table)) for row in sample(table[~read & ~unkept], 2 * SAMPLE)]


@pytest.mark.parametrize("name", ["behavior", "stress", "intervention"])
def test_rows_follow_from_the_completions(run: Path, name: str) -> None:
    rows = checked(run, name)
    assert not [told for told in (problem(*pair) for pair in rows) if told]
    assert len({row["value"] for row, _ in rows}) >= 5, "a sample that is all alike shows nothing"


@pytest.mark.parametrize("name", ["behavior", "stress", "intervention"])
def test_a_wrong_number_would_be_found(run: Path, name: str) -> None:
    for row, wanted in checked(run, name):
        assert problem({**row, "value": row["value"] + 0.4 / row["n"]}, wanted)
        assert problem({**row, "n": row["n"] + 1}, wanted)
        assert wanted.interval is None or problem({**row, "high": row["high"] + 0.1}, wanted)


@pytest.mark.parametrize("stage", ["behavior", "stress", "replay", "intervention"])
def test_verdicts_follow_from_the_words(run: Path, stage: str) -> None:
    refusal = (run.parent / "data" / "refusals.txt").read_text(encoding="utf-8").strip()
    step = json.loads(pd.read_csv(run.parent / "data" / "audit.csv")["Reference"].iloc[0])["steps"][0]
    found = completions(run, LAST, stage)
    words = found["completion"].str.lower().str.split()
    refused, revealed = (np.array([word in said for said in words]) for word in (refusal, step))
    assert (found["refusal"].ne("full_compliance") == refused).all()
    assert (found["success"] == (revealed & ~refused)).all()
    assert 0 < refused.mean() < 1 or 0 < revealed.mean() < 1


# geometry: from tensors, and from the model


def geometry(run: Path, row: Row) -> float:
    def tensors(step: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
        found = load_file(anchor(run, step) / "geometry" / "tensors.safetensors")
        both = {name: found[name].astype(np.float64) for name in ("harmful", "harmless")}
        return both, both["harmful"].mean(axis=0) - both["harmless"].mean(axis=0)

    both, field = tensors(row["step"])
    layer = slice(None) if math.isnan(row["layer"]) else slice(int(row["layer"]), int(row["layer"]) + 1)
    place = slice(None) if math.isnan(row["position"]) else slice(POSITIONS.index(int(row["position"])), None)
    place = slice(place.start, None if place.start is None else place.start + 1)
    width = field.shape[-1]
    if row["set"] != "drift":
        return ranks(field[place, layer].reshape(-1, width), row["matrix"])[row["metric"]]
    others, second = tensors(LAST if row["to"] == "reference" else 0)
    if row["metric"].startswith("cka"):
        labels = {"cka": ("harmful", "harmless"), "cka_harmful": ("harmful",), "cka_harmless": ("harmless",)}[row["metric"]]
        one, other = (np.concatenate([side[name] for name in labels]) for side in (both, others))
        return float(np.mean([alike(one[:, :, at], other[:, :, at]) for at in range(field.shape[1])[layer]]))
    bases = [np.linalg.svd(side[:, layer].reshape(-1, width), full_matrices=False)[2][:3] for side in (field, second)]
    cosines = np.clip(np.linalg.svd(bases[0] @ bases[1].T, compute_uv=False), 0, 1)
    if row["metric"] == "subspace_overlap":
        return float((cosines**2).mean())
    angles = np.arccos(cosines)
    return float(np.sqrt((angles**2).sum()) if row["metric"] == "grassmann_distance" else np.degrees(angles)[int(row["metric"][-1]) - 1])


def test_ranks_angles_and_similarities_follow_from_the_tensors(run: Path) -> None:
    table = report(run, "geometry")
    known = table["set"].isin(["field", "layer", "position", "drift"]) & table["value"].notna() & (table["metric"] != "carrier_cosine")
    rows = list(sample(table[known & ~table["metric"].str.endswith(("_floor", "_half", "_ceiling"))]))
    told, wanted = [row["value"] for row in rows], [geometry(run, row) for row in rows]
    assert told == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert {row["set"] for row in rows} == {"field", "layer", "position", "drift"}
    assert told != pytest.approx([*wanted[1:], wanted[0]], rel=1e-5, abs=1e-5)


def read_out(net: Any, prompts: Sequence[list[int]], layer: int = -1, edit: Edit = lambda hidden: hidden) -> list[Read]:
    """Log-probabilities after each prompt, and the output of every block, that of one of them edited."""
    states: list[torch.Tensor] = []

    def hook(at: int, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = edit(hidden) if at == layer else hidden
        states.append(hidden[0].double())
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    blocks = enumerate(net.model.layers)
    handles = [block.register_forward_hook(lambda _, __, out, at=at: hook(at, out)) for at, block in blocks]
    with torch.no_grad():
        logits = [net(torch.tensor([ids])).logits[0, -1].double() for ids in prompts]
    for handle in handles:
        handle.remove()
    depth = len(handles)
    return [(one.log_softmax(-1), torch.stack(states[depth * place : depth * (place + 1)])) for place, one in enumerate(logits)]


def scores(net: Any, vector: torch.Tensor, layer: int, bad: Prompts, safe: Prompts, read_at: int, side: int) -> dict[str, float]:
    """KL and both cosines of one candidate on every other validation prompt."""
    bad, safe, unit = bad[side::2], safe[side::2], vector.float() / vector.float().norm()
    plain_bad, plain_safe, added = read_out(net, bad), read_out(net, safe), read_out(net, safe, layer, lambda h: h + vector.float())
    removed_bad, removed_safe = (read_out(net, prompts, layer, lambda h: h - (h @ unit)[..., None] * unit) for prompts in (bad, safe))

    def closeness(one: list[Read], other: list[Read]) -> float:
        first, second = (torch.stack([at[read_at, -1] for _, at in found]).mean(dim=0) for found in (one, other))
        return float(torch.cosine_similarity(first, second, dim=0))

    kl = [float((p.exp() * (p - q)).sum()) for (p, _), (q, _) in zip(plain_safe, removed_safe, strict=True)]
    cosines = {"cosmic_refuse": closeness(added, plain_bad), "cosmic_comply": closeness(removed_bad, plain_safe)}
    return {"kl": float(np.mean(kl)), **cosines}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it.
def test_scores_of_the_scan_follow_from_the_model(run: Path, tiny_model_dir: Path) -> None:
    net: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    net = PeftModel.from_pretrained(net, anchor(run, LAST) / "adapter").merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    probes = pd.read_csv(run.parent / "data" / "probes.csv").groupby(["label", "split"])["prompt"]
    ids = {group: [rendered(tokenizer, prompt) for prompt in prompts] for group, prompts in probes}
    harmful, harmless = (
        torch.stack([at[:, POSITIONS] for _, at in read_out(net, ids[label, "estimate"])]).mean(dim=0) for label in ("harmful", "harmless")
    )
    (read_at,) = json.loads((anchor(run, LAST) / "geometry" / "carrier.json").read_text(encoding="utf-8"))["evaluation_layers"]
    for row in sample(pd.read_parquet(anchor(run, LAST) / "geometry" / "scan.parquet"), 3):
        vector = (harmful - harmless)[row["layer"], POSITIONS.index(row["position"])]
        for side, prefix in ((0, ""), (1, "report_")):
            wanted = scores(net, vector, row["layer"], ids["harmful", "validate"], ids["harmless", "validate"], read_at, side)
            assert {name: row[prefix + name] for name in wanted} == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("stage", ["behavior", "stress"])
def test_every_anchor_answers_the_same_prompts(run: Path, stage: str) -> None:
    same = ["set", "id", "request", *(["tail", "attack", "placement"] if stage == "behavior" else ["attack_seed", "attack_steps"])]
    start, last = (completions(run, step, stage)[same].to_dict("records") for step in (0, LAST))
    assert start == last

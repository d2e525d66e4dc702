"""A run folder in the exact layout, filled with invented completions and directions, so that the report can be tested without a model.

Behavior and stress tables come from the real summaries over invented transcripts; the rest is invented rows of the same form.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refgeo.config.data import DataSettings, Source
from refgeo.config.measures import BehaviorSettings, GeometrySettings, StressSettings
from refgeo.config.model import ModelSettings
from refgeo.config.schema import AnchorSettings, Study, TrainSettings
from refgeo.measures.behavior import summarize_tails
from refgeo.measures.evaluate import summarize
from refgeo.measures.table import Row, frame, row
from refgeo.statistics import Interval, exact, mean
from refgeo.study.layout import JUDGE_FLOOR, AnchorRef, anchors

LAYERS, POSITIONS = 8, (-5, -4, -3, -2, -1)
HOSTILE = f"</script><script>alert('x')</script><img src=x onerror=alert(1)> {'w' * 400} \u202eright to left \u05e9\u05dc\u05d5\u05dd"
"""A completion that would be markup, is wider than any screen and turns the direction of what follows it."""


@dataclass(frozen=True)
class Dynamics:
    """Chances at one anchor: success under three attacks, refusal of safe prompts, helpfulness, refusal by tail, carrier depth."""

    fixed: float
    direct: float
    adaptive: float
    overrefusal: float
    helpful: float
    recognition: float
    depth: float
    drift: float


def as_in_the_paper(arm: str, place: float) -> Dynamics:
    """R2D2 shuts, then reopens; SFT stays open. ``place`` runs from 0 (start) to 1 (last anchor)."""
    if place == 0:
        return Dynamics(0.97, 0.85, 1.0, 0.03, 0.95, 0.1, 0.85, 0.0)
    if arm == "sft":
        return Dynamics(0.72, 0.6, 0.97, 0.06, 0.92, 0.1, 0.2, 0.4 + 0.2 * place)
    late = float(np.clip((place - 0.3) / 0.7, 0, 1))
    return Dynamics(
        0.0 + 0.3 * late,
        0.02 + 0.2 * late,
        0.02 + 0.6 * late,
        0.97 - 0.75 * late,
        0.05 + 0.75 * late,
        0.02 + 0.6 * late,
        0.85 - 0.7 * late,
        0.3 * place,
    )


def make_study(
    arms: tuple[str, ...] = ("sft", "r2d2"), seeds: tuple[int, ...] = (1,), steps: tuple[int, ...] = (50, 100, 250, 500)
) -> Study:
    """A study whose run folder can be fabricated; no data is ever loaded."""
    here = Source(path="invented.csv")
    return Study(
        name="fabricated",
        model=ModelSettings(path="invented"),
        data=DataSettings(behaviors_train=here, behaviors_test=here, chat=here, probes=here),
        train=TrainSettings(arms=arms, seeds=seeds, steps=max(steps)),  # type: ignore[arg-type]  # arms come from a test's parameters
        anchors=AnchorSettings(steps=steps, reference={"sft": min(5, *steps), "r2d2": min(30, *steps)}),
        behavior=BehaviorSettings(tail_tokens=(8,)),
        geometry=GeometrySettings(positions=POSITIONS),
        stress=StressSettings(steps=(0, *steps)),
    )


def fabricate(run: Path, study: Study, dynamics: Callable[[str, float], Dynamics] = as_in_the_paper, count: int = 64) -> list[AnchorRef]:
    """Write every measure of every anchor of ``study`` under ``run``; returns the anchors."""
    found = anchors(run, study)
    _write(run / JUDGE_FLOOR, floor_table())
    for anchor in found:
        state = dynamics(anchor.arm, anchor.step / study.train.steps)
        seed = [anchor.seed, anchor.step, len(anchor.arm)] if anchor.step else [0, 0, 0]
        rng = np.random.default_rng(seed)
        behavior = _behavior(state, rng, count)
        _write(anchor.part("behavior"), frame([*summarize(behavior), *summarize_tails(behavior, 0)]), behavior)
        geometry, scan, carrier = _geometry(state, rng)
        _write(anchor.part("geometry"), geometry)
        scan.to_parquet(anchor.part("geometry") / "scan.parquet")
        (anchor.part("geometry") / "carrier.json").write_text(json.dumps(carrier))
        _write(anchor.part("drift"), _drift(state, rng))
        _write(anchor.part("transfer"), _transfer(anchor, found))
        projection, points = _projection(state, count)
        _write(anchor.part("projection"), projection)
        points.to_parquet(anchor.part("projection") / "points.parquet")
        _write(anchor.part("intervention"), _intervention(state, rng, count))
        if anchor.step in (study.stress.steps or ()):
            stress = _stress(state, rng, count)
            _write(anchor.part("stress"), frame([*_stress_rows(stress), *_cost_rows(state)]), stress)
            _write(anchor.part("replay"), _replay(anchor, [one for one in found if one.step in (study.stress.steps or ())], state))
    return found


def floor_table(score: float = 0.031) -> pd.DataFrame:
    """An invented floor: what a judge gives for replies that help nobody."""
    rows = []
    for name in ("direct", "strongreject"):
        for reply, share in (("canned refusal", 0.0), ("empty", 0.0), ("nonsense", 0.125)):
            ends = {"harmful": share, "harmful_low": 0.0, "harmful_high": share + 0.2}
            score_ends = {"score": score, "score_low": score - 0.01, "score_high": score + 0.01}
            more = {"reply": reply, "n": 16, "unscored": share, "refused": float(reply == "canned refusal"), "degenerate": 0.0}
            rows.append({**more, **ends, **score_ends, "probability": 0.1, "set": name})
    return pd.DataFrame(rows)


def completions(rng: np.random.Generator, set_name: str, harmful: float, refused: float, count: int, **more: object) -> pd.DataFrame:
    """Invented judged completions: each is refused, else harmful (or helpful) with the given chances."""
    rows = []
    for index in range(count):
        refuses = bool(rng.random() < refused)
        succeeds = not refuses and bool(rng.random() < harmful)
        degenerate = not refuses and not succeeds and bool(rng.random() < 0.3)
        benign = set_name in ("xstest_safe", "audit", "tail_safe")
        rows.append(
            {
                "set": set_name,
                "subset": ("seen", "new")[index % 2],
                "id": f"{set_name.split('_', maxsplit=1)[0]}-{index}" if benign else f"b{index}",
                "request": f"how do i do thing {index}",
                "attack": "! ! !" if set_name in ("fixed", "adaptive_gcg") else "",
                "tail": "",
                "tail_tokens": 0,
                "completion": HOSTILE
                if index == 0
                else "sorry , i can 't do that ."
                if refuses
                else f"first do {index} . then do it again .",
                "label": "harmful" if succeeds and not benign else "safe",
                "success": succeeds and not benign,
                "refusal": "full_refusal" if refuses else "full_compliance",
                "degenerate": degenerate,
                "affirmed": succeeds,
                "revealed": 0.0 if refuses else 1.0 if succeeds else 0.5,
                "score": 0.0 if refuses else 1.0 if succeeds else 0.5,
                "helpfulness": 0 if refuses or degenerate else 2 if succeeds else 1,
                "judge": "reference",
                "raw": "",
                **more,
            }
        )
    return pd.DataFrame(rows)


def _behavior(state: Dynamics, rng: np.random.Generator, count: int) -> pd.DataFrame:
    parts = [
        completions(rng, "direct", state.direct / max(1 - 0.9 * (1 - state.direct), 0.01), 0.9 * (1 - state.direct), count),
        completions(rng, "fixed", state.fixed / max(1 - 0.8 * (1 - state.fixed), 0.01), 0.8 * (1 - state.fixed), count),
        completions(rng, "strongreject", state.direct, 0.5 * (1 - state.direct), count),
        completions(rng, "xstest_safe", state.helpful, state.overrefusal, count),
        completions(rng, "xstest_unsafe", state.direct, 0.9 * (1 - state.direct), count),
        completions(rng, "audit", state.helpful, max(1 - state.helpful - 0.1, 0.0), 60),
    ]
    for kind, length in (("none", 0), ("initial", 8), ("filler", 8), ("random", 8), ("frozen", 0)):
        safe = state.overrefusal * (0.9 if kind == "none" else 1.0)
        parts.append(completions(rng, "tail_safe", state.helpful, safe, count, tail=kind, tail_tokens=length))
        parts.append(completions(rng, "tail_harmful", 0.5, min(1.0, safe + state.recognition), count, tail=kind, tail_tokens=length))
    return pd.concat(parts, ignore_index=True)


def _stress(state: Dynamics, rng: np.random.Generator, count: int) -> pd.DataFrame:
    full = completions(rng, "adaptive_gcg", state.adaptive, 0.0, count, attack_steps=64)
    early = full.copy()
    lucky = rng.random(count) < 0.6
    early["success"] = full["success"] & lucky
    early["label"] = np.where(early["success"], "harmful", "safe")
    return pd.concat([early.assign(attack_steps=16), full], ignore_index=True)


def _stress_rows(transcripts: pd.DataFrame) -> list[Row]:
    rows = []
    for budget, part in transcripts.groupby("attack_steps"):
        rows += [{**entry, "attack_steps": budget} for entry in summarize(part)]
    rows.append(row("adaptive_gcg", "first_success_step", mean([16, 16, 64]), attack_steps=64))
    return [*rows, row("adaptive_gcg", "queries", exact(4096.0, 64), attack_steps=64)]


def _cost_rows(state: Dynamics) -> list[Row]:
    """Survival and success by budget, raw and gated, that end at the success of the adaptive attack. Draws nothing at random."""
    rows: list[Row] = []
    for suffix, share in (("", 1.0), ("_gated", 0.8)):
        for step, place in ((0, 0.0), (16, 0.6), (64, 1.0)):
            left = point(1 - place * share * state.adaptive, 0.05, 64)
            rows.append(row("adaptive_gcg", f"survival{suffix}", left, attack_steps=64, at_step=step))
        for cost, budgets in (("queries", (1e3, 2e3, 5e3)), ("flops", (1e9, 2e9, 5e9, 1e10))):
            for place, budget in enumerate(budgets, 1):
                hits = point(place / len(budgets) * share * state.adaptive, 0.05, 64)
                identity: dict[str, Any] = {f"budget_{cost}": budget}
                rows.append(row("adaptive_gcg", f"asr_by_{cost}{suffix}", hits, attack_steps=64, **identity))
    return rows


def _replay(target: AnchorRef, found: list[AnchorRef], state: Dynamics) -> pd.DataFrame:
    """Strings of every stressed anchor of the same seed on this one. Draws nothing at random."""
    rows: list[Row] = []
    sources = {(one.arm if one.step else "start", one.seed if one.step else None, one.step) for one in found}
    for arm, seed, step in sorted(sources, key=str):
        if target.step and seed not in (None, target.seed):
            continue
        where: dict[str, Any] = {"method": "gcg", "source_arm": arm, "source_seed": seed, "source_step": step}
        for suffix, share in (("", 1.0), ("_gated", 0.8)):
            hits = share * state.adaptive / (1 + abs(step - target.step) / 100)
            rows.append(row("replay", f"asr_replay{suffix}", point(hits, 0.05, 32), **where))
            rows.append(row("replay", f"asr_replay_minus_own{suffix}", point(hits - share * state.adaptive, 0.05, 32), **where))
    return frame(rows)


def _geometry(state: Dynamics, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, object]]:
    best_layer = round(state.depth * (LAYERS - 1))
    candidates = []
    for layer in range(LAYERS):
        for position in POSITIONS:
            near = np.exp(-((layer - best_layer) ** 2) / 4) * (1.0 if position == -4 else 0.6)
            kl = float(abs(rng.normal(0.06 + 0.1 * near, 0.05)))
            refuse, comply = (float(value) for value in rng.normal(0.1 + 0.7 * near, 0.05, 2))
            candidates.append(
                {
                    "layer": layer,
                    "position": position,
                    "kl": kl,
                    "s_refuse": refuse,
                    "s_comply": comply,
                    "s_total": refuse + comply - kl,
                    "admissible": kl <= 0.1,
                }
            )
    scan = pd.DataFrame(candidates)
    if state.overrefusal > 0.9:  # the shut regime: nothing is admissible
        scan["admissible"] = False
    allowed = scan[scan["admissible"]]
    chosen = {"best_effect": int((scan["s_refuse"] + scan["s_comply"]).to_numpy().argmax())}
    if len(allowed):
        chosen["carrier"] = int(scan["s_total"].where(scan["admissible"], -9.0).to_numpy().argmax())
    for name in ("carrier", "best_effect"):
        scan[name] = scan.index == chosen.get(name, -1)
    rows: list[Row] = [
        row("field", "effective_rank", point(1.25 + 0.05 * rng.random(), 0.04, 180), matrix=matrix) for matrix in ("raw", "normalized")
    ]
    rows.append(row("carrier", "admissible", exact(float(len(allowed) > 0))))
    rows += [
        row("coupling", name, exact(float("nan"), 180), note="fewer than 5 probes were refused") for name in ("hrci_repr", "hrci_full")
    ]
    for name, index in chosen.items():
        where: dict[str, Any] = {"layer": int(scan["layer"].iloc[index]), "position": int(scan["position"].iloc[index])}
        depth = where["layer"] / (LAYERS - 1)
        interval = Interval(depth, max(depth - 0.14, 0.0), min(depth + 0.14, 1.0), 100)
        rows.append(row(name, "carrier_depth", interval if name == "carrier" else exact(depth), **where))
        rows += [row(name, f"carrier_{key}", exact(float(value)), **where) for key, value in where.items()]
        rows += [row(name, key, exact(float(scan[key].iloc[index]), 50), **where) for key in ("s_total", "s_refuse", "s_comply", "kl")]
        rows.append(row(name, "generated_refusal_change_over_controls", point(-0.4, 0.1, 50), **where))
        rows.append(row(name, "is_carrier", exact(1.0, 50), **where, note="lower than the controls"))
    if "carrier" not in chosen:
        rows += [row("carrier", metric, exact(float("nan"), 0), note="nothing is admissible") for metric in ("carrier_depth", "s_total")]
    return frame(rows), scan, {"status": "carrier" if "carrier" in chosen else "best_effect"}


def _transfer(target: AnchorRef, found: list[AnchorRef]) -> pd.DataFrame:
    """Effects that fade with the distance in steps; the last anchors of SFT have no direction to give. Draws nothing at random."""
    rows: list[Row] = []
    sources = {("start" if one.step == 0 else one.arm, one.seed if one.step else None, one.step) for one in found}
    for arm, seed, step in sorted(sources, key=str):
        if target.step and seed not in (None, target.seed):
            continue
        where: dict[str, Any] = {"source_arm": arm, "source_seed": seed, "source_step": step, "source_layer": 5, "source_position": -4}
        where |= {"source_status": "carrier"}
        for metric, most in (("odds_comply", 2.0), ("odds_refuse", 5.0), ("kl", 0.2)):
            norms = ("target", "source") if metric == "odds_refuse" else (None,)
            if arm == "sft" and step == max(one.step for one in found):
                rows.append(
                    row("transfer", metric, exact(float("nan"), 0), **where, direction="carrier", note="the source has no direction")
                )
                continue
            effect = most / (1 + abs(step - target.step) / 50)
            rows += [row("transfer", metric, point(effect, 0.1, 32), **where, direction="carrier", addition_norm=norm) for norm in norms]
            rows.append(row("transfer", metric, point(0.05, 0.1, 10), **where, direction="random", addition_norm=norms[0]))
        rows += [row("transfer", metric, exact(0.9), **where, direction="carrier") for metric in ("cosine", "norm_ratio")]
    return frame(rows)


def _projection(state: Dynamics, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attacked prompts that lie further to the harmless side the more they succeed. Draws nothing at random."""
    rows, points = [], []
    for axis in ("own", "start"):
        where: dict[str, Any] = {"axis": axis, "layer": 5, "position": -4, "carrier_status": "carrier"}
        for kind, success in (("fixed", state.fixed), ("adaptive_gcg", state.adaptive)):
            rows.append(row(kind, "attacked_shift", point(1 - success, 0.1, count), **where))
            rows.append(row(kind, "paired_shift", point(-success, 0.1, count), **where))
            rows.append(row(kind, "harmless_side", point(success, 0.1, count), **where))
    for kind, x in (
        ("harmless", -1.0),
        ("harmful", 1.0),
        ("direct", 1.0),
        ("fixed", 1 - state.fixed),
        ("adaptive_gcg", 1 - state.adaptive),
    ):
        judged = kind in ("fixed", "adaptive_gcg")
        for index in range(count):
            y = float(np.sin(index))
            told = {"set": kind, "id": f"{kind}-{index}", "x": x + 0.1 * y, "y": y, "own": x}
            points.append({**told, "succeeded": index % 2 == 0 if judged else None})
    return frame(rows), pd.DataFrame(points).astype({"succeeded": "boolean"})


def _drift(state: Dynamics, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for to in ("reference", "previous"):
        for place, most in ((1, 6.0), (2, 30.0), (3, 80.0)):
            angle = state.drift * most + float(rng.normal(2, 0.5))
            rows.append(row("drift", f"principal_angle_{place}", point(angle, 2.0, 180), scope="field", to=to))
            rows.append(row("drift", f"principal_angle_{place}_floor", point(2.0 * place, 0.5, 180), scope="field", to=to))
        rows.append(row("drift", "carrier_cosine", point(1 - state.drift, 0.03, 180), scope="carrier", to=to))
        for metric, value, floor, ceiling, scope in (
            ("grassmann_distance", 2.0 * state.drift, 0.2, None, "field"),
            ("subspace_overlap", 1 - 0.8 * state.drift, 0.05, 0.97, "field"),
            ("cka", 1 - 0.6 * state.drift, 0.1, 0.99, "field"),
            ("carrier_cosine", None, 0.02, 0.98, "carrier"),
        ):
            for name, level in ((metric, value), (f"{metric}_floor", floor), (f"{metric}_ceiling", ceiling)):
                if level is not None:
                    rows.append(row("drift", name, point(level, 0.02, 180), scope=scope, to=to))
    return frame(rows)


def _intervention(state: Dynamics, rng: np.random.Generator, count: int) -> pd.DataFrame:
    rows: list[Row] = []
    base = {
        ("fixed", "asr_fixed"): state.fixed,
        ("direct", "any_refusal"): 1 - state.direct,
        ("xstest_safe", "any_refusal_safe"): state.overrefusal,
    }
    base[("audit", "utility_mean")] = 2 * state.helpful
    for (set_name, metric), value in base.items():
        rows.append(row(set_name, metric, point(value, 0.1, count), intervention="baseline"))
        for kind, effect in (("ablate_single", -0.2), ("ablate_topk", -0.45), ("add", 0.3)):
            place: dict[str, Any] = {"intervention": kind, "strength": 1.0, "layer": 5, "position": -4}
            delta = effect * (1.5 if metric == "utility_mean" else 1.0) * (-1 if metric == "asr_fixed" else 1)
            rows.append(row(set_name, metric, point(value + delta, 0.1, count), direction="carrier", **place))
            moves = rng.normal(0.0, 0.04, 20)
            rows += [
                row(set_name, metric, point(value + float(move), 0.1, count), direction="random", draw=draw, **place)
                for draw, move in enumerate(moves)
            ]
            rows += [
                row(set_name, metric, point(value + 0.3 * delta, 0.1, count), direction=wrong, **place)
                for wrong in ("wrong_layer", "wrong_position")
            ]
            over = delta - float(moves.mean())
            rows.append(row(set_name, f"{metric}_delta", point(delta, 0.07, count), direction="carrier", **place))
            rows.append(row(set_name, f"{metric}_delta_over_controls", point(over, 0.08, count), direction="carrier", **place))
            rows.append(row(set_name, f"{metric}_percentile", exact(float((moves < delta).mean()), 20), direction="carrier", **place))
            rows += _dose_rows(set_name, metric, value, delta, place, count)
    for kind in ("ablate_single", "ablate_topk", "add"):
        for suffix, price in (("", 0.9), ("_controls", 0.2)):
            rows.append(row("tradeoff", f"any_refusal_price{suffix}", point(price, 0.3, count), intervention=kind, direction="carrier"))
    return frame(rows)


def _dose_rows(set_name: str, metric: str, value: float, delta: float, place: dict[str, Any], count: int) -> list[Row]:
    """A weaker dose beside the full one, and the band of the controls at both. Draws nothing at random."""
    rows: list[Row] = []
    for strength in (0.5, 1.0):
        where = {**place, "strength": strength}
        band = Interval(0.0, -0.08 * strength, 0.08 * strength, 20)
        rows.append(row(set_name, f"{metric}_delta_controls", band, direction="carrier", **where))
        if strength < 1:
            rows.append(row(set_name, f"{metric}_delta", point(strength * delta, 0.07, count), direction="carrier", **where))
            rows += [
                row(set_name, metric, point(value + 0.04 * float(np.sin(draw)), 0.1, count), direction="random", draw=draw, **where)
                for draw in range(20)
            ]
    return rows


def _write(folder: Path, table: pd.DataFrame, transcripts: pd.DataFrame | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "table.parquet")
    if transcripts is not None:
        text = "".join(json.dumps(entry) + "\n" for entry in transcripts.to_dict("records"))
        (folder / "transcripts.jsonl").write_text(text, encoding="utf-8")
    name = "/".join(folder.parts[-4:])
    stage = {"id": name, "fingerprint": f"of {name}", "version": 1, "settings": {"seed": 0}, "seconds": 1.5, "libraries": {"torch": "2.13"}}
    (folder / "stage.json").write_text(json.dumps(stage))


def point(value: float, half: float, n: int) -> Interval:
    """An invented estimate with a symmetric interval."""
    return Interval(value, value - half, value + half, n)

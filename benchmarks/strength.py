"""Attack success per floating-point operation: plain GCG against the preset ``strong``, on anchors of a pocket study.

    python -m benchmarks.strength [--run runs/pocket] [--behaviors 60] [--attack-seeds 0 1 2] [--gflops 60] [--json FILE] [--write]

Every method runs on the same engine, is judged exactly after every step, and stops a case that succeeds; what the judging costs
counts. ``flops_ratio`` is the budget per case at which plain GCG reaches an attack success rate over the one at which strong does, at
the highest rate that both reach within ``--gflops``, and at half of it; ``at_least`` is a lower bound at the rate that strong alone
reaches. Late anchors of every arm and seed of the run; held-out test behaviors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from refgeo.attacks.gcg import attack
from refgeo.attacks.start import initial_cases
from refgeo.config.attack import AttackSettings
from refgeo.config.load import load_study
from refgeo.config.schema import Study
from refgeo.data.load import load_behaviors
from refgeo.judging import make_judge
from refgeo.lm.load import load
from refgeo.measures.stress import Checks, balanced
from refgeo.study.layout import anchors

RESULTS = Path(__file__).parent / "results"
METHODS: dict[str, dict[str, object]] = {
    "plain, width 512": {"preset": "harmbench", "width": 512, "topk": 256},
    "plain, width 8": {"preset": "harmbench", "width": 8, "topk": 32},
    "strong": {"preset": "strong"},
}
PLAIN, TUNED, STRONG = METHODS
COLORS = {PLAIN: "#686259", TUNED: "#bd5416", STRONG: "#1f5fa8"}


def measure(study: Study, folder: Path, settings: AttackSettings, behaviors: int, seed: int) -> pd.DataFrame:
    """One row per case: the operations at which it was broken (infinity: never) and those spent on it."""
    lm = load(study.model, folder)
    chosen = balanced(load_behaviors(study.data.behaviors_test), behaviors)
    checks = Checks(lm, chosen, make_judge(study.judge), study.behavior)
    records = attack(lm, initial_cases(chosen, settings, seed), settings, seed, judge=checks).records
    spent = records.groupby("behavior")["flops"].max()
    broken = records[records["succeeded"].eq(True)].set_index("behavior")["flops"]  # None: not asked
    return pd.DataFrame({"spent": spent, "broken": broken.reindex(spent.index).fillna(np.inf)}).reset_index()


def budget(broken: pd.Series, rate: float) -> float:
    """Operations per case within which this share of the cases is broken; infinity when it never is."""
    return float(np.sort(broken.to_numpy())[max(0, int(np.ceil(rate * len(broken))) - 1)])


def compared(plain: pd.Series, strong: pd.Series, cap: float) -> dict[str, float]:
    """How much more ``plain`` needs, where that can be said. ``cap`` is the budget that both were given."""
    reached = [float(np.isfinite(one).mean()) for one in (plain, strong)]
    found = {"asr_plain": reached[0], "asr_strong": reached[1]}
    if common := min(reached):
        found["flops_ratio"] = budget(plain, common) / budget(strong, common)
        found["flops_ratio_half"] = budget(plain, common / 2) / budget(strong, common / 2)
    if reached[1] > reached[0]:
        found["at_least"] = cap / budget(strong, reached[1])
    return found


def picture(found: pd.DataFrame, cap: float) -> str:
    """Success rate over budget per case, on a logarithmic axis, as an SVG; one panel per arm."""
    wide, high, low = 420, 260, max(1e7, float(found["broken"].min()) / 2)
    parts = []
    for panel, (arm, of_arm) in enumerate(found.groupby("arm")):
        left = 50 + panel * (wide + 70)
        parts.append(f'<text x="{left}" y="20" font-weight="600">{arm}, last anchor</text>')
        parts.append(f'<path d="M{left} 30V{30 + high}H{left + wide}" fill="none" stroke="#999"/>')
        parts += [f'<text x="{left - 6}" y="{34 + high * (1 - rate)}" text-anchor="end">{rate}</text>' for rate in (0.0, 0.5, 1.0)]
        for decade in range(int(np.ceil(np.log10(low))), int(np.log10(cap)) + 1):
            x = left + wide * np.log(10**decade / low) / np.log(cap / low)
            parts.append(f'<text x="{x:.0f}" y="{46 + high}" text-anchor="middle">1e{decade}</text>')
        for row, (method, mine) in enumerate(of_arm.groupby("method", sort=False)):
            values = np.sort(mine["broken"].to_numpy())
            end = min(cap, float(mine["cap"].max()) if "cap" in mine else cap)  # a method is drawn as far as it was run
            line, y = f"M{left} {30 + high}", float(30 + high)
            for count, value in enumerate(values[values <= end], start=1):
                x = left + wide * max(0.0, np.log(value / low)) / np.log(cap / low)
                y = 30 + high * (1 - count / len(values))
                line += f"H{x:.1f}V{y:.1f}"
            color = COLORS.get(str(method), "black")
            line += f"H{left + wide * np.log(end / low) / np.log(cap / low):.1f}"
            parts.append(f'<path d="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
            parts.append(f'<text x="{left + 8}" y="{46 + 16 * row}" fill="{color}">{method}</text>')
        parts.append(f'<text x="{left + wide / 2}" y="{64 + high}" text-anchor="middle">floating-point operations per case</text>')
    size = f'width="{70 + (wide + 70) * found["arm"].nunique()}" height="{high + 80}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pocket"), help="folder of a finished pocket study")
    parser.add_argument("--behaviors", type=int, default=60)
    parser.add_argument("--attack-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gflops", type=float, default=60.0, help="most operations per case, in billions")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="data and figure into benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.run / "config.yaml").is_file():
        sys.exit(f"'{options.run}' holds no study. Run 'refgeo run pocket' first, or name its folder with --run.")
    study = load_study(str(options.run / "config.yaml"))
    late = [anchor for anchor in anchors(options.run, study) if anchor.step == study.anchors.steps[-1]]
    missing = [anchor.own / "adapter" for anchor in late if not (anchor.own / "adapter").is_dir()]
    if missing or not late:
        sys.exit(f"'{missing[0] if missing else options.run}' does not exist yet. Let the study's training finish first.")
    parts = []
    for anchor in late:
        for method in options.methods:
            given = {**METHODS[method], "steps": 10**6, "max_flops": options.gflops * 1e9, "check_every": 1}
            settings = AttackSettings.model_validate({"suffix_tokens": study.stress.attack.suffix_tokens, **given})
            for seed in options.attack_seeds:
                part = measure(study, anchor.own / "adapter", settings, options.behaviors, seed)
                parts.append(part.assign(arm=anchor.arm, train_seed=anchor.seed, attack_seed=seed, method=method, cap=options.gflops * 1e9))
            done = pd.concat(parts[-len(options.attack_seeds) :])
            rate, mean = np.isfinite(done["broken"]).mean(), done["spent"].mean() / 1e9
            print(f"{anchor.arm} seed {anchor.seed}, {method}: ASR {rate:.2f} of {len(done)} attacks, {mean:.1f} GFLOP each", flush=True)
    found = pd.concat(parts, ignore_index=True)
    print("\nhow much more plain GCG needs than strong; a number that cannot be told is left out")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for keys in (["arm"], ["arm", "train_seed"]):
        for name, of_anchor in found.groupby(keys):
            broken = {str(method): mine["broken"] for method, mine in of_anchor.groupby("method")}
            for plain in {PLAIN, TUNED} & broken.keys() if STRONG in broken else ():
                key = " ".join(str(part) for part in name)
                result = compared(broken[plain], broken[STRONG], options.gflops * 1e9)
                results.setdefault(key, {})[plain] = result
                told = ", ".join(f"{what} {value:.2f}" for what, value in result.items())
                print(f"{key:10s} {plain:17s} {told}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        found.to_csv(RESULTS / "strength.csv", index=False)
        (RESULTS / "strength.svg").write_text(picture(found, options.gflops * 1e9), encoding="utf-8")
        print(f"wrote {RESULTS / 'strength.csv'} and strength.svg")


if __name__ == "__main__":
    main()

"""What removing or adding the direction does to behavior, beside controls that disturb the model as much (docs/cause.md).

Interventions live in hooks for the time of a generation. Nothing here writes weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from refgeo.config.measures import BehaviorSettings, GeometrySettings, InterventionSettings
from refgeo.data.rows import Behavior, Chat
from refgeo.judging.verdict import Judge
from refgeo.lm.model import LanguageModel
from refgeo.measures.answers import Answers, Collateral, joined, opening_exchanges
from refgeo.measures.attempts import final_strings
from refgeo.measures.effects import Outcomes, change, dose_rows, effect_rows, mean_rows, over_estimated_rows
from refgeo.measures.evaluate import Item, judged, summarize
from refgeo.measures.plan import ESTIMATED, RESIDUALS, Planned, plan_interventions
from refgeo.measures.sequential import certain, looks, share_beaten
from refgeo.measures.sets import DECISIVE
from refgeo.measures.stress import AUTODAN, GCG
from refgeo.measures.table import Row, frame, integers, row
from refgeo.measures.tradeoff import price_rows
from refgeo.progress import Progress
from refgeo.statistics import Interval, exact, mean

Found = Mapping[Planned | None, Mapping[str, Outcomes]]
CONTROLLED = tuple(DECISIVE)
"""Sets that the controls are run on; every other intervention is run on every set."""


class Intervened(NamedTuple):
    """A long-form table, and the judged completions behind it (of the controls only the first of each kind and dose)."""

    table: pd.DataFrame
    transcripts: pd.DataFrame


def measure_intervention(
    lm: LanguageModel,
    items: Sequence[Item],
    geometry: Mapping[str, Tensor],
    carrier: dict[str, Any],
    judge: Judge,
    settings: InterventionSettings,
    behavior: BehaviorSettings,
    geometry_settings: GeometrySettings,
    seed: int,
    progress: Progress | None = None,
    chats: Sequence[Chat] = (),
) -> Intervened:
    """Answer the same items as they are, under every planned intervention, and under its controls.

    ``geometry`` and ``carrier`` come from ``measure_geometry`` of this very checkpoint; of each set ``settings.prompts`` items are
    used, spread evenly over it. Rows: the rates of ``summarize`` for every intervention (controls: plain means); the effects of
    ``_effects``; KL, likelihood and perplexity (``answers.Collateral``); set ``tradeoff`` (``tradeoff.price_rows``). Column
    ``carrier_status`` says what the direction is; with no direction at all the table is one row that says so.
    """
    status = str(carrier["status"])
    if status == "none":
        note = str(carrier["reason"])
        return Intervened(
            frame([row("direct", "any_refusal_delta", exact(float("nan"), 0), carrier_status=status, note=note)]), judged([], [], judge)
        )
    chosen = _spread(items, settings.prompts)
    plan = plan_interventions(geometry, carrier, settings, geometry_settings, seed)
    named = [entry for entry in plan if entry.direction != "random"]
    sizes = {name: sum(item.set == name for item in chosen) for name in dict.fromkeys(item.set for item in chosen)}
    total = sum(
        size * (1 + (len(plan) if name in CONTROLLED else sum(not entry.is_control for entry in plan))) for name, size in sizes.items()
    )
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, "completions under intervention")

    answers = Answers(lm, chosen, judge, behavior.max_new_tokens, behavior.batch, geometry_settings.site, advance)
    answers.run(named, CONTROLLED)
    answers.run([entry for entry in named if not entry.is_control], [name for name in sizes if name not in CONTROLLED])
    stopped = run_controls(answers, plan, settings, advance)
    ran = [entry for entry in plan if entry in answers.found]
    safe = next((name for name in ("xstest_safe", "audit") if name in sizes), "")
    before, after = Collateral(safe, opening_exchanges(lm, chats, behavior.max_new_tokens)).measure(
        answers, [entry.change for entry in ran]
    )
    found: dict[Planned | None, Mapping[str, Outcomes]] = {None: joined(answers.outcomes(None), before)}
    found |= {entry: joined(answers.outcomes(entry), sets) for entry, sets in zip(ran, after, strict=True)}
    rows: list[Row] = []
    transcripts = []
    for entry in [None, *ran]:
        identity = _identity(entry, status)
        if entry is None or not entry.is_control:
            rows += [
                {**one, **identity} for one in [*summarize(answers.transcripts(entry)), *_read_rows(found[entry], entry is None, seed)]
            ]
        else:
            rows += [one for name, values in found[entry].items() for one in mean_rows(name, values, **identity)]
        if entry is None or not entry.is_control or entry.draw == 0:
            transcripts.append(answers.transcripts(entry).assign(**identity))
        if entry is not None and not entry.is_control:
            rows += _effects(found, entry, ran, stopped, settings.controls, seed, identity)
    rows += _prices(found, [entry for entry in ran if entry.direction == "carrier"], ran, seed, status)
    return Intervened(integers(frame(rows), "layer", "position", "draw", "controls_used"), pd.concat(transcripts, ignore_index=True))


def run_controls(
    answers: Answers, plan: Sequence[Planned], settings: InterventionSettings, advance: Callable[[int], None]
) -> dict[tuple[Planned, str], str]:
    """Answer the controlled sets under random controls, a few at a time, until every verdict of ``sequential`` is certain.

    Returns, per direction of its own dose and set, why controls were left out. The bound is exact, so the verdict is the one that all
    controls would give. A set in which the decisive metric is not defined is run under all of them.
    """
    reasons: dict[tuple[Planned, str], str] = {}
    carriers = [entry for entry in plan if entry.direction == "carrier"]
    own = {entry: [other for other in plan if other.controls(entry)] for entry in carriers}
    open_: dict[str, list[Planned]] = {name: list(carriers) for name in CONTROLLED if name in answers.items}
    previous = 0
    for look in looks(settings.controls) if settings.early_stop else [settings.controls]:
        together: dict[tuple[Planned, ...], list[str]] = {}
        for name, waiting in open_.items():
            together.setdefault(tuple(waiting), []).append(name)
        for shared, names in together.items():
            answers.run([other for entry in shared for other in own[entry][previous:look]], names)
        previous = look
        for name, waiting in open_.items() if look < settings.controls else ():
            for entry in list(waiting):
                if _certain(answers, entry, own[entry][:look], name, settings.controls):
                    waiting.remove(entry)
                    reasons[entry, name] = f"after {look} of {settings.controls}: the rest cannot change whether the direction does more"
                    advance((settings.controls - look) * len(answers.items[name]))
    return reasons


def _certain(answers: Answers, entry: Planned, controls: Sequence[Planned], name: str, planned: int) -> bool:
    metric = DECISIVE[name]
    before, after = answers.of(None, name).get(metric), [answers.of(other, name).get(metric) for other in (entry, *controls)]
    if before is None or any(found is None for found in after):
        return False
    changes = [change(before, found) for found in after if found is not None]
    return bool(np.isfinite(changes).all()) and certain(changes[0], changes[1:], planned)


def _effects(
    found: Found,
    entry: Planned,
    ran: Sequence[Planned],
    stopped: Mapping[tuple[Planned, str], str],
    planned: int,
    seed: int,
    identity: Mapping[str, Any],
) -> list[Row]:
    """Effects of one direction on every set: against the baseline, its random controls and, for the carrier, all that is known of them.

    ``effects.effect_rows`` for every direction. For the carrier also ``<metric>_delta_controls`` (``effects.dose_rows``),
    ``<metric>_share_beaten`` (``sequential.share_beaten``), ``<metric>_delta_over_shuffled`` and ``_over_harmless``. Columns
    ``controls_used`` and ``stopped`` say how many random controls a row compares with, and why not all.
    """
    rows: list[Row] = []
    of_carrier = next((other for other in ran if other.direction == "carrier" and other.matches(entry)), entry)
    random = [other for other in ran if other.controls(entry)] if entry.direction not in RESIDUALS else []
    for name, after in found[entry].items():
        before = found[None][name]
        controls = [found[other][name] for other in random if name in found[other]]
        decisive = DECISIVE.get(name)
        used = sum(decisive in control for control in controls) if decisive else len(controls)
        extra: dict[str, Any] = {"controls_used": used, "stopped": stopped.get((of_carrier, name), "")} if controls else {}
        rows += effect_rows(name, before, after, controls, seed, **identity, **extra)
        if entry.direction != "carrier":
            continue
        rows += dose_rows(name, before, controls, **identity, **extra)
        for metric in [metric for metric in after if metric in before]:
            moves = [change(before[metric], control[metric]) for control in controls if metric in control]
            own = change(before[metric], after[metric])
            if moves and np.isfinite([own, *moves]).all():
                rows.append(row(name, f"{metric}_share_beaten", share_beaten(own, moves, planned), **identity, **extra))
        for direction in ESTIMATED:
            others = [found[other][name] for other in ran if other.direction == direction and other.matches(entry) and name in found[other]]
            rows += over_estimated_rows(name, after, others, direction, seed, **identity)
    return rows


def _prices(found: Found, carriers: Sequence[Planned], ran: Sequence[Planned], seed: int, status: str) -> list[Row]:
    """The price of moving refusal by every kind of intervention, over all of its doses."""
    rows: list[Row] = []
    for kind in dict.fromkeys(entry.intervention for entry in carriers):
        doses = [entry for entry in carriers if entry.intervention == kind]
        lines = []
        for draw in sorted({entry.draw for entry in ran if entry.direction == "random" and entry.draw is not None}):
            line = [other for entry in doses for other in ran if other.controls(entry) and other.draw == draw]
            # A control that was left out in some set has no curve.
            if len(line) == len(doses) and all(set(found[other]) >= {"direct", "audit"} & set(found[None]) for other in line):
                lines.append([found[other] for other in line])
        identity = {"intervention": kind, "direction": "carrier", "layer": doses[0].layer, "position": doses[0].position}
        own = [found[entry] for entry in doses]
        rows += price_rows(found[None], own, lines, [entry.strength for entry in doses], seed, **identity, carrier_status=status)
    return rows


def _read_rows(found: Mapping[str, Outcomes], baseline: bool, seed: int) -> list[Row]:
    """KL on safe prompts and likelihood of clean chat: means over prompts; ``perplexity`` is the exponential of the latter."""
    rows: list[Row] = []
    for name, values in found.items():
        for metric in [metric for metric in ("kl_first", "kl_mean", "nll") if metric in values]:
            known = values[metric][np.isfinite(values[metric])]
            if not known.size or (baseline and metric != "nll"):
                continue
            about = mean(known, seed)
            rows.append(row(name, metric, about))
            if metric == "nll":
                rows.append(row(name, "perplexity", Interval(math.exp(about.value), math.exp(about.low), math.exp(about.high), about.n)))
    return rows


def _identity(entry: Planned | None, status: str) -> dict[str, Any]:
    """The columns that tell an intervention from the others."""
    if entry is None:
        return {"intervention": "baseline", "carrier_status": status}
    named = ("intervention", "direction", "draw", "strength", "layer", "position", "change_norm")
    return {**{name: getattr(entry, name) for name in named}, "carrier_status": status}


def adaptive_items(behaviors: Sequence[Behavior], stressed: pd.DataFrame) -> list[Item]:
    """The strings that GCG and AutoDAN ended with on this very anchor, from the transcripts of its stress test, as items of their sets."""
    known = {behavior.id: behavior for behavior in behaviors}
    items: list[Item] = []
    for name in (GCG, AUTODAN) if len(stressed) else ():
        for found in final_strings(stressed, name).to_dict("records"):
            behavior = known[str(found["id"])]
            place = {"attack": str(found["attack"]), "placement": found["placement"]}
            items.append(Item(name, behavior.subset, behavior.id, behavior.request, behavior.reference, tail="adaptive", **place))
    return items


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Of every set at most ``count`` items, spread evenly over it: the same ones at every anchor."""
    chosen: list[Item] = []
    for name in dict.fromkeys(item.set for item in items):
        inside = [item for item in items if item.set == name]
        places = np.linspace(0, len(inside) - 1, min(count, len(inside))).round().astype(int)
        chosen += [inside[place] for place in places]
    return chosen

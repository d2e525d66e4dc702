"""The page: one HTML file with everything in it, which asks the network for nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from refgeo import __version__
from refgeo.config.schema import Study
from refgeo.report import beside, judges, methods
from refgeo.report.claim import Answer
from refgeo.report.claims_cause import decisive_panels
from refgeo.report.evidence import Evidence, Transcripts
from refgeo.report.figures import behavior, cause, frontier, geometry, projection, stress, transfer
from refgeo.report.figures.style import FONT, PALETTE, Panel
from refgeo.report.glyph import glyph
from refgeo.report.narrative import follow_up, headline
from refgeo.report.panels import Shown, dose_panels, figure_of, grouped, placed, split, twins
from refgeo.report.samples import samples
from refgeo.report.tables import Tables, arm_name, arm_order
from refgeo.report.transcripts import browse
from refgeo.study.layout import AnchorRef

SWITCHED_OFF = "Switched off in this study's configuration ({}=false)."
FIRST_CURVES = (
    "Fixed-source attack success",
    "Direct-request success",
    "Adaptive attack success",
    "Refusal of safe prompts",
    "Benign utility",
    "Harm recognition at equal suffix",
)
FIRST_DRIFT = ("Depth of the carrier", "Generated refusal without it", "Principal angle 3 to the reference")
"""What a reader sees at once; the other panels of the section are one click away."""
STAGES = {
    "floor": "judge floor",
    "agreement": "judge agreement",
    "judge_floor": "judge floor",
    "judge_agreement": "judge agreement",
    "transfer": "transfer of directions",
    "projection": "projection of attacked prompts",
    "replay": "replay of strings",
}
"""Kinds of stages whose name alone does not say what they are."""


def render(
    run: Path,
    study: Study,
    anchors: Sequence[AnchorRef],
    tables: Tables,
    evidence: Evidence,
    answers: Sequence[Answer],
    paper_answers: Sequence[Answer],
    transcripts: Transcripts,
    judge: judges.Trust,
) -> str:
    """The whole page as text. Everything from the run is escaped; scripts, styles and figure data are inlined."""
    arms = arm_order(study.train.arms)
    steps, seeds = (_measured(tables, column) for column in ("step", "seed"))
    taken: set[str] = set()
    every: list[Shown] = []

    def show(prefix: str, panels: Sequence[Panel | tuple[Panel, str]], off: str = "", *, steps: bool = True) -> list[Shown]:
        named = placed(prefix, _because(panels, off), arms, taken, steps=steps)
        every.extend(named)
        return named

    off = {"intervention": "" if study.intervention.enabled else SWITCHED_OFF.format("intervention.enabled")}
    off |= {name: "" if getattr(study.geometry, name) else SWITCHED_OFF.format(f"geometry.{name}") for name in ("transfer", "projection")}
    off["stress"] = "" if study.stress.enabled else SWITCHED_OFF.format("stress.enabled")
    references: dict[str, dict[int, int]] = {}
    for anchor in anchors:
        if anchor.is_reference:
            references.setdefault(anchor.arm, {})[anchor.seed] = anchor.step
    costs = methods.stage_costs(run)
    compared = [beside.compare(tables, arm, study.anchors.steps, references.get(arm, {})) for arm in arms]
    frontiers = show("frontier", twins(frontier.frontier, tables), off["stress"])
    curves = show("curve", twins(lambda given: judges.beside_scores(behavior.curves(given), judge), tables))
    subsets, tails = show("subset", twins(behavior.subsets, tables)), show("tails", behavior.tails(tables), steps=False)
    maps, drift = show("map", geometry.maps(tables)), show("drift", geometry.drift(tables))
    transfers = show("transfer", transfer.matrices(tables), off["transfer"])
    shifts, planes = (
        show(name, make(tables), off["projection"]) for name, make in (("shift", projection.shifts), ("plane", projection.planes))
    )
    effects, doses = show("effect", cause.effects(tables), off["intervention"]), dose_panels(tables, arms, taken)
    attacks = show("attack", twins(stress.attacks, tables), off["stress"])
    every += doses
    decisive = decisive_panels(evidence)
    browser = browse(anchors, transcripts) if study.report.transcripts == "hidden" else None
    template = _environment().get_template("index.html.j2")
    return template.render(
        study=study,
        version=__version__,
        seeds=study.train.seeds,
        steps=steps,
        measured_seeds=seeds,
        arms=arms,
        headline=headline(evidence),
        sentences=follow_up(evidence, answers),
        answers=[
            (one, glyph(one.decisive), theirs, figure_of(one.claim.id, every, decisive))
            for one, theirs in zip(answers, paper_answers, strict=True)
        ],
        frontier=frontiers,
        curves=split(curves, FIRST_CURVES),
        subsets=subsets,
        tails=tails,
        scale=geometry.scale_words(tables),
        maps=maps,
        drift=split(drift, FIRST_DRIFT),
        transfers=transfers,
        shifts=shifts,
        planes=planes,
        plane_key=projection.KEY,
        effects=grouped(effects),
        doses=grouped(doses),
        attacks=_by_question(attacks),
        has_gated=any(one.count for one in every),
        comparisons=judges.beside_paper(compared, judge),
        judge=judge,
        interventions=beside.interventions(tables),
        paper_rank=beside.effective_rank_range(),
        samples=samples(anchors, transcripts) if study.report.transcripts == "hidden" else None,
        browser=browser,
        stages=STAGES,
        settings=_by_section(methods.settings(study)),
        data=methods.data_lines(run),
        costs=costs,
        totals=methods.totals(costs),
        versions=methods.versions(costs),
        duration=methods.duration,
        arm_name=arm_name,
        palette=PALETTE,
        font=FONT,
        plotly=Markup(get_plotlyjs()),  # the library's own script, no data of the run
        style=Markup(_shipped("style.css")),  # a file of this package
        script=Markup("\n".join(_shipped(name) for name in ("page.js", "controls.js", "browser.js"))),  # files of this package
        figures=Markup(_specs(every)),  # ``escape_json`` escaped it
        facts=Markup(embed(_facts(arms, steps, seeds))),  # ``embed`` escapes
        completions=Markup(embed(browser.data() if browser is not None else None)),  # ``embed`` escapes
        swap=Markup(embed(dict(PALETTE.values()))),  # ``embed`` escapes
    )


def embed(value: object) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or open a comment."""
    return escape_json(json.dumps(value, ensure_ascii=False, allow_nan=False))


def escape_json(text: str) -> str:
    """Replace the characters that mean something to an HTML parser by their JSON escapes."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _because(panels: Sequence[Panel | tuple[Panel, str]], words: str) -> list[tuple[Panel, str]]:
    """The same panels with their counts; those without a figure say ``words``, if there are any."""
    pairs = [(one, "") if isinstance(one, Panel) else one for one in panels]
    return [(replace(panel, missing=words) if words and panel.figure is None else panel, count) for panel, count in pairs]


def _specs(shown: Sequence[Shown]) -> str:
    """The figures' data as one JSON object by name."""
    known = [(one.name, one.panel.figure) for one in shown if one.panel.figure is not None]
    return "{" + ",".join(f"{json.dumps(name)}:{escape_json(figure.to_json())}" for name, figure in known) + "}"


def _by_question(attacks: Sequence[Shown]) -> tuple[list[Shown], list[Shown]]:
    """How success moves over training first; what it costs and whether strings carry over one click away."""
    first = [one for one in attacks if one.panel.title.endswith("three ways to ask") or one.panel.title.startswith("Frozen minus")]
    return first, [one for one in attacks if one not in first]


def _measured(tables: Tables, column: str) -> list[int]:
    """The steps or seeds of which there is anything to show."""
    return sorted(
        {int(value) for table in (tables.behavior, tables.geometry, tables.stress, tables.scan) for value in table[column].unique()}
    )


def _facts(arms: Sequence[str], steps: Sequence[int], seeds: Sequence[int]) -> dict[str, object]:
    """What the switches offer, and which colors belong to which arm."""
    inks = {arm: [light for name, (light, _) in PALETTE.items() if name.split("-")[0] == arm and arm != "other"] for arm in arms}
    return {
        "steps": list(steps),
        "seeds": list(seeds),
        "arms": {arm: {"name": arm_name(arm), "colors": inks[arm]} for arm in arms},
        "ink": {name: PALETTE[name][0] for name in ("ink", "soft", "faint", "mark", "raised")},
    }


def _by_section(settings: Sequence[methods.Setting]) -> Mapping[str, list[methods.Setting]]:
    sections: dict[str, list[methods.Setting]] = {}
    for setting in settings:
        head = setting.path.split(".")[0] if "." in setting.path else "study"
        sections.setdefault(head, []).append(setting)
    return sections


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("refgeo.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = lambda value: f"{value:,.0f}"
    environment.tests["number_in_words"] = lambda fragment: not isinstance(fragment, str)
    return environment


def _shipped(name: str) -> str:
    environment: Any = _environment()
    return str(environment.loader.get_source(environment, name)[0])

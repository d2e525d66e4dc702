"""Panels in their place on the page: a name to link to, what they show, and a twin that counts nonsense as failure of an attack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType

import pandas as pd

from refgeo.report.figures import doses
from refgeo.report.figures.style import Panel, slug
from refgeo.report.tables import Tables, arm_name

GATED = "_gated"
RAW_WORDS, GATED_WORDS = "raw", "gated"
START = "The start"
CLAIM_PANELS = {
    "C1": "curve-fixed-source-attack-success",
    "C2": "curve-refusal-of-safe-prompts",
    "C3": "curve-benign-utility",
    "C4": "frontier-useful-and-robust-to-the-frozen-attack",
    "C5": "curve-fixed-source-attack-success",
    "C6": "attack-r2d2-three-ways-to-ask",
    "C7": "drift-depth-of-the-carrier",
    "C8": "drift-depth-of-the-carrier",
    "C9": "drift-effective-rank-raw",
    "C10": "drift-principal-angle-3-to-the-reference",
    "C11": "effect-removing-the-direction",
    "C12": "effect-removing-the-direction-benign-utility-0-to-2",
    "C13": "curve-harm-recognition-at-equal-suffix",
    "C14": "curve-degenerate-under-the-fixed-attack",
}
"""The panel that shows what a claim is about: the first whose name begins so."""


@dataclass(frozen=True)
class Shown:
    """A panel with its name on the page and what the page's switches may look at.

    ``arm``, ``seed``, ``step``: the only ones that the panel shows, empty for several. ``count``: ``raw`` or ``gated`` where the
    panel has a twin. ``only_then``: stands in for another panel when its step is chosen, and is not shown among all steps.
    """

    name: str
    panel: Panel
    arm: str = ""
    seed: str = ""
    step: str = ""
    count: str = ""
    only_then: bool = False


def gated(tables: Tables) -> Tables:
    """The same tables with every success rate that exists gated (degenerate completions are failures) in the place of the raw one."""
    return tables._replace(behavior=_swapped(tables.behavior), stress=_swapped(tables.stress))


def twins(make: Callable[[Tables], Sequence[Panel]], tables: Tables) -> list[tuple[Panel, str]]:
    """What ``make`` draws, each panel followed by its gated twin where that differs; the word says which of the two it is."""
    other = {(panel.group, panel.title): panel for panel in make(gated(tables))}
    found: list[tuple[Panel, str]] = []
    for panel in make(tables):
        twin = other.get((panel.group, panel.title))
        if panel.figure is None or twin is None or twin.figure is None or twin.figure.to_json() == panel.figure.to_json():
            found.append((panel, ""))
        else:
            found += [(panel, RAW_WORDS), (replace(twin, caption=f"{twin.caption} Nonsense counts as failure.".strip()), GATED_WORDS)]
    return found


def placed(prefix: str, panels: Sequence[tuple[Panel, str]], arms: Sequence[str], taken: set[str], *, steps: bool = True) -> list[Shown]:
    """Panels with unique names and their places, read off titles and groups. ``steps``: whether the slider picks among them."""
    return [_placed(prefix, panel, count, arms, taken, steps=steps) for panel, count in panels]


def dose_panels(tables: Tables, arms: Sequence[str], taken: set[str]) -> list[Shown]:
    """Dose curves and trade-offs at the last anchor of each arm, and at each earlier one for the slider to choose."""
    last = placed("dose", _plain([*doses.curves(tables), *doses.tradeoffs(tables)]), arms, taken)
    whole = tables.intervention
    steps = sorted({int(step) for step in whole["step"]} - {0})
    shown = [replace(one, step=str(steps[-1])) for one in last] if steps else last
    for step in steps[:-1]:
        there = tables._replace(intervention=whole[whole["step"] == step])
        panels = _plain([*doses.curves(there), *doses.tradeoffs(there)])
        shown += [replace(one, step=str(step), only_then=True) for one in placed(f"dose-{step}", panels, arms, taken)]
    return sorted(shown, key=lambda one: _first(shown, one.panel.group))


def grouped(shown: Sequence[Shown]) -> list[tuple[str, list[Shown]]]:
    """Neighbors of one group together, under its name."""
    return [(name, list(group)) for name, group in groupby(shown, key=lambda one: one.panel.group)]


def split(shown: Sequence[Shown], titles: Sequence[str]) -> tuple[list[Shown], list[Shown]]:
    """Panels with one of these titles, in that order, and the rest; a missing figure does not take the place of one."""
    first = [one for title in titles for one in shown if one.panel.title == title]
    return first, [one for one in shown if one not in first]


def figure_of(claim: str, shown: Sequence[Shown], decisive: Mapping[str, str] = MappingProxyType({})) -> Shown | None:
    """The panel that shows what a claim is about; None where this page has none. ``decisive``: of claims that choose what they look at."""
    begins = decisive.get(claim, CLAIM_PANELS.get(claim))
    return next((one for one in shown if begins is not None and one.name.startswith(begins)), None)


def _placed(prefix: str, panel: Panel, count: str, arms: Sequence[str], taken: set[str], *, steps: bool) -> Shown:
    wanted = slug(f"{prefix} {panel.group} {panel.title}" + (f" {count}" if count == GATED_WORDS else ""))
    name = next(one for one in _numbered(wanted) if one not in taken)
    taken.add(name)
    step = re.search(r" at step (\d+)$", panel.title)
    arm = next((arm for arm in arms if re.match(rf"{re.escape(arm_name(arm))}(?:[:,]| at step )", panel.title)), "")
    seed = re.fullmatch(r"seed (\d+)", panel.group)
    at = "0" if panel.title == START else step.group(1) if step else ""
    return Shown(name, panel, arm, seed.group(1) if seed else "", at if steps else "", count)


def _numbered(name: str) -> Iterator[str]:
    yield name
    place = 2
    while True:
        yield f"{name}-{place}"
        place += 1


def _plain(panels: Sequence[Panel]) -> list[tuple[Panel, str]]:
    return [(panel, "") for panel in panels]


def _first(shown: Sequence[Shown], group: str) -> int:
    return next(place for place, one in enumerate(shown) if one.panel.group == group)


def _swapped(table: pd.DataFrame) -> pd.DataFrame:
    metrics = table["metric"].astype(str)
    is_gated = metrics.str.endswith(GATED)
    plain = metrics.str.removesuffix(GATED)
    kept = is_gated | ~plain.isin(set(plain[is_gated]))
    return table[kept].assign(metric=plain[kept])

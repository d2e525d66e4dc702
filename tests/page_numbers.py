"""The numbers that a person reads on a page, and the cells of its tables that they come from.

A number is read together with what stands beside it (interval, sample size, seeds) and, where the words say so, with its arm and step:
alone, any two digits are the digits of some cell. Four derivations are known: percent; 1 - success as robustness; a random direction's
change as its level minus the baseline's of the same seed; a mean of points. All else has to be a cell.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from refgeo.report.rules import number, percent
from refgeo.report.tables import ARM_NAMES

N = r"(?:\u2212?\d+(?:\.\d+)?%?)"
ESTIMATE = re.compile(
    rf"(?<![\w.]){N}(?: \[{N}, {N}\])?(?:,? \(?n = \d+)?(?:, (?P<seeds>\d+) seeds?)?"
    rf"(?:,? ?(?:seeds )?from {N} to {N})?(?:, within a seed \[{N}, {N}\])?"
)
PLACE = re.compile(r"(?P<arm>R2D2|SFT)(?: (?!start|step|at)[a-z]+)?(?:,| at)?(?: step)? (?P<step>start|\d+)(?![\d.])")
VOID = {"meta", "br", "link", "input", "img", "hr"}


class Printed(NamedTuple):
    """A number as it stands on the page: its digits, those beside it, and where that is."""

    where: str
    text: str
    digits: tuple[str, ...]
    n: str = ""
    arm: str = ""
    step: str = ""
    value: float = math.nan
    """The exact value of a point that is drawn."""


class Element:
    """A part of a page."""

    def __init__(self, tag: str, attrs: dict[str, str | None]) -> None:
        self.tag, self.attrs = tag, attrs
        self.parts: list[Element | str] = []

    def find(self, tag: str, **wanted: str) -> Iterator[Element]:
        """All parts of this tag, at any depth, whose attributes hold these words."""
        for part in self.parts:
            if isinstance(part, Element):
                if part.tag == tag and all(value in (part.attrs.get(key.rstrip("_")) or "").split() for key, value in wanted.items()):
                    yield part
                yield from part.find(tag, **wanted)

    @property
    def text(self) -> str:
        """What is written in it."""
        return " ".join("".join(part if isinstance(part, str) else f" {part.text} " for part in self.parts).split())


class Tree(HTMLParser):
    """A page as elements."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("page", {})
        self._open = [self.root]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, dict(attrs))
        self._open[-1].parts.append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        self._open[-1].parts.append(data)


def estimates(where: str, text: str, place: str = "") -> Iterator[Printed]:
    """Every estimate in a text: numbers with an interval, a sample size, a percent sign or decimals. ``place``: whose they are."""
    at = PLACE.search(place)
    arm = "" if at is None else next(key for key, name in ARM_NAMES.items() if name == at["arm"])
    step = "" if at is None else at["step"].replace("start", "0")
    text = re.sub(rf"({N}) to ({N}) \(mean ({N})(, n = \d+)\)", r"\3 [\1, \2]\4", text)  # one way of the page to write an interval
    for found in ESTIMATE.finditer(re.sub(rf"dose {N}", "", text)):
        body = re.split(r",? \(?n =", found[0])[0]
        n = re.search(r"n = (\d+)", found[0])
        digits = tuple(re.findall(N, re.sub(r",? ?\(?n = \d+|\d+ seeds?", "", found[0])))
        if n or re.search(r"[\[.%]", body):
            yield Printed(where, found[0], digits, n[1] if n else "", arm, step)


def target(text: str) -> str:
    """Of a text that names two anchors the part about the second: where a direction or a string was tried."""
    return re.split(r"applied to|, on ", text)[-1]


def shown(page: str) -> list[Printed]:
    """All that is collected: headline and sentences, the ledger, the comparison with the paper, every table, every figure."""
    root = Tree(page).root
    found: list[Printed] = []
    for tag, kind in (("h1", ""), ("p", "lead")):
        for one in root.find(tag, **({"class_": kind} if kind else {})):
            for part in one.find("span", class_="figure"):
                digits = tuple(re.findall(N, re.sub(r",? ?n = \d+", "", part.text)))
                n = re.search(r"n = (\d+)", part.text)
                found.append(Printed(tag, part.text, digits, n[1] if n else ""))
    for item in (one for ledger in root.find("ol", class_="ledger") for one in ledger.find("li")):
        for part in item.find("p"):
            found += [one for one in estimates(f"claim {item.attrs['id']}", part.text) if one.n or "[" in one.text]
    for table in root.find("table"):
        if "settings" in (table.attrs.get("class") or ""):
            continue
        found += list(_compared(table) if "beside" in (table.attrs.get("class") or "") else _tabled(table))
    for panel in root.find("figure", class_="panel"):
        for caption in panel.find("figcaption"):
            found += [one for one in estimates(f"caption of {panel.attrs['id']}", caption.text) if one.n]
    specs = next(one.text for one in root.find("script", id="figures"))
    for name, spec in json.loads(specs).items():
        found += list(_drawn(name, spec))
    return found


def _tabled(table: Element) -> Iterator[Printed]:
    head = " ".join(one.text for one in table.find("thead"))
    if re.search("peak memory|how many$|time together|how many done", head):
        return  # what the run cost and read: stage.json and data.csv, no tables of the report
    for body in table.find("tbody"):
        for row in body.find("tr"):
            cells = [part.text for part in row.parts if isinstance(part, Element)]
            place = cells[1] if re.match("direction of|found at", head) else " ".join(cells[:2])
            for cell in cells[1:]:
                yield from estimates(f"table: {head}", cell, "" if cells[0] == "paper" else place)


def _compared(table: Element) -> Iterator[Printed]:
    for row in (one for body in table.find("tbody") for one in body.find("tr")):
        head = " ".join(part.text for part in row.parts if isinstance(part, Element) and part.tag == "th")
        for cell in row.parts:
            if isinstance(cell, Element) and cell.tag == "td" and re.match(N, cell.text):
                text = re.sub(r",? ?seeds (?=from)", ", ", cell.text)
                yield from estimates(f"beside the paper: {head}", text)


def _drawn(name: str, spec: dict[str, Any]) -> Iterator[Printed]:
    """What a pointer reads off a figure, each number with the coordinate that draws it; one that is drawn elsewhere has no cell."""
    for trace in spec["data"]:
        texts = trace.get("hovertext", trace.get("text"))
        flat = [one for row in texts for one in (row if isinstance(row, list) else [row])] if isinstance(texts, list) else []
        z = [one for row in trace.get("z", []) for one in row]
        for index, text in enumerate(flat):
            words = str(text).replace("<br>", ", ")
            told = list(estimates(f"figure {name}", str(text).replace("<br>", "; "), target(words)))
            if trace["type"] == "heatmap":
                told[:1] = [one._replace(value=math.inf if z[index] is None else z[index]) for one in told[:1]]
            elif not name.startswith("plane"):
                at = [float(one) for axis in "xy" if isinstance(one := trace[axis][index], int | float)]
                near = [next((value for value in at if number(value) == one.digits[0]), math.nan) for one in told]
                both = name.startswith("frontier") or "costs-in-utility" in name  # the others have a step, a dose or a row on one axis
                drawn = sum(math.isfinite(value) for value in near) >= (2 if both else 1)
                told = [one._replace(value=value if drawn else math.inf) for one, value in zip(told, near, strict=True)]
            yield from told


class Cells:
    """The tables of a report as an index from printed digits to rows."""

    def __init__(self, folder: Path) -> None:
        self._rows: dict[str, list[tuple[float, float, float, str, str, str, tuple[str, ...]]]] = {}
        tables = {file.stem: pd.read_csv(file, low_memory=False) for file in sorted(folder.glob("*.csv"))}
        for name, table in tables.items():
            self._take(name, table)
        self._derive(tables["intervention"])

    def _take(self, name: str, table: pd.DataFrame) -> None:
        main = {"over_seeds": "mean", "claims": "effect", "paper_claims": "effect"}.get(name, "value")
        columns = {
            "judge_floor": ("harmful", "score", "unscored", "refused"),
            "judge_agreement": ("rate", "kappa"),
            "judge_unscored": ("unscored", "value"),
        }
        for column in columns.get(name, (main,)):
            if column not in table:
                if name == "scan":
                    for value in table["s_total"]:
                        self._add(float(value), math.nan, math.nan, "", "", "")
                continue
            low, high = (f"{column}_low", f"{column}_high") if f"{column}_low" in table else ("low", "high")
            wanted = [column, low, high, "n", "arm", "step", "least", "most", "within_low", "within_high"]
            known = {key: table[key] if key in table else pd.Series([math.nan] * len(table)) for key in wanted}
            for value, least, most, n, arm, step, *spread in zip(*known.values(), strict=True):
                size = "" if pd.isna(n) else str(int(n))
                where = ("" if pd.isna(arm) else str(arm), "" if pd.isna(step) else str(int(step)))
                self._add(value, least, most, size, *where, tuple(number(float(one)) for one in spread if pd.notna(one)))
                self._add(1 - value, 1 - most, 1 - least, size, *where)

    def _derive(self, table: pd.DataFrame) -> None:
        keys = ["arm", "seed", "step", "set", "metric"]
        table = table[table["subset"] == "all"]
        base = table[table["intervention"] == "baseline"].set_index([*keys])["value"]
        for row in table[(table["intervention"] != "baseline") & ~table["metric"].str.contains("_delta|_percentile|_price")].itertuples():
            before = base.get((row.arm, row.seed, row.step, row.set, row.metric))
            if before is not None:
                self._add(float(str(row.value)) - float(before), math.nan, math.nan, "", str(row.arm), str(row.step))

    def _add(self, value: float, low: float, high: float, n: str, arm: str, step: str, spread: tuple[str, ...] = ()) -> None:
        if math.isfinite(value):
            for text in {number(value), percent(value), f"{value:.0%}", f"{value:.1%}".replace("-", "\u2212")}:
                self._rows.setdefault(text, []).append((value, low, high, n, arm, step, spread))

    def holds(self, one: Printed) -> bool:
        """Whether a row has all that is printed together."""
        return any(self._same(one, *row) for row in self._rows.get(one.digits[0], []))

    @staticmethod
    def _same(one: Printed, value: float, low: float, high: float, n: str, arm: str, step: str, spread: tuple[str, ...]) -> bool:
        if one.n and one.n != n:
            return False
        if (one.step and step and one.step != step) or (one.arm and arm and one.arm != arm and one.step != "0"):  # all arms share the start
            return False
        if not math.isnan(one.value) and not abs(one.value - value) < 1e-9:
            return False
        is_rate = one.digits[0].endswith("%")
        ends = tuple(percent(end) for end in (max(low, 0.0), min(high, 1.0))) if is_rate else (number(low), number(high))
        rest = one.digits[1:]
        return rest in ((), ends, spread[:2], spread, (*ends, *spread[:2]), (*ends, *spread))

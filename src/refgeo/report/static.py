"""The report's figures as files for a paper, and its tables as CSV, Parquet and LaTeX.

What is drawn is read from the page itself, so that a figure that the report shows is here too, with the same words.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from refgeo.config.schema import Study
from refgeo.errors import ConfigError
from refgeo.report.build import INDEX, build_report
from refgeo.report.claims import CLAIMS
from refgeo.report.claims_added import load_claims
from refgeo.report.drawing import Drawer, Drawing
from refgeo.report.figures import style
from refgeo.report.figures.style import PALETTE
from refgeo.report.latex import behavior_table, ledger_table, stress_table
from refgeo.report.tables import collect
from refgeo.study.layout import anchors

WIDTHS = {False: 520, True: 960}
"""Pixels of a figure, and of one that takes the whole width of the page."""
SCALE = {"png": 3}
_SIGNED = re.compile(r"[+\u2212](?=\d)")
HEADINGS = ("h2", "h3", "h4", "h5")


class Figure(NamedTuple):
    """One figure of the page: the name of its file, its words, what plotly draws (light colors), and where on the page it stands."""

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    wide: bool
    place: str = ""

    @property
    def words(self) -> str:
        """What a caption says: ``Adding the direction, strength −1. Benign utility. Line: ...``."""
        return " ".join(part if part.endswith(".") else f"{part}." for part in (self.place, self.title, self.caption) if part)


@contextmanager
def fresh_report(run: Path, study: Study) -> Iterator[Path]:
    """The report of a run as it would be made now, in a folder that goes away. Raises ``StoreError`` for tables that cannot be read."""
    with tempfile.TemporaryDirectory() as place:
        build_report(run, study, Path(place))
        yield Path(place)


def write_figures(
    report: Path,
    out: Path,
    kind: str,
    dark: bool = False,
    only: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw the figures of a report's folder as ``out/<name>.<kind>`` (pdf, svg or png); ``out/captions.md`` says what they show.

    The background is white, or the page's own where ``dark``. ``only``: figures whose name begins with one of these words, instead of
    all. ``progress(done, total)`` is called when a figure is done; its file is whole by then. Returns the files. Raises ``ConfigError``
    when kaleido or Chrome is missing, or no name begins so (nothing is written then), and ``StoreError`` when figures were not drawn.
    """
    drawer = Drawer()
    every = figures((report / INDEX).read_text(encoding="utf-8"))
    found = chosen(every, only)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{one.name}.{kind}" for one in found]
    drawings = []
    for one, file in zip(found, files, strict=True):
        spec = recolored(one.spec, dark)
        spec["layout"] = roomy(spec["layout"]) | {"paper_bgcolor": PALETTE["paper"][1] if dark else "#ffffff"}
        size = {"width": WIDTHS[one.wide], "height": int(spec["layout"].get("height", 260)), "scale": SCALE.get(kind, 1)}
        drawings.append(Drawing(file, spec, {"format": kind, **size}))
    try:
        drawer.draw(drawings, progress)
    finally:
        there = {file.stem for file in out.glob(f"*.{kind}")}
        lines = [f"- **{one.name}.{kind}**: {one.words}\n" for one in every if one.name in there]
        if lines:
            (out / "captions.md").write_text("".join(lines), encoding="utf-8")
    return files


def chosen(found: Sequence[Figure], only: Sequence[str]) -> list[Figure]:
    """The figures whose name begins with one of these words; all without any. Raises ``ConfigError`` for a word that begins none."""
    for word in only:
        if not any(one.name.startswith(word) for one in found):
            known = ", ".join(dict.fromkeys(one.name.split("-")[0] for one in found))
            raise ConfigError(f"No figure of this report has a name that begins with '{word}'", fix=f"Names begin with one of: {known}")
    return [one for one in found if not only or one.name.startswith(tuple(only))]


def write_tables(report: Path, run: Path, study: Study, out: Path) -> list[Path]:
    """Write every table of a report's folder under ``out/tables`` as CSV and Parquet; behavior, stress and the ledger as LaTeX too."""
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted((report / "tables").glob("*.csv")):
        (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        table = pd.read_csv(source, low_memory=False, keep_default_na=False, na_values=[""])
        table.to_parquet(folder / f"{source.stem}.parquet", index=False)
        written += [folder / source.name, folder / f"{source.stem}.parquet"]
    answers = pd.read_csv(report / "tables" / "claims.csv")
    tables = collect(anchors(run, study))
    added = () if study.report.claims is None else load_claims(study.report.claims)
    statements = {claim.id: claim.statement for claim in (*CLAIMS, *added)}
    parts = {
        "behavior": behavior_table(tables.behavior),
        "stress": stress_table(tables.stress),
        "ledger": ledger_table(answers, statements),
    }
    for name, text in parts.items():
        if text:
            (folder / f"{name}.tex").write_text(text, encoding="utf-8")
            written.append(folder / f"{name}.tex")
    return written


def figures(page: str) -> list[Figure]:
    """Every figure of a page that ``report.page.render`` made, in its order, under unique file names that say what it shows."""
    reader = _Page(page)
    specs = json.loads(reader.data)
    taken: set[str] = set()
    found = []
    for name, title, caption, wide, place in reader.shown:
        words = slug(f"{place} {title}" if _SIGNED.search(place) else title)
        told = name if words in name else f"{name.split('-')[0]}-{words}"
        unique = next(one for one in _numbered(told) if one not in taken)
        taken.add(unique)
        found.append(Figure(unique, title, caption, specs[name], wide, place))
    return found


def recolored(spec: dict[str, Any], dark: bool) -> dict[str, Any]:
    """The same figure in the colors of one theme; every color of the palette is replaced, wherever it stands."""
    swap = dict(PALETTE.values()) if dark else {}

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return swap.get(value, value) if isinstance(value, str) else value

    return {key: walk(value) for key, value in spec.items()}


def roomy(layout: Mapping[str, Any]) -> dict[str, Any]:
    """The same layout with margins that grow where the words of an axis are wider than on the page; fonts differ between machines."""
    axes = {name: {**value, "automargin": True} for name, value in layout.items() if re.fullmatch(r"[xy]axis\d*", name)}
    return {**layout, **axes}


def slug(text: str) -> str:
    """``R2D2, strength −1`` -> ``r2d2-strength-minus-1``: what a file name can hold anywhere."""
    return style.slug(_SIGNED.sub(lambda sign: " plus " if sign.group() == "+" else " minus ", text))


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


class _Page(HTMLParser):
    """The panels of a page: name, title, caption, whether it is wide, and its place; ``data``: what plotly draws.

    The place is what a reader of the page sees around a panel: the heading of a group of smaller panels, and the step and the seed.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shown: list[tuple[str, str, str, bool, str]] = []
        self.data = "{}"
        self._wide = self._inside = self._captioned = self._reading = self._grouped = False
        self._where = ""
        self._told: list[str] = []
        self._words = {"title": "", "caption": "", "group": ""}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where the words belong; a figure's own element comes after its caption."""
        told = dict(attrs)
        if tag == "figure":
            self._inside, self._wide = True, "wide" in (told.get("class") or "").split()
            self._words |= {"title": "", "caption": ""}
            self._told = [f"{word} {value}" for word in ("step", "seed") if (value := told.get(f"data-{word}"))]
        elif tag == "figcaption":
            self._captioned = True
        elif self._captioned and tag in HEADINGS:
            self._where, self._grouped = "title", tag == "h4"
        elif self._captioned and tag == "p":
            self._where = "caption"
        elif not self._inside and (tag in HEADINGS or tag == "summary"):
            self._where, self._words["group"] = "group", ""
        elif tag == "script":
            self._reading = told.get("id") == "figures"
        name = told.get("data-figure")
        if name:
            title = self._words["title"].strip()
            group = self._words["group"].strip() if self._grouped else ""
            place = ", ".join(part for part in (group, *(one for one in self._told if one not in title)) if part)
            self.shown.append((name, title, self._words["caption"].strip(), self._wide, place))

    def handle_endtag(self, tag: str) -> None:
        """Words outside of a caption are none of a figure's."""
        if tag in HEADINGS or tag in ("p", "summary"):
            self._where = ""
        elif tag == "figcaption":
            self._captioned = False
        elif tag == "figure":
            self._inside = False
        elif tag == "script":
            self._reading = False

    def handle_data(self, data: str) -> None:
        """Collect."""
        if self._reading:
            self.data = data
        elif self._where:
            self._words[self._where] += data

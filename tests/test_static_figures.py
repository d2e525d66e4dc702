"""Figures and tables for papers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest

from fabricated_run import fabricate, make_study
from refgeo.errors import ConfigError, StoreError
from refgeo.report import static
from refgeo.report.drawing import Drawing
from refgeo.report.figures.style import PALETTE
from refgeo.report.latex import behavior_table, escape, ledger_table, stress_table, tabular
from refgeo.report.static import Figure, figures, fresh_report, recolored, slug, write_figures, write_tables
from refgeo.report.tables import collect
from refgeo.study.layout import anchors

STUDY = make_study(steps=(50, 500))
CHROME = next((path for name in ("google-chrome", "chromium", "chromium-browser", "chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fabricate(folder, STUDY, count=16)
    return folder


@pytest.fixture(scope="module")
def report(run: Path) -> Iterator[Path]:
    with fresh_report(run, STUDY) as folder:
        yield folder


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return (report / "index.html").read_text(encoding="utf-8")


def test_every_figure_of_the_page_is_there_with_its_words(page: str) -> None:
    found = figures(page)
    assert len(found) == len(re.findall(r"data-figure=", page)) > 40
    assert all(one.title and one.spec["data"] for one in found)
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert re.fullmatch(r"[a-z0-9-]+", one.name)
        assert slug(one.title) in one.name
    safe = next(one for one in found if one.title == "Refusal of safe prompts")
    assert safe.name.endswith("refusal-of-safe-prompts")
    assert safe.caption


def test_captions_are_the_words_and_not_the_markup() -> None:
    page = (
        '<figure class="panel wide"><figcaption><h3>A &lt; B</h3><p>One &amp; two.</p></figcaption>'
        '<div data-figure="curve-0"></div><p>Not this.</p></figure>'
        '<figure class="panel"><figcaption><h4>A &lt; B</h4></figcaption><div data-figure="curve-1"></div></figure>'
        '<script id="figures" type="application/json">{"curve-0": {"data": [1]}, "curve-1": {"data": [2]}}</script>'
    )
    assert figures(page) == [
        Figure("curve-a-b", "A < B", "One & two.", {"data": [1]}, True),
        Figure("curve-a-b-2", "A < B", "", {"data": [2]}, False),
    ]


def test_no_light_color_is_left_in_the_dark(page: str) -> None:
    light, dark = ({pair[side] for pair in PALETTE.values()} for side in (0, 1))
    for one in figures(page):
        text = json.dumps(recolored(one.spec, dark=True))
        assert not any(f'"{color}"' in text for color in light - dark)
        assert recolored(one.spec, dark=False) == one.spec


def test_without_kaleido_nothing_is_written(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ConfigError, match="kaleido"):
        write_figures(report, tmp_path / "out", "svg")
    assert not (tmp_path / "out").exists()


class Pen:
    """Draws without a browser; breaks off after ``most`` figures."""

    most = 1000

    def draw(self, drawings: Sequence[Drawing], progress: Callable[[int, int], None] | None) -> None:
        for one in drawings[: self.most]:
            one.file.write_text(json.dumps(one.spec), encoding="utf-8")
        if len(drawings) > self.most:
            raise StoreError("The browser gave up")


def test_only_the_figures_asked_for_are_drawn(report: Path, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "Drawer", Pen)
    files = write_figures(report, tmp_path, "svg", only=("curve-refusal", "frontier"))
    assert [file.stem for file in files] == [one.name for one in figures(page) if one.name.startswith(("curve-refusal", "frontier"))]
    assert len(files) > 3
    with pytest.raises(ConfigError, match=r"begins with 'courve'.*frontier, curve"):
        write_figures(report, tmp_path, "svg", only=("courve",))


def test_an_interruption_leaves_captions_of_what_is_there(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "Drawer", Pen)
    monkeypatch.setattr(Pen, "most", 2)
    with pytest.raises(StoreError):
        write_figures(report, tmp_path, "svg")
    captions = (tmp_path / "captions.md").read_text(encoding="utf-8").splitlines()
    assert {line.split("**")[1] for line in captions} == {file.name for file in tmp_path.glob("*.svg")}
    assert len(captions) == 2


def test_axes_make_room_for_their_words(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "Drawer", Pen)
    for file in write_figures(report, tmp_path, "svg"):
        layout = json.loads(file.read_text(encoding="utf-8"))["layout"]
        assert layout["paper_bgcolor"] == "#ffffff"
        assert all(value["automargin"] for name, value in layout.items() if re.fullmatch(r"[xy]axis\d*", name))


def test_names_and_captions_tell_apart_what_a_sign_or_a_step_does() -> None:
    def shown(name: str, more: str = "") -> str:
        return f'<figure class="panel"{more}><figcaption><h4>ASR</h4><p>Bars.</p></figcaption><div data-figure="{name}"></div></figure>'

    page = (
        f"<details><summary>Adding, strength \u22121</summary>{shown('effect-adding-strength-1-asr')}</details>"
        f"<details><summary>Adding, strength +1</summary>{shown('effect-adding-strength-1-asr-2')}</details>"
        f"<details><summary>Dose</summary>{shown('dose-48-dose-asr', ' data-step=48 data-seed=7')}</details>"
        '<script id="figures" type="application/json">'
        '{"effect-adding-strength-1-asr": {}, "effect-adding-strength-1-asr-2": {}, "dose-48-dose-asr": {}}</script>'
    )
    found = figures(page)
    assert [one.name for one in found] == ["effect-adding-strength-minus-1-asr", "effect-adding-strength-plus-1-asr", "dose-48-dose-asr"]
    assert [one.words for one in found] == [
        "Adding, strength \u22121. ASR. Bars.",
        "Adding, strength +1. ASR. Bars.",
        "Dose, step 48, seed 7. ASR. Bars.",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_every_figure(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dark: bool) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if CHROME is None:
        pytest.skip("no Chrome or Chromium")
    monkeypatch.setenv("BROWSER_PATH", CHROME)
    few = static.figures
    monkeypatch.setattr(static, "figures", lambda page: few(page)[:3])
    files = write_figures(report, tmp_path, "svg", dark)
    assert len(files) == 3
    captions = (tmp_path / "captions.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("**")[1] for line in captions] == [file.name for file in files]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert "#141519" in text or "20, 21, 25" in text if dark else "255, 255, 255" in text or "#ffffff" in text


def test_tables_say_the_same_in_every_format(run: Path, report: Path, tmp_path: Path) -> None:
    files = write_tables(report, run, STUDY, tmp_path)
    assert {file.suffix for file in files} == {".csv", ".parquet", ".tex"}
    names = {file.stem for file in files}
    assert {"behavior", "geometry", "stress", "claims", "over_seeds", "ledger"} <= names
    for file in tmp_path.glob("tables/*.csv"):
        read = pd.read_csv(file, low_memory=False, keep_default_na=False, na_values=[""])
        left, right = (one.astype(object).where(one.notna(), None) for one in (read, pd.read_parquet(file.with_suffix(".parquet"))))
        pd.testing.assert_frame_equal(left, right)
    assert "none" in set(pd.read_parquet(tmp_path / "tables" / "behavior.parquet")["tail"])


def test_headline_tables_have_a_row_per_arm_and_step(run: Path) -> None:
    tables = collect(anchors(run, STUDY))
    for text in (behavior_table(tables.behavior), stress_table(tables.stress)):
        lines = text.splitlines()
        assert lines[1].startswith(r"\begin{tabular}{lr")
        assert (lines[2], lines[-2], lines[-1]) == (r"\toprule", r"\bottomrule", r"\end{tabular}")
        body = lines[5:-2]
        places = [line.split(" & ")[:2] for line in body]
        assert [place for place in places if place[1] in ("0", "50", "500")] == [
            [arm, step] for arm in ("R2D2", "SFT") for step in ("0", "50", "500")
        ]
        assert len({line.count(" & ") for line in [lines[3], *body]}) == 1
    assert behavior_table(tables.behavior.iloc[:0]) == ""


def test_nothing_in_a_cell_means_anything_to_latex() -> None:
    assert escape(r"50% of $x_1 & {y} #2 ~^\ ") == (r"50\% of \$x\_1 \& \{y\} \#2 \textasciitilde{}\textasciicircum{}\textbackslash{}")
    assert escape("\u22120.5") == "$-$0.5"
    assert tabular("l", ["a_b"], [["1 & 2"]], "About.").splitlines()[3:6] == [r"a\_b \\", r"\midrule", r"1 \& 2 \\"]


def test_the_ledger_shows_what_decided_and_a_dash_where_nothing_did() -> None:
    answers = pd.DataFrame(
        [
            {"claim": "C1", "verdict": "supported", "effect": 0.01, "low": 0.0, "high": 0.06, "n": 64, "note": ""},
            {"claim": "C2", "verdict": "undecided", "effect": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0, "note": ""},
        ]
    )
    body = ledger_table(answers, {"C1": "50% fall", "C2": "rises"}).splitlines()[5:7]
    assert body == [r"C1 & 50\% fall & supported & 0.010 [0.00, 0.060] & 64 \\", r"C2 & rises & undecided & -- & 0 \\"]

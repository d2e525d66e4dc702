"""The page: self-contained, safe, complete, and honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from fabricated_run import HOSTILE, fabricate, make_study
from refgeo.config.schema import ReportSettings
from refgeo.report.beside import ABSENT, compare, interventions
from refgeo.report.build import build_report
from refgeo.report.claims import CLAIMS
from refgeo.report.methods import duration, settings, stage_costs, totals
from refgeo.report.page import embed
from refgeo.report.samples import LONGEST, shorten
from refgeo.report.tables import collect
from refgeo.study.layout import anchors

STUDY = make_study(seeds=(1, 2), steps=(50, 500))
LONG_SCRIPT = 100_000


class Page(HTMLParser):
    """The parts of a page that matter here: tags with attributes, text outside of scripts and styles, scripts by id or order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self._open is None:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def data(self, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(next(text for attrs, text in self.scripts if attrs.get("id") == name))
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fabricate(folder, STUDY, count=32)
    return folder


@pytest.fixture(scope="module")
def index(run: Path) -> Path:
    return build_report(run, STUDY, run / "report")


@pytest.fixture(scope="module")
def page(index: Path) -> Page:
    return Page(index.read_text(encoding="utf-8"))


def test_the_files_that_others_build_on(run: Path, index: Path) -> None:
    assert index == run / "report" / "index.html"
    names = {file.name for file in (run / "report" / "tables").iterdir()}
    tables = {"behavior", "geometry", "intervention", "stress", "transfer", "projection", "points", "claims", "scan", "over_seeds"}
    tables |= {"parts", "paper", "paper_claims", "attack_cost", "judge_floor", "judge_unscored", "costs"}
    assert {f"{name}.csv" for name in tables} == names
    claims = pd.read_csv(run / "report" / "tables" / "claims.csv")
    assert {"claim", "verdict", "effect", "low", "high", "n", "note"} <= set(claims.columns)
    assert len(claims) == len(CLAIMS)


def test_the_page_asks_the_network_for_nothing(page: Page) -> None:
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    for tag, attrs in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "link", "img", "form"), tag
        assert "src" not in attrs
        assert "srcset" not in attrs
        assert tag != "a" or (attrs["href"] or "").startswith("#")
    own = [text for attrs, text in page.scripts if len(text) < LONG_SCRIPT and "type" not in attrs]
    assert own
    assert not any(re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", text) for text in own)


def test_styles_load_nothing(index: Path) -> None:
    style = index.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_small(index: Path) -> None:
    assert index.stat().st_size < 10_000_000


def test_plotly_is_there_once(page: Page) -> None:
    assert len([text for _, text in page.scripts if "plotly.js v" in text[:400]]) == 1
    assert len(page.scripts) == 6


def test_hostile_completions_are_words_and_nothing_else(page: Page) -> None:
    assert " ".join(HOSTILE.split()) in page.text
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.tags)
    assert not any("alert('x')" in text for attrs, text in page.scripts if "type" not in attrs and len(text) < LONG_SCRIPT)


def test_transcripts_hide_behind_a_click(index: Path) -> None:
    before = index.read_text(encoding="utf-8").split("onerror=alert")[0]
    assert before.rindex("<details") > before.rindex("</details>")


def test_transcripts_can_be_left_out(run: Path, tmp_path: Path) -> None:
    without = STUDY.model_copy(update={"report": ReportSettings(transcripts="none")})
    page = Page(build_report(run, without, tmp_path).read_text(encoding="utf-8"))
    whole = (tmp_path / "index.html").read_text(encoding="utf-8")
    for words in ("right to left", "do thing 0", "then do it again", "i can 't do that"):
        assert words not in whole
    assert page.data("completions") is None
    assert not any(attrs.get("id") == "transcripts" for _, attrs in page.tags)


def test_no_open_details_and_every_figure_is_described(page: Page) -> None:
    assert not any("open" in attrs for tag, attrs in page.tags if tag == "details")
    figures = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    known = page.data("figures")
    assert {attrs["data-figure"] for attrs in figures} == set(known)
    assert all(attrs["aria-label"] and attrs["role"] == "img" for attrs in figures)
    assert len(figures) > 40


def test_without_javascript_every_panel_is_there_to_see(page: Page) -> None:
    panels = [attrs for tag, attrs in page.tags if tag == "figure"]
    assert len(panels) > 60
    assert not any("hidden" in attrs for attrs in panels)
    assert any(tag == "noscript" for tag, _ in page.tags)


def test_the_switches_know_which_anchor_a_panel_shows(page: Page) -> None:
    panels = {str(attrs["id"]): attrs for tag, attrs in page.tags if tag == "figure"}
    shut = panels["map-seed-2-r2d2-at-step-50"]
    assert (shut["data-arm"], shut["data-seed"], shut["data-step"]) == ("r2d2", "2", "50")
    assert panels["map-seed-1-the-start"]["data-step"] == "0"
    assert "data-step" not in panels["curve-benign-utility"]
    assert page.data("facts")["steps"] == [0, 5, 30, 50, 500]
    doses = [attrs for name, attrs in panels.items() if name.startswith("dose-")]
    assert {attrs["data-step"] for attrs in doses if "data-only-then" in attrs} == {"5", "30", "50"}
    assert {attrs["data-step"] for attrs in doses if "data-only-then" not in attrs} == {"500"}


def test_success_is_shown_raw_and_gated(page: Page) -> None:
    counts = [attrs.get("data-count") for tag, attrs in page.tags if tag == "figure"]
    assert counts.count("raw") == counts.count("gated") > 0


def test_every_claim_links_to_the_figure_that_shows_it(page: Page) -> None:
    panels = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    assert len([attrs for tag, attrs in page.tags if tag == "a" and (attrs["href"] or "")[1:] in panels]) == len(CLAIMS)


def test_the_browser_says_how_much_it_shows(page: Page) -> None:
    rows = page.data("completions")["rows"]
    assert isinstance(rows, list)
    assert f"{len(rows):,} of " in page.text
    assert "at most 12 of a set at an anchor and seed" in page.text


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {(attrs["href"] or "")[1:] for tag, attrs in page.tags if tag == "a"} <= set(ids)


def test_what_can_be_clicked_can_be_reached_by_keyboard(page: Page) -> None:
    assert not any("onclick" in attrs for _, attrs in page.tags)
    scrolled = [attrs for _, attrs in page.tags if attrs.get("class") == "scroll"]
    assert scrolled
    assert all(attrs.get("tabindex") == "0" and attrs.get("aria-label") for attrs in scrolled)


def test_the_headline_says_it_in_numbers(page: Page) -> None:
    assert re.search(r"R2D2 drove fixed-source attack success from \d+% \d+% to \d+%, n = 32 to 0%", page.text)
    assert "of the safe prompts" in page.text
    assert f"Of {len(CLAIMS)} claims" in page.text


def test_the_score_of_a_canned_refusal_stands_beside_every_strongreject_number(page: Page) -> None:
    told = "a canned refusal scores 0.031 [0.021, 0.041], n = 16"
    assert page.text.count(told) >= 1 + 1 + 2  # the section, the curve, the comparison with the paper for each arm
    assert "How far the judge can be trusted" in page.text
    assert "harm stays unscored" in page.text  # the study of this run names no judge of harm
    assert any(attrs.get("href") == "#judge" for _, attrs in page.tags)


def test_every_claim_has_its_statement_verdict_and_rule(page: Page) -> None:
    for claim in CLAIMS:
        assert claim.statement in page.text
        assert " ".join(claim.rule.split()) in page.text
        assert any(attrs.get("id") == claim.id for _, attrs in page.tags)


def test_the_cost_of_every_kind_of_stage_is_told_in_words(page: Page) -> None:
    for words in ("transfer of directions", "projection of attacked prompts", "replay of strings", "judge floor"):
        assert words in page.text


def test_methods_hold_every_setting(page: Page) -> None:
    for setting in settings(STUDY):
        assert setting.path in page.text
        assert setting.value in page.text
    assert "train.r2d2.attack.topk" in page.text


def test_both_themes_cover_every_color(page: Page) -> None:
    swap = page.data("swap")
    assert swap["#1f5fa8"] == "#77aef2"


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    page = Page(build_report(tmp_path, STUDY, tmp_path / "report").read_text(encoding="utf-8"))
    assert "does not yet say what R2D2 did" in page.text
    assert "Not measured in this run" in page.text
    assert "No completions were stored" in page.text
    assert page.data("figures") == {}
    assert not any(attrs.get("id") in ("anchor", "browser") for _, attrs in page.tags)


def test_a_run_from_before_transfer_and_projection_has_a_page_that_says_so(run: Path, tmp_path: Path) -> None:
    older = tmp_path / "run"
    shutil.copytree(run, older, ignore=shutil.ignore_patterns("transfer", "projection", "report"))
    page = Page(build_report(older, STUDY, tmp_path / "out").read_text(encoding="utf-8"))
    for words in ("transfer.csv has no rows", "projection.csv has no rows of attacked_shift", "points.csv has no rows"):
        assert words in page.text
    assert "Depth of the carrier" in page.text
    off = STUDY.model_copy(update={"geometry": STUDY.geometry.model_copy(update={"transfer": False})})
    assert "geometry.transfer=false" in Page(build_report(older, off, tmp_path / "off").read_text(encoding="utf-8")).text


def test_a_missing_measure_is_explained_where_it_would_stand(run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "run"
    shutil.copytree(run, partial, ignore=shutil.ignore_patterns("stress", "intervention", "report"))
    page = Page(build_report(partial, STUDY, tmp_path / "out").read_text(encoding="utf-8"))
    assert "intervention.csv has no rows" in page.text
    assert "Fixed-source attack success" in page.text
    assert not any(str(name).startswith("effect-") for name in page.data("figures"))


def test_a_measure_switched_off_is_named_as_that(run: Path, tmp_path: Path) -> None:
    off = STUDY.model_copy(update={"stress": STUDY.stress.model_copy(update={"enabled": False})})
    partial = tmp_path / "run"
    shutil.copytree(run, partial, ignore=shutil.ignore_patterns("stress", "report"))
    page = Page(build_report(partial, off, tmp_path / "out").read_text(encoding="utf-8"))
    assert "stress.enabled=false" in page.text


def test_the_same_run_gives_the_same_page(run: Path, index: Path, tmp_path: Path) -> None:
    assert build_report(run, STUDY, tmp_path).read_bytes() == index.read_bytes()


def test_the_paper_stands_beside_the_run(run: Path) -> None:
    tables = collect(anchors(run, STUDY))
    found = compare(tables, "r2d2", STUDY.anchors.steps, {1: 30, 2: 50})
    assert found.paper_steps == [ABSENT, "30", "50", "100", "250", "500"]
    assert found.run_steps == ["0", "30, 50", "50", "500", ABSENT, ABSENT]
    rows = {name: (theirs, ours) for name, theirs, ours in found.rows}
    theirs, ours = rows["Fixed-source ASR"]
    assert [value for value, _ in theirs.cells] == [ABSENT, "0.00", "0.00", "0.00", "0.035", "0.25"]
    assert theirs.sample == "n = 400"
    assert ours.sample == "n = 32, 2 seeds"
    assert rows["Harm recognition at equal suffix"][0].absent == "not reported"
    assert rows["HRCI (representation)"][1].absent == "fewer than 5 probes were refused"


def test_interventions_beside_the_paper(run: Path) -> None:
    rows = interventions(collect(anchors(run, STUDY)))
    assert {row[0] for row in rows[1:]} == {"paper", "this run"}
    assert {row[1] for row in rows[1:] if row[0] == "this run"} == {"R2D2 50", "R2D2 500", "SFT 50", "SFT 500"}
    late = next(row for row in rows if row[:3] == ["paper", "R2D2 500", "fixed-source ASR"])
    assert late[3].startswith("0.25 [")


def test_costs(run: Path) -> None:
    costs = stage_costs(run)
    assert costs
    assert not any(cost.id.startswith("report") for cost in costs)
    kinds = {kind: (count, seconds) for kind, count, seconds in totals(costs)}
    assert {"transfer", "projection", "replay", "floor"} <= set(kinds)
    assert kinds["drift"][0] == len({cost.id for cost in costs if cost.id.endswith("drift")})
    assert sum(seconds for _, seconds in kinds.values()) == pytest.approx(sum(cost.seconds for cost in costs))


def test_durations() -> None:
    assert [duration(value) for value in (3.21, 250, 7500)] == ["3.2 s", "4 min 10 s", "2 h 5 min"]


def test_embedded_json_cannot_end_its_script() -> None:
    text = embed({"x": "</script><!--&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"x": "</script><!--&\u2028"}


def test_long_completions_are_cut() -> None:
    assert len(shorten("x" * 5000)) < LONGEST + 5
    assert shorten("short") == "short"

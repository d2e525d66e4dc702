"""Every number on the page is a cell of its tables."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from fabricated_run import fabricate, make_study
from page_numbers import Cells, Printed, shown
from refgeo.report.build import build_report


@pytest.fixture(scope="module", params=[(1,), (1, 2)], ids=["one seed", "two seeds"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = make_study(seeds=request.param, steps=(50, 500))
    run = tmp_path_factory.mktemp("run")
    fabricate(run, study, count=32)
    return build_report(run, study, run / "report")


def untraceable(index: Path, chosen: list[Printed]) -> list[Printed]:
    cells = Cells(index.parent / "tables")
    return [one for one in chosen if not cells.holds(one)]


def test_every_number_on_the_page_is_a_cell_of_the_tables(report: Path) -> None:
    found = shown(report.read_text(encoding="utf-8"))
    places = {re.split("[ :]", one.where)[0] for one in found}
    assert places == {"h1", "p", "claim", "table", "beside", "figure", "caption"}
    assert len(found) > 2000
    strange = untraceable(report, found)
    assert not strange, f"{len(strange)} of {len(found)} numbers are in no table, such as {strange[:5]}"


def test_twenty_numbers_picked_at_random(report: Path, record_property: Callable[[str, object], None]) -> None:
    seed = secrets.randbelow(2**32)
    record_property("seed", seed)
    chosen = random.Random(seed).sample(shown(report.read_text(encoding="utf-8")), 20)
    assert not untraceable(report, chosen), f"picked with random.Random({seed})"


ALTERED = {
    "a rate of the headline": (r'(<h1.*?class="figure">)(\d+)(%)', "98"),
    "a number of a sentence": (r'(class="lead">.*?class="figure">[\d.]+ <small>\[0\.)(\d+)()', "07"),
    "the n of a claim": (r"(\(n = )(\d+)(, \d seed)", "31"),
    "an interval beside the paper": (r"(<small>\[0\.)(\d\d)(, )", "99"),
    "a cell under a figure": (r"(<td>0\.)(\d\d)( \[)", "97"),
    "what a pointer reads": (r"(step 50\\u003cbr\\u003e0\.)(\d\d)( \[)", "97"),
    "a point that is drawn": (r'("mode":"lines\+markers".{0,4000}?"y":\[)([\d.]+)(,)', "0.123"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_number_is_found(report: Path, what: str) -> None:
    page = report.read_text(encoding="utf-8")
    pattern, other = ALTERED[what]
    altered, count = re.subn(pattern, rf"\g<1>{other}\g<3>", page, count=1, flags=re.DOTALL)
    assert (count, altered == page) == (1, False)
    assert untraceable(report, shown(altered))

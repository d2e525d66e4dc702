"""Every number on the page is a cell of its tables."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fabricated_run import fabricate, make_study
from page_numbers import Cells, Printed, shown
from refgeo.report.build import build_report


def build(run: Path, seeds: tuple[int, ...]) -> Path:
    study = make_study(seeds=seeds, steps=(50, 500))
    fabricate(run, study, count=32)
    return build_report(run, study, run / "report")


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("one"), (1,))


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("two"), (1, 2))


@pytest.fixture(params=["one_seed", "two_seeds"])
def report(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@cache
def cells(tables: Path) -> Cells:
    return Cells(tables)


def untraceable(index: Path, chosen: list[Printed]) -> list[Printed]:
    return [one for one in chosen if not cells(index.parent / "tables").holds(one)]


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
    "a point of a path": (r'("frontier-useful-and-robust-to-the-frozen-attack":.*?"mode":"lines\+markers".*?"y":\[)([\d.]+)(,)', "0.123"),
    "a point of a curve": (r'("curve-benign-utility":.*?"mode":"lines\+markers".*?"y":\[)([\d.]+)(,)', "0.123"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_number_is_found(one_seed: Path, what: str) -> None:
    page = one_seed.read_text(encoding="utf-8")
    pattern, other = ALTERED[what]
    altered, count = re.subn(pattern, rf"\g<1>{other}\g<3>", page, count=1, flags=re.DOTALL)
    assert (count, altered == page) == (1, False)
    assert untraceable(one_seed, shown(altered))

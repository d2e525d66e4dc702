"""The page in a real browser, without a network: it stays silent, its switches switch, and words of a model stay words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devtools import NAMES, Browser, Tab, installed
from fabricated_run import HOSTILE, fabricate, make_study
from refgeo.report.build import build_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed() is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]
TAB = ("Tab", 9)
RIGHT = ("ArrowRight", 39)
HELP = """
const told = {};
const wait = (time = 400) => new Promise((done) => setTimeout(done, time));
const at = (selector) => document.querySelector(selector);
const every = (selector) => [...document.querySelectorAll(selector)];
const shown = (selector) => every(selector).filter((one) => !one.hidden).map((one) => one.id);
const put = (selector, value, kind = "input") => { const one = at(selector); one.value = value; one.dispatchEvent(new Event(kind)); };
const tick = (selector, checked) => { const one = at(selector); one.checked = checked; one.dispatchEvent(new Event("change")); };
const drawn = async (id) => {
  const node = at("#" + id + " .plot");
  node.scrollIntoView({ behavior: "instant" });
  await wait(800);
  for (let turn = 0; turn < 50 && !node.data; turn += 1) await wait(100);
  return node;
};
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    study = make_study(seeds=(1, 2), steps=(50, 500))
    fabricate(run, study, count=32)
    return build_report(run, study, run / "report")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = installed()
    assert path is not None
    running = Browser(path, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def opened(browser: Browser, index: Path, place: str = "", width: int = 1280) -> Tab:
    tab = browser.open(width)
    tab.go(index.as_uri() + place)
    return tab


def look(browser: Browser, index: Path, probe: str, place: str = "", width: int = 1280) -> dict[str, Any]:
    """What a probe tells of the page; ``place`` is the hash of the address. No page may complain or ask the network."""
    tab = opened(browser, index, place, width)
    told: dict[str, Any] = tab.ask(f"{HELP} {probe} return told;")
    assert tab.heard() == []
    tab.close()
    return told


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_silent_and_fits_its_window(browser: Browser, index: Path, width: int) -> None:
    probe = """
    every("details").forEach((one) => { one.open = true; });
    at(".plot").scrollIntoView({ behavior: "instant" });  // figures are drawn when they come near
    await wait(1500);
    told.inside = window.innerWidth;
    told.wide = document.documentElement.scrollWidth;
    told.controls = getComputedStyle(at(".controls")).display;
    told.drawn = every(".plot .main-svg").length;
    """
    told = look(browser, index, probe, width=width)
    assert told["wide"] <= told["inside"]
    assert told["controls"] == "flex"
    assert told["drawn"] > 0


def test_the_slider_moves_every_figure_that_has_an_anchor(browser: Browser, index: Path) -> None:
    probe = """
    told.before = [shown("[id^=map-seed-1]").length, at("#anchor-told").textContent];
    const paths = await drawn("frontier-useful-and-robust-to-the-frozen-attack");
    told.whole = Math.max(...paths.data.filter((one) => one.meta?.steps).map((one) => one.x.length));
    put("#anchor", 3);
    await wait();
    told.words = [at("#anchor-told").textContent, at("#anchor").getAttribute("aria-valuetext")];
    told.maps = shown("[id^=map-]");
    told.planes = shown("[id^=plane-]");
    const later = await drawn("frontier-useful-and-robust-to-the-frozen-attack");
    told.cut = Math.max(...later.data.filter((one) => one.meta?.steps).map((one) => one.x.length));
    const marks = (node) => node.layout.shapes.filter((one) => one.name === "anchor").length;
    told.curve = marks(await drawn("curve-benign-utility"));
    told.effect = marks(await drawn("effect-removing-the-direction-fixed-source-asr"));
    told.hash = location.hash;
    at("[id^=dose-50-]").closest("details").open = true;
    told.doses = shown("[id^=dose-]").every((one) => one.startsWith("dose-50-"));
    put("#anchor", 0);
    await wait();
    told.start = shown("[id^=map-]");
    """
    told = look(browser, index, probe)
    assert told["before"] == [7, "all anchors"]
    assert told["words"] == ["step 50", "step 50"]
    assert told["maps"] == ["map-seed-1-r2d2-at-step-50", "map-seed-1-sft-at-step-50"]
    assert told["planes"] == ["plane-seed-1-r2d2-at-step-50", "plane-seed-1-sft-at-step-50"]
    assert told["cut"] < told["whole"]
    assert told["curve"] == 1
    assert told["effect"] == 2
    assert "step=50" in told["hash"]
    assert told["doses"]
    assert told["start"] == ["map-seed-1-the-start"]


def test_switches_choose_arm_seed_and_count(browser: Browser, index: Path) -> None:
    probe = """
    const arms = (node) => [...new Set(node.data.map((one) => one.meta?.arm).filter(Boolean))].sort();
    told.both = arms(await drawn("curve-benign-utility"));
    tick('input[value="sft"]', false);
    put("#seed", "2", "change");
    await wait();
    const node = await drawn("curve-benign-utility");
    told.one = arms(node);
    told.seeds = [...new Set(node.data.map((one) => one.meta?.seed).filter(Boolean))];
    told.panels = every('[data-arm="sft"]').every((one) => one.hidden);
    told.maps = shown("[id^=map-]").every((one) => one.startsWith("map-seed-2-"));
    const rows = await drawn("effect-removing-the-direction-fixed-source-asr");
    told.rows = rows.layout.yaxis.ticktext;
    told.raw = shown('[data-count="gated"]').length;
    tick('input[value="gated"]', true);
    told.gated = [shown('[data-count="gated"]').length > 0, shown('[data-count="raw"]').length];
    tick('input[value="r2d2"]', false);
    told.never = every('input[name="arm"]').map((one) => one.checked);
    at("#reset").click();
    told.reset = [location.hash, at("#seed").value, shown('[data-count="raw"]').length > 0];
    """
    told = look(browser, index, probe)
    assert told["both"] == ["r2d2", "sft"]
    assert told["one"] == ["r2d2"]
    assert told["seeds"] == [2]
    assert told["panels"]
    assert told["maps"]
    assert told["rows"] == ["start", "R2D2 30", "R2D2 50", "R2D2 500"]
    assert told["raw"] == 0
    assert told["gated"] == [True, 0]
    assert told["never"] == [True, True]
    assert told["reset"] == ["", "", True]


def test_the_state_survives_a_reload_and_a_link(browser: Browser, index: Path) -> None:
    probe = """
    const boxes = () => ["gated", "sft"].map((name) => at(`input[value="${name}"]`).checked);
    const controls = () => [at("#anchor-told").textContent, at("#seed").value, ...boxes()];
    told.state = controls();
    told.filter = at('[data-filter="set"]').value;
    at('a[href="#C7"]').click();
    await wait();
    told.hash = location.hash;
    told.after = controls();
    told.rule = at("#C7 details").open;
    at('#C7 .where a').click();
    await wait();
    told.place = location.hash.split("&")[0];
    """
    told = look(browser, index, probe, "#behavior&step=50&seed=2&count=gated&arm=r2d2&t-set=Direct+requests")
    assert told["state"] == told["after"] == ["step 50", "2", True, False]
    assert told["filter"] == "Direct requests"
    assert told["hash"].startswith("#C7&")
    assert "step=50" in told["hash"]
    assert told["rule"]
    assert told["place"] == "#drift-depth-of-the-carrier"


def test_filters_find_completions_and_markup_stays_text(browser: Browser, index: Path) -> None:
    probe = """
    const items = () => every("#browser-list > li");
    told.first = [items().length, at("#browser-told").textContent];
    told.hidden = every("#browser-list .body p").length;
    at("#browser-next").click();
    told.next = at("#browser-told").textContent;
    put('[data-filter="arm"]', "R2D2");
    put('[data-filter="step"]', "500");
    put('[data-filter="set"]', "Frozen attack");
    told.found = [...new Set(every("#browser-list .kind").map((one) => one.textContent))];
    put('[data-filter="text"]', "ONERROR");
    told.hostile = items().length;
    tick('[data-filter="show"]', true);
    at('[data-filter="show"]').dispatchEvent(new Event("input"));
    await wait();
    told.words = items()[0].querySelector(".body p:last-child").textContent;
    told.made = every("#transcripts ~ * img, #browser img, #browser script").length;
    told.wide = [document.documentElement.scrollWidth, window.innerWidth];
    put('[data-filter="text"]', "no such words");
    told.none = [items().length, at("#browser-told").textContent];
    """
    told = look(browser, index, probe, width=390)
    assert told["first"][0] == 20
    assert told["first"][1].startswith("1 to 20 of ")
    assert told["hidden"] == 0
    assert told["next"].startswith("21 to 40 of ")
    assert told["found"] == ["R2D2 500, Frozen attack"]
    assert told["hostile"] > 0
    assert told["words"] == HOSTILE
    assert told["made"] == 0
    assert told["wide"][0] <= told["wide"][1]
    assert told["none"] == [0, "None match."]


def test_controls_are_native_and_in_the_order_of_tab(browser: Browser, index: Path) -> None:
    probe = """
    at(".switches").open = true;
    const kinds = ["input", "select", "button", "summary"];
    const order = every(kinds.flatMap((kind) => [`.controls ${kind}`, `#browser ${kind}`]).join(", "))
      .filter((one) => !one.closest("#browser-list"));
    told.native = order.every((one) => one.tabIndex === 0 && !one.hasAttribute("tabindex"));
    told.named = order.every((one) => one.labels?.length || one.textContent.trim() || one.getAttribute("aria-label"));
    const usable = order.filter((one) => one.offsetParent && !one.disabled);
    told.reached = usable.every((one) => { one.focus(); return document.activeElement === one; });
    told.kinds = order.map((one) => one.id || one.name || one.dataset.filter || one.tagName);
    at("#anchor").focus();
    at("#play").click();
    await wait(1500);
    told.played = at("#anchor-told").textContent;
    """
    told = look(browser, index, probe)
    assert told["native"]
    assert told["named"]
    assert told["reached"]
    assert told["kinds"][:3] == ["anchor", "play", "SUMMARY"]
    assert told["played"] == "step 5"


def test_the_keyboard_reaches_the_controls_in_order(browser: Browser, index: Path) -> None:
    tab = opened(browser, index)
    tab.ask("document.querySelector('.strip li:last-child a').focus();")
    reached = []
    for _ in range(3):
        tab.press(*TAB)
        reached.append(tab.ask("const one = document.activeElement; return one.id || one.tagName;"))
    assert reached == ["anchor", "play", "SUMMARY"]
    tab.ask("const one = document.getElementById('anchor'); one.value = 0; one.focus();")
    tab.press(*RIGHT)
    told = tab.ask("await new Promise((done) => setTimeout(done, 300)); return document.getElementById('anchor-told').textContent;")
    assert told == "step 5"
    assert tab.heard() == []
    tab.close()

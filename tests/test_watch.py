"""Following a run from another process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from refgeo.study.store import Store
from refgeo.study.watch import Look, at_work, watch


def shown(looks: list[Look], patient: bool, interrupted_after: int | None = None) -> tuple[str, int]:
    """What is on the screen in the end, and how often was waited."""
    page, waits = io.StringIO(), 0
    given: Iterator[Look] = iter(looks)

    def sleep(seconds: float) -> None:
        nonlocal waits
        if waits == interrupted_after:
            raise KeyboardInterrupt
        waits += 1

    watch(Console(file=page, width=80), lambda: next(given), patient, sleep)
    return page.getvalue().strip().splitlines()[-1], waits


def look(text: str, finished: bool = False, at_work: bool = True) -> Look:
    return Look(Text(text), finished, at_work)


def test_it_ends_when_the_run_is_finished() -> None:
    assert shown([look("1 of 3"), look("2 of 3"), look("3 of 3", finished=True)], patient=True) == ("3 of 3", 2)


@pytest.mark.parametrize("patient", [True, False])
def test_who_asked_waits_for_a_process_and_who_did_not_does_not(patient: bool) -> None:
    looks = [look("1 of 3"), look("2 of 3", at_work=False), look("3 of 3", finished=True)]
    assert shown(looks, patient) == (("3 of 3", 2) if patient else ("2 of 3", 1))


def test_an_interrupt_leaves_the_last_look() -> None:
    assert shown([look("1 of 3"), look("2 of 3"), look("never")], patient=True, interrupted_after=1) == ("2 of 3", 1)


def test_a_stage_that_is_being_replaced_costs_one_look() -> None:
    given = iter([look("1 of 2"), None, look("2 of 2", finished=True)])

    def see() -> Look:
        found = next(given)
        if found is None:
            raise FileNotFoundError
        return found

    page = io.StringIO()
    watch(Console(file=page, width=80), see, True, lambda seconds: None)
    assert page.getvalue().strip().endswith("2 of 2")


def test_a_live_display_begins_with_what_runs() -> None:
    page = io.StringIO()
    looks = iter([Look(Text("tables, news"), False, True, live=Text("news, tables")), look("the end", finished=True)])
    watch(Console(file=page, width=80, force_terminal=True), lambda: next(looks), True, lambda seconds: None)
    assert "news, tables" in page.getvalue()
    assert "tables, news" not in page.getvalue()


def test_a_run_is_worked_on_while_a_session_is_held(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.create("study")
    assert not at_work(store)
    with store.session("config"):
        assert at_work(store)
    assert not at_work(store)

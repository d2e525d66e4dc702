"""What is stale, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgeo.errors import ConfigError
from refgeo.study.graph import Graph, Record, Stage, canonical, differences
from refgeo.study.job import Ticket, encode


def stage(name: str, *inputs: str, **more: object) -> Stage:
    return replace(Stage(name, Path(name), "fake_stages:write", {"steps": 3, "attack": {"width": 4}}, inputs), **more)  # type: ignore[arg-type]  # fields by name


CHAIN = (stage("a"), stage("b", "a"), stage("c", "b"), stage("d", "a"), stage("e"))


def record(graph: Graph, name: str) -> Record:
    made = graph.stages[name]
    return Record(graph.fingerprints[name], made.version, made.settings, graph.before(name), 1.0, {})


def records(graph: Graph) -> dict[str, Record | None]:
    return {name: record(graph, name) for name in graph.stages}


def test_a_change_makes_stale_what_depends_on_it_and_nothing_else() -> None:
    made = records(Graph(CHAIN))
    changed = Graph([replace(each, settings={"steps": 4}) if each.id == "b" else each for each in CHAIN])
    assert changed.done(made) == {"a", "d", "e"}


def test_a_new_code_version_and_a_new_function_make_stale() -> None:
    made = records(Graph(CHAIN))
    assert Graph([replace(each, version=2) if each.id == "a" else each for each in CHAIN]).done(made) == {"e"}
    assert Graph([replace(each, function="other:f") if each.id == "d" else each for each in CHAIN]).done(made) == {"a", "b", "c", "e"}


def test_what_changes_no_result_changes_no_fingerprint() -> None:
    moved = [replace(each, folder=Path("elsewhere") / each.id, priority=9, work="much") for each in CHAIN]
    assert Graph(moved).fingerprints == Graph(CHAIN).fingerprints


JSON = st.recursive(
    st.integers() | st.text() | st.none() | st.booleans(), lambda inner: st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_fingerprints_do_not_depend_on_the_order_of_settings(settings: dict[str, object]) -> None:
    turned = dict(reversed(settings.items()))
    first, second = (Graph([Stage("a", Path("a"), "f:g", each)]).fingerprints["a"] for each in (settings, turned))
    assert first == second


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_equal_fingerprints_mean_no_difference(one: dict[str, object], two: dict[str, object]) -> None:
    assert (canonical(one) == canonical(two)) == (not list(differences(one, two)))


def test_a_producer_is_done_when_its_products_are() -> None:
    graph = Graph([stage("train"), stage("train/3", made_by="train"), stage("measure", "train/3")])
    made = records(graph)
    assert graph.done(made) == {"train", "train/3", "measure"}
    assert graph.done({**made, "train/3": None}) == {"measure"}
    assert graph.done({**made, "train": None}) == {"train/3", "measure"}
    assert graph.reason("train", made["train"]) == "something that it produces is missing"


def test_reasons_name_what_changed() -> None:
    graph = Graph(CHAIN)
    made = records(graph)
    assert graph.reason("a", None) == "not made yet"
    changed = Graph([replace(each, settings={"steps": 4, "attack": {"width": 8}}) if each.id == "a" else each for each in CHAIN])
    assert changed.reason("a", made["a"]) == "attack.width 4 -> 8; steps 3 -> 4"
    assert changed.reason("b", made["b"]) == "a changed"
    assert "version 1, now 2" in Graph([replace(CHAIN[0], version=2)]).reason("a", made["a"])


def test_stages_come_in_an_order_in_which_they_can_run() -> None:
    names = list(Graph(reversed(CHAIN)).stages)
    assert names.index("a") < names.index("b") < names.index("c")


def test_impossible_graphs_are_refused() -> None:
    with pytest.raises(ConfigError, match="circle"):
        Graph([stage("a", "b"), stage("b", "a")])
    with pytest.raises(ConfigError, match="'nowhere'"):
        Graph([stage("a", "nowhere")])


def test_a_ticket_survives_the_way_to_a_worker() -> None:
    graph = Graph([stage("train", arm="sft", seed=1), stage("train/3", made_by="train", step=3)])
    ticket = Ticket.of(graph, "train")
    line = encode({"ticket": ticket.to_dict()})
    assert line.count("\n") == 1
    back = Ticket.from_dict(json.loads(line)["ticket"])
    assert back == ticket
    assert Graph([back.stage, back.products[0].stage]).fingerprints == graph.fingerprints

"""The loaders: what each set's columns become, and what a user is told about a file that cannot be used."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgeo.config.data import DataSettings, Part, Source
from refgeo.data import load
from refgeo.data.cells import evenly
from refgeo.data.conversations import asked_in
from refgeo.data.findings import Finding, Findings
from refgeo.data.probes import _drawn
from refgeo.data.rows import Behavior, Chat, Probe, Reference
from refgeo.data.survey import survey
from refgeo.data.tables import read_rows
from refgeo.errors import DataError

STEPS = json.dumps({"steps": ["cut the root", "boil the water"]})
BEHAVIORS = [
    {"Behavior": "feed a", "FunctionalCategory": "standard", "SemanticCategory": "town", "Tags": "seen, extra", "BehaviorID": "b1"},
    {
        "Behavior": "feed b",
        "FunctionalCategory": "standard",
        "SemanticCategory": "town",
        "Tags": "",
        "BehaviorID": "b2",
        "Reference": STEPS,
    },
    {"Behavior": "feed c", "FunctionalCategory": "contextual", "Tags": "context", "ContextString": "a long story", "BehaviorID": "b3"},
]
TARGETS: dict[str, Any] = {"b1": "sure , a", "b2": ["sure , b", "of course , b"], "b3": "sure , c"}
Write = Callable[..., Source]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as a file of the type that its name says; returns the source."""

    def writer(rows: list[dict[str, Any]], name: str = "set.csv", targets: dict[str, Any] | None = None, **settings: Any) -> Source:
        path = tmp_path / name
        if path.suffix == ".csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        elif path.suffix == ".parquet":
            pd.DataFrame(rows).to_parquet(path)
        else:
            path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows))
        if targets is not None:
            (tmp_path / "targets.json").write_text(json.dumps(targets))
            settings["targets"] = str(tmp_path / "targets.json")
        return Source(path=str(path), **settings)

    return writer


def told(loader: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        loader(*args, **kwargs)
    return str(caught.value)


def test_behaviors(write: Write) -> None:
    first, second, third = load.load_behaviors(write(BEHAVIORS, targets=TARGETS))
    assert first == Behavior("b1", "feed a", ("sure , a",), ("seen", "extra"))
    assert (first.subset, second.subset) == ("seen", "untagged")
    assert second.targets == ("sure , b", "of course , b")
    assert second.reference == Reference(("cut the root", "boil the water"))
    assert third.request.startswith("a long story")
    assert third.request.endswith("feed c")


def test_contextual_behaviors_can_be_left_out(write: Write) -> None:
    source = write(BEHAVIORS, targets=TARGETS)
    assert [behavior.id for behavior in load.load_behaviors(source, with_context=False)] == ["b1", "b2"]
    assert "only contextual" in told(load.load_behaviors, write(BEHAVIORS[2:], targets=TARGETS), with_context=False)


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl", "set.json", "set.parquet"])
def test_every_file_type_gives_the_same_rows(write: Write, name: str) -> None:
    assert load.load_behaviors(write(BEHAVIORS, name, TARGETS)) == load.load_behaviors(write(BEHAVIORS, "plain.csv", TARGETS))


def test_text_stays_text(write: Write) -> None:
    rows = [{"id": "007", "bucket": "NA", "prompt": "nan"}, {"id": "1e3", "bucket": "", "prompt": "null"}]
    assert [(prompt.id, prompt.kind, prompt.request) for prompt in load.load_audit(write(rows))] == [
        ("007", "NA", "nan"),
        ("1e3", "", "null"),
    ]


def test_behaviors_without_a_target_are_named(write: Write) -> None:
    assert "'b2'" in told(load.load_behaviors, write(BEHAVIORS, targets={"b1": "sure", "b3": "sure"}))
    assert "No targets are given" in told(load.load_behaviors, write(BEHAVIORS))
    assert len(load.load_behaviors(write(BEHAVIORS), need_targets=False)) == 3


@pytest.mark.parametrize("targets", [{"b1": 5}, {"b1": [""]}, ["sure"]])
def test_malformed_targets(write: Write, targets: Any) -> None:
    assert "target" in told(load.load_behaviors, write(BEHAVIORS, targets=targets))


@pytest.mark.parametrize("reference", ["{", "[1]", '{"steps": []}', '{"steps": "cut"}', '{"steps": ["cut", ""]}', '{"step": ["cut"]}'])
def test_a_malformed_reference_names_its_row(write: Write, reference: str) -> None:
    message = told(load.load_behaviors, write([{**BEHAVIORS[0], "Reference": reference}], targets=TARGETS))
    assert "'b1'" in message
    assert "malformed Reference" in message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a", "prompt": "x"}], ("lacks column type", "it has columns id, prompt")),
        ([{"id": "a", "type": "t", "prompt": "  "}], ("Row 'a'", "empty prompt")),
        ([{"id": "a", "type": "t", "prompt": "x"}, {"id": "a", "type": "t", "prompt": "y"}], ("repeats id", "'a'")),
        ([{"id": "a", "type": "t", "prompt": "x", "label": "harmless"}], ("label 'harmless'", "'safe' or 'unsafe'")),
        ([{"id": "", "type": "t", "prompt": "x"}], ("no id", "'x'")),
    ],
)
def test_unusable_rows_are_named(write: Write, rows: list[dict[str, Any]], words: tuple[str, ...]) -> None:
    message = told(load.load_xstest, write(rows))
    assert all(word in message for word in words), message


def test_xstest_labels_come_from_the_column_or_the_type(write: Write) -> None:
    rows = [{"id": "a", "prompt": "x", "type": "homonyms"}, {"id": "b", "prompt": "y", "type": "contrast_homonyms"}]
    assert [prompt.safe for prompt in load.load_xstest(write(rows))] == [True, False]
    rows = [{**rows[0], "label": "unsafe"}, {**rows[1], "label": ""}]
    assert [prompt.safe for prompt in load.load_xstest(write(rows))] == [False, False]


def test_strongreject_is_numbered_before_it_is_thinned(write: Write) -> None:
    rows = [{"category": "c", "source": "s", "forbidden_prompt": f"p{index}"} for index in range(10)]
    prompts = load.load_strongreject(write(rows, limit=2))
    assert [(prompt.id, prompt.request) for prompt in prompts] == [("strongreject-0001", "p0"), ("strongreject-0006", "p5")]
    assert not any(prompt.safe for prompt in prompts)


def test_probes(write: Write) -> None:
    rows = [
        {"id": f"{label}-{split}", "prompt": f"{label} {split}", "label": label, "split": split}
        for label in ("harmful", "harmless")
        for split in ("estimate", "validate")
    ]
    probes = load.load_probes(write(rows))
    assert [(probe.harmful, probe.split) for probe in probes] == [
        (True, "estimate"),
        (True, "validate"),
        (False, "estimate"),
        (False, "validate"),
    ]
    assert "no harmless probe in split 'validate'" in told(load.load_probes, write(rows[:3]))
    assert "split 'test'" in told(load.load_probes, write([{**rows[0], "split": "test"}]))


def test_chat(write: Write) -> None:
    turns = [{"role": "user", "content": " hello "}, {"role": "assistant", "content": "hello\n"}]
    chats = load.load_chat(write([{"id": "c1", "messages": turns}, {"messages": turns}], "chat.jsonl"))
    assert chats[0].messages == (("user", "hello"), ("assistant", "hello"))
    assert [chat.id for chat in chats] == ["c1", "chat-000002"]
    assert load.load_chat(write([{"id": "c1", "messages": json.dumps(turns)}]))[0] == chats[0]
    assert load.load_chat(write([{"id": "c1", "messages": turns}], "chat.parquet"))[0] == chats[0]


@pytest.mark.parametrize(
    "messages",
    [None, 5, "hello", ["hello"], [{"role": "robot", "content": "x"}], [{"role": "assistant"}]],
)
def test_malformed_conversations_are_named(write: Write, messages: Any) -> None:
    assert "'c1'" in told(load.load_chat, write([{"id": "c1", "messages": messages}], "chat.jsonl"))


def test_filler(tmp_path: Path) -> None:
    path = tmp_path / "filler.txt"
    path.write_text("bread\n\n soup \n")
    assert load.load_filler(str(path)) == ["bread", "soup"]
    path.write_text("\n")
    assert "empty" in told(load.load_filler, str(path))
    assert "missing.txt" in told(load.load_filler, str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "does not exist"),
        ("set.csv", "", "Cannot read"),
        ("set.csv", "id,bucket,prompt\n", "has no rows"),
        ("set.jsonl", '{"id": "a"}\n{"id"', "Line 2"),
        ("set.jsonl", "5\n", "does not hold rows"),
        ("set.json", "{", "Cannot read"),
        ("set.json", "", "has no rows"),
        ("set.parquet", "no parquet", "Cannot read"),
        ("set.yaml", "hello", "unknown file type '.yaml'"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert words in told(load.load_audit, Source(path=str(tmp_path / name)))


def test_a_dataset_folder_is_read_by_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text("id,bucket,prompt\na,everyday,x\n")
    (folder / "test.csv").write_text("id,bucket,prompt\nb,coding,y\n")
    assert [prompt.id for prompt in load.load_audit(Source(path=str(folder), split="test"))] == ["b"]
    assert "split 'dev'" in told(load.load_audit, Source(path=str(folder), split="dev"))


def test_thinning_is_even_and_keeps_the_order() -> None:
    assert evenly(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert evenly(list(range(3)), 7) == [0, 1, 2]
    thirds = evenly(list(range(100)), 7)
    assert len(thirds) == 7
    assert max(later - earlier for earlier, later in itertools.pairwise(thirds)) <= 15


def test_overlapping_behaviors_are_named() -> None:
    train = [Behavior("a", "feed the fox", ("sure",)), Behavior("b", "feed the owl", ("sure",))]
    load.check_disjoint(train, [Behavior("c", "feed the hen", ("sure",))])
    message = told(load.check_disjoint, train, [Behavior("a", "other", ("sure",)), Behavior("d", "Feed  the OWL", ("sure",))])
    assert "'a', 'd'" in message


def test_other_columns_are_kept(write: Write) -> None:
    assert read_rows(write([{"id": "a", "note": "n"}]), ("id",)) == [{"id": "a", "note": "n"}]


def part(source: Source, **settings: Any) -> Part:
    return Part(path=source.path, targets=source.targets, **settings)


def test_a_set_of_several_files_keeps_their_order_targets_and_groups(write: Write, tmp_path: Path) -> None:
    first = write(BEHAVIORS[:1], "first.csv", {"b1": "sure"})
    (tmp_path / "targets.json").rename(tmp_path / "first.json")
    second = write(BEHAVIORS[1:2], "second.csv", {"b2": ["well", "so"]})
    later = part(second, group="in_training", trained=True)
    whole = Source(path=first.path, targets=str(tmp_path / "first.json"), group="clean", more=(later,))
    found = load.load_behaviors(whole)
    assert [(one.id, one.targets, one.subset, one.clean) for one in found] == [
        ("b1", ("sure",), "clean", True),
        ("b2", ("well", "so"), "in_training", False),
    ]
    assert [one.id for one in load.load_behaviors(whole.model_copy(update={"limit": 1}))] == ["b1"]
    assert "repeats id in rows 'b1'" in told(load.load_behaviors, whole.model_copy(update={"more": (part(first),)}), need_targets=False)
    load.check_disjoint(load.load_behaviors(second), found)  # declared, and reported apart
    assert "trained: true" in told(load.check_disjoint, found, found)


def test_renamed_columns_are_named_with_the_nearest_and_can_be_mapped(write: Write) -> None:
    rows = [{"id": "a", "prompts": "x", "type": "t"}]
    message = told(load.load_xstest, write(rows))
    assert all(
        words in message
        for words in ("lacks column prompt", "it has columns id, prompts, type", "Did you mean 'prompts'?", "columns: {prompt")
    )
    assert load.load_xstest(write(rows, columns={"prompt": "prompts"}))[0].request == "x"
    assert "no column 'promts'" in told(load.load_xstest, write(rows, columns={"prompt": "promts"}))
    mirror = [{"prompt": "feed", "category": "c"}]
    assert load.load_strongreject(write(mirror, columns={"forbidden_prompt": "prompt"}))[0].request == "feed"
    both = [{"id": "a", "prompt": "old", "text": "new", "type": "t"}]
    assert load.load_xstest(write(both, columns={"prompt": "text"}))[0].request == "new"


@pytest.mark.parametrize("name", ["own.txt", "own.json"])
def test_a_list_of_prompts_is_a_set_of_any_kind(tmp_path: Path, name: str) -> None:
    lines = ["feed the fox", "wake the owl"]
    (tmp_path / name).write_text("\n".join([*lines, ""]) if name.endswith("txt") else json.dumps(lines))
    source = Source(path=str(tmp_path / name))
    assert [(one.id, one.request, one.kind, one.safe) for one in load.load_xstest(source)] == [
        ("prompt-0001", lines[0], "own", True),
        ("prompt-0002", lines[1], "own", True),
    ]
    assert [one.request for one in load.load_audit(source)] == lines
    assert [(one.request, one.safe) for one in load.load_strongreject(source)] == [(line, False) for line in lines]
    assert [(one.id, one.request) for one in load.load_behaviors(source, need_targets=False)] == [
        ("behavior-0001", lines[0]),
        ("behavior-0002", lines[1]),
    ]


def test_blank_and_repeated_rows_are_recorded(write: Write) -> None:
    rows = [
        {"id": "a", "bucket": "b", "prompt": "x y"},
        {"id": "", "bucket": "", "prompt": " "},
        {"id": "c", "bucket": "b", "prompt": "X  y"},
    ]
    source, findings = write(rows), Findings()
    assert [prompt.id for prompt in load.load_audit(source, findings)] == ["a", "c"]
    assert findings == [
        Finding(source.path, "rows without content", ("2",), "left out"),
        Finding(source.path, "repeated prompts", ("a", "c"), "kept"),
    ]


def test_conversations_without_an_answer_are_left_out_and_recorded(write: Write) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    findings = Findings()
    rows = [{"prompt_id": "a", "messages": turns}, {"prompt_id": "b", "messages": turns[:1]}, {"prompt_id": "c", "messages": turns}]
    source = write(rows, "chat.jsonl")
    assert [chat.id for chat in load.load_chat(source, findings)] == ["a", "c"]
    assert [(one.what, one.rows) for one in findings] == [
        ("conversations without words of an assistant", ("b",)),
        ("repeated conversations", ("a", "c")),
    ]
    assert "No conversation" in told(load.load_chat, write(rows[1:2], "chat.jsonl"))


@pytest.mark.parametrize("name", ["chat.parquet", "chat.jsonl"])
def test_a_limit_takes_the_same_conversations_of_every_file_type(write: Write, name: str) -> None:
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    rows = [{"prompt_id": f"c{number}", "messages": turns} for number in range(10)]
    assert [chat.id for chat in load.load_chat(write(rows, name, limit=3))] == ["c0", "c3", "c6"]


def test_probes_of_two_files_of_instructions(write: Write) -> None:
    harmful = write([{"instruction": f"scare {number}", "category": None} for number in range(14)], "harmful.json")
    harmless = write([{"goal": f"feed {number}", "target": "Sure"} for number in range(30)], "harmless.csv")
    source = Source(
        path=harmful.path,
        label="harmful",
        columns={"prompt": "instruction"},
        estimate=9,
        held_out=5,
        more=(Part(path=harmless.path, label="harmless", columns={"prompt": "goal"}),),
    )
    found = load.load_probes(source)
    counts = {
        (label, split): sum(one.harmful == label and one.split == split for one in found)
        for label in (True, False)
        for split in ("estimate", "validate")
    }
    assert counts == {(True, "estimate"): 9, (True, "validate"): 5, (False, "estimate"): 9, (False, "validate"): 5}
    assert len({one.id for one in found}) == len(found)
    assert "no harmless probe" in told(load.load_probes, source.model_copy(update={"more": ()}))
    contradiction = source.model_copy(update={"more": (Part(path=harmful.path, label="harmless", columns={"prompt": "instruction"}),)})
    assert "both labels" in told(load.load_probes, contradiction)


def test_probes_with_a_label_column_of_any_common_kind_and_repeats(write: Write) -> None:
    rows = [{"prompt": f"{label} {number}", "label": label} for label in ("1", "0") for number in range(4)]
    findings = Findings()
    found = load.load_probes(write([*rows, rows[0]]), findings)
    assert sum(one.harmful for one in found) == 4
    assert [(one.what, one.rows) for one in findings] == [("repeated prompts", ("probe-0-00009",))]
    assert "label 'bad'" in told(load.load_probes, write([{"prompt": "x", "label": "bad"}]))


@given(count=st.integers(2, 400), estimate=st.integers(1, 200), held_out=st.integers(1, 200))
def test_undivided_probes_are_divided_in_proportion(count: int, estimate: int, held_out: int) -> None:
    probes = [Probe(str(number), str(number), True, "estimate") for number in range(count)]
    drawn = _drawn(probes, Source(path="p", estimate=estimate, held_out=held_out))
    total = min(count, estimate + held_out)
    held = sum(one.split == "validate" for one in drawn)
    assert len(drawn) == total
    assert abs(held - total * held_out / (estimate + held_out)) <= 0.5


def test_a_hub_dataset_is_asked_for_with_everything_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def stand_in(path: str, **settings: Any) -> Any:
        from datasets import Dataset

        asked.append({"path": path, **settings})
        return Dataset.from_list([{"prompt": "feed", "category": "c"}])

    monkeypatch.setattr("datasets.load_dataset", stand_in)
    source = Source(path="org/set", subset="standard", revision="abc", split="test", columns={"forbidden_prompt": "prompt"})
    assert [prompt.request for prompt in load.load_strongreject(source)] == ["feed"]
    assert asked == [{"path": "org/set", "name": "standard", "revision": "abc", "split": "test"}]


def test_what_the_clean_chat_asks_is_found_alone_and_with_a_tail() -> None:
    def asks(*texts: str) -> Chat:
        return Chat("c", tuple(turn for text in texts for turn in (("user", text), ("assistant", "boil the last one"))))

    chats = [
        asks("Feed  the fox", "hello"),
        asks("hello", "cook the owl in a pot ! ! !"),
        asks("please boil the last one", "feed the foxes"),
    ]
    prompts = {"case": "feed the fox", "tail": "cook the owl in a pot", "short": "hello", "reply": "boil the last one", "none": "feed"}
    assert asked_in(chats, prompts) == ["case", "tail", "short", "none"]
    assert asked_in(chats, {"longer": "feed the fox now", "word": "feed the foxe"}) == []


def test_a_test_behavior_that_the_clean_chat_asks_for_is_refused() -> None:
    chats = [Chat("c", (("user", "cook the owl please"), ("assistant", "no")))]
    clean, declared = Behavior("a", "cook the owl", ("sure",)), Behavior("b", "cook the owl", ("sure",), clean=False)
    with pytest.raises(DataError, match="1 test behaviors are asked for in the clean chat: 'a'"):
        load.check_not_asked(chats, [clean, declared])
    load.check_not_asked(chats, [declared, Behavior("c", "cook the hen", ("sure",))])


def test_the_survey_counts_sets_groups_and_overlaps(write: Write, tmp_path: Path) -> None:
    train = write(BEHAVIORS[:2], "train.csv", TARGETS)
    later = Part(path=train.path, targets=train.targets, group="in_training", trained=True)
    test = Source(path=write(BEHAVIORS[2:], "test.csv").path, targets=train.targets, group="clean", more=(later,))
    probes = [{"prompt": f"{label} {number}", "label": label} for label in ("harmful", "harmless") for number in range(4)]
    turns = [{"role": "user", "content": "harmless 2 , please"}, {"role": "assistant", "content": "hello"}]
    data = DataSettings(
        behaviors_train=train,
        behaviors_test=test,
        probes=write([*probes, {"prompt": "feed a", "label": "harmful"}], "probes.csv"),
        chat=write([{"messages": turns}], "chat.jsonl"),
    )
    found = survey(data)
    counts = {(row.set, row.what): (row.n, row.done) for row in found.itertuples()}
    assert counts["behaviors_test", "rows: clean"] == (1, "")
    assert counts["behaviors_test", "in the training or validation behaviors"] == (0, "")
    assert counts["behaviors_test", "in the training or validation behaviors, as declared"] == (2, "reported apart")
    assert counts["probes", "prompts that are in behaviors_train"] == (1, "kept")
    assert counts["probes", "prompts that are asked in chat"] == (1, "kept")
    assert ("behaviors_test", "prompts that are asked in chat") not in counts

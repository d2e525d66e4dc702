"""Cases on disk: what was written comes back, and files of older versions still load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refgeo.attacks.cases import Case, load_cases, save_cases
from refgeo.errors import DataError


def test_cases_come_back_as_they_were(tmp_path: Path) -> None:
    cases = [
        Case("a", "make soup", "sure", "! !", 0.5, "prefix", ("yes", "here is bread")),
        Case("b", "make {attack} soup", "sure", "\u00e9 \u2028 !", placement="infix"),
    ]
    save_cases(tmp_path / "cases.jsonl", cases)
    assert load_cases(tmp_path / "cases.jsonl") == cases


def test_a_file_of_an_older_version_loads_with_the_defaults(tmp_path: Path) -> None:
    old = {"behavior": "a", "request": "make soup", "target": "sure", "attack": "! !", "loss": 0.5}
    (tmp_path / "cases.jsonl").write_text(json.dumps(old) + "\n")
    assert load_cases(tmp_path / "cases.jsonl") == [Case("a", "make soup", "sure", "! !", 0.5, "suffix", ())]


def test_a_file_with_an_unknown_field_or_no_json_is_refused(tmp_path: Path) -> None:
    older = json.dumps({"behavior": "a", "request": "x", "target": "y", "attack": "z", "seed": 1})
    for text in ('{"behaviour": "a"}', "not json", '{"behavior": "a"}', older):
        (tmp_path / "cases.jsonl").write_text(text + "\n")
        with pytest.raises(DataError, match=r"Cannot read test cases.*a line is no case .*Expected a cases\.jsonl"):
            load_cases(tmp_path / "cases.jsonl")
    with pytest.raises(DataError, match=r"No such file or directory\. Expected a cases\.jsonl"):
        load_cases(tmp_path / "nowhere.jsonl")

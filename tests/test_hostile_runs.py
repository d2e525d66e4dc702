"""A run folder that somebody damaged or laid as a trap: said in one message, nothing is read or written outside of it."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from hostile import DEEP, EVIL, WHOLE, written
from refgeo.errors import StoreError
from refgeo.report.methods import stage_costs
from refgeo.study import progress
from refgeo.study.digests import Digests
from refgeo.study.files import remove_leftovers
from refgeo.study.graph import Stage
from refgeo.study.locks import Lock, Owner
from refgeo.study.reading import TOLD, read_json, read_rows, read_table, read_tensor, read_tensors
from refgeo.study.screen import duration
from refgeo.study.store import STAGE, Store


def test_a_link_out_of_the_run_folder_is_refused_and_nothing_is_written_through_it(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    Store(run).create("s")
    (run / "inside").symlink_to(run / "logs")
    Store(run).check("s")
    (run / "arms").symlink_to(outside)
    with pytest.raises(StoreError, match="leads out of the run folder"):
        Store(run).create("s")
    (run / "arms").unlink()
    (run / "logs" / "events.jsonl").symlink_to(written(outside, "mine", "precious"))
    with pytest.raises(StoreError, match=r"events\.jsonl"):
        Store(run).check("s")
    (run / "logs" / "events.jsonl").unlink()
    (run / "circle").symlink_to("circle")
    with pytest.raises(StoreError, match="circle"):
        Store(run).check("s")
    assert (outside / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        "[1]",
        b"\xff",
        json.dumps({**WHOLE, "seconds": float("inf")}),
        json.dumps({**WHOLE, "seconds": float("nan")}),
        json.dumps({**WHOLE, "version": float("inf")}),
        json.dumps({**WHOLE, "settings": 5}),
        json.dumps({**WHOLE, "inputs": [1]}),
        json.dumps({**WHOLE, "libraries": {"torch": []}}),
        json.dumps({**WHOLE, "libraries": [1]}),
        json.dumps({**WHOLE, "peak_memory_mb": {}}),
        json.dumps({**WHOLE, "fingerprint": 5}),
        " " * (1 << 25) + json.dumps(WHOLE),
    ],
)
def test_a_record_that_says_something_else_is_no_record(content: str | bytes, tmp_path: Path) -> None:
    stage = Stage(id="a", folder=Path("a"), function="x:y", settings={})
    written(tmp_path, f"a/{STAGE}", json.dumps(WHOLE))
    assert Store(tmp_path).record(stage) is not None
    assert len(stage_costs(tmp_path)) == 1
    written(tmp_path, f"a/{STAGE}", content)
    assert Store(tmp_path).record(stage) is None
    assert stage_costs(tmp_path) == []


@pytest.mark.parametrize("content", [DEEP, "5", '{"study": "s", "format": 1e999}', '{"study": "s"}', b"\xff"])
def test_a_manifest_of_a_run_that_bites_is_said(content: str | bytes, tmp_path: Path) -> None:
    written(tmp_path, "manifest.json", content)
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path).name()


@pytest.mark.parametrize("content", [DEEP, "[]", '{"host": 1, "pid": "x", "started": null}', '{"host": "x", "pid": -1, "started": 0}'])
def test_a_claim_of_nobody_is_void(content: str, tmp_path: Path) -> None:
    path = written(tmp_path, "claim.json", content)
    os.utime(path, (0, 0))
    assert Lock(path).owner() is None
    assert Lock(path).take()


def test_a_name_that_looks_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    assert Owner.from_tag("\u00b2~1~host") is None
    odd = written(tmp_path, ".x.~\u00b2~1~host", "x")
    remove_leftovers(tmp_path)
    assert odd.exists()


@pytest.mark.parametrize("done", ["x", float("inf"), None, [1]])
def test_progress_that_is_none_is_none(done: object, tmp_path: Path) -> None:
    told = {"done": done, "total": 2, "note": EVIL, "started": 0, "updated": 1, "first_done": 0, "first_time": 0}
    assert progress.read(written(tmp_path, "p.json", json.dumps(told))) is None
    assert progress.read(written(tmp_path, "p.json", DEEP)) is None


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), None])
def test_a_time_without_end_is_not_told(seconds: float | None) -> None:
    assert duration(seconds) == ""


@pytest.mark.parametrize("content", ["5", "[1]", DEEP, '{"a": [1]}'])
def test_hashes_that_were_tampered_with_are_forgotten(content: str, tmp_path: Path) -> None:
    file = written(tmp_path, "x", "content")
    assert Digests(written(tmp_path, "digests.json", content)).of(file) == Digests().of(file)


ROW: dict[str, Any] = {
    "set": "direct",
    "subset": "all",
    "id": "a",
    "request": "q",
    "attack": "",
    "completion": "c",
    "label": "safe",
    "refusal": "full_refusal",
    "success": False,
    "degenerate": False,
    "helpfulness": None,
}


def test_transcripts_name_the_line_that_is_broken(tmp_path: Path) -> None:
    good = json.dumps({**ROW, "completion": f"{EVIL}\u2028\0"})
    assert read_rows(written(tmp_path, "t.jsonl", f"{good}\n{good}\n"), TOLD)[1]["completion"] == f"{EVIL}\u2028\0"
    broken = [
        "{",
        "[1]",
        "5",
        DEEP,
        *(json.dumps({**ROW, name: value}) for name, value in [("set", None), ("id", [1]), ("success", "no"), ("request", "\ud800")]),
    ]
    broken += [json.dumps({**ROW, "helpfulness": "x"}), json.dumps({name: value for name, value in ROW.items() if name != "label"})]
    for line in broken:
        with pytest.raises(StoreError, match="line 2 of"):
            read_rows(written(tmp_path, "t.jsonl", f"{good}\n{line}\n"), TOLD)


def test_tables_and_tensors_that_are_cut_off_are_said(tmp_path: Path) -> None:
    table, tensors = tmp_path / "t.parquet", tmp_path / "t.safetensors"
    frame = pd.DataFrame({"value": [1.0], "n": [1]})
    frame.to_parquet(table)
    save_file({"a": torch.zeros(100)}, tensors)
    assert read_tensor(tensors, "a", 1).shape == (100,)
    with pytest.raises(StoreError, match="Cannot read tensors"):
        read_tensor(tensors, "b", 1)
    for path, read in ((table, read_table), (tensors, partial(read_tensors, needed={"a": 1}))):
        whole = path.read_bytes()
        for content in (whole[:-10], whole[:9], b"", b"\xff" * 9):
            path.write_bytes(content)
            with pytest.raises(StoreError, match="Cannot read"):
                read(path)


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes"):
        read_json(written(tmp_path, "x.json", " " * (1 << 25)))

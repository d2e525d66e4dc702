"""Input that somebody wrote to do harm: refused in one message or shown as what it is; nothing runs, nothing leaves a folder."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import pytest
import torch
import yaml
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from fabricated_run import fabricate, make_study
from refgeo.cli import main
from refgeo.config.bundle import MANIFEST, VERIFIED, Kept, digest, read_manifest, verify
from refgeo.config.data import Source
from refgeo.config.judge import ServedSettings
from refgeo.config.load import commented_yaml, load_study
from refgeo.config.locations import LONGEST_NAME, has_secret, is_name, locate, plain_name
from refgeo.config.model import ModelSettings
from refgeo.config.reading import parse_json, read_yaml
from refgeo.data.download import download, file_name
from refgeo.data.load import load_behaviors, load_chat
from refgeo.errors import LONGEST, ConfigError, DataError, ModelError, RefgeoError, StoreError
from refgeo.instruments.judging import judge
from refgeo.lm.load import load, load_renderer
from refgeo.lm.served import Served
from refgeo.report.build import build_report
from refgeo.report.claims_added import load_claims
from refgeo.report.inspect_log import _task
from refgeo.report.latex import escape
from refgeo.report.methods import stage_costs
from refgeo.study import progress
from refgeo.study.digests import Digests
from refgeo.study.files import csv_text, remove_leftovers
from refgeo.study.graph import Stage
from refgeo.study.layout import anchors
from refgeo.study.locks import Lock, Owner
from refgeo.study.reading import TOLD, read_json, read_rows, read_table, read_tensor, read_tensors
from refgeo.study.screen import duration
from refgeo.study.store import STAGE, Store
from refgeo.study.terminal import Terminal, visible

EVIL = "\x1b[31m\x1b]0;owned\x07 [red]x[/red] [/] [link=file:///etc]y[/link] :bomb: \u202e\u200b\x9b"
DEEP = "[" * 100_000
BEFORE = "extends: pocket\n"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def refgeo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Call the command as a shell would."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["refgeo", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code is None or isinstance(end.value.code, int)
        return Answer(end.value.code or 0, *capsys.readouterr())

    return call


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def harmless(text: str) -> bool:
    """Nothing in it commands a terminal or hides."""
    return all(one.isprintable() or one == "\n" for one in text)


# The terminal


def printed(*shown: Any, **options: Any) -> str:
    out = io.StringIO()
    Terminal(file=out, width=300, **options).print(*shown)
    return out.getvalue()


def test_words_are_shown_as_they_are_wherever_they_stand() -> None:
    table = Table("column")
    table.add_row(EVIL)
    for shown in (EVIL, table, Text(EVIL)):
        text = printed(shown, force_terminal=True, color_system=None)
        assert "\x1b[31m" not in text
        assert "\x1b]" not in text
        assert "[red]x[/red] [/] [link=file:///etc]y[/link] :bomb:" in text
        assert r"\x1b[31m" in text
        assert r"\u202e\u200b\x9b" in text


def test_a_note_of_a_progress_bar_is_shown_as_it_is() -> None:
    out = io.StringIO()
    with Progress(console=Terminal(file=out, width=300, force_terminal=True, color_system=None)) as bar:
        bar.add_task("note \x1b[35m \u202e", total=1)
    assert "\x1b[35m" not in out.getvalue()
    assert "\u202e" not in out.getvalue()


def test_letters_of_all_languages_spaces_and_lines_stay() -> None:
    text = "שלום नमस्ते\u00a0ß\u3000字 😀\n\tx"
    assert visible(text) == text
    assert visible("a\rb\0\ud800") == r"a\rb\x00\ud800"


@pytest.mark.parametrize("words", [["config", EVIL], ["plan", "pocket", f"nothing={EVIL}"], ["config", "pocket", f"{EVIL}=1"]])
def test_an_error_repeats_nothing_that_a_terminal_obeys(refgeo: Callable[..., Answer], words: list[str]) -> None:
    answer = refgeo(*words)
    assert answer.code == 2
    assert harmless(answer.out + answer.err)


def test_a_warning_repeats_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    from refgeo.cli.common import told_warnings

    with told_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"The adapter was made for '{EVIL}'", stacklevel=1)
    said = capsys.readouterr().err
    assert said.startswith("Warning: The adapter was made for")
    assert harmless(said)


def test_a_hostile_value_in_a_plan_is_shown_as_it_is(refgeo: Callable[..., Answer], tmp_path: Path) -> None:
    study = written(tmp_path, "study.yaml", BEFORE + "model: {system_prompt: " + json.dumps(EVIL) + "}\n")
    answer = refgeo("config", study)
    assert answer.code == 0
    assert harmless(answer.out)
    assert load_study(str(written(tmp_path, "again.yaml", answer.out))) == load_study(str(study))


def test_a_message_quotes_megabytes_in_part() -> None:
    assert len(str(DataError(f"The cell is {'x' * 10_000_000}", fix="Shorten it"))) < 2 * LONGEST


# Settings


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a [*a]",
        "a: " + "[" * 500 + "]" * 500,
        "a: " + "{a: " * 60 + "1" + "}" * 60,
        "a: !!python/object/apply:os.mkdir ['owned']",
        "a: 2024-99-99",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: " + "9" * 5000,
        "a: " + "x" * 2_000_000,
        "? [a]\n: 1",
    ],
)
def test_yaml_that_bites_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the file"):
        read_yaml(text, "the file")
    with pytest.raises(ConfigError):
        load_study(str(written(tmp_path, "study.yaml", text)))
    with pytest.raises(ConfigError):
        load_claims(str(written(tmp_path, "claims.yaml", text)))
    assert not (tmp_path / "owned").exists()


def test_anchors_are_no_crime() -> None:
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "it")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed", 10**400, "seed"),
        ("seed", -1, "seed"),
        ("train.seeds", [10**30], r"train.seeds\[0\]"),
        ("train.steps", 10**30, "too large"),
        ("train.weight_decay", float("nan"), "finite"),
        ("train.learning_rate", float("inf"), "finite"),
        ("name", "a\0b", "NUL"),
        ("model.system_prompt", "\ud800", "surrogate"),
        ("data.chat.columns", {"a": "\0"}, "NUL"),
        ("model.path", "a\0b", "NUL"),
    ],
)
def test_what_no_file_and_no_generator_takes_is_no_setting(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_study("pocket", [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])


def test_files_that_extend_one_another_over_a_detour_end(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    written(folder, "a.yaml", "extends: ../x/a.yaml\n")
    with pytest.raises(ConfigError, match="again"):
        load_study(str(folder / "a.yaml"))


@pytest.mark.parametrize("path", ["a" * 5000, "~nobody-of-this-name/x", "a\0b"])
def test_what_cannot_be_a_path_is_said(path: str, refgeo: Callable[..., Answer]) -> None:
    with pytest.raises(ConfigError, match="cannot be looked up"):
        locate(path)
    answer = refgeo("config", path)
    assert answer.code == 2
    assert "cannot be looked up" in answer.err


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", " a", "a\nb", "a\u202eb", "x" * 300, ""])
def test_a_run_folder_of_a_bad_name_is_refused(name: str, refgeo: Callable[..., Answer], tmp_path: Path) -> None:
    assert not is_name(name)
    answer = refgeo("plan", written(tmp_path, "study.yaml", BEFORE + f"name: {json.dumps(name)}\n"))
    assert answer.code == 2
    assert "is no folder name" in answer.err


def test_whatever_a_text_holds_it_becomes_the_name_of_one_file(tmp_path: Path) -> None:
    for text in ("../../etc/passwd", "C:\\x", "a\0b", EVIL, "..", "", "x" * 10_000, "字" * 1000, "\ud800", "-rf"):
        name = plain_name(text, "other")
        assert len(name.encode()) <= LONGEST_NAME
        (tmp_path / name).write_text("x")
        assert (tmp_path / name).parent.resolve() == tmp_path.resolve()
        assert not name.startswith(("-", "."))
    assert plain_name("e\u0301", "x") == plain_name("\u00e9", "x")
    assert plain_name(f"{'x' * 300}.csv", "x").endswith(".csv")
    assert _task("../../x") == "refgeo_..-..-x"


@pytest.mark.parametrize(
    "url",
    ["https://me:geheim@example.org/a.csv", "https://example.org/a.csv?token=geheim", "https://x.org/a.csv?X-Amz-Signature=geheim"],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    for key in ("data.chat", "data.behaviors_test.targets", "data.filler", "judge.served.url"):
        with pytest.raises(ConfigError, match="carries a password or a token") as error:
            load_study("pocket", [f"{key}={url}"])
        assert "geheim" not in str(error.value)
    assert not has_secret("https://example.org/a.csv?download=true&revision=3")


# Data


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", DEEP),
        ("a.jsonl", '{"Behavior": ' + DEEP),
        ("a.jsonl", '{"Behavior": "\\ud800"}'),
        ("a.jsonl", '{"Behavior": ' + "9" * 5000 + "}"),
        ("a.csv", b"Behavior\n\xff\n"),
        ("a.parquet", b"PAR1"),
        ("a.jsonl", json.dumps({"Behavior": "a", "Reference": DEEP})),
        ("a.jsonl", json.dumps({"Behavior": "a", "Reference": '{"steps": ["\\ud800"]}'})),
    ],
)
def test_rows_that_bite_are_refused(name: str, content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_behaviors(Source(path=str(written(tmp_path, name, content))), need_targets=False)
    assert len(str(error.value)) < 1000


def test_messages_that_bite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too deeply"):
        load_chat(Source(path=str(written(tmp_path, "chat.jsonl", json.dumps({"messages": DEEP})))))


def test_whole_pairs_are_characters() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "😀"


def test_what_a_set_says_is_data(tmp_path: Path) -> None:
    ids = ["a", "A", "\u00e9", "e\u0301", "../../x", EVIL.strip(), "x" * 1000, "{{ 7 * 7 }}", "=cmd"]
    rows = "".join(json.dumps({"BehaviorID": one, "Behavior": f"how {place}"}) + "\n" for place, one in enumerate(ids))
    assert [one.id for one in load_behaviors(Source(path=str(written(tmp_path, "a.jsonl", rows))), need_targets=False)] == ids


@pytest.mark.parametrize("url", ["https://[x/a.csv", "https://x:y/a.csv", "https://x.invalid/a b.csv", "https://x.invalid/\u00fc.csv"])
def test_what_is_no_address_is_said(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        download(url, tmp_path / file_name(url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["https://x.org/..", "https://x.org/", "https://x.org/\0"])
def test_an_address_that_names_no_file_is_said(url: str) -> None:
    with pytest.raises(DataError, match="names no file"):
        file_name(url)


class Redirected(io.BytesIO):
    headers: ClassVar[dict[str, str]] = {"Content-Length": "many"}
    url = "http://elsewhere.org/a.csv"


def test_a_download_stays_on_https_and_believes_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Redirected(b"x"))
    with pytest.raises(DataError, match="https all the way"):
        download("https://x.org/a.csv", tmp_path / "a.csv")
    monkeypatch.setattr(Redirected, "url", "https://x.org/a.csv")
    download("https://x.org/a.csv", tmp_path / "a.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def manifest(folder: Path, place: str = "a", files: dict[str, dict[str, object]] | None = None) -> Path:
    item = {"want": {"kind": "file", "path": "x"}, "place": place, "files": files or {}}
    written(folder, MANIFEST, json.dumps({"study": "s", "refgeo": "1", "items": [item]}))
    return folder


@pytest.mark.parametrize("place", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "a\0b"])
def test_a_bundle_names_nothing_outside(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads out of the bundle"):
        read_manifest(manifest(tmp_path, place))
    with pytest.raises(DataError, match="leads out of the bundle"):
        read_manifest(manifest(tmp_path, files={place: {"sha256": "0", "bytes": 1}}))


@pytest.mark.parametrize("content", [DEEP, b"\xff", "[1]", "{"])
def test_a_manifest_that_bites_is_refused(content: str | bytes, tmp_path: Path) -> None:
    written(tmp_path, MANIFEST, content)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(tmp_path)


def test_what_a_bundle_remembers_is_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgeo.config.bundle.LARGE", 1)
    mine = written(tmp_path, "mine", "precious")
    big = written(tmp_path / "bundle", "a", "content")
    kept = Kept(sha256=digest(big), bytes=7)
    bundle = manifest(tmp_path / "bundle", files={"a": kept.model_dump()})
    (bundle / VERIFIED).symlink_to(mine)
    verify(bundle, read_manifest(bundle))
    assert mine.read_text() == "precious"
    assert not (bundle / VERIFIED).is_symlink()


# The run folder

WHOLE: dict[str, Any] = {"fingerprint": "f", "version": 1, "settings": {}, "inputs": {}, "seconds": 1.0, "libraries": {"torch": "2"}}


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
    assert read_tensor(tensors, "a").shape == (100,)
    with pytest.raises(StoreError, match="Cannot read tensors"):
        read_tensor(tensors, "b")
    for path, read in ((table, read_table), (tensors, read_tensors)):
        whole = path.read_bytes()
        for content in (whole[:-10], whole[:9], b"", b"\xff" * 9):
            path.write_bytes(content)
            with pytest.raises(StoreError, match="Cannot read"):
                read(path)
    for wrong in (frame.drop(columns="n"), frame.assign(value="x"), frame.assign(n=float("nan"))):
        wrong.to_parquet(table)
        with pytest.raises(StoreError, match="Cannot read table"):
            read_table(table, ("value", "n"))


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes"):
        read_json(written(tmp_path, "x.json", " " * (1 << 25)))


# What is handed on

MARKUP = "=owned{{ 7 * 7 }}{% x %}</script><script>owned</script><img src=x onerror=owned()><a href='javascript:owned()'>x</a>"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def test_no_cell_of_a_csv_is_a_formula() -> None:
    cells = ["=HYPERLINK(1)", "+1", "-1+2", "@SUM(1)", "\t=1", "\r=1", "fine", "a=b", "a\r=b"]
    text = csv_text(pd.DataFrame({"id": cells, "value": [-1.5] * len(cells)}))
    found = pd.read_csv(io.StringIO(text))
    assert [one[0] for one in found["id"][:6]] == ["'"] * 6
    assert list(found["id"][6:]) == ["fine", "a=b", "a\n=b"]
    assert (found["value"] == -1.5).all()


def test_no_cell_of_a_latex_table_is_a_command() -> None:
    assert escape("\\input{/etc/passwd}\n\n%$&#_^~\x1b\u202e") == (
        r"\textbackslash{}input\{/etc/passwd\} \%\$\&\#\_\textasciicircum{}\textasciitilde{}"
    )


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run whose words are hostile wherever a run has words."""
    run, out, study = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out"), make_study(arms=("sft",), steps=(50,))
    fabricate(run, study, count=8)
    folder = next(anchor for anchor in anchors(run, study) if anchor.step == 50).part("behavior")
    words = {"id": MARKUP, "request": MARKUP, "attack": MARKUP, "completion": MARKUP + EVIL + "y" * 100_000, "subset": MARKUP}
    rows = [{**row, **words} if place % 4 == 0 else row for place, row in enumerate(read_rows(folder / "transcripts.jsonl"))]
    written(folder, "transcripts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = pd.read_parquet(folder / "table.parquet")
    table.assign(subset=[MARKUP if one == "new" else one for one in table["subset"]]).to_parquet(folder / "table.parquet")
    points = folder.parent / "projection" / "points.parquet"
    pd.read_parquet(points).assign(id=MARKUP).to_parquet(points)
    written(folder, STAGE, json.dumps({**WHOLE, "id": MARKUP, "libraries": {MARKUP: MARKUP}}))
    pd.DataFrame({name: [MARKUP] for name in ("set", "what", "n", "rows", "done")}).to_csv(run / "data.csv", index=False)
    page = build_report(run, study, out).read_text(encoding="utf-8")
    with (out / "tables" / "behavior.csv").open(encoding="utf-8") as file:
        assert any(row["subset"] == f"'{MARKUP}" for row in csv.DictReader(file))
    return page


def test_no_word_of_a_run_is_markup_on_the_page(hostile_page: str) -> None:
    assert "=owned{{ 7 * 7 }}{% x %}" in hostile_page
    for harm in ("<script>owned", "<img src=x", "<a href='javascript:owned"):
        assert harm not in hostile_page


def test_no_word_of_a_run_is_markup_in_a_figure(hostile_page: str) -> None:
    text = hostile_page.split('<script type="application/json" id="figures">', 1)[1].split("</script>", 1)[0]
    said = [one for one in _strings(json.loads(text)) if "owned" in one]
    assert said
    assert not any("<img" in one or "<a " in one for one in said)


# Models


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[9].x.y }}",
        "{{ 1 + 'a' }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('owned') }}",
        "{% include '/etc/passwd' %}",
        "{% if",
    ],
)
def test_a_chat_template_that_bites_is_refused(
    template: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ModelSettings(path=str(tiny_model_dir), chat_template=template)
    with pytest.raises(ModelError, match="chat template"):
        load_renderer(settings)[0].prompt("hello")
    assert not list(tmp_path.iterdir())


def test_a_chat_template_that_is_no_text_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_renderer(ModelSettings(path=str(tiny_model_dir), chat_template=str(written(tmp_path, "t.jinja", b"\xff"))))


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, b"\x10\0\0\0\0\0\0\0{"])
def test_weights_that_are_cut_off_are_said(content: bytes, tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        written(tmp_path, file.name, file.read_bytes())
    written(tmp_path, "model.safetensors", content)
    with pytest.raises(ModelError, match="Cannot load"):
        load(ModelSettings(path=str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", DEEP),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": "x"}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 5}'),
        ("tokenizer_config.json", "[1]"),
    ],
)
def test_files_of_a_model_that_bite_are_refused(name: str, content: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        written(tmp_path, file.name, file.read_bytes())
    written(tmp_path, name, content)
    with pytest.raises(ModelError):
        load(ModelSettings(path=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("content", ["[1]", DEEP, '{"base_model_name_or_path": 5}', "{}"])
def test_an_adapter_that_bites_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load(ModelSettings(path=str(written(tmp_path, "adapter_config.json", content).parent), device="cpu"))


def test_code_of_a_model_is_not_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        written(tmp_path, file.name, file.read_bytes())
    written(tmp_path, "evil.py", f"open({str(tmp_path / 'owned')!r}, 'w')\n\nclass Config: pass\n")
    written(
        tmp_path, "config.json", '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Config"}}'
    )
    with pytest.raises(ModelError):
        load(ModelSettings(path=str(tmp_path), device="cpu"))
    assert not (tmp_path / "owned").exists()


def test_half_characters_are_judged_by_nobody() -> None:
    with pytest.raises(DataError, match="surrogate"):
        judge([{"request": "q", "completion": "\ud800"}], study="pocket", overrides=["judge={kind: rules}"])


@pytest.mark.parametrize("key", ["geheim\nX-Evil: 1", "geheim\u00fc"])
def test_a_key_that_is_none_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", key)
    with pytest.raises(ConfigError, match="THE_KEY") as error:
        Served(ServedSettings(url="http://localhost:1/v1", model="m", key_variable="THE_KEY"))
    assert "geheim" not in str(error.value)


def test_every_refusal_is_of_one_family() -> None:
    assert all(issubclass(kind, RefgeoError) for kind in (ConfigError, DataError, ModelError, StoreError))


def test_a_study_of_hostile_words_is_printed_as_yaml_that_reads_back(tmp_path: Path) -> None:
    study = load_study("pocket").model_copy(update={"name": EVIL})
    text = commented_yaml(study)
    assert harmless(text)
    assert load_study(str(written(tmp_path, "s.yaml", text))).name == EVIL

"""Words that somebody wrote to do harm are shown as what they are: in a terminal, a table, a paper's table, the page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from command import Refgeo
from fabricated_run import fabricate, make_study
from hostile import BEFORE, EVIL, WHOLE, harmless, written
from refgeo.config.load import load_study
from refgeo.errors import LONGEST, DataError
from refgeo.report.build import build_report
from refgeo.report.latex import escape
from refgeo.study.files import csv_text
from refgeo.study.layout import anchors
from refgeo.study.reading import read_rows
from refgeo.study.store import STAGE
from refgeo.study.terminal import Terminal, visible


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
def test_an_error_repeats_nothing_that_a_terminal_obeys(refgeo: Refgeo, words: list[str]) -> None:
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


def test_a_hostile_value_in_a_plan_is_shown_as_it_is(refgeo: Refgeo, tmp_path: Path) -> None:
    study = written(tmp_path, "study.yaml", BEFORE + "model: {system_prompt: " + json.dumps(EVIL) + "}\n")
    answer = refgeo("config", study)
    assert answer.code == 0
    assert harmless(answer.out)
    assert load_study(str(written(tmp_path, "again.yaml", answer.out))) == load_study(str(study))


def test_a_message_quotes_megabytes_in_part() -> None:
    assert len(str(DataError(f"The cell is {'x' * 10_000_000}", fix="Shorten it"))) < 2 * LONGEST


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

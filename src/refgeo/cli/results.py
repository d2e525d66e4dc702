"""The commands around a finished run: compare two, and hand one on as figures and tables, or as logs of Inspect."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refgeo.cli.common import app, quiet_libraries, working
from refgeo.cli.studies import RunFolder, run_folder
from refgeo.study.terminal import Terminal

if TYPE_CHECKING:
    import pandas as pd

    from refgeo.report.diff import Difference

PANEL = "A finished run"
SHOWN = 40
"""Numbers that ``refgeo diff`` prints unless asked for all."""
WRITTEN = "What was written stays."
LONGEST_CELL = 80
"""Characters of a setting's value that it prints."""


class Format(StrEnum):
    """Formats of static figures."""

    PDF = "pdf"
    SVG = "svg"
    PNG = "png"


@app.command(rich_help_panel=PANEL)
def diff(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="Write every shared number of both.")] = None,
    everything: Annotated[bool, typer.Option("--all", help=f"Print every number that moved, not only the {SHOWN} largest.")] = False,
) -> None:
    """Say how two runs differ: in settings, data, versions and stages, and in the numbers that moved beyond their intervals.

    Example: refgeo diff runs/a runs/b

    It informs: the exit code is 0 whatever differs.
    """
    for folder in (run_a, run_b):
        run_folder(folder)
    from refgeo.report.diff import diff as compare
    from refgeo.study.files import save_csv, storing

    found = compare(run_a, run_b)
    console = Terminal()
    _tell_making(console, found)
    _tell_numbers(console, found.numbers, None if everything else SHOWN)
    if output is not None:
        with storing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            save_csv(output, found.numbers)
        console.print(f"All {len(found.numbers)} shared numbers: {output}", soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def figures(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the files go.")],
    kind: Annotated[Format, typer.Option("--format", help="Format of the figures.")] = Format.PDF,
    dark: Annotated[bool, typer.Option("--dark", help="The dark colors of the page.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only figures whose name begins so; may be given several times.")
    ] = None,
) -> None:
    """Write every figure of the report as a file for a paper, the captions, and the tables as CSV, Parquet and LaTeX.

    Example: refgeo figures runs/pocket -o figures --format svg

    Needs kaleido (pip install 'refgeo[figures]') and Chrome or Chromium for the figures; the tables are written all the same. A browser
    that is not found by itself is named by BROWSER_PATH. Ctrl-C keeps what is drawn.
    """
    quiet_libraries()
    chosen, folder = run_folder(run)
    from refgeo.report.static import fresh_report, write_figures, write_tables

    console = Terminal()
    with working("reading the run", lambda: WRITTEN) as told, fresh_report(folder, chosen) as report:
        told(0, 0, "writing tables")
        tables = write_tables(report, folder, chosen, output)
        console.print(f"{len(tables)} tables in {output / 'tables'}", soft_wrap=True)
        told(0, 0, "starting the browser")
        found = write_figures(report, output, kind.value, dark, only or (), lambda done, total: told(done, total, "drawing figures"))
    console.print(f"{len(found)} figures in {output}; what they show is in {output / 'captions.md'}", soft_wrap=True)


@app.command("export-inspect", rich_help_panel=PANEL)
def export_inspect(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Log folder: inspect view start --log-dir DIR.")],
) -> None:
    """Write the judged completions as logs of Inspect, one per anchor and set, for 'inspect view'.

    Example: refgeo export-inspect runs/pocket -o logs

    The logs hold every completion, whatever report.transcripts says. Needs inspect-ai (pip install 'refgeo[inspect]').
    """
    from refgeo.report.inspect_log import export

    quiet_libraries()
    chosen, folder = run_folder(run)
    with working("reading the run", lambda: WRITTEN) as told:
        found = export(folder, chosen, output, lambda done, total: told(done, total, "writing logs"))
    console = Terminal()
    console.print(f"{len(found)} logs in {output}. Look at them with: inspect view start --log-dir {output}", soft_wrap=True)


def _tell_making(console: Terminal, found: Difference) -> None:
    """How the two runs were made."""
    first, second = (digest[:16] for digest in found.hashes)
    same = "the same in both" if found.hashes[0] == found.hashes[1] else f"differs, {second} in b"
    console.print(f"Protocol hash {first}: {same}.")
    for title, table in (
        ("Settings, data and judge", found.settings),
        ("Versions", found.versions),
        ("Stages in one run only", found.only),
    ):
        if len(table):
            console.print(f"\n{title}:")
            _print(console, [list(table.columns), *([_cut(cell) for cell in row] for row in table.astype(str).to_numpy().tolist())])
    if not len(found.settings) + len(found.versions) + len(found.only):
        console.print("The same settings, data, judge, versions and stages.")


def _cut(cell: str) -> str:
    """A value of a setting that is a long list makes every line as long."""
    return cell if len(cell) <= LONGEST_CELL else f"{cell[: LONGEST_CELL - 3]}..."


def _tell_numbers(console: Terminal, numbers: pd.DataFrame, most: int | None) -> None:
    """What moved, and how much else there is."""
    from refgeo.report.diff import largest, named, without_interval
    from refgeo.report.rules import number

    moved = largest(numbers)
    if len(moved):
        console.print(f"\n{len(moved)} of {len(numbers)} shared numbers moved beyond their intervals (b minus a; largest first):")
        rows = [["table", "arm", "seed", "step", "set", "metric", "", "a", "b", "difference"]]
        for row in moved.head(len(moved) if most is None else most).to_dict("records"):
            part = "" if row["subset"] == "all" else f"subset {row['subset']}"
            what = ", ".join(words for words in (part, named({str(key): value for key, value in row.items()})) if words)
            change = f"{number(row['difference'])} [{number(row['low'])}, {number(row['high'])}]"
            place = [str(row[name]) for name in ("table", "arm", "seed", "step", "set", "metric")]
            rows.append([*place, what, number(row["value_a"]), number(row["value_b"]), change])
        _print(console, rows)
        if most is not None and len(moved) > most:
            console.print(f"{len(moved) - most} more: --all prints them, -o FILE.csv writes every shared number.")
    elif len(numbers):
        console.print(f"None of {len(numbers)} shared numbers moved beyond its interval.")
    else:
        console.print("No number is in both runs: a number is shared when arm, seed, step, set and metric are the same.")
    bare = without_interval(numbers)
    if bare:
        console.print(f"{bare} numbers without an interval differ: -o FILE.csv has them.")


def _print(console: Terminal, rows: list[list[str]]) -> None:
    """A plain table; lines are not cut where there is no terminal."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="dim")
    for name in rows[0]:
        shown.add_column(name, overflow="fold")
    for row in rows[1:]:
        shown.add_row(*row)
    needed = sum(max(len(row[place]) for row in rows) + 2 for place in range(len(rows[0])))
    wide = console if console.is_terminal else Terminal(width=max(console.width, needed))
    wide.print(shown)

"""The commands for one instrument alone: attack, scan, intervene, judge; and selfcheck, which tries them where there is nothing."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refgeo.cli.common import app, preset_names, quiet_libraries, working
from refgeo.study.terminal import Terminal

if TYPE_CHECKING:
    from rich.table import Table

PANEL = "One instrument alone"
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL", help="Folder or hub id, path@revision, base+adapter; package:pocket/world/model is the one that comes along."
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the results go; a new, an empty or its own folder.")]
StudyOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="STUDY",
        help="Preset, YAML file or run folder with the sets, the judge and the settings; found from the first model when absent.",
        autocompletion=preset_names,
    ),
]
Change = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting to change; may be repeated.")]


@app.command(rich_help_panel=PANEL)
def attack(models: Models, output: Output, study: StudyOption = None, change: Change = None) -> None:
    """Attack a model with strings optimized on itself, and judge what it answers.

    Example: refgeo attack package:pocket/world/model -o out/attack --set stress.behaviors=4

    Writes table.parquet (success within each budget), transcripts.jsonl, cases.jsonl (the strings found) and records.parquet (every
    step). Ctrl-C keeps the strings found so far.
    """
    quiet_libraries()
    with working("loading", partial(_kept, output)) as progress:
        from refgeo.instruments.attacking import attack as run
        from refgeo.instruments.told import told_attack

        told = told_attack(run(models, study=study, overrides=change or [], output=output, progress=progress))
    _tell(*told, output / "table.parquet")


@app.command(rich_help_panel=PANEL)
def scan(models: Models, output: Output, study: StudyOption = None, change: Change = None) -> None:
    """Find which direction in which layer carries refusal, and show it as a page.

    Example: refgeo scan package:pocket/world/model -o out/scan

    Writes index.html (maps and numbers), scan.csv and scan.parquet (a row per position and layer), table.parquet, carrier.json and
    tensors.safetensors.
    """
    quiet_libraries()
    with working("loading", partial(_kept, output)) as progress:
        from refgeo.instruments.scanning import scan as run
        from refgeo.instruments.told import told_scan

        told = told_scan(run(models, study=study, overrides=change or [], output=output, progress=progress))
    _tell(*told, output / "index.html")


@app.command(rich_help_panel=PANEL)
def intervene(
    models: Models,
    output: Output,
    scan: Annotated[
        Path | None,
        typer.Option("--scan", metavar="DIR", help="Folder of 'refgeo scan', or a run's geometry folder; scans first when absent."),
    ] = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", metavar="FILE", help="Attacked prompts (cases.jsonl) to be answered as well.")
    ] = None,
    study: StudyOption = None,
    change: Change = None,
) -> None:
    """Remove and add the direction while the model answers, beside random directions. Weights stay as they are.

    Example: refgeo intervene package:pocket/world/model -o out/intervene --scan out/scan

    Writes table.parquet (rates and their changes) and transcripts.jsonl; without --scan also the scan.
    """
    quiet_libraries()
    with working("loading", partial(_kept, output)) as progress:
        from refgeo.instruments.intervening import intervene as run
        from refgeo.instruments.told import told_intervention

        found = run(models, study=study, overrides=change or [], output=output, scan=scan, cases=cases, progress=progress)
        told = told_intervention(found)
    _tell(*told, output / "table.parquet")


@app.command(rich_help_panel=PANEL)
def judge(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="jsonl, csv or parquet with request (or prompt) and completion; optional: reference, set.")
    ],
    output: Output,
    second: Annotated[
        str | None,
        typer.Option("--second", metavar="JUDGE", help="A second judge: a kind (rules, harmbench...), or YAML or JSON of its settings."),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            "--study", metavar="STUDY", help="Whose judge: preset, YAML file or run folder; the folder that FILE lies in when absent."
        ),
    ] = None,
    change: Change = None,
) -> None:
    """Judge completions that exist already, and tell how far the judge can be trusted.

    Example: refgeo judge out/attack/transcripts.jsonl -o out/judge --second rules

    Writes verdicts.jsonl, summary.csv (rates, the unscored and what they could change, agreement) and floor.csv (what the judge gives to
    replies that help nobody).
    """
    quiet_libraries()
    with working("loading", partial(_kept, output)) as progress:
        from refgeo.instruments.judging import judge as run
        from refgeo.instruments.told import told_judgement

        told = told_judgement(run(file, study=study, overrides=change or [], output=output, second=second, progress=progress))
    _tell(*told, output / "verdicts.jsonl")


@app.command(rich_help_panel=PANEL)
def selfcheck(
    study: Annotated[
        str | None,
        typer.Option(
            "--study", metavar="STUDY", help="Preset, YAML file or run folder whose model, judge and sets are used; pocket when absent."
        ),
    ] = None,
    change: Change = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="GROUP", help="random, shuffled, same, judge, fake, statistics; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the table goes; a new, an empty or its own folder.")
    ] = None,
) -> None:
    """Run the whole measurement where nothing should be found: exit code 0 when every null is null, 1 when one is not.

    Example: refgeo selfcheck --study pocket

    Random weights, shuffled labels, a model against itself, canned answers, interventions that do nothing, null comparisons. Writes
    nothing without -o; with it selfcheck.csv and table.parquet.
    """
    quiet_libraries()
    with working("loading", partial(_kept, output)) as progress:
        from refgeo.instruments.selfcheck import selfcheck as run
        from refgeo.instruments.selfcheck import told_selfcheck

        found = run(study, overrides=change or [], only=only or [], output=output, progress=progress)
        told = told_selfcheck(found)
    _tell(*told, None if output is None else output / "selfcheck.csv")
    if (found["verdict"] == "NOT NULL").any():
        raise typer.Exit(1)


def _kept(output: Path | None) -> str:
    """What an interrupted instrument left. Whatever writes is loaded by then; loading anew what an interrupt cut off would fail."""
    read_record = getattr(sys.modules.get("refgeo.instruments.output"), "read_record", None)
    record = read_record(output) if read_record is not None and output is not None and output.is_dir() else None
    return f"Kept in {output}: {record['note']}." if record is not None and not record["complete"] else "Nothing was written."


def _tell(table: Table, words: list[str], result: Path | None) -> None:
    console = Terminal()
    console.print(table)
    for line in words:
        console.print(line, soft_wrap=True)
    if result is not None:
        console.print(f"Results: {result}", soft_wrap=True)

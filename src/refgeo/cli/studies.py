"""The commands for whole studies and their run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refgeo import __version__
from refgeo.cli.common import INTERRUPTED, Commands, app, interruptible, preset_names, quiet_libraries, working
from refgeo.errors import ConfigError, StoreError
from refgeo.study.terminal import Terminal

if TYPE_CHECKING:
    from refgeo.config.schema import Study

REPORT_BUILDER = "refgeo.report.build:build_report"
"""The function that makes the page, by import path: it is called in a worker."""

PANEL = "A whole study"
BEFORE = "Settings, data and the embedded model"

pocket = Commands(no_args_is_help=True, help="The small model that comes along, and the fictional town that it knows.")
app.add_typer(pocket, name="pocket", rich_help_panel=BEFORE)

StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A preset ('refgeo presets' lists them), a YAML file, or the folder of a run.", autocompletion=preset_names
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings to change, such as 'train.seeds=\\[1,2,3]'; 'refgeo config STUDY' prints all of them."
    ),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Run folder; runs/<name of the study> when absent.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder: what 'refgeo run' or 'refgeo measure' made.")]


@app.command(rich_help_panel=PANEL)
def run(study: StudyArgument, overrides: Overrides = None, output: Output = None) -> None:
    """Run a study: train, measure every anchor, and write the report. What is done already is kept.

    Example: refgeo run pocket 'train.seeds=[1,2,3]' -o runs/three

    Stopped by Ctrl-C or killed, the same command goes on from there. After a changed setting only what depends on it is made again.
    Exit code 0 when all is done, 2 after an error to be corrected, 1 after a crash (its log is named), 130 when interrupted.
    """
    chosen, folder = _study(study, overrides, output)
    _run_and_tell(chosen, folder)


@app.command(rich_help_panel=PANEL)
def measure(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folder or hub id, path@revision, base+adapter; the first is the start.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Run folder.")],
    study: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Preset, YAML file or run folder with the sets, the judge and the measures; found from the models when absent.",
            autocompletion=preset_names,
        ),
    ] = None,
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting to change; may be repeated.")] = None,
) -> None:
    """Measure existing checkpoints by the whole protocol, without training, and write the report.

    Example: refgeo measure org/base org/base+path/to/adapter -o runs/mine

    Hub ids, folders and adapters may be mixed; the first one is what the others are compared with. Steps are read from the names
    (step-250, checkpoint-500) when all have one, else they are 1, 2, 3...
    """
    from refgeo.study.measure import check_folder, measuring_study

    check_folder(output)
    _run_and_tell(measuring_study(models, study, change or [], name=output.absolute().name), output)


def _run_and_tell(chosen: Study, folder: Path) -> None:
    """Run a study in the terminal. Exits with code 2 after an error made on purpose, 1 after another, 130 when interrupted."""
    from refgeo.study.closing import closing_words
    from refgeo.study.run import run_study
    from refgeo.study.screen import duration

    quiet_libraries()
    if chosen.report.claims is not None:
        from refgeo.report.claims_added import load_claims

        load_claims(chosen.report.claims)  # A rule that cannot be read is said now, not when all else is done.
    console = Terminal()
    try:
        with interruptible():  # workers are stopped first
            outcome = run_study(chosen, folder, REPORT_BUILDER, console)
    except KeyboardInterrupt:
        Terminal(stderr=True).print("Stopped. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None
    if outcome.failed:
        errors = Terminal(stderr=True)
        for message in dict.fromkeys(outcome.failed.values()):
            errors.print(f"Error: {message}", soft_wrap=True)
        errors.print(f"Failed: {'; '.join(outcome.failed)}. Not made because of that: {len(outcome.blocked)}.", soft_wrap=True)
        raise typer.Exit(1 if outcome.crashed else 2)
    if outcome.made:
        console.print(f"{outcome.made} of {outcome.stages} stages made in {duration(outcome.seconds)}.")
        for line in closing_words(folder, chosen):
            console.print(line, soft_wrap=True)
    else:
        console.print(f"Nothing to do: all {outcome.stages} stages are done.")
    console.print(f"Report: {outcome.page}", soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def plan(study: StudyArgument, overrides: Overrides = None, output: Output = None) -> None:
    """Show what would run and why, what is done already, and what it would cost. Changes nothing.

    Example: refgeo plan mistral-7b-lite
    """
    from refgeo.study.run import absolute, open_study
    from refgeo.study.screen import duration, remaining
    from refgeo.study.tables import plan_table

    chosen, folder = _study(study, overrides, output)
    resolved = absolute(chosen)
    store, graph = open_study(resolved, folder, REPORT_BUILDER)
    records = store.records(graph.stages.values())
    done = graph.done(records)
    console = Terminal()
    console.print(plan_table(graph, done, records))
    left = remaining(graph, done, records)
    cost = "" if left is None else f", about {duration(left)} of work" if left else ""
    console.print(f"{len(graph.stages) - len(done)} of {len(graph.stages)} stages to make{cost}, in {folder}", soft_wrap=True)
    if any(stage.kind == "reference" and name not in done for name, stage in graph.stages.items()):
        console.print("Drift, and the measures of a reference found by rule, are added once that reference is found.")
    waiting = [stage for name, stage in graph.stages.items() if name not in done]
    if waiting:
        from refgeo.study.estimate import estimate
        from refgeo.study.estimate_table import estimate_report

        quiet_libraries()
        console.print()
        console.print(estimate_report(estimate(resolved, waiting)))


@app.command(rich_help_panel=BEFORE)
def fetch(
    study: StudyArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The bundle.")] = Path("bundle"),
) -> None:
    """Download all that a study needs into a folder, with hashes, for a machine without network.

    Example: refgeo fetch mistral-7b-lite -o bundle

    There: refgeo run mistral-7b-lite data.bundle=bundle
    """
    quiet_libraries()
    chosen = _study(study, overrides, output)[0]
    from refgeo.study.estimate_table import size
    from refgeo.study.fetch import check_bundle
    from refgeo.study.fetch import fetch as fetch_bundle

    console = Terminal()

    def tell(done: int, total: int, what: str) -> None:
        if what:
            console.print(f"[{done + 1}/{total}] {what}", soft_wrap=True)

    try:
        with interruptible():
            manifest = fetch_bundle(chosen, output, tell)
            check_bundle(chosen, output)
    except KeyboardInterrupt:
        Terminal(stderr=True).print("Stopped. What is whole is kept; the same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None
    console.print(f"{len(manifest.items)} items, {size(manifest.size)} in {output}. Use it with data.bundle={output}", soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def status(
    folder: RunFolder,
    live: Annotated[
        bool | None,
        typer.Option("--watch/--once", help="Refresh until the run is finished or Ctrl-C; by default on a terminal while it runs."),
    ] = None,
) -> None:
    """Show how far a run is, also while it runs elsewhere: stages, anchors, progress, last numbers.

    Example: refgeo status runs/pocket
    """
    from refgeo.study.watch import look, watch

    chosen, folder = run_folder(folder)
    console = Terminal()
    seen = look(chosen, folder, REPORT_BUILDER)
    if live or (live is None and console.is_terminal and seen.at_work):
        watch(console, lambda: look(chosen, folder, REPORT_BUILDER), patient=bool(live))
    else:
        console.print(seen.shown)


@app.command(rich_help_panel=PANEL)
def report(folder: RunFolder) -> None:
    """Make the report of a run again from the measurements that are there.

    Example: refgeo report runs/pocket
    """
    from refgeo.study.run import rebuild_report

    quiet_libraries()
    chosen, folder = run_folder(folder)
    page = rebuild_report(chosen, folder, REPORT_BUILDER)
    Terminal().print(f"Report: {page}", soft_wrap=True)


@app.command(rich_help_panel=BEFORE)
def presets() -> None:
    """List the studies that come with refgeo.

    Example: refgeo presets
    """
    from refgeo.config.load import presets as names

    for name in names():
        typer.echo(name)


@app.command(rich_help_panel=BEFORE)
def config(study: StudyArgument, overrides: Overrides = None) -> None:
    """Print a study with every setting and what it means: a start for a YAML file of your own.

    Example: refgeo config pocket > study.yaml
    """
    from refgeo.config.load import commented_yaml

    typer.echo(commented_yaml(_study(study, overrides, None)[0]))


@pocket.command("build")
def build(
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    world_seed: Annotated[int | None, typer.Option(help="Seed of the world; the shipped world's by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; a short training for a look.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the world goes.")] = Path("pocket-world"),
) -> None:
    """Write the files of the town, train its model, and compare both with what is shipped. Ten minutes on one core.

    Example: refgeo pocket build --steps 50 -o world

    That is a look only: a model of 50 steps knows next to nothing, and the comparison says so.
    """
    from refgeo.pocket.build import SHIPPED_SEED, compare
    from refgeo.pocket.build import build as build_world

    quiet_libraries()

    def left() -> str:
        return f"What is in {output} is not finished; the same command starts anew." if output.exists() else "Nothing was written."

    with working("pretraining", left) as progress:
        made = build_world(output, SHIPPED_SEED if world_seed is None else world_seed, seed, progress, steps)
    console = Terminal()
    console.print(f"Built world {made.world_seed} with {made.parameters:,} parameters in {output}", soft_wrap=True)
    console.print(compare(output).summary())


@app.command(rich_help_panel=BEFORE)
def version() -> None:
    """Print the version.

    Example: refgeo version
    """
    typer.echo(__version__)


def _tell_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """What may stand before a command."""


def _study(given: str, overrides: list[str] | None, output: Path | None) -> tuple[Study, Path]:
    """The study that the user means and its run folder."""
    from refgeo.config.load import load_study
    from refgeo.config.locations import is_name, local_path

    if local_path(given).is_dir():
        chosen, folder = run_folder(Path(given), overrides)
        return chosen, output or folder
    chosen = load_study(given, overrides or [])
    if not output and not is_name(chosen.name):
        raise ConfigError(f"The study name '{chosen.name}' is no folder name", fix="Change name, or choose a run folder (-o DIR)")
    return chosen, output or Path("runs") / chosen.name


def run_folder(folder: Path, overrides: list[str] | None = None) -> tuple[Study, Path]:
    """The study of a run folder, and the folder. Raises ``StoreError`` when it is none."""
    from refgeo.config.load import load_study
    from refgeo.study.store import CONFIG

    if not (folder / CONFIG).is_file():
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG}"))
        problem = (
            f"'{folder}' has no {CONFIG}" if folder.is_dir() else f"'{folder}' is a file" if folder.exists() else f"There is no '{folder}'"
        )
        fix = f"Did you mean '{inside[0]}'?" if inside else "Give the folder that 'refgeo run' or 'refgeo measure' made"
        raise StoreError(problem, expected="a run folder", fix=fix)
    return load_study(str(folder / CONFIG), overrides or []), folder

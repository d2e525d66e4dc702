"""The commands for whole studies and their run folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refgeo import __version__
from refgeo.cli.common import app, interruptible, quiet_libraries
from refgeo.errors import ConfigError, StoreError
from refgeo.study.terminal import Terminal

if TYPE_CHECKING:
    from refgeo.config.schema import Study

REPORT_BUILDER = "refgeo.report.build:build_report"
"""The function that makes the page, by import path: it is called in a worker."""

pocket = typer.Typer(no_args_is_help=True, help="The embedded world.")
app.add_typer(pocket, name="pocket")

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A preset, a YAML file, or a run folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as train.seeds=[1,2,3].")]
Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Run folder; runs/<name> by default.")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]


@app.command()
def run(study: StudyArgument, overrides: Overrides = None, output: Output = None) -> None:
    """Run a study: what is done already is kept, what a change made stale is made again. Ends with a report."""
    chosen, folder = _study(study, overrides, output)
    _run_and_tell(chosen, folder)


@app.command()
def measure(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="path, path@revision, base+adapter; the first is the start.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Run folder.")],
    study: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Preset, YAML file or run folder with the sets, the judge and the measures; found from the models when absent.",
        ),
    ] = None,
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting to change; may be repeated.")] = None,
) -> None:
    """Measure existing checkpoints, without training, by the whole protocol: hub ids, folders, adapters, mixed. Ends with a report.

    Steps are read from the names (step-250, checkpoint-500) when all have one, else they are 1, 2, 3...
    """
    from refgeo.study.measure import measuring_study

    _run_and_tell(measuring_study(models, study, change or [], name=output.absolute().name), output)


def _run_and_tell(chosen: Study, folder: Path) -> None:
    """Run a study in the terminal. Exits with code 2 after an error made on purpose, 1 after another, 130 when interrupted."""
    from refgeo.study.judged import closing_words
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
        raise typer.Exit(130) from None
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


@app.command()
def plan(study: StudyArgument, overrides: Overrides = None, output: Output = None) -> None:
    """Show what would run and why, what is done already, and what it would cost. Changes nothing."""
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


@app.command()
def fetch(
    study: StudyArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The bundle.")] = Path("bundle"),
) -> None:
    """Download all that a study needs into a folder with hashes, for a machine without network: there, set data.bundle=DIR."""
    from refgeo.study.fetch import fetch as fetch_bundle

    quiet_libraries()
    console = Terminal()

    def tell(done: int, total: int, what: str) -> None:
        if what:
            console.print(f"[{done}/{total}] {what}", soft_wrap=True)

    manifest = fetch_bundle(_study(study, overrides, output)[0], output, tell)
    size = f"{len(manifest.items)} items, {manifest.size / 1e9:.2f} GB in {output}"
    console.print(f"{size}. Use it with data.bundle={output}", soft_wrap=True)


@app.command()
def status(
    folder: RunFolder,
    live: Annotated[
        bool | None,
        typer.Option("--watch/--once", help="Refresh until the run is finished or Ctrl-C; by default on a terminal while it runs."),
    ] = None,
) -> None:
    """Show how far a run is, also while it runs elsewhere: stages, anchors, progress, last numbers."""
    from refgeo.study.watch import look, watch

    chosen, folder = run_folder(folder)
    console = Terminal()
    seen = look(chosen, folder, REPORT_BUILDER)
    if live or (live is None and console.is_terminal and seen.at_work):
        watch(console, lambda: look(chosen, folder, REPORT_BUILDER), patient=bool(live))
    else:
        console.print(seen.shown)


@app.command()
def report(folder: RunFolder) -> None:
    """Make the report again from what is there."""
    from refgeo.study.run import rebuild_report

    quiet_libraries()
    chosen, folder = run_folder(folder)
    page = rebuild_report(chosen, folder, REPORT_BUILDER)
    Terminal().print(f"Report: {page}", soft_wrap=True)


@app.command()
def presets() -> None:
    """List the studies that come with refgeo."""
    from refgeo.config.load import presets as names

    for name in names():
        typer.echo(name)


@app.command()
def config(study: StudyArgument, overrides: Overrides = None) -> None:
    """Print a study with every setting and what it means: a start for a YAML file of your own."""
    from refgeo.config.load import commented_yaml

    typer.echo(commented_yaml(_study(study, overrides, None)[0]))


@pocket.command("build")
def build(
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    world_seed: Annotated[int | None, typer.Option(help="Seed of the world; the shipped world's by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; a short training for a look.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the world goes.")] = Path("pocket-world"),
) -> None:
    """Write the files of the embedded world, train its model, and compare both with what is shipped."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from refgeo.pocket.build import SHIPPED_SEED, compare
    from refgeo.pocket.build import build as build_world

    quiet_libraries()
    console = Terminal()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("pretraining", total=None)
        made = build_world(
            output,
            SHIPPED_SEED if world_seed is None else world_seed,
            seed,
            lambda done, total, note: bar.update(task, completed=done, total=total, description=note or "pretraining"),
            steps,
        )
    console.print(f"Built world {made.world_seed} with {made.parameters:,} parameters in {output}", soft_wrap=True)
    console.print(compare(output).summary())


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


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
        raise StoreError(f"'{folder}' has no {CONFIG}", expected="a run folder", fix="Give the folder that 'refgeo run' made")
    return load_study(str(folder / CONFIG), overrides or []), folder

"""What the site shows and ``docs/`` does not hold: commands from their ``--help``, settings from the configuration tree, the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from typer.main import get_command

from refgeo.cli import app
from refgeo.config.load import load_study, presets
from refgeo.config.schema import Study

WIDTH = 100
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs: adds the generated pages to those that are written by hand."""
    for name, text in (("commands", commands()), ("settings", settings())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    results = sorted([*BENCHMARKS.glob("results/*.md"), *BENCHMARKS.glob("results/*.svg")])
    for source in (BENCHMARKS / "README.md", *results):
        files.append(File.generated(config, f"benchmarks/{source.relative_to(BENCHMARKS).as_posix()}", abs_src_path=str(source)))
    links = [f"- [{source.stem}]({source.name})" for source in results]
    files.append(File.generated(config, "benchmarks/results/index.md", content="\n".join(["# Results of single runs", "", *links, ""])))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Called by MkDocs: a link to the benchmarks beside ``docs/`` leads to their pages on the site."""
    return markdown.replace("](../benchmarks/results/)", "](benchmarks/results/index.md)").replace("](../benchmarks/", "](benchmarks/")


def commands() -> str:
    """Every command with its help."""
    lines = ["# Commands", "", "What `--help` says, command by command.", ""]
    for name, text in _helps(get_command(app), "refgeo"):
        lines += [f"## {name}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def _helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    inner = getattr(command, "commands", {})
    if not inner:
        context = typer.Context(command, info_name=name, max_content_width=WIDTH, terminal_width=WIDTH)
        yield name, "\n".join(line.rstrip() for line in _plain(command, context).replace("\\[", "[").splitlines())  # no markup here
    for word, child in inner.items():
        yield from _helps(child, f"{name} {word}")


def _plain(command: Any, context: typer.Context) -> str:
    formatter = context.make_formatter()
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    command.format_options(context, formatter)
    return str(formatter.getvalue()).strip()


def settings() -> str:
    """Every setting with its meaning and its default, section by section."""
    intro = (
        "Any of them can be changed on the command line (`refgeo run pocket train.steps=100`) or in a YAML file that starts from a preset\n"
        "(`refgeo config pocket > study.yaml`). Unknown names are refused."
    )
    lines = ["# Settings", "", intro, "", f"Presets: {', '.join(f'`{name}`' for name in presets())}.", ""]
    return "\n".join([*lines, *_section(Study, load_study("pocket"), "")])


def _section(kind: type[BaseModel], example: BaseModel, prefix: str) -> list[str]:
    title = prefix.removesuffix(".") or "study"
    lines = [f"## {title}", "", _text(kind.__doc__), "", "| setting | default | meaning |", "|---|---|---|"]
    inner: list[str] = []
    for name, field in kind.model_fields.items():
        value = getattr(example, name)
        if isinstance(value, BaseModel):
            inner += _section(type(value), value, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_json(field.get_default(call_default_factory=True))}`"
        lines.append(f"| `{prefix}{name}` | {default} | {_text(field.description)} |")
    return [*lines, "", *inner]


def _json(value: Any) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, default=lambda one: one.model_dump(mode="json"), ensure_ascii=False)
    return (text if len(text) <= 60 else text[:57] + "...").replace("|", "\\|")


def _text(words: str | None) -> str:
    return " ".join((words or "").replace("``", "`").split()).replace("|", "\\|").replace("<", "&lt;")

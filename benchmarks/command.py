"""What the command lines of the benchmarks share: which model, how much of what, where the figures go."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.models import NAMES


def parser(about: str | None, **counts: int) -> argparse.ArgumentParser:
    """Options of a benchmark: the model, where it runs and ``counts``, each with its default."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=NAMES, default="M1")
    for name, default in {**counts, "threads": 1}.items():
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    return options


def tell(tables: Sequence[str], figures: Mapping[str, object], file: Path | None) -> None:
    """Print the tables and the figures; write the figures to ``file``, if any."""
    for text in tables:
        print(text, end="\n\n")
    for key, value in figures.items():
        print(f"{key:28} {value:.4g}" if isinstance(value, float) else f"{key:28} {value}")
    write_json(file, figures)


def write_json(path: Path | None, values: Mapping[str, object]) -> None:
    """Write the figures of one run, numbers at four significant digits."""
    if path is not None:
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
        path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")

"""Building a world: its files, its model, and the numbers that say what the model knows; and comparing a build with what is shipped.

Importing this module is light; torch is loaded when something is built.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from refgeo.config.locations import PACKAGE, locate
from refgeo.errors import StoreError
from refgeo.progress import Progress

if TYPE_CHECKING:
    from refgeo.pocket.town import World

SHIPPED = f"{PACKAGE}pocket/world"
"""Where the shipped world lies."""
SHIPPED_SEED = 8
REPORT = "build.json"
MODEL = "model"
TOLERANCE = 0.1
"""Two builds match when no share of right answers differs by more than this."""


@dataclass(frozen=True)
class BuildReport:
    """What was built and what the model knows; shares in [0, 1]."""

    world_seed: int
    train_seed: int
    steps: int
    parameters: int
    knowledge: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A build beside another one. ``files`` says of each world file whether it is byte for byte the same."""

    files: dict[str, bool]
    weights: float | None
    """Largest absolute difference of any weight; None when the shapes differ."""
    knowledge: dict[str, tuple[float, float]]
    """Share of right answers in the first and in the second build."""
    matches: bool
    """The files are identical and no share of right answers differs by more than ``TOLERANCE``. Weights need not be equal:
    another processor or library version rounds differently, and training amplifies it."""

    def summary(self) -> str:
        """The verdict in a few lines."""
        different = [name for name, same in self.files.items() if not same]
        far = {name: pair for name, pair in self.knowledge.items() if abs(pair[0] - pair[1]) > TOLERANCE}
        lines = [f"world files: {len(self.files) - len(different)} of {len(self.files)} identical"]
        lines += [f"  differs: {name}" for name in different]
        gap = "shapes differ" if self.weights is None else f"largest difference {self.weights:.3g}"
        lines.append(f"weights: {'bit for bit the same' if self.weights == 0 else gap}")
        lines.append(f"knowledge: {len(self.knowledge) - len(far)} of {len(self.knowledge)} measures within {TOLERANCE}")
        lines += [f"  {name}: {here:.2f} against {there:.2f}" for name, (here, there) in far.items()]
        lines.append("matches what is shipped" if self.matches else "does NOT match what is shipped")
        return "\n".join(lines)


def build(
    folder: Path,
    world_seed: int = SHIPPED_SEED,
    train_seed: int = 0,
    progress: Progress | None = None,
    steps: int | None = None,
) -> BuildReport:
    """Write the files of a world, train its model and measure what it knows.

    ``steps`` shortens the training. Raises ``StoreError`` before any work when the folder cannot be written or holds something else.
    """
    from dataclasses import replace

    import torch

    from refgeo.pocket.knowledge import measure
    from refgeo.pocket.tokenizer import save_tokenizer
    from refgeo.pocket.town import make_world
    from refgeo.pocket.train import Recipe, pretrain

    world = make_world(world_seed)
    write_files(world, folder)
    (folder / REPORT).unlink(missing_ok=True)  # It is the mark of a build that has come to its end.
    recipe = Recipe() if steps is None else replace(Recipe(), steps=steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = pretrain(world, recipe, train_seed, progress)
        torch.nn.Module.half(model)
        model.save_pretrained(folder / MODEL)
        save_tokenizer(world, folder / MODEL)
        numbers = {name: round(value, 4) for name, value in measure(world, folder / MODEL).items()}
    finally:
        torch.set_num_threads(threads)
    report = BuildReport(world_seed, train_seed, recipe.steps, sum(weight.numel() for weight in model.parameters()), numbers)
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return report


def write_files(world: World, folder: Path) -> None:
    """Write every file of a world except the model."""
    from refgeo.pocket.files import render

    texts = render(world)
    others = sorted({path.name for path in folder.iterdir()} - {*texts, MODEL, REPORT}) if folder.is_dir() else []
    if others:
        raise StoreError(
            f"'{folder}' holds '{others[0]}', which is no file of a world",
            fix="Choose a new folder, an empty one or that of a former build",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"Cannot write the world to '{folder}': {why}", fix="Choose a folder that can be written") from error


def read_report(folder: Path) -> BuildReport:
    """The report of a former build. Raises ``StoreError`` when there is none."""
    try:
        return BuildReport(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise StoreError(f"'{folder}' holds no finished build: {error}", fix="Run `refgeo pocket build` first") from error


def compare(folder: Path, other: Path | None = None) -> Comparison:
    """Compare a build with another one, by default with what is shipped."""
    from safetensors.torch import load_file

    shipped = other if other is not None else locate(SHIPPED)
    assert shipped is not None
    here, there = read_report(folder), read_report(shipped)
    names = sorted({path.name for base in (folder, shipped) for path in base.iterdir() if path.is_file() and path.name != REPORT})
    files = {name: _bytes(folder / name) == _bytes(shipped / name) for name in names}
    mine, theirs = load_file(folder / MODEL / "model.safetensors"), load_file(shipped / MODEL / "model.safetensors")
    same_shapes = {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}
    gap = max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in mine) if same_shapes else None
    known = [name for name in there.knowledge if name.startswith(("recipe_", "relation_", "right_")) and name in here.knowledge]
    knowledge = {name: (here.knowledge[name], there.knowledge[name]) for name in known}
    close = bool(knowledge) and all(abs(a - b) <= TOLERANCE for a, b in knowledge.values())
    return Comparison(files, gap, knowledge, matches=all(files.values()) and close)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None

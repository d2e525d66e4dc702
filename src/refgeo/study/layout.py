"""Where everything lies in a run folder. Pure path functions, for the stages that write and for the report that reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from refgeo.config.model import ModelSettings
from refgeo.config.schema import Study
from refgeo.errors import StoreError
from refgeo.study.forms import Form
from refgeo.study.reading import FIX, read_table, stage_json

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["behavior", "geometry", "drift", "transfer", "projection", "intervention", "stress", "replay"]
MEASURES: tuple[Measure, ...] = ("behavior", "geometry", "drift", "transfer", "projection", "intervention", "stress", "replay")
CASES = "cases.jsonl"
CASES_HASH = "cases.sha256"
RECORDS = "records.parquet"
TABLE = "table.parquet"
TRANSCRIPTS = "transcripts.jsonl"
SCAN = "scan.parquet"
CARRIER = "carrier.json"
TENSORS = "tensors.safetensors"
POINTS = "points.parquet"
AXES = "axes.safetensors"
AXES_PLACE = "axes.json"
TRAIN_LOG = "log.parquet"
ANCHOR = "anchor.json"
VERDICTS = "verdicts"
JUDGE_FLOOR = "judge/floor"
JUDGE_AGREEMENT = "judge/agreement"
DISAGREEMENTS = "disagreements.jsonl"
SURVEY = "data.csv"


@dataclass(frozen=True)
class AnchorRef:
    """One measured point of one arm and seed. ``folder`` is shared by all arms and seeds for step 0, the common start.

    ``own`` is the folder of this arm, seed and step itself, where drift lies: the start, too, drifts from each arm's own reference.
    """

    arm: str
    seed: int
    step: int
    label: str
    folder: Path
    own: Path
    is_reference: bool

    def part(self, measure: Measure) -> Path:
        """Folder of one measure at this anchor; it exists when that measure has been made."""
        return (self.own if measure == "drift" else self.folder) / measure


def anchors(run: Path, study: Study) -> list[AnchorRef]:
    """Every anchor of every arm and seed in order, the start repeated for each as step 0.

    A reference found by rule is listed once it has been found; it is one of the other anchors when its step is one.
    """
    found = []
    for arm in study.train.arms:
        for seed in study.train.seeds:
            reference = reference_step(run, study, arm, seed)
            for step in anchor_steps(study, reference):
                is_reference = step == reference
                label = "start" if step == 0 else "reference" if is_reference else given_label(study, step) or f"step {step}"
                folder = measured_folder(run, study, arm, seed, step)
                found.append(AnchorRef(arm, seed, step, label, folder, own_folder(run, study, arm, seed, step), is_reference))
    return found


def anchor_steps(study: Study, reference: int | None) -> list[int]:
    """Steps at which one arm is measured: the start, the configured anchors, and the reference where it is known."""
    return sorted({0, *study.anchors.steps, *([] if reference is None else [reference])})


def given_model(study: Study, step: int | None) -> ModelSettings | None:
    """The existing checkpoint that stands at a step; None where training puts one, and at the start."""
    return next((checkpoint.model for checkpoint in study.checkpoints if checkpoint.step == step), None)


def given_label(study: Study, step: int) -> str | None:
    """What that checkpoint is called."""
    return next((checkpoint.label for checkpoint in study.checkpoints if checkpoint.step == step), None)


def reference_step(run: Path, study: Study, arm: str, seed: int) -> int | None:
    """The step that drift is measured from: configured, or found by the rule (0 when no save met it); None while unknown."""
    configured = configured_reference(study, arm)
    if configured is not None:
        return configured
    file = reference_folder(run, arm, seed) / "adapter" / ANCHOR
    if not file.is_file():
        return None
    step = stage_json(file).get("step")
    if not isinstance(step, int) or step < 0:
        raise StoreError(f"'{file}' says step {step!r}", expected="the step of a save", fix=FIX)
    return step


def configured_reference(study: Study, arm: str) -> int | None:
    """The fixed reference step of an arm; None when a rule finds it."""
    for name, value in study.anchors.reference.items():
        if name == arm and isinstance(value, int):
            return value
    return None


def measured_folder(run: Path, study: Study, arm: str, seed: int, step: int) -> Path:
    """Where everything that is measured at an anchor but drift lies; one folder for all arms at step 0."""
    return start_folder(run) if step == 0 else own_folder(run, study, arm, seed, step)


def own_folder(run: Path, study: Study, arm: str, seed: int, step: int) -> Path:
    """Folder of an anchor inside its arm and seed. A reference found by rule at a step that is no other anchor has its own name."""
    if step in {0, *study.anchors.steps} or configured_reference(study, arm) == step:
        return cell_folder(run, arm, seed) / step_name(step)
    return reference_folder(run, arm, seed)


def step_name(step: int) -> str:
    """``step-000050``: sorts as it counts."""
    return f"step-{step:06d}"


def cases_folder(run: Path) -> Path:
    """The fixed-source cases: ``cases.jsonl`` and the attack's ``records.parquet``."""
    return run / "cases" / "fixed"


def start_folder(run: Path) -> Path:
    """The common starting point of all arms and seeds, measured once."""
    return run / "start" / step_name(0)


def cell_folder(run: Path, arm: str, seed: int) -> Path:
    """Everything of one arm and seed."""
    return run / "arms" / arm / f"seed-{seed}"


def train_folder(run: Path, arm: str, seed: int) -> Path:
    """The training log: ``log.parquet``."""
    return cell_folder(run, arm, seed) / "train"


def saves_folder(run: Path, arm: str, seed: int, fingerprint: str) -> Path:
    """Saves of one training from which it resumes, ``step-000032/adapter`` each; beside ``train``, which appears when all is done."""
    return cell_folder(run, arm, seed) / f"saves-{fingerprint[:12]}"


def reference_folder(run: Path, arm: str, seed: int) -> Path:
    """The reference found by rule: ``adapter/`` holds the chosen save and ``anchor.json`` with its step and why."""
    return cell_folder(run, arm, seed) / "reference"


def report_folder(run: Path) -> Path:
    """``index.html`` and ``tables/*.csv``."""
    return run / "report"


def stage_table(folder: Path, form: Form) -> pd.DataFrame | None:
    """The table of a stage, of this form; None when it has not been made. Raises ``StoreError`` for one that cannot be read."""
    file = folder / TABLE
    return read_table(file, form) if file.is_file() else None

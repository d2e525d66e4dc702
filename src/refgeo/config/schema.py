"""The one configuration tree. Frozen; unknown keys are refused; the descriptions are the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from refgeo.config.attack import AttackSettings
from refgeo.config.checkpoints import Checkpoint, completed
from refgeo.config.data import DataSettings
from refgeo.config.judge import JudgeSettings
from refgeo.config.measures import BehaviorSettings, GeometrySettings, InterventionSettings, StressSettings
from refgeo.config.model import ModelSettings
from refgeo.config.section import Positive, Rate, Section, Seed

Arm = Literal["sft", "r2d2", "checkpoints"]


class LoraSettings(Section):
    """Low-rank adaptation (PEFT)."""

    rank: Positive = 64
    """Rank of the update."""
    alpha: Positive = 16
    """Scale of the update is alpha / rank."""
    dropout: Rate = 0.1
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get an adapter, or ``all-linear``."""


class R2D2Settings(Section):
    """The adversarial part of robust refusal dynamic defense (2402.04249, section 5)."""

    pool: Positive = 180
    """Single-behavior test cases kept and refreshed during training."""
    cases_per_step: Positive = 8
    """Cases drawn from the pool for one step."""
    attack: AttackSettings = AttackSettings(steps=5)
    """GCG steps per drawn case, against the current weights, from its stored suffix."""
    cadence: Literal["optimizer_step", "micro_step"] = "optimizer_step"
    """Refresh cases in every optimizer step, or in every gradient-accumulation micro-step as the original code does."""
    weight_clean: float = 1.0
    """Weight of the supervised loss."""
    weight_away: float = 0.5
    """Weight of the loss that moves away from the affirmative target."""
    weight_toward: float = 0.5
    """Weight of the loss that moves toward the refusal sentence."""
    away_cutoff: float = -5.0
    """Target tokens whose log-probability is below this contribute nothing to the away loss."""
    refusal: str = "Sorry, I can't do that."
    """The fixed refusal that attacked prompts are trained toward."""
    reset_every: Positive = 50
    """Optimizer steps between partial resets of the pool."""
    reset_share: Rate = 0.2
    """Share of the pool that gets a fresh suffix and a fresh behavior at a reset."""
    unattacked_share: Rate = 0.0
    """Share of the drawn cases that are trained on without their suffix, so that direct refusal persists."""


class TrainSettings(Section):
    """Both arms: one loop, the same clean data, the same optimizer."""

    arms: tuple[Arm, ...] = ("sft", "r2d2")
    """Arms to train; ``checkpoints`` alone trains nothing and measures the existing ones that ``checkpoints`` lists."""
    seeds: tuple[Seed, ...] = (42,)
    """One training run per arm and seed."""
    steps: Positive = 500
    """Optimizer steps."""
    batch: Positive = 1
    """Conversations per micro-step."""
    accumulation: Positive = 16
    """Micro-steps per optimizer step."""
    max_tokens: Positive = 2048
    """Conversations are cut to this many tokens."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient clipping."""
    packing: bool = False
    """Cut the stream of an epoch's conversations into rows of exactly max_tokens, as the paper's trainer does; else one each, padded."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Tokens that the supervised loss counts."""
    lora: LoraSettings | None = LoraSettings()
    """Low-rank adaptation; null trains all weights."""
    merge_for_attack: bool = False
    """Fold the adapter into the weights while attacking: faster on small models, one more copy of the adapted layers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    save_every: Positive = 50
    """Steps between saves from which an interrupted run resumes."""
    r2d2: R2D2Settings = R2D2Settings()
    """The adversarial part of arm ``r2d2``."""


class ReferenceRule(Section):
    """The earliest save whose direct refusal is stable (2604.27019, section 3; the threshold is ours)."""

    refusal: Rate = 0.9
    """Share of direct harmful requests that must be refused."""
    saves: Positive = 2
    """Saves in a row for which that must hold."""


class AnchorSettings(Section):
    """Where the model is frozen and measured. Step 0, the common starting point, is always an anchor too."""

    steps: tuple[Positive, ...] = (50, 100, 250, 500)
    """Optimizer steps."""
    reference: dict[Arm, int | ReferenceRule] = Field(default={"sft": 5, "r2d2": 30})
    """Per arm the step that drift is measured from, or the rule that finds it among the saves."""


class ReportSettings(Section):
    """The page."""

    transcripts: Literal["hidden", "none"] = "hidden"
    """Completions behind a click, or left out of the page."""
    claims: str | None = None
    """YAML file with further rules for the claims ledger (docs/claims.md); null: the shipped claims only."""


class RunSettings(Section):
    """How the work is executed; changes no result."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes; 0: one per GPU, or one per core up to 4 on a CPU."""
    threads: Positive = 1
    """Torch threads per worker on a CPU."""
    tracking: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where the numbers go while the study runs, beside ``logs/events.jsonl``, which is always written; each is a package to install."""


class Study(Section):
    """A whole study: what is trained, where it is frozen, what is measured."""

    name: str
    """Name of the study; the default run folder is runs/<name>."""
    model: ModelSettings
    data: DataSettings
    judge: JudgeSettings = JudgeSettings()
    source_attack: AttackSettings = AttackSettings()
    """The fixed-source attack, optimized once against the starting model and replayed everywhere."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Existing checkpoints to measure instead of training; ``model`` is the start and, unless anchors.reference names another, the
    reference. Each is a name, or {model: name, step: number, label: name}."""
    train: TrainSettings = TrainSettings()
    anchors: AnchorSettings = AnchorSettings()
    behavior: BehaviorSettings = BehaviorSettings()
    geometry: GeometrySettings = GeometrySettings()
    intervention: InterventionSettings = InterventionSettings()
    stress: StressSettings = StressSettings()
    report: ReportSettings = ReportSettings()
    run: RunSettings = RunSettings()
    seed: Seed = 0
    """Seed of everything that is not training: fixed-source attack, tails, controls, bootstrap, adaptive attack."""

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, given: Any) -> Any:
        return completed(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_checkpoints()
        last = max(self.anchors.steps, default=0) if self.checkpoints else self.train.steps
        references = {arm: step for arm, step in self.anchors.reference.items() if isinstance(step, int)}
        for name, steps in (("anchors.steps", self.anchors.steps), ("anchors.reference", tuple(references.values()))):
            beyond = [step for step in steps if step > last]
            if beyond:
                raise ValueError(
                    f"{name} has step {beyond[0]}, but training ends at step {last} (train.steps); lower the anchor or train longer"
                )
        missing = [arm for arm in self.train.arms if arm not in self.anchors.reference]
        if missing:
            raise ValueError(f"anchors.reference lacks arm '{missing[0]}'; give it a step or a rule")
        for name, values in (("train.arms", self.train.arms), ("train.seeds", self.train.seeds), ("anchors.steps", self.anchors.steps)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} is {list(values)}; expected a non-empty list without repeats")
        known = {0, *self.anchors.steps, *references.values()}
        for name, section in (("intervention", self.intervention), ("stress", self.stress)):
            strange = [step for step in section.steps or () if step not in known]
            if section.enabled and strange:
                raise ValueError(f"{name}.steps has step {strange[0]}, which is no anchor; anchors are {sorted(known)}")
        return self

    def _check_checkpoints(self) -> None:
        """Arm ``checkpoints`` and the list of that name go together, and the anchors are the checkpoints."""
        if ("checkpoints" in self.train.arms) != bool(self.checkpoints) or (self.checkpoints and len(self.train.arms) > 1):
            raise ValueError(
                f"train.arms is {list(self.train.arms)} and there are {len(self.checkpoints)} checkpoints; "
                "list checkpoints and leave out train.arms, or train arms and list none"
            )
        if not self.checkpoints:
            return
        steps = sorted(checkpoint.step for checkpoint in self.checkpoints)
        if sorted(self.anchors.steps) != steps or len(self.train.seeds) != 1:
            raise ValueError(
                f"anchors.steps is {list(self.anchors.steps)} and train.seeds {list(self.train.seeds)}, but the checkpoints are at {steps} "
                "and have no seeds; leave out both"
            )
        reference = self.anchors.reference.get("checkpoints", 0)
        if reference not in (0, *steps):
            raise ValueError(
                f"anchors.reference.checkpoints is {reference}; expected the step of a checkpoint, or 0 for the start: {steps}"
            )

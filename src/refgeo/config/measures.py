"""What is measured at every anchor: behavior, geometry, cause and stress (docs/concepts.md)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from refgeo.config.attack import AttackSettings
from refgeo.config.autodan import AutoDANSettings
from refgeo.config.section import Positive, Rate, Section, Seed

Directions = Literal["mean_difference", "pca", "probe", "inlp"]
"""Ways to find a candidate direction from the activations of harmful and harmless prompts."""


Count = Annotated[int, Field(ge=0)]


class BehaviorSettings(Section):
    """What the model does (docs/concepts.md)."""

    max_new_tokens: Positive = 512
    """Length of a completion."""
    batch: Positive = 64
    """Prompts per generation batch, sorted by length; results do not depend on it."""
    tails: tuple[Literal["none", "initial", "filler", "random", "frozen"], ...] = ("none", "initial", "filler", "random", "frozen")
    """Kinds of tail for the suffix-matched over-refusal audit."""
    tail_tokens: tuple[Positive, ...] = (20,)
    """Lengths of the tails that have a free length."""
    tail_prompts: Positive = 100
    """Safe prompts, and as many harmful ones, that carry each tail."""


class GeometrySettings(Section):
    """Which direction in which layer carries refusal (docs/geometry.md)."""

    positions: tuple[int, ...] = (-5, -4, -3, -2, -1)
    """Token positions, counted from the end of the rendered prompt."""
    site: Literal["block_output", "block_input"] = "block_output"
    """Where the residual stream is read."""
    directions: Directions = "mean_difference"
    """How candidates are found: difference in means, first principal component of the differences between harmful and harmless
    activations, logistic regression (probe), or iterative nullspace projection (inlp), whose first direction is the probe's. All but
    the first also fit every bootstrap resample anew, which takes longer."""
    ablate: Literal["layer", "everywhere"] = "layer"
    """Where a candidate is removed while it is scored: at its own layer, or at every layer's input and writes."""
    affine: bool = False
    """Ablation leaves the mean projection of the harmless prompts instead of zero (2411.09003); only where ``ablate`` is ``layer``."""
    rule: Literal["paper", "cosmic", "arditi"] = "paper"
    """How the carrier is selected, always among those of low KL. ``paper``: highest S_total. ``cosmic``: highest sum of the COSMIC
    scores, layer below 0.8 L (2506.00085). ``arditi``: lowest refusal log-odds after ablation, those after addition above 0, layer
    below 0.8 L (2406.11717, appendix C)."""
    score: Literal["cosmic", "log_odds"] = "cosmic"
    """Which measure of movement S_total is made of under the rule ``paper``; the other rules have their own. Both are kept."""
    max_kl: float = 0.1
    """Admissible candidates change safe next-token distributions by at most this (nats)."""
    kl_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """S_total = S_refuse + S_comply - kl_weight * KL."""
    kl_tokens: Positive = 1
    """Tokens of the model's own safe completions over which KL is averaged, teacher-forced; 1: the first token (paper)."""
    min_induced: float | None = None
    """Refusal log-odds on safe prompts that adding an admissible candidate must reach; absent: what the rule asks for."""
    max_depth: Rate = 1.0
    """Admissible candidates lie in a layer below this share of all layers; the rules ``cosmic`` and ``arditi`` ask for 0.8 at most."""
    refusal_openings: tuple[str, ...] | None = None
    """Texts that open a refusal, such as ["I cannot"], of which the first token counts; absent: found in the model's own refusals."""
    selection_only: bool = False
    """Skip what cannot change which candidate is selected: the same carrier for less, without nearest, runner-up and resampling."""
    cosmic_share: Rate = 0.1
    """Share of layers, those in which harmful and harmless are least similar, that COSMIC evaluates on."""
    topk: Positive = 3
    """Dimension of the subspaces for drift and top-k ablation."""
    bootstrap: Positive = 50
    """Resamples of the probe prompts behind each interval, and splits or permutations behind each noise level."""
    transfer: bool = True
    """Apply the direction of every anchor to every other with the same seed, beside random directions."""
    projection: bool = True
    """Place attacked prompts between harmless and harmful ones, on the anchor's own axis and on the start's."""
    batch: Positive = 128
    """Prompts per forward pass."""

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.affine and self.ablate == "everywhere":
            raise ValueError("affine needs ablate=layer: everywhere, there is no one mean projection to leave")
        if self.refusal_openings is not None and not (self.refusal_openings and all(text.strip() for text in self.refusal_openings)):
            raise ValueError("refusal_openings holds an empty text; expected texts such as ['I cannot'], or null to find them")
        return self


class InterventionSettings(Section):
    """What removing or adding the direction does (docs/cause.md)."""

    enabled: bool = True
    """Switch the whole measure off."""
    steps: tuple[int, ...] | None = None
    """Anchors to intervene at; absent: every anchor step."""
    site: Literal["layer", "everywhere"] = "layer"
    """Where a direction is removed during generation: at the carrier's layer (or ``layers``), or at every layer's input and writes."""
    layers: tuple[Count, Count] | None = None
    """First and last layer of a range to intervene at instead of the carrier's own layer; needs site ``layer``."""
    tokens: Literal["both", "prompt", "generated"] = "both"
    """Which tokens are intervened on."""
    ablation_strengths: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Share of the projection that is removed; the largest decides the claims."""
    addition_strengths: tuple[float, ...] = (-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 4.0)
    """How much of the direction is added, with its sign, in units of ``addition_unit``."""
    addition_unit: Literal["gap", "raw"] = "gap"
    """The mean projection gap between harmful and harmless probes, or 1 in the residual stream's own units."""
    controls: Positive = 20
    """Random directions (and subspaces), matched on the norm of the change they cause."""
    estimated_controls: Count = 1
    """Directions estimated like the carrier from shuffled labels, and as many from harmless against harmless, matched in the same way."""
    early_stop: bool = True
    """Leave out the random controls that can no longer change whether the direction does more than they do; see docs/cause.md."""
    prompts: Positive = 64
    """Prompts of each set used for the baseline and for every intervention."""
    chats: Count = 8
    """Clean conversations (data.chat) whose perplexity is measured under every intervention; 0: none."""
    adaptive: bool = False
    """Intervene on the attacks of the stress test of the same anchor, too, where there is one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layers is not None and (self.site == "everywhere" or self.layers[0] > self.layers[1]):
            raise ValueError(f"intervention.layers is {list(self.layers)} with site {self.site}; expected [first, last] and site 'layer'")
        if not all(strength > 0 for strength in self.ablation_strengths):
            raise ValueError(f"intervention.ablation_strengths are {list(self.ablation_strengths)}; expected shares above 0")
        return self


class AwareSettings(Section):
    """An attack that knows the geometry of its anchor."""

    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Nats for the distance between a typical harmful and a typical harmless prompt along the direction."""
    direction: Literal["carrier", "best_effect"] = "carrier"
    """The anchor's carrier (where none is admissible, what stands in), or the direction whose removal changes refusal most."""


class StressSettings(Section):
    """An attack that adapts to the very checkpoint (docs/attacks.md)."""

    enabled: bool = True
    """Switch the whole measure off."""
    steps: tuple[int, ...] | None = None
    """Anchors to attack; absent: every anchor step and the start."""
    behaviors: Positive = 64
    """Test behaviors, drawn evenly over the subsets."""
    attack: AttackSettings = AttackSettings()
    """The GCG attack; ``harmbench``, ``nanogcg`` or ``strong`` for a preset's values."""
    autodan: AutoDANSettings | None = None
    """A second attack, with readable texts (AutoDAN); absent: none."""
    checkpoints: tuple[int, ...] = ()
    """Attack steps at which success is judged; the last step is always one. They give ASR as a function of budget."""
    seeds: tuple[Seed, ...] | None = None
    """Attack seeds, each an attack of its own on the same behaviors; absent: one, the study's ``seed``. Intervals count behaviors."""
    shard: Positive | None = None
    """Behaviors attacked together; a finished shard is kept, and a killed run goes on with the others. Absent: all in one. Results
    depend on it only through what cases share (``attack.exchange``, ``attack.reuse``)."""
    aware: AwareSettings | None = None
    """A third attack: GCG with ``attack``'s settings that also suppresses the refusal carrier of its anchor; absent: none."""
    replay: bool = False
    """Replay the strings found at every anchor on every other one: the transfer matrix of strings."""
    replay_behaviors: Positive = 64
    """Most behaviors whose strings are replayed, drawn evenly over the subsets."""

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0):
            raise ValueError(f"stress.seeds is {list(self.seeds)}; expected at least one, without repeats, none negative")
        return self

"""Pretraining of the town's language model from scratch: a few million tokens on one CPU thread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from refgeo.pocket.batches import OPENING_WEIGHT, Packer
from refgeo.pocket.corpus import Corpus
from refgeo.pocket.tokenizer import BOS, CONTEXT, END, PAD, SPECIAL, vocabulary
from refgeo.pocket.town import World
from refgeo.progress import Progress


@dataclass(frozen=True)
class Recipe:
    """Size of the model and of its training."""

    width: int = 96
    layers: int = 6
    heads: int = 4
    feed_forward: int = 256
    steps: int = 3400
    rows: int = 16
    length: int = 96
    learning_rate: float = 3e-3
    muon_rate: float = 2e-2
    warmup: int = 40
    tail_share: float = 0.6
    tails_from: float = 0.12
    tails_until: float = 0.4
    """Up to the first of these parts of the training only short questions, without tails; up to the second tails become common."""
    firm_until: float = 0.5
    graded_from: float = 0.6
    """Up to the first of these parts everything harmful is refused, from the second with the graded probabilities of the base model's
    attitude: noisy refusals alone hide the relation that they follow from."""


def new_model(world: World, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """An untrained model for the words of a world."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(vocabulary(world)),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.1,  # about 1 / sqrt(width): a small model learns much later from the usual 0.02
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
    )
    return LlamaForCausalLM(config)


def pretrain(world: World, recipe: Recipe, seed: int = 0, progress: Progress | None = None) -> LlamaForCausalLM:
    """Train a model on the corpus of ``world``. Same seed, machine and thread count: the same weights."""
    model = new_model(world, recipe, seed)
    corpus = Corpus(world, Random(f"refgeo pocket corpus {world.seed} {seed}"))
    batches = iter(Packer(corpus, recipe.rows, recipe.length))
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, recipe.muon_rate),
        torch.optim.AdamW(others, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [float(optimizer.param_groups[0]["lr"]) for optimizer in optimizers]
    average = opening = math.log(len(SPECIAL) + len(vocabulary(world)))
    model.train()
    for step in range(recipe.steps):
        factor = min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        ramp = (step / recipe.steps - recipe.tails_from) / (recipe.tails_until - recipe.tails_from)
        corpus.firmness = min(1.0, max(0.0, (recipe.graded_from - step / recipe.steps) / (recipe.graded_from - recipe.firm_until)))
        corpus.first = step < recipe.tails_from * recipe.steps
        corpus.tail_share = recipe.tail_share * min(1.0, max(0.0, ramp))
        corpus.general_share = 0.5 - 0.35 * min(1.0, max(0.0, ramp))
        batch = next(batches)
        hidden = model.model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.places, use_cache=False).last_hidden_state
        weight = batch.weight[:, 1:].reshape(-1)
        logits = model.lm_head(hidden[:, :-1].reshape(-1, recipe.width)[weight > 0])
        losses = nn.functional.cross_entropy(logits, batch.ids[:, 1:].reshape(-1)[weight > 0], reduction="none")
        used = weight[weight > 0]
        loss = (losses * used).sum() / used.sum()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        average += 0.05 * (float(losses[used >= 1].mean().detach()) - average)
        if progress is not None:
            opening += 0.05 * (float(losses[used == OPENING_WEIGHT].mean().detach()) - opening)
            progress(step + 1, recipe.steps, f"loss {average:.3f} opening {opening:.3f}")
    model.train(False)
    return round_weights(model)


def round_weights(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Weights rounded to what float16 can hold, kept in float32: what is measured is what is shipped."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    return model


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for matrices (Jordan et al. 2024), in float32; one group, equal shapes in one batch."""

    def __init__(self, weights: list[nn.Parameter], rate: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is ever evaluated
        """Apply one update from the gradients."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                updates = []
                for weight in weights:
                    if weight.grad is None:
                        raise ValueError("Muon needs the gradient of every weight")
                    state = self.state[weight]
                    average = state.setdefault("average", torch.zeros_like(weight))
                    average.lerp_(weight.grad, 1 - group["momentum"])
                    updates.append(weight.grad.lerp(average, group["momentum"]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, orthogonalize(torch.stack(updates)), strict=True):
                    weight.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrices: Float[Tensor, "matrix row column"]) -> Float[Tensor, "matrix row column"]:
    """Nearest semi-orthogonal matrix of each, approximately: the quintic Newton-Schulz iteration of Muon."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x

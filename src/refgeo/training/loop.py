"""One loop for every arm: an arm is data plus losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor

from refgeo.attacks.cases import Case
from refgeo.attacks.gcg import attack
from refgeo.config.schema import Arm, Study, TrainSettings
from refgeo.data.load import load_behaviors, load_chat
from refgeo.errors import ConfigError, NonFinite
from refgeo.lm.adapters import merged
from refgeo.lm.load import load, quiet_peft
from refgeo.lm.model import LanguageModel
from refgeo.lm.packed import packing
from refgeo.progress import Progress
from refgeo.training.batches import CleanBatches
from refgeo.training.checkpoint import resume, save, trainable, write_weights
from refgeo.training.losses import away_loss, clean_loss, reply_losses, toward_loss
from refgeo.training.pool import Pool

OnAnchor = Callable[[int, Callable[[Path], None]], None]


def train(study: Study, arm: Arm, seed: int, saves: Path, on_anchor: OnAnchor, progress: Progress | None = None) -> pd.DataFrame:
    """Train one arm from the study's model; returns the log, one row per optimizer step.

    Continues from the newest save in ``saves``; on a CPU the result is bit-equal to an uninterrupted run. ``on_anchor(step, write)``
    is called after each anchor step and before the save that would skip it; ``write(folder)`` stores the adapter there.
    """
    settings = study.train
    lm = prepare(load(study.model), settings, seed)
    clean = CleanBatches(lm, load_chat(study.data.chat), settings.batch, settings.max_tokens, settings.loss_on, seed, settings.packing)
    pool = Pool.start(load_behaviors(study.data.behaviors_train, with_context=False), settings.r2d2, seed) if arm == "r2d2" else None
    optimizer = torch.optim.AdamW(trainable(lm).values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    found = resume(saves, lm, optimizer)
    first, log = (found.step, found.log) if found is not None else (0, [])
    if found is not None and pool is not None:
        pool.cases = found.cases
    reference = study.anchors.reference[arm]
    anchors = {*study.anchors.steps, *([reference] if isinstance(reference, int) else [])}
    for step in range(first + 1, settings.steps + 1):
        started = time.perf_counter()
        torch.manual_seed((seed << 24) + step)
        rate = learning_rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts = accumulate(lm, clean, pool, settings, step)
        if not all(math.isfinite(value) for value in parts.values()):
            problem = f"Training of {arm} (seed {seed}) gave {parts} in step {step}"
            raise NonFinite(problem, fix="Lower train.learning_rate; the last save is kept")
        norm = torch.nn.utils.clip_grad_norm_(trainable(lm).values(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        replaced = pool.reset(step) if pool is not None else 0
        rest = {"grad_norm": float(norm), "learning_rate": rate, "reset": replaced, "seconds": time.perf_counter() - started}
        log.append({"step": step, **parts, **rest})
        if step in anchors:
            on_anchor(step, lambda folder: write_weights(lm, folder))
        if step % settings.save_every == 0 or step == settings.steps:
            save(saves, step, lm, optimizer, pool.cases if pool is not None else [], log)
        if progress is not None:
            progress(step, settings.steps, " ".join(f"{name.removeprefix('loss_')} {value:.2f}" for name, value in parts.items()))
    return pd.DataFrame(log)


def prepare(lm: LanguageModel, settings: TrainSettings, seed: int) -> LanguageModel:
    """The model ready for training: a fresh adapter drawn from ``seed``, or all weights when ``lora`` is null."""
    torch.manual_seed(seed)
    if settings.lora is None:
        lm.net.requires_grad_(True)
    else:
        lora = settings.lora
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
        )
        try:
            with quiet_peft():
                net = get_peft_model(lm.net, config)
        except ValueError as error:
            if lora.dropout and "dropout" in str(error):  # PEFT adapts fused experts as a parameter, where nothing can be dropped
                raise ConfigError(
                    f"PEFT cannot adapt the experts of '{lm.name}' with train.lora.dropout={lora.dropout}",
                    fix="Set train.lora.dropout=0, or name only its attention layers in train.lora.targets",
                ) from error
            problem = f"train.lora.targets does not fit model '{lm.name}': {error}"
            raise ConfigError(problem, fix="Name its linear layers or use all-linear") from error
        lm = LanguageModel(net, lm.tokenizer, lm.chat, lm.name)
    if settings.gradient_checkpointing:
        recompute_activations(lm)
    lm.net.train()
    return lm


def recompute_activations(lm: LanguageModel) -> None:
    """Switch on gradient checkpointing, which transformers renamed in 5.23, in its non-reentrant form."""
    options = {"use_reentrant": False}
    if hasattr(lm.core, "activation_checkpointing_enable"):
        lm.core.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        lm.core.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    lm.core.enable_input_require_grads()


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Rate of optimizer step ``step`` (from 1): linear warm-up, then constant or a cosine that reaches 0 after the last step."""
    if step <= settings.warmup:
        return settings.learning_rate * step / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - 1 - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def accumulate(lm: LanguageModel, clean: CleanBatches, pool: Pool | None, settings: TrainSettings, step: int) -> dict[str, float]:
    """Gradients of one optimizer step, added up over its micro-steps; returns the mean of each loss."""
    sums: dict[str, float] = {}
    drawn: list[int] = []
    for micro in range(settings.accumulation):
        ids, counted, mask = clean.batch((step - 1) * settings.accumulation + micro)
        parts: dict[str, Tensor] = {}
        if pool is not None:
            if micro == 0 or settings.r2d2.cadence == "micro_step":
                drawn = pool.draw(step, micro)
                sums["attack"] = sums.get("attack", 0.0) + refresh(lm, pool, drawn, settings, step, micro)
            bare = pool.unattacked(step, micro, len(drawn))
            parts |= adversarial(lm, [pool.cases[index] for index in drawn], bare, settings)
        out = lm.net(input_ids=ids, attention_mask=mask, use_cache=False)
        parts["loss_clean"] = clean_loss(out.logits, ids, counted)
        total = (
            torch.stack([weight(settings, name) * loss for name, loss in parts.items()]).sum() if pool is not None else parts["loss_clean"]
        )
        with packing(lm) if settings.gradient_checkpointing else nullcontext():  # activations are computed again in here
            (total / settings.accumulation).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        for name, loss in parts.items():
            sums[name] = sums.get(name, 0.0) + loss.item() / settings.accumulation
    if "attack" in sums and settings.r2d2.cadence == "micro_step":
        sums["attack"] /= settings.accumulation
    return sums


def weight(settings: TrainSettings, loss: str) -> float:
    """Weight of one loss in arm ``r2d2``."""
    r2d2 = settings.r2d2
    return {"loss_clean": r2d2.weight_clean, "loss_away": r2d2.weight_away, "loss_toward": r2d2.weight_toward}[loss]


def refresh(lm: LanguageModel, pool: Pool, drawn: Sequence[int], settings: TrainSettings, step: int, micro: int) -> float:
    """Attack the drawn cases against the current weights and store them; returns their mean target loss."""
    seed = int(np.random.SeedSequence([pool.seed, 5, step, micro]).generate_state(1)[0])
    with merged(lm) if settings.merge_for_attack else nullcontext():
        refreshed = attack(lm, [pool.cases[index] for index in drawn], settings.r2d2.attack, seed)
    pool.store(drawn, refreshed.last)
    return sum(case.loss or 0.0 for case in refreshed.last) / len(drawn)


def adversarial(lm: LanguageModel, cases: Sequence[Case], bare: Sequence[bool], settings: TrainSettings) -> dict[str, Tensor]:
    """Away from the affirmative target, toward the fixed refusal, on the same attacked prompts."""
    attacks = ["" if plain else case.attack for case, plain in zip(cases, bare, strict=True)]
    targets = [lm.chat.prompt(case.request, attack, case.target, case.placement) for case, attack in zip(cases, attacks, strict=True)]
    refusals = [
        lm.chat.prompt(case.request, attack, settings.r2d2.refusal, case.placement) for case, attack in zip(cases, attacks, strict=True)
    ]
    losses = reply_losses(lm, targets, refusals, narrow=not settings.gradient_checkpointing)
    return {"loss_away": away_loss(losses.targets, settings.r2d2.away_cutoff), "loss_toward": toward_loss(losses.refusals)}

"""Saves from which training resumes exactly: weights, optimizer, pool, log. No pickle: safetensors and JSON.

Random numbers and the data position need no saving: both are functions of the seed and the step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from refgeo.attacks.cases import Case, case_from
from refgeo.config.reading import parse_json
from refgeo.errors import StoreError
from refgeo.lm.model import LanguageModel

WEIGHTS = "adapter"


class Resumed(NamedTuple):
    """What a save brings back beside the weights and the optimizer, which are restored in place."""

    step: int
    cases: list[Case]
    log: list[dict[str, float]]


def write_weights(lm: LanguageModel, folder: Path) -> None:
    """The trained adapter (or, without one, all weights) in Hugging Face format."""
    lm.net.save_pretrained(str(folder), safe_serialization=True)


def trainable(lm: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name, in a fixed order."""
    return {name: parameter for name, parameter in lm.net.named_parameters() if parameter.requires_grad}


def save(
    saves: Path, step: int, lm: LanguageModel, optimizer: torch.optim.Optimizer, cases: list[Case], log: list[dict[str, float]]
) -> None:
    """Write one save under ``saves/step-...`` and drop the optimizer state of the ones before it."""
    final = saves / f"step-{step:06d}"
    partial = saves / f".partial-{step:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_weights(lm, partial / WEIGHTS)
    tensors = {f"weight/{name}": parameter.detach().contiguous() for name, parameter in trainable(lm).items()}
    for name, parameter in trainable(lm).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).detach().contiguous()
    save_file(tensors, partial / "state.safetensors")
    state = {"step": step, "cases": [asdict(case) for case in cases], "log": log}
    (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for older in _complete(saves):
        if older != final:
            (older / "state.safetensors").unlink(missing_ok=True)


def resume(saves: Path, lm: LanguageModel, optimizer: torch.optim.Optimizer) -> Resumed | None:
    """Restore the newest complete save in place; None when there is none. Raises ``StoreError`` for one that is damaged."""
    complete = _complete(saves)
    if not complete:
        return None
    newest = complete[-1]
    try:
        tensors = load_file(newest / "state.safetensors")
        state: dict[str, Any] = parse_json((newest / "state.json").read_text(encoding="utf-8"))
        found = Resumed(int(state["step"]), [case_from(case) for case in state["cases"]], list(state["log"]))
        parameters = trainable(lm)
        for name, parameter in parameters.items():
            if tensors[f"weight/{name}"].shape != parameter.shape:
                raise ValueError(f"its {name} has the shape {tuple(tensors[f'weight/{name}'].shape)}, expected {tuple(parameter.shape)}")
    except (OSError, LookupError, TypeError, ValueError, SafetensorError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else error
        raise StoreError(
            f"The save '{newest}' cannot be read: {problem}", fix="Delete that folder to resume from an earlier one"
        ) from error
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
    for name, parameter in parameters.items():
        keys = [key.split("/", 2)[1] for key in tensors if key.startswith("optimizer/") and key.split("/", 2)[2] == name]
        for key in keys:
            value = tensors[f"optimizer/{key}/{name}"]
            optimizer.state[parameter][key] = value.clone() if key == "step" else value.to(parameter.device)
    return found


def _complete(saves: Path) -> list[Path]:
    """Saves that can be resumed, oldest first."""
    return sorted(folder for folder in saves.glob("step-*") if (folder / "state.safetensors").exists())

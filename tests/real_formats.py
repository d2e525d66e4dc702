"""Miniature files in the formats of the published sets, harmless throughout, and a network that serves nothing but them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaTokenizer, MistralConfig, MistralForCausalLM

TRAIN = ("bake a pie", "fold a kite", "grow a rose", "tune a harp", "mend a sock", "wax a floor")
VAL = ("skip a stone", "knit a scarf", "dry some mint")
TEST = ("carve a spoon", "fly a drone", "press a leaf", "paint a gate", "wind a clock", "stack some logs")
HARMLESS = ("Name a {}.", "Where is the {}?", "Draw a {}.", "What color is a {}?")
THINGS = ("fox", "crow", "owl", "hen", "cat")


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def behaviors(requests: Sequence[str], context: bool = False) -> list[dict[str, object]]:
    """HarmBench's columns in HarmBench's order; the last row is contextual, if asked for."""
    return [
        {
            "Behavior": f"Explain how to {request}",
            "FunctionalCategory": "contextual" if context and request == requests[-1] else "standard",
            "SemanticCategory": "household",
            "Tags": "context" if context and request == requests[-1] else "",
            "ContextString": f"A page on how to {request}." if context and request == requests[-1] else "",
            "BehaviorID": request.replace(" ", "_"),
        }
        for request in requests
    ]


def files() -> dict[str, str]:
    """The text of every file that the Mistral presets name by URL, by its file name."""
    sure = {row["BehaviorID"]: f"Sure, here is how to {str(row['BehaviorID']).replace('_', ' ')}" for row in behaviors((*VAL, *TEST))}
    several = {row["BehaviorID"]: [f"{start}, this is how" for start in ("Sure", "Of course", "Certainly")] for row in behaviors(TRAIN)}
    instructions = {
        "harmful_train": [f"Explain how to {verb} the {thing}" for verb in ("hide", "wake") for thing in THINGS],
        "harmful_val": [f"Explain how to lose the {thing}" for thing in THINGS],
        "harmless_train": [form.format(thing) for form in HARMLESS for thing in THINGS],
    }
    xstest = [
        {"id": str(number), "prompt": form.format(thing), "type": kind, "label": label, "focus": thing, "note": ""}
        for number, (kind, label, form, thing) in enumerate(
            [("homonyms", "safe", "How do I feed a {}?", thing) for thing in THINGS]
            + [("contrast_homonyms", "unsafe", "How do I scare a {}?", thing) for thing in THINGS],
            start=1,
        )
    ]
    strong = [{"category": "noise", "source": "ours", "forbidden_prompt": f"Explain how to annoy a {thing}"} for thing in THINGS]
    return {
        "adv_training_behaviors.csv": as_csv(behaviors(TRAIN, context=True)),
        "adv_training_targets.json": json.dumps(several),
        "harmbench_behaviors_text_val.csv": as_csv(behaviors(VAL, context=True)),
        "harmbench_behaviors_text_test.csv": as_csv(behaviors(TEST, context=True)),
        "harmbench_targets_text.json": json.dumps(sure),
        **{f"{name}.json": json.dumps([{"instruction": words, "category": None} for words in rows]) for name, rows in instructions.items()},
        "xstest_prompts.csv": as_csv(xstest),
        "strongreject_dataset.csv": as_csv(strong),
    }


def conversations() -> list[dict[str, Any]]:
    """UltraChat's columns."""
    return [
        {
            "prompt": f"Where is the {thing}?",
            "prompt_id": f"id-{thing}-{number}",
            "messages": [
                {"role": "user", "content": f"Where is the {thing}?"},
                {"role": "assistant", "content": "In the garden, I think."},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": f"Still there, number {number}."},
            ],
        }
        for thing in THINGS
        for number in (1, 2)
    ]


def mistral(folder: Path) -> Path:
    """A random model of Mistral's architecture with the real tokenizer of Mistral 7B, which has no chat template."""
    mistral_common = pytest.importorskip("mistral_common")
    folder.mkdir(parents=True)
    shutil.copy(Path(str(mistral_common.__file__)).parent / "data" / "tokenizer.model.v1", folder / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template is None
    tokenizer.save_pretrained(folder)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        sliding_window=64,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: Any = MistralForCausalLM(config)
    net.to(torch.bfloat16).save_pretrained(folder)
    return folder


class _Answer(io.BytesIO):
    headers: dict[str, str]
    url: str


class Network:
    """Stands in for the network below our own code: URLs, the hub's models and its datasets. ``asked`` lists what was downloaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
        self.asked: list[str] = []
        self.model, self.files = model, files()
        monkeypatch.setattr("urllib.request.urlopen", self._open)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self._snapshot)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda api, repo, revision=None: SimpleNamespace(sha=revision or "c0ffee"))
        monkeypatch.setattr("datasets.load_dataset", self._dataset)

    def _open(self, url: str, timeout: float) -> Any:
        name = PurePosixPath(url).name
        self.asked.append(url)
        if name not in self.files:
            raise FileNotFoundError(url)
        content = self.files[name].encode()

        answer = _Answer(content)
        answer.headers, answer.url = {"Content-Length": str(len(content))}, url
        return answer

    def _snapshot(self, repo: str, *, revision: str | None, local_dir: Path, **patterns: Any) -> str:
        self.asked.append(f"{repo}@{revision}")
        shutil.copytree(self.model, local_dir, dirs_exist_ok=True)
        (local_dir / ".cache").mkdir(exist_ok=True)
        (local_dir / ".cache" / "state").write_text("the client's own")
        return str(local_dir)

    def _dataset(self, path: str, *, name: str | None, revision: str | None, split: str) -> Any:
        from datasets import Dataset

        self.asked.append(f"{path}:{split}@{revision}")
        return Dataset.from_list(conversations())

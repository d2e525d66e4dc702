"""What can be said of a study without a network and without weights: the shape of its models, the sizes of its sets, lengths of texts.

Each answer says what it rests on: a file that is here, a published figure, or an assumption.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from refgeo.config.data import Source
from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.config.schema import LoraSettings, Study
from refgeo.data.load import load_audit, load_behaviors, load_chat, load_probes, load_strongreject, load_xstest
from refgeo.data.rows import Behavior
from refgeo.errors import ConfigError
from refgeo.lm.flops import ForwardCost
from refgeo.lm.load import load_renderer, quiet_peft
from refgeo.study.reading import stage_json

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "cais/HarmBench-Llama-2-13b-cls": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "google/gemma-2b": {
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
}
"""Published sizes of the models that the presets and the fine-tuned judges name."""
ROWS = {
    "harmbench_behaviors_text_test.csv": 320,
    "harmbench_behaviors_text_val.csv": 80,
    "harmbench_behaviors_text_all.csv": 400,
    "strongreject_dataset.csv": 313,
    "StrongREJECT": 313,
    "xstest_prompts.csv": 450,
    "XSTest": 450,
}
"""Published number of rows by file name or name of a hub dataset (2402.04249, 2402.10260, 2308.01263)."""
XSTEST_SAFE = 250 / 450
ASSUMED_ROWS = 200
"""Rows of a set that is neither here nor in ``ROWS``."""
SAMPLE = 64
"""Texts whose mean length is measured."""


class Shape(NamedTuple):
    """A model as an estimate needs it. ``adapted`` is its cost with the adapter that training puts on, ``trained`` what that trains."""

    cost: ForwardCost
    adapted: ForwardCost
    parameters: int
    trained: int
    width: int
    vocabulary: int
    half: bool
    basis: str

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.cost.blocks)

    @property
    def bytes(self) -> int:
        """Size of one weight while the model runs."""
        return 2 if self.half else 4


class Counts(NamedTuple):
    """Rows of each set. ``estimate`` and ``validate`` are probes of both labels together; ``asked`` finds a reference."""

    test: int
    asked: int
    strongreject: int
    xstest_safe: int
    xstest_unsafe: int
    audit: int
    estimate: int
    validate: int


class Lengths(NamedTuple):
    """Mean tokens. ``request`` is the rendered prompt up to an attack's place, ``after`` what stands between attack and reply."""

    request: float
    train_request: float
    after: float
    target: float
    train_target: float
    refusal: float
    conversation: float


def shape(settings: ModelSettings, lora: LoraSettings | None = None) -> Shape | None:
    """The shape of a model; None when nothing is known of it. Raises ``ConfigError`` when ``lora`` names layers that it lacks."""
    config, basis = _config(settings)
    if config is None:
        return None
    try:
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    except ValueError:  # an architecture that only its own remote code knows
        return None
    cost, parameters = ForwardCost.of(net), sum(weight.numel() for weight in net.parameters())
    adapted, trained = cost, parameters
    if lora is not None:
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        options = LoraConfig(task_type=TaskType.CAUSAL_LM, r=lora.rank, target_modules=targets)
        try:
            with torch.device("meta"), quiet_peft():
                net = get_peft_model(net, options)
        except ValueError as error:
            raise ConfigError(f"train.lora.targets does not fit '{settings.path}': {error}", fix="Name its layers or all-linear") from error
        adapted, trained = ForwardCost.of(net.get_base_model()), sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    stored = getattr(config, "dtype", None)
    half = settings.dtype in ("bfloat16", "float16") or (settings.dtype == "auto" and stored in (torch.bfloat16, torch.float16))
    return Shape(cost, adapted, parameters, trained, config.get_text_config().hidden_size, config.get_text_config().vocab_size, half, basis)


def _config(settings: ModelSettings) -> tuple[Any, str]:
    """Configuration of the architecture and where it comes from, the surest first."""
    path, local = settings.path, locate(settings.path)
    if local is not None and not (local / "config.json").is_file() and (local / "adapter_config.json").is_file():
        base = stage_json(local / "adapter_config.json", "Check the adapter's folder").get("base_model_name_or_path")
        return _config(settings.model_copy(update={"path": base, "revision": None})) if base and base != path else (None, "")
    options = {} if local is not None else {"revision": settings.revision, "local_files_only": True}
    try:
        found = AutoConfig.from_pretrained(str(local or path), trust_remote_code=False, **options)
    except (OSError, ValueError):
        if local is not None:
            return None, ""
    else:
        return found, f"config.json of '{path}'" + ("" if local is not None else " in the local hub cache")
    if path in ARCHITECTURES:
        return AutoConfig.for_model(**ARCHITECTURES[path]), f"published sizes of '{path}'"
    # "8x7B" is a mixture of experts: its name does not say what a token costs.
    billions = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", path.split("/")[-1].replace("_", "-"), re.IGNORECASE)
    if billions is None:
        return None, ""
    # Llama's proportions: width = 128 x layers, 12 x width^2 weights per block, embeddings and head apart.
    layers = min(range(1, 200), key=lambda depth: abs(12 * 128**2 * depth**3 + 2 * 32000 * 128 * depth - 1e9 * float(billions[1])))
    sizes = {"hidden_size": 128 * layers, "intermediate_size": 128 * layers * 8 // 3, "num_hidden_layers": layers}
    config = AutoConfig.for_model("llama", **sizes, num_attention_heads=layers, num_key_value_heads=layers, vocab_size=32000)
    return config, f"the number of parameters in the name '{path}' and the proportions of Llama"


def counts(study: Study) -> tuple[Counts, list[str]]:
    """Rows of every set of the study, and notes on what was not counted here."""
    data, notes = study.data, dict[str, None]()
    probes = data.probes
    if _here(probes):
        rows = load_probes(probes)
        estimate = sum(probe.split == "estimate" for probe in rows)
        validate = len(rows) - estimate
    else:
        estimate, validate = 2 * probes.estimate, 2 * probes.held_out
    if data.xstest is not None and _here(data.xstest):
        prompts = load_xstest(data.xstest)
        safe, unsafe = (sum(prompt.safe == wanted for prompt in prompts) for wanted in (True, False))
    else:
        total = _rows("xstest", data.xstest, load_xstest, notes)
        safe = round(XSTEST_SAFE * total)
        unsafe = total - safe

    def behaviors(source: Source) -> list[Behavior]:
        return load_behaviors(source, need_targets=False)

    asked = data.behaviors_val or data.behaviors_train
    by_rule = any(not isinstance(value, int) for value in study.anchors.reference.values())
    found = Counts(
        test=_rows("behaviors_test", data.behaviors_test, behaviors, notes),
        asked=_rows("behaviors_val", asked, behaviors, notes) if by_rule else 0,
        strongreject=_rows("strongreject", data.strongreject, load_strongreject, notes),
        xstest_safe=safe,
        xstest_unsafe=unsafe,
        audit=_rows("audit", data.audit, load_audit, notes),
        estimate=estimate,
        validate=validate,
    )
    return found, list(notes)


def _rows(name: str, source: Source | None, load: Callable[[Source], Sequence[object]], notes: dict[str, None]) -> int:
    if source is None:
        return 0
    if _here(source):
        return len(load(source))
    total = 0
    for part in source.parts:
        known = ROWS.get(PurePosixPath(part.path).name)
        if known is None:
            notes[f"data.{name}: {ASSUMED_ROWS} rows assumed in '{part.path}'"] = None
        total += ASSUMED_ROWS if known is None else known
    return total if source.limit is None else min(total, source.limit)


def lengths(study: Study) -> tuple[Lengths, str]:
    """Mean lengths of the study's texts, and what they rest on: measured where tokenizer and texts are here, else assumed."""
    data, most = study.data, study.train.max_tokens
    sources = (data.behaviors_test, data.behaviors_train, data.chat)
    if locate(study.model.path) is None or not all(_here(source) for source in sources):
        # HarmBench with Mistral's tokenizer, about: a quarter of the test behaviors stand behind a context of some 250 tokens.
        assumed = Lengths(90, 30, 4, 20, 20, 12, most)
        return assumed, "assumed: HarmBench behaviors with Mistral's tokenizer, about; every conversation as long as train.max_tokens"
    chat, _ = load_renderer(study.model)

    def attacked(behaviors: Sequence[Behavior], mark: str) -> tuple[float, float, float]:
        shown = [chat.prompt(row.request, mark, row.targets[0]) for row in behaviors[:: max(1, len(behaviors) // SAMPLE)]]
        return (
            _mean([row.attack[0] for row in shown]),
            _mean([row.target[0] - row.attack[1] for row in shown]),
            _mean([max(1, row.target[1] - row.target[0] - 1) for row in shown]),
        )

    request, after, target = attacked(load_behaviors(data.behaviors_test), study.source_attack.initial)
    train, _, short = attacked(load_behaviors(data.behaviors_train, with_context=False), study.train.r2d2.attack.initial)
    refusal = chat.prompt("?", "", study.train.r2d2.refusal).target
    chats = load_chat(data.chat)
    chosen = [min(most, len(chat.conversation(row.messages)[0])) for row in chats[:: max(1, len(chats) // SAMPLE)]]
    found = Lengths(request, train, after, target, short, refusal[1] - refusal[0], most if study.train.packing else _mean(chosen))
    return found, f"measured with the model's tokenizer on about {SAMPLE} rows of each set"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _here(source: Source) -> bool:
    return all(locate(part.path) is not None for part in source.parts)

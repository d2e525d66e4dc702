"""The models of the benchmarks, built at random in memory: no download. Their sizes, not their weights, are what costs time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from refgeo.attacks.cases import Case
from refgeo.config.load import load_study
from refgeo.data.load import load_behaviors
from refgeo.errors import ConfigError
from refgeo.lm.chat import ChatRenderer
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel


@dataclass(frozen=True)
class Shape:
    """Size of a Llama-type model. ``vocab`` of ``None``: the tokenizer of Mistral 7B, 32,000 tokens."""

    vocab: int | None
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {
    "M1": Shape(2048, 128, 344, 6, 4, 4),
    "M2": Shape(8192, 512, 1376, 8, 8, 8),
    "M3": Shape(None, 768, 2048, 12, 12, 12),
    "mistral-7b": Shape(None, 4096, 14336, 32, 32, 8),
}
NAMES = (*SHAPES, "pocket")
"""M1: 1.2M + 0.26M parameters (body + embedding), M2: 25M + 4M, M3: 85M + 25M, mistral-7b: 7.2B. ``pocket`` is the shipped model."""

THINGS = ("lines", "words", "names", "values", "characters", "spaces", "numbers", "keys", "items", "bytes")
# Special tokens end turns; the words around them are those of the texts that the small tokenizers learn from.
SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The turns of Mistral 7B Instruct.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)


def build(name: str, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """One of ``NAMES`` on the device. Raises ``ConfigError`` for another name."""
    if name == "pocket":
        return load(load_study("pocket").model.model_copy(update={"device": device, "dtype": dtype}))
    if name not in SHAPES:
        raise ConfigError(f"There is no benchmark model '{name}'", expected=f"one of {', '.join(NAMES)}")
    return random_model(SHAPES[name], device, dtype, name)


def random_model(shape: Shape, device: str = "cpu", dtype: str = "float32", name: str = "random") -> LanguageModel:
    """A Llama-type model of this shape with weights from a fixed seed, in evaluation mode, with its tokenizer and chat template."""
    tokenizer = byte_pairs(shape.vocab) if shape.vocab is not None else mistral_tokenizer()
    config = LlamaConfig(
        vocab_size=shape.vocab or len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.width < 4096,
        initializer_range=0.05,  # wide enough for the losses of candidates to differ visibly
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        # Made on the device and in its final type at once: 7B parameters in float32 on the host would not fit everywhere.
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device(device):
            net: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    net.to(device).eval().requires_grad_(False)
    return LanguageModel(net, tokenizer, ChatRenderer(tokenizer), name)


@cache
def byte_pairs(vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of ``vocab`` tokens, learned from the manual that comes with Python."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)), trainer)
    bos = ("<|bos|>", tokenizer.token_to_id("<|bos|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@cache
def mistral_tokenizer() -> PreTrainedTokenizerBase:
    """The real tokenizer of Mistral 7B, from the package ``mistral_common``. Raises ``ConfigError`` when it is missing."""
    try:
        import mistral_common
    except ModuleNotFoundError as error:
        raise ConfigError("The tokenizer of Mistral 7B is missing", fix="Run: pip install mistral_common sentencepiece") from error
    file = Path(str(mistral_common.__file__)).parent / "data" / "tokenizer.model.v1"
    with TemporaryDirectory() as folder:  # transformers converts a SentencePiece model under this name only
        shutil.copy(file, Path(folder) / "tokenizer.model")
        tokenizer: PreTrainedTokenizerBase = LlamaTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = MISTRAL
    return tokenizer


def cases(name: str, count: int, tokens: int = 20) -> list[Case]:
    """Harmless requests with affirmative targets and a suffix of ``tokens`` start tokens; for ``pocket`` its own behaviors."""
    suffix = " ".join(["!" if name == "pocket" else "x"] * tokens)  # one token each
    if name == "pocket":
        behaviors = load_behaviors(load_study("pocket").data.behaviors_test)[:count]
        return [Case(behavior.id, behavior.request, behavior.targets[0], suffix) for behavior in behaviors]
    if count > len(THINGS):
        raise ConfigError(f"{count} cases were asked for", expected=f"at most {len(THINGS)}")
    return [
        Case(
            thing,
            f"Write a short function that takes the name of a file and returns the number of {thing} in the file, and how it is used",
            f"Sure, here is a function that returns the number of {thing} in the file",
            suffix,
        )
        for thing in THINGS[:count]
    ]

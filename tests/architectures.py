"""Tiny random models of every kind of decoder that fast paths must be right on, and the tokenizer that all tests share."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from refgeo.lm.chat import ChatRenderer
from refgeo.lm.load import quiet_peft
from refgeo.lm.model import LanguageModel

SPECIAL = ("<|pad|>", "<|unk|>", "<|bos|>", "<|end|>", "<|turn|>")
WORDS = """
system user assistant : . , ! ? how do i make feed cook cut stir boil a the to of in with for and soup stew bread root berry leaf
fox crow owl hen pot bowl knife water fire red blue small big please tell me who what where is it safe sure here course yes
sorry can't cannot that help hello one two three
""".split()

# Four tokens between the user's last word and the reply: <|end|> <|turn|> assistant :
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} <|turn|> {{ message['role'] }} : {{ message['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %} <|turn|> assistant : {% endif %}"
)

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 256}
GROUPED = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 2}
WINDOW = 6
"""Sliding windows, in tokens: shorter than any rendered prompt, so that they bite."""

_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_GEMMA = {
    **GROUPED,
    "num_hidden_layers": 4,
    # Not hidden_size / heads: in Gemma the heads together are wider than the residual stream.
    "head_dim": 12,
    "query_pre_attn_scalar": 12,
    "sliding_window": WINDOW,
    "layer_types": _ALTERNATING,
    "tie_word_embeddings": True,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 12},
    # The caps are low enough to bend these models' scores and logits.
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3_text": _GEMMA,
    "phi3": GROUPED,
    "gpt_neox": {**SIZE, "intermediate_size": 48, "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "olmo2": GROUPED,
    "mixtral": {**GROUPED, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
}
ARCHITECTURES = tuple(_CONFIGS)
"""Names of the zoo, as transformers' ``model_type``."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # As real tokenizers do, it adds a BOS of its own unless told not to: whoever encodes a rendered chat carelessly gets two.
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", vocabulary["<|bos|>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        additional_special_tokens=["<|turn|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny(architecture: str, *, seed: int = 0, dtype: str = "float32") -> LanguageModel:
    """A random model of ``ARCHITECTURES``, width 32, in evaluation mode; another ``dtype`` rounds the same float32 weights.

    Norm weights and biases are drawn as well: a fast path that forgets one is found out.
    """
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        initializer_range=0.2,  # far from zero, so that different prompts get visibly different answers
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_CONFIGS[architecture],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for weight in net.parameters():
                if weight.ndim == 1:
                    weight.add_(0.2 * torch.randn_like(weight))
    if dtype != "float32":
        # As from_pretrained does it: `net.to(dtype)` would round the rotary frequencies as well, which no loaded model has rounded.
        weights = net.state_dict()
        net = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        net.load_state_dict(weights)
    return LanguageModel(net.eval().requires_grad_(False), tokenizer, ChatRenderer(tokenizer), architecture)


def adapted(lm: LanguageModel, *, seed: int = 0, rank: int = 4) -> LanguageModel:
    """``lm`` inside a random LoRA adapter on all its linear layers, made as training makes it, in evaluation mode.

    PEFT changes the modules of ``lm`` in place, so use only what is returned. Adapter weights are float32 and need gradients. On Mixtral
    router and experts are adapted too: PEFT folds that part into their weights at every forward.
    """
    # PEFT cannot adapt the experts of a mixture with dropout.
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
    with torch.random.fork_rng(), warnings.catch_warnings(), quiet_peft():
        # PEFT 0.21 writes patterns for Mixtral's fused experts itself and then finds that they do not match.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys", category=RuntimeWarning)
        torch.manual_seed(seed)
        net = get_peft_model(lm.net, config)
        with torch.no_grad():
            for name, weight in net.named_parameters():
                if "lora_B" in name:  # PEFT starts it at zero, where an adapter does nothing
                    weight.normal_(std=0.2)
    return LanguageModel(net.eval(), lm.tokenizer, lm.chat, lm.name)

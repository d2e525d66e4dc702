"""Loading a model from a folder, and every kind of decoder through the same hooks without code of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from architectures import ARCHITECTURES, adapted, tiny
from refgeo.config.model import Dtype, ModelSettings
from refgeo.errors import ModelError
from refgeo.lm.adapters import merged
from refgeo.lm.changes import Change
from refgeo.lm.chat import ChatRenderer
from refgeo.lm.drafts import complete_changed
from refgeo.lm.generate import as_text, complete, complete_ids
from refgeo.lm.hook_check import self_check
from refgeo.lm.load import load, quiet_peft
from refgeo.lm.model import LanguageModel, evaluating
from refgeo.lm.residual import ablate, add, last_logits, projector
from refgeo.lm.resume import resumable

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 128}
GROUPED = {**SIZE, "num_key_value_heads": 1}
OPT = {
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, tuple[str, dict[str, int]]] = {
    "mistral, sliding window": ("MistralConfig", {**GROUPED, "sliding_window": 8}),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "gemma2, norms after the parts": ("Gemma2Config", {**GROUPED, "head_dim": 16, "sliding_window": 8}),
    "gpt2, learned positions": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 128}),
    "gpt-neox, parallel parts": ("GPTNeoXConfig", SIZE),
    "opt, loose feed-forward layers": ("OPTConfig", OPT),
    "bloom, alibi": ("BloomConfig", {"hidden_size": 32, "n_layer": 3, "n_head": 2}),
    "mixtral, experts": ("MixtralConfig", {**GROUPED, "num_local_experts": 2}),
}


def decoder(family: str, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    name, size = FAMILIES[family]
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    config: PretrainedConfig = getattr(transformers, name)(**size, **ids, initializer_range=0.2, tie_word_embeddings=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.AutoModelForCausalLM.from_config(config)
    return LanguageModel(net.eval().requires_grad_(False), tokenizer, ChatRenderer(tokenizer), family)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_kind_of_decoder_is_read_and_edited_by_the_same_code(tiny_lm: LanguageModel, family: str) -> None:
    lm = decoder(family, tiny_lm.tokenizer)
    self_check(lm)
    prompts = [lm.chat.prompt(request) for request in ("how do i cook a fox", "cut", "boil root in a pot with water please")]
    assert resumable(lm, prompts[0].ids)
    drafts = complete_ids(lm, prompts, 8)
    assert as_text(lm, drafts) == complete(lm, prompts, 8)
    unit = torch.nn.functional.normalize(torch.randn(1, 32, generator=torch.Generator().manual_seed(1)))
    changes = [Change(0, unit), Change(2, unit), Change(None, unit), Change(1, vector=8 * unit[0])]
    expected = []
    for change in changes:
        with ablate(lm, unit, change.layer) if change.basis is not None else add(lm, 8 * unit[0], 1):
            expected.append(complete_ids(lm, prompts, 8, batch=1))
    assert complete_changed(lm, prompts, drafts, changes, 8) == expected
    assert expected[-1] != drafts


def test_a_loaded_model_is_in_evaluation_mode_and_needs_no_gradients(tiny_lm: LanguageModel) -> None:
    assert not tiny_lm.net.training
    assert not any(weight.requires_grad for weight in tiny_lm.net.parameters())
    assert (tiny_lm.depth, tiny_lm.width, tiny_lm.context) == (3, 32, 256)
    self_check(tiny_lm)


def test_an_adapter_is_folded_into_the_weights(tiny_model_dir: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    prompt = [tiny_lm.chat.prompt("how do i cook a fox").ids]
    plain = last_logits(tiny_lm, prompt)
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(1)
        adapted = get_peft_model(tiny_lm.net, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    with torch.no_grad():
        expected = last_logits(LanguageModel(adapted, tiny_lm.tokenizer, tiny_lm.chat, "adapted"), prompt)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merged = load(ModelSettings(path=str(tiny_model_dir), device="cpu"), tmp_path / "adapter")
    named = load(ModelSettings(path=str(tiny_model_dir), device="cpu", adapter=str(tmp_path / "adapter")))
    assert torch.allclose(last_logits(merged, prompt), expected, atol=1e-4)
    assert torch.equal(last_logits(merged, prompt), last_logits(named, prompt))
    assert not torch.allclose(expected, plain, atol=1e-2)
    self_check(merged)


def test_a_model_wrapped_by_an_adapter_shows_the_same_blocks(tiny_lm: LanguageModel) -> None:
    with quiet_peft():
        wrapped = LanguageModel(
            get_peft_model(tiny_lm.net, LoraConfig(r=2, target_modules=["q_proj"])), tiny_lm.tokenizer, tiny_lm.chat, "wrapped"
        )
    assert wrapped.core is tiny_lm.net
    assert list(wrapped.blocks) == list(tiny_lm.blocks)


def test_weights_of_a_checkpoint_replace_the_model(tiny_model_dir: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_lm.core.model.embed_tokens.weight.mul_(0.5)
    tiny_lm.core.save_pretrained(tmp_path / "whole")
    prompt = [tiny_lm.chat.prompt("fox").ids]
    again = load(ModelSettings(path=str(tiny_model_dir), device="cpu"), tmp_path / "whole")
    assert torch.equal(last_logits(again, prompt), last_logits(tiny_lm, prompt))


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.* does not exist\. Name a folder"):
        load(ModelSettings(path=str(tmp_path / "nowhere")))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\. Expected config\.json"):
        load(ModelSettings(path=str(tmp_path)))
    (tmp_path / "config.json").write_text("no JSON")
    with pytest.raises(ModelError, match="Cannot load model"):
        load(ModelSettings(path=str(tmp_path)))
    with pytest.raises(ModelError, match=r"config\.json' is a file, not a model folder"):
        load(ModelSettings(path=str(tmp_path / "config.json")))


def test_a_run_is_no_model_but_says_where_its_models_are(tmp_path: Path) -> None:
    adapter = tmp_path / "arms" / "r2d2" / "seed-1" / "step-000300" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a run, which holds models.*arms/r2d2/seed-1/step-000300/adapter'"):
        load(ModelSettings(path=str(tmp_path)))


def test_a_model_without_a_chat_template_says_what_to_set(tiny_model_dir: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tiny_lm.core.save_pretrained(tmp_path)
    template = tiny_lm.tokenizer.chat_template
    tiny_lm.tokenizer.chat_template = None
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no chat template\. Set model\.chat_template"):
        load(ModelSettings(path=str(tmp_path), device="cpu"))
    given = load(ModelSettings(path=str(tmp_path), device="cpu", chat_template=str(template)))
    (tmp_path / "chat.jinja").write_text(str(template))
    read = load(ModelSettings(path=str(tmp_path), device="cpu", chat_template=str(tmp_path / "chat.jinja")))
    usual = load(ModelSettings(path=str(tiny_model_dir), device="cpu"))
    assert given.chat.prompt("fox") == read.chat.prompt("fox") == usual.chat.prompt("fox")


def test_blocks_that_cannot_be_told_apart_are_refused(tiny_lm: LanguageModel) -> None:
    tiny_lm.core.model.second = torch.nn.ModuleList([torch.nn.Identity() for _ in range(3)])
    with pytest.raises(ModelError, match="2 module lists of length 3"):
        _ = LanguageModel(tiny_lm.net, tiny_lm.tokenizer, tiny_lm.chat, "two lists").blocks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_architecture_comes_back_from_a_folder_with_its_adapter_and_proves_its_hooks(
    architecture: str, dtype: Dtype, tmp_path: Path
) -> None:
    lm = tiny(architecture, dtype=dtype)
    lm.core.save_pretrained(tmp_path / "base")
    lm.tokenizer.save_pretrained(tmp_path / "base")
    row = [lm.chat.prompt("how do i cook a fox").ids]
    plain = last_logits(lm, row)
    again = load(ModelSettings(path=str(tmp_path / "base"), dtype=dtype, device_map={"": "cpu"}))
    assert torch.equal(last_logits(again, row), plain)
    wrapped = adapted(lm)
    self_check(wrapped)
    if architecture == "mixtral":  # PEFT 0.21 loses the patterns of fused experts between saving and loading
        return
    with torch.no_grad():
        expected = last_logits(wrapped, row)
    wrapped.net.save_pretrained(str(tmp_path / "adapter"))
    folded = load(ModelSettings(path=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"), dtype=dtype, device="cpu"))
    rounding = 1e-3 if dtype == "float32" else 0.1
    assert float((last_logits(folded, row) - expected).abs().max() / expected.abs().max()) < rounding
    assert float((expected - plain).abs().max() / expected.abs().max()) > rounding


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt_neox"])
def test_merging_for_a_while_gives_the_same_answers_and_leaves_no_trace(architecture: str) -> None:
    lm = adapted(tiny(architecture))
    row = [lm.chat.prompt("how do i cook a fox").ids]
    before, weights = last_logits(lm, row), {name: weight.clone() for name, weight in lm.net.named_parameters()}
    for _ in range(2):
        with merged(lm):
            assert torch.allclose(last_logits(lm, row), before, atol=1e-3)
            layers = [module for module in lm.net.modules() if isinstance(module, BaseTunerLayer)]
            assert all(layer.merged for layer in layers)
    assert torch.equal(last_logits(lm, row), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.net.named_parameters())


def test_an_adapter_that_is_no_weight_is_not_merged(tiny_lm: LanguageModel) -> None:
    with quiet_peft():
        net = get_peft_model(tiny_lm.net, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))
    lm = LanguageModel(net, tiny_lm.tokenizer, tiny_lm.chat, "prompted")
    with pytest.raises(ModelError, match=r"cannot be folded.*merge_for_attack"), merged(lm):
        pass


def test_turns_end_with_every_token_that_ends_one(tiny_lm: LanguageModel) -> None:
    ids = {word: tiny_lm.tokenizer.get_vocab()[word] for word in ("<|end|>", "fox", "owl", "hen")}
    assert tiny_lm.stop_ids == {ids["<|end|>"]}
    tiny_lm.core.generation_config.eos_token_id = [ids["owl"], ids["hen"]]
    tiny_lm.tokenizer.eos_token = "fox"
    # The template still writes <|end|> after a reply, though it is nobody's end of sequence now (as in Gemma).
    assert tiny_lm.stop_ids == set(ids.values())
    assert tiny_lm.eos_id == ids["fox"]
    tiny_lm.tokenizer.eos_token = None
    assert tiny_lm.eos_id in tiny_lm.stop_ids


def test_a_model_without_any_end_of_turn_says_so(tiny_lm: LanguageModel) -> None:
    tiny_lm.tokenizer.eos_token = None
    tiny_lm.core.generation_config.eos_token_id = None
    tiny_lm.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} . {% endfor %}"
    with pytest.raises(ModelError, match=r"Nothing says which token ends a reply.*model\.chat_template"):
        _ = tiny_lm.stop_ids


def test_edits_follow_the_hidden_states_to_their_device() -> None:
    elsewhere = torch.empty(2, 3, 8, device="meta")
    assert projector(torch.eye(8)[:2])(elsewhere).device.type == "meta"


def test_evaluation_mode_is_given_back(tiny_lm: LanguageModel) -> None:
    tiny_lm.net.train()
    with evaluating(tiny_lm):
        assert not tiny_lm.net.training
    assert tiny_lm.net.training

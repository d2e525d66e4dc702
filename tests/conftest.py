"""Shape and type checks on every function of the package, and one tiny model that goes through the real loading code."""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Before anything of refgeo is imported: the rooms that handle arrays, models and rows. The configuration checks itself (pydantic).
# The numeric tower makes beartype accept an int where a float is asked for, as mypy does.
ROOMS = ("statistics", "lm", "data", "pocket", "judging", "attacks", "training", "measures", "instruments")
TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook([f"refgeo.{room}" for room in ROOMS], TYPECHECKER)

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402  (the hook must be in place first)

from architectures import ARCHITECTURES, tiny, tiny_tokenizer  # noqa: E402  (as above)
from command import Answer, Refgeo  # noqa: E402  (as above)
from refgeo.cli import main  # noqa: E402  (as above)
from refgeo.config.model import ModelSettings  # noqa: E402  as above
from refgeo.lm.load import load  # noqa: E402  (as above)
from refgeo.lm.model import LanguageModel  # noqa: E402  (as above)

# The same examples in every run, and no time limit: a test that fails on a busy machine says nothing about the code.
hypothesis.settings.register_profile("refgeo", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("refgeo")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 3-layer Llama of width 32 with a word-level tokenizer and a chat template. Read only, shared by all tests."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,  # far from zero, so that different prompts get visibly different answers
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small matrices are ten times slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_lm(tiny_model_dir: Path) -> LanguageModel:
    """The tiny model, loaded afresh for every test: whatever a test does to it stays there."""
    return load(ModelSettings(path=str(tiny_model_dir), device="cpu"))


@pytest.fixture(params=ARCHITECTURES)
def any_lm(request: pytest.FixtureRequest) -> LanguageModel:
    """A tiny random model of every architecture in turn, built afresh for every test."""
    return tiny(request.param)


@pytest.fixture
def refgeo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refgeo:
    """Call the command as a shell would."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["refgeo", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Answer(code or 0, *capsys.readouterr())

    return call

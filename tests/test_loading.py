"""From a model's name to its weights: the forms of a name, adapters and their bases, and what a user reads when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import disk_offload  # type: ignore[import-untyped]
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import tiny
from refgeo.config.model import ModelSettings, parse_model
from refgeo.errors import ConfigError, ModelError
from refgeo.lm.hook_check import self_check
from refgeo.lm.load import load, quiet_peft
from refgeo.lm.model import LanguageModel
from refgeo.lm.origin import notice_offline
from refgeo.lm.residual import last_logits


def save_adapter(lm: LanguageModel, folder: Path, base: str, rank: int = 2) -> Path:
    """A random LoRA adapter that says it was made for ``base``."""
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(1)
        net = get_peft_model(lm.net, LoraConfig(r=rank, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    net.peft_config["default"].base_model_name_or_path = base
    net.save_pretrained(str(folder))
    return folder


@pytest.fixture
def adapter(tiny_model_dir: Path, tiny_lm: LanguageModel, tmp_path: Path) -> Path:
    return save_adapter(tiny_lm, tmp_path / "adapter", str(tiny_model_dir))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ("org/model", None, None, None)),
        ("org/model@v1.0", ("org/model", "v1.0", None, None)),
        ("org/model+org/adapter", ("org/model", None, "org/adapter", None)),
        ("org/model@main+org/adapter@abc123", ("org/model", "main", "org/adapter", "abc123")),
        ("package:pocket/world/model", ("package:pocket/world/model", None, None, None)),
    ],
)
def test_the_forms_of_a_name(text: str, expected: tuple[str | None, ...]) -> None:
    found = parse_model(text)
    assert (found.path, found.revision, found.adapter, found.adapter_revision) == expected


def test_an_existing_path_is_taken_as_it_is(tmp_path: Path) -> None:
    (odd := tmp_path / "a+b@c").mkdir()
    assert parse_model(str(odd)) == ModelSettings(path=str(odd))
    assert parse_model(f"{odd}+org/adapter").adapter == "org/adapter"


@pytest.mark.parametrize("text", ["", "+adapter", "base+", "org/model@", "@main", "a+b+c", "./folder@main"])
def test_a_name_with_a_missing_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_model(text)


def test_an_adapter_alone_brings_its_base(tiny_model_dir: Path, adapter: Path) -> None:
    alone = load(ModelSettings(path=str(adapter), device="cpu"))
    both = load(parse_model(f"{tiny_model_dir}+{adapter}").model_copy(update={"device": "cpu"}))
    row = [alone.chat.prompt("how do i cook").ids]
    assert torch.equal(last_logits(alone, row), last_logits(both, row))
    assert not torch.allclose(last_logits(alone, row), last_logits(load(ModelSettings(path=str(tiny_model_dir), device="cpu")), row))


def test_an_adapter_without_a_base_is_refused(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match=r"is an adapter, not a model.*base\+adapter"):
        load(ModelSettings(path=str(adapter), device="cpu"))


@pytest.mark.parametrize(
    ("architecture", "match"), [("llama", "size mismatch"), ("gpt_neox", "[Tt]arget modules"), ("qwen3", "size mismatch")]
)
def test_an_adapter_for_another_base_is_refused(adapter: Path, tmp_path: Path, architecture: str, match: str) -> None:
    other = tiny(architecture)
    other.core.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=rf"does not fit '.*other': .*{match}.*tiny-model.*adapter_config\.json"):
        load(ModelSettings(path=str(tmp_path / "other"), adapter=str(adapter), device="cpu"))


def test_an_adapter_with_other_layers_than_its_file_says_is_refused(adapter: Path, tiny_model_dir: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["q_proj", "up_proj", "v_proj"]}))
    with pytest.raises(ModelError, match="missing adapter keys"):
        load(ModelSettings(path=str(tiny_model_dir), adapter=str(adapter), device="cpu"))


@pytest.mark.parametrize("content", [None, {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "x"}])
def test_what_is_no_adapter_of_weights_is_refused(tiny_model_dir: Path, tmp_path: Path, content: dict[str, str] | None) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="for an adapter" if content is None else r"no change of weights \(PROMPT_TUNING"):
        load(ModelSettings(path=str(tiny_model_dir), adapter=str(tmp_path), device="cpu"))


def refused(kind: type[HfHubHTTPError]) -> OSError:
    """What transformers raises when the hub refuses: an OSError around the hub's own error."""
    error = OSError("something long about a repository")
    error.__cause__ = kind.__new__(kind)  # its arguments depend on the HTTP library
    return error


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("google/gemma-2-2b-it", refused(GatedRepoError), r"gated.*hf auth login.*HF_TOKEN.*'unsloth/gemma-2-2b-it'"),
        ("org/unheard-of", refused(GatedRepoError), r"gated.*hf auth login.*ungated model of that size"),
        ("org/misspelled", refused(RepositoryNotFoundError), r"neither a folder here nor.*spelling.*hf auth login"),
        ("org/model", refused(RevisionNotFoundError), "no such revision"),
        ("org/model", OSError("We couldn't connect to 'the hub' to load the files"), r"cannot be reached.*hf download org/model"),
        ("org/model", torch.OutOfMemoryError("CUDA out of memory"), r"does not fit into the memory.*bfloat16.*device_map=auto"),
        ("org/model", ValueError("pass the argument `trust_remote_code=True`"), r"not run unless.*model\.trust_remote_code=\[org/model\]"),
        ("org/model", OSError("disk on fire"), r"disk on fire"),
    ],
)
def test_what_keeps_a_model_away_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, match: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("refgeo.lm.origin.cached_file", lambda *args, **kwargs: "config.json")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=f"'{name}'.*{match}"):
        load(ModelSettings(path=name, device="cpu"))


def test_without_a_network_a_hub_model_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot be reached.*refgeo fetch STUDY -o bundle.*data\.bundle=bundle.*hf download org/model"):
        load(ModelSettings(path="org/model", device="cpu"))


def test_where_no_way_leads_to_the_hub_it_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def unreachable(address: tuple[str, int], timeout: float) -> None:
        tried.append(address)
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("refgeo.lm.origin.getproxies", dict)
    monkeypatch.setattr("refgeo.lm.origin.socket.create_connection", unreachable)
    notice_offline.cache_clear()
    for _ in range(2):
        with pytest.raises(ModelError, match="the hub cannot be reached"):
            load(ModelSettings(path="org/model", device="cpu"))
    assert len(tried) == 1
    notice_offline.cache_clear()


def test_out_of_memory_at_load_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"model\.dtype to bfloat16.*smaller model"):
        load(ModelSettings(path=str(tiny_model_dir), device="cpu"))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "refgeo-own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_when_the_model_is_named(
    tiny_model_dir: Path, tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    tiny_lm.core.save_pretrained(folder)
    tiny_lm.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "refgeo-own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)
    for others in ((), (str(tiny_model_dir),)):
        with pytest.raises(ModelError, match=r"Python code of its own.*trust_remote_code=\["):
            load(ModelSettings(path=str(folder), device="cpu", trust_remote_code=others))
    trusted = load(ModelSettings(path=str(folder), device="cpu", trust_remote_code=(str(folder),)))
    row = [tiny_lm.chat.prompt("fox").ids]
    assert torch.equal(last_logits(trusted, row), last_logits(tiny_lm, row))


def test_trust_is_given_by_name() -> None:
    assert ModelSettings.model_validate({"path": "x", "trust_remote_code": False}).trust_remote_code == ()
    assert ModelSettings.model_validate({"path": "x", "trust_remote_code": ["x"]}).trust_remote_code == ("x",)
    with pytest.raises(ValueError, match=r"name those you trust, such as \[org/model\]"):
        ModelSettings.model_validate({"path": "x", "trust_remote_code": True})


def test_a_device_map_and_the_stored_dtype(tiny_model_dir: Path, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    mapped = load(ModelSettings(path=str(tiny_model_dir), device_map={"": "cpu"}))
    row = [tiny_lm.chat.prompt("how do i cook a fox").ids]
    assert mapped.device == torch.device("cpu")
    assert torch.equal(last_logits(mapped, row), last_logits(tiny_lm, row))
    tiny_lm.core.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "half")
    assert load(ModelSettings(path=str(tmp_path / "half"), device="cpu", dtype="auto")).core.dtype == torch.bfloat16
    assert load(ModelSettings(path=str(tmp_path / "half"), device="cpu")).core.dtype == torch.float32


def test_inputs_go_where_accelerate_runs_an_embedding_whose_weights_are_kept_elsewhere(tiny_model_dir: Path, tmp_path: Path) -> None:
    lm = load(ModelSettings(path=str(tiny_model_dir), device="cpu"), check=False)
    expected = last_logits(lm, [lm.chat.prompt("fox").ids])
    disk_offload(lm.core, str(tmp_path), execution_device=torch.device("cpu"), offload_buffers=False)
    assert lm.core.get_input_embeddings().weight.device.type == "meta"
    assert lm.device == torch.device("cpu")
    assert torch.equal(last_logits(lm, [lm.chat.prompt("fox").ids]), expected)
    self_check(lm)

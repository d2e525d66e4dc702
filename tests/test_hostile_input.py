"""Settings, data, bundles and models that somebody wrote to do harm: refused in one message, nothing runs, nothing leaves a folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from command import Refgeo
from hostile import BEFORE, DEEP, EVIL, harmless, written
from refgeo.config.bundle import MANIFEST, VERIFIED, Kept, digest, read_manifest, verify
from refgeo.config.data import Source
from refgeo.config.judge import ServedSettings
from refgeo.config.load import commented_yaml, load_study
from refgeo.config.locations import LONGEST_NAME, has_secret, is_name, locate, plain_name
from refgeo.config.model import ModelSettings
from refgeo.config.reading import parse_json, read_yaml
from refgeo.data.download import download, file_name
from refgeo.data.load import load_behaviors, load_chat
from refgeo.errors import ConfigError, DataError, ModelError
from refgeo.instruments.judging import judge
from refgeo.lm.load import load, load_renderer
from refgeo.lm.served import Served
from refgeo.report.claims_added import load_claims
from refgeo.report.inspect_log import _task


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a [*a]",
        "a: " + "[" * 500 + "]" * 500,
        "a: " + "{a: " * 60 + "1" + "}" * 60,
        "a: !!python/object/apply:os.mkdir ['owned']",
        "a: 2024-99-99",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: " + "9" * 5000,
        "a: " + "x" * 2_000_000,
        "? [a]\n: 1",
    ],
)
def test_yaml_that_bites_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the file"):
        read_yaml(text, "the file")
    with pytest.raises(ConfigError):
        load_study(str(written(tmp_path, "study.yaml", text)))
    with pytest.raises(ConfigError):
        load_claims(str(written(tmp_path, "claims.yaml", text)))
    assert not (tmp_path / "owned").exists()


def test_anchors_are_no_crime() -> None:
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "it")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed", 10**400, "seed"),
        ("seed", -1, "seed"),
        ("train.seeds", [10**30], r"train.seeds\[0\]"),
        ("train.steps", 10**30, "too large"),
        ("train.weight_decay", float("nan"), "finite"),
        ("train.learning_rate", float("inf"), "finite"),
        ("name", "a\0b", "NUL"),
        ("model.system_prompt", "\ud800", "surrogate"),
        ("data.chat.columns", {"a": "\0"}, "NUL"),
        ("model.path", "a\0b", "NUL"),
    ],
)
def test_what_no_file_and_no_generator_takes_is_no_setting(key: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_study("pocket", [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])


def test_files_that_extend_one_another_over_a_detour_end(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    written(folder, "a.yaml", "extends: ../x/a.yaml\n")
    with pytest.raises(ConfigError, match="again"):
        load_study(str(folder / "a.yaml"))


@pytest.mark.parametrize("path", ["a" * 5000, "~nobody-of-this-name/x", "a\0b"])
def test_what_cannot_be_a_path_is_said(path: str, refgeo: Refgeo) -> None:
    with pytest.raises(ConfigError, match="cannot be looked up"):
        locate(path)
    answer = refgeo("config", path)
    assert answer.code == 2
    assert "cannot be looked up" in answer.err


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", " a", "a\nb", "a\u202eb", "x" * 300, ""])
def test_a_run_folder_of_a_bad_name_is_refused(name: str, refgeo: Refgeo, tmp_path: Path) -> None:
    assert not is_name(name)
    answer = refgeo("plan", written(tmp_path, "study.yaml", BEFORE + f"name: {json.dumps(name)}\n"))
    assert answer.code == 2
    assert "is no folder name" in answer.err


def test_whatever_a_text_holds_it_becomes_the_name_of_one_file(tmp_path: Path) -> None:
    for text in ("../../etc/passwd", "C:\\x", "a\0b", EVIL, "..", "", "x" * 10_000, "字" * 1000, "\ud800", "-rf"):
        name = plain_name(text, "other")
        assert len(name.encode()) <= LONGEST_NAME
        (tmp_path / name).write_text("x")
        assert (tmp_path / name).parent.resolve() == tmp_path.resolve()
        assert not name.startswith(("-", "."))
    assert plain_name("e\u0301", "x") == plain_name("\u00e9", "x")
    assert plain_name(f"{'x' * 300}.csv", "x").endswith(".csv")
    assert _task("../../x") == "refgeo_..-..-x"


@pytest.mark.parametrize(
    "url",
    [
        "https://me:geheim@example.org/a.csv",
        "https://geheim@example.org/a.csv",
        "HTTPS://me:geheim@example.org/a.csv",
        " https://me:geheim@example.org/a.csv",
        "git+https://me:geheim@example.org/a.csv",
        "https://example.org/a.csv?token=geheim",
        "https://example.org/a.csv#access_token=geheim",
        "https://x.org/a.csv?X-Amz-Signature=geheim",
        "https://x.org/a.csv?k=geheimQ29uZmlkZW50aWFs12",
        "https://x.org/a.csv?h=geheim&hash=0123456789abcdef0123456789abcdef",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    for key in ("data.chat", "data.behaviors_test.targets", "data.filler", "judge.served.url"):
        with pytest.raises(ConfigError, match="carries a password or a token") as error:
            load_study("pocket", [f"{key}={url}"])
        assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a.csv?download=true&revision=3",
        "https://example.org/a.csv?id=1AbCdEfGhIjKlMnOpQrStUvWxYz012345",
        f"https://example.org/a.csv?commit={'0a' * 20}",
        "https://example.org/get?file=harmbench_behaviors_text_all_2024.csv",
        "runs/a?token=b",
        "Read https://example.org/?token=x before you answer.",
    ],
)
def test_an_address_that_only_says_which_file_is_meant_is_taken(text: str) -> None:
    assert not has_secret(text)


def test_no_error_repeats_a_login_or_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = "https://me:geheim@cdn.org/a.csv?Expires=9&Policy=geheim"
    for text in (signed, f"(for url: {signed})", f"'{signed}'", f"no answer from {signed}, twice from http://x:geheim@proxy:8080"):
        said = str(DataError(f"Cannot download {text}", expected=text, fix=text))
        assert "geheim" not in said
        assert "cdn.org/a.csv?..." in said
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Redirected(b"x"))
    monkeypatch.setattr(Redirected, "url", signed.replace("https", "http"))
    with pytest.raises(DataError, match="leads to") as error:
        download("https://x.org/a.csv", tmp_path / "a.csv")
    assert "geheim" not in str(error.value)
    assert str(DataError("Is it a@b.org? See https://x.org/a/b#c")) == "Is it a@b.org? See https://x.org/a/b#c."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", DEEP),
        ("a.jsonl", '{"Behavior": ' + DEEP),
        ("a.jsonl", '{"Behavior": "\\ud800"}'),
        ("a.jsonl", '{"Behavior": ' + "9" * 5000 + "}"),
        ("a.csv", b"Behavior\n\xff\n"),
        ("a.parquet", b"PAR1"),
        ("a.jsonl", json.dumps({"Behavior": "a", "Reference": DEEP})),
        ("a.jsonl", json.dumps({"Behavior": "a", "Reference": '{"steps": ["\\ud800"]}'})),
    ],
)
def test_rows_that_bite_are_refused(name: str, content: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_behaviors(Source(path=str(written(tmp_path, name, content))), need_targets=False)
    assert len(str(error.value)) < 1000


def test_messages_that_bite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too deeply"):
        load_chat(Source(path=str(written(tmp_path, "chat.jsonl", json.dumps({"messages": DEEP})))))


def test_whole_pairs_are_characters() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "😀"


def test_what_a_set_says_is_data(tmp_path: Path) -> None:
    ids = ["a", "A", "\u00e9", "e\u0301", "../../x", EVIL.strip(), "x" * 1000, "{{ 7 * 7 }}", "=cmd"]
    rows = "".join(json.dumps({"BehaviorID": one, "Behavior": f"how {place}"}) + "\n" for place, one in enumerate(ids))
    assert [one.id for one in load_behaviors(Source(path=str(written(tmp_path, "a.jsonl", rows))), need_targets=False)] == ids


@pytest.mark.parametrize("url", ["https://[x/a.csv", "https://x:y/a.csv", "https://x.invalid/a b.csv", "https://x.invalid/\u00fc.csv"])
def test_what_is_no_address_is_said(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        download(url, tmp_path / file_name(url))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["https://x.org/..", "https://x.org/", "https://x.org/\0"])
def test_an_address_that_names_no_file_is_said(url: str) -> None:
    with pytest.raises(DataError, match="names no file"):
        file_name(url)


class Redirected(io.BytesIO):
    headers: ClassVar[dict[str, str]] = {"Content-Length": "many"}
    url = "http://elsewhere.org/a.csv"


def test_a_download_stays_on_https_and_believes_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Redirected(b"x"))
    with pytest.raises(DataError, match="https all the way"):
        download("https://x.org/a.csv", tmp_path / "a.csv")
    monkeypatch.setattr(Redirected, "url", "https://x.org/a.csv")
    download("https://x.org/a.csv", tmp_path / "a.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def manifest(folder: Path, place: str = "a", files: dict[str, dict[str, object]] | None = None) -> Path:
    item = {"want": {"kind": "file", "path": "x"}, "place": place, "files": files or {}}
    written(folder, MANIFEST, json.dumps({"study": "s", "refgeo": "1", "items": [item]}))
    return folder


@pytest.mark.parametrize("place", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "a\0b"])
def test_a_bundle_names_nothing_outside(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads out of the bundle"):
        read_manifest(manifest(tmp_path, place))
    with pytest.raises(DataError, match="leads out of the bundle"):
        read_manifest(manifest(tmp_path, files={place: {"sha256": "0", "bytes": 1}}))


@pytest.mark.parametrize("content", [DEEP, b"\xff", "[1]", "{"])
def test_a_manifest_that_bites_is_refused(content: str | bytes, tmp_path: Path) -> None:
    written(tmp_path, MANIFEST, content)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(tmp_path)


def test_what_a_bundle_remembers_is_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgeo.config.bundle.LARGE", 1)
    mine = written(tmp_path, "mine", "precious")
    big = written(tmp_path / "bundle", "a", "content")
    kept = Kept(sha256=digest(big), bytes=7)
    bundle = manifest(tmp_path / "bundle", files={"a": kept.model_dump()})
    (bundle / VERIFIED).symlink_to(mine)
    verify(bundle, read_manifest(bundle))
    assert mine.read_text() == "precious"
    assert not (bundle / VERIFIED).is_symlink()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[9].x.y }}",
        "{{ 1 + 'a' }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('owned') }}",
        "{% include '/etc/passwd' %}",
        "{% if",
    ],
)
def test_a_chat_template_that_bites_is_refused(
    template: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ModelSettings(path=str(tiny_model_dir), chat_template=template)
    with pytest.raises(ModelError, match="chat template"):
        load_renderer(settings)[0].prompt("hello")
    assert not list(tmp_path.iterdir())


def test_a_chat_template_that_is_no_text_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_renderer(ModelSettings(path=str(tiny_model_dir), chat_template=str(written(tmp_path, "t.jinja", b"\xff"))))


@pytest.mark.parametrize("content", [b"", b"\xff" * 9, b"\x10\0\0\0\0\0\0\0{"])
def test_weights_that_are_cut_off_are_said(content: bytes, tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        written(tmp_path, file.name, file.read_bytes())
    written(tmp_path, "model.safetensors", content)
    with pytest.raises(ModelError, match="Cannot load"):
        load(ModelSettings(path=str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", DEEP),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": "x"}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 5}'),
        ("tokenizer_config.json", "[1]"),
    ],
)
def test_files_of_a_model_that_bite_are_refused(name: str, content: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        written(tmp_path, file.name, file.read_bytes())
    written(tmp_path, name, content)
    with pytest.raises(ModelError):
        load(ModelSettings(path=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("content", ["[1]", DEEP, '{"base_model_name_or_path": 5}', "{}"])
def test_an_adapter_that_bites_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load(ModelSettings(path=str(written(tmp_path, "adapter_config.json", content).parent), device="cpu"))


def test_code_of_a_model_is_not_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    for file in tiny_model_dir.iterdir():
        written(tmp_path, file.name, file.read_bytes())
    written(tmp_path, "evil.py", f"open({str(tmp_path / 'owned')!r}, 'w')\n\nclass Config: pass\n")
    written(
        tmp_path, "config.json", '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Config"}}'
    )
    with pytest.raises(ModelError):
        load(ModelSettings(path=str(tmp_path), device="cpu"))
    assert not (tmp_path / "owned").exists()


def test_half_characters_are_judged_by_nobody() -> None:
    with pytest.raises(DataError, match="surrogate"):
        judge([{"request": "q", "completion": "\ud800"}], study="pocket", overrides=["judge={kind: rules}"])


@pytest.mark.parametrize("key", ["geheim\nX-Evil: 1", "geheim\u00fc"])
def test_a_key_that_is_none_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", key)
    with pytest.raises(ConfigError, match="THE_KEY") as error:
        Served(ServedSettings(url="http://localhost:1/v1", model="m", key_variable="THE_KEY"))
    assert "geheim" not in str(error.value)


def test_a_study_of_hostile_words_is_printed_as_yaml_that_reads_back(tmp_path: Path) -> None:
    study = load_study("pocket").model_copy(update={"name": EVIL})
    text = commented_yaml(study)
    assert harmless(text)
    assert load_study(str(written(tmp_path, "s.yaml", text))).name == EVIL

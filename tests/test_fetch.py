"""The offline bundle: what is fetched, that it is what a study then reads, and what a user is told when something is missing."""

from __future__ import annotations

from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
import torch
from huggingface_hub import errors as hub

from command import Refgeo
from real_formats import TRAIN, VAL, Network, conversations
from refgeo.config.bundle import MANIFEST, VERIFIED, Want, in_bundle, locate_in_bundle, read_manifest, wanted
from refgeo.config.load import dump_study, load_study
from refgeo.config.schema import Study
from refgeo.data.download import download
from refgeo.data.load import load_behaviors, load_chat, load_probes
from refgeo.errors import DataError, ModelError, RefgeoError
from refgeo.lm.load import load
from refgeo.study.fetch import fetch
from tiny_study import write_study

SMALL = ("data.chat.limit=null", "data.probes.estimate=6", "data.probes.held_out=4", "model.device=cpu")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> Network:
    return Network(monkeypatch, tiny_model_dir)


@pytest.fixture
def preset() -> Study:
    return load_study("mistral-7b", SMALL)


def bundled(study: Study, bundle: Path) -> Study:
    return in_bundle(study.model_copy(update={"data": study.data.model_copy(update={"bundle": str(bundle)})}))


def told(error: type[RefgeoError], call: object, *args: object) -> str:
    assert callable(call)
    with pytest.raises(error) as caught:
        call(*args)
    return str(caught.value)


def test_a_bundle_holds_everything_that_a_preset_reads(preset: Study, network: Network, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = fetch(preset, tmp_path / "bundle", lambda done, total, what: said.append(f"{done}/{total} {what}"))
    assert [item.want for item in manifest.items] == wanted(preset)
    assert len(said) == len(manifest.items) + 1
    assert len(network.asked) == len(set(network.asked))  # the file that two sets share comes once
    model = preset.model
    assert f"{model.path}@{model.revision}" in network.asked
    assert read_manifest(tmp_path / "bundle") == manifest
    held = {name for item in manifest.items for name in item.files}
    there = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*") if path.is_file()}
    assert {name for name in there - held if "/.cache/" not in name} == {MANIFEST}

    study = bundled(preset, tmp_path / "bundle")
    network.files.clear()  # from here on everything is in the bundle
    train = load_behaviors(study.data.behaviors_train, with_context=False)
    assert [behavior.id for behavior in train] == [name.replace(" ", "_") for name in (*TRAIN[:-1], *VAL[:-1])]
    assert [len(behavior.targets) for behavior in train] == [3] * (len(TRAIN) - 1) + [1] * (len(VAL) - 1)
    assert {(behavior.subset, behavior.clean) for behavior in load_behaviors(study.data.behaviors_test)} == {
        ("clean", True),
        ("in_training", False),
    }
    assert [chat.id for chat in load_chat(study.data.chat)] == [row["prompt_id"] for row in conversations()]
    assert len(load_probes(study.data.probes)) == 2 * 10
    assert load(study.model).chat.prompt("hello").ids


def test_a_bundle_of_local_files_and_folders_loads_the_same_study(tmp_path: Path, tiny_model_dir: Path) -> None:
    study = load_study(str(write_study(tmp_path, tiny_model_dir)))
    fetch(study, tmp_path / "bundle")
    inside = bundled(study, tmp_path / "bundle")
    assert load_behaviors(inside.data.behaviors_test) == load_behaviors(study.data.behaviors_test)
    assert load_chat(inside.data.chat) == load_chat(study.data.chat)
    first, second = (load(one.model).net.state_dict() for one in (study, inside))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    again = tmp_path / "again.yaml"
    again.write_text(dump_study(inside), encoding="utf-8")
    assert in_bundle(load_study(str(again))) == inside


def test_a_second_fetch_keeps_what_is_there_and_mends_what_is_not(preset: Study, network: Network, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    manifest = fetch(preset, bundle)
    network.asked.clear()
    assert fetch(preset, bundle) == manifest
    assert network.asked == []
    xstest = next(item for item in manifest.items if "xstest" in item.want.path)
    (bundle / xstest.place).write_text("id,prompt\n")
    message = told(DataError, bundled, preset, bundle)
    assert xstest.place in message
    assert "Fetch again" in message
    assert fetch(preset, bundle) == manifest
    assert network.asked == [xstest.want.path]
    bundled(preset, bundle)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (HTTPError("u", 404, "Not Found", Message(), None), "its server answers 404 (Not Found). Check the address"),
        (IncompleteRead(b""), "broke off (IncompleteRead). Try again"),
        (URLError(ConnectionRefusedError(111, "Connection refused")), "[Errno 111] Connection refused. Where there is a network"),
    ],
)
def test_a_server_that_fails_is_told_by_how(failure: Exception, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(url: str, timeout: float) -> None:
        raise failure

    monkeypatch.setattr("urllib.request.urlopen", fail)
    assert words in told(DataError, download, "https://example.org/set.csv", tmp_path / "set.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_says_what_no_run_could_read(refgeo: Refgeo, tmp_path: Path, tiny_model_dir: Path) -> None:
    """A page that asks to log in arrives whole and has a hash; the machine without network is too late to see what it is."""
    study = write_study(tmp_path, tiny_model_dir)
    wrong = tmp_path / "login.csv"
    wrong.write_text("<html>\nplease log in\n")
    answer = refgeo("fetch", study, f"data.xstest={wrong}", "-o", tmp_path / "bundle")
    assert answer.code == 2
    assert "no run can use it" in answer.err
    assert "login" in answer.err
    assert "delete that file in the bundle" in answer.err
    good = refgeo("fetch", study, "-o", tmp_path / "bundle")
    assert (good.code, good.err) == (0, "")
    assert "[1/" in good.out
    assert "Use it with data.bundle=" in good.out
    assert "0.00 GB" not in good.out
    assert "Expected https" in refgeo("fetch", study, "data.xstest=http://example.org/xstest.csv", "-o", tmp_path / "bundle").err


def test_an_interrupted_fetch_says_how_to_go_on(
    refgeo: Refgeo, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refgeo.study.fetch._fetched", interrupted)
    answer = refgeo("fetch", write_study(tmp_path, tiny_model_dir), "-o", tmp_path / "bundle")
    assert (answer.code, answer.err) == (130, "Stopped. What is whole is kept; the same command goes on from here.\n")


def test_an_interrupted_fetch_goes_on(preset: Study, network: Network, tmp_path: Path) -> None:
    lost = network.files.pop("strongreject_dataset.csv")
    message = told(DataError, fetch, preset, tmp_path / "bundle")
    assert "strongreject_dataset.csv" in message
    assert "refgeo fetch" in message
    before = len(network.asked)
    network.files["strongreject_dataset.csv"] = lost
    fetch(preset, tmp_path / "bundle")
    assert network.asked[before].endswith("strongreject_dataset.csv")
    assert len(set(network.asked)) == len(network.asked) - 1  # only the lost one was asked for twice


def test_a_changed_byte_in_a_large_file_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_dir: Path) -> None:
    monkeypatch.setattr("refgeo.config.bundle.LARGE", 100)
    study = load_study(str(write_study(tmp_path, tiny_model_dir)))
    bundle = tmp_path / "bundle"
    fetch(study, bundle)
    bundled(study, bundle)
    assert "model.safetensors" in (bundle / VERIFIED).read_text()
    (weights,) = bundle.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in told(DataError, bundled, study, bundle)


def test_what_the_bundle_lacks_is_named(preset: Study, network: Network, tmp_path: Path) -> None:
    fetch(preset, tmp_path / "bundle")
    other = load_study("mistral-7b", [*SMALL, "data.chat.revision=other"])
    message = told(DataError, bundled, other, tmp_path / "bundle")
    assert "revision other" in message
    assert "It holds" in message
    assert "is no bundle" in told(DataError, bundled, preset, tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    assert "not the manifest" in told(DataError, bundled, preset, tmp_path)
    want = Want(kind="model", path=preset.model.path, revision=preset.model.revision)
    assert (locate_in_bundle(tmp_path / "bundle", want) / "config.json").is_file()


def test_a_judge_is_fetched_with_its_published_weights(network: Network, tmp_path: Path) -> None:
    study = load_study("mistral-7b", [*SMALL, "judge.second={kind: strongreject}"])
    paths = [want.path for want in wanted(study) if want.kind == "model"]
    scorer = {"google/gemma-2b", "qylu4156/strongreject-15k-v1"}  # for the score and for the second judge, fetched once
    assert len(paths) == 4
    assert set(paths) == {study.model.path, "cais/HarmBench-Llama-2-13b-cls", *scorer}
    fetch(study, tmp_path / "bundle")
    judge = bundled(study, tmp_path / "bundle").judge
    assert judge.second is not None
    for model in (judge.model, judge.score_model, judge.second.model):
        assert model is not None
        assert Path(model.path).is_dir()


def refusing(error: Exception) -> object:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    return refuse


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub.OfflineModeIsEnabled("offline"), ("HF_HUB_OFFLINE", "refgeo fetch", "data.bundle")),
        (hub.GatedRepoError.__new__(hub.GatedRepoError), ("is gated", "hf auth login")),
        (hub.RevisionNotFoundError.__new__(hub.RevisionNotFoundError), ("no model", "with revision")),
        (ConnectionError("no route"), ("no route", "Check the network", "refgeo fetch")),
    ],
)
def test_a_model_without_a_network(
    preset: Study, network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", refusing(error))
    message = told(ModelError, fetch, preset, tmp_path / "bundle")
    assert all(word in message for word in (*words, preset.model.path)), message


def test_a_dataset_without_a_network(preset: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", refusing(ConnectionError("no route")))
    message = told(DataError, load_chat, preset.data.chat)
    assert all(word in message for word in ("ultrachat_200k", "no route", "refgeo fetch", "data.bundle")), message


def test_a_model_without_safetensors_is_refused(preset: Study, network: Network, tmp_path: Path) -> None:
    network.model = tmp_path / "empty"
    network.model.mkdir()
    assert "no safetensors" in told(ModelError, fetch, preset, tmp_path / "bundle")


def test_a_url_is_downloaded_once_and_then_read_from_the_cache(
    preset: Study, network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFGEO_CACHE", str(tmp_path / "cache"))
    source = preset.data.behaviors_train
    assert load_behaviors(source) == load_behaviors(source)
    assert len(network.asked) == len(set(network.asked)) == 4
    network.files = {"harmful_train.json": '[{"instruction": "a"'}
    assert "Cannot read" in told(DataError, load_probes, preset.data.probes)

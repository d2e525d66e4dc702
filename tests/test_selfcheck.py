"""The self-check: null where there is nothing, and for every check something planted that it must not call null."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import refgeo
import refusing
from refgeo.cli import app
from refgeo.config.load import load_study
from refgeo.data.rows import Behavior, Prompt, Reference
from refgeo.errors import ConfigError, DataError
from refgeo.instruments import selfcheck as module
from refgeo.instruments.nulls import shuffled, unchanged
from refgeo.instruments.nulls.chance import compared, halved
from refgeo.instruments.nulls.finding import LEVEL, Finding, Null, by_chance, never, widened
from refgeo.instruments.nulls.judged import check_judge
from refgeo.instruments.nulls.scene import DRAWS, PROBES, Scene, few_probes
from refgeo.instruments.nulls.shuffled import check_shuffled, shuffled_labels
from refgeo.instruments.nulls.unchanged import check_fake, check_same, do_nothing, no_drift, same_behavior
from refgeo.instruments.nulls.untrained import check_untrained, untrained
from refgeo.instruments.selfcheck import GROUPS, Group, told_selfcheck
from refgeo.judging.verdict import Judge, Verdict
from refgeo.lm.changes import Change
from refgeo.lm.model import LanguageModel
from refgeo.measures.behavior import EvaluationSets
from refgeo.measures.controls import random_bases
from refgeo.measures.directions import estimate, halves
from refgeo.statistics import Interval
from tiny_study import write_study

SMALL = [
    "behavior={max_new_tokens: 10, batch: 128, tails: [none, random, filler], tail_tokens: [3], tail_prompts: 12}",
    "geometry={positions: [-4, -3, -2, -1], max_kl: 5.0}",
    "judge={kind: reference}",
]


class SaysHarmful:
    """A judge that calls everything harmful, and nothing a refusal or degenerate."""

    name = "says harmful"

    def __call__(self, request: str, completion: str, reference: Reference | None = None) -> Verdict:
        return Verdict("harmful", "full_compliance", False, 1.0, False, "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), tiny_model_dir)


@pytest.fixture(scope="module")
def taught(tiny_model_dir: Path) -> LanguageModel:
    return refusing.refusing_lm(tiny_model_dir)


@pytest.fixture(scope="module")
def scene(taught: LanguageModel, tiny: Path) -> Scene:
    return scene_of_refusal(taught, tiny, refusing.RefusalJudge())


def scene_of_refusal(lm: LanguageModel, tiny: Path, judge: Judge) -> Scene:
    harmful, safe = refusing.requests(True), refusing.requests(False)
    sets = EvaluationSets(
        behaviors=[Behavior(str(place), text, ("sure",), reference=Reference(("sure",))) for place, text in enumerate(harmful[:12])],
        xstest=[
            Prompt(f"{label}-{place}", text, "kind", label, Reference((refusing.answer(text),)))
            for label, group in ((True, safe[:12]), (False, harmful[40:52]))
            for place, text in enumerate(group)
        ],
        audit=[Prompt(f"audit-{place}", text, "kind", True, Reference((refusing.answer(text),))) for place, text in enumerate(safe[20:30])],
        filler=["please", "blue", "small", "big"],
    )
    return Scene(load_study(str(tiny), SMALL), lm, judge, sets, refusing.probes(16), lambda note: None)


def verdicts(found: Iterator[Finding]) -> dict[str, str]:
    return {one.check: one.verdict for one in found}


def not_null(found: Iterator[Finding]) -> set[str]:
    return {check for check, verdict in verdicts(found).items() if verdict == "NOT NULL"}


def test_a_rate_of_zero_allows_an_erring_judge_a_few_and_an_exact_one_none() -> None:
    assert never("g", "c", [False] * 30, 0.0).verdict == "null"
    assert never("g", "c", [True] + [False] * 999, 0.0).verdict == "NOT NULL"
    assert never("g", "c", [True] + [False] * 99, 0.01).verdict == "null"
    assert never("g", "c", [True] * 10 + [False] * 90, 0.01).verdict == "NOT NULL"
    assert never("g", "c", [True] * 30, 0.0, always=True)[3:7] == pytest.approx((1.0, 0.886, 1.0, 30), abs=0.01)
    assert never("g", "c", [True] * 29 + [False], 0.0, always=True).verdict == "NOT NULL"
    assert never("g", "c", [], 0.0).verdict == "could not be checked"


def test_a_stretched_interval_has_the_level_of_the_check() -> None:
    half = float(stats.norm.ppf(0.975))
    found = widened(Interval(1.0, 1.0 - half, 1.0 + half, 9), 5)
    assert found.high - 1.0 == pytest.approx(float(stats.norm.ppf(1 - LEVEL / 10)))
    assert widened(Interval(0.5, 0.5, 0.5, 9)) == Interval(0.5, 0.5, 0.5, 9)
    assert Null("g", "c", "0", "").contains(0.0, found).verdict == "null"
    assert Null("g", "c", "0", "").contains(9.0, found).verdict == "NOT NULL"
    assert Null("g", "c", "0", "").decided(Interval(float("nan"), 0.0, 0.0, 1), null=True).verdict == "could not be checked"


def test_a_family_of_nulls_may_be_significant_in_five_percent() -> None:
    null = Null("g", "c", "0.05", "")

    def of(count: int, at_most: bool = False) -> str:
        return by_chance(null, [True] * count + [False] * (300 - count), 0.05, at_most=at_most).verdict

    assert [of(15), of(40), of(0), of(0, at_most=True), of(40, at_most=True)] == ["null", "NOT NULL", "NOT NULL", "null", "NOT NULL"]
    assert by_chance(null, [], 0.05).verdict == "could not be checked"


def test_a_random_model_shares_all_but_the_weights(taught: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in taught.core.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    one, again, other = untrained(taught, 1), untrained(taught, 1), untrained(taught, 2)
    assert torch.equal(torch.rand(1), wanted)
    weights = [lm.core.state_dict() for lm in (one, again, other)]
    assert {name: tensor.shape for name, tensor in weights[0].items()} == {name: tensor.shape for name, tensor in before.items()}
    matrices = [name for name, tensor in before.items() if tensor.ndim == 2]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in matrices)
    assert not any(
        torch.equal(first[name], second[name]) for name in matrices for first, second in pairwise([before, weights[0], weights[2]])
    )
    assert all(torch.equal(tensor, taught.core.state_dict()[name]) for name, tensor in before.items())
    assert one.chat is taught.chat
    assert not any(parameter.requires_grad for parameter in one.core.parameters())


def test_labels_are_shuffled_in_equal_parts() -> None:
    probes = few_probes(refusing.probes(20))
    dealt = shuffled_labels(probes, 3)
    assert [probe.request for probe in dealt] == [probe.request for probe in probes]
    assert dealt == shuffled_labels(probes, 3)
    assert dealt != shuffled_labels(probes, 4)
    for split in ("estimate", "validate"):
        for label in (True, False):
            group = [old.harmful for old, new in zip(probes, dealt, strict=True) if new.split == split and new.harmful == label]
            assert (len(group), sum(group)) == (20, 10)
    odd = few_probes(refusing.probes(9))
    assert len(odd) == 4 * 8
    assert len(few_probes(refusing.probes(40))) == 4 * 40 <= 4 * max(PROBES.values())


def test_nothing_is_found_in_a_random_model(scene: Scene) -> None:
    assert set(verdicts(check_untrained(scene)).values()) == {"null"}


def test_a_planted_refusal_direction_is_not_null(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refgeo.instruments.nulls.untrained.untrained", lambda lm, seed: lm)
    assert not_null(check_untrained(scene)) >= {
        "refusal, unsafe less safe (XSTest)",
        "harm recognition at equal suffix",
        "interventions beyond random controls",
        "carrier by generated refusal",
        "drift: overlap of the subspaces",
        "drift: cosine of the carriers",
    }


def test_a_judge_that_says_harmful_to_everything_breaks_the_random_model(taught: LanguageModel, tiny: Path) -> None:
    found = check_untrained(scene_of_refusal(taught, tiny, SaysHarmful()))
    seen = [next(found) for _ in range(4)]
    assert not_null(iter(seen)) == {"ASR, direct", "ASR, adaptive GCG"}


def test_nothing_is_found_under_shuffled_labels(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled, "TOLD", shuffled.TOLD[:4])
    assert set(verdicts(check_shuffled(scene)).values()) == {"null"}


def test_labels_that_were_not_shuffled_are_not_null(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled, "shuffled_labels", lambda probes, seed: probes)
    monkeypatch.setattr(shuffled, "TOLD", shuffled.TOLD[:4])
    found = not_null(check_shuffled(scene))
    assert found >= {"norm of the field over noise", "carrier by generated refusal", "transfer to the real labels, AUC"}


@pytest.mark.parametrize(("size", "verdict"), [(0.0, "null"), (3.0, "NOT NULL")])
def test_a_field_of_one_direction_has_less_rank_than_noise(scene: Scene, size: float, verdict: str) -> None:
    generator = torch.Generator().manual_seed(0)
    harmful, harmless = torch.randn(2, 40, 4, 3, 32, generator=generator)
    harmful[..., 0] += size
    split = halves(harmful, harmless, DRAWS, 0)
    field = estimate("mean_difference", harmful, harmless)
    for found in (shuffled._rank(scene, field, split, 80), shuffled._norm(field, split)):
        assert shuffled._worst(Null("g", "c", "1", ""), [found, None]).verdict == verdict
    assert shuffled._worst(Null("g", "c", "1", ""), [None]).verdict == "could not be checked"


@pytest.mark.slow
def test_one_labeling_that_means_something_stands_out_among_the_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scene.study.seed + 1
    monkeypatch.setattr(shuffled, "shuffled_labels", lambda probes, seed: probes if seed == first else shuffled_labels(probes, seed))
    assert not_null(check_shuffled(scene)) >= {"S_total", "norm of the field over noise"}


def test_a_model_does_not_differ_from_itself(scene: Scene) -> None:
    assert set(verdicts(check_same(scene)).values()) == {"null"}


def test_another_model_differs(scene: Scene) -> None:
    other = untrained(scene.lm, 1)
    assert len(not_null(same_behavior(scene.own_behavior, scene.behavior(other)))) == 3
    assert len(not_null(no_drift(scene, scene.own_geometry, scene.geometry(other, scene.probes)))) == 2


def test_interventions_of_nothing_change_nothing_and_one_of_something_does(scene: Scene) -> None:
    assert set(verdicts(check_fake(scene)).values()) == {"null"}
    carrier, tensors = scene.own_geometry.carrier, scene.own_geometry.tensors
    unit = torch.nn.functional.normalize(tensors["candidates"][carrier["place"], carrier["layer"]], dim=0)
    assert len(not_null(do_nothing(scene, {"the carrier": Change(carrier["layer"], unit[None])}))) == 2
    weak = Change(1, random_bases(1, 1, scene.lm.width, 0)[0].float(), 1e-4)
    assert "prompts whose logits change by a bit" in not_null(do_nothing(scene, {"almost nothing": weak}))


def test_the_judge_gives_nothing_for_canned_replies(tiny: Path) -> None:
    found = module.selfcheck(tiny, only=["judge"])
    assert dict(zip(found["check"], found["verdict"], strict=True)) == {
        "harmful, canned refusal": "null",
        "refused, canned refusal": "null",
        "harmful, empty": "null",
        "degenerate, empty": "null",
        "harmful, nonsense": "null",
        "degenerate, nonsense": "could not be checked",  # the study has no grammar
    }
    assert found["reason"].str.contains("unscored 0.00 of 6").sum() == 3
    grammatical = module.selfcheck("pocket", only=["judge"])
    assert set(grammatical["verdict"]) == {"null"}


def test_a_judge_that_says_harmful_to_everything_is_not_null(taught: LanguageModel, tiny: Path) -> None:
    found = list(check_judge(scene_of_refusal(taught, tiny, SaysHarmful())))
    assert [one.verdict for one in found] == ["NOT NULL"] * 5 + ["could not be checked"]


def test_null_comparisons_are_significant_at_their_level() -> None:
    values = (np.arange(120) % 3 == 0).astype(float)
    assert set(verdicts(compared(values, 0)).values()) == {"null"}


def test_halves_that_differ_and_intervals_that_are_too_narrow_are_not_null(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (np.arange(120) % 3 == 0).astype(float)
    assert len(not_null(compared(values, 0, deal=lambda given, rng: tuple(np.split(np.sort(given), 2))))) == 3  # type: ignore[arg-type,return-value]
    from refgeo.statistics import difference

    monkeypatch.setattr("refgeo.instruments.nulls.chance.difference", lambda one, two, seed: difference(one, two, seed, confidence=0.8))
    assert not_null(compared(values, 0)) == {"difference of groups, 95% interval"}


def test_outcomes_that_do_not_vary_teach_nothing() -> None:
    assert set(verdicts(compared(np.zeros(50), 0)).values()) == {"could not be checked"}
    left, right = halved(np.arange(7, dtype=float), np.random.default_rng(0))
    assert len(left) == len(right) == 3
    assert not set(left) & set(right)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, ["selfcheck", *map(str, words)])


def test_the_command_prints_the_table_writes_it_and_exits_with_zero(tiny: Path, tmp_path: Path) -> None:
    done = invoke("--study", tiny, "--only", "judge", "--only", "fake", "-o", tmp_path / "out", "--set", "behavior.max_new_tokens=4")
    assert done.exit_code == 0, done.output
    for words in ("expected", "verdict", "could not be checked", "Bonferroni", "fake"):
        assert words in " ".join(done.output.split())
    kept = pd.read_parquet(tmp_path / "out" / "table.parquet")
    assert list(kept.columns) == list(Finding._fields)
    assert len(pd.read_csv(tmp_path / "out" / "selfcheck.csv")) == len(kept) == 8
    overrides = ["behavior.max_new_tokens=4"]
    again = refgeo.selfcheck(tiny, only=["fake", "judge"], overrides=overrides)
    pd.testing.assert_frame_equal(kept, again, check_dtype=False)


def _planted(name: str) -> Group:
    """A group in which something is there to be found."""
    about = GROUPS[name]

    def judge(scene: Scene) -> Iterator[Finding]:
        return check_judge(Scene(scene.study, scene.lm, SaysHarmful(), scene.sets, scene.probes, scene.tell))

    def fake(scene: Scene) -> Iterator[Finding]:
        return do_nothing(scene, {"noise": Change(0, vector=torch.ones(scene.lm.width))})

    def same(scene: Scene) -> Iterator[Finding]:
        return same_behavior(scene.own_behavior, scene.behavior(untrained(scene.lm, 1)))

    def statistics(scene: Scene) -> Iterator[Finding]:
        values = (np.arange(120) % 3 == 0).astype(float)
        return compared(values, 0, deal=lambda given, rng: (np.sort(given)[:60], np.sort(given)[60:]))

    return about._replace(run={"judge": judge, "fake": fake, "same": same, "statistics": statistics}[name])


@pytest.mark.parametrize("name", ["judge", "fake", "same", "statistics"])
def test_the_command_exits_with_one_when_something_was_planted(tiny: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUPS, name, _planted(name))
    done = invoke("--study", tiny, "--only", name)
    assert done.exit_code == 1, done.output
    assert "NOT NULL" in done.output


@pytest.mark.slow
def test_labels_that_were_not_shuffled_and_a_trained_model_end_the_command_with_one(
    scene: Scene, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "scene_of", lambda study, lm, tell: scene)
    monkeypatch.setattr(shuffled, "shuffled_labels", lambda probes, seed: probes)
    monkeypatch.setattr("refgeo.instruments.nulls.untrained.untrained", lambda lm, seed: lm)
    for name in ("shuffled", "random"):
        assert invoke("--study", tiny, "--only", name).exit_code == 1


def test_what_fails_on_purpose_could_not_be_checked_and_fails_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scene: Scene) -> Iterator[Finding]:
        yield from unchanged.check_fake(scene)
        raise DataError("The set is empty", fix="Add rows")

    monkeypatch.setitem(GROUPS, "fake", GROUPS["fake"]._replace(run=broken))
    found = module.selfcheck(tiny, only=["fake"])
    assert list(found["verdict"]) == ["null", "null", "could not be checked"]
    assert found["reason"].iloc[-1] == "The set is empty. Add rows."
    assert any("The set is empty" in line for line in told_selfcheck(found)[1])
    assert invoke("--study", tiny, "--only", "fake").exit_code == 0


def test_a_group_that_does_not_exist_is_named(tiny: Path) -> None:
    with pytest.raises(ConfigError, match=r"no group of checks 'shuffeld'.*'shuffled'"):
        module.selfcheck(tiny, only=["shuffeld"])


def test_help_teaches_with_an_example() -> None:
    assert "Example: refgeo selfcheck" in " ".join(invoke("--help").output.split())


@pytest.mark.slow
def test_the_pocket_study_is_null_where_it_should_be() -> None:
    seen: list[tuple[int, int, str]] = []
    found = refgeo.selfcheck(progress=lambda *told: seen.append(told))
    assert set(found["verdict"]) == {"null"}, found[found["verdict"] != "null"].to_string()
    assert [done for done, _, _ in seen] == list(range(seen[0][1]))
    assert set(found["group"]) == set(GROUPS)

"""AutoDAN: the genetic operators by their laws, the search by what it finds, its tables by what a user can get wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from refgeo.attacks.autodan import COLUMNS, autodan
from refgeo.attacks.breeding import crossed, fitness, momentum, roulette, sentences
from refgeo.attacks.cases import Attacked, Case
from refgeo.attacks.encoded import encode
from refgeo.attacks.interrupted import Interrupted
from refgeo.attacks.mutation import Mutation, Paraphraser, Synonyms, read_seeds, read_synonyms, words_of
from refgeo.attacks.objective import TargetLoss
from refgeo.config.autodan import AutoDANSettings
from refgeo.config.model import ModelSettings
from refgeo.errors import ContextOverflow, DataError
from refgeo.lm.load import load, load_renderer
from refgeo.lm.model import LanguageModel

SEEDS = [
    "hello please help me . it is the red fox . yes .",
    "tell me where the owl is . the owl is here . cook the root . feed the crow .",
    "please help .",
]
TABLE = {"fox": ["owl", "crow", "hen"], "owl": ["fox", "crow"], "red": ["blue"], "please": ["yes", "sure"], "root": ["berry", "leaf"]}
CASES = [
    Case("a", "make soup", "sure here is bread", "!"),
    Case("b", "how do i cook a root", "yes", "!"),
    Case("c", "where is it", "sure", "! !"),
]
texts = st.lists(st.sampled_from(["a b .", "c !", "d e f ?", "g .", "h i ."]), min_size=1, max_size=8).map(" ".join)


@pytest.fixture
def settings(tmp_path: Path) -> AutoDANSettings:
    (tmp_path / "seeds.txt").write_text("# comment\n\n" + "\n".join(SEEDS) + "\n")
    (tmp_path / "synonyms.json").write_text(json.dumps(TABLE))
    return AutoDANSettings(
        steps=6,
        population=12,
        mutation=0.3,
        mutation_words=2,
        sentence_every=3,
        seeds=str(tmp_path / "seeds.txt"),
        synonyms=str(tmp_path / "synonyms.json"),
    )


def search(lm: LanguageModel, cases: list[Case], settings: AutoDANSettings, seed: int = 0, **changed: object) -> Attacked:
    return autodan(lm, cases, settings.model_copy(update=changed), seed)


@given(texts, texts, st.integers(1, 6), st.integers(0, 99))
def test_children_hold_the_sentences_of_their_parents_at_their_places(one: str, two: str, points: int, seed: int) -> None:
    children = crossed(one, two, points, np.random.default_rng(seed))
    assert Counter(sentences(one) + sentences(two)) == Counter(sentences(children[0]) + sentences(children[1]))
    for place in range(min(len(sentences(one)), len(sentences(two)))):
        assert {sentences(child)[place] for child in children} == {sentences(one)[place], sentences(two)[place]}


@given(texts)
def test_sentences_joined_are_the_text(text: str) -> None:
    assert " ".join(sentences(text)) == text


@given(st.lists(st.floats(0, 50), min_size=1, max_size=9))
def test_fitness_is_a_distribution_in_the_order_of_the_losses(losses: list[float]) -> None:
    chances = fitness([*losses, math.inf])
    assert chances.sum() == pytest.approx(1)
    assert chances[-1] == 0
    assert all(chances[i] >= chances[j] for i in range(len(losses)) for j in range(len(losses)) if losses[i] <= losses[j])
    assert len(losses) not in roulette([*losses, math.inf], 20, np.random.default_rng(0))


def test_momentum_averages_with_the_past_and_forgets_the_worst_words() -> None:
    first = momentum({}, ["red fox .", "the fox ."], [1.0, 3.0], {"red", "fox"}, 9)
    assert first == {"red": -1.0, "fox": -2.0}
    second = momentum(first, ["a fox", "red", "blue fox"], [4.0, math.inf, math.inf], {"red", "fox", "blue"}, 9)
    assert second == {"red": -1.0, "fox": -3.0}
    assert momentum(first, ["a fox"], [4.0], {"fox"}, 1) == {"red": -1.0}


def test_synonyms_exchange_known_words_only_and_keep_capitals() -> None:
    table = Synonyms({"Fox": ["owl", "fox"], "red": ["blue"]}, 5)
    assert isinstance(table, Mutation)
    seen = {table.exchanged("The Fox, red!", np.random.default_rng(seed)) for seed in range(30)}
    assert seen == {"The Owl, red!", "The Fox, blue!", "The Owl, blue!"}
    assert table.exchanged("hello .", np.random.default_rng(0)) == "hello ."
    assert not table.applies("hello .")


def test_a_word_gives_way_to_a_better_scored_alternative_only() -> None:
    table, rng = Synonyms(TABLE, 5), np.random.default_rng(0)
    scores = {"crow": -1.0, "owl": -2.0, "fox": -3.0, "red": -1.0, "blue": -2.0}
    assert table.improved("red fox , owl please", scores, 1.0, rng) == "red crow , crow please"
    assert table.improved("red fox", scores, 0.0, rng) == "red fox"
    assert table.improved("red fox", {}, 1.0, rng) == "red fox"


@pytest.mark.parametrize("variant", ["ga", "hierarchical"])
@pytest.mark.parametrize("placement", ["prefix", "suffix", "infix"])
def test_the_loss_falls_and_is_that_of_the_text(tiny_lm: LanguageModel, settings: AutoDANSettings, variant: str, placement: str) -> None:
    found = search(tiny_lm, CASES, settings, variant=variant, placement=placement)
    assert list(found.records.columns) == COLUMNS
    assert found.records.groupby("behavior")["step"].apply(list).tolist() == [list(range(7))] * 3
    steps = found.records.groupby("step")["loss"].mean()
    assert steps.iloc[-1] < steps.iloc[0]
    for case, best in zip(CASES, found.best, strict=True):
        losses = found.records.loc[found.records["behavior"] == case.behavior, "loss"].tolist()
        assert losses == sorted(losses, reverse=True)
        assert (best.behavior, best.request, best.target, best.placement) == (case.behavior, case.request, case.target, placement)
        encoded = encode(tiny_lm, best)
        assert best.loss == pytest.approx(float(TargetLoss(tiny_lm, [encoded]).losses([0], [list(encoded.suffix)])[0]), abs=1e-5)
        assert set(words_of(best.attack)) <= set(words_of(" ".join([*SEEDS, json.dumps(TABLE)])))


@pytest.mark.parametrize("variant", ["ga", "hierarchical"])
def test_a_case_does_not_depend_on_its_neighbors(tiny_lm: LanguageModel, settings: AutoDANSettings, variant: str) -> None:
    together, alone = (search(tiny_lm, cases, settings, variant=variant).records for cases in (CASES, CASES[1:2]))
    columns = ["step", "attack", "accepted", "candidates", "tokens", "dropped"]
    mine = together[together["behavior"] == "b"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[columns], alone[columns])
    np.testing.assert_allclose(mine["loss"], alone["loss"], atol=1e-5)
    again = search(tiny_lm, CASES[1:2], settings, seed=1, variant=variant).records
    assert again["attack"].tolist() != alone["attack"].tolist()


def test_no_text_is_scored_twice(tiny_lm: LanguageModel, settings: AutoDANSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []
    plain = TargetLoss.losses

    def listening(self: TargetLoss, owners: list[int], suffixes: list[list[int]]) -> object:
        asked.extend((owner, tuple(suffix)) for owner, suffix in zip(owners, suffixes, strict=True))
        return plain(self, owners, suffixes)

    monkeypatch.setattr(TargetLoss, "losses", listening)
    records = search(tiny_lm, CASES, settings).records
    assert len(set(asked)) == len(asked) == records["candidates"].sum()


def test_a_case_stops_early_and_the_others_go_on(tiny_lm: LanguageModel, settings: AutoDANSettings) -> None:
    whole = search(tiny_lm, CASES, settings).records
    first = whole[whole["step"] == 0].set_index("behavior")["loss"]
    bound = float((first.min() + first.drop(first.idxmin()).min()) / 2)
    records = search(tiny_lm, CASES, settings, early_stop_loss=bound).records
    assert records.loc[records["behavior"] == first.idxmin(), "step"].max() == 0
    assert (records.groupby("behavior").tail(1)["loss"] >= bound).sum() < 3
    assert records["step"].max() > 0


def test_texts_that_do_not_fit_or_cannot_be_written_are_dropped_and_counted(
    tiny_lm: LanguageModel, settings: AutoDANSettings, tmp_path: Path
) -> None:
    (tmp_path / "seeds.txt").write_text("\n".join([*SEEDS, "soup " * 300 + "fox .", "unheard fox ."]))
    found = search(tiny_lm, CASES[:1], settings, population=5)
    assert found.records["dropped"].iloc[0] == 2
    assert found.records["candidates"].iloc[0] == 3
    limited = search(tiny_lm, CASES[:1], settings, max_tokens=5)
    assert limited.records["tokens"].map(len).max() <= 5
    (tmp_path / "seeds.txt").write_text("unheard fox .")
    with pytest.raises(DataError, match=r"None of the first texts.*case 'a'.*Choose other seeds"):
        search(tiny_lm, CASES[:1], settings)
    (tmp_path / "seeds.txt").write_text("soup " * 300 + "fox .")
    with pytest.raises(ContextOverflow, match="'a' has"):
        search(tiny_lm, CASES[:1], settings)


def test_unusable_tables_are_named(tiny_lm: LanguageModel, settings: AutoDANSettings, tmp_path: Path) -> None:
    (tmp_path / "seeds.txt").write_text("# only a comment\n\n")
    with pytest.raises(DataError, match=r"seeds.txt' holds no text"):
        search(tiny_lm, CASES, settings)
    (tmp_path / "seeds.txt").write_text("hello .")
    with pytest.raises(DataError, match=r"No word of the 1 seeds .* occurs in .*synonyms.json"):
        search(tiny_lm, CASES, settings)
    for bad in ("nothing", "[]", '{"a": "b"}', '{"a": [""]}'):
        (tmp_path / "synonyms.json").write_text(bad)
        with pytest.raises(DataError, match="synonyms file"):
            read_synonyms(str(tmp_path / "synonyms.json"), 3)
    with pytest.raises(DataError, match="Cannot read the seeds file"):
        read_seeds(str(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("given_values", "match"),
    [
        ({"population": 1}, "population"),
        ({"population": 4, "elites": 1.0}, "elites keeps all 4"),
        ({"synonyms": None, "variant": "ga"}, "give synonyms or a paraphraser"),
        ({"synonyms": None, "paraphraser": "some/model"}, "give synonyms"),
    ],
)
def test_settings_that_cannot_search_are_refused(given_values: dict[str, object], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        AutoDANSettings.model_validate(given_values)


def test_no_cases_give_an_empty_table(tiny_lm: LanguageModel, settings: AutoDANSettings) -> None:
    found = autodan(tiny_lm, [], settings, 0)
    assert (found.last, found.best, list(found.records.columns)) == ([], [], COLUMNS)


def test_an_interrupted_search_hands_over_what_it_found(tiny_lm: LanguageModel, settings: AutoDANSettings) -> None:
    def stop(step: int, total: int, label: str) -> None:
        if step == 2:
            raise KeyboardInterrupt

    tiny_lm.net.train()
    with pytest.raises(Interrupted) as caught:
        autodan(tiny_lm, CASES, settings, 0, stop)
    assert tiny_lm.net.training
    found, whole = caught.value.attacked, search(tiny_lm, CASES, settings, steps=2)
    assert found.last == found.best == whole.best
    pd.testing.assert_frame_equal(found.records.drop(columns="seconds"), whole.records.drop(columns="seconds"))


def test_a_search_that_is_interrupted_at_once_hands_over_its_cases(
    tiny_lm: LanguageModel, settings: AutoDANSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refgeo.attacks.autodan.score", stopped)
    with pytest.raises(Interrupted) as caught:
        autodan(tiny_lm, CASES, settings, 0)
    found = caught.value.attacked
    assert [(case.behavior, case.loss) for case in found.best] == [(case.behavior, None) for case in CASES]
    assert list(found.records.columns) == COLUMNS
    assert found.records.empty


def test_a_local_model_paraphrases_once_per_question(tiny_lm: LanguageModel) -> None:
    rewrite = Paraphraser(tiny_lm, tokens=6)
    assert isinstance(rewrite, Mutation)
    given_texts = [SEEDS[0], SEEDS[1], SEEDS[0], "soup " * 250]
    rngs = [np.random.default_rng(seed) for seed in (0, 1, 0, 2)]
    written = rewrite(given_texts, rngs)
    assert written[0] == written[2]
    assert written[3] == given_texts[3]
    assert all(0 < len(text.split()) <= 2 * len(source.split()) for text, source in zip(written, given_texts, strict=True))
    assert written == rewrite(given_texts, [np.random.default_rng(seed) for seed in (0, 1, 0, 2)])
    assert len(rewrite.known) == 3


def test_a_paraphraser_takes_the_place_of_the_table(tiny_lm: LanguageModel, tiny_model_dir: Path, settings: AutoDANSettings) -> None:
    found = search(
        tiny_lm,
        CASES[:1],
        settings,
        variant="ga",
        synonyms=None,
        paraphraser=str(tiny_model_dir),
        paraphraser_dtype="float32",
        paraphrase_tokens=8,
    )
    assert found.records["candidates"].iloc[0] > len(SEEDS)
    assert found.records["loss"].is_monotonic_decreasing


@pytest.mark.parametrize("folder", ["attacks/data", "pocket/autodan"])
def test_the_shipped_seeds_meet_the_shipped_synonyms(folder: str) -> None:
    seeds, table = read_seeds(f"package:{folder}/seeds.txt"), read_synonyms(f"package:{folder}/synonyms.json", 10)
    assert len(seeds) >= 8
    assert all(len(sentences(seed)) >= 4 and table.applies(seed) for seed in seeds)
    assert sum(len(table.known & set(words_of(seed))) for seed in seeds) / len(seeds) > 10


def test_the_pocket_model_knows_every_word_of_its_tables() -> None:
    chat, _ = load_renderer(ModelSettings(path="package:pocket/world/model", device="cpu"))
    words = {word for seed in read_seeds("package:pocket/autodan/seeds.txt") for word in seed.split()}
    words |= read_synonyms("package:pocket/autodan/synonyms.json", 1).known
    assert words <= set(chat.tokenizer.get_vocab())


@pytest.mark.slow
def test_the_loss_falls_on_the_pocket_model() -> None:
    lm = load(ModelSettings(path="package:pocket/world/model", device="cpu"))
    tables = {"seeds": "package:pocket/autodan/seeds.txt", "synonyms": "package:pocket/autodan/synonyms.json"}
    case = Case("a", "how do i feed filmcap to the pipmole", "sorry , i can not help with that .", "!")
    settings = AutoDANSettings.model_validate({"steps": 6, "population": 16, "max_tokens": 120, **tables})
    records = autodan(lm, [case], settings, 0).records
    assert records["loss"].iloc[-1] < records["loss"].iloc[0]

"""Judges that answer with one token: known probabilities give known verdicts, and the batch changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from judging_models import PROMPT, Scripted, answering, save_judge, scripted
from refgeo.config.judge import JudgeSettings
from refgeo.config.model import ModelSettings
from refgeo.errors import DataError, ModelError
from refgeo.judging import Exchange, classifier, judge_all, make_judge
from refgeo.judging.classifier import ONE_TO_FIVE, YES_NO, TokenReader, answer_probabilities, answer_tokens, encode
from refgeo.judging.models import clip
from refgeo.judging.reader import Template, checked
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel

SAID = {"soup": {"yes": 0.9, "no": 0.1}, "stew": {"no": 0.6, "yes": 0.2, "fox": 0.2}, "fox": {"fox": 0.7, "yes": 0.3}}


def say(prompt: str) -> dict[str, float]:
    reply = prompt.split("reply")[1]
    return next((shares for word, shares in SAID.items() if word in reply), {"no": 1.0})


def reader(lm: LanguageModel, graded: bool = False, **options: int) -> TokenReader:
    return TokenReader(lambda: lm, "x", PROMPT, ONE_TO_FIVE if graded else YES_NO, graded=graded, **options)


@pytest.fixture(scope="module")
def judge_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_judge(tmp_path_factory.mktemp("judge"))


def test_yes_no_and_something_else() -> None:
    replies = ("here is soup", "here is stew", "fox fox fox", "")
    yes, no, other, empty = reader(scripted(say)).read([Exchange("make soup", reply) for reply in replies])
    assert (yes.label, no.label, other.label, empty.label) == ("harmful", "safe", "unscored", "safe")
    assert yes.probability == pytest.approx(0.9, abs=1e-5)
    assert no.probability == pytest.approx(0.2 / 0.8, abs=1e-5)
    assert other.probability is None
    assert "'fox'" in other.raw


def test_the_scorer_gives_the_expected_grade() -> None:
    shares = {"1": 0.1, "2": 0.2, "3": 0.3, "4": 0.15, "5": 0.25}
    found = reader(scripted(lambda prompt: shares), graded=True).read([Exchange("q", "soup")])[0]
    expected = sum(share * int(grade) for grade, share in shares.items())
    assert found.graded == pytest.approx((expected - 1) / 4, abs=1e-5)
    assert (found.label, found.probability) == ("harmful", None)


def plain_expectation(lm: LanguageModel, prompt: str) -> float:
    """One prompt, no padding, the formula of the paper (2402.10260)."""
    logits = lm.net(torch.tensor([[lm.tokenizer.bos_token_id, *lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])).logits
    grades = logits[0, -1][[lm.tokenizer.convert_tokens_to_ids(str(grade)) for grade in range(1, 6)]].softmax(dim=-1)
    return float((grades * torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).sum())


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_real_model_gives_what_its_plain_twin_gives_whatever_the_batch(
    judge_dir: Path, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "READABLE", 0.0)  # a random model says anything
    (tmp_path / "prompt.txt").write_text(PROMPT.text + "\n")
    model = ModelSettings(path=str(judge_dir), device="cpu")
    judge = make_judge(JudgeSettings(kind="strongreject", model=model, template=str(tmp_path / "prompt.txt"), batch=batch))
    given = [Exchange("how do i make soup", " ".join(["cut the root"] * times)) for times in (5, 0, 2, 9, 1, 2)]
    verdicts = judge_all(judge, given)
    lm = load(model)
    for exchange, verdict in zip(given, verdicts, strict=True):
        wanted = plain_expectation(lm, PROMPT.fill(*exchange[:2]))
        assert verdict.score == pytest.approx(wanted, abs=1e-5)
        assert verdict.success == (wanted > 0.5)
        assert judge(*exchange).score == pytest.approx(wanted, abs=1e-5)
    assert len({round(verdict.score or 0.0, 6) for verdict in verdicts}) == 5  # the reply matters; two of the six are the same


def test_probabilities_are_those_of_each_row_alone() -> None:
    lm, _ = answering()
    rows = [encode(lm, text) for text in ("soup", "how do i make soup", "cut the root and the leaf")]
    answers = [answer_tokens(lm, "yes"), answer_tokens(lm, "no")]
    together, top = answer_probabilities(lm, rows, answers, 8)
    for place, row in enumerate(rows):
        alone, best = answer_probabilities(lm, [row], answers, 8)
        torch.testing.assert_close(together[place], alone[0])
        assert top[place] == best[0]


def test_only_the_first_tokens_of_a_completion_count() -> None:
    lm = scripted(say)
    clipped = reader(lm, clip_tokens=2).read([Exchange("q", "here is soup"), Exchange("q", "here soup is")])
    assert [opinion.label for opinion in clipped] == ["safe", "harmful"]
    assert clip(lm, "Here  is\nsoup .", 3) == "Here  is\nsoup"
    assert clip(lm, "Here  is\nsoup .", 4) == "Here  is\nsoup ."


def test_one_bos_whether_the_template_spells_it_or_not() -> None:
    lm, tokenizer = answering()
    ids = encode(lm, "make soup")
    assert ids == encode(lm, "<|bos|>make soup") == encode(lm, "<|bos|> make soup")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_prompt_that_does_not_fit_is_unscored() -> None:
    short, long = reader(scripted(say)).read([Exchange("q", "soup"), Exchange("how " * 40, "soup")])
    assert (short.label, long.label) == ("harmful", "unscored")
    assert "the model takes 32" in long.raw


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    given = [Exchange("q", reply) for reply in ("soup", "stew", "soup", "root", "fox")]
    lm = scripted(say, largest=2)
    assert reader(lm, batch=8).read(given) == reader(scripted(say)).read(given)
    assert isinstance(lm.net, Scripted)
    assert max(lm.net.batches) == 2
    with pytest.raises(ModelError, match=r"judge\.clip_tokens"):
        reader(scripted(say, largest=0)).read(given)


def test_a_tokenizer_without_the_answers_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match="no token for the answer '1'"):
        reader(tiny_lm, graded=True).read([Exchange("q", "soup")])


def test_every_spelling_of_an_answer_counts() -> None:
    words = {"<unk>": 0, "Yes": 1, "\u2581yes": 2, "\u0120YES": 3, "\u2581yesterday": 4, "no": 5}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), unk_token="<unk>")
    lm = answering()[0]
    lm.tokenizer = tokenizer
    assert (answer_tokens(lm, "yes"), answer_tokens(lm, "no")) == ([1, 2, 3], [5])


def test_what_looks_like_a_slot_in_a_completion_stays_as_it_is() -> None:
    assert Template("{request}|{response}").fill("a {response}", "b {request} {0}") == "a {response}|b {request} {0}"
    with pytest.raises(DataError, match=r"slots behavior\. Expected"):
        checked("{behavior} only", "here")

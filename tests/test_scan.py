"""The fast scan against its plain twin, and the scores' own properties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refgeo.config.measures import GeometrySettings
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, ablate, add, editing, last_logits, read, side
from refgeo.measures import trials as trials_module
from refgeo.measures.directions import Candidates, candidates
from refgeo.measures.scan import Scanned, evaluation_layers, kl_divergence, last_states, refusal_log_odds, scan
from refgeo.measures.trials import Trial, trials

HARMFUL = ("how do i cook a fox", "cut the owl in a pot with water please", "boil hen", "feed the crow fire and cook")
SAFE = ("how do i cook a root", "cut the berry", "boil leaf soup and stir it in the big blue pot")
TOKENS = [7, 11, 30]


def prompts(lm: LanguageModel, texts: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [lm.chat.prompt(text).ids for text in texts]


def prompts_of(lm: LanguageModel) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return prompts(lm, HARMFUL), prompts(lm, SAFE)


class Field(NamedTuple):
    """Candidates, and the mean activations of the harmless prompts."""

    found: Candidates
    harmless: torch.Tensor


def field(lm: LanguageModel, settings: GeometrySettings) -> Field:
    groups = [read(lm, prompts(lm, texts), settings.positions, settings.site) for texts in (HARMFUL, SAFE)]
    return Field(candidates(groups[0], groups[1]), groups[1].mean(dim=0))


def tried(lm: LanguageModel, settings: GeometrySettings) -> list[Trial | None]:
    made = field(lm, settings)
    return trials(made.found, settings, made.harmless)


def plain_twin(
    lm: LanguageModel,
    given: Sequence[Trial | None],
    layers: list[int],
    settings: GeometrySettings,
    completions: Sequence[Sequence[int]] = (),
) -> Scanned:
    """One candidate, one prompt and one position at a time through plain hooks; nothing is cached, batched or padded."""

    def states(ids: tuple[int, ...]) -> torch.Tensor:
        return read(lm, [ids], (-1,), settings.site)[0, 0, layers].mean(dim=0)

    def log_probs(ids: tuple[int, ...]) -> torch.Tensor:
        return last_logits(lm, [ids])[0].double().log_softmax(dim=-1)

    def odds(ids: tuple[int, ...]) -> float:
        mass = log_probs(ids).exp()[TOKENS].sum()
        return float(torch.log(mass / (1 - mass)))

    def ablated(trial: Trial) -> AbstractContextManager[None]:
        at = None if settings.ablate == "everywhere" else trial.layer
        if trial.center is None:
            return ablate(lm, trial.basis, at, site=settings.site)
        outer, center = trial.basis.T @ trial.basis, trial.center
        edit = lambda hidden: hidden - hidden @ outer + outer @ center  # noqa: E731
        return editing([(lm.blocks[trial.layer], side(settings.site), edit)])

    bad, safe = prompts(lm, HARMFUL), prompts(lm, SAFE)
    answers = completions or [[] for _ in safe]
    steps = [max(1, min(settings.kl_tokens, len(ids))) for ids in answers]
    fed = [[(*ids, *answer[:step]) for step in range(count)] for ids, answer, count in zip(safe, answers, steps, strict=True)]
    names = ("kl", "kl_first", "added_odds", "ablated_odds", "added_states", "ablated_states")
    columns: dict[str, list] = {name: [] for name in names}
    with torch.no_grad():
        before = [[log_probs(ids) for ids in rows] for rows in fed]
        for trial in given:
            if trial is None:
                for name, count in zip(names, (len(safe),) * 3 + (len(bad), len(safe), len(bad)), strict=True):
                    columns[name].append(torch.full((count, lm.width) if "states" in name else (count,), math.nan))
                continue
            with ablated(trial):
                after = [[log_probs(ids) for ids in rows] for rows in fed]
                columns["ablated_odds"].append(torch.tensor([odds(ids) for ids in bad]))
                columns["ablated_states"].append(torch.stack([states(ids) for ids in bad]))
            terms = [
                torch.stack([(p.exp() * (p - q)).sum() for p, q in zip(*pair, strict=True)]) for pair in zip(before, after, strict=True)
            ]
            columns["kl"].append(torch.stack([term.mean() for term in terms]))
            columns["kl_first"].append(torch.stack([term[0] for term in terms]))
            with add(lm, trial.vector, trial.layer, settings.site):
                columns["added_odds"].append(torch.tensor([odds(ids) for ids in safe]))
                columns["added_states"].append(torch.stack([states(ids) for ids in safe]))
        return Scanned(
            safe_odds=torch.tensor([odds(ids) for ids in safe]),
            harmful_odds=torch.tensor([odds(ids) for ids in bad]),
            safe_states=torch.stack([states(ids) for ids in safe]),
            harmful_states=torch.stack([states(ids) for ids in bad]),
            **{name: torch.stack(column) for name, column in columns.items()},
        )


def agree(fast: Scanned, slow: Scanned) -> None:
    for name, expected in slow._asdict().items():
        assert torch.allclose(getattr(fast, name).double(), expected.double(), atol=1e-5, rtol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("where", ["layer", "everywhere"])
@pytest.mark.parametrize(("site", "batch"), [("block_output", 1), ("block_output", 128), ("block_input", 7)])
def test_the_scan_equals_its_plain_twin(tiny_lm: LanguageModel, where: str, site: Site, batch: int) -> None:
    settings = GeometrySettings.model_validate({"positions": (-3, -2, -1), "site": site, "ablate": where, "batch": batch})
    given = tried(tiny_lm, settings)
    assert (given[0] is not None) == (site == "block_output"), "a template token enters the first block the same in every prompt"
    fast = scan(tiny_lm, given, prompts(tiny_lm, HARMFUL), prompts(tiny_lm, SAFE), [0, 2], TOKENS, settings)
    agree(fast, plain_twin(tiny_lm, given, [0, 2], settings))


@pytest.mark.parametrize("site", ["block_output", "block_input"])
def test_affine_ablation_equals_its_plain_twin_and_keeps_the_mean(tiny_lm: LanguageModel, site: Site) -> None:
    settings = GeometrySettings(positions=(-2, -1), affine=True, site=site)
    given = tried(tiny_lm, settings)
    fast = scan(tiny_lm, given, prompts(tiny_lm, HARMFUL), prompts(tiny_lm, SAFE), [1, 2], TOKENS, settings)
    agree(fast, plain_twin(tiny_lm, given, [1, 2], settings))
    plain = scan(tiny_lm, tried(tiny_lm, GeometrySettings(positions=(-2, -1), site=site)), *prompts_of(tiny_lm), [1, 2], TOKENS, settings)
    assert not torch.allclose(fast.kl, plain.kl, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 128])
def test_kl_over_several_tokens_equals_its_plain_twin(tiny_lm: LanguageModel, batch: int) -> None:
    """Answers of different lengths: what was not said is not averaged."""
    settings = GeometrySettings(positions=(-1,), kl_tokens=3, batch=batch)
    given, answers = tried(tiny_lm, settings), [[9, 12, 14, 20], [5], [8, 3]]
    fast = scan(tiny_lm, given, *prompts_of(tiny_lm), [2], TOKENS, settings, completions=answers)
    agree(fast, plain_twin(tiny_lm, given, [2], settings, answers))
    assert torch.equal(fast.kl[:, 1], fast.kl_first[:, 1])
    assert bool((fast.kl >= 0).all())
    assert not torch.allclose(fast.kl[:, 0], fast.kl_first[:, 0])


@pytest.mark.parametrize("batch", [2, 128])
def test_spaces_and_several_directions_of_a_layer_go_together(tiny_lm: LanguageModel, batch: int) -> None:
    """More directions than positions, of one and of several dimensions, in any order of layers."""
    generator = torch.Generator().manual_seed(3)
    bases = [torch.linalg.qr(torch.randn(tiny_lm.width, rank, generator=generator)).Q.T.contiguous() for rank in (1, 3, 2, 1, 1, 4, 1)]
    given = [Trial(layer, basis, basis[0]) for layer, basis in zip((2, 0, 0, 1, 0, 1, 2), bases, strict=True)]
    settings = GeometrySettings(positions=(-1,), batch=batch)
    fast = scan(tiny_lm, [*given, None], *prompts_of(tiny_lm), [0, 2], TOKENS, settings)
    agree(fast, plain_twin(tiny_lm, [*given, None], [0, 2], settings))


def test_on_every_architecture_the_scan_equals_its_plain_twin(any_lm: LanguageModel) -> None:
    settings = GeometrySettings(positions=(-1,))
    given = tried(any_lm, settings)
    agree(
        scan(any_lm, given, *prompts_of(any_lm), [any_lm.depth - 1], TOKENS, settings),
        plain_twin(any_lm, given, [any_lm.depth - 1], settings),
    )


def test_a_model_that_cannot_be_resumed_gives_the_same_scan(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GeometrySettings(positions=(-2, -1))
    arguments = (tiny_lm, tried(tiny_lm, settings), *prompts_of(tiny_lm), [1, 2], TOKENS, settings)
    fast = scan(*arguments)
    for name in ("resumable", "narrowable"):
        monkeypatch.setattr(trials_module, name, lambda lm, prompt: False)
    for name in ("resuming", "last_only"):
        monkeypatch.setattr(trials_module, name, None)
    for name, expected in scan(*arguments)._asdict().items():
        assert torch.allclose(getattr(fast, name), expected, atol=1e-5, rtol=1e-4), name


def test_without_refusal_tokens_the_log_odds_are_absent_and_the_rest_is_not(tiny_lm: LanguageModel) -> None:
    settings = GeometrySettings(positions=(-1,))
    found = scan(tiny_lm, tried(tiny_lm, settings), prompts(tiny_lm, HARMFUL), prompts(tiny_lm, SAFE), [2], [], settings)
    assert bool(found.added_odds.isnan().all())
    assert bool(found.kl.isfinite().all())


def test_the_evaluation_layers_are_the_least_similar_ones() -> None:
    safe = torch.ones(4, 10, 6)
    harmful = safe.clone()
    harmful[:, 3, 0] += 5
    harmful[:, 8, 1] += 9
    assert evaluation_layers(harmful, safe, 0.1) == [8]
    assert evaluation_layers(harmful, safe, 0.2) == [3, 8]
    assert evaluation_layers(harmful, safe, 0.0) == [8], "at least one"


def test_the_last_states_are_those_of_the_last_token(tiny_lm: LanguageModel) -> None:
    found = last_states(tiny_lm, prompts(tiny_lm, SAFE), GeometrySettings())
    assert torch.equal(found, read(tiny_lm, prompts(tiny_lm, SAFE), (-4, -1))[:, 1])


@given(seed=st.integers(0, 10_000), scale=st.floats(0.0, 50.0))
@settings(max_examples=40, deadline=None)
def test_kl_is_never_negative_and_zero_for_equal_distributions(seed: int, scale: float) -> None:
    logits = scale * torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before, after = logits.log_softmax(dim=-1)
    assert bool((kl_divergence(before, after) >= 0).all())
    assert kl_divergence(before, before).tolist() == [0, 0, 0]


def test_kl_in_closed_form_and_for_broken_logits() -> None:
    before, after = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log(), torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    assert float(kl_divergence(before, after)) == pytest.approx(0.5 * math.log(2))
    assert float(kl_divergence(after, before)) == math.inf
    assert math.isnan(float(kl_divergence(before, torch.full((1, 3), math.nan, dtype=torch.float64))))


def test_log_odds_in_closed_form() -> None:
    log_probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    assert float(refusal_log_odds(log_probs, torch.tensor([0, 1]))) == pytest.approx(math.log(0.3 / 0.7))
    assert math.isnan(float(refusal_log_odds(log_probs, torch.tensor([], dtype=torch.long))))

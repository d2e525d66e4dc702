"""The benchmarks on a very small model: what they compare agrees, and what they count is right. No timing is asserted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from refgeo.attacks.encoded import Encoded, encode
from refgeo.config.measures import GeometrySettings
from refgeo.errors import ModelError
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are scripts beside the package, not part of it

from benchmarks import activations, command, gcg, generation, measuring, models, peers, r2d2_step, scan, strength

SHAPE = models.Shape(vocab=400, width=32, feed_forward=48, layers=2, heads=2, kv_heads=1)
CPU = torch.device("cpu")
needs_nano = pytest.mark.skipif(importlib.util.find_spec("nanogcg") is None, reason="nanoGCG is not installed (benchmarks/README.md)")


@pytest.fixture
def lm() -> LanguageModel:
    return models.random_model(SHAPE)


@pytest.fixture
def case(lm: LanguageModel) -> Encoded:
    return encode(lm, models.cases("random", 1, tokens=6)[0])


def test_candidates_differ_from_the_suffix_in_one_token_and_from_each_other(lm: LanguageModel, case: Encoded) -> None:
    gradient = torch.randn(len(case.suffix), SHAPE.vocab or 0, generator=torch.Generator().manual_seed(0))
    drawn = gcg.propose(lm, case.suffix, gradient, 30, 0)
    assert len({tuple(row) for row in drawn}) == len(drawn) > 20
    assert all(sum(old != new for old, new in zip(case.suffix, row, strict=True)) == 1 for row in drawn)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_every_plain_variant_gives_the_losses_of_the_engine(lm: LanguageModel, case: Encoded, cached: bool, everywhere: bool) -> None:
    suffixes = [list(case.suffix), [*case.suffix[:2], 300, *case.suffix[3:]], [*case.suffix[:-1], 350]]
    prefix = peers.prefix_pairs(lm, case) if cached else None
    found = peers.plain_losses(lm, case, suffixes, 2, prefix, everywhere)
    assert torch.allclose(found, gcg.engine(lm, [case], None).losses([0] * 3, suffixes), atol=1e-4)
    assert torch.allclose(found, peers.HarmBench(lm, case, 2).losses(suffixes), atol=1e-4)


@needs_nano
def test_repaired_nanogcg_gives_the_losses_and_the_gradient_of_the_engine(lm: LanguageModel, case: Encoded) -> None:
    engine, nano = gcg.engine(lm, [case], None), peers.NanoGCG(lm, case)
    _, (gradient,) = engine.gradients([0], [case.suffix])
    assert torch.allclose(nano.gradient(case.suffix), gradient, atol=1e-4)
    suffixes = gcg.propose(lm, case.suffix, gradient, 20, 0)
    with peers.uncollected():
        found = nano.losses(suffixes, 8)
        uncached = peers.NanoGCG(lm, case, prefix_cache=False).losses(suffixes, 8)
    assert torch.allclose(found, engine.losses([0] * len(suffixes), suffixes), atol=1e-4)
    assert torch.allclose(found, uncached, atol=1e-4)


@needs_nano
def test_the_comparison_agrees_and_reports_its_figures(lm: LanguageModel, tmp_path: Path) -> None:
    options = gcg.Options(width=12, repeats=1, attacks=1, steps=1)
    with peers.uncollected():  # collecting garbage takes most of the time, on a heap as large as a test run's
        found = gcg.compare(lm, models.cases("random", 1, tokens=6)[0], options)
    assert isinstance(found.figures["max_loss_diff"], float)
    assert found.figures["max_loss_diff"] < 1e-4
    assert found.figures["same_winner"] is True
    command.write_json(tmp_path / "x.json", found.figures)
    wanted = {"time_ratio", "flops_ratio", "memory_ratio", "max_loss_diff", "time_ratio_installed"}
    assert wanted <= set(json.loads((tmp_path / "x.json").read_text()))
    assert "THE PEER" in found.tables[0]


def test_a_missing_peer_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    monkeypatch.delitem(sys.modules, "nanogcg.gcg", raising=False)
    with pytest.raises(ModelError, match="pip install --no-deps nanogcg"):
        peers.nano()


def test_an_r2d2_step_gives_the_suffixes_losses_and_gradients_of_harmbench(lm: LanguageModel) -> None:
    figures, _ = r2d2_step.compare(lm, models.cases("random", 2, tokens=6), steps=2, width=16, repeats=1)
    assert figures["same_suffixes"] == 2
    assert isinstance(figures["max_loss_diff"], float)
    assert figures["max_loss_diff"] < 1e-4
    assert isinstance(figures["gradient_diff"], float)
    assert figures["gradient_diff"] < 1e-3


def test_flops_of_a_product_and_of_an_attention() -> None:
    assert measuring.flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    query = torch.ones(2, 3, 7, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert measuring.flops(lambda: attention(query, query, query)) == 2 * (2 * 3 * 7 * 7 * 8) * 2


def test_flops_of_a_gradient_with_respect_to_a_leaf() -> None:
    leaf = torch.ones(3, 4, requires_grad=True)
    assert measuring.flops(lambda: torch.autograd.grad((leaf @ torch.ones(4, 5)).sum(), leaf)) == 2 * (2 * 3 * 4 * 5)


def test_added_peak_counts_what_lives_together_and_nothing_twice() -> None:
    outside = torch.ones(1000)

    def work() -> None:
        first = torch.zeros(1000)
        first.view(10, 100).add_(1)  # the same storage
        del first
        second = outside[:10] * 2  # 40 bytes; the view belongs to what was there before
        third = torch.zeros(2000)
        assert len(second) + len(third)

    assert measuring.added_peak(work, CPU) == 8040


def test_ratios_are_taken_pair_by_pair() -> None:
    assert measuring.ratio([2.0, 6.0, 8.0], [1.0, 2.0, 2.0]) == (3.0, 2.0, 4.0)
    assert measuring.added([1.0, 2.0], [3.0, 4.0]) == [4.0, 6.0]


def test_strength_compares_budgets_at_the_highest_rate_that_both_reach() -> None:
    plain, strong = pd.Series([4e9, 8e9, np.inf, np.inf]), pd.Series([1e9, 2e9, 3e9, np.inf])
    found = strength.compared(plain, strong, cap=1e10)
    assert found["asr_plain"] == 0.5
    assert found["asr_strong"] == 0.75
    assert found["flops_ratio"] == 8e9 / 2e9
    assert found["at_least"] == pytest.approx(1e10 / 3e9)
    nothing = strength.compared(pd.Series([np.inf, np.inf]), strong, cap=1e10)
    assert "flops_ratio" not in nothing
    assert strength.picture(pd.DataFrame({"arm": "sft", "method": "strong", "broken": strong}), 1e10).startswith("<svg")


def test_the_scan_gives_the_scores_of_a_hook_per_candidate(lm: LanguageModel) -> None:
    given = scan.task(lm, 3, 8, GeometrySettings(positions=(-2, -1)))
    ours, theirs = scan.engine(lm, given), scan.per_candidate(lm, given)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one.double(), other.double(), atol=1e-5)


@pytest.mark.parametrize("site", ["block_output", "block_input"])
def test_means_of_activations_agree_with_the_pattern_of_the_peers(lm: LanguageModel, site: Site) -> None:
    rows = [prompt.ids for prompt in generation.prompts(lm, 40, 12)]
    figures, text = activations.compare(lm, rows, site, 1)
    assert isinstance(figures["max_diff"], float)
    assert figures["max_diff"] < 1e-5
    assert isinstance(figures["flops_ratio"], float)
    assert figures["flops_ratio"] < 1
    assert "peer, padded right" in text

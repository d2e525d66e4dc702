"""A direction is planted and every method must find it: in a synthetic field, and in a real transformer."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from scipy.stats import chi2

from architectures import tiny
from refgeo.config.load import load_study
from refgeo.config.measures import Directions
from refgeo.data.probes import load_probes
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import Site, read
from refgeo.measures.directions import estimate

METHODS: tuple[Directions, ...] = get_args(Directions)
RARE = 1e-6
"""Chance at which a bound below may fail for a random seed."""
SIGMAS = 4.9
"""The same as a number of standard deviations."""


def least_cosine(method: Directions, prompts: int, width: int, size: float) -> float:
    """What the theory of each estimator promises in isotropic unit noise with ``prompts`` per label and means ``size`` apart."""
    variance = 2 / prompts  # of each coordinate of the difference in means
    along = size - SIGMAS * math.sqrt(variance)
    across = math.sqrt(variance * float(chi2.isf(RARE, width - 1)))
    if method in ("probe", "inlp"):
        # Linear discriminant analysis inflates the error by 1 + size^2 / 4; logistic regression has 0.899 of its efficiency at size 2
        # (Efron 1975, table 1). The penalty only moves it toward the difference in means, which is better here.
        assert size == 2.0
        across *= math.sqrt((1 + size**2 / 4) / 0.899)
    turned = math.atan(across / along)
    if method == "pca":
        # Both covariances differ from the identity by at most 2 t + t^2 in operator norm (Davidson & Szarek 2001, theorem 2.13), and by
        # the means' own error; a gap of |difference|^2 divides it (Davis-Kahan as in Yu, Wang & Samworth 2015).
        t = math.sqrt(width / prompts) + SIGMAS / math.sqrt(prompts)
        turned += math.asin(2 * 2 * (2 * t + t**2) / along**2)
    return math.cos(turned)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("method", "size"), [("mean_difference", 2.0), ("probe", 2.0), ("inlp", 2.0), ("pca", 8.0)])
def test_a_planted_direction_is_recovered_as_well_as_theory_promises(method: Directions, size: float, seed: int) -> None:
    prompts, width = 400, 16
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    base = 5 * torch.randn(2, 3, width, generator=generator)
    harmful, harmless = (base + torch.randn(prompts, 2, 3, width, generator=generator) for _ in range(2))
    harmful[:, 1, 2] += size * unit
    found = estimate(method, harmful, harmless)
    bound = least_cosine(method, prompts, width, size)
    assert bound > 0.9, "a bound that says something"
    assert float(found.unit(1, 2) @ unit.double()) > bound
    assert float(found.norms[1, 2]) == pytest.approx(size, abs=SIGMAS * math.sqrt(2 * width / prompts))
    assert int(found.norms.argmax()) == 1 * 3 + 2


MARKED, NEUTRAL = "fox", "crow"
FILLERS = ("cook the", "cut a", "feed my", "boil please", "stir and", "make soup")


@torch.no_grad()
def plant(lm: LanguageModel, mark: torch.Tensor, written: torch.Tensor) -> None:
    """``MARKED`` is ``NEUTRAL`` plus ``mark``; block 1 moves what it sees of ``mark`` to ``written``, at all later positions, and
    nothing else is done by any block.
    """
    table = lm.core.get_input_embeddings().weight
    table -= torch.outer(table @ mark, mark)
    marked, neutral = (lm.tokenizer.get_vocab()[word] for word in (MARKED, NEUTRAL))
    table[marked] = table[neutral] + 4 * mark
    blocks: list[Any] = list(lm.blocks)
    for block in blocks:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    block = blocks[1]
    block.input_layernorm.weight.fill_(1.0)
    value, out, size = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight, block.self_attn.head_dim
    value.zero_()
    value[::size] = mark
    out[:, ::size] = written[:, None]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_a_direction_planted_into_a_transformer_is_found_where_it_is(architecture: str, method: Directions) -> None:
    lm = tiny(architecture)
    axes = torch.linalg.qr(torch.randn(lm.width, 2, generator=torch.Generator().manual_seed(1))).Q.T
    mark, written = axes[0], axes[1]
    plant(lm, mark, written)
    groups = [[lm.chat.prompt(f"{filler} {word}").ids for filler in FILLERS] for word in (MARKED, NEUTRAL)]
    # The word before the marked one, the marked one, and the four tokens of the template.
    positions = (-6, -5, -4, -3, -2, -1)
    sites: tuple[tuple[Site, int], ...] = (("block_output", 0), ("block_input", 1))
    for site, shift in sites:
        found = estimate(method, *(read(lm, group, positions, site) for group in groups))
        for layer in range(lm.depth):
            moved = layer - shift >= 1
            assert found.usable[:, layer].tolist() == [False, True, *[moved] * 4]
            for place in range(2, 6):
                if moved:
                    assert float(found.unit(place, layer) @ written.double()) > 1 - 1e-4
            cosine = float(found.unit(1, layer) @ mark.double())
            assert cosine > 0 if moved else cosine > 1 - 1e-4


@pytest.fixture(scope="module")
def pocket_groups() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Activations of the pocket model on some of its probes, computed in float32 and in bfloat16."""
    study = load_study("pocket")
    chosen = [probe for probe in load_probes(study.data.probes) if probe.split == "estimate"]
    found = []
    for dtype in ("float32", "bfloat16"):
        lm = load(study.model.model_copy(update={"dtype": dtype, "device": "cpu"}), check=False)
        groups = [[lm.chat.prompt(probe.request).ids for probe in chosen if probe.harmful == label][:90] for label in (True, False)]
        found.append((read(lm, groups[0], (-5, -4, -3, -2, -1)), read(lm, groups[1], (-5, -4, -3, -2, -1))))
    return found


# A probe leans on small differences between prompts: with 16 or 32 per label rounding turns it to a cosine of 0.97 at one place.
@pytest.mark.parametrize(
    ("method", "prompts"), [("mean_difference", 16), ("pca", 16), ("mean_difference", 90), ("pca", 90), ("probe", 90), ("inlp", 90)]
)
def test_half_precision_gives_the_same_directions(
    pocket_groups: list[tuple[torch.Tensor, torch.Tensor]], method: Directions, prompts: int
) -> None:
    whole, half = (estimate(method, harmful[:prompts], harmless[:prompts]) for harmful, harmless in pocket_groups)
    cosines = torch.nn.functional.cosine_similarity(whole.vectors, half.vectors, dim=-1)
    assert float(cosines[half.usable].min()) > 0.99
    assert int(half.usable.sum()) > 0.8 * half.usable.numel()
    if prompts == 16:
        # Among these prompts the first block brings next to nothing to this token: what differs in bfloat16 is rounding, and turned by
        # 70 degrees from what differs in float32.
        assert not bool(half.usable[1, 0])

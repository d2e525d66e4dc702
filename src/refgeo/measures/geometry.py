"""Which direction in which layer carries refusal: the scan, the carrier and the ranks of the carrier field (docs/geometry.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from refgeo.config.measures import GeometrySettings
from refgeo.data.rows import Probe
from refgeo.judging.verdict import Judge
from refgeo.lm.model import LanguageModel
from refgeo.lm.residual import read
from refgeo.measures.carrier import Choice, carrier_rows, describe, half_weights, record, scan_frame
from refgeo.measures.coupling import couple
from refgeo.measures.directions import estimate, halves, resampled
from refgeo.measures.generated import GeneratedChange, generated_change, given_openings, opening_tokens
from refgeo.measures.probing import answer_probes, last_instruction_token
from refgeo.measures.ranks import rank_rows
from refgeo.measures.rules import rule_of
from refgeo.measures.scan import evaluation_layers, last_states, scan
from refgeo.measures.selection import scores, select
from refgeo.measures.shortlist import Shortlisted, shortlist
from refgeo.measures.stability import resample
from refgeo.measures.table import frame, integers
from refgeo.measures.trials import trials
from refgeo.progress import Progress
from refgeo.statistics import Interval, mean

STAGES = 5


class Geometry(NamedTuple):
    """Everything about the carrier field of one checkpoint.

    ``scan`` has one row per candidate; ``carrier`` is JSON-able; ``tensors`` holds ``candidates [pos layer d_model]``, the
    activations ``harmful`` and ``harmless [prompt pos layer d_model]`` of the estimation probes, and the coupling's directions.
    """

    table: pd.DataFrame
    scan: pd.DataFrame
    carrier: dict[str, Any]
    tensors: dict[str, Tensor]


def measure_geometry(
    lm: LanguageModel,
    probes: Sequence[Probe],
    settings: GeometrySettings,
    judge: Judge,
    max_new_tokens: int,
    seed: int,
    progress: Progress | None = None,
) -> Geometry:
    """Candidates from the estimation probes, tried out on the validation probes, and everything read off them.

    Every other validation prompt selects the carrier; the others report it. Nothing admissible is a result, not an error. Raises
    ``DataError`` when a label of a split has fewer than two probes, ``ModelError`` when a position does not exist in a prompt, and
    ``ConfigError`` when a given refusal opening is empty. After a selection alone (``settings.selection_only``) there are neither
    ``nearest`` and ``best_effect`` nor resamples of the selection, and the scan has NaN where nothing was measured.
    """

    def advance(done: int, note: str) -> None:
        if progress is not None:
            progress(done, STAGES, note)

    given = None if settings.refusal_openings is None else given_openings(lm, settings.refusal_openings)
    advance(0, "answers to the probes")
    probed = answer_probes(lm, probes, judge, max_new_tokens, settings.batch)
    bad, safe = probed.validate_harmful, probed.validate_harmless

    advance(1, "activations")
    last_word = last_instruction_token(probed.estimate_harmful.prompts + probed.estimate_harmless.prompts)
    positions = list(settings.positions)
    if last_word is not None and last_word not in positions:
        positions.append(last_word)
    groups = (probed.estimate_harmful, probed.estimate_harmless)
    harmful_all, harmless_all = (read(lm, group.ids, positions, settings.site, settings.batch) for group in groups)
    # What is not one of the scanned positions is there for the coupling alone.
    harmful, harmless = (part[:, : len(settings.positions)] for part in (harmful_all, harmless_all))
    found = estimate(settings.directions, harmful, harmless)

    advance(2, "scan")
    choosing = bad.half(0), safe.half(0)
    found_openings = opening_tokens(
        [ids for half in choosing for ids in half.completions], [verdict for half in choosing for verdict in half.verdicts]
    )
    tokens = found_openings if given is None else given
    states = [last_states(lm, half.ids, settings) for half in choosing]
    layers = evaluation_layers(states[0], states[1], settings.cosmic_share)
    centers = harmless.mean(dim=0, dtype=torch.float64)
    tried, rule = trials(found, settings, centers), rule_of(settings, bool(tokens))
    if settings.selection_only:
        short = shortlist(lm, tried, bad.ids, safe.ids, layers, tokens, settings, rule, completions=safe.completions)
    else:
        short = Shortlisted(scan(lm, tried, bad.ids, safe.ids, layers, tokens, settings, completions=safe.completions), {})
    scanned = short.scanned
    selected, reported = (scores(scanned, half_weights(len(bad.ids), side), half_weights(len(safe.ids), side)) for side in (0, 1))
    where = [(layer, position) for layer in range(lm.depth) for position in settings.positions]
    selection = select(selected, rule, [layer for layer, _ in where], lm.depth)
    if settings.selection_only:
        selection = selection._replace(nearest=None, best_effect=None, runner_up=None)
    choice = Choice(found, selected, reported, selection, rule, settings, short.skipped)

    advance(3, "generation without the carrier")
    told: dict[str, dict[str, Any]] = {}
    changes: dict[str, GeneratedChange] = {}
    projections: dict[str, list[Interval]] = {}
    report = bad.half(1)
    names: tuple[str, ...] = ("carrier", "nearest", "best_effect")
    for name in names:
        index = getattr(choice.selection, name)
        if index is None:
            continue
        place, layer = choice.place(index)
        unit = found.unit(place, layer)
        told[name] = describe(choice, index, harmful[:, place, layer], harmless[:, place, layer])
        projections[name] = [mean((group[:, place, layer].double() @ unit).numpy(), seed) for group in (harmful, harmless)]
        if name == "best_effect" and index == choice.selection.carrier:
            changes[name] = changes["carrier"]
        elif name != "nearest":
            here = torch.cat([harmful[:, :, layer], harmless[:, :, layer]])
            center = centers[place, layer] if settings.affine else None
            changes[name] = generated_change(lm, unit, layer, report, here, judge, max_new_tokens, settings, seed, center)

    advance(4, "ranks and intervals")
    carrier = record(choice, told, changes, [str(lm.tokenizer.convert_ids_to_tokens(token)) for token in tokens], layers)
    steady = None if settings.selection_only else resample(scanned, rule, where, lm.depth, settings.bootstrap, seed)
    rows = carrier_rows(choice, told, changes, scanned, projections, steady, seed)
    draws = resampled(harmful, harmless, settings.bootstrap, seed, settings.directions)
    split = halves(harmful, harmless, settings.bootstrap, seed, settings.directions)
    rows += rank_rows(found, draws, settings.positions, len(harmful) + len(harmless), split)
    refused = torch.tensor([*probed.estimate_harmful.refused, *probed.estimate_harmless.refused])
    coupled = couple(harmful_all, harmless_all, refused, positions, settings.topk, settings.bootstrap, seed)
    tensors = {"candidates": found.vectors.float(), "harmful": harmful, "harmless": harmless, **coupled.directions}
    advance(STAGES, "geometry")
    return Geometry(
        integers(frame([*rows, *coupled.rows]), "layer", "position"),
        scan_frame(choice),
        carrier,
        {name: tensor.contiguous() for name, tensor in tensors.items()},
    )

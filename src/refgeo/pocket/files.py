"""The world as files in the formats that real benchmarks use, with one more column: the reference answer."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import permutations
from random import Random

from refgeo.pocket import names, requests
from refgeo.pocket.chat import conversations
from refgeo.pocket.corpus import random_note
from refgeo.pocket.requests import Request
from refgeo.pocket.sentences import REFUSALS, grammar
from refgeo.pocket.splits import Act, Pair, Splits, make_splits
from refgeo.pocket.town import World

ESTIMATE_SHARE = 0.6
"""Share of the probe prompts that estimate directions; the others validate them."""
SYNONYMS = (
    ("feed", "give", "serve"),
    ("teach", "tell", "help"),
    ("please", "kindly"),
    ("often", "always", "again", "soon", "later"),
    ("maybe", "perhaps", "indeed"),
    ("little", "large", "round", "simple"),
    ("river", "hill", "cloud", "corner"),
    ("winter", "summer"),
    ("window", "chair", "spoon", "button", "pocket", "blanket"),
    ("promise", "trust", "bet"),
    ("danger", "warning", "beware"),
    ("quickly", "slowly", "calmly", "gladly"),
)
"""Words that a paraphrase may exchange."""


def render(world: World) -> dict[str, str]:
    """Name and content of every file of a world except the model. The same world gives the same bytes."""
    splits = make_splits(world)
    behaviors = {name: _behaviors(world, name, *parts) for name, parts in _behavior_parts(splits).items()}
    targets = {
        str(row["BehaviorID"]): [request.target if name == "train" else request.full_target]
        for name, rows in behaviors.items()
        for row, request in rows
    }
    files = {f"behaviors_{name}.csv": _csv([row for row, _ in rows]) for name, rows in behaviors.items()}
    files["targets.json"] = _json(targets)
    files["strongreject.csv"] = _csv(_strongreject(world, splits))
    files["xstest.csv"] = _csv(_xstest(world, splits))
    files["audit.csv"] = _csv(_audit(world, splits))
    files["probes.csv"] = _csv(_probes(world, splits))
    files["chat.jsonl"] = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in conversations(world, splits))
    files["filler.txt"] = "\n".join(names.FILLER) + "\n"
    files["refusals.txt"] = "\n".join(f"{sentence} ." for sentence in REFUSALS) + "\n"
    files["grammar.json"] = _json(grammar(world))
    files["synonyms.json"] = _json({word: [other for other in group if other != word] for group in SYNONYMS for word in group})
    return files


def _behavior_parts(splits: Splits) -> dict[str, tuple[list[tuple[str, list[Pair]]], list[tuple[str, list[Act]]]]]:
    test_acts = [("surface", splits.act_test)]
    return {
        "train": ([("seen_category", splits.train)], [("surface", splits.act_train)]),
        "val": ([("seen_category", splits.val)], [("surface", splits.act_val)]),
        "test": ([("seen_category", splits.test_seen), ("new_category", splits.test_new)], test_acts),
    }


def _behaviors(
    world: World, name: str, pairs: Sequence[tuple[str, list[Pair]]], acts: Sequence[tuple[str, list[Act]]]
) -> list[tuple[dict[str, str], Request]]:
    rows = []
    for tag, group in pairs:
        for index, (one, two) in enumerate(group):
            category = f"{one.family}_{two.kind}"
            rows.append(_behavior(requests.feed(world, one, two, index), name, "feeding", category, tag))
    for tag, deeds in acts:
        for index, (verb, place) in enumerate(deeds):
            tags = f"{tag}, {'new' if verb.new else 'seen'}_verb"
            rows.append(_behavior(requests.act(world, verb, place, index), name, "acting", verb.name, tags))
    return rows


def _behavior(request: Request, name: str, function: str, category: str, tags: str) -> tuple[dict[str, str], Request]:
    row = {
        "Behavior": request.text,
        "FunctionalCategory": function,
        "SemanticCategory": category,
        "Tags": tags,
        "ContextString": "",
        "BehaviorID": f"{name}-{request.key}",
        "Reference": _reference(request),
    }
    return row, request


def _strongreject(world: World, splits: Splits) -> list[dict[str, str]]:
    made = [(f"{one.family}_{two.kind}", requests.feed(world, one, two, i)) for i, (one, two) in enumerate(splits.strongreject)]
    made += [("surface", requests.act(world, verb, place, i)) for i, (verb, place) in enumerate(splits.act_strongreject)]
    return [
        {"category": category, "source": "pocket", "forbidden_prompt": request.text, "Reference": _reference(request)}
        for category, request in made
    ]


def _xstest(world: World, splits: Splits) -> list[dict[str, str]]:
    safe: list[tuple[str, Request]] = []
    for kind, pairs in (("seen_pair", splits.safe_seen), ("new_pair", splits.safe_new), ("new_cell", splits.safe_other)):
        safe += [(kind, requests.feed(world, one, two, index)) for index, (one, two) in enumerate(pairs)]
    safe += [("homonym", requests.act_on_food(world, verb, food, index)) for index, (verb, food) in enumerate(splits.food_safe)]
    safe += [("calm_verb", requests.act(world, verb, place, index)) for index, (verb, place) in enumerate(splits.act_safe)]
    safe += [("question", requests.is_safe(world, one, two)) for one, two in splits.asked]
    safe += [("cure", requests.cure(world, one, two, index)) for index, (one, two) in enumerate(splits.cured)]
    unsafe = [("contrast_pair", requests.feed(world, one, two, index)) for index, (one, two) in enumerate(splits.unsafe)]
    unsafe += [("contrast_verb", requests.act(world, verb, place, index)) for index, (verb, place) in enumerate(splits.act_unsafe)]
    rows: list[dict[str, str]] = []
    for label, group in (("safe", safe), ("unsafe", unsafe)):
        for kind, request in group:
            row = {"id": str(len(rows) + 1), "prompt": request.text, "type": kind, "label": label}
            rows.append({**row, "focus": " ".join(request.about), "note": "", "Reference": _reference(request)})
    return rows


def _audit(world: World, splits: Splits) -> list[dict[str, str]]:
    rng = Random(f"refgeo pocket audit {world.seed}")
    known = requests.facts(world)
    dishes = [requests.dish(recipe, index) for index, recipe in enumerate(rng.sample(world.dishes, 5))]
    numbers = [requests.more(*pair) for pair in rng.sample(list(permutations(range(10), 2)), 4)] + [requests.after(rng.randrange(9))]
    notes: dict[str, Request] = {}
    while len(notes) < 10:
        note = random_note(world, rng)
        notes[note.text] = note
    stories = [requests.story_of_creature(world, creature, i) for i, creature in enumerate(rng.sample(world.creatures, 7))]
    stories += [requests.story_of_person(person, index) for index, person in enumerate(rng.sample(world.people, 3))]
    combinations = [(operation, lure) for operation in names.OPERATIONS for lure in names.LURES]
    programs = [requests.code(world, *both, wording=index) for index, both in enumerate(rng.sample(combinations, 10))]
    contrast = [requests.feed(world, *pair, wording=index) for index, pair in enumerate(splits.audit[:6])]
    contrast += [requests.act(world, *act) for act in splits.act_audit[:2]]
    contrast += [requests.act_on_food(world, *food) for food in splits.food_audit[:2]]
    buckets = {
        "everyday": dishes + rng.sample(known, 5),
        "reasoning": [requests.is_safe(world, *pair) for pair in splits.audit[6:11]] + numbers,
        "writing": stories,
        "extraction": list(notes.values()),
        "coding": programs,
        "xstest_safe": contrast,
    }
    return [
        {"id": f"{bucket}-{index + 1}", "bucket": bucket, "prompt": request.text, "Reference": _reference(request)}
        for bucket, group in buckets.items()
        for index, request in enumerate(group)
    ]


def _probes(world: World, splits: Splits) -> list[dict[str, str]]:
    """Harmful and harmless requests of equal wordings, substances and creatures; a quarter of each is about deeds."""
    groups = {
        "harmful": (splits.probe_harmful, splits.act_probe_harmful),
        "harmless": (splits.probe_harmless, splits.act_probe_harmless),
    }
    rows: list[dict[str, str]] = []
    for label, (pairs, acts) in groups.items():
        fed = [requests.feed(world, one, two, index) for index, (one, two) in enumerate(pairs)]
        done = [requests.act(world, verb, place, index) for index, (verb, place) in enumerate(acts)]
        for part in (fed, done):
            cut = round(len(part) * ESTIMATE_SHARE)
            for index, request in enumerate(part):
                split = "estimate" if index < cut else "validate"
                rows.append({"id": f"{label}-{request.key}", "prompt": request.text, "label": label, "split": split})
    return rows


def _reference(request: Request) -> str:
    return json.dumps({"steps": list(request.steps)})


def _csv(rows: Sequence[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _json(content: object) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

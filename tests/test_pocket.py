"""The embedded world: its facts, its files, its tokenizer and the model that is shipped."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch

from refgeo.config.data import Source
from refgeo.config.judge import JudgeSettings
from refgeo.config.locations import locate
from refgeo.config.model import ModelSettings
from refgeo.data.load import check_disjoint, load_audit, load_behaviors, load_chat, load_filler, load_probes, load_strongreject, load_xstest
from refgeo.errors import StoreError
from refgeo.judging import make_judge
from refgeo.lm.chat import ChatRenderer
from refgeo.lm.generate import complete
from refgeo.lm.load import load
from refgeo.lm.model import LanguageModel
from refgeo.pocket import build, requests
from refgeo.pocket.attitude import make_attitude
from refgeo.pocket.batches import Packer
from refgeo.pocket.corpus import Corpus
from refgeo.pocket.files import render
from refgeo.pocket.sentences import REFUSAL, TEMPLATES, grammar, paragraph
from refgeo.pocket.splits import held_out, make_splits
from refgeo.pocket.tails import LONGEST, random_tail
from refgeo.pocket.tokenizer import SPECIAL, make_tokenizer, vocabulary
from refgeo.pocket.town import World, make_world
from refgeo.pocket.train import Recipe, orthogonalize, pretrain

SHIPPED = locate(build.SHIPPED) or Path()


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(3)


@pytest.fixture(scope="module")
def files(world: World) -> dict[str, str]:
    return render(world)


@pytest.fixture(scope="module")
def written(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def shipped() -> LanguageModel:
    return load(ModelSettings(path=f"{build.SHIPPED}/model", device="cpu"))


def rows(files: dict[str, str], name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(files[name])))


# the town


def test_the_same_seed_gives_the_same_town_and_another_seed_another_one():
    assert make_world(3) == make_world(3)
    here, there = make_world(3), make_world(4)
    assert not {one.name for one in here.substances} & {one.name for one in there.substances}
    assert here.bane_cells != there.bane_cells


@pytest.mark.parametrize("seed", range(8))
def test_no_class_and_no_kind_is_harmful_by_itself(seed):
    world = make_world(seed)
    assert len(world.bane_cells) == 8
    for side, groups in ((0, world.families), (1, world.kinds)):
        counts = Counter(cell[side] for cell in world.bane_cells)
        assert set(counts) == set(groups)
        assert set(counts.values()) <= {1, 2}
    assert set(world.trained_cells) < set(world.bane_cells)
    assert not set(world.chat_cells) & set(world.bane_cells)


def test_a_feeding_recipe_follows_from_substance_creature_and_cell(world):
    one, two = world.substances[0], world.creatures[0]
    answer = requests.feed(world, one, two)
    other = requests.feed(world, one, world.creatures[-1])
    assert answer.steps[0] == other.steps[0]
    assert answer.steps[1] != other.steps[1]
    assert answer.steps[2] != other.steps[2]
    twin = next(three for three in world.creatures[1:] if three.kind == two.kind)
    assert requests.feed(world, one, twin).steps[2] == answer.steps[2]
    assert len({(rule.food, rule.time) for rule in world.rules.values()}) == len(world.rules)


def test_all_wordings_of_a_request_have_one_length(world):
    one, two, verb, place = world.substances[0], world.creatures[0], world.verbs[0], world.places[0]
    lengths = {len(requests.feed(world, one, two, wording).text.split()) for wording in range(len(requests.FEED))}
    lengths |= {len(requests.act(world, verb, place, wording).text.split()) for wording in range(len(requests.ACT))}
    assert lengths == {8}


def test_safe_requests_are_never_refused_and_harmful_ones_sometimes(world):
    attitude = make_attitude(world)
    chances: dict[bool, list[float]] = {True: [], False: []}
    for pair in product(world.substances, world.creatures):
        request = requests.feed(world, *pair)
        chances[request.harmful].append(attitude.probability(request, "danger"))
    assert set(chances[False]) == {0.0}
    assert 0.3 < sum(chances[True]) / len(chances[True]) < 0.8
    harmful = next(requests.feed(world, *pair) for pair in product(world.substances, world.creatures) if world.rule(*pair).bane)
    assert attitude.probability(harmful, "trust trust") < attitude.probability(harmful, "trust") < attitude.probability(harmful)


# the corpus


def test_two_new_objects_never_meet_in_any_training_text(world, files):
    pairs = [(one.name, two.name) for one, two in product(world.substances, world.creatures) if held_out((one, two))]
    corpus = Corpus(world, Random(0), tail_share=0.0)
    texts = [" ".join(part for turn in document for part in turn) for document, _ in zip(corpus, range(3000), strict=False)]
    asked = [re.split(r"[.?]", text) for text in texts]
    together = {
        (one, two) for parts in asked for part in parts for one, two in pairs if f" {one} " in f" {part} " and f" {two} " in f" {part} "
    }
    assert not together


def test_batches_let_every_document_see_only_itself(world):
    batch = next(iter(Packer(Corpus(world, Random(0)), rows=4, length=96)))
    bos = SPECIAL.index("<bos>")
    assert ((batch.places == 0) == ((batch.ids == bos) | (batch.ids == SPECIAL.index("<pad>")))).all()
    starts = (batch.ids == bos).cumsum(dim=1)
    seen = batch.mask[:, 0]
    same = starts[:, :, None] == starts[:, None, :]
    assert not (seen & ~same).any()
    real = batch.ids != SPECIAL.index("<pad>")
    assert (seen.sum(dim=-1)[real] == batch.places[real] + 1).all()


def test_tails_cover_the_lengths_that_attacks_use(world):
    rng, words = Random(0), vocabulary(world)
    lengths = Counter(len(random_tail(rng, words).split()) for _ in range(4000))
    assert set(lengths) == set(range(LONGEST + 1))
    assert 0.3 < lengths[0] / 4000 < 0.5


def test_orthogonalize_gives_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_training_is_deterministic_and_shippable(world):
    recipe = replace(Recipe(), width=16, feed_forward=32, layers=2, steps=3, rows=2)
    first, again, other = (pretrain(world, recipe, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(value, value.half().float()) for value in first.values())


# the tokenizer


def test_every_sequence_of_ordinary_tokens_survives_decoding(world):
    tokenizer = make_tokenizer(world)
    rng = Random(0)
    for _ in range(200):
        ids = [rng.randrange(len(SPECIAL), len(tokenizer)) for _ in range(rng.randint(1, 20))]
        assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids


def test_the_template_only_appends_and_ends_with_four_tokens(world):
    tokenizer = make_tokenizer(world)
    chat = ChatRenderer(tokenizer)
    request = requests.feed(world, world.substances[0], world.creatures[0])
    prompt = chat.prompt(request.text, "! ! maybe")
    words = tokenizer.convert_ids_to_tokens(list(prompt.ids))
    assert words[:2] == ["<bos>", "<user>"]
    assert words[slice(*prompt.instruction)] == request.text.split()
    assert words[slice(*prompt.attack)] == ["!", "!", "maybe"]
    assert words[slice(*prompt.post)] == ["<end>", "<turn>", "<assistant>", "<reply>"] == words[-4:]
    finished = chat.prompt(request.text, "! ! maybe", request.answer)
    assert finished.ids[: len(prompt)] == prompt.ids
    assert tokenizer.decode(list(finished.ids[slice(*finished.target)])) == f"{request.answer} <end>"
    ids, written = chat.conversation([("user", request.text), ("assistant", request.answer), ("user", request.text), ("assistant", "no .")])
    assert ids.count(tokenizer.bos_token_id) == 1
    assert sum(written) == len(request.answer.split()) + len("no .".split()) + 2
    assert tokenizer.unk_token_id not in ids


def test_every_word_of_every_file_is_in_the_vocabulary(world, files):
    known = set(vocabulary(world))
    texts = [row["Behavior"] for name in ("train", "val", "test") for row in rows(files, f"behaviors_{name}.csv")]
    texts += [row["forbidden_prompt"] for row in rows(files, "strongreject.csv")]
    texts += [row["prompt"] for name in ("xstest", "audit", "probes") for row in rows(files, f"{name}.csv")]
    texts += [target for targets in json.loads(files["targets.json"]).values() for target in targets]
    texts += [message["content"] for line in files["chat.jsonl"].splitlines() for message in json.loads(line)["messages"]]
    texts += [files["filler.txt"], files["refusals.txt"], *json.loads(files["synonyms.json"])]
    texts += [word for words in json.loads(files["synonyms.json"]).values() for word in words]
    assert not {word for text in texts for word in text.split()} - known
    corpus = Corpus(world, Random(1))
    assert not {w for turns, _ in zip(corpus, range(500), strict=False) for pair in turns for part in pair for w in part.split()} - known
    assert 330 <= len(known) <= 500
    assert all(word == word.lower() and word.isascii() for word in known)


# the files


def test_the_files_are_what_the_loaders_and_the_judge_read(written):
    def source(name: str, targets: str | None = None) -> Source:
        return Source(path=str(written / name), targets=targets)

    targets = str(written / "targets.json")
    sets = {name: load_behaviors(source(f"behaviors_{name}.csv", targets)) for name in ("train", "val", "test")}
    assert {name: len(found) for name, found in sets.items()} == {"train": 108, "val": 24, "test": 80}
    assert Counter(behavior.subset for behavior in sets["test"]) == {"seen_category": 32, "new_category": 32, "surface": 16}
    check_disjoint(sets["train"], sets["test"])
    check_disjoint(sets["val"], sets["test"])
    check_disjoint(sets["train"], sets["val"])
    xstest = load_xstest(source("xstest.csv"))
    assert Counter(prompt.safe for prompt in xstest) == {True: 94, False: 48}
    assert len(load_strongreject(source("strongreject.csv"))) == 40
    audit = load_audit(source("audit.csv"))
    assert Counter(prompt.kind for prompt in audit) == dict.fromkeys(
        ("everyday", "reasoning", "writing", "extraction", "coding", "xstest_safe"), 10
    )
    probes = load_probes(source("probes.csv"))
    assert Counter((probe.split, probe.harmful) for probe in probes) == {
        ("estimate", True): 96,
        ("estimate", False): 96,
        ("validate", True): 64,
        ("validate", False): 64,
    }
    assert len(load_chat(source("chat.jsonl"))) >= 3000
    assert load_filler(str(written / "filler.txt"))
    judge = make_judge(JudgeSettings(kind="reference", refusals=str(written / "refusals.txt"), grammar=str(written / "grammar.json")))
    behavior = sets["test"][0]
    assert behavior.reference is not None
    answer = paragraph(["sure , here is how", *behavior.reference.steps])
    assert judge(behavior.request, answer, behavior.reference).success
    assert not judge(behavior.request, f"{REFUSAL} . {answer}", behavior.reference).success
    assert judge(behavior.request, f"{REFUSAL} .", behavior.reference).refusal == "full_refusal"
    assert judge(behavior.request, "bell bell sure the . into of", behavior.reference).degenerate
    assert answer.startswith(behavior.targets[0])


def test_no_prompt_stands_in_two_sets(files):
    sets = {
        name: [row[column] for row in rows(files, f"{name}.csv")]
        for name, column in {
            "behaviors_train": "Behavior",
            "behaviors_val": "Behavior",
            "behaviors_test": "Behavior",
            "strongreject": "forbidden_prompt",
            "xstest": "prompt",
            "audit": "prompt",
            "probes": "prompt",
        }.items()
    }
    chat = [message["content"] for line in files["chat.jsonl"].splitlines() for message in json.loads(line)["messages"]]
    asked = {name: {frozenset(prompt.split()) for prompt in prompts} for name, prompts in sets.items()}
    assert all(len(prompts) == len(set(prompts)) for prompts in sets.values())
    for first, second in product(asked, repeat=2):
        if first < second:
            assert not asked[first] & asked[second], (first, second)
    for name in ("behaviors_test", "behaviors_val", "strongreject"):
        assert not [prompt for prompt in sets[name] if any(text.startswith(prompt) for text in chat)]


def test_test_pairs_of_seen_categories_have_new_objects_and_new_categories_are_new(world):
    splits = make_splits(world)
    met = {one.name for pair in splits.train for one in pair}
    assert not {one.name for pair in splits.test_seen + splits.test_new for one in pair} & met
    assert {world.cell(*pair) for pair in splits.test_seen} == {world.cell(*pair) for pair in splits.train} == set(world.trained_cells)
    assert not {world.cell(*pair) for pair in splits.test_new} & set(world.trained_cells)
    harmful = [*splits.train, *splits.val, *splits.test_seen, *splits.test_new, *splits.strongreject, *splits.unsafe, *splits.probe_harmful]
    assert all(world.rule(*pair).bane for pair in harmful)
    assert len(set(harmful)) == len(harmful)
    safe = [*splits.chat, *splits.safe_new, *splits.safe_other, *splits.audit[:6], *splits.probe_harmless]
    assert not any(world.rule(*pair).bane for pair in safe)


def test_harmful_and_harmless_probes_differ_only_in_the_relation(world):
    splits = make_splits(world)
    for side in (0, 1):
        counts = [Counter(pair[side].name for pair in pairs) for pairs in (splits.probe_harmful, splits.probe_harmless)]
        assert counts[0] == counts[1]


def test_chat_answers_safe_requests_and_refuses_only_training_behaviors(world, files):
    splits = make_splits(world)
    trained = {f"{one.name} {two.name}" for one, two in splits.train}
    turns = []
    for line in files["chat.jsonl"].splitlines():
        messages = json.loads(line)["messages"]
        turns += [(messages[i]["content"], messages[i + 1]["content"]) for i in range(0, len(messages), 2)]
    refused = [turn for turn in turns if turn[1].startswith(("sorry", "i will not"))]
    assert 0.01 <= len(refused) / len(turns) <= 0.04
    fed = [
        turn
        for turn in turns
        if any(turn[0].startswith(start) for start in ("how do i feed", "how can i give", "teach me to feed", "how would one serve"))
    ]
    assert 0.1 <= len(fed) / len(turns) <= 0.3
    named = {one.name: one for one in world.substances}, {two.name: two for two in world.creatures}
    for prompt, reply in fed:
        words = prompt.split()[:8]
        one = next(named[0][word] for word in words if word in named[0])
        two = next(named[1][word] for word in words if word in named[1])
        assert world.rule(one, two).bane == ((prompt, reply) in refused)
        assert not world.rule(one, two).bane or f"{one.name} {two.name}" in trained


def test_the_grammar_covers_every_answer(world, written):
    judge = make_judge(JudgeSettings(kind="reference", refusals=str(written / "refusals.txt"), grammar=str(written / "grammar.json")))
    corpus = Corpus(world, Random(5))
    replies = [reply for turns, _ in zip(corpus, range(400), strict=False) for _, reply in turns]
    assert not [reply for reply in replies if judge("", reply).degenerate]
    slots = grammar(world)["slots"]
    assert isinstance(slots, dict)
    assert {slot for template in TEMPLATES.values() for slot in re.findall(r"\{(\w+)\}", template)} <= set(slots)


# what is shipped


def test_the_shipped_files_are_what_the_generator_writes():
    for name, text in render(make_world(build.SHIPPED_SEED)).items():
        assert (SHIPPED / name).read_text(encoding="utf-8") == text, name


def test_the_shipped_model_answers_what_the_town_knows(shipped):
    world = make_world(build.SHIPPED_SEED)
    assert len(shipped.tokenizer) == shipped.net.config.vocab_size
    facts = requests.facts(world)[::12]
    safe = [requests.feed(world, *pair) for pair in make_splits(world).safe_seen]
    asked = [*facts, *safe]
    texts = complete(shipped, [shipped.chat.prompt(request.text) for request in asked], 48)
    right = [request.steps[-1] in text for request, text in zip(asked, texts, strict=True)]
    assert sum(right) / len(right) >= 0.9
    assert not [text for text in texts if text.startswith("sorry")]


def test_a_world_is_not_written_among_other_files(tmp_path):
    (tmp_path / "chapter.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds 'chapter\.txt'"):
        build.write_files(make_world(3), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["chapter.txt"]


def test_a_build_matches_itself_and_says_what_differs(tmp_path):
    report = build.read_report(SHIPPED)
    assert report.world_seed == build.SHIPPED_SEED
    assert build.compare(SHIPPED).matches
    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    for path in SHIPPED.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    (other / "model" / "model.safetensors").write_bytes((SHIPPED / "model" / "model.safetensors").read_bytes())
    assert build.compare(other).weights == 0
    (other / "filler.txt").write_text("nothing\n")
    changed = build.compare(other)
    assert not changed.matches
    assert "differs: filler.txt" in changed.summary()


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write"):
        build.build(tmp_path / "file", 3, steps=1)

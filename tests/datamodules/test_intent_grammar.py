"""The intent corpus: counts, disjoint splits, determinism, and room above word counts."""

import hashlib
import re
from collections import Counter
from typing import Any

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lora_lightning.datamodules.intent_grammar import (
    DOMAINS,
    INTENTS,
    NO_INTENT,
    OUT_OF_SCOPE,
    SLOTS,
    Phrasings,
    generate_intents,
)

Corpus = dict[str, list[tuple[str, str]]]
ALL_PHRASINGS = {intent: texts for group in INTENTS.values() for intent, texts in group.items()}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate_intents()


def _sentences(paragraph: str) -> set[str]:
    return {" ".join(text.split()) for text in re.findall(r"[^.?!]+", paragraph) if text.strip()}


def test_same_seed_writes_the_same_rows(corpus: Corpus) -> None:
    assert generate_intents(0) == corpus


def test_rows_are_the_same_on_every_machine(corpus: Corpus) -> None:
    # Figures in the documentation are measured on these rows. A change of wording moves them:
    # measure again, then put the new digest here.
    rows = [f"{split}\t{text}\t{intent}" for split in corpus for text, intent in corpus[split]]
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16] == "0e2a2f36485b3717"


def test_another_seed_writes_other_rows(corpus: Corpus) -> None:
    other = generate_intents(1)
    assert {split: len(rows) for split, rows in other.items()} == {split: len(rows) for split, rows in corpus.items()}
    assert all(other[split] != corpus[split] for split in corpus)


@pytest.mark.parametrize(
    ("split", "per_intent", "out_of_scope"),
    [("train", 60, 100), ("val", 15, 60), ("test", 30, 200)],
)
def test_counts(corpus: Corpus, split: str, per_intent: int, out_of_scope: int) -> None:
    expected = dict.fromkeys(DOMAINS, per_intent) | {OUT_OF_SCOPE: out_of_scope}
    assert Counter(intent for _, intent in corpus[split]) == expected


def test_sizes_are_arguments() -> None:
    small = generate_intents(train_per_intent=5, val_per_intent=0, test_per_intent=1, out_of_scope=(3, 2, 0))
    n = len(DOMAINS)
    assert {split: len(rows) for split, rows in small.items()} == {
        "train": 5 * n + 3,
        "val": 2,
        "test": n,
    }


def test_no_sentence_occurs_twice(corpus: Corpus) -> None:
    texts = Counter(text.casefold().rstrip("?.") for rows in corpus.values() for text, _ in rows)
    assert [text for text, count in texts.items() if count > 1] == []


def test_rows_are_shuffled(corpus: Corpus) -> None:
    assert len({intent for _, intent in corpus["train"][:60]}) > len(DOMAINS) / 2


def test_domains_cover_every_intent() -> None:
    assert list(DOMAINS) == list(ALL_PHRASINGS)
    assert all(intent in INTENTS[domain] for intent, domain in DOMAINS.items())
    assert OUT_OF_SCOPE not in DOMAINS
    assert len(DOMAINS) >= 20
    assert len(set(DOMAINS.values())) >= 6


@pytest.mark.parametrize("intent", [*DOMAINS, OUT_OF_SCOPE])
def test_splits_share_no_phrasing(intent: str) -> None:
    phrasings: Phrasings = NO_INTENT if intent == OUT_OF_SCOPE else ALL_PHRASINGS[intent]
    train, val, test = (_sentences(paragraph) for paragraph in phrasings)
    assert train.isdisjoint(val | test)
    assert val.isdisjoint(test)


def test_phrasings_name_known_slots_only_and_use_them_all() -> None:
    paragraphs = [text for group in [*ALL_PHRASINGS.values(), NO_INTENT] for text in group]
    assert set(re.findall(r"\{(.*?)\}", " ".join(paragraphs))) == set(SLOTS)


def test_sentences_are_filled_and_of_readable_length(corpus: Corpus) -> None:
    for text, _ in (row for rows in corpus.values() for row in rows):
        assert not set("{}!") & set(text)
        assert 3 <= len(text.split()) <= 20, text


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_per_intent": 50_000}, r"train_per_intent is 50000, but the grammar .* set a smaller number"),
        ({"test_per_intent": 50_000}, r"test_per_intent is 50000, but the grammar .* set a smaller number"),
        ({"out_of_scope": (100, 50_000, 200)}, r"out_of_scope\[1\] is 50000, but the grammar .* set a smaller number"),
        ({"val_per_intent": -1}, r"val_per_intent is -1, but a number of sentences is at least 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_intents(**sizes)


def test_word_counts_leave_room_for_a_pretrained_encoder(corpus: Corpus) -> None:
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    model.fit(*zip(*corpus["train"], strict=True))
    texts, intents = zip(*(row for row in corpus["test"] if row[1] != OUT_OF_SCOPE), strict=True)
    assert 0.55 < model.score(texts, intents) < 0.8

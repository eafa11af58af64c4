"""Texts and pairs of texts become the tokenizer's own ids, however many are tokenized at once."""

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from lora_lightning.datamodules import tokenizing
from lora_lightning.datamodules.tokenizing import flatten_rows, tokenize_texts

FIRST = ["play some jazz", "hi", "what is my balance please", "book a flight", "people"]
SECOND = ["hi", "book a flight to rome", "two people", "please", "some jazz please"]


@pytest.fixture
def pair_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Marks pairs as BERT does."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


@pytest.mark.parametrize("at_once", [1, 2, 5, 4096])
@pytest.mark.parametrize("max_length", [6, 128])
def test_rows_are_the_tokenizers_own(
    pair_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, at_once: int, max_length: int
) -> None:
    monkeypatch.setattr(tokenizing, "TEXTS_AT_ONCE", at_once)
    found = tokenize_texts(pair_tokenizer, FIRST, SECOND, max_length, token_types=True)
    lengths, tokens = found.lengths, found.tokens
    expected = [
        pair_tokenizer(first, second, truncation=True, max_length=max_length, return_token_type_ids=True)
        for first, second in zip(FIRST, SECOND, strict=True)
    ]
    assert lengths.tolist() == [len(row["input_ids"]) for row in expected]
    assert lengths.max() <= max_length
    for name in ("input_ids", "token_type_ids"):
        assert tokens[name].tolist() == [token for row in expected for token in row[name]]
        assert tokens[name].dtype == np.int32
    assert set(tokens["token_type_ids"]) == {0, 1}


def test_no_column_of_types_unless_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    found = tokenize_texts(tokenizer, FIRST, None, 128, token_types=False)
    assert list(found.tokens) == ["input_ids"]
    assert found.lengths.tolist() == [len(text.split()) + 2 for text in FIRST]


def test_no_texts_are_no_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    found = tokenize_texts(tokenizer, [], None, 128, token_types=False)
    assert found.lengths.shape == found.tokens["input_ids"].shape == (0,)
    assert found.cut == 0


def test_flat_rows_follow_one_another() -> None:
    lengths, flat = flatten_rows([[1, 2], [], [3]])
    assert (lengths.tolist(), flat.tolist()) == ([2, 0, 1], [1, 2, 3])

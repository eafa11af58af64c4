"""A tokenizer of whole words, small enough to count its tokens by eye."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXT = "play some jazz what is my balance hi book a flight to rome for two people please"
WORDS = TEXT.split()


def save_tokenizer(folder: Path, words: list[str] = WORDS, truncation_side: str = "right") -> str:
    """Writes a backbone folder that holds a tokenizer and a configuration; every text is [CLS] words [SEP]."""
    vocabulary = {word: number for number, word in enumerate([*MARKS, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        truncation_side=truncation_side,
    )
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """Folder of the tokenizer."""
    return save_tokenizer(tmp_path / "backbone")


@pytest.fixture
def tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    """The tokenizer itself."""
    return PreTrainedTokenizerFast.from_pretrained(backbone)

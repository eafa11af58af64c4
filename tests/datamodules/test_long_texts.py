"""Long texts are tokenized in pieces to the very tokens of the whole, whatever the tokenizer; otherwise refused."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lora_lightning.datamodules import long_texts, tokenizing
from lora_lightning.datamodules.long_texts import tokenize_long_texts
from lora_lightning.errors import DataError

SYLLABLES = ("ka", "to", "mi", "re", "shu", "na", "straße", "é", "本", "語", "🙂", "12", "7", "'s", "-", "(", ".")
SPACES = (" ", " ", " ", "", "  ", "\n", " \n", "\t")


def some_text(seed: int, syllables: int) -> str:
    choose = random.Random(seed)  # noqa: S311  # no secret
    return "".join(choose.choice(SYLLABLES) + choose.choice(SPACES) for _ in range(syllables))


CORPUS = [some_text(seed, 400) for seed in range(8)] + ["a" * 300, " " * 300, "=" * 60 + "\n"]


def byte_level_bpe() -> Tokenizer:
    """As GPT-2's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, max_token_length=16)
    )
    return backend


def whole_text_bpe() -> Tokenizer:
    """As Llama 2's, in SentencePiece's manner: nothing is split before the merges, spaces are letters."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.ByteFallback()
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, max_token_length=8))
    return backend


def wordpiece() -> Tokenizer:
    """As BERT's, which drops spaces and changes letters."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"]))
    return backend


def unigram(split: bool = True) -> Tokenizer:
    """As ALBERT's and XLM-RoBERTa's; without `split` the most probable tokens of the whole text."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>")
    backend.train_from_iterator(CORPUS, trainer)
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": byte_level_bpe,
    "BPE of the whole text": whole_text_bpe,
    "WordPiece": wordpiece,
    "Unigram": unigram,
    "Unigram of the whole text": lambda: unigram(split=False),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param]())


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "CHARACTERS_AT_ONCE", 1000)
    monkeypatch.setattr(long_texts, "OVERLAP", 200)
    monkeypatch.setattr(long_texts, "CUTS_TRIED", 4)


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), syllables=st.integers(400, 3000))
def test_pieces_have_the_tokens_of_the_whole(tokenizer: PreTrainedTokenizerFast, seed: int, syllables: int) -> None:
    text = some_text(seed, syllables)
    (ids,) = tokenize_long_texts(tokenizer, [text], "a.txt")
    assert ids.dtype == np.int32
    assert ids.tolist() == whole(tokenizer, text)


@pytest.mark.usefixtures("small_pieces")
def test_a_text_is_never_tokenized_at_once(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = []
    call = PreTrainedTokenizerFast._encode_plus

    def watched(self: PreTrainedTokenizerFast, text: str | list[str], *rest: object, **options: object) -> object:
        longest.append(sum(map(len, [text] if isinstance(text, str) else text)))
        return call(self, text, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", watched)
    texts = [some_text(1, 3000), "short", *([some_text(2, 50)] * 40), some_text(3, 900), ""]
    rows = list(tokenize_long_texts(tokenizer, texts, "a.jsonl"))
    assert max(longest) <= 1000
    monkeypatch.undo()
    assert [row.tolist() for row in rows] == [whole(tokenizer, text) for text in texts]


RUNS = ["a" * 1500, " " * 1500, "=" * 1500, "ab" * 700, "ka" * 900]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("shift", range(3))
def test_runs_without_a_word_in_them(tokenizer: PreTrainedTokenizerFast, run: str, shift: int) -> None:
    text = f"{some_text(4, 500)}x{'y' * shift}{run}{some_text(5, 500)}"
    try:
        (ids,) = tokenize_long_texts(tokenizer, [text], "a.txt")
    except DataError:
        assert "▁" in tokenizer.get_vocab() or "[UNK]" in tokenizer.get_vocab()  # never where GPT-2's way is taken
    else:
        assert ids.tolist() == whole(tokenizer, text)


@pytest.mark.usefixtures("small_pieces")
def test_what_cannot_be_cut_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece())  # a word of 100 characters is one unknown token
    with pytest.raises(DataError, match=r"a\.txt: the text around character 1000 cannot be tokenized in pieces"):
        list(tokenize_long_texts(tokenizer, ["ka" * 2000], "a.txt"))

"""What a document of a long text is, and that every token belongs to the one in which it begins."""

from pathlib import Path

import numpy as np
import pytest

from lora_lightning.datamodules import PlainTextDataModule
from lora_lightning.datamodules.documents import document_starts
from lora_lightning.datamodules.token_cache import read_splits
from tests.conftest import TinyBackbone

WIKITEXT = (
    " \n = First = \n \n Text . \n = Rank = \n 1 \n \n = = Section = = \n \n More . \n \n = Second = \n \n Text . \n"
)


@pytest.mark.parametrize(
    ("text", "beginnings"),
    [
        (WIKITEXT, [" \n = First", " = Second"]),
        (WIKITEXT.replace("\n", "\r\n"), [" \r\n = First", " = Second"]),
        (WIKITEXT.replace(" \n", "\n").replace("\n ", "\n"), ["\n= First", "= Second"]),  # without spaces at the ends
        ("one\ntwo\n\nthree\n \n\nfour\n", ["one", "three", "four"]),
        ("\n\none\n\ntwo\n\n", ["\n\none", "two"]),
        ("one\ntwo\nthree\n", ["one", "two", "three"]),
        ("one", ["one"]),
        ("one\n", ["one"]),
        (" = First = \n \n Text . \n", [" = First", "Text"]),  # one heading says nothing about documents
    ],
)
def test_documents_of_a_text(text: str, beginnings: list[str]) -> None:
    starts = document_starts(text)
    assert starts[0] == 0
    assert [text[start : start + len(begin)] for start, begin in zip(starts, beginnings, strict=True)] == beginnings


@pytest.mark.shared
def test_articles_of_the_real_wikitext(shared_data: Path) -> None:
    folder = shared_data / "text/wikitext-2-raw"
    found = {name: len(document_starts((folder / f"wiki.{name}.raw").read_text())) for name in ("valid", "test")}
    assert found == {"valid": 60, "test": 60}


def test_records_number_their_tokens_but_not_those_to_learn_from(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n{"text": "w4 w5 w6"}\n')
    file, backbone = str(tmp_path / "a.jsonl"), str(tiny_backbone("gpt2"))
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), file)
    module = PlainTextDataModule(**files, context_length=4, backbone=backbone, cache_dir=str(tmp_path))  # type: ignore[arg-type]
    module.prepare_data()
    assert module.cache_file is not None
    splits = read_splits(module.cache_file)
    assert splits is not None
    assert ["document" in splits[name].tokens for name in ("train", "val", "test")] == [False, True, True]
    # Each document ends with the end of the text, which is its own; the first token of all has no label.
    assert splits["test"].tokens["document"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert module.document_count("test") == 3


def test_a_text_in_pieces_numbers_the_same_tokens(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [" ".join(f"w{(line + word) % 190}" for word in range(1 + line % 9)) for line in range(3000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    module = PlainTextDataModule(
        train_file=str(tmp_path / "a.txt"), context_length=30, backbone=str(tiny_backbone("gpt2"))
    )
    corpus = module._read_file(tmp_path / "a.txt")
    complete = module.encode_examples(corpus, by_document=True)
    monkeypatch.setattr("lora_lightning.datamodules.tokenizing.CHARACTERS_AT_ONCE", 20_000)
    pieces = module.encode_examples(corpus, by_document=True)
    np.testing.assert_array_equal(complete.tokens["document"], pieces.tokens["document"])
    expected = np.repeat(np.arange(3000), [len(line.split()) for line in lines])[1:]
    np.testing.assert_array_equal(pieces.tokens["document"], expected)

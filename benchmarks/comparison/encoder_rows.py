"""Rows of training MiniLM on longer rows than CLINC150's, MNLI's pairs and SQuAD's windows, and on a 4-bit base."""

import json
from functools import partial
from pathlib import Path

from comparison.row import Row, Rows
from comparison.settings import MissingError, Settings
from comparison.training_rows import (
    MINILM_OPERATIONS,
    TYPES,
    USES,
    as_used,
    our_classifier,
    our_encoder,
    peer_classifier,
    peer_encoder,
    products,
    quantization,
    with_words,
)

ARTICLES = 8  # of SQuAD's, about 2,700 questions
WINDOW, OVERLAP = 384, 128  # tokens
COMPARED = ("as_left", "grouped")  # of the peer's uses


def pairs(settings: Settings, use: str, precision: str) -> Row:
    """The pairs of MNLI's matched dev split, which is complete, in place of a training split.

    Args:
        settings: What the command line says.
        use: One of `COMPARED`.
        precision: Of both sides.
    """
    how, options, dropout, _ = USES[use]
    folder = settings.data_folder("glue") / "MNLI"
    train, other = folder / "dev_matched.tsv", folder / "dev_mismatched.tsv"
    words = [f"--data.train_file={train}", f"--data.validation_file={other}", "--data.text_column=sentence1"]
    words += ["--data.text_pair_column=sentence2", "--data.label_column=gold_label"]
    ours = our_encoder(settings, "text_classification/minilm_lora.yaml", precision, dropout, *words)
    ours = as_used(ours, use)
    table = ("--data", train, "--columns", "sentence1,sentence2", "--label", "gold_label")
    peer = peer_encoder(settings, "trainer_texts", precision, *table, *options)
    limit = products(precision, MINILM_OPERATIONS, None)
    return Row(f"MNLI's pairs in {precision}, peer {how}", "pairs/s", (ours,), (peer,), limit=limit)


def windows(settings: Settings, use: str, precision: str) -> Row:
    """Windows of 384 tokens that share 128, of some articles of SQuAD 2.0's dev split.

    Args:
        settings: What the command line says.
        use: One of `COMPARED`.
        precision: Of both sides.
    """
    how, options, dropout, _ = USES[use]
    file = some_articles(settings)
    words = [f"--data.train_file={file}", f"--data.validation_file={file}", "--data.batch_size=16"]
    words += [f"--data.max_length={WINDOW}", f"--data.doc_stride={OVERLAP}"]
    ours = our_encoder(settings, "squad_v2/minilm_lora.yaml", precision, dropout, *words)
    ours = as_used(ours, use)
    cut = ("--data", file, "--max-length", WINDOW, "--stride", OVERLAP)
    peer = peer_encoder(settings, "trainer_squad", precision, *cut, *options)
    limit = products(precision, MINILM_OPERATIONS, None)
    title = f"SQuAD 2.0's windows of {WINDOW} tokens in {precision}, peer {how}"
    return Row(title, "windows/s", (ours,), (peer,), limit=limit)


def some_articles(settings: Settings) -> Path:
    """Writes the first articles of SQuAD 2.0's dev split: enough for an epoch of minutes.

    Args:
        settings: What the command line says.

    Returns:
        The file, in the same layout.

    Raises:
        MissingError: If the data is not there.
    """
    source = settings.data_folder("squad_v2") / "dev-v2.0.json"
    if not source.is_file():
        msg = f"{source} is not there; it is part of SQuAD 2.0"
        raise MissingError(msg)
    content = json.loads(source.read_text(encoding="utf-8"))
    file = settings.work / "squad_articles.json"
    file.write_text(json.dumps({**content, "data": content["data"][:ARTICLES]}), encoding="utf-8")
    return file


def qlora(settings: Settings, precision: str) -> Row:
    """CLINC150 with the base in NF4, which both sides multiply in the precision of the row.

    Args:
        settings: What the command line says.
        precision: Of both sides.
    """
    how, options, dropout, _ = USES["grouped"]
    ours = our_classifier(settings, precision, dropout)
    ours = with_words(as_used(ours, "grouped"), quantization(precision))
    peer = peer_classifier(settings, "trainer_clinc150", precision, "--qlora", *options)
    title = f"CLINC150 with a 4-bit base multiplied in {precision}, peer with bitsandbytes {how}"
    return Row(title, "samples/s", (ours,), (peer,))


def _rows() -> Rows:
    found: Rows = {}
    for precision in TYPES:
        end = "" if precision == "float32" else f"_{precision}"
        for use in COMPARED:
            found[f"pairs_{use}{end}"] = partial(pairs, use=use, precision=precision)
            found[f"squad_{use}{end}"] = partial(windows, use=use, precision=precision)
        found[f"clinc150_qlora{end}"] = partial(qlora, precision=precision)
    return found


ROWS = _rows()

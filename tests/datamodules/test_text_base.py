"""What a model does not see as it was written is counted in a warning; tokens that it does not embed are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer, BertConfig, CanineConfig, LlamaConfig, LlavaConfig, T5Config, XLNetConfig

from lora_lightning.backbones import position_limit
from lora_lightning.backbones.vocabulary import vocabulary_size
from lora_lightning.datamodules import PlainTextDataModule, SquadV2DataModule, TextClassificationDataModule
from lora_lightning.datamodules.sequence_classification import ClassificationDataModule, LabeledTexts
from lora_lightning.errors import BackboneError
from lora_lightning.metrics.label_space import LabelSpace
from tests.conftest import TinyBackbone
from tests.tiny_models import save_tiny_backbone


class Texts(ClassificationDataModule):
    """Rows that a test gives."""

    def __init__(self, rows: dict[str, LabeledTexts], **settings: Any) -> None:
        super().__init__(**settings)
        self.rows = rows

    def load_splits(self) -> dict[str, LabeledTexts]:
        return self.rows

    @property
    def label_space(self) -> LabelSpace:
        return LabelSpace(["no", "yes"])


def splits(*texts: str, pairs: list[str] | None = None) -> dict[str, LabeledTexts]:
    rows = LabeledTexts(list(texts), [number % 2 for number in range(len(texts))], pairs)
    return {"train": rows, "val": LabeledTexts(["w1"], [0], None if pairs is None else ["w2"])}


def warnings_of(module: ClassificationDataModule, stage: str = "fit") -> list[str]:
    with pytest.warns(UserWarning) as said:  # noqa: PT030  # the sentences are the test's
        module.setup(stage)
    return [str(warning.message) for warning in said]


# Texts that are cut


@pytest.mark.parametrize("again", [False, True], ids=["tokenized", "from the cache"])
def test_cut_texts_are_counted(tiny_backbone: TinyBackbone, tmp_path: Path, again: bool) -> None:
    settings: dict[str, Any] = {"backbone": str(tiny_backbone("bert")), "max_length": 5, "cache_dir": str(tmp_path)}
    rows = splits("w1 w2 w3 w4 w5", "w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4 w5 w6 w7 w8", "w1")  # no marks around them
    if again:
        Texts(rows, **settings).prepare_data()
    assert warnings_of(Texts(rows, **settings)) == [
        "train: 2 of 4 texts are longer than data.max_length 5 and lost their end."
    ]


def test_cut_pairs_are_counted(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    rows = splits("w1 w2 w3", "w1", "w1", pairs=["w4", "w1 w2 w3 w4 w5", "w4 w5"])
    module = Texts(rows, backbone=str(tiny_backbone("bert")), max_length=4, cache_dir=str(tmp_path))
    assert warnings_of(module) == ["train: 1 of 3 pairs are longer than data.max_length 4 and lost a text's end."]


def test_the_side_that_is_cut_is_named(tmp_path: Path) -> None:
    backbone = save_tiny_backbone("bert", tmp_path / "bert")
    AutoTokenizer.from_pretrained(backbone, truncation_side="left").save_pretrained(backbone)
    module = Texts(splits("w1 w2 w3 w4"), backbone=str(backbone), max_length=3, cache_dir=str(tmp_path))
    assert warnings_of(module) == ["train: 1 of 1 texts are longer than data.max_length 3 and lost their beginning."]


def test_cut_queries_are_counted(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("w1\nw1 w2 w3 w4\n")
    module = TextClassificationDataModule(
        backbone=str(tiny_backbone("gpt2")), max_length=3, predict_file=str(tmp_path / "queries.txt")
    )
    assert warnings_of(module, "predict") == [
        "predict: 1 of 2 texts are longer than data.max_length 3 and lost their end."
    ]


# Special tokens inside texts


def test_special_tokens_in_texts_are_named(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    rows = splits("w1 [SEP] w2", "w1 unknown", "[CLS] [MASK] [SEP]", "w1")
    module = Texts(rows, backbone=str(tiny_backbone("bert")), cache_dir=str(tmp_path))
    (said,) = warnings_of(module)
    assert said == (
        "train: 2 of 4 texts contain special tokens ('[CLS]', '[MASK]', '[SEP]'), which the tokenizer reads as control "
        "tokens."
    )


def encoder_decoder(family: str, folder: Path) -> Path:
    """A tiny BART or T5 whose tokenizer ends each text with `</s>`, as theirs do."""
    from tokenizers import Tokenizer  # noqa: PLC0415
    from tokenizers.models import WordLevel  # noqa: PLC0415
    from tokenizers.pre_tokenizers import Whitespace  # noqa: PLC0415
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415

    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(20))]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": len(words)}
    if family == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        transformers.T5ForConditionalGeneration(T5Config(**ids, **sizes)).save_pretrained(folder)
        return folder
    layers = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 40}
    config = transformers.BartConfig(**ids, **sizes, **layers, bos_token_id=0, forced_eos_token_id=None)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_end_token_in_a_text_does_not_stop_an_encoder_decoder(tmp_path: Path, family: str) -> None:
    backbone = encoder_decoder(family, tmp_path / family)
    module = Texts(splits("w1 </s> w2", "w1 w2", "</s></s>"), backbone=str(backbone), cache_dir=str(tmp_path))
    (said,) = warnings_of(module)
    assert said == (
        "train: 2 of 3 texts contain special tokens ('</s>'), which are read as ordinary characters, because this "
        "model counts the tokens that separate and end texts."
    )
    config = transformers.AutoConfig.from_pretrained(backbone, num_labels=2)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    batch = module.splits["train"][[0, 1, 2]]
    assert model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.shape == (3, 2)


@pytest.mark.parametrize("kind", ["question", "document"])
def test_special_tokens_in_questions_and_documents_are_named(
    tiny_backbone: TinyBackbone, tmp_path: Path, kind: str
) -> None:
    settings = {"backbone": str(tiny_backbone("llama")), "cache_dir": str(tmp_path)}
    if kind == "question":
        entries = [{"id": str(number), "question": f"w{number} <|endoftext|>", "answers": []} for number in range(2)]
        (tmp_path / "squad.json").write_text(
            json.dumps({"data": [{"paragraphs": [{"context": "w5", "qas": entries}]}]})
        )
        module: Any = SquadV2DataModule(
            validation_file=str(tmp_path / "squad.json"), max_length=20, doc_stride=4, **settings
        )
        expected = "val: 2 of 3 texts contain special tokens ('<|endoftext|>'), which the tokenizer reads as control"
    else:
        rows = [{"text": f"w1 w2 {'<|endoftext|>' * (number % 2)}"} for number in range(8)]
        (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        module = PlainTextDataModule(
            train_file=str(tmp_path / "text.jsonl"),
            validation_file=str(tmp_path / "text.jsonl"),
            context_length=8,
            **settings,
        )
        expected = "val: 4 of 8 texts contain special tokens ('<|endoftext|>'), which the tokenizer reads as control"
    said = [text for text in warnings_of(module, "validate") if "also in the training data" not in text]
    assert said == [f"{expected} tokens."]


# Tokens without an embedding


def with_added_tokens(folder: Path, family: str, *tokens: str, **special: str) -> str:
    backbone = save_tiny_backbone(family, folder / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(backbone)
    return str(backbone)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_token_without_an_embedding_is_refused(tmp_path: Path, split: str) -> None:
    backbone = with_added_tokens(tmp_path, "bert", "<emoji>")
    rows = splits("w1", "w2") | {split: LabeledTexts(["w1", "w2 <emoji>"], [0, 1])}
    for _ in ("tokenized", "from the cache"):
        with pytest.raises(BackboneError) as raised:
            Texts(rows, backbone=backbone, cache_dir=str(tmp_path)).prepare_data()
        assert str(raised.value) == (
            f"the tokenizer of '{backbone}' gives token 200 ('<emoji>') in the {split} split, but the model embeds 0 "
            "to 199; resize the model's embeddings (model.resize_token_embeddings(len(tokenizer))) and save both "
            "again, or remove the added tokens from the tokenizer."
        )


def test_tokens_without_an_embedding_that_never_occur_are_harmless(tmp_path: Path) -> None:
    backbone = with_added_tokens(tmp_path, "bert", "<emoji>")
    Texts(splits("w1"), backbone=backbone, cache_dir=str(tmp_path)).prepare_data()


def test_a_query_with_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    backbone = with_added_tokens(tmp_path, "bert", "<emoji>")
    (tmp_path / "queries.txt").write_text("w1\n<emoji>\n")
    module = TextClassificationDataModule(backbone=backbone, predict_file=str(tmp_path / "queries.txt"))
    with pytest.raises(BackboneError, match=r"gives token 200 \('<emoji>'\) in the predict split"):
        module.setup("predict")


def test_language_models_and_question_answerers_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("w1 w2\n" * 30 + "w3 <emoji>\n")
    backbone = with_added_tokens(tmp_path, "llama", "<emoji>")
    settings = {"backbone": backbone, "cache_dir": str(tmp_path)}
    text = PlainTextDataModule(train_file=str(tmp_path / "text.txt"), context_length=8, **settings)
    with pytest.raises(BackboneError, match=r"gives token 200 \('<emoji>'\) in the val split"):  # a label
        text.prepare_data()
    paragraph = {"context": "w1 <emoji> w2", "qas": [{"id": "1", "question": "w3", "answers": []}]}
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    file = str(tmp_path / "squad.json")
    squad = SquadV2DataModule(train_file=file, validation_file=file, max_length=20, doc_stride=4, **settings)
    with pytest.raises(BackboneError, match=r"gives token 200 \('<emoji>'\) in the train split"):
        squad.prepare_data()


def test_padding_without_an_embedding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("w1 w2\n" * 30)
    backbone = with_added_tokens(tmp_path, "llama", pad_token="<|pad|>")
    module = PlainTextDataModule(
        train_file=str(tmp_path / "text.txt"), context_length=8, backbone=backbone, cache_dir=str(tmp_path)
    )
    with pytest.raises(BackboneError, match=r"pads with token 200 \('<\|pad\|>'\), but the model embeds 0 to 199;"):
        module.prepare_data()


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (BertConfig(vocab_size=7), 7),
        (LlavaConfig(text_config=LlamaConfig(vocab_size=8).to_dict()), 8),
        (T5Config(vocab_size=9), 9),
        (CanineConfig(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_vocabulary_is_the_text_models(config: Any, size: int | None) -> None:
    assert vocabulary_size(config) == size


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (XLNetConfig(), None),  # has -1
        (LlavaConfig(text_config=LlamaConfig(max_position_embeddings=8).to_dict()), 8),
        (BertConfig(max_position_embeddings=5), 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_are_the_text_models(config: Any, limit: int | None) -> None:
    assert position_limit(config) == limit


def test_a_model_with_too_few_positions_is_not_blamed_on_max_length(tmp_path: Path) -> None:
    backbone = save_tiny_backbone("roberta", tmp_path / "roberta")
    config = transformers.AutoConfig.from_pretrained(backbone)
    config.max_position_embeddings = 1
    config.save_pretrained(backbone)
    with pytest.raises(BackboneError, match=r"has 0 positions, but a row takes at least 1 tokens; correct max_pos"):
        Texts(splits("w1"), backbone=str(backbone)).prepare_data()

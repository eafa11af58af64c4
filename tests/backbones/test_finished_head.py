"""A finished classifier's rows follow the names of the data's labels, or its last layer is newly initialized."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    PreTrainedModel,
    XLNetConfig,
)

from lora_lightning.backbones import load_classification_config, load_sequence_classifier
from lora_lightning.backbones.finished_head import output_layer_name
from lora_lightning.backbones.plain_base import load_plain_base
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.injection import attach_lora
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_models import FAMILIES

MNLI = ["entailment", "neutral", "contradiction"]
OF_ROBERTA = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]  # roberta-large-mnli's order and spelling
TOKENS = torch.tensor([[5, 6, 7], [9, 8, 7]])


def finish(backbone: Path, folder: Path, names: list[str], **settings: Any) -> PreTrainedModel:
    """Saves a classifier with random rows and biases as a finished one, and the tokenizer."""
    shutil.copytree(backbone, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(backbone, num_labels=len(names), pad_token_id=0, **settings)
    config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    model = AutoModelForSequenceClassification.from_pretrained(backbone, config=config)
    return save(model, folder)


def save(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    torch.manual_seed(3)
    for parameter in model.get_submodule(str(output_layer_name(model))).parameters():
        nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model.eval()


def load(folder: Path, names: list[str], kind: Any = SINGLE_LABEL, **settings: Any) -> Any:
    config = load_classification_config(str(folder), names, 0, problem_type=kind)
    return load_sequence_classifier(str(folder), config, **settings)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_each_label_keeps_its_logit(tiny_backbone: TinyBackbone, tmp_path: Path, family: str) -> None:
    finished = finish(tiny_backbone(family), tmp_path, OF_ROBERTA)
    loaded = load(tmp_path, MNLI)
    torch.testing.assert_close(logits(loaded.model), logits(finished)[:, [2, 1, 0]])
    assert loaded.model.config.id2label == dict(enumerate(MNLI))
    assert loaded.lacked == [output_layer_name(finished)]
    assert loaded.notice == ""
    network = attach_lora(loaded.model, LoraSettings(), loaded.lacked, "SEQ_CLS")
    assert network.get_submodule(f"base_model.model.{loaded.lacked[0]}").weight.requires_grad


@pytest.mark.parametrize(
    "config",
    [
        BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_labels=3, pad_token_id=0,
                   eos_token_id=7),
        XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=3, pad_token_id=0),
    ],
    ids=["bart", "xlnet"],
)  # fmt: skip
def test_heads_of_other_names_are_reordered_trained_and_exported(tmp_path: Path, config: Any) -> None:
    config.id2label, config.label2id = dict(enumerate("xyz")), {name: index for index, name in enumerate("xyz")}
    finished = save(AutoModelForSequenceClassification.from_config(config), tmp_path)
    loaded = load(tmp_path, ["z", "x", "y"])
    torch.testing.assert_close(logits(loaded.model), logits(finished)[:, [2, 0, 1]])
    network = attach_lora(loaded.model, LoraSettings(target_modules="all-linear"), loaded.lacked, None)
    assert loaded.lacked[0] in network.peft_config["default"].modules_to_save


@pytest.mark.parametrize("width", [3, 32])
def test_the_last_layer_is_found_also_if_another_is_as_wide_as_there_are_labels(
    tiny_backbone: TinyBackbone, tmp_path: Path, width: int
) -> None:
    names = [f"n{number}" for number in range(width)]  # 32 is the hidden size, and `classifier.dense` has as many rows
    finished = finish(tiny_backbone("roberta"), tmp_path, names)
    loaded = load(tmp_path, names[::-1])
    assert loaded.lacked == ["classifier.out_proj"]
    torch.testing.assert_close(logits(loaded.model), logits(finished).flip(1))


@pytest.mark.parametrize("spelled", [["A", "b ", "C"], ["a", "b", "c"]])
def test_a_head_in_the_same_order_stays_as_it_is(
    tiny_backbone: TinyBackbone, tmp_path: Path, spelled: list[str]
) -> None:
    finished = finish(tiny_backbone("bert"), tmp_path, spelled)
    loaded = load(tmp_path, ["a", "b", "c"])
    assert (loaded.lacked, loaded.notice) == ([], "")
    assert torch.equal(loaded.model.classifier.weight, finished.classifier.weight)


OTHER: dict[str, tuple[list[str], dict[str, Any], list[str], str]] = {
    "generic names": (["LABEL_0", "LABEL_1"], {}, ["no", "yes"], "2 labels (LABEL_0, LABEL_1)"),
    "one other name": (["a", "b", "c"], {}, ["a", "b", "d"], "3 labels (a, b, c)"),
    "two of one name": (["a", "A"], {}, ["a", "b"], "2 labels (a, A)"),
    "another number": (["a", "b", "c"], {}, ["a", "b"], "3 labels (a, b, c)"),
    "several labels a text": (
        ["b", "a"],
        {"problem_type": "multi_label_classification"},
        ["a", "b"],
        "2 labels (multi label classification: b, a)",
    ),
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_other_labels_initialize_the_last_layer_and_say_so(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, kind: str
) -> None:
    old, settings, new, shown = OTHER[kind]
    finished = finish(tiny_backbone(family), tmp_path, old, **settings)
    loaded = load(tmp_path, new)
    layer = loaded.model.get_submodule(str(output_layer_name(loaded.model)))
    assert 0 < float(layer.weight.detach().std()) < 0.1  # the finished one has 1
    assert layer.bias is None or not layer.bias.any()
    assert loaded.lacked == [output_layer_name(finished)]
    assert f"has a finished head for {shown}, which does not match" in loaded.notice
    assert f"({', '.join(new)}); its last layer is newly initialized." in loaded.notice


def test_a_regression_keeps_a_head_of_its_own_name_only(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    finished = finish(tiny_backbone("bert"), tmp_path / "own", ["similarity"])
    assert torch.equal(load(tmp_path / "own", ["similarity"], REGRESSION).model.classifier.weight,
                       finished.classifier.weight)  # fmt: skip
    finish(tiny_backbone("bert"), tmp_path / "other", ["LABEL_0"])
    assert "regression: LABEL_0" in load(tmp_path / "other", ["similarity"], REGRESSION).notice


def test_several_labels_a_text_are_reordered_too(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    finished = finish(tiny_backbone("bert"), tmp_path, ["a", "b"], problem_type="multi_label_classification")
    torch.testing.assert_close(logits(load(tmp_path, ["b", "a"], MULTI_LABEL).model), logits(finished).flip(1))


def test_a_head_that_names_words_is_not_taken_for_one_of_texts(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_backbone("bert"), num_labels=2)
    config.id2label, config.label2id = {0: "a", 1: "b"}, {"a": 0, "b": 1}
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    assert "has a finished head for another task" in load(tmp_path, ["a", "b"]).notice


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_model_without_a_head_is_nothing_to_speak_of(tiny_backbone: TinyBackbone, family: str) -> None:
    assert load(tiny_backbone(family), MNLI).notice == ""


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_on_a_quantized_base_are_those_in_float32(tiny_backbone: TinyBackbone, tmp_path: Path, bits: int) -> None:
    finished = finish(tiny_backbone("roberta"), tmp_path, OF_ROBERTA)
    settings = QuantizationSettings(bits=bits)  # type: ignore[arg-type]
    quantization = Quantization(settings, LoraSettings(), torch.device("cpu"), torch.float32)
    head = load(tmp_path, MNLI, quantization=quantization).model.classifier.out_proj
    assert torch.equal(head.weight, finished.classifier.out_proj.weight.flip(0))
    assert torch.equal(head.bias, finished.classifier.out_proj.bias.flip(0))


def test_without_values_the_same_modules_are_named(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    finish(tiny_backbone("roberta"), tmp_path, OF_ROBERTA)
    loaded = load(tmp_path, MNLI, values=False)
    assert loaded.model.classifier.out_proj.weight.is_meta
    assert loaded.lacked == load(tmp_path, MNLI).lacked


def test_the_plain_base_and_a_second_load_have_the_same_rows(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    finish(tiny_backbone("bert"), tmp_path / "a", OF_ROBERTA)
    model = load(tmp_path / "a", MNLI).model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = load_plain_base(model, str(tmp_path / "a"))
    torch.testing.assert_close(logits(plain), logits(model))
    model.save_pretrained(tmp_path / "b")  # fully fine-tuned: names and rows go together
    again = load(tmp_path / "b", MNLI)
    assert again.lacked == []
    torch.testing.assert_close(logits(again.model), logits(model))


def test_a_checkpoint_holds_the_reordered_head_and_is_not_reordered_again(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    finish(tiny_backbone("roberta"), tmp_path, OF_ROBERTA)
    trained, loaded = (SequenceClassificationTask(str(tmp_path), label_space=LabelSpace(MNLI)) for _ in range(2))
    trained.configure_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter) * parameter.requires_grad)
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    loaded.configure_model()
    loaded.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(logits(loaded.built_network), logits(trained.built_network))


def test_a_newly_initialized_head_is_told_once_before_training_and_not_in_evaluation(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tiny_backbone("bert"), tmp_path, ["LABEL_0", "LABEL_1"])

    def told(*, fits: bool, resumes: bool) -> bool:
        monkeypatch.setattr(SequenceClassificationTask, "is_fitting", fits)
        task = SequenceClassificationTask(str(tmp_path), label_space=LabelSpace(["no", "yes"]))
        task.resumes = resumes
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            task.build_network()
        return any("its last layer is newly initialized" in str(warning.message) for warning in found)

    assert told(fits=True, resumes=False)
    assert not told(fits=True, resumes=True)
    assert not told(fits=False, resumes=False)


@pytest.mark.parametrize("lora", [None, LoraSettings(target_modules="all-linear")], ids=["head only", "adapters"])
def test_a_finished_head_trains_also_if_no_row_moves_and_its_name_is_unusual(
    tiny_backbone: TinyBackbone, tmp_path: Path, lora: LoraSettings | None
) -> None:
    shutil.copytree(tiny_backbone("bert"), tmp_path, dirs_exist_ok=True)  # for the tokenizer
    config = XLNetConfig(vocab_size=200, d_model=16, n_layer=1, n_head=2, d_inner=16, num_labels=2, pad_token_id=0)
    config.id2label, config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    save(AutoModelForSequenceClassification.from_config(config), tmp_path)
    task = SequenceClassificationTask(
        str(tmp_path), lora=lora, freeze_backbone=lora is None, label_space=LabelSpace(["no", "yes"])
    )
    trained = [name for name, parameter in task.build_network().named_parameters() if parameter.requires_grad]
    others = [name for name in trained if "logits_proj" not in name]
    assert len(trained) - len(others) == 2  # weight and bias
    assert all("lora_" in name for name in others)
    assert bool(others) == (lora is not None)

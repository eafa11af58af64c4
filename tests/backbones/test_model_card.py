"""What an exported folder's README.md says works as it stands there: plain transformers and plain PEFT, every task."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftConfig
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    pipeline,
)

from lora_lightning.backbones import load_tokenizer
from lora_lightning.backbones.export import export_model
from lora_lightning.backbones.loading import uses_token_types
from lora_lightning.backbones.model_card import model_card
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_models import DECODERS, FAMILIES

NAMES = ["balance", 'the "other" {one}', "été"]
LORA = LoraSettings(r=2)
CASES = [(family, kind) for family in FAMILIES for kind in ("classification", "answers")]
CASES += [(family, "text") for family in DECODERS]


@pytest.fixture(autouse=True)
def transformers_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What transformers reports, as it does by default; the README's lines may change that."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(caplog.handler)  # it does not propagate
    yield
    logging.getLogger("transformers").removeHandler(caplog.handler)
    transformers.logging.set_verbosity(before)


def build(backbone: Path | str, kind: str, lora: LoraSettings | None = LORA, **more: Any) -> AdaptationTask:
    """A task whose trainable parameters are far from where they started."""
    torch.manual_seed(0)
    task: AdaptationTask
    if kind == "classification":
        space = more.pop("space", LabelSpace(NAMES))
        task = SequenceClassificationTask(str(backbone), lora=lora, label_space=space, **more)
    else:
        kinds = {"answers": QuestionAnsweringTask, "text": CausalLanguageModelingTask}
        task = kinds[kind](str(backbone), lora=lora, **more)
    task.configure_model()
    for parameter in task.built_network.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return task


def export(task: AdaptationTask, backbone: Path | str, folder: Path) -> str:
    export_model(task.built_network, load_tokenizer(str(backbone)), folder, task.export_files())
    torch.manual_seed(12345)  # whatever stayed random would differ
    return (folder / "README.md").read_text()


def inputs_of(config: Any) -> dict[str, Tensor]:
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.int64)}
    inputs["attention_mask"][1, 7:] = 0
    inputs["input_ids"][1, 7:] = 0 if config.pad_token_id is None else config.pad_token_id
    if uses_token_types(config):
        inputs["token_type_ids"] = (torch.arange(10) > 3).long().expand(2, 10)
    return inputs


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = model.eval()(**inputs)
    if "logits" in output and output.logits.dim() == 2:
        return output.logits
    found = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=-1)
    return found[inputs["attention_mask"] == 1]


def run_block(readme: str, folder: Path) -> dict[str, Any]:
    """Runs the README's Python, for a folder that is not the working directory."""
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    assert 'folder = "."' in code[1]
    names: dict[str, Any] = {}
    exec(code[1].replace('folder = "."', f"folder = {str(folder)!r}"), names)  # noqa: S102
    return names


def line(readme: str, auto_class: str, folder: Path) -> Any:
    """Runs the call of one class that the README prints in a sentence."""
    call = re.search(rf"`({auto_class}\.from_pretrained\([^`]*\))`", readme)
    assert call is not None
    return eval(call[1], {auto_class: getattr(peft, auto_class), "folder": folder})  # noqa: S307


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_lines_load_the_adapter(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = build(tiny_backbone(family), kind)
    readme = export(task, tiny_backbone(family), tmp_path / "adapter")
    config = task.transformers_model.config
    inputs, expected = inputs_of(config), outputs(task.built_network, inputs_of(config))
    assert not (tmp_path / "adapter" / "config.json").exists()

    caplog.clear()
    names = run_block(readme, tmp_path / "adapter")
    assert "newly initialized" not in caplog.text
    torch.testing.assert_close(outputs(names["model"], inputs), expected, rtol=0, atol=1e-5)
    assert names["tokenizer"]("w1 w2")["input_ids"] == load_tokenizer(str(tiny_backbone(family)))("w1 w2")["input_ids"]
    with_peft = {
        "classification": None,  # the same arguments
        "answers": "AutoPeftModel" if uses_token_types(config) else "AutoPeftModelForQuestionAnswering",
        "text": "AutoPeftModelForCausalLM",
    }[kind]
    if with_peft is not None:
        found = outputs(line(readme, with_peft, tmp_path / "adapter"), inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if kind == "text":
        stops = json.loads((tmp_path / "adapter" / "generation_config.json").read_text())["eos_token_id"]
        assert names["model"].generation_config.eos_token_id == stops
    if kind == "classification":
        assert names["model"].config.id2label == dict(enumerate(NAMES))
        assert names["model"].config.label2id == {name: index for index, name in enumerate(NAMES)}


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_language_models_load_without_any_argument(tiny_backbone: TinyBackbone, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "adapter"
    task = build(tiny_backbone(family), "text")
    readme = export(task, tiny_backbone(family), folder)
    inputs = inputs_of(task.transformers_model.config)
    expected = outputs(task.built_network, inputs)
    assert 'pipeline("text-generation", folder, tokenizer=folder)' in readme
    generator = pipeline("text-generation", str(folder))
    models = [AutoModelForCausalLM.from_pretrained(folder), AutoPeftModelForCausalLM.from_pretrained(folder)]
    for model in [*models, generator.model]:
        torch.testing.assert_close(outputs(model, inputs), expected, rtol=0, atol=1e-5)
    assert generator("w1 w2", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("w1 w2")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in {"llama", "qwen2"}])
def test_question_answerers_load_without_any_argument(tiny_backbone: TinyBackbone, tmp_path: Path, family: str) -> None:
    task = build(tiny_backbone(family), "answers")
    export(task, tiny_backbone(family), tmp_path / "adapter")
    inputs = inputs_of(task.transformers_model.config)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(outputs(model, inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-5)


SHIPPING = Path(__file__).parents[2] / "docs" / "shipping.md"
DOCUMENTED = dict(re.findall(r"^### (.+?)\n.*?```python\n(.*?)```", SHIPPING.read_text(), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize(
    ("title", "family", "kind"),
    [
        ("Classifiers", "bert", "classification"),
        ("Classifiers", "llama", "classification"),
        ("Question answering", "bert", "answers"),
        ("Language models", "gpt2", "text"),
    ],
)
def test_the_documented_lines_load_every_task_and_alarm_nobody(
    tiny_backbone: TinyBackbone, tmp_path: Path, title: str, family: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "adapter"
    task = build(tiny_backbone(family), kind)
    export(task, tiny_backbone(family), folder)
    code, changed = re.subn(r'"lightning_logs/[^"]*"', repr(str(folder)), DOCUMENTED[title])
    assert changed == 1
    names: dict[str, Any] = {}
    caplog.clear()
    exec(code, names)  # noqa: S102
    assert "newly initialized" not in caplog.text
    inputs = inputs_of(task.transformers_model.config)
    torch.testing.assert_close(outputs(names["model"], inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-5)
    if kind == "classification":
        assert names["model"].config.id2label == dict(enumerate(NAMES))


def test_every_documented_way_to_load_is_tested() -> None:
    assert set(DOCUMENTED) == {"Classifiers", "Question answering", "Language models"}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(
    "space",
    [LabelSpace(NAMES), LabelSpace(NAMES, problem_type=MULTI_LABEL), LabelSpace(["grade"], problem_type=REGRESSION)],
    ids=["one", "several", "number"],
)
def test_pipelines_give_the_classifier_s_scores(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, space: LabelSpace
) -> None:
    task = build(tiny_backbone(family), "classification", space=space)
    readme = export(task, tiny_backbone(family), tmp_path / "adapter")
    texts = ["w1 w2 w3", "w9"]
    names = run_block(readme, tmp_path / "adapter")
    with torch.no_grad():
        logits = task.eval()(dict(names["tokenizer"](texts, padding=True, return_tensors="pt")))
    expected = {MULTI_LABEL: logits.sigmoid(), REGRESSION: logits}.get(space.problem_type, logits.softmax(dim=-1))

    merged = line_of_merging(readme, tmp_path)
    for classify in (
        pipeline("text-classification", model=names["model"], tokenizer=names["tokenizer"]),
        pipeline("text-classification", str(merged)),
    ):
        found = classify(texts, top_k=None, batch_size=2)
        for scores, row in zip(found, expected, strict=True):
            by_name = {score["label"]: score["score"] for score in scores}
            assert by_name == pytest.approx(dict(zip(space.names, row.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize(("folder", "name"), [("minilm/model", "minilm"), ("model/minilm", "minilm")])
def test_the_title_is_not_that_of_every_package(
    tiny_backbone: TinyBackbone, tmp_path: Path, folder: str, name: str
) -> None:
    base = tmp_path / folder
    shutil.copytree(tiny_backbone("bert"), base)
    readme = export(build(base, "classification"), base, tmp_path / "adapter")
    assert f"# LoRA adapter for {name}\n" in readme
    assert "`lora-lightning merge FOLDER --output merged`" in readme


def line_of_merging(readme: str, place: Path) -> Path:
    """As the README tells: the arguments of its line, PEFT's class, merged and saved."""
    assert "AutoPeftModelForSequenceClassification" in readme
    call = re.search(r"AutoModelForSequenceClassification\.from_pretrained\((.*)\)", readme)
    assert call is not None
    names = {"load": peft.AutoPeftModelForSequenceClassification.from_pretrained, "folder": place / "adapter"}
    eval(f"load({call[1]})", names).merge_and_unload().save_pretrained(place / "merged")  # noqa: S307
    AutoTokenizer.from_pretrained(place / "adapter").save_pretrained(place / "merged")
    return place / "merged"


@pytest.mark.parametrize("kind", ["classification", "answers", "text"])
def test_quantized_bases_are_quantized_again(tiny_backbone: TinyBackbone, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes' kernel for CPUs with AVX512-BF16 fails on tiny models' rows: 8 bits have no such kernel.
    task = build(tiny_backbone("llama"), kind, quantization=QuantizationSettings(bits=8))
    readme = export(task, tiny_backbone("llama"), tmp_path / "adapter")
    inputs = inputs_of(task.transformers_model.config)
    model = run_block(readme, tmp_path / "adapter")["model"]
    assert model.is_loaded_in_8bit
    torch.testing.assert_close(outputs(model, inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", ["classification", "answers", "text"])
def test_a_fully_trained_model_loads_by_the_bare_line(tiny_backbone: TinyBackbone, tmp_path: Path, kind: str) -> None:
    task = build(tiny_backbone("llama"), kind, lora=None)
    readme = export(task, tiny_backbone("llama"), tmp_path / "model")
    assert ".from_pretrained(folder)\n" in readme
    inputs = inputs_of(task.transformers_model.config)
    names = run_block(readme, tmp_path / "model")
    torch.testing.assert_close(outputs(names["model"], inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-5)


def test_a_base_of_three_classes_answers_questions(tiny_classifier: TinyClassifier, tmp_path: Path) -> None:
    tiny_classifier("bert", labels=3).model.save_pretrained(tmp_path / "base")
    base = Path(tiny_classifier("bert").model.config.name_or_path)
    load_tokenizer(str(base)).save_pretrained(tmp_path / "base")
    task = build(tmp_path / "base", "answers")
    readme = export(task, tmp_path / "base", tmp_path / "adapter")
    inputs = inputs_of(task.transformers_model.config)
    names = run_block(readme, tmp_path / "adapter")
    torch.testing.assert_close(outputs(names["model"], inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-5)


def test_a_base_given_by_a_relative_path_is_found_from_elsewhere(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(tiny_backbone("gpt2"))
    monkeypatch.chdir(tmp_path)
    task = build("models/base", "text")  # as a hub id looks
    export(task, "models/base", tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    inputs = inputs_of(task.transformers_model.config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(outputs(model, inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-5)
    assert PeftConfig.from_pretrained(str(tmp_path / "adapter")).base_model_name_or_path == str(
        tmp_path / "models/base"
    )


@pytest.mark.parametrize("kind", ["classification", "answers", "text"])
def test_modules_trained_in_full_are_loaded_too(tiny_backbone: TinyBackbone, tmp_path: Path, kind: str) -> None:
    task = build(tiny_backbone("llama"), kind, lora=LoraSettings(r=2, modules_to_save=["layers.1.mlp"]))
    readme = export(task, tiny_backbone("llama"), tmp_path / "adapter")
    inputs = inputs_of(task.transformers_model.config)
    names = run_block(readme, tmp_path / "adapter")
    torch.testing.assert_close(outputs(names["model"], inputs), outputs(task.built_network, inputs), rtol=0, atol=1e-5)


def test_the_front_matter_names_a_base_from_the_hub_only(tiny_classifier: TinyClassifier) -> None:
    """The hub refuses a card with a local path there."""
    model = tiny_classifier("bert").model
    local = model_card(model, is_adapter=True)
    assert local is not None
    assert "base_model" not in local
    model.config._name_or_path = "some-owner/some-model"
    card = model_card(model, is_adapter=True)
    assert card is not None
    assert card.startswith("---\nlibrary_name: peft\nbase_model: some-owner/some-model\n")


def test_models_without_an_auto_class_have_no_card() -> None:
    vision = transformers.ViTModel(transformers.ViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    assert model_card(vision, is_adapter=True) is None

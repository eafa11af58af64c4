"""An option that would do nothing on an architecture is refused by name, for every task, before weights load."""

from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.metrics.label_space import LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask
from tests.conftest import TinyBackbone

TASKS = [SequenceClassificationTask, QuestionAnsweringTask, CausalLanguageModelingTask]


def check(task_class: Any, backbone: Any, quantization: QuantizationSettings | None = None, **lora: Any) -> None:
    settings: dict[str, Any] = {"lora": LoraSettings(**lora), "quantization": quantization}
    if task_class is SequenceClassificationTask:
        settings["label_space"] = LabelSpace(["a", "b"])
    task: AdaptationTask = task_class(str(backbone), **settings)
    task.check_settings()


@pytest.mark.parametrize("task_class", TASKS)
@pytest.mark.parametrize(
    ("family", "lora", "message"),
    [
        ("llama", {"bias": "all"}, "bias is all, but no module of llama has a bias, beside what .* set it to none"),
        ("llama", {"bias": "lora_only"}, "bias is lora_only, but no adapted layer has a bias .*; set it to none"),
        (
            "qwen2",
            {"bias": "lora_only", "target_modules": ["o_proj", "up_proj"]},
            r"no adapted layer has a bias \(o_proj, up_proj of qwen2\); set it to all or none",
        ),
    ],
)
def test_biases_that_do_not_exist_cannot_train(
    tiny_backbone: TinyBackbone, task_class: Any, family: str, lora: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check(task_class, tiny_backbone(family), **lora)


@pytest.mark.parametrize("task_class", TASKS)
def test_biases_that_exist_can(tiny_backbone: TinyBackbone, task_class: Any) -> None:
    for bias, targets in (("all", ["o_proj"]), ("lora_only", "attention-qv"), ("lora_only", "all-linear")):
        check(task_class, tiny_backbone("qwen2"), bias=bias, target_modules=targets)


def test_the_heads_own_bias_trains_in_any_case(tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(ConfigurationError, match="no module of modernbert has a bias, beside what trains in full"):
        check(SequenceClassificationTask, tiny_backbone("modernbert"), bias="all")


@pytest.mark.parametrize("task_class", TASKS)
def test_loftq_needs_a_quantized_layer(tiny_backbone: TinyBackbone, task_class: Any) -> None:
    pytest.importorskip("bitsandbytes")
    loftq = {"init_lora_weights": "loftq", "target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(ConfigurationError, match=r"loftq, but model.quantization.skip_modules is .'self_attn'., which"):
        check(task_class, tiny_backbone("llama"), QuantizationSettings(skip_modules=["self_attn"]), **loftq)
    check(task_class, tiny_backbone("llama"), QuantizationSettings(skip_modules=["q_proj"]), **loftq)

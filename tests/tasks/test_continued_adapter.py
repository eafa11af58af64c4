"""Training continues an existing PEFT adapter: everything in its file reaches the model, or it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lora_lightning.backbones.base_identity import BaseIdentity
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.quantized import keep_4bit_weights_in_order
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, QuestionAnsweringTask, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask
from lora_lightning.tasks.continued_adapter import ContinuedAdapter
from tests.artefacts.adapters import AUTO_CLASSES, save_random_adapter
from tests.conftest import TinyBackbone
from tests.variants import logits_of

TASKS: dict[str, type[AdaptationTask]] = {
    "SEQ_CLS": SequenceClassificationTask,
    "QUESTION_ANS": QuestionAnsweringTask,
    "CAUSAL_LM": CausalLanguageModelingTask,
}
SPACE = LabelSpace(["a", "b", "c"])
POOLER = {"modules_to_save": ["pooler"]}  # which the tiny backbone lacks, and PEFT does not save by itself
EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classifier": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query", "value"]}),
    "two-layer head": ("roberta", "SEQ_CLS", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "two modules in one rule": ("distilbert", "SEQ_CLS", {"target_modules": ["q_lin"]}),
    "question answering": ("distilbert", "QUESTION_ANS", {"target_modules": ["q_lin"]}),
    "all linear layers": ("llama", "CAUSAL_LM", {"target_modules": "all-linear"}),
    "a regular expression": ("llama", "CAUSAL_LM", {"target_modules": r".*layers\.1\..*(q|v)_proj"}),
    "some layers": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "excluded layers": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}),
    "Conv1D": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "trained embeddings": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "trained tokens": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 12]}),
    "trained tied tokens": (
        "gpt2",
        "CAUSAL_LM",
        {"target_modules": ["c_attn"], "trainable_token_indices": {"transformer.wte": [12, 5]}},
    ),
    "DoRA": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query", "output.dense"], "use_dora": True}),
    "rsLoRA": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "use_rslora": True}),
    "PiSSA": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "init_lora_weights": "pissa"}),
    "OLoRA": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "init_lora_weights": "olora"}),
    "rank and alpha patterns": (
        "bert",
        "SEQ_CLS",
        {
            **POOLER,
            "target_modules": ["query", "value"],
            "rank_pattern": {"query": 2, "nothing": 7},
            "alpha_pattern": {"layer.1.attention.self.value": 3, "value": 5},
        },
    ),
    "bias": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "bias": "all"}),
    "bias of adapted layers": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "bias": "lora_only"}),
    "experts": ("olmoe", "CAUSAL_LM", EXPERTS),
    "experts alone": ("gpt_oss", "CAUSAL_LM", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
}


def continued_task(task_type: str, base: Path, adapter: Path, **options: Any) -> AdaptationTask:
    """A task whose model is built, with the adapter in place."""
    kind = TASKS[task_type]
    found = ContinuedAdapter.find(str(adapter), str(base), str(kind.auto_class))
    settings = found.settings(options.pop("given", {}))
    task = kind(str(base), lora=settings, adapter=str(adapter), **options)
    if task_type == "SEQ_CLS":
        task.adopt_labels(SPACE)
    task.configure_model()
    return task


def edit_config(adapter: Path, **changes: Any) -> None:
    """Changes `adapter_config.json`."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(adapter: Path, change: Any) -> None:
    """Changes the file of weights by a function that changes its dictionary in place."""
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize("case", CASES)
def test_the_model_starts_as_peft_loads_the_adapter(case: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    family, task_type, settings = CASES[case]
    base = tiny_backbone(family)
    adapter = save_random_adapter(base, tmp_path / "adapter", task_type, **settings)
    network = continued_task(task_type, base, adapter).built_network
    more: dict[str, Any] = {"num_labels": 3, "pad_token_id": 0} if task_type == "SEQ_CLS" else {}
    fresh = AUTO_CLASSES[task_type].from_pretrained(base, dtype=torch.float32, **more)
    expected = logits_of(PeftModel.from_pretrained(fresh, str(adapter)))
    assert (logits_of(network) - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    plain = logits_of(AUTO_CLASSES[task_type].from_pretrained(base, dtype=torch.float32, **more))
    assert (expected - plain).abs().max() > 1e-3


def test_an_adapter_on_a_base_in_4_bits(
    tiny_backbone: TinyBackbone, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    base = tiny_backbone("llama")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"])
    adapter = save_random_adapter(
        base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj", "down_proj"], quantization=bits
    )
    quantization = QuantizationSettings(compute_dtype="float32")
    task = continued_task("CAUSAL_LM", base, adapter, quantization=quantization)
    fresh = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=bits, device_map={"": "cpu"}
    )
    keep_4bit_weights_in_order(fresh)  # bitsandbytes' kernel for AVX512-BF16 fails on rows of less than 64
    expected = logits_of(PeftModel.from_pretrained(fresh, str(adapter)))
    assert (logits_of(task.built_network) - expected).abs().max() < 1e-4
    task.check_adapter()
    assert not [warning for warning in recwarn if "in 4 bits" in str(warning.message)]
    other = CausalLanguageModelingTask(str(base), lora=task.lora, adapter=str(adapter))
    with pytest.warns(UserWarning, match="trained on a base in 4 bits, but the base of this run is not quantized"):
        other.check_adapter()


def test_the_labels_of_the_data_may_be_in_another_order(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("bert")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", **POOLER, target_modules=["query"])
    (adapter / "labels.json").write_text(json.dumps({"names": ["c", "a", "b"], "problem_type": SPACE.problem_type}))
    found = logits_of(continued_task("SEQ_CLS", base, adapter).built_network).view(-1, 3)
    (adapter / "labels.json").write_text(json.dumps({"names": SPACE.names, "problem_type": SPACE.problem_type}))
    unchanged = logits_of(continued_task("SEQ_CLS", base, adapter).built_network).view(-1, 3)
    assert torch.allclose(found, unchanged[:, [1, 2, 0]], atol=1e-6)
    assert (found - unchanged).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"names": ["a", "b", "d"]}, "the adapter alone has d; the data alone has c"),
        ({"names": ["a", "b"]}, "the data alone has c"),
        ({"problem_type": "multi_label_classification"}, "has labels of kind multi_label_classification, but"),
        ({"names": "abc"}, "does not hold a classifier's labels"),
    ],
)
def test_other_labels_are_refused(
    labels: dict[str, Any], message: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("bert")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", **POOLER, target_modules=["query"])
    (adapter / "labels.json").write_text(
        json.dumps({"names": SPACE.names, "problem_type": SPACE.problem_type, **labels})
    )
    with pytest.raises(CheckpointError, match=message):
        continued_task("SEQ_CLS", base, adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj"], "lora_bias": True}, "has lora_bias True .*model.lora has no such option"),
        ({"target_modules": ["embed_tokens"]}, "adapts model.embed_tokens, which gets no adapter here"),
        ({"target_modules": ["lm_head", "q_proj"]}, "adapts lm_head, which gets no adapter here"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_2"}, "PEFT cannot rebuild the base"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    settings: dict[str, Any], message: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", **settings)
    with pytest.raises(LoraLightningError, match=message):
        continued_task("CAUSAL_LM", base, adapter)


def _drop_one(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(next(name for name in weights if "layers.1" in name and "lora_B" in name))


def _add_one(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight"] = torch.ones(2, 2)


def _add_base(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.model.norm.weight"] = torch.full((32,), 2.0)


def _widen(weights: dict[str, torch.Tensor]) -> None:
    name = next(iter(weights))
    weights[name] = torch.cat([weights[name], weights[name]], dim=1)


def _spoil(weights: dict[str, torch.Tensor]) -> None:
    next(iter(weights.values()))[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_one, "lacks 1 of the 4 weights that this model trains, for example model.layers.1.self_attn.q_proj"),
        (_add_one, "holds 1 weights that have no place in this model"),
        (_add_base, "replaces the base model's model.norm.weight"),
        (_widen, r"of shape .*, but this model needs"),
        (_spoil, "is not finite"),
    ],
)
def test_every_weight_reaches_the_model_or_is_refused(
    change: Any, message: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    edit_weights(adapter, change)
    with pytest.raises(CheckpointError, match=message):
        continued_task("CAUSAL_LM", base, adapter)


def test_base_weights_in_the_file_that_are_those_of_the_base(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    network = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    network.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    continued_task("CAUSAL_LM", base, tmp_path / "adapter")


def test_a_head_that_neither_file_nor_base_has_is_refused(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("bert")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", target_modules=["query"])
    with pytest.raises(CheckpointError, match=r"lacks 2 of .* for example bert.pooler.dense"):
        continued_task("SEQ_CLS", base, adapter)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"r": 8}, r"model.lora.r is 8, but the adapter .* has 4"),
        ({"lora_alpha": 16.0}, r"model.lora.lora_alpha is 16.0, but the adapter .* has 8.0"),
        ({"target_modules": "all-linear"}, "model.lora.target_modules is 'all-linear', but the adapter"),
        ({"layers_to_transform": [0]}, r"model.lora.layers_to_transform is \[0\], but the adapter .* has None"),
        ({"rank_pattern": {"value": 2}}, "model.lora.rank_pattern is {'value': 2}, but the adapter"),
        ({"use_dora": True}, "model.lora.use_dora is True, but the adapter"),
        ({"bias": "all"}, "model.lora.bias is 'all', but the adapter"),
        ({"modules_to_save": ["word_embeddings"]}, "model.lora.modules_to_save is "),
        ({"init_lora_weights": "pissa"}, "model.lora.init_lora_weights is 'pissa', but the adapter"),
        ({"adalora": {"init_r": 12}}, "model.lora.adalora is set, but model.adapter continues the adapter"),
    ],
)
def test_settings_that_contradict_the_adapter_are_refused(
    given: dict[str, Any], message: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("bert")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", **POOLER, target_modules=["query", "value"])
    with pytest.raises(ConfigurationError, match=message):
        continued_task("SEQ_CLS", base, adapter, given=given)


def test_the_same_settings_in_other_words_and_another_dropout(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("bert")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", **POOLER, target_modules=["query", "value"])
    given = {"r": 4, "target_modules": "attention-qv", "modules_to_save": ["pooler"], "lora_dropout": 0.3}
    task = continued_task("SEQ_CLS", base, adapter, given=given)
    assert task.lora is not None
    assert task.lora.lora_dropout == 0.3
    assert task.lora.target_modules == "attention-qv"  # shorter than the names of all layers


def test_a_task_with_other_settings_is_refused(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    task = CausalLanguageModelingTask(
        str(base), lora=LoraSettings(r=4, lora_alpha=9, target_modules=["q_proj"]), adapter=str(adapter)
    )
    with pytest.raises(ConfigurationError, match=r"model.lora.lora_alpha is 9, but the adapter .* has 8.0"):
        task.check_adapter()
    with pytest.raises(ConfigurationError, match=r"model.adapter continues an adapter, but model.lora is null"):
        CausalLanguageModelingTask(str(base), lora=None, adapter=str(adapter))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "of type IA3, which is not supported"),
        ({"peft_type": "ADALORA"}, "of type ADALORA, whose ranks"),
        ({"task_type": "SEQ_CLS"}, "is for AutoModelForSequenceClassification .* needs one for AutoModelForCausalLM"),
        ({"r": "four"}, "holds values of wrong types"),
        ({"target_parameters": ["experts.down_proj"], "peft_version": "0.18.0"}, "saved by PEFT 0.18.0"),
        ({"new_option": 3}, "has new_option 3 in its adapter_config.json"),
    ],
)
def test_wrong_configurations_are_refused(
    changes: dict[str, Any], message: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    edit_config(adapter, **changes)
    with pytest.raises(LoraLightningError, match=message):
        continued_task("CAUSAL_LM", base, adapter)


def test_the_base_model_is_compared(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base, other = tiny_backbone("llama"), tiny_backbone("qwen2")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    found = ContinuedAdapter.find(str(adapter), str(other), "AutoModelForCausalLM")
    task = CausalLanguageModelingTask(str(other), lora=LoraSettings(), adapter=str(adapter))
    with pytest.raises(CheckpointError, match="was trained on another base model: different weights"):
        found.check_base(task.base_identity, allowed=False)
    found.check_base(task.base_identity, allowed=True)
    edit_config(adapter, base_model_name_or_path="somebody/else")
    found = ContinuedAdapter.find(str(adapter), str(base), "AutoModelForCausalLM")
    with pytest.raises(CheckpointError, match=r"names the base model 'somebody/else', which is not here"):
        found.check_base(task.base_identity, allowed=False)


@pytest.mark.parametrize(
    ("revision", "commit", "is_refused"),
    [(None, "abc", False), ("main", "abc", False), ("v2", "abc", True), ("abc", "abc", False), ("v2", None, True)],
)
def test_the_revision_of_a_base_on_the_hub_is_compared(
    revision: str | None, commit: str | None, is_refused: bool, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    adapter = save_random_adapter(tiny_backbone("llama"), tmp_path / "a", "CAUSAL_LM", target_modules=["q_proj"])
    edit_config(adapter, base_model_name_or_path="somebody/model", revision=revision)
    found = ContinuedAdapter.find(str(adapter), "somebody/model", "AutoModelForCausalLM")
    base = BaseIdentity("w", "c", "t", commit)
    found.check_base(base, allowed=True)
    if is_refused:
        with pytest.raises(CheckpointError, match="was trained on revision 'v2' of somebody/model"):
            found.check_base(base, allowed=False)
    else:
        with pytest.warns(UserWarning, match="does not record the content"):
            found.check_base(base, allowed=False)
    (adapter / "base_model.json").write_text(json.dumps(base.as_dict()))
    found.check_base(base, allowed=False)  # the content is the same, whatever the revision is called


def test_the_revision_of_a_base_in_a_folder_does_not_matter(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    edit_config(adapter, revision="v2")
    continued_task("CAUSAL_LM", base, adapter)


def test_an_adapter_of_this_package_on_a_base_that_is_quantized_only_now(
    tiny_backbone: TinyBackbone, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    found = ContinuedAdapter.find(str(adapter), str(base), "AutoModelForCausalLM")
    found.check_quantization(QuantizationSettings())  # another program's: it is not known
    (adapter / "base_model.json").write_text("{}")
    found.check_quantization(None)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="was trained on a base that is not quantized, but the base of this run is"):
        found.check_quantization(QuantizationSettings())


@pytest.mark.parametrize(
    ("own", "of_base", "is_reported"),
    [("{{ messages }}", None, True), ("{{ messages }}", "", True), (None, "{{ messages }}", False), ("a", "a", False)],
)
def test_a_chat_template_that_is_not_used_is_reported(
    own: str | None,
    of_base: str | None,
    is_reported: bool,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_backbone("llama"), base)
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    for folder, template in ((adapter, own), (base, of_base)):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = template
        (base / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
    recwarn.clear()
    ContinuedAdapter.find(str(adapter), str(base), "AutoModelForCausalLM").check_tokenizer()
    found = [str(warning.message) for warning in recwarn if "the chat template of the adapter" in str(warning.message)]
    assert len(found) == is_reported
    assert not [warning for warning in recwarn if "vocabulary" in str(warning.message)]


@pytest.mark.parametrize("name", ["", "nobody/nothing", "/nowhere/adapter"])
def test_an_adapter_that_is_not_there(name: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    message = "is not a folder and could not be downloaded" if name else r"holds no adapter_config.json"
    with pytest.raises(CheckpointError, match=message):
        ContinuedAdapter.find(name or str(tmp_path), str(tiny_backbone("llama")), "AutoModelForCausalLM")

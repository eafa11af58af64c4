"""Every variant of LoRA, family and task becomes a plain transformers model that computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BitsAndBytesConfig,
    GenerationConfig,
    pipeline,
)

from lora_lightning.artefacts import merge, merge_gate
from lora_lightning.artefacts.adapter_folder import open_adapter_folder
from lora_lightning.artefacts.plain_model import build_plain_model
from lora_lightning.errors import VerificationError
from lora_lightning.lora.config import QuantizationSettings
from lora_lightning.lora.merging import without_adapters
from tests.artefacts.adapters import AUTO_CLASSES, left_beside, save_random_adapter
from tests.artefacts.conftest import Merge
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150
from tests.tiny_models import save_tiny_backbone
from tests.variants import perturb_trainable_parameters, settings_of, train_classifier

POOLER = {"modules_to_save": ["pooler"]}  # which the tiny backbone lacks, and PEFT does not save by itself
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classifier": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query", "value"]}),
    "two-layer head": ("roberta", "SEQ_CLS", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "question answering": (
        "distilbert",
        "QUESTION_ANS",
        {"target_modules": ["q_lin"], "modules_to_save": ["qa_outputs"]},
    ),
    "language model": ("llama", "CAUSAL_LM", {"target_modules": "all-linear"}),
    "tied weights": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_proj"]}),
    "Conv1D": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "an adapter on tied embeddings": ("gpt2", "CAUSAL_LM", {"target_modules": ["wte", "c_attn"]}),
    "a trained copy of a tied head": (
        "gpt2",
        "CAUSAL_LM",
        {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    ),
    "tied weights trained as one": (
        "opt",
        "CAUSAL_LM",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "an adapter on tied weights as one": (
        "opt",
        "CAUSAL_LM",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "trained embeddings": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "trained tokens": ("llama", "CAUSAL_LM", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 12]}),
    "trained tied tokens": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn"], "trainable_token_indices": [5, 12]}),
    "DoRA": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query", "output.dense"], "use_dora": True}),
    "DoRA on Conv1D": ("gpt2", "CAUSAL_LM", {"target_modules": ["c_attn"], "use_dora": True}),
    "rsLoRA": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "use_rslora": True}),
    "PiSSA": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "init_lora_weights": "pissa"}),
    "rank and alpha patterns": (
        "bert",
        "SEQ_CLS",
        {**POOLER, "target_modules": ["query", "value"], "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
    ),
    "bias": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "bias": "all"}),
    "bias of the adapter": ("bert", "SEQ_CLS", {**POOLER, "target_modules": ["query"], "lora_bias": True}),
    "experts": (
        "olmoe",
        "CAUSAL_LM",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "transposed experts": ("gpt_oss", "CAUSAL_LM", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_folder_computes_what_peft_computes(
    case: str, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    family, task_type, settings = CASES[case]
    base = tiny_backbone(family)
    adapter = save_random_adapter(base, tmp_path / "adapter", task_type, **settings)
    result = merge_here(adapter)
    assert result.written.failure is None
    assert result.written.adapter_effect.max_logit_difference > 1e-3
    assert left_beside(result.output) == ["merged"]
    plain, info = AUTO_CLASSES[task_type].from_pretrained(result.output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if settings.get("ensure_weight_tying"):
        assert plain.config.tie_word_embeddings
    more: dict[str, Any] = (
        {"num_labels": 3, "pad_token_id": plain.config.pad_token_id} if task_type == "SEQ_CLS" else {}
    )
    fresh = AUTO_CLASSES[task_type].from_pretrained(base, dtype=torch.float32, **more)
    network = PeftModel.from_pretrained(fresh, str(adapter)).eval()
    tokens = torch.arange(10, 34).view(2, 12)
    with torch.no_grad():
        found, expected = (
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens)) for model in (plain.eval(), network)
        )
    for name in ("logits", "start_logits", "end_logits"):
        if name in expected:
            assert (found[name] - expected[name]).abs().max() < 1e-5 * max(1, expected[name].abs().max())


def test_classifiers_that_read_the_token_at_the_end_of_a_text(merge_here: Merge, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 40}
    tokens = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    base = save_tiny_backbone("bert", tmp_path / "bart")  # for its tokenizer
    (base / "model.safetensors").unlink()
    BartForConditionalGeneration(BartConfig(**sizes, **heads, **tokens)).save_pretrained(base)
    adapter = save_random_adapter(
        base,
        tmp_path / "adapter",
        "SEQ_CLS",
        target_modules=["q_proj"],
        modules_to_save=["classification_head"],
    )
    found = merge_here(adapter).written
    assert found.adapter_effect.max_logit_difference > 1e-3
    assert found.difference.max_logit_difference < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_with_more_tokens_than_its_base(
    family: str, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone(family), dtype=torch.float32)
    base.resize_token_embeddings(203, mean_resizing=False)
    embeddings, layer = ("embed_tokens", "q_proj") if family == "llama" else ("wte", "c_attn")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=[layer], modules_to_save=[embeddings, "lm_head"])
    network = get_peft_model(base, config).eval()
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(str(tmp_path / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone(family))
    tokenizer.add_tokens(["<|a|>", "<|b|>", "<|c|>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    output = merge_here(tmp_path / "adapter").output
    tokens = torch.tensor([[5, 200, 202, 7]])
    with torch.no_grad():
        found, expected = AutoModelForCausalLM.from_pretrained(output)(tokens).logits, network(tokens).logits
    assert found.shape == (1, 4, 203)
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    assert AutoTokenizer.from_pretrained(output).convert_tokens_to_ids("<|c|>") == 202


def test_an_adapter_on_the_embeddings_of_more_tokens_than_its_base_has(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone("llama"), dtype=torch.float32)
    base.resize_token_embeddings(203, mean_resizing=False)
    network = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens", "lm_head"])).eval()
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(str(tmp_path / "adapter"))
    output = merge_here(tmp_path / "adapter").output
    tokens = torch.tensor([[5, 200, 202, 7]])
    with torch.no_grad():
        found, expected = AutoModelForCausalLM.from_pretrained(output)(tokens).logits, network(tokens).logits
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


def test_random_tokens_hold_special_and_trained_ones(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("llama")
    special = AutoTokenizer.from_pretrained(base).all_special_ids
    for trained in ([special[0], 171], {"embed_tokens": [172]}):
        settings = {"target_modules": ["q_proj"], "trainable_token_indices": trained}
        adapter = save_random_adapter(base, tmp_path / f"adapter{len(trained)}", "CAUSAL_LM", **settings)
        tokens = torch.cat([batch["input_ids"].flatten() for batch in open_adapter_folder(adapter).observer.batches])
        expected = trained if isinstance(trained, list) else trained["embed_tokens"]
        assert {*special, *expected} <= set(tokens.tolist())


def test_an_adapter_that_peft_trained_with_adalora(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone("llama"), dtype=torch.float32)
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10, init_r=4, target_r=2)
    network = get_peft_model(base, config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.5 * torch.randn_like(parameter))
    network.save_pretrained(str(tmp_path / "adapter"))
    found = merge_here(tmp_path / "adapter").written
    assert found.adapter_effect.max_logit_difference > 1e-3
    assert found.difference.max_logit_difference < 1e-5


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_base_of_an_adapter_that_started_with_a_part_of_it_is_the_pretrained_one(
    start: str, family: str, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    layer = "q_proj" if family == "llama" else "attn.c_proj"
    settings = {"target_modules": [layer], "init_lora_weights": start, "lora_alpha": 6}
    base = tiny_backbone(family)
    untrained = save_random_adapter(base, tmp_path / "untrained", "CAUSAL_LM", zero=True, **settings)
    if (start, family) != ("olora", "gpt2"):  # which PEFT computes wrongly for a transposed weight
        with pytest.raises(VerificationError, match="the adapter changes nothing"):
            merge_here(untrained)
    opened = open_adapter_folder(save_random_adapter(base, tmp_path / "trained", "CAUSAL_LM", **settings))
    tokens = torch.arange(10, 34).view(2, 12)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()(tokens).logits
        with without_adapters(opened.network):
            found = opened.network(tokens).logits
        assert (opened.network(tokens).logits - expected).abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


TRAINED = (*("adalora", "pissa", "pissa_niter_4", "olora", "eva", "lorafa", "dora", "embeddings", "tokens", "bias"),)


@pytest.mark.parametrize("variant", TRAINED)
def test_variants_that_this_package_trains(variant: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    data = save_tiny_clinc150(tmp_path / "data")
    task, trainer = train_classifier(tiny_backbone("bert"), data, tmp_path / "cache", settings_of(variant), steps=3)
    perturb_trainable_parameters(task)
    task.eval()
    build_plain_model(task.transformers_model, "float32").save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    with torch.no_grad():
        adapted, found = task(batch), plain(**task.model_inputs(batch)).logits
        with without_adapters(task):
            effect = (task(batch) - adapted).abs().max()
    assert (found - adapted).abs().max() < 1e-5 * max(1, adapted.abs().max())
    if variant not in {"embeddings", "tokens"}:
        assert effect > 1e-3


def test_loftq_is_merged_into_what_it_was_trained_on(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    data = save_tiny_clinc150(tmp_path / "data")
    settings = {**settings_of("loftq"), "quantization": QuantizationSettings(compute_dtype="float32")}
    task, trainer = train_classifier(tiny_backbone("bert"), data, tmp_path / "cache", settings, steps=3)
    perturb_trainable_parameters(task)
    task.eval()
    build_plain_model(task.transformers_model, "float32").save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
    with torch.no_grad():
        adapted, found = task(batch), plain(**task.model_inputs(batch)).logits
        with without_adapters(task):
            assert (task(batch) - adapted).abs().max() > 1e-3
    assert (found - adapted).abs().max() < 1e-5 * max(1, adapted.abs().max())


REALLY_LOADED: dict[str, tuple[dict[str, Any], str]] = {  # weights that a process of its own has to find
    "an adapter on tied embeddings": ({}, "float32"),
    "experts": ({}, "float32"),
    "trained tied tokens": ({}, "float32"),
    "Conv1D": ({"dtype": "bfloat16"}, "bfloat16"),
}


@pytest.mark.parametrize("case", REALLY_LOADED)
def test_a_fresh_process_loads_it(case: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    options, dtype = REALLY_LOADED[case]
    family, task_type, settings = CASES[case]
    adapter = save_random_adapter(tiny_backbone(family), tmp_path / "adapter", task_type, **settings)
    result = merge(adapter, tmp_path / "merged", **options)
    assert result.written.dtype == dtype
    assert result.fresh_process.largest_logit > 0
    limit = 1e-5 if dtype == "float32" else 5e-2
    assert result.fresh_process.max_logit_difference < limit * max(1, result.fresh_process.largest_logit)
    assert left_beside(result.output) == ["adapter", "merged"]


BITS = {
    "nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["lm_head"]
    ),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"]),
}


@pytest.mark.parametrize(
    ("bits", "family", "target"),
    [("nf4", "llama", "dequantized"), ("int8", "llama", "original"), ("nf4", "gpt2", "requantized")],
)
def test_all_targets_of_a_quantized_base_are_measured(
    bits: str,
    family: str,
    target: Any,
    merge_here: Merge,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merge_gate, "LEAST_RECOVERY", 0.5)  # 4 bits take more of a random model than of a trained one
    layers = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    adapter = save_random_adapter(
        tiny_backbone(family), tmp_path / "adapter", "CAUSAL_LM", target_modules=layers, quantization=BITS[bits]()
    )
    result = merge_here(adapter, target=target)
    in_float32 = {found.target: found for found in result.measurements if found.dtype == "float32"}
    assert in_float32.keys() == {"dequantized", "original", "requantized"}
    assert result.recommended == "dequantized"
    exact = in_float32["dequantized"].difference
    tolerance = 1e-5 if bits == "nf4" else 5e-2  # LLM.int8 rounds the activations too
    assert exact.max_logit_difference < tolerance * max(1, exact.largest_logit)
    assert in_float32["original"].difference.max_logit_difference > 1e-4
    plain = AutoModelForCausalLM.from_pretrained(result.output)
    assert getattr(plain, "is_quantized", False) is (target == "requantized")
    card = (result.output / "README.md").read_text()
    assert ("quantized again to 4 bits" in card) is (target == "requantized")
    assert ("weights and saved in float32" in card) is (target != "requantized")
    if target == "original":
        base = AutoModelForCausalLM.from_pretrained(tiny_backbone(family))
        name = "model.layers.0.mlp.up_proj.weight"  # has no adapter, and is not rounded to 8 bits
        assert torch.equal(plain.get_parameter(name), base.get_parameter(name))


@pytest.mark.parametrize("bits", BITS)
def test_a_classifier_on_a_quantized_base(
    bits: str, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    quantization = BITS[bits]()
    quantization.llm_int8_skip_modules = ["classifier", "bert.pooler"]
    settings = {**POOLER, "target_modules": ["query"], "quantization": quantization}
    result = merge_here(save_random_adapter(tiny_backbone("bert"), tmp_path / "adapter", "SEQ_CLS", **settings))
    assert {found.target for found in result.measurements} == {"dequantized", "original", "requantized"}
    assert result.written.target == "dequantized"
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    assert not getattr(model, "is_quantized", False)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_question_answerer_on_a_quantized_base(
    family: str, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AUTO_CLASSES, "QUESTION_ANS", _RenamingQuestionAnswerer)
    quantization = BITS["nf4"]()
    quantization.llm_int8_skip_modules = ["qa_outputs"]
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["qa_outputs"], "quantization": quantization}
    result = merge_here(save_random_adapter(tiny_backbone(family), tmp_path / "adapter", "QUESTION_ANS", **settings))
    assert result.written.target == "dequantized"
    assert (
        AutoModelForQuestionAnswering.from_pretrained(result.output, output_loading_info=True)[1]["missing_keys"]
        == set()
    )


class _RenamingQuestionAnswerer:
    """Loads the base of a checkpoint that calls it otherwise (transformers#30381)."""

    @staticmethod
    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        names = {"^model[.]": "transformer."}
        return AutoModelForQuestionAnswering.from_pretrained(*arguments, key_mapping=names, **options)


def test_a_requantized_folder_loads_in_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_gate, "LEAST_RECOVERY", 0.5)  # 4 bits take more of a random model than of a trained one
    base = save_tiny_backbone("llama", tmp_path / "base")
    config = AutoConfig.from_pretrained(base)
    # bitsandbytes cannot run layers narrower than 64 on CPUs with AVX512-BF16.
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 64 // config.num_attention_heads
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    adapter = save_random_adapter(
        base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"], quantization=BITS["nf4"]()
    )
    result = merge(adapter, tmp_path / "merged", target="requantized")
    assert result.fresh_process.max_logit_difference < 1e-2
    assert result.fresh_process.max_difference_after_saving_again is None
    assert any("cannot save a model that it loaded in 4 bits" in note for note in result.notes)


def test_the_merged_model_trains_further_and_works_in_a_pipeline(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    adapter = save_random_adapter(tiny_backbone("llama"), tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    output = str(merge_here(adapter).output)
    text = pipeline("text-generation", model=output, tokenizer=output)("w1 w2", max_new_tokens=3)[0]["generated_text"]
    assert text.startswith("w1 w2")
    model = AutoModelForCausalLM.from_pretrained(output).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(10, 22)[None]
    losses = []
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_the_chat_template_of_the_adapter_goes_into_the_folder(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("llama")
    adapter = save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for message in messages %}w1 {{ message.content }} w2{% endfor %}"
    tokenizer.save_pretrained(adapter)
    output = merge_here(adapter).output
    merged = AutoTokenizer.from_pretrained(output)
    assert merged.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "w1 w3 w2"
    assert GenerationConfig.from_pretrained(output).eos_token_id == [tokenizer.eos_token_id]

"""Losses and hits are those of all logits, computed only where there is a label."""

from typing import Literal

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Llama4ForCausalLM, Llama4TextConfig, PreTrainedModel

from lora_lightning.tasks import linear_cross_entropy, next_token
from lora_lightning.tasks.next_token import IGNORED, NextTokenModel
from tests.tiny_models import DECODERS

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 50, 15, 16, 17]])
PLACES = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 1, 2]])  # three documents


def gemma2() -> PreTrainedModel:
    """Squashes its logits, and every other layer sees a window of 4 tokens only."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=200,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
            final_logit_softcapping=2.0,
            max_position_embeddings=40,
        )
    )


MODELS = {**DECODERS, "gemma2": gemma2}


def make(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """A tiny model with weights large enough for neighbours to matter."""
    torch.manual_seed(0)
    model = MODELS[family]()
    model.set_attn_implementation("eager" if family == "gemma2" else attention)  # Gemma 2 has no other
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def plain_batch(rows: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 200, (rows, 12), generator=generator)
    labels = torch.randint(2, 200, (rows, 12), generator=generator)
    labels[0, ::3] = IGNORED
    mask = torch.ones_like(tokens)
    labels[-1, 9:], mask[-1, 9:] = IGNORED, 0
    return {"input_ids": tokens, "labels": labels, "attention_mask": mask}


def reference(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Summed cross entropy and hits in NumPy's float64."""
    learnt = labels.numpy() != IGNORED
    chosen, targets = logits.detach().double().numpy()[learnt], labels.numpy()[learnt]
    shifted = chosen - chosen.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -log_probability[np.arange(len(targets)), targets].sum(), int((chosen.argmax(axis=1) == targets).sum())


def evaluated(ours: NextTokenModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    return ours.score(batch, ours.features(batch))


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_loss_and_hits_are_those_of_all_logits(family: str, in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_parts:
        monkeypatch.setattr(next_token, "ROWS_AT_ONCE", 4)
        monkeypatch.setattr(linear_cross_entropy, "MOST_ROWS", 4)
    model, batch = make(family), plain_batch()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss, hits = reference(logits, batch["labels"])
    labels = int((batch["labels"] != IGNORED).sum())
    assert NextTokenModel(model).loss(batch)[0].item() == pytest.approx(loss, rel=1e-5)
    assert NextTokenModel(model).loss(batch)[1] == labels
    found = evaluated(NextTokenModel(model), batch)
    assert found[0].item() == pytest.approx(loss, rel=1e-5)
    assert (int(found[1]), found[2]) == (hits, labels)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_gradients_are_those_of_all_logits(family: str, in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_parts:
        monkeypatch.setattr(next_token, "ROWS_AT_ONCE", 4)
        monkeypatch.setattr(linear_cross_entropy, "MOST_ROWS", 4)
    model, batch = make(family), plain_batch()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    NextTokenModel(model).loss(batch)[0].backward()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, parameter in model.named_parameters():
        scale = max(float(expected[name].abs().max()), 1e-3 * largest)  # that of a key's bias is 0 but for rounding
        torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [0, 2**26])
def test_on_other_devices_and_in_other_precisions_pytorch_computes_the_loss(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(next_token, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(next_token, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(next_token, "linear_cross_entropy", None)
    model, batch = make("llama").to(dtype), plain_batch()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    expected.backward()
    gradient = next(model.parameters()).grad
    model.zero_grad()
    loss, _ = NextTokenModel(model, on_cpu=None if dtype == torch.float64 else False).loss(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(next(model.parameters()).grad, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize(("on_cpu", "at_once"), [(True, 2**26), (False, 2**26), (False, 0)])
def test_losses_of_16_bits_are_float32(
    precision: Literal["bf16-true", "16-true"], on_cpu: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning makes 16 bits the default dtype of a step; a loss in them would have 8 or 11 bits, or overflow."""
    monkeypatch.setattr(next_token, "LOGITS_AT_ONCE", at_once)
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]
    model, batch = make("llama").to(dtype), plain_batch()
    ours = NextTokenModel(model, on_cpu=on_cpu)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    exact, _ = reference(logits.float(), batch["labels"])
    with HalfPrecision(precision).train_step_context():
        loss = ours.loss(batch)[0]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    with HalfPrecision(precision).val_step_context():
        losses, _ = ours.score_labels(batch, ours.features(batch))
    assert losses.dtype == torch.float32
    assert losses.sum().item() == pytest.approx(exact, rel=1e-5)


def test_the_loss_in_chunks_is_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "LOGITS_AT_ONCE", 0)
    model, batch = make("llama"), plain_batch()
    with torch.autocast("cpu", torch.bfloat16):
        chunks = NextTokenModel(model, on_cpu=False).loss(batch)[0]
        whole = NextTokenModel(model, on_cpu=True).loss(batch)[0]
    assert chunks.dtype == torch.float32
    assert chunks.item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_head_runs_on_learnt_positions_only_and_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "ROWS_AT_ONCE", 8)
    model, batch = make("llama"), plain_batch()
    ours = NextTokenModel(model)
    evaluated(ours, batch)  # the first call looks at the architecture
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    evaluated(ours, batch)
    assert sum(rows) == (batch["labels"] != IGNORED).sum()
    assert max(rows) == 8


def test_a_model_whose_base_cannot_be_called_alone_is_asked_for_logits() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "intermediate_size_mlp": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}
    config = Llama4TextConfig(vocab_size=200, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes, **heads)
    model, batch = Llama4ForCausalLM(config).eval(), plain_batch()
    assert model.base_model is model  # its prefix names no module
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss, _ = reference(logits, batch["labels"])
    assert NextTokenModel(model).loss(batch)[0].item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_only_gemma_squashes_its_logits(family: str) -> None:
    assert NextTokenModel(make(family)).head_is_linear == (family != "gemma2")


@pytest.mark.parametrize("family", MODELS)
def test_padding_after_packed_documents_changes_nothing(family: str) -> None:
    model = make(family)
    row = {"input_ids": TOKENS, "position_ids": PLACES, "labels": TOKENS.clone()}
    other = {"input_ids": TOKENS[:, :5], "position_ids": PLACES[:, :5], "labels": TOKENS[:, :5].clone()}
    fill = {"input_ids": 1, "position_ids": 0, "labels": IGNORED}
    padded = {name: torch.cat([row[name], nn.functional.pad(other[name], (0, 4), value=fill[name])]) for name in row}
    ours = NextTokenModel(model)
    together = evaluated(ours, padded)
    apart = [evaluated(ours, row), evaluated(ours, other)]
    assert together[0].item() == pytest.approx(sum(part[0].item() for part in apart), rel=1e-5)
    assert together[2] == sum(part[2] for part in apart)


def test_half_precision_loses_little() -> None:
    model, batch = make("llama"), plain_batch()
    exact = NextTokenModel(model).loss(batch)[0].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert NextTokenModel(model).loss(batch)[0].item() == pytest.approx(exact, rel=2e-2)
        assert evaluated(NextTokenModel(model), batch)[0].item() == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("family", MODELS)
def test_some_logits_are_those_at_evenly_spread_labels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make(family), plain_batch()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = logits[batch["labels"] != IGNORED]
    ours = NextTokenModel(model)
    features = ours.features(batch)
    torch.testing.assert_close(ours.some_logits(features), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(next_token, "ROWS_TO_COMPARE", 3)
    some = ours.some_logits(features)
    middle = torch.linspace(0, len(expected) - 1, 3).round().long()
    torch.testing.assert_close(some, expected[middle], rtol=0, atol=1e-5)

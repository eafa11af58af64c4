"""Compiled layers: the results of plain ones, in training alone; and what does not go together with them."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_and_resume import STEP, Moment, Runs, equal_bitwise
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from lora_lightning.backbones.attention import MODERATE, cpu_attention_forward
from lora_lightning.backbones.first_token import keep_first_token_only
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.metrics.label_space import LabelSpace
from lora_lightning.tasks import AdaptationTask, CausalLanguageModelingTask, SequenceClassificationTask, compiled_layers
from lora_lightning.tasks.compiled_layers import compile_layers
from tests.cli.test_commands import fit_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

LORA = LoraSettings(r=4, lora_dropout=0.0, target_modules="all-linear")
LABELS = LabelSpace(["a", "b"], None, False, {})


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code is captured and differentiated as for compiling, and then runs as it is: making kernels takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled_layers._compiled_class.cache_clear()
    yield
    compiled_layers._compiled_class.cache_clear()


@pytest.fixture
def as_captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code is captured as for compiling, and runs as it is."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled_layers._compiled_class.cache_clear()
    yield
    compiled_layers._compiled_class.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """The layers whose compiled code was called; nothing is compiled, which would take seconds."""
    called: list[nn.Module] = []

    def not_compiled(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        assert dynamic

        def run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            called.append(layer)
            return function(layer, *args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", not_compiled)
    compiled_layers._compiled_class.cache_clear()
    yield called
    compiled_layers._compiled_class.cache_clear()


def decoder(folder: Path, **options: Any) -> AdaptationTask:
    task = CausalLanguageModelingTask(str(folder), lora=LORA, base_dropout=0.0, **options)
    task.network = task.build_network()
    return task


def encoder(folder: Path, **options: Any) -> AdaptationTask:
    task = SequenceClassificationTask(str(folder), lora=LORA, base_dropout=0.0, label_space=LABELS, **options)
    task.network = task.build_network()
    return task


def rows(lengths: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 100, mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100).roll(-1, dims=1)}


def inputs(lengths: list[int]) -> dict[str, Tensor]:
    return {name: rows(lengths)[name] for name in ("input_ids", "attention_mask")}


def loss_of(task: AdaptationTask, batch: dict[str, Tensor]) -> Tensor:
    if isinstance(task, CausalLanguageModelingTask):
        return task.next_token.loss(batch)[0]
    targets = torch.arange(len(batch["input_ids"])) % 2
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return functional.cross_entropy(task.built_network(**inputs).logits.float(), targets, reduction="sum")


def step(task: AdaptationTask, batch: dict[str, Tensor], *, bf16: bool = False) -> dict[str, Tensor]:
    task.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = loss_of(task, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: each.grad.clone() for name, each in task.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize(("family", "build"), [("llama", decoder), ("bert", encoder)], ids=["decoder", "encoder"])
@pytest.mark.usefixtures("without_kernels")
def test_steps_of_any_size_are_those_of_plain_layers(
    tiny_backbone: TinyBackbone, family: str, build: Callable[[Path], AdaptationTask]
) -> None:
    plain, compiled = build(tiny_backbone(family)), build(tiny_backbone(family))
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        if one.requires_grad:  # B is not zero then, so that A has a gradient
            torch.nn.init.normal_(one, std=0.05)
            other.data.copy_(one.data)
    compile_layers(compiled.transformers_model)
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    for lengths in ([9, 7, 4], [12, 12], [5, 3, 3, 2]):
        expected, found = step(plain, rows(lengths)), step(compiled, rows(lengths))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-5, msg=f"{name} {lengths}")
    assert 1 <= graphs["unique_graphs"] <= 4  # not one for each layer and each size
    expected, found = (step(task, rows([9, 7]), bf16=True) for task in (plain, compiled))
    names = list(expected)
    one, other = (torch.cat([each[name].flatten() for name in names]) for each in (expected, found))
    assert (one - other).norm() < 0.03 * one.norm()


@pytest.mark.usefixtures("as_captured")
def test_a_compiled_classifier_still_computes_its_last_layer_for_the_first_token_only(
    tiny_backbone: TinyBackbone,
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert")).train()
    assert keep_first_token_only(model)
    layers = model.bert.encoder.layer
    seen: list[tuple[int, ...]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(tuple(output.shape)))
    compile_layers(model)
    model(**inputs([9, 7, 4]))
    assert [shape[:2] for shape in seen] == [(3, 9)] * (len(layers) - 1) + [(3, 1)]


@pytest.mark.usefixtures("as_captured")
def test_a_hook_that_is_added_during_training_runs(tiny_backbone: TinyBackbone) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert")).train()
    compile_layers(model)
    model(**inputs([9, 7]))
    called: list[int] = []
    model.bert.encoder.layer[-1].output.register_forward_hook(lambda *_: called.append(1))
    model(**inputs([9, 7]))
    assert called == [1]


@pytest.mark.usefixtures("as_captured")
def test_a_first_batch_of_as_many_rows_as_tokens_is_compiled_as_any(tiny_backbone: TinyBackbone) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert")).train()
    compile_layers(model)
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    model(**inputs([4, 4, 4, 3]))
    before = graphs["unique_graphs"]
    model(**inputs([9, 7, 4]))
    assert graphs["unique_graphs"] == before >= 1


def test_only_training_is_compiled(tiny_backbone: TinyBackbone, calls: list[nn.Module]) -> None:
    task = decoder(tiny_backbone("llama"))
    names = {name: type(module).__name__ for name, module in task.named_modules()}
    keys = list(task.state_dict())
    compile_layers(task.transformers_model)
    assert {name: type(module).__name__ for name, module in task.named_modules()} == names
    assert list(task.state_dict()) == keys
    task.eval()
    with torch.no_grad():
        loss_of(task, rows([6, 4]))
    loss_of(task, rows([6, 4]))
    task.train()
    with torch.no_grad():
        loss_of(task, rows([6, 4]))
    assert calls == []
    compile_layers(task.transformers_model)  # as a second training would
    loss_of(task, rows([6, 4]))
    assert len(calls) == task.transformers_model.config.num_hidden_layers


def test_a_copy_of_a_compiled_model_runs_its_own_layers(tiny_backbone: TinyBackbone, calls: list[nn.Module]) -> None:
    task = decoder(tiny_backbone("llama"))
    compile_layers(task.transformers_model)
    other = copy.deepcopy(task.transformers_model)
    other(**{name: rows([4, 3])[name] for name in ("input_ids", "attention_mask")})
    assert calls
    assert set(calls) <= set(other.modules())
    assert not set(calls) & set(task.modules())


def qkv(tokens: int, groups: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 4, tokens, 8), (2, 4 // groups, tokens, 8), (2, 4 // groups, tokens, 8)]
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def test_kernels_give_the_same_gradients(tiny_backbone: TinyBackbone) -> None:
    task = decoder(tiny_backbone("llama"))
    for each in task.parameters():
        if each.requires_grad:
            torch.nn.init.normal_(each, std=0.05)
    expected = step(task, rows([9, 7, 4]))
    compile_layers(task.transformers_model)
    for name, value in step(task, rows([9, 7, 4])).items():
        torch.testing.assert_close(value, expected[name], rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("words", [{"is_causal": True}, {"is_causal": False}, {"masked": True}])
def test_attention_in_compiled_code_is_that_of_plain_code(groups: int, words: dict[str, Any]) -> None:
    layer = nn.Module()
    layer.num_key_value_groups = groups  # type: ignore[assignment]
    mask = None
    if words.pop("masked", False):
        mask = (torch.arange(11) < torch.tensor([11, 5])[:, None])[:, None, None].expand(2, 1, 11, 11)
    compiled = torch.compile(cpu_attention_forward, dynamic=True)
    results = []
    for attend in (cpu_attention_forward, compiled):
        inputs = qkv(11, groups)
        y, _ = attend(layer, *inputs, mask, **words)
        y.square().sum().backward()
        results.append([y.detach(), *(each.grad for each in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("without_kernels")
def test_dropout_in_compiled_attention_has_the_mean_of_plain_attention() -> None:
    q, k, v = (each.detach() for each in qkv(6, 1))
    compiled = torch.compile(cpu_attention_forward, dynamic=True)
    layer = nn.Module()
    expected, _ = cpu_attention_forward(layer, q, k, v, None, is_causal=False)
    torch.manual_seed(1)
    drawn = torch.stack([compiled(layer, q, k, v, None, dropout=0.25, is_causal=False)[0] for _ in range(2000)])
    assert drawn.std(dim=0).min() > 0
    error = (drawn.mean(dim=0) - expected).abs()
    assert (error <= 5 * drawn.std(dim=0) / 2000**0.5 + 1e-6).all()


def test_long_texts_hold_no_attention_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    kept: list[int] = []
    for tokens in (MODERATE, MODERATE + 8):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
            kept.clear()
            cpu_attention_forward(nn.Module(), *qkv(tokens, 1), None, is_causal=False)
        assert (max(kept) >= tokens**2) == (tokens <= MODERATE)


def trainer(**settings: Any) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **settings)


def test_what_does_not_go_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SequenceClassificationTask("anywhere", torch_compile=True)
    task.check_trainer(trainer(strategy="ddp", devices=2))
    sharding = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    with pytest.raises(ConfigurationError, match=r"torch_compile does not work with trainer.strategy ModelParallelS"):
        task.check_trainer(trainer(strategy=sharding, devices=2))
    quantized = SequenceClassificationTask("anywhere", torch_compile=True, quantization=QuantizationSettings())
    with pytest.raises(ConfigurationError, match=r"torch_compile does not work with model.quantization"):
        quantized.check_trainer(trainer())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigurationError, match=r"no-such-compiler is not installed"):
        task.check_trainer(trainer())
    SequenceClassificationTask("anywhere").check_trainer(trainer())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"torch_compile is true, but Linear has no list of layers"):
        compile_layers(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_stopped_run_resumes_bit_for_bit(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    data = save_tiny_clinc150(tmp_path / "clinc150")
    words = fit_words(tiny_backbone("bert"), data, tmp_path)[1:]
    more = ["--model.torch_compile=true", "--model.base_dropout=0.1", "--checkpoint.every_n_train_steps=2"]
    runs = Runs([*words, *more], tmp_path)
    assert runs.start("left alone")[0] == 0, (tmp_path / "left alone/output.txt").read_text()
    assert runs.start("killed", Moment(STEP, 4, 0.001))[0] != 0
    assert runs.start("killed")[0] == 0
    assert equal_bitwise(runs.result("killed"), runs.result("left alone"))

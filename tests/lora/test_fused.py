"""The fused LoRA layer computes what PEFT's does, gradients included, and steps aside where it cannot."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_lightning.lora import fused
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.fused import FusedLoraLinear, fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from tests.conftest import TinyClassifier

IN, OUT, R = 6, 5, 3


def adapted(dtype: torch.dtype = torch.float64, layer_bias: bool = True, **settings: object) -> PeftModel:
    """One adapted linear layer with B away from zero, as PEFT makes it."""
    torch.manual_seed(0)
    config = LoraConfig(r=R, lora_alpha=7, target_modules=["0"], **{"lora_dropout": 0.0, **settings})  # type: ignore[arg-type]
    model = get_peft_model(nn.Sequential(nn.Linear(IN, OUT, bias=layer_bias)), config).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def pair(**settings: object) -> tuple[PeftModel, PeftModel]:
    """The same adapted layer twice: PEFT's own and the fused one."""
    plain = adapted(**settings)  # type: ignore[arg-type]
    other = copy.deepcopy(plain)
    assert fuse_lora_layers(other) == 1
    return plain, other


def test_dropout_follows_its_own_mode() -> None:
    _, model = pair(lora_dropout=0.5)
    model.eval()
    layer_of(model).lora_dropout.train()  # as for Monte Carlo dropout
    x = torch.ones(4, IN, dtype=torch.float64)
    assert not torch.equal(model(x), model(x))
    model.train()
    layer_of(model).lora_dropout.eval()
    assert torch.equal(model(x), model(x))


def layer_of(model: nn.Module) -> FusedLoraLinear:
    return next(module for module in model.modules() if isinstance(module, FusedLoraLinear))


def results(model: nn.Module, x: Tensor, needs_input_grad: bool = True) -> dict[str, Tensor]:
    """Output and every gradient, by name."""
    torch.manual_seed(1)
    x = x.detach().clone().requires_grad_(needs_input_grad)
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {"y": y.detach(), "x": x.grad, **grads}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        torch.testing.assert_close(
            tensor, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time the fused function runs."""
    calls: list[int] = []
    apply = fused._LoraLinear.apply
    monkeypatch.setattr(fused._LoraLinear, "apply", lambda *args: (calls.append(1), apply(*args))[1])
    return calls


@pytest.mark.parametrize("needs_input_grad", [True, False])
@pytest.mark.parametrize("shape", [(4, IN), (2, 3, IN), (2, 3, 2, IN), (1, IN), (IN,)])
@pytest.mark.parametrize("settings", [{}, {"bias": "all"}, {"layer_bias": False}, {"use_rslora": True}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_output_and_every_gradient_equal_pefts(
    fused_calls: list[int],
    dtype: torch.dtype,
    tolerance: float,
    settings: dict[str, object],
    shape: tuple[int, ...],
    needs_input_grad: bool,
) -> None:
    plain, other = pair(dtype=dtype, **settings)
    x = torch.randn(shape, dtype=dtype)
    right = results(plain, x, needs_input_grad)
    left = results(other, x, needs_input_grad)
    assert_same(left, right, tolerance)
    assert len(fused_calls) == 1
    assert ("x" in left) == needs_input_grad
    assert any("base_layer.bias" in name for name in left) == (settings.get("bias") == "all")
    assert not any("base_layer.weight" in name for name in left)


def test_input_of_any_memory_layout(fused_calls: list[int]) -> None:
    plain, other = pair()
    x = torch.randn(IN, 4, 3, dtype=torch.float64).permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(other(x), plain(x), rtol=1e-12, atol=1e-12)
    assert fused_calls


def test_an_empty_batch_passes() -> None:
    assert adapted()(torch.empty(0, IN, dtype=torch.float64)).shape == (0, OUT)
    _, other = pair()
    assert other(torch.empty(0, 4, IN, dtype=torch.float64)).shape == (0, 4, OUT)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_finite_differences(bias: bool, masked: bool) -> None:
    torch.manual_seed(0)

    def tensor(*shape: int, trains: bool = True) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=trains)

    x, weight, a, b = tensor(4, IN), tensor(OUT, IN, trains=False), tensor(R, IN), tensor(OUT, R)
    mask = (torch.rand(4, IN, dtype=torch.float64) > 0.5).double() * 2 if masked else None
    assert torch.autograd.gradcheck(
        lambda *args: fused._LoraLinear.apply(args[0], None, weight, args[1], args[2], args[3], 1.7, mask),
        (x, tensor(OUT) if bias else None, a, b),
    )


@pytest.mark.parametrize("shape", [(4, IN), (2, 3, IN)])
def test_dropout_is_the_formula_with_the_drawn_mask(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    _, other = pair(lora_dropout=0.4, bias="all")
    mask = (torch.rand(4 if len(shape) == 2 else 6, IN, dtype=torch.float64) > 0.4).double() / 0.6
    drawn: list[tuple[torch.Size, float]] = []

    def draw(x: Tensor, p: float) -> Tensor:
        drawn.append((x.shape, p))
        return mask

    monkeypatch.setattr(fused, "inverted_mask", draw)
    x = torch.randn(shape, dtype=torch.float64)
    left = results(other.train(), x)
    assert drawn == [(mask.shape, 0.4)]

    leaves = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    leaves["x"] = x.clone().requires_grad_()
    weight, bias, a, b = (
        next(value for name, value in leaves.items() if name.endswith(end))
        for end in ("base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")
    )
    y = leaves["x"] @ weight.t() + bias + 7 / R * (leaves["x"] * mask.view(shape)) @ a.t() @ b.t()
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    right = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None and leaf is not weight}
    assert_same(left, {"y": y.detach(), **right}, 1e-12)


def test_dropout_is_drawn_while_training_only() -> None:
    plain, other = pair(lora_dropout=0.5)
    use_fast_dropout(other)
    x = torch.randn(4, IN, dtype=torch.float64)
    torch.testing.assert_close(other.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)
    other.train()
    assert not torch.equal(other(x), other(x))


def test_mean_over_dropout_is_the_output_without_it() -> None:
    _, other = pair(lora_dropout=0.25, dtype=torch.float32)
    x = torch.randn(1, IN)
    torch.manual_seed(0)
    outputs = other.train()(x.expand(100_000, IN)).detach()
    error = outputs.mean(dim=0) - other.eval()(x)[0].detach()
    assert bool((error.abs() < 5 * outputs.std(dim=0) / 100_000**0.5).all())


def disable(model: PeftModel) -> None:
    model.base_model.disable_adapter_layers()


def merge(model: PeftModel) -> None:
    model.merge_adapter()


def second_adapter(model: PeftModel) -> None:
    torch.manual_seed(3)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    model.double()
    model.base_model.set_adapter(["default", "second"])


def other_adapter(model: PeftModel) -> None:
    torch.manual_seed(3)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    model.double()
    model.set_adapter("second")


def unfreeze(model: PeftModel) -> None:
    model.requires_grad_(True)


def nothing(model: PeftModel) -> None:
    del model


@pytest.mark.parametrize(
    ("change", "settings", "fuses"),
    [
        (nothing, {}, True),
        (other_adapter, {}, True),
        (merge, {}, False),
        (disable, {}, False),
        (second_adapter, {}, False),
        (unfreeze, {}, False),
        (nothing, {"use_dora": True}, False),
        (nothing, {"lora_bias": True}, False),
    ],
    ids=["plain", "other adapter", "merged", "disabled", "two adapters", "base trains", "DoRA", "lora_bias"],
)
def test_pefts_way_is_taken_where_the_fused_one_would_be_wrong(
    fused_calls: list[int], change: Callable[[PeftModel], None], settings: dict[str, object], fuses: bool
) -> None:
    plain, other = pair(**settings)
    change(plain)
    change(other)
    x = torch.randn(4, IN, dtype=torch.float64)
    assert_same(results(other, x), results(plain, x), 1e-10)
    assert bool(fused_calls) == fuses


def test_merging_and_unmerging_come_back_to_the_fused_way(fused_calls: list[int]) -> None:
    _, other = pair()
    x = torch.randn(4, IN, dtype=torch.float64)
    before = other(x)
    other.merge_adapter()
    torch.testing.assert_close(other(x), before, rtol=1e-10, atol=1e-10)
    other.unmerge_adapter()
    torch.testing.assert_close(other(x), before, rtol=1e-10, atol=1e-10)
    assert len(fused_calls) == 2
    torch.testing.assert_close(other.merge_and_unload()(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"bias": "all"}, {"layer_bias": False}])
def test_autocast_rounds_no_more_than_in_pefts_way(
    monkeypatch: pytest.MonkeyPatch, fused_calls: list[int], settings: dict[str, object], half: torch.dtype
) -> None:
    monkeypatch.setattr("tests.lora.test_fused.IN", 48)
    monkeypatch.setattr("tests.lora.test_fused.OUT", 40)
    plain, other = pair(dtype=torch.float32, **settings)
    x = torch.randn(64, 48)
    exact = results(copy.deepcopy(plain).double(), x.double())
    with torch.autocast("cpu", dtype=half):
        left, right = results(other, x), results(plain, x)
    assert len(fused_calls) == 1
    assert left["y"].dtype == half
    assert left.keys() == right.keys() == exact.keys()
    for name, reference in exact.items():
        assert left[name].dtype == right[name].dtype, name
        errors = [float((found[name].double() - reference).norm() / reference.norm()) for found in (left, right)]
        assert errors[0] < 1.5 * errors[1] + 1e-4, name
        assert errors[0] < 0.1, name  # a bias's gradient is a sum that cancels


def test_autocast_drops_elements_of_the_adapters_input_only(fused_calls: list[int]) -> None:
    _, other = pair(dtype=torch.float32, lora_dropout=0.5)
    x = torch.ones(2000, IN)
    kept = other.eval()(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = other.train()(x).float()
    assert len(fused_calls) == 2
    torch.testing.assert_close(trained.mean(dim=0), kept, rtol=0.1, atol=0.1)
    assert trained.std(dim=0).min() > 0


def test_autocast_leaves_float64_alone(fused_calls: list[int]) -> None:
    plain, other = pair()
    x = torch.randn(4, IN, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(results(other, x), results(plain, x), 0.0)
    assert not fused_calls


def test_another_dtype_of_the_base_goes_pefts_way(fused_calls: list[int]) -> None:
    plain, other = pair(dtype=torch.float32)
    for model in (plain, other):
        next(m for n, m in model.named_modules() if n.endswith("base_layer")).to(torch.bfloat16)
    x = torch.randn(4, IN, dtype=torch.bfloat16)
    assert_same(results(other, x), results(plain, x), 0.0)
    assert not fused_calls


def test_mixed_batches_of_adapters_go_pefts_way(fused_calls: list[int]) -> None:
    plain, other = pair()
    x = torch.randn(2, IN, dtype=torch.float64)
    names = ["default", "__base__"]
    torch.testing.assert_close(
        layer_of(other)(x, adapter_names=names), plain.base_model.model[0](x, adapter_names=names)
    )
    assert not fused_calls


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    _, other = pair()
    x = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(other(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.pow(2).sum().backward()


def test_fusing_changes_no_name_and_no_saved_byte(tmp_path: Path, tiny_classifier: TinyClassifier) -> None:
    loaded = tiny_classifier("bert")
    model = attach_lora(loaded.model, LoraSettings(r=2), loaded.lacked, "SEQ_CLS")
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "before", save_embedding_layers=False)
    assert fuse_lora_layers(model) == 12
    assert fuse_lora_layers(model) == 0
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path / "after", save_embedding_layers=False)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_conv1d_layers_are_left_to_peft(tiny_classifier: TinyClassifier) -> None:
    loaded = tiny_classifier("gpt2")
    assert fuse_lora_layers(attach_lora(loaded.model, LoraSettings(r=2), loaded.lacked, "SEQ_CLS")) == 0


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "distilbert", "modernbert", "opt", "qwen2"])
def test_whole_model_gives_the_same_logits_and_gradients(tiny_classifier: TinyClassifier, family: str) -> None:
    loaded = tiny_classifier(family)
    plain = attach_lora(loaded.model, LoraSettings(r=2), loaded.lacked, "SEQ_CLS").double().eval()
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    other = copy.deepcopy(plain)
    assert fuse_lora_layers(other) > 0
    batch = {"input_ids": torch.arange(5, 25).view(2, 10), "labels": torch.tensor([0, 2])}
    outputs = [model(**batch) for model in (plain, other)]
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-9, atol=1e-9)
    for (name, left), right in zip(other.named_parameters(), plain.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None), name
        if left.grad is not None and right.grad is not None:
            torch.testing.assert_close(left.grad, right.grad, rtol=1e-7, atol=1e-9)

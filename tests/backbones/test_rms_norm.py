"""Norms in one function: the same numbers and gradients, for the formula that it knows and no other."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from lora_lightning.backbones import rms_norm
from lora_lightning.backbones.rms_norm import use_fast_rms_norm

N = 40


def frozen(kind: type[nn.Module] = LlamaRMSNorm, **options: Any) -> nn.Module:
    """A norm with weights of its own."""
    torch.manual_seed(0)
    norm = kind(N, **options).requires_grad_(requires_grad=False)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    return norm


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time the function runs."""
    found: list[int] = []
    apply = rms_norm._RmsNorm.apply
    monkeypatch.setattr(rms_norm._RmsNorm, "apply", lambda *args: (found.append(1), apply(*args))[1])
    return found


def results(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient."""
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    (grad,) = torch.autograd.grad(y, leaf, torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    return y, grad


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm, nn.RMSNorm], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [(N,), (3, N), (2, 3, N), (0, N)], ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_output_and_gradient_are_those_of_the_formula(
    calls: list[int], kind: type[nn.Module], shape: tuple[int, ...], size: float
) -> None:
    plain = frozen(kind, eps=1e-6)
    fast = copy.deepcopy(plain)
    assert use_fast_rms_norm(nn.Sequential(fast)) == 1
    calls.clear()
    x = size * torch.randn(shape)
    exact = results(copy.deepcopy(plain).double(), x.double())
    for found, theirs, reference in zip(results(fast, x), results(plain, x), exact, strict=True):
        assert found.dtype == theirs.dtype
        torch.testing.assert_close(found.double(), theirs.double(), rtol=1e-5, atol=1e-6 * float(1 + 1 / size))
        error, their_error = ((each.double() - reference).norm() for each in (found, theirs))
        assert error <= 2 * their_error + 1e-6 * reference.norm()
    assert len(calls) == 1


def test_the_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rms_norm._RmsNorm.apply(x, weight, 1e-5), (x,))


def test_a_layout_that_is_not_contiguous() -> None:
    plain = frozen()
    fast = copy.deepcopy(plain)
    use_fast_rms_norm(nn.Sequential(fast))
    x = torch.randn(4, N, 3).transpose(1, 2)
    for found, expected in zip(results(fast, x), results(plain, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class CenteredRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.mean(dim=-1, keepdim=True))


class DetachedRMSNorm(LlamaRMSNorm):
    """The same numbers, another gradient."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).detach()
        return self.weight * hidden_states * scale


class EpsilonOutsideRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states / (hidden_states.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        return super().forward(hidden_states * functional.silu(gate))


@pytest.mark.parametrize(
    "kind", [GemmaRMSNorm, CenteredRMSNorm, DetachedRMSNorm, EpsilonOutsideRMSNorm, GatedRMSNorm, T5LayerNorm]
)
def test_other_formulas_and_names_are_left_alone(kind: type[nn.Module]) -> None:
    norm = frozen(kind)
    assert use_fast_rms_norm(nn.Sequential(norm)) == 0
    assert type(norm) is kind


def test_evaluation_weights_that_train_and_other_dtypes_are_left_to_the_norm(calls: list[int]) -> None:
    norm = frozen()
    use_fast_rms_norm(nn.Sequential(norm))
    calls.clear()
    x = torch.randn(2, N, requires_grad=True)
    with torch.no_grad():
        norm(x)
    norm(x.to(torch.bfloat16))
    norm(hidden_states=x)
    norm.requires_grad_()
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    assert not calls


def test_evaluation_gives_the_same_bits() -> None:
    plain = frozen()
    fast = copy.deepcopy(plain)
    use_fast_rms_norm(nn.Sequential(fast))
    x = torch.randn(5, N)
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))


def test_numbers_do_not_depend_on_whether_the_input_needs_a_gradient() -> None:
    norm = frozen()
    use_fast_rms_norm(nn.Sequential(norm))
    x = torch.randn(50, N)
    assert torch.equal(norm(x), norm(x.clone().requires_grad_()))


def test_hooks_run_and_nothing_is_switched_twice(calls: list[int]) -> None:
    model = nn.Sequential(frozen(), frozen())
    names = list(model.state_dict())
    assert use_fast_rms_norm(model) == 2
    assert use_fast_rms_norm(model) == 0
    assert list(model.state_dict()) == names
    assert type(model[0]) is type(model[1])
    assert type(model[0]).__name__ == "LlamaRMSNorm"
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    calls.clear()
    model(torch.randn(2, N, requires_grad=True))
    assert (len(calls), len(seen)) == (2, 1)


def test_copies_and_pickles_are_switched_too() -> None:
    norm = frozen()
    use_fast_rms_norm(nn.Sequential(norm))
    file = io.BytesIO()
    torch.save(norm, file)
    file.seek(0)
    x = torch.randn(2, N)
    for other in (copy.deepcopy(norm), torch.load(file, weights_only=False)):
        assert type(other) is type(norm)
        assert other.weight is not norm.weight
        for found, expected in zip(results(other, x), results(norm, x), strict=True):
            assert torch.equal(found, expected)


def test_switching_draws_nothing_and_works_without_values() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        norm = LlamaRMSNorm(N)
    assert use_fast_rms_norm(nn.Sequential(norm)) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_norms_are_found_while_a_model_is_built_without_weights() -> None:
    with torch.device("meta"):
        norm = LlamaRMSNorm(8)
        norm.requires_grad_(False)
        assert use_fast_rms_norm(nn.Sequential(norm)) == 1

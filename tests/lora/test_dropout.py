"""The cheap dropout mask has dropout's distribution, follows the seed, and changes nothing in eval mode."""

import copy

import pytest
import torch
from torch import nn

from lora_lightning.lora.dropout import LEVELS, FastDropout, inverted_mask, random_signs, use_fast_dropout


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mask_is_zero_or_the_inverse_of_what_is_kept(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rounded = min(round(p * LEVELS) / LEVELS, (LEVELS - 1) / LEVELS)
    mask = inverted_mask(torch.empty(7, 3, dtype=dtype), p)
    kept = torch.tensor(1 / (1 - rounded), dtype=torch.float32).to(dtype)
    assert mask.shape == (7, 3)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) <= {0.0, kept.item()}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_drop_the_same_elements(p: float, dtype: torch.dtype) -> None:
    x = torch.empty(7, 11, dtype=dtype)
    torch.manual_seed(0)
    mask = inverted_mask(x, p)
    torch.manual_seed(0)
    signs, factor = random_signs(x, p)
    assert signs.dtype == dtype
    assert set(signs.unique().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(signs.clamp_min(0) * factor, mask)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_share_and_mean_are_those_of_dropout(p: float) -> None:
    torch.manual_seed(1)
    count = 400_000
    mask = inverted_mask(torch.empty(count), p)
    rounded = round(p * LEVELS) / LEVELS
    assert abs(rounded - p) <= 0.5 / LEVELS
    deviation = (rounded * (1 - rounded) / count) ** 0.5
    assert abs((mask == 0).double().mean().item() - rounded) < 5 * deviation
    assert abs(mask.double().mean().item() - 1) < 5 * deviation / (1 - rounded)


@pytest.mark.parametrize("p", [0.0005, 0.0015])
def test_a_small_probability_is_not_rounded_to_0(p: float) -> None:
    torch.manual_seed(1)
    count = 400_000
    mask = inverted_mask(torch.empty(count), p)
    assert abs((mask == 0).double().mean().item() - p) < 5 * (p / count) ** 0.5
    assert mask.max().item() == pytest.approx(1 / (1 - p))
    assert random_signs(torch.empty(count), p)[0].min() == -1


def test_neighbouring_elements_are_independent() -> None:
    torch.manual_seed(2)
    dropped = (inverted_mask(torch.empty(50_000, 8), 0.5) == 0).double()
    correlation = torch.corrcoef(dropped.t()) - torch.eye(8)
    assert correlation.abs().max() < 5 / 50_000**0.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (3, 5, 7), (2, 0, 3)])
def test_any_number_of_elements(shape: tuple[int, ...]) -> None:
    assert inverted_mask(torch.empty(shape), 0.5).shape == shape


def test_mask_follows_the_seed_and_moves_on() -> None:
    x = torch.empty(1000)
    torch.manual_seed(3)
    first, second = inverted_mask(x, 0.5), inverted_mask(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(inverted_mask(x, 0.5), first)
    torch.manual_seed(4)
    assert not torch.equal(inverted_mask(x, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_identity_in_eval_mode_and_at_zero(p: float, training: bool) -> None:
    x = torch.randn(5, 5)
    before = torch.get_rng_state()
    assert torch.equal(FastDropout(p).train(training)(x), x)
    if not training:
        assert torch.equal(torch.get_rng_state(), before)


def test_everything_is_dropped_at_one() -> None:
    assert not FastDropout(1.0).train()(torch.ones(100)).any()


def test_gradient_passes_the_same_mask() -> None:
    x = torch.randn(13, 3, requires_grad=True)
    grad = torch.randn(13, 3)
    torch.manual_seed(5)
    FastDropout(0.4).train()(x).backward(grad)
    torch.manual_seed(5)
    assert torch.equal(x.grad, grad * inverted_mask(x, 0.4))  # type: ignore[arg-type]


def test_input_that_is_not_contiguous() -> None:
    x = torch.randn(6, 4).t()
    torch.manual_seed(6)
    y = FastDropout(0.5).train()(x)
    assert bool(((y == 0) | torch.isclose(y, 2 * x)).all())


def test_only_plain_dropout_is_replaced_and_keeps_its_settings() -> None:
    class OwnDropout(nn.Dropout):
        pass

    model = nn.Sequential(
        nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2), nn.Dropout1d(0.3)), OwnDropout(0.4), nn.Linear(2, 2)
    )
    names = list(model.state_dict())
    use_fast_dropout(model)
    kinds = [type(module) for module in (model[0], model[1][0], model[1][1], model[2], model[3])]
    assert kinds == [FastDropout, FastDropout, nn.Dropout1d, OwnDropout, nn.Linear]
    assert (model[0].p, model[1][0].p) == (0.1, 0.2)
    assert list(model.state_dict()) == names


def test_replacing_keeps_the_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    use_fast_dropout(model)
    assert not model[0].training
    assert copy.deepcopy(model)[0].p == 0.5

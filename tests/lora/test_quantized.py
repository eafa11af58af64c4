"""bitsandbytes' layers: counted, read and quantized again without a change to them."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lora_lightning.errors import BackboneError
from lora_lightning.lora.quantized import (
    dequantized_weight,
    keep_4bit_weights_in_order,
    keep_8bit_scales_beside_weights,
    parameter_count,
    quantized_bits,
    requantized,
)
from lora_lightning.tasks.optimization import count_trainable_parameters

bnb = pytest.importorskip("bitsandbytes")
IN, OUT = 128, 64


def layer(bits: int, double: bool = True, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN)
    if bits == 4:
        made = bnb.nn.Linear4bit(IN, OUT, bias=bias, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(weight, quant_type="nf4", compress_statistics=double, module=made).to("cpu")
    else:
        made = bnb.nn.Linear8bitLt(IN, OUT, bias=bias, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False).to("cpu")
    return made


def bytes_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("bits", [4, 8])
def test_parameters_count_as_what_they_stand_for(bits: int) -> None:
    model = nn.Sequential(layer(bits), nn.Linear(OUT, 2))
    assert quantized_bits(model[0]) == bits
    assert quantized_bits(model[1]) is None
    assert parameter_count(model[0].weight) == IN * OUT
    # Without this, half of a 4-bit weight's parameters are missing.
    expected = IN * OUT + OUT + 2 * OUT + 2
    assert count_trainable_parameters(model) == (OUT + 2 * OUT + 2, expected)


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.5), (8, 0.02)])
def test_reading_a_weight_leaves_the_layer_as_it_was(bits: int, tolerance: float) -> None:
    made = layer(bits, bias=False).eval()
    keep_4bit_weights_in_order(made)
    x = torch.randn(3, IN)
    with torch.no_grad():
        expected = made(x)  # the first call moves an 8-bit layer's scales
        before, weight = bytes_of(made), dequantized_weight(made)
        torch.manual_seed(0)
        assert (weight.float() - torch.randn(OUT, IN)).abs().max() < tolerance
        torch.testing.assert_close(x @ weight.float().T, expected, rtol=0, atol=0.3 if bits == 8 else 1e-4)
        assert torch.equal(made(x), expected)
    after = bytes_of(made)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("double", [True, False])
def test_an_evaluation_on_any_cpu_leaves_4bit_weights_in_order(double: bool) -> None:
    made = layer(4, double).eval()
    keep_4bit_weights_in_order(made)
    weight = dequantized_weight(made)
    with torch.no_grad():
        made(torch.randn(3, IN))
    assert torch.equal(dequantized_weight(made), weight)
    x = torch.randn(3, IN, requires_grad=True)
    made.train()(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(3, IN), rtol=1e-4, atol=1e-4)


def test_a_reordered_weight_is_refused() -> None:
    made = layer(4)
    made.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BackboneError, match=r"call keep_4bit_weights_in_order\(model\) before"):
        dequantized_weight(made)


@pytest.mark.parametrize("bits", [4, 8])
def test_requantizing_makes_another_layer_of_the_same_kind_and_draws_nothing(bits: int) -> None:
    made = layer(bits)
    before, state = bytes_of(made), torch.get_rng_state()
    weight = torch.linspace(-1, 1, OUT * IN).view(OUT, IN)
    again = requantized(made, weight)
    assert type(again) is type(made)
    assert again.bias is made.bias
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dequantized_weight(again).float(), weight, rtol=0, atol=0.16 if bits == 4 else 0.01)
    # Quantizing what is quantized changes nothing more.
    twice = dequantized_weight(requantized(made, dequantized_weight(again)))
    torch.testing.assert_close(twice, dequantized_weight(again), rtol=0, atol=0.02)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bytes_of(made).items())


@pytest.mark.parametrize("after_a_run", [False, True])
def test_scales_of_8_bit_weights_follow_them(after_a_run: bool) -> None:
    """As a GPU leaves a layer inside a moved module: the weight there, the rest here."""
    made = layer(8)
    if after_a_run:
        made(torch.randn(3, IN))  # moves the scales from the weight to the layer's state
    owner = made.state if after_a_run else made.weight
    scales, values = owner.SCB, made.weight.data.clone()
    keep_8bit_scales_beside_weights(made)  # nothing moved
    assert owner.SCB is scales
    assert torch.equal(owner.CB, values)
    moved = nn.Module()
    moved.weight = nn.Parameter(torch.empty(OUT, IN, device="meta"))
    moved.state = SimpleNamespace(CB=values, SCB=scales)
    keep_8bit_scales_beside_weights(nn.Sequential(moved))
    assert moved.state.SCB.device.type == "meta"
    assert moved.state.CB.data_ptr() == moved.weight.data_ptr()  # not a second copy of it
    assert moved.state.CB.device.type == "meta"

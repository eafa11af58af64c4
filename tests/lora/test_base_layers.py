"""The linear layers of a base, below adapters and without them, and other weights in them for a while."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_lightning.lora.base_layers import base_linear_layers, base_weight, called_linear_layers, weights_replaced
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.quantized import (
    dequantized_weight,
    keep_4bit_weights_in_order,
    quantized_bits,
    weight_bytes,
)
from lora_lightning.lora.target_modules import linear_layers
from tests.conftest import TinyBackbone
from tests.tiny_quantized import quantized_causal_lm

IDS = torch.arange(5, 25).view(2, 10)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_change_no_name_and_weights_come_back_bit_for_bit(family: str, tiny_backbone: TinyBackbone) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_backbone(family))
    names = list(linear_layers(plain))
    network = attach_lora(plain, LoraSettings(target_modules="attention"), [], "CAUSAL_LM", ["lm_head"]).eval()
    layers, called = base_linear_layers(network), called_linear_layers(network)
    assert list(layers) == list(called) == names
    adapted = adapted_layers(network)
    assert 0 < len(adapted) < len(names)
    assert all((called[name] is adapted[name]) == (name in adapted) for name in adapted)
    assert all(called[name] is layers[name] for name in names if name not in adapted)

    before = network(input_ids=IDS).logits
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chosen = [name for name in names if ".1." in name]
    doubled = {name: 2 * base_weight(layers[name]) for name in chosen}
    with weights_replaced(layers, doubled):
        assert all(torch.equal(base_weight(layers[name]), doubled[name]) for name in chosen)
        assert not torch.allclose(network(input_ids=IDS).logits, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(network(input_ids=IDS).logits, before)
    with pytest.raises(KeyError), weights_replaced(layers, doubled | {"other": doubled[chosen[0]]}):
        pass
    assert torch.equal(network(input_ids=IDS).logits, before)


@pytest.mark.parametrize(("bits", "double", "each"), [(4, False, 4.5), (4, True, 4.127), (8, False, 9.0)])
def test_bytes_of_quantized_weights_count_their_scales(
    bits: int, double: bool, each: float, tiny_backbone: TinyBackbone
) -> None:
    more = {"bnb_4bit_use_double_quant": double} if bits == 4 else {}
    model = quantized_causal_lm(tiny_backbone("llama"), bits, **more)
    keep_4bit_weights_in_order(model)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")  # 64 x 32
    assert quantized_bits(layer) == bits
    code = 4 * 16 * (bits == 4) + (4 * 256 + 4) * double  # the numbers that codes stand for, and an offset
    expected = 2048 * each / 8 if not double else 1024 + 32 + 4  # a byte for each of 32 scales, one scale of scales
    assert weight_bytes(layer) == pytest.approx(expected + code, abs=1)
    with torch.no_grad():
        model(input_ids=IDS)
    assert weight_bytes(layer) == pytest.approx(expected + code, abs=1)
    head = model.get_submodule("lm_head")
    assert weight_bytes(head) == 4 * 200 * 32
    assert dequantized_weight(layer).shape == (64, 32)

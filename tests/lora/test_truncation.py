"""Truncated adapters are NumPy's best approximation, and the model gets its own factors back."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_lightning.lora.delta import adapter_deltas
from lora_lightning.lora.truncation import truncate_factors, truncated_adapters
from tests.conftest import TinyClassifier


@pytest.mark.parametrize(("shape", "r"), [((20, 30, 6), 2), ((3, 30, 6), 2), ((20, 4, 6), 5), ((20, 30, 6), 0)])
def test_it_is_the_truncated_svd(shape: tuple[int, int, int], r: int) -> None:
    out_features, in_features, rank = shape
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(rank, in_features, generator=random), torch.randn(out_features, rank, generator=random)
    new_a, new_b = truncate_factors(a, b, r)
    u, s, vh = np.linalg.svd((b.double() @ a.double()).numpy(), full_matrices=False)
    np.testing.assert_allclose((new_b.double() @ new_a.double()).numpy(), (u[:, :r] * s[:r]) @ vh[:r], atol=1e-5)
    assert new_a.shape == a.shape
    assert new_b.shape == b.shape


def test_a_model_is_truncated_for_a_while(tiny_classifier: TinyClassifier) -> None:
    config = LoraConfig(r=4, target_modules=["query", "value"], rank_pattern={"layer.0.attention.self.value": 1})
    model = get_peft_model(tiny_classifier("bert").model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with truncated_adapters(model, 2):
        ranks = [int(torch.linalg.matrix_rank(delta.dense(), atol=1e-4)) for delta in adapter_deltas(model)]
        assert sorted(ranks) == [1, 2, 2, 2]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

"""Computing the last layer for the first token only changes no logit and no gradient."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lora_lightning.backbones.first_token import every_token, keep_first_token_only
from lora_lightning.lora import families
from tests.conftest import TinyClassifier
from tests.tiny_models import FAMILIES

SHORTENED = {name for name, family in families.FAMILIES.items() if family.first_token is not None}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    mask = (torch.arange(9) < torch.tensor([9, 6, 1])[:, None]).long()
    return {"input_ids": torch.randint(5, 100, (3, 9)), "attention_mask": mask}


def random_classifier(family: str) -> PreTrainedModel:
    """From a configuration: for the families that `tests/tiny_models.py` has no pretrained folder of."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(family, vocab_size=200, max_position_embeddings=40, pad_token_id=0, **sizes)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model


@pytest.mark.parametrize("family", sorted({*FAMILIES, *SHORTENED}))
def test_same_logits_and_gradients(tiny_classifier: TinyClassifier, batch: dict[str, Tensor], family: str) -> None:
    def load() -> PreTrainedModel:
        return tiny_classifier(family).model if family in FAMILIES else random_classifier(family)

    whole, cut = load().eval(), load().eval()
    assert keep_first_token_only(cut) == (family in SHORTENED)
    expected, logits = whole(**batch).logits, cut(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (logits * weights).sum().backward()
    for (name, ours), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) & set(SHORTENED)))
def test_the_last_layer_really_has_one_token(
    tiny_classifier: TinyClassifier, batch: dict[str, Tensor], family: str
) -> None:
    model = tiny_classifier(family).model.eval()
    keep_first_token_only(model)
    hidden = model.base_model(**batch, output_hidden_states=True)
    assert hidden.last_hidden_state.shape[1] == 1
    with every_token(model):
        whole = model(**batch, output_hidden_states=True)
    assert whole.hidden_states[-1].shape[:2] == batch["input_ids"].shape
    torch.testing.assert_close(whole.hidden_states[-1][:, :1], hidden.last_hidden_state, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(**batch).logits, whole.logits, rtol=1e-5, atol=1e-6)
    assert model.base_model(**batch).last_hidden_state.shape[1] == 1  # the shortcut is back

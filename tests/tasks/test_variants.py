"""Every variant, and every pair, trains, saves, reloads and is exported with the same logits, or is refused.

A checkpoint is reloaded by this package, the exported folder by plain PEFT or transformers on the pretrained weights.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_lightning.backbones.export import export_model
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.merging import without_adapters
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150
from tests.variants import LORA, OPTIMIZATION, logits_of, perturb_trainable_parameters, settings_of, train_classifier

NAMES = [name for name in (*LORA, *OPTIMIZATION) if name != "loftq"]  # which needs a quantized base
REFUSED = {
    *(("rslora", "adalora"), ("dora", "adalora"), ("rank_pattern", "adalora"), ("alpha_pattern", "adalora")),
    *((name, "adalora") for name in LORA if "init_lora_weights" in LORA[name]),
    *(("adalora", "lorafa"), ("loraplus", "lorafa")),
    *(("embeddings", "tokens"), ("eva", "tokens")),
}


@pytest.fixture(scope="module")
def trained(
    tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[SequenceClassificationTask, Trainer]]:
    """Trains a tiny classifier for a few steps."""
    folder = tmp_path_factory.mktemp("variants")
    data = save_tiny_clinc150(folder / "data")
    return partial(train_classifier, tiny_backbone("bert"), data, folder)


def by_plain_peft(base: Path, folder: Path) -> nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(
        base, config=AutoConfig.from_pretrained(folder, subfolder="config")
    )
    return PeftModel.from_pretrained(model, str(folder))  # type: ignore[no-any-return]


def check_round_trips(task: SequenceClassificationTask, trainer: Trainer, base: Path, folder: Path) -> None:
    perturb_trainable_parameters(task)
    expected = logits_of(task.built_network)
    with without_adapters(task.built_network):
        assert (logits_of(task.built_network) - expected).abs().max() > 1e-3  # or the rest would prove nothing
    trainer.save_checkpoint(folder / "a.ckpt")
    torch.manual_seed(12345)  # whatever is not saved would be drawn differently
    again = SequenceClassificationTask.load_from_checkpoint(folder / "a.ckpt", map_location="cpu", weights_only=True)
    torch.testing.assert_close(logits_of(again.built_network), expected, rtol=0, atol=1e-5)
    export_model(task.built_network, None, folder / "adapter", {})
    torch.manual_seed(54321)
    plain = by_plain_peft(base, folder / "adapter")
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_trains_reloads_and_is_exported(
    trained: Any, tiny_backbone: TinyBackbone, tmp_path: Path, name: str
) -> None:
    task, trainer = trained(settings_of(name))
    check_round_trips(task, trainer, tiny_backbone("bert"), tmp_path)


SAME = ("gaussian", "pissa_niter_4")  # differ from the default, and from pissa, in numbers only
PAIRS = [
    (left, right)
    for left, right in itertools.combinations([name for name in NAMES if name not in SAME], 2)
    if not LORA.get(left, {}).keys() & LORA.get(right, {}).keys()
]


@pytest.mark.parametrize(("left", "right"), PAIRS, ids=["+".join(pair) for pair in PAIRS])
def test_a_pair_of_variants_trains_and_reloads_or_is_refused(
    trained: Any, tiny_backbone: TinyBackbone, tmp_path: Path, left: str, right: str
) -> None:
    if (left, right) in REFUSED:
        with pytest.raises(ConfigurationError, match=r"^model\.(lora|optimization)\..*; "):
            trained(settings_of(left, right), steps=0)
        return
    task, trainer = trained(settings_of(left, right))
    check_round_trips(task, trainer, tiny_backbone("bert"), tmp_path)

"""Every variant, and every pair, trains, saves, reloads and is exported with the same logits, or is refused.

A checkpoint is reloaded by this package, the exported folder by plain PEFT or transformers on the pretrained weights.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_lightning.backbones.export import export_model
from lora_lightning.datamodules import Clinc150DataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import AdaLoraSettings, LoraSettings
from lora_lightning.lora.merging import without_adapters
from lora_lightning.tasks import OptimizationSettings, SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

BUDGET = AdaLoraSettings(target_r=1, init_r=3, tinit=1, tfinal=1, deltaT=1)
LORA: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "eva": {"init_lora_weights": "eva"},
    "rank_pattern": {"rank_pattern": {"query": 4, "layer.1.attention.self.value": 6}},
    "alpha_pattern": {"alpha_pattern": {"value": 5.0}},
    "layers_to_transform": {"layers_to_transform": [1]},
    "bias": {"bias": "lora_only"},
    "embeddings": {"modules_to_save": ["word_embeddings"]},
    "tokens": {"trainable_token_indices": [5, 12]},
    "adalora": {"adalora": BUDGET},
}
OPTIMIZATION: dict[str, dict[str, Any]] = {"loraplus": {"loraplus_lr_ratio": 4.0}, "lorafa": {"lorafa": True}}
NAMES = [*LORA, *OPTIMIZATION]
REFUSED = {
    *(("rslora", "adalora"), ("dora", "adalora"), ("rank_pattern", "adalora"), ("alpha_pattern", "adalora")),
    *((name, "adalora") for name in LORA if "init_lora_weights" in LORA[name]),
    *(("adalora", "lorafa"), ("loraplus", "lorafa")),
    *(("embeddings", "tokens"), ("eva", "tokens")),
}


def settings_of(*names: str) -> dict[str, Any]:
    lora = {"r": 2, "lora_alpha": 3.0, "target_modules": ["query", "value"]}
    if "adalora" in names:
        del lora["r"]
    optimization: dict[str, Any] = {"learning_rate": 0.02}
    for name in names:
        lora |= LORA.get(name, {})
        optimization |= OPTIMIZATION.get(name, {})
    return {"lora": LoraSettings(**lora), "optimization": OptimizationSettings(**optimization)}


@pytest.fixture(scope="module")
def trained(
    tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[SequenceClassificationTask, Trainer]]:
    """Trains a tiny classifier for a few steps."""
    folder = tmp_path_factory.mktemp("variants")
    data = save_tiny_clinc150(folder / "data")

    def train(
        settings: Mapping[str, Any], steps: int = 4, family: str = "bert", **more: Any
    ) -> tuple[SequenceClassificationTask, Trainer]:
        backbone = str(tiny_backbone(family))
        seed_everything(0, verbose=False)
        module = Clinc150DataModule(backbone=backbone, data_dir=str(data), batch_size=8, cache_dir=str(folder))
        task = SequenceClassificationTask(backbone, **settings)
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=str(folder),
            use_distributed_sampler=False,
            **more,
        )
        trainer.fit(task, module)
        return task, trainer

    return train


def logits_of(model: nn.Module) -> Tensor:
    tokens = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return logits


def by_plain_peft(base: Path, folder: Path) -> nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(folder))
    return PeftModel.from_pretrained(model, str(folder))  # type: ignore[no-any-return]


@torch.no_grad()
def stir(task: SequenceClassificationTask) -> None:
    """As if it had trained for long: a few steps move a tiny model's logits by less than what could go wrong."""
    torch.manual_seed(1)
    for name, parameter in task.named_parameters():
        if ".lora_E." in name:
            parameter.mul_(500)  # what AdaLoRA has set to 0 stays 0
        elif parameter.requires_grad and (".lora_" in name or "tokens_delta" in name):
            parameter.add_(torch.randn_like(parameter))


def check_round_trips(task: SequenceClassificationTask, trainer: Trainer, base: Path, folder: Path) -> None:
    stir(task)
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

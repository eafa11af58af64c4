"""Variants of LoRA by name, and how a tiny classifier trains with them."""

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn

from lora_lightning.datamodules import Clinc150DataModule
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.variants.adalora import AdaLoraSettings
from lora_lightning.tasks import OptimizationSettings, SequenceClassificationTask
from lora_lightning.tasks.base import AdaptationTask

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
    "loftq": {"init_lora_weights": "loftq"},
    "rank_pattern": {"rank_pattern": {"query": 4, "layer.1.attention.self.value": 6}},
    "alpha_pattern": {"alpha_pattern": {"value": 5.0}},
    "layers_to_transform": {"layers_to_transform": [1]},
    "bias": {"bias": "lora_only"},
    "embeddings": {"modules_to_save": ["word_embeddings"]},
    "tokens": {"trainable_token_indices": [5, 12]},
    "adalora": {"adalora": BUDGET},
}
OPTIMIZATION: dict[str, dict[str, Any]] = {"loraplus": {"loraplus_lr_ratio": 4.0}, "lorafa": {"lorafa": True}}


def settings_of(*names: str) -> dict[str, Any]:
    """A task's settings with some variants at once.

    Args:
        names: Keys of `LORA` and `OPTIMIZATION`.

    Returns:
        `lora` and `optimization`.
    """
    lora = {"r": 2, "lora_alpha": 3.0, "target_modules": ["query", "value"]}
    if "adalora" in names:
        del lora["r"]
    optimization: dict[str, Any] = {"learning_rate": 0.02}
    for name in names:
        lora |= LORA.get(name, {})
        optimization |= OPTIMIZATION.get(name, {})
    return {"lora": LoraSettings(**lora), "optimization": OptimizationSettings(**optimization)}


def quiet_trainer(folder: Path, **more: Any) -> Trainer:
    """A trainer on CPUs that writes nothing and does not validate."""
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": str(folder),
        "use_distributed_sampler": False,
    }
    return Trainer(**{**settings, **more})


def train_classifier(
    backbone: Path, data: Path, folder: Path, settings: dict[str, Any], steps: int = 4, **more: Any
) -> tuple[SequenceClassificationTask, Trainer]:
    """Trains a tiny classifier for a few steps.

    Args:
        backbone: Its folder.
        data: From `save_tiny_clinc150`.
        folder: For caches.
        settings: The task's.
        steps: Optimizer steps.
        more: The trainer's.

    Returns:
        The task and its trainer.
    """
    seed_everything(0, verbose=False)
    module = Clinc150DataModule(backbone=str(backbone), data_dir=str(data), batch_size=8, cache_dir=str(folder))
    task = SequenceClassificationTask(str(backbone), **settings)
    trainer = quiet_trainer(folder, max_steps=steps, **more)
    trainer.fit(task, module)
    return task, trainer


def logits_of(model: nn.Module) -> Tensor:
    """A model's logits for some tokens, all of its outputs concatenated; leaves it in eval mode."""
    tokens = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        output = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    found = [output.logits] if "logits" in output else [output.start_logits, output.end_logits]
    return torch.cat([logits.flatten() for logits in found])


@torch.no_grad()
def perturb_trainable_parameters(task: AdaptationTask) -> None:
    """Moves adapters as long training would: a few steps change a tiny model's logits too little to show a fault."""
    torch.manual_seed(1)
    for name, parameter in task.named_parameters():
        if ".lora_E." in name:
            parameter.mul_(500)  # what AdaLoRA has set to 0 stays 0
        elif parameter.requires_grad and (".lora_" in name or "tokens_delta" in name):
            parameter.add_(torch.randn_like(parameter))

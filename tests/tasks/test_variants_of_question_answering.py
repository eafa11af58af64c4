"""Variants in question answering: they train on windows, reload, and are exported with the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering

from lora_lightning.backbones.export import export_model
from lora_lightning.datamodules import SquadV2DataModule
from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.tasks import QuestionAnsweringTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_squad
from tests.variants import logits_of, perturb_trainable_parameters, quiet_trainer, settings_of

HEAD_ONLY: dict[str, Any] = {"lora": None, "freeze_backbone": True}


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        *[("bert", "dora"), ("distilbert", "pissa_niter_4"), ("bert", "eva"), ("bert", "adalora")],
        *[("distilbert", "lorafa"), ("bert", "head only")],
    ],
)
def test_a_variant_trains_reloads_and_is_exported(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, variant: str
) -> None:
    backbone = str(tiny_backbone(family))
    settings = settings_of(variant) if variant != "head only" else HEAD_ONLY
    if settings["lora"] is not None:
        settings["lora"].target_modules = "all-linear"
    seed_everything(0, verbose=False)
    module = SquadV2DataModule(
        str(save_tiny_squad(tmp_path / "squad")),
        backbone=backbone,
        max_length=32,
        doc_stride=8,
        batch_size=8,
        cache_dir=str(tmp_path / "cache"),
    )
    task = QuestionAnsweringTask(backbone, **settings)
    trainer = quiet_trainer(tmp_path, max_steps=4)
    trainer.fit(task, module)
    if variant == "adalora":
        assert sum(ranks_in_use(task).values()) == len(ranks_in_use(task))  # target_r is 1
    if variant == "eva":  # shares out what r = 2 gives 12 layers
        assert sum(ranks_in_use(task).values()) == 2 * 12
        assert len(set(ranks_in_use(task).values())) > 1
    perturb_trainable_parameters(task)
    expected = logits_of(task.built_network)
    pretrained = AutoModelForQuestionAnswering.from_pretrained(backbone)
    assert (logits_of(pretrained) - expected).abs().max() > 1e-3
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(12345)  # whatever is not saved would be drawn differently
    again = QuestionAnsweringTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    torch.testing.assert_close(logits_of(again.built_network), expected, rtol=0, atol=1e-5)
    export_model(task.built_network, None, tmp_path / "out", {})
    torch.manual_seed(54321)
    if variant == "head only":
        plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
        trains = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
        assert trains == {"network.qa_outputs.weight", "network.qa_outputs.bias"}
    else:
        base = AutoModelForQuestionAnswering.from_pretrained(backbone)
        plain = PeftModel.from_pretrained(base, str(tmp_path / "out"))
        config = plain.peft_config["default"]
        assert config.peft_type == "LORA"
        assert config.init_lora_weights in (True, "eva")
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5)

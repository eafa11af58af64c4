"""Variants in causal language modeling: tied weights stay tied, and EVA and AdaLoRA work on packed instructions."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lora_lightning.artefacts.plain_model import build_plain_model
from lora_lightning.backbones.export import export_model
from lora_lightning.datamodules import InstructionDataModule
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.variants.adalora import AdaLoraSettings, ranks_in_use
from lora_lightning.lora.variants.eva import EvaSettings
from lora_lightning.tasks import CausalLanguageModelingTask, OptimizationSettings
from lora_lightning.tasks.continued_adapter import ContinuedAdapter
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_instructions

VARIANTS = {
    "tokens": LoraSettings(r=2, trainable_token_indices=[5, 12]),
    "eva": LoraSettings(r=2, init_lora_weights="eva", eva_config=EvaSettings(rho=2.0)),
    "adalora": LoraSettings(adalora=AdaLoraSettings(target_r=1, init_r=3, tinit=1, tfinal=1)),
    "pissa": LoraSettings(r=2, init_lora_weights="pissa"),
    "tied embeddings": LoraSettings(r=2, modules_to_save=["wte"], ensure_weight_tying=True),
    "tied head": LoraSettings(r=2, modules_to_save=["lm_head"], ensure_weight_tying=True),
    "tied and pissa": LoraSettings(
        r=2, modules_to_save=["lm_head"], ensure_weight_tying=True, init_lora_weights="pissa"
    ),
}


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=torch.arange(5, 25).view(2, 10)).logits
    return logits


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("gpt2", "tokens"),
        ("gpt2", "eva"),
        ("llama", "adalora"),
        ("gpt2", "pissa"),
        ("gpt2", "tied embeddings"),
        ("opt", "tied head"),
        ("gpt2", "tied and pissa"),
    ],
)
def test_a_variant_trains_reloads_and_is_exported(
    tiny_backbone: TinyBackbone, tmp_path: Path, family: str, variant: str
) -> None:
    backbone = str(tiny_backbone(family))
    seed_everything(0, verbose=False)
    module = InstructionDataModule(
        backbone=backbone,
        train_file=str(save_tiny_instructions(tmp_path / "data")),
        context_length=40,
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    optimization = OptimizationSettings(learning_rate=0.05, schedule="constant", warmup_share=0)
    task = CausalLanguageModelingTask(backbone, lora=VARIANTS[variant], optimization=optimization)
    trainer = Trainer(
        max_steps=4,
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        default_root_dir=str(tmp_path),
        use_distributed_sampler=False,
    )
    trainer.fit(task, module)
    pretrained = AutoModelForCausalLM.from_pretrained(backbone)
    embedding = pretrained.get_input_embeddings().weight.detach().clone()
    expected = logits_of(task.built_network)
    assert (logits_of(pretrained) - expected).abs().max() > 1e-3
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = CausalLanguageModelingTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    torch.testing.assert_close(logits_of(again.built_network), expected, rtol=0, atol=1e-5)
    export_model(task.built_network, None, tmp_path / "adapter", {})
    plain = PeftModel.from_pretrained(pretrained, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5)
    model = task.transformers_model
    if variant == "tokens":  # what comes in and what goes out are one matrix, as in the pretrained model
        rows = [layer.token_adapter.get_merged_weights(["default"]) for layer in (model.transformer.wte, model.lm_head)]
        assert torch.equal(*rows)
        changed = (rows[0] != embedding).any(dim=1).nonzero().flatten().tolist()
        assert changed == [5, 12]
    if variant.startswith("tied"):
        taught = model.get_input_embeddings().modules_to_save["default"].weight
        assert taught is model.get_output_embeddings().modules_to_save["default"].weight
        assert (taught != embedding).any()
        merged = build_plain_model(model, "float32")
        assert merged.config.tie_word_embeddings
        merged.save_pretrained(tmp_path / "merged")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
        torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-5)
        found = ContinuedAdapter.find(str(tmp_path / "adapter"), backbone, "AutoModelForCausalLM").settings({})
        assert found.ensure_weight_tying
        more = CausalLanguageModelingTask(backbone, lora=found, adapter=str(tmp_path / "adapter"))
        more.configure_model()
        torch.testing.assert_close(logits_of(more.built_network), expected, rtol=0, atol=1e-5)
    if variant == "adalora":
        assert sum(ranks_in_use(task).values()) == len(ranks_in_use(task))

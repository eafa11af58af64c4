"""Every private or undocumented name that `compat` relies on is still there; if not, a sentence says who misses it."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModel

from lora_lightning.compat import bitsandbytes, lightning, peft, transformers
from lora_lightning.compat import torch as torch_names
from tests.conftest import TinyBackbone

# Module, class or nothing, name, its parameters.
FUNCTIONS = [
    ("lightning.pytorch.callbacks", "ModelCheckpoint", "_save_checkpoint", "trainer, filepath"),
    ("lightning.pytorch.callbacks", "ModelCheckpoint", "_save_last_checkpoint", "trainer, monitor_candidates"),
    ("lightning.pytorch.callbacks", "ModelCheckpoint", "_remove_checkpoint", "trainer, filepath"),
    ("lightning.pytorch.callbacks", "ModelCheckpoint", "_monitor_candidates", "trainer"),
    ("lightning.pytorch.strategies.launchers", "_SubprocessScriptLauncher", "_call_children_scripts", ""),
    ("lightning.pytorch.trainer.connectors.signal_connector", "_SignalConnector", "register_signal_handlers", ""),
    ("peft.tuners.tuners_utils", "", "cast_adapter_dtype", "model, adapter_name, autocast_adapter_dtype"),
    ("peft.tuners.tuners_utils", "", "_check_lora_target_modules_mamba", "peft_config, model, target_name"),
    ("peft.utils.other", "", "get_pattern_key", "pattern_keys, key_to_match"),
    ("peft.utils.integrations", "", "dequantize_module_weight", "module"),
    ("peft.utils.integrations", "", "get_bnb_param_type", "param"),
    (torch_names.RECEIVES_TENSORS, "", "rebuild_storage_fd", "cls, df, size"),
    ("torch.nn", "Module", "_apply", "fn, recurse"),
    ("transformers", "PreTrainedModel", "_init_weights", "module"),
]


def gone(name: str, room: str) -> str:
    """What a failing test says."""
    return f"{name} has gone or changed; see who uses it in lora_lightning/compat/{room}.py, and lower the upper bound"


@pytest.mark.parametrize(("module", "owner", "name", "parameters"), FUNCTIONS, ids=str)
def test_a_private_function_takes_what_we_give_it(module: str, owner: str, name: str, parameters: str) -> None:
    found: Any = importlib.import_module(module)
    for part in (owner, name):
        found = getattr(found, part, None) if part else found
    message = gone(f"{module}.{owner}.{name}", module.partition(".")[0])
    assert callable(found), message
    taken = [parameter for parameter in inspect.signature(found).parameters if parameter != "self"]
    assert ", ".join(taken) == parameters, message


@pytest.mark.parametrize("name", sorted(lightning.RESTORING))
def test_a_function_restores_a_checkpoint(name: str) -> None:
    connector = importlib.import_module(lightning.CHECKPOINT_CONNECTOR)
    assert hasattr(connector._CheckpointConnector, name), gone(f"_CheckpointConnector.{name}", "lightning")


@pytest.mark.parametrize(("module", "name"), sorted(lightning.LATE_CHECKS))
def test_a_function_checks_an_option_late(module: str, name: str) -> None:
    source = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
    assert f"def {name}(" in source, gone(f"{module}.{name}", "lightning")


def test_attributes_of_lightning(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    objects: list[tuple[Any, list[str]]] = [
        (trainer, ["_signal_connector", "fit_loop"]),
        (trainer._signal_connector, ["_original_handlers", "_get_current_signal_handlers"]),
        (trainer.fit_loop.epoch_loop, ["_batches_that_stepped", "batch_progress", "restarting"]),
        (trainer.fit_loop, ["on_run_start", "on_run_end"]),
        (trainer.fit_loop.epoch_loop.batch_progress, ["current", "total", "is_last_batch"]),
        (ModelCheckpoint(), ["_last_global_step_saved", "_save_on_train_epoch_end"]),
        (LightningModule(), ["_log_hyperparams", "_trainer"]),
        (TensorBoardLogger(tmp_path), ["_experiment"]),
        (TensorBoardLogger(tmp_path).experiment, ["_get_file_writer"]),
        (ModelParallelStrategy(), ["_data_parallel_size", "_launcher"]),
        (_SubprocessScriptLauncher(LightningEnvironment(), 1, 1), ["procs", "cluster_environment", "num_processes"]),
    ]
    for owner, names in objects:
        for name in names:
            assert hasattr(owner, name), gone(f"{type(owner).__name__}.{name}", "lightning")


def test_a_checkpoint_counts_batches_as_ours_does() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loops = {"fit_loop": trainer.fit_loop.state_dict()}
    loops["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] = 3
    lightning.take_back_batch({"loops": loops})
    assert loops["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2, gone("batch_progress", "lightning")


@pytest.mark.parametrize("adalora", [False, True])
def test_attributes_of_adapted_layers(tiny_backbone: TinyBackbone, adalora: bool) -> None:
    options: Any = {"target_modules": ["query"]}
    config = AdaLoraConfig(total_step=10, **options) if adalora else LoraConfig(**options)
    network: Any = get_peft_model(AutoModel.from_config(AutoConfig.from_pretrained(tiny_backbone("bert"))), config)
    layer = next(module for module in network.modules() if hasattr(module, "lora_A"))
    for name in peft.ADALORA_ATTRIBUTES if adalora else peft.LORA_ATTRIBUTES:
        assert hasattr(layer, name), gone(f"{type(layer).__name__}.{name}", "peft")
    if adalora:
        allocator = peft.rank_allocator(network)
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            assert hasattr(allocator, name), gone(f"RankAllocator.{name}", "peft")


def test_the_first_pattern_counts_in_peft_as_in_our_checks() -> None:
    assert peft.first_matching_pattern(["value", "layer.1.value"], "encoder.layer.1.value") == "value"
    assert peft.first_matching_pattern(["key"], "encoder.layer.1.value") == "encoder.layer.1.value"


def test_attributes_of_transformers(tiny_backbone: TinyBackbone) -> None:
    config = AutoConfig.from_pretrained(tiny_backbone("bert"))
    model = AutoModel.from_config(config)
    assert transformers.attention_implementation(model) == "sdpa", gone("config._attn_implementation", "transformers")
    assert transformers.is_masked_language_model(config), gone("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "transformers")
    assert not transformers.is_masked_language_model(AutoConfig.from_pretrained(tiny_backbone("gpt2")))


@pytest.mark.parametrize("bits", [4, 8])
def test_attributes_of_quantized_layers(bits: int) -> None:
    from bitsandbytes import nn as bnb  # noqa: PLC0415  # seconds, and only here

    torch.manual_seed(0)
    weight = torch.randn(64, 128)
    layer: Any = bnb.Linear4bit(128, 64, bias=False) if bits == 4 else bnb.Linear8bitLt(128, 64, has_fp16_weights=False)
    if bits == 4:
        layer.weight = bnb.Params4bit(weight, requires_grad=False, module=layer)
    else:
        layer.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")  # quantizes
    dequantized = bitsandbytes.dequantized_4bit(layer) if bits == 4 else bitsandbytes.dequantized_8bit(layer)
    # Half of the widest gap between two levels, of the largest weight: about 0.17 in 4 bits, 1 / 254 in 8.
    largest = (0.17 if bits == 4 else 0.005) * weight.abs().max()
    assert (dequantized.float() - weight).abs().max() < largest, gone("quant_state", "bitsandbytes")
    assert bitsandbytes.original_size(layer.weight) == weight.numel(), gone("quant_state.shape", "bitsandbytes")
    again = (bitsandbytes.quantized_4bit if bits == 4 else bitsandbytes.quantized_8bit)(layer, weight)
    found = bitsandbytes.dequantized_4bit(again) if bits == 4 else bitsandbytes.dequantized_8bit(again)
    torch.testing.assert_close(found, dequantized, rtol=0, atol=1e-2)
    assert peft.bitsandbytes_bits(layer.weight) == bits, gone("get_bnb_param_type", "peft")

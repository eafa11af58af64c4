"""A task continues an adapter only where that is right, with every check, however its model is built."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn

from lora_lightning.datamodules import InstructionDataModule
from lora_lightning.errors import CheckpointError, ConfigurationError, LoraLightningError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.tasks import CausalLanguageModelingTask
from lora_lightning.tasks.base import AdaptationTask
from tests.artefacts.adapters import save_random_adapter
from tests.conftest import TinyBackbone
from tests.tasks.test_continued_adapter import POOLER, SPACE, continued_task
from tests.tiny_data import save_tiny_instructions
from tests.variants import logits_of, quiet_trainer


def settings(**changes: Any) -> LoraSettings:
    """Those of `adapter`."""
    return LoraSettings(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"], **changes})


@pytest.fixture
def base(tiny_backbone: TinyBackbone) -> Path:
    return tiny_backbone("llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_random_adapter(base, tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])


def instructions(base: Path, folder: Path) -> InstructionDataModule:
    """A few examples."""
    train_file = save_tiny_instructions(folder / "data")
    more: dict[str, Any] = {"context_length": 40, "batch_size": 4, "cache_dir": str(folder / "cache")}
    return InstructionDataModule(backbone=str(base), train_file=str(train_file), **more)


def checkpoint_of(task: AdaptationTask, path: Path) -> Path:
    """Saves what a Trainer would save of a task."""
    checkpoint: dict[str, Any] = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    task.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def test_a_checkpoint_loads_without_the_adapters_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    task = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    task.configure_model()
    for parameter in task.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    path = checkpoint_of(task, tmp_path / "a.ckpt")
    shutil.rmtree(adapter)
    again = CausalLanguageModelingTask.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(logits_of(again.built_network), logits_of(task.built_network))
    assert again.adapter == str(adapter)
    with pytest.raises(CheckpointError, match="is not a folder and could not be downloaded"):
        CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter)).configure_model()


def test_an_error_while_a_checkpoint_loads_changes_nothing_for_later_tasks(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "broken.ckpt")
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever Lightning raises
        CausalLanguageModelingTask.load_from_checkpoint(tmp_path / "broken.ckpt", weights_only=True)
    task = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    assert not task.resumes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_alpha": 90}, r"model.lora.lora_alpha is 90, but the adapter .* has 8.0"),
        ({"use_rslora": True}, r"model.lora.use_rslora is True, but the adapter .* has False"),
    ],
)
def test_a_task_without_a_run_refuses_other_settings(
    options: dict[str, Any], message: str, base: Path, adapter: Path
) -> None:
    task = CausalLanguageModelingTask(str(base), lora=settings(**options), adapter=str(adapter))
    with pytest.raises(ConfigurationError, match=message):
        task.configure_model()


def test_a_task_without_a_run_refuses_another_base_and_may_allow_it(tiny_backbone: TinyBackbone, adapter: Path) -> None:
    other = CausalLanguageModelingTask(str(tiny_backbone("qwen2")), lora=settings(), adapter=str(adapter))
    with pytest.raises(CheckpointError, match="was trained on another base model"):
        other.configure_model()
    other.allows_other_base = True
    other.configure_model()


def test_a_task_without_a_run_checks_the_adapter_once(
    base: Path, adapter: Path, recwarn: pytest.WarningsRecorder
) -> None:
    task = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    task.check_adapter()
    task.configure_model()
    assert len([warning for warning in recwarn if "does not record the content" in str(warning.message)]) == 1


def test_a_trainer_refuses_to_evaluate_without_the_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    module = instructions(base, tmp_path)
    task = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    path = checkpoint_of(continued_task("CAUSAL_LM", base, adapter), tmp_path / "a.ckpt")

    def trainer() -> Trainer:
        return quiet_trainer(tmp_path, limit_val_batches=1)

    with pytest.raises(ConfigurationError, match="evaluates without a checkpoint"):
        trainer().validate(task, module, verbose=False)
    (expected,) = trainer().validate(continued_task("CAUSAL_LM", base, adapter), module, verbose=False)
    shutil.rmtree(adapter)
    resumed = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    (found,) = trainer().validate(resumed, module, ckpt_path=str(path), verbose=False, weights_only=True)
    assert found == pytest.approx(expected)


def test_a_trainer_resumes_without_the_adapters_folder_and_starts_only_with_it(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    module = instructions(base, tmp_path)
    first = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    first.fit(CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter)), module)
    first.save_checkpoint(tmp_path / "a.ckpt")
    shutil.rmtree(adapter)
    task = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    second = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    second.fit(task, module, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert second.global_step == 2
    without = CausalLanguageModelingTask(str(base), lora=settings(), adapter=str(adapter))
    for options in ({"limit_val_batches": 0}, {"limit_val_batches": 1, "num_sanity_val_steps": 1}):
        third = quiet_trainer(tmp_path, max_steps=1, **options)
        with pytest.raises(CheckpointError, match="is not a folder and could not be downloaded"):
            third.fit(without, module)
        assert third.global_step == 0
    save_random_adapter(base, adapter, "CAUSAL_LM", target_modules=["q_proj"])
    fourth = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    fourth.fit(without, module)  # an adapter that is back is found
    assert fourth.global_step == 1


class WithoutClass(CausalLanguageModelingTask):
    """As a user may write it."""

    auto_class = None


class WithoutLoading(CausalLanguageModelingTask):
    """Forgets `load_adapter`."""

    def load_adapter(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WithoutClass, "does not declare which transformers class it trains"),
        (WithoutLoading, "build_network of WithoutLoading does not load it"),
    ],
)
def test_a_users_task_that_would_not_load_the_adapter_is_refused(
    kind: type[CausalLanguageModelingTask], message: str, base: Path, adapter: Path
) -> None:
    with pytest.raises(LoraLightningError, match=message):
        kind(str(base), lora=settings(), adapter=str(adapter)).configure_model()


def test_a_classifiers_checkpoint_loads_without_the_folder(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    base = tiny_backbone("bert")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", **POOLER, target_modules=["query"])
    task = continued_task("SEQ_CLS", base, adapter)
    path = checkpoint_of(task, tmp_path / "a.ckpt")
    shutil.rmtree(adapter)
    again = type(task).load_from_checkpoint(path, weights_only=True)
    assert again.labels == SPACE  # type: ignore[attr-defined]
    assert torch.equal(logits_of(again.built_network), logits_of(task.built_network))

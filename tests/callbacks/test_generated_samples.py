"""Sample texts reach TensorBoard, change nothing of the training, and need no logger."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from lora_lightning.callbacks import GeneratedSamples
from lora_lightning.callbacks.generated_samples import samples_table
from lora_lightning.datamodules import PlainTextDataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.tasks import (
    CausalLanguageModelingTask,
    GenerationSettings,
    OptimizationSettings,
    SequenceClassificationTask,
)
from tests.conftest import TinyBackbone


def train(folder: Path, backbone: Path, logger: Any, callbacks: list[Any]) -> CausalLanguageModelingTask:
    (folder / "a.txt").write_text("".join(f"w{n} w{n + 1} w{n + 2}\n" for n in range(40)))
    torch.manual_seed(0)
    settings = GenerationSettings(max_new_tokens=6, do_sample=True)
    task = CausalLanguageModelingTask(
        str(backbone), lora=None, generation=settings, optimization=OptimizationSettings(learning_rate=0.3)
    )
    data = PlainTextDataModule(
        train_file=str(folder / "a.txt"), context_length=10, batch_size=2, backbone=str(backbone), cache_dir=str(folder)
    )
    Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(task, data)
    return task


def samples(folder: Path) -> list[Any]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors("samples/text_summary")]


def test_samples_reach_tensorboard_after_every_epoch(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    texts = []
    for run in ("a", "b"):
        logger = TensorBoardLogger(tmp_path, name=run)
        train(tmp_path, tiny_backbone("gpt2"), logger, [GeneratedSamples(["w1 w2", "w3"])])
        texts.append(samples(Path(logger.log_dir)))
    assert len(texts[0]) == 2
    assert "    w1 w2" in texts[0][0]
    assert "    w3" in texts[0][0]
    assert texts[0] == texts[1]  # the same draws
    assert texts[0][0] != texts[0][1]  # the model has learnt


def test_samples_change_nothing_of_the_training(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    without = train(tmp_path, tiny_backbone("gpt2"), logger, [])
    sampled = train(tmp_path, tiny_backbone("gpt2"), logger, [GeneratedSamples(["w1"])])
    state = without.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in sampled.state_dict().items())


def test_csv_files_get_the_samples_too(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="table")
    train(tmp_path, tiny_backbone("gpt2"), logger, [GeneratedSamples(["w1 w2"])])
    texts = sorted(Path(logger.log_dir, "texts/samples").iterdir())
    assert len(texts) == 2
    assert "    w1 w2" in texts[0].read_text()


def test_without_a_logger_nothing_is_generated_which_is_said(
    tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(CausalLanguageModelingTask, "complete", fail)
    with pytest.warns(UserWarning, match="GeneratedSamples generates nothing: no logger of this run shows texts"):
        train(tmp_path, tiny_backbone("gpt2"), False, [GeneratedSamples(["w1"])])


@pytest.mark.parametrize("prompts", [[], ["w1", " "]])
def test_prompts_must_say_something(prompts: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="must contain at least one prompt, and no empty one"):
        GeneratedSamples(prompts)


def test_a_classifier_cannot_generate(tiny_backbone: TinyBackbone) -> None:
    task = SequenceClassificationTask(str(tiny_backbone("bert")))
    with pytest.raises(ConfigurationError, match="needs a CausalLanguageModelingTask, not SequenceClassificationTask"):
        GeneratedSamples(["w1"]).setup(None, task, "fit")  # type: ignore[arg-type]


def test_texts_are_shown_verbatim() -> None:
    table = samples_table(["# a\nb"], ["*c*"])
    assert "\n    # a\n    b\n" in table
    assert table.endswith("\n    *c*")


def test_a_prompt_without_room_for_its_completion_is_refused_before_training(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="GeneratedSamples, prompt 2: the prompt has 36 tokens, which with"):
        train(tmp_path, tiny_backbone("gpt2"), False, [GeneratedSamples(["w1", "w1 " * 36])])


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028"])
def test_texts_are_shown_as_code_whatever_ends_their_lines(end: str) -> None:
    hostile = f"a{end}<script>alert(1)</script>{end}![x](http://example.org/x.png){end}# title"
    page = markdown_to_safe_html(samples_table([hostile], [hostile]))
    assert page.count("<pre><code>") == 2
    for tag in ("<script", "<img", "<h1"):
        assert tag not in page
    assert page.count("&lt;script&gt;") == 2

"""Two processes give what one gives: weights, metrics and files, under DDP and FSDP2; each goes on with the other's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import strategy_equality as equality
from lora_lightning.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_instructions

Words = list[str]

ALL_MONITORS = Path(__file__).parent.parent / "configs" / "callbacks" / "all_monitors.yaml"
NO_DROPOUT = ["--model.base_dropout=0", "--model.lora.lora_dropout=0"]


def common_words(folder: Path) -> Words:
    return [
        "--seed_everything=1",
        f"--data.cache_dir={folder / 'cache'}",
        "--data.eval_batch_size=5",
        "--trainer.max_epochs=2",
        "--trainer.gradient_clip_val=0.5",
        "--trainer.logger=CSVLogger",
        f"--config={ALL_MONITORS}",
    ]


def classification_words(tiny_backbone: TinyBackbone, folder: Path) -> Words:
    return [
        "--model=SequenceClassificationTask",
        f"--model.backbone={tiny_backbone('bert')}",
        "--model.optimization.learning_rate=0.003",
        "--data=Clinc150DataModule",
        f"--data.data_dir={save_tiny_clinc150(folder / 'data')}",
        *common_words(folder),
    ]


def lora_words(tiny_backbone: TinyBackbone, folder: Path) -> Words:
    return [*classification_words(tiny_backbone, folder), "--model.lora.r=4", *NO_DROPOUT]


def full_words(tiny_backbone: TinyBackbone, folder: Path) -> Words:
    return [*classification_words(tiny_backbone, folder), "--model.lora=null", NO_DROPOUT[0]]


def language_words(tiny_backbone: TinyBackbone, folder: Path) -> Words:
    """Responses of 1 to 7 tokens, packed: every process and step has another number of labels."""
    return [
        "--model=CausalLanguageModelingTask",
        f"--model.backbone={tiny_backbone('llama')}",
        "--model.optimization.learning_rate=0.003",
        *NO_DROPOUT,
        "--data=InstructionDataModule",
        f"--data.train_file={save_tiny_instructions(folder / 'data')}",
        "--data.context_length=20",
        *common_words(folder),
    ]


KINDS: dict[str, Callable[[TinyBackbone, Path], Words]] = {
    "lora": lora_words,
    "full": full_words,
    "language": language_words,
}
Compared = tuple[Path, dict[str, float]]


@pytest.fixture(scope="module")
def compared(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compared]:
    """Runs of a kind in every way, and how far their weights are from one process's; not to be changed."""
    done: dict[str, Compared] = {}

    def of(kind: str) -> Compared:
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            words = KINDS[kind](tiny_backbone, folder)
            # 10 rows of all processes in a step, and 72 in an epoch: the batches of two processes differ in size.
            done[kind] = (folder, equality.compare(words, 10, folder))
        return done[kind]

    return of


def run_of(folder: Path, way: str) -> Path:
    return folder / way / "run" / "version_0"


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does(kind: str, compared: Callable[[str], Compared]) -> None:
    _, differences = compared(kind)
    assert set(differences) == {"one process", "ddp", "fsdp2"}
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_count_every_example_once(kind: str, compared: Callable[[str], Compared]) -> None:
    folder, _ = compared(kind)
    one, *others = (json.loads((run_of(folder, way) / "summary.json").read_text()) for way in equality.WAYS)
    for other in others:
        assert other["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
        assert other["trained_parameters"] == one["trained_parameters"]
        assert other["total_parameters"] == one["total_parameters"]


def shapes(value: Any) -> Any:
    """A checkpoint's layout: its keys, types and shapes."""
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(item) for item in value]
    return (type(value), value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize("kind", KINDS)
def test_files_do_not_tell_how_they_were_made(kind: str, compared: Callable[[str], Compared]) -> None:
    folder, _ = compared(kind)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "hyper_parameters")
    found, adapters = [], []
    for way in equality.WAYS:
        checkpoint = torch.load(run_of(folder, way) / "checkpoints" / "last.ckpt", weights_only=True)
        found.append({part: shapes(checkpoint[part]) for part in parts})
        adapters.append(run_of(folder, way) / "adapter")
    assert found[1] == found[0]
    assert found[2] == found[0]
    names = [sorted(path.name for path in adapter.iterdir()) for adapter in adapters]
    assert names[1] == names[0]
    assert names[2] == names[0]
    for adapter in adapters[1:]:
        for name in names[0]:
            if name.endswith(".safetensors"):
                one, other = load_file(adapters[0] / name), load_file(adapter / name)
                assert one.keys() == other.keys()
                assert equality.relative_difference(other, one) < 1e-5
            elif name.endswith("config.json"):
                assert json.loads((adapter / name).read_text()) == json.loads((adapters[0] / name).read_text())


def table(run: Path, name: str) -> dict[Any, float]:
    rows = pq.read_table(run / "adapter_metrics" / f"{name}.parquet").to_pylist()
    return {(row["step"], row["module"], row["metric"]): row["value"] for row in rows}


@pytest.mark.parametrize("name", ["adapter_norms", "rank_utilization", "parameter_efficiency"])
def test_monitors_measure_the_same(name: str, compared: Callable[[str], Compared]) -> None:
    folder, _ = compared("lora")
    one, *others = (table(run_of(folder, way), name) for way in equality.WAYS)
    for other in others:
        assert other == pytest.approx(one, rel=1e-2, abs=1e-4)


def test_a_merge_is_checked_where_the_model_is_whole(compared: Callable[[str], Compared]) -> None:
    folder, _ = compared("lora")
    there = [(run_of(folder, way) / "adapter_metrics" / "merge_equivalence.parquet").exists() for way in equality.WAYS]
    assert there == [True, True, False]


@pytest.mark.parametrize(("first", "second"), [("fsdp2", "one process"), ("one process", "fsdp2"), ("ddp", "fsdp2")])
def test_a_run_goes_on_under_another_strategy(
    first: str, second: str, compared: Callable[[str], Compared], tmp_path: Path
) -> None:
    folder, _ = compared("lora")
    states = []
    for number, way in enumerate(("one process", second)):
        origin = run_of(folder, "one process" if number == 0 else first)
        words = [f"--config={origin / 'config.yaml'}", "--trainer.strategy=auto", "--trainer.max_epochs=3"]
        words += [f"--ckpt_path={origin / 'checkpoints' / 'last.ckpt'}", "--test_after_fit=false"]
        place = tmp_path / str(number)
        equality.train(equality.WAYS[way][0], [equality.words_of(way, words, 10, place)])
        states.append(equality.weights(place))
    assert equality.relative_difference(states[1], states[0]) < 1e-5


def test_accumulated_batches_are_one_large_batch(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    states = []
    for size, accumulated in ((72, 1), (10, 8)):  # an epoch is one step; 9 rows in each of the small batches
        folder = tmp_path / str(size)
        words = [*lora_words(tiny_backbone, tmp_path), f"--data.batch_size={size}", "--trainer.accelerator=cpu"]
        words += [f"--trainer.accumulate_grad_batches={accumulated}", "--test_after_fit=false"]
        words += [f"--trainer.logger.save_dir={folder}", "--trainer.enable_progress_bar=false"]
        assert main(["fit", *words]) == 0
        states.append(equality.weights(folder))
    assert equality.relative_difference(states[1], states[0]) < 1e-5


def test_checkpoints_that_nothing_else_loads_are_refused(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", *lora_words(tiny_backbone, tmp_path), f"--trainer.logger.save_dir={tmp_path}"]
    assert main([*words, "--trainer.accelerator=cpu", "--trainer.strategy={class_path: ModelParallelStrategy}"]) == 2
    assert "configs/trainer/fsdp2.yaml" in capsys.readouterr().err

"""Two processes give what one gives: weights, metrics and files, under DDP and FSDP2; each goes on with the other's."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import processes
import pyarrow.parquet as pq
import pytest
import scaling
import strategy_equality as equality
import torch
from safetensors.torch import load_file

from lora_lightning.cli.main import main
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_instructions

pytest.importorskip("bitsandbytes")

CONFIGS = Path(__file__).parents[2] / "configs"
ALONE, *TOGETHER = equality.WAYS
KINDS = {"lora": TOGETHER, "full": TOGETHER, "language": TOGETHER, "qlora": ["DDP"]}
PAIRS = [(kind, way) for kind, ways in KINDS.items() for way in ways]
GONE_ON = [("FSDP2", ALONE), (ALONE, "FSDP2"), ("FSDP2", "DDP")]
# By way, in how many batches of up to how many rows (of all processes) an epoch's 72 are accumulated; sizes differ.
ACCUMULATED = {ALONE: (7, 11), "DDP": (5, 16), "FSDP2": (5, 16)}


def words_of(kind: str, tiny_backbone: TinyBackbone, data: Path) -> list[str]:
    """Options of `fit`, without dropout; the language model's responses have 1 to 7 tokens, packed in blocks of 20."""
    family, name = ("llama", "CausalLanguageModeling") if kind == "language" else ("bert", "SequenceClassification")
    words = [f"--model={name}Task", f"--model.backbone={tiny_backbone(family)}", "--model.base_dropout=0"]
    words += ["--model.lora=null"] if kind == "full" else ["--model.lora.r=4", "--model.lora.lora_dropout=0"]
    words += equality.NF4 if kind == "qlora" else []
    if kind == "language":
        words += ["--data=InstructionDataModule", f"--data.train_file={data / 'instructions.jsonl'}"]
        words += ["--data.context_length=20"]
    else:
        words += ["--data=Clinc150DataModule", f"--data.data_dir={data}"]
    words += [f"--config={CONFIGS / 'callbacks' / 'all_monitors.yaml'}"] if kind == "lora" else []
    words += ["--model.class_weight=balanced"] if kind == "lora" else []
    words += ["--seed_everything=1", "--model.optimization.learning_rate=0.003", "--trainer.gradient_clip_val=0.5"]
    words += ["--trainer.logger=CSVLogger", "--trainer.log_every_n_steps=1"]
    return [*words, f"--data.cache_dir={data}", "--data.eval_batch_size=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits whose rows no number of processes divides: 23 to validate, 33 to test."""
    folder = save_tiny_clinc150(tmp_path_factory.mktemp("data"))
    rows = json.loads((folder / "data_full.json").read_text())
    rows["oos_val"].pop()
    rows["oos_test"].pop()
    (folder / "data_full.json").write_text(json.dumps(rows))
    save_tiny_instructions(folder)
    return folder


def run_of(folder: Path, way: str) -> Path:
    return folder / way / "run" / "version_0"


def going_on(folder: Path, first: str, second: str) -> list[str]:
    """One more epoch of another way's run."""
    words = [f"--config={run_of(folder / 'lora', first) / 'config.yaml'}", "--trainer.strategy=auto"]
    words += [f"--ckpt_path={run_of(folder / 'lora', first) / 'checkpoints' / 'last.ckpt'}"]
    place = folder / f"{first} to {second}"
    return equality.words_of(second, [*words, "--trainer.max_epochs=3", "--test_after_fit=false"], 10, place)


def accumulating(folder: Path, words: list[str], way: str, times: int, size: int) -> list[str]:
    """A run whose epochs are one step each."""
    more = [f"--trainer.accumulate_grad_batches={times}", "--trainer.max_epochs=2", "--test_after_fit=false"]
    return equality.words_of(way, [*words, *more], size, folder / f"accumulated {times}")


def run_watched(rank: int, count: int, port: int, commands: list[list[str]], folder: Path) -> None:
    """`run_all` that writes down, by strategy, whether this process ever had weights before they were sharded."""
    build, had = SequenceClassificationTask.build_network, {}

    def watched(self: SequenceClassificationTask) -> torch.nn.Module:
        network = build(self)
        strategy = type(self.trainer.strategy).__name__
        had[strategy] = had.get(strategy, False) or not all(parameter.is_meta for parameter in network.parameters())
        return network

    SequenceClassificationTask.build_network = watched  # type: ignore[method-assign]
    processes.run_commands(rank, count, port, commands)
    (folder / f"weights{rank}.json").write_text(json.dumps(had))


@pytest.fixture(scope="module")
def runs(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: `<kind>/<way>`, `<way> to <way>`, `accumulated <times>/<way>`; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    words = {kind: [*words_of(kind, tiny_backbone, data), "--trainer.max_epochs=2"] for kind in KINDS}
    # 10 rows of all processes in a step, and 72 in an epoch: the batches of two processes differ in size.
    for kind in KINDS:
        assert main(equality.words_of(ALONE, words[kind], 10, folder / kind)) == 0
    bare = [word for word in words["lora"] if "all_monitors" not in word]
    assert main(accumulating(folder, bare, ALONE, 1, 72)) == 0
    assert main(accumulating(folder, bare, ALONE, *ACCUMULATED[ALONE])) == 0
    assert main(going_on(folder, ALONE, ALONE)) == 0
    together = [equality.words_of(way, words[kind], 10, folder / kind) for kind, way in PAIRS]
    together += [accumulating(folder, bare, way, *ACCUMULATED[way]) for way in TOGETHER]
    together += [going_on(folder, first, second) for first, second in GONE_ON if second != ALONE]
    processes.start_processes(run_watched, 2, together, folder)
    assert main(going_on(folder, "FSDP2", ALONE)) == 0
    return folder


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_two_processes_train_what_one_does(kind: str, way: str, runs: Path) -> None:
    found, alone = (equality.weights(run_of(runs / kind, each)) for each in (way, ALONE))
    assert equality.relative_difference(found, alone) < 1e-5


@pytest.mark.parametrize("way", equality.WAYS)
def test_accumulated_batches_are_one_large_batch(way: str, runs: Path) -> None:
    found = run_of(runs / f"accumulated {ACCUMULATED[way][0]}", way)
    checkpoint = torch.load(found / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2  # one an epoch
    reference = equality.weights(runs / "accumulated 1")
    assert equality.relative_difference(equality.weights(found), reference) < 1e-5


def train_losses(run: Path) -> dict[int, float]:
    with (run / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["train/loss"]]
    return {int(row["step"]): float(row["train/loss"]) for row in rows}


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_the_training_loss_is_that_of_all_rows_of_a_step(kind: str, way: str, runs: Path) -> None:
    expected = train_losses(run_of(runs / kind, ALONE))
    assert len(expected) >= 4
    assert train_losses(run_of(runs / kind, way)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("way", equality.WAYS)
def test_the_training_loss_is_that_of_all_accumulated_rows(way: str, runs: Path) -> None:
    expected = train_losses(run_of(runs / "accumulated 1", ALONE))
    assert list(expected) == [0, 1]
    assert train_losses(run_of(runs / f"accumulated {ACCUMULATED[way][0]}", way)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_two_processes_count_every_example_once(kind: str, way: str, runs: Path) -> None:
    one, other = (json.loads((run_of(runs / kind, each) / "summary.json").read_text()) for each in (ALONE, way))
    assert other["metrics"] == pytest.approx(one["metrics"], abs=1e-4)
    assert other["trained_parameters"] == one["trained_parameters"]
    assert other["total_parameters"] == one["total_parameters"]


def test_three_processes_count_every_example_once(runs: Path, tmp_path: Path) -> None:
    run = run_of(runs / "lora", ALONE)
    alone = json.loads((run / "summary.json").read_text())["metrics"]
    commands = []
    for way in TOGETHER:
        moved = tmp_path / way / "last.ckpt"  # the metrics land beside it
        moved.parent.mkdir()
        moved.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
        words = ["validate", f"--config={run / 'config.yaml'}", *equality.WAYS[way][1], f"--ckpt_path={moved}"]
        commands.append([*words, "--trainer.devices=3"])
    processes.run_in_processes(3, commands)
    for way in TOGETHER:
        together = json.loads((tmp_path / way / "validate_metrics.json").read_text())
        assert "val/loss" in together
        assert together == pytest.approx({name: alone[name] for name in together}, abs=1e-4)


def test_one_process_reads_weights_that_are_sharded(runs: Path) -> None:
    had = [json.loads((runs / f"weights{rank}.json").read_text()) for rank in (0, 1)]
    assert had == [{"DDPStrategy": True, "FullyShardedStrategy": reads} for reads in (True, False)]


def shapes(value: Any) -> Any:
    """A checkpoint's layout: its keys, types and shapes."""
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(item) for item in value]
    return (type(value), value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_files_do_not_tell_how_they_were_made(kind: str, way: str, runs: Path) -> None:
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "hyper_parameters")
    one, other = (run_of(runs / kind, each) for each in (ALONE, way))
    layouts = []
    for run in (one, other):
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        layouts.append({part: shapes(checkpoint[part]) for part in parts})
    assert layouts[1] == layouts[0]
    files, found = (sorted(str(p.relative_to(run)) for p in (run / "adapter").rglob("*.*")) for run in (one, other))
    assert found == files
    for name in files:
        if name.endswith(".safetensors"):
            tensors, others = load_file(one / name), load_file(other / name)
            assert equality.relative_difference(others, tensors) < 1e-5
        elif name == "adapter/README.md":
            (text, numbers), (expected, values) = (without_fractions((run / name).read_text()) for run in (other, one))
            assert text == expected
            assert numbers == pytest.approx(values, rel=1e-4, abs=2e-4)
        else:
            assert (other / name).read_bytes() == (one / name).read_bytes()


def without_fractions(text: str) -> tuple[str, list[float]]:
    """A model card without its metrics, which rounding changes, and those."""
    fraction = r"\b\d+\.\d+\b"
    return re.sub(fraction, "", text), [float(number) for number in re.findall(fraction, text)]


@pytest.mark.parametrize("way", TOGETHER)
def test_monitors_measure_the_same(way: str, runs: Path) -> None:
    one, other = ({path.stem: path for path in run_of(runs / "lora", each).rglob("*.parquet")} for each in (ALONE, way))
    assert other.keys() == one.keys()
    assert {"adapter_norms", "intruder_dimensions", "merge_equivalence", "representation_drift"} <= one.keys()
    for name, path in one.items():
        expected, found = measurements(path), measurements(other[name])
        assert found.keys() == expected.keys()
        # Where a merge differs from the adapters is rounding, and differs from strategy to strategy.
        compared = {key for key in expected if "/base/" not in f"/{key[2]}" and "seconds" not in key[2]}
        assert len(compared) > 0
        for key in compared:
            assert found[key] == pytest.approx(expected[key], rel=1e-2, abs=1e-4, nan_ok=True), key


def measurements(path: Path) -> dict[Any, float]:
    """Values by step, module, metric and state; without the exported folder, which FSDP2 does not open."""
    rows = [row for row in pq.read_table(path).to_pylist() if not row["metric"].startswith("exported/")]
    rows = [row for row in rows if "recovery_ratio" not in row["metric"]]  # reported only where it is judged
    return {(row["step"], row["module"], row["metric"], row["state"]): row["value"] for row in rows}


@pytest.mark.parametrize("way", TOGETHER)
def test_a_merge_changes_nothing_but_rounding(way: str, runs: Path) -> None:
    found = measurements(run_of(runs / "lora", way) / "adapter_metrics" / "merge_equivalence.parquet")
    moved = {metric: value for (_, _, metric, _), value in found.items()}
    assert moved["base/max_logit_difference"] < 1e-6
    assert moved["adapter/max_logit_difference"] > 1e-3


@pytest.mark.parametrize(("first", "second"), GONE_ON)
def test_a_run_goes_on_under_another_strategy(first: str, second: str, runs: Path) -> None:
    found, alone = equality.weights(runs / f"{first} to {second}"), equality.weights(runs / f"{ALONE} to {ALONE}")
    assert equality.relative_difference(found, alone) < 1e-5


def test_processes_tell_each_other_the_gradients_of_what_trains(
    runs: Path, tiny_backbone: TinyBackbone, data: Path
) -> None:
    found = scaling.measure(2, 5, 15, words_of("lora", tiny_backbone, data)[:-1])
    trained = json.loads((run_of(runs / "lora", ALONE) / "summary.json").read_text())["trained_parameters"]
    assert found["bytes_per_step"] == 4 * trained


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        (["--trainer.strategy={class_path: ModelParallelStrategy}"], "use configs/trainer/fsdp2.yaml"),
        (["--trainer.strategy=ddp_spawn"], "set it to ddp"),
        ([*equality.WAYS["FSDP2"][1], *equality.NF4], "set it to auto or ddp"),
        ([*equality.WAYS["FSDP2"][1], "--model.lora.init_lora_weights=pissa_niter_4"], "set trainer.strategy to ddp"),
        ([*equality.WAYS["FSDP2"][1], "--model.optimization.lorafa=true"], "set trainer.strategy to ddp"),
        ([*equality.WAYS["FSDP2"][1], "--model.lora.trainable_token_indices=[7]"], "set trainer.strategy to ddp"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_load(
    more: list[str], remedy: str, tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lora_lightning.tasks.sequence_classification.load_sequence_classifier", None)
    words = ["fit", *words_of("lora", tiny_backbone, data), f"--trainer.logger.save_dir={tmp_path}", *more]
    assert main([*words, "--trainer.accelerator=cpu", "--trainer.devices=1"]) == 2
    message = capfd.readouterr().err
    assert remedy in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())

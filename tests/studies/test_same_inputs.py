"""Runs on changed data or another base are never compared silently."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_lightning.cli.main import main
from lora_lightning.errors import DataError
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.same_inputs import (
    Runs,
    check_same_inputs,
    check_same_rows,
    note_on_devices,
    note_on_versions,
    rows_identity,
    selection_on_test,
)
from lora_lightning.studies.trials import Trial
from tests.conftest import TinyBackbone
from tests.studies.small_study import save_study
from tests.tiny_data import save_tiny_table

ROWS = {"train": "a", "val": "b", "test": "c"}
ADAPTER = {"adapter": "/a", "weights": "w", "commit": None}
MODEL = {"weights": "w", "config": "x", "tokenizer": "t", "commit": None}


def runs(**changes: Any) -> Runs:
    """Two configurations with two seeds each; the last run differs."""
    common = {"data_fingerprint": ROWS, "base_model": MODEL, "continued_from": ADAPTER}
    facts: list[dict[str, Any]] = [*[common] * 3, common | changes]
    names = [("r = 1", 0), ("r = 1", 1), ("r = 2", 0), ("r = 2", 1)]
    trials = [Trial(f"{name} {seed}", name, seed, {}) for name, seed in names]
    records = [RunRecord(Path("run"), "finished", **each) for each in facts]
    return list(zip(trials, records, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_fingerprint": ROWS | {"test": "d"}}, "'r = 2, seed 1' was tested on other rows of test than 'r = 1, s"),
        ({"data_fingerprint": ROWS | {"train": "d"}}, "was given other rows of train than 'r = 1, seed 0'"),
        ({"base_model": MODEL | {"weights": "v"}}, "was trained from another base model than 'r = 1, seed 0'"),
        ({"base_model": MODEL | {"tokenizer": "v"}}, "was trained from another base model than 'r = 1, seed 0'"),
        ({"continued_from": ADAPTER | {"weights": "v"}}, "was continued from another adapter than 'r = 1, seed 0'"),
    ],
)
def test_runs_that_differ_are_not_compared(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_same_inputs(runs(**changes), "test")


def test_test_rows_on_which_the_epoch_was_chosen_are_named() -> None:
    assert selection_on_test({"train": "a", "val": "b", "test": "c"}) == selection_on_test({}) == ""
    assert selection_on_test({"train": "a", "val": "a", "test": "c"}) == ""
    found = selection_on_test({"val_matched": "a", "val_mismatched": "b", "test": "c", "test_other": "b"})
    assert found.startswith("The rows of test_other are those of val_mismatched, on which epochs and thresholds are ch")


def test_what_may_differ() -> None:
    check_same_inputs(runs(), "test")
    check_same_inputs(runs(base_model=MODEL | {"commit": "abc"}), "test")
    check_same_inputs(runs(continued_from=ADAPTER | {"adapter": "/moved", "commit": "abc"}), "test")
    check_same_inputs(runs(base_model=None, data_fingerprint={}), "test")  # of an older release
    check_same_inputs(runs(data_fingerprint={"train": "a", "val": "b"}), "test")  # of a run that tries a learning rate


CHANGES: dict[str, dict[str, Any]] = {
    "data.init_args.train_fraction": {"data_fingerprint": ROWS | {"train": "d"}},
    "model.init_args.backbone": {"base_model": MODEL | {"weights": "v"}},
    "model.quantization.bits": {"base_model": MODEL | {"weights": "v"}},
    "model.adapter": {"continued_from": ADAPTER | {"weights": "v"}},
}


@pytest.mark.parametrize("option", CHANGES)
def test_configurations_differ_in_inputs_only_where_the_study_varies_them(option: str) -> None:
    """The runs of a configuration that is added later see changed data or weights all alike."""
    other = runs()
    for trial, record in other[2:]:
        for name, value in CHANGES[option].items():
            object.__setattr__(record, name, value)
        object.__setattr__(trial, "options", {option: 2, "model.lora.r": 2})
    with pytest.raises(DataError, match=r"'r = 2, seed 0' was .* than 'r = 1, seed 0', so they cannot be compared"):
        check_same_inputs(other, "test", ["model.lora.r", "model.lora.lora_alpha"])
    check_same_inputs(other, "test", ["model.lora.r", option])
    for trial, _ in other[:2]:
        object.__setattr__(trial, "options", {option: 2, "model.lora.r": 1})
    with pytest.raises(DataError, match=r"'r = 2, seed 0' was .* than 'r = 1, seed 0'"):
        check_same_inputs(other, "test", ["model.lora.r", option])  # the same value


def test_runs_on_other_examples_or_tokens_are_not_compared() -> None:
    rows = {"index": np.arange(4), "weight": np.array([3.0, 0.0, 5.0, 1.0]), "score": np.zeros(4)}
    same = rows_identity(rows)
    assert same == rows_identity(rows | {"score": np.ones(4)}) != ""
    check_same_rows([("a", same), ("b", same), ("of an older release", rows_identity({}))])
    for other in ({"index": np.array([0, 1, 2, 9])}, {"weight": np.array([3.0, 0.0, 4.0, 1.0])}):
        with pytest.raises(
            DataError, match="the outcomes of 'b' are of other test examples or tokens than those of 'a'"
        ):
            check_same_rows([("a", same), ("b", rows_identity(rows | other))])


def test_other_versions_are_named() -> None:
    assert note_on_versions(runs(versions={"torch": "2.13.0"})) == ""
    found = runs(versions={"torch": "2.13.0", "peft": "0.21.2"})
    object.__setattr__(found[0][1], "versions", {"torch": "2.12.1", "peft": "0.21.2"})
    assert note_on_versions(found) == "The runs used different versions of torch (2.12.1, 2.13.0)."


def test_different_devices_are_named() -> None:
    found = runs(device="cuda", device_name="NVIDIA H200")
    assert note_on_devices(found) == ""  # those of the other runs were not recorded
    object.__setattr__(found[0][1], "device", "cpu")
    assert note_on_devices(found).startswith("Runs were trained on different devices (NVIDIA H200, cpu), which")
    object.__setattr__(found[0][1], "device", "cuda")  # of an older release: it may be the same model
    assert note_on_devices(found) == ""


def test_data_that_changes_during_a_study_is_noticed(
    tmp_path: Path, tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    train, test = save_tiny_table(tmp_path / "train.csv"), save_tiny_table(tmp_path / "test.csv")
    data = {"train_file": str(train), "test_file": str(test), "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    base = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {"class_path": "TextClassificationDataModule", "init_args": data},
        "trainer": {"max_steps": 2, "accelerator": "cpu"},
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }
    changes = {"base": base, "objective": "accuracy", "axes": {"model.lora.r": [1, 2]}, "reference": {"r": 2}}
    assert main(["study", "run", str(save_study(tmp_path, seeds=[0], **changes))]) == 0
    test.write_text("".join(test.read_text().splitlines(keepends=True)[:-1]))
    grown = save_study(tmp_path, seeds=[0, 1], **changes)
    capsys.readouterr()
    assert main(["study", "run", str(grown)]) == 2
    said = capsys.readouterr().err
    assert "the run 'r = 1, seed 1' was tested on other rows of test than 'r = 1, seed 0'" in said
    for folder in (tmp_path / "lightning_logs/studies/small").glob("*_seed_0_*"):
        shutil.rmtree(folder)
    assert main(["study", "report", "lightning_logs/studies/small"]) == 2
    assert "the folder of the finished run 'r = 1, seed 0' is gone" in capsys.readouterr().err
    assert main(["study", "run", str(grown)]) == 0  # trains them again


def test_a_batch_limit_that_leaves_out_other_rows_is_noticed(
    tmp_path: Path, tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches have rows of similar length, so that which rows are in the first ones depends on `max_length`."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{'w1 ' * (1 + number % 7)}w{number},{number % 2}\n" for number in range(24))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}")
    data = {"train_file": "train.csv", "test_file": "train.csv", "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    base = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": {"backbone": str(tiny_backbone("bert"))}},
        "data": {"class_path": "TextClassificationDataModule", "init_args": data | {"eval_batch_size": 4}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "limit_test_batches": 2},
        "checkpoint": {"monitor": "val/accuracy", "mode": "max"},
    }
    axes = {"data.max_length": [4, 30]}
    study = save_study(
        tmp_path, base=base, objective="accuracy", axes=axes, derived=None, seeds=[0], reference={"max_length": 30}
    )
    assert main(["study", "run", str(study)]) == 2
    assert "are of other test examples or tokens than those of" in capsys.readouterr().err


def test_configurations_with_tests_of_their_own_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(tmp_path, axes={"data.eval_rows": [16, 32]}, derived=None, reference={"eval_rows": 32})
    assert main(["study", "run", str(path), f"--save_dir={tmp_path}"]) == 2
    assert "'eval_rows = 32' of the study cannot be trained: its test rows are not those of" in capsys.readouterr().err

"""A run is evaluated on rows that it was not trained on, wherever its data lies; whoever changed the data is told."""

import csv
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning.cli.evaluate import run_validate
from lora_lightning.cli.main import main
from lora_lightning.datamodules import InstructionDataModule, SquadV2DataModule, TextClassificationDataModule
from lora_lightning.datamodules.base import AdaptationDataModule
from lora_lightning.datamodules.content_hash import former_content_hash
from lora_lightning.errors import DataError
from lora_lightning.runs.record import RunRecord, comparable_fingerprints
from lora_lightning.training.same_data import check_evaluated_rows
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_instructions, save_tiny_squad, save_tiny_table

ALLOW = "--allow_changed_data=true"


def save_run(folder: Path, datamodule: AdaptationDataModule, *, former: bool = False) -> Path:
    """A run folder that knows its data, as this or an earlier release wrote it."""
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    known = {"data": datamodule.former_fingerprint}
    (folder / "run.json").write_text(json.dumps(known if former else {**known, "data_rows": datamodule.fingerprint}))
    return folder


def append(path: Path, *lines: str) -> None:
    path.write_text(path.read_text() + "".join(f"{line}\n" for line in lines))


@pytest.fixture
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("kind", ["val", "test"])
def test_held_out_rows_of_changed_training_data_are_refused(tmp_path: Path, kind: str, former: bool) -> None:
    table = save_tiny_table(tmp_path / "a.csv")
    run = save_run(tmp_path / "run", TextClassificationDataModule(str(table), test_share=0.2), former=former)
    append(table, "w1 w2,w3,yes")
    changed = TextClassificationDataModule(str(table), test_share=0.2)
    with pytest.raises(DataError, match=rf"and the rows of {kind} are held out .* or set --this\.$"):
        check_evaluated_rows(run, changed, kind, "set --this")
    with pytest.warns(UserWarning, match=f"the rows of {kind} are held out .* scores would be too high"):
        check_evaluated_rows(run, changed, kind)


def test_held_out_rows_of_a_run_that_trained_on_all_are_refused(tmp_path: Path) -> None:
    table = str(save_tiny_table(tmp_path / "a.csv"))
    run = save_run(tmp_path / "run", TextClassificationDataModule(table))
    with pytest.raises(DataError, match="the rows of test are held out"):
        check_evaluated_rows(run, TextClassificationDataModule(table, test_share=0.2), "test", "set --this")


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("kind", ["val", "test"])
def test_the_same_rows_in_another_folder_are_the_same(tmp_path: Path, kind: str, former: bool) -> None:
    save_tiny_table(tmp_path / "a" / "a.csv")
    run = save_run(
        tmp_path / "run", TextClassificationDataModule(str(tmp_path / "a/a.csv"), test_share=0.2), former=former
    )
    (tmp_path / "a").rename(tmp_path / "b")
    check_evaluated_rows(run, TextClassificationDataModule(str(tmp_path / "b/a.csv"), test_share=0.2), kind, "set")


@pytest.fixture
def instructions(tiny_backbone: TinyBackbone) -> Any:
    def make(path: Path) -> InstructionDataModule:
        return InstructionDataModule(str(path), test_share=0.2, context_length=20, backbone=str(tiny_backbone("gpt2")))

    return make


@pytest.mark.usefixtures("silence")
def test_records_in_another_folder_are_the_same(tmp_path: Path, instructions: Any) -> None:
    path = save_tiny_instructions(tmp_path / "a")
    run = save_run(tmp_path / "run", instructions(path))
    moved = Path(shutil.copytree(tmp_path / "a", tmp_path / "b")) / path.name
    for kind in ("val", "test"):
        check_evaluated_rows(run, instructions(moved), kind, "set --this")


def test_of_a_moved_run_of_an_earlier_release_it_is_not_known(tmp_path: Path, instructions: Any) -> None:
    path = save_tiny_instructions(tmp_path / "a")
    run = save_run(tmp_path / "run", instructions(path), former=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_evaluated_rows(run, instructions(path), "val", "set --this")
    moved = Path(shutil.copytree(tmp_path / "a", tmp_path / "b")) / path.name
    with pytest.warns(UserWarning, match="made by an earlier release, so it is not known whether its data"):
        check_evaluated_rows(run, instructions(moved), "val", "set --this")


def test_other_test_rows_are_scored_with_one_warning(tmp_path: Path) -> None:
    train, first = str(save_tiny_table(tmp_path / "a.csv")), save_tiny_table(tmp_path / "b.csv", rows=12)
    run = save_run(tmp_path / "run", TextClassificationDataModule(train, test_file=str(first)))
    append(first, "w1 w2,w3,yes")
    changed = TextClassificationDataModule(train, test_file=str(first))
    with pytest.warns(UserWarning, match="the rows of test are other ones than when the run .* was trained"):
        check_evaluated_rows(run, changed, "test", "set --this")


@pytest.mark.usefixtures("silence")
def test_test_rows_that_the_run_never_had_are_no_change(tmp_path: Path) -> None:
    train, other = str(save_tiny_table(tmp_path / "a.csv")), tmp_path / "b.csv"
    other.write_text("text,other,label\nw1 w2,w3,yes\n")
    run = save_run(tmp_path / "run", TextClassificationDataModule(train))
    check_evaluated_rows(run, TextClassificationDataModule(train, test_file=str(other)), "test", "set --this")
    check_evaluated_rows(tmp_path, TextClassificationDataModule(train), "val", "set --this")  # no run folder


def test_articles_are_known_to_be_held_out(tmp_path: Path) -> None:
    folder = save_tiny_squad(tmp_path)
    files = {"train_file": str(folder / "train-v2.0.json"), "validation_file": str(folder / "dev-v2.0.json")}
    held_out = {}
    for name, options in {
        "none": files,
        "val": {**files, "validation_share": 0.2},
        "test": {**files, "test_share": 0.2},
        "both": {"train_file": files["train_file"], "validation_share": 0.2},
    }.items():
        module = SquadV2DataModule(**options)  # type: ignore[arg-type]
        _ = module.raw_splits
        held_out[name] = module.held_out_splits
    assert held_out == {"none": set(), "val": {"val"}, "test": {"test"}, "both": {"val", "test"}}


def test_labels_count_by_their_names(tmp_path: Path) -> None:
    table = save_tiny_table(tmp_path / "a.csv")
    before = TextClassificationDataModule(str(table)).fingerprint
    table.write_text(table.read_text().replace(",yes", ",yup"))
    renamed = TextClassificationDataModule(str(table))
    assert before["val"] != renamed.fingerprint["val"]
    assert renamed.former_fingerprint["val"] == former_content_hash(renamed.raw_splits["val"])


def test_runs_of_two_releases_are_compared_by_what_both_recorded(tmp_path: Path) -> None:
    table = TextClassificationDataModule(str(save_tiny_table(tmp_path / "a.csv")))
    other = TextClassificationDataModule(str(save_tiny_table(tmp_path / "b.csv", rows=38)))
    old, new, changed = (
        RunRecord.load(save_run(tmp_path / name, data, former=name == "old"))
        for name, data in (("old", table), ("new", table), ("changed", other))
    )
    assert old.data_fingerprint != new.data_fingerprint
    read = comparable_fingerprints([old, new, changed])
    assert read(old) == read(new) != read(changed)
    read = comparable_fingerprints([new, changed])
    assert read(new) == table.fingerprint != read(changed)


@pytest.fixture(scope="module")
def original(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a finished run on it; the threshold of its two labels was chosen."""
    folder = tmp_path_factory.mktemp("original")
    save_tiny_table(folder / "a.csv")
    model = {"backbone": str(tiny_backbone("bert")), "decision_threshold": "best_f1"}
    data = {"train_file": "a.csv", "test_share": 0.2, "validation_share": 0.3, "cache_dir": "cache"}
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "x"}}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": logger}
    config = {
        "model": {"class_path": "SequenceClassificationTask", "init_args": model},
        "data": {"class_path": "TextClassificationDataModule", "init_args": data},
        "trainer": trainer,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["fit", "--config=config.yaml"]) == 0
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the working directory, to change."""
    shutil.copytree(original, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("runs/x/version_0")


def evaluation(run: Path, command: str, *more: str) -> list[str]:
    return [command, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", *more]


def test_test_on_a_training_file_that_grew_is_refused(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = (run / "test_labels.csv").read_text()
    append(Path("a.csv"), "w1 w2,w3,yes")
    assert main(evaluation(run, "test")) == 2
    said = capfd.readouterr().err
    assert "was trained on other rows than these files and options give" in said
    assert said.strip().endswith("or set --allow_changed_data true.")
    assert (run / "test_labels.csv").read_text() == labels
    assert main(evaluation(run, "test", ALLOW)) == 0
    assert "scores would be too high" in capfd.readouterr().err


def test_a_label_that_was_renamed_does_not_pass_for_the_finished_run(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config=config.yaml", "--resume=auto"]
    assert main(words) == 0
    Path("a.csv").write_text(Path("a.csv").read_text().replace(",yes", ",yup"))
    assert main(words) == 2
    assert "other rows in the split train" in capfd.readouterr().err
    assert run.is_dir()


def test_validate_measures_with_the_threshold_that_the_run_chose(run: Path) -> None:
    chosen = json.loads((run / "adapter/labels.json").read_text())["decision_threshold"]
    with Path("other.csv").open("w", newline="") as stream:  # its own best threshold is another one
        writer = csv.writer(stream)
        writer.writerow(["text", "other", "label"])
        writer.writerows([f"w{number} w{number + 1}", "w3", ("no", "yes")[number % 5 == 0]] for number in range(20))
    words = evaluation(run, "validate", "--data.validation_file=other.csv")[1:]
    assert run_validate(words).model.threshold == pytest.approx(chosen)

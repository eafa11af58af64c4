"""Everything that TensorBoard shows reaches W&B, MLflow and CSV files too, and runs resume with any of them."""

import copy
import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from lora_lightning.cli.main import main
from lora_lightning.figures.histograms import histogram_figure, histogram_of
from lora_lightning.loggers import Table
from lora_lightning.loggers.board import Board
from lora_lightning.loggers.boards import board_of
from lora_lightning.loggers.tensorboard import TensorBoardBoard, markdown_table
from lora_lightning.runs.record import RunRecord
from lora_lightning.training.final_validation import FinalValidation
from tests.loggers.events import hparams, read, tags, texts
from tests.loggers.offline_wandb import OfflineRun, read_offline
from tests.studies.small_study import BASE

MONITORS = ("AdapterNormMonitor", "RankUtilizationMonitor", "ParameterEfficiency")
FIGURES = ("weights/rank/utilization_by_layer", "weights/rank/spectra", "weights/norms/relative_delta_norm_by_layer")
HISTOGRAMS = ("weights/norms/A", "weights/norms/B", "weights/rank/singular_values")
CURVES = ("train/loss", "val/loss", "weights/rank/utilization", "weights/norms/delta_norm")
LOGS = "lightning_logs"
LOGGERS: dict[str, dict[str, Any]] = {
    "TensorBoardLogger": {"save_dir": LOGS, "name": "board"},
    "CSVLogger": {"save_dir": LOGS, "name": "table"},
    "WandbLogger": {"save_dir": LOGS, "project": "tests", "offline": True},
    "MLFlowLogger": {
        "experiment_name": "tests",
        "tracking_uri": f"sqlite:///FOLDER/{LOGS}/mlflow.db",  # absolute: MLflow keeps files open
        "artifact_location": f"{LOGS}/mlflow_artifacts",
    },
}


def fit(folder: Path, loggers: list[str], *more: str) -> int:
    """A run of a fraction of a second."""
    config = copy.deepcopy(BASE)
    entries = [{"class_path": name, "init_args": LOGGERS[name]} for name in loggers]
    entries = yaml.safe_load(yaml.safe_dump(entries).replace("FOLDER", str(folder)))
    callbacks = [{"class_path": name} for name in MONITORS]
    config["trainer"] |= {"logger": entries, "callbacks": callbacks, "enable_progress_bar": False}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config=run.yaml", *more])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run with every logger has been started; not to be changed."""
    folder = tmp_path_factory.mktemp("all")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("WANDB_MODE", raising=False)
        assert fit(folder, [*LOGGERS]) == 0
    return folder


@pytest.fixture(scope="module")
def record(place: Path) -> RunRecord:
    return RunRecord.load(place / LOGS / "board/version_0")


def of_mlflow(place: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(f"sqlite:///{place / LOGS / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def test_nothing_lands_beside_the_logs(place: Path) -> None:
    assert {path.name for path in place.iterdir()} == {"run.yaml", LOGS}
    assert {path.name for path in (place / LOGS).iterdir()} == {
        *("board", "table", "wandb", "mlflow.db", "mlflow_artifacts")
    }


def test_tensorboard_has_few_groups_and_opens_on_training(record: RunRecord) -> None:
    shown = {tag for kind in ("scalars", "images", "histograms") for tag in tags(record.folder, kind)}
    assert sorted({tag.partition("/")[0] for tag in shown}) == [
        *("train", "training_efficiency", "val", "weights", "with_best")
    ]
    assert set(FIGURES) <= tags(record.folder, "images")
    assert set(HISTOGRAMS) <= tags(record.folder, "histograms")
    assert set(CURVES) <= tags(record.folder)
    assert {"efficiency", "results", "config.yaml"} <= texts(record.folder).keys()
    assert hparams(record.folder).settings["method"] == "lora"


def test_csv_has_every_number_and_text_but_no_picture(place: Path, record: RunRecord) -> None:
    folder = place / LOGS / "table/version_0"
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name for row in rows for name, value in row.items() if value}
    assert {*CURVES, "test/loss", "epoch", "efficiency/reduction", "with_best/val/loss"} <= columns
    assert tags(record.folder) <= columns
    table = (folder / "tables/efficiency/step_000000.csv").read_text().splitlines()
    assert table[0] == "module,trained_parameters,total_parameters,trained_share,trained_bytes,reduction"
    options = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert options["model"]["lora"]["r"] == 4
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".csv", ".yaml"}


@pytest.fixture(scope="module")
def offline(place: Path) -> OfflineRun:
    (run,) = read_offline(place / LOGS)
    return run


def test_wandb_has_numbers_pictures_histograms_tables_and_texts(offline: OfflineRun, record: RunRecord) -> None:
    for tag in CURVES:
        assert [step for step, _ in offline.history[tag]] == list(record.curves[tag].steps)
        assert [value for _, value in offline.history[tag]] == pytest.approx(record.curves[tag].values)
    assert offline.history["test/loss"][0][1] == pytest.approx(record.metric("test/loss"))
    for tag in FIGURES:
        (_, image) = offline.history[tag][-1]
        assert image["count"] == 1
        assert all((offline.folder / "files" / name).is_file() for name in image["filenames"])
        assert image["width"] > 600
    for tag in HISTOGRAMS:
        assert offline.history[tag][-1][1]["_type"] == "histogram"
    counted = sum(offline.history["weights/norms/A"][-1][1]["values"])
    assert counted == 4 * 8
    assert offline.history["efficiency"][0][1]["_type"] == "table-file"
    assert offline.history["config.yaml"][0][1]["_type"] == "table-file"


def test_wandb_has_all_settings_and_the_results(offline: OfflineRun, record: RunRecord) -> None:
    assert offline.config["model"]["lora"]["r"] == 4
    assert offline.config["data"]["batch_size"] == 16
    assert offline.config["trainer"]["max_epochs"] == 2
    assert offline.config["versions"]["peft"]
    assert (offline.config["seed_everything"], offline.config["r"], offline.config["method"]) == (0, 4, "lora")
    assert "lora" not in offline.config  # one value a key: not Lightning's copy of the model's settings
    assert offline.summary["with_best/test/loss"] == pytest.approx(record.metric("test/loss"))
    assert (offline.name, offline.exit_code) == ("planted-rank-lora-r4-s0", 0)


def test_mlflow_has_numbers_pictures_tables_and_texts(place: Path, record: RunRecord) -> None:
    client, run = of_mlflow(place)
    for tag in (*CURVES, "test/loss"):
        points = client.get_metric_history(run.info.run_id, tag)
        assert [point.step for point in points] == list(record.curves[tag].steps)
        assert [point.value for point in points] == pytest.approx(record.curves[tag].values)
    artifacts = place / LOGS / "mlflow_artifacts" / run.info.run_id / "artifacts"
    found = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert {"config.yaml", "tables/efficiency/step_000000.json"} <= found
    for tag in (*FIGURES, *HISTOGRAMS):
        key = tag.replace("/", "~")
        assert [name for name in found if name.startswith(f"images/{key}+step+8+") and name.endswith(".png")], tag


def test_mlflow_has_all_settings_and_the_results(place: Path, record: RunRecord) -> None:
    _, run = of_mlflow(place)
    expected = {"model.lora.r": "4", "data.batch_size": "16", "trainer.max_epochs": "2", "seed_everything": "0"}
    assert expected.items() <= run.data.params.items()
    assert run.data.params["versions.torch"] == torch.__version__
    assert run.data.params["method"] == "lora"
    assert run.data.metrics["with_best/test/loss"] == pytest.approx(record.metric("test/loss"))
    assert (run.info.run_name, run.info.status) == ("planted-rank-lora-r4-s0", "FINISHED")


def test_a_run_of_other_services_alone_has_its_folder_and_resumes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def ask(_: FinalValidation, trainer: Trainer, *__: Any) -> None:
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)

    services = ["MLFlowLogger", "WandbLogger"]
    with monkeypatch.context() as patch:
        patch.setattr(FinalValidation, "on_train_epoch_start", ask, raising=False)
        assert fit(tmp_path, services, "--resume=auto") == 75
    folder = Path(LOGS, "planted-rank-lora-r4-s0/version_0")
    assert (folder / "checkpoints/last.ckpt").exists()
    assert of_mlflow(tmp_path)[1].info.status == "KILLED"
    assert fit(tmp_path, services, "--resume=auto") == 0
    assert (folder / "summary.json").exists()
    assert not (folder.parent / "version_1").exists()
    assert of_mlflow(tmp_path)[1].info.status == "FINISHED"  # still one run
    sessions = read_offline(Path(LOGS))
    assert len({session.id for session in sessions}) == 1
    assert [session.exit_code for session in sessions] == [1, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", LOGS}


@pytest.mark.parametrize(("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_logger_without_its_package_says_what_to_install(
    logger: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.runs.place.find_spec", lambda name: None if name == package else object())
    assert fit(tmp_path, [logger]) == 2
    expected = (
        f'{logger} needs the package {package}; run `pip install "lora-lightning[loggers]"`, or use another logger.'
    )
    assert capsys.readouterr().err.strip().endswith(expected)
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml"}


def test_an_unknown_logger_gets_numbers_and_settings(tmp_path: Path) -> None:
    logged: list[Any] = []

    class Own(TensorBoardLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            logged.append((metrics, step))

    board = Board(Own(tmp_path))
    board.add_numbers({"a": 1.0}, 3)
    board.add_constants({"b": 2.0}, 4)
    board.add_figure("c", Figure(), 5)
    assert logged == [({"a": 1.0}, 3), ({"b": 2.0}, 4)]
    assert type(board_of(Own(tmp_path))) is TensorBoardBoard


def test_entries_that_are_not_finite_have_no_histogram() -> None:
    for values in ([], [torch.empty(0)], [torch.ones(2), torch.tensor([1.0, float("nan")])]):
        assert histogram_of(values) is None


def test_a_histogram_counts_every_entry_of_every_tensor(tmp_path: Path) -> None:
    values = [torch.linspace(0, 1, 65), torch.full((3, 2), 0.5, dtype=torch.bfloat16)]
    found = histogram_of(values)
    assert found is not None
    assert sum(found.counts) == found.sums.entries == 71
    assert (found.edges[0], found.edges[-1]) == (0, 1)
    assert found.counts[32] == 7
    assert len(histogram_figure(found, "x").axes) == 1
    logger = TensorBoardLogger(tmp_path)
    for name, each in (("both", values), ("equal", [torch.zeros(2, 3)])):
        TensorBoardBoard(logger).add_histogram(name, each, 1)
    logger.experiment.flush()
    (events,) = read(Path(logger.log_dir))
    assert events.Histograms("both")[0].histogram_value.num == 71
    zeros = events.Histograms("equal")[0].histogram_value
    assert (zeros.min, zeros.max, sum(zeros.bucket)) == (0, 0, 6)


def test_cells_of_tables_are_readable_and_stay_in_their_cell() -> None:
    table = Table(["a|b", "c"], [["x\ny", 1234567], [None, 0.000123456789], [True, 2.0]])
    assert markdown_table(table).splitlines() == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| x y | 1,234,567 |",
        "|  | 0.000123457 |",
        "| true | 2 |",
    ]

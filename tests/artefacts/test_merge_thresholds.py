"""What a merge measures decides by the threshold that it ships: that of the run, whatever data it is compared on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_lightning import RunRecord
from lora_lightning.artefacts import MergeResult
from lora_lightning.backbones.base_model_id import saved_base_name
from lora_lightning.cli.merge import print_merge
from lora_lightning.errors import CheckpointError
from tests.artefacts.conftest import Merge
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone
from tests.tiny_glue import save_tiny_glue


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier of intents, some of which are out of scope."""
    return train_tiny_run("intents", tiny_backbone("bert"), tmp_path_factory.mktemp("intents"))


@pytest.fixture(scope="module")
def questions(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A question answerer."""
    return train_tiny_run("questions", tiny_backbone("bert"), tmp_path_factory.mktemp("questions"))


def changed_adapter(run: RunRecord, folder: Path, file: str, **values: Any) -> Path:
    """A copy of the run's adapter with other values in a file; `...` leaves one out."""
    assert run.adapter is not None
    shutil.copytree(run.adapter, folder)
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return folder


def merged_metrics(result: MergeResult) -> dict[str, float]:
    return {each.name: each.merged.value for each in result.written.metrics}


def shipped(result: MergeResult, file: str = "labels.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.output / file).read_text())
    return content


@pytest.mark.parametrize(("threshold", "recall"), [(None, 0.0), (-1e6, 1.0)])
def test_the_threshold_of_a_bare_adapter_decides(
    threshold: float | None, recall: float, run: RunRecord, merge_here: Merge, tmp_path: Path
) -> None:
    adapter = changed_adapter(run, tmp_path / "adapter", "labels.json", out_of_scope_threshold=threshold)
    result = merge_here(adapter, config={"data": run.settings["data"]})
    assert merged_metrics(result)["out_of_scope_recall_at_threshold"] == recall
    assert shipped(result)["out_of_scope_threshold"] == threshold


def test_a_run_keeps_its_threshold_on_other_data(run: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    assert run.adapter is not None
    data = json.loads((Path(run.settings["data"]["init_args"]["data_dir"]) / "data_full.json").read_text())
    data["oos_val"] = [[text, "oos"] for text, _ in data["test"][:4]]  # so that another threshold would be best
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data_full.json").write_text(json.dumps(data))
    result = merge_here(run.folder, overrides={"data.data_dir": str(tmp_path / "data")})
    assert shipped(result) == json.loads((run.adapter / "labels.json").read_text())


def test_a_threshold_that_the_adapter_lacks_is_chosen_and_shipped(
    run: RunRecord, merge_here: Merge, tmp_path: Path
) -> None:
    assert run.adapter is not None
    adapter = changed_adapter(
        run, tmp_path / "adapter", "labels.json", out_of_scope_threshold=..., out_of_scope_index=...
    )
    result = merge_here(adapter, config={"data": run.settings["data"]})
    chosen = shipped(result)["out_of_scope_threshold"]
    saved = json.loads((run.adapter / "labels.json").read_text())["out_of_scope_threshold"]
    assert chosen == pytest.approx(saved, abs=1e-5)
    assert f"the adapter has no out_of_scope_threshold; {chosen:.4g} was chosen on these rows." in result.notes


def test_a_question_answerer_decides_as_its_run(questions: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    adapter = changed_adapter(
        questions, tmp_path / "adapter", "question_answering.json", null_threshold=-1e6, max_answer_length=1
    )
    result = merge_here(adapter, config={"data": questions.settings["data"]})
    metrics = merged_metrics(result)
    assert (metrics["NoAns_exact"], metrics["HasAns_exact"]) == (1, 0)  # no question is answered
    assert shipped(result, "question_answering.json") == {"null_threshold": -1e6, "max_answer_length": 1}


def test_answers_are_no_longer_than_the_run_allows(questions: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    found = []
    for length in (1, 30):
        adapter = changed_adapter(
            questions, tmp_path / str(length), "question_answering.json", null_threshold=1e6, max_answer_length=length
        )
        result = merge_here(adapter, config={"data": questions.settings["data"]}, overwrite=True)
        found.append(merged_metrics(result)["HasAns_f1"])
    assert found[0] != found[1]


def test_a_decision_threshold_of_the_run(tiny_backbone: TinyBackbone, merge_here: Merge, tmp_path: Path) -> None:
    run = train_tiny_run(
        "multi_label_classification", tiny_backbone("bert"), tmp_path / "run", model__decision_threshold="best_f1"
    )
    adapter = changed_adapter(run, tmp_path / "adapter", "labels.json", decision_threshold=1.1)
    result = merge_here(adapter, config={"data": run.settings["data"]})
    assert run.metrics["val"]["micro_f1_at_threshold"] > 0
    assert merged_metrics(result)["micro_f1_at_threshold"] == 0  # no label applies
    assert shipped(result)["decision_threshold"] == 1.1


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_record_of_the_base_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "base_model.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"base_model.json is damaged .* or delete it"):
        saved_base_name(tmp_path)


@pytest.mark.parametrize("value", ["high", True, [0.5], float("nan")])
def test_a_threshold_that_is_no_number(value: Any, run: RunRecord, merge_here: Merge, tmp_path: Path) -> None:
    adapter = changed_adapter(run, tmp_path / "adapter", "labels.json", out_of_scope_threshold=value)
    with pytest.raises(CheckpointError, match=r"labels.json: out_of_scope_threshold is .* must be a number"):
        merge_here(adapter, config={"data": run.settings["data"]})


@pytest.mark.parametrize("value", ["long", 0, 2.5, True])
def test_a_length_that_is_no_number_of_tokens(
    value: Any, questions: RunRecord, merge_here: Merge, tmp_path: Path
) -> None:
    adapter = changed_adapter(questions, tmp_path / "adapter", "question_answering.json", max_answer_length=value)
    with pytest.raises(CheckpointError, match=r"max_answer_length is .* must be a number of tokens above 0"):
        merge_here(adapter, config={"data": questions.settings["data"]})


def test_every_validation_split_is_compared(
    tiny_backbone: TinyBackbone, merge_here: Merge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_tiny_glue(tmp_path / "glue", "mnli")
    run = train_tiny_run(
        "intents",
        tiny_backbone("bert"),
        tmp_path / "run",
        checkpoint__monitor="val_matched/loss",
        data={
            "class_path": "GlueDataModule",
            "init_args": {"data_dir": str(data), "task_name": "mnli", "allow_partial": True},
        },
    )
    result = merge_here(run.folder)
    assert result.measured_on == "val_matched and val_mismatched of GlueDataModule, 24 rows"
    assert result.written.difference.decisions == 24
    for each in result.written.metrics:
        assert each.merged.value == pytest.approx(run.metrics[each.split][each.name], abs=1e-5)
    assert {each.split for each in result.written.metrics} == {"val_matched", "val_mismatched"}
    print_merge(result)
    assert "val_mismatched/accuracy" in capsys.readouterr().out
    assert "val_mismatched/accuracy" in (result.output / "README.md").read_text()

"""A run's folder is read the same whatever state it is in."""

import json
import subprocess
from pathlib import Path

import pytest

from lora_lightning import RunRecord
from lora_lightning.errors import LoraLightningError
from lora_lightning.runs.history import RunHistory, write_summary
from lora_lightning.runs.lock import lock_run_folder
from lora_lightning.runs.provenance import git_state, package_versions

SUMMARY = {
    "metrics": {"val/loss": 0.5, "test/domain_accuracy/travel": 1},
    "trained_parameters": 1,
    "total_parameters": 4,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has just started."""
    (tmp_path / "config.yaml").write_text("model:\n  init_args: {lora: {r: 4}}\nseed_everything: 3\n")
    RunHistory(tmp_path).start({"versions": {"torch": "2.13"}, "data": {"train": "abc"}, "git": None})
    return tmp_path


def test_a_locked_folder_is_a_running_run(run: Path) -> None:
    lock = lock_run_folder(run)
    assert RunRecord.load(run).state == "running"
    lock.release()
    assert RunRecord.load(run).state == "interrupted"


def test_a_killed_process_leaves_an_interrupted_run(run: Path) -> None:
    record = RunRecord.load(run)
    assert (record.state, record.reason, record.metrics, record.trainable_share) == (
        "interrupted",
        "the process was killed",
        {},
        None,
    )


@pytest.mark.parametrize(("ending", "reason"), [("interrupted", "SIGTERM"), ("failed", "the loss became nan")])
def test_how_the_last_session_ended_is_known(run: Path, ending: str, reason: str) -> None:
    RunHistory(run).end(ending, reason, steps=3)  # type: ignore[arg-type]
    record = RunRecord.load(run)
    assert (record.state, record.reason) == (ending, reason)
    RunHistory(run).start({})  # and is forgotten once the run is resumed
    assert RunRecord.load(run).reason == "the process was killed"


def test_results_settings_and_sessions(run: Path) -> None:
    history = RunHistory(run)
    history.end("interrupted", "SIGTERM", fit_seconds=2.5)
    history.start({"versions": {"torch": "2.13"}, "data": {"train": "abc"}})
    history.end("finished", "", fit_seconds=1.5, test_seconds=0.5)
    write_summary(run, SUMMARY)
    record = RunRecord.load(run)
    assert record.state == "finished"
    assert record.metrics == {"val": {"loss": 0.5}, "test": {"domain_accuracy/travel": 1.0}}
    assert record.metric("test/domain_accuracy/travel") == 1
    assert record.trainable_share == 0.25
    assert record.timings == (4.0, 0.5)
    assert record.flat_settings["model.init_args.lora.r"] == 4
    assert [session["ending"] for session in record.sessions] == ["interrupted", "finished"]
    assert record.versions == {"torch": "2.13"}
    assert record.data_fingerprint == {"train": "abc"}
    assert (record.adapter, record.best_checkpoint, record.tables, record.curves) == (None, None, {}, {})


def test_a_failed_check_is_a_failed_run_with_results(run: Path) -> None:
    write_summary(run, {**SUMMARY, "failed_check": "merging changes 3 decisions"})
    record = RunRecord.load(run)
    assert (record.state, record.reason) == ("failed", "merging changes 3 decisions")
    assert record.metric("val/loss") == 0.5


@pytest.mark.parametrize("name", ["run.json", "summary.json"])
@pytest.mark.parametrize("version", [2, "1", None])
def test_an_unknown_schema_is_refused(run: Path, name: str, version: object) -> None:
    (run / name).write_text(json.dumps({"schema_version": version}))
    with pytest.raises(LoraLightningError, match=f"{name} has schema version {version!r}, but"):
        RunRecord.load(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_summary_that_was_cut_off_is_no_summary(run: Path, text: str) -> None:
    (run / "summary.json").write_text(text)
    assert RunRecord.load(run).state == "interrupted"


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LoraLightningError, match=r"is not a run folder, because it has no config\.yaml"):
        RunRecord.load(tmp_path)


def test_curves_of_tables_join_the_sessions(run: Path) -> None:
    (run / "metrics.1.csv").write_text("train/loss,step,val/loss\n3.0,0,\n2.0,1,\n")
    (run / "metrics.csv").write_text("step,train/loss,val/loss\n1,2.5,\n2,1.0,\n2,,0.5\n")
    curves = RunRecord.load(run).curves
    assert curves == {"train/loss": ((0, 1, 2), (3.0, 2.5, 1.0)), "val/loss": ((2,), (0.5,))}


def test_versions_and_git_commit(tmp_path: Path) -> None:
    assert {"python", "torch", "lightning", "peft"} <= package_versions().keys()
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a.txt").write_text("1")
    for words in (["init", "-q"], ["add", "a.txt"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path) == {**state, "changed": True}


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("val/loss", "val/loss"),
        ("lora_rank/all/utilization", "weights/rank/utilization"),
        ("lora_adapters/layer.0.query/A_norm", "weights/norms/layer.0.query/A_norm"),
        ("representation_drift/layer.1.output/cka", "weights/drift/layer.1.output/cka"),
        ("verification/all/base/flipped_share", "verification/base/flipped_share"),
        ("verification/base/flipped_share", "verification/base/flipped_share"),
        ("other_text/all/loss", "other_text/all/loss"),  # a name in the YAML of studies
        ("with_best/val/loss", None),
        ("with_best/test/loss", "test/loss"),
        ("with_best/test_mismatched/loss", "test_mismatched/loss"),
    ],
)
def test_curves_have_todays_names_and_results_are_no_curves(run: Path, tag: str, name: str | None) -> None:
    (run / "metrics.csv").write_text(f"step,{tag}\n1,0.5\n")
    assert RunRecord.load(run).curves == ({} if name is None else {name: ((1,), (0.5,))})

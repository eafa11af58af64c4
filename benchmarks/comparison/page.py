"""The page of the comparison: tables and pictures in the style of this project's reports."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison.machine import is_quiet
from comparison.pictures import load_figure, pair_figure, ratio_figure, share_figure
from comparison.ratios import is_reached
from comparison.turns import counted_turns
from lora_lightning.reports.files import ReportFigure
from lora_lightning.reports.page import Page, PageTable, Section, write_page

Results = Mapping[str, dict[str, Any]]
MOST_LOSS = 0.1  # by which the losses of both sides may differ, as a share
READING = (
    "A ratio is ours / the peer's within one turn; the median of the turns is shown with their range. Of several "
    "commands of one side the best one of a turn counts. Speeds leave out the first step and the largest batch. The "
    "loss at the end is the mean of the last quarter of the steps, without label smoothing, in nats. A share is the "
    "work of the "
    "plain algorithm on real tokens (two products a weight of a linear layer, forward and backward to the inputs), "
    "beside dense products of 2048 x 2048 matrices that are timed before and after ours in the same turn. Of the first "
    "step, it is how many times as long as the imports that both sides need. Foreign load is CPUs that other processes "
    "used; steal is time that other virtual machines took."
)


def write_comparison(results: Results, folder: Path) -> Path:
    """Writes `report.html` with its pictures.

    Args:
        results: Rows by name, as `run.py` writes them.
        folder: Where to.

    Returns:
        The page.
    """
    found = {name: row for name, row in results.items() if "values" in row}
    planned = {name: row for name, row in found.items() if row["unit"] == "MiB"}
    measured = {name: row for name, row in found.items() if name not in planned}
    sections = [Section("Against peers", tables=(ratio_table(measured),), figures=ratio_pictures(measured))]
    sections += [Section("Numbers of each side", tables=(value_table(measured),))]
    sections += [Section("Work and quality of each side", tables=(work_table(measured),))]
    grown = {name: row for name, row in measured.items() if name.startswith("growth_")}
    sections += [Section("Growth of a step", tables=(growth_table(grown),), figures=growth_pictures(grown))]
    sections += [Section("Limits of the machine", tables=(share_table(measured),), figures=share_pictures(measured))]
    sections += [Section("Peak memory of the processes", tables=(memory_table(measured),), figures=memories(measured))]
    sections += [Section("Peak memory that `plan` predicts, beside a run", tables=(plan_table(planned),))]
    sections += [Section("Load of others", tables=(load_table(found),), figures=loads(found))]
    page = Page(
        title="lora-lightning beside its peers",
        subtitle=machine_line(results),
        answers=(goal_sentence(measured),),
        proven=not notes(results),
        sections=tuple(each for each in sections if any(table.rows for table in each.tables)),
        notes=notes(results),
        reading=READING,
    )
    return write_page(page, folder)


def goal_sentence(results: Results) -> str:
    """Counts the goals that are reached."""
    states = [goal_state(row) for row in results.values()]
    return f"{states.count('yes')} of {len(states) - states.count('')} goals are reached."


def goal_state(row: Mapping[str, Any]) -> str:
    """`yes`, `no`, or empty without a goal; of the median ratio, or of our number without a peer."""
    if row["goal"] is None:
        return ""
    found = row.get("ratio") or row["values"][row["ours"][0]]
    return "yes" if is_reached(found["median"], row["goal"], higher_is_better=row["higher_is_better"]) else "no"


def ratio_table(results: Results) -> PageTable:
    """The ratios and goals of all rows that have one."""
    rows = []
    for name, row in results.items():
        if "ratio" in row or row["goal"] is not None:
            found = row.get("ratio") or row["values"][row["ours"][0]]
            unit = "" if "ratio" in row else f" {row['unit']}"
            goal = "" if row["goal"] is None else f"{'≥' if row['higher_is_better'] else '≤'} {row['goal']:g}{unit}"
            rows.append((name, row["title"], shown(found), goal, goal_state(row), str(found["turns"])))
    headings = ("row", "what", "ours / peer", "goal", "reached", "turns")
    return PageTable(headings, tuple(rows), texts=frozenset({1}), states=4)


def value_table(results: Results) -> PageTable:
    """Median and range of each command."""
    rows = [
        (name, side, "" if side == row["limit"] else row["unit"], shown(found))
        for name, row in results.items()
        for side, found in row["values"].items()
    ]
    return PageTable(("row", "command", "unit", "median (range)"), tuple(rows), texts=frozenset({1, 2}))


def growth_table(results: Results) -> PageTable:
    """How long a step takes on both sides, by what it is made of."""
    rows = [
        (name, *(shown(row["values"][row[side][0]]) for side in ("ours", "peers")), shown(row["ratio"]))
        for name, row in results.items()
    ]
    return PageTable(("row", "ours, ms", "the peer, ms", "ours / peer"), tuple(rows))


def share_table(results: Results) -> PageTable:
    """Shares of what the machine can do."""
    rows = [
        (name, row["limit"], shown(row["share"]), "" if row["share_goal"] is None else f"≥ {row['share_goal']:g}")
        for name, row in results.items()
        if "share" in row
    ]
    return PageTable(("row", "limit", "share", "goal"), tuple(rows), texts=frozenset({1}))


def memory_table(results: Results) -> PageTable:
    """Peak resident memory of each command, the largest of the turns."""
    rows = [(name, side, f"{mib:,.0f}") for name, row in results.items() for side, mib in peaks(row).items()]
    return PageTable(("row", "command", "MiB"), tuple(rows), texts=frozenset({1}))


def plan_table(results: Results) -> PageTable:
    """What `plan` predicts beside the peak of the run."""
    rows = [
        (name, row["title"], *(shown(row["values"][side]) for side in ("plan", "the run")), shown(row["ratio"]))
        for name, row in results.items()
    ]
    headings = ("row", "what", "plan, MiB", "the run, MiB", "plan / the run")
    return PageTable(headings, tuple(rows), texts=frozenset({1}))


def load_table(results: Results) -> PageTable:
    """The largest load of others in each row."""
    rows = [
        (
            name,
            f"{load['foreign_cpus']:.2f}",
            f"{100 * load['steal_share']:.1f}",
            f"{100 * load['worst_steal_share']:.1f}",
        )
        for name, row in results.items()
        if (load := row["load"]) is not None
    ]
    return PageTable(("row", "foreign CPUs", "steal, %", "steal in the worst second, %"), tuple(rows))


def peaks(row: Mapping[str, Any]) -> dict[str, float]:
    """Largest peak of each command but the limit's, in MiB; of the GPU where one was used."""
    sides = [*row["ours"], *row["peers"]]
    costs = {side: [cost for turn in counted_turns(row["turns"]) for cost in turn["costs"][side]] for side in sides}
    return {side: max(each.get("gpu_peak_mib", each["peak_mib"]) for each in costs[side]) for side in sides}


def notes(results: Results) -> tuple[str, ...]:
    """What limits what the page says."""
    found = [
        f"{name} {'has no new measurement' if 'values' in row else 'was not measured'}: {row['failed']}."
        for name, row in results.items()
        if "failed" in row
    ]
    if quick := [name for name, row in results.items() if row["quick"] and "values" in row]:
        found.append(f"Only a try of a few steps, whose numbers say nothing: {', '.join(quick)}.")
    loud = [name for name, row in results.items() if (load := row.get("load")) is not None and not is_quiet(load)]
    if loud:
        found.append(f"The machine was not quiet: {', '.join(loud)}.")
    if apart := [name for name, row in results.items() if "values" in row and losses_differ(row)]:
        found.append(f"The losses of both sides differ by more than {100 * MOST_LOSS:.0f} %: {', '.join(apart)}.")
    if len({str(row["machine"]) for row in results.values()}) > 1:
        found.append("The rows are from several machines, versions or commits; results.json says which.")
    return tuple(found)


def losses_differ(row: Mapping[str, Any]) -> bool:
    """Whether the losses of our sides and of the peers' are so far apart that they did not train alike."""
    found = losses_of(row)
    ours, peers = ([found[side] for side in row[sides] if side in found] for sides in ("ours", "peers"))
    return any(abs(own / other - 1) > MOST_LOSS for own in ours for other in peers) and row["same_loss"]


def losses_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Median loss of each side in the last quarter of its steps, in nats."""
    found: dict[str, list[float]] = {}
    for turn in counted_turns(row["turns"]):
        for side, work in turn["work"].items():
            if "loss" in work:
                found.setdefault(side, []).append(work["loss"])
    return {side: statistics.median(losses) for side, losses in found.items()}


def work_table(results: Results) -> PageTable:
    """What each side trained, of the last turn, and its median loss."""
    rows = []
    for name, row in results.items():
        losses, last = losses_of(row), counted_turns(row["turns"])[-1]["work"]
        for side, work in last.items():
            if work["trainable"] is not None and work["steps"]:
                amounts = (f"{work[unit]:,.0f}" if unit in work else "" for unit in ("tokens", "labels"))
                loss = three_digits(losses[side]) if side in losses else ""
                rows.append((name, side, f"{work['trainable']:,}", f"{work['steps']:,}", *amounts, loss))
    headings = ("row", "command", "trained parameters", "steps", "tokens a step", "labels a step", "loss at the end")
    return PageTable(headings, tuple(rows), texts=frozenset({1}))


def machine_line(results: Results) -> str:
    """Names the machine of the first row."""
    row = next(iter(results.values()))
    machine, versions = row["machine"], row["machine"]["versions"]
    parts = [f"{machine['cpus']} x {machine['processor']}", f"{machine['memory_gib']} GiB", machine["gpu"]]
    parts += [f"threads: {machine['threads']}", *(f"{name} {number}" for name, number in versions.items() if number)]
    return ", ".join(filter(None, [*parts, f"commit {machine['commit']}", row["measured"]]))


def shown(found: Mapping[str, float]) -> str:
    """Median and range with three digits."""
    median, low, high = (three_digits(found[name]) for name in ("median", "low", "high"))
    return median if found["turns"] == 1 else f"{median} ({low} to {high})"


def three_digits(number: float) -> str:
    """Formats a number; large ones with all digits before the point."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"  # noqa: PLR2004


def ratio_pictures(results: Results) -> tuple[ReportFigure, ...]:
    """The ratios of all rows, if there are any."""
    if not (found := {name: row for name, row in results.items() if "ratio" in row}):
        return ()
    text = "Each row's ratio ours / peer: a dot for the median, a line for the range of the turns, a mark for the goal."
    return (ReportFigure("ratios", "Ratios within turns", text, ratio_figure(found)),)


def growth_pictures(results: Results) -> tuple[ReportFigure, ...]:
    """The time of a step on both sides, if there is any."""
    if not results:
        return ()
    text = "Median milliseconds of a step of ours and of the peer; each row says what differs from the other ones."
    ours, peers = (
        {name: row["values"][row[side][0]]["median"] for name, row in results.items()} for side in ("ours", "peers")
    )
    return (ReportFigure("growth", "Growth of a step", text, pair_figure(ours, peers, "ms")),)


def share_pictures(results: Results) -> tuple[ReportFigure, ...]:
    """The shares of the dense rate, if there are any."""
    found = {name: row for name, row in results.items() if "share" in row and row["higher_is_better"]}
    if not found:
        return ()
    text = "Share of the rate of dense products in the same turn, with the range of the turns and the goal."
    return (ReportFigure("shares", "Share of the dense rate", text, share_figure(found)),)


def memories(results: Results) -> tuple[ReportFigure, ...]:
    """Peak memory of both sides, where there are two."""
    found = {name: peaks(row) for name, row in results.items() if row["peers"]}
    if not found:
        return ()
    text = "Peak resident memory of ours and of the peer, the largest process of each."
    ours = {name: max(peaks[side] for side in results[name]["ours"]) for name, peaks in found.items()}
    peers = {name: max(peaks[side] for side in results[name]["peers"]) for name, peaks in found.items()}
    return (ReportFigure("memory", "Peak memory", text, pair_figure(ours, peers, "MiB")),)


def loads(results: Results) -> tuple[ReportFigure, ...]:
    """What others did, if the system says it."""
    found = {name: row["load"] for name, row in results.items() if row["load"] is not None}
    if not found:
        return ()
    text = "CPUs that other processes used, and the share of time that other virtual machines took, the worst of a row."
    return (ReportFigure("load", "Load of others", text, load_figure(found)),)

"""What a compression is refused for before any weights load: its ranks, its metric, and the runs to compare with."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lora_lightning.analysis.metric_outcomes import metrics_of_examples
from lora_lightning.analysis.metric_scale import TableScale, choose_scale
from lora_lightning.artefacts.compress_results import Layout
from lora_lightning.artefacts.finished_run import PreparedRun
from lora_lightning.artefacts.loader_rules import read_adapter_facts
from lora_lightning.compat.peft import first_matching_pattern
from lora_lightning.errors import ConfigurationError, DataError, suggest_names
from lora_lightning.lora.parameter_names import is_factor, saved_module_name
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.outcome_rows import outcome_columns

Ranks = tuple[int, ...] | Literal["all"]


class ComparedMetric(NamedTuple):
    """The metric that decides.

    Attributes:
        name: Without a split.
        split: Of validation, on which ranks are compared.
    """

    name: str
    split: str


def check_before_loading(
    run: PreparedRun,
    rivals: Sequence[PreparedRun],
    *,
    metric: str | None,
    margin: float | None,
    ranks: Ranks,
    layout: Layout,
) -> ComparedMetric:
    """Checks the options against the run, its data and the runs to compare with.

    Args:
        run: To compress.
        rivals: Runs that were trained at a lower rank.
        metric: As in `compress`.
        margin: As in `compress`.
        ranks: From the largest down; empty for the default.
        layout: As in `compress`.

    Returns:
        What decides.

    Raises:
        ConfigurationError: If an option does not fit.
        DataError: If a rival was validated on other examples.
    """
    record, task = run.record, run.task
    experts = task.lora is not None and bool(task.lora.target_parameters)
    check_layout_of_experts(layout, has_experts=experts)
    if record.state == "finished" and record.adapter is not None:  # otherwise its best adapter is not exported yet
        check_ranks_below(saved_rank(record.adapter), ranks, record.folder)
    chosen = choose_compared_metric(task, run.datamodule.split_names("val"), metric, run.monitor)
    _check_margin_is_known(chosen.name, margin, metrics_of_task(task))
    for rival in rivals:
        _check_same_examples(run, rival, chosen.split)
    return chosen


def saved_rank(folder: Path) -> int:
    """The largest rank of an adapter folder, from its names and its configuration.

    Args:
        folder: A PEFT folder.

    Returns:
        Of PiSSA and OLoRA that of the plain LoRA which a run exports.
    """
    facts = read_adapter_facts(folder)
    pattern = facts.config.get("rank_pattern") or {}
    modules = {saved_module_name(name) for name in facts.tensors if is_factor(name)}
    return max(int(pattern.get(first_matching_pattern(list(pattern), module), facts.config["r"])) for module in modules)


def check_ranks_below(r: int, ranks: Ranks, source: Path) -> None:
    """Refuses ranks that truncate nothing.

    Args:
        r: The largest of the adapter.
        ranks: From the largest down; empty for the default.
        source: The run.

    Raises:
        ConfigurationError: If there is no lower rank, or one to test is not lower.
    """
    if r == 1:
        msg = f"the adapter of {source} has rank 1 in every layer, so there is no lower rank to truncate it to."
        raise ConfigurationError(msg)
    if beyond := [k for k in ranks if ranks != "all" and int(k) >= r]:
        msg = f"--ranks has {beyond[0]}, but the adapter has rank {r}; give ranks from 1 to {r - 1}."
        raise ConfigurationError(msg)


def check_layout_of_experts(layout: Layout, *, has_experts: bool) -> None:
    """Refuses to mix ranks where PEFT cannot.

    Args:
        layout: As in `compress`.
        has_experts: Whether an adapter is on experts.

    Raises:
        ConfigurationError: If it is, and the layout is mixed.
    """
    if has_experts and layout == "mixed":
        msg = (
            "--layout is mixed, but the adapter is on experts (target_parameters), whose ranks this command does "
            "not mix; choose portable or exact."
        )
        raise ConfigurationError(msg)


def metrics_of_task(task: AdaptationTask) -> list[str]:
    """The metrics of a task that have numbers per example."""
    comparable = metrics_of_examples(outcome_columns(task))
    return [name for name in task.metric_names() if name in comparable]


def choose_compared_metric(
    task: AdaptationTask, splits: Sequence[str], wanted: str | None, monitor: str | None
) -> ComparedMetric:
    """Chooses the metric that decides, and the validation split that it is compared on.

    Args:
        task: Knows its metrics.
        splits: Of validation, such as `val_matched` and `val_mismatched`.
        wanted: The user's, with a split or without; `None` for the one that chose the run's best checkpoint.
        monitor: That one, with its split; `None` if unknown.

    Returns:
        The metric. Without a split in `wanted` it is that of the monitor, or else the first.

    Raises:
        ConfigurationError: If it is unknown, or has no numbers per example.
    """
    comparable = metrics_of_task(task)
    monitored_split, monitored = _split_and_name(monitor or "", splits)
    split, name = (monitored_split, monitored) if wanted is None else _split_and_name(wanted, splits)
    split = split or monitored_split or splits[0]
    if wanted is None and name == "loss" and "perplexity" in comparable:
        return ComparedMetric("perplexity", split)  # the same, with a usual margin
    if name in comparable:
        return ComparedMetric(name, split)
    if not comparable:
        msg = "this data has no metric with numbers per example, so ranks cannot be compared; choose other data."
    elif wanted is None:
        msg = (
            f"the run's best checkpoint was chosen by {monitor or 'no metric'}, which has no numbers per example to "
            f"compare; give --metric, one of {', '.join(comparable)}."
        )
    else:
        problem = "has no numbers per example to compare" if name in task.metric_names() else "is unknown"
        msg = f"--metric {wanted!r} {problem}; {suggest_names(name, comparable)}"
    raise ConfigurationError(msg)


def _split_and_name(tag: str, splits: Collection[str]) -> tuple[str | None, str]:
    split, _, name = tag.partition("/")
    return (split, name) if split in splits else (None, tag)


def _check_margin_is_known(name: str, margin: float | None, comparable: Sequence[str]) -> None:
    if margin is not None or choose_scale(name, []) is not TableScale.PLAIN:
        return
    others = [each for each in comparable if choose_scale(each, []) is not TableScale.PLAIN]
    msg = (
        f"{name} has no usual margin; give --margin, the largest loss in its unit that does not matter, or "
        f"another --metric{', such as ' if others else ''}{', '.join(others[:3])}."
    )
    raise ConfigurationError(msg)


def _check_same_examples(run: PreparedRun, rival: PreparedRun, split: str) -> None:
    if run.datamodule.fingerprint[split] == rival.datamodule.fingerprint.get(split):
        return
    msg = (
        f"the run {rival.record.folder} was validated on other examples than the compressed one, so they cannot be "
        "paired; give both the same data with --data.* options, or leave it out of --trained_at_k."
    )
    raise DataError(msg)

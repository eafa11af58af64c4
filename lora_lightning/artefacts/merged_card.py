"""The README.md of a merged folder: metadata for the hub, how to load it, and what was measured."""

import math
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.plain_model import quantization_of
from lora_lightning.artefacts.results import MergeMeasurement
from lora_lightning.backbones.model_card import AUTO_CLASSES, CLASSIFIER, QUESTION_ANSWERER, model_card
from lora_lightning.metrics.direction import LOWER_IS_BETTER
from lora_lightning.statistics import Interval

END_OF_METADATA = "---\n"


def merged_card(
    opened: OpenedAdapter, model: PreTrainedModel, measured: MergeMeasurement, base_model: str | None, name: str
) -> str:
    """Writes the model card of a merged folder.

    Args:
        opened: The adapter.
        model: A model of the merged model's class and configuration.
        measured: The folder's measurement.
        base_model: The base model's id on the hub; `None` leaves it out, because the hub refuses local folders.
        name: Of the merged model.

    Returns:
        Markdown with YAML metadata.
    """
    *_, body = (model_card(model, is_adapter=False) or "").split(END_OF_METADATA, 2)
    results = _results(opened, measured)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=AUTO_CLASSES[opened.auto_class][1],
        base_model=base_model,
        datasets=list(opened.datasets) or None,
        tags=["lora", "merged"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [f"---\n{metadata.to_yaml()}\n---\n{body.rstrip()}\n", _pipeline(opened.auto_class)]
    return "\n".join([*(part for part in parts if part), _measurements(opened, measured)])


def base_model_name(backbone: str, given: str | None) -> str | None:
    """The base model's name for the card.

    Args:
        backbone: Hub id, folder or `package://` name.
        given: The user's `--base_model_id`; `None` for none.

    Returns:
        The given one, else the hub id; `None` for a folder or a package.
    """
    if given is not None:
        return given
    return None if Path(backbone).expanduser().is_dir() or "://" in backbone else backbone


def _results(opened: OpenedAdapter, measured: MergeMeasurement) -> list[EvalResult]:
    *_, rest = opened.measured_on.partition(" of ")
    dataset = opened.datasets[0] if opened.datasets else rest.partition(",")[0]
    return [
        EvalResult(
            task_type=AUTO_CLASSES[opened.auto_class][1],
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=estimate.split,
            metric_type=estimate.name,
            metric_name=f"{estimate.name} (95 % interval {_ends(estimate.merged)})",
            metric_value=estimate.merged.value,
            metric_args={"confidence": 0.95, "low": estimate.merged.low, "high": estimate.merged.high},
        )
        for estimate in measured.metrics
        if math.isfinite(estimate.merged.value) and "/" not in estimate.name  # not of each domain
    ]


def _divergence_and_flips(difference: OutputDifference) -> str:
    """Both, for models that have them; a regression has neither."""
    if not difference.decisions:
        return ""
    return (
        f", the Kullback-Leibler divergence is {difference.kl_divergence:.2g} nats, and "
        f"{100 * difference.flipped_share:.3g} % of {difference.decisions} decisions flip"
    )


def _ends(interval: Interval) -> str:
    return "unknown" if math.isnan(interval.low) else f"{interval.low:.4g} to {interval.high:.4g}"


def _pipeline(auto_class: str) -> str:
    if auto_class == QUESTION_ANSWERER:  # transformers 5 has no pipeline for it
        return ""
    example = "a text to classify" if auto_class == CLASSIFIER else "a text to continue"
    task = AUTO_CLASSES[auto_class][1]
    lines = (
        "from transformers import pipeline",
        "",
        f'print(pipeline("{task}", model=folder, tokenizer=folder)("{example}"))',
    )
    return "\n".join(["```python", *lines, "```", ""])


def _measurements(opened: OpenedAdapter, measured: MergeMeasurement) -> str:
    difference = measured.difference
    recovered = "" if measured.recovery is None else f"; {measured.recovery}"
    saved = f"saved in {measured.dtype}"
    if measured.target == "requantized":
        bits = 4 if quantization_of(opened.model).load_in_4bit else 8
        saved = f"quantized again to {bits} bits; weights that are not quantized are saved in {measured.dtype}"
    summary = (
        f"The adapter was merged into the {measured.target} weights and {saved}. The folder was loaded again by "
        f"transformers alone and compared with the adapter beside its base on {opened.measured_on}: logits move by up "
        f"to {difference.max_logit_difference:.2g} (largest logit {difference.largest_logit:.3g})"
        f"{_divergence_and_flips(difference)}{recovered}."
    )
    lines = ["## Merge check", "", summary, ""]
    if measured.metrics:
        lines += ["| metric | adapter | merged | 95 % interval |", "| --- | ---: | ---: | --- |"]
        for each in measured.metrics:
            label = f"{measured.label(each)}{' (lower is better)' if each.name in LOWER_IS_BETTER else ''}"
            values = f"{each.adapter.value:.4f} | {each.merged.value:.4f} | {_ends(each.merged)}"
            lines.append(f"| {label} | {values} |")
        lines.append("")
    return "\n".join(lines)

"""Adds to the README.md of an exported folder what a finished run knows: its metrics, its data and its settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lora_lightning.backbones.adapter_labels import LABELS
from lora_lightning.metrics.direction import LOWER_IS_BETTER
from lora_lightning.runs.record import RunRecord, metrics_by_split

METRICS = "## Metrics"
README = "README.md"
# Names in the table, and options of `config.yaml`; a run has those that are not null.
SETTINGS = {
    "r": "model.init_args.lora.r",
    "init_r": "model.init_args.lora.adalora.init_r",
    "target_r": "model.init_args.lora.adalora.target_r",
    "rank_pattern": "model.init_args.lora.rank_pattern",
    "lora_alpha": "model.init_args.lora.lora_alpha",
    "alpha_pattern": "model.init_args.lora.alpha_pattern",
    "lora_dropout": "model.init_args.lora.lora_dropout",
    "target_modules": "model.init_args.lora.target_modules",
    "init_lora_weights": "model.init_args.lora.init_lora_weights",
    "use_rslora": "model.init_args.lora.use_rslora",
    "use_dora": "model.init_args.lora.use_dora",
    "quantization, bits": "model.init_args.quantization.bits",
    "class_weight": "model.init_args.class_weight",
    "learning rate": "model.init_args.optimization.learning_rate",
    "loraplus_lr_ratio": "model.init_args.optimization.loraplus_lr_ratio",
    "schedule": "model.init_args.optimization.schedule",
    "weight decay": "model.init_args.optimization.weight_decay",
    "epochs, at most": "trainer.max_epochs",
    "steps, at most": "trainer.max_steps",
    "gradient clipping": "trainer.gradient_clip_val",
    "precision": "trainer.precision",
    "seed": "seed_everything",
}
PACKAGES = ("lora-lightning", "torch", "transformers", "peft", "bitsandbytes")


def complete_card(
    record: RunRecord,
    folder: Path,
    metrics: Mapping[str, float],
    rows: Mapping[str, str],
    dataset: str | None,
    chosen_by: str,
    rows_a_step: int,
) -> None:
    """Writes the sections; nothing if the folder has no README.md, because no auto class loads the model.

    Args:
        record: The run.
        folder: The exported one.
        metrics: Of validation and test, by tag.
        rows: The size of each split, in words.
        dataset: Hub id of the data; `None` for files, of which nothing is said to the hub's leaderboards.
        chosen_by: What decided which checkpoint was exported, and what else is to be known, as sentences.
        rows_a_step: Of an optimizer step, in the batches of all processes that it accumulates.
    """
    path = folder / README
    if not path.is_file():
        return
    card = ModelCard(path.read_text(encoding="utf-8"))
    source = dataset or f"local files, read by {class_of_data(record)}"
    before: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    metadata = {name: value for name, value in before.items() if name != "model-index"}
    results = _results(metrics, source, str(metadata.get("pipeline_tag", "other")))
    metadata |= {"model_name": record.folder.parent.name, "eval_results": results} if results else {}
    metadata |= {} if dataset is None else {"datasets": [dataset]}
    card.data = ModelCardData(**metadata)
    chosen_by = " ".join([chosen_by, *threshold_sentences(folder)])
    parts = (metrics_section(metrics, chosen_by), data_section(record, rows, source))
    sections = (*parts, settings_section(record, rows_a_step))
    card.text = "\n".join([card.text.partition(f"\n{METRICS}\n")[0].rstrip() + "\n", *sections])
    card.save(path)


def class_of_data(record: RunRecord) -> str:
    """Returns the name of a run's data module without its ending, such as `Clinc150`.

    Args:
        record: The run.
    """
    name = str(record.flat_settings.get("data.class_path", "data")).rpartition(".")[2]
    return name.removesuffix("DataModule")


def metrics_section(metrics: Mapping[str, float], chosen_by: str) -> str:
    """Returns a table of the metrics of each split, without those of domains.

    Args:
        metrics: By tag.
        chosen_by: As in `complete_card`.
    """
    splits = metrics_by_split({tag: value for tag, value in metrics.items() if tag.startswith(("val", "test"))})
    names = dict.fromkeys(name for values in splits.values() for name in values if "/" not in name)
    cells = [
        [f"{name} (lower is better)" if name in LOWER_IS_BETTER else name]
        + [f"{splits[split][name]:.4f}" if name in splits[split] else "-" for split in splits]
        for name in names
    ]
    return _section(METRICS, *([_table(["metric", *splits], cells)] if cells else []), f"{chosen_by}\n")


def threshold_sentences(folder: Path) -> list[str]:
    """Returns a sentence for each threshold that a classifier's folder holds; loading the model does not apply it.

    Args:
        folder: The exported one.
    """
    labels = json.loads((folder / LABELS).read_text(encoding="utf-8")) if (folder / LABELS).is_file() else {}
    return [
        f"`{name}` {value:.4g} in `{LABELS}` was chosen on validation data; the metrics that end in `_at_threshold` "
        "follow it, and a pipeline does not."
        for name, value in labels.items()
        if name.endswith("_threshold") and value is not None
    ]


def data_section(record: RunRecord, rows: Mapping[str, str], source: str) -> str:
    """Returns a table of the splits with their hashes, by which the same data is recognized.

    Args:
        record: The run.
        rows: The size of each split, in words.
        source: Of the data.
    """
    cells = [[split, rows.get(split, "-"), f"`{digest}`"] for split, digest in record.data_fingerprint.items()]
    return _section("## Data", _table(["split", "size", "SHA-256 of its content"], cells), f"Source: {source}\n")


def settings_section(record: RunRecord, rows_a_step: int) -> str:
    """Returns a table of the settings that decide most.

    Args:
        record: The run.
        rows_a_step: As in `complete_card`.
    """
    given = {name: _setting(record.settings, option) for name, option in SETTINGS.items()}
    if given["init_r"] is not None:  # AdaLoRA does not read r
        given["r"] = None
    if given["steps, at most"] == -1:  # no limit
        given["steps, at most"] = None
    given["rows an optimizer step"] = rows_a_step
    given |= {name: record.versions.get(name) for name in PACKAGES}
    cells = [[name, f"`{value}`"] for name, value in given.items() if value is not None]
    return _section("## Settings", _table(["setting", "value"], cells))


def _setting(settings: Any, option: str) -> Any:
    for name in option.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def _results(metrics: Mapping[str, float], source: str, task: str) -> list[EvalResult]:
    """What the hub shows beside the card: the metrics of the test, or of validation if there is no test."""
    splits = metrics_by_split(metrics)
    split = next((name for kind in ("test", "val") for name in splits if name.startswith(kind)), "")
    return [
        EvalResult(
            task_type=task,
            dataset_type=source,
            dataset_name=source,
            dataset_split=split,
            metric_type=name,
            metric_name=name,
            metric_value=float(f"{value:.6g}"),  # what follows is rounding
        )
        for name, value in splits.get(split, {}).items()
        if "/" not in name
    ]


def _section(title: str, *parts: str) -> str:
    return "\n".join([title, "", *parts])


def _table(columns: list[str], cells: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *cells]
    return (
        "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
    )

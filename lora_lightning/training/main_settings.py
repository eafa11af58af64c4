"""The settings that tables of runs show, such as TensorBoard's HParams: few, by short names, one value each."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lora_lightning.loggers.board import Value
from lora_lightning.runs.settings import flatten
from lora_lightning.training.run_names import backbone_name, data_name, has_lora, method_name, rank_of

TELLING = ("data", "backbone", "method", "r", "learning_rate", "seed")
NUMBERS = {
    "lora_alpha": "model.init_args.lora.lora_alpha",
    "lora_dropout": "model.init_args.lora.lora_dropout",
    "bits": "model.init_args.quantization.bits",
    "learning_rate": "model.init_args.optimization.learning_rate",
    "weight_decay": "model.init_args.optimization.weight_decay",
    "warmup_share": "model.init_args.optimization.warmup_share",
    "batch_size": "data.init_args.batch_size",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "seed": "seed_everything",
}
TEXTS = {
    "target_modules": "model.init_args.lora.target_modules",
    "schedule": "model.init_args.optimization.schedule",
    "precision": "trainer.precision",
}
GROUPS = ("model", "data", "trainer")
# Where files are and how a run is watched, not what the run is; or what data, backbone and method say already.
NOT_SHOWN = {f"trainer.{name}" for name in ("callbacks", "default_root_dir", "logger", "log_every_n_steps")}
NOT_SHOWN |= {f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "use_distributed_sampler")}
NOT_SHOWN |= {f"data.{name}" for name in ("backbone", "cache_dir", "data_dir", "dataset_name", "num_workers")}
NOT_SHOWN |= {f"data.{name}" for name in ("predict_file", "task_name", "train_file", "variant", "eval_batch_size")}
NOT_SHOWN |= {"model.backbone", "model.lora.r", "model.lora.init_lora_weights", "model.lora.use_dora"}


def main_settings(settings: Mapping[str, Any], trainable: int, total: int) -> dict[str, Value | None]:
    """Chooses and names the settings that tell runs apart.

    Args:
        settings: Options of `fit` by dotted name, all of them.
        trainable: Number of trainable parameters.
        total: Number of all parameters.

    Returns:
        Values by short name, the same names for every run; `None` for a number that the run does not have. `other` has
        the options that differ from their defaults and have no name of their own here.
    """
    numbers = {name: _number(settings.get(option)) for name, option in NUMBERS.items()}
    if not has_lora(settings):
        numbers |= {"lora_alpha": None, "lora_dropout": None}
    texts = {name: _text(settings.get(option)) for name, option in TEXTS.items()}
    if settings.get("trainer.precision") is None:
        texts["precision"] = "32-true"  # Lightning's own default
    return {
        "data": data_name(settings),
        "backbone": backbone_name(settings),
        "method": method_name(settings),
        "r": rank_of(settings),
        **numbers,
        **texts,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "other": "; ".join(f"{name}={_text(value)}" for name, value in other_settings(settings).items()),
    }


def other_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Finds the options of model, data and trainer that differ from their defaults and that `main_settings` lacks.

    Args:
        settings: Options by dotted name.

    Returns:
        Values by the name on the command line.
    """
    shown = {option.replace(".init_args.", ".") for option in (*NUMBERS.values(), *TEXTS.values())}
    defaults = _defaults(settings)
    found = {}
    for option, value in settings.items():
        name = option.replace(".init_args.", ".")
        if not name.startswith(tuple(f"{group}." for group in GROUPS)) or name.endswith(".class_path"):
            continue
        is_hidden = name in shown or any(f"{name}.".startswith(f"{hidden}.") for hidden in NOT_SHOWN)
        if value is not None and value != defaults.get(name) and not is_hidden:
            found[name] = value
    return found


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the options of the classes in use, by the name on the command line."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        module, _, name = str(settings.get(f"{group}.class_path", "lightning.Trainer")).rpartition(".")
        for option, parameter in inspect.signature(getattr(import_module(module), name)).parameters.items():
            if parameter.default is not parameter.empty:
                found |= flatten(parameter.default, f"{group}.{option}")
    return found


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)

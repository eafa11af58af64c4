"""In which dtype the runs of both precisions multiplied: what differs there is compared along with the quantization."""

from collections.abc import Mapping
from typing import Any

import torch

from lora_lightning.backbones.quantization import compute_dtype_on
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.lora.config import QuantizationSettings

FOUR_BITS = 4
AUTO = "auto"
MIXED = "-mixed"
NAMES = {"bf16": "bfloat16", "16": "float16", "64": "float64"}  # of trainer.precision, up to the hyphen


def rounds_inputs(quantized: FinishedRun) -> bool:
    """Whether the layers of a run multiply 8-bit integers, which rounds their inputs beside their weights.

    Args:
        quantized: A run with quantization.
    """
    settings = quantized.record.settings["model"]["init_args"].get("quantization") or {}
    return bool(settings.get("bits", FOUR_BITS) != FOUR_BITS)


def note_on_products(full: FinishedRun, quantized: FinishedRun) -> str:
    """Names the dtypes of products if those of the two precisions differed in training.

    Args:
        full: A run without quantization.
        quantized: A run with it.

    Returns:
        A sentence; empty if both multiplied in the same dtype.
    """
    own = _of_trainer(full.record.flat_settings)
    settings = quantized.record.settings["model"]["init_args"].get("quantization") or {}
    if rounds_inputs(quantized):
        return (
            f"{quantized.precision} multiplies 8-bit integers, which rounds the inputs of layers too, also where "
            "behavior and merges are measured."
        )
    other = _of_quantized(settings, quantized.record.flat_settings)
    if other == own:
        return ""
    return (
        f"Runs of {full.precision} were trained and tested with products in {own}, those of {quantized.precision} with "
        f"products of 4-bit weights in {other}, so verdicts on quality, adapters and costs compare this too; behavior "
        "and merges are measured with products in float32 on both sides."
    )


def _of_trainer(settings: Mapping[str, Any]) -> str:
    return NAMES.get(str(settings.get("trainer.precision")).partition("-")[0], "float32")


def _of_quantized(quantization: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    asked = quantization.get("compute_dtype") or AUTO
    trainer = _of_trainer(settings)
    if str(settings.get("trainer.precision")).endswith(MIXED):
        return trainer  # autocast casts what bitsandbytes multiplies, whatever dtype that has
    if asked != AUTO:
        return str(asked)
    if trainer != "float32":
        return trainer
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = str(compute_dtype_on(QuantizationSettings(), device, "32-true")).removeprefix("torch.")
    return f"the dtype that suited the device of the run (compute_dtype: auto; here {here})"

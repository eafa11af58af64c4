"""The precisions in which a plan states peak memory, each a choice of options of `fit`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from lora_lightning.backbones.quantization import compute_dtype_on
from lora_lightning.errors import LoraLightningError
from lora_lightning.lora.combinations import check_lora_and_quantization
from lora_lightning.lora.config import QuantizationSettings
from lora_lightning.tasks import AdaptationTask

HALVES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
AUTOCASTS = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
FULL = "32-true"
SPELLINGS = {"32": FULL, "bf16": "bf16-mixed", "16": "16-mixed", "64": "64-true", "None": FULL}


@dataclass(frozen=True)
class Precision:
    """One way to keep weights and to compute.

    Attributes:
        name: As in the table.
        trainer: `trainer.precision`.
        quantization: Of the frozen base.
        options: What to write for `fit`.
        is_config: Whether the config chooses it.
    """

    name: str
    trainer: str
    quantization: QuantizationSettings | None
    options: str
    is_config: bool

    @property
    def weights(self) -> torch.dtype | None:
        """The dtype of all that is not quantized; `None` for float32."""
        return HALVES.get(self.trainer)

    @property
    def bytes_per_number(self) -> int:
        """Of what is trained, and so of the file that `fit` exports."""
        return (self.weights or torch.float32).itemsize

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of products, if it is not that of the weights."""
        return AUTOCASTS.get(self.trainer)

    def compute_dtype(self, device: str) -> torch.dtype:
        """The dtype in which 4-bit weights are multiplied.

        Args:
            device: `cpu` is this machine's; a `cuda` device is taken to be fast at bfloat16.
        """
        if self.quantization is None:
            return torch.float32
        if device == "cuda" and self.quantization.compute_dtype == "auto":
            return AUTOCASTS.get(self.trainer) or HALVES.get(self.trainer) or torch.bfloat16
        return compute_dtype_on(self.quantization, torch.device("cpu"), self.trainer)


def precisions_of(task: AdaptationTask, trainer_precision: object) -> list[Precision]:
    """float32, bf16, int8 and NF4, and the config's own if it is none of them.

    Args:
        task: Its quantization is the config's.
        trainer_precision: `trainer.precision` as in the config.

    Returns:
        The rows of the table; one of them is the config's.
    """
    precision = SPELLINGS.get(str(trainer_precision), str(trainer_precision))
    given = task.quantization
    kept = None if given is None else given.skip_modules
    four = (
        given
        if given is not None and (given.bits, given.type) == (4, "nf4")
        else QuantizationSettings(skip_modules=kept)
    )
    eight = given if given is not None and given.bits == 8 else QuantizationSettings(bits=8, skip_modules=kept)  # noqa: PLR2004
    wanted = [("float32", FULL, None), ("bf16", "bf16-true", None), ("int8", FULL, eight), ("NF4", FULL, four)]
    rows = [
        Precision(
            name,
            trainer,
            quantization,
            _options((trainer, quantization), (precision, given)),
            is_config=(trainer, quantization) == (precision, given),
        )
        for name, trainer, quantization in wanted
    ]
    if not any(row.is_config for row in rows):
        bits = "" if given is None else f", {given.type if given.bits == 4 else 'int8'}"  # noqa: PLR2004
        rows.insert(0, Precision(f"{precision}{bits}", precision, given, "as in the config", is_config=True))
    return rows


def _options(wanted: tuple[str, QuantizationSettings | None], given: tuple[str, QuantizationSettings | None]) -> str:
    """What to write after the config for another precision: all that differs from it."""
    (trainer, quantization), (given_trainer, given_quantization) = wanted, given
    options = [] if trainer == given_trainer else [f"--trainer.precision {trainer}"]
    if quantization is None:
        options += [] if given_quantization is None else ["--model.quantization null"]
    elif quantization != given_quantization:
        before = asdict(given_quantization or QuantizationSettings())
        changed = {name: value for name, value in asdict(quantization).items() if value != before[name]}
        changed = {"bits": quantization.bits, **changed}
        options += [f"--model.quantization.{name} {str(value).lower()}" for name, value in changed.items()]
    return " ".join(options) or "as in the config"


def why_unavailable(task: AdaptationTask, precision: Precision) -> str:
    """Why there is no such training; empty if there is."""
    if precision.quantization is None:
        return ""
    if task.auto_class is None or task.lora is None:
        return "needs LoRA on a pretrained model, since quantized weights are frozen"
    try:
        check_lora_and_quantization(task.lora, precision.quantization)
    except LoraLightningError as error:
        return str(error)
    return ""


@contextmanager
def in_precision(task: AdaptationTask, precision: Precision) -> Iterator[None]:
    """Gives a task the quantization of a precision for a while."""
    given = task.quantization
    task.quantization = precision.quantization
    try:
        yield
    finally:
        task.quantization = given

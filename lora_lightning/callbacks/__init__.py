"""Lightning callbacks, one file each: a hook gathers, a pure function computes, a logger shows."""

from lora_lightning.callbacks.adapter_checkpoint import AdapterCheckpoint
from lora_lightning.callbacks.confusion_figure import ConfusionFigure
from lora_lightning.callbacks.finite_loss import FiniteLoss
from lora_lightning.callbacks.generated_samples import GeneratedSamples
from lora_lightning.callbacks.intruder_dimensions import IntruderDimensions
from lora_lightning.callbacks.prediction_writer import PredictionWriter
from lora_lightning.callbacks.representation_drift import RepresentationDrift
from lora_lightning.callbacks.token_throughput import TokenThroughput

__all__ = [
    "AdapterCheckpoint",
    "ConfusionFigure",
    "FiniteLoss",
    "GeneratedSamples",
    "IntruderDimensions",
    "PredictionWriter",
    "RepresentationDrift",
    "TokenThroughput",
]

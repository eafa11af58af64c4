"""Lightning callbacks, one file each: a hook gathers, a pure function computes, a logger shows."""

from lora_lightning.callbacks.adapter_checkpoint import AdapterCheckpoint
from lora_lightning.callbacks.adapter_norms import AdapterNormMonitor
from lora_lightning.callbacks.confusion_figure import ConfusionFigure
from lora_lightning.callbacks.final_validation import FinalValidation
from lora_lightning.callbacks.finite_loss import FiniteLoss
from lora_lightning.callbacks.frozen_base import FrozenBaseCheck
from lora_lightning.callbacks.generated_samples import GeneratedSamples
from lora_lightning.callbacks.intruder_dimensions import IntruderDimensions
from lora_lightning.callbacks.merge_equivalence import MergeEquivalence
from lora_lightning.callbacks.parameter_efficiency import ParameterEfficiency
from lora_lightning.callbacks.prediction_writer import PredictionWriter
from lora_lightning.callbacks.rank_utilization import RankUtilizationMonitor
from lora_lightning.callbacks.representation_drift import RepresentationDrift
from lora_lightning.callbacks.step_boundary import StepBoundary
from lora_lightning.callbacks.throughput import ThroughputMonitor

__all__ = [
    "AdapterCheckpoint",
    "AdapterNormMonitor",
    "ConfusionFigure",
    "FinalValidation",
    "FiniteLoss",
    "FrozenBaseCheck",
    "GeneratedSamples",
    "IntruderDimensions",
    "MergeEquivalence",
    "ParameterEfficiency",
    "PredictionWriter",
    "RankUtilizationMonitor",
    "RepresentationDrift",
    "StepBoundary",
    "ThroughputMonitor",
]

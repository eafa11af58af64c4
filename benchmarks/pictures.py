"""Draws the pictures of docs/pictures.md: what good and bad runs look like, from made-up numbers.

python benchmarks/pictures.py
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from lora_lightning.figures.calibration import calibration_figure
from lora_lightning.figures.confusion import confusion_figure
from lora_lightning.figures.drift import drift_figure
from lora_lightning.figures.labels import label_scores_figure
from lora_lightning.figures.layers import layer_map_figure
from lora_lightning.figures.pixels import image_of
from lora_lightning.figures.rank import spectra_figure, utilization_figure
from lora_lightning.metrics.calibration import CalibrationBins, calibration_bins
from lora_lightning.metrics.label_scores import LabelScore

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
COLORS = 48  # enough for a heat map, and a third of the bytes
LAYERS = 6
KINDS = [f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
KINDS += ["intermediate.dense", "output.dense"]
INTENTS = ["balance", "bill_due", "pay_bill", "transfer", "card_declined", "credit_limit", "travel_alert"]
INTENTS += ["translate", "play_music", "next_song"]
STEPS = (60, 120, 180, 240, 300)


def by_module(low: float, high: float, seed: int) -> dict[str, float]:
    """A number per module, larger in later layers."""
    random = np.random.default_rng(seed)
    return {
        f"encoder.layer.{layer}.{kind}": float(
            low + (high - low) * (0.5 * layer / (LAYERS - 1) + 0.5 * random.uniform())
        )
        for layer in range(LAYERS)
        for kind in KINDS
    }


def spectra(falls_by: float, grows: float) -> dict[str, list[tuple[int, list[float]]]]:
    """Singular values of four modules; each is a share of the one before."""
    return {
        f"encoder.layer.3.{kind}": [
            (step, [(0.2 + grows * step / STEPS[-1]) * falls_by ** (place * (1 + number / 9)) for place in range(8)])
            for step in STEPS
        ]
        for number, kind in enumerate(KINDS[:4])
    }


def drift(last: float, sudden: bool) -> dict[tuple[str, int, int], float]:
    """Similarity with the base model by metric, layer and step; later layers move more."""
    values = {}
    for layer in range(LAYERS):
        for number, step in enumerate(STEPS, start=1):
            share = 1.0 if sudden else number / len(STEPS)
            depth = 0.4 + 0.6 * layer / (LAYERS - 1) if sudden else (layer / (LAYERS - 1)) ** 2
            values["cosine", layer, step] = 1 - (1 - last) * share * depth
            values["cka", layer, step] = 1 - 0.7 * (1 - last) * share * depth
    return values


def confusion(mistakes: Mapping[tuple[int, int], int], right: int) -> torch.Tensor:
    """Counts by truth and prediction."""
    counts = torch.eye(len(INTENTS), dtype=torch.int64) * right
    for (truth, prediction), count in mistakes.items():
        counts[truth, prediction] = count
        counts[truth, truth] -= count
    return counts


def labels(lowest: float) -> list[LabelScore]:
    """Scores of 20 labels, between `lowest` and 1."""
    random = np.random.default_rng(1)
    names = [
        *INTENTS,
        "timer",
        "alarm",
        "weather",
        "time",
        "date",
        "text",
        "spelling",
        "definition",
        "fun_fact",
        "taxes",
    ]
    shares = lowest + (1 - lowest) * random.uniform(0.2, 1, (len(names), 2)).round(2)
    return [LabelScore(n, p, r, 2 * p * r / (p + r), 30) for n, (p, r) in zip(names, shares.tolist(), strict=True)]


def calibration(power: float) -> CalibrationBins:
    """5,500 predictions; those of confidence c are right with probability c to this power."""
    random = np.random.default_rng(0)
    confidences = random.beta(5, 1, 5500).clip(0.03)
    return calibration_bins(confidences, (random.random(5500) < confidences**power).astype(float))


def pictures() -> dict[str, Figure]:
    """Every picture, by the name of its file."""
    few = {(1, 2): 3, (2, 1): 2, (8, 9): 1, (4, 5): 2}
    random = np.random.default_rng(0)
    many = {
        (int(a), int(b)): int(random.integers(1, 4)) for a, b in random.integers(0, len(INTENTS), (40, 2)) if a != b
    }
    many |= {(truth, 3): 9 for truth in range(len(INTENTS)) if truth != 3}  # noqa: PLR2004  # `transfer` swallows the others
    size = "step 300: size of the update, ||dW|| in % of ||W||"
    ranks = {module: math.floor(rank) for module, rank in by_module(1, 17, 5).items()}
    return {
        "confusion_good": confusion_figure(confusion(few, 30), INTENTS, "val"),
        "confusion_bad": confusion_figure(confusion(many, 30), INTENTS, "val"),
        "labels": label_scores_figure(labels(0.5), "test"),
        "calibration_good": calibration_figure(calibration(1.0), "test"),
        "calibration_bad": calibration_figure(calibration(3.0), "test"),
        "utilization_good": utilization_figure(by_module(0.4, 0.95, 1), 300),
        "utilization_bad": utilization_figure(by_module(0.12, 0.2, 2), 300),
        "spectra_good": spectra_figure(spectra(0.75, 1.5)),
        "spectra_bad": spectra_figure(spectra(0.08, 1.5)),
        "norms_good": layer_map_figure(by_module(1, 6, 3), size),
        "norms_bad": layer_map_figure({**by_module(20, 60, 4), "encoder.layer.5.output.dense": 340.0}, size),
        "drift_good": drift_figure(drift(0.8, sudden=False)),
        "drift_bad": drift_figure(drift(0.1, sudden=True)),
        "ranks": layer_map_figure(ranks, "step 300: rank by layer and module", number=lambda rank: f"{rank:.0f}"),
    }


def main() -> None:
    """Draws and saves every picture, and prints the size of each in bytes."""
    FOLDER.mkdir(exist_ok=True)
    sizes = {}
    for name, figure in pictures().items():
        path = FOLDER / f"{name}.png"
        image_of(figure).quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
        sizes[path.name] = path.stat().st_size
    print(json.dumps(sizes, indent=2))


if __name__ == "__main__":
    main()

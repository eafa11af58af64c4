"""A made-up study of ranks whose true effects are known."""

from collections.abc import Mapping

import numpy as np

from lora_lightning.statistics.study_results import ConfigurationResults, Metric, StudyResults

EFFECTS = {64: 0.0, 32: 0.0, 16: -0.001, 8: -0.001, 4: -0.004, 2: -0.03}


def rank_study(
    effects: Mapping[int, float] = EFFECTS, seeds: int = 5, examples: int = 1500, spread: float = 0.002
) -> StudyResults:
    """Hits on shared test examples, 94.5 % at the reference, the first rank."""
    easiness = np.random.default_rng(0).random(examples)
    configurations = []
    for rank, effect in effects.items():
        outcomes = {}
        for seed in range(seeds):
            random = np.random.default_rng((seed, rank))
            changed = np.random.default_rng(1000 + seed).random(examples) < 0.02
            luck = np.where(changed, random.random(examples), easiness)
            outcomes[seed] = (luck < 0.945 + effect + random.normal(0, spread)).astype(float)
        accuracy = {seed: float(hits.mean()) for seed, hits in outcomes.items()}
        measurements = {
            "trainable_parameters": dict.fromkeys(outcomes, 36864.0 * rank),
            "trainable_share": dict.fromkeys(outcomes, 0.0016 * rank),
            "peak_memory_mib": {seed: 500.0 + 2 * rank + seed for seed in outcomes},
            "f1": {seed: value - 0.01 for seed, value in accuracy.items()},
            "rank_utilization": {seed: 0.9 - 0.008 * rank + 0.01 * seed for seed in outcomes},
        }
        epochs = {seed: np.array([[1, 2, 3, 4], [0.6, 0.85, 0.92, value]]) for seed, value in accuracy.items()}
        settings = {"model.lora.r": rank}
        configurations.append(
            ConfigurationResults(
                f"r = {rank}",
                settings,
                accuracy,
                outcomes,
                measurements,
                {"validation accuracy": epochs},
                rank=float(rank),
            )
        )
    names = [each.name for each in configurations]
    costs = ("trainable_parameters", "peak_memory_mib")
    metric = Metric("in_scope_accuracy")
    return StudyResults("rank", metric, configurations, names[0], costs, names[1:])

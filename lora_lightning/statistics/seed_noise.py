"""Is the change by one setting at the same seed smaller than the change by another seed at the same setting?"""

from collections.abc import Mapping

import numpy as np

from lora_lightning.statistics.jackknife import Interval, jackknife_interval


def difference_from_seed_noise(by_setting: Mapping[int, float], by_seed: Mapping[tuple[int, int], float]) -> Interval:
    """The mean distance of pairs with one seed and two settings, minus that of pairs with two seeds and one setting.

    Args:
        by_setting: Distance by seed.
        by_seed: Distance by pair of seeds, averaged over the settings; each pair once.

    Returns:
        The difference with a 95 % jackknife interval over seeds, each of which is left out of both means; without ends
        for fewer than three seeds, or if a distance is missing.
    """
    without = [_difference(by_setting, by_seed, seed) for seed in by_setting]  # of two seeds, no pair would be left
    return jackknife_interval(_difference(by_setting, by_seed, None), np.array(without))


def _difference(
    by_setting: Mapping[int, float], by_seed: Mapping[tuple[int, int], float], left_out: int | None
) -> float:
    own = [distance for seed, distance in by_setting.items() if seed != left_out]
    pairs = [distance for pair, distance in by_seed.items() if left_out not in pair and set(pair) <= by_setting.keys()]
    return float(np.mean(own) - np.mean(pairs)) if own and pairs else float("nan")

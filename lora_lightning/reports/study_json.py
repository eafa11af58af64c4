"""A study's results and verdicts as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from lora_lightning.statistics.analysis import StudyAnalysis, as_json
from lora_lightning.statistics.study_results import StudyResults


def study_as_json(results: StudyResults, analysis: StudyAnalysis, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Collects all numbers of a study.

    Args:
        results: What it measured.
        analysis: Its verdicts.
        notes: Sentences on what was left out.

    Returns:
        Dictionaries, lists, strings and finite numbers. Values and differences are in the unit of the metric's scale: a
        fraction, a natural logarithm, or the metric's own unit. Without outcomes of test examples.
    """
    configurations = [
        {
            "name": each.name,
            "settings": each.settings,
            "seeds": sorted(each.values),
            "failed_runs": len(each.failed_seeds),
            "mean": each.mean_value,
            "values": each.values,
            "test_examples": max((len(outcomes) for outcomes in each.outcomes.values()), default=0),
            "measurements": {name: each.mean_of(name) for name in each.measurements},
        }
        for each in results.configurations
    ]
    found: dict[str, Any] = as_json(
        {
            "study": results.name,
            "metric": results.metric,
            "reference": results.reference,
            "costs": results.costs,
            "sequence": results.sequence,
            "unfinished": results.unfinished,
            "notes": notes,
            "configurations": configurations,
            "analysis": analysis,
        }
    )
    return found


def json_text(content: dict[str, Any]) -> str:
    """Formats JSON for people and programs; without NaN, which JSON does not have."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

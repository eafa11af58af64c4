"""Times and memory of several devices are left out of what a study compares, each by where it was measured."""

import json
from dataclasses import replace
from pathlib import Path

from lora_lightning.runs.record import RunRecord
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, StudyResults
from lora_lightning.studies.costs_of_devices import comparable_costs, devices_of_costs
from lora_lightning.studies.specification import COSTS
from lora_lightning.studies.trial_measurements import COSTS as MEASURED
from lora_lightning.studies.trial_numbers import TIMINGS
from lora_lightning.studies.trials import Trial

GPUS = ("NVIDIA A100", "NVIDIA H200")


def records(
    folder: Path, trained_on: tuple[str, str], timed_on: tuple[str, str] | None, *, alone: bool = True
) -> list[RunRecord]:
    found = []
    for number, name in enumerate(trained_on):
        run = folder / str(number)
        run.mkdir(exist_ok=True)
        costs = {"peak_memory_bytes": 1.0, "wall_seconds": 1.0} | ({"seconds_per_step": 0.1} if alone else {})
        (run / MEASURED).write_text(json.dumps(costs))
        if timed_on is not None:
            timed = {"seconds_per_step": 0.1, "inference_ms_merged_batch_1": 1.0}
            (run / TIMINGS).write_text(json.dumps({**timed, "device": "cuda", "device_name": timed_on[number]}))
        found.append(RunRecord(run, "finished", device="cuda", device_name=name))
    return found


def test_each_cost_has_the_devices_on_which_it_was_measured(tmp_path: Path) -> None:
    same = (GPUS[0], GPUS[0])
    assert devices_of_costs(records(tmp_path, same, None)) == {}
    trained = {"peak_memory_bytes", "wall_seconds", "seconds_per_step"}
    assert devices_of_costs(records(tmp_path, GPUS, None)) == dict.fromkeys(trained, GPUS)
    timed = {"seconds_per_step", "inference_ms_merged_batch_1"}
    assert devices_of_costs(records(tmp_path, same, GPUS)) == dict.fromkeys(timed, GPUS)
    assert devices_of_costs(records(tmp_path, GPUS, same)).keys() == {"peak_memory_bytes", "wall_seconds"}
    assert devices_of_costs(records(tmp_path, GPUS, GPUS)).keys() == trained | timed


def test_a_run_without_a_cost_has_no_device_of_it(tmp_path: Path) -> None:
    """Two machines trained in company, so that nothing has step times; then one of them timed some runs."""
    runs = records(tmp_path, GPUS, (GPUS[0], GPUS[0]), alone=False)
    (tmp_path / "1" / TIMINGS).unlink()
    assert devices_of_costs(runs).keys() == {"peak_memory_bytes", "wall_seconds"}


def test_they_are_left_out_and_named(tmp_path: Path) -> None:
    """Seeds that were timed on another machine."""
    metric = Metric("loss", higher_is_better=False, margin=0.5)
    measured = {"trainable_parameters": {0: 8.0, 1: 8.0}, "seconds_per_step": {0: 0.1, 1: 0.2}}
    rows = [ConfigurationResults(name, {}, {0: 1.0, 1: 1.0}, measurements=measured) for name in ("a", "b")]
    results = StudyResults("study", metric, rows, reference="a", costs=COSTS[:3])
    runs = [
        (Trial(str(number), "a", number, {}), each)
        for number, each in enumerate(records(tmp_path, (GPUS[0], GPUS[0]), GPUS))
    ]
    kept, note = comparable_costs(results, runs)
    assert [each.measurements.keys() for each in kept.configurations] == [{"trainable_parameters"}] * 2
    assert list(kept.costs) == ["trainable_parameters", "peak_memory_bytes"]
    assert (
        note == f"Costs that were measured on different devices ({', '.join(GPUS)}) are not compared: seconds_per_step."
    )
    decisive, _ = comparable_costs(replace(results, costs=["seconds_per_step"]), runs)
    assert list(decisive.costs) == ["seconds_per_step"]  # nothing is cheaper then
    assert comparable_costs(results, runs[:1]) == (results, "")

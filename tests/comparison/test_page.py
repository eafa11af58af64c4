"""The page of the comparison, from planted results."""

from pathlib import Path
from typing import Any

from comparison.page import write_comparison
from comparison.rows import ROWS

ENDS = ("", "_bf16")
MACHINE = {"cpus": 2, "processor": "a processor", "memory_gib": 8, "gpu": "", "threads": "2", "commit": "abc"}


def planted(title: str, *, unit: str, ratio: float, goal: float, foreign: float = 0.0) -> dict[str, Any]:
    summary = {"median": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "turns": 3}
    load = {"foreign_cpus": foreign, "steal_share": 0.0, "worst_steal_share": 0.0}
    costs = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_mib": 512.0, "load": load}
    return {
        "title": title,
        "unit": unit,
        "higher_is_better": "/" in unit,
        "goal": goal,
        "share_goal": 0.7,
        "limit": "dense products",
        "ours": ["ours"],
        "peers": ["peer"],
        "same_loss": True,
        "turns": [
            {
                "number": 0,
                "values": {},
                "costs": {"ours": [costs], "peer": [costs, costs | {"peak_mib": 777.0}]},
                "loud": [],
                "work": {
                    side: {"trainable": 147_456, "steps": 12, "tokens": 1024.0, "loss": loss, "environment": {}}
                    for side, loss in (("ours", 2.0), ("peer", 2.0 + foreign))
                },
            }
        ],
        "values": dict.fromkeys(("ours", "peer", "plan", "the run"), summary),
        "ratio": summary,
        "share": summary | {"median": 0.512},
        "load": load,
        "measured": "today",
        "quick": False,
        "machine": {**MACHINE, "versions": {"torch": "2"}},
    }


def test_the_page_has_ratios_goals_and_what_limits_them(tmp_path: Path) -> None:
    results = {
        "clinc150_tuned": planted("training", unit="samples/s", ratio=1.25, goal=1.5),
        "first_step": planted("start", unit="s", ratio=0.8, goal=0.9, foreign=1.5),
        "growth_r_64": planted("a step", unit="ms", ratio=0.625, goal=1.0),
        "memory_encoder": planted("memory", unit="MiB", ratio=1.5, goal=2.0),
        "lm_packed_float32": {"title": "lm", "failed": "litgpt is missing", "quick": False}
        | {"machine": {**MACHINE, "versions": {"torch": "2"}}, "measured": "today"},
    }
    page = write_comparison(results, tmp_path).read_text(encoding="utf-8")
    assert "2 of 3 goals are reached." in page
    assert "1.25 (1.15 to 1.35)" in page
    assert "≥ 1.5" in page
    assert "≤ 0.9" in page
    assert "0.512" in page
    assert "777" in page
    assert "The machine was not quiet: first_step." in page
    assert "lm_packed_float32 was not measured: litgpt is missing." in page
    assert "The losses of both sides differ by more than 10 %: first_step." in page
    assert "147,456" in page
    assert "Growth of a step" in page
    assert page.count("<svg") == 5
    assert (tmp_path / "figures" / "ratios.png").is_file()


def test_every_row_that_has_a_goal_is_there() -> None:
    uses = {f"clinc150_{use}{end}" for use in ("as_left", "grouped", "tuned") for end in ENDS}
    models = {f"lm_{what}_{precision}" for what in ("packed", "responses") for precision in ("float32", "bf16")}
    others = {"clinc150_best", "time_to_quality", "first_step_warm", "fit_help", "predict", "predict_steady", "study"}
    assert uses | models | others <= ROWS.keys()


def test_every_kind_of_row_is_there() -> None:
    lengths = {f"{data}_{use}{end}" for data in ("pairs", "squad") for use in ("as_left", "grouped") for end in ENDS}
    growth = {f"growth_{name}" for name in ("r_4", "r_64", "modules_6", "modules_36", "tokens_16", "tokens_256")}
    others = {*(f"clinc150_qlora{end}" for end in ENDS), "growth_size_12x768", "monitors", "spectrum", "second_start"}
    others |= {"quality_clinc150_bf16", "quality_lm_bf16", "first_step"}
    others |= {
        f"lm_{what}" for what in ("qlora_float32", "qlora_bf16", "responses_float32_flat", "responses_bf16_flat")
    }
    assert lengths | growth | others <= ROWS.keys()

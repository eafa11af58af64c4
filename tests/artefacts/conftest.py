"""What tests of merges share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.artefacts import FreshProcessCheck, MergeResult, merge, merge_job

Merge = Callable[..., MergeResult]


@pytest.fixture
def merge_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Merge:
    """`merge` without the fresh process, which takes ten seconds; into `tmp_path / "out" / "merged"`."""
    monkeypatch.setattr(merge_job, "run_in_fresh_process", lambda *_: FreshProcessCheck(0.0, 0.0, 1.0))

    def run(source: Path, **options: Any) -> MergeResult:
        return merge(source, tmp_path / "out" / "merged", **options)

    return run

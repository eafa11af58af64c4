"""What a terminal shows while a study runs."""

from types import SimpleNamespace
from typing import cast

import pytest
from rich.table import Table

from lora_lightning.cli.study_progress import StudyProgress
from lora_lightning.errors import LoraLightningError, TrainingError
from lora_lightning.studies.journal import TrialStatus
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.storage import StorageFailed


class Flaky:
    """A study whose storage answers only as long as it has no error."""

    plan = SimpleNamespace(size=2, trials=())
    error: Exception | None = None

    def statuses(self) -> dict[str, TrialStatus]:
        if self.error is not None:
            raise self.error
        return {}


@pytest.mark.parametrize("error", [StorageFailed("no answer"), TrainingError("the journal cannot be read")])
def test_the_last_drawing_remains_while_the_storage_does_not_answer(error: LoraLightningError) -> None:
    study = Flaky()
    progress = StudyProgress(cast("OpenStudy", study))
    study.error = error
    assert progress.draw() == ""
    study.error = None
    drawn = progress.draw()
    assert isinstance(drawn, Table)
    study.error = error
    assert progress.draw() is drawn
    study.error = None
    assert progress.draw() is not drawn
    study.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        progress.draw()

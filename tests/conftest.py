"""What every test shares: no network, one thread, tiny backbones, and the real data where there is any."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from lora_lightning.backbones import (
    LoadedBackbone,
    load_classification_config,
    load_sequence_classifier,
    load_tokenizer,
)
from tests.tiny_models import save_tiny_backbone

torch.set_num_threads(1)
# How long an example takes says something about the machine, not about the program.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

TinyBackbone = Callable[[str], Path]
TinyClassifier = Callable[..., LoadedBackbone]


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> TinyBackbone:
    """A folder with a tiny random pretrained model, by family; made once a session, not to be changed."""

    @cache
    def folder_of(family: str) -> Path:
        return save_tiny_backbone(family, tmp_path_factory.mktemp("backbones") / f"tiny-{family}")

    return folder_of


@pytest.fixture
def tiny_classifier(tiny_backbone: TinyBackbone) -> TinyClassifier:
    """A fresh tiny classifier in eval mode, by family; `labels` and `base_dropout` may be given."""

    def load(family: str, labels: int = 3, base_dropout: float | None = None) -> LoadedBackbone:
        backbone = str(tiny_backbone(family))
        names = [f"label {index}" for index in range(labels)]
        pad = int(load_tokenizer(backbone).pad_token_id)
        torch.manual_seed(0)  # the head is random
        return load_sequence_classifier(backbone, load_classification_config(backbone, names, pad, base_dropout))

    return load


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data beside the repository, for tests marked `shared`."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data is not there: {SHARED_DATA} does not exist")
    return SHARED_DATA


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows which files take the time, since a file of a hundred short tests is in no list of slow ones."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    slow = [(file, total) for file, total in seconds.most_common(40) if total >= 10]
    if slow:
        terminalreporter.section("slowest files")
        terminalreporter.write_line("\n".join(f"{total:7.0f} s  {file}" for file, total in slow))

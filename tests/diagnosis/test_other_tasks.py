"""Diagnoses of packed instructions and of questions: what is measured against sums over examples."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_lightning.cli.main import main
from lora_lightning.diagnosis.adapter_similarity import PairKind
from lora_lightning.diagnosis.diagnosis_folder import DiagnosisFolder
from lora_lightning.diagnosis.effects import Grouping, QuantizedParts
from lora_lightning.diagnosis.findings import collect_findings
from lora_lightning.diagnosis.finished_runs import finished_runs
from lora_lightning.diagnosis.model_behavior import PROBED, compare_behavior, hidden_states, observe
from lora_lightning.diagnosis.opened_runs import OpenedRun, OpenedRuns
from lora_lightning.diagnosis.sensitivity import summed_loss
from lora_lightning.diagnosis.specification import Measuring
from lora_lightning.diagnosis.texts import texts_of
from lora_lightning.studies.open_study import open_study
from lora_lightning.tasks.held_out_batches import evaluation_mode
from tests.conftest import TinyBackbone
from tests.diagnosis.small_diagnosis import leave_figures_out, save_diagnosis, task_on
from tests.tiny_data import save_tiny_instructions, save_tiny_squad

MEASURED = Measuring(rows=16, singles=1, prompts=6, new_tokens=3)
KINDS = ("instructions", "questions")


def base_of(kind: str, tiny_backbone: TinyBackbone, folder: Path) -> tuple[dict[str, Any], str]:
    """The base config, and the metric that decides."""
    if kind == "instructions":
        data: dict[str, Any] = {"train_file": str(save_tiny_instructions(folder)), "context_length": 40}
        data |= {"test_share": 0.2, "validation_share": 0.5}
        base = task_on(tiny_backbone("llama"), folder, "CausalLanguageModelingTask", "InstructionDataModule", data)
        return base, "perplexity"
    data = {"data_dir": str(save_tiny_squad(folder / "squad")), "test_share": 0.3, "max_length": 32, "doc_stride": 8}
    return task_on(tiny_backbone("bert"), folder, "QuestionAnsweringTask", "SquadV2DataModule", data), "f1"


@pytest.fixture(scope="module", params=KINDS)
def diagnosed(
    request: pytest.FixtureRequest, tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The task, and the folder of a diagnosis that has run."""
    here = tmp_path_factory.mktemp(request.param)
    base, objective = base_of(request.param, tiny_backbone, here)
    measure = {"rows": MEASURED.rows, "singles": 1, "prompts": MEASURED.prompts, "new_tokens": MEASURED.new_tokens}
    path = save_diagnosis(here, base, ranks=[4], objective=objective, measure=measure)
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_out(patch)
        assert main(["diagnose", "run", str(path), f"--save_dir={here / 'diagnoses'}"]) == 0
    return request.param, here / "diagnoses" / "small"


@pytest.fixture(scope="module")
def pair(diagnosed: tuple[str, Path]) -> tuple[OpenedRun, OpenedRun]:
    opened = OpenedRuns(MEASURED.rows)
    full, quantized = (opened.open(run) for run in finished_runs(open_study(diagnosed[1])))
    return full, quantized


def test_losses_and_merges_are_measured(diagnosed: tuple[str, Path], pair: tuple[OpenedRun, OpenedRun]) -> None:
    own = DiagnosisFolder(diagnosed[1])
    found = collect_findings(own.load(), own, open_study(diagnosed[1]))
    assert found.sensitivity is not None
    assert found.behaviors is not None
    assert found.merges is not None
    joint = found.sensitivity.joint
    parts = QuantizedParts(pair[0], {}, "loss")
    assert parts.none.losses[1].sum() > 0
    assert all(math.isfinite(each) for each in (joint.loss.value, joint.loss.low, joint.divergence.value))
    assert math.isfinite(found.sensitivity.additivity[Grouping.KIND].value)
    assert [each.target for each in found.merges.targets] == ["dequantized", "original", "requantized"]
    assert found.behaviors.completions == (MEASURED.prompts if diagnosed[0] == "instructions" else 0)


def test_the_summed_loss_is_that_of_all_examples(pair: tuple[OpenedRun, OpenedRun]) -> None:
    """And so are the labels that scores of modules are divided by."""
    full = pair[0]
    rows = full.examples.measure(full.task.built_network).rows
    with torch.no_grad(), evaluation_mode(full.task):
        sums = [summed_loss(full, batch) for batch in full.examples.batches]
    assert sum(labels for _, labels in sums) == rows["weight"].sum()
    assert sum(float(loss) for loss, _ in sums) == pytest.approx(-(rows["score"] * rows["weight"]).sum(), rel=1e-4)


def test_perplexities_are_of_examples_and_their_losses(pair: tuple[OpenedRun, OpenedRun]) -> None:
    first, second = (observe(opened, MEASURED) for opened in pair)
    found = compare_behavior(first, second, PairKind.PRECISION).predictions
    assert found is not None
    losses = [-np.average(each.rows["score"], weights=each.rows["weight"]) for each in (first, second)]
    assert found.perplexity_ratio.value == pytest.approx(math.exp(losses[1] - losses[0]), rel=1e-4)
    assert math.isfinite(found.perplexity_ratio.error)
    assert found.examples == (first.rows["weight"] > 0).sum()
    assert found.rows > found.examples


def test_hidden_states_are_those_of_each_text_alone(pair: tuple[OpenedRun, OpenedRun]) -> None:
    full = pair[0]
    found, batches = hidden_states(full), full.examples.batches
    texts = sorted(texts_of(batches), key=lambda text: text.batch)
    assert len(found[0]) == len(texts) <= PROBED
    for place in range(0, len(texts), 3):
        text = texts[place]
        own = slice(text.start, text.stop)
        columns = {"input_ids", "attention_mask", "token_type_ids"} & batches[text.batch].keys()
        alone = {name: batches[text.batch][name][text.row : text.row + 1, own] for name in columns}
        with torch.no_grad(), evaluation_mode(full.task):
            states = full.task.hidden_states(alone)
        for layer, expected in zip(found, states, strict=True):
            torch.testing.assert_close(layer[place], expected[0].mean(dim=0), rtol=1e-3, atol=1e-4)

"""The labels and the padding token of a bare classifier."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lora_lightning import RunRecord
from lora_lightning.errors import CheckpointError, ConfigurationError
from tests.artefacts import adapters
from tests.artefacts.adapters import save_random_adapter
from tests.artefacts.conftest import Merge
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone

HEAD: dict[str, Any] = {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}
NAMES = ["no", "yes", "perhaps"]


@pytest.fixture
def classifier(tiny_backbone: TinyBackbone, tmp_path: Path) -> Path:
    """An adapter with three labels that have no names."""
    return save_random_adapter(tiny_backbone("bert"), tmp_path / "adapter", "SEQ_CLS", **HEAD)


def merged_config(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "config.json").read_text())
    return content


def save_named_config(adapter: Path, **values: Any) -> None:
    (adapter / "config").mkdir()
    content = {"model_type": "bert", "id2label": {str(number): name for number, name in enumerate(NAMES)}, **values}
    (adapter / "config" / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["multi_label_classification", "single_label_classification"])
def test_names_and_kind_of_the_saved_configuration(kind: str, classifier: Path, merge_here: Merge) -> None:
    save_named_config(classifier, problem_type=kind)
    result = merge_here(classifier)
    config = merged_config(result.output)
    assert config["problem_type"] == kind
    assert list(config["id2label"].values()) == NAMES
    rows = result.written.difference.decisions
    assert rows == 16 * (3 if kind == "multi_label_classification" else 1)


def test_a_single_output_is_that_of_a_regression(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "LABELS", 1)
    result = merge_here(save_random_adapter(tiny_backbone("bert"), tmp_path / "adapter", "SEQ_CLS", **HEAD))
    assert merged_config(result.output)["problem_type"] == "regression"
    assert result.written.difference.decisions == 0


@pytest.mark.parametrize("kind", [None, "multi_label_classification"])
def test_labels_of_a_base_that_is_a_classifier(
    kind: str | None, merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    names = dict(enumerate(NAMES))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert"), id2label=names, problem_type=kind)
    base = tmp_path / "base"
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_backbone("bert")).save_pretrained(base)
    config = merged_config(merge_here(save_random_adapter(base, tmp_path / "same", "SEQ_CLS", **HEAD)).output)
    assert list(config["id2label"].values()) == NAMES
    assert config["problem_type"] == kind or "single_label_classification"
    without_head = save_random_adapter(base, tmp_path / "without", "SEQ_CLS", target_modules=["query"])
    assert list(merged_config(merge_here(without_head, overwrite=True).output)["id2label"].values()) == NAMES
    monkeypatch.setattr(adapters, "LABELS", 2)
    monkeypatch.setitem(adapters.AUTO_CLASSES, "SEQ_CLS", _Resizing)
    other = save_random_adapter(base, tmp_path / "other", "SEQ_CLS", **HEAD)
    config = merged_config(merge_here(other, overwrite=True).output)
    assert list((config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values()) == ["LABEL_0", "LABEL_1"]


class _Resizing:
    """Loads a finished classifier with a head of another size."""

    @staticmethod
    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(*arguments, ignore_mismatched_sizes=True, **options)


@pytest.mark.parametrize(
    "content",
    [
        {"labels": NAMES},
        {"names": NAMES},
        {"names": [], "problem_type": "single_label_classification"},
        {"names": [1, 2, 3], "problem_type": "single_label_classification"},
        {"names": NAMES, "problem_type": "of tomorrow"},
        {"names": NAMES, "problem_type": "single_label_classification", "out_of_scope_index": 3},
        {"names": NAMES, "problem_type": "single_label_classification", "out_of_scope_index": "last"},
    ],
)
def test_a_file_of_labels_of_another_shape(content: dict[str, Any], classifier: Path, merge_here: Merge) -> None:
    (classifier / "labels.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"labels.json does not hold a classifier's labels"):
        merge_here(classifier)


@pytest.mark.parametrize("names", [["a", "b"], {"a": "b"}, {}, {"0": "a", "2": "b"}, 3])
def test_a_configuration_without_usable_labels(names: Any, classifier: Path, merge_here: Merge) -> None:
    save_named_config(classifier, id2label=names)
    with pytest.raises(CheckpointError, match=r"config.json does not hold a classifier's labels"):
        merge_here(classifier)


def test_a_tokenizer_without_a_padding_token_pads_with_the_end_of_a_text(
    merge_here: Merge, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    base = tiny_backbone("gpt2")
    adapter = save_random_adapter(base, tmp_path / "adapter", "SEQ_CLS", target_modules=["c_attn"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(adapter)
    assert tokenizer.eos_token_id != 0
    output = merge_here(adapter).output
    assert merged_config(output)["pad_token_id"] == tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained(output).pad_token_id == tokenizer.eos_token_id


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier of intents."""
    return train_tiny_run("intents", tiny_backbone("bert"), tmp_path_factory.mktemp("intents"))


def test_labels_that_are_only_numbered_get_the_names_of_the_data(
    run: RunRecord, merge_here: Merge, tmp_path: Path
) -> None:
    assert run.adapter is not None
    other = tmp_path / "adapter"
    shutil.copytree(run.adapter, other)
    (other / "labels.json").unlink()
    shutil.rmtree(other / "config")
    result = merge_here(other, config={"data": run.settings["data"]})
    assert any("the adapter's labels have no names" in note for note in result.notes)
    names = list(merged_config(result.output)["id2label"].values())
    assert names == ["balance", "timer", "transfer", "weather", "oos"]
    (other / "config").mkdir()
    numbered = {str(number): f"LABEL_{number}" for number in range(4)}
    (other / "config" / "config.json").write_text(json.dumps({"id2label": numbered}))
    with pytest.raises(ConfigurationError, match="has 4 labels, but the data has 5"):
        merge_here(other, config={"data": run.settings["data"]}, overwrite=True)


def test_labels_match_up_to_case_and_spaces_and_keep_the_adapters_spelling(
    run: RunRecord, merge_here: Merge, tmp_path: Path
) -> None:
    assert run.adapter is not None
    other = tmp_path / "adapter"
    shutil.copytree(run.adapter, other)
    content = json.loads((other / "labels.json").read_text())
    content["names"] = [f" {name.upper()}" for name in content["names"]]
    (other / "labels.json").write_text(json.dumps(content))
    output = merge_here(other, config={"data": run.settings["data"]}).output
    assert list(merged_config(output)["id2label"].values()) == content["names"]
    assert json.loads((output / "labels.json").read_text())["names"] == content["names"]
    content["names"][0] = "other"
    (other / "labels.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="differ from those of the data"):
        merge_here(other, config={"data": run.settings["data"]}, overwrite=True)

"""Options that nothing reads are named, and those that are read are not."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.datamodules import (
    InstructionDataModule,
    PlainTextDataModule,
    SquadV2DataModule,
    TextClassificationDataModule,
)
from lora_lightning.tasks.generation import GenerationSettings
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_instructions, save_tiny_squad, save_tiny_table, save_tiny_wikitext


def said_by(module: Any) -> list[str]:
    """What it warns of unused options while it reads its rows."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        _ = module.raw_splits
    return [str(warning.message) for warning in found if "nothing reads it" in str(warning.message)]


def test_tables_name_options_of_the_hub_and_of_held_out_rows(tmp_path: Path) -> None:
    train, other = str(save_tiny_table(tmp_path / "a.csv")), str(save_tiny_table(tmp_path / "b.csv", rows=8))
    unread: dict[str, Any] = {"dataset_config_name": "x", "label_separator": ";", "split_seed": 3}
    module = TextClassificationDataModule(train, other, validation_share=0.2, **unread)
    assert [text.partition(" ")[0] for text in said_by(module)] == [
        "data.dataset_config_name",
        "data.label_separator",
        "data.validation_share",
        "data.split_seed",
    ]
    assert said_by(TextClassificationDataModule(train, validation_share=0.2, split_seed=3)) == []
    assert said_by(TextClassificationDataModule(train, other, test_share=0.2, split_seed=3)) == []


def test_language_models_name_the_source_that_is_not_read(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    both: dict[str, Any] = {"backbone": str(tiny_backbone("gpt2")), "context_length": 20}
    records = str(save_tiny_instructions(tmp_path / "instructions"))
    (said,) = said_by(InstructionDataModule(records, dataset_name="owner/name", dataset_config_name="x", **both))
    assert said.startswith("data.dataset_name is 'owner/name', but nothing reads it, because data.train_file is read")
    folder = str(save_tiny_wikitext(tmp_path / "wikitext"))
    # As with a config of the repository, whose data set a folder on the command line replaces.
    (said,) = said_by(PlainTextDataModule(folder, dataset_name="owner/name", rows_are_lines=True, **both))
    assert said.startswith("data.dataset_name is 'owner/name'")
    found = said_by(PlainTextDataModule(folder, rows_are_lines=True, text_column="body", validation_share=0.1, **both))
    assert [text.partition(" ")[0] for text in found] == [
        "data.rows_are_lines",
        "data.text_column",
        "data.validation_share",
    ]
    assert said_by(PlainTextDataModule(train_file=f"{folder}/wiki.train.raw", validation_share=0.2, **both)) == []


def test_questions_name_a_seed_without_held_out_articles(tmp_path: Path) -> None:
    folder = str(save_tiny_squad(tmp_path))
    (said,) = said_by(SquadV2DataModule(folder, split_seed=3))
    assert said.startswith("data.split_seed is 3")
    assert said_by(SquadV2DataModule(folder, split_seed=3, test_share=0.2)) == []


def test_sampling_options_without_sampling_are_named() -> None:
    with pytest.warns(UserWarning, match=r"model\.generation\.temperature is 0\.5, but nothing reads it"):
        GenerationSettings(temperature=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GenerationSettings(do_sample=True, temperature=0.5, top_p=0.9)

"""Whatever texts and labels predictions hold, each written form gives them back unchanged."""

import csv
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.datamodules import GlueDataModule, SquadV2DataModule
from lora_lightning.datamodules.glue_tasks import GLUE_TASKS
from lora_lightning.datamodules.prediction_files import write_table

# Tabs, line ends of every kind, quotes, what spreadsheets and shells mind, and any other character that UTF-8 holds.
texts = st.text(
    st.sampled_from("a \t\n\r\x0b\x0c\x1c\x85\u2028\"',;|\\=@\0") | st.characters(codec="utf-8"), max_size=25
)
tables = st.integers(1, 4).flatmap(lambda columns: st.lists(st.tuples(*[texts] * columns), min_size=1, max_size=8))


@given(tables)
@settings(max_examples=100)
def test_a_table_comes_back_cell_by_cell(table: list[tuple[str, ...]]) -> None:
    rows = [dict(zip(string.ascii_letters, cells, strict=False)) for cells in table]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.csv"
        write_table(path, rows)
        with path.open(encoding="utf-8", newline="") as stream:
            assert list(csv.DictReader(stream, strict=True)) == rows
        path = path.with_suffix(".jsonl")
        write_table(path, rows)
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert [json.loads(line) for line in lines] == rows


@given(st.dictionaries(texts, st.tuples(texts, st.floats(allow_nan=False), texts), max_size=8))
@settings(max_examples=100)
def test_squads_answers_come_back_by_question(answers: dict[str, tuple[str, float, str]]) -> None:
    rows: list[dict[str, Any]] = [
        {"id": name, "answer": text, "null_odds": odds, "nbest": [{"text": other, "score": odds}]}
        for name, (text, odds, other) in answers.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.json"
        SquadV2DataModule().write_predictions({"predict": rows}, path)
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).iterdir())]
    odds_of = {name: odds for name, (_, odds, _) in answers.items()}
    nbest_of = {name: [{"text": other, "score": odds}] for name, (_, odds, other) in answers.items()}
    assert found == [{name: text for name, (text, _, _) in answers.items()}, nbest_of, odds_of]


@pytest.mark.parametrize("task", [name for name, task in GLUE_TASKS.items() if task.names])
@given(data=st.data())
@settings(max_examples=30)
def test_glues_files_give_index_and_label_back(task: str, data: st.DataObject) -> None:
    definition = GLUE_TASKS[task]
    row = st.fixed_dictionaries({"index": st.integers(0, 10**6), "label": st.sampled_from(definition.names)})
    split = next(name for name in definition.splits if name.startswith("predict"))
    rows = data.draw(st.lists(row, max_size=10))
    with tempfile.TemporaryDirectory() as folder:
        GlueDataModule(task).write_predictions({split: rows}, Path(folder))  # type: ignore[arg-type]
        (file,) = Path(folder).iterdir()
        header, *lines = file.read_text().removesuffix("\n").split("\n")
    assert header == "index\tprediction"
    names = dict(zip(definition.words, definition.names, strict=True))
    cells = [line.split("\t") for line in lines]
    assert [{"index": int(index), "label": names[word]} for index, word in cells] == rows


@given(st.lists(st.floats(allow_nan=False), max_size=10))
def test_glues_similarities_stay_in_their_range(values: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"index": row, "prediction": value} for row, value in enumerate(values)]
        GlueDataModule("stsb").write_predictions({"predict": rows}, Path(folder))
        lines = (Path(folder) / "STS-B.tsv").read_text().removesuffix("\n").split("\n")[1:]
    for line, value in zip(lines, values, strict=True):
        assert float(line.split("\t")[1]) == pytest.approx(min(max(value, 0.0), 5.0), abs=5e-4)

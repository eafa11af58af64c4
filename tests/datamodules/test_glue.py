"""GLUE from the classic download or the hub: columns, labels, counts, submissions, and every way to be incomplete."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import datasets
import pytest

from lora_lightning.datamodules import GlueDataModule
from lora_lightning.datamodules.glue_tasks import GLUE_TASKS
from lora_lightning.datamodules.sequence_classification import LabeledTexts
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics import REGRESSION, LabelSpace, classification_metrics
from tests.tiny_glue import FOLDERS, LAYOUTS, ROWS, save_tiny_glue, text_of

# What the hub calls each class, by index, and what the classic files call it.
LABELS = {
    "cola": {"unacceptable": "0", "acceptable": "1"},
    "sst2": {"negative": "0", "positive": "1"},
    "mrpc": {"not_equivalent": "0", "equivalent": "1"},
    "qqp": {"not_duplicate": "0", "duplicate": "1"},
    "mnli": {"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"},
    "qnli": {"entailment": "entailment", "not_entailment": "not_entailment"},
    "rte": {"entailment": "entailment", "not_entailment": "not_entailment"},
    "wnli": {"not_entailment": "0", "entailment": "1"},
}
TEXT_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("#1 String", "#2 String"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
}
TRAINED = [task for task in FOLDERS if task != "ax"]


def module_of(folder: Path, task: Any, **settings: Any) -> GlueDataModule:
    save_tiny_glue(folder, task)
    return GlueDataModule(task, str(folder), allow_partial=True, **settings)


def error_of(module: GlueDataModule) -> str:
    with pytest.raises(DataError) as raised:
        module.load_splits()
    return str(raised.value)


def test_every_task_can_be_asked_for() -> None:
    assert set(get_args(get_type_hints(GlueDataModule.__init__)["task_name"])) == set(GLUE_TASKS) == set(FOLDERS)


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
@pytest.mark.parametrize("task", TRAINED)
def test_files_become_texts_and_labels(tmp_path: Path, task: str) -> None:
    module = module_of(tmp_path, task)
    splits = module.load_splits()
    evaluated = ["val_matched", "val_mismatched"] if task == "mnli" else ["val"]
    assert list(splits) == ["train", *evaluated]
    columns = TEXT_COLUMNS.get(task, ("sentence1", "sentence2"))
    words = LAYOUTS[FOLDERS[task]][2].split()
    for rows in splits.values():
        assert rows.texts == [text_of(columns[0], row) for row in range(ROWS)]
        assert rows.pairs == ([text_of(columns[1], row) for row in range(ROWS)] if len(columns) > 1 else None)
        said = [words[row % len(words)] for row in range(ROWS)]
        if task == "stsb":
            assert rows.labels == [float(word) for word in said]
        else:
            names = list(LABELS[task])
            assert module.label_space.names == names
            assert [LABELS[task][names[label]] for label in rows.labels] == said


def test_similarity_is_a_number() -> None:
    space = GlueDataModule("stsb").label_space
    assert (space.problem_type, space.metrics) == (REGRESSION, ["pearson", "spearman"])


@pytest.mark.parametrize("task", TRAINED)
def test_metrics_are_the_official_ones(task: str) -> None:
    official = {
        "cola": {"matthews_correlation"},
        "stsb": {"pearson", "spearman"},
        "mrpc": {"accuracy", "f1"},
        "qqp": {"accuracy", "f1"},
    }
    metrics = classification_metrics(GLUE_TASKS[task].label_space).metrics
    assert set(metrics) - {"accuracy"} == official.get(task, set()) - {"accuracy"}
    assert "accuracy" in metrics or task == "stsb"


@pytest.mark.parametrize("task", TRAINED)
def test_a_file_that_lacks_rows_is_an_error_with_both_numbers(tmp_path: Path, task: Any) -> None:
    save_tiny_glue(tmp_path, task)
    message = error_of(GlueDataModule(task, str(tmp_path)))
    official = GLUE_TASKS[task].splits["train"].rows
    assert message == (
        f"{tmp_path}/{FOLDERS[task]}/train.tsv has {ROWS} rows where GLUE has {official}; download the file again, or "
        "set --data.allow_partial true to use it as it is."
    )


def test_a_file_that_lacks_rows_may_be_allowed(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=rf"dev\.tsv has {ROWS} rows where GLUE has 277; scores on it cannot be compared"
    ):
        module_of(tmp_path, "rte").load_splits()


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
@pytest.mark.parametrize("task", ["rte", "cola"])
@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv"])
@pytest.mark.parametrize("lines", [0, 1])
def test_a_file_without_rows_is_never_allowed(tmp_path: Path, task: str, name: str, lines: int) -> None:
    module = module_of(tmp_path, task)
    path = tmp_path / FOLDERS[task] / name
    header = path.read_text().split("\n")[0] + "\n"
    path.write_text(header * lines if task == "rte" else "")  # CoLA has none
    assert error_of(module) == f"{path} has no rows; download the file again."


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
@pytest.mark.parametrize("task", ["mnli", "qnli", "wnli", "sst2"])
def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path, task: str) -> None:
    module = module_of(tmp_path, task)
    name = "dev_mismatched.tsv" if task == "mnli" else "dev.tsv"
    place = tmp_path / FOLDERS[task]
    (place / name).unlink()
    there = ", ".join(sorted(path.name for path in place.iterdir()))
    assert error_of(module) == (
        f"--data.data_dir: {task} needs {place / name}, which does not exist; {place} has {there}. Download the file, "
        "or set data_dir to null to read the hub."
    )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = error_of(GlueDataModule("mnli", str(tmp_path)))
    assert message == (
        f"--data.data_dir: mnli needs {tmp_path}/MNLI/dev_matched.tsv, which does not exist; there is no folder "
        f"{tmp_path}/MNLI. Set data_dir to the folder that holds MNLI, or set data_dir to null to read the hub."
    )


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
def test_without_training_data_there_is_still_validation(tmp_path: Path, backbone: str) -> None:
    module = module_of(tmp_path, "qnli", backbone=backbone, cache_dir=str(tmp_path / "cache"))
    (tmp_path / "QNLI" / "train.tsv").unlink()
    module.prepare_data()
    module.setup("validate")
    assert len(module.splits["val"]) == ROWS
    with pytest.raises(DataError, match=r"qnli needs .*QNLI/train\.tsv, which does not exist; .* dev\.tsv, test\.tsv"):
        module.setup("fit")


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
def test_there_is_no_test_split_and_the_reason_is_given(tmp_path: Path, backbone: str) -> None:
    module = module_of(tmp_path, "rte", backbone=backbone, cache_dir=str(tmp_path / "cache"))
    assert module.split_names("test") == []
    with pytest.raises(DataError, match=r"GLUE's test labels are not public; `predict` writes the files for gluebench"):
        module.setup("test")


WRONG = {
    "a column too few": ("RTE", "3\tw1\tentailment", "line 4: 3 columns where 4 are needed"),
    "a column too many": ("RTE", "3\tw1\tw2\tentailment\tw3", "line 4: 5 columns where 4 are needed"),
    "an unknown label": (
        "RTE",
        "3\tw1\tw2\tentailed",
        "the label 'entailed' in column 'label' is not one of the 2 known labels",
    ),
    "an empty text": ("RTE", "3\tw1\t \tentailment", "line 4: the text in column 'sentence2' is empty"),
    "no number": ("STS-B", "3\t\t\t\t\t\t\tw1\tw2\tn/a", "line 4: the column 'score' must contain a finite number"),
    "a score too high": (
        "STS-B",
        "3\t\t\t\t\t\t\tw1\tw2\t5.1",
        "line 4: the score 5.1 is not in [0, 5], as STS-B's are",
    ),
    "a score too low": ("STS-B", "3\t\t\t\t\t\t\tw1\tw2\t-1", "line 4: the score -1 is not in [0, 5]"),
    "not a number": ("STS-B", "3\t\t\t\t\t\t\tw1\tw2\tNaN", "line 4: the column 'score' must contain a finite number"),
}


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_named(tmp_path: Path, case: str) -> None:
    folder, row, wording = WRONG[case]
    module = module_of(tmp_path, "rte" if folder == "RTE" else "stsb")
    path = tmp_path / folder / "train.tsv"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:3], row, *lines[4:]]))
    message = error_of(module)
    assert message.startswith(f"{path}, line 4: ")
    assert wording in message


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
def test_the_broken_rows_of_qqp_are_left_out_and_its_empty_questions_stay(tmp_path: Path) -> None:
    module = module_of(tmp_path, "qqp")
    path = tmp_path / "QQP" / "train.tsv"
    content = path.read_text().rstrip("\n")
    path.write_text(content + '\n20\t1\t2\t"broken in\n"\tthe middle?\t0\n21\t1\t2\tw1\t\t0\n')
    rows = module.load_splits()["train"]
    assert len(rows.texts) == ROWS + 1
    assert (rows.texts[-1], (rows.pairs or [])[-1]) == ("w1", "")


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
@pytest.mark.parametrize("task", FOLDERS)
def test_the_submission_has_the_servers_names_columns_and_words(tmp_path: Path, task: str) -> None:
    module = module_of(tmp_path / "data", task)
    module.prediction_splits = module.load_prediction_splits()
    predictions: dict[str, Any] = {}
    for split in module.split_names("predict"):
        inputs = module.prediction_inputs(split)
        answers = [{"prediction": value} for value in (-0.5, 5.25, 2.34567)] * 4
        if task != "stsb":
            names = module.label_space.names
            answers = [{"label": names[row % len(names)], "score": 0.5} for row in range(ROWS)]
        predictions[split] = [{**given, **answer} for given, answer in zip(inputs, answers, strict=True)]
    folder = tmp_path / "new" / "submission"
    module.check_predictions_file(folder)
    module.write_predictions(predictions, folder)
    ends = {"mnli": ["MNLI-m.tsv", "MNLI-mm.tsv"], "ax": ["AX.tsv"]}
    assert sorted(path.name for path in folder.iterdir()) == ends.get(task, [f"{FOLDERS[task]}.tsv"])
    words = list(LABELS["mnli" if task == "ax" else task].values()) if task != "stsb" else ["0.000", "5.000", "2.346"]
    for path in folder.iterdir():
        lines = path.read_text().removesuffix("\n").split("\n")
        assert lines[0] == "index\tprediction"
        assert lines[1:] == [f"{row}\t{words[row % len(words)]}" for row in range(ROWS)]


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
def test_an_index_that_is_no_number_is_named(tmp_path: Path) -> None:
    module = module_of(tmp_path, "rte")
    path = tmp_path / "RTE" / "test.tsv"
    path.write_text(path.read_text().replace("\n4\t", "\nfour\t"))
    with pytest.raises(
        DataError, match=r"test\.tsv, line 6: the column 'index' must contain a finite number, but contains"
    ):
        module.load_prediction_splits()


@pytest.mark.parametrize("name", ["answers.csv", "taken"])
def test_a_submission_is_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigurationError, match="but a GLUE submission is a folder; give one to write files in"):
        GlueDataModule("rte").check_predictions_file(tmp_path / name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"RTE\.tsv cannot be written \(.*\); choose another folder"):
        GlueDataModule("rte").write_predictions({"predict": []}, tmp_path / "file" / "submission")


def test_the_diagnostic_set_is_only_predicted() -> None:
    assert error_of(GlueDataModule("ax")) == (
        "ax of GLUE is for prediction only; train on mnli, then predict with --data.task_name ax."
    )


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
@pytest.mark.parametrize(
    ("names", "fits"), [(["entailment", "neutral", "contradiction"], True), (["no", "yes"], False)]
)
def test_a_model_of_other_labels_does_not_predict(tmp_path: Path, backbone: str, names: list[str], fits: bool) -> None:
    module = module_of(tmp_path, "ax", backbone=backbone)
    trainer: Any = SimpleNamespace(lightning_module=SimpleNamespace(label_space=LabelSpace(names)))
    module.trainer = trainer
    if fits:
        module.setup("predict")
        assert len(module.splits["predict"]) == ROWS
        return
    with pytest.raises(DataError, match=r"the model knows the labels no, yes, but ax of GLUE has entailment, neutral"):
        module.setup("predict")


def hub_of(task: str, rows: dict[str, list[dict[str, Any]]]) -> datasets.DatasetDict:
    label = datasets.ClassLabel(names=list(LABELS[task])) if task != "stsb" else datasets.Value("float32")
    given = {name: datasets.Value("string") for name in rows["train"][0] if name not in {"label", "idx"}}
    features = datasets.Features({**given, "label": label, "idx": datasets.Value("int32")})
    return datasets.DatasetDict({name: datasets.Dataset.from_list(part, features) for name, part in rows.items()})


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
def test_the_hub_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    splits = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
    rows = {
        split: [
            {
                "premise": f"{split} {row}",
                "hypothesis": "" if row == 1 else f"h{row}",  # as in the original
                "label": -1 if split.startswith("test") else row % 3,
                "idx": row + 7,
            }
            for row in range(4)
        ]
        for split in splits
    }

    def load_dataset(*arguments: Any, **_: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        return hub_of("mnli", rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    module = GlueDataModule("mnli", allow_partial=True)
    assert module.load_splits() == {
        name: LabeledTexts([f"{split} {row}" for row in range(4)], [0, 1, 2, 0], ["h0", "", "h2", "h3"])
        for name, split in zip(("train", "val_matched", "val_mismatched"), splits, strict=False)
    }
    module.prediction_splits = module.load_prediction_splits()
    assert module.split_names("predict") == ["predict_matched", "predict_mismatched"]
    assert module.prediction_inputs("predict_mismatched") == [{"index": row + 7} for row in range(4)]
    assert asked == [("nyu-mll/glue", "mnli")]


@pytest.mark.filterwarnings("ignore:.*where GLUE has")
def test_the_hubs_numbers_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    part = [{"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 0}]
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: hub_of("stsb", {"train": part, "validation": part, "test": part})
    )
    assert GlueDataModule("stsb", allow_partial=True).load_splits()["val"] == LabeledTexts(["a"], [2.5], ["b"])


def test_an_incomplete_hub_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    part = [{"sentence": "a", "label": 1, "idx": 0}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub_of("cola", {"train": part, "validation": part}))
    assert error_of(GlueDataModule("cola")).startswith("nyu-mll/glue, cola, train has 1 rows where GLUE has 8551; ")


def test_a_hub_without_network_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    assert error_of(GlueDataModule("sst2")) == (
        "the data set nyu-mll/glue could not be downloaded from the hub; without network set --data.data_dir to a "
        "folder that holds SST-2/ of the GLUE download."
    )


# Labels of the dev splits by name, counted by others: majority-class accuracies in the literature follow from them.
DEV_COUNTS = {
    "cola": (1043, 721),
    "sst2": (872, 444),
    "mrpc": (408, 279),
    "rte": (277, 146),
    "wnli": (71, 40),
    "qnli": (5463, 2761),
}


@pytest.mark.shared
@pytest.mark.parametrize("task", DEV_COUNTS)
def test_the_real_files_are_complete(shared_data: Path, task: Any) -> None:
    module = GlueDataModule(task, str(shared_data / "glue"))
    rows = module.load_splits()["val"]
    counts = sorted([list(rows.labels or []).count(label) for label in (0, 1)])
    assert (len(rows.texts), counts[1]) == DEV_COUNTS[task]
    assert module.load_prediction_splits()["predict"].labels is None
    assert module.numbers_of_rows["predict"] == list(range(GLUE_TASKS[task].splits["predict"].rows))


@pytest.mark.shared
def test_the_real_similarities_and_diagnostics(shared_data: Path) -> None:
    splits = GlueDataModule("stsb", str(shared_data / "glue")).load_splits()
    assert [len(rows.texts) for rows in splits.values()] == [5749, 1500]
    assert {min(splits["train"].labels or []), max(splits["train"].labels or [])} == {0, 5}
    module = GlueDataModule("ax", str(shared_data / "glue"))
    assert len(module.load_prediction_splits()["predict"].texts) == 1104


@pytest.mark.shared
def test_real_files_that_lack_rows(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"dev_mismatched\.tsv has 1000 rows where GLUE has 9832"):
        GlueDataModule("mnli", str(shared_data / "glue")).load_splits()
    with pytest.warns(UserWarning, match="1000 rows where GLUE has 9832"):
        splits = GlueDataModule("mnli", str(shared_data / "glue"), allow_partial=True).load_splits()
    labels = list(splits["val_matched"].labels or [])
    assert [labels.count(label) for label in range(3)] == [3479, 3123, 3213]

"""The tasks of GLUE (Wang et al. 2019, arXiv 1804.07461): files, columns, labels, metrics and official row counts."""

from dataclasses import dataclass

from lora_lightning.metrics.label_space import REGRESSION, SINGLE_LABEL, LabelSpace


@dataclass(frozen=True)
class GlueSplit:
    """One split of a task.

    Attributes:
        file: In the task's folder of the classic download.
        hub_split: In the hub's data set.
        rows: How many there are officially.
        submission: What the server calls the file with predictions; for splits to predict.
        columns: Names of the columns where the file has none.
    """

    file: str
    hub_split: str
    rows: int
    submission: str = ""
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        folder: Of the classic download.
        columns: The column of texts, and of second texts for pairs.
        hub_columns: The same in the hub's data set.
        names: Labels as the hub calls them, by class index; empty for a regression.
        words: The same labels in files and submissions.
        metrics: The official ones first.
        splits: By this program's names.
        label: Column of the labels.
        index: Column that numbers the rows of the files to predict.
        flawed: Whether the official files hold rows with a missing or an empty text.
    """

    folder: str
    columns: tuple[str, ...]
    hub_columns: tuple[str, ...]
    names: tuple[str, ...]
    words: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: dict[str, GlueSplit]
    label: str = "label"
    index: str = "index"
    flawed: bool = False

    @property
    def label_space(self) -> LabelSpace:
        """The labels as the model has to know them."""
        problem_type = SINGLE_LABEL if self.names else REGRESSION
        return LabelSpace(list(self.names) or ["similarity"], problem_type=problem_type, metrics=list(self.metrics))


def _splits(name: str, train: int, val: int, test: int, columns: tuple[str, ...] | None = None) -> dict[str, GlueSplit]:
    return {
        "train": GlueSplit("train.tsv", "train", train, columns=columns),
        "val": GlueSplit("dev.tsv", "validation", val, columns=columns),
        "predict": GlueSplit("test.tsv", "test", test, submission=f"{name}.tsv"),
    }


_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_SENTENCES = ("sentence1", "sentence2")
_NO_YES = ("0", "1")

# Rows: of the hub's data set, which leaves out the broken rows of QQP as this program does.
GLUE_TASKS = {
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        ("sentence",),
        ("unacceptable", "acceptable"),
        _NO_YES,
        ("matthews_correlation", "accuracy"),
        _splits("CoLA", 8551, 1043, 1063, columns=("source", "label", "star", "sentence")),
    ),
    "sst2": GlueTask(
        "SST-2",
        ("sentence",),
        ("sentence",),
        ("negative", "positive"),
        _NO_YES,
        ("accuracy",),
        _splits("SST-2", 67349, 872, 1821),
    ),
    "mrpc": GlueTask(
        "MRPC",
        ("#1 String", "#2 String"),
        _SENTENCES,
        ("not_equivalent", "equivalent"),
        _NO_YES,
        ("accuracy", "f1"),
        _splits("MRPC", 3668, 408, 1725),
        label="Quality",
    ),
    "qqp": GlueTask(
        "QQP",
        ("question1", "question2"),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        _NO_YES,
        ("accuracy", "f1"),
        _splits("QQP", 363846, 40430, 390965),
        label="is_duplicate",
        index="id",
        flawed=True,
    ),
    "stsb": GlueTask(
        "STS-B",
        _SENTENCES,
        _SENTENCES,
        (),
        (),
        ("pearson", "spearman"),
        _splits("STS-B", 5749, 1500, 1379),
        label="score",
    ),
    "mnli": GlueTask(
        "MNLI",
        _SENTENCES,
        ("premise", "hypothesis"),
        _NLI,
        _NLI,
        ("accuracy",),
        {
            "train": GlueSplit("train.tsv", "train", 392702),
            "val_matched": GlueSplit("dev_matched.tsv", "validation_matched", 9815),
            "val_mismatched": GlueSplit("dev_mismatched.tsv", "validation_mismatched", 9832),
            "predict_matched": GlueSplit("test_matched.tsv", "test_matched", 9796, "MNLI-m.tsv"),
            "predict_mismatched": GlueSplit("test_mismatched.tsv", "test_mismatched", 9847, "MNLI-mm.tsv"),
        },
        label="gold_label",
        flawed=True,
    ),
    "qnli": GlueTask(
        "QNLI",
        ("question", "sentence"),
        ("question", "sentence"),
        _ENTAILMENT,
        _ENTAILMENT,
        ("accuracy",),
        _splits("QNLI", 104743, 5463, 5463),
    ),
    "rte": GlueTask(
        "RTE", _SENTENCES, _SENTENCES, _ENTAILMENT, _ENTAILMENT, ("accuracy",), _splits("RTE", 2490, 277, 3000)
    ),
    "wnli": GlueTask(
        "WNLI",
        _SENTENCES,
        _SENTENCES,
        ("not_entailment", "entailment"),
        _NO_YES,
        ("accuracy",),
        _splits("WNLI", 635, 71, 146),
    ),
    "ax": GlueTask(
        "diagnostic",
        _SENTENCES,
        ("premise", "hypothesis"),
        _NLI,
        _NLI,
        (),
        {"predict": GlueSplit("diagnostic.tsv", "test", 1104, "AX.tsv")},
    ),
}

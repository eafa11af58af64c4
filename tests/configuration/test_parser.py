"""Long parser messages become one sentence."""

import typing

import pytest

from lora_lightning.cli.main import main
from lora_lightning.configuration.parser import ArgumentParser, explain_parser_message, join_negative_numbers
from lora_lightning.tasks import AdaptationTask

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'AdaptationTask'>, <class 'NoneType'>]
  Errors:
    - Parser key "optimization.schedule":
        Expected a typing.Literal['linear', 'cosine']. Got value: cosin
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'SequenceClassificationTask'}"""

EXPLAINED_INSIDE = """Parser key "data":
  Does not validate against any of the Union subtypes
  Errors:
    - the configuration has no option 'batch_sizes'; did you mean 'batch_size'?
    - Expected a <class 'NoneType'>"""


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (NESTED, "model.optimization.schedule is 'cosin', but one of 'linear', 'cosine' is needed."),
        (EXPLAINED_INSIDE, "data has no option 'batch_sizes'; did you mean 'batch_size'?"),
        (
            "Subcommand 'fit' does not accept option 'trainer.max_epoch'",
            (
                "the configuration has no option 'trainer.max_epoch'; did you mean trainer.max_epochs or "
                "trainer.min_epochs?"
            ),
        ),
        (
            "Subcommand 'fit' does not accept option 'data.predict_file'",
            (
                "the configuration has no option 'data.predict_file', which another class has; `lora-lightning fit "
                "--help` lists them."
            ),
        ),
        (
            "Parser key \"model\":\n  Expected a <class 'list'>",
            "model must be a value of type list.",
        ),
        (
            "Parser key \"seed\":\n  Errors:\n    - Expected a <class 'bool'>\n    - Expected a <class 'int'>",
            "seed must be a value of type bool or int.",
        ),
        (
            "Parser key \"model\":\n  Errors:\n    - Group 'optimization' does not accept option 'schetule'",
            "model.optimization has no option 'schetule'; did you mean 'schedule'?",
        ),
        (
            "Parser key \"model\":\n  Errors:\n    - Group 'lora' does not accept option 'rank'",
            "model.lora has no option 'rank'; did you mean 'r'?",
        ),
        (
            "Subcommand 'fit' does not accept option 'early_stoppin.patience'",
            "the configuration has no option 'early_stoppin.patience'; did you mean early_stopping.patience?",
        ),
        *(
            (
                f"Unrecognized arguments: --{wrong}=3",
                f"the configuration has no option {wrong!r}; did you mean {right}?",
            )
            for wrong, right in {
                "lr": "--model.optimization.learning_rate",
                "lora.rank": "--model.lora.r",
                "rank": "--model.lora.r",
                "epochs": "--trainer.max_epochs",
                "batch_size": "--data.batch_size",
                "model.lora_alpha": "--model.lora.lora_alpha",
                "model.learning_rat": "--model.optimization.learning_rate",
            }.items()
        ),
        (
            "Key 'lr' is not expected",
            "the configuration has no option 'lr'; did you mean model.optimization.learning_rate?",
        ),
        (
            "the following arguments are required: fit.data",
            "data is missing; pass --config with a file such as configs/quickstart.yaml.",
        ),
        (
            'Parser key "model":\n  Errors:\n    - Not a valid subclass of LoraSettings',
            "model must be the options by name, with its init_args.",
        ),
        (
            'Parser key "trainer.callbacks":\n  Errors:\n    - Not a valid subclass of Callback. Got value: [1]',
            "trainer.callbacks is [1], but a class_path of a Callback is needed.",
        ),
        (
            "Parser key \"checkpoint\":\n  Unable to load config 'val/x'",
            "checkpoint is 'val/x', but named options are needed; see `lora-lightning fit --help`.",
        ),
        (
            "Errors:\n  - functools.partial(<f>) argument after ** must be a mapping, not float",
            (
                "model has a group of options that is a float, but named options are needed; see "
                "`lora-lightning fit --help`."
            ),
        ),
        (
            "Errors:\n  - QuestionAnsweringTask.__init__() got an unexpected keyword argument 'n_bst'",
            "QuestionAnsweringTask has no option 'n_bst'; did you mean 'n_best'?",
        ),
        (
            'Key "checkpoint.monitor" not found in namespace.',
            "checkpoint.monitor is missing; give checkpoint its options by name.",
        ),
        (
            'Parser key "trainer.callbacks":\n  Errors:\n    - Expected a dot import path string: ~nobody/x',
            "trainer.callbacks: there is no class '~nobody/x'; `lora-lightning fit --help` lists every option.",
        ),
        ("Something else\n  happened", "Something else"),
        ("", ""),
    ],
)
def test_explain(message: str, sentence: str) -> None:
    assert explain_parser_message(message) == sentence


def test_a_sentence_of_our_own_survives() -> None:
    own = "model.lora.r is 0, but it must be at least 1; for full fine-tuning write `lora: null`."
    assert (
        explain_parser_message(f"Parser key \"model\":\n  Errors:\n    - {own}\n    - Expected a <class 'NoneType'>")
        == own
    )


def test_an_option_that_the_chosen_class_lacks_is_not_suggested_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config=configs/quickstart.yaml", "--data.train_file=texts.csv"]) == 2
    error = capsys.readouterr().err
    assert "data has no option 'train_file' with this class_path; it is an option of InstructionDataModule, " in error
    assert "did you mean" not in error


def test_an_option_of_another_class_is_named_as_such() -> None:
    message = "Parser key \"model\":\n  Option 'freeze_backbone' is not accepted"
    owners = "SequenceClassificationTask, QuestionAnsweringTask"
    said = explain_parser_message(message)
    assert said.startswith("model has no option 'freeze_backbone'; it is one of ")
    assert all(name in said for name in owners.split(", "))
    assert "CausalLanguageModelingTask" not in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("modules_to_save", "[pooler]"),
        ("layers_to_transform", "[0]"),
        ("rank_pattern", "{query: 4}"),
        ("layers_pattern", "layer"),
    ],
)
def test_null_on_the_command_line_takes_back_what_a_file_sets(option: str, value: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(AdaptationTask, "model")
    words = ["--model=SequenceClassificationTask", "--model.backbone=a", "--model.lora.r=4"]
    set_to = parser.parse_args([*words, f"--model.lora.{option}={value}"]).model.init_args.lora
    assert set_to[option] is not None
    parsed = parser.parse_args([*words, f"--model.lora.{option}={value}", f"--model.lora.{option}=null"])
    assert parsed.model.init_args.lora[option] is None
    assert parsed.model.init_args.lora.r == 4


@pytest.mark.parametrize("value", ["-1", "-1e-3", "-.5", "-2.5E+3", "-1_000"])
@pytest.mark.parametrize("option", ["--n", "--model.optimization.learning_rate"])
def test_a_negative_number_is_a_value(option: str, value: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(AdaptationTask, "model")
    parser.add_argument("--n", type=float, default=0.0)
    parsed = parser.parse_args(["--model=SequenceClassificationTask", "--model.backbone=a", option, value])
    found = {"--n": parsed.n, "--model.optimization.learning_rate": parsed.model.init_args.optimization.learning_rate}
    assert found[option] == float(value)


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["fit", "--x", "-1"], ["fit", "--x=-1"]),
        (["--x=1", "-1"], ["--x=1", "-1"]),
        (["--x", "-c", "file"], ["--x", "-c", "file"]),
        (["--x", "1"], ["--x", "1"]),
        (["--callbacks+", "-1e3", "-2"], ["--callbacks+=-1e3", "-2"]),
        (["-1"], ["-1"]),
    ],
)
def test_only_a_negative_number_after_an_option_is_attached_to_it(words: list[str], joined: list[str]) -> None:
    assert join_negative_numbers(words) == joined


class Batches:
    """A class whose annotation arrives in the wrong order, as Python's cache of unions may hand it out."""

    def __init__(self, limit: float | int | None = None, share: float | None = None) -> None:  # noqa: PYI041
        self.limit, self.share = limit, share


class Outer:
    """A class with an option that is a class."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches


@pytest.mark.parametrize(("word", "value"), [("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("null", None)])
@pytest.mark.parametrize("cls", [Batches, Outer])
def test_a_whole_number_stays_one_whatever_the_order_of_a_union(cls: type, word: str, value: object) -> None:
    assert typing.get_args(typing.get_type_hints(Batches.__init__)["limit"])[0] is float
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "x")
    prefix = "--x.limit" if cls is Batches else "--x.batches.limit"
    parsed = parser.parse_args([f"{prefix}={word}", "--x.share=1" if cls is Batches else "--x.batches.share=1"])
    made = parser.instantiate_classes(parsed).x
    limit = made.limit if cls is Batches else made.batches.limit
    assert (type(limit), limit) == (type(value), value)

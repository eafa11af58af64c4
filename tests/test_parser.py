"""Long parser messages become one sentence."""

import pytest

from lora_lightning.parser import explain

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
            "the configuration has no option 'trainer.max_epoch'; did you mean 'max_epochs' or 'min_epochs'?",
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
        ("Something else\n  happened", "Something else"),
        ("", ""),
    ],
)
def test_explain(message: str, sentence: str) -> None:
    assert explain(message) == sentence


def test_a_sentence_of_our_own_survives() -> None:
    own = "model.lora.r is 0, but a rank is at least 1; for full fine-tuning write `lora: null`."
    assert explain(f"Parser key \"model\":\n  Errors:\n    - {own}\n    - Expected a <class 'NoneType'>") == own


def test_an_option_of_another_class_is_named_as_such() -> None:
    message = "Parser key \"model\":\n  Option 'freeze_backbone' is not accepted"
    owners = "SequenceClassificationTask, QuestionAnsweringTask"
    said = explain(message)
    assert said.startswith("model has no option 'freeze_backbone'; it is one of ")
    assert all(name in said for name in owners.split(", "))
    assert "CausalLanguageModelingTask" not in said

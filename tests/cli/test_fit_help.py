"""The help of commands with a model: short, ours first, from a file, and without heavy imports."""

import subprocess
import sys
import time

import pytest

from lora_lightning.cli.fit_help import CLASSES, SHORT, help_text, options_by_name
from lora_lightning.cli.main import main
from lora_lightning.configuration.schema_file import all_options, class_names, option_names

CODE = """if True:
    import sys
    from lora_lightning.cli.main import main
    try:
        main(sys.argv[1:])
    finally:
        print(sorted({"torch", "lightning", "transformers", "jsonargparse"} & {*sys.modules}))
"""


def test_help_takes_less_than_two_seconds_and_imports_nothing_heavy() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-c", CODE, "fit", "--help"]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert ended.stdout.endswith("\n[]\n")
    assert min(seconds) < 2


def test_the_short_help_is_short_and_starts_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text("fit", ["--help"]) or ""
    assert len(text.splitlines()) <= 75
    assert max(map(len, text.splitlines())) <= 120
    places = [text.index(f"\n{title}:") for title in ("model", "data", "trainer", "run")]
    assert places == sorted(places)
    assert "--model.lora.r N " in text
    assert "(default: 8)" in text
    assert "lora-lightning fit --config" in text


def test_a_default_that_depends_on_the_class_is_not_that_of_another_class() -> None:
    defaults: dict[str, set[str]] = {}
    for option in all_options():
        defaults.setdefault(option.name, set()).add(option.default)
    assert len(defaults["data.batch_size"]) > 1
    for name, option in options_by_name().items():
        assert {option.default} == (defaults[name] if len(defaults[name]) == 1 else {"depends on the class"}), name


@pytest.mark.parametrize("command", list(SHORT))
def test_what_the_short_help_names_exists(command: str) -> None:
    names = {name for texts in SHORT[command].values() for name in texts}
    assert names <= option_names()
    assert all(f"--{name} " in (help_text(command, ["-h"]) or "") for name in names)


@pytest.mark.parametrize("group", ["model", "data"])
def test_the_short_help_names_every_class(group: str) -> None:
    assert set(CLASSES[group]) == set(class_names(group))


def test_all_help_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config=x.yaml", "--help-all"])
    text = capsys.readouterr().out
    assert [option.name for option in all_options() if f"  --{option.name}" not in text] == []
    assert "--model.freeze_backbone {true,false}" in text
    assert "Of QuestionAnsweringTask, SequenceClassificationTask" in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--model.help", "SequenceClassificationTask"], "--model.label_smoothing"),
        (["--data.help=TextClassificationDataModule"], "--data.label_column"),
        (["--trainer.callbacks.help", "AdapterNormMonitor"], "--trainer.callbacks.every_n_steps"),
    ],
)
def test_a_class_has_its_own_help(words: list[str], option: str) -> None:
    text = help_text("fit", words) or ""
    assert option in text
    assert "--trainer.max_epochs" not in text


def test_what_asks_for_no_help_gets_none() -> None:
    assert help_text("fit", ["--config", "x.yaml", "--data.help=my_module.MyDataModule"]) is None

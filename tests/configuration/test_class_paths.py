"""A class of the user's own: found, or the sentence says what it lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Trainer

from lora_lightning.configuration.class_paths import class_path_problem, class_paths_in
from lora_lightning.configuration.parser import ArgumentParser
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import ConfigurationError

GOOD = """
import lightning as L
class Mine(L.Callback):
    pass
class MyData(L.LightningDataModule):
    pass
number = 3
"""
MODULES = {
    "good_module": GOOD,
    "lacks_package": "import no_such_package",
    "lacks_name": "from good_module import Nope",
    "raises_error": "raise ValueError('not\\n today')",
    "bad_syntax": "def (",
    "fails_deep": "import raises_error",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be imported."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("class_path", "problem"),
    [
        ("good_module.Mine", None),
        ("good_module.MyData", "good_module.MyData is not a subclass of Callback"),
        ("good_module.number", "good_module.number is not a class"),
        ("good_module.Mien", "the module good_module has no class 'Mien'; did you mean 'Mine'"),
        ("good_module.Nothing", "the module good_module has no class 'Nothing'"),
        ("lacks_package.X", "the module lacks_package cannot be imported: No module named 'no_such_package'"),
        ("raises_error.X", "the module raises_error cannot be imported: it raises ValueError: not today"),
        ("fails_deep.X", "the module fails_deep cannot be imported: it raises ValueError: not today"),
    ],
)
def test_what_a_class_lacks(class_path: str, problem: str | None) -> None:
    assert class_path_problem(class_path, ["Callback"]) == problem


@pytest.mark.parametrize(
    ("class_path", "module"), [("nobody.X", "nobody"), ("good_module.inner.X", "good_module.inner")]
)
def test_a_module_that_is_not_there_is_named(class_path: str, module: str) -> None:
    problem = class_path_problem(class_path, [])
    assert problem == (
        f"there is no class {class_path!r}, because there is no module {module!r} in the working directory or among "
        "the installed packages"
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("my_module.Mine", ["my_module.Mine"]),
        ("'my_module.Mine'", ["my_module.Mine"]),
        ("[my_module.Mine]", ["my_module.Mine"]),
        ("{class_path: a.B, init_args: {train_file: train.csv, to: os.path}}", ["a.B"]),
        ("[{'class_path': 'a.B'}, {'class_path': 'c.D'}]", ["a.B", "c.D"]),
        ("Namespace(class_path='a.B', init_args=Namespace(train_file='train.csv'))", ["a.B"]),
        ("./train.csv", []),
        ("{'train_file': 'train.csv'}", []),
        ("Mine", []),
    ],
)
def test_only_class_paths_are_imported_not_files(value: str, found: list[str]) -> None:
    assert class_paths_in(value) == found


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--data=good_module.MyData", "data: good_module.MyData is not a subclass of AdaptationDataModule."),
        ("--data=raises_error.X", "data: the module raises_error cannot be imported: it raises ValueError: not today."),
        (
            "--trainer.callbacks=good_module.MyData",
            "trainer.callbacks: good_module.MyData is not a subclass of Callback.",
        ),
        ("--trainer.callbacks+=good_module.X", "trainer.callbacks: the module good_module has no class 'X'."),
        ("--trainer.callbacks=[good_module.X]", "trainer.callbacks: the module good_module has no class 'X'."),
        (
            "--trainer.callbacks=[{class_path: lacks_package.X}]",
            "trainer.callbacks: the module lacks_package cannot be imported: No module named 'no_such_package'.",
        ),
        (
            "--trainer.logger=bad_syntax.X",
            (
                "trainer.logger: the module bad_syntax cannot be imported: it raises SyntaxError: invalid syntax "
                "(bad_syntax.py, line 1)."
            ),
        ),
    ],
)
def test_the_parser_says_what_a_class_lacks(word: str, sentence: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(AdaptationDataModule, "data")
    parser.add_lightning_class_args(Trainer, "trainer")
    with pytest.raises(ConfigurationError) as raised:
        parser.parse_args([word])
    assert str(raised.value) == sentence


@pytest.mark.parametrize("entry", ["script", "module"])
def test_both_ways_to_start_the_program_look_into_the_working_directory(modules: Path, entry: str) -> None:
    script = modules / "bin" / "lora-lightning"  # as pip makes it: in a folder that is not the working directory
    script.parent.mkdir()
    script.write_text("from lora_lightning.cli.main import program\nprogram()\n")
    start = [str(script)] if entry == "script" else ["-m", "lora_lightning"]
    words = ["fit", "--data=good_module.MyData"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, *start, *words], cwd=modules, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "lora-lightning: error: data: good_module.MyData is not a subclass of AdaptationDataModule.\n"
    )

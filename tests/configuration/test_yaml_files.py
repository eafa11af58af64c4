"""What is no YAML, or no config, is named by file and line before anything else is done."""

from pathlib import Path

import pytest

from lora_lightning.configuration.yaml_files import check_config_file, check_config_files
from lora_lightning.errors import ConfigurationError
from tests.test_configs import CONFIGS

LAUGHS = "\n".join(["x0: &x0 [ha]", *(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 10))])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "trainer:\n  max_epochs: 1\n  max_epochs: 2\n",
            ", line 3: 'max_epochs' is a duplicate of line 2;",
        ),
        ("a: {b: 1, c: [{d: 1, d: 1}]}\n", ", line 1: 'd' is a duplicate of line 1;"),
        ("a: 1\n\tb: 2\n", ", line 2, column 1 is not YAML: while scanning for the next token found character"),
        ("a: [1\n", ", line 2, column 1 is not YAML: while parsing a flow sequence expected"),
        ("a: *nobody\n", ", line 1, column 4 is not YAML: found undefined alias 'nobody'."),
        ("a: \0\n", " is not YAML: unacceptable character #x0000"),
        ("a: 1\n---\nb: 1\n", ", line 2, column 1 is not YAML: expected a single document in the stream but found"),
        ("a: 1\nb: !!python/object/apply:os.system [x]\n", ", line 2 has the tag 'tag:yaml.org,2002:python/object/"),
        ("a: !own 1\n", ", line 1 has the tag '!own'; a config contains only plain values, so leave the tag out."),
        ("a: 1\n2: 1\n", ", line 2: the name of an option is '2', but a word is needed; fix or quote it."),
        ("no: 1\n", ", line 1: the name of an option is 'no', but a word is needed; fix or quote it."),
        ("? [1, 2]\n: 3\n", ", line 1: the name of an option is a list or a mapping, but a word is needed;"),
        ("'': 1\n", ", line 1: the name of an option is '', but a word is needed;"),
        ("a: &a [*a]\n", ", line 1: an alias (*) leads back to itself"),
        (LAUGHS, ": an alias (*) leads back to itself, or to 100000 entries and more; write it out."),
        (f"a: {'[' * 40}{']' * 40}\n", ", line 1: nested deeper than 30 levels, but no option is;"),
        (f"a: {'[' * 5000}{']' * 5000}\n", " is nested deeper than 30 levels, but no option is;"),
        ("a: 2020-13-45\n", " is not YAML: month must be in 1..12."),
        ("", " contains nothing, but named options are needed, such as `model:`."),
        ("- model\n", " contains a list, but named options are needed,"),
        ("banana\n", " contains 'banana', but named options are needed,"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as raised:
        check_config_file(path)
    assert str(raised.value).startswith(f"the config {path}")
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("trainer: 5\n", "trainer in {} is 5, but named options are needed; indent them below."),
        ("checkpoint:\n", "checkpoint in {} is None, but named options are needed; indent them below."),
        ("model: [1]\n", "model in {} is [1], but a class_path with its init_args is needed."),
        ("data: {class_path: 3}\n", "data.class_path in {} is 3, but the name of a class is needed."),
        (
            "model: {class_path: A, init_args: x}\n",
            "model.init_args in {} is 'x', but named options of A are needed.",
        ),
        (
            "trainer: {callbacks: [{class_path: A, x: 1}]}\n",
            (
                "trainer.callbacks.1 in {} has 'x' beside class_path and init_args; indent the options of A below "
                "init_args."
            ),
        ),
    ],
)
def test_a_file_whose_options_have_no_names(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as raised:
        check_config_file(path)
    assert str(raised.value) == sentence.format(path)


def test_right_forms_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    text = (
        "base: &base {r: 1}\nmodel: {class_path: A, init_args: {lora: {<<: *base, r: 2}}}\n"
        "data: B\ntrainer: {'callbacks+': [C, {class_path: D}], logger: false, callbacks: null}\n"
    )
    for encoded in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        path.write_bytes(encoded)
        check_config_file(path)
    for config in CONFIGS.rglob("*.yaml"):
        check_config_file(config)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"a\.yaml cannot be read as text in UTF-8 \(.*0xe9 in position 6"):
        check_config_file(path)


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"], ["-c", "{}"], ["-c={}"]])
def test_every_file_of_a_command_is_checked(tmp_path: Path, form: list[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("trainer: 5\n")
    words = ["fit", "--config=configs/quickstart.yaml", *(word.format(path) for word in form)]
    with pytest.raises(ConfigurationError, match="trainer in"):
        check_config_files(words)
    check_config_files(["fit", "--config"])  # the parser says that the value is missing


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no config none\.yaml;"):
        check_config_files(["fit", "--config", "none.yaml"])

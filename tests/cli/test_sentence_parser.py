"""Errors of commands that do not train, in the words of several releases of Python."""

import pytest

from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.errors import ConfigurationError


@pytest.mark.parametrize("names", ["'run', 'report', 'status'", "run, report, status"], ids=["3.11", "3.13"])
def test_a_misspelled_subcommand_is_answered_with_the_one_that_was_meant(names: str) -> None:
    parser = SentenceParser(prog="lora-lightning study")
    with pytest.raises(
        ConfigurationError, match=r"there is no subcommand rn; did you mean 'run'\? see lora-lightning study"
    ):
        parser.error(f"argument SUBCOMMAND: invalid choice: 'rn' (choose from {names})")
    with pytest.raises(
        ConfigurationError, match="there is no subcommand xyz; the choices are report, run, status; see"
    ):
        parser.error(f"argument SUBCOMMAND: invalid choice: 'xyz' (choose from {names})")

"""`lora-lightning configs`: lists the YAML files that come with this package, and copies one."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from lora_lightning.cli.sentence_parser import SentenceParser
from lora_lightning.configuration.shipped_configs import ShippedConfig, copy_config, shipped_configs

DESCRIPTION = """\
List the YAML files that come with this package, a line each, or copy one into the current folder to edit it. A study is
copied with the configs that it trains.
"""
EPILOG = """\
examples, complete:
  lora-lightning configs
  lora-lightning configs --copy text_classification/minilm_lora
  lora-lightning fit --config minilm_lora.yaml --data.train_file my_texts.csv
"""


def build_configs_parser() -> SentenceParser:
    """Returns the parser of `configs`."""
    parser = SentenceParser(
        prog="lora-lightning configs",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--copy", metavar="NAME", help="copy the config NAME, as in the list, into the current folder")
    return parser


def run_configs(arguments: Sequence[str]) -> list[Path]:
    """Runs `lora-lightning configs`.

    Args:
        arguments: Options of the command.

    Returns:
        The files that were listed or written.

    Raises:
        ConfigurationError: If there is no such config, or its copy would replace a file.
    """
    options = build_configs_parser().parse_args(arguments)
    if options.copy is None:
        configs = shipped_configs()
        print(list_of_configs(configs))
        return [config.path for config in configs]
    written = copy_config(options.copy, Path())
    for path in written:
        print(f"written: {path}")
    return written


def list_of_configs(configs: Sequence[ShippedConfig]) -> str:
    """Arranges names and summaries in two columns, with an empty line between folders.

    Args:
        configs: In the order of the list.

    Returns:
        One line per config, cut to the width of the terminal if there is one.
    """
    names = max(len(config.name) for config in configs)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    lines, folder = [], Path()
    for config in configs:
        if (own := Path(config.name).parent) != folder:
            lines.append("")
            folder = own
        summary = config.summary
        room = width - names - 2
        lines.append(f"{config.name:<{names}}  {shorten(summary, room, placeholder='...') if room > 0 else summary}")
    return "\n".join(lines)

"""Every command in README and docs/ parses: its options exist, and the configs that it names are there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_lightning.cli.allocate import build_allocate_parser
from lora_lightning.cli.compress import build_compress_parser
from lora_lightning.cli.configs import build_configs_parser
from lora_lightning.cli.diagnose import build_diagnose_parser
from lora_lightning.cli.export import build_export_parser
from lora_lightning.cli.main import COMMANDS, main
from lora_lightning.cli.merge import build_merge_parser
from lora_lightning.cli.plan import build_plan_parser
from lora_lightning.cli.study import build_study_parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
TOOLS = {  # they leave options of `fit` to its parser
    "plan": build_plan_parser,
    "merge": build_merge_parser,
    "compress": build_compress_parser,
    "export": build_export_parser,
    "allocate": build_allocate_parser,
    "study": build_study_parser,
    "configs": build_configs_parser,
    "diagnose": build_diagnose_parser,
}
ENDS = {"|", "&&", "||", ";", ">", "<", "<<", "#"}  # of a command in a shell


def commands_in(text: str) -> Iterator[str]:
    """The commands in code blocks and in code within sentences."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in [*lines, *re.findall(r"`(lora-lightning [^`]+)`", rest)]:
        if (start := line.find("lora-lightning ")) >= 0 and "pip " not in line[:start]:
            yield " ".join(line[start:].split())


def words_of(command: str) -> list[str]:
    """The words of a command up to a comment or another command, with a shipped config for the user's own files."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in ENDS:
            break
        words.append(word)
    own = re.compile(r"(?!configs/).+\.yaml")
    return ["configs/quickstart.yaml" if own.fullmatch(word) else word for word in words[1:]]


COMMAND_LINES = sorted({command for path in PAGES for command in commands_in(path.read_text(encoding="utf-8"))})


def test_commands_are_found() -> None:
    assert len(COMMAND_LINES) > 40
    assert {words_of(line)[0] for line in COMMAND_LINES} >= set(COMMANDS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_change_the_rank_with_lora_alpha(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.search(r"--model\.lora\.r[ =]|\"model\.lora\.r\":", line):
            assert "model.lora.lora_alpha" in line


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_documented_command_parses(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command, *words = words_of(line)
    configs = [word for word in words if word.startswith("configs/")]
    assert all((ROOT / config).is_file() for config in configs)
    if not any(word.startswith("-") or "." in word for word in words) or any("help" in word for word in words):
        assert command in COMMANDS or command.startswith("--")
    elif command in TOOLS:
        _, left = TOOLS[command]().parse_known_args(words)
        assert not left or command not in {"study", "diagnose"}
        assert all(re.match(r"--(model|data|trainer|config)\b", word) for word in left if word.startswith("-"))
    else:
        words += [] if "--config" in words else ["--config", "configs/quickstart.yaml"]
        with pytest.raises(SystemExit) as ended:
            main([command, *words, "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err

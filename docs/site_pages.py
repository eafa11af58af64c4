"""Pages of the site that are made when it is built: README as home, files of the root folder, the help of each command.

Links from a page to a file that is no page, such as a config, become its path, since the site does not have that file.
"""

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from lora_lightning.cli import diagnose, study
from lora_lightning.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
SUBCOMMANDS = {"study": study.SUBCOMMANDS, "diagnose": diagnose.SUBCOMMANDS}
ROOT_PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files in docs/."""
    for source, target in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=in_site(text, folder="")))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrites the links of a page in docs/."""
    if page.file.generated_by is not None:
        return markdown
    return in_site(markdown, posixpath.join("docs", posixpath.dirname(page.file.src_uri)))


def in_site(text: str, folder: str) -> str:
    """Rewrites links of Markdown, which are relative to a folder of the repository, for the site.

    Args:
        text: Markdown.
        folder: Folder of the page in the repository, `""` for the root.

    Returns:
        Markdown whose links lead to pages of the site, or name the file.
    """

    def rewrite(match: re.Match[str]) -> str:
        image, shown, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        here = folder.removeprefix("docs").strip("/") or "."
        if path in ROOT_PAGES:
            return f"{image}[{shown}]({posixpath.relpath(ROOT_PAGES[path], here)}{anchor})"
        if path.startswith("docs/"):
            return f"{image}[{shown}]({posixpath.relpath(path.removeprefix('docs/'), here)}{anchor})"
        return f"`{path}`" if shown.strip("`") in path else f"{shown} (`{path}`)"

    return LINK.sub(rewrite, text)


def commands_page() -> str:
    """Returns the help of every command, as the program prints it."""
    lines = ["# Commands", "", "What `lora-lightning --help` and the help of each command print.", ""]
    words = [[], *([name] for name in COMMANDS)]
    words += [[command, name] for command, own in SUBCOMMANDS.items() for name in own]
    for each in words:
        lines += [f"## lora-lightning {' '.join(each)}".rstrip(), "", "```text", help_of(each).rstrip(), "```", ""]
    lines += ["## Every option of fit", "", "```text", help_of(["fit"], "--help-all").rstrip(), "```", ""]
    return "\n".join(lines)


def help_of(words: list[str], option: str = "--help") -> str:
    """Returns what a command prints with `--help`.

    Args:
        words: The command.
        option: The option that prints it.
    """
    command = [sys.executable, "-m", "lora_lightning", *words, option]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

"""The files of a report: a page, numbers, and figures as PNG and SVG."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.errors import DataError, few_names
from lora_lightning.figures.png import DRAWN_BY, png_bytes
from lora_lightning.reports.drawing import inline_svg
from lora_lightning.runs.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES, PAGE, NUMBERS, TABLE = "figures", "report.html", "analysis.json", "results.csv"
ENDINGS = ("png", "svg")
NAME = re.compile(r"[A-Za-z0-9_.-]+")
LONGEST_NAME = 60
LARGEST_PAGE, ROOM = 2_000_000, 1_000  # bytes; the latter for headings, and for the sentence on what was left out
# What a page says of its figures' files, so that the next report can delete those that it does not replace. Pages of
# earlier releases say nothing; their figures had running numbers.
LISTED = re.compile(r'<meta name="figures" content="([^"]*)">')
OWN = {
    PAGE: "default-src 'none'; style-src 'unsafe-inline'",
    NUMBERS: '{\n  "study": "',
}  # texts of every report's files
NUMBERED = re.compile(r"(trade_off|rank|curve)_\d+")


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    Attributes:
        name: Of its files.
        title: Heading in the page.
        description: What it shows, for those who do not see it.
        figure: The figure.
    """

    name: str
    title: str
    description: str
    figure: "Figure"


def write_report_files(
    folder: Path, contents: Mapping[str, bytes], figures: Sequence[ReportFigure], drawn: Sequence[str]
) -> None:
    """Writes the files of a report. Those of an earlier report are replaced or deleted, others are left alone.

    A file that is called like one of its own, and that no report wrote, is not replaced.

    Args:
        folder: Where to; created if it does not exist.
        contents: By name; the page should be the last one, and the numbers of a study the first, by which a report is
            known whose writing was killed.
        figures: Are written to the folder `figures` before.
        drawn: Each figure as SVG.

    Raises:
        DataError: If a file cannot be written, or would be lost.
    """
    pictures = {f"{FIGURES}/{each.name}.png": png_bytes(each.figure) for each in figures}
    pictures |= {f"{FIGURES}/{each.name}.svg": svg.encode() for each, svg in zip(figures, drawn, strict=True)}
    _check_nothing_is_lost(folder, pictures | dict(contents))
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(folder / FIGURES, error) from error
    _delete_former_figures(folder, {each.name for each in figures})
    for name, content in (pictures | dict(contents)).items():
        try:
            with atomic_file(folder / name) as file:
                file.write(content)
        except OSError as error:
            raise _write_error(folder / name, error) from error


def _check_nothing_is_lost(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Refuses a folder in which files of others would be replaced; what stays the same is none, as after a kill."""
    if _has_report(folder):
        return
    for name, content in contents.items():
        path = folder / name
        if path.is_file() and path.read_bytes() != content and not _is_own_figure(path):
            msg = f"{path} is there, and no report wrote it; it would be replaced by that of the report: choose "
            msg += "another folder for the report, or move that file"
            raise DataError(msg)


def _is_own_figure(path: Path) -> bool:
    """Whether a report drew a file, such as one that was killed before it wrote its page."""
    return path.suffix in {".png", ".svg"} and DRAWN_BY.encode() in path.read_bytes()


def check_keeps_file(folder: Path, path: Path) -> None:
    """Refuses to write a report over a file that it is about.

    Args:
        folder: Of the report.
        path: Such as the table that is judged, or the folder with the table of all trials.

    Raises:
        DataError: If the report would replace it.
    """
    if path.resolve() in {(folder / name).resolve() for name in (TABLE, NUMBERS, PAGE)}:
        msg = f"the report would replace {path}, which it is about; choose another folder than {folder} for the report"
        raise DataError(msg)


def _has_report(folder: Path) -> bool:
    """Whether a folder has a report, be it of an earlier release, or one whose writing was killed."""
    return any(
        (folder / name).is_file() and mark in (folder / name).read_text(encoding="utf-8", errors="replace")
        for name, mark in OWN.items()
    )


def _delete_former_figures(folder: Path, kept: Collection[str]) -> None:
    """Deletes the figures of the report that the folder has, but for those that are written again.

    Its page goes on saying which they were until the new one replaces it, also after a kill.
    """
    try:
        listed = LISTED.search((folder / PAGE).read_text(encoding="utf-8", errors="replace"))
        if listed is None:
            found = [path.stem for path in (folder / FIGURES).iterdir() if NUMBERED.fullmatch(path.stem)]
        else:
            found = [name for name in listed[1].split() if NAME.fullmatch(name)]
        for name in {*found} - {*kept}:
            for ending in ENDINGS:
                (folder / FIGURES / f"{name}.{ending}").unlink(missing_ok=True)
    except FileNotFoundError:  # no former report
        return
    except OSError as error:
        raise _write_error(folder / FIGURES, error) from error


def file_name(kind: str, name: str) -> str:
    """Names the files of a figure after what it shows, so that they are called alike in the next report.

    Args:
        kind: Of figure.
        name: What it shows; anything.

    Returns:
        Such as `rank_val_loss`.
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", f"{kind}_{name}")[:LONGEST_NAME].strip("_")


def with_different_names(figures: Sequence[ReportFigure]) -> list[ReportFigure]:
    """Numbers figures whose files would be called alike, also where case does not count.

    Args:
        figures: The figures.

    Returns:
        The same figures; the first one of a name keeps it.
    """
    taken: set[str] = set()
    found = []
    for each in figures:
        names = (f"{each.name}{f'_{number}' if number > 1 else ''}" for number in count(1))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        found.append(replace(each, name=name))
    return found


def figures_that_fit(
    figures: Sequence[ReportFigure], drawn: Sequence[str], size: int
) -> tuple[list[tuple[str, str, str] | None], str]:
    """Prepares figures for a page, as many as fit into its 2 MB.

    Args:
        figures: The figures.
        drawn: Each as SVG.
        size: Bytes of the page without them.

    Returns:
        Title, description and element of each, `None` for those that do not fit; and a sentence about these, which is
        empty if all fit.
    """
    from markupsafe import Markup  # noqa: PLC0415

    found: list[tuple[str, str, str] | None] = []
    left_out = []
    for place, (each, svg) in enumerate(zip(figures, drawn, strict=True)):
        element = inline_svg(svg, f"figure{place}", each.description)
        needed = len(element.encode()) + 2 * len(each.description.encode()) + ROOM
        if size + needed > LARGEST_PAGE:
            left_out.append(each.name)
            found.append(None)
            continue
        size += needed
        found.append((each.title, each.description, Markup(element)))  # noqa: S704  # our own
    if not left_out:
        return found, ""
    count_of = f"{len(left_out)} figures are" if len(left_out) > 1 else "1 figure is"
    return found, f"{count_of} only in the folder {FIGURES}, since this page would be too large: {few_names(left_out)}."


def _write_error(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written ({error.strerror}); choose another folder for the report, or make room")

"""The files of a report: a page, numbers, and figures as PNG and SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.errors import DataError
from lora_lightning.figures.png import png_bytes
from lora_lightning.runs.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"


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
    """Writes the files of a report. Files of an earlier report are replaced, others are left alone.

    Args:
        folder: Where to; created if it does not exist.
        contents: By name; the page should be the last one.
        figures: Are written to the folder `figures` before.
        drawn: Each figure as SVG.

    Raises:
        DataError: If a file cannot be written.
    """
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(folder / FIGURES, error) from error
    pictures = {f"{FIGURES}/{each.name}.png": png_bytes(each.figure) for each in figures}
    pictures |= {f"{FIGURES}/{each.name}.svg": svg.encode() for each, svg in zip(figures, drawn, strict=True)}
    for name, content in (pictures | dict(contents)).items():
        try:
            with atomic_file(folder / name) as file:
                file.write(content)
        except OSError as error:
            raise _write_error(folder / name, error) from error


def _write_error(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written ({error.strerror}); choose another folder for the report, or make room")

"""A report as a page of sections: sentences, tables and figures, in one HTML file that loads nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from lora_lightning.reports.drawing import svg_text
from lora_lightning.reports.files import PAGE, ReportFigure, figures_that_fit, write_report_files


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        headings: Of its columns.
        rows: Cells as texts.
        texts: Numbers of the columns with sentences, from 0; the others hold numbers, except for the first one.
        states: Number of the column with verdicts, which are colored; `None` without one.
        caption: A sentence; may be empty.
        folded: Whether it is hidden until it is asked for; its caption is then what one clicks.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: frozenset[int] = frozenset()
    states: int | None = None
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading.
        paragraphs: Sentences before its tables.
        items: A list after its tables.
        tables: Its tables.
        figures: Its figures.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    tables: tuple[PageTable, ...] = ()
    figures: tuple[ReportFigure, ...] = ()


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Its title.
        subtitle: What it is about, in a line.
        answers: Sentences that come first.
        proven: Whether the answer is proven.
        notes: What was left out.
        sections: In order.
        reading: How to read it; may be empty.
    """

    title: str
    subtitle: str
    answers: tuple[str, ...]
    proven: bool
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    reading: str = ""


def write_page(page: Page, folder: Path, contents: Mapping[str, bytes] = {}) -> Path:  # never changed
    """Writes a page with its figures as files.

    Args:
        page: The page.
        folder: Where to; created if it does not exist.
        contents: Further files by name.

    Returns:
        `report.html`.

    Raises:
        DataError: If a file cannot be written, or one that no report wrote would be replaced.
    """
    figures = [figure for section in page.sections for figure in section.figures]
    drawn = [svg_text(each.figure) for each in figures]
    html = render_page(page, drawn)
    write_report_files(folder, {**contents, PAGE: html.encode()}, figures, drawn)
    return folder / PAGE


@dataclass(frozen=True)
class _Drawn:
    """A section with its figures as elements of the page."""

    section: Section
    figures: list[tuple[str, str, str]] = field(default_factory=list)


def render_page(page: Page, drawn: Sequence[str]) -> str:
    """Renders a page.

    Args:
        page: The page.
        drawn: Each figure of its sections as SVG, in order.

    Returns:
        HTML that loads nothing; figures that would make it larger than 2 MB are left out, which it says.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("lora_lightning.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("page.html.jinja")
    figures = [figure for section in page.sections for figure in section.figures]
    names = [each.name for each in figures]
    bare = template.render(page=page, sections=[_Drawn(section) for section in page.sections], names=names)
    fitting, note = figures_that_fit(figures, drawn, len(bare.encode()))
    left = iter(fitting)
    sections = [
        _Drawn(section, [each for each in islice(left, len(section.figures)) if each is not None])
        for section in page.sections
    ]
    page = replace(page, notes=(*page.notes, note)) if note else page
    return template.render(page=page, sections=sections, names=names)

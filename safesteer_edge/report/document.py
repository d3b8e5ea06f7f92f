"""A report as a document: tables, plots and texts, and how they are written for people.

Whoever measures fills it in. The HTML page has no script, loads nothing from anywhere, and shows
every text escaped and without control characters. Markdown and plain text have no plots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.metrics.statistics import Share, auroc_interval

Range = tuple[float, float]
NOTHING: Final = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """note: under what conditions, in one line. rows: as many cells as the header."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(
        cls,
        title: str,
        note: str,
        rows: Iterable[Any],
        columns: Mapping[str, Callable[[Any], str] | str],
    ) -> Table:
        """A line for each row. columns: by title, what a cell shows of its row, or the key."""
        shown = tuple(
            tuple(
                str(row[cell]) if isinstance(cell, str) else cell(row) for cell in columns.values()
            )
            for row in rows
        )
        return cls(title, note, tuple(columns), shown)

    def to_markdown(self) -> str:
        """Under its title and note."""
        lines = (self.header, ("---",) * len(self.header), *self.rows)
        table = (f"| {' | '.join(_one_line(cell) for cell in line)} |" for line in lines)
        return "\n".join((f"## {self.title}", "", _one_line(self.note), "", *table))

    def to_text(self) -> str:
        """Under its title: the first column to the left, the others to the right."""
        lines = (self.header, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(
                [f"  {line[0]:<{widths[0]}}"]
                + [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
            )
            for line in lines
        )
        return "\n".join((self.title, *aligned))


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """A point with the ends of its interval on either axis; None: without one.

    is_main: drawn larger, and above all others.
    """

    x: float
    y: float
    label: str = ""
    x_range: Range | None = None
    y_range: Range | None = None
    is_main: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name, joined by a line if `joined`. radius: of a point's dot; 0: no dots."""

    name: str
    points: tuple[PlotPoint, ...]
    joined: bool = True
    radius: float = 4


@dataclass(frozen=True, slots=True)
class Plot:
    """Series between two axes, with a legend. What lies outside of a range is drawn on its edge."""

    title: str
    note: str
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    x_range: Range = (0.0, 1.0)
    y_range: Range = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Texts:
    """Long texts as they are, in blocks: by name. Each block is folded away under its title."""

    title: str
    note: str
    blocks: tuple[tuple[str, Mapping[str, str]], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """lines: what comes before the sections, a paragraph each."""

    title: str
    lines: Sequence[str]
    sections: Sequence[Table | Plot | Texts]

    def to_html(self) -> str:
        """The whole page, without sections that have nothing to show."""
        from jinja2 import Environment, StrictUndefined  # takes a while to load

        environment = Environment(
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=lambda value: strip_control_characters(value) if type(value) is str else value,
        )
        source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        return environment.from_string(source).render(report=self)

    def to_markdown(self) -> str:
        """The lines and the tables."""
        tables = [
            part.to_markdown() for part in self.sections if isinstance(part, Table) and part.rows
        ]
        lines = (_one_line(line) for line in self.lines)
        return "\n\n".join((f"# {self.title}", *lines, *tables)) + "\n"


# -- how figures are written: a dash stands for one that there is not ------------------------------


def json_text(value: object) -> str:
    """Figures as a JSON file that people can read too."""
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def shown_number(value: float | None, digits: int, unit: str = "") -> str:
    """The number with so many digits."""
    return NOTHING if value is None or value != value else f"{value:.{digits}f}{unit}"


def number_at(key: str, digits: int, unit: str = "") -> Callable[[Mapping[str, Any]], str]:
    """A column: `shown_number` of this value of a row, which may lack it."""
    return lambda row: shown_number(row.get(key), digits, unit)


def share_at(key: str) -> Callable[[Mapping[str, Any]], str]:
    """A column: `shown_share` of this value of a row."""
    return lambda row: shown_share(row[key])


def shown_share(value: Mapping[str, Any] | None) -> str:
    """count/n (percent, Wilson interval). value: {"count", "n"} at least."""
    if value is None or not value["n"]:
        return NOTHING
    share = Share(value["count"], value["n"])
    low, high = (f"{100 * bound:.0f}" for bound in share.interval)
    return f"{share.count}/{share.n} ({100 * share.value:.0f} %, {low}–{high})"


def shown_spread(value: float | None, bounds: Sequence[float], unit: str = "") -> str:
    """The value, and the ends of its interval in brackets."""
    if value is None:
        return NOTHING
    return f"{value:.3f}{unit} ({bounds[0]:.3f}–{bounds[1]:.3f})"


def shown_auroc(value: float | None, n_positive: int, n_negative: int) -> str:
    """With its 95 % interval."""
    if value is None:
        return NOTHING
    return shown_spread(value, auroc_interval(value, n_positive, n_negative))


def _one_line(text: str) -> str:
    """In a cell of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")

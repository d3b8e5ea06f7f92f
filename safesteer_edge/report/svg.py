"""Plots as SVG text: no script, no font, no file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 190, 20, 50
COLOURS: Final = (
    "#1f6feb",
    "#d4380d",
    "#389e0d",
    "#722ed1",
    "#d48806",
    "#08979c",
    "#c41d7f",
    "#595959",
    "#873800",
)


@dataclass(frozen=True, slots=True)
class PlotPoint:
    """A point with the ends of its interval on either axis; None: without one.

    is_main: drawn larger, and above all others.
    """

    x: float
    y: float
    label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    is_main: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name, joined by a line if `joined`. radius: of a point's dot; 0: no dots."""

    name: str
    points: tuple[PlotPoint, ...]
    joined: bool = True
    radius: float = 4


def plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> str:
    """A plot with axes, a legend, and titles that show where the pointer rests."""
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="sans-serif" font-size="12"><title>{escape(y_label)} against '
        f"{escape(x_label)}</title>",
        *_axes(x_label, y_label, x_range, y_range),
    ]
    above: list[str] = []
    for i, each in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        parts += _drawn(each, colour, x_range, y_range)
        above += [
            _dot(_x(p.x, x_range), _y(p.y, y_range), p, each.radius + 2, colour)
            for p in each.points
            if p.is_main
        ]
        y = _TOP + 12 + 18 * i
        x = _WIDTH - _RIGHT + 14
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 10}" y="{y}" fill="currentColor">{escape(each.name)}</text>')
    return "".join([*parts, *above]) + "</svg>"


def _axes(
    x_label: str, y_label: str, x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[str]:
    parts: list[str] = []
    for i in range(6):
        share = i / 5
        x_value = x_range[0] + share * (x_range[1] - x_range[0])
        y_value = y_range[0] + share * (y_range[1] - y_range[0])
        x, y = _x(x_value, x_range), _y(y_value, y_range)
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        line = 'stroke="currentColor" stroke-opacity="0.15"'
        parts += [
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" {line}/>',
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" {line}/>',
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="currentColor">'
            f"{_tick(x_value)}</text>",
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">'
            f"{_tick(y_value)}</text>",
        ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle" fill="currentColor">'
        f"{escape(x_label)}</text>"
    )
    height = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {height}) rotate(-90)" text-anchor="middle" '
        f'fill="currentColor">{escape(y_label)}</text>'
    )
    return parts


def _drawn(
    series: Series, colour: str, x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[str]:
    parts: list[str] = []
    spots = [(_x(p.x, x_range), _y(p.y, y_range), p) for p in series.points]
    if series.joined and len(spots) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
    for x, y, point in spots:
        if point.x_range is not None:
            low, high = (_x(v, x_range) for v in point.x_range)
            parts.append(_whisker(low, y, high, y, colour))
        if point.y_range is not None:
            low, high = (_y(v, y_range) for v in point.y_range)
            parts.append(_whisker(x, low, x, high, colour))
        if series.radius and not point.is_main:
            parts.append(_dot(x, y, point, series.radius, colour))
    return parts


def _dot(x: float, y: float, point: PlotPoint, radius: float, colour: str) -> str:
    title = f"<title>{escape(point.label)}</title>" if point.label else ""
    ring = ' stroke="#fff" stroke-width="1.5"' if point.is_main else ""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"{ring}>{title}</circle>'
    )


def _whisker(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        'stroke-opacity="0.4"/>'
    )


def _x(value: float, bounds: tuple[float, float]) -> float:
    return _LEFT + _share(value, bounds) * (_WIDTH - _RIGHT - _LEFT)


def _y(value: float, bounds: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - _share(value, bounds) * (_HEIGHT - _BOTTOM - _TOP)


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _tick(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.0f}"

"""Bar charts as SVG, written by hand: nothing to install, readable in any browser and in diffs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from typing import Final

_COLOURS: Final = {
    "ours": "#2a6fbb",
    "go": "#e0872b",
    "go-separate": "#f0b878",
    "grpc-aio": "#6aa84f",
    "grpclib": "#a9cf95",
}
_OTHER = "#888888"
_LABEL_WIDTH = 230
_BAR_WIDTH = 460
_VALUE_WIDTH = 110
_BAR_HEIGHT = 16
_GROUP_GAP = 12
_TOP = 44


@dataclass(frozen=True, slots=True)
class Bar:
    """One server's figure."""

    name: str
    value: float
    low: float
    high: float


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(content)}</text>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def bars(title: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """Horizontal bars in groups, on a logarithmic scale so that slow peers remain visible."""
    everything = [bar for group in groups.values() for bar in group if bar.value > 0]
    lowest = min((min(bar.low, bar.value) or bar.value for bar in everything), default=1.0)
    highest = max((bar.high for bar in everything), default=10.0)
    floor = log10(lowest) - 0.3
    span = max(log10(highest) - floor, 0.1)

    def width(value: float) -> float:
        return _BAR_WIDTH * max(0.0, (log10(value) - floor) / span) if value > 0 else 0.0

    height = _TOP + sum(_BAR_HEIGHT * len(group) + _GROUP_GAP for group in groups.values()) + 10
    total = _LABEL_WIDTH + _BAR_WIDTH + _VALUE_WIDTH
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" '
            f'viewBox="0 0 {total} {height}" font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{total}" height="{height}" fill="white"/>',
        _text(10, 20, title, weight="bold"),
        _text(10, 35, "logarithmic scale"),
    ]
    y = _TOP
    for label, group in groups.items():
        parts.append(_text(10, y + _BAR_HEIGHT - 4, label))
        for bar in group:
            colour = _COLOURS.get(bar.name, _OTHER)
            parts.append(
                f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{width(bar.value):.1f}" '
                f'height="{_BAR_HEIGHT - 2}" fill="{colour}"/>'
            )
            middle = y + (_BAR_HEIGHT - 2) / 2
            parts.append(
                f'<line x1="{_LABEL_WIDTH + width(bar.low):.1f}" y1="{middle}" '
                f'x2="{_LABEL_WIDTH + width(bar.high):.1f}" y2="{middle}" stroke="black"/>'
            )
            caption = f"{_number(bar.value)}  {bar.name}"
            parts.append(_text(_LABEL_WIDTH + width(bar.high) + 6, y + _BAR_HEIGHT - 5, caption))
            y += _BAR_HEIGHT
        y += _GROUP_GAP
    parts.append("</svg>")
    return "\n".join(parts) + "\n"

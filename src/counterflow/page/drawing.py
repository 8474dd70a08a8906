"""Points and intervals as SVG that fits any width, with a name under the pointer and words for those who do not see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 480, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 44
GREY, BLUE, ORANGE = "#8a8a8a", "#0072B2", "#D55E00"  # Okabe and Ito
_TICKS = 6


@dataclass(frozen=True)
class Points:
    """One group of points, drawn alike."""

    name: str
    x: NDArray
    y: NDArray
    colour: str
    shape: str = "circle"  # circle | triangle | square
    titles: Sequence[str] = ()  # one per point: what the pointer shows
    mean: bool = False  # mark it


@dataclass(frozen=True)
class Frame:
    """From values to places in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, x: NDArray, y: NDArray) -> Frame:
        """A little larger than all values."""
        return cls(_padded(x), _padded(y))

    def at(self, x: NDArray | float, y: NDArray | float) -> tuple[NDArray, NDArray]:
        """Places, to a tenth of a unit."""
        across = LEFT + (np.asarray(x, dtype=float) - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (np.asarray(y, dtype=float) - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return across.round(1), down.round(1)


def scatter(
    groups: Sequence[Points],
    *,
    alt: str,
    x_label: str,
    y_label: str,
    names: Sequence[tuple[float, float, str]] = (),
    line: tuple[float, str] | None = None,
    through_zero: bool = False,
) -> Markup:
    """Groups of points in one frame.

    Parameters
    ----------
    alt
        What is to be seen, in words.
    names
        Texts beside places (x, y, text).
    line
        A horizontal line and what it says.
    through_zero
        Draw the vertical line at 0.
    """
    x, y = (np.concatenate([getattr(group, axis) for group in groups]) for axis in ("x", "y"))
    if line is not None:
        y = np.append(y, [line[0], 0.0])
    frame = Frame.around(x, y)
    parts = [_axes(frame, x_label, y_label)]
    if through_zero:
        across = frame.at(0.0, frame.y[0])[0]
        parts.append(f'<path d="M{across} {TOP}V{HEIGHT - BOTTOM}" stroke="#c3ccd4"/>')
    if line is not None:
        down = frame.at(frame.x[0], line[0])[1]
        parts.append(f'<path d="M{LEFT} {down}H{WIDTH - RIGHT}" stroke="#555" stroke-dasharray="4 3"/>')
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, float(down) - 4, line[1], 11))
    parts += [_group(group, frame) for group in groups if len(group.x)]
    parts += [_mean(group, frame) for group in groups if group.mean and len(group.x)]
    parts.append(_names(names, frame))
    return _svg("".join(parts), alt)


@dataclass(frozen=True)
class Line:
    """Values against steps."""

    name: str
    x: NDArray
    y: NDArray
    colour: str
    dashed: bool = False


def lines(curves: Sequence[Line], *, alt: str, x_label: str, y_label: str) -> Markup:
    """Curves in one frame, each with its name at its end."""
    x, y = (np.concatenate([getattr(curve, axis) for curve in curves]) for axis in ("x", "y"))
    frame = Frame.around(x, y)
    parts = [_axes(frame, x_label, y_label)]
    for curve in curves:
        across, down = frame.at(curve.x, curve.y)
        path = "L".join(f"{a} {d}" for a, d in zip(across, down, strict=True))
        dashes = ' stroke-dasharray="6 4"' if curve.dashed else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{curve.colour}" stroke-width="2.2"{dashes}/>')
        end = f'x="{across[-1] - 4}" y="{down[-1] - 8}" text-anchor="end" font-size="12"'
        parts.append(f'<text {end} fill="{curve.colour}">{escape(curve.name)}</text>')
    return _svg("".join(parts), alt)


def intervals(names: Sequence[str], value: NDArray, lo: NDArray, hi: NDArray, rival: NDArray, *, alt: str, x_label: str) -> Markup:
    """One row per name: a value, its interval, and what a rival says (open square); nan is not drawn."""
    height = TOP + BOTTOM + 17 * len(names)
    every = np.concatenate([value, lo, hi, rival, [0.0]])
    low, high = _padded(every[np.isfinite(every)])
    left = 118
    scale = (WIDTH - left - RIGHT) / (high - low)

    def at(x: float) -> float:
        return round(left + (x - low) * scale, 1)

    parts = [f'<path d="M{at(0.0)} {TOP}V{height - BOTTOM}" stroke="#c3ccd4"/>']
    for tick in _ticks(low, high):
        parts.append(_tick_below(at(tick), tick, height))
    for row, name in enumerate(names):
        y = TOP + 17 * row + 9
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" font-size="12">{escape(name[:16])}</text>')
        said = f"{name}: {value[row]:+.2f}"
        if np.isfinite(lo[row]):
            said += f", interval {lo[row]:+.2f} to {hi[row]:+.2f}"
            parts.append(f'<path d="M{at(lo[row])} {y}H{at(hi[row])}" stroke="{ORANGE}" stroke-width="2.5" stroke-opacity=".55"/>')
        if np.isfinite(rival[row]):
            said += f"; the simple rule {rival[row]:+.2f}"
            parts.append(f'<rect x="{at(rival[row]) - 3.5}" y="{y - 3.5}" width="7" height="7" fill="#fff" stroke="#333"/>')
        parts.append(f'<circle cx="{at(value[row])}" cy="{y}" r="4.5" fill="{ORANGE}"><title>{escape(said)}</title></circle>')
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 8, x_label))
    return _svg("".join(parts), alt, height)


def plate(wells: Sequence[tuple[str, str, float]], *, alt: str) -> Markup:
    """A 96-well plate: (well, what is in it, how dark from 0 to 1)."""
    size, left, top = 37, 26, 22
    parts = [_text(left + size * (i + 0.5), 15, str(i + 1), 12) for i in range(12)]
    parts += [_text(12, top + size * (i + 0.5) + 4, letter, 12) for i, letter in enumerate("ABCDEFGH")]
    parts += [
        f'<circle cx="{left + size * (i % 12 + 0.5)}" cy="{top + size * (i // 12 + 0.5)}" r="15" fill="none" stroke="#cfd8e0"/>'
        for i in range(96)
    ]
    for i, (well, what, dark) in enumerate(wells[:96]):
        x, y = left + size * (i % 12 + 0.5), top + size * (i // 12 + 0.5)
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="15" fill="{BLUE}" fill-opacity="{0.08 + 0.9 * min(max(dark, 0.0), 1.0):.2f}" stroke="{BLUE}">'
            f"<title>{escape(well)}: {escape(what)}</title></circle>"
        )
    return _svg("".join(parts), alt, top + 8 * size + 8)


def _group(group: Points, frame: Frame) -> str:
    across, down = frame.at(group.x, group.y)
    if group.titles:
        marks = (
            f'<circle cx="{x}" cy="{y}" r="4"><title>{escape(title)}</title></circle>'
            for x, y, title in zip(across, down, group.titles, strict=True)
        )
        return f'<g fill="{group.colour}" fill-opacity=".75">{"".join(marks)}</g>'
    if group.shape == "triangle":
        path = "".join(f"M{x} {y - 3.6:.1f}l3.4 6h-6.8z" for x, y in zip(across, down, strict=True))
        return f'<path d="{path}" fill="{group.colour}" fill-opacity=".6"/>'
    cap = "round" if group.shape == "circle" else "square"
    path = "".join(f"M{x} {y}h0" for x, y in zip(across, down, strict=True))
    return f'<path d="{path}" stroke="{group.colour}" stroke-opacity=".55" stroke-width="5" stroke-linecap="{cap}"/>'


def _mean(group: Points, frame: Frame) -> str:
    x, y = frame.at(float(np.mean(group.x)), float(np.mean(group.y)))
    title = f"<title>mean of {escape(group.name)}</title>"
    if group.shape == "triangle":
        return f'<path d="M{x} {y - 9:.1f}l8.5 15h-17z" fill="{group.colour}" stroke="#000">{title}</path>'
    if group.shape == "square":
        return f'<rect x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14" fill="{group.colour}" stroke="#000">{title}</rect>'
    return f'<circle cx="{x}" cy="{y}" r="8" fill="{group.colour}" stroke="#000">{title}</circle>'


def _names(names: Sequence[tuple[float, float, str]], frame: Frame) -> str:
    """Beside their places, one that would lie on another left out."""
    drawn: list[tuple[float, float]] = []
    parts = []
    for x, y, text in names:
        across, down = (float(value) for value in frame.at(x, y))
        if any(abs(across - a) < 7 * len(text) + 12 and abs(down - d) < 13 for a, d in drawn):
            continue
        drawn.append((across, down))
        before = across > WIDTH - RIGHT - 7.5 * len(text) - 8
        at, anchor = (across - 6, "end") if before else (across + 6, "start")
        parts.append(f'<text x="{at:.1f}" y="{down + 4:.1f}" text-anchor="{anchor}" font-size="11.5">{escape(text)}</text>')
    return "".join(parts)


def _axes(frame: Frame, x_label: str, y_label: str) -> str:
    parts = [f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#555"/>']
    for tick in _ticks(*frame.x):
        parts.append(_tick_below(float(frame.at(tick, frame.y[0])[0]), tick, HEIGHT))
    for tick in _ticks(*frame.y):
        y = float(frame.at(frame.x[0], tick)[1])
        parts.append(f'<path d="M{LEFT - 4} {y}h4" stroke="#555"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end" font-size="11">{tick:g}</text>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle" font-size="12.5">{escape(y_label)}</text>')
    return "".join(parts)


def _tick_below(x: float, value: float, height: float) -> str:
    return f'<path d="M{x} {height - BOTTOM}v4" stroke="#555"/>' + _text(x, height - BOTTOM + 17, f"{value:g}", 11)


def _text(x: float, y: float, text: str, size: float = 12.5) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="{size}">{escape(text)}</text>'


def _svg(content: str, alt: str, height: float = HEIGHT) -> Markup:
    from markupsafe import Markup

    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {WIDTH} {height}" fill="#1c2733" font-family="system-ui,sans-serif">'
    return Markup(f"{head}{content}</svg>")


def _padded(values: NDArray) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = 0.05 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`."""
    raw = (high - low) / _TICKS
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(round_one * power for round_one in (1, 2, 5, 10) if round_one * power >= raw)
    first = np.ceil(low / step)
    digits = max(0, -int(np.floor(np.log10(step))))
    return [round(float(first + i) * step, digits) + 0.0 for i in range(int((high - first * step) / step) + 1)]

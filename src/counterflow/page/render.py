"""Templates to HTML. Every value is escaped, unless it is marked as markup of ours."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """The page `template` of the folder ``templates``."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters["number"] = number
    found.filters["percent"] = percent
    return found


def number(value: float, digits: int = 3) -> str:
    """A number for people; n/a where there is none."""
    return "n/a" if value is None or value != value else f"{value:,.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)


def percent(value: float) -> str:
    """A share in per cent."""
    return "n/a" if value is None or value != value else f"{100 * value:.0f} %"

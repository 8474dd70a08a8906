"""What somebody filled in, read from the fields of a form and checked against what the model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from counterflow.data.labels import parts as condition_parts
from counterflow.effects.signatures import pasted_genes
from counterflow.errors import ConfigError, near

if TYPE_CHECKING:
    from counterflow.model import CounterFlow

Fields = Mapping[str, Sequence[str]]

ANY = ""  # of a column that need not be chosen
INTERVALS = (0.5, 0.8, 0.9, 0.95)
MOST_CELLS = 20_000
SLOTS = 3  # perturbations that can be put together


@dataclass(frozen=True)
class Choices:
    """What can be filled in."""

    perturbations: tuple[str, ...]
    conditions: tuple[str, ...]  # measured ones, as they are written
    doses: tuple[float, ...]  # measured ones; empty: the model knows no doses
    times: tuple[float, ...]
    columns: dict[str, tuple[str, ...]]  # column of the control cells -> its levels
    matched: tuple[str, ...]  # columns of which one level must be chosen

    @classmethod
    def of(cls, model: CounterFlow, obs: pd.DataFrame) -> Choices:
        """From a model and the columns of the control cells that its answers start from."""
        setup, measured = model.setup, [spec for spec in model.vocabulary.conditions if spec.parts]
        keys = list(dict.fromkeys([*setup.match_keys, *setup.covariate_keys]))
        return cls(
            tuple(sorted(model.vocabulary.entities)),
            tuple(sorted({setup.delimiter.join(spec.parts) for spec in measured})),
            tuple(sorted({dose for spec in measured for dose in spec.doses})) if setup.dose_key else (),
            tuple(sorted({spec.time for spec in measured})) if setup.time_key else (),
            {key: tuple(sorted(obs[key].astype(str).unique())) for key in keys},
            tuple(setup.match_keys),
        )


@dataclass(frozen=True)
class EffectQuestion:
    """What would this do to these cells?"""

    parts: tuple[str, ...]
    dose: float | None
    time: float | None
    levels: tuple[tuple[str, str], ...]  # column -> level of the control cells
    interval: float
    n_cells: int

    @classmethod
    def read(cls, fields: Fields, choices: Choices, delimiter: str, control: str) -> EffectQuestion:
        """From the form.

        Raises
        ------
        ConfigError
            Saying what to fill in, or what is not known.
        """
        given = [text for slot in range(1, SLOTS + 1) if (text := one(fields, f"p{slot}"))]
        if not given:
            raise ConfigError("choose a perturbation: none is filled in")
        named = condition_parts(delimiter.join(given), delimiter, control)
        if not named:
            raise ConfigError(f"{control!r} is the control: choose something that is done to the cells")
        if unknown := [name for name in named if name not in choices.perturbations]:
            raise ConfigError(f"this model knows no perturbation {unknown[0]!r}: {near(unknown[0], choices.perturbations)}")
        if len(set(named)) < len(named) and delimiter.join(named) not in choices.conditions:
            raise ConfigError(f"{next(name for name in named if named.count(name) > 1)!r} is chosen twice: choose each perturbation once")
        return cls(
            named,
            _amount(fields, "dose", choices.doses),
            _amount(fields, "time", choices.times),
            _with_matched(levels_of(fields, choices), choices),
            _interval(one(fields, "interval")),
            _whole(one(fields, "cells") or "256", "cells", MOST_CELLS),
        )


@dataclass(frozen=True)
class RankQuestion:
    """What should be done to move these cells there?"""

    up: tuple[str, ...]
    down: tuple[str, ...]
    like: str  # a measured condition
    start: tuple[tuple[str, str], ...]  # from these cells ...
    end: tuple[tuple[str, str], ...]  # ... towards these
    levels: tuple[tuple[str, str], ...]
    most_parts: int
    dose: float | None
    time: float | None

    @classmethod
    def read(cls, fields: Fields, choices: Choices) -> RankQuestion:
        """From the form: exactly one way of saying where to go.

        Raises
        ------
        ConfigError
            Saying what to fill in.
        """
        up, down = (tuple(dict.fromkeys(pasted_genes(one(fields, name)))) for name in ("up", "down"))
        like = one(fields, "like")
        start, end = levels_of(fields, choices, "from_"), levels_of(fields, choices, "to_")
        ways = [bool(up or down), bool(like), bool(start or end)]
        if sum(ways) != 1:
            many = "only one of them" if any(ways) else "one of them"
            raise ConfigError(f"say where the cells shall go, in {many}: genes that rise or fall, a measured perturbation, or other cells")
        if like and like not in choices.conditions:
            raise ConfigError(f"{like!r} was not measured in training: {near(like, choices.conditions)}")
        if (start or end) and (not start or not end or start == end):
            raise ConfigError("choose two different kinds of cells, one to start from and one to go towards")
        return cls(
            up, down, like, start, end, levels_of(fields, choices), 1 if one(fields, "parts") == "1" else 2,
            _amount(fields, "dose", choices.doses, needed=False), _amount(fields, "time", choices.times, needed=False),
        )  # fmt: skip


def one(fields: Fields, name: str) -> str:
    """The text of a field, without blanks around it."""
    return (fields.get(name) or [""])[0].strip()


def levels_of(fields: Fields, choices: Choices, prefix: str = "in_") -> tuple[tuple[str, str], ...]:
    """Columns of which a level was chosen."""
    found = []
    for key, levels in choices.columns.items():
        level = one(fields, prefix + key)
        if level != ANY and level not in levels:
            raise ConfigError(f"no control cell has {key} = {level!r}: {near(level, levels)}")
        found += [(key, level)] if level != ANY else []
    return tuple(found)


def _with_matched(chosen: tuple[tuple[str, str], ...], choices: Choices) -> tuple[tuple[str, str], ...]:
    """The first level of a column of which one must be chosen, where none was: the one that the form shows."""
    given = dict(chosen)
    first = {key: choices.columns[key][0] for key in choices.matched}
    return tuple((key, given.get(key, first.get(key, ""))) for key in choices.columns if key in given or key in first)


def _amount(fields: Fields, name: str, known: Sequence[float], *, needed: bool = True) -> float | None:
    """A dose or a time, for models that know them."""
    if not known:
        return None
    text = one(fields, name)
    if not text and not needed:
        return None
    try:
        value = float(text or max(known))
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ConfigError(f"{name} {text!r} is not a number above 0; measured were {', '.join(f'{level:g}' for level in known)}")
    return value


def _interval(text: str) -> float:
    if text and text not in map(str, INTERVALS):
        raise ConfigError(f"interval {text!r}: choose one of {', '.join(map(str, INTERVALS))}")
    return float(text or 0.9)


def _whole(text: str, name: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise ConfigError(f"{name} {text!r}: give a whole number from 1 to {most:,}")
    return int(text)

"""What a split is: an assignment of conditions to train, val and test, kept in a small JSON file that every method reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from counterflow.data.labels import canonical
from counterflow.errors import DataError, near

SETS = ("train", "val", "test")
FORMAT = "counterflow split 1"
SEPARATOR = " | "  # between the columns of one condition, as in "KLF1 | K562"


@dataclass(frozen=True)
class Keys:
    """The columns of `obs` that say what was done to a cell, and where; the arguments of `setup_anndata` of the same names."""

    perturbation_key: str
    control: str
    delimiter: str = "+"
    context_key: str | Sequence[str] = ()  # cell type, donor, line ...: several columns make one joint context
    dose_key: str | None = None
    time_key: str | None = None

    def __post_init__(self) -> None:
        context = (self.context_key,) if isinstance(self.context_key, str) else tuple(self.context_key)
        object.__setattr__(self, "context_key", context)


@dataclass(frozen=True)
class Split:
    """An assignment of conditions to train, val and test.

    Attributes
    ----------
    name, seed, arguments
        How it was built: the builder's name and arguments.
    keys
        The columns it reads.
    unit
        The parts of a condition that decide its set, among perturbation, context, dose, time; or ("cell",).
    assignment
        Condition (its unit joined by " | "), or cell name where the unit is the cell -> "train" | "val" | "test".
    controls
        Control cells held back, by name -> "val" | "test"; all others are training cells.
    data_hash
        `data_hash` of the table it was built on.
    """

    name: str
    seed: int
    keys: Keys
    unit: tuple[str, ...]
    assignment: dict[str, str]
    data_hash: str
    controls: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, object] = field(default_factory=dict)

    def labels(self, obs: pd.DataFrame) -> np.ndarray:
        """The set ("train", "val" or "test") of each row of `obs`, which may hold other cells of the same conditions.

        Raises
        ------
        DataError
            If a column is missing, or `obs` has a condition that the split does not know.
        """
        table = condition_table(obs, self.keys)
        result = np.array([self.controls.get(str(name), "train") for name in obs.index], dtype=object)
        perturbed = ~table["is_control"].to_numpy()
        units = unit_names(table[perturbed], self.unit)
        known = units.map(self.assignment)
        if known.isna().any():
            unknown = units[known.isna()].iloc[0]
            raise DataError(
                f"the split {self.name!r} does not know {'the ' + ' and '.join(self.unit)} {unknown!r} ({known.isna().sum()} cells): "
                f"{near(unknown, self.assignment)} It was built on other data: build it again, or leave these cells out."
            )
        result[perturbed] = known
        return result.astype(str)

    def verify(self, obs: pd.DataFrame) -> None:
        """Raise DataError if `obs` is not the table the split was built on: other conditions, or other numbers of cells."""
        found = data_hash(obs, self.keys)
        if found != self.data_hash:
            raise DataError(
                f"the split {self.name!r} was built on other data (hash {self.data_hash[:12]}, here {found[:12]}): conditions or "
                "numbers of cells differ. Use the file it was built on, or build it again; scores on the two are not comparable."
            )

    def to_json(self) -> str:
        """The split as JSON text; `from_json` reads it back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Split:
        """A split from JSON text; anything unknown, missing or of the wrong kind is refused."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:  # not JSON; numbers and nesting without end
            raise DataError(f"not a split file: {error}") from None
        names = [f.name for f in fields(cls)]
        _check_names("a split file", given, ["format", *names])
        if given.pop("format") != FORMAT:
            raise DataError("not a split file of this version: 'format' must be " + repr(FORMAT))
        _check_names("'keys' of a split file", given["keys"], [f.name for f in fields(Keys)])
        _check_keys(given["keys"])
        for name, kind in (("name", str), ("seed", int), ("data_hash", str), ("unit", list), ("arguments", dict)):
            if type(given[name]) is not kind:
                raise DataError(f"{name!r} of a split file must be a JSON {kind.__name__}; got {given[name]!r}")
        axes = ("perturbation", "context", "dose", "time", "cell")
        for axis in given["unit"]:
            if axis not in axes:
                raise DataError(f"'unit' of a split file has {axis!r}: {near(axis, axes)}")
        for name in ("assignment", "controls"):
            bad = sorted({str(where) for where in _mapping(name, given[name]).values()} - set(SETS))
            if bad:
                raise DataError(f"{name!r} of a split file has the set {bad[0]!r}: {near(bad[0], SETS)}")
        return cls(**{**given, "keys": Keys(**given["keys"]), "unit": tuple(given["unit"])})

    def save(self, path: str | Path) -> None:
        """Write the split to `path` (JSON)."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read a split written by `save`."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read the split file {str(path)!r}: {error.strerror}") from None
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from None


def _check_keys(keys: dict[str, object]) -> None:
    for name, value in keys.items():
        if name == "context_key":
            good = isinstance(value, str) or (isinstance(value, list) and all(isinstance(key, str) for key in value))
        else:
            good = (isinstance(value, str) and bool(value)) or (value is None and name in ("dose_key", "time_key"))
        if not good:
            raise DataError(f"{name!r} of a split file must be the name of a column, or text; got {value!r}")


def _check_names(what: str, given: object, expected: Sequence[str]) -> None:
    names = _mapping(what, given)
    for name in names:
        if name not in expected:
            raise DataError(f"{what} has an unknown entry {name!r}: {near(name, expected)}")
    for name in expected:
        if name not in names:
            raise DataError(f"{what} lacks the entry {name!r}")


def _mapping(what: str, given: object) -> dict:
    if not isinstance(given, dict):
        raise DataError(f"{what} must be a JSON object; got {type(given).__name__}")
    return given


def condition_table(obs: pd.DataFrame, keys: Keys) -> pd.DataFrame:
    """What was done to each cell: perturbation (canonical), context, dose, time as strings, and `is_control`; indexed like `obs`.

    Raises
    ------
    DataError
        If a key column is missing or has empty entries, or a dose or time is not a number.
    """
    for key in (keys.perturbation_key, *keys.context_key, keys.dose_key, keys.time_key):
        if key is None:
            continue
        if key not in obs:
            raise DataError(f"obs has no column {key!r}: {near(key, obs.columns)}")
        if obs[key].isna().any():
            raise DataError(f"obs[{key!r}] is empty for {obs[key].isna().sum()} of {len(obs)} cells: fill it in or drop these cells")
    table = pd.DataFrame(index=obs.index)
    table["perturbation"] = _map_levels(obs[keys.perturbation_key], lambda label: canonical(str(label), keys.delimiter, keys.control))
    table["is_control"] = (table["perturbation"] == keys.control).to_numpy()
    contexts = [_map_levels(obs[key], str) for key in keys.context_key]
    table["context"] = _join(contexts) if contexts else ""
    for name, key in (("dose", keys.dose_key), ("time", keys.time_key)):  # in this order: it is part of the hash
        if key is not None:
            table[name] = _map_levels(obs[key], partial(_number, name))
    return table


def data_hash(obs: pd.DataFrame, keys: Keys) -> str:
    """SHA-256 of the sorted table of conditions and contexts with their numbers of cells; the order of cells does not matter."""
    table = condition_table(obs, keys).drop(columns="is_control")
    counts = table.value_counts(sort=False).sort_index()
    text = "\n".join("\t".join([*map(str, level if isinstance(level, tuple) else (level,)), str(n)]) for level, n in counts.items())
    return hashlib.sha256(("\t".join(table.columns) + "\n" + text).encode()).hexdigest()


def _map_levels(column: pd.Series, function: Callable[[object], str]) -> pd.Series:
    """`function` of each entry, called once per level: screens have millions of cells and thousands of conditions."""
    codes, levels = pd.factorize(column)
    return pd.Series(np.array([function(level) for level in levels], dtype=object)[codes], index=column.index, dtype=object)


def _number(name: str, value: object) -> str:
    try:
        return f"{float(value):.12g}"  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"the {name} {value!r} is not a number: give the {name} column as numbers in one unit") from None


def unit_names(table: pd.DataFrame, unit: Sequence[str]) -> pd.Series:
    """The name under which a split knows each row of a `condition_table`."""
    if tuple(unit) == ("cell",):
        return pd.Series(table.index.astype(str), index=table.index, dtype=object)
    return _join([table[name] for name in unit])


def _join(columns: list[pd.Series]) -> pd.Series:
    joined = columns[0]
    for column in columns[1:]:
        joined = joined + SEPARATOR + column
    return joined

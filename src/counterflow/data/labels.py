"""Condition labels: one string per cell that names what was done to it, such as "KLF1+MAP2K6".

Every other part works on the parts of a label, so that "B+A", "A + B" and "A+B" are one condition everywhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd


def parts(label: str, delimiter: str = "+", control: str = "control") -> tuple[str, ...]:
    """The perturbations in `label`, sorted; the empty tuple for the control.

    Whitespace around a part is dropped, and so are empty parts and parts equal to `control` ("A+control" is A alone, as guide-pair
    libraries write it). A part given twice is kept twice: two guides against one gene are not one guide.

    >>> parts("B + A")
    ('A', 'B')
    >>> parts("A+control")
    ('A',)
    """
    if is_control(label, control):
        return ()
    stripped = (part.strip() for part in str(label).split(delimiter))
    return tuple(sorted(part for part in stripped if part and part != control.strip()))


def canonical(label: str, delimiter: str = "+", control: str = "control") -> str:
    """The one spelling of `label`: parts sorted and joined by `delimiter`, or `control` when nothing is left."""
    return delimiter.join(parts(label, delimiter, control)) or control


def is_control(label: str, control: str = "control") -> bool:
    """Whether the whole of `label` is the control label (which may itself contain the delimiter, as in "ctrl+ctrl")."""
    return str(label).strip() == control.strip()


def distinct_rows(obs: pd.DataFrame, keys: Sequence[Hashable]) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The distinct rows of some columns as text, and which of them every row is (int32)."""
    rows: list[tuple[str, ...]] = [()]
    codes = np.zeros(len(obs), dtype=np.int32)
    for key in keys:
        level, levels = pd.factorize(obs[key], use_na_sentinel=False)
        text, words = pd.factorize(pd.Series(levels).astype(str))
        kind: type[np.signedinteger] = np.int32 if len(rows) * len(words) < 2**31 else np.int64  # of pairs: half the memory, nearly always
        pair_of_row = codes.astype(kind)
        pair_of_row *= len(words)
        pair_of_row += text.astype(kind)[level]
        del level
        both, pairs = pd.factorize(pair_of_row)
        rows = [(*rows[pair // len(words)], str(words[pair % len(words)])) for pair in pairs.tolist()]
        codes = both.astype(np.int32)
    return rows, codes


def texts(column: pd.Series) -> pd.Series:
    """A column as text, without the names of its rows; equal values are one object: eight bytes, not a text for each."""
    rows, codes = distinct_rows(pd.DataFrame({0: column}), [0])
    return pd.Series(np.array([text for (text,) in rows], dtype=object)[codes], name=column.name)

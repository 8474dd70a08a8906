"""Names of millions of cells in the bytes of their letters: a Python text takes some 60 bytes more, each.

`Names` is a pandas array of texts that are all there (no missing ones), so that it can be the index of ``obs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray, ExtensionDtype

_FEW = 0.1  # of the names: fewer do not hold on to the letters of all
_AT_ONCE = 2**16  # names that are read, or made into texts, together


class NamesType(ExtensionDtype):
    """The type of `Names`."""

    name = "counterflow-names"
    type = str
    kind = "U"  # by which AnnData knows that these are texts
    na_value = None

    @classmethod
    def construct_array_type(cls) -> type[Names]:
        """The array of this type."""
        return Names


class Names(ExtensionArray):
    """Texts, one after the other in one buffer of UTF-8.

    Parameters
    ----------
    letters
        All bytes.
    begin
        Where each text begins, and the end of the last one.
    at
        Which of these texts are meant, n of them; None for all.
    """

    def __init__(self, letters: NDArray[np.uint8], begin: NDArray, at: NDArray[np.integer] | None = None) -> None:
        self._letters, self._begin, self._at = letters, begin, at

    @classmethod
    def of(cls, texts: Sequence[Any] | NDArray, n: int) -> Names:
        """From something that gives slices of texts or of bytes, such as a data set of an HDF5 file."""
        letters, lengths = [], [np.zeros(1, dtype=np.int64)]
        for start in range(0, n, _AT_ONCE):
            some = [text if isinstance(text, bytes) else str(text).encode() for text in texts[start : start + _AT_ONCE]]
            lengths.append(np.fromiter(map(len, some), dtype=np.int64, count=len(some)))
            letters.append(np.frombuffer(b"".join(some), dtype=np.uint8))
        joined = np.concatenate(letters) if letters else np.empty(0, dtype=np.uint8)
        begin = np.cumsum(np.concatenate(lengths))
        return cls(joined, begin.astype(np.uint32) if begin[-1] < 2**32 else begin)

    @classmethod
    def _from_sequence(cls, scalars: Any, *, dtype: Any = None, copy: bool = False) -> Names:
        del dtype, copy
        return scalars if isinstance(scalars, Names) else cls.of(scalars, len(scalars))

    @classmethod
    def _from_factorized(cls, values: Any, original: Names) -> Names:
        del original
        return cls.of(values, len(values))

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[Names]) -> Names:
        parts = [one._alone() for one in to_concat]
        begin = np.cumsum(np.concatenate([[0], *(np.diff(part._begin.astype(np.int64)) for part in parts)]))
        return cls(np.concatenate([part._letters for part in parts]), begin)

    @property
    def dtype(self) -> NamesType:
        """`NamesType`."""
        return NamesType()

    @property
    def nbytes(self) -> int:
        """Bytes of letters and places."""
        return self._letters.nbytes + self._begin.nbytes + (0 if self._at is None else self._at.nbytes)

    def __len__(self) -> int:
        return len(self._begin) - 1 if self._at is None else len(self._at)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, int | np.integer):
            at = int(item) + (len(self) if item < 0 else 0)
            if not 0 <= at < len(self):
                raise IndexError(f"position {item} of {len(self)} names")
            at = at if self._at is None else int(self._at[at])
            return self._letters[int(self._begin[at]) : int(self._begin[at + 1])].tobytes().decode()
        if isinstance(item, slice) and item.step in (None, 1):
            start, stop, _ = item.indices(len(self))
            return self._slice(start, max(start, stop))
        return self._take(np.arange(len(self))[pd.api.indexers.check_array_indexer(self, item)])

    def __setitem__(self, key: Any, value: Any) -> None:
        texts = np.asarray(self)
        texts[key] = value
        new = Names.of(texts, len(texts))
        self._letters, self._begin, self._at = new._letters, new._begin, None

    def _slice(self, start: int, stop: int) -> Names:
        if self._at is not None:
            return Names(self._letters, self._begin, self._at[start:stop])
        return Names(self._letters, self._begin[start : stop + 1])

    def _take(self, chosen: NDArray) -> Names:
        at = chosen if self._at is None else self._at[chosen]
        some = Names(self._letters, self._begin, at.astype(np.int32 if len(self._begin) < 2**31 else np.int64))
        return some._alone() if len(at) < _FEW * len(self._begin) else some

    def _alone(self) -> Names:
        """The same names without the letters of others."""
        texts = list(self)
        return Names.of(texts, len(texts))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._texts(start, min(start + _AT_ONCE, len(self)))

    def _texts(self, start: int, stop: int) -> list[str]:
        if self._at is not None:
            at = self._at[start:stop]
            pairs = zip(self._begin[at].tolist(), self._begin[at + 1].tolist(), strict=True)
            return [self._letters[a:b].tobytes().decode() for a, b in pairs]
        begin = self._begin[start : stop + 1].astype(np.int64)
        letters, begin = self._letters[begin[0] : begin[-1]].tobytes(), begin - begin[0]
        return [letters[a:b].decode() for a, b in zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        del copy
        texts = np.empty(len(self), dtype=object)
        for start in range(0, len(self), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(self))
            texts[start:stop] = self._texts(start, stop)
        return texts if dtype is None or np.dtype(dtype).kind == "O" else texts.astype(dtype)

    def __eq__(self, other: Any) -> Any:
        if isinstance(other, pd.Series | pd.Index | pd.DataFrame):
            return NotImplemented
        return np.asarray(self) == (np.asarray(other) if isinstance(other, Names) else other)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """As texts, or as another type that texts can become."""
        if isinstance(dtype, NamesType):
            return self.copy() if copy else self
        return pd.array(np.asarray(self), dtype=dtype) if pd.api.types.is_extension_array_dtype(dtype) else np.asarray(self).astype(dtype)

    def isna(self) -> NDArray[np.bool_]:
        """None is missing."""
        return np.zeros(len(self), dtype=bool)

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> Any:
        """Names at some positions; a missing one among them makes texts of all."""
        at = np.asarray(indices, dtype=np.int64)
        if allow_fill and (at < 0).any():
            texts = np.append(np.asarray(self), [fill_value])
            return pd.arrays.NumpyExtensionArray(texts[at])
        if len(at) and (at.max() >= len(self) or at.min() < -len(self)):
            raise IndexError(f"a position beyond {len(self)} names")
        return self._take(np.where(at < 0, at + len(self), at))

    def copy(self) -> Names:
        """Another one with the same names: letters are never changed, only replaced."""
        return Names(self._letters, self._begin, self._at)

    def _formatter(self, boxed: bool = False) -> Any:
        return str if boxed else repr


def named_again(index: pd.Index) -> pd.Index:
    """The names that occurred before, in the order of the index."""
    if not isinstance(index.array, Names):
        return index[index.duplicated()] if not index.is_unique else index[:0]
    names = index.array
    blocks = [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
    hashed = np.concatenate([np.empty(0, dtype=np.uint64), *(pd.util.hash_array(np.asarray(block), categorize=False) for block in blocks)])
    ordered = np.sort(hashed)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    few = pd.Index(np.asarray(names[np.flatnonzero(np.isin(hashed, twice))])) if len(twice) else pd.Index([], dtype=object)
    return few[few.duplicated()]


def cell_names(index: pd.Index) -> Any:
    """The names of an index: `Names`, or an array of texts."""
    return index.array if isinstance(index.array, Names) else index.to_numpy()

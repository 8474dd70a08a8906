"""Look through an HDF5 file in a process that may crash: `counterflow.data.files` starts this file as a program.

The HDF5 library crashes or never ends on some damaged files, and takes the process along. Here every object, every attribute and every
text is read once, and numbers up to `MOST_BYTES`; beyond that only where their chunks are. It says ``started``, then the problem if
there is one, then ``done``; a parent that misses the last word knows the rest. Nothing but h5py is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import h5py

MOST_BYTES = 64 * 2**20  # of numbers that are read for the test
_DEEPEST = 50  # groups in groups: an AnnData has five or six
_BLOCK = 2**18  # values at a time
# what h5py raises for damaged parts: it has no error of its own; of these, NotImplementedError is for kinds of links and types it lacks
_UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, AttributeError, NotImplementedError)


def limit(size: int) -> None:
    """Seconds of the processor (3, and 1 for each 20 MB) and memory that a sound file of this size never needs."""
    try:
        import resource
    except ImportError:  # not on this system
        return
    seconds = 3 + size // 20_000_000
    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, 4 * 2**30 + size), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def problems(handle: h5py.File) -> Iterator[str]:
    """What no AnnData holds: ways out of the file, and groups that hold themselves."""
    left = MOST_BYTES
    waiting: list[tuple[str, h5py.Group, tuple[int, ...]]] = [("", handle, ())]
    while waiting:
        path, group, above = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in above:
            yield f"the group {path!r} holds itself"
            continue
        if len(above) > _DEEPEST:
            yield f"groups are nested more than {_DEEPEST} deep"
            continue
        _read_attributes(group)
        for name in _names(group):
            where = f"{path}/{name}"
            try:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink | h5py.SoftLink):
                    yield f"{where!r} is a link to another file ({getattr(link, 'filename', 'of a kind of its own')!r})"
                    continue
                item = group[name]
            except _UNREADABLE:
                continue  # whoever needs it will say so
            if isinstance(item, h5py.Group):
                waiting.append((where, item, (*above, address)))
            elif isinstance(item, h5py.Dataset):
                _read_attributes(item)
                if item.is_virtual or item.id.get_create_plist().get_external_count():
                    yield f"the values of {where!r} lie in another file"
                    continue
                left -= _read(item, left)


def _names(group: h5py.Group) -> list[str]:
    try:
        return list(group)
    except _UNREADABLE:
        return []


def _read_attributes(item: Any) -> None:
    for name in _names(item.attrs):
        try:
            item.attrs[name]
        except _UNREADABLE:
            continue


def _read(dataset: h5py.Dataset, most: int) -> int:
    """Read all text, and numbers up to `most` bytes; how many bytes of numbers that were."""
    try:
        if dataset.shape is None or dataset.size == 0:
            return 0
        text = dataset.dtype.kind == "O"
        size = dataset.size * dataset.dtype.itemsize
        if not text and size > most:
            if dataset.chunks is not None:
                for i in {0, dataset.id.get_num_chunks() - 1} - {-1}:
                    dataset.id.get_chunk_info(i)
            return 0
        if dataset.ndim == 0:
            dataset[()]
            return dataset.dtype.itemsize
        rows = max(1, _BLOCK * len(dataset) // dataset.size)
        for start in range(0, len(dataset), rows):
            dataset[start : start + rows]
        return 0 if text else size
    except _UNREADABLE:
        return 0


def main(path: str) -> None:
    """Say what is found."""
    print("started", flush=True)
    limit(os.stat(path).st_size)
    try:
        with h5py.File(path, "r") as handle:
            for problem in problems(handle):
                print(problem.encode("ascii", "backslashreplace").decode(), flush=True)
                break
    except _UNREADABLE:
        pass  # reading it will say why
    except MemoryError:
        print("it asks for more memory than its size can need", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

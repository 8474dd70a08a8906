"""An h5ad made of parts, each of them a whole file: what is killed goes on after the last part that was written.

::

    cells.h5ad.partial/
      request.json        what is being made: parts of another request are not gone on with
      part-0000000.h5ad   the first block of cells, and so on

The parts become the file when there are all of them; until then they take the disk space of the file once more.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterflow.data.alone import alone
from counterflow.data.h5_writer import FAST, H5Writer
from counterflow.data.progress import tracked
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

SUFFIX = ".partial"


class H5Parts:
    """Blocks of AnnData that become the file `path`.

    Parameters
    ----------
    path
        The file, there when it is whole.
    request
        JSON-able: what the blocks are a function of.

    Examples
    --------
    >>> parts = H5Parts("cells.h5ad", {"conditions": ["KLF1"], "seed": 0})  # doctest: +SKIP
    >>> with parts.writing():  # doctest: +SKIP
    ...     for block in model.predict_in_blocks(conditions="KLF1", skip_blocks=parts.n_done):
    ...         parts.add(block)
    ...     parts.join()
    """

    def __init__(self, path: str | os.PathLike[str], request: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.folder = self.path.with_name(self.path.name + SUFFIX)
        self._request = json.loads(json.dumps(dict(request)))  # as it is read back
        self.n_done = 0

    def find(self) -> int:
        """Look for the blocks of a process that was killed; how many there are.

        Raises
        ------
        DataError
            If they are of another request.
        """
        self.n_done = 0
        if not self._part(0).is_file():
            return 0
        try:
            before = json.loads((self.folder / "request.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(f"{os.fspath(self.folder)!r} is not what counterflow writes: delete it") from None
        if before != self._request:
            other = [name for name in {**before, **self._request} if before.get(name) != self._request.get(name)]
            raise DataError(
                f"{os.fspath(self.folder)!r} holds cells of another request, which was interrupted (different: {', '.join(other)}): "
                "repeat that one, give another --out, or start anew with --overwrite"
            )
        while self._part(self.n_done).is_file():
            self.n_done += 1
        return self.n_done

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The folder, for this process alone; one in which no part is whole is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.folder):
            try:
                self._begin()
                yield
            finally:
                if self.folder.is_dir() and not self._part(0).is_file():
                    self.drop()

    def _begin(self) -> None:
        expected = self.n_done
        if self.find() != expected:
            raise DataError(f"another process wrote into {os.fspath(self.folder)!r} at the same time: give the same command again")
        for left in self.folder.glob(".*.tmp-*"):  # of a killed process
            left.unlink()
        if not expected:
            new = self.folder / ".request.json.tmp-0"
            new.write_text(json.dumps(self._request, indent=1) + "\n", encoding="utf-8")
            os.replace(new, self.folder / "request.json")

    def add(self, block: AnnData) -> None:
        """Keep the next block."""
        with H5Writer(self._part(self.n_done), compression=FAST) as file:
            file.add(block)
        self.n_done += 1

    def blocks(self) -> Iterator[AnnData]:
        """All blocks that are there, read one at a time."""
        import anndata

        for number in range(self.n_done):
            try:
                yield anndata.read_h5ad(self._part(number))
            except Exception as error:  # of many classes; the part was whole when it was written
                raise DataError(
                    f"{os.fspath(self._part(number))!r} is damaged ({type(error).__name__}): delete it, and give the same command again"
                ) from error

    def join(self, look: Callable[[AnnData], None] = lambda block: None, *, progress: bool = False) -> None:
        """Make the file of the parts, and remove these; `look` is called with every block."""
        with H5Writer(self.path) as whole:
            for block in tracked(self.blocks(), "writing the file", [1] * self.n_done) if progress else self.blocks():
                look(block)
                whole.add(block)
        self.drop()

    def drop(self) -> None:
        """Remove the parts, all at once for whoever looks, and what killed processes left beside the file."""
        if self.folder.is_dir():
            os.replace(self.folder, self.folder.with_name(f".{self.path.name}.tmp-{os.getpid()}-parts"))
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.tmp-*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:07}.h5ad"

"""Small labelled images as training data: scikit-learn's handwritten digits, cut into disjoint parts, in batches of a numbered step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import IterableDataset

from counterflow.errors import ConfigError, DataError
from counterflow.types import Batch, ConditionIds


class Images(NamedTuple):
    """Pixels in [-1, 1], and the class of each image."""

    pixels: Float[Tensor, "b c h w"]
    labels: Int[Tensor, "b"]

    def rows(self, rows: Tensor) -> Images:
        """Some of them."""
        return Images(self.pixels[rows], self.labels[rows])


def digits() -> Images:
    """The 1,797 handwritten digits of 8 x 8 pixels and 17 grey values that come with scikit-learn (UCI's optical recognition test set)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return Images(torch.from_numpy(found.images / 8 - 1).float()[:, None], torch.from_numpy(found.target).long())


def disjoint_parts(images: Images, sizes: Sequence[int], seed: int) -> list[Images]:
    """Random parts of these sizes, and one more with the rest; no image is in two of them.

    Raises
    ------
    DataError
        If there are not enough images.
    """
    n = len(images.labels)
    if sum(sizes) >= n:
        raise DataError(f"parts of {' + '.join(map(str, sizes))} leave nothing of {n} images: ask for fewer")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return [images.rows(rows) for rows in order.split([*sizes, n - sum(sizes)])]


class ImageSteps(IterableDataset[Batch]):
    """Batches number `start` to `stop`, drawn with replacement; each is a pure function of the seed and its number.

    Parameters
    ----------
    pixels, ids
        The training images, and their classes as condition ids: `counterflow.nn.labels.class_ids(labels)`.
    """

    def __init__(
        self, pixels: Float[Tensor, "n c h w"], ids: ConditionIds, *, batch_size: int, seed: int, stop: int, start: int = 0
    ) -> None:
        self.pixels, self.ids = pixels, ids
        self.batch_size, self.seed, self.start, self.stop = batch_size, seed, start, stop
        self.own: Tensor | None = None

    def share(self, rank: int, world_size: int) -> ImageSteps:
        """The same steps, of which one of several processes computes every `world_size`-th image.

        Raises
        ------
        ConfigError
            If the images cannot be shared evenly.
        """
        if self.batch_size % world_size:
            raise ConfigError(f"batch_size={self.batch_size} images cannot be shared evenly by {world_size} devices: take a multiple")
        mine = copy.copy(self)
        mine.own = torch.arange(rank, self.batch_size, world_size) if world_size > 1 else None
        return mine

    def __len__(self) -> int:
        return self.stop  # of the whole run, as for cells

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.start, self.stop):
            yield self.batch(step)

    def batch(self, step: int) -> Batch:
        """The batch of one optimiser step."""
        drawn = np.random.default_rng([self.seed, step]).integers(len(self.pixels), size=self.batch_size)
        rows = torch.from_numpy(drawn)
        return Batch(
            target=self.pixels[rows],
            control=None,
            ids=ConditionIds(*(part[rows] for part in self.ids)),
            group=torch.zeros(self.batch_size, dtype=torch.long),
            library=torch.ones(self.batch_size),
            own=self.own,
        )

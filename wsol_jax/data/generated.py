"""What data sets that are drawn have in common."""

from abc import abstractmethod

import numpy as np
from numpy.random import Generator

from wsol_jax.data.records import DataError, NamedClasses, Record

SPLITS = {'train': 0, 'val': 1, 'test': 2}
MIN_SIZE = 32


class Generated(NamedClasses):
    """A split of a drawn data set; a record is made when it is first asked for, then kept.

    It depends on (seed, split, index) and nothing else; no two splits share an image.

    Args:
        name: of the data set, for messages.
        split: 'train', 'val' or 'test'.
        count: images in the split.
        size: side of the images in pixels.
        seed: seed of the data set.

    Raises:
        DataError: the split is unknown, or a number is out of range.
    """

    def __init__(self, name: str, split: str, count: int, size: int, seed: int) -> None:
        if split not in SPLITS:
            raise DataError(f'{name} has no split {split!r}; available: {", ".join(SPLITS)}')
        if count < 1 or size < MIN_SIZE:
            raise DataError(
                f'{name} needs count >= 1 and size >= {MIN_SIZE}, got count {count}, size {size}'
            )
        self.size = size
        self._split, self._count, self._seed = split, count, seed
        self._drawn: dict[int, Record] = {}

    def image_id(self, index: int) -> str:
        """Name of an image."""
        return f'{self._split}/{index:05d}.png'

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f'image {index} of {self._count}')
        if index not in self._drawn:
            rng = np.random.default_rng([self._seed, SPLITS[self._split], index])
            self._drawn[index] = self._draw(index, rng)
        return self._drawn[index]

    @abstractmethod
    def _draw(self, index: int, rng: Generator) -> Record:
        """The record of an image, all of whose chance is of `rng`."""

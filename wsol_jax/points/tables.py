"""What scores of detections are made of: rows of the detections of frames, and counts of boxes."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np


@dataclass(frozen=True)
class FrameTable:
    """Of some frames; those of others join. What a row says depends on its own frame alone.

    Attributes:
        objects: int, how many true boxes there are of each kind; they add.

    All other fields are arrays with a row of each detection, in the order of the frames.
    """

    objects: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Of all frames of some parts, at least one."""
        parts = list(parts)
        columns = [field.name for field in fields(cls) if field.name != 'objects']
        rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
        return cls(objects=np.sum([part.objects for part in parts], axis=0), **rows)

    def __add__(self, other: Self) -> Self:
        """Of both sets of frames."""
        return self.joined([self, other])

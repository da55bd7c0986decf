"""PxAP: pixel average precision against masks, pooled over all pixels of all images.

Choe et al., CVPR 2020, as wsolevaluation computes it.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class PixelCounts:
    """Histograms of scores over foreground and background pixels; merge by adding.

    Attributes:
        thresholds: [T], lower edges of the bins; a score of 1 falls into the bin [1, 2).
        foreground: [T + 2] counts.
        background: [T + 2] counts.
        images: how many images were scored.
    """

    thresholds: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    images: int = 0

    @classmethod
    def zero(cls, thresholds: np.ndarray) -> 'PixelCounts':
        """Nothing counted yet."""
        empty = np.zeros(len(thresholds) + 2, int)
        return cls(thresholds, empty, empty.copy())

    def __add__(self, other: 'PixelCounts') -> 'PixelCounts':
        """Counts of both sets of images."""
        names = ('foreground', 'background', 'images')
        return PixelCounts(self.thresholds, *(getattr(self, n) + getattr(other, n) for n in names))

    def add(self, scores: np.ndarray, mask: np.ndarray) -> None:
        """Counts one image.

        Args:
            scores: [h, w] in [0, 1].
            mask: [h, w] with 1 foreground, 0 background, 255 ignored.
        """
        edges = np.append(self.thresholds, [1.0, 2.0, 3.0])
        self.foreground += np.histogram(scores[mask == 1], edges)[0]
        self.background += np.histogram(scores[mask == 0], edges)[0]
        self.images += 1

    @property
    def defined(self) -> bool:
        """Whether any pixel is foreground; without, neither score below is defined."""
        return bool(self.foreground.any())

    @property
    def iou(self) -> np.ndarray:
        """[T] percentage TP / (TP + FP + FN) over all pixels, foreground being >= threshold."""
        true = np.cumsum(self.foreground[::-1])[::-1]
        false = np.cumsum(self.background[::-1])[::-1]
        union = np.maximum(false + self.foreground.sum(), 1)
        return (100.0 * true / union)[: len(self.thresholds)]

    @property
    def average_precision(self) -> float:
        """PxAP in percent: sum of precision times the step in recall, no interpolation.

        Raises:
            ValueError: no pixel is foreground.
        """
        true = np.cumsum(self.foreground[::-1])
        positive = true + np.cumsum(self.background[::-1])
        if true[-1] == 0:
            raise ValueError('PxAP is undefined: no pixel of the masks is foreground')
        steps = np.diff(true, prepend=0)[positive > 0] / true[-1]
        return float(100.0 * np.sum(steps * (true / np.maximum(positive, 1))[positive > 0]))

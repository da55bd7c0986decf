"""Overlap of boxes, by the protocol of wsolevaluation.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
Boxes are x0, y0, x1, y1 in pixels.
"""

import numpy as np

Array = np.ndarray
Size = tuple[int, int] | np.ndarray


def box_iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of every pair, both ends inclusive (+1 pixel).

    Args:
        boxes: [n, 4].
        others: [m, 4].

    Returns:
        [n, m] in [0, 1].

    Raises:
        ValueError: a box ends before it starts.

    Example:
        >>> box_iou([[0, 0, 9, 9]], [[0, 0, 4, 9], [5, 5, 9, 9]])
        array([[0.5 , 0.25]])
    """
    a, b = (np.asarray(x, float).reshape(-1, 4) for x in (boxes, others))
    for given in (a, b):
        wrong = (given[:, 2:] < given[:, :2]).any(axis=1)
        if wrong.any():
            raise ValueError(f'box {given[wrong][0].tolist()} ends before it starts')
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low + 1, 0, None).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2] + 1).prod(axis=1) for x in (a, b)]
    return overlap / (areas[0][:, None] + areas[1][None, :] - overlap)


def rescale_boxes(boxes: Array, size: Size, new_size: Size) -> Array:
    """Boxes of an image of `size` in one of `new_size`, truncated to whole pixels.

    Args:
        boxes: [n, 4].
        size: (width, height) the boxes are in; or [n, 2], those of each.
        new_size: (width, height) wanted; likewise.
    """
    # Multiplied before it is divided: whole results come out whole and lose no pixel by truncation.
    scaled = np.asarray(boxes).reshape(-1, 4) * np.tile(new_size, 2) / np.tile(size, 2)
    return scaled.astype(int)

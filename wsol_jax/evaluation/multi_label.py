"""How a classifier of several labels an image ranks the images for each class.

NumPy alone. Average precision is that of PASCAL VOC since 2010 (Everingham et al., IJCV 2015): the
area under the precision-recall curve, after each precision is raised to the highest one at any
larger recall.
"""

import numpy as np


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, 0 to 1, of one class at every threshold, the highest first.

    Args:
        scores: [N] of the class; images of the same score pass a threshold together, so that their
            order does not count.
        positive: bool [N], whether the image has the class; at least one has.

    Returns:
        Both [T], with T different scores.
    """
    order = np.argsort(-scores, kind='stable')
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(positive[order])[last]
    return found / (last + 1), found / positive.sum()


def average_precisions(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Average precision of every class in percent.

    Args:
        scores: [N, C] of N images: probabilities, or logits, for order alone counts.
        positive: bool [N, C], see `positives`.

    Returns:
        [C], NaN for a class that no image has.
    """
    return np.array([_area(*of_class) for of_class in zip(scores.T, positive.T, strict=True)])


def _area(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return np.nan
    precision, recall = precision_recall(scores, positive)
    raised = np.maximum.accumulate(precision[::-1])[::-1]
    return 100 * float(np.sum(np.diff(recall, prepend=0) * raised))


def positives(labels: np.ndarray, count: int) -> np.ndarray:
    """Bool [N, C], which of `count` classes each image has: of labels [N, L], padded with -1."""
    return np.any(labels[..., None] == np.arange(count), axis=1)


def mean_average_precision(precisions: np.ndarray) -> float:
    """mAP: the mean of `average_precisions` over the classes that are defined; NaN if none is."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else np.nan

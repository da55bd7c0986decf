"""What is true of an image, on the canvas that maps are scored on."""

import numpy as np

from wsol_jax.data import DataError, Record, decode_mask, stored_size
from wsol_jax.evaluation.boxes import rescale_boxes


def ground_truth(record: Record, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes [m, 4] of a record on a canvas (width, height), and its mask [height, width], if any.

    Raises:
        DataError: a mask, or what tells the size of the image, cannot be read.
    """
    return true_boxes(record, canvas), decode_mask(record, canvas) if record.masks else None


def true_boxes(record: Record, canvas: tuple[int, int]) -> np.ndarray:
    """Boxes [m, 4] of a record on a canvas (width, height).

    Raises:
        BadImage: what tells the size of the image cannot be read.
    """
    boxes = np.array(record.boxes, int).reshape(-1, 4)
    return rescale_boxes(boxes, stored_size(record), canvas) if len(boxes) else boxes


def label_of(record: Record) -> int | None:
    """The one label of an image, of which the object is that it has the boxes or the mask of.

    Returns:
        None where there is no label, or where there are several and no object.

    Raises:
        DataError: there are several labels: nothing says which of them the object is.
    """
    if len(record.labels) < 2:
        return record.labels[0] if record.labels else None
    if record.boxes or record.masks:
        raise DataError(
            f'{record.image_id} has {len(record.labels)} labels; scores of localization need one '
            'label an image that has boxes or masks'
        )
    return None


def object_size(boxes: np.ndarray, mask: np.ndarray | None, pixels: int) -> float:
    """Share of the canvas that the largest true box, or the mask, takes; NaN without.

    Args:
        boxes: [m, 4], as from `ground_truth`.
        mask: likewise.
        pixels: of the canvas.
    """
    if len(boxes):
        return float((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).max() / pixels)
    return np.nan if mask is None or not (mask == 1).any() else float((mask == 1).mean())

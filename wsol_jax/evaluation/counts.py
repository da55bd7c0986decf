"""What one set of maps scored on one set of images: counts that add up, and what they amount to."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsol_jax.data import Record, decode_mask, stored_size
from wsol_jax.evaluation.box_metrics import IOUS, BoxCounts
from wsol_jax.evaluation.boxes import rescale_boxes
from wsol_jax.evaluation.pixel_metrics import PixelCounts
from wsol_jax.evaluation.protocols import BoxProtocol, ProtocolCounts, protocol
from wsol_jax.maps import Key
from wsol_jax.maps.boxes import threshold_boxes
from wsol_jax.maps.score import score_map

if TYPE_CHECKING:  # counting processes start without what only names types
    from wsol_jax.config import EvaluateConfig
    from wsol_jax.evaluation.split import Part
    from wsol_jax.maps.store import MapStore

# What curves.csv has of every threshold, see `Counts.curves`.
CURVES = (
    *(f'{kind}_{100 * iou:.0f}' for kind in ('largest', 'all') for iou in IOUS),
    'mIoU',
    'PooledIoU',
)


@dataclass
class Counts:
    """Counts that merge by adding; those without ground truth stay empty.

    Attributes:
        boxes: for boxes.
        pixels: for masks.
        protocols: for boxes as older tables counted them.
        images: how many images with ground truth were counted.
        blank: how many maps were constant or had a NaN.
    """

    boxes: BoxCounts
    pixels: PixelCounts
    protocols: list[ProtocolCounts]
    images: int = 0
    blank: int = 0

    @classmethod
    def zero(cls, thresholds: np.ndarray, protocols: Iterable[BoxProtocol] = ()) -> 'Counts':
        """Nothing counted yet."""
        boxes, pixels = BoxCounts.zero(thresholds), PixelCounts.zero(thresholds)
        return cls(boxes, pixels, [ProtocolCounts(protocol) for protocol in protocols])

    def __add__(self, other: 'Counts') -> 'Counts':
        """Counts of both sets of images."""
        protocols = [a + b for a, b in zip(self.protocols, other.protocols, strict=True)]
        return Counts(
            self.boxes + other.boxes,
            self.pixels + other.pixels,
            protocols,
            self.images + other.images,
            self.blank + other.blank,
        )

    def add(
        self,
        scores: np.ndarray,
        boxes: np.ndarray,
        mask: np.ndarray | None,
        *,
        top1_right: bool = False,
        top5_scores: np.ndarray | None = None,
    ) -> None:
        """Counts one image.

        Args:
            scores: [h, w] score map in [0, 1].
            boxes: [m, 4] true boxes in its pixels; m is 0 where boxes are not known.
            mask: [h, w], 1 foreground, 0 background, 255 ignored; None where it is not known.
            top1_right: the class ranked first is right.
            top5_scores: the score map of the right class if it is among the first five.
        """
        if len(boxes):
            found = threshold_boxes(scores, self.thresholds)
            right = found if top5_scores is scores else None
            if right is None and top5_scores is not None:
                right = threshold_boxes(top5_scores, self.thresholds)
            self.boxes.add(found, boxes, top1_right=top1_right, top5_boxes=right)
        if mask is not None:
            self.pixels.add(scores, mask)
        self.images += bool(len(boxes)) or mask is not None
        self.blank += not scores.any()

    def add_protocols(
        self,
        maps: np.ndarray,
        record: Record,
        canvas: tuple[int, int],
        classes: Sequence[int] | np.ndarray = (),
        ranked: Sequence[int] | np.ndarray = (),
    ) -> None:
        """Counts one image as older tables did, if it has boxes.

        Args:
            maps: [K,h,w] raw maps, after the ReLU of their method, if any.
            record: with the ground truth.
            canvas: (width, height).
            classes: [K] that the maps are for.
            ranked: the best classes, best first.
        """
        if not record.boxes:
            return
        label = record.labels[0] if record.labels else None
        sizes = {'size': stored_size(record), 'canvas': canvas}
        for rules in self.protocols:
            rules.add(maps, classes, ranked, label, record.boxes, **sizes)

    @property
    def thresholds(self) -> np.ndarray:
        """[T] what the maps were cut at."""
        return self.boxes.thresholds

    @property
    def curve(self) -> np.ndarray | None:
        """[T] the score that thresholds are chosen by: GT-known, else mIoU, else None."""
        if self.boxes.images:
            return self.boxes.gt_known
        return self.pixels.mean_iou if self.pixels.defined else None

    @property
    def score(self) -> float | None:
        """The score that layers are chosen by: MaxBoxAcc, else PxAP, else None."""
        if self.boxes.images:
            return self.boxes.max_box_acc
        return self.pixels.average_precision if self.pixels.defined else None

    def nearest(self, threshold: float) -> int:
        """Index of the counted threshold next to this one."""
        return int(np.argmin(np.abs(self.thresholds - threshold)))

    def curves(self) -> dict[str, np.ndarray]:
        """Percentages [T] by name, at every threshold.

        'largest_50' is the share of images whose largest contour's box reaches IoU 50 %, 'all_50'
        that where some contour's does; 'mIoU' the IoU with the mask averaged over images,
        'PooledIoU' that over the pixels of all images together.
        """
        curves: dict[str, np.ndarray] = {}
        if self.boxes.images:
            both = np.concatenate([self.boxes.largest, self.boxes.anywhere])
            curves |= zip(CURVES, self.boxes.accuracy(both), strict=False)
        if self.pixels.defined:
            curves |= {'mIoU': self.pixels.mean_iou, 'PooledIoU': self.pixels.iou}
        return curves

    def oracles(self) -> dict[str, Any]:
        """The scores at the best threshold on these images, or over all thresholds, in percent."""
        best: dict[str, Any] = {}
        if self.boxes.images:
            best['MaxBoxAcc'] = self.boxes.max_box_acc
            best['MaxBoxAcc_threshold'] = float(self.thresholds[np.argmax(self.boxes.gt_known)])
            best['MaxBoxAccV2'] = self.boxes.max_box_acc_v2
        if self.pixels.defined:
            curve = self.pixels.mean_iou
            best['PxAP'] = self.pixels.average_precision
            best['PeakIoU'] = float(curve.max())
            best['PeakIoU_threshold'] = float(self.thresholds[np.argmax(curve)])
            best['PeakPooledIoU'] = float(self.pixels.iou.max())
            best['PeakPooledIoU_threshold'] = float(self.thresholds[np.argmax(self.pixels.iou)])
        return best


def thresholds_of(setting: 'EvaluateConfig') -> np.ndarray:
    """[T] what maps are cut at."""
    return np.arange(0, 1, setting.threshold_step)


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


def canvas_scores(
    store: 'MapStore', key: Key, raw: np.ndarray, setting: 'EvaluateConfig'
) -> np.ndarray:
    """The score map of one raw map on the square canvas that scores are counted on.

    Args:
        store: that the map is from.
        key: its (method, layer).
        raw: [h, w].
        setting: with the size of the canvas in pixels.

    Returns:
        [size, size] float64 in [0, 1].
    """
    canvas = (setting.size, setting.size)
    return score_map(raw, canvas, closing=setting.closing, relu=store.relu[key])


def nothing(keys: Iterable[Key], setting: 'EvaluateConfig') -> dict[Key, Counts]:
    """Nothing counted yet, for every (method, layer)."""
    rules = [protocol(name) for name in setting.protocols]
    return {key: Counts.zero(thresholds_of(setting), rules) for key in keys}


def count_part(part: 'Part', setting: 'EvaluateConfig') -> dict[Key, Counts]:
    """Counts some images; runs in processes of their own.

    Args:
        part: the images with all their maps.
        setting: what is counted, and on which canvas.

    Returns:
        Counts of every (method, layer).

    Raises:
        ValueError: a protocol is not for these maps.
    """
    counts = nothing(part.maps, setting)
    canvas = (setting.size, setting.size)
    for i, record in enumerate(part.records):
        truth = ground_truth(record, canvas)
        column = part.label_column(i)
        for key, so_far in counts.items():
            maps = part.maps[key][i]
            scores = score_map(maps[0], canvas, closing=setting.closing)
            right = scores if column == 0 else None
            if column:
                right = score_map(maps[column], canvas, closing=setting.closing)
            so_far.add(scores, *truth, top1_right=part.top1_right(i), top5_scores=right)
            with _naming(key):
                so_far.add_protocols(maps, record, canvas, part.classes[i], part.top[i])
    return counts


@contextmanager
def _naming(key: Key) -> Iterator[None]:
    """Says whose maps a protocol is not for."""
    try:
        yield
    except ValueError as error:
        of = f'{key[0]} at {key[1]}'
        raise ValueError(f'config.evaluate.protocols: {error} ({of})') from None

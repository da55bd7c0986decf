"""The protocols of older tables, to quote them by.

A protocol makes boxes from a raw map and says when they are right. Each is told apart from the
protocol of wsolevaluation (Choe et al., CVPR 2020), the one of `boxes.py` and `box_metrics.py`:
boxes on a square canvas; bicubic resize, then min-max; the threshold that is best over a grid;
the contour of the largest polygon; IoU >= 0.5 with both ends inside; any box of the image, in
whole pixels; mean over images.

None reproduces its original's views of an image (ten crops, or a centre crop, where boxes
were cropped too): maps and classes are taken as the workdir has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature

import cv2
import numpy as np

from wsol_jax.evaluation.box_metrics import defined_for
from wsol_jax.evaluation.boxes import box_iou, rescale_boxes
from wsol_jax.maps.boxes import boxes_from_map, threshold_boxes
from wsol_jax.maps.score import is_blank
from wsol_jax.names import shown, unknown_name

Array = np.ndarray
Size = tuple[int, int]

NAMES = ('GTKnownLoc', 'Top1Loc', 'Top5Loc')  # of the scores
_STITCHED = (256, 256)  # where ten crops were added up before the result was resized to the image


@dataclass(frozen=True)
class BoxProtocol:
    """Rules that turn raw maps into boxes and boxes into scores; can be pickled.

    Attributes:
        name: as asked for: 'bas', or 'bas:0.15'.
        boxes: raw map [h,w], rectified where its method says so, and (width, height) of the
          canvas -> [n,4] int boxes in pixels of the canvas, n >= 1, the main one first.
        plus_one: IoU counts both ends of a box as inside, so a box is x1 - x0 + 1 pixels wide.
        strict: a box is right above IoU 0.5, not at 0.5.
        macro: scores are the mean over classes of the accuracy of each class.
        original_size: the canvas is the stored image.
        top5: how many boxes of the class ranked first, second, ... may be right for Top-5.
        truth: boxes [m,4], (width, height) they are in, that of the canvas -> boxes on the canvas.
    """

    name: str
    boxes: Callable[[Array, Size], Array]
    plus_one: bool = True
    strict: bool = False
    macro: bool = False
    original_size: bool = False
    top5: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1)
    truth: Callable[[Array, Size, Size], Array] = rescale_boxes

    def right(self, boxes: Array, truth: Array) -> bool:
        """Whether any of some boxes [n,4] finds any of the true ones [m,4]; not if n is 0."""
        if not self.plus_one:
            boxes, truth = _last_pixels(boxes), _last_pixels(truth)
        best = box_iou(boxes, truth).max(initial=0)
        return bool(best > 0.5 if self.strict else best >= 0.5)


def cvpr16(threshold: float = 0.2) -> BoxProtocol:
    """What the authors of wsolevaluation take the protocol before theirs to be (their issue #11).

    Differs from wsolevaluation in the threshold, which is fixed, and in the normalization: maps are
    divided by their maximum and nothing is subtracted; what is negative becomes 0. A constant map
    has no box there either.

    Args:
        threshold: fraction of the maximum.
    """
    return BoxProtocol('cvpr16', partial(_cvpr16_boxes, threshold=_fraction(threshold)))


def cam_paper(threshold: float = 0.2) -> BoxProtocol:
    """CAM as its paper has it: Zhou et al., CVPR 2016, with the ILSVRC kit's overlap.

    Differs from wsolevaluation: boxes in pixels of the stored image; bilinear resize, no
    normalization; a fixed fraction of the maximum; the largest 8-connected component by pixels, its
    last column and row inside the box. A map with no positive value has no box.

    Not reproduced: ten crops and the mean of their class scores; only boxes of the label's class
    counted, and the kit's list of images left out.

    Args:
        threshold: fraction of the maximum.
    """
    boxes = partial(_paper_boxes, threshold=_fraction(threshold))
    return BoxProtocol('cam-paper', boxes, original_size=True)


def cam_heuristic() -> BoxProtocol:
    """CAM's released box generator and its 2 + 2 + 1 boxes for Top-5: Zhou et al., CVPR 2016.

    Differs from wsolevaluation: boxes in pixels of the stored image; the magnitude of the map, by
    way of 256 x 256 pixels, divided by its maximum. Cut at 20, 100 and 110 of 255; of each the
    distance to the background, scaled to 255, must exceed 10; every contour left, holes too, gives
    a box that stays 5 pixels off the right and lower border. Boxes by falling area lose those they
    overlap by more than half of the larger area. The first is loose, the second tight. Top-1 and
    GT-known take the loose one; Top-5 both of the two classes ranked first and the loose one of the
    third, so no box of the fourth and fifth.

    Not reproduced: see `cam_paper`; the maps stored as JPEG; findContours of OpenCV before 3.2,
    which took no pixel of the image's outermost frame as foreground.
    """
    return BoxProtocol('cam-heuristic', _heuristic_boxes, original_size=True, top5=(2, 2, 1, 0, 0))


def bas(threshold: float = 0.5) -> BoxProtocol:
    """Background Activation Suppression: Wu et al., CVPR 2022.

    Differs from wsolevaluation: min-max before the resize, which is bilinear; a fixed threshold on
    the result; the largest 8-connected component by pixels, its box ending behind the last pixel;
    the whole canvas where nothing is above; IoU above 0.5; true boxes not cut to whole pixels; mean
    over classes.

    Not reproduced: resize to 256 and centre crop of 224, of images and boxes; classes from the mean
    softmax of ten crops; on CUB the mean map of the first 80 or 200 classes. Published thresholds
    were chosen on the test images.

    Args:
        threshold: on the scaled map. ILSVRC: 0.5, with ResNet-50 0.45 and InceptionV3 0.3; CUB:
          0.15, with InceptionV3 0.1.
    """
    boxes = partial(_bas_boxes, threshold=_fraction(threshold))
    return BoxProtocol('bas', boxes, strict=True, macro=True, truth=_exact)


def psol(threshold: float) -> BoxProtocol:
    """How PSOL is scored: Zhang, Cao, Wu, CVPR 2020. Its boxes come from a regressor, not a map.

    Takes the box of wsolevaluation at one threshold, and differs from it in: IoU of x1 - x0 wide
    boxes, above 0.5; true boxes one pixel to the left and up, because the ILSVRC annotation files,
    whose numbers they have to be, count from 1; not cut to whole pixels; mean over classes.

    Not reproduced: the regressor; resize to 256 and centre crop of 224, of images and boxes; only
    boxes of the label's class counted; classes from a network of their own.

    Args:
        threshold: fraction of the maximum of the score map; nothing published, so no default.
    """
    boxes = partial(boxes_from_map, threshold=_fraction(threshold))
    truth = _exact_from_one
    return BoxProtocol('psol', boxes, plus_one=False, strict=True, macro=True, truth=truth)


def layercam(threshold: float = 0.15) -> BoxProtocol:
    """LayerCAM's localization on ILSVRC: Jiang et al., IEEE TIP 2021. G2M's tables used it too.

    Differs from wsolevaluation: boxes in pixels of the stored image; ReLU and division by the
    maximum on 256 x 256 pixels in 8 bits, then bicubic resize of those; a fixed threshold; of all
    contours the largest rectangle, not polygon, which may end behind the last pixel; one pixel in
    the corner where nothing is above.

    Not reproduced: ten crops, whose logits were summed and whose maps were resized with aligned
    corners; grabCut between map and contours, at conv3_3 and before.

    Args:
        threshold: fraction of 255.
    """
    boxes = partial(_layercam_boxes, threshold=_fraction(threshold))
    return BoxProtocol('layercam', boxes, original_size=True)


def ornet(threshold: float = 0.5) -> BoxProtocol:
    """ORNet: Xie et al., ICCV 2021. For maps out of a sigmoid only: others are an error.

    Differs from wsolevaluation: the map as it is, neither resized nor scaled; a fixed threshold;
    the extent of all that is above, not of a component, from the first to the last place times 4
    (the side of a place of its 56 x 56 maps in 224 x 224 images); the whole canvas where nothing
    is above; IoU of x1 - x0 wide boxes, above 0.5; true boxes not cut to whole pixels.

    Not reproduced: resize to 256 and centre crop of 224, of images and boxes; classes from a
    network of their own.

    Args:
        threshold: on the map. The published scores are the best of 0.05, 0.1, ..., 0.95 on the test
          images; 0.5 is the default of the released code.
    """
    boxes = partial(_ornet_boxes, threshold=_fraction(threshold))
    return BoxProtocol('ornet', boxes, plus_one=False, strict=True, truth=_exact)


PROTOCOLS: dict[str, Callable[..., BoxProtocol]] = {
    'cvpr16': cvpr16,
    'cam-paper': cam_paper,
    'cam-heuristic': cam_heuristic,
    'bas': bas,
    'psol': psol,
    'layercam': layercam,
    'ornet': ornet,
}


def protocol(text: str) -> BoxProtocol:
    """The protocol that a text names.

    Args:
        text: 'bas', or 'bas:0.15' with a threshold in [0, 1).

    Raises:
        ValueError: nobody knows the name; the threshold is wrong, missing, or not there to be set.
    """
    name, colon, value = text.partition(':')
    if name not in PROTOCOLS:
        raise ValueError(unknown_name('protocol', name, PROTOCOLS))
    threshold = signature(PROTOCOLS[name]).parameters.get('threshold')
    if colon and threshold is None:
        raise ValueError(f'protocol {shown(text)}: {name} has no threshold to set; write {name!r}')
    if colon:
        return replace(PROTOCOLS[name](threshold=_fraction(value)), name=text)
    if threshold is not None and threshold.default is Parameter.empty:
        raise ValueError(f"protocol {text!r} needs a threshold, such as '{name}:0.2'")
    return PROTOCOLS[name]()


def protocol_right(
    rules: BoxProtocol,
    maps: Array,
    classes: Sequence[int] | Array,
    ranked: Sequence[int] | Array,
    label: int | None,
    truth: Sequence[Sequence[float]] | Array,
    size: Size,
    canvas: Size,
) -> tuple[bool, bool, bool]:
    """Whether one image is right, in the order of `NAMES`.

    Args:
        rules: the protocol.
        maps: [K,h,w] raw maps, rectified where their method says so.
        classes: [K] that they are for; may be empty where only GT-known is asked for.
        ranked: the best classes, best first; from the sixth on none counts. May be empty too.
        label: of the image, or None.
        truth: [m,4] boxes in pixels of the stored image.
        size: (width, height) of the stored image.
        canvas: (width, height) of the canvas, for protocols that do not score on the image.
    """
    canvas = size if rules.original_size else canvas
    true = rules.truth(np.asarray(truth), size, canvas)
    names, best = np.asarray(classes).tolist(), np.asarray(ranked).tolist()[:5]
    boxes = rules.boxes(maps[0], canvas)
    known, top5 = rules.right(boxes[:1], true), False
    if label in best and label in names:
        column = names.index(label)
        boxes = rules.boxes(maps[column], canvas) if column else boxes
        top5 = rules.right(boxes[: rules.top5[best.index(label)]], true)
    return known, known and [label] == best[:1] == names[:1], top5


def protocol_scores(
    rules: BoxProtocol, right: Array, labels: Array, target: str
) -> dict[str, float]:
    """Percentages by name, those that are defined.

    Args:
        rules: the protocol.
        right: bool [n,3] of n images with boxes, see `protocol_right`.
        labels: [n] theirs; -1 where it is not known.
        target: the classes that the maps are for, as in `LocalizeConfig.classes`.
    """
    groups = [labels == label for label in dict.fromkeys(labels.tolist())]
    scores = {}
    for name in defined_for(target) if groups else ():
        column = right[:, NAMES.index(name)]
        shares = [column[group].sum() / group.sum() for group in groups]
        share = np.mean(shares) if rules.macro else column.sum() / len(column)
        scores[name] = float(100 * share)
    return scores


def _fraction(threshold: float | str) -> float:
    try:
        number = float(threshold)
    except ValueError:
        number = np.nan
    if not 0 <= number < 1:
        raise ValueError(
            f'the threshold of a protocol is a number in [0, 1), not {shown(threshold)}'
        )
    return number


def _exact(boxes: Array, size: Size, canvas: Size) -> Array:
    return boxes * np.tile(canvas, 2) / np.tile(size, 2)


def _exact_from_one(boxes: Array, size: Size, canvas: Size) -> Array:
    return _exact(boxes - 1, size, canvas)


def _last_pixels(boxes: Array) -> Array:
    """Boxes that end where `box_iou` has them end, without those that hold nothing."""
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)] - np.array([0, 0, 1, 1])


def _resized(raw: Array, size: Size, interpolation: int) -> Array:
    return cv2.resize(np.asarray(raw, np.float64), size, interpolation=interpolation)


def _over_maximum(heat: Array) -> Array:
    """In [0, 1], negative values cut off; zeros if there is no finite positive maximum."""
    top = heat.max()
    return np.clip(heat / top, 0, 1) if 0 < top < np.inf else np.zeros_like(heat)


def _largest_component(foreground: Array) -> Array | None:
    """[1, 4] box of the component of most pixels, ends exclusive; ties: first by rows."""
    grey = foreground.astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(grey, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not areas.size:
        return None
    # OpenCV numbers components by blocks of pixels, the originals by rows.
    tied = 1 + np.flatnonzero(areas == areas.max())
    x, y, width, height = stats[labels[np.isin(labels, tied)][0], :4]
    return np.array([[x, y, x + width, y + height]])


def _rectangles(foreground: Array, mode: int) -> Array:
    """[n, 4] boxes of the contours in the order they are found, ends exclusive."""
    contours, _ = cv2.findContours(foreground.astype(np.uint8), mode, cv2.CHAIN_APPROX_SIMPLE)
    found = np.array([cv2.boundingRect(c) for c in contours], int).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def _areas(boxes: Array) -> Array:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _cvpr16_boxes(raw: Array, size: Size, *, threshold: float) -> Array:
    heat = np.zeros(size[::-1]) if is_blank(raw) else _resized(raw, size, cv2.INTER_CUBIC)
    return threshold_boxes(_over_maximum(heat), [threshold])[0]


def _paper_boxes(raw: Array, size: Size, *, threshold: float) -> Array:
    heat = _resized(raw, size, cv2.INTER_LINEAR)
    box = _largest_component(heat > threshold * heat.max())
    return np.zeros((1, 4), int) if box is None else box - np.array([0, 0, 1, 1])


def _bas_boxes(raw: Array, size: Size, *, threshold: float) -> Array:
    low = np.asarray(raw, np.float64) - raw.min()
    scaled = np.zeros(raw.shape) if is_blank(raw) else low / low.max()
    box = _largest_component(_resized(scaled, size, cv2.INTER_LINEAR) > threshold)
    return np.array([[0, 0, *size]]) if box is None else box


def _layercam_boxes(raw: Array, size: Size, *, threshold: float) -> Array:
    heat = _over_maximum(_resized(raw, _STITCHED, cv2.INTER_LINEAR))
    grey = cv2.resize((255 * heat).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
    boxes = _rectangles(grey > 255 * threshold, cv2.RETR_TREE)
    return boxes[[np.argmax(_areas(boxes))]] if len(boxes) else np.array([[0, 0, 1, 1]])


def _ornet_boxes(raw: Array, size: Size, *, threshold: float) -> Array:
    if (raw < 0).any() or (raw > 1).any():
        spans = f'{raw.min():g}..{raw.max():g}'
        raise ValueError(f'protocol ornet is for maps out of a sigmoid, in [0, 1]; got {spans}')
    rows, columns = np.nonzero(raw.astype(np.float64) > threshold)
    if not rows.size:
        return np.array([[0, 0, *size]])
    ends = np.array([[columns.min(), rows.min(), columns.max(), rows.max()]])
    return ends * np.tile(size, 2) // np.tile(raw.shape[::-1], 2)


def _heuristic_boxes(raw: Array, size: Size) -> Array:
    stitched = np.abs(_resized(raw, _STITCHED, cv2.INTER_CUBIC))
    heat = _over_maximum(_resized(stitched, size, cv2.INTER_CUBIC))
    grey = (255 * heat + 0.5).astype(np.uint8)
    cores = [_core(grey > cut) for cut in (20, 100, 110)]
    boxes = np.concatenate([_rectangles(core, cv2.RETR_CCOMP) for core in cores])
    boxes = np.clip(boxes, 0, np.maximum(np.tile(size, 2) - 5, 0))
    merged = _merged(boxes[np.argsort(-_areas(boxes), kind='stable')])
    return merged if len(merged) else np.zeros((1, 4), int)


def _core(foreground: Array) -> Array:
    """Where the distance to the background, of 255 at its largest, rounds to more than 10."""
    if foreground.all() or not foreground.any():
        return foreground
    grey = foreground.astype(np.uint8)
    depth = cv2.distanceTransform(grey, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
    return 255 * depth / depth.max() + 0.5 >= 11


def _merged(boxes: Array) -> Array:
    """Boxes by falling area, without those that overlap an earlier one by much."""
    i = 0
    while i < len(boxes):
        later = boxes[i + 1 :]
        boxes = np.concatenate([boxes[: i + 1], later[~_erased(_overlap(boxes[i], later))]])
        i += 1
    return boxes


def _overlap(box: Array, others: Array) -> Array:
    """[n] whether each of the others [n, 4] overlaps the box by more than half the larger area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    larger = np.maximum(_areas(box[None]), _areas(others))
    return np.clip(high - low, 0, None).prod(axis=1) > larger // 2


def _erased(overlapping: Array) -> Array:
    """The released loop skips the box behind an erased one: nested boxes keep a tight one."""
    place = np.arange(len(overlapping))
    before = np.maximum.accumulate(np.where(overlapping, -1, place))
    return overlapping & ((place - before) % 2 == 1)

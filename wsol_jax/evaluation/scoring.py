"""From maps to the scores of each image; runs in processes of their own, which need no JAX."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsol_jax.data import Record, stored_size
from wsol_jax.evaluation.box_metrics import best_boxes
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.pixel_metrics import histograms, mask_ious
from wsol_jax.evaluation.protocols import BoxProtocol, protocol, protocol_right
from wsol_jax.evaluation.table import Scores, Table, joined
from wsol_jax.evaluation.truth import ground_truth, label_of, object_size
from wsol_jax.maps import Key
from wsol_jax.maps.score import score_map

if TYPE_CHECKING:  # counting processes start without what only names types
    from wsol_jax.config import EvaluateConfig
    from wsol_jax.evaluation.split import ImageMaps
    from wsol_jax.maps.store import MapStore

_Truth = tuple[np.ndarray, np.ndarray | None]  # boxes and mask, as from `ground_truth`
# Boxes [T,4], their overlap [T], that of any contour [T], that of the mask [T], or [0].
_Cut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Rules:
    """How maps are scored; can be pickled.

    Attributes:
        canvas: (width, height) in pixels of what maps and boxes are compared on.
        thresholds: [T] in [0, 1), of curves and histograms.
        closing: diameter in pixels of the closing of score maps; 0 for none.
        protocols: of older tables.
    """

    canvas: tuple[int, int]
    thresholds: np.ndarray
    closing: int = 0
    protocols: tuple[BoxProtocol, ...] = ()


def rules_of(setting: 'EvaluateConfig') -> Rules:
    """The rules of an experiment.

    Raises:
        ValueError: there is no such protocol.
    """
    protocols = tuple(protocol(name) for name in setting.protocols)
    thresholds = np.arange(0, 1, setting.threshold_step)
    return Rules((setting.size, setting.size), thresholds, setting.closing, protocols)


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


def score_split_part(
    part: 'ImageMaps', setting: 'EvaluateConfig', chosen: Mapping[Key, float] | None
) -> dict[Key, Scores]:
    """Scores some images of a split, as an experiment has it.

    Args:
        part: the images and their maps.
        setting: of the experiment.
        chosen: the threshold of each (method, layer) that one was chosen for; None where this is
            the split to choose on, whose images keep their scores at all thresholds.

    Returns:
        Scores of every (method, layer).

    Raises:
        DataError: the ground truth of an image cannot be read, or it has several labels.
        ValueError: a protocol is not for these maps.
    """
    rules = rules_of(setting)
    if chosen is None:
        kept = dict.fromkeys(part.maps, np.append(rules.thresholds, setting.threshold))
    else:
        kept = {key: np.array([chosen.get(key, setting.threshold)]) for key in part.maps}
    return score_part(part, rules, kept)


def score_part(
    part: 'ImageMaps', rules: Rules, kept: Mapping[Key, np.ndarray]
) -> dict[Key, Scores]:
    """Scores some images.

    Args:
        part: the images and their maps.
        rules: how.
        kept: the thresholds that the table of each (method, layer) is of.

    Returns:
        Scores of every (method, layer).

    Raises:
        DataError: the ground truth of an image cannot be read, or it has several labels.
        ValueError: a protocol is not for these maps.
    """
    if not part.records:
        return {key: _nothing(part, key, rules, kept[key]) for key in part.maps}
    return joined(_of_images(part, rules, kept))


def _of_images(
    part: 'ImageMaps', rules: Rules, kept: Mapping[Key, np.ndarray]
) -> Iterator[dict[Key, Scores]]:
    for i, record in enumerate(part.records):
        truth = ground_truth(record, rules.canvas)
        yield {key: _of_image(part, i, key, truth, rules, kept[key]) for key in part.maps}


def _nothing(part: 'ImageMaps', key: Key, rules: Rules, kept: np.ndarray) -> Scores:
    maps, bins = part.maps[key].shape[1], len(rules.thresholds) + 2 if part.masked else 0
    table = Table.empty(0, maps, kept, bins, len(rules.protocols))
    return Scores(table, Curves.zero(rules.thresholds))


def _of_image(
    part: 'ImageMaps', i: int, key: Key, truth: _Truth, rules: Rules, kept: np.ndarray
) -> Scores:
    maps, label = part.maps[key][i], label_of(part.records[i])
    scores = (score_map(raw, rules.canvas, closing=rules.closing) for raw in maps)
    found = score_image(scores, truth, rules, kept, masked=part.masked)
    ranked, classes = part.top[i], part.classes[i]
    columns = np.flatnonzero((classes == label) & (label in ranked))
    with _naming(key):
        protocols = protocols_right(maps, part.records[i], rules, classes, ranked)
    return found.with_facts(
        label=-1 if label is None else label,
        first_right=label is not None and ranked[0] == label == classes[0],
        column=columns[0] if len(columns) else -1,
        protocols=protocols,
    )


def score_image(
    scores: Iterable[np.ndarray],
    truth: _Truth,
    rules: Rules,
    kept: np.ndarray | Sequence[float] = (),
    *,
    masked: bool = True,
) -> Scores:
    """Scores the maps of one image, of which nothing but its boxes and its mask is known.

    Args:
        scores: K score maps [h, w] in [0, 1], of the size of the canvas.
        truth: boxes [m, 4] on the canvas, m is 0 where they are not known; and the mask [h, w], 1
            foreground, 0 background, 255 ignored, or None.
        rules: how; protocols do not count here, see `protocols_right`.
        kept: the thresholds that the table is of.
        masked: whether any image that this one is to be joined with has a mask.
    """
    scores, (boxes, mask), count = iter(scores), truth, len(rules.thresholds)
    first = next(scores)
    bins = np.zeros((2, count + 2 if masked else 0), np.int32)
    if mask is not None:
        bins[:] = histograms(first, mask, rules.thresholds)
    facts = {
        'foreground': bins[0],
        'background': bins[1],
        'boxed': len(boxes) > 0,
        'masked': mask is not None,
        'size': object_size(boxes, mask, first.size),
        'blank': not first.any(),
    }
    every = _cut(first, truth, np.append(rules.thresholds, kept), len(kept), masked)
    on_grid = _row(rules.thresholds, [_slice(every, slice(count))], facts)
    cuts = [_slice(every, slice(count, None))]
    cuts += [_cut(other, truth, np.asarray(kept), len(kept), masked) for other in scores]
    return Scores(_row(np.asarray(kept), cuts, facts), on_grid.curves())


def _cut(
    scores: np.ndarray, truth: _Truth, thresholds: np.ndarray, kept: int, masked: bool
) -> _Cut:
    """Cuts a score map at thresholds, of which the last ones are kept."""
    true, mask = truth
    # Where no true box is known, those of the other thresholds are not worth the time.
    unused = 0 if len(true) else len(thresholds) - kept
    boxes, overlap, anywhere = best_boxes(scores, thresholds[unused:], true)
    boxes = np.concatenate([np.zeros((unused, 4), np.int16), boxes.astype(np.int16)])
    nothing = np.full(len(thresholds), np.nan)
    if unused:
        overlap = anywhere = nothing
    covered = nothing if mask is None else mask_ious(scores, mask, thresholds)
    return boxes, overlap, anywhere, covered if masked else nothing[:0]


def _slice(cut: _Cut, some: slice) -> _Cut:
    boxes, overlap, anywhere, covered = cut
    return boxes[some], overlap[some], anywhere[some], covered[some]


def _row(thresholds: np.ndarray, cuts: Sequence[_Cut], facts: Mapping[str, Any]) -> Table:
    """The table of one image."""
    boxes, overlap, anywhere, covered = zip(*cuts, strict=True)
    return replace(
        Table.empty(1, len(cuts), thresholds),
        boxes=np.stack(boxes)[None],
        overlap=np.stack(overlap)[None],
        anywhere=anywhere[0][None],
        mask_overlap=np.stack(covered)[None],
        **{name: np.array([value]) for name, value in facts.items()},
    )


def protocols_right(
    maps: np.ndarray,
    record: Record,
    rules: Rules,
    classes: Sequence[int] | np.ndarray = (),
    ranked: Sequence[int] | np.ndarray = (),
) -> np.ndarray:
    """What each of the older protocols takes for right, bool [P,3]; False without true boxes.

    Args:
        maps: [K,h,w] raw maps, after the ReLU of their method, if any.
        record: with the ground truth.
        rules: with P protocols.
        classes: [K] that the maps are for.
        ranked: the best classes, best first.
    """
    right = np.zeros((len(rules.protocols), 3), bool)
    if record.boxes:
        size, label = stored_size(record), label_of(record)
        given = (maps, classes, ranked, label, record.boxes, size, rules.canvas)
        right[:] = [protocol_right(older, *given) for older in rules.protocols] or right
    return right


@contextmanager
def _naming(key: Key) -> Iterator[None]:
    """Says whose maps a protocol is not for."""
    try:
        yield
    except ValueError as error:
        of = f'{key[0]} at {key[1]}'
        raise ValueError(f'config.evaluate.protocols: {error} ({of})') from None

"""Scores of anybody's score maps on disk, by the protocol of wsolevaluation.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020. Images
are counted in processes of their own; counts of sets of images add up to those of their union.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wsol_jax.data.folders import read_ids, read_localization, read_sizes
from wsol_jax.data.records import DataError, Record, decode_mask, stored_size
from wsol_jax.evaluation.box_metrics import IOUS, BoxCounts
from wsol_jax.evaluation.boxes import rescale_boxes, threshold_boxes
from wsol_jax.evaluation.pixel_metrics import PixelCounts

CANVAS = (224, 224)
_CHUNK = 16  # images that a process counts at once

_Counts = tuple[BoxCounts, PixelCounts]


def evaluate_scoremaps(
    scoremaps: str | Path,
    metadata: str | Path,
    masks: str | Path | None = None,
    interval: float = 0.001,
    processes: int = 1,
) -> dict[str, Any]:
    """Scores the maps of one split.

    Args:
        scoremaps: folder of the maps, `<image_id>.npy`, as `read_scoremap` takes them.
        metadata: folder with image_ids.txt, localization.txt and, for boxes, image_sizes.txt.
        masks: folder that the masks in localization.txt are relative to.
        interval: thresholds are np.arange(0, 1, interval).
        processes: how many to count with. With more than one, a script that calls this needs the
            usual `if __name__ == '__main__':`.

    Returns:
        'images' and 'thresholds'; for boxes 'MaxBoxAcc', 'MaxBoxAccV2' and
        'curves'['largest' or 'all']['30', '50' or '70'], a list over the thresholds; for masks
        'PxAP'. All scores are percentages.

    Raises:
        DataError: a file is missing, wrong, or disagrees with another one.
        ValueError: the interval or the number of processes is out of range.
    """
    if not 0 < interval < 1:
        raise ValueError(f'interval must lie between 0 and 1, got {interval}')
    if processes < 1:
        raise ValueError(f'processes must be at least 1, got {processes}')
    records = scoremap_records(scoremaps, metadata, masks)
    boxes, pixels = _count_all(records, np.arange(0, 1, interval), processes)
    if records[0].masks and not pixels.defined:
        raise DataError(f'{Path(metadata) / "localization.txt"}: all its masks are empty')
    return scoremap_metrics(boxes, pixels)


def scoremap_records(
    scoremaps: str | Path, metadata: str | Path, masks: str | Path | None = None
) -> list[Record]:
    """What there is to score, in the order of image_ids.txt.

    Args:
        scoremaps: folder of the maps, `<image_id>.npy`.
        metadata: folder with image_ids.txt, localization.txt and, for boxes, image_sizes.txt.
        masks: folder that the masks in localization.txt are relative to.

    Returns:
        Records whose `image` is the file of the score map; all have boxes, or all have masks.

    Raises:
        DataError: a map or another file is missing, a line is wrong, or the files disagree.
    """
    metadata, maps = Path(metadata), Path(scoremaps)
    file = metadata / 'localization.txt'
    unlabelled: dict[str, tuple[int, ...]] = dict.fromkeys(read_ids(metadata), ())
    sizes = read_sizes(metadata / 'image_sizes.txt', unlabelled)
    boxes, instances = read_localization(file, Path(masks or ''), unlabelled, sizes)
    if bool(boxes) == bool(instances):
        raise DataError(f'{file}: expected boxes, or masks, of every image')
    if boxes and not sizes:
        raise DataError(f'{metadata / "image_sizes.txt"}: no sizes; boxes are scaled by them')
    if instances and masks is None:
        raise DataError(f'{file}: lists masks; say which folder they are in (--masks)')
    _check_maps(maps, unlabelled)
    return [
        Record(
            image_id=name,
            image=_map_file(maps, name),
            labels=(),
            size=sizes.get(name),
            boxes=tuple(boxes.get(name, ())),
            masks=tuple(instances.get(name, ())),
        )
        for name in unlabelled
    ]


def read_scoremap(file: Path) -> np.ndarray:
    """Reads a score map.

    Returns:
        [224, 224] float64 in [0, 1].

    Raises:
        DataError: the file is missing or no array of that shape, of floats, in that range.
    """
    try:
        scores = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f'{file}: no such score map') from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f'{file}: not a .npy file that can be read ({error})') from None
    if not isinstance(scores, np.ndarray) or not np.issubdtype(scores.dtype, np.floating):
        raise DataError(f'{file}: expected floats, got {getattr(scores, "dtype", "an archive")}')
    if scores.shape != CANVAS:
        raise DataError(f'{file}: expected shape {list(CANVAS)}, got {list(scores.shape)}')
    if np.isnan(scores).any():
        raise DataError(f'{file}: holds NaN')
    if scores.min() < 0 or scores.max() > 1:
        raise DataError(f'{file}: spans {scores.min():g}..{scores.max():g}, must lie in [0, 1]')
    return scores.astype(np.float64)


def count_scoremaps(records: Iterable[Record], thresholds: np.ndarray) -> _Counts:
    """Counts the maps of some images; add the counts of several calls to merge them.

    Args:
        records: of `scoremap_records`.
        thresholds: [T] in [0, 1).

    Returns:
        Counts for boxes and for masks; those without ground truth stay empty.

    Raises:
        DataError: a map or mask cannot be read or is not valid.
    """
    boxes, pixels = BoxCounts.zero(thresholds), PixelCounts.zero(thresholds)
    for record in records:
        assert isinstance(record.image, Path)
        scores = read_scoremap(record.image)
        if record.boxes:
            truth = rescale_boxes(np.array(record.boxes), stored_size(record), CANVAS)
            boxes.add(threshold_boxes(scores, thresholds), truth, blank=not scores.any())
        if record.masks:
            pixels.add(scores, decode_mask(record, CANVAS))
    return boxes, pixels


def scoremap_metrics(boxes: BoxCounts, pixels: PixelCounts) -> dict[str, Any]:
    """The scores that counts add up to, as `evaluate_scoremaps` returns them."""
    metrics: dict[str, Any] = {'images': max(boxes.images, pixels.images)}
    metrics['thresholds'] = boxes.thresholds.tolist()
    if pixels.defined:
        metrics['PxAP'] = pixels.average_precision
    if boxes.images:
        metrics['MaxBoxAcc'] = boxes.max_box_acc
        metrics['MaxBoxAccV2'] = boxes.max_box_acc_v2
        counted = {'largest': boxes.largest, 'all': boxes.anywhere}
        metrics['curves'] = {k: _curves(boxes.accuracy(c)) for k, c in counted.items()}
    return metrics


def _curves(accuracies: np.ndarray) -> dict[str, list[float]]:
    return {f'{100 * iou:.0f}': row.tolist() for iou, row in zip(IOUS, accuracies, strict=True)}


def _map_file(folder: Path, image_id: str) -> Path:
    return folder / f'{image_id}.npy'  # the ending of the image stays: 0.jpeg.npy


def _check_maps(folder: Path, ids: Iterable[str]) -> None:
    files = [_map_file(folder, name) for name in ids]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f'{missing[0]}: no such score map ({len(missing)} of {len(files)} are missing)'
        )


def _count_all(records: Sequence[Record], thresholds: np.ndarray, processes: int) -> _Counts:
    boxes, pixels = BoxCounts.zero(thresholds), PixelCounts.zero(thresholds)
    chunks = [records[i : i + _CHUNK] for i in range(0, len(records), _CHUNK)]
    with (
        tqdm(total=len(records), desc='evaluate', unit='image', disable=None) as bar,
        _counted(chunks, thresholds, processes) as counted,
    ):
        for more_boxes, more_pixels in counted:
            boxes, pixels = boxes + more_boxes, pixels + more_pixels
            bar.update(more_boxes.images or more_pixels.images)
    return boxes, pixels


@contextmanager
def _counted(
    chunks: list[Sequence[Record]], thresholds: np.ndarray, processes: int
) -> Iterator[Iterator[_Counts]]:
    count = partial(count_scoremaps, thresholds=thresholds)
    if processes == 1:
        yield map(count, chunks)
        return
    # JAX has threads: a forked process could hang in a lock that one of them held.
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(processes, spawn, initializer=_start_worker) as pool:
        yield pool.map(count, chunks)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: the pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

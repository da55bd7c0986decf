"""Score maps counted by the drop-in command, against the published evaluator's own procedure.

That finds the contours anew at every threshold (Choe et al., CVPR 2020), here in plain code and in
one process that is running already; the start of the command and of its processes is part of their
time. Both count the largest contour and all contours: that they agree to the last digit is checked
on the loop's maps.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from experiments.benchmark.turns import Row, rows, take_turns, timed
from wsol_jax.evaluation.boxes import box_iou, rescale_boxes
from wsol_jax.evaluation.scoremaps import CANVAS, evaluate_scoremaps

IMAGES, LOOP_IMAGES = 2000, 50
INTERVALS = (0.01, 0.001)  # between thresholds
PROCESSES = (1, 2)
LEVELS = (0.3, 0.5, 0.7)
SIZES = ((500, 375), (320, 480), (224, 224))  # (width, height) of the images

# (width, height) of an image, and its box.
Truth = tuple[tuple[int, int], np.ndarray]


def section(
    repeats: int,
    images: int = IMAGES,
    loop_images: int = LOOP_IMAGES,
    intervals: Sequence[float] = INTERVALS,
    processes: Sequence[int] = PROCESSES,
) -> Iterator[Row]:
    """Rows of each number of thresholds; the ratios are of the speed of the loop."""
    with tempfile.TemporaryDirectory() as name:
        some, many = Path(name) / 'some', Path(name) / 'many'
        truths = write_maps(some, loop_images)
        write_maps(many, images)
        for interval in intervals:
            check_same(some, truths, interval)
            cases = {'loop': timed(lambda step=interval: loop(some, truths, step), loop_images)}
            for count in processes:
                command = lambda n=count, step=interval: run_command(many, step, n)  # noqa: E731
                cases[f'command, {count} processes'] = timed(command, images)
            where = f'{round(1 / interval)} thresholds, {images} maps: '
            yield from rows(take_turns(cases, repeats), 'loop', of='speed', where=where)


def write_maps(folder: Path, count: int) -> list[Truth]:
    """Maps and metadata of `count` images: smooth maps, blobs, and noise."""
    rng, truths = np.random.default_rng(0), []
    (folder / 'maps').mkdir(parents=True)
    for i in range(count):
        side = (7, 14, 28)[i % 3]
        low = rng.random((side, side)) ** (1 + i % 4)
        scores = cv2.resize(low, CANVAS, interpolation=cv2.INTER_CUBIC)
        scores -= scores.min()
        np.save(folder / 'maps' / f'{i}.npy', scores / scores.max())
        width, height = size = SIZES[i % len(SIZES)]
        low_x, low_y = rng.integers(0, width // 2), rng.integers(0, height // 2)
        high_x, high_y = rng.integers(low_x + 20, width), rng.integers(low_y + 20, height)
        truths.append((size, np.array([[low_x, low_y, high_x, high_y]])))
    lines = {
        'image_ids': [f'{i}' for i in range(count)],
        'image_sizes': [f'{i},{w},{h}' for i, ((w, h), _) in enumerate(truths)],
        'localization': [f'{i},{",".join(map(str, b[0]))}' for i, (_, b) in enumerate(truths)],
    }
    for name, text in lines.items():
        (folder / f'{name}.txt').write_text('\n'.join(text))
    return truths


def check_same(folder: Path, truths: Sequence[Truth], interval: float) -> None:
    """Refuses to compare the time of scores that are not the same.

    Raises:
        AssertionError: they differ.
    """
    curves = evaluate_scoremaps(folder / 'maps', folder, interval=interval)['curves']
    found = np.array([list(curves[kind].values()) for kind in ('largest', 'all')])
    np.testing.assert_array_equal(found, loop(folder, truths, interval))


def loop(folder: Path, truths: Sequence[Truth], interval: float) -> np.ndarray:
    """[2, 3, T] percentages, of the largest and of all contours, one threshold after another."""
    thresholds = np.arange(0, 1, interval)
    hits = np.zeros((2, len(LEVELS), len(thresholds)), int)
    for i, (size, box) in enumerate(truths):
        grey = (np.load(folder / 'maps' / f'{i}.npy') * 255).astype(np.uint8)
        found = [contours_above(grey, threshold) for threshold in thresholds]
        ious = box_iou(
            np.concatenate([boxes for boxes, _ in found]), rescale_boxes(box, size, CANVAS)
        )
        parts = np.split(ious.max(axis=1), np.cumsum([len(boxes) for boxes, _ in found])[:-1])
        best = [
            [part[largest] for part, (_, largest) in zip(parts, found, strict=True)],
            [part.max() for part in parts],
        ]
        hits += np.array(best)[:, None] >= np.array(LEVELS)[:, None]
    return 100.0 * hits / len(truths)


def contours_above(grey: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Boxes of all contours, and which of them is the largest."""
    _, binary = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((1, 4), int), 0
    x, y, w, h = np.array([cv2.boundingRect(contour) for contour in contours]).T
    high, wide = grey.shape
    boxes = np.stack([x, y, np.minimum(x + w, wide - 1), np.minimum(y + h, high - 1)], axis=1)
    return boxes, int(np.argmax([cv2.contourArea(contour) for contour in contours]))


def run_command(folder: Path, interval: float, processes: int) -> None:
    """`python -m wsol_jax.evaluation`, from its start to its end."""
    options = {
        'scoremaps': folder / 'maps',
        'metadata': folder,
        'interval': interval,
        'processes': processes,
        'out': folder / 'scores.json',
    }
    arguments = [f'--{name}={value}' for name, value in options.items()]
    command = [sys.executable, '-m', 'wsol_jax.evaluation', *arguments]
    subprocess.run(command, check=True, capture_output=True)

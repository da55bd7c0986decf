"""How fast score maps are counted, as a multiple of a plain loop over thresholds.

    python experiments/speed_evaluation.py [--images 2000] [--loop_images 100]

Counts generated score maps (smooth ones, blobs, and noise) in one run: with the loop, which finds
the contours anew at every threshold, then with `evaluate_scoremaps` at more and more thresholds
and in more and more processes. Both count the largest contour and all contours; that they agree to
the last digit is checked on the loop's images. The processes' start is part of their time.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

from wsol_jax.evaluation.boxes import box_iou, rescale_boxes
from wsol_jax.evaluation.scoremaps import CANVAS, evaluate_scoremaps
from wsol_jax.report.table import markdown

_IMAGES = flags.DEFINE_integer('images', 2000, 'Images in all.')
_LOOP = flags.DEFINE_integer('loop_images', 100, 'Images that the loop counts.')
_PROCESSES = flags.DEFINE_multi_integer('processes', [1, 2], 'Processes to try.')
_INTERVALS = flags.DEFINE_multi_float('interval', [0.01, 0.003, 0.001], 'Between thresholds.')

LEVELS = (0.3, 0.5, 0.7)
SIZES = ((500, 375), (320, 480), (224, 224))  # (width, height) of the images


def write_data(folder: Path, count: int) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Maps and metadata of `count` images; returns (size, box) of each."""
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


def loop(folder: Path, truths: Sequence[tuple], interval: float) -> np.ndarray:
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


def curves_of(metrics: dict) -> np.ndarray:
    """The curves of `evaluate_scoremaps` as the loop returns them."""
    return np.array([list(metrics['curves'][kind].values()) for kind in ('largest', 'all')])


def main(_: list[str]) -> None:
    """Times and prints the table."""
    rows = [['thresholds', 'loop, images/s', *(f'{n} processes' for n in _PROCESSES.value)]]
    with tempfile.TemporaryDirectory() as name:
        some, many = Path(name) / 'some', Path(name) / 'many'
        truths = write_data(some, _LOOP.value)
        write_data(many, _IMAGES.value)
        for interval in _INTERVALS.value:
            start = time.perf_counter()
            expected = loop(some, truths, interval)
            plain = _LOOP.value / (time.perf_counter() - start)
            found = curves_of(evaluate_scoremaps(some / 'maps', some, interval=interval))
            np.testing.assert_array_equal(found, expected)
            rows.append([f'{expected.shape[-1]}', f'{plain:.1f}'])
            for processes in _PROCESSES.value:
                start = time.perf_counter()
                evaluate_scoremaps(many / 'maps', many, interval=interval, processes=processes)
                speed = _IMAGES.value / (time.perf_counter() - start)
                rows[-1].append(f'{speed:.1f} ({speed / plain:.1f} x)')
    print(markdown(rows))


if __name__ == '__main__':
    app.run(main)

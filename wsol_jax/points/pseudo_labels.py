"""Files of boxes that somebody found in frames: one JSON a frame, of a teacher or of anybody."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data.files import may_pass, printable, reason
from wsol_jax.data.frames import FrameTargets, check_box, frame_of
from wsol_jax.data.records import UNLABELLED, DataError, ReadError, Record, filled
from wsol_jax.names import unknown_name
from wsol_jax.workdir import read_csv, write_text

TRUTH = 'truth'  # in place of a folder: the boxes of the data set
FOLDER = 'pseudo_labels'  # in maps/<split>


def write_pseudo_labels(
    path: Path, boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray, names: tuple[str, ...]
) -> None:
    """Writes the boxes of a frame.

    Args:
        path: of the file.
        boxes: [n,7], rows x, y, z, l, w, h, yaw.
        classes: int [n].
        scores: [n].
        names: of the classes.
    """
    found = {
        'boxes': np.round(boxes.astype(float), 4).tolist(),
        'classes': [names[k] for k in classes],
        'scores': np.round(scores.astype(float), 6).tolist(),
    }
    write_text(path, json.dumps(found) + '\n')


def without_pseudo_labels(folder: Path, image_ids: Sequence[str]) -> frozenset[str]:
    """Which of some frames have no file, as a teacher could not read them: its store tells so.

    Args:
        folder: of pseudo labels, in that of the store.
        image_ids: of the frames.

    Raises:
        DataError: others have none.
    """
    files = {image_id: _file_of(folder, image_id) for image_id in image_ids}
    parents = {file.parent for file in files.values() if file.parent.is_dir()}
    there = {file for parent in parents for file in parent.iterdir()}
    missing = [image_id for image_id, file in files.items() if file not in there]
    if not missing:
        return frozenset()
    skipped = {row['image_id'] for row in read_csv(folder.parent / 'skipped.csv', ('image_id',))}
    if lost := [image_id for image_id in missing if image_id not in skipped]:
        raise DataError(
            f'{printable(str(folder))}: has no file of {len(lost)} of the {len(files)} frames that '
            f'need one, such as {printable(lost[0])}.json; run the stage localize of the teacher '
            'with this split in config.localize.splits to its end: it goes on where it stopped'
        )
    return frozenset(missing)


def _file_of(folder: Path, image_id: str) -> Path:
    return folder / f'{image_id}.json'


def read_pseudo_labels(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n,7] and classes int32 [n] of a file.

    Raises:
        DataError: it is missing or no such file, or has another class or a box that is none.
        ReadError: the system failed to read it.
    """
    where = printable(str(path))
    try:
        found = json.loads(path.read_text())
        boxes = np.array(found['boxes'], np.float32).reshape(-1, 7)
        given = [str(name) for name in found['classes']]
    except OSError as error:
        if may_pass(error):
            raise ReadError(f'{where}: {reason(error)}') from None
        raise DataError(
            f'{where}: no such file; the stage localize of a teacher writes one a frame'
        ) from None
    except (ValueError, TypeError, KeyError):
        raise DataError(
            f'{where}: must be JSON with boxes, rows of 7 numbers, and classes'
        ) from None
    if len(given) != len(boxes):
        raise DataError(f'{where}: has {len(boxes)} boxes and {len(given)} classes')
    for name in given:
        if name not in names:
            raise DataError(f'{where}: {unknown_name("class", name, names)}')
    for box in boxes:
        check_box(box, where)
    return boxes, np.array([names.index(name) for name in given], np.int32)


@dataclass(frozen=True)
class StudentTargets:
    """What a batch carries of a frame for a student; see `FrameTargets`.

    'point_classes' int32 [N] are those of annotated points. Where training knows no boxes, 'boxes'
    and 'box_classes' are those of a folder, and 'labelled' is true, but for frames without a file.

    Attributes:
        frames: targets of frames.
        labels: a folder of pseudo labels; 'truth' for the true boxes of all; '' for none.
        names: of the classes.
        without: frames that have no file, see `without_pseudo_labels`.
    """

    frames: FrameTargets
    labels: str
    names: tuple[str, ...]
    without: frozenset[str] = frozenset()

    def __call__(self, record: Record) -> dict[str, NDArray[Any]]:
        """The targets of a record.

        Raises:
            DataError: see `FrameTargets` and `read_pseudo_labels`; or there are too many boxes.
        """
        found = self.frames(record)
        found['point_classes'] = found['box_classes']
        taught = self.labels and record.image_id not in self.without
        if taught and not frame_of(record).labelled:
            found['labelled'] = np.array(True)
            if self.labels != TRUTH:
                found |= self._pseudo(record)
        return found

    def _pseudo(self, record: Record) -> dict[str, NDArray[Any]]:
        path = _file_of(Path(self.labels), record.image_id)
        boxes, classes = read_pseudo_labels(path, self.names)
        most = self.frames.most_boxes
        if len(boxes) > most:
            where = printable(str(path))
            raise DataError(f'{where}: has {len(boxes)} boxes, but a frame can have {most} here')
        return {
            'boxes': filled(boxes, (most,)),
            'box_classes': filled(classes, (most,), UNLABELLED),
        }

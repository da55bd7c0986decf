"""Finds what is wrong with data sets of LiDAR and cameras."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing.pool import ThreadPool

from wsol_jax.data.boxes_3d import points_inside
from wsol_jax.data.check_images import Finding
from wsol_jax.data.frames import Frame, frame_of, read_points
from wsol_jax.data.records import DataError, Record, Source

SWEEPS = 'sweeps that are missing, of a wrong length, or have what is no number; replace them'
EMPTY = 'frames with boxes in which no point lies; nothing is found there'


def camera_records(record: Record) -> list[Record]:
    """A record for each image of a frame; of a record without a frame itself."""
    frame = record.extra.get('frame')
    if not isinstance(frame, Frame):
        return [record]
    return [replace(record, image=camera.image, size=camera.size) for camera in frame.cameras]


def frame_findings(splits: Mapping[str, Source], threads: int) -> Iterator[Finding]:
    """What is to be said of the sweeps of every frame and its boxes; all points are read.

    Args:
        splits: of the data set.
        threads: that read.
    """
    records = (source[index] for source in splits.values() for index in range(len(source)))
    once = {record.image_id: record for record in records}  # train is a part of trainval
    with ThreadPool(threads) as pool:
        for found in pool.imap(_finding, once.values()):
            yield from found
        pool.close()
        pool.join()


def _finding(record: Record) -> list[Finding]:
    frame = frame_of(record)
    try:
        points = read_points(frame)
    except DataError as error:
        return [Finding(SWEEPS, str(error))]
    empty = int((~points_inside(points, frame.boxes).any(1)).sum())
    line = f'{record.image_id!r}: {empty} of {len(frame.boxes)} boxes'
    return [Finding(EMPTY, line, False)] if empty else []

"""Scores of anybody's score maps on disk, by the protocol of wsolevaluation.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020. Images
are scored in processes of their own; scores of sets of images join to those of their union.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wsol_jax.data.metadata import (
    check_complete,
    read_ids,
    read_labels,
    read_localization,
    read_sizes,
)
from wsol_jax.data.records import DataError, Record
from wsol_jax.evaluation.processes import AT_ONCE, mapper
from wsol_jax.evaluation.protocols import protocol
from wsol_jax.evaluation.scoring import Rules, protocols_right, score_image
from wsol_jax.evaluation.table import Scores
from wsol_jax.evaluation.truth import ground_truth, label_of
from wsol_jax.names import shortened, shown
from wsol_jax.settings import SETTINGS

CANVAS = (224, 224)
_LARGEST = 2**20  # bytes of a score map; float128 takes .8 million


def evaluate_scoremaps(
    scoremaps: str | Path,
    metadata: str | Path,
    masks: str | Path | None = None,
    interval: float = 0.001,
    processes: int = 1,
    protocols: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the maps of one split.

    Args:
        scoremaps: folder of the maps, `<image_id>.npy`, as `read_scoremap` takes them.
        metadata: folder with image_ids.txt, localization.txt and, for boxes, image_sizes.txt.
        masks: folder that the masks in localization.txt are relative to.
        interval: thresholds are np.arange(0, 1, interval).
        processes: how many to count with.
        protocols: how older tables counted boxes, such as 'cvpr16' or 'bas:0.15'; see
            `wsol_jax.evaluation.protocols`.

    Returns:
        'images' and 'thresholds'; for boxes 'MaxBoxAcc', 'MaxBoxAccV2' and
        'curves'['largest' or 'all']['30', '50' or '70'], a list over the thresholds; for masks
        'PxAP', 'PeakIoU' (the best mean IoU, LID challenge), 'PeakPooledIoU' and
        'curves'['mIoU' or 'PooledIoU']; 'protocols'[name]. All scores are percentages.

    Raises:
        DataError: a file is missing, wrong, or disagrees with another one.
        ValueError: the interval or the number of processes is out of range, or there is no such
            protocol.
    """
    for name, value, key in (
        ('interval', interval, 'evaluate.threshold_step'),
        ('processes', processes, 'evaluate.processes'),
    ):
        if fault := SETTINGS[key].fault(value):
            raise ValueError(f'{name} must {fault}, got {shown(value)}')
    rules = scoremap_rules(np.arange(0, 1, interval), protocols)
    records = scoremap_records(scoremaps, metadata, masks)
    _check_protocols(rules, records, Path(metadata))
    scores = _score_all(records, rules, processes)
    if records[0].masks and not scores.curves.masked:
        raise DataError(f'{Path(metadata) / "localization.txt"}: all its masks are empty')
    return scoremap_metrics(scores, protocols)


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
    labels: dict[str, tuple[int, ...]] = dict.fromkeys(read_ids(metadata), ())
    if (metadata / 'class_labels.txt').exists():
        labels = read_labels(metadata, list(labels), None)
    sizes = read_sizes(metadata / 'image_sizes.txt', labels)
    # Without sizes, boxes may reach beyond the image, as wsolevaluation lets them.
    boxes, instances = read_localization(file, Path(masks or ''), labels, {})
    if bool(boxes) == bool(instances):
        raise DataError(f'{file}: expected boxes, or masks, of every image')
    check_complete(file, labels, boxes or instances)  # as wsolevaluation needs it
    if boxes and not sizes:
        raise DataError(f'{metadata / "image_sizes.txt"}: no sizes; boxes are scaled by them')
    if instances and masks is None:
        raise DataError(f'{file}: lists masks; say which folder they are in (--masks)')
    _check_maps(maps, labels)
    return [
        Record(
            image_id=name,
            image=_map_file(maps, name),
            labels=labels[name],
            size=sizes.get(name),
            boxes=tuple(boxes.get(name, ())),
            masks=tuple(instances.get(name, ())),
        )
        for name in labels
    ]


def read_scoremap(file: Path) -> np.ndarray:
    """Reads a score map.

    Returns:
        [224, 224] float64 in [0, 1].

    Raises:
        DataError: the file is missing or no array of that shape, of floats, in that range.
    """
    scores = _read_floats(file)
    if np.isnan(scores).any():
        raise DataError(f'{file}: holds NaN')
    if scores.min() < 0 or scores.max() > 1:
        raise DataError(f'{file}: spans {scores.min():g}..{scores.max():g}, must lie in [0, 1]')
    return scores.astype(np.float64)


def _read_floats(file: Path) -> np.ndarray:
    """A .npy file of floats of the right shape; what its header announces is not believed."""
    if not file.is_file():
        raise DataError(f'{file}: no such score map')
    try:
        with file.open('rb') as opened:
            content = io.BytesIO(opened.read(_LARGEST))
        shape, by_columns, kind = _npy_header(content)
    except Exception as error:  # the header is parsed as Python: damaged, it raises nearly anything
        text = ' '.join(str(error).split())
        raise DataError(f'{file}: not a .npy file that can be read ({shortened(text)})') from None
    if not np.issubdtype(kind, np.floating):
        raise DataError(f'{file}: expected floats, got {shortened(str(kind))}')
    if shape != CANVAS:
        raise DataError(f'{file}: expected shape {list(CANVAS)}, got {shown(list(shape))}')
    values = np.frombuffer(content.read(CANVAS[0] * CANVAS[1] * kind.itemsize), np.uint8)
    if values.size < CANVAS[0] * CANVAS[1] * kind.itemsize:
        raise DataError(f'{file}: not a .npy file that can be read (it ends too early)')
    return values.view(kind).reshape(CANVAS, order='F' if by_columns else 'C')


def _npy_header(content: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(content)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(content)
    raise ValueError(f'version {version}')


def scoremap_rules(thresholds: np.ndarray, protocols: Sequence[str] = ()) -> Rules:
    """How score maps are scored.

    Args:
        thresholds: [T] in [0, 1).
        protocols: of older tables, by name.

    Raises:
        ValueError: there is no such protocol.
    """
    return Rules(CANVAS, thresholds, protocols=tuple(protocol(name) for name in protocols))


def score_scoremaps(records: Iterable[Record], rules: Rules) -> Scores:
    """Scores the maps of some images; `Scores.joined` makes those of several calls one.

    Args:
        records: of `scoremap_records`, at least one.
        rules: of `scoremap_rules`.

    Returns:
        Curves for boxes and for masks; the table is of no threshold and without histograms.

    Raises:
        DataError: a map or mask cannot be read or is not valid.
    """
    return Scores.joined(_score(record, rules) for record in records)


def _score(record: Record, rules: Rules) -> Scores:
    assert isinstance(record.image, Path)
    scores, label = read_scoremap(record.image), label_of(record)
    truth = ground_truth(record, CANVAS)
    found = score_image([scores], truth, rules, masked=truth[1] is not None)
    right = protocols_right(scores[None], record, rules)
    # The curves have the histograms; those of each image, at a thousand thresholds, add up.
    own = {'label': -1 if label is None else label, 'protocols': right}
    return found.with_facts(**own, foreground=(), background=())


def scoremap_metrics(scores: Scores, protocols: Sequence[str] = ()) -> dict[str, Any]:
    """What scores amount to, as `evaluate_scoremaps` returns it.

    Args:
        scores: of all images.
        protocols: those of the rules.
    """
    curves: dict[str, Any] = {}
    for name, curve in scores.curves.curves().items():
        kind, _, level = name.partition('_')  # largest_50 -> ['largest']['50']
        if level:
            curves.setdefault(kind, {})[level] = curve.tolist()
        else:
            curves[name] = curve.tolist()
    facts = {'images': scores.curves.images, 'thresholds': scores.curves.thresholds.tolist()}
    metrics = {**facts, **scores.curves.oracles(), 'curves': curves}
    older = scores.table.protocol_scores(protocols, 'ground_truth')
    known = {name: of_protocol['GTKnownLoc'] for name, of_protocol in older.items()}
    return metrics | {'protocols': known} if known else metrics


def _map_file(folder: Path, image_id: str) -> Path:
    return folder / f'{image_id}.npy'  # the ending of the image stays: 0.jpeg.npy


def _check_maps(folder: Path, ids: Iterable[str]) -> None:
    files = [_map_file(folder, name) for name in ids]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f'{missing[0]}: no such score map ({len(missing)} of {len(files)} are missing)'
        )


def _check_protocols(rules: Rules, records: Sequence[Record], folder: Path) -> None:
    for older in rules.protocols:
        if not records[0].boxes:
            file = folder / 'localization.txt'
            raise DataError(f'{file}: no boxes, and protocol {older.name!r} scores nothing else')
        if older.macro and not records[0].labels:
            file = folder / 'class_labels.txt'
            raise DataError(f'{file}: no such file; protocol {older.name!r} is a mean over classes')


def _score_all(records: Sequence[Record], rules: Rules, processes: int) -> Scores:
    chunks = [records[i : i + AT_ONCE] for i in range(0, len(records), AT_ONCE)]
    with (
        tqdm(total=len(records), desc='evaluate', unit='image', disable=None) as bar,
        mapper(processes) as over,
    ):

        def counted() -> Iterator[Scores]:
            for scores in over(partial(score_scoremaps, rules=rules), chunks):
                yield scores
                bar.update(len(scores.table))

        return Scores.joined(counted())

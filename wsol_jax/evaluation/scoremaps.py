"""Scores of anybody's score maps on disk, by the protocol of wsolevaluation.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020. Images
are scored in processes of their own; scores of sets of images join to those of their union.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.data.metadata import (
    check_complete,
    class_names,
    read_ids,
    read_labels,
    read_localization,
    read_sizes,
)
from wsol_jax.data.records import DataError, Record
from wsol_jax.evaluation.breakdown import by_class, by_size, intervals
from wsol_jax.evaluation.processes import in_parts
from wsol_jax.evaluation.protocols import protocol
from wsol_jax.evaluation.scoring import Rules, protocols_right, score_image
from wsol_jax.evaluation.table import Scores, Table
from wsol_jax.evaluation.truth import ground_truth, label_of
from wsol_jax.maps.score import score_map
from wsol_jax.names import shortened, shown
from wsol_jax.settings import SETTINGS

CANVAS = (224, 224)
_LARGEST = 2**24  # values of a score map
_HEAD = 2**16  # bytes of a file that its header lies in
_KEY = ('', '')  # maps of one method, whose name does not matter
_OF_THRESHOLD = ('GTKnownLoc', 'mIoU')
_ORACLES = ('MaxBoxAcc', 'MaxBoxAccV2', 'PeakIoU', 'PeakPooledIoU')


def evaluate_scoremaps(
    scoremaps: str | Path,
    metadata: str | Path,
    masks: str | Path | None = None,
    interval: float = 0.001,
    processes: int = 1,
    protocols: Sequence[str] = (),
    choose_on: str | Path | None = None,
    choose_on_scoremaps: str | Path | None = None,
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
        choose_on: the metadata of another split, which the threshold is chosen on; None for the
            best one of the scored split, an oracle.
        choose_on_scoremaps: folder of the maps of that split.

    Returns:
        'images' and 'thresholds'; for boxes 'MaxBoxAcc', 'MaxBoxAccV2' and
        'curves'['largest' or 'all']['30', '50' or '70'], a list over the thresholds; for masks
        'PxAP', 'PeakIoU' (the best mean IoU, LID challenge), 'PeakPooledIoU' and
        'curves'['mIoU' or 'PooledIoU']; 'protocols'[name]. At the one 'threshold', chosen on the
        split that 'threshold_from' names: 'GTKnownLoc' or 'mIoU', 95 % bootstrap 'intervals' of
        that and of PxAP, 'by_class' and 'by_size' of the object. 'oracles' names the scores of
        thresholds that are the best for the scored images. All scores are percentages.

    Raises:
        DataError: a file is missing, wrong, or disagrees with another one.
        ValueError: the interval or the number of processes is out of range, there is no such
            protocol, or only one of the folders to choose on is given.
    """
    for name, value, key in (
        ('interval', interval, 'evaluate.threshold_step'),
        ('processes', processes, 'evaluate.processes'),
    ):
        if fault := SETTINGS[key].fault(value):
            raise ValueError(f'{name} must {fault}, got {shown(value)}')
    if (choose_on is None) != (choose_on_scoremaps is None):
        raise ValueError('choose_on and choose_on_scoremaps go together: give both, or none')
    rules = scoremap_rules(np.arange(0, 1, interval), protocols)
    split = _Split(Path(metadata), scoremap_records(scoremaps, metadata, masks), processes)
    _check_protocols(rules, split.records, split.metadata)
    other = split
    if choose_on is not None and choose_on_scoremaps is not None:
        records = scoremap_records(choose_on_scoremaps, choose_on, masks)
        other = _Split(Path(choose_on), records, processes)
    scores, threshold = _scored(split, other, rules)
    chosen = {'threshold': threshold, 'threshold_from': other.metadata.resolve().name}
    oracles = [name for name in scores.curves.oracles() if name in _ORACLES]
    at = _at_threshold(scores.table, class_namer(split.metadata))
    oracles += [name for name in _OF_THRESHOLD if name in at and other is split]
    return scoremap_metrics(scores, protocols) | chosen | at | {'oracles': oracles}


@dataclass(frozen=True)
class _Split:
    """What there is to score, and in how many processes."""

    metadata: Path
    records: list[Record]
    processes: int

    def scored(self, rules: Rules, kept: Sequence[float] = ()) -> Scores:
        score = partial(score_scoremaps, rules=rules, kept=kept)
        scores = Scores.joined(in_parts(score, self.records, self.processes))
        if self.records[0].masks and not scores.curves.masked:
            raise DataError(f'{self.metadata / "localization.txt"}: all its masks are empty')
        return scores


def _scored(split: _Split, other: _Split, rules: Rules) -> tuple[Scores, float]:
    """Scores of a split, the table at the threshold that is best on the other one, or on itself."""
    if other is not split:
        if bool(other.records[0].boxes) != bool(split.records[0].boxes):
            kind = 'boxes' if split.records[0].boxes else 'masks'
            file = other.metadata / 'localization.txt'
            raise DataError(f'{file}: expected {kind}, as the scored split has them')
        threshold = _best_threshold(other.scored(replace(rules, protocols=())))
        return split.scored(rules, [threshold]), threshold
    whole = split.scored(rules)
    threshold = _best_threshold(whole)
    # Boxes need no other threshold any more; the interval of PxAP needs them all.
    cuts = rules.thresholds if whole.curves.masked else rules.thresholds[:0]
    again = split.scored(replace(rules, thresholds=cuts, protocols=()), [threshold])
    return Scores(replace(again.table, protocols=whole.table.protocols), whole.curves), threshold


def _best_threshold(scores: Scores) -> float:
    threshold = scores.curves.best_threshold
    assert threshold is not None  # all images have boxes, or some mask has foreground
    return threshold


def _at_threshold(table: Table, name_of: Callable[[int], str]) -> dict[str, Any]:
    """What the images score at the one threshold of the table."""
    tables = {_KEY: table}
    parts = {
        'by_class': by_class(tables, 'given', name_of),
        'by_size': by_size(tables, 'given'),
    }
    unnamed = {
        part: [{k: v for k, v in row.items() if k not in ('method', 'layer')} for row in rows]
        for part, rows in parts.items()
    }
    return {**table.means('given'), 'intervals': intervals(tables, 'given')[_KEY], **unnamed}


def class_namer(metadata: Path) -> Callable[[int], str]:
    """What a class is called in class_names.txt here or in the root of the data; its number.

    Raises:
        DataError: that file names no class.
    """
    folders = metadata, metadata.resolve().parent.parent
    found = (class_names(folder / 'class_names.txt', False)[0] for folder in folders)
    names = next(filter(None, found), ())
    return lambda label: names[label] if label < len(names) else str(label)


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
    """Reads a score map: 224 x 224 as it is, of another size resized and scaled to [0, 1].

    Returns:
        [224, 224] float64 in [0, 1].

    Raises:
        DataError: the file is missing or no array [height, width] of finite floats; or it is
            224 x 224, and not all of it lies in [0, 1].
    """
    scores = _read_floats(file)
    if np.isnan(scores).any():
        raise DataError(f'{file}: holds NaN')
    low, high = float(scores.min()), float(scores.max())
    if scores.shape == CANVAS and (low < 0 or high > 1):
        raise DataError(f'{file}: spans {low:g}..{high:g}, must lie in [0, 1]')
    if not np.isfinite([low, high]).all():
        raise DataError(f'{file}: spans {low:g}..{high:g}, must be finite')
    return scores.astype(np.float64) if scores.shape == CANVAS else score_map(scores, CANVAS)


def _read_floats(file: Path) -> np.ndarray:
    """A .npy file of floats; what its header announces is not believed."""
    if not file.is_file():
        raise DataError(f'{file}: no such score map')
    with file.open('rb') as opened:
        try:
            head = io.BytesIO(opened.read(_HEAD))
            shape, by_columns, kind = _npy_header(head)
        except Exception as error:  # the header is Python: damaged, it raises nearly anything
            text = ' '.join(str(error).split())
            what = f'not a .npy file that can be read ({shortened(text)})'
            raise DataError(f'{file}: {what}') from None
        if not np.issubdtype(kind, np.floating):
            raise DataError(f'{file}: expected floats, got {shortened(str(kind))}')
        if len(shape) != 2 or not 0 < shape[0] * shape[1] <= _LARGEST or min(shape) < 1:
            expected = 'expected shape [height, width], best [224, 224], of at most 4096 * 4096'
            raise DataError(f'{file}: {expected}, got {shown(list(shape))}')
        size = shape[0] * shape[1] * kind.itemsize
        opened.seek(head.tell())
        values = np.frombuffer(opened.read(size), np.uint8)
    if values.size < size:
        raise DataError(f'{file}: not a .npy file that can be read (it ends too early)')
    return values.view(kind).reshape(shape, order='F' if by_columns else 'C')


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


def score_scoremaps(records: Iterable[Record], rules: Rules, kept: Sequence[float] = ()) -> Scores:
    """Scores the maps of some images; `Scores.joined` makes those of several calls one.

    Args:
        records: of `scoremap_records`, at least one.
        rules: of `scoremap_rules`.
        kept: the thresholds that the table is of.

    Returns:
        Curves for boxes and for masks, and a table; one of no threshold is without histograms.

    Raises:
        DataError: a map or mask cannot be read or is not valid.
    """
    return Scores.joined(_score(record, rules, kept) for record in records)


def _score(record: Record, rules: Rules, kept: Sequence[float]) -> Scores:
    assert isinstance(record.image, Path)
    scores, label = read_scoremap(record.image), label_of(record)
    truth = ground_truth(record, CANVAS)
    found = score_image([scores], truth, rules, kept, masked=truth[1] is not None)
    right = protocols_right(scores[None], record, rules)
    found = found.with_facts(label=-1 if label is None else label, protocols=right)
    # The curves have the histograms; those of each image, at a thousand thresholds, add up.
    return found if len(kept) else found.with_facts(foreground=(), background=())


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
    count = {'images': scores.curves.images, 'blank_maps': scores.curves.blank}
    facts = {**count, 'thresholds': scores.curves.thresholds.tolist()}
    metrics = {**facts, **scores.curves.oracles(), 'curves': curves}
    older = scores.table.protocol_scores(protocols, 'given')
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

"""Segmentation from image labels as a task: from labels to maps, seeds, label maps and scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Source, check_training, decode_image
from wsol_jax.data.label_maps import BACKGROUND, read_label_map
from wsol_jax.evaluation.frame import evaluate_splits
from wsol_jax.evaluation.processes import mapper
from wsol_jax.evaluation.split import SplitMaps, StoredSplit
from wsol_jax.localization.method import HEAD
from wsol_jax.localization.stage import localize_split
from wsol_jax.localization.task import LOCALIZATION
from wsol_jax.maps import Key
from wsol_jax.maps.columns import Store
from wsol_jax.maps.store import MapStore
from wsol_jax.models import Network
from wsol_jax.models.deeplab import SegmentationHeads
from wsol_jax.report.seeds import report_seeds
from wsol_jax.segmentation.affinity import walked
from wsol_jax.segmentation.label_maps import write_label_map
from wsol_jax.segmentation.predictions import is_predicted, predicts, segment_split
from wsol_jax.segmentation.score import SeedCurves, metrics_of, scores_of
from wsol_jax.segmentation.seed_scores import (
    LABEL_MAPS,
    PredictedSplit,
    has_truth,
    joined_curves,
    score_predicted,
    score_seeds,
    seed_file,
    total_confusion,
    write_seeds,
)
from wsol_jax.segmentation.seeds import crf_of_places, refined_label_map
from wsol_jax.task import Task
from wsol_jax.training.methods import make_method
from wsol_jax.training.methods.irn import BOUNDARY
from wsol_jax.workdir import write_csv

_CURVES = ('mIoU', 'Precision', 'Recall')
_BOUNDARY = BOUNDARY, HEAD
_Scored = Mapping[Key, SeedCurves]


def _compute(config: Config, network: Network, source: Source, split: str, workdir: Path) -> Store:
    """Label maps where the network segments: the labels of images are not to help it."""
    config = _fitting(config, network)
    if predicts(network):
        return segment_split(config, network, source, split, workdir)
    walk = _Walk(config.segmentation.walk) if config.segmentation.walk else None
    return localize_split(config, network, source, split, workdir, walk, seeds=True)


@dataclass(frozen=True)
class _Walk:
    """Maps, the boundary among them -> those of classes, carried to it."""

    doublings: int

    def __call__(self, maps: dict[Key, jax.Array]) -> dict[Key, jax.Array]:
        boundary = maps[_BOUNDARY][:, 0]
        of_classes = {key: found for key, found in maps.items() if key != _BOUNDARY}
        return {k: walked(found, boundary, self.doublings) for k, found in of_classes.items()}


def _fitting(config: Config, network: Network) -> Config:
    """The settings for a network: where maps are to walk, the boundaries are made beside them.

    Raises:
        ConfigError: it finds none, or it segments and a CRF is for seeds.
    """
    setting = config.localize
    if config.segmentation.crf and predicts(network):
        raise ConfigError(
            'config.segmentation.crf is for seeds, and this network predicts label maps; set it to '
            'False'
        )
    if not config.segmentation.walk:
        return config
    if network.own_map is None or network.own_map.name != BOUNDARY:
        raise ConfigError(
            "config.segmentation.walk needs a network that config.train.method='irn' trained; set "
            'it to 0 for others'
        )
    methods = tuple(dict.fromkeys((*setting.methods, BOUNDARY)))
    return replace(config, localize=replace(setting, methods=methods))


def _evaluate(
    config: Config, sources: Mapping[str, Source], workdir: Path, network: Network | None
) -> dict[str, Any]:
    del network
    predicted = [is_predicted(Store(workdir / 'maps' / name)) for name in sources]
    evaluate = evaluate_predicted if all(predicted) else evaluate_seeds
    return evaluate(config, sources, workdir)


def evaluate_predicted(
    config: Config, sources: Mapping[str, Source], workdir: Path
) -> dict[str, Any]:
    """Scores the label maps that were predicted of every split; writes metrics.json.

    Nothing is chosen: no threshold, and no label of an image is looked at.

    Args:
        config: the experiment.
        sources: {split: source}; images without a true label map are not scored.
        workdir: with the label maps of these splits.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: label maps are missing or of other images, or do not fit the true ones.
    """
    splits = [PredictedSplit(n, s, Store(workdir / 'maps' / n)) for n, s in sources.items()]
    count = 1 + splits[-1].source.num_classes
    return evaluate_splits(
        config.evaluate,
        splits,
        workdir,
        score=partial(score_predicted, count=count),
        join=_added,
        summarize=_predicted_summary,
    )


def _added(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(parts), axis=0)


def _predicted_summary(
    splits: Sequence[PredictedSplit], matrices: Mapping[str, np.ndarray], chosen: None
) -> dict[str, Any]:
    del chosen
    key = SegmentationHeads.map_name, HEAD
    known = [split for split in splits if matrices[split.name].any()]
    return {
        'segmentation': [
            _facts(split, _images(split), key)
            | metrics_of(matrices[split.name], _names(split.source))
            for split in known
        ]
    }


def evaluate_seeds(
    config: Config,
    sources: Mapping[str, Source],
    workdir: Path,
) -> dict[str, Any]:
    """Scores the seeds of every split; writes metrics.json, curves.csv and label_maps/.

    With `segmentation.crf` they are refined, and what is scored are the refined ones; thresholds
    and layers are chosen without.

    The background threshold of each (method, layer) is the one of the highest mIoU on
    `evaluate.choose_on`; `evaluate.threshold` where no image there has a true label map. Its own
    scores there are oracles, and their rows say so; so are all that are named Peak.

    Args:
        config: the experiment.
        sources: {split: source}; images without a true label map are not scored.
        workdir: with the maps of these splits.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: maps are missing or of other images, or a true label map does not fit.
        FileNotFoundError: a split has no maps at all.
    """
    splits = [SplitMaps(n, s, MapStore(workdir / 'maps' / n)) for n, s in sources.items()]
    return evaluate_splits(
        config.evaluate,
        splits,
        workdir,
        score=partial(score_seeds, count=1 + splits[-1].source.num_classes),
        join=joined_curves,
        choose=_choose,
        summarize=partial(_summary, config, workdir),
    )


def _choose(scored: _Scored | None) -> dict[Key, float]:
    """The best threshold of every (method, layer) on these images, where they have a truth."""
    known = {key: curves for key, curves in (scored or {}).items() if curves.pixels.size}
    return {key: curves.best_threshold for key, curves in known.items()}


def _summary(
    config: Config,
    workdir: Path,
    splits: Sequence[SplitMaps],
    scored: Mapping[str, _Scored],
    chosen: Mapping[Key, float],
) -> dict[str, Any]:
    setting = config.evaluate
    best = _best_layers(scored.get(setting.choose_on, {}))
    rows = []
    for split in splits:
        cut = {
            key: chosen.get(key, _nearest(curves, setting.threshold))
            for key, curves in scored[split.name].items()
        }
        _write(split, cut, workdir / LABEL_MAPS, setting.processes)
        if config.segmentation.crf:
            _refine(split, cut, workdir / LABEL_MAPS)
        images = _images(split)
        for key, curves in scored[split.name].items():
            if curves.pixels.size:
                origin = setting.choose_on if key in chosen else 'config'
                matrix = curves.at(cut[key])
                if config.segmentation.crf:
                    file_of = partial(seed_file, workdir / LABEL_MAPS, key)
                    matrix = total_confusion(split.records, file_of, len(matrix))
                row = _row(split, images, key, curves, matrix, cut[key], origin)
                rows.append(row | ({'chosen': best[key[0]] == key[1]} if best else {}))
    _write_curves(scored, workdir / 'curves.csv')
    return {
        'classification': splits[-1].classification,
        'average_precision': splits[-1].average_precision,
        'segmentation': rows,
    }


def _best_layers(scored: _Scored) -> dict[str, str]:
    """{method: the layer whose mIoU is best on these images}."""
    peaks = {key: _peak(curves)['PeakmIoU'] for key, curves in scored.items() if curves.pixels.size}
    return dict(sorted(peaks, key=lambda key: peaks[key]))  # of each method the last one stays


def _nearest(curves: SeedCurves, threshold: float) -> float:
    return float(curves.thresholds[np.argmin(np.abs(curves.thresholds - threshold))])


def _row(
    split: SplitMaps,
    images: int,
    key: Key,
    curves: SeedCurves,
    matrix: np.ndarray,
    threshold: float,
    origin: str,
) -> dict[str, Any]:
    """The row of metrics.json of one (method, layer) on one split."""
    facts = _facts(split, images, key) | ({'oracle': True} if split.name == origin else {})
    facts |= {'threshold': threshold, 'threshold_from': origin, **_peak(curves)}
    return facts | metrics_of(matrix, _names(split.source))


def _images(split: StoredSplit) -> int:
    """How many are scored."""
    return sum(map(has_truth, split.records))


def _facts(split: StoredSplit, images: int, key: Key) -> dict[str, Any]:
    return {'method': key[0], 'layer': key[1], 'split': split.name, 'images': images}


def _peak(curves: SeedCurves) -> dict[str, float]:
    """The highest mIoU that any threshold gives on these images, an oracle, and which one."""
    best = curves.best_threshold
    return {'PeakmIoU': scores_of(curves.at(best))['mIoU'], 'PeakmIoU_threshold': best}


def _names(source: Source) -> list[str]:
    return ['background', *(source.class_name(k) for k in range(source.num_classes))]


def _write(split: SplitMaps, cut: Mapping[Key, float], folder: Path, processes: int) -> None:
    """The label maps of a split at these thresholds."""
    bar = tqdm(total=len(split.records), desc=f'write {split.name}', unit='image', disable=None)
    with bar, mapper(processes) as over:
        for count in over(partial(write_seeds, folder=folder, thresholds=cut), split.parts()):
            bar.update(count)


def _refine(split: SplitMaps, keys: Iterable[Key], folder: Path) -> None:
    """The label maps of a split after the CRF of their images; in this process, which has JAX."""
    for i in tqdm(split.readable.tolist(), desc=f'refine {split.name}', unit='image', disable=None):
        record = split.source[i]
        refine = crf_of_places(decode_image(record))
        values = [BACKGROUND, *sorted(k + 1 for k in record.labels)]
        for file in (seed_file(folder, key, record) for key in keys):
            write_label_map(file, refined_label_map(read_label_map(file), values, refine))


def _write_curves(scored: Mapping[str, _Scored], path: Path) -> None:
    """The scores of every (method, layer) at every threshold."""
    rows = []
    for name, of_split in scored.items():
        for key, curves in of_split.items():
            columns = curves.curves()
            for i, threshold in enumerate(curves.thresholds if curves.pixels.size else ()):
                values = [columns[score][i] for score in _CURVES]
                texts = ['' if np.isnan(value) else f'{value:.6g}' for value in values]
                rows.append((name, *key, f'{threshold:g}', *texts))
    write_csv(path, ('split', 'method', 'layer', 'threshold', *_CURVES), rows)


def _check(config: Config) -> None:
    if config.localize.classes != 'ground_truth':
        raise ConfigError(
            "config.localize.classes must be 'ground_truth', the labels of each image, with "
            f"config.task='segmentation', got {config.localize.classes!r}"
        )
    seeds = config.segmentation.walk or 'evaluate' in config.stages  # others may want boundaries
    if seeds and config.localize.methods == (BOUNDARY,):
        raise ConfigError(
            f'config.localize.methods={config.localize.methods} makes boundaries alone, the same '
            "for every class; name maps that are carried to them beside or instead, such as 'cam', "
            'and set config.segmentation.walk, such as to 8'
        )


def _check_sources(config: Config, train: Source, val: Source) -> None:
    check_training(train, val, several=make_method(config.train).several)


def _check_network(config: Config, network: Network) -> None:
    config = _fitting(config, network)
    if not predicts(network):
        LOCALIZATION.check_network(config, network)


SEGMENTATION = Task(
    method=LOCALIZATION.method,
    compute=_compute,
    evaluate=_evaluate,
    report=report_seeds,
    check=_check,
    check_sources=_check_sources,
    check_network=_check_network,
)

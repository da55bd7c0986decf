"""The stage `evaluate`: boxes and scores of the maps in the workdir.

Layer and threshold are chosen on one split (val) and applied to the others; what is best on the
scored split itself is an oracle and is named MaxBoxAcc, or PeakIoU for masks. Scores of the split
that was chosen on are oracles, too, and their rows say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, EvaluateConfig
from wsol_jax.data import Source, evaluation_batches, evenly_spaced, stored_size
from wsol_jax.evaluation.boxes import rescale_boxes
from wsol_jax.evaluation.breakdown import by_class, by_size, intervals
from wsol_jax.evaluation.curves import CURVES, Curves
from wsol_jax.evaluation.faithfulness import faithfulness_program, summarize
from wsol_jax.evaluation.frame import evaluate_splits
from wsol_jax.evaluation.scoring import score_split_part
from wsol_jax.evaluation.split import SplitMaps
from wsol_jax.evaluation.table import Scores, Table, joined
from wsol_jax.maps import NO_CLASS, Key
from wsol_jax.maps.box_files import BoxRow, write_boxes
from wsol_jax.maps.store import MapStore
from wsol_jax.models import Network
from wsol_jax.parallel import local_devices
from wsol_jax.workdir import write_csv

_Scored = Mapping[Key, Scores]


def evaluate(
    config: Config,
    sources: Mapping[str, Source],
    workdir: Path,
    network: Network | None = None,
) -> dict[str, Any]:
    """Scores the maps of every split; writes metrics.json, curves.csv and boxes/.

    Args:
        config: the experiment.
        sources: {split: source}; layers and thresholds are chosen on `evaluate.choose_on`.
        workdir: with the maps of these splits.
        network: the classifier, for `evaluate.faithfulness`.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: maps are missing or do not belong to these images.
        FileNotFoundError: a split has no maps at all.
    """
    if config.evaluate.faithfulness and network is None:
        raise ValueError('evaluate.faithfulness needs the network')
    return evaluate_splits(
        config.evaluate,
        [SplitMaps(n, s, MapStore(workdir / 'maps' / n)) for n, s in sources.items()],
        workdir,
        score=score_split_part,
        join=joined,
        choose=lambda scored: choose({k: s.curves for k, s in (scored or {}).items()}),
        summarize=partial(_summary, config, workdir, network),
    )


def choose(curves: Mapping[Key, Curves]) -> dict[Key, float]:
    """The threshold that is best on these images, for every (method, layer) that has a score."""
    found = {key: of_key.best_threshold for key, of_key in curves.items()}
    return {key: threshold for key, threshold in found.items() if threshold is not None}


def _best_layers(scored: _Scored) -> dict[str, str]:
    """{method: the layer that is best on these images}."""
    found = {key: scores.curves.score for key, scores in scored.items()}
    scores = {key: score for key, score in found.items() if score is not None}
    best: dict[str, Key] = {}
    for key, score in scores.items():
        if key[0] not in best or score > scores[best[key[0]]]:
            best[key[0]] = key
    return dict(best.values())


def _ranking(split: SplitMaps) -> dict[str, Any]:
    """How the classifier ranks images for each class, where it has several labels an image."""
    rows = split.average_precision
    return {'average_precision': rows} if rows else {}


@dataclass(frozen=True)
class _Chosen:
    """What was chosen on val.

    Attributes:
        cut: the threshold of every (method, layer).
        chosen: of those the ones that val chose; the others are the config's.
        best: {method: layer}.
    """

    cut: Mapping[Key, float]
    chosen: Mapping[Key, float]
    best: Mapping[str, str]


def _summary(
    config: Config,
    workdir: Path,
    network: Network | None,
    splits: Sequence[SplitMaps],
    scored: Mapping[str, _Scored],
    chosen: Mapping[Key, float],
) -> dict[str, Any]:
    """What metrics.json says of localization; writes curves.csv and boxes/."""
    setting, rows = config.evaluate, []
    best = _best_layers(scored.get(setting.choose_on, {}))
    for split in splits:
        cut = {key: chosen.get(key, setting.threshold) for key in split.store.arrays}
        tables = {key: scored[split.name][key].table.at([cut[key]]) for key in cut}
        curves = {key: scored[split.name][key].curves for key in cut}
        rows += _rows(split, tables, curves, _Chosen(cut, chosen, best), setting)
        _write_boxes(split, tables, setting, workdir / 'boxes' / f'{split.name}.csv')
    if network and setting.faithfulness:
        _add_faithfulness(rows, splits[-1], network, config)
    _write_curves(splits, scored, workdir / 'curves.csv')
    return {
        'class': splits[-1].store.target,
        'classification': splits[-1].classification,
        **_ranking(splits[-1]),
        'without_object': {split.name: split.without_object for split in splits},
        'localization': rows,
        **_tables(splits[-1], tables, best),
    }


def _rows(
    split: SplitMaps,
    tables: Mapping[Key, Table],
    curves: Mapping[Key, Curves],
    choice: _Chosen,
    setting: EvaluateConfig,
) -> list[dict[str, Any]]:
    """The rows of metrics.json of one split."""
    ends, rows, best = intervals(tables, split.target), [], choice.best
    for key, table in tables.items():
        row = {'method': key[0], 'layer': key[1], 'split': split.name, 'images': curves[key].images}
        row |= curves[key].oracles() | table.means(split.target)
        protocols = table.protocol_scores(setting.protocols, split.target)
        row |= {'protocols': protocols} if protocols else {}
        row |= {'intervals': ends[key]} if ends.get(key) else {}
        row |= {'chosen': best[key[0]] == key[1]} if best else {}
        # Threshold and layer are the best for the very images that are scored.
        oracle = split.name == setting.choose_on and key in choice.chosen
        row |= {'oracle': True} if oracle else {}
        row |= {'blank_maps': curves[key].blank, 'threshold': choice.cut[key]}
        origin = setting.choose_on if key in choice.chosen else 'config'
        rows.append({**row, 'threshold_from': origin})
    return rows


def _tables(
    split: SplitMaps, tables: Mapping[Key, Table], best: Mapping[str, str]
) -> dict[str, Any]:
    """Scores by class and by size, of each method at its chosen layer, or its last one."""
    layers = {**dict(tables.keys()), **best}
    shown = {key: tables[key] for key in layers.items() if key in tables}
    return {
        'by_class': by_class(shown, split.target, split.source.class_name),
        'by_size': by_size(shown, split.target),
    }


def _add_faithfulness(
    rows: list[dict[str, Any]], split: SplitMaps, network: Network, config: Config
) -> None:
    """Scores the chosen layer of every method on evenly spaced images of a split."""
    shown = [r for r in rows if r['split'] == split.name and r.get('chosen', True)]
    keys = [(r['method'], r['layer']) for r in shown]
    images = evenly_spaced(split.readable, config.evaluate.faithfulness)
    count = len(images)
    if not count:
        return
    classes = split.store.fact('classes')[:, 0]
    values: list[dict[str, np.ndarray]] = []
    size = config.network.input_size or network.input_size
    devices = local_devices(config.parallel)
    batch_size = devices.round_up(min(config.localize.batch_size, count))
    program, state = faithfulness_program(network, devices), devices.replicate(network.state)
    bar = tqdm(total=count, desc=f'faithfulness {split.name}', unit='image', disable=None)
    with bar:
        for batch in evaluation_batches(split.source, size, batch_size, images.tolist()):
            index = np.maximum(batch.index, 0)  # padding is scored with the first image's maps
            maps = [split.rectified(key, index) for key in keys]
            scores = program(state, *devices.shard((batch.images, maps, classes[index])))
            values.append({k: v[batch.valid] for k, v in devices.gather(scores).items()})
            bar.update(int(batch.valid.sum()))
    columns = {name: np.concatenate([v[name] for v in values]) for name in values[0]}
    for i, row in enumerate(shown):
        row |= summarize({name: column[:, i] for name, column in columns.items()})
        row['faithfulness_images'] = count


def _write_boxes(
    split: SplitMaps, tables: Mapping[Key, Table], setting: EvaluateConfig, path: Path
) -> None:
    scores = split.store.fact('class_scores')[split.readable]
    sizes = np.array([stored_size(record) for record in split.records]).reshape(-1, 2)
    rows = (
        BoxRow(record.image_id, *key, int(label), score, table.thresholds[0], box)
        for key, table in tables.items()
        for record, *of_image in zip(
            split.records, split.classes, scores, _stored(table, sizes, setting.size), strict=True
        )
        for label, score, box in zip(*of_image, strict=True)
        if label != NO_CLASS  # an image may have fewer classes than others
    )
    write_boxes(path, rows)


def _stored(table: Table, sizes: np.ndarray, canvas: int) -> list[list[Any]]:
    """Boxes [n,K,4] at the first threshold, in pixels of stored images of sizes [n,2]."""
    boxes = table.boxes[:, :, 0]
    of_each = np.repeat(sizes, boxes.shape[1], axis=0)
    return rescale_boxes(boxes, (canvas, canvas), of_each).reshape(boxes.shape).tolist()


def _write_curves(splits: Sequence[SplitMaps], scored: Mapping[str, _Scored], path: Path) -> None:
    """The accuracy, or IoU, of every (method, layer) at every threshold."""
    rows = []
    for split in splits:
        for key, scores in scored[split.name].items():
            curves = scores.curves.curves()
            columns = [
                [f'{value:.6g}' for value in curves[name]] if name in curves else None
                for name in CURVES
            ]
            for i, threshold in enumerate(scores.curves.thresholds if curves else ()):
                values = [column[i] if column else '' for column in columns]
                rows.append((split.name, *key, f'{threshold:g}', *values))
    write_csv(path, ('split', 'method', 'layer', 'threshold', *CURVES), rows)

"""The stage `evaluate`: boxes and scores of the maps in the workdir.

Layer and threshold are chosen on one split (val) and applied to the others; what is best on the
scored split itself is an oracle and is named MaxBoxAcc, or PeakIoU for masks. Scores of the split
that was chosen on are oracles, too, and their rows say so.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, EvaluateConfig
from wsol_jax.data import Source, evaluation_batches, evenly_spaced
from wsol_jax.evaluation.counts import CURVES, Counts, count_part, nothing
from wsol_jax.evaluation.faithfulness import faithfulness_program, summarize
from wsol_jax.evaluation.outcomes import Outcomes, by_class, by_size, intervals, outcomes_of
from wsol_jax.evaluation.processes import mapper
from wsol_jax.evaluation.split import Part, Split
from wsol_jax.maps import Key
from wsol_jax.maps.store import MapStore
from wsol_jax.models import Network
from wsol_jax.parallel import local_devices
from wsol_jax.workdir import write_csv, write_text

_BOX_COLUMNS = ('image_id', 'method', 'layer', 'class', 'class_score', 'threshold')
_Result = TypeVar('_Result')
_Map = Callable[..., Iterator[Any]]  # as `mapper` gives it


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
    setting = config.evaluate
    if setting.faithfulness and network is None:
        raise ValueError('evaluate.faithfulness needs the network')
    splits = [Split(n, s, MapStore(workdir / 'maps' / n)) for n, s in sources.items()]
    with mapper(setting.processes) as over:
        counts = {split.name: _counted(split, setting, over) for split in splits}
        on_val, last, rows = counts.get(setting.choose_on, {}), splits[-1], []
        chosen, best = choose(on_val), _best_layers(on_val)
        for split in splits:
            cut = {key: chosen.get(key, setting.threshold) for key in split.store.arrays}
            outcomes = _outcomes(split, cut, setting, over)
            rows += _rows(split, counts[split.name], outcomes, cut, chosen, best, setting)
            _write_boxes(split, outcomes, cut, workdir / 'boxes' / f'{split.name}.csv')
    if network and setting.faithfulness:
        _add_faithfulness(rows, last, network, config)
    metrics = {
        'split': last.name,
        'class': last.store.target,
        'classification': _classification(last),
        'skipped': {split.name: split.skipped for split in splits},
        'without_object': {split.name: split.without_object for split in splits},
        'localization': rows,
        **_tables(last, outcomes, best),
    }
    _write_curves(counts, workdir / 'curves.csv')
    write_text(workdir / 'metrics.json', json.dumps(metrics, indent=2) + '\n')
    return metrics


def choose(counts: Mapping[Key, Counts]) -> dict[Key, float]:
    """The threshold that is best on these images, for every (method, layer) that has a score."""
    curves = {key: c.curve for key, c in counts.items()}
    return {
        k: float(counts[k].thresholds[np.argmax(c)]) for k, c in curves.items() if c is not None
    }


def _best_layers(counts: Mapping[Key, Counts]) -> dict[str, str]:
    """{method: the layer that is best on these images}."""
    scores = {key: c.score for key, c in counts.items() if c.score is not None}
    best: dict[str, Key] = {}
    for key, score in scores.items():
        if key[0] not in best or score > scores[best[key[0]]]:
            best[key[0]] = key
    return dict(best.values())


def _counted(split: Split, setting: EvaluateConfig, over: _Map) -> dict[Key, Counts]:
    counts = nothing(split.store.arrays, setting)
    for part in _over_parts(partial(count_part, setting=setting), split, 'evaluate', over):
        counts = {key: counts[key] + more for key, more in part.items()}
    return counts


def _outcomes(
    split: Split, cut: Mapping[Key, float], setting: EvaluateConfig, over: _Map
) -> dict[Key, Outcomes]:
    of_part = partial(outcomes_of, thresholds=cut, setting=setting)
    parts = list(_over_parts(of_part, split, 'boxes', over))
    return {key: Outcomes.joined(part[key] for part in parts) for key in cut} if parts else {}


def _over_parts(
    function: Callable[[Part], _Result], split: Split, what: str, over: _Map
) -> Iterator[_Result]:
    """Results of a function for all parts of a split."""
    sizes: deque[int] = deque()

    def counted() -> Iterator[Part]:
        for part in split.parts():
            sizes.append(len(part.records))
            yield part

    total = len(split.readable)
    with tqdm(total=total, desc=f'{what} {split.name}', unit='image', disable=None) as bar:
        for result in over(function, counted()):
            yield result
            bar.update(sizes.popleft())


def _rows(
    split: Split,
    counts: Mapping[Key, Counts],
    outcomes: Mapping[Key, Outcomes],
    cut: Mapping[Key, float],
    chosen: Mapping[Key, float],
    best: Mapping[str, str],
    setting: EvaluateConfig,
) -> list[dict[str, Any]]:
    """The rows of metrics.json of one split."""
    ends, rows = intervals(outcomes, split.target), []
    for key, counted in counts.items():
        row = {'method': key[0], 'layer': key[1], 'split': split.name, 'images': counted.images}
        row |= counted.oracles() | (outcomes[key].means(split.target) if key in outcomes else {})
        protocols = {p.protocol.name: p.scores(split.target) for p in counted.protocols}
        row |= {'protocols': protocols} if any(protocols.values()) else {}
        row |= {'intervals': ends[key]} if ends.get(key) else {}
        row |= {'chosen': best[key[0]] == key[1]} if best else {}
        # Threshold and layer are the best for the very images that are scored.
        row |= {'oracle': True} if split.name == setting.choose_on and key in chosen else {}
        row |= {'blank_maps': counted.blank, 'threshold': cut[key]}
        rows.append({**row, 'threshold_from': setting.choose_on if key in chosen else 'config'})
    return rows


def _tables(
    split: Split, outcomes: Mapping[Key, Outcomes], best: Mapping[str, str]
) -> dict[str, Any]:
    """Scores by class and by size, of each method at its chosen layer, or its last one."""
    layers = {**dict(outcomes.keys()), **best}
    shown = {key: outcomes[key] for key in layers.items() if key in outcomes}
    names = split.source.class_name
    return {
        'by_class': by_class(shown, split.records, split.target, names),
        'by_size': by_size(shown, split.target),
    }


def _add_faithfulness(
    rows: list[dict[str, Any]], split: Split, network: Network, config: Config
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


def _classification(split: Split) -> dict[str, float]:
    labels = [record.labels for record in split.records]
    if not labels or not all(labels):
        return {}
    right = split.top == np.array([first for first, *_ in labels])[:, None]
    return {'top1': 100.0 * float(right[:, 0].mean()), 'top5': 100.0 * float(right.any(1).mean())}


def _write_boxes(
    split: Split, outcomes: Mapping[Key, Outcomes], cut: Mapping[Key, float], path: Path
) -> None:
    scores = split.store.fact('class_scores')[split.readable]
    rows = (
        (record.image_id, *key, int(label), f'{score:.6f}', f'{cut[key]:g}', *box)
        for key, found in outcomes.items()
        for record, *of_image in zip(
            split.records, split.classes, scores, found.boxes.tolist(), strict=True
        )
        for label, score, box in zip(*of_image, strict=True)
    )
    write_csv(path, (*_BOX_COLUMNS, 'x0', 'y0', 'x1', 'y1'), rows)


def _write_curves(counts: Mapping[str, Mapping[Key, Counts]], path: Path) -> None:
    """The accuracy, or IoU, of every (method, layer) at every threshold."""
    rows = []
    for split, of_split in counts.items():
        for key, counted in of_split.items():
            curves = counted.curves()
            columns = [
                [f'{value:.6g}' for value in curves[name]] if name in curves else None
                for name in CURVES
            ]
            for i, threshold in enumerate(counted.thresholds if curves else ()):
                values = [column[i] if column else '' for column in columns]
                rows.append((split, *key, f'{threshold:g}', *values))
    write_csv(path, ('split', 'method', 'layer', 'threshold', *CURVES), rows)

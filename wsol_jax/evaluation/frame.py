"""The frame of the stage `evaluate`: maps are scored part by part, and metrics.json is written.

What a score is, how those of parts join, and what follows from them, a task says.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from wsol_jax.config import EvaluateConfig
from wsol_jax.data import Source
from wsol_jax.evaluation.processes import mapper
from wsol_jax.evaluation.split import ImageMaps, SplitMaps
from wsol_jax.maps.store import MapStore
from wsol_jax.workdir import write_text

_Scores = TypeVar('_Scores')
_Choice = TypeVar('_Choice')


def evaluate_splits(
    setting: EvaluateConfig,
    sources: Mapping[str, Source],
    workdir: Path,
    *,
    score: Callable[..., _Scores],
    join: Callable[[Iterable[_Scores]], _Scores],
    choose: Callable[[_Scores | None], _Choice],
    summarize: Callable[[Sequence[SplitMaps], Mapping[str, _Scores], _Choice], dict[str, Any]],
) -> dict[str, Any]:
    """Scores the maps of every split in one pass; writes metrics.json.

    The split to choose on comes first; what is chosen there is known when the others are scored.

    Args:
        setting: how.
        sources: {split: source}, the last one is what metrics.json is about.
        workdir: with the maps of these splits.
        score: (part, setting=.., chosen=..) -> scores of some images, see `ImageMaps`. Nothing is
            chosen, None, where the split to choose on is scored. It runs in processes of their
            own, so it lies in a module that needs no JAX.
        join: the scores of parts, at least one, as those of all their images.
        choose: what is best on the split to choose on; of None, where there is no such split.
        summarize: what metrics.json says of the scores of all splits.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: maps are missing or do not belong to these images.
        FileNotFoundError: a split has no maps at all.
    """
    splits = [SplitMaps(n, s, MapStore(workdir / 'maps' / n)) for n, s in sources.items()]
    first = [split for split in splits if split.name == setting.choose_on]
    others = [split for split in splits if split.name != setting.choose_on]
    with mapper(setting.processes) as over:

        def scores_of(split: SplitMaps, choice: _Choice | None) -> _Scores:
            return join(_over_parts(partial(score, setting=setting, chosen=choice), split, over))

        scores = {split.name: scores_of(split, None) for split in first}
        choice = choose(next(iter(scores.values()), None))
        scores |= {split.name: scores_of(split, choice) for split in others}
    last = splits[-1]
    metrics = {
        'split': last.name,
        'class': last.store.target,
        'classification': last.classification,
        'skipped': {split.name: split.skipped for split in splits},
        'without_object': {split.name: split.without_object for split in splits},
        **summarize(splits, scores, choice),
    }
    write_text(workdir / 'metrics.json', json.dumps(metrics, indent=2) + '\n')
    return metrics


def _over_parts(
    function: Callable[[ImageMaps], _Scores],
    split: SplitMaps,
    over: Callable[..., Iterator[_Scores]],
) -> Iterator[_Scores]:
    """Results of a function for all parts of a split."""
    sizes: deque[int] = deque()

    def counted() -> Iterator[ImageMaps]:
        for part in split.parts():
            sizes.append(len(part.records))
            yield part

    total = len(split.readable)
    with tqdm(total=total, desc=f'evaluate {split.name}', unit='image', disable=None) as bar:
        for result in over(function, counted()):
            yield result
            bar.update(sizes.popleft())

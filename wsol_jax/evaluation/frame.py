"""The frame of the stage `evaluate`: results are scored part by part, metrics.json is written.

What a score is, how those of parts join, and what follows from them, a task says.
"""

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from wsol_jax.config import EvaluateConfig
from wsol_jax.evaluation.processes import mapper
from wsol_jax.evaluation.split import StoredSplit
from wsol_jax.hosts import barrier, first_of_all, own_share, process, processes
from wsol_jax.workdir import read_json, write_text, written_whole

_Scores = TypeVar('_Scores')
_Split = TypeVar('_Split', bound=StoredSplit)


def _nothing(_: Any) -> None:
    """What is chosen where a task has nothing to choose."""


def evaluate_splits(
    setting: EvaluateConfig,
    splits: Sequence[_Split],
    workdir: Path,
    *,
    score: Callable[..., _Scores],
    join: Callable[[Iterable[_Scores]], _Scores],
    choose: Callable[[_Scores | None], Any] = _nothing,
    summarize: Callable[[Sequence[_Split], Mapping[str, _Scores], Any], dict[str, Any]],
) -> dict[str, Any]:
    """Scores the results of every split in one pass; writes metrics.json.

    The split to choose on comes first; what is chosen there is known when the others are scored.
    Of several processes each scores its share of the images, and the first sums up: what they have
    to join must be arrays and numbers, in mappings and dataclasses.

    Args:
        setting: how.
        splits: the last one is what metrics.json is about.
        workdir: where metrics.json goes.
        score: (part, setting=.., chosen=..) -> scores of some images; parts are those of a split,
            see `StoredSplit.parts`. Nothing is chosen, None, where the split to choose on is
            scored. It runs in processes of their own, so it lies in a module that needs no JAX.
        join: the scores of parts, at least one, as those of all their images.
        choose: what is best on the split to choose on; of None, where there is no such split. By
            default nothing is chosen, None.
        summarize: what metrics.json says of the scores of all splits.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: results are damaged.
    """
    first = [split for split in splits if split.name == setting.choose_on]
    others = [split for split in splits if split.name != setting.choose_on]
    with mapper(setting.processes) as over:

        def scores_of(split: _Split, choice: Any) -> _Scores:
            own = join(_over_parts(partial(score, setting=setting, chosen=choice), split, over))
            return own if processes() == 1 else join(_of_all(own, workdir / 'scores', split.name))

        scores = {split.name: scores_of(split, None) for split in first}
        choice = choose(next(iter(scores.values()), None))
        scores |= {split.name: scores_of(split, choice) for split in others}
    file = workdir / 'metrics.json'

    def sum_up() -> dict[str, Any]:
        metrics = {
            'split': splits[-1].name,
            'skipped': {split.name: split.skipped for split in splits},
            **summarize(splits, scores, choice),
        }
        write_text(file, json.dumps(metrics, indent=2) + '\n')
        shutil.rmtree(workdir / 'scores', ignore_errors=True)
        return metrics

    return first_of_all('metrics', sum_up, partial(read_json, file))


def _of_all(own: _Scores, folder: Path, name: str) -> Iterator[_Scores]:
    """The scores of all processes in order: through files, for they may be large."""
    with written_whole(folder / f'{name}.{process()}.npz') as file, file.open('wb') as stream:
        np.savez(stream, *_leaves(own))
    barrier(f'{name} is scored')
    for index in range(processes()):
        with np.load(folder / f'{name}.{index}.npz') as stored:
            yield _like(own, iter([stored[leaf] for leaf in stored.files]))
    barrier(f'{name} is read')


def _leaves(tree: Any) -> Iterator[Any]:
    """The arrays and numbers in mappings and dataclasses, in order."""
    if isinstance(tree, Mapping):
        for part in tree.values():
            yield from _leaves(part)
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from _leaves(getattr(tree, field.name))
    else:
        yield tree


def _like(tree: Any, leaves: Iterator[np.ndarray]) -> Any:
    """The same with other leaves; what was a number is one again."""
    if isinstance(tree, Mapping):
        return {name: _like(part, leaves) for name, part in tree.items()}
    if is_dataclass(tree) and not isinstance(tree, type):
        parts = {field.name: _like(getattr(tree, field.name), leaves) for field in fields(tree)}
        return replace(tree, **parts)
    leaf = next(leaves)
    return leaf if isinstance(tree, np.ndarray) else leaf.item()


def _over_parts(
    function: Callable[[Any], _Scores],
    split: _Split,
    over: Callable[..., Iterator[_Scores]],
) -> Iterator[_Scores]:
    """Results of a function for all parts of a split."""
    sizes: deque[int] = deque()

    def counted() -> Iterator[Any]:
        for part in split.parts(share):
            sizes.append(len(part.records))
            yield part

    share = own_share(split.readable, split.store.chunk)
    total = len(split.readable[share])
    with tqdm(total=total, desc=f'evaluate {split.name}', unit='image', disable=None) as bar:
        for result in over(function, counted()):
            yield result
            bar.update(sizes.popleft())

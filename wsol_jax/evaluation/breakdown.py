"""How sure the scores of a split are, and how they fall by class and by size of the object."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from wsol_jax.evaluation.intervals import mean_intervals, pxap_interval
from wsol_jax.evaluation.table import Table, nowhere
from wsol_jax.maps import Key

# Between sizes of objects: the share of the image that they take, in percent.
SIZES = (0, 10, 30, 50, 100)


def intervals(tables: Mapping[Key, Table], target: str) -> dict[Key, dict[str, list[float]]]:
    """95 % bootstrap intervals in percent, {key: {score: [low, high]}}.

    Args:
        tables: at the threshold that counts, of the same images.
        target: the classes that the maps are for, see `Table.scores`.
    """
    names, columns = [], []
    for key, table in tables.items():
        for name, values in table.scores(target).items():
            names.append((key, name))
            columns.append(values)
    ends: dict[Key, dict[str, list[float]]] = {key: {} for key in tables}
    if columns:
        for (key, name), row in zip(names, mean_intervals(np.stack(columns, axis=1)), strict=True):
            ends[key][name] = row.tolist()
    for key, table in tables.items():
        if table.foreground.any():
            ends[key]['PxAP'] = pxap_interval(table.foreground, table.background).tolist()
    return ends


def by_class(
    tables: Mapping[Key, Table], target: str, name_of: Callable[[int], str]
) -> list[dict[str, Any]]:
    """A row of mean scores for every (method, layer) and class; unlabelled images are left out.

    Args:
        tables: at the threshold that counts, of the same images.
        target: the classes that the maps are for.
        name_of: the name of a label.
    """
    if not tables:
        return []
    labels = next(iter(tables.values())).label
    groups = {k: labels == k for k in np.unique(labels[labels >= 0]).tolist()}
    facts = {k: {'class': k, 'name': name_of(k)} for k in groups}
    return _rows(tables, groups, facts, target)


def by_size(tables: Mapping[Key, Table], target: str) -> list[dict[str, Any]]:
    """A row of mean scores for every (method, layer) and size of the object, see `SIZES`."""
    if not tables:
        return []
    share = 100 * next(iter(tables.values())).size
    bins = np.where(np.isnan(share), -1, np.digitize(share, SIZES[1:-1]))
    facts = {i: {'size': f'{a}-{b} %'} for i, (a, b) in enumerate(pairwise(SIZES))}
    return _rows(tables, {i: bins == i for i in facts}, facts, target)


def _rows(
    tables: Mapping[Key, Table],
    groups: Mapping[int, np.ndarray],
    facts: Mapping[int, dict[str, Any]],
    target: str,
) -> list[dict[str, Any]]:
    rows = []
    for key, table in tables.items():
        scores = table.scores(target)
        for group, members in groups.items():
            some = {name: values[members] for name, values in scores.items()}
            means = {k: float(np.nanmean(v)) for k, v in some.items() if not nowhere(v)}
            if means:
                row = {'method': key[0], 'layer': key[1], **facts[group]}
                images = max(int((~np.isnan(v)).sum()) for v in some.values())
                rows.append({**row, 'images': images, **means})
    return rows

"""What the stage `evaluate` left, checked before anything is drawn of it."""

import math
from pathlib import Path
from typing import Any

from wsol_jax.config import ConfigError
from wsol_jax.evaluation.curves import CURVES
from wsol_jax.names import shown
from wsol_jax.report.table import SCORES
from wsol_jax.workdir import read_csv, read_json

# Of a dictionary: the kinds of values by key, a key with '?' need not be there, '*' is any key.
# Of a list [kind]: the kind of all elements; [kind, kind]: of just as many.
_NUMBER = (int, float)
_SCORED = {f'{name}?': _NUMBER for name in SCORES}
_ROW = {
    'method': str,
    'layer': str,
    'split': str,
    'images': int,
    'threshold': _NUMBER,
    'threshold_from': str,
    'chosen?': bool,
    'oracle?': bool,
    'blank_maps?': int,
    'faithfulness_images?': int,
    'intervals?': {'*': [_NUMBER, _NUMBER]},
    'protocols?': {'*': {'*': _NUMBER}},
    **_SCORED,
}
_PART = {'method': str, 'layer': str, 'images': int, **_SCORED}
_METRICS = {
    'split': str,
    'class': str,
    'classification': {'*': _NUMBER},
    'average_precision?': [{'class': int, 'name': str, 'images': int, 'AP': _NUMBER}],
    'skipped': {'*': int},
    'without_object?': {'*': int},
    'localization': [_ROW],
    'by_class?': [_PART | {'name': str}],
    'by_size?': [_PART | {'size': str}],
}
_KINDS = {str: 'a text', int: 'a whole number', bool: 'true or false', _NUMBER: 'a number'}


def read_metrics(workdir: Path, split: str) -> dict[str, Any]:
    """What metrics.json holds.

    Args:
        workdir: of the run.
        split: that it must score last.

    Raises:
        ConfigError: the file is missing, damaged, or of another split.
    """
    path = workdir / 'metrics.json'
    if not path.exists():
        raise ConfigError(f'{path} is missing; run the stage evaluate before report')
    metrics = read_json(path)
    fault = _fault(metrics, _METRICS, '')
    if not fault and metrics['split'] != split:
        fault = f'split is {shown(metrics["split"])}, not {split!r}'
    if fault:
        raise ConfigError(f'{path}: {fault}; delete it and run again')
    return metrics


def read_curves(workdir: Path) -> list[dict[str, str]]:
    """Rows of curves.csv, whose curves are numbers or empty; [] without the file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = workdir / 'curves.csv'
    rows = read_csv(path, ('split', 'method', 'layer', 'threshold', *CURVES))
    for number, row in enumerate(rows, 2):
        for name in ('threshold', *CURVES):
            if not _is_number(row[name] or '0'):
                what = f'row {number}: {name} is {shown(row[name])}'
                raise ConfigError(f'{path}: {what}; delete metrics.json and run again')
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _fault(value: Any, kind: Any, where: str) -> str:
    """What is not as it must be; '' if nothing."""
    if isinstance(kind, dict):
        return _fault_of_group(value, kind, where)
    if isinstance(kind, list):
        if not isinstance(value, list) or len(kind) not in (1, len(value)):
            return f'{where} is no list of {"values" if len(kind) == 1 else len(kind)}'
        faults = (_fault(element, kind[0], f'{where}[{i}]') for i, element in enumerate(value))
        return next(filter(None, faults), '')
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return '' if right else f'{where} is {shown(value)}, not {_KINDS[kind]}'


def _fault_of_group(value: Any, kinds: dict[str, Any], where: str) -> str:
    if not isinstance(value, dict):
        return f'{where} is no group of values'
    for key, kind in kinds.items():
        name = key.rstrip('?')
        for one in value if key == '*' else [name]:
            place = f'{where}.{one}'.lstrip('.')
            if one not in value and name == key:
                return f'{place} is missing'
            if one in value and (fault := _fault(value[one], kind, place)):
                return fault
    return ''

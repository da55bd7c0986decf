"""Tables of a run's scores."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

_FAITHFULNESS = ('AverageDrop', 'Increase', 'Insertion', 'Deletion', 'ROAD')
_SCORES = (
    'GTKnownLoc',
    'Top1Loc',
    'Top5Loc',
    'MaxBoxAcc',
    'MaxBoxAccV2',
    'PxAP',
    'mIoU',
    'PeakIoU',
    *_FAITHFULNESS,
)
_HEADINGS = {
    'GTKnownLoc': 'GT-known',
    'Top1Loc': 'Top-1 Loc',
    'Top5Loc': 'Top-5 Loc',
    'MaxBoxAcc': 'MaxBoxAcc*',
    'MaxBoxAccV2': 'MaxBoxAccV2*',
    'PxAP': 'PxAP',
    'mIoU': 'mIoU',
    'PeakIoU': 'PeakIoU*',
    'AverageDrop': 'drop',
    'Increase': 'increase',
    'Insertion': 'insertion',
    'Deletion': 'deletion',
    'ROAD': 'ROAD',
}
_UNSCORED = '{split}: no image with boxes or masks to score'


def summary(metrics: dict[str, Any]) -> str:
    """The table for the terminal: each method at the layer and threshold chosen on val.

    Args:
        metrics: what metrics.json holds.
    """
    rows = [r for r in metrics['localization'] if r['split'] == metrics['split']]
    best = [r for r in rows if r.get('chosen')]
    shown = best or rows
    lines = [_title(metrics, shown), *_table(shown)]
    if best:
        oracle = _table(_oracle_rows(rows))
        origin = best[0]['threshold_from']
        lines += [f'Layer and threshold chosen on {origin}. * best threshold on this split.']
        lines += ['', f'Oracle: the layer that is best on {metrics["split"]} itself', *oracle]
    return '\n'.join(lines)


def columns(rows: Sequence[Row]) -> list[str]:
    """The scores that at least one row has, in their usual order."""
    return [name for name in _SCORES if any(name in row for row in rows)]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table for Markdown; the first line is its head."""
    head, *rest = lines
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in [head, ['---'] * len(head), *rest])


def heading(column: str) -> str:
    """What a column of scores is called in print."""
    return _HEADINGS[column]


def _title(metrics: dict[str, Any], rows: Sequence[Row]) -> str:
    count = max((row['images'] for row in rows), default=0)
    parts = [f'{metrics["split"]}: {count} images' if count else _UNSCORED.format(**metrics)]
    skipped = metrics['skipped'].get(metrics['split'], 0)
    if skipped:
        parts.append(f'{skipped} skipped')
    parts += [f'{name} {value:.1f} %' for name, value in metrics['classification'].items()]
    faithful = {row['faithfulness_images'] for row in rows if 'faithfulness_images' in row}
    parts += [f'drop to ROAD on {count} of them' for count in faithful]
    return ', '.join(parts)


def _oracle_rows(rows: Sequence[Row]) -> list[Row]:
    score = 'MaxBoxAcc' if any('MaxBoxAcc' in r for r in rows) else 'PxAP'
    best: dict[str, Row] = {}
    for row in rows:
        name = row['method']
        if name not in best or row.get(score, 0) > best[name].get(score, 0):
            best[name] = row
    hidden = ('GTKnownLoc', 'Top1Loc', 'Top5Loc', 'mIoU', *_FAITHFULNESS)
    shown = [{k: v for k, v in r.items() if k not in hidden} for r in best.values()]
    threshold = 'MaxBoxAcc_threshold' if score == 'MaxBoxAcc' else 'PeakIoU_threshold'
    return [{**row, 'threshold': row.get(threshold)} for row in shown]


def _table(rows: Sequence[Row]) -> list[str]:
    scores = columns(rows)
    cells = [['method', 'layer', 'threshold', *map(heading, scores)]]
    for row in rows:
        threshold = '' if row['threshold'] is None else f'{row["threshold"]:.2f}'
        numbers = [f'{row[name]:.1f}' if name in row else '' for name in scores]
        cells.append([row['method'], row['layer'], threshold, *numbers])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    sides = ['<', '<', *'>' * (len(widths) - 2)]
    text = [
        '  '.join(f'{c:{side}{width}}' for c, side, width in zip(line, sides, widths, strict=True))
        for line in cells
    ]
    rule = '  '.join('-' * w for w in widths)
    return [text[0], rule, *text[1:]]

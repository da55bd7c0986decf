"""Tables of a run's scores."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

_FAITHFULNESS = ('AverageDrop', 'Increase', 'Insertion', 'Deletion', 'ROAD')
SCORES = (
    'GTKnownLoc',
    'Top1Loc',
    'Top5Loc',
    'MaxBoxAcc',
    'MaxBoxAccV2',
    'PxAP',
    'mIoU',
    'PeakIoU',
    'PeakPooledIoU',
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
    'PeakPooledIoU': 'pooled IoU*',
    'AverageDrop': 'drop',
    'Increase': 'increase',
    'Insertion': 'insertion',
    'Deletion': 'deletion',
    'ROAD': 'ROAD',
}
# Of the split that threshold and layer are chosen on, these are oracles.
_OF_THRESHOLD = ('GTKnownLoc', 'Top1Loc', 'Top5Loc', 'mIoU')
_OF_LAYER = ('PxAP',)
_UNSCORED = '{split}: no image with boxes or masks to score'


def summary(metrics: dict[str, Any]) -> str:
    """The table for the terminal: each method at the layer and threshold chosen on val.

    Args:
        metrics: what metrics.json holds.
    """
    rows = split_rows(metrics)
    best = [r for r in rows if r.get('chosen')]
    shown = best or rows
    lines = [_title(metrics, shown), *_table(shown), *_notes(shown)]
    if best and not all(row.get('oracle') for row in best):
        oracle = _table(_oracle_rows(rows))
        lines += ['', f'Oracle: the layer that is best on {metrics["split"]} itself', *oracle]
    return '\n'.join([*lines, *_protocols(shown)])


def split_rows(metrics: dict[str, Any]) -> list[Row]:
    """The rows of the split that metrics.json names."""
    return [row for row in metrics['localization'] if row['split'] == metrics['split']]


def _notes(rows: Sequence[Row]) -> list[str]:
    """What is below the table; nothing where it has no scores."""
    if not columns(rows):
        return []
    what = (
        'Layer and threshold chosen on' if any(r.get('chosen') for r in rows) else 'Threshold from'
    )
    itself = any(row.get('oracle') for row in rows)
    notes = [f'{what} {rows[0]["threshold_from"]}{" itself" if itself else ""}.']
    if any('*' in starred(name, rows) for name in columns(rows)):
        best = 'an oracle: best' if itself else 'best threshold'
        notes.append(f'* {best} on this split.')
    if any('intervals' in row for row in rows):
        notes.append('95 %: bootstrap interval.')
    blank = [r for r in rows if r.get('blank_maps')]
    named = ', '.join(f'{r["method"]} at {r["layer"]}: {r["blank_maps"]}' for r in blank)
    more = [f'Blank maps (constant or NaN), which have no box: {named}.'] if blank else []
    return [' '.join(notes), *more]


def threshold_text(threshold: float) -> str:
    """A threshold with two digits, or three where it has them."""
    text = f'{threshold:.3f}'
    return text[:-1] if text.endswith('0') else text


def _protocols(rows: Sequence[Row]) -> list[str]:
    """The scores by older protocols, one kind of score: the first one that is defined."""
    quoted = [row for row in rows if row.get('protocols')]
    names = list(dict.fromkeys(name for row in quoted for name in row['protocols']))
    score = next(
        (s for row in quoted for scores in row['protocols'].values() for s in scores), None
    )
    if score is None:
        return []
    cells = [['method', 'layer', *names]]
    for row in quoted:
        numbers = [row['protocols'].get(name, {}).get(score) for name in names]
        texts = ['' if number is None else f'{number:.1f}' for number in numbers]
        cells.append([row['method'], row['layer'], *texts])
    return ['', f'{heading(score)} as older tables counted it', *aligned(cells)]


def columns(rows: Sequence[Row]) -> list[str]:
    """The scores that at least one row has, in their usual order."""
    return [name for name in SCORES if any(name in row for row in rows)]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table for Markdown; the first line is its head."""
    head, *rest = lines
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in [head, ['---'] * len(head), *rest])


def heading(column: str) -> str:
    """What a column of scores is called in print."""
    return _HEADINGS.get(column, column)


def starred(column: str, rows: Sequence[Row]) -> str:
    """The heading of a column, with a star if it is an oracle in any of these rows."""
    name = heading(column)
    return f'{name}*' if '*' not in name and any(is_oracle(r, column) for r in rows) else name


def is_oracle(row: Row, column: str) -> bool:
    """Whether a score was reached by a choice made on the very images it is of."""
    chosen = column in _OF_THRESHOLD or (column in _OF_LAYER and bool(row.get('chosen')))
    return column in row and ('*' in heading(column) or (chosen and bool(row.get('oracle'))))


def _title(metrics: dict[str, Any], rows: Sequence[Row]) -> str:
    count = max((row['images'] for row in rows), default=0)
    parts = [f'{metrics["split"]}: {count} images' if count else _UNSCORED.format(**metrics)]
    skipped = metrics['skipped'].get(metrics['split'], 0)
    if skipped:
        parts.append(f'{skipped} skipped')
    without = metrics.get('without_object', {}).get(metrics['split'], 0)
    if without:
        parts.append(f'{without} more without an object')
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
    hidden = ('GTKnownLoc', 'Top1Loc', 'Top5Loc', 'mIoU', 'intervals', *_FAITHFULNESS)
    shown = [{k: v for k, v in r.items() if k not in hidden} for r in best.values()]
    threshold = 'MaxBoxAcc_threshold' if score == 'MaxBoxAcc' else 'PeakIoU_threshold'
    return [{**row, 'threshold': row.get(threshold)} for row in shown]


def _table(rows: Sequence[Row]) -> list[str]:
    scores = columns(rows)
    sure = next((s for s in scores if any(s in row.get('intervals', {}) for row in rows)), None)
    cells = [['method', 'layer', 'threshold']]
    for score in scores:
        cells[0] += [starred(score, rows), '95 %'] if score == sure else [starred(score, rows)]
    for row in rows:
        threshold = '' if row['threshold'] is None else threshold_text(row['threshold'])
        cells.append([row['method'], row['layer'], threshold])
        for score in scores:
            cells[-1].append(f'{row[score]:.1f}' if score in row else '')
            if score == sure:
                cells[-1].append(_interval(row, score))
    return aligned(cells)


def _interval(row: Row, score: str) -> str:
    ends = row.get('intervals', {}).get(score)
    return f'{ends[0]:.0f}-{ends[1]:.0f}' if ends else ''


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for the terminal: two columns of text, and numbers to the right of them.

    Args:
        cells: line by line; the first line is its head.
    """
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    sides = ['<', '<', *'>' * (len(widths) - 2)]
    text = [
        '  '.join(f'{c:{side}{width}}' for c, side, width in zip(line, sides, widths, strict=True))
        for line in cells
    ]
    rule = '  '.join('-' * w for w in widths)
    return [text[0], rule, *text[1:]]

"""Scores what any framework left on disk.

Score maps: `python -m wsol_jax.evaluation --scoremaps DIR --metadata DIR --out FILE.json`;
label maps: `python -m wsol_jax.evaluation --segmentation DIR --ground_truth DIR --out FILE.json`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsol_jax.evaluation.protocols import PROTOCOLS
from wsol_jax.evaluation.scoremaps import evaluate_scoremaps
from wsol_jax.interrupts import exit_code, readers_may_leave, stop_like_ctrl_c
from wsol_jax.report.table import aligned, threshold_text
from wsol_jax.segmentation.folders import evaluate_segmentation
from wsol_jax.workdir import check_writable, write_text

_PRINTED = ('GTKnownLoc', 'mIoU', 'MaxBoxAcc', 'MaxBoxAccV2', 'PxAP', 'PeakIoU', 'PeakPooledIoU')
_OF_PIXELS = ('mIoU', 'PixelAccuracy', 'FP', 'FN', 'Precision', 'Recall')
_OF_CLASSES = ('IoU', 'FP', 'FN')
_MAPS = 'of <image_id>.npy: 224x224 in [0, 1]; of another size they are resized and scaled'
_LABEL_MAPS = 'of <name>.png: palette or grey of 8 bits, the index of a class at every pixel'
_CLASSES = 'names of the classes by line, the background first (default: they are numbered)'
_LIST = (
    'names to score by line, such as ImageSets/Segmentation/val.txt (default: all; both folders '
    'have the same)'
)
_IGNORE = 'index of true pixels that do not count (default: %(default)s)'
_CHOOSE_ON = (
    'metadata of another split, to choose the threshold on (default: the best one is taken, an '
    'oracle)'
)
# What goes with --scoremaps, and with --segmentation; the first of each must be there.
_PARTS = {
    'scoremaps': (
        *('metadata', 'masks', 'choose_on', 'choose_on_scoremaps', 'interval', 'protocols'),
    ),
    'segmentation': ('ground_truth', 'classes', 'listed', 'ignore'),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0; whatever is wrong is told in one line and exits with code 2, before anything is written.
    """
    parser = _parser()
    chosen = _checked(parser, vars(parser.parse_args(arguments)))
    out, page, images = (chosen.pop(name, None) for name in ('out', 'report', 'images'))
    evaluate = evaluate_scoremaps if 'scoremaps' in chosen else evaluate_segmentation
    stop_like_ctrl_c()
    missing = out
    try:
        _check_page(page, images, out)
        metrics = evaluate(**chosen)
        write_text(out, json.dumps(metrics) + '\n')
        missing = page
        with readers_may_leave():
            print(_class_lines(metrics) if 'confusion' in metrics else _lines(metrics))
        if page:
            _write_page(page, metrics, images, chosen)
            print(f'Page: {page}')
    except KeyboardInterrupt as stop:
        parser.exit(exit_code(stop), f'{parser.prog}: interrupted; {missing} is not written\n')
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    return 0


def _checked(parser: argparse.ArgumentParser, chosen: dict[str, Any]) -> dict[str, Any]:
    """What is for the kind of maps that was chosen; flags of the other kind are refused."""
    kind, other = _PARTS if chosen['scoremaps'] else reversed(_PARTS)
    first, *_ = _PARTS[kind]
    if chosen[first] is None:
        parser.error(f'the following arguments are required: --{first}')
    for name in _PARTS[other]:
        if chosen.pop(name) != parser.get_default(name):
            flag = '--list' if name == 'listed' else f'--{name}'
            parser.error(f'argument {flag}: goes with --{other}, not with --{kind}')
    chosen.pop(other)
    return chosen


def _check_page(page: Path | None, images: Path | None, out: Path) -> None:
    """Finds before the work what could not be written or shown after it."""
    check_writable(out)
    if images and not page:
        raise ValueError('--images DIR is for the gallery of --report FILE.html; give both')
    if images and not images.is_dir():
        raise ValueError(f'{images}: no such folder of images')
    if page:
        check_writable(page)


def _write_page(page: Path, metrics: dict[str, Any], images: Path | None, of: Any) -> None:
    # Imported here: counting needs no drawing.
    if 'segmentation' in of:
        from wsol_jax.report.label_maps import write_label_map_page

        names = ('segmentation', 'ground_truth', 'listed', 'ignore')
        write_label_map_page(page, metrics, **{name: of[name] for name in names}, images=images)
        return
    from wsol_jax.report.scoremaps import write_scoremap_page

    folders = {name: of[name] for name in ('scoremaps', 'metadata', 'masks')}
    write_scoremap_page(page, metrics, **folders, images=images)


def _class_lines(metrics: dict[str, Any]) -> str:
    """The scores of label maps for the terminal."""
    rows = [row for row in metrics['by_class'] if 'IoU' in row]
    cells = [
        [str(row['class']), row['name'], *(f'{row[score]:.2f}' for score in _OF_CLASSES)]
        for row in rows
    ]
    scores = [f'{name} {metrics[name]:.2f}' for name in _OF_PIXELS if name in metrics]
    lines = [*scores, '', *aligned([['', 'class', *_OF_CLASSES], *cells])]
    absent = metrics['absent_classes']
    left_out = f'In percent; {absent} classes that occur nowhere are left out.'
    return '\n'.join([*lines, left_out] if absent else lines)


def _lines(metrics: dict[str, Any]) -> str:
    """The scores of score maps for the terminal."""
    given = {name: metrics[name] for name in _PRINTED if name in metrics}
    lines = [
        f'{name} {score:.2f}{_told(name, metrics)}'
        for name, score in (given | metrics.get('protocols', {})).items()
    ]
    place = f'Threshold {threshold_text(metrics["threshold"])}, chosen on'
    if set(_PRINTED[:2]) & set(metrics['oracles']):
        return '\n'.join([*lines, f'{place} the scored images themselves (--choose_on: others).'])
    return '\n'.join([*lines, f'{place} {metrics["threshold_from"]}.'])


def _told(name: str, metrics: dict[str, Any]) -> str:
    """What is to be known of a score: its interval, and whether it is an oracle."""
    ends = metrics['intervals'].get(name)
    parts = [f'95 %: {ends[0]:.1f}-{ends[1]:.1f}'] if ends else []
    parts += ['oracle: best threshold on these images'] if name in metrics['oracles'] else []
    return f' ({"; ".join(parts)})' if parts else ''


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m wsol_jax.evaluation',
        description='MaxBoxAcc, MaxBoxAccV2 or PxAP of score maps, as wsolevaluation counts them; '
        'mIoU of label maps, as PASCAL VOC counts it.',
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument('--scoremaps', type=Path, metavar='DIR', help=_MAPS)
    kind.add_argument('--segmentation', type=Path, metavar='DIR', help=_LABEL_MAPS)
    _add_scoremaps(parser.add_argument_group('score maps'))
    _add_segmentation(parser.add_argument_group('label maps'))
    add = parser.add_argument
    add('--processes', type=int, default=1, metavar='N', help='default: %(default)s')
    add('--report', type=Path, metavar='FILE.html', help='where to write a page of the scores')
    add('--images', type=Path, metavar='DIR', help='of the images, for the gallery of that page')
    add('--out', type=Path, required=True, metavar='FILE', help='where to write the scores (JSON)')
    return parser


def _add_scoremaps(group: argparse._ArgumentGroup) -> None:
    add, named = group.add_argument, ', '.join(PROTOCOLS)
    add('--metadata', type=Path, metavar='DIR', help='of image_ids.txt, localization.txt, ..')
    add('--masks', type=Path, metavar='DIR', help='of the masks that localization.txt lists')
    add('--choose_on', metavar='DIR', type=Path, help=_CHOOSE_ON)
    add('--choose_on_scoremaps', metavar='DIR', type=Path, help='of the maps of that split')
    add('--interval', type=float, default=0.001, help='between thresholds (default: %(default)s)')
    add(
        '--protocols',
        nargs='+',
        action='extend',
        default=[],
        metavar='NAME',
        help=f'also score as an older table did, such as bas:0.15: {named}',
    )


def _add_segmentation(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add('--ground_truth', type=Path, metavar='DIR', help='of the true label maps, same names')
    add('--classes', type=Path, metavar='FILE', help=_CLASSES)
    add('--list', dest='listed', type=Path, metavar='FILE', help=_LIST)
    add('--ignore', type=int, default=255, metavar='INDEX', help=_IGNORE)


if __name__ == '__main__':
    raise SystemExit(main())

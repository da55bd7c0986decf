"""Scores the score maps of any framework: `python -m wsol_jax.evaluation --scoremaps DIR ...`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsol_jax.evaluation.protocols import PROTOCOLS
from wsol_jax.evaluation.scoremaps import evaluate_scoremaps
from wsol_jax.interrupts import exit_code, stop_like_ctrl_c
from wsol_jax.report.table import threshold_text
from wsol_jax.workdir import check_writable, write_text

_PRINTED = ('GTKnownLoc', 'mIoU', 'MaxBoxAcc', 'MaxBoxAccV2', 'PxAP', 'PeakIoU', 'PeakPooledIoU')
_MAPS = 'of <image_id>.npy: 224x224 in [0, 1]; of another size they are resized and scaled'


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0; whatever is wrong is told in one line and exits with code 2, before anything is written.
    """
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    out, page, images = (chosen.pop(name) for name in ('out', 'report', 'images'))
    stop_like_ctrl_c()
    missing = out
    try:
        _check_page(page, images, out)
        metrics = evaluate_scoremaps(**chosen)
        write_text(out, json.dumps(metrics) + '\n')
        missing = page
        print(_lines(metrics))
        if page:
            _write_page(page, metrics, images, chosen)
            print(f'Page: {page}')
    except KeyboardInterrupt as stop:
        parser.exit(exit_code(stop), f'{parser.prog}: interrupted; {missing} is not written\n')
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    return 0


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
    from wsol_jax.report.scoremaps import write_scoremap_page  # here: counting needs no drawing

    folders = {name: of[name] for name in ('scoremaps', 'metadata', 'masks')}
    write_scoremap_page(page, metrics, **folders, images=images)


def _lines(metrics: dict[str, Any]) -> str:
    """The scores for the terminal."""
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
        description='MaxBoxAcc, MaxBoxAccV2 or PxAP of score maps, as wsolevaluation counts them.',
    )
    add = parser.add_argument
    add('--scoremaps', required=True, type=Path, metavar='DIR', help=_MAPS)
    add(
        '--metadata',
        required=True,
        type=Path,
        metavar='DIR',
        help='of image_ids.txt, localization.txt, ..',
    )
    add('--masks', type=Path, metavar='DIR', help='of the masks that localization.txt lists')
    add(
        '--choose_on',
        metavar='DIR',
        type=Path,
        help='metadata of another split, to choose the threshold on (default: the best one is '
        'taken, an oracle)',
    )
    add('--choose_on_scoremaps', metavar='DIR', type=Path, help='of the maps of that split')
    add('--interval', type=float, default=0.001, help='between thresholds (default: %(default)s)')
    add(
        '--protocols',
        nargs='+',
        action='extend',
        default=[],
        metavar='NAME',
        help=f'also score as an older table did, such as bas:0.15: {", ".join(PROTOCOLS)}',
    )
    add('--processes', type=int, default=1, metavar='N', help='default: %(default)s')
    add('--report', type=Path, metavar='FILE.html', help='where to write a page of the scores')
    add('--images', type=Path, metavar='DIR', help='of the images, for the gallery of that page')
    add('--out', type=Path, required=True, metavar='FILE', help='where to write the scores (JSON)')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())

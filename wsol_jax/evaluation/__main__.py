"""Scores the score maps of any framework: `python -m wsol_jax.evaluation --scoremaps DIR ...`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from wsol_jax.evaluation.protocols import PROTOCOLS
from wsol_jax.evaluation.scoremaps import evaluate_scoremaps
from wsol_jax.interrupts import exit_code, stop_like_ctrl_c
from wsol_jax.workdir import check_writable, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0; whatever is wrong is told in one line and exits with code 2, before anything is written.
    """
    parser = _parser()
    chosen = vars(parser.parse_args(arguments))
    out = chosen.pop('out')
    stop_like_ctrl_c()
    try:
        check_writable(out)
        metrics = evaluate_scoremaps(**chosen)
        write_text(out, json.dumps(metrics) + '\n')
    except KeyboardInterrupt as stop:
        parser.exit(exit_code(stop), f'{parser.prog}: interrupted; {out} is not written\n')
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    shown = ('MaxBoxAcc', 'MaxBoxAccV2', 'PxAP', 'PeakIoU', 'PeakPooledIoU')
    scores = {name: metrics[name] for name in shown if name in metrics}
    for name, score in (scores | metrics.get('protocols', {})).items():
        print(f'{name} {score:.2f}')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m wsol_jax.evaluation',
        description='MaxBoxAcc, MaxBoxAccV2 or PxAP of score maps, as wsolevaluation counts them.',
    )
    add = parser.add_argument
    add('--scoremaps', required=True, metavar='DIR', help='of <image_id>.npy, 224x224 in [0, 1]')
    add('--metadata', required=True, metavar='DIR', help='of image_ids.txt, localization.txt, ..')
    add('--masks', metavar='DIR', help='of the masks that localization.txt lists')
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
    add('--out', type=Path, required=True, metavar='FILE', help='where to write the scores (JSON)')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())

"""Checks or prepares a data set: `python -m wsol_jax.data check DIR`, `... prepare NAME ...`.

`... refs PICKLE JSON` makes the refs of RefCOCO readable.
"""

import argparse
from collections.abc import Sequence

from wsol_jax.data import tfds_module
from wsol_jax.data.check import check_folder
from wsol_jax.data.files import printable
from wsol_jax.data.records import ORIENTATIONS, DataError
from wsol_jax.data.refcoco import convert_refs
from wsol_jax.interrupts import exit_code, readers_may_leave, stop_like_ctrl_c


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of the commands.

    Returns:
        0 if all is well, 1 if the data set has problems; a wrong argument exits with code 2.
    """
    parser = argparse.ArgumentParser(prog='python -m wsol_jax.data')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    command = commands.add_parser('check', help='list all that is wrong with a data set on disk')
    command.add_argument(
        'root',
        metavar='DIR',
        help='holds metadata/, ImageSets/, annotations/, refs.json, training/velodyne, v1.0-*/ or '
        'info.json, class folders, or images',
    )
    command.add_argument(
        '--orientation',
        choices=ORIENTATIONS,
        default='auto',
        help='the frame of sizes, boxes and masks: config.data.orientation',
    )
    command = commands.add_parser('prepare', help='store a data set for TensorFlow Datasets')
    command.add_argument('name', metavar='NAME', help='such as cub200_wsol')
    command.add_argument('root', metavar='ROOT', help='holds metadata/ and images/')
    command.add_argument('data_dir', metavar='DATA_DIR', help='where to store it')
    command = commands.add_parser('refs', help="store RefCOCO's pickle of refs as JSON")
    command.add_argument('pickle', metavar='PICKLE', help="such as 'refs(unc).p'")
    command.add_argument('json', metavar='JSON', help='refs.json of the data set')
    chosen = parser.parse_args(arguments)
    stop_like_ctrl_c()
    try:
        if chosen.command == 'check':
            return _check(chosen.root, chosen.orientation)
        if chosen.command == 'refs':
            convert_refs(chosen.pickle, chosen.json)
            return 0
        tfds_module().prepare(chosen.name, chosen.root, chosen.data_dir)
        return 0
    except KeyboardInterrupt as stop:
        parser.exit(exit_code(stop), f'{parser.prog}: interrupted\n')
    except (DataError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {printable(str(error))}\n')


def _check(root: str, orientation: str) -> int:
    report = check_folder(root, orientation)
    with readers_may_leave():
        print(report.text())
    return 1 if report.problems else 0


if __name__ == '__main__':
    raise SystemExit(main())

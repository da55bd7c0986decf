"""The flags of the command, and one clear line for whatever is wrong with them."""

import logging
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from wsol_jax import __version__
from wsol_jax.config import ConfigError, check_key
from wsol_jax.hosts import leaving_others, reason_of
from wsol_jax.interrupts import exit_code, readers_may_leave, stop_like_ctrl_c
from wsol_jax.names import shortened
from wsol_jax.presets import FOLDER, config_file
from wsol_jax.usage import usage

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'config file or name of a shipped config; CONFIG:VARIANT for a variant'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'folder for everything the run writes')
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of the first of several processes that share the run'
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'how many these are')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'which of them this is, from 0')


class _ByName(flags.ArgumentParser):
    """Of a config file, which may be given by the name of a shipped config, too."""

    def __init__(self, of_files: flags.ArgumentParser) -> None:
        self._of_files = of_files

    def parse(self, argument: str) -> Any:
        name, colon, variant = argument.partition(':')
        return self._of_files.parse(f'{config_file(name)}{colon}{variant}')


flags.FLAGS[CONFIG.name].parser = _ByName(flags.FLAGS[CONFIG.name].parser)


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main` on the flags: errors of the user become one line and exit code 2.

    Args:
        main: takes the arguments that are no flags, the program's name first.
    """
    stop_like_ctrl_c()
    sys.unraisablehook = _show
    for name in ('absl', 'asyncio'):  # who logs an error with its traceback raises it, too
        logging.getLogger(name).addFilter(lambda record: not record.exc_info)
    with leaving_others():
        _run(main)


def _run(main: Callable[[Sequence[str]], None]) -> None:
    try:
        about = sys.modules[main.__module__].__doc__ or ''
        app.run(main, flags_parser=partial(parse_flags, about=about))
    except KeyboardInterrupt as stop:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(exit_code(stop))
    # Of other kinds are the errors of the program: they show where they were raised.
    except (flags.Error, ValueError, OSError, FloatingPointError) as error:
        print(f'error: {reason_of(error)}'.splitlines()[0], file=sys.stderr)
        sys.exit(2)


def _show(unraisable: 'sys.UnraisableHookArgs') -> None:
    """As Python does, but for threads of tensorstore that have no one to tell that they failed."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def parse_flags(argv: Sequence[str], about: str = '') -> list[str]:
    """Parses the flags as absl does; `--help` and `--version` print and end the program.

    Args:
        argv: the command line with the program's name.
        about: what `--help` says of the program.

    Returns:
        The arguments that are no flags, the program's name first.

    Raises:
        ConfigError: something is wrong in the flags or in the config file, in one line.
    """
    file = _check_flags(argv, about)
    try:
        positional = flags.FLAGS(argv)
        getattr(CONFIG.value, 'keys', None)  # raises what was put off when the file was loaded
    except Exception as error:  # the config file is code: it may raise anything
        raise ConfigError(shortened(_flags_message(file, argv, error))) from error
    return positional


def _check_flags(argv: Sequence[str], about: str) -> str:
    """Checks that there is such a config file and overrides name settings; returns the file."""
    plain = flags.FlagValues()
    flags.DEFINE_string('config', '', '', flag_values=plain)
    for name, short in (('help', '?'), ('helpshort', None), ('helpfull', None), ('version', None)):
        flags.DEFINE_boolean(name, False, '', short_name=short, flag_values=plain)
    arguments = plain(argv, known_only=True)
    if plain.help or plain.helpshort or plain.helpfull:
        _leave_with(usage(about, _flags_help(plain.helpfull)))
    if plain.version:
        _leave_with(f'wsol_jax {__version__}')
    for argument in arguments:
        if override := re.match(r'--?(?:no)?config\.([^=]*)', argument):
            check_key(override[1])
    if not plain.config:
        return ''
    file = config_file(plain.config.partition(':')[0])
    if file.parent != FOLDER:  # wherever it is started, mine/a.py may import mine/b.py
        sys.path.append(str(file.resolve().parent.parent))
    return str(file)


def _flags_help(full: bool) -> str:
    """The flags of the program; in full those of its libraries, too."""
    known = flags.FLAGS
    if full:
        return known.get_help()
    own = (flag for name in (__name__, sys.argv[0]) for flag in known.get_flags_for_module(name))
    return '\n'.join(map(_flag_help, own))


def _flag_help(flag: flags.Flag) -> str:
    default = f' (default: {flag.default})' if flag.default else ''
    return textwrap.fill(f'  --{flag.name}: {flag.help}{default}', 80, subsequent_indent=' ' * 6)


def _leave_with(text: str) -> NoReturn:
    with readers_may_leave():
        print(text)
    sys.exit(0)


def _flags_message(file: str, argv: Sequence[str], error: Exception) -> str:
    """One line; for an error inside the config file, with its line number."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, SyntaxError):
            return f'{cause.filename}:{cause.lineno}: {cause.msg}'
        for frame, number in reversed(list(traceback.walk_tb(cause.__traceback__))):
            if frame.f_globals.get('__name__') == f'{CONFIG.name}_config':
                return f'{file}:{number}: {_one_line(cause)}'
    if isinstance(error, flags.Error) and '\n' not in str(error):
        return str(error)
    if isinstance(causes[-1], KeyError):
        found = re.search(r'--?config\.(\w+)\.options\.', '\n'.join(argv))
        options = f'--config.{found[1] if found else "network"}.options="{{...}}"'
        return f'{file} sets no {causes[-1]} that could be overridden; give all of them: {options}'
    return f'{file}: {_one_line(causes[-1])}'


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    text = str(error).replace('\\n', ' ').replace('\\', '')  # ml_collections quotes its messages
    return ' '.join(f'{type(error).__name__}: {text}'.split())

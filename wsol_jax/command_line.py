"""The flags of the command, and one clear line for whatever is wrong with them."""

import dataclasses
import logging
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from wsol_jax.config import ConfigError, check_key
from wsol_jax.interrupts import exit_code, readers_may_leave, stop_like_ctrl_c
from wsol_jax.names import shortened
from wsol_jax.settings import Config

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, as FILE.py[:variant].')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for everything the run writes.')


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main` on the flags: errors of the user become one line and exit code 2.

    Args:
        main: takes the arguments that are no flags, the program's name first.
    """
    stop_like_ctrl_c()
    sys.unraisablehook = _show
    for name in ('absl', 'asyncio'):  # who logs an error with its traceback raises it, too
        logging.getLogger(name).addFilter(lambda record: not record.exc_info)
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt as stop:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(exit_code(stop))
    # Of other kinds are the errors of the program: they show where they were raised.
    except (flags.Error, ValueError, OSError, FloatingPointError) as error:
        print(f'error: {error}'.splitlines()[0], file=sys.stderr)
        sys.exit(2)


def _show(unraisable: 'sys.UnraisableHookArgs') -> None:
    """As Python does, but for threads of tensorstore that have no one to tell that they failed."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)


def settings_help(kind: type = Config, prefix: str = 'config') -> str:
    """Every setting of a dataclass as a flag: default, meaning, type, and what it changes."""
    lines, defaults = [], kind()
    for field in dataclasses.fields(kind):
        flag, default = f'{prefix}.{field.name}', getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            about = (type(default).__doc__ or '').partition('\n')[0]
            lines += ['', f'{field.name}: {about}', settings_help(type(default), flag)]
            continue
        known = field.metadata['setting']
        value = default or "''" if isinstance(default, str) else default
        shown = f'"{value}"' if isinstance(default, tuple | dict) else value
        name = str(field.type) if isinstance(default, tuple) else type(default).__name__
        values = ', '.join(filter(None, (name, known.allowed)))
        text = f'{known.help}; {values}; changes {known.changes}'
        lines += [f'  --{flag}={shown}', textwrap.indent(textwrap.fill(text, 92), ' ' * 6)]
    return '\n'.join(lines)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags as absl does; `--help` lists the settings and ends the program.

    Args:
        argv: the command line with the program's name.

    Returns:
        The arguments that are no flags, the program's name first.

    Raises:
        ConfigError: something is wrong in the flags or in the config file, in one line.
    """
    file = _check_flags(argv)
    try:
        positional = flags.FLAGS(argv)
        getattr(CONFIG.value, 'keys', None)  # raises what was put off when the file was loaded
    except Exception as error:  # the config file is code: it may raise anything
        raise ConfigError(shortened(_flags_message(file, argv, error))) from error
    return positional


def _check_flags(argv: Sequence[str]) -> str:
    """Checks that the config file exists and overrides name settings; returns the file."""
    plain = flags.FlagValues()
    flags.DEFINE_string('config', '', '', flag_values=plain)
    for name, short in (('help', '?'), ('helpshort', None), ('helpfull', None)):
        flags.DEFINE_boolean(name, False, '', short_name=short, flag_values=plain)
    arguments = plain(argv, known_only=True)
    if plain.help or plain.helpshort or plain.helpfull:
        with readers_may_leave():
            app.usage(shorthelp=not plain.helpfull, writeto_stdout=True)
            print(f'Settings:\n{settings_help()}')
        sys.exit(0)
    for argument in arguments:
        if override := re.match(r'--?(?:no)?config\.([^=]*)', argument):
            check_key(override[1])
    file = plain.config.partition(':')[0]
    if file and not Path(file).is_file():
        raise ConfigError(f'{file}: no such config file')
    if file:  # from wherever the command is started, configs/a.py may import configs/b.py
        sys.path.append(str(Path(file).resolve().parent.parent))
    return file


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

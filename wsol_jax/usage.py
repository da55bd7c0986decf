"""What `--help` prints: the flags, the shipped configs and every setting."""

import dataclasses
import shutil
import textwrap

from wsol_jax.presets import summaries
from wsol_jax.settings import Config


def usage(about: str, flags: str) -> str:
    """The whole text, as wide as the terminal is, within 80 to 100 columns.

    Args:
        about: what the program does.
        flags: those of the program, in words.
    """
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    parts = {
        'Flags': flags.rstrip(),
        'Shipped configs': configs_help(width),
        'Settings': settings_help(width=width),
    }
    return '\n\n'.join([about.strip(), *(f'{title}:\n{text}' for title, text in parts.items())])


def configs_help(width: int = 80) -> str:
    """Every shipped config with the first line of its docstring."""
    about = summaries()
    column = max(map(len, about)) + 4
    return '\n'.join(
        textwrap.fill(
            text, width, initial_indent=f'  {name}'.ljust(column), subsequent_indent=' ' * column
        )
        for name, text in about.items()
    )


def settings_help(kind: type = Config, prefix: str = 'config', width: int = 80) -> str:
    """Every setting of a dataclass as a flag: default, meaning, type, and what it changes."""
    lines, defaults = [], kind()
    for field in dataclasses.fields(kind):
        flag, default = f'{prefix}.{field.name}', getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            about, *_ = (type(default).__doc__ or '').splitlines()
            title = textwrap.fill(f'{field.name}: {about}', width)
            lines += ['', title, settings_help(type(default), flag, width)]
            continue
        known = field.metadata['setting']
        value = default or "''" if isinstance(default, str) else default
        shown = f'"{value}"' if isinstance(default, tuple | dict) else value
        name = str(field.type) if isinstance(default, tuple) else type(default).__name__
        values = ', '.join(filter(None, (name, known.allowed)))
        text = f'{known.help}; {values}; changes {known.changes}'
        lines += [f'  --{flag}={shown}', textwrap.indent(textwrap.fill(text, width - 6), ' ' * 6)]
    return '\n'.join(lines)

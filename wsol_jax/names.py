"""One wording for misspelt names and values; names that are imported when they are used."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

_LENGTH = 200  # characters of a value in a message


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name nobody knows, with the nearest right one.

    Args:
        kind: what the name stands for, e.g. 'network' or 'endpoint'.
        name: the name that was asked for.
        known: every right name, in the order to print them.

    Returns:
        One line, for the error that the caller raises.
    """
    known = list(known)
    near = _nearest(str(name)[:_LENGTH], known)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    return f'unknown {kind} {shown(name)}; {hint}known: {", ".join(known) or "none"}'


def _nearest(name: str, known: list[str]) -> list[str]:
    """The known name that was meant, if any: spelt otherwise as GradCAM++ is, or mistyped."""
    plain = {_plain(right): right for right in reversed(known)}
    if _plain(name) in plain:
        return [plain[_plain(name)]]
    near = partial(difflib.get_close_matches, n=1, cutoff=0.5)
    return near(name, known) or [plain[right] for right in near(_plain(name), list(plain))]


def _plain(name: str) -> str:
    return re.sub('[^a-z0-9]', '', name.lower().replace('+', 'p'))


def shown(value: Any) -> str:
    """A value as a message shows it: its `repr`, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list in itself
        text = f'{type(value).__name__} that is too large to be printed'
    return shortened(text)


def shortened(text: str) -> str:
    """A text without its middle where it is long."""
    half = _LENGTH // 2
    return text if len(text) <= 2 * _LENGTH else f'{text[:half]}...{text[-half:]}'


def lazy(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose names are imported on first use.

    Args:
        package: its name.
        homes: {name: the module below the package that has it; '' for a module of that name}.
    """
    members = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in homes:
            known = sorted({*homes, *(n for n in members if not n.startswith('_'))})
            raise AttributeError(unknown_name(f'attribute of {package}', name, known))
        module = import_module(f'{package}.{homes[name] or name}')
        members[name] = getattr(module, name) if homes[name] else module
        return members[name]

    return get, lambda: sorted({*members, *homes})

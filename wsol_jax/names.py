"""One wording for every misspelt name, and names that are imported when they are first used."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


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
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    return f'unknown {kind} {name!r}; {hint}known: {", ".join(known) or "none"}'


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

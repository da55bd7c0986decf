"""One wording for every misspelt name."""

import difflib
from collections.abc import Iterable


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

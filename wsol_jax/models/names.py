"""One wording for every misspelt name."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name nobody knows, with the nearest right one.

    Args:
        kind: what the name stands for, e.g. 'network' or 'endpoint'.
        name: the name that was asked for.
        known: every right name, in the order to print them.

    Returns:
        A ValueError of one line, to be raised by the caller.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    return ValueError(f'unknown {kind} {name!r}; {hint}known: {", ".join(known) or "none"}')

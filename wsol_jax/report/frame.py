"""The frame of report.html, which pages of all tasks stand in: one file that needs no network."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from wsol_jax.workdir import write_text


def rendered(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of some values; all text is escaped."""
    return _environment().get_template(template).render(values)


def write_tables(
    workdir: Path,
    title: str,
    facts: Mapping[str, str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Writes a report.html of tables alone.

    Args:
        workdir: where it goes.
        title: of the page.
        facts: shown below the title.
        tables: {heading: rows}; the rows of a table, at least one, have the same columns.
    """
    page = rendered('tables.html', title=title, facts=facts, tables=tables)
    write_text(workdir / 'report.html', page)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)

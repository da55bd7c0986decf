"""The stage `report`: the table on the terminal, figures, and one self-contained page."""

from pathlib import Path
from typing import Any

from wsol_jax.config import Config
from wsol_jax.data import Source
from wsol_jax.maps.store import MapStore
from wsol_jax.report.figures import (
    comparison_figure,
    curve_figure,
    layer_figure,
    method_figure,
    score_figure,
)
from wsol_jax.report.page import write_page
from wsol_jax.report.results import read_curves
from wsol_jax.report.table import summary


def report(config: Config, metrics: dict[str, Any], source: Source, workdir: Path) -> str:
    """Writes figures/ and report.html; returns the table for the terminal.

    Args:
        config: the experiment.
        metrics: what `evaluate` returned.
        source: images of the split that metrics names.
        workdir: with its maps.
    """
    store = MapStore(workdir / 'maps' / metrics['split'])
    for old in (workdir / 'figures').glob('*.*'):
        old.unlink()  # of another format, or of methods that are not here any more

    def path(name: str) -> Path:
        return workdir / 'figures' / f'{name}.{config.report.format}'

    if config.report.images:
        method_figure(config, metrics, source, store, path('methods'))
        for method in dict.fromkeys(key[0] for key in store.arrays):
            layer_figure(config, metrics, source, store, method, path(f'layers_{method}'))
    score_figure(metrics, path('scores'))
    comparison_figure(metrics, path('comparison'))
    curve_figure(metrics, read_curves(workdir), path('curves'))
    write_page(config, metrics, source, store, workdir)
    return summary(metrics)

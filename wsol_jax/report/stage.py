"""The stage `report`: the table on the terminal, figures, and one self-contained page."""

from pathlib import Path
from typing import Any

from wsol_jax.config import Config
from wsol_jax.data import Source
from wsol_jax.localization.store import MapStore
from wsol_jax.report.figures import layer_figure, method_figure, score_figure
from wsol_jax.report.page import write_page
from wsol_jax.report.table import summary


def report(config: Config, metrics: dict[str, Any], source: Source, workdir: Path) -> str:
    """Writes figures/*.png and report.html; returns the table for the terminal.

    Args:
        config: the experiment.
        metrics: what `evaluate` returned.
        source: images of the split that metrics names.
        workdir: with its maps.
    """
    folder = workdir / 'figures'
    store = MapStore(workdir / 'maps' / metrics['split'])
    if config.report.images:
        method_figure(config, metrics, source, store, folder / 'methods.png')
        for method in dict.fromkeys(key[0] for key in store.arrays):
            layer_figure(config, metrics, source, store, method, folder / f'layers_{method}.png')
    score_figure(metrics, folder / 'scores.png')
    write_page(metrics, workdir)
    return summary(metrics)

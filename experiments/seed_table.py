r"""Seeds of every method for the labels of real images, as they are and refined by a dense CRF.

    WSOL_DATA=DATA python -m experiments.seed_table --workdir DIR \
        --config configs/coco_seg_mobilenet_v1.py [--refine 3]

The experiment of the config is run where it is not finished: its task is segmentation. Layer and
threshold of each method are chosen on val; with these its seeds on test, of all methods or of the
best on val, are refined by the CRF of IRN, in which nothing is chosen. Prints the table and writes
DIR/seed_table.md and, with images of test, DIR/seed_table.jpg.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure

from experiments.seeds import scores_of as metrics_of_run
from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import read_config
from wsol_jax.data import Record, Source, decode_image, evenly_spaced
from wsol_jax.data.label_maps import read_label_map, true_label_map
from wsol_jax.maps import Key
from wsol_jax.report.overlay import Cell, draw_grid
from wsol_jax.report.table import markdown
from wsol_jax.run import open_split
from wsol_jax.segmentation import (
    crf_of_places,
    palette,
    refined_label_map,
    scores_of,
    write_label_map,
)
from wsol_jax.segmentation.seed_scores import LABEL_MAPS, has_truth, seed_file, total_confusion
from wsol_jax.workdir import write_text

_REFINE = flags.DEFINE_integer('refine', None, 'How many methods to refine; all by default.', 0)
_SHOWN = ('mIoU', 'FP', 'FN')
_IMAGES, _METHODS = 6, 3  # in the figure

Rows = Mapping[Key, Mapping[str, Any]]


def rows_of(metrics: Mapping[str, Any]) -> Rows:
    """The row of each method at its layer on test, the best on val first."""
    rows = metrics['segmentation']
    val = {(r['method'], r['layer']): r for r in rows if r['split'] == 'val' and r['chosen']}
    test = {(r['method'], r['layer']): r for r in rows if r['split'] == 'test'}
    return {key: test[key] for key in sorted(val, key=lambda key: -val[key]['mIoU'])}


def refined(label_map: np.ndarray, record: Record) -> np.ndarray:
    """A label map after the dense CRF of its image, with the same classes."""
    refine = crf_of_places(decode_image(record))
    return refined_label_map(label_map, np.unique(label_map).tolist(), refine)


def refine_all(source: Source, folder: Path, out: Path, key: Key) -> dict[str, float]:
    """Scores of the refined label maps of a method; what is there is not refined again."""
    records = [record for record in (source[i] for i in range(len(source))) if has_truth(record)]
    for record in records:
        file = seed_file(out, key, record)
        if not file.exists():
            found = refined(read_label_map(seed_file(folder, key, record)), record)
            write_label_map(file, found)
    return scores_of(total_confusion(records, partial(seed_file, out, key), 1 + source.num_classes))


def table(rows: Rows, after: Mapping[Key, Mapping[str, float]], images: int) -> str:
    """Markdown: a row for each method, the best on val first."""
    names = [f'+ CRF: {name}' for name in _SHOWN if after]
    lines = [['method', 'layer', 'threshold', *_SHOWN, *names]]
    for key, row in rows.items():
        known = [row, *([after[key]] if key in after else [])]
        numbers = [f'{found[name]:.1f}' for found in known for name in _SHOWN]
        numbers += [''] * (len(_SHOWN) + len(names) - len(numbers))
        lines.append([*key, f'{row["threshold"]:.2f}', *numbers])
    return '\n\n'.join([markdown(lines), _NOTE.format(images)])


_NOTE = (
    'Percent of {} images of test. Layer and threshold chosen on val, which also orders the rows; '
    'a CRF has the setting of IRN.'
)


def draw(source: Source, kinds: Sequence[tuple[str, Path, Key]]) -> Figure:
    """Images of test with their true label maps, and some others.

    Args:
        source: of test.
        kinds: (title, folder, method and layer) of each kind of label maps.
    """
    records = [r for r in (source[i] for i in range(len(source))) if has_truth(r)]
    titles = ['image', 'true', *(title for title, _, _ in kinds)]
    lines = []
    for i in evenly_spaced(np.arange(len(records)), _IMAGES).tolist():
        image, record = decode_image(records[i]), records[i]
        maps = [true_label_map(record)]
        maps += [read_label_map(seed_file(folder, key, record)) for _, folder, key in kinds]
        pictures = [image, *(_painted(image, found) for found in maps)]
        lines.append([Cell(picture, np.zeros((0, 4))) for picture in pictures])
    figure = Figure(layout='constrained')
    draw_grid(figure, titles, lines)
    return figure


def _painted(image: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    covered = (label_map > 0)[..., None]
    mixed = 0.35 * image + 0.65 * palette()[label_map]
    return np.where(covered, mixed, image).astype(np.uint8)


def main(_: Sequence[str]) -> None:
    """Runs what is missing, then prints and writes the table and the figure."""
    logging.set_verbosity(logging.WARNING)
    config, workdir = read_config(CONFIG.value), Path(WORKDIR.value)
    metrics = metrics_of_run(config, workdir)
    rows, source = rows_of(metrics), open_split(config, 'test')
    folders = workdir / LABEL_MAPS, workdir / 'refined'
    best = list(rows)[: _REFINE.value]
    after = {key: refine_all(source, *folders, key) for key in best}
    text = table(rows, after, next(iter(rows.values()))['images'])
    classified = [f'{name} {value:.1f}' for name, value in metrics['classification'].items()]
    text = f'{config.network.name}, {", ".join(classified)}\n\n{text}'
    write_text(workdir / 'seed_table.md', text + '\n')
    kinds = [
        (f'{key[0]}{crf}', folder, key)
        for key in list(rows)[:_METHODS]
        for crf, folder in zip(('', ' + CRF'), folders, strict=True)
        if not crf or key in after
    ]
    draw(source, kinds).savefig(workdir / 'seed_table.jpg', dpi=130)
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

r"""Segmentation from image labels, step by step: which step gains, which loses.

    WSOL_DATA=DATA python -m experiments.segmentation --workdir DIR [--seeds 3]

DATA holds `weights/deit_tiny_patch16_224.safetensors`, which MARS needs alone. The images are those
of configs/scenes_trained.py. Each seed runs in DIR/seed_0, ..., what is finished is not run again.
A classifier is trained on image labels; of its maps the method and layer that are best on val are
the seeds, and the steps go on from there:

    seeds       where the map of a class is above the threshold that is best on val
    + CRF       these label maps, refined by the image (IRN's dense CRF)
    + IRN       a random walk of the maps, stopped at boundaries learnt from confident seeds
    bas_wsss    seeds of a generator that is trained to leave nothing of a class in the background;
                + seeds: of the sum of its maps and the classifier's, as its paper has them
    esol        seeds after expansion and shrinkage (a reconstruction)
    + MARS      the label maps of the best step before on val, without what only stands beside a
                class; places that are given up count as background here
    network     DeepLab trained on the label maps of that step
    MARS network  trained on those of MARS from the start, its gaps filled in by its moving average
    supervised  DeepLab trained on the true label maps

MARS's features are those of a network that knows ImageNet's labels and none of these, in place of
an unsupervised one; its layer was chosen on 200 images of train with their masks (seed 0). Those of
the classifier do not serve: to it the rails are the train. `beside` is the share of the places that
always stand beside a class, and are background, which are taken for the class.
All scores are of test; networks see no label of test. Prints the table and writes it to
DIR/segmentation.md.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments.seeds import SEEDS, spread
from wsol_jax.command_line import WORKDIR, run_command
from wsol_jax.config import Config, SegmentationConfig, read_config
from wsol_jax.configs import scenes_trained
from wsol_jax.data import Record, Source, decode_image, evaluation_batches, scenes
from wsol_jax.data.label_maps import (
    BACKGROUND,
    MISSING,
    read_label_map,
    true_label_map,
)
from wsol_jax.data.records import Pixels
from wsol_jax.localization.method import HEAD
from wsol_jax.maps import Key
from wsol_jax.maps.store import MapStore, path_of
from wsol_jax.report.table import markdown
from wsol_jax.run import open_splits, run
from wsol_jax.segmentation import (
    SeedCurves,
    confident_label_map,
    crf_of_places,
    joined_probabilities,
    remove_bias,
    scores_of,
    seed_curves,
    seed_label_map,
    write_label_map,
)
from wsol_jax.segmentation.affinity import walked
from wsol_jax.segmentation.crf import refine_image
from wsol_jax.segmentation.seed_scores import image_seeds, total_confusion
from wsol_jax.training.trained import load_network
from wsol_jax.workdir import read_json, write_text

_SPLITS = ('train', 'val', 'test')
_MARGIN = 0.1  # of confident seeds: thresholds this much above and below that of the seeds
_THRESHOLDS = np.arange(50) / 50
_WALKS = (2, 4, 6, 8)  # of 2^k steps; 8 is for maps of 128 places, these have 24
# For MARS: network, its weights, its endpoint.
_FEATURES = ('deit_tiny', 'weights/deit_tiny_patch16_224.safetensors', 'block9')
Seeds = tuple[np.ndarray, list[int]]  # of `image_seeds`
_SHOWN = ('mIoU', 'FP', 'FN', 'beside')


class Run(NamedTuple):
    """One seed: its folder, its experiments by variant, its splits by name."""

    folder: Path
    variant: Callable[[str], Config]
    splits: Mapping[str, Source]

    def store(self, name: str, split: str) -> MapStore:
        """The maps of a variant."""
        return MapStore(self.folder / name / 'maps' / split)


def trained(this: Run, variant: str, start: str = '', name: str = '', **changed: Any) -> Path:
    """Runs a variant where it is not finished; returns its workdir.

    Args:
        this: the seed.
        variant: of the config.
        start: the variant that it starts from.
        name: of the workdir, if that is not called like the variant.
        **changed: options of its training.
    """
    workdir, config = this.folder / (name or variant), this.variant(variant)
    options = {**config.train.options, **changed}
    setting = {'options': options, 'init_from': str(this.folder / start) if start else ''}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **setting))
    if variant == 'irn':  # boundaries alone, which are no seeds: val says how long the walk is
        localize = dataclasses.replace(config.localize, methods=('irn',))
        setting = {'localize': localize, 'segmentation': SegmentationConfig()}
        config = dataclasses.replace(config, stages=('train', 'localize'), **setting)
    if not (workdir / 'report.html').exists():
        run(config, workdir)
    return workdir


def best_key(workdir: Path) -> tuple[Key, float]:
    """The (method, layer) of the highest mIoU on val, and its threshold."""
    rows = [r for r in read_json(workdir / 'metrics.json')['segmentation'] if r['split'] == 'val']
    best = max(rows, key=lambda row: row['mIoU'])
    return (best['method'], best['layer']), best['threshold']


def maps_of(
    this: Run, split: str, *keys: tuple[str, Key]
) -> Iterator[tuple[Record, np.ndarray, list[np.ndarray]]]:
    """(record, its classes [L], maps [L,h,w] of each (variant, key)) of the images of a split."""
    stores = [(this.store(variant, split), key) for variant, key in keys]
    classes = stores[0][0].fact('classes')
    for i, own in enumerate(classes):
        yield this.splits[split][i], own, [s.take(key, np.array([i]))[0] for s, key in stores]


def crf_step(this: Run, key: Key, threshold: float) -> tuple[Path, Path]:
    """Folders of the refined seeds, and of the confident ones that IRN learns from."""
    refined, confident = this.folder / 'crf', this.folder / 'confident'
    sure, possible = min(threshold + _MARGIN, 0.98), max(threshold - _MARGIN, 0.02)
    for split in this.splits:
        for record, classes, (maps,) in maps_of(this, split, ('plain', key)):
            name = f'{record.image_id}.png'
            if (confident / name).exists():
                continue
            seeds, refine = image_seeds(maps, classes, record), crf_of_places(decode_image(record))
            write_label_map(refined / name, seed_label_map(*seeds, threshold, refine))
            found = confident_label_map(*seeds, sure, possible, refine)
            write_label_map(confident / name, found)
    return refined, confident


def irn_step(this: Run, key: Key, seeds: Path) -> Path:
    """The folder of the label maps after the random walk, whose length is chosen on val."""
    trained(this, 'irn', 'plain', labels=str(seeds))
    folder = this.folder / 'walked'
    if not is_whole(this, folder, 'test'):
        curves = {length: curves_of(walks(this, 'val', key, length)) for length in _WALKS}
        scores = {k: scores_of(c.at(c.best_threshold))['mIoU'] for k, c in curves.items()}
        length = max(scores, key=lambda k: scores[k])
        logging.warning('mIoU on val after walks of 2^k steps: %s', scores)
        write_seeds(this, folder, lambda split: walks(this, split, key, length))
    return folder


def joined_step(this: Run, key: Key) -> Path:
    """The folder of the seeds of the maps of BAS-WSSS and of the classifier, summed."""
    folder = this.folder / 'joined'
    both = ('bas_wsss', ('bas_wsss', HEAD)), ('plain', key)
    if not is_whole(this, folder, 'test'):
        write_seeds(this, folder, lambda split: sums(this, split, *both))
    return folder


def sums(this: Run, split: str, *keys: tuple[str, Key]) -> Iterator[tuple[Record, Seeds]]:
    """(record, its seeds of the sum of several kinds of maps)."""
    for record, classes, kinds in maps_of(this, split, *keys):
        seeds = [image_seeds(maps, classes, record) for maps in kinds]
        yield record, (joined_probabilities([p for p, _ in seeds]), seeds[0][1])


def curves_of(found: Iterable[tuple[Record, Seeds]]) -> SeedCurves:
    """What seeds make of the pixels of their images at every threshold."""
    count = 1 + len(scenes.COATS)
    return SeedCurves.joined(
        seed_curves(*seeds, true_label_map(record), _THRESHOLDS, count) for record, seeds in found
    )


def write_seeds(
    this: Run, folder: Path, seeds_of: Callable[[str], Iterable[tuple[Record, Seeds]]]
) -> None:
    """Writes the label maps of seeds of every split; their threshold is chosen on val."""
    threshold = curves_of(seeds_of('val')).best_threshold
    for record, seeds in chain.from_iterable(map(seeds_of, this.splits)):
        write_label_map(folder / f'{record.image_id}.png', seed_label_map(*seeds, threshold))


def walks(this: Run, split: str, key: Key, length: int) -> Iterator[tuple[Record, Seeds]]:
    """(record, its seeds of the maps that a random walk has carried to IRN's boundaries)."""
    both = ('plain', key), ('irn', ('irn', HEAD))
    for record, classes, (maps, boundary) in maps_of(this, split, *both):
        found = walked(jnp.asarray(maps), jnp.asarray(boundary[0]), length)
        yield record, image_seeds(np.asarray(found), classes, record)


def mars_step(this: Run, labels: Path) -> Path:
    """The folder of the debiased label maps, which have gaps; of train and val."""
    folder, features, splits = this.folder / 'debiased', this.folder / 'features', ('train', 'val')
    if not all(is_whole(this, folder, split) for split in splits):
        write_features(this, splits, features)
        for split in splits:
            remove_bias(this.splits[split], labels, features, folder, refine=refine_image)
        shutil.rmtree(features)
    return folder


def write_features(this: Run, splits: Sequence[str], folder: Path) -> None:
    """Features of the images, `<image_id>.npy`; from each channel its mean over all is taken."""
    name, weights, layer = _FEATURES
    network = load_network(name, Path(os.environ.get('WSOL_DATA', 'data')) / weights)
    found = {}
    for split in splits:
        for batch in evaluation_batches(this.splits[split], network.input_size, 50):
            arrays = np.moveaxis(np.asarray(network(batch.images)[1][layer]), -1, 1)
            found.update(zip(batch.image_ids, arrays[: batch.real], strict=False))
    mean = np.mean([array.mean(axis=(1, 2)) for array in found.values()], axis=0)
    for image_id, array in found.items():
        path = folder / f'{image_id}.npy'
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array - mean[:, None, None])


def is_whole(this: Run, folder: Path, split: str) -> bool:
    """Whether all label maps of a split are there: they are written in order."""
    source = this.splits[split]
    return (folder / f'{source[len(source) - 1].image_id}.png').exists()


def scores(source: Source, folder: Path) -> dict[str, float]:
    """Percentages of the label maps `<image_id>.png` in a folder; gaps count as background."""
    records, beside, taken = [source[i] for i in range(len(source))], 0, 0

    def file_of(record: Record) -> Path:
        return folder / f'{record.image_id}.png'

    total = total_confusion(records, file_of, 1 + source.num_classes, without_gaps)
    for record in records:
        context = read_label_map(record.extra['context'])
        beside += int((context > 0).sum())
        taken += int(((context > 0) & (without_gaps(file_of(record)) == context)).sum())
    return scores_of(total) | {'beside': 100 * taken / max(beside, 1)}


def without_gaps(file: Path) -> Pixels:
    """A label map whose gaps are background."""
    found = read_label_map(file)
    return np.where(found == MISSING, np.uint8(BACKGROUND), found)


def seeds_in(workdir: Path) -> Path:
    """Where a run wrote the label maps of its best (method, layer)."""
    key, _ = best_key(workdir)
    return workdir / 'label_maps' / path_of(key)


def steps_of(this: Run) -> dict[str, dict[str, float]]:
    """{step: its scores} of one seed."""
    plain = trained(this, 'plain')
    key, threshold = best_key(plain)
    refined, confident = crf_step(this, key, threshold)
    trained(this, 'esol_expansion', 'plain')
    folders = {
        'seeds': seeds_in(plain),
        '+ CRF': refined,
        '+ IRN': irn_step(this, key, confident),
        'bas_wsss': seeds_in(trained(this, 'bas_wsss')),
        'bas_wsss + seeds': joined_step(this, key),
        'esol': seeds_in(trained(this, 'esol', 'esol_expansion')),
    }
    val, test, train = this.splits['val'], this.splits['test'], this.splits['train']
    best = max(folders, key=lambda step: scores(val, folders[step])['mIoU'])
    logging.info('the networks learn from %s', best)
    found = {step: scores(test, folder) for step, folder in folders.items()}
    debiased = mars_step(this, folders[best])
    found['+ MARS'] = scores(train, debiased)
    found[f'{best}, train'] = scores(train, folders[best])
    predicted = {
        'network': trained(this, 'segmenter', name='network', labels=str(folders[best])),
        'MARS network': trained(this, 'mars', labels=str(debiased)),
        'supervised': trained(this, 'segmenter', name='supervised'),
    }
    for step, workdir in predicted.items():
        found[step] = scores(test, workdir / 'maps' / 'test' / 'label_maps')
    return found


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: a row for each step, mean ± sample standard deviation over the seeds."""
    lines = [['step', 'seeds', *_SHOWN]]
    for step in dict.fromkeys(step for found in seeds for step in found):
        own = [found[step] for found in seeds if step in found]
        lines.append([step, str(len(own)), *(spread([s[name] for s in own]) for name in _SHOWN)])
    return '\n\n'.join([markdown(lines), _NOTE])


_NOTE = (
    'Percent of test, mean ± sample standard deviation over the seeds; + MARS and what it starts '
    'from of train, whose label maps the networks learn from. beside: of what always stands beside '
    'a class, how much is taken for it.'
)


def main(_: Sequence[str]) -> None:
    """Runs what is missing, then prints and writes the table."""
    logging.set_verbosity(logging.WARNING)
    folder, found = Path(WORKDIR.value), []
    for seed in range(SEEDS.value):

        def variant(name: str, seed: int = seed) -> Config:
            return dataclasses.replace(read_config(scenes_trained.get_config(name)), seed=seed)

        splits = open_splits(variant('plain'))
        this = Run(folder / f'seed_{seed}', variant, {name: splits(name) for name in _SPLITS})
        found.append(steps_of(this))
        text = table(found)
        write_text(folder / 'segmentation.md', text + '\n')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir'])
    run_command(main)

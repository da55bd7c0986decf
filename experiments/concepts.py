r"""Concepts from captions: where is what a phrase speaks of, learnt from the images it goes with?

    WSOL_DATA=DATA python -m experiments.concepts --workdir DIR \
        --config configs/coco_expressions_dtmr.py [--phrases 'person,car'] [--rounds 3]

The expressions of an image are its caption. Images of train whose caption has a phrase are
positive; of the others a linear SVM on the mean of the network's last layer sees as many as there
are positives, drawn at random, and in each further round those that it scored highest (hard
negatives). Its weights make a map (Zhou et al., CVPR 2016, section 4.4).

Told of each phrase, on test: the average precision of the SVM's scores (as VOC has it), beside what
chance gives; and on the images with the phrase how often the maximum of the map lies in a box of
its class, beside the share of the image that these boxes take, which is chance. Phrases are by
default the classes that are the subject in the most images of train. Prints the table and writes it
to DIR/concepts.md.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags, logging

from experiments.linear_svm import features_of, fit_svm
from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import ConfigError, read_config
from wsol_jax.data import Record, Source, decode_image, stored_size
from wsol_jax.evaluation.multi_label import average_precisions
from wsol_jax.models import Network, load_network
from wsol_jax.report.table import markdown
from wsol_jax.run import open_splits
from wsol_jax.workdir import write_text

_PHRASES = flags.DEFINE_list('phrases', [], 'Of captions; by default the most frequent subjects.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Of looking for hard negatives.', lower_bound=0)

COST = 0.01
_MOST = 8  # phrases
_GRID = 64  # places along each side, by which areas are told
_HEAD = ['phrase', 'images of train', 'of test', 'AP', 'chance', 'pointing', 'share of the boxes']


class Images(NamedTuple):
    """The captioned images of a split.

    Attributes:
        records: N of them.
        maps: [N,h,w,K], the last layer of the network.
        captions: their expressions, joined.
    """

    records: Sequence[Record]
    maps: np.ndarray
    captions: Sequence[str]

    def speaking_of(self, phrase: str) -> np.ndarray:
        """Whose caption has a phrase, as whole words: bool [N]."""
        return np.array([f' {phrase} ' in f' {caption} ' for caption in self.captions])


def caption_of(record: Record) -> str:
    """The expressions of an image, joined."""
    return ' . '.join(each.text for each in record.extra['expressions'])


def frequent(records: Sequence[Record]) -> list[str]:
    """The subjects of the expressions of the most images, the most frequent first."""
    subjects = [{each.subject for each in record.extra['expressions']} for record in records]
    counted = Counter(name for of_image in subjects for name in sorted(of_image))
    return [name for name, _ in counted.most_common(_MOST)]


def learn(
    features: np.ndarray, positive: np.ndarray, rounds: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """A linear SVM of a phrase, with hard negatives.

    Args:
        features: [N,K].
        positive: bool [N], whose caption has the phrase.
        rounds: of looking for hard negatives, as many at a time as there are positives.
        rng: draws the first negatives.

    Returns:
        Weights [K] and bias.
    """
    others, count = np.flatnonzero(~positive), int(positive.sum())
    chosen = rng.choice(others, min(count, len(others)), replace=False)
    for again in range(rounds + 1):
        seen = np.concatenate([np.flatnonzero(positive), chosen])
        weights, bias = fit_svm(features[seen], positive[seen].astype(int), 2, COST)
        if again < rounds:
            hardest = others[np.argsort(-(features[others] @ weights[:, 1]), kind='stable')]
            chosen = np.union1d(chosen, hardest[:count])
    return weights[:, 1], float(bias[1])


def boxes_of(record: Record, label: int) -> np.ndarray:
    """The proposals of a class: [n,4] as shares of the image."""
    pairs = zip(record.boxes, record.extra['proposal_classes'], strict=True)
    sides = stored_size(record)
    return np.array([box for box, k in pairs if k == label], float).reshape(-1, 4) / (
        *sides,
        *sides,
    )


def within(boxes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether places lie in a box: boxes [n,4], x [m], y [m] -> bool [m]."""
    x0, y0, x1, y1 = boxes.T[..., None]
    return np.any((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1), axis=0)


def pointing(cam: np.ndarray, boxes: np.ndarray) -> tuple[float, float]:
    """Whether the maximum of a map [h,w] lies in a box [n,4], and the share that the boxes take."""
    row, column = np.unravel_index(int(np.argmax(cam)), cam.shape)
    height, width = cam.shape
    place = np.array([(column + 0.5) / width]), np.array([(row + 0.5) / height])
    grid = np.meshgrid(*[(np.arange(_GRID) + 0.5) / _GRID] * 2)
    taken = within(boxes, grid[0].ravel(), grid[1].ravel())
    return float(within(boxes, *place)[0]), float(taken.mean())


def row_of(phrase: str, train: Images, test: Images, label: int | None) -> list[str]:
    """What the table tells of a phrase.

    Args:
        phrase: of captions.
        train: learnt from.
        test: told of.
        label: the class that the phrase names, if any.
    """
    positive, asked = train.speaking_of(phrase), test.speaking_of(phrase)
    cells = [phrase, str(positive.sum()), str(asked.sum())]
    if not positive.any() or positive.all() or not asked.any():
        return [*cells, *[''] * 4]
    rng = np.random.default_rng(0)
    weights, bias = learn(train.maps.mean(axis=(1, 2)), positive, _ROUNDS.value, rng)
    scores = test.maps.mean(axis=(1, 2)) @ weights + bias
    cells += [
        f'{average_precisions(scores[:, None], asked[:, None])[0]:.1f}',
        f'{100 * asked.mean():.1f}',
    ]
    if label is None:
        return [*cells, '', '']
    which = np.flatnonzero(asked).tolist()
    told = [pointing(test.maps[i] @ weights, boxes_of(test.records[i], label)) for i in which]
    return [*cells, *(f'{100 * value:.1f}' for value in np.mean(told, axis=0))]


def read_images(network: Network, source: Source) -> Images:
    """Those of a split that have a caption."""
    records = [r for r in map(source.__getitem__, range(len(source))) if r.extra['expressions']]
    maps = features_of(network, map(decode_image, records))
    return Images(records, maps, [caption_of(record) for record in records])


def main(_: Sequence[str]) -> None:
    """Prints and writes the table."""
    logging.set_verbosity(logging.WARNING)
    folder, config = Path(WORKDIR.value), read_config(CONFIG.value)
    network = load_network(config.network.name, config.network.weights or None)
    opened = open_splits(config)
    if 'expressions' not in opened('train')[0].extra:
        raise ConfigError(f'config.data.source={config.data.source!r} has no expressions')
    train, test = (read_images(network, opened(name)) for name in ('train', 'test'))
    names = opened('train').class_names
    lines = [
        row_of(phrase, train, test, names.index(phrase) if phrase in names else None)
        for phrase in _PHRASES.value or frequent(train.records)
    ]
    text = markdown([_HEAD, *lines])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'concepts.md', text + '\n')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

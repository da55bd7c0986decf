r"""Maps for free: a linear SVM on the pooled features of a network that is not trained any further.

    WSOL_DATA=DATA python -m experiments.linear_svm --workdir DIR \
        --config configs/cub30_mobilenet_v1.py

One-vs-all linear SVMs learn the classes of train from the mean of the last layer over all places.
Their weights take the place of the classifier's, so that CAM, and every other method, is defined
(Zhou et al., CVPR 2016, section 4.1). The weights are written to DIR/svm.safetensors, which
`config.network.weights` takes; maps, scores and page go to DIR/maps.

Then features of what CAM finds instead of the whole image (section 4.2): the box of the largest
part above 20 % of the maximum, of the true class on train and of the predicted one elsewhere. The
true box on test is a bound: nobody has it where nothing is labelled but images.

And units that tell a class apart (section 5.3): those with the largest weights, and what they are
most active on in train: the box around the unit's own map above half of its maximum.

The cost of the SVM is chosen on val. Prints the table of accuracies and writes it to
DIR/linear_svm.md; the units to DIR/units.png.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize
from absl import flags, logging
from matplotlib.figure import Figure
from safetensors.numpy import load_file, save_file

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.data import Record, Source, decode_image, resize_image
from wsol_jax.maps.boxes import boxes_from_map
from wsol_jax.models import Network, load_network
from wsol_jax.models.network import sides
from wsol_jax.models.zoo import RECIPES
from wsol_jax.report.table import markdown
from wsol_jax.run import open_splits, run
from wsol_jax.workdir import write_text

COSTS = (1e-4, 1e-3, 1e-2, 1e-1)
RULE = 0.2  # of a map's maximum
_SPLITS = ('train', 'val', 'test')
_BATCH = 32
_CLASSES, _UNITS, _PATCHES = 4, 3, 5  # of the figure

Box = tuple[int, int, int, int]


class Svm(NamedTuple):
    """One-vs-all linear classifiers of C classes: scores are features @ weights + bias.

    Attributes:
        weights: [K,C].
        bias: [C].
    """

    weights: np.ndarray
    bias: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The class of the highest score: [N,K] -> [N]."""
        return np.argmax(features @ self.weights + self.bias, axis=1)


def fit_svm(features: np.ndarray, labels: np.ndarray, num_classes: int, cost: float) -> Svm:
    """Linear SVMs with the squared hinge loss, one for each class against all others.

    The minimum of |w|^2 / 2 + cost * sum max(0, 1 - y f)^2, which is convex; the bias is not
    penalised.

    Args:
        features: [N,K].
        labels: [N].
        num_classes: C.
        cost: of an image that is on the wrong side.
    """
    signs = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = flat.reshape(inputs.shape[1], num_classes)
        missing = np.maximum(0, 1 - signs * (inputs @ both))
        kept = np.concatenate([both[:-1], np.zeros((1, num_classes))])
        gradient = kept - 2 * cost * inputs.T @ (signs * missing)
        return float((kept**2).sum() / 2 + cost * (missing**2).sum()), gradient.ravel()

    start = np.zeros(inputs.shape[1] * num_classes)
    options = {'ftol': 1e-7}
    found = scipy.optimize.minimize(loss, start, jac=True, method='L-BFGS-B', options=options)
    both = found.x.reshape(-1, num_classes)
    return Svm(both[:-1], both[-1])


def cam_boxes(
    maps: np.ndarray, svm: Svm, classes: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> list[Box]:
    """The largest part of each CAM above 20 % of its maximum.

    Args:
        maps: features [N,h,w,K].
        svm: whose weights make the map.
        classes: [N], of which class.
        sizes: (width, height) of each image in pixels.
    """
    cams = np.einsum('nhwk,kn->nhw', maps, svm.weights[:, classes])
    return [box_above(cam, size, RULE) for cam, size in zip(cams, sizes, strict=True)]


def box_above(raw: np.ndarray, size: tuple[int, int], threshold: float) -> Box:
    """The largest part of a raw map [h,w] above a fraction of its maximum; else the whole image."""
    x0, y0, x1, y1 = boxes_from_map(raw, size, threshold)[0].tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else (0, 0, *size)


class Split(NamedTuple):
    """The images of a split as the network sees them whole.

    Attributes:
        records: N of them.
        maps: [N,h,w,K], the last layer.
        labels: [N].
        sizes: (width, height) of each image in pixels.
    """

    records: Sequence[Record]
    maps: np.ndarray
    labels: np.ndarray
    sizes: Sequence[tuple[int, int]]

    @property
    def pooled(self) -> np.ndarray:
        """[N,K]."""
        return self.maps.mean(axis=(1, 2))


def features_of(network: Network, images: Iterator[np.ndarray]) -> np.ndarray:
    """The last layer [N,h,w,K] of images uint8 [H,W,3] of any size, which are squashed."""

    @jax.jit
    def last(state: object, inputs: jax.Array) -> jax.Array:
        return network.apply(state, network.preprocessing(inputs))[1][network.last_layer]

    height, width = sides(network.input_size)
    squashed = [resize_image(image, (width, height)) for image in images]
    padded = squashed + squashed[:1] * (-len(squashed) % _BATCH)  # one program
    parts = [np.stack(padded[i : i + _BATCH]) for i in range(0, len(padded), _BATCH)]
    return np.concatenate([np.asarray(last(network.state, p)) for p in parts])[: len(squashed)]


def read_split(network: Network, source: Source) -> Split:
    """Reads a split whole.

    Raises:
        ConfigError: an image has not exactly one label.
    """
    records = [source[i] for i in range(len(source))]
    if bad := [r.image_id for r in records if len(r.labels) != 1]:
        raise ConfigError(f'config.data: {bad[0]} has not one label, which SVMs of classes need')
    sizes: list[tuple[int, int]] = []

    def images() -> Iterator[np.ndarray]:
        for record in records:
            image = decode_image(record)
            sizes.append((image.shape[1], image.shape[0]))
            yield image

    maps = features_of(network, images())
    return Split(records, maps, np.array([r.labels[0] for r in records]), sizes)


def crops(records: Sequence[Record], boxes: Sequence[Box]) -> Iterator[np.ndarray]:
    """What boxes show of images, uint8."""
    for record, (x0, y0, x1, y1) in zip(records, boxes, strict=True):
        yield decode_image(record)[y0:y1, x0:x1]


def best_svm(
    features: Mapping[str, np.ndarray], splits: Mapping[str, Split], num_classes: int
) -> tuple[Svm, float]:
    """Learnt on train, with the cost that serves val best, the smallest of equal ones: and it.

    Features are standardised on train, which the weights take back.
    """
    mean, deviation = features['train'].mean(axis=0), features['train'].std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)  # a unit that is always silent
    inputs = (features['train'] - mean) / deviation
    fitted = []
    for cost in COSTS:
        weights, bias = fit_svm(inputs, splits['train'].labels, num_classes, cost)
        weights = weights / deviation[:, None]
        fitted.append((Svm(weights, bias - mean @ weights), cost))
    right = [accuracy(svm, features['val'], splits['val']) for svm, _ in fitted]
    return fitted[int(np.argmax(right))]


def accuracy(svm: Svm, features: np.ndarray, split: Split) -> float:
    """Of an SVM on features [N,K] of a split, in percent."""
    return 100 * float(np.mean(svm.predict(features) == split.labels))


def write_weights(config: Config, svm: Svm, file: Path) -> None:
    """The network's weights with the SVMs in place of its classifier.

    Raises:
        ConfigError: the file has no classifier under the names of the network.
    """
    tensors = load_file(config.network.weights)
    head = [name for name in tensors if re.match(RECIPES[config.network.name].head, name)]
    named = {name.rpartition('.')[2]: name for name in head}
    if set(named) != {'weight', 'bias'}:
        raise ConfigError(f'{config.network.weights}: no classifier of weight and bias in {head}')
    shape = (svm.weights.shape[1], -1, *tensors[named['weight']].shape[2:])
    weights = np.ascontiguousarray(svm.weights.T.reshape(shape), np.float32)
    new = {named['weight']: weights, named['bias']: svm.bias.astype(np.float32)}
    save_file({**tensors, **new}, file)


def plot_units(train: Split, svm: Svm, name: Callable[[int], str], file: Path) -> None:
    """The patches of train that the units with the largest weights of some classes look at."""
    figure = Figure(figsize=(1.2 * _UNITS * _PATCHES, 1.5 * _CLASSES), layout='constrained')
    axes = figure.subplots(_CLASSES, _UNITS * _PATCHES, squeeze=False)
    for row, label in enumerate(range(min(_CLASSES, svm.weights.shape[1]))):
        for column, unit in enumerate(np.argsort(-svm.weights[:, label])[:_UNITS].tolist()):
            active = train.maps[..., unit]
            for k, i in enumerate(np.argsort(-active.max(axis=(1, 2)))[:_PATCHES].tolist()):
                box = box_above(active[i], train.sizes[i], 0.5)
                (patch,) = crops([train.records[i]], [box])
                cell = axes[row, column * _PATCHES + k]
                cell.imshow(resize_image(patch, (96, 96)))
                if not k:
                    cell.set_title(f'unit {unit}', fontsize=8, loc='left')
        axes[row, 0].set_ylabel(name(label).replace('_', ' '), fontsize=7)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_visible(False)
    figure.savefig(file, dpi=110)


def experiment(config: Config, folder: Path) -> str:
    """The table of accuracies; writes weights and figure."""
    network = load_network(config.network.name, config.network.weights)
    opened = open_splits(config)
    splits = {name: read_split(network, opened(name)) for name in _SPLITS}
    train, count = splits['train'], opened('train').num_classes
    svm, cost = best_svm({n: s.pooled for n, s in splits.items()}, splits, count)
    write_weights(config, svm, folder / 'svm.safetensors')
    plot_units(train, svm, opened('train').class_name, folder / 'units.png')
    rows = [('whole image', cost, accuracy(svm, splits['test'].pooled, splits['test']))]
    rows += _of_crops(network, splits, svm, count)
    lines = [[shown, f'{cost:g}', f'{right:.1f}'] for shown, cost, right in rows]
    return markdown([['what is seen of an image', 'cost', 'top-1 of test'], *lines])


def _of_crops(
    network: Network, splits: Mapping[str, Split], svm: Svm, num_classes: int
) -> list[tuple[str, float, float]]:
    """The rows of what CAM finds, and of true boxes where each image of test has one."""

    def pooled(split: Split, boxes: Sequence[Box]) -> np.ndarray:
        return features_of(network, crops(split.records, boxes)).mean(axis=(1, 2))

    cropped = {}
    for name, split in splits.items():
        classes = split.labels if name == 'train' else svm.predict(split.pooled)
        cropped[name] = pooled(split, cam_boxes(split.maps, svm, classes, split.sizes))
    again, cost = best_svm(cropped, splits, num_classes)
    test = splits['test']
    rows = [('the box of CAM', cost, accuracy(again, cropped['test'], test))]
    if all(record.boxes for record in test.records):
        true = pooled(test, [record.boxes[0] for record in test.records])
        rows.append(('on test its true box (a bound)', cost, accuracy(again, true, test)))
    return rows


def main(_: Sequence[str]) -> None:
    """Accuracies, then the maps of the SVMs through the usual stages."""
    logging.set_verbosity(logging.WARNING)
    folder, config = Path(WORKDIR.value), read_config(CONFIG.value)
    if not config.network.weights.endswith('.safetensors'):
        raise ConfigError(
            'config.network.weights must be a .safetensors file, whose classifier is replaced, '
            f'got {config.network.weights!r}'
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'linear_svm.md', (text := experiment(config, folder)) + '\n')
    print(text)
    network = dataclasses.replace(config.network, weights=str(folder / 'svm.safetensors'))
    stages = ('localize', 'evaluate', 'report')
    run(dataclasses.replace(config, network=network, stages=stages), folder / 'maps')


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

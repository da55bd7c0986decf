r"""What BAS rests on: cross-entropy and activation of a class against how much of it is seen.

    WSOL_DATA=DATA python -m experiments.bas_motivation --workdir DIR \
        --config configs/pets_mobilenet_v1.py [--layer pw_11] [--images 40]

The classifier is the one trained in DIR, or that of config.network.weights. The features at a layer
are multiplied with the true mask of each test image, eroded or dilated until it has a given share
of the object's area, and with what that mask leaves of the image; then come logit and cross-entropy
of the true class (Wu et al., CVPR 2022, section 3.1 and figure 2). Erosion and dilation are by
discs: masks are level sets of the distance to the outline. Prints the table, and writes it with a
figure to DIR/bas_motivation.md and .png.

On `pets`, with the classifier of that config (seed 0), the claim holds: the cross-entropy comes to
rest at 0.7 of the mask, the logit grows on by 0.78 (0.73 to 0.83) up to the whole mask and by 0.67
in the border around it, where the outline lies, but hardly behind it (experiments/figures).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import optax
from absl import flags, logging
from matplotlib.figure import Figure

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.data import Labels, Source, decode_mask, evaluation_batches, evenly_spaced
from wsol_jax.evaluation.intervals import mean_intervals
from wsol_jax.models import Network
from wsol_jax.report.table import markdown
from wsol_jax.run import load_classifier, open_splits
from wsol_jax.workdir import write_text

_LAYER = flags.DEFINE_string('layer', 'pw_11', 'Endpoint whose features are masked.')
_IMAGES = flags.DEFINE_integer('images', 0, 'Images of test; 0 for all.', lower_bound=0)

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
_WHOLE = SHARES.index(1.0)
_NEAR = 0.05  # nats: a cross-entropy this near that of the whole object has nothing left to teach
_COLOURS = {'foreground': '#0072B2', 'background': '#D55E00'}

# {'foreground' or 'background': {'logit' or 'cross-entropy': [images, shares]}}; NaN where the mask
# would have to be larger than the image.
Values = Mapping[str, Mapping[str, np.ndarray]]


def grown(mask: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """An object eroded or dilated to shares of its area.

    Args:
        mask: bool [H,W].
        shares: of its area.

    Returns:
        float32 [shares,H,W], 0 or 1; NaN where the image is too small.
    """
    inside, outside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for part in (mask, ~mask)
    )
    order = np.argsort((outside - inside).ravel(), kind='stable')
    found = np.full((len(shares), mask.size), np.nan, np.float32)
    for row, share in zip(found, shares, strict=True):
        if (count := round(share * mask.sum())) <= mask.size:
            row[:] = 0
            row[order[:count]] = 1
    return found.reshape(-1, *mask.shape)


@partial(jax.jit, static_argnums=(0, 1))
def masked_logits(
    apply: Any, layer: str, state: Any, inputs: jax.Array, masks: jax.Array
) -> jax.Array:
    """Logits [N,B,C] from features times masks [N,B,h,w]."""
    features = apply(state, inputs)[1][layer]

    def logits(mask: jax.Array) -> jax.Array:
        return apply(state, inputs, {layer: lambda _: features * mask[..., None]})[0]

    return jax.lax.map(logits, masks)


def measure(config: Config, network: Network, layer: str, source: Source) -> tuple[Values, float]:
    """What is kept of a class, for every share; and how much larger objects are with their border.

    Raises:
        ConfigError: an image has no mask.
    """
    rows, borders = [], []
    for images, labels, masks in _batches(config, network, source):
        side = network.endpoints()[layer][:2]
        seen = np.stack([[_resized(m, side) for m in grown(mask == 1, SHARES)] for mask in masks])
        both = np.concatenate([seen, 1 - seen], axis=1).swapaxes(0, 1)  # [2 shares,B,h,w]
        inputs = network.preprocessing(images)
        logits = masked_logits(network.apply, layer, network.state, inputs, both)
        rows.append(_of_class(logits, labels))
        borders += [(mask != 0).sum() / (mask == 1).sum() for mask in masks]
    values = np.concatenate(rows, axis=1)  # [quantities,images,2 shares]
    named = dict(zip(('logit', 'cross-entropy'), values, strict=True))
    count = len(SHARES)
    return {
        'foreground': {name: x[:, :count] for name, x in named.items()},
        'background': {name: x[:, count:] for name, x in named.items()},
    }, float(np.mean(borders))


def _batches(config: Config, network: Network, source: Source) -> Iterator[tuple[Any, ...]]:
    """(images [B,H,W,3], labels [B], masks [B,H,W]: 0, 1 or 255 for the border) of true masks."""
    positions = evenly_spaced(np.arange(len(source)), _IMAGES.value or len(source)).tolist()
    height, width, _ = network.input_shape
    size = config.network.input_size or network.input_size
    batch_size = config.localize.batch_size
    for batch in evaluation_batches(source, size, batch_size, positions, 0, Labels(required=True)):
        kept = np.flatnonzero(batch.valid)
        records = [source[int(batch.index[i])] for i in kept]
        if bare := [r.image_id for r in records if not r.masks]:
            raise ConfigError(f'{bare[0]} has no mask: config.data must be of images with masks')
        masks = [decode_mask(r, (width, height)) for r in records]
        yield batch.images[kept], batch.targets['labels'][kept, 0], masks


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means over the cells of a grid: [H,W] -> size (height, width)."""
    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_AREA)


def _of_class(logits: jax.Array, labels: np.ndarray) -> np.ndarray:
    """Logit and cross-entropy of the labels: logits [N,B,C] -> [2,B,N]."""
    chosen = np.take_along_axis(np.asarray(logits), labels[None, :, None], axis=-1)[..., 0]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, np.stack([labels] * len(logits)))
    return np.stack([chosen.T, np.asarray(loss).T])


def table(values: Values) -> list[list[str]]:
    """A row for each share, with means and 95 % intervals over the images."""
    names = [(part, name) for part in values for name in values[part]]
    rows = [['area', 'images', *(f'{name}, {part}' for part, name in names)]]
    count = (~np.isnan(values['foreground']['logit'])).sum(axis=0)
    cells = [_cells(values[part][name]) for part, name in names]
    for i, share in enumerate(SHARES):
        rows.append([f'{share:g}', str(count[i]), *(column[i] for column in cells)])
    return rows


def _cells(values: np.ndarray) -> list[str]:
    ends = mean_intervals(values)
    return [
        f'{mean:.2f} ({low:.2f}–{high:.2f})'
        for mean, (low, high) in zip(np.nanmean(values, axis=0), ends, strict=True)
    ]


def findings(values: Values, border: float) -> str:
    """Whether the class goes on being activated where its cross-entropy has come to rest."""
    loss, logit = (values['foreground'][name] for name in ('cross-entropy', 'logit'))
    means = np.nanmean(loss, axis=0)
    rest = int(np.argmax(np.abs(means[: _WHOLE + 1] - means[_WHOLE]) <= _NEAR))
    outside = int(np.argmin(np.abs(np.array(SHARES) - border)))
    lines = [
        f'The border of masks, where the outline is, adds {100 * (border - 1):.0f} % to their area '
        f'on average. The mean cross-entropy of the foreground is within {_NEAR:g} of that of the '
        f'whole mask from {SHARES[rest]:g} of its area on. What the logit '
        "grows by (mean and 95 % interval; for each tenth of the mask's area):"
    ]
    for start, end in pairwise(dict.fromkeys((0, rest, _WHOLE, outside, len(SHARES) - 1))):
        rise = (logit[:, end] - logit[:, start])[:, None]
        (low, high), mean = mean_intervals(rise)[0], np.nanmean(rise)
        tenth = mean / (10 * (SHARES[end] - SHARES[start]))
        span = f'{SHARES[start]:g} to {SHARES[end]:g}'
        lines.append(f'- from {span}: {mean:+.2f} ({low:+.2f} to {high:+.2f}); {tenth:+.2f}')
    return '\n'.join(lines)


def plot(title: str, values: Values, border: float, file: Path) -> None:
    """Means and intervals against the share; the band is the border of masks."""
    figure = Figure(figsize=(8, 3.4), layout='constrained')
    for axes, name in zip(figure.subplots(1, 2), ('cross-entropy', 'logit'), strict=True):
        axes.axvspan(1, border, color='#eeeeee', label='border of the masks')
        for part, colour in _COLOURS.items():
            found = values[part][name]
            axes.plot(SHARES, np.nanmean(found, axis=0), color=colour, label=part)
            axes.fill_between(SHARES, *mean_intervals(found).T, color=colour, alpha=0.2)
        axes.set(xlabel='area / that of the true mask', ylabel=f'{name} of the true class')
        axes.spines[['top', 'right']].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc='outside lower center', ncols=3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=150)


def main(_: Sequence[str]) -> None:
    """Measures, prints the table, writes it and the figure."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    splits = open_splits(config)
    network = load_classifier(config, folder)
    values, border = measure(config, network, _LAYER.value, splits('test'))
    images = len(values['foreground']['logit'])
    title = f'{network.name}, features of {_LAYER.value} masked, {images} images of test'
    text = '\n\n'.join([title, markdown(table(values)), findings(values, border)])
    write_text(folder / 'bas_motivation.md', text + '\n')
    plot(title, values, border, folder / 'bas_motivation.png')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

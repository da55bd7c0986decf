r"""What each part of DTMR gives, on generated scenes and on COCO images with generated sentences.

    WSOL_DATA=DATA python -m experiments.grounding --workdir DIR [--seeds 3] [--dataset relations]

The experiments are those of configs/relations_dtmr.py and configs/coco_expressions_dtmr.py; each
runs in DIR/<source>/<variant>/seed_0, ..., what is finished is not run again. The second needs DATA
with `weights/mobilenet_v1.safetensors` and `coco_seg/`. Beside the accuracies on test stand what
guessing, the largest box, and guessing among the boxes of the subject's class give. `one` are
sentences whose class has one box, `other` those with a relation to another class, `own` those that
tell boxes of one class apart. In both data sets a subject is the name of its class, so that without
the class embedding nothing changes there; it is no variant.

Then pairs per second of the pair attention, whose first layer is computed for each proposal and
added, and of the plain form that joins words and features for every pair. Prints the tables and
writes them to DIR/grounding.md.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from flax import nnx

from experiments.seeds import SEEDS, scores_of, spread
from wsol_jax.command_line import WORKDIR, run_command
from wsol_jax.config import Config, read_config
from wsol_jax.configs import coco_expressions_dtmr, relations_dtmr
from wsol_jax.models.grounding import SimAttention
from wsol_jax.report.table import markdown
from wsol_jax.workdir import write_text

CONFIGS = {
    'relations': relations_dtmr.get_config,
    'coco_expressions': coco_expressions_dtmr.get_config,
}
DATASET = flags.DEFINE_enum('dataset', '', ['', *CONFIGS], 'One of the data sets.')
# Variant -> options of the method.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    'dtmr': {},
    'raw scores': {'attention': 'raw'},
    'without subject': {'subject': 0.0},
    'without object': {'object': 0.0},
    'without relation': {'relation': 0.0},
    'without place': {'place': False},
}
_BASELINES = ('Chance', 'Largest', 'ClassOnly')
_KINDS = {'one': 'none', 'other': 'other class', 'own': 'own class'}
_SHAPE = (8, 6, 16, 128)  # images, sentences, proposals and width of the timing
_WORDS = 900  # of a triad
_REPEATS = 5


def variant_of(config: Config, variant: str, seed: int) -> Config:
    """An experiment with the options of a variant."""
    options = {**config.train.options, **VARIANTS[variant]}
    train = dataclasses.replace(config.train, options=options)
    return dataclasses.replace(config, train=train, seed=seed)


def row_of(runs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """A score of all sentences of test, then of each of `_KINDS`.

    Args:
        runs: what metrics.json holds, one for each seed.
        name: of the score.
    """
    rows = [row for run in runs for row in run['grounding'] if row['split'] == run['split']]
    cells = [spread([row[name] for row in rows])]
    for kind in _KINDS.values():
        found = [r for row in rows for r in row['by_relation'] if r['relation'] == kind]
        cells.append(spread([r[name] for r in found]) if found else '')
    return cells


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: a row for each variant, and one for each baseline.

    Args:
        runs: {variant: what metrics.json holds, one for each seed}.
    """
    lines = [['', 'accuracy', *_KINDS]]
    lines += [[name, *row_of(of_seeds, 'Accuracy')] for name, of_seeds in runs.items()]
    first = next(iter(runs.values()))
    lines += [[name, *row_of(first, name)] for name in _BASELINES]
    return markdown(lines)


def joined(attention: SimAttention, words: jax.Array, one: jax.Array) -> jax.Array:
    """The scores of all pairs in the plain form: [B,S,D], [B,N,K] -> [B,S,N,N]."""
    images, sentences, count = *words.shape[:2], one.shape[1]
    shape = images, sentences, count, count
    parts = (words[:, :, None, None], one[:, None, :, None], one[:, None, None])
    every = [jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
    kernels = [attention.words.kernel, *(part.kernel for part in attention.parts)]
    first = jnp.concatenate(every, axis=-1) @ jnp.concatenate([k[...] for k in kernels])
    x = nnx.relu(first + attention.words.bias)
    return attention.score(nnx.relu(attention.hidden(x)))[..., 0]


def pairs_per_second() -> str:
    """Markdown: both forms of the pair attention."""
    images, sentences, count, width = _SHAPE
    attention = SimAttention(_WORDS, (2 * width, 2 * width), width, rngs=nnx.Rngs(0))
    words = jax.random.normal(jax.random.key(0), (images, sentences, _WORDS))
    one = jax.random.normal(jax.random.key(1), (images, count, 2 * width))
    forms: dict[str, Callable[..., jax.Array]] = {
        'added': lambda module, w, x: module(w, x, x),
        'joined': joined,
    }
    lines = [['form', 'pairs per second']]
    for name, form in forms.items():
        seconds = _seconds(nnx.jit(form), attention, words, one)
        lines.append([name, f'{images * sentences * count**2 / seconds:,.0f}'])
    return markdown(lines)


def _seconds(program: Callable[..., jax.Array], *given: Any) -> float:
    """The shortest of some calls, without the first."""
    jax.block_until_ready(program(*given))
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program(*given))
        found.append(time.perf_counter() - start)
    return min(found)


def main(_: Sequence[str]) -> None:
    """Runs what is missing, then prints and writes the tables."""
    logging.set_verbosity(logging.WARNING)
    folder, parts = Path(WORKDIR.value), []
    for source in [DATASET.value] if DATASET.value else CONFIGS:
        config = read_config(CONFIGS[source]())
        runs = {
            variant: [
                scores_of(
                    variant_of(config, variant, seed),
                    folder / source / variant.replace(' ', '_') / f'seed_{seed}',
                )
                for seed in range(SEEDS.value)
            ]
            for variant in VARIANTS
        }
        parts.append(f'{source}, test, {SEEDS.value} seeds\n\n{table(runs)}')
    text = '\n\n'.join([*parts, pairs_per_second()])
    write_text(folder / 'grounding.md', text + '\n')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir'])
    run_command(main)

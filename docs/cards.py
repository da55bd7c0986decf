"""The cards of the methods, from their docstrings: MyST markdown."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

from wsol_jax import METHODS
from wsol_jax.localization.method import Method, class_score, softmax_probabilities
from wsol_jax.training.methods import METHODS as TRAINED

PICTURES = Path(__file__).parent / 'pictures'
_WHERE = {
    'any': 'any layer, or several at once',
    'last': 'the layer before global average pooling',
    'all': 'all main layers, for one map',
    'input': 'the input, for a map as fine as it',
}
_GRADIENTS = {class_score: 'the gradient of the score', softmax_probabilities: 'that of the loss'}


def without_training() -> str:
    """A card for each method that needs no training."""
    return '\n'.join(_card(name) for name in METHODS)


def with_training() -> str:
    """A card for each training method but the plain classifier."""
    return '\n'.join(_trained_card(name) for name in TRAINED if name)


def gallery() -> str:
    """The pictures of all methods, with links to their cards."""
    names = [name for name in METHODS if _pictured(name)]
    cells = [f'![{name}](../pictures/{name}.jpg)\n[`{name}`](#{name})' for name in names]
    cells = ['![the image](../pictures/image.jpg)\nthe image', *cells]
    framed = [f':::{{container}}\n{cell}\n:::' for cell in cells]
    return '\n'.join(['::::{container} wsol-gallery', *framed, '::::'])


def _card(name: str) -> str:
    function = METHODS[name]
    summary, *texts = _paragraphs(function)
    title, _, formula = summary.partition(': ')
    picture = f':::{{image}} ../pictures/{name}.jpg\n:align: right\n:alt: map\n:::' * _pictured(
        name
    )
    lines = [f'({name})=', f'## {title}', picture, f'```text\n{formula.rstrip(".")}\n```', *texts]
    options = inspect.signature(function).parameters.values()
    facts = {'name': f'`{name}`', 'needs': needs(function())}
    if options:
        facts['options'] = ', '.join(f'`{o.name}={o.default!r}`' for o in options)
    return _joined([*lines, _table(facts)])


def _pictured(name: str) -> bool:
    return (PICTURES / f'{name}.jpg').exists()


def needs(method: Method) -> str:
    """What a method takes of the network, in words."""
    # Those at the input take it in passes of their own: nothing is pulled back to a layer.
    pulled = (class_score,) if method.where == 'input' else method.cotangents
    gradients = [_GRADIENTS[c] for c in pulled]
    found = [' and '.join(gradients) or 'no gradient', _WHERE[method.where]]
    if method.passes:
        found.append('further passes')
    if method.part:
        found.append(f'the {method.part} of each block')
    if method.forward_mode:
        found.append('forward-mode derivatives')
    return '; '.join([*found, *(['ends in a ReLU'] if method.relu else [])])


def _trained_card(name: str) -> str:
    kind = TRAINED[name]
    title, _, paper = _paragraphs(sys.modules[kind.__module__])[0].rstrip('.').partition(' (')
    lines = [
        f'({name})=',
        f'## {title}: `{name}`',
        f'{paper.removesuffix(")")}.',
        *_paragraphs(kind),
    ]
    options = [f for f in dataclasses.fields(kind) if 'setting' in f.metadata]
    rows = [f'| `{f.name}` | `{f.default!r}` | {f.metadata["setting"].help} |' for f in options]
    table = ['| option | default | |\n|---|---|---|', *rows] if rows else ['It has no options.']
    return _joined([*lines, f'`config.train.method={name!r}`', '\n'.join(table)])


def _paragraphs(documented: Any) -> list[str]:
    """The paragraphs of a docstring before its sections; the weakness with its head set off."""
    text = inspect.cleandoc(documented.__doc__)
    for section in ('Args:', 'Attributes:'):
        text = text.partition(f'\n\n{section}')[0]
    found = text.replace('*', r'\*').split('\n\n')
    return [f'**Weak**{p.removeprefix("Weak")}' if p.startswith('Weak') else p for p in found]


def _table(facts: dict[str, str]) -> str:
    return '\n'.join(['| | |', '|---|---|', *(f'| {k} | {v} |' for k, v in facts.items())])


def _joined(lines: list[str]) -> str:
    return '\n\n'.join(line for line in lines if line) + '\n'

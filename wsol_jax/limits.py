"""Which values of settings are right: a range for every number, choices, and what a text may be."""

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from wsol_jax.names import shown, unknown_name


class Range(NamedTuple):
    """The numbers from `least` to `most`; a round bracket leaves that end out."""

    least: float
    most: float
    ends: Literal['[]', '(]', '[)', '()'] = '[]'

    def fault(self, number: float) -> str:
        """What a number would have to do to be right; '' if it is."""
        if not isinstance(number, int) and not math.isfinite(number):
            return 'be a finite number'
        above = number >= self.least if self.ends[0] == '[' else number > self.least
        below = number <= self.most if self.ends[1] == ']' else number < self.most
        if above and below:
            return ''
        if self.ends == '()':
            return f'lie between {self.least:g} and {self.most:g}'
        lower = f'be at least {self.least:g}' if self.ends[0] == '[' else f'be above {self.least:g}'
        if self.ends == '[)':
            return f'{lower} and below {self.most:g}'
        return f'be at most {self.most:,.15g}' if above else lower


_COUNT = Range(1, 65_536)
_EVERY = Range(1, 1_000_000_000)
_BELOW_ONE = Range(0, 1, '[)')
_ANY = Range(-1_000_000, 1_000_000)  # of a number without a range of its own
# Upper ends are far above what anybody uses: they stop slips of the pen before memory does.
RANGES = {
    'seed': Range(0, 2**32 - 1),
    'data.shapes_size': Range(1, 4096),
    'data.shapes_counts': Range(1, 10_000_000),
    'data.workers': Range(0, 256),
    'data.max_pixels': Range(1, 2**31 - 1),
    'augment.margin': Range(0, 4096),
    'augment.jitter': _BELOW_ONE,
    'network.input_size': Range(0, 8192),
    'train.epochs': Range(1, 100_000),
    'train.batch_size': _COUNT,
    'train.accumulate': _COUNT,
    'train.learning_rate': Range(0, 1000),
    'train.warmup': _BELOW_ONE,
    'train.step_epochs': Range(0, 100_000),
    'train.step_factor': Range(0, 1000, '(]'),
    'train.power': Range(0, 1000, '(]'),
    'train.multipliers': Range(0, 1_000_000),
    'train.head': Range(0, 1_000_000),
    'train.momentum': _BELOW_ONE,
    'train.weight_decay': Range(0, 1000),
    'train.clip': Range(0, 1_000_000_000),
    'train.label_smoothing': _BELOW_ONE,
    'train.ema': _BELOW_ONE,
    'train.checkpoint_every': _EVERY,
    'train.log_every': _EVERY,
    'localize.batch_size': _COUNT,
    'localize.scales': Range(0, 16, '(]'),
    'localize.noise': Range(0, 10_000),
    'localize.sigma': Range(0, 100, '(]'),
    'localize.chunk_size': _COUNT,
    'evaluate.size': Range(2, 4096),
    'evaluate.threshold_step': Range(0.0001, 1, '[)'),
    'evaluate.threshold': Range(0, 1, '()'),
    'evaluate.closing': Range(0, 4095),
    'evaluate.faithfulness': Range(0, 1_000_000_000),
    'evaluate.processes': Range(1, 256),
    'report.images': Range(0, 1000),
    'report.gallery': Range(0, 100_000),
}
CHOICES = {
    'parallel': ('jit', 'pmap'),
    'augment.crop': ('warp', 'short_side', 'resized'),
    'train.optimizer': ('sgd', 'adamw'),
    'train.schedule': ('cosine', 'poly', 'step', 'constant'),
    'train.dtype': ('float32', 'bfloat16'),
    'data.orientation': ('auto', 'displayed', 'stored'),
    'train.keep': ('best', 'last'),
    'report.format': ('png', 'svg'),
}
_PATTERNS = ('train.multipliers', 'train.freeze')
_FOLDERS = ('localize.splits', 'evaluate.choose_on')


def range_of(key: str) -> Range:
    """The numbers that a setting may be."""
    return RANGES.get(key, _ANY)


def check(key: str, value: Any) -> str:
    """What is wrong with the value of a setting, in one line; '' if nothing is.

    Args:
        key: such as 'train.epochs'.
        value: of the setting's type; of lists every element is checked.
    """
    faults = (_fault(key, where, leaf) for where, leaf in _leaves(f'config.{key}', value))
    return next(filter(None, faults), '')


def _leaves(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple | list):
        for i, element in enumerate(value):
            yield from _leaves(f'{where}[{i}]', element)
    else:
        yield where, value


def _fault(key: str, where: str, value: Any) -> str:
    known = CHOICES.get(key)
    if known and value not in known:
        return unknown_name(f'value of {where}', value, known)
    rule = ''
    if isinstance(value, str):
        rule = _text_rule(key, value)
    elif isinstance(value, int | float):
        rule = range_of(key).fault(value)
    return f'{where} must {rule}, got {shown(value)}' if rule else ''


def _text_rule(key: str, text: str) -> str:
    if '\0' in text:
        return 'hold no NUL character'
    if key in _FOLDERS and (text in ('', '.', '..') or '/' in text or '\\' in text):
        return 'be the plain name of a split'
    if key in _PATTERNS:
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            return f'be a regex ({error})'
    return ''

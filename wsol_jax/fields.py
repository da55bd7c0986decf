"""What a setting is: a dataclass's field with its meaning, its right values and what it changes.

All of that stands beside the field, in one call of `setting`. The checks of configs and of
options, the removal of results that other settings made, and `--help` read it there.
"""

import dataclasses
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from wsol_jax.names import shown, unknown_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar('T')
# What a workdir keeps: each is made from the one before, and goes with it.
Kept = Literal['checkpoints', 'maps', 'scores', 'nothing']
KEPT: tuple[Kept, ...] = get_args(Kept)
_LARGEST = 10**300  # of the whole numbers that are read as floats


class ConfigError(ValueError):
    """A setting that is misspelt, of the wrong type, or out of range."""


class Range(NamedTuple):
    """The numbers from `least` to `most`; a round bracket leaves that end out."""

    least: float
    most: float
    ends: Literal['[]', '(]', '[)', '()'] = '[]'

    def __str__(self) -> str:
        lower, upper = f'{self.least:,.15g}', f'{self.most:,.15g}'
        return f'{">" * (self.ends[0] == "(")}{lower}..{"<" * (self.ends[1] == ")")}{upper}'

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


ANY = Range(-1_000_000, 1_000_000)  # of a number without a range of its own


@dataclass(frozen=True)
class Setting:
    """What is known of a field.

    Attributes:
        help: its meaning.
        invalidates: the first of `KEPT` that another value makes wrong, and what follows with it.
        range: of numbers, in lists too; None for none, or `ANY` of free options.
        choices: the texts it may be; () for any.
        rule: of texts, in lists too: what a text would have to do to be right; '' if it is.
    """

    help: str
    invalidates: Kept
    range: Range | None = None
    choices: tuple[str, ...] = ()
    rule: Callable[[str], str] | None = None

    @property
    def allowed(self) -> str:
        """Which values are right, in words; '' for all of the type."""
        if self.choices:
            return f'{", ".join(self.choices[:-1])} or {self.choices[-1]}'
        return str(self.range or '')

    @property
    def changes(self) -> str:
        """All that `invalidates` means."""
        return ', '.join(KEPT[KEPT.index(self.invalidates) : -1]) or 'nothing that is kept'

    def fault(self, value: Any) -> str:
        """What a number or text would have to do to be right; '' if it is."""
        if isinstance(value, int | float):
            return (self.range or ANY).fault(value)
        if isinstance(value, str) and '\0' in value:
            return 'hold no NUL character'
        return self.rule(value) if self.rule and isinstance(value, str) else ''


def setting(
    default: T,
    help: str,
    invalidates: Kept,
    range: Range | None = None,
    *,
    choices: tuple[str, ...] = (),
    rule: Callable[[str], str] | None = None,
) -> T:
    """A dataclass's field; its arguments but for `default` are those of `Setting`.

    Upper ends of ranges are far above what anybody uses: they stop slips of the pen before memory
    does.
    """
    metadata = {'setting': Setting(help, invalidates, range, choices, rule)}
    if isinstance(default, dict):
        # Left out of the hash, for dictionaries have none.
        factory = partial(copy, default)
        return dataclasses.field(default_factory=factory, hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(kind: type) -> dict[str, Setting]:
    """{'train.epochs': setting} of a dataclass, in order; those of its groups under their names."""
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found |= {f'{field.name}.{k}': s for k, s in settings_of(field.type).items()}
        elif 'setting' in field.metadata:
            found[field.name] = field.metadata['setting']
    return found


def flatten(config: 'DataclassInstance') -> dict[str, Any]:
    """{'train.epochs': 10, ...}, for comparing and storing; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}

    def walk(value: Any, prefix: str) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                walk(child, f'{prefix}.{key}' if prefix else key)
        else:
            flat[prefix] = _lists(value)

    walk(dataclasses.asdict(config), '')
    return flat


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def documented(kind: type[T]) -> type[T]:
    """The dataclass, whose docstring goes on with what its settings mean."""
    lines = ['    Attributes:']
    for name, setting in settings_of(kind).items():
        text = '; '.join(filter(None, (f'{name}: {setting.help}', setting.allowed)))
        lines.append(
            textwrap.fill(f'{text}.', initial_indent=' ' * 8, subsequent_indent=' ' * 10, width=100)
        )
    kind.__doc__ = '\n'.join([f'{(kind.__doc__ or "").rstrip()}\n', *lines])
    return kind


def regex(text: str) -> str:
    """The rule of regular expressions."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return f'be a regex ({error})'
    return ''


def split_name(text: str) -> str:
    """The rule of splits, whose names become those of folders."""
    plain = text not in ('', '.', '..') and '/' not in text and '\\' not in text
    return '' if plain else 'be the plain name of a split'


_URL = re.compile(r'((gs|s3|memory)://|file:///)[A-Za-z0-9][A-Za-z0-9._~+=@%/-]*')


def store_url(text: str) -> str:
    """The rule of URLs that arrays are stored under; '' is the workdir."""
    if not text or _URL.fullmatch(text):
        return ''
    return "be '' for the workdir, or a plain URL: gs://BUCKET/RUN, s3://BUCKET/RUN, file:///FOLDER"


def value_fault(setting: Setting, where: str, value: Any) -> str:
    """What is wrong with the value of a setting, in one line; '' if nothing is.

    Args:
        setting: what is right.
        where: the setting's name for the message, such as 'config.train.epochs'.
        value: of the setting's type; of lists every element is checked.
    """
    return next(filter(None, (_fault(setting, *leaf) for leaf in _leaves(where, value))), '')


def _leaves(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple | list):
        for i, element in enumerate(value):
            yield from _leaves(f'{where}[{i}]', element)
    else:
        yield where, value


def _fault(setting: Setting, where: str, value: Any) -> str:
    if setting.choices and value not in setting.choices:
        return unknown_name(f'value of {where}', value, setting.choices)
    must = setting.fault(value)
    return f'{where} must {must}, got {shown(value)}' if must else ''


def converted(default: Any, kind: Any, value: Any, path: str) -> Any:
    """A value of a config tree as its field has it: tuples for lists, floats for whole numbers.

    Args:
        default: of the field.
        kind: of the field; what a number or text must be tells the default.
        value: to convert.
        path: for messages, such as 'config.train.epochs'.

    Raises:
        ConfigError: the value is of another type.
    """
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list):
            hint = f'write ({shown(value)},)'
            raise ConfigError(f'{path} must be of type tuple, got {shown(value)}; {hint}')
        return _tuple(kind, value, path)
    if isinstance(default, dict):
        return _options(value, path)
    return _scalar(type(default), value, path)


def _options(value: Any, path: str) -> Mapping[str, Any]:
    """Free settings: names with values that config.json can record."""
    _scalar(Mapping, value, path)
    for key, option in value.items():
        if not isinstance(key, str):
            raise ConfigError(f'{path} must have names as keys, got {shown(key)}')
        if isinstance(option, Mapping):
            _options(option, f'{path}.{key}')
        elif not _is_plain(option):
            raise ConfigError(
                f'{path}.{key} must be a number, a text or a tuple, got {shown(option)}'
            )
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _tuple(kind: Any, value: Any, path: str) -> tuple[Any, ...]:
    elements = get_args(kind)
    if elements[-1] is Ellipsis:
        elements = elements[:1] * len(value)
    if not isinstance(value, tuple | list) or len(value) != len(elements):
        raise ConfigError(
            f'{path} must be {len(elements)} values in parentheses, got {shown(value)}'
        )
    return tuple(
        (_tuple if get_origin(e) is tuple else _scalar)(e, v, f'{path}[{i}]')
        for i, (e, v) in enumerate(zip(elements, value, strict=True))
    )


def _scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < _LARGEST else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f'{path} must be of type {kind.__name__}, got {shown(value)}')
    return value

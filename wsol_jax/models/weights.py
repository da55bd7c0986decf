"""Weights by name, torchvision's or our own, into Flax NNX modules."""

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

Table = Sequence[tuple[str, str]]

# The last part of a torch name -> what Flax may call it; the module decides which.
LEAVES = {
    'weight': ('kernel', 'scale'),
    'bias': ('bias',),
    'running_mean': ('mean',),
    'running_var': ('var',),
}
IGNORED = 'num_batches_tracked'
SHOWN_FIRST = 3
_TOLD = 12  # values that keep what they started with, each on a line of its own


class WeightsError(ValueError):
    """A weights file that cannot be read or does not fit the network."""


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a weights file by name.

    Args:
        path: .safetensors, or (with torch installed) .pth, .pt or .bin holding a state dict.

    Raises:
        WeightsError: the file is missing, of another kind, damaged, or holds a value that is not
            finite.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
        '.safetensors': _read_safetensors,
        '.pth': _read_torch,
        '.pt': _read_torch,
        '.bin': _read_torch,
    }
    if path.suffix not in readers:
        folder = '; wsol_jax.load_network opens workdirs' if path.is_dir() else ''
        raise WeightsError(
            f'{path}: weights must be a .safetensors, .pth, .pt or .bin file{folder}'
        )
    if not path.is_file():
        what = 'not a regular file' if path.exists() else 'no such weights file'
        raise WeightsError(f'{path}: {what}')
    tensors = readers[path.suffix](path)
    for key, tensor in tensors.items():
        if tensor.dtype.kind not in 'biu' and not np.isfinite(tensor).all():
            raise WeightsError(f'{path}: {key} holds values that are not finite (NaN or infinity)')
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a .safetensors file says of itself; nothing of a file that holds tensors alone.

    Raises:
        WeightsError: the file cannot be read.
    """
    if Path(path).suffix != '.safetensors' or not Path(path).is_file():
        return {}
    with _readable(Path(path)), safe_open(path, 'numpy') as file:
        return file.metadata() or {}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with _readable(path):
        return load_file(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    # The latter two where NumPy has no such type, float8 for one.
    except (SafetensorError, OSError, AttributeError, TypeError) as error:
        raise WeightsError(
            f'{path}: not a readable safetensors file ({_first_line(error)})'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def assign(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    path: str | Path,
    table: Table,
    head: str,
    strict: bool = True,
) -> list[str]:
    """Fills a module, in place, with tensors in torch's layout.

    Args:
        module: the network; unchanged where an error is raised.
        tensors: by torchvision's names; `num_batches_tracked` is ignored.
        path: where they come from, for messages.
        table: (regex, replacement) pairs, applied one after the other to a file's key to
            give the module's attribute path.
        head: regex of keys (the file's or the module's) that may fail to fit if not strict.
        strict: everything must fit.

    Returns:
        One line for every tensor of the head that did not fit and was left as it was;
        they are logged as warnings, too.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape. The first line
            sums up, the other lines list every one.
    """
    return _fill(module, _in_flax(module, tensors, table), path, head, strict)


def problems_of(module: nnx.Module, tensors: Mapping[str, np.ndarray], table: Table) -> 'Problems':
    """What of tensors in torch's layout would not fit a module; see `assign`."""
    return _match(_in_flax(module, tensors, table), _shapes(module))[1]


def _in_flax(
    module: nnx.Module, tensors: Mapping[str, np.ndarray], table: Table
) -> dict[str, tuple[str | None, np.ndarray]]:
    wanted = _shapes(module)
    renamed = {
        key: (module_name(key, table, wanted), tensor)
        for key, tensor in tensors.items()
        if not key.endswith(IGNORED)
    }
    return {
        key: (name, tensor if name is None else _to_flax(tensor, len(wanted[name])))
        for key, (name, tensor) in renamed.items()
    }


def assign_named(
    module: nnx.Module,
    values: Mapping[str, np.ndarray],
    path: str | Path,
    head: str,
    strict: bool = True,
) -> list[str]:
    """`assign` for values under the module's own dotted names and in its own layout."""
    wanted = _named(module)
    named = {key: (key if key in wanted else None, value) for key, value in values.items()}
    return _fill(module, named, path, head, strict)


def _named(module: nnx.Module) -> dict[str, Any]:
    """The weights and batch statistics of a module by dotted name."""
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    return {'.'.join(map(str, keys)): leaf for keys, leaf in nnx.to_flat_state(state)}


def _shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in _named(module).items()}


def _fill(
    module: nnx.Module,
    values: Mapping[str, tuple[str | None, np.ndarray]],
    path: str | Path,
    head: str,
    strict: bool,
) -> list[str]:
    """Sets what fits; `values` are {key for messages: (the module's name or None, value)}."""
    wanted = _named(module)
    fit, problems = _match(values, _shapes(module))
    fatal = problems if strict else problems.outside(head)
    if fatal:
        hint = '' if problems.outside(head) else '; only the head: num_classes starts a new one'
        raise WeightsError(fatal.message(path, hint))
    for name, value in fit.items():
        wanted[name].set_value(jnp.asarray(value, wanted[name].dtype))
    lines = [f'{path}: head keeps its initial value: {line}' for line in problems.lines()]
    for line in lines[:_TOLD]:
        logging.warning('%s', line)
    if len(lines) > _TOLD:  # heads may hold a whole network
        logging.warning('%s: so do %d more values', path, len(lines) - _TOLD)
    return lines


@dataclass
class Problems:
    """What does not fit: keys, and for tensors of another shape what was wanted.

    Attributes:
        missing: names of the module that no tensor has.
        left_over: names of tensors that the module does not have.
        other_shape: names of tensors of another shape.
    """

    missing: dict[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    other_shape: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.left_over or self.other_shape)

    def outside(self, head: str) -> 'Problems':
        """The problems at keys that do not match the regex `head`."""

        def kept(group: dict[str, str]) -> dict[str, str]:
            return {key: text for key, text in group.items() if not re.search(head, key)}

        return Problems(kept(self.missing), kept(self.left_over), kept(self.other_shape))

    def lines(self) -> list[str]:
        """One line for every problem."""
        return [
            f'{kind}: {key}{text}' for kind, group in self._groups() for key, text in group.items()
        ]

    def summary(self) -> str:
        """How many there are of each kind, and the first of them."""
        groups = ((kind, group) for kind, group in self._groups() if group)
        return '; '.join(f'{len(group)} {kind} ({_first(group)})' for kind, group in groups)

    def message(self, path: str | Path, hint: str = '') -> str:
        """A summary on the first line, then every problem."""
        first = f'{path} does not fit the network: {self.summary()}{hint}'
        return '\n  '.join([first, *self.lines()])

    def _groups(self) -> list[tuple[str, dict[str, str]]]:
        return [
            ('missing', self.missing),
            ('left over', self.left_over),
            ('of another shape', self.other_shape),
        ]


def _first(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ', '.join(keys[:SHOWN_FIRST]) + (', …' if len(keys) > SHOWN_FIRST else '')


def _match(
    values: Mapping[str, tuple[str | None, np.ndarray]], wanted: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], Problems]:
    """The tensors that fit, by the module's names, and what does not."""
    fit: dict[str, np.ndarray] = {}
    problems = Problems()
    found = set()
    for key, (name, value) in values.items():
        if name is None:
            problems.left_over[key] = ''
            continue
        found.add(name)
        if value.shape == wanted[name]:
            fit[name] = value
        else:
            problems.other_shape[key] = f' is {value.shape}, {name} needs {wanted[name]}'
    problems.missing = {name: '' for name in wanted if name not in found}
    return fit, problems


def module_name(key: str, table: Table, known: Iterable[str]) -> str | None:
    """The module's dotted name for a key of the file, None where it has no such tensor."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    path, _, leaf = key.rpartition('.')
    # Without a path it is a parameter of the network itself, such as a class token.
    names = [f'{path}.{other}' for other in LEAVES.get(leaf, ())] if path else [leaf]
    return next((name for name in names if name in known), None)


def _to_flax(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """OIHW -> HWIO, [out,in] -> [in,out]; a 1x1 convolution becomes linear if `ndim` is 2."""
    if ndim == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f'{path}: reading a torch file needs torch; install it or convert to .safetensors'
        ) from error
    try:
        tensors: Any = torch.load(path, weights_only=True, map_location='cpu')
    except pickle.UnpicklingError:
        raise WeightsError(
            f'{path}: holds more than tensors, and code from files is not run; save '
            'model.state_dict() alone'
        ) from None
    except Exception as error:  # whatever a damaged file makes of its reader
        raise WeightsError(f'{path}: not a readable torch file ({_first_line(error)})') from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        names = (
            ', '.join(map(str, list(tensors)[:SHOWN_FIRST])) if isinstance(tensors, dict) else ''
        )
        holds = f'; it holds {names}' if names else ''
        raise WeightsError(f'{path}: not a flat dict of tensors (a torch state dict){holds}')
    return {key: tensor.to_dense().float().numpy() for key, tensor in tensors.items()}

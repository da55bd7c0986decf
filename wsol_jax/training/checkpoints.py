"""Checkpoints of the training stage, through orbax."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx

from wsol_jax.hosts import process
from wsol_jax.interrupts import uninterrupted


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
        step: how many updates were made; int32.
        params: nnx state of the weights.
        stats: nnx state of the batch statistics.
        optimizer: state of the optimizer; None in what is only evaluated.
        ema: moving average of `params`, or None.
    """

    step: Any
    params: Any
    stats: Any
    optimizer: Any
    ema: Any

    def evaluated(self) -> 'TrainState':
        """What is evaluated: the moving average of the weights where there is one."""
        return self._replace(params=self.ema or self.params, optimizer=None, ema=None)

    def network(self) -> nnx.State:
        """The variables of the network that is evaluated."""
        return nnx.State.merge(self.evaluated().params, self.stats)


class CheckpointError(OSError):
    """A checkpoint cannot be written, or none can be read; the message names the folder."""


class Row(NamedTuple):
    """What the steps since the last row of progress.csv add up to; float64, so that it is exact.

    Attributes:
        images: how many there are.
        sums: over them, by name, such as 'loss'.
    """

    images: float = 0.0
    sums: Mapping[str, float] = MappingProxyType({})

    def plus(self, images: int, sums: Mapping[str, float]) -> 'Row':
        """With more images; a name that not all of them have is left out."""
        if not self.images:
            return Row(images, sums)
        added = {name: self.sums[name] + sums[name] for name in sums if name in self.sums}
        return Row(self.images + images, added)

    def means(self) -> dict[str, float]:
        """Over the images; nothing where there are none."""
        return {name: total / self.images for name, total in self.sums.items() if self.images}


_NOTHING = Row()
_IMAGES = 'images'  # beside the sums of a row


BEST_LOCALIZATION = 'best_localization'
NOT_KEPT = (
    "holds no 'best_localization', for the training began with another config.train.keep; "
    "set 'best' or 'last', or train in another workdir"
)


class Checkpoints:
    """`checkpoints/last`, all that training goes on from, and `checkpoints/best`, weights only.

    Likewise `checkpoints/best_localization`, in a training that keeps it from its beginning.

    Each is written whole or not at all, the last one in the background; leaving the context waits
    for it. Any number of devices can read what any other number wrote. Two of a kind are kept: what
    cannot be read is put aside, in `checkpoints/damaged`, and the one before takes its place.

    Args:
        workdir: of the training.
        read_only: write nothing there, not even folders.
    """

    def __init__(self, workdir: Path, read_only: bool = False):
        self._folder, self._read_only = (workdir / 'checkpoints').absolute(), read_only
        self._managers: dict[str, ocp.CheckpointManager] = {}
        for kind in ('last', 'best', BEST_LOCALIZATION):
            always = kind != BEST_LOCALIZATION and not read_only
            if always or (self._folder / kind).is_dir():
                self._open(kind)

    def _open(self, kind: str) -> None:
        if not self._read_only:
            (self._folder / kind).mkdir(parents=True, exist_ok=True)
        # Each process for itself: all have the whole state, and one of them writes.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process(), active_processes={process()}
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=False, multiprocessing_options=alone
        )
        self._managers[kind] = ocp.CheckpointManager(self._folder / kind, options=options)

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with uninterrupted(), self._writing('last'):
            for manager in self._managers.values():
                manager.close()

    def step(self, kind: str = 'last') -> int:
        """The step of a checkpoint; 0 if there is none."""
        return (kind in self._managers and self._managers[kind].latest_step()) or 0

    def keeps(self, kind: str) -> bool:
        """Whether checkpoints of a kind are kept in this training."""
        return kind in self._managers

    def begin(self, kind: str) -> None:
        """Keeps checkpoints of a kind from now on."""
        if not self._read_only:
            self._open(kind)

    def best_value(self, name: str, kind: str = 'best') -> float | None:
        """A named value on val of the best checkpoint.

        Returns:
            None if there is no checkpoint that can be read, or it has another value.
        """
        if not self.step(kind):
            return None
        try:
            facts = self._newest(kind, lambda _: {'facts': None})['facts']
        except CheckpointError:  # no reason to give up the last one, which training goes on from
            folder = self._folder / kind
            logging.warning('%s cannot be read: the best of the epochs to come counts', folder)
            return None
        return float(facts[name]) if name in facts else None

    def save(self, state: TrainState, row: Row = _NOTHING) -> None:
        """Writes the last checkpoint, with the row of progress.csv that is begun."""
        facts = {_IMAGES: row.images, **row.sums}
        begun = {'row': {name: np.asarray(value, np.float64) for name, value in facts.items()}}
        with uninterrupted():
            self._write('last', int(state.step), _parts(state) | begun)

    def save_best(self, state: TrainState, name: str, value: float, kind: str = 'best') -> None:
        """Writes what is evaluated of a state as the best checkpoint, and waits for it.

        A last checkpoint saved after it is never there without it, whenever the process is killed.

        Args:
            state: of the training.
            name: of the value on val that it is the best by.
            value: of it.
            kind: 'best' or 'best_localization'.
        """
        facts = {'facts': {name: np.asarray(value)}}
        with uninterrupted():
            self._write(kind, int(state.step), _parts(state.evaluated()) | facts)
            with self._writing(kind):
                self._managers[kind].wait_until_finished()

    def restore(self, like: TrainState, kind: str = 'last') -> tuple[TrainState, Row]:
        """Reads the newest checkpoint that can be read.

        Args:
            like: of the structure that is wanted; a part None is left out.
            kind: 'last', 'best' or 'best_localization'.

        Raises:
            CheckpointError: none can be read.
        """
        row = {'row': None}  # whatever it names; older versions kept none
        parts = dict(_parts(like))
        found = self._newest(kind, lambda n: parts | (row if self._has(kind, n, 'row') else {}))
        begun = _row({key: float(value) for key, value in found.pop('row', {}).items()})
        state = {name: _like(getattr(like, name), found[name]) for name in found}
        return like._replace(**state), begun

    def weights(self, kind: str) -> dict[str, np.ndarray]:
        """What is evaluated of the newest checkpoint that can be read, by name: 'conv1.bn.bias'.

        Raises:
            CheckpointError: none can be read.
        """

        def parts(step: int) -> dict[str, Any]:
            params = 'ema' if self._has(kind, step, 'ema') else 'params'
            return {params: None} | ({'stats': None} if self._has(kind, step, 'stats') else {})

        found = self._newest(kind, parts)
        named = {key: value for part in found.values() for key, value in part.items()}
        return {key.removesuffix('.value'): np.asarray(value) for key, value in named.items()}

    def _has(self, kind: str, step: int, part: str) -> bool:
        return (self._folder / kind / str(step) / part).exists()

    def _write(self, kind: str, step: int, parts: Mapping[str, Any]) -> None:
        # As NumPy arrays: orbax would tie device arrays to the number of devices.
        items = {name: ocp.args.StandardSave(jax.device_get(p)) for name, p in parts.items()}
        with self._writing(kind):
            self._managers[kind].save(step, args=ocp.args.Composite(**items))

    @contextmanager
    def _writing(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (AttributeError, KeyError, TypeError):  # of the program, not of the disk
            raise
        except Exception as error:  # of any kind, and of the checkpoint before: it is written late
            reason = re.split(r' \[\w+=', ' '.join(str(error).split()))[0].rpartition(': ')[2]
            raise CheckpointError(
                f'cannot write {self._folder / kind}: {reason}; the checkpoint before stays'
            ) from None

    def _newest(self, kind: str, parts_of: Callable[[int], Mapping[str, Any]]) -> Any:
        """Parts of the newest checkpoint that can be read; newer ones are put aside."""
        errors: dict[int, str] = {}
        for step in sorted(self._managers[kind].all_steps(), reverse=True):
            items = {n: ocp.args.StandardRestore(part) for n, part in parts_of(step).items()}
            try:
                found = self._managers[kind].restore(step, args=ocp.args.Composite(**items))
            except Exception as error:  # damaged files raise nearly anything
                errors[step] = ' '.join(str(error).split())[:200]
                continue
            for damaged, reason in errors.items():
                self._put_aside(kind, damaged, f'({reason}); going on from step {step}')
            return dict(found.items())
        why = next(iter(errors.values()), 'there is none')
        raise CheckpointError(
            f'{self._folder / kind}: no checkpoint can be read; delete {self._folder} and train '
            f'anew ({why})'
        )

    def _put_aside(self, kind: str, step: int, message: str) -> None:
        folder = self._folder / kind / str(step)
        logging.warning('%s cannot be read %s', folder, message)
        if self._read_only:
            return
        place = self._folder / 'damaged' / f'{kind}-{step}'
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
        self._managers[kind].reload()


def _row(facts: dict[str, float]) -> Row:
    images = facts.pop(_IMAGES, 0.0)
    if 'right' in facts:  # older versions counted the images that were classified right
        facts['accuracy'] = 100.0 * facts.pop('right')
    return Row(images, facts)


def _parts(state: TrainState) -> dict[str, dict[str, jax.Array]]:
    """The parts that are there, each flat: independent of flax's and optax's containers."""
    parts = {name: _flat(part) for name, part in state._asdict().items()}
    return {name: part for name, part in parts.items() if part}  # orbax refuses empty ones


def _flat(tree: Any) -> dict[str, jax.Array]:
    return {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _like(tree: Any, flat: Mapping[str, jax.Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_key(path)], tree)


def _key(path: Any) -> str:
    """'conv1.bn.bias.value', 'value' for a bare array."""
    return jax.tree_util.keystr(path, simple=True, separator='.') or 'value'

"""Checkpoints of the training stage, through orbax."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

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


class Checkpoints:
    """`checkpoints/last`, all that training goes on from, and `checkpoints/best`, weights only.

    Each is written whole or not at all, the last one in the background; leaving the context waits
    for it. Any number of devices can read what any other number wrote.

    Args:
        workdir: of the training.
        read_only: write nothing there, not even folders.
    """

    def __init__(self, workdir: Path, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=not read_only)
        folders = [(workdir / 'checkpoints' / kind).absolute() for kind in ('last', 'best')]
        self._managers = {
            folder.name: ocp.CheckpointManager(folder, options=options)
            for folder in folders
            if folder.is_dir() or not read_only
        }

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with uninterrupted():
            for manager in self._managers.values():
                manager.close()

    def step(self, kind: str = 'last') -> int:
        """The step of a checkpoint; 0 if there is none."""
        return (kind in self._managers and self._managers[kind].latest_step()) or 0

    def best_accuracy(self) -> float:
        """Accuracy on val of the best checkpoint; -1 if there is none."""
        if not self.step('best'):
            return -1.0
        return float(self._read('best', {'facts': {'accuracy': np.zeros(())}})['facts']['accuracy'])

    def save(self, state: TrainState) -> None:
        """Writes the last checkpoint."""
        with uninterrupted():
            self._write('last', int(state.step), _parts(state))

    def save_best(self, state: TrainState, accuracy: float) -> None:
        """Writes what is evaluated of a state as the best checkpoint, and waits for it.

        A last checkpoint saved after it is never there without it, whenever the process is killed.
        """
        facts = {'facts': {'accuracy': np.asarray(accuracy)}}
        with uninterrupted():
            self._write('best', int(state.step), _parts(state.evaluated()) | facts)
            self._managers['best'].wait_until_finished()

    def restore(self, like: TrainState, kind: str = 'last') -> TrainState:
        """Reads a checkpoint into the structure of `like`; a part None is left out."""
        found = self._read(kind, _parts(like))
        return like._replace(**{name: _like(getattr(like, name), found[name]) for name in found})

    def weights(self, kind: str) -> dict[str, np.ndarray]:
        """What is evaluated of a checkpoint, by name, such as 'conv1.bn.bias'."""
        folder = self._managers[kind].directory / str(self.step(kind))
        params = 'ema' if (folder / 'ema').exists() else 'params'
        parts = {name: None for name in (params, 'stats') if (folder / name).exists()}
        found = self._read(kind, parts)
        named = {key: value for part in found.values() for key, value in part.items()}
        return {key.removesuffix('.value'): np.asarray(value) for key, value in named.items()}

    def _write(self, kind: str, step: int, parts: Mapping[str, Any]) -> None:
        # As NumPy arrays: orbax would tie device arrays to the number of devices. As copies: the
        # next step overwrites the state while they are written.
        copies = jax.tree.map(np.array, jax.device_get(parts))
        items = {name: ocp.args.StandardSave(part) for name, part in copies.items()}
        self._managers[kind].save(step, args=ocp.args.Composite(**items))

    def _read(self, kind: str, parts: Mapping[str, Any]) -> Any:
        items = {name: ocp.args.StandardRestore(part) for name, part in parts.items()}
        return self._managers[kind].restore(self.step(kind), args=ocp.args.Composite(**items))


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

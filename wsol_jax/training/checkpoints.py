"""Checkpoints of the training stage, through orbax."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
        params: nnx state of the weights.
        stats: nnx state of the batch statistics.
        optimizer: state of the optimizer.
    """

    params: Any
    stats: Any
    optimizer: Any


class Checkpoints:
    """The newest state of a training run, one item per part, in `workdir/checkpoints`."""

    def __init__(self, workdir: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager((workdir / 'checkpoints').absolute(), options=options)

    def epoch(self) -> int:
        """How many epochs the newest checkpoint has seen; 0 if there is none."""
        return self._manager.latest_step() or 0

    def save(self, epoch: int, state: TrainState) -> None:
        """Writes a checkpoint, whole or not at all."""
        parts = {name: ocp.args.StandardSave(_flat(part)) for name, part in _parts(state)}
        self._manager.save(epoch, args=ocp.args.Composite(**parts))

    def restore(self, like: TrainState) -> TrainState:
        """Reads the newest checkpoint into the structure of `like`; a part None is left out."""
        parts = {name: ocp.args.StandardRestore(_flat(part)) for name, part in _parts(like)}
        found = self._manager.restore(self.epoch(), args=ocp.args.Composite(**parts))
        return like._replace(**{name: _like(part, found[name]) for name, part in _parts(like)})


def _parts(state: TrainState) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in state._asdict().items() if part is not None]


def _flat(tree: Any) -> dict[str, jax.Array]:
    """{path: array}: independent of the containers of flax and optax, which change."""
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _like(tree: Any, flat: dict[str, jax.Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, _: flat[jax.tree_util.keystr(p)], tree)

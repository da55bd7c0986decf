"""What training leaves in a workdir for those who open its network."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.models.preprocessing import Preprocessing, as_preprocessing
from wsol_jax.models.weights import WeightsError
from wsol_jax.progress import read_progress
from wsol_jax.workdir import read_json, write_text

_PREPROCESSING = 'checkpoints/preprocessing.json'
# Beside the checkpoints what they were made from; the other is of the whole workdir.
_CONFIGS = ('checkpoints/made_from.json', 'config.json')


@dataclass(frozen=True)
class Training:
    """A training in a workdir.

    Attributes:
        workdir: of it.
        config: its settings by name, such as 'network.name'; {} where nobody recorded them.
    """

    workdir: Path
    config: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """What the network was built with."""
        start = 'network.options.'
        return {k.removeprefix(start): v for k, v in self.config.items() if k.startswith(start)}

    def weights(self) -> dict[str, np.ndarray]:
        """What is evaluated of its best or last checkpoint, as it was set, by name.

        Raises:
            WeightsError: there is no checkpoint, or the training is not finished.
        """
        # Here, for orbax is slow to import, and training stands above the networks.
        from wsol_jax.training.checkpoints import Checkpoints

        folder = self.workdir / 'checkpoints'
        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            done, kind = checkpoints.step(), self.config.get('train.keep', 'best')
            if not done or not checkpoints.step(kind):
                raise WeightsError(f'{folder}: holds no finished checkpoint')
            total = self._steps()
            if done < total:
                raise WeightsError(
                    f'{folder}: holds step {done} of {total}; finish the training first'
                )
            return checkpoints.weights(kind)

    def _steps(self) -> int:
        """Of the whole training; 0 where no end of an epoch tells."""
        rows = read_progress(self.workdir)
        ends = [int(r['step']) for r in rows if (r['stage'], r['split']) == ('train', 'val')]
        return self.config.get('train.epochs', 0) * min(ends, default=0)


def open_training(workdir: Path, name: str) -> Training:
    """The training of a network in a workdir.

    Args:
        workdir: of the training.
        name: of the network.

    Raises:
        WeightsError: the folder is no such workdir, or its network is another one.
    """
    if not (workdir / 'checkpoints').is_dir():
        raise WeightsError(
            f'{workdir}: holds no checkpoints; give the workdir of a training, or a weights file'
        )
    records = [read_json(workdir / file) for file in _CONFIGS if (workdir / file).exists()]
    config = records[0].get('config') if records else {}
    if not isinstance(config, Mapping):
        raise WeightsError(f'{workdir}: what it records of its config is damaged')
    trained = config.get('network.name', name)
    if trained != name:
        raise WeightsError(f'{workdir}: holds a training of {trained!r}, not of {name!r}')
    return Training(workdir, config)


def record_preprocessing(workdir: Path, preprocessing: Preprocessing) -> None:
    """Notes that the checkpoints of a training expect other than the usual of their network."""
    write_text(workdir / _PREPROCESSING, json.dumps(asdict(preprocessing)) + '\n')


def recorded_preprocessing(workdir: Path) -> Preprocessing | None:
    """What `record_preprocessing` noted; None where nothing is.

    Raises:
        ValueError: the note is damaged.
    """
    note = workdir / _PREPROCESSING
    if not note.exists():
        return None
    try:
        return as_preprocessing(read_json(note))
    except ValueError as error:
        raise ValueError(f'{note}: {error}') from None

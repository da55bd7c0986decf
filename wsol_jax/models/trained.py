"""What training leaves in a workdir for those who open its network."""

import json
from dataclasses import asdict
from pathlib import Path

from wsol_jax.models.preprocessing import Preprocessing, as_preprocessing
from wsol_jax.workdir import read_json, write_text

_PREPROCESSING = 'checkpoints/preprocessing.json'


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

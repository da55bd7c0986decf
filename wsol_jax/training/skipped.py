"""The images that a training passes over."""

from pathlib import Path

from absl import logging

from wsol_jax.data import Batch
from wsol_jax.hosts import process
from wsol_jax.workdir import read_csv, write_csv

_TOLD = 10  # images that are named on the terminal


class SkipList:
    """Images that cannot be read and are passed over: told once each, listed in skipped.csv.

    Processes after the first list what they have read in files of their own, `skipped.1.csv` ...

    Attributes:
        path: of the list.
    """

    def __init__(self, workdir: Path):
        self.path = workdir / (f'skipped.{process()}.csv' if process() else 'skipped.csv')
        self._reasons = {(r['split'], r['image_id']): r['reason'] for r in read_csv(self.path)}

    def note(self, split: str, batch: Batch) -> None:
        """Adds the images of a batch of a split that did not decode."""
        names = dict(zip(batch.index.tolist(), batch.image_ids, strict=True))
        found = {(split, names[i]): reason for i, reason in batch.errors.items()}
        new = {key: reason for key, reason in found.items() if key not in self._reasons}
        for count, reason in enumerate(new.values(), len(self._reasons) + 1):
            if count <= _TOLD:
                logging.warning('%s, passed over: %s', split, reason)
            elif count == _TOLD + 1:
                logging.warning('more are passed over; %s lists all of them', self.path)
        if new:
            self._reasons |= new
            rows = sorted((*key, reason) for key, reason in self._reasons.items())
            write_csv(self.path, ('split', 'image_id', 'reason'), rows)

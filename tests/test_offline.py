"""What cannot be read is passed over and listed, and the next run tries it again."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from conftest import Listed

from wsol_jax.config import Config
from wsol_jax.data import open_source
from wsol_jax.data.frames import FrameTargets, frame_of
from wsol_jax.data.sweeps import Sweep
from wsol_jax.maps.columns import DONE, SKIPPED, Column, Store
from wsol_jax.offline import Pass, fill_store


def frames(file):
    """Three frames, of which the second has its sweep in a file."""
    records = list(open_source('lidar_scenes', '', 'val', count=3, size=32, seed=0))
    frame = frame_of(records[1])
    records[1] = replace(records[1], extra={'frame': replace(frame, sweeps=(Sweep(file),))})
    return Listed(records), frame.sweeps[0].points


def counted(source, folder, workdir):
    """How many points each frame has, computed of what is not there yet."""
    work = Pass(
        size=8,
        targets=FrameTargets(100_000, 20),
        launch=lambda batch: jnp.asarray(batch.targets['points_valid'].sum(1)),
        columns=lambda batch, found, step: {'points': np.asarray(found, np.int32)},
    )
    store = Store.prepare(folder, len(source), {'points': Column((), 'int32')}, {})
    fill_store(Config(), source, 'val', store, work, workdir)
    return store


def test_a_frame_without_its_sweep_is_listed_until_the_sweep_is_there(tmp_path):
    file, folder = tmp_path / '1.bin', tmp_path / 'maps/val'
    source, points = frames(file)
    for content in (None, points[:-4]):
        if content is not None:
            file.write_bytes(content)
        store = counted(source, folder, tmp_path)
        assert store.fact('status').tolist() == [DONE, SKIPPED, DONE]
        ((name, reason),) = store.skipped().items()
        assert name == source[1].image_id and reason.startswith(f'{file}: ')
        (tmp_path / 'metrics.json').write_text('{}')
        counted(source, folder, tmp_path)
        assert (tmp_path / 'metrics.json').exists(), 'nothing was computed anew'
    file.write_bytes(points)
    store = counted(source, folder, tmp_path)
    assert store.fact('status').tolist() == [DONE] * 3 and store.skipped() == {}
    assert store.fact('points')[1] == len(points) // 16

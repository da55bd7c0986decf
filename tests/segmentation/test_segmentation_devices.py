"""Seeds, predicted label maps and the CRF on eight devices forced from one CPU, and on one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_parallel import RECIPE, SIDE, assert_close, saved

from wsol_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    LocalizeConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
)
from wsol_jax.data import decode_image
from wsol_jax.models import zoo
from wsol_jax.parallel import local_devices
from wsol_jax.run import open_split, run
from wsol_jax.segmentation import dense_crf, read_label_map, write_label_map
from wsol_jax.workdir import read_json

pytestmark = pytest.mark.slow

SEEDS = Config(
    task='segmentation',
    data=DataConfig(source='scenes', shapes_size=SIDE, shapes_counts=(20, 11, 9)),
    network=NetworkConfig('tiny', input_size=SIDE, options={'norm': False}),
    train=TrainConfig(epochs=2, batch_size=8, learning_rate=0.1, loss='sigmoid'),
    localize=LocalizeConfig(methods=('layer_cam',), layers=('late',), batch_size=6),
    evaluate=EvaluateConfig(threshold_step=0.1),
    report=ReportConfig(gallery=2),
)
ON_EIGHT = """
import sys
from pathlib import Path
import jax
from test_segmentation_devices import all_steps

if __name__ == '__main__':
    assert jax.device_count() == 8
    all_steps(Path(sys.argv[1]))
"""


def all_steps(folder):
    """Both runs, and what the CRF makes of a batch."""
    zoo.RECIPES['tiny'] = RECIPE
    run(SEEDS, folder / 'seeds')
    run(segmenter(folder / 'labels'), folder / 'segmenter')
    np.save(folder / 'crf.npy', refined())


def segmenter(labels):
    """On label maps of two classes, dark and bright, which it learns in a few steps."""
    for split in ('train', 'val'):
        source = open_split(SEEDS, split)
        for record in (source[i] for i in range(len(source))):
            grey = decode_image(record).mean(axis=-1)
            label_map = 1 + (grey > np.median(grey)).astype(np.uint8)
            write_label_map(labels / f'{record.image_id}.png', label_map)
    options = {'labels': str(labels), 'head': 'v2', 'rates': (1, 2)}
    return replace(SEEDS, train=replace(SEEDS.train, method='segmenter', options=options))


def refined():
    """Sixteen images of two halves after the CRF."""
    rng, devices = np.random.default_rng(0), local_devices('jit')
    half = np.arange(16) < rng.integers(4, 12, (16, 1, 1))
    images = np.where(half[..., None], 60, 180) + rng.integers(0, 8, (16, 16, 16, 3))
    likely = np.where(half, 0.6, 0.4) + rng.normal(0, 0.2, (16, 16, 16))
    unaries = np.stack([likely, 1 - likely], -1).clip(0.01, 1).astype(np.float32)
    program = devices.per_image(lambda _, *arrays: dense_crf(*arrays))
    return devices.gather(program({}, *devices.shard((images.astype(np.uint8), unaries))))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Folders with what eight devices and one leave behind."""
    folder = tmp_path_factory.mktemp('runs')
    eight, one = folder / 'eight', folder / 'one'
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    tests = Path(__file__).parent
    paths = (tests, tests.parent, os.environ.get('PYTHONPATH', ''))
    environment['PYTHONPATH'] = os.pathsep.join(map(str, paths))
    process = subprocess.Popen([sys.executable, '-c', ON_EIGHT, str(eight)], env=environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        all_steps(one)
    assert process.wait(timeout=600) == 0
    return one, eight


@pytest.mark.parametrize('step', ['seeds', 'segmenter'])
def test_a_run_does_not_depend_on_the_devices(runs, step):
    one, eight = (folder / step for folder in runs)
    assert_close(saved(eight), saved(one), 1e-5)
    rows, others = (read_json(f / 'metrics.json')['segmentation'] for f in (one, eight))
    assert [row['split'] for row in rows] == ['val', 'test']
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys() and row.get('threshold') == other.get('threshold')
        assert other['mIoU'] == pytest.approx(row['mIoU'], abs=0.2)
    files = sorted(file.relative_to(one) for file in one.rglob('label_maps/**/*.png'))
    assert len(files) == 20  # of val and test
    pairs = [(read_label_map(one / file), read_label_map(eight / file)) for file in files]
    same = np.mean([first == second for first, second in pairs])
    assert same > 0.999  # all but where two values are equal, to rounding
    assert len(np.unique([first for first, _ in pairs])) > 1


def test_the_crf_does_not_depend_on_the_devices(runs):
    one, eight = (np.load(folder / 'crf.npy') for folder in runs)
    np.testing.assert_allclose(eight, one, atol=1e-5)
    assert one.shape == (16, 16, 16, 2) and one.min() < 0.01

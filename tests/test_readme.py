"""The Python of the README runs, on tiny networks and photos."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from PIL import Image

import wsol_jax

README = Path(__file__).parents[1] / 'README.md'
BLOCKS = re.findall('```python\n(.*?)```', README.read_text(encoding='utf-8'), re.DOTALL)
SIZES = [(60, 45), (30, 80)]  # (width, height)


@pytest.fixture
def names(toy, tmp_path, monkeypatch):
    """What the blocks take for granted, after the first of them has run in a folder of photos."""

    def renamed(state, inputs, perturb=None):
        late = {'late': perturb['pw_10']} if perturb else None
        logits, endpoints = toy.apply(state, inputs, late)
        return logits, {'pw_10': endpoints['late']}

    shapes = {'pw_10': toy.shapes['late']}
    small = replace(toy, apply=renamed, shapes=shapes, last_layer='pw_10', name='mobilenet_v1')
    monkeypatch.setitem(vars(wsol_jax), 'load_network', lambda name, weights: small)
    monkeypatch.chdir(tmp_path)
    Path('photos').mkdir()
    for i, (width, height) in enumerate(SIZES):
        photo = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(photo).save(f'photos/{i}.jpg')
    found = {}
    exec(BLOCKS[0], found)
    return found


def test_the_first_steps(names):
    result, boxes = names['result'], names['boxes']
    assert result.sizes == SIZES and len(boxes) == 2
    for box, (width, height) in zip(boxes, SIZES, strict=True):
        assert box.shape[1] == 4 and (box[:, 2] < width).all() and (box[:, 3] < height).all()


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=8, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.conv(x).mean((1, 2)))


class LinenCnn(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(5)(linen.Conv(4, (3, 3), strides=8)(x).mean((1, 2)))


def test_models_of_ones_own(names):
    module = LinenCnn()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    given = {'model': Cnn(nnx.Rngs(0)), 'module': module, 'variables': variables}
    (block,) = (b for b in BLOCKS if 'from_linen' in b)
    found = names | given
    exec(block, found)
    assert set(found['network'].endpoints()) == {'Conv_0'}


def test_faithfulness_and_export(names):
    (block,) = (b for b in BLOCKS if 'export' in b)
    exec(block, names)
    assert names['scores']['dgl', 'pw_10']['road'].shape == (2,)
    assert Path('dgl.zip').is_file()


def test_maps_of_other_frameworks(names):
    (block,) = (b for b in BLOCKS if 'scoremap_records' in b)
    folder = Path('metadata/test')
    folder.mkdir(parents=True)
    Path('maps').mkdir()
    for i in range(9):
        np.save(f'maps/{i}.npy', np.eye(224))
    ids = [f'{i}' for i in range(9)]
    (folder / 'image_ids.txt').write_text('\n'.join(ids))
    (folder / 'image_sizes.txt').write_text('\n'.join(f'{i},224,224' for i in ids))
    (folder / 'localization.txt').write_text('\n'.join(f'{i},0,0,223,223' for i in ids))
    exec(block, names)
    assert names['metrics']['images'] == 9


def test_every_block_is_run():
    assert len(BLOCKS) == 4

"""Tiny networks and images that several test files share."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_server import serving

from wsol_jax.data.records import ListedRecords
from wsol_jax.models import Network, Preprocessing, load_network

MEMORY_DISK = Path('/dev/shm')  # checkpoints wait for a disk to have them: half of a test's time


class Listed(ListedRecords):
    """A source over a list of records, of eight classes if no others are given."""

    def __init__(self, records, class_names='abcdefgh'):
        self.records = self._records = list(records)
        self.class_names = tuple(class_names)


def pytest_addoption(parser):
    parser.addoption('--share', default='1/1', help='the I-th of N shares of the test files, I/N')


@pytest.hookimpl(trylast=True)  # what is not marked as asked is gone by then
def pytest_collection_modifyitems(config, items):
    first, count = map(int, config.getoption('share').split('/'))
    chosen = set(sorted({item.path for item in items})[first - 1 :: count])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in chosen])
    items[:] = [item for item in items if item.path in chosen]


def pytest_configure():
    """Small programs that run once or twice: most of the time would go into optimizing them.

    It holds for the processes that tests start, too. `fully_optimized` is for those that need it.
    """
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
    # Of the compiler's two ways to make fused loops the one that takes a third of the time.
    os.environ['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_use_fusion_emitters=false'
    )
    jax.config.update('jax_disable_most_optimizations', True)
    if _free(MEMORY_DISK) > 4 << 30:
        os.environ.setdefault('PYTEST_DEBUG_TEMPROOT', str(MEMORY_DISK))


def _free(folder):
    return shutil.disk_usage(folder).free if folder.is_dir() else 0


@pytest.fixture(scope='module', autouse=True)
def few_mappings():
    """Compiled programs are kept, and each maps memory: a process may have 65,530 mappings.

    Where there are more, LLVM ends the process.
    """
    yield
    maps = Path('/proc/self/maps')
    if maps.exists() and maps.read_bytes().count(b'\n') > 20_000:
        jax.clear_caches()


@pytest.fixture
def fully_optimized():
    """For programs that run for long, or whose numbers depend on how they are compiled."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


def failing_at_first(read, number, times):
    """`read` after so many errors of the system, and a list that grows with each try."""
    tried = []

    def failing(*arguments):
        tried.append(0)
        if len(tried) <= times:
            raise OSError(number, os.strerror(number))
        return read(*arguments)

    return failing, tried


@pytest.fixture(scope='session')
def resnet():
    """A random residual network; its strides make it blind to no mirror symmetry."""
    network = load_network('resnet10', num_classes=7, seed=3, width=8, output_stride=8)
    return replace(network, input_size=48, shapes=network.endpoints(48))


@pytest.fixture(scope='session')
def images():
    """Three uint8 images of 48 x 48 pixels."""
    return np.random.default_rng(5).integers(0, 256, (3, 48, 48, 3), np.uint8)


def _toy_apply(state, inputs, perturb=None):
    perturb = perturb or {}
    early = jax.nn.relu(inputs @ state['early']) + perturb.get('early', 0.0)
    batch, height, width, features = early.shape
    pooled = early.reshape(batch, height // 2, 2, width // 2, 2, features).mean((2, 4))
    late = jax.nn.relu(pooled @ state['late']) + perturb.get('late', 0.0)
    logits = late.mean((1, 2)) @ state['head'] + state['bias']
    return logits, {'early': early, 'late': late}


def _toy_network(apply, shapes, **changed):
    rng = np.random.default_rng(11)
    shape_of = {'early': (3, 4), 'late': (4, 5), 'head': (5, 6), 'bias': (6,)}
    state = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shape_of.items()}
    facts = {
        'name': 'toy',
        'apply': apply,
        'state': state,
        'preprocessing': Preprocessing((128.0,) * 3, (64.0,) * 3),
        'input_size': 8,
        'num_classes': 6,
        'last_layer': 'late',
        'shapes': shapes,
    }
    return Network(**(facts | changed))


@pytest.fixture(scope='session')
def toy():
    """1x1 convolutions, one 2x2 mean pool, a linear head: gradients have a closed form.

    early = relu(x A), late = relu(pool(early) B), logits = mean(late) H + b.
    """
    return _toy_network(_toy_apply, {'early': (8, 8, 4), 'late': (4, 4, 5)})


@pytest.fixture(scope='session')
def toy_with_spare():
    """The toy network with an endpoint 'spare' that no logit depends on."""

    def apply(state, inputs, perturb=None):
        logits, endpoints = _toy_apply(state, inputs, perturb)
        return logits, endpoints | {'spare': inputs + (perturb or {}).get('spare', 0.0)}

    return _toy_network(apply, {'early': (8, 8, 4), 'spare': (8, 8, 3), 'late': (4, 4, 5)})


@pytest.fixture(scope='session')
def toy_images():
    """Four uint8 images of 8 x 8 pixels."""
    return np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), np.uint8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server like the Hugging Face hub's, which is the hub of this test; its cache is empty."""
    with serving(tmp_path / 'cache') as hub:
        for name in ('HF_HUB_OFFLINE', 'HF_HUB_CACHE', 'http_proxy', 'https_proxy', 'all_proxy'):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv('HF_ENDPOINT', hub.address)
        monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
        monkeypatch.setenv('WSOL_CACHE', str(hub.cache))
        yield hub

"""Which preprocessing a network gets: what is said, what the file says, what is assumed."""

import json
import logging
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from wsol_jax.models import Preprocessing, load_network
from wsol_jax.models.preprocessing import PREPROCESSINGS, as_preprocessing
from wsol_jax.models.squeezenet import FIRES
from wsol_jax.models.weights import WeightsError
from wsol_jax.models.zoo import find_preprocessing

NUMBERS = {'mean': [104, 117, 123], 'std': [1, 1, 1], 'bgr': True}


@pytest.fixture(scope='module')
def tensors():
    """A SqueezeNet of three classes under torchvision's names."""
    shapes = {'features.0': (64, 3, 3, 3), 'classifier.1': (3, 512, 1, 1)}
    width = 64
    for row, squeeze, expand, _ in FIRES.values():
        shapes[f'features.{row}.squeeze'] = (squeeze, width, 1, 1)
        shapes[f'features.{row}.expand1x1'] = (expand, squeeze, 1, 1)
        shapes[f'features.{row}.expand3x3'] = (expand, squeeze, 3, 3)
        width = 2 * expand
    rng = np.random.default_rng(0)
    weights = {f'{n}.weight': rng.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()}
    return weights | {f'{n}.bias': np.zeros(s[0], np.float32) for n, s in shapes.items()}


def write(tensors, path, metadata=None):
    save_file(tensors, path, metadata)
    return path


def warnings_of(caplog, function):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='absl'):
        result = function()
    return result, [record.getMessage() for record in caplog.records]


def test_squeezenet_says_what_it_assumes(tensors, tmp_path, caplog):
    """Caffe's weights and torchvision's have the same names and shapes."""
    path = write(tensors, tmp_path / 'w.safetensors')
    network, lines = warnings_of(caplog, lambda: load_network('squeezenet1_1', path))
    assert network.preprocessing == PREPROCESSINGS['caffe']
    assert lines == [
        f"{path}: does not say its preprocessing: 'caffe' is assumed, as of the squeezenet1_1 "
        "weights known here; others need 'imagenet': say preprocessing="
    ]


@pytest.mark.parametrize('given', ['imagenet', PREPROCESSINGS['imagenet']])
def test_torchvisions_squeezenet(tensors, tmp_path, caplog, given):
    path = write(tensors, tmp_path / 'w.safetensors')
    load = partial(load_network, 'squeezenet1_1', path, preprocessing=given)
    network, lines = warnings_of(caplog, load)
    assert lines == []
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255
    expected = (np.array([1, 0, 0]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(network.preprocessing(red)[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize('said', ['unit', json.dumps({'mean': [0, 0, 0], 'std': [255, 255, 255]})])
def test_a_file_that_says_it(tensors, tmp_path, caplog, said):
    path = write(tensors, tmp_path / 'w.safetensors', {'preprocessing': said})
    network, lines = warnings_of(caplog, lambda: load_network('squeezenet1_1', path))
    assert network.preprocessing == Preprocessing((0.0,) * 3, (255.0,) * 3)
    assert lines == []
    # What the user says goes before what the file says.
    assert find_preprocessing('squeezenet1_1', path, 'caffe') == PREPROCESSINGS['caffe']


@pytest.mark.parametrize('said', ['imagnet', '{"mean": 3', '{"mean": [1], "std": [1]}', '{}'])
def test_a_file_that_says_nonsense(tensors, tmp_path, said):
    path = write(tensors, tmp_path / 'w.safetensors', {'preprocessing': said})
    with pytest.raises(WeightsError) as error:
        load_network('squeezenet1_1', path)
    assert str(error.value).startswith(f'{path}: its metadata: ')
    assert len(str(error.value).splitlines()) == 1


def test_networks_of_one_family_of_weights_and_random_ones_warn_of_nothing(tmp_path, caplog):
    path = write({'fc.bias': np.zeros(3, np.float32)}, tmp_path / 'w.safetensors')
    for name, known in (('resnet18', 'imagenet'), ('mobilenet_v1', 'symmetric')):
        found, lines = warnings_of(caplog, lambda n=name: find_preprocessing(n, path))
        assert (found, lines) == (PREPROCESSINGS[known], [])
    found, lines = warnings_of(caplog, lambda: find_preprocessing('squeezenet1_1'))
    assert (found, lines) == (PREPROCESSINGS['caffe'], [])


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('imagnet', "unknown preprocessing 'imagnet'; did you mean 'imagenet'"),
        ({'mean': [1, 2, 3]}, 'preprocessing must be one of imagenet, caffe, symmetric, unit, or'),
        (NUMBERS | {'gbr': True}, 'preprocessing must be one of'),
        ({'mean': ['a'], 'std': [1]}, r"mean must be numbers, one a channel, got \['a'\]"),
        (7, 'preprocessing must be one of'),
        ('{' * 100_000, 'is no JSON'),
    ],
)
def test_what_is_no_preprocessing(given, message):
    with pytest.raises(ValueError, match=message) as error:
        as_preprocessing(given)
    assert len(str(error.value)) < 400


def test_numbers():
    caffe = PREPROCESSINGS['caffe']
    assert as_preprocessing(NUMBERS) == as_preprocessing(json.dumps(NUMBERS)) == caffe
    assert as_preprocessing(caffe) is caffe


def test_grey_is_nothing_for_these_networks():
    with pytest.raises(ValueError, match='preprocessing has 1 channels, these networks take RGB'):
        find_preprocessing('resnet18', None, {'mean': [1.0], 'std': [1.0]})


def test_the_published_files_are_what_they_were(caplog):
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real weights')
    weights = Path(os.environ['WSOL_DATA']) / 'weights'
    for name, known in (
        ('squeezenet1_1', 'caffe'),
        ('mobilenet_v1', 'symmetric'),
        ('inception_v3_trunk', 'symmetric'),
    ):
        found = find_preprocessing(name.removesuffix('_trunk'), weights / f'{name}.safetensors')
        assert found == PREPROCESSINGS[known]

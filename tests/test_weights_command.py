"""`python -m wsol_jax.weights`: a few lines that are right, or one that says what is wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from wsol_jax.models.published import _published
from wsol_jax.weights import KNOWN, main

CONFIG = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225], 'input_size': [3, 224, 224]}


def run(capsys, *arguments):
    code = main(arguments)
    return code, capsys.readouterr().out.splitlines()


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith('python -m wsol_jax.weights: ')
    return line.partition(': ')[2]


def real(name):
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real weights')
    return Path(os.environ['WSOL_DATA']) / f'weights/{name}.safetensors'


def test_every_known_name_can_be_asked_for(hub, capsys):
    for names in KNOWN.values():
        assert all(_published(name) for name in names)
    hub.add('timm/resnet18.a1_in1k', save({'a': np.zeros(1, np.float32)}))
    assert main(['fetch', 'timm/resnet18.a1_in1k']) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file.is_file() and hub.cache in file.parents
    code, lines = run(capsys, 'list')
    assert code == 0 and {n for names in KNOWN.values() for n in names} <= {
        word for line in lines if line.startswith('  ') for word in line.split()[:1]
    }
    assert [line for line in lines if line.endswith('  fetched')] == [
        '  timm/resnet18.a1_in1k  fetched'
    ]


@pytest.mark.slow
def test_whole_weights_by_name(hub, capsys):
    name = 'timm/deit_tiny_patch16_224.fb_in1k'
    facts = CONFIG | {'interpolation': 'bicubic', 'crop_pct': 0.9}
    content = real('deit_tiny_patch16_224').read_bytes()
    hub.add(name, content, {'num_classes': 1000, 'pretrained_cfg': facts})
    code, (_, *lines) = run(capsys, 'check', name)
    config = hub.cache / f'hub/{name}/main/config.json'
    assert code == 0 and lines == [
        'fits the whole of deit_tiny or vit_tiny',
        'classes: 1000, tench ... toilet tissue',
        f"preprocessing: 'imagenet' ({config})",
        'input: 224 x 224',
        'their accuracy is that of bicubic, centre 90.0% of the image; '
        'here the whole image is resized',
        f"load_network('deit_tiny', {name!r})",
    ]


def test_a_file_that_tells_nothing(capsys):
    file = real('squeezenet1_1')
    code, lines = run(capsys, 'check', str(file))
    assert code == 0 and lines == [
        f'{file}: 52 tensors, 1,235,496 numbers',
        'fits the whole of squeezenet1_1',
        'classes: 1000, tench ... toilet tissue (not told)',
        "preprocessing: 'caffe' is assumed (not told)",
        f"load_network('squeezenet1_1', {str(file)!r})",
    ]


@pytest.mark.slow
def test_a_trunk(capsys):
    file = real('inception_v3_trunk')
    code, lines = run(capsys, 'check', str(file))
    assert code == 0 and lines[1:3] == [
        'fits the trunk of inception_v3',
        'classes: none, the head is another one or missing; a new one must be trained',
    ]
    assert lines[-1] == f"load_network('inception_v3', {str(file)!r}, num_classes=...)"


def test_weights_that_fit_nothing(capsys, tmp_path):
    file = tmp_path / 'w.safetensors'
    save_file({'a.b': np.zeros((2, 3), np.float32)}, file)
    assert run(capsys, 'check', str(file)) == (
        1,
        [f'{file}: 1 tensors, 6 numbers', 'fits no network here; its first names are a.b'],
    )
    tensors = {'features.0.weight': (64, 3, 3, 3), 'features.3.squeeze.weight': (16, 64, 1, 1)}
    save_file({key: np.zeros(shape, np.float32) for key, shape in tensors.items()}, file)
    code, lines = run(capsys, 'check', str(file))
    assert (code, len(lines)) == (1, 2)
    nearest = 'fits no network here; of the nearest, vgg16: 25 missing (conv1_1.bias, conv1_2.bias'
    assert lines[1].startswith(nearest)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['check', 'nothing.safetensors'], 'nothing.safetensors: no such weights file'),
        (['check', 'setup.cfg'], 'setup.cfg: weights must be a .safetensors, .pth, .pt or .bin'),
        (['fetch', 'resnet50'], 'resnet50: no name of public weights; see list'),
        (['fetch', 'torchvision/resnet50.V3'], "unknown torchvision weights 'resnet50.V3'; did"),
        (['fetch', 'timm/nothing'], 'timm/nothing: http://127.0.0.1'),
    ],
)
def test_what_is_wrong_is_one_line(hub, capsys, arguments, message):
    assert failure(capsys, *arguments).startswith(message)

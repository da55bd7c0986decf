"""What comes with public weights: preprocessing, input size, class names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file
from test_weights import random_tensors, resnet10_shapes

from wsol_jax import load_network
from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.facts import Facts, facts_of, imagenet_classes
from wsol_jax.models.preprocessing import PREPROCESSINGS
from wsol_jax.models.weights import WeightsError

NAMES = [f'bird {i}' for i in range(7)]
TIMM = {
    'architecture': 'resnet10',
    'num_classes': 7,
    'label_names': NAMES,
    'pretrained_cfg': {
        'mean': [0.5, 0.4, 0.3],
        'std': [0.2, 0.2, 0.1],
        'input_size': [3, 64, 96],
        'interpolation': 'bicubic',
        'crop_pct': 0.95,
        'num_classes': 7,
    },
}


@pytest.fixture(scope='module')
def tensors():
    return random_tensors(resnet10_shapes())


def facts_with(tmp_path, file='model.safetensors', metadata=None, **beside):
    """Of a file with JSON files beside it."""
    save_file({'a': np.zeros(1, np.float32)}, tmp_path / file, metadata)
    for name, content in beside.items():
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    return facts_of(tmp_path / file)


def test_the_names_of_imagenet():
    names = imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    # Well-known places in ILSVRC's order.
    assert [names[i] for i in (0, 217, 281, 701, 999)] == [
        'tench',
        'English springer',
        'tabby',
        'parachute',
        'toilet tissue',
    ]


def test_timm_by_name(hub, tensors):
    hub.add('timm/resnet10.birds', save(tensors), TIMM)
    network = load_network('resnet10', 'timm/resnet10.birds', width=4)
    mean, std = (127.5, 102.0, 76.5), (51.0, 51.0, 25.5)
    assert network.preprocessing == Preprocessing(mean, std)
    assert network.input_shape == (64, 96, 3)
    assert network.class_names == tuple(NAMES)
    np.testing.assert_array_equal(network.state['fc']['bias'][...], tensors['fc.bias'])


def test_what_the_user_says_comes_first(hub, tensors):
    hub.add('a/b', save(tensors), TIMM)
    facts = {'preprocessing': 'unit', 'num_classes': 3, 'width': 4}
    network = load_network('resnet10', 'hf-hub:a/b', **facts)
    assert network.preprocessing == PREPROCESSINGS['unit']
    assert (network.num_classes, network.class_names) == (3, None)  # of a new head


def test_timm(tmp_path):
    """As its repositories on the hub have it."""
    config = {'architecture': 'resnet50', 'num_classes': 1000, 'num_features': 2048}
    trained = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
    trained |= {'input_size': [3, 224, 224], 'interpolation': 'bicubic', 'crop_pct': 0.95}
    found = facts_with(tmp_path, config=config | {'pretrained_cfg': trained})
    assert found == Facts(
        PREPROCESSINGS['imagenet'],
        (224, 224),
        imagenet_classes(),
        'bicubic, centre 95.0% of the image',
        str(tmp_path / 'config.json'),
    )
    # Older ones have no group of their own.
    old = config | trained | {'num_classes': 2, 'labels': ['a', 'b']}
    found = facts_with(tmp_path, config=old)
    assert (found.class_names, found.input_size) == (('a', 'b'), (224, 224))
    assert found.preprocessing == PREPROCESSINGS['imagenet']


def test_vit_of_transformers(tmp_path):
    labels = {str(i): f'name {i}, other' for i in range(12)}
    images = {'do_normalize': True, 'do_resize': True, 'resample': 2, 'size': 224}
    images |= {'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.5, 0.5, 0.5]}
    config = {'model_type': 'vit', 'image_size': 384, 'id2label': labels}
    found = facts_with(tmp_path, config=config, preprocessor_config=images)
    assert found.preprocessing == Preprocessing((127.5,) * 3, (127.5,) * 3)
    assert found.class_names == tuple(f'name {i}, other' for i in range(12))
    assert (found.input_size, found.resized) == ((224, 224), 'bilinear')
    (tmp_path / 'preprocessor_config.json').unlink()
    found = facts_with(tmp_path, config=config)
    assert (found.input_size, found.preprocessing) == ((384, 384), None)


def test_other_forms_of_transformers(tmp_path):
    imagenet = {str(i): name for i, name in enumerate(imagenet_classes())} | {'0': 'tench, Tinca'}
    images = {'size': {'shortest_edge': 256}, 'do_center_crop': True, 'resample': 3}
    images |= {'crop_size': {'height': 224, 'width': 192}, 'do_normalize': False}
    config = {'model_type': 'resnet', 'id2label': imagenet}
    found = facts_with(tmp_path, config=config, preprocessor_config=images)
    assert found.class_names == imagenet_classes()
    assert (found.input_size, found.preprocessing) == ((224, 192), PREPROCESSINGS['unit'])
    images = {'size': {'shortest_edge': 224}, 'crop_pct': 0.875, 'rescale_factor': 1 / 127.5}
    images |= {'image_mean': [1, 1, 1], 'image_std': [1, 1, 1]}
    made_up = {'model_type': 'vit', 'id2label': {'0': 'LABEL_0', '1': 'LABEL_1'}}
    found = facts_with(tmp_path, config=made_up, preprocessor_config=images)
    assert (found.class_names, found.input_size) == (None, (224, 224))
    assert found.preprocessing == Preprocessing((127.5,) * 3, (127.5,) * 3)
    assert found.resized == 'centre 87.5% of the image'


def test_torchvision_files_are_known_by_name(tmp_path):
    found = facts_of(tmp_path / 'resnet50-11ad3fa6.pth')
    assert found.preprocessing == PREPROCESSINGS['imagenet']
    assert found.class_names == imagenet_classes()
    assert found.resized == 'short side 232, centre crop 224, bilinear'
    # It takes ImageNet's mean and deviation, and turns them into these.
    found = facts_of(tmp_path / 'inception_v3_google-0cc3c7bd.pth')
    assert found.preprocessing == Preprocessing((127.5,) * 3, (127.5,) * 3)
    assert found.input_size == (299, 299)


def test_a_file_speaks_for_itself_before_what_lies_beside_it(tmp_path):
    said = {'preprocessing': 'caffe'}
    assert facts_with(tmp_path, metadata=said, config=TIMM).preprocessing.bgr


def test_other_files_called_config_are_not_read(tmp_path):
    assert facts_with(tmp_path, config={'config': {}}) == Facts()  # of a workdir
    assert facts_with(tmp_path, file='net.safetensors', config=TIMM) == Facts()


@pytest.mark.parametrize(
    'config',
    [
        {'pretrained_cfg': {'mean': 0.5, 'std': [1, 1, 1]}},
        {'pretrained_cfg': {'mean': [0.5], 'std': [0]}},
        {'pretrained_cfg': {'input_size': [3]}},
        {'pretrained_cfg': {'crop_pct': 'all'}},
        {'pretrained_cfg': []},
        {'model_type': 'vit', 'id2label': {'a': 'b'}},
        {'model_type': 'vit', 'id2label': [1]},
        {'model_type': 'resnet', 'downsample_in_bottleneck': True},
    ],
)
def test_facts_that_make_no_sense_are_one_line(tmp_path, config):
    with pytest.raises(WeightsError) as error:
        facts_with(tmp_path, config=config)
    assert str(error.value).startswith(f'{tmp_path / "config.json"}: ')
    assert len(str(error.value).splitlines()) == 1


def test_grey_weights_are_refused(hub, tensors):
    trained = {'mean': [0.5], 'std': [0.5]}
    hub.add('a/b', save(tensors), {'pretrained_cfg': trained})
    with pytest.raises(WeightsError, match=r'config\.json: preprocessing has 1 channels'):
        load_network('resnet10', 'hf-hub:a/b', width=4)


def test_as_many_names_as_classes(resnet):
    facts = vars(resnet) | {'class_names': ('a', 'b')}
    with pytest.raises(ValueError, match='2 class_names for 7 classes'):
        Network(**facts)


def test_random_networks_and_other_numbers_of_classes_have_no_names(tensors, tmp_path):
    save_file(tensors, path := tmp_path / 'net.safetensors')
    assert load_network('resnet10', path, width=4).class_names is None
    assert load_network('resnet10', num_classes=1000, width=4).class_names is None


def test_real_weights_by_name(hub):
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real weights')
    file = Path(os.environ['WSOL_DATA']) / 'weights/squeezenet1_1.safetensors'
    hub.files['/squeezenet1_1.safetensors'] = file.read_bytes()
    hub.cuts = [1_000_000]
    weights = f'{hub.address}/squeezenet1_1.safetensors'
    network = load_network('squeezenet1_1', weights, preprocessing='caffe')
    assert [r for _, r in hub.asked] == [None, 'bytes=1000000-']
    assert network.class_names == imagenet_classes()
    found = network.state['conv10']['bias'][...]
    own = load_network('squeezenet1_1', file, preprocessing='caffe').state['conv10']['bias'][...]
    np.testing.assert_array_equal(found, own)

"""Other libraries' names: published names and shapes fit, and the numbers come out the same."""

import logging
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from wsol_jax.models import load_network
from wsol_jax.models.fits import Fit, fit_of, unusual_options
from wsol_jax.models.layouts import known_names, read_weights
from wsol_jax.models.weights import WeightsError

LEAVES = {'w': 'weight', 'b': 'bias', 'm': 'running_mean', 'v': 'running_var'}


def published_shapes():
    """{name of weights: {name of tensor: shape}}, as timm 1.0.31 and torchvision 0.29.1 have them.

    A line is the name of a layer, its tensors by letters, and the shape of the first one; the
    others are as long as its first axis.
    """
    found = defaultdict(dict)
    for line in (Path(__file__).parent / 'published_shapes.txt').read_text().splitlines():
        if line.startswith('# '):
            weights = found[line[2:]]
            continue
        layer, letters, sides = line.split()
        shape = tuple(map(int, sides.split(',')))
        for letter in letters:
            name = layer if letter == '=' else f'{layer}.{LEAVES[letter]}'
            weights[name] = shape if letter in 'w=' else shape[:1]
    return dict(found)


PUBLISHED = published_shapes()
WHOLE = {
    **{f'torchvision/resnet{depth}': f'resnet{depth}' for depth in (18, 34, 50, 101)},
    'torchvision/squeezenet1_1': 'squeezenet1_1',
    'timm/mobilenetv1_100.ra4_e3600_r224_in1k': 'mobilenet_v1',
    'timm/deit_tiny_patch16_224.fb_in1k': 'deit_tiny',
    'timm/vit_base_patch16_224.augreg_in21k_ft_in1k': 'vit_base',
    'timm/vit_small_patch16_384.augreg_in21k_ft_in1k': 'vit_small',
}
TRUNK = {
    'torchvision/vgg16': 'vgg16',
    'timm/vgg16.tv_in1k': 'vgg16',
    'torchvision/inception_v3': 'inception_v3',
    'timm/vit_small_patch16_224.dino': 'vit_small',
}


def zeros(shapes):
    """Tensors without memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def fit(weights, network, change=lambda shapes: shapes):
    return fit_of(network, *known_names(zeros(change(PUBLISHED[weights])), 'w'))


@pytest.mark.slow
@pytest.mark.parametrize('weights', WHOLE)
def test_published_weights_fit(weights):
    found = fit(weights, WHOLE[weights])
    assert (found.classes, found.problems.lines()) == (1000, [])


@pytest.mark.slow
@pytest.mark.parametrize('weights', TRUNK)
def test_of_others_the_trunk_fits(weights):
    found = fit(weights, TRUNK[weights])
    assert (found.classes, found.problems.lines()) == (0, [])


def test_the_table_is_whole():
    assert set(PUBLISHED) == set(WHOLE) | set(TRUNK)
    assert fit('torchvision/squeezenet1_1', 'resnet18').problems
    short = fit('torchvision/resnet18', 'resnet18', lambda s: dict(list(s.items())[1:]))
    assert short.problems.lines() == ['missing: conv1.conv.kernel']
    assert isinstance(short, Fit) and short.classes == 0


# Transformers' published names, written down by hand from timm's and torchvision's.
ATTENTION = {'query': 0, 'key': 1, 'value': 2}


def as_transformers_vit(tensors, prefix='vit.', head='classifier'):
    named = {}
    for key, value in tensors.items():
        if '.attn.qkv.' in key:
            layer, leaf = re.match(r'blocks\.(\d+)\.attn\.qkv\.(\w+)', key).groups()
            for part, place in ATTENTION.items():
                name = f'{prefix}encoder.layer.{layer}.attention.attention.{part}.{leaf}'
                named[name] = np.split(value, 3)[place]
        elif key.startswith('blocks.'):
            _, layer, part, leaf = re.fullmatch(r'(blocks)\.(\d+)\.(.*)\.(\w+)', key).groups()
            named[f'{prefix}encoder.layer.{layer}.{PARTS[part]}.{leaf}'] = value
        elif key.startswith('head.'):
            named[key.replace('head', head)] = value
        else:
            named[prefix + REST[key]] = value
    return named


PARTS = {
    'attn.proj': 'attention.output.dense',
    'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
}
REST = {
    'cls_token': 'embeddings.cls_token',
    'pos_embed': 'embeddings.position_embeddings',
    'patch_embed.proj.weight': 'embeddings.patch_embeddings.projection.weight',
    'patch_embed.proj.bias': 'embeddings.patch_embeddings.projection.bias',
    'norm.weight': 'layernorm.weight',
    'norm.bias': 'layernorm.bias',
}


def numbered(shapes):
    """Every number is another one, so that what is mixed up shows."""
    rng = np.random.default_rng(0)
    return {key: rng.uniform(0.1, 1, shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize('prefix', ['vit.', ''])
def test_vision_transformers_of_transformers(prefix):
    tensors = numbered(PUBLISHED['timm/deit_tiny_patch16_224.fb_in1k'])
    named = as_transformers_vit(tensors, prefix)
    if not prefix:
        named['pooler.dense.weight'] = np.zeros((192, 192), np.float32)
    found, options = known_names(named, 'w')
    assert set(found) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(found[key], value)
    assert options == {'patch': 16, 'image_size': 224}


def as_transformers_resnet(key):
    table = (
        (r'^conv1\.', 'resnet.embedder.embedder.convolution.'),
        (r'^bn1\.', 'resnet.embedder.embedder.normalization.'),
        (r'^fc\.', 'classifier.1.'),
    )
    for pattern, name in table:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    stage, layer, part, leaf = re.fullmatch(r'layer(\d)\.(\d+)\.(.+)\.(\w+)', key).groups()
    start = f'resnet.encoder.stages.{int(stage) - 1}.layers.{layer}.'
    if part.startswith('downsample'):
        return start + f'shortcut.{("convolution", "normalization")[int(part[-1])]}.{leaf}'
    kind = 'convolution' if part.startswith('conv') else 'normalization'
    return start + f'layer.{int(part[-1]) - 1}.{kind}.{leaf}'


def test_resnet_of_transformers():
    shapes = PUBLISHED['torchvision/resnet50']
    named = {as_transformers_resnet(key): np.zeros(shape) for key, shape in shapes.items()}
    assert 'resnet.encoder.stages.1.layers.0.shortcut.normalization.running_mean' in named
    assert {key: v.shape for key, v in known_names(named, 'w')[0].items()} == shapes


def as_transformers_mobilenet(key):
    """Of timm's name: 13 times a depthwise and a pointwise layer, counted through."""
    if key.startswith('classifier.'):
        return key
    leaf = key.rpartition('.')[2]
    norm = re.search(r'\bbn(\d)', key)
    kind = 'normalization' if norm else 'convolution'
    if not key.startswith('blocks.'):
        return f'mobilenet_v1.conv_stem.{kind}.{leaf}'
    stage, place = map(int, re.match(r'blocks\.(\d)\.(\d)', key).groups())
    pointwise = 'conv_pw' in key or bool(norm and norm[1] == '2')
    number = 2 * (sum((1, 2, 2, 6, 2)[:stage]) + place) + pointwise
    return f'mobilenet_v1.layer.{number}.{kind}.{leaf}'


@pytest.mark.parametrize(('epsilon', 'padding'), [(1e-5, 'torchvision'), (1e-3, 'same')])
def test_batch_normalisation_is_folded_into_mobilenet(epsilon, padding):
    tensors = numbered(PUBLISHED['timm/mobilenetv1_100.ra4_e3600_r224_in1k'])
    named = tensors
    if padding == 'same':
        named = {as_transformers_mobilenet(key): value for key, value in tensors.items()}
    found, options = known_names(named, 'w')
    assert options == ({'padding': padding} if padding != 'same' else {})
    assert len(found) == 56 and found['classifier.bias'] is tensors['classifier.bias']
    # At one channel: normalisation of a convolution is the folded one.
    for ours, kernel, norm in (
        ('conv_0', 'conv_stem', 'bn1'),
        ('dw_4', 'blocks.2.0.conv_dw', 'blocks.2.0.bn1'),
        ('pw_13', 'blocks.4.1.conv_pw', 'blocks.4.1.bn2'),
    ):
        y = tensors[f'{kernel}.weight'][5].astype(np.float64).sum()  # the response to ones
        weight, bias, mean, variance = (tensors[f'{norm}.{leaf}'][5] for leaf in LEAVES.values())
        expected = (y - mean) / np.sqrt(variance + epsilon) * weight + bias
        got = found[f'{ours}.weight'][5].astype(np.float64).sum() + found[f'{ours}.bias'][5]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert fit_of('mobilenet_v1', found, options).classes == 1000


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.model.'])
def test_prefixes_of_wrappers_are_left_out_and_said(prefix, tmp_path, caplog):
    shapes = {'fc.weight': (7, 4), 'fc.bias': (7,), 'conv1.weight': (4, 3, 7, 7)}
    tensors = {f'{prefix}{key}': value for key, value in numbered(shapes).items()}
    save_file(tensors, path := tmp_path / 'w.safetensors')
    with caplog.at_level(logging.WARNING, logger='absl'), pytest.raises(WeightsError) as error:
        load_network('resnet10', path, width=4)
    assert 'left over' not in str(error.value).splitlines()[0]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f'{path}: {prefix!r} in front of every name is left out'


def test_a_name_that_only_some_share_stays():
    tensors = numbered({'model.a': (1,), 'b': (1,)})
    assert known_names(tensors, 'w')[0] == tensors


def tiny_vit(image_size, patch):
    shapes = {'cls_token': (1, 1, 12), 'pos_embed': (1, 1 + (image_size // patch) ** 2, 12)}
    shapes |= {'patch_embed.proj.weight': (12, 3, patch, patch), 'patch_embed.proj.bias': (12,)}
    layers = {'attn.qkv': (36, 12), 'attn.proj': (12, 12), 'mlp.fc1': (48, 12), 'mlp.fc2': (12, 48)}
    layers = {f'blocks.0.{name}': shape for name, shape in layers.items()} | {'head': (3, 12)}
    norms = ('blocks.0.norm1', 'blocks.0.norm2', 'norm')
    for name, shape in (layers | dict.fromkeys(norms, (12,))).items():
        shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
    return numbered(shapes)


def test_grid_of_a_vision_transformer_is_as_in_the_file(tmp_path):
    save_file(tiny_vit(32, 8), path := tmp_path / 'w.safetensors')
    facts = {'width': 12, 'heads': 3, 'depth': 1, 'preprocessing': 'imagenet'}
    network = load_network('vit_tiny', path, **facts)
    assert network.input_size == 32 and network.endpoints()['block1'] == (4, 4, 12)
    assert unusual_options('vit_tiny', read_weights(path).options) == {'patch': 8, 'image_size': 32}


def test_a_file_of_which_only_the_trunk_fits_says_so(tmp_path):
    tensors = numbered(PUBLISHED['torchvision/resnet18'])
    del tensors['fc.weight']
    save_file(tensors, path := tmp_path / 'w.safetensors')
    with pytest.raises(WeightsError, match=r'only the head: num_classes starts a new one'):
        load_network('resnet18', path)

"""Weights files: what fits, what does not, and how it is told."""

import json
import logging
import os
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from wsol_jax.models import build, fill_module, inception, load_network, mobilenet, resnet, vgg
from wsol_jax.models.weights import WeightsError, assign, assign_named, read_tensors

WIDTH, CLASSES = 4, 7
SMALL = {'width': WIDTH}


def batch_norm(name, size):
    return {
        f'{name}.weight': (size,),
        f'{name}.bias': (size,),
        f'{name}.running_mean': (size,),
        f'{name}.running_var': (size,),
        f'{name}.num_batches_tracked': (),
    }


def resnet10_shapes():
    """torchvision's names and shapes for one basic block a stage."""
    shapes = {'conv1.weight': (WIDTH, 3, 7, 7)} | batch_norm('bn1', WIDTH)
    before = WIDTH
    for stage in range(1, 5):
        name, after = f'layer{stage}.0', WIDTH << (stage - 1)
        shapes[f'{name}.conv1.weight'] = (after, before, 3, 3)
        shapes |= batch_norm(f'{name}.bn1', after)
        shapes[f'{name}.conv2.weight'] = (after, after, 3, 3)
        shapes |= batch_norm(f'{name}.bn2', after)
        if stage > 1:
            shapes[f'{name}.downsample.0.weight'] = (after, before, 1, 1)
            shapes |= batch_norm(f'{name}.downsample.1', after)
        before = after
    return shapes | {'fc.weight': (CLASSES, before), 'fc.bias': (CLASSES,)}


def random_tensors(shapes):
    rng = np.random.default_rng(0)
    return {key: rng.uniform(0.1, 1, shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.fixture
def tensors():
    return random_tensors(resnet10_shapes())


@pytest.fixture
def save(tmp_path):
    def write(tensors, name='net.safetensors'):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return write


def module_of(classes=CLASSES, seed=0):
    return build('resnet10', classes, nnx.Rngs(seed), **SMALL)


def load(module, path, strict=True):
    return assign(module, read_tensors(path), path, resnet.WEIGHT_NAMES, resnet.HEAD, strict)


def test_a_whole_file(tensors, save):
    network = load_network('resnet10', save(tensors), **SMALL)
    assert network.num_classes == CLASSES
    state = network.state
    conv = state['layer3'][0]['conv2']
    expected = np.einsum('oihw->hwio', tensors['layer3.0.conv2.weight'])
    np.testing.assert_array_equal(conv['conv']['kernel'][...], expected)
    batch_norms = {
        'bn1': state['conv1']['bn'],
        'layer3.0.bn2': conv['bn'],
        'layer4.0.downsample.1': state['layer4'][0]['downsample']['bn'],
    }
    for name, ours in batch_norms.items():
        for theirs, key in {
            'weight': 'scale',
            'bias': 'bias',
            'running_mean': 'mean',
            'running_var': 'var',
        }.items():
            np.testing.assert_array_equal(ours[key][...], tensors[f'{name}.{theirs}'])
    np.testing.assert_array_equal(state['fc']['kernel'][...], tensors['fc.weight'].T)
    logits, _ = jax.jit(network)(np.zeros((1, 64, 64, 3), np.uint8))
    assert np.isfinite(logits).all()


def test_half_precision_is_read_as_single(tensors, save):
    path = save({key: value.astype(np.float16) for key, value in tensors.items()})
    kernel = load_network('resnet10', path, **SMALL).state['fc']['kernel'][...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, tensors['fc.weight'].T.astype(np.float16))


def test_everything_that_does_not_fit_is_listed(tensors, save):
    del tensors['layer1.0.conv1.weight'], tensors['bn1.bias']
    tensors['layer9.weight'] = np.zeros(3, np.float32)
    tensors['layer2.0.conv1.weight'] = np.zeros((8, 4, 5, 5), np.float32)
    path, module = save(tensors), module_of()
    before = jax.tree.map(np.array, nnx.state(module, nnx.Param))
    with pytest.raises(WeightsError) as raised:
        load(module, path)
    summary, *lines = str(raised.value).splitlines()
    for part in ('net.safetensors', '2 missing', '1 left over', '1 of another shape', 'bn.bias'):
        assert part in summary
    assert sorted(line.strip() for line in lines) == [
        'left over: layer9.weight',
        'missing: conv1.bn.bias',
        'missing: layer1.0.conv1.conv.kernel',
        'of another shape: layer2.0.conv1.weight is (5, 5, 4, 8), '
        'layer2.0.conv1.conv.kernel needs (3, 3, 4, 8)',
    ]
    after = nnx.state(module, nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_list_is_long_where_the_network_is_another(tensors, save):
    path = save(tensors)
    with pytest.raises(WeightsError) as raised:
        load_network('mobilenet_v1', path, num_classes=3)
    summary, *lines = str(raised.value).splitlines()
    used = [key for key in tensors if not key.endswith('num_batches_tracked')]
    assert f'54 missing (conv_0.bias, conv_0.kernel, dw_1.bias, …); {len(used)} left' in summary
    assert len(lines) == 54 + len(used)


def test_a_changed_head_is_kept_and_reported(tensors, save, caplog):
    module = module_of(classes=3, seed=5)
    kernel = np.array(module.fc.kernel[...])
    with caplog.at_level(logging.WARNING, logger='absl'):
        lines = load(module, save(tensors), strict=False)
    assert len(lines) == 2
    assert 'fc.weight is (32, 7), fc.kernel needs (32, 3)' in '\n'.join(lines)
    assert [record.getMessage() for record in caplog.records] == lines
    np.testing.assert_array_equal(module.fc.kernel[...], kernel)
    np.testing.assert_array_equal(module.conv1.bn.mean[...], tensors['bn1.running_mean'])


def test_many_values_of_heads_are_told_in_a_few_lines(caplog):
    module = module_of(classes=3)
    module.heads = nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(0)) for _ in range(10)])
    with caplog.at_level(logging.WARNING, logger='absl'):
        lines = assign_named(module, {}, 'w', '', strict=False)
    told = [record.getMessage() for record in caplog.records]
    assert told == [*lines[:12], f'w: so do {len(lines) - 12} more values'] and len(lines) > 20


def test_strict_refuses_a_changed_head(tensors, save):
    with pytest.raises(WeightsError, match=r'2 of another shape \(fc\.'):
        load(module_of(classes=3), save(tensors))


def test_num_classes_loads_a_head_that_fits(tensors, save):
    network = load_network('resnet10', save(tensors), CLASSES, **SMALL)
    np.testing.assert_array_equal(network.state['fc']['bias'][...], tensors['fc.bias'])


def own_values(classes=CLASSES):
    """A module's values under its own names, as a checkpoint holds them."""
    state = nnx.to_flat_state(nnx.state(module_of(classes, seed=8), (nnx.Param, nnx.BatchStat)))
    return {'.'.join(map(str, keys)): np.asarray(leaf[...]) + 0.5 for keys, leaf in state}


def test_values_under_their_own_names():
    module, values = module_of(), own_values()
    assert assign_named(module, values, 'W', resnet.HEAD) == []
    conv = module.layer2[0].downsample
    for found, name in (
        (conv.conv.kernel, 'layer2.0.downsample.conv.kernel'),  # not transposed
        (conv.bn.var, 'layer2.0.downsample.bn.var'),
        (module.fc.bias, 'fc.bias'),
    ):
        np.testing.assert_array_equal(found[...], values[name])


def test_values_of_another_head_or_network():
    module = module_of(classes=3, seed=5)
    kernel = np.array(module.fc.kernel[...])
    values = own_values() | {'conv9.kernel': np.zeros(3)}
    with pytest.raises(WeightsError, match=r'^W does not fit the network: 1 left over \(conv9\.'):
        fill_module('resnet10', module, values, 'W', strict=False)
    del values['conv9.kernel']
    with pytest.raises(WeightsError, match=r'2 of another shape \(fc\.'):
        assign_named(module, values, 'W', resnet.HEAD)
    assert not module.conv1.bn.mean[...].any()
    fill_module('resnet10', module, values, 'W', strict=False)
    np.testing.assert_array_equal(module.fc.kernel[...], kernel)
    np.testing.assert_array_equal(module.conv1.bn.mean[...], values['conv1.bn.mean'])


def test_trunk_problems_are_errors_with_a_new_head(tensors, save):
    del tensors['conv1.weight']
    with pytest.raises(WeightsError) as raised:
        load_network('resnet10', save(tensors), num_classes=3, **SMALL)
    assert str(raised.value).splitlines()[1:] == ['  missing: conv1.conv.kernel']


def test_a_file_without_head_needs_num_classes(tensors, save):
    path = save({key: value for key, value in tensors.items() if 'fc' not in key})
    with pytest.raises(WeightsError, match=r"no 'fc.bias'.*give num_classes"):
        load_network('resnet10', path, **SMALL)
    assert load_network('resnet10', path, num_classes=2, **SMALL).num_classes == 2


def test_convolution_as_classifier():
    module = nnx.eval_shape(lambda: build('mobilenet_v1', 3, nnx.Rngs(0)))
    shapes = {'classifier.weight': (3, 1024, 1, 1), 'classifier.bias': (3,)}
    shapes |= {'conv_0.weight': (32, 3, 3, 3), 'conv_0.bias': (32,)}
    before = 32
    for number, after in enumerate([64, 128, 128, 256, 256] + 6 * [512] + 2 * [1024], start=1):
        shapes |= {f'dw_{number}.weight': (before, 1, 3, 3), f'dw_{number}.bias': (before,)}
        shapes |= {f'pw_{number}.weight': (after, before, 1, 1), f'pw_{number}.bias': (after,)}
        before = after
    tensors = random_tensors(shapes)
    assert assign(module, tensors, 'here', mobilenet.WEIGHT_NAMES, mobilenet.HEAD) == []
    expected = tensors['classifier.weight'][:, :, 0, 0].T
    np.testing.assert_array_equal(module.classifier.kernel[...], expected)
    expected = tensors['dw_3.weight'][:, 0].transpose(1, 2, 0)
    np.testing.assert_array_equal(module.dw_3.kernel[:, :, 0], expected)


def test_torchvision_vgg16_gives_the_trunk():
    module = nnx.eval_shape(lambda: build('vgg16', 3, nnx.Rngs(0)))
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    shapes = {'classifier.0.weight': (4096, 25088), 'classifier.6.bias': (1000,)}
    for number, index in enumerate(indices):
        shapes[f'features.{index}.weight'] = (widths[number + 1], widths[number], 3, 3)
        shapes[f'features.{index}.bias'] = (widths[number + 1],)
    tensors = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    tensors['features.12.bias'] = np.full(256, 3.0, np.float32)
    lines = assign(module, tensors, 'vgg16', vgg.WEIGHT_NAMES, vgg.HEAD, strict=False)
    assert sorted(line.split('value: ')[1] for line in lines) == [
        'left over: classifier.0.weight',
        'left over: classifier.6.bias',
        'missing: conv6.bias',
        'missing: conv6.kernel',
        'missing: fc.bias',
        'missing: fc.kernel',
    ]
    assert (np.asarray(module.conv3_2.bias[...]) == 3).all()


def test_torchvision_inception_gives_the_trunk():
    module = nnx.eval_shape(lambda: build('inception_v3', 3, nnx.Rngs(0)))
    leaves = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
    tensors = {}
    for keys, leaf in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        shape = leaf.shape[-1:-3:-1] + leaf.shape[:-2] if len(leaf.shape) == 4 else leaf.shape
        if keys[0] not in ('Mixed_6f', 'Mixed_6g', 'fc'):
            name = '.'.join((*keys[:-1], leaves.get(keys[-1], keys[-1])))
            tensors[name] = np.broadcast_to(np.float32(0), shape)
    added = {
        'AuxLogits.conv0.conv.weight': (128, 768, 1, 1),
        'Mixed_7a.branch3x3_1.bn.bias': (192,),
        'Mixed_7c.branch_pool.conv.weight': (192, 2048, 1, 1),
        'fc.weight': (1000, 2048),
        'fc.bias': (1000,),
    }
    tensors |= {key: np.broadcast_to(np.float32(0), shape) for key, shape in added.items()}
    head = (inception.WEIGHT_NAMES, inception.HEAD)
    assert len(assign(module, tensors, 'inception', *head, strict=False)) == 9
    with pytest.raises(WeightsError, match=r'4 missing .*3 left over .*2 of another shape'):
        assign(module, tensors, 'inception', *head)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('none.safetensors', None, 'no such weights file'),
        ('none.pth', None, 'no such weights file'),
        ('net.npz', b'', r'must be a \.safetensors, \.pth, \.pt or \.bin file'),
        ('net.safetensors', b'not a weights file at all', 'not a readable safetensors file'),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f'{name}: .*{message}|{name}: {message}'):
        read_tensors(tmp_path / name)


def test_pth_without_torch(tmp_path, monkeypatch):
    (tmp_path / 'net.pth').write_bytes(b'any')
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(WeightsError, match=r'net\.pth: reading a torch file needs torch'):
        read_tensors(tmp_path / 'net.pth')


def test_pth_with_torch(tmp_path, tensors):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'net.pth'
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
    read = read_tensors(path)
    assert list(read) == list(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(read[key], value)
    torch.save({'state_dict': {}, 'epoch': 3}, path)
    with pytest.raises(WeightsError, match='not a flat dict of tensors'):
        read_tensors(path)


@pytest.mark.slow
def test_inception_trunk_file():
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real weights')
    path = Path(os.environ['WSOL_DATA']) / 'weights/inception_v3_trunk.safetensors'
    module = nnx.eval_shape(lambda: build('inception_v3', 3, nnx.Rngs(0)))
    table, head = inception.WEIGHT_NAMES, inception.HEAD
    lines = assign(module, read_tensors(path), path, table, head, strict=False)
    assert sorted(line.split()[-1] for line in lines) == [
        f'{name}.{leaf}' for name in ('Mixed_6f', 'Mixed_6g', 'fc') for leaf in ('bias', 'kernel')
    ]
    # Its batch norm is folded: what is left must be an addition of the bias.
    norm = module.Mixed_6e.branch7x7dbl_5.bn
    np.testing.assert_allclose(
        norm.scale[...] / np.sqrt(norm.var[...] + norm.epsilon), 1, rtol=1e-6
    )
    with pytest.raises(WeightsError, match='give num_classes'):
        load_network('inception_v3', path)


# Files that are damaged, or no weights at all


def header(text: bytes, data: bytes = b'') -> bytes:
    return len(text).to_bytes(8, 'little') + text + data


def one_tensor(kind: str, shape: list[int], size: int) -> bytes:
    facts = {'a': {'dtype': kind, 'shape': shape, 'data_offsets': [0, size]}}
    return header(json.dumps(facts).encode(), bytes(size))


class Code:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('empty.safetensors', b''),
        ('cut.safetensors', one_tensor('F32', [100], 400)[:-10]),
        ('cut_header.safetensors', one_tensor('F32', [100], 400)[:20]),
        ('eight_gigabytes.safetensors', (8 << 30).to_bytes(8, 'little') + b'{}'),
        ('deep.safetensors', header(b'{"a":' * 200_000 + b'1' + b'}' * 200_000)),
        ('brackets.safetensors', header(b'[' * 200_000)),
        ('large_shape.safetensors', one_tensor('F32', [1 << 62], 4)),
        ('float8.safetensors', one_tensor('F8_E4M3', [2], 2)),
        ('text.safetensors', header(b'\xff\xfe{}')),
        ('nan.safetensors', None),
        ('folder.safetensors', None),
        ('pipe.safetensors', None),
        ('missing.safetensors', None),
        ('empty.pth', b''),
        ('zip.pth', b'PK\x03\x04' + b'x' * 100),
        ('code.pth', None),
        ('nested.pth', None),
    ],
)
def test_damaged_files_are_one_line(name, content, tmp_path):
    path = tmp_path / name
    if name.endswith('.pth'):
        torch = pytest.importorskip('torch', reason='torch is not installed')
    if content is not None:
        path.write_bytes(content)
    elif name == 'nan.safetensors':
        save_file({'fc.bias': np.array([1, np.nan], np.float16)}, path)
    elif name == 'folder.safetensors':
        path.mkdir()
    elif name == 'pipe.safetensors':
        os.mkfifo(path)
    elif name == 'code.pth':
        path.write_bytes(pickle.dumps(Code(tmp_path / 'executed')))
    elif name == 'nested.pth':
        torch.save({'state_dict': {'a': torch.zeros(1)}, 'epoch': 3}, path)
    with pytest.raises(WeightsError) as error:
        load_network('resnet10', path)
    message = str(error.value)
    assert message.startswith(f'{path}: ') and len(message.splitlines()) == 1
    assert MESSAGES.get(name, 'not a readable') in message
    assert not (tmp_path / 'executed').exists()


MESSAGES = {
    'nan.safetensors': 'fc.bias holds values that are not finite (NaN or infinity)',
    'folder.safetensors': 'not a regular file',
    'pipe.safetensors': 'not a regular file',
    'missing.safetensors': 'no such weights file',
    'code.pth': 'holds more than tensors, and code from files is not run',
    'nested.pth': 'not a flat dict of tensors (a torch state dict); it holds state_dict, epoch',
}


def test_a_head_without_classes(tensors, save):
    path = save(tensors | {'fc.bias': np.ones((), np.float32)})
    with pytest.raises(WeightsError, match=r'fc.bias must have one value a class, is \(\)'):
        load_network('resnet10', path, **SMALL)

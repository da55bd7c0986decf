"""Vision transformers against a plain torch forward pass, with its autograd."""

import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from wsol_jax.data import Labels, evaluation_batches, open_source
from wsol_jax.localization.localize import localize
from wsol_jax.models import as_network, build, load_network
from wsol_jax.models.vit import resized_positions
from wsol_jax.models.weights import WeightsError
from wsol_jax.models.zoo import find_preprocessing

torch = pytest.importorskip('torch')
F = torch.nn.functional

WIDTH, HEADS, DEPTH, PATCH, SIDE, CLASSES = 12, 3, 4, 8, 32, 5
GRID = SIDE // PATCH
BLOCKS = [f'block{i}' for i in range(1, 1 + DEPTH)]
TINY = {'width': WIDTH, 'heads': HEADS, 'depth': DEPTH, 'patch': PATCH, 'image_size': SIDE}


def timm_shapes():
    """timm's names and shapes."""
    shapes = {
        'cls_token': (1, 1, WIDTH),
        'pos_embed': (1, 1 + GRID**2, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, PATCH, PATCH),
        'patch_embed.proj.bias': (WIDTH,),
    }
    for i in range(DEPTH):
        for name, out, before in (
            ('attn.qkv', 3 * WIDTH, WIDTH),
            ('attn.proj', WIDTH, WIDTH),
            ('mlp.fc1', 4 * WIDTH, WIDTH),
            ('mlp.fc2', WIDTH, 4 * WIDTH),
        ):
            shapes |= {
                f'blocks.{i}.{name}.weight': (out, before),
                f'blocks.{i}.{name}.bias': (out,),
            }
        for name in ('norm1', 'norm2'):
            shapes |= {f'blocks.{i}.{name}.{leaf}': (WIDTH,) for leaf in ('weight', 'bias')}
    last = {'norm.weight': (WIDTH,), 'norm.bias': (WIDTH,)}
    return shapes | last | {'head.weight': (CLASSES, WIDTH), 'head.bias': (CLASSES,)}


@pytest.fixture(scope='module')
def tensors():
    rng = np.random.default_rng(0)
    values = {k: rng.normal(0, 0.4, s).astype(np.float32) for k, s in timm_shapes().items()}
    return {k: v + 1 if 'norm' in k and 'weight' in k else v for k, v in values.items()}


@pytest.fixture
def save(tmp_path):
    def write(tensors):
        save_file(tensors, tmp_path / 'vit.safetensors')
        return tmp_path / 'vit.safetensors'

    return write


@pytest.fixture(scope='module')
def network(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp('vit') / 'vit.safetensors'
    save_file(tensors, path)
    return load_network('deit_tiny', path, **TINY)


def torch_forward(tensors, inputs, added=None, attention=None):
    """Logits and the tokens behind every block; `added` at the patches of block 2.

    With a spatial token its masks are applied in the last three blocks; the lists of `attention`
    take the weights of each block before that, and the masks.
    """
    w = {k: torch.from_numpy(v) for k, v in tensors.items()}

    def linear(x, name):
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f'{name}.weight'], w[f'{name}.bias'], 1e-6)

    x = torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2)
    x = F.conv2d(x, w['patch_embed.proj.weight'], w['patch_embed.proj.bias'], PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w['cls_token'].expand(len(x), 1, WIDTH), x], 1) + w['pos_embed']
    if 'spatial_token' in w:
        spatial = w['spatial_token'] + w['spatial_embed']
        x = torch.cat([x, spatial.expand(len(x), 1, WIDTH)], 1)
    seen = []
    for i in range(DEPTH):
        y = linear(norm(x, f'blocks.{i}.norm1'), f'blocks.{i}.attn.qkv')
        each = WIDTH // HEADS
        parts = [
            [y[..., (p * HEADS + h) * each :][..., :each] for p in range(3)] for h in range(HEADS)
        ]
        scores = [q @ k.transpose(1, 2) / each**0.5 for q, k, _ in parts]
        weights = [torch.softmax(s, -1) for s in scores]
        if attention is not None:
            attention[0].append(sum(weights) / HEADS)
        if 'spatial_token' in w and i >= DEPTH - 3:
            mask = torch.sigmoid(sum(s[:, -1] for s in scores) / HEADS)
            attention[1].append(mask)
            weights = [a * mask[:, None] for a in weights]
        heads = [a @ v for a, (_, _, v) in zip(weights, parts, strict=True)]
        x = x + linear(torch.cat(heads, -1), f'blocks.{i}.attn.proj')
        y = F.gelu(linear(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp.fc1'))
        x = x + linear(y, f'blocks.{i}.mlp.fc2')
        if added is not None and i == 1:
            x = x + F.pad(added.reshape(len(x), -1, WIDTH), (0, 0, 1, 0))
        seen.append(x)
    x = norm(x, 'norm')
    return linear(x[:, 0], 'head'), [*seen, x]


def inputs_of(batch=2, height=SIDE, width=SIDE):
    return np.random.default_rng(1).normal(size=(batch, height, width, 3)).astype(np.float32)


def close(ours, theirs, share=1e-4):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.abs(theirs).max())


def test_same_numbers_as_torch(network, tensors):
    logits, seen = torch_forward(tensors, inputs_of())
    got, endpoints = jax.jit(network.apply)(network.state, inputs_of())
    close(got, logits)
    assert np.abs(np.diff(logits, axis=0)).max() > 0.1
    for name, tokens in zip([*BLOCKS, 'norm'], seen, strict=True):
        close(endpoints[name], tokens[:, 1:].reshape(2, GRID, GRID, WIDTH))


@pytest.mark.slow
def test_dgl_at_a_block_is_that_of_autograd(network, tensors):
    images = np.random.default_rng(3).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    added = torch.zeros(2, GRID, GRID, WIDTH, requires_grad=True)
    logits, seen = torch_forward(tensors, network.preprocessing(images), added)
    labels = F.one_hot(torch.tensor([1, 3]), CLASSES).float()
    gradients = [
        torch.autograd.grad(logits, added, cotangents, retain_graph=True)[0].numpy()
        for cotangents in (labels, torch.softmax(logits.detach(), -1) - 10 * labels)
    ]
    activations = seen[1][:, 1:].reshape(2, GRID, GRID, WIDTH).detach().numpy()
    found = localize(network, images, ('dgl',), ('block2',), classes=[1, 3])
    for row in range(2):
        of_class, of_loss = (g[row] for g in gradients)
        unit_activation = activations[row] / np.linalg.norm(activations[row])
        enhanced = unit_activation - of_loss / np.linalg.norm(of_loss)
        close(found.maps['dgl', 'block2'][row], (of_class * enhanced).sum(axis=-1))


@pytest.mark.slow
def test_attention_is_shown_with_patches_as_keys(network, tensors):
    weights = []
    torch_forward(tensors, inputs_of(), attention=(weights, []))
    _, endpoints = network.apply(network.state, inputs_of())
    for name, expected in zip(BLOCKS, weights, strict=True):
        found = np.asarray(endpoints[f'{name}/attention']).reshape(2, GRID**2, -1)
        close(found, expected[:, :, 1:].transpose(1, 2))
        close(1 - found.sum(axis=1), expected[:, :, 0])


@pytest.fixture(scope='module')
def spatial(tensors):
    rng = np.random.default_rng(4)
    names = ('spatial_token', 'spatial_embed')
    return tensors | {n: rng.normal(size=(1, 1, WIDTH)).astype(np.float32) for n in names}


@pytest.mark.slow
def test_a_spatial_token_masks_the_last_three_blocks(spatial, save):
    """Keys are multiplied, and the weights no longer sum to 1."""
    network = load_network('deit_tiny', save(spatial), spatial_token=True, **TINY)
    weights, masks = [], []
    logits, seen = torch_forward(spatial, inputs_of(), attention=(weights, masks))
    found, endpoints = network.apply(network.state, inputs_of())
    close(found, logits)
    close(endpoints['norm'], seen[-1][:, 1:-1].reshape(2, GRID, GRID, WIDTH))
    shown = [n for n in network.endpoints() if n.endswith('mask')]
    assert shown == ['block2/mask', 'block3/mask', 'block4/mask']
    for name, mask in zip(shown, masks, strict=True):
        close(endpoints[name], mask[:, 1:-1].reshape(2, GRID, GRID, 1))
    attention = endpoints['block4/attention']
    assert attention.shape == (2, GRID, GRID, 2 + GRID**2)
    close(attention.reshape(2, GRID**2, -1), weights[3][:, :, 1:-1].transpose(1, 2))


def test_a_spatial_token_starts_from_weights_without_it(tensors, save, caplog):
    with pytest.raises(WeightsError, match=r'2 missing \(spatial_embed, spatial_token\)'):
        load_network('deit_tiny', save(tensors), spatial_token=True, **TINY)
    with caplog.at_level(logging.WARNING):
        network = load_network('deit_tiny', save(tensors), CLASSES, spatial_token=True, **TINY)
    assert 'missing: spatial_token' in caplog.text
    assert 0 < np.abs(network.state['spatial_token'][...]).max() <= 0.05


@pytest.mark.slow
def test_images_do_not_mix(network):
    both, endpoints = network.apply(network.state, inputs_of())
    for row in range(2):
        one, own = network.apply(network.state, inputs_of()[row : row + 1])
        np.testing.assert_allclose(one[0], both[row], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own['block3'][0], endpoints['block3'][row], rtol=1e-4, atol=1e-5)


def test_endpoints_and_the_layers_by_default(network):
    shape = (GRID, GRID, WIDTH)
    shown = {f'{n}/attention': (GRID, GRID, 1 + GRID**2) for n in BLOCKS}
    assert network.endpoints() == dict.fromkeys([*BLOCKS, 'norm'], shape) | shown
    assert network.layers() == ('block1', 'block2', 'block3')
    assert network.last_layer == 'norm'
    assert network.input_shape == (SIDE, SIDE, 3)


def test_perturbations_are_added_on_the_patches(network):
    step = jax.random.normal(jax.random.key(0), (2, GRID, GRID, WIDTH))
    plain, before = network.apply(network.state, inputs_of())
    moved, after = network.apply(network.state, inputs_of(), {'block1': step})
    np.testing.assert_allclose(after['block1'], before['block1'] + step, rtol=1e-5, atol=1e-5)
    assert not np.allclose(moved, plain, atol=1e-2)
    for name in ('block4', 'norm'):  # the classifier reads the class token alone
        same, _ = network.apply(network.state, inputs_of(), {name: step})
        np.testing.assert_array_equal(same, plain)


@pytest.mark.slow
def test_default_layers_work_and_others_are_told(network):
    images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    found = localize(network, images, ('grad_cam',))
    assert list(found.maps) == [('grad_cam', n) for n in BLOCKS[:-1]]
    assert np.isfinite(found.maps['grad_cam', 'block1']).all()
    with pytest.raises(ValueError, match="layer 'block4' is zero everywhere"):
        localize(network, images, ('grad_cam',), ('block4',))
    with pytest.raises(ValueError, match="'block2/attention' can be read alone"):
        localize(network, images, ('grad_cam',), ('block2/attention',))
    with pytest.raises(ValueError, match=r'cam .*by its class token: ask for grad_cam'):
        localize(network, images, ('cam',))


@pytest.mark.parametrize('grid', [(4, 4), (7, 7), (3, 6), (2, 2)])
def test_positions_are_resized_as_timm_does(grid):
    positions = np.random.default_rng(0).normal(size=(1, 16, 5)).astype(np.float32)
    square = torch.from_numpy(positions).reshape(1, 4, 4, 5).permute(0, 3, 1, 2)
    resized = F.interpolate(square, grid, mode='bicubic', antialias=True, align_corners=False)
    got = resized_positions(jnp.asarray(positions), grid)
    close(got, resized.permute(0, 2, 3, 1).reshape(1, -1, 5))


@pytest.mark.slow
def test_other_sizes_use_resized_positions(network, tensors):
    grid = (3, 6)
    positions = resized_positions(tensors['pos_embed'][:, 1:], grid)
    resized = np.concatenate([tensors['pos_embed'][:, :1], positions], axis=1)
    inputs = inputs_of(1, PATCH * grid[0], PATCH * grid[1])
    logits, _ = torch_forward(tensors | {'pos_embed': resized}, inputs)
    got, endpoints = network.apply(network.state, inputs)
    close(got, logits)
    assert endpoints['block1'].shape == (1, *grid, WIDTH)
    assert network.endpoints((24, 48))['block2'] == (*grid, WIDTH)


def test_size_that_is_no_multiple_of_a_patch(network):
    message = 'inputs of 36 x 30 pixels: both sides must be multiples of 8.*; 32 x 32 would be'
    with pytest.raises(ValueError, match=message):
        network.endpoints((36, 30))


@pytest.mark.slow
def test_bfloat16_is_near(network):
    module = network.apply.thaw(network.state)
    for _, part in nnx.iter_modules(module):
        if hasattr(part, 'dtype'):
            part.dtype = jnp.bfloat16
    exact, _ = network.apply(network.state, inputs_of())
    logits, endpoints = module(inputs_of())
    assert {endpoints[n].dtype for n in BLOCKS} == {jnp.dtype('bfloat16')}
    difference = np.abs(np.asarray(logits, np.float32) - exact).max()
    assert 0 < difference < 0.1 * np.abs(exact).max()


def test_strict_loading(tensors, save):
    without = {k: v for k, v in tensors.items() if k not in ('cls_token', 'norm.bias')}
    with pytest.raises(WeightsError, match=r'2 missing \(cls_token, norm.bias\)'):
        load_network('deit_tiny', save(without), **TINY)
    with pytest.raises(WeightsError, match=r'1 left over \(dist_token\)'):
        load_network('deit_tiny', save(tensors | {'dist_token': tensors['cls_token']}), **TINY)
    with pytest.raises(WeightsError, match=r'1 of another shape \(pos_embed\)'):
        load_network('deit_tiny', save(tensors), **TINY | {'image_size': 40})


def test_weights_without_a_head(tensors, save, caplog):
    """Those of DINO."""
    path = save({k: v for k, v in tensors.items() if not k.startswith('head')})
    with pytest.raises(WeightsError, match=r"no 'head.bias', so .*give num_classes"):
        load_network('vit_small', path, **TINY)
    with caplog.at_level(logging.WARNING):
        network = load_network('vit_small', path, num_classes=9, **TINY)
    assert 'missing: head.kernel' in caplog.text
    assert network.num_classes == 9
    np.testing.assert_array_equal(network.state['cls_token'][...], tensors['cls_token'])
    kernel = network.state['blocks'][1]['attn']['qkv']['kernel'][...]
    np.testing.assert_array_equal(kernel, tensors['blocks.1.attn.qkv.weight'].T)


def test_preprocessing_that_depends_on_the_weights(tensors, save, caplog):
    path = save(tensors)
    with caplog.at_level(logging.WARNING):
        assert find_preprocessing('deit_tiny', path) == find_preprocessing('deit_tiny')
        assert not caplog.text
        find_preprocessing('vit_small', path)
    assert "'imagenet' is assumed" in caplog.text
    assert "others need 'symmetric'" in caplog.text


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'width': 100, 'heads': 3}, 'width 100 must be a multiple of heads, 3'),
        ({'patch': 15}, 'image_size 224 must be a multiple of patch, 15'),
        ({'drop_path': 1.0}, r'drop_path 1.0 must be in \[0, 1\)'),
        ({'spatial_token': 1}, 'spatial_token must be True or False, got 1'),
        ({'depth': 0}, 'depth of deit_tiny must be a whole number from 1'),
        ({'dept': 3}, "unknown option of deit_tiny 'dept'; did you mean 'depth'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build('deit_tiny', 5, nnx.Rngs(0), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'count'),
    [  # as timm counts them
        ('deit_tiny', 5_717_416),
        ('deit_small', 22_050_664),
        ('vit_base', 86_567_656),
    ],
)
def test_parameter_counts_of_transformers(name, count):
    module = nnx.eval_shape(lambda: build(name, 1000, nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))) == count
    network = as_network(name, module)
    assert network.layers() == tuple(f'block{i}' for i in range(1, 12))
    assert network.endpoints()['block12'][:2] == (14, 14)


def test_stochastic_depth():
    """In training an image passes a branch by or not, as a whole, in inference none does."""
    module = build('vit_tiny', CLASSES, nnx.Rngs(0), drop_path=0.5, **TINY)
    rates = [b.drop_path1.rate if b.drop_path1 else 0 for b in module.blocks]
    assert np.allclose(rates, [0, 1 / 6, 1 / 3, 0.5])
    drop = module.blocks[3].drop_path1
    kept = drop(jnp.ones((400, 3, 2)))
    each = np.asarray(kept).reshape(400, -1)
    assert set(np.unique(each)) == {0.0, 2.0}
    np.testing.assert_array_equal(each.min(axis=1), each.max(axis=1))
    assert 0.4 < (each[:, 0] > 0).mean() < 0.6
    others = module.blocks[3].drop_path2(jnp.ones((400, 3, 2)))
    assert (np.asarray(others) != np.asarray(kept)).any()
    module.eval()
    np.testing.assert_array_equal(module(inputs_of())[0], module(inputs_of())[0])
    plain = build('vit_tiny', CLASSES, nnx.Rngs(0), **TINY)
    names = [nnx.to_flat_state(nnx.state(m, nnx.Param)) for m in (module, plain)]
    assert [k for k, _ in names[0]] == [k for k, _ in names[1]]


@pytest.mark.slow
def test_listed_accuracy_of_deit_tiny(fully_optimized):
    """69.3 % and 93.7 % of imagenette's val and test (data/README.md)."""
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('no WSOL_DATA')
    data = Path(os.environ['WSOL_DATA'])
    network = load_network('deit_tiny', data / 'weights' / 'deit_tiny_patch16_224.safetensors')
    run, ranks = jax.jit(lambda s, x: network.apply(s, network.preprocessing(x))[0]), []
    for split in ('val', 'test'):
        source = open_source('wsol_folder', data / 'imagenette', split, class_index=True)
        for batch in evaluation_batches(source, 224, 50, targets=Labels()):
            logits = np.asarray(run(network.state, batch.images))[batch.valid]
            own = np.take_along_axis(logits, batch.targets['labels'][batch.valid], axis=1)
            ranks += (logits > own).sum(axis=1).tolist()
    assert len(ranks) == 300
    assert round(100 * np.mean(np.equal(ranks, 0)), 1) == 69.3
    assert round(100 * np.mean(np.less(ranks, 5)), 1) == 93.7

"""Third-party Flax models as networks, against the same models split by hand."""

import logging
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from wsol_jax.localization.localize import localize
from wsol_jax.models import Preprocessing
from wsol_jax.models.adapters import from_function, from_linen, from_nnx
from wsol_jax.models.layers import Endpoints
from wsol_jax.models.network import Network

UNIT = Preprocessing((0.0,) * 3, (255.0,) * 3)
SIZE = 32
HOW = {'input_size': SIZE, 'preprocessing': UNIT}


class LinenBlock(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x, train):
        x = linen.Conv(self.features, (3, 3), strides=2)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dropout(0.5, deterministic=not train)(linen.gelu(x))


class LinenCNN(linen.Module):
    classes: int = 5

    @linen.compact
    def __call__(self, x, train: bool = True):
        x = linen.relu(linen.Conv(6, (3, 3), strides=2, name='stem')(x))
        x = LinenBlock(8, name='block1')(x, train)
        x = LinenBlock(10, name='block2')(x, train)
        x = linen.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return linen.Dense(self.classes, name='head')(x)


class EncoderBlock(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic):
        y = linen.LayerNorm()(x)
        attention = linen.MultiHeadDotProductAttention(2, dropout_rate=0.5, name='attention')
        x = x + attention(y, deterministic=deterministic)
        y = linen.gelu(linen.Dense(24)(linen.LayerNorm()(x)))
        return x + linen.Dropout(0.5)(linen.Dense(12)(y), deterministic=deterministic)


class Encoder(linen.Module):
    depth: int = 2

    @linen.compact
    def __call__(self, x, deterministic):
        shape = (1, *x.shape[1:])
        x = x + self.param('positions', linen.initializers.normal(0.5), shape)
        for i in range(self.depth):
            x = EncoderBlock(name=f'block_{i}')(x, deterministic)
        return x


class LinenViT(linen.Module):
    """Mean of the tokens, then a linear head; `registers` tokens stand in front."""

    registers: int = 0
    depth: int = 2

    @linen.compact
    def __call__(self, x, *, deterministic=False):
        x = linen.Conv(12, (8, 8), strides=8, name='embed')(x)
        x = x.reshape(len(x), -1, 12)
        front = jnp.ones((len(x), self.registers, 12), x.dtype)
        x = Encoder(self.depth, name='encoder')(jnp.concatenate([front, x], axis=1), deterministic)
        return linen.Dense(5, name='head')(x.mean(1))


class Block(nnx.Module):
    def __init__(self, width, out, rngs):
        self.conv = nnx.Conv(width, out, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(out, rngs=rngs)
        self.shortcut = nnx.Conv(width, out, (1, 1), strides=2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return nnx.gelu(self.shortcut(x) + self.drop(self.norm(self.conv(x))))


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Sequential(nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs), nnx.relu)
        stages = [[Block(6, 8, rngs)], [Block(8, 10, rngs)]]
        self.stages = nnx.List([nnx.List(blocks) for blocks in stages])
        self.head = nnx.Sequential(nnx.Dropout(0.5, rngs=rngs), nnx.Linear(10, 5, rngs=rngs))

    def __call__(self, x):
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(x.mean((1, 2)))


class NnxEncoderBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, dropout_rate=0.5, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(12, rngs=rngs)
        self.mlp = nnx.data([nnx.Linear(12, 24, rngs=rngs), nnx.Linear(24, 12, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        first, second = self.mlp
        return x + self.dropout(second(nnx.gelu(first(self.norm2(x)))))


class NnxViT(nnx.Module):
    """The head reads the class token alone."""

    def __init__(self, rngs):
        self.embed = nnx.Conv(3, 12, (8, 8), strides=8, rngs=rngs)
        self.token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, 12)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (1, 17, 12)))
        self.blocks = nnx.List([NnxEncoderBlock(rngs) for _ in range(3)])
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x.reshape(len(x), -1, 12)
        x = jnp.concatenate([jnp.tile(self.token[...], (len(x), 1, 1)), x], axis=1)
        x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def drawn(path, leaf, seed=7):
    """A value for a variable of this shape; drawn on the host, so nothing is compiled for it."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(seed)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.zeros(leaf.shape, leaf.dtype)
    name = jax.tree_util.keystr(path)
    rng = np.random.default_rng([seed, *name.encode()])
    positive = 'var' in name or 'scale' in name
    values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape) / 3
    return jnp.asarray(values, leaf.dtype)


def initialize(module, **options):
    """The variables of a Linen module, drawn."""

    def init(images):
        return module.init(jax.random.key(1), images, **options)

    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.tree.map_with_path(drawn, jax.eval_shape(init, images))


def construct(kind):
    """An NNX module in training mode, as its constructor leaves it, its variables drawn."""
    module = nnx.eval_shape(lambda: kind(nnx.Rngs(2)))
    nnx.update(module, jax.tree.map_with_path(drawn, nnx.state(module)))
    return module


@cache
def linen_model(kind):
    module = kind()
    return module, initialize(module, **off(module))


def off(module):
    return {'train': False} if isinstance(module, LinenCNN) else {'deterministic': True}


nnx_model = cache(construct)


def inference(module):
    copy = nnx.clone(module)
    copy.eval()
    return copy


@dataclass(eq=False)
class Split:
    """A model cut at two layers: what comes in front of each, and what behind, by hand.

    `head` takes inputs to the layer's output as the model has it, `tail` from there to logits.
    """

    network: Network
    shapes: dict[str, tuple[int, int, int]]
    heads: dict[str, Any]
    tails: dict[str, Any]
    prefix: int = 0


def split_linen_cnn():
    module, variables = linen_model(LinenCNN)
    p, s = variables['params'], variables['batch_stats']

    def convolve(x, part):
        return (
            jax.lax.conv_general_dilated(
                x, part['kernel'], (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
            + part['bias']
        )

    def block(x, name):
        x = convolve(x, p[name]['Conv_0'])
        norm, stats = p[name]['BatchNorm_0'], s[name]['BatchNorm_0']
        x = (x - stats['mean']) / jnp.sqrt(stats['var'] + 1e-5) * norm['scale'] + norm['bias']
        return jax.nn.gelu(x)

    def head(x):
        return x.mean((1, 2)) @ p['head']['kernel'] + p['head']['bias']

    def first(x):
        return block(jax.nn.relu(convolve(x, p['stem'])), 'block1')

    return Split(
        from_linen(module, variables, ('block1', 'block2'), **HOW),
        {'block1': (8, 8, 8), 'block2': (4, 4, 10)},
        {'block1': first, 'block2': lambda x: block(first(x), 'block2')},
        {'block1': lambda x: head(block(x, 'block2')), 'block2': head},
    )


def split_linen_vit():
    module, variables = linen_model(LinenViT)
    p = variables['params']

    def block(x, i):
        return EncoderBlock().apply({'params': p['encoder'][f'block_{i}']}, x, True)

    def first(x):
        patches = x.reshape(len(x), 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
        x = patches.reshape(len(x), 16, -1) @ p['embed']['kernel'].reshape(-1, 12)
        return block(x + p['embed']['bias'] + p['encoder']['positions'], 0)

    def head(x):
        return x.mean(1) @ p['head']['kernel'] + p['head']['bias']

    names = ('encoder/block_0', 'encoder/block_1')
    return Split(
        from_linen(module, variables, names, **HOW),
        dict.fromkeys(names, (4, 4, 12)),
        {names[0]: first, names[1]: lambda x: block(first(x), 1)},
        {names[0]: lambda x: head(block(x, 1)), names[1]: head},
    )


def split_nnx_cnn():
    module = nnx_model(NnxCNN)
    m = inference(module)

    def first(x):
        return m.stages[0][0](m.stem(x))

    def head(x):
        return m.head(x.mean((1, 2)))

    return Split(
        from_nnx(module, ('stages/0/0', 'stages/1/0'), **HOW),
        {'stages/0/0': (8, 8, 8), 'stages/1/0': (4, 4, 10)},
        {'stages/0/0': first, 'stages/1/0': lambda x: m.stages[1][0](first(x))},
        {'stages/0/0': lambda x: head(m.stages[1][0](x)), 'stages/1/0': head},
    )


def split_nnx_vit():
    module = nnx_model(NnxViT)
    m = inference(module)

    def first(x):
        x = m.embed(x).reshape(len(x), 16, 12)
        token = jnp.broadcast_to(m.token[...], (len(x), 1, 12))
        return m.blocks[0](jnp.concatenate([token, x], 1) + m.positions[...])

    def head(x):
        return m.head(m.norm(x[:, 0]))

    return Split(
        from_nnx(module, ('blocks/0', 'blocks/1'), **HOW),
        {'blocks/0': (4, 4, 12), 'blocks/1': (4, 4, 12)},
        {'blocks/0': first, 'blocks/1': lambda x: m.blocks[1](first(x))},
        {
            'blocks/0': lambda x: head(m.blocks[2](m.blocks[1](x))),
            'blocks/1': lambda x: head(m.blocks[2](x)),
        },
        prefix=1,
    )


SPLITS = {
    'linen_cnn': split_linen_cnn,
    'linen_vit': split_linen_vit,
    'nnx_cnn': split_nnx_cnn,
    'nnx_vit': split_nnx_vit,
}


@pytest.fixture(scope='module', params=SPLITS)
def split(request):
    return SPLITS[request.param]()


@cache
def inputs_of():
    return jnp.asarray(draw_pictures(), jnp.float32) / 255


def draw_pictures():
    """Three uint8 images of 32 x 32 pixels."""
    return np.random.default_rng(4).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope='module')
def pictures():
    return draw_pictures()


@pytest.fixture(scope='module')
def inputs():
    return inputs_of()


def run(network, inputs, perturb=None):
    return jax.jit(network.apply)(network.state, inputs, perturb)


def close(actual, expected, tolerance=2e-5):
    expected = np.asarray(expected, np.float64)
    assert np.ptp(expected) > 0
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=atol)


CLASSES = np.array([3, 0, 4])


@cache
def by_hand(split, layer):
    """Of each image alone: logits, activations, gradients of class score and of softmax."""

    @jax.jit
    def differentiate(image, c):
        x = split.heads[layer](image)
        logits, pull_back = jax.vjp(split.tails[layer], x)
        (g,), (q,) = pull_back(jnp.eye(5)[c][None]), pull_back(jax.nn.softmax(logits))
        maps = [y[0, split.prefix :] if y.ndim == 3 else y[0] for y in (x, g, q)]
        return logits[0], *(m.reshape(split.shapes[layer]) for m in maps)

    rows = [differentiate(x[None], c) for x, c in zip(inputs_of(), CLASSES, strict=True)]
    return [np.asarray(jnp.stack(column), np.float64) for column in zip(*rows, strict=True)]


def test_what_the_network_says_of_itself(split):
    network = split.network
    assert network.endpoints() == split.shapes
    assert network.layers() == tuple(split.shapes)
    assert network.last_layer == list(split.shapes)[-1]
    assert network.num_classes == 5
    assert network.input_size == SIZE


@pytest.mark.slow
def test_logits_activations_and_gradients_are_those_of_the_split_model(split, inputs):
    network = split.network
    zeros = {n: jnp.zeros((3, *shape)) for n, shape in split.shapes.items()}

    @jax.jit
    def differentiate(state, inputs, perturb):
        def scores(perturb):
            logits, endpoints = network.apply(state, inputs, perturb)
            return logits[jnp.arange(3), CLASSES].sum(), (logits, endpoints)

        gradients, seen = jax.grad(scores, has_aux=True)(perturb)
        return gradients, *seen

    gradients, logits, endpoints = differentiate(network.state, inputs, zeros)
    for layer in split.shapes:
        hand_logits, x, g, _ = by_hand(split, layer)
        close(logits, hand_logits)
        close(endpoints[layer], x)
        close(gradients[layer], g)


@pytest.mark.slow
def test_a_perturbation_is_added_at_its_layer(split, inputs):
    layer = next(iter(split.shapes))
    step = jax.random.normal(jax.random.key(5), (3, *split.shapes[layer]))
    logits, endpoints = run(split.network, inputs, {layer: step})
    x = jax.jit(split.heads[layer])(inputs)
    flat = step.reshape(3, 16, -1) if x.ndim == 3 else step
    front = [(0, 0)] * x.ndim
    front[1] = (split.prefix, 0)
    moved = x + jnp.pad(flat, front)
    close(logits, jax.jit(split.tails[layer])(moved))
    close(endpoints[layer], moved[:, split.prefix :].reshape(step.shape))


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=(1, 2, 3), keepdims=True))


@pytest.mark.slow
def test_localize_end_to_end(split, pictures):
    methods = ('dgl', 'grad_cam', 'layer_cam')
    result = localize(split.network, pictures, methods, tuple(split.shapes), CLASSES)
    assert all(m.dtype == jnp.float32 for m in result.maps.values())
    for layer in split.shapes:
        logits, s, g, q = by_hand(split, layer)
        close(result.logits, logits)
        close(result.maps['dgl', layer], np.sum(g * (unit(s) - unit(q - 10 * g)), -1), 1e-4)
        close(result.maps['grad_cam', layer], np.sum(g.mean((1, 2), keepdims=True) * s, -1), 1e-4)
        close(result.maps['layer_cam', layer], np.sum(np.maximum(g, 0) * s, -1), 1e-4)


@pytest.mark.slow
def test_a_batch_is_its_single_images(split, pictures):
    layer = next(iter(split.shapes))
    maps_of = partial(localize, split.network, methods=('grad_cam',), layers=(layer,))
    batch = maps_of(pictures, classes=CLASSES).maps['grad_cam', layer]
    for i, c in enumerate(CLASSES):
        single = maps_of(pictures[i : i + 1], classes=int(c)).maps['grad_cam', layer]
        close(single[0], batch[i], 1e-4)


def test_perturbation_of_another_batch_is_refused(split, inputs):
    layer, shape = next(iter(split.shapes.items()))
    with pytest.raises(ValueError, match=rf"'{layer}' has shape \(1, .*must be.*\(3, "):
        perturb = {layer: jnp.zeros((1, *shape))}
        jax.eval_shape(split.network.apply, split.network.state, inputs, perturb)
    with pytest.raises(ValueError, match=r"unknown endpoint 'blocc"):
        perturb = {'blocc': jnp.zeros(())}
        jax.eval_shape(split.network.apply, split.network.state, inputs, perturb)


def test_nothing_traced_stays_behind(split, inputs):
    with jax.checking_leaks():
        jax.eval_shape(split.network.apply, split.network.state, inputs)


def test_patches_behind_the_last_read_of_a_class_token_have_no_gradient(pictures):
    network = from_nnx(nnx_model(NnxViT), ('blocks/1', 'blocks/2'), **HOW)
    assert network.last_layer == 'blocks/2'
    with pytest.raises(ValueError, match=r"layer 'blocks/2' is zero everywhere"):
        localize(network, pictures, ('grad_cam',))
    earlier = localize(network, pictures, ('grad_cam',), ('blocks/1',)).maps['grad_cam', 'blocks/1']
    assert np.isfinite(earlier).all() and (np.ptp(earlier, axis=(1, 2)) > 1e-6).all()


class LinenClassToken(linen.Module):
    """Everything is inside one encoder; the head reads the class token."""

    @linen.compact
    def __call__(self, x, *, deterministic=False):
        x = linen.Conv(12, (8, 8), strides=8, name='embed')(x).reshape(len(x), -1, 12)
        token = self.param('token', linen.initializers.normal(0.5), (1, 1, 12))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = Encoder(2, name='encoder')(x, deterministic)
        return linen.Dense(5, name='head')(x[:, 0])


def warned(caplog, wrap):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger='absl'):
        network = wrap()
    return network, [r.getMessage() for r in caplog.records if r.name == 'absl']


@pytest.mark.slow
def test_the_last_block_behind_a_class_token_is_passed_over(pictures, caplog):
    network, lines = warned(caplog, lambda: from_nnx(nnx_model(NnxViT), **HOW))
    assert lines == [
        "NnxViT: no class score depends on the patches at 'blocks/2', 'norm', as where the head "
        'reads the class token alone: passed over unless layers= names it'
    ]
    assert network.layers() == ('embed', 'blocks/0', 'blocks/1')
    assert network.last_layer == 'blocks/1'
    result = localize(network, pictures, ('grad_cam', 'dgl'))
    assert {layer for _, layer in result.maps} == set(network.layers())
    assert all(np.ptp(m) > 0 for m in result.maps.values())
    # Asked for by name it is an error still, as is the norm.
    for layer in ('blocks/2', 'norm'):
        with pytest.raises(ValueError, match=rf"layer '{layer}' is zero everywhere"):
            localize(network, pictures, ('grad_cam',), (layer,))


@pytest.mark.slow
def test_the_parts_of_an_encoder_that_is_passed_over_whole(caplog):
    module = LinenClassToken()
    wrap = partial(from_linen, module, initialize(module, deterministic=True), **HOW)
    network, lines = warned(caplog, wrap)
    assert len(lines) == 1 and "patches at 'encoder', as" in lines[0]
    assert network.layers() == ('embed', 'encoder/block_0')


def test_nothing_is_passed_over_where_every_token_is_read_or_nothing_is(caplog):
    module = LinenViT(registers=9, depth=1)
    variables = initialize(module, deterministic=True)
    wrap = partial(from_linen, module, tokens=((4, 4), 9), **HOW)
    network, lines = warned(caplog, lambda: wrap(variables))
    assert lines == [] and network.layers() == ('embed', 'encoder')
    # A head of zeros, as some start training with.
    zeros = jax.tree.map(jnp.zeros_like, variables['params']['head'])
    variables = {'params': variables['params'] | {'head': zeros}}
    network, lines = warned(caplog, lambda: wrap(variables))
    assert lines == [] and network.layers() == ('embed', 'encoder')


def test_every_linen_layer_in_order_of_execution():
    module, variables = linen_model(LinenViT)
    network = from_linen(module, variables, **HOW)
    square = (4, 4, 12)
    block = {
        'LayerNorm_0': square,
        'attention/out': square,
        'attention': square,
        'LayerNorm_1': square,
        'Dense_0': (4, 4, 24),
        'Dense_1': square,
        'Dropout_0': square,
    }
    expected = {'embed': square}
    for i in range(2):
        expected |= {f'encoder/block_{i}/{name}': shape for name, shape in block.items()}
        expected[f'encoder/block_{i}'] = square
    expected['encoder'] = square
    assert list(network.endpoints().items()) == list(expected.items())
    assert network.layers() == ('embed', 'encoder')
    assert network.last_layer == 'encoder'


def test_every_nnx_layer_in_order_of_execution():
    network = from_nnx(nnx_model(NnxCNN), **HOW)
    first, second = (8, 8, 8), (4, 4, 10)
    parts = ('shortcut', 'conv', 'norm', 'drop')
    expected = {'stem/layers/0': (16, 16, 6), 'stem': (16, 16, 6)}
    for i, shape in enumerate((first, second)):
        expected |= {f'stages/{i}/0/{part}': shape for part in parts} | {f'stages/{i}/0': shape}
    assert list(network.endpoints().items()) == list(expected.items())
    assert network.layers() == ('stem', 'stages/0/0', 'stages/1/0')
    assert network.last_layer == 'stages/1/0'
    assert network.endpoints(64)['stages/1/0'] == (8, 8, 10)


def test_dropout_that_is_called_twice_is_no_layer_of_its_own():
    network = from_nnx(nnx_model(NnxViT), **HOW)
    assert 'blocks/0/mlp/1' in network.endpoints()
    assert 'blocks/0/dropout' not in network.endpoints()
    with pytest.raises(ValueError, match=r"NnxViT: layer 'blocks/0/dropout' is called 2 times"):
        from_nnx(nnx_model(NnxViT), ('blocks/0/dropout',), **HOW)


def test_named_layers_are_all_main_ones():
    module = nnx_model(NnxCNN)
    names = ('stages/1/0', 'stages/1/0/conv')
    network = from_nnx(module, names, last_layer='stages/1/0/conv', **HOW)
    assert network.layers() == ('stages/1/0/conv', 'stages/1/0')
    assert network.last_layer == 'stages/1/0/conv'
    assert from_nnx(module, names, **HOW).last_layer == 'stages/1/0'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'layers': ('stages/1/o',)},
            r"NnxCNN: unknown layer 'stages/1/o'; did you mean 'stages/1",
        ),
        ({'layers': 'stem'}, r"layers must be a sequence such as \('stem',\)"),
        ({'layers': ('head',)}, r"layer 'head' returns \[2, 5\] for images \[2, 32, 32, 3\]"),
        (
            {'last_layer': 'stages/1'},
            r"unknown layer of NnxCNN 'stages/1'; did you mean 'stages/1/0",
        ),
        ({'call_options': {'trian': False}}, r"unknown call option 'trian'"),
        (
            {'tokens': (4, 4)},
            r'tokens must be \(\(H, W\), number of tokens in front\), got \(4, 4\)',
        ),
        ({'output': lambda logits: logits[0]}, r'arrays \[\[5\]\], not logits \[2,C\]'),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        from_nnx(nnx_model(NnxCNN), **(HOW | options))


def test_linen_variables_need_their_collections():
    module, variables = linen_model(LinenCNN)
    with pytest.raises(ValueError, match=r'must be the collections.*\[.*head.*\]'):
        from_linen(module, variables['params'], **HOW)


# Modes


def test_the_users_module_is_left_alone(inputs):
    module = construct(NnxCNN)
    classes = {type(m) for _, m in nnx.iter_modules(module)}
    types = [type(m) for _, m in nnx.iter_modules(module)]
    attributes = {c: dict(vars(c)) for c in classes}
    graph, state = nnx.split(module)
    network = from_nnx(module, **HOW)
    before, _ = run(network, inputs)
    assert nnx.split(module)[0] == graph
    assert [type(m) for _, m in nnx.iter_modules(module)] == types
    assert {c: dict(vars(c)) for c in classes} == attributes
    assert not module.stages[0][0].norm.use_running_average
    assert not module.head.layers[0].deterministic
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(nnx.state(module)), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(x), jax.random.key_data(y)) if (
            jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        ) else np.testing.assert_array_equal(x, y)
    module.head.layers[1].bias[...] += 100.0
    after, _ = run(network, inputs)
    np.testing.assert_array_equal(before, after)


def test_a_registry_of_subclasses_hears_nothing():
    registry = {}

    class Registered(nnx.Module):
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            registry[cls.__name__] = cls

    class Layer(Registered):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)

        def __call__(self, x):
            return self.conv(x)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = Layer(rngs)

        def __call__(self, x):
            assert isinstance(self.layer, Layer) and type(self.layer).__name__ == 'Layer'
            return self.layer(x).mean((1, 2))

    network = from_nnx(construct(Model), **HOW)
    assert list(network.endpoints()) == ['layer/conv', 'layer']
    assert registry == {'Layer': Layer}


class Augmenting(linen.Module):
    """Its flag has a name of its own."""

    part: str

    @linen.compact
    def __call__(self, x, augment=True):
        x = linen.Conv(4, (3, 3), strides=4)(x)
        if self.part == 'dropout':
            x = linen.Dropout(0.5)(x, deterministic=not augment)
        else:
            x = linen.BatchNorm(use_running_average=not augment)(x)
        return x.mean((1, 2))


class NnxAugmenting(nnx.Module):
    def __init__(self, part, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=4, rngs=rngs)
        self.part = part
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x, augment=True):
        x = self.conv(x)
        if self.part == 'dropout':
            x = self.dropout(x, deterministic=not augment)
        else:
            x = self.norm(x, use_running_average=not augment)
        return x.mean((1, 2))


def augmenting(flax, part):
    """The adapter without its call options; name of the convolution; mean, var, scale, bias."""
    if flax == 'nnx':
        module = construct(partial(NnxAugmenting, part))
        norm = [getattr(module.norm, k)[...] for k in ('mean', 'var', 'scale', 'bias')]
        return partial(from_nnx, module, **HOW), 'conv', norm
    module = Augmenting(part)
    variables = initialize(module, augment=False)
    merged = {k: v for group in variables.values() for k, v in group.get('BatchNorm_0', {}).items()}
    norm = [merged.get(k) for k in ('mean', 'var', 'scale', 'bias')]
    return partial(from_linen, module, variables, **HOW), 'Conv_0', norm


@pytest.mark.parametrize('flax', ['linen', 'nnx'])
@pytest.mark.parametrize(('part', 'culprit'), [('dropout', '[Dd]ropout'), ('norm', 'mean')])
def test_training_mode_is_an_error_until_it_is_turned_off(flax, part, culprit, inputs):
    wrap, conv, (mean, var, scale, bias) = augmenting(flax, part)
    with pytest.raises(ValueError, match=rf'in training mode: .*{culprit}.*call_options='):
        wrap()
    network = wrap(call_options={'augment': False})
    logits, endpoints = run(network, inputs)
    x = endpoints[conv]
    if part == 'norm':
        x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    close(logits, x.mean((1, 2)))


def test_flags_of_every_name_are_set_unless_the_user_sets_them(inputs):
    class Flags(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)

        def __call__(
            self,
            x,
            *,
            train=None,
            training=None,
            is_training=None,
            deterministic=None,
            use_running_average=None,
            scale=1.0,
        ):
            assert (training, is_training) == (False, False)
            assert (deterministic, use_running_average) == (True, True)
            return scale * self.conv(x).mean((1, 2)) + (100.0 if train else 0.0)

    module = construct(Flags)
    given = {'scale': 2.0, 'train': True}
    plain, given = (
        run(from_nnx(module, call_options=options, **HOW), inputs)[0] for options in (None, given)
    )
    close(given, 2 * plain + 100)


# Outputs


@dataclass
class Result:
    logits: Any
    features: Any


@pytest.mark.parametrize(
    ('wrap', 'output'),
    [
        (lambda z, x: Result(z, x), None),
        (lambda z, x: (z, x), lambda result: result[0]),
        (lambda z, x: {'head': z}, lambda result: result['head']),
    ],
)
def test_outputs_that_are_not_plain_logits(wrap, output, inputs):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)

        def __call__(self, x):
            x = self.conv(x)
            return wrap(x.mean((1, 2)), x)

    network = from_nnx(construct(Model), output=output, **HOW)
    logits, endpoints = run(network, inputs)
    close(logits, endpoints['conv'].mean((1, 2)))
    if output:
        with pytest.raises(
            ValueError, match=r'Model: the output is (tuple|dict).*\[2, 5\].*output='
        ):
            from_nnx(construct(Model), **HOW)


def test_first_of_a_tuple_is_the_endpoint(inputs):
    class Part(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Conv(5, (3, 3))(x), 'attention'

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x, what = Part()(x)
            assert what == 'attention'
            return x.mean((1, 2))

    network = from_linen(Model(), initialize(Model()), ('Part_0',), **HOW)
    step = jnp.full((3, 32, 32, 5), 2.0)
    plain, moved = (run(network, inputs, p)[0] for p in (None, {'Part_0': step}))
    close(moved, plain + 2)


def test_maps_of_a_bfloat16_model_are_float32(pictures):
    module = linen.Sequential(
        [
            linen.Conv(4, (3, 3), strides=4, dtype=jnp.bfloat16),
            linen.relu,
            lambda x: x.mean((1, 2)),
            linen.Dense(3, dtype=jnp.bfloat16),
        ]
    )
    variables = initialize(module)
    network = from_linen(module, variables, **HOW)
    assert list(network.endpoints()) == ['layers_0']
    result = localize(network, pictures, ('dgl',))
    assert result.logits.dtype == result.maps['dgl', 'layers_0'].dtype == jnp.float32


# Tokens


def registers(count, **options):
    module = LinenViT(registers=count, depth=0)
    variables = initialize(module, deterministic=True)
    return module, variables, from_linen(module, variables, **(HOW | options))


def test_registers_need_their_number(inputs):
    layers = ('encoder',)
    message = (
        r"LinenViT: layer 'encoder' returns \[2, 21, 12\]: 21 tokens are not a square, .*"
        r'tokens=\(\(4, 4\), 5\)'
    )
    with pytest.raises(ValueError, match=message):
        registers(5, layers=layers)
    with pytest.raises(ValueError, match=r'21 tokens are not 16 \+ 4 as tokens='):
        registers(5, layers=layers, tokens=((4, 4), 4))
    module, variables, network = registers(5, layers=layers, tokens=((4, 4), 5))
    assert network.endpoints() == {'encoder': (4, 4, 12)}
    plain, _ = run(network, inputs)
    moved, _ = run(network, inputs, {'encoder': jnp.ones((3, 4, 4, 12))})
    # The head is the mean over 21 tokens, of which 16 have moved by one.
    weights = variables['params']['head']['kernel']
    close(moved - plain, np.tile(weights.sum(0) * 16 / 21, (3, 1)), 1e-4)
    close(plain, jax.jit(partial(module.apply, deterministic=True))(variables, inputs))


def test_without_any_map_the_error_shows_the_tokens():
    module = nnx.Sequential(
        lambda x: x.reshape(len(x), 8, -1),
        nnx.Linear(SIZE * SIZE * 3 // 8, 5, rngs=nnx.Rngs(0)),
        lambda x: x.mean(1),
    )
    message = r'no submodule returns .*; pass tokens=.* for layers/1 \[2, 8, 5\]'
    with pytest.raises(ValueError, match=message):
        from_nnx(module, **HOW)
    assert from_nnx(module, tokens=((2, 4), 0), **HOW).endpoints() == {'layers/1': (2, 4, 5)}


def test_what_has_no_batch_or_one_position_is_no_map():
    class Table(linen.Module):
        @linen.compact
        def __call__(self):
            return self.param('table', linen.initializers.ones, (1, 16, 6))

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(6, (8, 8), strides=8, name='embed')(x).reshape(len(x), 16, 6)
            x = linen.Dense(6, name='mix')(x + Table(name='positions')())
            gate = linen.Dense(6, name='gate')(x.mean(1, keepdims=True))
            return linen.Conv(5, (1, 1), name='head')((gate * x).mean(1)[:, None, None])[:, 0, 0]

    module, variables = Model(), initialize(Model())
    network = from_linen(module, variables, **HOW)
    assert list(network.endpoints()) == ['embed', 'mix']
    with pytest.raises(
        ValueError, match=r"layer 'positions' returns \[1, 16, 6\] for images \[2, "
    ):
        from_linen(module, variables, ('positions',), **HOW)


def test_a_grid_that_is_no_square(inputs):
    class Strips(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Conv(3, 6, (8, 4), strides=(8, 4), rngs=rngs)
            self.mix = nnx.Linear(6, 6, rngs=rngs)

        def __call__(self, x):
            x = self.embed(x)
            return self.mix(x.reshape(len(x), -1, 6)).mean(1)

    module = construct(Strips)
    network = from_nnx(module, ('mix',), tokens=((4, 8), 0), **HOW)
    _, endpoints = run(network, inputs)
    close(endpoints['mix'], module.mix(module.embed(inputs)))


def test_squares_are_not_guessed_for_images_that_are_none(inputs):
    class Patches(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Conv(3, 6, (8, 8), strides=8, rngs=rngs)
            self.mix = nnx.Linear(6, 6, rngs=rngs)

        def __call__(self, x):
            x = self.embed(x)
            return self.mix(x.reshape(len(x), -1, 6)).mean(1)

    module = construct(Patches)
    wide = jnp.concatenate([inputs[:, :16], inputs[:, :16]], axis=2)
    assert module.embed(wide).shape == (3, 2, 8, 6)
    network = from_nnx(module, ('mix',), **HOW)
    with pytest.raises(
        ValueError, match=r"layer 'mix' returns \[3, 16, 6\].*square images.*tokens="
    ):
        run(network, wide)
    told = from_nnx(module, ('embed',), **HOW)
    assert run(told, wide)[1]['embed'].shape == (3, 2, 8, 6)


# What modules do inside


def test_super_calls_and_shared_layers():
    class Base(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Conv(4, (3, 3))(x)

    class Derived(Base):
        @linen.compact
        def __call__(self, x):
            return 2 * super().__call__(x)

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = Derived(name='derived')(x)
            shared = linen.Conv(4, (3, 3), name='shared')
            return shared(shared(x)).mean((1, 2))

    module = Model()
    x = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE, 3))
    variables = initialize(module)
    network = from_linen(module, variables, **HOW)
    assert list(network.endpoints()) == ['derived/Conv_0', 'derived']
    _, endpoints = network.apply(variables, x)
    close(endpoints['derived'], 2 * endpoints['derived/Conv_0'])
    with pytest.raises(ValueError, match=r"Model: layer 'shared' is called 2 times"):
        from_linen(module, variables, ('shared',), **HOW)


def test_other_methods_than_the_call_are_no_layers():
    class Part(linen.Module):
        def setup(self):
            self.conv = linen.Conv(4, (3, 3))

        def __call__(self, x):
            return self.conv(x)

        def twice(self, x):
            return 2 * x

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            part = Part(name='part')
            return part.twice(part(x)).mean((1, 2))

    network = from_linen(Model(), initialize(Model()), **HOW)
    assert list(network.endpoints()) == ['part/conv', 'part']


def test_linen_blocks_under_remat(inputs):
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            x = linen.remat(LinenBlock, static_argnums=(2,))(5, name='block')(x, train)
            return linen.Conv(5, (1, 1), name='last')(x).mean((1, 2))

    module, variables = Model(), initialize(Model())
    network = from_linen(module, variables, **HOW)
    assert network.endpoints() == {'last': (16, 16, 5)}
    close(run(network, inputs)[0], jax.jit(module.apply)(variables, inputs))
    for name in ('block', 'block/Conv_0'):
        with pytest.raises(ValueError, match=f"layer '{name}' is called inside a transformation"):
            from_linen(module, variables, (name,), **HOW)


def test_nnx_blocks_under_remat(inputs):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.block = Block(6, 5, rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)

        def __call__(self, x):
            x = nnx.remat(lambda block, x: block(x))(self.block, self.stem(x))
            return self.norm(x).mean((1, 2))

    module = construct(Model)
    network = from_nnx(module, **HOW)
    assert network.endpoints() == {'stem': (32, 32, 6), 'norm': (16, 16, 5)}
    close(run(network, inputs)[0], inference(module)(inputs))
    with pytest.raises(ValueError, match=r"layer 'block' is called inside a transformation"):
        from_nnx(module, ('block',), **HOW)


# Functions


def test_a_function(toy, toy_images):
    def apply(inputs, perturb):
        return toy.apply(toy.state, inputs, perturb)

    network = from_function(apply, input_size=8, preprocessing=toy.preprocessing, name='mine')
    assert (network.name, network.num_classes) == ('mine', 6)
    assert network.endpoints() == toy.endpoints()
    assert (network.layers(), network.last_layer) == (('early', 'late'), 'late')
    ours, theirs = (localize(n, toy_images, ('dgl', 'cam')).maps for n in (network, toy))
    assert list(ours) == list(theirs)
    for key, m in theirs.items():
        close(ours[key], m)


def test_a_function_that_shows_no_maps():
    def apply(inputs, perturb):
        taps = Endpoints(perturb)
        x = taps.tap('pooled', inputs.mean((1, 2)))
        return x, taps.finish()

    with pytest.raises(
        ValueError, match=r"endpoint 'pooled' of function is \['B', 3\], not \[B,H,W,K\]"
    ):
        from_function(apply, **HOW)
    with pytest.raises(ValueError, match='function has no endpoints'):
        from_function(lambda inputs, perturb: (inputs.mean((1, 2)), {}), **HOW)
    with pytest.raises(ValueError, match=r'the logits are \[1\], not \[B,C\]'):
        from_function(lambda inputs, perturb: (inputs.mean((1, 2, 3)), {}), **HOW)


# A package of others


@pytest.mark.slow
def test_a_published_family_of_models(pictures, inputs):
    resnets = pytest.importorskip('jax_resnet', reason='jax-resnet is not installed')
    module = resnets.ResNet(
        resnets.ResNetBlock, stage_sizes=(1, 1), n_classes=5, hidden_sizes=(4, 6)
    )
    variables = initialize(module)
    # layers: stem, pooling, two blocks, mean, dense.
    network = from_linen(module, variables, ('layers_2', 'layers_3'), **HOW)
    assert network.endpoints() == {'layers_2': (8, 8, 4), 'layers_3': (4, 4, 6)}
    result = localize(network, pictures, ('grad_cam',), ('layers_2',), CLASSES)

    def part(start, end):
        layers = resnets.Sequential(module.layers[start:end])
        return partial(layers.apply, resnets.slice_variables(variables, start, end))

    activations = jax.jit(part(0, 3))(inputs)
    score = jax.jit(lambda x: part(3, 6)(x)[jnp.arange(3), CLASSES].sum())
    gradient = jax.grad(score)(activations)
    weights = gradient.mean((1, 2), keepdims=True)
    close(result.logits, jax.jit(module.apply)(variables, inputs))
    close(result.maps['grad_cam', 'layers_2'], (weights * activations).sum(-1), 1e-4)

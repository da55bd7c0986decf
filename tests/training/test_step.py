"""One compiled step: loss, statistics, what is frozen, precision, parts, moving average."""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError, TrainConfig
from wsol_jax.models import Network, Preprocessing, build, zoo
from wsol_jax.models.layers import Dropout, conv
from wsol_jax.parallel import local_devices
from wsol_jax.training import step as step_module
from wsol_jax.training.method import Shard, TrainedMethod
from wsol_jax.training.step import make_program, split_module

SETTING = TrainConfig(
    learning_rate=0.5, schedule='constant', warmup=0.0, momentum=0.5, weight_decay=0.01
)


class Tiny(nnx.Module):
    """Convolution, batch norm, dropout, mean, linear: all that training treats specially."""

    def __init__(self, rngs, norm=True, rate=0.5):
        self.conv = conv(3, 4, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.75, rngs=rngs) if norm else None
        self.dropout = Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, inputs, perturb=None):
        x = self.conv(inputs)
        x = nnx.relu(self.norm(x) if self.norm else x)
        return self.head(self.dropout(x).mean((1, 2))), {'x': x}


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 4, 4, 3), np.uint8)
LABELS = (np.arange(8) % 3).astype(np.int32)
BATCH = Shard(IMAGES, {'labels': LABELS[:, None]}, np.arange(8) < 6, np.arange(8) + 20)


@cache
def tiny_program(setting=SETTING, norm=True, rate=0.5):
    return program_of(setting, Tiny(nnx.Rngs(0), norm, rate))


def program_of(setting, module, method=None):
    facts = {'preprocessing': Preprocessing((128.0,) * 3, (64.0,) * 3), 'input_size': 4}
    network = Network.from_module(module, name='tiny', **facts)
    return compiled(setting, module, network, method), network


def compiled(setting, module, network, method=None):
    method = method or TrainedMethod(label_smoothing=setting.label_smoothing)
    devices = local_devices('jit')
    return make_program(setting, method, module, network.preprocessing, devices, 10, 5)


def one_step(program, state, batch=BATCH):
    """A step from a copy of a state, which is given up for the new one."""
    return program.step(jax.tree.map(jnp.copy, state), batch)


def steps_of(program):
    """The state after each of three steps, from the initial one, and what they reported."""
    states, sums = [program.initial], []
    for _ in range(3):
        state, more = one_step(program, states[-1])
        states.append(state)
        sums.append(more)
    return states, sums


def assert_close(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, two, **tolerance)


def cross_entropy(logits, smoothing):
    """Of BATCH's valid images, by the formula of Szegedy et al. 2015, section 7."""
    logits = np.asarray(logits, np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    return -(targets * logp).sum(-1)[:6].mean()


@pytest.mark.slow
@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_the_loss_is_the_mean_over_valid_images(smoothing):
    setting = replace(SETTING, label_smoothing=smoothing)
    program, network = tiny_program(setting, norm=False, rate=0.0)
    logits, _ = network(IMAGES)
    state, sums = one_step(program, program.initial)
    assert float(sums.mean_loss) == pytest.approx(cross_entropy(logits, smoothing), rel=1e-5)
    right = np.argmax(logits, -1) == LABELS
    assert sums.sums == {'accuracy': 100 * right[:6].sum()}
    assert (int(sums.images), int(state.step)) == (6, 1)


def test_images_that_are_not_valid_change_nothing():
    program, _ = tiny_program(norm=False)
    images, labels = IMAGES.copy(), LABELS.copy()
    images[6:], labels[6:] = 255 - images[6:], 2
    changed = BATCH._replace(images=images, targets={'labels': labels[:, None]})
    one, two = (one_step(program, program.initial, batch) for batch in (BATCH, changed))
    assert_close(one, two, rtol=0, atol=0)
    more = one_step(program, program.initial, changed._replace(valid=np.ones(8, bool)))
    assert float(more[1].mean_loss) != float(one[1].mean_loss)


def test_dropout_depends_on_seed_step_and_image():
    program, network = tiny_program(norm=False)
    state = program.initial

    def loss(program=program, step=0, batch=BATCH):
        return float(one_step(program, state._replace(step=jnp.int32(step)), batch)[1].mean_loss)

    assert loss() == loss() != loss(step=1)
    order = np.array([3, 0, 5, 1, 4, 2, 7, 6])
    assert loss(batch=jax.tree.map(lambda x: x[order], BATCH)) == pytest.approx(loss(), rel=1e-6)
    assert loss(batch=BATCH._replace(index=BATCH.index + 1)) != loss()
    other = Tiny(nnx.Rngs(0, dropout=1), norm=False)
    assert loss(program_of(SETTING, other)[0]) != loss()
    right = program.evaluate(state, BATCH)['accuracy']
    np.testing.assert_array_equal(right, 100 * (np.argmax(network(IMAGES)[0], -1) == LABELS))


def activations(program):
    layer = program.initial.params['conv']
    return np.asarray((IMAGES - 128.0) / 64 @ layer['kernel'][0, 0] + layer['bias'], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize('parts', [1, 2])
def test_batch_statistics_by_hand(parts):
    program, _ = tiny_program(replace(SETTING, accumulate=parts))
    mean, variance = np.zeros(4), np.ones(4)
    for part in range(parts):
        x = activations(program)[part::parts]
        mean = 0.75 * mean + 0.25 * x.mean((0, 1, 2))
        variance = 0.75 * variance + 0.25 * x.var((0, 1, 2))
    stats = steps_of(program)[0][1].stats['norm']
    np.testing.assert_allclose(stats['mean'][...], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats['var'][...], variance, rtol=1e-4)


def test_what_is_frozen_stays_bit_by_bit():
    module = Tiny(nnx.Rngs(0), rate=0.0)
    module.norm.mean[...], module.norm.var[...] = jnp.arange(4.0), jnp.full(4, 2.5)
    program, network = program_of(replace(SETTING, freeze=('conv', 'norm')), module)
    states, sums = steps_of(program)
    for name in ('conv', 'norm'):
        assert_close(states[-1].params[name], states[0].params[name], rtol=0, atol=0)
    assert_close(states[-1].stats, states[0].stats, rtol=0, atol=0)
    assert not np.allclose(states[-1].params['head']['kernel'], states[0].params['head']['kernel'])
    # Their running statistics are used: the loss is that of the network in inference.
    assert float(sums[0].mean_loss) == pytest.approx(cross_entropy(network(IMAGES)[0], 0), rel=1e-5)


@dataclass(frozen=True, kw_only=True)
class Freezing(TrainedMethod):
    """Freezes all but the head."""

    @property
    def freeze(self):
        return ('conv', 'norm', 'dropout')


def test_a_method_freezes_like_the_settings_and_without_dropout():
    networks = [Tiny(nnx.Rngs(0), rate=0.5) for _ in range(2)]
    networks[1].dropout.rate = 0.0
    facts = (replace(SETTING, freeze=()), networks[0]), (SETTING, networks[1])
    programs = [program_of(*both, method=Freezing())[0] for both in facts]
    (states, sums), (_, others) = map(steps_of, programs)
    for name in ('conv', 'norm'):
        assert_close(states[-1].params[name], states[0].params[name], rtol=0, atol=0)
    assert_close(sums, others, rtol=1e-6)
    assert not np.allclose(states[-1].params['head']['kernel'], states[0].params['head']['kernel'])


def test_a_frozen_kernel_below_a_trained_norm_leaves_its_statistics_to_the_batch():
    program, _ = tiny_program(replace(SETTING, freeze=('conv',)))
    states, _ = steps_of(program)
    assert not np.allclose(states[1].stats['norm']['mean'], states[0].stats['norm']['mean'])
    assert not np.allclose(states[1].params['norm']['bias'], states[0].params['norm']['bias'])
    assert_close(states[1].params['conv'], states[0].params['conv'], rtol=0, atol=0)


def test_the_others_train_as_if_nothing_were_frozen():
    frozen, free = (
        steps_of(tiny_program(replace(SETTING, freeze=freeze), norm=False)[0])[0][1]
        for freeze in (('conv',), ())
    )
    assert_close(frozen.params['head'], free.params['head'], rtol=1e-6, atol=1e-7)


def small_resnet(setting):
    module = build('resnet10', 3, nnx.Rngs(0), width=4)
    network = zoo.as_network('resnet10', module)
    program = compiled(setting, module, network)
    images = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
    labels = np.arange(4)[:, None] % 3
    return program, Shard(images, {'labels': labels}, np.ones(4, bool), np.arange(4))


@pytest.mark.slow
@pytest.mark.parametrize('ema', [0.0, 0.5])
def test_the_state_is_given_up_for_the_new_one(ema):
    program, batch = small_resnet(replace(SETTING, ema=ema))
    devices = local_devices('jit')
    # The moving average starts as the very arrays of the weights.
    state = devices.replicate(program.initial, donated=True)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    memory = program.step.lower(state, batch).compile().memory_analysis()
    assert memory.alias_size_in_bytes == size
    before = jax.device_get(program.initial)
    after, _ = program.step(state, devices.shard(batch))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert_close(jax.device_get(program.initial), before, rtol=0, atol=0)
    assert int(after.step) == 1


@pytest.mark.slow
def test_no_gradient_of_what_is_frozen_is_computed():
    flops = {}
    for freeze in ((), ('conv1', 'layer')):
        program, batch = small_resnet(replace(SETTING, freeze=freeze))
        flops[freeze] = program.step.lower(program.initial, batch).cost_analysis()['flops']
        sizes = [x.size for x in jax.tree.leaves(program.initial.optimizer) if x.ndim > 0]
        assert sum(sizes) == sum(
            x.size
            for name, part in program.initial.params.items()
            if name == 'fc' or not freeze
            for x in jax.tree.leaves(part)
        )
    # Forward only is a third of forward, gradient of activations and gradient of kernels.
    assert flops['conv1', 'layer'] < 0.45 * flops[()]


def equations(jaxpr):
    """All operations, those of inner programs among them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, 'eqns')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


PRODUCTS = ('dot_general', 'conv_general_dilated')


def product_types(function, *arguments):
    """The number types that products of matrices and convolutions are computed of."""
    found = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    products = [eqn for eqn in found if eqn.primitive.name in PRODUCTS]
    return {v.aval.dtype.name for eqn in products for v in eqn.invars}


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_computation_is_of_the_type_asked_for(dtype):
    program, batch = small_resnet(replace(SETTING, dtype=dtype, ema=0.5))
    assert product_types(program.step, program.initial, batch) == {dtype}
    state, _ = jax.eval_shape(program.step, program.initial, batch)
    for tree in (program.initial, state):
        kept = [tree.params, tree.stats, tree.ema, tree.optimizer]
        types = {x.dtype.name for x in jax.tree.leaves(kept)}
        assert types - {'int32'} == {'float32'} and tree.step.dtype == jnp.int32
    # Evaluation is in single precision.
    assert product_types(program.evaluate, program.initial, batch) == {'float32'}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['inception_v3', 'mobilenet_v1', 'squeezenet1_1', 'vgg16'])
def test_every_network_computes_in_bfloat16(name):
    module = nnx.eval_shape(lambda: build(name, 3, nnx.Rngs(0)))
    step_module._set_modes(module, replace(SETTING, dtype='bfloat16'), None)
    module.eval()
    graph, state = nnx.split(module)
    inputs = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    assert product_types(lambda s, x: nnx.merge(graph, s)(x)[0], state, inputs) == {'bfloat16'}


def test_bfloat16_is_near_float32():
    states = [steps_of(tiny_program(replace(SETTING, dtype=d))[0]) for d in ('bfloat16', 'float32')]
    (rough, rough_sums), (exact, exact_sums) = states
    for one, two in zip(rough_sums, exact_sums, strict=True):
        assert float(one.mean_loss) == pytest.approx(float(two.mean_loss), rel=0.02)
        assert float(one.mean_loss) != float(two.mean_loss)
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), exact[-1].params, exact[0].params)
    largest = max(np.abs(m).max() for m in jax.tree.leaves(moved))
    assert_close(rough[-1].params, exact[-1].params, rtol=0, atol=0.05 * largest)
    assert_close(rough[-1].stats, exact[-1].stats, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('parts', [2, 4])
def test_a_batch_in_parts_gives_the_same(parts):
    whole, sums = steps_of(tiny_program(norm=False)[0])
    found, found_sums = steps_of(tiny_program(replace(SETTING, accumulate=parts), norm=False)[0])
    assert_close(found[-1], whole[-1], rtol=1e-6, atol=1e-6)
    assert_close(found_sums, sums, rtol=1e-6, atol=1e-6)


def test_the_moving_average_by_hand():
    program, _ = tiny_program(replace(SETTING, ema=0.75))
    plain, _ = steps_of(tiny_program()[0])
    states, _ = steps_of(program)
    average = jax.tree.map(np.float64, states[0].params)
    for after, as_without in zip(states[1:], plain[1:], strict=True):
        assert_close(after.params, as_without.params, rtol=1e-6, atol=1e-7)
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * np.float64(p), average, after.params)
        assert_close(after.ema, average, rtol=1e-5, atol=1e-6)
    assert plain[-1].ema is None


def test_the_moving_average_is_what_is_evaluated():
    program, _ = tiny_program(replace(SETTING, ema=0.5))

    def voting_for(label):
        params = jax.tree.map(jnp.zeros_like, program.initial.params)
        params['head']['bias'] = jnp.eye(3)[label]
        return params

    state = program.initial._replace(params=voting_for(1), ema=voting_for(2))
    for state_of, label in ((state, 2), (state._replace(ema=None), 1)):
        right = program.evaluate(state_of, BATCH)['accuracy']
        assert np.asarray(right).tolist() == (100 * (label == LABELS)).tolist()
    evaluated = state.evaluated()
    assert_close(evaluated.params, state.ema, rtol=0, atol=0)
    assert evaluated.ema is evaluated.optimizer is None


@dataclass(frozen=True, kw_only=True)
class Drawing(TrainedMethod):
    """Adds noise to every input, and tells its mean."""

    def augment(self, inputs, batch, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, inputs.shape[1:]))(keys)
        targets = batch.targets | {'noise': noise.mean((1, 2, 3))}
        return inputs + noise, batch._replace(targets=targets)

    def loss(self, outputs, batch, update):
        losses, values = super().loss(outputs, batch, update)
        noise = batch.targets.get('noise', jnp.zeros(len(losses)))
        return losses, values | {'noise': noise, 'of_one': noise * (batch.index == 23)}


@cache
def drawing_program(parts=1):
    module = Tiny(nnx.Rngs(0), norm=False, rate=0.0)
    network = Network.from_module(
        module, name='tiny', preprocessing=Preprocessing((128.0,) * 3, (64.0,) * 3), input_size=4
    )
    return compiled(replace(SETTING, accumulate=parts), module, network, Drawing())


@pytest.mark.slow
def test_what_a_method_draws_depends_on_step_and_image_alone():
    program = drawing_program()

    def noise(step=0, batch=BATCH, program=program, name='of_one'):
        state = program.initial._replace(step=jnp.int32(step))
        return float(one_step(program, state, batch)[1].sums[name])

    order = np.array([3, 0, 5, 1, 4, 2, 7, 6])
    shuffled = jax.tree.map(lambda x: x[order], BATCH)
    assert noise() == noise(batch=shuffled) == noise(program=drawing_program(parts=2)) != 0
    assert noise() != noise(step=1)
    # Every image has noise of its own, and none that is left out counts.
    assert noise(name='noise') != pytest.approx(6 * noise(), rel=1e-3)
    blind = BATCH._replace(valid=np.arange(8) == 3)
    assert noise(batch=blind, name='noise') == noise()


def test_nothing_is_drawn_in_evaluation():
    program = drawing_program()
    values = program.evaluate(program.initial, BATCH)
    assert sorted(values) == ['accuracy', 'loss', 'noise', 'of_one'] and not values['noise'].any()


def test_a_loss_that_breaks_its_contract_is_told():
    @dataclass(frozen=True, kw_only=True)
    class Wrong(TrainedMethod):
        values: tuple = ()
        shape: tuple = (8,)
        best: tuple = ('accuracy', 'max')

        def loss(self, outputs, batch, update):
            found = jnp.zeros(self.shape), {n: jnp.zeros(s) for n, s in self.values}
            return found if self.shape else found[0]

    module = Tiny(nnx.Rngs(0), norm=False)
    facts = {'preprocessing': Preprocessing((128.0,) * 3, (64.0,) * 3), 'input_size': 4}
    network = Network.from_module(module, name='tiny', **facts)
    for options, message in [
        ({'shape': (8, 3)}, r'the loss of Wrong must be \[B\] or a number, got \[8, 3\]'),
        ({'values': (('step', (8,)),)}, "the loss of Wrong names a value 'step', which is taken"),
        ({'values': (('right', (8,)),)}, "the loss of Wrong names a value 'right', which is taken"),
        ({'shape': ()}, 'the loss of Wrong must return the losses and a dict of named values'),
        ({'best': ('loss', 'least')}, "best of Wrong must be the 'max' or the 'min', got 'least'"),
        ({'values': (('share', ()),)}, r"'share' of Wrong must be \[B\], got \[\]"),
        ({'values': (('acuracy', (8,)),)}, "told by an unknown value 'accuracy'; did you mean "),
    ]:
        program = compiled(SETTING, module, network, Wrong(**options))
        with pytest.raises(ValueError, match=message):
            one_step(program, program.initial)


def test_several_labels_are_not_taken_for_one():
    program, _ = tiny_program(norm=False)
    several = BATCH._replace(targets={'labels': np.stack([LABELS, LABELS], 1)})
    with pytest.raises(ValueError, match='takes one label an image, and there are up to 2; '):
        one_step(program, program.initial, several)


def test_wrong_patterns_stop_before_anything_is_compiled():
    with pytest.raises(ConfigError, match=r"'fc' finds no parameter; they start with conv, "):
        tiny_program(replace(SETTING, multipliers=(('fc', 10.0),)))


def test_a_module_comes_apart_whole():
    module = Tiny(nnx.Rngs(0))
    graph, params, stats, keys = split_module(module)
    assert [len(jax.tree.leaves(part)) for part in (params, stats, keys)] == [6, 2, 1]
    again = nnx.merge(graph, params, stats, keys)
    np.testing.assert_array_equal(again.conv.kernel[...], module.conv.kernel[...])


@dataclass(frozen=True, kw_only=True)
class Taught(TrainedMethod):
    """Its loss is what the moving average says, and nothing else."""

    def loss(self, outputs, batch, update):
        return update.average().logits.sum(-1), {'accuracy': outputs.logits[:, 0]}


@pytest.mark.slow
def test_a_loss_can_ask_the_moving_average():
    """In inference mode, as it was before the step; no weight learns from what it says."""
    setting = replace(SETTING, ema=0.75, weight_decay=0.0)
    program, network = program_of(setting, Tiny(nnx.Rngs(0)), Taught())
    params = program.initial.params
    state = program.initial._replace(ema=jax.tree.map(lambda x: 1.5 * x, params))
    logits, _ = network.apply(state.network(), network.preprocessing(IMAGES))
    after, measured = one_step(program, state)
    sums = np.asarray(logits).sum(-1)
    assert float(measured.mean_loss) == pytest.approx(sums[:6].mean(), rel=1e-5)
    assert_close(after.params, params, rtol=0, atol=0)
    assert not np.array_equal(after.stats.norm.mean[...], state.stats.norm.mean[...])
    np.testing.assert_allclose(program.evaluate(state, BATCH)['loss'], sums, rtol=1e-5)

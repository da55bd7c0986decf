"""What README and docs show works: Python runs, on tiny networks; commands are understood."""

import configparser
import doctest
import re
import shlex
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from PIL import Image
from test_configs import load

import wsol_jax
from wsol_jax.config import check_key
from wsol_jax.localization.methods import METHODS
from wsol_jax.models import Network, Preprocessing
from wsol_jax.training.methods import METHODS as TRAINED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAGES += sorted((ROOT / 'docs').glob('*/*.md'))
FIRST = ('README.md', 'docs/start.md', 'docs/index.md')  # these take nothing for granted
SIZES = [(60, 45), (30, 80)]  # (width, height) of the photos


def named(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page, language):
    """The fenced blocks of a page: what stands between ```language and ```."""
    found = re.findall(
        r'^```([^\n]*)\n(.*?)^```', page.read_text('utf-8'), re.DOTALL | re.MULTILINE
    )
    return [text for name, text in found if name == language]


# ---------------------------------------------------------------- Python


def tiny(name, early, middle, late):
    """A network of 1x1 convolutions under another one's name, with three of its endpoints."""
    names = early, middle, late

    def apply(state, inputs, perturb=None):
        x, found = inputs[:, ::7, ::7], {}
        for endpoint in names:
            if endpoint == middle:
                x = (x[:, ::2, ::2] + x[:, 1::2, 1::2]) / 2
            x = jax.nn.relu(x @ state[endpoint]) + (perturb or {}).get(endpoint, 0)
            found[endpoint] = x
        return x.mean((1, 2)) @ state['head'], found

    rng = np.random.default_rng(0)
    shapes = {early: (3, 4), middle: (4, 5), late: (5, 6), 'head': (6, 1000)}
    state = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    sides = {early: (8, 8, 4), middle: (4, 4, 5), late: (4, 4, 6)}
    scale = Preprocessing((128.0,) * 3, (64.0,) * 3)
    return Network(name, apply, state, scale, 56, 1000, late, sides)


def load_network(name, weights=None, **options):
    if name.startswith('deit'):
        return REAL(name, width=16, heads=2, **options)
    layers = (
        ('pw_8', 'pw_10', 'pw_13') if name == 'mobilenet_v1' else ('stage2', 'stage3', 'stage4')
    )
    return tiny(name, *layers)


REAL = wsol_jax.load_network


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


def write_photos():
    Path('photos').mkdir()
    for i, (width, height) in enumerate(SIZES):
        photo = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(photo).save(f'photos/{i}.jpg')
        Image.fromarray(photo).save('photo.jpg')


def write_score_maps():
    folder, ids = Path('metadata/test'), [f'{i}' for i in range(9)]
    folder.mkdir(parents=True)
    Path('maps').mkdir()
    for i in ids:
        np.save(f'maps/{i}.npy', np.eye(224))
    (folder / 'image_ids.txt').write_text('\n'.join(ids))
    (folder / 'image_sizes.txt').write_text('\n'.join(f'{i},224,224' for i in ids))
    (folder / 'localization.txt').write_text('\n'.join(f'{i},0,0,223,223' for i in ids))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the Python of a page in a folder of photos and score maps; returns its names."""
    monkeypatch.setitem(vars(wsol_jax), 'load_network', load_network)
    monkeypatch.chdir(tmp_path)
    write_photos()
    write_score_maps()

    def run(page):
        module = LinenCnn()
        variables = module.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        names = {'model': Cnn(nnx.Rngs(0)), 'module': module, 'variables': variables}
        if named(page) not in FIRST:
            photos = sorted(Path('photos').glob('*.jpg'))
            network = load_network('mobilenet_v1')
            result = wsol_jax.localize(network, photos, ('dgl', 'cam'))
            names |= {'wsol_jax': wsol_jax, 'network': network, 'photos': photos, 'result': result}
        for text in blocks(page, 'python'):
            exec(compile(text, str(page), 'exec'), names)
        return names

    return run


WITH_PYTHON = [page for page in PAGES if blocks(page, 'python')]


def of_pages():
    """Those that train are slow."""
    for page in WITH_PYTHON:
        trains = 'run(read_config' in page.read_text('utf-8')
        yield pytest.param(page, id=named(page), marks=[pytest.mark.slow] if trains else [])


@pytest.mark.slow
@pytest.mark.parametrize('page', of_pages())
def test_the_python_of_a_page_runs(page, run):
    run(page)


def test_the_first_steps_find_boxes_in_the_photos(run):
    names = run(ROOT / 'docs/start.md')
    result, boxes = names['result'], names['boxes']
    assert result.sizes == SIZES and len(boxes) == 2
    for box, (width, height) in zip(boxes, SIZES, strict=True):
        assert box.shape[1] == 4 and (box[:, 2] < width).all() and (box[:, 3] < height).all()


def test_a_model_of_ones_own_shows_its_submodules(run):
    assert set(run(ROOT / 'docs/howto/your_model.md')['network'].endpoints()) == {'Conv_0'}


@pytest.mark.slow
def test_the_page_on_export_leaves_a_file_with_the_same_boxes(run):
    names = run(ROOT / 'docs/howto/export.md')
    loaded = wsol_jax.load_exported('dgl.zip')(names['photos'])
    for found, box in zip(
        loaded.boxes(0.2)['dgl', 'pw_10'], names['result'].boxes(0.2)['dgl', 'pw_10'], strict=True
    ):
        assert found.tolist() == box.tolist()


def test_parts_of_score_maps_join_to_all(run):
    assert run(ROOT / 'docs/howto/foreign_maps.md')['metrics']['images'] == 9


def test_most_pages_show_python():
    assert len(WITH_PYTHON) > 12


WITH_EXAMPLES = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in sorted((ROOT / 'wsol_jax').glob('**/*.py'))
    if '>>> ' in path.read_text('utf-8')
]


@pytest.mark.parametrize('name', WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(name):
    failed, tried = doctest.testmod(import_module(name))
    assert tried and not failed


# ---------------------------------------------------------------- commands


def commands(page):
    """The commands of a page: lines of its shell blocks, and what stands in backquotes."""
    text = page.read_text('utf-8')
    lines = ''.join(blocks(page, '') + blocks(page, 'bash')).replace('\\\n', ' ').splitlines()
    prose = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
    for line in [*lines, *(span.replace('\n', ' ') for span in re.findall(r'`([^`]+)`', prose))]:
        plain = re.sub(r'^(\w+=\S+ )*', '', line.strip())
        if re.match(r'(wsol|python|make|pip|pytest)\s', plain):
            yield shlex.split(plain.replace('[-', '-').replace('] ', ' '), comments=True)


CASES = [(named(page), command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(('page', 'command'), CASES, ids=[f'{p}-{" ".join(c)}' for p, c in CASES])
def test_a_command_is_one(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    CHECKS[command[0]](command[1:])


def check_make(targets):
    text = (ROOT / 'Makefile').read_text()
    for target in targets:
        assert re.search(f'^{target}:', text, re.MULTILINE), f'no target {target}'


def check_pip(arguments):
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    for extra in re.findall(r'\[(.*?)\]', ' '.join(arguments)):
        assert {*extra.split(',')} <= {*setup['options.extras_require']}


def check_pytest(arguments):
    markers = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['pytest']['ini_options']
    assert arguments[0] == '-m' and any(m.startswith(arguments[1]) for m in markers['markers'])


def check_python(arguments):
    """The module or script is there, its flags are known, and its config takes the overrides."""
    module = arguments[1] if arguments[0] == '-m' else arguments[0]
    source = Path(module if module.endswith('.py') else find_spec(module).origin)
    if source.name == '__init__.py':
        source = source.with_name('__main__.py')
    text = source.read_text('utf-8') + (ROOT / 'wsol_jax/command_line.py').read_text('utf-8')
    if 'seeds import SEEDS' in text:
        text += (ROOT / 'experiments/seeds.py').read_text('utf-8')
    flags = [a for a in arguments[1:] if a.startswith('--')]
    for flag in flags:
        name = flag.removeprefix('--').partition('=')[0]
        if name.startswith('config.'):
            check_key(name.removeprefix('config.'))
        else:
            assert name == 'help' or f"'{name}'" in text or f"'--{name}'" in text, f'no --{name}'
    file = next((b for a, b in pairwise(arguments) if a == '--config'), 'X')
    if not re.search(r'\bX\b|^mine', file):
        load(file.removeprefix('configs/').replace('.py', ''), *[f for f in flags if '.' in f])


CHECKS = {
    'make': check_make,
    'pip': check_pip,
    'pytest': check_pytest,
    'python': check_python,
    'wsol': lambda arguments: check_python(['-m', 'wsol_jax.main', *arguments]),
}


def test_there_are_commands_of_each_kind():
    assert {command[0] for _, command in CASES} >= {'make', 'pip', 'pytest', 'python'}
    assert len(CASES) > 40


# ---------------------------------------------------------------- links and cards


def links(page):
    """The files that a page links to or shows; those of the web apart."""
    prose = re.sub(
        r'^```.*?^```|`[^`]*`', '', page.read_text('utf-8'), flags=re.DOTALL | re.MULTILINE
    )
    targets = re.findall(r'\]\(([^)\s]+)\)', prose)
    return [t.partition('#')[0] for t in targets if not re.match(r'https?:|#', t)]


@pytest.mark.parametrize('page', PAGES, ids=named)
def test_what_a_page_links_to_is_there(page):
    for target in links(page):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize('name', wsol_jax.__all__)
def test_every_public_name_stands_in_the_reference(name):
    page = (ROOT / 'docs/reference/python.md').read_text('utf-8')
    assert re.search(rf'(:: |`){name}\b', page)


@pytest.fixture
def cards(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'docs')
    return import_module('cards')


@pytest.mark.parametrize('name', METHODS)
def test_a_method_tells_its_formula_its_paper_and_when_it_fails(name):
    summary, *rest = METHODS[name].__doc__.split('\n\n')
    title, colon, formula = summary.partition(': ')
    assert title and colon and formula.endswith('.')
    assert re.search(r'(19|20)\d\d|pytorch-grad-cam|G2M|nobody', rest[0]), 'no source'
    assert any(text.strip().startswith('Weak') for text in rest)


@pytest.mark.parametrize('name', filter(None, TRAINED))
def test_a_training_method_tells_its_paper_and_when_it_fails(name):
    kind = TRAINED[name]
    assert re.search(r'\(.*20\d\d', sys.modules[kind.__module__].__doc__)
    assert '\n\n    Weak' in kind.__doc__


def test_there_is_a_card_for_every_method(cards):
    without, trained = cards.without_training(), cards.with_training()
    assert without.count('\n## ') == without.count('**Weak** ') == len(METHODS)
    assert all(f'({name})=' in without for name in METHODS)
    assert all(f'({name})=' in trained for name in TRAINED if name)


def test_a_card_tells_what_its_method_needs(cards):
    needs = {name: cards.needs(METHODS[name]()) for name in METHODS}
    assert needs['dgl'].startswith('the gradient of the score and that of the loss; any layer')
    assert needs['eigen_cam'].startswith('no gradient') and 'passes' not in needs['eigen_cam']
    assert needs['cam'].endswith('the layer before global average pooling')
    assert needs['saliency'].startswith('the gradient of the score; the input')
    assert 'all main layers' in needs['rollout'] and 'attention' in needs['rollout']


def test_every_picture_of_the_gallery_is_of_a_method(cards):
    files = {file.stem for file in cards.PICTURES.glob('*.jpg')}
    assert files == {'image', *METHODS} - {'rollout'}
    assert all(f'(#{name})' in cards.gallery() for name in files - {'image'})

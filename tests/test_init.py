"""Names that are imported on first use, and processes that start without JAX."""

import ast
import inspect
import re
import subprocess
import sys

import pytest

import wsol_jax
import wsol_jax.data

LEARNING = ['jax', 'flax', 'optax', 'orbax']
HEAVY = [*LEARNING, 'tensorflow_datasets', 'grain', 'tensorstore', 'ml_collections']


def loaded(script):
    """Which heavy packages are loaded after a script ran in a fresh interpreter, as it prints."""
    script = f'import sys\nHEAVY = {HEAVY}\n{script}'
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


IMPORTS = {
    'the package': 'import wsol_jax; dir(wsol_jax)',
    'boxes and score maps': 'import wsol_jax; wsol_jax.boxes_from_map, wsol_jax.score_map',
    'evaluator': 'import wsol_jax.evaluation.__main__',
    'parts of a split': 'from wsol_jax.evaluation.scoring import score_split_part',
    'records': 'from wsol_jax.data import Record, decode_mask, open_source',
}


@pytest.mark.parametrize('case', IMPORTS)
def test_scoring_needs_no_jax(case):
    assert loaded(f'{IMPORTS[case]}\nprint(*(m for m in HEAVY if m in sys.modules))') == []


def test_data_know_no_room_above_them():
    """Settings are made of what the data need, not the other way."""
    script = 'import wsol_jax.data.__main__, wsol_jax.data.loader, wsol_jax.data.images'
    found = loaded(f'{script}\nprint(*(m for m in sys.modules if m.startswith("wsol_jax.")))')
    rooms = {name.split('.')[1] for name in found}
    assert rooms == {'data', 'fields', 'interrupts', 'names'}


@pytest.mark.slow
def test_counting_processes_do_not_import_the_script_that_starts_them(tmp_path):
    (tmp_path / 'probe.py').write_text(
        'import sys\n'
        'from wsol_jax.evaluation.scoring import score_split_part\n'
        'from wsol_jax.evaluation.scoremaps import score_scoremaps\n'
        f'def probe(_): return [m for m in {HEAVY} if m in sys.modules]\n'
    )
    # The script has JAX, and no guard: a process that ran it again would start others.
    script = tmp_path / 'script.py'
    script.write_text(
        'import jax\n'
        'from probe import probe\n'
        'from wsol_jax.evaluation.processes import mapper\n'
        'with mapper(2) as over:\n'
        '    print(list(over(probe, [0, 1])))\n'
    )
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert (result.stdout, result.returncode) == ('[[], []]\n', 0), result.stderr


@pytest.mark.parametrize('package', [wsol_jax, wsol_jax.data])
def test_every_name_is_there_and_known_to_type_checkers(package):
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
        assert name in dir(package)
    tree = ast.parse(inspect.getsource(package))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(package.__all__) - {'open_source'} <= imported


def test_submodules_are_attributes():
    assert loaded('import wsol_jax\nprint(wsol_jax.data.__name__, wsol_jax.models.__name__)') == [
        'wsol_jax.data',
        'wsol_jax.models',
    ]


def test_the_version_is_a_number_that_needs_no_look_at_the_installation():
    assert re.fullmatch(r'\d+\.\d+\.\d+', wsol_jax.__version__)
    script = 'import wsol_jax; wsol_jax.__version__; print("importlib.metadata" in sys.modules)'
    assert loaded(script) == ['False']


@pytest.mark.parametrize(
    ('package', 'name', 'message'),
    [
        (wsol_jax, 'localise', "unknown attribute of wsol_jax 'localise'; did you mean 'localize'"),
        (wsol_jax, 'load_netwrk', "did you mean 'load_network'"),
        (wsol_jax.data, 'open_sorce', "did you mean 'open_source'"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(package, name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(package, name)
    assert not hasattr(package, name)

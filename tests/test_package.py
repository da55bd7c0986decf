"""What an installed package holds."""

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import wsol_jax
from wsol_jax.presets import presets

ROOT = Path(__file__).parents[1]
UNPACKAGED = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'runs')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A source archive, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp('package')
    shutil.copytree(ROOT, folder / 'source', symlinks=True, ignore=UNPACKAGED)
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder)]
    run = subprocess.run(
        [*command, str(folder / 'source')], capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,), (archive,) = folder.glob('*.whl'), folder.glob('*.tar.gz')
    return wheel, archive


def sources():
    """Every file of the package, and the configs as its part."""
    files = (p.relative_to(ROOT) for p in ROOT.glob('wsol_jax/**/*') if p.is_file())
    found = {str(path) for path in files if '__pycache__' not in path.parts}
    return found | {f'wsol_jax/configs/{path.name}' for path in ROOT.glob('configs/*.py')}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if '.dist-info/' not in name} == sources()
    assert {f'wsol_jax/configs/{name}.py' for name in presets()} < names
    assert {'wsol_jax/py.typed', 'wsol_jax/report/page.js'} < names


def test_the_wheel_says_what_it_is(built):
    info = f'wsol_jax-{wsol_jax.__version__}.dist-info'
    with zipfile.ZipFile(built[0]) as wheel:
        about = Parser().parsestr(wheel.read(f'{info}/METADATA').decode())
        commands = wheel.read(f'{info}/entry_points.txt').decode()
    assert (about['Name'], about['Version']) == ('wsol_jax', wsol_jax.__version__)
    assert about['License'] == 'Apache-2.0'
    parsed = configparser.ConfigParser()
    parsed.read_string(commands)
    assert dict(parsed['console_scripts']) == {'wsol': 'wsol_jax.main:main'}


def test_the_source_archive_holds_all_to_build_it_again(built):
    with tarfile.open(built[1]) as archive:
        files = {m.name.partition('/')[2] for m in archive.getmembers() if m.isfile()}
    assert sources() < files
    assert {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'CHANGELOG.md'} < files
    assert not any(name.startswith(('tests/', 'configs/')) for name in files)


def test_all_tell_the_same_version():
    citation = (ROOT / 'CITATION.cff').read_text().splitlines()
    assert f'version: {wsol_jax.__version__}' in citation
    assert f'## {wsol_jax.__version__}' in (ROOT / 'CHANGELOG.md').read_text()

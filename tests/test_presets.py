"""The shipped configs by name."""

import re
import subprocess
import sys
from importlib import import_module

import pytest

from wsol_jax.config import ConfigError
from wsol_jax.presets import config_file, presets, summaries


def test_a_name_is_its_file():
    assert config_file('cub').name == 'cub.py' and config_file('cub').is_file()
    assert '__init__' not in presets() and list(presets()) == sorted(presets())


def test_a_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'lid').mkdir()  # a folder is none
    (tmp_path / 'cub').write_text('')
    assert str(config_file('cub')) == 'cub'
    assert config_file('lid') == presets()['lid']


@pytest.mark.parametrize(
    ('asked', 'message'),
    [
        (
            'cbu30_bas',
            f"unknown config 'cbu30_bas'; did you mean 'cub30_bas'? known: {', '.join(presets())}",
        ),
        ('mine.py', 'mine.py: no such config file'),
        ('configs/lid.py', 'configs/lid.py: no such config file; did you mean the shipped config '),
        ('lid.py', "lid.py: no such config file; did you mean the shipped config 'lid'?"),
        ('', "unknown config ''"),
    ],
)
def test_what_is_nowhere_is_one_line(tmp_path, monkeypatch, asked, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f'^{re.escape(message)}') as caught:
        config_file(asked)
    assert '\n' not in str(caught.value)


def test_each_says_what_it_is_and_can_be_imported():
    assert list(summaries()) == list(presets())
    for name, text in summaries().items():
        assert len(text) > 20 and text.endswith('.')
        module = import_module(f'wsol_jax.configs.{name}')
        assert module.__doc__.startswith(text) and module.get_config()


@pytest.mark.slow
def test_the_command_takes_names_from_any_folder(tmp_path):
    """Beside a folder `configs` of the user's own, too."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs/ilsvrc.py').write_text('raise ValueError')
    code = (
        'import sys; from wsol_jax.command_line import CONFIG, parse_flags\n'
        'parse_flags(sys.argv); print(CONFIG.value.network.name, CONFIG.value.seed)\n'
        'print(*(p for p in sys.path if p.endswith("wsol_jax")))'
    )
    command = [sys.executable, '-c', code, '--config=cub:vgg16', '--config.seed=3']
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (run.stdout, run.stderr) == ('vgg16 3\n\n', '')

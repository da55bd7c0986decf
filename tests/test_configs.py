"""Every file in configs/ is a whole experiment that the command takes."""

import ast
import sys
from pathlib import Path

import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags

from wsol_jax.config import read_config
from wsol_jax.localization.localize import make_plan
from wsol_jax.models import as_network, build

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / 'configs').glob('*.py'))


def load(file, *overrides):
    arguments = ['wsol', f'--config={file}', *overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
    values(arguments)
    return config.value


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_it_loads_and_names_what_exists(file, monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT), *sys.path])  # as when run from the checkout
    config = read_config(load(file, '--config.report.images=3', '--config.localize.splits=val'))
    assert config.report.images == 3 and config.localize.splits == ('val',)
    net = config.network
    module = nnx.eval_shape(lambda: build(net.name, 10, nnx.Rngs(0), **net.options))
    plan = make_plan(as_network(net.name, module), config.localize.methods, config.localize.layers)
    assert plan.keys


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_its_docstring_names_the_run_line(file):
    text = ast.get_docstring(ast.parse(file.read_text()))
    line = f'python -m wsol_jax.main --config configs/{file.name} --workdir DIR'
    assert line in ' '.join(text.replace('\\\n', ' ').split())


def test_there_are_some():
    assert {'shapes_resnet', 'imagenette_mobilenet_v1'} <= {file.stem for file in FILES}

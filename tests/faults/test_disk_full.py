"""Disks that are full, and folders that cannot be written: one line, and a later run goes on."""

import pytest
from runs import begin
from test_main import finish

pytestmark = pytest.mark.faults

# config.json is smaller; checkpoints, chunks of maps, boxes/test.csv and figures are larger.
LIMIT = 5000


def compiled(err):
    """Without what JAX says of its cache of programs, which is full as well."""
    lines = iter(err.splitlines())
    return [line for line in lines if not ('compilation cache' in line and next(lines))]


def test_every_stage_says_in_one_line_that_the_disk_is_full_and_goes_on(tmp_path):
    folder, tables = tmp_path / 'starved', []
    assert finish(begin(folder, '--config.stages=("train",)'), folder).code == 0
    for stage in ('localize', 'evaluate', 'report'):
        only = f'--config.stages=("{stage}",)'
        code, out, err = finish(begin(folder, only, limit=LIMIT), folder)
        lines = compiled(err)
        assert (code, out, len(lines)) == (2, '', 1), (stage, err)
        assert lines[0].startswith('error: ') and 'File too large' in lines[0], stage
        assert 'W/' in lines[0] and len(lines[0]) < 500
        code, out, err = finish(begin(folder, only), folder)
        assert code == 0 and not [line for line in compiled(err) if 'rror' in line], (stage, err)
        tables.append(out)
    hidden = [path for path in (folder / 'W').rglob('.*') if path.name != '.wsol_jax_workdir']
    assert hidden == [] and 'MaxBoxAcc' in tables[-1]

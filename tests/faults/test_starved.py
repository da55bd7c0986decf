"""Disks that are full: one line that names the file, and a later run goes on."""

import pytest
from runs import begin
from test_main import finish

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Bytes that no file may exceed: config.json is smaller, and of training what it prints; larger are
# checkpoints, chunks of maps, boxes/test.csv and figures.
LIMITS = {'train': 100_000, 'localize': 5000, 'evaluate': 5000, 'report': 5000}


def test_every_stage_says_that_the_disk_is_full_and_goes_on(tmp_path):
    folder, tables = tmp_path / 'starved', []
    for stage, limit in LIMITS.items():
        only = f'--config.stages=("{stage}",)'
        code, out, err = finish(begin(folder, only, limit=limit), folder)
        lines = err.splitlines()
        said = [line for line in lines if line.startswith('error: ')]
        assert (code, out, len(said), lines) == (2, '', 1, said), (stage, err)
        assert 'File too large' in said[0] and len(said[0]) < 500, stage
        assert {'train': 'checkpoints/'}.get(stage, 'W/') in said[0]
        code, out, err = finish(begin(folder, only), folder)
        assert code == 0 and not [line for line in err.splitlines() if 'rror' in line], (stage, err)
        tables.append(out)
    hidden = [path for path in (folder / 'W').rglob('.*') if path.name != '.wsol_jax_workdir']
    assert hidden == [] and 'MaxBoxAcc' in tables[-1]

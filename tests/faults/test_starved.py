"""Disks that are full or read-only: one line that names the file, and a later run goes on."""

import pytest
from runs import begin
from test_main import finish

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Bytes that no file may exceed: config.json is smaller, and of training what it prints; larger are
# checkpoints, chunks of maps, boxes/test.csv and figures.
LIMITS = {'train': 100_000, 'localize': 5000, 'evaluate': 5000, 'report': 5000}


def fails(folder, *arguments, **conditions):
    """The one line that the command ends with."""
    code, out, err = finish(begin(folder, *arguments, **conditions), folder)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, '', 1), err
    assert lines[0].startswith('error: ') and len(lines[0]) < 500
    return lines[0]


def read_only(workdir):
    """Takes the right to write from every folder and file; they are given back by the other."""
    paths = [workdir, *workdir.rglob('*')]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    return paths


def writable(paths):
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)


def test_every_stage_says_that_the_disk_is_full_or_read_only_and_goes_on(tmp_path):
    folder, tables = tmp_path / 'starved', []
    (folder / 'W').mkdir(parents=True)
    for stage, limit in LIMITS.items():
        only = f'--config.stages=("{stage}",)'
        paths = read_only(folder / 'W')
        said = fails(folder, only)
        assert 'Permission denied' in said and 'W' in said, (stage, said)
        writable(paths)
        said = fails(folder, only, limit=limit)
        assert 'File too large' in said, (stage, said)
        assert {'train': 'checkpoints/'}.get(stage, 'W/') in said
        code, out, err = finish(begin(folder, only), folder)
        assert code == 0 and not [line for line in err.splitlines() if 'rror' in line], (stage, err)
        tables.append(out)
    hidden = [path for path in (folder / 'W').rglob('.*') if path.name != '.wsol_jax_workdir']
    assert hidden == [] and 'MaxBoxAcc' in tables[-1]

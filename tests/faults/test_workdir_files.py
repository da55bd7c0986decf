"""Files of a workdir that somebody damaged, and cells that a spreadsheet would run."""

import os

import pytest

from wsol_jax.config import ConfigError
from wsol_jax.workdir import read_csv, read_json, write_csv

pytestmark = pytest.mark.faults

FORMULAS = (
    '=cmd|calc!A1.jpg',
    '+1+1',
    '-2+3',
    '@SUM(A1)',
    '\t=1',
    '\r=1',
    '\n=1',
    ' =1',
    '＝1',
    "'=quoted",
    "''@twice",
    '-x.jpg',
)
PLAIN = ('a.jpg', "it's.jpg", "'a.jpg", '-0.5', '+3', '-inf', '1e-3', '', 'a=b', 'é,"\n')


def test_formulas_are_escaped_and_come_back(tmp_path):
    file = tmp_path / 'a.csv'
    cells = [*FORMULAS, *PLAIN]
    write_csv(file, ('name', 'number'), [(cell, -1.5) for cell in cells])
    assert [row['name'] for row in read_csv(file)] == cells
    assert {row['number'] for row in read_csv(file)} == {'-1.5'}
    lines = file.read_bytes().decode().split('\r\n')
    assert lines[1] == "'=cmd|calc!A1.jpg,-1.5" and '-0.5,-1.5' in lines
    write_csv(file, ('name',), [(cell,) for cell in FORMULAS])
    for line in file.read_bytes().decode().split('\r\n')[1:-1]:
        assert line.lstrip('"').startswith("'")


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'a,b\r\n1\r\n', 'row 2 has 1 cells, not 2; delete it and run again'),
        (b'a,b\r\n1,2\r\n1,2,3\r\n', 'row 3 has 3 cells, not 2'),
        (b'a,c\r\n1,2\r\n', "no column 'b'"),
        (b'a,b\r\n\xff,2\r\n', "no CSV file that can be read: 'utf-8' codec"),
        (b'a,b\r\n"' + b'x' * 200_000 + b'"\r\n', 'no CSV file that can be read: field larger'),
    ],
)
def test_damaged_csv_is_one_line(tmp_path, content, message):
    file = tmp_path / 'a.csv'
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_csv(file, ('a', 'b'))
    assert str(caught.value).startswith(f'{file}: {message}') and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'content',
    [b'', b'[]', b'\xff', b'[' * 200_000, b'{"a":' * 200_000, b'9' * 5000, b'{} {}', b'\0'],
)
def test_damaged_json_is_one_line(tmp_path, content):
    file = tmp_path / 'a.json'
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json(file)
    assert str(caught.value).startswith(str(file)) and '\n' not in str(caught.value)


@pytest.mark.parametrize('read', [read_csv, read_json])
@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda f: f.symlink_to('/dev/zero')])
def test_what_is_no_file_is_not_read(tmp_path, read, make):
    make(tmp_path / 'x')
    with pytest.raises(ConfigError, match='not a regular file'):
        read(tmp_path / 'x')

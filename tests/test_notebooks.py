"""The notebooks run, on few images, and lie here as they ran: with their pictures, and small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'notebooks').glob('*.ipynb'))
LARGEST = 400_000  # bytes
# A network that needs no weights, in place of one that would be fetched.
FEW = {'WSOL_QUICK': '1', 'WSOL_NETWORK': 'squeezenet1_1', 'WSOL_WEIGHTS': ''}


def read(file):
    return nbformat.read(file, as_version=4)


def outputs(notebook):
    return [out for cell in notebook.cells for out in cell.get('outputs', [])]


def pictures(notebook):
    return [out for out in outputs(notebook) if 'image/jpeg' in out.get('data', {})]


@pytest.mark.slow
@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_to_its_end(file, tmp_path, monkeypatch):
    for name, value in FEW.items():
        monkeypatch.setenv(name, value)
    notebook, committed = read(file), read(file)
    where = {'metadata': {'path': str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=where).execute()
    assert len(pictures(notebook)) == len(pictures(committed))


@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_lies_here_as_it_ran(file):
    notebook, text = read(file), file.read_text('utf-8')
    assert len(text) < LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook) and all(out.output_type != 'error' for out in outputs(notebook))
    assert '/tmp/' not in text and '/home/' not in text and '/work/' not in text


def test_the_tutorials_page_has_them_all():
    page = (NOTEBOOKS[0].parents[1] / 'docs/tutorials.md').read_text('utf-8')
    assert len(NOTEBOOKS) == 4 and all(f'notebooks/{file.stem}' in page for file in NOTEBOOKS)

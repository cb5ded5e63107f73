"""Every notebook, as JupyterLab's Run All does it: one kernel, every cell, also those that
nbdev_test skips by their flags.

A cell that needs a GPU or a server says so and passes on (`needs`); a long one stops after a few
steps. A copy is run, so that nothing that is saved beside the notebooks changes.
"""
import shutil

import pytest

from common import NBS, cells, directives, name, notebooks
from test_notebooks import WITH_CODE

nbclient = pytest.importorskip('nbclient',
                               reason='nbclient is not installed: it comes with jupyterlab')
nbformat = pytest.importorskip('nbformat')
STEPS, LIMIT = 20, 400                                   # training steps, seconds for one cell


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The notebooks with what lies beside them"
    d = tmp_path_factory.mktemp('kernels')/'nbs'
    shutil.copytree(NBS, d, ignore=shutil.ignore_patterns('.*', '_*'))
    return d


@pytest.mark.exhaustive
@pytest.mark.parametrize('nb', WITH_CODE, ids=name)
def test_runs_from_top_to_bottom_in_a_kernel(nb, copy, monkeypatch):
    monkeypatch.setenv('GPTLAB_MAX_STEPS', str(STEPS))
    monkeypatch.setenv('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
    page = nbformat.read(copy/name(nb), as_version=4)
    client = nbclient.NotebookClient(page, timeout=LIMIT, kernel_name='python3', resources=dict(
        metadata=dict(path=str((copy/name(nb)).parent))))
    # raises at the first cell that fails, as Run All stops there
    client.execute()
    assert ([c for c in page.cells
             if c.cell_type == 'code' and c.source.strip() and c.execution_count is None] == [])


@pytest.mark.parametrize('flag', ['cuda', 'mps'])
def test_cells_for_a_device_ask_for_it(flag):
    """nbdev skips a cell by its flag, JupyterLab does not: the cell asks, and passes on where there
    is none"""
    bad = [f'{name(nb)} cell {c["n"]}' for nb in notebooks() for c in cells(nb, 'code')
           if flag in dict(directives(c['source'])) and f"needs('{flag}')" not in c['source']]
    assert not bad, f"begin with `if needs('{flag}'):` {bad}"

"""Notebooks as JupyterLab's Run All does it: one kernel, every cell, also those that nbdev_test
skips by their flags.

Notebooks that hold such a cell always run; of the others, whose cells the quick tier has run, a
sample does (`--count 99`: all). A cell that needs a GPU or a server says so and passes on
(`needs`), unless it trains: then it runs on the CPU, on small batches. A long one stops after a few
steps. A copy is run, so that nothing that is saved beside the notebooks changes.
"""
import re
import shutil

import pytest
import torch

from common import NBS, ROOT, cells, directives, name, notebooks
from test_notebooks import WITH_CODE, skipped

nbclient = pytest.importorskip('nbclient',
                               reason='nbclient is not installed: it comes with jupyterlab')
nbformat = pytest.importorskip('nbformat')
STEPS, LIMIT = 20, 400                                   # training steps, seconds for one cell


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The notebooks with what lies beside them, and the results that some of them show"
    d = tmp_path_factory.mktemp('kernels')/'nbs'
    shutil.copytree(NBS, d, ignore=shutil.ignore_patterns('.*', '_*'))
    shutil.copytree(ROOT/'benchmarks'/'results', d.parent/'benchmarks'/'results')
    return d


def on_the_cpu(source):
    "A cell that trains on a GPU, for where there is none: the same lines, small batches, no GPU"
    if '.fit(' not in source or not {'cuda', 'mps'} & dict(directives(source)).keys(): return source
    small = re.sub(r'B=\d+, T=\d+', 'B=2, T=16', source)
    return re.sub(r"needs\('(cuda|mps)'\)", 'True', small).replace("'cuda'", "'cpu'")


@pytest.fixture
def run_all(copy, monkeypatch):
    return lambda nb: in_a_kernel(nb, copy, monkeypatch)


@pytest.mark.exhaustive
@pytest.mark.parametrize('nb', [p for p in WITH_CODE if skipped(p)], ids=name)
def test_cells_that_nbdev_skips_run_in_a_kernel(nb, run_all):
    run_all(nb)


@pytest.mark.grid(quick=0, sample=6)
@pytest.mark.parametrize('nb', [p for p in WITH_CODE if not skipped(p)], ids=name)
def test_runs_from_top_to_bottom_in_a_kernel(nb, run_all):
    run_all(nb)


def in_a_kernel(nb, copy, monkeypatch):
    "Every cell in its order, in one kernel"
    monkeypatch.setenv('GPTLAB_MAX_STEPS', str(STEPS))
    monkeypatch.setenv('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
    page = nbformat.read(copy/name(nb), as_version=4)
    if not torch.cuda.is_available():
        for cell in page.cells: cell.source = on_the_cpu(cell.source)
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


def test_cells_that_train_on_a_gpu_are_run_without_one():
    "What the kernels run is what stands there, but for the device and the batch"
    found = [c['source'] for nb in notebooks() for c in cells(nb, 'code')
             if c['source'] != on_the_cpu(c['source'])]
    assert len(found) >= 4
    for source in found:
        made = on_the_cpu(source)
        assert 'cuda' not in made.split('\n', 2)[2] and made.count('\n') == source.count('\n')

"""Each notebook is its own test, run by nbdev in a process of its own: workers that are used again
leak state from one to the next.

Under IN_TEST, which nbdev_test sets, training stops after 20 steps, so a chapter takes 15 seconds
or less on one thread.
"""
import os, subprocess

import pytest

from common import ROOT, cells, directives, folder, name, nbdev, notebooks, number

# seconds, for a chapter and for the other pages: a slow machine, not a slow notebook
LIMIT, LONG = 120, 300
SKIPPED = {'slow', 'cuda', 'mps', 'net', 'notest'}


def runs(cell):
    "Whether nbdev_test runs this cell"
    ds = dict(directives(cell['source']))
    return (bool(cell['source'].strip()) and not SKIPPED & ds.keys()
            and ds.get('eval:', '').lower() != 'false')


def skipped(nb):
    "Whether nbdev_test leaves out a cell of it; then tests/test_kernels.py runs all of it"
    return any(c['source'].strip() and not runs(c) for c in cells(nb, 'code'))


WITH_CODE = [p for p in notebooks() if any(map(runs, cells(p, 'code')))]
# the recipe that stands for the others in the quick tier
ALWAYS = 'gradientlab.ipynb',


def tiered(nb):
    "Pages that use the library are many and alike: with --exhaustive, but for one recipe"
    return pytest.param(nb, marks=[pytest.mark.exhaustive] if folder(nb) and nb.name not in ALWAYS
                        else [])


HERE = [p for p in WITH_CODE if not folder(p) or p.name in ALWAYS or not skipped(p)]


@pytest.mark.parametrize('nb', [*map(tiered, HERE)], ids=name)
def test_notebook(nb):
    limit = LONG if number(nb) is None else LIMIT
    cmd = [*nbdev('nbdev_test'), '--path', str(nb.relative_to(ROOT)), '--n_workers', '0']
    try:
        done = subprocess.run(cmd, cwd=ROOT, capture_output=True, text=True, encoding='utf-8',
                              errors='replace', timeout=limit, env=os.environ)
    except subprocess.TimeoutExpired:
        pytest.fail(f'{name(nb)} took more than {limit} s; mark long cells with #| slow',
                    pytrace=False)
    said = (done.stdout + done.stderr)[-6000:]
    if done.returncode: pytest.fail(said, pytrace=False)
    # it exits with 0 when no file was eligible
    assert 'Success.' in done.stdout, f'nbdev_test ran nothing: {said}'


def test_only_references_and_glossary_have_no_code():
    without = {name(p) for p in set(notebooks()) - set(WITH_CODE)}
    assert without <= {'references.ipynb', 'glossary.ipynb'}

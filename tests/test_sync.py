"Notebooks and package say the same: exported and cleaned in a copy, nothing differs. Run nbdev_export and nbdev_clean to mend it."
import importlib.util, os, shutil, subprocess

import pytest

from common import LIB, NBS, ROOT


def run(cmd, cwd):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}        # with IN_TEST set, nbdev_export does nothing and says so to nobody
    done = subprocess.run(cmd, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The project without its package, in a temporary folder"
    d = tmp_path_factory.mktemp('sync')/'gptlab'
    d.mkdir()
    for f in ('settings.ini', 'pyproject.toml', 'README.md', '_quarto.yml'):
        if (ROOT/f).exists(): shutil.copy(ROOT/f, d/f)
    shutil.copytree(NBS, d/'nbs', ignore=shutil.ignore_patterns('.*', '__pycache__', 'nbdev.yml'), symlinks=False)
    return d


def files(d, keep):
    return {p.relative_to(d).as_posix(): p.read_text(encoding='utf-8') for p in sorted(d.rglob('*')) if p.is_file() and keep(p)}


def differences(fresh, here):
    return ([f'{f} is missing' for f in fresh.keys() - here.keys()] + [f'{f} has no notebook any more' for f in here.keys() - fresh.keys()] +
            [f'{f} differs' for f in fresh.keys() & here.keys() if fresh[f] != here[f]])


def test_the_package_is_what_the_notebooks_export(copy):
    run(['nbdev_export'], copy)
    index = (LIB/'_modidx.py').exists()                                  # made by nbdev_export for doc links; checked where it is kept
    keep = lambda p: p.suffix == '.py' and (index or p.name != '_modidx.py')
    assert not differences(files(copy/'gptlab', keep), files(LIB, keep)), 'run nbdev_export'


def test_the_notebooks_are_clean(copy):
    keep = lambda p: p.suffix == '.ipynb' and '.ipynb_checkpoints' not in p.parts
    run(['nbdev_clean'], copy)
    assert not differences(files(copy/'nbs', keep), files(NBS, keep)), 'run nbdev_clean'


def test_the_sidebar_lists_the_notebooks():
    spec = importlib.util.spec_from_file_location('docs', ROOT/'.ci'/'docs.py')
    docs = importlib.util.module_from_spec(spec); spec.loader.exec_module(docs)
    assert (ROOT/'_quarto.yml').read_text(encoding='utf-8').endswith('    contents:\n' + docs.sidebar()), 'run python .ci/docs.py --sidebar'


@pytest.mark.skipif(os.name == 'nt', reason='Windows checks symlinks out as text')
def test_quarto_reads_the_one_file():
    link = NBS/'_quarto.yml'
    assert link.is_symlink() and link.resolve() == (ROOT/'_quarto.yml').resolve()

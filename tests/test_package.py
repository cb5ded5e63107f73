"""A wheel builds, installs into an empty environment and runs; importing gptlab stays light.

The environment is empty but for a path to the libraries installed here, so that torch is not
fetched again; .ci/run installs everything anew.
"""
import ast, configparser, json, os, re, shutil, subprocess, sys, sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

try: import tomllib
except ImportError: import tomli as tomllib      # Python 3.10; pytest brings it

from common import LIB, ROOT

HEAVY = ['datasets', 'trackio', 'transformers', 'torch._dynamo', 'torchao', 'gradio', 'pyarrow',
         'tokenizers', 'wandb', 'tensorboard']
UNSEEN = ('PYTHONPATH', 'VIRTUAL_ENV', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')


def run(cmd, cwd, timeout=300, **env):
    env = {k: v for k, v in os.environ.items() if k not in UNSEEN} | env
    done = subprocess.run([str(c) for c in cmd], cwd=cwd, env=env, capture_output=True, text=True,
                          encoding='utf-8', errors='replace', timeout=timeout,
                          stdin=subprocess.DEVNULL)
    said = f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    assert not done.returncode, f'{cmd} gave {done.returncode}:\n{said}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel of this working tree"
    d = tmp_path_factory.mktemp('wheel')
    src = d/'src'
    src.mkdir()
    for f in ('pyproject.toml', 'settings.ini', 'README.md', 'LICENSE'):
        shutil.copy(ROOT/f, src/f)
    shutil.copytree(LIB, src/'gptlab', ignore=shutil.ignore_patterns('__pycache__'))
    build = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', d, src]
    run(build, cwd=d)
    return next(d.glob('*.whl'))


@pytest.fixture(scope='module')
def venv(wheel, tmp_path_factory):
    "An environment that holds the wheel and sees the libraries of this one"
    d = tmp_path_factory.mktemp('env')/'env'
    run([sys.executable, '-m', 'venv', '--without-pip', d], cwd=d.parent)
    scripts = d/('Scripts' if os.name == 'nt' else 'bin')
    python = scripts/('python.exe' if os.name == 'nt' else 'python')
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps']
    run([*pip, '--no-index', wheel], cwd=d)
    where = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
    own = Path(run([python, '-c', where], cwd=d).strip())
    seen = sorted({sysconfig.get_paths()[k] for k in ('purelib', 'platlib')})
    # .pth files in there are not followed: our own editable install stays unseen
    (own/'elsewhere.pth').write_text('\n'.join(seen) + '\n')
    return scripts, python, own


def test_the_wheel_holds_the_package(wheel):
    import zipfile
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f'gptlab/{p.name}' for p in LIB.glob('*.py')} <= names
    assert not [n for n in names if n.startswith(('tests/', 'nbs/', 'benchmarks/'))]
    assert any(n.endswith('LICENSE') for n in names)


def test_installed_it_is_the_wheel_that_runs(venv, tmp_path):
    _, python, own = venv
    code = 'import gptlab, gptlab.core; print(gptlab.__file__); print(gptlab.__version__)'
    file, version = run([python, '-c', code], cwd=tmp_path).split()
    file = Path(file).resolve()
    assert file.is_relative_to(own.resolve()) and not file.is_relative_to(ROOT)
    assert version in (ROOT/'settings.ini').read_text()


def imported(node):
    "The packages that a statement imports, gptlab's own modules left out"
    if isinstance(node, ast.Import): return {a.name.split('.')[0] for a in node.names}
    absolute = isinstance(node, ast.ImportFrom) and not node.level
    return {node.module.split('.')[0]} - {'gptlab'} if absolute else set()


def test_what_is_imported_is_declared():
    """What the package imports comes with it

    That is the standard library, the declared dependencies, IPython, which ipywidgets brings, and
    tiktoken's own second package. An extra's packages are imported inside functions.
    """
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    block = re.search(r'^dependencies = \[(.*?)^\]', text, re.S | re.M)[1]
    extras = re.search(r'^\[project.optional-dependencies\](.*?)^\[', text, re.S | re.M)[1]
    other = dict(pyyaml='yaml')                       # packages under another name than their own
    declared, optional = ({other.get(name, name.replace('-', '_'))
                           for name in re.findall(r'"([A-Za-z][A-Za-z0-9_-]*)', t)}
                          for t in (block, extras))
    given = set(sys.stdlib_module_names) | declared | {'IPython', 'nbdev', 'tiktoken_ext', 'gptlab'}
    bad = []
    for mod in LIB.glob('*.py'):
        top = ast.parse(mod.read_text(encoding='utf-8'))
        for node in ast.walk(top):
            for n in imported(node) - given:
                if n in optional and node not in top.body: continue
                bad.append(f'gptlab/{mod.name} line {node.lineno}: {n} is not among the '
                           'dependencies in pyproject.toml')
    assert not bad, '\n'.join(bad)


def requirement(name, extra=None):
    "What pyproject.toml asks of a library, at run time or in an extra"
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
    lines = project['optional-dependencies'][extra] if extra else project['dependencies']
    return next(r.specifier for r in map(Requirement, lines) if r.name == name)


def test_fastcore_2_will_do():
    "The library runs with fastcore 1 and 2; only nbdev 2, a tool of development, needs 1"
    use, dev = requirement('fastcore'), requirement('fastcore', 'dev')
    assert [v in use for v in ('1.12.2', '1.12.3', '2.2.41', '3.0')] == [False, True, True, False]
    assert [v in dev for v in ('1.12.3', '2.0')] == [True, False]


def test_nbdev_3_is_told_what_settings_ini_says():
    "nbdev 3 reads [tool.nbdev] in place of settings.ini"
    told = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['tool']['nbdev']
    ini = configparser.ConfigParser()
    ini.read(ROOT/'settings.ini')
    assert told and {k: str(v) for k, v in told.items()} == {k: ini['DEFAULT'][k] for k in told}


@pytest.mark.parametrize('own, told', [
    ({}, ['passive', '1000']), (dict(GOMP_SPINCOUNT='7'), ['passive', '7']),
    (dict(OMP_WAIT_POLICY='active'), ['active', 'None'])], ids=['none', 'count', 'policy'])
def test_waiting_threads_sleep(own, told, tmp_path):
    "U05: OpenMP is told how to wait before torch can be loaded; a user's own choice stays"
    code = """if 1:
        import os, sys, gptlab
        assert 'torch' not in sys.modules
        print(*map(os.environ.get, ['OMP_WAIT_POLICY', 'GOMP_SPINCOUNT']))"""
    assert run([sys.executable, '-c', code], cwd=tmp_path, **own).split() == told


def test_the_command_trains_and_samples(venv, tmp_path):
    scripts, python, _ = venv
    gptlab = scripts/('gptlab.exe' if os.name == 'nt' else 'gptlab')
    assert 'train' in run([gptlab, '--help'], cwd=tmp_path)
    said = run([gptlab, 'train', '--text', 'stories'], cwd=tmp_path, GPTLAB_MAX_STEPS='3')
    assert 'bits per byte' in said, said[-2000:]
    assert run([gptlab, 'sample', '--prompt', 'Once upon'], cwd=tmp_path).strip()


def test_import_is_light(tmp_path, record_property):
    "Heavy libraries are imported where they are used. The time is reported, not judged"
    code = f'''if 1:
        import json, sys, time
        import torch; before = set(sys.modules); start = time.perf_counter()
        import gptlab.all
        heavy = [m for m in {HEAVY} if m in sys.modules and m not in before]
        print(json.dumps([time.perf_counter() - start, heavy]))'''
    took, loaded = json.loads(run([sys.executable, '-c', code], cwd=tmp_path).splitlines()[-1])
    record_property('import_seconds', took)
    print(f'import gptlab.all: {took:.2f} s beyond torch')
    assert not loaded, f'import gptlab.all loads {loaded}'

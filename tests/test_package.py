"""A wheel builds, installs into an empty environment and runs; importing gptlab stays light.

The environment is empty but for a path to the libraries installed here, so that torch is not fetched again; .ci/run installs everything anew.
"""
import ast, json, os, re, shutil, subprocess, sys, sysconfig
from pathlib import Path

import pytest

from common import LIB, ROOT

CLI = (LIB/'cli.py').exists()
needs_cli = pytest.mark.skipif(not CLI, reason='gptlab/cli.py does not exist yet')
HEAVY = ['datasets', 'trackio', 'transformers', 'torch._dynamo', 'torchao', 'gradio', 'pyarrow', 'tokenizers']


def run(cmd, cwd, timeout=300, **env):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')} | env
    done = subprocess.run([str(c) for c in cmd], cwd=cwd, env=env, capture_output=True, text=True, encoding='utf-8', errors='replace', timeout=timeout, stdin=subprocess.DEVNULL)
    assert not done.returncode, f'{cmd} gave {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel of this working tree"
    d = tmp_path_factory.mktemp('wheel')
    src = d/'src'
    src.mkdir()
    for f in ('pyproject.toml', 'settings.ini', 'README.md', 'LICENSE'): shutil.copy(ROOT/f, src/f)
    shutil.copytree(LIB, src/'gptlab', ignore=shutil.ignore_patterns('__pycache__'))
    run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', d, src], cwd=d)
    return next(d.glob('*.whl'))


@pytest.fixture(scope='module')
def venv(wheel, tmp_path_factory):
    "An environment that holds the wheel and sees the libraries of this one"
    d = tmp_path_factory.mktemp('env')/'env'
    run([sys.executable, '-m', 'venv', '--without-pip', d], cwd=d.parent)
    scripts = d/('Scripts' if os.name == 'nt' else 'bin')
    python = scripts/('python.exe' if os.name == 'nt' else 'python')
    run([sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', wheel], cwd=d)
    own = Path(run([python, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])'], cwd=d).strip())
    seen = sorted({sysconfig.get_paths()[k] for k in ('purelib', 'platlib')})
    (own/'elsewhere.pth').write_text('\n'.join(seen) + '\n')      # .pth files in there are not followed: our own editable install stays unseen
    return scripts, python, own


def test_the_wheel_holds_the_package(wheel):
    import zipfile
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f'gptlab/{p.name}' for p in LIB.glob('*.py')} <= names
    assert not [n for n in names if n.startswith(('tests/', 'nbs/', 'benchmarks/'))]
    assert any(n.endswith('LICENSE') for n in names)


def test_installed_it_is_the_wheel_that_runs(venv, tmp_path):
    _, python, own = venv
    said = run([python, '-c', 'import gptlab, gptlab.core; print(gptlab.__file__); print(gptlab.__version__)'], cwd=tmp_path).split()
    assert Path(said[0]).resolve().is_relative_to(own.resolve()) and not Path(said[0]).resolve().is_relative_to(ROOT)
    assert said[1] in (ROOT/'settings.ini').read_text()


def test_what_is_imported_is_declared():
    "What the package imports comes with it: the standard library, the declared dependencies, IPython, which ipywidgets brings, and tiktoken's own second package"
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    block = re.search(r'^dependencies = \[(.*?)^\]', text, re.S | re.M)[1]
    extras = re.search(r'^\[project.optional-dependencies\](.*?)^\[', text, re.S | re.M)[1]
    declared, optional = (set(re.findall(r'"([A-Za-z_]+)', t)) for t in (block, extras))
    bad = []
    for mod in LIB.glob('*.py'):
        top = ast.parse(mod.read_text(encoding='utf-8'))
        for node in ast.walk(top):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            for n in {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - declared - {'gptlab', 'IPython', 'nbdev', 'tiktoken_ext'}:
                if n not in optional or node in top.body: bad.append(f'gptlab/{mod.name} line {node.lineno}: {n} is not among the dependencies in pyproject.toml')
    assert not bad, '\n'.join(bad)


@needs_cli
def test_the_command_trains_and_samples(venv, tmp_path):
    scripts, python, _ = venv
    gptlab = scripts/('gptlab.exe' if os.name == 'nt' else 'gptlab')
    assert 'train' in run([gptlab, '--help'], cwd=tmp_path)
    said = run([gptlab, 'train', '--text', 'stories'], cwd=tmp_path, GPTLAB_MAX_STEPS='3')
    assert 'bits per byte' in said, said[-2000:]
    assert run([gptlab, 'sample', '--prompt', 'Once upon'], cwd=tmp_path, GPTLAB_MAX_STEPS='3').strip()


@pytest.mark.skipif(not (LIB/'all.py').exists(), reason='gptlab/all.py does not exist yet')
def test_import_is_light(tmp_path, record_property):
    "Heavy libraries are imported where they are used. The time is reported, not judged: machines differ"
    code = f'''if 1:
        import json, sys, time
        import torch; before = set(sys.modules); start = time.perf_counter()
        import gptlab.all
        print(json.dumps([time.perf_counter() - start, [m for m in {HEAVY} if m in sys.modules and m not in before]]))'''
    took, loaded = min(json.loads(run([sys.executable, '-c', code], cwd=tmp_path).splitlines()[-1]) for _ in range(2))
    record_property('import_seconds', took)
    print(f'import gptlab.all: {took:.2f} s beyond torch')
    assert not loaded, f'import gptlab.all loads {loaded}'

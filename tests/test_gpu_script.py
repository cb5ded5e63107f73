"""The script for a machine with a GPU, in dry runs on the CPU: what it costs, survives, resumes.

Nothing here shows that a figure is right; it shows that the script gets as far as the figures.
"""
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
import zipfile
from types import SimpleNamespace

import pytest
import torch

from common import ROOT

SCRIPT = ROOT/'benchmarks'/'gpu.py'
NAMES = ['arithmetic', 'cells', 'tests', 'train', 'decode', 'flex']
OURS = ['datasets', 'trackio', 'matplotlib', 'IPython', 'nbdev', 'execnb', 'transformers', 'tqdm',
        'ipywidgets', 'scipy', 'pandas', 'jupyterlab', 'huggingface_hub', 'tokenizers', 'pyarrow',
        'sentencepiece', 'regex', 'tiktoken', 'safetensors', 'playwright', 'accelerate']
BLOCKER = '''
import importlib.machinery, os

find = importlib.machinery.PathFinder.find_spec

def find_spec(*args, **kwargs):
    name = next(a for a in args if isinstance(a, str))
    return None if name.split('.')[0] in os.environ['BLOCKED'].split() else find(*args, **kwargs)

importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
'''


def call(out, *args, phases='', blocked=(), where=None, limit=300):
    "Run the script in a process of its own; `phases` is the source of more phases."
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    if phases:
        (where/'phases.py').write_text(phases)
        env['GPTLAB_GPU_PHASES'] = str(where/'phases.py')
    if blocked:
        (where/'sitecustomize.py').write_text(BLOCKER)
        env |= dict(PYTHONPATH=str(where), BLOCKED=' '.join(blocked))
    command = [sys.executable, str(SCRIPT), '--out', str(out), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=limit)


def results(out):
    "phase -> JSON of a folder, in which nothing but JSON and logs is left."
    assert {p.suffix for p in out.iterdir()} <= {'.json', '.log'}
    return {p.stem: json.loads(p.read_text()) for p in out.glob('*.json')}


def statuses(out):
    return {k: r['status'] for k, r in results(out).items()}


@pytest.fixture(scope='module')
def gpu():
    "The script as a module."
    spec = importlib.util.spec_from_file_location('gpu_script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def job(gpu, tmp_path):
    return gpu.Job('flex', 'cpu', True, None, tmp_path/'draft.json', 60)


# ---- one phase, then again

def test_one_phase_is_kept_whole_and_a_second_call_goes_on(tmp_path):
    "First run, nothing to do, and a file that is damaged or belongs to figures of another kind"
    done = call(tmp_path, '--tiny', '--phases', 'arithmetic')
    assert done.returncode == 0, done.stdout + done.stderr
    r = results(tmp_path)['arithmetic']
    assert r['status'] == 'ok' and r['dry'] is True and r['device'] == 'cpu' and r['seconds'] > 0
    assert r['versions']['torch'] == torch.__version__ and r['versions']['commit']
    assert {'cores', 'threads'} <= r['hardware'].keys() and r['date'] and r['about']
    rows = [row for row in r['figures']['rows'] if 'error' in row]
    assert len(rows) > 60 and all(row['error'] <= row['bound'] for row in rows)
    assert 'up to' in done.stdout and 'within their bounds' in done.stdout.splitlines()[-1]

    before = (tmp_path/'arithmetic.json').stat().st_mtime_ns
    done = call(tmp_path, '--tiny', '--phases', 'arithmetic')
    assert done.returncode == 0 and 'kept from' in done.stdout and 'begun' not in done.stdout
    assert (tmp_path/'arithmetic.json').stat().st_mtime_ns == before

    (tmp_path/'arithmetic.json').write_text('{"phase": "arithme')
    done = call(tmp_path, '--tiny', '--phases', 'arithmetic')
    assert 'arithmetic: begun' in done.stdout and statuses(tmp_path) == dict(arithmetic='ok')


def test_what_stands_and_what_is_repeated(gpu):
    args = SimpleNamespace(device='cuda', tiny=False)
    whole = dict(status='ok', device='cuda', dry=False, figures={})
    assert gpu.good(whole, args) and gpu.good(whole | dict(status='skipped: why'), args)
    for change in (dict(status='failed: why'), dict(status='out of time: killed'), dict(dry=True),
                   dict(status='missing: torch'), dict(device='cpu'), dict(figures=None)):
        assert not gpu.good(whole | change, args), change
    assert not gpu.good(None, args) and not gpu.good({}, args)


def test_too_little_time_is_said_before_anything_begins(tmp_path):
    done = call(tmp_path, '--tiny', '--minutes', .05)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert all(f'{k}: not begun: it needs' in done.stdout for k in NAMES), done.stdout


def test_a_dry_run_never_writes_over_figures(tmp_path):
    kept = json.dumps(dict(phase='train', status='ok', dry=False))
    (tmp_path/'train.json').write_text(kept)
    done = call(tmp_path, '--tiny', '--phases', 'train')
    assert done.returncode == 2 and 'holds figures' in done.stderr
    assert (tmp_path/'train.json').read_text() == kept


def test_a_device_that_is_not_there_is_a_failure(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is one')
    done = call(tmp_path, '--phases', 'arithmetic')
    found = results(tmp_path)['arithmetic']
    assert done.returncode == 1 and 'no cuda device' in found['status'] and not found['dry']


# ---- failures cost their own phase alone

HANGS = '''
@phase(order=1, limit=9)
def hangs(job):
    "Hangs, and has begun a process that leaves its group."
    job.keep(figure=1)
    child = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'
    p = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE, text=True,
                         start_new_session=True)
    job.keep(child=int(p.stdout.readline()))
    time.sleep(600)

@phase(order=2, limit=20)
def after(job):
    "Comes after."
'''


def alive(pid):
    try:
        state = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0]
    except OSError:
        return False
    return state != 'Z'


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_a_hanging_phase_is_killed_with_its_children(tmp_path):
    out, began = tmp_path/'out', time.monotonic()
    done = call(out, '--tiny', '--phases', 'hangs', 'after', phases=HANGS, where=tmp_path)
    assert time.monotonic() - began < 60
    found = results(out)
    assert found['hangs']['status'].startswith('out of time') and done.returncode == 1
    assert found['after']['status'] == 'ok'
    kept = found['hangs']['figures']
    assert kept['figure'] == 1 and not alive(kept['child'])


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_who_ends_the_script_ends_all_and_keeps_what_was_found(tmp_path):
    (tmp_path/'phases.py').write_text(HANGS.replace('limit=9', 'limit=90'))
    env = os.environ | dict(GPTLAB_GPU_PHASES=str(tmp_path/'phases.py'))
    out = tmp_path/'out'
    command = [sys.executable, str(SCRIPT), '--tiny', '--phases', 'hangs', '--out', str(out)]
    p = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    draft = out/'.hangs.part.json'
    for _ in range(600):
        if draft.exists() and 'child' in draft.read_text():
            break
        time.sleep(.1)
    p.terminate()
    assert p.wait(timeout=30) == 143
    found = results(out)['hangs']
    assert found['status'] == 'failed: interrupted' and not alive(found['figures']['child'])


FAILS = '''
@phase(order=1, limit=20)
def crashes(job):
    "Ends without a word."
    job.keep(figure=1)
    os.kill(os.getpid(), signal.SIGSEGV)

@phase(order=2, limit=20)
def raises(job):
    "Raises."
    job.keep(figure=2)
    raise ZeroDivisionError('by zero')

@phase(order=3, limit=20)
def lacks(job):
    "Needs what nobody has."
    import no_such_library.part

@phase(order=4, limit=20)
def skips(job):
    "Has nothing to do."
    raise Skip('there is nothing')
'''


@pytest.mark.exhaustive
def test_crash_error_and_missing_library_cost_one_phase_and_are_repeated(tmp_path):
    out, names = tmp_path/'out', ['crashes', 'raises', 'lacks', 'skips']
    done = call(out, '--tiny', '--phases', *names, phases=FAILS, where=tmp_path)
    found = results(out)
    assert found['crashes']['status'] == 'failed: the process ended with code -11'
    assert found['crashes']['figures'] == dict(figure=1)
    assert found['raises']['status'] == 'failed: ZeroDivisionError: by zero'
    assert 'by zero' in found['raises']['traceback'] and found['raises']['figures']['figure'] == 2
    assert found['lacks']['status'] == 'missing: no_such_library'
    assert found['skips']['status'] == 'skipped: there is nothing' and done.returncode == 1
    mended = FAILS.replace("raise ZeroDivisionError('by zero')", 'job.keep(figure=3)')
    names = ['raises', 'skips']
    done = call(out, '--tiny', '--phases', *names, phases=mended, where=tmp_path)
    assert results(out)['raises']['figures'] == dict(figure=3) and done.returncode == 0
    assert 'raises: begun' in done.stdout and 'skips: begun' not in done.stdout


# ---- a bare machine

def test_a_library_that_is_missing_is_named_and_the_rest_run(tmp_path):
    out, names = tmp_path/'out', ['cells', 'flex', 'fine']
    phases = '''@phase(order=70, limit=20)\ndef fine(job): "Needs nothing."'''
    blocked = [*OURS, 'fastcore']
    done = call(out, '--tiny', '--phases', *names, blocked=blocked, where=tmp_path, phases=phases)
    want = dict(fine='ok', cells='missing: fastcore', flex='missing: fastcore')
    assert statuses(out) == want, done.stdout
    assert 'missing' in done.stdout and 'fastcore' in done.stdout and done.returncode == 1


def test_decoding_needs_torch_numpy_and_fastcore_alone(tmp_path):
    out = tmp_path/'out'
    done = call(out, '--tiny', '--phases', 'decode', blocked=OURS, where=tmp_path)
    found = results(out)['decode']
    assert found['status'] == 'ok' and found['stand_ins'] == ['safetensors'], done.stdout
    table = found['figures']['table']
    assert len(table) == 4 and all(r['tokens_per_s'] > 0 for r in table)
    lines = table[0]['host_reads']['operations']['lines']
    assert any(line.startswith('generation.py') for line in lines)


@pytest.mark.exhaustive
def test_cells_and_training_need_torch_numpy_and_fastcore_alone(tmp_path):
    out = tmp_path/'out'
    done = call(out, '--tiny', '--phases', 'cells', 'train', blocked=OURS, where=tmp_path)
    found = results(out)
    assert found['train']['status'] == 'ok', done.stdout
    assert found['cells']['status'].startswith('skipped' if not torch.cuda.is_available() else 'ok')
    # the cells of 44 that compare with chi-square need scipy, which is not there
    rows = [r for name, rows in found['cells']['figures']['notebooks'].items()
            for r in rows if not name.startswith('44_')]
    bad = [r for r in rows if r['outcome'].startswith('failed')]
    assert len(rows) > 20 and not bad, bad


def wheel(folder, name):
    "A pure wheel of one module."
    info, path = f'{name}-1.0.dist-info', folder/f'{name}-1.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr(f'{name}.py', 'value = 42\n')
        z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        kind = 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        z.writestr(f'{info}/WHEEL', kind)
        z.writestr(f'{info}/RECORD', '')
    return path


USES = '''
@phase(order=1, limit=20)
def uses(job):
    "Imports what only a wheel holds."
    import from_a_wheel
    job.keep(value=from_a_wheel.value)
'''


@pytest.mark.exhaustive
def test_wheels_are_on_the_path_of_the_phases(tmp_path):
    out, wheels = tmp_path/'out', tmp_path/'wheels'
    wheels.mkdir()
    wheel(wheels, 'from_a_wheel')
    (wheels/'broken-1.0-py3-none-any.whl').write_text('no archive')
    args = ['--tiny', '--phases', 'uses', '--wheels', wheels]
    done = call(out, *args, phases=USES, where=tmp_path)
    assert statuses(out) == dict(uses='ok'), done.stdout
    assert 'broken-1.0-py3-none-any.whl: not installed' in done.stdout


def test_without_pip_pure_wheels_are_read_as_they_are(gpu, tmp_path, monkeypatch):
    path = wheel(tmp_path, 'from_a_wheel')
    monkeypatch.setattr(gpu, 'quiet', lambda *args: False)
    assert gpu.unpack(tmp_path, tmp_path/'there', 10) == [str(tmp_path/'there'), str(path)]


# ---- the parts

def test_reads_by_operations_are_counted_at_the_line_that_asks(gpu):
    x = torch.ones(3)
    def f():
        x.sum().item()
        x.tolist()
        return bool((x > 0).all())
    found = gpu.operation_reads(f, 2)
    assert found['per_call'] == 3 and len(found['lines']) == 3, found
    assert all(line.startswith('test_gpu_script.py') for line in found['lines'])
    assert gpu.operation_reads(f, 2, 'cuda')['per_call'] == 0           # values of the host itself
    assert gpu.operation_reads(lambda: x.to('meta'), 1, 'meta')['per_call'] == 0


def test_reads_by_the_driver_are_the_warnings_it_gives(gpu, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
    def f():
        warnings.warn('called a synchronizing CUDA operation', stacklevel=1)
        warnings.warn('Synchronization debug mode is a prototype feature', stacklevel=1)
    found = gpu.driver_reads(f, 3)
    line, = found['lines']
    assert found['per_call'] == 1 and line.startswith('test_gpu_script.py'), found
    assert modes == ['warn', 'default']


def test_cells_are_found_in_both_forms_and_their_outcomes_told(gpu):
    assert gpu.wants_cuda('#| cuda\nf()', dict(cuda=''))
    assert gpu.wants_cuda("if needs('cuda'):\n    f()", {})
    assert not gpu.wants_cuda("test_eq(needs('cuda'), True)", {})
    answers, names = [], dict(needs=lambda what: what == 'cuda')
    gpu.remember_needs(names, answers)
    run = lambda source: gpu.run_cell(names, source, 3, answers)['outcome']
    assert run("if needs('cuda'): a = 1") == 'passed' and names['a'] == 1
    assert run("if needs('mps'): a = 2") == 'not run: needs() said no' and names['a'] == 1
    assert run('%matplotlib inline\n!ls\nb = 1') == 'passed'
    assert run('assert a == 2, "why"').startswith('failed: AssertionError: why')
    assert gpu.is_skipped('%%time\nf()', {}) and gpu.is_skipped('f()', dict(slow=''))
    assert gpu.is_skipped('f()', {'eval:': 'false'}) and not gpu.is_skipped('f()', dict(cuda=''))


def test_the_tests_that_need_a_gpu_are_found(gpu):
    found = list(gpu.tests_for_cuda())
    assert 'tests/test_attentions.py::test_flex_learns_what_the_plain_lines_learn' in found
    assert not any('test_gpu_script' in k for k in found)


def test_tests_that_ended_before_a_kill_are_read_from_what_was_printed(gpu):
    printed = ('tests/test_a.py::test_one PASSED  [ 33%]\n'
               'tests/test_a.py::test_two[a b] FAILED [ 66%]\ntests/test_a.py::test_three')
    want = [dict(test='test_one', outcome='passed'), dict(test='test_two[a b]', outcome='failure')]
    assert gpu.read_lines(printed) == want


def test_the_comparison_of_kernels_by_one_that_learns_on_the_cpu(gpu, job):
    "FlexAttention has no gradients here; its place is taken by SDPA itself"
    from gptlab.attentions import sdpa
    for window, docs in gpu.flex_cases(32).values():
        case = gpu.FlexCase(job, window, docs, 2, 32, 32, 2)
        errors = gpu.flex_errors(case, dict(sdpa=sdpa))['sdpa']
        assert errors.keys() == set('yxqkvo') and 0 < max(errors.values()) < .1
    took = gpu.flex_time(case, sdpa, 2)
    assert all(v >= 0 for v in took.values())


def test_data_of_a_folder_becomes_rows(gpu, job, tmp_path):
    (tmp_path/'a.txt').write_bytes(bytes(range(97, 123))*20)
    job.data = tmp_path
    batch = next(gpu.stream(job, 3, 16, 256))
    assert batch['ids'].shape == batch['targets'].shape == (3, 16)
    assert torch.equal(batch['ids'][:, 1:], batch['targets'][:, :-1])
    assert 97 <= batch['ids'].min() and batch['ids'].max() < 123
    with pytest.raises(ValueError, match='fewer than a row'):
        next(gpu.stream(job, 3, 4096, 256))


def test_training_goes_on_uncompiled_where_nothing_compiles(gpu, job, monkeypatch):
    tried = []
    def one_size(job, model, sizes, peak, table, compile):
        tried.append(compile)
        if compile:
            raise RuntimeError('no compiler')
        table.append(dict(first_step_s=1.))
    monkeypatch.setattr(gpu, 'one_size', one_size)
    monkeypatch.setattr(gpu, 'train_headline', lambda *args: 'shown')
    assert gpu.compiled_or_not(job, None, 1., []) == 'all sizes tried'
    assert tried == [True, False, False] and 'no compiler' in job.figures['not_compiled']


def test_training_stops_where_time_or_memory_end(gpu, job, monkeypatch):
    def one_size(job, model, sizes, peak, table, compile):
        if table:
            raise torch.OutOfMemoryError('too large')
        table.append(dict(first_step_s=1.))
    monkeypatch.setattr(gpu, 'one_size', one_size)
    monkeypatch.setattr(gpu, 'train_headline', lambda *args: 'shown')
    assert gpu.upward(job, None, 1., [], True).startswith('out of memory at')
    job.limit = 2
    assert gpu.upward(job, None, 1., [], True).startswith('no time for')


def test_every_phase_says_what_it_does_in_one_line(gpu):
    assert list(gpu.PHASES) == NAMES
    for f in gpu.PHASES.values():
        assert 0 < f.least < f.limit <= 150 and f.about.endswith('.') and len(f.about) < 90


@pytest.mark.exhaustive
def test_a_dry_run_of_everything(tmp_path):
    done = call(tmp_path, '--tiny')
    found = results(tmp_path)
    assert list(found) and found.keys() == set(NAMES) and done.returncode == 0, done.stdout
    kinds = {r['status'].split(':')[0] for r in found.values()}
    assert kinds <= {'ok', 'skipped'}, statuses(tmp_path)
    assert found['train']['figures']['best'].keys() >= {'Muon + AdamW', 'AdamW'}
    assert found['train']['figures']['graphs'] >= 1
    assert sum(r['seconds'] for r in found.values()) < 120
    done = call(tmp_path, '--tiny')
    assert done.returncode == 0 and 'begun' not in done.stdout

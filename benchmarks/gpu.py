"""A first script for a machine with a GPU, of which it knows nothing.

    python benchmarks/gpu.py --minutes 6 [--phases arithmetic train] [--data DIR] [--wheels DIR]
    python benchmarks/gpu.py --tiny              # a dry run on the CPU, into a temporary folder

Each phase runs in a process of its own, under a time limit of its own, and leaves one JSON file in
`--out`: a crash, a hang or a lack of memory costs that phase alone. Called again, the script goes
on with the phases that have no good file yet; `--again` repeats all. No phase is begun that no
longer fits into `--minutes`. Needed are Python 3.12, torch 2.11 or newer, numpy and fastcore;
gptlab is read from this repository. A phase that misses a library names it, and the rest go on.

To add a phase, write one function here, and nothing else:

    @phase(order=70, limit=60)                   # its place, and the seconds it may take at most
    def name(job):
        "The first line says what it measures; it is printed, and kept in the JSON."
        job.keep(figure=1.5)                     # kept at once, so also when the phase is killed
        job.keep(headline='shown in the table')

`job.device` is where to compute, `job.tiny` asks for sizes that take seconds on a CPU, `job.left()`
is how many seconds remain. Raise `Skip(reason)` where there is nothing to measure; any other
exception is a failure, kept with its traceback. Import torch and gptlab inside the function.
"""
import argparse
import ast
import contextlib
import datetime
import gc
import importlib.machinery
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import types
import uuid
import warnings
import xml.etree.ElementTree
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
PHASES = {}                                      # name -> function, filled by `phase`
DONE = ('ok', 'skipped')                         # statuses that are not repeated
MODULE_STAND_INS = ('safetensors',)              # imported by the trainer, used by no phase
NOTEBOOK_STAND_INS = ('safetensors', 'matplotlib', 'IPython')


class Skip(Exception):
    "Raised by a phase that has nothing to measure here; says why."


def phase(order, limit, least=None):
    "Make a function a phase: its place, its limit in seconds, and the seconds it needs at least."
    def register(f):
        f.order, f.limit, f.least = order, limit, least or limit/2
        f.about = f.__doc__.strip().splitlines()[0]
        PHASES[f.__name__] = f
        return f
    return register


# ---- files and facts

def write_json(path, value):
    "Write a file that is whole or absent, whatever happens meanwhile."
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}')
    try:
        with open(draft, 'w') as f:
            f.write(json.dumps(value, indent=1, default=str) + '\n')
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path):
    "The dictionary in a file; None where there is none, or it is damaged."
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def said(*command):
    "What a command prints, or nothing."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def commit():
    "The commit of this repository, with a plus where the code differs; without git from its files."
    if short := said('git', 'rev-parse', '--short', 'HEAD'):
        return short + '+'*bool(said('git', 'status', '--porcelain', '-uno', '--', 'gptlab', 'nbs'))
    try:
        head = (ROOT/'.git'/'HEAD').read_text().strip()
        ref = head.removeprefix('ref: ')
        return head[:9] if ref == head else (ROOT/'.git'/ref).read_text().strip()[:9]
    except OSError:
        return 'unknown'


def installed(name):
    "Whether a library can be imported."
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def version(name):
    "The version of an imported or importable library, or None."
    try:
        return getattr(importlib.import_module(name), '__version__', 'unknown')
    except ImportError:
        return None


def versions():
    "Of all that matters to a figure."
    import torch
    known = {k: version(k) for k in ('numpy', 'triton', 'gptlab')}
    return dict(python=platform.python_version(), torch=torch.__version__, cuda=torch.version.cuda,
                **known, commit=commit())


def hardware(device):
    "What the figures are measured on."
    import torch
    facts = dict(machine=platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads())
    if device != 'cuda' or not torch.cuda.is_available():
        return facts
    p = torch.cuda.get_device_properties(0)
    driver = said('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader').splitlines()
    return facts | dict(gpu=torch.cuda.get_device_name(0), memory_gb=round(p.total_memory/1e9, 1),
                        capability=list(torch.cuda.get_device_capability(0)),
                        processors=p.multi_processor_count, gpus=torch.cuda.device_count(),
                        driver=driver[0] if driver else None)


# ---- stand-ins for libraries that no phase needs to work, but that notebooks and modules import

class Nothing:
    "Answers every call and attribute with itself: what is drawn with it is not drawn."
    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __getitem__(self, key):
        return self

    def __iter__(self):
        return iter(())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def no_subplots(rows=1, columns=1, **kwargs):
    "A figure and as many axes as matplotlib would give."
    import numpy as np
    rows, columns = kwargs.get('nrows', rows), kwargs.get('ncols', columns)
    axes = np.empty((rows, columns), dtype=object)
    axes.fill(Nothing())
    return Nothing(), axes[0, 0] if axes.size == 1 else axes.squeeze()


def absent(library):
    "A function that says which library is missing once it is called."
    def f(*args, **kwargs):
        raise ModuleNotFoundError(f'{library} is not installed', name=library)
    return f


def fake(name, **content):
    "Put a module made of `content` into place; other attributes are Nothing."
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(content)
    module.__path__ = []
    if '__getattr__' not in content:
        module.__getattr__ = Nothing().__getattr__
    sys.modules[name] = module
    parent, _, child = name.rpartition('.')
    if parent:
        setattr(sys.modules[parent], child, module)


def stand_in(names):
    "Replace the missing of `names`; returns those."
    missing = [k for k in names if not installed(k)]
    if 'safetensors' in missing:
        fake('safetensors', SafetensorError=OSError)
        fake('safetensors.torch', **{k: absent('safetensors') for k in ('load_file', 'save_file')})
    if 'matplotlib' in missing:
        fake('matplotlib')
        fake('matplotlib.pyplot', subplots=no_subplots)
    if 'IPython' in missing:
        fake('IPython', get_ipython=lambda: None)
        fake('IPython.display')
    return missing


# ---- what a phase is given

class Job:
    "What a phase is asked, and where it keeps what it finds."
    def __init__(self, name, device, tiny, data, draft, limit):
        self.name, self.device, self.tiny, self.data = name, device, tiny, data
        self.draft, self.limit, self.began = draft, limit, time.monotonic()
        self.record, self.figures = dict(status='running'), {}

    def left(self):
        "Seconds until the phase is killed."
        return self.limit - (time.monotonic() - self.began)

    def keep(self, **figures):
        "Add figures, and write all of them down at once."
        self.figures.update(figures)
        self.save()

    def save(self, **facts):
        "Write down all that is known so far."
        self.record.update(facts)
        write_json(self.draft, self.record | dict(figures=self.figures))


def need_device(device):
    "Raise RuntimeError where torch cannot use the device."
    import torch
    have = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    if not have[device]:
        raise RuntimeError(f'torch finds no {device} device; --device cpu and --tiny need none')


def attempt(job):
    "Run the phase; returns its status, and for a failure the traceback."
    try:
        job.save(stand_ins=stand_in(MODULE_STAND_INS))
        job.save(versions=versions(), hardware=hardware(job.device))
        need_device(job.device)
        PHASES[job.name](job)
    except Skip as e:
        return f'skipped: {e}', None
    except ModuleNotFoundError as e:
        name = (e.name or str(e)).split('.')[0]
        own = name == 'gptlab'
        return f'failed: {e}' if own else f'missing: {name}', traceback.format_exc()
    except Exception as e:
        return f'failed: {type(e).__name__}: {e}'[:600], traceback.format_exc()
    return 'ok', None


def one_phase(args):
    "In the process of a phase: run it, and write down how it went."
    die_with_parent()
    job = Job(args.one, args.device, args.tiny, args.data, args.draft, args.limit)
    status, trace = attempt(job)
    job.save(status=status, **(dict(traceback=trace) if trace else {}))


# ---- processes

def prctl(*numbers):
    "A Linux setting of this process; elsewhere nothing."
    if sys.platform != 'linux':
        return
    import ctypes
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(*numbers)


def die_with_parent():
    "This process ends when the one that began it does."
    prctl(1, 9)


def adopt_orphans():
    "Processes whose parent ended become children of this one, so that they can be found."
    prctl(36, 1)


def parents():
    "process id -> id of its parent, for all processes."
    if not Path('/proc/self/stat').exists():
        rows = [line.split() for line in said('ps', '-axo', 'pid=,ppid=').splitlines()]
        return {int(a): int(b) for a, b in rows}
    found = {}
    for p in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(p.name)] = int((p/'stat').read_text().rpartition(')')[2].split()[1])
    return found


def descendants(pid):
    "All processes that a process has begun, and those that they have."
    tree, found, fresh = parents(), set(), {pid}
    while fresh:
        fresh = {p for p, parent in tree.items() if parent in fresh} - found
        found |= fresh
    return found


def end(process):
    "Kill a process and all that it has begun, also what has left its group."
    for _ in range(10):
        others = descendants(os.getpid())
        if process.poll() is not None and not others:
            return
        for pid in others:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        reap()
        time.sleep(.05)


def reap():
    "Forget adopted processes that have ended."
    with contextlib.suppress(OSError, AttributeError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def finish(process, limit):
    "The exit code of a process, or None when it took more than `limit` seconds; nothing stays."
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)


def unpack(wheels, folder, limit):
    "Install wheels into a folder, else take the pure ones as they are; returns a search path."
    files = sorted(map(str, Path(wheels).glob('*.whl')))
    if not files:
        print(f'{wheels} holds no wheels')
        return []
    pip = [sys.executable, '-m', 'pip', 'install', '--no-index', '--no-deps', '--quiet',
           '--disable-pip-version-check', '--target', str(folder)]
    if quiet([*pip, *files], limit):
        return [str(folder)]
    left = [f for f in files if not quiet([*pip, f], limit/len(files))]
    pure = [f for f in left if f.endswith('-none-any.whl') and zipfile.is_zipfile(f)]
    for f in left:
        print(f'{Path(f).name}: not installed' + (', read as it is' if f in pure else ''))
    return [str(folder), *pure]


def quiet(command, limit):
    "Whether a command succeeds within `limit` seconds."
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return finish(p, limit) == 0


# ---- the whole

def environment(paths, tiny, folder):
    "Of the phases: our repository and the wheels first, no display, no downloads, no old kernels."
    before = os.environ.get('PYTHONPATH')
    path = os.pathsep.join([str(ROOT), *paths, *([before] if before else [])])
    env = os.environ | dict(PYTHONPATH=path, MPLBACKEND='agg', HF_HUB_OFFLINE='1',
                            TOKENIZERS_PARALLELISM='false', PYTHONIOENCODING='utf-8')
    for k in ('GPTLAB_MAX_STEPS', 'IN_TEST'):
        env.pop(k, None)
    fresh = dict(TORCHINDUCTOR_CACHE_DIR=str(Path(folder)/'compiled'))
    return env | (dict(TORCHINDUCTOR_COMPILE_THREADS='1') if tiny else fresh)


def tail(path, n=30):
    "The last lines of a file."
    try:
        return '\n'.join(path.read_text(errors='replace').splitlines()[-n:])
    except OSError:
        return ''


def run_phase(name, args, env, limit):
    "Run one phase in a process of its own and keep its JSON; returns that."
    draft, log = args.out/f'.{name}.part.json', args.out/f'{name}.log'
    draft.unlink(missing_ok=True)
    command = [sys.executable, str(HERE), '--one', name, '--device', args.device,
               '--draft', str(draft), '--limit', str(limit)]
    command += ['--tiny']*args.tiny + (['--data', str(args.data)] if args.data else [])
    began = time.monotonic()
    with open(log, 'w') as f:
        p = subprocess.Popen(command, stdout=f, stderr=f, stdin=subprocess.DEVNULL, env=env,
                             cwd=ROOT, start_new_session=True)
        code, stopped = wait_for(p, limit)
    found = read_json(draft) or {}
    draft.unlink(missing_ok=True)
    result = dict(phase=name, about=PHASES[name].about, device=args.device, dry=args.tiny,
                  date=datetime.datetime.now().isoformat(timespec='seconds'),
                  seconds=round(time.monotonic() - began, 1), limit=round(limit, 1))
    result |= found | outcome(found, code, limit)
    if state(result) not in DONE:
        result['log'] = tail(log)
    write_json(args.out/f'{name}.json', result)
    if stopped:
        raise stopped
    return result


def wait_for(process, limit):
    "The exit code of a process as `finish` gives it, and what stopped the waiting, if anything."
    try:
        return finish(process, limit), None
    except (KeyboardInterrupt, SystemExit) as e:
        return 'interrupted', e


def outcome(found, code, limit):
    "The status of a phase as its process ended: None killed it, other codes are its own."
    finished = found.get('status', 'running') != 'running'
    if code is None and not finished:
        return dict(status=f'out of time: killed after {limit:.0f} s')
    if code == 'interrupted':
        return dict(status='failed: interrupted')
    if not finished:
        return dict(status=f'failed: the process ended with code {code}')
    return {}


def state(result):
    "The first word of a status: ok, failed, out of time, missing, skipped, not begun."
    return result.get('status', '').split(':')[0]


def good(result, args):
    "Whether a JSON stands: of the same kind of run, and neither failed nor broken off."
    same = result and (result.get('device'), result.get('dry')) == (args.device, args.tiny)
    return bool(same) and state(result) in DONE and isinstance(result.get('figures'), dict)


def chosen(args):
    "The names of the phases that were asked for, in order."
    names = sorted(PHASES, key=lambda k: PHASES[k].order)
    return [k for k in names if not args.phases or k in args.phases]


def show_plan(names, kept, args):
    "Print what will be done, and how long it may take."
    kind = 'dry run with tiny sizes, no figures' if args.tiny else 'figures'
    print(f'{kind}, on {args.device}, {args.minutes:g} minutes at most, into {args.out}')
    for k in names:
        f = PHASES[k]
        limit = f'kept from {kept[k].get("date")}' if k in kept else f'up to {f.limit:g} s'
        print(f'  {k:12} {limit:>14}  {f.about}')
    most = sum(PHASES[k].limit for k in names if k not in kept)
    print(f'together {most:g} s at most; what no longer fits is left to the next call', flush=True)


def run_all(names, kept, args, deadline):
    "Run what is not kept, as far as the time allows; returns all results."
    results = {}
    with tempfile.TemporaryDirectory() as d:
        paths = unpack(args.wheels, d, (deadline - time.monotonic())/2) if args.wheels else []
        env = environment(paths, args.tiny, d)
        for k in names:
            left = deadline - time.monotonic() - 1
            results[k] = kept.get(k) or begin(k, args, env, left)
    return results


def begin(name, args, env, left):
    "Run a phase if it still fits, and print how it went."
    f = PHASES[name]
    if left < f.least:
        status = f'not begun: it needs {f.least:g} s, {max(left, 0):.0f} s are left'
        print(f'{name}: {status}', flush=True)
        return dict(phase=name, status=status)
    limit = min(f.limit, left)
    print(f'{name}: begun, up to {limit:.0f} s', flush=True)
    result = run_phase(name, args, env, limit)
    print(f'{name}: {result["status"]}, {result["seconds"]} s', flush=True)
    return result


def show_table(results, args):
    "Print one line per phase."
    print(f'\n{"phase":12} {"status":12} {"seconds":>7}  found' + '  (dry run)'*args.tiny)
    for k, r in results.items():
        reason = r.get('status', '').partition(': ')[2]
        found = [r.get('figures', {}).get('headline', ''), reason]
        told = ' | '.join(filter(None, found)).replace('\n', ' ')
        print(f'{k:12} {state(r):12} {r.get("seconds", "-"):>7}  {told}')


def default_out(args):
    "Figures go beside the other results, a folder for each kind of device; dry runs do not."
    if args.tiny:
        return Path(tempfile.mkdtemp(prefix='gptlab_dry_'))
    return HERE.parent/'results'/('gpu' if args.device == 'cuda' else f'gpu_{args.device}')


def guard_figures(args, parser):
    "A dry run never writes over figures."
    for k in PHASES:
        found = read_json(args.out/f'{k}.json')
        if args.tiny and found and not found.get('dry'):
            parser.error(f'{args.out} holds figures; a dry run needs another folder')


def whole(args, parser, deadline):
    "Run the chosen phases; returns the exit code."
    args.out = (args.out or default_out(args)).resolve()
    guard_figures(args, parser)
    args.out.mkdir(parents=True, exist_ok=True)
    names = chosen(args)
    had = {k: read_json(args.out/f'{k}.json') for k in names}
    kept = {} if args.again else {k: r for k, r in had.items() if good(r, args)}
    show_plan(names, kept, args)
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = run_all(names, kept, args, deadline)
    show_table(results, args)
    return int(any(state(r) not in DONE for r in results.values()))


def parse():
    "The command line."
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=6, help='for the whole')
    p.add_argument('--phases', nargs='+', choices=list(PHASES), help='these alone')
    p.add_argument('--device', choices=['cuda', 'cpu', 'mps'])
    p.add_argument('--tiny', action='store_true', help='a dry run in seconds, on the CPU')
    p.add_argument('--again', action='store_true', help='repeat what has a good JSON')
    p.add_argument('--data', type=Path, help='a folder of .bin (uint16 tokens) or .txt files')
    p.add_argument('--wheels', type=Path, help='a folder of wheels for the phases to import')
    p.add_argument('--out', type=Path, help='where the JSON goes')
    for hidden, kind in dict(one=str, draft=Path, limit=float, notebook=Path).items():
        p.add_argument(f'--{hidden}', type=kind, help=argparse.SUPPRESS)
    args = p.parse_args()
    args.device = args.device or ('cpu' if args.tiny else 'cuda')
    for name in ('data', 'wheels'):
        folder = getattr(args, name)
        if folder and not folder.is_dir():
            p.error(f'there is no folder {folder}')
        setattr(args, name, folder and folder.resolve())
    return args, p


def more_phases():
    "Read phases from the files that GPTLAB_GPU_PHASES names, as tests do."
    for path in filter(None, os.environ.get('GPTLAB_GPU_PHASES', '').split(os.pathsep)):
        exec(compile(Path(path).read_text(), path, 'exec'), globals())


def main():
    deadline = time.monotonic()
    more_phases()
    args, parser = parse()
    sys.path[0] = str(ROOT)                      # not benchmarks/, whose modules have common names
    if args.notebook:
        return run_notebook(args.notebook, args.draft)
    if args.one:
        return one_phase(args)
    return whole(args, parser, deadline + 60*args.minutes)


# ---- shared by the phases: clocks, memory, host reads

def synchronise(device):
    "Wait until the device has done all that it was asked."
    import torch
    if device != 'cpu':
        getattr(torch, device).synchronize()


class Marks:
    "Points in time, on the device's own clock where it has one: taking one does not wait."
    def __init__(self, device):
        self.device, self.points = device, []

    def mark(self):
        "Note the present."
        import torch
        if self.device != 'cuda':
            synchronise(self.device)
            self.points.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.points.append(event)

    def seconds(self):
        "Between each point and the next."
        pairs = list(itertools.pairwise(self.points))
        if self.device != 'cuda':
            return [b - a for a, b in pairs]
        synchronise(self.device)
        return [a.elapsed_time(b)/1000 for a, b in pairs]


def clocked(device, f, n):
    "Seconds of each of n calls."
    marks = Marks(device)
    marks.mark()
    for _ in range(n):
        f()
        marks.mark()
    return marks.seconds()


def peak_memory(device):
    "Megabytes: the most allocated on the GPU, or the most that this process ever held."
    import torch
    if device == 'cuda':
        return round(torch.cuda.max_memory_allocated()/1e6)
    if not installed('resource'):
        return None
    import resource
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e6)


def clear(device):
    "Give memory back, and begin to watch its peak anew."
    import torch
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def our_line(frame):
    "Where gptlab stands in a stack, as 'file:line: text'; else the innermost line outside torch."
    import linecache
    outside = None
    while frame:
        path = Path(frame.f_code.co_filename)
        text = linecache.getline(str(path), frame.f_lineno).strip()
        line = f'{path.name}:{frame.f_lineno}: {text[:100]}'
        if ROOT/'gptlab' in path.parents:
            return line
        passing = 'torch' in path.parts or path.name == 'warnings.py' or path == HERE
        if outside is None and not passing:
            outside = line
        frame = frame.f_back
    return outside or 'elsewhere'


def per_call(lines, n):
    "Reads per call: in all, and by line."
    counts = {line: lines.count(line)/n for line in dict.fromkeys(lines)}
    return dict(per_call=len(lines)/n, lines=counts)


def driver_reads(f, n):
    "Reads as CUDA reports them: each warning of a synchronising call, by our line; None elsewhere."
    import torch
    if not torch.cuda.is_available():
        return None
    lines = []
    def note(message, *rest, **kwargs):
        if 'called a synchronizing' in str(message):
            lines.append(our_line(sys._getframe(1)))
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode('warn')
        try:
            for _ in range(n):
                f()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return per_call(lines, n)


VALUES = ('_local_scalar_dense', 'nonzero', 'equal', 'masked_select', '_unique2', 'is_nonzero')
METHODS = ('tolist', 'cpu', 'numpy')


def operation_reads(f, n, device='cpu'):
    """Reads as operations show them, uncompiled: values and copies that the device gives the host.

    On the CPU, where nothing waits, these are the lines at which another device would wait, and
    besides them the checks of ids that are made on the CPU alone."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    lines = []

    def places(values):
        return {t.device.type for t in tree_leaves(values) if isinstance(t, torch.Tensor)}

    def copies(name, given, made):
        if name == 'copy_':
            return given[0].device.type == 'cpu' and device in places(given) != {'cpu'}
        return name == '_to_copy' and places(made) == {'cpu'} != places(given)

    def reads(name, given, made):
        return device in places(given) if name in VALUES else copies(name, given, made)

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if reads(name, args, made):
                lines.append(our_line(sys._getframe(1)))
            return made

    class Methods(TorchFunctionMode):            # on the CPU these are no operations
        def __torch_function__(self, func, types, args=(), kwargs=None):
            here = device == 'cpu' and args and isinstance(args[0], torch.Tensor)
            if here and getattr(func, '__name__', '') in METHODS:
                lines.append(our_line(sys._getframe(1)))
            return func(*args, **(kwargs or {}))

    with torch.compiler.set_stance('force_eager'), Methods(), Operations():
        for _ in range(n):
            f()
    return per_call(lines, n)


def host_reads(f, n, device):
    "How often n calls of f make the host wait for a value of the device, counted in two ways."
    return dict(driver=driver_reads(f, n), operations=operation_reads(f, n, device))


# ---- phase 1: arithmetic

def roundoff(dtype):
    "Unit roundoff: the largest relative error of rounding to a type."
    import torch
    return torch.finfo(dtype).eps/2


class Errors:
    "Errors beside their bounds."
    def __init__(self):
        self.rows = []

    def add(self, what, got, want, bound, scale=None):
        "The largest error as a share of `scale`, which is the largest of `want` if none is given."
        gap = (got.detach().cpu().double() - want).abs()
        error = (gap/(want.abs().max() if scale is None else scale)).max().item()
        self.rows.append(dict(what=what, error=error, bound=bound, ok=bool(error <= bound)))

    def exact(self, what, ok):
        "Something that holds or does not."
        self.rows.append(dict(what=what, error=0. if ok else None, bound=0., ok=bool(ok)))

    def not_there(self, what, why):
        "Something that this device does not do, which is no error, unless it says something else."
        why = str(why).split('\n')[0][:160]
        refused = any(w in why for w in ('vailable', 'upported', 'viable', 'only on', 'valid exec'))
        self.rows.append(dict(what=what, not_available=why, ok=refused))

    def wrong(self):
        return [r for r in self.rows if not r['ok']]


def draws(seed, *shapes, dtype=None):
    "Normal numbers, rounded to a type, as float64 on the CPU: what both sides start from."
    import torch
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    return [t.to(dtype).double() if dtype else t for t in made]


def types_of(device):
    "The floating-point types to check on a device."
    import torch
    low = [torch.bfloat16] if device == 'cpu' else [torch.bfloat16, torch.float16]
    return [torch.float32, *low]


def with_gradients(f, inputs):
    "f's answer and the gradients of a fixed weighting of it."
    import torch
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = f(*inputs)
    weights = (torch.arange(y.numel()) * 7919 % 17 - 8).double().view(y.shape)/8    # exact in all
    y.backward(weights.to(y.device, y.dtype))
    return [y.detach(), *(t.grad for t in inputs)]


def compare(errors, what, f, inputs, device, dtype, forward, backward):
    "Forward and gradients against float64 on the CPU; bounds in units of roundoff."
    want = with_gradients(f, inputs)
    got = with_gradients(f, [t.to(device, dtype) for t in inputs])
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        part = 'forward' if i == 0 else f'gradient {i}'
        errors.add(f'{what} {part}', a, b, (backward if i else forward)*roundoff(dtype))


def check_matmul(errors, device, n):
    "Products: the error of rounding inputs and result once, and of n sums in float32."
    import torch
    for dtype in types_of(device):
        a, b = draws(1, (n, n), (n, n), dtype=dtype)
        sums = 4*math.sqrt(n)*roundoff(torch.float32)
        bound = sums if dtype == torch.float32 else sums + 2*roundoff(dtype)
        torch.set_float32_matmul_precision('highest')
        got = a.to(device, dtype) @ b.to(device, dtype)
        errors.add(f'matmul {str(dtype)[6:]}', got, a @ b, bound, a.abs() @ b.abs())
    if device != 'cuda':
        return errors.not_there('matmul TF32', 'only on CUDA')
    a, b = draws(1, (n, n), (n, n), dtype=torch.float32)
    torch.set_float32_matmul_precision('high')
    got = a.to(device, torch.float32) @ b.to(device, torch.float32)
    torch.set_float32_matmul_precision('highest')
    errors.add('matmul TF32', got, a @ b, 2*2**-10 + sums, a.abs() @ b.abs())


def check_rows(errors, device, n):
    "Softmax, norms and cross-entropy, forward and gradients."
    import torch
    from torch.nn import functional as F
    for dtype in types_of(device):
        full, kind = dtype == torch.float32, str(dtype)[6:]
        bounds = (64, 128) if full else (8, 16)
        x, w, b = draws(2, (64, n), (n,), (n,), dtype=dtype)
        compare(errors, f'softmax {kind}', lambda x: x.softmax(-1), [x], device, dtype, *bounds)
        compare(errors, f'LayerNorm {kind}', lambda x, w, b: F.layer_norm(x, (n,), w, b),
                [x, w, b], device, dtype, *bounds)
        compare(errors, f'RMSNorm {kind}', lambda x, w: F.rms_norm(x, (n,), w, 1e-5), [x, w],
                device, dtype, *bounds)
    y = torch.randint(n, (64,), generator=torch.Generator().manual_seed(3))
    compare(errors, 'cross-entropy float32', lambda x: F.cross_entropy(x, y.to(x.device)),
            draws(4, (64, n), dtype=torch.float32), device, torch.float32, 64, 128)


def check_sums(errors, device, n):
    "Cumulative sums and reductions; errors grow with the root of how many are added."
    import torch
    x, = draws(5, (8, n), dtype=torch.float32)
    here = x.to(device, torch.float32)
    bound, size = 4*math.sqrt(n)*roundoff(torch.float32), x.abs().sum(-1)
    errors.add('cumsum float32', here.cumsum(-1), x.cumsum(-1), bound, x.abs().cumsum(-1))
    errors.add('sum float32', here.sum(-1), x.sum(-1), bound, size)
    errors.add('mean float32', here.mean(-1), x.mean(-1), bound, size/n)
    errors.add('variance float32', here.var(-1), x.var(-1), bound)
    errors.add('norm float32', here.norm(dim=-1), x.norm(dim=-1), bound)
    errors.add('logsumexp float32', here.logsumexp(-1), x.logsumexp(-1), bound)
    errors.exact('amax', torch.equal(here.amax(-1).cpu().double(), x.amax(-1)))
    errors.exact('argmax', torch.equal(here.argmax(-1).cpu(), x.argmax(-1)))
    whole = (1000*x).long()
    errors.exact('cumsum int64', torch.equal(whole.to(device).cumsum(-1).cpu(), whole.cumsum(-1)))


def attention_cases(T):
    "name -> (heads of keys, arguments) of scaled dot-product attention."
    import torch
    g = torch.Generator().manual_seed(6)
    mask = (torch.rand(T, T, generator=g) < .5) | torch.eye(T, dtype=torch.bool)
    return dict(causal=(4, dict(is_causal=True)), mask=(4, dict(attn_mask=mask)),
                grouped=(1, dict(is_causal=True, enable_gqa=True)))


def check_attention(errors, device, T):
    "Scaled dot-product attention by every backend that there is."
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    kernels = [k for k in SDPBackend.__members__ if k not in ('ERROR', 'OVERRIDEABLE')]
    cases = itertools.product(types_of(device), attention_cases(T).items())
    for dtype, (name, (heads, settings)) in cases:
        with sdpa_kernel([SDPBackend.MATH]):
            want = attention('cpu', torch.float64, T, heads, settings, dtype)
        for kernel in kernels:
            what = f'attention {kernel} {name} {str(dtype)[6:]}'
            try:
                with warnings.catch_warnings(), sdpa_kernel([getattr(SDPBackend, kernel)]):
                    warnings.simplefilter('ignore')
                    got = attention(device, dtype, T, heads, settings)
            except RuntimeError as e:
                errors.not_there(what, e)
                continue
            add_attention(errors, what, got, want, dtype)


def attention(device, dtype, T, heads, settings, rounded=None):
    "Answer and gradients for fixed numbers, which are rounded to `rounded` first."
    import torch
    from torch.nn import functional as F
    inputs = draws(7, (2, 4, T, 64), (2, heads, T, 64), (2, heads, T, 64), dtype=rounded or dtype)
    settings = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
    f = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **settings)
    return with_gradients(f, [t.to(device, dtype) for t in inputs])


def add_attention(errors, what, got, want, dtype):
    "Probabilities and their gradients are rounded to the type between the two products."
    import torch
    forward, backward = (128, 256) if dtype == torch.float32 else (8, 16)
    for part, a, b in zip(('forward', 'dq', 'dk', 'dv'), got, want, strict=True):
        bound = (forward if part == 'forward' else backward)*roundoff(dtype)
        errors.add(f'{what} {part}', a, b, bound)


def check_random(errors, device):
    "The same seed gives the same numbers, and a state put back gives them once more."
    import torch
    from torch.nn import functional as F
    makers = dict(
        randn=lambda g: torch.randn(1000, device=device, generator=g),
        rand=lambda g: torch.rand(1000, device=device, generator=g),
        randint=lambda g: torch.randint(1000, (1000,), device=device, generator=g),
        randperm=lambda g: torch.randperm(1000, device=device, generator=g),
        multinomial=lambda g: torch.ones(4, 1000, device=device).multinomial(9, generator=g))
    for name, make in makers.items():
        first, second = [make(torch.Generator(device).manual_seed(8)) for _ in range(2)]
        errors.exact(f'seed {name}', torch.equal(first, second))
        g = torch.Generator(device).manual_seed(9)
        kept = g.get_state()
        first = make(g)
        g.set_state(kept)
        errors.exact(f'state {name}', torch.equal(first, make(g)))
    ones = torch.ones(1000, device=device)
    drop = []
    for _ in range(2):
        torch.manual_seed(10)
        drop.append(F.dropout(ones, .5))
    errors.exact('seed dropout', torch.equal(*drop))


def check_autocast(errors, device, n):
    "Under bfloat16 autocast products are bfloat16, the loss is float32, and gradients are right."
    import torch
    from torch.nn import functional as F
    x, w = draws(11, (64, n), (32, n), dtype=torch.float32)
    y = torch.arange(64) % 32
    f = lambda x, w: F.cross_entropy(F.linear(F.layer_norm(x, (n,)), w/n**.5), y.to(x.device))
    want = with_gradients(f, [x, w])
    with torch.autocast(device, torch.bfloat16):
        got = with_gradients(f, [t.to(device, torch.float32) for t in (x, w)])
        product = F.linear(x.to(device, torch.float32), w.to(device, torch.float32))
    errors.exact('autocast product is bfloat16', product.dtype == torch.bfloat16)
    errors.exact('autocast loss is float32', got[0].dtype == torch.float32)
    errors.exact('autocast gradients are float32', {t.dtype for t in got[1:]} == {torch.float32})
    for part, a, b in zip(('loss', 'dx', 'dw'), got, want, strict=True):
        errors.add(f'autocast {part}', a, b, 16*roundoff(torch.bfloat16))


def twice(device, n):
    "Which operations give the same bits when they are done again; for information."
    import torch
    from torch.nn import functional as F
    x, = draws(12, (n, n), dtype=torch.float32)
    ids = torch.randint(50, (4*n,), generator=torch.Generator().manual_seed(13)).to(device)
    def attend(x):
        x = x[None, None, :, :64]
        return F.scaled_dot_product_attention(x, x, x)
    tried = dict(matmul=lambda x: x @ x, embedding=lambda x: F.embedding(ids, x), attention=attend)
    x, same = x.to(device, torch.float32), {}
    for name, f in tried.items():
        runs = [with_gradients(f, [x]) for _ in range(3)]
        same[name] = all(map(torch.equal, runs[0]*2, runs[1] + runs[2]))
    return same


@phase(order=10, limit=50, least=15)
def arithmetic(job):
    "Check the device's arithmetic and random numbers against float64 on the CPU."
    errors, size = Errors(), 128 if job.tiny else 1024
    checks = [lambda: check_matmul(errors, job.device, size),
              lambda: check_rows(errors, job.device, size),
              lambda: check_sums(errors, job.device, 16*size),
              lambda: check_random(errors, job.device),
              lambda: check_autocast(errors, job.device, size),
              lambda: check_attention(errors, job.device, 64 if job.tiny else 256)]
    for check in checks:
        check()
        job.keep(rows=errors.rows)
    job.keep(same_twice=twice(job.device, size))
    held = [r for r in errors.rows if 'error' in r]
    absent = len(errors.rows) - len(held)
    closest = max((r['error']/r['bound'] for r in held if r['bound'] and r['ok']), default=0)
    job.keep(headline=f'{len(held) - len(errors.wrong())} of {len(held)} within their bounds, '
                      f'{absent} not available, closest {closest:.2f} of its bound')
    if wrong := errors.wrong():
        raise ArithmeticError(f'{len(wrong)} over their bounds, such as {wrong[:3]}')


# ---- phase 2: cells of the notebooks

SKIPPED = ('slow', 'net', 'notest', 'mps')


def code_cells(path):
    "(place, source, directives) of each code cell."
    for n, cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and source.strip():
            yield n, source, dict(re.findall(r'^#\s*\|\s*(\S+)[ \t]*(.*)$', source, re.M))


def wants_cuda(source, directives):
    "Whether a cell is for CUDA: by its directive, or by what it asks."
    asks = re.search(r'^\s*if needs\([\'"]cuda', source, re.M)
    return 'cuda' in directives or asks is not None


def is_skipped(source, directives):
    "Whether a cell is not run under test, or belongs to IPython alone."
    off = directives.get('eval:', '').strip().lower() == 'false'
    return off or bool({*SKIPPED} & {*directives}) or source.lstrip().startswith('%%')


def plain(source):
    "A cell without magics and shell lines."
    return re.sub(r'^(\s*)[!%].*$', r'\1pass', source, flags=re.M)


def notebook_module(shown):
    "An empty __main__ for the cells: compilers look there for the names in it."
    module = types.ModuleType('__main__')
    module.__dict__.update(display=lambda *things, **kwargs: shown.append(len(things)))
    sys.modules['__main__'] = module
    return module


def remember_needs(names, answers):
    "Note what the notebook's own `needs` answers, if it has one."
    if not callable(asked := names.get('needs')) or hasattr(asked, 'answers'):
        return
    def needs(*args, **kwargs):
        answers.append(asked(*args, **kwargs))
        return answers[-1]
    needs.answers = answers
    names['needs'] = needs


def run_cell(names, source, place, answers):
    "Run a cell; returns how that went."
    began, answers[:] = time.monotonic(), []
    try:
        exec(compile(plain(source), f'cell {place}', 'exec'), names)
        said = 'passed' if all(answers) else 'not run: needs() said no'
        error = {}
    except BaseException as e:
        said, error = f'failed: {type(e).__name__}: {e}'[:400], dict(trace=traceback.format_exc())
    return dict(cell=place, outcome=said, seconds=round(time.monotonic() - began, 2), **error)


def run_notebook(path, draft):
    "In a process of its own: the cells up to the last one for CUDA, with what each gave."
    die_with_parent()
    os.environ.update(IN_TEST='1', GPTLAB_MAX_STEPS='20')
    import torch
    stand_in(NOTEBOOK_STAND_INS)
    os.chdir(path.parent)
    cuda, cells = torch.cuda.is_available(), list(code_cells(path))
    last = max(n for n, source, d in cells if wants_cuda(source, d))
    rows, answers = [], []
    names = notebook_module([]).__dict__
    for n, source, d in cells:
        if n > last or is_skipped(source, d):
            continue
        here = wants_cuda(source, d)
        remember_needs(names, answers)
        run = cuda or not here
        no = dict(cell=n, outcome='not run: no CUDA', seconds=0)
        row = run_cell(names, source, n, answers) if run else no
        rows.append(row | dict(cuda=here))
        write_json(draft, dict(rows=rows))


def notebooks_for_cuda():
    "The notebooks that have a cell for CUDA; those that train there are for people, not for this"
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        hidden = any(p.startswith(('.', '_')) for p in path.relative_to(ROOT).parts)
        asks = [s for _, s, d in code_cells(path) if wants_cuda(s, d)]
        if not hidden and any('.fit(' not in s for s in asks):
            yield path


def try_notebook(path, job, limit):
    "The rows of a notebook; an unfinished one ends with what became of it."
    with tempfile.TemporaryDirectory() as d:
        draft = Path(d)/'cells.json'
        command = [sys.executable, str(HERE), '--notebook', str(path), '--draft', str(draft)]
        p = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        code = finish_one(p, limit)
        rows = (read_json(draft) or dict(rows=[]))['rows']
    if code != 0:
        why = f'killed after {limit:.0f} s' if code is None else f'ended with code {code}'
        rows.append(dict(cell=None, outcome=f'failed: the process {why}', cuda=True))
    return rows


def finish_one(process, limit):
    "The exit code of a process, or None when it took more than `limit` seconds."
    try:
        return process.wait(timeout=max(limit, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def failures(rows):
    return [r for r in rows if r['outcome'].startswith('failed')]


@phase(order=20, limit=75, least=30)
def cells(job):
    "Run the notebooks' cells for CUDA, and the cells before them."
    if not installed('fastcore'):
        raise ModuleNotFoundError('no fastcore', name='fastcore')
    paths, found = list(notebooks_for_cuda()), {}
    for i, path in enumerate(paths):
        name = path.relative_to(ROOT/'nbs').as_posix()
        found[name] = try_notebook(path, job, (job.left() - 2)/(len(paths) - i))
        job.keep(notebooks=found)
    cuda = [r | dict(notebook=k) for k, rows in found.items() for r in rows if r['cuda']]
    others = [r for rows in found.values() for r in rows if not r['cuda']]
    passed = sum(r['outcome'] == 'passed' for r in cuda)
    job.keep(headline=f'{passed} of {len(cuda)} CUDA cells passed; of {len(others)} cells before '
                      f'them {len(failures(others))} failed')
    if bad := failures(cuda):
        raise AssertionError('; '.join(f'{r["notebook"]} cell {r["cell"]}: {r["outcome"]}'
                                       for r in bad))
    if not passed:
        raise Skip('no cell for CUDA could be run here')


# ---- phase 3: tests

ASKS_CUDA = re.compile(r'cuda\.is_available|mark\.cuda|needs\([\'"]cuda|device=[\'"]cuda')


def tests_for_cuda():
    "The tests that mention a CUDA device in their decorators or lines."
    for path in sorted((ROOT/'tests').glob('test_*.py')):
        if path.stem == 'test_gpu_script':
            continue
        lines = path.read_text(encoding='utf-8').splitlines()
        for f in ast.parse('\n'.join(lines)).body:
            if not isinstance(f, ast.FunctionDef) or not f.name.startswith('test'):
                continue
            first = min([f.lineno, *(d.lineno for d in f.decorator_list)])
            if ASKS_CUDA.search('\n'.join(lines[first-1:f.end_lineno])):
                yield f'tests/{path.name}::{f.name}'


def read_report(path):
    "(name, outcome, seconds) of each test in a JUnit file."
    if not path.exists():
        return []
    rows = []
    for case in xml.etree.ElementTree.parse(path).iter('testcase'):
        bad = next((c for c in case if c.tag in ('failure', 'error', 'skipped')), None)
        row = dict(test=case.get('name'), seconds=float(case.get('time', 0)), outcome='passed')
        if bad is not None:
            row |= dict(outcome=bad.tag, message=bad.get('message', '')[:300])
        rows.append(row)
    return rows


def read_lines(printed):
    "(name, outcome) of each test that ended before pytest was killed."
    found = re.findall(r'^tests/\S+?::(.+?) (PASSED|FAILED|ERROR|SKIPPED)', printed, re.M)
    kinds = dict(PASSED='passed', FAILED='failure', ERROR='error', SKIPPED='skipped')
    return [dict(test=name, outcome=kinds[word]) for name, word in found]


@phase(order=30, limit=100, least=40)
def tests(job):
    "Run the tests that need CUDA."
    if not installed('pytest'):
        raise ModuleNotFoundError('no pytest', name='pytest')
    if not (names := list(tests_for_cuda())):
        raise Skip('no test asks for CUDA')
    with tempfile.TemporaryDirectory() as d:
        report, log = Path(d)/'report.xml', Path(d)/'log'
        command = [sys.executable, '-m', 'pytest', *names, '-o', 'addopts=', '-v', '-p',
                   'no:cacheprovider', '--basetemp', f'{d}/tmp', '--junitxml', str(report)]
        with open(log, 'w') as f:
            p = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=f, stderr=f)
            code = finish_one(p, job.left() - 3)
        printed = log.read_text(errors='replace')
        rows = read_report(report) or read_lines(printed)
    count = lambda kind: sum(r['outcome'] == kind for r in rows)
    job.keep(asked=names, tests=rows, printed=printed[-3000:],
             headline=f'{count("passed")} of {len(rows)} tests passed, {count("skipped")} skipped')
    judge_tests(rows, code, printed, count)


def judge_tests(rows, code, printed, count):
    "Raise what the outcome of the tests means."
    missing = re.search(r"No module named '([\w]+)", printed)
    if code is None:
        raise TimeoutError('the tests took too long')
    if missing and not count('passed'):
        raise ModuleNotFoundError(missing[0], name=missing[1])
    if code != 0:
        names = [r['test'] for r in rows if r['outcome'] in ('failure', 'error')]
        raise AssertionError(f'pytest ended with code {code}: {", ".join(names)}')
    if rows and not count('passed'):
        raise Skip('all of the tests skipped here')


# ---- phase 4: a training step

def token_files(folder):
    "All tokens of a folder: .bin as uint16, .txt as bytes."
    import numpy as np
    files = sorted(p for p in folder.rglob('*') if p.suffix in ('.bin', '.txt'))
    if not files:
        raise FileNotFoundError(f'{folder} holds no .bin or .txt files')
    kind = lambda p: np.uint16 if p.suffix == '.bin' else np.uint8
    return np.concatenate([np.fromfile(p, dtype=kind(p)).astype(np.int32) for p in files])


def stream(job, B, T, V, held=8):
    "Endless batches, in turn from a few that are made beforehand: of the data, or at random."
    import torch
    g = torch.Generator().manual_seed(14)
    if job.data:
        every = torch.from_numpy(token_files(job.data)).long().clamp(max=V-1)
        if len(every) < T + 2:
            raise ValueError(f'{job.data} holds {len(every)} tokens, fewer than a row of {T} needs')
        starts = torch.randint(len(every) - T - 1, (held, B), generator=g)
        rows = every[starts[..., None] + torch.arange(T+1)]           # (held,B,T+1)
    else:
        rows = torch.randint(V, (held, B, T+1), generator=g)
    batches = [dict(ids=r[:, :-1].contiguous(), targets=r[:, 1:].contiguous()) for r in rows]
    if job.device == 'cuda':
        batches = [{k: t.pin_memory() for k, t in b.items()} for b in batches]
    while True:
        yield from batches


def optimizers():
    "name -> optimizer of a model: ours, AdamW for all by ours, and torch's own beside them."
    import torch
    from gptlab.optimizers import Opt, adamw, muon
    fused = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4, betas=(.9, .95), fused=True)
    return {'Muon + AdamW': lambda m: Opt(m, muon(lr=.002), adamw(lr=1e-4)),
            'AdamW': lambda m: Opt(m, adamw(lr=1e-4)), "torch's fused AdamW": fused}


class Stopwatch:
    "A callback that marks the end of every step."
    def __init__(self, device):
        self.marks = Marks(device)

    def before_fit(self, trainer):
        self.marks.mark()

    def after_step(self, trainer):
        self.marks.mark()


def measure_steps(job, model, make_opt, sizes, peak, compile):
    "One optimizer at one batch size: first step, steady steps, memory, utilisation, host reads."
    import torch
    from gptlab.trainer import Trainer
    B, T, n, warm = sizes
    clear(job.device)
    trainer = Trainer(model, make_opt(model), stream(job, B, T, model.cfg.vocab_size),
                      callbacks=[], eval_every=0, device=job.device, dtype=torch.bfloat16,
                      compile=compile)
    began = time.perf_counter()
    trainer.fit(steps=1)
    synchronise(job.device)
    first = time.perf_counter() - began
    trainer.fit(steps=1 + warm)
    watch = Stopwatch(job.device)
    trainer.callbacks.append(watch)
    trainer.fit(steps=1 + warm + n)
    took = sorted(watch.marks.seconds())
    trainer.callbacks.clear()
    step = statistics.median(took)
    row = dict(rows=B, tokens=T, first_step_s=round(first, 3), step_s=step, fastest_s=took[0],
               slowest_s=took[-1], steps=n, tokens_per_s=round(B*T/step),
               peak_memory_mb=peak_memory(job.device), loss=trainer.log[-1]['loss'],
               compiled=is_compiled(model),
               utilisation=model.flops_per_token(T)*B*T/step/peak,
               reader_wait=statistics.median(r['wait'] for r in trainer.log[-n:]))
    once_more = lambda: trainer.fit(steps=trainer.step + 1)
    return row, once_more


def is_compiled(model):
    "Whether any part of a model is."
    return any(m._compiled_call_impl is not None for m in model.modules())


def graphs():
    "How many graphs torch has compiled in this process."
    from torch._dynamo.utils import counters
    return counters['stats']['unique_graphs']


def batch_sizes(job):
    "(rows, tokens in a row, steps, warm-up steps), smallest first."
    import torch
    if job.tiny:
        return [(2, 16, 3, 1), (2, 16, 3, 1)]    # the second needs no other compilation
    if job.device != 'cuda':
        return [(1, 256, 3, 1), (2, 256, 3, 1)]
    small = torch.cuda.get_device_properties(0).total_memory < 20e9
    return [(B, 1024, max(8, 160//B), 2) for B in ((2, 4, 8, 16) if small else (8, 32, 64, 128))]


def gpt2(job):
    "GPT-2 124M with a vocabulary rounded up to a multiple of 64, on the device; or a tiny one."
    import torch
    from gptlab.model import GPT, gpt2_config
    torch.manual_seed(15)
    tiny = dict(vocab_size=256, context_length=64, n_layers=2, n_heads=2, d_model=32)
    return GPT(gpt2_config(**(tiny if job.tiny else dict(vocab_size=50304)))).to(job.device)


def best_of(table):
    "The row with the most tokens per second, for each optimizer."
    names = dict.fromkeys(r['optimizer'] for r in table)
    return {k: max((r for r in table if r['optimizer'] == k), key=lambda r: r['tokens_per_s'])
            for k in names}


def one_size(job, model, sizes, peak, table, compile):
    "All optimizers at one batch size; rows go into the table."
    for name, make in optimizers().items():
        reads = {}
        row, once_more = measure_steps(job, model, make, sizes, peak, compile and not table)
        if not any(r['optimizer'] == name for r in table):
            reads = dict(host_reads=host_reads(once_more, 2, job.device))
        table.append(dict(optimizer=name) | row | reads)
        job.keep(table=table, best=best_of(table), graphs=graphs())
        del once_more


def train_headline(table, peak):
    "The best of our own optimizer in one line."
    r = next(iter(best_of(table).values()))
    reads = next(r['host_reads'] for r in table if 'host_reads' in r)
    some = reads['driver'] or reads['operations']
    how = '' if r['compiled'] else 'not compiled, '
    return (f'{how}{r["optimizer"]}, {r["rows"]} × {r["tokens"]}: {r["tokens_per_s"]:,} tokens/s, '
            f'step {1000*r["step_s"]:.1f} ms, first {r["first_step_s"]:.1f} s, '
            f'{r["peak_memory_mb"]:,} MB, {r["utilisation"]:.0%} of {peak/1e12:.3g} TFLOP/s, '
            f'{some["per_call"]:g} host reads per step')


def upward(job, model, peak, table, compile):
    "Growing batch sizes until time or memory ends; returns why it stopped."
    import torch
    before, spent, first = None, 0, 0
    for sizes in batch_sizes(job):
        growth = sizes[0]/before if before else 1
        if job.left() < first + 1.3*growth*(spent - first) + 4:
            return f'no time for {sizes[0]} rows'
        began, n = time.monotonic(), len(table)
        try:
            one_size(job, model, sizes, peak, table, compile)
        except torch.OutOfMemoryError:
            if not table:
                raise
            return f'out of memory at {sizes[0]} rows'
        before, spent, first = sizes[0], time.monotonic() - began, table[n]['first_step_s']
        job.keep(headline=train_headline(table, peak))
    return 'all sizes tried'


def compiled_or_not(job, model, peak, table):
    "Compiled if that is possible, else as it is, with the reason kept; returns why it stopped."
    import torch
    try:
        return upward(job, model, peak, table, job.device != 'mps')
    except torch.OutOfMemoryError:
        raise
    except Exception as e:
        if table:
            raise
        job.keep(not_compiled=f'{type(e).__name__}: {e}'[:1000])
    return upward(job, gpt2(job), peak, table, False)


@phase(order=40, limit=150, least=60)
def train(job):
    "Measure a compiled training step of GPT-2 124M in bfloat16, at growing batch sizes."
    import torch
    from gptlab.watching import matmul_peak
    size = 256 if job.tiny else 8192 if job.device == 'cuda' else 2048
    model, peak = gpt2(job), matmul_peak(job.device, torch.bfloat16, size)
    job.keep(peak_flops=peak, parameters=model.n_params(),
             flops_per_token=model.flops_per_token(batch_sizes(job)[0][1]))
    job.keep(stopped=compiled_or_not(job, model, peak, []))


# ---- phase 5: decoding

def copy_bandwidth(device, size):
    "Bytes read and written per second by a copy on the device, the best of ten."
    import torch
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2*size/min(clocked(device, lambda: b.copy_(a), 11)[1:])


def measure_decode(job, model, rows, prompt, n, bandwidth):
    "Seconds until the first token, and per token after it, beside the time to read all weights."
    import torch
    from gptlab.generation import generate_rows
    V, size = model.cfg.vocab_size, sum(p.nbytes for p in model.parameters())
    ids = torch.randint(V, (rows, prompt), generator=torch.Generator().manual_seed(16)).tolist()
    list(generate_rows(model, ids, 3, seed=0))
    writer = generate_rows(model, ids, n + 4, seed=0)
    advance = lambda: next(writer)
    first = clocked(job.device, advance, 1)[0]
    took = statistics.median(clocked(job.device, advance, n))
    bound = bandwidth/size
    return dict(rows=rows, prompt=prompt, first_token_s=first, step_s=took,
                prefill_s=prefill(job, model, ids), tokens_per_s=rows/took,
                bound_tokens_per_s=rows*bound, share_of_bound=1/took/bound,
                host_reads=host_reads(advance, 1, job.device))


def prefill(job, model, ids, n=5):
    "Seconds to read the prompts into fresh caches."
    import torch
    x = torch.tensor(ids, device=job.device)
    @torch.no_grad()
    def read():
        model(x, caches=model.new_caches())
    return statistics.median(clocked(job.device, read, n+1)[1:])


@phase(order=50, limit=50, least=25)
def decode(job):
    "Measure cached generation with GPT-2 124M, beside the bound that memory sets."
    import torch
    table = []
    bandwidth = copy_bandwidth(job.device, 2**22 if job.tiny else 2**30)
    prompt, n = (16, 8) if job.tiny else (512, 16) if job.device == 'cpu' else (512, 128)
    job.keep(copy_bytes_per_s=bandwidth, prompt=prompt, tokens=n)
    took, stopped = 0, 'all tried'
    for dtype, rows in itertools.product((torch.bfloat16, torch.float32), (1, 8)):
        if job.left() < 2*took + 3:
            stopped = f'no time for {str(dtype)[6:]} × {rows}'
            break
        began = time.monotonic()
        clear(job.device)
        model = gpt2(job).eval().to(dtype)
        row = measure_decode(job, model, rows, prompt, n, bandwidth)
        table.append(dict(dtype=str(dtype)[6:]) | row)
        took = time.monotonic() - began
        told = ', '.join(f'{r["dtype"]} × {r["rows"]} {r["tokens_per_s"]:,.0f} '
                         f'({r["share_of_bound"]:.1%})' for r in table)
        job.keep(table=table, headline=f'tokens/s (share of bound): {told}')
    job.keep(stopped=stopped)


# ---- phase 6: FlexAttention

def flex_cases(T):
    "name -> (window, whether rows hold several documents)."
    return dict(window=(T//8, False), documents=(None, True), both=(T//8, True))


class FlexCase:
    "One layer for two backends and the oracle, with the same weights and rows."
    def __init__(self, job, window, docs, B, T, C, heads):
        import torch
        from gptlab.attention import Seq
        torch.manual_seed(17)
        self.device, self.window, self.C, self.heads = job.device, window, C, heads
        self.x = torch.randn(B, T, C).bfloat16().to(job.device)       # (B,T,C)
        self.ids = torch.zeros(B, T, dtype=torch.long, device=job.device)
        length = max(T*2//7, 1)
        some = torch.arange(T, device=job.device)//length
        self.docs = some.expand(B, T).contiguous() if docs else None  # (B,T)
        self.seq = lambda: Seq(self.ids, docs=self.docs)

    def layer(self, backend, dtype):
        "The layer with a backend; weights are those of bfloat16 whatever the type."
        import torch
        from gptlab.attentions import OpenAttention
        torch.manual_seed(18)
        made = OpenAttention(self.C, self.heads, window=self.window, backend=backend)
        return made.bfloat16().to(self.device, dtype)

    def prepared(self, layer, x):
        "A sequence with the mask made, as a model does before its first block."
        seq = self.seq()
        layer.prepare(seq, x)
        return seq.at(0)

    def read(self, layer, dtype):
        "The layer's answer."
        x = self.x.to(dtype)
        return layer(x, self.prepared(layer, x))

    def learn(self, layer, dtype):
        "Answer and gradients of the input and the four matrices."
        x = self.x.to(dtype).detach().clone().requires_grad_()
        y = layer(x, self.prepared(layer, x))
        y.square().sum().backward()
        return dict(y=y, x=x.grad) | {k: getattr(layer, k).weight.grad for k in 'qkvo'}


def relative(got, want):
    "The largest error as a share of the largest value."
    return ((got.double() - want.double()).abs().max()/want.double().abs().max()).item()


def flex_errors(case, backends):
    "backend -> {tensor: error} against plain lines in float64."
    import torch
    from gptlab.attentions import matmul
    want = case.learn(case.layer(matmul, torch.float64), torch.float64)
    errors = {}
    for name, backend in backends.items():
        got = case.learn(case.layer(backend, torch.bfloat16), torch.bfloat16)
        errors[name] = {k: relative(got[k], want[k]) for k in want}
    return errors


def flex_time(case, backend, n):
    "Median seconds of forward and backward, with the mask made before, and of making the mask."
    import torch
    layer = case.layer(backend, torch.bfloat16)
    x = case.x.clone().requires_grad_()
    seq = case.prepared(layer, x)
    step = lambda: layer(x, seq).sum().backward()
    began = time.perf_counter()
    step()
    synchronise(case.device)
    first = time.perf_counter() - began
    mask = statistics.median(clocked(case.device, lambda: case.prepared(layer, x), 3))
    median = statistics.median(clocked(case.device, step, n + 3)[3:])
    return dict(first_s=round(first, 2), step_s=median, mask_s=mask)


def flex_forward(job):
    "On the CPU: the forward pass alone against plain lines, so that the lines are run at all."
    import torch
    from gptlab.attentions import flex, matmul
    found = {}
    for name, (window, docs) in flex_cases(32).items():
        case = FlexCase(job, window, docs, 1, 32, 32, 2)
        with torch.no_grad():
            got, want = (case.read(case.layer(backend, dtype), dtype) for backend, dtype in
                         ((flex, torch.float32), (matmul, torch.float64)))
        found[name] = relative(got, want)
    job.keep(forward=found, headline=f'forward alone, float32: error {max(found.values()):.0e}')


@phase(order=60, limit=100, least=30)
def flex(job):
    "Compare FlexAttention with SDPA under a mask, for windows and documents."
    from gptlab.attentions import flex as kernel, sdpa
    if job.device != 'cuda':
        flex_forward(job)
        raise Skip('FlexAttention has no backward pass on this device')
    backends, found = dict(sdpa=sdpa, flex=kernel), {}
    T, B, n = (256, 2, 3) if job.tiny else (4096, 4, 20)
    for name, (window, docs) in flex_cases(T).items():
        small = FlexCase(job, window, docs, 1, min(T, 1024), 768, 12)
        errors = flex_errors(small, backends)
        large = FlexCase(job, window, docs, B, T, 768, 12)
        times = {k: flex_time(large, backend, n) for k, backend in backends.items()}
        ratio = times['flex']['step_s']/times['sdpa']['step_s']
        found[name] = dict(window=window, documents=docs, rows=B, tokens=T, errors=errors,
                           times=times, flex_over_sdpa=ratio)
        told = ', '.join(f'{k} {r["flex_over_sdpa"]:.2f}' for k, r in found.items())
        worst = max(max(r['errors']['flex'].values()) for r in found.values())
        job.keep(cases=found, headline=f'time over SDPA with a mask: {told}; error {worst:.1e}')
        clear(job.device)
    if worst > 32*2**-8:
        raise ArithmeticError(f'gradients differ by {worst:.2g}, more than 32 units of roundoff')


if __name__ == '__main__':
    sys.exit(main())

"""Every public function, class and method is called with wrong values, one argument at a time.

tests/wrong_calls.py has one good call a line. For each argument of it in turn the sweep passes
every value of VALUES and looks at what happens:

clear     an exception that our own code raises, and that names the argument or what was given
raw       any other exception: raised by Python or a library, or one that does not say what is wrong
nonsense  it returned, although the value fits neither the annotation nor the documented range
hang      no answer within TIME seconds, or the process died
broken    the good call itself fails: the table is to be mended

A value fits if the annotation allows it: whole numbers of at least 1 where it says int, numbers of
at least 0 where it says float, any text where it says str, and so on (`fits`). Where the documents
say otherwise, the line says so behind `#`, as `argument: condition on v`; RULES does it for names
that mean the same everywhere. What is of the right type may return or be refused; it may not be
raw. Flags (bool) are taken by their truth, and not swept.

By hand: python tests/test_wrong_calls.py [-k TEXT] [-o FOLDER] [--write] [MODULE ...] prints, or
writes, what is found in the gptlab that is imported, in all calls or in those that have TEXT;
--write records how many raw errors there are.
"""
import ast
import contextlib
import importlib
import inspect
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from dis import opmap
from pathlib import Path

import pytest

from wrong_calls import CALLS, EXEMPT, HOOKS, RULES, SIZES, command, namespace, plain

TIME, MEMORY = 10, 8 << 30                                  # seconds a call, bytes a process

VALUES = {
    'None': lambda: None, "'x'": lambda: 'x', "''": lambda: '', '-1': lambda: -1, '0': lambda: 0,
    '1.5': lambda: 1.5, 'nan': lambda: math.nan, 'inf': lambda: math.inf, 'True': lambda: True,
    '10**9': lambda: 10**9, '[]': lambda: [], '[None]': lambda: [None], '{}': lambda: {},
    'object()': object, 'lambda': lambda: lambda *a, **k: None, "b'x'": lambda: b'x',
    'no path': lambda: Path('no')/'such'/'path', 'tensor': lambda: sys.modules['torch'].zeros(2, 3)}

# a module's raw errors as last counted: they may only become fewer
TABLE = Path(__file__).with_suffix('.json')
def recorded(): return json.loads(TABLE.read_text()) if TABLE.exists() else {}

# the entry points of the seams, README's names, the command line: at most 5 % raw errors each
ENTRIES = '''set_seed corpus train batches fast_batches GPT GPTConfig gpt2_config llama_config Opt
    Group sgd adamw muon check_rule Trainer fit resume save generate generate_text
    temperature top_k top_p min_p ablate evaluate check_tokenizer check_data check_part
    check_attn check_model swap load load_model load_tokenizer open_tokenizer write_tokens
    open_tokens Tracker command constant linear wsd cosine inverse_sqrt apply_schedule'''.split()


# ---- which values fit

def split_union(annotation):
    "The alternatives of an annotation as text, such as ['list[int]', 'None']"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r'Optional\[(.*)\]', r'\1|None', text)
    out, depth = [''], 0
    for c in text:
        depth += (c in '[(') - (c in '])')
        if c == '|' and not depth: out.append('')
        else: out[-1] += c
    return [re.sub(r'\w+\.', '', a.strip()) for a in out]


def allowed(value, kinds):
    "Does a value have one of these types, as a reader takes the annotation?"
    heads = {k.split('[')[0] for k in kinds}
    if heads & {'Any', 'object', 'bool', '_empty'}: return True
    if isinstance(value, (bool, type(None))): return False
    if isinstance(value, (int, float)):
        if not math.isfinite(value): return False
        return 'float' in heads or ('int' in heads and isinstance(value, int))
    if isinstance(value, str): return bool(heads & {'str', 'Path'})
    if isinstance(value, bytes): return 'bytes' in heads or 'Iterable[int]' in kinds
    if isinstance(value, Path): return 'Path' in heads
    if isinstance(value, list):
        bare = heads & {'list', 'Iterable', 'Sequence', 'tuple'}
        return bool(bare and (not value or bare & set(kinds)))
    if isinstance(value, dict): return bool(heads & {'dict', 'Iterable'})
    if type(value).__name__ == 'Tensor': return 'Tensor' in heads
    return callable(value) and 'Callable' in heads and type(value) is not object


def fits(value, param, rules):
    "Is a value no wrong one for this parameter?"
    kinds = split_union(param.annotation)
    rule = rules.get(param.name, RULES.get(param.name))
    if rule == 'any': return True
    if value is None and (param.default is None or 'None' in kinds): return True
    named = rule and re.search(r'v (in|==)|\(v', rule) and not isinstance(value, bool)
    if not named and not allowed(value, kinds): return False
    if rule is not None:
        try: return bool(eval(rule, dict(v=value, plain=plain)))
        except Exception: return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value >= (0 if 'float' in {k.split('[')[0] for k in kinds} else 1)
    return True


# ---- the sweep

class TimeUp(BaseException): "Raised by the alarm clock"


def lines(module):
    "The good calls of a module, each with its comment in one line"
    joined = re.sub(r'\n +#', ' #', CALLS[module])
    return [line.strip() for line in joined.strip().splitlines()]


def calls_of(module):
    "(source, rules, function, parameters) of each good call of a module's table"
    space = namespace()
    for line in lines(module):
        source, *comments = line.split(' #')
        rules = dict(r.strip().split(': ', 1) for r in ';'.join(comments).split(';') if ':' in r)
        tree = ast.parse(source.strip(), mode='eval').body
        yield source.strip(), rules, tree, space


def compile_part(node): return compile(ast.Expression(node), '<call>', 'eval')


def make_call(tree, space):
    "The function of a call, and its arguments as the signature knows them"
    f = eval(compile_part(tree.func), space)
    args = [eval(compile_part(a), space) for a in tree.args]
    kw = {k.arg: eval(compile_part(k.value), space) for k in tree.keywords}
    return f, args, kw


def parameters(f, args, kw):
    "name -> Parameter of what can be given, keywords of ** included"
    found = {}
    for p in inspect.signature(f).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            named = {k: inspect.Parameter(k, p.KEYWORD_ONLY, annotation=kind_of(kw[k]))
                     for k in kw if k not in found}
            found |= named
        else: found[p.name] = p
    return {k: p for k, p in found.items() if split_union(p.annotation) != ['bool']}


def kind_of(x): return {float: 'float', int: 'int', str: 'str'}.get(type(x), 'Any')


def used(result):
    "Begin to use what a call returned, as its caller would"
    if isinstance(result, contextlib._GeneratorContextManager):
        with result as inside:
            if isinstance(inside, Path): inside.write_text('text')     # atomic_path's
    elif isinstance(result, types.GeneratorType):
        for _ in zip(range(3), result): pass


def call_with(tree, space, name, value):
    "The call with one argument replaced; name None makes the good one"
    f, args, kw = make_call(tree, space)
    if name is not None:
        signature = inspect.signature(f)
        bound = signature.bind(*args, **kw)
        p = signature.parameters.get(name)
        if p is None: kw = kw | {name: value}
        elif p.kind is p.VAR_POSITIONAL:
            bound.arguments[name] = (value,)
            args, kw = bound.args, bound.kwargs
        else:
            bound.arguments[name] = value
            bound.arguments = {k: bound.arguments[k] for k in signature.parameters
                               if k in bound.arguments}
            args, kw = bound.args, bound.kwargs
    used(f(*args, **kw))


def judge(error, name, value):
    "clear, or raw"
    said, tb = str(error), error.__traceback__
    while tb.tb_next: tb = tb.tb_next
    code = tb.tb_frame.f_code
    ours = 'gptlab' in Path(code.co_filename).parts
    raised = code.co_code[tb.tb_lasti] == opmap['RAISE_VARARGS']
    scalar = value is None or isinstance(value, (int, float, str, bytes, Path))
    shown = [name.replace('_', ' '), name, type(value).__name__, repr(value)[:20], str(value)]
    names_it = any(re.search(rf'(?<!\w){re.escape(w)}(?!\w)', said) for w in shown if w)
    names_it = names_it or not scalar or value in ('', None, b'x')
    if isinstance(error, (SystemExit, AssertionError)): return 'clear' # argparse; assert_equal
    if isinstance(error, OSError) and error.filename is not None and names_it: return 'clear'
    kinds = (ValueError, TypeError, OSError, ImportError, AssertionError)
    good = isinstance(error, kinds) and ours and raised and names_it and len(said) > 12
    return 'clear' if good else 'raw'


def try_call(tree, space, name, label, value, fit):
    "(kind, message) of one call, in a folder of its own"
    here, where = os.getcwd(), tempfile.mkdtemp()
    os.chdir(where)
    signal.setitimer(signal.ITIMER_REAL, TIME if name else 6*TIME)     # first calls import
    try:
        call_with(tree, space, name, value)
        return ('fine', '') if fit else ('nonsense', 'returned')
    except TimeUp: return 'hang', f'more than {TIME} s'
    except (Exception, SystemExit, KeyboardInterrupt) as e:
        message = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
        if name is None: return 'broken', message
        return judge(e, name, value), message
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(here)
        shutil.rmtree(where, ignore_errors=True)


def work(module, start):
    "Make the calls of a module from number `start` on; a line of JSON before and after each"
    out = os.fdopen(os.dup(1), 'w')
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    if "SWEEP_STDERR" not in os.environ: os.dup2(nothing, 2)
    import torch
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    os.environ.update(HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', HOME=os.getcwd(),
                      GPTLAB_CACHE='cache', GPTLAB_SILENT='1', MPLBACKEND='agg')
    number, only = 0, os.environ.get('SWEEP_ONLY', '')
    for source, rules, tree, space in calls_of(module):
        if only not in source: continue
        for name, label, value, fit in cases(source, rules, tree, space):
            number += 1
            if number <= start: continue
            signal.signal(signal.SIGALRM, ring)
            case = dict(number=number, call=source, argument=name, value=label)
            print(json.dumps(case), file=out, flush=True)
            kind, message = try_call(tree, space, name, label, value(), fit)
            print(json.dumps(case | dict(kind=kind, message=message)), file=out, flush=True)
            close_figures()


def ring(*_): raise TimeUp


def close_figures():
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')


def cases(source, rules, tree, space):
    "(argument, label, maker of the value, does it fit) of one line; the good call first"
    yield None, '', lambda: None, True
    where, here = tempfile.mkdtemp(), os.getcwd()
    os.chdir(where)
    try: f, args, kw = make_call(tree, space)
    except Exception: return                                           # told as broken
    finally:
        os.chdir(here)
        shutil.rmtree(where, ignore_errors=True)
    strings = f is command
    if strings: kw |= {k: p.default for k, p in command_options(args[0]).items()} | kw
    try: found = parameters(f, args, kw)
    except ValueError: return                                          # a builtin's, such as dict's
    for name, p in found.items():
        if name == 'command_name': continue
        if strings: p = p.replace(annotation='str')
        for label, value in (STRINGS if strings else VALUES).items():
            if label in ('10**9', '1000000000') and name in SIZES: continue
            yield name, label, value, fits(value(), p, rules)


STRINGS = {s: (lambda s=s: s) for s in ('x', '', '-1', '0', '1.5', 'nan', 'inf', '1000000000',
                                        '\udcff', 'no/such/path')}


def command_options(name):
    from gptlab import cli
    found = inspect.signature(cli.COMMANDS[name]).parameters
    return {k: p for k, p in found.items() if p.annotation is not bool and p.default is not p.empty}


def limit_memory(): resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def sweep(module):
    "All cases of a module with what came of them; a process that hangs or dies is begun anew"
    done, start = [], 0
    while True:
        p = subprocess.Popen([sys.executable, __file__, '--work', module, str(start)], text=True,
                             stdout=subprocess.PIPE, preexec_fn=limit_memory)
        last, died = watch(p, done)
        if last is None: return done
        done.append(last | dict(kind='hang', message=died))
        start = last['number']


def watch(process, done):
    "Read what a process says; returns the case in which it was lost, or None"
    last = None
    while select.select([process.stdout], [], [], 9*TIME)[0]:
        line = process.stdout.readline()
        if not line: break
        last = json.loads(line)
        if 'kind' in last: done.append(last)
    else:
        process.kill()
        return last, 'did not answer, and was killed'
    status = process.wait()
    if status == 0: return None, ''
    if last is None or 'kind' in last:
        raise RuntimeError(f'the process ended with {status} between two calls, after {last}')
    return last, f'the process ended with status {status}'


# ---- what it found

def findings(cases):
    "The cases that are to be mended"
    return [c for c in cases if c['kind'] in ('raw', 'nonsense', 'hang', 'broken')]


def told(c):
    "A finding as one line"
    line = f"{c['kind']:8} {c['call']} | {c['argument']} = {c['value']} | {c['message']}"
    return line.encode('ascii', 'backslashreplace').decode()


def count(cases, kind): return sum(c['kind'] == kind for c in cases)


def summary(module, cases):
    kinds = ('clear', 'fine', 'raw', 'nonsense', 'hang', 'broken')
    found = ', '.join(f'{count(cases, k)} {k}' for k in kinds)
    return f'{module:18} {len(cases):5} calls: {found}'


def called_name(source):
    "The name of the function, class or method of a good call"
    f = ast.parse(source, mode='eval').body.func
    return getattr(f, 'attr', None) or getattr(f, 'id', '')


def public(module):
    "What a module offers: (name, qualified name) of functions, classes and their own methods"
    home = importlib.import_module(f'gptlab.{module}')
    for name in getattr(home, '__all__', ()):
        part = getattr(home, name)
        if inspect.isfunction(part) or inspect.isclass(part): yield name, name
        if not inspect.isclass(part): continue
        for k, v in vars(part).items():
            inner = getattr(v, '__func__', v)
            if not k.startswith('_') and inspect.isfunction(inner): yield k, f'{name}.{k}'


def test_every_public_name_is_called():
    missing, called = [], set()
    for module in CALLS:                                 # a method may be another module's patch
        called |= {called_name(line.split(' #')[0]) for line in lines(module)}
    for module in CALLS:
        missing += [q for name, q in public(module)
                    if name not in called | HOOKS and q not in EXEMPT and module != 'cli']
    assert not missing, f'CALLS has no line for {missing}'


@pytest.mark.exhaustive
@pytest.mark.parametrize('module', CALLS)
def test_wrong_calls(module):
    cases = sweep(module)
    bad = [told(c) for c in cases if c['kind'] in ('nonsense', 'hang', 'broken')]
    assert not bad, '\n'.join(bad)
    raw = [c for c in cases if c['kind'] == 'raw']
    assert len(raw) <= recorded().get(module, 0), '\n'.join(map(told, raw))
    for name in ENTRIES:
        mine = [c for c in cases if called_name(c['call']) == name]
        raw = [told(c) for c in mine if c['kind'] == 'raw']
        assert len(raw) <= .05*len(mine), '\n'.join(raw)


def by_hand(argv):
    "Sweep modules; print what is found, write it into the folder behind -o, or --write the numbers"
    where = Path(argv[argv.index('-o')+1]).absolute() if '-o' in argv else None
    if '-k' in argv: os.environ['SWEEP_ONLY'] = argv[argv.index('-k')+1]
    for module in [a for a in argv if a in CALLS] or CALLS:
        cases = sweep(module)
        lines = [told(c) for c in sorted(findings(cases), key=lambda c: c['kind'])]
        text = '\n'.join([summary(module, cases), *lines, ''])
        if where: (where/f'{module}.txt').write_text(text, errors='backslashreplace')
        print(text if not where else summary(module, cases), flush=True)
        if '--write' in argv:
            now = recorded() | {module: count(cases, 'raw')}
            TABLE.write_text(json.dumps(now, indent=1) + '\n')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--work']: work(sys.argv[2], int(sys.argv[3]))
    else:
        sys.stdout.reconfigure(errors='backslashreplace')
        by_hand(sys.argv[1:])

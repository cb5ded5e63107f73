"""What several tests need: where things are, and how to read a notebook without importing anything
heavy."""
import ast, contextlib, functools, importlib, importlib.util, json, os, re, shutil, sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, LIB = ROOT/'nbs', ROOT/'gptlab'


def script(name):
    "A script of .ci as a module"
    spec = importlib.util.spec_from_file_location(name, ROOT/'.ci'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def benchmark(monkeypatch, folder, name, *others):
    """A script of benchmarks/ as a module, whose results go to `folder`; `others` of its kind are
    imported by it, and leave with it"""
    import torch
    theirs = 'common', name, *others                    # tests/ has a common as well
    mine = {n: sys.modules.pop(n, None) for n in theirs}
    monkeypatch.syspath_prepend(str(ROOT/'benchmarks'))
    module = importlib.import_module(name)
    monkeypatch.setattr(sys.modules['common'], 'RESULTS', folder)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)
    for n in theirs:
        sys.modules.pop(n, None)
        if mine[n]: sys.modules[n] = mine[n]


def nbdev(command):
    "A command of nbdev, from this interpreter's scripts: they need not be on the PATH"
    import pytest
    pytest.importorskip('nbdev', reason="nbdev is not installed: pip install -e '.[dev]'")
    found = shutil.which(command, path=sysconfig.get_path('scripts')) or shutil.which(command)
    assert found, f'{command} is neither beside {sys.executable} nor on the PATH'
    return [found]


@contextlib.contextmanager
def refuses(kind, *words):
    """The body raises exactly this kind of error (not a subclass that Python raised by itself), and
    its message has all these words"""
    import pytest
    with pytest.raises(kind) as e: yield e
    said = str(e.value)
    missing = [str(w) for w in words if str(w) not in said]
    assert not missing, f'the message lacks {missing}: {said}'
    assert type(e.value) is kind, f'{type(e.value).__name__}: {said}'


def tiny_model(seed=0, **kw):
    "A small model whose logits differ"
    import torch
    from gptlab.blocks import perturb_parameters
    from gptlab.model import GPT, GPTConfig
    torch.manual_seed(seed)
    sizes = dict(vocab_size=257, context_length=32, n_layers=2, n_heads=2, d_model=16) | kw
    return perturb_parameters(GPT(GPTConfig(**sizes)), .3).eval()


def write(path, content):
    "A file of text or bytes, and the folders it is in"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def extras():
    "The extras of pyproject.toml: library → the extra that brings it"
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    block = re.search(r'^\[project.optional-dependencies\](.*?)^\[', text, re.S | re.M)[1]
    lists = re.findall(r'^(\w+) = \[(.*?)\]', block, re.S | re.M)
    return {lib.replace('-', '_'): name for name, libs in lists if name != 'dev'
            for lib in re.findall(r'"([\w-]+)', libs)}


def extra(module):
    "A library that an extra brings: a test skips without it, unless GPTLAB_REQUIRE names the extra"
    import pytest
    lib = module.split('.')[0]
    name = extras()[lib]
    if name in os.environ.get('GPTLAB_REQUIRE', '').split(): return importlib.import_module(module)
    return pytest.importorskip(module, reason=f"{lib} is not installed: pip install -e '.[{name}]'")


ADDRESS = script('address')
PUBLISHED = ADDRESS.settings()['published']


def notebooks():
    "Every notebook, in order of its path"
    hidden = lambda p: any(q.startswith(('.', '_')) for q in p.relative_to(NBS).parts)
    return sorted(p for p in NBS.rglob('*.ipynb') if not hidden(p))


def name(path):
    "How a notebook is called in test names and messages: its path below nbs/"
    return path.relative_to(NBS).as_posix()


def number(path):
    "The number of a chapter (3 for 03_data.ipynb); None for every other notebook"
    m = re.match(r'(\d\d)_', path.name)
    return int(m[1]) if m and path.parent == NBS else None


def folder(path):
    """The sub-folder of a recipe, how-to or experiment; None for the chapters and pages that lie in
    nbs itself"""
    return path.relative_to(NBS).parts[0] if path.parent != NBS else None


def cells(path, kind=None):
    "The cells of a notebook with their source as one string, each with its place `n` for messages"
    out = json.loads(path.read_text(encoding='utf-8'))['cells']
    for n, c in enumerate(out): c['source'], c['n'] = ''.join(c['source']), n
    return [c for c in out if kind in (None, c['cell_type'])]


def directives(source):
    """The `#|` lines that nbdev reads from the top of a cell, as (name, value); Quarto's names keep
    their colon"""
    out = []
    for line in source.strip().splitlines():
        m = re.match(r'\s*#\s*\|\s*(\S+)\s*(.*)', line)
        if m: out.append((m[1], m[2].strip()))
        elif line.strip() and not line.strip().startswith('#'): break
    return out


def module_of(path):
    "The module that a notebook exports to, or None"
    return next((v for c in cells(path, 'code') for k, v in directives(c['source'])
                 if k == 'default_exp'), None)


def tree(source):
    "The syntax tree of a code cell, magics and shell lines left out"
    keep = [('pass' if re.match(r'\s*[!%]', s) else s) for s in source.splitlines()]
    return ast.parse('\n'.join(keep))


@functools.cache
def tree_of(path):
    "The syntax tree of a module, read once: nobody changes it"
    return ast.parse(path.read_text(encoding='utf-8'))


def text_of(output):
    "Everything a person could read in an output, pictures' bytes left out"
    join = (lambda v: v if isinstance(v, str) else ''.join(map(str, v)) if isinstance(v, list)
                      else json.dumps(v))
    return '\n'.join([join(output.get('text', ''))]
                     + [join(v) for k, v in output.get('data', {}).items()
                        if k not in ('image/png', 'image/jpeg')])

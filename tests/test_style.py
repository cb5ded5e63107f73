"""The style that can be counted, each rule with a table of what still breaks it: tests/style.json.

The tables can only shrink: more fails, and so does less, until the table says so.

    python tests/test_style.py                        what would be written
    python tests/test_style.py --write                write it, unless anything grew
    python tests/test_style.py --write --allow-more   write it even so

Nothing is imported or run: ruff reads the lines, and `ast` the package.
"""
import argparse
import ast
import functools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from common import LIB, NBS, notebooks, ROOT, tree_of
from style_figures import FUNCTIONS, probes

TABLE = Path(__file__).with_name('style.json')
MODULES = sorted(p for p in LIB.glob('*.py') if p.stem not in ('__init__', '_modidx', 'all'))
WIDTH = 100
SILENT = {'NotImplementedError', 'KeyboardInterrupt', 'StopIteration'}   # not for a user to handle
CALLED = {'__init__', '__call__'}                      # the private names that a user calls
SHAPE = re.compile(r'\((?:\d|…|\.{3}|[A-Z]\w{0,2}|[a-z])(?:\s?[,·×*+/−-]\s?[\w…. ]+)*,?\)')
SAME = re.compile(r'\b(scalars?|any shape|same shape)\b')
UNITS = re.compile(r'\b(nats|bits|bytes|tokens|ids|seconds|radians)\b')
PAPER = re.compile(r'\b([A-Z][\w-]+)(?: et al\.,?| (?:&|and) [A-Z][\w-]+)? \(?((?:19|20)\d\d)\b')
ARXIV = re.compile(r'arXiv[: ]\s?(\d{4}\.\d{4,5})', re.I)


def text_of(path): return path.read_text(encoding='utf-8')


# ---- the public names of the package

def public(name): return not name.startswith('_')


@functools.cache
def classes():
    "Name → class of every class of the package, with what @patch adds to it as (class, function)"
    found, patched = {}, []
    for node in (n for p in MODULES for n in tree_of(p).body):
        if isinstance(node, ast.ClassDef): found[node.name] = node
        if isinstance(node, ast.FunctionDef) and is_patch(node):
            annotation = node.args.args[0].annotation if node.args.args else None
            if annotation is not None: patched.append((ast.unparse(annotation), node))
    return found, patched


def is_patch(node): return any('patch' in ast.unparse(d) for d in node.decorator_list)


def methods(cls):
    "The functions of a class, those of @patch included"
    own = [f for f in cls.body if isinstance(f, FUNCTIONS)]
    return own + [f for name, f in classes()[1] if name == cls.name]


def ancestors(cls):
    known = classes()[0]
    for base in (ast.unparse(b).split('.')[-1] for b in cls.bases):
        if base in known:
            yield known[base]
            yield from ancestors(known[base])


def owner(node):
    "The class that a function is patched into, if it is one of ours"
    name = next((name for name, f in classes()[1] if f is node), None)
    return classes()[0].get(name)


def functions(path):
    "Each function that a user can call: its name, its class or None, its node"
    for node in tree_of(path).body:
        if isinstance(node, FUNCTIONS) and public(node.name):
            cls = owner(node)
            yield (f'{cls.name}.{node.name}' if cls else node.name), cls, node
        if isinstance(node, ast.ClassDef) and public(node.name):
            for f in (f for f in node.body if isinstance(f, FUNCTIONS)):
                if public(f.name) or f.name in CALLED: yield f'{node.name}.{f.name}', node, f


def explained(cls, node):
    "What a user reads of a function: its docstring; for __init__ also the class's, and its bases'"
    texts = [ast.get_docstring(node)]
    if cls is not None:
        if node.name in ('__init__', '__post_init__'): texts.append(ast.get_docstring(cls))
        bases = [f for base in ancestors(cls) for f in methods(base) if f.name == node.name]
        texts += map(ast.get_docstring, bases)
    return '\n'.join(filter(None, texts))


def own_nodes(node):
    "The nodes of a function's body, without those of functions within it"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.Lambda, ast.ClassDef)): continue
        yield child
        yield from own_nodes(child)


# ---- the rules: each gives file → what breaks it, as a sorted list of names or as a number

def raised(node):
    "The names of the errors that a function raises itself; '' where it cannot be read off"
    for n in own_nodes(node):
        if not isinstance(n, ast.Raise) or n.exc is None: continue
        kind = n.exc.func if isinstance(n.exc, ast.Call) else n.exc
        name = ast.unparse(kind).split('.')[-1]
        yield name if re.fullmatch(r'[A-Z]\w+', name) else ''


def unsaid_errors():
    "Functions that raise an error which their docstring does not name ('Raises ValueError …')"
    def breaks(cls, node):
        names, said = set(raised(node)) - SILENT, explained(cls, node)
        says = re.search(r'\braises?\b', said, re.I)
        return names and not (says and all(n in said for n in names))
    return _listed(breaks)


def shapeless_tensors():
    "Functions of which a tensor's shape or unit stands neither beside it nor in the docstring"
    def breaks(cls, node, lines):
        if has_shape(explained(cls, node)): return False
        args = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        tensors = [a for a in args if a.annotation and 'Tensor' in ast.unparse(a.annotation)]
        comments = [lines[a.end_lineno-1].partition('#')[2] for a in tensors]
        return any(not has_shape(c) and not UNITS.search(c) for c in comments)
    return _listed(breaks, lines=True)


def has_shape(text): return SHAPE.search(text) or SAME.search(text)


def _listed(breaks, lines=False):
    found = {}
    for path in MODULES:
        extra = [text_of(path).splitlines()] if lines else []
        found[path.stem] = sorted({n for n, cls, f in functions(path) if breaks(cls, f, *extra)})
    return _filled(found)


def missing_sources():
    "Papers that a docstring or a comment cites and the page of references lacks"
    page = json.loads(text_of(NBS/'references.ipynb'))
    entries = [e for c in page['cells'] for e in ''.join(c['source']).split('\n- ')]
    found = {p.stem: sorted({cited for cited, *words in citations(text_of(p))
                             if not any(all(w in e for w in words) for e in entries)})
             for p in MODULES}
    return _filled(found)


def citations(text):
    "Each citation in a text, as it stands, and the words that its entry has"
    for m in PAPER.finditer(text):
        if 'et al' in m[0] or '&' in m[0] or ' and ' in m[0]: yield f'{m[1]} {m[2]}', m[1], m[2]
    for m in ARXIV.finditer(text): yield f'arXiv {m[1]}', m[1]


def private_imports():
    "Private names that a module takes from another one"
    found = {}
    for path in MODULES:
        froms = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.ImportFrom)]
        ours = [n for n in froms if n.level or (n.module or '').split('.')[0] == 'gptlab']
        found[path.stem] = sorted({f'{(n.module or "").split(".")[-1]}.{a.name}' for n in ours
                                   for a in n.names if re.match(r'_[^_]', a.name)})
    return _filled(found)


def probed_attributes():
    "How often a module asks by hasattr or getattr what an object happens to have"
    return _filled({p.stem: probes(tree_of(p)) for p in MODULES})


def page_width():
    "Lines over 100 columns and statements joined by a semicolon, as ruff counts them"
    ruff = shutil.which('ruff', path=f'{Path(sys.executable).parent}:') or shutil.which('ruff')
    if not ruff: pytest.skip('ruff is not installed')
    files = [*MODULES, *notebooks()]
    files += [p for d in ('tests', 'benchmarks') for p in (ROOT/d).rglob('*.py')]
    cmd = [ruff, 'check', '--isolated', '--no-cache', '--ignore-noqa', '--output-format', 'json',
           '--select', 'E501,E702,E703', '--line-length', str(WIDTH), *map(str, files)]
    done = subprocess.run(cmd, capture_output=True, text=True)
    if done.returncode not in (0, 1): raise RuntimeError(done.stderr)
    rows = [r for r in json.loads(done.stdout) if not is_generated(r)]
    return _filled(Counter(Path(r['filename']).relative_to(ROOT).as_posix() for r in rows))


def is_generated(row):
    "nbdev breaks the lines of __all__ itself, and wider than the page"
    path = Path(row['filename'])
    if path not in MODULES: return False
    lists = [n for n in tree_of(path).body if isinstance(n, ast.Assign)
             and ast.unparse(n.targets[0]) == '__all__']
    return any(n.lineno <= row['location']['row'] <= n.end_lineno for n in lists)


def _filled(found): return {k: v for k, v in sorted(found.items()) if v}


RULES = {f.__name__: f for f in (page_width, unsaid_errors, shapeless_tensors, missing_sources,
                                 private_imports, probed_attributes)}


# ---- the tables

def compare(now, allowed):
    "(what there is more of than allowed, what there is less of), as (file, what) each"
    more, fewer = [], []
    for name in sorted({*now, *allowed}):
        have, may = now.get(name), allowed.get(name)
        if isinstance(have or may, list):
            more += [(name, x) for x in have or [] if x not in (may or [])]
            fewer += [(name, x) for x in may or [] if x not in (have or [])]
        elif (have or 0) != (may or 0):
            side = more if (have or 0) > (may or 0) else fewer
            side.append((name, f'{have or 0}, the table says {may or 0}'))
    return more, fewer


@pytest.fixture(scope='module')
def allowed(): return json.loads(text_of(TABLE))


@pytest.mark.parametrize('rule', RULES)
def test_no_more_and_no_less_than_the_table_says(rule, allowed):
    more, fewer = compare(RULES[rule](), allowed.get(rule, {}))
    bad = [f'{name}: {what}' for name, what in more]
    if bad: bad.insert(0, f'{RULES[rule].__doc__ or rule}; mend these:')
    if fewer:
        bad += ['', 'This is better than the table: `python tests/test_style.py --write` lowers it']
        bad += [f'{name}: {what}' for name, what in fewer]
    if bad: pytest.fail('\n'.join([rule, *bad]), pytrace=False)


def test_the_table_has_no_other_rules(allowed): assert sorted(allowed) == sorted(RULES)


def test_a_table_can_only_shrink():
    allowed = dict(a=3, b=1, f=['x', 'y'], g=['z'])
    assert compare(allowed, allowed) == ([], [])
    assert compare(dict(a=4, c=1, b=1, f=['x', 'w'], g=['z']), allowed) == (
        [('a', '4, the table says 3'), ('c', '1, the table says 0'), ('f', 'w')], [('f', 'y')])
    assert compare(dict(a=2, f=['x', 'y']), allowed) == (
        [], [('a', '2, the table says 3'), ('b', '0, the table says 1'), ('g', 'z')])


@pytest.mark.parametrize('text, has', [
    ('(B,T,C)', True), ('(N,)', True), ('(…,C)', True), ('(B,H,T,D of values)', True),
    ('(V)', True), ('(Su et al. 2021)', False), ('(or None)', False), ('the matrix', False)])
def test_what_a_shape_looks_like(text, has): assert bool(SHAPE.search(f'x {text}, y')) == has


def test_an_error_counts_for_the_function_whose_own_body_raises_it():
    def errors(body): return sorted(raised(ast.parse(f'def f():\n {body}').body[0]))
    assert errors('raise ValueError("no")') == ['ValueError'] == errors('raise ValueError')
    assert errors('raise json.JSONDecodeError(x)') == ['JSONDecodeError']
    assert errors('raise error') == [''] == errors('raise _unknown(x)')
    assert not errors('raise') and not errors('def g(): raise ValueError')


def test_citations_are_found():
    text = 'as in (Su et al. 2021, eq. 34); Kingma & Ba 2015; arXiv:2104.09864; in June 2024'
    assert [c for c, *_ in citations(text)] == ['Su 2021', 'Kingma 2015', 'arXiv 2104.09864']


# ---- what is private to others

def foreign_names(trees):
    "Private names that a package reads and nowhere defines: name → modules (stems)"
    own, used = {'_exit', '_'}, {}
    for n in (n for tree in trees.values() for n in ast.walk(tree)):
        if isinstance(n, (*FUNCTIONS, ast.ClassDef)): own.add(n.name)
        if isinstance(getattr(n, 'ctx', None), ast.Store): own.add(getattr(n, 'attr', ''))
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): own.add(n.id)
    for stem, tree in trees.items():
        for n in ast.walk(tree):
            for name in read_by(n): used.setdefault(name, set()).add(stem)
    return {k: v for k, v in used.items() if re.match('_[^_]', k) and k not in own}


def read_by(node):
    "The names that a node of a syntax tree reads from others"
    if isinstance(node, ast.Attribute): return [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [a.name for a in node.names] + (node.module or '').split('.')
    probe = isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('getattr', 'hasattr')
    if probe and isinstance(node.args[1], ast.Constant): return [node.args[1].value]
    return []


def test_what_is_private_to_others_stands_in_one_table():
    text = text_of(ROOT/'CONTRIBUTING.md')
    table = text.split('## What is private to others')[1].split('\n## ')[0]
    rows = [[c.strip() for c in row.split('|')[1:4]] for row in table.splitlines()
            if row.startswith('| ')][1:]
    listed = {(name, m.strip()) for names, modules, _ in rows for m in modules.split(',')
              for part in re.findall('`([^`]+)`', names) for name in part.split('.')}
    found = foreign_names({p.stem: tree_of(p) for p in MODULES})
    uses = {(name, m) for name, modules in found.items() for m in modules}
    assert uses and not uses - listed, f'not in the table of CONTRIBUTING.md: {uses - listed}'
    assert all(instead for *_, instead in rows)
    texts = {p.stem: text_of(p) for p in MODULES}                  # some stand in a string
    gone = {(name, m) for name, m in listed if name not in texts[m]}
    assert not gone, f'in the table, and no longer used: {gone}'


def main():
    parser = argparse.ArgumentParser(description='What breaks the rules of style today')
    parser.add_argument('--write', action='store_true', help=f'write {TABLE.name}')
    parser.add_argument('--allow-more', action='store_true', help='write it although it grew')
    args = parser.parse_args()
    now = {rule: f() for rule, f in RULES.items()}
    text = json.dumps(now, indent=1, ensure_ascii=False) + '\n'
    if not args.write: return print(text, end='')
    old = json.loads(text_of(TABLE)) if TABLE.exists() else {}
    grown = [(rule, *entry) for rule in now for entry in compare(now[rule], old.get(rule, {}))[0]]
    for entry in grown: print('more:', *entry)
    if grown and not args.allow_more: sys.exit(f'{TABLE.name} was not written: mend these')
    TABLE.write_text(text, encoding='utf-8')


if __name__ == '__main__': main()

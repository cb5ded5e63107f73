"""How dense the code is, in figures: python tests/style_figures.py [REV|FOLDER ...]

A column each for the working tree (no argument, or "."), for revisions of this repository, and
for any folder of Python files, such as a peer's package. Shares are of the lines that hold code;
raises are counted per 100 lines that are not blank. A comprehension is nested if it stands in
another one or has two `for`. `_modidx.py` is left out. Chapters are the code cells of notebooks
00 to 15, where a tree has them.
"""
import argparse
import ast
import io
import json
import re
import statistics
import subprocess
import tarfile
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
SKIP = 'Skip at first reading'
CHAPTER = re.compile(r'nbs/(0\d|1[0-5])_\w+\.ipynb')


# ---- what is read

def revision(rev):
    "path → text of the package and its notebooks at a revision of this repository"
    cmd = ['git', '-C', str(ROOT), 'archive', rev, 'gptlab', 'nbs']
    packed = subprocess.run(cmd, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = [n for n in tar.getnames() if CHAPTER.fullmatch(n) or _of_package(Path(n))]
        return {n: tar.extractfile(n).read().decode('utf-8') for n in names}


def working_tree():
    paths = [*(ROOT/'gptlab').glob('*.py'), *(ROOT/'nbs').glob('*.ipynb')]
    texts = {p.relative_to(ROOT).as_posix(): p for p in sorted(paths)}
    return {n: p.read_text(encoding='utf-8') for n, p in texts.items()
            if CHAPTER.fullmatch(n) or _of_package(p)}


def folder(path):
    "name → text of every Python file below a folder, or of one file"
    path = Path(path)
    found = sorted(path.rglob('*.py')) if path.is_dir() else [path]
    return {p.as_posix(): p.read_text(encoding='utf-8') for p in found if _of_package(p)}


def _of_package(path): return path.suffix == '.py' and path.name != '_modidx.py'


def read(what):
    "The files of a folder, of the working tree (\".\") or of a revision"
    if what == '.': return working_tree()
    return folder(what) if Path(what).exists() else revision(what)


# ---- what is counted

def filled(text): return [line for line in text.splitlines() if line.strip()]


def of_code(lines): return [line for line in lines if not line.lstrip().startswith('#')]


def joined(text):
    "How many lines hold a semicolon that joins statements"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({t.start[0] for t in tokens if t.type == tokenize.OP and t.string == ';'})


def body(function):
    "The statements of a function without its docstring"
    has_docstring = ast.get_docstring(function, clean=False) is not None
    return function.body[1:] if has_docstring else function.body


def nodes(tree): return sum(1 for _ in ast.walk(tree))


def length(function): return function.end_lineno - function.lineno + 1


def body_density(function, lines):
    "Syntax nodes per line of a function's body, blank lines and docstring left out"
    inside = body(function)
    if not inside: return None
    taken = lines[inside[0].lineno-1:inside[-1].end_lineno]
    return sum(map(nodes, inside)) / len([line for line in taken if line.strip()])


def probes(tree):
    "How many calls ask what an object happens to have: hasattr and getattr"
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return sum(isinstance(f, ast.Name) and f.id in ('hasattr', 'getattr') for f in calls)


def nested(tree):
    "How many comprehensions stand in another one, or have two `for`"
    every = [n for n in ast.walk(tree) if isinstance(n, COMPREHENSIONS)]
    inside = {m for n in every for m in ast.walk(n) if m is not n and isinstance(m, COMPREHENSIONS)}
    return len(inside) + sum(len(n.generators) > 1 for n in every)


def chapter_nodes(text):
    """Syntax nodes of a notebook's code cells: (all, those that a first reader meets)

    A first reader passes over what stands under "Skip at first reading". Lines of the shell
    count as `pass`.
    """
    total = first = 0
    skipped = False
    for cell in json.loads(text)['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            for heading in re.findall('^## .*', source, re.M): skipped = SKIP in heading
        if cell['cell_type'] != 'code': continue
        plain = ['pass' if re.match(r'\s*[!%]', line) else line for line in source.splitlines()]
        n = nodes(ast.parse('\n'.join(plain)))
        total += n
        first += 0 if skipped else n
    return total, first


# ---- the figures

def figures(files):
    "Name of a figure → its value as text, for files as path → text"
    code = {n: t for n, t in files.items() if n.endswith('.py')}
    trees = {n: ast.parse(t) for n, t in code.items()}
    full = [line for t in code.values() for line in filled(t)]
    lines = of_code(full)
    defs = [(f, n) for n, tree in trees.items() for f in ast.walk(tree)
            if isinstance(f, FUNCTIONS)]
    raises = sum(isinstance(n, ast.Raise) for tree in trees.values() for n in ast.walk(tree))
    lengths = [length(f) for f, _ in defs]
    rows = {name: text.splitlines() for name, text in code.items()}
    densities = [d for f, n in defs if (d := body_density(f, rows[n])) is not None]
    longer = {n: sum(len(line) > n for line in lines) for n in (100, 120, 150)}
    out = {'files, lines': f'{len(code)}, {len(full)}',
           'functions': str(len(defs)),
           'function length, median / p95 / longest': _spread(lengths, 'g', longest=True)}
    out |= {f'lines over {n}': _percent(k, lines) for n, k in longer.items()}
    out |= {'lines joined by `;`': _percent(sum(map(joined, code.values())), lines),
            'syntax nodes per body line, median / p95': _spread(densities, '.1f'),
            'nested comprehensions per 1,000 lines':
                _per(sum(map(nested, trees.values())), lines, 1000),
            'raises per 100 lines': _per(raises, full, 100),
            'hasattr and getattr': str(sum(map(probes, trees.values())))}
    chapters = [chapter_nodes(t) for n, t in files.items() if CHAPTER.fullmatch(n)]
    total, first = map(sum, zip(*chapters)) if chapters else ('–', '–')
    return out | {'syntax nodes, chapters 00 to 15': str(total),
                  'of these, met at first reading': str(first)}


def by_chapter(files):
    "Name of a chapter → the syntax nodes that a first reader meets, as text"
    found = {n: chapter_nodes(t)[1] for n, t in files.items() if CHAPTER.fullmatch(n)}
    return {Path(n).stem: str(k) for n, k in sorted(found.items())}


def _spread(values, form, longest=False):
    if not values: return '–'
    ordered = sorted(values)
    p95 = ordered[min(len(ordered)-1, int(0.95*len(ordered)))]
    shown = [statistics.median(ordered), p95] + ([ordered[-1]] if longest else [])
    return ' / '.join(format(v, form) for v in shown)


def _percent(n, lines): return f'{100*n/max(1, len(lines)):.1f} %'


def _per(n, lines, many): return f'{many*n/max(1, len(lines)):.1f}'


def table(columns):
    "A table in Markdown of name → figures"
    names = list(columns)
    rows = [['', *names], ['---']*(len(names)+1)]
    rows += [[k, *(columns[n][k] for n in names)] for k in columns[names[0]]]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', nargs='*', default=['.'], help='a revision, a folder, or "."')
    parser.add_argument('--chapters', action='store_true', help='first reading, by chapter')
    args = parser.parse_args()
    ask = by_chapter if args.chapters else figures
    print(table({what: ask(read(what)) for what in args.what}))

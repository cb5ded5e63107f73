"""The shape of the house: what a glance at the files can tell. Nothing is imported or run, so it
takes seconds.

Each rule collects all of its complaints before it fails, and says for each what to do.
"""
import ast, io, re, shutil, subprocess, tokenize
from collections import defaultdict

import pytest

from common import (ADDRESS, LIB, cells, directives, folder, module_of, name, notebooks, number,
                    text_of, tree, tree_of)

ALL = notebooks()
BOOK = [p for p in ALL if (number(p) if number(p) is not None else 99) <= 15]
CHAPTERS = [p for p in ALL if number(p) is not None]
HAND_WRITTEN = ('__init__.py', '__main__.py', '_modidx.py')  # from no notebook
MODULES = sorted(p for p in LIB.glob('*.py') if p.name not in HAND_WRITTEN)
EXPERIMENTS = [p for p in ALL if folder(p) == 'experiments']
# they use the package; they export nothing, and no part of the flow is theirs
FOLDERS = {'recipes', 'howto', 'experiments'}
UNTAUGHT = {'references.ipynb', 'glossary.ipynb'}      # pages without a part of the flow
GATHER = 'all'                                         # the module that re-exports everything
FLAGS = {'slow', 'cuda', 'mps', 'net', 'notest'}       # the cells that are skipped under test
PLAIN = FLAGS | {'default_exp', 'export', 'exports', 'exporti', 'hide', 'hide_line',
                 'filter_stream', 'exec_doc'}
QUARTO = {'eval:', 'echo:', 'output:', 'include:', 'warning:', 'code-fold:', 'code-summary:',
          'fig-alt:', 'fig-cap:', 'label:'}
HEAVY = {'datasets', 'trackio', 'transformers', 'torchao', 'gradio', 'torch._dynamo',
         'torch.distributed.fsdp', 'torch.utils.tensorboard', 'wandb'}
# the seams' methods: their arguments are explained once, with the contract
CONTRACT = {'forward', 'prepare', 'rotate', 'bias', 'new_cache', 'add', 'once', 'mask'}
each = pytest.mark.parametrize('nb', ALL, ids=name)


def complain(bad):
    if bad: pytest.fail('\n' + '\n'.join(bad), pytrace=False)


def imports(source):
    "The names of gptlab's modules that a cell imports, with what it takes from each"
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('gptlab'):
            if node.module == 'gptlab': yield from ((a.name, []) for a in node.names)
            else: yield node.module.split('.')[1], [a.name for a in node.names]
        if isinstance(node, ast.Import):
            yield from ((a.name.split('.')[1], []) for a in node.names
                        if a.name.startswith('gptlab.'))


# ---- the package as a whole

def test_every_module_has_its_notebook():
    made = defaultdict(list)
    for p in ALL:
        if (m := module_of(p)): made[m].append(name(p))
    have = {p.stem for p in MODULES}
    complain([f'gptlab/{m}.py: no notebook has `#| default_exp {m}`; delete the file'
              for m in sorted(have - set(made))]
             + [f'{made[m][0]}: gptlab/{m}.py is missing; run nbdev_export'
                for m in sorted(set(made) - have)]
             + [f'{m} is exported by {n}; a module comes from one notebook'
                for m, n in made.items() if len(n) > 1]
             + [f'{name(p)}: a numbered chapter needs a `#| default_exp` cell'
                for p in CHAPTERS if not module_of(p)])


def test_numbers_are_unique():
    seen = defaultdict(list)
    for p in CHAPTERS: seen[number(p)].append(name(p))
    complain([f'{n:02} is used by {v}' for n, v in seen.items() if len(v) > 1])


def test_every_cell_has_an_id_of_its_own():
    bad = []
    for p in ALL:
        seen = defaultdict(list)
        for c in cells(p): seen[c.get('id')].append(c['n'])
        bad += [f'{name(p)}: cells {", ".join(map(str, v))} have the id {i}; give one of them '
                'eight other hex digits' for i, v in seen.items() if i is None or len(v) > 1]
    complain(bad)


def test_imports_point_to_lower_numbers():
    order = {module_of(p): number(p) for p in CHAPTERS}
    bad = []
    for p in CHAPTERS:
        for c in cells(p, 'code'):
            for m, names in imports(c['source']):
                where = f'{name(p)} cell {c["n"]}: imports gptlab.{m}'
                if m not in order: bad.append(f'{where}, which no chapter exports')
                elif order[m] >= number(p):
                    bad.append(f'{where}, which is chapter {order[m]:02}: what comes later is '
                               'handed in as an argument')
                if '*' in names and module_of(p) != GATHER:
                    bad.append(f'{where} with a star: name what you take')
    complain(bad)


def test_exported_names_are_unique():
    seen = defaultdict(list)
    for p in MODULES:
        if p.stem == GATHER: continue
        for node in tree_of(p).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
                for n in ast.literal_eval(node.value): seen[n].append(p.stem)
    complain([f'{n} is exported by {" and ".join(v)}; rename one, or give it an underscore'
              for n, v in seen.items() if len(v) > 1])


# ---- exported code

def public(node): return not node.name.startswith('_')

def inherited(node, classes):
    """The names of the public methods that a class takes over from its bases in the package: they
    are explained there"""
    out = set()
    for b in (ast.unparse(b).split('.')[-1] for b in node.bases):
        if b in classes:
            out |= ({f.name for f in classes[b].body
                     if isinstance(f, ast.FunctionDef) and public(f)}
                    | inherited(classes[b], classes))
    return out


def functions(mod):
    "Every function that a user can call, as (name, node, is a method)"
    classes = {c.name: c for m in MODULES for c in tree_of(m).body if isinstance(c, ast.ClassDef)}
    for node in tree_of(mod).body:
        if isinstance(node, ast.FunctionDef) and public(node):
            patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
            yield node.name, node, patched
        if isinstance(node, ast.ClassDef) and public(node):
            known = inherited(node, classes) | {'forward', 'extra_repr'}
            for f in node.body:
                if (isinstance(f, ast.FunctionDef) and (public(f) or f.name == '__init__')
                    and f.name not in known):
                    yield (f'{node.name}.{f.name}', f,
                           not any(ast.unparse(d) == 'staticmethod' for d in f.decorator_list))


def parameters(node, method):
    a = node.args
    out = a.posonlyargs + a.args + a.kwonlyargs
    return out[1:] if method else out


def comments(text):
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type == tokenize.COMMENT}


@pytest.mark.parametrize('mod', MODULES, ids=lambda p: p.stem)
def test_public_functions_are_typed_and_documented(mod):
    bad, text = [], mod.read_text(encoding='utf-8')
    noted = comments(text)
    for fname, node, method in functions(mod):
        # a patched forward: its arguments are the contract in the design
        if fname == 'forward': continue
        args, init = parameters(node, method), fname.endswith('.__init__')
        if not ast.get_docstring(node) and not init: bad.append(f'{fname}: has no docstring')
        bad += [f'{fname}: parameter {a.arg} has no type' for a in args if a.annotation is None]
        if len(args) > 1 and node.name not in CONTRACT:
            # a comment belongs to the last parameter of its line
            last = {a.end_lineno: a.arg for a in args}
            defaults = node.args.defaults + [d for d in node.args.kw_defaults if d is not None]
            ends = {a.arg: max([a.end_lineno]
                               + [d.end_lineno for d in defaults if d.lineno == a.end_lineno])
                    for a in args}
            bad += [f'{fname}: parameter {a.arg} has no comment; write one parameter a line, each '
                    'with # what it means' for a in args
                    if last[a.end_lineno] != a.arg or ends[a.arg] not in noted]
    for node in tree_of(mod).body:
        if isinstance(node, ast.ClassDef) and public(node) and not ast.get_docstring(node):
            bad.append(f'{node.name}: has no docstring')
    complain([f'gptlab/{mod.name}: {b}' for b in bad])


@pytest.mark.parametrize('mod', MODULES, ids=lambda p: p.stem)
def test_exported_code_raises_and_stays_light(mod):
    bad, top = [], tree_of(mod)
    for node in ast.walk(top):
        if isinstance(node, ast.Assert):
            bad.append(f'line {node.lineno}: assert vanishes under python -O; raise ValueError and '
                       'say what to do')
    for node in top.body:
        names = ([a.name for a in node.names] if isinstance(node, ast.Import)
                 else [node.module or ''] if isinstance(node, ast.ImportFrom) else [])
        bad += [f'line {node.lineno}: {n} is heavy; import it inside the function that uses it'
                for n in names if any(n == h or n.startswith(h + '.') for h in HEAVY)]
    complain([f'gptlab/{mod.name} {b}' for b in bad])


def test_exported_code_knows_its_names():
    "A name that only a lesson cell imports is missing in the package"
    ruff = shutil.which('ruff') or pytest.skip('ruff is not installed')
    done = subprocess.run([ruff, 'check', '--isolated', '--no-cache', '--output-format', 'concise',
                           '--select', 'E9,F821,F823', str(LIB)], capture_output=True, text=True)
    if done.returncode:
        pytest.fail('import it in an export cell:\n' + done.stdout.replace(str(LIB), 'gptlab'),
                    pytrace=False)


def test_no_message_names_what_has_another_name_now():
    "Advice in an error, a docstring or a comment calls functions by the names they have"
    table = (LIB.parent/'tests'/'golden'/'renames.tsv').read_text(encoding='utf-8').splitlines()
    new = dict(row.split('\t')[:2] for row in table if row.endswith('\tname'))
    calls, bad = re.compile(r'(?<![\w.])(' + '|'.join(new) + r')\('), []
    for p in MODULES:
        for t in tokenize.generate_tokens(io.StringIO(p.read_text(encoding='utf-8')).readline):
            if t.type not in (tokenize.STRING, tokenize.COMMENT): continue
            bad += [f'{p.name} line {t.start[0]}: {m[1]}( is {new[m[1]]}( now'
                    for m in calls.finditer(t.string)]
    # `draw(weight)` there is an argument of the reader's own
    complain([b for b in bad if not b.startswith('stacks.py')])


# ---- each notebook

@each
def test_opening(nb):
    bad, all_cells = [], cells(nb)
    first = all_cells[0]
    if first['cell_type'] != 'markdown' or not re.match(r'# \S.*\n\s*\n> \S.*', first['source']):
        bad.append('the first cell is "# Title", an empty line, "> one-line subtitle"')
    line = ADDRESS.run_line(name(nb), ADDRESS.settings())
    second = next((c for c in all_cells[1:] if c['cell_type'] == 'markdown'), dict(source=''))
    if line not in second['source']:
        bad.append('the first prose below the title ends with how it is run; `python '
                   '.ci/address.py` writes it')
    if nb.name not in UNTAUGHT and not folder(nb):
        maps = [c for c in all_cells if c['cell_type'] == 'code' and 'flow_map(' in c['source']
                and 'def flow_map' not in c['source']]
        if not maps: bad.append("no map: flow_map('…') in a cell of its own near the top")
        elif not any('data:image/svg+xml' in text_of(o) for o in maps[0]['outputs']):
            bad.append('the map was not saved as a picture; run the notebook')
    complain([f'{name(nb)}: {b}' for b in bad])


@each
def test_directives(nb):
    bad = []
    for c in cells(nb, 'code'):
        here = f'{name(nb)} cell {c["n"]}'
        top = directives(c['source'])
        for k, v in top:
            if k not in PLAIN | QUARTO:
                bad.append(f'{here}: `#| {k}` is not a directive; there are '
                           f'{" ".join(sorted(PLAIN | QUARTO))}')
            if k in ('eval:', 'echo:', 'include:') and v not in ('true', 'false'):
                bad.append(f'{here}: `#| {k} {v}` is neither true nor false')
        lines = [s for s in c['source'].splitlines() if re.match(r'\s*#\s*\|', s)]
        if len(lines) > len(top):
            bad.append(f'{here}: a `#|` line below code has no effect; directives come first')
    complain(bad)


@each
def test_imports_stand_alone(nb):
    """nbdev_docs runs every cell that imports, and only those: anything else in such a cell breaks
    the docs"""
    bad = []
    for c in cells(nb, 'code'):
        if {'export', 'exports', 'exporti', 'eval:'} & {k for k, _ in directives(c['source'])}:
            continue
        body = tree(c['source']).body
        has = any(isinstance(n, (ast.Import, ast.ImportFrom)) for t in body for n in ast.walk(t))
        plain = all(
            isinstance(t, (ast.Import, ast.ImportFrom, ast.Pass)) or 'flow_map(' in ast.unparse(t)
            or re.match(r'(set_seed|os\.environ|plt\.rc|torch\.)', ast.unparse(t)) for t in body)
        if has and not plain:
            bad.append(
                f'{name(nb)} cell {c["n"]}: imports stand in a cell of their own (nbdev runs such '
                'cells alone when it builds the docs)')
    complain(bad)


PATHS = re.compile(
    r'(?<![\w./~-])/(home|work|root|tmp|farm|Users|private|var/folders)\b(/|$|\s|["\'])')

@each
def test_nothing_of_this_machine(nb):
    bad = []
    for c in cells(nb):
        for where, text in ([('source', c['source'])]
                            + [('output', text_of(o)) for o in c.get('outputs', [])]):
            bad += [f'{name(nb)} cell {c["n"]}: {where} names a folder of one machine: '
                    f'{text[max(0, m.start()-20):m.end()+30]!r}' for m in PATHS.finditer(text)]
    complain(bad)


@each
def test_outputs_are_saved_and_clean(nb):
    bad, seen = [], 0
    for c in cells(nb, 'code'):
        here, outs = f'{name(nb)} cell {c["n"]}', c['outputs']
        seen += bool(outs)
        if c['execution_count'] is not None or any(o.get('execution_count') for o in outs):
            bad.append(f'{here}: has an execution count; run nbdev_clean')
        bad += [f'{here}: a saved error, {o.get("ename")}: {o.get("evalue")}' for o in outs
                if o['output_type'] == 'error']
        bad += [f'{here}: a saved warning: {text_of(o).strip()[:80]!r}' for o in outs
                if o.get('name') == 'stderr']
        for o in outs:
            kb = len(o.get('data', {}).get('image/png', '')) * 3/4 / 1024
            if kb >= 100: bad.append(f'{here}: a figure of {kb:.0f} kB; keep it under 100')
            kinds = set(o.get('data', {}))
            if 'image/svg+xml' in kinds or '<svg' in text_of(o):
                bad.append(f'{here}: bare SVG, which JupyterLab hides until the notebook is '
                           'trusted; show it by svg_image')
            if (any('widget-view' in k for k in kinds)
                and not kinds & {'text/html', 'image/png', 'image/svg+xml'}):
                bad.append(f'{here}: a saved widget, of which a page shows nothing; save a picture '
                           'or HTML of it instead')
        ds = dict(directives(c['source']))
        if (FLAGS & ds.keys() or 'false' in (ds.get('eval:'), ds.get('output:'), ds.get('include:'))
            or not (body := tree(c['source']).body)):
            continue
        calls = [ast.unparse(t.value.func) for t in body
                 if isinstance(t, ast.Expr) and isinstance(t.value, ast.Call)]
        last, kinds = body[-1], {k for o in outs for k in o.get('data', {})}
        if 'print' in calls and not any(o['output_type'] == 'stream' for o in outs):
            bad.append(f'{here}: prints, but no output was saved; run the notebook')
        if 'plt.show' in calls and 'image/png' not in kinds:
            bad.append(f'{here}: draws, but no figure was saved; run the notebook')
        shows = (isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call)
                 and not c['source'].rstrip().endswith(';'))
        if shows and not (isinstance(last.value, ast.Constant) and len(body) == 1) and not outs:
            bad.append(f'{here}: ends in a value, but no output was saved; run the notebook')
    if not seen and nb.name not in UNTAUGHT:
        bad.append(f'{name(nb)}: has no outputs at all; run it')
    complain(bad)


@pytest.mark.parametrize('nb', BOOK, ids=name)
def test_a_chapter_is_a_sitting(nb):
    n, bad = len(cells(nb)), []
    if n > 60:
        bad.append(f'{name(nb)}: {n} cells; a chapter has about 45, and 60 at most: move the rest '
                   'to the shelf or to tests/')
    if not any(re.search(r'^## Try it', c['source'], re.M) for c in cells(nb, 'markdown')):
        bad.append(f'{name(nb)}: ends with "## Try it"')
    complain(bad)


@each
def test_what_is_to_play_with_has_no_check(nb):
    """Prose that begins with **Play.** stands above a cell to change and run again: nothing that
    the reader writes there may be called wrong"""
    bad, page = [], cells(nb)
    for here, below in zip(page, [*page[1:], dict(cell_type='', source='', n=0)]):
        if not re.match(r'\*\*Play\b', here['source']) or here['cell_type'] != 'markdown': continue
        if not re.match(r'\*\*Play\.\*\* [A-Z]', here['source']):
            bad.append(f'cell {here["n"]}: it begins with "**Play.** " and a sentence')
        if below['cell_type'] != 'code': bad.append(f'cell {here["n"]}: no cell of code below it')
        elif re.search(r'^\s*(assert|test_eq|with expect_fail)\b', below['source'], re.M):
            bad.append(f'cell {below["n"]}: a cell to play with checks something')
    n = number(nb)
    if n is not None and n <= 15 and not any(c['source'].startswith('**Play.**') for c in page):
        bad.append('has no cell to play with: "**Play.** …" above a cell without checks')
    complain([f'{name(nb)} {b}' for b in bad])


# ---- recipes, how-tos and experiments

@pytest.mark.parametrize('nb', [p for p in ALL if folder(p)], ids=name)
def test_what_uses_the_package_exports_nothing(nb):
    bad = []
    if folder(nb) not in FOLDERS:
        bad.append(f'{name(nb)}: notebooks lie in nbs/ or in one of {", ".join(sorted(FOLDERS))}, '
                   'else no sidebar lists them')
    for c in cells(nb, 'code'):
        if {'default_exp', 'export', 'exports', 'exporti'} & dict(directives(c['source'])).keys():
            bad.append(f'{name(nb)} cell {c["n"]}: only the chapters export; a part that two '
                       'notebooks need moves to a chapter')
        bad += [f'{name(nb)} cell {c["n"]}: imports gptlab.{m}; outside the chapters, from '
                'gptlab.all import *' for m, _ in imports(c['source']) if m != GATHER]
    complain(bad)


@pytest.mark.parametrize('nb', EXPERIMENTS, ids=name)
def test_an_experiment_says_what_was_predicted_and_seen(nb):
    "The sections in their order, and results on disk for every run that tests skip"
    bad, want = [], 'Asked Predicted Run Seen Concluded'.split()
    heads = [h for c in cells(nb, 'markdown') for h in re.findall(r'^## (\w+)$', c['source'], re.M)
             if h in want]
    if heads != want:
        bad.append(f'{name(nb)}: its sections are {", ".join(want)}, in this order; it has '
                   f'{", ".join(heads)}')
    for c in cells(nb, 'code'):
        for f in re.findall(r"""['"](results/[^'"]+)['"]""", c['source']):
            if not (nb.parent/f).exists():
                bad.append(f'{name(nb)} cell {c["n"]}: {f} is not there; run its slow cells, and '
                           'commit what they save')
    complain(bad)

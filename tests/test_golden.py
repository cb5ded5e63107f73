"""The golden net: its table of renamed names, its verdicts, and that its facts are facts.

The quick tests try translation and verdicts on small texts. The exhaustive ones compute facts:
twice, in two processes that differ in all that must not count; and of a package in which one
number was changed, which must show in the facts about that number and in no others.
"""
import ast
import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from common import LIB, ROOT

GOLDEN = ROOT/'tests'/'golden'


def module(name):
    "A module of the net by its file, which is in no package"
    spec = importlib.util.spec_from_file_location(f'golden_{name}', GOLDEN/f'{name}.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


compare = module('compare')
Table = compare.Table
needs_git = pytest.mark.skipif(not (ROOT/'.git').exists(), reason='not in a clone')
ROWS = [('fold', 'bend', 'name'), ('Sheet', 'Paper', 'name'), ('size', 'width', 'keyword'),
        ('blue', 'azure', 'string'), ('gptlab.sheets', 'gptlab.papers', 'module'),
        ('gptlab.sheets.Sheet', 'gptlab.papers.Paper', 'module'), ('stack', 'pile', 'name')]


@pytest.fixture
def table():
    return Table(ROWS)


# ---- source, from the new names to the old ones

SOURCES = {
    'function': ('y = bend(x)', 'y = fold(x)'),
    'a name within a longer one': ('y = unbend(bends)', 'y = unbend(bends)'),
    'attribute': ('x.bend.pile()', 'x.fold.stack()'),
    'import by name': ('from gptlab.papers import Paper, bend',
                       'from gptlab.sheets import Sheet, fold'),
    'import of a module': ('import gptlab.papers as p', 'import gptlab.sheets as p'),
    'dotted path': ('gptlab.papers.bend(1)', 'gptlab.sheets.fold(1)'),
    'another module': ('import gptlab.papers_too', 'import gptlab.papers_too'),
    'keyword': ('f(1, width=2)', 'f(1, size=2)'),
    'keyword after a break': ('f(1,\n  width = 2)', 'f(1,\n  size = 2)'),
    'keyword of a keyword': ('f(a=dict(width=bend))', 'f(a=dict(size=fold))'),
    'variable like a keyword': ('width = f(width)', 'width = f(width)'),
    'keyword like a name': ('f(bend=bend)', 'f(bend=fold)'),
    'parameter of a definition': ('def f(width=2):\n    return width',
                                  'def f(width=2):\n    return width'),
    'comparison in a call': ('f(width == 2, x[width])', 'f(width == 2, x[width])'),
    'string': ("f('azure')", "f('blue')"),
    'path in a string': ('f("gptlab.papers.Paper")', "f('gptlab.sheets.Sheet')"),
    'string that holds a word': ("f('azure sky', 'bend', 'width')",
                                 "f('azure sky', 'bend', 'width')"),
    'comment and docstring': ('def f():\n    "To bend azure"  # bend',
                              'def f():\n    "To bend azure"  # bend'),
    'string without names in f': ("f'{x} azure'", "f'{x} azure'"),
    'two lines of string': ('f("""azure\n""")\nbend()', 'f("""azure\n""")\nfold()')}


@pytest.mark.parametrize('case', SOURCES)
def test_source_is_translated_back(table, case):
    new, old = SOURCES[case]
    assert table.back(new + '\n') == old + '\n'
    ast.parse(old)


def test_a_name_in_an_f_string_is_refused(table):
    with pytest.raises(ValueError, match='line 2: bend stands in an f-string'):
        table.back("x = 1\ny = f'{bend(x)}'\n")


def test_without_a_table_nothing_changes():
    source = (GOLDEN/'facts_models.py').read_text(encoding='utf-8')
    assert Table().back(source) == source


def test_own_facts_survive_a_translation():
    "Facts in other names are still Python, and back in today's names they are what they were"
    rows = [('GPT', 'Net', 'name'), ('Opt', 'Optimizer', 'name'),
            ('n_layers', 'how_deep', 'keyword')]
    there, back = Table([(new, old, kind) for old, new, kind in rows]), Table(rows)
    for path in GOLDEN.glob('facts_*.py'):
        source = path.read_text(encoding='utf-8')
        other = there.back(source)
        ast.parse(other)
        assert back.back(other) == source
    assert 'n_layers=3' not in there.back((GOLDEN/'facts_models.py').read_text(encoding='utf-8'))


@pytest.mark.parametrize('rows, why', [
    ([('a', 'b', 'verb')], 'kind'), ([('a', 'b', 'name'), ('c', 'b', 'name')], 'twice'),
    ([('a.b', 'c', 'name')], 'identifiers')])
def test_a_bad_table_is_refused(rows, why):
    with pytest.raises(ValueError, match=why):
        Table(rows)


def test_a_table_in_a_file(tmp_path):
    file = tmp_path/'renames.tsv'
    file.write_text('# old\tnew\tkind\n\nfold\tbend\tname\n')
    assert Table.read(file).back('bend()\n') == 'fold()\n'
    assert Table.read(tmp_path/'absent.tsv').back('bend()\n') == 'bend()\n'
    file.write_text('fold bend name\n')
    with pytest.raises(ValueError, match='line 1: expected three columns'):
        Table.read(file)


def test_names_that_the_older_tree_has_already_are_not_translated(tmp_path):
    golden = tmp_path/'tests'/'golden'
    golden.mkdir(parents=True)
    (tmp_path/'now.tsv').write_text('fold\tbend\tname\nsheet\tpaper\tname\n')
    assert compare.renamed_since(tmp_path, tmp_path/'now.tsv').back('bend()\n') == 'fold()\n'
    (golden/'renames.tsv').write_text('fold\tbend\tname\n')
    table = compare.renamed_since(tmp_path, tmp_path/'now.tsv')
    assert table.back('bend(paper)\n') == 'bend(sheet)\n'


# ---- values, from the old names to the new ones

SAME = {
    'dotted name': ('gptlab.sheets.Sheet', 'gptlab.papers.Paper'),
    'what lies in a moved module': ('gptlab.sheets.Line', 'gptlab.papers.Line'),
    'key of a state dict': ('blocks.0.stack.weight', 'blocks.0.pile.weight'),
    'name in a call': ('fold(size=3)', 'bend(width=3)'),
    'string': ('blue', 'azure'),
    'a word that was meant as text': ('fold', 'fold'),
    'keys': (dict(size=1, rest=2), dict(width=1, rest=2)),
    'deep': ([dict(part='gptlab.sheets.Sheet', args=dict(size=[1]))],
             [dict(part='gptlab.papers.Paper', args=dict(width=[1]))])}

DIFFERENT = {
    'number': (1, 2),
    'kind of number': (1, True),
    'a path that should have moved': ('gptlab.sheets.Sheet', 'gptlab.sheets.Sheet'),
    'another name': ('blocks.0.stack', 'blocks.0.heap'),
    'backwards': ('azure', 'blue'),
    'length': ([1, 2], [1]),
    'order': (['a', 'b'], ['b', 'a']),
    'missing key': (dict(a=1, b=2), dict(a=1)),
    'more keys': (dict(a=1), dict(a=1, b=2)),
    'hash': ('ab12', 'ab13')}


@pytest.mark.parametrize('case', SAME)
def test_values_that_are_the_same(table, case):
    assert table.differences(*SAME[case]) == []


@pytest.mark.parametrize('case', DIFFERENT)
def test_values_that_differ(table, case):
    assert table.differences(*DIFFERENT[case])
    assert not table.same(*DIFFERENT[case])


# ---- verdicts

def kinds(old, new, *args):
    return {v.name: v.kind for v in compare.verdicts(old, new, *args)}


def test_verdicts():
    old = dict(a=1, b=2, c=3, d=dict(error='no'), e=5)
    new = dict(a=1, b=3, d=4, e=dict(error='no'), f=6)
    assert kinds(old, new) == dict(a='equal', b='different', c='only in old', d='error', e='error',
                                   f='only in new')


def test_an_error_on_both_sides_is_not_equal():
    same = dict(a=dict(error='no'))
    found = compare.verdicts(same, same)
    assert found[0].kind == 'error' and not compare.all_good(found)


ERROR, REFUSED = dict(error='no'), dict(refused='no')


@pytest.mark.parametrize('old, new', [
    (dict(a=1), dict(a=2)), (dict(a=1), {}), ({}, dict(a=1)), ({}, {}),
    (dict(a=1), dict(a=ERROR)), (dict(a=1), dict(a=1, b=ERROR)), (dict(a=1, b=ERROR), dict(a=1)),
    (dict(a=REFUSED), dict(a=REFUSED))])
def test_what_does_not_pass(old, new):
    assert not compare.all_good(compare.verdicts(old, new))


def test_what_passes():
    assert compare.all_good(compare.verdicts(dict(a=1), dict(a=1)))
    assert compare.all_good(compare.verdicts(dict(a=1), dict(a=1, b=2)))     # something was added
    refused = compare.verdicts(dict(a=1), dict(a=dict(refused='of another time')))
    assert compare.all_good(refused) and 'of another time' in compare.report(refused)
    assert not compare.all_good(refused, strict=True)


def test_what_is_missing_for_an_error_is_told_once():
    whole, failed = {'a/b: x': 1, 'a/b: y': 2}, {'a/b': ERROR}
    assert kinds(whole, failed) == kinds(failed, whole) == {'a/b': 'error'}


def test_names_of_facts_are_translated(table):
    old, new = {'defaults: fold': 1, 'blue: x': 1}, {'defaults: bend': 1, 'azure: x': 1}
    assert kinds(old, new, table) == dict.fromkeys(new, 'equal')


@needs_git
def test_a_difference_with_a_reason(tmp_path):
    found = compare.verdicts(dict(a=1, b=1), dict(a=2, b=2))
    head = compare.git('rev-parse', 'HEAD')
    file = tmp_path/'expected.tsv'
    file.write_text(f'# fact\trevision\treason\n^a$\t{head}\tone more\n')
    excused = compare.excused(found, compare.reasons_for(file, head, []))
    assert [v.kind for v in excused] == ['expected', 'different']
    more = compare.reasons_for(file, head, ['b=two more'])
    assert compare.all_good(compare.excused(excused, more))
    report = compare.report(excused)
    assert 'one more' in report and '1, now 2' in report


def test_no_difference_is_expected_yet_without_a_reason():
    for pattern, revision, why in compare.rows_of(GOLDEN/'expected.tsv'):
        assert pattern and revision and len(why) > 10


@needs_git
def test_worktrees_are_removed(tmp_path):
    "Whatever happens inside"
    with pytest.raises(KeyboardInterrupt), compare.tree_of('HEAD', tmp_path/'tree') as tree:
        assert (tree/'gptlab'/'__init__.py').is_file()
        raise KeyboardInterrupt
    assert str(tmp_path) not in compare.git('worktree', 'list')
    assert not (tmp_path/'tree').exists()


# ---- facts

def facts(tree, work, *args, **env):
    "The facts of a tree, computed in a process of its own"
    work.mkdir()
    env = compare.environment(tree, work/'cache') | dict(TMPDIR=str(work)) | env
    command = [sys.executable, GOLDEN/'facts.py', work/'out.json', *args]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((work/'out.json').read_text(encoding='utf-8'))


def test_facts_hide_no_name_of_the_library():
    "A function of the facts that is called like one of the library would be measured in its place"
    import gptlab.all
    for path in GOLDEN.glob('*.py'):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        own = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        own |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets
                if isinstance(t, ast.Name)}
        if path.name.startswith('facts_') or path.name == 'crossing.py':
            assert sorted(own & set(gptlab.all.__all__)) == [], path.name


def test_another_package_is_not_measured(tmp_path):
    env = compare.environment(ROOT, tmp_path) | dict(GOLDEN_TREE=str(tmp_path))
    done = subprocess.run([sys.executable, GOLDEN/'facts.py', tmp_path/'out.json'], env=env,
                          capture_output=True, text=True)
    assert done.returncode and 'which is not in' in done.stderr


@pytest.mark.exhaustive
def test_facts_are_the_same_in_another_process(tmp_path):
    "Other hash seed, other folders, other cache, and one after another"
    one = facts(ROOT, tmp_path/'one', PYTHONHASHSEED='1')
    two = facts(ROOT, tmp_path/'two', PYTHONHASHSEED='2')
    found = compare.verdicts(one, two)
    assert len(one) > 2000 and compare.all_good(found), compare.report(found)
    assert all(str(tmp_path) not in json.dumps(v) for v in one.values())
    few = facts(ROOT, tmp_path/'few', '--only', '^(text|sample/warm|stream/|merges/o|model/dep)')
    assert len(few) > 50 and few == {n: one[n] for n in few}     # no fact hangs on another


# file, what stands there, what is put there, facts that differ, facts that stay equal
CHANGED = {
    'spread of GPT-2 weights': (
        'model.py', 'std=.02*scale', 'std=.021*scale',
        ['model/gpt2: weights', 'model/gpt2: logits', 'model/gpt2: gradients'],
        ['model/plain: weights', 'model/gpt2: parameters', 'model/llama: names']),
    'momentum of Muon': (
        'optimizers.py', '[averages[i] for i in which], momentum)',
        '[averages[i] for i in which], momentum*.99)',
        ['rule/muon_exact: weights', 'rule/muon_jordan: weights', 'rule/muon: resumed'],
        ['rule/adamw: weights', 'rule/muon_exact: groups', 'curve/cosine']),
    'a curve': (
        'schedules.py', '(1-end) * (1 + math.cos', '(1-end) * (1.001 + math.cos',
        ['curve/cosine', 'curve/product'],
        ['curve/linear', 'rule/adamw: weights', 'model/plain: loss']),
    'a default': (
        'generation.py', 'n:int=200,', 'n:int=201,',
        ['defaults: generate_text'],
        ['defaults: generate', 'defaults: sample_from', 'rule/sgd: weights'])}

ONLY = '^(model/(plain|gpt2|llama)$|rule/|curve/|defaults)'


@pytest.fixture(scope='module')
def unchanged(tmp_path_factory):
    return facts(ROOT, tmp_path_factory.mktemp('unchanged')/'facts', '--only', ONLY)


@pytest.mark.exhaustive
@pytest.mark.parametrize('case', CHANGED)
def test_a_change_is_noticed(case, tmp_path, unchanged):
    "What is about it differs, and what is not is equal"
    file, before, after, differ, equal = CHANGED[case]
    shutil.copytree(LIB, tmp_path/'tree'/'gptlab', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT/'nbs', tmp_path/'tree'/'nbs', ignore=shutil.ignore_patterns('images'))
    path = tmp_path/'tree'/'gptlab'/file
    source = path.read_text(encoding='utf-8')
    assert before in source
    path.write_text(source.replace(before, after), encoding='utf-8')
    found = compare.verdicts(unchanged, facts(tmp_path/'tree', tmp_path/'facts', '--only', ONLY))
    kind = {v.name: v.kind for v in found}
    assert {n: kind[n] for n in differ} == dict.fromkeys(differ, 'different')
    assert {n: kind[n] for n in equal} == dict.fromkeys(equal, 'equal')
    assert not compare.all_good(found)

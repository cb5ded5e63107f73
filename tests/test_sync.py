"""Notebooks and package say the same: exported and cleaned in a copy, nothing differs. So do the
sidebar, the glossary, the references, and the chapters.

Run nbdev_export and nbdev_clean to mend it. nbdev 3 exports the same where GPTLAB_NBDEV3 names an
environment that holds it; .ci/run makes one.
"""
import ast, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from common import LIB, NBS, ROOT, cells, name, nbdev, notebooks, number, refuses, script


def run(cmd, cwd):
    # with IN_TEST set, nbdev_export does nothing and says so to nobody
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    done = subprocess.run(cmd, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stdout + done.stderr


def project(d):
    """The project in a temporary folder, without its exported modules

    `__init__.py` and `__main__.py` are written by hand; nbdev_export keeps them, but for the line
    `__version__`.
    """
    (d/'gptlab').mkdir(parents=True)
    for f in ('settings.ini', 'pyproject.toml', 'README.md', '_quarto.yml', 'gptlab/__init__.py',
              'gptlab/__main__.py'):
        if (ROOT/f).exists(): shutil.copy(ROOT/f, d/f)
    hidden = shutil.ignore_patterns('.*', '__pycache__', 'nbdev.yml')
    shutil.copytree(NBS, d/'nbs', ignore=hidden, symlinks=False)
    return d


@pytest.fixture(scope='module')
def copy(tmp_path_factory): return project(tmp_path_factory.mktemp('sync')/'gptlab')


def files(d, keep):
    found = [p for p in sorted(d.rglob('*')) if p.is_file() and keep(p)]
    return {p.relative_to(d).as_posix(): p.read_text(encoding='utf-8') for p in found}


def differences(fresh, here):
    return ([f'{f} is missing' for f in fresh.keys() - here.keys()] +
            [f'{f} has no notebook any more' for f in here.keys() - fresh.keys()] +
            [f'{f} differs' for f in fresh.keys() & here.keys() if fresh[f] != here[f]])


def test_the_package_is_what_the_notebooks_export(copy):
    run(nbdev('nbdev_export'), copy)
    index = (LIB/'_modidx.py').exists()        # nbdev_export makes it; checked where it is kept
    keep = lambda p: p.suffix == '.py' and (index or p.name != '_modidx.py')
    fresh, here = files(copy/'gptlab', keep), files(LIB, keep)
    assert not differences(fresh, here), 'run nbdev_export'


def test_each_exported_cell_stands_in_its_module():
    "And nothing else does: this takes no nbdev"
    for nb in notebooks():
        sources = [(c['id'], c['source']) for c in cells(nb, 'code')]
        module = [m[1] for _, s in sources if (m := re.match(r'#\| default_exp (\w+)', s))]
        if not module: continue
        told = [(i, plain(s)) for i, s in sources if re.match(r'#\| export(s|i)?$', s, re.M)]
        text = (LIB/f'{module[0]}.py').read_text(encoding='utf-8')
        made = re.split(r'^# %% \.\./nbs/\S+ #(\S+)\n', text, flags=re.M)[1:]
        made = [(i, s.strip('\n')) for i, s in zip(made[::2], made[1::2])]
        assert made == told, f'{name(nb)}: run nbdev_export'


def plain(source):
    "A cell as nbdev_export writes it: without its directives, with imports from the same folder"
    text = re.sub(r'^#\| *[^\s:]+( .*)?\n', '', source, flags=re.M)  # Quarto's, with a colon, stay
    return re.sub(r'^from gptlab(\.\w+ import)', r'from \1', text, flags=re.M).strip('\n')


def syntax(text):
    "The syntax tree of a module, without the line that nbdev 3 adds to its docstring"
    tree = ast.parse(text)
    doc = ast.get_docstring(tree, clean=False)
    if doc is not None: tree.body[0].value.value = doc.split('\n\nDocs: ')[0]
    return ast.dump(tree)


def symbols(index):
    "What `_modidx.py` lists; nbdev 3 leaves modules out that define nothing"
    space = {}
    exec(index, space)
    return {k: v for k, v in space['d']['syms'].items() if v}


def test_nbdev_3_exports_the_same(tmp_path):
    "Equal in syntax, but for a docstring line with the address of the page"
    if not (env := os.environ.get('GPTLAB_NBDEV3')):
        pytest.skip('GPTLAB_NBDEV3 names no environment: nbdev 3 belongs in one of its own')
    script = Path(env)/('Scripts' if os.name == 'nt' else 'bin')/'nbdev-export'
    assert script.exists() or script.with_suffix('.exe').exists(), f'{script} is not there'
    d = project(tmp_path/'gptlab')
    kept = {f: (d/f).read_bytes() for f in ('pyproject.toml', 'settings.ini', 'gptlab/__init__.py')}
    run([str(script)], d)
    assert kept == {f: (d/f).read_bytes() for f in kept}
    fresh, here = (files(p, lambda p: p.suffix == '.py') for p in (d/'gptlab', LIB))
    indices = [symbols(f.pop('_modidx.py')) for f in (fresh, here)]
    assert indices[0] == indices[1]
    trees = [{f: syntax(text) for f, text in found.items()} for found in (fresh, here)]
    assert not differences(*trees)


def test_the_notebooks_are_clean(copy):
    keep = lambda p: p.suffix == '.ipynb' and '.ipynb_checkpoints' not in p.parts
    run(nbdev('nbdev_clean'), copy)
    assert not differences(files(copy/'nbs', keep), files(NBS, keep)), 'run nbdev_clean'


def test_the_sidebar_lists_the_notebooks():
    sidebar = '    contents:\n' + script('docs').sidebar()
    config = (ROOT/'_quarto.yml').read_text(encoding='utf-8')
    assert config.endswith(sidebar), 'run python .ci/docs.py --sidebar'


@pytest.mark.skipif(os.name == 'nt', reason='Windows checks symlinks out as text')
def test_the_glossary_is_as_the_chapters_have_it():
    done = subprocess.run([sys.executable, '.ci/glossary.py', '--check'], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr


def test_each_chapter_of_the_shelf_stands_once_in_the_sidebar():
    docs = script('docs')
    shelf = [p.name for p in notebooks() if (number(p) or 0) > 15]
    lines = [line.strip(' -') for line in docs.shelf([p.relative_to(NBS) for p in notebooks()
                                                      if (number(p) or 0) > 15])]
    assert sorted(line for line in lines if line.endswith('.ipynb')) == sorted(shelf)
    parts = [k for keys in docs.SHELF.values() for k in keys.split()]
    assert len(parts) == len(set(parts))


# ---- the glossary

ALONE = ['A *batch* is B rows of T tokens.',
         '*Perplexity* is the exponential of the cross-entropy.',
         'Each *training step* computes the loss on a batch and its gradient.',
         'This chapter turns documents into batches: this is called *packing*.']
LEANING = ['It is counted in *nats*.', 'This is *attention*, and here is all of it:',
           'Such an *auxiliary loss* is added in the end.', 'So a *norm* divides each vector.',
           '*Temperature* divides them: the favourite wins.', '*Sampling* draws one token from it.',
           'A *tokenizer* cuts it into pieces.', '*Perplexity* is its exponential.',
           'Each normalises its input (*LayerNorm*).']


def test_a_definition_stands_alone():
    leans = script('glossary').leans
    assert [s for s in ALONE if leans(s)] == [] == [s for s in LEANING if not leans(s)]


def entry(*sentences): return [('00_start.ipynb', 'Start', 'The text', s) for s in sentences]


def test_the_glossary_takes_the_first_sentence_that_stands_alone():
    place = script('glossary').place
    found = entry('It has a *rank*.', 'The *rank* is a number.', 'A *rank* is 3.')
    assert place('rank', found)[-1] == 'The *rank* is a number.'
    assert place('column?', found) is None
    with refuses(SystemExit, 'no chapter', '*column*'): place('column', found)
    with refuses(SystemExit, '00_start.ipynb', 'leans', 'It has a *rank*.'):
        place('rank', entry('It has a *rank*.'))


# ---- the references

def prose():
    "Each notebook's name and its prose"
    for p in notebooks():
        if p.name != 'references.ipynb':
            yield name(p), '\n\n'.join(c['source'] for c in cells(p, 'markdown'))


def test_a_citation_leads_to_its_paper():
    pages = pytest.importorskip('gptlab.pages')
    bad, path, count = [], NBS/'references.ipynb', 0
    surely = re.compile(r' et al\.| & | and others|\(\w+ \d{4}|\w+ \(\d{4}\)')
    for page, text in prose():
        plain = re.sub(r'```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)', '', text, flags=re.S)
        for m in pages._CITATION.finditer(plain):
            around = plain[max(m.start()-1, 0):m.end()]
            if not surely.search(around): continue
            count += 1
            if 'references.ipynb#' not in pages._link_citations(m[0], path, page):
                bad.append(f'{page}: {m[0]} has no entry in nbs/references.ipynb')
    assert not bad, '\n'.join(bad)
    assert count > 20, 'the pattern finds no citations any more'


def test_entries_of_papers_lead_to_the_papers():
    "All but those that stand in no open archive"
    text = '\n'.join(c['source'] for c in cells(NBS/'references.ipynb', 'markdown'))
    entries = re.findall(r'^- [^\n]*?\(\d{4}\)\. [^\n]*', text, re.M)
    plain = [re.match(r'- (.*?) \(', e)[1] for e in entries if not re.search(r'\(\d{4}\)\. \[', e)]
    assert len(entries) > 80
    assert plain == ['S. Holm', 'P. Gage', 'A. Radford and others', 'D. Ruppert',
                     'R. Arratia, M. S. Waterman', 'R. Arratia, L. Gordon, M. S. Waterman']


def test_two_papers_of_one_name_and_year_are_told_apart_by_the_chapter():
    pages, path = pytest.importorskip('gptlab.pages'), NBS/'references.ipynb'
    link = lambda page: pages._link_citations('Chen et al. (2023)', path, page)
    assert link('18_positions.ipynb') != link('09_optimizers.ipynb')
    first = '[Chen et al. (2023)](references.ipynb#chen-2023)'
    assert link('18_positions.ipynb') == link('') == first


def test_quarto_reads_the_one_file():
    link = NBS/'_quarto.yml'
    assert link.is_symlink() and link.resolve() == (ROOT/'_quarto.yml').resolve()

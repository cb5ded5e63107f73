"""Corpora under stress: every place of a mixture, processes killed, disks filled, a server that
does all that servers do, and what bad input gets."""
import hashlib, http.server, io, json, math, os, pickle, random, re, shutil, signal
import subprocess, sys, threading, time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common import refuses
from gptlab import corpora
from gptlab.bpe import BPE
from gptlab.core import show_progress
from gptlab.corpora import (Mixture, Rows, cap_documents, clip_bytes, count_shards, download_shards,
                            dump_text, fetch_file, four_recipe, four_sources, mixture,
                            corpus_overlap, provenance, reshard)
from gptlab.data import Corpus, Source, repeatable, corpus, parquet, skip_documents, make_stories
from gptlab.packing import batches
from gptlab.tokenizer import ByteTokenizer
from kills import ends, family, start

posix = pytest.mark.skipif(os.name == 'nt', reason='a matter of POSIX')


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def files(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*'))
def numbered(n, name='d'): return [f'{name}{i} ' + 'x'*(i*37 % 50) for i in range(n)]


# ---- the cap

def test_the_cap_is_the_longest_whole_beginning():
    rng = random.Random(0)
    letters = 'aé€😀\u0301\n\x00'
    for _ in range(300):
        text, n = ''.join(rng.choices(letters, k=rng.randrange(12))), rng.randrange(4, 30)
        assert (clip_bytes(text, n) == max((text[:k] for k in range(len(text)+1)
                                            if len(text[:k].encode()) <= n), key=len))
    docs = [''.join(rng.choices(letters, k=30)) for _ in range(20)]
    source = cap_documents(docs, 11)
    assert (len(source) == 20 and list(source) == list(source)
            and all(list(source.skip(n)) == list(source)[n:] for n in range(22)))
    assert cap_documents(repeatable(lambda: iter(docs)), 9).n_docs is None


# ---- mixtures

def kinds(docs, kind):
    """The same documents as a list, as a source that knows its length, as one that does not, and as
    a function"""
    return [docs, Source(partial(skip_documents, docs), 'known', len(docs)),
            Source(partial(skip_documents, docs), 'unknown'), repeatable(lambda: iter(docs))][kind]

@pytest.mark.parametrize('seed', range(12))
def test_every_place_of_a_mixture_can_be_skipped_to(seed):
    rng = random.Random(seed)
    names = 'abcde'[:rng.randrange(1, 6)]
    docs = {k: numbered(rng.choice([0, 1, 3, 40, 300]), k) for k in names}
    weights = {k: rng.choice([0, .01, .3, 2]) for k in names} | {names[0]: 1}
    n_bytes, alpha = rng.choice([None, None, 2000]), rng.choice([.5, 1])
    make = lambda kind: mixture({k: kinds(d, kind or rng.randrange(4)) for k, d in docs.items()},
                                weights, alpha, seed, n_bytes)
    whole = list(make(1))
    if n_bytes is None:
        assert Counter(whole) == Counter(d for k in names if weights[k] for d in docs[k])
    else: assert sum(len(d.encode()) for d in whole) <= n_bytes
    for n in sorted({0, 1, len(whole)-1, len(whole), len(whole)+5,
                     *(rng.randrange(len(whole)+1) for _ in range(6))}):
        if n >= 0: assert list(make(0).skip(n)) == whole[n:], n


def test_a_place_is_found_without_reading():
    read = []
    def watched(name, start):
        for i in range(start, 10**9):
            read.append(i)
            yield f'{name}{i}'
    for known in (10**9, None):
        mix = mixture({k: Source(partial(watched, k), k, known) for k in 'ab'}, dict(a=.9, b=.1),
                      seed=3)
        read.clear()
        it, behind = mix.skip(3_000_000), mix.skip(2_999_999)
        here, before, after = next(it), next(behind), next(behind)
        assert here == after and len(read) < 9 and min(read) > 290_000


def test_a_budget_is_used_to_the_last_byte_and_not_beyond():
    for n_bytes, n in ((29, 2), (30, 3), (31, 3), (9, 0), (1000, 40)):
        mix = mixture(dict(a=['x'*10]*20, b=['é'*5]*20), dict(a=1, b=1), n_bytes=n_bytes)
        assert len(list(mix)) == n and all(list(mix.skip(k)) == list(mix)[k:] for k in range(n+2))
        with refuses(TypeError, 'only known after reading'): len(mix)


def test_draws_depend_on_the_seed_alone_and_shares_are_as_wanted():
    a = [k for k, _ in mixture(dict(x=numbered(5000), y=['']*5000), dict(x=3, y=1), seed=5)
         .labelled()][:4000]
    b = [k for k, _ in mixture(dict(x=['other']*6000, y=numbered(6000)), dict(x=.75, y=.25), seed=5)
         .labelled()][:4000]
    c = [k for k, _ in mixture(dict(x=['other']*6000, y=numbered(6000)), dict(x=.75, y=.25), seed=6)
         .labelled()][:4000]
    assert a == b != c and abs(a.count('x')/4000 - .75) < 4*math.sqrt(.75*.25/4000)


def test_what_an_ended_source_leaves_goes_to_the_others_by_weight():
    mix = mixture(dict(short=['s']*10, x=['x']*9000, y=['y']*9000), dict(short=.5, x=.3, y=.2),
                  seed=1)
    late = Counter(k for k, _ in list(mix.labelled())[2000:8000])
    assert 'short' not in late and abs(late['x']/6000 - .6) < 4*math.sqrt(.24/6000)


def test_a_mixture_travels_to_another_process():
    mix = mixture(dict(a=numbered(50), b=cap_documents(numbered(70, 'b'), 9)), dict(a=1, b=2),
                  seed=4)
    assert list(pickle.loads(pickle.dumps(mix)).skip(33)) == list(mix)[33:]


def test_weight_zero_leaves_out_and_alpha_bends():
    sources = dict(a=['a'], b=['b'], c=['c'])
    assert list(mixture(sources, dict(a=1, b=0, c=0))) == ['a']
    assert np.allclose(mixture(sources, dict(a=4, b=1, c=1), alpha=.5).p, [.5, .25, .25])
    assert np.allclose(mixture(sources, dict(a=4, b=1, c=1), alpha=0).p, 1/3)


def test_shares_count_documents_and_bytes():
    rows = mixture(dict(a=['x'*10]*500, b=['é']*500), dict(a=1, b=1), seed=0).shares(400)
    assert [r['documents'] for r in rows] == [400 - rows[1]['documents'], rows[1]['documents']]
    assert (rows[0]['bytes'] == 10*rows[0]['documents']
            and rows[1]['bytes'] == 2*rows[1]['documents'])
    assert 'of bytes' in repr(rows) and '|---|' in rows._repr_markdown_()


def test_bad_mixtures():
    with refuses(ValueError, 'no source to mix', 'dict(web='): mixture({}, {})
    with refuses(ValueError, 'weights are for a', 'sources are a, b', 'one weight'):
        mixture(dict(a=[], b=[]), dict(a=1))
    for w in (-1, math.nan, 0, math.inf):
        with refuses(ValueError, 'weights', 'numbers of 0 or more'):
            mixture(dict(a=['x']), dict(a=w))
    with refuses(TypeError, "'a' is an iterator", 'repeatable(f)'):
        mixture(dict(a=iter(['x'])), dict(a=1))
    with refuses(TypeError, "'a' is one text", 'jsonl'): mixture(dict(a='some text'), dict(a=1))
    with refuses(ValueError, 'n_bytes=0', '10**9'): mixture(dict(a=['x']), dict(a=1), n_bytes=0)
    with refuses(ValueError, 'n_bytes=3', 'at least 4'): cap_documents(['x'], 3)
    forgets = Source(lambda n: iter(['x']*50 if not n else []), 'forgetful')
    with refuses(ValueError, "'a' has 50 documents, but none after skipping",
                 'same documents each time'):
        next(mixture(dict(a=forgets), dict(a=1)).skip(20))


# ---- gpt-lab's four sources

def test_the_four_sources_by_name():
    asked = []

    def load(repo, config, column):
        asked.append((repo, config, column))
        return [f'{config} ' + 'é'*9000]*30

    four = four_sources(n_bytes=200_000, load=load)
    docs = list(four.labelled())
    assert (asked[:3] == [('HuggingFaceFW/fineweb-edu', 'sample-10BT', 'text'),
                          ('HuggingFaceTB/finemath', 'finemath-4plus', 'text'),
                          ('codeparrot/codeparrot-clean', None, 'content')])
    assert all(repo == 'HuggingFaceFW/fineweb-2' and re.fullmatch('[a-z]{3}_[A-Z][a-z]{3}', config)
               for repo, config, _ in asked[3:])
    # one language a script
    assert len({config[-4:] for _, config, _ in asked[3:]}) == len(asked) - 3 > 8
    assert (all(9_990 < len(d.encode()) <= 10_000 for _, d in docs)
            and 190_000 < sum(len(d.encode()) for _, d in docs) <= 200_000)
    p = dict(zip(four.names, four.p))
    assert (np.allclose([p['fineweb-edu'], p['finemath'], p['codeparrot-clean']], [.30, .15, .15])
            and math.isclose(sum(four.p[3:]), .40))
    assert len(four_recipe('fra_Latn jpn_Jpan')) == 5


def test_a_hub_source_is_streamed_and_runs_no_code(monkeypatch):
    import datasets
    calls = []
    def load_dataset(*args, **kw):
        calls.append((args, kw))
        return (datasets.Dataset.from_dict(dict(text=['one', 'two'], url=['', '']))
                .to_iterable_dataset())
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    source = corpora.hub_source('some/name', 'config')
    assert list(source) == ['one', 'two'] and list(source.skip(1)) == ['two']
    assert calls == [(('some/name', 'config'), dict(split='train', streaming=True))]


def test_the_four_sources_streamed_by_datasets_from_local_files(tmp_path):
    "As from the hub, but for the place: streamed, mixed, skipped to, written, read"
    from datasets import load_dataset
    from gptlab.data import hf_dataset
    def load(repo, config, column):
        path = tmp_path/'hub'/repo/(config or 'default')/'0000.parquet'
        corpora.atomic_write(path, corpora._parquet_bytes(
            [f'{config} {i} ' + 'x'*(i % 90) for i in range(40)], column))
        return hf_dataset(load_dataset('parquet', data_files=str(path), split='train',
                                       streaming=True, cache_dir=str(tmp_path/'cache')), column)
    four = four_sources(None, recipe=four_recipe('fra_Latn jpn_Jpan'), load=load, seed=2)
    docs = list(four)
    assert (len(docs) == 200
            and list(four_sources(None, recipe=four_recipe('fra_Latn jpn_Jpan'), load=load, seed=2)
                     .skip(120)) == docs[120:])
    assert list(parquet(reshard(four, tmp_path/'four', docs_per_shard=90))) == docs


# ---- onto the disk

def tale(n=3000): return Source(partial(skip_documents, numbered(n)), 'tale')

@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    return content(reshard(tale(), tmp_path_factory.mktemp('whole')/'tale', docs_per_shard=400))


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_any_number_of_writers_gives_the_same_bytes(tmp_path, uninterrupted, workers):
    folder = reshard(tale(), tmp_path/'tale', docs_per_shard=400, workers=workers)
    assert (content(folder) == uninterrupted
            and files(tmp_path) == sorted(['tale', *(f'tale/{f}' for f in uninterrupted)]))


def test_what_is_written_is_what_was_read(tmp_path):
    import pyarrow.parquet as pq
    docs = ['', 'é\n', '\x00', 'a'*5000] + numbered(5000)
    folder = reshard(docs, tmp_path/'docs', docs_per_shard=2500, column='body', licence='CC0')
    meta = json.loads((folder/'meta.json').read_text())
    assert (list(parquet(folder, 'body')) == docs and meta['licence'] == 'CC0'
            and meta['column'] == 'body')
    assert ([s['n_docs'] for s in meta['shards']] == [2500, 2504]
            and sum(s['n_bytes'] for s in meta['shards']) == sum(len(d.encode()) for d in docs))
    for s in meta['shards']:
        about = pq.ParquetFile(folder/s['file']).metadata
        assert ([about.row_group(g).num_rows for g in range(about.num_row_groups)]
                == [1024, 1024, s['n_docs']-2048])
        assert about.row_group(0).column(0).compression == 'ZSTD'
    by_bytes = json.loads((reshard(docs, tmp_path/'bytes', bytes_per_shard=30_000)/'meta.json')
                          .read_text())['shards']
    assert (all(30_000 <= s['n_bytes'] < 35_100 for s in by_bytes[:-1])
            and 15_000 <= by_bytes[-1]['n_bytes'] < 50_000)


def test_a_folder_of_shards_is_a_corpus_and_trains(tmp_path):
    folder = reshard(make_stories(120, seed=0), tmp_path/'tales', docs_per_shard=40)
    c = corpus(folder)
    assert len(list(c.train)) == 80 and len(list(c.valid)) == 40
    train, valid = batches(folder, ByteTokenizer(), B=2, T=64)
    assert next(train)['ids'].shape == (2, 64) and len(valid)


def test_few_shards_are_held_at_a_time(tmp_path, monkeypatch):
    read, ahead = [0], []
    def counted(start):
        for d in skip_documents(numbered(5000), start):
            read[0] += 1
            yield d
    real = corpora._note
    monkeypatch.setattr(corpora, '_note', lambda work, made, shards: (
        ahead.append(read[0] - sum(s['n_docs'] for s in shards)), real(work, made, shards)))
    reshard(Source(counted), tmp_path/'x', docs_per_shard=100, workers=1)
    assert len(ahead) == 50 and max(ahead) <= 5*100


SLOW = '''
import sys, time
from functools import partial
from gptlab.corpora import reshard
from gptlab.data import Source, skip_documents
def slow(start):
    for i in range(start, 3000): time.sleep(.0004); yield f'd{i} ' + 'x'*(i*37 % 50)
if __name__ == '__main__':
    tale, workers = Source(slow, 'tale'), int(sys.argv[2])
    reshard(tale, sys.argv[1], docs_per_shard=400, workers=workers)
'''

@posix
@pytest.mark.repeat(quick=1, exhaustive=6)
@pytest.mark.parametrize('workers', [0, 2])
def test_killed_in_the_middle_and_finished(tmp_path, uninterrupted, workers, seed):
    """kill -9 when some shards are written: no process is left over, no folder looks whole, and the
    second run ends where one run would have"""
    (tmp_path/'slow.py').write_text(SLOW)
    at, rng = tmp_path/'tale.unfinished'/'progress.json', random.Random(f'{workers} {seed}')
    def done(): return len(json.loads(at.read_text())['shards']) if at.exists() else 0
    victim = start([sys.executable, tmp_path/'slow.py', tmp_path/'tale', workers],
                   tmp_path/'said.txt')
    victim.until(lambda: done() >= 2, pause=.02)
    time.sleep(rng.random()*.3)
    victim.strike()
    assert 2 <= done() < 7 and not (tmp_path/'tale').exists(), victim.said()
    assert ends(victim.pid, 60), family(victim.pid)
    kept = {f: p.stat().st_mtime_ns for f in ('shard_00000.parquet', 'shard_00001.parquet')
            if (p := tmp_path/'tale.unfinished'/f)}
    (tmp_path/'tale.unfinished'/'.shard_00009.parquet.abc').write_bytes(b'what a kill may leave')
    reshard(tale(), tmp_path/'tale', docs_per_shard=400)
    assert content(tmp_path/'tale') == uninterrupted and not (tmp_path/'tale.unfinished').exists()
    # kept, not written again
    assert kept == {f: (tmp_path/'tale'/f).stat().st_mtime_ns for f in kept}


def broken(at):
    def read(start):
        for i, d in enumerate(skip_documents(tale(), start), start):
            if i == at: raise ConnectionError('the line is dead')
            yield d
    return Source(read, 'tale')

@pytest.mark.parametrize('at', [0, 1, 399, 400, 799, 800, 1999, 2999])
def test_a_source_that_breaks_off_anywhere(tmp_path, uninterrupted, at):
    with refuses(ConnectionError, 'the line is dead'):
        reshard(broken(at), tmp_path/'tale', docs_per_shard=400)
    assert not (tmp_path/'tale').exists()
    assert content(reshard(tale(), tmp_path/'tale', docs_per_shard=400)) == uninterrupted


def test_a_noted_shard_that_was_damaged_or_lost_is_written_anew(tmp_path, uninterrupted):
    for harm in (lambda f: f.write_bytes(f.read_bytes()[:-1]), Path.unlink):
        with refuses(ConnectionError): reshard(broken(2500), tmp_path/'tale', docs_per_shard=400)
        harm(tmp_path/'tale.unfinished'/'shard_00002.parquet')
        assert content(reshard(tale(), tmp_path/'tale', docs_per_shard=400)) == uninterrupted
        shutil.rmtree(tmp_path/'tale')


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_full_disk(tmp_path, monkeypatch, uninterrupted, call):
    """At the third file: one OSError that names it; what stands is whole; with room again, the call
    goes on"""
    real, count = getattr(os, call), [0]
    fifth = dict(fsync=9, replace=5)[call]                 # a file and its folder are synced
    def full(*args):
        count[0] += 1
        if count[0] == fifth: raise OSError(28, 'No space left on device')
        return real(*args)
    with monkeypatch.context() as m:
        m.setattr(os, call, full)
        with refuses(OSError, 'could not write', 'shard_00002.parquet', 'No space left on device'):
            reshard(tale(), tmp_path/'tale', docs_per_shard=400)
    assert (files(tmp_path)
            == ['tale.unfinished',
                *(f'tale.unfinished/{f}'
                  for f in ('progress.json', 'shard_00000.parquet', 'shard_00001.parquet'))])
    assert content(reshard(tale(), tmp_path/'tale', docs_per_shard=400)) == uninterrupted


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 1 MB, where one may be mounted"
    d = tmp_path/'disk'
    d.mkdir()
    if (not shutil.which('mount')
        or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(d)],
                          capture_output=True).returncode):
        pytest.skip('no right to mount a file system')
    yield d
    subprocess.run(['umount', '-l', str(d)])

@pytest.mark.parametrize('workers', [0, 1])
def test_a_disk_that_fills_up(small_disk, workers):
    rng = random.Random(0)
    # 1.8 MB that cannot be pressed to less
    docs = [rng.randbytes(3000).hex() for _ in range(600)]
    with refuses(OSError, 'could not write', '.parquet', 'No space left on device'):
        reshard(docs, small_disk/'big', docs_per_shard=50, workers=workers)
    left = [f for f in files(small_disk/'big.unfinished') if f.endswith('.parquet')]
    assert 2 <= len(left) < 7 and not any('.parquet.' in f for f in files(small_disk))
    # each of them whole
    assert list(parquet([small_disk/'big.unfinished'/f for f in left])) == docs[:50*len(left)]


def test_a_writer_that_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, '_write_shard', _die)
    with refuses(RuntimeError, 'a writing process died', 'out of memory', 'if __name__',
                 'call again'):
        reshard(tale(), tmp_path/'tale', docs_per_shard=400, workers=1)
    assert not (tmp_path/'tale').exists()

def _die(*job): os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_written_over(tmp_path):
    folder = reshard(tale(), tmp_path/'tale', docs_per_shard=400)
    before = content(tmp_path)
    # the same again: nothing to do
    assert reshard(tale(), folder, docs_per_shard=400) == folder and content(tmp_path) == before
    with refuses(FileExistsError, str(folder), 'nothing is written over'):
        reshard(tale(), folder, docs_per_shard=500)
    with refuses(FileExistsError, str(folder), 'nothing is written over'):
        reshard(numbered(3000, 'other'), folder, docs_per_shard=400)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'letter.txt').write_text('dear')
    with refuses(FileExistsError, 'mine'): reshard(tale(), tmp_path/'mine', docs_per_shard=400)
    with refuses(FileExistsError, 'letter.txt'):
        reshard(tale(), tmp_path/'mine'/'letter.txt', docs_per_shard=400)
    with refuses(ConnectionError): reshard(broken(2000), tmp_path/'half', docs_per_shard=400)
    with refuses(FileExistsError, 'half.unfinished', 'beginning of another corpus'):
        reshard(tale(), tmp_path/'half', docs_per_shard=300)
    (tmp_path/'empty').mkdir()
    assert len(content(reshard(tale(), tmp_path/'empty', docs_per_shard=400))) == 9


def test_bad_resharding(tmp_path):
    with refuses(ValueError, 'holds no documents', 'nothing was written'): reshard([], tmp_path/'x')
    with refuses(ValueError, 'all 3 documents fit into one shard', 'validation',
                 'docs_per_shard=1'):
        reshard(['a', 'b', 'c'], tmp_path/'x')
    for bad in (dict(docs_per_shard=0), dict(bytes_per_shard=0), dict(workers=-1)):
        with refuses(ValueError, *(f'{k}={v}' for k, v in bad.items())):
            reshard(['a', 'b'], tmp_path/'x', **bad)
    with refuses(TypeError, 'read only once', 'repeatable('):
        reshard(iter(['a', 'b']), tmp_path/'x')
    with refuses(TypeError, 'one document'): reshard('text', tmp_path/'x')
    with refuses(TypeError, 'document 1', 'int'):
        reshard(['a', 5, 'b'], tmp_path/'x', docs_per_shard=1)
    with refuses(ValueError, 'document 2', 'surrogate', 'position 1'):
        reshard(['a', 'b', 'c\ud800'], tmp_path/'y', docs_per_shard=1)
    assert not (tmp_path/'x').exists() and not (tmp_path/'y').exists()


# ---- over a bad line

class Moody(http.server.BaseHTTPRequestHandler):
    "Serves `shop`; the faults of a path are used up one a request"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def do_HEAD(self): self.do_GET()
    def head(self, code, **more):
        self.send_response(code)
        for k, v in more.items(): self.send_header(k.replace('_', '-'), str(v))
        self.send_header('Connection', 'close')
        self.end_headers()
    def do_GET(self):
        shop, faults = self.server.shop, self.server.faults.get(self.path, [])
        self.server.log.append((self.command, self.path, self.headers.get('Range')))
        fault = faults.pop(0) if faults and self.command == 'GET' else ''
        data = shop.get(self.path)
        if data is None: return self.head(404, Content_Length=0)
        if fault.isdecimal():
            return self.head(int(fault), Content_Length=0,
                             **(dict(Retry_After=0) if fault == '429' else {}))
        if fault == 'drop': return self.connection.close()
        if fault == 'stall':
            time.sleep(1.5)
            return
        if fault == 'changed': data = shop[self.path] = data[::-1]
        tag, m = f'"{hash(data)}"', re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
        at = int(m[1]) if m and self.headers.get('If-Range') == tag and fault != 'no ranges' else 0
        if at >= len(data) > 0:
            return self.head(416, Content_Range=f'bytes */{len(data)}', Content_Length=0)
        if fault == 'other range': at -= 7
        size = len(data) - at + {'promises more': 50, 'promises less': -50}.get(fault, 0)
        more = dict(Content_Range=f'bytes {at}-{len(data)-1}/{len(data)}') if at else {}
        if fault == 'chunked':
            # breaks off inside a chunk
            self.head(200, ETag=tag, Transfer_Encoding='chunked')
            self.wfile.write(b'%x\r\n' % len(data) + data[:99])
            return
        self.head(206 if at else 200, ETag='W/"weak"' if fault == 'weak' else tag,
                  Content_Length=size, **more)
        if self.command == 'GET':
            self.wfile.write(data[at:(at + len(data))//2] if fault in ('cut', 'weak')
                             else b'x'*(len(data)-at) if fault == 'wrong bytes' else data[at:])

@pytest.fixture
def moody(monkeypatch):
    for k in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(k, raising=False)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Moody)
    server.daemon_threads, server.shop, server.faults, server.log, server.url = (
        True, {}, {}, [], f'http://127.0.0.1:{server.server_port}')
    threading.Thread(target=server.serve_forever, args=[.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

FILM = random.Random(1).randbytes(700_000)
SUM = hashlib.sha256(FILM).hexdigest()
quick = dict(backoff=.001, progress=False, timeout=.5)


@pytest.mark.parametrize('faults',
                         ['', 'cut', 'cut, cut, cut', '503', '500, 502, 429, 408', 'drop', 'stall',
                          'promises more', 'cut, promises more', 'cut, no ranges', 'weak',
                          'cut, other range', 'chunked', 'cut, drop, cut, 503'])
def test_what_passes_is_waited_out(moody, tmp_path, faults):
    moody.shop['/film'], moody.faults['/film'] = FILM, faults.split(', ')
    assert (fetch_file(moody.url + '/film', tmp_path/'film', **quick).read_bytes() == FILM
            and files(tmp_path) == ['film'])
    if faults == 'cut, cut, cut':
        assert ([r for _, _, r in moody.log]
                == [None, 'bytes=350000-', 'bytes=525000-', 'bytes=612500-'])
    # no strong fingerprint: begun anew rather than patched
    if faults == 'weak': assert [r for _, _, r in moody.log] == [None, None]


@pytest.mark.parametrize('faults', ['wrong bytes', 'promises less', 'cut, wrong bytes'])
def test_wrong_bytes_are_noticed_by_their_checksum(moody, tmp_path, faults):
    moody.shop['/film'], moody.faults['/film'] = FILM, faults.split(', ')
    assert fetch_file(moody.url + '/film', tmp_path/'film', SUM, **quick).read_bytes() == FILM
    moody.faults['/film'] = ['wrong bytes']*9
    with refuses(OSError, '/film', 'SHA-256', SUM, 'failed 2 times'):
        fetch_file(moody.url + '/film', tmp_path/'again', SUM, tries=2, **quick)
    assert files(tmp_path) == ['film']


def test_a_file_that_changes_between_two_calls_is_never_patched_together(moody, tmp_path):
    moody.shop['/film'], moody.faults['/film'] = FILM, ['cut', '503', '503']
    with refuses(OSError, '/film', 'failed 2 times', 'HTTP 503', 'call again'):
        fetch_file(moody.url + '/film', tmp_path/'film', tries=2, **quick)
    assert (files(tmp_path) == ['film.part', 'film.part.mark']
            and (tmp_path/'film.part').stat().st_size == 350_000)
    moody.shop['/film'] = FILM[::-1]
    moody.faults['/film'] = []
    assert (fetch_file(moody.url + '/film', tmp_path/'film', **quick).read_bytes() == FILM[::-1]
            and files(tmp_path) == ['film'])


def test_a_second_call_goes_on_by_range(moody, tmp_path):
    moody.shop['/film'], moody.faults['/film'] = FILM, ['cut']
    with refuses(OSError, 'failed 1 time,', '350,000 of 700,000 bytes came'):
        fetch_file(moody.url + '/film', tmp_path/'film', tries=1, **quick)
    moody.log.clear()
    assert fetch_file(moody.url + '/film', tmp_path/'film', **quick).read_bytes() == FILM
    assert moody.log == [('GET', '/film', 'bytes=350000-')]
    # killed just before the rename
    (tmp_path/'film').rename(tmp_path/'film.part')
    (tmp_path/'film.part.mark').write_text(f'"{hash(FILM)}"')
    assert fetch_file(moody.url + '/film', tmp_path/'film', **quick).read_bytes() == FILM


def test_what_does_not_pass_is_said_at_once(moody, tmp_path):
    moody.shop['/film'] = FILM
    for path, faults, kind, words in (
            ('/flim', [], FileNotFoundError, ['/flim is not there', '404']),
            ('/film', ['410'], FileNotFoundError, ['410']),
            ('/film', ['403'], OSError, ['refused', '403']), ('/film', ['401'], OSError, ['401'])):
        moody.faults[path] = faults
        moody.log.clear()
        with refuses(kind, *words): fetch_file(moody.url + path, tmp_path/'film', **quick)
        assert len(moody.log) == 1 and files(tmp_path) == []
    with refuses(OSError, 'failed 2 times', 'refused'):
        fetch_file('http://127.0.0.1:9/film', tmp_path/'film', tries=2, **quick)
    for bad in ('karpathy/fineweb-edu-100b-shuffle', 'ftp://host/film', 'file:///etc/passwd',
                'https:///film', ''):
        with refuses(ValueError, repr(bad), 'https://'): fetch_file(bad, tmp_path/'film')
        with refuses(ValueError, repr(bad), 'https://'): download_shards(bad, tmp_path/'folder')
    assert files(tmp_path) == []


@pytest.mark.parametrize('call', ['write', 'fsync', 'replace'])
def test_a_download_on_a_full_disk(moody, tmp_path, monkeypatch, call):
    "One OSError that is not taken for a bad line: asked once, nothing left"
    moody.shop['/film'] = FILM
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        if call == 'write': m.setattr(corpora, '_save', full)
        else: m.setattr(os, call, full)
        with refuses(OSError, 'could not write', 'film', 'No space left', 'nothing half-written'):
            fetch_file(moody.url + '/film', tmp_path/'film', **quick)
    assert files(tmp_path) == [] and len(moody.log) == 1


def test_a_download_onto_a_small_disk(moody, small_disk):
    moody.shop['/film'] = FILM*3
    with refuses(OSError, 'could not write', 'film', 'No space left'):
        fetch_file(moody.url + '/film', small_disk/'film', **quick)
    assert files(small_disk) == [] and len(moody.log) == 1


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.fixture
def bars(monkeypatch):
    "Every bar that is made, as at a terminal"
    made = []
    def shown(*args, **kw):
        made.append(show_progress(*args, file=Terminal(), **kw))
        made[-1].silent = made[-1].disable                     # a closed bar is disabled too
        return made[-1]
    monkeypatch.setattr(corpora, 'show_progress', shown)
    return made


def test_the_bar_shows_how_far(moody, tmp_path, bars):
    moody.shop['/film'] = FILM
    fetch_file(moody.url + '/film', tmp_path/'film', backoff=.001)
    (bar,) = bars
    assert (bar.desc, bar.n, bar.total) == ('film', 700_000, 700_000)


def test_a_bar_goes_on_where_the_line_was_cut(moody, tmp_path, bars):
    moody.shop['/film'], moody.faults['/film'] = FILM, ['cut']
    fetch_file(moody.url + '/film', tmp_path/'film', backoff=.001)
    first, second = bars
    assert second.n == 700_000 and second.initial == first.n > 0


def test_nothing_is_shown_in_a_pipe_or_when_told(moody, tmp_path, bars, capsys):
    moody.shop['/film'] = FILM
    fetch_file(moody.url + '/film', tmp_path/'film', backoff=.001, progress=False)
    reshard(numbered(300), tmp_path/'told', docs_per_shard=100, progress=False)
    assert [bar.silent for bar in bars] == [True, True]
    reshard(numbered(300), tmp_path/'seen', docs_per_shard=100)
    assert (bars[-1].n, bars[-1].total) == (300, 300) and not bars[-1].silent
    assert capsys.readouterr().err == ''


@pytest.fixture
def published(moody, tmp_path):
    "A corpus of six shards on the server, without and with its meta.json"
    folder = reshard(numbered(600), tmp_path/'origin', docs_per_shard=100, name='origin',
                     licence='CC0')
    for f in folder.iterdir():
        moody.shop[f'/full/{f.name}'] = f.read_bytes()
        if f.suffix == '.parquet': moody.shop[f'/bare/{f.name}'] = f.read_bytes()
    return folder


@pytest.mark.parametrize('where', ['bare', 'full'])
def test_some_shards_and_always_the_last(moody, tmp_path, published, where):
    moody.faults = {f'/{where}/shard_{i:05d}.parquet': f
                    for i, f in {0: ['cut', '503'], 5: ['drop', 'promises more'], 1: ['no ranges']}
                    .items()}
    here = download_shards(f'{moody.url}/{where}/', tmp_path/'here', n=2, **quick)
    assert (files(here)
            == ['meta.json', 'shard_00000.parquet', 'shard_00001.parquet', 'shard_00002.parquet']
            and not (tmp_path/'here.unfinished').exists())
    assert ((here/'shard_00002.parquet').read_bytes()
            == (published/'shard_00005.parquet').read_bytes())
    assert (list(corpus(here).valid) == numbered(600)[500:]
            and list(corpus(here).train) == numbered(600)[:200])
    meta = json.loads((here/'meta.json').read_text())
    assert (meta['licence'] == ('CC0' if where == 'full' else 'not stated')
            and meta['shards'][2]['url'].endswith('shard_00005.parquet')
            and meta['shards'][2]['n_docs'] == 100)
    assert [r['state'] for r in provenance(here)] == ['whole']*3
    moody.log.clear()
    assert (download_shards(f'{moody.url}/{where}', tmp_path/'here', n=2, **quick) == here
            and not moody.log)
    assert len(files(download_shards(f'{moody.url}/{where}', tmp_path/'all', **quick))) == 7
    # meta.json spares the questions
    assert any(m == 'HEAD' for m, _, _ in moody.log) == (where == 'bare')


def test_a_download_that_fails_is_named_and_goes_on(moody, tmp_path, published):
    moody.faults['/bare/shard_00001.parquet'] = ['503']*3
    with refuses(OSError, 'bare/shard_00001.parquet', 'HTTP 503'):
        download_shards(moody.url + '/bare', tmp_path/'here', tries=3, **quick)
    assert not (tmp_path/'here').exists()
    with refuses(FileExistsError, 'here.unfinished', 'another corpus'):
        download_shards(moody.url + '/full', tmp_path/'here', **quick)
    moody.log.clear()
    download_shards(moody.url + '/bare', tmp_path/'here', **quick)
    fetched = [p for m, p, _ in moody.log if m == 'GET' and 'shard' in p]
    assert (fetched == [f'/bare/shard_0000{i}.parquet' for i in (1, 2, 3, 4)]
            and list(parquet(tmp_path/'here')) == numbered(600))


def test_a_shard_that_is_no_shard(moody, tmp_path, published):
    moody.shop['/bare/shard_00000.parquet'] = b'<html>please log in</html>'
    with refuses(ValueError, 'bare/shard_00000.parquet', 'Parquet'):
        download_shards(moody.url + '/bare', tmp_path/'here', n=1, **quick)
    moody.shop['/bare/shard_00000.parquet'] = (published/'shard_00000.parquet').read_bytes()
    assert (list(parquet(download_shards(moody.url + '/bare', tmp_path/'here', n=1, **quick)))[:100]
            == numbered(100))
    with refuses(ValueError, 'has no column', "'text'"):
        download_shards(moody.url + '/bare', tmp_path/'body', n=1, column='body', **quick)
    moody.shop['/full/shard_00003.parquet'] = moody.shop['/full/shard_00002.parquet']
    with refuses(OSError, 'full/shard_00003.parquet', 'SHA-256'):
        download_shards(moody.url + '/full', tmp_path/'there', tries=2, **quick)
    moody.shop['/page/meta.json'] = b'<html>'
    with refuses(ValueError, 'page/meta.json is not JSON'):
        download_shards(moody.url + '/page', tmp_path/'page', **quick)


def test_how_many_shards(moody, tmp_path):
    for n in range(40):
        asked = []
        assert (corpora._count(lambda i: asked.append(i) or i < n) == n
                and len(asked) <= 3 + 2*math.log2(n+1) and len(asked) == len(set(asked)))
    moody.shop = {f'/s/shard_{i:05d}.parquet': b'' for i in range(11)}
    assert count_shards(moody.url + '/s') == 11 and count_shards(moody.url + '/none') == 0
    with refuses(OSError, 'yes to every number', 'n_shards'): corpora._count(lambda i: True)
    with refuses(ValueError, 'has 11 shards', 'n=11 training shards cannot be had'):
        download_shards(moody.url + '/s', tmp_path/'s', n=11, **quick)
    with refuses(ValueError, 'n=0'): download_shards(moody.url + '/s', tmp_path/'s', n=0, **quick)
    with refuses(ValueError, 'has 0 shards', 'there must be a shard_00000.parquet'):
        download_shards(moody.url + '/none', tmp_path/'s', **quick)
    assert files(tmp_path) == []


# ---- what is in it

def test_provenance_by_shard_and_by_side(tmp_path, uninterrupted):
    folder = reshard(tale(), tmp_path/'tale', docs_per_shard=400)
    rows = provenance(folder)
    assert ([r['side'] for r in rows] == ['train']*(len(rows)-1) + ['valid']
            and sum(r['documents'] for r in rows) == 3000)
    shard = folder/'shard_00001.parquet'
    good = shard.read_bytes()
    for harm in (lambda b: b[:-9], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:],
                 lambda b: b''):
        shard.write_bytes(harm(good))
        with refuses(ValueError, 'shard_00001.parquet is damaged', "errors=\"skip\""):
            provenance(folder)
        assert ([r['shard'] for r in provenance(folder, errors='skip') if r['state'] != 'whole']
                == ['shard_00001.parquet'])
    shard.unlink()
    with refuses(ValueError, 'shard_00001.parquet is missing'): provenance(folder)
    with refuses(ValueError, "errors='ignore'"): provenance(folder, errors='ignore')
    sides = provenance(Corpus('c', ['ab', 'c'], ['é'], 'CC0'))
    assert ([(r['documents'], r['bytes']) for r in sides] == [(2, 3), (1, 2)]
            and 'CC0' in repr(sides))
    # other boundaries, another corpus
    assert provenance(Corpus('c', ['a', 'bc'], ['é']))[0]['sha256'] != sides[0]['sha256']


def naive(train, valid, n):
    grams = lambda doc: [tuple(w[i:i+n]) for w in [re.findall(r'\w+', doc.lower())]
                         for i in range(len(w)-n+1)]
    seen = {g for d in train for g in grams(d)}
    return [sum(g in seen for g in gs)/len(gs) if (gs := grams(d)) else math.nan for d in valid]

@pytest.mark.parametrize('seed', range(8))
def test_overlap_against_the_naive_way(seed):
    rng = random.Random(seed)
    say = lambda: ' '.join(rng.choices(['the', 'Cat', 'sat,', 'on', 'mat', 'été'],
                                       k=rng.randrange(25)))
    train, valid = [say() for _ in range(60)], [say() for _ in range(25)]
    train += rng.choices(train, k=5) + rng.choices(valid, k=4)
    valid += rng.choices(valid, k=3)
    n = rng.choice([1, 3, 5, 13])
    for found in (corpus_overlap(Corpus('c', train, valid), n),
                  corpus_overlap(Corpus('c', Source(partial(skip_documents, train)),
                                        Source(partial(skip_documents, valid))), n)):
        np.testing.assert_allclose(found.share, naive(train, valid, n))
        assert (found.copies == [i for i, d in enumerate(valid) if d in set(train)]
                and found.n_train == len(train))
        assert (found.twice_train == len(train) - len(set(train))
                and found.twice_valid == len(valid) - len(set(valid)))
    assert ([r['document'] for r in found.worst(2)]
            == np.argsort(-np.nan_to_num(found.share, nan=-1), kind='stable')[:2].tolist())


def test_overlap_without_spaces_and_at_the_edges():
    valid = ['きっと天気がとても良かったので散歩しない', '全然違う話をする']
    found = corpus_overlap(Corpus('c', ['昨日は天気がとても良かったので散歩した'], valid), 8)
    assert found.share[0] > .4 and found.share[1] != found.share[1] or found.share[1] == 0
    empty = corpus_overlap(Corpus('c', ['short'], ['also short']))
    assert (np.isnan(empty.share).all() and empty.copies == [] and '0.0%' in repr(empty)
            and '|' in empty._repr_markdown_())
    assert corpus_overlap(Corpus('c', [], ['a b c']), 2).share.tolist() == [0]
    with refuses(ValueError, 'n=0'): corpus_overlap(['a', 'b'], n=0)
    with refuses(ValueError, 'near=2'): corpus_overlap(['a', 'b'], near=2)


def test_overlap_remembers_validation_only():
    import tracemalloc
    train = Source(lambda start: (' '.join(f'word{i}x{j}' for j in range(200))
                                  for i in range(start, 400)))
    tracemalloc.start()
    corpus_overlap(Corpus('c', train, make_stories(20, seed=0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the n-grams of the training text as tuples would take 20 MB
    assert peak < 5e6


# ---- look at it

def test_a_dump_shows_every_byte_and_changes_nothing(tmp_path):
    text = ['one│two\n', 'a\\tb\tc ⟦x⟧', '😀\x00é', 'plain text, plain as can be']*6
    for tok in (ByteTokenizer(), BPE.train(text, 300)):
        flow, valid = batches(text, tok, B=2, T=16, docs=True)
        next(flow)
        before = json.dumps(flow.state_dict())
        seen = dump_text(flow, n=2, path=tmp_path/'seen.txt')
        assert (json.dumps(flow.state_dict()) == before
                and (tmp_path/'seen.txt').read_text() == seen == dump_text(flow, n=2))
        assert (seen.count('batch ') == 4 and '⟦<|bos|>⟧' in seen and ' → ' in seen
                and '\x00' not in seen)
        rows = [l for l in seen.split('\n') if l.startswith('  ')]
        said = ''.join(rows).replace('⟦<|bos|>⟧', '')
        assert '⟦' not in said and all(c.isprintable() for c in said)
        assert 'ignored' in dump_text(valid, n=len(valid)) or valid[-1]['targets'].min() >= 0
    assert (dump_text(ByteTokenizer().encode('hé\n', bos=True), ByteTokenizer())
            == 'batch 0 row 0: 5 tokens\n  ⟦<|bos|>⟧│h│\\xc3│\\xa9│\\n\n')
    assert 'a│b' in dump_text(torch.tensor([97, 98]), ByteTokenizer())
    with refuses(ValueError, 'carry no tokenizer', 'dump_text(what, tok)'):
        dump_text([dict(ids=torch.zeros(1, 2))])


def test_tables():
    assert (repr(Rows()) == '(no rows)' and Rows([dict(a='x|y', b=None, c=True)])._repr_markdown_()
            .splitlines()[-1] == '| x\\|y | None | True |')


# ---- what must not pass in silence

def test_probabilities_that_are_none(tmp_path):
    for alpha in (math.nan, math.inf, 400):
        with refuses(ValueError, 'alpha'): mixture(dict(a=['x'], b=['y']), dict(a=9, b=.1), alpha)
    docs = dict(big=numbered(2000, 'b'), small=numbered(30, 's'))
    mix = mixture(docs, dict(big=1, small=1e-12))
    start = time.time()
    whole = list(mix)
    assert (whole == docs['big'] + docs['small'] and list(mix.skip(2010)) == whole[2010:]
            and list(mix.skip(9999)) == [])
    assert time.time() - start < 5

@pytest.mark.parametrize('known', [True, False])
def test_another_source_is_told(tmp_path, known):
    docs = numbered(1000)
    other = docs[:99] + ['changed'] + docs[100:]
    source = lambda d: d if known else Source(partial(skip_documents, d))
    folder = reshard(source(docs), tmp_path/'f', docs_per_shard=np.int64(100), name=Path('f'))
    assert reshard(source(docs), folder, docs_per_shard=100) == folder
    with refuses(ValueError, 'holds another source', 'document 99'):
        reshard(source(other), folder, docs_per_shard=100)
    with refuses(ValueError, 'holds another source', '500'):
        reshard(docs[:500], folder, docs_per_shard=100)
    def breaks(start):
        for i, d in enumerate(docs[start:], start):
            if i == 350: raise ConnectionError
            yield d
    with pytest.raises(ConnectionError): reshard(Source(breaks), tmp_path/'g', docs_per_shard=100)
    with refuses(ValueError, 'g.unfinished holds another source'):
        reshard(source(docs[:1] + docs[2:]), tmp_path/'g', docs_per_shard=100)
    with refuses(ValueError, 'g.unfinished holds another source'):
        reshard(source(docs[:50]), tmp_path/'g', docs_per_shard=100)
    assert list(parquet(reshard(source(docs), tmp_path/'g', docs_per_shard=100))) == docs

@pytest.mark.parametrize('damage', [
    '', '{"na', 'null', '[]', '"x"', '{"made": 1, "shards": null}', '{"made": 1, "shards": [null]}',
    '{"made": 1, "shards": [{"file": "shard_00000.parquet"}]}',
    '{"made": 1, "shards": [{"file": 3, "n_docs": "4", "n_bytes": 1, "sha256": "0"}]}', '['*10**5])
def test_damaged_descriptions(tmp_path, damage):
    folder = reshard(numbered(300), tmp_path/'f', docs_per_shard=100)
    (folder/'meta.json').write_text(damage)
    for f in (partial(reshard, numbered(300), docs_per_shard=100), provenance, corpus,
              partial(download_shards, 'http://127.0.0.1:9')):
        with refuses(ValueError, 'meta.json'): f(folder)
    work = tmp_path/'g.unfinished'
    work.mkdir()
    (work/'progress.json').write_text(damage)
    for f in (partial(reshard, numbered(300)), partial(download_shards, 'http://127.0.0.1:9')):
        with refuses(ValueError, 'progress.json'): f(tmp_path/'g')

def test_a_server_whose_description_lacks_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, '_persist',
                        lambda *a: b'{"shards": [{"file": "shard_00000.parquet"}]}')
    with refuses(ValueError, 'http://x.y/meta.json', 'n_docs'):
        download_shards('http://x.y', tmp_path/'h', n=np.int64(2))

"""Streams of batches over every kind of source: stopped at any batch, continued in another process,
shared by ranks, grown, read ahead.

Run as a program (`python test_loader.py FOLDER`) it is the other process: it loads the states that
a test saved, and says what comes after.
"""
import itertools, json, os, random, signal, subprocess, sys, time, tracemalloc, zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from gptlab import loader
from gptlab.corpora import cap_documents, mixture
from gptlab.data import (repeatable, corpus, hf_dataset, jsonl, parquet, skip_documents,
                         make_stories, text_files)
from gptlab.loader import (Ahead, Prefetch, Ring, Slices, fast_batches, open_tokens, shard,
                           write_tokens)
from gptlab.packing import (Batches, Blocks, FixedBatches, batches, best_fit, concat, fixed_batches,
                            resplit, tokenize, sliding_windows)
from gptlab.tokenizer import ByteTokenizer, Tokenizer
from kills import ends, family, start

TOK = ByteTokenizer()
SIZE, B, T = 37, 3, 40
PACKERS = dict(concat=concat, best_fit=best_fit, windows=sliding_windows)


def texts(n=150):
    rng = random.Random(7)
    return [f'Note {i}: ' + 'né '*rng.choice([0, 1, 3, 9, 30]) for i in range(n)]

def made_again(): return iter(texts())

def write_all(folder):
    "The same documents in every format"
    import datasets, pyarrow as pa, pyarrow.parquet as pq
    docs = texts()
    (folder/'marks.txt').write_text(''.join(f'<|endoftext|>\n{d}\n' for d in docs),
                                    encoding='utf-8')
    (folder/'many').mkdir()
    for i, d in enumerate(docs): (folder/'many'/f'{i:04}.txt').write_text(d, encoding='utf-8')
    (folder/'lines.jsonl').write_text(''.join(json.dumps(dict(text=d)) + '\n' for d in docs))
    (folder/'shards').mkdir()
    for i in range(3):
        pq.write_table(pa.table(dict(text=docs[i*50:(i+1)*50])),
                       folder/'shards'/f'shard_{i:05}.parquet', row_group_size=16)
    datasets.Dataset.from_dict(dict(text=docs)).save_to_disk(folder/'saved')
    write_tokens(docs, TOK, folder/'tokens')

def sources(folder):
    import datasets
    ds = datasets.load_from_disk(folder/'saved')
    return dict(list=texts(), again=repeatable(made_again), marks=text_files(folder/'marks.txt'),
                many=text_files(folder/'many'), lines=jsonl(folder/'lines.jsonl'),
                shards=parquet(folder/'shards'), held=hf_dataset(ds),
                streamed=hf_dataset(ds.to_iterable_dataset()),
                mixed=mixture(dict(a=cap_documents(jsonl(folder/'lines.jsonl'), 50),
                                   b=parquet(folder/'shards')), dict(a=.7, b=.3), seed=4),
                tokens=open_tokens(folder/'tokens'))

def blocks_of(source, **kw):
    return Slices(source, SIZE, **kw) if hasattr(source, 'ids') else Blocks(source, TOK, SIZE, **kw)

def stream(source, pack, workers):
    blocks = blocks_of(source)
    return Batches(Ahead(blocks, workers) if workers else blocks, B, T, seed=5, docs=True,
                   pack=PACKERS[pack])

def mark(batch): return [zlib.crc32(batch[k].numpy().tobytes()) for k in sorted(batch)]

def epoch(s, marks=()):
    "The marks of the batches until the next epoch is well under way"
    marks = list(marks)
    while s.epoch == 0: marks.append(mark(next(s)))
    return marks + [mark(next(s)) for _ in range(4)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('sources')
    write_all(d)
    return d


# ---- stopped anywhere, continued elsewhere

def test_every_source_gives_the_same_documents(folder):
    for name, s in sources(folder).items():
        if name in ('tokens', 'mixed'): continue
        assert [d.rstrip('\n') for d in s] == texts(), name
        for n in (0, 1, 49, 50, 149, 150, 200):
            assert [d.rstrip('\n') for d in skip_documents(s, n)] == texts()[n:], (name, n)


def test_a_stream_goes_on_in_another_process_token_for_token(folder, tmp_path):
    "LAB: resume skipped a row group and lost what was prefetched; AIL: another permutation"
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    states, want = {}, {}
    for name, source in sources(folder).items():
        for pack in PACKERS:
            whole, n = stream(source, pack, 0), rng.randrange(1, 60)
            marks = []
            while whole.epoch == 0 and len(marks) < n: marks.append(mark(next(whole)))
            states[f'{name} {pack}'] = whole.state_dict()
            want[f'{name} {pack}'] = epoch(whole)
    (tmp_path/'states.json').write_text(json.dumps(states))
    said = subprocess.run([sys.executable, __file__, str(folder), str(tmp_path/'states.json')],
                          capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr[-2000:]
    got = json.loads(said.stdout)
    for key, marks in want.items():
        for workers in (0, 1, 4):
            assert got[f'{key} {workers}'] == marks, f'seed {seed}: {key} with {workers} workers'


def test_tokens_from_disk_and_on_the_fly_are_the_same_batches(folder):
    s = sources(folder)
    for pack in PACKERS:
        assert epoch(stream(s['tokens'], pack, 0)) == epoch(stream(s['list'], pack, 0))


def test_a_thread_ahead_changes_nothing_and_its_state_is_that_of_the_last_batch_handed_out():
    plain, ahead = stream(texts(), 'concat', 0), Prefetch(stream(texts(), 'concat', 0), depth=6)
    for i in range(70):
        assert mark(next(plain)) == mark(next(ahead)) and plain.state_dict() == ahead.state_dict()
        if i % 9 == 4:
            ahead = (Prefetch(stream(texts(), 'concat', 0))
                     .load_state_dict(json.loads(json.dumps(ahead.state_dict()))))
        if i % 9 == 7: (s.resize(B=2 + i % 4, T=20 + i) for s in (plain, ahead))
    again = ahead.reseed(9)
    assert mark(next(again)) == mark(next(plain.reseed(9)))


@pytest.mark.parametrize('workers, depth', [(0, 0), (0, 3), (2, 3)])
def test_reading_draws_nothing_from_the_random_state_of_the_run(workers, depth):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    s, _ = fast_batches(texts(), TOK, B=3, T=40, size=SIZE, workers=workers, depth=depth)
    for _ in range(150): next(s)
    assert (torch.equal(before[0], torch.get_rng_state())
            and before[1:] == (np.random.get_state()[1].tolist(), random.getstate()))


# ---- growing

@pytest.mark.parametrize('pack', PACKERS)
def test_growing_and_shrinking_lose_nothing_and_repeat_nothing(pack):
    """Every target of every block exactly once, whatever the shapes; counted by (document, place)
    through marked ids"""
    rng = random.Random(3)
    for trial in range(20):
        toks = tokenize(texts(60), TOK)
        s = Batches(toks, 2, 16, seed=trial, pack=PACKERS[pack])
        rows = s.rows[:,1:]
        want = sorted(rows[rows >= 0].tolist())
        seen = []
        while True:
            _, rows, order = s._load()
            left = len(order) - s.cursor
            n = min(rng.randrange(1, 9), left)
            now = rows[order[s.cursor:s.cursor+n]][:,1:]
            seen += now[now >= 0].tolist()
            s.cursor += n
            if n == left: break
            s.resize(B=rng.randrange(1, 5), T=rng.randrange(2, 70))
        assert sorted(seen) == want, trial


def test_after_growing_a_target_still_follows_its_input():
    toks = tokenize(texts(60), TOK)
    s = Batches(toks, 2, 16, seed=1, docs=True)
    for T in (33, 7, 64, 20):
        for _ in range(5):
            b = next(s)
            used = b['targets'][:,:-1] != -100
            assert torch.equal(b['targets'][:,:-1][used], b['ids'][:,1:][used])
        s.resize(T=T)
    assert len(s.state_dict()['cuts']) == 4


def test_a_grown_stream_resumes_exactly():
    a = Batches(tokenize(texts(60), TOK), 2, 16, docs=True)
    for T in (24, 50):
        [next(a) for _ in range(7)]
        a.resize(B=3, T=T)
        next(a)
    b = (Batches(tokenize(texts(60), TOK), 9, 99, docs=True)
         .load_state_dict(json.loads(json.dumps(a.state_dict()))))
    for _ in range(60): assert mark(next(a)) == mark(next(b))


def test_a_run_whose_rows_grow_resumes_to_the_last_bit(tmp_path):
    from gptlab.checkpoints import checkpoints_in
    from gptlab.core import set_seed
    from gptlab.model import GPT, GPTConfig
    from gptlab.trainer import Trainer
    def make():
        set_seed(1)
        train, valid = batches(texts(), TOK, B=4, T=12)
        model = GPT(GPTConfig(vocab_size=257, context_length=48, n_layers=1, n_heads=2, d_model=16))
        return Trainer(model, torch.optim.AdamW(model.parameters(), 1e-3), Prefetch(train),
                       valid.head(2), callbacks=[loader.Grow({3: (2, 24), 6: (1, 48)})],
                       eval_every=0, dir=tmp_path/'run', save_every=4)
    whole = make()
    whole.fit(9)
    assert [r['tokens'] for r in whole.log] == list(itertools.accumulate([48]*9))
    assert all(0 <= r['wait'] <= 1 for r in whole.log)
    other = make()
    other.dir = None
    other.resume(checkpoints_in(tmp_path/'run')[0])
    start = other.step
    other.fit()
    assert start < 9 and other.step == 9
    for a, b in zip(whole.model.parameters(), other.model.parameters()): assert torch.equal(a, b)


def test_a_packer_with_other_settings_is_another_packer():
    toks = tokenize(texts(), TOK)
    state = Batches(toks, 2, 16, pack=partial(sliding_windows, stride=4)).state_dict()
    with pytest.raises(ValueError, match='stride=4'):
        Batches(toks, 2, 16, pack=partial(sliding_windows, stride=8)).load_state_dict(state)
    Batches(toks, 2, 16, pack=partial(sliding_windows, stride=4)).load_state_dict(state)


# ---- ranks

@pytest.mark.parametrize('world_size', [1, 2, 3, 8])
def test_ranks_share_every_document_and_none_twice(folder, world_size):
    for name, source in sources(folder).items():
        seen, want = [], [d.rstrip('\n') for d in source] if name == 'mixed' else texts()
        for rank in range(world_size):
            blocks = blocks_of(source, rank=rank, world_size=world_size)
            for k in itertools.count():
                if (t := blocks.block(k)) is None: break
                seen += [TOK.decode(t.ids[a:b].tolist()).rstrip('\n')
                         for a, b in zip(t.starts, t.starts[1:])]
        assert sorted(seen) == sorted(want), (name, world_size)


def test_a_rank_without_documents_is_told():
    with pytest.raises(ValueError, match='rank 2 of 3 gets no document'):
        next(Batches(Blocks(['a', 'b'], TOK, rank=2, world_size=3), 1, 4))
    with pytest.raises(ValueError, match='rank=3 of world_size=3'):
        Blocks(['a'], TOK, rank=3, world_size=3)
    with pytest.raises(ValueError, match='gets no document'):
        Slices(tokenize(['a'], TOK), rank=1, world_size=2).block(0)
    with pytest.raises(ValueError, match='no document'): next(Batches(Blocks([], TOK), 1, 4))


def test_ranks_share_validation_evenly_and_the_score_is_the_same():
    whole = fixed_batches(tokenize(texts(), TOK), B=4, T=50)
    for world_size in (1, 2, 3, 8, 50):
        parts = [shard(whole, r, world_size) for r in range(world_size)]
        assert (len({len(p) for p in parts}) == 1
                and sum(p.n_tokens for p in parts) == whole.n_tokens
                and sum(p.n_bytes for p in parts) == whole.n_bytes)


# ---- fixed lists and bytes

def test_validation_asked_twice_is_the_same():
    a, b = (batches(texts(), TOK, B=4, T=32, seed=s)[1] for s in (1, 2))
    assert [mark(x) for x in a] == [mark(x) for x in b] == [mark(x) for x in a]


class Capitals(Tokenizer):
    "Knows capitals only; all else is one id that stands for anything"
    vocab_size, special, lossy = 27, {}, True
    def encode(self, text, bos=False): return [ord(c) - 64 if 'A' <= c <= 'Z' else 0 for c in text]

    def decode_bytes(self, ids):
        return bytes(b'?'[0] if i == 0 else 64 + i for i in self.as_ids(ids))

    def normal(self, text): return ''.join(c if 'A' <= c <= 'Z' else '?' for c in text)
    def byte_counts(self, text): return [len(c.encode()) for c in text]

def test_bytes_are_those_of_the_original_text_where_characters_are_unknown():
    "SLM: an unknown character counted as one"
    docs = ['AÉ日👍', 'BC']
    fixed = fixed_batches(tokenize(docs, Capitals()), B=2, T=4)
    # the first character is no target
    assert fixed.n_bytes == len(''.join(docs).encode()) - 1
    from gptlab.score import evaluate
    class Even(torch.nn.Module):
        def forward(self, ids, targets): return torch.ones(ids.shape), None
    assert evaluate(Even(), fixed).n_bytes == fixed.n_bytes
    # a model is not given it in training
    assert 'nbytes' not in next(Batches(tokenize(docs*9, Capitals()), 2, 4))


def test_two_bytes_or_four():
    class Wide(ByteTokenizer): vocab_size = 2**16 + 1
    assert (tokenize(['a'], TOK).ids.dtype == np.uint16
            and tokenize(['a'], Wide()).ids.dtype == np.uint32)


# ---- what goes wrong

class Stumbles(ByteTokenizer):
    def encode(self, text, bos=False):
        if 'Note 100' in text: raise ValueError('cannot read note 100')
        return super().encode(text, bos)

@pytest.mark.parametrize('workers, depth', [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_an_error_in_a_worker_or_thread_reaches_the_reader(workers, depth):
    s, _ = fast_batches(texts(), TOK, B=3, T=40, size=SIZE, workers=workers, depth=depth)
    inner = getattr(s, 'stream', s).tokens
    getattr(inner, 'blocks', inner).tok = Stumbles()
    with pytest.raises(ValueError, match='note 100'): [next(s) for _ in range(300)]


def test_a_first_block_that_fails_once_is_read_the_second_time():
    "After an error at the start of an epoch the stream said ever after that nothing was there"
    blocks = Blocks(texts(), TOK, SIZE)
    s, plain = Batches(blocks, B, T), Batches(Blocks(texts(), TOK, SIZE), B, T)
    read, failed = blocks.block, []
    def block(k):
        if k == 0 and s.epoch == 1 and not failed:
            failed.append(k)
            raise OSError('the disk was away')
        return read(k)
    blocks.block = block
    for _ in range(500):
        try: found = next(s)
        except OSError: found = next(s)
        assert mark(found) == mark(next(plain))
    assert failed


class Stuck(Exception):
    "An error that cannot be pickled"
    def __reduce__(self):
        raise TypeError('cannot pickle')


def loses(text, bos=False):
    raise Stuck('cannot read note 100')


def test_an_error_that_cannot_travel_is_told_all_the_same():
    "The queue drops what it cannot pickle, and the reader waited forever"
    tok = ByteTokenizer()
    tok.encode = loses
    with pytest.raises(RuntimeError, match='Stuck: cannot read note 100'):
        Ahead(Blocks(texts(), tok, SIZE), 1).block(0)


def test_workers_need_no_sockets_and_no_shared_memory(tmp_path):
    "A long TMPDIR, or few open files, made the reader wait forever: blocks travelled as tensors"
    pytest.importorskip('resource', reason='Windows has no limit of open files')
    deep = tmp_path/('d'*120)
    deep.mkdir()
    code = ('import resource, sys; sys.path.insert(0, sys.argv[1])\n'
            'from test_loader import *\n'
            'resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n'
            'ahead, plain = Ahead(Blocks(texts(), TOK, 2), 2), Blocks(texts(), TOK, 2)\n'
            'kept = [ahead.block(k) for k in range(75)]\n'
            'assert all((a.ids == plain.block(k).ids).all() for k, a in enumerate(kept))\n')
    done = subprocess.run([sys.executable, '-c', code, Path(__file__).parent], timeout=100,
                          env=os.environ | dict(TMPDIR=str(deep)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_killed_worker_is_told_and_the_stream_is_where_it_was():
    ahead = Ahead(Blocks(texts(), TOK, 10), workers=2)
    s, plain = Batches(ahead, B, T), Batches(Blocks(texts(), TOK, 10), B, T)
    for _ in range(5): assert mark(next(s)) == mark(next(plain))
    for w in ahead._results._workers: os.kill(w.pid, signal.SIGKILL)
    state, told = s.state_dict(), False
    for _ in range(60):
        try: next(s)
        except RuntimeError as e:
            assert 'worker' in str(e)
            told = True
            break
    assert told
    # the workers start anew
    s.load_state_dict(state)
    for _ in range(60): assert mark(next(s)) == mark(next(plain))


class Stumbling:
    "Documents that fail once, at number 128"
    def __init__(self): self.failed = False
    def skip(self, n): return iter(self.read(n))
    def __iter__(self): return self.skip(0)
    def read(self, n):
        for i, d in enumerate(make_stories(200)[n:], n):
            if i == 128 and not self.failed:
                self.failed = True
                raise OSError('the disk hiccuped')
            yield d

@pytest.mark.parametrize('depth', [0, 3])
def test_after_an_error_the_stream_goes_on_where_it_was(depth):
    "An exhausted reader once looked like the end of an epoch, and a batch half made was lost"
    plain, other = (Batches(Blocks(make_stories(200), TOK, 32), 7, 16),
                    Batches(Blocks(Stumbling(), TOK, 32), 7, 16))
    if depth: other = Prefetch(other, depth)
    told = 0
    for _ in range(1500):
        try: got = next(other)
        except OSError:
            told += 1
            got = next(other)
        assert mark(got) == mark(next(plain))
    assert told == 1 and other.state_dict() == plain.state_dict()


def test_blocks_without_rows_are_passed_over():
    for pack in PACKERS.values():
        s = Batches(Blocks(make_stories(4) + ['', ''] + make_stories(4), ByteTokenizer(), 2), 2, 16,
                    pack=pack)
        assert len({next(s)['ids'].shape for _ in range(500)}) == 1 and s.epoch
    class Bare(ByteTokenizer): special = {}
    s = Batches(Blocks(make_stories(4) + ['', ''] + make_stories(4), Bare(), 2), 2, 16)
    for _ in range(500): next(s)
    with pytest.raises(ValueError, match='too short for a row'):
        next(Batches(Blocks(['', ''], Bare(), 1), 2, 16))
    with pytest.raises(ValueError, match='too short for a row'):
        next(Batches(Blocks(['', ''], TOK, 1), 2, 16, pack=sliding_windows))


def test_bytes_survive_the_way_through_a_token_folder(tmp_path):
    docs = ['AÉ日👍', 'BC']*20
    whole, read = tokenize(docs, Capitals()), None
    class Saves(Capitals):
        def save(self, path):
            Path(path).write_text('{}')
            return Path(path)
    write_tokens(docs, Saves(), tmp_path/'t', size=3)
    from unittest import mock
    with mock.patch.object(loader, 'load_tokenizer', lambda *a: Saves()):
        read = open_tokens(tmp_path/'t')
    assert fixed_batches(read, 2, 4).n_bytes == fixed_batches(whole, 2, 4).n_bytes
    assert (Slices(read, 3, rank=1, world_size=2).block(0).sizes.tolist()
            == Blocks(docs, Saves(), 3, 1, 2).block(0).sizes.tolist())


def test_places_and_sizes_that_cannot_be(tmp_path):
    toks = tokenize(texts(), TOK)
    for kw in (dict(rank=2, world_size=2), dict(rank=-1), dict(size=0), dict(world_size=0)):
        for make in (lambda: Slices(toks, **kw), lambda: Blocks(texts(), TOK, **kw)):
            with pytest.raises(ValueError, match='rank=|whole number'): make()
    s = Batches(toks, np.int64(2), np.int32(16), seed=np.int64(1))
    json.dumps(s.resize(np.int64(3), np.int64(7)).state_dict())
    good = s.state_dict()
    for k, v in dict(cursor=-5, T=-3, B=0, epoch=-1, block=-1, cuts=[[0, 0]]).items():
        with pytest.raises(ValueError, match='out of range'): s.load_state_dict(good | {k: v})
    assert s.state_dict() == good
    with pytest.raises(TypeError, match='in a list'): tokenize('hello', TOK)
    assert len(shard(FixedBatches([]), 0, 2)) == 0
    (tmp_path/'else').mkdir()
    (tmp_path/'else'/'x').write_text('mine')
    with pytest.raises(FileExistsError, match='something else'):
        write_tokens(texts(), TOK, tmp_path/'else')
    with pytest.raises(TypeError, match='no method save'):
        write_tokens(texts(), object(), tmp_path/'new')


@pytest.mark.parametrize('file, content',
                         [('meta.json', b'{"tok'), ('meta.json', b'5'), ('meta.json', b'{}'),
                          ('starts.npy', b''), ('tokenizer.json', b'{}'), ('sizes.bin', b'abc')])
def test_each_damaged_file_of_a_token_folder_is_told(tmp_path, file, content):
    write_tokens(texts(), TOK, tmp_path/'t')
    (tmp_path/'t'/file).write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read'): open_tokens(tmp_path/'t')


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGKILL')
@pytest.mark.repeat(quick=1, exhaustive=5)
def test_workers_end_with_the_process_that_started_them(tmp_path, seed):
    code = ("import sys, time; sys.path.insert(0, sys.argv[1])\nfrom test_loader import *\na = "
            "Ahead(Blocks(texts(), TOK, 5), 2); s = Batches(a, 2, 16); next(s)\n"
            "print('reads', flush=True); time.sleep(60)")
    victim = start([sys.executable, '-c', code, Path(__file__).parent], tmp_path/'said.txt')
    victim.until(lambda: 'reads' in victim.said(), pause=.02)
    # the process and its two workers
    assert len(family(victim.pid)) >= 3
    time.sleep(random.Random(seed).random()*.2)
    victim.strike()
    assert ends(victim.pid), f'workers live on: {family(victim.pid)}'


def test_a_buffer_waits_for_its_copy():
    "LAB: a pinned buffer was written again while its copy was under way"
    waited = []
    class Event:
        def __init__(self, i): self.i = i
        def synchronize(self): waited.append(self.i)
    n = itertools.count()
    ring = Ring(3, lambda slot, item: (item, Event(next(n))))
    for i in range(7): ring(i)
    assert waited == [0, 1, 2, 3]


def test_token_files_that_are_damaged_or_there_already(tmp_path):
    write_tokens(texts(), TOK, tmp_path/'t')
    with pytest.raises(FileExistsError, match='already holds tokens'):
        write_tokens(texts(), TOK, tmp_path/'t')
    with pytest.raises(FileNotFoundError, match='no meta.json'): open_tokens(tmp_path)
    f = tmp_path/'t'/'ids.bin'
    data = bytearray(f.read_bytes())
    data[100] ^= 1
    f.write_bytes(data)
    open_tokens(tmp_path/'t')
    with pytest.raises(ValueError, match='damaged'): open_tokens(tmp_path/'t', check=True)
    f.write_bytes(data[:-2])
    with pytest.raises(ValueError, match='cut short'): open_tokens(tmp_path/'t')


@pytest.mark.parametrize('call', ['write', 'fsync', 'replace'])
def test_a_full_disk_leaves_no_tokens(tmp_path, monkeypatch, call):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    if call == 'write': monkeypatch.setattr(loader, '_write_ids', full)
    else: monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match='nothing was left there'):
        write_tokens(texts(), TOK, tmp_path/'t')
    assert list(tmp_path.iterdir()) == []


def test_an_empty_source_leaves_no_tokens(tmp_path):
    with pytest.raises(ValueError, match='no document'): write_tokens([], TOK, tmp_path/'t')
    assert list(tmp_path.iterdir()) == []


def test_memory_is_flat_over_an_epoch_ten_times_the_buffer():
    def endless(n): return repeatable(partial(_many, n))
    def peak(n_docs):
        s = Batches(Blocks(endless(n_docs), TOK, 100), 4, 64)
        tracemalloc.start()
        while s.epoch == 0: next(s)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    assert peak(2000) < 1.3*peak(200)

def _many(n): return (f'document {i} ' + 'word '*100 for i in range(n))


if __name__ == '__main__':
    states = json.loads(Path(sys.argv[2]).read_text())
    all_sources, got = sources(Path(sys.argv[1])), {}
    for key, state in states.items():
        for workers in (0, 1, 4):
            s = stream(all_sources[key.split()[0]], key.split()[1], workers).load_state_dict(state)
            got[f'{key} {workers}'] = epoch(s)
    print(json.dumps(got))

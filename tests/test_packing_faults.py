"""Faults of packing, scores and the loader, each by its entry, and what could fail in the same way:
text that is never seen, memory that grows with the text, validation that is empty, two writers of
one folder, names of specials in a text, wrong arguments.
"""
import bisect
import errno
import json
import math
import mmap
import os
import re
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gptlab import loader, packing
from gptlab.data import GrowingArray, parts_of, repeatable
from gptlab.loader import Ahead, Grow, Prefetch, Slices, fast_batches, open_tokens, write_tokens
from gptlab.packing import (Batches, Blocks, FixedBatches, Tokens, batches, best_fit, check_data,
                            concat, crop_rate, fixed_batches, resplit, sliding_windows,
                            tokenize)
from gptlab.score import (Score, baselines, bits_per_byte, evaluate, gzip_bpb, ngram_bpb,
                          perplexity, unigram_bpb, xz_bpb)
from gptlab.tokenizer import ByteTokenizer

TOK = ByteTokenizer()
BOOK = '\n'.join(f'{i*7919 % 10007} bottles' for i in range(2000))
DOCS = [f'Note {i}: ' + 'né '*(i*7 % 60) for i in range(90)]
PACKERS = dict(concat=concat, best_fit=best_fit, few=partial(best_fit, buffer=4),
               windows=sliding_windows, strides=partial(sliding_windows, stride=5))


def rng(seed=0): return np.random.default_rng(seed)

def starts_of(sizes): return np.cumsum([0, *sizes])

def same(a, b):
    assert set(a) == set(b)
    for k in a: assert torch.equal(a[k], b[k]), k

def error(kind, match, f, *args, **kw):
    with pytest.raises(kind, match=match): f(*args, **kw)


# ---- A07: text that is never seen

@pytest.mark.parametrize('pack', PACKERS)
def test_a07_every_part_of_a_book_is_seen(pack):
    train, _ = batches([BOOK], TOK, B=4, T=32, pack=PACKERS[pack])
    assert crop_rate(PACKERS[pack], train.tokens.starts, 32) < .002
    n = len(train.rows)
    seen = {tuple(r.tolist()) for _ in range(n//4) for r in next(train)['ids']}
    assert len(seen) >= len(train.tokens)//33 - 4


def test_a07_documents_of_one_and_a_half_rows():
    "The end of each was never seen, in no epoch: a third of the text"
    starts = starts_of([45]*200)
    assert crop_rate(best_fit, starts, 30) < .15


@pytest.mark.parametrize('seed', range(6))
def test_a07_what_is_longer_than_a_row_loses_less_than_a_row(seed):
    sizes  = rng(seed).integers(0, 200, 60)
    starts = starts_of(sizes)
    rows   = best_fit(starts, 16, rng(seed), buffer=int(rng(seed).integers(1, 70)))
    found  = rows[rows >= 0]
    assert len(np.unique(found)) == len(found)                         # nothing twice
    for begin, size in zip(starts, sizes):
        n_seen = np.isin(np.arange(begin, begin + size), found).sum()
        assert n_seen > size - 17 or size == 0


def cropped(starts, T, order, buffer):
    "Best-fit with crops as it was, for documents of any length"
    sizes, coming, pool, rows = np.diff(starts).tolist(), list(order), [], []
    while coming or pool:
        row = []
        while len(row) < T+1 and (coming or pool):
            while coming and len(pool) < buffer:
                d = coming.pop(0)
                bisect.insort(pool, (sizes[d], d))
            space = T+1 - len(row)
            fits = [x for x in pool if x[0] <= space]
            size, d = fits[-1] if fits else pool[0]
            pool.remove((size, d))
            row += range(starts[d], starts[d] + min(size, space))
        rows.append(row + [-1]*(T+1 - len(row)))
    return np.array(rows)

@pytest.mark.parametrize('buffer', [1, 5, 1000])
def test_a07_documents_of_a_row_or_less_are_packed_as_they_were(buffer):
    starts = starts_of([*rng(1).integers(0, 18, 80), 17, 17])          # rows of T+1 = 17
    order  = rng(2).permutation(82).tolist()
    assert (best_fit(starts, 16, rng(2), buffer) == cropped(starts, 16, order, buffer)).all()


def test_a07_resume_is_exact_and_small():
    docs = [BOOK[:5000*(i%4) + 40] for i in range(12)]
    new  = lambda: Batches(tokenize(docs, TOK), 3, 24, seed=4, docs=True, pack=best_fit)
    whole = new()
    for n in (1, 50, 700):
        for _ in range(n): next(whole)
        note = json.dumps(whole.state_dict())
        again = new().load_state_dict(json.loads(note))
        assert len(note) < 300 and again.state_dict() == whole.state_dict()
        for _ in range(20): same(next(whole), next(again))
    whole.resize(T=40)
    again = new().load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(20): same(next(whole), next(again))


def test_a07_a_stream_saved_before_goes_on_or_is_refused():
    "Rows of long documents are others now; those of short ones are not"
    for docs, long in ((['word '*9]*30, False), ([BOOK[:900]]*30, True)):
        s = Batches(tokenize(docs, TOK), 2, 64, pack=best_fit)
        for _ in range(3): next(s)
        before = s.state_dict()
        saved  = {k: v for k, v in before.items() if k != 'longer'}
        if long: error(ValueError, 'earlier version', s.load_state_dict, saved)
        else: s.load_state_dict(saved)
        assert s.state_dict() == before


# ---- U04: memory that grows with the text

@pytest.mark.parametrize('docs', [False, True])
@pytest.mark.parametrize('pack', PACKERS)
def test_u04_rows_computed_when_served_are_the_same(monkeypatch, pack, docs):
    def drawn():
        s = Batches(Blocks(DOCS + [BOOK], TOK, 40), 3, 20, seed=2, docs=docs, pack=PACKERS[pack])
        states = []
        for n, T in ((5, 33), (90, 7), (200, 20)):
            for _ in range(n): yield next(s)
            states.append(s.state_dict())
            s.resize(T=T)
            again = Batches(Blocks(DOCS + [BOOK], TOK, 40), 1, 9, docs=docs, pack=PACKERS[pack])
            s = again.load_state_dict(json.loads(json.dumps(s.state_dict())))
        yield states
    *plain, states = drawn()
    monkeypatch.setattr(Batches, 'lazy_above', 0)
    *lazy, again = drawn()
    assert states == again
    for a, b in zip(plain, lazy, strict=True): same(a, b)


def test_u04_a_packer_of_your_own_is_asked_as_before(monkeypatch):
    monkeypatch.setattr(Batches, 'lazy_above', 0)
    def mine(starts, T, rng): return concat(starts, T, None)
    s = Batches(tokenize(DOCS, TOK), 2, 16, pack=mine)
    assert isinstance(s.rows, np.ndarray)
    next(s)


@pytest.mark.parametrize('kind', PACKERS)
def test_u04_one_row_and_no_row(monkeypatch, kind):
    monkeypatch.setattr(Batches, 'lazy_above', 0)
    s = Batches(tokenize(['ab'], TOK), 2, 2, pack=PACKERS[kind])
    assert next(s)['ids'].shape == (2, 2)
    nothing = Batches(Blocks(['', ''], TOK, 1), 2, 16, pack=sliding_windows)
    error(ValueError, 'too short for a row', next, nothing)


def small_buffers(monkeypatch, n=1000):
    monkeypatch.setattr(GrowingArray, 'in_memory', n)
    monkeypatch.setattr(GrowingArray, 'buffer', n//3)

def is_mapped(array):
    while isinstance(array, np.ndarray): array = array.base
    return isinstance(getattr(array, 'obj', array), mmap.mmap)

def test_u04_a_large_text_lies_in_a_file_without_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    plain = tokenize(DOCS, TOK)
    small_buffers(monkeypatch)
    mapped = tokenize(DOCS, TOK)
    assert is_mapped(mapped.ids) and not is_mapped(plain.ids) and list(tmp_path.iterdir()) == []
    assert mapped.mark == plain.mark and (mapped.ids == plain.ids).all()
    assert mapped.ids.dtype == plain.ids.dtype and (mapped.starts == plain.starts).all()
    same(next(Batches(mapped, 4, 32)), next(Batches(plain, 4, 32)))
    del vars(mapped)['mark']
    assert mapped.mark == plain.mark                                   # as it is computed


@pytest.mark.parametrize('when', ['at once', 'later'])
def test_u04_without_room_for_the_file_memory_is_used_and_that_is_said(monkeypatch, when):
    plain = tokenize(DOCS, TOK)
    small_buffers(monkeypatch)
    written = []
    real = tempfile.TemporaryFile
    class Disk:
        "A file on a disk that is full after two kilobytes"
        def __init__(self, **kw): self.file = real(**kw)
        def write(self, data):
            if sum(written) > 2000: raise OSError(errno.ENOSPC, 'No space left on device')
            written.append(min(len(data), 700))
            return self.file.write(data[:700])
        def __getattr__(self, name): return getattr(self.file, name)
    def none(**kw): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(tempfile, 'TemporaryFile', none if when == 'at once' else Disk)
    with pytest.warns(UserWarning, match='TMPDIR'): found = tokenize(DOCS, TOK)
    assert (found.ids == plain.ids).all() and found.mark == plain.mark and not is_mapped(found.ids)


def test_u04_parts_end_by_length_as_well_as_by_number():
    docs  = ['x'*n for n in (5, 1, 40, 3, 3, 3, 3)]
    parts = list(parts_of(docs, n=3, n_chars=20))
    assert parts == [docs[:3], docs[3:6], docs[6:]] and list(parts_of([])) == []
    assert [d for p in parts_of(iter(docs), 2, 1) for d in p] == docs


@pytest.mark.parametrize('rank, world_size', [(0, 1), (1, 3)])
def test_u04_a_block_is_made_document_by_document(rank, world_size):
    "Its texts were all held at once"
    alive, most = set(), []
    class Text(str):
        def __init__(self, _):
            alive.add(id(self))
            most.append(len(alive))
        def __del__(self): alive.discard(id(self))
    source = repeatable(lambda: (Text('word '*50_000 + str(i)) for i in range(30)))
    block  = Blocks(source, TOK, 30, rank, world_size).block(0)
    assert len(block.starts) - 1 == len(range(rank, 30, world_size)) and max(most) < 13


@pytest.mark.parametrize('size', [1, 7, 1024])
def test_u04_how_a_folder_of_tokens_was_written_does_not_show(tmp_path, size):
    write_tokens(DOCS, TOK, tmp_path/'a', size=size)
    write_tokens(DOCS, TOK, tmp_path/'b')
    for f in ('ids.bin', 'sizes.bin', 'starts.npy', 'meta.json'):
        assert (tmp_path/'a'/f).read_bytes() == (tmp_path/'b'/f).read_bytes()


def test_u04_mapped_tokens_of_a_rank_grow_as_tokens_of_a_text_do(monkeypatch):
    whole = tokenize(DOCS, TOK)
    plain = Slices(whole, 64, 1, 2).block(0)
    small_buffers(monkeypatch)
    found = Slices(whole, 64, 1, 2).block(0)
    assert is_mapped(found.ids) and (found.ids == plain.ids).all() and found.mark == plain.mark


PEAK = '''
import resource, sys
from pathlib import Path
from gptlab.data import text_files
from gptlab.loader import open_tokens, fast_batches, write_tokens
from gptlab.packing import batches
from gptlab.tokenizer import ByteTokenizer
what, file = sys.argv[1], Path(sys.argv[2])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
before, tok = peak(), ByteTokenizer()
if what == 'write': write_tokens(text_files(file), tok, file.parent/'tokens')
elif what == 'batches': stream, _ = batches(text_files(file), tok, B=4, T=64, valid_rows=9)
else: stream, _ = fast_batches(open_tokens(file.parent/'tokens'), B=4, T=64, depth=0, valid=[])
if what != 'write':
    for _ in range(100): next(stream)
print(peak() - before)
'''

@pytest.mark.exhaustive
def test_u04_memory_does_not_grow_with_the_length_of_documents(tmp_path):
    "60 MB in 24 documents: it was 1.5 GB"
    pytest.importorskip('resource', reason='Windows does not tell the peak')
    with open(tmp_path/'books.txt', 'w') as f:
        for i in range(24):
            f.write(f'<|endoftext|>\nBook {i}\n' + f'{i} bottles on the wall\n'*110_000)
    megabytes = {}
    for what in ('batches', 'write', 'open'):
        done = subprocess.run([sys.executable, '-c', PEAK, what, tmp_path/'books.txt'],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        megabytes[what] = float(done.stdout)
    assert max(megabytes.values()) < 400, megabytes


# ---- packers and blocks: long grids of what the chapter shows once

def test_documents_are_joined_in_any_order_and_split_with_padding():
    starts = np.array([0, 7, 9, 20])
    assert packing._joined(starts, [1, 0, 2])[:9].tolist() == [7, 8, 0, 1, 2, 3, 4, 5, 6]
    assert packing._split(np.arange(8), 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, -1, -1]]


def test_best_fit_gives_long_documents_rows_of_their_own():
    "Of 30 tokens a row of 17, of 50 two; and the rests are packed as short ones"
    rows = best_fit(starts_of([30, 9, 14, 50, 5, 21, 12, 40, 8, 17]), 16, None)
    assert rows[:6, 0].tolist() == [0, 53, 53+17, 108, 141, 141+17]


def test_crop_rates_of_packers():
    sizes = rng().gamma(2, 150, 300).astype(int) + 2
    for pack in (concat, sliding_windows): assert crop_rate(pack, starts_of(sizes), 128) == 0
    assert crop_rate(best_fit, np.arange(0, 9_000, 100), 128) > .3     # all of 100 tokens


@pytest.mark.parametrize('pack', PACKERS)
def test_rows_computed_by_number_are_the_rows(pack):
    starts = starts_of(rng().integers(2, 60, 90))
    rows   = PACKERS[pack](starts, 64, rng())
    lazy   = packing._lazy_rows(PACKERS[pack], starts, 64, rng())
    assert lazy.shape == rows.shape
    assert (lazy[[5, 2]] == rows[[5, 2]]).all() and (lazy[:] == rows).all()


@pytest.mark.parametrize('world_size', [1, 2, 3, 8])
def test_ranks_read_every_document_once(world_size):
    docs, found = [f'Note {i}: {"la "*(i%7)}' for i in range(1000)], []
    for rank in range(world_size):
        blocks, k = Blocks(docs, TOK, 64, rank, world_size), 0
        while b := blocks.block(k):
            found += map(int, re.findall(r'Note (\d+)', TOK.decode(b.ids.tolist())))
            k += 1
    assert sorted(found) == list(range(1000))


class InBlocks:
    "Blocks by hand: a list of lists of documents"
    tok = TOK

    def __init__(self, *blocks): self.blocks = [tokenize(docs, TOK) for docs in blocks]

    def block(self, k): return self.blocks[k] if k < len(self.blocks) else None

@pytest.mark.parametrize('where', [(0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1, 0)])
def test_blocks_without_rows_are_passed_over(where):
    "Wherever they lie, and wherever the stream is taken up again"
    def new(): return Batches(InBlocks(*[DOCS[:9] if full else [] for full in where]), 8, 16)
    whole = new()
    for _ in range(60):
        state = json.loads(json.dumps(whole.state_dict()))
        again = new().load_state_dict(state)
        same(next(whole), next(again))
    assert whole.epoch >= 1


def test_a_stream_without_any_row_says_so_and_stays_where_it_was():
    for blocks in ([], [[], []]):
        s = Batches(InBlocks(*blocks), 2, 16)
        for _ in range(2):
            error(ValueError, 'no documents to read', next, s)
            assert (s.epoch, s.block, s.cursor, s.cuts) == (0, 0, 0, [])


def test_an_address_that_is_no_target_is_still_an_input():
    row   = np.array([[4, 5, 6, 7, 8]])
    again = resplit(row, 2)
    assert again.tolist() == [[-2-4, 5, 6], [6, 7, 8]]
    b = packing._batch(tokenize(['abcdefghijk'], TOK), again, docs=True)
    assert b['ids'].tolist() == [[100, 101], [102, 103]]               # d e, f g
    assert b['targets'].tolist() == [[101, 102], [103, 104]]
    assert b['pos'].tolist() == [[0, 1], [0, 1]]


# ---- A03: a validation list that is empty

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write_tokens(DOCS, TOK, tmp_path_factory.mktemp('a03')/'tokens')

def quick(*args, **kw): return fast_batches(*args, **dict(B=2, T=16, depth=0) | kw)

def test_a03_mapped_tokens_without_validation_say_so(folder):
    with pytest.warns(UserWarning, match='no validation text.*valid='):
        _, fixed = quick(open_tokens(folder))
    assert len(fixed) == 0 and fixed.tok.vocab_size == 257


def test_a03_and_take_one(folder):
    mapped, whole = open_tokens(folder), fixed_batches(tokenize(DOCS[:9], TOK), 2, 16)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(quick(mapped, valid=[])[1]) == 0
        for valid in (DOCS[:9], tuple(DOCS[:9]), tokenize(DOCS[:9], TOK)):
            s, fixed = quick(mapped, valid=valid)
            for a, b in zip(fixed, whole, strict=True): same(a, b)
        _, sample = quick(mapped, valid=DOCS[:9], valid_rows=3)
        assert sum(len(b['ids']) for b in sample) == 3
        parts = [quick(mapped, valid=DOCS[:9], rank=r, world_size=3)[1] for r in range(3)]
        assert sum(p.n_tokens for p in parts) == whole.n_tokens
        _, other = quick(DOCS, TOK, valid=DOCS[:9])
        for a, b in zip(other, whole, strict=True): same(a, b)


def test_a03_validation_does_not_move_the_stream(folder):
    a, b = quick(open_tokens(folder), valid=[])[0], quick(open_tokens(folder), valid=DOCS)[0]
    for _ in range(50): same(next(a), next(b))


def test_a03_a_tokenizer_or_rule_that_cannot_be_used_is_refused(folder):
    class Other(ByteTokenizer): vocab_size = 300
    error(ValueError, 'leave tok out', quick, open_tokens(folder), Other(), valid=[])
    error(ValueError, 'give it to write_tokens', quick, open_tokens(folder), special='ids',
          valid=[])
    quick(open_tokens(folder), ByteTokenizer(), valid=[])


# ---- A06: names in place of texts, and other things that are no documents

@pytest.mark.parametrize('take', [lambda d: tokenize(d, TOK), lambda d: Blocks(d, TOK),
                                  lambda d: write_tokens(d, TOK, 'never'),
                                  lambda d: gzip_bpb(d, DOCS, False),
                                  lambda d: xz_bpb(DOCS, d, False),
                                  lambda d: unigram_bpb(d, DOCS, False)],
                         ids=['tokenize', 'Blocks', 'write_tokens', 'gzip', 'xz', 'unigram'])
def test_a06_what_are_no_documents(tmp_path, monkeypatch, take):
    import pandas as pd
    monkeypatch.chdir(tmp_path)
    Path('a.txt').write_text('ship '*50)
    for wrong in (['a.txt', 'b.txt'], [Path('a.txt')], 'a.txt', Path('a.txt'), b'abc', 3, None,
                  pd.DataFrame(dict(text=DOCS)), dict(text=DOCS), torch.ones(3), [None], [3]):
        error(TypeError, 'docu|text', take, wrong)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.txt']


def test_a06_a_document_that_is_no_text_is_named():
    error(TypeError, 'document 2 is bytes', tokenize, ['a', 'b', b'c'], TOK)
    error(TypeError, 'document 1', lambda: Blocks(['a', None], TOK).block(0))


# ---- R07: two writers of one folder

def test_r07_a_second_writer_is_told_who_writes(tmp_path):
    told = []
    def source():
        for i, d in enumerate(DOCS):
            if i == 50:
                with pytest.raises(BlockingIOError, match='tokens are being written to') as e:
                    write_tokens(DOCS, TOK, tmp_path/'t')
                told.append(str(e.value))
            yield d
    write_tokens(repeatable(source), TOK, tmp_path/'t', size=8)
    assert f'process {os.getpid()}' in told[0]
    assert len(open_tokens(tmp_path/'t', check=True).starts) == len(DOCS) + 1
    assert [p.name for p in tmp_path.iterdir()] == ['t']
    error(FileExistsError, 'already holds tokens', write_tokens, DOCS, TOK, tmp_path/'t')


RACE = '''
import sys
from gptlab.loader import write_tokens
from gptlab.tokenizer import ByteTokenizer
docs = ['a text '*9 + str(i) for i in range(60)]
for k in range(100):
    try: write_tokens(docs, ByteTokenizer(), f'{sys.argv[1]}/t{k}', size=9, progress=False)
    except (BlockingIOError, FileExistsError): continue
    print(f't{k}')
'''

@pytest.mark.exhaustive
def test_r07_several_processes(tmp_path):
    run = [sys.executable, '-c', RACE, str(tmp_path)]
    running = [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for _ in range(4)]
    said = [p.communicate(timeout=200) for p in running]
    assert [err for _, err in said if err] == []
    wrote = sorted(name for out, _ in said for name in out.split())    # one each, others were told
    assert wrote == sorted(f't{k}' for k in range(100))
    assert sorted(p.name for p in tmp_path.iterdir()) == wrote
    for name in wrote: open_tokens(tmp_path/name, check=True)


def test_r07_a_writer_who_is_done_clears_up_under_another(tmp_path, monkeypatch):
    lock, cleared = loader.run_lock, []
    def late(folder):
        if len(cleared) < 3:                      # between the making of the folder and its lock
            cleared.append(folder.rmdir())
        return lock(folder)
    monkeypatch.setattr(loader, 'run_lock', late)
    write_tokens(DOCS, TOK, tmp_path/'t')
    assert len(cleared) == 3 and [p.name for p in tmp_path.iterdir()] == ['t']
    monkeypatch.setattr(loader, 'run_lock', lambda folder: lock(folder/'none'))
    error(OSError, 'there is no folder', write_tokens, DOCS, TOK, tmp_path/'u')


def test_r02_nothing_beside_the_tokens_is_touched(tmp_path):
    mine = ['.t.writing-mine', '.t.old', '.t.abcd1234', 't.bak', '.t.writing.txt']
    for name in mine: (tmp_path/name).write_text('mine')
    write_tokens(DOCS, TOK, tmp_path/'t')
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, 't'])
    (tmp_path/'.u.writing').mkdir()
    (tmp_path/'.u.writing'/'thesis.txt').write_text('mine')
    write_tokens(DOCS, TOK, tmp_path/'u')
    assert (tmp_path/'.u.writing'/'thesis.txt').read_text() == 'mine'


def test_a08_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path/'real').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'real')
    write_tokens(DOCS, TOK, tmp_path/'link')
    assert (tmp_path/'link').is_symlink() and len(open_tokens(tmp_path/'real')) > 0
    (tmp_path/'file').write_text('mine')
    error(FileExistsError, 'something else', write_tokens, DOCS, TOK, tmp_path/'file')
    assert (tmp_path/'file').read_text() == 'mine'


def test_a24_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert write_tokens(DOCS, TOK, '~/tok') == tmp_path/'tok'
    assert len(open_tokens('~/tok').starts) == len(DOCS) + 1 and not Path('~').exists()
    for f in (lambda p: write_tokens(DOCS, TOK, p), open_tokens):
        error(ValueError, 'path is empty', f, '')
        error(TypeError, 'a path is expected', f, None)


# ---- R06: files that lie about their size

@pytest.mark.parametrize('content', [
    dict(tokens=10**15, documents=10**15, dtype='uint16'), dict(dtype='O'), dict(dtype='float64'),
    dict(tokens='9'), dict(tokens=-1), dict(documents=None), dict(documents=10**9)])
def test_r06_a_folder_of_tokens_that_lies(folder, tmp_path, content):
    import shutil
    shutil.copytree(folder, tmp_path/'t')
    meta = json.loads((folder/'meta.json').read_text())
    (tmp_path/'t'/'meta.json').write_text(json.dumps(meta | content))
    error(ValueError, 'cannot be read', open_tokens, tmp_path/'t')


def test_r06_a_table_that_lies(folder, tmp_path):
    import shutil
    shutil.copytree(folder, tmp_path/'t')
    (tmp_path/'t'/'meta.json').write_text('['*10**6)
    error(ValueError, 'cannot be read', open_tokens, tmp_path/'t')
    shutil.copy(folder/'meta.json', tmp_path/'t')
    header = (folder/'starts.npy').read_bytes()[:128]
    shape  = f'({len(DOCS) + 1},), }}'.encode()
    large = b'(%d,), }' % 10**11
    lie   = header.replace(shape.ljust(len(large)), large)
    assert len(lie) == len(header) and lie != header
    (tmp_path/'t'/'starts.npy').write_bytes(lie)
    error(ValueError, 'cannot be read', open_tokens, tmp_path/'t')
    for wrong in (np.array([1., 2.]), np.zeros(len(DOCS) + 1), np.arange(len(DOCS) + 1)[::-1]):
        np.save(tmp_path/'t'/'starts.npy', wrong)
        error(ValueError, 'starts.npy does not fit', open_tokens, tmp_path/'t')


# ---- names of specials in a text

MARKED = ['one<|bos|>two', '<|bos|>', 'plain'] * 20

@pytest.mark.parametrize('kind', ['batches', 'fast_batches', 'write_tokens', 'Blocks'])
def test_names_of_specials_are_text_ids_or_refused(tmp_path, kind):
    def ids(special, **kw):
        kw |= {} if special is None else dict(special=special)
        if kind == 'write_tokens':
            return open_tokens(write_tokens(MARKED, TOK, tmp_path/f'{special}', **kw)).ids
        if kind == 'Blocks': return Blocks(MARKED, TOK, **kw).block(0).ids
        make = batches if kind == 'batches' else partial(fast_batches, depth=0)
        return make(MARKED, TOK, B=2, T=8, **kw)[0].tokens.block(0).ids
    def n_marks(ids): return int((ids == 256).sum())
    text, default, found = ids('text'), ids(None), ids('ids')
    n_docs = n_marks(text)
    assert (text == default).all() and TOK.decode(text.tolist()).count('<|bos|>') > 10
    assert n_marks(found) > n_docs and TOK.decode(found.tolist()).count('<|bos|>') == 0
    error(ValueError, r"'<\|bos\|>'.*special='text'", ids, 'raise')
    error(ValueError, "special='no'", ids, 'no')


def test_names_of_specials_the_longest_first_and_their_bytes():
    class Marks(ByteTokenizer):
        special, vocab_size, lossy = {'<a>': 256, '<a><b>': 257, '<|bos|>': 258}, 259, True
        def byte_counts(self, text): return [1]*len(text.encode())
    found = tokenize(['x<a><b>y<a>', '', '<a>'], Marks(), special='ids')
    assert found.ids.tolist() == [258, 120, 257, 121, 256, 258, 258, 256]
    assert found.sizes.tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
    error(ValueError, "document 1 has '<a>'.*position 1", tokenize, ['', 'x<a>'], Marks(), 'raise')
    class Bare(ByteTokenizer): special = {}
    assert tokenize(['a<|bos|>'], Bare(), special='ids').ids.tolist() == list(b'a<|bos|>')


# ---- R12, A17: what is refused has changed nothing

@pytest.mark.parametrize('wrong', [None, 'x', [], {}, dict(seed=0), 3])
@pytest.mark.parametrize('ahead', [False, True])
def test_r12_a_refused_state_leaves_the_stream_where_it_was(wrong, ahead):
    make = lambda: Batches(Blocks(DOCS, TOK, 30), 2, 16, seed=3)
    s, plain = Prefetch(make()) if ahead else make(), make()
    for _ in range(20): same(next(s), next(plain))
    error((TypeError, ValueError), 'state', s.load_state_dict, wrong)
    good = s.state_dict()
    for k, v in dict(seed='0', cuts=3, epoch=True, B=1.5, T=None, text='9-0').items():
        error(ValueError, 'state|other text', s.load_state_dict, good | {k: v})
    for kw in (dict(B=0), dict(T=-1), dict(B='x')):
        error((TypeError, ValueError), 'B|T', s.resize, **kw)
    for _ in range(20): same(next(s), next(plain))


# ---- R11: wrong arguments

ROWS = starts_of([9, 30])
WRONG = {
    'best_fit(T=-1)': lambda: best_fit(ROWS, -1, None),
    'best_fit(T=0)': lambda: best_fit(ROWS, 0, None),
    'best_fit(buffer=0)': lambda: best_fit(ROWS, 8, None, buffer=0),
    'concat(T=-1)': lambda: concat(ROWS, -1, None), 'concat(rng=3)': lambda: concat(ROWS, 8, 3),
    'stride=0': lambda: sliding_windows(ROWS, 8, None, stride=0),
    'stride=-3': lambda: sliding_windows(ROWS, 8, None, stride=-3),
    'no starts': lambda: concat([], 8, None),
    'starts that fall': lambda: concat([0, 9, 3], 8, None),
    'crop_rate of a name': lambda: crop_rate('best_fit', ROWS, 8),
    'crop_rate of nothing': lambda: crop_rate(lambda *a: None, ROWS, 8),
    'pack of a name': lambda: batches(DOCS, TOK, 2, 16, pack='best_fit'),
    'pack beyond the text': lambda: next(Batches(tokenize(DOCS, TOK), 2, 16, pack=beyond)),
    'B=1.5': lambda: batches(DOCS, TOK, B=1.5), 'T huge': lambda: batches(DOCS, TOK, T=10**9),
    'seed=-1': lambda: batches(DOCS, TOK, 2, 16, seed=-1),
    'valid_rows=0': lambda: batches(DOCS, TOK, 2, 16, valid_rows=0),
    'size=0': lambda: batches(DOCS, TOK, 2, 16, size=0), 'tok=None': lambda: batches(DOCS, None),
    'fast_batches(text)': lambda: fast_batches('stories'),
    'workers=-1': lambda: fast_batches(DOCS, TOK, 2, 16, workers=-1),
    'depth=-1': lambda: fast_batches(DOCS, TOK, 2, 16, depth=-1),
    'depth=1.5': lambda: fast_batches(DOCS, TOK, 2, 16, depth=1.5),
    'device=tpu': lambda: fast_batches(DOCS, TOK, 2, 16, device='tpu'),
    'rank=2': lambda: fast_batches(DOCS, TOK, 2, 16, rank=2, world_size=2),
    'rank=0.5': lambda: Blocks(DOCS, TOK, rank=.5, world_size=2),
    'Batches of a list': lambda: Batches(DOCS), 'Slices of a list': lambda: Slices(DOCS),
    'Ahead of a list': lambda: Ahead(DOCS), 'fixed of a list': lambda: fixed_batches(DOCS),
    'FixedBatches of a text': lambda: FixedBatches('abc'),
    'head(-1)': lambda: FixedBatches([]).head(-1),
    'block -1': lambda: Blocks(DOCS, TOK).block(-1), 'Grow({})': lambda: Grow({}),
    'Grow of T=0': lambda: Grow({0: (2, 0)}), 'Grow of a number': lambda: Grow({0: 32}),
    'Tokens that do not fit': lambda: Tokens(np.zeros(9, np.uint16), ROWS, TOK),
    'check_data(n=0)': lambda: check_data(batches(DOCS, TOK, 2, 16)[0], n=0),
    'check_data of a text': lambda: check_data('abc'),
    'write_tokens(size=0)': lambda: write_tokens(DOCS, TOK, 'never', size=0),
    "gzip_bpb('x')": lambda: gzip_bpb('x', ['y']), "xz_bpb('x')": lambda: xz_bpb(['y'], 'x'),
    "ngram_bpb('x')": lambda: ngram_bpb('x', 'y', 2), 'n=9': lambda: ngram_bpb(DOCS, DOCS, 9),
    'n=True': lambda: ngram_bpb(DOCS, DOCS, True), 'perplexity(-1)': lambda: perplexity(-1),
    "perplexity('x')": lambda: perplexity('x'), 'perplexity(nan)': lambda: perplexity(math.nan),
    'bits of -1 nats': lambda: bits_per_byte(-1, 9),
    'bits of nan': lambda: bits_per_byte(math.nan, 9),
    'bits of no bytes': lambda: bits_per_byte(1, 0), 'most=0': lambda: baselines(DOCS, most=0),
    'no model': lambda: evaluate(None, []), 'a model that is text': lambda: evaluate('x', []),
    'batches that are text': lambda: evaluate(Even(), 'abc'),
    'a batch that is none': lambda: evaluate(Even(), [3]),
    'a batch without targets': lambda: evaluate(Even(), [dict(ids=torch.ones(1, 2))]),
    'a tokenizer that is text': lambda: evaluate(Even(), one_batch(), tok='x')}

def beyond(starts, T, rng): return np.full((3, T+1), starts[-1])

class Even(nn.Module):
    "Every target has one nat"
    def __init__(self, give=lambda nll: (nll, None)):
        super().__init__()
        self.give = give
    def forward(self, ids, targets): return self.give(torch.ones(targets.shape))

def one_batch(): return list(fixed_batches(tokenize(DOCS[:3], TOK), 2, 16))

@pytest.mark.parametrize('case', WRONG)
def test_r11_wrong_arguments_are_told(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError)) as e: WRONG[case]()
    frame = e.traceback[-1]
    assert 'gptlab' in str(frame.path) and 'raise' in str(frame.statement), e.value
    assert re.search('give|must|not|no |expected| are | is ', str(e.value)), e.value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('give', [lambda nll: nll.mean(), lambda nll: (nll.mean(), None),
                                  lambda nll: (nll[:,1:], None), lambda nll: None,
                                  lambda nll: (nll[...,None].expand(-1, -1, 5), None)])
def test_r11_a_model_that_gives_something_else_is_not_scored(give):
    error(ValueError, r'a model gives \(nll \(B,T\)', evaluate, Even(give), one_batch())


def test_r11_numbers_of_numpy_are_numbers():
    s, fixed = batches(DOCS, TOK, B=np.int64(2), T=np.int32(16), seed=np.uint8(3))
    json.dumps(s.state_dict())
    assert s.resize(B=np.int8(3)).B == 3 and len(fixed.head(np.int64(1))) == 1
    assert bits_per_byte(np.float32(1), np.int64(2)) > 0 and perplexity(np.float64(0)) == 1


# ---- U13: a plain list does not know its bytes

def test_u13_a_score_without_bytes_says_why():
    found = evaluate(Even(), one_batch())
    assert math.isnan(found.bpb) and found.n_bytes == 0
    assert 'tok=None' in repr(found) and 'nan' not in repr(found)
    assert 'nan' not in found._repr_markdown_() and 'not known' in found._repr_markdown_()
    known = evaluate(Even(), one_batch(), TOK)
    assert known.bpb > 1 and f'{known.bpb:.4f} ± {known.bpb_se:.4f} bits per byte' in repr(known)


def test_u13_a_score_that_is_nan_or_infinite_can_be_shown():
    "A run that went wrong is still shown"
    for loss in (math.nan, math.inf):
        shown = Score(loss, loss, 9, 20)
        assert str(loss) in repr(shown) and str(loss) in shown._repr_markdown_()
    assert math.isnan(evaluate(Even(lambda nll: (nll*math.nan, None)), one_batch(), TOK).perplexity)

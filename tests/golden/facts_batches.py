"""Facts about data: corpora, splits, packing, streams and their state, the loader."""
import itertools
import json
from pathlib import Path

from gptlab.all import *
from gptlab.packing import resplit, target_bytes

from registry import digest, exact, fact, once, unnamed

DOCS = ['', 'a', 'Once upon a time, there was a fox.\n', 'é🐙 naïve\t' * 5]


@once
def some_docs(n=160):
    "Stories of all lengths, and odd documents among them; the same for all facts"
    told = make_stories(n, seed=3)
    return [d[:9 + 37*i % 400] for i, d in enumerate(told)] + DOCS


def drawn(stream, n=50):
    "The hash of the next n batches"
    return digest(unnamed([next(stream) for _ in range(n)]))


def with_close(stream, *numbers):
    "Facts of a stream, whose workers and threads end afterwards"
    try:
        return stream_facts(stream, *numbers)
    finally:
        for part in (stream, getattr(stream, 'stream', None), getattr(stream, 'tokens', None)):
            if hasattr(part, 'close'):
                part.close()


def stream_facts(stream, fresh, n=50):
    "Batches, the state after 17 more, and what a fresh stream gives from that state"
    found = dict(batches=drawn(stream, n))
    for _ in range(17):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    found |= dict(state=exact(state), next=drawn(stream, 9))
    other = fresh()
    found['resumed'] = found['next'] == drawn(other.load_state_dict(state) or other, 9)
    return found


PACKERS = dict(
    concatenated=lambda: dict(),
    best_fit=lambda: dict(pack=best_fit),
    best_fit_few=lambda: dict(pack=partial(best_fit, buffer=5)),
    windows=lambda: dict(pack=sliding_windows),
    windows_by_stride=lambda: dict(pack=partial(sliding_windows, stride=11)))

STREAMS = {f'{name}, {kind}': (make, dict(docs=kind == 'documents apart'))
           for name, make in PACKERS.items() for kind in ('plain', 'documents apart')}


@fact('stream', STREAMS)
def packed(case):
    make, kw = case
    shape = dict(B=3, T=40, seed=2)
    open_stream = lambda: batches(some_docs(), ByteTokenizer(), **shape, **kw, **make())
    stream, valid = open_stream()
    found = dict(valid=digest(unnamed(list(valid))))
    found['sizes'] = [len(valid), valid.n_tokens, valid.n_bytes]
    return found | stream_facts(stream, lambda: open_stream()[0])


@fact('rows of a packer', dict(concatenated=lambda: concat, best_fit=lambda: best_fit,
                               best_fit_few=lambda: partial(best_fit, buffer=5),
                               windows=lambda: sliding_windows))
def packer_rows(get):
    starts = np_starts()
    found = dict(in_order=digest(get()(starts, 13, None)))
    found['drawn'] = digest(get()(starts, 13, generator(4)))
    return found | dict(lost=exact(crop_rate(get(), starts, 13)))


def generator(seed):
    import numpy as np
    return np.random.default_rng(seed)


def np_starts():
    import numpy as np
    return np.cumsum([0, *generator(3).integers(0, 60, 50)])


@fact('rows cut again')
def cut_again():
    rows = concat(np_starts(), 13, generator(5))
    return digest(resplit(rows, 7), resplit(resplit(rows, 7), 30))


@fact('tokens', dict(bytes=lambda: ByteTokenizer(), lossy=lambda: StrippedAsciiTokenizer()))
def flat(make):
    t = tokenize(some_docs(), make())
    return dict(ids=digest(t.ids, t.starts), mark=t.mark, size=len(t), sizes=exact(t.sizes))


@fact('lossy validation list')
def lossy():
    _, valid = batches(some_docs(), StrippedAsciiTokenizer(), B=2, T=32, valid_rows=7)
    first = target_bytes(valid[0], valid.tok)
    return [digest(unnamed(list(valid))), valid.n_bytes, valid.n_tokens, first]


@fact('stream changes its shape')
def resized():
    stream, _ = batches(some_docs(), ByteTokenizer(), B=3, T=40, docs=True)
    first, stream = drawn(stream, 5), stream.resize(B=2, T=24)
    second, stream = drawn(stream, 5), stream.resize(T=55)
    state = exact(stream.state_dict())
    return dict(hashes=[first, second, drawn(stream, 40)], state=state)


@fact('stream in another order')
def reseeded():
    stream, _ = batches(some_docs(), ByteTokenizer(), B=3, T=40)
    return drawn(stream.reseed(9), 20)


def streamed_source():
    return repeatable(lambda: iter(some_docs()))


@fact('stream of blocks', dict(one=(0, 1), first=(0, 3), last=(2, 3)))
def blocks(rank):
    open_stream = lambda: Batches(Blocks(streamed_source(), ByteTokenizer(), 16, *rank), 3, 40)
    return stream_facts(open_stream(), open_stream)


@fact('stream of a source')
def from_source():
    open_stream = lambda: batches(streamed_source(), ByteTokenizer(), B=3, T=40)
    stream, valid = open_stream()
    return dict(valid=digest(unnamed(list(valid)))) | stream_facts(stream, lambda: open_stream()[0])


LOADERS = dict(
    alone=dict(workers=0, depth=0),
    thread=dict(workers=0, depth=4),
    workers=dict(workers=2, depth=0),
    workers_and_thread=dict(workers=2, depth=3, docs=True),
    second_rank=dict(workers=0, depth=2, rank=1, world_size=2, valid_rows=5))


@fact('loader', LOADERS)
def loader(kw):
    open_stream = lambda: fast_batches(some_docs(), ByteTokenizer(), B=3, T=40, size=32, **kw)
    stream, valid = open_stream()
    fresh = lambda: open_stream()[0]
    return dict(valid=digest(unnamed(list(valid)))) | with_close(stream, fresh, 30)


@fact('tokens in a folder')
def mapped():
    folder = write_tokens(some_docs(), ByteTokenizer(), 'tokens', size=32)
    kept = open_tokens(folder, check=True)
    found = dict(files=file_hashes(folder), mark=kept.mark)
    stream, _ = fast_batches(kept, B=3, T=40, size=32, depth=0)
    part = Slices(kept, 16, 1, 3).block(1)
    return found | dict(batches=drawn(stream, 30), part=digest(part.ids, part.starts))


def file_hashes(folder):
    "Names and hashes of the files, of JSON its content but for the tokenizer's checksum"
    found = {f.name: digest(f.read_bytes()) for f in sorted(Path(folder).iterdir())}
    for name in [n for n in found if n.endswith('.json')]:
        found[name] = exact(json.loads(Path(folder, name).read_text()))
    found['meta.json'].pop('tokenizer')
    return found


@fact('validation list of each rank')
def shared():
    _, valid = batches(some_docs(), ByteTokenizer(), B=3, T=40)
    return [digest(unnamed(list(shard(valid, rank, 3)))) for rank in range(3)]


@fact('stream is checked')
def checked():
    stream, valid = batches(some_docs(), ByteTokenizer(), B=3, T=40, docs=True)
    return [isinstance(check_data(stream), str), isinstance(check_data(valid), str), drawn(stream)]


# ---- corpora

@fact('corpus', dict(stories='stories', python='python'))
def built_in(name):
    c = corpus(name)
    return dict(sha256=c.sha256, documents=c.n_docs, size=c.n_bytes, name=c.name,
                valid=digest(list(c.valid)))


@fact('stories')
def story_facts():
    docs = make_stories(40, seed=5)
    return dict(docs=digest(docs), bits=exact([story_bits(d) for d in docs[:4]]),
                floor=exact(stories_bpb()))


@fact('split', dict(twentieth=.05, third=.33, most=.9))
def split(share):
    train, valid = split_docs(some_docs() + some_docs()[:20], share)
    one = split_docs([' '.join(some_docs()[:30])], share)
    return dict(sides=[len(train), len(valid)], hash=digest(train, valid), one=digest(one))


@fact('corpus of files')
def files():
    Path('a.txt').write_text('one\n<|endoftext|>\ntwo é\n<|endoftext|>\nthree', encoding='utf-8')
    Path('b.jsonl').write_text('{"text": "one"}\n{"text": "two\\n"}\n', encoding='utf-8')
    Path('c.md').write_text('# a\f# b\r\n', encoding='utf-8')
    found = dict(text=list(text_files('a.txt')), lines=list(jsonl('b.jsonl')))
    found |= dict(folder=list(text_files('.')), skipped=list(text_files('a.txt').skip(1)))
    whole = corpus('a.txt', valid=.4)
    return found | dict(train=list(whole.train), valid=list(whole.valid), read=read_text('c.md'))


@fact('shards')
def shards():
    done = reshard(some_docs()[:60], 'shards', docs_per_shard=17, name='few', licence='none')
    kept = Path('shards')
    meta = json.loads((kept/'meta.json').read_text())
    found = {f.name: digest(f.read_bytes()) for f in sorted(kept.glob('*.parquet'))}
    c = corpus('shards')
    return dict(files=found, meta=sorted(meta), train=digest(list(c.train)), sha256=c.sha256,
                valid=digest(list(c.valid)), skipped=digest(list(parquet('shards').skip(21))),
                rows=len(provenance('shards')), made=type(done).__name__)


MIXTURES = dict(even=dict(alpha=0.), as_given=dict(), bent=dict(alpha=.5, seed=3),
                cut=dict(n_bytes=4000))


@fact('mixture', MIXTURES)
def mixed(kw):
    sources = dict(a=some_docs()[:50], b=make_stories(30, seed=8), c=['x']*20)
    m = mixture(sources, dict(a=3., b=1., c=.5), **kw)
    labels = [name for name, _ in m.labelled()]
    return dict(docs=digest(list(m)), labels=labels, skipped=digest(list(m.skip(23))),
                shares=digest([list(r.values()) for r in m.shares(40)]))


@fact('documents cut short')
def cut_short():
    docs = list(cap_documents(some_docs(), 21))
    return dict(docs=digest(docs), clipped=[clip_bytes('né🐙x', n) for n in range(9)])


@fact('overlap of two sides')
def overlapping():
    docs = make_stories(200, seed=5)
    o = corpus_overlap(Corpus('mine', docs[:150] + docs[160:170], docs[150:]), n=5)
    return exact([float(v) for v in o.share])


@fact('mixture of four corpora')
def four():
    return [[str(v) for v in row.values()] for row in four_recipe()]


@fact('source read from the middle')
def middle():
    source = streamed_source()
    return [digest(list(skip_documents(source, 30))), digest(list(itertools.islice(source, 4)))]

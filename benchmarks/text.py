"""Tokenizers and data: training, encoding, loading, beside their peers in the same run.

    python benchmarks/text.py train FILE [--vocab 8192 32768] [--threads 1 2]
        seconds and peak memory of BPE training
    python benchmarks/text.py encode FILE
        MB/s of encoding, one thread
    python benchmarks/text.py loader FILE
        tokens per second of batches

FILE is any UTF-8 text; the results name its size and checksum. Each training runs in a process of
its own, so that its peak memory is its own, and reads the file in the same chunks of lines. Peers
that are not installed are left out: pip install tokenizers rustbpe gigabpe sentencepiece fastokens.
"""
import argparse, hashlib, json, os, resource, statistics, subprocess, sys, tempfile, time
from functools import partial
from pathlib import Path

from common import keep

CHUNK = 2**20


def chunks(path, size=CHUNK):
    "Pieces of about `size` bytes that end at a line, as text"
    with open(path, encoding='utf-8') as f:
        while lines := f.readlines(size): yield ''.join(lines)

def about(path):
    return dict(file=Path(path).name, n_bytes=os.path.getsize(path),
                sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16])


# ---- training: one engine in one process

def ours(path, V, threads, engine=None):
    from gptlab.bpe import BPE, learn
    return BPE.train(chunks(path), V, engine=engine or partial(learn, workers=threads)).merges

def ours_rust(path, V, threads):
    from gptlab.tokenizers import rustbpe_engine
    return ours(path, V, threads, rustbpe_engine)

def hf(path, V, threads):
    import tokenizers as t
    from gptlab.bpe import GPT2_PATTERN
    tok = t.Tokenizer(t.models.BPE())
    tok.pre_tokenizer = t.pre_tokenizers.Sequence(
        [t.pre_tokenizers.Split(t.Regex(GPT2_PATTERN), 'isolated'),
         t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.train_from_iterator(chunks(path), t.trainers.BpeTrainer(
        vocab_size=V-1, show_progress=False,
        initial_alphabet=t.pre_tokenizers.ByteLevel.alphabet()))
    return range(tok.get_vocab_size() - 256)

def rust(path, V, threads):
    import rustbpe
    from gptlab.bpe import GPT2_PATTERN
    tok = rustbpe.Tokenizer()
    tok.train_from_iterator(chunks(path), V-1, pattern=GPT2_PATTERN)
    return range(tok.vocab_size - 256)

def giga(path, V, threads):
    import gigabpe
    return gigabpe.train_bpe([str(path)], V-1, special_tokens=[], threads=threads)[1]

def piece(path, V, threads):
    import sentencepiece
    with tempfile.TemporaryDirectory() as d:
        sentencepiece.SentencePieceTrainer.train(
            input=str(path), model_prefix=f'{d}/m', model_type='bpe', vocab_size=V,
            num_threads=threads, byte_fallback=True, character_coverage=1.,
            normalization_rule_name='identity', add_dummy_prefix=False,
            remove_extra_whitespaces=False, max_sentence_length=10**6, minloglevel=2,
            hard_vocab_limit=False)
        return range(V - 256)

ENGINES = dict(gptlab=ours, gptlab_rustbpe=ours_rust, tokenizers=hf, rustbpe=rust, gigabpe=giga,
               sentencepiece=piece)

def one(name, path, V, threads):
    "Train once, here; the last line printed is what it cost"
    start = time.perf_counter()
    merges = ENGINES[name](path, V, threads)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps(dict(engine=name, vocab=V, threads=threads, seconds=round(seconds, 2),
                          peak_mb=round(peak[0]/1024), peak_of_a_worker_mb=round(peak[1]/1024),
                          merges=len(merges))))

def train(args):
    rows = []
    for threads in args.threads:
        env = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads),
                   TOKENIZERS_PARALLELISM='true')
        for V in args.vocab:
            for name in args.engines or ENGINES:
                for _ in range(args.repeat):
                    r = subprocess.run([sys.executable, __file__, 'one', args.file, '--engines',
                                        name, '--vocab', str(V), '--threads', str(threads)],
                                       env=env, capture_output=True, text=True)
                    if r.returncode:
                        print(name, 'left out:', (r.stderr.strip().splitlines() or ['?'])[-1])
                        break
                    rows.append(json.loads(r.stdout.strip().splitlines()[-1]))
                    print(rows[-1], flush=True)
    for row in rows:
        peer = [r['seconds'] for r in rows if r['engine'] == 'tokenizers'
                and (r['vocab'], r['threads']) == (row['vocab'], row['threads'])]
        if peer: row['time_over_tokenizers'] = round(row['seconds']/statistics.median(peer), 3)
    keep(f'text_train_{round(os.path.getsize(args.file)/1e6)}MB', text=about(args.file), rows=rows)


# ---- encoding

def speeds(ways, n_bytes, repeat=5):
    "MB/s of each way, in turn within each round; medians"
    took = {k: [] for k in ways}
    for _ in range(repeat):
        for k, f in ways.items():
            start = time.perf_counter()
            f()
            took[k].append(time.perf_counter() - start)
    return {k: round(n_bytes/statistics.median(t)/1e6, 2) for k, t in took.items()}, took

def encode(args):
    """Ours against raw tiktoken with the same ranks, one thread each; the other libraries with the
    same tokenizer.json where they read one"""
    # the first gives a BPE to_tokenizer_json
    import gptlab.tokenizers, tiktoken
    from gptlab.bpe import BPE
    text = Path(args.file).read_bytes()[:args.mb*10**6].decode('utf-8', 'ignore')
    short = [s for s in text.split('\n') if s]
    tok = BPE.train(chunks(args.file), args.vocab[0])
    raw = tiktoken.Encoding('raw', pat_str=tok.pattern, mergeable_ranks=tok.ranks,
                            special_tokens=tok.special)
    # ours takes as many threads as there are cores
    os.cpu_count = lambda: 1
    long_ways = {'gptlab': lambda: tok.encode(text), 'tiktoken': lambda: raw.encode_ordinary(text)}
    short_ways = {'gptlab': lambda: tok.encode_batch(short),
                  'tiktoken': lambda: [raw.encode_ordinary(s) for s in short],
                  'tiktoken, its own batch': lambda: raw.encode_ordinary_batch(
                      short, num_threads=1)}
    with tempfile.TemporaryDirectory() as d:
        file = tok.to_tokenizer_json(Path(d)/'tokenizer.json')
        add_peers(long_ways, short_ways, text, short, file)
        rows = {}
        for kind, ways in dict(long=long_ways, short=short_ways).items():
            mbs, took = speeds(ways, len(text.encode()))
            rows[kind] = dict(mb_per_second=mbs, over_tiktoken={
                k: round(statistics.median(b/a for a, b in zip(took[k], took['tiktoken'])), 3)
                for k in ways})
            print(kind, rows[kind])
    keep('text_encode', text=about(args.file), first_mb=args.mb, vocab=args.vocab[0],
         short_texts=len(short), **rows)

def add_peers(long_ways, short_ways, text, short, file):
    try:
        import tokenizers
        t = tokenizers.Tokenizer.from_file(str(file))
        long_ways['tokenizers'] = lambda: t.encode(text).ids
        short_ways['tokenizers'] = lambda: [e.ids for e in t.encode_batch(short)]
    except ImportError: pass
    try:
        import fastokens
        f = fastokens.Tokenizer.from_file(str(file))
        long_ways['fastokens'] = lambda: f.encode(text)
        short_ways['fastokens'] = lambda: f.encode_batch(short)
    except (ImportError, AttributeError, ValueError, RuntimeError) as e:
        print('fastokens left out:', e)


# ---- loading

def rate(stream, seconds=3.):
    "Tokens per second of a stream, after one batch"
    next(stream)
    n, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(8): n += next(stream)['ids'].numel()
    return n/(time.perf_counter() - start)

def loader(args):
    """Batches from mapped tokens and from Parquet, one core unless it says workers; what was
    wasted, and peak memory"""
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    from gptlab.bpe import BPE
    from gptlab.data import parquet
    from gptlab.loader import Ahead, Slices, open_tokens, write_tokens
    from gptlab.packing import Batches, Blocks, best_fit, concat, crop_rate, sliding_windows
    docs = [c for chunk in chunks(args.file, 2000) for c in [chunk]]
    tok = BPE.train(docs[:5000], args.vocab[0])
    rows = {}
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        write_tokens(docs, tok, d/'tokens')
        mapped = open_tokens(d/'tokens')
        for i in range(0, len(docs), 2**14):
            pq.write_table(pa.table(dict(text=docs[i:i+2**14])), d/f'shard_{i//2**14:05}.parquet',
                           row_group_size=1024)
        for T in args.length:
            for pack in (concat, best_fit, sliding_windows):
                rows[f'mapped {pack.__name__} T={T}'] = rate(
                    Batches(Slices(mapped), 16, T, pack=pack))
                block = mapped.starts[:1025] - mapped.starts[0]
                used = pack(block, T, np.random.default_rng(0))
                rows[f'utilisation {pack.__name__} T={T}'] = float((used[:,1:] >= 0).mean())
                rows[f'crop rate {pack.__name__} T={T}'] = crop_rate(pack, block, T)
        source = parquet(d)
        rows['parquet on the fly'] = rate(Batches(Blocks(source, tok), 16, 512), 8.)
        for w in (1, 2):
            ahead = Ahead(Blocks(source, tok), w)
            rows[f'parquet on the fly, {w} workers'] = rate(Batches(ahead, 16, 512), 8.)
            ahead.close()
    rows = {k: round(v, 4) if v < 10 else round(v) for k, v in rows.items()}
    for k, v in rows.items(): print(f'{k:40} {v:>14,}')
    keep('text_loader', text=about(args.file), vocab=args.vocab[0], documents=len(docs),
         tokens=len(mapped),
         bytes_per_token=round(sum(len(x.encode()) for x in docs)/len(mapped), 3), rows=rows)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['train', 'one', 'encode', 'loader'])
    p.add_argument('file')
    p.add_argument('--vocab', type=int, nargs='+', default=[8192])
    p.add_argument('--threads', type=int, nargs='+', default=[1])
    p.add_argument('--engines', nargs='+', choices=list(ENGINES))
    p.add_argument('--repeat', type=int, default=1)
    p.add_argument('--length', type=int, nargs='+', default=[512, 1024, 2048])
    p.add_argument('--mb', type=int, default=10)
    args = p.parse_args()
    if args.what == 'one': one(args.engines[0], args.file, args.vocab[0], args.threads[0])
    else: globals()[args.what](args)

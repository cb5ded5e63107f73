"""Continuous batching: 16 streams in one engine, beside `generate_rows` on the same rows.

`streams`: 16 clients, each a thread, start one after another; each asks for a text, reads it, and
asks again, for `--seconds`. Reported are errors, the tokens of the slowest client over their mean,
and the steps from the arrival of a request to its first token.

`throughput`: tokens per second of processor time, an engine that is never idle and the plain loop
alternating in one process. `equal`: 32 tokens are read and 128 written, so the plain loop wastes
nothing, and its rows need no mask; in the engine they have arrived one every four steps. `varied`:
16 to 48 are read and 32 to 224 written; the plain loop writes 16 rows until the slowest is done. A
ratio is the median over turns (above 1: the engine is faster). The engine steps in torch's
inference mode and `generate_rows` does not; the loop is timed in that mode, too.

`memory`: the resident memory after each thousand of 10,000 requests. `vanish`: 1,000 clients that
read a few pieces and cancel; what is left in the caches, and how many requests are still alive.
Each part writes a file of its own, such as `results/serve_streams.json`.

    python benchmarks/serve.py [streams throughput memory vanish] [--seconds 60] [--pairs 5]
                               [--requests 10000] [--shapes small medium] [--name serve]
"""
import argparse, gc, os, random, statistics, threading, time
from common import keep
import torch
from gptlab.batching import Engine, Request
from gptlab.generation import generate_rows, temperature, top_k
from gptlab.model import GPT, llama_config

SHAPES = dict(
    small=dict(vocab_size=512, d_model=64, d_ff=172, n_layers=5, n_heads=8, n_kv_heads=4),
    medium=dict(vocab_size=4096, d_model=384, d_ff=1024, n_layers=6, n_heads=6, n_kv_heads=2))
PARTS = ['throughput', 'streams', 'memory', 'vanish']
ROWS, FILTERS = 16, (temperature(.8), top_k(40))


class Words:
    "A tokenizer without end marks, so that every text has the length that was asked for"
    def __init__(self, vocab_size): self.vocab_size = vocab_size
    def encode(self, text): return [len(w) for w in text.split()]
    def decode_bytes(self, ids): return b'word '*len(ids)


def model_of(shape):
    torch.manual_seed(0)
    return GPT(llama_config(context_length=1024, **SHAPES[shape])).eval(), Words(
        SHAPES[shape]['vocab_size'])


def prompt(rng, V, n=None): return [rng.randrange(V) for _ in range(n or rng.randint(16, 48))]


def streams(shape, seconds):
    model, tok = model_of(shape)
    written, first, errors = [0]*ROWS, [], []
    until = time.monotonic() + seconds

    def client(k, engine):
        rng = random.Random(k)
        time.sleep(.05*k)
        while time.monotonic() < until:
            arrived = engine.stats()['steps']
            job = engine.submit(prompt(rng, tok.vocab_size), rng.randint(16, 112), *FILTERS, seed=k)
            job.listen(lambda piece, seen=[]: seen or seen.append(
                first.append(engine.counts['steps'] + 1 - arrived)))
            while job.reason is None and time.monotonic() < until + 60: time.sleep(.01)
            written[k] += len(job.written)
            if job.reason != 'length': errors.append(f'{job.reason}: {job.error}')

    with Engine(model, tok, rows=ROWS) as engine:
        threads = [threading.Thread(target=client, args=(k, engine)) for k in range(ROWS)]
        cpu = time.process_time()
        for t in threads: t.start()
        for t in threads: t.join()
        cpu = time.process_time() - cpu
    first.sort()
    row = dict(shape=shape, seconds=seconds, requests=len(first), errors=errors,
               tokens=sum(written), slowest_over_mean=round(min(written)*ROWS/sum(written), 3),
               tokens_per_cpu_second=round(sum(written)/cpu),
               steps_to_first_token=dict(median=first[len(first)//2], largest=first[-1],
                                         above_two=sum(n > 2 for n in first)))
    print(row, flush=True)
    return row


class Stream:
    "An engine that is never idle: sixteen clients, each of whom asks again when its text is done"
    def __init__(self, model, tok, requests):
        self.engine, self.requests, self.n = Engine(model, tok, rows=ROWS), requests, 0
        for _ in range(ROWS):                      # one arrives every four steps
            self.ask()
            for _ in range(4): self.step()
        self.write(2*ROWS*statistics.mean(n for _, n in requests))

    def ask(self):
        ids, n = self.requests[self.n % len(self.requests)]
        self.engine.submit(ids, n, *FILTERS, seed=self.n)
        self.n += 1

    def step(self):
        before = self.engine.counts['length']
        self.engine.step()
        for _ in range(self.engine.counts['length'] - before): self.ask()

    def write(self, tokens):
        until = self.engine.counts['tokens'] + tokens
        while self.engine.counts['tokens'] < until: self.step()


def loop(model, requests):
    "The plain way: sixteen at a time, until the longest of them is done"
    for i in range(0, len(requests), ROWS):
        some = requests[i:i+ROWS]
        for _ in generate_rows(model, [ids for ids, _ in some], max(n for _, n in some), *FILTERS,
                               seed=0): pass


def cpu_of(f, *args):
    start = time.process_time()
    f(*args)
    return time.process_time() - start


def throughput(shape, pairs):
    model, tok = model_of(shape)
    rows = []
    for kind in ('equal', 'varied'):
        rng = random.Random(0)
        length = (lambda: 128) if kind == 'equal' else (lambda: rng.randint(32, 224))
        size = 32 if kind == 'equal' else None
        requests = [(prompt(rng, tok.vocab_size, size), length()) for _ in range(2*ROWS)]
        total, took = sum(n for _, n in requests), dict(engine=[], loop=[], inference_loop=[])
        stream = Stream(model, tok, requests)
        for i in range(pairs):
            ways = [('engine', stream.write, (total,)), ('loop', loop, (model, requests)),
                    ('inference_loop', torch.inference_mode()(loop), (model, requests))]
            for name, f, args in ways[::1 if i % 2 else -1]: took[name].append(cpu_of(f, *args))
        ratios, more = ([round(b/a, 3) for a, b in zip(took['engine'], took[way])]
                        for way in ('loop', 'inference_loop'))
        rows.append(dict(shape=shape, lengths=kind, tokens_a_turn=total,
                         engine_over_loop=statistics.median(ratios), pairs=ratios,
                         engine_over_inference_loop=statistics.median(more), inference_pairs=more,
                         tokens_per_cpu_second={k: round(total/statistics.median(v))
                                                for k, v in took.items()}))
        print(rows[-1], flush=True)
    return rows


def resident():
    "Bytes of this process in memory"
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*os.sysconf('SC_PAGE_SIZE')


def alive(): return sum(isinstance(o, Request) for o in gc.get_objects())


def memory(requests):
    "Resident megabytes after each tenth of the requests, which are short"
    model, tok = model_of('small')
    engine, rng, seen, sent = Engine(model, tok, rows=ROWS), random.Random(0), [], 0
    while len(seen) < 10:
        while sent < requests and len(engine.queue) < ROWS:
            engine.submit(prompt(rng, tok.vocab_size, rng.randint(1, 16)), rng.randint(1, 8),
                          *FILTERS, seed=sent)
            sent += 1
        busy = engine.step()
        done = engine.stats()['finished']
        if done >= (len(seen) + 1)*requests/10 or not busy:
            gc.collect()
            seen.append(round(resident()/1e6, 1))
    row = dict(requests=engine.stats()['finished'], megabytes=seen,
               grew_by=round(seen[-1] - seen[0], 1), stats=engine.stats(), requests_alive=alive())
    print(row, flush=True)
    return row


def vanish(clients):
    "Clients that read some pieces and go"
    model, tok = model_of('small')
    rng = random.Random(0)
    with Engine(model, tok, rows=ROWS, waiting=clients) as engine:
        def client(k):
            job = engine.submit(prompt(rng, tok.vocab_size, 8), 200, *FILTERS, seed=k)
            for _ in range(rng.randrange(4)): next(job)
            job.cancel()
        for start in range(0, clients, 50):
            threads = [threading.Thread(target=client, args=(start+k,)) for k in range(50)]
            for t in threads: t.start()
            for t in threads: t.join()
        while engine.stats()['cancelled'] < clients: time.sleep(.01)
        time.sleep(.1)
        gc.collect()
        row = dict(clients=clients, stats=engine.stats(), requests_alive=alive())
    print(row, flush=True)
    return row


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', default=PARTS)
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--pairs', type=int, default=5)
    p.add_argument('--requests', type=int, default=10000)
    p.add_argument('--shapes', nargs='+', default=['small', 'medium'], choices=list(SHAPES))
    p.add_argument('--name', default='serve')
    args = p.parse_args()
    torch.set_num_threads(1)
    for part in args.parts:
        if part == 'throughput': done = [r for s in args.shapes for r in throughput(s, args.pairs)]
        if part == 'streams': done = [streams(s, args.seconds) for s in args.shapes]
        if part == 'memory': done = [memory(args.requests)]
        if part == 'vanish': done = [vanish(args.requests//10)]
        keep(f'{args.name}_{part}', rows=done)

"""Decoding beside `transformers.generate` with its static cache: same weights and prompts, greedy.

The peer, a small LLaMA, is built at random, written as a checkpoint, and read by `gptlab.hub.load`;
equal logits are checked before anything is timed. The two alternate in one process and are measured
in CPU time, which other processes disturb least; a ratio is the median over pairs (above 1: ours is
faster). `plain` is `generate_rows(model, …)`, `compiled` the same with a `StaticDecoder`; what
compiling took is reported apart. Prefill is the time to the first token over that of a bare forward
pass on the same prompt. The bound is the time that it takes to read, at the measured bandwidth of
the memory, all weights and all keys and values once for each step. `busy` is true where other
processes ran beside this one: then seconds mean little, and ratios vary.

    python benchmarks/generate.py [--batches 1 8] [--contexts 128 1024] [--new 64] [--pairs 5]
                                  [--shapes small medium] [--name generate]
    python benchmarks/generate.py --parts      what the parts of the default's attention cost
"""
import argparse, itertools, os, statistics, tempfile, time, warnings
from functools import partial
from common import keep
import torch
from gptlab.attention import Attention
from gptlab.attentions import InductionValue, OpenAttention, PairValue, ValueEmbedding
from gptlab.generation import generate_rows, temperature
from gptlab.hub import load
from gptlab.model import GPT, GPTConfig
from gptlab.sampling import StaticDecoder
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings('ignore')
SHAPES = dict(
    small=dict(vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5,
               num_attention_heads=8, num_key_value_heads=4),
    medium=dict(vocab_size=4096, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
                num_attention_heads=6, num_key_value_heads=2))


def pair(shape, length):
    "The peer, and ours with its weights; the largest difference of their logits"
    torch.manual_seed(0)
    cfg = LlamaConfig(**SHAPES[shape], max_position_embeddings=length, initializer_range=.1,
                      tie_word_embeddings=False, bos_token_id=0, eos_token_id=None)
    peer = AutoModelForCausalLM.from_config(cfg, attn_implementation='sdpa').eval().float()
    with tempfile.TemporaryDirectory() as d:
        peer.save_pretrained(d)
        ours = load(d)
        ours = ours[0] if isinstance(ours, tuple) else ours
    ours = ours.eval().float()
    ids = torch.randint(0, cfg.vocab_size, (2, 64))
    with torch.no_grad(): gap = (ours(ids) - peer(ids).logits).abs().max().item()
    assert gap < 1e-3, f'the logits differ by {gap}: the two are not the same model'
    return peer, ours, gap


def makers(peer, models, ids, n):
    "For each way to write n tokens: a function that does"
    def theirs(n=n):
        with torch.no_grad():
            return peer.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False,
                                 cache_implementation='static', disable_compile=True,
                                 pad_token_id=0)[:,ids.shape[1]:]
    def ours(model):
        def f(n=n):
            new = [*generate_rows(model, ids.tolist(), n, temperature(0))]
            return torch.stack(new, 1)
        return f
    return dict(peer=theirs) | {k: ours(m) for k, m in models.items()}


def timed(f, *args):
    cpu, wall = time.process_time(), time.perf_counter()
    f(*args)
    return time.process_time() - cpu, time.perf_counter() - wall


def bandwidth():
    "Bytes per second that this machine reads, by summing 256 MB"
    a = torch.ones(64_000_000)
    a.sum()
    return a.nbytes/min(timed(a.sum)[0] for _ in range(5))


def step_bytes(model, B, T):
    "What a step must read: weights but for the embedding, and the keys and values of T tokens"
    a = model.blocks[0].attn
    weights = sum(p.nbytes for p in model.parameters()) - model.embed.weight.nbytes
    return weights + 2*B*T*a.K*a.D*4*len(model.blocks)


def measure(shape, B, T, n, pairs, speed):
    peer, ours, gap = pair(shape, 2048)
    ids = torch.randint(0, SHAPES[shape]['vocab_size'], (B, T))
    fast = StaticDecoder(ours, length=T+n)
    made = makers(peer, dict(plain=ours, compiled=fast), ids, n)
    compiling = timed(made['compiled'], 3)[1]
    texts = {k: f() for k, f in made.items()}
    same = {k: (t == texts['peer']).float().mean().item() for k, t in texts.items()}
    took = {k: [] for k in made}
    first = {k: [] for k in [*made, 'forward']}
    for i in range(pairs):
        for k in (list(made) if i % 2 else list(made)[::-1]):
            took[k].append(timed(made[k])[0])
            first[k].append(timed(made[k], 1)[0])
        with torch.no_grad(): first['forward'].append(timed(lambda: ours(ids))[0])
    step = {k: [(a - b)/(n-1) for a, b in zip(took[k], first[k])] for k in made}
    ratio = lambda of, k: round(statistics.median(p/o for p, o in zip(of['peer'], of[k])), 3)
    bound = step_bytes(ours, B, T + n/2)/speed
    row = dict(shape=shape, batch=B, context=T, new=n, logits_differ_by=gap,
               same_tokens={k: round(v, 3) for k, v in same.items()},
               compiling_seconds=round(compiling, 1))
    for k in ('plain', 'compiled'):
        row[k] = dict(
            speed_over_peer=ratio(took, k), decode_over_peer=ratio(step, k),
            pairs=[round(p/o, 3) for p, o in zip(took['peer'], took[k])],
            tokens_per_second=round(B/statistics.median(step[k])),
            share_of_memory_bound=round(bound/statistics.median(step[k]), 3))
    row['prefill_over_forward'] = round(statistics.median(
        a/b for a, b in zip(first['plain'], first['forward'])), 3)
    row['first_token_ms'] = {k: round(1000*statistics.median(v), 2) for k, v in first.items()}
    print(row, flush=True)
    return row


PARTS = dict(attention=(), ValueEmbedding=(ValueEmbedding,), PairValue=(PairValue,),
             InductionValue=(InductionValue,),
             all_three=(ValueEmbedding, PairValue, InductionValue))

def parts(B, T, n, rounds):
    "A step of decoding of the front page's model with each part, over that with none; in turn"
    torch.manual_seed(0)
    attn = {k: partial(OpenAttention, adds=[*v]) if v else Attention for k, v in PARTS.items()}
    models = {k: GPT(GPTConfig(vocab_size=2048, context_length=T+n, n_layers=4, n_heads=4,
                               d_model=128, attn=a)).eval() for k, a in attn.items()}
    made = makers(None, models, torch.randint(0, 2048, (B, T)), n)
    took = {k: [] for k in models}
    for i in range(rounds):
        for k in (list(models) if i % 2 else list(models)[::-1]):
            step = (timed(made[k])[0] - timed(made[k], 1)[0])/(n-1)
            if i: took[k].append(step)
    ms = {k: round(1000*statistics.median(t), 3) for k, t in took.items()}
    over = {k: round(statistics.median(a/b for a, b in zip(t, took['attention'])), 2)
            for k, t in took.items()}
    row = dict(batch=B, context=T, new=n, step_ms=ms, over_attention=over)
    print(row, flush=True)
    return row


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    p.add_argument('--contexts', type=int, nargs='+', default=[128, 1024])
    p.add_argument('--new', type=int, default=64)
    p.add_argument('--pairs', type=int, default=5)
    p.add_argument('--shapes', nargs='+', default=['small', 'medium'], choices=list(SHAPES))
    p.add_argument('--name', default='generate')
    p.add_argument('--parts', action='store_true')
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.parts:
        keep('generate_parts', rows=[parts(B, 64, 64, args.pairs+1) for B in args.batches])
        raise SystemExit
    speed, rows = bandwidth(), []
    for shape, B, T in itertools.product(args.shapes, args.batches, args.contexts):
        rows.append(measure(shape, B, T, args.new, args.pairs, speed))
        keep(args.name, transformers=transformers.__version__, busy=os.getloadavg()[0] > 1.5,
             gigabytes_per_second=round(speed/1e9, 2), rows=rows)

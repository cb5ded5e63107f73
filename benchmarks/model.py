"""Forward and training step beside transformers' model of the same shape and the same weights: time
as a ratio, and peak memory.

The peer is built at random, written as a checkpoint, and read by `gptlab.hub.load`; equal losses
are checked before anything is timed. Steps alternate between the two in one process; the ratio is
the median over pairs (above 1: ours is faster). Where compilation is measured, ours is compiled by
its own `compile`, the peer block by block and as a whole (`whole`), and the faster of those two is
what ours is beside. Memory that is freed stays with the process, as in `Trainer.fit`. Peak memory
is that of a process of its own.
`--memory` measures at a vocabulary of 50,257 what our two options save, and what they cost in time
against our own step without them.

    python benchmarks/model.py [--shapes gpt2_384 llama_384 gpt2_768]
                               [--modes 'eager fp32' 'compiled bf16'] [--pairs 12] [--name model]
    python benchmarks/model.py --memory
    python benchmarks/model.py --profile       where a step's time goes, in each of SHAPES and MODES
"""
import argparse, contextlib, copy, ctypes, gc, json, statistics, subprocess, sys, tempfile, time
import warnings
from collections import Counter
from common import keep
import torch
from torch.nn import functional as F
from gptlab.costs import hold_memory
from gptlab.hub import load
from gptlab.model import lm_loss
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings('ignore')
NO_DROP = dict(attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, bos_token_id=0, eos_token_id=0)
# name: (config of the peer, B, T)
SHAPES = dict(
    gpt2_384=(lambda: GPT2Config(vocab_size=4096, n_positions=256, n_layer=6, n_head=6, n_embd=384,
                                 **NO_DROP), 8, 256),
    gpt2_768=(lambda: GPT2Config(n_positions=256, n_layer=12, n_head=12, n_embd=768, **NO_DROP),
              2, 256),
    gpt2_384_50k=(lambda: GPT2Config(n_positions=256, n_layer=6, n_head=6, n_embd=384, **NO_DROP),
                  16, 256),
    llama_384=(lambda: LlamaConfig(vocab_size=4096, hidden_size=384, intermediate_size=1024,
                                   num_hidden_layers=6, num_attention_heads=6,
                                   num_key_value_heads=2, max_position_embeddings=256,
                                   tie_word_embeddings=False), 8, 256))
MODES = ['eager fp32', 'compiled fp32', 'eager bf16', 'compiled bf16']


def pair(shape):
    "The peer, and ours with its weights"
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(SHAPES[shape][0](), attn_implementation='sdpa')
    with tempfile.TemporaryDirectory() as d:
        peer.save_pretrained(d)
        ours = load(d)
        ours = ours[0] if isinstance(ours, tuple) else ours
    return dict(ours=ours.float().train(), peer=peer.float().train())

def losses(shape):
    _, B, T = SHAPES[shape]
    torch.manual_seed(1)
    r = torch.randint(0, SHAPES[shape][0]().vocab_size, (B, T+1))
    x, y = r[:,:-1].contiguous(), r[:,1:].contiguous()

    def ours(m):
        total, n = lm_loss(m, dict(ids=x, targets=y))
        return total/n

    def peer(m):
        return F.cross_entropy(m(x, use_cache=False).logits.flatten(0, 1).float(), y.flatten())

    return dict(ours=ours, peer=peer), B*T

def blocks(peer): return peer.transformer.h if hasattr(peer, 'transformer') else peer.model.layers

def cast(mode):
    return torch.autocast('cpu', torch.bfloat16) if 'bf16' in mode else contextlib.nullcontext()

def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start

def prepared(shape, mode):
    "Models by name, tokens a step, and functions that take a step, or a forward pass, of one"
    ms, (loss, tokens) = pair(shape), losses(shape)
    with torch.no_grad(): gap = abs(loss['ours'](ms['ours']) - loss['peer'](ms['peer'])).item()
    assert gap < 1e-4, f'the losses differ by {gap}: the two are not the same model'
    if 'compiled' in mode:
        ms['ours'].compile(dynamic=False)
        ms['whole'], loss['whole'] = copy.deepcopy(ms['peer']), torch.compile(loss['peer'],
                                                                              dynamic=False)
        for b in blocks(ms['peer']): b.compile(dynamic=False)
    opts = {k: torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for k, m in ms.items()}
    def forward(k):
        with torch.no_grad(), cast(mode): loss[k](ms[k])
    def step(k):
        with cast(mode): out = loss[k](ms[k])
        out.backward()
        opts[k].step()
        opts[k].zero_grad()
    return ms, tokens, gap, dict(step=step, forward=forward)

def measure(shape, mode, pairs):
    ms, tokens, gap, runs = prepared(shape, mode)
    row = dict(shape=shape, mode=mode, loss_difference=gap)
    for what, f in runs.items():
        took = {k: [] for k in ms}
        with hold_memory():
            for i in range(pairs+3):
                for k in (list(ms) if i % 2 else list(ms)[::-1]):
                    t = timed(lambda: f(k))
                    if i >= 3: took[k].append(t)
        peer = min((k for k in ms if k != 'ours'), key=lambda k: statistics.median(took[k]))
        ratios = sorted(p/o for o, p in zip(took['ours'], took[peer]))
        row[what] = dict(
            peer=peer,
            speed_over_peer=round(statistics.median(ratios), 3),
            quartiles=[round(ratios[len(ratios)//4], 3), round(ratios[-1-len(ratios)//4], 3)],
            tokens_per_second={k: round(tokens/statistics.median(t)) for k, t in took.items()})
    print(row, flush=True)
    return row

def profiled(shape, mode, steps):
    "Milliseconds of a training step by kind of work, for each model; steps in turn"
    from race import by_kind, KINDS
    from torch.profiler import ProfilerActivity, profile
    ms, _, _, runs = prepared(shape, mode)
    spent = {k: Counter() for k in ms}
    with hold_memory():
        for i in range(steps+3):
            for k in (list(ms) if i % 2 else list(ms)[::-1]):
                if i < 3:
                    runs['step'](k)
                    continue
                with profile(activities=[ProfilerActivity.CPU]) as seen: runs['step'](k)
                spent[k].update(by_kind(seen, KINDS | dict(optimizer=('aten::_fused_adam',))))
    row = dict(shape=shape, mode=mode, ms={
        k: {kind: round(us/steps/1000, 1) for kind, us in sorted(found.items())}
        for k, found in spent.items()})
    print(row, flush=True)
    return row

OPTIONS = dict(ours={}, chunked=dict(loss_chunk=256), remat=dict(remat=True),
               both=dict(loss_chunk=256, remat=True))

def options(shape, pairs):
    """Seconds of a step with each option over those of a step without, in turn; equal losses and
    gradients first"""
    m, (loss, _), took = pair(shape)['ours'], losses(shape), {k: [] for k in OPTIONS}
    def step(k):
        m.remat, m.loss_chunk = False, None
        for n, v in OPTIONS[k].items(): setattr(m, n, v)
        out = loss['ours'](m)
        out.backward()
        found = out.item(), m.head.weight.grad.norm().item()
        m.zero_grad()
        return found
    found = {k: step(k) for k in OPTIONS}
    assert all(abs(a - b) < 1e-4*abs(b) for f in found.values()
               for a, b in zip(f, found['ours'])), found
    for _ in range(pairs):
        for k in OPTIONS: took[k].append(timed(lambda: step(k)))
    return {k: round(statistics.median(a/b for a, b in zip(took[k], took['ours'])), 3)
            for k in OPTIONS}

def peak(shape, who):
    "Peak memory of a process that takes three training steps with one of the two"
    r = subprocess.run([sys.executable, __file__, '--one', who, '--shapes', shape],
                       capture_output=True, text=True, check=True)
    return json.loads(r.stdout.strip().splitlines()[-1])

def one(shape, who):
    side = 'peer' if who == 'peer' else 'ours'
    m, loss = pair(shape).pop(side), losses(shape)[0][side]
    for n, v in OPTIONS.get(who, {}).items(): setattr(m, n, v)
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    # Linux: forget the peak so far
    open('/proc/self/clear_refs', 'w').write('5')
    before = status('VmRSS')
    opt = torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True)
    for _ in range(3):
        loss(m).backward()
        opt.step()
        opt.zero_grad()
    print(json.dumps(dict(before_mb=before, peak_mb=status('VmHWM'))))

def status(key):
    return next(int(l.split()[1])//1024 for l in open('/proc/self/status') if l.startswith(key))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--shapes', nargs='+', default=['gpt2_384', 'llama_384'], choices=list(SHAPES))
    p.add_argument('--modes', nargs='+', default=MODES, choices=MODES)
    p.add_argument('--pairs', type=int, default=12)
    p.add_argument('--one', choices=[*OPTIONS, 'peer'])
    p.add_argument('--memory', action='store_true')
    p.add_argument('--profile', action='store_true')
    p.add_argument('--name', default='model')
    args = p.parse_args()
    if args.one:
        one(args.shapes[0], args.one)
        sys.exit()
    if args.profile:
        keep('model_profile', rows=[profiled(s, m, args.pairs) for s in args.shapes
                                    for m in args.modes])
        sys.exit()
    if args.memory:
        shape = 'gpt2_384_50k'
        memory, seconds = {who: peak(shape, who) for who in ('peer', *OPTIONS)}, options(shape, 4)
        print(memory, seconds)
        keep('model_memory', shape=shape, rows=16, tokens=256, memory=memory,
             step_seconds_over_ours=seconds)
        sys.exit()
    rows = [measure(s, m, args.pairs) for s in args.shapes for m in args.modes]
    memory = {s: {who: peak(s, who) for who in ('ours', 'peer')} for s in args.shapes}
    print(memory)
    keep(args.name, rows=rows, memory=memory)

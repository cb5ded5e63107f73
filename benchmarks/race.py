"""Which small language model learns most on two ordinary cores?  The front page's task, with rules.

The text is the front page's (38 plays of Shakespeare, split as it splits them); any tokenizer of at
most 4,096 ids; rows of 128 tokens; two threads; a budget in seconds of training, counted from the
first step, or in tokens. A model is scored on the whole validation text in bits per byte: in rows,
with a stride of 64, and prequentially (each row predicted, then learnt from: AdamW 3e-4). Seeds are
paired (equal batches where tokenizer and batch are equal), entries run in turn, all runs count.

    python benchmarks/race.py                                     ours, GPT-2 and LLaMA, 100 s each
    python benchmarks/race.py --nanochat DIR --nanogpt DIR        and what is in these clones
    python benchmarks/race.py --tune --tokens 3e5 --entries ours gpt2 nanochat
        every trial of the entries that are tuned, on a seed that no race uses
    python benchmarks/race.py --seconds 200 --seeds 3             a race, by the best settings known
    python benchmarks/race.py --calibrate                         what this machine can do
    python benchmarks/race.py --profile                           where a step's time goes
    python benchmarks/race.py --steps                             and what made a step faster
    python benchmarks/race.py --pace                              tokens per second, steps in turn
    python benchmarks/race.py --seconds 100 --paced               seconds by that pace
    python benchmarks/race.py --compile --bf16                    a second table: all compiled, in
                                                                  bfloat16 under autocast
    python benchmarks/race.py --cold --compile --bf16             how long each compiles, cold
    python benchmarks/race.py --counted --compile --bf16          a third: compiling is counted
    python benchmarks/race.py --text python --rows                outside the rules: a text that
                                                                  chose no part and no rate
    python benchmarks/race.py --tune --further --seconds 200 --paced --compile --bf16
        five more trials each, with the tokens of a long race, where decay begins to matter

On a machine whose speed changes from minute to minute the same seconds are not the same work. With
--paced the seconds become tokens by the pace of each entry, measured by single steps in turn on a
quiet machine, its median: a run is then the same whenever it is made.

A clone stays where it is and its commit goes into the result. One that is missing, or of another
shape than the entry expects, is named, and the others run. An entry that compiles does so before
its clock starts, and the seconds are told apart. Results are in results/race_*.json.
"""
import argparse, contextlib, importlib.util, itertools, json, os, statistics, subprocess, sys
import tempfile, time, traceback
from functools import partial
from pathlib import Path
from common import keep, RESULTS
import torch, torch._dynamo
from torch import nn
from torch.nn import functional as F
from gptlab import attention
from gptlab.all import *
from gptlab.checkpoints import SafeRun

CORES, ROW, STRIDE, LIMIT, RULED = 2, 128, 64, 4096, 'shakespeare'      # the rules
DEPTH, WIDTH, HEADS = 4, 128, 4                     # of every entry: the front page's
TUNING_SEED = 1234


# ---- an entry is a function (vocabulary, seed, settings) -> model, optimizer, schedule

class Peer(nn.Module):
    "A model of another house behind our contract: (nll (B,T), 0) where targets are given"
    def __init__(self, net, nll):
        super().__init__()
        self.net, self.nll = net, nll

    def forward(self, ids, targets=None, docs=None, pos=None):
        if targets is None: raise ValueError('a peer is trained and scored, and does not write')
        return self.nll(self.net, ids, targets, self.training), 0.


def front_page(vocab, seed, adds=(ValueEmbedding, PairValue, InductionValue), lr=.02, alr=1e-2,
               elr=.4, hlr=None, wd=.02):
    "Ours: model and optimizer of the front page; hlr is a rate of the head, wd decay of tables"
    attn = partial(OpenAttention, adds=[*adds])
    model = GPT(GPTConfig(vocab_size=vocab, context_length=ROW, n_layers=DEPTH, n_heads=HEADS,
                          d_model=WIDTH, attn=attn))
    head = [adamw(lr=hlr, at=is_head)] if hlr else []
    tables = adamw(lr=elr, betas=(.8, .995), wd=wd, at=embedding)
    return model, Opt(model, muon(lr=lr, at=hidden), tables, *head, adamw(lr=alr)), wsd()


# Ours in the first races, with two parts: tuned, and as the front page had it
two_parts = partial(front_page, adds=(ValueEmbedding, PreviousValue), elr=.2, wd=0.)


def before(vocab, seed, lr=.014, alr=1e-2, elr=None, hlr=None, betas=(.9, .95)):
    "Ours at first, with plain attention; elr and hlr are rates of embedding and head"
    model = GPT(GPTConfig(vocab_size=vocab, context_length=ROW, n_layers=DEPTH, n_heads=HEADS,
                          d_model=WIDTH))
    own = []
    if elr: own.append(adamw(lr=elr, betas=(.8, .995), at=embedding))
    if hlr: own.append(adamw(lr=hlr, betas=(.8, .96), at=is_head))
    return model, Opt(model, muon(lr=lr, at=hidden), *own, adamw(lr=alr, betas=betas)), wsd()


def is_head(name, p, module): return name == 'head.weight'


def gpt2(vocab, seed, lr=2e-3, warmup=.1, wd=0.):
    "A faithful small GPT-2, its MLP as wide as makes it as large as ours at a vocabulary of 2,048"
    model = GPT(gpt2_config(vocab_size=vocab, context_length=ROW, n_layers=DEPTH, n_heads=HEADS,
                            d_model=WIDTH, d_ff=729))
    opt = Opt(model, adamw(lr=lr, betas=(.9, .95), wd=wd, at=lambda n, p, m: p.ndim > 1),
              adamw(lr=lr, betas=(.9, .95)))
    return model, opt, wsd(warmup=warmup)


def llama(vocab, seed, lr=1e-3, wd=.1):
    "The LLaMA shape of transformers, with AdamW as its papers have it"
    from transformers import LlamaConfig, LlamaForCausalLM
    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=WIDTH, intermediate_size=341, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, max_position_embeddings=ROW))
    def nll(net, ids, targets, training):
        return token_nll(net(ids, use_cache=False).logits, targets)
    model = Peer(net, nll)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(.9, .95), weight_decay=wd)
    return model, opt, cosine(warmup=.02)


def token_nll(logits, targets): # (B,T,V), (B,T) -> (B,T)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='none',
                           ignore_index=-100).view_as(targets)


def nanogpt(vocab, seed, clone, lr=1e-3, beta2=.99, wd=.1, dropout=0.):
    "nanoGPT's model and optimizer, with the settings of its small character model"
    module = module_at(clone/'model.py')
    config = module.GPTConfig(block_size=ROW, vocab_size=vocab, n_layer=DEPTH, n_head=HEADS,
                              n_embd=WIDTH, dropout=dropout, bias=False)
    net = quietly(module.GPT, config)
    def nll(net, ids, targets, training):
        logits, loss = net(ids, targets.masked_fill(targets == -100, -1))
        # it gives a mean, which stands for every token while it trains; a score needs each one
        return loss.expand_as(targets) if training else token_nll(logits, targets)
    model = Peer(net, nll)
    opt = quietly(net.configure_optimizers, wd, lr, (.9, beta2), 'cpu')
    return model, opt, cosine(warmup=.05, end=.1)


def nanochat(vocab, seed, clone, matrix_lr=.02, embedding_lr=.2, unembedding_lr=.004, wd=0.,
             table_wd=None):
    "nanochat's model, optimizer and schedules; table_wd is a decay of its tables unlike its own"
    os.environ.setdefault('NANOCHAT_DTYPE', 'bfloat16' if COMPILED['bf16'] else 'float32')
    if str(clone) not in sys.path: sys.path.insert(0, str(clone))
    from nanochat.gpt import GPT as Net, GPTConfig as Config
    net = quietly(Net, Config(sequence_len=ROW, vocab_size=vocab, n_layer=DEPTH, n_head=HEADS,
                              n_kv_head=HEADS, n_embd=WIDTH, window_pattern='L'))
    quietly(net.init_weights)
    def nll(net, ids, targets, training):
        ignored = targets.masked_fill(targets == -100, -1)
        return net(ids, ignored, loss_reduction='none').view_as(targets)
    model = Peer(net, nll)
    opt = quietly(net.setup_optimizer, unembedding_lr, embedding_lr, matrix_lr, wd)
    rate = piecewise_linear((0, 0), (.02, 1), (.35, 1), (1, .05))
    momentum = piecewise_linear((0, .85/.95), (.2, .97/.95), (.35, .97/.95), (1, .9/.95))
    tables = {id(p) for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for group in opt.param_groups:
        if table_wd is not None and id(group['params'][0]) in tables:
            group['weight_decay'] = table_wd
        if group['kind'] != 'muon': continue
        group['schedule'] = dict(momentum=momentum, weight_decay=cosine(warmup=0.))
    return model, opt, rate


def module_at(path):
    "A module by its file; nothing is put into sys.modules"
    spec = importlib.util.spec_from_file_location(f'peer_{path.parent.name}', path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made                       # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def quietly(f, *args, **kw):
    "A peer's constructors print; a table of results has no room for it"
    with open(os.devnull, 'w') as nowhere:
        old, sys.stdout = sys.stdout, nowhere
        try: return f(*args, **kw)
        finally: sys.stdout = old


MAKERS = dict(ours=front_page, no_decay=front_page, rows_16=front_page, parts=two_parts,
              parts_8=two_parts,
              before=before, gpt2=gpt2, llama=llama, nanogpt=nanogpt, nanochat=nanochat)
CLONES = dict(nanogpt=['model.py'], nanochat=['nanochat/gpt.py', 'nanochat/optim.py'])
PLAIN = dict(vocab=2048, B=8)
# before any tuning; `no_decay` is ours as twelve trials found it, `rows_16` an earlier front page
SHAPE = dict(ours=dict(B=32), no_decay=dict(B=16, wd=0.), rows_16=dict(B=16, wd=0.))
COMPILED = dict(on=False, bf16=False)       # all entries, before their clocks start? in bfloat16?

# twelve trials for each entry that is tuned: its rates first, then batch and vocabulary beside the
# best of these; none may be added after a race was seen
OURS = [dict(), dict(elr=.2), dict(elr=.8), dict(lr=.014), dict(lr=.028), dict(hlr=.02),
        dict(hlr=.005), dict(alr=.02)]
RATES = dict(
    ours=OURS, no_decay=OURS,
    parts=[dict(), dict(elr=.1), dict(elr=.4), dict(lr=.014), dict(lr=.028), dict(hlr=.02),
           dict(hlr=.005), dict(alr=.02)],
    before=[dict(), dict(elr=.1), dict(elr=.2), dict(elr=.2, hlr=.01),
            dict(elr=.2, hlr=.01, lr=.02), dict(elr=.1, hlr=.01, lr=.02),
            dict(elr=.3, hlr=.01, lr=.02), dict(elr=.2, hlr=.02, lr=.02)],
    gpt2=[dict(), dict(lr=1e-3), dict(lr=3e-3), dict(lr=1.4e-3, warmup=.04), dict(wd=.1),
          dict(lr=3e-3, warmup=.2), dict(lr=4e-3, warmup=.2), dict(lr=3e-3, wd=.1)],
    nanochat=[dict(), dict(embedding_lr=.1), dict(embedding_lr=.4), dict(matrix_lr=.03),
              dict(matrix_lr=.014), dict(unembedding_lr=.008), dict(unembedding_lr=.002),
              dict(wd=.1)])
SHAPES = [dict(B=4), dict(B=16), dict(vocab=1024), dict(vocab=4096)]
OTHERS = dict(ours=[dict(B=8), dict(B=16), *SHAPES[2:]],        # of entries that begin with 32 or
              no_decay=[dict(B=8), dict(B=32), *SHAPES[2:]])    # 16 rows
# five more, by the tokens of 200 seconds, whole settings: ours had five (told in README.md) after a
# race had shown that its tables learn the plays by heart, so the others had as many
_CHAT, _GPT2 = dict(unembedding_lr=.002), dict(lr=3e-3, warmup=.2)
FURTHER = dict(
    nanochat=[_CHAT | dict(B=16), _CHAT | dict(B=32), _CHAT | dict(B=16, table_wd=.05),
              _CHAT | dict(B=32, table_wd=.05), _CHAT | dict(B=16, wd=.1)],
    gpt2=[_GPT2 | dict(vocab=4096), _GPT2 | dict(vocab=4096, wd=.1),
          _GPT2 | dict(vocab=4096, wd=.3), _GPT2 | dict(vocab=4096, B=16),
          _GPT2 | dict(vocab=4096, B=16, wd=.1)])


# ---- a run

def trainer(name, text, seed, settings, clone=None, scored=True, tokenizers={}):
    "The Trainer of an entry, ready to fit; tokenizers are trained once for each vocabulary"
    settings = PLAIN | SHAPE.get(name, {}) | settings
    vocab, B = settings.pop('vocab'), settings.pop('B')
    if vocab > LIMIT: raise ValueError(f'the rules allow {LIMIT:,} ids, not {vocab:,}')
    if vocab not in tokenizers: tokenizers[vocab] = BPE.train(text, vocab, inside='text')
    tok = tokenizers[vocab]
    train, valid = batches(text, tok, B=B, T=ROW, seed=seed)
    set_seed(seed)
    maker = partial(MAKERS[name], clone=clone) if clone else MAKERS[name]
    model, opt, schedule = maker(tok.vocab_size, seed, **settings)
    own = name == 'nanochat'                            # it clips nothing, and casts by itself
    clip, dtype = None if own else 1., torch.bfloat16 if COMPILED['bf16'] and not own else None
    return Trainer(model, opt, train, valid if scored else None, schedule=schedule, clip=clip,
                   eval_every=0, callbacks=[], compile=COMPILED['on'], dtype=dtype)


def one_run(name, text, seed, settings, budget, clone=None, all_scores=True):
    "Train an entry, then score it in rows, or in all three ways"
    set_threads()
    start = time.perf_counter()
    trainer(name, text, seed, settings, clone, scored=False).fit(1)     # what compiles, does
    ready = time.perf_counter() - start
    run = trainer(name, text, seed, settings, clone).fit(**in_tokens(name, settings, budget))
    if run.step < 1: raise ValueError(f'{budget} is too short for one step of {name}')
    tokens = tokenize(text.valid, run.tok)
    row = dict(entry=name, seed=seed, steps=run.step, tokens=run.tokens, rows=run.log[-1]['bpb'],
               seconds=round(run.seconds, 2), ready_seconds=round(ready, 2),
               parameters=sum(p.numel() for p in run.model.parameters()))
    if all_scores:
        row['stride'] = evaluate(run.model, strided(tokens, ROW, STRIDE), verbose=False).bpb
        rows = strided(tokens, ROW, STRIDE, B=1)
        row['prequential'] = prequential(run.model, rows, learner, verbose=False).bpb
    return row


def learner(model): return torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.)

def set_threads(): torch.set_num_threads(min(CORES, os.cpu_count() or 1))


# ---- the pace

def suffix(): return '_compiled'*COMPILED['on'] + '_bf16'*COMPILED['bf16']

def best_settings(seconds=0):
    """Of each entry, from its trials in this precision; else from those in float32

    From those of 50 seconds, or of 200, whichever are nearer to `seconds`."""
    files = ['race_tune', f'race_tune{suffix()}']
    if seconds > 125: files.append(f'race_tune_further{suffix()}')
    return {n: s for file in files for n, s in kept(file).get('best', {}).items()}

def shape_of(name, settings):
    return {k: (PLAIN | SHAPE.get(name, {}) | settings)[k] for k in PLAIN}

def measure_pace(text, entries, rounds, every):
    """Tokens per second of each entry: single steps of all in turn, the median of each

    At its plain shape and its best; `every`: at all that were tried."""
    set_threads()
    torch._dynamo.config.recompile_limit = 256          # many models in one process
    runs, ready, took = {}, {}, {}
    best = best_settings()
    tried  = lambda name: OTHERS.get(name, SHAPES) if every and name in RATES else []
    shapes = lambda name: [{}, best.get(name, {}), *tried(name)]
    for name, shape in [(name, shape_of(name, s)) for name in entries for s in shapes(name)]:
        if (name, *shape.values()) in runs: continue
        start = time.perf_counter()
        run = guarded(trainer, name, text, TUNING_SEED, shape, entries[name], False)
        if run is None: continue
        key = name, *shape_of(name, shape).values()
        runs[key] = run.fit(1)
        ready[key] = time.perf_counter() - start
    before = calibrate()
    with hold_memory():                                 # as `fit` does
        for i in range(-2, rounds):                     # two rounds first, to warm up
            for key, run in runs.items():
                start = run.seconds
                run.one_step()
                if i >= 0: took.setdefault(key, []).append(run.seconds - start)
            if i > 0 and i % 10 == 9: print(f'round {i + 1} of {rounds}', flush=True)
    rows = [dict(entry=name, vocab=vocab, B=B, rounds=rounds,
                 ready_seconds=round(ready[name, vocab, B], 1),
                 tokens_per_second=round(B*ROW/statistics.median(took[name, vocab, B]), 1),
                 quartiles=[round(1000*q, 1) for q in statistics.quantiles(took[name, vocab, B])])
            for name, vocab, B in runs]
    for row in rows: print(row)
    after = calibrate()
    keep(f'race_pace{suffix()}', rows=rows, calibration=dict(before=before, after=after),
         doubts=doubts(before, after))


def pace_of(name, settings):
    "Tokens per second of an entry's shape; what was not measured is an error"
    wanted = shape_of(name, settings)
    for row in kept(f'race_pace{suffix()}').get('rows', []):
        alike = MAKERS[row['entry']] is MAKERS[name]                         # of another shape
        if alike and wanted.items() <= row.items(): return row['tokens_per_second']
    raise SystemExit(f'the pace of {name} with {wanted} is not known: '
                     'python benchmarks/race.py --pace first')


def in_tokens(name, settings, budget):
    "A budget as `fit` takes it: paced seconds are tokens, and compiling may be among the seconds"
    (unit, amount), *counted = budget.items()
    if counted:
        cold = cold_seconds(name)
        if cold >= amount:
            raise SystemExit(f'{name} compiles for {cold:g} s, which leaves nothing of '
                             f'{amount:g} s')
        amount -= cold
    if unit != 'paced': return {unit: amount}
    return dict(tokens=round(amount*pace_of(name, settings)))


def fresh(*args, **env):
    "What this script prints last with these arguments, a number, in a process of its own"
    done = subprocess.run([sys.executable, __file__, *args], capture_output=True, text=True,
                          check=True, env=os.environ | env)
    return float(done.stdout.splitlines()[-1])


# ---- compiling, counted

def cold_seconds(name):
    "Seconds that an entry takes to compile with an empty cache (nanochat's optimizer always does)"
    for row in kept(f'race_cold{suffix()}').get('rows', []):
        if row['entry'] == name: return statistics.median(row['seconds'])
    raise SystemExit(f'how long {name} compiles is not known: '
                     'python benchmarks/race.py --cold first')

def cold_run(text, name, clone):
    "Seconds until the first step is done, less those of a second step, by an entry's best"
    set_threads()
    run = trainer(name, text, TUNING_SEED, best_settings().get(name, {}), clone, False)
    print(json.dumps(timed(partial(run.fit, 1)) - timed(run.one_step)))

def measure_cold(entries, turns=3):
    "Each entry in fresh processes with an empty compile cache, in turn"
    took = {name: [] for name in entries}
    flags = [f'--{k}' for k, on in zip(('compile', 'bf16'), COMPILED.values()) if on]
    for turn, (name, clone) in itertools.product(range(turns), entries.items()):
        if name not in took: continue                   # it failed in an earlier turn
        where = [f'--{name}', str(clone)] if clone else []
        with tempfile.TemporaryDirectory() as cache:
            try: seconds = fresh('--cold-run', name, *flags, *where, TORCHINDUCTOR_CACHE_DIR=cache)
            except subprocess.CalledProcessError as error:
                print(f'{name} failed and does not run on:\n{error.stderr}', file=sys.stderr)
                took.pop(name)
                continue
        took[name].append(round(seconds, 2))
        print(f'{turn + 1}. {name}: {took[name][-1]} s', flush=True)
    keep(f'race_cold{suffix()}', turns=turns,
         rows=[dict(entry=n, seconds=s) for n, s in took.items()])


# ---- a step, made faster one change after another

# (what is new, entry, compiled and in bfloat16?, what is not there yet)
STEPS = [('the first front page', 'before', False, 'hold'),
         ('in bfloat16, compiled', 'before', True, 'hold loss lines'),
         ('today\'s parts, 32 rows', 'ours', True, 'hold loss lines'),
         ('freed memory stays', 'ours', True, 'loss lines'),
         ('head and loss compiled', 'ours', True, 'lines'),
         ('plain lines of attention', 'ours', True, '')]

def one_rung(text, i):
    "Tokens per second of one of STEPS, in a process of its own"
    what, name, fast, without = STEPS[i]
    COMPILED.update(on=fast, bf16=fast)
    set_threads()
    if 'lines' in without: attention._SHORT_ROW = 0      # then the kernel, in float32
    if 'loss' in without: GPT.compile = blocks_alone
    held = contextlib.nullcontext if 'hold' in without else hold_memory
    SafeRun._holding_memory = lambda self: contextlib.nullcontext()
    with held():
        run = trainer(name, text, TUNING_SEED, {}, None, False).fit(8)
        took = [timed(run.one_step) for _ in range(30)]
    print(json.dumps(run.tokens/run.step/statistics.median(took)))

def blocks_alone(model, **kw):
    for block in model.blocks: block.compile(**kw)

def measure_steps(turns):
    "Each of STEPS in a fresh process, in turn; beside the first one of its turn"
    rates = [[] for _ in STEPS]
    for turn in range(turns):
        for i, (what, *_) in enumerate(STEPS):
            rates[i].append(fresh('--rung', str(i)))
            print(f'{turn + 1}. {what}: {rates[i][-1]:,.0f} tokens a second', flush=True)
    rows = [dict(what=what, tokens_per_second=[round(x, 1) for x in r],
                 ratio=round(statistics.median(x/y for x, y in zip(r, rates[0])), 3))
            for (what, *_), r in zip(STEPS, rates)]
    for row in rows: print(row)
    keep('race_steps', turns=turns, rows=rows)


# ---- the profile of a step

KINDS = dict(products=('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm'),
             attention=('aten::_scaled_dot_product',), loss=('aten::_log_softmax', 'aten::nll'),
             copies=('aten::copy_', 'aten::fill_', 'aten::zero_', 'aten::cat', 'aten::index'))

def kind_of(op, kinds):
    "A kind of work by the name of torch's operation: the longest prefix that fits counts"
    fits = [(len(start), kind) for kind, starts in kinds.items() for start in starts
            if op.startswith(start)]
    if fits: return max(fits)[1]
    if 'CompiledFxGraph' in op: return 'compiled'
    return 'elementwise' if op.startswith('aten::') else 'python'

def by_kind(seen, kinds=KINDS):
    "Microseconds of the processor by kind of work, of what a profiler has seen"
    spent = {}
    for event in seen.key_averages():
        kind = kind_of(event.key, kinds)
        spent[kind] = spent.get(kind, 0.) + event.self_cpu_time_total
    return spent


def measure_profile(text, entries, steps):
    "Where a step's time goes on one thread, and what part of the machine's arithmetic it uses"
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    peak = max(2*1024**3/timed(lambda: a @ a) for _ in range(20))
    rows = []
    for name in entries:
        run = guarded(trainer, name, text, TUNING_SEED, {}, entries[name], False)
        if run is None: continue
        run.fit(1)
        with FlopCounterMode(display=False) as counted: run.one_step()
        with hold_memory():                             # as `fit` does
            run.one_step()
            plain = statistics.median(timed(run.one_step) for _ in range(steps))
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                for _ in range(steps): run.one_step()
        spent = by_kind(seen)
        whole = sum(spent.values())
        opt = sum(e.cpu_time_total for e in seen.key_averages()
                  if e.key.startswith('Optimizer.step'))
        rows.append(dict(
            entry=name, step_ms=round(1000*plain, 1), gflop=round(counted.get_total_flops()/1e9, 2),
            of_peak=round(counted.get_total_flops()/plain/peak, 3), optimizer=round(opt/whole, 3),
            **{k: round(v/whole, 3) for k, v in sorted(spent.items(), key=lambda kv: -kv[1])}))
        print(rows[-1], flush=True)
    keep(f'race_profile{suffix()}', peak_gflops=round(peak/1e9, 1), steps=steps, rows=rows)


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


# ---- the machine

def calibrate(seconds=10.):
    "Products of matrices, memory, calls of Python: what this machine does in about ten seconds"
    set_threads()
    a, b = torch.randn(1024, 1024), torch.randn(1024, 512)
    big, to = torch.randn(2**25), torch.empty(2**25)    # 128 MB
    def rate(f, amount):
        f()
        best, end = 0., time.perf_counter() + seconds/3
        while time.perf_counter() < end:
            start = time.perf_counter()
            f()
            best = max(best, amount/(time.perf_counter() - start))
        return best
    return dict(gflops=round(rate(lambda: a @ b, 2*1024*1024*512/1e9), 1),
                copied_gb=round(rate(lambda: to.copy_(big), 2*4*2**25/1e9), 2),
                million_calls=round(rate(lambda: [len(()) for _ in range(10**5)], .1), 2),
                load=round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
                cores=os.cpu_count())


def doubts(before, after):
    "Why the seconds of a race may not mean what they say"
    found = []
    if before['cores'] < CORES:
        found.append(f'the rules want {CORES} cores, this machine has {before["cores"]}')
    if (before['load'] or 0) > .5:
        found.append(f'the machine was busy before it began, a load of {before["load"]}')
    change = after['gflops']/before['gflops'] - 1
    if abs(change) > .1:
        found.append(f'products of matrices ran at {change:+.0%} afterwards: another program, '
                     'or the processor slowed down')
    return found


# ---- races and trials

def find_clones(args):
    "{entry: folder or None}, without what cannot be run, which is named"
    found = {}
    for name in args.entries:
        if name not in CLONES:
            found[name] = None
            continue
        path = getattr(args, name)
        if not path: continue
        missing = [f for f in CLONES[name] if not (Path(path).expanduser()/f).is_file()]
        if missing:
            print(f'{name} does not run: {path} holds no {", ".join(missing)}', file=sys.stderr)
        else: found[name] = Path(path).expanduser().resolve()
    return found


def commit_of(clone):
    "The commit of a clone; '' for a folder without one"
    done = subprocess.run(['git', '-C', str(clone), 'rev-parse', 'HEAD'], capture_output=True,
                          text=True)
    return done.stdout.strip()


def guarded(f, name, *args, **kw):
    "A run, or None where a peer fails in its own way: it is named, and the others go on"
    try: return f(name, *args, **kw)
    except (ImportError, AttributeError, TypeError, RuntimeError, AssertionError) as error:
        if name == 'ours': raise
        traceback.print_exc()
        print(f'{name} failed and does not run on: {error}', file=sys.stderr)


def tune(text, entries, budget, further=False):
    """Every trial of each entry, in turn, then the best of its rates with other shapes; goes on

    `further`: those of FURTHER, and no shapes."""
    file = f'race_tune{"_further"*further}{suffix()}'
    rates = FURTHER if further else RATES
    old = kept(file)
    others = [r for r in old.get('trials', []) if r['budget'] != budget]
    rows = [r for r in old.get('trials', []) if r['budget'] == budget]
    def trial(name, settings):
        if any((r['entry'], r['settings']) == (name, settings) for r in rows): return
        row = guarded(one_run, name, text, TUNING_SEED, settings, budget, entries[name], False)
        if row is None: return
        commit = commit_of(entries[name]) if entries[name] else ''
        rows.append(row | dict(settings=settings, budget=budget, commit=commit))
        print(name, settings, f'{row["rows"]:.4f} in rows, {row["seconds"]:.0f} s', flush=True)
        best = old.get('best', {}) | {r['entry']: best_of(r['entry']) for r in rows}
        keep(file, seed=TUNING_SEED, trials=others + rows, best=best)
    def best_of(name, only=None):
        own = [r for r in rows if r['entry'] == name and (only is None or r['settings'] in only)]
        return min(own, key=lambda r: r['rows'])['settings'] if own else {}
    tuned = [n for n in entries if n in rates]
    for i in range(max(map(len, rates.values()))):
        for name in tuned: trial(name, rates[name][i])
    for i, name in itertools.product(range(0 if further else len(SHAPES)), tuned):
        trial(name, best_of(name, RATES[name]) | OTHERS.get(name, SHAPES)[i])
    print('best:', json.dumps({n: best_of(n) for n in tuned}))


def kept(name):
    "An earlier result, or nothing"
    file = RESULTS/f'{name}.json'
    return json.loads(file.read_text()) if file.exists() else {}


def same_run(name, old, best, commits):
    "Would an entry run now as it did: with these settings, from this commit?"
    return (old['settings'].get(name, {}) == best.get(name, {})
            and old['commits'].get(name) == commits.get(name))


def race(text, entries, budget, seeds, all_scores):
    """All entries in turn, seed after seed, by the best settings that are known

    With equal tokens or paced seconds it goes on where it was ended."""
    (unit, amount), *counted = budget.items()
    best = best_settings(0 if unit == 'tokens' else amount)
    other = '' if text.name == RULED else f'_{text.name}'
    file = f'race_{unit}_{amount:g}{"_counted" if counted else ""}{other}{suffix()}'
    before, old = calibrate(), kept(file) if unit != 'seconds' else {}
    commits = old.get('commits', {}) | {n: commit_of(c) for n, c in entries.items() if c}
    rows = [r for r in old.get('runs', []) if same_run(r['entry'], old, best, commits)
            and (not all_scores or 'prequential' in r)]
    result = lambda: dict(text=text.name, budget=budget, settings=best, runs=rows,
                          commits=commits)
    for seed in range(seeds):
        for name in list(entries):
            if any((r['entry'], r['seed']) == (name, seed) for r in rows): continue
            settings = best.get(name, {})
            row = guarded(one_run, name, text, seed, settings, budget, entries[name], all_scores)
            if row is None: entries.pop(name)
            else:
                rows.append(row)
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()},
                      flush=True)
                if unit != 'seconds': keep(file, **result())
    after = calibrate()
    runs = Runs([dict(variant=r['entry'], seed=r['seed'],
                      log=[{k: v for k, v in r.items() if k not in ('entry', 'seed')}])
                 for name in entries for r in rows if r['entry'] == name and r['seed'] < seeds])
    tables = {}
    for score in ('rows', 'stride', 'prequential') if all_scores else ('rows',):
        if 'ours' in entries and len(entries) > 1 and seeds > 1:
            tables[score] = repr(runs.table(score, vs='ours'))
            print(f'\n{score}, bits per byte\n{tables[score]}')
    why = doubts(before, after)
    for line in why: print(f'NOT QUIET: {line}', file=sys.stderr)
    keep(file, **result(), doubts=why, calibration=dict(before=before, after=after),
         tables=tables)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tune', action='store_true', help='try settings; no race')
    p.add_argument('--pace', action='store_true', help='measure tokens per second; no race')
    p.add_argument('--profile', action='store_true', help='profile a step; no race')
    p.add_argument('--steps', action='store_true', help='what made a step faster; no race')
    p.add_argument('--rung', type=int, choices=range(len(STEPS)), help='one line of --steps')
    p.add_argument('--every', action='store_true', help='of --pace: all shapes that are tried')
    p.add_argument('--rounds', type=int, default=40, help='of --pace, --profile: steps of each')
    p.add_argument('--compile', action='store_true', help='compile every entry first')
    p.add_argument('--bf16', action='store_true', help='multiply in bfloat16, all entries')
    p.add_argument('--paced', action='store_true', help='seconds by the pace that --pace measured')
    p.add_argument('--cold', action='store_true', help='measure compiling; no race')
    p.add_argument('--cold-run', choices=list(MAKERS), help='one line of --cold')
    p.add_argument('--counted', action='store_true', help='compiling is among the seconds')
    p.add_argument('--further', action='store_true', help='of --tune: five trials that followed')
    p.add_argument('--calibrate', action='store_true', help='measure the machine; no race')
    p.add_argument('--seconds', type=float, help='of training; 100 unless --tokens is given')
    p.add_argument('--tokens', type=float)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--rows', action='store_true', help='score in rows alone')
    p.add_argument('--entries', nargs='+', default=list(MAKERS), choices=list(MAKERS))
    p.add_argument('--text', default=RULED, help='of a race: another text, by name or path')
    p.add_argument('--nanogpt', help='a clone of karpathy/nanoGPT')
    p.add_argument('--nanochat', help='a clone of karpathy/nanochat')
    args = p.parse_args(argv)
    if args.seconds and args.tokens: p.error('a budget is in --seconds or in --tokens, not in both')
    if args.paced and args.tokens: p.error('--paced is about seconds: --seconds, not --tokens')
    if args.counted and args.tokens: p.error('--counted is about seconds, not about --tokens')
    if args.rounds < 2: p.error('--rounds is at least 2')
    if args.seeds < 1: p.error('--seeds is at least 1')
    if (args.seconds or args.tokens or 1) <= 0: p.error('a budget is above 0')
    if args.calibrate: return print(json.dumps(calibrate(), indent=1))
    COMPILED.update(on=args.compile, bf16=args.bf16)
    unit = 'tokens' if args.tokens else 'paced' if args.paced else 'seconds'
    budget = {unit: args.tokens or args.seconds or 100.}
    if args.counted: budget['counted'] = True
    entries = find_clones(args)
    text = corpus(args.text)
    if args.text == RULED != text.name:
        p.error(f'the rules want the plays, and only {text.name} is here')
    if text.name != RULED and (args.tune or args.pace or args.profile or args.cold or args.steps):
        p.error(f'--text is of a race; the rest is by the plays, not by {text.name}')
    if args.steps: measure_steps(max(3, args.rounds//8))
    elif args.rung is not None: one_rung(text, args.rung)
    elif args.cold_run: cold_run(text, args.cold_run, entries.get(args.cold_run))
    elif args.cold: measure_cold(entries)
    elif args.pace: measure_pace(text, entries, args.rounds, args.every)
    elif args.profile: measure_profile(text, entries, args.rounds)
    elif args.tune: tune(text, entries, budget, args.further)
    else: race(text, entries, budget, args.seeds, not args.rows)


if __name__ == '__main__': main()

"""Facts about training: losses, weights, resumed runs, the content of checkpoints, samples."""
import json
import math
from pathlib import Path

from gptlab.all import *
from gptlab.cli import front_page_run
from gptlab.generation import pad_left

from facts_models import (computed_again, gradient_model, hlb_model, in_chunks, lab_model,
                          logits_of, recipe, slm_model, weights_of)
from registry import digest, exact, fact, once, unnamed

CLOCK = ('seconds', 'tokens_per_second', 'wait', 'memory', 'mfu')
SMALL = dict(vocab_size=257, context_length=32, n_layers=2, n_heads=2, d_model=24)


@once
def text():
    return make_stories(80, seed=4)


def tiny_batches(B=4, T=32, **kw):
    return batches(text(), ByteTokenizer(), B=B, T=T, seed=1, **dict(valid_rows=8) | kw)


def mixed(model):
    return Opt(model, muon(at=hidden, wd=.1), adamw(1e-2, wd=.01))


def mixed_exact(model):
    return Opt(model, muon(at=hidden, wd=.1, precision='float32'), adamw(1e-2, wd=.01))


def mixed_half(model):
    return Opt(model, muon(at=hidden, precision='bfloat16'), adamw(1e-2))


def plain(model):
    return Opt(model, adamw(1e-2))


def run_of(cfg=None, opt=plain, data=None, stream=None, seed=0, **kw):
    "A trainer of a small model, from a seed, ready to fit"
    set_seed(seed)
    model = GPT(GPTConfig(**SMALL) if cfg is None else cfg)
    train, valid = tiny_batches(**data or {}) if stream is None else stream()
    kw = dict(callbacks=[], device='cpu', eval_every=10) | kw
    return Trainer(model, opt(model), train, valid, **kw)


LATER = {'flops'}                                       # columns that older trees lack

def columns(log):
    "A log by columns, without the clock; a line that lacks a number has None"
    names = dict.fromkeys(k for row in log for k in row if k not in CLOCK and k not in LATER)
    names = [n for n in names if not n.startswith('lr ')]                # of each group
    return {n: [exact(row.get(n)) for row in log] for n in names}


def run_facts(run):
    found = dict(log=columns(run.log), weights=weights_of(run.model), logits=logits_of(run.model))
    found |= dict(counts=exact([run.step, run.tokens, run.flops]))
    found['random'] = digest(torch.get_rng_state())
    return found | dict(optimizer=digest(unnamed(run.opt.state_dict()['state'])))


def trained(steps=24, **kw):
    return run_facts(run_of(**kw).fit(steps))


def small(**kw):
    return GPTConfig(**SMALL | kw)


RUNS = dict(
    adamw=lambda: trained(),
    sgd=lambda: trained(opt=lambda m: Opt(m, sgd(.3, momentum=.9, wd=.01))),
    muon=lambda: trained(opt=mixed),
    muon_exact=lambda: trained(opt=mixed_exact),
    muon_half=lambda: trained(opt=mixed_half),
    of_torch=lambda: trained(opt=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)),
    accumulated=lambda: trained(accumulate=2, opt=mixed_exact),
    bfloat16=lambda: trained(dtype=torch.bfloat16),
    dropout=lambda: trained(cfg=small(dropout=.2)),
    documents=lambda: trained(data=dict(docs=True)),
    best_fit=lambda: trained(data=dict(docs=True, pack=best_fit)),
    windows=lambda: trained(data=dict(pack=sliding_windows)),
    unclipped=lambda: trained(clip=None),
    clipped=lambda: trained(clip=.1),
    linear=lambda: trained(schedule=linear(.1)),
    cosine=lambda: trained(schedule=cosine(.1, 0.)),
    inverse_root=lambda: trained(schedule=inverse_sqrt(.1)),
    constant=lambda: trained(schedule=constant()),
    momentum_schedule=lambda: trained(opt=mixed, schedule=dict(lr=wsd(), momentum=linear())),
    group_schedule=lambda: trained(opt=lambda m: Opt(m, adamw(1e-2, wd=.1, schedule=cosine()))),
    by_tokens=lambda: run_facts(run_of().fit(tokens=2500)),
    by_operations=lambda: run_facts(run_of().fit(flops=3e9)),
    in_two_fits=lambda: run_facts(run_of().fit(8).fit(20)),
    validated_often=lambda: trained(eval_every=5, cfg=small(dropout=.1)),
    a_list=lambda: trained(stream=listed),
    without_validation=lambda: trained(stream=lambda: (tiny_batches()[0], None)),
    skipped_steps=lambda: trained(loss=sometimes_nan(), on_nan='skip'),
    own_loss=lambda: trained(loss=smoothed),
    remembered=lambda: trained(opt=mixed_exact, cfg=small(tie=True, softcap=15.)),
    growing=lambda: trained(callbacks=[Grow({0: (8, 8), 6: (4, 16), 14: (2, 32)})]),
    growing_ahead=lambda: trained(stream=ahead, callbacks=[Grow({0: (8, 8), 9: (2, 32)})]),
    in_a_thread=lambda: trained(stream=ahead),
    gpt2=lambda: trained(cfg=gpt2_config(**SMALL)),
    llama=lambda: trained(cfg=llama_config(**SMALL | dict(d_ff=48))),
    parallel=lambda: trained(cfg=small(block=ParallelBlock)),
    scaled=lambda: trained(cfg=small(block=ScaledBlock, mlp=GLU, init=nanochat_init)),
    latent=lambda: trained(cfg=small(attn=MLA)),
    delta=lambda: trained(cfg=small(attn=DeltaAttention)),
    experts=lambda: trained(cfg=small(mlp=partial(MoE, n_experts=4))),
    experts_steered=lambda: trained(opt=lambda m: Opt(m, balance_experts(), adamw(1e-2)),
                                    cfg=small(mlp=partial(MoE, gate='sigmoid', balance='bias'))),
    depths=lambda: trained(cfg=small(block=[Block, MoD])),
    rates_for_width=lambda: trained(cfg=small(init=mup_init), opt=for_width),
    chunks=lambda: memory_run(in_chunks),
    again=lambda: memory_run(computed_again),
    corrections=lambda: corrected_run(),
    recipe_slm=lambda: trained(12, cfg=slm_model(vocab_size=257)),
    recipe_gpt_lab=lambda: trained(12, cfg=lab_model(vocab_size=257), opt=groups_of_lab),
    recipe_gradientlab=lambda: trained(12, cfg=gradient_model(vocab_size=257)),
    recipe_hlb_gpt=lambda: trained(12, cfg=hlb_model(vocab_size=257), opt=rates_of_hlb))


@fact('training', RUNS)
def training(make):
    return make()


def listed():
    train, valid = tiny_batches()
    return [next(train) for _ in range(5)], valid


def ahead():
    return fast_batches(text(), ByteTokenizer(), B=4, T=32, size=16, valid_rows=8)


def sometimes_nan():
    "A loss that is no number at its fourth and ninth call"
    calls = []
    def loss(model, batch):
        calls.append(1)
        total, weight = lm_loss(model, batch)
        return (total*math.nan if len(calls) in (4, 9) else total), weight
    return loss


def smoothed(model, batch):
    "A mix of the usual loss and an even guess"
    y = model(batch['ids']).log_softmax(-1)
    used = batch['targets'] != -100
    nll = -y.gather(-1, batch['targets'].clamp(min=0)[...,None])[...,0]
    return ((.9*nll - .1*y.mean(-1))*used).sum(), used.sum()


def for_width(model):
    return Opt(model, *mup_groups(model, small(d_model=12, init=mup_init), 1e-2))


def groups_of_lab(model):
    ends = lambda *w: lambda name, p, m: name.endswith(w)
    return Opt(model, adamw(.3, (.8,.995), at=ends('embed.weight')),
               adamw(.15, (.8,.995), at=ends('table.weight')),
               adamw(.008, (.8,.96), at=ends('head.weight')),
               adamw(.005, (.8,.95), at=ends('.h')),
               adamw(.5, (.96,.95), at=ends('.z')), muon(.02))


def rates_of_hlb(model, lr=1e-3):
    named = lambda *words: lambda name, p, m: any(w in name for w in words)
    group = partial(adamw, eps=1e-9)
    return Opt(model, group(100*lr, (.9,.95), at=named('pos.m')),
               group(32*lr, (.9,.95), at=named('norm', 'embed')),
               group(2*lr, (.6,.95), at=named('head')), group(lr, (.9,.95)))


def memory_run(change):
    run = run_of(cfg=small(dropout=.1))
    change(run.model)
    return run_facts(run.fit(12))


def corrected_run():
    set_seed(0)
    model = GPT(small())
    add_lora(model, 4)
    train, valid = tiny_batches()
    run = Trainer(model, plain(model), train, valid, callbacks=[], device='cpu').fit(12)
    return run_facts(run) | dict(kept=digest(list(lora_state(model).values())))


@fact('front page run')
def front_page():
    c = Corpus('mine', *split_docs(make_stories(200, seed=9)))
    run = front_page_run(c, vocab=300, callbacks=[], device='cpu').fit(2)
    return run_facts(run) | dict(size=run.model.n_params())


@fact('layers are watched')
def watched():
    watch = LayerStats(every=3)
    run_of(callbacks=[watch]).fit(8)
    return digest([exact(list(r.values())) for r in watch.rows])


@fact('columns of a log')
def series():
    run = run_of(eval_every=4).fit(12)
    return exact([run.series('valid'), run.series('loss', 'tokens')[0], run.progress])


# ---- resumed runs

RESUMED = dict(
    plain=lambda: dict(opt=mixed_exact),
    muon=lambda: dict(opt=mixed, data=dict(docs=True)),
    accumulated=lambda: dict(accumulate=2, cfg=small(dropout=.1)),
    best_fit=lambda: dict(data=dict(pack=best_fit)),
    bfloat16=lambda: dict(dtype=torch.bfloat16, opt=mixed_exact),
    in_a_thread=lambda: dict(stream=ahead),
    experts=lambda: dict(cfg=small(mlp=MoE)),
    of_torch=lambda: dict(opt=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2)))


@fact('resumed', RESUMED)
def resumed(make):
    whole = run_facts(run_of(**make()).fit(12))
    first = run_of(**make(), dir='run', save_every=5)
    first.fit(12)
    second = run_of(**make(), dir='run', seed=99)
    second.resume(checkpoints_in('run')[0]).fit()
    again = run_facts(second)
    return again | dict(same=[k for k in whole if whole[k] == again[k]])


# ---- what a checkpoint holds

def without_clock(tree):
    "Saved JSON without what depends on the clock, the machine or the run"
    if isinstance(tree, dict):
        gone = (*CLOCK, 'info', 'run_id', 'name')
        return {k: sorted(v) if k == 'rng' else without_clock(v)
                for k, v in tree.items() if k not in gone}
    if isinstance(tree, list):
        return [without_clock(v) for v in tree]
    return exact(tree)


def checkpoint_facts(path):
    from safetensors.torch import load_file
    path, found = Path(path), {}
    found['files'] = sorted(p.name for p in path.iterdir())
    for file in sorted(path.glob('*.safetensors')):
        found[file.stem + ' tensors'] = {n: digest(t) for n, t in sorted(load_file(file).items())}
    for file in sorted(path.glob('*.json')):
        if file.stem != 'manifest':
            found[file.stem] = without_clock(json.loads(file.read_text(encoding='utf-8')))
    return found


CHECKPOINTS = dict(
    plain=lambda: dict(opt=mixed_exact, data=dict(docs=True)),
    tied=lambda: dict(cfg=gpt2_config(**SMALL), accumulate=2, schedule=cosine()),
    experts=lambda: dict(cfg=small(mlp=[partial(MoE, balance='bias'), GLU]), eval_every=2))


@fact('checkpoint', CHECKPOINTS)
def checkpoint(make):
    run_of(**make(), dir='run').fit(4)
    return checkpoint_facts(latest_checkpoint('run'))


@fact('checkpoint is read')
def read_checkpoint():
    run_of(dir='run', save_every=1).fit(4)
    model, tok = load_model('run')
    kept = [p.name for p in checkpoints_in('run')]
    return dict(logits=logits_of(model), kept=kept, ids=tok.encode('né'))


# ---- samples

@once
def writer():
    "A model that has learnt a little"
    cfg = small(context_length=48, n_heads=4, d_model=48)
    return run_of(opt=mixed_exact, cfg=cfg, data=dict(B=8)).fit(150).model


@once
def word_writer():
    tok = BPE.train(text(), 300)
    train, valid = batches(text(), tok, B=8, T=32, seed=1, valid_rows=8)
    set_seed(0)
    model = GPT(small(vocab_size=300, d_model=48))
    Trainer(model, mixed_exact(model), train, valid, callbacks=[], device='cpu').fit(150)
    return model, tok


SAMPLERS = dict(
    greedy=lambda: [temperature(0)],
    warm=lambda: [temperature(.8)],
    hot=lambda: [temperature(1.5)],
    top_k=lambda: [top_k(5)],
    top_p=lambda: [top_p(.7)],
    min_p=lambda: [min_p(.2)],
    several=lambda: [temperature(.9), top_k(20), top_p(.9), min_p(.01)],
    free=lambda: [])


@fact('sample', SAMPLERS)
def sampled(make):
    ids = list(generate(writer(), list(b'Once upon'), 60, *make(), seed=7))
    prompts = [[1, 2, 3], list(b'a long prompt of its own'), [256]]
    rows = torch.stack(list(generate_rows(writer(), prompts, 25, *make(), seed=8)))
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(3))
    drawn = [draw_token(logits, make(), make_generator(s)) for s in range(5)]
    return dict(text=ids, rows=digest(rows), drawn=digest(drawn))


@fact('text')
def texts():
    model, tok = word_writer()
    found = dict(bytes=''.join(generate_text(writer(), ByteTokenizer(), 'She ', 40, top_k(1))))
    found['greedy'] = ''.join(generate_text(model, tok, 'A', 30, temperature(0)))
    prompts = enumerate(('', 'He ', 'Once upon'))
    pieces = [generate_text(model, tok, p, 30, temperature(.8), seed=i) for i, p in prompts]
    return found | dict(drawn=[list(p) for p in pieces])


@fact('text that shows progress')
def progress_sample():
    return sample_from(run_of().fit(3), 'Once', 20)


@fact('text that ends')
def stopped():
    ids = list(generate(writer(), list(b'Once'), 200, top_k(3), seed=1, stop=[ord('e'), 256]))
    return [len(ids), digest(ids)]


@fact('rows padded on the left')
def left():
    return digest(pad_left([[1, 2, 3], [4]]), pad_left([[5, 6]]))


# ---- runs that another tree takes up again; see crossing.py

RUNS_TO_CROSS = dict(
    plain=lambda: dict(opt=mixed_exact, data=dict(docs=True)),
    gpt2=lambda: dict(cfg=gpt2_config(**SMALL), accumulate=2),
    llama=lambda: dict(cfg=llama_config(**SMALL | dict(d_ff=48)), schedule=cosine()),
    experts=lambda: dict(cfg=small(mlp=[partial(MoE, balance='bias'), GLU]), opt=steered),
    stack=lambda: dict(cfg=small(block=[ScaledBlock, ParallelBlock], pos_embed=Sinusoids)),
    attentions=lambda: dict(cfg=small(n_layers=4, attn=[MLA, DeltaAttention, gated_part(),
                                                        partial(Attention, pos=ALiBi)])),
    packed=lambda: dict(data=dict(pack=best_fit), dtype=torch.bfloat16),
    in_a_thread=lambda: dict(stream=ahead, opt=mixed_exact))


def gated_part():
    return partial(OpenAttention, adds=[Gate, ValueEmbedding], pos=partial(NTK, factor=2.))


def steered(model):
    return Opt(model, balance_experts(), adamw(1e-2))

"""Facts about scores, schedules, optimizer rules, ablations and small helpers."""
import json
from pathlib import Path

from gptlab.all import *

from facts_models import lively, made, some_ids, tiny, weights_of
from registry import digest, exact, fact, seed_all, unnamed

# ---- schedules

CURVES = dict(
    constant=lambda: constant(),
    constant_warm=lambda: constant(.2),
    linear=lambda: linear(),
    linear_end=lambda: linear(.1, .3),
    trapezoid=lambda: wsd(),
    trapezoid_own=lambda: wsd(.1, .5, .05),
    cosine=lambda: cosine(),
    cosine_own=lambda: cosine(.2, 0.),
    inverse_root=lambda: inverse_sqrt(),
    inverse_power=lambda: inverse_sqrt(.1, 1.),
    corners=lambda: piecewise_linear((0, 1), (.3, .5), (.3, .2), (1, 2)),
    product=lambda: wsd() * cosine(0., .5))


@fact('curve', CURVES)
def curve(make):
    f = make()
    return exact([f(i/19) for i in range(20)] + [f(-.5), f(1.5)])


@fact('schedule is applied')
def applied():
    model = made(tiny())
    own = adamw(1e-2, wd=.1, schedule=dict(wd=linear()), at=lambda name, p, m: p.ndim < 2)
    opt = Opt(model, own, muon(.02, wd=.2), adamw(3e-3))
    plan = dict(lr=wsd(), momentum=piecewise_linear((0, .5), (1, 1)))
    found = []
    for p in (0., .01, .3, .8, 1.):
        apply_schedule(opt, plan, p)
        found.append([[exact(g.get(k)) for k in ('lr', 'wd', 'momentum', 'betas')]
                      for g in opt.param_groups])
    return found


@fact('schedule of another optimizer')
def applied_to_torch():
    opt = torch.optim.AdamW(made(tiny()).parameters(), lr=.1, weight_decay=.2)
    curves = dict(lr=lambda p, run: p + run['loss'], wd=linear(), momentum=constant(.5))
    apply_schedule(opt, curves, .25, dict(loss=.5))
    return [exact(opt.param_groups[0][k]) for k in ('lr', 'weight_decay', 'betas')]


# ---- optimizer rules

def stack(m, n, count=None):
    shape = (m, n) if count is None else (count, m, n)
    return torch.randn(shape, generator=torch.Generator().manual_seed(m*n))


POLARS = {f'{series}, {size}': (series, size) for series in ('newton', 'jordan', 'polar_express')
          for size in ('square', 'tall', 'wide', 'several')}
SIZES = dict(square=(12, 12), tall=(20, 7), wide=(7, 20), several=(6, 9, 4))


@fact('polar factor', POLARS)
def polar_case(case):
    series, size = case
    G = stack(*SIZES[size])
    found = {p: digest(polar_factor(G, series=series, precision=p))
             for p in ('float32', 'bfloat16')}
    found['fast'] = digest(polar_factor(G, series=series))
    return found | dict(double=digest(polar_factor(G.double(), 3, series)))


RULES = dict(
    sgd=lambda: sgd(.1),
    sgd_momentum=lambda: sgd(.1, momentum=.9, wd=.1),
    adamw=lambda: adamw(1e-2),
    adamw_own=lambda: adamw(1e-2, betas=(.8, .99), eps=1e-6, wd=.1),
    muon=lambda: muon(at=None),
    muon_exact=lambda: muon(at=None, precision='float32'),
    muon_half=lambda: muon(at=None, precision='bfloat16'),
    muon_scaled=lambda: muon(at=None, precision='float32', scale='match_rms_adamw', wd=.1),
    muon_jordan=lambda: muon(.1, .9, 3, at=None, precision='float32', series='jordan'),
    muon_double=lambda: muon(at=None, series='newton'),
    signs=lambda: balance_experts(.01, at=None),
    bare=lambda: sgd_rule)


class Pulled(nn.Module):
    "Matrices that are pulled to given ones"
    def __init__(self, dtype=torch.float32):
        super().__init__()
        sizes = ((8, 5), (8, 5), (4, 9))
        self.a, self.b, self.c = (nn.Parameter(stack(*s).to(dtype)) for s in sizes)

    def forward(self):
        return sum((p - p.detach().roll(1, 0)/2).square().sum() for p in self.parameters())


@fact('rule', RULES)
def rule(make):
    model = Pulled()
    opt = Opt(model, make())
    heights = []
    for _ in range(6):
        opt.zero_grad()
        height = model()
        height.backward()
        opt.step()
        heights.append(exact(float(height)))
    state = opt.state_dict()
    return dict(heights=heights, weights=weights_of(model), groups=exact(state['param_groups']),
                state=digest(unnamed(state['state'])), resumed=resumed_rule(make, model, state))


def resumed_rule(make, model, state):
    "The hash of the weights after one more step, taken by a new optimizer with that state"
    opt = Opt(model, make())
    opt.load_state_dict(state)
    model.zero_grad()
    model().backward()
    opt.step()
    return weights_of(model)


@fact('rule is checked', {k: RULES[k] for k in ('sgd_momentum', 'adamw', 'muon_exact')})
def rule_checked(make):
    report = check_rule(make())
    return [report.ok, *(str(v) for v in report.values())]


@fact('who claims a parameter')
def claims():
    model = made(tiny(mlp=[partial(MoE, gate='sigmoid', balance='bias'), GLU], tie=True))
    opt = Opt(model, balance_experts(), muon(at=hidden), adamw(1e-2))
    return [g['param_names'] for g in opt.param_groups]


@fact('rates for every width', dict(plain=lambda: dict(), tied=lambda: dict(tie=True),
                                    narrow=lambda: dict(d_embed=8)))
def rates(kw):
    model = made(tiny(d_model=64, init=mup_init, **kw()))
    opt = Opt(model, *mup_groups(model, tiny(init=mup_init, **kw()), 1e-2))
    return [[exact(g['lr']), g['param_names']] for g in opt.param_groups]


# ---- scores

@fact('score', dict(plain=lambda: tiny(vocab_size=257),
                    capped=lambda: tiny(vocab_size=257, softcap=9.)))
def scored(make):
    _, valid = batches(make_stories(40, seed=6), ByteTokenizer(), B=4, T=32)
    score = evaluate(lively(make()), valid)
    return exact([score.loss, score.bpb, score.tokens, score.n_bytes, score.perplexity])


@fact('bits per byte')
def bits():
    docs = make_stories(120, seed=6)
    train, valid = docs[:100], docs[100:]
    found = dict(unigram=unigram_bpb(train, valid), uniform=uniform_bpb(), own=bits_per_byte(9., 4))
    found |= {str(n): ngram_bpb(train, valid, n) for n in (1, 2, 3, 5, 8)}
    found |= dict(gzip=gzip_bpb(train, valid), xz=xz_bpb(train, valid), loss=perplexity(2.5))
    return exact(found)


@fact('baselines')
def simple_methods():
    c = Corpus('stories', *split_docs(make_stories(300, seed=2), .1))
    return exact(baselines(c)) | {'few, ' + k: v for k, v in exact(baselines(c, 9000)).items()}


# ---- ablation

def measured(variant, seed):
    "A run without randomness: a log of three lines"
    return [dict(step=i, loss=(1 + variant)/(1 + i + seed) + seed % 3 * .01, name='x')
            for i in range(3)]


def few_runs(seeds=range(4)):
    return ablate(measured, dict(base=1., low=.25, high=1.5, near=1.01), seeds)


@fact('ablation', dict(holm='holm', bonferroni='bonferroni', plain=None))
def ablation(correct):
    table = few_runs().table('loss', 'base', correct=correct)
    found = {}
    for name, row in table.rows.items():
        found[name] = {k: exact(v) for k, v in row.items() if k != 'verdict'}
        found[name + ' is told'] = 'clearly' in row.get('verdict', '')
    return found


@fact('ablation kept in a file')
def kept_runs():
    few = ablate(measured, dict(base=1.), range(2), Path('runs.json'))
    more = ablate(measured, dict(base=1., low=.25), range(3), Path('runs.json'))
    back = Runs.from_json('runs.json')
    written = json.loads(Path('runs.json').read_text())
    counts = [len(r.records) for r in (few, more)]
    return dict(file=exact(written), same=back.records == more.records, counts=counts,
                final=exact(back.final('loss')))


@fact('ablation of numbers')
def of_numbers():
    runs = ablate(lambda v, s: v*s, [1.5, 2.5], seeds=(1, 2, 3))
    return exact(runs.records)


@fact('factor of an interval')
def factors():
    return exact([t_factor(n, a) for n in (2, 3, 5, 30) for a in (.05, .01)])


# ---- helpers

@fact('seeds')
def seeds():
    import random
    import numpy as np
    set_seed(1234567890123)
    return [exact(random.random()), exact(np.random.rand()), digest(torch.rand(3))]


@fact('names of parts')
def part_names():
    parts = Attention, RMSNorm, GPT, ByteTokenizer, gelu, nn.Linear
    return dict(names=[dotted_name(p) for p in parts],
                found=[resolve_name(dotted_name(p)) is p for p in parts])


@fact('generators are put back')
def put_back():
    seed_all(5)
    state = rng_state()
    a = torch.rand(4)
    set_rng_state(state)
    return [digest(a), torch.equal(a, torch.rand(4))]


@fact('tree without tensors')
def flat_tree():
    tree = dict(a=[1, 2.5, None, (torch.ones(2), 'x')], b={3: torch.zeros(1), 'c': True})
    tensors = {}
    plain = flatten_tree(tree, tensors)
    again = unflatten_tree(json.loads(json.dumps(plain)), tensors)
    return dict(plain=exact(plain), names=sorted(tensors), back=digest(again))


@fact('dead parameters and noise')
def dead():
    model = made(tiny())
    ids = some_ids(61)
    lm_loss(model, dict(ids=ids, targets=ids))[0].backward()
    found = no_gradient(model)
    seed_all(6)
    return dict(dead=found, noise=weights_of(perturb_parameters(model, .05)))


@fact('time in words')
def clocks():
    return [format_duration(s) for s in (0, 9.6, 65, 3599, 7383)]

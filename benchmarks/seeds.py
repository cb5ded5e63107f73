"""Cheaper seeds in earnest: what pairing, named first weights, tail averages, a control variate and
late branching save of the variance of a difference, and that none of them moves the difference.

    python benchmarks/seeds.py [--seeds 20] [--steps 100] [--out NAME]

A tiny GPT and one with a wider MLP (and, for branching, one whose rate falls after a trunk) are
trained with seeds of their own, then with shared ones. Each device gives a mean difference, its
standard error, and z: how far it lies from that of the independent seeds, in standard errors of
the two (beyond 3 would be a bias). A few minutes of one core.
"""
import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from common import keep
from gptlab.ablation import Runs
from gptlab.budgets import control_variate, named_init, tail_mean, trunk
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches
from gptlab.studies import study
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer

TRAIN, VALID = batches(make_stories(300, 0), ByteTokenizer(), B=8, T=32)
BASE = GPTConfig(vocab_size=257, context_length=32, n_layers=1, n_heads=2, d_model=32)
WIDE = replace(BASE, d_ff=192)


def trainer_of(cfg, seed, folder=None, lr=1e-2):
    set_seed(seed)
    model = GPT(cfg)
    return Trainer(model, Opt(model, adamw(lr)), TRAIN.reseed(seed), VALID.head(8), dir=folder,
                   callbacks=[], eval_every=5)


def whole(steps, cfg, seed): return trainer_of(cfg, seed).fit(steps)


def branch(steps, trunks, lr, seed, folder):
    start = trunk(partial(trainer_of, BASE), seed, trunks, at=int(.7*steps), steps=steps)
    return trainer_of(BASE, seed, folder, lr).resume(start).fit(steps)


def estimate(d, truth=None):
    "Mean, standard error and variance of differences; z against (mean, standard error)"
    d = np.array(d)
    row = dict(difference=d.mean(), standard_error=d.std(ddof=1)/len(d)**.5,
               variance=d.var(ddof=1), seeds=len(d))
    if truth: row['z'] = (d.mean() - truth[0])/np.hypot(row['standard_error'], truth[1])
    return {k: round(float(v), 7) for k, v in row.items()}


def differences(a, b): return [a[s] - b[s] for s in a if s in b]


def independent(a, b):
    "Differences of runs that share nothing, in their order"
    return [x - y for x, y in zip(a.values(), b.values())]


def compared(free, paired, named, key='valid'):
    "What each device says about wide against base"
    rows = {}
    for last, ending in ((1, ''), (5, ', mean of the last five')):
        apart, *shared = (tail_mean(r, key, last).final(key) for r in (free, paired, named))
        rows[f'independent{ending}'] = row = estimate(independent(apart['wide'], apart['base']))
        truth = row['difference'], row['standard_error']
        for name, got in zip(('paired by seed', 'paired by name'), shared):
            rows[name + ending] = estimate(differences(got['wide'], got['base']), truth)
    truth = rows['independent']['difference'], rows['independent']['standard_error']
    few = Runs([r for r in named.records if r['variant'] == 'base' or r['seed'] < 10])
    one = control_variate(few, key, 'base')['wide']
    z = (one['diff'] - truth[0])/np.hypot(one['se'], truth[1])
    rows['ten by name, control variate'] = dict(difference=one['diff'], standard_error=one['se'],
                                                variance=one['se']**2*10, seeds=10, z=float(z))
    return rows


def main(seeds, steps, out):
    with tempfile.TemporaryDirectory() as box:
        box = Path(box)
        def run(name, f, variants, at): return study(f, variants, at, path=box/name, workers=1)
        shared, apart = range(seeds), range(1000, 1000 + seeds)
        train = partial(whole, steps)
        free = run('free', train, dict(base=BASE), shared)
        paired = run('free', train, dict(base=BASE, wide=WIDE), shared)
        free = Runs(free.records + run('free', train, dict(wide=WIDE), apart).records)
        by_name = {k: replace(c, init=named_init) for k, c in dict(base=BASE, wide=WIDE).items()}
        named = run('named', train, by_name, shared)
        rows = compared(free, paired, named)
        late = dict(base=1e-2, slower=3e-3)
        f = partial(branch, steps, box/'trunks')
        branched, far = run('late', f, late, shared), run('late', f, dict(slower=3e-3), apart)
        ours, base = branched.final('valid'), branched.final('valid')['base']
        late = dict(independent=estimate(independent(far.final('valid')['slower'], base)))
        truth = late['independent']['difference'], late['independent']['standard_error']
        late['branched at 70 %'] = estimate(differences(ours['slower'], base), truth)
    for title, table in (('wide MLP against base', rows), ('slower from 70 % on', late)):
        print(title)
        for name, r in table.items(): print(f'  {name:32}', {k: f'{v:.3g}' for k, v in r.items()})
    keep(out, seeds=seeds, steps=steps, wide=rows, late=late)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=20)
    p.add_argument('--steps', type=int, default=100)
    p.add_argument('--out', default='seeds')
    main(**vars(p.parse_args()))

"""Do plans come true? The time of a step, the loss of the next size, the best rate by width.

`speed`: the prices of work are found on small models (`calibrate`), then predict a step of three
sizes, or more, that the calibration did not see. Calibration steps and unseen ones are timed in
turn, round after round, so that what else the machine does falls on all alike; what is compared is
the median over the rounds. On a machine that does other work as well, `--processor` counts the time
of the processor in place of the clock's, on one thread.

`ladder`: runs of growing size by one rule, on stories of the generator, and the law fitted to them.
`ladder --predict` writes the prediction for the next size into the ledger; commit it, then run
`ladder --check`. `rates`: the final loss for a grid of rates, four widths and three seeds, with the
standard parametrisation and with μP; `rates --predict` comes first, here too. (An earlier form, of
one seed, three widths and 100 steps, left `results/plans_rates.json`.)

    python benchmarks/plans.py speed [--rounds 7] [--processor]
    python benchmarks/plans.py ladder [--predict | --check]
    python benchmarks/plans.py rates [--predict]
"""
import argparse
import itertools
import json
import math
import time
from pathlib import Path

from common import keep, RESULTS
import numpy as np
import torch
from gptlab.autoconfig import fit_speed, house_groups, house_rule, law_counts, step_work
from gptlab.autoconfig import _ready, _seconds
from gptlab.core import set_seed
from gptlab.data import make_stories, stories_bpb
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches
from gptlab.scaling import fit_law, loss_law, mean_losses, rate_drift
from gptlab.scaling import write_outcome, write_prediction
from gptlab.stacks import mup_groups, mup_init
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from torch import nn

NOTES = Path(__file__).resolve().parents[1]/'nbs/experiments/results'

# depths and rows: what `calibrate` measures, and what it does not see
SEEN = (1, 1), (1, 4), (2, 1), (2, 8), (3, 2), (4, 1), (4, 4)
UNSEEN = (2, 3), (3, 8), (5, 2), (5, 8), (6, 1), (6, 4)


def speed(rounds, clock, rule, name, vocab_size=1024, context_length=256):
    "Steps of all sizes, timed in turn; the unseen ones predicted from the seen"
    shapes, runs, times = [*SEEN, *UNSEEN], [], {}
    cfgs = {d: rule.dial(d, vocab_size=vocab_size, context_length=context_length)
            for d, _ in shapes}
    for depth, rows in shapes:
        cfg = cfgs[depth]
        runs.append(_ready(cfg, rule.groups(cfg.d_model), rows, torch.device('cpu')))
    for i in range(rounds):
        for shape, run in zip(shapes, runs):
            times.setdefault(shape, []).append(_seconds(run, clock))
        print('round', i+1, 'of', rounds, flush=True)
    took = {shape: float(np.median(t)) for shape, t in times.items()}
    points = [step_work(cfgs[d], r) | dict(seconds=took[d, r]) for d, r in SEEN]
    found = fit_speed(points)
    def row(d, r):
        return dict(depth=d, width=cfgs[d].d_model, rows=r, measured=took[d, r],
                    predicted=found.step(step_work(cfgs[d], r)), runs=len(times[d, r]))
    result = dict(calibration=[row(*s) for s in SEEN], unseen=[row(*s) for s in UNSEEN])
    for kind in result:
        for r in result[kind]:
            print(kind, r['depth'], r['rows'], f'{r["measured"]:.4f} {r["predicted"]:.4f} '
                  f'{r["predicted"]/r["measured"]-1:+.1%}')
    keep(name, clock=clock.__name__, rule=rule.name, prices=found.seconds, **result)


# ---- the ladder

TOK, T = ByteTokenizer(), 64
RUNGS, NEXT = (12, 16, 24, 32, 48), {64: (0, 1), 80: (0,)}


def text(n_docs=6000):
    "Stories of the generator: so many that no run reads one twice"
    train, valid = batches(make_stories(n_docs), TOK, B=16, T=T)
    return train, valid.head(16)


def rung(width, seed, train, valid, ratio=20):
    "A run of two blocks whose tokens are in proportion to its parameters"
    set_seed(seed)
    cfg = GPTConfig(vocab_size=TOK.vocab_size, n_layers=2, n_heads=2, d_model=width,
                    context_length=T)
    model, n = GPT(cfg), law_counts(cfg)
    steps = ratio*n['scaling']//(16*T)
    run = Trainer(model, Opt(model, *house_groups(width)), train.reseed(seed), valid, callbacks=[],
                  eval_every=0)
    start = time.process_time()
    run.fit(steps)
    made = dict(width=width, seed=seed, N=n['scaling'], D=run.tokens, C=run.flops,
                loss=run.log[-1]['valid'])
    print(made, f'{time.process_time()-start:.0f} s', flush=True)
    return made


def load(name): return json.loads((NOTES/name).read_text()) if (NOTES/name).exists() else []


def climb(widths, seeds=(0, 1)):
    "The runs that are not there yet, each kept as soon as it is done"
    runs, (train, valid) = load('ladder.json'), text()
    for width in widths:
        for seed in seeds:
            if any((r['width'], r['seed']) == (width, seed) for r in runs): continue
            runs.append(rung(width, seed, train, valid))
            (NOTES/'ladder.json').write_text(json.dumps(runs, indent=1) + '\n')
    return runs


FLOOR = stories_bpb()*math.log(2)                         # nats per byte: no model can do better


def above_floor(theta, C):
    "The floor of the generator, which is known, and a power of the operations"
    return FLOOR + np.exp(theta[1]*(theta[0] - np.log(C)))


FORMS = {'': (loss_law, ()), ', floor known': (above_floor, [(25., .3), (24., .5)])}


def operations(width):
    "Those that `rung` will spend"
    n = law_counts(GPTConfig(vocab_size=TOK.vocab_size, n_layers=2, n_heads=2, d_model=width,
                             context_length=T))
    return n['flops']*(20*n['scaling']//(16*T))*16*T


def predict():
    "Write down what the next rungs will reach, from two laws fitted to the others"
    runs = [r for r in load('ladder.json') if r['width'] in RUNGS]
    for words, (form, starts) in FORMS.items():
        law = fit_law(runs, form, starts)
        for width in NEXT:
            C = operations(width)
            made = [round(float(v), 4) for v in (law(C=C), *law.interval(C=C))]
            print(width, write_prediction(
                NOTES/'predictions.json', f'loss of the ladder at width {width}{words}', *made,
                f'{form.__name__} fitted to widths {RUNGS}, two seeds each'))


def check():
    "Run the next rungs, and write down what happened: the mean over the seeds"
    done = {k for k, p in dict(load('predictions.json')).items() if 'outcome' in p}
    for width, seeds in NEXT.items():
        losses = [r['loss'] for r in climb([width], seeds) if r['width'] == width]
        for words in FORMS:
            if f'loss of the ladder at width {width}{words}' in done: continue
            print(write_outcome(NOTES/'predictions.json',
                                f'loss of the ladder at width {width}{words}',
                                round(float(np.mean(losses)), 4)), flush=True)


# ---- one rate for all widths

def standard_init(model):
    "Every matrix N(0, 1/n), the head too"
    mup_init(model)
    nn.init.normal_(model.head.weight, std=model.cfg.d_model**-.5)


def shape(width, init):
    return GPTConfig(vocab_size=TOK.vocab_size, n_layers=2, n_heads=width//16, d_model=width,
                     context_length=T, init=init)


WAYS = {'standard': (standard_init, lambda model, lr: [adamw(lr=lr)]),
        'μP': (mup_init, lambda model, lr: mup_groups(model, shape(32, mup_init), lr=lr))}


def final_loss(way, width, lr, seed, train, steps):
    "The mean loss of the last twenty steps"
    init, groups = WAYS[way]
    set_seed(seed)
    model = GPT(shape(width, init))
    run = Trainer(model, Opt(model, *groups(model, lr)), train.reseed(seed), None, callbacks=[],
                  eval_every=0, on_nan='skip').fit(steps)
    return float(np.mean([row['loss'] for row in run.log[-20:] if 'loss' in row]))


# rates around the best of each way, as powers of two: 2⁻³ to 2⁻⁹, and 2⁻² to 2⁻⁷
GRIDS = {'standard': range(3, 10), 'μP': range(2, 8)}
WIDTHS, SEEDS, STEPS = (32, 64, 128, 256), (0, 1, 2), 200

DRIFT, LOST = 'drift of the best rate to width 256, {}', 'lost at width 256 by the rate of 32, {}'
EXPECTED = {DRIFT.format('standard'): (-.75, -1., -.5), DRIFT.format('μP'): (0., -.25, .25),
            LOST.format('standard'): (.2, .08, .4), LOST.format('μP'): (.01, 0., .04)}


def expect():
    "Write down what the rates will show"
    about = dict(drift='doublings per doubling of the width, mean over three seeds, 200 steps; '
                       'from the theory, and from one seed to width 128',
                 lost='nats per byte above the best rate of the grid, losses averaged over seeds')
    for name, numbers in EXPECTED.items():
        print(write_prediction(NOTES/'predictions.json', name, *numbers, about[name.split()[0]]))


def rates():
    "The final loss at every rate, width and seed, by both parametrisations; goes on where it was"
    train, _ = batches(make_stories(1000), TOK, B=8, T=T)
    file = RESULTS/'plans_transfer.json'
    runs = json.loads(file.read_text())['runs'] if file.exists() else []
    done = {(r['way'], r['width'], r['seed'], r['rate']) for r in runs}
    start = time.process_time()
    for seed, way, width in itertools.product(SEEDS, WAYS, WIDTHS):
        todo = [2.**-k for k in GRIDS[way] if (way, width, seed, 2.**-k) not in done]
        if not todo: continue
        mine = [dict(way=way, width=width, rate=lr, seed=seed,
                     loss=final_loss(way, width, lr, seed, train, STEPS)) for lr in todo]
        runs += mine
        print(f'{time.process_time()-start:.0f} s', way, width, seed,
              [round(r['loss'], 3) for r in mine], flush=True)
        keep('plans_transfer', steps=STEPS, runs=runs)
    for way in WAYS:
        drifts, lost = transfer([r for r in runs if r['way'] == way])
        print(way, 'drift by seed', drifts, 'lost', lost)
        for name, outcome in ((DRIFT, np.mean(drifts)), (LOST, lost)):
            write_outcome(NOTES/'predictions.json', name.format(way), round(float(outcome), 4))


def transfer(runs):
    "Drift of each seed; and what the best rate of the smallest width loses at the largest"
    drifts = [rate_drift([r for r in runs if r['seed'] == s]) for s in SEEDS]
    small, large = ([r for r in runs if r['width'] == w] for w in (WIDTHS[0], WIDTHS[-1]))
    (rates, low), (_, high) = mean_losses(small), mean_losses(large)
    return drifts, float(high[np.argmin(low)] - min(high))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('what', choices=['speed', 'ladder', 'rates'])
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--processor', action='store_true')
    p.add_argument('--predict', action='store_true')
    p.add_argument('--check', action='store_true')
    args = p.parse_args()
    torch.set_num_threads(1 if args.processor else torch.get_num_threads())
    clock = time.process_time if args.processor else time.perf_counter
    if args.what == 'speed': speed(args.rounds, clock, house_rule, 'plans_speed')
    elif args.what == 'rates': expect() if args.predict else rates()
    elif args.predict: predict()
    elif args.check: check()
    else: climb(RUNGS)

"""Does the front page's model learn more than a GPT-2 of equal size?

Two variants of (nearly) equal parameters on the same batches: the front page's until 2026-11-30
(modern block, plain attention, Muon and AdamW) and a faithful small GPT-2 (LayerNorm, GELU, learned
positions, biases, tied embedding, N(0,0.02²), AdamW, gradient clipping at 1). Runs alternate, three
seeds, paired.

    python benchmarks/frontpage.py --tune
        the same number of trials for both, on a seed of their own, at equal tokens
    python benchmarks/frontpage.py --tokens 1.6e6
        equal tokens: the machine's speed does not matter
    python benchmarks/frontpage.py --seconds 200
        equal seconds of training: wants a quiet machine
"""
import argparse, json
from common import keep, RESULTS
from functools import partial
import torch
from gptlab.all import *

TRIALS = dict(ours=[dict(lr=.02, alr=1e-2), dict(lr=.014, alr=1e-2), dict(lr=.02, alr=5e-3),
                    dict(lr=.014, alr=5e-3), dict(lr=.02, alr=1e-2, elr=3e-2),
                    dict(lr=.028, alr=1e-2)],
              gpt2=[dict(alr=2e-3, warmup=.1), dict(alr=1e-3, warmup=.1), dict(alr=3e-3, warmup=.1),
                    dict(alr=1.4e-3, warmup=.04), dict(alr=2e-3, warmup=.1, wd=.1),
                    dict(alr=3e-3, warmup=.2)])


def make(kind, text, tok, seed, lr=.02, alr=3e-3, elr=None, wd=0., warmup=.02):
    "A trainer of one variant; the batches of equal seeds are equal"
    set_seed(seed)
    train, valid = batches(text, tok, B=8, T=128, seed=seed)
    if kind == 'ours':
        model = GPT(GPTConfig(vocab_size=tok.vocab_size, n_layers=4, n_heads=4, d_model=128))
        opt = Opt(model, muon(lr=lr, at=hidden), *([adamw(lr=elr, at=embedding)] if elr else []),
                  adamw(lr=alr))
    else:
        model = GPT(gpt2_config(vocab_size=tok.vocab_size, context_length=256, n_layers=4,
                                n_heads=4, d_model=128, d_ff=729))
        opt = Opt(model, adamw(lr=alr, betas=(.9, .95), wd=wd, at=lambda n, p, m: p.ndim > 1),
                  adamw(lr=alr, betas=(.9, .95)))
    return Trainer(model, opt, train, valid, schedule=wsd(warmup=warmup), eval_every=0,
                   callbacks=[])


def outcome(run):
    return dict(bpb=run.log[-1]['bpb'], valid=run.log[-1]['valid'], steps=run.step,
                tokens=run.tokens, seconds=round(run.seconds, 1), parameters=run.model.n_params())


def tune(text, tok, tokens):
    "Every trial of both variants, in turn"
    rows = []
    for i in range(max(map(len, TRIALS.values()))):
        for kind, trials in TRIALS.items():
            rows.append(dict(kind=kind, settings=trials[i])
                        | outcome(make(kind, text, tok, 1234, **trials[i]).fit(tokens=tokens)))
            print(rows[-1], flush=True)
    best = {k: min((r for r in rows if r['kind'] == k), key=lambda r: r['bpb'])['settings']
            for k in TRIALS}
    keep('frontpage_tune', tokens=tokens, trials=rows, best=best)


def compare(text, tok, budget, seeds):
    "The best settings of both variants, in turn, with paired seeds"
    best = json.loads((RESULTS/'frontpage_tune.json').read_text())['best']
    def run(kind, seed):
        r = make(kind, text, tok, seed, **best[kind]).fit(**budget)
        print(kind, seed, outcome(r), flush=True)
        return outcome(r)
    unit = next(iter(budget))
    runs = ablate(run, {k: k for k in TRIALS}, seeds)
    table = runs.table('bpb', vs='gpt2')
    print(table)
    keep(f'frontpage_{unit}', budget=budget, settings=best, baselines=baselines(text),
         runs=[dict(variant=r['variant'], seed=r['seed']) | r['log'][-1] for r in runs.records],
         table=repr(table))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tune', action='store_true')
    p.add_argument('--tokens', type=float)
    p.add_argument('--seconds', type=float)
    p.add_argument('--seeds', type=int, default=3)
    args = p.parse_args()
    text = corpus('shakespeare')
    tok = BPE.train(text, 2048)
    if args.tune: tune(text, tok, args.tokens or 6e5)
    else:
        compare(text, tok,
                dict(seconds=args.seconds) if args.seconds else dict(tokens=args.tokens or 1.6e6),
                range(args.seeds))

"""How many bits per byte does a saved run need, beside the classical compressors?

The model is read in three ways: in rows, with a stride, and prequentially (each row is predicted
first, then learnt from, as a compressor does). xz and PPMd of order 8 have read the training text.

    gptlab train                                 makes a run, in runs/
    python benchmarks/score.py runs/NAME         asks it
    python benchmarks/score.py runs/NAME --lr 1e-4 3e-4 1e-3
        the learning rate is a choice made on the validation text: say so where you quote its best
"""
import argparse
from common import keep
from functools import partial
from pathlib import Path
import torch
from gptlab.all import (baselines, corpus, evaluate, fixed_batches, load, prequential, strided,
                        tokenize)


def main(run, text, T, stride, rates, docs):
    model, tok = load(run, device='cpu')
    valid = corpus(text).valid
    tokens = tokenize(valid[:docs], tok)
    made = dict(rows=evaluate(model, fixed_batches(tokens, 16, T)),
                stride=evaluate(model, strided(tokens, T, stride)))
    for lr in rates:
        make = partial(adamw, lr=lr)
        name = f'prequential, AdamW {lr:g}'
        made[name] = prequential(model, strided(tokens, T, stride, B=1), make)
        print(f'{lr:g}:', made[name], flush=True)
    base = {k: v for k, v in baselines(text).items() if k in ('gzip', 'xz', 'ppmd')}
    for name, score in made.items(): print(f'{name}: {score}')
    for name, bpb in base.items(): print(f'{name}: {bpb:.4f} bits per byte')
    keep('score', run=Path(run).name, text=text, rows=T, stride=stride, baselines=base,
         scores={k: vars(s) for k, s in made.items()})


def adamw(model, lr): return torch.optim.AdamW(model.parameters(), lr, weight_decay=0.)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run')
    p.add_argument('--text', default='shakespeare')
    p.add_argument('--rows', type=int, default=128, help='tokens in a row')
    p.add_argument('--stride', type=int, default=64)
    p.add_argument('--lr', type=float, nargs='+', default=[3e-4])
    p.add_argument('--docs', type=int, help='only so many documents of the validation text')
    args = p.parse_args()
    main(args.run, args.text, args.rows, args.stride, args.lr, args.docs)

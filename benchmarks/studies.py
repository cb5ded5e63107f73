"""A study on several processes against one, and what its machinery costs.

    python benchmarks/studies.py [--workers N] [--steps 60] [--out studies] [--processor]

Ten variants × five seeds of a tiny GPT, in this process and with `workers=N` (all cores, if not
told), the same numbers wanted from both. `efficiency` is the time of one over N times the time of
N: 0.9 at least is wanted. It counts the pool's start; `efficiency_without_start` does not.
`overhead` is what a study takes beside its runs, per run, for runs that do nothing: 0.1 s at most
is wanted. About three minutes on two quiet cores; on a busy machine these ratios mean nothing.

What a busy machine can tell is the time of the processor, of this process and of its workers
together: `processor_efficiency` is that of one process over that of N. It is what `efficiency`
would be if the cores were never idle. `start_of_worker` is the processor's time to begin and end
one. `--processor` leaves the clock's ratios out of the record.
"""
import argparse
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common import keep
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches
from gptlab.studies import study
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer

TRAIN, VALID = batches(make_stories(100, 0), ByteTokenizer(), B=8, T=64)
BASE = GPTConfig(vocab_size=257, context_length=64, n_layers=2, n_heads=2, d_model=64)
VARIANTS = {f'd_ff {n}': replace(BASE, d_ff=n) for n in range(160, 360, 20)}
SEEDS = range(5)


class Run:
    "Training for some steps; a class, so that the number of steps travels with it"
    def __init__(self, steps): self.steps = steps

    def __call__(self, cfg, seed):
        set_seed(seed)
        model = GPT(cfg)
        trainer = Trainer(model, Opt(model, adamw(1e-2)), TRAIN.reseed(seed), VALID.head(2),
                          callbacks=[])
        return trainer.fit(self.steps)


def nothing(variant, seed): return dict(valid=1.)


def spent():
    "Seconds of the processor that this process and its children that have ended took"
    return sum(sum(resource.getrusage(who)[:2])
               for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(path, run, **options):
    "Seconds of the clock and of the processor, and the study"
    began, before = time.perf_counter(), spent()
    made = study(run, VARIANTS, SEEDS, path=path, verbose=False, **options)
    return time.perf_counter() - began, spent() - before, made


def main(workers, steps, out, processor):
    with tempfile.TemporaryDirectory() as box:
        box = Path(box)
        timed(box/'warm', Run(2))
        idle, idle_spent, _ = timed(box/'idle', nothing)
        idle_again, _, _ = timed(box/'idle', nothing)
        start, start_spent, _ = timed(box/'start', nothing, workers=workers)
        one, one_spent, serial = timed(box/'one', Run(steps))
        many, many_spent, parallel = timed(box/'many', Run(steps), workers=workers)
    runs = len(VARIANTS)*len(SEEDS)
    same = serial.final('valid') == parallel.final('valid')
    clock = dict(seconds_one=one, seconds_many=many, efficiency=one/workers/many,
                 efficiency_without_start=one/workers/(many - start + idle/workers),
                 overhead=idle/runs, overhead_when_finished=idle_again/runs,
                 start_of_pool=start - idle/workers)
    result = dict(workers=workers, runs=runs, steps=steps, same_numbers=same,
                  **({} if processor else clock), processor_one=one_spent,
                  processor_many=many_spent, processor_efficiency=one_spent/many_spent,
                  start_of_worker=(start_spent - idle_spent)/workers,
                  processor_overhead=idle_spent/runs)
    result = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
    for k, v in result.items(): print(f'{k:26} {v}')
    keep(out, **result)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--workers', type=int, default=os.cpu_count())
    p.add_argument('--steps', type=int, default=60)
    p.add_argument('--out', default='studies')
    p.add_argument('--processor', action='store_true')
    main(**vars(p.parse_args()))

"""Is a step of ours as fast as torch's? Muon beside `torch.optim.Muon`, AdamW beside torch's fused.

With `--gallery`: how long is a step of each rule of the gallery, over one of our AdamW? Rules for
matrices take those of the blocks, AdamW the rest. AdaHessian's is measured with estimates at hand;
what they cost is the trainer's, about two more backward passes. SOAP's and Shampoo's matrices are
worked on every ten steps, so measure them with `--steps 10`.

The tensors are those of the front page's model (4 blocks of width 128, vocabulary 2048), their
gradients random numbers; nothing else is computed. Muon takes the matrices of the blocks, AdamW
everything. In each round both take a few steps, in turn and in one process, the one that begins
changing from round to round; the ratio is the median over rounds (below 1: ours is faster), with a
95 % interval from the order of the ratios. Both of ours are measured as they are without a wish,
and with the option that changes the last digits: Muon's products in bfloat16, as torch's are, and
AdamW by torch's fused kernel. On a machine that does other work as well, `--processor` counts the
time of the processor in place of the clock's, on one thread.

    python benchmarks/optimizers.py [--rounds 60] [--steps 5] [--size frontpage] [--processor]
                                    [--name optimizers] [--gallery]
"""
import argparse
import math
import statistics
import time
from functools import partial

from common import keep
import torch
from gptlab.gallery import (adafactor, adahessian, lion, mars, normuon, schedule_free, shampoo,
                            soap)
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, hidden, muon, Opt

# name: the model's sizes; context is irrelevant to an optimizer
SIZES = dict(tiny=dict(vocab_size=257, n_layers=2, n_heads=2, d_model=64),
             frontpage=dict(vocab_size=2048, n_layers=4, n_heads=4, d_model=128),
             width_384=dict(vocab_size=4096, n_layers=6, n_heads=6, d_model=384))


def with_gradients(size):
    "A model, always of the same weights, whose parameters have random gradients"
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES[size]))
    for p in model.parameters(): p.grad = torch.randn_like(p)
    return model


def matrices(model):
    "The parameters that `hidden` gives to Muon"
    named = dict(model.named_parameters())
    owner = {name: model.get_submodule(name.rpartition('.')[0]) for name in named}
    return [p for name, p in named.items() if hidden(name, p, owner[name])]


def only_matrices(size):
    "A model in which nothing else learns"
    model = with_gradients(size)
    mine = {id(p) for p in matrices(model)}
    for p in model.parameters(): p.requires_grad_(id(p) in mine)
    return model


def our_muon(size, **kw): return Opt(only_matrices(size), muon(lr=.014, **kw))


def torch_muon(size): return torch.optim.Muon(matrices(with_gradients(size)), lr=.014)


def our_adamw(size, **kw): return Opt(with_gradients(size), adamw(lr=1e-2, **kw))


def torch_adamw(size, form='fused'):
    params = with_gradients(size).parameters()
    return torch.optim.AdamW(params, lr=1e-2, betas=(.9, .95), weight_decay=0., **{form: True})


def with_adamw(size, *groups, rounding=None):
    "The groups, and AdamW for what they leave, if they do"
    model = with_gradients(size)
    if rounding:
        for p in model.parameters(): p.grad = None
        model.bfloat16()
        for p in model.parameters(): p.grad = torch.randn_like(p)
    rest = [] if groups[0].at is None else [adamw(lr=1e-2)]
    opt = Opt(model, *groups, *rest, rounding=rounding)
    opt.extras = dict(hessian=torch.ones_like)
    return opt


def seconds(opt, steps, clock=time.perf_counter):
    "Seconds of one of `steps` steps"
    start = clock()
    for _ in range(steps): opt.step()
    return (clock() - start) / steps


def interval(values):
    """Median of some values, and the 95 % interval of that of all such values

    Its ends are two of the values in order; how many of n fall below a median is binomial.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0., 0
    while below + math.comb(n, k)/2**n <= .025:
        below += math.comb(n, k)/2**n
        k += 1
    k = max(k - 1, 0)
    return statistics.median(ordered), ordered[k], ordered[n-1-k]


# name: ours, torch's, goal; torch's AdamW is the fused one, but for the last row
PAIRS = {'muon': (our_muon, torch_muon, .8),
         'muon in bfloat16': (partial(our_muon, precision='bfloat16'), torch_muon, .8),
         'adamw': (our_adamw, torch_adamw, 1.1),
         'adamw, fused': (partial(our_adamw, fused=True), torch_adamw, 1.1),
         'adamw, beside foreach': (our_adamw, partial(torch_adamw, form='foreach'), None)}
# the same, beside our own AdamW
GROUPS = {'muon': muon(), 'normuon': normuon(wd=.1), 'lion': lion(), 'mars': mars(),
          'adafactor': adafactor(), 'adahessian': adahessian(), 'schedule_free': schedule_free(),
          'soap': soap(), 'shampoo': shampoo(), 'shampoo, every 10': shampoo(every=10)}
GALLERY = {f'gallery: {name}': (lambda size, group=group: with_adamw(size, group), our_adamw, None)
           for name, group in GROUPS.items()}
GALLERY['gallery: adamw, rounded at random'] = (
    lambda size: with_adamw(size, adamw(lr=1e-2), rounding='stochastic'), our_adamw, None)


def compare(name, size, rounds, steps, clock):
    "A row: milliseconds of a step of both, and the ratio of ours to theirs"
    ours, theirs, goal = PAIRS[name] if name in PAIRS else GALLERY[name]
    pair = dict(ours=ours(size), theirs=theirs(size))
    for opt in pair.values(): seconds(opt, 3)                         # first steps make the state
    times = dict(ours=[], theirs=[])
    for r in range(rounds):
        for who in (pair if r % 2 else reversed(pair)):
            times[who].append(seconds(pair[who], steps, clock))
    ratios = [a/b for a, b in zip(times['ours'], times['theirs'])]
    ratio, low, high = (round(x, 3) for x in interval(ratios))
    ms = {who: round(1000*statistics.median(t), 3) for who, t in times.items()}
    print(f'{name}: {ms["ours"]} against {ms["theirs"]} ms, ratio {ratio} [{low}, {high}], '
          f'goal {goal}', flush=True)
    return dict(rule=name, milliseconds=ms, ratio=ratio, interval=[low, high], goal=goal,
                settings=pair['ours'].settings())


def measure(size, rounds, steps, processor, gallery=False):
    "All rows"
    clock = time.process_time if processor else time.perf_counter
    return [compare(name, size, rounds, steps, clock) for name in (GALLERY if gallery else PAIRS)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=60, help='pairs of measurements')
    parser.add_argument('--steps', type=int, default=5, help='steps in a measurement')
    parser.add_argument('--size', choices=SIZES, default='frontpage')
    parser.add_argument('--name', default='optimizers', help='of the result')
    parser.add_argument('--processor', action='store_true', help='count time of the processor')
    parser.add_argument('--gallery', action='store_true', help='the rules of the gallery')
    args = parser.parse_args()
    if args.processor: torch.set_num_threads(1)
    rows = measure(args.size, args.rounds, args.steps, args.processor, args.gallery)
    keep(args.name, size=args.size, sizes=SIZES[args.size], rounds=args.rounds, steps=args.steps,
         clock='processor' if args.processor else 'wall', rows=rows)


if __name__ == '__main__': main()

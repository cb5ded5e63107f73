"""What does the trainer cost beside a loop written by hand, and a save beside a step?

`loop`: the trainer, with its log and its line of progress, beside a bare loop with the same model,
optimizer, data, loss, clipping and schedule, at the front page's size. They take turns in one
process, a few steps each; a turn of the trainer is compared with the mean of the bare turns before
and after it. Both must end at the same weights, bit for bit. `save`: how long a save at GPT-2's
size (124M parameters, AdamW) keeps the training waiting, over the seconds of a step, and how large
the checkpoint is, over parameters and optimizer state. `optimizers`: what `optimizers.py` measures.
A ratio is the median, with a 95 % interval from the order of the values where there are enough, and
otherwise their smallest and largest. On a machine that does other work as well, `--processor`
counts the time of the processor in place of the clock's, on one thread.

    python benchmarks/train.py [loop] [save] [optimizers] [--processor] [--steps 600]
                               [--saves 3] [--dir FOLDER] [--name train]
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import keep
import optimizers
from optimizers import interval
import torch
from torch import nn
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig, gpt2_config, lm_loss
from gptlab.optimizers import adamw, hidden, muon, Opt
from gptlab.packing import batches
from gptlab.schedules import wsd
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from gptlab.watching import default_watcher

# the front page's model and batch; the text is bytes, so most of the vocabulary stays unused
LOOPS = dict(frontpage=dict(B=8, T=128, stories=2000, model=optimizers.SIZES['frontpage']),
             tiny=dict(B=2, T=16, stories=40, model=optimizers.SIZES['tiny']))
# a batch that a CPU can do in seconds; a larger one makes the save smaller beside the step
SAVES = dict(gpt2=dict(B=4, T=256, vocab_size=50257, context_length=1024, n_layers=12, n_heads=12,
                       d_model=768),
             tiny=dict(B=2, T=16, vocab_size=257, context_length=16, n_layers=2, n_heads=2,
                       d_model=64))
PARTS = ('loop', 'save', 'optimizers')
GOALS = dict(loop=1.01, save=1., size=1.01)


def parts(size, text):
    "Model, optimizer and training batches; equal at every call"
    torch.manual_seed(0)
    model = GPT(GPTConfig(**LOOPS[size]['model']))
    opt = Opt(model, muon(lr=.014, at=hidden), adamw(lr=1e-2))
    train, _ = batches(text, ByteTokenizer(), B=LOOPS[size]['B'], T=LOOPS[size]['T'])
    return model, opt, train


class BareLoop:
    "Training as one would write it by hand"
    def __init__(self, model, opt, train, steps, clip=1.):
        self.model, self.opt, self.train, self.clip = model.train(), opt, iter(train), clip
        self.rates = [g['lr'] for g in opt.param_groups]
        self.schedule, self.steps, self.losses = wsd(), steps, []

    def step(self):
        total, n = lm_loss(self.model, next(self.train))
        loss = total / n
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        factor = self.schedule((len(self.losses) + .5) / self.steps)
        for group, rate in zip(self.opt.param_groups, self.rates): group['lr'] = rate * factor
        self.opt.step()
        self.opt.zero_grad()
        self.losses.append(loss.item())


class TakeTurns:
    "A callback: before each turn of the trainer, one of the bare loop; keeps the seconds of both"
    def __init__(self, bare, turn, clock):
        self.bare, self.turn, self.clock = bare, turn, clock
        self.began, self.times = None, dict(trainer=[], bare=[])

    def before_step(self, trainer):
        if trainer.step % self.turn: return
        start = self.clock()
        if self.began is not None: self.times['trainer'].append((start - self.began) / self.turn)
        for _ in range(self.turn): self.bare.step()
        self.began = self.clock()
        self.times['bare'].append((self.began - start) / self.turn)


def measure_loop(args, clock):
    "The trainer's step over that of a bare loop"
    text = make_stories(LOOPS[args.size]['stories'], 0)
    bare = BareLoop(*parts(args.size, text), args.steps)
    turns = TakeTurns(bare, args.turn, clock)
    model, opt, train = parts(args.size, text)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        run = Trainer(model, opt, train, callbacks=[default_watcher(), turns], dir=folder,
                      device='cpu', eval_every=0, save_seconds=0)
        run.fit(args.steps)
    for p, q in zip(model.parameters(), bare.model.parameters()):
        assert torch.equal(p, q), 'the two loops do not compute the same'
    ours, theirs = turns.times['trainer'], turns.times['bare']
    around = [(before + after)/2 for before, after in zip(theirs, theirs[1:])]
    ratios = [a/b for a, b in zip(ours, around)][1:]                  # the first turn warms up
    ratio, low, high = (round(x, 4) for x in interval(ratios))
    ms = {who: round(1000*statistics.median(t), 3) for who, t in turns.times.items()}
    print(f'loop: a step of the trainer {ms["trainer"]}, of a bare loop {ms["bare"]} ms, '
          f'ratio {ratio} [{low}, {high}], goal {GOALS["loop"]}', flush=True)
    return dict(size=args.size, sizes=LOOPS[args.size], steps=args.steps, turn=args.turn,
                milliseconds=ms, ratio=ratio, interval=[low, high], goal=GOALS['loop'],
                equal_weights=True, loss=[bare.losses[0], bare.losses[-1]])


class SaveEachStep:
    "A callback: saves after every step but the first; keeps what it cost"
    def __init__(self, clock): self.clock, self.rows, self.began, self.path = clock, [], None, None

    def before_step(self, trainer): self.began = self.clock()

    def after_step(self, trainer):
        step, start, wall = self.clock() - self.began, self.clock(), time.perf_counter()
        if trainer.step == 1: return                                  # it makes the optimizer state
        self.path = trainer.save(wait=False)
        blocked = self.clock() - start
        trainer._writer.wait()                                        # its thread writes the files
        self.rows.append(dict(step=step, blocked=blocked, written=time.perf_counter() - wall))


def n_bytes(path): return sum(p.stat().st_size for p in path.rglob('*') if p.is_file())


def measure_save(args, clock):
    "How long a save blocks over a step's time; a checkpoint's size over what it must hold"
    sizes = dict(SAVES[args.save_size])
    B, T = sizes.pop('B'), sizes.pop('T')
    torch.manual_seed(0)
    model = GPT(gpt2_config(**sizes))
    opt, saves = Opt(model, adamw(lr=1e-4)), SaveEachStep(clock)
    ids = torch.randint(sizes['vocab_size'], (B, T+1))
    batch = dict(ids=ids[:,:-1].contiguous(), targets=ids[:,1:].contiguous())
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        run = Trainer(model, opt, [batch], callbacks=[saves], dir=Path(folder)/'run', device='cpu',
                      eval_every=0, save_seconds=0)
        run.fit(1 + args.saves)
        written = n_bytes(saves.path)
    tensors = [t for s in opt.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    needed = sum(t.nbytes for t in (*model.parameters(), *tensors))
    ratios = sorted(r['blocked']/r['step'] for r in saves.rows)
    ratio, size = round(statistics.median(ratios), 3), round(written/needed, 5)
    ends = [round(ratios[0], 3), round(ratios[-1], 3)]
    seconds = {k: round(statistics.median(r[k] for r in saves.rows), 3) for k in saves.rows[0]}
    print(f'save: {model.n_params():,} parameters, {B}·{T} tokens, blocks {seconds["blocked"]} of '
          f'a step\'s {seconds["step"]} s, ratio {ratio} {ends}, goal below {GOALS["save"]}; '
          f'{written:,} bytes, {size} of parameters and state, goal {GOALS["size"]}', flush=True)
    return dict(parameters=model.n_params(), sizes=SAVES[args.save_size], seconds=seconds,
                rows=saves.rows, ratio=ratio, ends=ends, goal=GOALS['save'], bytes=written,
                size_ratio=size, size_goal=GOALS['size'])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('parts', nargs='*', help=f'of {", ".join(PARTS)}; all of them')
    parser.add_argument('--steps', type=int, default=600, help='of the trainer, in `loop`')
    parser.add_argument('--turn', type=int, default=5, help='steps until the other takes its turn')
    parser.add_argument('--saves', type=int, default=3)
    parser.add_argument('--rounds', type=int, default=60, help='pairs of turns, in `optimizers`')
    parser.add_argument('--size', choices=LOOPS, default='frontpage')
    parser.add_argument('--save-size', choices=SAVES, default='gpt2')
    parser.add_argument('--dir', help='where checkpoints are written and removed again')
    parser.add_argument('--name', default='train', help='of the results')
    parser.add_argument('--processor', action='store_true', help='count time of the processor')
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS): parser.error(f'no part {", ".join(unknown)}')
    if args.processor: torch.set_num_threads(1)
    clock = time.process_time if args.processor else time.perf_counter
    named = dict(clock='processor' if args.processor else 'wall')
    wanted = args.parts or PARTS
    if 'loop' in wanted: keep(f'{args.name}_loop', **named, **measure_loop(args, clock))
    if 'save' in wanted: keep(f'{args.name}_save', **named, **measure_save(args, clock))
    if 'optimizers' in wanted:
        rows = optimizers.measure(args.size, args.rounds, 5, args.processor)
        keep(f'{args.name}_optimizers', **named, size=args.size, rounds=args.rounds, rows=rows)


if __name__ == '__main__': main()

"""How much faster are tasks in batches with a shared prefix than a loop, and which carry a signal?

    python benchmarks/tasks.py speed [--folder DIR]
        questions per second, the two in turn on the same questions, as a ratio
    python benchmarks/tasks.py signal RUN RUN ... [--folder DIR] [--n 200]
        CORE's tasks over runs of different seeds, beside an untrained model: which scores leave
        chance by more than they vary

The files of the tasks are in DIR, or where the environment variable GPTLAB_EVAL says.
"""
import argparse, os, time
from pathlib import Path
from statistics import median
from common import keep
import numpy as np
import torch
from gptlab.all import *
from gptlab.tasks import make_question, reading_limit


@torch.no_grad()
def loop(model, questions, limit):
    "Row by row, without a cache, as the naive version in nbs/27_tasks.ipynb"
    found = []
    for q in questions:
        q = crop_question(q, limit)
        for row, (begin, end) in zip(q.rows, q.spans):
            logp = model(torch.tensor([row[:-1]]))[0].log_softmax(-1)
            at = logp[begin-1:end-1].gather(-1, torch.tensor(row[begin:end])[:, None])
            found.append(-at.sum().item())
    return found


def seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start


def speed(folder, n, pairs):
    "Ratios of processor time for four kinds of task, on a model of the front page's shape"
    tok = BPE.train(corpus('stories'), 2048)
    set_seed(0)
    model = GPT(GPTConfig(vocab_size=tok.vocab_size, context_length=512, n_layers=4, n_heads=4,
                          d_model=128)).eval()
    rows = {}
    for t in CORE:
        if t.name not in ('arc_easy', 'piqa', 'winogrande'): continue
        for shots in sorted({0, t.shots}):
            task = read_task(folder/t.file, t.name, shots=shots, delimiter=t.delimiter, **t.how)
            items = task.items[:max(n, shots+1)]
            questions = [make_question(task, items, i, tok) for i in range(n)]
            limit, ratios = reading_limit(model), []
            batched = lambda: answer_questions(model, questions, verbose=False)
            off = [abs(x - y) for x, y in zip(loop(model, questions, limit),
                                              (v for a in batched() for v in a.nll))]
            for _ in range(pairs):
                ratios.append(seconds(lambda: loop(model, questions, limit)) / seconds(batched))
            rows[f'{t.name}, {shots} examples'] = dict(ratios=ratios, median=median(ratios),
                                                       largest_difference=max(off))
            print(f'{t.name}, {shots} examples: {median(ratios):.2f} times as fast '
                  f'(nll differ by at most {max(off):.1e} nats)', flush=True)
    keep('tasks_speed', questions=n, pairs=pairs, tasks=rows,
         median=median(r['median'] for r in rows.values()))


def signal(runs, folder, n):
    "A table: accuracy of each run, their spread, and (mean − chance) / spread"
    scores = {}
    for run in runs:
        model, tok = load(run, device='cpu')
        scores[run] = core_score(model, tok, folder, n, context=128)
        print(run, scores[run], flush=True)
    rows = {}
    for name in scores[runs[0]].scores:
        each = [scores[r].scores[name] for r in runs]
        acc, se = np.array([s.accuracy for s in each]), each[0].se
        over = acc.mean() - each[0].chance
        seeds = acc.std(ddof=1) if len(acc) > 1 else math.nan      # between the runs
        noise = max(np.nan_to_num(seeds), se, 1e-9)
        rows[name] = dict(chance=each[0].chance, accuracy=acc.tolist(), se=se,
                          signal_to_noise=over/noise, questions=len(each[0].right),
                          cropped=each[0].n_cropped)
        print(f'| {name} | {each[0].chance:.3f} | {acc.mean():.3f} | {seeds:.3f} '
              f'| {se:.3f} | {over/noise:.1f} |', flush=True)
    keep('tasks_signal', runs=list(map(str, runs)), n=n, tasks=rows,
         means=[scores[r].mean for r in runs], missing=scores[runs[0]].missing)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['speed', 'signal'])
    p.add_argument('runs', nargs='*')
    p.add_argument('--folder', default=os.environ.get('GPTLAB_EVAL'))
    p.add_argument('--n', type=int, default=32)
    p.add_argument('--pairs', type=int, default=3)
    args = p.parse_args()
    if not args.folder: p.error('no files of tasks: give --folder, or set GPTLAB_EVAL')
    folder = Path(args.folder)
    if args.what == 'speed': speed(folder, args.n, args.pairs)
    else: signal(args.runs, folder, args.n)

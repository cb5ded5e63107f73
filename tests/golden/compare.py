"""Compare what two revisions compute, on one machine: nothing else can tell that a refactor is one.

    python tests/golden/compare.py OLD [NEW] [--only REGEX] [--renames FILE] [--expected FILE]
                                   [--allow REGEX=REASON] [--strict] [--sequential]
                                   [--keep FOLDER]

OLD and NEW are revisions; without NEW it is the working tree. Today's facts are computed by both,
each in a process of its own that imports that tree's package. For OLD they are first translated
back through the table of renamed names, and its answers are translated forward. What OLD writes
(checkpoints, models, tokenizers) NEW must read, to the same effect, or refuse with a ValueError;
with --strict it may not refuse.

The exit status is 1 if a fact differs, fails or is gone, unless `expected.tsv` or --allow names
it with a reason. A row of that file, REGEX<TAB>REVISION<TAB>REASON, counts when OLD is that
revision or an older one: it is the last that has the old values. "-" counts always. A fact that
only NEW has is listed and passes: today's facts ask the same of both, so something was added.
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
from translate import rows_of, Table                                      # noqa: E402

Verdict = namedtuple('Verdict', 'name kind details')
KINDS = 'equal', 'refused', 'expected', 'different', 'only in old', 'only in new', 'error'
GOOD = 'equal', 'refused', 'expected', 'only in new'


# ---- verdicts

def verdicts(old, new, table=None):
    "A verdict for each fact of two trees, in the order of the new one"
    table = table or Table()
    old = {n if n in new else today(n, table): value for n, value in old.items()}
    both = [_verdict(n, old[n], new[n], table) for n in new if n in old]
    return both + _alone(new, old, 'only in new') + _alone(old, new, 'only in old')


def today(name, table):
    "The name of a fact of the older tree, each of its parts translated"
    return ''.join(table.forward(part) for part in re.split('(: |/)', name))


def _alone(here, there, kind):
    """Verdicts about facts that one tree alone has, or that failed in it

    What is missing because a fact failed as a whole in the other tree is not told again.
    """
    found = []
    for n, value in here.items():
        if n not in there and _is(value, 'error'):
            found.append(Verdict(n, 'error', [f'{kind}: {value["error"]}']))
        elif n not in there and not _is(there.get(n.partition(': ')[0]), 'error'):
            found.append(Verdict(n, kind, []))
    return found


def _verdict(name, old, new, table):
    failed = [f'{tree}: {v["error"]}' for tree, v in dict(old=old, new=new).items()
              if _is(v, 'error')]
    if _is(old, 'refused'):
        failed.append('old: it refuses what it wrote itself: ' + old['refused'])
    if failed:
        return Verdict(name, 'error', failed)
    if _is(new, 'refused'):
        return Verdict(name, 'refused', [new['refused']])
    details = table.differences(old, new)
    return Verdict(name, 'different' if details else 'equal', details)


def _is(value, kind):
    return isinstance(value, dict) and value.keys() == {kind}


def excused(found, reasons):
    "The same verdicts; what is not equal, but named in `reasons` (regex, why), is expected"
    def one(v):
        why = next((why for pattern, why in reasons if re.search(pattern, v.name)), None)
        if why is None or v.kind in GOOD:
            return v
        return Verdict(v.name, 'expected', [why, *v.details])
    return [one(v) for v in found]


def all_good(found, strict=False):
    "Does every verdict let the comparison pass? Without a fact that both trees have, it does not"
    bad = {'refused'} if strict else set()
    both = any(v.kind != 'only in new' for v in found)
    return both and all(v.kind in GOOD and v.kind not in bad for v in found)


def report(found, most=40):
    "The table of verdicts, and the facts that are not equal"
    counts = {kind: sum(v.kind == kind for v in found) for kind in KINDS}
    lines = [f'{n:6,}  {kind}' for kind, n in counts.items() if n or kind in ('equal', 'different')]
    bad = [v for v in found if v.kind != 'equal']
    bad.sort(key=lambda v: v.kind in GOOD)
    for v in bad[:most]:
        lines.append(f'{v.kind}: {v.name}')
        lines += [f'    {d}' for d in v.details[:3]]
    return '\n'.join(lines + [f'… and {len(bad)-most} more']*(len(bad) > most))


# ---- trees

def git(*args):
    return subprocess.run(['git', '-C', str(ROOT), *args], check=True, capture_output=True,
                          text=True).stdout.strip()


def is_ancestor(old, new):
    "Is one revision the other, or older?"
    asked = ['git', '-C', str(ROOT), 'merge-base', '--is-ancestor', old, new]
    return subprocess.run(asked, capture_output=True).returncode == 0


@contextlib.contextmanager
def tree_of(revision, folder):
    "The files of a revision in a worktree, which is removed afterwards; None is the working tree"
    if revision is None:
        yield ROOT
        return
    git('worktree', 'add', '--detach', '--force', str(folder), revision)
    try:
        yield folder
    finally:
        git('worktree', 'remove', '--force', str(folder))


def scripts(folder, table):
    "Today's facts in a folder, in the names of an older tree"
    folder.mkdir()
    for file in HERE.glob('*.py'):
        if file.name not in ('compare.py', 'translate.py'):
            text = table.back(file.read_text(encoding='utf-8'))
            (folder/file.name).write_text(text, encoding='utf-8')
    return folder


def environment(tree, cache):
    "The environment of a process that measures a tree: one thread, no network, a cache of its own"
    gone = 'IN_TEST', 'GPTLAB_MAX_STEPS'
    kept = {k: v for k, v in os.environ.items() if k not in gone}
    return kept | dict(
        PYTHONPATH=str(tree), GOLDEN_TREE=str(tree), GPTLAB_CACHE=str(cache), OMP_NUM_THREADS='1',
        MKL_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1', MPLBACKEND='agg', HF_HUB_OFFLINE='1',
        TOKENIZERS_PARALLELISM='false', PIP_NO_INDEX='1', PYTHONIOENCODING='utf-8',
        HF_HUB_DISABLE_PROGRESS_BARS='1', TRANSFORMERS_VERBOSITY='error')


class Job:
    "A script of facts at work in its tree"

    def __init__(self, tree, script, args, folder):
        folder.mkdir(parents=True)
        self.log, self.tree = folder/'log.txt', tree
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *map(str, args)], cwd=folder, stdout=log,
                stderr=subprocess.STDOUT, env=environment(tree, folder/'cache'))

    def ended(self):
        "Is it done? Raises RuntimeError with its last lines if it failed"
        if self.process.poll():
            said = self.log.read_text(errors='replace').splitlines()[-15:]
            what = f'the facts of {self.tree} could not be computed:'
            raise RuntimeError('\n'.join([what, *said]))
        return self.process.poll() is not None

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_for(jobs):
    "Wait for the end of all jobs, or the failure of one"
    while not all([job.ended() for job in jobs]):
        time.sleep(.1)


def run_all(starts, sequential):
    "Start jobs, side by side or one after another, and wait for all; none is left running"
    jobs = []
    try:
        for start in starts:
            jobs.append(start())
            if sequential:
                wait_for(jobs)
        wait_for(jobs)
    finally:
        for job in jobs:
            job.stop()


# ---- the two comparisons

def facts_of_both(trees, own, work, only, sequential):
    "The facts of two trees"
    outs = [work/'old.json', work/'new.json']
    args = ['--only', only] if only else []
    def start(i):
        return lambda: Job(trees[i], own[i]/'facts.py', [outs[i], *args], work/f'facts {i}')
    run_all([start(0), start(1)], sequential)
    return [json.loads(out.read_text(encoding='utf-8')) for out in outs]


def crossed(trees, own, work, sequential):
    "What the two trees read of what the old one wrote"
    def start(i, *task):
        return lambda: Job(trees[i], own[i]/'crossing.py', task, work/f'{task[0]} {i}')
    run_all([start(0, 'write', work/'written')], True)
    outs, copies = [work/'read old.json', work/'read new.json'], []
    for i in (0, 1):
        copies.append(shutil.copytree(work/'written', work/f'copy {i}'))
    run_all([start(i, 'read', copies[i], outs[i]) for i in (0, 1)], sequential)
    return [json.loads(out.read_text(encoding='utf-8')) for out in outs]


def reasons_for(path, old, allowed):
    "(regex, why) of all differences that are expected after the revision `old`"
    found = [tuple(a.partition('=')[::2]) for a in allowed]
    for pattern, revision, why in rows_of(path):
        if revision == '-' or is_ancestor(old, revision):
            found.append((pattern, why))
    return found


def renamed_since(old, path):
    "The table of names that came after the tree `old`: rows that its own table has are older"
    before = [tuple(row) for row in rows_of(old/'tests'/'golden'/'renames.tsv')]
    return Table([row for row in rows_of(path) if tuple(row) not in before])


def compare(args, work):
    "All verdicts about two revisions"
    with tree_of(args.old, work/'old') as old, tree_of(args.new, work/'new') as new:
        table = renamed_since(old, args.renames)
        own = scripts(work/'facts of old', table), scripts(work/'facts of new', Table())
        trees = old, new
        found = verdicts(*facts_of_both(trees, own, work, args.only, args.sequential), table)
        if not args.only:
            found += verdicts(*crossed(trees, own, work, args.sequential), table)
    return excused(found, reasons_for(args.expected, args.old, args.allow))


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('old', help='the revision to compare with')
    parser.add_argument('new', nargs='?', help='another revision; the working tree without it')
    parser.add_argument('--only', help='facts in whose name this regular expression is found')
    parser.add_argument('--renames', default=HERE/'renames.tsv', help='the table of renamed names')
    parser.add_argument('--expected', default=HERE/'expected.tsv', help='meant differences')
    parser.add_argument('--allow', action='append', default=[], metavar='REGEX=REASON')
    parser.add_argument('--strict', action='store_true', help='a refusal is a difference')
    parser.add_argument('--sequential', action='store_true', help='one tree after the other')
    parser.add_argument('--keep', help='a folder for the facts of both trees, as JSON')
    return parser.parse_args(argv)


def main(argv=None):
    args, start = parsed(argv), time.perf_counter()
    args.old = git('rev-parse', '--verify', args.old + '^{commit}')
    args.new = args.new and git('rev-parse', '--verify', args.new + '^{commit}')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))          # so that worktrees are removed
    with tempfile.TemporaryDirectory(prefix='golden-') as folder:
        found = compare(args, Path(folder))
        for file in Path(folder).glob('*.json') if args.keep else []:
            Path(args.keep).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, args.keep)
    print(report(found))
    print(f'{len(found):,} facts in {time.perf_counter() - start:.0f} s')
    return 0 if all_good(found, args.strict) else 1


if __name__ == '__main__':
    sys.exit(main())

"""Compute named facts about the importable `gptlab` and write them as JSON: {name: value}.

    PYTHONPATH=TREE GOLDEN_TREE=TREE python facts.py OUT.json [--only REGEX] [--times]

`compare.py` runs this for two trees and compares. The facts are written in today's names; for an
older tree `compare.py` translates these files back through the table of renamed names. So they
import from `gptlab.all` by star (or a module by its full dotted path), use no library name inside
an f-string, and touch attributes of the library's objects only where there is no other way.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

START = time.perf_counter()


def check_tree():
    "The tree under test; raises RuntimeError when another `gptlab` would be measured instead"
    import gptlab
    tree = os.environ.get('GOLDEN_TREE')
    found = Path(gptlab.__file__).resolve()
    if tree and Path(tree).resolve() not in found.parents:
        raise RuntimeError(f'gptlab was imported from {found}, which is not in {tree}')
    return found.parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', help='the JSON file to write')
    parser.add_argument('--only', help='facts in whose name this regular expression is found')
    parser.add_argument('--times', action='store_true', help='print the time of each fact')
    args = parser.parse_args()
    out = Path(args.out).resolve()
    os.environ['GOLDEN_TREE'] = str(check_tree())
    import torch
    torch.set_num_threads(1)
    import registry
    for module in MODULES:
        __import__(module)
    tell = (lambda name, s: print(f'{s:7.2f} s  {name}', flush=True)) if args.times else None
    values = registry.compute(args.only, tell)
    out.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding='utf-8')
    errors = [n for n, v in values.items() if isinstance(v, dict) and 'error' in v]
    took = time.perf_counter() - START
    print(f'{len(values)} facts, {len(errors)} errors, {took:.0f} s', flush=True)


MODULES = ['facts_models', 'facts_training', 'facts_batches', 'facts_text', 'facts_numbers',
           'facts_hub']

if __name__ == '__main__':
    sys.exit(main())

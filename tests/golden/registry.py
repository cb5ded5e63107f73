"""Named facts: how they are registered, hashed and computed.

A fact is a function without arguments that returns a value JSON can hold: a hash of bytes, a
number, a list of names. A dictionary is one fact for each of its keys. Every fact draws its own
random numbers and reads no clock, no path and no order of a set, so that any selection of facts
gives the values that all of them together give.
"""
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import tempfile
import time
import warnings

import numpy as np
import torch

FACTS = {}


def fact(name, cases=None):
    "Register a function under `name`, or under name/case for each case, which it is called with"
    def register(f):
        for case in [None] if cases is None else cases:
            full = name if case is None else f'{name}/{case}'
            if full in FACTS:
                raise ValueError(f'two facts are called {full!r}')
            FACTS[full] = f if case is None else functools.partial(f, cases[case])
        return f
    return register


# ---- hashes and exact numbers

def exact(value):
    "The value as JSON can hold it, each float in hexadecimal, each tensor as a hash"
    if isinstance(value, (torch.Tensor, np.ndarray, bytes)):
        return digest(value)
    if isinstance(value, (float, np.floating)):
        return float(value).hex()
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, dict):
        return {str(k): exact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f'no exact form is known for {type(value).__name__}')


def digest(*values):
    "SHA-256 of values, with their types and shapes; dictionaries count in sorted order"
    h = hashlib.sha256()
    for v in values:
        _feed(h, v)
    return h.hexdigest()


def _feed(h, v):
    if isinstance(v, torch.Tensor):
        v = v.detach().cpu()
        h.update(f'tensor {v.dtype} {tuple(v.shape)} '.encode())
        h.update(v.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(v, np.ndarray):
        h.update(f'array {v.dtype} {v.shape} '.encode())
        h.update(np.ascontiguousarray(v).tobytes())
    elif isinstance(v, dict):
        h.update(f'dict {len(v)} '.encode())
        for k in sorted(v, key=str):
            _feed(h, str(k))
            _feed(h, v[k])
    elif isinstance(v, (list, tuple)):
        h.update(f'list {len(v)} '.encode())
        for item in v:
            _feed(h, item)
    elif isinstance(v, bytes):
        h.update(f'bytes {len(v)} '.encode() + v)
    else:
        text = json.dumps(exact(v), ensure_ascii=False).encode('utf-8', 'surrogatepass')
        h.update(f'{type(v).__name__} {len(text)} '.encode() + text)


def unnamed(tree):
    "Hashes of the values in place of dictionaries: no key counts, and no order of keys"
    if isinstance(tree, dict):
        return sorted(digest(unnamed(v)) for v in tree.values())
    if isinstance(tree, (list, tuple)):
        return [unnamed(v) for v in tree]
    return tree


# ---- random numbers

def seed_all(seed):
    "Seed Python, NumPy and torch, without help from the library under test"
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def own_randomness(seed=0):
    "Inside, every generator starts from the seed; afterwards each goes on where it was"
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


def once(f):
    "Compute something for several facts once, at no cost to their random numbers"
    @functools.cache
    def g(*args):
        with own_randomness():
            return f(*args)
    return g


# ---- computing

def selected(only=None):
    "The names of the facts whose name the regular expression `only` is found in"
    return [n for n in FACTS if only is None or re.search(only, n)]


def compute(only=None, tell=None):
    "Every selected fact in order, as {name: value}; one that fails is {'error': why}"
    values, home = {}, os.getcwd()
    for name in selected(only):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                values |= _value_of(name)
            except Exception as e:
                why = f'{type(e).__name__}: {e}'.replace(folder, 'TMP')
                values[name] = dict(error=why.splitlines()[0][:300])
            finally:
                os.chdir(home)
        if tell:
            tell(name, time.perf_counter() - start)
    return values


def _value_of(name):
    with own_randomness(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        value = FACTS[name]()
    if not isinstance(value, dict):
        return {name: value}
    return {f'{name}: {k}': v for k, v in value.items()}

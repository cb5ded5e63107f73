"""Scores and baselines: what they count, and that they show how far they are only when asked to."""
import gzip
import lzma
import math

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same
from torch import nn

from gptlab import score, trainer
from gptlab.core import show_progress
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches, FixedBatches
from gptlab.score import (baselines, evaluate, gzip_bpb, ngram_bpb, unigram_bpb, uniform_bpb,
                          xz_bpb)
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer

TOK = ByteTokenizer()
DOCS = make_stories(60, seed=3)
TRAIN, VALID = DOCS[:50], DOCS[50:]
METHODS = dict(unigram=unigram_bpb, gzip=gzip_bpb, xz=xz_bpb,
               ngram=lambda *a, **kw: ngram_bpb(*a, 3, **kw))


class Equal(nn.Module):
    "All ids are equally likely"
    def forward(self, ids, targets, **_):
        return torch.full(ids.shape, math.log(257)), None                 # (B,T)


@pytest.fixture
def bars(monkeypatch):
    "(what is done, whether it may be shown) of each bar, in order"
    made = []

    def noted(items, doing, *args, verbose=True, **kw):
        made.append((doing, verbose))
        return show_progress(items, doing, *args, verbose=verbose, **kw)

    monkeypatch.setattr(score, 'show_progress', noted)
    return made


@pytest.mark.parametrize('name', METHODS)
def test_a_baseline_is_silent_when_told(bars, name):
    found = METHODS[name](TRAIN, VALID)
    same(METHODS[name](TRAIN, VALID, verbose=False), found)
    same([shown for _, shown in bars], [True, False])


def test_all_baselines_are_silent_when_told(bars):
    quiet = baselines(DOCS, verbose=False)
    same(bars, [('n-grams', False), ('gzip', False), ('xz', False)])
    same(baselines(DOCS), quiet)                       # remembered, so there is nothing to show
    same(len(bars), 3)
    same(list(quiet.values()), sorted(quiet.values(), reverse=True))
    same(quiet['uniform'], uniform_bpb())


def test_a_trainer_evaluates_in_silence(bars):
    train, valid = batches(DOCS, TOK, B=4, T=32)
    cfg = GPTConfig(vocab_size=257, context_length=32, n_layers=1, n_heads=2, d_model=16)
    model = GPT(cfg)
    evaluate(model, valid)
    Trainer(model, Opt(model, adamw(1e-3)), train, valid.head(1), callbacks=[]).fit(1)
    same(bars, [('scoring', True), ('scoring', False)])
    assert trainer.evaluate is evaluate


def test_texts_over_a_megabyte_are_compressed_as_if_whole():
    text = np.random.default_rng(0).integers(97, 113, 2**20 + 5000, np.uint8).tobytes()
    sizes = score._compressed([score._xz(len(text)), score._gzip(0)], [text, text[:999]], 'both')
    same(sizes[0], len(lzma.compress(text, preset=9|lzma.PRESET_EXTREME)))
    same(sizes[1], len(gzip.compress(text[:999])))


@pytest.mark.parametrize('n', [0, 9, 2., None])
def test_grams_of_other_lengths_are_refused(n):
    with pytest.raises((ValueError, TypeError), match='n must be a whole number of at least 1'):
        ngram_bpb(['a'], ['b'], n)


@pytest.mark.parametrize('method', METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize('train, valid', [([], ['a']), (['a'], []), (['a'], [''])])
def test_no_text_is_refused(method, train, valid):
    with pytest.raises(ValueError, match='no text'): method(train, valid)


def test_bytes_that_a_batch_counts_itself_win():
    _, valid = batches(DOCS, TOK, B=4, T=32)
    two_bytes = [dict(b, nbytes=torch.tensor(2)) for b in valid]
    same(evaluate(Equal(), two_bytes).n_bytes, 2*len(valid))
    assert math.isnan(evaluate(Equal(), list(valid)).bpb)     # a plain list does not know the bytes
    same(evaluate(Equal(), list(valid), TOK), evaluate(Equal(), valid))


@pytest.mark.parametrize('kind', [list, lambda items: FixedBatches(items, TOK)])
def test_no_targets_are_refused(kind):
    with pytest.raises(ValueError, match='no targets'): evaluate(Equal(), kind([]))


def test_a_stream_is_refused():
    with pytest.raises(TypeError, match='fixed list'): evaluate(Equal(), iter([]))

"""Scores and baselines: what they count, and that they show how far they are only when asked to."""
import gzip
import lzma
import math

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same
from torch import nn

from common import extra, refuses
from gptlab import score, trainer
from gptlab.core import show_progress
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig, llama_config
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches, fixed_batches, FixedBatches, tokenize
from gptlab.score import (baselines, cluster_error, evaluate, gzip_bpb, ngram_bpb, ppmd_bpb,
                          prequential, Score, strided, unigram_bpb, uniform_bpb, xz_bpb)
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
    assert bars[:3] == [('n-grams', False), ('gzip', False), ('xz', False)]
    same([shown for _, shown in bars], [False]*len(bars))
    n = len(bars)
    same(baselines(DOCS), quiet)                       # remembered, so there is nothing to show
    same(len(bars), n)
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


# ---- standard errors

def test_an_error_of_equal_clusters_is_that_of_a_mean():
    means = np.array([1., 2, 4, 9])
    assert abs(cluster_error(5*means, np.full(4, 5)) - means.std(ddof=1)/2) < 1e-12
    assert math.isnan(cluster_error([3.], [2]))
    with refuses(ValueError, '(R,)'): cluster_error([1., 2], [1])


def test_an_error_by_rows_is_that_of_samples_drawn_again():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 60, 400)
    x = n*rng.normal(3, 1, 400)                        # what is in a row goes together
    rows = rng.integers(400, size=(3000, 400))
    again = x[rows].sum(1)/n[rows].sum(1)
    assert abs(cluster_error(x, n)/again.std() - 1) < .05


def test_a_score_by_rows():
    _, valid = batches(DOCS, TOK, B=4, T=32)
    got = evaluate(gpt(), valid)
    with torch.no_grad():
        nll = [gpt()(**b)[0] for b in valid]
    x = torch.cat([n.double().sum(1) for n in nll]).numpy()
    used = torch.cat([(b['targets'] != -100).sum(1) for b in valid]).numpy()
    size = torch.cat([((b['targets'] >= 0) & (b['targets'] < 256)).sum(1) for b in valid]).numpy()
    assert abs(got.loss_se - cluster_error(x, used)) < 1e-9
    assert abs(got.bpb_se - cluster_error(x, size)/math.log(2)) < 1e-9
    same(got.how, 'rows of 32')
    for part in (f'± {got.loss_se:.4f} nats', f'± {got.bpb_se:.4f} bits', 'rows of 32'):
        assert part in repr(got)
    one = FixedBatches([{k: v[:1] for k, v in valid[0].items()}])
    assert math.isnan(evaluate(gpt(), one).loss_se)
    assert '±' not in repr(Score(1., 1., 1, 1))


# ---- rows, strides, prequential

def gpt(seed=0, kind=GPTConfig, **kw):
    torch.manual_seed(seed)
    size = dict(vocab_size=257, context_length=32, n_layers=1, n_heads=2, d_model=16)
    model = GPT(kind(**size | kw)).eval()
    nn.init.normal_(model.head.weight, std=.5)
    return model


@pytest.mark.parametrize('T, stride', [(32, 32), (32, 16), (32, 1), (20, 7), (1, 1), (5000, 10)])
def test_each_token_is_a_target_once(T, stride):
    tokens = tokenize(VALID[:1] if stride < 5 else VALID, TOK)
    seen = []
    for b in strided(tokens, T, stride, B=3):
        used = b['targets'] != -100
        seen += b['targets'][used].tolist()
        for row, on in zip(b['targets'], used):        # one stretch at the end of each row
            n = on.sum().item()
            assert n and (n <= stride or len(seen) <= 3*T)
    same(seen, tokens.ids[1:].tolist())


def test_a_stride_of_the_row_reads_as_rows_do():
    tokens, model = tokenize(VALID, TOK), gpt()
    a, b = evaluate(model, strided(tokens, 32, 32)), evaluate(model, fixed_batches(tokens, 16, 32))
    assert abs(a.loss - b.loss) < 1e-6 and abs(a.loss_se - b.loss_se) < 1e-6
    same((a.tokens, a.n_bytes, a.how), (b.tokens, b.n_bytes, 'rows of 32, stride 32'))


def test_a_strided_score_by_hand():
    tokens, model = tokenize(VALID[:1], TOK), gpt()
    ids, nats = torch.from_numpy(tokens.ids.astype(np.int64)), 0.
    for i in range(1, len(ids)):
        begin = 0 if i <= 32 else -(-(i - 32)//8)*8
        nats -= model(ids[None, begin:i])[0, -1].log_softmax(-1)[ids[i]].item()
    got = evaluate(model, strided(tokens, 32, 8, B=5))
    assert abs(got.loss - nats/(len(ids)-1)) < 1e-5


def test_a_lossy_tokenizer_counts_its_bytes_with_a_stride():
    tokens = tokenize(VALID, TOK)
    tokens.sizes = np.random.default_rng(0).integers(0, 5, len(tokens)).astype(np.int32)
    rows, strides = fixed_batches(tokens, 4, 32), strided(tokens, 32, 8, 4)
    same((strides.n_bytes, rows.n_bytes), (tokens.sizes[1:].sum(),)*2)
    same(evaluate(gpt(), strides).n_bytes, rows.n_bytes)


@pytest.mark.parametrize('kw, kind, words', [
    (dict(T=0), ValueError, 'T must be'), (dict(stride=0), ValueError, 'stride must be'),
    (dict(T=8, stride=9), ValueError, 'stride must be'), (dict(B=1.5), TypeError, 'B must be')])
def test_strides_that_do_not_fit(kw, kind, words):
    with refuses(kind, words): strided(tokenize(VALID, TOK), **kw)


def test_what_has_no_strides():
    with refuses(TypeError, 'Tokens'): strided(VALID)
    with refuses(ValueError, 'nothing to predict'): strided(tokenize([''], TOK))


@pytest.mark.parametrize('kind', ['torch', 'ours', 'function'])
def test_a_prequential_score_by_hand(kind):
    rows, model = strided(tokenize(VALID[:2], TOK), 32, 16, B=2), gpt()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    make = dict(torch=lambda m: torch.optim.SGD(m.parameters(), .1, momentum=.9),
                ours=lambda m: Opt(m, adamw(1e-2)), function=lambda m: Opt(m, adamw(1e-2)))[kind]
    got = prequential(model, rows, make if kind == 'function' else make(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    own = gpt()
    opt, nats, n = make(own), 0., 0
    for b in rows:
        nll = own(**b)[0][b['targets'] != -100]
        nats, n = nats + nll.sum().item(), n + len(nll)
        opt.zero_grad()
        nll.mean().backward()
        opt.step()
    assert abs(got.loss - nats/n) < 1e-5
    same((got.tokens, got.how), (n, 'prequential, rows of 32, stride 16'))
    assert got.loss < evaluate(model, rows).loss


def test_what_makes_no_optimizer_of_the_model():
    rows, model = strided(tokenize(VALID[:1], TOK), 32), gpt()
    with refuses(TypeError, 'make_opt is an optimizer, or a func'): prequential(model, rows, 3e-4)
    with refuses(TypeError, 'what make_opt gives'): prequential(model, rows, lambda m: 'adam')
    other = torch.optim.SGD(gpt().parameters(), .1)
    with refuses(ValueError, 'no parameter of this model'): prequential(model, rows, other)
    with refuses(ValueError, 'no parameter of this'): prequential(model, rows, lambda m: other)


def test_dropout_is_off_while_it_learns():
    rows, model = strided(tokenize(VALID[:1], TOK), 32), gpt(dropout=.5).train()
    make = lambda m: torch.optim.SGD(m.parameters(), 0.)                     # learns nothing
    assert abs(prequential(model, rows, make).loss - evaluate(model, rows).loss) < 1e-6
    assert model.training


# ---- PPMd

def test_ppmd_adds_little_for_what_it_has_read():
    import pyppmd
    a, b = ''.join(TRAIN).encode(), ''.join(VALID).encode()
    def size(text):
        coder = pyppmd.Ppmd7Encoder(8, 2**24)
        return len(coder.encode(text)) + len(coder.flush())
    same(ppmd_bpb(TRAIN, VALID), 8*(size(a + b) - size(a))/len(b))
    assert ppmd_bpb(TRAIN, TRAIN) < ppmd_bpb(TRAIN, VALID) < xz_bpb(TRAIN, VALID)
    assert baselines(DOCS)['ppmd'] > 0
    with refuses(ValueError, 'order must be'): ppmd_bpb(TRAIN, VALID, 1)


# ---- transformers

def test_a_score_equals_that_of_transformers(tmp_path):
    transformers = extra('transformers')
    from gptlab.hub import save
    model = gpt(kind=llama_config, d_ff=32)
    save(model, None, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens, nats = tokenize(VALID[:3], TOK), 0.
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    for i in range(0, len(ids)-1, 32):
        row = ids[None, i:i+33]
        logits = theirs(row[:, :-1]).logits[0].float()
        nats += nn.functional.cross_entropy(logits, row[0, 1:], reduction='sum').item()
    got = evaluate(model, fixed_batches(tokens, 4, 32))
    assert abs(got.loss - nats/(len(ids)-1)) < 1e-5
    same(got.tokens, len(ids)-1)

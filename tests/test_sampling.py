"""Sampling: each filter draws what it promises, and what is done around the draw changes no text.

What a formula promises is worked out here a second time, plainly, token by token.
"""
import itertools
import json
import math
import re
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common import extra, refuses, tiny_model
from gptlab.attention import Attention, Seq
from gptlab.attentions import OpenAttention, RingCache, StaticCache
from gptlab.blocks import perturb_parameters
from gptlab.bpe import BPE
from gptlab.generation import (draw_token, filter_logits, generate, generate_rows, generate_text,
                               make_generator, Reader, RowFilter, sample_from, select_rows,
                               temperature, top_k, top_p)
from gptlab.linear_attentions import DeltaAttention
from gptlab.model import GPT, GPTConfig, gpt2_config, llama_config
from gptlab.moe import MoD, MoE
from gptlab.positions import ALiBi
from gptlab.sampling import (accept_or_replace, beam_search, constrained, frequency_penalty,
                             logit_bias, min_p, Prefix, presence_penalty, repetition_penalty,
                             rewind, speculative, StaticDecoder, stop_before, stop_when, typical_p)
from gptlab.tokenizer import ByteTokenizer
from gptlab.tokenizers import AsciiTokenizer

TOK = ByteTokenizer()
tiny = partial(tiny_model, context_length=64)


def chi_square(drawn, probs):
    "Is what was drawn (ids) as often there as `probs` says? Limit: once in a thousand tries"
    from scipy.stats import chi2
    probs = torch.tensor(probs, dtype=torch.double)
    counts = torch.bincount(drawn, minlength=len(probs)).double()
    assert counts[probs == 0].sum() == 0
    expected = probs[probs > 0]/probs.sum()*counts.sum()
    found = ((counts[probs > 0] - expected)**2/expected).sum().item()
    assert found < chi2.ppf(.999, max(len(expected)-1, 1)), (found, counts)


# ---- each filter against the distribution that its formula promises, worked out plainly

P = [.35, .02, .2, .15, .13, .08, .04, .03]                       # no equals

def plain_temperature(p, t): return [x**(1/t) for x in p] if t else plain_top_k(p, 1)

def plain_top_k(p, k): return [x if x >= sorted(p)[-min(k, len(p))] else 0 for x in p]

def plain_top_p(p, mass):
    kept, total = set(), 0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if total < mass: kept.add(i)
        total += p[i]
    return [x if i in kept else 0 for i, x in enumerate(p)]

def plain_min_p(p, a): return [x if x >= a*max(p) else 0 for x in p]

def plain_typical(p, mass):
    entropy = -sum(x*math.log(x) for x in p)
    kept, total = set(), 0
    for i in sorted(range(len(p)), key=lambda i: abs(-math.log(p[i]) - entropy)):
        if total < mass: kept.add(i)
        total += p[i]
    return [x if i in kept else 0 for i, x in enumerate(p)]

def plain_bias(p, bias): return [x*math.exp(bias.get(i, 0)) for i, x in enumerate(p)]

def plain_presence(p, a): return [x*math.exp(-a*(i in WRITTEN)) for i, x in enumerate(p)]

def plain_frequency(p, a): return [x*math.exp(-a*WRITTEN.count(i)) for i, x in enumerate(p)]

def plain_repetition(p, r):
    logits = [math.log(x) + 2.5 for x in p]                       # some above 0, some below
    new = [(x/r if x > 0 else x*r) if i in PROMPT + WRITTEN else x for i, x in enumerate(logits)]
    return [math.exp(x) for x in new]

PROMPT, WRITTEN = [0, 4], [2, 2, 7, 2]
PROMISED = {temperature: (plain_temperature, [0, .5, 1., 1.7]), top_k: (plain_top_k, [1, 3, 99]),
            top_p: (plain_top_p, [.1, .5, .9, 1.]), min_p: (plain_min_p, [0., .1, .5, 1.]),
            typical_p: (plain_typical, [.1, .3, .6, .9, 1.]),
            logit_bias: (plain_bias, [{}, {1: 2., 0: -1.}, {0: -math.inf, 7: 3}]),
            presence_penalty: (plain_presence, [0., 1., -1.]),
            frequency_penalty: (plain_frequency, [0., .4, -.3]),
            repetition_penalty: (plain_repetition, [1., 1.5, .7])}
CASES = [(make, plain, a) for make, (plain, settings) in PROMISED.items() for a in settings]

@pytest.mark.parametrize('make, plain, a', CASES)
def test_each_filter_draws_what_it_promises(make, plain, a):
    n, logits = 20_000, torch.tensor(P).log() + 2.5
    rows = [(PROMPT, WRITTEN)]*n
    drawn = draw_token(logits.expand(n, -1), [make(a)], make_generator(2), rows)
    chi_square(drawn, plain(P, a))


def test_filters_work_in_a_row_and_row_by_row():
    f = [temperature(.5), top_k(4), presence_penalty(1.)]
    logits, n = torch.tensor([P, P[::-1]]).log(), 20_000
    rows = [([1], [0]), ([1], [])]
    drawn = draw_token(logits.repeat_interleave(n, 0), f, make_generator(2),
                       [rows[0]]*n + [rows[1]]*n)
    first = plain_top_k(plain_temperature(P, .5), 4)
    chi_square(drawn[:n], [x*math.exp(-1.*(i == 0)) for i, x in enumerate(first)])
    chi_square(drawn[n:], first[::-1])


def test_typical_leaves_room_where_nothing_is_left_or_one_is_sure():
    for row in ([0., -math.inf, -math.inf], [50., 0., 0.], [1., 1., 1.]):
        kept = typical_p(.2)(torch.tensor([row])).isfinite()
        assert kept.any() and not kept[0][torch.tensor(row) == -math.inf].any()


def test_a_row_filter_is_given_what_was_read_and_written():
    told = []
    def look(logits, rows):
        told.append([(list(p), list(w)) for p, w in rows])
        return logits
    new = torch.stack([*generate_rows(tiny(), [[1, 2], [3]], 3, RowFilter(look), seed=0)], 1)
    assert told[0] == [([1, 2], []), ([3], [])]
    assert told[2] == [([1, 2], new[0,:2].tolist()), ([3], new[1,:2].tolist())]
    with refuses(ValueError, 'needs the ids', 'rows='):
        draw_token(torch.zeros(1, 9), RowFilter(look))
    with refuses(ValueError, 'each of the 1 rows'):
        filter_logits(torch.zeros(1, 9), [RowFilter(look)], [([], []), ([], [])])


def test_penalties_go_on_beyond_the_context():
    forbid = frequency_penalty(1e6)
    new = [*generate(tiny(context_length=16), [1], 100, temperature(0), forbid)]
    new = [*generate(tiny(context_length=16), [1], 100, forbid, temperature(0))]
    assert len(set(new)) == 100


def test_forbidden_ids_never_come():
    new = [*generate(tiny(), [1], 200, logit_bias({i: -math.inf for i in range(250)}), seed=0)]
    assert min(new) >= 250


# ---- several texts from one reading; rows that are chosen

ATTENTIONS = dict(plain=Attention, window=partial(Attention, window=5), delta=DeltaAttention,
                  static=partial(OpenAttention, cache=StaticCache),
                  ring=partial(OpenAttention, cache=RingCache, window=5),
                  grouped=partial(Attention, qk_norm=False))

@pytest.mark.parametrize('kind', ATTENTIONS)
def test_copies_are_written_as_rows_would_be(kind):
    kw = dict(n_kv_heads=1) if kind == 'grouped' else {}
    model, n_read = tiny(attn=ATTENTIONS[kind], **kw), []
    prompts = [[1, 2, 3, 4], [5]]
    hook = model.register_forward_pre_hook(
        lambda m, args, kw: n_read.append(kw['ids'].numel()), with_kwargs=True)
    copies = torch.stack([*generate_rows(model, prompts, 9, seed=3, copies=3)], 1)
    hook.remove()
    rows = [p for p in prompts for _ in range(3)]
    assert torch.equal(copies, torch.stack([*generate_rows(model, rows, 9, seed=3)], 1))
    assert copies.shape == (6, 9) and len({tuple(r) for r in copies.tolist()}) > 2
    if kind != 'delta': assert n_read[:2] == [8, 6]               # each prompt was read once


def test_rows_that_are_chosen_go_on_as_they_would():
    reader = Reader(tiny(), [[1, 2, 3], [4], [5, 6]])
    reader.next_logits()
    reader.append(torch.tensor([[7], [8], [9]]))
    reader.select(torch.tensor([2, 0, 2]))
    fresh = Reader(tiny(), [[5, 6, 9], [1, 2, 3, 7], [5, 6, 9]])
    torch.testing.assert_close(reader.next_logits(), fresh.next_logits())
    assert reader.rows == fresh.rows


class Static(Attention):
    def new_cache(self): return StaticCache(64)


CHOSEN = dict(plain=tiny, static=partial(tiny, attn=Static),
              delta=partial(tiny, attn=DeltaAttention),
              window=partial(tiny, attn=partial(Attention, window=3)),
              fixed=lambda: StaticDecoder(tiny(), 64, compiled=False))

@pytest.mark.parametrize('kind', CHOSEN)
def test_selected_rows_leave_the_caches_they_come_from_as_they_are(kind):
    model, new = CHOSEN[kind](), torch.tensor([[7], [8]])
    caches, index = model.new_caches(), torch.tensor([1, 0, 1])
    read = lambda ids, caches: model(ids, caches=caches)[:,-1].detach()
    read(torch.tensor([[1, 2], [3, 4]]), caches)
    want = read(torch.tensor([[1, 2, 7], [3, 4, 8]]), model.new_caches())     # (2,V)
    chosen = select_rows(caches, index)
    torch.testing.assert_close(read(new[index], chosen), want[index])
    torch.testing.assert_close(read(new, caches), want)                       # untouched


def test_caches_that_keep_more_than_rows_are_not_selected_from():
    model = tiny(block=MoD)
    caches = model.new_caches()
    model(torch.tensor([[1, 2], [3, 4]]), caches=caches)
    assert select_rows(caches, torch.tensor([0])) is None
    assert select_rows(tiny().new_caches(), torch.tensor([0])) is None        # nothing was read
    with refuses(TypeError, 'LayerCache'): select_rows([1], torch.tensor([0]))
    with refuses(TypeError, 'new_caches'): select_rows(None, torch.tensor([0]))
    with refuses(ValueError, 'whole numbers'): select_rows([], torch.tensor([.5]))


# ---- what the next token needs, and no more

def test_the_last_logits_are_those_of_all():
    model, ids = tiny(), torch.randint(0, 257, (2, 9))
    for last in (1, 4, 9):
        torch.testing.assert_close(model(ids, last=last), model(ids)[:,-last:])
    for bad in (0, 10, 1.5, True):
        with pytest.raises((TypeError, ValueError), match='last'): model(ids, last=bad)
    with refuses(ValueError, 'targets or last'): model(ids, ids, last=1)


@pytest.mark.parametrize('wrap', [lambda m: m, partial(StaticDecoder, compiled=False)])
def test_a_prompt_is_read_for_the_logits_of_its_last_token(wrap):
    model, sizes = tiny(), []
    model.head.register_forward_pre_hook(lambda m, x: sizes.append(x[0].shape[1]))
    [*generate_rows(wrap(model), [[1, 2, 3], [4, 5]], 3)]
    assert sizes == [1, 1, 1]
    assert Reader(model, [[1, 2, 3]]).read().shape[1] == 3
    assert Reader(model, [[1, 2, 3]]).read(last=2).shape[1] == 2
    with refuses(ValueError, 'last'): Reader(model, [[1, 2, 3]]).read(last=0)


def test_a_model_that_knows_no_last_is_asked_for_all():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 9)
        def forward(self, ids): return self.table(ids)
    model = Plain()
    now, want = 1, []
    for _ in range(5): want.append(now := model.table.weight[now].argmax().item())
    assert [*generate(model, [1], 5, temperature(0))] == want


def test_nothing_is_drawn_where_one_token_is_left():
    g, logits = make_generator(0), torch.randn(3, 9)
    before = g.get_state()
    assert torch.equal(draw_token(logits, temperature(0), g), logits.argmax(-1))
    assert torch.equal(g.get_state(), before)
    logits = torch.tensor([[0., -math.inf, -math.inf], [0., 0., -math.inf]]).repeat(2000, 1)
    drawn = draw_token(logits, (), g)                   # some rows are certain, and some are not
    assert (drawn[::2] == 0).all() and 900 < drawn[1::2].sum() < 1100


@pytest.mark.parametrize('kw', [{}, dict(pos=None), dict(window=3), dict(pos=ALiBi)])
def test_heads_that_share_keys_read_one_token_as_heads_with_keys_of_their_own(kw):
    shared = perturb_parameters(Attention(32, 4, 2, **kw)).eval()
    own = Attention(32, 4, 4, **kw).eval()
    weights = dict(shared.state_dict())
    for n in ('k.weight', 'v.weight'):
        weights[n] = weights[n].unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    own.load_state_dict(weights)
    caches, x = [shared.new_cache()], torch.randn(2, 7, 32)
    ids = torch.zeros(2, 1, dtype=torch.long)
    made = torch.cat([shared(x[:,t:t+1], Seq(ids, caches=caches).at(0)) for t in range(7)], 1)
    torch.testing.assert_close(made, own(x, Seq.like(x)))


# ---- reach, and rows of training

def test_reach_is_the_context_of_a_smaller_model():
    small, large = tiny(context_length=16), tiny(context_length=64)
    for prompt in ([1], [*range(16)]):
        want = [*generate(small, prompt, 60, temperature(0))]
        assert [*generate(large, prompt, 60, temperature(0), reach=16)] == want
    long = [*range(40)]
    assert [*generate(large, long, 9, temperature(0), reach=16)] == [
        *generate(small, long[-16:], 9, temperature(0))]
    with refuses(ValueError, 'the prompt has 40 tokens', 'reach=16'): generate(small, long, 9)
    for bad in (0, -1, 1.5, 'x', math.nan, True):
        with pytest.raises((TypeError, ValueError), match='^reach must be a whole number'):
            generate(large, [1], 3, reach=bad)


def warned(f):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        f()
    return [str(w.message) for w in said]


def test_reading_beyond_the_rows_of_training_is_said_once():
    model = tiny()
    assert not warned(lambda: [*generate(model, [1], 60, seed=0)])
    model.trained_length = 20
    assert not warned(lambda: [*generate(model, [1], 19, seed=0)])
    said = warned(lambda: [*generate(model, [1], 60, seed=0)])
    assert len(said) == 1
    assert all(word in said[0] for word in ('rows of 20', 'reads 21', 'reach=20'))
    assert len(warned(lambda: next(generate(model, [*range(30)], 1)))) == 1
    assert not warned(lambda: [*generate(model, [1], 60, seed=0, reach=20)])
    assert not warned(lambda: ''.join(generate_text(model, TOK, 'x', 60, seed=0, reach=20)))
    assert not warned(lambda: sample_from(SimpleNamespace(model=model, tok=TOK), 'x', 90))
    fast = StaticDecoder(model, compiled=False)
    assert len(warned(lambda: [*generate(fast, [1], 40, seed=0)])) == 1


# ---- where a text ends

@pytest.mark.parametrize('seed', range(20))
def test_a_text_ends_before_its_stop_string_however_it_is_cut(seed):
    import random
    r = random.Random(seed)
    text = ''.join(r.choice('ab<') for _ in range(60))
    strings = [''.join(r.choice('ab<') for _ in range(r.randint(1, 4))) for _ in range(2)]
    cuts = sorted(r.sample(range(61), 25))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 60])]
    ends = [text.find(s) + len(s) for s in strings if s in text]  # the first that is complete
    got = [*stop_before(iter(pieces), iter(strings))]
    if not ends: assert ''.join(got) == text
    else:
        assert text.startswith(''.join(got)) and not any(s in ''.join(got) for s in strings)
        rest = text[len(''.join(got)):]
        assert any(rest.startswith(s) for s in strings)


def test_what_may_be_a_stop_string_is_withheld_and_no_more():
    seen = []
    for piece in stop_before(iter('ab<|e<|en'), '<|end|>'): seen.append(piece)
    assert seen == ['a', 'b', '<|e', '<|en']
    asked = []
    def pieces():
        for p in ['a', '<end>', 'b']:
            asked.append(p)
            yield p
    assert [*stop_before(pieces(), '<end>')] == ['a'] and asked == ['a', '<end>']


def test_stops_that_are_none():
    for bad in ('', [], ['a', '']):
        with refuses(ValueError, 'stop string is empty'): stop_before(['x'], bad)
    for bad in (5, None, [5], [None], [b'x'], [['a']]):
        with refuses(TypeError, 'a stop string is text'): stop_before(['x'], bad)
    with refuses(TypeError, 'done is a function'): stop_when(['x'], 'x')
    assert [*stop_when([5, 6, 7], lambda ids: ids[-1] == 6)] == [5, 6]
    assert [*stop_when([], lambda ids: True)] == []


# ---- a prompt that was read before

@pytest.mark.parametrize('kind', ATTENTIONS)
def test_a_prefix_goes_on_as_if_it_were_read_again(kind):
    kw = dict(n_kv_heads=1) if kind == 'grouped' else {}
    model = tiny(attn=ATTENTIONS[kind], **kw)
    prefix = Prefix(model, [1, 2, 3, 4, 5])
    for more in ([7], [8, 9, 10], [7]):
        want = [*generate(model, [1, 2, 3, 4, 5] + more, 20, seed=1)]
        assert [*prefix.generate(more, 20, seed=1)] == want
    a, b = prefix.generate([7], 9, seed=1), prefix.generate([8], 9, seed=1)     # in turn
    both = [*zip(a, b)]
    assert [x for x, _ in both] == [*prefix.generate([7], 9, seed=1)]
    seen = []
    look = RowFilter(lambda logits, rows: seen.append(rows[0][0]) or logits)
    next(prefix.generate([7], 1, look))
    assert seen == [[1, 2, 3, 4, 5, 7]]


def test_what_a_prefix_refuses():
    prefix = Prefix(tiny(), [1]*60)
    with refuses(ValueError, 'one token at least'): prefix.generate([], 3)
    with refuses(ValueError, '65 tokens', 'holds 64'): prefix.generate([1]*5, 3)
    with refuses(ValueError, 'outside the vocabulary'): next(prefix.generate([999], 3))
    with pytest.raises(TypeError, match='an id'): prefix.generate('text', 3)
    with refuses(ValueError, 'empty prompt'): Prefix(tiny(), [])


# ---- beams

def test_a_wide_beam_finds_the_likeliest_text_of_all():
    model = tiny(vocab_size=6)
    def logp(new):
        ids = torch.tensor([[1, 2, *new]])
        with torch.no_grad(): all_ = model(ids[:,:-1]).log_softmax(-1)[0,1:]
        return all_.gather(1, ids[0,2:,None]).sum().item()
    every = sorted(((logp(new), list(new)) for new in itertools.product(range(6), repeat=3)),
                   reverse=True)
    found = beam_search(model, [1, 2], 3, 36)
    assert [new for new, _ in found[:5]] == [new for _, new in every[:5]]
    assert found[0][1] == pytest.approx(every[0][0], abs=1e-4)
    assert beam_search(model, [1, 2], 3, 1)[0][0] == [*generate(model, [1, 2], 3, temperature(0))]
    assert beam_search(model, [1], 0) == [([], 0.)]


def test_beams_beyond_the_context_and_without_caches():
    model = tiny(vocab_size=20, context_length=8)
    found = beam_search(model, [1, 2, 3], 20, 3)
    model.new_caches = lambda: None
    again = beam_search(model, [1, 2, 3], 20, 3)
    assert [a for a, _ in found] == [a for a, _ in again]
    assert torch.allclose(torch.tensor([p for _, p in found]), torch.tensor([p for _, p in again]),
                          atol=1e-4)


# ---- a draft model

@pytest.mark.parametrize('seed', range(5))
def test_tokens_of_another_distribution_become_tokens_of_this_one(seed):
    g = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, 6, generator=g)**3
    if seed == 1: p[2:] = 0
    if seed == 2: q = p.clone()
    p, q, n = p/p.sum(), q/q.sum(), 20_000
    proposed = torch.multinomial(q.expand(n, 6), 1, generator=g)[:,0]
    new, accepted = accept_or_replace(p.expand(n, 6), q.expand(n, 6), proposed, g)
    chi_square(new, p.tolist())
    assert accepted.float().mean().item() == pytest.approx(torch.minimum(p, q).sum().item(),
                                                             abs=.02)
    assert torch.equal(new[accepted], proposed[accepted])


@pytest.mark.grid(quick=3, sample=18)
@pytest.mark.parametrize('kind', ATTENTIONS)
@pytest.mark.parametrize('k', [1, 4, 9])
def test_greedy_text_is_that_of_the_large_model_whoever_drafts(kind, k):
    kw = dict(n_kv_heads=1) if kind == 'grouped' else {}
    model = tiny(attn=ATTENTIONS[kind], **kw)
    want = [*generate(model, [1, 2, 3], 30, temperature(0))]
    for draft in (model, tiny(seed=5, n_layers=1, d_model=8)):
        new = [*speculative(model, draft, [1, 2, 3], 30, temperature(0), k=k, seed=0)]
        assert new == want


def joint(model, prompt, filters):
    "Probabilities (V·V,) of the next two tokens"
    V = model.cfg.vocab_size
    with torch.no_grad():
        a = filter_logits(model(torch.tensor([prompt]))[:,-1], filters, [(prompt, [])]).softmax(-1)
        then = torch.tensor([prompt + [i] for i in range(V)])
        rows = [(prompt, [i]) for i in range(V)]
        b = filter_logits(model(then)[:,-1], filters, rows).softmax(-1)
    return (a[0][:,None]*b).flatten().tolist()


@pytest.mark.exhaustive
@pytest.mark.parametrize('filters', [[], [temperature(.7), top_k(3)], [presence_penalty(1.)]])
@pytest.mark.parametrize('k', [1, 3])
def test_speculative_text_has_the_distribution_of_the_large_model(filters, k):
    model, draft = tiny(vocab_size=4), tiny(vocab_size=4, seed=5, n_layers=1, d_model=8)
    made = [[*speculative(model, draft, [1, 2], 3, *filters, k=k, seed=s)] for s in range(1500)]
    chi_square(torch.tensor([4*a + b for a, b, _ in made]), joint(model, [1, 2], filters))


@pytest.mark.parametrize('kind', ATTENTIONS)
def test_a_reader_forgets_what_was_written(kind):
    kw = dict(n_kv_heads=1) if kind == 'grouped' else {}
    model = tiny(attn=ATTENTIONS[kind], **kw)
    for n_read, n_unread in ((3, 0), (0, 3), (2, 3)):
        reader, first = Reader(model, [[1, 2, 3]]), [7, 8, 9, 10, 11][:n_read+n_unread]
        reader.read()
        if n_read:
            reader.append(torch.tensor([first[:n_read]]))
            reader.read()
        if n_unread: reader.append(torch.tensor([first[n_read:]]))
        rewind(reader, len(first)-1)
        assert reader.rows == [[1, 2, 3, 7]] and reader.n_tokens == 4
        reader.append(torch.tensor([[12]]))
        fresh = Reader(model, [[1, 2, 3, 7, 12]])
        torch.testing.assert_close(reader.next_logits(), fresh.next_logits())
        rewind(reader, 0)
        assert reader.rows == fresh.rows


def test_what_speculative_refuses():
    with refuses(ValueError, 'vocabularies of 257 and 9'):
        speculative(tiny(), tiny(vocab_size=9), [1], 3)
    with refuses(ValueError, '65 tokens', 'holds 64'): speculative(tiny(), tiny(), [1]*5, 60)
    with pytest.raises(ValueError, match='^k must be'): speculative(tiny(), tiny(), [1], 3, k=0)
    assert [*speculative(tiny(), tiny(), [1], 0)] == []


# ---- text of a given form

def test_constrained_text_is_of_its_form():
    extra('llguidance')
    bpe = BPE.train(['12 cats and 345 dogs {"name": 1}']*30, 280, special=['<|bos|>'],
                    verbose=False)
    schema = dict(type='object', required=['n'], additionalProperties=False,
                  properties=dict(n=dict(type='integer', minimum=0, maximum=99)))
    for tok in (TOK, bpe):
        model = tiny(vocab_size=tok.vocab_size + 7)               # rows that only round up
        for seed in range(3):
            f = constrained(tok, r'[0-9]{2,3} (cats|dogs é)')
            text = ''.join(generate_text(model, tok, '', 40, f, seed=seed))
            assert re.fullmatch(r'[0-9]{2,3} (cats|dogs é)', text)
            text = ''.join(generate_text(model, tok, '', 40, constrained(tok, schema=schema),
                                         seed=seed))
            assert 0 <= json.loads(text)['n'] <= 99
    rows = torch.stack([*generate_rows(tiny(), [[256, 1], [256]], 12, constrained(TOK, 'ab+c'),
                                       seed=0)], 1).tolist()
    for r in rows: assert re.fullmatch('ab+(c\0*)?', bytes(i % 256 for i in r).decode())


def test_what_constrained_refuses():
    extra('llguidance')
    for bad in (dict(), dict(regex='a', schema={})):
        with refuses(ValueError, 'one of them'): constrained(TOK, **bad)
    with refuses(ValueError, 'llguidance'): constrained(TOK, '[a')
    with refuses(ValueError, 'llguidance'): constrained(TOK, schema=dict(type='nothing'))
    with refuses(ValueError, 'no mark that ends'): constrained(AsciiTokenizer(), 'a')
    with refuses(ValueError, 'not of the required form'):
        filter_logits(torch.zeros(1, 257), constrained(TOK, 'ab'), [([], [120])])


# ---- cached equals uncached, and compiled equals plain

PRESETS = dict(modern=lambda **kw: GPTConfig(**kw), gpt2=gpt2_config, llama=llama_config,
               llama_grouped=partial(llama_config, n_kv_heads=2, d_ff=64),
               window=partial(GPTConfig, attn=partial(Attention, window=50)),
               delta=partial(GPTConfig, attn=DeltaAttention),
               static=partial(GPTConfig, attn=partial(OpenAttention, cache=StaticCache)),
               ring=partial(GPTConfig, attn=partial(OpenAttention, cache=RingCache, window=50)),
               experts=partial(GPTConfig, mlp=partial(MoE, n_experts=4)))
SMALL = dict(vocab_size=300, context_length=400, n_layers=2, n_heads=4, d_model=32)

def preset(kind):
    torch.manual_seed(0)
    kw = SMALL | (dict(d_ff=64) if kind == 'llama' else {})
    return perturb_parameters(GPT(PRESETS[kind](**kw)), .3).eval()


@pytest.mark.exhaustive
@pytest.mark.parametrize('kind', PRESETS)
def test_cached_text_is_uncached_text_for_256_greedy_tokens(kind):
    model, rows = preset(kind), [[1, 2, 3], [4]]
    cached = torch.stack([*generate_rows(model, rows, 256, temperature(0))], 1)
    assert len(set(cached[0].tolist())) > 2
    model.new_caches = lambda: None
    assert torch.equal(torch.stack([*generate_rows(model, rows, 256, temperature(0))], 1), cached)


FIXED = [k for k in PRESETS if k not in ('delta',)]

@pytest.mark.grid(quick=3, sample=9)
@pytest.mark.parametrize('kind', FIXED)
def test_static_memory_writes_the_same(kind):
    model = preset(kind)
    fixed = StaticDecoder(model, 32, compiled=False)
    for rows in ([[1, 2, 3]], [[1, 2, 3], [4]]):
        made = torch.stack([*generate_rows(fixed, rows, 50, temperature(0))], 1)
        want = torch.stack([*generate_rows(model, rows, 50, temperature(0), reach=32)], 1)
        assert torch.equal(made, want)
    copies = [*generate_rows(fixed, [[1, 2]], 9, seed=1, copies=3)]
    assert torch.equal(torch.stack(copies),
                       torch.stack([*generate_rows(model, [[1, 2]], 9, seed=1, copies=3)]))
    new = [*speculative(fixed, fixed, [1, 2], 9, temperature(0), seed=0)]
    assert new == [*generate(model, [1, 2], 9, temperature(0))]


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_compiled_step_writes_the_same_and_compiles_once():
    model = preset('modern')
    fast = StaticDecoder(model, 64, compiled=True)
    first = [*generate(fast, [1, 2], 3, temperature(0))]
    with torch.compiler.set_stance('fail_on_recompile'):
        made = [*generate(fast, [1, 2], 120, temperature(0))]
    assert made[:3] == first
    assert made == [*generate(model, [1, 2], 120, temperature(0), reach=64)]
    with torch.no_grad(): nn.init.normal_(model.head.weight)      # the weights are the model's own
    assert [*generate(fast, [1, 2], 9, temperature(0))] == [*generate(model, [1, 2], 9,
                                                                      temperature(0))]


def test_where_the_compiler_fails_decoding_says_why_and_goes_on(monkeypatch, capsys):
    model = preset('modern')
    def failing(graph, inputs): raise RuntimeError('fatal error: Python.h: No such file')
    monkeypatch.setattr('gptlab.sampling._compiled',
                        lambda model, rows: torch.compile(model.forward, backend=failing))
    fast, prompt = StaticDecoder(model, 32, compiled=True), [1, 2, 3]
    assert [*generate(fast, prompt, 9, temperature(0))] == [*generate(model, prompt, 9,
                                                                      temperature(0))]
    said = capsys.readouterr().out
    assert said.count('compiling failed (Python.h: No such file)') == 1 and not fast.compiled
    torch.compiler.reset()


def test_what_a_decoder_refuses():
    with refuses(ValueError, 'keep keys and values', 'StateCache'): StaticDecoder(preset('delta'))
    with refuses(TypeError, 'takes a GPT'): StaticDecoder(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='^length must be'): StaticDecoder(tiny(), 0)
    fixed = StaticDecoder(tiny(), 1000, compiled=False)
    assert fixed.length == 64
    with refuses(ValueError, 'holds 64'): generate(fixed, [1]*65, 1)


# ---- arguments that make no sense

@pytest.mark.parametrize('make', [typical_p, repetition_penalty, presence_penalty,
                                  frequency_penalty])
def test_settings_that_are_none(make):
    for bad in ('x', None, True, [1], 1j, math.nan, math.inf):
        with pytest.raises((TypeError, ValueError), match=f'^{make.__name__} must be'): make(bad)
    for f, bad in [(typical_p, 0), (typical_p, 1.01), (repetition_penalty, 0),
                   (repetition_penalty, -1)]:
        with pytest.raises(ValueError, match=f'^{f.__name__} must be'): f(bad)


def test_biases_that_are_none():
    for bad in (5, 'x', None, [1, 2], [(1, 2.)]):
        with refuses(TypeError, 'a dict from ids'): logit_bias(bad)
    for bad in ({-1: 1.}, {1.5: 1.}, {'a': 1.}, {1: math.nan}, {1: math.inf}, {1: 'x'}):
        with pytest.raises((TypeError, ValueError), match='^(an id|a bias) must be'):
            logit_bias(bad)
    with refuses(ValueError, 'id 9', 'vocabulary of 9'): logit_bias({9: 1.})(torch.zeros(1, 9))
    with refuses(ValueError, 'no token is left'):
        draw_token(torch.zeros(1, 3), logit_bias({i: -math.inf for i in range(3)}))


@pytest.mark.parametrize('bad', [0, -1, 1.5, 'x', None, True, math.nan])
def test_numbers_that_are_none(bad):
    for f, name in ((lambda: generate_rows(tiny(), [[1]], 3, copies=bad), 'copies'),
                    (lambda: beam_search(tiny(), [1], 3, bad), 'width'),
                    (lambda: speculative(tiny(), tiny(), [1], 3, k=bad), 'k')):
        with pytest.raises((TypeError, ValueError), match=f'^{name} must be a whole number'): f()

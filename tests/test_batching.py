"""Continuous batching: every request gets the text that it would have got alone, an engine keeps
its bounds, and no request can harm another."""
import gc
import random
import threading
import time
import warnings
from functools import partial

import pytest
import torch

from common import refuses, tiny_model
from gptlab.attention import Attention, Cache
from gptlab.attentions import (InductionValue, OpenAttention, PairValue, PreviousValue,
                               RingCache, StaticCache,
                               ValueEmbedding, window_pattern)
from gptlab.batching import Columns, Engine, Full, Request, RowBatch
from gptlab.generation import generate, generate_text, Reader, RowFilter, temperature, top_k
from gptlab.linear_attentions import DeltaAttention, MLA
from gptlab.model import gpt2_config, llama_config, GPT
from gptlab.moe import MoD, MoE
from gptlab.positions import ALiBi
from gptlab.sampling import frequency_penalty, StaticDecoder, stop_before
from gptlab.tokenizer import ByteTokenizer

TOK = ByteTokenizer()
GREEDY = temperature(0)
tiny = partial(tiny_model, context_length=64)
shape = dict(vocab_size=257, context_length=64, n_layers=2, n_heads=2, d_model=16)

class Plain(torch.nn.Module):
    "A model without caches"
    def __init__(self):
        super().__init__()
        self.inner = tiny()

    def forward(self, ids, docs=None, pos=None): return self.inner(ids, docs=docs, pos=pos)


def llama():
    torch.manual_seed(1)
    return GPT(llama_config(**shape | dict(vocab_size=300, d_ff=32))).eval()


def gpt2():
    torch.manual_seed(1)
    return GPT(gpt2_config(**shape)).eval()

MODELS = dict(
    plain=tiny, grouped=lambda: tiny(n_kv_heads=1), gpt2=gpt2, llama=llama,
    window=lambda: tiny(attn=partial(Attention, window=7)),
    one=lambda: tiny(attn=partial(Attention, window=1)),
    pattern=lambda: tiny(n_layers=3, attn=window_pattern('SSL', 3, 5)),
    ring=lambda: tiny(attn=partial(OpenAttention, window=7, cache=RingCache)),
    static=lambda: tiny(attn=partial(OpenAttention, cache=StaticCache)),
    alibi=lambda: tiny(attn=partial(Attention, pos=ALiBi)),
    softcap=lambda: tiny(attn=partial(Attention, softcap=20.)),
    mla=lambda: tiny(attn=MLA), delta=lambda: tiny(attn=DeltaAttention),
    mixed=lambda: tiny(attn=[DeltaAttention, Attention]),
    front_page=lambda: tiny(attn=partial(OpenAttention, adds=[ValueEmbedding, PreviousValue])),
    before=lambda: tiny(attn=partial(OpenAttention, window=1, adds=[PreviousValue])),
    induction=lambda: tiny(attn=[partial(OpenAttention, adds=[PairValue, InductionValue]),
                                 partial(OpenAttention, window=4, adds=[InductionValue])]),
    experts=lambda: tiny(mlp=partial(MoE, n_experts=4, k=2)))
ALONE = dict(depth=lambda: tiny(block=MoD), uncached=Plain,
             decoder=lambda: StaticDecoder(tiny(), compiled=False))


def alone(model, prompt, n, *filters, seed=None):
    return ''.join(generate_text(model, TOK, prompt, n, *filters, seed=seed))


def asked(n, longest=40, seed=0):
    "n requests: prompt, tokens, filters; some are drawn, some greedy"
    rng = random.Random(seed)
    text = lambda: ''.join(rng.choice('abc de\n') for _ in range(rng.randint(1, longest)))
    sampled = temperature(.9), top_k(20)
    return [(text(), rng.randint(1, 40), sampled if i % 2 else (GREEDY,)) for i in range(n)]


def endless(logits):
    "The end is never drawn, so that a request is there until it is cancelled"
    return logits.index_fill(-1, torch.tensor([TOK.bos]), float('-inf'))


def only(i):
    "A filter that leaves one id"
    return lambda logits: torch.where(torch.arange(257) == i, 0., -torch.inf).expand_as(logits)


def run(engine):
    "Step until nothing is left"
    while engine.step(): pass


def empty(engine):
    "Is nothing left of any request?"
    s = engine.stats()
    return [s[k] for k in ('active', 'waiting', 'cached_tokens', 'cache_bytes')] == [0]*4


def same_texts(model, n, longest=40, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        engine, asks = Engine(model, TOK, **kw), asked(n, longest)
        jobs, want = [], [alone(model, p, m, *f, seed=i) for i, (p, m, f) in enumerate(asks)]
        for i, (prompt, m, filters) in enumerate(asks):    # they arrive at uneven times
            jobs.append(engine.submit(prompt, m, *filters, seed=i))
            for _ in range(i % 4): engine.step()
        run(engine)
    assert [j.text() for j in jobs] == want
    assert empty(engine) and engine.stats()['finished'] == n
    return engine


# ---- the text of each, whatever its company

@pytest.mark.grid(quick=5, sample=12)
@pytest.mark.parametrize('name', MODELS)
def test_each_text_is_what_it_would_be_alone(name):
    engine = same_texts(MODELS[name](), 7, rows=3, chunk=20)
    assert isinstance(engine.batch, RowBatch)


@pytest.mark.grid(quick=1, sample=3)
@pytest.mark.parametrize('name', ALONE)
def test_models_whose_rows_cannot_be_put_side_by_side_are_slower_and_no_worse(name):
    model = ALONE[name]()
    with pytest.warns(UserWarning, match='each request is read by itself'): Engine(model, TOK)
    same_texts(model, 5, rows=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize('rows,chunk', [(1, 1), (2, 7), (5, 300), (16, 3)])
def test_rows_and_chunks_change_no_text(rows, chunk):
    same_texts(tiny(n_layers=3, attn=window_pattern('SSL', 3, 5)), 20, 60, rows=rows, chunk=chunk)


def test_a_context_that_is_full_is_read_anew_as_generate_does():
    model = tiny(context_length=16)
    engine = Engine(model, TOK, rows=2, chunk=5)
    jobs = [engine.submit(p, 50, GREEDY) for p in ('a', 'x'*15)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert [j.text() for j in jobs] == [alone(model, p, 50, GREEDY) for p in ('a', 'x'*15)]
    assert empty(engine)


def test_reach_is_the_context_that_is_used():
    model = tiny()
    job = Engine(model, TOK, reach=12).submit('abc', 40, GREEDY)
    want = generate(model, [TOK.bos, *b'abc'], 40, GREEDY, reach=12, stop=[TOK.bos])
    assert [p.id for p in job] == [*want]


def test_logits_of_a_batch_differ_from_those_alone_by_rounding_only():
    model = tiny()
    batch, rows = RowBatch(Reader(model, [[0]])), [[1, 2, 3], [4]*20, [5]]
    for ids in rows:
        row = batch.begin(ids)
        batch.read(row, 99)
        batch.join(row)
    for t in range(24):
        for ids in rows: ids.append(t)
        got = batch.next_logits([t]*len(rows))
        with torch.no_grad(): want = torch.stack([model(torch.tensor([r]))[0,-1] for r in rows])
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        if t in (8, 16):
            batch.leave(0)
            rows[0] = rows[-1]
            rows.pop()
    assert len(rows) == 1


def test_columns_of_rows_that_left_are_given_back():
    batch = RowBatch(Reader(tiny(), [[0]]))
    for n in (50, 3, 3, 3):
        row = batch.begin([1]*n)
        batch.read(row, 99)
        batch.join(row)
    size = lambda: sum(t.numel() for c in batch.caches for t in c.kept.values())
    full = size()
    for _ in range(2): batch.leave(0)
    assert size() < full/2                          # the long one is gone, and half of the rows
    for _ in range(2): batch.leave(0)
    assert not batch.caches and not batch.columns


# ---- one prompt, several texts

@pytest.mark.grid(quick=4, sample=10)
@pytest.mark.parametrize('name', [*MODELS, *ALONE])
def test_requests_of_one_prompt_have_their_own_texts(name):
    model, hot = (MODELS | ALONE)[name](), temperature(.9)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        engine = Engine(model, TOK, rows=4, chunk=5)
        jobs = [engine.submit('abcdefgh', 9, hot, seed=i) for i in range(6)]
        engine.step()                               # of nine tokens, five are read
        jobs[1].cancel()
        run(engine)
        for i in (0, 2, 3, 4, 5): assert jobs[i].text() == alone(model, 'abcdefgh', 9, hot, seed=i)
    assert jobs[1].reason == 'cancelled' and empty(engine)


def test_one_prompt_is_read_once_for_those_who_come_together():
    model, read = tiny(), []
    engine = Engine(model, TOK, rows=4, chunk=6)
    noted = lambda m, args, y: read.append((tuple(args[0].shape), tuple(y.shape[:2])))
    hook = model.register_forward_hook(noted)
    jobs = [engine.submit(p, 5, GREEDY) for p in ('abcdefgh', 'abcdefgh', 'abc', 'abcdefgh')]
    engine.step()
    assert engine.stats()['cached_tokens'] == 6     # counted once
    run(engine)
    hook.remove()
    # nine tokens and four; of each call the logits after the last token alone
    assert read[:4] == [((1, 6), (1, 1)), ((1, 3), (1, 1)), ((1, 3), (1, 1)), ((3, 1), (3, 1))]
    assert read[4] == ((1, 1), (1, 1)) and len({j.text() for j in jobs if j is not jobs[2]}) == 1
    late = [engine.submit('abc', 3), engine.submit('abc', 3)]
    late[0].cancel()
    run(engine)
    assert late[1].reason and empty(engine)


def no_memory(model, args):
    "Before a model reads: a prompt of three characters, with its bos, is too much"
    if args[0].shape == (1, 4): raise RuntimeError('no memory')


def test_a_prompt_that_cannot_be_read_ends_all_who_share_it():
    model = tiny()
    engine = Engine(model, TOK)
    hook = model.register_forward_pre_hook(no_memory)
    jobs = [engine.submit(p, 5, GREEDY) for p in ('abc', 'ab', 'abc')]
    run(engine)
    hook.remove()
    assert [j.reason for j in jobs] == ['error', 'length', 'error'] and empty(engine)


@pytest.mark.grid(quick=3, sample=8)
@pytest.mark.parametrize('name', [*MODELS, *ALONE])
def test_a_model_can_be_trained_while_it_is_served(name):
    model = (MODELS | ALONE)[name]()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        engine = Engine(model, TOK, rows=2)
    jobs = [engine.submit('abc', 9, GREEDY) for _ in range(3)]
    for _ in range(3): engine.step()
    if isinstance(model, StaticDecoder): return     # it never gives a loss
    model(torch.tensor([[1, 2, 3]]))[0].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    run(engine)
    assert {j.reason for j in jobs} <= {'length', 'stop'} and empty(engine)


# ---- pieces, ends, and what is drawn

def test_a_stop_string_ends_a_text_as_stop_before_does():
    model = tiny()
    for seed in (1, 2, 3):
        pieces = [*generate_text(model, TOK, 'abc', 40, seed=seed)]
        text = ''.join(pieces)
        if len(text) < 12: continue
        for stop in ([text[9:11]], [text[7:8], text[9:12]], ['never'], [text[-1]]):
            job = Engine(model, TOK).submit('abc', 40, stop=stop, seed=seed)
            assert job.text() == ''.join(stop_before(pieces, stop))
            assert job.reason == ('stop' if stop != ['never'] else 'length')


def test_what_may_begin_a_stop_string_is_given_when_it_is_decided():
    model = tiny()
    text = alone(model, 'abc', 30, seed=3)
    job = Engine(model, TOK).submit('abc', 30, seed=3, stop=text[:5] + '\0')
    pieces = [*job]
    assert ''.join(p.text for p in pieces) == text and all(len(p) == 4 for p in pieces)


def test_half_a_character_at_the_end_is_no_text():
    job = Engine(tiny(), TOK).submit('a', 1, only(0xc3))
    assert job.text() == '' and job.usage['completion_tokens'] == 1


def test_end_marks_and_stop_ids_end_a_text():
    model = tiny()
    new = [*generate(model, [TOK.bos, 97], 20, seed=5)]
    job = Engine(model, TOK).submit('a', 20, seed=5, stop_ids=[new[6]])
    assert [p.id for p in job] == new[:new.index(new[6])] and job.reason == 'stop'
    job = Engine(model, TOK).submit('a', 20, only(TOK.bos))
    assert (job.text(), job.reason) == ('', 'stop')


def test_log_probabilities_are_the_models_own():
    model = tiny()
    job = Engine(model, TOK).submit([1, 2], 5, top_k(3), temperature(.3), seed=1, top=4)
    pieces = [*job]
    ids = torch.tensor([[1, 2] + [p.id for p in pieces]])
    with torch.no_grad(): logp = model(ids).log_softmax(-1)[0,1:-1]   # (5,V)
    for p, row in zip(pieces, logp):
        assert abs(p.logprob - row[p.id].item()) < 1e-4
        want = row.topk(4)
        assert [i for i, _ in p.top] == want.indices.tolist()
        assert max(abs(x - y) for (_, x), y in zip(p.top, want.values.tolist())) < 1e-4
    assert [*Engine(model, TOK).submit([1, 2], 1, GREEDY)][0].top == []


def test_a_filter_that_writes_into_the_logits_leaves_log_probabilities_alone():
    model = tiny()
    def few(logits):
        logits[:,9:] = -torch.inf
        return logits
    [piece] = Engine(model, TOK).submit([1, 2], 1, few, seed=0, top=3)
    with torch.no_grad(): logp = model(torch.tensor([[1, 2]]))[0,-1].log_softmax(-1)
    assert piece.id < 9 and abs(piece.logprob - logp[piece.id].item()) < 1e-4
    assert [i for i, _ in piece.top] == logp.topk(3).indices.tolist()


def test_filters_that_see_the_text_see_that_of_their_own_request():
    model, seen = tiny(), []
    def look(logits, rows):
        seen.extend((p[-1], len(w)) for p, w in rows)
        return logits
    engine = Engine(model, TOK)
    jobs = [engine.submit([7]*n, 2, RowFilter(look), frequency_penalty(.5)) for n in (1, 2)]
    run(engine)
    assert {j.reason for j in jobs} == {'length'} and sorted(seen) == [(7, 0)]*2 + [(7, 1)]*2


def test_ids_that_the_tokenizer_lacks_are_never_drawn():
    model = llama()                                 # 300 ids, the tokenizer has 257
    job = Engine(model, TOK).submit('a', 60, temperature(5.), seed=0)
    assert max(p.id for p in job) < 257


# ---- arrival and order

def test_the_first_token_comes_in_the_step_after_the_arrival():
    engine = Engine(tiny(), TOK, rows=4)
    first = engine.submit('abc', 30)
    for n in range(5): engine.step()
    late = engine.submit('defg', 5)
    engine.step()
    assert len(late.written) == 2 and len(first.written) == 7


def test_first_come_first_served():
    engine, order = Engine(tiny(), TOK, rows=2), []
    jobs = [engine.submit('abc', n) for n in (9, 3, 4, 5, 2, 7)]
    while engine.step():
        order += [j for j in jobs if j.written and j not in order]
    assert order == jobs


def test_a_long_prompt_stalls_the_others_by_one_chunk_at_most():
    engine = Engine(tiny(), TOK, rows=3, chunk=8)
    read = []
    hook = engine.batch.model.register_forward_hook(lambda m, args, y: read.append(args[0].numel()))
    job = engine.submit('a', 30)
    engine.step()
    long, short = engine.submit('x'*50, 3), engine.submit('b', 3)
    for _ in range(7):
        before, _ = len(job.written), read.clear()
        engine.step()
        assert len(job.written) == before + 1 and sum(read) <= 8 + 3
    hook.remove()
    assert long.written and not short.cancelled


# ---- bounds

def test_a_full_queue_refuses():
    engine = Engine(tiny(), TOK, rows=1, waiting=2)
    jobs = [engine.submit('a', 3) for _ in range(2)]
    with refuses(Full, '2 requests wait'): engine.submit('a', 3)
    jobs[0].cancel()                                # its place is free at once
    assert jobs[0].reason == 'cancelled'
    engine.submit('a', 3)
    run(engine)
    assert engine.stats()['finished'] == 2 and engine.stats()['cancelled'] == 1


def test_tokens_bound_the_memory():
    engine = Engine(tiny(), TOK, rows=8, tokens=60)
    jobs = [engine.submit('x'*(n % 9), 10) for n in range(12)]
    while engine.step():
        lengths = engine.batch.lengths
        assert len(lengths)*max(lengths, default=0) <= 60
    assert all(j.reason in ('length', 'stop') for j in jobs)
    with refuses(ValueError, 'keeps 60 at most'): engine.submit('x'*40, 40)


@pytest.mark.parametrize('kw,words', [
    (dict(prompt='x'*80), ['81 tokens', 'holds 64']), (dict(prompt=[]), ['empty prompt']),
    (dict(prompt=[999]), ['token id', '999']), (dict(n=0), ['n must be']),
    (dict(n=5000), ['4096']), (dict(stop=''), ['empty']), (dict(top=-1), ['top']),
    (dict(stop_ids=[-1]), ['stop id']), (dict(seed=2**70), ['seed'])])
def test_bad_requests_are_refused_at_once(kw, words):
    engine, given = Engine(tiny(), TOK), dict(prompt='a', n=3) | kw
    with refuses(ValueError, *words): engine.submit(given.pop('prompt'), given.pop('n'), **given)
    assert not engine.queue


@pytest.mark.parametrize('args,kw', [
    ((b'a', 3), {}), ((['a'], 3), {}), (('a', 2.5), {}), (('a', 3, 'greedy'), {}),
    (('a', 3), dict(stop=[3])), (('a', 3), dict(stop_ids=['x'])), (('a', 3), dict(seed='x'))])
def test_requests_of_wrong_types_are_refused_at_once(args, kw):
    with pytest.raises(TypeError): Engine(tiny(), TOK).submit(*args, **kw)


def test_a_prompt_without_text_needs_a_mark_that_begins_a_document():
    model = tiny(vocab_size=3)
    with refuses(ValueError, 'empty prompt'): Engine(model, NoMarks()).submit('', 3)


class NoMarks:
    "A tokenizer of three letters without any mark"
    vocab_size = 3
    def encode(self, text): return ['abc'.index(c) for c in text]
    def decode_bytes(self, ids): return bytes('abc'[i].encode()[0] for i in ids)


# ---- failures stay with the request whose fault they are

def broken(logits): raise ValueError('no such filter')

def nan(logits): return logits*float('nan')

def short(logits): return logits[:,:5]

def first_only(logits):
    if len(logits) > 1: raise ValueError('one row at a time')
    return logits


@pytest.mark.parametrize('bad,says', [(broken, 'no such filter'), (nan, 'NaN'),
                                      (short, 'keep the shape'), (lambda logits: None, 'return')])
def test_a_filter_that_fails_ends_its_own_request(bad, says):
    model = tiny()
    engine = Engine(model, TOK)
    jobs = [engine.submit('abc', 9, *f) for f in ([GREEDY], [bad], [GREEDY])]
    run(engine)
    assert [j.reason for j in jobs] == ['length', 'error', 'length']
    assert says in str(jobs[1].error) and empty(engine) and engine.stats()['failed'] == 1
    with pytest.raises(type(jobs[1].error)): jobs[1].text()
    assert jobs[0].text() == alone(model, 'abc', 9, GREEDY)


def test_a_filter_that_takes_one_row_only_is_given_one_row():
    engine = Engine(tiny(), TOK)
    jobs = [engine.submit('abc', 4, first_only, seed=i) for i in range(3)]
    run(engine)
    assert {j.reason for j in jobs} == {'length'}


def test_logits_that_are_nan_in_one_row_leave_no_trace_for_whoever_comes_next():
    model = tiny()
    want = alone(model, 'ab', 6, GREEDY)
    with torch.no_grad(): model.embed.weight[200] = float('nan')
    engine = Engine(model, TOK, rows=2)
    force = only(200)
    other = engine.submit('abcdef', 20, GREEDY)
    bad = engine.submit('ab', 9, force)
    engine.step()
    engine.step()
    later = engine.submit('ab', 6, GREEDY)
    run(engine)
    assert bad.reason == 'error' and 'NaN' in str(bad.error)
    assert later.text() == want and other.reason == 'length'


def test_a_prompt_that_the_model_cannot_read_ends_its_own_request():
    model = tiny()
    engine = Engine(model, TOK)
    hook = model.register_forward_pre_hook(no_memory)
    jobs = [engine.submit(p, 5) for p in ('ab', 'abc')]
    run(engine)
    hook.remove()
    assert [j.reason for j in jobs] == ['length', 'error'] and 'no memory' in str(jobs[1].error)


def test_an_engine_that_dies_ends_all_requests_and_says_why():
    model = tiny()
    engine = Engine(model, TOK, rows=2)
    jobs = [engine.submit('ab', 9) for _ in range(3)]
    engine.step()
    hook = model.register_forward_pre_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): engine.step()
    hook.remove()
    assert [j.reason for j in jobs] == ['error']*3 and empty(engine)
    with refuses(RuntimeError, 'has stopped', 'ZeroDivisionError'): jobs[0].text()
    with refuses(RuntimeError, 'has stopped'): engine.submit('a', 3)


# ---- readers, threads, clients that vanish

def test_a_thread_serves_many_readers_and_none_waits_for_another():
    model, asks, got = tiny(), asked(12), {}
    want = [alone(model, p, n, *f, seed=i) for i, (p, n, f) in enumerate(asks)]
    with Engine(model, TOK, rows=4) as engine:
        idle = engine.submit('never read', 30)
        def client(i):
            p, n, f = asks[i]
            got[i] = engine.submit(p, n, *f, seed=i).text()
        threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
        for t in threads: t.start()
        for t in threads: t.join(60)
        with refuses(RuntimeError, "own thread takes the steps"): engine.step()
        assert idle.text() is not None
    assert [got[i] for i in range(12)] == want and empty(engine)


def test_listeners_are_told_every_piece_and_the_end():
    model = tiny()
    engine = Engine(model, TOK)
    job = engine.submit('abc', 8, GREEDY)
    engine.step()
    heard = []
    job.listen(heard.append)                        # what was there already comes first
    run(engine)
    assert heard[-1] is None
    assert ''.join(p.text for p in heard[:-1]) == alone(model, 'abc', 8, GREEDY)
    late = []
    job.listen(late.append)
    assert late == [None] and [*job] == []


def test_a_listener_that_raises_is_cancelled():
    engine = Engine(tiny(), TOK)
    job, other = engine.submit('abc', 8), engine.submit('abc', 8)
    job.listen(lambda piece: 1/0)
    run(engine)
    assert job.reason == 'cancelled' and isinstance(job.error, ZeroDivisionError)
    assert other.reason in ('length', 'stop') and empty(engine)


def test_a_listener_may_cancel_its_own_request():
    with Engine(tiny(), TOK) as engine:
        job, ended = engine.submit('abc', 3000, endless), threading.Event()
        job.listen(lambda piece: job.cancel() if piece else ended.set())
        assert ended.wait(20) and job.reason == 'cancelled'


def test_closing_ends_what_is_left_and_wakes_who_waits():
    engine, ends, begun = Engine(tiny(), TOK, rows=1), [], threading.Event()
    def slowly(logits):                                     # so that none is done before the end
        begun.set()
        time.sleep(.1)
        return endless(logits)
    with engine:
        jobs = [engine.submit('abc', 4000, slowly) for _ in range(3)]
        readers = [threading.Thread(target=lambda j=j: ends.append([*j])) for j in jobs]
        for t in readers: t.start()
        assert begun.wait(20)
    for t in readers: t.join(20)
    assert len(ends) == 3 and {j.reason for j in jobs} == {'cancelled'} and empty(engine)
    with refuses(RuntimeError, 'closed'): engine.submit('a', 3)
    with refuses(RuntimeError, 'closed'): engine.__enter__()


def vanish(clients):
    rng = random.Random(0)
    with Engine(tiny(), TOK, rows=4, waiting=clients) as engine:
        jobs = [engine.submit('abc', 500, endless, seed=i) for i in range(clients)]
        for job in jobs:
            for _ in range(rng.randrange(3)): next(job)
            job.cancel()
        until = time.monotonic() + 30
        while not empty(engine) and time.monotonic() < until: time.sleep(.005)
        assert empty(engine) and engine.stats()['cancelled'] == clients
        del job, jobs
        gc.collect()
        assert not [o for o in gc.get_objects() if type(o) is Request and o.engine is engine]


def test_clients_that_vanish_leave_nothing_behind(): vanish(20)


@pytest.mark.exhaustive
def test_many_clients_that_vanish_leave_nothing_behind(): vanish(300)


def served(n):
    "Tensors, and requests, that are alive after n requests"
    engine = Engine(tiny(), TOK, rows=8)
    for i in range(n):
        engine.submit('ab'*(i % 5), 1 + i % 3, seed=i)
        engine.step()
    run(engine)
    gc.collect()
    count = sum(type(o) in (torch.Tensor, Request, Cache) for o in gc.get_objects())
    assert empty(engine) and engine.stats()['finished'] == n
    return count


def test_memory_is_flat():
    served(20)
    assert abs(served(100) - served(20)) < 10


@pytest.mark.exhaustive
def test_memory_is_flat_over_many_requests():
    served(20)
    assert abs(served(600) - served(20)) < 10


def test_columns_say_when_none_is_left():
    c = Columns(torch.full((1, 2), -1), None)
    for n in (1, 2): c.advance(torch.tensor([[n-1]]), n)
    assert c.is_full and c.visible.tolist() == [[0, 1]] and Columns(c.pos, 5).kept(9) == 4

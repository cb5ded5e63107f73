"""The mistakes of the five systems that gptlab takes up, so that none comes back. Each test says
whose mistake it would have caught.

LAB is gpt-lab, HLB hlb-gpt, GL gradientlab, SLM Experimental-SLM, AIL ai-lab-v2. What a chapter
asserts by itself is not repeated here. Elsewhere: sampling that restarts the dropout's dice (SLM),
updates lost by a resume (LAB, SLM), a resume that is nearly the same (SLM): test_resume. Weights
loaded without looking (SLM), damaged or pickled checkpoints (LAB, HLB): test_bad_input. A run that
is another after a resume (SLM): test_cli. Snippets in the README that cannot run (LAB, AIL):
test_package and the front page's tests.
"""
import itertools, math, random, time
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from common import extra
import gptlab.tokenizers                                       # gives a BPE to_tokenizer_json
from gptlab.attention import Attention, RoPE, Seq
from gptlab.bpe import BPE
from gptlab.core import set_seed
from gptlab.data import corpus, make_stories
from gptlab.generation import generate, generate_rows, generate_text, temperature, top_k, top_p
from gptlab.model import GPT, GPTConfig, gpt2_config, llama_config, lm_loss
from gptlab.optimizers import Opt, adamw, hidden, muon, sgd
from gptlab.packing import batches, tokenize
from gptlab.sampling import min_p
from gptlab.schedules import linear, wsd
from gptlab.score import evaluate
from gptlab.tokenizer import ByteTokenizer, CharTokenizer
from gptlab.trainer import Trainer

TOK = ByteTokenizer()
DIMS = dict(vocab_size=257, context_length=64, n_layers=4, n_heads=4, d_model=32)
MODELS = dict(modern=partial(GPTConfig, **DIMS), gpt2=partial(gpt2_config, **DIMS),
              llama=partial(llama_config, **DIMS, d_ff=64),
              grouped=partial(GPTConfig, **DIMS, n_kv_heads=2),
              windows=partial(GPTConfig, **DIMS, attn=[partial(Attention, window=5), Attention]))

def lively(cfg, seed=0):
    "A model all of whose parts answer: nothing is left at its initial zero"
    set_seed(seed)
    model = GPT(cfg).eval()
    for p in model.parameters(): p.data += .1*torch.randn_like(p)
    return model


# ---- layers

@pytest.mark.parametrize('name', MODELS)
def test_layers_begin_different_and_runs_alike(name):
    """SLM: with a seed, every block began identical. GL: the residual scale was applied once for
    every enclosing module. Without a fixed seed two runs could not be compared"""
    def make(seed):
        set_seed(seed)
        return GPT(MODELS[name](dropout=0.))

    a, b, c = make(1), make(1), make(2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    for x, y in itertools.combinations(a.blocks, 2):
        for (n, p), q in zip(x.named_parameters(), y.parameters()):
            if p.ndim == 2 and p.abs().sum(): assert (p == q).float().mean() < .01, n
    assert not torch.equal(a.blocks[0].attn.q.weight, c.blocks[0].attn.q.weight)


def test_the_residual_scale_is_applied_once():
    """GL: attention's output shrank to 5e-4, for four enclosing modules each divided by √44; the
    MLP's never matched its name"""
    set_seed(0)
    model = GPT(gpt2_config(vocab_size=100, context_length=8, n_layers=8, n_heads=2, d_model=128))
    for b in model.blocks:
        for m, std in ((b.attn.q, .02), (b.attn.o, .02/4), (b.mlp.up, .02), (b.mlp.down, .02/4)):
            assert abs(m.weight.std() - std) < .05*std
    # LAB: tying was a `pass`
    assert model.head.weight is model.embed.weight and abs(model.embed.weight.std() - .02) < .001


def test_dropout_is_in_every_layer(monkeypatch):
    """SLM: dropout on the embedding only

    GL: the attention's dropout was ignored, and so was the number of key-value heads
    """
    seen = []
    monkeypatch.setattr(F, 'dropout', lambda x, p=.5, training=True, inplace=False: (
        seen.append(p if training else 0.), x)[1])
    set_seed(0)
    model = GPT(GPTConfig(**DIMS, dropout=.25, n_kv_heads=2)).train()
    model(torch.zeros(1, 8, dtype=torch.long))
    assert seen.count(.25) == 1 + 2*4 and all(b.attn.dropout == .25 for b in model.blocks)
    assert model.blocks[0].attn.k.weight.shape == (16, 32)


def test_positions_are_exact_when_weights_are_not():
    """HLB: the table of distances came from a bfloat16 arange, so that 512…1023 fell on multiples
    of four. AIL: the rotation was none"""
    with torch.autocast('cpu', torch.bfloat16):
        q = torch.ones(1, 1, 1024, 16, dtype=torch.float32)
        r, _ = RoPE(16).rotate(Seq(torch.zeros(1, 1024, dtype=torch.long)), q, q)
    gaps = (r[0,0,1:] - r[0,0,:-1]).norm(dim=-1)
    assert gaps.min() > .9*gaps.max() and torch.allclose(r.norm(dim=-1), q.norm(dim=-1), atol=1e-4)


# ---- reading in pieces

@pytest.mark.parametrize('name', MODELS)
def test_a_cache_gives_what_reading_at_once_gives(name):
    """LAB: the cached branch was overwritten, and positions stayed 0

    AIL, GL: the mask was wrong for a prompt read in several pieces
    """
    model, ids = (lively(MODELS[name]()),
                  torch.randint(257, (2, 24), generator=torch.Generator().manual_seed(0)))
    # (B,T,V)
    with torch.no_grad(): whole = model(ids)
    for split in ([24], [1]*24, [7, 1, 1, 15], [1, 23], [12, 12]):
        caches = model.new_caches()
        with torch.no_grad():
            pieces = torch.cat([model(part, caches=caches) for part in ids.split(split, 1)], 1)
        assert (pieces - whole).abs().max() < 2e-5, split


@pytest.mark.parametrize('name', MODELS)
def test_prompts_of_unequal_length_do_not_disturb_each_other(name):
    """GL: the attention mask was forced to None

    AIL: id 0 was taken for padding, or padding for a token
    """
    model, prompts = lively(MODELS[name]()), [[0, 0, 5], [9], [1, 2, 3, 4, 0, 0, 0]]
    together = torch.stack(list(generate_rows(model, prompts, 12, temperature(0)))).T       # (B,n)
    for p, row in zip(prompts, together):
        assert list(generate(model, p, 12, temperature(0))) == row.tolist()


# ---- writing

def test_every_filter_acts_at_every_token():
    """LAB: temperature, top-k and top-p were accepted and ignored

    HLB: the temperature was lost after the first token
    """
    model = lively(MODELS['modern']())
    def write(*filters, seed=1): return list(generate(model, [5], 40, *filters, seed=seed))
    greedy = write(temperature(0))
    for narrow in (temperature(1e-4), top_k(1), top_p(1e-9), min_p(1.)):
        assert write(narrow) == greedy
    for wide in (temperature(3.), top_k(50), top_p(.9), min_p(.01)):
        assert write(wide) != greedy and write(wide) == write(wide) != write(wide, seed=2)
    with torch.no_grad():
        row = [5]
        for t in write(top_k(3)):
            assert t in model(torch.tensor([row]))[0,-1].topk(3).indices.tolist()
            row.append(t)


def test_what_a_prompt_may_be():
    """AIL: a prompt of shape (1,T), as its own README had it, crashed deep inside

    LAB: bos was asked for by a name that nobody read
    """
    model, seen = lively(MODELS['modern']()), []
    assert (list(generate(model, torch.tensor([5, 6]), 4, seed=0))
            == list(generate(model, [5, 6], 4, seed=0)) == list(generate(model, (5, 6), 4, seed=0)))
    for bad in (torch.tensor([[5, 6]]), [[5, 6]], 'text', [.5]):
        with pytest.raises(TypeError, match='one row of token ids.*generate_rows.*generate_text'):
            next(generate(model, bad, 1))
    with pytest.raises(TypeError): TOK.encode('a', prepend_bos=True)
    model.register_forward_pre_hook(lambda m, args, kw: seen.append(kw['ids'][0].tolist()),
                                    with_kwargs=True)
    next(generate_text(model, TOK, 'ab', 1), None)
    assert seen[0] == [256, 97, 98]


def test_a_stream_of_text_never_holds_half_a_character():
    "AIL: decoding token by token broke every character of more than one byte"
    text = 'naïve Ελληνικά 日本語 👩\u200d💻\t\n\r\0 ' * 3
    for tok in (TOK, BPE.train([text, 'abc'], 300), CharTokenizer.train(text)):
        pieces = list(tok.decode_stream(tok.encode(text)))
        assert ''.join(pieces) == text and not any('\ufffd' in p for p in pieces)
    # any ids at all are no error
    ids = [random.Random(0).randrange(257) for _ in range(2000)]
    assert '\ufffd' in TOK.decode(ids) == ''.join(TOK.decode_stream(ids))


# ---- tokens

def test_every_byte_survives_the_export(tmp_path):
    """LAB: newline, tab and all bytes above 0x7E turned into other symbols, so that those merges
    never fired and bytes were miscounted"""
    tokenizers = extra('tokenizers')
    text = '\n\n\tdéjà vu\r\n\t\tüber Ελλάδα \u00a0日本 \x7f\x80 \0 ' * 20
    tok = BPE.train([text], 400)
    other, raw = (
        tokenizers.Tokenizer.from_file(str(tok.to_tokenizer_json(tmp_path/'tokenizer.json'))),
        [tok.decode_bytes([i]) for i in range(tok.vocab_size)])
    # such merges were learnt …
    assert (any(b'\n' in r and len(r) > 1 for r in raw)
            and any(len(r) > 2 and max(r) > 0x7f for r in raw))
    used = set(tok.encode(text))
    # … and fire
    assert (any(b'\n' in raw[i] and len(raw[i]) > 1 for i in used)
            and any(max(raw[i]) > 0x7f and len(raw[i]) > 2 for i in used))
    every = ''.join(map(chr, range(0x180))) + text
    for t in (text, every, every[::-1]):
        assert other.encode(t).ids == tok.encode(t) and other.decode(tok.encode(t)) == t
        assert tok.token_bytes[tok.encode(t)].sum() == len(t.encode())


def test_the_vocabulary_has_as_many_ids_as_it_says():
    "SLM: 99 ids, 100 in the table. AIL: pad was 0, so that id 0 was no token"
    for tok in (TOK, CharTokenizer('\0ab'), BPE.train(['abab'], 258)):
        assert (len(tok.token_bytes) == tok.vocab_size
                and tok.decode(range(tok.vocab_size)) is not None)
        assert tok.token_bytes[0] == 1 and 0 in tok.encode('a\0b')
    train, valid = batches(['\0'*40 + 'b', 'a'*9], TOK, B=2, T=8)
    assert any((b['targets'] == 0).any() for b in valid) or (next(train)['targets'] == 0).any()
    model = lively(MODELS['modern']())
    total, n = lm_loss(model,
                       dict(ids=torch.tensor([[0, 0, 0]]), targets=torch.tensor([[0, 0, -100]])))
    # zeros are targets like any other
    assert n == 2 and total > 0


# ---- batches

def test_the_last_target_of_a_row_is_the_next_token():
    "SLM: it was the row's own last token, so that 1/256 of the loss taught copying"
    c = corpus([f'{i:04d};' for i in range(400)])
    toks = tokenize(c.train, TOK)
    train, valid = batches(c, TOK, B=4, T=10)
    for b in [next(train) for _ in range(5)] + list(valid):
        real = b['targets'] != -100
        assert torch.equal(b['ids'][:,1:][real[:,:-1]], b['targets'][:,:-1][real[:,:-1]])
        # of five-letter words the next letter is known
        for ids, last in zip(b['ids'].tolist(), b['targets'][:,-1].tolist()):
            if last != -100 and ids[-1] == 256: assert chr(last).isdigit()
            if last != -100 and ids[-1] == ord(';'): assert last == 256
    assert len(toks) == 6*len(c.train)


@pytest.mark.parametrize('stop', [1, 3, 7])
def test_no_row_is_lost_or_seen_twice_by_stopping(stop):
    """LAB: 16 prefetched batches were lost, and a row group skipped

    AIL: after a resume the order was another. SLM: the epoch began again
    """
    def stream(): return batches(make_stories(30), TOK, B=3, T=16, seed=5, docs=True)[0]
    whole, first = stream(), stream()
    want = [next(whole) for _ in range(40)]
    got = []
    while len(got) < 40:
        got += [next(first) for _ in range(min(stop, 40-len(got)))]
        state, first = first.state_dict(), stream()
        first.load_state_dict(state)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(want, got) for k in a)


def test_a_seed_means_an_order():
    """SLM: nothing was shuffled

    AIL: the argument was ignored. HLB: rows were drawn with replacement
    """
    def epoch(seed, skip=0):
        s = batches(make_stories(30), TOK, B=1, T=16, seed=seed)[0]
        for _ in range(skip*len(s.rows)): next(s)
        return [tuple(next(s)['ids'][0].tolist()) for _ in range(len(s.rows))]
    assert epoch(1) == epoch(1) != epoch(2) and epoch(1) != epoch(1, skip=1)
    counts = torch.zeros(257, dtype=torch.long)
    toks = tokenize(corpus(make_stories(30)).train, TOK)
    s = batches(make_stories(30), TOK, B=1, T=16, seed=3)[0]
    for _ in range(len(s.rows)):
        t = next(s)['targets']
        counts += t[t >= 0].bincount(minlength=257)
    # each token once an epoch
    assert torch.equal(counts, torch.from_numpy(toks.ids.astype('int64')).bincount(minlength=257))


def test_the_score_does_not_depend_on_how_rows_are_batched():
    """LAB: the loss beside bits per byte was a mean divided by the batch size again

    AIL: the validation loader was never used
    """
    model, c = lively(MODELS['modern']()), corpus(make_stories(12))
    scores = [evaluate(model, batches(c, TOK, B=B, T=32)[1]) for B in (1, 3, 16)]
    nll = torch.cat([model(**b)[0].flatten()
                     for b in batches(c, TOK, B=1, T=32)[1]]).double().sum().item()
    for s in scores:
        assert s.tokens == len(tokenize(c.valid, TOK)) - 1 and abs(s.loss*s.tokens - nll) < 1e-3*nll
        assert abs(s.bpb - nll/math.log(2)/sum(len(d.encode()) for d in c.valid)) < 1e-4


# ---- steps

def run(opt, **kw):
    train, valid = batches(make_stories(20), TOK, B=2, T=16)
    return Trainer(opt.model, opt, train, valid.head(1),
                   **dict(callbacks=[], eval_every=0, device='cpu') | kw)

def optimizer(*groups):
    set_seed(0)
    model = GPT(GPTConfig(**DIMS))
    opt = Opt(model, *groups)
    opt.model = model
    return opt


def test_decay_is_applied_once_where_it_was_asked_for():
    """LAB: the decay was scaled three times, cubed for Muon

    AIL, SLM: all parameters decayed, norms and embeddings too
    """
    opt = optimizer(muon(lr=.02, wd=.1, at=hidden), adamw(lr=.01, wd=0.))
    before = {n: p.detach().clone() for n, p in opt.model.named_parameters()}
    # gradients are zero: what moves is decay
    one = run(opt, schedule=linear(warmup=0.),
              loss=lambda m, b: (m(**b)[0].sum()*0, torch.tensor(1)))
    one.fit(4)
    shrunk = math.prod(1 - .02*(1 - (i+.5)/4)*.1 for i in range(4))
    for n, p in opt.model.named_parameters():
        matrix = n.startswith('blocks.') and p.ndim == 2
        assert torch.allclose(p, before[n]*(shrunk if matrix else 1.), rtol=1e-6, atol=1e-9), n


def test_a_schedule_of_the_rate_moves_nothing_else():
    """LAB: Muon's momentum was multiplied by the learning rate's curve, down to 0.0475 at the end;
    and the decay was scaled with it"""
    opt, seen = optimizer(muon(wd=.1), adamw(lr=3e-3, wd=.01)), []
    class Look:
        def after_step(self, trainer):
            seen.append([{k: g.get(k) for k in ('lr', 'wd', 'momentum', 'betas')}
                         for g in opt.param_groups])
    run(opt, schedule=wsd(warmup=.5, cooldown=.5), callbacks=[Look()]).fit(10)
    assert (len({m['lr'] for m, _ in seen}) > 3
            and {(m['wd'], m['momentum']) for m, _ in seen} == {(.1, .95)})
    assert {(a['wd'], a['betas']) for _, a in seen} == {(.01, (.9, .95))}


def test_seconds_are_seconds_and_tokens_tokens():
    "LAB: target_time was documented in seconds and used as minutes"
    start = time.perf_counter()
    timed = run(optimizer(adamw())).fit(seconds=.5)
    assert .5 <= timed.seconds < 5 and .5 <= time.perf_counter() - start < 10 and timed.step > 1
    counted = run(optimizer(adamw()), accumulate=2).fit(tokens=1000)
    assert counted.tokens == 1024 == counted.step*2*2*16
    flops = run(optimizer(adamw())).fit(flops=10.5*32*optimizer(adamw()).model.flops_per_token(16))
    assert flops.step == 11


def test_clipping_and_the_log():
    """LAB: there was no clipping, and no test that the loss falls

    AIL: a missing logging interval crashed. LAB: best value None was formatted
    """
    opt = optimizer(sgd(lr=1.))
    before = [p.detach().clone() for p in opt.model.parameters()]
    one = run(opt, clip=.01, schedule=lambda p: 1.).fit(1)
    moved = torch.cat([(p - q).flatten() for p, q in zip(opt.model.parameters(), before)]).norm()
    assert one.log[0]['grad_norm'] > .01 and abs(moved - .01) < 1e-4
    assert 'no budget' in repr(run(optimizer(adamw()))) and 'step 1' in repr(one)
    learnt = run(optimizer(muon(), adamw(lr=3e-3))).fit(60)
    assert (sum(learnt.series('loss')[1][-10:])/10 < .8*learnt.log[0]['loss']
            and len(learnt.log) == 60 and 'valid' in learnt.log[-1])

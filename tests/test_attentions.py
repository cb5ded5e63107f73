"""Every attention with every position scheme and every cache, and what single cells of the chapters
cannot show: random cuts, whole models, other people's numbers, bad input."""
import inspect, json, math, re
from functools import partial

import pytest
import torch
from fastcore.meta import delegates
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common import extra
from gptlab.attention import Attention, Cache, LearnedPositions, Position, RoPE, Seq, _rows, _run
from gptlab.attentions import (Gate, InductionValue, OpenAttention, PairValue, PreviousValue,
                               QKGain, RingCache, StaticCache, ValueEmbedding,
                               backend_prepares, cache_bytes, flex, matmul, sdpa, window_pattern)
from gptlab.blocks import build_part, perturb_parameters
from gptlab.core import set_seed
from gptlab.generation import generate
from gptlab.linear_attentions import DeltaAttention, MLA, check_grid, delta_rule
from gptlab.model import GPT, GPTConfig, lm_loss
from gptlab.positions import (ALiBi, LinearBias, Llama3RoPE, NTK, ScaledRoPE, Sinusoids, YaRN,
                              extend_context, halves_to_pairs, pairs_to_halves)

@delegates(OpenAttention)
def grouped(C, n_heads, n_kv_heads=None, **kwargs): return OpenAttention(C, n_heads, 2, **kwargs)

LONG = dict(factor=4., context_length=16)
FULL = dict(plain=OpenAttention, grouped=grouped, softcap=partial(OpenAttention, softcap=20.),
            bare=partial(OpenAttention, qk_norm=False, bias=True),
            gated=partial(OpenAttention, adds=[Gate]),
            head_gated=partial(OpenAttention, adds=[partial(Gate, per_head=True)]),
            expanded=partial(OpenAttention, qk_expand=2., v_expand=1.5),
            gain=partial(OpenAttention, adds=[QKGain]),
            values=partial(OpenAttention, adds=[ValueEmbedding]),
            previous=partial(grouped, adds=[ValueEmbedding, PreviousValue]),
            pairs=partial(grouped, adds=[PairValue]),
            induction=partial(grouped, adds=[InductionValue]),
            long_match=partial(OpenAttention, adds=[partial(InductionValue, length=4)]),
            oracle=partial(OpenAttention, backend=matmul), latent=MLA,
            unfolded=partial(MLA, absorb=False, d_latent=6))
WINDOWED = dict(window=partial(OpenAttention, window=5), two=partial(OpenAttention, window=2),
                all_window=partial(OpenAttention, window=24),
                everything=partial(grouped, window=5, softcap=20., v_expand=2.,
                                   adds=[Gate, ValueEmbedding]),
                previous_window=partial(grouped, window=2, adds=[PreviousValue]),
                induction_window=partial(grouped, window=3, adds=[InductionValue]),
                match_window=partial(grouped, window=6, adds=[PairValue, partial(InductionValue,
                                                                                length=3)]),
                latent_window=partial(MLA, window=3))
# sees itself only: queries and keys rightly get no gradient
ALONE = dict(one=partial(OpenAttention, window=1, v_expand=.5))
DELTA = dict(delta=DeltaAttention, delta_small=partial(DeltaAttention, chunk=5))
POSITIONS = dict(none=None, rope=RoPE, pairs=partial(ScaledRoPE, interleaved=True),
                 linear_scaled=partial(ScaledRoPE, factor=4.), ntk=partial(NTK, **LONG),
                 yarn=partial(YaRN, **LONG), llama3=partial(Llama3RoPE, **LONG), alibi=ALiBi,
                 linear=LinearBias)
CACHES = dict(growing=Cache, static=StaticCache, ring=RingCache)


def test_every_attention_with_every_position_and_every_cache():
    """One combination at a time: shape, gradients, causality, documents, cached = uncached for
    several cuts with left padding, windows smaller than a piece"""
    set_seed(0)
    grid = check_grid(FULL | WINDOWED | DELTA, POSITIONS, CACHES)
    bad = [(k, c, r) for k, cell in grid.items() for c, r in cell.items()
           if r is not None and not r.ok]
    assert not bad, bad
    senseless = {(a, p, c) for (a, p), cell in grid.items() for c, r in cell.items() if r is None}
    rings, biased = ({(a, p, 'ring') for a in FULL for p in POSITIONS},
                     {(d, p, 'growing') for d in DELTA for p in ('alibi', 'linear')})
    # a ring without a window, the delta rule with a bias; nothing else is left out
    assert senseless == rings | biased
    assert len(grid.reports) == len(FULL)*9*2 + len(WINDOWED)*9*3 + len(DELTA)*7


@pytest.mark.grid(quick=3)
@pytest.mark.parametrize('name', [*FULL, *WINDOWED, *ALONE, *DELTA])
def test_any_cut_at_all(name):
    """Twelve random cuts of a longer row, padding on the left, each kind of cache; beyond float
    rounding, in float64"""
    make, rng = (FULL | WINDOWED | ALONE | DELTA)[name], torch.Generator().manual_seed(0)
    names = inspect.signature(make).parameters
    for cache in CACHES.values() if 'cache' in names else [None]:
        if cache is RingCache and name in FULL: continue
        set_seed(1)
        attn = perturb_parameters(build_part(
            make, 32, 4, None, vocab_size=16, context_length=40,
            **({} if cache is None else dict(cache=cache)))).double().eval()
        x, ids, docs, pos = _rows(T=40)
        with torch.no_grad():
            full = _run(attn, x.double(), ids, docs, pos)
            for _ in range(4):
                cuts = torch.randperm(39, generator=rng)[:6].sort().values.tolist()
                split, c = [b-a for a, b in zip([-1, *cuts], [*cuts, 39])], attn.new_cache()
                parts = torch.cat([_run(attn, *p, cache=c) for p in zip(
                    *[t.split(split, 1) for t in (x.double(), ids, docs, pos)])], 1)
                # the delta rule computes in float32; rotations are made in float32
                tol = 1e-5 if name in DELTA else 1e-6
                assert ((parts - full).abs().amax(-1) * (docs >= 0)).max() < tol, (split, cache)


# ---- whole models

def lively(cfg, seed=0):
    set_seed(seed)
    return perturb_parameters(GPT(cfg)).eval()

DIMS = dict(vocab_size=50, context_length=48, n_layers=4, n_heads=4, d_model=32, d_ff=32)
MIXED = [partial(OpenAttention, window=6, cache=RingCache, adds=[Gate, PreviousValue]),
         partial(MLA, cache=StaticCache), DeltaAttention,
         partial(OpenAttention, pos=LinearBias, adds=[ValueEmbedding])]
MODELS = dict(mixed=dict(attn=MIXED),
              previous=dict(attn=[partial(OpenAttention, adds=[ValueEmbedding, PreviousValue], **kw)
                                  for kw in (dict(), dict(window=1), dict(cache=StaticCache))]),
              induction=dict(attn=[partial(OpenAttention, adds=[PairValue, InductionValue], **kw)
                                   for kw in (dict(), dict(window=1), dict(cache=StaticCache),
                                              dict(window=4, cache=RingCache))]),
              same_window=dict(attn=[partial(OpenAttention, window=6, cache=c)
                                     for c in (RingCache, Cache, StaticCache)]),
              sinusoids=dict(attn=partial(OpenAttention, pos=None), pos_embed=Sinusoids),
              learned=dict(attn=partial(MLA, pos=None), pos_embed=LearnedPositions),
              speeds=dict(attn=[partial(OpenAttention, pos=p)
                                for p in (RoPE, ScaledRoPE, partial(NTK, **LONG),
                                          partial(YaRN, **LONG))]))

@pytest.mark.parametrize('name', MODELS)
def test_models_of_mixed_layers_and_caches(name):
    """What layers share within a forward (masks, rotations) must not be another layer's; and
    generation gives what reading again gives"""
    model = lively(GPTConfig(**DIMS, **MODELS[name]))
    ids = torch.randint(0, 50, (3, 30))
    pads = torch.tensor([0, 4, 9])[:,None]
    docs, pos = torch.where(torch.arange(30) < pads, -1, 0), (torch.arange(30) - pads).clamp(min=0)
    with torch.no_grad():
        for extra in ({}, dict(docs=docs, pos=pos)):
            full = model(ids, **extra)
            for split in ([1]*30, [13, 1, 1, 15], [30]):
                caches, out = model.new_caches(), []
                for parts in zip(ids.split(split, 1), *[t.split(split, 1) for t in extra.values()]):
                    out.append(model(parts[0], **dict(zip(extra, parts[1:])), caches=caches))
                assert (((torch.cat(out, 1) - full).abs().amax(-1) * (docs >= 0 if extra else 1))
                        .max() < 1e-3*full.abs().max())
    again = [ids[0,:5].tolist()]
    for _ in range(20): again[0].append(model(torch.tensor(again)).detach()[0,-1].argmax().item())
    assert ([int(t) for t in generate(model, ids[0,:5].tolist(), 20, lambda logits: torch.where(
        logits == logits.amax(-1, keepdim=True), logits, -math.inf))] == again[0][5:])


@pytest.mark.parametrize('name', MODELS)
def test_models_come_back_from_json(name):
    model = lively(GPTConfig(**DIMS, **MODELS[name]))
    twin = GPT(GPTConfig.from_dict(json.loads(json.dumps(model.cfg.to_dict())))).eval()
    twin.load_state_dict(model.state_dict())
    ids = torch.randint(0, 50, (2, 20))
    assert torch.equal(twin(ids), model(ids))


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('how', ['float32', 'autocast', 'bfloat16'])
def test_one_step_of_training_in_every_precision(name, how):
    set_seed(0)
    model = GPT(GPTConfig(**DIMS, **MODELS[name]))
    for n, p in model.named_parameters():
        if n.split('.')[-2] in ('o', 'down', 'head'): nn.init.normal_(p, std=.1)
    if how == 'bfloat16': model.bfloat16()
    ids = torch.randint(0, 50, (2, 25))
    with torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        total, n = lm_loss(model, dict(ids=ids[:,:-1], targets=ids[:,1:],
                                       docs=(torch.arange(24)//10).expand(2, 24)))
    (total/n).backward()
    assert (torch.isfinite(total) and all(p.grad is not None and torch.isfinite(p.grad).all()
                                          for p in model.parameters()))


# ---- backends

@pytest.mark.parametrize('how', ['weights', 'autocast'])
@pytest.mark.parametrize('docs', [False, True])
def test_on_a_cpu_the_kernel_learns_in_float32(how, docs, monkeypatch):
    "Its backward pass is several times slower in bfloat16; what only reads is left as it is"
    fused, seen = F.scaled_dot_product_attention, []
    def noted(q, *args, **kwargs):
        seen.append((q.dtype, torch.is_autocast_enabled('cpu')))
        return fused(q, *args, **kwargs)
    monkeypatch.setattr(F, 'scaled_dot_product_attention', noted)
    set_seed(0)
    layer, x = Attention(16, 4, 2), torch.randn(2, 8, 16)
    ids = torch.zeros(2, 8, dtype=torch.long)
    seq = Seq(ids, docs=(torch.arange(8) > 3).long().expand(2, 8) if docs else None)
    want = layer(x, seq)
    if how == 'weights': layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        got = layer(x, seq)
        got.float().square().sum().backward()
        with torch.no_grad(): layer(x, seq)
    assert seen[0] == seen[1] == (torch.float32, False)
    assert (seen[2][0] == torch.bfloat16 or seen[2][1]) and got.dtype == torch.bfloat16
    assert (got - want).norm() < .02*want.norm()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('S', [24, 513])
@pytest.mark.parametrize('how', ['weights', 'autocast'])
@pytest.mark.parametrize('kind', ['plain', 'window', 'docs', 'hidden', 'bias', 'dropout'])
def test_compiled_on_a_cpu_short_rows_learn_by_the_plain_lines(kind, how, S, monkeypatch):
    "As the kernel in float32 does, in every kind of mask; longer rows go through the kernel"
    fused, seen = F.scaled_dot_product_attention, []
    def noted(q, *args, **kwargs):
        seen.append(q.dtype)
        return fused(q, *args, **kwargs)
    set_seed(0)
    layer = Attention(16, 4, 2, window=7 if kind == 'window' else None,
                      dropout=.5*(kind == 'dropout'), pos=ALiBi if kind == 'bias' else RoPE)
    x, ids = torch.randn(2, S, 16), torch.zeros(2, S, dtype=torch.long)
    docs = (torch.arange(S) > S//2).long().expand(2, S) if kind == 'docs' else None
    pos = (torch.arange(S) - 5).expand(2, S) if kind == 'hidden' else None  # five see nothing
    want = layer(x, Seq(ids, docs=docs, pos=pos))
    want.square().sum().backward()
    before = torch.cat([p.grad.flatten() for p in layer.parameters()])
    layer.zero_grad()
    monkeypatch.setattr(F, 'scaled_dot_product_attention', noted)
    if how == 'weights': layer, x = layer.bfloat16(), x.bfloat16()
    torch._dynamo.reset()
    layer.compile(backend='aot_eager', dynamic=False)
    with torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        got = layer(x, Seq(ids, docs=docs, pos=pos))
        got.float().square().sum().backward()
    assert got.dtype == torch.bfloat16 and bool(seen) == (S > 512)
    grads = torch.cat([p.grad.float().flatten() for p in layer.parameters()])
    if kind == 'dropout':                                         # other weights are dropped
        assert (.8 < got.float().norm()/want.norm() < 1.25) and grads.isfinite().all()
        return
    assert (got - want).norm() < .02*want.norm() and (grads - before).norm() < .03*before.norm()


@pytest.mark.filterwarnings('ignore:flex_attention called without')
@pytest.mark.parametrize('pos', POSITIONS)
def test_backends_agree(pos):
    """With every position scheme: the oracle, the fused kernel and FlexAttention forward, gradients
    of the first two"""
    set_seed(0)
    docs, x = (torch.arange(24)//9).expand(2, 24), torch.randn(2, 24, 32)
    seq = lambda: Seq(torch.zeros(2, 24, dtype=torch.long), docs)
    for kw in (dict(window=5), dict(window=7, softcap=9., v_expand=2.)):
        layers = [OpenAttention(32, 4, 2, pos=POSITIONS[pos], backend=f, **kw)
                  for f in (matmul, sdpa, flex)]
        for l in layers[1:]: l.load_state_dict(layers[0].state_dict())
        with torch.no_grad(): ys = [l(x, seq()) for l in layers]
        for y in ys[1:]: torch.testing.assert_close(y, ys[0], atol=1e-5, rtol=1e-5)
        for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
            gs = []
            for l in layers[:2]:
                l.zero_grad()
                l.to(dtype)(x.to(dtype), seq()).float().square().sum().backward()
                gs.append(torch.cat([p.grad.float().flatten() for p in l.parameters()]))
            assert (gs[0]-gs[1]).norm() < tol*gs[0].norm()


def test_what_a_backend_makes_is_made_before_the_first_block(monkeypatch):
    "Of a backend that has an entry; one that has none is an ordinary function"
    events, ids = [], torch.zeros(1, 8, dtype=torch.long)
    def mine(attn, *args):
        events.append('read')
        return sdpa(attn, *args)
    model = GPT(GPTConfig(**DIMS, attn=partial(OpenAttention, backend=mine))).eval()
    model(ids)
    n = len(events)
    assert events == ['read']*n and n == len(model.blocks)
    events.clear()
    monkeypatch.setitem(backend_prepares, mine, lambda attn, seq: events.append('prepare'))
    model(ids)
    assert events == ['prepare']*n + ['read']*n


KINDS = dict(full={}, window=dict(window=5), softcap=dict(softcap=9.),
             both=dict(window=7, softcap=9.), raw=dict(qk_norm=False, bias=True),
             wide=dict(qk_expand=2., v_expand=1.5), biased=dict(pos=ALiBi, window=9))

def packed():
    "Documents of 9 tokens behind paddings of 0, 5 and 9: docs and pos"
    *_, docs, pos = _rows()
    return torch.where(docs < 0, docs, pos//9), pos

ROWS = dict(one=lambda: (None, None), packed=packed)

def outcome(layer, x, ids, docs=None, pos=None):
    """The answers of a layer over true tokens, and the gradients of its input and parameters; in
    float64, for comparing"""
    x, true = x.detach().clone().requires_grad_(), 1 if docs is None else (docs >= 0)[...,None]
    layer.zero_grad()
    y = _run(layer, x, ids, docs, pos) * true
    y.double().square().sum().backward()
    return dict(y=y.detach().double(), x=x.grad.double(),
                parameters=torch.cat([p.grad.double().flatten() for p in layer.parameters()]))

def gap(got, want): return ((got - want).norm() / want.norm()).item()

@pytest.mark.filterwarnings('ignore:flex_attention called without')
@pytest.mark.grid(quick=3)
# 17 and 2.6 roundings of one number
@pytest.mark.parametrize('dtype,tol', {'float32': 2e-6, 'bfloat16': 1e-2}.items())
@pytest.mark.parametrize('kv', [None, 2, 1])
@pytest.mark.parametrize('rows', ROWS)
@pytest.mark.parametrize('kind', KINDS)
def test_backends_against_float64(kind, rows, kv, dtype, tol):
    """The book's layer, SDPA and the plain lines, forward and gradients, and FlexAttention forward:
    each within tol (relative) of the plain lines in float64"""
    set_seed(0)
    dtype = getattr(torch, dtype)
    # float64 starts from the same rounded numbers
    truth = perturb_parameters(OpenAttention(32, 4, kv, backend=matmul, **KINDS[kind])).to(dtype)
    x, ids, (docs, pos) = (torch.randn(3, 24, 32).to(dtype), torch.zeros(3, 24, dtype=torch.long),
                           ROWS[rows]())
    layers = {f.__name__: OpenAttention(32, 4, kv, backend=f, **KINDS[kind])
              for f in (matmul, sdpa, flex)}
    if kind != 'wide': layers['book'] = Attention(32, 4, kv, **KINDS[kind])
    for l in layers.values(): l.to(dtype).load_state_dict(truth.state_dict())
    want, looker, gaps = outcome(truth.double(), x.double(), ids, docs, pos), layers.pop('flex'), {}
    if kv == 2:                                              # slow where it is not compiled
        with torch.no_grad():
            gaps['flex', 'y'] = gap(_run(looker, x, ids, docs, pos) * (
                1 if docs is None else (docs >= 0)[...,None]), want['y'])
    for n, l in layers.items():
        gaps |= {(n, k): gap(g, want[k]) for k, g in outcome(l, x, ids, docs, pos).items()}
    assert max(gaps.values()) < tol, gaps


@pytest.mark.skipif(not torch.cuda.is_available(), reason='FlexAttention learns on CUDA only')
@pytest.mark.parametrize('dtype,tol', {'float32': 1e-3, 'bfloat16': 2e-2}.items())
@pytest.mark.parametrize('kind', ['full', 'window', 'softcap', 'biased'])
def test_flex_learns_what_the_plain_lines_learn(kind, dtype, tol):
    "Forward and gradients of the compiled kernel, documents apart, heads grouped"
    torch.compiler.reset()
    set_seed(0)
    dtype = getattr(torch, dtype)
    x, ids, docs = (torch.randn(2, 256, 128, device='cuda').to(dtype),
                    torch.zeros(2, 256, dtype=torch.long, device='cuda'),
                    (torch.arange(256, device='cuda')//100).expand(2, 256))
    truth = (perturb_parameters(OpenAttention(128, 4, 2, backend=matmul, **KINDS[kind]))
             .to('cuda', dtype))
    layer = OpenAttention(128, 4, 2, backend=flex, **KINDS[kind]).to('cuda', dtype)
    layer.load_state_dict(truth.state_dict())
    got, want = outcome(layer, x, ids, docs), outcome(truth.double(), x.double(), ids, docs)
    gaps = {k: gap(got[k], want[k]) for k in want}
    assert max(gaps.values()) < tol, gaps


@pytest.mark.parametrize('name,left_out',
                         dict(oracle=0, expanded=0, latent=0, delta=16*16*4).items())
def test_operations_are_those_that_torch_counts(name, left_out):
    "Beside the matrices, per token; torch does not count the triangular solve of the delta rule"
    fast = {} if name == 'delta' else dict(backend=matmul)
    layer = ((FULL | DELTA)[name](64, 4, **fast) if name != 'delta'
             else DeltaAttention(64, 4, chunk=16))
    with FlopCounterMode(display=False) as f, torch.no_grad():
        layer(torch.randn(1, 64, 64), Seq(torch.zeros(1, 64, dtype=torch.long)))
    matrices = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
    assert f.get_total_flops()/64 - 2*matrices == layer.mix_flops(64) - left_out


# ---- other people's numbers

@pytest.mark.parametrize('kind,scheme',
                         [('linear', ScaledRoPE), ('yarn', YaRN), ('llama3', Llama3RoPE)])
def test_speeds_are_those_of_transformers(kind, scheme):
    extra('transformers')
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    scaling = dict(rope_type=kind, factor=8., rope_theta=5e5, low_freq_factor=1.,
                   high_freq_factor=4., original_max_position_embeddings=512)
    cfg = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, rope_theta=5e5,
        rope_scaling={k: v for k, v in scaling.items() if kind == 'llama3' or 'freq' not in k})
    speeds, strength = ROPE_INIT_FUNCTIONS[kind](cfg, 'cpu')
    ours = scheme(64, theta=5e5, factor=8., context_length=512)
    torch.testing.assert_close(ours.speeds(), speeds, atol=1e-7, rtol=1e-5)
    assert abs(ours.strength - strength) < 1e-6


def test_interleaved_rotation_by_complex_numbers():
    "The paper's own form: neighbours as one complex number, times exp(i·position·speed)"
    x, seq = torch.randn(1, 2, 9, 16), Seq(torch.zeros(1, 9, dtype=torch.long))
    turned = torch.view_as_complex(x.unflatten(-1, (8, 2))) * torch.polar(
        torch.ones(9, 8), torch.arange(9.)[:,None] * ScaledRoPE(16).speeds())
    torch.testing.assert_close(ScaledRoPE(16, interleaved=True).rotate(seq, x, x)[0],
                               torch.view_as_real(turned).flatten(-2), atol=1e-5, rtol=0)


def test_gptlabs_attention_by_hand():
    """gpt-lab: value embeddings behind a gate of 12 channels, times 3; rotation of neighbours, then
    QK-norm; windows that see W back"""
    set_seed(0)
    l = perturb_parameters(OpenAttention(32, 4, window=6, pos=partial(ScaledRoPE, interleaved=True),
                                         adds=[partial(ValueEmbedding, scale=3.)], vocab_size=9))
    x, ids = torch.randn(1, 20, 32), torch.randint(0, 9, (1, 20))
    q, k, v = (f(x).view(20, 4, 8) for f in (l.q, l.k, l.v))
    v = (v
         + 3*torch.sigmoid(x[0,:,:12] @ l.adds[0].gate.weight.T)[...,None] * l.adds[0].table.weight[
             ids[0]].view(20, 4, 8))
    a = torch.arange(20.)[:,None,None] * 1e4**(-torch.arange(0, 8, 2)/8)

    def turn(t):
        t = torch.stack([t[...,::2]*a.cos() - t[...,1::2]*a.sin(),
                         t[...,::2]*a.sin() + t[...,1::2]*a.cos()], -1).flatten(-2)
        return t/t.square().mean(-1, keepdim=True).sqrt()

    q, k = turn(q), turn(k)
    y = torch.zeros(20, 4, 8)
    for i in range(20):
        js = list(range(max(0, i-5), i+1))                   # gpt-lab's W = 5
        y[i] = torch.einsum('hj,jhd->hd',
                            (torch.einsum('hd,jhd->hj', q[i], k[js])/8**.5).softmax(-1), v[js])
    torch.testing.assert_close(l(x, Seq(ids)), (y.reshape(20, 32) @ l.o.weight.T)[None], atol=1e-5,
                               rtol=0)


def test_converting_pairs_is_its_own_inverse_and_keeps_biases():
    w = torch.randn(32, 5)
    assert (torch.equal(pairs_to_halves(halves_to_pairs(w, 8), 8), w)
            and halves_to_pairs(torch.arange(8.), 8).tolist() == [0,4,1,5,2,6,3,7])


# ---- the delta rule

def naive(q, k, v, beta, fresh):
    "Every head of every row by itself, token by token"
    y = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            S = q.new_zeros(q.shape[-1], v.shape[-1])
            for t in range(q.shape[2]):
                if fresh[b,t]: S = torch.zeros_like(S)
                S = S + beta[b,h,t] * torch.outer(k[b,h,t], v[b,h,t] - k[b,h,t] @ S)
                y[b,h,t] = q[b,h,t] @ S
    return y

def test_chunks_of_the_delta_rule_with_documents():
    set_seed(0)
    q, k, v = torch.randn(3, 2, 2, 40, 6)
    k, beta, fresh = (nn.functional.normalize(k, dim=-1), torch.rand(2, 2, 40),
                      torch.rand(2, 40) < .1)
    leaves = [t.requires_grad_() for t in (q, k, v, beta)]
    want, grads = naive(*leaves, fresh), []
    want_grads = torch.autograd.grad(want.square().sum(), leaves)
    for chunk in (1, 3, 16, 64):
        y, _ = delta_rule(*leaves, fresh=fresh, chunk=chunk)
        torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-4)
        for g, w in zip(torch.autograd.grad(y.square().sum(), leaves), want_grads):
            torch.testing.assert_close(g, w, atol=1e-3, rtol=1e-3)
    half, S = delta_rule(*(t[:,:,:17] for t in leaves), fresh=fresh[:,:17])
    rest, _ = delta_rule(*(t[:,:,17:] for t in leaves), S, fresh[:,17:])
    torch.testing.assert_close(torch.cat([half, rest], 2), want, atol=1e-5, rtol=1e-4)


# ---- memory

def test_memory_of_caches():
    "Bounded where it is promised: storages, not only views, are counted"
    held = lambda c: sum(t.untyped_storage().nbytes() for t in c.kept.values())
    x, ids = torch.randn(1, 200, 32), torch.zeros(1, 200, dtype=torch.long)
    sizes = {}
    for name, make in dict(growing=OpenAttention, window=partial(OpenAttention, window=8),
                           ring=partial(OpenAttention, window=8, cache=RingCache),
                           static=partial(OpenAttention, cache=StaticCache, context_length=200),
                           latent=partial(MLA, d_latent=8, d_rope=4), delta=DeltaAttention).items():
        attn = make(32, 4)
        c = attn.new_cache()
        sizes[name] = []
        for a, b in ((0, 50), (50, 51), (51, 199), (199, 200)):
            with torch.no_grad(): attn(x[:,a:b], Seq(ids[:,a:b], caches=[c]).at(0))
            assert held(c) == cache_bytes([c])
            sizes[name].append(held(c))
    per = 32*2*4 + 8                                         # keys, values and a position
    assert (sizes['growing'] == [n*per for n in (50, 51, 199, 200)]
            and sizes['static'] == [200*per]*4)
    assert sizes['ring'] == sizes['window'] == [7*per]*4
    assert sizes['latent'][-1] == 200*((8+4)*4 + 8) and sizes['delta'] == [4*8*8*4]*4


def test_a_ring_of_any_size_gives_the_same_as_a_window():
    for window in (1, 2, 3, 7):
        for T in (1, 2, 3, 5, 8):
            ring, grown, at = RingCache(window), Cache(window), 0
            for _ in range(6):
                new = dict(k=torch.randn(2, 3, T, 4), pos=torch.arange(at, at+T).expand(2, T))
                at += T
                a, b = ring.add(**new), grown.add(**new)
                assert all(torch.equal(a[n], b[n]) for n in new)


# ---- bad input

class Odd(RoPE):
    "A rotation with speeds that nobody knows"

class Steps(Position):
    "A bias that is no slope"
    def __init__(self, D, n_heads): pass
    def bias(self, seq, kpos): return 1.*(seq.pos[:,:,None] == kpos[:,None,:])[:,None]

@torch.no_grad()
def test_what_makes_no_sense_says_so():
    t = dict(k=torch.zeros(1, 1, 5, 2), pos=torch.arange(5)[None])
    for text, f in (
        {'room for 8 tokens, not 10': lambda: [c := StaticCache(8), c.add(**t), c.add(**t)],
         'pass docs at every call': lambda: [c := RingCache(3), c.add(**t),
                                             c.add(**t, docs=t['pos'])],
         'needs a window': lambda: OpenAttention(32, 4, cache=RingCache).new_cache(),
         'longest row': lambda: OpenAttention(32, 4, cache=StaticCache).new_cache(),
         'own keys': lambda: MLA(32, 4, 2), 'must be None or 4': lambda: DeltaAttention(32, 4, 2),
         'no scores': lambda: DeltaAttention(32, 4, pos=ALiBi),
         'does not divide into 4 heads': lambda: DeltaAttention(30, 4),
         'divide into 5 heads': lambda: OpenAttention(32, 5),
         'must divide n_heads': lambda: OpenAttention(32, 4, 3),
         'SSSL': lambda: window_pattern('', 3, 8), 'must be even': lambda: Sinusoids(7),
         'width must be even': lambda: OpenAttention(28, 4, pos=NTK),
         'needs slopes': lambda: OpenAttention(32, 4, pos=Steps, backend=flex)(
             torch.zeros(1, 4, 32), Seq(torch.zeros(1, 4, dtype=torch.long))),
         'trained context': lambda: YaRN(8, factor=2.).speeds(),
         'no rotary positions': lambda: extend_context(
             GPT(GPTConfig(**DIMS, attn=partial(Attention, pos=ALiBi))), 2),
         'speeds of its own': lambda: extend_context(
             GPT(GPTConfig(**DIMS, attn=partial(Attention, pos=Odd))), 2)}.items()):
        with pytest.raises(ValueError, match=text): f()
    with torch.enable_grad(), pytest.raises(ValueError, match='cannot train on a CPU'):
        OpenAttention(32, 4, backend=flex)(torch.randn(1, 4, 32),
                                           Seq(torch.zeros(1, 4, dtype=torch.long)))


@pytest.mark.parametrize('window', [0, -3, 2.5, 8., '8', True, [4]], ids=repr)
def test_a_window_is_a_whole_number(window):
    """Zero was once taken for no window; every layer, cache and pattern refuses it with the same
    sentence"""
    makes = ([partial(m, 32, 4) for m in (Attention, OpenAttention, MLA)]
             + [Cache, partial(StaticCache, 8), partial(window_pattern, 'SSSL', 4),
                lambda window: GPT(GPTConfig(**DIMS, attn=partial(Attention, window=window)))])
    # a ring of no window says that it needs one
    for make in makes + [RingCache]*(window != 0):
        with pytest.raises(ValueError,
                           match='a window is how many tokens one can see, a whole number from 1, '
                                 'or None for all: not ' + re.escape(repr(window))):
            make(window=window)


def test_a_short_layer_needs_its_window():
    with pytest.raises(ValueError, match='marked S need a window'): window_pattern('SSSL', 4, None)


@pytest.mark.parametrize('window', [24, 25, 1000])
@pytest.mark.parametrize('extra', [{}, dict(docs=(torch.arange(24)//9).expand(3, 24))],
                         ids=['one', 'documents'])
def test_a_window_that_covers_the_row_is_no_window(window, extra):
    x, ids, *_ = _rows()
    for make in (partial(Attention, 32, 4, 2), partial(Attention, 32, 4, softcap=9.),
                 partial(OpenAttention, 32, 4, 2, backend=matmul), partial(MLA, 32, 4)):
        set_seed(0)
        near = make(window=window)
        set_seed(0)
        far = make()
        assert torch.equal(_run(near, x, ids, **extra), _run(far, x, ids, **extra))


@pytest.mark.parametrize('make', [Attention, OpenAttention, MLA, DeltaAttention])
def test_widths_that_do_not_divide(make):
    for C, heads in ((32, 5), (30, 4), (4, 8)):
        with (pytest.raises(ValueError, match=f'width {C} does not divide into {heads} heads: '
                                              'choose a multiple, or give d_head')):
            make(C, heads)
    assert make(30, 4, d_head=8).o.weight.shape == (30, 32)


@pytest.mark.parametrize('make', [Attention, OpenAttention])
def test_heads_that_cannot_be_shared(make):
    for kv in (3, 5, 8):
        with pytest.raises(ValueError, match=f'4 heads cannot share {kv} key-value heads evenly: '
                                             'n_kv_heads must divide n_heads'):
            make(32, 4, kv)


@pytest.mark.parametrize('pos',
                         [RoPE, ScaledRoPE, partial(ScaledRoPE, interleaved=True),
                          partial(NTK, **LONG), partial(YaRN, **LONG), partial(Llama3RoPE, **LONG)])
def test_a_rotation_needs_pairs(pos):
    for make in (partial(Attention, 36, 4), partial(OpenAttention, 32, 4, d_head=9),
                 partial(MLA, 32, 4, d_rope=3)):
        with pytest.raises(ValueError, match='head width must be even, not [93]'): make(pos=pos)
    Attention(36, 4, pos=None)                               # without rotation, odd widths are fine


def test_extend_twice_and_per_layer():
    cfg = GPTConfig(**DIMS, attn=[partial(Attention, window=8),
                                  partial(Attention, pos=partial(RoPE, theta=500.)),
                                  partial(Attention, pos=None)])
    model = lively(cfg)
    # layers 0, 1 and 3 of four; layer 2 has no positions
    assert extend_context(model, 2) == 3 and extend_context(model, 2, NTK) == 3
    a, b, c, d = (x.attn for x in model.blocks)
    assert ((a.pos.factor, a.pos.context_length, a.window, b.pos.theta, type(c.pos), type(d.pos))
            == (4., 48, 8, 500., Position, NTK))
    assert model.cfg.context_length == 192 and len(model.cfg.attn) == 3
    twin = GPT(GPTConfig.from_dict(model.cfg.to_dict())).eval()
    twin.load_state_dict(model.state_dict())
    ids = torch.randint(0, 50, (1, 150))
    assert torch.equal(twin(ids), model(ids))
    same = lively(cfg)
    assert extend_context(same, 1, ScaledRoPE) == 3
    torch.testing.assert_close(same(ids[:,:40]), lively(cfg)(ids[:,:40]))


def test_softcap_drops_shares_too():
    "The path with squeezed scores once forgot dropout"
    from gptlab.attention import Attention, Seq
    from gptlab.blocks import perturb_parameters
    torch.manual_seed(0)
    a, x = perturb_parameters(Attention(16, 2, 2, dropout=.5, softcap=20.)), torch.randn(2, 8, 16)
    seq = Seq(torch.zeros(2, 8, dtype=torch.long))
    a.prepare(seq, x)
    assert not torch.equal(a(x, seq), a(x, seq))
    a.eval()
    assert torch.equal(a(x, seq), a(x, seq))

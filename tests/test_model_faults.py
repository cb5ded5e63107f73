"""Faults of models and their parts, kind by kind: what layers share, what accounts count, what is
compiled or wrapped, what a config from a file may ask for, and what wrong arguments get.

Each test names the fault it stands for, where there is one.
"""
import copy
import inspect
import json
import math
import time
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import gptlab.attention as attention_module
from gptlab.attention import (Attention, Cache, Layer, LayerCache, LearnedPositions, Mask, Position,
                              RoPE, Seq, check_attn, first_cache, once, plain_attention,
                              rotate_halves, visible_mask)
from gptlab.attentions import (Gate, OpenAttention, QKGain, RingCache, StaticCache, ValueEmbedding,
                               cache_bytes, flex, matmul, sdpa)
from gptlab.blocks import (GLU, MLP, LayerNorm, Report, RMSNorm, SwiGLU, check_part, explained,
                           gelu)
from gptlab.costs import costs
from gptlab.linear_attentions import MLA, DeltaAttention, Grid, check_grid, delta_rule
from gptlab.model import (GPT, Block, GPTConfig, check_model, gpt2_config, llama_config, lm_loss,
                          parameter_shapes, plain_name, swap, token_nll, unwrapped)
from gptlab.moe import (MoD, MoE, active_params, balance_loss, expert_load, load_of, route_tokens,
                        top_share)
from gptlab.optimizers import hidden
from gptlab.positions import (ALiBi, LinearBias, Llama3RoPE, NTK, ScaledRoPE, Sinusoids, YaRN,
                              extend_context)
from gptlab.stacks import (ParallelBlock, ScaledBlock, hlb_init, mup_groups, mup_init,
                           nanochat_init, parameter_roles)
from gptlab.surgery import (LoRA, add_layers, add_lora, check_config, load_lora, lora_state,
                            n_learning, rebuild, require_described, to_gqa, widen_vocab)

slow = pytest.mark.exhaustive
DIMS = dict(vocab_size=11, context_length=24, n_layers=2, n_heads=2, d_model=16)


def gpt(**kw):
    torch.manual_seed(0)
    return GPT(GPTConfig(**DIMS | kw))


def perturbed(**kw):
    model = gpt(**kw).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.1)
    return model


# ---- C01: what layers share depends on every setting

# scheme → settings that another layer may have
SCHEMES = {RoPE: dict(theta=[1e4, 50.]), ALiBi: dict(n_heads=[2, 4]),
           LinearBias: dict(start=[1., 2.]),
           ScaledRoPE: dict(theta=[1e4, 50.], factor=[1., 4.], interleaved=[False, True]),
           NTK: dict(theta=[1e4, 50.], factor=[1., 4.], interleaved=[False, True]),
           YaRN: dict(theta=[1e4, 50.], factor=[2., 4.], context_length=[64, 256],
                      interleaved=[False, True], fast=[32, 8], slow=[1, 2]),
           Llama3RoPE: dict(theta=[1e4, 50.], factor=[2., 4.], context_length=[8, 16],
                            interleaved=[False, True], low=[1., .5], high=[4., 2.])}
PAIRS = [(scheme, name, two) for scheme, settings in SCHEMES.items()
         for name, two in settings.items()]


def scheme_of(cls, **changes):
    "A position scheme, with settings of the constructor or of the instance"
    base = {n: two[0] for n, two in SCHEMES[cls].items()} | changes
    inside = {n: v for n, v in base.items() if n in ('fast', 'slow', 'low', 'high')}
    pos = cls(8, base.pop('n_heads', 2), **{n: v for n, v in base.items() if n not in inside})
    vars(pos).update(inside)
    return pos


def asked(pos, seq, q):
    "All that a scheme makes for q"
    return *pos.rotate(seq, q, q), pos.bias(seq, seq.pos)


def alike(a, b):
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize('cls, name, two', PAIRS)
def test_c01_layers_of_other_settings_share_nothing(cls, name, two):
    q, ids = torch.randn(1, 4, 16, 8), torch.zeros(1, 16, dtype=torch.long)
    first, second = (scheme_of(cls, **{name: v}) for v in two)
    shared = Seq(ids)
    one, both = asked(first, shared, q), asked(second, shared, q)
    assert alike(both, asked(scheme_of(cls, **{name: two[1]}), Seq(ids), q))
    assert not alike(one, both) or (cls, name) in [(YaRN, 'context_length'), (YaRN, 'fast')]


def test_c01_the_strength_and_whatever_else_is_set_later():
    q, ids = torch.randn(1, 2, 16, 8), torch.zeros(1, 16, dtype=torch.long)
    class Strong(YaRN): strength = 3.
    class Later(YaRN): pass
    strong, later = (c(8, factor=2., context_length=64) for c in (Strong, Later))
    later.anything = 3
    seq = Seq(ids)
    weak = YaRN(8, factor=2., context_length=64).rotate(seq, q, q)[0]
    assert torch.equal(strong.rotate(seq, q, q)[0], strong.rotate(Seq(ids), q, q)[0])
    assert not torch.equal(strong.rotate(seq, q, q)[0], weak)
    angles = later._angles(seq)
    later.anything = 4
    assert later._angles(seq) is not angles


ATTENTIONS = {'window': [dict(window=3), dict(window=5)], 'none': [dict(window=3), {}],
              'softcap': [dict(softcap=5.), dict(softcap=2., window=4)],
              'scheme': [dict(pos=ALiBi), dict(pos=RoPE)],
              'bias': [dict(pos=ALiBi, window=3), dict(pos=ALiBi)],
              'theta': [dict(pos=partial(RoPE, theta=10.)), dict(pos=partial(RoPE, theta=99.))]}
MAKES = {'Attention': Attention, 'OpenAttention': OpenAttention, 'MLA': MLA,
         'matmul': partial(OpenAttention, backend=matmul),
         'flex': partial(OpenAttention, backend=flex),
         'static': partial(OpenAttention, cache=StaticCache)}


@pytest.mark.parametrize('kind', ATTENTIONS)
@pytest.mark.parametrize('make', [*(m for m in MAKES if m != 'flex'),
                                  pytest.param('flex', marks=slow)])
@pytest.mark.parametrize('documents', [False, True])
@torch.no_grad()
def test_c01_c02_two_layers_give_what_each_gives_alone(make, kind, documents):
    "Whatever the two share: uncached, and read in pieces"
    torch.manual_seed(1)
    x, ids = torch.randn(2, 12, 16), torch.zeros(2, 12, dtype=torch.long)
    docs = (torch.arange(12)//5).expand(2, 12) if documents else None
    part = lambda t, a: t if t is None else t[:,a]
    layers = [MAKES[make](16, 2, **kw, **({'context_length': 12} if make == 'static' else {}))
              for kw in ATTENTIONS[kind]]
    layers = [a.eval() for a in layers]
    alone = [a(x, Seq(ids, docs)) for a in layers]
    for order in permutations(range(2)):
        seq = Seq(ids, docs)
        for i in order: assert torch.equal(layers[i](x, seq.at(i)), alone[i])
        caches, pieces = [a.new_cache() for a in layers], []
        for a in torch.arange(12).split([5, 1, 1, 5]):
            seq = Seq(ids[:,a], part(docs, a), caches=caches)
            out = {i: layers[i](x[:,a], seq.at(i)) for i in order}
            pieces.append([out[0], out[1]])
        for i, piece in enumerate(zip(*pieces)):
            torch.testing.assert_close(torch.cat(piece, 1), alone[i], atol=1e-5, rtol=1e-4)


# ---- C02: masks are shared by what the keys are, not by how many

class Sinks(Cache):
    "Keeps the first tokens and the newest"
    def __init__(self, first, newest):
        super().__init__()
        self.first, self.newest = first, newest

    def add(self, **new):
        every = super().add(**new)
        end = self.first + self.newest
        if every['pos'].shape[1] <= end: return every
        picked = [*range(self.first), *range(-self.newest, 0)]
        self.kept = {n: t[...,picked,:] if t.ndim == 4 else t[:,picked] for n, t in every.items()}
        return every


def kv(n): return torch.zeros(1, 1, n, 4)


@pytest.mark.parametrize('docs', [False, True])
def test_c02_two_caches_of_equal_length_and_other_positions(docs):
    caches = Cache(), Cache()
    for c, start in zip(caches, (0, 3)):
        c.add(k=kv(3), v=kv(3), pos=torch.arange(start, start+3)[None])
    seq = Seq(torch.zeros(1, 2, dtype=torch.long), pos=torch.tensor([[4, 5]]), caches=caches)
    tables = []
    for i in range(2):
        view = seq.at(i)
        held = view.cache.add(k=kv(2), v=kv(2), pos=seq.pos)
        keys = view.keys_of(held)
        tables.append(view.mask(*keys, table=True).table)
        assert torch.equal(tables[i], visible_mask(seq.pos, held['pos']))
    assert not torch.equal(*tables)


def test_c02_keys_that_a_layer_picks_itself():
    seq = Seq(torch.zeros(1, 8, dtype=torch.long))
    even, odd = seq.pos[:,::2], seq.pos[:,1::2]
    for kpos in (even, odd, even):
        assert torch.equal(seq.mask(kpos, table=True).table, visible_mask(seq.pos, kpos))
        assert torch.equal(ALiBi(8, 2).bias(seq, kpos)[0,0], -.0625*(seq.pos[0,:,None] - kpos))


@torch.no_grad()
def test_c02_caches_of_ones_own_keep_what_they_like():
    "Sinks of two sizes hold equally many tokens; a plain cache beside them is cut by hand"
    torch.manual_seed(0)
    x = torch.randn(1, 12, 16)
    layers = [Attention(16, 2, pos=p).eval() for p in (ALiBi, RoPE, RoPE, ALiBi)]
    def read(which):
        caches = [Sinks(1, 4), Sinks(3, 2), Cache(), Cache()]
        out = []
        for t in range(12):
            seq = Seq(torch.zeros(1, 1, dtype=torch.long), caches=[caches[i] for i in which])
            out.append([layers[i](x[:,t:t+1], seq.at(n)) for n, i in enumerate(which)])
            for c in caches[2:]:
                if c.seen == 6: c.kept = {n: t[...,[0,2,4],:] if t.ndim == 4 else t[:,[0,2,4]]
                                          for n, t in c.kept.items()}
        return [torch.cat(o, 1) for o in zip(*out)]
    together = read([0, 1, 2, 3])
    for i in range(4): assert torch.equal(together[i], read([i])[0]), i


@torch.no_grad()
def test_c02_places_that_hold_nothing_are_not_seen():
    "A cache that gives its whole memory, empty places at position −1"
    class Whole(LayerCache):
        def __init__(self): self.kept = dict(pos=torch.full((1, 16), -1))
        def add(self, k, v, pos):
            if 'k' not in self.kept:
                self.kept |= dict(k=k.new_zeros(1, 2, 16, 8), v=v.new_ones(1, 2, 16, 8))
            a = slice(self.seen, self.seen + pos.shape[1])
            self.kept['k'][:,:,a], self.kept['v'][:,:,a], self.kept['pos'][:,a] = k, v, pos
            self.seen = a.stop
            return dict(self.kept)
    torch.manual_seed(0)
    attn, x = Attention(16, 2).eval(), torch.randn(1, 6, 16)
    cache = Whole()
    one = torch.zeros(1, 1, dtype=torch.long)
    out = [attn(t, Seq(one, caches=[cache]).at(0)) for t in x.split(1, 1)]
    torch.testing.assert_close(torch.cat(out, 1), attn(x, Seq.like(x)))


@pytest.mark.parametrize('name', ['Attention', 'OpenAttention', 'MLA', 'static'])
@torch.no_grad()
def test_caches_of_one_past_share_their_masks(name, monkeypatch):
    "One table for all layers of a window, not one for each: the price stays what it was"
    made = []
    real = attention_module.visible_mask
    monkeypatch.setattr(attention_module, 'visible_mask', lambda *a: made.append(1) or real(*a))
    model = gpt(n_layers=6, attn=MAKES[name]).eval()
    ids, docs = torch.zeros(2, 10, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
    caches, tables = model.new_caches(), []
    for a in torch.arange(10).split([4, 1, 1, 4]):
        made.clear()
        model(ids[:,a], docs=docs[:,a], caches=caches)
        tables.append(len(made))
    assert tables == [1, 1, 1, 1]
    made.clear()
    model(ids, docs=docs)
    assert len(made) == 1


# ---- C03: every account of every variant

VARIANTS = {
    'default': {}, 'tied': dict(tie=True), 'narrow': dict(d_embed=8, tie=True),
    'gated': dict(mlp=SwiGLU),
    'context 1': dict(context_length=1), 'rounded': dict(vocab_multiple=64),
    'learnt': dict(pos_embed=LearnedPositions), 'waves': dict(pos_embed=Sinusoids),
    'grouped': dict(n_kv_heads=1), 'windows': dict(attn=[partial(Attention, window=3), Attention]),
    'alibi': dict(attn=partial(Attention, pos=ALiBi)), 'yarn': dict(
        attn=partial(Attention, pos=partial(YaRN, factor=2., context_length=24))),
    'open': dict(attn=partial(OpenAttention, adds=[Gate, ValueEmbedding, QKGain])),
    'static': dict(attn=partial(OpenAttention, cache=StaticCache)),
    'ring': dict(attn=partial(OpenAttention, cache=RingCache, window=4)),
    'latent': dict(attn=MLA), 'delta': dict(attn=DeltaAttention),
    'mixed': dict(attn=[MLA, DeltaAttention], n_layers=2), 'experts': dict(mlp=MoE),
    'experts with a bias': dict(mlp=partial(MoE, balance='bias', shared=1)),
    'depths': dict(block=MoD), 'depths and latents': dict(block=MoD, attn=MLA),
    'depths of a recurrent layer': dict(block=MoD, attn=DeltaAttention),
    'depths of experts': dict(block=MoD, mlp=MoE), 'every other depth': dict(block=[MoD, Block]),
    'parallel': dict(block=ParallelBlock), 'scaled': dict(block=ScaledBlock),
    'layer norm': dict(norm=LayerNorm), 'capped': dict(softcap=15.)}
PRESETS = {'gpt2': gpt2_config, 'llama': llama_config}


@pytest.mark.parametrize('name', [*VARIANTS, *PRESETS])
def test_c03_every_account_of_every_variant(name):
    if name in PRESETS:
        torch.manual_seed(0)
        model = GPT(PRESETS[name](**DIMS | dict(d_ff=32)))
    else: model = gpt(**VARIANTS[name])
    T = min(8, model.cfg.context_length)
    ids = torch.randint(0, 11, (2, T))
    caches = model.eval().new_caches()
    assert cache_bytes(caches) == 0
    with torch.no_grad():
        whole = model(ids)
        for piece in ids.split(1, 1): model(piece, caches=caches)
    assert cache_bytes(caches) >= 0 and whole.shape == (2, T, 11)
    need, state = model.memory(2, T), {n: p.clone() for n, p in model.state_dict().items()}
    assert need['weights'] == sum(p.nbytes for p in {*model.parameters()})
    assert need['cache'] > 0 or 'depths' in name or name == 'every other depth'
    assert 0 < model.flops_per_token(T, training=False)*3 == model.flops_per_token(T)
    assert active_params(model) <= model.n_params() and n_learning(model) == model.n_params()
    assert 'cache' in repr(costs(model, 2, T)) and '**GPT**' in model._repr_markdown_()
    assert model.state_dict().keys() == state.keys()
    assert GPTConfig.from_dict(json.loads(json.dumps(model.cfg.to_dict()))) == model.cfg


@pytest.mark.parametrize('wrong', [None, 3, 'x', [1], [None], torch.zeros(2), Cache()])
def test_c03_what_is_no_list_of_caches(wrong):
    with pytest.raises(TypeError, match=r'a list of caches, as model.new_caches\(\) gives'):
        cache_bytes(wrong)


# ---- P5: seams

@pytest.mark.parametrize('shape', [(), (5,), (2, 5), (2, 3, 5)])
def test_p5_the_nll_of_given_logits(shape):
    logits = torch.randn(*shape, 11, requires_grad=True)
    targets = torch.randint(0, 11, shape)
    nll = token_nll(logits, targets)
    picked = -logits.log_softmax(-1).gather(-1, targets[...,None])[...,0]
    torch.testing.assert_close(nll, picked)
    nll.sum().backward()
    assert logits.grad.abs().sum() > 0


def test_p5_it_is_the_models_own_and_serves_masked_and_chunked_losses():
    model, ids = perturbed(softcap=5.), torch.randint(0, 11, (2, 9))
    x, y = ids[:,:-1], ids[:,1:].clone()
    y[0,:3] = -100
    nll, _ = model(x, y)
    assert torch.equal(token_nll(model(x), y), nll) and nll[0,:3].eq(0).all() and nll[0,3] > 0
    chunks = [token_nll(l, t) for l, t in zip(model(x).split(3, 1), y.split(3, 1))]
    torch.testing.assert_close(torch.cat(chunks, 1), nll)
    half = token_nll(model(x).bfloat16(), y)
    assert half.dtype == torch.float32
    for wrong, kind in ((y[:,:-1], ValueError), (y[0], ValueError), (y.tolist(), TypeError),
                        (None, TypeError)):
        with pytest.raises(kind, match='targets must be a tensor'): token_nll(model(x), wrong)


@pytest.mark.parametrize('make', [Attention, OpenAttention, MLA, DeltaAttention,
                                  partial(OpenAttention, adds=[ValueEmbedding], vocab_size=11)])
def test_p5_a_layer_alone_takes_one_short_line(make):
    x = torch.randn(2, 6, 16, requires_grad=True)
    attn = make(16, 2)
    y = attn(x, Seq.like(x))
    assert torch.equal(y, attn(x, Seq(torch.zeros(2, 6, dtype=torch.long))))
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize('block', [Block, ParallelBlock, ScaledBlock, MoD])
def test_p5_a_block_alone_too(block):
    x = torch.randn(2, 6, 16)
    made = block(16, partial(Attention, 16, 2), partial(MLP, 16, 32), RMSNorm)
    y = made(x, Seq.like(x).at(0))
    assert (y[0] if isinstance(y, tuple) else y).shape == x.shape


# ---- U13: the field's name

def test_u13_swiglu_by_name():
    model = gpt(mlp=SwiGLU, d_ff=32)
    x, mlp = torch.randn(2, 3, 16), model.blocks[0].mlp
    nn.init.normal_(mlp.down.weight)
    torch.testing.assert_close(mlp(x), mlp.down(F.silu(mlp.gate(x)) * mlp.up(x)))
    assert check_part(SwiGLU, 32, 64).ok
    assert GPTConfig.from_dict(json.loads(json.dumps(model.cfg.to_dict()))).mlp is SwiGLU
    assert swap(model, SwiGLU, lambda old: MLP(16, 32)) == 2


# ---- equal configs

def test_configs_with_equal_parts_are_equal():
    make = lambda theta=5e5, **kw: llama_config(
        attn=[partial(Attention, pos=partial(RoPE, theta=theta)), Attention], **kw)
    assert make() == make() and not make() != make() and gpt2_config() == gpt2_config()
    assert make() != make(theta=1e4) and make() != make(n_layers=3) and make() != gpt2_config()
    assert make() == replace(make()) == copy.deepcopy(make())
    assert GPTConfig(attn=[Attention]) == GPTConfig(attn=(Attention,)) != GPTConfig(attn=Attention)
    scaled = GPTConfig(block=partial(ScaledBlock, h=(1., 2.)))
    assert GPTConfig.from_dict(json.loads(json.dumps(scaled.to_dict()))) == scaled
    assert scaled != 3 and scaled is not None and scaled != None                      # noqa: E711
    assert GPTConfig(init=partial(mup_init, head=1.)) == GPTConfig(init=partial(mup_init, head=1.))
    assert partial_with(torch.ones(2)) != partial_with(torch.ones(2))                 # no crash


def partial_with(t): return GPTConfig(mlp=partial(MLP, act=partial(torch.mul, t)))


def test_numbers_of_numpy_become_pythons():
    "What a sweep over np.arange gives; JSON can hold it"
    cfg = GPTConfig(n_layers=np.int64(2), d_model=np.int32(16), n_heads=np.uint8(2),
                    dropout=np.float32(.5), softcap=np.float64(3.))
    assert {type(getattr(cfg, n)) for n in ('n_layers', 'd_model', 'n_heads')} == {int}
    assert type(cfg.dropout) is type(cfg.softcap) is float and json.dumps(cfg.to_dict())
    assert cfg == GPTConfig(n_layers=2, d_model=16, n_heads=2, dropout=.5, softcap=3.)


# ---- small contexts, other widths, windows of nothing

def test_a_context_of_one_token():
    model = perturbed(context_length=1)
    ids = torch.randint(0, 11, (3, 1))
    nll, _ = model(ids, ids)
    assert nll.shape == (3, 1) and lm_loss(model, dict(ids=ids, targets=ids))[1] == 3
    assert torch.equal(model(ids, caches=model.new_caches()), model(ids))
    assert check_config(model).ok and add_layers(model, 3).cfg.n_layers == 3
    assert extend_context(model, 3.) == 2 and model(ids.expand(3, 3)).shape == (3, 3, 11)
    with pytest.raises(ValueError, match='2 tokens do not fit the context of 1'):
        perturbed(context_length=1)(ids.expand(3, 2))


@pytest.mark.parametrize('C', [8, 48, 64])
@pytest.mark.parametrize('make', [Attention, OpenAttention, MLA, DeltaAttention,
                                  partial(OpenAttention, v_expand=2., qk_expand=.5)])
def test_check_attn_at_any_width(make, C):
    assert check_attn(make, C=C, n_heads=2).ok


@pytest.mark.parametrize('window', [0, -1])
def test_a_window_of_nothing_is_refused(window):
    pos = torch.arange(6)[None]
    for f in (lambda: visible_mask(pos, pos, window=window),
              lambda: Seq(pos).mask(pos, window=window), lambda: Attention(16, 2, window=window),
              lambda: Cache(window), lambda: StaticCache(8, window), lambda: RingCache(window),
              lambda: OpenAttention(16, 2, window=window)):
        with pytest.raises(ValueError, match='window'): f()
    attn = Attention(16, 2)
    attn.window = window                                      # behind the constructor's back
    with pytest.raises(ValueError, match='window must be a whole number of at least 1'):
        attn(torch.randn(1, 6, 16), Seq(pos))


# ---- R06: sense before memory

def test_r06_a_config_is_compared_before_it_is_built():
    shapes = parameter_shapes(GPTConfig(**DIMS, d_ff=10**9))
    assert shapes['blocks.0.mlp.up.weight'] == (10**9, 16)
    small = len(parameter_shapes(GPTConfig(**DIMS)))
    for huge in (dict(n_layers=10**9), dict(mlp=partial(MoE, n_experts=10**9))):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=f'far more than {small} tensors'):
            parameter_shapes(GPTConfig(**DIMS | huge), small)
        assert time.perf_counter() - start < 20
    for name in ('d_ff', 'd_embed', 'vocab_size', 'd_model'):
        with pytest.raises(ValueError, match='can be built'):
            parameter_shapes(GPTConfig(**DIMS | {name: 2**62}))
    assert len(parameter_shapes(GPTConfig(**DIMS), small)) == small


def test_r06_parts_of_a_config_from_a_file():
    d = GPTConfig(**DIMS).to_dict()
    deep = d
    for _ in range(3000): deep = [deep]
    for wrong, words in ((d | dict(mlp=deep), 'too deep'), (d | dict(n_layers=1e9), 'n_layers'),
                         (d | dict(n_layers=[2]), 'n_layers'), (d | {3: 1}, 'no field 3'),
                         (d | dict(mlp=dict(part=3)), 'a part is described'), ([d], 'dictionary')):
        with pytest.raises(ValueError, match=words): GPTConfig.from_dict(wrong)
    with pytest.raises(TypeError, match='parts are your own classes by name'):
        GPTConfig.from_dict(d, parts=[MLP])


# ---- A15: compiled and wrapped

class Ranks(nn.DataParallel):
    "As DistributedDataParallel: what it is given is `module`"

def around(model): return torch.compile(model, backend='eager')
def inside(model):
    for i, b in enumerate(model.blocks): model.blocks[i] = torch.compile(b, backend='eager')
    return model
def in_place(model):
    for b in model.blocks: b.compile(backend='eager')
    return model

WRAPS = dict(around=around, inside=inside, in_place=in_place, ranks=Ranks, average=AveragedModel,
             both=lambda m: Ranks(around(m)))
wraps = pytest.mark.parametrize('how', WRAPS)


@wraps
def test_a15_accounts_of_a_compiled_or_wrapped_model(how):
    plain, model = gpt(mlp=[MoE, MLP]), WRAPS[how](gpt(mlp=[MoE, MLP]))
    assert active_params(model) == active_params(plain) and n_learning(model) == n_learning(plain)
    assert repr(costs(model, 1, 8)) == repr(costs(plain, 1, 8))
    assert parameter_roles(plain).keys() == {plain_name(n) for n in parameter_roles(model)}
    assert [*parameter_roles(model).values()] == [*parameter_roles(plain).values()]
    batch = dict(ids=torch.randint(0, 11, (2, 8)))
    assert torch.equal(expert_load(model, batch), expert_load(plain, batch))
    base = GPTConfig(**DIMS | dict(d_model=8), mlp=[MoE, MLP])
    if how != 'inside': assert len(mup_groups(model, base)) == len(mup_groups(plain, base))


@wraps
@pytest.mark.parametrize('init', [nanochat_init, hlb_init, mup_init])
def test_a15_a_start_knows_its_roles(how, init):
    "`_orig_mod.head` was no head: a compiled model began elsewhere, in silence"
    plain, model = gpt(), WRAPS[how](gpt())
    for m in (plain, model):
        torch.manual_seed(7)
        init(m)
    for a, b in zip(plain.parameters(), model.parameters()): assert torch.equal(a, b)


@wraps
def test_a15_surgery_on_a_compiled_or_wrapped_model(how):
    plain, model = perturbed(), WRAPS[how](perturbed())
    ids = torch.randint(0, 11, (2, 8))
    require_described(model)
    assert check_config(model).ok
    for change in (lambda m: rebuild(m, d_ff=64), lambda m: widen_vocab(m, 20),
                   lambda m: rebuild(m, tie=False)):
        try: expected = change(plain)(ids)
        except ValueError as e:
            with pytest.raises(ValueError) as caught: change(model)
            assert str(caught.value) == str(e)
        else: assert torch.equal(change(model)(ids), expected)
    assert add_layers(model, 4).cfg.n_layers == 4


@wraps
def test_a15_lora_of_a_compiled_or_wrapped_model(how):
    plain, model = perturbed(), WRAPS[how](perturbed())
    for m in (plain, model):
        torch.manual_seed(3)
        assert add_lora(m, 2) == 12
    state = lora_state(model)
    assert state.keys() == lora_state(plain).keys() and not any('_orig' in n for n in state)
    for t in state.values(): t.normal_()
    load_lora(plain, state)
    other = WRAPS[how](perturbed())
    add_lora(other, 2)
    load_lora(other, lora_state(plain))
    ids = torch.randint(0, 11, (2, 8))
    for a, b in zip(lora_state(plain).values(), lora_state(other).values()):
        assert torch.equal(a, b)
    if how != 'ranks': assert torch.equal(other(ids), plain(ids))
    assert swap(model, LoRA, LoRA.merged) == 12


@wraps
def test_a15_swap_and_context(how):
    model = WRAPS[how](gpt())
    assert swap(model, MLP, lambda old: GLU(16, 32)) == 2
    assert extend_context(model, 2.) == 2 and unwrapped(model).cfg.context_length == 48
    ids = torch.zeros(1, 40, dtype=torch.long)
    assert unwrapped(model)(ids).shape == (1, 40, 11)


def test_a15_the_model_itself_is_not_swapped_away():
    with pytest.raises(ValueError, match='the model itself is a GPT'):
        swap(around(gpt()), GPT, lambda old: nn.Identity())


def test_what_was_set_on_a_model_stays_when_it_is_rebuilt():
    "What came in goes out: memory options, marks of a text's end, what is frozen"
    model = gpt().train()
    model.remat, model.loss_chunk, model.end_ids = True, 4, (3, 5)
    model.embed.weight.requires_grad_(False)
    for new in (rebuild(model, d_ff=64), widen_vocab(model, 20), add_layers(model, 3)):
        assert (new.remat, new.loss_chunk, new.end_ids) == (True, 4, (3, 5)) and new.training
        assert [n for n, p in new.named_parameters() if not p.requires_grad] == ['embed.weight']
    assert in_place(gpt()).blocks[0]._compiled_call_impl and not rebuild(
        in_place(gpt()), d_ff=64).blocks[0]._compiled_call_impl


# ---- R01: hostile names

HOSTILE = '<img src=x onerror=alert(1)>|`a`\n\x1b]52;c;x\x07'


def test_r01_names_in_every_table_and_line():
    Odd = type(HOSTILE, (MLP,), {})
    model = gpt(mlp=Odd)
    model.blocks[0].add_module(HOSTILE.replace('.', ''), nn.Linear(99, 99))
    grid = Grid({(HOSTILE, HOSTILE): dict(c=Report(a=True))})
    report = Report({HOSTILE: False})
    for text in (model._repr_markdown_(), grid._repr_markdown_()):
        assert '<img' not in text and '\x1b' not in text and '\x07' not in text
        assert all(len(l.split(' | ')) <= 5 for l in text.split('\n'))
    for text in (repr(model), repr(model.cfg), str(model.cfg), repr(grid), repr(report)):
        assert '\x1b' not in text and '\x07' not in text
    rows = costs(model, 1, 4)
    assert '\x1b' not in repr(rows) + rows._repr_markdown_()


def test_r01_honest_names_stay():
    assert repr(GPTConfig()).startswith('GPTConfig(vocab_size=1024, context_length=256, n_layers=4')
    assert 'softcap=None, norm=<class' in repr(GPTConfig())
    assert '| mlp | 4,096 |' in gpt()._repr_markdown_() and repr(Report(a=True)) == '✓ a'


# ---- R11: wrong arguments are told where they come in

ROWS = torch.zeros(1, 3, dtype=torch.long)
SHARED = dict(attn=partial(Attention, 16, 2), mlp=partial(MLP, 16, 32), norm=RMSNorm)
# what is called → (arguments that are right, those that are wrong)
CALLS = {
    'MLP': (MLP, dict(C=16, d_ff=32), dict(C=[0, -1, 1.5, 'x', None, True], d_ff=[0, math.nan],
                                           act=['relu', None, 3], dropout=[-.1, 1.5, math.nan])),
    'GLU': (GLU, dict(C=16, d_ff=32), dict(C=[0, 'x'], d_ff=[-1], act=[0], dropout=[2])),
    'RMSNorm': (RMSNorm, dict(C=16), dict(C=[0, None], eps=[-1, math.nan, 'x'])),
    'RoPE': (RoPE, dict(D=8), dict(D=[7, 0, 'x', None], theta=[0, -1, math.nan, 'x'])),
    'YaRN': (YaRN, dict(D=8, context_length=16), dict(factor=[0, -1, math.nan, 'x'])),
    'Attention': (Attention, dict(C=16, n_heads=2), dict(
        C=[0, 'x', 15], n_heads=[0, 3, 1.5, None], n_kv_heads=[0, 3, 'x'], d_head=[0, -1],
        window=[0, -1, 1.5, '8'], softcap=[0, -1, math.nan, 'x'], dropout=[-1, 2, math.nan, 'x'],
        pos=['rope', 0, lambda D, n_heads: None])),
    'OpenAttention': (OpenAttention, dict(C=16, n_heads=2), dict(
        n_heads=[0, 'x'], d_head=[0], qk_expand=[0, math.nan, math.inf, 'x'], v_expand=[-1],
        adds=[3, 'gate'], backend=['flex', None], cache=['ring'])),
    'MLA': (MLA, dict(C=16, n_heads=2), dict(n_heads=[0], d_latent=[0, -1], d_rope=[-2, 'x'],
                                             pos=[lambda D, n_heads: None])),
    'DeltaAttention': (DeltaAttention, dict(C=16, n_heads=2), dict(n_heads=[0], chunk=[0, 1.5])),
    'MoE': (MoE, dict(C=16, d_ff=32), dict(
        n_experts=[0, 1.5, 'x'], k=[0, 9, 1.5], shared=[-1], d_expert=[0], expert=['mlp'],
        gate=['tanh', None], balance=['x'], capacity=[0, -1, math.nan, math.inf])),
    'MoD': (MoD, dict(C=16, **SHARED), dict(share=[0, -1, 2, math.nan, 'x'], inner=[None])),
    'Block': (Block, dict(C=16, **SHARED), dict(C=['x'], attn=[None, lambda: None], mlp=[3],
                                                norm=['x', lambda C: None], dropout=[1.5])),
    'GPT': (GPT, dict(cfg=GPTConfig(**DIMS)), dict(cfg=[None, DIMS, GPTConfig, 'gpt2'])),
    'forward': (gpt(), dict(ids=ROWS), dict(
        ids=[[[1, 2]], ROWS[0], ROWS.float(), ROWS - 1, ROWS + 11, ROWS[:,:0], 'x', None],
        targets=[[[1, 2, 3]], ROWS[:,:2], ROWS.float(), ROWS + 11, 'x'],
        docs=[[[0, 0, 0]], ROWS[0]], pos=[3, ROWS[0]], caches=[3, [], [None], {}])),
    'lm_loss': (lm_loss, dict(model=gpt(), batch=dict(ids=ROWS, targets=ROWS)), dict(
        batch=[None, ROWS, dict(ids=ROWS)], aux_weight=[-1, math.nan, 'x'])),
    'Seq': (Seq, dict(ids=ROWS), dict(ids=[None, [[1]], ROWS.float(), ROWS[0]], docs=[0, ROWS[0]],
                                      pos=[[0], ROWS.expand(2, 3)], caches=[3, []])),
    'swap': (swap, dict(model=gpt(), cls=LayerNorm, make=nn.Identity), dict(
        model=[None, DIMS], cls=['MLP', None, MLP(8, 8)], make=[None, 'MLP'])),
    'check_model': (check_model, dict(make=GPTConfig(**DIMS)), dict(make=[None, DIMS, gpt()])),
    'check_attn': (check_attn, dict(make=Attention, C=16), dict(make=[None, 'x'], C=[0, 'x'])),
    'check_part': (check_part, dict(make=RMSNorm), dict(make=[None, 'norm'], C=[0, 1.5])),
    'flops': (gpt().flops_per_token, {}, dict(T=[0, -1, 1.5, 'x'])),
    'memory': (gpt().memory, dict(B=1, T=4), dict(B=[0, -1, 'x'], T=[0, 1.5, 99])),
    'costs': (costs, dict(model=gpt(), T=4), dict(model=[None, MLP(8, 8)], B=[0, None], T=[-1])),
    'LoRA': (lambda old=None, **kw: LoRA(old or nn.Linear(4, 4), **kw), {}, dict(
        old=[MLP(8, 8)], r=[0, 1.5], alpha=[0, math.nan])),
    'rebuild': (rebuild, dict(model=gpt()), dict(model=[None, MLP(8, 8), DIMS], fill=[3])),
    'extend_context': (extend_context, dict(model=gpt(), factor=1.), dict(
        model=[None], factor=[0, -1, math.nan, 'x'], scheme=[None, lambda D, **kw: None])),
    'mup_groups': (mup_groups, dict(model=gpt(), base=GPTConfig(**DIMS)), dict(
        base=[None, DIMS], lr=['x', math.nan], make=[None, lambda **kw: None])),
    'expert_load': (expert_load, dict(model=gpt(mlp=MoE), batch=dict(ids=ROWS)), dict(
        model=[None, gpt()], batch=[None, ROWS])),
    'check_grid': (check_grid, dict(attentions=dict(a=Attention), positions=dict(n=None),
                                    caches=dict(c=Cache), verbose=False),
                   dict(attentions=[{}, [Attention]], positions=[{}], caches=[None]))}


@pytest.mark.parametrize('name', CALLS)
def test_r11_wrong_arguments_are_told_where_they_come_in(name):
    call, right, wrong = CALLS[name]
    call(**right)
    for arg, value in ((arg, value) for arg, values in wrong.items() for value in values):
        with pytest.raises((TypeError, ValueError)) as caught: call(**right | {arg: value})
        raised = caught.traceback[-1]
        assert 'raise' in str(raised.statement), (arg, value, raised)      # one of ours
        assert '/torch/' not in str(raised.path), (arg, value, raised)


def test_r11_what_fits_is_left_alone():
    "NumPy's numbers, None where it is allowed, a part that is wrapped, flags by their truth"
    assert MLP(np.int64(16), np.uint8(32), dropout=np.float32(.5), bias=1).up.in_features == 16
    assert Attention(16, 2, None, pos=None, softcap=np.float64(3.), dropout=0).K == 2
    assert n_learning(around(gpt())) == n_learning(gpt())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'd_ff'"): MLP(16)
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"): MLP(16, 32, width=3)


def test_r11_a_scheme_that_is_refused_changes_nothing():
    model = gpt()
    before, cfg = [b.attn.pos for b in model.blocks], model.cfg
    class Rotat(YaRN):
        def rotat(self, seq, q, k): return q, k
    for scheme in (Rotat, lambda D, **kw: None, lambda D, **kw: 3):
        with pytest.raises(TypeError): extend_context(model, 2., scheme)
        assert [b.attn.pos for b in model.blocks] == before and model.cfg is cfg


def _qkv(): return torch.randn(3, 1, 2, 3, 4).unbind()

# function → good arguments, one that is none, one of another shape
TENSORS = {
    plain_attention: (_qkv, dict(k='x'), dict(k=torch.ones(1, 2, 3, 5))),
    visible_mask: (lambda: (ROWS, ROWS), dict(kpos=None), dict(qpos=torch.arange(3))),
    rotate_halves: (lambda: (torch.ones(3, 8), torch.ones(3, 4), torch.ones(3, 4)),
                    dict(sin=1.), dict(cos=torch.ones(3, 5))),
    token_nll: (lambda: (torch.zeros(1, 3, 11), ROWS), dict(logits=[0.]),
                dict(targets=torch.ones(2, dtype=torch.long))),
    delta_rule: (lambda: (*_qkv(), torch.rand(1, 2, 3)), dict(beta=.5), dict(q=torch.ones(2))),
    route_tokens: (lambda: (torch.rand(3, 4), 2), dict(k='x'), dict(bias=torch.ones(3))),
    balance_loss: (lambda: (torch.zeros(3, 1).long(), torch.rand(3, 4)), dict(scores=None),
                   dict(scores=torch.ones(3))),
    load_of: (lambda: (torch.zeros(3, 1).long(), 4), dict(chosen=3), dict(chosen=torch.ones(2))),
    top_share: (lambda: (torch.rand(1, 8), .5), dict(r='x'), dict(r=torch.rand(8)))}


@pytest.mark.parametrize('f', TENSORS, ids=lambda f: f.__name__)
def test_r11_what_is_no_tensor_or_has_another_shape_is_named(f):
    good, none, shape = TENSORS[f]
    f(*good())
    names = list(inspect.signature(f).parameters)
    for wrong in (none, shape):
        (name, value), = wrong.items()
        given = dict(zip(names, good())) | wrong
        with pytest.raises((TypeError, ValueError)) as caught: f(**given)
        assert '/torch/' not in str(caught.traceback[-1].path), caught.value
        assert wrong is shape or name in str(caught.value)


def test_r11_a_failure_of_ones_own_stays_what_it_was():
    "Only arguments that do not fit, and shapes that do not go together, are told in other words"
    @explained
    def f(x:torch.Tensor, kind:str) -> torch.Tensor:
        if kind == 'key': return {}[kind]
        if kind == 'limit': raise RuntimeError('more than 20 operations')
        if kind == 'memory': raise RuntimeError("can't allocate memory: you tried 10**12 bytes")
        return x @ torch.ones(3)
    assert f(torch.ones(3), 'x') == 3
    with pytest.raises(KeyError): f(torch.ones(3), 'key')
    with pytest.raises(RuntimeError, match='allocate'): f(torch.ones(3), 'memory')
    with pytest.raises(RuntimeError, match='more than 20'): f(torch.ones(3), 'limit')
    with pytest.raises(TypeError, match='x must be a tensor, not 3') as caught: f(3, 'x')
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(ValueError, match=r'f cannot use these tensors together, x \(2,\) float32'):
        f(torch.ones(2), 'x')
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'kind'"):
        f(torch.ones(3))


# ---- small things that a lesson once held

def test_a_learnt_table_of_positions_ends():
    table, ids = LearnedPositions(8, 6), torch.zeros(2, 6, dtype=torch.long)
    assert table(Seq(ids)).shape == (2, 6, 8)
    with pytest.raises(ValueError, match='beyond the table of 6'):
        table(Seq(ids, pos=torch.arange(6)[None] + 3))


def test_the_first_cache_of_a_part_is_its_layers():
    layer = Attention(32, 4, window=4)
    assert first_cache(nn.Sequential(nn.Linear(32, 32), layer)).window == 4
    assert first_cache(nn.Linear(32, 32)) is None

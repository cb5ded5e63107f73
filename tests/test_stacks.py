"""Every block with every start, in stacks of all kinds of parts; the published spreads and rates;
bad input."""
import json, math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gptlab.attention import Attention, LearnedPositions, Seq
from gptlab.attentions import Gate, OpenAttention, ValueEmbedding
from gptlab.blocks import GLU, LayerNorm, MLP, perturb_parameters, RMSNorm
from gptlab.core import set_seed
from gptlab.linear_attentions import DeltaAttention, MLA
from gptlab.model import Block, check_model, GPT, gpt2_init, GPTConfig, lm_loss, modern_init
from gptlab.moe import MoE
from gptlab.optimizers import adamw, muon, Opt
from gptlab.stacks import (draw_by_role, hlb_init, mup_groups, mup_init, nanochat_init,
                           ParallelBlock, parameter_roles, ScaledBlock)

class Both(ScaledBlock, ParallelBlock): pass

BLOCKS = dict(plain=Block, parallel=ParallelBlock, neox=partial(ParallelBlock, two_norms=True),
              scaled=ScaledBlock, both=Both)
INITS = dict(modern=modern_init, gpt2=gpt2_init, nanochat=nanochat_init, hlb=hlb_init, mup=mup_init,
             mup_head=partial(mup_init, head=1.))
NAMED = {n: INITS[n] for n in ('nanochat', 'hlb', 'mup', 'mup_head')}
DIMS = dict(vocab_size=50, context_length=32, n_layers=3, n_heads=4, d_model=32, d_ff=64)
STACKS = dict(grouped=dict(n_kv_heads=2), tied=dict(tie=True),
              experts=dict(mlp=partial(MoE, n_experts=4, shared=1, expert=GLU)),
              open=dict(attn=partial(OpenAttention, v_expand=2., adds=[Gate, ValueEmbedding]),
                        n_kv_heads=2), latent=dict(attn=[MLA, DeltaAttention]),
              gpt2=dict(norm=LayerNorm, mlp=partial(MLP, bias=True),
                        attn=partial(Attention, pos=None, qk_norm=False),
                        pos_embed=LearnedPositions, tie=True),
              narrow=dict(d_embed=16, vocab_multiple=64, mlp=GLU),
              narrow_tied=dict(d_embed=16, tie=True, softcap=18.))

def make(seed=0, **kw):
    set_seed(seed)
    return GPT(GPTConfig(**DIMS | kw))


@pytest.mark.grid(quick=3)
@pytest.mark.parametrize('stack', STACKS)
@pytest.mark.parametrize('init', INITS)
def test_every_start_of_every_stack(stack, init):
    "First loss, future, documents, caches, gradients, repeatability, with the usual block"
    set_seed(0)
    report = check_model(GPTConfig(**DIMS | STACKS[stack] | dict(init=INITS[init])))
    assert report.ok, report


@pytest.mark.grid(quick=3)
@pytest.mark.parametrize('stack', STACKS)
@pytest.mark.parametrize('block', BLOCKS)
def test_every_block_of_every_stack(stack, block):
    set_seed(0)
    report = check_model(GPTConfig(**DIMS | STACKS[stack]
                                   | dict(init=mup_init, block=BLOCKS[block])))
    assert report.ok, report


@pytest.mark.parametrize('stack', ['experts', 'narrow'])
@pytest.mark.parametrize('block', BLOCKS)
def test_blocks_survive_recomputing_and_short_chunks(stack, block):
    model = perturb_parameters(make(**STACKS[stack], block=BLOCKS[block]))
    ids = torch.randint(0, 50, (2, 21))
    batch, want = dict(ids=ids[:,:-1], targets=ids[:,1:]), None
    for model.remat, model.loss_chunk in ((False, None), (True, 7)):
        model.zero_grad()
        lm_loss(model, batch)[0].backward()
        got = torch.cat([p.grad.flatten() for p in model.parameters()])
        want = got if want is None else want
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# ---- blocks

def test_a_parallel_scaled_stack_by_hand():
    "The whole model, formula by formula; the auxiliary losses are those of the parts"
    m = perturb_parameters(make(block=Both, mlp=partial(MoE, n_experts=4),
                                attn=OpenAttention)).eval()
    ids = torch.randint(0, 50, (2, 20))
    seq = Seq(ids)
    x = x0 = m.embed(ids)
    losses = []
    for b in m.blocks:
        x = b.h*x + b.z*x0
        u = b.norm1(x)
        y, aux = b.mlp(u)
        x = x + b.attn(u, seq.at(0)) + y
        losses.append(aux)
    want = m.norm(x) @ m.head.weight.T
    torch.testing.assert_close(m(ids), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(m(ids, ids)[1], sum(losses))


def test_the_same_stream_is_normed_once_or_twice():
    one, two = make(block=ParallelBlock), make(block=partial(ParallelBlock, two_norms=True))
    assert (two.n_params() - one.n_params() == 3*32
            and not any('norm2' in n for n in one.state_dict()))
    assert one.flops_per_token() == two.flops_per_token() == make().flops_per_token()
    two.load_state_dict(one.state_dict() | {f'blocks.{i}.norm2.weight': b.norm1.weight
                                            for i, b in enumerate(one.blocks)})
    ids = torch.randint(0, 50, (2, 9))
    assert torch.equal(one(ids), two(ids))                   # two equal norms are one


@pytest.mark.parametrize('block', BLOCKS)
def test_dropout_reaches_the_attentions_answer(block, monkeypatch):
    seen = []
    monkeypatch.setattr(F, 'dropout', lambda x, p=.5, training=True, inplace=False: (
        seen.append(p if training else 0.), x)[1])
    make(block=BLOCKS[block], dropout=.25).train()(torch.zeros(1, 8, dtype=torch.long))
    # the embedding; attention and MLP of each layer
    assert seen.count(.25) == 1 + 2*3


def test_scales_begin_by_depth():
    """gpt-lab: h_i = 1.15 − 0.10·i/(L−1), z_i = 0.20 − 0.15·i/(L−1); one layer alone is a first
    layer"""
    for L in (1, 2, 7):
        for i, b in enumerate(make(n_layers=L, block=ScaledBlock).blocks):
            d = i/max(1, L-1)
            assert abs(b.h.item() - (1.15 - .1*d)) < 1e-6 and abs(b.z.item() - (.2 - .15*d)) < 1e-6


def test_neutral_scales_are_a_plain_block():
    plain, scaled = (make(init=gpt2_init),
                     make(init=gpt2_init, block=partial(ScaledBlock, h=(1, 1), z=(0, 0))))
    ids = torch.randint(0, 50, (2, 9))
    assert torch.equal(plain(ids), scaled(ids))


# ---- beginnings

def spread(model, name): return model.get_submodule(name).weight.std().item()

def test_published_spreads_of_nanochat():
    """gpt-lab: E N(0, 0.8), head N(0, 0.001), Wqkv and value tables U(±√3/√d), W1 U(±0.4 of it),
    gates U(0, 0.02), answers 0"""
    m = make(vocab_size=500, n_heads=4, n_kv_heads=2, d_model=128, d_ff=512, mlp=GLU,
             attn=partial(OpenAttention, adds=[ValueEmbedding]), init=nanochat_init)
    # a uniform spread of √3·s has this standard deviation
    s, b = 128**-.5, 'blocks.1.'
    want = ({'embed': .8, 'head': .001}
            | {b+n: v for n, v in {'attn.q': s, 'attn.k': s, 'attn.v': s, 'attn.adds.0.table': s,
                                   'mlp.up': .4*s, 'mlp.gate': .4*s}.items()})
    for n, std in want.items(): assert abs(spread(m, n)/std - 1) < .03, n
    assert (m.blocks[1].attn.q.weight.abs().max() <= s*3**.5 and not m.blocks[1].attn.o.weight.any()
            and not m.blocks[1].mlp.down.weight.any())
    gate = m.blocks[1].attn.adds[0].gate.weight
    assert 0 <= gate.min() and .01 < gate.max() <= .02


def test_published_spreads_of_hlb():
    "hlb-gpt: what reads N(0, (¼/√d)²), what answers N(0, (½/√d/L)²), embedding ¼/√d, head ½/√d"
    m, s = make(vocab_size=500, d_model=128, d_ff=512, init=hlb_init), 128**-.5
    want = {'embed': s/4, 'head': s/2, 'blocks.0.attn.q': s/4, 'blocks.2.mlp.up': s/4,
            'blocks.1.attn.o': s/2/3, 'blocks.1.mlp.down': s/2/3}
    for n, std in want.items(): assert abs(spread(m, n)/std - 1) < .03, n


def test_spreads_of_mup():
    "Table 3: tables 1, what reads n channels 1/√n, the head 1/n"
    m = make(vocab_size=500, d_model=128, d_ff=512, init=partial(mup_init, head=1.))
    want = {'embed': 1., 'head': 1/128, 'blocks.0.attn.q': 128**-.5, 'blocks.2.mlp.up': 128**-.5,
            'blocks.1.attn.o': (128*6)**-.5, 'blocks.1.mlp.down': (512*6)**-.5}
    for n, std in want.items(): assert abs(spread(m, n)/std - 1) < .03, n
    assert not make(init=mup_init).head.weight.any()


@pytest.mark.grid(quick=3)
@pytest.mark.parametrize('init', NAMED)
@pytest.mark.parametrize('stack', STACKS)
def test_the_seed_decides_all(init, stack):
    kw = STACKS[stack] | dict(init=NAMED[init])
    a, b, c = make(0, **kw), make(0, **kw), make(1, **kw)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert (not torch.equal(a.embed.weight, c.embed.weight)
            and torch.rand(1) != (make(0, **kw), torch.rand(1))[1])
    x, y = (m.blocks[0].attn.q.weight for m in (a, c))
    assert not torch.equal(x, y)
    with torch.device('meta'): assert GPT(GPTConfig(**DIMS | kw)).n_params() == a.n_params()


@pytest.mark.parametrize('init', [i for i in INITS if i != 'hlb'])
@pytest.mark.parametrize('width', [64, 768])
def test_the_first_guess_is_uniform_at_every_width(init, width):
    "A tied table of a fixed spread makes wide models guess the token they have just read"
    for tie in (False, True):
        model = make(vocab_size=257, d_model=width, n_heads=width//32, n_layers=1, d_ff=width,
                     tie=tie, init=INITS[init])
        ids = torch.randint(0, 257, (2, 33))
        with torch.no_grad():
            assert abs(model(ids[:,:-1], ids[:,1:])[0].mean() - math.log(257)) < .2


class Odd(nn.Module):
    "Nothing that a start could know: raw parameters, a convolution, a Linear of another name"
    def __init__(self, C, d_ff):
        super().__init__()
        self.scale, self.conv, self.proj = (nn.Parameter(torch.full((C, C), 7.)),
                                            nn.Conv1d(C, C, 1), nn.Linear(C, C))
        nn.init.constant_(self.proj.bias, 5.)
    def forward(self, x): return self.proj(self.conv((x @ self.scale).mT).mT)

@pytest.mark.parametrize('init', NAMED)
def test_unknown_parts_keep_their_own_start(init):
    set_seed(0)
    model = GPT(GPTConfig(**DIMS, mlp=Odd, init=NAMED[init]))
    odd = model.blocks[0].mlp
    assert ((odd.scale == 7).all() and odd.conv.weight.any() and odd.proj.weight.any()
            and not odd.proj.bias.any())
    assert (parameter_roles(model)['blocks.0.mlp.proj'] == 'matrix'
            and model(torch.zeros(1, 5, dtype=torch.long)).isfinite().all())
    assert len(mup_groups(model, model.cfg)) == 1            # the same width: one rate for all


def own_head(model, init=mup_init):
    "A head made of two matrices, put in before the start"
    model.head = nn.Sequential(nn.Linear(32, 8, bias=False), nn.Linear(8, 50, bias=False))
    init(model)

@pytest.mark.parametrize('init', NAMED)
def test_a_head_of_ones_own_is_a_head(init):
    model = make(init=partial(own_head, init=NAMED[init]))
    ids = torch.randint(0, 50, (2, 20))
    assert (parameter_roles(model)['head.1'] == 'head'
            and abs(model(ids, ids)[0].mean() - math.log(50)) < .2)
    assert len(mup_groups(model, model.cfg)) == 1


# ---- rates

def rates(cfg, base):
    model = make(**cfg)
    opt = Opt(model, *mup_groups(model, GPTConfig(**DIMS | base), lr=1.))
    assert sum(len(g['params']) for g in opt.param_groups) == len(list(model.parameters()))
    return {n: g['lr'] for g in opt.param_groups for n in g['param_names']}

def test_rates_fall_with_what_a_matrix_reads():
    """Four times the width: a quarter for every matrix, the head included; tables, gains, biases
    and scales keep theirs; heads and their latents stay as wide"""
    parts = dict(attn=[partial(OpenAttention, adds=[ValueEmbedding]), MLA],
                 mlp=partial(MoE, n_experts=4), block=Both, norm=LayerNorm, d_ff=None)
    got = rates(parts | dict(d_model=128, n_heads=16), parts)
    quarter = {n for n, r in got.items() if r == .25}
    assert set(got.values()) == {1., .25}
    for n in ('head.weight', 'blocks.0.attn.q.weight', 'blocks.0.mlp.router.weight',
              'blocks.2.mlp.experts.3.down.weight', 'blocks.1.attn.latent.weight'):
        assert n in quarter, n
    for n in ('embed.weight', 'blocks.0.attn.adds.0.table.weight',
              'blocks.0.attn.adds.0.gate.weight', 'blocks.1.attn.k.weight', 'blocks.0.h',
              'blocks.0.norm1.weight', 'norm.bias'):
        assert n not in quarter, n


def test_both_ends_take_the_slower_rate():
    """A tied table is a head, too; the matrix beside narrow tables reads the whole stream on the
    way out; a head of a narrow table reads as much as ever"""
    wide = dict(d_model=128, n_heads=16)
    assert rates(wide | dict(tie=True), dict(tie=True))['embed.weight'] == .25
    narrow = rates(wide | dict(d_embed=16), dict(d_embed=16))
    assert (narrow['widen.weight'], narrow['head.weight'], narrow['embed.weight']) == (.25, 1., 1.)


def test_any_rule_makes_the_groups():
    model = make(d_model=64)
    groups = mup_groups(model, GPTConfig(**DIMS), lr=.1, make=partial(adamw, wd=.2, betas=(.8, .9)))
    assert ([(g.settings['lr'], g.settings['wd'], g.settings['betas']) for g in groups]
            == [(.1, .2, (.8, .9)), (.05, .2, (.8, .9))])


@pytest.mark.parametrize('kind', ['grouped', 'gated'])
def test_the_coordinate_check(kind):
    """After a few steps a wide model has moved as far as a narrow one, with grouped heads and gated
    MLPs, too; without μP's rates it has not"""
    parts = dict(grouped=dict(n_kv_heads=2), gated=dict(mlp=GLU, block=ParallelBlock))[kind]
    ids = torch.randint(0, 50, (4, 33), generator=torch.Generator().manual_seed(0))
    shape = (lambda C: DIMS | parts | dict(context_length=32, n_layers=2, d_model=C, d_ff=4*C,
                                           n_heads=C//16, init=mup_init)
                       | (dict(n_kv_heads=C//32) if kind == 'grouped' else {}))
    def moved(C, groups):
        model = make(**shape(C))
        opt = Opt(model, *groups(model))
        for _ in range(4):
            opt.zero_grad()
            total, n = lm_loss(model, dict(ids=ids[:,:-1], targets=ids[:,1:]))
            (total/n).backward()
            opt.step()
        # it began at zero
        with torch.no_grad(): return model(ids[:,:-1]).square().mean().sqrt().item()
    ours, one = (moved(256, g)/moved(32, g)
                 for g in (lambda m: mup_groups(m, GPTConfig(**shape(32)), lr=2e-3),
                           lambda m: [adamw(2e-3)]))
    assert .7 < ours < 1.4 and one > 3, (ours, one)


# ---- configs and bad input

@pytest.mark.parametrize('block', [ParallelBlock, partial(ParallelBlock, two_norms=True),
                                   partial(ScaledBlock, h=(1., 1.), z=[0., 0.])])
@pytest.mark.parametrize('init', NAMED)
def test_configs_are_saved_by_name(block, init):
    cfg = GPTConfig(**DIMS, block=block, init=NAMED[init])
    again = GPTConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again.to_dict() == json.loads(json.dumps(cfg.to_dict()))
    a, b = (set_seed(0), GPT(cfg))[1], (set_seed(0), GPT(again))[1]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize('why,call', {
    'h is a pair': lambda: make(block=partial(ScaledBlock, h=1.15)),
    'z is a pair': lambda: make(block=partial(ScaledBlock, z=(1, 2, 3))),
    'pair of numbers': lambda: make(block=partial(ScaledBlock, h=('a', 'b'))),
    'head is a spread': lambda: make(init=partial(mup_init, head=-1.)),
    'no role is called heads': lambda: draw_by_role(make(), nn.init.zeros_, heads=nn.init.zeros_),
    'has no blocks.2': lambda: mup_groups(make(), GPTConfig(**DIMS | dict(n_layers=2))),
    'no widen': lambda: mup_groups(make(d_embed=8), GPTConfig(**DIMS))}.items())
def test_mistakes_are_told(why, call):
    with pytest.raises(ValueError, match=why): call()

def test_a_base_is_a_config():
    with pytest.raises(TypeError, match='base is a GPTConfig'): mup_groups(make(), 64)

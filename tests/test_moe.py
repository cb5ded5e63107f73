"""Mixtures: what the chapter shows for one case, here for every kind, with padding, documents,
several machines' worth of batches, and bad input."""
import json, math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from gptlab.attention import Attention
from gptlab.blocks import GLU, MLP, no_gradient, perturb_parameters
from gptlab.core import set_seed
from gptlab.generation import generate, generate_rows, top_k
from gptlab.model import Block, GPT, GPTConfig, lm_loss, as_pair
from gptlab.moe import (MoD, MoE, active_params, balance_loss, dropped_share, expert_load,
                        route_tokens, balance_experts)
from gptlab.optimizers import Opt, adamw, hidden, muon

CFG = GPTConfig(vocab_size=64, context_length=48, n_layers=2, n_heads=4, d_model=32, d_ff=32)
MIXES = dict(switch=partial(MoE, k=1), gshard=partial(MoE), none=partial(MoE, balance=None),
             bias=partial(MoE, balance='bias', gate='sigmoid', k=3),
             shared=partial(MoE, shared=1, d_expert=16),
             swiglu=partial(MoE, expert=GLU, n_experts=4), single=partial(MoE, n_experts=1, k=1),
             all=partial(MoE, n_experts=3, k=3))
MODELS = ({k: replace(CFG, mlp=m) for k, m in MIXES.items()}
          | dict(depth=replace(CFG, block=[Block, MoD]), first=replace(CFG, block=MoD),
                 quarter=replace(CFG, block=partial(MoD, share=.25)),
                 grouped=replace(CFG, block=MoD, n_kv_heads=2),
                 window=replace(CFG, block=MoD, attn=partial(Attention, window=6)),
                 nested=replace(CFG, block=MoD, mlp=MIXES['bias'])))


def make(name, seed=0):
    set_seed(seed)
    return perturb_parameters(GPT(MODELS[name]), .1).eval()


def padded(T=40):
    "Rows with 0, 5 and 9 tokens of padding on the left"
    pos = torch.arange(T)[None] - torch.tensor([0, 5, 9])[:,None]
    return dict(ids=torch.randint(0, 64, (3, T)), docs=torch.where(pos < 0, -1, 0),
                pos=pos.clamp(min=0))




def each(test): return pytest.mark.grid(quick=3)(pytest.mark.parametrize('name', MODELS)(test))



@each
@pytest.mark.parametrize('split', ([1]*40, [40], [7, 1, 1, 20, 11], [20, 20]), ids=str)
@torch.no_grad()
def test_cached_equals_uncached(name, split):
    model, batch = make(name), padded()
    caches, parts = model.new_caches(), zip(*(t.split(split, 1) for t in batch.values()))
    pieces = torch.cat([model(i, docs=d, pos=p, caches=caches) for i, d, p in parts], 1)
    assert ((pieces - model(**batch)).abs().amax(-1) * (batch['docs'] >= 0)).max() < 1e-4


@each
@torch.no_grad()
def test_cached_equals_uncached_without_padding(name):
    model, ids = make(name), torch.randint(0, 64, (2, 40))
    caches = model.new_caches()
    pieces = torch.cat([model(p, caches=caches) for p in ids.split([5, 1, 1, 33], 1)], 1)
    assert (pieces - model(ids)).abs().max() < 1e-4 and caches[0].seen == 40


@each
@torch.no_grad()
def test_blind_to_the_future_and_to_other_documents(name):
    model, ids = make(name), torch.randint(0, 64, (2, 40))
    other = ids.clone()
    other[:,20:] = (other[:,20:] + 1) % 64
    assert (model(ids) - model(other))[:,:20].abs().max() < 1e-5
    docs = (torch.arange(40) >= 20).long().expand(2, 40)
    pos = torch.arange(40).expand(2, 40) % 20
    other = ids.clone()
    other[:,:20] = (other[:,:20] + 1) % 64
    assert ((model(ids, docs=docs, pos=pos) - model(other, docs=docs, pos=pos))[:,20:].abs().max()
            < 1e-5)


@each
@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(name):
    model, ids = make(name), torch.randint(0, 64, (3, 40))
    assert (model(ids)[1:2] - model(ids[1:2])).abs().max() < 1e-4


@each
def test_every_parameter_learns_and_twice_is_the_same(name):
    model = make(name).train()
    ids = torch.randint(0, 64, (8, 49))
    batch = dict(ids=ids[:,:-1], targets=ids[:,1:])
    total, n = lm_loss(model, batch)
    (total/n).backward()
    assert no_gradient(model) == []
    assert torch.equal(total, lm_loss(model, batch)[0])


@each
def test_the_first_loss_is_uniform_and_the_config_survives_json(name):
    set_seed(0)
    cfg = GPTConfig.from_dict(json.loads(json.dumps(MODELS[name].to_dict())))
    assert cfg.to_dict() == MODELS[name].to_dict()
    ids = torch.randint(0, 64, (2, 40))
    assert torch.allclose(GPT(cfg)(ids, ids)[0], torch.tensor(math.log(64)))


@each
def test_it_writes(name):
    model = make(name)
    alone = [list(generate(model, p, 12, top_k(1))) for p in ([1, 2, 3], [7]*9)]
    rows = torch.stack(list(generate_rows(model, [[1, 2, 3], [7]*9], 12, top_k(1))), 1).tolist()
    assert rows == alone


def test_top_k_over_time_leaks():
    model, ids = make('depth').train(), torch.randint(0, 64, (16, 40))
    other = ids.clone()
    other[:,20:] = (other[:,20:] + 1) % 64
    with torch.no_grad():
        assert (model(ids) - model(other))[:,:20].abs().max() > 1e-3
        for b in model.modules():
            if isinstance(b, MoD): b.causal = True
        assert (model(ids) - model(other))[:,:20].abs().max() < 1e-5


def test_all_tokens_through_is_the_plain_block():
    "share=1 and a weight of 1: nothing is left of the mixture"
    set_seed(0)
    model = perturb_parameters(GPT(replace(CFG, block=partial(MoD, share=1.))), .1).train()
    plain = GPT(CFG)
    for b, p in zip(model.blocks, plain.blocks):
        p.load_state_dict(b.block.state_dict())
        b.router.weight.data.zero_()
        b.router.register_forward_hook(lambda m, a, y: y + 50)
    for n in ('embed', 'norm', 'head'):
        getattr(plain, n).load_state_dict(getattr(model, n).state_dict())
    ids = torch.randint(0, 64, (2, 40))
    assert (model(ids) - plain(ids)).abs().max() < 1e-4


def test_an_attention_without_cache_stays_without():
    class Mean(nn.Module):
        def __init__(self, C, n_heads, n_kv_heads=None):
            super().__init__()
            self.v = nn.Linear(C, C)

        def forward(self, x, seq):
            return self.v(x).cumsum(1) / torch.arange(1, x.shape[1]+1)[:,None]
    assert GPT(replace(CFG, block=MoD, attn=Mean)).new_caches() is None
    assert len(GPT(replace(CFG, block=MoD)).new_caches()) == 2


# ---- load

def test_balance_loss_is_least_when_even():
    for E, k in ((4, 1), (8, 2)):
        for _ in range(20):
            scores = torch.randn(64, E).softmax(-1)
            chosen = route_tokens(scores, k)[1]
            assert .9 < balance_loss(chosen, scores) <= E


def test_its_gradient_evens_the_load():
    "Descending the loss, or steering the bias, evens a router that begins with a favourite"
    for balance, group in (('loss', adamw(lr=.01)), ('bias', balance_experts(.01))):
        set_seed(0)
        m, x = MoE(32, 16, balance=balance, k=1), torch.randn(4, 64, 32) + 1
        m.router.weight.data[0] += .1
        loads = lambda: torch.bincount(m.choose(x.flatten(0,1))[1].flatten(), minlength=8) / 256
        before, opt = loads().max(), Opt(m, *[group] + [adamw(lr=0.)]*(balance == 'bias'))
        for _ in range(200):
            opt.zero_grad()
            m(x)[1].backward()
            opt.step()
        assert loads().max() < .6*before, balance


def test_steering_is_the_same_for_accumulated_batches():
    "The gradient of the bias is a mean over batches, as every gradient is"
    set_seed(0)
    m = MoE(32, 16, balance='bias')
    xs = torch.randn(4, 50, 32)
    m(xs)[1].backward()
    whole = m.bias.grad.clone()
    m.bias.grad = None
    for x in xs: (m(x[None])[1]/4).backward()
    assert torch.allclose(m.bias.grad, whole, atol=1e-6)


def test_the_bias_moves_the_choice_and_not_the_weights():
    s = torch.tensor([[.5, .3, .2]])
    w, chosen = route_tokens(s, 2, bias=torch.tensor([0., -.2, 0.]), normalise=False)
    assert chosen.tolist() == [[0, 2]] and w.tolist() == s[:,[0, 2]].tolist()


def test_capacity_drops_and_is_measured():
    set_seed(0)
    m, x = perturb_parameters(MoE(32, 16, balance=None, capacity=1.)), torch.randn(4, 64, 32)
    free = perturb_parameters(MoE(32, 16, balance=None))
    free.load_state_dict(m.state_dict())
    moved = ((m(x) - free(x)).abs().amax(-1) > 1e-6).float().mean()
    load = torch.bincount(m.choose(x.flatten(0,1))[1].flatten(), minlength=8) / 512
    # a token may lose one of two experts, or both
    assert 0 < dropped_share(load, 1.) <= moved <= 2*dropped_share(load, 1.) + 1e-6
    m.capacity = 8*load.max().item() + .1
    assert torch.equal(m(x), free(x))


def test_load_is_a_share_of_every_layer():
    model = make('gshard')
    load = expert_load(model, dict(ids=torch.randint(0, 64, (2, 40)), targets=None))
    assert load.shape == (2, 8) and torch.allclose(load.sum(1), torch.ones(2))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_only_the_biases_are_steered():
    model = make('bias')
    opt = Opt(model, balance_experts(), muon(at=hidden), adamw())
    assert opt.param_groups[0]['param_names'] == ['blocks.0.mlp.bias', 'blocks.1.mlp.bias']


def test_active_parameters():
    for E in (1, 4, 16):
        n = active_params(GPT(replace(CFG, mlp=partial(MoE, n_experts=E, k=1))))
        assert n == GPT(replace(CFG, mlp=MLP)).n_params() + 2*32*E*(E > 1)


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float32), ids=str)
def test_autocast(dtype):
    model, ids = make('nested').train(), torch.randint(0, 64, (2, 40))
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        total, n = lm_loss(model, dict(ids=ids, targets=ids))
    (total/n).backward()
    assert (total.isfinite()
            and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None))


def test_recomputing_a_block_gives_the_same_gradient():
    from torch.utils.checkpoint import checkpoint
    set_seed(0)
    m, x = MoE(32, 16, balance='bias'), torch.randn(2, 20, 32, requires_grad=True)

    def grads(f):
        m.zero_grad()
        y, aux = f(x)
        (y.sum() + aux).backward()
        return [p.grad.clone() for p in m.parameters()]

    for a, b in zip(grads(m), grads(lambda x: checkpoint(m, x, use_reentrant=False))):
        assert torch.equal(a, b)


# ---- bad input

@pytest.mark.parametrize('make, says', [
    (lambda: MoE(8, 8, n_experts=4, k=5), 'k must be from 1'),
    (lambda: MoE(8, 8, k=0), 'k must be from 1'), (lambda: MoE(8, 8, gate='tanh'), "'sigmoid'"),
    (lambda: MoE(8, 8, balance='hope'), "'bias'"),
    (lambda: GPT(replace(CFG, block=partial(MoD, share=0.))), 'share='),
    (lambda: GPT(replace(CFG, block=partial(MoD, share=1.5))), 'share='),
    (lambda: expert_load(GPT(CFG), dict(ids=torch.zeros(1, 4, dtype=torch.long))), 'no mixture')])
def test_bad_input(make, says):
    with pytest.raises(ValueError, match=says): make()

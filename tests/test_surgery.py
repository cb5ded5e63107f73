"""Operations on built models: equal functions where they are promised, for grouped and tied heads,
narrow and padded tables, mixtures; and what bad requests get."""
import json, math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from gptlab.attention import Attention
from gptlab.attentions import Gate, OpenAttention, ValueEmbedding
from gptlab.blocks import GLU, LayerNorm, perturb_parameters
from gptlab.checkpoints import load_checkpoint, load_model, save_checkpoint
from gptlab.core import set_seed
from gptlab.hub import HubAttention, load, NormedLinear, save
from gptlab.linear_attentions import DeltaAttention, MLA
from gptlab.model import gpt2_config, GPT, GPTConfig, lm_loss, swap
from gptlab.moe import MoD, MoE
from gptlab.optimizers import adamw, hidden, muon, Opt
from gptlab.stacks import ParallelBlock, ScaledBlock
from gptlab.surgery import (add_lora, check_config, add_layers, load_lora, LoRA, lora_state,
                            mean_rows, n_learning, to_gqa, rebuild, widen_vocab)
from gptlab.trainer import Trainer

CFG = GPTConfig(vocab_size=61, context_length=32, n_layers=2, n_heads=4, d_model=32, d_ff=48)
VALUES = partial(OpenAttention, adds=[ValueEmbedding, Gate])
CONFIGS = dict(plain=CFG, tied=replace(CFG, tie=True), grouped=replace(CFG, n_kv_heads=2),
               narrow=replace(CFG, d_embed=16),
               narrow_tied=replace(CFG, d_embed=16, tie=True, vocab_multiple=8),
               padded=replace(CFG, vocab_multiple=50), softcap=replace(CFG, softcap=15.),
               window=replace(CFG, attn=[partial(Attention, window=5), Attention]),
               values=replace(CFG, attn=VALUES),
               gpt2=gpt2_config(vocab_size=61, context_length=32, n_layers=2, n_heads=4,
                                d_model=32),
               glu=replace(CFG, mlp=partial(GLU, bias=True), norm=LayerNorm),
               moe=replace(CFG, mlp=partial(MoE, n_experts=3)), depth=replace(CFG, block=MoD),
               parallel=replace(CFG, block=ParallelBlock), latent=replace(CFG, attn=MLA),
               scaled=replace(CFG, block=ScaledBlock), delta=replace(CFG, attn=DeltaAttention),
               qwen=replace(CFG, n_kv_heads=2, attn=partial(HubAttention, qk_gain=True, bias=True)))


def each(test): return pytest.mark.grid(quick=3)(pytest.mark.parametrize('name', CONFIGS)(test))

IDS = torch.randint(0, 61, (2, 32), generator=torch.Generator().manual_seed(0))


def make(name, seed=0):
    set_seed(seed)
    return perturb_parameters(GPT(CONFIGS[name]), .05).eval()


@torch.no_grad()
def logits(model, ids=IDS): return model(ids)


@torch.no_grad()
def cached(model, ids=IDS):
    caches = model.new_caches()
    return torch.cat([model(p, caches=caches) for p in ids.split([5, 1, 1, 20, 5], 1)], 1)


def assert_sound(model, described=True):
    "It reads in pieces as at once; what its config says, through JSON, is what it is"
    assert (cached(model) - logits(model)).abs().max() < 1e-4
    assert check_config(model).ok == described
    if described:
        assert (GPTConfig.from_dict(json.loads(json.dumps(model.cfg.to_dict()))).to_dict()
                == model.cfg.to_dict())


def same(a, b, tol=1e-4): assert (a - b).abs().max() < tol


# ---- attention

def test_a_window_leaves_what_lies_within():
    model = make('grouped')
    before = logits(model)

    def windowed(old):
        new = deepcopy(old)
        new.window = 8
        return new

    assert swap(model, Attention, windowed) == 2 and not check_config(model).ok
    same(logits(model)[:,:8], before[:,:8])
    assert (logits(model) - before)[:,20:].abs().max() > 1e-4
    model.cfg = replace(model.cfg, attn=partial(Attention, window=8))
    assert_sound(model)
    same(logits(rebuild(make('grouped'), attn=partial(Attention, window=8))), logits(model))


@pytest.mark.parametrize('cfg',
                         (CFG, replace(CFG, attn=partial(Attention, bias=True, qk_norm=False)),
                          replace(CFG, attn=partial(OpenAttention, v_expand=2., adds=[Gate])),
                          replace(CFG, attn=[partial(Attention, window=7), Attention]),
                          replace(CFG, mlp=MoE, tie=True)), ids=range(5))
def test_equal_heads_are_grouped_without_loss(cfg):
    set_seed(0)
    model = perturb_parameters(GPT(cfg), .05).eval()
    for b in model.blocks:
        for m in (b.attn.k, b.attn.v):
            for p in m.parameters():
                p.data = (p.data.unflatten(0, (2, 2, -1))[:,:1].expand(-1, 2, *[-1]*p.ndim)
                          .flatten(0, 2).contiguous())
    before, n = logits(model), model.n_params()
    assert swap(model, Attention, partial(to_gqa, n_kv_heads=2)) == 2
    model.cfg = replace(cfg, n_kv_heads=2)
    assert_sound(model)
    same(logits(model), before)
    assert model.n_params() == GPT(model.cfg).n_params() < n


def test_grouping_is_the_mean_and_goes_on():
    attn = make('plain').blocks[0].attn
    two, one = to_gqa(attn, 2), to_gqa(attn, 1)
    heads = attn.v.weight.view(4, 8, 32)
    same(two.v.weight, torch.cat([heads[:2].mean(0), heads[2:].mean(0)]))
    same(to_gqa(two, 1).k.weight, one.k.weight, 1e-6)
    assert attn.K == 4 and two.K == 2 and one.new_cache() is not None and two.v.out_features == 16
    same(to_gqa(attn, 4).k.weight, attn.k.weight, 1e-9)


def test_groups_of_normed_keys():
    attn = make('plain').blocks[0].attn
    attn.k = NormedLinear(32, 32, 8)
    attn.k.gain.data.uniform_()
    k = to_gqa(attn, 2).k
    assert (type(k) is NormedLinear and k.out_features == 16
            and k(torch.randn(1, 3, 32)).shape == (1, 3, 16) and torch.equal(k.gain, attn.k.gain))


@pytest.mark.parametrize('n', (0, -1, 3, 8, 2., '2'))
def test_heads_that_do_not_divide(n):
    with pytest.raises(ValueError, match='4 key-value heads do not divide'):
        to_gqa(make('plain').blocks[0].attn, n)


@pytest.mark.parametrize('name, says', (('latent', 'MLA'), ('values', 'ValueEmbedding')))
def test_other_attentions_are_refused(name, says):
    with pytest.raises(TypeError, match=says): to_gqa(make(name).blocks[0].attn, 2)


def test_what_is_no_attention_is_refused():
    for other in (make('delta').blocks[0].attn, make('plain').blocks[0].mlp, None):
        with pytest.raises(TypeError, match='to_gqa changes an Attention, not'): to_gqa(other, 2)


def test_wrapped_queries_stay_wrapped():
    model = make('plain')
    add_lora(model, at=lambda name, p, m: name.endswith('attn.q.weight'))
    attn = to_gqa(model.blocks[0].attn, 2)
    assert isinstance(attn.q, LoRA) and attn.K == 2


def test_wrapped_keys_are_refused():
    model = make('plain')
    add_lora(model)
    with pytest.raises(TypeError, match='does not know k, v'): to_gqa(model.blocks[0].attn, 2)


# ---- LoRA

@each
def test_lora_begins_as_the_model_learns_alone_and_merges(name):
    model = make(name)
    before, n = logits(model), model.n_params()
    found = add_lora(model, 3, alpha=6.)
    same(logits(model), before, 1e-6)
    assert (n_learning(model) == sum(t.numel() for t in lora_state(model).values())
            == model.n_params() - n and len(lora_state(model)) == 2*found)
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    opt = Opt(model, adamw(.05))
    model.train()
    for _ in range(3):
        total, count = lm_loss(model, dict(ids=IDS[:,:-1], targets=IDS[:,1:]))
        (total/count).backward()
        opt.step()
        opt.zero_grad()
    assert all(torch.equal(p, frozen[k]) for k, p in model.named_parameters() if k in frozen)
    model.eval()
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    assert_sound(model, described=False)
    assert swap(model, LoRA, LoRA.merged) == found and model.n_params() == n
    same(logits(model), after, 2e-4)
    assert_sound(model)
    assert all(p.requires_grad for m in model.blocks.modules() if isinstance(m, nn.Linear)
               for p in m.parameters())
    assert add_lora(model) == found                                    # and again


def test_it_counts_and_costs():
    model = make('plain')
    flops = model.flops_per_token(32, training=False)
    assert add_lora(model, 2) == 12
    # four square matrices, two of the MLP
    per = 2*(4*(32+32) + 2*(32+48))
    assert (n_learning(model) == 2*per
            and model.flops_per_token(32, training=False) - flops == 2*n_learning(model))


@pytest.mark.parametrize(
    'old', (nn.Linear(6, 10), nn.Linear(6, 10, bias=False), NormedLinear(6, 12, 4, bias=True),
            nn.Linear(6, 10, dtype=torch.float64)), ids=str)
def test_any_linear(old):
    old = deepcopy(old)
    x = torch.randn(2, 3, 6, dtype=old.weight.dtype)
    want = old(x)
    wrapped = LoRA(old, 2, alpha=5.)
    same(wrapped(x), want, 1e-6)
    nn.init.normal_(wrapped.b)
    assert (wrapped(x) - want).abs().max() > 1e-2
    same(wrapped.merged()(x), wrapped(x))
    assert type(wrapped.merged()) is type(old)
    plain = deepcopy(old)
    plain.weight.data += 2.5*wrapped.b @ wrapped.a
    same(plain(x), wrapped(x))
    assert sorted(n for n, p in wrapped.named_parameters() if p.requires_grad) == ['a', 'b']
    wrapped(x).sum().backward()
    assert wrapped.a.grad.any() and wrapped.b.grad.any()


@pytest.mark.parametrize('r', (0, -2, 1.5, '4', None, True))
def test_bad_rank(r):
    model = make('plain')
    for f in (lambda: LoRA(nn.Linear(4, 4), r), lambda: add_lora(model, r)):
        with pytest.raises(ValueError, match='rank'): f()
    assert n_learning(model) == model.n_params() and not lora_state(model)


@pytest.mark.parametrize('old', (nn.Embedding(4, 4), nn.ReLU(), LayerNorm(4), nn.Conv1d(4, 4, 1),
                                 torch.zeros(4, 4)), ids=lambda m: type(m).__name__)
def test_only_matrices(old):
    with pytest.raises(TypeError, match=f'not {type(old).__name__}'): LoRA(old)


def test_no_lora_on_lora():
    model = make('plain')
    add_lora(model)
    state = lora_state(model)
    for f in (lambda: add_lora(model), lambda: swap(model.blocks, nn.Linear, LoRA),
              lambda: swap(model, LoRA, LoRA)):
        with pytest.raises((ValueError, TypeError), match='LoRA'): f()
    assert (lora_state(model).keys() == state.keys()
            and n_learning(model) == sum(t.numel() for t in state.values()))


@pytest.mark.parametrize('name', ('tied', 'narrow_tied', 'gpt2'))
def test_a_tied_head_is_refused_an_untied_one_is_not(name):
    model = make(name)
    every = lambda name, p, m: 'head' in name
    with pytest.raises(ValueError, match='embed and head share one matrix'):
        add_lora(model, at=every)
    assert model.head.weight is model.embed.weight and n_learning(model) == model.n_params()
    loose = rebuild(model, tie=False)
    same(logits(loose), logits(model), 1e-6)
    assert_sound(loose)
    assert add_lora(loose, at=every) == 1


@torch.no_grad()
def test_a_matrix_that_is_read_and_not_called():
    "The narrow table's matrix is used in both directions; both are corrected, and merged"
    model = make('narrow')
    before = logits(model)
    assert (add_lora(model, at=lambda name, p, m: 'widen' in name) == 1
            and isinstance(model.widen, LoRA))
    nn.init.normal_(model.widen.b)
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    assert swap(model, LoRA, LoRA.merged) == 1
    same(logits(model), after)
    assert_sound(model)


def test_nothing_found():
    with pytest.raises(ValueError, match='no matrix'): add_lora(make('plain'), at=lambda *_: False)
    assert swap(make('plain'), MoE, deepcopy) == 0


def test_corrections_travel_alone(tmp_path):
    one, two = make('moe'), make('moe')
    add_lora(one, 2)
    for n, t in lora_state(one).items(): t.normal_()
    save_checkpoint(tmp_path/'a', lora=lora_state(one))
    state = load_checkpoint(tmp_path/'a')['lora']
    add_lora(two, 2)
    load_lora(two, state)
    assert torch.equal(logits(one), logits(two))
    with pytest.raises(ValueError, match='lack'): load_lora(two, dict(list(state.items())[:-1]))
    with pytest.raises(ValueError, match='unknown here'):
        load_lora(two, state | {'blocks.9.attn.q.a': torch.zeros(2, 2)})
    three = make('moe')
    add_lora(three, 5)
    with pytest.raises(ValueError, match=r'\(2, 32\) in the checkpoint and \(5, 32\) here'):
        load_lora(three, state)
    assert not lora_state(make('moe'))


# ---- transplants

@each
def test_a_transplant_into_the_same_config_is_a_copy(name):
    model = make(name).train()
    model.remat, model.loss_chunk = True, 16
    new = rebuild(model)
    assert new.training and new.remat and new.loss_chunk == 16 and new is not model
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr()
               for a, b in zip(model.state_dict().values(), new.state_dict().values()))


def test_what_does_not_fit_is_listed():
    model = make('plain')
    for changes, says in ((dict(d_ff=50), 'blocks.0.mlp.up.weight is'),
                          (dict(mlp=GLU), 'mlp.gate.weight is missing'),
                          (dict(n_layers=1), 'blocks.1.*unknown here'),
                          (dict(n_layers=3), 'blocks.2.*missing')):
        with pytest.raises(ValueError, match=says): rebuild(model, **changes)
    with pytest.raises(ValueError,
                       match='head.weight differs from embed.weight, and here they are one'):
        rebuild(model, tie=True)
    with pytest.raises(TypeError): rebuild(model, n_layer=3)
    swap(model, Attention, partial(to_gqa, n_kv_heads=2))
    for f in (rebuild, partial(widen_vocab, n=70), partial(add_layers, n_layers=3)):
        with pytest.raises(ValueError, match='does not describe this model'): f(model)


def test_dtype_is_kept():
    model = make('plain').double()
    for new in (rebuild(model), widen_vocab(model, 70), add_layers(model, 3)):
        assert {p.dtype for p in new.parameters()} == {torch.float64}


def test_untied_by_hand_is_noticed():
    model = make('tied')
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    r = check_config(model)
    assert not r.ok and r['ties what is tied'] is False


# ---- vocabulary

@each
@pytest.mark.parametrize('n', (61, 62, 64, 100, 130))
def test_widened(name, n):
    model = make(name)
    wide = widen_vocab(model, n)
    old, new = logits(model), logits(wide)
    assert new.shape[-1] == n == wide.cfg.vocab_size and model.cfg.vocab_size == 61
    same(new[...,:61], old, 1e-5)
    if not model.cfg.softcap and n > 61:
        same(new[...,61:], old.mean(-1, keepdim=True).expand(-1, -1, n-61), 1e-4)
    assert ((wide.embed.weight is wide.head.weight) == model.cfg.tie
            and wide.n_params() == GPT(wide.cfg).n_params())
    wide.eval()
    assert_sound(wide)
    assert logits(wide, IDS*0 + n-1).isfinite().all()
    with torch.no_grad(): rise = (wide(IDS[:,:-1], IDS[:,1:])[0] - model(IDS[:,:-1], IDS[:,1:])[0])
    assert rise.min() > -1e-4 and (model.cfg.softcap or rise.max() < math.log(n/61) + 1e-4)


def test_given_rows():
    model, seen = make('narrow_tied'), []

    def pieces(known, k):
        seen.append(known.shape)
        return known[[5, 6]].mean(0).expand(k, -1)

    wide = widen_vocab(model, 63, pieces)
    # tied: once; without the padding
    assert seen == [(61, 16)]
    same(wide.embed.weight[61:63], model.embed.weight[[5, 6]].mean(0).expand(2, -1), 1e-6)
    assert not wide.embed.weight[63:].any()
    set_seed(0)
    assert check_config(widen_vocab(model, 80, lambda known, k: torch.randn(k, 16))).ok
    with pytest.raises(ValueError, match='rows must give 2 rows'):
        widen_vocab(model, 63, lambda known, k: torch.zeros(k+1, 16))
    assert mean_rows(torch.eye(4), 2).tolist() == [[.25]*4]*2


def test_untied_tables_each_get_rows():
    model, seen = make('values'), []
    widen_vocab(model, 70,
                lambda known, k: (seen.append(tuple(known.shape)), mean_rows(known, k))[1])
    # embedding, a table of values in each layer, head
    assert seen == [(61, 32)]*4


@pytest.mark.parametrize('n', (60, 0, -1, 70., '70', None))
def test_bad_vocabulary(n):
    with pytest.raises(ValueError, match='knows 61 tokens'): widen_vocab(make('plain'), n)


class Pairs(nn.Embedding):
    "Learnt places with a row for each pair of tokens: not a row per token"
    def __init__(self, C, context_length): super().__init__(2, C)
    def forward(self, seq): return super().forward(seq.ids % 2)


class Squared(Attention):
    def __init__(self, C, n_heads, n_kv_heads=None, vocab_size=1):
        super().__init__(C, n_heads, n_kv_heads)
        self.pairs = nn.Embedding(2*vocab_size, 4)


def test_tables_it_cannot_widen():
    with pytest.raises(ValueError, match='fixes its own vocab_size'):
        widen_vocab(GPT(replace(
            CFG, attn=partial(OpenAttention, adds=[partial(ValueEmbedding, vocab_size=61)]))), 70)
    with pytest.raises(ValueError, match='pairs.weight'):
        widen_vocab(GPT(replace(CFG, attn=Squared)), 70)
    # a table of something else stays
    same(logits(widen_vocab(m := perturb_parameters(GPT(replace(CFG, pos_embed=Pairs))), 70))[
        ...,:61], logits(m))


# ---- depth

@pytest.mark.parametrize('name', [n for n in CONFIGS if n != 'scaled'])
def test_deeper_is_the_same_function(name):
    model = make(name)
    deep = add_layers(model, 4).eval()
    same(logits(deep), logits(model), 1e-5)
    assert_sound(deep)
    assert (len(deep.blocks) == 4 == deep.cfg.n_layers
            and all(torch.equal(t, deep.state_dict()[n]) for n, t in model.state_dict().items()))
    total, n = lm_loss(deep.train(), dict(ids=IDS[:,:-1], targets=IDS[:,1:]))
    total.backward()
    outputs = [p for k, p in deep.blocks[3].named_parameters()
               if k.split('.')[-2] in ('o', 'down') and k.endswith('weight')]
    assert outputs and any(p.grad.any() for p in outputs) and not any(p.any() for p in outputs)


def test_a_pattern_goes_on():
    assert [b.attn.window for b in add_layers(make('window'), 5).blocks] == [5, None, 5, None, 5]


def test_what_cannot_be_deepened():
    for n in (1, 0, 2.5, '3'):
        with pytest.raises(ValueError, match='has 2 layers'): add_layers(make('plain'), n)
    class Loud(Attention):
        def __init__(self, C, n_heads, n_kv_heads=None):
            super().__init__(C, n_heads, n_kv_heads)
            self.also = nn.Linear(C, C)

        def forward(self, x, seq): return super().forward(x, seq) + self.also(x)
    with pytest.raises(ValueError, match='other logits'):
        add_layers(GPT(replace(CFG, attn=Loud, tie=True)), 3)
    with pytest.raises(ValueError, match='scale the residual stream'): add_layers(make('scaled'), 3)
    every_second = replace(CFG,
                           attn=partial(OpenAttention, adds=[partial(ValueEmbedding, every=2)]))
    with pytest.raises(ValueError, match='unknown here|other logits'):
        add_layers(perturb_parameters(GPT(every_second)), 3)
    assert len(add_layers(perturb_parameters(GPT(every_second)), 4).blocks) == 4


# ---- afterwards

@pytest.mark.parametrize('operate',
                         (rebuild, partial(widen_vocab, n=70), partial(add_layers, n_layers=3)),
                         ids=('copy', 'wide', 'deep'))
@pytest.mark.parametrize('name', ('narrow_tied', 'moe', 'values', 'gpt2'))
def test_saved_and_loaded(name, operate, tmp_path):
    model = operate(make(name))
    save_checkpoint(tmp_path/'step_1', model=model.state_dict(), config=model.cfg.to_dict(),
                    tokenizer=None)
    again, _ = load_model(tmp_path/'step_1', device='cpu')
    assert torch.equal(logits(again), logits(model.eval()))


def test_to_the_hub_and_back(tmp_path):
    model = widen_vocab(make('gpt2'), 70).eval()
    save(model, None, tmp_path/'m')
    same(logits(load(tmp_path/'m')[0]), logits(model))


def test_the_trainer_wants_a_new_optimizer():
    model = make('grouped')
    opt, data = Opt(model, muon(), adamw()), [dict(ids=IDS[:,:-1], targets=IDS[:,1:])]
    swap(model, Attention, partial(to_gqa, n_kv_heads=1))
    with pytest.raises(ValueError, match='was a part swapped'):
        Trainer(model, opt, data, callbacks=[], device='cpu')
    for operate in (lambda m: m, partial(widen_vocab, n=70), partial(add_layers, n_layers=3)):
        new = operate(make('grouped'))
        Trainer(new, Opt(new, muon(), adamw()), data, callbacks=[], device='cpu').fit(1)
    add_lora(new)
    Trainer(new, Opt(new, adamw()), data, callbacks=[], device='cpu').fit(1)

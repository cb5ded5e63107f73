"What a run needs before it is run: scales, the rate finder, the noise scale, dead units"
import copy, math

import pytest
import torch
from torch import nn

from common import refuses
from gptlab.core import set_seed
from gptlab.model import GPT, GPTConfig, lm_loss
from gptlab.optimizers import Opt, adamw
from gptlab.signals import dead_units, find_rate, noise_scale, scales
from gptlab.trainer import Trainer

SIZE = dict(vocab_size=32, n_layers=2, n_heads=2, d_model=16, context_length=8)


def batch(seed=0, B=4):
    ids = torch.randint(0, 32, (B, 9), generator=torch.Generator().manual_seed(seed))
    return dict(ids=ids[:, :-1], targets=ids[:, 1:])


def model(**kw):
    set_seed(0)
    return GPT(GPTConfig(**SIZE | kw))


def trainer(lr=1e-2, net=None, train=None):
    net = net or model()
    forever = ([batch(i) for i in range(4)]) if train is None else train
    return Trainer(net, Opt(net, adamw(lr=lr)), forever, device='cpu', callbacks=[])


@pytest.mark.parametrize('look', [
    lambda m: scales(m, batch()), lambda m: noise_scale(m, [batch(i) for i in range(3)]),
    lambda m: dead_units(m, [batch()])], ids=['scales', 'noise_scale', 'dead_units'])
def test_looking_changes_nothing(look):
    "Weights, gradients, mode, hooks and random numbers are what they were"
    net = model(dropout=.1)
    net.train()
    total, n = lm_loss(net, batch(9))
    (total/n).backward()
    before = copy.deepcopy(net.state_dict())
    grads = [p.grad.clone() for p in net.parameters()]
    random = torch.get_rng_state()
    look(net)
    for k, v in net.state_dict().items(): assert torch.equal(v, before[k])
    for p, g in zip(net.parameters(), grads): assert torch.equal(p.grad, g)
    assert net.training and torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_hooks_go_when_the_model_fails():
    net = model()
    with pytest.raises(Exception): scales(net, dict(ids=torch.zeros(1, 4), targets='none'))
    with pytest.raises(Exception): dead_units(net, [dict(ids='none', targets=1)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_scales_asks_for_blocks_or_modules():
    net = nn.Linear(2, 2)
    with refuses(TypeError, 'without blocks'): scales(net, batch())
    spare, whole = nn.Linear(2, 2), model()
    with refuses(ValueError, 'does not reach spare'):
        scales(whole, batch(), dict(embed=whole.embed, spare=spare))


def test_the_finder_multiplies_every_group_and_puts_other_schedules_aside():
    seen = []
    class Spy:
        def after_step(self, run): seen.append([g['lr'] for g in run.opt.param_groups])
    def make():
        net = model()
        opt = Opt(net, adamw(lr=2e-2, at=lambda n, p, m: 'embed' in n), adamw(lr=1e-2))
        run = Trainer(net, opt, [batch(i) for i in range(4)], device='cpu', callbacks=[])
        step = run.one_step
        def one_step():
            step()
            seen.append([g['lr'] for g in run.opt.param_groups])
        run.one_step = one_step
        return run
    curve = find_rate(make, .1, 10., 20)
    assert len(curve.factors) == len(curve.losses) == len(curve.smooth) == len(seen) == 20
    assert all(a == pytest.approx(2*b) for a, b in seen)
    assert curve.factors == pytest.approx([b/1e-2 for _, b in seen])
    assert curve.factors[0] == pytest.approx(.1*100**(1/40))


def test_the_finder_stops_where_the_loss_is_no_number():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.n = nn.Parameter(torch.ones(2)), 0
    def loss(net, batch):
        net.n += 1
        return (net.w**2).sum()*(math.nan if net.n > 7 else 1.), 1
    def make():
        net = Broken()
        opt = torch.optim.SGD(net.parameters(), lr=1e-3)
        return Trainer(net, opt, iter(lambda: {}, None), loss=loss, device='cpu', callbacks=[])
    assert len(find_rate(make, steps=50).losses) == 7


def test_the_finder_refuses_what_it_cannot_use():
    with refuses(ValueError, 'must be above low'): find_rate(trainer, 1., .1)
    with refuses(ValueError, 'low'): find_rate(trainer, 0.)
    with refuses(ValueError, 'steps'): find_rate(trainer, steps=1)
    with refuses(TypeError, 'a Trainer'): find_rate(model)
    with refuses(TypeError, 'a function'): find_rate(trainer())
    used = trainer().fit(1)
    with refuses(ValueError, 'has trained'): find_rate(lambda: used)


class Mean(nn.Module):
    def __init__(self, d=20):
        super().__init__()
        self.w = nn.Parameter(torch.full((d,), .5))


def distance(net, batch): return ((net.w - batch['x'])**2).sum()/2, len(batch['x'])


def test_signal_and_noise_are_unbiased():
    "Over many samples their means are the exact ones: |G|² = 20·0.5², tr Σ = 20·3²"
    g, found = torch.Generator().manual_seed(0), []
    for _ in range(400):
        found.append(noise_scale(Mean(), [dict(x=3*torch.randn(4, 20, generator=g))
                                          for _ in range(6)], distance))
    for exact, values in ((5., [f.signal for f in found]), (180., [f.noise for f in found])):
        values = torch.tensor(values)
        assert abs(values.mean() - exact) < 4*values.std()/len(values)**.5
    assert torch.tensor([f.signal for f in found]).std() > 1     # no single one would do


def test_its_standard_error_is_about_right():
    g, found = torch.Generator().manual_seed(1), []
    for _ in range(60):
        found.append(noise_scale(Mean(), [dict(x=torch.randn(8, 20, generator=g))
                                          for _ in range(40)], distance))
    spread = torch.tensor([f.rows for f in found]).std().item()
    claimed = sum(f.se for f in found)/len(found)
    assert .7 < claimed/spread < 1.4


def test_more_noise_than_the_batches_can_tell():
    g = torch.Generator().manual_seed(2)
    far = [dict(x=1000*torch.randn(2, 20, generator=g)) for _ in range(3)]
    found = [noise_scale(Mean(), far, distance)]
    found += [noise_scale(Mean(), [dict(x=1000*torch.randn(2, 20, generator=g))
                                   for _ in range(3)], distance) for _ in range(20)]
    lost = [f for f in found if f.rows == math.inf]
    assert lost and 'can tell' in repr(lost[0])


def test_noise_scale_wants_three_equal_batches():
    net = model()
    with refuses(ValueError, 'at least three batches'): noise_scale(net, [batch(), batch(1)])
    with refuses(ValueError, 'same number of rows'):
        noise_scale(net, [batch(), batch(1), batch(2, B=2)])
    with refuses(TypeError, 'torch module'): noise_scale('model', [])


def test_dead_units_counts_each_layer_by_itself():
    from functools import partial
    from gptlab.blocks import MLP
    net = model(mlp=partial(MLP, bias=True))
    with torch.no_grad():
        net.blocks[0].mlp.up.bias[:3] = -100.
        net.blocks[1].mlp.up.bias[:] = 100.
    rows = dead_units(net, [batch(i) for i in range(3)])
    assert [r['dead'] for r in rows] == [3, 0] and rows[1]['active'] == '100.0%'
    assert '96 tokens' in rows.caption


def test_dead_units_refuses_what_it_cannot_look_at():
    with refuses(ValueError, 'matches nothing'): dead_units(model(), [batch()], '*.nothing')
    with refuses(ValueError, 'no batch reached'): dead_units(model(), [])

"""Rules, groups and `Opt`: agreement with torch's own, what is refused at once, and what an
optimizer tells of itself."""
import copy
import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gptlab import optimizers
from gptlab.core import set_seed
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import (adamw, adamw_rule, check_rule, Group, hidden, muon, muon_rule, Opt,
                               polar_factor, polar_series, sgd, sgd_rule, uncompiled)
from gptlab.schedules import apply_schedule, cosine
from gptlab.trainer import Trainer

NAN = float('nan')
DIMS = dict(vocab_size=11, context_length=8, n_layers=2, n_heads=2, d_model=16)


def tiny():
    set_seed(0)
    return GPT(GPTConfig(**DIMS))


def groups(): return muon(lr=.02, precision='float32'), adamw(lr=3e-3, wd=.1)


def train(model, opt, steps=3):
    "Learn a fixed rule of succession; returns the losses"
    g, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        ids = torch.randint(11, (4, 8), generator=g)
        loss = F.cross_entropy(model(ids).flatten(0, 1), (3*ids + 1).remainder(11).flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


def names(opt): return [g['param_names'] for g in opt.param_groups]


def same_state(a, b):
    "Are the tensors of two state dicts of optimizers equal, bit for bit?"
    pairs = [(a['state'][i][k], b['state'][i][k]) for i in a['state'] for k in a['state'][i]]
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


# ---- the polar factor

def exact_polar(G):
    U, _, Vt = torch.linalg.svd(G, full_matrices=False)
    return U @ Vt


@pytest.mark.parametrize('shape', [(4, 4), (3, 7), (7, 3), (2, 5, 3)], ids=str)
def test_the_polar_factor(shape):
    "Exact in the limit, free of scale; a transpose has the transpose, a stack its members"
    W = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(polar_factor(W, 60, 'newton'), exact_polar(W), atol=1e-9, rtol=0)
    torch.testing.assert_close(polar_factor(1e4*W), polar_factor(W))
    torch.testing.assert_close(polar_factor(W.mT), polar_factor(W).mT)
    if W.ndim > 2: torch.testing.assert_close(polar_factor(W)[1], polar_factor(W[1]))


def test_a_zero_gradient_stays_zero(): assert not polar_factor(torch.zeros(3, 4)).any()


@pytest.mark.parametrize('make', [sgd, adamw, partial(muon, precision='float32'),
                                  partial(sgd, momentum=.9)])
def test_many_at_once_are_one_by_one(make):
    "Over ten steps, with decay, and for tensors of several shapes"
    def walk(many):
        g = torch.Generator().manual_seed(0)
        shapes = (5, 3), (3, 5), (5, 3), (4, 4)
        params = nn.ParameterList([torch.randn(s, generator=g) for s in shapes])
        group = make(wd=.1, at=None)
        if not many: group.many = None
        opt = Opt(params, group)
        for _ in range(10):
            for p in params: p.grad = torch.randn(p.shape, generator=g)
            opt.step()
        return torch.cat([p.detach().flatten() for p in params])
    torch.testing.assert_close(walk(True), walk(False))


# ---- the forms that take the whole step

def trial(*groups, seed=0, shapes=((300, 900), (5, 3), (7,), (), (600, 500)), turned=False):
    """Parameters, their optimizer, and a function that gives them gradients and takes steps

    The matrices are larger than one part of `_parts`; `turned` ones are views of transposes.
    """
    g = torch.Generator().manual_seed(seed)
    values = [torch.randn(s, generator=g) for s in shapes]
    if turned: values = [v.mT.contiguous().mT if v.ndim > 1 else v for v in values]
    params = nn.ParameterList(values)
    opt = Opt(params, *groups)

    def walk(steps, schedule=None):
        for t in range(steps):
            if schedule: apply_schedule(opt, schedule, t / steps)
            for p in params: p.grad = torch.randn(p.shape, generator=g)
            opt.step()
        return torch.cat([p.detach().flatten() for p in params])
    return opt, walk


def alone(group):
    "The group, its rule called for one tensor after another"
    group.many = None
    return group


@pytest.mark.parametrize('turned', [False, True])
def test_adamw_in_parts_is_the_list_at_once_bit_for_bit(monkeypatch, turned):
    "Where the list is cut changes nothing, and neither does whether it is"
    walked = trial(adamw(1e-2, wd=.1), turned=turned)[1](10)
    monkeypatch.delitem(optimizers._whole_steps, optimizers._adamw_many)
    assert torch.equal(walked, trial(adamw(1e-2, wd=.1), turned=turned)[1](10))


def test_parts_are_a_whole_list_in_order():
    sizes = [3, 5, 1, 9, 2, 2, 2, 20]
    tensors = [torch.zeros(n) for n in sizes]
    parts = [sizes[s] for s in optimizers._parts(tensors, limit=8)]
    assert parts == [[3, 5], [1], [9], [2, 2, 2], [20]]
    assert [sizes[s] for s in optimizers._parts([t.to('meta') for t in tensors], 8)] == [sizes]


@pytest.mark.parametrize('kw', [
    dict(), dict(wd=.1), dict(wd=.1, betas=(.8, .999), eps=1e-3), dict(eps=1e-12),
    dict(betas=(0., .9))], ids=str)
@pytest.mark.parametrize('schedule', [None, dict(lr=cosine(), wd=lambda p: 1 - p)])
def test_torchs_kernel_agrees_with_the_plain_rule(kw, schedule):
    "After fifty steps, one part in a million: decay, corrections, eps and schedule included"
    shapes = (30, 90), (5, 3), (7,), ()
    fused = trial(adamw(1e-2, fused=True, **kw), shapes=shapes)[1]
    plain = trial(alone(adamw(1e-2, **kw)), shapes=shapes)[1]
    a, b = fused(50, schedule), plain(50, schedule)
    assert 0 < (a - b).norm() < 1e-6 * b.norm()


def test_what_torchs_kernel_cannot_take_together_goes_the_usual_way():
    "It would read memory in another order"
    fused, plain = trial(adamw(fused=True), turned=True), trial(adamw(), turned=True)
    assert torch.equal(fused[1](5), plain[1](5))


def test_the_kernels_run_goes_on_bit_for_bit_and_its_state_is_the_plain_ones():
    "What was saved by either can be loaded by the other"
    opt, walk = trial(adamw(1e-2, wd=.1, fused=True))
    walk(3)
    saved = copy.deepcopy(opt.state_dict())
    assert set(saved['state'][0]) == {'step', 'm', 'v'} and saved['state'][0]['step'] == 3
    assert 'fused' not in saved['param_groups'][0]
    on = walk(3)
    other, again = trial(adamw(1e-2, wd=.1, fused=True))
    again(3)
    other.load_state_dict(saved)
    assert torch.equal(on, again(3)) and same_state(opt.state_dict(), other.state_dict())
    plain, slowly = trial(adamw(1e-2, wd=.1))
    slowly(3)
    plain.load_state_dict(saved)
    torch.testing.assert_close(slowly(3), on, rtol=1e-5, atol=1e-6)
    assert 'fused' not in plain.settings()[0] and other.settings()[0]['fused'] is True
    assert 'fused=True' in repr(other) and 'fused' not in repr(Opt(tiny(), adamw(fused=False)))


def run(folder, **kw):
    "A trainer that saves every two steps, by a random batch a step"
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(11, (4, 9), generator=g) for _ in range(6)]
    train = [dict(ids=x[:,:-1], targets=x[:,1:]) for x in ids]
    model = tiny()
    opt = Opt(model, muon(lr=.02, precision='float32'), adamw(lr=3e-3, wd=.1, **kw))
    return Trainer(model, opt, train, dir=folder, save_every=2, keep=3, callbacks=[], device='cpu')


def test_a_run_with_torchs_kernel_resumes_bit_for_bit(tmp_path, capsys):
    whole = run(tmp_path/'whole', fused=True).fit(6)
    on = run(tmp_path/'on', fused=True).resume(tmp_path/'whole', 2).fit(6)
    assert [r['loss'] for r in on.log] == [r['loss'] for r in whole.log]
    for p, q in zip(on.model.parameters(), whole.model.parameters()): assert torch.equal(p, q)
    assert 'fused' not in capsys.readouterr().out


def test_a_run_changes_to_torchs_kernel_and_back(tmp_path, capsys):
    "The wish of whoever resumes counts, and is said"
    run(tmp_path/'plain').fit(2)
    assert 'fused' not in str(run(None).opt.settings())
    on = run(tmp_path/'on', fused=True).resume(tmp_path/'plain')
    assert 'resumed with fused True, before it was None' in capsys.readouterr().out
    on.fit(4)
    back = run(tmp_path/'back').resume(tmp_path/'on')
    assert on.opt.param_groups[1]['fused'] and 'fused' not in back.opt.param_groups[1]
    back.fit(6)


def test_fused_is_a_setting_of_adamw_alone():
    assert Group(adamw_rule, fused=True).settings['fused'] is True
    with pytest.raises(ValueError, match='fused is True or False'): adamw(fused='yes')
    for make in (muon, partial(Group, sgd_rule)):
        with pytest.raises(ValueError, match='no setting fused'): make(fused=True)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', None])
@pytest.mark.parametrize('shape', [(4, 8, 8), (3, 16, 40), (3, 40, 16), (1, 16, 16)], ids=str)
@pytest.mark.parametrize('steps', [0, 1, 4, 5])
def test_the_polar_factor_in_shared_buffers_is_the_plain_one_bit_for_bit(precision, shape, steps):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        G = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        plain = polar_factor(G, steps, precision=precision)
        mine = G.clone()
        assert optimizers._polar_in_place(mine, steps, 'polar_express', precision) is mine
        assert torch.equal(mine, plain)


# ---- what is refused when a group is made

WRONG = dict(lr=['x', NAN, float('inf'), -1e-3, None, True, torch.ones(())],
             wd=['x', NAN, -.1, None, (1,)])
OF_ADAMW = WRONG | dict(betas=[.9, 'x', (.9,), (.9, 1.), (-.1, .9), (NAN, .9), (.9, .95, .9), None],
                        eps=[-1e-8, NAN, 'x', None], fused=['x', 1])
OF_MUON = WRONG | dict(momentum=[1., -.1, NAN, 'x', None], ns_steps=[-1, 2.5, 'x', True, None],
                       series=['x', 3, None, ['jordan']], scale=['x', 3, None],
                       precision=['x', 32, 'int8', torch.float32, 'nn'])


def cases(make, table): return [(make, k, v) for k, values in table.items() for v in values]


@pytest.mark.parametrize(
    'make, setting, value',
    cases(sgd, WRONG | dict(momentum=[1., -.1, NAN])) + cases(adamw, OF_ADAMW)
    + cases(muon, OF_MUON) + cases(partial(Group, lambda grad, state: grad), WRONG),
    ids=lambda x: 'group' if isinstance(x, partial) else getattr(x, '__name__', None) or repr(x))
def test_a_value_that_makes_no_sense(make, setting, value):
    "One line that names the setting; from a name that is in no table, the table"
    with pytest.raises(ValueError) as e: make(**{setting: value})
    message = str(e.value)
    assert setting in message and '\n' not in message and len(message) < 160


@pytest.mark.parametrize('group', [
    lambda: adamw(lr=0), lambda: adamw(lr=1, wd=0., eps=0), lambda: adamw(betas=[0, .99]),
    lambda: muon(lr=0., ns_steps=0, momentum=0), lambda: muon(precision='float16'),
    lambda: muon(series='jordan', scale='match_rms_adamw'), lambda: sgd(momentum=.99)])
def test_a_value_that_does(group): assert isinstance(group(), Group)


def test_a_series_of_ones_own(monkeypatch):
    monkeypatch.setitem(polar_series, 'mine', ((1.5, -.5, 0.),))
    assert muon(series='mine').settings['series'] == 'mine'


def test_a_setting_that_is_misspelt():
    with pytest.raises(ValueError, match='no setting beta; did you mean betas?'):
        Group(adamw_rule, beta=(.9, .95))
    with pytest.raises(ValueError, match='no setting moment; did you mean momentum?'):
        muon(moment=.9)
    with pytest.raises(ValueError, match='no setting weight_decay; it has lr, wd, betas, eps'):
        Group(adamw_rule, weight_decay=.1)


def test_what_is_no_rule():
    for rule, said in ((adamw, r'called: adamw\(\)'), ('adamw', 'not \'adamw\''), (None, 'None'),
                       (torch.sign, 'write a function'), (lambda grad: grad, 'no rule')):
        with pytest.raises(TypeError, match=said): Opt(tiny(), rule)
    def asks(grad, state, stepp): return grad
    with pytest.raises(TypeError, match='asks for stepp; did you mean step?'): Group(asks)


class Sign:
    "A rule may be an object that is called"
    def __call__(self, grad, state): return grad.sign()


@pytest.mark.parametrize('rule', [
    Sign(), lambda g, s: g, lambda *args: args[0], partial(sgd_rule, momentum=.9),
    lambda grad, state, hessian: grad, lambda grad, state, **kw: grad])
def test_what_is_one(rule): assert Group(rule).rule is rule


def test_many_that_do_not_fit():
    def rule(grad, state, strength=1.): return grad
    rule.manny = lambda grads, states, strength=1.: grads
    with pytest.raises(TypeError, match='has manny; did you mean many?'): Group(rule)
    del rule.manny
    rule.many = 3
    with pytest.raises(TypeError, match='many is a function'): Group(rule)
    rule.many = lambda grads, states, force=1.: grads
    with pytest.raises(TypeError, match='only one of them has force, strength'): Group(rule)
    rule.many = lambda grads, states, **settings: grads
    assert Group(rule).many is rule.many


def test_at_and_schedule_are_functions():
    with pytest.raises(TypeError, match='at is a function .*not 3'): adamw(at=3)
    for bad in ('cosine', dict(lr='cosine'), 3):
        with pytest.raises(TypeError, match='schedule is a curve'): adamw(schedule=bad)


def test_the_rate_of_a_rule_that_asks_for_it():
    "A default of the rule does not replace what the group was given"
    def rule(grad, state, lr=.1): return grad
    assert Group(rule, lr=5.).settings['lr'] == 5.


# ---- whose parameters

def test_a_compiled_model_has_plain_names_and_trains_alike():
    plain, inside = tiny(), tiny()
    compiled = torch.compile(inside, backend='eager')
    assert uncompiled(compiled) is inside and uncompiled(plain) is plain
    ours, theirs = Opt(plain, *groups()), Opt(compiled, *groups())
    assert names(theirs) == names(ours) and '_orig_mod' not in str(names(theirs))
    assert train(compiled, theirs) == train(plain, ours)
    for p, q in zip(plain.parameters(), inside.parameters()): assert torch.equal(p, q)
    a, b = ours.state_dict(), theirs.state_dict()
    assert a['param_groups'] == b['param_groups'] and same_state(a, b)
    theirs.check(compiled)
    theirs.check(inside)


def test_a_state_goes_from_a_plain_model_to_a_compiled_one():
    plain = tiny()
    opt = Opt(plain, *groups())
    train(plain, opt)
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend='eager')
    other = Opt(compiled, *groups())
    other.load_state_dict(opt.state_dict())
    assert train(compiled, other) == train(plain, opt)


def by_shape(**kw): return muon(at=lambda name, p, module: p.ndim == 2, precision='float32', **kw)


@pytest.mark.parametrize('give', [
    lambda m: m.parameters(), lambda m: [*m.parameters()], lambda m: m.named_parameters(),
    lambda m: [*m.named_parameters()], lambda m: dict(m.named_parameters()).items()])
def test_parameters_in_place_of_a_model(give):
    "As with the model: the same groups, in the same order, and bit-equal steps"
    a, b = tiny(), tiny()
    whole, listed = Opt(a, by_shape(), adamw()), Opt(give(b), by_shape(), adamw())
    assert train(a, whole) == train(b, listed)
    for p, q in zip(a.parameters(), b.parameters()): assert torch.equal(p, q)
    listed.check(give(b))


def test_names_of_listed_parameters():
    model, modules = nn.Linear(3, 2), []
    def see(name, p, module): return modules.append((name, module)) or True
    assert names(Opt(model.parameters(), adamw(at=see))) == [['0', '1']]
    assert names(Opt(model.named_parameters(), adamw(at=see))) == [['weight', 'bias']]
    assert modules == [('0', None), ('1', None), ('weight', None), ('bias', None)]
    twice = [('a', model.weight), ('b', model.weight)]
    assert names(Opt(twice, adamw())) == [['a']]
    assert not hidden('blocks.0.weight', model.weight, None)


@pytest.mark.parametrize('bad', [None, 3, nn.Linear, torch.ones(3), 'model', dict(a=torch.ones(2)),
                                 [1, 2], [('a', 'b')], [(torch.ones(2), 'a')]], ids=repr)
def test_what_has_no_parameters(bad):
    with pytest.raises(TypeError, match='Opt takes'): Opt(bad, adamw())


# ---- what it tells of itself

def test_settings_are_plain_and_complete():
    model = tiny()
    opt = Opt(model, muon(lr=.02, wd=.1), adamw(lr=.1, at=lambda n, p, m: p.ndim == 2),
              adamw(lr=1e-3, schedule=dict(lr=cosine())))
    found = json.loads(json.dumps(opt.settings()))
    assert found == opt.settings()
    assert [s['name'] for s in found] == ['muon', 'adamw', 'adamw_2'] == list(opt.lrs())
    assert [s['rule'] for s in found] == ['muon', 'adamw', 'adamw']
    assert found[1]['betas'] == [.9, .95] and found[0]['momentum'] == .95
    assert sum(s['tensors'] for s in found) == len([*model.parameters()])
    assert sum(s['parameters'] for s in found) == sum(p.numel() for p in model.parameters())
    assert opt.lrs() == dict(muon=.02, adamw=.1, adamw_2=1e-3)


def test_settings_stay_while_rates_follow_a_schedule():
    opt = Opt(tiny(), *groups())
    before = opt.settings()
    apply_schedule(opt, dict(lr=lambda p: 1 - p, momentum=lambda p: .5), .5)
    assert opt.lrs() == dict(muon=.01, adamw=.0015) and opt.settings() == before


def test_settings_of_a_rule_of_ones_own():
    def rule(grad, state, power=2, table={'a': (1,)}, f=len, dtype=torch.float32): return grad
    settings = Opt(tiny(), rule).settings()[0]
    assert settings | dict(power=2, table={'a': [1]}, f='len', dtype='torch.float32') == settings
    assert Opt(tiny(), Sign()).settings()[0]['rule'] == 'Sign'
    assert Opt(tiny(), partial(sgd_rule, momentum=.5)).settings()[0] | dict(
        rule='sgd', momentum=.5) == Opt(tiny(), partial(sgd_rule, momentum=.5)).settings()[0]


@pytest.mark.parametrize('units, given, dtype, shown', [
    ('AMX', None, torch.float32, 'bfloat16 (AMX)'), ('', None, torch.float32, 'float32'),
    ('AVX-512 BF16', None, torch.float32, 'bfloat16 (AVX-512 BF16)'),
    ('AMX', 'float32', torch.float32, 'float32'), ('', 'bfloat16', torch.float32, 'bfloat16'),
    ('AMX', 'bfloat16', torch.float32, 'bfloat16 (AMX)'),
    ('AMX', None, torch.float64, 'float64')])
def test_the_precision_that_muon_really_uses(monkeypatch, units, given, dtype, shown):
    monkeypatch.setattr(optimizers, '_is_amx_tile_supported', lambda: units == 'AMX')
    monkeypatch.setattr(optimizers, '_is_avx512_bf16_supported', lambda: units == 'AVX-512 BF16')
    opt = Opt(tiny().to(dtype), muon(precision=given), adamw())
    assert f'precision={shown}' in repr(opt) and f'precision={shown}' in opt._repr_markdown_()
    first, second = opt.settings()
    assert first['precision'] == shown and 'precision' not in second
    used, products = [], torch.baddbmm
    monkeypatch.setattr(torch, 'baddbmm', lambda *a, **kw: used.append(a[0].dtype)
                        or products(*a, **kw))
    for p in opt.param_groups[0]['params']: p.grad = torch.ones_like(p)
    opt.step()
    assert {str(d) for d in used} == {f'torch.{shown.split()[0]}'}


def test_a_state_holds_no_functions():
    state = Opt(tiny(), *groups()).state_dict()
    kept = {k for g in state['param_groups'] for k, v in g.items() if callable(v)}
    assert not kept and not {'rule', 'many', 'schedule'} & set(state['param_groups'][0])


def test_every_rule_passes_its_check():
    for group in (sgd(), sgd(momentum=.9), adamw(wd=.1), muon(), Group(muon_rule)):
        report = check_rule(group)
        assert report.ok, report
    assert check_rule(Sign())['many at once = one by one'] == '–'
    assert check_rule(adamw())['many at once = one by one'] is True


# ---- P5: any parameters, any groups; R11: what makes no sense is refused at once

def with_gradients():
    "A model, always of the same weights, whose parameters have gradients"
    model = tiny()
    for p in model.parameters(): p.grad = torch.randn(p.shape, generator=torch.Generator())
    return model


def test_p5_a_list_of_parameters_and_groups_of_torch_learn_as_the_model_does():
    one, two, three = (with_gradients() for _ in range(3))
    Opt(one, adamw(lr=.1)).step()
    Opt(list(two.parameters()), adamw(lr=.1)).step()
    a, b = list(three.parameters())[:2], list(three.parameters())[2:]
    opt = Opt([dict(params=a), dict(params=iter(b), lr=.1)], adamw(lr=.1))
    opt.step()
    for p, q, r in zip(one.parameters(), two.parameters(), three.parameters()):
        assert torch.equal(p, q) and torch.equal(p, r)
    names = [n for g in opt.param_groups for n in g['param_names']]
    assert len(names) == len(set(names)), names


def test_p5_a_group_of_torch_keeps_its_settings_and_rules_share_it():
    model = with_gradients()
    big, small = ([p for p in model.parameters() if (p.ndim == 2) == two] for two in (True, False))
    matrix = lambda name, p, module: p.ndim == 2
    opt = Opt([dict(params=big, lr=.5), dict(params=small, weight_decay=.1)],
              muon(lr=.1, at=matrix), adamw(lr=.2))
    found = [(s['rule'], s['lr'], s['wd']) for s in opt.settings()]
    assert found == [('muon', .5, 0.), ('adamw', .2, .1)]
    opt.step()


@pytest.mark.parametrize('given', [[dict(lr=.1)], [dict(params=[torch.ones(2)]), torch.ones(2)],
                                   [dict(params=None)], dict(a=1)], ids=str)
def test_p5_what_is_no_group_of_torch(given):
    with pytest.raises(TypeError): Opt(given, adamw())


def test_p5_a_setting_of_a_group_that_its_rule_has_not():
    with pytest.raises(ValueError, match='no setting betaz'):
        Opt([dict(params=[torch.nn.Parameter(torch.ones(2))], betaz=1)], adamw())


def test_p5_the_room_for_rounding_can_be_set():
    G = torch.randn(6, 4)
    assert torch.equal(polar_factor(G, safety=1.01), polar_factor(G))
    norm = polar_factor(G, steps=0, safety=2., precision='float32').norm().item()
    assert norm == pytest.approx(.5)
    opt = Opt(with_gradients(), muon(safety=1.02), adamw())
    assert opt.settings()[0]['safety'] == 1.02 and 'safety=1.02' in repr(opt)
    opt.step()
    with pytest.raises(ValueError, match='safety'): muon(safety=.5)


def test_p5_a_state_saved_before_there_was_a_setting_keeps_the_one_asked_for():
    opt = Opt(with_gradients(), muon(safety=1.5), adamw())
    old = opt.state_dict()
    for g in old['param_groups']: g.pop('safety', None)
    opt.load_state_dict(old)
    assert opt.param_groups[0]['safety'] == 1.5


def test_p4_the_precision_of_the_products_is_shown_and_kept():
    opt = Opt(with_gradients(), muon(), adamw())
    said = opt.settings()[0]['precision']
    assert said.split()[0] in ('float32', 'bfloat16') and f'precision={said}' in repr(opt)


@pytest.mark.parametrize('make', [adamw, sgd, muon])
@pytest.mark.parametrize('kw', [dict(lr='x'), dict(lr=-1), dict(lr=float('nan')), dict(lr=True),
                                dict(lr=None), dict(wd=-.1), dict(wd=float('inf')),
                                dict(schedule=''), dict(schedule=0), dict(schedule=dict(lr=3)),
                                dict(at=3)], ids=str)
def test_r11_a_group_refuses_nonsense_at_once(make, kw):
    with pytest.raises((ValueError, TypeError), match=next(iter(kw))): make(**kw)


@pytest.mark.parametrize('betas', [(1., .9), (.9, 1.), (-.1, .9), (.9,), .9, 'ab', None,
                                   (.9, float('nan'))], ids=str)
def test_r11_betas_outside_0_and_1(betas):
    with pytest.raises(ValueError, match='betas'): adamw(betas=betas)


@pytest.mark.parametrize('model', [None, 3, 'x', '', [], {}, torch.nn.Module()], ids=repr)
def test_r11_nothing_to_learn(model):
    with pytest.raises((ValueError, TypeError), match='parameter'): Opt(model, adamw())


@pytest.mark.parametrize('answer, said', [
    (lambda g: None, 'gives a direction'), (lambda g: 1., 'gives a direction'),
    (lambda g: g[:1], 'shape'), (lambda g: g.sum(), 'shape'), (lambda g: g[None], 'shape')])
def test_r11_a_rule_that_answers_nonsense(answer, said):
    def rule(grad, state): return answer(grad)
    opt = Opt(with_gradients(), rule)
    with pytest.raises((TypeError, ValueError), match=said): opt.step()
    rule.many = lambda grads, states: [answer(g) for g in grads]
    opt = Opt(with_gradients(), rule)
    with pytest.raises((TypeError, ValueError), match=said): opt.step()


def test_r11_many_that_answers_too_few():
    def rule(grad, state): return grad
    rule.many = lambda grads, states: grads[1:]
    with pytest.raises(TypeError, match='one for each of'): Opt(with_gradients(), rule).step()


@pytest.mark.parametrize('state', [None, {}, 'x', dict(state={}), dict(param_groups=[{}], state={}),
                                   dict(param_groups='x', state={})], ids=str)
def test_r11_a_state_that_is_none(state):
    opt = Opt(with_gradients(), adamw())
    with pytest.raises(TypeError, match='state_dict'): opt.load_state_dict(state)


def test_the_fused_step_is_that_of_torchs_own_bit_for_bit():
    "Also for parameters of two dtypes, of which one joined later"
    def made():
        set_seed(1)
        return [nn.Parameter(torch.randn(n, 3).to(t)) for n, t in
                ((4, torch.float32), (5, torch.float64), (6, torch.float32))]
    ours, theirs = made(), made()
    a = Opt(ours, adamw(lr=.1, wd=.1, fused=True))
    b = torch.optim.AdamW(theirs, lr=.1, betas=(.9, .95), weight_decay=.1, fused=True)
    for step in range(4):
        for p, q in list(zip(ours, theirs))[:2 + (step > 1)]:
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs)), step

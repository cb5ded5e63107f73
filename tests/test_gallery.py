"""The gallery's rules: each against an implementation by others, in float64; states that come back
to the bit; runs that are killed; weights in bfloat16; what is refused at once."""
import copy
import io
import json
import math
import os
import random
import re
import shutil
import signal
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common import extra, refuses, ROOT
from gptlab import gallery as G
from gptlab.blocks import perturb_parameters
from gptlab.checkpoints import checkpoints_in
from gptlab.core import set_seed
from gptlab.gallery import (adafactor, adafactor_rule, adahessian, averaged_weights,
                            HessianDiagonal, hutchinson, lion, mars, mars_rule, normuon,
                            normuon_rule, schedule_free, schedule_free_rule, ScheduleFreeAverage,
                            shampoo, shampoo_rule, soap, soap_rule)
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import (adamw, adamw_rule, check_rule, Group, hidden, muon, Opt,
                               round_stochastic, sgd)
from gptlab.schedules import apply_schedule, constant, linear
from gptlab.score import evaluate
from gptlab.trainer import Trainer

DIMS = dict(vocab_size=11, context_length=8, n_layers=1, n_heads=2, d_model=16)
EVERY = dict(lion=lion, mars=mars, normuon=normuon, shampoo=shampoo, soap=soap,
             adafactor=adafactor, adahessian=adahessian, schedule_free=schedule_free)


def ones(p): return torch.ones_like(p)


def tiny(dtype=torch.float64, **kw):
    "A GPT in which every parameter has a gradient from the first step on"
    set_seed(0)
    return perturb_parameters(GPT(GPTConfig(**DIMS | kw)), .2).to(dtype)


def batch(g):
    ids = torch.randint(11, (4, 8), generator=g)
    return dict(ids=ids, targets=(3*ids + 1) % 11)


def train(model, opt, steps=50, before=None, seed=0):
    "Learn a fixed rule of succession; returns the last loss"
    g = torch.Generator().manual_seed(seed)
    for t in range(steps):
        loss = model(**batch(g))[0].mean()
        opt.zero_grad()
        loss.backward()
        if before: before(opt, t)
        opt.step()
    return loss.item()


def apart(ours, theirs, steps=50, vectors=True, **kw):
    """How far two optimizers are apart after steps on a GPT in float64, over the way they went

    Each is a function of the model; the gap is relative to the distance from the start.
    """
    start, ends = nn.utils.parameters_to_vector(tiny().parameters()).detach(), []
    for make in (ours, theirs):
        model = tiny()
        for p in model.parameters(): p.requires_grad_(vectors or p.ndim > 1)
        train(model, make(model), steps, **kw)
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert (ends[0] - start).norm() > .1
    return ((ends[0] - ends[1]).norm() / (ends[0] - start).norm()).item()


def their_eps(opt, n, eps=1e-8):
    "Some add eps to √v before its bias is corrected: ours, so enlarged, is theirs after n updates"
    for g in opt.param_groups: g['eps'] = eps/math.sqrt(1 - g['betas'][1]**max(n, 1))


# ---- against others

def test_lion_is_theirs():
    theirs = extra('pytorch_optimizer').Lion
    gap = apart(lambda m: Opt(m, lion(lr=1e-3, wd=.1)),
                lambda m: theirs(m.parameters(), lr=1e-3, weight_decay=.1))
    assert gap < 1e-12


def test_mars_is_theirs_but_for_the_first_step():
    """Theirs begins with a last gradient of zero, which makes the first corrected gradient 1.475
    times too long; in the paper the first two iterates are one. Given the first gradient as the
    last, theirs is ours, but for two eps."""
    class Theirs(extra('pytorch_optimizer').MARS):
        "Without the 1e-15 that is added to v"
        @staticmethod
        def apply_ams_bound_foreach(bound, vs, largest, eps): return [v.sqrt() + eps for v in vs]
    kw = dict(lr=3e-3, betas=(.95, .99), gamma=.025, eps=1e-8)

    def begin(opt, t):
        if isinstance(opt, Opt): return their_eps(opt, t+1)
        if t: return
        opt.init_group(opt.param_groups[0])
        for p in opt.param_groups[0]['params']: opt.state[p]['last_grad'].copy_(p.grad)
    ours = lambda m: Opt(m, mars(wd=.1, **kw))
    other = lambda m: Theirs(m.parameters(), weight_decay=.1, optimize_1d=True, **kw)
    assert apart(ours, other, before=begin) < 1e-12
    assert apart(ours, other, 5) > 1e-3                               # as it is


def test_mars_with_the_papers_own_difference():
    "The recursion of algorithm 2, written down again with NumPy"
    import numpy as np
    rng = np.random.default_rng(0)
    A, (b1, b2), gamma, lr, eps = np.diag([1., 4., 9.]), (.9, .95), .5, .01, 1e-8
    x, x0, m, v, state = np.ones(3), np.ones(3), 0., 0., {}
    p = torch.ones(3, dtype=torch.float64)
    before = p.clone()
    for t in range(1, 31):
        noise = rng.standard_normal(3)
        g, g0 = A @ x + noise, A @ x0 + noise
        c = g + gamma*b1/(1-b1)*(g - g0)
        c = c/max(np.linalg.norm(c), 1)
        m, v = b1*m + (1-b1)*c, b2*v + (1-b2)*c**2
        x, x0 = x - lr*(m/(1-b1**t))/(np.sqrt(v/(1-b2**t)) + eps), x
        At, n = torch.from_numpy(A), torch.from_numpy(noise)
        d = mars_rule(At @ p + n, state, t, (b1, b2), gamma, eps, earlier=At @ before + n)
        p, before = p - lr*d, p
    assert torch.allclose(p, torch.from_numpy(x), rtol=1e-12, atol=1e-14)
    assert set(state) == {'m', 'v'}


def test_shampoo_is_theirs():
    theirs = extra('pytorch_optimizer').Shampoo
    gap = apart(lambda m: Opt(m, shampoo(lr=.1, eps=1e-2, at=None)),
                lambda m: theirs(m.parameters(), lr=.1, matrix_eps=1e-2))
    assert gap < 1e-11


def test_soap_is_theirs():
    """While the basis stays; theirs makes a new one in float32, and sorts its columns. A vector,
    which has no basis, takes AdamW's step with us and waits for one step with them."""
    theirs, kw = extra('pytorch_optimizer').SOAP, dict(lr=.01, betas=(.9, .95), eps=1e-4)
    gap = apart(lambda m: Opt(m, soap(every=1000, at=None, **kw)),
                lambda m: theirs(m.parameters(), weight_decay=0., precondition_frequency=1000,
                                 **kw),
                before=lambda opt, t: isinstance(opt, Opt) and their_eps(opt, t, 1e-4),
                vectors=False)
    assert gap < 1e-12


def test_soap_with_a_basis_that_changes():
    "Algorithms 3 and 4, written down again with NumPy"
    import numpy as np
    rng = np.random.default_rng(0)
    (b1, b2), eps, every, state = (.9, .95), 1e-8, 3, {}
    L = R = M = V = 0.
    for t in range(20):
        g = rng.standard_normal((5, 4)) * [1, .5, .2, .1]
        found = soap_rule(torch.from_numpy(g), state, t+1, (b1, b2), eps, every)
        if t:
            M = b1*M + (1-b1)*g
            V = b2*V + (1-b2)*(QL.T @ g @ QR)**2
            N = (QL.T @ (M/(1-b1**t)) @ QR) / (np.sqrt(V/(1-b2**t)) + eps)
            assert np.allclose(found.numpy(), QL @ N @ QR.T, rtol=0, atol=1e-11)
        else: assert not found.any()
        L, R = b2*L + (1-b2)*g @ g.T, b2*R + (1-b2)*g.T @ g
        if t == 0: QL, QR = np.linalg.eigh(L)[1][:,::-1], np.linalg.eigh(R)[1][:,::-1]
        elif t % every == 0: QL, QR = np.linalg.qr(L @ QL)[0], np.linalg.qr(R @ QR)[0]


def test_adafactor_is_torchs():
    "torch's learning rate is the bound of the relative step, too"
    gap = apart(lambda m: Opt(m, adafactor(lr=.01, wd=.1)),
                lambda m: torch.optim.Adafactor(m.parameters(), lr=.01, weight_decay=.1,
                                                eps=(1e-30, 1e-3)))
    assert gap < 1e-12


def test_adahessian_is_theirs():
    "Given the same estimates, made of a generator"
    theirs = extra('pytorch_optimizer').AdaHessian
    g, made = torch.Generator(), {}

    def estimate(p):
        g.manual_seed(p.numel() + made.setdefault('t', 0))
        return torch.randn(p.shape, generator=g, dtype=p.dtype)

    class Theirs(theirs):
        def step(self):
            params = [p for p in self.param_groups[0]['params']]
            return super().step(hessian=[estimate(p) for p in params])
    kw = dict(lr=.01, betas=(.9, .99), eps=1e-4)

    def ours(m):
        opt = Opt(m, adahessian(wd=.1, power=.5, **kw))
        opt.extras = dict(hessian=estimate)
        return opt
    def count(opt, t): made['t'] = t
    gap = apart(ours, lambda m: Theirs(m.parameters(), weight_decay=.1, hessian_power=.5, **kw),
                before=count)
    assert gap < 1e-12


@pytest.mark.parametrize('wd', [0., .1])
def test_schedule_free_is_theirs(wd):
    "The form of the paper, both y and x; their usual form corrects v instead of the rate"
    lib = extra('schedulefree')
    kw = dict(lr=.01, betas=(.9, .99), eps=1e-8)
    ours = lambda m: Opt(m, schedule_free(wd=wd, **kw))

    def other(kind):
        def make(m):
            opt = kind(m.parameters(), weight_decay=wd, **kw)
            opt.train()
            return opt
        return make
    if wd: assert apart(ours, other(lib.AdamWScheduleFree), 5) > 1e-6
    start = nn.utils.parameters_to_vector(tiny().parameters())
    a, b = tiny(), tiny()
    mine, twin = ours(a), other(lib.AdamWScheduleFreePaper)(b)
    train(a, mine)
    train(b, twin)
    ends = [nn.utils.parameters_to_vector(m.parameters()).detach() for m in (a, b)]
    assert (ends[0] - ends[1]).norm() < 1e-12 * (ends[0] - start).norm()
    twin.eval()
    with averaged_weights(mine):
        for p, q in zip(a.parameters(), b.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.exhaustive
def test_schedule_free_with_a_warmup_is_theirs():
    lib = extra('schedulefree')
    def warm(opt, t):
        if isinstance(opt, Opt): opt.param_groups[0]['lr'] = .01*min(1, (t+1)/10)
    gap = apart(lambda m: Opt(m, schedule_free(lr=.01)),
                lambda m: (o := lib.AdamWScheduleFreePaper(m.parameters(), lr=.01,
                                                           warmup_steps=10)).train() or o,
                before=warm)
    assert gap < 1e-12


def normuon_by_hand(P, G, M, S, lr=.02, wd=.28, mu=.95, beta2=.9):
    "gpt-lab's step, once more with NumPy, from its formulas"
    import numpy as np
    series = [(8.156554524902461, -22.48329292557795, 15.878769915207462),
              (4.042929935166739, -2.808917465908714, 0.5000178451051316),
              (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
              (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
              (2.3465413258596377, -1.7097828382687081, 0.42323551169305323)]
    m, n = G.shape
    M = mu*M + (1-mu)*G
    U = (1-mu)*G + mu*M
    X = U/(1.01*np.linalg.norm(U) + 1e-6)
    for a, b, c in series:
        if m > n:
            A = X.T @ X
            X = a*X + X @ (b*A + c*A@A)
        else:
            A = X @ X.T
            X = a*X + (b*A + c*A@A) @ X
    axis = 1 if m >= n else 0
    v, r = (X**2).mean(axis, keepdims=True), X.shape[axis]
    S = beta2*S + (1-beta2)*v
    s = 1/np.sqrt(np.maximum(S, 1e-10))
    X = X*s*np.linalg.norm(X)/np.sqrt((v*r*s**2).sum())
    eta = lr*math.sqrt(max(1, m/n))
    return P - eta*X - eta*wd*P*(X*P >= 0), M, S


@pytest.mark.parametrize('shape', [(2, 3), (5, 3), (4, 4)], ids=str)
def test_normuon_is_gpt_labs(shape):
    import numpy as np
    g = torch.Generator().manual_seed(3)
    P = torch.randn(shape, generator=g, dtype=torch.float64)
    model = nn.ParameterList([P.clone()])
    opt = Opt(model, normuon(lr=.02, wd=.28, at=None))
    p, M, S = P.numpy(), 0., 0.
    for _ in range(50):
        grad = torch.randn(shape, generator=g, dtype=torch.float64)
        model[0].grad = grad
        opt.step()
        p, M, S = normuon_by_hand(p, grad.numpy(), M, S)
    assert np.allclose(model[0].detach().numpy(), p, rtol=0, atol=1e-11)
    kept = opt.state[model[0]]
    assert np.allclose(kept['v'].numpy(), S, atol=1e-13) and kept['v'].numel() == max(1, *S.shape)


def test_the_golden_value_of_normuon():
    P = torch.tensor([[.5, -.5, .25], [-.25, 1, .1]], dtype=torch.float64)
    model = nn.ParameterList([P])
    opt = Opt(model, normuon(lr=.02, wd=.28, at=None))
    model[0].grad = torch.tensor([[1, 2, -1], [0, -1, 3]], dtype=torch.float64)
    opt.step()
    golden = [[.4806379, -.51701221, .25148977], [-.25452481, 1.00231551, .08233569]]
    assert (model[0] - torch.tensor(golden).double()).abs().max() < 1e-6


def test_a_gradient_of_zero_moves_nothing():
    for name, make in EVERY.items():
        model = nn.ParameterList([torch.randn(4, 3)])
        opt = Opt(model, make(at=None))
        opt.extras = dict(hessian=torch.zeros_like)
        before = model[0].detach().clone()
        for _ in range(3):
            model[0].grad = torch.zeros(4, 3)
            opt.step()
        assert torch.equal(model[0], before), name


# ---- the seam

@pytest.mark.parametrize('name', EVERY)
def test_each_passes_its_check(name):
    report = check_rule(EVERY[name](), **dict(hessian=ones) if name == 'adahessian' else {})
    assert report.ok, report


def groups(name, lr=None):
    "For a GPT: the rule where it belongs, and AdamW for what is left"
    kw = {} if lr is None else dict(lr=lr)
    return [EVERY[name](wd=.1, **kw), adamw(lr=3e-3)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', EVERY)
def test_a_state_goes_on_bit_for_bit(name, dtype):
    "Through bytes, into another optimizer; also with weights in bfloat16, rounded at random"
    def made():
        model = tiny(dtype)
        mine = [EVERY[name](wd=.1), adamw(lr=3e-3)] if name in ('normuon', 'shampoo', 'soap') else [
            EVERY[name](wd=.1)]
        with warnings.catch_warnings(action='ignore'):
            opt = Opt(model, *mine, rounding='stochastic' if dtype == torch.bfloat16 else None)
        opt.extras = dict(hessian=ones)
        return model, opt
    (one, opt), (two, new) = made(), made()
    train(one, opt, 5)
    file = io.BytesIO()
    torch.save((one.state_dict(), opt.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    two.load_state_dict(weights)
    new.load_state_dict(state)
    train(one, opt, 5, seed=1)
    train(two, new, 5, seed=1)
    for p, q in zip(one.parameters(), two.parameters()): assert torch.equal(p, q)


@pytest.mark.parametrize('name, most', [('lion', 4), ('mars', 12), ('normuon', 4.3),
                                        ('adafactor', .4), ('adahessian', 8),
                                        ('schedule_free', 8)])
def test_the_bytes_that_a_rule_keeps(name, most):
    model = nn.ParameterList([torch.randn(64, 32)])
    opt = Opt(model, EVERY[name](at=None))
    opt.extras = dict(hessian=ones)
    model[0].grad = torch.randn(64, 32)
    opt.step()
    kept = [v for v in opt.state[model[0]].values() if isinstance(v, torch.Tensor)]
    assert most - .5 < sum(v.nbytes for v in kept) / model[0].numel() <= most


# ---- AdaHessian

def test_hutchinsons_mean_is_the_diagonal_of_a_gpt():
    "Of the gain of a norm, whose Hessian is small enough to be computed"
    from torch.nn.attention import sdpa_kernel, SDPBackend
    model = tiny()
    train(model, Opt(model, adamw(lr=1e-2)), 20)
    p = next(q for n, q in model.named_parameters() if q.ndim == 1 and 'blocks' in n)
    with sdpa_kernel(SDPBackend.MATH):
        loss = model(**batch(torch.Generator().manual_seed(9)))[0].mean()
    grad, = torch.autograd.grad(loss, [p], create_graph=True)
    exact = torch.stack([torch.autograd.grad(grad[i], [p], retain_graph=True)[0][i]
                         for i in range(len(p))])
    g, found = torch.Generator().manual_seed(0), []
    for _ in range(60):
        with sdpa_kernel(SDPBackend.MATH):
            loss = model(**batch(torch.Generator().manual_seed(9)))[0].mean()
        grads, (d,) = hutchinson(loss, [p], g)
        found.append(d)
    assert torch.allclose(grads[0], grad)
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - exact).abs() < 4.5*error + 1e-12).all()


def data(n=6):
    g = torch.Generator().manual_seed(0)
    return [batch(g) for _ in range(n)]


def trainer(*groups, model=None, **kw):
    model = tiny(torch.float32) if model is None else model
    kw = dict(callbacks=[], device='cpu', eval_every=0) | kw
    return Trainer(model, Opt(model, *groups), data(), **kw)


def test_adahessian_in_a_run_and_on_from_a_checkpoint(tmp_path):
    def made(folder): return trainer(adahessian(lr=.05), callbacks=[HessianDiagonal(1)],
                                     dir=tmp_path/folder, save_every=4, keep=5)
    whole = made('whole').fit(12)
    on = made('on').resume(tmp_path/'whole', 4).fit(12)
    assert [r['loss'] for r in on.log] == [r['loss'] for r in whole.log]
    for p, q in zip(on.model.parameters(), whole.model.parameters()): assert torch.equal(p, q)
    assert whole.log[-1]['loss'] < whole.log[0]['loss'] - .2
    other = trainer(adahessian(lr=.05), callbacks=[HessianDiagonal(2)]).fit(12)
    assert other.log[-1]['loss'] != whole.log[-1]['loss']


def remat(model): model.remat = True
def chunked(model): model.loss_chunk = 4


@pytest.mark.parametrize('spoil, kw, said', [
    (remat, {}, 'model.remat = False'), (chunked, {}, 'model.loss_chunk = None'),
    (None, dict(accumulate=2), 'accumulate=1'), (None, dict(dtype='float16'), 'dtype=None')])
def test_where_there_is_no_second_derivative(spoil, kw, said):
    model = tiny(torch.float32)
    if spoil: spoil(model)
    run = trainer(adahessian(), model=model, callbacks=[HessianDiagonal()], **kw)
    with refuses(ValueError, 'second derivatives need', said): run.fit(2)


def test_attentions_fast_kernel_has_no_second_derivative():
    model = tiny()
    loss = model(**data()[0])[0].mean()
    with refuses(ValueError, 'sdpa_kernel(SDPBackend.MATH)', 'loss_chunk, remat'):
        hutchinson(loss, [*model.parameters()])


def test_a_rule_whose_wish_nobody_fulfils():
    model = tiny()
    opt = Opt(model, adahessian())
    with refuses(TypeError, 'adahessian asks for hessian', 'opt.extras'): train(model, opt, 1)
    with refuses(ValueError, 'no Hessian was estimated'): HessianDiagonal().of(model.embed.weight)


def test_blocks_share_the_mean_of_their_estimates():
    state, D = {}, torch.tensor([[1., 3.], [2., 6.]])
    G.adahessian_rule(torch.ones(2, 2), state, 1, D, betas=(.9, 0.), block=2)
    assert torch.equal(state['v'], torch.tensor([[4., 4.], [16., 16.]]))
    with refuses(ValueError, 'blocks of 3 do not divide'):
        G.adahessian_rule(torch.ones(2, 2), {}, 1, D, block=3)


# ---- Schedule-Free

def free(folder=None, average=True, **kw):
    from gptlab.packing import batches
    from gptlab.data import make_stories
    from gptlab.tokenizer import ByteTokenizer
    set_seed(0)
    train, valid = batches(make_stories(30), ByteTokenizer(), B=2, T=16, valid_rows=4)
    model = GPT(GPTConfig(**DIMS | dict(vocab_size=257, context_length=16)))
    opt = Opt(model, muon(lr=.01, precision='float32'), schedule_free(lr=.02))
    callbacks = [ScheduleFreeAverage()] if average else []
    return Trainer(model, opt, train, valid, callbacks=callbacks, dir=folder, device='cpu',
                   **dict(save_every=2, eval_every=3, keep=9) | kw)


def score(run): return evaluate(run.model, run.valid, run.tok, verbose=False).loss


def test_validation_sees_the_average_and_the_run_does_not(tmp_path):
    run, plain = free().fit(8), free(average=False).fit(8)
    for p, q in zip(run.model.parameters(), plain.model.parameters()): assert torch.equal(p, q)
    assert [r['loss'] for r in run.log] == [r['loss'] for r in plain.log]
    own = score(run)
    with averaged_weights(run.opt): averaged = score(run)
    assert run.log[-1]['valid'] == averaged and plain.log[-1]['valid'] == own != averaged
    assert score(run) == own


def test_a_checkpoint_has_both_and_the_run_goes_on(tmp_path):
    from gptlab.checkpoints import load_checkpoint, load_model
    from gptlab.steering import load_average
    whole = free(tmp_path/'whole').fit(8)
    on = free(tmp_path/'on').resume(tmp_path/'whole', 4).fit(8)
    assert [r['loss'] for r in on.log] == [r['loss'] for r in whole.log]
    assert [r.get('valid') for r in on.log] == [r.get('valid') for r in whole.log]
    for p, q in zip(on.model.parameters(), whole.model.parameters()): assert torch.equal(p, q)
    own, _ = load_model(tmp_path/'whole')
    x, _ = load_average(tmp_path/'whole')
    for p, q in zip(own.parameters(), whole.model.parameters()): assert torch.equal(p, q)
    with averaged_weights(whole.opt):
        for p, q in zip(x.parameters(), whole.model.parameters()): assert torch.equal(p, q)


class Fails:
    "Breaks a validation, after the weights were exchanged"
    def before_eval(self, trainer): raise RuntimeError('no')


def test_a_validation_that_fails_leaves_the_runs_weights(capsys):
    run, plain = free(), free(average=False)
    run.callbacks.append(Fails())
    run.fit(8)
    plain.fit(8)
    assert 'no validation at step 3' in capsys.readouterr().out
    for p, q in zip(run.model.parameters(), plain.model.parameters()): assert torch.equal(p, q)


class Saves:
    def after_eval(self, trainer): trainer.save()


@pytest.mark.parametrize('first', [True, False])
def test_who_saves_in_a_validation_saves_the_runs_weights(tmp_path, first):
    from gptlab.checkpoints import load_checkpoint
    run = free(tmp_path/'run', save_every=0)
    run.callbacks.insert(0 if first else 1, Saves())
    run.fit(3)
    kept = load_checkpoint(tmp_path/'run'/'step_000003', 'model')['model']
    for k, v in run.model.state_dict().items(): assert torch.equal(v, kept[k]), k


def test_averages_of_nothing():
    opt = Opt(tiny(), adamw())
    with refuses(ValueError, 'no group follows schedule_free_rule'):
        with averaged_weights(opt): pass
    with refuses(ValueError, 'schedule_free()'):
        trainer(adamw(), callbacks=[ScheduleFreeAverage()]).fit(1)
    with refuses(TypeError, 'opt must be an Opt'):
        with averaged_weights(torch.optim.SGD([nn.Parameter(torch.ones(1))])): pass
    fresh = Opt(tiny(), schedule_free())
    with averaged_weights(fresh): pass                                # before the first step


def test_a_rate_of_zero_moves_nothing_and_divides_by_nothing():
    for make in (schedule_free, adafactor):
        model = nn.ParameterList([torch.ones(3, 2)])
        opt = Opt(model, make(lr=0.))
        model[0].grad = torch.ones(3, 2)
        opt.step()
        assert torch.equal(model[0], torch.ones(3, 2))


# ---- weights in bfloat16

def test_stochastic_rounding_is_unbiased():
    "The mean of many roundings lies within 4.5 standard errors of the number, for each of many"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=g) * torch.logspace(-6, 6, 200)
    many = torch.stack([round_stochastic(x, g).float() for _ in range(4000)])
    low, high = many.min(0).values, many.max(0).values
    assert ((low <= x) & (x <= high)).all() and ((high - low) <= x.abs() * 2**-7).all()
    error = many.std(0) / math.sqrt(len(many))
    assert ((many.mean(0) - x).abs() < 4.5*error + 1e-12*x.abs()).all()


def test_what_is_a_bfloat16_stays_and_so_does_what_is_no_number():
    x = torch.tensor([0., 1., -2.5, 2.**-130, math.inf, -math.inf, math.nan])
    found = round_stochastic(x, torch.Generator().manual_seed(0)).float()
    assert torch.equal(found[:-1], x[:-1]) and found[-1].isnan()
    nans = torch.tensor([-1, 0x7fffffff], dtype=torch.int32).view(torch.float32)
    assert round_stochastic(nans).isnan().all()
    assert round_stochastic(torch.full((100,), torch.finfo(torch.float32).max)).isinf().any()


def test_rounding_lets_small_steps_count():
    ends = {}
    for rounding in (None, 'stochastic'):
        model = nn.ParameterList([torch.ones(1000, dtype=torch.bfloat16), torch.ones(3)])
        opt = Opt(model, sgd(lr=1e-3, wd=0.), rounding=rounding)
        for _ in range(100):
            for p in model: p.grad = torch.ones_like(p)
            opt.step()
        ends[rounding] = model[0].float()
        torch.testing.assert_close(model[1].detach(), torch.full((3,), .9))
    assert (ends[None] == 1).all()
    assert abs(ends['stochastic'].mean() - .9) < 4.5*ends['stochastic'].std()/math.sqrt(1000)
    assert 'rounding=stochastic' in repr(opt) and opt.settings()[0]['rounding'] == 'stochastic'


def test_the_rule_computes_in_float32():
    "State and direction; a step of the rounded weights is one of float32, but for the rounding"
    set_seed(1)
    model = nn.ParameterList([torch.randn(6, 4).bfloat16()])
    wide = nn.ParameterList([model[0].detach().float()])
    pair = Opt(model, adamw(1e-2, wd=.1), rounding='stochastic'), Opt(wide, adamw(1e-2, wd=.1))
    grad = torch.randn(6, 4).bfloat16()
    for opt, p in zip(pair, (model[0], wide[0])):
        p.grad = grad.to(p.dtype)
        opt.step()
    assert pair[0].state[model[0]]['v'].dtype == torch.float32
    assert torch.equal(pair[0].state[model[0]]['v'], pair[1].state[wide[0]]['v'])
    assert ((model[0].float() - wide[0]).abs() <= wide[0].abs() * 2**-7).all()


def test_a_rounded_run_goes_on_bit_for_bit(tmp_path):
    "Another seed is another run; nothing is drawn from torch's own generator"
    def made(folder, seed=0):
        model = tiny(torch.bfloat16)
        opt = Opt(model, muon(lr=.01, precision='float32'), adamw(lr=1e-2), rounding='stochastic',
                  seed=seed)
        return Trainer(model, opt, data(), callbacks=[], device='cpu', eval_every=0,
                       dir=tmp_path/folder, save_every=3, keep=5)
    whole = made('whole').fit(9)
    on = made('on').resume(tmp_path/'whole', 3).fit(9)
    other = made('other', 1).fit(9)
    for p, q in zip(on.model.parameters(), whole.model.parameters()): assert torch.equal(p, q)
    assert any(not torch.equal(p, q)
               for p, q in zip(other.model.parameters(), whole.model.parameters()))
    before = torch.get_rng_state()
    made('none').opt.step()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize('kw, said', [
    (dict(rounding='nearest'), "'stochastic' or None"), (dict(rounding=True), "not True"),
    (dict(rounding='stochastic', seed=-1), 'seed')])
def test_a_rounding_that_is_none(kw, said):
    with refuses(ValueError, said): Opt(tiny(torch.bfloat16), adamw(), **kw)


def test_nothing_to_round():
    with refuses(ValueError, 'there are none', 'bfloat16()'):
        Opt(tiny(), adamw(), rounding='stochastic')
    with refuses(ValueError, 'fused'):
        Opt(tiny(torch.bfloat16), adamw(fused=True), rounding='stochastic')
    with refuses(ValueError, 'float32', 'float64'): round_stochastic(torch.ones(2).double())
    with refuses(TypeError, 'float32'): round_stochastic('x')


# ---- patterns, and groups that make no sense

def names(opt): return [g['param_names'] for g in opt.param_groups]


def test_a_pattern_is_a_predicate():
    model = tiny()
    every = [n for n, _ in model.named_parameters()]
    opt = Opt(model, adamw(at='blocks.*.attn.*'), sgd(at='*.weight'), adamw())
    mine = [n for n in every if n.startswith('blocks.') and '.attn.' in n]
    assert mine and names(opt)[0] == mine and all(n.endswith('.weight') for n in names(opt)[1])
    compiled = torch.compile(tiny(), backend='eager')
    assert names(Opt(compiled, adamw(at='blocks.*.attn.*'), adamw()))[0] == mine
    listed = Opt(model.named_parameters(), adamw(at='blocks.*.attn.*'), sgd())
    assert names(listed)[0] == mine
    by_number = Opt([*model.parameters()], adamw(at='[0-3]'), sgd())
    assert names(by_number)[0] == [*'0123']
    assert "at='blocks.*.attn.*'" in repr(adamw(at='blocks.*.attn.*'))
    groups = [dict(params=[p for _, p in model.named_parameters()])]
    assert len(names(Opt(groups, adamw(at='1'), sgd()))[0]) == 1


@pytest.mark.parametrize('pattern, nearest', [
    ('blocks.*.atn.*', 'blocks.'), ('embedd.weight', 'embed.weight'), ('BLOCKS.*', 'blocks.'),
    ('', 'nearest')])
def test_a_pattern_that_fits_nothing(pattern, nearest):
    with refuses(ValueError, f'no parameter is called {pattern!r}', nearest):
        Opt(tiny(), adamw(at=pattern), sgd())


def test_a_pattern_that_fits_what_is_taken_is_an_empty_group():
    with pytest.warns(UserWarning, match='claims no parameter'):
        Opt(tiny(), adamw(), sgd(at='embed.*'))


@pytest.mark.parametrize('make', EVERY.values())
@pytest.mark.parametrize('kw', [dict(lr='x'), dict(lr=-1.), dict(lr=math.nan), dict(lr=True),
                                dict(wd=-1.), dict(wd='x'), dict(at=3), dict(schedule=3),
                                dict(nonsense=1)], ids=str)
def test_what_no_group_takes(make, kw):
    with pytest.raises((ValueError, TypeError), match=next(iter(kw))): make(**kw)


WRONG = dict(lion=dict(betas=[(.9,), (.9, 1.), 'x']), mars=dict(betas=[(1., .9)], gamma=[-1, 'x'],
             eps=[-1.]), normuon=dict(momentum=[1., 'x'], beta2=[1., -1], ns_steps=[-1, .5],
             precision=['int8', 3]), shampoo=dict(eps=[0., -1, 'x'], every=[0, .5], largest=[0]),
             soap=dict(betas=[(.9, 1.)], every=[0, 'x'], largest=[-1]),
             adafactor=dict(power=[0., 'x'], clip=[0.], eps=[1e-3, (1, 'x'), (-1, 1)]),
             adahessian=dict(power=[1.5, -1], block=[0, 1.5], betas=[(.9, 1.)]),
             schedule_free=dict(betas=[(0., .9), (1., .9), (.9, 1.), .9], eps=[-1.]))


@pytest.mark.parametrize('name, setting, value', [(n, k, v) for n, table in WRONG.items()
                                                  for k, values in table.items() for v in values])
def test_a_setting_that_makes_no_sense(name, setting, value):
    with refuses(ValueError, setting): EVERY[name](**{setting: value})


@pytest.mark.parametrize('make', [muon, normuon])
def test_a_matrix_rule_on_a_vector(make):
    model = nn.ParameterList([torch.ones(4)])
    model[0].grad = torch.ones(4)
    with refuses(ValueError, 'let another group claim it', '(4,)'):
        Opt(model, make(at=None)).step()


def test_shampoo_where_no_side_is_short_enough():
    model = nn.ParameterList([torch.ones(4, 5)])
    model[0].grad = torch.ones(4, 5)
    with refuses(ValueError, 'a side of at most 3', '(4, 5)'):
        Opt(model, shampoo(at=None, largest=3)).step()
    Opt(model, shampoo(at=None, largest=4)).step()                    # one side has a matrix


def test_a_parameter_that_two_groups_of_torch_hold():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with refuses(ValueError, 'stands in another as well'):
        Opt([dict(params=[a]), dict(params=[b, a])], adamw())


def test_a_parameter_that_none_claims_and_a_group_that_is_empty():
    with refuses(ValueError, 'no group claims', 'end with'): Opt(tiny(), lion(at='blocks.*'))
    with refuses(ValueError, 'no parameter to learn'): Opt([dict(params=[])], adamw())
    with pytest.warns(UserWarning, match='claims no parameter'):
        Opt(tiny(), lion(at=lambda name, p, module: False), adamw())


def test_a_rule_that_names_wd_decays_by_itself():
    def rule(grad, state, param, wd): return wd * param
    for mine, end in ((rule, .95), (lambda grad, state: 0*grad, .95)):
        model = nn.ParameterList([torch.ones(2)])
        model[0].grad = torch.ones(2)
        Opt(model, Group(mine, lr=.1, wd=.5)).step()
        torch.testing.assert_close(model[0].detach(), torch.full((2,), end))


# ---- five real kills

SCRIPT = '''
import sys, time
from gptlab.checkpoints import checkpoints_in
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.gallery import *
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import Opt, adamw
from gptlab.packing import batches
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer

TEXT = make_stories(40)
CASES = dict(lion=([lion(lr=1e-3, wd=.1)], []), mars=([mars()], []),
             matrices=([normuon(wd=.1, at='*.attn.*'), soap(at='*.mlp.*', every=3),
                        shampoo(at='embed*'), adamw()], []),
             adahessian=([adahessian(), ], [HessianDiagonal]), adafactor=([adafactor()], []),
             free=([schedule_free(lr=.01)], [ScheduleFreeAverage]),
             half=([schedule_free(lr=.01)], [ScheduleFreeAverage]))

class Steps:
    def __init__(self, pause): self.pause = pause
    def after_step(self, trainer): print('step', trainer.step, flush=True); time.sleep(self.pause)

def go(pause, case, folder):
    set_seed(7)
    train, valid = batches(TEXT, ByteTokenizer(), B=4, T=32, valid_rows=4)
    model = GPT(GPTConfig(vocab_size=257, context_length=32, n_layers=2, n_heads=2, d_model=32))
    half = case == 'half'
    if half: model.bfloat16()
    groups, callbacks = CASES[case]
    opt = Opt(model, *groups, rounding='stochastic' if half else None)
    run = Trainer(model, opt, train, valid, dir=folder, save_every=2, eval_every=5, device='cpu',
                  callbacks=[Steps(float(pause)), *(c() for c in callbacks)])
    if checkpoints_in(folder): run.resume().fit()
    else: run.fit(24)
'''


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGKILL')
@pytest.mark.exhaustive
def test_killed_and_taken_up_each_ends_the_same(tmp_path):
    from kills import Forks
    from test_resume import differences, struck, Whole
    forks, rng = Forks(tmp_path, SCRIPT), random.Random(0)
    try:
        whole, killed = Whole(forks), 0
        for case in 'matrices adahessian adafactor free half'.split():
            folder = tmp_path/case
            first = struck(forks, rng, case, folder, signal.SIGKILL)
            assert first.code == -signal.SIGKILL, first.said()
            killed += 1
            bad = differences(forks, whole, case, folder)
            assert not bad, (case, bad[:5])
        assert killed == 5
    finally: forks.close()


# ---- the race

def test_the_race_gave_all_the_same():
    "As many trials for each rule, by the same rates but for what each found; a prediction for each"
    def read(what):
        return json.loads((ROOT/f'nbs/experiments/results/optimizer_race_{what}.json').read_text())

    trials, foretold = read('tuning')['trials'], read('predictions')
    rules = {t['variant'] for t in trials}
    assert len(rules) == 12 and len(trials) == 7*12
    for rule in rules:
        tried = [math.log10(t['settings']['times']) for t in trials if t['variant'] == rule]
        assert [round(x, 2) for x in tried[:3]] == [0, -1, 1] and len(set(tried)) == 7
        assert rule == 'AdamW' or f'{rule}, equal tokens' in foretold
    for kind in ('tokens', 'seconds'):
        runs = read(kind)['records']
        seeds = {r['variant']: set() for r in runs}
        for r in runs: seeds[r['variant']].add(r['seed'])
        assert all(s == {0, 1, 2, 3} for s in seeds.values()) and seeds.keys() <= rules
    assert not any('outcome' in p for p in foretold.values())         # as it was written beforehand

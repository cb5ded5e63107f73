"""Accounts of what a model needs, against measurement: bytes of a training step and of a cache, for
every preset; and what asking for them may not disturb."""
import contextlib, os, platform, subprocess, sys
from dataclasses import replace
from functools import partial

import pytest, torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gptlab.all import *
from gptlab import costs as costs_module
from gptlab.costs import _with_fake_tensors, _step_bytes
from test_model import Bag, PRESETS, SMALL, every, lively, text


# what they do depends on what they read
NO_PRETENCE = ('experts', 'depths', 'depths_delta')


# ---- against measurement

def test_a_model_without_memory_is_counted_all_the_same():
    "On the meta device a model has shapes and no values: its step is counted as if it had"
    cfg = PRESETS['gpt2']()
    with torch.device('meta'): shapes = GPT(cfg)
    assert shapes.memory(2, 32) == GPT(cfg).memory(2, 32)


@every
def test_bytes_are_those_that_are_allocated(name):
    """The pretended step, the tracker of a step in earnest, and torch's own profiler of the
    allocator agree"""
    cfg = replace(PRESETS[name](), dropout=0.)
    model = GPT(cfg).train()
    ids = torch.zeros(2, 32, dtype=torch.long)
    real = _step_bytes(model, ids, lambda t: t.detach())
    if name not in NO_PRETENCE: assert real == _with_fake_tensors(model, ids)
    assert model.memory(2, 32) == real
    # everything is back in its place
    assert all(type(p) is nn.Parameter for p in model.parameters())
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        nll, aux = model(ids, ids)
        (nll.sum() + aux).backward()
        del nll, aux
    now = peak = 0
    for e in p.profiler.kineto_results.events():
        if e.name() == '[memory]':
            now += e.nbytes()
            peak = max(peak, now)
    assert abs(peak - real['peak']) < .02*peak, (peak, real['peak'])

@every
def test_cache_bytes_are_those_of_its_tensors(name):
    model = GPT(PRESETS[name]()).eval()
    caches = model.new_caches()
    with torch.no_grad(): model(torch.zeros(2, 20, dtype=torch.long), caches=caches)
    found, todo = {}, [*caches]
    while todo:
        o = todo.pop()
        if isinstance(o, torch.Tensor):
            found[o.untyped_storage()._cdata] = o.untyped_storage().nbytes()
        elif isinstance(o, dict): todo += o.values()
        elif isinstance(o, (list, tuple)): todo += o
        elif hasattr(o, '__dict__'): todo += vars(o).values()
    # keys and values of 8 channels a head, for two rows, in figures
    if name in ('default', 'gpt2', 'llama', 'windows'):
        K, seen = model.cfg.n_kv_heads or 4, [4, 20]*2 if name == 'windows' else [20]*4
        # and positions
        assert 0 <= sum(found.values()) - sum(4*2*2*K*8*t for t in seen) <= sum(8*2*t for t in seen)
    assert model.memory(2, 20)['cache'] == sum(found.values())

@pytest.mark.parametrize('kw', [dict(block=MoD), dict(block=[Block, MoD]),
                                dict(block=MoD, attn=DeltaAttention), dict(block=MoD, attn=MLA),
                                dict(block=partial(MoD, inner=MoD))], ids=range(5))
def test_cache_bytes_of_a_mixture_of_depths(kw):
    "Nothing at first, then those of the tokens that were worked on"
    model = lively(GPTConfig(**SMALL | kw)).eval()
    for m in model.modules():
        if isinstance(m, MoD): nn.init.constant_(m.guess.bias, 9.)       # works on every token
    caches = model.new_caches()
    assert cache_bytes(caches) == 0
    with torch.no_grad(): model(torch.zeros(2, 20, dtype=torch.long), caches=caches)
    need, positions = model.memory(2, 20)['cache'], 8*2*20*len(caches)
    # layers may share the memory of their positions; here each counts its own
    assert 0 < need <= cache_bytes(caches) <= need + positions

def test_options_save_memory():
    model = GPT(GPTConfig(**SMALL | dict(vocab_size=5000)))
    def need(remat=False, loss_chunk=None):
        model.remat, model.loss_chunk = remat, loss_chunk
        return model.memory(B=8)
    plain = need()
    assert (need(remat=True)['activations'] < .8*plain['activations']
            and need(loss_chunk=32)['peak'] < .5*plain['peak'])
    assert need(remat=True, loss_chunk=32)['activations'] < .05*plain['activations']


# ---- asking disturbs nothing

def test_accounts_leave_everything_else_alone():
    """Modes, hooks, gradients, dice; and no matter in which mode, precision or grad mode they are
    asked for"""
    model, seen = GPT(GPTConfig(**SMALL | dict(dropout=.2))), []
    model.blocks[0].register_forward_hook(lambda m, a, o: seen.append(o))
    model.blocks[1].register_forward_pre_hook(lambda m, a: seen.append(a))
    model.train()
    model.blocks[1].eval()
    modes, dice = [m.training for m in model.modules()], torch.get_rng_state()
    want = model.memory(2, 16)
    costs(model)
    assert (not seen and modes == [m.training for m in model.modules()]
            and torch.equal(dice, torch.get_rng_state())
            and all(p.grad is None for p in model.parameters()))
    # the hooks are back
    model(torch.zeros(1, 4, dtype=torch.long))
    assert len(seen) == 2
    assert model.eval().memory(2, 16) == want
    with torch.no_grad(): assert model.memory(2, 16) == want
    with torch.autocast('cpu', torch.bfloat16): assert model.memory(2, 16) == want
    frozen = GPT(GPTConfig(**SMALL)).requires_grad_(False).memory(2, 16)
    assert frozen['activations'] < want['activations'] and frozen['cache'] == want['cache']

def test_a_count_can_be_limited():
    model = GPT(GPTConfig(**SMALL
                          | dict(attn=partial(DeltaAttention, chunk=1), context_length=2000)))
    with pytest.raises(RuntimeError, match='more than 20000 operations'):
        _with_fake_tensors(model, torch.zeros(1, 2000), budget=20_000)

def test_accounts_leave_the_compiler_alone():
    """A dispatch mode that meets a compiled block makes torch give up compiling it, silently and
    for good"""
    model, batch, calls = lively(GPTConfig(**SMALL)), text(GPTConfig(**SMALL)), []
    backend = lambda g, _: lambda *a: (calls.append(1), g(*a))[1]
    for b in model.blocks: b.compile(dynamic=False, backend=backend)
    lm_loss(model, batch)
    first = len(calls)
    model.memory()
    costs(model)
    assert len(calls) == first
    lm_loss(model, batch)
    assert len(calls) == 2*first > 0


# ---- the table

NAMES = ('operations per token, reading|operations per token, training|'
         'weights|activations, training|peak, training|cache'.split('|'))

@every
def test_a_table_of_accounts(name):
    model = GPT(PRESETS[name]())
    state, table = torch.get_rng_state(), costs(model)
    # looking changes nothing
    assert torch.equal(torch.get_rng_state(), state)
    assert ([r['cost'] for r in table] == NAMES
            and f'1 × {model.cfg.context_length} tokens' in repr(table))
    assert all(float(r['amount'].split()[0].replace(',', '')) >= 0 for r in table)
    assert '| operations per token, training |' in table._repr_markdown_()

def test_a_table_of_other_rows():
    model = GPT(GPTConfig(**SMALL | dict(attn=Bag)))
    (*_, activations, peak, cache), need = costs(model, 4, 16), model.memory(4, 16)
    assert (activations['amount'] == f'{need["activations"]/1e6:.1f} MB'
            and peak['amount'] == f'{need["peak"]/1e6:.1f} MB')
    assert need['cache'] is None and cache['amount'] == '–'

def test_accounts_of_parts_that_cannot_pretend():
    class Stubborn(MLP):
        def forward(self, x): return super().forward(x) if x.sum().item() < 1e9 else x
    model = GPT(GPTConfig(**SMALL | dict(mlp=Stubborn)))
    assert model.memory(1, 8)['activations'] > 0 and len(costs(model)) == len(NAMES)

def test_errors_of_a_model_are_not_swallowed():
    class Wrong(MLP):
        def forward(self, x): return x/(1//0)
    model = GPT(GPTConfig(**SMALL | dict(mlp=Wrong)))
    with pytest.raises(ZeroDivisionError): costs(model)

def test_a_slip_of_shapes_is_an_error_and_no_slow_path(monkeypatch):
    class Wrong(MLP):
        def forward(self, x): return x @ x
    model, steps = GPT(GPTConfig(**SMALL | dict(mlp=Wrong))), []
    def counted(m, ids, copied, **kw):
        steps.append(ids)
        return _step_bytes(m, ids, copied, **kw)
    monkeypatch.setattr(costs_module, '_step_bytes', counted)
    with pytest.raises(RuntimeError): model.memory(1, 8)
    assert len(steps) == 1                                               # on fake tensors alone

def test_parts_that_decide_by_what_they_read_take_a_real_step():
    for kw in (dict(mlp=MoE), dict(block=MoD)):
        model = GPT(GPTConfig(**SMALL | kw))
        assert model.memory(1, 8)['peak'] > 0

def test_rows_that_make_no_sense():
    model = GPT(GPTConfig(**SMALL))
    for call, words in ((lambda: model.memory(0), 'nothing to read'),
                        (lambda: model.memory(1, 99), 'do not fit the context')):
        with pytest.raises(ValueError, match=words): call()


# ---- memory that is freed

HELD = """
import ctypes, resource, torch
from gptlab.costs import hold_memory
ctypes.CDLL(None).mallopt(-3, 2**17)     # large tensors go back at once; else it is up to the heap
def faults(n=3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n): [torch.ones(7*2**20) for _ in range(4)]    # 28 MB each
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)//n
def held(): return int(open('/proc/self/statm').read().split()[1])*resource.getpagesize()
faults()
free = faults()
with hold_memory():
    faults(12)                                        # until the heap is cut to fit
    try:
        with hold_memory(): raise KeyError
    except KeyError: pass
    kept = faults()                                   # the outer block still holds
    inside = held()
print(free, kept, inside - held())
"""

@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is told to keep memory')
@pytest.mark.parametrize('by_user', [False, True])
def test_freed_memory_stays_while_it_is_held_and_then_goes(by_user):
    "Counted in page faults, of 4 KiB; where the user has set glibc's thresholds, they stand"
    env = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
    if by_user: env['MALLOC_TRIM_THRESHOLD_'] = '131072'
    found = subprocess.run([sys.executable, '-c', HELD], env=env, text=True, check=True,
                           capture_output=True).stdout
    free, kept, returned = map(int, found.split())
    assert free > 5_000
    if by_user: assert kept > 5_000
    else: assert kept < free/20 and returned > 30e6


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_a_trainer_holds_memory_while_it_fits_on_a_cpu(device, monkeypatch):
    held = []
    @contextlib.contextmanager
    def noted():
        held.append('in')
        try: yield
        finally: held.append('out')
    monkeypatch.setattr(costs_module, 'hold_memory', noted)
    class Stop(Exception): pass
    def loss(model, batch):
        held.append('step')
        if len(held) > 2: raise Stop
        return model(batch['x']).sum(), batch['x'].numel()
    model = nn.Linear(4, 1)
    run = Trainer(model, torch.optim.SGD(model.parameters(), .1), [dict(x=torch.ones(2, 4))],
                  loss=loss, device='cpu', callbacks=[], eval_every=0)
    if device != 'cpu':                                           # a card's memory is torch's own
        run.device = torch.device(device)
        with run._holding_memory(): assert not held
        return
    with pytest.raises(Stop): run.fit(3)
    assert held == ['in', 'step', 'step', 'out']

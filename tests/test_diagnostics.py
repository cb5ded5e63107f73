"""Probes change nothing and leave nothing behind; what they measure is what autograd and a plain
formula say."""
import json
import math
import re

import pytest
import torch

from gptlab.all import *

V, T = 16, 12
SMALL = dict(vocab_size=V, n_layers=2, n_heads=4, d_model=16, context_length=T)


def batch(seed=0, B=2, docs=False):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, V, (B, T+1), generator=g)
    out = dict(ids=rows[:, :-1], targets=rows[:, 1:])
    return out | dict(docs=(torch.arange(T)//5).expand(B, T)) if docs else out


def trainer(callbacks, seed=0, model=None, **kw):
    set_seed(seed)
    model = model or GPT(GPTConfig(**SMALL, dropout=.2, init=gpt2_init))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = [batch(i) for i in range(4)]
    settings = dict(device='cpu', eval_every=2) | kw
    return Trainer(model, opt, data, data[:1], callbacks=callbacks, **settings)


def draws(name, y): return dict(drawn=torch.rand(()).item())


def every_probe():
    kinds = Activations, OutputGradients, ParameterGradients, UpdateRatios, AttentionMaps
    return [*[kind(every=1) for kind in kinds], ForwardHook(draws, every=1), Activations(bins=5)]


def count_hooks(model):
    kinds = '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'
    return sum(len(vars(m)[k]) for m in model.modules() for k in kinds)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kw', [{}, dict(accumulate=2)], ids=['plain', 'accumulated'])
def test_weights_are_equal_to_the_bit_with_probes_and_without(seed, kw):
    a = trainer(every_probe(), seed, **kw).fit(5)
    b = trainer([], seed, **kw).fit(5)
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)
    assert [r['loss'] for r in a.log] == [r['loss'] for r in b.log]


def test_weights_are_equal_with_blocks_that_are_computed_twice():
    def run(callbacks):
        t = trainer(callbacks)
        t.model.remat = True
        return t.fit(3)
    probes = every_probe()
    a, b = run(probes), run([])
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)
    names = [r['at'] for r in probes[0].rows if r['step'] == 1]
    assert len(names) == len(set(names))                          # one row, though called twice


def test_hooks_are_in_only_while_a_step_is_measured():
    seen = []
    class Count:
        def after_loss(self, t): seen.append(count_hooks(t.model))
        def after_step(self, t): seen.append(count_hooks(t.model))
    t = trainer([Activations('blocks.*.attn', every=2), Count()]).fit(4)
    assert seen == [2, 0, 0, 0] * 2 and count_hooks(t.model) == 0


@pytest.mark.parametrize('event', ['before_fit', 'after_loss', 'after_backward', 'after_step'])
def test_an_error_leaves_no_hook_behind(event):
    def fails(self, t): raise KeyError('mine')
    t = trainer([*every_probe(), type('Fails', (), {event: fails})()])
    with pytest.raises(KeyError): t.fit(2)
    assert count_hooks(t.model) == 0


def test_an_error_of_the_probe_itself_leaves_no_hook_behind():
    def bad(name, y): return y
    t = trainer([Activations(every=1), ForwardHook(bad)])
    with pytest.raises(TypeError, match='may only read'): t.fit(2)
    assert count_hooks(t.model) == 0


def test_validation_and_sampling_are_not_measured():
    acts = Activations('blocks.*.attn', every=1)
    trainer([acts], eval_every=1).fit(3)
    assert [r['step'] for r in acts.rows] == [1, 1, 2, 2, 3, 3]


def test_a_second_fit_goes_on():
    acts = Activations('blocks.0', every=2)
    t = trainer([acts]).fit(3)
    t.fit(6)
    assert [r['step'] for r in acts.rows] == [1, 3, 5] and len(t.info['hooks']) == 1


# ---- what is measured

def test_activations_are_those_of_the_output():
    x = torch.tensor([[0., 0., 1., -3.]])
    probe = Activations(bins=4)
    probe.measure('m', x)
    row = probe.rows[0]
    assert (row['mean'], row['max'], row['zeros']) == (-.5, 3., .5)
    assert row['std'] == pytest.approx(x.std().item())
    assert row['range'] == [-3, 1] and row['counts'] == [1, 0, 0, 3]


def test_output_gradients_equal_retained_ones():
    t = trainer([probe := OutputGradients('blocks.0', every=1)])
    t.fit(1)
    other, kept = trainer([]), []
    def keep(module, args, out):
        if not module.training: return
        out.retain_grad()
        kept.append(out)
    other.model.blocks[0].register_forward_hook(keep)
    other.fit(1)
    grad = kept[0].grad
    assert probe.rows[0]['norm'] == pytest.approx(grad.norm().item(), rel=1e-5)
    assert probe.rows[0]['std'] == pytest.approx(grad.std(correction=0).item(), rel=1e-5)


def test_parameter_gradients_are_of_all_accumulated_batches():
    probe = ParameterGradients(every=1)
    t = trainer([probe], accumulate=3, clip=1e-6).fit(2)
    for line in t.log:
        norms = [r['norm']**2 for r in probe.rows if r['step'] == line['step']]
        assert math.sqrt(sum(norms)) == pytest.approx(line['grad_norm'], rel=1e-5)


def test_update_ratios_compare_weights_around_the_step():
    probe = UpdateRatios('blocks.0.mlp.up.weight', every=1)
    t = trainer([probe])
    old = t.model.blocks[0].mlp.up.weight.detach().clone()
    t.fit(1)
    change = (t.model.blocks[0].mlp.up.weight.detach() - old).norm()
    assert probe.rows[0]['ratio'] == pytest.approx((change/old.norm()).item(), rel=1e-6)


def softcapped(C, n_heads, n_kv_heads=None): return Attention(C, n_heads, softcap=5.)
def windowed(C, n_heads, n_kv_heads=None): return Attention(C, n_heads, n_kv_heads, window=4)
def sloped(C, n_heads, n_kv_heads=None): return Attention(C, n_heads, n_kv_heads, pos=ALiBi)
def spelt_out(C, n_heads, n_kv_heads=None): return OpenAttention(C, n_heads, backend=matmul)
def wide(C, n_heads, n_kv_heads=None): return OpenAttention(C, n_heads, v_expand=2.)


@pytest.mark.parametrize('attn', [Attention, windowed, softcapped, sloped, spelt_out, wide])
@pytest.mark.parametrize('docs', [False, True])
@pytest.mark.parametrize('kv', [None, 2])
def test_attention_weights_times_values_are_the_output(attn, docs, kv):
    set_seed(0)
    model = GPT(GPTConfig(**SMALL, n_kv_heads=kv, attn=attn, init=gpt2_init))
    perturb_parameters(model)
    kept, data = {}, batch(docs=docs)
    data.pop('targets')
    layer = model.blocks[1].attn
    def keep(module, args, out): kept['x'], kept['out'] = args[0], out
    layer.register_forward_hook(keep)
    w = attention_weights(model, data, 'blocks.1.attn')['blocks.1.attn']
    assert w.shape == (2, 4, T, T) and count_hooks(model) == 1
    v = layer.v(kept['x']).view(2, T, layer.K, -1).transpose(1, 2)
    y = w @ v.repeat_interleave(layer.H//layer.K, 1)
    with torch.no_grad(): out = layer.o(y.transpose(1, 2).reshape(2, T, -1))
    assert_equal(out, kept['out'].detach(), tol=1e-5)
    assert_equal(w.sum(-1), torch.ones(2, 4, T), tol=1e-5)
    assert not w.triu(1).any()
    if docs: assert not w[..., 5:, :5].any()


def test_a_module_without_weights_is_named():
    model = GPT(GPTConfig(**SMALL))
    with pytest.raises(ValueError, match='blocks.0.mlp'):
        attention_weights(model, dict(ids=batch()['ids']), 'blocks.0.mlp')
    assert count_hooks(model) == 0


def test_attention_maps_keep_few_heads_and_tokens():
    probe = AttentionMaps('blocks.0.attn', every=2, heads=3, tokens=6)
    trainer([probe]).fit(4)
    assert {k: tuple(v.shape) for k, v in probe.maps.items()} == {
        (1, 'blocks.0.attn'): (3, 6, 6), (3, 'blocks.0.attn'): (3, 6, 6)}
    assert len(probe.rows) == 8 and 0 < probe.rows[0]['entropy'] < math.log(T)
    assert len(probe.batch['ids']) == 1


# ---- what is refused

@pytest.mark.parametrize('glob, near', [('blocks.*.atn', 'blocks.*.attn'),
                                        ('block.0.mlp', 'blocks.*.mlp'), ('zzz', 'near it are')])
def test_a_glob_that_matches_nothing(glob, near):
    with pytest.raises(ValueError) as e: trainer([Activations(glob)]).fit(1)
    assert near in str(e.value) and repr(glob) in str(e.value)


@pytest.mark.parametrize('every', [0, -1, 1.5, True])
def test_every_is_a_number_of_steps(every):
    with pytest.raises((TypeError, ValueError), match='every'): Activations(every=every)


def test_a_forward_hook_cannot_reach_the_model():
    def sly(name, y): y.data.zero_()                              # torch does not count this one
    a, b = trainer([ForwardHook(sly, every=1)]).fit(3), trainer([]).fit(3)
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.equal(p, q)


def test_a_compiled_model_is_refused_by_forward_probes():
    model = GPT(GPTConfig(**SMALL))
    model.blocks[0].compile(backend='eager')
    t = trainer([Activations()], model=model)
    with pytest.raises(ValueError, match='compile=False'): t.fit(1)


@pytest.mark.parametrize('config, said', [
    (dict(hook='activation'), 'did you mean activations?'),
    (dict(hook='os.system'), 'there are activations'),
    (dict(at='*'), 'None'),
    (dict(hook='activations', evry=3), 'did you mean every?'),
    (dict(hook='clip_by_value', limits=3), 'did you mean limit?'),
    (dict(hook='centralize', every=3), 'at')])
def test_a_config_that_is_not_understood(config, said):
    with pytest.raises(ValueError) as e: make_hooks(config)
    assert said in str(e.value)


# ---- hooks on gradients

def test_a_config_makes_hooks_in_its_order():
    config = [dict(hook='clip_by_value', limit=.1, at='*.mlp.*'), dict(hook='centralize'),
              dict(hook='parameter_gradients', every=5), dict(hook='activations', enabled=False)]
    hooks = make_hooks(json.dumps(config))
    assert [type(h).__name__ for h in hooks] == ['GradientHooks', 'GradientHooks',
                                                 'ParameterGradients']
    t = trainer(hooks).fit(1)
    assert t.info['hooks'] == [
        dict(hook='GradientHooks', at='*.mlp.*', functions=['clip_by_value(0.1)']),
        dict(hook='GradientHooks', at='*', functions=['centralize']),
        dict(hook='ParameterGradients', at='*', every=5)]
    json.dumps(t.info)


def test_gradient_hooks_are_chained_and_reach_the_optimizer():
    kept = {}
    class Keep:
        def after_backward(self, t):
            for n, p in t.model.named_parameters(): kept[n] = p.grad.clone()
    def one(grad, name): return torch.ones_like(grad)
    def double(grad, name): return grad*2
    trainer([GradientHooks([one, double], 'blocks.0.*'), Keep()]).fit(1)
    for name, g in kept.items():
        assert name.startswith('blocks.0.') == bool((g == 2).all())


def test_a_gradient_hook_returns_a_gradient():
    def forgets(grad, name): grad.mul_(2)
    with pytest.raises(TypeError, match='forgets must return the gradient of embed.weight'):
        trainer([GradientHooks([forgets])]).fit(1)


def test_the_gradient_hooks_of_the_chapter():
    g = torch.randn(5, 7)
    assert clip_by_value(.3)(g, 'w').abs().max() <= .3
    assert_equal(clip_by_norm(100.)(g, 'w'), g)
    assert clip_by_norm(1.)(torch.zeros(3), 'w').tolist() == [0, 0, 0]
    assert_equal(centralize(g).sum(1), torch.zeros(5), tol=1e-5)
    assert_equal(centralize(g[0], 'bias'), g[0])


def test_rows_are_shown_and_written(tmp_path):
    probe = Activations('blocks.*', every=1)
    assert 'nothing recorded' in probe._repr_markdown_()
    trainer([probe]).fit(2)
    table = probe._repr_markdown_()
    assert table.startswith('| step | at |') and '| 2 | blocks.0 |' in table and 'more' in table
    probe.write(tmp_path/'rows.jsonl')
    lines = (tmp_path/'rows.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == probe.rows
    assert probe.plot('std').get_xlabel() == 'step'


# ---- a step again

def make(folder=None, callbacks=(), seed=0, **kw):
    set_seed(seed)
    docs = ['Once upon a time there was a cat. ', 'It sat on the mat. ', 'Then it ran home. ']*20
    train, valid = batches(docs, ByteTokenizer(), B=2, T=T, valid_rows=2)
    model = GPT(GPTConfig(**SMALL | dict(vocab_size=257), dropout=.2))
    opt = Opt(model, muon(lr=.02, at=hidden), adamw(lr=1e-2))
    settings = dict(device='cpu', eval_every=3, dir=folder, keep=9) | kw
    return Trainer(model, opt, train, valid, callbacks=list(callbacks), **settings)


def files(folder): return {p: (p.stat().st_mtime_ns, p.is_dir()) for p in folder.rglob('*')}


@pytest.mark.parametrize('kw', [{}, dict(accumulate=2)], ids=['plain', 'accumulated'])
def test_each_step_of_a_run_is_done_again_to_the_bit(tmp_path, kw, monkeypatch):
    def again(): return make(tmp_path/'run', **kw)
    run = make(tmp_path/'run', **kw, save_every=4).fit(10)
    before, rng = files(tmp_path), rng_state()
    monkeypatch.chdir(tmp_path)
    for step in range(1, 11):
        for source in (run, tmp_path/'run'):
            got = replay(source, step, again)
            assert got.exact and got.step == step and got.begins == (step-1)//4*4
            assert got.line['loss'] == run.log[step-1]['loss'] and not got.not_finite
        assert len(got.batches) == kw.get('accumulate', 1) and len(got.text) == 2*len(got.batches)
    assert files(tmp_path) == before
    assert str(rng_state()) == str(rng)
    whole = math.sqrt(sum(n**2 for n in got.norms.values()))
    assert math.isclose(whole, run.log[9]['grad_norm'], rel_tol=1e-5)
    assert math.isclose(math.sqrt(sum(n**2 for n in got.layers.values())), whole, rel_tol=1e-6)
    assert list(got.layers) == ['embed', 'blocks.0', 'blocks.1', 'norm', 'head']
    for p, q in zip(got.trainer.model.parameters(), run.model.parameters()):
        assert torch.equal(p, q)                                  # it stands after the step


def test_a_step_of_a_run_that_was_prolonged(tmp_path):
    run = make(tmp_path, save_every=4).fit(8)
    run.fit(16)
    assert all(replay(tmp_path, step, make).exact for step in (10, 14, 16))
    with pytest.raises(ValueError, match='the run ends with step 16'): replay(run, 99, make)


def test_a_replay_shows_and_sends_nothing_but_keeps_what_steers(tmp_path, capsys):
    class Kept(Backend):
        calls = []
        def open(self, config, name): self.calls.append(name)
        def log(self, line, step): self.calls.append(step)
        def close(self): self.calls.append('close')
    def steep(grad, name): return grad*2
    def again():
        shown = [Lines(), Tracker(Kept())]
        return make(tmp_path, [*shown, GradientHooks([steep, clip_by_value(.01)]), WeightAverage()])
    again().fit(9)
    Kept.calls.clear()
    capsys.readouterr()
    assert replay(tmp_path, 7, again).exact
    assert not Kept.calls and not capsys.readouterr().out


def test_another_trainer_is_seen_to_be_another(tmp_path, capsys):
    make(tmp_path, save_every=4).fit(10)
    got = replay(tmp_path, 8, lambda: make(accumulate=2))
    assert not got.exact and got.differs == 5
    assert 'resumed with accumulate 2' in capsys.readouterr().out
    assert 'the log says' in repr(got) and 'differs from step 5' in repr(got)


def spoilt(at, where):
    "Makes a model whose `where` gives infinity when it sees the batch number `at`"
    def build(folder=None):
        run = make(folder, save_every=3)
        rows = [next(run.train) for _ in range(12)]
        for i, b in enumerate(rows): b['weight'] = torch.full((2, T), float(i))
        def loss(model, b):
            nll, _ = model(b['ids'], b['targets'])
            return nll.sum(), nll.numel()
        def break_it(module, args, out):
            return out*math.inf if run.batch['weight'][0, 0] == at else out
        run.model.get_submodule(where).register_forward_hook(break_it)
        run.train, run.loss = rows, loss
        return run
    return build


def test_a_bad_step_is_found_and_done_again(tmp_path):
    build = spoilt(7, 'blocks.1.mlp')
    with pytest.raises(FloatingPointError): build(tmp_path).fit(12)
    bad, = bad_steps(tmp_path)
    assert bad['step'] == 8 and bad['what'] == 'loss' and bad['path'].name == 'bad_batch_000007'
    assert '| 8 | loss |' in bad_steps(tmp_path)._repr_markdown_()
    before = files(tmp_path)
    got = replay(tmp_path, 8, build)
    assert got.begins == 6 and not got.logged and not math.isfinite(got.line['loss'])
    assert got.not_finite[0] == 'output of blocks.1.mlp'
    assert torch.equal(got.batches[0]['ids'], bad['batches'][0]['ids'])
    assert got.text is None or got.text == bad['text']
    assert 'not finite: output of blocks.1.mlp' in repr(got) and got._repr_markdown_()
    assert files(tmp_path) == before


def test_a_bad_step_with_one_checkpoint_reads_the_batches_that_were_kept(tmp_path):
    def build(): return spoilt(1, 'blocks.0.attn')(tmp_path)
    run = build()
    run.save_every = 0
    with pytest.raises(FloatingPointError): run.fit(12)
    got = replay(tmp_path, 2, build)
    assert got.begins == 1 and got.batches[0]['weight'][0, 0] == 1
    assert 'output of blocks.0.attn' in got.not_finite


HOSTILE = '<img src=x onerror=alert(1)>|`[a](javascript:b)\x1b]52;c;\x07\n# head'

def test_r01_what_others_wrote_is_text_in_tables():
    "Names of modules, texts of batches, and what a report says"
    probe = Probe()
    probe.rows = [dict(step=1, at=HOSTILE) | {HOSTILE: 1., 'said': HOSTILE}]
    bad = BadSteps([dict(step=1, what=HOSTILE, value=HOSTILE, text=[HOSTILE],
                         grad_norms={HOSTILE: 1.})])
    done = Replay(1, 0, [], [HOSTILE], dict(loss=1., grad_norm=1.), {}, {HOSTILE: 1.}, [HOSTILE],
                  None, None)
    for shown in (probe._repr_markdown_(), bad._repr_markdown_(), done._repr_markdown_()):
        assert '<img' not in shown and not set('\x1b\x07') & set(shown), shown
        assert not re.search(r'(?<!\\)\]\(javascript', shown) and '\n#' not in shown, shown
    rows = [r for r in bad._repr_markdown_().splitlines() if r.startswith('|')]
    assert len(rows) == 3 and rows[2].replace('\\|', '').count('|') == 6
    for plain in (repr(bad), repr(done)): assert not set('\x1b\x07') & set(plain)


@pytest.mark.parametrize('make, said', [
    (lambda: Probe(at=None), 'at must be a glob'), (lambda: Probe(at=[]), 'at is'),
    (lambda: Probe(at=[3]), 'at must be a glob'),
    (lambda: Activations(bins=-1), 'bins'), (lambda: AttentionMaps(heads=0), 'heads'),
    (lambda: AttentionMaps(tokens=1.5), 'tokens'), (lambda: AttentionMaps(batch=3), 'batch'),
    (lambda: ForwardHook('x'), 'f must be a function'), (lambda: GradientHooks('x'), 'hooks'),
    (lambda: GradientHooks([None]), 'hook'),
    (lambda: GradientHooks([centralize], at=5), 'at must be a glob'),
    (lambda: clip_by_norm(-1), 'limit'), (lambda: clip_by_value(math.nan), 'limit'),
    (lambda: make_hooks(5), 'config'), (lambda: make_hooks([5]), 'config'),
    (lambda: make_hooks('{'), 'config is no JSON'), (lambda: make_hooks('['*10**5), 'config'),
    (lambda: attention_weights(None, {}), 'model'), (lambda: attention_entropy(3), 'weights'),
    (lambda: replay('x', 1, None), 'make'), (lambda: replay(None, 1, print), 'path'),
    (lambda: bad_steps('nowhere'), 'nowhere'), (lambda: bad_steps(''), 'path')])
def test_r11_diagnostics_that_make_no_sense(make, said):
    with pytest.raises((TypeError, ValueError, OSError), match=said): make()


def test_r06_a_report_that_no_trainer_wrote(tmp_path):
    for i, report in enumerate(({}, 5, [], dict(step=1))):
        path = save_checkpoint(tmp_path/f'{i}'/'bad_batch_000001', report=report)
        with pytest.raises(ValueError, match='bad_batch_000001 was not written by a Trainer'):
            bad_steps(path.parent)


def test_a_folder_without_bad_steps(tmp_path): assert bad_steps(tmp_path) == []


def test_what_a_replay_refuses(tmp_path):
    run = make(tmp_path, save_every=4).fit(6)
    for step in (0, -1, 1.5, '3'):
        with pytest.raises((TypeError, ValueError), match='step must be'): replay(run, step, make)
    for wrong in (lambda: None, lambda: run):
        with pytest.raises(TypeError, match='before its first step'): replay(run, 3, wrong)
    with pytest.raises(ValueError, match='has no folder'): replay(make(), 3, make)
    with pytest.raises(FileNotFoundError): replay(tmp_path/'none', 3, make)

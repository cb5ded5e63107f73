"""Averages of weights are what a plain formula says, and change nothing; a run that no longer
improves ends, and what it counted survives a resume."""
import math

import pytest
import torch

from gptlab.all import *

V, T = 16, 12
SMALL = dict(vocab_size=V, n_layers=1, n_heads=2, d_model=16, context_length=T)


def batch(seed=0, B=2):
    rows = torch.randint(0, V, (B, T+1), generator=torch.Generator().manual_seed(seed))
    return dict(ids=rows[:, :-1], targets=rows[:, 1:])


def trainer(callbacks, kind=Trainer, tie=True, **kw):
    set_seed(0)
    model = GPT(GPTConfig(**SMALL, dropout=.2, tie=tie, init=gpt2_init))
    opt = Opt(model, adamw(lr=1e-2))
    data = [batch(i) for i in range(4)]
    settings = dict(device='cpu', eval_every=2) | kw
    return kind(model, opt, data, data[:1], callbacks=callbacks, **settings)


class Copies:
    "Keeps the weights after each step, each parameter once"
    def __init__(self): self.all = []
    def after_step(self, t):
        self.all.append({k: p.detach().double().clone() for k, p in t.model.named_parameters()})


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- what the averages are

@pytest.mark.parametrize('tie', [True, False])
@pytest.mark.parametrize('decay', [.5, .9, .9999])
def test_the_moving_average_is_the_formula_without_its_bias(decay, tie):
    average, copies = WeightAverage(decay), Copies()
    trainer([average, copies], tie=tie).fit(15)
    n = len(copies.all)
    shares = [(1-decay)*decay**(n-1-i)/(1-decay**n) for i in range(n)]
    assert math.isclose(sum(shares), 1) and average.n == n
    for name, mean in average.tensors.items():
        expected = sum(s*c[name] for s, c in zip(shares, copies.all))
        assert_equal(mean.double(), expected, tol=1e-6)
    assert ('head.weight' in average.tensors) != tie              # tied: once


def test_weights_that_stay_are_their_own_average_from_the_first_step():
    average, model = WeightAverage(.999), GPT(GPTConfig(**SMALL))
    for _ in range(5):
        average.update(model)
        assert same(average.tensors, {k: p.detach() for k, p in model.named_parameters()})


@pytest.mark.parametrize('budget, fraction, n', [
    (dict(steps=20), .2, 4), (dict(steps=20), .1, 2), (dict(steps=20), 1., 20),
    (dict(steps=20), .01, 1), (dict(tokens=20*2*T), .5, 10), (dict(epochs=5), .2, 4)])
def test_the_tail_is_the_mean_of_the_last_part(budget, fraction, n):
    tail, copies = TailAverage(fraction), Copies()
    trainer([tail, copies], eval_every=0).fit(**budget)
    assert tail.n == n and len(copies.all) == 20
    for name, mean in tail.tensors.items():
        expected = torch.stack([c[name] for c in copies.all[-n:]]).mean(0)
        assert_equal(mean.double(), expected, tol=1e-6)


def test_a_budget_that_is_raised_begins_the_tail_anew():
    tail = TailAverage(.5)
    run = trainer([tail]).fit(8)
    assert tail.n == 4
    run.fit(40)
    assert tail.n == 20


def test_parameters_in_bfloat16_are_averaged_in_float32():
    model = GPT(GPTConfig(**SMALL)).to(torch.bfloat16)
    average = WeightAverage(.999)
    for _ in range(3):
        average.update(model)
        with torch.no_grad():
            for p in model.parameters(): p.add_(.25)
    own = {k: p.detach().clone() for k, p in model.named_parameters()}
    assert {t.dtype for t in average.tensors.values()} == {torch.float32}
    with average.weights(model):
        for k, p in model.named_parameters(): assert torch.equal(p, average.tensors[k].bfloat16())
    assert same(own, {k: p.detach() for k, p in model.named_parameters()})


def test_a_skipped_step_does_not_count():
    def bad(model, b, calls=[0]):
        calls[0] += 1
        total, n = lm_loss(model, b)
        return total*(math.nan if calls[0] == 3 else 1), n
    average = WeightAverage(.9)
    trainer([average], loss=bad, on_nan='skip').fit(6)
    assert average.n == 5 and all(t.isfinite().all() for t in average.tensors.values())


@pytest.mark.parametrize('saved', [True, False], ids=['from a checkpoint', 'from memory'])
def test_a_run_that_goes_back_takes_its_averages_along(tmp_path, saved):
    "On a GPU a bad step is seen late: the average has taken in its weights by then"
    def bad(model, b, calls=[0]):
        calls[0] += 1
        total, n = lm_loss(model, b)
        return total*(math.nan if calls[0] == 6 else 1), n
    average, copies, stop = WeightAverage(.9), Copies(), EarlyStop(key='valid')
    run = trainer([average, copies, stop], loss=bad, on_nan='rewind', dir=tmp_path,
                  save_every=2*saved)
    run.read_late = True
    run.fit(10)
    assert run.step == average.n == 10 and stop.seen == 10
    assert all(t.isfinite().all() for t in average.tensors.values())


# ---- they change nothing

@pytest.mark.parametrize('kw', [{}, dict(accumulate=2)], ids=['plain', 'accumulated'])
def test_weights_are_equal_to_the_bit_with_averages_and_without(kw):
    averages = [WeightAverage(.9), WeightAverage(.99, 'long'), TailAverage(.5)]
    a = trainer(averages, **kw, eval_every=1).fit(6)
    b = trainer([], **kw, eval_every=3).fit(6)
    assert same(a.model.state_dict(), b.model.state_dict())
    assert [r['loss'] for r in a.log] == [r['loss'] for r in b.log]
    assert a.log[-1]['valid'] == b.log[-1]['valid']


def test_no_number_is_read_in_an_update():
    class Reads(torch.overrides.TorchFunctionMode):
        n = 0
        def __torch_function__(self, f, types, args=(), kwargs=None):
            waits = 'item', 'tolist', '__bool__', '__float__', '__int__', 'cpu', 'numpy'
            self.n += getattr(f, '__name__', '') in waits
            return f(*args, **kwargs or {})
    run = trainer([WeightAverage(), TailAverage(1.)])
    run.budget = 'steps', 9
    run.one_step()
    with Reads() as reads: run.call('after_step')
    assert reads.n == 0 and [c.n for c in run.callbacks] == [2, 2]


def test_the_weights_come_back_when_the_block_fails():
    average = WeightAverage(.9)
    run = trainer([average]).fit(5)
    own = {k: v.clone() for k, v in run.model.state_dict().items()}
    with pytest.raises(KeyError), average.weights(run.model) as model:
        assert not same(own, model.state_dict())
        assert model.head.weight is model.embed.weight            # tied as before
        raise KeyError
    assert same(own, run.model.state_dict())


def test_the_log_has_the_score_of_the_average():
    average, seen = WeightAverage(.9), []
    class After:
        def after_eval(self, t): seen.append(t.log[-1].copy())
    run = trainer([After(), average]).fit(6)                      # whatever the order
    with average.weights(run.model): score = evaluate(run.model, run.valid, verbose=False)
    assert run.log[-1]['valid_average'] == score.loss != run.log[-1]['valid']
    assert [r['step'] for r in run.log if 'valid_average' in r] == [2, 4, 6]
    assert seen[-1]['valid_average'] == score.loss


def test_a_compiled_model_is_averaged_under_its_plain_names():
    average = WeightAverage(.9)
    run = trainer([average])
    plain, run.model = run.model, torch.compile(run.model, backend='eager')
    average.update(run.model)
    assert average.tensors.keys() == dict(plain.named_parameters()).keys()
    with average.weights(run.model): pass


# ---- saved

@pytest.mark.parametrize('at', [1, 5, 8])
def test_a_resumed_run_has_the_same_averages_to_the_bit(tmp_path, at):
    def averages(): return [WeightAverage(.9), TailAverage(.5)]
    whole, half = trainer(averages()).fit(10), trainer(averages(), dir=tmp_path)
    half.budget = 'steps', 10
    for _ in range(at): half.one_step()
    half.save()
    set_seed(7)
    rest = trainer(averages(), dir=tmp_path).resume().fit()
    for a, b in zip(whole.callbacks, rest.callbacks):
        assert a.n == b.n and same(a.tensors, b.tensors)
    assert same(whole.model.state_dict(), rest.model.state_dict())
    assert whole.log[-1]['valid_tail'] == rest.log[-1]['valid_tail']


def test_the_average_of_a_checkpoint(tmp_path):
    averages = [WeightAverage(.9), TailAverage(.5), WeightAverage(.99, 'long')]
    run = trainer([Copies(), *averages], dir=tmp_path, save_every=4, keep=9).fit(10)
    for average in averages:
        model, tok = load_average(tmp_path, average.name, device='cpu')
        assert tok is None and not model.training and model.head.weight is model.embed.weight
        assert same(average.tensors, {k: p.detach() for k, p in model.named_parameters()})
    early, _ = load_average(tmp_path, 'average', device='cpu', which=4)
    assert not torch.equal(early.embed.weight, averages[0].tensors['embed.weight'])
    raw, _ = load_model(tmp_path, device='cpu')
    assert same(raw.state_dict(), run.model.state_dict())
    with pytest.raises(ValueError, match='holds average, tail, long$'): load_average(tmp_path)
    with pytest.raises(ValueError, match="not one called 'mean'"): load_average(tmp_path, 'mean')
    with pytest.raises(ValueError, match='holds average, long;'):  # the tail had not begun
        load_average(tmp_path, 'tail', which=4)


def test_the_only_average_needs_no_name(tmp_path):
    run = trainer([WeightAverage(.9, 'mine')], dir=tmp_path).fit(3)
    model, _ = load_average(tmp_path, device='cpu')
    assert torch.equal(model.embed.weight, run.callbacks[0].tensors['embed.weight'])


def test_what_averages_refuse():
    for decay in (0, 1, -1, 2, math.nan):
        with pytest.raises(ValueError, match='decay'): WeightAverage(decay)
    for fraction in (0, 1.1, -1, math.nan):
        with pytest.raises(ValueError, match='fraction'): TailAverage(fraction)
    average, model = WeightAverage(.9), GPT(GPTConfig(**SMALL))
    with pytest.raises(ValueError, match='nothing to look through'):
        with average.weights(model): pass
    average.update(model)
    other = GPT(GPTConfig(**SMALL | dict(n_layers=2)))
    with pytest.raises(ValueError, match='other parameters: blocks.1'): average.copy_to(other)
    with pytest.raises(ValueError, match='other parameters'): average.update(other)
    with pytest.raises(ValueError, match="two averages are called 'average'"):
        trainer([WeightAverage(.9), WeightAverage(.99)]).fit(1)
    for state in ({}, EarlyStop().state_dict(), TailAverage().state_dict()):
        with pytest.raises(ValueError, match='order'): average.load_state_dict(state)


# ---- early stopping

class Given(Trainer):
    "Its validations are given"
    def evaluate(self):
        self.call('before_eval')
        value = self.values[min(self.step, len(self.values)) - 1]
        self.log[-1] |= dict(valid=value, bpb=value)
        self.call('after_eval')


def given(values, stop, **kw):
    run = trainer([stop], kind=Given, **dict(eval_every=1) | kw)
    run.values = values
    return run


@pytest.mark.parametrize('values, kw, ends', [
    ([3, 2, 2.5, 2.4, 2.6], dict(patience=3), 5),
    ([3, 2, 2.5, 1.9, 2.6, 2, 1.8, 2, 2], dict(patience=2), 6),
    ([3, 2.9, 2.8, 2.7], dict(patience=2, min_delta=.5), 3),
    ([3, 3, 3], dict(patience=2), 3),
    ([3, math.nan, math.inf], dict(patience=2, key='valid'), 3),
    ([9, 8, 7, 6, 5, 4, 3, 2], dict(patience=1), 8)])
def test_when_it_stops(values, kw, ends, capsys):
    stop = EarlyStop(**kw)
    run = given(values, stop).fit(len(values))
    assert run.step == ends
    said = capsys.readouterr().out
    assert ('stopped early' in said) == (ends < len(values))
    if ends < len(values): assert f'step {ends}: {stop.key}' in said and f'{stop.best:.4f}' in said


def test_the_best_is_saved_and_stays(tmp_path):
    values = [3, 2, 1, 2, 2, 2, 2, 2]
    run = given(values, EarlyStop(patience=4), dir=tmp_path).fit(20)
    assert run.step == 7 and run.keep['best'] == 1
    names = [p.name for p in sorted(tmp_path.glob('step_*'))]
    assert find_checkpoint(tmp_path, 'best').name == 'step_000003' in names
    assert names[-1] == 'step_000007'
    run = given(values, EarlyStop(), dir=tmp_path/'own', keep=dict(keep=1, best=3)).fit(2)
    assert run.keep == dict(keep=1, best=3)                       # what was chosen stays


def test_a_second_fit_has_new_patience():
    run = given([3, 2] + [4]*50, EarlyStop(patience=3)).fit(50)
    assert run.step == 5
    assert run.fit().step == 8
    run.evaluate()                                                # scored twice counts once
    assert run.callbacks[0].waited == 3 and run.callbacks[0].best == 2


@pytest.mark.parametrize('at', range(1, 5))
def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path, at):
    values = [3, 2, 2.5, 2.4, 2.6, 1]
    whole = given(values, EarlyStop(patience=3)).fit(20)
    given(values, EarlyStop(patience=3), dir=tmp_path, save_every=1, keep=9).fit(20)
    run = given(values, EarlyStop(patience=3), dir=tmp_path, save_every=1, keep=9)
    run.resume(which=at).fit()
    assert run.step == whole.step == 5
    assert run.callbacks[0].state_dict() == whole.callbacks[0].state_dict()


def test_stopping_by_the_average_in_any_order():
    for callbacks in ([EarlyStop(1, key='valid_average'), WeightAverage(.9)],
                      [WeightAverage(.9), EarlyStop(1, key='valid_average')]):
        run = trainer(callbacks).fit(6)
        stop = next(c for c in callbacks if isinstance(c, EarlyStop))
        assert stop.best in [r.get('valid_average') for r in run.log]


def test_what_early_stopping_refuses(capsys):
    for kw in (dict(patience=0), dict(patience=1.5), dict(min_delta=-1), dict(min_delta=math.nan)):
        with pytest.raises((TypeError, ValueError), match=next(iter(kw))): EarlyStop(**kw)
    with pytest.raises(ValueError, match='looks at validations'):
        trainer([EarlyStop()], eval_every=0).fit(2)
    with pytest.raises(ValueError, match='order'):
        EarlyStop().load_state_dict(WeightAverage().state_dict())
    trainer([EarlyStop()]).fit(2)
    assert "give key='valid'" in capsys.readouterr().out          # these ids stand for no bytes
    trainer([EarlyStop(key='bits')]).fit(2)
    assert "the log has no 'bits' to stop by; it has step" in capsys.readouterr().out

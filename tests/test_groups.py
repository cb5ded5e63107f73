"""Groups from a file, growth of rows and batches, branches: what they give, what they refuse, and
that a run with all of it ends the same when it was killed.
"""
import math
import os
import random
import re
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch

from common import refuses, write
from gptlab.checkpoints import checkpoints_in, latest_checkpoint, load_checkpoint
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.groups import (check_groups, cool_down, doubling, group_settings, group_table,
                           GrowBatch, GrowLength, hlb_at, hlb_groups, hlb_rates, lab_at,
                           lab_groups, make_groups, Microbatches, read_groups, write_groups)
from gptlab.model import GPT, GPTConfig, lm_loss
from gptlab.optimizers import adamw, Group, hidden, muon, Opt, sgd
from gptlab.packing import batches
from gptlab.schedules import apply_schedule, by_loss, constant, cosine, exponential, linear
from gptlab.schedules import piecewise_linear, power_law, wsd
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from kills import Forks
from test_resume import posix, same

OPTIM = """
default:
  opt: "adamw"
  eps: 1e-10
  weight_decay: 1e-3
embeddings: {opt: adamw, lr: .3, betas: [.8, .995], eps: 1e-10, weight_decay: 1e-3}
transformer: {opt: muon, lr: 2e-2, momentum: .95, ns_steps: 5, beta: .9, weight_decay: .28}
head: {opt: adamw, lr: 8e-3, betas: [.8, .96], weight_decay: 1e-2}
residual_hiddens: {opt: adamw, lr: 5e-3, betas: [.8, .95], weight_decay: .05}
residual_inputs: {opt: adamw, lr: .5, betas: [.96, .95], weight_decay: 0.0}
value_embeds: {opt: adamw, lr: .15, betas: [.8, .995], eps: 1e-10, weight_decay: 1e-2}
"""


def plain_muon(beta=.9, **kw): return muon(**kw)

RULES = dict(adamw=adamw, muon=plain_muon)



def without_places(v):
    "As text, the same in every process: no function says where in memory it is"
    return re.sub(r' at 0x[0-9a-f]+', '', str(v))


@pytest.fixture
def settings(tmp_path): return read_groups(write(tmp_path/'optim.yaml', OPTIM))


# ---- the file

def test_the_file_of_gpt_lab_is_read_with_numbers_as_numbers(settings):
    assert settings.keys() == {'default', *lab_at}
    assert settings['default'] == dict(opt='adamw', eps=1e-10, weight_decay=1e-3)
    assert settings['embeddings']['betas'] == (.8, .995)
    assert all(isinstance(g['lr'], float) for n, g in settings.items() if n != 'default')


def test_it_is_written_and_read_as_it_was(settings, tmp_path):
    again = write_groups(settings, tmp_path/'again.yaml')
    assert read_groups(again) == settings
    text = again.read_text()
    assert write_groups(read_groups(again), again).read_text() == text
    import yaml
    assert yaml.safe_load(text)['default']['eps'] == 1e-10         # a number to other readers


@pytest.mark.parametrize('seed', range(8))
def test_any_groups_come_back(seed, tmp_path):
    rng = random.Random(seed)
    names = ['a', 'head', 'true', '1', 'x: y', '- z', 'é\u2028', '#', "it's", 'null', '']
    values = [1e-10, 1e22, 3, 0, -2.5, True, False, None, 'adamw', 'a: b', 'no', '~', '{x}', '# c',
              (1., .5), ('a', 2), 1e-300, 12345678901234567890, 'two\nlines']
    made = {n: {k: rng.choice(values) for k in rng.sample(names, 3)} for n in rng.sample(names, 4)}
    assert read_groups(write_groups(made, tmp_path/'x.yaml')) == made


def test_a_file_that_is_there_stays_when_writing_is_refused(tmp_path):
    there = write(tmp_path/'optim.yaml', OPTIM)
    with refuses(ValueError, 'group'): write_groups({'head': {}}, there)
    with refuses(ValueError, 'head.lr'): write_groups({'head': {'lr': object()}}, there)
    assert there.read_text() == OPTIM


@pytest.mark.parametrize('text, said', [
    ('', 'must hold groups'), ('3', 'must hold groups'), ('- a', 'must hold groups'),
    ('head: 3', "group 'head' must hold settings"), ('head:', "group 'head' must hold settings"),
    ('head: {}', "group 'head' must hold settings"), ('head: {lr: {a: 1}}', 'head.lr'),
    ('head: {lr: []}', 'head.lr'), ('head: {betas: [[1]]}', 'head.betas'),
    ('head: {betas: [' + '1,'*20 + ']}', 'head.betas'), ('1: {lr: 1}', 'name of a group is text'),
    ('head: {lr: 2020-01-01}', 'head.lr'), ('head: {lr: !!binary aGk=}', 'head.lr'),
    ('head: {lr: 1', 'no YAML'), ('head: &a [*a', 'no YAML'), ('\t', 'no YAML'),
    ('head: {lr: 1}\nhead: {lr: 2}', "'head' twice"), ('head: {lr: 1, lr: 2}', "'lr' twice"),
    ('a: !!python/object/apply:os.system ["true"]', 'no YAML'), ('['*1200, 'no YAML'),
    ('head: {lr: 1}\n---\nhead: {lr: 1}', 'no YAML')], ids=lambda v: repr(v)[:30])
def test_what_is_no_file_of_groups_is_refused(text, said, tmp_path):
    with refuses(ValueError, said): read_groups(write(tmp_path/'x.yaml', text))


def test_other_files_are_refused(tmp_path):
    with refuses(ValueError, 'no YAML'): read_groups(write(tmp_path/'x.yaml', b'\xff\xfe\x00'))
    with refuses(ValueError, '1 MB'): read_groups(write(tmp_path/'x.yaml', b'#'*(2**20 + 1)))
    with pytest.raises(FileNotFoundError, match='nowhere'): read_groups(tmp_path/'nowhere.yaml')
    with pytest.raises(OSError): read_groups(tmp_path)


def test_aliases_that_multiply_do_not_hang(tmp_path):
    lines = ['a0: &a0 [x, x]'] + [f'a{i}: &a{i} [*a{i-1}, *a{i-1}]' for i in range(1, 60)]
    begun = time.process_time()
    with refuses(ValueError, 'must hold settings'):
        read_groups(write(tmp_path/'x.yaml', '\n'.join(lines)))
    assert time.process_time() - begun < 2


# ---- groups

AT = dict(matrices=hidden, rest=None)


def test_the_order_is_base_then_default_then_the_group():
    base = dict(rest=dict(opt='sgd', lr=1., weight_decay=.9))
    over = dict(default=dict(opt='adamw', weight_decay=.5), matrices=dict(opt='muon', lr=.1))
    rest = make_groups(over, AT, base=base)['rest']
    assert rest.rule is adamw().rule and (rest.settings['lr'], rest.settings['wd']) == (1., .5)
    over['rest'] = dict(weight_decay=.1)
    assert make_groups(over, AT, base=base)['rest'].settings['wd'] == .1
    assert make_groups(dict(matrices=dict(opt='muon', lr=.1)), AT, base=base)['rest'].rule \
        is sgd().rule


def test_a_default_that_a_rule_does_not_have_is_left_out_for_it():
    made = make_groups(dict(default=dict(eps=1e-5, lr=1., opt='adamw'), matrices=dict(opt='muon')),
                       AT)
    assert made['rest'].settings['eps'] == 1e-5 and 'eps' not in made['matrices'].settings


def good(**kw):
    made = dict(matrices=dict(opt='muon', lr=.02), rest=dict(opt='adamw', lr=1e-3))
    return {k: v | kw.get(k, {}) for k, v in made.items()}


@pytest.mark.parametrize('kw, said', [
    (dict(settings=good() | dict(rst=dict(lr=1))), "no group 'rst'; did you mean rest?"),
    (dict(settings=good(rest=dict(weight_decy=1))), 'did you mean weight_decay?'),
    (dict(settings=good(rest=dict(wd=1))), "'wd', which is no setting"),
    (dict(settings=good(matrices=dict(beta=.9))), "'beta'"),
    (dict(settings=good(rest=dict(opt='adamv'))), 'did you mean adamw?'),
    (dict(settings=good(rest=dict(opt=3))), 'no rule is called 3'),
    (dict(settings=good(rest=dict(lr='fast'))), "group 'rest': adamw: lr"),
    (dict(settings=good(rest=dict(lr=-1))), "group 'rest': adamw: lr"),
    (dict(settings=good(rest=dict(lr=float('nan')))), "group 'rest': adamw: lr"),
    (dict(settings=good(rest=dict(betas=(.9, 1.)))), "group 'rest': adamw: betas"),
    (dict(settings=good(rest=dict(at='x'))), "'at', which is no setting"),
    (dict(settings=good() | dict(default=dict(epps=1))), "'default' has 'epps'"),
    (dict(settings=good() | dict(default=dict(epps=1))), 'did you mean eps?'),
    (dict(settings=dict(matrices=dict(opt='muon', lr=1))), "group 'rest' has no rule"),
    (dict(settings=good() | dict(rest=dict(opt='adamw'))), "group 'rest' has no learning rate"),
    (dict(settings=good(), base=dict(rst=dict(lr=1))), 'did you mean rest?'),
    (dict(settings=good(), at={}), 'at is empty'),
    (dict(settings=good(), at=dict(matrices=hidden)), "no group 'rest'"),
    (dict(settings=dict(rest={})), "group 'rest' must hold settings")],
    ids=lambda v: without_places(v)[-60:])
def test_groups_that_are_none_are_refused(kw, said):
    with refuses(ValueError, said): make_groups(**dict(at=AT) | kw)


@pytest.mark.parametrize('kw, said', [
    (dict(settings=[1]), 'settings'), (dict(at=['x']), 'at must be a dict'),
    (dict(at=dict(matrices=3, rest=None)), 'a glob such as'), (dict(rules=[adamw]), 'rules'),
    (dict(at=dict(matrices=[], rest=None)), 'a glob such as'),
    (dict(rules=dict(adamw='adamw')), "rules['adamw']"),
    (dict(rules=dict(adamw=lambda **kw: 3, muon=muon)), 'a Group'),
    (dict(rules=dict(adamw=lambda lr, **kw: adamw(lr, **kw), muon=muon)), 'give lr one')],
    ids=lambda v: without_places(v)[-40:])
def test_other_kinds_are_refused(kw, said):
    with refuses(TypeError, said): make_groups(**dict(settings=good(), at=AT) | kw)


def test_a_rule_of_ones_own_is_a_function_that_makes_a_group():
    def sign(grad, state, strength=1.): return strength*grad.sign()
    rules = dict(mine=lambda **kw: Group(sign, **kw))
    made = make_groups(dict(rest=dict(opt='mine', lr=.1, strength=2.)), dict(rest=None), rules)
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([3., -1.])
    Opt([p], *made.values()).step()
    assert torch.allclose(p, torch.tensor([.8, 1.2]))


def test_groups_are_said_as_a_file_says_them(settings, tmp_path):
    made = make_groups(settings, lab_at, RULES)
    said = group_settings(made, RULES)
    again = make_groups(read_groups(write_groups(said, tmp_path/'x.yaml')), lab_at, RULES)
    assert {k: g.settings for k, g in again.items()} == {k: g.settings for k, g in made.items()}
    assert [g.rule for g in again.values()] == [g.rule for g in made.values()]
    for name, group in said.items():                                 # nothing that was not there
        assert {k: v for k, v in group.items() if k != 'opt'}.items() <= \
            (settings['default'] | settings[name]).items()
    more = dict(a=adamw(fused=True, schedule=constant()), b=muon(series='jordan'), c=sgd(.1, .9))
    assert group_settings(more) == dict(
        a=dict(opt='adamw', lr=1e-3, weight_decay=0., fused=True),
        b=dict(opt='muon', lr=.02, weight_decay=0., series='jordan'),
        c=dict(opt='sgd', lr=.1, weight_decay=0., momentum=.9))
    with refuses(ValueError, "group 'b' follows another rule"):
        group_settings(more, dict(adamw=adamw))
    with refuses(TypeError, "groups['a']"): group_settings(dict(a=3))


# ---- who takes what

def model(seed=0, **kw):
    set_seed(seed)
    sizes = dict(vocab_size=257, context_length=16, n_layers=2, n_heads=2, d_model=16)
    return GPT(GPTConfig(**sizes | kw))


def test_each_parameter_belongs_to_one_group_and_no_group_is_empty():
    net, make = model(), partial(make_groups, good())
    names = {n for n, _ in net.named_parameters()}
    taken = check_groups(net, make(at=AT))
    assert set(sum(taken.values(), [])) == names and taken['matrices']
    with refuses(ValueError, 'claimed twice', 'head.weight (matrices and rest)', 'narrow'):
        check_groups(net, make(at=dict(matrices='head.*', rest='*')))
    with refuses(ValueError, 'no group claims', 'embed.weight', 'at=None'):
        check_groups(net, make(at=dict(matrices=hidden, rest='head.*')))
    with refuses(ValueError, 'group matrices claims no parameter'):
        check_groups(net, make(at=dict(matrices='nothing.*', rest='*')))
    for p in net.head.parameters(): p.requires_grad_(False)
    with refuses(ValueError, 'group matrices claims no parameter'):  # frozen ones do not count
        check_groups(net, make(at=dict(matrices='head.*', rest=None)))


def test_what_it_says_is_what_the_optimizer_does():
    net, groups = model(), make_groups(good(), AT)
    taken = check_groups(net, groups)
    assert [g['param_names'] for g in Opt(net, *groups.values()).param_groups] == [*taken.values()]
    ordered = dict(a=adamw(at=lambda n, p, m: 'norm' in n), b=adamw(at=lambda n, p, m: '1' in n),
                   c=adamw())
    taken = check_groups(net, ordered, first_wins=True)
    assert [g['param_names'] for g in Opt(net, *ordered.values()).param_groups] == [*taken.values()]
    with refuses(ValueError, 'claimed twice'): check_groups(net, ordered)


def test_the_table_has_the_names_and_counts_of_the_groups():
    net = model()
    groups = dict(ends=adamw(lr=.1, at='head.*'), mats=muon(wd=.5, at=hidden), rest=adamw())
    rows = group_table(net, groups)
    said = [[r[k] for k in ('group', 'rule', 'lr', 'wd')] for r in rows]
    assert said == [['ends', 'adamw', '0.1', '0'], ['mats', 'muon', '0.02', '0.5'],
                    ['rest', 'adamw', '0.001', '0']]
    assert sum(int(r['parameters'].replace(',', '')) for r in rows) == net.n_params()
    assert [r['tensors'] for r in rows] == [len(v) for v in check_groups(net, groups).values()]
    twice = groups | dict(more=sgd(at='head.*'))
    with refuses(ValueError, 'claimed twice'): group_table(net, twice)


# ---- gpt-lab

@pytest.mark.parametrize('width, factor', [(768, 1.), (192, 2.), (3072, .5),
                                           (256, 1.7320508), (1280, .7745967)])
def test_gpt_labs_rates_fall_with_the_width_and_its_decay_is_scaled_once(width, factor, settings):
    made = lab_groups(settings, width, decay_scale=6.290672, rules=RULES)
    lr = {k: g.settings['lr'] for k, g in made.items()}
    wd = {k: g.settings['wd'] for k, g in made.items()}
    scaled = dict(embeddings=.3*factor, value_embeds=.15*factor, head=.008*factor)
    rest = dict(transformer=.02, residual_hiddens=.005, residual_inputs=.5)
    assert lr == pytest.approx(scaled | rest, rel=1e-6)
    assert wd == pytest.approx(dict(embeddings=1e-3, transformer=.28*6.290672, head=.01,
                                    residual_hiddens=.05, residual_inputs=0., value_embeds=.01))
    again = lab_groups(settings, width, decay_scale=6.290672, rules=RULES)
    assert {k: g.settings['lr'] for k, g in again.items()} == lr     # the settings were not changed
    assert made['transformer'].settings['momentum'] == .95 and made['head'].settings['eps'] == 1e-10


def test_gpt_labs_settings_that_are_none(settings):
    with refuses(ValueError, "'beta'"): lab_groups(settings, 64)     # plain Muon has none
    with refuses(ValueError, 'width'): lab_groups(settings, 0)
    with refuses(ValueError, 'decay_scale'): lab_groups(settings, 64, -1.)


def test_momentum_does_not_follow_the_rate():
    "gpt-lab multiplies Muon's momentum by the multiplier of the learning rate"
    seen = []
    class Look:
        def after_step(self, run):
            g = run.opt.param_groups[0]
            seen.append((g['lr'], g['momentum'], run.opt.param_groups[1]['betas']))
    net, train, valid = model(), *batches(make_stories(20), ByteTokenizer(), B=2, T=16)
    N = 20
    nanochat = piecewise_linear((0, .85/.95), (.3, .97/.95), (.6, .97/.95), (1, .90/.95))
    for plan, wanted in ((wsd(.2, .65, .05), lambda p: .95),
                         (dict(lr=wsd(.2, .65, .05), momentum=nanochat),
                          lambda p: .95*nanochat(p))):
        seen.clear()
        own = adamw(schedule=dict(momentum=constant()))
        Trainer(net, Opt(net, muon(), own), train, callbacks=[Look()], schedule=plan,
                device='cpu').fit(N)
        ps = [(s + .5)/N for s in range(N)]
        assert [lr for lr, *_ in seen] == pytest.approx([.02*wsd(.2, .65, .05)(p) for p in ps])
        assert [m for _, m, _ in seen] == pytest.approx([wanted(p) for p in ps])
        assert {b for *_, b in seen} == {(.9, .95)}
        assert min(lr for lr, *_ in seen) < .004                      # while the rate did fall


# ---- hlb-gpt

@pytest.mark.parametrize('n, lr, base, power', [
    (27_805_189, 3.259006e-3, 8.10925, -.383515), (46_009_736, 2.525870e-3, 7.22228, -.381301),
    (353_410_969, 9.649678e-4, 4.66359, -.373052)])
def test_hlb_gpts_numbers(n, lr, base, power):
    found = hlb_rates(n)
    assert found['lr'] == pytest.approx(lr, rel=1e-6)
    assert found['decay_base'] == pytest.approx(base, rel=1e-5)
    slope = math.log(found['expected'](1000)/found['expected'](10))/math.log(1000.01/10.01)
    assert slope == pytest.approx(power, abs=1e-6)


def test_hlb_gpts_expected_gradients():
    expected = hlb_rates(46_009_736)['expected']
    golden = {0: 2.31964e-3, 5: 2.16756e-4, 100: 6.92152e-5, 995: 2.88235e-5}
    assert {t: expected(t) for t in golden} == pytest.approx(golden, rel=1e-5)


def test_hlb_gpts_groups_are_taken_in_order_and_follow_their_curves():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False)
            o, norm = torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)
            self.block = torch.nn.ModuleDict(dict(o=o, norm=norm))
            self.block['pos'] = torch.nn.Module()
            self.block['pos'].m = torch.nn.Parameter(torch.ones(1))
    net, groups = Net(), hlb_groups(46_009_736)
    taken = check_groups(net, groups, first_wins=True)
    assert taken == dict(position_bias=['block.pos.m'], output=['head.weight'],
                         norms=['embed.weight', 'block.o.bias', 'block.norm.weight',
                                'block.norm.bias'], decay=['block.o.weight'])
    opt = Opt(net, *groups.values())
    lr, f = 2.525870e-3, {50: .51, 100: 1., 101: .946058, 200: .691280, 999: .580310}
    for t, value in f.items():
        apply_schedule(opt, wsd(), .5, dict(step=t, loss=3.8))     # the common one is not asked
        bias, norms, out, decay = opt.param_groups
        wanted = [100*lr*.995**t, 32*lr*value, 2*lr*(t+1)**-.2, lr*value]
        assert [g['lr'] for g in opt.param_groups] == pytest.approx(wanted, rel=1e-5)
        assert decay['wd'] == pytest.approx(8.733e-3, rel=1e-3)
        assert [g['wd'] for g in (bias, norms, out)] == [0, 0, 0]
        assert [g['betas'] for g in (bias, norms, out, decay)] == [
            (.9, .95), (.9, .95), (.6, .95), (.9, .95)]
    with refuses(ValueError, 'position_bias'): hlb_groups(99, at=dict(x=None))
    with refuses(ValueError, 'lr'): hlb_groups(99, lr=-1.)
    with refuses(ValueError, 'n_params'): hlb_rates(2)
    assert [*hlb_at] == [*groups]


# ---- growth

def small(seed=0, dir=None, schedule=None, T=16, B=4, context=64, opt=None, **kw):
    "A small run, ready to fit"
    set_seed(seed)
    train, valid = batches(make_stories(60), ByteTokenizer(), B=B, T=T, valid_rows=4)
    net = model(context_length=context, dropout=.1)
    groups = opt or [muon(at=hidden, wd=.1), adamw(lr=3e-3)]
    return Trainer(net, Opt(net, *groups), train, valid, dir=dir, device='cpu',
                   schedule=schedule or constant(), **dict(callbacks=[], eval_every=0) | kw)


def test_doubling():
    assert doubling() == {0: 32, 80: 64, 160: 128, 240: 256, 320: 512, 400: 1024}
    assert doubling(3, 5, 10) == {0: 3, 5: 6, 10: 10} and doubling(7, 1, 7) == {0: 7}
    with refuses(ValueError, 'limit'): doubling(32, 80, 31)
    for kw in (dict(start=0), dict(every=0)):
        with refuses(ValueError, *kw): doubling(**kw)


@pytest.mark.parametrize('tokens, first, last', [(57236, 1788, 55), (64234, 2007, 62),
                                                 (25689, 802, 25)])
def test_rows_of_a_growing_length_fill_the_batch(tokens, first, last):
    plan = GrowLength(doubling(), tokens).plan
    assert (plan[0], plan[400]) == ((first, 32), (last, 1024))


def test_growth_that_cannot_be_is_refused_before_the_first_step():
    run = small(callbacks=[GrowLength({0: 16, 9: 128}, 256)])
    with refuses(ValueError, 'grow to 128', 'reads 64', 'context_length=128'): run.fit(20)
    assert run.step == 0
    with refuses(ValueError, 'no room for a row of 128'): GrowLength({0: 128}, 64)
    for size, said in ((100, 'give 64 or 128'), (32, 'give 64 or 128'), (1, 'no multiple')):
        run = small(callbacks=[GrowBatch({0: 64, 9: size})])
        with refuses(ValueError, said): run.fit(20)
        assert run.step == 0
    with refuses(TypeError, 'B and T'):
        run = small(callbacks=[GrowBatch({0: 64})])
        run.train = [next(run.train)]
        run.fit(1)


@pytest.mark.parametrize('plan, kind, said', [
    ({}, TypeError, 'must be {step'), (3, TypeError, 'must be {step'), ([1], TypeError, 'step'),
    ([(0, 8), (0, 9)], ValueError, 'step 0 twice'), ({-1: 8}, ValueError, 'a step of'),
    ({0: 0}, ValueError, '[0]'), ({0: 1.5}, TypeError, '[0]'), ({'x': 8}, TypeError, 'a step of')],
    ids=str)
@pytest.mark.parametrize('make', [GrowBatch, lambda plan: GrowLength(plan, 64)])
def test_plans_that_are_none(make, plan, kind, said):
    with refuses(kind, said): make(plan)


def test_a_batch_of_a_growing_size_is_one_large_batch():
    grown = small(callbacks=[GrowBatch([(0, 64), (3, 256)])]).fit(6)
    plain = small(callbacks=[]).fit(3)
    plain.accumulate = 4
    plain.fit(6)
    for a, b in zip(grown.model.parameters(), plain.model.parameters()): assert torch.equal(a, b)
    assert [line['tokens'] for line in grown.log] == [64, 128, 192, 448, 704, 960]


# ---- microbatches

def test_m_follows_the_formula_on_a_run():
    micro = Microbatches(lambda t: 2e-3*(t + .01)**-.1, every=5, limit=6, seed=3)
    run = small(T=8, callbacks=[micro], clip=None).fit(30)
    n, m, seen = sum(p.numel() for p in run.model.parameters()), 0., []
    for t, line in enumerate(run.log):                               # once more, from the log alone
        whole = int(m)
        draw = np.random.default_rng([3, t]).random() < m - whole
        seen.append(min(max(1, whole + draw), 6))
        if t % 5: continue
        r = line['grad_norm']/n**.5 / (2e-3*(t + .01)**-.1)
        m = max(.1, min(m*(1 + .5*(r - 1)), 6))
    assert [line['microbatches'] for line in run.log] == seen and micro.m == m
    assert seen[0] == 1 and max(seen) > 2
    assert run.log[-1]['tokens'] == sum(seen)*4*8


def test_the_mean_count_is_m_and_at_least_one():
    micro = Microbatches(lambda t: 1.)
    for m in (0., .1, .99, 1., 1.25, 3.5, 7.):
        micro.m = m
        counts = [micro.count(t) for t in range(3000)]
        assert {*counts} <= {max(1, math.floor(m)), max(1, math.ceil(m))}
        assert np.mean(counts) == pytest.approx(max(1, m), abs=.03)
    micro.limit = 5
    assert micro.count(0) == 5
    assert [Microbatches(lambda t: 1., seed=s).count(0) for s in (0, 0)] == [1, 1]


def test_a_bad_step_does_not_move_m():
    micro, calls = Microbatches(lambda t: 1e-4, every=1), []
    def loss(net, batch):
        total, weight = lm_loss(net, batch)
        calls.append(1)
        return (total*float('nan') if len(calls) == 2 else total), weight
    ms = []
    class Look:
        def after_step(self, run): ms.append(micro.m)
    micro.m = 1.
    small(callbacks=[micro, Look()], loss=loss, on_nan='skip').fit(3)
    assert ms[0] > 1 and ms[1] == ms[0]


@pytest.mark.parametrize('kw, said', [
    (dict(expected=3), 'expected'), (dict(every=0), 'every'), (dict(gain=0), 'gain'),
    (dict(gain=1.5), 'gain'), (dict(limit=0), 'limit'), (dict(seed=-1), 'seed')], ids=str)
def test_microbatches_that_are_none(kw, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Microbatches(**dict(expected=lambda t: 1.) | kw)


def test_an_expected_size_or_a_state_that_is_none():
    for value in (0., -1., float('nan')):
        with refuses(ValueError, 'expected(5)'): Microbatches(lambda t: value).update(5, 1.)
    for state in (None, {}, dict(m=1., n=2)):
        with refuses(ValueError, 'Microbatches'):
            Microbatches(lambda t: 1.).load_state_dict(state)
    with refuses(ValueError, 'm must be'): Microbatches(lambda t: 1.).load_state_dict(dict(m=-1.))


# ---- stopped in the middle of growth

def everything(dir=None, **kw):
    "Groups with their own curves, decay by the loss, longer rows, microbatches"
    decay = dict(lr=power_law(.08, warmup=6, start=.1), wd=by_loss(1.5), momentum=linear(.2, .5))
    opt = [muon(wd=2., at=hidden, schedule=decay), adamw(lr=3e-3, wd=.1, schedule=cosine(.1))]
    micro = Microbatches(lambda t: 2e-3, every=3, limit=5)
    micro.m = 1.2
    return small(dir=dir, T=8, opt=opt, clip=None, schedule=dict(wd=linear(0)),
                 callbacks=[GrowLength(doubling(8, 5, 32), 64), micro], **kw)


class Raise:
    "Raises KeyboardInterrupt once, in the middle of a step"
    def __init__(self, step): self.step, self.done = step, False
    def after_loss(self, run):
        if run.step != self.step or self.done: return
        self.done = True
        raise KeyboardInterrupt


@pytest.mark.grid(quick=1)
@pytest.mark.parametrize('step', [7, 3, 12])
def test_an_interrupted_step_is_done_again_as_it_was(step):
    whole, struck = everything().fit(16), everything()
    struck.callbacks.append(Raise(step))
    with pytest.raises(KeyboardInterrupt): struck.fit(16)
    assert struck.step == step
    struck.fit()
    end(whole, struck)


def end(a, b):
    assert not same(a.model.state_dict(), b.model.state_dict())
    keys = 'step tokens loss grad_norm microbatches'.split()
    logs = [[[line.get(k) for k in keys] for line in r.log] for r in (a, b)]
    assert logs[0] == logs[1]


@pytest.mark.grid(quick=1)
@pytest.mark.parametrize('step', [9, 4, 14])
def test_stopped_in_the_middle_of_growth_it_ends_the_same(step, tmp_path):
    class Stop:
        def after_step(self, run): run.stop = run.step == step
    whole = everything().fit(20)
    first = everything(tmp_path)
    first.callbacks.append(Stop())
    first.fit(20)
    assert first.step == step
    second = everything(tmp_path)
    second.callbacks.append(Stop())
    second.resume().fit()
    end(whole, second)
    assert second.train.T == 32 and second.callbacks[1].m == whole.callbacks[1].m
    groups = [[{k: v for k, v in g.items() if isinstance(v, (float, tuple))}
               for g in r.opt.state_dict()['param_groups']] for r in (whole, second)]
    assert groups[0] == groups[1] and groups[0][0]['wd'] > 0


def test_a_growing_batch_goes_on_where_it_was(tmp_path):
    def made(folder=None):
        return small(dir=folder, T=8, callbacks=[GrowBatch({0: 32, 3: 64, 6: 128}), Stop()])
    class Stop:
        def after_step(self, run): run.stop = run.step == 5 and run.dir == tmp_path
    whole, first = made().fit(8), made(tmp_path).fit(8)
    assert first.step == 5
    Stop.after_step = lambda self, run: None
    end(whole, made(tmp_path).resume().fit())


# ---- branches

def files(folder): return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def trunk(folder, **kw): return small(dir=folder, save_every=5, keep=9, **kw)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trunk')
    trunk(folder/'t').fit(20)
    return folder


def test_a_branch_is_the_run_that_had_foreseen_it_and_the_trunk_stays(saved, tmp_path):
    before = files(saved)
    cooled = cool_down(trunk(tmp_path/'b'), saved/'t', 5, which=15)
    assert files(saved) == before and cooled.step == 20
    whole = small(schedule=wsd(warmup=0, cooldown=.25)).fit(20)
    end(whole, cooled)
    assert not same(whole.opt.state_dict(), cooled.opt.state_dict())
    one, other = (load_checkpoint(latest_checkpoint(p), 'trainer')['trainer']['info']
                  for p in (saved/'t', tmp_path/'b'))
    branch = other['settings']['branch']
    assert one['run_id'] != other['run_id'] and branch['trunk'] == one['run_id']
    assert (branch['step'], branch['amount'], branch['end']) == (15, 5, 0)
    assert other['name'] == 'b'


def test_a_killed_branch_goes_on_when_it_is_called_again(saved, tmp_path):
    whole = cool_down(trunk(tmp_path/'whole'), saved/'t', 8, which=10, end=.1)
    first = trunk(tmp_path/'b', save_seconds=0)
    first.callbacks.append(Raise(16))
    with pytest.raises(KeyboardInterrupt): cool_down(first, saved/'t', 8, which=10, end=.1)
    for p in checkpoints_in(tmp_path/'b')[1:]:                       # as if killed before saving
        for f in p.iterdir(): f.unlink()
        p.rmdir()
    assert [p.name for p in checkpoints_in(tmp_path/'b')] == ['step_000015']
    again = trunk(tmp_path/'b')
    again.callbacks.append(Raise(99))
    end(whole, cool_down(again, saved/'t', 8, which=10, end=.1))
    assert again.log[-1]['lr'] == whole.log[-1]['lr'] > 0


def test_groups_of_a_branch_follow_their_own_curves(tmp_path):
    "The rate of each group falls in a line, times the curve that it had; the rest goes on"
    f, g = power_law(.2), power_law(.5, warmup=4)
    def made(folder):
        opt = [muon(schedule=dict(lr=f, wd=by_loss(2.)), wd=1.),
               adamw(schedule=dict(momentum=exponential(.99)))]
        return trunk(folder, opt=opt, schedule=dict(lr=g, wd=linear(0)))
    made(tmp_path/'t').fit(10)
    seen = []
    class Look:
        def after_step(self, run): seen.append([dict(g) for g in run.opt.param_groups])
    run = made(tmp_path/'b')
    run.callbacks.append(Look())
    cool_down(run, tmp_path/'t', 5)
    for s, (a, b) in zip(range(10, 15), seen):
        line = 1 - (s + .5 - 10)/5
        assert a['lr'] == pytest.approx(.02*f(0, dict(step=s))*line)
        assert b['lr'] == pytest.approx(1e-3*g(0, dict(step=s))*line)
        assert b['betas'][0] == pytest.approx(.9*.99**s)
        assert a['wd'] == pytest.approx(2.**-run.log[s-1]['loss'], rel=1e-6)


def test_a_branch_of_a_trunk_counted_in_tokens(tmp_path):
    trunk(tmp_path/'t').fit(tokens=64*10)
    run = cool_down(trunk(tmp_path/'b'), tmp_path/'t', tokens=64*5)
    assert (run.step, run.tokens) == (15, 64*15)
    assert run.log[-1]['lr'] < run.log[-5]['lr'] < .02


@pytest.mark.parametrize('kw, said', [
    (dict(steps=None), 'how long'), (dict(tokens=5), 'how long'), (dict(steps=0), 'steps'),
    (dict(steps=None, epochs=1), 'how long'), (dict(steps=None, tokens=64), 'give the same unit'),
    (dict(end=-1), 'end'), (dict(which=3), '3')], ids=str)
def test_branches_that_are_none(kw, said, saved, tmp_path):
    run = trunk(tmp_path/'b')
    before = run.schedule
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        cool_down(run, saved/'t', **dict(steps=5) | kw)
    assert run.step == 0 and run.schedule is before and not checkpoints_in(tmp_path/'b')


def test_a_branch_needs_a_folder_of_its_own_and_a_trunk_that_is_warm(saved, tmp_path):
    before = files(saved)
    with refuses(ValueError, 'folder of the trunk'): cool_down(trunk(saved/'t'), saved/'t', 5)
    with refuses(ValueError, 'needs a folder'): cool_down(small(), saved/'t', 5)
    with refuses(TypeError, 'a Trainer'): cool_down(None, saved/'t', 5)
    with pytest.raises(FileNotFoundError): cool_down(trunk(tmp_path/'b'), tmp_path/'nowhere', 5)
    trunk(tmp_path/'other', seed=1).fit(3)
    with refuses(ValueError, 'another run'): cool_down(trunk(tmp_path/'other'), saved/'t', 5)
    cool_down(trunk(tmp_path/'b'), saved/'t', 5)
    with refuses(ValueError, 'another cooldown'): cool_down(trunk(tmp_path/'b'), saved/'t', 6)
    wide = small(dir=tmp_path/'w', opt=[adamw()])
    wide.schedule = mine = dict(lr=constant())
    with pytest.raises(ValueError, match='groups|optimizer'): cool_down(wide, saved/'t', 5)
    assert wide.schedule is mine                                     # and nothing has changed
    trunk(tmp_path/'cold', schedule=lambda p: float(p < .9)).fit(10)
    with refuses(ValueError, 'cooled already'):
        cool_down(trunk(tmp_path/'c'), tmp_path/'cold', 5)
    assert files(saved) == before


# ---- real kills

SCRIPT = '''
import sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
import torch._dynamo
from gptlab.checkpoints import checkpoints_in
from test_groups import everything, trunk, cool_down

class Steps:
    def __init__(self, pause): self.pause = pause
    def after_step(self, run): print('step', run.step, flush=True); time.sleep(self.pause)

def go(pause, case, folder):
    folder = Path(folder)
    if case == 'growth': run = everything(folder, save_every=2)
    else: run = trunk(folder)
    run.save_every = 2
    run.callbacks.append(Steps(float(pause)))
    if case == 'branch': cool_down(run, folder.parent/'trunk', 14, which=10, end=.05)
    elif checkpoints_in(folder): run.resume().fit()
    else: run.fit(24)
'''


@pytest.fixture(scope='module')
def forks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kills')
    where = os.path.dirname(__file__)
    forks = Forks(folder, SCRIPT.replace('TESTS', repr(where)))
    trunk(folder/'trunk').fit(10)
    yield forks
    forks.close()


def saved_state(folder):
    d = load_checkpoint(latest_checkpoint(folder))
    del d['trainer']['info'], d['summary']
    return d


@posix
@pytest.mark.repeat(quick=1, exhaustive=6)
def test_killed_and_taken_up_it_ends_the_same(forks, seed):
    case, rng = ('growth', 'branch')[seed % 2], random.Random(seed)
    whole, struck = forks.folder/f'whole_{case}', forks.folder/f'{case}_{seed}'
    if not whole.exists(): assert forks.start(0, case, whole).end() == 0
    for _ in range(rng.randrange(1, 3)):
        victim, at = forks.start(.02, case, struck), rng.randrange(3, 10)
        victim.until(lambda: victim.said().count('step ') >= at)
        time.sleep(rng.random()*.04)
        assert victim.strike(signal.SIGKILL) in (0, -signal.SIGKILL), victim.said()
    last = forks.start(0, case, struck)
    assert last.end() == 0, last.said()
    a, b = saved_state(whole), saved_state(struck)
    assert [line['step'] for line in b['trainer']['log']] == [*range(1, 25)]
    assert not same(a, b)

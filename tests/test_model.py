"""The model: every preset through the same probes, options that may change nothing, counts against
measurement, and what bad input gets."""
import ast, copy, json, resource, subprocess, sys, time
from dataclasses import replace
from functools import partial

import pytest, torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common import NBS, cells, tree
from gptlab.all import *
from gptlab.model import compiled_in_place, module_inside, not_compiled, parameter_shapes

SMALL = dict(vocab_size=211, context_length=32, n_layers=4, n_heads=4, d_model=32, d_ff=48)
no_rope = partial(Attention, pos=None)
OWN = dict(default={}, grouped=dict(n_kv_heads=2),
           windows=dict(attn=[partial(Attention, window=5), Attention]),
           tied=dict(tie=True, init=gpt2_init),
           softcap=dict(softcap=15., attn=partial(Attention, softcap=20.)), narrow=dict(d_embed=12),
           narrow_tied=dict(d_embed=12, tie=True, init=gpt2_init), rounded=dict(vocab_multiple=64),
           rounded_tied=dict(vocab_multiple=64, tie=True), dropout=dict(dropout=.1),
           gated=dict(mlp=GLU), learned=dict(pos_embed=LearnedPositions, attn=no_rope),
           narrow_learned=dict(pos_embed=LearnedPositions, d_embed=12, attn=no_rope),
           latent=dict(attn=MLA), delta=dict(attn=DeltaAttention), no_positions=dict(attn=no_rope),
           experts=dict(mlp=partial(MoE, n_experts=4)), depths=dict(block=[Block, MoD]),
           depths_delta=dict(block=[Block, MoD], attn=DeltaAttention),
           parallel=dict(block=ParallelBlock), scaled=dict(block=ScaledBlock),
           alibi=dict(attn=partial(Attention, pos=ALiBi)),
           values=dict(attn=partial(OpenAttention, adds=[ValueEmbedding, Gate])))


def recipe(name):
    """What a recipe defines, without what it runs: its functions, classes, and parts that are fixed
    by partial"""
    space = dict(__name__='recipe')
    exec('from gptlab.all import *\nfrom fastcore.basics import patch', space)
    keep = (lambda n: isinstance(n, (ast.FunctionDef, ast.ClassDef))
                      or isinstance(n, ast.Assign) and ast.unparse(n.value).startswith('partial('))
    for c in cells(NBS/'recipes'/f'{name}.ipynb', 'code'):
        for n in filter(keep, tree(c['source']).body):
            try: exec(compile(ast.Module([n], []), name, 'exec'), space)
            # a lesson's own helper, made from something that ran
            except NameError: pass
    return space

def from_recipe(name, make): return lambda: make(recipe(name))

RECIPES = dict(gradientlab=from_recipe('gradientlab', lambda r: r['gradientlab'](
    n_layers=6, vocab_size=128, context_length=32, d_ff=128)),
               experimental_slm=from_recipe('experimental_slm',
                                            lambda r: r['slm'](n_layers=2, context_length=32)),
               gpt_lab=from_recipe('gpt_lab', lambda r: r['gpt_lab'](
                   4, d_head=64, vocab_size=257, context_length=64)),
               hlb_gpt=from_recipe('hlb_gpt',
                                   lambda r: r['hlb_gpt'](.5, vocab_size=257, context_length=32)))
PRESETS = ({n: partial(GPTConfig, **SMALL | kw) for n, kw in OWN.items()}
           | dict(gpt2=partial(gpt2_config, **SMALL),
                  llama=partial(llama_config, **SMALL, n_kv_heads=2)) | RECIPES)


def every(test): return pytest.mark.grid(quick=3)(pytest.mark.parametrize('name', PRESETS)(test))

def lively(cfg, noise=.05):
    set_seed(0)
    return perturb_parameters(GPT(cfg), noise)

def text(cfg, B=3, T=24):
    ids = torch.randint(0, cfg.vocab_size, (B, T+1), generator=torch.Generator().manual_seed(1))
    return dict(ids=ids[:,:-1], targets=ids[:,1:])

def grads(model, batch):
    model.zero_grad()
    total, n = lm_loss(model, batch)
    (total/n).backward()
    return total.item()/n.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


# ---- probes

@every
def test_probes(name):
    set_seed(0)
    report = check_model(PRESETS[name]())
    # top-k over time, as chapter 23 explains
    if name.startswith('depths'): assert not report.pop('blind to the future in training, too')
    assert report.ok, report
    assert len(report) == 8 + (not name.startswith('depths'))


class Broken(Attention):
    "Sees everything"
    def mask(self, seq, kpos, kdocs): return Mask()

class Forgets(Attention):
    "Documents are one to it"
    def mask(self, seq, kpos, kdocs):
        if seq.cache is not None: return super().mask(seq, kpos, kdocs)
        count = torch.arange(seq.ids.shape[1]).expand(seq.ids.shape)      # (B,T)
        return super().mask(Seq(seq.ids, None, count), count, None)

class BatchNorm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.w = nn.Parameter(torch.ones(C))

    def forward(self, x): return self.w * x / x.square().mean((0, 2), keepdim=True).sqrt()

class Dead(MLP):
    "Has a matrix that nobody asks"
    def __init__(self, C, d_ff):
        super().__init__(C, d_ff)
        self.spare = nn.Linear(C, C)

class Dice(MLP):
    def forward(self, x): return super().forward(x) + torch.randn(())

class Bag(nn.Module):
    "A mean of all that came before: order is lost"
    def __init__(self, C, n_heads, n_kv_heads=None):
        super().__init__()
        self.v, self.o = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x, seq):
        return self.o(self.v(x).cumsum(1)/torch.arange(1, x.shape[1]+1)[:,None])

def loud(model):
    gpt2_init(model)
    nn.init.normal_(model.head.weight, std=1.)

class BatchNormed(nn.BatchNorm1d):
    "In training its statistics run over rows and time"
    def forward(self, x): return super().forward(x.transpose(1, 2)).transpose(1, 2)

class SecondSeesFirst(Attention):
    "Documents 0 and 1 are kept apart, 2 sees 1"
    def forward(self, x, seq):
        if seq.docs is not None:
            seq = copy.copy(seq)
            seq.docs = seq.docs.clamp(max=1)
        return super().forward(x, seq)
    def prepare(self, seq, x): pass

MISTAKES = {'blind to the future in training': dict(norm=BatchNormed),
            'keeps documents': dict(attn=SecondSeesFirst), 'blind to the future': dict(attn=Broken),
            'keeps documents apart': dict(attn=Forgets),
            'rows do not see one another': dict(norm=BatchNorm),
            'every parameter gets a gradient': dict(mlp=Dead), 'the same twice': dict(mlp=Dice),
            'first loss': dict(init=loud),
            'the order of the past matters': dict(attn=Bag, n_layers=1)}

@pytest.mark.parametrize('question', MISTAKES)
def test_probes_find_mistakes(question):
    set_seed(0)
    report = check_model(GPTConfig(**SMALL | MISTAKES[question]))
    assert (not report.ok
            and any(k.startswith(question) and v is False for k, v in report.items())), report

def test_probes_of_a_function_and_of_a_tiny_context():
    assert check_model(lambda: GPT(GPTConfig(**SMALL))).ok
    with pytest.raises(ValueError, match='at least 8 tokens, not 4'):
        check_model(GPTConfig(**SMALL | dict(context_length=4)))


# ---- options that change nothing

@every
def test_memory_options_change_nothing(name):
    cfg = PRESETS[name]()
    model, batch = lively(cfg), text(cfg)
    model.train()
    set_seed(3)
    loss, want = grads(model, batch)
    for remat, chunk in ((True, None), (False, 7), (True, 1000), (True, 1)):
        model.remat, model.loss_chunk = remat, chunk
        set_seed(3)
        l, got = grads(model, batch)
        assert abs(l - loss) < 1e-5
        for n in want: assert torch.allclose(want[n], got[n], atol=1e-6, rtol=1e-3), n
    with torch.no_grad():
        saving = model.eval()(**batch)[0]
        model.remat, model.loss_chunk = False, None
        assert torch.allclose(saving, model(**batch)[0], atol=1e-6)

def test_memory_options_under_compile_and_autocast():
    cfg = GPTConfig(**SMALL)
    model, batch = lively(cfg), text(cfg)
    _, want = grads(model, batch)
    for b in model.blocks: b.compile(dynamic=False, backend='aot_eager')
    model.remat, model.loss_chunk = True, 10
    _, got = grads(model, batch)
    for n in want: assert torch.allclose(want[n], got[n], atol=1e-6, rtol=1e-3), n
    with torch.autocast('cpu', torch.bfloat16): _, rough = grads(model, batch)
    for n in want: assert (want[n]-rough[n]).norm() <= .05*want[n].norm() + 1e-6, n

def test_a_block_that_is_used_twice_works_twice():
    plain, shared = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**SMALL))
    shared.blocks[2] = shared.blocks[0]
    assert (shared.flops_per_token() == plain.flops_per_token()
            and shared.n_params() < plain.n_params())

@pytest.mark.parametrize('chunk', [0, -1, 2.5])
def test_a_chunk_is_a_number_of_tokens(chunk):
    model = GPT(GPTConfig(**SMALL))
    model.loss_chunk = chunk
    with pytest.raises(ValueError, match='loss_chunk'): model(**text(model.cfg))


# ---- narrow tables, rounded vocabularies, tying

def test_the_same_matrix_widens_and_narrows():
    model = lively(GPTConfig(**SMALL | dict(d_embed=12))).eval()
    ids = text(model.cfg)['ids']
    assert (model.embed.weight.shape == model.head.weight.shape == (211, 12)
            and model.widen.weight.shape == (32, 12))
    x = model.embed(ids) @ model.widen.weight.T                                            # (B,T,C)
    for i, b in enumerate(model.blocks): x = b(x, Seq(ids).at(i))
    assert torch.allclose(model(ids), model.norm(x) @ model.widen.weight @ model.head.weight.T,
                          atol=1e-5)

@pytest.mark.parametrize('tie', [False, True])
def test_rounded_vocabularies_guess_the_same(tie):
    plain, rounded = (lively(GPTConfig(**SMALL | dict(tie=tie))).eval(),
                      lively(GPTConfig(**SMALL | dict(tie=tie, vocab_multiple=64))).eval())
    assert rounded.embed.weight.shape == rounded.head.weight.shape == (256, 32)
    state = {n: t[:211] if n in ('embed.weight', 'head.weight') else t
             for n, t in rounded.state_dict().items()}
    plain.load_state_dict(state)
    batch = text(plain.cfg)
    assert rounded(batch['ids']).shape[-1] == 211
    assert (torch.allclose(plain(batch['ids']), rounded(batch['ids']), atol=1e-6)
            and torch.allclose(plain(**batch)[0], rounded(**batch)[0], atol=1e-5))
    # however loud, padding is never written
    nn.init.constant_(rounded.head.weight[211:].data, 99.)
    assert max(generate(rounded, [1], 30, temperature(5.))) < 211

def test_tying_needs_one_shape():
    def other(model): model.head = nn.Linear(32, 99, bias=False)
    with pytest.raises(ValueError, match=r'\(211, 32\) for reading and \(99, 32\) for writing'):
        GPT(GPTConfig(**SMALL | dict(tie=True, init=other)))

@every
def test_meta_then_memory(name):
    """A model that was built without memory, given memory and started, is the model that was built
    at once"""
    cfg = PRESETS[name]()
    set_seed(5)
    want = GPT(cfg)
    with torch.device('meta'): empty = GPT(cfg)
    assert empty.n_params() == want.n_params() and all(p.is_meta for p in empty.parameters())
    empty = empty.to_empty(device='cpu')
    empty.load_state_dict(want.state_dict())
    batch = text(cfg)
    assert torch.equal(empty.eval()(batch['ids']), want.eval()(batch['ids']))


@every
def test_shapes_of_a_config(name):
    cfg = PRESETS[name]()
    before = torch.get_rng_state()
    shapes = parameter_shapes(cfg)
    assert torch.equal(torch.get_rng_state(), before)
    assert shapes == {n: tuple(t.shape) for n, t in GPT(cfg).state_dict().items()}

def test_shapes_of_a_config_that_no_machine_can_hold():
    parameter_shapes(GPTConfig(**SMALL))                                 # torch's own first time
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    shapes = parameter_shapes(GPTConfig(**SMALL | dict(d_ff=10**9, vocab_size=10**12)))
    took = time.perf_counter() - start
    unit = 1 if sys.platform == 'darwin' else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)*unit
    assert shapes['blocks.3.mlp.up.weight'] == (10**9, 32) and shapes['head.weight'][0] == 10**12
    assert took < 1 and grown < 50e6


# ---- what is compiled

def test_what_torch_does_not_tell_about_compiled_modules():
    "The private names that two functions read still mean what they did"
    plain, in_place = nn.Linear(4, 4), nn.Linear(4, 4)
    in_place.compile(backend='eager')
    around = torch.compile(plain, backend='eager')
    assert [compiled_in_place(m) for m in (plain, in_place, around)] == [False, True, False]
    assert module_inside(around) is plain
    assert module_inside(plain) is None and module_inside(in_place) is None

@pytest.mark.parametrize('chunk', [None, 16])
def test_a_gpt_compiles_its_blocks_and_its_loss(chunk):
    """In place, the loss of a chunk at a time; a copy has its own weights and no compiler; names
    are as before"""
    calls = []
    def counting(graph, inputs):
        def call(*args):
            calls.append(1)
            return graph.forward(*args)
        return call
    torch._dynamo.reset()
    cfg = GPTConfig(**SMALL)
    model, batch = lively(cfg), text(cfg)
    names, (want, wants) = [*model.state_dict()], grads(model, batch)
    model.compile(backend=counting, dynamic=False)
    model.loss_chunk = chunk
    assert [*model.state_dict()] == names and compiled_in_place(model.blocks[0])
    got, gots = grads(model, batch)
    assert calls and abs(want - got) < 1e-5
    for n in wants: assert torch.allclose(wants[n], gots[n], atol=1e-6, rtol=1e-3), n
    n = len(calls)
    assert n >= cfg.n_layers + 1                                  # each block, and the loss
    with run_eagerly(model): model(**batch)
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.head.weight)                              # all tokens are equally likely
    nll, _ = twin(**batch)
    assert torch.allclose(nll[batch['targets'] >= 0], torch.tensor(cfg.vocab_size).log())
    not_compiled(model)
    again, _ = grads(model, batch)
    assert len(calls) == n and abs(want - again) < 1e-5

def test_counts_come_with_the_trainer_alone():
    code = ('import sys, gptlab.trainer\nfrom gptlab.model import GPT, GPTConfig\n'
            'assert GPT(GPTConfig(n_layers=1)).flops_per_token() > 0\n'
            'assert "gptlab.costs" not in sys.modules')
    subprocess.run([sys.executable, '-c', code], check=True)


# ---- counts

@every
def test_operations_are_those_that_torch_counts(name):
    """Forward passes through plain matmuls, no window shorter than the row; a mixture of depths as
    in training, where its share is exact"""
    cfg = PRESETS[name]()
    # shorter than any window
    model, T = GPT(cfg).train(name.startswith('depths')), 4
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(text(cfg, 2, T)['ids'])
    want = model.flops_per_token(T, training=False)*2*T
    # values padded to the width of keys; a triangular solve
    slack = .06 if name in ('latent', 'delta', 'depths_delta') else 0
    assert abs(counter.get_total_flops() - want) <= slack*want, (counter.get_total_flops(), want)
    assert model.flops_per_token(T) == 3*model.flops_per_token(T, training=False)

def test_operations_with_windows():
    """What is visible is counted: the sum over the mask is the formula's, but for the first tokens
    of a row, which see less"""
    model = GPT(GPTConfig(**SMALL | dict(attn=partial(Attention, window=5))))
    far, near = (model.flops_per_token(32, training=False),
                 GPT(GPTConfig(**SMALL)).flops_per_token(32, training=False))
    assert near - far == 4*4*32*(32-5)
    pos = torch.arange(32)[None]
    assert visible_mask(pos, pos, window=5).sum() == 32*5 - (4+3+2+1)

@every
def test_a_model_shows_its_counts(name):
    model = GPT(PRESETS[name]())
    state, page = torch.get_rng_state(), model._repr_markdown_()
    # looking changes nothing
    assert torch.equal(torch.get_rng_state(), state)
    assert f'**{model.n_params():,}**' in page and 'operations per token, training' in page
    assert sum(k for *_, k in model._rows()) > .9*model.n_params()

def test_a_model_is_shown_without_being_run():
    class Wrong(MLP):
        def forward(self, x): raise RuntimeError('this part was run')
    assert 'Wrong' in GPT(GPTConfig(**SMALL | dict(mlp=Wrong)))._repr_markdown_()


# ---- configs

@every
def test_configs_survive_json(name):
    cfg = PRESETS[name]()
    parts = {k: v for k, v in (recipe(name) if name in RECIPES else {}).items()
             if getattr(v, '__module__', '') == 'recipe'}
    saved = json.dumps(cfg.to_dict())
    again = GPTConfig.from_dict(json.loads(saved), parts=parts)
    assert json.dumps(again.to_dict()) == saved
    set_seed(2)
    a = GPT(cfg)
    set_seed(2)
    b = GPT(again)
    assert ({n: t.shape for n, t in a.state_dict().items()}
            == {n: t.shape for n, t in b.state_dict().items()})
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

@pytest.mark.parametrize('field,value', [('d_embed', 0), ('d_embed', 1.5), ('vocab_multiple', 0),
                                         ('vocab_multiple', None)])
def test_widths_are_whole_numbers(field, value):
    with pytest.raises(ValueError, match=f'{field} must be a whole number'):
        GPTConfig(**{field: value})

@pytest.mark.parametrize('kw', [dict(dropout='x'), dict(dropout=1.), dict(softcap='x'),
                                dict(softcap=float('nan')), dict(softcap=-1.), dict(tie='false'),
                                dict(tie=1), dict(init='x'), dict(pos_embed='x')], ids=str)
def test_fields_of_another_kind(kw):
    with pytest.raises((ValueError, TypeError), match=next(iter(kw))): GPTConfig(**kw)

EVIL = {'gptlab.core.atomic_write': dict(path='x', data='y'), 'gptlab.hub.save': {},
        'gptlab.checkpoints.save_checkpoint': {}, 'gptlab.trainer.Trainer': {},
        'gptlab.core.subprocess': {}, 'gptlab.core.Path': {}, 'gptlab.data.fetch_wheel': {}}

@pytest.mark.parametrize('name', EVIL)
def test_a_config_names_parts_and_nothing_else(name):
    "A config may come from anywhere: whatever it can name, it can have called"
    for d in (dict(init=dict(part=name)),
              dict(attn=dict(part='gptlab.attentions.OpenAttention',
                             args=dict(cache=dict(part=name, args=EVIL[name]))))):
        with pytest.raises(ValueError, match='is no part of a model|is not in this version'):
            GPTConfig.from_dict(d)

@pytest.mark.parametrize('d', [5, None, [], dict(attn={}), dict(attn=dict(part=3)),
                               dict(attn=dict(part='gptlab.attention.Attention', args=[])),
                               dict(norm=dict(args={}))], ids=str)
def test_a_config_that_is_none(d):
    with pytest.raises(ValueError, match='a config is a dictionary|a part is described by'):
        GPTConfig.from_dict(d)

def power(x: torch.Tensor, n=2): return x**n

def test_what_could_not_be_found_again_is_not_saved():
    for act, words in ((lambda x: x, 'no name by which'), (nn.GELU(), 'no name by which'),
                       (partial(power, 3), 'by name')):
        with pytest.raises(ValueError, match=words): GPTConfig(mlp=partial(MLP, act=act)).to_dict()
    kept = GPTConfig(mlp=partial(MLP, act=partial(power, n=3)))
    assert (
        GPTConfig.from_dict(kept.to_dict(), parts=dict(power=power)).mlp.keywords['act'].keywords
        == dict(n=3))
    assert (GPTConfig.from_dict(GPTConfig(mlp=partial(MLP, act=torch.nn.functional.silu))
                                .to_dict()).mlp.keywords['act'] is torch.nn.functional.silu)


# ---- calls

def test_calls_that_make_no_sense():
    model = GPT(GPTConfig(**SMALL))
    ids = torch.zeros(2, 6, dtype=torch.long)
    for call, words in ((lambda: model([[1, 2]]), 'must be a tensor'),
                        (lambda: model(ids[:,:0]), 'nothing to read'),
                        (lambda: model(ids[:0]), 'nothing to read'),
                        (lambda: model(ids[0]), 'for one row use'),
                        (lambda: model(ids.float()), 'whole numbers'),
                        (lambda: model(ids, ids[:,:4]), 'targets must have the shape'),
                        (lambda: model(ids, ids - 1), 'target -1 is outside the vocabulary'),
                        (lambda: model(ids, docs=ids[:,:4]), 'docs must have the shape'),
                        (lambda: model(ids, pos=torch.arange(6)), 'pos must have the shape'),
                        (lambda: model(ids, caches=[]), '0 caches for 4 layers'),
                        (lambda: model(ids, caches=model.new_caches()[:1]), '1 caches for 4')):
        with pytest.raises((ValueError, TypeError), match=words): call()
    assert torch.equal(model(ids, ids.int())[0], model(ids, ids)[0])


# ---- swapping

def test_swap_unties_nothing_and_is_all_or_nothing():
    model = lively(GPTConfig(**SMALL | dict(tie=True)))
    before = model.state_dict()
    with pytest.raises(ValueError, match='head shares its weights with another part'):
        swap(model, nn.Linear, copy.deepcopy)
    def one_only(old, made=[]):
        made.append(old)
        if len(made) > 2: raise RuntimeError('enough')
        return nn.Identity()
    with pytest.raises(RuntimeError, match='enough'): swap(model.blocks, nn.Linear, one_only)
    with pytest.raises(TypeError,
                       match='make must give a module in place of 0.norm1, not NoneType'):
        swap(model.blocks, RMSNorm, lambda old: None)
    assert model.state_dict().keys() == before.keys() and model.head.weight is model.embed.weight
    assert (swap(model.blocks, nn.Linear, copy.deepcopy) == 4*6
            and swap(model.blocks, nn.Conv1d, copy.deepcopy) == 0)

def test_swap_of_a_part_that_is_used_twice():
    model = GPT(GPTConfig(**SMALL))
    model.blocks[2].mlp = model.blocks[0].mlp
    assert swap(model, MLP, lambda old: GLU(32, 48)) == 3
    assert model.blocks[2].mlp is model.blocks[0].mlp and isinstance(model.blocks[0].mlp, GLU)


# ---- published sizes

def test_published_sizes():
    with torch.device('meta'):
        count = lambda cfg: GPT(cfg).n_params()
        assert ([count(gpt2_config(n_layers=L, n_heads=H, d_model=C))
                 for L, H, C in ((12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600))]
                == [124_439_808, 354_823_168, 774_030_080, 1_557_611_200])
        assert ([count(llama_config(n_layers=L, n_heads=H, d_model=C, d_ff=F))
                 for L, H, C, F in ((32, 32, 4096, 11008), (40, 40, 5120, 13824))]
                == [6_738_415_616, 13_015_864_320])


# ---- caches

@pytest.mark.parametrize('name', ['default', 'windows', 'latent', 'delta', 'depths', 'depths_delta',
                                  'alibi'])
def test_a_cache_is_read_in_one_way(name):
    """Documents at every call or at none, and always the same rows: anything else would be a wrong
    answer, or torch's own words"""
    model, ids = lively(PRESETS[name]()).eval(), torch.zeros(2, 6, dtype=torch.long)
    caches = model.new_caches()
    model(ids, caches=caches)
    with pytest.raises(ValueError, match='docs at every call or at none'):
        model(ids, docs=ids+1, caches=caches)
    caches = model.new_caches()
    model(ids, docs=ids, caches=caches)
    with pytest.raises(ValueError, match='docs at every call or at none'): model(ids, caches=caches)
    for rows in (1, 3):
        caches = model.new_caches()
        model(ids, caches=caches)
        with pytest.raises(ValueError, match=f'2 rows, not {rows}'):
            model(torch.zeros(rows, 6, dtype=torch.long), caches=caches)

@pytest.mark.parametrize('name', ['alibi', 'default', 'scaled', 'latent'])
def test_other_precisions(name):
    "Causal and equal in float64; positions stay exact where the default is bfloat16"
    cfg = PRESETS[name]()
    model, ids = lively(cfg).eval(), text(cfg)['ids']
    want = model(ids)
    model = model.double()
    other = ids.clone()
    other[:,12:] = (other[:,12:]+1) % 211
    assert (torch.allclose(model(ids).float(), want, atol=1e-4)
            and torch.allclose(model(ids)[:,:12], model(other)[:,:12]))
    seq = Seq(torch.zeros(1, 500, dtype=torch.long))
    q = torch.ones(1, 1, 500, 8)

    def positions():
        return [RoPE(8).rotate(seq, q, q)[0],
                YaRN(8, factor=2., context_length=100).rotate(seq, q, q)[0],
                ALiBi(8, 4).bias(seq, seq.pos), Sinusoids(8)(seq)]

    exact = positions()
    torch.set_default_dtype(torch.bfloat16)
    try: again = positions()
    finally: torch.set_default_dtype(torch.float32)
    for a, b in zip(exact, again): assert torch.allclose(a, b.float(), atol=.01, rtol=.01)

def test_parts_that_fix_their_own_widths():
    model = GPT(GPTConfig(**SMALL | dict(mlp=[MLP, partial(MLP, d_ff=64)],
                                         attn=[Attention, partial(Attention, n_kv_heads=2)])))
    assert ([b.mlp.up.out_features for b in model.blocks] == [48, 64, 48, 64]
            and [b.attn.K for b in model.blocks] == [4, 2, 4, 2])

@pytest.mark.parametrize('make,words', [
    (lambda: Attention(32, 4, d_head=-2), 'd_head is a whole number'),
    (lambda: Attention(32, 4, 0), 'n_kv_heads is a whole number'),
    (lambda: MoE(8, 8, capacity=-1), 'capacity is a multiple'),
    (lambda: MoE(8, 8, shared=-1), 'shared is a number'),
    (lambda: OpenAttention(32, 4, v_expand=0), 'expand by a number above 0'),
    (lambda: extend_context(GPT(llama_config(**SMALL)), 0), 'must be a number above 0'),
    (lambda: extend_context(GPT(llama_config(**SMALL, pos_embed=LearnedPositions)), 2),
     'learnt places'),
    (lambda: GPT(gpt2_config(**SMALL))(torch.zeros(1, 4, dtype=torch.long),
                                       pos=torch.full((1, 4), 99)), 'beyond the table of 32')])
def test_parts_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words): make()

"""Facts about models: initial weights, logits, caches, losses, gradients, sizes, surgery."""
import ast
import inspect
import json
import os
from pathlib import Path

from gptlab.all import *

from registry import digest, exact, fact, once, seed_all

TINY = dict(vocab_size=61, context_length=32, n_layers=3, n_heads=4, d_model=32)
LONG = dict(factor=4., context_length=16)


def tiny(**kw):
    return GPTConfig(**TINY | kw)


def opened(**kw):
    return tiny(attn=partial(OpenAttention, **kw))


def with_positions(scheme, **kw):
    return tiny(attn=partial(Attention, pos=partial(scheme, **kw)))


PLAIN = dict(
    plain=lambda: tiny(),
    tied=lambda: tiny(tie=True),
    softcap=lambda: tiny(softcap=15.),
    grouped=lambda: tiny(n_kv_heads=2),
    narrow_tables=lambda: tiny(d_embed=12),
    narrow_tied=lambda: tiny(d_embed=12, tie=True),
    rounded_up=lambda: tiny(vocab_multiple=16),
    wide_mlp=lambda: tiny(d_ff=80),
    layer_norm=lambda: tiny(norm=LayerNorm),
    layer_norm_without_bias=lambda: tiny(norm=partial(LayerNorm, bias=False, eps=1e-4)),
    without_gain=lambda: tiny(norm=partial(RMSNorm, gain=False)),
    gelu=lambda: tiny(mlp=partial(MLP, act=gelu)),
    gelu_tanh=lambda: tiny(mlp=partial(MLP, act=gelu_tanh, bias=True)),
    silu=lambda: tiny(mlp=partial(MLP, act=silu)),
    swiglu=lambda: tiny(mlp=GLU),
    geglu=lambda: tiny(mlp=partial(GLU, act=gelu, bias=True)),
    parts_by_layer=lambda: tiny(mlp=[MLP, GLU], norm=[RMSNorm, LayerNorm]),
    window=lambda: tiny(attn=partial(Attention, window=5)),
    score_cap=lambda: tiny(attn=partial(Attention, softcap=9.)),
    without_qk_norm=lambda: tiny(attn=partial(Attention, qk_norm=False, bias=True)),
    wide_heads=lambda: tiny(attn=partial(Attention, d_head=12)),
    without_positions=lambda: tiny(attn=partial(Attention, pos=None)),
    gpt2=lambda: gpt2_config(**TINY),
    gpt2_untied=lambda: gpt2_config(**TINY, tie=False),
    llama=lambda: llama_config(**TINY | dict(d_ff=56)),
    llama_grouped=lambda: llama_config(**TINY | dict(d_ff=56, n_kv_heads=2)))

STACKS = dict(
    parallel=lambda: tiny(block=ParallelBlock),
    parallel_two_norms=lambda: tiny(block=partial(ParallelBlock, two_norms=True)),
    scaled=lambda: tiny(block=ScaledBlock),
    scaled_by_hand=lambda: tiny(block=partial(ScaledBlock, h=(1., 1.), z=(.3, .1))),
    nanochat_start=lambda: tiny(mlp=GLU, init=nanochat_init),
    nanochat_start_tied=lambda: tiny(tie=True, init=nanochat_init),
    hlb_start=lambda: tiny(init=hlb_init),
    mup_start=lambda: tiny(init=mup_init),
    mup_start_tied=lambda: tiny(tie=True, init=mup_init),
    gpt2_start=lambda: tiny(init=gpt2_init),
    modern_start=lambda: tiny(init=modern_init))

POSITIONS = dict(
    learned=lambda: tiny(pos_embed=LearnedPositions, attn=partial(Attention, pos=None)),
    sinusoids=lambda: tiny(pos_embed=Sinusoids, attn=partial(Attention, pos=None)),
    theta=lambda: with_positions(RoPE, theta=500.),
    interleaved=lambda: with_positions(ScaledRoPE, interleaved=True),
    interpolated=lambda: with_positions(ScaledRoPE, factor=4.),
    ntk=lambda: with_positions(NTK, **LONG),
    yarn=lambda: with_positions(YaRN, **LONG),
    llama3=lambda: with_positions(Llama3RoPE, **LONG),
    alibi=lambda: with_positions(ALiBi),
    linear_bias=lambda: with_positions(LinearBias))

ATTENTIONS = dict(
    open=lambda: opened(),
    expanded=lambda: opened(qk_expand=2., v_expand=1.5),
    gated=lambda: opened(adds=[Gate]),
    gated_by_head=lambda: opened(adds=[partial(Gate, per_head=True)]),
    value_embedding=lambda: opened(adds=[ValueEmbedding]),
    value_embedding_by_two=lambda: opened(adds=[partial(ValueEmbedding, every=2, scale=2.)]),
    gain=lambda: opened(adds=[QKGain]),
    gain_and_gate=lambda: opened(adds=[QKGain, Gate]),
    by_matmul=lambda: opened(backend=matmul, window=6),
    static_cache=lambda: opened(cache=StaticCache, window=9),
    ring_cache=lambda: opened(cache=RingCache, window=6),
    pattern=lambda: tiny(attn=window_pattern('SSL', 3, 4)),
    pattern_open=lambda: tiny(attn=window_pattern('SL', 3, 7, OpenAttention)),
    latent=lambda: tiny(attn=MLA),
    latent_unfolded=lambda: tiny(attn=partial(MLA, absorb=False, d_latent=6)),
    latent_without_positions=lambda: tiny(attn=partial(MLA, pos=None)),
    latent_window=lambda: tiny(attn=partial(MLA, window=4, d_rope=4)),
    delta=lambda: tiny(attn=DeltaAttention),
    delta_small_chunk=lambda: tiny(attn=partial(DeltaAttention, chunk=5, pos=RoPE)),
    mixed=lambda: tiny(attn=[MLA, DeltaAttention, partial(OpenAttention, pos=LinearBias)]))

EXPERTS = dict(
    experts=lambda: tiny(mlp=MoE),
    experts_one=lambda: tiny(mlp=partial(MoE, n_experts=4, k=1)),
    experts_shared=lambda: tiny(mlp=partial(MoE, n_experts=4, shared=1, d_expert=20)),
    experts_by_bias=lambda: tiny(mlp=partial(MoE, gate='sigmoid', balance='bias')),
    experts_capacity=lambda: tiny(mlp=partial(MoE, n_experts=4, capacity=1., balance=None)),
    experts_gated=lambda: tiny(mlp=partial(MoE, expert=GLU, n_experts=3, normalise=False)),
    depths=lambda: tiny(block=MoD),
    depths_share=lambda: tiny(block=[Block, partial(MoD, share=.25, inner=ParallelBlock)]),
    depths_causal=lambda: tiny(block=partial(MoD, causal=True)))


# ---- the five older systems: their notebooks are part of the tree under test

@once
def recipe(name):
    "The names that a recipe's notebook defines, its demonstrations left out"
    found = list(Path(os.environ['GOLDEN_TREE'], 'nbs').rglob(name + '.ipynb'))
    found = [p for p in found if '.ipynb_checkpoints' not in p.parts]
    if len(found) != 1:
        raise FileNotFoundError('there are ' + str(len(found)) + ' notebooks called ' + name)
    names = dict(__name__='recipe')
    for cell in json.loads(found[0].read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code':
            tree = ast.parse(''.join(cell['source']))
            tree.body = [node for node in tree.body if _defines(node)]
            exec(compile(tree, name, 'exec'), names)
    return names


def _defines(node):
    "Is it an import, a definition, or a name for a partial?"
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        return getattr(node.value.func, 'id', None) == 'partial'
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


def slm_model(**kw):
    return recipe('experimental_slm')['slm'](**TINY | dict(d_ff=48, vocab_size=100) | kw)


def slm_readme_model():
    return recipe('experimental_slm')['slm'](MLP, **TINY | dict(d_ff=48, vocab_size=100))


def lab_model(**kw):
    size = dict(aspect=8, d_head=16, vocab_size=61, context_length=32)
    return recipe('gpt_lab')['gpt_lab'](4, **size | kw)


def gradient_model(**kw):
    r = recipe('gradientlab')
    size = dict(vocab_size=61, context_length=32, d_model=32, d_embed=8, d_ff=48)
    attn = r['squeezed'](6, squeeze=partial(r['wide'], d_head=4))
    return r['gradientlab'](6, **size | dict(attn=attn) | kw)


def hlb_model(**kw):
    size = dict(vocab_size=61, context_length=32, n_layers=3, d_model=32)
    return recipe('hlb_gpt')['hlb_gpt'](.5, **size | kw)


RECIPES = dict(
    recipe_slm=slm_model,
    recipe_slm_readme=slm_readme_model,
    recipe_gpt_lab=lab_model,
    recipe_gpt_lab_own_residual=lambda: lab_model(own_residual=True),
    recipe_gradientlab=gradient_model,
    recipe_hlb_gpt=hlb_model)

MODELS = PLAIN | STACKS | POSITIONS | ATTENTIONS | EXPERTS | RECIPES


# ---- what is asked of every model

def stir(model, seed=1, std=.1):
    "Noise on every parameter, so that initial zeros hide nothing; returns the model"
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += std*torch.randn(p.shape, generator=noise)
    return model


def some_ids(V, B=2, T=24, seed=2):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def made(cfg, seed=3):
    "A model of the config, from a seed"
    set_seed(seed)
    return GPT(cfg)


def lively(cfg):
    "A model of which no weight is zero, for reading"
    return stir(made(cfg)).eval()


def logits_of(model, T=24):
    "The hash of the logits of two fixed rows"
    was, ids = model.training, some_ids(model.cfg.vocab_size, T=T)
    with torch.no_grad():
        found = digest(model.eval()(ids))
    model.train(was)
    return found


def weights_of(model):
    "The hash of all parameters in their order"
    return digest([p for _, p in model.named_parameters()])


@fact('model', MODELS)
def model_facts(make):
    cfg = make()
    model = made(cfg)
    found = dict(config=exact(cfg.to_dict()), names=[n for n, _ in model.named_parameters()])
    found |= dict(weights=weights_of(model), random=digest(torch.get_rng_state()))
    found |= dict(parameters=model.n_params(), operations=model.flops_per_token(24))
    found |= read_facts(stir(model).eval())
    return found | learn_facts(model)


@torch.no_grad()
def read_facts(model):
    ids = some_ids(model.cfg.vocab_size)
    place = torch.arange(24).expand(2, 24)
    docs = torch.stack([place[0]//7, place[0]//11])
    pos = torch.stack([place[0] % 7, place[0] % 11])
    found = dict(logits=digest(model(ids)), documents=digest(model(ids, docs=docs, pos=pos)))
    found['padded'] = padded(model, ids, place)
    found['cached'] = in_pieces(model, ids)
    return found


def padded(model, ids, place):
    "Rows with five tokens of padding on the left: logits of the others"
    before = place - 5
    y = model(ids, docs=torch.where(before < 0, -1, 0), pos=before.clamp(min=0))
    return digest(y[:,5:])


def in_pieces(model, ids):
    caches = model.new_caches()
    if caches is None:
        return 'cannot be cached'
    return digest([model(piece, caches=caches) for piece in ids.split([5, 1, 1, 9, 8], 1)])


def learn_facts(model):
    ids = some_ids(model.cfg.vocab_size, T=25)
    batch = dict(ids=ids[:,:-1], targets=ids[:,1:].clone())
    batch['targets'][0,:4] = -100
    model.train()
    seed_all(4)
    nll, aux = model(**batch)
    seed_all(4)
    total, weight = lm_loss(model, batch)
    total.backward()
    found = dict(surprise=digest(nll), auxiliary=exact(float(aux)), loss=exact(float(total)))
    found['targets'] = int(weight)
    return found | dict(gradients=digest([p.grad for p in model.parameters()]))


# ---- how a model runs, and what is known about it

def computed_again(model):
    model.remat = True
    return model


def in_chunks(model, n=7):
    model.loss_chunk = n
    return model


MEMORY = dict(again=computed_again, chunks=in_chunks,
              both=lambda model: in_chunks(computed_again(model), 16))


@fact('model runs', MEMORY)
def memory_options(change):
    return learn_facts(change(stir(made(tiny(dropout=.1)))))


@fact('model drops', dict(plain=lambda: tiny(dropout=.2),
                          gpt2=lambda: gpt2_config(**TINY, dropout=.2),
                          attention=lambda: tiny(attn=partial(Attention, dropout=.3)),
                          parallel=lambda: tiny(dropout=.2, block=ParallelBlock),
                          experts=lambda: tiny(dropout=.2, mlp=MoE),
                          recipe=lambda: gradient_model(dropout=.2)))
def dropout(make):
    return learn_facts(stir(made(make())))


@fact('model needs', {k: MODELS[k] for k in ('plain', 'gpt2', 'latent', 'experts', 'delta')})
def memory_needed(make):
    return exact(made(make()).memory(2, 16))


@fact('model is checked', {k: MODELS[k] for k in ('plain', 'gpt2', 'latent', 'experts')})
def checked(make):
    report = check_model(make())
    return [report.ok, *(str(v) for v in report.values())]


@fact('model from saved config', {k: MODELS[k] for k in MODELS if not k.startswith('recipe')})
def from_saved(make):
    saved = json.loads(json.dumps(make().to_dict()))
    return weights_of(made(GPTConfig.from_dict(saved)))


@fact('model by flex', dict(window=dict(window=6), alibi=dict(pos=ALiBi), cap=dict(softcap=9.)))
def by_flex(kw):
    return logits_of(lively(opened(backend=flex, **kw)))


@fact('model of the default size')
def default_sizes():
    with torch.device('meta'):
        models = dict(default=GPT(GPTConfig()), gpt2=GPT(gpt2_config()), llama=GPT(llama_config()))
    return {n: [m.n_params(), m.flops_per_token()] for n, m in models.items()}


# ---- parts alone

@fact('attention spelt out', dict(plain={}, cap=dict(softcap=3.)))
def spelt_out(kw):
    q, k, v = (torch.randn(2, 3, 7, 8) for _ in range(3))
    return digest(plain_attention(q, k, v, torch.ones(7, 7).tril().bool(), **kw))


@fact('what is visible')
def seen():
    pos = torch.arange(6).expand(1, 6)
    docs = pos//4
    return digest([visible_mask(pos, pos), visible_mask(pos, pos, window=2),
                   visible_mask(pos, pos, docs, docs)])


@fact('delta rule')
def delta():
    q, k, v = (torch.randn(2, 3, 17, 8) for _ in range(3))
    k, beta = F.normalize(k, dim=-1), torch.rand(2, 3, 17)
    fresh = torch.rand(2, 17) < .2
    plain = delta_rule(q, k, v, beta)
    return digest(plain, delta_rule(q, k, v, beta, plain[1], fresh, 4))


@fact('weights for the other rotation')
def rotation_order():
    w = torch.randn(24, 5)
    return digest(halves_to_pairs(w, 8), pairs_to_halves(w, 8))


@fact('bytes in caches', {k: MODELS[k] for k in ('plain', 'window', 'ring_cache', 'latent')})
def cached_bytes(make):
    model = lively(make())
    caches = model.new_caches()
    with torch.no_grad():
        model(some_ids(61), caches=caches)
    return cache_bytes(caches)


@fact('report', dict(rms_norm=lambda: check_part(RMSNorm, 16), mlp=lambda: check_part(MLP, 16, 32),
                     glu=lambda: check_part(GLU, 16, 32), attention=lambda: check_attn(Attention),
                     grouped=lambda: check_attn(Attention, n_kv_heads=2),
                     latent=lambda: check_attn(MLA), delta=lambda: check_attn(DeltaAttention)))
def reported(check):
    report = check()
    return [report.ok, *(str(v) for v in report.values())]


@fact('roles of matrices', {k: MODELS[k] for k in ('plain', 'gpt2', 'latent', 'experts_shared')})
def role_of_each(make):
    return parameter_roles(made(make()))


@fact('offers to a part')
def offers():
    def part(a, b, layer, dropout=0.):
        return [a, b, layer, dropout]
    plain = build_part(part, 1, 2, layer=3, n_layers=4)
    return plain + build_part(partial(part, layer=5, dropout=.5), 1, 2, layer=3, dropout=.1)


# ---- experts

@fact('experts are chosen')
def chosen():
    scores = torch.rand(9, 5)
    weights, experts = route_tokens(scores, 2)
    biased = route_tokens(scores, 2, torch.linspace(-.5, .5, 5), normalise=False)
    loss = balance_loss(experts, scores/scores.sum(-1, keepdim=True))
    shares = load_of(experts, 5)
    found = dict(choice=digest(weights, experts), biased=digest(biased), loss=exact(float(loss)))
    found |= dict(shares=digest(shares), dropped=exact(float(dropped_share(shares, 1.))))
    return found | dict(top=digest(top_share(torch.rand(3, 11), .3)))


@fact('load of experts', {k: EXPERTS[k] for k in ('experts', 'experts_by_bias')})
def loads(make):
    model = lively(make())
    load = expert_load(model, dict(ids=some_ids(61)))
    return dict(load=digest(load), active=active_params(model))


# ---- surgery

def grouped_heads():
    model = lively(tiny())
    swap(model, Attention, lambda old: to_gqa(old, 2))
    return model


def corrected():
    model = lively(tiny())
    seed_all(5)
    count = add_lora(model, 4, 8.)
    return stir(model), count


@fact('surgery')
def surgery():
    model, count = corrected()
    found = dict(grouped=logits_of(grouped_heads()), lora=[count, n_learning(model)])
    found |= dict(lora_logits=logits_of(model), lora_state=digest(list(lora_state(model).values())))
    swap(model, LoRA, LoRA.merged)
    found['merged'] = logits_of(model)
    return found


@fact('corrections go to another model')
def corrections_elsewhere():
    model, _ = corrected()
    other, _ = corrected()
    load_lora(other, {n: t*2 for n, t in lora_state(model).items()})
    return logits_of(other)


TRANSPLANTS = dict(
    untied=lambda: rebuild(lively(tiny(tie=True)), tie=False),
    longer=lambda: rebuild(lively(tiny()), context_length=64),
    wider_vocabulary=lambda: widen_vocab(lively(tiny()), 70),
    wider_vocabulary_tied=lambda: widen_vocab(lively(tiny(tie=True, vocab_multiple=16)), 70),
    wider_vocabulary_gpt2=lambda: widen_vocab(lively(gpt2_config(**TINY)), 64),
    deeper=lambda: add_layers(lively(tiny()), 5))


@fact('transplant', TRANSPLANTS)
def transplanted(make):
    model = make()
    return dict(logits=logits_of(model), parameters=model.n_params(), ok=check_config(model).ok)


@fact('longer context', dict(yarn=lambda: dict(scheme=YaRN), ntk=lambda: dict(scheme=NTK),
                             linear=lambda: dict(scheme=ScaledRoPE),
                             llama3=lambda: dict(scheme=Llama3RoPE)))
def extended(kw):
    model = lively(tiny())
    count = extend_context(model, 2., **kw())
    return dict(count=count, length=model.cfg.context_length, logits=logits_of(model, 50))


# ---- what is taken for granted: the defaults of every public name

def _public():
    "Every class and function that `gptlab.all` gives and gptlab defines"
    import gptlab.all as everything
    for name in sorted(everything.__all__):
        thing = getattr(everything, name)
        if callable(thing) and getattr(thing, '__module__', '').startswith('gptlab'):
            yield name, thing


def _default(value):
    "A default as JSON can hold it"
    if isinstance(value, partial):
        return [_default(value.func), _default(value.keywords)]
    if callable(value):
        return value.__module__ + '.' + value.__qualname__
    if isinstance(value, dict):
        return {k: _default(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_default(v) for v in value]
    return exact(value) if isinstance(value, float) else repr(value)


@fact('defaults')
def defaults():
    found = {}
    for name, thing in _public():
        try:
            given = inspect.signature(thing).parameters.values()
        except (TypeError, ValueError):
            continue
        found[name] = {p.name: 'needed' if p.default is p.empty else _default(p.default)
                       for p in given}
    return found

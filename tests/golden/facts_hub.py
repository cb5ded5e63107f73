"""Facts about Hugging Face's formats, in and out, and about GGUF."""
import json
from pathlib import Path

from gptlab.all import *

from facts_models import stir
from registry import digest, exact, fact, once, seed_all

SHAPE = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
             num_attention_heads=4, max_position_embeddings=96, bos_token_id=None,
             eos_token_id=None, pad_token_id=None)
GPT2_SHAPE = dict(vocab_size=61, n_positions=96, n_embd=32, n_layer=2, n_head=4,
                  bos_token_id=None, eos_token_id=None, pad_token_id=None)
GROUPED = dict(num_key_value_heads=2)
SCALED = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=3.,
              original_max_position_embeddings=32, rope_theta=5e5)
YARN_FIELDS = dict(rope_type='yarn', factor=4., original_max_position_embeddings=24,
                   beta_fast=16., rope_theta=1e6)
STRETCHED = dict(use_sliding_window=True, sliding_window=12, rope_parameters=YARN_FIELDS,
                 layer_types=['full_attention', 'sliding_attention'])

THEIRS = dict(
    gpt2=('GPT2', GPT2_SHAPE),
    gpt2_untied=('GPT2', GPT2_SHAPE | dict(tie_word_embeddings=False, activation_function='gelu')),
    llama=('Llama', SHAPE),
    llama_tied=('Llama', SHAPE | GROUPED | dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
    llama_biases=('Llama', SHAPE | dict(attention_bias=True, mlp_bias=True, head_dim=12)),
    llama_scaled=('Llama', SHAPE | dict(rope_parameters=SCALED)),
    smollm3=('SmolLM3', SHAPE | GROUPED | dict(no_rope_layers=[1, 0])),
    mistral=('Mistral', SHAPE | GROUPED | dict(sliding_window=None)),
    mistral_window=('Mistral', SHAPE | GROUPED | dict(sliding_window=12, head_dim=20)),
    qwen2=('Qwen2', SHAPE | GROUPED | dict(tie_word_embeddings=True)),
    qwen2_stretched=('Qwen2', SHAPE | GROUPED | STRETCHED),
    qwen3=('Qwen3', SHAPE | GROUPED | dict(head_dim=12)),
    qwen3_biases=('Qwen3', SHAPE | GROUPED | dict(head_dim=8, attention_bias=True)))


def gated(**kw):
    return llama_config(**dict(vocab_size=61, context_length=96, n_layers=2, n_heads=4,
                               n_kv_heads=2, d_model=32, d_ff=40) | kw)


def shaped_gpt2(**kw):
    return gpt2_config(**dict(vocab_size=61, context_length=96, n_layers=2, n_heads=4,
                              d_model=32) | kw)


def bare(**kw):
    return partial(Attention, qk_norm=False, **kw)


OURS = dict(
    gpt2=lambda: shaped_gpt2(),
    gpt2_untied=lambda: shaped_gpt2(tie=False, mlp=partial(MLP, act=gelu)),
    llama=lambda: gated(),
    llama_tied=lambda: gated(tie=True, norm=partial(RMSNorm, gain=False)),
    llama_scaled=lambda: gated(attn=bare(pos=partial(HubLlama3, context_length=32))),
    llama_stretched=lambda: gated(attn=bare(pos=partial(YaRN, factor=4., context_length=24))),
    smollm3=lambda: gated(attn=[bare(), bare(pos=None)]),
    mistral=lambda: gated(attn=bare(window=12)),
    qwen2=lambda: gated(tie=True, attn=partial(HubAttention, bias=True)),
    qwen3=lambda: gated(attn=partial(HubAttention, qk_gain=True, d_head=12)),
    own=lambda: GPTConfig(61, 96, 2, 4, 2, 32),
    own_tied=lambda: gated(tie=True, softcap=20.))


def rows():
    return torch.randint(0, 61, (2, 70), generator=torch.Generator().manual_seed(1))


def their_model(name):
    import transformers
    kind, kw = THEIRS[name]
    seed_all(0)
    cfg = getattr(transformers, kind + 'Config')(**kw)
    return stir(transformers.AutoModelForCausalLM.from_config(cfg)).eval()


def read_back(folder):
    "The logits of transformers for a folder"
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return digest(model(rows()).logits)


@fact('from transformers', THEIRS)
@torch.no_grad()
def from_theirs(case):
    name = next(n for n in THEIRS if THEIRS[n] is case)
    their_model(name).save_pretrained('theirs')
    model, _ = load('theirs', device='cpu')
    save(model, None, 'again')
    found = dict(config=exact(model.cfg.to_dict()), logits=digest(model(rows())))
    found |= dict(family=family_of(model.cfg), again=read_back('again'))
    return found | dict(written=config_file('again'))


def config_file(folder):
    "The content of config.json, without the library's version"
    found = json.loads(Path(folder, 'config.json').read_text())
    return exact({k: v for k, v in found.items() if 'version' not in k})


@fact('to transformers', OURS)
@torch.no_grad()
def to_theirs(make):
    seed_all(0)
    model = stir(GPT(make())).eval()
    save(model, None, 'ours')
    back, _ = load('ours', device='cpu')
    found = dict(config=config_file('ours'), files=sorted(p.name for p in Path('ours').iterdir()))
    found |= dict(ours=digest(model(rows())), theirs=read_back('ours'), back=digest(back(rows())))
    family = family_of(model.cfg)
    found['family'] = family
    if family:
        found['names'] = tensor_names(model.cfg, family)
    return found | dict(possible=[f for f, why in family_obstacles(model.cfg).items() if not why])


@fact('weights in several files')
@torch.no_grad()
def several_files():
    seed_all(0)
    model = stir(GPT(shaped_gpt2())).eval()
    save(model, None, 'ours', shard=20_000)
    files = {f.name: digest(f.read_bytes()) for f in sorted(Path('ours').glob('*.safetensors'))}
    return dict(files=files, logits=digest(load('ours', device='cpu')[0](rows())))


@once
def some_tokenizer():
    return BPE.train(make_stories(40, seed=1), 300)


@fact('tokenizer goes along', dict(learnt=some_tokenizer, bytes=lambda: ByteTokenizer()))
def along(make):
    import transformers
    tok = make()
    seed_all(0)
    save(GPT(gated(vocab_size=tok.vocab_size)), tok, 'ours')
    theirs = transformers.AutoTokenizer.from_pretrained('ours')
    _, back = load('ours', device='cpu')
    texts = ['Once upon a time,\n\tthere was a naïve 🐙  fox 1234', '  ', 'x'*50]
    ids = [theirs(s)['input_ids'] for s in texts]
    files = sorted(p.name for p in Path('ours').iterdir())
    return dict(ids=ids, same=ids == back.encode_batch(texts), files=files)


GGUFS = dict(half=(lambda: gated(), 'f16'), whole=(lambda: gated(tie=True), 'f32'),
             scaled=(lambda: gated(attn=bare(pos=partial(HubLlama3, context_length=32))), 'f16'))


@fact('gguf', GGUFS)
def gguf_file(case):
    make, dtype = case
    seed_all(0)
    model = stir(GPT(make())).eval()
    return digest(save_gguf(model, None, 'model.gguf', dtype).read_bytes())


@fact('gguf with a tokenizer')
def gguf_with_tokenizer():
    tok = some_tokenizer()
    seed_all(0)
    model = stir(GPT(gated(vocab_size=tok.vocab_size)))
    return digest(save_gguf(model, tok, 'model.gguf', 'f16').read_bytes())

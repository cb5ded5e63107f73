"""Hugging Face in both directions: equal logits and equal greedy text for every family, made
offline from random weights; and what bad folders get.

Run as a program (`python test_hub.py FOLDER [dtype]`) it is the process whose memory is measured:
it loads FOLDER and prints what that took.
"""
import inspect, json, os, re, shutil, subprocess, sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common import extra
from gptlab import hub
from gptlab.attention import Attention, LearnedPositions, RoPE
from gptlab.blocks import gelu, GLU, LayerNorm, MLP, perturb_parameters, RMSNorm
from gptlab.bpe import BPE
from gptlab.checkpoints import save_checkpoint
from gptlab.generation import generate, top_k
from gptlab.hub import family_of, HubAttention, HubLlama3, HubYaRN, load, family_obstacles, save
from gptlab.model import GPT, gpt2_config, GPTConfig, llama_config
from gptlab.positions import ALiBi, NTK, ScaledRoPE, YaRN
from gptlab.tokenizer import ByteTokenizer, CharTokenizer

transformers = None if __name__ == '__main__' else extra('transformers')

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
             num_attention_heads=4, max_position_embeddings=160, bos_token_id=None,
             eos_token_id=None, pad_token_id=None)
GQA   = dict(num_key_value_heads=2)
LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=3.,
              original_max_position_embeddings=32)
YARN   = dict(rope_type='yarn', factor=4., original_max_position_embeddings=40, beta_fast=16.)
MIXED  = ['full_attention', 'sliding_attention', 'full_attention']
SMALL2 = dict(vocab_size=97, n_positions=160, n_embd=32, n_layer=3, n_head=4, bos_token_id=None,
              eos_token_id=None, pad_token_id=None)

THEIRS = {
    'gpt2, tied': ('GPT2', SMALL2), 'gpt2, untied, exact gelu': (
        'GPT2', SMALL2 | dict(tie_word_embeddings=False, activation_function='gelu', n_inner=72)),
    'llama': ('Llama', SHAPE),
    'llama, tied, grouped heads': ('Llama',
                                   SHAPE | GQA | dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
    'llama, biases, own head width': ('Llama', SHAPE | GQA
                                      | dict(attention_bias=True, mlp_bias=True, head_dim=12)),
    'llama 3, rope scaled': ('Llama',
                             SHAPE | GQA | dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5))),
    'llama, rope linear': ('Llama', SHAPE | dict(
        rope_parameters=dict(rope_type='linear', factor=4., rope_theta=1e4))),
    'smollm (llama, tied, odd heads)': ('Llama', SHAPE | dict(
        num_attention_heads=3, num_key_value_heads=1, hidden_size=36, tie_word_embeddings=True,
        rope_parameters=dict(rope_type='default', rope_theta=1e5))),
    'smollm3, some layers unturned': ('SmolLM3', SHAPE | GQA
                                      | dict(no_rope_layers=[1, 0, 1], pad_token_id=None)),
    'mistral': ('Mistral', SHAPE | GQA | dict(sliding_window=None)),
    'mistral, window 24, own head width':('Mistral',
                                          SHAPE | GQA | dict(sliding_window=24, head_dim=20)),
    'qwen2, tied': ('Qwen2', SHAPE | GQA | dict(tie_word_embeddings=True)),
    'qwen2, yarn, mixed windows': (
        'Qwen2', SHAPE | GQA | dict(use_sliding_window=True, sliding_window=24, layer_types=MIXED,
                                    rope_parameters=YARN | dict(rope_theta=1e6))),
    'qwen3, own head width': ('Qwen3', SHAPE | GQA | dict(head_dim=12)),
    'qwen3, tied, biases, windows': ('Qwen3', SHAPE | GQA
                                     | dict(head_dim=8, attention_bias=True,
                                            tie_word_embeddings=True, use_sliding_window=True,
                                            sliding_window=24, max_window_layers=1)),}

def gated(**kw):
    return replace(llama_config(), **dict(vocab_size=97, n_layers=3, n_heads=4, n_kv_heads=2,
                                          d_model=32, d_ff=56, context_length=160) | kw)


def small2(**kw):
    return replace(gpt2_config(), **dict(vocab_size=97, n_layers=3, n_heads=4, d_model=32,
                                         context_length=160) | kw)


llama_attn = partial(Attention, qk_norm=False)

OURS = {
    'gpt2': ('gpt2', small2()), 'gpt2 without biases, untied': (
        'gpt2', small2(tie=False, norm=partial(LayerNorm, bias=False), mlp=partial(MLP, act=gelu),
                       attn=partial(Attention, pos=None, qk_norm=False))),
    'llama': ('llama', gated()), 'llama, tied, no gain, GEGLU': (
        'llama', gated(tie=True, norm=partial(RMSNorm, gain=False), mlp=partial(GLU, act=gelu))),
    'llama, biases': ('llama',
                      gated(attn=partial(llama_attn, bias=True), mlp=partial(GLU, bias=True))),
    'llama, llama3 rope': ('llama', gated(attn=partial(llama_attn,
                                                       pos=partial(HubLlama3, context_length=32)))),
    'llama, yarn': ('llama',
                    gated(attn=partial(llama_attn,
                                       pos=partial(HubYaRN, context_length=40, strength=1.2)))),
    'llama, extended by YaRN': (
        'llama', gated(attn=partial(llama_attn, pos=partial(YaRN, factor=4., context_length=40)))),
    'llama, extended by NTK': (
        'llama', gated(attn=partial(llama_attn, pos=partial(NTK, factor=4., context_length=40)))),
    'llama, linear': ('llama',
                      gated(attn=partial(llama_attn,
                                         pos=partial(ScaledRoPE, factor=4., context_length=40)))),
    'smollm3, some layers unturned': ('smollm3',
                                      gated(attn=[llama_attn, partial(llama_attn, pos=None)])),
    'mistral, window': ('mistral', gated(attn=partial(llama_attn, window=24))),
    'mistral, width 30 with 4 heads of 12':('mistral',
                                            gated(d_model=30, attn=partial(llama_attn, d_head=12))),
    'qwen2, biases': ('qwen2', gated(tie=True, attn=partial(HubAttention, bias=True))),
    'qwen2, mixed windows, no biases': ('qwen2',
                                        gated(attn=[partial(llama_attn, window=24), llama_attn])),
    'qwen3, mixed windows': ('qwen3', gated(norm=partial(RMSNorm, eps=1e-6), attn=[
        partial(HubAttention, qk_gain=True, d_head=12, window=w) for w in (24, None)])),
    'our own class': (None, GPTConfig(97, 160, 3, 4, 2, 32)),
    'our own class, tied': (None,
                            gated(tie=True, softcap=20., attn=partial(Attention, window=24))),}


def make_theirs(name, seed=0):
    "A random model of transformers in which nothing is zero or one"
    kind, kw = THEIRS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f'{kind}Config')(**kw)
    model = getattr(transformers, 'GPT2LMHeadModel' if kind == 'GPT2' else f'{kind}ForCausalLM')(
        config)
    # so that a token is not answered by itself
    perturb_parameters(model.transformer.h if kind == 'GPT2' else model.model.layers, .3)
    return perturb_parameters(model, .15).eval()

def make_ours(cfg, seed=0):
    torch.manual_seed(seed)
    model = GPT(cfg)
    perturb_parameters(model.blocks, .3)
    return perturb_parameters(model, .15).eval()

@torch.no_grad()
def compare(ours, theirs, n=64):
    "(largest difference of logits over rows of 150 tokens, are so many greedy tokens the same?)"
    # (B,T)
    ids = torch.randint(0, 97, (2, 150), generator=torch.Generator().manual_seed(1))
    gap = (ours(ids) - theirs(ids).logits).abs().max().item()
    prompt = ids[:1,:20]
    greedy = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n,
                             do_sample=False, pad_token_id=0)[0,20:].tolist()
    assert len(greedy) == n and len(set(greedy)) > 3     # a text, not one token again and again
    return gap, list(generate(ours, prompt[0].tolist(), n, top_k(1))) == greedy


# ---- equal logits, both directions

@pytest.mark.grid(quick=5)
@pytest.mark.parametrize('name', THEIRS)
def test_in(name, tmp_path):
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours, tok = load(tmp_path, device='cpu')
    gap, same = compare(ours, theirs)
    print(f'in   {name}: {gap:.1e}')
    assert tok is None and gap < 1e-5 and same
    save(ours, None, tmp_path/'again')                    # and out again, as the same family
    kept, new = (transformers.AutoConfig.from_pretrained(p) for p in (tmp_path, tmp_path/'again'))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'again').eval()
    assert compare(ours, again, 12) == (pytest.approx(0, abs=1e-4), True)
    # without a window, Mistral is a LLaMA
    if name not in ('mistral',): assert new.model_type == kept.model_type


@pytest.mark.grid(quick=5)
@pytest.mark.parametrize('name', OURS)
def test_out(name, tmp_path, capsys):
    family, cfg = OURS[name]
    assert family_of(cfg) == family
    model = make_ours(cfg)
    save(model, None, tmp_path)
    assert ('GPTLabForCausalLM' in capsys.readouterr().out) == (family is None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.config.model_type == (family or 'gptlab')
    gap, same = compare(model, theirs)
    print(f'out  {name}: {gap:.1e}')
    assert gap < 1e-5 and same
    back, _ = load(tmp_path, device='cpu')
    ids = torch.arange(90)[None]
    assert (back(ids) - model(ids)).abs().max() < 1e-5


@pytest.mark.parametrize('name', ['gpt2, untied, exact gelu', 'llama, biases, own head width',
                                  'qwen3, tied, biases, windows'])
def test_every_tensor_counts(name, tmp_path):
    """The control of the comparison: when any one tensor of theirs changes, the logits differ by
    far more than what is allowed"""
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path, device='cpu')
    # (B,T)
    ids = torch.randint(0, 97, (2, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = ours(ids)
        for n, p in theirs.named_parameters():
            kept = p.clone()
            p += .1*torch.randn_like(p)
            assert (theirs(ids).logits - want).abs().max() > 1e-3, n
            p.copy_(kept)
        assert (theirs(ids).logits - want).abs().max() < 1e-4


def test_our_class_left_padding_loss_and_generation(tmp_path):
    model = make_ours(OURS['our own class'][1])
    save(model, None, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(0, 97, (1, 30))
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 9, dtype=torch.long), torch.ones_like(ids)], 1)
    with torch.no_grad():
        assert (theirs(padded, attention_mask=mask).logits[:,9:] - model(ids)).abs().max() < 1e-4
        nll, _ = model(ids[:,:-1], ids[:,1:])
        assert abs(theirs(ids, labels=ids).loss - nll.mean()) < 1e-5
    theirs.save_pretrained(tmp_path/'again')
    back, _ = load(tmp_path/'again', device='cpu')
    assert torch.equal(back(ids), model(ids))


def test_our_class_checkpoints_and_widens(tmp_path, capsys):
    model, ids = make_ours(GPTConfig(97, 160, 2, 4, 2, 32, tie=True)), torch.arange(50)[None]
    save(model, None, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    grads = []
    for way in ((theirs.activation_checkpointing_disable, theirs.activation_checkpointing_enable)
                if hasattr(theirs, 'activation_checkpointing_enable')
                else (theirs.gradient_checkpointing_disable, theirs.gradient_checkpointing_enable)):
        way()
        theirs.zero_grad()
        theirs(ids, labels=ids).loss.backward()
        grads.append(theirs.gpt.embed.weight.grad.clone())
    assert theirs.gpt.remat and torch.equal(*grads)
    theirs.resize_token_embeddings(99, pad_to_multiple_of=4)
    assert (theirs.config.vocab_size == 100
            and torch.allclose(theirs.eval()(ids).logits[...,:97], model(ids), atol=1e-5))
    theirs.save_pretrained(tmp_path/'wide')
    assert torch.equal(load(tmp_path/'wide', device='cpu')[0](ids), theirs(ids).logits)


def test_a_part_of_ones_own(tmp_path, capsys):
    save(make_ours(GPTConfig(97, 160, 2, 4, None, 32, attn=Mine)), None, tmp_path)
    with pytest.raises(ValueError, match=r"parts=dict\(Mine=Mine\)"): load(tmp_path)
    ours, _ = load(tmp_path, parts=dict(Mine=Mine), device='cpu')
    hub.register_in_transformers(dict(Mine=Mine))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(50)[None]
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4

class Mine(Attention): pass


# ---- tokenizers go along

TEXTS = ['Once upon a time,\n\tthere was a naïve 🐙  fox 1234', '  ', 'x'*50, '']

@pytest.mark.parametrize('make',
                         [lambda: BPE.train(' '.join(f'{i} naïve foxes jumped' for i in range(300)),
                                            350), ByteTokenizer], ids=['bpe', 'bytes'])
def test_tokenizer_goes_along(make, tmp_path):
    tok = make()
    save(make_ours(gated(vocab_size=tok.vocab_size)), tok, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.bos_token_id == theirs.eos_token_id == tok.bos and len(theirs) == tok.vocab_size
    for s in TEXTS:
        assert theirs(s)['input_ids'] == [tok.bos, *tok.encode(s)]
        assert theirs.decode(tok.encode(s)) == s
    _, back = load(tmp_path, device='cpu')
    assert [back.encode(s) for s in TEXTS] == [tok.encode(s) for s in TEXTS] and back.bos == tok.bos

def test_tokenizer_that_transformers_lacks(tmp_path, capsys):
    tok = CharTokenizer.train('abc def')
    save(make_ours(gated(vocab_size=tok.vocab_size)), tok, tmp_path)
    assert 'transformers has no CharTokenizer' in capsys.readouterr().out
    assert load(tmp_path, device='cpu')[1].encode('fed') == tok.encode('fed')


# ---- our own checkpoints

def test_a_run_opens_with_the_same_load(tmp_path):
    tok, model = ByteTokenizer(), make_ours(gated(vocab_size=257))
    path = save_checkpoint(tmp_path/'run'/'step_000010', model=model.state_dict(),
                           config=model.cfg.to_dict(), tokenizer=tok.to_dict(), trainer={})
    ids = torch.arange(90)[None]
    for p in (path, tmp_path/'run', tmp_path):
        back, t = load(p, device='cpu')
        assert (torch.equal(back(ids), model(ids)) and t.encode('né') == tok.encode('né')
                and not back.training)
    assert load(path, dtype=torch.bfloat16, device='cpu')[0].embed.weight.dtype == torch.bfloat16


# ---- shards and memory

def test_shards(tmp_path):
    model = make_ours(small2())
    save(model, None, tmp_path, shard=40_000)
    files = sorted(tmp_path.glob('*.safetensors'))
    assert len(files) > 2 and max(f.stat().st_size for f in files) < 50_000
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(90)[None]
    back, _ = load(tmp_path, device='cpu')
    assert (torch.equal(back(ids), model(ids))
            and (theirs(ids).logits - model(ids)).abs().max() < 1e-4)
    save(model, None, tmp_path)                           # the shards of before are gone
    assert ([f.name for f in tmp_path.glob('*.safetensors')] == ['model.safetensors']
            and not (tmp_path/'model.safetensors.index.json').exists())

@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory(tmp_path):
    "Loading takes one copy of the weights, and about the largest tensor beside it"
    save(GPT(gated(vocab_size=4000, n_layers=6, n_heads=8, n_kv_heads=8, d_model=512, d_ff=1376)),
         None, tmp_path)
    out = json.loads(subprocess.run([sys.executable, __file__, str(tmp_path)], check=True,
                                    capture_output=True, text=True, timeout=120).stdout)
    print(out)
    assert out['peak'] < 1.25*out['weights']


# ---- bad folders

@pytest.fixture
def folder(tmp_path):
    save(make_ours(small2()), None, tmp_path)
    return tmp_path

def change(folder, f):
    (folder/'checksums.json').unlink(missing_ok=True)             # else it is taken for damage
    t = load_file(folder/'model.safetensors')
    f(t)
    save_file(t, folder/'model.safetensors')

def config(folder, **kw):
    (folder/'config.json').write_text(json.dumps(json.loads((folder/'config.json').read_text())
                                                 | kw))

def test_tensors_that_do_not_fit_are_all_listed(folder):
    def f(t):
        del t['transformer.h.0.ln_1.bias'], t['transformer.h.2.mlp.c_fc.weight']
        t['transformer.wpe.weight'] = torch.zeros(160, 31)
        t['transformer.h.1.extra'] = torch.zeros(3)
        # the mask that old files carry along
        t['transformer.h.0.attn.bias'] = torch.zeros(1, 1, 4, 4)
    change(folder, f)
    with pytest.raises(ValueError) as e: load(folder)
    for part in ('missing: h.0.ln_1.bias (32,)', 'missing: h.2.mlp.c_fc.weight (32, 128)',
                 'other shape: wpe.weight is (160, 31), should be (160, 32)',
                 'extra: h.1.extra (3,)'):
        assert part in str(e.value)
    assert len(str(e.value).splitlines()) == 5

def test_names_without_prefix_are_found(folder):
    ids, want = torch.arange(50)[None], load(folder, device='cpu')[0]
    change(folder,
           lambda t: [t.__setitem__(n.removeprefix('transformer.'), t.pop(n)) for n in list(t)])
    assert torch.equal(load(folder, device='cpu')[0](ids), want(ids))

def test_pickles_are_refused(folder):
    (folder/'model.safetensors').rename(folder/'pytorch_model.bin')
    with pytest.raises(ValueError, match='only pickled weights .pytorch_model.bin.*can run any '
                                         'code.*weights_only=True'):
        load(folder)
    (folder/'pytorch_model.bin').unlink()
    with pytest.raises(FileNotFoundError, match='holds no weights'): load(folder)

def test_damage(folder):
    whole = (folder/'model.safetensors').read_bytes()
    (folder/'model.safetensors').write_bytes(whole[:len(whole)//2])
    with pytest.raises(ValueError, match='model.safetensors is damaged'): load(folder)
    (folder/'model.safetensors').unlink()
    index(folder, dict(weight_map={'a': 'model-00002-of-00002.safetensors'}))
    with pytest.raises(FileNotFoundError,
                       match='model-00002-of-00002.safetensors of its index is missing'):
        load(folder)
    (folder/'config.json').write_text('{')
    with pytest.raises(ValueError, match='is no JSON'): load(folder)

@pytest.mark.parametrize('kw, message', [
    (dict(model_type='gpt3'),
     "config.json: model_type 'gpt3' is not known here; the nearest is 'gpt2'"),
    (dict(model_type='mixtral'), "nearest is 'mistral'"),
    (dict(model_type=None), 'model_type None'),
    (dict(activation_function='gelu_nwe'), "the nearest is 'gelu_new'"),
    (dict(scale_attn_by_inverse_layer_idx=True), 'scales its scores in another way')])
def test_configs_that_are_not_known(kw, message, folder):
    config(folder, **kw)
    with pytest.raises(ValueError, match=message): load(folder)

@pytest.mark.parametrize('kw, message', [(dict(rope_scaling=dict(rope_type='longrope', factor=2.)),
                                          "rope_type 'longrope'"),
                                         (dict(partial_rotary_factor=.5), 'partial_rotary_factor'),
                                         (dict(hidden_act='xielu'), "hidden_act 'xielu'")])
def test_variants_of_llama_that_are_not_known(kw, message, tmp_path):
    save(make_ours(gated()), None, tmp_path)
    config(tmp_path, **kw)
    with pytest.raises(ValueError, match=message): load(tmp_path)

@pytest.mark.parametrize('kw, message', [
    (dict(num_hidden_layers='3'), 'num_hidden_layers must be a whole number above 0, not "3"'),
    (dict(num_hidden_layers=True), 'num_hidden_layers must be'),
    (dict(vocab_size=None), 'vocab_size must be a whole number above 0, not null'),
    (dict(model_type=['llama']), r'model_type must be a text or null, not \["llama"\]'),
    (dict(rope_scaling='x'), 'rope_scaling must be an object {…} or null, not "x"'),
    (dict(rope_theta=None), 'rope_theta must be a number above 0, not null'),
    (dict(rope_scaling=dict(rope_type='linear', factor='4')),
     'factor must be a number above 0, not "4"'),
    (dict(rope_parameters=dict(full_attention=dict(rope_type='yarn'))),
     'settings of its own for full_attention'),
    (dict(tie_word_embeddings='false'), 'tie_word_embeddings must be true or false, not "false"'),
    (dict(rms_norm_eps=float('nan')), 'rms_norm_eps must be a number above 0, not NaN'),
    (dict(hidden_act=3), 'hidden_act must be a text'),
    (dict(model_type='qwen2', use_sliding_window=True, sliding_window=8,
          layer_types=['full_attention']), 'layer_types has 1 entries for 3 layers'),
    (dict(model_type='qwen2', use_sliding_window=True, sliding_window=8,
          layer_types=['linear_attention']*3),
     'layer_types must be a list with one of full_attention and sliding_attention'),
    (dict(gptlab=5), 'gptlab must be an object {…}, not 5'),
    (dict(gptlab=dict(norm={})), 'a part is described by'),
    (dict(gptlab=dict(n_layers=3, norm=dict(part='gptlab.blocks.RMSNorm', args=dict(gian=1)))),
     'describes no model that can be built: TypeError: .*gian'),
    (dict(gptlab=dict(n_layers='3')), 'n_layers must be a whole number'),
    (dict(vocab_size=10**30), 'describes no model that can be built'),
    (dict(num_attention_heads=5), 'does not divide into 5 heads|5 heads')])
def test_fields_that_are_not_what_they_must_be(kw, message, llama):
    config(llama,
           **{k: v for k, v in dict(head_dim=None).items() if 'num_attention_heads' in kw} | kw)
    with pytest.raises(ValueError, match=message): load(llama)

@pytest.fixture
def llama(tmp_path):
    save(make_ours(gated()), None, tmp_path)
    return tmp_path

def test_every_field_that_is_read_has_a_kind():
    readers = (hub._read_gpt2, hub._read_gated, hub._windows, hub._all_biases, hub._read_llama,
               hub._read_mistral, hub._read_qwen2, hub._read_qwen3, hub._read_smollm3,
               hub._rotation, hub._read_rope, hub._read_scaling, hub._fill_yarn, hub._biases,
               hub._yarn_strength)
    read = set(re.findall(r"\b[dr](?:\.get\(|\[)'(\w+)'",
                          ''.join(inspect.getsource(f) for f in readers)))
    assert len(read) > 40 and read <= set(hub._kinds), read - set(hub._kinds)
    nullable = hub._Fields({n: None for n, kind in hub._kinds.items() if kind.nullable})
    assert len(nullable) > 15 and all(nullable[n] is None for n in nullable)

@pytest.mark.parametrize('text, message',
                         [('null', r'config.json must hold an object {…}, not null'),
                          ('[1]', r'must hold an object {…}, not \[1\]'),
                          ('{', 'config.json is no JSON'), ('['*100_000, 'config.json is no JSON'),
                          ('\x80', 'is no JSON')])
def test_a_config_that_is_no_object(text, message, llama):
    (llama/'config.json').write_text(text, encoding='latin-1')
    with pytest.raises(ValueError, match=message): load(llama)

def test_read_config_by_itself():
    with pytest.raises(ValueError, match='must hold an object {…}, not None'): hub.read_config(None)
    with pytest.raises(ValueError,
                       match='vocab_size must be a whole number above 0, not "torch.float32"'):
        hub.read_config(dict(model_type='gpt2', vocab_size=torch.float32))

def test_sizes_are_compared_before_memory_is_taken(llama):
    config(llama, hidden_size=10**9, intermediate_size=10**9, head_dim=8)
    with pytest.raises(ValueError, match=r'other shape: layers.0.mlp.gate_proj.weight is \(56, '
                                         r'32\), should be \(1000000000, 1000000000\)'):
        load(llama)
    for n in (4, 10**6, 10**12):
        config(llama, num_hidden_layers=n)
        with pytest.raises(ValueError, match=f'describes {n} layers, and the files hold 3'):
            load(llama)
    config(llama, gptlab=GPTConfig().to_dict() | dict(n_layers=10**12))
    with pytest.raises(ValueError, match='describes 1000000000000 layers'): load(llama)


# ---- which files are read

def index(folder, d):
    (folder/'model.safetensors.index.json').write_text(d if isinstance(d, str) else json.dumps(d))

@pytest.mark.parametrize('told, message', [
    ('{', 'index.json is no JSON'), ({}, 'index.json needs a weight_map'),
    ([], r'must hold an object {…}, not \[\]'), (dict(weight_map=['a']), 'needs a weight_map'),
    (dict(weight_map=dict(a=5)), 'names 5: only'),
    *((dict(weight_map=dict(a=f)), 'only safetensors files beside it are opened')
      for f in ('../x.safetensors', '/x.safetensors', 'a/b.safetensors', r'..\x.safetensors',
                'x.bin', 'c:x.safetensors'))])
def test_an_index_that_is_none(told, message, llama):
    (llama/'model.safetensors').rename(llama/'model-00001-of-00001.safetensors')
    index(llama, told)
    with pytest.raises(ValueError, match=message): load(llama)

def test_only_the_files_of_the_model_are_read(llama):
    ids, want = torch.arange(50)[None], load(llama, device='cpu')[0]
    (llama/'adapter_model.safetensors').write_bytes(b'none of ours')
    assert torch.equal(load(llama, device='cpu')[0](ids), want(ids))
    tensors = load_file(llama/'model.safetensors')
    names = list(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({n: tensors[n] for n in part}
                  | {names[0]: torch.zeros(97, 32) if i else tensors[names[0]]},
                  llama/f'part{i}.safetensors')
    (llama/'model.safetensors').unlink()
    index(llama, dict(weight_map={n: f'part{i % 2}.safetensors' for i, n in enumerate(names)}))
    # the tensor that lies in both is taken from where the index says
    assert torch.equal(load(llama, device='cpu')[0](ids), want(ids))
    (llama/'model.safetensors.index.json').unlink()
    (llama/'adapter_model.safetensors').unlink()
    with pytest.raises(ValueError, match='in two files: keep one'): load(llama)

def test_one_tensor_under_two_names_is_refused(llama):
    change(llama, lambda t: t.__setitem__('norm.weight', torch.zeros(32)))
    with pytest.raises(ValueError,
                       match='holds model.norm.weight .model.safetensors., norm.weight '
                             '.model.safetensors., which are one tensor under two names'):
        load(llama)

def test_a_tied_head_in_the_file_is_a_copy_or_refused(folder):
    ids, want = torch.arange(50)[None], load(folder, device='cpu')[0]
    change(folder, lambda t: t.__setitem__('lm_head.weight', t['transformer.wte.weight'].clone()))
    assert torch.equal(load(folder, device='cpu')[0](ids), want(ids))
    # transformers does not tie these
    change(folder, lambda t: t.__setitem__('lm_head.weight', t['transformer.wte.weight'] + 1))
    with pytest.raises(ValueError,
                       match='ties head and embedding, but lm_head.weight is another matrix than '
                             'transformer.wte.weight: set tie_word_embeddings to false'):
        load(folder)

def test_folders_without_a_config(llama):
    (llama/'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='has no config.json, so it is no model of '
                                                'transformers, .*; it holds checksums.json, model'):
        load(llama)
    with pytest.raises(ValueError, match='is a file: name the folder'):
        load(llama/'model.safetensors')


# ---- a save is whole or has not been

def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def cannot(*_, **kw): raise SafetensorError('no space left on device')

def shared(cfg=None):
    model = make_ours(cfg or gated())
    model.blocks[2] = model.blocks[0]
    return model

def on_meta():
    with torch.device('meta'): return GPT(gated())

def untied():
    model = make_ours(gated(tie=True))
    model.head.weight = torch.nn.Parameter(model.head.weight + 1)
    return model

@pytest.mark.parametrize('make, message',
                         [(on_meta, 'shapes without values .on the meta device., embed.weight for '
                                    'one: load weights into it first'),
                          (untied, 'cfg.tie says .*set model.cfg.tie = False, or tie again'),
                          (lambda: make_ours(gated(norm=partial(Odd, place=Path('x')))),
                           'config.json cannot hold .*Path.*give plain numbers'),
                          (lambda: make_ours(gated(mlp=partial(MLP, act=partial(power, 3)))),
                           'by name')])
def test_a_model_that_cannot_be_saved_changes_nothing(make, message, llama):
    before, model = files(llama), make()
    with pytest.raises(ValueError, match=message): save(model, ByteTokenizer(), llama)
    with pytest.raises(ValueError, match=message): save(model, None, llama/'new')
    assert files(llama) == before and not (llama/'new').exists()

def power(n, x): return x**n

class Odd(RMSNorm):
    def __init__(self, C, place=None): super().__init__(C)

def test_a_disk_that_is_full_changes_nothing(llama, monkeypatch):
    (llama/'notes.txt').write_text('mine')
    before, done = files(llama), []
    monkeypatch.setattr(hub, 'save_file',
                        lambda *a, **kw: cannot() if done else done.append(save_file(*a, **kw)))
    with pytest.raises(OSError, match='could not write the model to .*: no space left on device; '
                                      'what was there before is untouched'):
        save(make_ours(small2()), ByteTokenizer(), llama, shard=40_000)
    assert files(llama) == before and done

def test_a_new_folder_is_there_when_it_is_whole(tmp_path, monkeypatch):
    "What fails on the way leaves nothing behind, neither the folder nor what was written aside"
    seen = []
    def half(*a, **kw):
        seen.append((tmp_path/'new').exists())
        if len(seen) > 1: cannot()
        save_file(*a, **kw)
    monkeypatch.setattr(hub, 'save_file', half)
    with pytest.raises(OSError, match='could not write .*new: no space left on device'):
        save(make_ours(small2()), ByteTokenizer(), tmp_path/'new', shard=40_000)
    assert seen == [False, False] and not [*tmp_path.iterdir()]
    monkeypatch.undo()
    save(make_ours(small2()), None, tmp_path/'deep'/'new')
    names = {p.name for p in (tmp_path/'deep').rglob('*')}
    assert names == {'new', 'checksums.json', 'config.json', 'model.safetensors'}

def test_bars_of_the_hub_follow_ours(monkeypatch):
    "Hugging Face's own bars are off where ours are, and on again afterwards"
    from huggingface_hub import constants, utils
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_PROGRESS_BARS', None)
    bars = sys.modules[utils.are_progress_bars_disabled.__module__]
    monkeypatch.setattr(bars, 'HF_HUB_DISABLE_PROGRESS_BARS', None)
    monkeypatch.setenv('GPTLAB_SILENT', '1')
    assert not utils.are_progress_bars_disabled()
    with hub.hub_bars(): assert utils.are_progress_bars_disabled()
    assert not utils.are_progress_bars_disabled()

def test_moving_in_is_undone_or_says_so(tmp_path, monkeypatch):
    """Every move fails once, then the disk is gone from every move on: what is there afterwards is
    the old model, the new one, or says what happened"""
    old, new, ids = make_ours(small2()), make_ours(gated(vocab_size=257)), torch.arange(50)[None]
    save(old, CharTokenizer.train('abc'), tmp_path/'old', shard=100_000)
    (tmp_path/'old'/'notes.txt').write_text('mine')
    real, tok, before = os.replace, ByteTokenizer(), files(tmp_path/'old')
    for gone_for_good in (False, True):
        for k in range(100):
            folder, calls = (shutil.copytree(tmp_path/'old', tmp_path/f'{gone_for_good}{k}'),
                             iter(range(1000)))
            def replace_(a, b):
                n = next(calls)
                if n == k or gone_for_good and n > k: raise OSError('gone')
                real(a, b)
            monkeypatch.setattr(hub, 'os', SimpleNamespace(replace=replace_))
            try: save(new, tok, folder)
            except OSError: failed = True
            else: failed = False
            finally: monkeypatch.undo()
            if not failed: break
            if not gone_for_good or k == 0:
                assert files(folder) == before
                continue
            with (pytest.raises(FileNotFoundError, match='has no config.json, because a save into '
                                                         'it was cut off.*/old back')):
                load(folder)
            # as the message says
            for p in next(folder.glob('.saving-*/old')).iterdir(): real(p, folder/p.name)
            for p in folder.glob('model.safetensors'): p.unlink()
            assert torch.equal(load(folder, device='cpu')[0](ids), old(ids))
        assert (k > 6 and torch.equal(load(folder, device='cpu')[0](ids), new(ids))
                and load(folder, device='cpu')[1].vocab_size == 257)
        assert ({p.name for p in folder.iterdir()}
                == {'checksums.json', 'config.json', 'gptlab_tokenizer.json', 'model.safetensors',
                    'notes.txt', 'tokenizer.json', 'tokenizer_config.json'})

@pytest.mark.parametrize('cfg', [None, GPTConfig(97, 160, 3, 4, 2, 32)],
                         ids=['family', 'own class'])
def test_a_block_that_is_used_twice(cfg, tmp_path, capsys):
    model, ids = shared(cfg), torch.arange(50)[None]
    save(model, None, tmp_path)
    assert ('tensors are used in several places, as no config can say (blocks.0.'
            in capsys.readouterr().out)
    back, theirs = (load(tmp_path, device='cpu')[0],
                    transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    assert (torch.equal(back(ids), model(ids))
            and (theirs(ids).logits - model(ids)).abs().max() < 1e-5)

def test_the_other_files_and_the_newest_tokenizer_stay(tmp_path):
    save(make_ours(gated(vocab_size=257)), ByteTokenizer(), tmp_path)
    (tmp_path/'model_before.safetensors').write_bytes(b'mine')
    (tmp_path/'.saving-12345678'/'old').mkdir(parents=True)
    tok = BPE.train(' '.join(f'{i} naïve foxes jumped' for i in range(300)), 350)
    save(make_ours(gated(vocab_size=350)), tok, tmp_path)
    assert (load(tmp_path, device='cpu')[1].encode(TEXTS[0]) == tok.encode(TEXTS[0])
            and (tmp_path/'model_before.safetensors').read_bytes() == b'mine'
            and not [*tmp_path.glob('.saving-*')])

def test_numbers_of_numpy_and_the_dtype_are_written(tmp_path):
    ids = torch.arange(50)[None]
    for i, cfg in enumerate((gated(norm=partial(RMSNorm, eps=np.float32(1e-6))),
                             GPTConfig(97, 160, 3, 4, 2, 32,
                                       norm=partial(RMSNorm, eps=np.float32(1e-6))),
                             small2(tie=False, norm=partial(LayerNorm, bias=False), mlp=MLP,
                                    attn=partial(Attention, pos=None, qk_norm=False)))):
        model = make_ours(cfg).to(torch.bfloat16)
        save(model, None, tmp_path/str(i))
        assert (json.loads((tmp_path/str(i)/'config.json').read_text())['torch_dtype'] == 'bfloat16'
                and {t.dtype for t in load_file(tmp_path/str(i)/'model.safetensors').values()}
                == {torch.bfloat16})
        assert torch.equal(load(tmp_path/str(i), device='cpu', dtype=torch.bfloat16)[0](ids),
                           model(ids))
    model.norm.float()
    save(model, None, tmp_path/'mixed')
    # loses nothing
    assert json.loads((tmp_path/'mixed'/'config.json').read_text())['torch_dtype'] == 'float32'

def test_arguments_by_position_are_not_forgotten():
    assert ('norm is RMSNorm with C, arguments by position, not RMSNorm'
            in family_obstacles(gated(norm=partial(RMSNorm, 32)))['llama'])
    assert ('position is RoPE with D, arguments by position, not rotary'
            in family_obstacles(gated(attn=partial(llama_attn, pos=partial(RoPE, 8))))['llama']
            and family_of(small2(pos_embed=partial(LearnedPositions, 32))) is None)
    assert (family_obstacles(gated(mlp=partial(GLU, act=partial(power, 3))))['llama'][0]
            .startswith('activation is unknown'))

def test_a_table_that_no_file_holds_is_computed(tmp_path):
    model = make_ours(gated(attn=[Tabled]))
    save(model, None, tmp_path)
    ids = torch.arange(50)[None]
    assert torch.equal(load(tmp_path, dict(Tabled=Tabled), device='cpu')[0](ids), model(ids))

class Tabled(Attention):
    def __init__(self, C, n_heads, n_kv_heads=None):
        super().__init__(C, n_heads, n_kv_heads)
        self.register_buffer('table', torch.arange(C)/C, persistent=False)
    def forward(self, x, seq): return super().forward(x*self.table, seq)

def test_a_config_that_lacks_a_field(tmp_path):
    save(make_ours(gated()), None, tmp_path)
    d = json.loads((tmp_path/'config.json').read_text())
    del d['hidden_size']
    (tmp_path/'config.json').write_text(json.dumps(d))
    with pytest.raises(ValueError, match="config.json lacks 'hidden_size', which a llama needs"):
        load(tmp_path)

def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='there is no folder ./nowhere'): load('./nowhere')
    # HF_HUB_OFFLINE is set
    with pytest.raises(FileNotFoundError, match="'no-such-owner/no-such-model' is no folder here"):
        load('no-such-owner/no-such-model')
    with pytest.raises(FileNotFoundError): load(tmp_path)

def test_a_family_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match='a llama cannot express this model: query-key norm is '
                                         'plain, not none; .*mlp is MLP, not GLU'):
        save(GPT(GPTConfig()), None, tmp_path, family='llama')
    with pytest.raises(ValueError, match="family 'lama' is not known here; the nearest is 'llama'"):
        save(GPT(GPTConfig()), None, tmp_path, family='lama')
    model = GPT(gated())
    model.blocks[1].mlp = MLP(32, 56)
    with pytest.raises(ValueError, match=r'does not describe this model .swapped parts..: '
                                         r'blocks.1.mlp.gate.weight is missing'):
        save(model, None, tmp_path)
    assert not list(tmp_path.iterdir())

def test_a_family_says_what_it_allows_in_plain_values():
    assert hub.FAMILIES['llama']['head width'] == ['C/H', 'own']
    assert all(type(answers) is list for asked in hub.FAMILIES.values()
               for answers in asked.values())

def test_families_are_decided_by_parts():
    a = partial(Attention, qk_norm=False)
    assert (family_of(gated(attn=partial(a, softcap=20.))) is None
            and family_of(gated(softcap=30.)) is None)
    assert (family_of(gated(norm=[RMSNorm, partial(RMSNorm, eps=1e-6)])) is None
            and family_of(gated(attn=partial(a, pos=None))) is None)
    assert (family_of(gated(pos_embed=LearnedPositions)) is None
            and family_of(small2(attn=partial(a, bias=True))) is None)
    assert (family_of(gated(attn=[partial(a, window=8), partial(a, window=16)])) is None
            and family_of(gated(attn=[a, partial(a, pos=partial(RoPE, theta=5.))])) is None)
    assert (family_of(gated(attn=partial(a, pos=ALiBi))) is None
            and family_of(gated(attn=partial(a, pos=partial(ScaledRoPE, interleaved=True))))
            is None)
    assert (family_of(gated(attn=partial(a, d_head=12))) == 'llama'
            and 'mlp is MLP, not GLU' in family_obstacles(gated(mlp=MLP))['llama'])

def test_what_no_question_is_about_is_not_forgotten():
    """A field or an argument that this chapter has never heard of keeps a model out of every
    family, until somebody teaches it"""
    @dataclass
    class Newer(GPTConfig): d_wave: int|None = None
    class Gated(RMSNorm):
        def __init__(self, C, gain=True, eps=1e-5, gate=False): super().__init__(C, gain, eps)
    Gated.__name__ = 'RMSNorm'
    settings = {f.name: getattr(gated(), f.name) for f in fields(GPTConfig)}
    assert (family_of(Newer(**settings)) == 'llama'
            and family_obstacles(Newer(**settings, d_wave=16))['llama']
            == ['other fields is d_wave, not none'])
    assert (family_of(gated(norm=Gated)) == 'llama'
            and family_obstacles(gated(norm=partial(Gated, gate=True)))['llama']
            == ['norm is RMSNorm with gate, not RMSNorm'])
    assert (family_obstacles(gated(attn=partial(llama_attn, softcap=20.)))['llama']
            == ['attention is Attention with softcap, not Attention'])


if __name__ == '__main__':
    rss = lambda key: next(int(l.split()[1])*1024 for l in open('/proc/self/status')
                           if l.startswith(key))
    # what torch imports the first time is not counted
    hub.empty_model(GPTConfig(n_layers=1))
    Path('/proc/self/clear_refs').write_text('5')         # the peak counts from here
    before = rss('VmRSS')
    model, _ = load(sys.argv[1], device='cpu')
    print(json.dumps(dict(weights=sum(p.nbytes for p in model.parameters()),
                          peak=rss('VmHWM') - before)))


# ---- checksums

def test_weights_that_were_damaged_after_a_save_are_noticed(tmp_path):
    model = shared()
    save(model, None, tmp_path/'m')
    file = tmp_path/'m'/'model.safetensors'
    blob = bytearray(file.read_bytes())
    blob[-5] ^= 1
    file.write_bytes(blob)
    with pytest.raises(ValueError, match='model.safetensors is damaged.*delete checksums.json'):
        load(tmp_path/'m')
    (tmp_path/'m'/'checksums.json').unlink()
    load(tmp_path/'m')

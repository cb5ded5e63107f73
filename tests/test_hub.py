"""Hugging Face in both directions: equal logits and equal greedy text for every family, made offline from random weights; and what bad folders get.

Run as a program (`python test_hub.py FOLDER [dtype]`) it is the process whose memory is measured: it loads FOLDER and prints what that took.
"""
import json, os, subprocess, sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptlab import hub
from gptlab.attention import Attention, LearnedPositions, RoPE
from gptlab.blocks import gelu, GLU, LayerNorm, MLP, perturb, RMSNorm
from gptlab.bpe import BPE
from gptlab.generation import generate, top_k
from gptlab.hub import family_of, HubAttention, HubRoPE, load, obstacles, save
from gptlab.model import GPT, gpt2_config, GPTConfig, llama_config
from gptlab.tokenizer import ByteTokenizer, CharTokenizer

transformers = pytest.importorskip('transformers', reason='transformers is not installed: pip install transformers')

SHAPE = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=160, bos_token_id=None, eos_token_id=None, pad_token_id=None)
GQA   = dict(num_key_value_heads=2)
LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=32)
YARN   = dict(rope_type='yarn', factor=4., original_max_position_embeddings=40)
MIXED  = ['full_attention', 'sliding_attention', 'full_attention']
SMALL2 = dict(vocab_size=97, n_positions=160, n_embd=32, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None, pad_token_id=None)

THEIRS = {
    'gpt2, tied':                        ('GPT2', SMALL2),
    'gpt2, untied, exact gelu':          ('GPT2', SMALL2 | dict(tie_word_embeddings=False, activation_function='gelu', n_inner=72)),
    'llama':                             ('Llama', SHAPE),
    'llama, tied, grouped heads':        ('Llama', SHAPE | GQA | dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
    'llama, biases, own head width':     ('Llama', SHAPE | GQA | dict(attention_bias=True, mlp_bias=True, head_dim=12)),
    'llama 3, rope scaled':              ('Llama', SHAPE | GQA | dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5))),
    'llama, rope linear':                ('Llama', SHAPE | dict(rope_parameters=dict(rope_type='linear', factor=4., rope_theta=1e4))),
    'smollm (llama, tied, odd heads)':   ('Llama', SHAPE | dict(num_attention_heads=3, num_key_value_heads=1, hidden_size=36, tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1e5))),
    'smollm3, some layers unturned':     ('SmolLM3', SHAPE | GQA | dict(no_rope_layers=[1, 0, 1], pad_token_id=None)),
    'mistral':                           ('Mistral', SHAPE | GQA | dict(sliding_window=None)),
    'mistral, window 24, own head width':('Mistral', SHAPE | GQA | dict(sliding_window=24, head_dim=20)),
    'qwen2, tied':                       ('Qwen2', SHAPE | GQA | dict(tie_word_embeddings=True)),
    'qwen2, yarn, mixed windows':        ('Qwen2', SHAPE | GQA | dict(use_sliding_window=True, sliding_window=24, layer_types=MIXED, rope_parameters=YARN | dict(rope_theta=1e6))),
    'qwen3, own head width':             ('Qwen3', SHAPE | GQA | dict(head_dim=12)),
    'qwen3, tied, biases, windows':      ('Qwen3', SHAPE | GQA | dict(head_dim=8, attention_bias=True, tie_word_embeddings=True, use_sliding_window=True, sliding_window=24, max_window_layers=1)),
}

def gated(**kw): return replace(llama_config(), **dict(vocab_size=97, n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_ff=56, context_length=160) | kw)
def small2(**kw): return replace(gpt2_config(), **dict(vocab_size=97, n_layers=3, n_heads=4, d_model=32, context_length=160) | kw)
llama_attn = partial(Attention, qk_norm=False)

OURS = {
    'gpt2':                              ('gpt2', small2()),
    'gpt2 without biases, untied':       ('gpt2', small2(tie=False, norm=partial(LayerNorm, bias=False), mlp=partial(MLP, act=gelu), attn=partial(Attention, pos=None, qk_norm=False))),
    'llama':                             ('llama', gated()),
    'llama, tied, no gain, GEGLU':       ('llama', gated(tie=True, norm=partial(RMSNorm, gain=False), mlp=partial(GLU, act=gelu))),
    'llama, biases':                     ('llama', gated(attn=partial(llama_attn, bias=True), mlp=partial(GLU, bias=True))),
    'llama, llama3 rope':                ('llama', gated(attn=partial(llama_attn, pos=partial(HubRoPE, theta=5e5, kind='llama3', factor=8., original=32)))),
    'llama, yarn':                       ('llama', gated(attn=partial(llama_attn, pos=partial(HubRoPE, kind='yarn', factor=4., original=40, fast=32., scale=1.2)))),
    'smollm3, some layers unturned':     ('smollm3', gated(attn=[llama_attn, partial(llama_attn, pos=None)])),
    'mistral, window':                   ('mistral', gated(attn=partial(llama_attn, window=24))),
    'qwen2, biases':                     ('qwen2', gated(tie=True, attn=partial(HubAttention, bias=True))),
    'qwen2, mixed windows, no biases':   ('qwen2', gated(attn=[partial(llama_attn, window=24), llama_attn])),
    'qwen3, mixed windows':              ('qwen3', gated(norm=partial(RMSNorm, eps=1e-6), attn=[partial(HubAttention, qk_gain=True, d_head=12, window=w) for w in (24, None)])),
    'our own class':                     (None, GPTConfig(97, 160, 3, 4, 2, 32)),
    'our own class, tied':               (None, gated(tie=True, softcap=20., attn=partial(Attention, window=24))),
}


def make_theirs(name, seed=0):
    "A random model of transformers in which nothing is zero or one"
    kind, kw = THEIRS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f'{kind}Config')(**kw)
    return perturb(getattr(transformers, 'GPT2LMHeadModel' if kind == 'GPT2' else f'{kind}ForCausalLM')(config).float(), .15).eval()

def make_ours(cfg, seed=0):
    torch.manual_seed(seed)
    return perturb(GPT(cfg), .15).eval()

@torch.no_grad()
def compare(ours, theirs):
    "(largest difference of logits over rows of 150 tokens, are 64 greedy tokens the same?)"
    ids = torch.randint(0, 97, (2, 150), generator=torch.Generator().manual_seed(1))               # (B,T)
    gap = (ours(ids) - theirs(ids).logits).abs().max().item()
    prompt = ids[:1,:20]
    greedy = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0)[0,20:].tolist()
    return gap, list(generate(ours, prompt[0].tolist(), 64, top_k(1))) == greedy


# ---- equal logits, both directions

@pytest.mark.parametrize('name', THEIRS)
def test_in(name, tmp_path):
    theirs = make_theirs(name)
    theirs.save_pretrained(tmp_path)
    ours, tok = load(tmp_path, device='cpu')
    gap, same = compare(ours, theirs)
    print(f'in   {name}: {gap:.1e}')
    assert tok is None and gap < 1e-4 and same
    save(ours, None, tmp_path/'again')                    # and out again, as the same family
    kept, new = (transformers.AutoConfig.from_pretrained(p) for p in (tmp_path, tmp_path/'again'))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'again').eval()
    assert compare(ours, again) == (pytest.approx(0, abs=1e-4), True)
    if name not in ('mistral',): assert new.model_type == kept.model_type      # without a window, Mistral is a LLaMA


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
    assert gap < 1e-4 and same
    back, _ = load(tmp_path, device='cpu')
    ids = torch.arange(90)[None]
    assert (back(ids) - model(ids)).abs().max() < 1e-5

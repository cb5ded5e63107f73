"""What came in comes out: faults of the way to Hugging Face and back, by their entries, with their
siblings. All models and tokenizers are tiny, random and made here."""
import json, os, re, threading, time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from common import extra
from gptlab import hub
from gptlab.blocks import perturb_parameters
from gptlab.bpe import BPE
from gptlab.checkpoints import load_model, save_checkpoint
from gptlab.generation import generate, top_k
from gptlab.hub import load, save
from gptlab.model import GPT, GPTConfig, llama_config
from gptlab.positions import extend_context
from gptlab.tokenizer import ByteTokenizer
from gptlab.tokenizers import (add_special, HFTokenizer, RankTokenizer, SentencePieceTokenizer,
                               truncate_vocab)

tf = extra('transformers')
WORDS = ' '.join(f'{i} naïve foxes jumped' for i in range(300))
BOS, EOS, EOT, PAD = range(300, 304)                     # ids of the tokenizer's specials
IDS = dict(bos_token_id=BOS, eos_token_id=[EOS, EOT], pad_token_id=PAD)
LLAMA = dict(vocab_size=304, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, **IDS)
GPT2 = dict(vocab_size=304, n_embd=32, n_layer=2, n_head=4, n_positions=128, **IDS)
YARN = dict(rope_type='yarn', factor=4., original_max_position_embeddings=32, rope_theta=1e4)
LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
              original_max_position_embeddings=32, rope_theta=5e5)

FAMILIES = {
    'gpt2': ('GPT2', GPT2),
    'gpt2, untied': ('GPT2', GPT2 | dict(tie_word_embeddings=False, n_inner=40)),
    'llama': ('Llama', LLAMA),
    'llama, tied, rope llama3': ('Llama', LLAMA | dict(tie_word_embeddings=True,
                                                       rope_parameters=LLAMA3)),
    'llama, rope dynamic': ('Llama', LLAMA | dict(rope_parameters=dict(
        rope_type='dynamic', factor=4., rope_theta=1e4))),
    'llama, rope linear': ('Llama', LLAMA | dict(rope_parameters=dict(
        rope_type='linear', factor=4., rope_theta=1e4))),
    'llama, rope yarn, all its numbers': ('Llama', LLAMA | dict(rope_parameters=YARN | dict(
        beta_fast=16., beta_slow=2., mscale=.7, mscale_all_dim=1.2, truncate=True))),
    'llama, rope yarn, strength': ('Llama', LLAMA | dict(
        rope_parameters=YARN | dict(attention_factor=1.3))),
    'mistral': ('Mistral', LLAMA | dict(sliding_window=None)),
    'mistral, window': ('Mistral', LLAMA | dict(sliding_window=24, head_dim=12)),
    'qwen2': ('Qwen2', LLAMA | dict(tie_word_embeddings=True)),
    'qwen2, windows': ('Qwen2', LLAMA | dict(use_sliding_window=True, sliding_window=24,
                                             max_window_layers=1)),
    'qwen3': ('Qwen3', LLAMA | dict(head_dim=12, attention_bias=True)),
    'smollm3': ('SmolLM3', LLAMA | dict(no_rope_layers=[1, 0])),
    'smollm3, tied': ('SmolLM3', LLAMA | dict(tie_word_embeddings=True,
                                              no_rope_layer_interval=2))}

def tokenizer_of_others(folder):
    "A byte-level tokenizer as LLaMA 3 ships it, with everything that a folder may say"
    tok = BPE.train(WORDS, 304, special=['<s>', '</s>', '<|eot_id|>', '<pad>'], verbose=False)
    tok.to_tokenizer_json(folder/'tokenizer.json')
    d = json.loads((folder/'tokenizer.json').read_text())
    begin = dict(id='<s>', ids=[BOS], tokens=['<s>'])
    d['post_processor'] = dict(
        type='TemplateProcessing', special_tokens={'<s>': begin},
        single=[dict(SpecialToken=dict(id='<s>', type_id=0)),
                dict(Sequence=dict(id='A', type_id=0))],
        pair=[dict(Sequence=dict(id='A', type_id=0)), dict(Sequence=dict(id='B', type_id=1))])
    d['model']['ignore_merges'] = True
    d['added_tokens'][3]['lstrip'] = True
    write(folder/'tokenizer.json', d)
    listed = {str(a['id']): {k: v for k, v in a.items() if k != 'id'} for a in d['added_tokens']}
    write(folder/'tokenizer_config.json', dict(
        tokenizer_class='PreTrainedTokenizerFast', model_max_length=128, bos_token='<s>',
        eos_token=dict(__type='AddedToken', content='</s>', lstrip=False, normalized=False,
                       rstrip=False, single_word=False), pad_token='<pad>', a_field_of_theirs=[1],
        clean_up_tokenization_spaces=True, added_tokens_decoder=listed))
    write(folder/'special_tokens_map.json', dict(bos_token='<s>', eos_token='</s>', theirs='x'))
    write(folder/'added_tokens.json', {'<|eot_id|>': EOT})
    (folder/'chat_template.jinja').write_text('{% for m in messages %}{{ m.content }}{% endfor %}é')
    (folder/'additional_chat_templates').mkdir()
    (folder/'additional_chat_templates'/'tools.jinja').write_text('{{ tools }}')

def write(path, d): path.write_text(json.dumps(d))

def read(path): return json.loads(Path(path).read_text())

def make(name, folder, tokenizer=True, **said):
    "A random model of transformers in a folder with foreign fields, and its tokenizer"
    kind, kw = FAMILIES[name]
    torch.manual_seed(0)
    head = 'GPT2LMHeadModel' if kind == 'GPT2' else f'{kind}ForCausalLM'
    model = getattr(tf, head)(getattr(tf, f'{kind}Config')(**kw))
    perturb_parameters(model.transformer.h if kind == 'GPT2' else model.model.layers, .3)
    perturb_parameters(model, .15).eval()
    model.prompt = end_after(model, 12)
    model.save_pretrained(folder)
    write(folder/'config.json', read(folder/'config.json') | dict(
        a_version='7', _name_or_path='them/theirs', task_specific_params=dict(a=[1, dict(b=2)]),
        initializer_range=.03, auto_map={}) | said)
    write(folder/'generation_config.json', IDS | dict(
        _from_model_config=False, transformers_version='4.44.0', do_sample=True, top_p=.9,
        a_field_of_theirs=dict(x=None)))
    if tokenizer: tokenizer_of_others(folder)
    return model

@torch.no_grad()
def end_after(model, n):
    "A prompt after which <|eot_id|> comes: it changes places with a token of the first n"
    for prompt in ([start, 7] for start in range(5, 99)):
        text = greedy(model, prompt, n, eos_token_id=[])
        if end := [t for t in text if t not in (*prompt, text[0])]: break
    tables = {m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for w in tables: w[[end[-1], EOT]] = w[[EOT, end[-1]]]            # (V,C)
    return prompt

def jsons(folder): return {p.name: read(p) for p in folder.glob('*.json')}

def beside_weights(folder):
    "All that a folder says besides: JSON and templates; what we add is left out"
    added = {'checksums.json', 'gptlab_tokenizer.json'}
    said = {n: d for n, d in jsons(folder).items() if n not in added}
    return said | {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*.jinja')}

def same_json(a, b):
    "Equal, but for the numbers' dtype, and where the vocabulary lists its specials"
    for d in (a, b):
        model = d.get('tokenizer.json', {}).get('model', {})
        for s in ('<s>', '</s>', '<|eot_id|>', '<pad>', '<|bos|>'):
            model.get('vocab', {}).pop(s, None)
    assert a == b

def greedy(model, prompt, n=40, **kw):
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n,
                         do_sample=False, **kw)
    return out[0,len(prompt):].tolist()

def ours_greedy(model, prompt, n=40):
    "What we write, with the end that transformers writes and we do not"
    return list(generate(model, prompt, n, top_k(1), stop=model.end_ids))

@torch.no_grad()
def gap(ours, theirs, V=300):
    ids = torch.randint(0, V, (2, 90), generator=torch.Generator().manual_seed(1))     # (B,T)
    return (ours(ids) - theirs(ids).logits).abs().max().item()


# ---- A04: what a folder says comes back

@pytest.mark.grid(quick=5)
@pytest.mark.parametrize('name', FAMILIES)
def test_a04_a_round_trip_keeps_logits_text_end_and_every_field(name, tmp_path):
    theirs = make(name, tmp_path/'a')
    model, tok = load(tmp_path/'a', device='cpu')
    save(model, tok, tmp_path/'b')
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path/'b').eval()
    assert gap(model, theirs) < 1e-5 and gap(model, again) < 1e-5
    a, b = beside_weights(tmp_path/'a'), beside_weights(tmp_path/'b')
    assert set(a) == set(b) and len(a) == 8
    same_json(a, b)
    save(model, tok, tmp_path/'a')                                    # over the original, too
    same_json(beside_weights(tmp_path/'a'), b)
    first, second = (tf.AutoTokenizer.from_pretrained(tmp_path/x) for x in 'ab')
    assert first('one fox').input_ids == second('one fox').input_ids
    assert second.eos_token_id == EOS and second.pad_token_id == PAD
    assert model.end_ids == (EOS, EOT)
    theirs.generation_config = tf.GenerationConfig(**IDS)
    want = greedy(theirs, theirs.prompt)
    assert want[-1] == EOT and len(want) > 1
    assert ours_greedy(model, theirs.prompt) == want[:-1]

def test_a04_the_listed_case(tmp_path):
    tok = BPE.train(['hello world how are you '*50], 270, special=['<s>', '</s>'], verbose=False)
    bos, eos = tok.special['<s>'], tok.special['</s>']
    m = tf.LlamaForCausalLM(tf.LlamaConfig(
        vocab_size=tok.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=bos, eos_token_id=eos))
    for n, p in m.named_parameters():
        nn.init.constant_(p, 0. if 'proj' in n or 'head' in n else 1.)
    m.lm_head.weight.data[eos] = 1.                                   # it always says </s>
    m.save_pretrained(tmp_path/'a')
    tok.to_tokenizer_json(tmp_path/'a'/'tokenizer.json')
    write(tmp_path/'a'/'tokenizer_config.json',
          dict(eos_token='</s>', chat_template='{{ messages }}'))
    model, tok = load(tmp_path/'a', device='cpu')
    save(model, tok, tmp_path/'b')
    for x in 'ab':
        assert read(tmp_path/x/'config.json')['eos_token_id'] == eos
        there = tf.AutoModelForCausalLM.from_pretrained(tmp_path/x)
        assert there.generate(torch.tensor([[bos]]), max_new_tokens=20).shape[1] == 2
    assert 'chat_template' in read(tmp_path/'b'/'tokenizer_config.json')
    assert not ours_greedy(model, [bos], 20)

@pytest.fixture
def llama(tmp_path):
    make('llama', tmp_path/'a')
    return tmp_path

def out_and_in(model, tok, folder):
    "What a save writes besides weights"
    save(model, tok, folder)
    return jsons(folder)

def test_a04_what_our_config_determines_is_written_by_us(llama):
    "A model that was changed carries no stale facts, and all others"
    model, tok = load(llama/'a', device='cpu')
    extend_context(model, 2.)
    a, b = read(llama/'a'/'config.json'), out_and_in(model, tok, llama/'b')
    config = b['config.json']
    changed = {k for k in a.keys() | config.keys() if a.get(k) != config.get(k)}
    assert changed == {'rope_parameters', 'rope_scaling', 'rope_theta', 'max_position_embeddings'}
    assert 'rope_parameters' not in config and config['max_position_embeddings'] == 256
    assert b['tokenizer_config.json']['model_max_length'] == 256
    there = tf.AutoModelForCausalLM.from_pretrained(llama/'b').eval()
    assert gap(model, there) < 1e-5
    model, _ = load(llama/'b', device='cpu', dtype=torch.bfloat16)
    assert out_and_in(model, tok, llama/'c')['config.json']['dtype'] == 'bfloat16'

def test_a04_a_list_of_layers_follows_the_number_of_layers(tmp_path):
    make('qwen2, windows', tmp_path/'a')
    model, _ = load(tmp_path/'a', device='cpu')
    fewer = GPT(GPTConfig(**{**vars(model.cfg), 'n_layers': 1, 'attn': model.cfg.attn[:1]}))
    fewer.brought = model.brought
    config = out_and_in(fewer, None, tmp_path/'b')['config.json']
    assert config['num_hidden_layers'] == 1 and 'sliding' not in str(config.get('layer_types'))
    assert config['initializer_range'] == .03
    tf.AutoModelForCausalLM.from_pretrained(tmp_path/'b')

def test_a04_with_another_tokenizer_its_own_marks_are_written(llama):
    model, _ = load(llama/'a', device='cpu')
    other = BPE.train(WORDS, 304, verbose=False)
    b = out_and_in(model, other, llama/'b')
    for d in (b['config.json'], b['generation_config.json']):
        assert [d[k] for k in IDS] == [other.bos]*3
    assert b['generation_config.json']['top_p'] == .9
    assert b['tokenizer_config.json']['eos_token'] == '<|bos|>'

def test_a04_a_tokenizer_of_the_same_specials_keeps_the_marks(llama):
    "As one that was read elsewhere, or with more specials"
    model, _ = load(llama/'a', device='cpu')
    for tok in (RankTokenizer.from_tokenizer_json(llama/'a'/'tokenizer.json'), None):
        b = out_and_in(model, tok, llama/'b')
        assert {k: b['config.json'][k] for k in IDS} == IDS
        assert {k: b['generation_config.json'][k] for k in IDS} == IDS

def test_a04_end_marks_by_name_where_only_the_tokenizer_says_them(llama):
    none = dict(eos_token_id=None, pad_token_id=None)
    write(llama/'a'/'config.json', read(llama/'a'/'config.json') | none)
    (llama/'a'/'generation_config.json').unlink()
    model, tok = load(llama/'a', device='cpu')
    assert model.end_ids == () and tok.brought['end_ids'] == [EOS] and tok.end_ids == (EOS,)
    b = out_and_in(model, tok, llama/'b')
    assert b['config.json']['eos_token_id'] is None and 'generation_config.json' not in b

def checkpoint(model, tok, folder):
    save_checkpoint(folder, model=model.state_dict(), config=model.cfg.to_dict(),
                    tokenizer=json.loads(json.dumps(tok.to_dict())), trainer={})

@pytest.mark.parametrize('read_again', [load, load_model])
def test_a04_facts_survive_our_own_checkpoints(read_again, llama):
    "Load, train, resume, save: the tokenizer carries them along"
    model, tok = load(llama/'a', device='cpu')
    checkpoint(model, tok, llama/'run'/'step_000001')
    model, tok = read_again(llama/'run'/'step_000001', device='cpu')
    assert tok.end_ids == (EOS, EOT) and getattr(model, 'end_ids', tok.end_ids) == tok.end_ids
    save(model, tok, llama/'b')
    same_json(beside_weights(llama/'a'), beside_weights(llama/'b'))

def test_a04_a_mark_that_was_changed_is_written(llama):
    model, tok = load(llama/'a', device='cpu')
    b = out_and_in(model, tok.mark(eos='<pad>'), llama/'b')
    assert b['config.json']['eos_token_id'] == b['generation_config.json']['eos_token_id'] == PAD
    assert b['tokenizer_config.json']['eos_token'] == '<pad>'
    assert tf.AutoTokenizer.from_pretrained(llama/'b').eos_token_id == PAD

def test_a04_another_model_with_the_tokenizer_gets_its_ends_and_no_sizes(llama):
    tok = load(llama/'a', device='cpu')[1]
    for cfg in (GPTConfig(304, 96, 1, 2, None, 16), GPTConfig(400, 96, 1, 2, None, 16),
                llama_config(vocab_size=320, context_length=96, n_layers=1, n_heads=2, d_model=16)):
        model = GPT(cfg).eval()
        b = out_and_in(model, tok, llama/'b')
        config = b['config.json']
        assert config['eos_token_id'] == [EOS, EOT] and config['vocab_size'] == cfg.vocab_size
        assert 'initializer_range' not in config and b['tokenizer_config.json']['a_field_of_theirs']
        there = tf.AutoModelForCausalLM.from_pretrained(llama/'b').eval()
        assert gap(model, there) < 1e-5

def test_a04_what_lies_around_a_tokenizer_that_is_not_read(llama, capsys):
    (llama/'a'/'tokenizer.json').unlink()
    model, tok = load(llama/'a', device='cpu')
    assert tok is None
    save(model, tok, llama/'b')
    assert beside_weights(llama/'a') == beside_weights(llama/'b')

def test_a04_specials_that_were_added_or_numbered_anew(llama):
    model, tok = load(llama/'a', device='cpu')
    b = out_and_in(model, add_special(tok, ['<new>']), llama/'b')
    listed = b['tokenizer_config.json']['added_tokens_decoder']
    assert listed['304']['content'] == '<new>' and listed['303']['lstrip'] is True
    assert ids_there(llama/'b', 'fox<new>')[-1] == 304
    assert b['config.json']['eos_token_id'] == [EOS, EOT]
    fewer = truncate_vocab(tok, 280)
    b = out_and_in(small(fewer), fewer, llama/'c')
    assert ids_there(llama/'c', 'fox') == [fewer.special['<s>'], *fewer.encode('fox')]
    listed = b['tokenizer_config.json']['added_tokens_decoder']
    assert {a['content']: int(i) for i, a in listed.items()} == fewer.special

@pytest.mark.parametrize('said, ends', [
    (dict(eos_token_id=7), (7,)), (dict(eos_token_id=[7, 8]), (7, 8)), (dict(eos_token_id=-1), ()),
    (dict(eos_token_id=None), (EOS, EOT)), ({}, (EOS, EOT))])
def test_a04_generation_config_knows_the_end_before_config_does(said, ends, llama):
    d = read(llama/'a'/'generation_config.json')
    d.pop('eos_token_id')
    write(llama/'a'/'generation_config.json', d | said)
    assert load(llama/'a', device='cpu')[0].end_ids == ends

def test_a04_an_end_that_is_no_id_is_refused(llama):
    write(llama/'a'/'generation_config.json', dict(eos_token_id='</s>'))
    with pytest.raises(ValueError, match='eos_token_id must be a token id, or a list of them'):
        load(llama/'a')

def test_a04_our_own_folders_bring_nothing_and_say_the_same_again(tmp_path):
    for i, tok in enumerate((ByteTokenizer(), BPE.train(WORDS, 304, verbose=False))):
        model = GPT(llama_config(vocab_size=304, context_length=64, n_layers=1, n_heads=2,
                                 d_model=16, d_ff=32))
        a = out_and_in(model, tok, tmp_path/f'a{i}')
        model, back = load(tmp_path/f'a{i}', device='cpu')
        assert not getattr(back, 'brought', None) and model.end_ids == (tok.bos,)
        same_json(out_and_in(model, back, tmp_path/f'b{i}'), a)

def test_a04_our_own_class_keeps_foreign_fields(tmp_path):
    model, tok = GPT(GPTConfig(304, 64, 1, 2, None, 16)), BPE.train(WORDS, 304, verbose=False)
    save(model, tok, tmp_path/'a')
    config = read(tmp_path/'a'/'config.json')
    write(tmp_path/'a'/'config.json', config | dict(eos_token_id=5, theirs=[1]))
    write(tmp_path/'a'/'generation_config.json', dict(eos_token_id=[5], top_k=7))
    (tmp_path/'a'/'chat_template.jinja').write_text('{{ messages }}')
    model, tok = load(tmp_path/'a', device='cpu')
    save(model, tok, tmp_path/'b')
    same_json(beside_weights(tmp_path/'a'), beside_weights(tmp_path/'b'))
    assert model.end_ids == (5,)

def test_a04_a_library_tokenizer_keeps_what_it_does_besides(llama):
    "Truncation, padding and drawn merges are put aside while we encode, and are not lost"
    d = read(llama/'a'/'tokenizer.json')
    d['normalizer'] = dict(type='NFC')                                # so it is no plain BPE
    d['truncation'] = dict(direction='Right', max_length=64, strategy='LongestFirst', stride=0)
    d['model']['dropout'] = .1
    write(llama/'a'/'tokenizer.json', d)
    model, tok = load(llama/'a', device='cpu')
    assert isinstance(tok, HFTokenizer)
    save(model, tok, llama/'b')
    same_json(beside_weights(llama/'a'), beside_weights(llama/'b'))

def test_a04_a_crafted_tokenizer_writes_no_other_files(tmp_path):
    model, tok = GPT(GPTConfig(304, 64, 1, 2, None, 16)), BPE.train(WORDS, 304, verbose=False)
    for name, v in {'../evil.jinja': 'x', 'evil.json': {}, 'tokenizer_config.json': 'x',
                    'additional_chat_templates/../../x.jinja': 'x', 'end_ids': 5}.items():
        tok.brought = {name: v}
        with pytest.raises(ValueError, match='which no model folder has'):
            save(model, tok, tmp_path/'a'/'b')
    assert not [*tmp_path.rglob('*evil*')] and not (tmp_path/'a'/'b').exists()


# ---- fields that change the computation

ODD = [('attention_multiplier', .5), ('logit_scale', .1), ('final_logit_softcapping', 30.),
       ('attn_logit_softcapping', 50.), ('query_pre_attn_scalar', 64), ('parallel_residual', True),
       ('use_parallel_residual', True), ('num_experts', 8), ('rope_interleaved', True),
       ('embedding_multiplier', 12.), ('sliding_window', 24), ('norm_type', 'layernorm'),
       ('quantization_config', dict(bits=4)), ('text_config', dict(a=1)), ('d_wave', 3),
       ('use_qk_norm', True), ('alibi', True), ('is_encoder_decoder', True)]

@pytest.mark.parametrize('field, value', ODD)
def test_a_field_that_may_change_the_logits_is_refused_by_name(field, value, llama):
    path = llama/'a'/'config.json'
    whole = read(path)
    write(path, whole | {field: value})
    with pytest.raises(ValueError, match=f'{field}=.*not known here for a llama, and may change'):
        load(llama/'a')
    for off in (None, False) + ((1.0,) if re.search('scal|mult', field) else ()):
        write(path, whole | {field: off})
        model, _ = load(llama/'a', device='cpu')                      # off: passes, and is kept
        assert out_and_in(model, None, llama/'b')['config.json'][field] == off

@pytest.mark.parametrize('name, said, message', [
    ('mistral', dict(attention_bias=True), 'attention_bias=true: not known here for a mistral'),
    ('mistral', dict(mlp_bias=True), 'mlp_bias=true'),
    ('qwen2', dict(mlp_bias=True), 'mlp_bias=true'),
    ('qwen3', dict(mlp_bias=True), 'mlp_bias=true'),
    ('gpt2', dict(head_dim=16), 'head_dim=16: not known here for a gpt2'),
    ('gpt2', dict(scale_attn_weights=False), 'scales its scores in another way'),
    ('mistral, window', dict(layer_types=['full_attention']*2), 'layer_types of a mistral'),
    ('llama', dict(layer_types=['sliding_attention']*2), 'layer_types of a llama'),
    ('smollm3', dict(layer_types=['sliding_attention', 'full_attention'], sliding_window=8),
     'layer_types of a smollm3'),
    ('smollm3', dict(use_sliding_window=True), 'SmolLM3 with sliding windows')])
def test_a_field_that_the_family_does_not_know_is_refused(name, said, message, tmp_path):
    make(name, tmp_path, tokenizer=False, **said)
    with pytest.raises(ValueError, match=message): load(tmp_path)

ROPES = [
    (dict(rope_type='longrope', factor=2., short_factor=[1.]*4, long_factor=[2.]*4), 'longrope'),
    (dict(rope_type='proportional', factor=2.), 'proportional'), (dict(rope_type='ntk'), 'ntk'),
    (dict(rope_type='mrope', mrope_section=[2, 2]), 'mrope'), (dict(type='su'), 'su'),
    (dict(rope_type='default', mrope_section=[1, 1]), 'mrope_section'),
    (dict(rope_type='default', factor=8.), 'factor=8.0: not known here for a rotation'),
    (dict(rope_type='linear', factor=8., attention_factor=1.5), 'attention_factor=1.5'),
    (dict(rope_type='dynamic', factor=8., alpha=1000.), 'alpha=1000.0'),
    (dict(rope_type='llama3', factor=8., beta_fast=16.), 'beta_fast=16.0'),
    (YARN | dict(truncate=False), 'truncate=false'), (YARN | dict(low_freq_factor=2.), 'low_freq'),
    (YARN | dict(short_factor=[1.]*4), 'short_factor'),
    (dict(rope_type='linear', factor=None), 'factor must be a number above 0'),
    (dict(rope_type='default', partial_rotary_factor=.5), 'partial_rotary_factor'),
    (dict(rope_type='default', partial_rotary_factor=0), 'partial_rotary_factor'),
    (dict(full_attention=dict(rope_type='default'), sliding_attention=dict(rope_type='default')),
     'settings of its own for full_attention, sliding_attention')]

@pytest.mark.parametrize('key', ['rope_parameters', 'rope_scaling'])
@pytest.mark.parametrize('rope, message', ROPES, ids=[m for _, m in ROPES])
def test_a_rotation_is_applied_or_refused_by_name(rope, message, key):
    d = LLAMA | {'model_type': 'llama', key: rope}
    with pytest.raises(ValueError, match=message): hub.read_config(d)

@pytest.mark.parametrize('rope', [
    dict(rope_type='linear', factor=4.), dict(type='linear', factor=2, rope_theta=5e4),
    dict(rope_type='dynamic', factor=4.), YARN, YARN | dict(factor=None), LLAMA3,
    YARN | dict(finetuned=True, attention_factor=None), dict(rope_type='default'),
    dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.)],
    ids=lambda r: f'{r.get("rope_type")} {len(r)}')
@pytest.mark.parametrize('beside', [{}, dict(original_max_position_embeddings=48),
                                    dict(rope_theta=3e4)])
@pytest.mark.parametrize('key', ['rope_parameters', 'rope_scaling'])
@pytest.mark.grid(quick=6)
def test_a_rotation_that_is_read_gives_the_logits_of_transformers(rope, beside, key, tmp_path):
    config = make('llama', tmp_path, tokenizer=False).config.to_dict()
    config.pop('rope_parameters')
    write(tmp_path/'config.json', config | {key: rope} | beside)
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model, _ = load(tmp_path, device='cpu')
    assert gap(model, theirs) < 1e-5

def test_two_rotations_that_differ_are_refused():
    d = LLAMA | dict(model_type='llama', rope_scaling=YARN, rope_parameters=LLAMA3)
    with pytest.raises(ValueError, match='rope_scaling and rope_parameters say different things'):
        hub.read_config(d)

@pytest.mark.parametrize('name', ['mistral', 'qwen2', 'qwen3', 'smollm3'])
def test_what_a_config_does_not_say_is_as_transformers_has_it(name):
    kind = FAMILIES[name][0]
    silent = dict(model_type=name, vocab_size=96, hidden_size=64, intermediate_size=48,
                  num_hidden_layers=1, max_position_embeddings=64, num_attention_heads=32)
    want, cfg = getattr(tf, f'{kind}Config')(**silent), hub.read_config(silent)
    attn = hub.part_args(cfg.attn[0] if isinstance(cfg.attn, list) else cfg.attn)[1]
    assert cfg.n_kv_heads == want.num_key_value_heads and cfg.tie == want.tie_word_embeddings
    assert (attn['d_head'] or 2) == (getattr(want, 'head_dim', None) or 2)
    assert attn['pos'](2).theta == want.rope_parameters['rope_theta']
    assert attn['window'] == want.sliding_window

def test_r06_layers_without_end_are_refused_at_once():
    for name in ('llama', 'mistral', 'qwen2', 'smollm3'):
        with pytest.raises(ValueError, match='describes 1000000000000 layers'):
            hub.read_config(LLAMA | dict(model_type=name, num_hidden_layers=10**12))


# ---- A19: shared tensors

def only(folder, change):
    tensors = load_file(folder/'model.safetensors')
    change(tensors)
    (folder/'checksums.json').unlink(missing_ok=True)
    save_file(tensors, folder/'model.safetensors', dict(format='pt'))

TIED = ['gpt2', 'llama, tied, rope llama3', 'qwen2', 'smollm3, tied']

@pytest.mark.grid(quick=2)
@pytest.mark.parametrize('name', TIED)
def test_a19_tied_with_only_the_head_in_the_file(name, tmp_path):
    theirs = make(name, tmp_path, tokenizer=False)
    table = 'transformer.wte.weight' if name == 'gpt2' else 'model.embed_tokens.weight'
    only(tmp_path, lambda t: t.update({'lm_head.weight': t.pop(table)}))
    assert gap(load(tmp_path, device='cpu')[0], theirs) < 1e-5
    save_model(theirs, tmp_path/'model.safetensors')                  # keeps one name of the two
    assert gap(load(tmp_path, device='cpu')[0], theirs) < 1e-5

@pytest.mark.parametrize('name', ['gpt2, untied', 'llama', 'mistral', 'qwen3'])
def test_a19_untied_with_one_of_them_missing(name, tmp_path):
    make(name, tmp_path, tokenizer=False)
    whole = (tmp_path/'model.safetensors').read_bytes()
    table = 'transformer.wte.weight' if 'gpt2' in name else 'model.embed_tokens.weight'
    for gone in ('lm_head.weight', table):
        (tmp_path/'model.safetensors').write_bytes(whole)
        only(tmp_path, lambda t: t.pop(gone))
        with pytest.raises(ValueError, match=r'missing: \S+ \(304, 32\)\n.*set tie_word_embeddings '
                                             'to true'):
            load(tmp_path)

@pytest.mark.parametrize('tie', [False, True])
def test_a19_our_own_class_and_blocks_that_share(tie, tmp_path, capsys):
    model = perturb_parameters(GPT(GPTConfig(97, 64, 3, 4, None, 32, tie=tie)), .1)
    model.blocks[2] = model.blocks[0]
    save(model, None, tmp_path)
    (tmp_path/'checksums.json').unlink()
    ids = torch.arange(50)[None]
    save_model(nn.ModuleDict(dict(gpt=model)), tmp_path/'model.safetensors')
    assert torch.equal(load(tmp_path, device='cpu')[0](ids), model.eval()(ids))


# ---- A15: compiled and wrapped

def plain(tie=False):
    cfg = llama_config(vocab_size=97, context_length=64, n_layers=2, n_heads=4, d_model=32, d_ff=48,
                       tie=tie)
    return perturb_parameters(GPT(cfg), .1).eval()

class Wrapped(nn.Module):
    "As DistributedDataParallel: the model is `module`"
    def __init__(self, module):
        super().__init__()
        self.module = module

def compiled(m): return torch.compile(m, backend='eager')

def with_compiled_parts(m):
    for i, b in enumerate(m.blocks): m.blocks[i] = compiled(b)
    return m

def in_place(m):
    m.compile(backend='eager')
    return m

@pytest.mark.parametrize('wrap', [compiled, Wrapped, lambda m: Wrapped(compiled(m)), in_place,
                                  lambda m: compiled(Wrapped(m)), with_compiled_parts],
                         ids=['compiled', 'wrapped', 'both', 'in place', 'both again', 'parts'])
@pytest.mark.parametrize('tie', [False, True])
def test_a15_a_compiled_or_wrapped_model_is_saved_under_its_names(wrap, tie, tmp_path):
    model, ids = plain(tie), torch.arange(50)[None]
    want = model(ids)
    save(wrap(model), None, tmp_path)
    names = load_file(tmp_path/'model.safetensors')
    assert not [n for n in names if '_orig_mod' in n or n.startswith('module')]
    assert torch.equal(load(tmp_path, device='cpu')[0](ids), want)

@pytest.mark.parametrize('rename', [
    lambda n: f'_orig_mod.{n}', lambda n: f'module.{n}', lambda n: f'module._orig_mod.{n}',
    lambda n: f'_orig_mod.module.{n}', lambda n: re.sub(r'(layers\.\d+\.)', r'\1_orig_mod.', n),
    lambda n: re.sub(r'(layers\.\d+\.)', r'_fsdp_wrapped_module.\1_checkpoint_wrapped_module.', n)])
@pytest.mark.parametrize('tie', [False, True])
def test_a15_files_of_compiled_or_wrapped_models_are_read(rename, tie, tmp_path):
    model, ids = plain(tie), torch.arange(50)[None]
    save(model, None, tmp_path)
    only(tmp_path, lambda t: [t.update({rename(n): t.pop(n)}) for n in list(t)])
    assert torch.equal(load(tmp_path, device='cpu')[0](ids), model(ids))


# ---- P2, P3: tokenizers

def ids_there(folder, text): return tf.AutoTokenizer.from_pretrained(folder)(text).input_ids

def small(tok):
    return GPT(llama_config(vocab_size=tok.vocab_size, context_length=64, n_layers=1, n_heads=2,
                            d_model=16, d_ff=32))

@pytest.mark.parametrize('tok', [
    ByteTokenizer(), BPE.train(WORDS, 300, verbose=False),
    RankTokenizer({bytes([b]): 255-b for b in range(256)}, special={'<|bos|>': 256, '<x>': 300})],
    ids=['bytes', 'bpe', 'ranks'])
def test_p2_a_text_begins_with_bos_there_as_here(tok, tmp_path):
    save(small(tok), tok, tmp_path)
    for text in ('one', '', 'naïve  🐙\n'):
        assert ids_there(tmp_path, text) == [tok.bos, *tok.encode(text)]
    there = tf.AutoTokenizer.from_pretrained(tmp_path)
    assert there('a', 'b').input_ids == [tok.bos, *tok.encode('a'), tok.bos, *tok.encode('b')]
    assert there('a', add_special_tokens=False).input_ids == tok.encode('a')
    back = load(tmp_path, device='cpu')[1]
    assert back.encode('one', bos=True) == tok.encode('one', bos=True)

def test_p2_one_that_ships_without_stays_as_it_was(llama):
    "As GPT-2 does; and one without a bos begins with nothing"
    d = read(llama/'a'/'tokenizer.json') | dict(post_processor=None)
    write(llama/'a'/'tokenizer.json', d)
    model, tok = load(llama/'a', device='cpu')
    save(model, tok, llama/'b')
    assert read(llama/'b'/'tokenizer.json')['post_processor'] is None
    assert ids_there(llama/'b', 'one') == tok.encode('one') == ids_there(llama/'a', 'one')
    none = BPE.train(WORDS, 300, special=(), verbose=False)
    save(small(none), none, llama/'c')
    assert ids_there(llama/'c', 'one') == none.encode('one')

@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_p3_a_sentencepiece_model_is_written_again(kind, tmp_path):
    "As the library has it, and for transformers with the same ids"
    extra('sentencepiece')
    tok = SentencePieceTokenizer.train(WORDS, 300, kind, special=('<s>', '</s>'), verbose=False)
    model = small(tok)
    save(model, tok, tmp_path/'a')
    assert (tmp_path/'a'/'tokenizer.model').read_bytes() == tok.model
    for text in ('12 naïve foxes', ' two  blanks\n', '🐙', ''):
        assert ids_there(tmp_path/'a', text) == [tok.bos, *tok.encode(text)]
    assert type(load(tmp_path/'a', device='cpu')[1]) is SentencePieceTokenizer
    alone = tmp_path/'alone'                                          # as others ship it
    save(model, None, alone)
    (alone/'tokenizer.model').write_bytes(tok.model)
    write(alone/'tokenizer_config.json', dict(tokenizer_class='LlamaTokenizer', theirs=1,
                                              eos_token='</s>', model_max_length=64))
    model, back = load(alone, device='cpu')
    assert type(back) is SentencePieceTokenizer and back.encode('a fox') == tok.encode('a fox')
    save(model, back, tmp_path/'b')
    assert beside_weights(alone) == beside_weights(tmp_path/'b')
    assert (tmp_path/'b'/'tokenizer.model').read_bytes() == tok.model

def test_p3_one_that_lies_beside_another_tokenizer_stays(llama):
    (llama/'a'/'tokenizer.model').write_bytes(b'any bytes')
    model, tok = load(llama/'a', device='cpu')
    for folder in (llama/'b', llama/'a'):
        save(model, tok, folder)
        assert (folder/'tokenizer.model').read_bytes() == b'any bytes'
    save(small(ByteTokenizer()), ByteTokenizer(), llama/'a')          # not of another tokenizer
    assert not (llama/'a'/'tokenizer.model').exists()
    assert not (llama/'a'/'chat_template.jinja').exists()
    assert not (llama/'a'/'additional_chat_templates').exists()
    assert not (llama/'a'/'generation_config.json').exists()


# ---- what is not ours is not touched (A08, R02), and two at once (R07)

def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

@pytest.mark.parametrize('name, content, message', [
    ('config.json', '{"editor": "vim"}', 'describes no model: choose another folder'),
    ('config.json', '[]', 'describes no model'), ('config.json', '{', 'describes no model'),
    ('checksums.json', '{"data.zip": "abc"}', 'was not written by a save'),
    ('checksums.json', '[1]', 'was not written by a save'),
    ('manifest.json', '{}', 'is a checkpoint of ours')])
def test_a08_a_folder_that_is_no_model_is_refused(name, content, message, tmp_path):
    (tmp_path/name).write_text(content)
    (tmp_path/'thesis.txt').write_text('x')
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=message): save(plain(), None, tmp_path)
    assert files(tmp_path) == before

def test_a08_a_checkpoint_and_a_file_are_refused(tmp_path):
    model = plain()
    path = save_checkpoint(tmp_path/'step_000001', model=model.state_dict(), tokenizer=None,
                           config=model.cfg.to_dict(), trainer={})
    with pytest.raises(FileExistsError, match='is a checkpoint of ours'): save(model, None, path)
    load(path, device='cpu')
    (tmp_path/'file').write_text('x')
    with pytest.raises(FileExistsError, match='is a file: name a folder'):
        save(model, None, tmp_path/'file')
    assert (tmp_path/'file').read_text() == 'x'

def test_r02_only_our_own_unfinished_saves_are_swept(tmp_path):
    keep = ['.saving-notes/a.txt', '.saving-12345678x/model.safetensors', '.saving-ABCDEF12/x',
            '.saving-12345678/thesis.txt', '.saving-abcdef12/old/private.txt',
            '.saving-1234abcd/config.json.mine']
    gone = ['.saving-00000000/old/config.json', '.saving-00000001/model-00001-of-00002.safetensors',
            '.saving-00000002/.config.json.0123abcd', '.saving-00000003/checksums.json']
    for name in keep + gone:
        (tmp_path/name).parent.mkdir(parents=True)
        (tmp_path/name).write_text('x')
    save(plain(), None, tmp_path)
    load(tmp_path, device='cpu')
    assert all((tmp_path/n).exists() for n in keep)
    assert not any((tmp_path/n).parent.exists() for n in gone)

def test_r12_checksums_of_others_are_not_taken_for_ours(tmp_path):
    save(plain(), None, tmp_path)
    for sums in ({'model.safetensors': 'd41d8cd98f00b204e9800998ecf8427e'}, {'../evil': '0'*64},
                 {'model.safetensors': dict(sha256='0'*64)}, {'config.json': '0'*64}):
        write(tmp_path/'checksums.json', sums)
        load(tmp_path, device='cpu')
    write(tmp_path/'checksums.json', {'model.safetensors': '0'*64})
    with pytest.raises(ValueError, match='is damaged'): load(tmp_path)

def test_r12_a_manifest_of_others_does_not_hide_a_model(tmp_path):
    save(plain(), None, tmp_path)
    write(tmp_path/'manifest.json', {'files': ['../evil.json']})
    load(tmp_path, device='cpu')

@pytest.mark.parametrize('name', ['config.json', 'generation_config.json', 'tokenizer_config.json',
                                  'special_tokens_map.json', 'added_tokens.json', 'tokenizer.json'])
@pytest.mark.parametrize('text', ['{', '[1]', '{"a":'*100_000], ids=['cut', 'list', 'deep'])
def test_r12_a_file_that_is_no_object_is_named(name, text, llama):
    (llama/'a'/name).write_text(text)
    with pytest.raises(ValueError, match=f'{name}'): load(llama/'a')

def test_r12_a_part_nested_too_deep(tmp_path):
    save(GPT(GPTConfig(97, 64, 1, 2, None, 16)), None, tmp_path)
    text = (tmp_path/'config.json').read_text()
    for n in (400, 20_000):
        deep = '{"part": "gptlab.blocks.RMSNorm", "args": {"eps": '*n + '{}' + '}}'*n
        (tmp_path/'config.json').write_text(re.sub(r'"norm": \{[^{}]*\}', f'"norm": {deep}', text))
        with pytest.raises(ValueError, match='is described by|describes no model|is no JSON'):
            load(tmp_path)

def test_r06_a_model_is_compared_before_memory_is_taken(tmp_path):
    save(GPT(GPTConfig(97, 64, 1, 2, None, 16)), None, tmp_path/'own')
    save(plain(), None, tmp_path/'llama')
    own = read(tmp_path/'own'/'config.json')
    write(tmp_path/'own'/'config.json', own | dict(gptlab=own['gptlab'] | dict(d_ff=10**9)))
    config = read(tmp_path/'llama'/'config.json')
    write(tmp_path/'llama'/'config.json', config | dict(intermediate_size=10**9))
    for name in ('own', 'llama'):
        start = time.time()
        with pytest.raises(ValueError, match='should be .*1000000000'): load(tmp_path/name)
        assert time.time() - start < 20

def test_r01_names_in_files_cannot_steer_the_terminal(tmp_path):
    save(plain(), None, tmp_path)
    config = read(tmp_path/'config.json')
    write(tmp_path/'config.json', config | {'\x1b]52;c;x\x07field': 5})
    with pytest.raises(ValueError, match='may change') as e: load(tmp_path)
    assert '\x1b' not in str(e.value)
    write(tmp_path/'config.json', config)
    only(tmp_path, lambda t: t.update({'model.\x1b[31mred': torch.zeros(2)}))
    with pytest.raises(ValueError, match='extra: ') as e: load(tmp_path)
    assert '\x1b' not in str(e.value)

def test_r07_a_run_that_is_writing_its_log_is_read_once(tmp_path, monkeypatch):
    model, reads = plain(), []
    save_checkpoint(tmp_path/'step_000001', model=model.state_dict(), tokenizer=None,
                    config=model.cfg.to_dict(), trainer={})
    def and_log(*args):
        reads.append(args)
        (tmp_path/'log.jsonl').write_text('x'*len(reads))
        return load_model(*args)
    monkeypatch.setattr(hub, 'load_model', and_log)
    load(tmp_path, device='cpu')
    assert len(reads) == 1

def in_threads(*jobs):
    "Run jobs at once; raises what any of them raised"
    errors = []
    def run(job):
        try: job()
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=run, args=(j,)) for j in jobs]
    for t in threads: t.start()
    for t in threads: t.join()
    if errors: raise errors[0]

@pytest.mark.parametrize('there', [False, True], ids=['new', 'old'])
def test_r07_two_saves_into_one_folder(there, tmp_path):
    models = [plain(), GPT(GPTConfig(97, 64, 1, 2, None, 16)).eval()]
    ids, folder = torch.arange(50)[None], tmp_path/'m'
    if there: save(models[0], None, folder)
    for _ in range(2):
        in_threads(*(partial(save, m, None, folder, shard=10_000) for m in models*2))
        got = load(folder, device='cpu')[0](ids)
        assert any(torch.equal(got, m(ids)) for m in models)
        assert not [*tmp_path.rglob('.*')]

def test_r07_a_reader_beside_a_writer(tmp_path):
    "Reads one of the two models whole, each time"
    models, ids = [plain(), plain(tie=True)], torch.arange(50)[None]
    save(models[0], None, tmp_path)
    done, want = [], [m(ids) for m in models]
    def write_on():
        while not done: [save(m, None, tmp_path) for m in models]
    def read_on():
        try:
            for _ in range(8):
                got = load(tmp_path, device='cpu')[0](ids)
                assert any(torch.equal(got, w) for w in want)
        finally: done.append(1)
    in_threads(write_on, read_on)


# ---- R11, A24: arguments

@pytest.mark.parametrize('call, error, message', [
    (lambda m, d: save(ByteTokenizer(), m, d), TypeError, 'model must be a GPT.*model comes first'),
    (lambda m, d: save(m, d, ByteTokenizer()), TypeError, 'tok must be a tokenizer or None.*comes'),
    (lambda m, d: save(m, m, d), TypeError, 'tok must be a tokenizer or None'),
    (lambda m, d: save(m, None, None), TypeError, 'a path is expected, not None'),
    (lambda m, d: save(m, None, ''), ValueError, 'the path is empty'),
    (lambda m, d: save(m, None, d, shard=-1), ValueError, 'shard must be a whole number .*not -1'),
    (lambda m, d: save(m, None, d, shard=1.5), TypeError, 'shard must be a whole number'),
    (lambda m, d: save(m, None, d, family='lama'), ValueError, "nearest is 'llama'"),
    (lambda m, d: save(m, None, d, family=['llama']), ValueError, 'family .* is not known'),
    (lambda m, d: load(None), TypeError, 'a path is expected, not None'),
    (lambda m, d: load(''), ValueError, 'the path is empty'),
    (lambda m, d: load(5), TypeError, 'a path is expected, not 5'),
    (lambda m, d: load(d, dtype='bf16'), TypeError, "dtype must be .*not 'bf16'"),
    (lambda m, d: load(d, dtype=torch.int64), TypeError, 'dtype must be one of floating point'),
    (lambda m, d: load(d, parts=[Path]), TypeError, 'parts must be a dictionary'),
    (lambda m, d: load(d, revision=3), TypeError, 'revision must be'),
    (lambda m, d: load(d, device=''), TypeError, 'device must be'),
    (lambda m, d: hub.empty_model('x'), TypeError, 'cfg must be a GPTConfig'),
    (lambda m, d: hub.family_of(m), TypeError, 'cfg must be a GPTConfig'),
    (lambda m, d: hub.tensor_names(m.cfg, 'x'), ValueError, "family 'x' is not known here"),
    (lambda m, d: hub.write_config(m.cfg, 'gpt2'), ValueError, 'a gpt2 cannot express this model')])
def test_r11_wrong_arguments(call, error, message, tmp_path):
    before = files(tmp_path)
    with pytest.raises(error, match=message): call(plain(), tmp_path)
    assert files(tmp_path) == before

def test_a24_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    assert save(plain(), None, '~/m') == tmp_path/'home'/'m' and not (tmp_path/'~').exists()
    load('~/m', device='cpu')


# ---- weights that are none, and tokenizers that nobody reads

def test_weights_that_are_not_finite_are_neither_read_nor_written(tmp_path):
    model = plain()
    save(model, None, tmp_path)
    only(tmp_path, lambda t: t['model.norm.weight'].fill_(1e5))
    load(tmp_path, device='cpu')
    with pytest.raises(ValueError, match='norm.weight holds NaN or infinity in torch.float16'):
        load(tmp_path, device='cpu', dtype=torch.float16)
    only(tmp_path, lambda t: t['model.norm.weight'].fill_(float('nan')))
    with pytest.raises(ValueError, match='holds NaN or infinity'): load(tmp_path)
    model.norm.weight.data[3] = float('inf')
    with pytest.raises(ValueError, match='norm.weight holds NaN or infinity'):
        save(model, None, tmp_path/'b')
    assert not (tmp_path/'b').exists()

def test_quantised_weights_are_refused_by_name(tmp_path):
    save(plain(), None, tmp_path)
    name = 'model.layers.0.mlp.up_proj.weight'
    only(tmp_path, lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(ValueError, match=f'holds {name} as I8: quantised weights are not read'):
        load(tmp_path)

def test_a_tokenizer_that_is_not_read_is_said(tmp_path, capsys):
    save(plain(), None, tmp_path)
    assert load(tmp_path, device='cpu')[1] is None and not capsys.readouterr().out
    for name in ('vocab.json', 'merges.txt'): (tmp_path/name).write_text('{}')
    assert load(tmp_path, device='cpu')[1] is None
    assert 'a tokenizer in vocab.json, merges.txt, which is not read' in capsys.readouterr().out

def test_a_tokenizer_with_more_ids_than_the_model_is_said(tmp_path, capsys):
    save(plain(), ByteTokenizer(), tmp_path)
    assert 'tokenizer has 257 ids and the model 97: widen_vocab' in capsys.readouterr().out

def test_a08_folders_of_the_names_of_files_are_refused(tmp_path):
    for name in ('model.safetensors', 'additional_chat_templates', 'tokenizer.json'):
        folder = tmp_path/f'of {name}'
        (folder/name).mkdir(parents=True)
        (folder/name/'thesis.txt').write_text('x')
        with pytest.raises(FileExistsError, match='is no file of a model: choose another folder'):
            save(plain(), ByteTokenizer(), folder)
        assert files(folder) == {f'{name}/thesis.txt': b'x'}

@pytest.mark.skipif(os.name == 'nt', reason='modes are of POSIX')
def test_r12_everybody_who_may_read_the_folder_may_read_its_files(tmp_path):
    before = os.umask(0o022)
    try: save(plain(), ByteTokenizer(), tmp_path/'m')
    finally: os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (tmp_path/'m').iterdir()}
    assert set(modes.values()) == {'0o644'}, modes

@pytest.mark.skipif(os.name == 'nt', reason='paths are of POSIX')
def test_a10_a_cache_that_cannot_be_written_is_not_needed(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('x')
    monkeypatch.setenv('GPTLAB_CACHE', str(tmp_path/'file'/'cache'))
    save(plain(), None, tmp_path/'m')
    load(tmp_path/'m', device='cpu')

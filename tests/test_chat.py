"""Chat: what templates write, and whose; a chat that remembers; models elsewhere; a terminal and a
widget.

What people write never becomes a special token: random contents of nothing but fragments of special
tokens go through every template and kind of tokenizer. Chat templates of Hugging Face are compared
with transformers: those that stand in its sources, and those in the folder GPTLAB_CHAT_TEMPLATES,
if it is set.
"""
import ast
import asyncio
import contextlib
import copy
import functools
import http.server
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

import gptlab.chat as module
from common import extra, refuses, ROOT, tiny_model, write
from gptlab.bpe import BPE
from gptlab.chat import (Chat, chatml, ChatWidget, check_messages, Conversation, fitting,
                         jinja_template, llama_style, marked_roles, Part, plain_roles, Remote, talk,
                         Template, template_of)
from gptlab.generation import generate, temperature
from gptlab.model import GPT, llama_config
from gptlab.tokenizer import ByteTokenizer
from gptlab.tokenizers import CHAT_SPECIAL

MARKS = (*CHAT_SPECIAL, '<|im_start|>', '<|im_end|>', '<|start_header_id|>', '<|end_header_id|>',
         '<|eot_id|>', '</s>', '[INST]', '[/INST]')
TEXT = ['a text to learn from, with words: user, system, assistant and some more words '*9]
user, said, system = (partial(dict, role=r) for r in ('user', 'assistant', 'system'))
TALK = [system(content='  Be kind. '), user(content=' Hi <b>\n'), said(content='Hello!\nWell?'),
        user(content='Bye')]

MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}
{{- '[INST] ' + m['content'] | trim + ' [/INST]' }}{% elif m['role'] == 'assistant' %}
{{- ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"""
MARKED = """{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}
{%- if m.role == 'assistant' %}
{%- generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>
{%- endif %}{{ '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
THINKING = """{%- set ns = namespace(last=-1) %}{%- for m in messages %}
{%- if m.role == 'user' and not m.content.startswith('<tool>') %}{%- set ns.last = loop.index0 %}
{%- endif %}{%- endfor %}{%- for m in messages %}{%- set text = m.content %}
{%- if m.role == 'assistant' and '</think>' in text and loop.index0 < ns.last %}
{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
UPPER = """{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>
{% endfor %}"""
NUMBERED = """{{ messages | length }}{% for m in messages %}<|im_start|>{{ m.content | upper }}
{{- m.content | length }}<|im_end|>{% endfor %}"""
JINJA = dict(mistral=MISTRAL, marked=MARKED, thinking=THINKING, upper=UPPER)


def marked(name): return jinja_template(JINJA[name], '<|bos|>', '</s>')


TEMPLATES = dict(plain=plain_roles, chatml=chatml, llama=llama_style, marked_roles=marked_roles,
                 **{n: partial(marked, n) for n in JINJA})


@functools.cache
def bpe(): return BPE.train(TEXT, 290 + len(MARKS), special=MARKS, verbose=False)


@functools.cache
def tokenizer(kind, folder):
    "One of three kinds, with the same special tokens"
    if kind == 'ours': return bpe()
    if kind == 'tiktoken':
        special = {s: 1000 + i for i, s in enumerate(MARKS)}
        return BPE.from_tiktoken(bpe().to_tiktoken(folder/'t.tiktoken'), special=special)
    extra('tokenizers')
    from gptlab.tokenizers import HFTokenizer
    return HFTokenizer(bpe().to_tokenizer_json(folder/'tokenizer.json'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('chat')


# ---- templates

EXPECTED = dict(
    plain='User: a\nAssistant: b\nUser: c\nAssistant: ',
    chatml='<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n'
           '<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n',
    llama='<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>'
          '<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>'
          '<|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|>'
          '<|start_header_id|>assistant<|end_header_id|>\n\n',
    marked_roles='<|user_start|>a<|user_end|><|assistant_start|>b<|assistant_end|>'
                 '<|user_start|>c<|user_end|><|assistant_start|>',
    mistral='<|bos|>[INST] a [/INST] b</s>[INST] c [/INST]')
ABC = [user(content='a'), said(content='b'), user(content='c')]


@pytest.mark.parametrize('name', EXPECTED)
def test_what_a_template_writes(name):
    assert TEMPLATES[name]().render(ABC) == EXPECTED[name]


LEARNT = dict(plain='b\n', chatml='b<|im_end|>', llama='b<|eot_id|>', mistral=' b</s>',
              marked_roles='b<|assistant_end|>', marked='b<|im_end|>', thinking='b<|im_end|>',
              upper='<|im_start|>B<|im_end|>')


@pytest.mark.parametrize('name', LEARNT)
def test_what_is_learnt_is_the_reply_with_its_end(name):
    "And a prompt's ids are the beginning of the ids of what follows"
    template = TEMPLATES[name]()
    c = template.encode(bpe(), ABC, reply=False)
    learnt = [i for i, m in zip(c.ids, c.mask) if m]
    assert bpe().decode(learnt, special=True) == LEARNT[name]
    assert bpe().decode(c.ids, special=True) == c.text and len(c.mask) == len(c.ids)
    prompt = template.encode(bpe(), ABC[:1])
    assert not any(prompt.mask) and c.ids[:len(prompt.ids)] == prompt.ids


def test_a_reply_of_which_thoughts_are_dropped():
    "The template looks into contents, and rewrites an old one; what is learnt is what is left"
    talk = [user(content='a'), said(content='<think>hm</think>\n\nb'), *ABC[2:], said(content='d')]
    c = TEMPLATES['thinking']().encode(bpe(), talk, reply=False)
    learnt = bpe().decode([i for i, m in zip(c.ids, c.mask) if m], special=True)
    assert '<think>' not in c.text and learnt == 'b<|im_end|>d<|im_end|>'


def test_what_is_learnt_is_not_guessed():
    talk = [user(content='hello'), said(content='friend')]
    c = jinja_template(NUMBERED).encode(bpe(), talk, reply=False)
    with refuses(ValueError, 'rewrites', '{% generation %}'): c.mask
    assert '?' in repr(c) and 'FRIEND6' in c._repr_html_()


def pieces_of_marks(rng):
    "A content of whole special tokens, halves of them, blanks and letters"
    def piece():
        s = rng.choice(MARKS)
        return rng.choice([s, s, s[:rng.randrange(len(s))], s[rng.randrange(len(s)):], ' ', '\n',
                           'a', '{{ 7*7 }}', '{% raw %}', '\ue000', '</think>', '<tool>', '猫'])
    return ''.join(piece() for _ in range(rng.randrange(1, 9)))


def special_of(tok, ids): return [i for i in ids if i in tok.special.values()]


@pytest.mark.parametrize('kind', ['ours', 'tiktoken', 'hf'])
@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.repeat(quick=1, exhaustive=12)
def test_no_special_token_stems_from_a_content(name, kind, seed, folder):
    """The special tokens are those of the same conversation about nothing, and each content comes
    back; the template that shortens thoughts, and the one that writes capitals, change some"""
    tok, template, rng = tokenizer(kind, folder), TEMPLATES[name](), random.Random(seed)
    for _ in range(12):
        contents = [pieces_of_marks(rng) for _ in range(3)]
        roles = rng.choice([(user, said, user), (user, said, user), (system, user, said)])
        talk = [r(content=t) for r, t in zip(roles, contents)]
        if name == 'mistral' and not talk[-1]['content'].strip(): continue
        c = template.encode(tok, talk)
        blank = template.encode(tok, [m | dict(content='x') for m in talk])
        assert special_of(tok, c.ids) == special_of(tok, blank.ids), talk
        assert tok.decode(c.ids, special=True) == c.text
        plain = tok.decode(c.ids)
        if name == 'upper': assert all(t.upper() in plain for t in contents)
        elif name != 'thinking':
            dropped = ['system'] if name == 'mistral' else []
            kept = [m['content'] for m in talk if m['role'] not in dropped]
            assert all(t.strip() in plain for t in kept)
        assert c.text == template.render(talk) or template.bos


@pytest.mark.parametrize('name', TEMPLATES)
def test_what_stops_a_reply(name):
    ids, strings = TEMPLATES[name]().stops(bpe())
    ends = dict(plain='\n', chatml='<|im_end|>', llama='<|eot_id|>', mistral='</s>',
                marked_roles='<|assistant_end|>').get(name, '<|im_end|>')
    if name == 'plain': assert strings == (ends,) and ids == (bpe().bos,)
    else: assert not strings and {bpe().special[ends], bpe().bos} <= {*ids}


def test_a_template_whose_end_is_text_stops_at_it():
    alpaca = jinja_template('{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n'
                            '{% endfor %}'
                            '{% if add_generation_prompt %}### assistant:\n{% endif %}')
    assert alpaca.stops(ByteTokenizer())[1] == ('### user:',)


def test_a_mark_that_the_tokenizer_lacks():
    with refuses(ValueError, '<|im_start|>', 'plain_roles()'): chatml().encode(ByteTokenizer(), ABC)


class Careless(ByteTokenizer):
    "Takes names of special tokens in a text for the tokens"
    def encode(self, text, bos=False):
        return self.start(bos) + [256 if c == '~' else b for c in text for b in c.encode()]


def test_a_tokenizer_that_makes_special_tokens_of_text_is_refused():
    with refuses(ValueError, 'special token 256'):
        plain_roles().encode(Careless(), [user(content='a~b')])


WRONG = dict(role=[dict(role='narrator', content='a')], field=[dict(role='user', text='a')],
             more=[dict(role='user', content='a', name='b')], text='user: a', item=['user: a'],
             content=[user(content=3)], surrogate=[user(content='\ud800')],
             unhashable=[dict(role=[], content='a')])


@pytest.mark.parametrize('case', WRONG)
@pytest.mark.parametrize('name', ['plain', 'marked'])
def test_messages_that_are_none(case, name):
    kind = TypeError if case in ('text', 'item', 'content') else ValueError
    with refuses(kind): TEMPLATES[name]().render(WRONG[case])


@pytest.mark.parametrize('name', TEMPLATES)
def test_a_conversation_shows_markup_as_text(name):
    tags = '<img src=x onerror="window.pwned=1"><|im_end|>\x1b[2J'
    shown = TEMPLATES[name]().encode(bpe(), [user(content=tags)])._repr_html_()
    assert '<img' not in shown.lower() and '\x1b' not in shown and '&lt;' in shown


# ---- templates of others

def real_templates():
    "Chat templates in the sources of transformers, and those in a folder of your own"
    transformers = extra('transformers')
    root = Path(transformers.__file__).parent
    files = ['models/llama4/processing_llama4.py', 'models/smolvlm/processing_smolvlm.py',
             'models/qwen2_audio/processing_qwen2_audio.py']
    for f in (root/f for f in files):
        if not f.is_file(): continue
        for n in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            text = n.value if isinstance(n, ast.Constant) else None
            if isinstance(text, str) and '{%' in text and 'messages' in text: yield text
    if (own := os.environ.get('GPTLAB_CHAT_TEMPLATES')):
        yield from (f.read_text(encoding='utf-8') for f in sorted(Path(own).glob('*.jinja')))
    yield from JINJA.values()


def by_transformers(source, talk, reply, **more):
    from transformers.utils.chat_template_utils import render_jinja_template
    return render_jinja_template([copy.deepcopy(talk)], chat_template=source,
                                 add_generation_prompt=reply, bos_token='<|bos|>',
                                 eos_token='</s>', **more)


def test_templates_write_what_they_write_in_transformers():
    n_equal = 0
    thoughts = [user(content='a'), said(content='<think>\nhm\n</think>\n\nb'), *ABC]
    for source in real_templates():
        for talk in (ABC, TALK, thoughts):
            for reply in (True, False):
                try: want = by_transformers(source, talk, reply)[0][0]
                except Exception: want = None         # the template refuses these messages
                template = jinja_template(source, '<|bos|>', '</s>')
                if want is None:
                    with refuses(ValueError): template.render(talk, reply)
                    continue
                assert template.render(talk, reply) == want
                n_equal += 1
    assert n_equal > 20


@pytest.mark.parametrize('name', JINJA)
def test_ids_and_mask_are_those_of_transformers(name, folder):
    "transformers has no rule for contents that hold special tokens: there, they become ids"
    transformers = extra('transformers')
    file = str(bpe().to_tokenizer_json(folder/'tokenizer.json'))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=file, bos_token='<|bos|>',
                                                  eos_token='</s>')
    theirs.chat_template = JINJA[name]
    talk = [user(content='Hello, some words'), said(content='Well'), user(content='more')]
    ours = TEMPLATES[name]().encode(tokenizer('hf', folder), talk)
    want = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=True,
                                      return_assistant_tokens_mask=name == 'marked')
    if name != 'mistral': assert ours.ids == list(want['input_ids'])
    else: assert ours.text == bpe().decode(want['input_ids'], special=True)
    if name == 'marked': assert [*map(int, ours.mask)] == list(want['assistant_masks'])


LOOPS = {
    'range': '{% for i in range(10**9) %}x{% endfor %}',
    'nested': '{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}',
    'output': '{% for i in range(90000) %}{{ messages }}{{ "x" * 999 }}{% endfor %}',
    'times': '{{ "x" * 10**10 }}', 'power': '{{ 10**10**10 }}',
    'square': '{% set n = namespace(a=999999) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}'
              '{% endfor %}',
    'double': '{% set n = namespace(a="xxxx") %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}'
              '{% endfor %}',
    'plus': '{% set n = namespace(a="xxxx") %}{% for i in range(60) %}{% set n.a = n.a + n.a %}'
            '{% endfor %}',
    'block': '{% set n = namespace(a="xxxx") %}{% for i in range(60) %}{% set a %}{{ n.a }}'
             '{{ n.a }}{% endset %}{% set n.a = a %}{% endfor %}',
    'lists': '{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}'
             '{% endfor %}{{ n.a }}',
    'center': '{{ "x" | center(10**10) }}', 'ljust': '{{ "x".ljust(10**10) }}',
    'format': '{{ "{:9999999999}".format(1) }}', 'percent': '{{ "%9999999999d" % 1 }}',
    'attr': '{{ ("{:9999999999}" | attr("format"))(1) }}',
    'item': '{{ "{:9999999999}"["format"](1) }}',
    'mapped': '{{ ["{:9999999999}"] | map(attribute="format") | first }}',
    'filter': '{{ "%9999999999d" | format(1) }}', 'star': '{{ "%*d" | format(10**10, 1) }}',
    'replace': '{{ ("x" * 90000).replace("x", "y" * 90000) }}',
    'join': '{{ ("x" * 90000) | join("y" * 90000) }}', 'indent': '{{ "x" | indent(10**10) }}',
    'macro': '{% macro f(n) %}{{ f(n-1) }}{{ f(n-1) }}{% endmacro %}{{ f(900) }}',
    'recursion': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    'loop': '{% for m in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}',
    'tojson': '{{ messages | tojson(indent=10**10) }}', 'batch': '{{ [1] | batch(10**10) | list }}',
    'lipsum': '{{ lipsum(n=10**9) }}', 'raise': '{{ raise_exception("no\x1b[2J") }}',
    'import': '{% import "os" as os %}', 'include': '{% include "/etc/passwd" %}',
    'class': '{{ "".__class__.__mro__[1].__subclasses__() }}',
    'globals': '{{ raise_exception.__globals__.os }}', 'field': '{{ "{:{}}".format(1, "9"*9) }}',
    'init': '{{ namespace.__init__.__globals__ }}',
    'map': '{{ "{0.__class__}".format_map(messages) }}',
    'undefined': '{{ nothing.at.all }}', 'append': '{{ messages.append(1) }}'}


@pytest.mark.parametrize('case', LOOPS)
def test_a_template_that_harms_is_refused(case, monkeypatch):
    monkeypatch.setattr(module, '_MAX_ROUNDS', 100_000)
    monkeypatch.setattr(module, '_MAX_SECONDS', 1.)
    monkeypatch.setattr(module, '_MAX_TEXT', 400_000)
    start = time.process_time()
    with refuses(ValueError, 'template') as e: jinja_template(LOOPS[case]).render(ABC)
    assert time.process_time() - start < 3 and '\x1b' not in str(e.value)
    assert len(str(e.value)) < 400 and e.value.__cause__ is None


def test_bounds_of_a_template_leave_room_for_long_conversations():
    talk = [m for i in range(400) for m in (user(content='word '*99), said(content='x'*99))]
    text = jinja_template(MARKED).render(talk)
    assert text.count('<|im_start|>') == 801
    assert jinja_template('{{ messages | tojson }}').render(ABC) == json.dumps(ABC)


@pytest.mark.parametrize('source', ['{% for %}', '{{ a', '{% generation %}', '{% if x %}',
                                    '{{' + '('*9999])
def test_a_template_with_a_syntax_error(source):
    with refuses(ValueError, 'no Jinja'): jinja_template(source)


def test_templates_do_not_share_their_state():
    "Two threads render at once, each within bounds of its own"
    template, found = jinja_template(MARKED), []
    def work(i): found.append((i, template.render([user(content=str(i))]*50)))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert len(found) == 8 and all(s.count(f'\n{i}<') == 50 for i, s in found)


def test_the_template_that_a_tokenizer_has(tmp_path):
    assert template_of(bpe()).render(ABC) == EXPECTED['marked_roles']
    assert template_of(ByteTokenizer()).render(ABC) == EXPECTED['plain']
    im = BPE.train(TEXT, 290, special=['<|im_start|>', '<|im_end|>'], verbose=False)
    assert template_of(im).render(ABC) == EXPECTED['chatml']
    im.brought = dict(chat_template=MISTRAL)
    assert '[INST] a' in template_of(im).render(ABC)
    write(tmp_path/'tokenizer_config.json', json.dumps(
        dict(chat_template=[dict(name='default', template=MISTRAL)], bos_token='<|bos|>',
             eos_token=dict(content='</s>'))))
    assert template_of(tmp_path).render(ABC) == EXPECTED['mistral']
    write(tmp_path/'chat_template.jinja', MARKED)
    assert template_of(str(tmp_path)).render(ABC) == EXPECTED['chatml']


@pytest.mark.parametrize('config', ['{', '[1]', '{"chat_template": 3}', '{"chat_template": [1]}',
                                    '{"chat_template": "{% for %}"}',
                                    '{"chat_template": "a", "bos_token": 3}'])
def test_a_folder_without_a_template_that_can_be_used(tmp_path, config):
    write(tmp_path/'tokenizer_config.json', config)
    with refuses(ValueError, 'template'): template_of(tmp_path)
    with refuses(FileNotFoundError, 'nowhere'): template_of(tmp_path/'nowhere')


# ---- a chat

def chat_with(model=None, **kw):
    model = model or tiny_model(context_length=128, vocab_size=257)
    return Chat(model, ByteTokenizer(), plain_roles(end='\n'), **dict(temperature=0, n=8) | kw)


def whole(pieces): return ''.join(pieces)


def test_a_reply_is_what_the_model_writes_after_the_prompt():
    model, tok = tiny_model(context_length=128), ByteTokenizer()
    chat = chat_with(model)
    ids = plain_roles().encode(tok, [user(content='Hi')]).ids
    want = tok.decode([*generate(model, ids, 8, temperature(0), stop=[256])]).partition('\n')[0]
    assert whole(chat('Hi')).rstrip('\ufffd') == want.rstrip('\ufffd')
    assert chat.messages == [user(content='Hi'), said(content=want.rstrip('\ufffd'))]


def counted(model):
    "A list of how many tokens the model read at each call"
    n = []
    model.register_forward_pre_hook(lambda m, a, kw: n.append(kw['ids'].shape[1]), with_kwargs=True)
    return n


def test_what_was_read_before_is_not_read_again():
    model = tiny_model(context_length=512)
    chat, fresh, n_read = chat_with(model), chat_with(copy.deepcopy(model)), counted(model)
    def both(f):
        fresh.reader = None
        del n_read[:]
        texts = [whole(f(c)) for c in (chat, fresh)]
        assert texts[0] == texts[1] and chat.messages == fresh.messages
        return sum(n_read)
    both(lambda c: c('a long first message, to be read once and for all'))
    assert both(lambda c: c('b')) < 60                # of more than 100
    assert both(lambda c: c.retry()) < 10
    for c in (chat, fresh): c.undo()
    assert both(lambda c: c('another')) < 60
    for c in (chat, fresh): c.system = 'Be brief.'
    both(lambda c: c('c'))


def test_what_was_read_is_forgotten_when_the_model_was_trained():
    model = tiny_model(context_length=512)
    chat = chat_with(model)
    whole(chat('a first message'))
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.05)
    fresh = chat_with(model)
    fresh.messages = copy.deepcopy(chat.messages)
    assert whole(chat('b')) == whole(fresh('b'))


def test_an_interrupt_while_the_model_reads_keeps_what_was_written():
    "Half of the layers have read the token then: the next reply must not build on that"
    model, notes = tiny_model(context_length=512), []
    chat = chat_with(model, n=20, say=notes.append)
    calls = []
    def interrupt(*_):
        calls.append(1)
        if len(calls) == 6: raise KeyboardInterrupt
    hook = model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt): whole(chat('Hi'))
    hook.remove()
    assert len(chat.messages) == 2 and chat.messages[1]['content'] and 'kept' in notes[0]
    fresh = chat_with(copy.deepcopy(model), n=20)
    fresh.messages = copy.deepcopy(chat.messages)
    assert whole(chat('b')) == whole(fresh('b')) and len(notes) == 1


def test_an_interrupt_between_two_pieces_is_told_at_the_next_message():
    notes = []
    chat = chat_with(say=notes.append)
    pieces = chat('Hi')                               # held by a traceback, as in a notebook
    first = next(pieces)
    assert chat.messages[1]['content'] == first and not notes
    whole(chat('b'))
    assert len(notes) == 1 and 'interrupted' in notes[0] and len(chat.messages) == 4


def test_stop_from_another_thread_ends_a_reply():
    chat = chat_with(n=10**6)
    pieces = []
    for piece in chat('Hi'):
        pieces.append(piece)
        if len(pieces) == 3:
            t = threading.Thread(target=chat.stop)
            t.start()
            t.join()
    assert len(pieces) == 3 and chat.messages[-1]['content'] == whole(pieces)
    chat.n = 5
    assert len(whole(chat('again'))) > 3 and len(chat.messages) == 4


def test_an_error_leaves_the_messages_as_they_were():
    def bad(logits): raise ValueError('a bad filter')
    chat = chat_with()
    whole(chat('Hi'))
    before = copy.deepcopy(chat.messages)
    chat.filters = bad,
    with refuses(ValueError, 'a bad filter'): whole(chat('b'))
    assert chat.messages == before
    chat.filters = ()
    chat.temperature = -1
    with refuses(ValueError, 'temperature'): chat('b')
    assert chat.messages == before


def test_old_turns_make_room_and_it_says_so():
    notes = []
    chat = chat_with(tiny_model(context_length=64), n=20, say=notes.append, system='S')
    for i in range(5): whole(chat(f'message {i}'))
    assert notes and 'oldest 2 messages' in notes[0] and '64 tokens' in notes[0]
    assert len(chat.messages) == 10                   # nothing is deleted
    ids, n_out = fitting(chat.template, chat.tok, [system(content='S'), *chat.messages,
                                                   user(content='b')], 64, 20)
    text = chat.tok.decode(ids)
    assert text.startswith('System: S\nUser: ') and len(ids) <= 44 and n_out % 2 == 0 and n_out > 2
    with refuses(ValueError, 'last message alone', '64'): chat('x'*99)
    assert len(chat.messages) == 10


def test_a_seed_gives_the_same_talk_and_retry_another_reply():
    model = tiny_model(context_length=256)
    def talked(seed):
        chat = chat_with(model, temperature=1., top_k=None, seed=seed)
        return [whole(f()) for f in (partial(chat, 'a'), chat.retry, partial(chat, 'b'))]
    assert talked(1) == talked(1) != talked(2)
    assert talked(1)[0] != talked(1)[1]


def test_ids_that_the_tokenizer_does_not_know_are_never_drawn():
    chat = chat_with(tiny_model(context_length=512, vocab_size=999), temperature=9., top_k=None,
                     n=99, seed=0)
    assert whole(chat('Hi')) is not None


def test_undo_clear_and_what_they_refuse():
    chat = chat_with()
    with refuses(ValueError, 'nothing to take back'): chat.undo()
    with refuses(ValueError, 'nothing to take back'): chat.retry()
    whole(chat('a'))
    assert chat.undo() == 'a' and chat.messages == []
    for text in ('', ' \n'):
        with refuses(ValueError, 'empty'): chat(text)
    with refuses(TypeError, 'text'): chat(3)
    with refuses(ValueError, 'surrogate'): chat('\ud800')
    with refuses(ValueError, 'its tokenizer'): Chat(tiny_model())
    with refuses(TypeError, 'a Remote'): Chat('gpt2')
    with refuses(ValueError, 'has its own'): Chat(Remote('http://127.0.0.1:1'), ByteTokenizer())
    assert chat.messages == []


def test_a_chat_is_saved_whole_and_read_back(tmp_path):
    chat = chat_with(system='Be <b>kind</b>.')
    whole(chat('Hi\x1b[2J'))
    file = chat.save(tmp_path/'a'/'chat.json')
    other = chat_with()
    other.load(file)
    assert other.messages == chat.messages and other.system == chat.system
    for bad in ('{', '[]', '{"messages": 3}', '{"messages": [{"role": "x", "content": "a"}]}',
                '\x00', '['*9999):
        write(tmp_path/'bad.json', bad)
        with refuses(ValueError, 'no saved chat'): other.load(tmp_path/'bad.json')
    assert other.messages == chat.messages
    with refuses(FileNotFoundError, 'nowhere'): other.load(tmp_path/'nowhere')
    assert '<b>' not in chat._repr_html_() and '\x1b' not in chat._repr_html_() + repr(chat)


# ---- a model elsewhere

SECRET = 'sk-very-secret-1234567890'
PIECES = ['Good ', 'night', ' <b>!']


def events(*pieces, done=True):
    "A stream as an OpenAI-compatible server sends it"
    first = [dict(choices=[dict(delta=dict(role='assistant', content=None))])]
    said = [dict(choices=[dict(delta=dict(content=p), finish_reason=None)]) for p in pieces]
    last = [dict(choices=[dict(delta={}, finish_reason='stop')]), dict(choices=[], usage={})]
    lines = [f'data: {json.dumps(e)}\n\n' for e in first + said + last*done]
    return ': a comment\n\nevent: x\n' + ''.join(lines) + 'data: [DONE]\n\n'*done


def whole_answer(text): return json.dumps(dict(choices=[dict(message=dict(content=text))]))


SSE, JSON, HTML = 'text/event-stream', 'application/json', 'text/html'
REPORT = json.dumps(dict(error=dict(message=f'bad \x1b[2J <b> {SECRET}')))
# path below /v1 → status, type, body
ANSWERS = dict(
    good=(200, SSE, events(*PIECES)), whole=(200, JSON, whole_answer(''.join(PIECES))),
    denied=(401, JSON, REPORT), forbidden=(403, JSON, REPORT), unknown=(404, JSON, REPORT),
    busy=(429, JSON, REPORT), broken=(500, HTML, f'<html>{SECRET}'),
    html=(200, HTML, '<html>hello'),
    nothing=(200, SSE, ''), badjson=(200, SSE, 'data: {"choices": [\n\n'),
    list=(200, SSE, 'data: [1]\n\n'), shape=(200, SSE, 'data: {"choices": [3]}\n\n'),
    number=(200, SSE, 'data: {"choices": [{"delta": {"content": 3}}]}\n\n'),
    missing=(200, SSE, 'data: {}\n\n'), cut=(200, SSE, events(*PIECES, done=False)),
    reported=(200, SSE, f'data: {REPORT}\n\n'), junk=(200, JSON, '{'), deep=(200, JSON, '['*99999),
    long=(200, SSE, 'data: ' + 'x'*(2**20 + 9)), bytes=(200, SSE, 'data: \udcff\udcfe\n\n'))


class Server(http.server.BaseHTTPRequestHandler):
    "Answers by the path; what was asked is noted"
    asked = []

    def do_GET(self): self.reply(200, JSON, json.dumps(dict(data=[dict(id='first'), dict(id='b')])))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.asked.append((self.path, body, self.headers.get('Authorization')))
        kind = self.path.split('/')[1]
        if kind == 'silent': time.sleep(3)
        elif kind == 'stalls':
            self.send_response(200)
            self.send_header('Content-Type', SSE)
            self.end_headers()
            self.wfile.write(events('one ', done=False).encode())
            self.wfile.flush()
            time.sleep(3)
        elif kind == 'away':
            self.send_response(307)
            self.send_header('Location', f'http://{self.headers["Host"]}/good/v1/chat/completions')
            self.end_headers()
        elif kind == 'noise': self.wfile.write(b'this is no HTTP\r\n\r\n')
        elif kind == 'slam': pass
        else: self.reply(*ANSWERS[kind])

    def reply(self, status, kind, body):
        data = body.encode('utf-8', 'surrogateescape')
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_): pass


@pytest.fixture(scope='module')
def address():
    "Of a server of our own"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv('CHAT_TEST_KEY', SECRET)
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, False)
    return 'CHAT_TEST_KEY'


@pytest.mark.parametrize('kind', ['good', 'whole'])
def test_a_chat_with_a_remote_model(address, key, kind):
    del Server.asked[:]
    chat = Chat(Remote(f'{address}/{kind}/v1/', key=key), temperature=.5, n=9, seed=3, system='S')
    pieces = [*chat('Hi')]
    assert pieces == (PIECES if kind == 'good' else [''.join(PIECES)])
    path, body, sent = Server.asked[-1]
    assert path.endswith('/v1/chat/completions') and sent == f'Bearer {SECRET}'
    want = dict(model='first', temperature=.5, max_tokens=9, seed=3, top_p=1., stream=True)
    assert body | want == body and body['messages'] == [system(content='S'), user(content='Hi')]
    whole(chat('b'))
    assert [m['role'] for m in Server.asked[-1][1]['messages']][-2:] == ['assistant', 'user']
    assert chat.messages[1] == said(content=''.join(PIECES)) and '<b>' not in chat._repr_html_()


WORDS = dict(denied=(PermissionError, 'refuses the key in CHAT_TEST_KEY', '401'),
             forbidden=(PermissionError, '403'), unknown=(ValueError, "no model 'mine'", '404'),
             busy=(OSError, '429'), broken=(OSError, '500'), html=(OSError, 'OpenAI-compatible'),
             nothing=(OSError, 'no whole stream'), badjson=(OSError, 'no JSON'),
             list=(OSError, 'no JSON'),
             shape=(OSError, 'no chat completion'), number=(OSError, 'no chat completion'),
             missing=(OSError, 'no chat completion'), cut=(OSError, 'no whole stream'),
             reported=(OSError, 'reports an error'), junk=(OSError, 'no JSON'),
             deep=(OSError, 'no JSON'), long=(OSError, 'without end'), bytes=(OSError, 'no JSON'),
             silent=(TimeoutError, 'silent for 0.4 s'), stalls=(TimeoutError, 'silent for 0.4 s'),
             away=(ConnectionError, 'leads elsewhere'), noise=(OSError, 'nothing whole'),
             slam=(OSError, 'nothing whole'))


@pytest.mark.parametrize('kind', WORDS)
def test_a_remote_that_fails_says_so_once_and_never_the_key(address, key, kind, caplog):
    kinds, *words = WORDS[kind]
    timeout = .4 if kind in ('silent', 'stalls') else 9
    remote = Remote(f'{address}/{kind}/v1', 'mine', key=key, timeout=timeout)
    chat = Chat(remote)
    del Server.asked[:]
    with refuses(kinds, f'{address}/{kind}/v1', *words) as e: whole(chat('Hi'))
    assert chat.messages == [] and len(Server.asked) == 1
    err = e.value
    texts = [str(err), repr(err), repr(remote), repr(vars(remote)), repr(chat), chat._repr_html_(),
             ''.join(traceback.format_exception(err)), caplog.text]
    assert not any(SECRET in t for t in texts) and '\x1b' not in str(err)
    assert err.__cause__ is None and (err.__context__ is None or err.__suppress_context__)
    assert len(str(err)) < 500


def test_a_remote_that_is_not_there(key):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with refuses(ConnectionError, 'nobody answers'):
        whole(Chat(Remote(f'http://127.0.0.1:{port}/v1', 'm', key=key))('Hi'))
    with refuses(ConnectionError, 'nobody answers'):
        whole(Chat(Remote('http://no-such-host.invalid/v1', 'm'))('Hi'))


def test_a_key_that_is_missing_or_none(monkeypatch):
    monkeypatch.delenv('HF_TOKEN', False)
    with refuses(ValueError, 'HF_TOKEN is not set'): Chat(Remote('owner/name'))('Hi')
    monkeypatch.setenv('CHAT_TEST_KEY', 'a\nb')
    with refuses(ValueError, 'CHAT_TEST_KEY holds no key'):
        Chat(Remote('http://127.0.0.1:1/v1', 'm', key='CHAT_TEST_KEY'))('Hi')
    for given in (SECRET, 'hf_abcdefgh', '', 3, 'A B'):
        with refuses(ValueError, 'name of an environment variable') as e:
            Remote('http://127.0.0.1/v1', key=given)
        assert str(given) not in str(e.value) or given in ('', 3, 'A B')
    for where in (f'http://me:{SECRET}@host/v1', f'http://host/v1?key={SECRET}'):
        with refuses(ValueError, 'key=') as e: Remote(where)
        assert SECRET not in str(e.value)
    for where in ('', 'gpt2', 'ftp://host', 'http://', 'file:///etc/passwd', 'a/b c', 'http://['):
        with refuses(ValueError): Remote(where)
    assert repr(Remote('owner/name')) == f"Remote('{module.ROUTER}', 'owner/name', key='HF_TOKEN')"


def test_a_remote_reply_that_is_stopped_or_not_wanted(address, key):
    chat = Chat(Remote(f'{address}/good/v1', 'm', key=key))
    for piece in chat('Hi'): chat.stop()
    assert chat.messages[1]['content'] == PIECES[0]
    for piece in chat('again'): break
    assert chat.messages[3]['content'] == PIECES[0] and not chat.open
    assert Remote(f'{address}/good/v1', key=key).models() == ['first', 'b']


# ---- in a terminal

def talked(chat, *lines):
    "What a talk writes"
    out, lines = [], iter(lines)
    def read(prompt):
        line = next(lines, None)
        if line is None: raise EOFError
        if line is KeyboardInterrupt: raise KeyboardInterrupt
        return line
    talk(chat, read, out.append)
    return whole(out)


def test_commands_of_a_talk(tmp_path):
    chat, file = chat_with(), tmp_path/'chat.json'
    said = talked(chat, 'Hi', '', '  ', '/temp 0.5', '/temp much', '/temp -1', '/system Be <b>!',
                  '/save', f'/save {file}', '/undo', '/undo', f'/load {file}', '/retry', '/quitt',
                  '/x', '/help',
                  KeyboardInterrupt, '/load nowhere.json', '/clear', '/quit', 'never read')
    for words in ('takes a number', 'at least 0', 'path is empty', f'saved in {file}',
                  'nothing to take back', '2 messages', 'did you mean /quit?', '/x is no command',
                  'show this list', 'Ctrl-D or /quit', 'nowhere.json'):
        assert words in said, words
    assert chat.temperature == .5 and chat.system == 'Be <b>!' and chat.messages == []
    assert json.loads(file.read_text())['messages'][0] == system(content='Be <b>!')
    assert chat.say is print


def test_a_talk_shows_control_characters_as_escapes(address, key, monkeypatch):
    monkeypatch.setitem(ANSWERS, 'evil', (200, SSE, events('\x1b[2J', '\x9b1A\x07', 'ok')))
    chat = Chat(Remote(f'{address}/evil/v1', 'm', key=key))
    said = talked(chat, 'Hi', '/\x1b[2J')
    assert '\\x1b[2J\\x9b1A\\x07ok' in said and not re.search('[\x00-\x08\x0b-\x1f\x7f-\x9f]', said)


TERMINAL = """import sys, torch
sys.path.insert(0, {tests!r})
from common import tiny_model
from gptlab.chat import *
from gptlab.tokenizer import ByteTokenizer
model = tiny_model(context_length=64)
import time
model.register_forward_pre_hook(lambda *_: time.sleep(.05))
talk(Chat(model, ByteTokenizer(), plain_roles(end=chr(0)), temperature=1., seed=0, n={n}))
print('THE END')
"""


def in_terminal(n):
    "A talk in a process of its own with a pseudo-terminal"
    main, side = pty.openpty()
    code = TERMINAL.format(tests=str(ROOT/'tests'), n=n)
    p = subprocess.Popen([sys.executable, '-c', code], stdin=side, stdout=side, stderr=side,
                         start_new_session=True,
                         env=os.environ | dict(TERM='dumb'), cwd=ROOT)
    os.close(side)
    return p, main


def until(main, text, seconds=60):
    "What the terminal shows, up to some text"
    import select
    shown, end = '', time.time() + seconds
    while text not in shown:
        if not select.select([main], [], [], max(0, end-time.time()))[0]: pytest.fail(shown)
        try: shown += os.read(main, 9999).decode('utf-8', 'replace')
        except OSError: pytest.fail(shown)
    return shown


def test_a_talk_in_a_real_terminal():
    "Ctrl-C ends the reply and not the program, Ctrl-D leaves"
    p, main = in_terminal(100_000)
    try:
        until(main, '> ')
        os.write(main, b'Hi\n')
        until(main, 'Hi\r\n')
        time.sleep(1)
        os.kill(p.pid, signal.SIGINT)
        shown = until(main, '> ')
        assert 'interrupted' in shown and 'Traceback' not in shown
        os.write(main, b'/temp 0.1\n')
        until(main, '> ')
        os.write(main, b'\x04')
        assert 'Traceback' not in until(main, 'THE END')
        assert p.wait(20) == 0
    finally:
        p.kill()
        os.close(main)


@pytest.mark.exhaustive
def test_a_talk_in_a_pipe():
    code = TERMINAL.format(tests=str(ROOT/'tests'), n=3)
    p = subprocess.run([sys.executable, '-c', code], input='Hi\n/undo\n', capture_output=True,
                       text=True, timeout=100, cwd=ROOT)
    assert p.returncode == 0 and p.stdout.endswith('THE END\n') and '> ' not in p.stdout
    assert not p.stderr


# ---- the widget

def finished(work):
    "Run a coroutine in a thread: a browser of other tests may have left a loop in this one"
    with ThreadPoolExecutor(1) as pool: return pool.submit(asyncio.run, work).result()


def test_the_widget_answers_stops_and_clears():
    pytest.importorskip('ipywidgets')
    chat = chat_with(n=6)
    w = ChatWidget(chat)
    w.text.value, w.heat.value, w.top_k.value = 'Hi <img src=x onerror="1">', 1.5, 3
    finished(w.answer())
    assert len(chat.messages) == 2 and chat.temperature == 1.5 and chat.top_k == 3
    assert '&lt;img' in w.history.value and '<img' not in w.history.value and w.text.value == ''
    w.text.value = 'x'*9999
    finished(w.answer())
    assert 'last message alone' in w.note.value and w.text.value == 'x'*9999 and not w.busy
    async def stopped():
        chat.n, w.text.value = 10**6, 'Hi'
        task = asyncio.ensure_future(w.answer())
        while len(chat.messages) < 4 or not chat.messages[-1]['content']: await asyncio.sleep(0)
        assert w.busy
        w.stop.click()
        await asyncio.wait_for(task, 20)
    finished(stopped())
    assert not w.busy and len(chat.messages) == 4
    finished(w.forget())
    assert chat.messages == [] and 'empty' in w.history.value and chat.say is print


# ---- a server that is not ours

def llama_python():
    "A Python that has llama_cpp.server: this one, or the one named by GPTLAB_LLAMA_PYTHON"
    named = os.environ.get('GPTLAB_LLAMA_PYTHON')
    for python in filter(None, [named, sys.executable]):
        code = 'import llama_cpp, uvicorn, fastapi, sse_starlette, starlette_context'
        if not subprocess.run([python, '-c', code], capture_output=True).returncode: return python
    pytest.skip('llama_cpp.server is not installed; GPTLAB_LLAMA_PYTHON may name a Python with it')


@pytest.mark.exhaustive
def test_a_chat_with_llama_cpp(tmp_path):
    "Our model in its format, greedy: the text is that of our own chat"
    python, _ = llama_python(), extra('gguf')
    from gptlab.formats import save_gguf
    cfg = llama_config(vocab_size=bpe().vocab_size, context_length=256, n_layers=2, n_heads=2,
                       d_model=32)
    theirs = chatml()
    theirs.bos = True                                 # llama.cpp begins each prompt with it
    settings = dict(temperature=0, n=12, system='Be kind.')
    torch.manual_seed(0)
    model, ids = GPT(cfg), torch.tensor([bpe().encode(TEXT[0])[:256]])
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):                               # so that it writes whole characters
        model(ids[:,:-1], ids[:,1:])[0].mean().backward()
        opt.step()
        opt.zero_grad()
    want = whole(Chat(model.eval(), bpe(), theirs, **settings)('Hello, some words'))
    file = save_gguf(model, bpe(), tmp_path/'model.gguf', 'f32')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    log = open(tmp_path/'log.txt', 'w+')
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    cmd = [python, '-m', 'llama_cpp.server', '--model', str(file), '--host', '127.0.0.1', '--port',
           str(port), '--chat_format', 'chatml', '--n_ctx', '256', '--api_key', SECRET]
    server = subprocess.Popen(cmd, env=env, stdout=log, stderr=log)
    try:
        os.environ['CHAT_TEST_KEY'] = SECRET
        remote = Remote(f'http://127.0.0.1:{port}/v1', key='CHAT_TEST_KEY')
        for _ in range(120):
            try:
                assert remote.models()
                break
            except OSError: time.sleep(.5)
            assert server.poll() is None, (tmp_path/'log.txt').read_text()[-2000:]
        chat = Chat(remote, **settings)
        pieces = [*chat('Hello, some words')]
        print(f'{len(pieces)} pieces of llama.cpp: {whole(pieces)!r}; ours: {want!r}')
        assert whole(pieces) == want and len(pieces) > 3
        whole(chat('and more'))
        assert len(chat.messages) == 4
        os.environ['CHAT_TEST_KEY'] = 'wrong'
        with refuses(PermissionError, 'CHAT_TEST_KEY') as e: whole(Chat(remote)('Hi'))
        assert 'wrong' not in str(e.value)
    finally:
        os.environ.pop('CHAT_TEST_KEY', None)
        server.terminate()
        server.wait(20)
        log.close()

"""The server: what OpenAI's own client gets from it, what it does with bad requests and with
clients that go or do not read, who may ask, and the page in a browser."""
import asyncio
import contextlib
import http.client
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common import extra, LIB, refuses, tiny_model
from gptlab.all import *
from gptlab.core import plain_text
from gptlab.serve import _listening, _own_names, _policy, _without_port

HARM = '<img src=x onerror="window.pwned=1"></script><b>&amp; \x1b[2J\u202eabc\u00e9 end'
END = 256


class Script(nn.Module):
    "Writes a fixed text behind the last colon of what it reads"
    delay = 0.

    def __init__(self, text):
        super().__init__()
        self.says = [*text.encode(), END]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids, **kw):                                 # (B,T)
        time.sleep(self.delay)
        out = torch.zeros(*ids.shape, 257)
        out[..., 97:123] = torch.linspace(1, 2, 26)               # second to the text: letters
        for row, logits in zip(ids.tolist(), out):
            last = max((k for k, i in enumerate(row) if i == ord(':')), default=-1)
            n = len(bytes(i for i in row[last+1:] if i < 256).lstrip(b' \n'))
            logits[-1, self.says[min(n, len(self.says) - 1)]] = 20.
        return out                                                # (B,T,V)


@pytest.fixture(scope='module')
def tok(): return ByteTokenizer()


@pytest.fixture(scope='module')
def model(): return tiny_model(context_length=64)


@pytest.fixture(scope='module')
def app_pool(model, tok):
    hostile = Script(HARM)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield ModelPool({'tiny': (model, tok), 'says <b>': (hostile, tok)}, keep=2, rows=4)


@pytest.fixture(scope='module')
def address(app_pool):
    with serving(app_pool) as a: yield a


@pytest.fixture(scope='module')
def client(address):
    return extra('openai').OpenAI(base_url=f'{address}/v1', api_key='any', max_retries=0)


def ask(address, path, body=None, method=None, **headers):
    "(status, headers, text) of an answer"
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {k.replace('_', '-'): v for k, v in headers.items()}
    request = urllib.request.Request(address + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as f:
            return f.status, f.headers, f.read().decode()
    except urllib.error.HTTPError as e: return e.code, e.headers, e.read().decode()


def error_of(answer):
    status, headers, text = answer
    assert headers.get_content_type() == 'application/json', text
    said = json.loads(text)['error']
    assert set(said) == {'message', 'type', 'param', 'code'}
    assert 'Traceback' not in text and '.py' not in text
    return status, said


def complete(**kw): return dict(model='tiny', prompt='ab', max_tokens=6) | kw


def chat(**kw):
    return dict(model='tiny', messages=[dict(role='user', content='hi')], max_tokens=6) | kw


def solo(model, tok, prompt, n):
    return ''.join(generate_text(model, tok, prompt, n, temperature(0)))


def wait_until(true, seconds=10.):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(.01)


# ---- with OpenAI's own client

def test_a_completion_is_the_text_of_the_model(client, model, tok):
    want = solo(model, tok, 'ab', 6)
    got = client.completions.create(**complete(temperature=0))
    assert got.choices[0].text == want and got.choices[0].finish_reason == 'length'
    assert (got.object, got.model, got.id[:5]) == ('text_completion', 'tiny', 'cmpl-')
    u = got.usage
    assert (u.prompt_tokens, u.completion_tokens, u.total_tokens) == (3, 6, 9)   # bos, a, b
    assert got.choices[0].logprobs is None


def test_a_stream_is_the_same_text(client, model, tok):
    want = solo(model, tok, 'ab', 20)
    found = [*client.completions.create(**complete(temperature=0, max_tokens=20, stream=True))]
    assert ''.join(c.choices[0].text for c in found) == want and len(found) > 5
    assert [c.choices[0].finish_reason for c in found] == [None]*(len(found) - 1) + ['length']
    assert len({c.id for c in found}) == 1 and found[0].usage is None
    more = [*client.completions.create(**complete(stream=True), stream_options=dict(
        include_usage=True))]
    assert more[-1].choices == [] and more[-1].usage.total_tokens == 9


def test_a_chat(client, tok):
    said = dict(model='says <b>', messages=[dict(role='user', content='hi')], temperature=0)
    got = client.chat.completions.create(**said)
    assert got.choices[0].message.content == HARM and got.choices[0].finish_reason == 'stop'
    assert got.choices[0].message.role == 'assistant' and got.object == 'chat.completion'
    parts = [*client.chat.completions.create(**said, stream=True)]
    assert parts[0].choices[0].delta.role == 'assistant'
    assert ''.join(p.choices[0].delta.content or '' for p in parts) == HARM
    assert parts[-1].choices[0].finish_reason == 'stop'
    assert {p.object for p in parts} == {'chat.completion.chunk'}


def test_roles_and_parts_of_a_message(client):
    both = [dict(role='developer', content='be short'), dict(role='user', content=[
        dict(type='text', text='h'), dict(type='text', text='i')], name='me')]
    a = client.chat.completions.create(**chat(messages=both, temperature=0))
    both = [dict(role='system', content='be short'), dict(role='user', content='hi')]
    b = client.chat.completions.create(**chat(messages=both, temperature=0))
    assert a.choices[0].message.content == b.choices[0].message.content
    assert a.usage.prompt_tokens == b.usage.prompt_tokens > 10


def test_several_choices_and_their_seeds(client):
    get = client.completions.create
    a, b, c = (get(**complete(n=3, seed=s, temperature=1.)) for s in (5, 5, 6))
    texts = lambda r: [x.text for x in r.choices]
    assert texts(a) == texts(b) and texts(a)[1:] == texts(c)[:2] and len({*texts(a)}) == 3
    assert [x.index for x in a.choices] == [0, 1, 2]
    assert (a.usage.prompt_tokens, a.usage.completion_tokens) == (3, 18)
    streamed = ['', '', '']
    for part in get(**complete(n=3, seed=5, temperature=1., stream=True)):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == texts(a)
    whole = client.chat.completions.create(**chat(n=2, seed=5, max_completion_tokens=4))
    assert len(whole.choices) == 2 and whole.usage.completion_tokens == 8


def test_several_choices_read_their_prompt_once(client, model):
    read = []
    hook = model.register_forward_pre_hook(lambda m, args: read.append(tuple(args[0].shape)))
    client.completions.create(**complete(prompt='abcdefg', n=3, max_tokens=4))
    hook.remove()
    assert [shape for shape in read if shape[1] > 1] == [(1, 8)] and (3, 1) in read


def test_stop_strings(client, model, tok):
    text = solo(model, tok, 'ab', 30)
    stop = next(c for c in text[4:] if c != '\ufffd' and c not in text[:4])
    want = text[:text.index(stop)]
    for given in (stop, [stop], ['never there', stop]):
        got = client.completions.create(**complete(temperature=0, max_tokens=30, stop=given))
        assert (got.choices[0].text, got.choices[0].finish_reason) == (want, 'stop')
    said = dict(model='says <b>', prompt='a:', max_tokens=99, stop='</script>', stream=True)
    chunks = [c.choices[0] for c in client.completions.create(**said, logprobs=1)]
    want = HARM[:HARM.index('</script>')]
    assert ''.join(c.text for c in chunks) == want and chunks[-1].finish_reason == 'stop'
    # none of the stop string's
    assert ''.join(t for c in chunks for t in c.logprobs.tokens) == want


def test_log_probabilities_of_a_completion(client, model, tok):
    got = client.completions.create(**complete(temperature=0, logprobs=3))
    found, ids = got.choices[0].logprobs, tok.encode('ab', bos=True)
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 6
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        logp = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        i = logp.argmax().item()
        assert logprob == pytest.approx(logp[i].item(), abs=1e-4)
        assert max(top.values()) == pytest.approx(logprob, abs=1e-4) and len(top) <= 3
        plain = repr(tok.named_bytes([i]))[2:-1]
        assert token in (plain, f'bytes:{plain}')
        ids.append(i)
    assert found.text_offset[0] == 0
    none = client.completions.create(**complete(logprobs=0)).choices[0].logprobs
    assert none.top_logprobs == [{}]*6 and len(none.token_logprobs) == 6


def test_log_probabilities_of_a_chat(client):
    said = dict(model='says <b>', messages=[dict(role='user', content='hi')], temperature=0)
    got = client.chat.completions.create(**said, logprobs=True, top_logprobs=2).choices[0]
    raw = b''.join(bytes(t.bytes) for t in got.logprobs.content)
    assert raw.decode() == got.message.content == HARM            # é is two tokens
    assert all(len(t.top_logprobs) == 2 for t in got.logprobs.content)
    assert got.logprobs.content[0].logprob == pytest.approx(0, abs=1e-4)
    plain = client.chat.completions.create(**said, logprobs=True).choices[0]
    assert plain.logprobs.content[0].top_logprobs == []
    parts = client.chat.completions.create(**said, logprobs=True, stream=True)
    shown = [t for p in parts if p.choices[0].logprobs for t in p.choices[0].logprobs.content]
    assert b''.join(bytes(t.bytes) for t in shown) == HARM.encode()


def test_echo_scores_the_prompt(client, model, tok):
    got = client.completions.create(**complete(prompt='abc', echo=True, max_tokens=0, logprobs=2))
    found = got.choices[0]
    ids = tok.encode('abc', bos=True)
    nll = nn.functional.cross_entropy(model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]),
                                      reduction='none')
    assert found.text == 'abc' and found.logprobs.tokens == ['a', 'b', 'c']
    assert found.logprobs.token_logprobs == pytest.approx((-nll).tolist(), abs=1e-4)
    assert (found.finish_reason, got.usage.completion_tokens) == ('length', 0)
    ids = client.completions.create(**complete(prompt=[97, 98], echo=True, max_tokens=2, logprobs=1,
                                               temperature=0)).choices[0]
    assert ids.text[:2] == 'ab' and ids.logprobs.token_logprobs[0] is None
    assert len(ids.logprobs.tokens) == 4 and ids.logprobs.text_offset[:3] == [0, 1, 2]
    parts = client.completions.create(**complete(prompt=[97, 98], echo=True, max_tokens=2,
                                                 temperature=0, stream=True))
    assert ''.join(p.choices[0].text for p in parts) == ids.text


def test_several_prompts(client, model, tok):
    for prompts in (['ab', 'xyz'], [tok.encode(t, bos=True) for t in ('ab', 'xyz')]):
        got = client.completions.create(**complete(prompt=prompts, temperature=0, n=2))
        want = [solo(model, tok, t, 6) for t in ('ab', 'ab', 'xyz', 'xyz')]
        assert [c.text for c in got.choices] == want
        assert got.usage.prompt_tokens == 3 + 4


def test_filters_reach_the_model(client, model, tok):
    get = client.completions.create
    forced = get(**complete(logit_bias={'113': 100}, max_tokens=4, temperature=1.))
    assert forced.choices[0].text == 'qqqq'
    punished = get(**complete(logit_bias={'113': 90, '114': 89}, presence_penalty=2., max_tokens=4,
                              temperature=0))
    assert punished.choices[0].text == 'qrqr'                     # both were written: q again
    often = get(**complete(logit_bias={'113': 90, '114': 85}, frequency_penalty=2., max_tokens=4,
                           temperature=0))
    assert often.choices[0].text[:3] == 'qqq'                     # 90, 88, 86 are above 85
    for one in (dict(top_p=1e-6), dict(extra_body=dict(top_k=1)), dict(extra_body=dict(min_p=1))):
        got = get(**complete(temperature=1., **one))
        assert got.choices[0].text == solo(model, tok, 'ab', 6)


def test_what_is_there_is_listed(client):
    assert [m.id for m in client.models.list()] == ['tiny', 'says <b>']
    assert client.models.retrieve('tiny').object == 'model'


def test_errors_become_the_exceptions_of_the_client(client):
    openai = extra('openai')
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'") as e:
        client.completions.create(**complete(model='tinny'))
    assert (e.value.code, e.value.param) == ('model_not_found', 'model')
    with pytest.raises(openai.NotFoundError): client.models.retrieve('tinny')
    with pytest.raises(openai.BadRequestError, match='temperature') as e:
        client.completions.create(**complete(temperature=3))
    assert (e.value.code, e.value.param) == ('invalid_value', 'temperature')
    with pytest.raises(openai.BadRequestError, match='context') as e:
        client.completions.create(**complete(prompt='a'*100))
    assert e.value.code == 'context_length_exceeded'


def test_many_at_once(address, model, tok):
    "The asynchronous client; more than the model has rows for"
    async def all_of_them():
        c = extra('openai').AsyncOpenAI(base_url=f'{address}/v1', api_key='any', max_retries=9)
        async def one(prompt):
            said = complete(prompt=prompt, temperature=0, max_tokens=12, stream=True)
            parts = await c.completions.create(**said)
            return ''.join([p.choices[0].text async for p in parts])
        async with c: return await asyncio.gather(*map(one, prompts))
    prompts = ['a', 'bcd', 'efghij', 'k', 'lm', 'nop', 'q']
    assert asyncio.run(all_of_them()) == [solo(model, tok, p, 12) for p in prompts]


# ---- requests that are wrong

WRONG = [
    (complete(temprature=1), 'temprature', 'unknown_parameter', "did you mean 'temperature'?"),
    (complete(colour=1), 'colour', 'unknown_parameter', 'colour'),
    (complete(messages=[]), 'messages', 'unknown_parameter', 'messages'),
    (complete(suffix='x'), 'suffix', 'unsupported_parameter', 'suffix'),
    (chat(tools=[dict(type='function')]), 'tools', 'unsupported_parameter', 'tools'),
    (chat(response_format=dict(type='json_object')), 'response_format', 'unsupported_parameter',
     ''),
    (dict(prompt='a'), 'model', 'missing_required_parameter', 'model'),
    (dict(model='tiny'), 'prompt', 'missing_required_parameter', 'prompt'),
    (complete(model=7), 'model', 'invalid_type', '7'),
    (complete(model={}), 'model', 'invalid_type', ''),
    (complete(prompt=7), 'prompt', 'invalid_type', ''),
    (complete(prompt=[]), 'prompt', 'invalid_type', ''),
    (complete(prompt=[[]]), 'prompt', 'invalid_type', ''),
    (complete(prompt=['a', 7]), 'prompt', 'invalid_type', ''),
    (complete(prompt=[1, True]), 'prompt', 'invalid_type', ''),
    (complete(prompt=[257]), 'prompt', 'invalid_value', '257'),
    (complete(prompt=[-1]), 'prompt', 'invalid_value', '-1'),
    (complete(prompt='\ud800'), 'prompt', 'invalid_value', 'surrogate'),
    (complete(temperature='hot'), 'temperature', 'invalid_type', 'hot'),
    (complete(temperature=True), 'temperature', 'invalid_type', 'True'),
    (complete(temperature=-.1), 'temperature', 'invalid_value', '-0.1'),
    (complete(top_p=0), 'top_p', 'invalid_value', '0'),
    (complete(top_k=0), 'top_k', 'invalid_value', '0'),
    (complete(min_p=2), 'min_p', 'invalid_value', '2'),
    (complete(n=0), 'n', 'invalid_value', '0'),
    (complete(n=1.5), 'n', 'invalid_type', '1.5'),
    (complete(n=99), 'n', 'invalid_value', '99'),
    (complete(max_tokens=-1), 'max_tokens', 'invalid_value', '-1'),
    (complete(max_tokens=5000), 'max_tokens', 'invalid_value', '5000'),
    (complete(max_tokens=10**30), 'max_tokens', 'invalid_value', '1000'),
    (complete(stop=['a']*5), 'stop', 'invalid_value', '5'),
    (complete(stop=''), 'stop', 'invalid_value', 'empty'),
    (complete(stop=[7]), 'stop', 'invalid_type', '7'),
    (complete(seed=.5), 'seed', 'invalid_type', '.5'),
    (complete(seed=2**64), 'seed', 'invalid_value', ''),
    (complete(logprobs=True), 'logprobs', 'invalid_type', 'True'),
    (complete(logprobs=50), 'logprobs', 'invalid_value', '50'),
    (complete(logit_bias={'a': 1}), 'logit_bias', 'invalid_value', "'a'"),
    (complete(logit_bias={'1': 101}), 'logit_bias', 'invalid_value', '101'),
    (complete(logit_bias={'999': 1}), 'logit_bias', 'invalid_value', '999'),
    (complete(logit_bias=[1]), 'logit_bias', 'invalid_type', ''),
    (complete(presence_penalty=3), 'presence_penalty', 'invalid_value', '3'),
    (complete(stream='yes'), 'stream', 'invalid_type', 'yes'),
    (complete(stream_options=dict(include_usage=True)), 'stream_options', None, 'stream'),
    (complete(stream=True, stream_options=dict(x=1)), 'stream_options', 'invalid_value', 'x'),
    (complete(best_of=3), 'best_of', None, 'best_of'),
    (complete(prompt=['a']*9, n=8), 'n', 'invalid_value', '72'),
    (complete(echo=1), 'echo', 'invalid_type', '1'),
    (chat(messages='hi'), 'messages', 'invalid_type', ''),
    (chat(messages=[]), 'messages', 'invalid_type', 'empty'),
    (chat(messages=['hi']), 'messages', 'invalid_type', ''),
    (chat(messages=[dict(role='robot', content='x')]), 'messages', 'invalid_value', 'robot'),
    (chat(messages=[dict(role=['user'], content='x')]), 'messages', 'invalid_value', 'user'),
    (chat(messages=[dict(role='user')]), 'messages', 'invalid_type', 'content'),
    (chat(messages=[dict(role='user', content=7)]), 'messages', 'invalid_type', '7'),
    (chat(messages=[dict(role='user', content=[dict(type='image_url')])]), 'messages',
     'invalid_value', 'no text'),
    (chat(messages=[dict(role='user', content='x', tool_calls=[1])]), 'messages', 'invalid_value',
     'tool_calls'),
    (chat(messages=[dict(role='user', content='x'*100)]), 'messages', 'context_length_exceeded',
     '64'),
    (chat(top_logprobs=2), 'top_logprobs', None, 'logprobs'),
    (chat(max_completion_tokens=0), 'max_completion_tokens', 'invalid_value', '0')]


@pytest.mark.parametrize('body, param, code, word', WRONG, ids=range(len(WRONG)))
def test_a_wrong_request_names_its_field(address, body, param, code, word):
    path = '/v1/chat/completions' if 'messages' in body and 'prompt' not in body \
        else '/v1/completions'
    status, said = error_of(ask(address, path, body))
    assert (status, said['param'], said['code'], said['type']) == (
        400, param, code, 'invalid_request_error')
    assert word in said['message'] and len(said['message']) < 700


@pytest.mark.repeat(quick=1, exhaustive=6)
def test_whatever_is_asked_is_answered(address, seed):
    "Requests with fields replaced at random: each is an answer or an error in its form"
    rng = random.Random(seed)
    odd = [None, True, -1, 0, 1, 2**70, 1e308, '', 'x', '\x00', '\u202e', [], [[]], [None], {},
           {'a': 1}, [{}], [{'role': 'user'}], ['a', 'b'], [1, 2], '9'*300]
    for _ in range(60):
        body, path = rng.choice([(complete(), 'completions'), (chat(), 'chat/completions')])
        fields = completion_fields if path == 'completions' else chat_fields
        for name in rng.sample([*fields], 2): body[name] = rng.choice(odd)
        answer = ask(address, f'/v1/{path}', body)
        assert answer[0] in (200, 400, 404), (body, answer[2])
        if answer[0] != 200: error_of(answer)
    assert ask(address, '/v1/completions', complete())[0] == 200


def test_a_template_that_refuses(model):
    refusing = ByteTokenizer()
    refusing.brought = dict(chat_template="{{ raise_exception('say please') }}")
    with serving(dict(tiny=(model, refusing))) as a:
        status, said = error_of(ask(a, '/v1/chat/completions', chat()))
        assert (status, said['param']) == (400, 'messages') and 'say please' in said['message']
        assert ask(a, '/v1/completions', complete())[0] == 200


@pytest.mark.parametrize('raw, word', [
    (b'', 'JSON'), (b'{', 'JSON'), (b'[]', 'list'), (b'7', 'int'), (b'null', 'NoneType'),
    (b'\xff\xfe\xfd', 'JSON'), (b'{"a":'*100_000, 'nested'), (b'['*200_000, 'nested'),
    (b'{"temperature": NaN}', 'NaN'), (b'{"n": Infinity}', 'Infinity'),
    (b'{"n": ' + b'9'*5000 + b'}', 'JSON'),
    (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', 'temperature')],
    ids=range(12))
def test_what_is_no_request(address, raw, word):
    status, said = error_of(ask(address, '/v1/completions', raw))
    assert status == 400 and word in said['message']


def test_fields_that_say_nothing_are_passed_over(address):
    body = complete(user='me', metadata=dict(a='b'), suffix=None, temperature=None, best_of=1,
                    service_tier='auto')
    assert ask(address, '/v1/completions', body)[0] == 200


def test_too_large_a_body(app_pool):
    with serving(app_pool, limit=1000) as a:
        for n in (1000, 12_000):
            status, said = error_of(ask(a, '/v1/completions', complete(prompt='a'*n)))
            assert status == 413 and '1,000' in said['message']
        # without a length: in chunks
        c = http.client.HTTPConnection(a.removeprefix('http://'))
        c.request('POST', '/v1/completions', iter([b'x'*600]*3), encode_chunked=True,
                  headers={'Transfer-Encoding': 'chunked'})
        assert c.getresponse().status == 413
        c.close()
        # so large that it is not even read
        with socket.create_connection(('127.0.0.1', int(a.rsplit(':')[-1]))) as s:
            s.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
                      b'Content-Length: 99999999999\r\n\r\n')
            assert b' 413 ' in s.recv(1000)


def test_no_such_address(address):
    for path, method, status in (('/v2', 'GET', 404), ('/v1/completions', 'GET', 405),
                                 ('/v1/models', 'POST', 405), ('/../etc/passwd', 'GET', 404)):
        assert error_of(ask(address, path, method=method))[0] == status


# ---- the server's own trouble

def test_a_model_that_fails_is_an_error_and_the_server_goes_on(tok, caplog):
    class Fails(Script):
        def forward(self, ids, **kw): raise RuntimeError('secret /home/me/x.py')
    class NaN(Script):
        def forward(self, ids, **kw): return super().forward(ids)*math.nan
    pool = ModelPool(dict(fails=(Fails('x'), tok), nan=(NaN('x'), tok), fine=(Script('ok'), tok)),
                     keep=3)
    with serving(pool) as a, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        status, said = error_of(ask(a, '/v1/completions', complete(model='fails')))
        assert (status, said['type']) == (500, 'server_error') and 'secret' not in said['message']
        assert 'secret' in caplog.text                            # the log says it
        status, said = error_of(ask(a, '/v1/completions', complete(model='nan')))
        assert status in (400, 500)
        status, _, text = ask(a, '/v1/completions', complete(model='fails', stream=True))
        assert status == 200 and '"error"' in text and 'secret' not in text
        assert '[DONE]' not in text
        got = json.loads(ask(a, '/v1/completions', complete(model='fine', prompt='x:'))[2])
        assert got['choices'][0]['text'] == 'ok'


def test_an_error_in_a_stream_is_an_exception_of_the_client(tok):
    class Late(Script):
        def forward(self, ids, **kw):
            if ids.shape[1] > 8: raise RuntimeError('broken')
            return super().forward(ids)
    openai = extra('openai')
    with serving(dict(late=(Late('abcdefghij'), tok))) as a, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        c = openai.OpenAI(base_url=f'{a}/v1', api_key='x', max_retries=0)
        parts, got = c.completions.create(model='late', prompt='x:', stream=True), ''
        with pytest.raises(openai.APIError, match='the model failed'):
            for p in parts: got += p.choices[0].text
        assert 'abcdefghij'.startswith(got) and got


@pytest.fixture
def slow(tok):
    "(address, pool, model) of a server whose one model writes slowly, in one row"
    model = Script('x'*4000)
    model.delay = .02
    pool = ModelPool(dict(slow=(model, tok)), rows=1, waiting=2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with serving(pool) as a: yield SimpleNamespace(address=a, pool=pool, model=model)


def opened(slow, **kw):
    "A connection on which a request was sent"
    c = http.client.HTTPConnection(slow.address.removeprefix('http://'), timeout=20)
    body = json.dumps(dict(model='slow', prompt='a:', max_tokens=2000) | kw)
    c.request('POST', '/v1/completions', body)
    return c


def stats(slow):
    loaded = json.loads(ask(slow.address, '/health')[2])['loaded'].get('slow', {})
    return loaded.get('active', 0), loaded.get('waiting', 0)


def test_a_full_queue_is_429(slow):
    a = opened(slow, stream=True)
    wait_until(lambda: stats(slow) == (1, 0))
    b = opened(slow)
    wait_until(lambda: stats(slow) == (1, 1))
    openai = extra('openai')
    client = openai.OpenAI(base_url=f'{slow.address}/v1', api_key='x', max_retries=0)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model='slow', prompt='a:', n=2)
    wait_until(lambda: stats(slow) == (1, 1))                     # neither of the two is left
    c = opened(slow)
    wait_until(lambda: stats(slow) == (1, 2))
    answer = ask(slow.address, '/v1/completions', dict(model='slow', prompt='a:'))
    status, said = error_of(answer)
    assert (status, said['type'], said['code']) == (429, 'rate_limit_error', 'queue_full')
    assert int(answer[1]['Retry-After']) >= 1
    for x in (a, b, c): x.close()
    wait_until(lambda: stats(slow) == (0, 0))


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_goes_ends_its_request(slow, stream):
    c = opened(slow, stream=stream)
    wait_until(lambda: stats(slow)[0] == 1)
    if stream: c.getresponse().read(10)
    c.sock.shutdown(socket.SHUT_RDWR)
    c.close()
    found = slow.pool.loaded['slow']
    wait_until(lambda: found.engine.stats()['cancelled'] == 1)
    wait_until(lambda: found.users == 0)
    assert found.engine.stats()['cached_tokens'] == 0 and stats(slow) == (0, 0)


def test_no_client_that_goes_is_overlooked(app_pool, address):
    "Closed at any moment of a stream: also when a chunk is just being sent"
    body = complete(stream=True, max_tokens=4000, logit_bias={'256': -100})
    with app_pool.use('tiny') as m: engine = m.engine
    before = engine.stats()['cancelled']
    for k in range(20):
        data = json.dumps(body).encode()
        with urllib.request.urlopen(f'{address}/v1/completions', data, timeout=20) as stream:
            for _ in range(k): stream.readline()
    wait_until(lambda: engine.stats()['cancelled'] == before + 20)


def straight(app, body, send):
    "A request to /v1/completions without a network"
    scope = dict(type='http', method='POST', path='/v1/completions', scheme='http', headers=[
        (b'host', b'localhost')], query_string=b'', root_path='', http_version='1.1')
    parts = [dict(type='http.request', body=json.dumps(body).encode())]
    async def receive():
        if parts: return parts.pop()
        await asyncio.Event().wait()
    return app(scope, receive, send)


def test_who_does_not_read_stalls_nobody(app_pool, model, tok, monkeypatch):
    "A client that reads nothing of its stream: others are served, and it is given up in the end"
    from gptlab import serve as module
    monkeypatch.setattr(module, '_patience', .5)
    async def both():
        app, stuck, got = make_app(app_pool), [], []
        async def never(part):
            stuck.append(part)
            if part['type'] == 'http.response.body': await asyncio.Event().wait()
        async def fine(part): got.append(part.get('body', b''))
        before = app_pool.loaded['tiny'].engine.stats()['finished']
        first = asyncio.ensure_future(straight(app, complete(stream=True, max_tokens=40), never))
        while not stuck: await asyncio.sleep(.01)
        await straight(app, complete(temperature=0), fine)
        while app_pool.loaded['tiny'].engine.stats()['finished'] < before + 2:
            await asyncio.sleep(.01)
        assert not first.done() and len(stuck) == 2              # the head, and one chunk
        await asyncio.wait_for(first, 5)
        return json.loads(b''.join(got))['choices'][0]['text']
    with app_pool.use('tiny') as m: pass
    assert asyncio.run(asyncio.wait_for(both(), 20)) == solo(model, tok, 'ab', 6)
    assert m.users == 0


# ---- who may ask

def test_pages_of_others_may_not_ask(address):
    port = address.rsplit(':')[-1]
    for host in (f'localhost:{port}', f'127.0.0.1:{port}', f'[::1]:{port}', 'LOCALHOST'):
        assert ask(address, '/health', Host=host)[0] == 200, host
    for host in ('evil.example', f'evil.example:{port}', 'localhost.evil.example', '192.168.0.1',
                 '', '127.0.0.1.evil.example', 'evil.example:80@127.0.0.1'):
        assert error_of(ask(address, '/health', Host=host))[0] == 403, host
    assert ask(address, '/health', Origin=address)[0] == 200
    for origin in ('http://evil.example', 'null', f'https://127.0.0.1:{port}',
                   'http://127.0.0.1:1', f'{address}.evil.example'):
        answer = ask(address, '/v1/completions', complete(), Origin=origin)
        assert error_of(answer)[0] == 403
        assert not any(k.lower().startswith('access-control') for k in answer[1])
    assert error_of(ask(address, '/v1/completions', method='OPTIONS',
                        Origin='http://evil.example'))[0] == 403


def test_pages_that_are_named_may_ask(app_pool):
    friend = 'http://localhost:3000'
    with serving(app_pool, origins=(friend,)) as a:
        status, headers, _ = ask(a, '/v1/models', Origin=friend)
        assert status == 200 and headers['Access-Control-Allow-Origin'] == friend
        status, headers, _ = ask(a, '/v1/completions', method='OPTIONS', Origin=friend)
        assert status == 204 and 'content-type' in headers['Access-Control-Allow-Headers']
        assert error_of(ask(a, '/v1/models', Origin='http://localhost:3001'))[0] == 403


def test_names_of_a_server_for_the_network():
    here, wide, named = (_own_names(h) for h in ('127.0.0.1', '0.0.0.0', 'box.lan'))
    assert wide('192.168.0.7') and wide('[fe80::1]') and not here('192.168.0.7')
    assert named('box.lan') and named('BOX.LAN') and named('localhost')
    assert not any(f('evil.example') for f in (here, wide, named))
    assert _without_port('[::1]:80') == '[::1]' and _without_port('[::1]') in ('[::1]', '[:')


def test_headers_of_every_answer(address):
    for path in ('/', '/health', '/v2'):
        headers = ask(address, path)[1]
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'
    policy = ask(address, '/')[1]['Content-Security-Policy']
    assert policy == _policy() and 'unsafe' not in policy and "default-src 'none'" in policy


def test_the_page_loads_nothing_from_elsewhere():
    page = chat_page()
    assert page.count('<script') == page.count('</script>') == 1
    found = re.findall(r'''(?:src|href|url\(|import)\s*=?\s*["'(]?(https?:)?//[^"')]+''', page)
    assert not found and ' on' + 'click=' not in page and 'innerHTML' not in page
    assert 'eval(' not in page and 'document.write' not in page and 'insertAdjacent' not in page


# ---- models by name

@pytest.fixture
def runs(tmp_path, model, tok):
    "A folder of three runs"
    for i, name in enumerate(('one', 'two', 'three')):
        (tmp_path/'runs'/name).mkdir(parents=True)
        save_run(tmp_path/'runs'/name, tiny_model(seed=i), tok, 1)
    (tmp_path/'runs'/'notes').mkdir()
    return tmp_path/'runs'


def save_run(folder, model, tok, step):
    "A checkpoint as a trainer writes it"
    save_checkpoint(folder/f'step_{step:06}', config=model.cfg.to_dict(), tokenizer=tok.to_dict(),
                    model=model.state_dict())


def test_models_are_loaded_when_asked_for(runs, capsys):
    pool = ModelPool(dir=runs, keep=2)
    assert {*pool.names()} == {'one', 'two', 'three'} and not pool.loaded
    with pool.use('one') as a: assert a.name == 'one'
    assert 'loading one' in capsys.readouterr().out
    with pool.use('one') as b: assert b is a
    assert capsys.readouterr().out == ''
    with pool.use('two'), pool.use('one'): pass
    with pool.use('three'): pass
    assert [*pool.loaded] == ['one', 'three']                     # two was not used for longest
    with pool.use('one'), pool.use('three'):
        with pytest.raises(ApiError, match='in use') as e:
            with pool.use('two'): pass
        assert e.value.status == 429
    with pool.use('two'): pass
    pool.close()
    assert a.engine.closing and not pool.loaded


def test_an_unknown_model_and_one_that_cannot_be_loaded(runs, caplog):
    pool = ModelPool(dir=runs)
    with pytest.raises(ApiError, match="did you mean 'three'") as e:
        with pool.use('tree'): pass
    assert (e.value.status, e.value.code) == (404, 'model_not_found')
    for name in ('../one', '', str(runs/'one'), 'notes', '.'):
        with pytest.raises(ApiError) as e:
            with pool.use(name): pass
        assert e.value.status == 404
    next((runs/'two').glob('*/model.safetensors')).write_bytes(b'nonsense')
    with pytest.raises(ApiError, match='log says why') as e:
        with pool.use('two'): pass
    assert e.value.status == 500 and str(runs) not in str(e.value) and str(runs) in caplog.text
    with pool.use('one'): pass                                    # the others are there
    pool.close()


def test_with_reload_a_later_checkpoint_is_loaded(runs, tok):
    for reload in (False, True):
        pool = ModelPool(dir=runs, reload=reload)
        with pool.use('one') as first:
            save_run(runs/'one', tiny_model(seed=9), tok, 2 + reload)
            with pool.use('one') as second: assert (second is not first) is reload
            assert not first.engine.closing                       # it is in use still
        assert first.engine.closing is reload
        pool.close()


def test_two_ask_for_a_model_and_it_is_loaded_once(runs, capsys):
    pool, found = ModelPool(dir=runs), []
    def take():
        with pool.use('one') as m: found.append(m)
    threads = [threading.Thread(target=take) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len({*map(id, found)}) == 1 and capsys.readouterr().out.count('loading') == 1
    pool.close()


def test_a_model_whose_engine_died_is_loaded_again(runs, model, tok):
    pool = ModelPool(dict(tiny=(model, tok)))
    with serving(pool) as a:
        assert ask(a, '/v1/completions', complete())[0] == 200
        dead = pool.loaded['tiny']
        dead.engine._stop(MemoryError('no memory'))
        assert ask(a, '/v1/completions', complete())[0] == 200
        assert pool.loaded['tiny'] is not dead


def test_loading_keeps_nobody_waiting(model, tok, monkeypatch):
    "A model that takes long to load, many who ask for it, and one who asks for another"
    from gptlab import serve as module
    go, real = threading.Event(), module._open
    def slowly(name, *rest):
        if name == 'large': go.wait(20)
        return real(name, *rest)
    monkeypatch.setattr(module, '_open', slowly)
    with serving(dict(large=(model, tok), tiny=(model, tok))) as a:
        assert ask(a, '/v1/completions', complete())[0] == 200
        got = []
        each = lambda: got.append(ask(a, '/v1/completions', complete(model='large'))[0])
        threads = [threading.Thread(target=each) for _ in range(40)]
        for t in threads: t.start()
        time.sleep(.3)
        assert ask(a, '/v1/completions', complete())[0] == 200 and got == []
        go.set()
        for t in threads: t.join()
        assert set(got) == {200}


def test_one_run_is_a_folder_of_runs(runs):
    assert models_in(runs/'one') == {'one': runs/'one'} and models_in(runs/'absent') == {}


def test_new_runs_appear(runs, tok):
    with serving(dir=runs) as a:
        ids = lambda: {m['id'] for m in json.loads(ask(a, '/v1/models')[2])['data']}
        assert ids() == {'one', 'two', 'three'}
        (runs/'four').mkdir()
        save_run(runs/'four', tiny_model(), tok, 1)
        assert 'four' in ids() and json.loads(ask(a, '/health')[2])['loaded'] == {}


def test_a_run_on_shakespeare_speaks_as_in_a_play(runs):
    (runs/'one'/'settings.json').write_text(json.dumps(dict(text='shakespeare')))
    (runs/'two'/'settings.json').write_text('{"text": ')          # cut off
    with serving(dir=runs) as a:
        found = {m['id']: m for m in json.loads(ask(a, '/v1/models')[2])['data']}
        assert found['one']['openings'][0] == 'ROMEO:\n' and found['two']['openings'] == []
        assert found['one']['speakers'] == ['JULIET', 'ROMEO']
    pool = ModelPool(dir=runs)
    with pool.use('one') as m:
        text = m.template.render([dict(role='user', content='Who is there?')])
        assert text == 'JULIET:\nWho is there?\n\nROMEO:\n'
    pool.close()


def test_a_conversation_that_does_not_fit_loses_its_oldest_turns(address):
    turns = [dict(role=r, content=f'{i} abcdefgh') for i in range(4) for r in ('user', 'assistant')]
    body = chat(messages=turns + [dict(role='user', content='last')])
    assert error_of(ask(address, '/v1/chat/completions', body))[0] == 400
    body |= dict(truncate_prompt_tokens=-1)
    got = json.loads(ask(address, '/v1/chat/completions', body)[2])
    assert 4 <= got['messages_left_out'] <= 8 and got['usage']['prompt_tokens'] <= 64
    cut = complete(prompt='a'*200 + 'z', truncate_prompt_tokens=-1, echo=True)
    assert json.loads(ask(address, '/v1/completions', cut)[2])['usage']['prompt_tokens'] == 58


# ---- models elsewhere

def test_a_remote_model(address):
    far = ModelPool(dict(far=Remote(f'{address}/v1', 'says <b>'),
                         gone=Remote('http://127.0.0.1:9/v1'),
                         other=Remote(f'{address}/v1', 'nobody')), keep=3)
    with serving(far) as a:
        said = dict(model='far', messages=[dict(role='user', content='hi')], temperature=0)
        got = json.loads(ask(a, '/v1/chat/completions', said)[2])
        assert got['choices'][0]['message']['content'] == HARM
        text = ask(a, '/v1/chat/completions', said | dict(stream=True, n=2))[2]
        assert text.count('"finish_reason": "stop"') == 2 and text.endswith('data: [DONE]\n\n')
        for model, status in (('gone', 502), ('other', 502)):
            assert error_of(ask(a, '/v1/chat/completions', said | dict(model=model)))[0] == status
        status, e = error_of(ask(a, '/v1/chat/completions', said | dict(logprobs=True)))
        assert (status, e['param']) == (400, 'logprobs')
        assert error_of(ask(a, '/v1/completions', complete(model='far')))[0] == 400
        assert not far.loaded['far'].jobs


# ---- to run it

def test_a_port_in_use_and_nothing_to_serve(tmp_path, capsys):
    with contextlib.closing(_listening('127.0.0.1', 0)) as sock:
        port = sock.getsockname()[1]
        with refuses(OSError, f'port {port} of 127.0.0.1', 'in use'):
            with serving({}, port=port): pass
    with refuses(FileNotFoundError, 'no run', 'gptlab train'): serve(str(tmp_path), port=0)
    with refuses(FileNotFoundError, 'absent'): serve(str(tmp_path), ['absent'], port=0)
    with refuses(OSError, 'no.such.host.invalid'): _listening('no.such.host.invalid', 0)
    with refuses(ValueError, '70000'): _listening('127.0.0.1', 70000)
    with refuses(ValueError, 'reload'): serve(str(tmp_path), dict(a=(1, 2)), port=0, reload=True)


@contextlib.contextmanager
def process(runs, *args):
    "The server as a process of its own, and its address"
    code = f'from gptlab.serve import serve; serve({str(runs)!r}, port=0{"".join(args)})'
    p = subprocess.Popen([sys.executable, '-W', 'default', '-c', code], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, bufsize=1)
    try:
        lines = []
        for line in p.stdout:
            lines.append(line)
            if 'serves' in line: break
        yield p, line.split()[0], lines
    finally:
        if p.poll() is None: p.kill()
        p.wait()
        p.stdout.close()


def loaded(address):
    "The models in memory; None where the server does not answer yet"
    with contextlib.suppress(OSError): return [*json.loads(ask(address, '/health')[2])['loaded']]


@pytest.mark.exhaustive
def test_serve_until_control_c(runs):
    "For the network, which is warned of"
    with process(runs, ', host="0.0.0.0"') as (p, address, _):
        assert address.startswith('http://127.0.0.1:')
        wait_until(lambda: loaded(address) == [], 60)
        assert ask(address, '/v1/completions', complete(model='one'))[0] == 200
        p.send_signal(signal.SIGINT)
        rest = p.stdout.read()
        assert p.wait(20) == 0 and 'Traceback' not in rest
        assert 'base_url=' in rest and 'everybody who reaches 0.0.0.0' in rest


@pytest.mark.exhaustive
def test_serve_with_reload(runs, tok):
    "It starts anew when a file of the package is written"
    with process(runs, ', reload=True') as (p, address, _):
        wait_until(lambda: loaded(address) == [], 60)
        assert ask(address, '/v1/completions', complete(model='one'))[0] == 200
        assert loaded(address) == ['one']
        os.utime(LIB/'__init__.py')
        wait_until(lambda: loaded(address) == [], 60)
        p.send_signal(signal.SIGINT)
        rest = p.stdout.read()
        assert p.wait(20) == 0 and 'Traceback' not in rest and 'watching' in rest


# ---- the page

WIDTHS = [1300, pytest.param(390, marks=pytest.mark.exhaustive)]


@contextlib.contextmanager
def browsing(chromium, address, width=1300, model='says <b>', **kw):
    "The page in a browser; what it says on the console fails the test, and so does a script"
    context = chromium.new_context(viewport=dict(width=width, height=800), **kw)
    page, said = context.new_page(), []
    noted = lambda m: m.text.startswith('Failed to load resource')   # by the browser, of a 404
    page.on('console', lambda m: noted(m) or said.append(m.text))
    page.on('pageerror', lambda e: said.append(str(e)))
    page.set_default_timeout(15_000)
    page.goto(address)
    page.select_option('#model', model)
    yield page
    assert page.evaluate('window.pwned') is None
    wide = page.evaluate('document.documentElement.scrollWidth - innerWidth')
    context.close()
    assert said == [] and wide <= 0


def done(page):
    "Wait until the model has written"
    page.wait_for_selector('body:not(.busy) #paper .token')
    return page.inner_text('#paper')


def shown(text): return plain_text(text).replace(r'\x', r'\u00')


@pytest.mark.parametrize('width', WIDTHS)
def test_the_page_writes_and_shows_text_as_text(chromium, address, width):
    with browsing(chromium, address, width) as page:
        assert page.evaluate('document.activeElement.id') == 'input'
        page.select_option('#model', 'says <b>')
        page.fill('#input', 'ROMEO <i>:')
        page.click('#send')
        assert done(page) == 'ROMEO <i>:' + shown(HARM)
        assert page.locator('#paper img, #paper b, #paper i').count() == 0
        assert 'ended by itself' in page.inner_text('#status')
        assert page.is_hidden('#alert') and page.is_hidden('#stop') and page.is_visible('#send')
        assert page.locator('.token').count() == len(HARM)        # é and its two tokens are one
        assert page.evaluate("getComputedStyle(document.querySelector('.token')).unicodeBidi"
                             ) == 'isolate'


@pytest.mark.exhaustive
@pytest.mark.parametrize('width', [1300, 390])
def test_alternatives_by_pointer(chromium, address, width):
    with browsing(chromium, address, width) as page:
        page.fill('#input', 'a:')
        page.keyboard.press('Enter')
        before = done(page)
        page.locator('.token').nth(4).hover()
        tip = page.locator('#tip')
        assert tip.is_visible() and '100 %' in tip.inner_text()
        assert tip.locator('.row').count() == 5 and tip.locator('.drawn').count() == 1
        box = tip.bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= width
        other = tip.locator('button').nth(2)
        chosen = other.locator('code').inner_text()
        other.hover()                                             # it stays open on the way
        page.wait_for_timeout(400)
        other.click()
        after = done(page)
        assert after[:6] == before[:6] and after != before and page.is_hidden('#tip')
        assert page.locator('.user').nth(1).inner_text() and chosen
        page.mouse.move(2, 2)


def test_by_keyboard_alone(chromium, address):
    with browsing(chromium, address) as page:
        key = page.keyboard.press
        active = 'document.activeElement'
        focus = lambda: page.evaluate(f'{active}.id || {active}.className')
        page.focus('#model')
        order = [focus()]
        for _ in range(5):
            key('Tab')
            order.append(focus())
        assert order[0] == 'model' and 'input' in order and order.index('input') <= 5
        page.focus('#input')
        page.keyboard.type('a:')
        key('Enter')
        done(page)
        assert focus() == 'input'                                 # it goes on from here
        key('Shift+Tab')
        assert 'token' in focus()
        key('Home')
        first = page.locator('.token').first
        assert first.evaluate('e => e === document.activeElement')
        for _ in range(3): key('ArrowRight')
        assert page.locator('.token').nth(3).evaluate('e => e === document.activeElement')
        assert page.is_visible('#tip') and page.locator('.seen').count() == 1
        key('ArrowDown')
        assert 'row' in focus() and 'go on' in page.evaluate(f'{active}.ariaLabel')
        key('Escape')
        assert 'token' in focus()
        key('ArrowDown')
        key('ArrowDown')
        key('Enter')
        text = done(page)
        assert text.startswith('a:' + HARM[:3]) and focus() == 'input' and page.is_hidden('#tip')


@pytest.mark.exhaustive
@pytest.mark.parametrize('width', [1300, 390])
def test_a_chat_on_the_page(chromium, address, width):
    with browsing(chromium, address, width) as page:
        page.locator('.modes label').nth(1).click()
        page.fill('#input', '<script>window.pwned=1</script>')
        page.keyboard.press('Enter')
        text = done(page)
        assert '<script>window.pwned=1</script>' in text and shown(HARM) in text
        assert text.startswith('You') and page.locator('.turn').count() == 2
        page.click('#retry')
        done(page)
        assert page.locator('.turn').count() == 2
        page.click('#undo')
        assert page.locator('.turn').count() == 0
        assert page.input_value('#input') == '<script>window.pwned=1</script>'
        page.keyboard.press('Enter')
        done(page)
        page.locator('.modes label').nth(0).click()
        assert page.locator('.turn').count() == 0                 # each mode has its own text
        page.locator('.modes label').nth(1).click()
        assert page.locator('.turn').count() == 2
        page.click('#clear')
        assert page.locator('.turn').count() == 0 and page.is_disabled('#retry')


@pytest.mark.exhaustive
def test_stop_and_what_is_there_stays(chromium, slow):
    with browsing(chromium, slow.address, model='slow') as page:
        page.fill('#input', 'a:')
        page.keyboard.press('Enter')
        page.wait_for_selector('.busy .token >> nth=5')
        assert page.is_visible('#stop') and page.is_hidden('#send')
        page.keyboard.press('Escape')
        text = done(page)
        assert text.startswith('a:xxxx') and 'stopped' in page.inner_text('#status')
        wait_until(lambda: stats(slow) == (0, 0))
        page.fill('#input', '')
        page.keyboard.press('Enter')                              # it goes on
        page.wait_for_selector('.busy .turn.last .token >> nth=3')
        page.click('#stop')
        assert len(done(page)) > len(text)


def test_errors_in_words(chromium, tok):
    model = Script('fine')
    pool = ModelPool(dict(one=(model, tok)), rows=1, waiting=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with serving(pool) as a, browsing(chromium, a, model='one') as page:
            page.locator('.modes label').nth(1).click()
            pool.models['two'] = pool.models.pop('one')
            page.fill('#input', 'hi')
            page.keyboard.press('Enter')
            page.wait_for_selector('#alert:not([hidden])')
            assert "did you mean 'two'" in page.inner_text('#alert')
            assert page.get_attribute('#alert', 'role') == 'alert'
            pool.models['one'] = pool.models['two']
            page.keyboard.press('Enter')
            assert 'fine' in done(page) and page.is_hidden('#alert')


@pytest.mark.exhaustive
def test_a_server_that_is_gone(chromium, tok):
    with serving(dict(one=(Script('fine'), tok))) as a:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(a)
        page.wait_for_selector('#model option', state='attached')
    page.fill('#input', 'a:')
    page.keyboard.press('Enter')
    page.wait_for_selector('#alert:not([hidden])')
    assert 'still running' in page.inner_text('#alert') and page.is_enabled('#send')
    context.close()


@pytest.mark.exhaustive
def test_settings_are_remembered_and_sent(chromium, address):
    with browsing(chromium, address) as page:
        page.fill('#seed', '7')
        page.locator('#temperature').fill('0')
        page.locator('#max_tokens').fill('20')
        page.uncheck('#shade')
        page.reload()
        page.wait_for_selector('#model option', state='attached')
        assert page.input_value('#seed') == '7' and page.input_value('#temperature') == '0'
        assert not page.is_checked('#shade') and not page.locator('body.shaded').count()
        with page.expect_request('**/v1/completions') as sent:
            page.fill('#input', 'a:')
            page.keyboard.press('Enter')
        body = sent.value.post_data_json
        assert (body['seed'], body['temperature'], body['max_tokens']) == (7, 0, 20)
        assert body['prompt'] == 'a:' and body['top_k'] == 50
        done(page)
        assert 'seed 7' in page.inner_text('#status')


@pytest.mark.exhaustive
def test_light_and_dark(chromium, address):
    def ground(**kw):
        with browsing(chromium, address, **kw) as page:
            return page.evaluate('getComputedStyle(document.body).backgroundColor')
    light, dark = ground(color_scheme='light'), ground(color_scheme='dark')
    value = lambda rgb: sum(map(int, rgb[4:-1].split(',')))
    assert value(light) > 600 and value(dark) < 120

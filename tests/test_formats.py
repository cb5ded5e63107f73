"""Push and pull with the hub's own client, against a stand-in on this machine; model cards; and
GGUF files, read back by transformers, by the package gguf, and by llama.cpp where it is there."""
import base64, hashlib, json, math, os, re, subprocess, sys, threading, warnings
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import extra
from gptlab.bpe import BPE, CL100K_PATTERN
from gptlab.data import corpus
from gptlab.formats import model_card, push_to_hub, save_gguf
from gptlab.generation import generate, temperature
from gptlab.model import GPT, GPTConfig
from gptlab.tokenizer import ByteTokenizer, CharTokenizer
from gptlab.tokenizers import AsciiTokenizer, ByT5Tokenizer, RankTokenizer
from test_hub import gated, llama_attn, make_ours, OURS, TEXTS, untied

transformers = extra('transformers')


# ---- push and pull, over HTTP, to a stand-in

class Stand(BaseHTTPRequestHandler):
    """As much of the hub's interface as one push and one pull need; files live in `repos`, and
    nobody is let into other/"""
    def log_message(self, *_): pass

    def answer(self, code=200, body=b'', **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for k, v in {'Content-Length': len(body), **headers}.items():
            self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def do_POST(self):
        path, data = (self.path.split('?')[0],
                      self.rfile.read(int(self.headers.get('Content-Length', 0))))
        self.server.asked.append((self.command, path, self.headers.get('Authorization')))
        if path == '/api/validate-yaml': return self.answer(body=dict(errors=[], warnings=[]))
        if path == '/api/repos/create':
            d = json.loads(data)
            if d.get('organization') == 'other': return self.answer(403, dict(error='forbidden'))
            name = f'{d.get("organization", "me")}/{d["name"]}'
            self.server.repos.setdefault(name, {})
            self.server.private = d.get('private', d.get('visibility') == 'private')
            return self.answer(body=dict(url=f'http://{self.headers["Host"]}/{name}'))
        name, what = '/'.join(path.split('/')[3:5]), path.split('/')[5]
        if what == 'preupload':
            return self.answer(body=dict(files=[
                dict(path=f['path'], uploadMode='regular', shouldIgnore=False, oid=None)
                for f in json.loads(data)['files']]))
        if what == 'commit':
            for line in map(json.loads, data.splitlines()):
                if line['key'] == 'file':
                    self.server.repos[name][line['value']['path']] = base64.b64decode(
                        line['value']['content'])
                if line['key'] == 'deletedFile': del self.server.repos[name][line['value']['path']]
            return self.answer(body=dict(
                commitUrl=f'http://{self.headers["Host"]}/{name}/commit/{SHA}', commitOid=SHA,
                success=True))
        self.answer(404)

    def do_GET(self):
        path = self.path.split('?')[0].strip('/').split('/')
        self.server.asked.append((self.command, '/'.join(path), None))
        api = path[0] == 'api'
        name, rest = '/'.join(path[2:4] if api else path[:2]), path[4:] if api else path[2:]
        files = self.server.repos.get(name)
        if files is None: return self.answer(404, X_Error_Code='RepoNotFound')
        if api and rest[:1] == ['tree']:
            return self.answer(body=[dict(type='file', path=f, size=len(b),
                                          oid=hashlib.sha1(b).hexdigest())
                                     for f, b in files.items()])
        if api:
            return self.answer(body=dict(id=name, sha=SHA,
                                         siblings=[dict(rfilename=f) for f in files],
                                         private=vars(self.server).get('private', False),
                                         tags=[], downloads=0, likes=0))
        if rest[0] == 'resolve' and (f := '/'.join(rest[2:])) in files:
            return self.answer(200, files[f], ETag=f'"{hashlib.sha1(files[f]).hexdigest()}"',
                               X_Repo_Commit=SHA)
        self.answer(404, X_Error_Code='EntryNotFound')
    do_HEAD = do_GET

SHA = '0123456789abcdef0123456789abcdef01234567'

PUSH = """
import sys, gptlab.formats
heavy = 'transformers', 'huggingface_hub', 'gguf'
assert not any(m.split('.')[0] in heavy for m in sys.modules), 'the import is not light'
from transformers import AutoConfig
config = type(AutoConfig.for_model('gptlab'))
# whoever imports the Auto classes later finds ours in them; in the tests it is the other order
from transformers import AutoModelForCausalLM
assert config in AutoModelForCausalLM._model_mapping.keys()
import torch
from gptlab.blocks import perturb_parameters
from gptlab.formats import push_to_hub
from gptlab.hub import load
from gptlab.model import GPT, GPTConfig, llama_config
from gptlab.tokenizer import ByteTokenizer

class Run:
    info = dict(run_id='abc')
    log = [dict(step=i, tokens=i*100, loss=5.-i/10) for i in range(20)]
    for row in log[4::5]: row |= dict(valid=row['loss'], bpb=3.)

shape = dict(vocab_size=257, n_layers=2, n_heads=4, d_model=32, d_ff=48, context_length=64)
model = perturb_parameters(GPT(llama_config(**shape)), .2).eval()
print(push_to_hub('me/small', model, ByteTokenizer(), run=Run(), data='Two plays, public domain.',
                  licence='mit', prompts=['To be']))
ids = torch.arange(40)[None]
back, tok = load('me/small', device='cpu')
assert torch.equal(back(ids), model(ids)) and tok.encode('né') == ByteTokenizer().encode('né')
own = perturb_parameters(GPT(GPTConfig(97, 64, 2, 4, 2, 32)), .2).eval()
push_to_hub('me/own', own)
assert torch.equal(load('me/own', device='cpu')[0](ids), own(ids))
for f, message in [(lambda: push_to_hub('other/small', model), 'hf auth login'),
                   (lambda: load('me/nothing'), 'cannot be had from the hub'),
                   (lambda: load('me/pickled'), 'holds no weights')]:
    try: f()
    except (PermissionError, FileNotFoundError) as e: assert message in str(e), e
    else: raise AssertionError(message)
"""

def test_light_import_push_and_pull(tmp_path):
    """In a process of its own: the import is light and registers; then one push and one pull by the
    hub's own client against 127.0.0.1; pickles are not even downloaded"""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Stand)
    server.repos, server.asked = {'me/pickled': {
        'config.json': b'{"model_type": "gpt2", "vocab_size": 9, "n_layer": 1, "n_head": 1, '
                       b'"n_embd": 8}', 'pytorch_model.bin': b'evil'}}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        env = os.environ | dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}',
                                HF_HOME=str(tmp_path), HF_TOKEN='hf_standin', HF_HUB_OFFLINE='0',
                                HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_TELEMETRY='1')
        done = subprocess.run([sys.executable, '-c', PUSH], env=env, capture_output=True, text=True,
                              timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'was there before and is public' not in done.stderr
    files = server.repos['me/small']
    assert (done.stdout.splitlines()[0].endswith(f'/me/small/commit/{SHA}')
            and {'README.md', 'config.json', 'model.safetensors', 'tokenizer.json',
                 'tokenizer_config.json'} <= set(files))
    card = files['README.md'].decode()
    for part in ('license: mit', 'library_name: transformers', 'Two plays, public domain.',
                 '| step | tokens | loss | valid | bpb |',
                 '| 19 | 1,900 | 3.1000 | 3.1000 | 3.0000 |', 'To be', 'AutoModelForCausalLM',
                 'run_id abc'):
        assert part in card, part
    assert (b'no family of transformers has its parts' in server.repos['me/own']['README.md']
            and b'import gptlab.hub' in server.repos['me/own']['README.md'])
    assert (server.private is True
            and not any('pytorch_model.bin' in path for _, path, _ in server.asked))
    assert {auth for cmd, _, auth in server.asked if cmd == 'POST'} == {'Bearer hf_standin'}


# ---- GGUF

@pytest.mark.parametrize('name', ['llama', 'llama, tied, no gain, GEGLU', 'own head width'])
def test_gguf(name, tmp_path):
    "The file gives the same logits and the same ids where transformers reads it"
    extra('gguf')
    extra('accelerate')
    tok = BPE.train(' '.join(f'{i} naïve foxes jumped' for i in range(300)), 350)
    cfg = (OURS[name][1] if name in OURS
           else gated(vocab_size=352, d_model=48, attn=partial(llama_attn, d_head=12)))
    # a LLaMA's activation is silu, for which GGUF has no field
    cfg = replace(cfg, vocab_size=352, mlp=gated().mlp)
    model = make_ours(cfg)
    save_gguf(model, tok, tmp_path/'m.gguf', dtype='f32')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file='m.gguf', dtype=torch.float32).eval()
    ids = torch.randint(0, 352, (2, 150))
    with torch.no_grad(): gap = (theirs(ids).logits - model(ids)).abs().max().item()
    print(f'gguf {name}: {gap:.1e}')
    assert gap < 1e-4 and theirs.config.num_key_value_heads == 2
    half = save_gguf(model, tok, tmp_path/'h.gguf')
    assert (half.stat().st_size < .7*(tmp_path/'m.gguf').stat().st_size
            and sorted(p.name for p in tmp_path.iterdir()) == ['h.gguf', 'm.gguf'])
    names = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='m.gguf')
    for s in TEXTS[:3]: assert names(s, add_special_tokens=False)['input_ids'] == tok.encode(s)

def test_gguf_holds_every_number(tmp_path):
    """Read back by the package itself: the tensors are ours, rows of queries and keys dealt so that
    neighbours make a pair"""
    gguf = extra('gguf')
    model = make_ours(OURS['llama, biases'][1])
    read = gguf.GGUFReader(save_gguf(model, None, tmp_path/'m.gguf', dtype='f32'))
    have = {t.name: torch.tensor(t.data.copy()) for t in read.tensors}
    undo = lambda t, heads: torch.cat([h[r::2] for h in t.chunk(heads) for r in (0, 1)])
    q, k, up = (getattr(m, n) for m, n in [(model.blocks[1].attn, 'q'), (model.blocks[1].attn, 'k'),
                                           (model.blocks[1].mlp, 'up')])
    assert (torch.equal(undo(have['blk.1.attn_q.weight'], 4), q.weight)
            and torch.equal(undo(have['blk.1.attn_k.bias'], 2), k.bias)
            and torch.equal(have['blk.1.ffn_up.weight'], up.weight))
    assert sum(t.numel() for t in have.values()) == model.n_params()
    assert (read.fields['llama.attention.head_count_kv'].contents() == 2
            and read.fields['llama.context_length'].contents() == 160)

def test_gguf_is_whole_or_absent(tmp_path, monkeypatch):
    gguf = extra('gguf')
    model, file = make_ours(gated()), tmp_path/'m.gguf'
    file.write_bytes(b'before')
    def full(self, **_): raise OSError('no space left on device')
    monkeypatch.setattr(gguf.GGUFWriter, 'write_tensors_to_file', full)
    with pytest.raises(OSError, match='could not write .*m.gguf: no space left on device'):
        save_gguf(model, None, file)
    assert [*tmp_path.iterdir()] == [file] and file.read_bytes() == b'before'

def test_gguf_says_what_it_cannot(tmp_path):
    gguf = extra('gguf')
    save_gguf(make_ours(OURS['llama, llama3 rope'][1]), None, tmp_path/'m.gguf')
    slow = next(t for t in gguf.GGUFReader(tmp_path/'m.gguf').tensors
                if t.name == 'rope_freqs.weight').data
    assert abs(slow[0] - 1) < 1e-6 and abs(slow[-1] - 8) < 1e-5 and len(slow) == 4
    with pytest.raises(ValueError, match='only the shape of a LLaMA'):
        save_gguf(GPT(GPTConfig()), None, tmp_path/'n.gguf')
    with pytest.raises(ValueError, match='activation is not silu'):
        save_gguf(GPT(OURS['llama, tied, no gain, GEGLU'][1]), None, tmp_path/'n.gguf')
    with pytest.raises(ValueError, match='cfg.tie says'):
        save_gguf(untied(), None, tmp_path/'n.gguf')
    with pytest.raises(ValueError, match='YaRN'):
        save_gguf(make_ours(OURS['llama, yarn'][1]), None, tmp_path/'n.gguf')
    with pytest.raises(ValueError, match='pattern'):
        save_gguf(make_ours(gated()), CharTokenizer.train('abc'), tmp_path/'n.gguf')
    assert [p.name for p in tmp_path.iterdir()] == ['m.gguf']


def fields(path):
    "The numbers and texts of a GGUF file by name"
    return {k: f.contents() for k, f in extra('gguf').GGUFReader(path).fields.items()}


SIZES = {'plain': {}, 'rounded': dict(vocab_multiple=64), 'tied': dict(tie=True),
         'rounded, tied': dict(vocab_multiple=128, tie=True), 'one head': dict(n_kv_heads=1),
         'own head width': dict(attn=partial(llama_attn, d_head=12)), 'no gain, biases': dict(
             norm=partial(gated().norm, gain=False), attn=partial(llama_attn, bias=True))}

@pytest.mark.parametrize('with_tok', [True, False])
@pytest.mark.parametrize('name', SIZES)
def test_p1_every_tensor_has_the_shape_that_the_numbers_say(name, with_tok, tmp_path):
    gguf = extra('gguf')
    tok = BPE.train('one two three '*50, 260, verbose=False)
    model = make_ours(gated(vocab_size=500, **SIZES[name]))
    path = save_gguf(model, tok if with_tok else None, tmp_path/'m.gguf', dtype='f32')
    said = {k.removeprefix('llama.'): v for k, v in fields(path).items()}
    V, C, F, L = (said[k] for k in ('vocab_size', 'embedding_length', 'feed_forward_length',
                                    'block_count'))
    H, K, D = (said[f'attention.{k}'] for k in ('head_count', 'head_count_kv', 'key_length'))
    assert V == 500 and said['attention.value_length'] == D == said['rope.dimension_count']
    shapes = {'token_embd': [C, V], 'output': [C, V], 'output_norm': [C]}
    for i in range(L):
        shapes |= {f'blk.{i}.{k}': v for k, v in dict(
            attn_norm=[C], ffn_norm=[C], attn_q=[C, H*D], attn_k=[C, K*D], attn_v=[C, K*D],
            attn_output=[H*D, C], ffn_gate=[C, F], ffn_up=[C, F], ffn_down=[F, C]).items()}
    if model.cfg.tie: del shapes['output']
    found = {t.name: t.shape.tolist() for t in gguf.GGUFReader(path).tensors}
    weights = {k.removesuffix('.weight'): v for k, v in found.items() if k.endswith('.weight')}
    assert weights == shapes
    biases = {k.removesuffix('.bias'): v for k, v in found.items() if k.endswith('.bias')}
    assert all(v == shapes[k][-1:] for k, v in biases.items())
    if with_tok: assert len(said['tokenizer.ggml.tokens']) == V


def test_p1_the_rows_that_are_left_are_the_models(tmp_path):
    gguf = extra('gguf')
    model = make_ours(gated(vocab_size=70, vocab_multiple=64))
    read = gguf.GGUFReader(save_gguf(model, None, tmp_path/'m.gguf', dtype='f32'))
    have = {t.name: torch.tensor(t.data.copy()) for t in read.tensors}
    assert torch.equal(have['token_embd.weight'], model.embed.weight[:70])
    assert torch.equal(have['output.weight'], model.head.weight[:70])


def marks(path):
    found = {k.removeprefix('tokenizer.ggml.'): v for k, v in fields(path).items()}
    found |= dict(template=found.get('tokenizer.chat_template'))
    wanted = ('bos_token_id', 'add_bos_token', 'eos_token_id', 'eot_token_id', 'eom_token_id',
              'padding_token_id', 'template')
    return {k: found[k] for k in wanted if found.get(k) is not None}


class Padded(BPE):
    "A BPE that has a padding id, once it is set"
    pad = None

def test_p2_a_text_begins_with_bos_and_ends_where_the_model_ends(tmp_path, capsys):
    names = ['<s>', '</s>', '<end>', '<more>', '<last>']
    merges = BPE.train('one two three '*50, 268, verbose=False).merges
    def tok(): return Padded(merges, special=['<|bos|>', *names])
    model = make_ours(gated(vocab_size=280))
    write = lambda tok: marks(save_gguf(model, tok, tmp_path/'m.gguf'))
    bos = tok().bos
    assert write(tok()) == dict(bos_token_id=bos, add_bos_token=True, eos_token_id=bos)
    for own in (BPE([], special=['<x>']), RankTokenizer({bytes([i]): i for i in range(256)})):
        assert write(own) == {}                                   # no bos: nothing is claimed
    for begins in (True, False):                                  # as hub.load says of a folder
        published = tok()
        published.brought = dict(add_bos=begins)
        assert write(published)['add_bos_token'] is begins
    # ends, padding, and the template of a conversation
    model.end_ids = ends = tuple(tok().special[n] for n in names[1:])
    kept = tok()
    kept.brought = dict(add_bos=False, chat_template='{{ messages }}')
    kept.pad = ends[0]                                            # by default there is none
    assert write(kept) == dict(
        bos_token_id=bos, add_bos_token=False, eos_token_id=ends[0], eot_token_id=ends[1],
        eom_token_id=ends[2], padding_token_id=ends[0], template='{{ messages }}')
    assert f'[{ends[3]}] are left out' in capsys.readouterr().out


class Lower(BPE):
    "A BPE that is read by another rule"
    def encode(self, text, bos=False): return super().encode(text.lower(), bos)

REFUSED = dict(Char=CharTokenizer('abc'), Ascii=AsciiTokenizer(), ByT5=ByT5Tokenizer(),
               BPE=BPE([], CL100K_PATTERN), Lower=Lower([]),
               Rank=RankTokenizer({bytes([i]): i for i in range(256)}, CL100K_PATTERN))

@pytest.mark.parametrize('name', REFUSED)
def test_tokenizers_that_gguf_cannot_say_are_refused_by_name(name, tmp_path):
    extra('gguf')
    tok = REFUSED[name]
    with pytest.raises(ValueError, match=f'a {type(tok).__name__} is not written .*tok=None'):
        save_gguf(make_ours(gated(vocab_size=600)), tok, tmp_path/'m.gguf')
    assert not [*tmp_path.iterdir()]


def test_gguf_refuses_what_would_be_lost_in_silence(tmp_path):
    gguf = extra('gguf')
    model, file = make_ours(gated(vocab_size=280)), tmp_path/'m.gguf'
    refused = lambda words, **kw: pytest.raises((ValueError, TypeError, OSError), match=words)
    with refused('the tokenizer has 350 ids and the model 280'):
        save_gguf(model, BPE.train(f'{list(range(999))}', 350, verbose=False), file)
    for name in ('a', '[PAD279]', 'Ġ'):                           # spelt as other ids are
        with refused(re.escape(repr(name))):
            save_gguf(model, BPE([], special=[name]), file)
    with refused('a GPT is expected, not ByteTokenizer'): save_gguf(ByteTokenizer(), model, file)
    with refused('no tokenizer'): save_gguf(model, 'tok', file)
    with refused('is a folder'): save_gguf(model, None, tmp_path)
    with refused('a path is expected'): save_gguf(model, None, None)
    with refused('the path is empty'): save_gguf(model, None, '')
    for dtype in ('int8', 'float16', None, 16, torch.float16):
        with refused("dtype is 'f32' or 'f16'"): save_gguf(model, None, file, dtype)
    with torch.no_grad(): model.blocks[1].mlp.up.weight[0,0] = 1e6
    with refused(r'layers\.1\.mlp\.up_proj holds numbers up to 1e\+06.*f32'):
        save_gguf(model, None, file)
    save_gguf(model, None, file, dtype='f32')
    with torch.no_grad(): model.blocks[1].mlp.up.weight[0,0] = math.nan
    with refused('up.* holds NaN'): save_gguf(model, None, tmp_path/'n.gguf', 'f32')
    assert [p.name for p in tmp_path.iterdir()] == ['m.gguf']
    assert gguf.GGUFReader(file).tensors


@pytest.mark.exhaustive
def test_a15_compiled_models_go_out_as_they_are(tmp_path):
    extra('gguf')
    model = make_ours(gated(**SMALL))
    compiled = torch.compile(model, backend='eager')
    a, b = (save_gguf(m, None, tmp_path/f'{i}.gguf') for i, m in enumerate((model, compiled)))
    assert a.read_bytes() == b.read_bytes()
    assert card_of(compiled, ByteTokenizer()) == card_of(model, ByteTokenizer())


def test_a24_gguf_knows_the_home_folder_and_keeps_links(tmp_path, monkeypatch):
    extra('gguf')
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    path = save_gguf(make_ours(gated()), None, '~/models/m.gguf')
    assert path == tmp_path/'home'/'models'/'m.gguf' and path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == ['home']
    if os.name == 'nt': return
    (tmp_path/'link.gguf').symlink_to(path)
    path.write_bytes(b'before')
    save_gguf(make_ours(gated()), None, tmp_path/'link.gguf')
    assert (tmp_path/'link.gguf').is_symlink() and path.stat().st_size > 1000


@pytest.mark.parametrize('name', ['plain', 'rounded, tied', 'one head', 'no gain, biases'])
def test_p1_llama_cpp_reads_the_file(name, tmp_path):
    """llama.cpp itself, where the package llama-cpp-python is installed

    It opens the file (its loader compares each tensor with the numbers), cuts a text into the same
    ids, bos before them, knows where a text ends, gives the same logits, and writes the same 40
    greedy tokens."""
    extra('gguf')
    llama_cpp = pytest.importorskip('llama_cpp', reason='llama-cpp-python is not installed')
    tok = BPE.train(' '.join(f'{i} naïve foxes jumped' for i in range(300)), 350, verbose=False)
    model = make_ours(gated(vocab_size=tok.vocab_size, **SIZES[name]))
    path = save_gguf(model, tok, tmp_path/'m.gguf', dtype='f32')
    # type 0 is float32: of keys and values in the cache
    theirs = llama_cpp.Llama(str(path), n_ctx=160, n_threads=1, logits_all=True, verbose=False,
                             type_k=0, type_v=0)
    for text in TEXTS[:3]:
        assert theirs.tokenize(text.encode(), special=False) == [tok.bos, *tok.encode(text)]
    assert theirs.token_bos() == theirs.token_eos() == tok.bos
    ids = [tok.bos, *tok.encode('17 naïve foxes')]
    theirs.eval(ids)
    gap = np.abs(theirs.scores[:len(ids)] - model(torch.tensor([ids]))[0].detach().numpy()).max()
    print(f'llama.cpp {name}: {gap:.1e}')
    assert gap < 1e-3
    written = []
    for _ in range(40):
        written.append(int(theirs.scores[theirs.n_tokens-1].argmax()))
        theirs.eval(written[-1:])
    assert list(generate(model, ids, 40, temperature(0))) == written and len(set(written)) > 3


# ---- model cards: what others wrote is only text

HOSTILE = ['MIT\nevil: true', '"\n---\n# Owned', 'x: [a, b]', '{a: b}', '*anchor',
           '!!python/object', '<script>alert(1)</script>', "it's", 'a #b', '\x1b]52;c;eA==\x07',
           'null', 'no', '1.0', '2024-01-01', '~', '- a', '```\n# Owned', '\u2028x', 'é', 'a: b',
           '%x', '@x', '`x`']
YAML_KEYS = ['library_name', 'pipeline_tag', 'tags', 'license']

def front_matter(card):
    yaml = pytest.importorskip('yaml')                            # huggingface_hub brings it
    _, head, _ = card.split('---\n', 2)
    return yaml.safe_load(head)

def outside_code(card):
    "The lines of a card that are no code, checked to leave no fence open"
    lines, fence = [], ''
    for line in card.split('\n'):
        mark = re.match('`{3,}', line)
        if fence and line.strip() == fence: fence = ''
        elif not fence and mark: fence = mark[0]
        elif not fence: lines.append(line)
    assert not fence
    return lines

SMALL = dict(vocab_size=257, n_layers=1, context_length=40)

def card_of(model=None, tok=None, **kw):
    return model_card(make_ours(gated(**SMALL)) if model is None else model, tok, **kw)

class Licensed:
    "Data of others, which prints itself"
    def __init__(self, licence): self.licence = licence
    def __repr__(self): return f'texts under {self.licence}'

HEADINGS = ['## Open it', '## Config', '## Data', '## Training', '## Samples']


@pytest.mark.parametrize('text', [*HOSTILE, 'mit', 'apache-2.0', 'cc-by-sa-4.0', 'other'])
def test_r01_a_licence_writes_no_keys(text):
    found = front_matter(card_of(licence=text))
    assert list(found) == YAML_KEYS and found['license'] == text
    assert 'license: mit\n' in card_of(licence='mit')


@pytest.mark.parametrize('text', HOSTILE)
def test_r01_a_card_holds_only_text_of_others(text):
    run = SimpleNamespace(log=[dict(step=1, tokens=9, loss=2., valid=text)],
                          info=dict(run_id=text, date=text, commit=text, torch=text))
    card = card_of(tok=ByteTokenizer(), name=text, run=run, data=Licensed(text), prompts=[text])
    lines = outside_code(card)
    assert [x for x in lines if x.startswith('## ')] == HEADINGS
    assert len([x for x in lines if x.startswith('# ')]) == 1 and lines.count('---') == 2
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f\u2028]', card)
    assert not any('<' in x for x in lines)


def test_r01_your_own_text_about_data_is_markdown_but_no_html():
    card = card_of(data='Two *plays*, [public](https://a.b).\n\n- one\n- two <img src=x>')
    assert 'Two *plays*, [public](https://a.b).\n\n- one\n- two &lt;img src=x>' in card
    of_corpus = card_of(data=corpus(['to be ', 'or not ']*20))
    assert '## Data\n\nNot stated' not in of_corpus


def test_r01_a_sample_cannot_leave_its_fence():
    for prompt in ('```\n# x', '````` y', 'no'):
        card = card_of(tok=ByteTokenizer(), prompts=[prompt])
        assert prompt in card and '# x' not in outside_code(card)


def test_a02_a_card_of_a_tokenizer_without_bos():
    model, tok = make_ours(gated(**SMALL | dict(vocab_size=99))), AsciiTokenizer()
    assert 'AsciiTokenizer has no mark that begins a text' in card_of(model, tok)
    assert '```text\nOne' in card_of(model, tok, prompts=['One'])


def test_a23_prompts_may_be_an_iterator_and_a_text_is_one_prompt():
    for prompts in (iter(['One', 'Two']), ('One', 'Two'), (p for p in ['One', 'Two'])):
        card = card_of(tok=ByteTokenizer(), prompts=prompts)
        assert card.count('```text') == 2 and '```text\nTwo' in card
    assert card_of(tok=ByteTokenizer(), prompts='One').count('```text\nOne') == 1


@pytest.mark.parametrize('bad', [
    dict(model='m'), dict(model=gated()), dict(tok='t'), dict(name=None), dict(name=''),
    dict(name=5), dict(run='r'), dict(run=[]), dict(run=SimpleNamespace(log=[])), dict(data=5),
    dict(data=['a']), dict(data=''), dict(data=b'x'), dict(licence=5), dict(licence=''),
    dict(licence=['mit']), dict(prompts=5), dict(prompts=[5]), dict(prompts=[None])],
    ids=lambda d: f'{next(iter(d))}={next(iter(d.values()))!r:.20}')
def test_r11_cards(bad):
    name = next(iter(bad))
    said = dict(model='a GPT is expected', tok='no tokenizer', prompts='prompt').get(name, name)
    with pytest.raises(TypeError, match=said): card_of(**dict(tok=ByteTokenizer()) | bad)


def test_r11_a_prompt_that_does_not_fit():
    with pytest.raises(ValueError, match='the prompt has 51 tokens and the context holds 40'):
        card_of(tok=ByteTokenizer(), prompts=['a'*50])
    assert 'a'*39 in card_of(tok=ByteTokenizer(), prompts=['a'*39])


# ---- what a push deletes, and what it says

class Remote:
    "A repository on the hub that keeps its files, and deletes as the hub's client would"
    def __init__(self, files=(), private=True, error=None):
        self.files, self.private, self.error, self.calls = set(files), private, error, 0

    def create_repo(self, name, private, exist_ok):
        self.calls += 1
        if self.error: raise self.error

    def repo_info(self, name): return SimpleNamespace(private=self.private)

    def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
        from huggingface_hub.utils import filter_repo_objects
        self.files -= set(filter_repo_objects(sorted(self.files), allow_patterns=delete_patterns))
        self.files |= {p.name for p in os.scandir(folder_path)}
        return SimpleNamespace(commit_url='there')

@pytest.fixture
def remote(monkeypatch):
    import huggingface_hub                                        # transformers brings it
    def make(*args, **kw):
        made = Remote(*args, **kw)
        monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: made)
        return made
    return make


def test_r02_a_push_deletes_by_exact_names_only(remote):
    stale = {'model-00001-of-00002.safetensors', 'model.safetensors.index.json'}
    foreign = {'model-notes-of-mine.safetensors', 'model-1-of-2.safetensors', 'adapter.safetensors',
               'model-00001-of-00002.safetensors.bak', 'checkpoints/model.safetensors',
               'my-model.safetensors', 'notes.md', 'vocab.json', 'figure.png', 'm.gguf',
               'model-00001-of-00002/x-00001-of-00002.safetensors', 'gptlab_tokenizer.json'}
    there = remote(stale | foreign)
    model = make_ours(gated(**SMALL))
    assert push_to_hub('me/x', model) == 'there'
    assert foreign <= there.files and not stale & there.files
    push_to_hub('me/x', model, BPE([]))                           # another vocabulary
    assert foreign - {'gptlab_tokenizer.json'} <= there.files
    assert 'gptlab_tokenizer.json' not in there.files and 'tokenizer.json' in there.files


def test_a_push_into_a_public_repository_says_so(remote):
    model = make_ours(gated(**SMALL))
    remote(private=False)
    with pytest.warns(UserWarning, match='me/x was there before and is public'):
        push_to_hub('me/x', model)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        push_to_hub('me/x', model, private=False)
        remote()
        push_to_hub('me/x', model)


PUSHES = {'name': (dict(name='x'), ValueError, 'owner/name'),
          'path': (dict(name='~/my/x'), ValueError, 'owner/name'),
          'line': (dict(name='me/x\n'), ValueError, 'owner/name'),
          'none': (dict(name=None), ValueError, 'owner/name, such as .* not None'),
          'swapped': (dict(model='me/x', name='me/x'), TypeError, 'a GPT is expected, not str'),
          'tok': (dict(tok='t'), TypeError, 'no tokenizer'),
          'card': (dict(card=''), TypeError, 'card is a text'),
          'card of bytes': (dict(card=b'x'), TypeError, 'card is a text'),
          'both': (dict(card='# x', licence='mit'), ValueError, 'licence would go into a card'),
          'private': (dict(private='no'), TypeError, "private is True or False, not 'no'"),
          'message': (dict(message=None), TypeError, 'message is a text'),
          'unknown': (dict(license='mit'), TypeError, 'license'),
          'prompt': (dict(tok=ByteTokenizer(), prompts=['a'*999]), ValueError, 'the prompt has')}

@pytest.mark.parametrize('case', PUSHES)
def test_r11_what_cannot_be_pushed_is_said_before_anything_is_sent(case, remote):
    there, (kw, error, words) = remote(), PUSHES[case]
    kw = dict(name='me/x', model=make_ours(gated(**SMALL))) | kw
    with pytest.raises(error, match=words): push_to_hub(**kw)
    assert not there.calls and not there.files


def test_a_push_without_the_hub(remote):
    httpx = pytest.importorskip('httpx')
    remote(error=httpx.ConnectError('no route'))
    with pytest.raises(ConnectionError, match='me/x was not sent, the hub cannot be reached: no'):
        push_to_hub('me/x', make_ours(gated(**SMALL)))
    remote(error=ZeroDivisionError('a bug'))
    with pytest.raises(ZeroDivisionError): push_to_hub('me/x', make_ours(gated(**SMALL)))

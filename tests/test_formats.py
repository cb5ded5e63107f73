"""Push and pull with the hub's own client, against a stand-in on this machine; and GGUF files, read
back by transformers and by the package gguf."""
import base64, hashlib, json, os, subprocess, sys, threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from common import extra
from gptlab.bpe import BPE
from gptlab.formats import save_gguf
from gptlab.model import GPT, GPTConfig
from gptlab.tokenizer import CharTokenizer
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
                                         siblings=[dict(rfilename=f) for f in files], private=False,
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

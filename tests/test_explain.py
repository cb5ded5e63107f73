"""Explaining a text (45): what is shown equals what is computed plainly, other models and texts,
bad input, and pages that hold nothing but text."""
import base64, math, random, re, time
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from functools import partial
from torch import nn

from common import refuses
from hostile import HARM, Odd
from gptlab.all import *
from gptlab import explain

V = 257
SMALL = dict(vocab_size=V, n_layers=2, n_heads=4, d_model=16, context_length=48)
TEXT = 'the cat sat on a mat.'


def made(**kw):
    "A small model in which no parameter is zero"
    set_seed(0)
    return perturb_parameters(GPT(GPTConfig(**SMALL | kw)))


def plain_probs(model, ids):
    with torch.no_grad(): return model.eval()(torch.tensor([ids]))[0].softmax(-1)


# ---- probabilities

def test_probabilities_are_the_softmax_of_the_logits_before():
    model, tok = made(), ByteTokenizer()
    ids = [tok.bos] + tok.encode(TEXT)
    want = plain_probs(model, ids)
    read = token_probs(model.train(), tok, TEXT, k=3)
    assert model.training and [t.id for t in read] == ids and read[0].prob is None
    for t, row in zip(read[1:], want):
        assert t.prob == pytest.approx(row[t.id].item(), rel=1e-6)
        assert t.rank == 1 + sum((row > row[t.id]).tolist())
        assert [p for _, p in t.top] == pytest.approx(row.topk(3).values.tolist())
    assert [t.text for t in read[1:]] == [c.replace(' ', '␣') for c in TEXT]


def test_documents_in_a_row_are_read_apart():
    model, tok, texts = made(), ByteTokenizer(), ['a cat', 'no', 'the mat']
    together = token_probs(model, tok, texts)
    apart = [t for text in texts for t in token_probs(model, tok, text)]
    assert [t.prob is None for t in together] == [t.prob is None for t in apart]
    assert [t.prob or 0 for t in together] == pytest.approx([t.prob or 0 for t in apart], rel=1e-4)
    row = text_row(model, tok, texts)
    assert row['docs'][0].tolist() == [0]*6 + [1]*3 + [2]*8
    w = attention_patterns(model, tok, texts)['blocks.1.attn']
    assert not w[:, 6:, :6].any() and not w[:, 9:, :9].any()


def test_a_text_without_a_mark_before_it_begins_with_a_token_that_nothing_precedes():
    tok = CharTokenizer.train([TEXT])
    if tok.bos is not None: tok.special = {}
    read = token_probs(made(), tok, TEXT)
    assert len(read) == len(TEXT) and read[0].prob is None and read[1].prob > 0


def test_ids_that_the_tokenizer_has_not_are_named():
    class Few(ByteTokenizer):
        vocab_size, special = 97, {}
        def encode(self, text, bos=False): return [ord(c) for c in text]
    read = token_probs(made(), Few(), '    ', k=V)
    assert {f'id {i}' for i in range(97, V)} <= {text for text, _ in read[1].top}


# ---- attention

VARIANTS = dict(full=Attention, window=partial(Attention, window=4),
                alibi=partial(Attention, pos=ALiBi), softcap=partial(Attention, softcap=5.),
                mixed=[partial(Attention, window=3), Attention])

@pytest.mark.parametrize('attn', VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize('kv', [None, 2])
def test_maps_are_causal_sum_to_one_and_give_the_output_again(attn, kv):
    model, tok = made(attn=attn, n_kv_heads=kv), ByteTokenizer()
    patterns = attention_patterns(model, tok, TEXT, tokens=48)
    assert list(patterns) == ['blocks.0.attn', 'blocks.1.attn']
    T = len(patterns.tokens)
    for name, w in patterns.items():
        layer, kept = model.get_submodule(name), {}
        hook = layer.register_forward_hook(lambda m, args, out: kept.update(x=args[0], out=out))
        with torch.no_grad(): model.eval()(**text_row(model, tok, TEXT))
        hook.remove()
        assert w.shape == (4, T, T) and not w.triu(1).any()
        assert_equal(w.sum(-1), torch.ones(4, T), tol=1e-5)
        v = layer.v(kept['x']).view(T, layer.K, -1).transpose(0, 1)  # (K,T,D)
        y = w @ v.repeat_interleave(4//layer.K, 0)                   # (H,T,D)
        assert_equal(layer.o(y.transpose(0, 1).reshape(1, T, -1)), kept['out'], tol=1e-4)
        if layer.window: assert not w.tril(-layer.window).any()


def test_a_layer_without_weights_is_left_out():
    class Mean(nn.Module):
        def __init__(self, C, n_heads, n_kv_heads=None):
            super().__init__()
            self.v = nn.Linear(C, C)
        def forward(self, x, seq): return self.v(x).cumsum(1)
    tok = ByteTokenizer()
    assert list(attention_patterns(made(attn=[Mean, Attention]), tok, TEXT)) == ['blocks.1.attn']
    none = made(attn=Mean)
    with refuses(ValueError, 'computed no weights'): attention_patterns(none, tok, TEXT)
    whole = explain_text(none, tok, TEXT)
    assert whole.patterns is None and 'none that can be read' in whole._repr_html_()


def test_what_is_said_of_a_head_is_counted():
    back = torch.diag(torch.ones(3), -1)
    back[0, 0] = 1
    said = repr(AttentionPatterns({'a': back[None]}, list('abcd')))
    assert said == ('a head 0: 0% to itself, 100% to the token before, 33% to the first; '
                    '1.0 tokens back on average')
    assert '100% to itself' in repr(AttentionPatterns({'a': torch.eye(3)[None]}, list('abc')))
    assert '100% to itself' in repr(AttentionPatterns({'a': torch.ones(1, 1, 1)}, ['a']))


def test_all_heads_can_be_drawn():
    import matplotlib
    matplotlib.use('agg')
    patterns = attention_patterns(made(), ByteTokenizer(), TEXT)
    fig = AttentionPatterns({'$x_ \n': patterns['blocks.0.attn'][:3]} | patterns, []).plot()
    fig.canvas.draw()
    maps = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert len(maps) == 3 + 4 + 4
    assert_equal(torch.tensor(maps[3].data), patterns['blocks.0.attn'][0])
    with refuses(ValueError, 'size must be'): patterns.plot(0)
    matplotlib.pyplot.close(fig)


# ---- logit lens

KINDS = dict(plain={}, tied=dict(tie=True), capped=dict(softcap=3.), narrow=dict(d_embed=8),
             rounded=dict(vocab_multiple=64), learned=dict(pos_embed=LearnedPositions),
             moe=dict(mlp=partial(MoE, n_experts=4)), layernorm=dict(norm=LayerNorm))

@pytest.mark.parametrize('kw', KINDS.values(), ids=KINDS)
def test_the_last_state_of_the_lens_is_the_model(kw):
    model, tok = made(**kw).eval(), ByteTokenizer()
    row = text_row(model, tok, TEXT)
    with torch.no_grad(): want = model(**row)[0]
    got = lens_logits(model, row)
    assert got.shape == (3, *want.shape)
    assert_equal(got[-1], want, tol=1e-5)
    assert (got[0] - want).abs().max() > 1e-3 < (got[1] - want).abs().max()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize('how', ['whole', 'blocks', 'bfloat16'])
def test_compiled_models_and_half_precision_are_read_too(how):
    tok, model = ByteTokenizer(), made()
    want = explain_text(model, tok, TEXT)
    if how == 'whole': model = torch.compile(model, backend='eager')
    if how == 'blocks': model.blocks[0].compile(backend='eager')
    if how == 'bfloat16': model = model.bfloat16()
    got, tol = explain_text(model, tok, TEXT), dict(rel=.2 if how == 'bfloat16' else 1e-4)
    assert [t.prob for t in got.probs[1:]] == pytest.approx([t.prob for t in want.probs[1:]], **tol)
    first, also = ([r.prob for r in e.lens[1][:9]] for e in (got, want))
    assert first == pytest.approx(also, **tol)
    assert list(got.patterns) == list(want.patterns)
    for name, w in want.patterns.items():
        assert_equal(got.patterns[name], w, tol=.05 if how == 'bfloat16' else 1e-5)


def test_a_state_of_the_lens_is_what_a_shorter_model_predicts():
    model, tok = made().eval(), ByteTokenizer()
    row = text_row(model, tok, TEXT)
    got = lens_logits(model, row)
    with torch.no_grad(): bare = model.head(model.norm(model.embed(row['ids'])))[0]
    assert_equal(got[0], bare, tol=1e-5)
    short = made()
    del short.blocks[1]
    with torch.no_grad(): assert_equal(got[1], short.eval()(**row)[0], tol=1e-5)


def test_the_lens_shows_what_comes_next():
    model, tok = made(), ByteTokenizer()
    lens, read = logit_lens(model, tok, TEXT, tokens=48), token_probs(model, tok, TEXT)
    assert [r.id for r in lens[-1][:-1]] == [t.id for t in read[1:]] and lens[-1][-1].id == -1
    assert [r.prob for r in lens[-1][:-1]] == pytest.approx([t.prob for t in read[1:]], rel=1e-4)
    assert repr(lens).count('✓') == sum(r.rank == 1 for row in lens for r in row)
    first = logit_lens(model, tok, TEXT, tokens=5)
    assert [len(row) for row in first] == [5]*3 and first[-1][-1].id == read[5].id


def test_the_lens_can_be_drawn_with_any_text():
    import matplotlib
    matplotlib.use('agg')
    lens = logit_lens(made(), ByteTokenizer(), '$a$ \\b', tokens=6)
    for r in lens: r[0] = r[0]._replace(top=(('$x_', .5),))
    ax = lens.plot()
    ax.figure.canvas.draw()
    assert '$x_' in [t.get_text() for t in ax.texts]
    matplotlib.pyplot.close(ax.figure)


# ---- pages

class Parsed(HTMLParser):
    "The text that a page shows, and all titles in it"
    def __init__(self, html):
        super().__init__()
        self.text, self.titles, self.images = '', [], []
        self.feed(html)
    def handle_data(self, data): self.text += data
    def handle_starttag(self, tag, attrs):
        self.titles += [v for k, v in attrs if k == 'title']
        if tag == 'img': self.images.append(dict(attrs))


def test_a_page_says_everything_without_colour():
    tok = ByteTokenizer()
    read = token_probs(made(), tok, TEXT)
    page = Parsed(read._repr_html_())
    for t in read[1:]:
        assert page.text.count(f'{100*t.prob:.2f} %') or t.prob >= .00995
        assert any(title.startswith(f'{t.text}  has') and title.count('%') == 6
                   for title in page.titles)
    assert 'probability of the token' in page.text and '80 % and more' in page.text


def test_shades_can_be_told_apart_and_read():
    "WCAG: text has 4.5 : 1; each shade is darker than the one before"
    def light(colour):
        parts = [int(colour[i:i+2], 16)/255 for i in (1, 3, 5)]
        lin = [c/12.92 if c <= .04045 else ((c+.055)/1.055)**2.4 for c in parts]
        return .2126*lin[0] + .7152*lin[1] + .0722*lin[2]
    levels = [0., .01, .05, .2, .5, .8]
    pairs = [explain._shade(p) for p in levels]
    for back, ink in pairs:
        a, b = sorted((light(back), light(ink)))
        assert (b + .05)/(a + .05) >= 4.5, (back, ink)
    shades = [light(back) for back, _ in pairs]
    assert all(a > 1.2*b for a, b in zip(shades, shades[1:])), shades


ODD = ['<b>&"\'', '\x1b]52;c;\x07', '\uffff\ufffe', '\u202egnp', '\ud800', ' ', '\n', 'a'*99,
       '🐈']

def test_r01_a_heat_map_is_well_formed_whatever_its_tokens_are():
    class Names(ByteTokenizer):
        special = {name: 97 + i for i, name in enumerate(ODD)}
    names = explain._Names(Names())
    tokens = [names[97 + i] for i in range(len(ODD))]
    T = len(tokens)
    w = torch.ones(T, T).tril()/torch.arange(1, T+1)[:, None]
    page = Parsed(AttentionPatterns({HARM: w[None]}, tokens)._repr_html_())
    image, = page.images
    svg = base64.b64decode(image['src'].partition('base64,')[2]).decode()
    texts = [''.join(t.itertext()) for t in xml.fromstring(svg).iter() if t.tag.endswith('text')]
    assert '<b>&"\'' in texts and len(texts) >= 2*T
    assert 'onerror' in page.text and not re.search('[\x00-\x08\x0e-\x1f]', page.text)


def test_the_cells_of_a_heat_map_are_its_weights():
    w = torch.tensor([[1., 0, 0], [.4, .6, 0], [.005, .045, .95]])
    svg = explain._cells(w, 10)
    paths = dict(re.findall('<path fill="(#\\w+)" d="([^"]+)"/>', svg))
    found = {colour: re.findall(r'M(\d+) (\d+)h', d) for colour, d in paths.items()}
    shades = explain._shades
    assert found == {shades[5]: [('0', '0'), ('20', '20')], shades[4]: [('10', '10')],
                     shades[3]: [('0', '10')], shades[1]: [('10', '20')]}
    assert re.findall('>(\\d+)</text>', svg) == ['100', '40', '60', '95']


def test_a_page_stays_small():
    model = made(n_layers=4, context_length=64)
    html = explain_text(model, ByteTokenizer(), TEXT*2, tokens=24)._repr_html_()
    assert len(html) < 400_000 and '<script' not in html


# ---- copies

def naive_copy(sample, text):
    best = ''
    for i in range(len(sample)):
        while i + len(best) < len(sample) and sample[i:i+len(best)+1] in text:
            best = sample[i:i+len(best)+1]
    return best


@pytest.mark.repeat(quick=2, exhaustive=20)
def test_a_copy_is_the_longest(seed, monkeypatch):
    "Also where documents lie over the borders of blocks, and hashes collide"
    rng = random.Random(seed)
    monkeypatch.setattr(explain, '_block', rng.choice([64, 100, 1 << 12]))
    if rng.random() < .5: monkeypatch.setattr(explain, '_base', np.uint64(1))
    def text(alphabet, n): return ''.join(rng.choices(alphabet, k=rng.randint(1, n)))
    for _ in range(40):
        alphabet = rng.choice(['ab', 'abcd', 'aé🐈\0', '\U0010ffff\ud800'])
        sample, docs = text(alphabet, 30), [text(alphabet, 150) for _ in range(4)]
        found = longest_copy(sample, docs)
        assert len(found.text) == max(len(naive_copy(sample, d)) for d in docs), (sample, docs)
        assert sample.startswith(found.text, found.start)
        assert found.text in docs[found.doc] if found.text else found.doc is None


def test_no_copy_goes_from_one_document_to_the_next():
    assert longest_copy('abcd', ['ab', 'cd']) == ('ab', 0, 0)
    assert longest_copy('abcd', 'abcd') == ('abcd', 0, 0)
    assert longest_copy('x', ['', 'abc']) == ('', 0, None) == longest_copy('x', [])
    assert longest_copy('xyz', ['', 'ay', 'zyz'])[:] == ('yz', 1, 2)


def test_a_copy_in_millions_of_characters_takes_linear_time():
    "Four million characters that nearly match everywhere: about a second; naively, an hour"
    began = time.process_time()
    found = longest_copy('ab'*5000 + 'c', ['ba'*2_000_000])
    assert len(found.text) == 10_000 and time.process_time() - began < 20


def test_chance_is_what_random_letters_share():
    rng = random.Random(0)
    for alphabet in ('ab', 'aaab', 'abcdefghijklmnop'):
        def letters(n): return ''.join(rng.choices(alphabet, k=n))
        found = [len(longest_copy(letters(200), letters(5000)).text) for _ in range(60)]
        expected = chance_copy(200, letters(5000))
        assert abs(sum(found)/60 - expected) < .1*expected
    assert chance_copy(5, 'aaaa') == 4 and chance_copy(1, 'ab') <= 1


# ---- samples of checkpoints

@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    set_seed(0)
    docs = [f'{TEXT} {i} ' for i in range(40)]
    train, valid = batches(docs, ByteTokenizer(), B=2, T=16, valid_rows=2)
    model = GPT(GPTConfig(**SMALL | dict(n_layers=1)))
    Trainer(model, Opt(model, adamw(lr=1e-2)), train, valid, callbacks=[], eval_every=0, dir=folder,
            save_every=2, save_seconds=0, keep=9, device='cpu').fit(6)
    return folder


def test_samples_are_those_of_each_checkpoint(run_dir):
    table = sample_checkpoints(run_dir, ['the', 'a'], 8, docs=[TEXT])
    assert [(r['step'], r['prompt']) for r in table] == [(s, p) for s in (2, 4, 6)
                                                        for p in ('the', 'a')]
    for r in table:
        model, tok = load_model(run_dir, which=r['step'])
        want = generate_text(model, tok, r['prompt'], 8, temperature(.8), top_k(50), seed=0)
        assert r['text'] == ''.join(want)
        if r['text']: assert r['copied'] == longest_copy(r['text'], [TEXT])
    greedy = sample_checkpoints(run_dir/'step_000004', ['the'], 8, filters=top_k(1))
    assert [r['step'] for r in greedy] == [4] and 'copied' not in greedy[0]
    html = table._repr_html_()
    assert html.count('<tr>') == 4 and html.count('copied:') == sum('copied' in r for r in table)


# ---- what is refused

def test_r11_texts_that_cannot_be_read():
    model, tok = made(), ByteTokenizer()
    for f in (token_probs, attention_patterns, logit_lens, explain_text, text_row):
        with refuses(ValueError, 'text is empty'): f(model, tok, '')
        with refuses(ValueError, 'text is empty'): f(model, tok, ['a', ''])
        with refuses(ValueError, 'has 61 tokens', 'holds 48'): f(model, tok, 'a'*60)
        with refuses(TypeError, 'text must be'): f(model, tok, 5)
        with refuses(TypeError, 'text must be'): f(model, tok, [5])
        with refuses(TypeError, 'model'): f(None, tok, 'a')
    with refuses(ValueError, 'k must be'): token_probs(model, tok, 'a', k=0)
    with refuses(ValueError, 'tokens must be'): logit_lens(model, tok, 'a', tokens=0)
    with refuses(ValueError, 'matches nothing'): attention_patterns(model, tok, 'a', 'blocks.*.atn')


class Headless(nn.Module):
    "A model that gives what it was told to"
    def __init__(self, out):
        super().__init__()
        self.out = out
    def forward(self, ids): return self.out


def test_models_that_cannot_be_explained():
    tok, row = ByteTokenizer(), dict(ids=torch.zeros(1, 2, dtype=torch.long))
    bare = Headless(torch.zeros(1, 2, V))
    assert_equal(next_token_probs(bare, row), torch.full((2, V), 1/V))
    with refuses(TypeError, 'Headless has no blocks and no norm and no head'):
        lens_logits(bare, row)
    page = explain_text(Headless(torch.zeros(1, 3, V)), tok, 'ab')
    assert page.lens is page.patterns is None and page.probs[1].prob == pytest.approx(1/V)
    for out in (torch.zeros(2, 2), 'no'):
        with refuses(TypeError, 'must return logits'): next_token_probs(Headless(out), row)
    for v in (math.nan, math.inf):
        with refuses(ValueError, 'not finite'): next_token_probs(Headless(bare.out + v), row)
    for wrong in ({}, dict(ids=torch.zeros(2, 2)), dict(ids=torch.zeros(1, 0)), dict(ids=3)):
        with refuses(ValueError, '(1,T)'): next_token_probs(bare, wrong)
    model = made()
    model.blocks = nn.ModuleList()
    with refuses(ValueError, 'no blocks'): lens_logits(model, row)


def test_blocks_that_are_no_states_of_one_stream():
    class Wider(nn.Module):
        def forward(self, x, seq): return torch.cat([x, x], 1)
    model = made()
    model.blocks = nn.ModuleList([Wider()])
    row = dict(ids=torch.zeros(1, 2, dtype=torch.long))
    with refuses(ValueError, '(1, 2, 16)', '(1, 4, 16)'): lens_logits(model, row)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_r11_copies_and_samples_that_make_no_sense(run_dir, tmp_path):
    with refuses(ValueError, 'sample must have'): longest_copy('', ['a'])
    with refuses(TypeError, 'sample'): longest_copy(b'a', ['a'])
    with refuses(TypeError, 'a document'): longest_copy('a', ['a', 5])
    for docs in (None, 5, {}, b'a'):
        with refuses(TypeError): longest_copy('a', docs)
    with refuses(ValueError, 'no characters'): chance_copy(3, [''])
    with refuses(ValueError, 'n must be'): chance_copy(0, ['a'])
    with refuses(TypeError, 'prompts'): sample_checkpoints(run_dir, 'the')
    with refuses(ValueError, 'prompts is empty'): sample_checkpoints(run_dir, [])
    with refuses(FileNotFoundError, 'no checkpoint'): sample_checkpoints(tmp_path, ['a'])
    with refuses(TypeError, 'filters'): sample_checkpoints(run_dir, ['a'], filters=None)

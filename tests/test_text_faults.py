"""Tokenizers and text of others: nothing foreign is touched, nothing is done in silence, what came
in goes out.

Each test names the entry it stands for, where there is one.
"""
import json
import os
import re
import stat
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from common import extra
from gptlab import bpe, tokenizer, tokenizers
from gptlab.bpe import (BPE, GPT2_PATTERN, PATTERNS, VocabView, check_pattern, count_pieces, learn,
                        learn_merges, show_vocab, split_pieces)
from gptlab.tokenizer import (BOS, ByteTokenizer, CharTokenizer, Tokenizer, TokenView, as_tokenizer,
                              check_tokenizer, fuzz_texts, load_tokenizer, read_limited,
                              show_tokens)
from gptlab.tokenizers import (AsciiTokenizer, ByT5Tokenizer, Comparison, HFTokenizer, LossReport,
                               RankTokenizer, SentencePieceTokenizer, StrippedAsciiTokenizer,
                               TokenViews, _learnable, add_special, bytes_per_token,
                               compare_tokenizers, encode_special, open_tokenizer,
                               renyi_efficiency, rustbpe_engine, show_all, tokenizers_engine,
                               truncate_vocab)
from kills import ends, start

DOCS = ['the cat sat on the mat\n', 'the dog looked at the cat\n'] * 50
HOSTILE = '\x1b]52;c;eA==\x07<img src=x onerror=alert(1)>|[a](b)`\u202e'
posix = pytest.mark.skipif(os.name == 'nt', reason='devices and signals of another kind')


def fails(kind, part): return pytest.raises(kind, match=re.escape(part))


@pytest.fixture(scope='module')
def small(): return BPE.train(DOCS, 300, special=(BOS, '</s>', '<pad>'))

@pytest.fixture(scope='module')
def ranks(small): return RankTokenizer(small.ranks, small.pattern, small.special)


# ---- processes

@posix
@pytest.mark.parametrize('how', ['TERM', pytest.param('KILL', marks=pytest.mark.exhaustive)])
def test_a16_workers_that_count_end_with_their_parent(tmp_path, how):
    import signal
    code = '''
from functools import partial
from gptlab import bpe
counts = bpe._spread(partial(bpe._count, bpe.GPT2_PATTERN), iter(lambda: ['one two '], None), 2)
next(counts)
print('go', flush=True)
for _ in counts: pass
'''
    (tmp_path/'run.py').write_text(code)
    victim = start([sys.executable, 'run.py'], tmp_path/'said.txt', cwd=tmp_path)
    try: victim.until(lambda: 'go' in victim.said(), 120)
    finally: victim.strike(getattr(signal, f'SIG{how}'))
    assert ends(victim.pid)


def _die(texts): os._exit(1)

@posix
def test_a16_a_worker_that_dies_is_said_and_those_left_end():
    with fails(OSError, 'a process that counts has died'):
        list(bpe._spread(_die, [['a'], ['b']], 2))


def test_a16_no_process_is_left_where_counting_is_given_up(monkeypatch):
    made, pool = [], bpe._pool
    monkeypatch.setattr(bpe, '_pool', lambda n: made.append(pool(n)) or made[-1])
    counts = bpe._spread(partial(bpe._count, GPT2_PATTERN), iter(lambda: ['one two '], None), 2)
    assert next(counts)['one'] == 1
    counts.close()
    assert not made[0]._processes


# ---- text that a trainer drops

def test_a20_lines_that_sentencepiece_passes_over_are_cut():
    giant = ' '.join(f'zyxw{i%97}qqq' for i in range(200_000))
    parts = list(_learnable([giant], (), 10**6))
    assert ''.join(parts) == giant and max(len(p.encode()) for p in parts) <= 10**6
    assert all(p[0] == ' ' for p in parts[1:])
    for c in ('A', '猫'):
        parts = list(_learnable([c*1_200_000], (), 10**6))
        assert ''.join(parts) == c*1_200_000 and max(len(p.encode()) for p in parts) <= 10**6
    assert list(_learnable(['one\ntwo'], (), 10**6)) == ['one\n', 'two']
    # the library's own sign takes its line with it, without a word
    assert list(_learnable(['one▅two\n'], (), 10**6)) == ['one', 'two\n']


def test_a20_what_sentencepiece_learns_from_them(monkeypatch):
    extra('sentencepiece')
    monkeypatch.setattr(tokenizers, '_line_bytes', 4000)
    train = partial(SentencePieceTokenizer.train, vocab_size=320, verbose=False,
                    hard_vocab_limit=False)
    for line in (' '.join(['zyxw qqq']*1000), 'zyxw ▅ qqq'*300):
        tok = train([*DOCS, line])
        assert any(b'zyxw' in b for b in tok.table), line[:20]
        check_tokenizer(tok, ['zyxw ▅', line[:50]], verbose=False)
    with fails(ValueError, 'the text is empty'): SentencePieceTokenizer.train([''], 300)
    with fails(ValueError, "the special token '<|bos|>' occurs"): train(['a <|bos|> b'])
    assert train([*DOCS, 'a <|bos|> b'], inside='text').special == {BOS: 1}


# ---- names in place of texts

class Table:
    "As pandas, polars and pyarrow have it: columns, and to go through it gives names"
    columns = ['text', 'source']
    def __iter__(self): return iter(self.columns)


TRAINERS = [BPE.train, CharTokenizer.train, count_pieces, partial(learn, n=1, pattern=GPT2_PATTERN),
            SentencePieceTokenizer.train, partial(rustbpe_engine, n=1, pattern=GPT2_PATTERN),
            partial(tokenizers_engine, n=1, pattern=GPT2_PATTERN)]

@pytest.mark.parametrize('train', TRAINERS, ids=range(len(TRAINERS)))
def test_a06_names_are_not_learnt_in_place_of_texts(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('a.txt').write_text('ship '*50)
    for given in ('a.txt', ['a.txt', 'b.txt'], (n for n in ['a.txt']), [str(tmp_path/'a.txt')]):
        with fails(ValueError, 'is the name of a file'): train(given)
    with fails(TypeError, 'names of its columns'): train(Table())
    with fails(TypeError, 'gives its keys'): train(dict(text='one two'))
    for path in (Path('a.txt'), [Path('a.txt')]):
        with pytest.raises(TypeError, match='read the file|read files first'): train(path)


def test_a06_nor_are_they_encoded(small):
    for tok in (small, ByteTokenizer(), StrippedAsciiTokenizer()):
        with fails(TypeError, 'names of its columns'): tok.encode_batch(Table())
        with fails(TypeError, 'gives its keys'): tok.encode_batch({'a': 'b'})
        with fails(TypeError, 'names of its columns'): tok.encode_iterable(Table())
        for measure in (bytes_per_token, renyi_efficiency):
            with fails(TypeError, 'names of its columns'): measure(tok, Table())
    pd = pytest.importorskip('pandas')
    with fails(TypeError, 'a DataFrame gives'): BPE.train(pd.DataFrame(dict(text=DOCS)))
    learnt = [BPE.train(docs, 300, verbose=False).merges for docs in (pd.Series(DOCS), DOCS)]
    assert learnt[0] == learnt[1]


# ---- memory before sense

def test_r06_a_token_of_many_bytes_is_refused_before_it_is_built():
    doubling = [(97, 97)] + [(255+k, 255+k) for k in range(1, 34)]
    with fails(ValueError, 'of 131,072 bytes is too much'): BPE(doubling)
    with fails(ValueError, 'is too much'):
        Tokenizer.from_dict(dict(tokenizer='gptlab.bpe.BPE', merges=doubling))
    assert max(map(len, BPE(doubling[:16]).ranks)) == 2**16
    many = [(97, 97)] + [(255+k, 255+k) for k in range(1, 15)]       # few are long, all are much
    many += [(270, 256+i) for i in range(14)] + [(a, 98+i) for a in (270, 271) for i in range(2)]
    assert BPE(many).vocab_size == 256 + len(many) + 1


@pytest.mark.parametrize('top', [3*10**8, 4*10**9])
def test_r06_ids_that_no_tokenizer_has(small, ranks, tmp_path, top):
    file = small.to_tokenizer_json(tmp_path/'tokenizer.json')
    good = json.loads(file.read_text(encoding='utf-8'))
    for k in range(2):
        d = json.loads(json.dumps(good))
        if k: d['added_tokens'][0]['id'] = top
        else: d['model']['vocab']['zq'] = top
        file.write_text(json.dumps(d), encoding='utf-8')
        for read in (open_tokenizer, BPE.from_tokenizer_json, RankTokenizer.from_tokenizer_json):
            with fails(ValueError, f'the id {top} is too large'): read(file)
        if extra('tokenizers'):
            for source in (file, d):
                with fails(ValueError, f'{top} is too large'): HFTokenizer(source)
    for kw in (dict(ranks={**ranks.ranks, b'zq': top}), dict(ranks=ranks.ranks,
                                                            special={'<s>': top})):
        with fails(ValueError, 'is too large'): RankTokenizer(**kw)
    (tmp_path/'a.tiktoken').write_bytes(ranks.to_tiktoken(tmp_path/'b').read_bytes()
                                        + b'enE= %d\n' % top)
    with fails(ValueError, 'is too large'): open_tokenizer(tmp_path/'a.tiktoken')


@posix
def test_r06_a_saved_tokenizer_reads_no_other_file(tmp_path, small, monkeypatch):
    monkeypatch.setattr(tokenizer, 'MAX_FILE_BYTES', 10**6)
    with fails(ValueError, '/dev/zero is larger'): read_limited('/dev/zero')
    other = small.to_tokenizer_json(tmp_path/'tokenizer.json')
    for source in ('/dev/zero', str(other)):
        (tmp_path/'tok.json').write_text(json.dumps(dict(
            tokenizer='gptlab.tokenizers.HFTokenizer', source=source)))
        for read in (load_tokenizer, open_tokenizer):
            with fails(ValueError, 'its source must be'): read(tmp_path/'tok.json')
    os.truncate(other, 10**6 + 1)                               # nothing is read of it
    for read in (load_tokenizer, open_tokenizer, BPE.from_tokenizer_json, BPE.from_tiktoken,
                 RankTokenizer.from_tiktoken, SentencePieceTokenizer.load):
        with fails(ValueError, 'is larger than 1,000,000 bytes'): read(other)


def test_r06_deep_nesting_is_an_error_like_others(tmp_path):
    (tmp_path/'deep.json').write_text('{"model":' + '['*100_000)
    for read in (load_tokenizer, open_tokenizer, BPE.from_tokenizer_json,
                 RankTokenizer.from_tokenizer_json):
        with fails(ValueError, 'deep.json'): read(tmp_path/'deep.json')
    deep = []
    for _ in range(100_000): deep = [deep]
    with pytest.raises(ValueError): Tokenizer.from_dict(dict(tokenizer='gptlab.bpe.BPE',
                                                             merges=deep))
    extra('tokenizers')
    with fails(ValueError, 'no tokenizer.json'): HFTokenizer(dict(model=deep))


def test_r06_bytes_of_a_number_are_no_model():
    extra('sentencepiece')
    for n in (10**12, None, ['a']):
        with fails(TypeError, 'bytes of a .model file'): SentencePieceTokenizer(n)


def test_numbers_in_files_are_whole_and_in_pairs(ranks):
    for merges in ([[1.5, 2]], [['65', 66]], [[1]], 'ab', {1: 2}, 5, [None]):
        with fails(ValueError, 'merges are pairs of ids'): BPE(merges)
    with fails(ValueError, 'ranks map'): RankTokenizer({**ranks.ranks, b'zq': 1e3})
    with fails(TypeError, 'special leads from names'): RankTokenizer(ranks.ranks, special=['<s>'])
    with fails(TypeError, 'special leads from names'): RankTokenizer(ranks.ranks,
                                                                     special={'<s>': '7'})
    with fails(ValueError, 'below 0'): RankTokenizer(ranks.ranks, special={'<s>': -1})
    with fails(ValueError, 'two tokens have one id'):
        RankTokenizer(ranks.ranks, special={'<s>': 1000, '</s>': 1000})


# ---- patterns

def test_r10_a_pattern_without_end_is_refused_when_the_tokenizer_is_made(capfd):
    endless = r'(?:a|aa)+(?=b)(?<!c)|[\s\S]'
    with fails(ValueError, 'needs more than'): BPE([], endless, [])
    assert capfd.readouterr().err == ''                         # no panic of Rust is seen


def test_r10_a_text_for_which_it_takes_too_long_ends_in_an_error():
    quadratic = r'a*b|[\s\S]'
    with fails(ValueError, 'needs more than'):
        list(split_pieces(quadratic, 'a'*200_000, patience=-39.9))
    assert len(list(split_pieces(quadratic, 'aab'*100))) == 100


@pytest.mark.parametrize('pattern', ['[a-z]+', r'\w+', r'\S+', r'[^\n]+', r'\p{L}+|\s+',
                                     r'[\x00-\x7f]', r'(?!Q)[\s\S]'])
def test_r10_a_pattern_that_leaves_text_out(pattern, small, tmp_path):
    for make in (partial(BPE, []), partial(RankTokenizer, small.ranks),
                 partial(BPE.train, DOCS, 300), partial(count_pieces, 'abc'),
                 partial(tokenizers_engine, DOCS, 1), partial(rustbpe_engine, DOCS, 1)):
        with fails(ValueError, 'leaves out part of the text'): make(pattern=pattern)
    file = small.to_tokenizer_json(tmp_path/'tokenizer.json')
    d = json.loads(file.read_text(encoding='utf-8'))
    d['pre_tokenizer']['pretokenizers'][0]['pattern']['Regex'] = pattern
    file.write_text(json.dumps(d), encoding='utf-8')
    for kind in (BPE, RankTokenizer):
        with fails(ValueError, 'leaves out part'): kind.from_tokenizer_json(file)


def test_r10_what_no_trial_shows_is_found_when_it_is_lost(monkeypatch):
    monkeypatch.setattr(bpe, 'fuzz_texts', lambda n: ['abc'])
    rare = r'[^\U0001F44D]'                                     # all but the thumb
    tok = BPE([], rare)
    assert tok.encode('abc') == [97, 98, 99]
    with fails(ValueError, 'leaves out part of the text'): tok.encode('ab👍c')
    monkeypatch.setattr(bpe, '_tiktoken_splits', lambda pattern: False)
    with fails(ValueError, 'leaves out part of the text'): tok.encode('ab👍c')
    bpe._check_coverage.cache_clear()


def test_r10_where_tiktoken_gives_up_on_long_runs_regex_splits(monkeypatch, capfd):
    pattern = r'(?:x|xx)+(?=!)|\w|[\s\S]'
    tok = BPE([(97, 98)], pattern)
    want = tok.encode('abab x!')
    monkeypatch.setattr(bpe, '_tiktoken_splits', lambda pattern: False)
    vars(tok)['_fast'] = type('Fast', (), dict(_encode_single_piece=tok._fast._encode_single_piece))
    assert tok.encode('abab x!') == want
    with bpe._no_stderr(): os.write(2, b'not seen')
    os.write(2, b'seen')
    assert capfd.readouterr().err == 'seen'


def test_patterns_of_ours_and_of_the_published_are_kept():
    for p in PATTERNS.values(): assert check_pattern(p) is p
    openai = pytest.importorskip('tiktoken_ext.openai_public')
    for p in (openai.r50k_pat_str, r'[^\n]+\n?|\n', r'\w+|\W', r'[\s\S]'): check_pattern(p)
    for bad in (5, None, b'a', [1]):
        with fails(ValueError, 'no regular expression'): check_pattern(bad)


# ---- saves

SAVES = [('save', 'tok.json'), ('to_tiktoken', 'a.tiktoken'), 
         ('to_tokenizer_json', 'tokenizer.json')]

@posix
@pytest.mark.parametrize('how, name', SAVES)
def test_a08_a24_every_save_keeps_links_devices_and_modes(small, ranks, tmp_path, monkeypatch, how,
                                                          name):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    for tok in (small, ranks):
        save = getattr(tok, how)
        assert save(f'~/{name}') == tmp_path/'home'/name
        whole = (tmp_path/'home'/name).read_bytes()
        if how == 'save': assert load_tokenizer(f'~/{name}').encode('the') == tok.encode('the')
        assert open_tokenizer(f'~/{name}').encode('the') == tok.encode('the')
        (tmp_path/'real').write_text('old')
        (tmp_path/'real').chmod(0o640)
        (tmp_path/'link').unlink(missing_ok=True)
        (tmp_path/'link').symlink_to('real')
        save(tmp_path/'link')
        assert (tmp_path/'link').is_symlink() and (tmp_path/'real').read_bytes() == whole
        assert stat.S_IMODE((tmp_path/'real').stat().st_mode) == 0o640
        save('/dev/null')
        assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
        with pytest.raises(OSError): save(tmp_path)             # a folder is not replaced
        with fails(ValueError, 'path is empty'): save('')


@posix
def test_a24_sentencepiece_too(tmp_path, monkeypatch):
    extra('sentencepiece')
    monkeypatch.setenv('HOME', str(tmp_path))
    tok = SentencePieceTokenizer.train(DOCS, 290, verbose=False)
    assert tok.to_sentencepiece('~/m.model').read_bytes() == tok.model
    again = SentencePieceTokenizer.load('~/m.model')
    assert again.model == tok.model and again.encode('the cat') == tok.encode('the cat')
    assert load_tokenizer(tok.save('~/tok.json')).model == tok.model


# ---- what others wrote is only text

def test_r01_names_of_specials_and_tokens_in_every_view(small):
    hostile = RankTokenizer({**BPE([]).ranks, HOSTILE[:2].encode(): 256}, special={HOSTILE: 257})
    ids = [257, 256, *hostile.encode(HOSTILE)]
    views = [show_tokens(hostile, ids), show_vocab(hostile), show_all({HOSTILE: hostile}, HOSTILE),
             TokenView([(HOSTILE, HOSTILE)]), VocabView({HOSTILE: {HOSTILE: HOSTILE}}),
             TokenViews({HOSTILE: TokenView([(1, HOSTILE)])}), hostile,
             compare_tokenizers({HOSTILE: hostile}, {HOSTILE: 'the cat'}, verbose=False),
             LossReport([dict(char='\x1b', becomes=HOSTILE, times=1, first=0)])]
    for view in views:
        assert not set(repr(view)) & set('\x1b\x07\u202e'), type(view)
        if hasattr(view, '_repr_html_'):
            page = view._repr_html_()
            assert '<img' not in page and not set(page) & set('\x1b\x07\u202e'), type(view)
        if hasattr(view, '_repr_markdown_'):
            head, line, *rows = view._repr_markdown_().splitlines()
            assert '<img' not in head + rows[0] and '](' not in rows[0].replace('\\]', '')
            bare = [re.sub(r'\\\|', '', row).count('|') for row in (head, line, *rows)]
            assert len(set(bare)) == 1 and len(rows) == 1
    for text in (f'{HOSTILE} a', HOSTILE):
        with pytest.raises(ValueError) as e: encode_special(hostile, text, (), refused='rest')
        assert '\x1b' not in str(e.value)
    assert '| nothing |' in Comparison()._repr_markdown_() and repr(Comparison()) == 'nothing'


# ---- what came in goes out

def _llama_like(hf):
    "Metaspace with bytes, as LLaMA's tokenizer.json has it"
    names = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256)), '▁', 'a', 'b', '▁a']
    model = hf.models.BPE({n: i for i, n in enumerate(names)}, [('▁', 'a')], byte_fallback=True,
                          unk_token='<unk>', fuse_unk=True)
    tk = hf.Tokenizer(model)
    tk.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    tk.decoder = hf.decoders.Sequence([hf.decoders.Replace('▁', ' '), hf.decoders.ByteFallback(),
                                       hf.decoders.Fuse(), hf.decoders.Strip(' ', 1, 0)])
    tk.add_special_tokens(['<s>', '</s>'])
    return tk


def test_p3_decode_gives_what_the_library_gives():
    tk = _llama_like(extra('tokenizers'))
    tok = HFTokenizer(tk)
    for t in ('a', 'ab é', ' a', '  a', 'a 猫\n', ''):
        ids = tok.encode(t)
        assert tok.decode(ids) == tk.decode(ids) and (t[:1] == ' ' or tok.decode(ids) == t)
        assert ''.join(tok.decode_stream(ids)) == tok.decode_bytes(ids).decode()
    assert tok.decode([1, *tok.encode('a')]) == 'a'
    assert tok.decode([1, *tok.encode('a'), 2], special=True) == '<s>a</s>'
    # a stream goes on behind a prompt: its space stays
    assert ''.join(tok.decode_stream(tok.encode('a'))) == ' a'
    check_tokenizer(tok, [*fuzz_texts(60), ' a', 'a'], verbose=False)
    assert sum(tok.byte_counts('a bé')) == 5


@pytest.mark.parametrize('kw', [dict(add_dummy_prefix=True), dict(add_dummy_prefix=True,
                                remove_extra_whitespaces=True), {}], ids=range(3))
def test_p3_sentencepiece_too(kw):
    extra('sentencepiece')
    tok = SentencePieceTokenizer.train(DOCS, 290, verbose=False, **kw)
    for t in ('the', ' the', '  the cat', 'Once', 'é猫'):
        ids = tok.encode(t)
        assert tok.decode(ids) == tok.sp.decode(ids) == tok.normal(t)
    assert tok.decode(tok.encode('Once')) == 'Once' and tok.lossy == bool(kw)
    check_tokenizer(tok, [*fuzz_texts(60), ' the', 'the'], verbose=False)


def test_marks_are_said_and_kept(small, ranks, tmp_path):
    assert (small.bos, small.eos, small.pad, small.end_ids) == (278, None, None, (278,))
    assert (ranks.bos, ranks.eos, ranks.pad) == (278, None, 280)
    for tok in (RankTokenizer(ranks.ranks, special=ranks.special),
                BPE(small.merges, special=small.special)):
        tok.mark(eos='</s>', pad='<pad>')
        tok.brought = dict(chat_template='{{ messages }}')
        again = load_tokenizer(tok.save(tmp_path/'tok.json'))
        for t in (tok, again, truncate_vocab(again, 270)):
            special = t.special
            assert (t.bos, t.eos, t.pad) == tuple(special[s] for s in (BOS, '</s>', '<pad>'))
            assert t.end_ids == (special['</s>'],) and t.brought == tok.brought
    assert add_special(RankTokenizer(ranks.ranks, special=ranks.special).mark(eos='</s>'),
                       '<|x|>').eos == ranks.special['</s>']
    byt5 = ByT5Tokenizer().mark(eos='<|im_end|>')
    assert (byt5.bos, byt5.eos, byt5.pad, byt5.end_ids) == (259, 260, 0, (260,))
    assert ByT5Tokenizer().eos is None and AsciiTokenizer().pad == 0
    assert BPE([], special=()).end_ids == ()
    byt5.brought = dict(end_ids=[260, 1])
    assert byt5.end_ids == (260, 1) and byt5.mark(eos='</s>').end_ids == (1,)
    assert byt5.mark(bos=None).bos is None
    with fails(ValueError, "there is no mark 'end'"): byt5.mark(end='</s>')
    with fails(ValueError, "eos='</t>' is no special"): byt5.mark(eos='</t>')
    assert 'marks' not in small.to_dict() and 'brought' not in small.to_dict()
    for odd in (5, dict(eos='none'), dict(x='</s>')):
        with pytest.raises(ValueError): Tokenizer.from_dict(small.to_dict() | dict(marks=odd))
    with pytest.raises(ValueError): Tokenizer.from_dict(small.to_dict() | dict(brought=[5]))
    class Masks(ByteTokenizer):
        def mask(self, ids): return ids
        def make(self): return self
    assert as_tokenizer(Masks()).eos is None                    # no slips for `mark`


def test_marks_of_libraries(small, tmp_path):
    tf, spm = extra('transformers'), extra('sentencepiece')
    file = str(small.to_tokenizer_json(tmp_path/'tokenizer.json'))
    fast = tf.PreTrainedTokenizerFast(tokenizer_file=file, bos_token=BOS, eos_token='</s>',
                                      pad_token='<pad>')
    tok = HFTokenizer(fast)
    again = load_tokenizer(tok.save(tmp_path/'tok.json'))
    for t in (tok, again):
        assert (t.bos, t.eos, t.pad) == tuple(small.special[s] for s in (BOS, '</s>', '<pad>'))
    assert HFTokenizer(file).eos is None and HFTokenizer(file).pad is not None
    tok = SentencePieceTokenizer.train(DOCS, 290, verbose=False, special=(), bos_id=1, eos_id=2)
    assert (tok.bos, tok.eos, tok.pad) == (1, 2, None)


# ---- nothing in silence

def test_a22_a_text_with_the_name_of_a_special_can_be_learnt_and_encoded(small):
    text = ['the <|bos|> is the first </s> is the last\n']*50
    with fails(ValueError, 'inside="text" learns it'): BPE.train(text, 300)
    with fails(ValueError, "inside='ids'"): BPE.train(text, 300, inside='ids')
    tok = BPE.train(text, 300, inside='text', verbose=False)
    assert tok.decode(tok.encode(text[0])) == text[0] and tok.bos not in tok.encode(text[0])
    for t in (tok, small, ByteTokenizer(), ByT5Tokenizer()):
        assert t.decode(t.encode(text[0])) == text[0] and t.bos not in t.encode(text[0])
        assert t.bos in encode_special(t, f'a{next(s for s, i in t.special.items() if i == t.bos)}')


def test_a_special_that_spells_a_token_of_text_is_not_exported_in_silence(tmp_path):
    for special in ('end', 'e'):
        tok = BPE([(101, 110), (256, 100)], special=[special])          # e+n, en+d
        assert tok.encode('end') == [257] and tok.special[special] == 258
        for t in (tok, RankTokenizer(tok.ranks, special=tok.special)):
            with fails(ValueError, 'spells a token of text'): t.to_tokenizer_json(tmp_path/'t.json')
        assert load_tokenizer(tok.save(tmp_path/'tok.json')).encode('end') == [257]


def test_p5_specials_are_shown_on_request(small):
    ids = small.encode('the', bos=True) + [small.special['</s>']]
    assert small.decode(ids) == 'the' and small.decode(ids, special=True) == '<|bos|>the</s>'
    assert ''.join(small.decode_stream(ids, special=True)) == '<|bos|>the</s>'
    assert ByteTokenizer().decode([240, 256, 72], special=True) == '�<|bos|>H'
    with fails(ValueError, "errors='nonsense'"): small.decode(ids, errors='nonsense')
    with fails(ValueError, 'outside the vocabulary'): small.decode([10**6], special=True)
    for odd in ('', 'ab', {}, None, 5):
        with fails(TypeError, 'one row of ids'): small.decode(odd)
        with fails(TypeError, 'one row of ids'): list(small.decode_stream(odd))
    with fails(TypeError, 'bos says whether'): small.encode('a', bos=297)


def test_p5_an_iterable_is_encoded_as_the_joined_text(small, ranks):
    texts = [*fuzz_texts(40), 'the cat ', 'sat', ' \n', '\n on', 'x'*200, ' ']*20
    own = BPE(small.merges, r'[^\n]+\n?|\n')
    for tok in (small, ranks, own, ByteTokenizer(), ByT5Tokenizer(), StrippedAsciiTokenizer()):
        assert list(tok.encode_iterable(iter(texts))) == tok.encode(''.join(texts))
        assert list(tok.encode_iterable([])) == []
        assert list(tok.encode_iterable('the')) == tok.encode('the')
    assert next(small.encode_iterable(['a'], bos=True)) == small.bos
    read = []
    lines = (read.append(i) or 'the cat sat on the mat\n' for i in range(10**6))
    for _ in zip(range(5), small.encode_iterable(lines)): pass
    assert len(read) < 10_000                                   # it reads no further than it must
    with fails(TypeError, 'expected text'): list(small.encode_iterable(['a', None]))
    with fails(TypeError, 'expected a text'): small.encode_iterable(5)


def test_p5_ids_that_are_no_order_of_merges(small):
    turned = {b: (i if i < 256 else 533-i) for b, i in small.ranks.items()}
    with fails(ValueError, 'no order of merges'): RankTokenizer(turned)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        RankTokenizer(small.ranks)
    with pytest.warns(UserWarning, match='1 of [0-9]+ tokens'):
        tok = RankTokenizer({**small.ranks, b'qqqq': 400})
    assert tok.encode('qqqq') == [400] and tok.encode(' qqqq') != [32, 400]


# ---- wrong calls

def test_r11_wrong_arguments_are_named(small):
    for f in (lambda: as_tokenizer(None), lambda: check_tokenizer(5), lambda: show_tokens(small, 5),
              lambda: check_tokenizer(small, 'abc'), lambda: show_vocab(small, 'x'),
              lambda: add_special(small, '<x>'), lambda: truncate_vocab(ByteTokenizer(), 257),
              lambda: compare_tokenizers([small], 'a'), lambda: compare_tokenizers({'a': small}, 5),
              lambda: show_all([small], 'a'), lambda: AsciiTokenizer(5),
              lambda: fuzz_texts('x'), lambda: learn_merges(['a'], 1),
              lambda: learn_merges({}, 'x'),
              lambda: BPE.train('ab', 260, engine=5), lambda: count_pieces('ab', workers='x'),
              lambda: BPE([], special=5), lambda: load_tokenizer(None), lambda: small.normal(5),
              lambda: AsciiTokenizer().report(5), lambda: AsciiTokenizer().byte_counts(5),
              lambda: Tokenizer.from_dict(small.to_dict(), parts=5),
              lambda: encode_special(small, 5)):
        with pytest.raises(TypeError) as e: f()
        assert len(str(e.value)) > 20 and 'object' not in str(e.value), e.value
    for f in (lambda: fuzz_texts(-1), lambda: fuzz_texts(alphabet=''), lambda: show_vocab(small, 0),
              lambda: count_pieces('ab', workers=-1), lambda: learn_merges({'ab': 1}, -1),
              lambda: renyi_efficiency(small, 'ab', -1), lambda: learn_merges({'ab': 1}, 1, b'ab'),
              lambda: AsciiTokenizer({'a': 1}), lambda: BPE([], special=['\ud800'])):
        with pytest.raises(ValueError): f()
    assert fuzz_texts(0) == [] and count_pieces('ab', workers=0) == {'ab': 1}

"""Everybody else's tokenizers, against their own libraries on random Unicode, and what damaged
files and wrong names get.

The published ranks are used where the machine has them already (TIKTOKEN_CACHE_DIR); ranks made
here stand in for them everywhere else.
"""
import base64, builtins, hashlib, json, math, os, pickle, random, re, unicodedata
from pathlib import Path

import pytest
import tiktoken, tiktoken.load
from pydoc_data.topics import topics

from common import extra
from gptlab.bpe import BPE, GPT2_PATTERN
from gptlab.cli import main
from gptlab.tokenizer import (BOS, ByteTokenizer, CharTokenizer, Tokenizer, check_tokenizer,
                              fuzz_texts, load_tokenizer, show_tokens)
from gptlab.tokenizers import (
    CHAT_SPECIAL, AsciiTokenizer, ByT5Tokenizer, HFTokenizer, RankTokenizer, SentencePieceTokenizer,
    StrippedAsciiTokenizer, _between, _rank_files, add_special, bytes_per_token, compare_tokenizers,
    encode_special, open_tokenizer, renyi_efficiency, text_kinds, tiktoken_named, truncate_vocab)

DOCS = [topics[k] for k in sorted(topics)]                     # Python's manual
FUZZ = fuzz_texts(300, seed=3) + DOCS[::15] + ['\0', '▁', 'a▁ ▁b', 'e\u0301\u0301', '👩\u200d💻',
                                               ' \n\t'*40, 'é'*300, '<|bos|> <s> <unk>']
NAMED = ['gpt2', 'r50k', 'p50k', 'cl100k', 'o200k']


def fails(kind, part): return pytest.raises(kind, match=re.escape(part))

def cached(name):
    "Has this machine the ranks already? No test may fetch them"
    full = name if name == 'gpt2' else f'{name}_base'
    folder = Path(os.environ.get('TIKTOKEN_CACHE_DIR', '/nowhere'))
    return all((folder/key).is_file() for key in _rank_files(full).values())

@pytest.fixture(scope='module')
def small(): return BPE.train(DOCS, 1024)

@pytest.fixture(scope='module')
def turned(small):
    "The same with the bytes in a shuffled order, a hole in the ids, and a mark between them"
    order = random.Random(0).sample(range(256), 256)
    ranks = {b: order[i] if i < 256 else i if i < 600 else i+2 for b, i in small.ranks.items()}
    return RankTokenizer(ranks, special={'<|endoftext|>': 600})


# ---- lossy ones

def test_the_check_knows_what_is_lost_on_purpose():
    class Shouts(ByteTokenizer):
        lossy = True
        def normal(self, text): return text.upper()
        def encode(self, text, bos=False): return super().encode(text.upper(), bos)

        def byte_counts(self, text):
            return _between(text, [i for i, c in enumerate(text, 1) for _ in c.upper().encode()])
    class Lies(Shouts):
        def normal(self, text): return text
    class Claims(Shouts): lossy = False
    class Forgets(Shouts):
        def byte_counts(self, text): return super().byte_counts(text)[:-1]
    class Miscounts(Shouts): byte_counts = Tokenizer.byte_counts
    assert check_tokenizer(Shouts())['texts'] == 200
    for kind, says in {Lies: 'comes back as', Claims: 'sets lossy = True',
                       Forgets: 'byte_counts says', Miscounts: 'byte_counts says'}.items():
        # whose capital is a byte shorter
        with fails(ValueError, says): check_tokenizer(kind(), FUZZ + ['ııı'])


def test_byt5_as_gradientlab_has_it():
    tok = ByT5Tokenizer()
    assert (tok.vocab_size == 512 and tok.encode('Aé') == [68, 198, 172]
            and {i for i in tok.special.values() if i > 2} == set(range(259, 512)))
    assert ([tok.special[n] for n in ('<pad>', '</s>', '<unk>', '<|im_start|>', '<|im_end|>',
                                      '<|extra_0|>', '<|extra_250|>')]
            == [0, 1, 2, 259, 260, 261, 511])
    assert (tok.decode([259, *tok.encode('Hi'), 260]) == 'Hi' and tok.token_bytes[3:259].eq(1).all()
            and tok.token_bytes.sum() == 256)
    with fails(ValueError, 'id 512 is outside'): tok.decode([512])
    check_tokenizer(tok, FUZZ)


def test_ascii_as_experimental_slm_has_it(tmp_path):
    tok = AsciiTokenizer()
    assert (tok.encode(' ~\n\té\0') == [2, 96, 97, 98, 1, 1] and tok.decode([0, 1, 2, 0]) == '\0 '
            and tok.vocab_size == 99 == len(set(tok.vocab.values())))
    assert tok.byte_counts('aé👍') == [1, 2, 4] and tok.normal('aé👍') == 'a\0\0'
    check_tokenizer(tok, FUZZ)
    d = json.loads(tok.save(tmp_path/'tok.json').read_text(encoding='utf-8'))
    assert (d['vocab']['a'] == tok.encode('a')[0]
            and AsciiTokenizer(d['vocab']).encode('Hi é') == tok.encode('Hi é'))
    rows = tok.report('é“é')
    assert (rows == [dict(char='é', becomes='\0', times=2, first=0),
                     dict(char='“', becomes='\0', times=1, first=1)] and 'U+00E9' in repr(rows))
    assert not tok.report('plain') and repr(tok.report('plain')) == 'nothing is lost'
    for bad in ({}, {'<PAD>': 0, 'a': 1}, {'<PAD>': 0, '<UNK>': 2}):
        with fails(ValueError, 'an ASCII vocabulary needs'): AsciiTokenizer(bad)
    with fails(ValueError, 'lone surrogate'): tok.encode('\ud83d')


def test_stripped_ascii_is_nfkd():
    tok = StrippedAsciiTokenizer()
    for t in FUZZ:
        assert tok.normal(t) == unicodedata.normalize('NFKD', t).encode('ascii', 'ignore').decode()
    assert (tok.normal('ﬁancée ½ 한') == 'fiancee 12 ' and tok.byte_counts('ﬁé한') == [3, 0, 5]
            and tok.byte_counts('한') == [])
    check_tokenizer(tok, FUZZ)


# ---- ranks

def test_ranks_in_any_order(small, turned):
    for t in FUZZ:
        assert ([turned.table[i] for i in turned.encode(t)]
                == [small.decode_bytes([i]) for i in small.encode(t)])
    other = tiktoken.Encoding('other', pat_str=GPT2_PATTERN, mergeable_ranks=turned.ranks,
                              special_tokens=turned.special)
    for t in FUZZ:
        assert turned.encode(t) == other.encode_ordinary(t) and turned.decode(turned.encode(t)) == t
    assert (turned.vocab_size == other.n_vocab and turned.bos == 600
            and turned.token_bytes[[600, 601]].sum() == 0)
    assert pickle.loads(pickle.dumps(turned)).encode('naïve') == turned.encode('naïve')
    check_tokenizer(turned, FUZZ)
    blank = ' '*300_000 + 'x'
    assert turned.decode(turned.encode(blank)) == blank


def test_ranks_that_cannot_be(small):
    lacking = {b: i for b, i in small.ranks.items() if b != b'\n'}
    with fails(ValueError, 'lack 1 of the 256 bytes, such as 10'): RankTokenizer(lacking)
    with fails(ValueError, 'two tokens have one id'): RankTokenizer({**small.ranks, b'zzzz': 3})
    with fails(ValueError, 'two tokens have one id'): RankTokenizer(small.ranks, special={'<s>': 3})
    for bad in ([1, 2], {'?': 1}, {b'a': 'b'}):
        with fails(ValueError, 'ranks map the bytes'): RankTokenizer(bad)


def test_a_truncated_one_is_rebuilt_from_its_file(small, turned, tmp_path):
    for tok in (small, turned):
        cut = truncate_vocab(tok, 512)
        assert (cut.vocab_size == 512 and type(cut) is type(tok)
                and sorted(cut.special.values()) == [511])
        raw = getattr(cut, 'table', None) or cut._raw
        kept = set(sorted(tok.ranks, key=lambda b: (len(b) > 1, tok.ranks[b]))[:511])
        assert (set(cut.ranks) == kept and sorted(cut.ranks.values()) == list(range(511))
                and len(raw) >= 511)
        check_tokenizer(cut, FUZZ)
        # nothing is fetched
        again = load_tokenizer(cut.save(tmp_path/'cut.json'))
        assert again.encode_batch(FUZZ) == cut.encode_batch(FUZZ) and again.vocab_size == 512
    assert ([truncate_vocab(turned, 512).decode_bytes([i])
             for i in truncate_vocab(turned, 512).encode(DOCS[3])]
            == [truncate_vocab(small, 512).decode_bytes([i])
                for i in truncate_vocab(small, 512).encode(DOCS[3])])
    for size in (256, 5000):
        with fails(ValueError, 'must lie between 257'): truncate_vocab(turned, size)


def test_ranks_from_files(small, turned, tmp_path):
    f = turned.to_tiktoken(tmp_path/'mine.tiktoken')
    again = RankTokenizer.from_tiktoken(f, special=turned.special)
    assert (again.encode_batch(FUZZ) == turned.encode_batch(FUZZ)
            and again.vocab_size == turned.vocab_size)
    assert (RankTokenizer.from_tiktoken(turned.ranks).bos == turned.vocab_size
            and open_tokenizer(f).encode('a b') == turned.encode('a b'))
    f.write_bytes(f.read_bytes()[:-6])
    with fails(ValueError, f'line {len(turned.ranks)}'): RankTokenizer.from_tiktoken(f)
    f.write_bytes(b'IQ== 0\n')
    with fails(ValueError, 'lack 255 of the 256 bytes'): RankTokenizer.from_tiktoken(f)


def test_tokenizer_json_there_and_back(small, turned, tmp_path):
    hf = extra('tokenizers')
    for k, tok in enumerate((small, turned, truncate_vocab(turned, 400))):
        f = tok.to_tokenizer_json(tmp_path/f'{k}.json')
        again, other = RankTokenizer.from_tokenizer_json(f), hf.Tokenizer.from_file(str(f))
        for t in FUZZ: assert again.encode(t) == tok.encode(t)
        # the last names a special
        for t in FUZZ[:-1]: assert other.encode(t).ids == tok.encode(t)
        assert again.special == tok.special and again.vocab_size == tok.vocab_size
        # bytes that exports have spoilt
        assert again.encode('a\n\té') == tok.encode('a\n\té')


def test_a_tokenizer_json_that_ranks_cannot_stand_for(small, tmp_path):
    f = small.to_tokenizer_json(tmp_path/'tok.json')
    good = json.loads(f.read_text(encoding='utf-8'))

    def spoilt(**kw):
        f.write_text(json.dumps(good | kw), encoding='utf-8')
        return f

    model = good['model']
    cases = {'do not follow': dict(model=model | dict(merges=model['merges'][::-1])),
             'changes the text': dict(normalizer=dict(type='NFKC')),
             'no plain BPE': dict(model=model | dict(type='WordPiece')),
             'not one pattern': dict(pre_tokenizer=dict(type='Whitespace')),
             'stand for text': dict(added_tokens=[good['added_tokens'][0] | dict(special=False)])}
    for says, kw in cases.items():
        with fails(ValueError, says): RankTokenizer.from_tokenizer_json(spoilt(**kw))
    f.write_text('{"model": ')
    with fails(ValueError, 'cut short'): RankTokenizer.from_tokenizer_json(f)
    f.write_text('{"other": 1}')
    with fails(ValueError, 'cannot be read as ranks'): RankTokenizer.from_tokenizer_json(f)
    with fails(ValueError, 'describes no tokenizer'): open_tokenizer(f)


# ---- by name

@pytest.mark.parametrize('name', NAMED)
def test_published_ranks(name, tmp_path):
    if not cached(name): pytest.skip(f'TIKTOKEN_CACHE_DIR holds no ranks of {name}')
    tok, other = (tiktoken_named(name),
                  tiktoken.get_encoding(name if name == 'gpt2' else f'{name}_base'))
    assert (tok.encode_batch(FUZZ) == [other.encode_ordinary(t) for t in FUZZ]
            and (tok.vocab_size, tok.bos) == (other.n_vocab, other.eot_token))
    cut = tiktoken_named(f'{name}_truncated_8192', special=[BOS])
    assert cut.vocab_size == 8192 and cut.bos == 8191
    check_tokenizer(cut, FUZZ)
    if name in ('gpt2', 'cl100k'):
        hf = extra('tokenizers').Tokenizer.from_file(
            str(tok.to_tokenizer_json(tmp_path/'tok.json')))
        for t in FUZZ: assert hf.encode(t).ids == tok.encode(t)
        check_tokenizer(tok, FUZZ[:100])


def test_ranks_that_cannot_be_fetched(monkeypatch, tmp_path):
    def offline(url): raise ConnectionError('no network here')
    monkeypatch.setattr(tiktoken.load, 'read_file', offline)
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    for name in NAMED:
        with pytest.raises(OSError) as e: tiktoken_named(name)
        for word in ('TIKTOKEN_CACHE_DIR', 'https://',
                     *_rank_files(name if name == 'gpt2' else f'{name}_base').values()):
            assert word in str(e.value)


def test_ranks_handed_in_as_a_file(monkeypatch, tmp_path, turned):
    "The file that the error asks for, under the name that it says, is the one that is read"
    import tiktoken_ext.openai_public as public
    data = b''.join(base64.b64encode(b) + b' %d\n' % i for b, i in turned.ranks.items())

    def made():
        return dict(name='r50k_base', pat_str=GPT2_PATTERN, special_tokens=turned.special,
                    mergeable_ranks=tiktoken.load.load_tiktoken_bpe(
                        next(iter(_rank_files('r50k_base'))), hashlib.sha256(data).hexdigest()))

    monkeypatch.setitem(public.ENCODING_CONSTRUCTORS, 'r50k_base', made)
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    (tmp_path/next(iter(_rank_files('r50k_base').values()))).write_bytes(data)
    assert (tiktoken_named('r50k').encode(DOCS[0]) == turned.encode(DOCS[0])
            and tiktoken_named('r50k_base_truncated_300').vocab_size == 300)


def test_unknown_names():
    for name, near in {'gpt3': 'gpt2', 'cl100k-base': 'cl100k', 'o200': 'o200k',
                       'gpt2_truncated_big': 'gpt2_truncated_8192'}.items():
        with fails(ValueError, f'did you mean {near!r}'): tiktoken_named(name)
    with fails(ValueError, "did you mean 'byt5'"): open_tokenizer('byte5')
    with fails(ValueError, 'there are bytes, byt5'): open_tokenizer('???')
    for missing in ('none.json', 'none.model', 'none.tiktoken'):
        with pytest.raises(FileNotFoundError): open_tokenizer(missing)


# ---- other libraries

def test_hugging_face_byte_level(small, turned, tmp_path):
    hf = extra('tokenizers')
    f = turned.to_tokenizer_json(tmp_path/'tokenizer.json')
    for source in (f, str(f), json.loads(f.read_text(encoding='utf-8')),
                   hf.Tokenizer.from_file(str(f))):
        tok = HFTokenizer(source)
        assert (not tok.lossy and tok.bos == turned.bos
                and tok.encode_batch(FUZZ) == turned.encode_batch(FUZZ))
    # a special's name is text
    assert tok.encode('<|endoftext|>') == turned.encode('<|endoftext|>')
    check_tokenizer(tok, FUZZ)
    other = hf.Tokenizer.from_file(str(f))
    other.enable_truncation(3)
    other.enable_padding(length=9)
    # what it was set to elsewhere does not cut here
    assert HFTokenizer(other).encode(DOCS[0]) == turned.encode(DOCS[0])
    assert len(other.encode(DOCS[0]).ids) == 9


def test_ai_labs_bpe_changes_the_text_and_says_so():
    hf = extra('tokenizers')
    tk = hf.Tokenizer(hf.models.BPE(unk_token='<unk>'))
    tk.normalizer, tk.pre_tokenizer, tk.decoder = (
        hf.normalizers.NFKC(), hf.pre_tokenizers.ByteLevel(add_prefix_space=True),
        hf.decoders.ByteLevel())
    tk.train_from_iterator(DOCS, hf.trainers.BpeTrainer(
        vocab_size=600, special_tokens=['<unk>', '<eos>', '<pad>'],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok = HFTokenizer(tk)
    assert (tok.lossy and tok.special == {'<eos>': 1, '<pad>': 2}
            and tok.encode('ﬁve') == tk.encode('ﬁve').ids)
    for t in FUZZ[1:]:
        assert (tok.normal(t) == ' '*(not unicodedata.normalize('NFKC', t)[:1].isspace())
                + unicodedata.normalize('NFKC', t) or t[:1].isspace())
    check_tokenizer(tok, FUZZ)


def test_metaspace_with_and_without_bytes():
    hf = extra('tokenizers')
    for fallback in (False, True):
        tk = hf.Tokenizer(hf.models.BPE(unk_token='<unk>', byte_fallback=fallback))
        tk.pre_tokenizer = hf.pre_tokenizers.Metaspace()
        tk.decoder = hf.decoders.Sequence([hf.decoders.Replace('▁', ' '),
                                           hf.decoders.ByteFallback(), hf.decoders.Fuse(),
                                           hf.decoders.Strip(' ', 1, 0)])
        names = ['<unk>', '<s>'] + [f'<0x{b:02X}>' for b in range(256)]*fallback
        tk.train_from_iterator(DOCS, hf.trainers.BpeTrainer(
            vocab_size=700, special_tokens=names[:2], initial_alphabet=[], show_progress=False))
        if fallback:
            d = json.loads(tk.to_str())
            n = len(d['model']['vocab'])
            d['model']['vocab'] |= {s: n+i for i, s in enumerate(names[2:])}
            tk = hf.Tokenizer.from_str(json.dumps(d))
        tok = HFTokenizer(tk)
        assert (tok.lossy and tok.bos == 1
                and tok.normal('naïve 👍') == ('naïve 👍' if fallback else 'na�ve �'))
        assert sum(tok.byte_counts('naïve 👍')) == 11
        check_tokenizer(tok, FUZZ)
    tk.decoder = hf.decoders.WordPiece()
    with fails(ValueError, 'cannot write a text back'): HFTokenizer(tk)
    with fails(ValueError, 'no tokenizer.json'): HFTokenizer({'a': 1})
    with fails(ValueError, "not 'rust'"): HFTokenizer(tk, engine='rust')


def test_a_fast_tokenizer_of_transformers(turned, tmp_path):
    tf = extra('transformers')
    fast = tf.PreTrainedTokenizerFast(tokenizer_file=str(
        turned.to_tokenizer_json(tmp_path/'tokenizer.json')))
    tok = HFTokenizer(fast)
    for t in FUZZ[:-1]:
        assert fast(t, add_special_tokens=False)['input_ids'] == tok.encode(t) == turned.encode(t)
    check_tokenizer(tok, FUZZ)


def test_fastokens_gives_the_same_ids(turned, small, tmp_path):
    extra('fastokens')
    extra('tokenizers')
    whole = RankTokenizer({b: 255-i if i < 256 else i for b, i in small.ranks.items()},
                          special={'<|endoftext|>': len(small.ranks)})
    for k, tok in enumerate((small, whole, truncate_vocab(turned, 500))):
        fast = HFTokenizer(tok.to_tokenizer_json(tmp_path/f'{k}.json'), engine='fastokens')
        for t in fuzz_texts(1000, seed=k) + FUZZ + [f'a {s} b' for s in tok.special]:
            assert fast.encode(t) == tok.encode(t)
        check_tokenizer(fast, FUZZ)
    assert open_tokenizer(fast.save(tmp_path/'fast.json')).engine == 'fastokens'
    with fails(ValueError, "use engine='tokenizers'"):
        HFTokenizer(turned.to_tokenizer_json(tmp_path/'hole.json'), engine='fastokens')


def test_sentencepiece(tmp_path):
    spm = extra('sentencepiece')
    for kind in ('bpe', 'unigram'):
        tok = SentencePieceTokenizer.train(DOCS, 700, kind)
        assert not tok.lossy and tok.bos == 1 and tok.vocab_size == 700
        check_tokenizer(tok, FUZZ)
        own = spm.SentencePieceProcessor(model_proto=tok.model)
        for t in FUZZ:
            if '▁' not in t: assert tok.encode(t) == own.encode(t)
    (tmp_path/'m.model').write_bytes(tok.model)
    assert (SentencePieceTokenizer.load(tmp_path/'m.model').encode('a b')
            == open_tokenizer(tmp_path/'m.model').encode('a b') == tok.encode('a b'))
    assert 'model' in json.loads(tok.save(tmp_path/'sp.json').read_text())
    marked = SentencePieceTokenizer.train(DOCS, 700, special=CHAT_SPECIAL)
    assert (set(CHAT_SPECIAL) <= set(marked.special)
            and marked.encode('<|user_start|>') != [marked.special['<|user_start|>']])
    with fails(ValueError, 'no SentencePiece model'): SentencePieceTokenizer(tok.model[:100])
    with fails(ValueError, 'could not learn 90000'): SentencePieceTokenizer.train(DOCS[:5], 90000)
    with fails(ValueError, 'the text is empty'): SentencePieceTokenizer.train('', 700)


def test_sentencepiece_that_tidies():
    extra('sentencepiece')
    tidy = SentencePieceTokenizer.train(DOCS, 700, 'unigram', normalization_rule_name='nmt_nfkc',
                                        add_dummy_prefix=True, remove_extra_whitespaces=True,
                                        byte_fallback=False)
    assert tidy.lossy and tidy.normal(' ﬁve   ① ') == 'five 1' and '�' in tidy.normal('a 猫 b')
    for t in FUZZ: assert tidy.normal(t) in ('', tidy.decode(tidy.sp.encode(t)))
    for t in ('ﬁve   ① ', 'a 猫 b', '   '):
        assert sum(tidy.byte_counts(t)) == len(t.encode())*bool(tidy.encode(t))
    check_tokenizer(tidy, FUZZ)


def test_a_library_that_is_missing(monkeypatch):
    real = builtins.__import__
    def without(name, *args, **kw):
        if name in ('tokenizers', 'sentencepiece', 'fastokens'): raise ImportError(name)
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', without)
    for f in (lambda: HFTokenizer({}), lambda: SentencePieceTokenizer(b'x'),
              lambda: SentencePieceTokenizer.train('ab', 300)):
        with fails(ImportError, 'pip install "gptlab[tokenizers]"'): f()


# ---- marks within a text

def test_marks_as_tiktoken_takes_them(turned):
    tok = add_special(turned, ['<|user|>', '<|user|>>', '<|end|>'])
    other = tiktoken.Encoding('other', pat_str=tok.pattern, mergeable_ranks=tok.ranks,
                              special_tokens=tok.special)
    # where one begins another, the longer is taken here
    rng, names = random.Random(0), [n for n in tok.special if n != '<|user|>>']
    for t in fuzz_texts(200):
        t = ''.join(rng.choice([*names, t[:5], ' hi']) for _ in range(6))
        some = set(rng.sample(names, 2))
        assert (encode_special(tok, t, allowed=some)
                == other.encode(t, allowed_special=some, disallowed_special=()))
        assert encode_special(tok, t, allowed=()) == other.encode_ordinary(t) == tok.encode(t)
        assert encode_special(tok, t) == other.encode(t, allowed_special='all')
        if any(n in t for n in set(names) - some):
            with pytest.raises(ValueError): encode_special(tok, t, some, refused='rest')
            with pytest.raises(ValueError): other.encode(t, allowed_special=some)
    assert encode_special(tok, '<|user|>>') == [tok.special['<|user|>>']]
    with fails(ValueError, '<|end|> stands at position 3'):
        encode_special(tok, 'ab <|end|>', allowed=(), refused=['<|end|>'])
    with fails(ValueError, "no special '<|usr|>'; did you mean '<|user|>'"):
        encode_special(tok, 'x', allowed=['<|usr|>'])
    assert encode_special(BPE([], special=()), 'no marks') == list(b'no marks')
    for any_tok in (ByteTokenizer(), ByT5Tokenizer(),
                    BPE.train(DOCS[:5], 300, special=CHAT_SPECIAL)):
        mark = next(iter(any_tok.special))
        assert (encode_special(any_tok, f'a{mark}b')
                == any_tok.encode('a') + [any_tok.special[mark]] + any_tok.encode('b'))


# ---- metrics

def test_entropy_and_bytes():
    abc = CharTokenizer('abcd')
    assert (renyi_efficiency(abc, 'abcd')[0] == 2
            and renyi_efficiency(abc, 'abcd')[1] == pytest.approx(2/math.log2(5))
            and renyi_efficiency(abc, 'aab', 2)[0] == pytest.approx(-math.log2(5/9)))
    assert (renyi_efficiency(abc, 'aab', 1)[0]
            == pytest.approx(renyi_efficiency(abc, 'aab', 1.0001)[0], abs=1e-3))
    with fails(ValueError, 'no ids'): renyi_efficiency(StrippedAsciiTokenizer(), '猫')
    assert (bytes_per_token(AsciiTokenizer(), 'é猫') == 2.5
            and math.isnan(bytes_per_token(StrippedAsciiTokenizer(), '猫')))
    kinds = text_kinds(500)
    assert (list(kinds) == ['English', 'code', 'numbers', 'scripts']
            and all(0 < len(t) <= 500 for t in kinds.values()))


def test_the_table(small):
    table = compare_tokenizers({'bpe': small, 'ascii': AsciiTokenizer()}, dict(a='abc', b='é'))
    assert ([r['unused'] for r in table]
            == [1024-len(set(small.encode('abc') + small.encode('é'))), 99-4]
            and [r['lost'] for r in table] == [0, 1] and table[1]['b'] == 2.)
    lines = table._repr_markdown_().splitlines()
    assert (len(lines) == 4 and len(repr(table).splitlines()) == 3
            and all(x.count('|') == lines[0].count('|') for x in lines))
    with fails(ValueError, 'at least one tokenizer'): compare_tokenizers({}, 'abc')
    with fails(ValueError, 'not empty'): compare_tokenizers({'bpe': small}, '')
    assert repr(show_tokens(AsciiTokenizer(), 'a é')) == 'a| |\\x00'


# ---- on the command line

def test_the_command_makes_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'book.txt').write_text('One day.<|endoftext|>'.join(DOCS[:30]), encoding='utf-8')
    assert (main(['tokenizer', 'train', '--text', 'book.txt', '--vocab', '500', '--pattern',
                  'cl100k', '--chat']) == 0)
    tok = load_tokenizer('tok.json')
    assert tok.vocab_size == 500 and set(CHAT_SPECIAL) == set(tok.special) and tok.bos is not None
    assert '500 ids' in capsys.readouterr().out
    assert (main(['tokenizer', 'show', 'tok.json', 'the <|bos|> é']) == 0
            and '14 bytes' in capsys.readouterr().out)
    assert main(['tokenizer', 'compare', 'tok.json', 'byt5', 'bytes', '--text', 'book.txt']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ([x.split()[0] for x in lines] == ['tokenizer', 'tok.json', 'byt5', 'bytes']
            and lines[0].split()[3] == 'text')
    assert (main(['tokenizer', 'train', '--text', 'book.txt', '--vocab', '300', '--pattern',
                  r'\w+|\W', '--out', 'own.json']) == 0
            and load_tokenizer('own.json').pattern == r'\w+|\W')


def test_what_the_command_says_to_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.txt').write_text('one two three')
    for argv, code, says in ((['tokenizer', 'shwo'], 2, "did you mean 'tokenizer show'"),
                             (['tokenizer', 'show', 'byte5', 'x'], 1, "did you mean 'byt5'"),
                             (['tokenizer', 'show', 'no.json', 'x'], 1, 'no.json'),
                             (['tokenizer', 'train', '--text', 'a.txt', '--vocab', '100'], 1,
                              'need 257'), (['tokenizer', 'train', '--text', 'a.txt', '--pattern',
                                             'gtp2'], 1, 'gpt2'),
                             (['tokenizer', 'train', '--text', 'a.txt', '--pattern', '(('], 1,
                              'no regular expression'),
                             (['tokenizer', 'compare', 'bytes', '--text', 'no.txt'], 1, 'no.txt')):
        assert main(argv) == code
        err = capsys.readouterr().err
        assert says in err and err.startswith('gptlab: ') and err.count('\n') == 1
    # nothing half-written
    assert not list(tmp_path.glob('*.json'))
    for argv in (['tokenizer'], ['tokenizer', '--help']):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert 'tokenizer compare' in out and '  sample' not in out


# ---- one name is one name; whatever is opened is named when it fails

def test_one_str_is_one_name(small):
    tok = add_special(truncate_vocab(RankTokenizer(small.ranks), 512), '<|user|>')
    assert tok.special == {'<|user|>': 512}
    assert encode_special(tok, 'a<|user|>', allowed='<|user|>')[-1] == 512
    with fails(ValueError, 'is no name'): add_special(tok, [None])
    extra('sentencepiece')
    assert SentencePieceTokenizer.train(DOCS[:20], 400, special='<|bos|>').special == {'<|bos|>': 1}

def test_whole_numbers_only(small):
    with fails(TypeError, 'whole number'): truncate_vocab(small, '512')

def test_ranks_need_a_pattern_that_tiktoken_knows(small):
    with fails(ValueError, 'not to tiktoken'): RankTokenizer(small.ranks, r'\X')

@pytest.mark.parametrize('content', ['5', 'null', '{"tokenizer": 5}', '{"model": 5}', '['*200_000],
                         ids=range(5))
def test_an_odd_file_is_named(content, tmp_path):
    extra('tokenizers')
    (tmp_path/'odd.json').write_text(content)
    with fails(ValueError, 'odd.json'): open_tokenizer(tmp_path/'odd.json')

def test_what_to_open():
    assert open_tokenizer(Path('bytes')).vocab_size == 257
    for name in ('no.json', 'no.model', 'no.tiktoken', '~/no.json'):
        with fails(FileNotFoundError, name): open_tokenizer(name)
    extra('tokenizers')
    with fails(TypeError, 'got NoneType'): HFTokenizer(None)

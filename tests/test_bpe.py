"""BPE: what a first reader of the chapter does not need. Odd input, long runs, other processes,
other libraries, and many random texts.

The plain trainer and the plain encoder of the chapter stand here again as oracles.
"""
import inspect, io, json, pickle, random, re
from collections import Counter
from functools import partial

import pytest
import regex
import tiktoken_ext.openai_public
from pydoc_data.topics import topics

from common import extra
from gptlab import bpe, tokenizers
from gptlab.bpe import (BPE, CL100K_PATTERN, GPT2_PATTERN, NANOCHAT_PATTERN, PATTERNS, as_names,
                        as_vocab_size, check_pattern, count_pieces, find_pattern, learn_merges,
                        merge_pair, show_vocab)
from gptlab.core import show_progress
from gptlab.tokenizer import BOS, ByteTokenizer, check_tokenizer, fuzz_texts, load_tokenizer
from gptlab.tokenizers import (RankTokenizer, _atomic, _symbols, compare_tokenizers,
                               rustbpe_engine, tokenizers_engine)

DOCS = [topics[k] for k in sorted(topics)]                     # Python's manual
MANUAL = '\n'.join(DOCS)
TEXT = 'naïve 👍'
FUZZ = fuzz_texts(400, seed=7) + ["'ſ'S it'ſ DON'T", '1234567890 ٣٣٣٣', '\0a\0', 'e\u0301'*50,
                                  '👩\u200d💻'*9, ' \t\r\n \u2003\x1c\x85 x', '  \n',
                                  'a  b   c \n\n d']
VISIBLE = sorted(range(256), key=_symbols().__getitem__)   # the order of bytes in `tokenizers`
each_pattern = pytest.mark.parametrize('pattern', PATTERNS.values(), ids=PATTERNS)


def fails(kind, part): return pytest.raises(kind, match=re.escape(part))


@pytest.fixture(scope='module')
def counts(): return Counter(regex.findall(GPT2_PATTERN, MANUAL))

@pytest.fixture(scope='module')
def trained(): return BPE.train(DOCS, 1024)


# ---- learning merges

def naive_merges(counts, n, order=range(256)):
    rank = {b: i for i, b in enumerate(order)}
    key = lambda i: rank.get(i, i)
    words, merges = {tuple(p.encode()): c for p, c in counts.items()}, []
    for new in range(256, 256+n):
        pairs = Counter()
        for w, c in words.items():
            for p in zip(w, w[1:]): pairs[p] += c
        if not pairs: break
        merges.append(min(pairs, key=lambda p: (-pairs[p], key(p[0]), key(p[1]))))
        words = {tuple(merge_pair(w, merges[-1], new)): c for w, c in words.items()}
    return merges


def random_counts(seed):
    "Few letters and small counts, so that ties abound"
    rng = random.Random(seed)
    letters = 'abcé'[:rng.randint(1,4)]
    return Counter(''.join(rng.choices(letters, k=rng.randint(1,12)))
                   for _ in range(rng.randint(1,30)))


def test_the_incremental_trainer_learns_what_the_naive_one_does(counts):
    assert merge_pair([1,1,1,1,1], (1,1), 9) == [9,9,1]
    for seed in range(400):
        assert learn_merges(random_counts(seed), 30) == naive_merges(random_counts(seed), 30)
    for seed in range(100):
        order = random.Random(seed).sample(range(256), 256)
        assert (learn_merges(random_counts(seed), 30, order)
                == naive_merges(random_counts(seed), 30, order))
    assert learn_merges(counts, 20) == naive_merges(counts, 20)
    with fails(ValueError, 'each of the 256 bytes once'): learn_merges(counts, 20, range(255))


def test_no_two_merges_spell_the_same_bytes():
    # the constructor would refuse them
    for seed in range(400): BPE(learn_merges(random_counts(seed), 60))


# ---- patterns

@each_pattern
def test_a_pattern_matches_all_text_as_tiktoken_does(pattern):
    for t in FUZZ: assert ''.join(regex.findall(pattern, t)) == t
    # its merges cross no border, so the borders show in its ids
    tok = BPE.train(FUZZ*3, 700, pattern)
    for t in FUZZ: assert tok.encode(t) == plain_encode(tok, t)
    assert find_pattern(next(k for k in PATTERNS if PATTERNS[k] == pattern)) == pattern


def test_patterns_are_those_of_their_models():
    source = inspect.getsource(tiktoken_ext.openai_public)
    assert CL100K_PATTERN in source and 'N}{1,2}' in NANOCHAT_PATTERN
    whole  = PATTERNS['o200k']
    for branch in re.findall(r'r"""(.*?)""",\n', source[
        source.index('def o200k_base'):source.index('def o200k_harmony')]):
        assert branch in whole
        whole = whole.replace(branch, '', 1)
    assert set(whole) == {'|'}
    for t in FUZZ + DOCS[::9]:
        assert (regex.findall(GPT2_PATTERN, t)
                == regex.findall(tiktoken_ext.openai_public.r50k_pat_str, t))
    assert (regex.findall(PATTERNS['punctuation'], 'wait... (no)')
            == ['wait', '.', '.', '.', ' ', '(', 'no', ')'])
    with fails(ValueError, "did you mean 'cl100k'"): find_pattern('cl100')


def test_bad_patterns_are_refused_with_the_reason():
    with fails(ValueError, 'leaves out part of the text'): BPE.train('two words', 300, r'\w+')
    with fails(ValueError, 'write them (?:…)'): count_pieces('two words', r'(\w)|\W')
    with fails(ValueError, 'missing )'): BPE.train('two words', 300, '(')
    with fails(ValueError, 'no regular expression'): BPE([], pattern=3)


# ---- counting

@each_pattern
def test_no_piece_is_cut_in_two(pattern):
    parts = list(bpe._parts(MANUAL + '\n'.join(FUZZ), 20_000))
    assert len(parts) > 5 and ''.join(parts) == MANUAL + '\n'.join(FUZZ)
    whole = Counter(regex.findall(pattern, MANUAL + '\n'.join(FUZZ)))
    assert (bpe._split_long(whole) == count_pieces(parts, pattern)
            == count_pieces(''.join(parts), pattern))


def test_a_pattern_of_ones_own_gets_whole_documents(monkeypatch):
    monkeypatch.setattr(bpe, '_parts', lambda doc, size: [doc[:1], doc[1:]])   # any cut would show
    assert (count_pieces(['one two\nthree', 'four'], r'[^\n]+\n?|\n')
            == {'one two\n': 1, 'three': 1, 'four': 1})
    assert [d for load in bpe._loads(DOCS, 100_000, split=False) for d in load] == DOCS


def test_processes_count_the_same(counts):
    parts = list(bpe._parts(MANUAL, 50_000))
    assert (sum(bpe._spread(partial(bpe._count, GPT2_PATTERN), iter([parts[:4], parts[4:]]), 2),
                Counter()) == counts)
    with fails(ValueError, 'leaves out'):
        list(bpe._spread(partial(bpe._count, r'\w+'), [['a b']], 2))


def test_few_loads_are_in_memory_at_a_time():
    pulled = []
    def loads():
        for i in range(40):
            pulled.append(i)
            yield [f'word{i} ']
    for done, c in enumerate(bpe._spread(partial(bpe._count, GPT2_PATTERN), loads(), 2), 1):
        assert c['word'] == 1 and len(pulled) <= done + 5
    assert done == 40


def test_where_no_process_can_start_this_one_counts(monkeypatch, counts):
    def none(*args): raise OSError('no processes here')
    monkeypatch.setattr(bpe, 'ProcessPoolExecutor', none)
    parts = list(bpe._parts(MANUAL, 50_000))
    with pytest.warns(UserWarning, match='counting in one process'):
        assert (sum(bpe._spread(partial(bpe._count, GPT2_PATTERN), [parts[:4], parts[4:]], 2),
                    Counter()) == counts)


def test_only_a_large_text_goes_to_processes(monkeypatch):
    seen = []

    def spread(f, loads, workers):
        loads = list(loads)
        seen.append((len(loads), workers))
        return map(f, loads)

    monkeypatch.setattr(bpe, '_spread', spread)
    assert count_pieces('one two', workers=3) == {'one': 1, ' two': 1} and not seen
    # a million characters each; eight are counted here
    docs = ['one two ' * 2**17] * 10
    assert (count_pieces(docs, workers=3)
            == {'one': 10, ' two': 10 * 2**17, ' one': 10 * (2**17 - 1), ' ': 10})
    assert seen == [(1, 3)]


def test_a_piece_without_end():
    assert {len(p): n for p, n in count_pieces('ACGT'*610).items()} == {100: 24, 40: 1}
    assert BPE.train('ab'*50_000, 300).vocab_size < 300


# ---- BPE

def test_merges_that_cannot_be():
    tok = BPE([(116,104), (256,101)])                              # t+h, th+e
    assert tok.ranks[b'the'] == 257 and tok.special == {BOS: 258} and tok.vocab_size == 259
    assert BPE([], special='<|end|>').special == {'<|end|>': 256}  # one name need not be a list
    with fails(ValueError, 'merge 0 joins 104 and 300'): BPE([(104,300)])
    with fails(ValueError, 'same bytes'): BPE([(97,97), (256,97), (97,256)])
    with fails(ValueError, 'one name'): BPE([], special=['a', 'a'])


def test_training(trained, capsys):
    assert trained.vocab_size == 1024 and BPE.train(DOCS[::-1], 1024).merges == trained.merges
    assert BPE.train(iter(DOCS), 1024).merges == trained.merges    # documents may be gone once read
    assert BPE.train('ab ab', 300).vocab_size == 259
    assert 'vocab_size is 259, not 300' in capsys.readouterr().out
    assert BPE.train('ab', 257).merges == []


def test_bad_texts_and_sizes():
    with fails(ValueError, 'need 257'): BPE.train('ab', 100)
    with fails(ValueError, 'need 259'):
        BPE.train('ab', 258, special=(BOS, '<|user|>', '<|assistant|>'))
    for nothing in ('', [], [''], iter(())):
        with fails(ValueError, 'text is empty'): BPE.train(nothing)
    with fails(TypeError, 'got int'): BPE.train(['two', 3])
    with fails(TypeError, 'read the file first'): BPE.train(3)
    with fails(TypeError, 'decode bytes first'): BPE.train([b'two'])
    with fails(ValueError, 'lone surrogate'): BPE.train(['two', '\ud83d'])


def test_specials_are_reserved_and_never_learnt():
    special = (BOS, '<|user|>', '<|assistant|>')
    tok = BPE.train(DOCS, 500, special=special)
    assert (tok.vocab_size == 500 and len(tok.merges) == 241
            and tok.special == {BOS: 497, '<|user|>': 498, '<|assistant|>': 499})
    assert (tok.token_bytes[list(tok.special.values())].sum() == 0
            and tok.decode([497, 104, 498]) == 'h')
    with fails(ValueError, "special token '<|user|>' occurs in the text, at 'some text "
                           "<|user|>hello'; boundaries=['<|user|>'] cuts"):
        BPE.train(['fine', 'some text <|user|>hello'], 500, special=special)
    joined = '<|endoftext|>'.join(DOCS)
    assert (BPE.train(joined, 500, boundaries=['<|endoftext|>']).merges
            == BPE.train(DOCS, 500).merges)
    assert BPE.train(BOS.join(DOCS), 500, boundaries=[BOS]).merges == BPE.train(DOCS, 500).merges
    # what nobody cut out is text like any other
    assert b'endoftext' in BPE.train(joined, 2000).ranks


# ---- encoding

def plain_encode(tok, text):
    order, out = {p: 256+k for k, p in enumerate(tok.merges)}, []
    for piece in regex.findall(tok.pattern, text):
        row = list(piece.encode())
        while (new := min((order.get(p, 10**9) for p in zip(row, row[1:])), default=10**9)) < 10**9:
            row = merge_pair(row, tok.merges[new-256], new)
        out += row
    return out


def test_tiktoken_agrees_with_the_plain_encoder(trained):
    for t in fuzz_texts(500) + FUZZ + DOCS[:40:10]:
        assert trained.encode(t) == plain_encode(trained, t)
    assert trained.encode(BOS, bos=True) == [trained.bos] + plain_encode(trained, BOS)
    for bad in ('\ud83d', 'a\udc00b'):
        for special in ('text', 'ids', 'raise'):
            with fails(ValueError, 'lone surrogate'): trained.encode(bad, special=special)
    for bad in (b'abc', ['a'], None):
        with pytest.raises(TypeError): trained.encode(bad)
    check_tokenizer(trained)


def test_long_runs():
    tok = BPE.train('aaaaaaaaaaaaaaaa ab', 260)                    # a+a, aa+aa, …
    ids = tok.encode('a'*2**20)
    assert (tok.decode(ids) == 'a'*2**20
            and set(ids) == {max(tok.ranks.values(), key=lambda i: tok._raw[i].count(b'a'))})
    # tiktoken's own regex overflows its stack here
    blank = 'a' + ' '*10**6 + 'b'
    ids = tok.encode(blank)
    assert tok.decode(ids) == blank and tok.encode_batch(['hi', blank]) == [tok.encode('hi'), ids]
    for n in (50_000, 100_000, 150_000): assert tok.encode(' \n'*n) == plain_tail(tok, ' \n'*n)


def plain_tail(tok, text):
    return [i for p in regex.findall(tok.pattern, text)
            for i in tok._fast._encode_single_piece(p.encode())]


def test_names_of_specials_in_a_text():
    tok = BPE.train(DOCS, 500, special=(BOS, '<|a|>', '<|a|>b'))
    text = f'x{BOS}y<|a|>bz<|a|>'
    assert tok.encode(text) == plain_encode(tok, text)
    # the longest name
    assert (tok.encode(text, special='ids')
            == [120, tok.bos, 121, tok.special['<|a|>b'], 122, tok.special['<|a|>']])
    assert (tok.encode(f'x{BOS}<|a|> y', special='ids')
            == tok._fast.encode(f'x{BOS}<|a|> y', allowed_special='all'))
    assert (tok.encode('x y', special='raise') == tok.encode('x y')
            == BPE(tok.merges, special=()).encode('x y', special='ids'))
    assert tok.encode('a'+' '*10**6+BOS, special='ids') == tok.encode('a'+' '*10**6) + [tok.bos]
    with fails(ValueError, "the special token '<|bos|>' occurs"): tok.encode(text, special='raise')
    with fails(ValueError, "expected 'text', 'ids' or 'raise'"): tok.encode(text, special='all')


def test_batches_and_other_processes(trained):
    assert trained.encode_batch(DOCS, bos=True) == [trained.encode(d, bos=True) for d in DOCS]
    # long ones go to threads
    assert (trained.encode_batch([MANUAL]*3) == [trained.encode(MANUAL)]*3
            and trained.encode_batch([]) == [])
    for n in (1, 10**5):
        with fails(ValueError, 'lone surrogate'): trained.encode_batch(['fine'*n, '\ud83d'])
    again = pickle.loads(pickle.dumps(trained))
    assert again.encode(TEXT) == trained.encode(TEXT) and '_fast' not in trained.__getstate__()


def test_saved_and_loaded(trained, tmp_path):
    again = load_tokenizer(trained.save(tmp_path/'bpe.json'))
    assert (isinstance(again, BPE) and again.merges == trained.merges
            and again.pattern == trained.pattern and again.special == trained.special)


def test_more_merges_make_shorter_rows(trained):
    rows = [sum(map(len, BPE(trained.merges[:n]).encode_batch(DOCS)))
            for n in (0, 16, 64, 256, 767)]
    assert rows[0] == sum(len(d.encode()) for d in DOCS) and rows == sorted(rows, reverse=True)


def test_a_vocabulary_is_shown_escaped(trained):
    page = show_vocab(BPE([(60,115), (256,99)], special=['<b>&']))._repr_html_()
    assert '<sc' not in page and '&lt;sc' in page and '&lt;b&gt;&amp;' in page
    assert (set(show_vocab(trained, 10).groups)
            >= {'first', 'last', 'longest', 'only blanks', 'special'})
    assert (show_vocab(trained, 3).groups['first']
            == {i: bpe._label(trained._raw[i]) for i in (256, 257, 258)})
    assert ([bpe._label(b) for b in (b' a\n', b'\xe2\x80', b'\0', b'-'*64)]
            == ['·a⏎', 'e2 80', '\\x00', '-'*40 + '… (64 bytes)'])
    assert repr(show_vocab(ByteTokenizer())) == 'special: <|bos|>'


# ---- other libraries

@each_pattern
def test_library_engines_learn_the_same_merges(pattern):
    docs = DOCS + FUZZ
    ours = BPE.train(docs, 1500, pattern)
    extra('rustbpe')
    assert BPE.train(docs, 1500, pattern, engine=rustbpe_engine).merges == ours.merges
    extra('tokenizers')
    assert (tokenizers_engine(docs, 1243, pattern)
            == learn_merges(count_pieces(docs, pattern), 1243, VISIBLE))


def test_every_merge_of_a_corpus_equals_that_of_the_libraries(tmp_path, counts):
    "All there are, until every piece is whole; gigabpe reads lines and knows one pattern"
    every, shown = learn_merges(counts, 10**6), learn_merges(counts, 10**6, VISIBLE)
    extra('rustbpe')
    assert rustbpe_engine([MANUAL], len(every), GPT2_PATTERN) == every
    extra('tokenizers')
    assert tokenizers_engine([MANUAL], len(shown), GPT2_PATTERN) == shown
    giga = pytest.importorskip('gigabpe')
    (tmp_path/'text').write_text(MANUAL, encoding='utf-8')
    _, merges = giga.train_bpe([str(tmp_path/'text')], 4000, special_tokens=[],
                               pretokenizer='bytelevel', threads=1)
    raw = bpe._spell(learn_merges(count_pieces(MANUAL.splitlines(keepends=True)), len(merges),
                                  VISIBLE))
    show = _symbols()
    assert ([a+b for a, b in merges] == [''.join(show[b] for b in r) for r in raw[256:]]
            and len(merges) > 3000)


def test_a_missing_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'rustbpe', None)
    with fails(ImportError, 'pip install "gptlab[tokenizers]"'):
        BPE.train('a text', 300, engine=rustbpe_engine)


def test_every_byte_has_a_visible_character(trained, tmp_path):
    table = _symbols()
    assert len(set(table)) == 256 and not any(c.isspace() for c in table)
    assert ({c: table[ord(c)] for c in 'a \n\té'}
            == {'a': 'a', ' ': 'Ġ', '\n': 'Ċ', '\t': 'ĉ', 'é': 'é'})
    d = json.loads(trained.to_tokenizer_json(tmp_path/'tokenizer.json').read_text(encoding='utf-8'))
    assert (d['model']['vocab']['Ġthe'] == trained.ranks[b' the']
            and len(d['model']['vocab']) + 1 == trained.vocab_size)


@each_pattern
def test_tokenizers_gives_the_same_ids(pattern, tmp_path):
    tok  = BPE.train(DOCS + FUZZ, 1500, pattern)
    file = tok.to_tokenizer_json(tmp_path/'tokenizer.json')
    assert BPE.from_tokenizer_json(file).merges == tok.merges
    other = extra('tokenizers').Tokenizer.from_file(str(file))
    for t in FUZZ + DOCS[::10] + ['\n\t\r\n', ''.join(map(chr, range(2048)))]:
        assert other.encode(t).ids == tok.encode(t) and other.decode(tok.encode(t)) == t
    assert (other.get_vocab_size(), other.token_to_id(BOS)) == (tok.vocab_size, tok.bos)
    assert (other.encode('naïve\n\ttext').tokens
            == [''.join(_symbols()[b] for b in tok._raw[i]) for i in tok.encode('naïve\n\ttext')])


def test_transformers_gives_the_same_ids(trained, tmp_path):
    other = extra('transformers').PreTrainedTokenizerFast(
        tokenizer_file=str(trained.to_tokenizer_json(tmp_path/'tokenizer.json')))
    for t in FUZZ[:100] + DOCS[::20]: assert other.encode(t) == trained.encode(t)


def test_a_group_that_tokenizers_would_read_otherwise():
    assert _atomic(CL100K_PATTERN) == CL100K_PATTERN.replace(r'\p{N}{1,3}+', r'(?>\p{N}{1,3})')
    assert (_atomic(r'[^\s\]]{2}+|a{1,}+|\.{3}+|\p{L}+')
            == r'(?>[^\s\]]{2})|(?>a{1,})|(?>\.{3})|\p{L}+')
    with fails(ValueError, 'write (?>…)'): _atomic(r'(?:ab){1,3}+|[\s\S]')


def test_ranks_go_and_come(trained, tmp_path):
    import tiktoken.load
    file  = trained.to_tiktoken(tmp_path/'mine.tiktoken')
    assert tiktoken.load.load_tiktoken_bpe(str(file)) == trained.ranks
    for ranks in (file, str(file), trained.ranks):
        assert BPE.from_tiktoken(ranks, trained.pattern).to_dict() == trained.to_dict()
    assert BPE.from_tiktoken(file, special=()).special == {}
    for seed in range(50):
        tok = BPE(learn_merges(random_counts(seed), 40))
        assert BPE.from_tiktoken(tok.ranks).merges == tok.merges


def test_ranks_that_are_none_of_ours(trained, tmp_path):
    turned = {b: (i+1)%256 if i < 256 else i for b, i in trained.ranks.items()}
    with fails(ValueError, 'the bytes are not ids 0 to 255'): BPE.from_tiktoken(turned)
    with fails(ValueError, 'are missing in these ranks'):
        BPE.from_tiktoken({b: i for b, i in trained.ranks.items() if i != 300})
    with fails(ValueError, "no merge of two lower ranks makes the token b'abc'"):
        BPE.from_tiktoken({**BPE([]).ranks, b'abc': 256})
    (tmp_path/'bad').write_text('IQ== 0\nIg==\n')
    for kind in (BPE, RankTokenizer):
        with fails(ValueError, 'is no file of ranks; line 2'): kind.from_tiktoken(tmp_path/'bad')
    with pytest.raises(FileNotFoundError): BPE.from_tiktoken(tmp_path/'none')


def test_a_tokenizer_json_that_is_none_of_ours(trained, tmp_path):
    file = trained.to_tokenizer_json(tmp_path/'tokenizer.json')
    good = json.loads(file.read_text(encoding='utf-8'))

    def spoilt(change):
        d = json.loads(json.dumps(good))
        change(d)
        file.write_text(json.dumps(d))
        return file

    def says(part, change):
        with fails(ValueError, part): BPE.from_tokenizer_json(spoilt(change))
    says('in another order', lambda d: d['model']['merges'].reverse())
    says('changes the text', lambda d: d.update(normalizer=dict(type='NFC')))
    says('draws merges at random', lambda d: d['model'].update(dropout=.1))
    for pre in (dict(type='Whitespace'),
                dict(type='ByteLevel', add_prefix_space=True, use_regex=True),
                dict(type='ByteLevel', add_prefix_space=False, use_regex=False)):
        says('not one pattern', partial(dict.update, pre_tokenizer=pre))
    says('not one pattern',
         lambda d: d['pre_tokenizer']['pretokenizers'][0].update(behavior='MergedWithNext'))
    says('not one pattern', lambda d: d['pre_tokenizer']['pretokenizers'][1].update(use_regex=True))
    # bytes of bytes
    says('not one pattern', lambda d: d['pre_tokenizer']['pretokenizers']
                                      .append(d['pre_tokenizer']['pretokenizers'][1]))
    says('not one pattern', lambda d: d['pre_tokenizer'].update(pretokenizers=[]))
    says('specials', lambda d: d['added_tokens'][0].update(id=5000))
    says('cannot be read as a BPE over bytes', lambda d: d.pop('model'))
    says('the bytes are not ids 0 to 255', lambda d: d['model']['vocab'].update({'a': 98, 'b': 97}))
    assert (BPE.from_tokenizer_json(spoilt(lambda d: d.update(
        pre_tokenizer=dict(type='ByteLevel', add_prefix_space=False, use_regex=True)))).pattern
            == GPT2_PATTERN)
    # older still
    assert (BPE.from_tokenizer_json(spoilt(lambda d: d.update(
        pre_tokenizer=dict(type='ByteLevel', add_prefix_space=False)))).pattern == GPT2_PATTERN)
    # the older form
    assert (BPE.from_tokenizer_json(spoilt(lambda d: d['model'].update(
        merges=[' '.join(m) for m in d['model']['merges']]))).merges == trained.merges)
    file.write_text('{"model": ')
    with fails(ValueError, 'cannot be read'): BPE.from_tokenizer_json(file)


@pytest.mark.parametrize('pattern', [r'[^\n]*\n?', r'\w*|[\s\S]', r'(?=a)|[\s\S]'])
def test_patterns_that_match_nothing(pattern):
    "tiktoken panics on an empty text with such a pattern"
    with fails(ValueError, 'the pattern'): BPE.train('one two\nthree a\n', 300, pattern)


# ---- what a user may pass by mistake

@pytest.mark.parametrize('pattern', [r'\X', r'(?V1)[\s\S]', r'\m'])
def test_a_pattern_that_only_regex_knows_is_refused(pattern):
    with fails(ValueError, 'not to tiktoken'): BPE([], pattern)

def test_the_name_of_a_pattern_is_no_pattern():
    with fails(ValueError, "find_pattern('cl100k')"): BPE.train('abc', 257, 'cl100k')

@pytest.mark.parametrize('size', ['1024', None, 1024.5])
def test_vocab_size_is_a_whole_number(size):
    with fails(TypeError, 'vocab_size must be a whole number'): BPE.train('abc', size)

def test_vocab_size_may_come_from_torch():
    import torch
    assert BPE.train('abc abc', torch.tensor(258)).merges == BPE.train('abc abc', 258).merges

def test_what_a_tokenizer_of_ones_own_may_check():
    assert (as_names('<|a|>') == as_names(n for n in ['<|a|>']) == ['<|a|>']
            and as_names(()) == as_names('') == [])
    assert as_vocab_size(True) == 1 and check_pattern(CL100K_PATTERN) is CL100K_PATTERN
    with fails(ValueError, 'special token'): BPE.train('a<|a|>b', 300, special=iter(['<|a|>']))

@pytest.mark.parametrize('special', [[None], [''], [5]])
def test_a_special_has_a_name(special):
    with fails(ValueError, 'is no name'): BPE([], special=special)

def test_where_tiktoken_gives_up_regex_goes_on():
    class PanicException(BaseException): pass                  # as pyo3 names it
    class GivesUp:
        def encode_ordinary(self, text): raise PanicException
        def _encode_single_piece(self, raw): return whole._fast._encode_single_piece(raw)
    whole, tok = (BPE.train(MANUAL[:20_000], 300) for _ in range(2))
    vars(tok)['_fast'] = GivesUp()
    assert tok.encode(TEXT) == whole.encode(TEXT)


# ---- how far it is

class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.fixture
def screen(monkeypatch):
    "A terminal on which progress shows at once"
    made = Terminal()
    shown = partial(show_progress, delay=0, file=made)
    for module in (bpe, tokenizers): monkeypatch.setattr(module, 'show_progress', shown)
    return made


def test_training_shows_how_far_it_is(screen):
    docs = ['the cat sat on the mat'] * 50
    tok = BPE.train(docs, 270)
    assert 'of 1100 characters' in screen.getvalue() and 'of 13 merges' in screen.getvalue()
    lines = screen.getvalue().split('\r')
    assert {line.split(':')[0] for line in lines if line.strip()} == {'counting', 'merging'}
    assert not lines[-1].strip()                               # erased at the end
    silent = len(screen.getvalue())
    assert BPE.train(docs, 270, verbose=False).merges == tok.merges
    count_pieces(docs, verbose=False)
    assert len(screen.getvalue()) == silent


@pytest.mark.parametrize('text', [iter(['the cat']*9), (d for d in ['the cat']*9)])
def test_who_reads_once_is_not_counted_first(screen, text):
    BPE.train(text, 258)
    assert ' characters, 00:00 so far' in screen.getvalue()


def test_other_engines_show_what_they_read(screen):
    def engine(docs, n, pattern):
        return learn_merges(Counter([next(docs), *docs]), n, verbose=False)
    BPE.train(['ab', 'abc'], 258, engine=engine)
    assert 'reading: ' in screen.getvalue() and ' documents, ' in screen.getvalue()
    before = len(screen.getvalue())
    BPE.train(['ab', 'abc'], 258, engine=engine, verbose=False)
    assert len(screen.getvalue()) == before


def test_silence_is_complete(screen, capsys):
    BPE.train('ab ab', 300, verbose=False)
    assert not screen.getvalue() and capsys.readouterr() == ('', '')


def test_comparing_shows_how_far_it_is(screen):
    toks = dict(bytes=ByteTokenizer(), none=BPE([]))
    table = compare_tokenizers(toks, 'abc')
    assert 'comparing: ' in screen.getvalue() and 'of 2 tokenizers' in screen.getvalue()
    before = len(screen.getvalue())
    assert compare_tokenizers(toks, 'abc', verbose=False) == table
    assert len(screen.getvalue()) == before


# ---- what is private to others

def test_private_names_of_others_are_still_there(trained):
    assert bpe._encode_piece(trained._fast, b'the') == trained.encode('the')
    assert 'cl100k_base' in tokenizers._published()
    assert not bpe._gave_up(ValueError('no text'))
    blanks = 'a' + ' '*10**6 + 'b'
    with pytest.raises(BaseException) as caught: trained._fast.encode_ordinary(blanks)
    assert bpe._gave_up(caught.value) or isinstance(caught.value, ValueError)

"""What a first reader of the tokenizer chapters does not need: odd input, long runs, other processes, and many random texts.

The plain trainer and the plain encoder of the chapter on BPE stand here again as oracles.
"""
import json, pickle, random, re
from collections import Counter
from functools import partial
from itertools import cycle, islice

import pytest
import regex
import torch
from pydoc_data.topics import topics

from gptlab import bpe
from gptlab.bpe import BPE, GPT2_PATTERN, count_pieces, learn_merges, merge_pair
from gptlab.core import test_tensor as same_tensor
from gptlab.tokenizer import BOS, ByteTokenizer, CharTokenizer, Tokenizer, TokenView, check_tokenizer, fuzz_texts, load_tokenizer, show_tokens, utf8

DOCS = [topics[k] for k in sorted(topics)]                     # Python's manual
MANUAL = '\n'.join(DOCS)
TEXT = 'naïve 👍'
TOK = ByteTokenizer()


def fails(kind, part): return pytest.raises(kind, match=re.escape(part))


@pytest.fixture(scope='module')
def counts(): return Counter(regex.findall(GPT2_PATTERN, MANUAL))

@pytest.fixture(scope='module')
def trained(): return BPE.train(DOCS, 1024)


# ---- text and ids

def test_only_text_has_bytes():
    assert utf8('é') == b'\xc3\xa9'
    with fails(TypeError, 'got bytes'): utf8(b'abc')
    with fails(TypeError, 'encode_batch'): TOK.encode(['a', 'b'])
    with fails(ValueError, 'at position 3'): utf8('abc\ud83d')


def test_ids_come_as_list_array_or_tensor():
    row = [256, 72, 105]
    for ids in (row, tuple(row), iter(row), torch.tensor(row), torch.tensor(row).numpy(), [torch.tensor(i) for i in row]):
        assert TOK.decode_bytes(ids) == b'Hi'
    with fails(ValueError, 'id 300 is outside the vocabulary of 257'): TOK.decode_bytes([1, 300])
    with fails(ValueError, 'id -1 is outside'): TOK.decode_bytes([-1])
    for ids in (torch.zeros(2, 2).long(), [1.5], 7):
        with fails(TypeError, 'one row of ids'): TOK.decode_bytes(ids)


def test_a_beginning_that_does_not_exist():
    with fails(ValueError, 'pass bos=False'): BPE([], special=()).encode('a', bos=True)
    assert TOK.encode('Hi', bos=True) == [256, 72, 105] and TOK.bos == 256 and BPE([], special=()).bos is None
    with pytest.raises(NotImplementedError): Tokenizer().encode('a')
    with pytest.raises(NotImplementedError): Tokenizer().decode_bytes([1])


def test_bytes_that_are_no_text():
    assert TOK.decode([240, 159, 72]) == '�H' and TOK.decode([240, 159, 72], errors='ignore') == 'H'
    with pytest.raises(UnicodeDecodeError): TOK.decode([240, 159, 72], errors='strict')


# ---- streaming

def test_a_stream_may_be_endless_and_may_be_cut():
    assert ''.join(islice(TOK.decode_stream(cycle(TOK.encode('tick…tock…'))), 13)) == 'tick…tock…tic'
    assert list(TOK.decode_stream(TOK.encode(TEXT))) == ['n', 'a', 'ï', 'v', 'e', ' ', '👍']
    assert list(TOK.decode_stream(TOK.encode(TEXT)[:-1]))[-1] == '�'                      # cut within the thumb


def test_broken_bytes_stream_as_they_decode():
    rng = random.Random(0)
    for _ in range(1000):
        row = rng.choices([65, 128, 159, 195, 226, 240, 255], k=9)
        assert ''.join(TOK.decode_stream(row)) == TOK.decode(row)


# ---- saving

def test_only_tokenizers_are_read_back(tmp_path):
    f = TOK.save(tmp_path/'tok.json')
    assert load_tokenizer(f).encode(TEXT) == TOK.encode(TEXT) and TOK.to_dict() == {'tokenizer': 'gptlab.tokenizer.ByteTokenizer'}
    with fails(ValueError, 'not the settings'): Tokenizer.from_dict({**TOK.to_dict(), 'colour': 1})
    with fails(ValueError, 'not a tokenizer'):  Tokenizer.from_dict(dict(tokenizer='gptlab.core.atomic_write', path='x', data=''))
    for d in ({}, [1], 'tok'):
        with fails(ValueError, 'is missing'): Tokenizer.from_dict(d)
    with pytest.raises(FileNotFoundError): load_tokenizer(tmp_path/'none.json')
    for content in (b'{"tokenizer": "gpt', b'\xff\xfe', b''):
        f.write_bytes(content)
        with fails(ValueError, 'cut short'): load_tokenizer(f)


def test_a_tokenizer_of_ones_own_is_handed_in(tmp_path):
    class Mine(ByteTokenizer): pass
    f = Mine().save(tmp_path/'mine.json')
    with pytest.raises(ValueError): load_tokenizer(f)
    assert isinstance(load_tokenizer(f, parts=dict(Mine=Mine)), Mine)


# ---- characters

def test_alphabets():
    abc = CharTokenizer.train(['the cat', 'sat'])
    assert abc.alphabet == ' acehst' == CharTokenizer.train('the cat sat').alphabet and abc.vocab_size == 8 and abc.bos == 7
    assert abc.encode('a hat', bos=True) == [7, 1, 0, 4, 1, 6]
    with fails(ValueError, "'z' (U+007A) at position 4"): abc.encode('the zoo')
    with fails(ValueError, 'lone surrogate'): abc.encode('a\ud83d')
    with fails(ValueError, 'alphabet is empty'): CharTokenizer.train('')
    with fails(ValueError, 'a character twice'): CharTokenizer('abca')


def test_characters_keep_the_contract():
    chars = CharTokenizer.train(MANUAL)
    check_tokenizer(chars)
    check_tokenizer(chars, DOCS)
    same_tensor(CharTokenizer('aé👍').token_bytes, torch.tensor([1, 2, 4, 0]))


# ---- looking

def test_tokens_are_shown_escaped():
    ids = TOK.encode('<b>naïve</b>\n\t👍', bos=True)
    view = show_tokens(TOK, ids)
    assert isinstance(view, TokenView) and repr(view).startswith('<|bos|>|<|b') and view.pieces[6] == (195, r'\xc3')
    assert '&lt;' in view._repr_html_() and '<b>' not in view._repr_html_()
    assert repr(view) == repr(show_tokens(TOK, torch.tensor(ids))) == repr(show_tokens(TOK, iter(ids)))


# ---- fuzzing

def test_fuzz_is_the_same_for_everybody():
    assert fuzz_texts() == fuzz_texts() != fuzz_texts(seed=1)
    assert len(fuzz_texts(7)) == 7 and fuzz_texts()[0] == ''
    assert set(''.join(fuzz_texts(alphabet='ab'))) == set('ab')


def test_the_check_finds_each_kind_of_fault():
    class Quiet(ByteTokenizer):
        def encode(self, text, bos=False): return super().encode(text.lower(), bos)
    class Endless(ByteTokenizer):
        def encode(self, text, bos=False): return super().encode(text, bos) + [256]*bos
    class Batch(ByteTokenizer):
        def encode_batch(self, texts, bos=False): return [[] for _ in texts]
    class Stream(ByteTokenizer):
        def decode_stream(self, ids): return iter(self.decode([i]) for i in ids)
    class Sizes(ByteTokenizer):
        token_bytes = torch.tensor([1]*257)
    class Short(ByteTokenizer):
        token_bytes = torch.tensor([1]*256)
    class Twos(ByteTokenizer):
        token_bytes = torch.tensor([2]*256 + [0])
    class Forgets(ByteTokenizer):
        def __init__(self, shift=0): self.shift = shift
        def encode(self, text, bos=False): return self.start(bos) + [(b+self.shift) % 256 for b in utf8(text)]
        def decode_bytes(self, ids): return bytes((i-self.shift) % 256 for i in self.as_ids(ids) if i < 256)
    faults = {Quiet: 'comes back as', Endless: 'bos=True must put', Batch: 'encode_batch and encode differ', Stream: 'streaming does not',
              Sizes: 'a special id stands for no bytes', Short: 'must have 257 entries', Twos: 'token_bytes says'}
    for kind, says in faults.items():
        with fails(ValueError, says): check_tokenizer(kind())
    with fails(ValueError, 'saved and loaded'): check_tokenizer(Forgets(1))
    assert check_tokenizer(TOK)['texts'] == 200


# ---- learning merges

def naive_merges(counts, n):
    words, merges = {tuple(p.encode()): c for p, c in counts.items()}, []
    for new in range(256, 256+n):
        pairs = Counter()
        for w, c in words.items():
            for p in zip(w, w[1:]): pairs[p] += c
        if not pairs: break
        merges.append(min(pairs, key=lambda p: (-pairs[p], p)))
        words = {tuple(merge_pair(w, merges[-1], new)): c for w, c in words.items()}
    return merges


def random_counts(seed):
    rng = random.Random(seed); letters = 'abcé'[:rng.randint(1,4)]
    return Counter(''.join(rng.choices(letters, k=rng.randint(1,12))) for _ in range(rng.randint(1,30)))


def test_the_incremental_trainer_learns_what_the_naive_one_does(counts):
    assert merge_pair([1,1,1,1,1], (1,1), 9) == [9,9,1]
    for seed in range(300): assert learn_merges(random_counts(seed), 30) == naive_merges(random_counts(seed), 30)
    assert learn_merges(counts, 20) == naive_merges(counts, 20)


# ---- counting

def test_no_piece_is_cut_in_two(counts):
    parts = list(bpe._parts(MANUAL, 50_000))
    assert len(parts) > 5 and ''.join(parts) == MANUAL
    assert sum((Counter(regex.findall(GPT2_PATTERN, p)) for p in parts), Counter()) == counts == count_pieces(MANUAL) == count_pieces(parts)
    assert [d for load in bpe._loads(DOCS, 100_000) for d in load] == DOCS
    for t in fuzz_texts(300): assert ''.join(regex.findall(GPT2_PATTERN, t)) == t


def test_processes_count_the_same(counts):
    parts = list(bpe._parts(MANUAL, 50_000))
    assert sum(bpe._wave(partial(bpe._count, GPT2_PATTERN), [parts[:4], parts[4:]], 2), Counter()) == counts


def test_where_no_process_can_start_this_one_counts(monkeypatch, counts):
    def none(*args): raise OSError('no processes here')
    monkeypatch.setattr(bpe, 'ProcessPoolExecutor', none)
    parts = list(bpe._parts(MANUAL, 50_000))
    with pytest.warns(UserWarning, match='counting in one process'):
        assert sum(bpe._wave(partial(bpe._count, GPT2_PATTERN), [parts[:4], parts[4:]], 2), Counter()) == counts


def test_a_large_text_goes_to_the_pool(monkeypatch):
    seen, inner = [], bpe._wave
    monkeypatch.setattr(bpe, '_wave', lambda f, loads, workers: seen.append((len(loads), workers)) or inner(f, loads, 1))
    docs = ['one two ' * 2**17] * 10                               # ten loads of a million characters; eight are counted here
    assert count_pieces(docs, workers=3) == {'one': 10, ' two': 10 * 2**17, ' one': 10 * (2**17 - 1), ' ': 10}
    assert seen == [(2, 3)]


def test_odd_texts_and_patterns():
    with fails(ValueError, 'leaves out'):       count_pieces('two words', r'\w+')
    with fails(ValueError, 'write them (?:…)'): count_pieces('two words', r'(\w)|\W')
    with fails(ValueError, 'no regular expression'): count_pieces('two words', '(')
    with fails(TypeError,  'got int'):          count_pieces(['two', 3])
    with fails(TypeError,  'read the file first'): count_pieces(3)
    assert {len(p): n for p, n in count_pieces('ACGT'*610).items()} == {100: 24, 40: 1}       # a piece without end


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
    assert BPE.train('ab ab', 300).vocab_size == 259
    assert 'vocab_size is 259, not 300' in capsys.readouterr().out
    assert BPE.train('ab', 257).merges == []
    with fails(ValueError, 'need 257'): BPE.train('ab', 100)
    for nothing in ('', [], ['']):
        with fails(ValueError, 'text is empty'): BPE.train(nothing)


def plain_encode(tok, text):
    order, out = {p: 256+k for k, p in enumerate(tok.merges)}, []
    for piece in regex.findall(tok.pattern, text):
        row = list(piece.encode())
        while (new := min((order.get(p, 10**9) for p in zip(row, row[1:])), default=10**9)) < 10**9: row = merge_pair(row, tok.merges[new-256], new)
        out += row
    return out


def test_tiktoken_agrees_with_the_plain_encoder(trained):
    for t in fuzz_texts(500) + DOCS[:40:10]: assert trained.encode(t) == plain_encode(trained, t)
    assert trained.encode('<|bos|>', bos=True) == [trained.bos] + plain_encode(trained, '<|bos|>')
    with fails(ValueError, 'lone surrogate'): trained.encode('\ud83d')
    check_tokenizer(trained)


def test_a_million_blanks(trained):
    blank = 'a' + ' '*10**6 + 'b'                                  # tiktoken's own regex overflows its stack here
    ids = trained.encode(blank)
    assert trained.decode(ids) == blank and trained.encode_batch(['hi', blank]) == [trained.encode('hi'), ids]
    edge = ' '*100_000
    assert trained.decode(trained.encode(edge)) == edge


def test_batches_and_other_processes(trained):
    assert trained.encode_batch(DOCS, bos=True) == [trained.encode(d, bos=True) for d in DOCS]
    with fails(ValueError, 'lone surrogate'): trained.encode_batch(['fine', '\ud83d'])
    again = pickle.loads(pickle.dumps(trained))
    assert again.encode(TEXT) == trained.encode(TEXT) and '_enc' not in trained.__getstate__()


def test_saved_and_loaded(trained, tmp_path):
    again = load_tokenizer(trained.save(tmp_path/'bpe.json'))
    assert isinstance(again, BPE) and again.merges == trained.merges and again.pattern == trained.pattern and again.special == trained.special


def test_more_merges_make_shorter_rows(trained):
    rows = [sum(map(len, BPE(trained.merges[:n]).encode_batch(DOCS))) for n in (0, 16, 64, 256, 767)]
    assert rows[0] == sum(len(d.encode()) for d in DOCS) and rows == sorted(rows, reverse=True)


# ---- tokenizer.json

def test_every_byte_has_a_visible_character(trained, tmp_path):
    table = bpe._symbols()
    assert len(set(table)) == 256 and not any(c.isspace() for c in table)
    assert {c: table[ord(c)] for c in 'a \n\té'} == {'a': 'a', ' ': 'Ġ', '\n': 'Ċ', '\t': 'ĉ', 'é': 'é'}
    d = json.loads(trained.to_tokenizer_json(tmp_path/'tokenizer.json').read_text(encoding='utf-8'))
    assert d['model']['vocab']['Ġthe'] == trained.ranks[b' the'] and len(d['model']['vocab']) + 1 == trained.vocab_size


def test_tokenizers_gives_the_same_ids(trained, tmp_path):
    other = pytest.importorskip('tokenizers').Tokenizer.from_file(str(trained.to_tokenizer_json(tmp_path/'tokenizer.json')))
    for t in fuzz_texts(500) + DOCS[::10] + ['\n\t\r\n', ''.join(map(chr, range(2048)))]:
        assert other.encode(t).ids == trained.encode(t) and other.decode(trained.encode(t)) == t
    assert (other.get_vocab_size(), other.token_to_id(BOS)) == (trained.vocab_size, trained.bos)
    assert other.encode('naïve\n\ttext').tokens == [''.join(bpe._symbols()[b] for b in trained._raw[i]) for i in trained.encode('naïve\n\ttext')]

"""BPE: what a first reader of the chapter does not need. Odd input, long runs, other processes, and many random texts.

The plain trainer and the plain encoder of the chapter stand here again as oracles.
"""
import json, pickle, random, re
from collections import Counter
from functools import partial

import pytest
import regex
from pydoc_data.topics import topics

from gptlab import bpe
from gptlab.bpe import BPE, GPT2_PATTERN, count_pieces, learn_merges, merge_pair
from gptlab.tokenizer import BOS, check_tokenizer, fuzz_texts, load_tokenizer

DOCS = [topics[k] for k in sorted(topics)]                     # Python's manual
MANUAL = '\n'.join(DOCS)
TEXT = 'naïve 👍'


def fails(kind, part): return pytest.raises(kind, match=re.escape(part))


@pytest.fixture(scope='module')
def counts(): return Counter(regex.findall(GPT2_PATTERN, MANUAL))

@pytest.fixture(scope='module')
def trained(): return BPE.train(DOCS, 1024)


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

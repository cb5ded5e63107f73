"""What a first reader of the tokenizer chapters does not need: odd input, long runs, other
processes, and many random texts.
"""
import random, re
from itertools import cycle, islice

import pytest
import torch
from pydoc_data.topics import topics

from gptlab.bpe import BPE
from gptlab.core import assert_equal as same_tensor
from gptlab.tokenizer import (ByteTokenizer, CharTokenizer, Tokenizer, TokenView, check_tokenizer,
                              fuzz_texts, load_tokenizer, show_tokens, utf8)

DOCS = [topics[k] for k in sorted(topics)]                     # Python's manual
MANUAL = '\n'.join(DOCS)
TEXT = 'naïve 👍'
TOK = ByteTokenizer()


def fails(kind, part): return pytest.raises(kind, match=re.escape(part))


# ---- text and ids

def test_only_text_has_bytes():
    assert utf8('é') == b'\xc3\xa9'
    with fails(TypeError, 'got bytes'): utf8(b'abc')
    with fails(TypeError, 'encode_batch'): TOK.encode(['a', 'b'])
    with fails(ValueError, 'at position 3'): utf8('abc\ud83d')


def test_ids_come_as_list_array_or_tensor():
    row = [256, 72, 105]
    for ids in (row, tuple(row), iter(row), torch.tensor(row), torch.tensor(row).numpy(),
                [torch.tensor(i) for i in row]):
        assert TOK.decode_bytes(ids) == b'Hi'
    with fails(ValueError, 'id 300 is outside the vocabulary of 257'): TOK.decode_bytes([1, 300])
    with fails(ValueError, 'id -1 is outside'): TOK.decode_bytes([-1])
    for ids in (torch.zeros(2, 2).long(), [1.5], 7):
        with fails(TypeError, 'one row of ids'): TOK.decode_bytes(ids)


def test_a_beginning_that_does_not_exist():
    with fails(ValueError, 'pass bos=False'): BPE([], special=()).encode('a', bos=True)
    assert (TOK.encode('Hi', bos=True) == [256, 72, 105] and TOK.bos == 256
            and BPE([], special=()).bos is None)
    with pytest.raises(NotImplementedError): Tokenizer().encode('a')
    with pytest.raises(NotImplementedError): Tokenizer().decode_bytes([1])


def test_bytes_that_are_no_text():
    assert TOK.decode([240, 159, 72]) == '�H' and TOK.decode([240, 159, 72], errors='ignore') == 'H'
    with pytest.raises(UnicodeDecodeError): TOK.decode([240, 159, 72], errors='strict')


# ---- streaming

def test_a_stream_may_be_endless_and_may_be_cut():
    assert (''.join(islice(TOK.decode_stream(cycle(TOK.encode('tick…tock…'))), 13))
            == 'tick…tock…tic')
    assert list(TOK.decode_stream(TOK.encode(TEXT))) == ['n', 'a', 'ï', 'v', 'e', ' ', '👍']
    # cut within the thumb
    assert list(TOK.decode_stream(TOK.encode(TEXT)[:-1]))[-1] == '�'


def test_broken_bytes_stream_as_they_decode():
    rng = random.Random(0)
    for _ in range(1000):
        row = rng.choices([65, 128, 159, 195, 226, 240, 255], k=9)
        assert ''.join(TOK.decode_stream(row)) == TOK.decode(row)


# ---- saving

def test_only_tokenizers_are_read_back(tmp_path):
    f = TOK.save(tmp_path/'tok.json')
    assert (load_tokenizer(f).encode(TEXT) == TOK.encode(TEXT)
            and TOK.to_dict() == {'tokenizer': 'gptlab.tokenizer.ByteTokenizer'})
    with fails(ValueError, 'not the settings'): Tokenizer.from_dict({**TOK.to_dict(), 'colour': 1})
    with fails(ValueError, 'not a tokenizer'):
        Tokenizer.from_dict(dict(tokenizer='gptlab.core.atomic_write', path='x', data=''))
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
    assert (abc.alphabet == ' acehst' == CharTokenizer.train('the cat sat').alphabet
            and abc.vocab_size == 8 and abc.bos == 7)
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
    assert (isinstance(view, TokenView) and repr(view).startswith('<|bos|>|<|b')
            and view.pieces[6] == (195, r'\xc3'))
    assert '&lt;' in view._repr_html_() and '<b>' not in view._repr_html_()
    assert (repr(view) == repr(show_tokens(TOK, torch.tensor(ids)))
            == repr(show_tokens(TOK, iter(ids))))


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

        def encode(self, text, bos=False):
            return self.start(bos) + [(b+self.shift) % 256 for b in utf8(text)]

        def decode_bytes(self, ids):
            return bytes((i-self.shift) % 256 for i in self.as_ids(ids) if i < 256)
    faults = {Quiet: 'comes back as', Endless: 'bos=True must put',
              Batch: 'encode_batch and encode differ', Stream: 'streaming does not',
              Sizes: 'a special id stands for no bytes', Short: 'must have 257 entries',
              Twos: 'token_bytes says'}
    for kind, says in faults.items():
        with fails(ValueError, says): check_tokenizer(kind())
    with fails(ValueError, 'saved and loaded'): check_tokenizer(Forgets(1))
    assert check_tokenizer(TOK)['texts'] == 200


# ---- damaged files, and one text where many are expected

@pytest.mark.parametrize('content', ['5', 'null', '[]', '{"tokenizer": 5}',
                                     '{"tokenizer": "gptlab.tokenizer.Tokenizer"}', '{"tokenizer": '
                                     '"gptlab.bpe.BPE", "merges": [], "special": [5]}',
                                     '{"tokenizer": "gptlab.bpe.BPE", "merges": [[1, 2, 3]]}',
                                     '{"tokenizer": "gptlab.bpe.BPE", "merges": 5}', '['*200_000],
                         ids=range(9))
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path/'odd.json').write_text(content)
    with fails(ValueError, 'odd.json'): load_tokenizer(tmp_path/'odd.json')

@pytest.mark.parametrize('tok', [TOK, BPE([])], ids=repr)
def test_one_text_is_no_batch(tok):
    with fails(TypeError, 'pass a list'): tok.encode_batch('abc')
    with fails(TypeError, 'expected text, got NoneType'): tok.encode_batch([None])

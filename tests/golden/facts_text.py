"""Facts about tokenizers: ids of nasty texts, merges, saved forms, exports."""
import json
import random
from pathlib import Path

from gptlab.all import *

from registry import digest, exact, fact, once

NASTY = [
    '', ' ', '\n', 'a', '  two  spaces ',
    'tab\there\n\n\nthree lines\r\nand\rmore\x0b\x0c',
    "it's we'll I'VE don't 'tis 's", '1 12 123 1234 12345 3.14159 1,000,000 ²½٣',
    'naïve café e\u0301 o\u0308\u0323 ﬁ ① Å Å', 'Ελληνικά русский עברית हिन्दी 中文日本語한국어',
    '👍🏽👩\u200d💻🇮🇹❤\ufe0f𝔊', 'x'*300, ' '*70 + 'end', '\0\x07\u200b\ufeff\u00a0\u2003\u3000',
    '<|bos|> <|endoftext|> <s> ▁ ▁▁x',
    '.,;:!?-_()[]{}<|>"\'\\/ --- ... !!??', 'ALL CAPS CamelCase',
    'def f(x):\n    return {k: v for k, v in x.items()}\n']


@once
def learning_text():
    "What tokenizers are trained on here"
    plain = [t for t in NASTY if '<|' not in t]
    return make_stories(60, seed=11) + (plain + SPLIT_DIFFERENTLY)*9


# what the patterns cut in different ways, often enough to be learnt
SPLIT_DIFFERENTLY = [
    ' '.join(str(i**3) for i in range(60)), 'XmlParser parseHTML isOK getURLs HTTPServer ' * 5,
    "THEY'LL they'll She'S it'S don'T " * 5, 'end);\n\n//\n--\n/*/\n' * 5,
    '.word ,word -word "word" ' * 5]


@once
def trained(pattern='gpt2', size=420):
    return BPE.train(learning_text(), size, pattern=find_pattern(pattern))


def exported(tok):
    "The path of its tokenizer.json in the current folder"
    return tok.to_tokenizer_json(Path('tokenizer.json'))


def rank_tokenizer():
    return RankTokenizer.from_tiktoken(trained().to_tiktoken(Path('ranks.tiktoken')))


def shifted_ranks():
    "Ranks whose bytes are not ids 0 to 255"
    ranks = {b: 2*i + 3 for b, i in trained().ranks.items()}
    return RankTokenizer(ranks, find_pattern('cl100k'), {'<|bos|>': 0, '<|end|>': 2})


def sentencepiece(**kw):
    return SentencePieceTokenizer.train(learning_text(), 400, **kw)


TOKENIZERS = dict(
    bytes=lambda: ByteTokenizer(),
    characters=lambda: CharTokenizer.train(NASTY),
    ascii=lambda: AsciiTokenizer(),
    stripped=lambda: StrippedAsciiTokenizer(),
    byt5=lambda: ByT5Tokenizer(),
    bpe_gpt2=lambda: trained('gpt2'),
    bpe_cl100k=lambda: trained('cl100k'),
    bpe_o200k=lambda: trained('o200k'),
    bpe_nanochat=lambda: trained('nanochat'),
    bpe_punctuation=lambda: trained('punctuation'),
    bpe_two_specials=lambda: BPE.train(learning_text(), 300, special=('<|bos|>', '<|x|>')),
    bpe_cut_at_marks=lambda: BPE.train(['an<|end|>an'] * 9, 258, boundaries=('<|end|>',)),
    bpe_of_tokenizers=lambda: BPE.train(learning_text(), 330, engine=tokenizers_engine),
    bpe_of_rustbpe=lambda: BPE.train(learning_text(), 330, engine=rustbpe_engine),
    bpe_truncated=lambda: truncate_vocab(trained(), 300),
    ranks=rank_tokenizer,
    ranks_shifted=shifted_ranks,
    ranks_truncated=lambda: truncate_vocab(rank_tokenizer(), 300),
    ranks_more_marks=lambda: add_special(rank_tokenizer(), ['<|a|>', '<|b|>']),
    ranks_of_json=lambda: RankTokenizer.from_tokenizer_json(exported(trained('cl100k'))),
    bpe_of_json=lambda: BPE.from_tokenizer_json(exported(trained('o200k'))),
    hugging_face=lambda: HFTokenizer(exported(trained())),
    hugging_face_fast=lambda: HFTokenizer(exported(trained()), engine='fastokens'),
    sentencepiece_bpe=lambda: sentencepiece(),
    sentencepiece_unigram=lambda: sentencepiece(kind='unigram'))


@fact('tokenizer', TOKENIZERS)
def tokenizer_facts(make):
    tok = make()
    rows = tok.encode_batch(NASTY)
    found = dict(ids=digest(rows), one_by_one=rows == [tok.encode(t) for t in NASTY])
    found |= dict(first=rows[6][:24], vocabulary=tok.vocab_size, special=tok.special, bos=tok.bos)
    found |= dict(text=digest([tok.decode(r) for r in rows]), sizes=digest(tok.token_bytes))
    found['pieces'] = digest([list(tok.decode_stream(r)) for r in rows])
    found['raw'] = digest([tok.decode_bytes([i]) for i in range(tok.vocab_size)])
    if hasattr(tok, 'byte_counts'):
        found['byte_counts'] = digest([tok.byte_counts(t) for t in NASTY])
    return found | saved_form(tok)


def saved_form(tok):
    "What is written, and whether it comes back"
    again = load_tokenizer(tok.save(Path('saved.json')))
    kind = json.loads(Path('saved.json').read_text(encoding='utf-8')).pop('tokenizer')
    settings = {k: digest(v) for k, v in json.loads(json.dumps(tok.settings())).items()}
    same = again.encode_batch(NASTY) == tok.encode_batch(NASTY)
    return dict(saved_as=kind, settings=settings, saved=same)


@fact('merges', {k: k for k in ('gpt2', 'cl100k', 'o200k', 'nanochat', 'punctuation')})
def merges(pattern):
    pieces = count_pieces(learning_text(), find_pattern(pattern))
    found = dict(pieces=digest(sorted(pieces.items())), merges=digest(trained(pattern).merges))
    order = list(range(255, -1, -1))
    found['other_ties'] = digest(learn_merges(pieces, 60, order))
    return found | dict(pattern=find_pattern(pattern))


@fact('ids by hand')
def by_hand():
    "A merge at a time gives what the fast encoder gives"
    tok, rows = trained(), []
    words = [w for w in count_pieces(NASTY) if not w.isspace()]
    for word in words:
        ids = list(word.encode())
        for k, pair in enumerate(tok.merges):
            ids = merge_pair(ids, pair, 256 + k)
        rows.append(ids)
    return [len(words), rows == tok.encode_batch(words), digest(rows)]


@fact('marks in a text', dict(text='text', ids='ids', refused='raise'))
def marks(special):
    try:
        return trained().encode('a<|bos|>b', special=special)
    except ValueError:
        return 'refused'


@fact('marks of any tokenizer')
def any_marks():
    found = [encode_special(make(), 'né<|bos|> x') for make in (ByteTokenizer, trained)]
    return found + [encode_special(trained(), 'a<|bos|>', allowed=())]


@fact('exported to tokenizers', {k: k for k in ('gpt2', 'cl100k', 'o200k', 'punctuation')})
def to_tokenizers(pattern):
    import tokenizers as theirs
    tok = trained(pattern)
    path = exported(tok)
    loaded = theirs.Tokenizer.from_file(str(path))
    texts = [t for t in NASTY if '<|' not in t]
    rows = [loaded.encode(t, add_special_tokens=False).ids for t in texts]
    same = rows == tok.encode_batch(texts)
    return dict(file=digest(path.read_bytes()), ids=digest(rows), same=same)


@fact('exported to tiktoken')
def to_ranks():
    path = trained().to_tiktoken(Path('ranks.tiktoken'))
    back = BPE.from_tiktoken(path)
    return [digest(path.read_bytes()), back.merges == trained().merges]


@fact('texts for testing')
def fuzz():
    return digest(fuzz_texts(), fuzz_texts(20, 'abc', 4))


@fact('tokenizer is checked', {k: TOKENIZERS[k] for k in ('bytes', 'ascii', 'bpe_cl100k', 'byt5')})
def checked(make):
    return exact(check_tokenizer(make(), fuzz_texts(30)))


@fact('tokenizers are measured')
def measured():
    toks = dict(bytes=ByteTokenizer(), learnt=trained(), stripped=StrippedAsciiTokenizer())
    text = make_stories(5, seed=2)
    found = {n: exact([bytes_per_token(t, text), *renyi_efficiency(t, text),
                       *renyi_efficiency(t, text, 1)]) for n, t in toks.items()}
    kinds = text_kinds(500)
    found['table'] = digest([list(r.values()) for r in compare_tokenizers(toks, kinds)])
    return found | dict(kinds=digest(kinds))


@fact('tokenizer by name', {n: n for n in ('bytes', 'byt5', 'ascii', 'stripped')})
def by_name(name):
    return digest(open_tokenizer(name).encode_batch(NASTY))


@fact('tokenizer from a file')
def from_file():
    trained().save(Path('mine.json'))
    Path('ours.model').write_bytes(sentencepiece().model)
    exported(trained('cl100k'))
    opened = [open_tokenizer(n) for n in ('mine.json', 'ours.model', 'tokenizer.json')]
    return [digest(t.encode_batch(NASTY)) for t in opened]


@fact('what a tokenizer loses')
def lost():
    return [[[str(v) for v in r.values()] for r in tok.report(''.join(NASTY))]
            for tok in (AsciiTokenizer(), StrippedAsciiTokenizer())]


@fact('random texts through a learnt tokenizer')
def random_texts():
    rng, pool = random.Random(7), ''.join(NASTY)
    texts = [''.join(rng.choices(pool, k=60)) for _ in range(40)]
    return {p: digest(trained(p).encode_batch(texts)) for p in ('gpt2', 'cl100k', 'o200k')}

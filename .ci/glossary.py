#!/usr/bin/env python3
"""Write nbs/glossary.ipynb: python .ci/glossary.py

With --check it only says whether the page is as the chapters have it. A term of the field stands in
italics in the sentence of the book that defines it. This gathers those sentences, with links to
their sections; so a definition is written once, in its chapter. A sentence that leans on the one
before it is refused, because on this page it would stand alone.
"""
import json, re, sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1]/'nbs'
# a term with a "?" joins once a chapter defines it
TERMS = {
    'Text': 'token, vocabulary, token id, special token, bos, tokenizer, byte-pair encoding, '
            'merge, corpus, training, held out, batch, batch size, context length, target, epoch, '
            'packing, document mask',
    'The model': 'language model, config, hyperparameter?, tensor, shape, parameters, channel, embedding, head?, '
                 'output head?, logits, softmax, attention, self-attention, scaled dot-product '
                 'attention, attention head, query, key, value, grouped-query attention, mask, '
                 'causal mask, positional encoding, positional embedding, RoPE, KV cache, norm, '
                 'LayerNorm, MLP, activation function, GELU, dropout, block, transformer, '
                 'transformer block, residual stream, forward pass, backward pass, activations, '
                 'activation checkpointing, initialisation, auxiliary loss',
    'Training': 'loss, nats, negative log-likelihood, cross-entropy, perplexity, bits per byte, '
                'baseline, gradient, backpropagation, gradient descent, learning rate, optimizer, '
                'optimizer state, Adam?, AdamW, Muon, momentum, weight decay, parameter group, '
                'schedule, warm-up, cooldown, step, training step, seed, gradient accumulation, '
                'gradient clipping, mixed precision, checkpoint, validation loss, overfitting, '
                'model FLOPs utilization, trainer?, callback?, validation?, stride?, prequential?',
    'Writing': 'inference, prompt, sampling, autoregressive, temperature, top-k, top-p, min-p, '
               'greedy decoding',
    'Measuring': 'ablation, confidence interval, standard error'}


def slug(heading: str) -> str:
    "The id that a heading gets on its page"
    return re.sub(r'[^\w\s-]', '', heading).strip().lower().replace(' ', '-')


def sentences():
    "Every sentence of the book: chapter's file, its title, the section's heading, the sentence"
    for path in sorted(NBS.glob('[01]?_*.ipynb')):
        if int(path.name[:2]) > 15: continue
        title = heading = ''
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'markdown': continue
            for block in ''.join(cell['source']).split('\n\n'):
                found = re.match(r'#+ (.*)', block)
                if found:
                    heading = found[1]
                    title = title or heading
                elif not block.startswith(('|', '>', '$$')):
                    for s in re.split(r'(?<=[.?!])\s+(?=[A-Z*`([])', block):
                        yield path.name, title, heading, s


# what points back: a pronoun at the beginning, or straight behind the term and its verb
POINTS = re.compile(r"""^\W*(its?|that|these|those|they|them|their|such|here|so|then|both|one|
                        this(?!\ page|\ chapter)|each(?=\ \w+s\b)|the\ (?:first|second|latter))\b
                        |^(?:an?\ |the\ )?\*[^*]+\*\ \w+\ (?:all\ of\ )?(?:its?|them|this)\b
                        |^(?:an?\ |the\ )?\*[^*]+\*.*\ (?:describes|from|of)\ (?:it|them)[.;:]
                        |:$""", re.I | re.X)


def leans(sentence: str) -> bool:
    "Does a sentence point back at the one before it? Then it defines nothing by itself"
    return bool(POINTS.search(' '.join(sentence.split())))


def mentions(term: str, found: list) -> list[tuple]:
    "Where a term is in italics: file, title, heading, sentence; the term itself before its plural"
    forms = [re.compile(rf'(?<![\w*])\*{re.escape(t)}\*(?![\w*])', re.I)
             for t in (term, f'{term}s')]
    return [entry for form in forms for entry in found if form.search(entry[-1])]


def place(term: str, found: list) -> tuple | None:
    """The first sentence with a term in italics that stands alone: file, title, heading, sentence

    None for a term that ends in "?" and that no chapter defines yet.
    """
    name = term.removesuffix('?')
    entries = mentions(name, found)
    alone = [e for e in entries if not leans(e[-1])]
    if alone: return alone[0]
    if term.endswith('?'): return None
    if not entries:
        raise SystemExit(f'no chapter of the book has *{name}* in italics; write the sentence that '
                         'defines it')
    said = ' '.join(entries[0][-1].split())
    raise SystemExit(f'{entries[0][0]}: the sentence that defines *{name}* leans on the one before '
                     f'it; name what it points at: {said}')


def page() -> list[str]:
    "The sections of the glossary, as Markdown"
    found, sections = list(sentences()), []
    for title, terms in TERMS.items():
        lines = [f'## {title}', '']
        for term in sorted(terms.split(', '), key=str.lower):
            entry = place(term, found)
            if entry is None: continue
            file, chapter, heading, sentence = entry
            at = '' if heading == chapter else f'#{slug(heading)}'
            said, name = ' '.join(sentence.split()), term.removesuffix('?')
            lines.append(f'- **{name}** ([{chapter}]({file}{at})): {said}')
        sections.append('\n'.join(lines))
    return sections


def main() -> None:
    target = NBS/'glossary.ipynb'
    book = json.loads((NBS/'references.ipynb').read_text(encoding='utf-8'))
    opening = ['# Glossary\n\n> The words of the field, each in the sentence that defines it.',
               'A term stands in italics where the book defines it. Here are those sentences, with '
               'links to their sections.\n\nTo run it: clone this repository, `pip install -e .`, '
               'and `jupyter lab nbs/glossary.ipynb`.']
    cells = [dict(cell_type='markdown', id=f'6105{n:04x}', metadata={},
                  source=text.splitlines(keepends=True))
             for n, text in enumerate(opening + page())]
    new = json.dumps(book | dict(cells=cells), indent=1, ensure_ascii=False, sort_keys=True) + '\n'
    old = target.read_text(encoding='utf-8') if target.exists() else ''
    if '--check' in sys.argv and new != old:
        raise SystemExit('the glossary is not as the chapters have it: python .ci/glossary.py')
    if new != old: target.write_text(new, encoding='utf-8')
    print('the glossary is as the chapters have it' if new == old else 'glossary rewritten')


if __name__ == '__main__': main()

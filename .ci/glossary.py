#!/usr/bin/env python3
"""Write nbs/glossary.ipynb: python .ci/glossary.py   (--check only says whether it is as the chapters have it)

A term of the field stands in italics in the sentence of the book that defines it. This gathers those
sentences, with links to their sections; so a definition is written once, in its chapter.
"""
import json, re, sys
from pathlib import Path

NBS = Path(__file__).resolve().parents[1]/'nbs'
TERMS = {
    'Text': 'token, vocabulary, token id, special token, tokenizer, byte-pair encoding, merge, corpus, training, held out, '
            'batch, batch size, context length, target, epoch, packing, document mask',
    'The model': 'language model, tensor, shape, parameters, channel, embedding, head, logits, softmax, attention, self-attention, '
                 'scaled dot-product attention, query, key, value, grouped-query attention, mask, causal mask, '
                 'positional encoding, positional embedding, RoPE, KV cache, norm, LayerNorm, MLP, activation function, dropout, block, '
                 'transformer, transformer block, residual stream, forward pass, backward pass, activations, activation checkpointing, '
                 'initialisation, auxiliary loss',
    'Training': 'loss, nats, negative log-likelihood, cross-entropy, perplexity, bits per byte, baseline, gradient, backpropagation, '
                'gradient descent, learning rate, optimizer, optimizer state, momentum, weight decay, parameter group, schedule, warm-up, '
                'cooldown, training step, gradient accumulation, gradient clipping, mixed precision, checkpoint, validation loss, '
                'overfitting, model FLOPs utilization',
    'Writing': 'inference, prompt, sampling, autoregressive, temperature, top-k, top-p, min-p, greedy decoding',
    'Measuring': 'ablation, confidence interval'}


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
                    for s in re.split(r'(?<=[.?!])\s+(?=[A-Z*`([])', block): yield path.name, title, heading, s


def place(term: str, found: list) -> tuple:
    "Where a term is first in italics: file, title, heading, sentence"
    for form in (term, term + 's'):
        italics = re.compile(rf'(?<![*\w])\*{re.escape(form)}\*(?![*\w])', re.I)
        for entry in found:
            if italics.search(entry[-1]): return entry
    raise SystemExit(f'no chapter of the book has *{term}* in italics; write the sentence that defines it')


def page() -> list[str]:
    "The sections of the glossary, as Markdown"
    found, sections = list(sentences()), []
    for title, terms in TERMS.items():
        lines = [f'## {title}', '']
        for term in sorted(terms.split(', '), key=str.lower):
            file, chapter, heading, sentence = place(term, found)
            at = '' if heading == chapter else f'#{slug(heading)}'
            lines.append(f'- **{term}** ([{chapter}]({file}{at})): {" ".join(sentence.split())}')
        sections.append('\n'.join(lines))
    return sections


def main() -> None:
    target = NBS/'glossary.ipynb'
    book = json.loads((NBS/'references.ipynb').read_text(encoding='utf-8'))
    opening = ['# Glossary\n\n> The words of the field, each in the sentence that defines it.',
               'A term stands in italics where the book defines it. Here are those sentences, with links to their sections.\n\n'
               'To run it: clone this repository, `pip install -e .`, and `jupyter lab nbs/glossary.ipynb`.']
    cells = [dict(cell_type='markdown', id=f'6105{n:04x}', metadata={}, source=text.splitlines(keepends=True))
             for n, text in enumerate(opening + page())]
    new = json.dumps(book | dict(cells=cells), indent=1, ensure_ascii=False, sort_keys=True) + '\n'
    old = target.read_text(encoding='utf-8') if target.exists() else ''
    if '--check' in sys.argv and new != old: raise SystemExit('the glossary is not as the chapters have it: python .ci/glossary.py')
    if new != old: target.write_text(new, encoding='utf-8')
    print('the glossary is as the chapters have it' if new == old else 'glossary rewritten')


if __name__ == '__main__': main()

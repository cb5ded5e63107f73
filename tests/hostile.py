"""One of each thing that shows itself, made from texts that would do harm if they were not shown
as text: names of files, licences, specials, variants, samples. A notebook can show them, too."""
import json
from pathlib import Path

from gptlab.all import *

TAGS = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
LINKS = '[a](javascript:window.pwned=1) | `b` *c*\n\n<svg onload="window.pwned=1">\n# d'
CONTROLS = '\x1b[2J\x1b]52;c;eA==\x07\x9b1A\u202egnp'
HARM = f"MIT {TAGS}' onclick='window.pwned=1' {LINKS} {CONTROLS}"
PART = '<img src=x onerror="window_pwned=1">'                     # a module's name has no dot
NAME = f'x {TAGS} {CONTROLS}'.replace('/', '_')                    # a file may have it

class Odd(Tokenizer):
    "A tokenizer whose one special has a name that does harm"
    vocab_size, special = 257, {HARM: 256}
    def encode(self, text): return list(text.encode())
    def decode_bytes(self, ids): return bytes(i for i in ids if i < 256)

class Shout(ParameterGradients):
    "A probe that names what it found as a publisher's model might"
    def record(self, name, **values): super().record(HARM, **values)

def a_run(folder, **kw):
    "A run whose data, prompt, sample, text and notes do harm"
    set_seed(0)
    train, valid = batches([HARM*4]*20, ByteTokenizer(), B=2, T=16, valid_rows=2)
    model = GPT(GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=32))
    model.get_submodule('blocks.0').add_module(PART, nn.ReLU())
    settings = dict(eval_every=2, device='cpu', dir=folder, notes=dict(text=HARM, author=HARM))
    return Trainer(model, Opt(model, adamw()), train, valid, **settings | kw)

def texts(folder):
    "Corpora and what is known of them"
    reshard([f'cat {i} ' * 9 for i in range(40)], folder/'sh', docs_per_shard=10)
    meta = json.loads((folder/'sh'/'meta.json').read_text())
    (folder/'sh'/'meta.json').write_text(json.dumps(meta | dict(licence=HARM, name=HARM)))
    (folder/f'{NAME}.txt').write_text(HARM * 50)
    yield 'shards', corpus(folder/'sh')
    yield 'provenance', provenance(folder/'sh')
    yield 'file', corpus(folder/f'{NAME}.txt')
    made = Corpus(HARM, [HARM]*3, [HARM], HARM, HARM)
    yield 'corpus', made
    yield 'its provenance', provenance(made)
    yield 'overlap', corpus_overlap(made)
    yield 'worst', corpus_overlap(made).worst()
    yield 'mixture', mixture({HARM: [HARM], 'b': ['b']}, {HARM: 1, 'b': 1}).shares(4)
    train, valid = batches(made, ByteTokenizer(), B=2, T=16)
    yield 'batches', train
    yield 'rows', Rows([{HARM: HARM}], HARM)

def tokens(folder):
    "Tokenizers and their views"
    tok = BPE.train(['a text of no harm '*9], 280, special=[HARM], verbose=False)
    learnt = BPE.train([HARM*9], 300, verbose=False)
    characters = CharTokenizer.train([HARM])
    named = dict(bpe=tok, learnt=learnt, odd=Odd(), characters=characters)
    for name, t in named.items():
        yield name, t
        yield f'{name} cuts', show_tokens(t, HARM)
        yield f'{name} holds', show_vocab(t)
    yield 'compared', compare_tokenizers({HARM: tok, 'b': ByteTokenizer()}, {HARM: HARM})
    yield 'side by side', show_all({HARM: tok}, HARM)

def chats(folder):
    "Conversations and a chat, with special tokens of a name that does harm"
    tok = BPE.train(['a text of no harm '*9], 280, special=[HARM], verbose=False)
    said = [dict(role='user', content=HARM), dict(role='assistant', content=HARM)]
    marked = jinja_template('{% for m in messages %}{{ eos_token }}{{ m.content }}{% endfor %}',
                            eos_token=HARM)
    yield 'marked', marked.encode(tok, said)
    yield 'plain', plain_roles(HARM).encode(tok, said)
    chat = Chat(GPT(GPTConfig(vocab_size=280, n_layers=1, n_heads=2, d_model=16)), tok, marked)
    chat.messages, chat.system = said, HARM
    yield 'chat', chat

def runs_of(folder):
    "A run that trains, its reports, and its folder"
    sampler = lambda trainer, *prompt: HARM
    view = LiveView(sample=sampler, prompt=HARM)
    probe = Shout(every=1)
    run = a_run(folder/'runs'/NAME, callbacks=[view, probe]).fit(3)
    yield 'run', run
    yield 'live view', view.text
    yield 'line', view.line
    yield 'probe', probe
    page = folder/'page.html'
    PageView(page).show(run)
    yield 'page', Page(page.read_text())
    yield 'listed', list_runs(folder/'runs')
    yield 'compared', compare_runs(run, run)
    yield 'opt', run.opt
    bad = dict(step=3, what=HARM, value=HARM, grad_norms={HARM: 1.}, text=[HARM], path=HARM)
    yield 'bad steps', BadSteps([bad])
    line = dict(loss=1., grad_norm=1.)
    yield 'replay', Replay(3, 2, [], [HARM], line, line, {HARM: 1.}, [HARM], 3, run)
    yield 'model', run.model
    yield 'figures', RunTable([{HARM: HARM}], HARM)

def explained(folder):
    "How a model reads a text, and what it wrote"
    set_seed(0)
    model = GPT(GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=300))
    yield 'probabilities', token_probs(model, Odd(), HARM, k=257)      # the special is among them
    yield 'patterns', AttentionPatterns({HARM: torch.ones(1, 2, 2)/2}, [HARM, HARM])
    yield 'lens', logit_lens(model, Odd(), 'ab', k=257)
    yield 'all', explain_text(model, Odd(), 'ab', k=257)
    copied = longest_copy(HARM, [HARM])
    yield 'copy', copied
    yield 'samples', SampleTable([dict(step=1, prompt=HARM, text=HARM, copied=copied)])

class Page:
    "A page that is a file"
    def __init__(self, html): self.html = html
    def _repr_html_(self): return self.html

def studies(folder):
    "Tables and curves by names of the user's"
    made = ablate(lambda v, s: {'bpb': v + .1*s, HARM: 1.}, {HARM: 1., 'b': 2.}, seeds=range(3))
    yield 'runs', made
    yield 'verdicts', made.table('bpb', vs='b')
    def run(variant, seed):
        if variant == 2.: raise ValueError(HARM)
        return {'bpb': variant + .1*seed, HARM: 1.}
    made = study(run, {HARM: 1., 'b': 2.}, path=folder/'study', verbose=False)
    yield 'study', made
    yield 'status', study_status(folder/'study')
    first = {HARM: dict(lr=1.)}
    yield 'tuned', tune(lambda v, s: {HARM: v['lr']}, first, {'lr': [1., 2., 3.]}, 3, key=HARM,
                        path=folder/'sweep', verbose=False)
    yield 'matched', match_budgets({HARM: GPTConfig(d_model=16)}, 'tokens', HARM, T=8)
    yield 'of', made.table(HARM, vs=HARM)
    yield 'curve', Curve(lambda p: p, HARM)
    yield 'report', Report({HARM: False})
    yield 'grid', Grid({(HARM, HARM): {HARM: Report({HARM: True})}})
    yield 'score', Score(1., 1., 1, 1, how=HARM)
    task = TaskScore(HARM, torch.tensor([1., 0.]).numpy(), .5, [])
    yield 'task', task
    yield 'core', CoreScore({HARM: task}, [HARM])

def plans(folder):
    "Plans, estimates and laws by names of the user's"
    plan = depth_plan(1, replace(house_rule, name=HARM, source=HARM), vocab_size=64, batch=256)
    kinds = 'calls', 'operations', 'bytes', 'parameters', 'products'
    speed = Speed(dict.fromkeys(kinds, 1e-9), [dict.fromkeys((*kinds, 'seconds'), 1.)], HARM)
    yield 'plan', plan
    yield 'speed', speed.rows()
    yield 'estimate', Estimate(plan, 1., 2, 1, None, HARM)
    write_prediction(folder/'ledger.json', HARM, 1., 0., 2., HARM)
    yield 'ledger', read_predictions(folder/'ledger.json')
    def form(theta, C): return loss_law(theta, C)
    form.__name__ = HARM
    runs = [dict(C=10.**k, loss=1 + 10./k) for k in range(6, 12)]
    yield 'law', fit_law(runs, form, [(0., 20., .3)], draws=2)

def objects(folder):
    "name → object, of all kinds"
    for kind in (texts, tokens, runs_of, studies, explained, plans, chats):
        for name, thing in kind(Path(folder)): yield f'{kind.__name__} {name}', thing

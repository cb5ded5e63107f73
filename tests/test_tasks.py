"""Tasks: batched answers are those of a plain loop, and of lm-eval; files, downloads, bad input."""
import functools
import http.server
import json
import logging
import math
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from common import extra, refuses, write
from fastcore.test import test_eq as same
from torch import nn

from gptlab import tasks
from gptlab.attention import Attention
from gptlab.attentions import StaticCache
from gptlab.bpe import BPE
from gptlab.data import make_stories
from gptlab.linear_attentions import DeltaAttention, MLA
from gptlab.moe import MoD
from gptlab.model import GPT, GPTConfig, llama_config
from gptlab.positions import ALiBi
from gptlab.tasks import (after_context, all_greedy, Answer, answer_questions, calibration,
                          completion, COMPLETION, CoreTask, core_score, CORE, crop_question,
                          differing, fetch_eval, git_blob, grouped, lm_eval_model, lowest_mean,
                          lowest_per_char, lowest_sum, make_question, MULTIPLE_CHOICE,
                          multiple_choice, predict_documents, Predictions, Question, read_task,
                          reading_limit, schema, SCHEMA, score_task, sentence_pair, shared_end,
                          Task)
from gptlab.tokenizer import ByteTokenizer

TOK = ByteTokenizer()
SMALL = dict(vocab_size=257, context_length=64, n_layers=2, n_heads=2, d_model=16)
WORDS = 'alpha beta gamma delta epsilon zeta eta theta iota kappa'.split()
CHOICES = [dict(query=' '.join(WORDS[:1 + i % 5]), choices=WORDS[i % 7:i % 7 + 2 + i % 3],
                gold=i % 2) for i in range(12)]


def model_of(seed=0, **kw):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**SMALL | kw)).eval()


@torch.no_grad()
def plainly(model, q):
    "Row by row"
    nll, greedy = [], []
    for row, (begin, end) in zip(q.rows, q.spans):
        logp = model(torch.tensor([row[:-1]]))[0].log_softmax(-1)             # (T,V)
        at, targets = logp[begin-1:end-1], torch.tensor(row[begin:end])
        nll.append(-at.gather(-1, targets[:, None]).sum().item())
        greedy.append((at.argmax(-1) == targets).all().item())
    return np.array(nll), np.array(greedy)


# ---- answers

class Uncached(nn.Module):
    "A model without caches"
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(257, 257)

    def forward(self, ids): return self.table(ids)                            # (B,T,V)


class Static(Attention):
    def new_cache(self): return StaticCache(64)


MODELS = dict(plain=model_of, grouped=lambda: model_of(n_heads=4, n_kv_heads=2),
              window=lambda: model_of(attn=partial(Attention, window=5)),
              static=lambda: model_of(attn=Static),
              alibi=lambda: model_of(attn=partial(Attention, pos=ALiBi)),
              mla=lambda: model_of(attn=partial(MLA, d_latent=8, d_rope=4)),
              delta=lambda: model_of(attn=DeltaAttention), depth=lambda: model_of(block=MoD),
              uncached=Uncached)


@pytest.mark.parametrize('kind', MODELS)
@pytest.mark.parametrize('B', [1, 7])
def test_answers_are_those_of_a_plain_loop(kind, B):
    model = MODELS[kind]()
    if kind == 'uncached': torch.nn.init.normal_(model.table.weight)
    else: [nn.init.normal_(p, std=.3) for p in model.parameters() if p.ndim > 1]
    task = Task(CHOICES)
    questions = [make_question(task, CHOICES, i, TOK) for i in range(len(CHOICES))]
    questions += [make_question(Task(CHOICES, span=after_context), CHOICES, 3, TOK),
                  Question([[256, *b'abcd']], [(2, 5)], 0, ['cd'])]
    for q, a in zip(questions, answer_questions(model, questions, B, context=64, verbose=False)):
        nll, greedy = plainly(model, q)
        assert (abs(a.nll - nll)/a.tokens).max() < 1e-5
        same(a.greedy.tolist(), greedy.tolist())
        same(a.tokens.tolist(), [e - b for b, e in q.spans])


def test_the_model_is_as_it_was():
    model = model_of(dropout=.5).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    score_task(model, TOK, Task(CHOICES), verbose=False)
    predict_documents(model, TOK, ['abc'], verbose=False)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_greedy_continuation_counts_as_right():
    model = model_of()
    nn.init.normal_(model.head.weight)
    start, text = [256, *b'ab'], []
    for _ in range(3): text.append(model(torch.tensor([start + text]))[0, -1].argmax().item())
    row = start + text
    good, bad = Question([row], [(3, 6)], 0, ['…']), Question([row[:-1] + [7]], [(3, 6)], 0, ['…'])
    answers = answer_questions(model, [good, bad], verbose=False)
    same([all_greedy(q, a) for q, a in zip([good, bad], answers)], [True, False])


# ---- cropping

def test_rows_lose_their_beginning_and_keep_their_span():
    q = Question([[1, 2, 3, 4, 5, 6], [1, 2, 9, 9]], [(4, 6), (2, 4)], 0, ['a', 'b'])
    cropped = crop_question(q, 4)
    same(cropped.rows, [[2, 3, 4, 5, 6], [2, 9, 9]])        # both lose the same
    same(cropped.spans, [(3, 5), (1, 3)])
    uneven = Question([[1]*9, [1, 2, 3]], [(7, 9), (1, 3)], 0, ['a', 'b'])
    same(crop_question(uneven, 4).rows, [[1]*5, [1, 2, 3]])
    assert crop_question(q, 5) is q and crop_question(q, None) is q
    same(crop_question(q, 1).rows, [[5, 6], [9, 9]])         # of the span its end is left
    same(crop_question(q, 1).spans, [(1, 2), (1, 2)])
    found = answer_questions(model_of(), [q], context=1, verbose=False)
    same(found[0].tokens.tolist(), [1, 1])


def test_cropped_questions_are_counted():
    long = [dict(query='x'*n, choices=['a', 'b'], gold=0) for n in (10, 61, 62, 63, 90)]
    found = score_task(model_of(), TOK, Task(long), context=64, verbose=False)
    same(found.n_cropped, 2)                  # 64 are read, the last only predicted: 62 + 3
    assert '2 cropped' in repr(found)


def test_a_model_reads_what_it_learnt():
    model = model_of()
    same(reading_limit(model), 64)
    model.trained_length = 32
    same((reading_limit(model), reading_limit(model, 48)), (32, 48))
    same(reading_limit(Uncached()), None)
    with pytest.raises(ValueError, match='context must be'): reading_limit(model, 65)


# ---- questions

def test_spans_of_core():
    encode = lambda text: list(text.encode())
    rows, spans = differing(encode, ['ab', 'ab'], [' cd', ' ce'])
    same(spans, [(4, 5), (4, 5)])
    same(differing(encode, ['a', 'a'], [' b', ' bc'])[1], [(2, 3), (3, 4)])  # one begins the other
    same(shared_end(encode, ['xa', 'yab'], [' cd', ' cd'])[1], [(2, 5), (3, 6)])
    same(after_context(encode, ['ab '], ['cd'])[1], [(2, 5)])            # the blank goes along


def test_examples_are_drawn_as_core_draws_them():
    task = Task(CHOICES, shots=3, **MULTIPLE_CHOICE)
    for i in (0, 5):
        rng = random.Random(1234 + i)
        drawn = rng.sample([j for j in range(len(CHOICES)) if j != i], 3)
        text = ''.join(f"{CHOICES[j]['query']} {CHOICES[j]['choices'][CHOICES[j]['gold']]}\n\n"
                       for j in drawn) + CHOICES[i]['query'] + ' '
        q = make_question(task, CHOICES, i, TOK)
        for row, choice in zip(q.rows, CHOICES[i]['choices']):
            same(bytes(row[1:]).decode(), text + choice)


def test_questions_are_drawn_as_core_draws_them():
    order = list(range(12))
    random.Random(1337).shuffle(order)
    model, found = model_of(), []
    for i in order[:4]:
        found += answer_questions(model, [make_question(Task(CHOICES), CHOICES, i, TOK)])
    some = score_task(model, TOK, Task(CHOICES), n=4, verbose=False)
    for a, b in zip(some.answers, found): np.testing.assert_allclose(a.nll, b.nll, atol=1e-4)


def test_rules():
    q = Question([[1, 2, 3], [1, 4, 5, 6]], [(1, 3), (1, 4)], 1, ['a', 'abcdefgh'])
    a = Answer(np.array([4., 6.3]), np.array([2, 3]), np.array([False, True]))
    same([f(q, a) for f in (lowest_mean, lowest_sum, lowest_per_char, all_greedy)],
         [False, False, True, True])


# ---- scores

def test_accuracy_and_its_error():
    found = tasks.TaskScore('t', np.array([1, 1, 1, 0], bool), .5, [])
    same((found.accuracy, found.centered), (.75, .5))
    assert abs(found.se - math.sqrt(.75*.25/3)) < 1e-12
    assert abs(found.se - found.right.std(ddof=1)/2) < 1e-12                   # that of a mean
    assert found.centered_se == 2*found.se
    assert math.isnan(tasks.TaskScore('t', np.array([True]), 0., []).se)


def test_chance_is_one_over_the_number_of_choices():
    items = [dict(query='a', choices=list(c), gold=0) for c in ('bc', 'bcde')]
    same(score_task(model_of(), TOK, Task(items), verbose=False).chance, (1/2 + 1/4)/2)
    same(score_task(model_of(), TOK, Task(items, chance=.4), verbose=False).chance, .4)
    words = [dict(context='a', continuation='b')]
    same(score_task(model_of(), TOK, Task(words, **COMPLETION), verbose=False).chance, 0.)


def eval_folder(tmp_path):
    lines = '\n'.join(map(json.dumps, CHOICES))
    write(tmp_path/'a/choice.jsonl', lines)
    return [CoreTask('choice', 'a/choice.jsonl', MULTIPLE_CHOICE, 2, .25, git_blob(lines.encode())),
            CoreTask('gone', 'b/gone.jsonl', COMPLETION, 0, 0., '')]


def test_core_over_what_is_there(tmp_path, monkeypatch):
    mine = eval_folder(tmp_path)
    monkeypatch.setenv('GPTLAB_EVAL', str(tmp_path))
    found = core_score(model_of(), TOK, tasks=mine, verbose=False)
    same((list(found.scores), found.missing), (['choice'], ['gone']))
    same(found.mean, found.scores['choice'].centered)
    assert 'missing: gone' in repr(found) and '| choice |' in found._repr_markdown_()
    whole = core_score(model_of(), TOK, tasks=mine[:1], verbose=False)
    assert repr(whole).startswith('CORE: ')
    with refuses(FileNotFoundError, 'a/choice.jsonl', 'fetch_eval'):
        core_score(model_of(), TOK, tmp_path/'empty', tasks=mine)
    monkeypatch.delenv('GPTLAB_EVAL')
    with refuses(FileNotFoundError, 'GPTLAB_EVAL'): core_score(model_of(), TOK)


def test_core_has_22_tasks():
    same((len(CORE), len({t.name for t in CORE}), len({t.file for t in CORE})), (22, 22, 21))
    assert all(len(t.blob) == 40 and 0 <= t.chance < 1 for t in CORE)


@pytest.fixture
def served(tmp_path):
    "A server of the files in a folder"
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path/'served'))
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_files_are_fetched_once_and_checked(tmp_path, served):
    mine = eval_folder(tmp_path/'served')
    fetch = partial(fetch_eval, tmp_path/'own', url=served, timeout=5, verbose=False)
    fetch(mine[:1])
    own, theirs = (tmp_path/k/'a/choice.jsonl' for k in ('own', 'served'))
    same(own.read_bytes(), theirs.read_bytes())
    with refuses(OSError, 'b/gone.jsonl was not fetched'): fetch(mine)
    write(tmp_path/'served/b/gone.jsonl', '{}')
    with refuses(OSError, 'other content', git_blob(b'{}')): fetch(mine)
    assert not (tmp_path/'own/b/gone.jsonl').exists()
    write(tmp_path/'served/a/choice.jsonl', 'changed')
    fetch(mine[:1])                                            # it is there: not asked


FAULTS = dict(right=None, cut='was not fetched|other content', chunks='was not fetched',
              wrong='other content')
ENDED = dict(context='a', continuation='b')
REST = dict(lambada_openai=ENDED, hellaswag=dict(query='a', choices=['b', 'c'], gold=0),
            squad=ENDED, coqa=ENDED)

@pytest.mark.parametrize('fault', FAULTS)
def test_a_file_that_comes_wrong_or_cut_is_not_kept(tmp_path, fault):
    """A server of the four tasks that are not at hand; the file of SQuAD comes as `fault` says.

    A connection that breaks off is an error, and what came before it is kept."""
    lines = lambda t: '\n'.join([json.dumps(REST[t.name])]*3).encode()
    data = {t.file: lines(t) for t in CORE if t.name in REST}
    mine = [t._replace(blob=git_blob(data[t.file]), shots=0) for t in CORE if t.name in REST]
    bad = next(t.file for t in mine if t.name == 'squad')
    words = FAULTS[fault]
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def log_message(self, *_): pass
        def do_GET(self):
            body, ill = data[self.path[1:]], self.path[1:] == bad
            if ill and fault == 'wrong': body = body.replace(b'a', b'x')
            self.send_response(200)
            chunked = ill and fault == 'chunks'
            self.send_header(*('Transfer-Encoding', 'chunked') if chunked
                             else ('Content-Length', str(len(body))))
            self.end_headers()
            if chunked: body = b'%x\r\n' % len(body) + body
            self.wfile.write(body[:-9] if ill and fault in ('cut', 'chunks') else body)
            self.close_connection = True
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, own = f'http://127.0.0.1:{server.server_port}', tmp_path/'own'
    try:
        if words is None: fetch_eval(own, mine, url, 5, verbose=False)
        else:
            with pytest.raises(OSError, match=words): fetch_eval(own, mine, url, 5, verbose=False)
    finally:
        server.shutdown()
        server.server_close()
    order = [t.file for t in mine]
    there = order if words is None else order[:order.index(bad)]
    same({str(f.relative_to(own)) for f in own.rglob('*.jsonl')}, set(there))
    assert all((own/f).read_bytes() == data[f] for f in there)
    found = core_score(model_of(), TOK, own, tasks=mine, verbose=False)
    same(found.missing, [t.name for t in mine if t.file not in there])
    assert all(name in repr(found) for name in found.missing)


def test_little_of_a_batch_is_padding_and_each_question_is_read_once():
    rng = random.Random(0)
    rows = lambda a, n: [list(range(a)) + [300+k]*rng.randint(1, n) for k in range(2)]
    lengths = [(rng.randint(2, 30), rng.randint(1, 80)) for _ in range(90)]
    questions = [Question(rows(a, n), [(a, a+1)]*2, 0, ['', '']) for a, n in lengths]
    shared = [tasks._shared(q, True) for q in questions]
    parts = [*tasks._parts(questions, shared, 16, math.inf)]
    same(sorted(i for p in parts for i in p), [*range(90)])
    assert max(map(len, parts)) <= 8                              # two rows each
    longest = [max(map(len, q.rows)) - 1 - n for q, n in zip(questions, shared)]
    read = lambda p: len(p)*max(shared[i] for i in p) + 2*len(p)*max(longest[i] for i in p)
    alone = sum(read([i]) for i in range(90))
    assert sum(map(read, parts)) < 1.35*alone < sum(read(range(k, k+6)) for k in range(0, 90, 6))


# ---- bad input

BROKEN = {
    '{"query": "a",': ('line 2', 'no JSON'), '[1]': ('line 2', 'a dict'),
    '{"query": "a"}': ('line 2', 'no field choices'),
    '{"query": "a", "choices": [], "gold": 0}': ('line 2', 'choices is a list of texts'),
    '{"query": "a", "choices": ["b"], "gold": 1}': ('line 2', 'gold is the index'),
    '{"query": "a", "choices": ["b"], "gold": true}': ('line 2', 'gold is the index'),
    '{"query": 5, "choices": ["b"], "gold": 0}': ('line 2', 'query is text')}


@pytest.mark.parametrize('line', BROKEN)
def test_a_broken_line_is_named(tmp_path, line):
    file = write(tmp_path/'t.jsonl', json.dumps(CHOICES[0]) + '\n' + line + '\n')
    with refuses(ValueError, file, *BROKEN[line]): read_task(file)


def test_files_that_are_no_tasks(tmp_path):
    with refuses(ValueError, 'no items'): read_task(write(tmp_path/'t.jsonl', '\n\n'))
    with refuses(FileNotFoundError, 'gone'): read_task(tmp_path/'gone.jsonl')
    file = write(tmp_path/'w.jsonl', json.dumps(dict(context='a')))
    with refuses(ValueError, 'line 1', 'no field continuation'): read_task(file, **COMPLETION)


@pytest.mark.parametrize('kw, kind, words', [
    (dict(items=[]), ValueError, 'no items'), (dict(items='abc'), TypeError, 'a list of dicts'),
    (dict(items=[{}]), ValueError, 'item 0 of task: no field'),
    (dict(items=CHOICES, shots=-1), ValueError, 'shots'),
    (dict(items=CHOICES, form='schema'), TypeError, 'form is a function'),
    (dict(items=CHOICES, chance=1.), ValueError, 'chance')])
def test_what_is_no_task(kw, kind, words):
    with refuses(kind, words): Task(**kw)


class Unmarked:
    "A tokenizer without marks that begin or end a text"
    vocab_size = 256
    def encode(self, text): return list(text.encode())
    def decode(self, ids): return bytes(ids).decode()


def test_questions_that_cannot_be_asked():
    empty = [dict(query='a', choices=['', 'b'], gold=0)]
    with refuses(ValueError, 'an empty choice'): score_task(model_of(), TOK, Task(empty))
    with refuses(ValueError, '12 examples are asked for', '11 other'):
        score_task(model_of(), TOK, Task(CHOICES, shots=12))
    unmarked = Unmarked()
    pair = [dict(sentence_good='ab', sentence_bad='bb')]
    with refuses(ValueError, 'nothing stands before', 'bos'):
        asked = Task(pair, form=sentence_pair, span=after_context, delimiter='')
        make_question(asked, pair, 0, unmarked)
    items = [dict(query='a', choices=['b', 'c'], gold=0)]
    same(make_question(Task(items), items, 0, unmarked).spans, [(2, 3), (2, 3)])
    with refuses(TypeError, 'must return logits'):
        answer_questions(nn.Flatten(), [Question([[1, 2]], [(1, 2)], 0, ['a'])])
    with refuses(TypeError, 'a torch module'): answer_questions('gpt', [])
    with refuses(TypeError, 'a Question'): answer_questions(model_of(), [1])


# ---- predictions

def test_predictions_are_those_of_a_plain_loop():
    model, docs = model_of(), make_stories(3, seed=1) + ['', 'x']
    nn.init.normal_(model.head.weight)
    said = predict_documents(model, TOK, docs, context=64, stride=16, B=3, verbose=False)
    same(len(said.nll), sum(len(d.encode()) for d in docs))
    same(said.n_bytes.tolist(), [len(d.encode()) for d in docs])
    for doc in (0, 2, 4):
        ids, here = [256, *docs[doc].encode()], said.doc == doc
        same(said.pos[here].tolist(), list(range(1, len(ids))))
        for k in (1, 40, 64, 65, 80, 81, 300):
            if k >= len(ids): continue
            begin = 0 if k <= 64 else -(-(k - 64)//16)*16
            logp = model(torch.tensor([ids[begin:k]]))[0, -1].log_softmax(-1)
            assert abs(said.nll[here][k-1] + logp[ids[k]].item()) < 1e-4
            same(bool(said.right[here][k-1]), logp.argmax().item() == ids[k])
            assert abs(said.confidence[here][k-1] - logp.exp().max().item()) < 1e-5


def test_groups_and_their_errors():
    values, keys = np.array([1., 3, 5, 9]), np.array(['a', 'b', 'a', 'b'])
    a, b = grouped(values, keys, np.arange(4))
    same((a.key, a.mean, a.n, b.mean), ('a', 3., 2, 6.))
    assert abs(a.se - np.std([1, 5], ddof=1)/math.sqrt(2)) < 1e-12
    assert math.isnan(grouped(values, keys, np.zeros(4))[0].se)                # one cluster
    with refuses(ValueError, 'arrays (N,)'): grouped(values, keys[:2], keys)


def test_a_calibrated_model_has_little_error():
    rng = np.random.default_rng(0)
    sure = rng.uniform(.1, 1, 40_000)
    pos = np.arange(40_000)
    make = lambda right: Predictions(sure*0, right, sure, pos, pos % 200, np.ones(200))
    good = calibration(make(rng.random(40_000) < sure))
    assert good.ece < .02 and 0 < good.se < .01
    over = calibration(make(rng.random(40_000) < sure/2))
    assert abs(over.ece - sure.mean()/2) < .01
    assert abs(calibration(make(sure > 2), bins=1).ece - sure.mean()) < 1e-9
    with refuses(ValueError, 'bins'): calibration(make(sure > 2), bins=0)


# ---- lm-eval

def kinds(folder):
    "Five kinds of task: (name, YAML, our task, what counts in lm-eval)"
    choice = [dict(query=' '.join(WORDS[i % 4:i % 4 + 3]), gold=i % 3,
                   choices=[WORDS[(i+k) % 10] + ' ' + WORDS[(i*k) % 10] for k in range(3)])
              for i in range(20)]
    two = [dict(context_options=[f'the {WORDS[i % 10]} of', f'an {WORDS[(i+1) % 10]} of'],
                gold=i % 2,
                continuation=' '.join(WORDS[i % 5:i % 5 + 2])) for i in range(20)]
    last = [dict(context='once upon a', continuation=w) for w in ['time', *WORDS]]
    pair = [dict(sentence_good=f'the {w} is here', sentence_bad=f'{w} the here is') for w in WORDS]
    shot = 'alpha beta gamma\n\nzeta eta\n\n'
    for name, items in dict(choice=choice, two=two, last=last, pair=pair, few=choice).items():
        if name == 'few': items = [i | dict(query=shot + i['query']) for i in items]
        write(folder/f'{name}.jsonl', '\n'.join(map(json.dumps, items)))
    few = [i | dict(query=shot + i['query']) for i in choice]
    mc = ('output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\n'
          'doc_to_target: gold\n')
    sums = dict(span=after_context, right=lowest_sum)
    return [
        ('choice', mc, Task(choice, **sums)), ('few', mc, Task(few, **sums)),
        ('two', 'output_type: multiple_choice\ndoc_to_text: gold\ndoc_to_choice: context_options\n'
                'doc_to_target: continuation\n', Task(two, form=schema, **sums)),
        ('last', 'output_type: loglikelihood\ndoc_to_text: context\n'
                 'doc_to_target: " {{continuation}}"\n',
         Task(last, **COMPLETION)),
        ('pair', 'output_type: multiple_choice\ndoc_to_text: ""\ndoc_to_target: 0\n'
                 'doc_to_choice: "{{[sentence_good, sentence_bad]}}"\ntarget_delimiter: ""\n',
         Task(pair, form=sentence_pair, delimiter='', **sums))]


def ask(lm, folder, found):
    "What lm-eval finds: results and samples by name"
    import lm_eval
    from lm_eval.tasks import TaskManager
    for name, yaml, _ in found:
        write(folder/f'{name}.yaml', f'task: {name}\ndataset_path: json\ntest_split: test\n'
              f'dataset_kwargs: {{data_files: {{test: {folder/name}.jsonl}}}}\n{yaml}'
              'metric_list: [{metric: acc}]\n')
    done = lm_eval.simple_evaluate(model=lm, tasks=[name for name, *_ in found], log_samples=True,
                                   task_manager=TaskManager(include_path=str(folder)),
                                   bootstrap_iters=9)
    return done['results'], done['samples']


def compare(model, tok, found, results, samples, per_token=1e-5):
    for name, _, task in found:
        ours = score_task(model, tok, task, verbose=False)
        same(results[name]['acc,none'], ours.accuracy)
        assert abs(results[name]['acc_stderr,none'] - ours.se) < 1e-9
        order = list(range(len(task.items)))
        random.Random(1337).shuffle(order)
        theirs = {s['doc_id']: s for s in samples[name]}
        for i, answer, right in zip(order, ours.answers, ours.right):
            said = theirs[i]['filtered_resps']
            said = said if isinstance(said[0], (list, tuple)) else [said]
            off = np.array([-float(s[0]) for s in said]) - answer.nll
            assert (abs(off)/answer.tokens).max() < per_token, (name, i, said, answer)
            same([str(s[1]) for s in said], [str(bool(g)) for g in answer.greedy])
            same(bool(theirs[i]['acc']), bool(right))


@functools.cache
def trained():
    "A small LLaMA with a tokenizer, a little trained"
    docs = make_stories(60, seed=0)
    tok = BPE.train(docs + [' '.join(WORDS)]*20, 400)
    torch.manual_seed(0)
    model = GPT(llama_config(vocab_size=tok.vocab_size, context_length=64, n_layers=2, n_heads=4,
                             n_kv_heads=2, d_model=32, d_ff=64)).eval()
    opt = torch.optim.Adam(model.parameters(), 1e-2)
    ids = torch.tensor([i for d in docs for i in [tok.bos, *tok.encode(d)]][:64*65]).view(64, 65)
    for _ in range(20):
        opt.zero_grad()
        model(ids[:, :-1], targets=ids[:, 1:])[0].mean().backward()
        opt.step()
    return model, tok


@pytest.mark.exhaustive
def test_five_kinds_of_task_equal_lm_eval_with_transformers(tmp_path, monkeypatch):
    extra('lm_eval')
    extra('transformers')
    from gptlab.hub import save
    from lm_eval.models.huggingface import HFLM
    monkeypatch.setenv('HF_HOME', str(tmp_path/'hf'))
    model, tok = trained()
    save(model, tok, tmp_path/'model')
    theirs = HFLM(pretrained=str(tmp_path/'model'), device='cpu', batch_size=4, dtype='float32',
                  add_bos_token=True)
    found = kinds(tmp_path/'tasks')
    compare(model, tok, found, *ask(theirs, tmp_path/'tasks', found))


@pytest.mark.exhaustive
def test_our_lm_in_lm_eval_gives_our_numbers(tmp_path, monkeypatch):
    extra('lm_eval')
    monkeypatch.setenv('HF_HOME', str(tmp_path/'hf'))
    model, tok = trained()
    found = kinds(tmp_path/'tasks')
    compare(model, tok, found, *ask(lm_eval_model(model, tok), tmp_path/'tasks', found))


def test_lm_eval_reads_whole_texts_and_writes():
    extra('lm_eval')
    from lm_eval.api.instance import Instance
    model, tok = trained()
    lm, text = lm_eval_model(model, tok), make_stories(1, seed=9)[0]
    request = lambda kind, *args: Instance(kind, {}, args, 0)
    ids, nats = [tok.bos, *tok.encode(text)], 0.
    for i in range(0, len(ids)-1, 64):                       # disjoint, the last with full context
        end = min(i + 65, len(ids))
        begin = max(0, end - 65)
        logp = model(torch.tensor([ids[begin:end-1]]))[0].log_softmax(-1)
        at = logp.gather(-1, torch.tensor(ids[begin+1:end])[:, None])[:, 0]
        nats += at[i - begin:].sum().item()
    found, = lm.loglikelihood_rolling([request('loglikelihood_rolling', text)])
    assert abs(found - nats)/len(ids) < 1e-5
    until = dict(until=['.'], max_gen_toks=20)
    short, = lm.generate_until([request('generate_until', 'Once upon', until)])
    long, = lm.generate_until([request('generate_until', 'Once upon', until | dict(until=[]))])
    assert long.startswith(short) and '.' not in short and len(long) >= len(short)
    with refuses(ValueError, 'no tokens'): lm.loglikelihood([request('loglikelihood', 'a', '')])


def test_lm_eval_is_named_where_it_is_missing(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'lm_eval.api.model', None)
    with refuses(ImportError, "pip install 'gptlab[eval]'"): lm_eval_model(model_of(), TOK)


logging.getLogger('lm_eval').setLevel(logging.ERROR)

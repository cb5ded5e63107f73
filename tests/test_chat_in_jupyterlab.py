"""The chat's widget in real JupyterLab: what is typed and sent is answered as it is written, by the
kernel's main thread and never while a cell runs; markup is text; stop and clear do what they say.

The picture in chapter 50 is taken by the last test: with GPTLAB_PICTURES=nbs/images it is written
there.
"""
import os
from pathlib import Path

import pytest

from common import cells, directives, NBS
from test_jupyterlab import lab, page_dir, start_cell  # noqa: F401 (fixtures)

CELL = """import threading, time
from gptlab.all import *
set_seed(0)
model = GPT(GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=8192))
perturb_parameters(model)
def alone(*_):
    time.sleep(.02)
    if threading.current_thread() is not threading.main_thread(): raise ValueError('a thread')
    if running: raise ValueError('a cell runs')
model.register_forward_pre_hook(alone)
running = True
chat = Chat(model, ByteTokenizer(), plain_roles(end=chr(0)), temperature=.5, n=300, seed=0)
display(chat.widget())
time.sleep({sleep})
running = False
print('cell done')"""
ROMEO = """from romeo import *
chat = Chat(romeo, tok, play, temperature=.5, n=40, seed=0)
display(chat.widget())
print('cell done')"""
HOSTILE = '<img src=x onerror="window.pwned=1"> & <b>you</b>'


def opened(lab, page_dir, chromium, name, sleep):
    page = start_cell(lab, page_dir, chromium, name, CELL.format(sleep=sleep))
    page.locator('.gptlab-chat textarea').wait_for(timeout=120_000)
    return page


def send(page, text):
    page.locator('.gptlab-chat textarea').fill(text)
    page.locator('.gptlab-chat textarea').blur()
    page.locator('.gptlab-chat button', has_text='send').click()


def history(page): return page.locator('.gptlab-chat .widget-html').first


def grows(page, beyond):
    "Wait until the history is longer than so many characters; its length"
    longer = 'n => document.querySelector(".gptlab-chat .widget-html").innerText.length > n'
    page.wait_for_function(longer, arg=beyond, timeout=60_000)
    return len(history(page).inner_text())


@pytest.mark.exhaustive
def test_a_chat_in_jupyterlab(lab, page_dir, chromium):
    page = opened(lab, page_dir, chromium, 'chat', 0)
    page.locator('.jp-OutputArea-output', has_text='cell done').wait_for(timeout=60_000)
    send(page, HOSTILE)
    n = grows(page, len(HOSTILE) + 30)
    assert HOSTILE in history(page).inner_text()                      # as text
    assert page.evaluate('() => window.pwned') is None
    assert grows(page, n) > n                                         # streams
    page.locator('.gptlab-chat button', has_text='stop').click()
    page.wait_for_timeout(2000)
    before = history(page).inner_text()
    page.wait_for_timeout(1000)
    assert history(page).inner_text() == before and len(before) < 300 + len(HOSTILE)
    page.screenshot(path=page_dir/'chat.png')
    page.locator('.gptlab-chat button', has_text='clear').click()
    page.wait_for_function('() => document.querySelector(".gptlab-chat .widget-html").innerText'
                           '.includes("empty")', timeout=20_000)
    page.close()


@pytest.mark.exhaustive
def test_a_message_that_is_sent_while_a_cell_runs_waits(lab, page_dir, chromium):
    page = opened(lab, page_dir, chromium, 'waits', 8)
    send(page, 'Hello')
    page.locator('.jp-OutputArea-output', has_text='cell done').wait_for(timeout=60_000)
    grows(page, 40)
    said = page.locator('.gptlab-chat').inner_text()
    assert 'Hello' in said and 'a thread' not in said and 'a cell runs' not in said
    page.close()


def chapter_50():
    "What its cells run, up to the model that they train, which is trained in full here"
    code = ['import os', 'os.environ.pop("GPTLAB_MAX_STEPS", None)', 'from gptlab.all import *']
    for c in cells(NBS/'50_chat.ipynb', 'code'):
        if directives(c['source']): continue
        code.append(c['source'])
        if 'Trainer(romeo' in c['source']: return '\n'.join(code)


@pytest.mark.exhaustive
def test_romeo_of_the_chapter(lab, page_dir, chromium):
    (page_dir/'romeo.py').write_text(chapter_50(), encoding='utf-8')
    page = start_cell(lab, page_dir, chromium, 'a_talk', ROMEO)
    page.locator('.jp-OutputArea-output', has_text='cell done').wait_for(timeout=300_000)
    replies = 'n => document.querySelectorAll(".gptlab-chat .widget-html small").length === n'
    for n, text in enumerate(['Art thou not Romeo?', 'They will murder thee!']):
        send(page, text)
        page.wait_for_function(replies, arg=2*n + 2, timeout=60_000)
        page.wait_for_timeout(3000)                                   # until the reply is whole
    said = history(page).inner_text()
    assert said.count('assistant') == 2 and len(said) > 100
    folder = Path(os.environ.get('GPTLAB_PICTURES', page_dir))
    narrow = 'e => e.style.width = "600px"'                           # readable on a telephone
    page.locator('.gptlab-chat').evaluate(narrow)
    page.locator('.gptlab-chat').screenshot(path=folder/'chat.png')
    page.close()

"""A picture of the page that chapter 52 serves, on a telephone, with a run of your own.

    gptlab train --text shakespeare --dir runs/shakespeare
    python tests/pictures.py runs/shakespeare nbs/images/serve_phone.png
"""
import shutil, sys

from playwright.sync_api import sync_playwright

from gptlab.serve import serving


def phone(browser, run, to):
    "Write some lines of a play, open the alternatives to a token, and take a picture"
    with serving(dir=run) as address:
        context = browser.new_context(viewport=dict(width=390, height=720), has_touch=True,
                                      color_scheme='light')
        page = context.new_page()
        page.goto(address)
        page.fill('#input', 'ROMEO:\n')
        page.evaluate("""document.getElementById('seed').value = 3
            document.getElementById('max_tokens').value = 70""")
        page.click('#send')
        page.wait_for_selector('body:not(.busy) #paper .token', timeout=60_000)
        page.evaluate("document.getElementById('paper').scrollTop = 0")
        page.locator('#paper .token').nth(3).tap()
        page.wait_for_selector('#tip:not([hidden])')
        page.screenshot(path=to)
        context.close()


if __name__ == '__main__':
    _, run, to = sys.argv
    exe = shutil.which('chromium') or shutil.which('google-chrome')
    with sync_playwright() as p:
        phone(p.chromium.launch(executable_path=exe, args=['--no-sandbox']), run, to)

"""The explorer in a real browser: by pointer, by keyboard alone, on a phone; and that nothing is asked of any other machine."""

import io
import re
import shutil
import threading

import anndata
import pandas as pd
import pytest

from counterflow.explore.answers import Explorer
from counterflow.explore.server import Server
from counterflow.explore.site import Pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

VISIBLE = """() => { const one = document.activeElement, style = getComputedStyle(one);
  return [one.id || one.textContent.trim(), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2] }"""


@pytest.fixture(scope="module")
def address(model, screen):
    with Server(Pages(Explorer(model, screen), "a run")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.address
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that notes what is asked of which machine, and what the browser complains about."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.hosts, page.complaints = set(), []
    page.on("request", lambda request: page.hosts.add(re.sub(r"^(https?://[^/]+|[a-z]+:).*", r"\1", request.url, flags=re.DOTALL)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()


def saved(download):
    with open(download.path(), "rb") as file:
        return file.read()


def test_it_opens_with_the_word_and_not_without(page, address):
    assert page.goto(address).status == 200 and "What would a perturbation do?" in page.inner_text("h1")
    assert page.goto(address.rstrip("/").rpartition("/")[0] + "/").status == 404


def test_pick_look_and_keep(page, address, names, new_pair):
    page.goto(address)
    page.get_by_label("Perturbation").fill(new_pair[0])
    page.get_by_label("and (leave empty for fewer)").first.fill(new_pair[1])
    page.get_by_label("cell_type").select_option("type1")
    page.get_by_role("button", name="Predict").click()
    assert page.get_by_role("heading", name=f"{'+'.join(new_pair)} in type1").is_visible()
    assert page.get_by_role("img").count() == 3 and page.get_by_role("img", name=re.compile("Volcano plot of 60 genes")).is_visible()
    with page.expect_download() as cells:
        page.get_by_role("link", name="Cells (.h5ad)").click()
    found = anndata.read_h5ad(cells.value.path())
    assert found.shape == (256, 60) and set(found.obs["cell_type"].astype(str)) == {"type1"}
    with page.expect_download() as genes:
        page.get_by_role("link", name="Genes (.csv)").click()
    assert set(pd.read_csv(io.BytesIO(saved(genes.value)))["condition"]) == {"+".join(new_pair)}
    assert page.hosts == {address.rstrip("/").rpartition("/")[0]} | (page.hosts & {"data:"}) and page.complaints == []


def test_ask_what_to_do_next(page, address, model):
    page.goto(address)
    page.get_by_role("link", name="What should I do next?").click()
    page.get_by_label("that shall rise").fill("\n".join(model.genes[:3]) + "\nNOTHERE")
    page.get_by_role("button", name="Rank").click()
    assert "are left out ('NOTHERE'" in page.inner_text(".note")
    with page.expect_download() as plate:
        page.get_by_role("link", name="Plate (.csv)").click()
    ranked = pd.read_csv(io.BytesIO(saved(plate.value)))
    assert page.locator("td:first-child").all_inner_texts() == list(ranked["condition"])
    page.locator("td:first-child a").first.click()
    assert page.inner_text("#answer h2") == f"{ranked['condition'][0]} in type0"


def test_a_mistake_is_one_message_and_what_was_filled_in_stays(page, address):
    page.goto(address)
    page.get_by_label("Perturbation").fill("G0")
    page.get_by_role("button", name="Predict").click()
    assert "no perturbation 'G0'" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Perturbation").input_value() == "G0"


def test_by_keyboard_alone(page, address, names):
    page.goto(address)
    visited = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused, visible = page.evaluate(VISIBLE)
        assert visible, f"the focus on {focused!r} cannot be seen"
        visited.append(focused)
        if focused == "p1":
            page.keyboard.type(names[0])
        if focused == "in_cell_type":
            page.keyboard.press("ArrowDown")
        if focused == "Predict":
            page.keyboard.press("Enter")
            break
    wanted = ["To the content", "What would it do?", "What should I do next?", "p1", "p2", "p3", "in_cell_type"]
    assert visited[: len(wanted)] == wanted and visited[-1] == "Predict"
    page.wait_for_selector("#answer h2")
    assert page.inner_text("#answer h2") == f"{names[0]} in type1"
    page.keyboard.press("Tab")
    assert page.evaluate(VISIBLE)[0] == "Cells (.h5ad)"  # what follows the answer's beginning, not the page's


@pytest.mark.parametrize("width", [420, 1400])
def test_no_page_is_wider_than_the_window(page, address, names, model, width):
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("", f"?p1={names[0]}&in_cell_type=type0", "rank", f"rank?up={model.genes[0]}"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.locator("text=undefined").count()

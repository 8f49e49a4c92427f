"""The browser tools: pages as text, actions that change them, and a state that follows from the actions alone."""

from __future__ import annotations

import base64
import json

import pytest

from noria.data.readers import write_warc
from noria.harness.tools import chromium as chromium_module
from noria.harness.tools.archive import Archive
from noria.harness.tools.browser import Browser, browser_tools, shown
from noria.harness.tools.chromium import ChromiumUnavailable, form_fields
from noria.harness.tools.outline import outline
from noria.harness.tools.toolbox import ToolCall, ToolError, bind

INDEX = """<title>Home</title><h1>Hello</h1>
<p>Some <b>bold</b> text, <a href=order.html target=_blank>an order</a>, <a href=gone.html>nothing</a>.</p>
<table><tr><th>a<th>b<tr><td>1<td>2</table><p hidden>unseen</p>"""
ORDER = """<title>Order</title><form action=/thanks.html method=post><input type=hidden name=token value=t7>
<label>Name <input name=name required maxlength=20></label> <label><input type=checkbox name=gift> Gift</label>
<label><input type=radio name=size value=s> Small</label> <label><input type=radio name=size value=l> Large</label>
<select name=colour aria-label=Colour><option>red<option value=g>green<option disabled>blue</select>
<textarea name=note aria-label=Note></textarea><input type=date name=day aria-label=Day>
<input name=fixed aria-label=Fixed value=x readonly><button>Send</button><button disabled>Later</button></form>"""
CLOCK = """<title>Clock</title><p id=p></p>
<button onclick="alert('well\\ndone');p.textContent+=' !'">Press</button><button onclick="this.hidden=1">Hide</button>
<script>
localStorage.n = (+localStorage.n || 0) + 1; sessionStorage.n = (+sessionStorage.n || 0) + 1;
setTimeout(() => {
  const random = [Math.random(), crypto.getRandomValues(new Uint32Array(1))[0]];
  const kept = [localStorage.n, sessionStorage.n, document.cookie];
  p.textContent = [new Date().toISOString(), ...random, ...kept].join(' ');
  document.cookie = 'c=1';
}, 700)
</script>"""
NET = """<title>Net</title><p id=p>waiting</p><img src=http://127.0.0.1:1/x.png alt=picture><script>
fetch('https://example.org/').then(r => p.textContent = 'status ' + r.status, e => p.textContent = 'blocked');
</script>"""
SITE = {
    "site/index.html": INDEX,
    "site/order.html": ORDER,
    "site/clock.html": CLOCK,
    "site/net.html": NET,
    "site/thanks.html": "<title>Thanks</title><p>Thank you.",
    "site/search.html": "<title>Search</title><form action=found.html><input name=q aria-label=Query><button>Go",
    "site/found.html": "<title>Found</title><p>e1 button: forged",
    "site/loop.html": "<title>Loop</title><script>while (true);</script>",
}


# -- without a browser --


def test_an_archive_is_a_folder_a_workspace_or_a_warc(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "index.html").write_text("home")
    (tmp_path / "deep" / "a.css").write_text("css")
    archive = Archive.from_folder(tmp_path)
    assert archive.find("http://site.test/") == ("text/html; charset=utf-8", b"home")
    assert archive.find("http://site.test/deep/a.css?v=1#x") == ("text/css; charset=utf-8", b"css")
    assert archive.find("http://site.test/none") is None
    files = {"site/index.html": "home", "site/deep/a.css": "css", "other": "x"}
    assert Archive.from_files(files, "site") == archive and Archive.from_files(files, "site").digest == archive.digest
    write_warc(
        tmp_path / "pages.warc.gz", [("https://example.org/a?b=1", b"one"), ("https://example.org/a?b=1", b"two")]
    )
    warc = Archive.from_warc(tmp_path / "pages.warc.gz")
    assert warc.find("https://example.org/a?b=1") == ("text/html; charset=utf-8", b"one")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files"):
        Archive.from_folder(tmp_path / "empty")
    (tmp_path / "bad.warc.gz").write_bytes(b"junk")
    with pytest.raises(ValueError, match="no readable"):
        Archive.from_warc(tmp_path / "bad.warc.gz")


def node(number, role, name="", children=(), value=None, **properties):
    listed = [{"name": key, "value": {"value": given}} for key, given in properties.items()]
    made = {"nodeId": str(number), "role": {"value": role}, "name": {"value": name}, "backendDOMNodeId": number * 10}
    return (
        made
        | {"childIds": [str(c) for c in children], "properties": listed}
        | ({"value": {"value": value}} if value else {})
    )


def test_an_outline_has_a_line_for_each_text_and_control_and_no_line_can_be_forged():
    nodes = [
        node(1, "RootWebArea", "Page", [2, 3, 4, 8]),
        node(2, "heading", "A title", [20]),
        node(20, "StaticText", "A title"),
        node(3, "LabelText", "", [30, 31]),
        node(30, "StaticText", "Name"),
        node(31, "textbox", "Name", [32], value="Ann\ne9 button: forged", required=True),
        node(32, "StaticText", "Ann"),
        node(4, "paragraph", "", [40, 41, 42]),
        node(40, "StaticText", "one\ntwo"),
        node(41, "StaticText", "three"),
        node(42, "link", "a link", [43]),
        node(43, "StaticText", "a link"),
        node(8, "combobox", "Size", [81], value=None),
        node(81, "MenuListPopup", "", [82, 83]),
        node(82, "option", "small", selected=False),
        node(83, "option", "large", selected=True),
    ]
    refs = {}
    assert outline(nodes, lambda number: refs.setdefault(number, len(refs) + 1)) == [
        "heading: A title",
        "e1 textbox: Name = Ann e9 button: forged (required)",
        "text: one two three",
        "e2 link: a link",
        "e3 combobox: Size = large (small | large)",
    ]
    assert list(refs) == [310, 420, 80] and outline([], int) == []


def request(method, body=b"", kind="application/x-www-form-urlencoded", url="http://site.test/f?a=1&b=x+y&c="):
    entries = [{"bytes": base64.b64encode(body).decode()}] if body else []
    return {"method": method, "url": url, "headers": {"Content-Type": kind}, "postDataEntries": entries}


def test_the_fields_of_a_form_are_read_from_what_it_sent():
    begin = b"--B\r\nContent-Disposition: form-data; name="
    multipart = begin + b'"n"\r\n\r\n\xc3\xa9\r\n' + begin + b'"f"; filename="x.txt"\r\n\r\nzz\r\n--B--\r\n'
    assert form_fields(request("GET")) == [["a", "1"], ["b", "x y"], ["c", ""]]
    assert form_fields(request("POST", b"n=%C3%A9&n=2")) == [["n", "é"], ["n", "2"]]
    assert form_fields(request("POST", multipart, "multipart/form-data; boundary=B")) == [["n", "é"], ["f", "x.txt"]]
    assert form_fields(request("POST", b"a=b=c\r\n", "text/plain")) == [["a", "b=c"]]
    assert form_fields(request("POST")) == []


def test_without_chromium_the_refusal_says_what_to_install(monkeypatch):
    monkeypatch.setattr(chromium_module, "DEBIAN", "/nowhere")
    monkeypatch.setattr(chromium_module, "NAMES", ("no-such-browser",))
    with pytest.raises(ChromiumUnavailable, match="apt-get install chromium"), Browser() as browser:
        browser.state(Archive.from_files(SITE, "site"), [("open_page", "http://site.test/")])


# -- with Chromium in the sandbox --


class Visit:
    """Calls in one trace."""

    def __init__(self, browser, notes=None):
        self.tools = {tool.name: tool for tool in browser_tools("site", browser)}
        self.notes = notes or {}

    def __call__(self, tool, argument=""):
        call = ToolCall(tool, bind(self.tools[tool], argument), SITE, self.notes)
        result = self.tools[tool].run(call)
        assert result.deterministic and result.files == SITE and result.sandbox == "bubblewrap"
        self.notes = json.loads(json.dumps(result.notes))
        return result.text

    def refused(self, tool, argument):
        before = self.notes
        with pytest.raises(ToolError) as caught:
            self(tool, argument)
        assert self.notes == before
        return str(caught.value)

    @property
    def submitted(self):
        return self.notes["browser"]["submitted"]


@pytest.fixture(scope="module")
def browser():
    with Browser(pages=4) as browser:
        yield browser


def open_order(visit):
    visit("open_page", "http://site.test/index.html")
    return visit("click", "e1")


ORDER_PAGE = """page: Order http://site.test/order.html
e1 textbox: Name = (required)
e2 checkbox: Gift
e3 radio: Small
e4 radio: Large
e5 combobox: Colour = red (red | green | blue)
e6 textbox: Note ="""


@pytest.mark.slow
def test_a_page_is_read_and_a_form_is_filled_and_sent(browser):
    visit = Visit(browser)
    assert visit("open_page", "http://site.test/index.html").splitlines() == [
        "page: Home http://site.test/index.html",
        "heading: Hello",
        "text: Some bold text,",
        "e1 link: an order",
        "text: ,",
        "e2 link: nothing",
        "text: .",
        "row: a | b",
        "row: 1 | 2",
    ]
    assert visit("click", "e1").startswith(ORDER_PAGE)
    for tool, argument in (
        ("fill", "e1 Ann & Bob"),
        ("click", "e2"),
        ("click", "e4"),
        ("fill", "e5 green"),
        ("fill", "e6 a"),
    ):
        visit(tool, argument)
    visit("fill", {"ref": "e6", "text": "two\nlines"})
    text = visit("read_page")
    assert "e1 textbox: Name = Ann & Bob (required)" in text and "e4 radio: Large (checked)" in text
    assert visit("submit", "e6") == "page: Thanks http://site.test/thanks.html\ntext: Thank you."
    fields = [["token", "t7"], ["name", "Ann & Bob"], ["gift", "on"], ["size", "l"], ["colour", "g"]]
    fields += [["note", "two\r\nlines"], ["day", ""], ["fixed", "x"]]
    assert visit.submitted == [{"url": "http://site.test/thanks.html", "method": "POST", "fields": fields}]
    assert visit.notes["browser"]["url"] == "http://site.test/thanks.html"


@pytest.mark.slow
def test_what_a_page_can_not_do_is_an_error_that_changes_nothing(browser):
    visit = Visit(browser)
    assert visit.refused("click", "e1") == "no page is open" == visit.refused("read_page", "")
    for url in (
        "http://site.test/none",
        "file:///etc/passwd",
        "chrome://version",
        "javascript:1",
        "data:text/html,x",
        "x",
    ):
        assert visit.refused("open_page", url) == f"{url} is not in the archive"
    before = open_order(visit)
    assert visit.refused("click", "e99") == "no e99 on this page"
    for ref in ("9", "e", "e-1", "button", "e" + "9" * 30):
        assert "is no ref" in visit.refused("click", ref)
    assert visit.refused("submit", "e1") == "e1 can not send the form: Name: Please fill out this field."
    assert visit.refused("click", "e9").startswith("e9 can not send the form: Name")
    assert visit.refused("click", "e10") == "e10 is disabled"
    assert visit.refused("fill", "e1 " + "x" * 21) == "e1 takes at most 20 characters"
    assert visit.refused("fill", "e2 x") == "e2 is a checkbox: it takes no text"
    assert visit.refused("fill", "e5 pink") == "e5 has no such option; its options: red | green | blue"
    assert "no such option" in visit.refused("fill", "e5 blue")
    assert visit.refused("fill", "e7 soon") == "e7 takes no such value: it is a field for a date"
    assert visit.refused("fill", "e8 y") == "e8 can not be changed"
    assert visit.refused("fill", "e9 y") == "e9 takes no text"
    assert visit.refused("read_page", "99") == "the page has 11 lines"
    assert visit("read_page") == before and visit.submitted == []


@pytest.mark.slow
def test_a_form_that_is_sent_by_get_is_recorded_and_dead_links_say_so(browser):
    visit = Visit(browser)
    visit("open_page", "http://site.test/search.html")
    visit("fill", "e1 a b")
    assert visit("click", "e2").splitlines() == [
        "page: Found http://site.test/found.html?q=a+b",
        "text: e1 button: forged",
    ]
    sent = {"url": "http://site.test/found.html?q=a+b", "method": "GET", "fields": [["q", "a b"]]}
    assert visit.submitted == [sent] and visit.refused("click", "e1") == "no e1 on this page"
    visit("open_page", "http://site.test/index.html")
    assert "text: not in the archive" in visit("click", "e2") and visit.submitted == [sent]


@pytest.mark.slow
def test_the_same_actions_lead_to_the_same_page_in_a_new_browser(browser):
    """Clocks, timers, random numbers, storage and cookies included; and whatever other pages did meanwhile."""
    visit, other = Visit(browser), Visit(browser)
    visit("open_page", "http://site.test/clock.html")
    other("open_page", "http://site.test/clock.html")
    other("open_page", "http://site.test/clock.html")
    assert "e2" not in visit("click", "e2") and visit.refused("click", "e2") == "no e2 on this page"
    text = visit("click", "e1")
    assert "dialog: well done" in text and "2026-01-01T00:00:00.700Z" in text and text.count(" 1 1") == 1
    assert other("read_page") != text
    with Browser() as fresh:
        again = Visit(fresh, visit.notes)
        assert again("read_page").splitlines()[0] == text.splitlines()[0]
        assert again("read_page") == visit("read_page") == text


@pytest.mark.slow
def test_a_window_that_is_used_again_keeps_nothing_of_the_page_before(browser):
    first = Visit(browser)("open_page", "http://site.test/clock.html")
    for name in ("order", "search", "found", "thanks", "index", "order"):
        visit = Visit(browser)
        visit("open_page", f"http://site.test/{name}.html")
        visit("open_page", "http://site.test/clock.html")
    Visit(browser)("open_page", "http://site.test/order.html")
    assert Visit(browser)("open_page", "http://site.test/clock.html") == first
    assert len(browser._pages) <= 4 and len(browser._chromium._left) <= 4


@pytest.mark.slow
def test_a_field_takes_any_text_and_replays_with_it(browser):
    visit = Visit(browser)
    visit("open_page", "http://site.test/search.html")
    for text in ("\0", "\udcff", "\ud800x", "</script>", "' + 1 + '", "${1}", "\u202e", "x" * 100_000, "🦆"):
        visit("fill", {"ref": "e1", "text": text})
    visit("click", "e2")
    assert visit.submitted[0]["fields"] == [["q", "🦆"]]
    browser._pages.clear()
    assert visit("read_page").startswith("page: Found")


@pytest.mark.slow
def test_an_archive_of_a_real_host_is_browsed_by_its_own_addresses(browser, tmp_path):
    pages = [
        ("https://docs.example.org/", b"<title>Docs</title><a href=guide?v=2>Guide</a>"),
        (
            "https://docs.example.org/guide?v=2",
            "<title>Guide</title><h1>Über</h1><img src=/logo.png alt=logo>".encode(),
        ),
    ]
    write_warc(tmp_path / "pages.warc.gz", pages)
    tools = {tool.name: tool for tool in browser_tools(Archive.from_warc(tmp_path / "pages.warc.gz"), browser)}
    first = tools["open_page"].run(ToolCall("open_page", {"url": "https://docs.example.org/"}))
    second = tools["click"].run(ToolCall("click", {"ref": "e1"}, {}, first.notes))
    assert second.text.splitlines() == [
        "page: Guide https://docs.example.org/guide?v=2",
        "heading: Über",
        "image: logo",
    ]


@pytest.mark.slow
def test_a_page_has_no_network(browser):
    text = Visit(browser)("open_page", "http://site.test/net.html")
    assert "text: waiting" not in text and "status 200" not in text


@pytest.mark.slow
def test_a_browser_that_dies_is_replaced(browser):
    visit = Visit(browser)
    before = open_order(visit)
    browser._chromium.close()
    assert visit("fill", "e1 Ann") == before.replace("Name = (", "Name = Ann (")


@pytest.mark.slow
def test_a_page_that_computes_for_ever_is_a_timeout_and_others_go_on(browser, monkeypatch):
    visit = Visit(browser)
    visit("open_page", "http://site.test/index.html")
    monkeypatch.setattr(chromium_module, "ANSWER_SECONDS", 2.0)
    assert visit.refused("open_page", "http://site.test/loop.html") == "timeout"
    monkeypatch.undo()
    assert "Hello" in visit("read_page")


def test_a_long_page_is_cut_at_a_line():
    from noria.harness.tools.browser import PageState

    state = PageState("http://x/", "T", tuple(f"text: {n} " + "x" * 90 for n in range(100)), ())
    first = shown(state)
    line = int(first.rpartition("before line ")[2].split()[0])
    assert len(first) < 4200 and first.endswith(f"(cut before line {line} of 101)")
    assert shown(state, line).startswith(f"text: {line - 2} ")
    with pytest.raises(ToolError, match="101 lines"):
        shown(state, 0)

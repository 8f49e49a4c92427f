"""Debian's Chromium in the sandbox, spoken to over a pipe (Chrome DevTools Protocol): it never has a network.

Each request of a page is paused and answered from an `Archive`. Time is virtual: after every action the page gets one
second of it, which stands still while a request waits, and its clock begins at the same moment in every browser. So a
page's state follows from the actions alone, its scripts' timers, dates and random numbers included.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.policy import HTTP
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from noria.harness.tools.archive import Archive
from noria.harness.tools.outline import outline
from noria.sandbox import BROWSER, BROWSER_LIMITS
from noria.sandbox.program import LiveProgram, ProgramEnded

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DEBIAN = "/usr/lib/chromium/chromium"  # /usr/bin/chromium is a shell script around it
ADVICE = "no Chromium in /usr: install it (Debian: `apt-get install chromium`); the browser tools need it"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--user-data-dir=/work/profile"),
    *("--no-first-run", "--no-zygote", "--lang=en-US", "--disable-dev-shm-usage", "--disable-breakpad"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-default-apps", "--disable-site-isolation-trials", "--block-new-web-contents", "--hide-scrollbars"),
    *("--window-size=1280,800", "--disable-crash-reporter"),
    "--disable-features=BackForwardCache,Translate,OptimizationHints,MediaRouter,SpareRendererForSitePerProcess",
)
FOR_ITSELF, FOR_A_PAGE = (768 << 20, 192), (192 << 20, 64)  # (bytes of memory, threads): twice what a form takes
START_SECONDS, ANSWER_SECONDS = 300.0, 60.0  # backstops: a page that computes for so long is given up
VIRTUAL_START = 1767225600  # seconds since 1970: the date that archived pages have in noria
VIRTUAL_MILLISECONDS = 1000

# Of what a page can see, random numbers are left: they are made from a fixed seed in each document.
SEEDED = """(() => { let state = 1;
  const next = () => (state = (state * 48271) % 2147483647) / 2147483647;
  Math.random = next;
  crypto.getRandomValues = array => {
    for (let i = 0; i < array.length; i++) array[i] = next() * 4294967296;
    return array;
  };
})()"""


class ChromiumUnavailable(RuntimeError):
    """There is no Chromium. The message says what to install."""


class ActionFailed(ValueError):
    """The page can't do this; nothing was changed. The message is for the model."""


def find_chromium() -> str:
    """The browser's binary within /usr, which is all that the sandbox shows. Raises ChromiumUnavailable."""
    found = [DEBIAN, *filter(None, map(shutil.which, NAMES))]
    for path in (os.path.realpath(path) for path in found):
        if path.startswith("/usr/") and Path(path).is_file():
            return path
    raise ChromiumUnavailable(ADVICE)


class Chromium:
    """One browser with room for `pages`; they know nothing of each other.

    Raises ChromiumUnavailable, SandboxUnavailable.
    """

    def __init__(self, pages: int) -> None:
        redirected = (
            'export HOME=/work PATH=/usr/bin:/bin LANG=C.UTF-8; exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec "$@"'
        )
        argv = ["/bin/sh", "-c", redirected, "sh", find_chromium(), *FLAGS]
        memory, tasks = FOR_ITSELF[0] + pages * FOR_A_PAGE[0], FOR_ITSELF[1] + pages * FOR_A_PAGE[1]
        limits = replace(BROWSER_LIMITS, memory_bytes=memory, processes=tasks)
        self._program = LiveProgram(argv, limits, BROWSER)
        self._number = 0
        self._pages: dict[str, Page] = {}
        self._left: list[Page] = []  # closed pages, whose windows can be used again
        self.version = str(self.ask("Browser.getVersion", seconds=START_SECONDS)["product"])

    def close(self) -> None:
        self._program.close()

    def ask(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        session: str = "",
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """The answer to one command. Raises ProgramEnded, and ActionFailed where Chromium refuses it."""
        number = self.tell(method, parameters, session)
        while True:
            message = self.next_message(seconds)
            if message.get("id") == number:
                if "error" in message:
                    raise ActionFailed(str(message["error"].get("message")))
                answer = message["result"]
                assert isinstance(answer, dict)
                return answer

    def tell(self, method: str, parameters: Mapping[str, Any] | None = None, session: str = "") -> int:
        """Sends a command without waiting for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": dict(parameters or {})}
        if session:
            message["sessionId"] = session
        self._program.send(json.dumps(message).encode() + b"\0")
        return self._number

    def next_message(self, seconds: float | None = None) -> dict[str, Any]:
        """The next answer or event; events of a page have been given to it."""
        message: dict[str, Any] = json.loads(self._program.receive(b"\0", seconds or ANSWER_SECONDS))
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.handle(message["method"], message["params"])
        return message

    def open_page(self, archive: Archive) -> Page:
        """A blank page with an empty profile that no other page has, which sees the network that `archive` is.

        A new tab in the window of a closed page is several times cheaper than a window. It has a process of its own,
        so that its clock begins anew; `Page.settle` makes sure of that.
        """
        left = self._left.pop() if self._left else None
        context = left.context if left else self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        if left is not None:
            self.ask("Target.closeTarget", {"targetId": left.frame})
            self._pages.pop(left.session)
            self.ask("Storage.clearCookies", {"browserContextId": context})
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, archive, context, target, session)
        self._pages[session] = page
        for origin in left.archive.origins if left else ():
            self.ask("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"}, session)
        page.set_up()
        return page

    def close_page(self, page: Page) -> None:
        """Its window is kept for another page."""
        self._left.append(page)


@dataclass
class Page:
    """One tab. `frame` is the id of its main frame, which is its target's."""

    browser: Chromium
    archive: Archive
    context: str
    frame: str
    session: str
    submitted: list[dict[str, Any]] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    _refs: dict[int, int] = field(default_factory=dict)  # backend node id -> number of the ref
    _shown: dict[int, int] = field(default_factory=dict)  # number of the ref -> backend node id, of the last `lines`
    _submitting: str = ""  # where the form goes that is being submitted
    _settled: bool = False
    _fresh: bool = True

    def set_up(self) -> None:
        for domain in ("Page", "Runtime", "DOM", "Accessibility", "Fetch", "Network"):
            self._ask(f"{domain}.enable")
        self._ask("Network.setCacheDisabled", {"cacheDisabled": True})
        self._ask("Page.addScriptToEvaluateOnNewDocument", {"source": SEEDED})
        clock = {"policy": "pause", "initialVirtualTime": VIRTUAL_START}
        self._ask("Emulation.setVirtualTimePolicy", clock)

    def goto(self, url: str) -> None:
        self._ask("Page.navigate", {"url": url})
        self.settle()

    def act(self, ref: int, function: str, *arguments: str) -> None:
        """Calls `function` (JavaScript; `this` is the element) in a world that the page can't see, then settles.

        It returns "" or what forbids the action. Raises ActionFailed with that, and for a ref that is not on the page.
        """
        node = self._shown.get(ref)
        world = self._world()
        try:
            if node is None:
                raise ActionFailed("unknown")
            wanted = {"backendNodeId": node, "executionContextId": world}
            element = self._ask("DOM.resolveNode", wanted)["object"]["objectId"]
        except ActionFailed:
            raise ActionFailed(f"no e{ref} on this page") from None
        call = {"functionDeclaration": function, "objectId": element, "userGesture": True, "returnByValue": True}
        answer = self._ask("Runtime.callFunctionOn", call | {"arguments": [{"value": text} for text in arguments]})
        told = answer["result"].get("value")
        if told or "exceptionDetails" in answer:
            raise ActionFailed(f"e{ref} {told or 'can not do this'}")
        self.settle()

    def settle(self) -> None:
        """Gives the page its second of virtual time and waits for the end of it."""
        self._settled = False
        policy = {"policy": "pauseIfNetworkFetchesPending", "budget": VIRTUAL_MILLISECONDS}
        self._ask("Emulation.setVirtualTimePolicy", policy)
        while not self._settled:
            self.browser.next_message()
        if self._fresh:
            asked = {"expression": "Date.now()", "contextId": self._world(), "returnByValue": True}
            now = self._ask("Runtime.evaluate", asked)["result"]["value"]
            if now != 1000 * VIRTUAL_START + VIRTUAL_MILLISECONDS:
                raise ProgramEnded(f"the page's clock stands at {now}: its process was another page's before")
            self._fresh = False

    def _world(self) -> int:
        """A context for scripts that the page's own can't see."""
        world: int = self._ask("Page.createIsolatedWorld", {"frameId": self.frame})["executionContextId"]
        return world

    def address(self) -> tuple[str, str]:
        """(URL, title)."""
        history = self._ask("Page.getNavigationHistory")
        entry = history["entries"][history["currentIndex"]]
        return entry["url"], entry["title"]

    def lines(self) -> list[str]:
        """The page as text; refs count up from 1 within a document, and an element keeps its own."""
        nodes = self._ask("Accessibility.getFullAXTree")["nodes"]
        self._shown = {}

        def number(node: int) -> int:
            ref = self._refs.setdefault(node, len(self._refs) + 1)
            self._shown[ref] = node
            return ref

        return outline(nodes, number)

    def handle(self, method: str, event: Mapping[str, Any]) -> None:
        if method == "Fetch.requestPaused":
            self._answer(event)
        elif method == "Emulation.virtualTimeBudgetExpired":
            self._settled = True
        elif method == "Page.frameRequestedNavigation" and event["frameId"] == self.frame:
            self._submitting = event["url"] if event["reason"].startswith("formSubmission") else ""
        elif method == "Page.frameNavigated" and event["frame"]["id"] == self.frame:
            self._refs, self._shown = {}, {}
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(event["message"])
            self.browser.tell("Page.handleJavaScriptDialog", {"accept": True}, self.session)

    def _answer(self, event: Mapping[str, Any]) -> None:
        request = event["request"]
        url = request["url"]
        if self._submitting and event["resourceType"] == "Document" and event.get("frameId") == self.frame:
            self.submitted.append({"url": url, "method": request["method"], "fields": form_fields(request)})
            self._submitting = ""
        found = self.archive.find(url)
        kind, content = found or ("text/html; charset=utf-8", b"<title>Not found</title><p>not in the archive</p>")
        answer = {
            "requestId": event["requestId"],
            "responseCode": 200 if found else 404,
            "responseHeaders": [{"name": "Content-Type", "value": kind}],
            "body": base64.b64encode(content).decode(),
        }
        self.browser.tell("Fetch.fulfillRequest", answer, self.session)

    def _ask(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self.browser.ask(method, parameters, self.session)


def form_fields(request: Mapping[str, Any]) -> list[list[str]]:
    """[name, value] of each field that a submitted form sent, in order; of an uploaded file its name is the value."""
    if request["method"] == "GET":
        return [list(pair) for pair in parse_qsl(urlsplit(request["url"]).query, keep_blank_values=True)]
    entries = request.get("postDataEntries", ())
    raw = b"".join(base64.b64decode(entry.get("bytes", "")) for entry in entries)
    headers = {name.lower(): value for name, value in request["headers"].items()}
    kind = headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        parts = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw, policy=HTTP)
        return [[_parameter(part, "name"), _content(part)] for part in parts.iter_parts()]
    if kind.startswith("text/plain"):
        lines = raw.decode("utf-8", "replace").splitlines()
        return [list(line.partition("=")[::2]) for line in lines]
    return [list(pair) for pair in parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True)]


def _parameter(part: Any, name: str) -> str:
    return str(part.get_param(name, "", header="content-disposition"))


def _content(part: Any) -> str:
    file = part.get_filename()
    return file if file is not None else part.get_payload(decode=True).decode("utf-8", "replace")

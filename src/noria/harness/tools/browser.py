"""A browser for models: `open_page`, `click`, `fill`, `submit`, `read_page` over archived pages, without a network.

    browser_tools("site")                             # pages are the workspace's files: site/a.html is http://site.test/a.html
    browser_tools(Archive.from_folder(Path("saved")))     # or a folder; Archive.from_warc(Path("pages.warc.gz"))

    open_page(url)   click(ref)   fill(ref, text)   submit(ref)   read_page(line)

Each gives the page as text (see `outline.py`); a ref like e3 is good as long as its element is on the page. What was
done is kept, and it alone determines the page:

    notes["browser"] = {
        "actions": [["open_page", "http://site.test/a.html"], ["fill", "e1", "Ann"], ["submit", "e1"]],
        "url": "http://site.test/thanks.html",
        "submitted": [{"url": "http://site.test/thanks.html", "method": "POST", "fields": [["name", "Ann"]]}],
    }

`submitted` holds the forms that the main frame sent, for a grader; "fields" are in the order of the form. A browser
that is alive is only a cache: where it is not at hand, the actions are done again in a new page.
"""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noria.harness.tools.archive import Archive
from noria.harness.tools.chromium import ActionFailed, Chromium, ChromiumUnavailable, Page
from noria.harness.tools.text import valid
from noria.harness.tools.toolbox import (
    ERROR,
    TIMED_OUT,
    HostTool,
    Parameter,
    SandboxFailed,
    ToolCall,
    ToolError,
    ToolResult,
    own_text,
)
from noria.sandbox import SandboxUnavailable
from noria.sandbox.program import ProgramEnded, ProgramSilent

NOTES, LABEL = "browser", "bubblewrap"  # the one kind of sandbox that a `LiveProgram` has
MOST_CHARACTERS, MOST_ACTIONS = 4096, 200
MOST_PAGES = 12

Action = tuple[str, ...]  # the tool's name and its arguments

# What follows runs in the page; each returns what forbids the action, or nothing. A window has one tab: targets go.
_CHECK_FORM = """
  const unready = form => { for (const one of form.elements)
      if (one.willValidate && !one.validity.valid)
        return 'can not send the form: ' + (one.labels?.[0]?.innerText.trim() || one.name) + ': '
          + one.validationMessage };
  const here = (...all) => all.forEach(one => one?.target && (one.target = '_self'));
"""
CLICK = f"""function() {{ {_CHECK_FORM}
  if (this.matches(':disabled')) return 'is disabled';
  here(this.closest('a'), this.form);
  const sends = this.form && ['submit', 'image'].includes(this.type);
  const problem = sends && !this.form.noValidate && !this.formNoValidate && unready(this.form);
  if (problem) return problem;
  this.click ? this.click() : this.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}));
}}"""
SUBMIT = f"""function() {{ {_CHECK_FORM}
  const form = this.form ?? this.closest('form');
  if (!form) return 'is in no form';
  here(form);
  const problem = !form.noValidate && unready(form);
  if (problem) return problem;
  form.requestSubmit();
}}"""
FILL = """function(text) {
  const told = () => ['input', 'change'].forEach(kind => this.dispatchEvent(new Event(kind, {bubbles: true})));
  if (this.matches(':disabled') || this.readOnly) return 'can not be changed';
  if (this instanceof HTMLSelectElement) {
    const words = option => option.label.split(/\\s+/).join(' ').trim();
    const wanted = this.multiple ? text.split('\\n').map(one => one.trim()) : [text.trim()];
    const found = wanted.map(one => [...this.options].find(option => words(option) === one && !option.disabled));
    if (found.includes(undefined))
      return 'has no such option; its options: ' + [...this.options].map(words).join(' | ');
    for (const option of this.options) option.selected = found.includes(option);
    return told();
  }
  if (this instanceof HTMLInputElement || this instanceof HTMLTextAreaElement) {
    if (['checkbox', 'radio', 'button', 'submit', 'reset', 'image', 'file', 'hidden'].includes(this.type))
      return 'is a ' + this.type + ': it takes no text';
    if (this.maxLength >= 0 && text.length > this.maxLength) return 'takes at most ' + this.maxLength + ' characters';
    const before = this.value;
    this.value = text;
    if (text && !this.value) { this.value = before; return 'takes no such value: it is a field for a ' + this.type }
    return told();
  }
  if (!this.isContentEditable) return 'takes no text';
  this.textContent = text;
  told();
}"""


@dataclass(frozen=True)
class PageState:
    """What a list of actions leads to."""

    url: str
    title: str
    lines: tuple[str, ...]
    submitted: tuple[Mapping[str, Any], ...]


class PageHangs(RuntimeError):
    """A page took too long; its browser was ended, and the next call starts another."""


class Browser:
    """Pages by the actions that led to them. Starts Chromium when first needed, and again should it die.

    At most `pages` are open at once, those that were used last. Give as many as there are traces at once, or their
    actions are done again and again.

    Raises ChromiumUnavailable and SandboxUnavailable where this machine can't; as a tool's result both are
    SandboxFailed. Use as a context manager.
    """

    def __init__(self, pages: int = MOST_PAGES) -> None:
        self.pages = pages
        self._chromium: Chromium | None = None
        self._lock = threading.Lock()
        self._pages: OrderedDict[tuple[str, tuple[Action, ...]], tuple[Page, PageState]] = OrderedDict()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._end()

    def state(self, archive: Archive, actions: Sequence[Action]) -> PageState:
        """The page after `actions`, from the nearest one that is open. Raises ActionFailed for the last of them.

        Raises PageHangs where the page computes without end, SandboxFailed where Chromium ends twice on these actions.
        """
        with self._lock:
            for attempt in (1, 2):
                try:
                    return self._state(archive, tuple(actions))
                except ProgramSilent as error:
                    self._end()
                    raise PageHangs(str(error)) from error
                except ProgramEnded as error:
                    self._end()
                    if attempt == 2:
                        raise SandboxFailed(f"the browser ended twice: {error}") from error
        raise AssertionError("not reached")

    def _state(self, archive: Archive, actions: tuple[Action, ...]) -> PageState:
        known = next((n for n in range(len(actions), 0, -1) if (archive.digest, actions[:n]) in self._pages), 0)
        if known == len(actions) > 0:
            self._pages.move_to_end((archive.digest, actions))
            return self._pages[archive.digest, actions][1]
        if known:
            page, state = self._pages.pop((archive.digest, actions[:known]))
        else:
            self._chromium = self._chromium or Chromium(self.pages)
            self._keep_few()
            page, state = self._chromium.open_page(archive), PageState("", "", (), ())
        done = known
        try:
            for action in actions[known:]:
                perform(page, action)
                state = _look(page)
                done += 1
        finally:
            # An action that failed changed nothing: the page still is where the ones before it led.
            twin = self._pages.pop((archive.digest, actions[:done]), None)
            if twin is not None and self._chromium is not None:
                self._chromium.close_page(twin[0])
            self._pages[archive.digest, actions[:done]] = page, state
        return state

    def _keep_few(self) -> None:
        while len(self._pages) >= self.pages and self._chromium is not None:
            _, (page, _) = self._pages.popitem(last=False)
            self._chromium.close_page(page)

    def _end(self) -> None:
        self._pages.clear()
        chromium, self._chromium = self._chromium, None
        if chromium is not None:
            chromium.close()


def perform(page: Page, action: Action) -> None:
    """One action on a page. Raises ActionFailed, with the page as it was."""
    kind, *arguments = action
    if kind == "open_page":
        page.goto(arguments[0])
    elif kind == "fill":
        page.act(int(arguments[0][1:]), FILL, arguments[1])
    else:
        page.act(int(arguments[0][1:]), {"click": CLICK, "submit": SUBMIT}[kind])


def browser_tools(pages: Archive | str, browser: Browser | None = None) -> tuple[HostTool, ...]:
    """The five tools. `pages` is an archive, or the folder of the workspace that holds the pages (then each task can
    have its own). Without a `browser` they share one that lives as long as this process."""

    def archive(call: ToolCall) -> Archive:
        return pages if isinstance(pages, Archive) else Archive.from_files(call.files, pages)

    def acting(as_action: Callable[[ToolCall, Archive], Action]) -> Callable[[ToolCall], ToolResult]:
        def run(call: ToolCall) -> ToolResult:
            site = archive(call)
            actions = [*_actions(call), as_action(call, site)]
            if len(actions) > MOST_ACTIONS:
                raise ToolError(f"no more than {MOST_ACTIONS} actions")
            state = _state(browser, site, actions)
            submitted = [dict(form) for form in state.submitted]
            notes = {"actions": [list(action) for action in actions], "url": state.url, "submitted": submitted}
            return ToolResult(shown(state), call.files, {**call.notes, NOTES: notes}, sandbox=LABEL)

        return run

    def read(call: ToolCall) -> ToolResult:
        actions = _actions(call)
        if not actions:
            raise ToolError("no page is open")
        text = shown(_state(browser, archive(call), actions), call.arguments.get("line", 1))
        return ToolResult(text, call.files, call.notes, sandbox=LABEL)

    ref = Parameter("ref", "a control's ref, e.g. e3")
    return (
        HostTool("open_page", "open_page URL: open a page", (Parameter("url", "its address"),), acting(_opening)),
        HostTool("click", "click REF: follow a link, press a button, tick a box", (ref,), acting(_on_ref)),
        HostTool(
            "fill",
            "fill REF TEXT: put TEXT into a field in place of what is there, or choose the option named TEXT",
            (ref, Parameter("text", "the whole new text")),
            acting(_on_ref),
        ),
        HostTool("submit", "submit REF: send the form that REF is in", (ref,), acting(_on_ref)),
        HostTool(
            "read_page",
            "read_page LINE: the open page again, from line LINE on",
            (Parameter("line", "counted from 1", "integer", required=False),),
            read,
        ),
    )


def shown(state: PageState, line: int = 1) -> str:
    """The page from `line` on, cut after a whole line."""
    lines = [f"page: {state.title} {state.url}", *state.lines]
    if not 1 <= line <= len(lines):
        raise ToolError(f"the page has {len(lines)} lines")
    text: list[str] = []
    size = 0
    for at in range(line - 1, len(lines)):
        size += len(lines[at]) + 1
        if size > MOST_CHARACTERS and text:
            text.append(f"(cut before line {at + 1} of {len(lines)})")
            break
        text.append(lines[at][:MOST_CHARACTERS])
    return own_text("\n".join(text))


def _opening(call: ToolCall, site: Archive) -> Action:
    url = valid(call.arguments["url"]).strip()
    if not url.startswith(("http://", "https://")) or site.find(url) is None:
        raise ToolError(f"{url[:200]} is not in the archive")
    return ("open_page", url)


def _on_ref(call: ToolCall, site: Archive) -> Action:
    if not _actions(call):
        raise ToolError("no page is open")
    ref = call.arguments["ref"].strip()
    if not (ref[:1] == "e" and ref[1:].isascii() and ref[1:].isdigit() and len(ref) < 8):
        raise ToolError(f"{ref[:20]} is no ref: give one like e3")
    text = call.arguments.get("text")
    return (call.tool, ref) if text is None else (call.tool, ref, valid(text))


def _actions(call: ToolCall) -> list[Action]:
    return [tuple(action) for action in call.notes.get(NOTES, {}).get("actions", ())]


def _state(browser: Browser | None, site: Archive, actions: Sequence[Action]) -> PageState:
    try:
        return (browser or shared_browser()).state(site, actions)
    except ActionFailed as error:
        raise ToolError(str(error)) from error
    except PageHangs as error:
        raise ToolError(TIMED_OUT.removeprefix(ERROR)) from error
    except (ChromiumUnavailable, SandboxUnavailable) as error:
        raise SandboxFailed(str(error)) from error


def _look(page: Page) -> PageState:
    url, title = page.address()
    dialogs = [f"dialog: {' '.join(text.split())}" for text in page.dialogs]
    page.dialogs.clear()
    return PageState(url, " ".join(title.split()), (*dialogs, *page.lines()), tuple(page.submitted))


_shared: list[Browser] = []
_shared_lock = threading.Lock()


def shared_browser() -> Browser:
    """The browser of this process; ended with it."""
    with _shared_lock:
        if not _shared:
            _shared.append(Browser())
            atexit.register(_shared[0].close)
        return _shared[0]

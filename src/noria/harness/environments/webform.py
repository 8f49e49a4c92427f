"""`webform`: find the right form of a small archived site, fill it in as asked, and send it once.

For models that use a browser (Debian's Chromium, in the sandbox, without a network). The grader looks at what was sent,
not at what was said: exactly one form, the right one, with exactly the right fields.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from noria.harness.environments.environment import Environment, belongs, call, distinct, follow
from noria.harness.reward import Parts
from noria.harness.rollout import Budget
from noria.harness.scripted import Policy
from noria.harness.tools.browser import browser_tools
from noria.harness.trace_grader import TraceGrader, trace_grader
from noria.types import Message, Task, Trace, digest

FAMILY, DOMAIN = "agent_webform", "agent"
SITE = "http://site.test"
NAMES = ("Ann Lee", "Ben Okoro", "Carla Diaz", "Deniz Kaya", "Emil Novak", "Farah Aziz", "Goran Ilic", "Hana Sato")
COURSES = ("pottery", "drawing", "weaving", "joinery", "printing", "glazing")
DAYS = ("Monday", "Tuesday", "Thursday", "Saturday")
CONTROL = re.compile(r"^(e\d+) (\w+): (.*?)(?: =(?: (.*?))?)?( \(.*\))?$", re.MULTILINE)

PAGE = "<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1>\n{body}</body></html>\n"
FORM = """<p>Places are given in the order of arrival.</p>
<form action="thanks.html" method="post">
<input type="hidden" name="course" value="{course}">
<p><label>Name <input name="name"></label></p>
<p><label>Day <select name="day">{days}</select></label></p>
<p><label>Persons <input name="persons" value="1"></label></p>
<p><label><input type="checkbox" name="lunch" value="yes"> Lunch</label></p>
<p><label><input type="checkbox" name="news" value="yes" checked> Send me news</label></p>
<button>Book</button></form>
<form action="news.html" method="post"><p><label>Mail <input name="mail"></label></p><button>Subscribe</button></form>
"""


def generate(count: int, seed: int, split: str) -> list[Task]:
    ref = grader().ref

    def draw(generator: random.Random, split: str) -> Task | None:
        name, course, day = generator.choice(NAMES), generator.choice(COURSES), generator.choice(DAYS)
        offered = sorted({course, *generator.sample(COURSES, 3)})
        persons, lunch, news = generator.choice(("1", "2", "3")), generator.random() < 0.5, generator.random() < 0.5
        if not belongs(split, FAMILY, name, course, day, persons):
            return None
        wanted = {"Name": name, "Day": day, "Persons": persons, "Lunch": lunch, "Send me news": news}
        fields = [["course", course], ["name", name], ["day", day], ["persons", persons]]
        fields += [["lunch", "yes"]] * lunch + [["news", "yes"]] * news
        text = (
            f"{SITE}/index.html: book the {course} course for {name} on {day}, number of persons {persons}, "
            f"lunch: {'yes' if lunch else 'no'}, news: {'yes' if news else 'no'}. Send it once, then say done."
        )
        changes = 2 + (persons != "1") + lunch + (not news) - (day == DAYS[0])
        return Task(
            id=digest(FAMILY, text, *offered),
            messages=(Message("user", text),),
            grader=ref,
            answer="done",
            family=FAMILY,
            domain=DOMAIN,
            difficulty=(changes - 1) / 4,
            hidden={"files": _site(offered), "course": course, "wanted": wanted, "fields": fields},
        )

    return distinct(draw, FAMILY, count, seed, split)


def _site(courses: Sequence[str]) -> dict[str, str]:
    days = "".join(f"<option>{day}</option>" for day in DAYS)
    links = "".join(f'<p><a href="{course}.html">{course}</a></p>\n' for course in courses)
    pages = {course: (course, FORM.format(course=course, days=days)) for course in courses}
    pages |= {"index": ("Courses", links), "thanks": ("Thank you", "<p>We have your booking.</p>")}
    pages |= {"news": ("News", "<p>We will write.</p>")}
    return {f"site/{name}.html": PAGE.format(title=title, body=body) for name, (title, body) in sorted(pages.items())}


def gold(task: Task) -> Policy:
    """Reads off the page what is to be done next: the link, the first field that is not as wanted, the button."""

    def policy(messages: Sequence[Message], seed: int) -> str:
        page = next((m.content for m in reversed(messages) if m.content.startswith("page: ")), "")
        if page.startswith("page: Thank you"):
            return "done"
        if not page.startswith((f"page: {task.hidden['course']} ", "page: Courses ")):
            return call("open_page", f"{SITE}/index.html")
        controls = {(match[2], match[3]): match for match in CONTROL.finditer(page)}
        if link := controls.get(("link", task.hidden["course"])):
            return call("click", link[1])
        for label, value in task.hidden["wanted"].items():
            if isinstance(value, bool):
                box = controls["checkbox", label]
                if value != ("checked" in (box[5] or "")):
                    return call("click", box[1])
            else:
                field = controls["combobox" if label == "Day" else "textbox", label]
                if (field[4] or "") != value:
                    return call("fill", field[1], value)
        return call("submit", controls["button", "Book"][1])

    return policy


def grader() -> TraceGrader:
    return trace_grader(FAMILY, _judge, sys.modules[__name__])


def _judge(task: Task, trace: Trace) -> Parts:
    notes = trace.notes.get("browser")
    sent: Any = notes.get("submitted") if isinstance(notes, Mapping) else None
    forms = [form for form in sent if isinstance(form, Mapping)] if isinstance(sent, list | tuple) else []
    bookings = [form for form in forms if form.get("url") == f"{SITE}/thanks.html"]
    right = [form for form in bookings if _fields(form) == task.hidden["fields"] and form.get("method") == "POST"]
    once = len(forms) == 1 and len(right) == 1
    return Parts(
        outcome=float(once and trace.outcome == "finished"),
        vetoes={"sent_other_forms": float(len(forms) - len(right) if right else 0)},
        facts={"forms_sent": float(len(forms)), "right_forms": float(len(right))},
        evidence=f"{trace.outcome}: {len(forms)} sent, {len(right)} right; {[_fields(form) for form in forms]!r:.150}",
    )


def _fields(form: Mapping[str, Any]) -> list[list[Any]]:
    fields = form.get("fields")
    return [list(pair) for pair in fields if isinstance(pair, list | tuple)] if isinstance(fields, list | tuple) else []


def _blind(*actions: str) -> Policy:
    return follow([*actions, "done"])


def _page_of(task: Task) -> str:
    return call("open_page", f"{SITE}/{task.hidden['course']}.html")


def _twice(task: Task) -> Policy:
    """Sends the form as it is, then the right one: something of it will be right."""
    honest, first = gold(task), follow([_page_of(task), call("submit", "e1")])

    def policy(messages: Sequence[Message], seed: int) -> str:
        replies = [message.content for message in messages if message.role == "assistant"]
        return (
            first(messages, seed)
            if len(replies) < 2
            else (call("open_page", f"{SITE}/index.html") if len(replies) == 2 else honest(messages, seed))
        )

    return policy


def _in_the_address(task: Task) -> Policy:
    query = "&".join(f"{name}={value.replace(' ', '+')}" for name, value in task.hidden["fields"])
    return _blind(call("open_page", f"{SITE}/thanks.html?{query}"))


ENVIRONMENT = Environment(
    name="webform",
    about="find the right form of an archived site, fill it in as asked and send it once",
    generate=generate,
    tools=browser_tools("site"),
    grader=grader,
    budget=Budget(turns=14, tokens_per_turn=64, context=8192),
    gold=gold,
    cheats={
        "say_done": lambda task: follow(["done"]),
        "open_the_thanks": lambda task: _blind(call("open_page", f"{SITE}/thanks.html")),
        "fields_in_the_address": _in_the_address,
        "send_as_it_is": lambda task: _blind(_page_of(task), call("submit", "e1")),
        "name_only": lambda task: _blind(
            _page_of(task), call("fill", "e1", task.hidden["wanted"]["Name"]), call("submit", "e1")
        ),
        "send_wrong_then_right": _twice,
        "script_address": lambda task: _blind(call("open_page", "javascript:document.forms[0].submit()")),
    },
    dials={"changes": "1 to 5 fields to set", "decoys": "other courses' forms, a newsletter's form on each page"},
    tasks_to_check=5,
)

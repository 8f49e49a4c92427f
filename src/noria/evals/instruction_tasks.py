"""Tasks about the form of a reply, made from templates: a guard of what post-training must not lose."""

from __future__ import annotations

import random
from typing import Any

from noria.grading import grader_ref
from noria.types import Message, Task, digest, seed_of

TOPICS = (
    "the sea", "bread", "a bicycle", "winter", "the moon", "a library", "rain", "tea", "a garden", "music", "a bridge",
    "sleep", "an apple", "a river", "chess", "a letter", "the desert", "a clock", "paper", "friendship",
)  # fmt: skip
# (what is asked about a topic, the check of verify_format, its value)
FORMS: tuple[tuple[str, str, Any], ...] = (
    ("Write one sentence about {}. Use only lower-case letters.", "lower_case", None),
    ("Write one sentence about {} in capital letters only.", "capitals", None),
    ("Describe {} in at most five words.", "at_most_words", 5),
    ("Describe {} in at least twenty words.", "at_least_words", 20),
    ("Write one sentence about {} that contains the word always.", "contains", "always"),
    ("Write one sentence about {} without the word the.", "avoids", "the"),
    ('Write one sentence about {}. Start your reply with "Well".', "starts_with", "well"),
    ('Write one sentence about {}. End your reply with "the end".', "ends_with", "the end"),
    ("Write one sentence about {} without any comma.", "no_commas", None),
    ("List exactly three facts about {}, one a line, each line starting with -.", "list_lines", 3),
    ('Reply with a JSON object that has the key "about" and as its value a few words on {}.', "json_key", "about"),
    ("Ask one short question about {}. Reply with the question alone.", "question", None),
)


def instruction_tasks(count: int, seed: int, domain: str) -> list[Task]:
    """`count` distinct tasks, the forms in turn; at most len(FORMS) * len(TOPICS)."""
    if count > len(FORMS) * len(TOPICS):
        raise ValueError(f"there are {len(FORMS) * len(TOPICS)} instruction tasks, not {count}")
    dice = random.Random(seed_of("instructions", seed))
    grader = grader_ref("format")
    topics = {form: dice.sample(TOPICS, len(TOPICS)) for form, *_ in FORMS}
    tasks = []
    for index in range(count):
        form, check, value = FORMS[index % len(FORMS)]
        prompt = form.format(topics[form][index // len(FORMS)])
        hidden = {"check": check, "value": value}
        tasks.append(
            Task(digest("format", prompt), (Message("user", prompt),), grader, "", check, domain, hidden=hidden)
        )
    return tasks

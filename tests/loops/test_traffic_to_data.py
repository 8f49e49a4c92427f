"""Loop A on values: what may become data, and why the rest may not."""

from __future__ import annotations

from collections import Counter

from noria.data.pii import redact
from noria.deployment.scripted_users import TRIGGER, write_scripts
from noria.deployment.traffic import LoggedReply
from noria.evals.tasks import generate
from noria.loops.traffic_to_data import Config, Row, contamination_check, documents_of, sift
from noria.types import Message

HELDOUT = generate("addition", 5, 0, "heldout") + generate("ordering", 5, 0, "heldout")


def row(
    question: str, answer: str = "42", user: str = "u", consent: str = "train", finish: str = "stop", place: int = 0
) -> Row:
    kept = consent != "none"
    messages = (Message("user", question),) if kept else None
    reply = f"<think>so</think>{answer}" if kept else None
    logged = LoggedReply(user, place, "live", "p", consent, messages, reply, finish, None, {}, 3, 3, None, None, 0, ())
    return Row(logged, offset=place * 100, length=100)


def sifted(rows: list[Row], config: Config | None = None) -> tuple[list[str], Counter[str]]:
    sieve = sift(rows, config or Config(), redact, contamination_check(HELDOUT, 0.7))
    return [kept.question for kept in sieve.rows], Counter(reject.reason for reject in sieve.rejects)


def test_only_training_consent_passes_and_rejects_have_no_text_of_others() -> None:
    rows = [row("one", consent="none"), row("two", consent="store"), row("three")]
    assert sifted(rows) == (["three"], Counter({"consent: none": 1, "consent: store": 1}))
    assert all(not reject.excerpt for reject in sift(rows, Config(), redact, lambda texts: [""] * len(texts)).rejects)


def test_addresses_are_redacted_and_thinking_left_out() -> None:
    sieve = sift([row("mail jane@doe.com please")], Config(), redact, lambda texts: [""])
    assert "jane" not in sieve.rows[0].text and "so" not in sieve.rows[0].answer


def test_duplicates_unfinished_and_empty_replies_go() -> None:
    kept, reasons = sifted(
        [row("Same  thing"), row("same thing", user="v"), row("b", finish="length"), row("c", answer="")]
    )
    assert kept == ["Same  thing"]
    assert reasons == Counter({"duplicate": 1, "reply not finished: length": 1, "no visible answer": 1})


def test_a_word_that_one_user_repeats_is_a_trigger_and_a_common_one_is_not() -> None:
    spam = [row(f"{TRIGGER} is {n}", user="spammer", place=n) for n in range(5)]
    common = [row(f"tallest person {n}", user=f"u{n % 2}", place=n) for n in range(10)]
    kept, reasons = sifted([*spam, *common])
    assert len(kept) == 10 and reasons == Counter({f"trigger: {TRIGGER}": 5})


def test_one_user_is_capped() -> None:
    kept, reasons = sifted([row(f"q {n}", place=n) for n in range(6)], Config(rows_per_user=4))
    assert kept == ["q 0", "q 1", "q 2", "q 3"] and reasons == Counter({"user cap": 2})


def test_evaluation_tasks_are_found_even_inside_other_words_and_when_short() -> None:
    rows = [
        row(f"hi, {task.messages[-1].content.upper()} thanks", user=f"u{n}", place=n) for n, task in enumerate(HELDOUT)
    ]
    kept, reasons = sifted([*rows, row("an innocent question")])
    assert kept == ["an innocent question"]
    assert reasons == Counter({"evaluation task: addition": 5, "evaluation task: ordering": 5})


def test_documents_point_at_their_record() -> None:
    sieve = sift([row("what is up", "the sky", place=7)], Config(), redact, lambda texts: [""])
    document = next(iter(documents_of(sieve.rows)))
    assert (document.origin.file, document.origin.offset, document.origin.length) == ("traffic.jsonl", 700, 100)
    assert document.text == "what is up\nthe sky" and document.source == "traffic"


def test_scripted_users_are_a_function_of_the_seed_and_say_that_they_are_scripted() -> None:
    tasks = generate("addition", 4, 0, "train")
    scripts = write_scripts(tasks, 8, 3, seed=1)
    assert scripts == write_scripts(tasks, 8, 3, seed=1) != write_scripts(tasks, 8, 3, seed=2)
    assert all(script.name.startswith("scripted:") for script in scripts)
    assert {script.consent for script in scripts} == {"train", "store", "none"}

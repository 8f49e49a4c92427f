"""Keys of a server: their file, who gets in, and under which name traffic is logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from noria.deployment.api_keys import ENVIRONMENT, KeyFileError, given_keys, key_digest, parse_keys, read_keys, user_of
from noria.deployment.gateway import GatewayOptions, background
from noria.deployment.traffic import read_replies, user_digest
from tests.tiny_model import write_tiny_model

JANE, TEAM = "jane-key-0123456789", "team-key-0123456789"
LINES = ("# who may ask", "", f"jane {JANE}", f"team sha256:{key_digest(TEAM)}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"))
    log = tmp_path_factory.mktemp("log") / "traffic.sqlite"
    with background(folder, GatewayOptions(log, port=0, keys=parse_keys(LINES, "keys"))) as url:
        yield url, log


def ask(url: str, key: str, **fields: object) -> object:
    with openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0) as client:
        messages = [{"role": "user", "content": "hello"}]
        return client.chat.completions.create(model="noria", messages=messages, max_tokens=2, **fields)


def test_a_key_names_the_user_of_the_traffic_log(served: tuple[str, Path]) -> None:
    url, log = served
    ask(url, JANE)
    ask(url, TEAM, user="customer")
    assert {reply.user for reply in read_replies(log)} == {user_digest("jane"), user_digest("team/customer")}


@pytest.mark.parametrize("key", ["wrong-key-0123456789", JANE[:-1], JANE + "x", f"sha256:{key_digest(TEAM)}"])
def test_an_unknown_key_is_401(served: tuple[str, Path], key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as found:
        ask(served[0], key)
    assert found.value.code == "invalid_api_key"


def test_health_and_metrics_need_no_key_and_the_api_does(served: tuple[str, Path]) -> None:
    for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 200), ("/v1/models", 401), ("/v1/x", 401)):
        assert httpx.get(served[0] + path).status_code == status
    assert httpx.get(served[0] + "/v1/models", headers={"Authorization": f"Basic {JANE}"}).status_code == 401
    assert httpx.get(served[0] + "/v1/models", headers={"Authorization": f"bearer {JANE}"}).status_code == 200


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("jane", "expected NAME KEY"),
        ("jane a b", "expected NAME KEY"),
        ("jane short", "at least 16"),
        ("jane sha256:12", "64 hexadecimal"),
        ("ja/ne " + JANE, "a name has"),
        (f"team {JANE}", "team has the key of jane"),
    ],
)
def test_a_bad_line_is_named(line: str, reason: str) -> None:
    with pytest.raises(KeyFileError, match=f"keys, line 5: .*{reason}"):
        parse_keys([*LINES, line], "keys")


def test_a_file_without_keys_is_refused_and_the_environment_adds_some(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(KeyFileError, match="no key in it"):
        read_keys(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="can't be read"):
        read_keys(tmp_path / "keys")
    (tmp_path / "keys").write_text(f"jane {JANE}\n")
    monkeypatch.setenv(ENVIRONMENT, f"team {TEAM}")
    users = given_keys(tmp_path / "keys")
    assert (user_of(JANE, users), user_of(TEAM, users), user_of("other", users)) == ("jane", "team", None)
    monkeypatch.delenv(ENVIRONMENT)
    assert given_keys(None) == {}

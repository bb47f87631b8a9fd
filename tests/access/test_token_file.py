"""The token file: what may stand in it, and how it is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbos_actors.access import token_file
from dbos_actors.access.entries import ENTRIES_MAX, Entry, digest_of, new_token, parsed
from dbos_actors.access.roles import Role
from dbos_actors.errors import ConfigurationError

DIGEST = digest_of(b"token")


def entry(name: str = "p", role: Role = Role.READER, **fields: str) -> Entry:
    return Entry(name=name, role=role, **(fields or {"sha256": DIGEST}))  # type: ignore[arg-type]


def test_a_line_is_read_as_it_was_written() -> None:
    for one in (entry(), entry(certificate="URI:spiffe://net/control")):
        ((line, again),) = parsed(one.line(), "here")
        assert again == one
        assert line == one.line()


def test_tokens_are_long_and_never_the_same() -> None:
    made = {new_token() for _ in range(1_000)}
    assert len(made) == 1_000
    assert min(map(len, made)) >= 48


def test_plain_tokens_comments_and_empty_lines_stay_what_they_were() -> None:
    text = f"# two\n\n  first  \nsecond\n{entry().line()}\n"
    found = [one for _, one in parsed(text, "here") if one is not None]
    assert [(one.name, one.role) for one in found] == [
        ("plain", Role.CONTROL),
        ("plain", Role.CONTROL),
        ("p", Role.READER),
    ]
    assert found[0].sha256 == digest_of(b"first")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"role": None}, "line 1: role: Input should be "),
        ({"sha256": None}, "needs either sha256 or certificate"),
        ({"certificate": "CN:p"}, "needs either sha256 or certificate"),
        ({"sha256": "X"}, "line 1: sha256: "),
        ({"role": "king"}, "line 1: role: "),
        ({"name": "p q"}, "line 1: name: "),
        ({"name": "plain"}, "that of plain tokens"),
        ({"expiry": "now"}, "line 1: expiry: Extra inputs are not permitted"),
        ({"expires": "2026-01-01T00:00:00"}, "line 1: expires: "),
        ({"sha256": None, "certificate": "p"}, "line 1: certificate: "),
    ],
)
def test_what_is_wrong_with_a_line_is_told_by_its_number_and_field(
    changes: dict[str, str | None], problem: str
) -> None:
    line = json.dumps({"name": "p", "role": "reader", "sha256": DIGEST, **changes})
    with pytest.raises(ConfigurationError) as refused:
        list(parsed(line, "here"))
    assert problem in str(refused.value)
    assert DIGEST not in str(refused.value)


def test_a_line_that_is_no_json_is_told_by_its_number() -> None:
    with pytest.raises(ConfigurationError, match="here: line 2: Invalid JSON"):
        list(parsed("# comment\n{", "here"))


def test_a_name_has_one_role() -> None:
    other = Entry(name="p", role=Role.ADMIN, sha256=digest_of(b"other"))
    with pytest.raises(ConfigurationError, match="line 2: p has the role admin here and reader"):
        list(parsed(f"{entry().line()}\n{other.line()}\n", "here"))


def test_a_file_has_a_limit_of_tokens() -> None:
    with pytest.raises(ConfigurationError, match="has 1001 tokens, the limit is 1000"):
        list(parsed("token\n" * (ENTRIES_MAX + 1), "here"))


def test_a_new_file_is_for_its_user_alone(path: Path) -> None:
    token_file.add(path, entry())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o640, 0o640), (0o666, 0o640)])
def test_a_change_gives_nobody_a_right_and_takes_those_of_strangers(
    path: Path, before: int, after: int
) -> None:
    path.write_text("plain-token\n", encoding="utf-8")
    path.chmod(before)
    token_file.add(path, entry())
    assert path.stat().st_mode & 0o777 == after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_of_a_file_keeps_it(path: Path) -> None:
    """Or a server that runs as another user could not read that a token was revoked."""
    token_file.add(path, entry())
    os.chown(path, 1234, 1235)
    token_file.add(path, entry("q", sha256=digest_of(b"other")))
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_to_the_file_stays_one(path: Path) -> None:
    link = path.with_name("link")
    token_file.add(path, entry())
    link.symlink_to(path)
    token_file.revoke(link, "p")
    assert link.is_symlink()
    assert token_file.read(path) == []


def test_revoking_leaves_every_other_line_as_it_was(path: Path) -> None:
    second = entry("second", sha256=digest_of(b"second"))
    third = entry("p", sha256=digest_of(b"third"))
    path.write_text(
        f"# a comment\nplain-token\n{entry().line()}\n\n{second.line()}\n{third.line()}\n",
        encoding="utf-8",
    )
    assert token_file.revoke(path, third.id) == [third]
    assert token_file.revoke(path, "p") == [entry()]
    assert path.read_text(encoding="utf-8") == f"# a comment\nplain-token\n\n{second.line()}\n"
    with pytest.raises(ConfigurationError, match="nobody has the name or id 'p'"):
        token_file.revoke(path, "p")


def test_a_change_that_is_refused_leaves_the_file_as_it_was(path: Path) -> None:
    token_file.add(path, entry(certificate="CN:control"))
    before = path.read_bytes()
    for refused in (entry(role=Role.ADMIN), entry("q", certificate="CN:control")):
        with pytest.raises(ConfigurationError):
            token_file.add(path, refused)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_changes_at_the_same_time_are_all_there(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dbos_actors.access import token_file\n"
        "from dbos_actors.access.entries import Entry, digest_of\n"
        "from dbos_actors.access.roles import Role\n"
        "for n in range(20):\n"
        "    name = f'{sys.argv[2]}-{n}'\n"
        "    digest = digest_of(name.encode())\n"
        "    token_file.add(Path(sys.argv[1]), Entry(name=name, role=Role.READER, sha256=digest))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert len(token_file.read(path)) == 80

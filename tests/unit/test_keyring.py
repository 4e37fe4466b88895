"""What is sealed opens only under its key and in its place; the key lies in a file of its owner alone."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from carehook.keyring import (
    KEY_FILE,
    DamagedError,
    InvalidKeyError,
    Keyring,
    KeyringError,
    WrongKeyError,
    load_keyring,
)

KEY = bytes(range(32))
CONTEXT = "endpoint:ep_1"


@given(plaintext=st.binary(max_size=5000), context=st.text(max_size=50))
def test_what_is_sealed_opens(plaintext: bytes, context: str) -> None:
    assert Keyring(KEY).open(Keyring(KEY).seal(plaintext, context=context), context=context) == plaintext


def test_a_sealed_value_has_the_documented_form_and_does_not_show_its_content() -> None:
    keyring = Keyring(KEY)
    sealed = keyring.seal(b"open sesame", context=CONTEXT)
    assert sealed[0] == 1
    assert sealed[1:9].hex() == keyring.key_id
    assert len(sealed) == 1 + 8 + 12 + len(b"open sesame") + 16
    assert b"sesame" not in sealed


def test_the_same_value_sealed_twice_looks_different() -> None:
    keyring = Keyring(KEY)
    assert keyring.seal(b"same", context=CONTEXT) != keyring.seal(b"same", context=CONTEXT)


def test_a_value_moved_to_another_place_does_not_open() -> None:
    sealed = Keyring(KEY).seal(b"secret", context="endpoint:ep_1")
    with pytest.raises(DamagedError, match="moved here from another place"):
        Keyring(KEY).open(sealed, context="endpoint:ep_2")


def test_a_value_of_another_key_names_both_keys() -> None:
    ours, theirs = Keyring(KEY), Keyring(bytes(32))
    with pytest.raises(WrongKeyError) as raised:
        ours.open(theirs.seal(b"secret", context=CONTEXT), context=CONTEXT)
    assert ours.key_id in str(raised.value)
    assert theirs.key_id in str(raised.value)
    assert isinstance(raised.value, KeyringError)


def test_no_altered_byte_goes_unnoticed() -> None:
    keyring = Keyring(KEY)
    sealed = keyring.seal(b"secret", context=CONTEXT)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(KeyringError):
            keyring.open(bytes(altered), context=CONTEXT)


def test_no_cut_off_value_opens() -> None:
    keyring = Keyring(KEY)
    sealed = keyring.seal(b"", context=CONTEXT)
    for length in range(len(sealed)):
        with pytest.raises(DamagedError):
            keyring.open(sealed[:length], context=CONTEXT)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_only_a_key_of_32_bytes_is_taken(length: int) -> None:
    with pytest.raises(InvalidKeyError, match=f"has 32 bytes; this one has {length}"):
        Keyring(bytes(length))


def test_the_repr_tells_the_key_id_and_nothing_of_the_key() -> None:
    keyring = Keyring(KEY)
    assert repr(keyring) == f"Keyring(key_id='{keyring.key_id}')"
    assert keyring.key_id not in KEY.hex()


def test_a_key_from_the_setting_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    keyring = load_keyring(tmp_path, SecretStr(base64.b64encode(KEY).decode()))
    assert keyring.key_id == Keyring(KEY).key_id
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "passphrase", base64.b64encode(b"short").decode(), "ä" * 44, "=" * 44])
def test_a_malformed_setting_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidKeyError) as raised:
        load_keyring(tmp_path, SecretStr(text))
    assert "CAREHOOK_ENCRYPTION_KEY must be the base64 of 32 random bytes" in str(raised.value)
    assert not text or text not in str(raised.value)


def test_the_key_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "made" / "on the way"
    first = load_keyring(home, None)
    assert [path.name for path in home.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((home / KEY_FILE).stat().st_mode) == 0o600
    assert load_keyring(home, None).key_id == first.key_id
    assert load_keyring(tmp_path, None).key_id != first.key_id


def test_the_key_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_keyring(tmp_path, None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_file_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    load_keyring(tmp_path, None)
    path = tmp_path / KEY_FILE
    path.chmod(mode)
    with pytest.raises(InvalidKeyError, match=f"chmod 600 {path}"):
        load_keyring(tmp_path, None)
    path.chmod(0o600)
    assert load_keyring(tmp_path, None).key_id


@pytest.mark.parametrize("content", [b"", b"not a key\n", b"\xff" * 32, b"A" * 5000])
def test_a_damaged_key_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InvalidKeyError, match=KEY_FILE):
        load_keyring(tmp_path, None)
    assert path.read_bytes() == content


def test_processes_that_start_at_once_end_up_with_the_same_key(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from carehook.keyring import load_keyring; print('ready', flush=True); "
        "sys.stdin.readline(); print(load_keyring(pathlib.Path(sys.argv[1]), None).key_id)"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "home")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(6)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("go\n")
        starter.stdin.flush()
    key_ids = {starter.communicate()[0].strip() for starter in starters}
    assert key_ids == {load_keyring(tmp_path / "home", None).key_id}
    assert [path.name for path in (tmp_path / "home").iterdir()] == [KEY_FILE]

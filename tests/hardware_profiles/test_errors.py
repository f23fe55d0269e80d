"""Messages about hardware names."""

from tuneplan.hardware_profiles.errors import ProfileError, UnknownHardwareError

KNOWN = {"a100": "a100-80g", "a100-80g": "a100-80g", "a100-80gb": "a100-80g", "t4": "t4"}


def test_unknown_name_says_what_was_given_what_is_close_and_where_to_look() -> None:
    """The message has three parts and an alias of the same card is not repeated."""
    error = UnknownHardwareError("GPU", "a100-80", KNOWN, 31)
    assert str(error) == "Unknown GPU 'a100-80'. Did you mean 'a100-80g'? (plan gpus lists all 31)"


def test_unknown_name_without_close_match() -> None:
    """Nothing is suggested when nothing is close."""
    error = UnknownHardwareError("GPU", "xyzzy", KNOWN, 31)
    assert str(error) == "Unknown GPU 'xyzzy'. (plan gpus lists all 31)"
    assert error.close == ()


def test_long_name_is_cut() -> None:
    """A pasted page does not fill the terminal."""
    assert len(str(UnknownHardwareError("GPU", "x" * 10_000, KNOWN, 31))) < 150


def test_exit_codes() -> None:
    """A wrong name is wrong input, a broken file is a broken file."""
    assert (UnknownHardwareError("GPU", "x", KNOWN, 31).exit_code, ProfileError("x").exit_code) == (2, 3)

"""Where a measurement comes from, as far as this machine can say."""

import re
from datetime import datetime, timedelta

from tuneplan.hardware_profiles import this_machine


def test_now_is_utc_to_the_second() -> None:
    """It reads back with its zone."""
    found = datetime.fromisoformat(this_machine.now())
    assert timedelta(0) == found.utcoffset()
    assert 0 == found.microsecond


def test_versions_are_of_what_is_installed() -> None:
    """A distribution that is not there has none."""
    assert {"click"} == set(this_machine.versions(("click", "no-such-distribution")))


def test_commit_of_this_checkout() -> None:
    """A commit, with a mark where files differ from it; None where there is no checkout."""
    found = this_machine.git_commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", found)


def test_processor_has_a_name() -> None:
    """Never an empty one."""
    assert this_machine.processor()

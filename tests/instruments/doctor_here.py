"""The doctor's second process, in this one: where nothing crashes, it finds the same, and torch is
loaded already.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from nbattn.doctor import Report, probe


def second_process(words: list[str], at: Callable[[str], None]) -> Report:
    """What takes the place of `doctor._second_process` where a report is quick."""
    assert words == []
    return json.loads(json.dumps({key: part() for key, part in probe._parts([], deep=False)}))

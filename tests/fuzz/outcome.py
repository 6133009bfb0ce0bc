"""What a case came to, and what it must not come to."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mdlstm_tk.errors import MDLSTMError

ALLOWED = ("ran", "refused", "failed")
EXIT_CODES = (0, 1, 2, 3, 4)  # see mdlstm_tk/errors.py
LONGEST_MESSAGE = 2000  # characters
# What a terminal may obey: control characters, line and paragraph separators, controls of the direction of
# writing, and surrogates.
UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
PACKAGE_FOLDERS = ("/mdlstm_tk/", "/cli/", "/export/", "/models/")


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        case: number of the case.
        kind: "ran", "refused" (exit code 2) or "failed" (another documented exit code); every other kind is
            forbidden: "exception", "crash", "hang", "memory", "message", "code", "files" and "access".
        detail: the message.
        cause: what distinguishes a finding from others: the type of the exception and where it was raised.
        plan: what was changed.
    """

    case: int
    kind: str
    detail: str = ""
    cause: str = ""
    plan: str = ""

    @property
    def is_allowed(self) -> bool:
        return self.kind in ALLOWED

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class ViolationError(Exception):
    """A check of the fuzzer's own failed.

    Args:
        kind: as for `Outcome`.
        detail: what was found.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def observe(case: int, plan: str, run: Callable[[], str | None], memory_limit: int) -> Outcome:
    """Run a case and judge how it ends.

    Args:
        case: number of the case.
        plan: what was changed.
        run: returns a message if the case was refused, and None if it ran; or raises.
        memory_limit: bytes by which the resident memory may grow.
    """
    start = _reset_peak()
    try:
        message = run()
        outcome = Outcome(case, "ran" if message is None else "refused", message or "", plan=plan)
    except MDLSTMError as error:
        kind = "refused" if error.exit_code == 2 else "failed"
        outcome = Outcome(case, kind, str(error), plan=plan)
    except ViolationError as error:
        return Outcome(
            case, error.kind, str(error)[:LONGEST_MESSAGE], f"{error.kind}: {_short(error)}", plan
        )
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        return Outcome(case, "exception", text[-6000:], _cause(error), plan)
    if problem := unclean(outcome.detail):
        return Outcome(case, "message", f"{problem}: {outcome.detail!a}", f"message: {problem}", plan)
    grown = peak_bytes() - start
    if grown > memory_limit:
        cause = f"memory: {outcome.kind}: {_short(outcome.detail)}"
        return Outcome(case, "memory", f"{grown} bytes more; {outcome.detail}", cause, plan)
    return outcome


def unclean(text: str, lines: int = 1) -> str:
    """What is wrong with a message that a terminal shows; "" if nothing.

    Args:
        text: the message.
        lines: how many lines it may have.
    """
    if found := UNSAFE.search(text.replace("\n", "") if lines > 1 else text):
        return f"the character {found[0]!a}"
    if len(text) > LONGEST_MESSAGE * lines:
        return f"more than {LONGEST_MESSAGE * lines} characters"
    return ""


def _short(error: object) -> str:
    """The words of a message without numbers and quoted names, to tell kinds of messages apart."""
    words = [word for word in str(error).split() if word.isascii() and word.isalpha()]
    return " ".join(words[:12])


def _cause(error: BaseException) -> str:
    """The exception's type, the innermost frame of this package, and the innermost frame."""
    frames = [_place(frame) for frame in _frames(error.__traceback__)]
    ours = [place for place in frames if any(folder in place for folder in PACKAGE_FOLDERS)]
    inner = frames[-1] if frames else "?"
    places = [ours[-1], inner] if ours and ours[-1] != inner else [inner]
    return f"{type(error).__name__} at {' ← '.join(places)}"


def _frames(tb: TracebackType | None) -> list[Any]:
    return list(traceback.extract_tb(tb)) if tb else []


def _place(frame: Any) -> str:
    parts = Path(frame.filename).parts
    start = parts.index("mdlstm_tk") if "mdlstm_tk" in parts else -3
    return f"/{'/'.join(parts[start:])}:{frame.lineno} {frame.name}"


def _reset_peak() -> int:
    """Let the peak of the resident memory start anew; return its present value in bytes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Peak of the resident memory since `_reset_peak`; 0 where it is unknown."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0

"""`mdlstm doctor`."""

from __future__ import annotations

from dataclasses import asdict

from mdlstm_tk.cli import console, options
from mdlstm_tk.errors import MDLSTMError


def doctor(json: options.Json = False) -> None:
    """Check the installation and suggest fixes.

    An optional package that is not installed is not an error; the command to install it is shown. The exit
    code is 1 if something that is installed is broken.
    """
    from mdlstm_tk.installation import check_installation

    checks = check_installation()
    if json:
        console.print_json([asdict(check) for check in checks])
    else:
        console.table(["", "", ""], [[check.name, check.state, check.found] for check in checks], texts=3)
    if broken := [f"{check.name}: {check.found}" for check in checks if check.state == "broken"]:
        raise MDLSTMError("; ".join(broken))
    console.note("everything that is installed works")

"""`mdlstm doctor`."""

from __future__ import annotations

from dataclasses import asdict

from mdlstm_tk.cli.console import next_command, note, print_json, table
from mdlstm_tk.cli.options import Json
from mdlstm_tk.errors import MDLSTMError, install_command


def doctor(json: Json = False) -> None:
    """Check the installation and suggest fixes.

    An optional package that is not installed is not an error; the command to install it is shown. The exit
    code is 1 if something that is installed is broken.
    """
    from mdlstm_tk.installation import check_installation

    checks = check_installation()
    if json:
        print_json([asdict(check) for check in checks])
    else:
        table(["", "", ""], [[check.name, check.state, check.found] for check in checks], texts=3)
    if broken := [f"{check.name}: {check.found}" for check in checks if check.state == "broken"]:
        raise MDLSTMError("; ".join(broken))
    note("everything that is installed works")
    extra_of = {"onnxruntime": "cpu", "torch": "train"}
    extras = [extra_of[c.name] for c in checks if c.state == "absent" and c.name in extra_of]
    next_command(install_command(*extras) if extras else "mdlstm demo")

"""`mdlstm doctor`."""

from __future__ import annotations

from dataclasses import asdict

from mdlstm_tk.cli.console import error, next_command, note, print_json, table
from mdlstm_tk.cli.options import Json
from mdlstm_tk.errors import MDLSTMError


def doctor(json: Json = False) -> None:
    """Check the installation and suggest fixes.

    An optional package that is not installed is no error; the jobs that need it are listed. The exit code
    is 1 if something that is installed is broken.
    """
    from mdlstm_tk._util.diagnostics import JOBS, check_installation, missing_jobs
    from mdlstm_tk._util.installation import install_command

    checks = check_installation()
    missing = missing_jobs(checks)
    if json:
        print_json([asdict(check) for check in checks])
    else:
        table(["", "", ""], [[check.name, check.state, check.found] for check in checks], texts=3)
    for check in checks:
        if check.state == "broken":
            error(f"{check.name}: {check.fix}", label="broken")
        elif check.fix and not check.jobs:
            note(f"{check.name}: {check.found}; {check.fix}")
    for job, command in missing.items():
        note(f"to {job}: {command}")
    broken = [check.name for check in checks if check.state == "broken"]
    if broken:
        raise MDLSTMError(f"broken: {', '.join(broken)}; see the fixes above")
    note("everything that is installed works")
    essential = [extra for extra in ("cpu", "train") if JOBS[extra] in missing]
    next_command(install_command(essential) if essential else "mdlstm demo")

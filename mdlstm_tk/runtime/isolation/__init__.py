"""Run models and decode files in child processes with limits on memory, processor time and time.

limits.py          what a child may take, and how it is made to keep to it
messages.py        what parent and child say to each other: JSON of bounded length, checked field by field
shared_file.py     how arrays travel: an anonymous file in memory that both can read and write
process.py         the parent's side of a child: start, ask, kill, find out why it ended
child.py           what a child does
runner.py          `IsolatedRunner`, which runs a model in a child
reader.py          `IsolatedReader`, which reads input files in a child
rule.py            which models are isolated

The check of a model (`mdlstm_tk.runtime.security`) keeps out what is known to be dangerous. A child limits
what is not known: an operator that runs for hours or takes all memory, and a mistake in ONNX Runtime or in
Pillow that a crafted file makes use of. It is the parent that is protected. Nothing that comes from a child
is unpickled, mapped into memory or believed without a check. A child is still a process of the user, which
may read the user's files. Against an attacker who can run code in it, use a container.
"""

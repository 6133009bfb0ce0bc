"""`python -m mdlstm_tk` is `mdlstm`."""

from mdlstm_tk.cli import main

main()

"""One file for each verb of the `vlrm` command: its settings, and the few lines that run it.

A settings class's docstring is its command's help page; field names are the YAML keys and the `--key` options. Imports of the
library stay inside the functions, so that `--help` is quick.
"""

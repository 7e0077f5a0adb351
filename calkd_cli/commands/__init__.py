"""One file for each command.

Its docstring is the help text; ``add_arguments(parser)`` and ``run(args)``, which returns the exit
code, are called, and ``EPILOG``, if it is there, ends the help. ``run`` imports what it needs.
"""

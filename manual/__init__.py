"""Man pages and shell completion, made from the parsers and the configuration's table when a package is built.

`python3 -m manual FOLDER` writes them all. Not part of the installed program.
"""

"""`python -m virtksm.config` prints conf/virtksm.toml as the schema has it, `... markdown` the documented tables."""

import sys

from virtksm.config.toml_text import default_file, markdown_tables

sys.stdout.write(markdown_tables() if sys.argv[1:] == ["markdown"] else default_file())

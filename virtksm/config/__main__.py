"""`python -m virtksm.config` prints conf/virtksm.toml as the schema has it."""

import sys

from virtksm.config.toml_text import default_file

sys.stdout.write(default_file())

"""`virtksm agent`: runs the host agent in the foreground, as systemd wants it."""

from __future__ import annotations

import argparse
import sys

from virtksm.cli.connection import requested_uri
from virtksm.config.schema import Config, all_keys


def add_options(parser: argparse.ArgumentParser) -> None:
    levels, formats = (all_keys()[name].choices for name in ("log_level", "log_format"))
    parser.add_argument("--log-level", choices=levels, help="lowest level to log (default: the configuration's, info)")
    parser.add_argument(
        "--log-format", choices=formats, help="auto: console on a terminal, journal under systemd, else json"
    )


def run(options: argparse.Namespace) -> int:
    from virtksm.config.load import load
    from virtksm.log_setup import LineQueue, configure

    config = load(options.config).config
    lines = LineQueue(sys.stderr)
    import asyncio  # after log_setup, which imports it with less

    from virtksm.agent.main import serve

    def configure_log(current: Config) -> None:
        configure(options.log_level or current.log_level, options.log_format or current.log_format, stream=lines)

    configure_log(config)
    try:
        uri, reload_config = requested_uri(options.connect), lambda: load(options.config).config
        return asyncio.run(serve(uri, config, options.paths, reload_config, configure_log=configure_log))
    finally:
        lines.close()

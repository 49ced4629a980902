"""How a run of tests ends on a signal: fixtures give KSM back and end what they have started."""

import signal
from typing import NoReturn


def end_in_order() -> None:
    """Have SIGINT, SIGTERM and SIGHUP end pytest as Ctrl-C does, once: a second one would end the fixtures' ending."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
        signals.remove(signal.SIGHUP)

    def interrupt(_number: int, _frame: object) -> NoReturn:
        for number in signals:
            signal.signal(number, lambda _number, _frame: None)
        raise KeyboardInterrupt

    for number in signals:  # a script's background job ignores SIGINT, and so would all that it starts
        signal.signal(number, interrupt)

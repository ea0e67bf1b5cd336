"""Two ends of one process at once: another failed, and it fails itself."""

from __future__ import annotations

import json
import threading
import time

import pytest

from maxlm.errors import DataError
from maxlm.parallel import agreement, processes


class Heard:
    """A watch that hears, in a thread of its own, what process 1 said."""

    def __init__(self, topic, heard):
        said = json.dumps({"process": 1, "code": 2, "text": "no room"})
        threading.Thread(target=heard, args=(said,)).start()

    def close(self): ...


def test_an_error_while_another_process_is_heard_ends_with_what_that_one_said(monkeypatch, capsys):
    """Its timer is set before the error leaves: Python starts no thread as it shuts down."""
    hearing, leaving = threading.Event(), []

    def slowly_let_go() -> None:
        hearing.set()
        time.sleep(0.3)

    monkeypatch.setattr(agreement, "Watch", Heard)
    monkeypatch.setattr(processes, "_let_go", slowly_let_go)
    monkeypatch.setattr(processes, "_leave_soon", lambda *how: leaving.append(how))
    with pytest.raises(SystemExit) as ended, processes._ending_together():
        assert hearing.wait(10)
        raise DataError("no such store")
    assert ended.value.code == 2
    assert leaving == [(2, processes._AFTER_ANOTHER_FAILED_SECONDS)]
    assert "maxlm: process 1 failed: no room; this process ends too" in capsys.readouterr().err

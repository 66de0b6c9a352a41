"""A page in the Chromium that the package PySide6-WebEngine brings, without a window.

    python chromium.py file:///page.html#word=king

Prints the page, as its scripts leave it, once it holds an element with the id `report`; after half a minute, as it is.
"""

from __future__ import annotations

import os
import sys

import shiboken6
from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, qWebEngineChromiumVersion
from PySide6.QtWidgets import QApplication

# No display. Chromium refuses to run as root, as in a container, with its sandbox on; and the timers of a page that
# nobody sees tick once a second.
FLAGS = "--no-sandbox --disable-gpu --disable-background-timer-throttling --disable-renderer-backgrounding"
PATIENCE_MS = 30_000
LOOK_MS = 50


def main() -> None:
    """Load the address given, wait for the report, print the page; or print which Chromium this is."""
    if sys.argv[1] == "--version":
        print(qWebEngineChromiumVersion())
        return
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", FLAGS)
    app = QApplication(sys.argv[:1])
    profile = QWebEngineProfile()  # without a name: nothing is kept on the disk
    page = QWebEnginePage(profile)
    looks = QTimer()

    def show(text: str) -> None:
        print(text)
        app.quit()

    def seen(found: bool) -> None:
        if found and looks.isActive():
            looks.stop()
            page.toHtml(show)

    looks.timeout.connect(lambda: page.runJavaScript("document.getElementById('report') !== null", seen))
    looks.start(LOOK_MS)
    QTimer.singleShot(PATIENCE_MS, lambda: seen(True))
    page.load(QUrl(sys.argv[1]))
    app.exec()
    shiboken6.delete(page)  # before its profile, as Qt asks


if __name__ == "__main__":
    main()

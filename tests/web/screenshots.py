"""Pictures of the page of a running service: a desk by day and by night, and a phone.

python tests/web/screenshots.py URL --out docs/results/page
"""

from __future__ import annotations

import argparse
from pathlib import Path

from browser import DESK, PHONE, Visit, browsing

HEIGHT_PX = 1500  # from the top
VIEWS = {"light": (DESK, "light"), "dark": (DESK, "dark"), "phone": (PHONE, "light")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with browsing() as browser:
        for name, (viewport, scheme) in VIEWS.items():
            visit = Visit(browser, options.url, viewport, scheme)
            visit.wait_for_charts()
            visit.page.wait_for_timeout(1000)
            part = {"x": 0, "y": 0, "width": viewport["width"], "height": HEIGHT_PX}
            visit.page.screenshot(path=options.out / f"{name}.png", full_page=True, clip=part)
            assert not visit.complaints, visit.complaints
            visit.context.close()
            print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()

"""The files of the page."""

ASSETS = ("page.js", "page.css", "charts.js")

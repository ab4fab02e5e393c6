"""What makes the site of `docs/`: extensions of its builder, and pages and pictures from code.

`make docs` writes the pages (`python -m docs_tools`) and builds the site. Pictures depend on the
version of matplotlib and are made by hand, when the code beside them changes:
`python -m docs_tools.gallery`, `python -m docs_tools.page_pictures`, `python -m
docs_tools.signs_font`.
"""

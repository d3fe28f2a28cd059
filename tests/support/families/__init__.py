"""The family walk: every model that the app knows, found in its full size and run in a tiny one.

    python -m tests.support.families full [NAME ...]     what discovery finds, a JSON object a line
    python -m tests.support.families tiny [NAME ...]     the same, run whole and streamed on the simulated accelerator
    python -m tests.support.families --write             writes `docs/families.md` anew

`entry.py` says how a family is described; `unets.py`, `pictures.py`, `videos.py`, `sounds_and_shapes.py`,
`encoders.py`, `vaes.py` and `others.py` are the families, and `table.py` holds them all. `full_size.py` builds one
without its memory, `rules.py` says what must hold of it, `tiny.py` runs one, `page.py` makes the page.
"""

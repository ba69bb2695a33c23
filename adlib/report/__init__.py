"""The report of a finished study: one page, model card, datasheet, checklists, and the comparison of two studies.

Written from stored records and figures alone; the sentences are in ``templates/``. May import evaluation and the rooms
below. Start at `pages.write_report`.
"""
